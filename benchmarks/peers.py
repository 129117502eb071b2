"""greycheck's resident and native child against postgrey, sqlgrey and greylistd, over 100 000
triplets each; and the resident over PostgreSQL and MariaDB against itself over SQLite, and against
sqlgrey over the same PostgreSQL.

First decisions over Postfix's policy protocol (greylistd's own) on connections that stay open, then
a child for each decision of a mixed load (10 % new triplets, 60 % known, 30 % early), against
postgrey asked on connections that stay open. Eight are asked for at once, or as many as a row says.
Blocks of all take turns. The ratios are of medians: of rates (/s), but of times (us) to the empty
program, of what 99 of 100 stay within to the median, and of a decision's cost to that among fewer
rows. CPU is that of the server. greycheck's stores have 2000 rules and 50 000 clients besides, none
of which matches. A peer that is not installed is left out; a line says so.

The child that asks alone is measured once more, beside the empty program, with processors that are
kept awake: where they sleep it waits for their wakes as well. That takes root.

With --ten-million: the resident over ten million triplets, while greycheck expire removes those of
one day. With --hosts: one, two and eight residents over one PostgreSQL and one MariaDB.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median

import click

from benchmarks.common import (
    LATENCY,
    QUICK_ROWS,
    ROOT,
    ROWS,
    Numbers,
    Ratio,
    Workshop,
    WrongAnswer,
    awake,
    check_reasons,
    options,
    print_table,
    ratio_columns,
    tcpserver,
    workshop,
)
from benchmarks.greylisters import (
    PEERS,
    Greylister,
    Postgrey,
    Resident,
    SqlgreyOverPostgres,
    native_child,
)
from benchmarks.load import Block, Programs
from benchmarks.servers import MARIADB, POSTGRES, fill
from benchmarks.throughput import WAITING
from tests.servers import MariaDB, Postgres, Server, Templates

# How many are asked for at once.
ONE, MANY, MOST = 1, 8, 32

# Children of one block, and with --quick.
CHILDREN, QUICK_CHILDREN = 2000, 60

# How many residents are over one database, and how far apart the numbers of their new triplets are.
HOSTS, APART = (1, 2, 8), 1_000_000

# Of a block of known triplets, how many are asked for when they are new: each stays in the store.
NEW_SHARE = 0.5

# Rules and clients of a store, for each known triplet of the smallest.
RULES, CLIENTS = 0.02, 0.5

# A store that is larger, and one that is as large as any; of that, one day's share is over.
MILLION, TEN_MILLION, DAYS = 10, 100, 36

# The targets: rates of policy decisions and of children, as multiples of postgrey's.
RATES = {"known": 7.0, "new": 5.0}
CHILD_RATES = {ONE: 1.3, MANY: 2.3}
# The rates of residents over server databases, as parts of the one over SQLite.
OVER_SERVERS = {"known": 0.7, "new": 0.5}
# And those of their native children.
CHILDREN_OVER_SERVERS = {"PostgreSQL": 0.7}
# The rate over PostgreSQL with most connections, as a multiple of sqlgrey's there.
SQLGREY = 12.0
CPU = 0.18
TAIL = 3.0
FLOOR = 2.5
COST = 1.25

# With ten million: milliseconds of the slowest answers but one of a thousand, megabytes of the
# resident, seconds of a block.
SLOWEST, MEMORY = 50, 150
SECONDS, QUICK_SECONDS = 10.0, 0.2

# More than anything answers within a block of seconds.
NO_END = 1_000_000

HEADINGS = ("what", "/s", "us", "p99 us", "ratio", "target")


class Measured:
    """A load that is measured in turn: its NAME, and what its blocks took so far; ONCE does one,
    and gives the server's CPU with it.
    """

    def __init__(self, name: str, once: Callable[[], tuple[Block, float]]) -> None:
        self.name = name
        self.once = once
        self._blocks: list[tuple[Block, float]] = []

    def measure(self) -> None:
        """Does one block."""
        self._blocks.append(self.once())

    def awake(self) -> "Measured":
        """The same with processors that are kept awake."""

        def once() -> tuple[Block, float]:
            with awake():
                return self.once()

        return Measured(f"{self.name}, awake", once)

    def forget(self) -> None:
        """Begins anew: what was before only filled the caches."""
        self._blocks.clear()

    @property
    def rate(self) -> float:
        """Decisions a second."""
        return median(block.rate for block, _cpu in self._blocks)

    @property
    def median(self) -> float:
        """The median of one decision's time, in microseconds."""
        return median(block.median for block, _cpu in self._blocks)

    @property
    def p99(self) -> float:
        """What 99 of 100 decisions stayed within, in microseconds."""
        return median(block.p99 for block, _cpu in self._blocks)

    @property
    def cpu(self) -> float:
        """The server's CPU for one decision, in microseconds."""
        return median(cpu for _block, cpu in self._blocks)


