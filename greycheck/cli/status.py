"""``greycheck status``: what the store knows, on one screen."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import zip_longest
from time import time

import click

from greycheck.cli.asking import console, is_empty, print_json
from greycheck.cli.columns import Cell, Rows, facts
from greycheck.cli.common import open_store, read_settings
from greycheck.explain import away, local
from greycheck.settings import Settings, duration_text
from greycheck.store import schema
from greycheck.store.summary import Summary, summary

# Columns of the names of what is shown.
LABEL = 12


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show what waits, passed, is known or refused, what was deferred within a day, and from where most of it comes.

    The numbers are those of rows that count now. What is known already is recorded once an hour, so the last check may have been later
    than the last one that left a trace. Of a table it looks at two million rows at most, and says so.
    """
    settings, now = read_settings(), int(time())
    found = Summary()
    if not is_empty(settings):
        with open_store(settings) as engine:
            found = summary(engine, settings, now)
    if as_json:
        print_json({"at": now, "database": schema.shown(settings.database), "mode": settings.mode, **as_data(found)})
        return
    screen = console()
    facts(screen, lines(found, settings, now), LABEL)
    if found.senders:
        screen.print()
        rows = [
            [*_counted(sender), *_counted(network)]
            for sender, network in zip_longest(found.senders, found.networks, fillvalue=None)
        ]
        Rows(screen, 1, alone=False).print(rows, [[("", ""), ("waits from", "bold"), ("", ""), ("network", "bold")]])


def _counted(one: tuple[str, int] | None) -> tuple[Cell, Cell]:
    return (("", ""), ("", "")) if one is None else ((f"{one[1]:5}", ""), (one[0], ""))


def as_data(found: Summary) -> dict[str, object]:
    """What was FOUND, for JSON."""
    named = {
        "senders": [{"domain": name, "waiting": number} for name, number in found.senders],
        "networks": [{"network": name, "waiting": number} for name, number in found.networks],
    }
    return asdict(found) | named


def lines(found: Summary, settings: Settings, now: int) -> Iterator[tuple[str, str]]:
    """What is said of what was FOUND at NOW under SETTINGS, by name."""
    most = "" if found.whole else " at least"
    yield "store", schema.shown(settings.database)
    observed = "" if settings.mode == "enforce" else ": nothing is deferred"
    yield "mode", f"{settings.mode}{observed}; delay {duration_text(settings.delay)}"
    yield "since", "no mail was checked yet" if found.since is None else f"{_when(found.since, now)}, the oldest row"
    if found.last is not None:
        yield "last check", f"{_when(found.last, now)}, of those that left a trace"
    yield "waits", f"{_counting(found.waiting, 'triplet')}{most}; a retry of {found.due} would pass now"
    yield "passed", f"{_counting(found.passed, 'triplet')}{most}"
    yield (
        "known",
        f"{_counting(found.known, 'client')}{most}" + ("" if settings.client_passes else "; client_passes is 0"),
    )
    yield "refused", _counting(found.refused, "client") + ("" if settings.strikes else "; strikes is 0")
    yield "rules", str(found.rules)
    yield (
        "last 24h",
        f"{_counting(found.attempts, 'deferral')} of {_counting(found.attempted, 'triplet')}; {found.arrived} of them passed since",
    )


def _counting(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _when(moment: int, now: int) -> str:
    return f"{local(moment)} ({away(moment, now)})"
