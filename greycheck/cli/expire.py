"""``greycheck expire``: what cron runs."""

from time import time

import click

from greycheck.cli import terminal
from greycheck.cli.common import foreseen, give_up_root, open_store, read_settings
from greycheck.explain import local, span
from greycheck.store import expiry, schema
from greycheck.store.engine import empty_log
from greycheck.store.expiry import LeftToAnother


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Say how many rows were removed.")
@click.option("--dry-run", is_flag=True, help="Count the rows that would be removed, and remove none.")
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
@click.option("--yes", is_flag=True, help="Remove them also where the clock seems to have jumped ahead.")
def expire(verbose: bool, dry_run: bool, as_json: bool, yes: bool) -> None:
    """Remove triplets, clients and rules whose time is over. For cron: says nothing unless something is wrong.

    It works in small batches beside running checks, and may run on several hosts at once: each takes other rows. On a Galera, one of them
    does it, and the others leave it to that one.

    Where all that passed is over, and nothing has been used between a lifetime and two days ago, the clock has jumped ahead, or no mail has
    come for as long. Nothing is removed then, and the exit code is 1, unless --yes says that the clock is right.
    """
    found = read_settings()
    now = int(time())
    removed = dict.fromkeys((table.name for table in expiry.TABLES), 0)
    left = False
    give_up_root(found)
    with foreseen():
        waits = schema.current(found.database) is None and is_waiting_for_first_mail(found.database)
    if not waits:
        with open_store(found) as engine:
            if not yes and not dry_run and expiry.doubt(engine, found, now):
                raise click.ClickException(
                    f"the clock says {local(now)}, and nothing that passed was used within the lifetime of {span(found.lifetime)} before"
                    " that, but for the last two days: has the clock jumped ahead? Nothing was removed. If it is right, and no mail has"
                    " come for so long, run: greycheck expire --yes"
                )
            if dry_run:
                removed = expiry.count(engine, now)
            else:
                try:
                    for table, rows in expiry.expire(engine, now):
                        removed[table] += rows
                except LeftToAnother:
                    left = True
                empty_log(engine)
    if as_json:
        terminal.echo(terminal.as_json({"dry_run": dry_run, "rows": removed, "left_to_another_host": left}))
    elif waits and (verbose or dry_run):
        terminal.echo(f"{schema.shown(found.database)}: no mail was checked yet")
    elif verbose or dry_run:
        what = "to remove" if dry_run else "removed"
        terminal.echo(", ".join(f"{table}: {rows} {what}" for table, rows in removed.items()))
        if left:
            terminal.echo("another host is removing them too, and was quicker: the rest is left to it")


def is_waiting_for_first_mail(url: str) -> bool:
    """Whether there is a directory for an SQLite file, and no file in it: nothing to expire, and nothing wrong."""
    path = schema.sqlite_path(url)
    return path is not None and path.parent.is_dir() and not path.exists()
