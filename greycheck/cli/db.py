"""``greycheck db``: the schema of the store."""

import click

from greycheck.cli import terminal
from greycheck.cli.common import foreseen, give_up_root, read_settings
from greycheck.store import schema


@click.group(cls=terminal.Group)
def db() -> None:
    """Make, change or show the schema of the store."""


@db.command()
def upgrade() -> None:
    """Bring the store to the schema of this program; make it where there is none.

    An SQLite store is made by the first mail too, the tables of a server database only by this command. Running it again is harmless, and
    so is running it on many hosts at once: one does it, the others wait. Programs of the revision before may go on meanwhile.
    """
    found = read_settings()
    give_up_root(found)
    with foreseen():
        revision = schema.upgrade(found.database, found.database_mode, tell)
    reached = f"at {revision}" if revision == schema.head() else schema.standing(revision)
    terminal.echo(f"{schema.shown(found.database)}: {reached}")


def tell(text: str) -> None:
    """Prints TEXT where results are not."""
    terminal.echo(text, err=True)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def current(as_json: bool) -> None:
    """Print the revision that the store is at, and this program's."""
    found = read_settings()
    give_up_root(found)
    with foreseen():
        revision = schema.current(found.database)
    if as_json:
        terminal.echo(
            terminal.as_json({"database": schema.shown(found.database), "revision": revision, "program": schema.head()})
        )
        return
    terminal.echo(f"{schema.shown(found.database)}: {schema.standing(revision)}")


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Take the store back to REVISION, or to nothing with `base`. What the older schema has no place for is lost."""
    found = read_settings()
    url = schema.shown(found.database)
    if not yes:
        click.confirm(f"Take {url} back to {revision}? Data may be lost.", abort=True)
    give_up_root(found)
    with foreseen():
        terminal.echo(f"{url}: at {schema.downgrade(found.database, revision, tell) or 'nothing'}")
