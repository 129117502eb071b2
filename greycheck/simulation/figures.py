"""The figures of a simulation: plain values, for tables, JSON and reports.

A mail is counted on the day of its first attempt, local time, once its fate is settled in each of
the ways that are compared.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# The name of what the log itself tells, beside the ways that are simulated.
LOGGED = "logged"

# The names of what is compared: under the settings as they are, and under those that are given.
CURRENT, OTHER = "current", "simulated"
WAYS = ([LOGGED, CURRENT], [LOGGED, CURRENT, OTHER])

# What becomes of a mail: it passes at its first attempt, or later; it is refused; it is deferred at
# each of its attempts; or it still waited when the log ended.
AT_ONCE, DELAYED, REFUSED, NEVER, WAITS = FATES = (
    "at_once",
    "delayed",
    "refused",
    "never",
    "waits",
)

# The bands of waits that are counted, by their longest, in seconds; what is longer has the last.
BANDS = (300, 900, 1800, 3600, 4 * 3600, 12 * 3600, 86400)


class Fate(NamedTuple):
    """What becomes of one mail: WHAT, one of FATES; its last REASON; WAITED seconds.

    DEFERRALS is how many of its attempts were deferred, and STOOD_IN says that some of its attempts
    are a schedule's, not the log's.
    """

    what: str
    reason: str
    waited: int = 0
    deferrals: int = 0
    stood_in: bool = False


@dataclass
class Figures:
    """How many mails had which fate, in one way.

    ``waited`` and ``longest`` are seconds, of the delayed ones; ``bands`` counts these by BANDS.
    ``reasons`` counts all mails by the reason of their last verdict. ``stood_in`` is how many have
    attempts that the log does not have.
    """

    mails: int = 0
    at_once: int = 0
    delayed: int = 0
    refused: int = 0
    never: int = 0
    waits: int = 0
    deferrals: int = 0
    stood_in: int = 0
    waited: int = 0
    longest: int = 0
    bands: list[int] = field(default_factory=lambda: [0] * (len(BANDS) + 1))
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, fate: Fate, mails: int = 1) -> None:
        """Counts so many MAILS of one FATE."""
        self.mails += mails
        setattr(self, fate.what, getattr(self, fate.what) + mails)
        self.deferrals += fate.deferrals * mails
        self.stood_in += fate.stood_in * mails
        self.reasons[fate.reason] += mails
        if fate.what == DELAYED:
            self.waited += fate.waited * mails
            self.longest = max(self.longest, fate.waited)
            self.bands[bisect_left(BANDS, fate.waited)] += mails

    def include(self, other: "Figures") -> None:
        """Adds the figures of OTHER mails."""
        for name in ("mails", *FATES, "deferrals", "stood_in", "waited"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.bands = [mine + more for mine, more in zip(self.bands, other.bands, strict=True)]
        self.reasons.update(other.reasons)

    @property
    def mean(self) -> int:
        """How long those that were delayed waited on average, in seconds."""
        return self.waited // self.delayed if self.delayed else 0


@dataclass
class Day:
    """The figures of the mails that were first tried on DAY, as ``2026-11-30``; by way."""

    day: str
    ways: list[Figures]


@dataclass
class Simulation:
    """What was simulated.

    ``ways`` are the names of what is compared: ``logged``, then one for each set of settings.
    ``total`` and each day of ``days`` have their figures in that order. ``changes`` counts mails by
    their fate in the second to last and the last of these ways. LINES were read in all, CHECKS of
    them by greycheck; EXEMPT (users' own) and UNUSABLE (no time, no client) are not simulated.
    ``known`` is how many clients, triplets and domains the log shows as known before it begins, and
    FIRST and LAST are the times of its attempts. ``settings`` are those that differ in the last two
    ways: name and both values, as an operator writes them. RULES is the file whose rules the last
    way has, None where it has those that the log names.
    """

    ways: list[str]
    total: list[Figures]
    days: list[Day] = field(default_factory=list)
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: int = 0
    checks: int = 0
    exempt: int = 0
    unusable: int = 0
    known: int = 0
    first: int | None = None
    last: int | None = None
    settings: list[tuple[str, str, str]] = field(default_factory=list)
    rules: str | None = None

    def as_data(self) -> dict[str, object]:
        """Returns all of it for JSON: times in seconds since 1970, bands by their upper ends."""
        return {
            "settings": {
                name: {CURRENT: before, OTHER: after} for name, before, after in self.settings
            },
            "rules": self.rules,
            "lines": self.lines,
            "checks": self.checks,
            "exempt": self.exempt,
            "unusable": self.unusable,
            "known_before": self.known,
            "first": self.first,
            "last": self.last,
            "ways": {
                name: figures_data(figures)
                for name, figures in zip(self.ways, self.total, strict=True)
            },
            "changes": [
                {"from": before, "to": after, "mails": number}
                for (before, after), number in sorted(self.changes.items())
            ],
            "days": [
                {
                    "day": day.day,
                    **{
                        name: figures_data(figures)
                        for name, figures in zip(self.ways, day.ways, strict=True)
                    },
                }
                for day in self.days
            ],
        }


def figures_data(figures: Figures) -> dict[str, object]:
    """Returns FIGURES for JSON."""
    return {
        **{fate: getattr(figures, fate) for fate in FATES},
        "mails": figures.mails,
        "deferrals": figures.deferrals,
        "by_schedule": figures.stood_in,
        "mean_wait": figures.mean,
        "longest_wait": figures.longest,
        "waits_up_to": [
            {"seconds": seconds, "mails": number}
            for seconds, number in zip((*BANDS, None), figures.bands, strict=True)
        ],
        "reasons": dict(sorted(figures.reasons.items())),
    }


# More mails or seconds than any log tells of; the last second of the year 9999; and more characters
# than a setting or the name of a file has.
_MOST, _LAST, _LONGEST = 10**15, 253402300799, 10_000


def from_data(data: Any) -> Simulation:
    """Returns the simulation in DATA, as ``Simulation.as_data`` made it.

    Its days, changes and reasons are left out. Raises ValueError if it is none.
    """
    try:
        ways = data["ways"]
        found = Simulation(
            list(ways),
            [_figures(way) for way in ways.values()],
            settings=[
                (_text(name), _text(values[CURRENT]), _text(values[OTHER]))
                for name, values in data["settings"].items()
            ],
            rules=None if data["rules"] is None else _text(data["rules"]),
        )
        for name in ("lines", "checks", "exempt", "unusable"):
            setattr(found, name, _number(data[name]))
        found.known = _number(data["known_before"])
        found.first, found.last = _number(data["first"], _LAST), _number(data["last"], _LAST)
        is_one = found.ways in WAYS
    except (AttributeError, KeyError, TypeError):
        is_one = False
    if not is_one:
        raise ValueError("is not what greycheck simulate --json prints")
    return found


def _figures(data: Any) -> Figures:
    found = Figures()
    for name in ("mails", *FATES, "deferrals"):
        setattr(found, name, _number(data[name]))
    found.stood_in = _number(data["by_schedule"])
    found.longest = _number(data["longest_wait"])
    found.waited = _number(data["mean_wait"]) * found.delayed
    bands = [_number(band["mails"]) for band in data["waits_up_to"]]
    if len(bands) != len(found.bands):
        raise TypeError
    found.bands = bands
    return found


def _number(value: object, most: int = _MOST) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise TypeError
    return value
