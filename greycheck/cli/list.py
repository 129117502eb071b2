"""``greycheck list``: pending and passed triplets, clients that passed or are refused, domains."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from time import time

import click
from sqlalchemy import Engine, RowMapping

from greycheck.cli import correspondents, domains, filters, terminal
from greycheck.cli.columns import Cell, Rows
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.filters import Chosen
from greycheck.cli.output import KEY_SHOWN, console, is_empty, print_json, print_json_rows
from greycheck.cli.terminal import Choice
from greycheck.normalise import is_private
from greycheck.policy import ClientRow, is_known
from greycheck.settings import Settings
from greycheck.store.admin import domains as of_domains
from greycheck.store.admin import queries
from greycheck.store.admin.queries import Filter
from greycheck.store.schema.tables import client, triplet
from greycheck.times import coarse, span

# Rows in one table. A longer list is printed as several tables, so that its first rows appear at
# once.
PAGE = 500

STYLES = {
    "waits": "yellow",
    "due": "cyan",
    "over": "dim",
    "passed": "green",
    "message": "green",
    "known": "green",
    "unknown": "",
    "shared": "yellow",
    "refused": "red",
}

# Other names for lists: states, reasons in the log, and common words.
LIST_OF = {
    **dict.fromkeys(
        ("waits", "waiting", "due", "over", "new", "early", "deferred", "triplets"), "pending"
    ),
    **dict.fromkeys(("retry", "message", "accepted"), "passed"),
    **dict.fromkeys(("client", "known", "unknown", "shared"), "clients"),
    **dict.fromkeys(("strikes", "refused", "rejected"), "struck"),
    **dict.fromkeys(("domain", "identity", "spf", "pool"), "domains"),
    **dict.fromkeys(("correspondent", "outbound", "users"), "correspondents"),
}

# The lines of a table's head.
CLIENT_TITLES: tuple[tuple[str, ...], ...] = (
    ("client", "passes", "strikes", "first", "last", "state"),
)
TRIPLET_TITLES = (
    ("client network", "sender", "age", "early", "state"),
    ("key", "  recipient", "", "", ""),
)

NOTHING = {
    "pending": "No such triplet waits.",
    "passed": "No such triplet has passed.",
    "clients": "No such client has passed or been refused.",
    "struck": "No such client is refused for strikes.",
    "domains": "No such domain has passed, and DNS was asked about none.",
    "correspondents": "No such mail of our users was learnt from.",
}


@click.command("list")
@click.argument(
    "which",
    type=Choice(queries.LISTS, LIST_OF),
    default="pending",
    metavar="[pending|passed|clients|struck|domains|...]",
)
@filters.options
@click.option(
    "--sort",
    type=Choice(queries.SORTS),
    default="last",
    show_default=True,
    help="By first or last attempt (newest first), early attempts, strikes or a domain's passes"
    " (most first), or expiry (soonest first).",
)
@click.option("--reverse", is_flag=True, help="In reverse order.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="N",
    help="Rows; 0: all.",
)
@click.option("--count", "counts", is_flag=True, help="Print how many there are, and none of them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; with --count an object.")
def list_(
    which: str,
    address: str | None,
    domain: str | None,
    network: str | None,
    older: int | None,
    newer: int | None,
    sort: str,
    reverse: bool,
    limit: int,
    counts: bool,
    as_json: bool,
) -> None:
    """List triplets that wait or passed, clients, refused clients (struck), or domains.

    Each triplet is shown with the first digits of its key, for `greycheck show` and `forget`. A
    waiting one waits, is due (a retry would pass), or its retry window is over, under the settings
    as they are now; the delay of a rule is not counted in.

    Of a sender's domain its passes are shown, how many of its networks are known, what DNS said of
    its SPF, how long ago, and when it is asked again. Its state is known, unknown, or pool where
    its networks were learnt; --network chooses those that send from there.

    The list correspondents is of those whom our users wrote to (learn_outbound): who may answer
    whom, since when, and for how long still.
    """
    settings, now = read_settings(), int(time())
    wanted = Chosen(address, domain, network, older, newer).filter(which, now)
    listing = Listing(which, settings, now, limit)
    if is_empty(settings):
        if counts:
            print_count(which, 0, as_json)
        elif as_json:
            listing.print(iter(()), as_json)
        else:
            terminal.echo(*no_store(settings))
        return
    with open_store(settings) as engine:
        if counts:
            print_count(which, _count(engine, which, wanted, now), as_json)
            return
        most = limit and limit + 1
        if which == queries.DOMAINS:
            rows = of_domains.rows(engine, wanted, now, sort, reverse, most)
        else:
            rows = queries.rows(engine, which, wanted, now, sort, reverse, most)
        with closing(rows):  # at a limit they are not read to their end, and hold a connection
            listing.print(rows, as_json)


def _count(engine: Engine, which: str, wanted: Filter, now: int) -> int:
    if which == queries.DOMAINS:
        return of_domains.count(engine, wanted, now)
    return queries.count(engine, which, wanted, now)


def print_count(which: str, rows: int, as_json: bool) -> None:
    """Prints how many ROWS the list WHICH has: a number alone, or an object."""
    if as_json:
        print_json({"list": which, "count": rows})
    else:
        console().print(str(rows))


class Listing:
    """Rows of the list WHICH under SETTINGS at NOW; LIMIT is the most rows, 0 for all."""

    def __init__(self, which: str, settings: Settings, now: int, limit: int) -> None:
        self.which = which
        self.settings = settings
        self.now = now
        self.limit = limit
        table = queries.table_of(which)
        self.of_triplets = table is triplet
        if table is client:
            self.titles, self.cells, self.data = CLIENT_TITLES, client_cells, client_data
        elif which == queries.CORRESPONDENTS:
            self.titles, self.cells, self.data = (
                correspondents.TITLES,
                correspondents.cells,
                correspondents.data,
            )
        else:
            self.titles, self.cells, self.data = domains.TITLES, domains.cells, domains.data

    def print(self, rows: Iterator[RowMapping], as_json: bool) -> None:
        """Prints the rows of FOUND. It has one more than the limit if there are more."""
        wanted = islice(rows, self.limit or None)
        if as_json:
            as_data = triplet_data if self.of_triplets else self.data
            print_json_rows(as_data(row, self.settings, self.now) for row in wanted)
            return
        screen = console()
        printed = False
        titles = TRIPLET_TITLES if self.of_triplets else self.titles
        table = Rows(screen, main=1 if self.of_triplets else 0, alone=not self.of_triplets)
        while page := list(islice(wanted, PAGE)):
            table.print(
                self.rows(page),
                [] if printed else [[(title, "bold") for title in line] for line in titles],
            )
            printed = True
        if not printed:
            screen.print(NOTHING[self.which])
        elif next(rows, None) is not None:
            screen.print(
                f"There are more than these {self.limit}: --limit 0 lists all.", style="dim"
            )

    def rows(self, page: list[RowMapping]) -> list[list[Cell]]:
        """Returns the table's lines of one PAGE."""
        if not self.of_triplets:
            return [self.cells(row, self.settings, self.now) for row in page]
        return [line for row in page for line in triplet_cells(row, self.settings, self.now)]


