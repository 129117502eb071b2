"""``greycheck status``: what the store has, on one screen."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import zip_longest
from time import time

import click

from greycheck.cli import terminal
from greycheck.cli.columns import Cell, Rows, facts
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.output import console, is_empty, print_json
from greycheck.settings import Settings, duration_text
from greycheck.store.admin.summary import Summary, summary
from greycheck.store.schema import migrate
from greycheck.times import away, local

# The width of the names, in columns.
LABEL = 12


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show what waits, passed, is known or refused, and what was deferred within a day.

    Also from where most of it comes.

    The numbers are those of rows that count now. What is known already is recorded once an hour, so
    the last check may have been later than the last one that left a trace. Of a table it looks at
    two million rows at most, and says so.
    """
    settings, now = read_settings(), int(time())
    numbers = Summary()
    waits = is_empty(settings)
    if not waits:
        with open_store(settings) as engine:
            numbers = summary(engine, settings, now)
    if as_json:
        print_json(
            {
                "at": now,
                "database": migrate.shown(settings.database),
                "mode": settings.mode,
                **as_data(numbers),
            }
        )
        return
    if waits:
        terminal.echo(*no_store(settings))
        return
    screen = console()
    facts(screen, lines(numbers, settings, now), LABEL)
    if numbers.senders:
        screen.print()
        rows = [
            [*_counted(sender), *_counted(network)]
            for sender, network in zip_longest(numbers.senders, numbers.networks, fillvalue=None)
        ]
        Rows(screen, 1, alone=False).print(
            rows, [[("", ""), ("waits from", "bold"), ("", ""), ("network", "bold")]]
        )


def _counted(one: tuple[str, int] | None) -> tuple[Cell, Cell]:
    return (("", ""), ("", "")) if one is None else ((f"{one[1]:5}", ""), (one[0], ""))


def as_data(numbers: Summary) -> dict[str, object]:
    """Returns NUMBERS for JSON."""
    named = {
        "senders": [{"domain": name, "waiting": number} for name, number in numbers.senders],
        "networks": [{"network": name, "waiting": number} for name, number in numbers.networks],
    }
    return asdict(numbers) | named


def lines(numbers: Summary, settings: Settings, now: int) -> Iterator[tuple[str, str]]:
    """Yields the lines about NUMBERS at NOW under SETTINGS, as name and text."""
    most = "" if numbers.whole else " at least"
    yield "store", migrate.shown(settings.database)
    observed = "" if settings.mode == "enforce" else ": nothing is deferred"
    yield "mode", f"{settings.mode}{observed}; delay {duration_text(settings.delay)}"
    yield (
        "since",
        "no mail was checked yet"
        if numbers.since is None
        else f"{_when(numbers.since, now)}, the oldest row",
    )
    if numbers.last is not None:
        yield "last check", f"{_when(numbers.last, now)}, of those that left a trace"
    yield (
        "waits",
        f"{_counting(numbers.waiting, 'triplet')}{most}; a retry of {numbers.due} would pass now",
    )
    yield "passed", f"{_counting(numbers.passed, 'triplet')}{most}"
    yield (
        "known",
        f"{_counting(numbers.known, 'client')}{most}"
        + ("" if settings.client_passes else "; client_passes is 0"),
    )
    yield (
        "refused",
        _counting(numbers.refused, "client") + ("" if settings.strikes else "; strikes is 0"),
    )
    yield "domains", _of_domains(numbers, settings)
    yield "rules", str(numbers.rules)
    if numbers.providers or numbers.correspondents:
        yield (
            "let in",
            f"{_counting(numbers.providers, 'provider')}; answers of"
            f" {_counting(numbers.correspondents, 'correspondent')}",
        )
    yield (
        "last 24h",
        f"{_counting(numbers.attempts, 'deferral')} of {_counting(numbers.attempted, 'triplet')};"
        f" {numbers.arrived} of them passed since",
    )


def _of_domains(numbers: Summary, settings: Settings) -> str:
    if settings.identity == "no":
        return "identity is no"
    known = f"{numbers.domains} known{'' if settings.domain_passes else ' (domain_passes is 0)'}"
    told = f"SPF of {numbers.resolved} names {_counting(numbers.ranges, 'network')}"
    return f"{known}; {told}" + (f"; no answer for {numbers.failing}" if numbers.failing else "")


def _counting(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _when(moment: int, now: int) -> str:
    return f"{local(moment)} ({away(moment, now)})"
