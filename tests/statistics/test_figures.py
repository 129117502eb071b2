"""What figures say at their limits: percentiles, shares, days that are not over, long times."""

from collections import Counter

import pytest

from greycheck import history
from greycheck.policy import STEPS
from greycheck.settings import read
from greycheck.statistics import parts, text
from greycheck.statistics.figures import LET_IN, Figures, percentile, share
from greycheck.store.admin.history import Total, Totals, date_of, longest, step

MONDAY = 20_759  # 2026-11-02


def figures(totals: Totals | None = None, days: int = 1, complete: int = MONDAY + 999) -> Figures:
    return Figures(totals or Counter(), MONDAY, MONDAY + days - 1, complete)


def test_a_percentile_is_the_longest_of_its_step() -> None:
    waits = Counter(step(seconds) for seconds in range(301, 401))
    assert percentile(waits, 50) == -(-longest(step(350)) // 1)
    assert percentile(waits, 100) == -(-longest(step(400)) // 1)
    assert percentile(Counter(), 50) is None
    assert percentile(Counter({66: 1}), 99) == percentile(Counter({66: 1}), 1) == 305


# What keeps mail from being let in, and is told by its own name.
HELD = ("new", "early", "crowded", "strikes", "error")


def test_each_reason_of_the_program_is_told_once() -> None:
    lists = (*LET_IN, *history.WAITED, *history.UNCOUNTED, *HELD)
    assert Counter(lists) == Counter({*(step.reason for step in STEPS), "error"})
    totals: Totals = Counter(
        {
            Total(MONDAY, "verdict", "accept", reason): 1
            for reason in lists
            if reason not in history.UNCOUNTED
        }
    )
    assert set(figures(totals).let_in.values()) == {1}


@pytest.mark.parametrize(
    ("part", "whole", "said"), [(0, 0, ""), (0, 5, "0 %"), (1, 1000, "<1 %"), (1, 3, "33 %")]
)
def test_a_share(part: int, whole: int, said: str) -> None:
    assert share(part, whole) == said


def test_what_never_came_back_is_a_share_of_days_that_are_complete() -> None:
    totals: Totals = Counter()
    for day, new, never in ((0, 10, 5), (1, 90, 1)):
        totals[Total(MONDAY + day, "verdict", "defer", "new")] = new
        totals[Total(MONDAY + day, "never", "never", "once")] = never
    found = dict(
        text.summary(figures(totals, 2, MONDAY), read({b"GREYCHECK_CONFIG": b"/dev/null"}))
    )
    assert found["never back"] == (
        "6, 50 % of what was new; tried once 6, more often 0; complete to 2026-11-02"
    )


@pytest.mark.parametrize(
    ("days", "unit", "number"),
    [(62, "day", 62), (63, "week", 9), (434, "week", 62), (435, "month", 15)],
)
def test_many_days_are_weeks_and_months(days: int, unit: str, number: int) -> None:
    totals: Totals = Counter(
        {Total(MONDAY + day, "verdict", "accept", "client"): 1 for day in range(days)}
    )
    told, found = parts.periods(figures(totals, days))
    assert (told, len(found)) == (unit, number)
    assert sum(one.figures.sums.attempts for one in found) == days
    assert found[0].name == date_of(MONDAY).isoformat()


def test_a_name_in_a_total_that_is_none_of_ours_is_left_out() -> None:
    """A newer program, or another host, may have written it."""
    totals: Totals = Counter(
        {
            Total(MONDAY, "delay", "", "soon"): 3,
            Total(MONDAY, "delay", "", "²"): 3,
            Total(MONDAY, "delay", "", "99999"): 3,
            Total(MONDAY, "hour", "accept", "25"): 3,
            Total(MONDAY, "verdict", "later", "mood"): 3,
        }
    )
    found = figures(totals)
    assert (found.passed, sum(row.attempts for row in found.by_hour())) == (0, 0)
    assert found.sums.observed == 3
    assert found.by_day()[0].delay == {}