class Bench:
    """What runs in PLACE, and how much is asked of it: the resident over ROWS triplets and over ten
    times as many, their native children, and those peers that are installed.
    """

    def __init__(self, place: Workshop, stack: ExitStack, rows: int, quick: bool) -> None:
        self.place = place
        self.quick = quick
        self.rows = rows
        self.programs = Programs(place.directory)
        self.peers = [stack.enter_context(self._peer(peer)) for peer in PEERS if not peer.missing()]
        self.resident = stack.enter_context(self._resident("greycheck", numbers(rows)))
        self.larger = stack.enter_context(
            self._resident("greycheck-larger", numbers(rows, MILLION))
        )
        templates = Templates()
        stack.callback(templates.remove)
        postgres = stack.enter_context(Postgres(templates))
        postgres.start(**POSTGRES)
        mariadb = stack.enter_context(MariaDB(templates))
        mariadb.start(**MARIADB)
        self.over_servers = {
            name: stack.enter_context(self._over(name, server))
            for name, server in (("PostgreSQL", postgres), ("MariaDB", mariadb))
        }
        self.sqlgrey: Greylister | None = None
        if not SqlgreyOverPostgres.missing():
            self.sqlgrey = stack.enter_context(
                SqlgreyOverPostgres(
                    place.directory / "sqlgrey-postgresql", numbers(rows), self.programs, postgres
                )
            )

    def _peer(self, peer: type[Greylister]) -> Greylister:
        return peer(self.place.directory / peer.name, numbers(self.rows), self.programs)

    def _resident(self, name: str, held: Numbers) -> Resident:
        return Resident(
            self.place.directory / name, held, self.programs, self.place.database(name, held)
        )

    def _over(self, name: str, server: Server) -> Resident:
        held = numbers(self.rows)
        fill(server, held)
        return Resident(self.place.directory / name, held, self.programs, server.url(via="socket"))

    def decisions(
        self, name: str, server: Greylister, workload: str, at_once: int = MANY
    ) -> Measured:
        """Decisions of WORKLOAD by SERVER, AT_ONCE, in the row NAME."""
        block = server.quick_block if self.quick else server.block
        asked = round(block * NEW_SHARE) if workload == "new" else block

        def once() -> tuple[Block, float]:
            found = server.ask(workload, at_once, asked)
            server.rest()
            return found

        return Measured(name, once)

    def children(self, name: str, child: str, server: Resident, at_once: int = ONE) -> Measured:
        """A CHILD that asks SERVER for each decision of the mixed load, AT_ONCE, in the row
        NAME.
        """
        environ = environ_of_children()

        def once() -> tuple[Block, float]:
            work = server.work("mixed", at_once, self._children)
            found = server.count(self.programs.run(child, work, environ, self.place.log))
            check_reasons(
                self.place.new_lines(),
                [reason for reason, n in found.classes.items() for _ in range(n)],
            )
            server.rest()
            return found, 0

        return Measured(name, once)

    def empty(self) -> Measured:
        """A child that does nothing, one at a time."""
        environ = environ_of_children()

        def once() -> tuple[Block, float]:
            work = self.resident.work("known", ONE, self._children)
            return self.programs.run(self.programs.empty, work, environ, self.place.log), 0

        return Measured(f"empty, {self.programs.libc}", once)

    @property
    def _children(self) -> int:
        return QUICK_CHILDREN if self.quick else CHILDREN


@click.command(help=__doc__)
@click.option(
    "--ten-million",
    is_flag=True,
    help="Ten million triplets, of which one day's expire meanwhile: some minutes.",
)
@click.option(
    "--hosts", is_flag=True, help="Residents of several hosts over one database, all at once."
)
@options(rounds=10, quick_rounds=1)
def main(rounds: int, quick: bool, ten_million: bool, hosts: bool) -> None:
    """Measures and prints."""
    rows = QUICK_ROWS if quick else ROWS
    with workshop() as place:
        if hosts:
            serve_side_by_side(place, rows, rounds, quick)
        elif ten_million:
            serve_while_expiring(place, rows, QUICK_SECONDS if quick else SECONDS)
        else:
            compare(place, rows, rounds, quick)


