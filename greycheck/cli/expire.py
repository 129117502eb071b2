"""``greycheck expire``: removes what has expired, run by cron."""

import os
from contextlib import suppress
from time import time

import click

from greycheck.cli import terminal
from greycheck.cli.common import foreseen, give_up_root, open_store, read_settings
from greycheck.settings import SYSTEM_DIRECTORY, Settings
from greycheck.store.admin import expiry, history
from greycheck.store.admin.engine import empty_log
from greycheck.store.admin.expiry import LeftToAnother
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import client, rule, triplet
from greycheck.times import local, span

# The tables that are named where nothing was removed, too.
ALWAYS_TOLD = (triplet.name, client.name, rule.name)


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Say how many rows were removed.")
@click.option(
    "--dry-run", is_flag=True, help="Count the rows that would be removed, and remove none."
)
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
@click.option(
    "--yes", is_flag=True, help="Remove them also where the clock seems to have jumped ahead."
)
def expire(verbose: bool, dry_run: bool, as_json: bool, yes: bool) -> None:
    """Remove triplets, clients and rules whose time is over.

    For cron: says nothing unless something is wrong.

    It works in small batches beside running checks, and may run on several hosts at once: each
    takes other rows. On a Galera cluster one of them does it, and the others leave it to that one.

    It also adds what the checks of this host have counted to the totals in the store.

    Where all that passed is over, and nothing has been used between a lifetime and two days ago,
    the clock has jumped ahead, or no mail has come for as long. Nothing is removed then, and the
    exit code is 1, unless --yes says that the clock is right.
    """
    settings = read_settings()
    now = int(time())
    removed = dict.fromkeys((table.name for table in expiry.TABLES), 0)
    left = False
    give_up_root(settings, marks=True)
    with foreseen():
        waits = migrate.current(settings.database) is None and is_waiting_for_first_mail(settings)
    if not waits:
        with open_store(settings, marks=True) as engine:
            if not yes and not dry_run and expiry.doubt(engine, settings, now):
                raise click.ClickException(
                    f"the clock says {local(now)}, and nothing that passed was used within the"
                    f" lifetime of {span(settings.lifetime)} before"
                    " that, but for the last two days: has the clock jumped ahead? Nothing was"
                    " removed. If it is right, and no mail has"
                    " come for so long, run: greycheck expire --yes"
                )
            if dry_run:
                removed = expiry.count(engine, now)
            else:
                # It settles while rows are removed. Where it cannot be taken, collect says so.
                with suppress(OSError):
                    history.take(settings)
                try:
                    for table, rows in expiry.expire(engine, now, settings=settings):
                        removed[table] += rows
                except LeftToAnother:
                    left = True
                removed["history"] += history.forget(engine, settings, now)
                history.collect(engine, settings, now)
                history.note_expired(engine, now)
                empty_log(engine)
    if as_json:
        terminal.echo(
            terminal.as_json({"dry_run": dry_run, "rows": removed, "left_to_another_host": left})
        )
    elif waits and (verbose or dry_run):
        terminal.echo(*no_store(settings))
    elif verbose or dry_run:
        what = "to remove" if dry_run else "removed"
        told = (
            f"{table}: {rows} {what}"
            for table, rows in removed.items()
            if rows or table in ALWAYS_TOLD
        )
        terminal.echo(", ".join(told))
        if left:
            terminal.echo(
                "another host is removing them too, and was quicker: the rest is left to it"
            )


def is_waiting_for_first_mail(settings: Settings) -> bool:
    """True if there is no SQLite file yet, and a check would make it.

    Then there is nothing to expire, and no fault.
    """
    path = migrate.sqlite_path(settings.database)
    return (
        path is not None
        and not path.exists()
        and (path.parent.is_dir() or makes_directory(settings))
    )


def makes_directory(settings: Settings) -> bool:
    """True if a check makes the store's directory too.

    It does so for an ordinary user, if no setting names the directory.
    """
    path = migrate.sqlite_path(settings.database)
    return (
        settings.sources["database"] == "default"
        and path is not None
        and str(path.parent) != SYSTEM_DIRECTORY
    )


def no_store(settings: Settings) -> tuple[str, str]:
    """Returns the two lines to print if ``is_waiting_for_first_mail``."""
    path = migrate.sqlite_path(settings.database)
    may_make = path is not None and os.access(path.parent, os.W_OK)
    said = migrate.NO_STORE if may_make else migrate.NO_STORE.partition(", or")[0]
    return f"{said[0].upper()}{said[1:]}", f"It will be {path}"
