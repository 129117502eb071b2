"""``greycheck copy``: copies the whole store to another database."""

import os
from pathlib import Path
from time import time

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from greycheck import settings
from greycheck.cli.common import engine_of, foreseen, read_settings
from greycheck.cli.output import console, grid, print_json
from greycheck.cli.terminal import Console, shown
from greycheck.settings import Database
from greycheck.store import drivers, rights
from greycheck.store.admin.copying import Copying, Difference, Occupied, Outcome
from greycheck.store.base import StoreError
from greycheck.store.schema import migrate


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--overwrite", is_flag=True, help="Remove what TARGET holds and SOURCE does not.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def copy(source: str, target: str, overwrite: bool, as_json: bool) -> None:
    """Copy every triplet, client and rule of SOURCE to TARGET, exactly.

    What TARGET holds otherwise is overwritten.

    Each of the two is the path of an SQLite file, an SQLAlchemy URL, or @FILE, a file that has such
    a URL in its first line. A password may stand there only: everybody sees the arguments of a
    command.

    \b
    greycheck copy /var/lib/greycheck/greycheck.db @/etc/greycheck.url

    A TARGET without a schema gets it. After a kill just run it again: what was copied is not copied
    twice. Mail may go on at SOURCE; what changes meanwhile is put right by further passes, four in
    all. Nobody else may write to TARGET, so run it before any host uses that.

    Prints the number of rows and a checksum of each table on both sides, and exits with 1 where
    they differ.
    """  # noqa: D301
    mode = read_settings().database_mode
    from_place, to_place = database("SOURCE", source), database("TARGET", target)
    if from_place == to_place:
        raise click.UsageError("SOURCE and TARGET are the same")
    with foreseen():
        files = [place.path for place in (from_place, to_place) if place.path]
        rights.become_owner_of(files, mode == 0o660)
        prepare(from_place, to_place, mode)
    with engine_of(from_place) as reader, engine_of(to_place) as writer:
        try:
            with ProgressBar() as progress:
                outcome = Copying(reader, writer, progress).copy(int(time()), overwrite)
        except Occupied as error:
            said = f"{migrate.shown(to_place)}: {error}: --overwrite removes them"
            raise click.ClickException(shown(said)) from None
    if as_json:
        print_json(as_data(outcome, migrate.shown(from_place), migrate.shown(to_place)))
    else:
        show(outcome, migrate.shown(from_place), migrate.shown(to_place))
    if not outcome.same:
        raise click.ClickException(difference(outcome))


def database(name: str, text: str) -> Database:
    """Returns the database that the argument NAME gives as TEXT.

    Raises UsageError, also if TEXT has a password; the message never has it.
    """
    try:
        if text.startswith("@"):
            if os.geteuid() == 0:
                rights.only_roots(str(Path(text[1:]).absolute()))
            return settings.database_in_file(text[1:])
        found = settings.read_database(text if "://" in text else str(Path(text).absolute()))
    except OSError as error:
        raise click.UsageError(f"{name}: {text[1:]}: {error.strerror}") from None
    except (ValueError, StoreError) as error:
        raise click.UsageError(f"{name}: {error}") from None
    server = found.server
    if server and (
        server.password or any(option in server.options for option in drivers.of(server).passwords)
    ):
        raise click.UsageError(
            f"{name}: everybody sees the arguments of a command (ps), and this one holds a"
            " password:"
            " write the URL into a file that only you can read, and name that as @FILE"
        )
    return found


def prepare(source: Database, target: Database, mode: int) -> None:
    """Makes sure that both sides have this program's schema. Raises SchemaError.

    An empty target gets the schema; an SQLite file is made with MODE.
    """
    path = migrate.sqlite_path(source)
    if path is not None and not migrate.is_there(path):
        raise migrate.SchemaError(f"{path}: there is no such file")
    migrate.require(source)
    if migrate.current(target) is None:
        migrate.upgrade(target, mode)
    for place in (source, target):
        found = migrate.current(place)
        if found != migrate.head():
            # Columns of another program would be lost.
            raise migrate.SchemaError(
                f"{migrate.shown(place)}: the schema is {migrate.standing(found)}; to copy, both"
                " sides must be at this program's"
            )


class ProgressBar:
    """Shows the progress on standard error: a bar on a terminal, and a line after each pass."""

    def __init__(self) -> None:
        screen = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        self.task: TaskID | None = None
        self.passes = 0

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *_what: object) -> None:
        self.bar.stop()

    def phase(self, what: str, rows: int) -> None:
        """Begins a new bar, WHAT, of ROWS rows."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(what, total=rows)

    def seen(self, rows: int) -> None:
        """Advances the bar by ROWS rows."""
        if self.task is not None:
            self.bar.advance(self.task, rows)

    def passed(self, difference: dict[str, Difference]) -> None:
        """Prints a line on what a pass corrected."""
        self.passes += 1
        rows = difference.values()
        self.bar.console.print(
            f"pass {self.passes}: {sum(one.missing for one in rows)} rows inserted,"
            f" {sum(one.other for one in rows)} updated, {sum(one.surplus for one in rows)} removed"
        )


# --- what came of it ------------------------------------------------------------------------------


def show(outcome: Outcome, source: str, target: str) -> None:
    """Prints OUTCOME for people."""
    table = grid(max(map(len, outcome.source)), 6, None, 32, None)
    table.add_row("table", "", "rows", "checksum", "", style="bold")
    for name, there in outcome.source.items():
        here = outcome.target[name]
        table.add_row(name, "source", str(there.rows), there.checksum, "")
        table.add_row(
            "", "target", str(here.rows), here.checksum, "same" if here == there else "DIFFERS"
        )
    screen = console()
    screen.print(f"source: {source}\ntarget: {target}", soft_wrap=True)
    screen.print(table)


def as_data(outcome: Outcome, source: str, target: str) -> dict[str, object]:
    """Returns OUTCOME for JSON."""
    return {
        "source": source,
        "target": target,
        "same": outcome.same,
        "passes": outcome.passes,
        "tables": {
            name: {
                "source": {"rows": there.rows, "checksum": there.checksum},
                "target": {
                    "rows": outcome.target[name].rows,
                    "checksum": outcome.target[name].checksum,
                },
            }
            for name, there in outcome.source.items()
        },
        "differ": {
            name: {"missing": one.missing, "other": one.other, "surplus": one.surplus}
            for name, one in outcome.differ.items()
        },
    }


def difference(outcome: Outcome) -> str:
    """Returns in what the two sides differ, and what to do."""
    found = "; ".join(
        f"{name}: {one.missing} missing, {one.other} not the same, {one.surplus} too many"
        for name, one in outcome.differ.items()
        if one
    )
    return (
        f"after {outcome.passes} passes the target still differs ({found or 'nothing by now'}):"
        " somebody writes to the source, or to the"
        " target. Run it once more while no mail is taken: only the rest is left to copy"
    )