def triplet_cells(row: RowMapping, settings: Settings, now: int) -> tuple[list[Cell], list[Cell]]:
    """Returns a triplet's ROW as two lines of five cells."""
    key = row["triplet_key"].hex()[:KEY_SHOWN]
    state, start, end = queries.terms_of(row, settings, now)
    more = {
        "waits": f"{coarse(start - now)} left",
        "due": f"{coarse(end - now)} left",
        "passed": f"{coarse(now - start)} ago",
        "message": f"{coarse(end - now)} left",
        "over": "",
    }
    age, early = coarse(now - row["first_attempt"]), str(row["early_attempts"])
    recipient = queries.message_of(row) or row["recipient"]
    return (
        [
            (row["network"], ""),
            (row["sender"] or "<>", ""),
            (age, ""),
            (early, ""),
            (state, STYLES[state]),
        ],
        [(key, "dim"), (f"  {recipient}", ""), ("", ""), ("", ""), (more[state], "dim")],
    )


def client_cells(row: RowMapping, settings: Settings, now: int) -> list[Cell]:
    """Returns a client's ROW as six cells."""
    state = client_state(row, settings, now)
    numbers = (
        row["passes"],
        row["strikes"],
        coarse(now - row["first_seen"]),
        coarse(now - row["last_seen"]),
    )
    return [
        (row["address"], ""),
        *((str(number), "") for number in numbers),
        (state, STYLES[state.partition(" ")[0]]),
    ]


def client_state(row: RowMapping, settings: Settings, now: int) -> str:
    """Returns the state of a client's ROW under SETTINGS at NOW.

    It is refused (and for how long), known, unknown, or shared: many clients may have the address.
    """
    if is_private(row["address"]):
        return "shared"
    if settings.strikes and now < row["struck_until"] <= now + settings.strike_time:
        return f"refused {span(row['struck_until'] - now)}"
    known = ClientRow(
        row["first_seen"], row["last_seen"], row["passes"], row["strikes"], row["struck_until"]
    )
    return "known" if is_known(known, settings, now) else "unknown"


def triplet_data(row: RowMapping, settings: Settings, now: int) -> dict[str, object]:
    """Returns a triplet's ROW for JSON.

    It has its state, and for a pending one from when to when a retry passes, in seconds since 1970.
    """
    state, start, end = queries.terms_of(row, settings, now)
    waits = row["passed_at"] is None
    return {
        "key": row["triplet_key"].hex(),
        "network": row["network"],
        "sender": row["sender"],
        "recipient": row["recipient"],
        "first_attempt": row["first_attempt"],
        "last_attempt": row["last_attempt"],
        "early_attempts": row["early_attempts"],
        "passes": row["passes"],
        "passed_at": row["passed_at"],
        "expires_at": row["expires_at"],
        "state": state,
        "wait": max(0, start - now) if waits else None,
        "retry_passes_from": start if waits else None,
        "retry_passes_until": end if waits else None,
    }


def client_data(row: RowMapping, settings: Settings, now: int) -> dict[str, object]:
    """Returns a client's ROW for JSON, with its state: refused, known, unknown or shared."""
    return {**row, "state": client_state(row, settings, now).partition(" ")[0]}
