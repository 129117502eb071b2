"""The memory of one check: its resident size, and the smallest ``softlimit -m`` under which it
still gives the right verdict.

The resident size is the peak, read in two ways. ``wait4`` gives the largest that a process ever
had, but counts what its parent had when it was started, so a small interpreter starts it. ``/proc``
gives that of the program alone, but only while it runs: the child is looked at as it waits for a
log pipe that is full, after its verdict. The ratio is to an interpreter that starts and does
nothing.

The least limit is that of ``softlimit -m``, which sets the soft limits of address space, data,
stack and locked memory; it is found by bisection. MB are millions of bytes, as softlimit counts.
Checks with a server database ask for a known triplet; what encryption needs is the most.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import sleep
from typing import NamedTuple

import click

from benchmarks.common import (
    ANSWERS,
    BARE,
    QUICK_ROWS,
    ROWS,
    Load,
    Numbers,
    Ratio,
    Workshop,
    WrongAnswer,
    check_code,
    check_reasons,
    mail,
    options,
    print_table,
    reason_of,
    smtpextfork,
    start,
    workshop,
)
from benchmarks.servers import Database, Way, databases

MB = 1_000_000
KIB = 1024


class Target(NamedTuple):
    """The most that a check is to be: its resident size, and the smallest ``softlimit -m``, both in
    MB.
    """

    resident: float
    softlimit: float


SQLITE = Target(12, 18)

# The ways to server databases that are measured, and their targets.
WAYS = {
    "psycopg2, TLS": Target(23, 34),
    "psycopg, TLS": Target(40, 54),
    "mysqldb, TLS": Target(19, 28),
    "pymysql, TLS": Target(24, 33),
}

# The bisection: what nothing runs in, what everything does, how near it comes (bytes), and how
# often a verdict must be right.
TOO_SMALL, ENOUGH, NEAR = 1 * MB, 256 * MB, MB // 20
TRIES = 3

# An interpreter that does nothing but wait for a full log pipe.
STUCK = (*BARE[:-1], "import posix; posix.write(2, b'x')")

# How often in a row a process must be found asleep, a millisecond apart, to count as waiting for
# its log.
ASLEEP = 10

INTERPRETER = BARE[:-1]

# Starts its arguments as a child; prints the wait status and the largest resident size, in KiB.
SPAWNER = """
import posix, sys
child = posix.posix_spawn(sys.argv[1], sys.argv[1:], posix.environ)
child, status, usage = posix.wait4(child, 0)
print(status, usage.ru_maxrss)
"""

# Sets softlimit -m's soft limits to its first argument, in bytes, and becomes the rest.
SOFTLIMIT = """
import posix, resource, sys
wanted = int(sys.argv[1])
for limit in (resource.RLIMIT_DATA, resource.RLIMIT_STACK, resource.RLIMIT_MEMLOCK, resource.RLIMIT_AS):
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
posix.execv(sys.argv[2], sys.argv[2:])
"""  # noqa: E501

HEADINGS = ("what", "MB", "/proc MB", "ratio", "target")


class Program:
    """What is measured: its command, the environment of each run, its REASON (empty where it gives
    no verdict), and its TARGET.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environ: Callable[[], Mapping[str, str]],
        reason: str = "",
        target: Target = SQLITE,
    ) -> None:
        self.name = name
        self.argv = argv
        self.environ = environ
        self.reason = reason
        self.target = target
        self.resident: list[float] = []
        self.peak: list[float] = []

    def check(self, status: int, lines: list[str]) -> None:
        """Raises WrongAnswer where the wait STATUS or the log LINES of a run are not as they should
        be.
        """
        check_code(status, ANSWERS.get(self.reason, 0), self.name)
        check_reasons(lines, [self.reason] if self.reason else [])


@click.command(help=__doc__)
@options(rounds=20, quick_rounds=2)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    numbers = Numbers(QUICK_ROWS if quick else ROWS)
    with workshop() as place, databases(numbers) as found:
        programs = make_programs(place, numbers) + make_server_programs(place, found)
        for _round in range(rounds):
            for program in programs:
                program.resident.append(resident(place, program))
                program.peak.append(peak(program))
        limits = [smallest(partial(is_right, place, program)) for program in programs]
        right = [
            is_right(place, program, round(program.target.softlimit * MB)) for program in programs
        ]
    table = [resident_row(program, programs[0]) for program in programs]
    table += [
        limit_row(program, limit, limits[0])
        for program, limit in zip(programs, limits, strict=True)
    ]
    print_table(f"memory (rounds: {rounds})", HEADINGS, table)
    for program, is_fit in zip(programs, right, strict=True):
        click.echo(
            f"softlimit -m {program.target.softlimit * MB:.0f}, {program.name}:"
            f" {'works' if is_fit else 'does not work'}"
        )