def compare(place: Workshop, rows: int, rounds: int, quick: bool) -> None:
    """Measures everything in turn, ROUNDS times, over stores of ROWS known triplets and of ten
    times as many, and prints the ratios.
    """
    with ExitStack() as stack:
        bench = Bench(place, stack, rows, quick)
        policy, children, over_servers = Policy(bench), Children(bench), OverServers(bench)
        in_turn = [*policy.all, *children.all, *over_servers.all]
        for number in range(rounds + 1):
            for measured in in_turn:
                measured.measure()
                if not number:
                    measured.forget()
    print_table(
        f"policy protocol, {MANY} at once (rounds: {rounds}, rows: {rows})", HEADINGS, policy.rows()
    )
    click.echo()
    print_table(
        "CPU of the server for a decision", ("what", "us", "ratio", "target"), policy.cpu_rows()
    )
    click.echo()
    print_table("a child for each decision, mixed load", HEADINGS, children.rows())
    click.echo()
    print_table("the resident over a server database", HEADINGS, over_servers.rows())
    every: tuple[type[Greylister], ...] = (*PEERS, SqlgreyOverPostgres)
    for peer in every:
        if what := peer.missing():
            click.echo(f"{peer.name} is missing: {what}")


class Policy:
    """Decisions over the policy protocol."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._peers = {
            w: [bench.decisions(f"{peer.name}: {w}", peer, w) for peer in bench.peers]
            for w in RATES
        }
        self._ours = {w: bench.decisions(f"greycheck: {w}", bench.resident, w) for w in RATES}
        self._one = {
            w: bench.decisions(f"greycheck: {w}, {ONE}", bench.resident, w, ONE) for w in RATES
        }
        self._larger = {
            w: bench.decisions(f"{bench.larger.numbers.known} rows: {w}", bench.larger, w)
            for w in RATES
        }

    @property
    def all(self) -> list[Measured]:
        """All that is measured in turn."""
        return [
            m
            for w in RATES
            for m in (*self._peers[w], self._ours[w], self._one[w], self._larger[w])
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows."""
        found = []
        for workload, target in RATES.items():
            postgrey, ours, larger = (
                self._postgrey(workload),
                self._ours[workload],
                self._larger[workload],
            )
            found += [row(peer, rate_ratio(peer, postgrey)) for peer in self._peers[workload]]
            found.append(row(ours, rate_ratio(ours, postgrey, target)))
            found.append(row(self._one[workload]))
            found.append(row(larger, cost(larger, ours, self._bench)))
        return found

    def cpu_rows(self) -> list[tuple[str, ...]]:
        """The rows of the server's CPU for a known triplet."""
        postgrey, ours = self._postgrey("known"), self._ours["known"]
        return [
            (
                measured.name,
                f"{measured.cpu:.0f}",
                *ratio_columns(cpu_ratio(measured, postgrey, target)),
            )
            for measured, target in (*((peer, None) for peer in self._peers["known"]), (ours, CPU))
        ]

    def _postgrey(self, workload: str) -> Measured | None:
        """What was measured of postgrey's decisions of WORKLOAD, if it is installed."""
        peers = zip(self._bench.peers, self._peers[workload], strict=True)
        return next((measured for peer, measured in peers if isinstance(peer, Postgrey)), None)


class Children:
    """A child for each decision."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        child, asks_larger = (
            native_child(bench.place.directory / f"native-{server.numbers.known}", server)
            for server in (bench.resident, bench.larger)
        )
        self._empty = bench.empty()
        installed = [peer for peer in bench.peers if isinstance(peer, Postgrey)]
        self._postgrey = {
            n: [bench.decisions(f"{peer.name}, {n}", peer, "mixed", n) for peer in installed]
            for n in CHILD_RATES
        }
        self._ours = {
            n: bench.children(f"native child, {n}", child, bench.resident, n) for n in CHILD_RATES
        }
        self._larger = bench.children(
            f"{bench.larger.numbers.known} rows, {ONE}", asks_larger, bench.larger
        )
        self._awake = (
            (self._empty.awake(), self._ours[ONE].awake()) if os.access(LATENCY, os.W_OK) else ()
        )

    @property
    def all(self) -> list[Measured]:
        """All that is measured in turn."""
        in_turn = (m for n in CHILD_RATES for m in (*self._postgrey[n], self._ours[n]))
        return [self._empty, *in_turn, self._larger, *self._awake]

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows."""
        found = []
        for at_once, target in CHILD_RATES.items():
            ours = self._ours[at_once]
            found += [row(measured) for measured in self._postgrey[at_once]]
            found.append(
                row(ours, rate_ratio(ours, next(iter(self._postgrey[at_once]), None), target))
            )
            found.append(row(ours, Ratio(ours.p99 / ours.median, "median", TAIL)))
        one = self._ours[ONE]
        for empty, child in ((self._empty, one), *([self._awake] if self._awake else [])):
            found.append(row(empty))
            found.append(row(child, Ratio(child.median / empty.median, "empty", FLOOR)))
        found.append(row(self._larger, cost(self._larger, one, self._bench)))
        return found


