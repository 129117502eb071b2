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
    ``known`` is how many clients, triplets and domains the log shows as known before it begins.
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

    def as_data(self) -> dict[str, object]:
        """Returns all of it for JSON: times in seconds since 1970, bands by their upper ends."""
        return {
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


# More mails or seconds than any log tells of.
_MOST = 10**15


def from_data(data: object) -> Simulation:
    """Returns the simulation in DATA, as ``Simulation.as_data`` made it, without its days.

    Raises ValueError if it is none.
    """
    try:
        assert isinstance(data, dict)
        ways = data["ways"]
        changes = {(each["from"], each["to"]): each["mails"] for each in data["changes"]}
        found = Simulation(
            list(ways),
            [_figures(way) for way in ways.values()],
            changes=Counter({pair: _number(number) for pair, number in changes.items()}),
        )
        for name in ("lines", "checks", "exempt", "unusable"):
            setattr(found, name, _number(data[name]))
        found.known = _number(data["known_before"])
        found.first, found.last = _number(data["first"]), _number(data["last"])
    except (AssertionError, AttributeError, KeyError, TypeError):
        raise ValueError("is not what greycheck simulate --json prints") from None
    if found.ways not in WAYS or not all(set(pair) <= set(FATES) for pair in found.changes):
        raise ValueError("is not what greycheck simulate --json prints")
    return found


def _figures(data: dict[str, Any]) -> Figures:
    found = Figures()
    for name in ("mails", *FATES, "deferrals"):
        setattr(found, name, _number(data[name]))
    found.stood_in = _number(data["by_schedule"])
    found.longest = _number(data["longest_wait"])
    found.waited = _number(data["mean_wait"]) * found.delayed
    bands = [_number(band["mails"]) for band in data["waits_up_to"]]
    assert len(bands) == len(found.bands)
    found.bands = bands
    return found


def _number(value: object) -> int:
    assert isinstance(value, int)
    assert 0 <= value < _MOST
    return value
