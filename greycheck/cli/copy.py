"""``greycheck copy``: the whole store to another database."""

import os
from pathlib import Path
from time import time

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from greycheck import settings
from greycheck.cli.asking import console, grid, print_json
from greycheck.cli.common import engine_of, foreseen, read_settings
from greycheck.cli.terminal import Console, shown
from greycheck.store import rights, schema, server
from greycheck.store.copying import Copying, Difference, Occupied, Outcome
from greycheck.store.lean import StoreError

# Options of a URL that hold a password too.
SECRET = ("password", "sslpassword")


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--overwrite", is_flag=True, help="Remove what TARGET holds and SOURCE does not.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def copy(source: str, target: str, overwrite: bool, as_json: bool) -> None:
    """Copy every triplet, client and rule of SOURCE to TARGET, exactly: what TARGET holds otherwise is overwritten.

    Each of the two is the path of an SQLite file, an SQLAlchemy URL, or @FILE, a file that has such a URL in its first line. A password
    may stand there only: everybody sees the arguments of a command.

    \b
    greycheck copy /var/lib/greycheck/greycheck.db @/etc/greycheck.url

    A TARGET without a schema gets it. After a kill just run it again: what was copied is not copied twice. Mail may go on at SOURCE; what
    changes meanwhile is put right by further passes, four in all. Nobody else may write to TARGET, so run it before any host uses that.

    Prints the number of rows and a checksum of each table on both sides, and exits with 1 where they differ.
    """  # noqa: D301
    mode = read_settings().database_mode
    from_url, to_url = database("SOURCE", source), database("TARGET", target)
    if from_url == to_url:
        raise click.UsageError("SOURCE and TARGET are the same")
    with foreseen():
        files = [str(path) for url in (from_url, to_url) if (path := schema.sqlite_path(url))]
        rights.become_owner_of(files, mode == 0o660)
        prepare(from_url, to_url, mode)
    with engine_of(from_url) as reader, engine_of(to_url) as writer:
        try:
            with Told() as told:
                outcome = Copying(reader, writer, told).copy(int(time()), overwrite)
        except Occupied as error:
            said = f"{schema.shown(to_url)}: {error}: --overwrite removes them"
            raise click.ClickException(shown(said)) from None
    if as_json:
        print_json(as_data(outcome, schema.shown(from_url), schema.shown(to_url)))
    else:
        show(outcome, schema.shown(from_url), schema.shown(to_url))
    if not outcome.same:
        raise click.ClickException(difference(outcome))


def database(name: str, text: str) -> str:
    """The URL of what the argument NAME says in TEXT. Raises UsageError, without a password."""
    try:
        if text.startswith("@"):
            if os.geteuid() == 0:
                rights.only_roots(str(Path(text[1:]).absolute()))
            return settings.database_in_file(text[1:])
        url = settings.database_url(text if "://" in text else str(Path(text).absolute()))
    except OSError as error:
        raise click.UsageError(f"{name}: {text[1:]}: {error.strerror}") from None
    except (ValueError, StoreError) as error:
        raise click.UsageError(f"{name}: {error}") from None
    if schema.sqlite_path(url) is None:
        found = server.parse(url)
        if found.password or any(option in found.options for option in SECRET):
            raise click.UsageError(
                f"{name}: everybody sees the arguments of a command (ps), and this one holds a password:"
                " write the URL into a file that only you can read, and name that as @FILE"
            )
    return url


def prepare(source: str, target: str, mode: int) -> None:
    """Sees to it that both sides have this program's schema: an empty target gets it, an SQLite file with MODE. Raises SchemaError."""
    path = schema.sqlite_path(source)
    if path is not None and not schema.is_there(path):
        raise schema.SchemaError(f"{path}: there is no such file")
    schema.require(source)
    if schema.current(target) is None:
        schema.upgrade(target, mode)
    for url in (source, target):
        found = schema.current(url)
        if found != schema.head():
            # Another program's columns would be left out.
            raise schema.SchemaError(
                f"{schema.shown(url)}: the schema is {schema.standing(found)}; to copy, both sides must be at this program's"
            )


class Told:
    """Tells on standard error how it goes on: a bar on a terminal, and a line after each pass."""

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

    def __enter__(self) -> "Told":
        self.bar.start()
        return self

    def __exit__(self, *_what: object) -> None:
        self.bar.stop()

    def phase(self, what: str, rows: int) -> None:
        """Begins a new bar."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(what, total=rows)

    def seen(self, rows: int) -> None:
        """Moves the bar on."""
        if self.task is not None:
            self.bar.advance(self.task, rows)

    def passed(self, found: dict[str, Difference]) -> None:
        """Prints a line."""
        self.passes += 1
        rows = found.values()
        self.bar.console.print(
            f"pass {self.passes}: {sum(one.missing for one in rows)} rows inserted,"
            f" {sum(one.other for one in rows)} updated, {sum(one.surplus for one in rows)} removed"
        )


# --- what came of it ----------------------------------------------------------------------------------------------------


def show(outcome: Outcome, source: str, target: str) -> None:
    """Prints OUTCOME for people."""
    table = grid(8, 6, None, 32, None)
    table.add_row("table", "", "rows", "checksum", "", style="bold")
    for name, there in outcome.source.items():
        here = outcome.target[name]
        table.add_row(name, "source", str(there.rows), there.checksum, "")
        table.add_row("", "target", str(here.rows), here.checksum, "same" if here == there else "DIFFERS")
    screen = console()
    screen.print(f"source: {source}\ntarget: {target}", soft_wrap=True)
    screen.print(table)


def as_data(outcome: Outcome, source: str, target: str) -> dict[str, object]:
    """OUTCOME for JSON."""
    return {
        "source": source,
        "target": target,
        "same": outcome.same,
        "passes": outcome.passes,
        "tables": {
            name: {
                "source": {"rows": there.rows, "checksum": there.checksum},
                "target": {"rows": outcome.target[name].rows, "checksum": outcome.target[name].checksum},
            }
            for name, there in outcome.source.items()
        },
        "differ": {
            name: {"missing": one.missing, "other": one.other, "surplus": one.surplus}
            for name, one in outcome.differ.items()
        },
    }


def difference(outcome: Outcome) -> str:
    """In what the two sides differ, and what to do."""
    found = "; ".join(
        f"{name}: {one.missing} missing, {one.other} not the same, {one.surplus} too many"
        for name, one in outcome.differ.items()
        if one
    )
    return (
        f"after {outcome.passes} passes the target still differs ({found or 'nothing by now'}): somebody writes to the source, or to the"
        " target. Run it once more while no mail is taken: only the rest is left to copy"
    )
