"""What daily totals say about some days: sums, shares, percentiles, tables.

Interface: ``Figures`` of what ``history.read`` returned. It opens nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from greycheck.policy import ACCEPT, DEFER, REJECT
from greycheck.store.admin.history import (
    AGAIN,
    DELAY,
    HOUR,
    NETWORK,
    NEVER,
    ONCE,
    SENDER,
    VERDICT,
    Total,
    Totals,
    date_of,
    longest,
)

# What let mail in that did not wait itself, in words, by the reason. By those of ``history.WAITED``
# mail passes after its own wait.
LET_IN = {
    "client": "known clients",
    "known": "known triplets",
    "domain": "domains",
    "provider": "providers",
    "correspondent": "correspondents",
    "rule": "rules",
    "message": "same message",
    "full": "full table",
}

# The percentiles that are told of delays.
PERCENTILES = (50, 95, 99)

# How many digits a delay's step has at most.
STEP_DIGITS = 3

DAY, RECIPIENT, REASON = "day", "recipient", "reason"
DIMENSIONS = (DAY, RECIPIENT, SENDER, NETWORK, REASON)

# What stands for names that were not kept, and for who has no domain.
OTHERS, NOBODY = "(others)", "-"


@dataclass
class Row:
    """Numbers of attempts of NAME; NEVER is of triplets. ``delay`` has seconds by percentile."""

    name: str
    attempts: int = 0
    deferred: int = 0
    rejected: int = 0
    accepted: int = 0
    observed: int = 0
    never: int = 0
    delay: dict[int, int] | None = None

    def add(self, verdict: str, number: int) -> None:
        """Adds NUMBER attempts that had VERDICT; or triplets, if it is that they never came."""
        if verdict == NEVER:
            self.never += number
            return
        self.attempts += number
        if verdict == ACCEPT:
            self.accepted += number
        elif verdict == DEFER:
            self.deferred += number
        elif verdict == REJECT:
            self.rejected += number
        else:
            self.observed += number


def percentile(steps: Counter[int], percent: int) -> int | None:
    """Returns the delay in seconds within which PERCENT of those in STEPS passed.

    It is the longest of its step. None: there are none.
    """
    wanted = ceil(sum(steps.values()) * percent / 100)
    seen = 0
    for step, number in sorted(steps.items()):
        seen += number
        if number and seen >= wanted:
            return ceil(longest(step))
    return None


def percentiles(steps: Counter[int]) -> dict[int, int]:
    """Returns PERCENTILES of the delays in STEPS, in seconds; none if there are no delays."""
    found = {percent: percentile(steps, percent) for percent in PERCENTILES}
    return {percent: seconds for percent, seconds in found.items() if seconds is not None}


def share(part: int, whole: int) -> str:
    """Returns PART as a share of WHOLE, as ``12 %``; nothing where there is no whole."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1 %"
    return f"{percent:.0f} %"


def _is_step(total: Total) -> bool:
    """True if the name of TOTAL is a delay's step: whoever shares the store may write others."""
    return total.name.isdecimal() and len(total.name) <= STEP_DIGITS


