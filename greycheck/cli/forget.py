"""``greycheck forget``: a triplet, a client, or all that a filter of ``greycheck list`` finds."""

from time import time

import click
from sqlalchemy import Engine

from greycheck.cli import completing, filters
from greycheck.cli.asking import asked_for, console, is_empty, print_json
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.filters import Chosen
from greycheck.cli.show import one_triplet
from greycheck.store import queries
from greycheck.store.engine import empty_log
from greycheck.store.queries import LISTS, TRIPLETS, Filter
from greycheck.store.tables import client as clients

# How many rows are forgotten without --yes.
MANY = 100


@click.command()
@click.argument("what", nargs=-1, metavar="[KEY | IP | IP SENDER RECIPIENT | LIST]", shell_complete=completing.of_store)
@filters.options
@click.option("--yes", is_flag=True, help=f"Also where these are more than {MANY}.")
@click.option("--dry-run", is_flag=True, help="Tell how many would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget(
    what: tuple[str, ...],
    address: str | None,
    domain: str | None,
    network: str | None,
    older: int | None,
    newer: int | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Forget one triplet (KEY, or IP SENDER RECIPIENT), one client (IP) with its passes and strikes, or all that the options choose.

    The options are those of `greycheck list`, which shows what they choose: of triplets that wait and that passed, or of LIST,
    pending, passed, clients or struck. `greycheck forget struck` forgets every client that is refused.

    The next attempt of a forgotten triplet is its first; a forgotten client is known again when a triplet of it passes. Where nothing
    was known nothing is removed, and the exit code is 0 as well. Works in small batches beside running checks.
    """
    chosen = Chosen(address, domain, network, older, newer)
    by_list = what[0] if len(what) == 1 and what[0] in LISTS else TRIPLETS if chosen.any() and not what else ""
    if not by_list and (not what or chosen.any()):
        raise click.UsageError(
            f"name what to forget: KEY, IP, IP SENDER RECIPIENT; or {', '.join(LISTS)} or an option that chooses of them"
        )
    settings, now = read_settings(), int(time())
    digits, client = ([], "") if by_list else asked_for(what, settings)
    wanted = chosen.filter(by_list or TRIPLETS, now)
    name = "client" if client or (by_list and queries.table_of(by_list) is clients) else "triplet"
    removed = {"triplet": 0, "client": 0}
    if not is_empty(settings):
        with open_store(settings) as engine:
            if by_list:
                removed[name] = _forget_all(engine, by_list, wanted, now, dry_run, yes)
            elif client:
                removed[name] = _forget_client(engine, client, dry_run)
            else:
                removed[name] = sum(_forget_triplet(engine, each, dry_run) for each in digits)
    if as_json:
        print_json({"dry_run": dry_run, "removed": removed})
    else:
        console().print(_told(removed[name], name, dry_run))


def _forget_triplet(engine: Engine, digits: str, dry_run: bool) -> int:
    row = one_triplet(engine, digits)
    if row is None or dry_run:
        return int(row is not None)
    return queries.forget_triplet(engine, row["triplet_key"])


def _forget_client(engine: Engine, address: str, dry_run: bool) -> int:
    if dry_run:
        return int(queries.client_by_address(engine, address) is not None)
    return queries.forget_client(engine, address)


def _forget_all(engine: Engine, which: str, wanted: Filter, now: int, dry_run: bool, yes: bool) -> int:
    if dry_run or not yes:
        rows = queries.count(engine, which, wanted, now)
        if dry_run:
            return rows
        if rows > MANY:
            raise click.ClickException(f"these are {rows}: give --yes if all of them are to be forgotten")
    removed = sum(queries.forget_all(engine, which, wanted, now))
    empty_log(engine)
    return removed


def _told(rows: int, name: str, dry_run: bool) -> str:
    if not rows:
        return f"No such {name} is known: nothing to forget."
    return f"{rows} {name}{'s' if rows != 1 else ''} {'to forget' if dry_run else 'forgotten'}."
