"""What a report tells, as tables: the text for mail and the page have the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from greycheck.settings import Settings
from greycheck.simulation import telling
from greycheck.simulation.figures import Simulation
from greycheck.statistics.figures import RECIPIENT, Figures, Row, share
from greycheck.store.admin.history import AGAIN, NETWORK, NEVER, ONCE, SENDER, date_of, number_of
from greycheck.times import span

# How many rows of days a table has; above that they are weeks, and then months.
ROWS = 62

# How many names a table has.
NAMES = 10


@dataclass
class Table:
    """A TITLE, names of columns and rows of text; or WORDS, where there is none.

    ``about`` is what it is about, as names and texts; ``note`` is to be said below it.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    words: str = ""
    about: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass
class Period:
    """Days that are told as one: NAME, and their FIGURES."""

    name: str
    figures: Figures


def periods(figures: Figures) -> tuple[str, list[Period]]:
    """Returns FIGURES by day, week or month, whatever is at most ROWS; and which it is."""
    days = range(figures.first, figures.last + 1)
    unit = next(
        (unit for unit, length in (("day", 1), ("week", 7)) if len(days) <= ROWS * length), "month"
    )
    beginning: Callable[[int], int] = {
        "day": lambda day: day,
        "week": lambda day: number_of(date_of(day) - timedelta(days=date_of(day).weekday())),
        "month": lambda day: number_of(date_of(day).replace(day=1)),
    }[unit]
    found: dict[int, list[int]] = {}
    for day in days:
        found.setdefault(beginning(day), []).append(day)
    parts = figures.split([(of[0], of[-1]) for of in found.values()])
    return unit, [Period(date_of(part.first).isoformat(), part) for part in parts]


def of_periods(unit: str, found: Sequence[Period]) -> Table:
    """Returns the table of the periods that were FOUND, each a UNIT."""
    columns = (unit, "attempts", "deferred", "passed", "never", "p50", "p95")
    return Table(f"By {unit}", columns, [_of(one.name, one.figures) for one in found])


def _of(name: str, figures: Figures) -> list[str]:
    sums = figures.sums
    return [
        name,
        str(sums.attempts),
        str(sums.deferred + sums.observed),
        str(figures.passed),
        str(sums.never),
        *(delay(sums, percent) for percent in (50, 95)),
    ]


def delay(row: Row, percent: int) -> str:
    """Returns the delay within which PERCENT of ROW passed; nothing where none did."""
    seconds = (row.delay or {}).get(percent)
    return "" if seconds is None else span(seconds)


def delays(figures: Figures) -> Table:
    """Returns how many waited for how long."""
    bounds = (60, 300, 600, 900, 1800, 3600, 2 * 3600, 4 * 3600, 12 * 3600, 86400, 1 << 40)
    rows, seen = [], 0
    for bound in bounds:
        number = figures.passed_within(bound) - seen
        seen += number
        if number:
            name = f"to {span(bound)}" if bound < 1 << 40 else "longer"
            rows.append([name, str(number), share(number, figures.passed)])
    return Table("Delays of what passed", ("delay", "triplets", "share"), rows)


def let_in(figures: Figures) -> Table:
    """Returns by what mail was let in without a wait of its own."""
    rows = [
        [name, str(number), share(number, figures.sums.attempts)]
        for name, number in figures.let_in.items()
        if number
    ]
    return Table("Let in without a wait", ("by", "attempts", "share"), rows)


def never(figures: Figures) -> Table:
    """Returns what never came back."""
    counted = figures.never
    rows = [["tried once", str(counted[ONCE])], ["tried again", str(counted[AGAIN])]]
    return Table("Never came back", ("", "triplets"), rows if sum(counted.values()) else [])


def tops(figures: Figures, settings: Settings) -> list[tuple[str, Table, list[Row]]]:
    """Returns the busiest recipients, senders and networks: what they are, table and rows."""
    found: list[tuple[str, Table, list[Row]]] = []
    for dimension, title in (
        (RECIPIENT, "Recipient domains"),
        (SENDER, "Senders' domains"),
        (NETWORK, "Networks of clients"),
    ):
        if dimension != RECIPIENT and settings.history_senders != "yes":
            words = "Not counted: history_senders is no."
            found.append((dimension, Table(title, words=words), []))
            continue
        rows = figures.by_name(dimension)[:NAMES]
        cells = [
            [row.name, str(row.attempts), str(row.deferred), share(row.deferred, row.attempts),
             str(row.never)]
            for row in rows
        ]  # fmt: skip
        columns = (dimension, "attempts", "deferred", "share", NEVER)
        found.append((dimension, Table(title, columns, cells), rows))
    return found


def change(day: int, before: Figures, after: Figures) -> Table:
    """Returns what was BEFORE and AFTER a change on DAY."""

    def column(figures: Figures) -> list[str]:
        sums = figures.sums
        return [
            str(figures.days),
            f"{sums.attempts / figures.days:.1f}",
            share(sums.deferred + sums.observed, sums.attempts),
            share(figures.never_complete, figures.new_complete),
            *(delay(sums, percent) for percent in (50, 95, 99)),
            str(figures.errors),
        ]

    names = (
        "days",
        "attempts a day",
        "deferred",
        "never back, of new",
        "delay p50",
        "delay p95",
        "delay p99",
        "errors",
    )
    rows = [list(row) for row in zip(names, column(before), column(after), strict=True)]
    return Table(f"Before and after {date_of(day).isoformat()}", ("", "before", "after"), rows)


def simulated(found: Simulation) -> Table:
    """Returns what a simulation FOUND: each way, and the last two's difference."""
    columns, rows = telling.table(found)
    about, note = list(telling.about(found)), telling.stood_in(found)
    return Table("What other settings would have done", columns, rows, about=about, note=note)
