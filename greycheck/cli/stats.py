"""``greycheck stats``: what was deferred, what passed and when, what never came back."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from time import time

import click

from greycheck.cli import terminal
from greycheck.cli.columns import Cell, Rows, facts
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.output import console, is_empty, print_json
from greycheck.settings import Settings
from greycheck.statistics import text
from greycheck.statistics.figures import DAY, DIMENSIONS, REASON, Figures, Row, share
from greycheck.store.admin import history
from greycheck.store.admin.history import NETWORK, SENDER, Totals, date_of, day_of, number_of
from greycheck.times import span

# How many days are told of where none is named.
WEEK = 7

# How many names a table has.
LIMIT = 20


def a_day(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Returns the day that an option's VALUE names, in days since 1970. Raises BadParameter."""
    if value is None:
        return None
    today = day_of(int(time()))
    if value in ("today", "yesterday"):
        return today - (value == "yesterday")
    try:
        found = number_of(date.fromisoformat(value))
    except ValueError:
        found = 0
    if found < 1:
        raise click.BadParameter(f"{value}: not a day (as 2026-11-20, today or yesterday)")
    return found


def days(first: int | None, last: int | None, today: int, number: int = WEEK) -> tuple[int, int]:
    """Returns the days from FIRST to LAST; what is None is found by NUMBER or TODAY.

    Raises UsageError.
    """
    if last is None:
        last = today if first is None else max(first, today)
    if first is None:
        first = max(1, last - number + 1)
    if first > last:
        raise click.UsageError(f"{date_of(first)} is after {date_of(last)}")
    return first, last


def figures_of(settings: Settings, first: int, last: int, now: int) -> Figures:
    """Returns the figures of the days FIRST to LAST, at NOW, from the store of SETTINGS."""
    totals: Totals = Totals()
    if not is_empty(settings):
        with open_store(settings, marks=True) as engine:
            totals = history.read(engine, settings, first, last, now)
    # What expired after that is not counted yet.
    known = min(now, history.last_expired(totals)) - settings.retry_window
    return Figures(totals, first, last, day_of(known) - 1 if known > 0 else 0)