class OverServers:
    """The resident over server databases, beside the one over SQLite."""

    def __init__(self, bench: Bench) -> None:
        residents = {"SQLite": bench.resident, **bench.over_servers}
        peer = bench.sqlgrey
        self._sqlgrey = {
            n: bench.decisions(f"sqlgrey: known, {n}", peer, "known", n)
            for n in (MANY, MOST)
            if peer
        }
        self._decisions = {
            (w, n): [
                bench.decisions(f"{name}: {w}, {n}", resident, w, n)
                for name, resident in residents.items()
            ]
            for w in OVER_SERVERS
            for n in (ONE, MANY, MOST)
        }
        self._children = [
            bench.children(
                f"{name}: child, {MANY}",
                native_child(bench.place.directory / f"native-{name}", resident),
                resident,
                MANY,
            )
            for name, resident in residents.items()
        ]

    @property
    def all(self) -> list[Measured]:
        """All that is measured in turn."""
        every = (*self._decisions.values(), self._children, self._sqlgrey.values())
        return [m for measured in every for m in measured]

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows."""
        found = []
        for (workload, at_once), (first, *others) in self._decisions.items():
            target = OVER_SERVERS[workload] if at_once == MOST else None
            found.append(row(first))
            for each in others:
                found.append(row(each, Ratio(each.rate / first.rate, "SQLite", at_least=target)))
                if at_once == MOST:
                    found.append(row(each, Ratio(each.p99 / each.median, "median", TAIL)))
        first, *others = self._children
        found.append(row(first))
        for each in others:
            target = CHILDREN_OVER_SERVERS.get(each.name.partition(":")[0])
            found.append(row(each, Ratio(each.rate / first.rate, "SQLite", at_least=target)))
        for at_once, peer in self._sqlgrey.items():
            found.append(row(peer))
            ours = self._decisions["known", at_once][1]
            least = SQLGREY if at_once == MOST else None
            found.append(row(ours, Ratio(ours.rate / peer.rate, "sqlgrey", at_least=least)))
        return found


def rate_ratio(
    measured: Measured, postgrey: Measured | None, at_least: float | None = None
) -> Ratio | None:
    """The ratio of the rate of what was MEASURED to that of POSTGREY, where that is something
    else.
    """
    return (
        Ratio(measured.rate / postgrey.rate, "postgrey", at_least=at_least)
        if postgrey and postgrey is not measured
        else None
    )


def cpu_ratio(measured: Measured, postgrey: Measured | None, at_most: float | None) -> Ratio | None:
    """The same of the server's CPU."""
    return (
        Ratio(measured.cpu / postgrey.cpu, "postgrey", at_most)
        if postgrey and postgrey is not measured
        else None
    )


def cost(larger: Measured, smaller: Measured, bench: Bench) -> Ratio:
    """What a decision costs in the LARGER store of BENCH, to one in the SMALLER."""
    return Ratio(smaller.rate / larger.rate, f"{bench.resident.numbers.known} rows", COST)


def row(measured: Measured, to: Ratio | None = None) -> tuple[str, ...]:
    """The row of what was MEASURED."""
    times = (measured.rate, measured.median, measured.p99)
    return measured.name, *(f"{time:.0f}" for time in times), *ratio_columns(to)


def numbers(rows: int, times: int = 1, over: int = 0) -> Numbers:
    """A store of TIMES as many known triplets as ROWS, OVER of which are over; all else is the same
    in each.
    """
    return Numbers(
        rows * times, round(rows * WAITING), round(rows * CLIENTS), round(rows * RULES), over
    )


def environ_of_children() -> Mapping[str, str]:
    """What tcpserver puts into each child's environment, except the client's address, which the
    load program gives.
    """
    return {name: value for name, value in tcpserver("").items() if name != "TCPREMOTEIP"}


# --- several hosts --------------------------------------------------------------------------------


