from collections.abc import Callable

def _lru_cache_wrapper(
    call: Callable[..., object], maxsize: int, typed: bool, cache_info: object
) -> Callable[..., object]: ...
