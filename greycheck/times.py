"""Writes times and durations for people. ``settings.duration_text`` writes one for a setting."""

from itertools import pairwise
from time import gmtime, localtime, strftime

from greycheck.settings import LONGEST, duration, duration_text

# The units of ``span`` and their seconds, largest first.
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


# The last second of the year 9999: dates go no further.
LAST = 253402300799


def bounded_duration(text: str) -> int:
    """Returns the seconds of TEXT, as ``90``, ``5m``, ``24h`` or ``36d``. Raises ValueError."""
    seconds = duration(text)
    if seconds > LONGEST:
        raise ValueError(f"longer than {duration_text(LONGEST)}")
    return seconds


def _named(moment: float) -> float:
    """MOMENT, or the nearest time that has a date: a database may have any number."""
    return min(max(0, moment), LAST)


def local(moment: int) -> str:
    """Returns MOMENT (seconds since 1970) in local time, with its zone."""
    return strftime("%Y-%m-%d %H:%M:%S %Z", localtime(_named(moment)))


def local_bare(moment: int) -> str:
    """Returns MOMENT (seconds since 1970) in local time, without its zone."""
    return strftime("%Y-%m-%d %H:%M:%S", localtime(_named(moment)))


def utc(moment: float) -> str:
    """Returns MOMENT (seconds since 1970) as ``2026-12-01 00:00:00 UTC``."""
    return strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(_named(moment)))


def stamp(moment: int) -> str:
    """Returns MOMENT (seconds since 1970) as files of rules write it: ``2026-12-01T00:00:00Z``."""
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(_named(moment)))


def span(seconds: int) -> str:
    """Returns SECONDS in their two largest units, as ``3d 2h``."""
    for (size, name), (next_size, next_name) in pairwise(_UNITS):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size}{name}" + (f" {rest}{next_name}" if rest else "")
    return f"{seconds}s"


def coarse(seconds: int) -> str:
    """Returns SECONDS in their largest unit; ``0s`` for a negative number."""
    return span(max(0, seconds)).partition(" ")[0]


def away(moment: int, now: int) -> str:
    """Returns how far MOMENT is from NOW: ``in 5m`` or ``3d 2h ago``."""
    if moment == now:
        return "now"
    return f"in {span(moment - now)}" if moment > now else f"{span(now - moment)} ago"
