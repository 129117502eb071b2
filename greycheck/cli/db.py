"""``greycheck db``: the schema of the store."""

import click

from greycheck.cli import terminal
from greycheck.cli.common import foreseen, give_up_root, read_settings
from greycheck.cli.expire import is_waiting_for_first_mail, no_store
from greycheck.store.schema import migrate


@click.group(cls=terminal.Group)
def db() -> None:
    """Make, change or show the schema of the store."""


@db.command(short_help="Bring the store to this program's schema, or make it.")
def upgrade() -> None:
    """Bring the store to the schema of this program; make it where there is none.

    An SQLite store is made by the first mail too, the tables of a server database only by this
    command. Running it again is harmless, and so is running it on many hosts at once: one does it,
    the others wait. Programs of the revision before may keep running meanwhile.
    """
    settings = read_settings()
    give_up_root(settings)
    with foreseen():
        revision = migrate.upgrade(settings.database, settings.database_mode, tell)
    reached = f"at {revision}" if revision == migrate.head() else migrate.standing(revision)
    terminal.echo(f"{migrate.shown(settings.database)}: {reached}")


def tell(text: str) -> None:
    """Prints TEXT to standard error, apart from results."""
    terminal.echo(text, err=True)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def current(as_json: bool) -> None:
    """Print the revision that the store is at, and this program's."""
    settings = read_settings()
    give_up_root(settings)
    with foreseen():
        revision = migrate.current(settings.database)
    if as_json:
        terminal.echo(
            terminal.as_json(
                {
                    "database": migrate.shown(settings.database),
                    "revision": revision,
                    "program": migrate.head(),
                }
            )
        )
        return
    path = migrate.sqlite_path(settings.database)
    if revision or path is None or migrate.is_there(path):
        terminal.echo(f"{migrate.shown(settings.database)}: {migrate.standing(revision)}")
    else:
        terminal.echo(
            *(
                no_store(settings)
                if is_waiting_for_first_mail(settings)
                else [str(migrate.trouble(path) or "")]
            )
        )


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Take the store back to REVISION, or to nothing with `base`.

    What the older schema has no place for is lost.
    """
    settings = read_settings()
    url = migrate.shown(settings.database)
    if not yes:
        try:
            may = click.confirm(f"Take {url} back to {terminal.shown(revision)}? Data may be lost.")
        except click.Abort:  # nobody is there
            may = False
        if not may:
            raise click.ClickException("nothing was changed: answer y, or give --yes")
    give_up_root(settings)
    with foreseen():
        terminal.echo(
            f"{url}: at {migrate.downgrade(settings.database, revision, tell) or 'nothing'}"
        )