def make_programs(place: Workshop, numbers: Numbers) -> list[Program]:
    """The interpreter alone, and the launcher with known and with new triplets in a store of
    NUMBERS.
    """
    database = place.database("memory", numbers)
    load = Load(numbers)

    def launcher(reason: str) -> Program:
        return Program(
            reason, [place.launcher], lambda: smtpextfork(database, load.next(reason)), reason
        )

    alone = Program("bare interpreter", BARE, lambda: smtpextfork(database, mail(0)))
    return [alone, launcher("known"), launcher("new")]


def make_server_programs(place: Workshop, found: Sequence[Database]) -> list[Program]:
    """The launcher with known triplets, by each of WAYS to those FOUND.

    A check that fails for want of memory must leave no mark that keeps the next one from asking, so
    marks have no directory.
    """

    def program(database: Database, way: Way) -> Program:
        def environ() -> Mapping[str, str]:
            return way.environ(place.directory / "nowhere", database.load.next("known"))

        return Program(way.name, [place.launcher], environ, "known", WAYS[way.name])

    return [
        program(database, way) for database in found for way in database.ways if way.name in WAYS
    ]


def resident(place: Workshop, program: Program) -> float:
    """The largest resident size of one run of PROGRAM, in MB, as ``wait4`` gives it to a small
    parent.
    """
    ran = subprocess.run(
        [*INTERPRETER, SPAWNER, *program.argv],
        env=program.environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=place.log,
        check=True,
    )
    status, kib = ran.stdout.split()
    program.check(int(status), place.new_lines())
    return int(kib) * KIB / MB


def peak(program: Program) -> float:
    """The peak of the resident size of one run of PROGRAM, in MB, as ``/proc`` has it before the
    end.
    """
    for _try in range(TRIES):
        kib = look_at(program)
        if kib:
            return kib * KIB / MB
    raise WrongAnswer(f"{program.name}: ended before it was looked at, {TRIES} times")


def look_at(program: Program) -> int:
    """Runs PROGRAM with a full log; the peak of its resident size, in KiB, or 0 where it ended too
    soon.
    """
    reader, writer = os.pipe()
    fill_pipe(writer)
    child = start(STUCK if program.argv == BARE else program.argv, program.environ(), writer)
    os.close(writer)
    kib = watch(child)
    os.close(reader)
    _child, status, _usage = os.wait4(child, 0)
    if program.reason:
        check_code(status, ANSWERS[program.reason], program.name)
    return kib


def fill_pipe(writer: int) -> None:
    """Writes to WRITER until it takes no more; who writes next, waits."""
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"\0" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)


def watch(child: int) -> int:
    """The peak of CHILD's resident size, in KiB, once it waits; 0 where it ends instead."""
    found = asleep = 0
    while asleep < ASLEEP:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines()
        )
        if "VmHWM" not in fields:
            return 0
        found = int(fields["VmHWM"].split()[0])
        asleep = asleep + 1 if fields["State"].split()[0] == "S" else 0
        sleep(0.001)
    return found


def is_right(place: Workshop, program: Program, limit: int) -> bool:
    """Whether PROGRAM gives its verdict under ``softlimit -m LIMIT`` (bytes), each time that it is
    tried.
    """
    for _try in range(TRIES):
        ran = subprocess.run(
            [*INTERPRETER, SOFTLIMIT, str(limit), *program.argv],
            env=program.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=place.log,
            check=False,
        )
        reasons = [reason_of(line) for line in place.new_lines()]
        if ran.returncode != ANSWERS.get(program.reason, 0) or reasons != [program.reason] * bool(
            program.reason
        ):
            return False
    return True


def smallest(right: Callable[[int], bool]) -> float:
    """The smallest limit that is RIGHT, in MB."""
    low, high = TOO_SMALL, ENOUGH
    while high - low > NEAR:
        middle = (low + high) // 2
        low, high = (low, middle) if right(middle) else (middle, high)
    return high / MB


def resident_row(program: Program, alone: Program) -> tuple[str, ...]:
    """The resident size of PROGRAM, and its ratio to that of the interpreter ALONE."""
    waited, seen = median(program.resident), median(program.peak)
    ratio = f"{Ratio(seen / median(alone.peak), 'bare')}" if program.reason else ""
    return (
        program.name,
        f"{waited:.2f}",
        f"{seen:.2f}",
        ratio,
        target(program, max(waited, seen), program.target.resident),
    )


def limit_row(program: Program, size: float, alone: float) -> tuple[str, ...]:
    """The smallest limit that PROGRAM works under, SIZE in MB, and its ratio to that of the
    interpreter ALONE.
    """
    ratio = f"{Ratio(size / alone, 'bare')}" if program.reason else ""
    return (
        f"{program.name}, least limit",
        f"{size:.2f}",
        "",
        ratio,
        target(program, size, program.target.softlimit),
    )


def target(program: Program, size: float, at_most: float) -> str:
    """The target of SIZE in MB; the interpreter alone has none."""
    if not program.reason:
        return ""
    return f"<= {at_most:g} MB" + (" missed" if size > at_most else "")


if __name__ == "__main__":
    main()