def serve_side_by_side(place: Workshop, rows: int, rounds: int, quick: bool) -> None:
    """Asks one, two and eight residents over one database, all at once by MOST connections in all;
    prints what they answer together.
    """
    held, programs, found = numbers(rows), Programs(place.directory), []
    with ExitStack() as stack:
        templates = Templates()
        stack.callback(templates.remove)
        servers: dict[str, tuple[Server, Mapping[str, object]]] = {
            "PostgreSQL": (Postgres(templates), POSTGRES),
            "MariaDB": (MariaDB(templates), MARIADB),
        }
        for name, (server, given) in servers.items():
            stack.enter_context(server).start(**given)
            fill(server, held)
            sides = [
                stack.enter_context(
                    Resident(
                        place.directory / f"{name}-{number}",
                        held,
                        programs,
                        server.url(via="socket"),
                        number * APART,
                    )
                )
                for number in range(max(HOSTS))
            ]
            for workload in OVER_SERVERS:
                asked = round(sides[0].quick_block if quick else sides[0].block * NEW_SHARE)
                rates = {n: [] for n in HOSTS}  # type: dict[int, list[float]]
                for number in range(rounds + 1):
                    for n, measured in rates.items():
                        rate = rate_together(sides[:n], workload, asked)
                        if number:
                            measured.append(rate)
                alone = median(rates[ONE])
                for n, measured in rates.items():
                    what = f"{name}: {workload}, {n} x {MOST // n}"
                    to = None if n == ONE else Ratio(median(measured) / alone, "one")
                    found.append((what, f"{median(measured):.0f}", *ratio_columns(to)))
    print_table(
        f"residents over one database (rounds: {rounds}, rows: {rows})",
        ("what", "/s together", "ratio", "target"),
        found,
    )


def rate_together(sides: Sequence[Resident], workload: str, asked: int) -> float:
    """How many decisions of WORKLOAD a second SIDES answer, ASKED for at once, a share of each."""
    share = asked // len(sides)
    with ThreadPoolExecutor(len(sides)) as threads:
        blocks = list(
            threads.map(lambda side: side.ask(workload, MOST // len(sides), share)[0], sides)
        )
    took = max(block.asked / block.rate for block in blocks)
    for side in sides:
        side.rest()
    return float(sum(block.asked for block in blocks) / took)


# --- ten million ----------------------------------------------------------------------------------


def serve_while_expiring(place: Workshop, rows: int, seconds: float) -> None:
    """Asks the resident over a hundred times ROWS for the mixed load, in blocks of SECONDS, while
    those of a day are removed; prints.
    """
    held = numbers(rows, TEN_MILLION, over=rows * TEN_MILLION // DAYS)
    database = place.database("ten-million", held)
    os.sync()  # the disk is to be asked for nothing but what is measured
    programs = Programs(place.directory)
    with Resident(place.directory / "greycheck", held, programs, database) as resident:

        def block() -> Block:
            return resident.ask("mixed", MANY, NO_END, seconds)[0]

        block()
        alone = [block()]
        expiring = subprocess.Popen(
            [sys.executable, "-m", "greycheck", "expire", "--yes", "--json"],
            env=resident.environ(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        meanwhile = []
        while expiring.poll() is None:
            meanwhile.append(block())
        said, _nothing = expiring.communicate()
        removed = json.loads(said)["rows"]["triplet"]
        if removed != held.over:
            raise WrongAnswer(f"greycheck expire removed {removed} triplets, not {held.over}")
        after = block()
        memory = resident.memory() / 1e6
    print_table(
        f"mixed load, {MANY} at once (rows: {held.known}, of which {removed} expire)",
        ("what", "/s", "median us", "p99.9 ms", "max ms", "", "target"),
        [
            block_row("before", alone),
            block_row("while they expire", meanwhile, SLOWEST),
            block_row("after", [after]),
        ],
    )
    click.echo(
        f"memory of the resident, at its most: {memory:.0f} MB, target:"
        f" {at_most(memory, MEMORY, 'MB')}"
    )


def block_row(name: str, blocks: Sequence[Block], target: int | None = None) -> tuple[str, ...]:
    """The row called NAME: the median rate and time of BLOCKS, the worst of their tails."""
    tail = max(block.p999 for block in blocks) / 1000
    return (
        name,
        f"{median(block.rate for block in blocks):.0f}",
        f"{median(block.median for block in blocks):.0f}",
        f"{tail:.1f}",
        f"{max(block.most for block in blocks) / 1000:.1f}",
        "",
        at_most(tail, target, "ms") if target else "",
    )


def at_most(value: float, target: int, unit: str) -> str:
    """The target in words, and whether VALUE misses it."""
    return f"<= {target} {unit}" + (" missed" if value > target else "")


if __name__ == "__main__":
    main()
