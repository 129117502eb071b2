"""``greycheck list``: what waits, what has passed, and the clients that did or are refused."""

from collections.abc import Iterator
from itertools import islice
from time import time

import click
from sqlalchemy import RowMapping

from greycheck.cli import filters
from greycheck.cli.asking import KEY_SHOWN, console, is_empty, print_json, print_json_rows
from greycheck.cli.columns import Cell, Rows
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.filters import Chosen
from greycheck.cli.terminal import Choice
from greycheck.explain import span
from greycheck.normalise import is_private
from greycheck.policy import ClientRow, is_known
from greycheck.settings import Settings
from greycheck.store import queries
from greycheck.store.tables import client

# Rows of one table. A longer list is printed in several, so that its first row need not wait for its last.
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

# In which list something is that an operator may call so: as its state, the reason in the log, or a word for it.
LIST_OF = {
    **dict.fromkeys(("waits", "waiting", "due", "over", "new", "early", "deferred", "triplets"), "pending"),
    **dict.fromkeys(("retry", "message", "accepted"), "passed"),
    **dict.fromkeys(("client", "known", "unknown", "shared"), "clients"),
    **dict.fromkeys(("strikes", "refused", "rejected"), "struck"),
}

# The lines of a table's head.
CLIENT_TITLES = (("client", "passes", "strikes", "first", "last", "state"),)
TRIPLET_TITLES = (("client network", "sender", "age", "early", "state"), ("key", "  recipient", "", "", ""))

NOTHING = {
    "pending": "No such triplet waits.",
    "passed": "No such triplet has passed.",
    "clients": "No such client has passed or been refused.",
    "struck": "No such client is refused for strikes.",
}


@click.command("list")
@click.argument("which", type=Choice(queries.LISTS, LIST_OF), default="pending")
@filters.options
@click.option(
    "--sort",
    type=Choice(queries.SORTS),
    default="last",
    show_default=True,
    help="By first or last attempt (newest first), early attempts or strikes (most first), or expiry (soonest first).",
)
@click.option("--reverse", is_flag=True, help="In reverse order.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, metavar="N", help="Rows; 0: all.")
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
    """List triplets that wait (pending) or passed, clients that passed, or those refused for strikes (struck).

    Each triplet is shown with the first digits of its key, for `greycheck show` and `forget`. A waiting one waits, is due (a retry
    would pass), or its retry window is over, under the settings as they are now; the delay of a rule is not counted in.
    """
    settings, now = read_settings(), int(time())
    wanted = Chosen(address, domain, network, older, newer).filter(which, now)
    listing = Listing(which, settings, now, limit)
    if is_empty(settings):
        if counts:
            print_count(which, 0, as_json)
        else:
            listing.print(iter(()), as_json)
        return
    with open_store(settings) as engine:
        if counts:
            print_count(which, queries.count(engine, which, wanted, now), as_json)
            return
        listing.print(queries.rows(engine, which, wanted, now, sort, reverse, limit and limit + 1), as_json)


def print_count(which: str, rows: int, as_json: bool) -> None:
    """Prints how many ROWS the list WHICH has: a number alone, or an object."""
    if as_json:
        print_json({"list": which, "count": rows})
    else:
        console().print(str(rows))


class Listing:
    """Rows of the list WHICH as they are under SETTINGS at NOW, LIMIT of them or (0) all."""

    def __init__(self, which: str, settings: Settings, now: int, limit: int) -> None:
        self.which = which
        self.settings = settings
        self.now = now
        self.limit = limit
        self.of_clients = queries.table_of(which) is client

    def print(self, found: Iterator[RowMapping], as_json: bool) -> None:
        """Prints the rows FOUND, which are one more than the limit where there are more."""
        wanted = islice(found, self.limit or None)
        if as_json:
            as_data = client_data if self.of_clients else triplet_data
            print_json_rows(as_data(row, self.settings, self.now) for row in wanted)
            return
        screen = console()
        printed = False
        titles = CLIENT_TITLES if self.of_clients else TRIPLET_TITLES
        table = Rows(screen, main=0 if self.of_clients else 1, alone=self.of_clients)
        while page := list(islice(wanted, PAGE)):
            table.print(self.rows(page), [] if printed else [[(title, "bold") for title in line] for line in titles])
            printed = True
        if not printed:
            screen.print(NOTHING[self.which])
        elif next(found, None) is not None:
            screen.print(f"There are more than these {self.limit}: --limit 0 lists all.", style="dim")

    def rows(self, page: list[RowMapping]) -> list[list[Cell]]:
        """The lines of a table of one PAGE."""
        if self.of_clients:
            return [client_cells(row, self.settings, self.now) for row in page]
        return [line for row in page for line in triplet_cells(row, self.settings, self.now)]


def coarse(seconds: int) -> str:
    """SECONDS in their largest unit; what lies in the future is no time at all."""
    return span(max(0, seconds)).partition(" ")[0]


def triplet_cells(row: RowMapping, settings: Settings, now: int) -> tuple[list[Cell], list[Cell]]:
    """A triplet's ROW in two lines of five cells."""
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
        [(row["network"], ""), (row["sender"] or "<>", ""), (age, ""), (early, ""), (state, STYLES[state])],
        [(key, "dim"), (f"  {recipient}", ""), ("", ""), ("", ""), (more[state], "dim")],
    )


def client_cells(row: RowMapping, settings: Settings, now: int) -> list[Cell]:
    """A client's ROW in six cells."""
    state = client_state(row, settings, now)
    numbers = row["passes"], row["strikes"], coarse(now - row["first_seen"]), coarse(now - row["last_seen"])
    return [(row["address"], ""), *((str(number), "") for number in numbers), (state, STYLES[state.partition(" ")[0]])]


def client_state(row: RowMapping, settings: Settings, now: int) -> str:
    """What a client's ROW is under SETTINGS at NOW: refused for how long, known, or not known; or its address is many clients'."""
    if is_private(row["address"]):
        return "shared"
    if settings.strikes and now < row["struck_until"] <= now + settings.strike_time:
        return f"refused {span(row['struck_until'] - now)}"
    found = ClientRow(row["first_seen"], row["last_seen"], row["passes"], row["strikes"], row["struck_until"])
    return "known" if is_known(found, settings, now) else "unknown"


def triplet_data(row: RowMapping, settings: Settings, now: int) -> dict[str, object]:
    """A triplet's ROW for JSON, with its state, and from when until when (seconds since 1970) a retry passes."""
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
    """A client's ROW for JSON, with its state: refused, known or unknown."""
    return {**row, "state": client_state(row, settings, now).partition(" ")[0]}