class Figures:
    """What TOTALS say about the days FIRST to LAST.

    Of days up to COMPLETE it is known what never came back, as expire has run since.
    """

    def __init__(self, totals: Totals, first: int, last: int, complete: int) -> None:
        self.first, self.last, self.complete = first, last, min(complete, last)
        self._days = [(total, number) for total, number in totals.items() if total.day]
        self._names = [(total, number) for total, number in totals.items() if not total.day]

    def split(self, ranges: Sequence[tuple[int, int]]) -> list["Figures"]:
        """Returns the figures of each of RANGES of days, which do not overlap; without names."""
        place = {
            day: number for number, (first, last) in enumerate(ranges)
            for day in range(first, last + 1)
        }  # fmt: skip
        found: list[Totals] = [Counter() for _range in ranges]
        for total, number in self._days:
            if total.day in place:
                found[place[total.day]][total] = number
        return [
            Figures(totals, first, last, self.complete)
            for totals, (first, last) in zip(found, ranges, strict=True)
        ]

    def named(self, name: str) -> Row:
        """Returns the sums of these days as a row with NAME."""
        return replace(self.sums, name=name)

    def passed_within(self, seconds: int) -> int:
        """Returns how many triplets passed after a wait of a step that ends within SECONDS."""
        return sum(
            number for step, number in self.steps.items() if longest(step) <= seconds * 1.045
        )

    @property
    def days(self) -> int:
        """How many days they are."""
        return self.last - self.first + 1

    def _of(self, kind: str) -> Iterator[tuple[Total, int]]:
        return ((total, number) for total, number in self._days if total.kind == kind)

    @cached_property
    def sums(self) -> Row:
        """All attempts, and all that never came back."""
        row = Row("")
        for kind in (VERDICT, NEVER):
            for total, number in self._of(kind):
                row.add(total.verdict, number)
        row.delay = percentiles(self.steps)
        return row

    @cached_property
    def reasons(self) -> Counter[tuple[str, str]]:
        """Attempts by verdict and reason."""
        found: Counter[tuple[str, str]] = Counter()
        for total, number in self._of(VERDICT):
            found[total.verdict, total.name] += number
        return found

    @cached_property
    def steps(self) -> Counter[int]:
        """Delays by step."""
        found: Counter[int] = Counter()
        for total, number in self._of(DELAY):
            if _is_step(total):
                found[int(total.name)] += number
        return found

    @property
    def passed(self) -> int:
        """How many triplets passed after a wait."""
        return sum(self.steps.values())

    @cached_property
    def never(self) -> Counter[str]:
        """Triplets that never came back, of one attempt (``once``) or more (``again``)."""
        found: Counter[str] = Counter({ONCE: 0, AGAIN: 0})
        for total, number in self._of(NEVER):
            found[total.name] += number
        return found

    @property
    def never_complete(self) -> int:
        """How many never came back of days of which all is known."""
        return sum(number for total, number in self._of(NEVER) if total.day <= self.complete)

    @property
    def new(self) -> int:
        """How many triplets were new."""
        return self._new(self.last)

    @property
    def new_complete(self) -> int:
        """How many were new on days of which it is known what never came back."""
        return self._new(self.complete)

    def _new(self, last: int) -> int:
        return sum(
            number
            for total, number in self._of(VERDICT)
            if total.name == "new" and total.day <= last
        )

    @property
    def errors(self) -> int:
        """How many checks could not be made."""
        return sum(number for (_, reason), number in self.reasons.items() if reason == "error")

    @property
    def let_in(self) -> dict[str, int]:
        """How many attempts were accepted for each of LET_IN."""
        return {name: self.reasons[ACCEPT, reason] for reason, name in LET_IN.items()}

    def by_day(self) -> list[Row]:
        """Returns a row for each day, those without mail too."""
        rows = {
            day: Row(date_of(day).isoformat(), delay={}) for day in range(self.first, self.last + 1)
        }
        steps: dict[int, Counter[int]] = {}
        for total, number in self._days:
            if total.kind in (VERDICT, NEVER):
                rows[total.day].add(total.verdict, number)
            elif total.kind == DELAY and _is_step(total):
                steps.setdefault(total.day, Counter())[int(total.name)] += number
        for day, counted in steps.items():
            rows[day].delay = percentiles(counted)
        return list(rows.values())

    def by_hour(self) -> list[Row]:
        """Returns a row for each hour of the day, of all days together."""
        rows = {f"{hour:02}": Row(f"{hour:02}") for hour in range(24)}
        for total, number in self._of(HOUR):
            if total.name in rows:
                rows[total.name].add(total.verdict, number)
        return list(rows.values())

    def by_reason(self) -> list[tuple[str, str, int]]:
        """Returns verdict, reason and number, the most frequent first."""
        return [(*names, number) for names, number in self.reasons.most_common()]

    def by_name(self, dimension: str) -> list[Row]:
        """Returns a row for each recipient domain, sender's domain or network, the busiest first.

        What has no name of its own comes last.
        """
        rows: dict[str, Row] = {}
        for total, number in self._names:
            if dimension == RECIPIENT:
                if total.kind not in (VERDICT, NEVER):
                    continue
                name = total.recipient
            elif total.kind == dimension:
                name = total.name
            else:
                continue
            rows.setdefault(name, Row(name or OTHERS)).add(total.verdict, number)
        return sorted(
            rows.values(), key=lambda row: (row.name == OTHERS, -row.attempts, -row.never, row.name)
        )
