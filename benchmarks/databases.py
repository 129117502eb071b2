"""One check with a server database, against a script that connects by the same driver and asks
SELECT 1.

The scripts run as checks do: an interpreter without its site, which ends at once. One imports the
driver, connects and asks as the driver's documentation says (SELECT 1); another one uses the lowest
layer alone, as a check does (lowest): what no check by that driver can be quicker than. Both tell
the driver what a check tells it. Where the breaker is open no host is asked, and the ratio is to an
interpreter that starts and does nothing. A second table has checks a second, eight at once, of
throughput's mixed load.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import time

import click

from benchmarks.common import (
    QUICK_ROWS,
    ROWS,
    TIMES,
    Case,
    Load,
    Mail,
    Numbers,
    Ratio,
    Workshop,
    bare,
    check_reasons,
    checked,
    interleave,
    mail,
    options,
    print_table,
    ratio,
    settings,
    silent,
    smtpextfork,
    times_row,
    workshop,
)
from benchmarks.servers import DOCUMENTED, LOWEST, Database, Way, databases, script
from benchmarks.throughput import HEADINGS, WAITING, Program, program_row
from greycheck.store.breaker import DOWN, LATEST, Breaker
from greycheck.store.url import parse_url

KNOWN_TARGET = 1.3

# Clients in a store, for each known triplet.
CLIENTS = 0.05

# The load: children at a time, checks of one block, and blocks for each hundred rounds.
AT_ONCE = 8
BLOCK, QUICK_BLOCK = 200, 16
BLOCKS = 2


class Measured:
    """What is measured of one WAY to a database: two scripts, a known and a new triplet, and, if
    asked for, the breaker OPEN.
    """

    def __init__(self, place: Workshop, found: Database, way: Way, is_open: bool) -> None:
        name = way.name.replace(", ", "-").replace(" ", "-")
        directory = place.directory / f"{found.name}-{name}"
        directory.mkdir()
        environ = settings(way.url)
        self.way = way
        self.documented = Case(
            f"{way.name}: SELECT 1",
            silent(place, [script(directory, "documented", DOCUMENTED, way)], environ, "SELECT 1"),
        )
        self.lowest = Case(
            f"{way.name}: lowest",
            silent(place, [script(directory, "lowest", LOWEST, way)], environ, "lowest"),
        )
        self.known = Case(
            f"{way.name}: known", checked(place, "known", asks(found.load, way, directory, "known"))
        )
        self.new = Case(
            f"{way.name}: new", checked(place, "new", asks(found.load, way, directory, "new"))
        )
        self.open = (
            [Case(f"{way.name}: open", checked(place, "error", no_host(way, directory / "marks")))]
            if is_open
            else []
        )

    @property
    def cases(self) -> list[Case]:
        """All that is measured in turn."""
        return [self.documented, self.lowest, self.known, self.new, *self.open]

    def rows(self, idle: Case) -> list[tuple[str, ...]]:
        """The rows of the table; IDLE is the interpreter alone."""
        return [
            times_row(self.documented, ratio(self.documented, idle, "bare")),
            times_row(self.lowest, ratio(self.lowest, idle, "bare")),
            times_row(self.known, ratio(self.known, self.documented, "SELECT 1", KNOWN_TARGET)),
            times_row(self.known, ratio(self.known, self.lowest, "lowest")),
            times_row(self.new, ratio(self.new, self.documented, "SELECT 1")),
            *(times_row(case, ratio(case, idle, "bare")) for case in self.open),
        ]


@click.command(help=__doc__)
@options(rounds=200, quick_rounds=2)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    rows = QUICK_ROWS if quick else ROWS
    numbers = Numbers(rows, pending=round(rows * WAITING), clients=round(rows * CLIENTS))
    with workshop() as place, databases(numbers) as found:
        idle = Case("bare interpreter", bare(place, smtpextfork("", mail(0))))
        file = place.database("reference", numbers)
        load = Load(numbers)
        reference = Case(
            "SQLite: known", checked(place, "known", lambda: smtpextfork(file, load.next("known")))
        )
        measured = {database.name: ways(place, database) for database in found}
        interleave(
            [
                idle,
                reference,
                *(case for ways in measured.values() for way in ways for case in way.cases),
            ],
            rounds,
        )
        programs = [program(place, "SQLite", partial(smtpextfork, file), load, quick)]
        programs += [
            program(
                place,
                f"{database.name}, {way.driver}",
                partial(way.environ, place.directory),
                database.load,
                quick,
            )
            for database in found
            for way in first_of_each_driver(database.ways)
        ]
        for _block in range(max(1, rounds * BLOCKS // 100)):
            for under_load in programs:
                reasons = under_load.run_block(place.log)
                check_reasons(place.new_lines(), reasons)
    print_table(
        f"databases (rounds: {rounds}, rows: {rows})",
        TIMES,
        [times_row(idle), times_row(reference, ratio(reference, idle, "bare"))],
    )
    for name, ways_there in measured.items():
        click.echo()
        print_table(name, TIMES, [row for way in ways_there for row in way.rows(idle)])
    click.echo()
    print_table(
        f"checks at once: {AT_ONCE}", HEADINGS, [rate_row(one, programs[0]) for one in programs]
    )


def ways(place: Workshop, database: Database) -> list[Measured]:
    """What is measured of each way to DATABASE; the breaker once for each driver."""
    first = first_of_each_driver(database.ways)
    return [Measured(place, database, way, way in first) for way in database.ways]


def first_of_each_driver(found: list[Way]) -> list[Way]:
    """The first way of each driver in FOUND."""
    return list({way.driver: way for way in reversed(found)}.values())[::-1]


def asks(load: Load, way: Way, state: Path, reason: str) -> Callable[[], Mapping[str, str]]:
    """Environments of checks that go this WAY and are answered by REASON."""
    return lambda: way.environ(state, load.next(reason))


def no_host(way: Way, state: Path) -> Callable[[], Mapping[str, str]]:
    """Environments of checks that find every host of WAY marked as silent in the directory STATE,
    for a while and just now.
    """
    state.mkdir()
    asked = parse_url(way.url)
    marks = [Path(Breaker(str(state), asked).path(host, DOWN)) for host in asked.hosts]
    for mark in marks:
        mark.write_text(f"{int(time()) - LATEST}\n")

    def environ() -> Mapping[str, str]:
        for mark in marks:
            os.utime(mark)
        return way.environ(state, mail(0))

    return environ


def program(
    place: Workshop,
    name: str,
    environ: Callable[[Mail], Mapping[str, str]],
    load: Load,
    quick: bool,
) -> Program:
    """The launcher under load, called NAME."""
    return Program(name, [place.launcher], environ, load, QUICK_BLOCK if quick else BLOCK, AT_ONCE)


def rate_row(found: Program, first: Program) -> tuple[str, ...]:
    """The row of a program under load; the ratio is to the FIRST one's rate."""
    to = None if found is first else Ratio(median(found.rates) / median(first.rates), first.name)
    return program_row(found, to)


if __name__ == "__main__":
    main()
