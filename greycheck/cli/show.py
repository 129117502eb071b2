"""``greycheck show``: shows all that is known of one triplet, one client or one domain."""

import sys
from collections.abc import Iterator
from time import time

import click
from sqlalchemy import Engine, RowMapping

from greycheck import normalise
from greycheck.cli import completing, domains, terminal
from greycheck.cli.columns import facts
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.list import client_data, client_state, triplet_data
from greycheck.cli.output import asked_for, console, is_empty, print_json
from greycheck.settings import Settings
from greycheck.store.admin import queries
from greycheck.times import away, local, span

# The width of the names, in columns.
LABEL = 16


@click.command()
@click.argument(
    "what",
    nargs=-1,
    required=True,
    metavar="KEY | IP | IP SENDER RECIPIENT | domain NAME",
    shell_complete=completing.of_store,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(what: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of one triplet, one client or one sender's domain.

    KEY is a triplet's, or enough of its first digits, as `greycheck list` shows them. IP SENDER
    RECIPIENT is a triplet as an attempt would have it, so the network and the folded sender are
    found by themselves. IP alone is a client's address. `domain NAME` is a sender's domain: whether
    it has passed, what DNS said of its SPF, and its networks.

    Exits with 1 where nothing is known.
    """
    settings, now = read_settings(), int(time())
    names = domains.named(what[1]) if domains.is_domain(what) else []
    digits, address = ([], "") if names else asked_for(what, settings)
    if is_empty(settings):
        _unknown(what, as_json, no_store(settings))
    with open_store(settings) as engine:
        if names:
            if not domains.show(engine, names, settings, now, as_json):
                _unknown(what, as_json)
            return
        if address:
            _show_client(engine, address, settings, now, as_json)
            return
        row = next(
            (row for row in (one_triplet(engine, each) for each in digits) if row is not None), None
        )
        if row is None:
            _unknown(what, as_json)
        else:
            _show_triplet(engine, row, settings, now, as_json)


def one_triplet(engine: Engine, digits: str) -> RowMapping | None:
    """Returns the triplet whose key begins with DIGITS, or None.

    Raises ClickException if there are several.
    """
    rows = queries.triplets_by_key(engine, digits)
    if len(rows) > 1:
        raise click.ClickException(
            f"{digits}: several keys begin so; give more digits (list --json has them all)"
        )
    return rows[0] if rows else None


def _unknown(what: tuple[str, ...], as_json: bool, why: tuple[str, ...] = ()) -> None:
    if as_json:
        print_json(None)
    else:
        terminal.echo(*(why or [f"Nothing is known of {' '.join(what)}."]))
    sys.exit(1)


def _least(is_cut: bool) -> str:
    """Returns what is put before a number that was not counted to its end."""
    return "at least " if is_cut else ""


def _show_triplet(
    engine: Engine, row: RowMapping, settings: Settings, now: int, as_json: bool
) -> None:
    others, is_cut = queries.of_same_pair(engine, row)
    if as_json:
        counted = {"waiting_from_other_networks": others, "may_be_more": is_cut}
        print_json({**triplet_data(row, settings, now), **counted})
        return
    lines = list(_triplet_lines(row, settings, now))
    if others:
        lines.append(
            (
                "other networks",
                f"{_least(is_cut)}{others}, from which the same sender and recipient wait",
            )
        )
    facts(console(), lines, LABEL)


def _triplet_lines(row: RowMapping, settings: Settings, now: int) -> Iterator[tuple[str, str]]:
    yield "key", row["triplet_key"].hex()
    yield "client network", row["network"]
    yield "sender", f"<{row['sender']}>"
    message = queries.message_of(row)
    if message:
        yield "message", f"from {message}, whose first recipient passed"
    else:
        yield "recipient", f"<{row['recipient']}>"
    yield "first attempt", _when(row["first_attempt"], now)
    passed = row["passed_at"]
    yield "last used" if passed is not None else "last attempt", _when(row["last_attempt"], now)
    yield "early attempts", str(row["early_attempts"])
    if passed is not None:
        yield "passed", _when(passed, now)
        yield "passes", f"{row['passes']} recorded, one an hour at most"
    state, start, end = queries.terms_of(row, settings, now)
    yield "state", state
    if state == "waits":
        yield "a retry passes", f"from {_when(start, now)}"
        yield "", f"until {_when(end, now)}"
    elif state == "due":
        yield "a retry passes", f"now, and until {_when(end, now)}"
    elif state == "passed":
        yield "passes until", _when(end, now)
    elif state == queries.MESSAGE:
        yield "its others pass", f"until {_when(end, now)}"
    elif not message:
        yield "", "the next attempt counts as the first"
    yield "removed after", _when(row["expires_at"], now)
    yield (
        "counts",
        f"delay {span(settings.delay)}, retry window {span(settings.retry_window)}, lifetime"
        f" {span(settings.lifetime)}",
    )


def _show_client(engine: Engine, address: str, settings: Settings, now: int, as_json: bool) -> None:
    row = queries.client_by_address(engine, address)
    network = normalise.client_network(address, settings.ipv4_prefix, settings.ipv6_prefix)
    waiting, passed, is_cut = queries.of_same_network(engine, network)
    if as_json:
        known = client_data(row, settings, now) if row is not None else None
        counted = {"waiting_triplets": waiting, "passed_triplets": passed, "may_be_more": is_cut}
        print_json({"client": known, "network": network, **counted})
    else:
        lines = [("client", address), *_client_lines(row, settings, now)]
        counts = ", ".join(
            f"{name}: {_least(count == queries.COUNTED)}{count}"
            for name, count in (("waiting triplets", waiting), ("passed", passed))
        )
        lines.append(("network", f"{network}, {counts}"))
        if waiting or passed:
            lines.append(("", f"greycheck list --network {network}"))
        facts(console(), lines, LABEL)
    if row is None and not waiting and not passed:
        sys.exit(1)


def _client_lines(
    row: RowMapping | None, settings: Settings, now: int
) -> Iterator[tuple[str, str]]:
    if row is None:
        yield "state", "unknown: it has never passed, and has no strikes"
        return
    yield "state", client_state(row, settings, now)
    yield (
        "passes",
        f"{row['passes']}; from {settings.client_passes} on, all its mail passes"
        if settings.client_passes
        else f"{row['passes']}; client_passes is off",
    )
    yield "first seen", _when(row["first_seen"], now)
    yield "last seen", _when(row["last_seen"], now)
    yield "strikes", f"{row['strikes']} in a row" + ("" if settings.strikes else "; strikes is off")
    if row["struck_until"] > now:
        yield (
            "refused until",
            _when(row["struck_until"], now)
            + ("" if settings.strikes else "; does not count, strikes is off"),
        )
    yield "removed after", _when(row["expires_at"], now)


def _when(moment: int, now: int) -> str:
    return f"{local(moment)} ({away(moment, now)})"
