"""``greycheck forget``: removes a triplet, a client, a domain, or all that a filter selects."""

from collections.abc import Callable, Iterable
from time import time

import click
from sqlalchemy import Engine

from greycheck.cli import completing, correspondents, domains, filters, terminal
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.filters import Chosen
from greycheck.cli.output import asked_for, console, is_empty, print_json
from greycheck.cli.show import one_triplet
from greycheck.store.admin import domains as of_domains
from greycheck.store.admin import queries
from greycheck.store.admin.domains import Named
from greycheck.store.admin.engine import empty_log
from greycheck.store.admin.queries import CORRESPONDENTS, DOMAINS, LISTS, TRIPLETS
from greycheck.store.schema.tables import client as clients

# The most rows that are removed without --yes.
MANY = 100


@click.command()
@click.argument(
    "what",
    nargs=-1,
    metavar="[KEY|IP|IP SENDER RECIPIENT|domain NAME|LIST]",
    shell_complete=completing.of_store,
)
@filters.options
@click.option(
    "--pool", "pool", is_flag=True, help="Of domains only the networks that were learnt as a pool."
)
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
    pool: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Forget one triplet (KEY, or IP SENDER RECIPIENT), one client (IP), or what options choose.

    Of a client passes and strikes are forgotten. `domain NAME` is a sender's domain: its passes are
    forgotten, and the networks that were learnt as its pool. What DNS said of it stays: `greycheck
    resolve` keeps that new. `correspondent WHO USER`: WHO may no longer answer USER at once.

    The options are those of `greycheck list`, which shows what they choose: of triplets that wait
    and that passed, or of LIST, pending, passed, clients, struck, domains or correspondents.
    `greycheck forget struck` forgets every client that is refused.

    The next attempt of a forgotten triplet is its first; a forgotten client is known again when a
    triplet of it passes. Where nothing was known nothing is removed, and the exit code is 0 as
    well. Works in small batches beside running checks.
    """
    chosen = Chosen(address, domain, network, older, newer)
    by_list = (
        what[0]
        if len(what) == 1 and what[0] in LISTS
        else TRIPLETS
        if chosen.any() and not what
        else ""
    )
    if not by_list and (not what or chosen.any()):
        raise click.UsageError(
            f"name what to forget: KEY, IP, IP SENDER RECIPIENT, domain NAME; or"
            f" {', '.join(LISTS)} or an option that chooses of them"
        )
    names = domains.named(what[1]) if domains.is_domain(what) else []
    pair = correspondents.key_of(what)
    if pool and not names and by_list != DOMAINS:
        raise click.UsageError("--pool is for domains: domain NAME, or domains")
    settings, now = read_settings(), int(time())
    digits, client = ([], "") if by_list or names or pair else asked_for(what, settings)
    wanted = chosen.filter(by_list or TRIPLETS, now)
    name = "client" if client or (by_list and queries.table_of(by_list) is clients) else "triplet"
    name = "domain" if names or by_list == DOMAINS else name
    name = correspondents.KEYWORD if pair or by_list == CORRESPONDENTS else name
    removed = {"triplet": 0, "client": 0, "domain": 0} | {name: 0}
    if is_empty(settings):
        if not as_json:
            terminal.echo(*no_store(settings))
            return
    else:
        with open_store(settings) as engine:
            if pair:
                removed[name] = queries.forget_correspondent(engine, pair, dry_run)
            elif names:
                removed[name] = sum(_forget_domain(engine, each, pool, dry_run) for each in names)
            elif by_list == DOMAINS:
                removed[name] = _forget_list(
                    engine,
                    lambda: of_domains.count_forgettable(engine, wanted, now, pool),
                    lambda: of_domains.forget_all(engine, wanted, now, pool),
                    dry_run,
                    yes,
                )
            elif by_list:
                removed[name] = _forget_list(
                    engine,
                    lambda: queries.count(engine, by_list, wanted, now),
                    lambda: queries.forget_all(engine, by_list, wanted, now),
                    dry_run,
                    yes,
                )
            elif client:
                removed[name] = _forget_client(engine, client, dry_run)
            else:
                removed[name] = sum(_forget_triplet(engine, each, dry_run) for each in digits)
    if as_json:
        print_json({"dry_run": dry_run, "removed": removed})
    else:
        console().print(_summary(removed[name], name, dry_run))


def _forget_triplet(engine: Engine, digits: str, dry_run: bool) -> int:
    row = one_triplet(engine, digits)
    if row is None or dry_run:
        return int(row is not None)
    return queries.forget_triplet(engine, row["triplet_key"])


def _forget_client(engine: Engine, address: str, dry_run: bool) -> int:
    if dry_run:
        return int(queries.client_by_address(engine, address) is not None)
    return queries.forget_client(engine, address)


def _forget_domain(engine: Engine, asked: Named, is_pool: bool, dry_run: bool) -> int:
    if dry_run:
        return int(of_domains.has(engine, asked.key, is_pool))
    return of_domains.forget(engine, [asked.key], is_pool)


def _forget_list(
    engine: Engine,
    count: Callable[[], int],
    forget_all: Callable[[], Iterable[int]],
    dry_run: bool,
    yes: bool,
) -> int:
    """Removes by FORGET_ALL what COUNT counts; not more than MANY without YES."""
    if dry_run or not yes:
        rows = count()
        if dry_run:
            return rows
        if rows > MANY:
            raise click.ClickException(
                f"these are {rows}: give --yes if all of them are to be forgotten"
            )
    removed = sum(forget_all())
    empty_log(engine)
    return removed


def _summary(rows: int, name: str, dry_run: bool) -> str:
    if not rows:
        return f"No such {name} is known: nothing to forget."
    return f"{rows} {name}{'s' if rows != 1 else ''} {'to forget' if dry_run else 'forgotten'}."
