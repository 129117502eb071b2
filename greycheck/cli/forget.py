"""``greycheck forget``: a triplet, a client, or all triplets of an address."""

import click
from sqlalchemy import Engine

from greycheck.cli.asking import asked_for, console, is_empty, print_json
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.show import one_triplet
from greycheck.explain import address_bytes
from greycheck.store import queries
from greycheck.store.engine import empty_log


@click.command()
@click.argument("what", nargs=-1, metavar="[KEY | IP | IP SENDER RECIPIENT]")
@click.option(
    "--address", metavar="TEXT", help="Every triplet with this sender or recipient: an address, user@, @domain."
)
@click.option("--dry-run", is_flag=True, help="Tell what would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget(what: tuple[str, ...], address: str | None, dry_run: bool, as_json: bool) -> None:
    """Forget one triplet (KEY, or IP SENDER RECIPIENT), one client (IP) with its passes and strikes, or all triplets of an address.

    The next attempt of a forgotten triplet is its first; a forgotten client is known again when a triplet of it passes. Where nothing
    was known nothing is removed, and the exit code is 0 as well. Works in small batches beside running checks.
    """
    if bool(what) == (address is not None):
        raise click.UsageError("name what to forget: KEY, IP, IP SENDER RECIPIENT, or --address TEXT")
    settings = read_settings()
    digits, client = asked_for(what, settings) if what else ([], "")
    removed = {"triplet": 0, "client": 0}
    if not is_empty(settings):
        with open_store(settings) as engine:
            if address is not None:
                removed["triplet"] = _forget_address(engine, address_bytes(address), dry_run)
            elif client:
                removed["client"] = _forget_client(engine, client, dry_run)
            else:
                removed["triplet"] = sum(_forget_triplet(engine, each, dry_run) for each in digits)
    if as_json:
        print_json({"dry_run": dry_run, "removed": removed})
    else:
        console().print(_told(removed["client" if client else "triplet"], "client" if client else "triplet", dry_run))


def _forget_triplet(engine: Engine, digits: str, dry_run: bool) -> int:
    row = one_triplet(engine, digits)
    if row is None or dry_run:
        return int(row is not None)
    return queries.forget_triplet(engine, row["triplet_key"])


def _forget_client(engine: Engine, address: str, dry_run: bool) -> int:
    if dry_run:
        return int(queries.client_by_address(engine, address) is not None)
    return queries.forget_client(engine, address)


def _forget_address(engine: Engine, address: bytes, dry_run: bool) -> int:
    if dry_run:
        return queries.count_of_address(engine, address)
    removed = sum(queries.forget_address(engine, address))
    empty_log(engine)
    return removed


def _told(rows: int, name: str, dry_run: bool) -> str:
    if not rows:
        return f"No such {name} is known: nothing to forget."
    return f"{rows} {name}{'s' if rows != 1 else ''} {'to forget' if dry_run else 'forgotten'}."
