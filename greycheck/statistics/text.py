"""Figures in words, for a terminal and for mail."""

from collections.abc import Iterator

from greycheck.settings import Settings
from greycheck.statistics.figures import Figures, Row, share
from greycheck.store.admin.history import AGAIN, ONCE, date_of
from greycheck.times import span
from greycheck.unseen import UNSEEN

# The width of the names, in columns.
LABEL = 10


def plain(words: str) -> str:
    """Returns WORDS without characters that a page must not have: they move, hide or turn text."""
    return "".join(
        char if char.isprintable() and char not in UNSEEN else "\ufffd" for char in words
    )


def period(figures: Figures) -> str:
    """Returns the days of FIGURES, as ``2026-11-24 to 2026-11-30, 7 days``."""
    first, last = date_of(figures.first).isoformat(), date_of(figures.last).isoformat()
    return first if first == last else f"{first} to {last}, {figures.days} days"


def delays(row: Row) -> str:
    """Returns the percentiles of the delays of ROW."""
    return ", ".join(
        f"p{percent} {span(seconds)}" for percent, seconds in (row.delay or {}).items()
    )


def summary(figures: Figures, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields what FIGURES say, as name and text. What SETTINGS leave out is named."""
    yield "days", period(figures)
    if not settings.history:
        yield "history", "is 0: nothing is counted"
    sums = figures.sums
    parts = [
        f"{number} {word}{_share(number, sums.attempts)}"
        for word, number in (
            ("deferred", sums.deferred),
            ("rejected", sums.rejected),
            ("only observed", sums.observed),
            ("accepted", sums.accepted),
        )
        if number or word in ("deferred", "accepted")
    ]
    yield "attempts", f"{sums.attempts}: {', '.join(parts)}" if sums.attempts else "none"
    yield "new", f"{_counting(figures.new, 'triplet')}; {figures.passed} passed after a wait"
    yield "never back", _never(figures)
    yield "delay", delays(sums) or "nothing has waited and passed"
    let_in = [f"{name} {number}" for name, number in figures.let_in.items() if number]
    yield "let in", ", ".join(let_in) or "nothing at its first attempt"
    if figures.errors:
        yield "errors", f"{_counting(figures.errors, 'check')} could not be made: see the log"


def _never(figures: Figures) -> str:
    never, number = figures.never, sum(figures.never.values())
    if figures.complete < figures.first:
        known = f"not known before the retry window is over and expire has run; {number} so far"
    else:
        known = f"{number}"
        if of_new := share(figures.never_complete, figures.new_complete):
            known += f", {of_new} of what was new"
    if number:
        known += f"; tried once {never[ONCE]}, more often {never[AGAIN]}"
    if figures.first <= figures.complete < figures.last:
        known += f"; complete to {date_of(figures.complete).isoformat()}"
    return known


def _share(part: int, whole: int) -> str:
    return f" ({share(part, whole)})" if part and whole else ""


def _counting(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