@click.command()
@click.option("--day", callback=a_day, metavar="DAY", help="One day: today, yesterday or a date.")
@click.option("--from", "first", callback=a_day, metavar="DAY", help="The first day.")
@click.option("--to", "last", callback=a_day, metavar="DAY", help="The last day; by default today.")
@click.option(
    "--by",
    type=click.Choice(DIMENSIONS),
    help="What has a row of its own; by default day, and of one day reason.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=LIMIT,
    show_default=True,
    help="How many recipients, senders or networks; 0: all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(
    day: int | None,
    first: int | None,
    last: int | None,
    by: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Tell what was deferred, what passed and when, and what never came back.

    Of the last seven days, or of those that are named, from daily totals that stay when rows have
    expired (docs/statistics.rst). Those of other hosts are as of their last greycheck expire.

    Delays are counted in steps, each 9 % longer than the one before: p95 is the longest of the step
    within which 95 of 100 passed. What never came back is known when the retry window is over, and
    greycheck expire has run since.
    """
    settings, now = read_settings(), int(time())
    if day is not None and (first is not None or last is not None):
        raise click.UsageError("--day is one day: leave out --from and --to")
    begin, end = (day, day) if day is not None else days(first, last, day_of(now))
    by = by or (REASON if begin == end else DAY)
    figures = figures_of(settings, begin, end, now)
    if as_json:
        print_json(as_data(figures, by, limit, settings))
        return
    if is_empty(settings):
        terminal.echo(*no_store(settings))
        return
    screen = console()
    facts(screen, text.summary(figures, settings), text.LABEL)
    if by in (SENDER, NETWORK) and settings.history_senders != "yes":
        terminal.echo("", f"By {by} nothing is counted: history_senders is no.")
        return
    titles, rows = table(figures, by, limit)
    if not rows:
        return
    screen.print()
    Rows(screen, 0, alone=False).print(rows, [titles])


def shown_rows(figures: Figures, by: str, limit: int) -> list[Row]:
    """Returns LIMIT rows (0: all) of FIGURES BY day, recipient, sender or network."""
    if by == DAY:
        return figures.by_day()
    return figures.by_name(by)[: limit or None]


def table(figures: Figures, by: str, limit: int) -> tuple[list[Cell], list[list[Cell]]]:
    """Returns the titles and the rows of the table of FIGURES BY something, LIMIT names of it."""
    if by == REASON:
        whole = figures.sums.attempts
        cells = [
            [reason, verdict, str(number), share(number, whole)]
            for verdict, reason, number in figures.by_reason()
        ]
        return aligned(["reason", "verdict", "attempts", "share"], cells, left=2)
    rows = shown_rows(figures, by, limit)
    has_observed = any(row.observed for row in rows)
    has_rejected = any(row.rejected for row in rows)
    # A screen of 80 columns has no room for all.
    wanted = {
        "attempts": True,
        "deferred": True,
        "share": by != DAY or not (has_observed and has_rejected),
        "observed": has_observed,
        "rejected": has_rejected,
        "accepted": by != DAY,
        "never": True,
        "p50": by == DAY,
        "p95": by == DAY,
    }
    titles = [title for title, is_wanted in wanted.items() if is_wanted]
    cells = [[row.name, *(_cell(row, title) for title in titles)] for row in rows]
    return aligned([by, *titles], cells, left=1)


def _cell(row: Row, title: str) -> str:
    if title == "share":
        return share(row.deferred, row.attempts)
    if title.startswith("p"):
        seconds = (row.delay or {}).get(int(title[1:]))
        return "" if seconds is None else span(seconds)
    return str(getattr(row, title))


def aligned(
    titles: list[str], rows: Sequence[Sequence[str]], left: int
) -> tuple[list[Cell], list[list[Cell]]]:
    """Returns TITLES and ROWS as cells; all columns but the LEFT first ones are to the right."""
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]

    def cells(row: Sequence[str], style: str) -> list[Cell]:
        return [
            (text if column < left else text.rjust(widths[column]), style)
            for column, text in enumerate(row)
        ]

    return cells(titles, "bold"), [cells(row, "") for row in rows]


def as_data(figures: Figures, by: str, limit: int, settings: Settings) -> dict[str, object]:
    """Returns FIGURES for JSON, with the rows BY something, LIMIT names of it."""
    sums = asdict(figures.sums)
    sums.pop("name")
    sums.pop("never")
    rows: list[dict[str, object]]
    if by == REASON:
        rows = [
            {"reason": reason, "verdict": verdict, "attempts": number}
            for verdict, reason, number in figures.by_reason()
        ]
    else:
        rows = [_data(row, by) for row in shown_rows(figures, by, limit)]
    return {
        "from": date_of(figures.first).isoformat(),
        "to": date_of(figures.last).isoformat(),
        "history": settings.history,
        "history_senders": settings.history_senders,
        **sums,
        "delay": _delay(figures.sums),
        "new": figures.new,
        "passed": figures.passed,
        "never": {
            **figures.never,
            "of_new": figures.new_complete,
            "complete_to": (
                date_of(figures.complete).isoformat() if figures.complete >= figures.first else None
            ),
        },
        "let_in": figures.let_in,
        "errors": figures.errors,
        "by": by,
        "rows": rows,
    }


def _data(row: Row, by: str) -> dict[str, object]:
    found: dict[str, object] = {by: row.name, **asdict(row)}
    del found["name"], found["delay"]
    return found | ({"delay": _delay(row)} if by == DAY else {})


def _delay(row: Row) -> dict[str, int]:
    return {f"p{percent}": seconds for percent, seconds in (row.delay or {}).items()}
