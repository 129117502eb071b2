"""Measures how long the operations of a check take in a store, and judges if that is too long."""

import os
from collections.abc import Callable
from statistics import median
from time import perf_counter

from greycheck.doctor.finding import Finding
from greycheck.settings import Settings, duration_text
from greycheck.store.base import STORE_SHARE

# How many look-ups are measured.
LOOK_UPS = 9


def milliseconds(seconds: float) -> str:
    """Returns SECONDS as text, in milliseconds."""
    return f"{seconds * 1000:.1f} ms"


def timed(call: Callable[[], object]) -> float:
    """Runs CALL and returns how long it takes, in seconds."""
    started = perf_counter()
    call()
    return perf_counter() - started


def middle_and_longest(look_up: Callable[[], float]) -> tuple[float, float]:
    """Calls LOOK_UP LOOK_UPS times; returns the median and the maximum, in seconds."""
    times = [look_up() for _number in range(LOOK_UPS)]
    return median(times), max(times)


def new_triplet() -> dict[str, object]:
    """Returns the columns of a triplet's row, under a key that no mail has."""
    counts = ("first_attempt", "last_attempt", "early_attempts", "passes", "expires_at")
    texts = {"network": "192.0.2.0/24", "sender": "", "recipient": ""}
    rest = {"triplet_key": os.urandom(16), "passed_at": None, "origin": None, "authorised": 0}
    return {**dict.fromkeys(counts, 0), **texts, **rest}


def weigh(text: str, slow: float, settings: Settings, advice: str) -> Finding:
    """Returns the finding about a store that takes SLOW seconds for a check.

    SETTINGS have the deadline. TEXT says what was measured, ADVICE what would make it faster.
    """
    timeout = settings.deadline * STORE_SHARE
    text += f", of a deadline of {duration_text(settings.deadline)}"
    if slow > timeout:
        return Finding("fault", "latency", text, f"Checks end by on_error. {advice}")
    if slow > timeout / 4:
        return Finding("warning", "latency", text, f"That is near. {advice}")
    return Finding("ok", "latency", text)
