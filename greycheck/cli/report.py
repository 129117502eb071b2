"""``greycheck report``: what greylisting did, as text for mail and as a page with plots."""

import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import time

import click

from greycheck.cli import terminal
from greycheck.cli.columns import Rows, facts, wrapped
from greycheck.cli.common import foreseen, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.output import console, is_empty
from greycheck.cli.stats import a_day, aligned, days, figures_of
from greycheck.privilege import files
from greycheck.settings import Settings
from greycheck.simulation.figures import Simulation, from_data
from greycheck.statistics import page, parts, text
from greycheck.statistics.figures import Figures
from greycheck.statistics.parts import Table
from greycheck.statistics.plots import NoPlots
from greycheck.store.admin.engine import installing_library
from greycheck.store.admin.history import date_of, day_of
from greycheck.times import local

# How many days are told of where none is named; and before and after a change, at most.
MONTH = 30
AROUND = 14

# The most of a simulation that is read, in bytes: a hundred years by day.
LARGEST = 1 << 26

# How wide sentences are, in columns, whatever the terminal's width.
WIDTH = 80

Changed = tuple[int, Figures, Figures]


@click.command()
@click.option(
    "--html",
    "file",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Write a page with plots into FILE; - is standard output.",
)
@click.option("--from", "first", callback=a_day, metavar="DAY", help="The first day.")
@click.option("--to", "last", callback=a_day, metavar="DAY", help="The last day; by default today.")
@click.option(
    "--change",
    callback=a_day,
    metavar="DAY",
    help="Compare as many days before and after this one, on which something was changed.",
)
@click.option(
    "--simulation",
    metavar="FILE",
    help="Tell too what greycheck simulate --json has printed into FILE; - is standard input.",
)
def report(
    file: str | None,
    first: int | None,
    last: int | None,
    change: int | None,
    simulation: str | None,
) -> None:
    """Tell of the last 30 days, or of those that are named, as text for cron's mail.

    With --html as a page, one file that loads nothing from elsewhere: attempts, deferrals and
    passes over time, the distribution of delays, what never came back, the busiest recipients,
    senders and networks, and before and after a change. Its plots need matplotlib, which comes with
    the extra greycheck[report].

    FILE is written beside its place and then renamed. Run by root, it is written as the store's
    owner: where only root may write, take --html - and the shell's >.
    """
    # Before this process becomes the store's owner: the file is whoever's runs the command.
    found = None if simulation is None else _simulation(simulation)
    settings, now = read_settings(), int(time())
    today = day_of(now)
    begin, end = _days(first, last, change, today)
    figures = figures_of(settings, begin, end, now)
    changed = None if change is None else _changed(figures, change, today)
    if file is None:
        if is_empty(settings):
            terminal.echo(*no_store(settings))
        else:
            _print(figures, settings, changed)
        if found is not None:
            _print_tables([parts.simulated(found)])
        return
    try:
        made = page.page(figures, settings, f"Made {local(now)}", changed, found)
    except NoPlots:
        raise click.ClickException(
            "plots need matplotlib, which is not installed here:"
            f" {installing_library('matplotlib')}"
        ) from None
    if file == "-":
        terminal.echo(*made.split("\n"), end="")
        return
    with foreseen():
        write(Path(file), made.encode("utf-8", "backslashreplace"))


def _days(first: int | None, last: int | None, change: int | None, today: int) -> tuple[int, int]:
    """Returns the first and the last day to tell of. Raises UsageError."""
    if change is not None and first is None and last is None:
        around = min(AROUND, today - 1 - change)
        if around < 1:
            raise click.UsageError(f"{date_of(change)}: there is no whole day after it yet")
        return max(1, change - around), change + around
    begin, end = days(first, last, today, MONTH)
    whole = min(end, today - 1)
    if change is not None and not begin < change < whole:
        raise click.UsageError(
            f"{date_of(change)}: needs a whole day before and after it from {date_of(begin)} to"
            f" {date_of(whole)}"
        )
    return begin, end


def _changed(figures: Figures, day: int, today: int) -> Changed:
    """Returns DAY with the figures of as many days before as after it, all before TODAY."""
    number = min(day - figures.first, min(figures.last, today - 1) - day)
    before, after = figures.split([(day - number, day - 1), (day + 1, day + number)])
    return day, before, after


def _simulation(name: str) -> Simulation:
    """Returns the simulation in the file NAME. Raises ClickException."""
    with foreseen():
        if name == "-":
            content = sys.stdin.buffer.read(LARGEST)
        else:
            with files.opened(Path(name)) as file:
                content = file.read(LARGEST)
    try:
        return from_data(json.loads(content))
    except (ValueError, RecursionError):
        raise click.ClickException(
            f"{terminal.shown(name)}: is not what greycheck simulate --json prints"
        ) from None


# --- text -----------------------------------------------------------------------------------------


def _print(figures: Figures, settings: Settings, changed: Changed | None) -> None:
    screen = console()
    facts(screen, text.summary(figures, settings), text.LABEL)
    _print_tables(_tables(figures, settings, changed))


def _print_tables(tables: Iterable[Table]) -> None:
    screen = console()
    for table in tables:
        terminal.echo("", table.title)
        facts(screen, table.about, text.LABEL)
        if not table.rows:
            terminal.echo(table.words)
            continue
        titles, rows = aligned(list(table.columns), table.rows, left=1)
        Rows(screen, 0, alone=False).print(rows, [titles])
        if table.note:
            terminal.echo(*wrapped(table.note, min(screen.width, WIDTH)))


def _tables(figures: Figures, settings: Settings, changed: Changed | None) -> Iterator[Table]:
    if not figures.sums.attempts and not figures.sums.never:
        return
    yield parts.of_periods(*parts.periods(figures))
    if changed is not None:
        yield parts.change(*changed)
    for table in (parts.delays(figures), parts.let_in(figures)):
        if table.rows:
            yield table
    for _name, table, _rows in parts.tops(figures, settings):
        if table.rows or table.words:
            yield table


# --- the file -------------------------------------------------------------------------------------


def write(path: Path, content: bytes, mode: int | None = None) -> None:
    """Writes CONTENT into PATH by renaming: a link there is replaced, not followed.

    Its permissions are MODE, or where that is None 0644 without what the umask takes.

    Raises OSError.
    """
    with suppress(FileNotFoundError):
        there = path.lstat().st_mode
        if not stat.S_ISREG(there) and not stat.S_ISLNK(there):
            raise click.ClickException(f"{terminal.shown(str(path))}: is no regular file")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o644 & ~mask if mode is None else mode)
        Path(name).rename(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
