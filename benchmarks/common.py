"""What the measurements share: triplets and stores of any size, children run as a mail server runs
them, and the table.

A machine's speed drifts, so what is compared is measured in turn within one run (A, B, C, A, B, C,
...), and the ratio of the medians is the result. Every answer is checked: a fast wrong verdict is
no result.

Interface: ``options``, ``workshop``, ``awake``, ``fill``, ``Load``, ``Case``, ``interleave``,
``Ratio``, ``print_table``.

Diagnostics: ``WrongAnswer`` where a child's exit code or reason is not what its triplet asks for.
"""

import os
import pwd
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from math import ceil
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, time
from typing import NamedTuple, TypeVar

import click

from greycheck.envelope import Envelope, triplet
from greycheck.launchers.python import interpreter
from greycheck.policy import Change, TripletRow
from greycheck.rules import patterns
from greycheck.rules.rule import make_rule
from greycheck.store import compiled_sqlite
from greycheck.store.admin import rulebook
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import Asked, digest
from greycheck.store.schema import migrate
from greycheck.store.writing import parameters

ROOT = Path(__file__).parent.parent

IPV4_PREFIX, IPV6_PREFIX = 24, 64

# The delay of the children here, in seconds: longer than any run, so that what waits stays early.
DELAY = 7200
RETRY_WINDOW = 48 * 3600
LIFETIME = 36 * 86400

# How long ago the store's rows were last used, in seconds: less than the hour after which a use is
# recorded again.
AGE = 60

# The most memory that filling a store keeps pages in, in bytes: ten million rows come in no order
# into their indexes.
PAGES = 2 << 30

# First numbers of the triplets that wait, and of those that no store has.
PENDING = 20_000_000
NEW = 50_000_000

ACCEPTED, DEFERRED = 0, 101

# The exit code that belongs to each reason.
ANSWERS = {
    "exempt": ACCEPTED,
    "known": ACCEPTED,
    "early": DEFERRED,
    "new": DEFERRED,
    "error": ACCEPTED,
}

# A child that does nothing, and ends as scripts do.
BARE = (interpreter(), "-IS", "-c", "pass")

# Rows of a store where nothing else is said, and with --quick.
ROWS, QUICK_ROWS = 100_000, 1_000

Command = TypeVar("Command", bound=Callable[..., object])


class WrongAnswer(click.ClickException):
    """A child answered otherwise than its triplet asks for. Ends the command with exit code 1."""


def options(rounds: int, quick_rounds: int) -> Callable[[Command], Command]:
    """The options of every command: ``--rounds`` (ROUNDS by default, QUICK_ROUNDS with ``--quick``)
    and ``--quick``.
    """

    def add(command: Command) -> Command:
        meaning = (
            f"How often everything is measured in turn.  [default: {rounds}; {quick_rounds} with"
            " --quick]"
        )
        command = click.option(
            "--quick",
            is_flag=True,
            is_eager=True,
            help="Few rounds, few rows: only to see that it works.",
        )(command)
        return click.option("--rounds", type=click.IntRange(1), callback=choose, help=meaning)(
            command
        )

    def choose(context: click.Context, _parameter: click.Parameter, value: int | None) -> int:
        return value or (quick_rounds if context.params["quick"] else rounds)

    return add


# --- triplets and stores --------------------------------------------------------------------------


class Mail(NamedTuple):
    """An envelope as a mail server has it."""

    client: str
    sender: str
    recipient: str


def mail(number: int) -> Mail:
    """Envelope NUMBER; each of the first 13 million comes from a /24 of its own, so that no network
    merges two.
    """
    return Mail(
        f"{11 + number % 200}.{number // 200 % 256}.{number // 51200 % 256}.{1 + number % 250}",
        f"sender{number}@dom{number % 20011}.example.com",
        f"user{number % 1009}@rcpt{number % 13}.example.org",
    )


def asked(found: Mail) -> Asked:
    """What a check of the envelope FOUND asks for."""
    envelope = Envelope(
        "smtpextfork", found.client, found.sender.encode(), found.recipient.encode()
    )
    return Asked(envelope, triplet(envelope, IPV4_PREFIX, IPV6_PREFIX))


@dataclass(frozen=True)
class Numbers:
    """Which envelopes a store holds: from 0 on those that passed, the first of them OVER, from
    PENDING on those that wait; and how many other clients, and rules that match none of them, PAIRS
    of them over pairs of everybody's recipients.
    """

    known: int
    pending: int = 0
    clients: int = 0
    rules: int = 0
    pairs: int = 0
    over: int = 0

    def __iter__(self) -> Iterator[int]:
        yield from range(self.known)
        yield from range(PENDING, PENDING + self.pending)


def fill(database: Path, numbers: Numbers, envelope: Callable[[int], Mail] = mail) -> None:
    """Makes the store DATABASE with the triplets of NUMBERS, in the order of their keys, last used
    AGE seconds ago.

    Those that are over were last used so long ago that ``greycheck expire`` removes them.
    """
    migrate.upgrade(f"sqlite:///{database}")
    now = int(time()) - AGE

    def key(number: int) -> bytes:
        return asked(envelope(number)).key

    def rows() -> Iterator[tuple[object, ...]]:
        for number in sorted(numbers, key=key):
            used = now - LIFETIME if number < numbers.over else now
            yield row(asked(envelope(number)), used, number < PENDING)

    sql, _names = compiled_sqlite.INSERT_TRIPLET
    connection = sqlite3.connect(database)
    connection.execute(f"PRAGMA cache_size = -{PAGES >> 10}")
    with connection:
        connection.executemany(sql, rows())
        connection.executemany(
            "INSERT INTO client (address, passes, first_seen, last_seen, expires_at) VALUES (?, 1,"
            " ?, ?, ?)",
            ((address(n), now, now, now + LIFETIME) for n in range(numbers.clients)),
        )
        connection.executemany(
            "INSERT INTO rule VALUES (?, ?, ?, 'allow', NULL, '', ?, NULL)",
            (rule(n, now) for n in range(numbers.rules)),
        )
    engine = open_engine(f"sqlite:///{database}")
    made = [make_rule(patterns.parse(pair(n)), "allow", now=now) for n in range(numbers.pairs)]
    rulebook.put_all(engine, made, now)
    engine.dispose()
    connection.close()


def rule(number: int, now: int) -> tuple[bytes, str, str, int]:
    """The columns of rule NUMBER, of one kind after the other: its key, kind and pattern, and when
    it was made (NOW).
    """
    written = (
        f"to:.site{number}.example",
        f"from:.site{number}.example",
        f"230.{number >> 8 & 255}.{number & 255}.0/24",
        f"name:.site{number}.example",
        f"helo:.site{number}.example",
    )
    found = patterns.parse(written[number % len(written)])
    return digest(found.key), found.kind, found.text, now


def pair(number: int) -> str:
    """The pattern of pair NUMBER, whose recipient is every envelope's."""
    written = (
        f"from:.site{number}.example",
        f"230.{number >> 8 & 255}.{number & 255}.0/24",
        f"name:.site{number}.example",
        f"helo:.site{number}.example",
    )
    return f"{written[number % len(written)]} to:.example.org"


def row(made: Asked, now: int, passed: bool) -> tuple[object, ...]:
    """The columns of triplet MADE as SQLite's statement takes them."""
    found = columns(made, now, passed)
    return tuple(found[name] for name in compiled_sqlite.INSERT_TRIPLET[1])


def columns(made: Asked, now: int, passed: bool) -> dict[str, object]:
    """The columns of triplet MADE by name, first seen at NOW (seconds since 1970) and either PASSED
    then or waiting.
    """
    new = TripletRow(now, now, 0, int(passed), now if passed else None)
    return parameters(made, Change(None, new, now + (LIFETIME if passed else RETRY_WINDOW)))


def address(number: int) -> str:
    """The address of client NUMBER, which has no triplet."""
    return f"220.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class Load:
    """Envelopes of each class in a store of NUMBERS, without end: known ones at random, pending
    ones in turn, new ones once each.
    """

    def __init__(self, numbers: Numbers, seed: int = 1) -> None:
        self.numbers = numbers
        self._random = Random(seed)
        self._pending = cycle(range(PENDING, PENDING + numbers.pending))
        self._new = count(NEW)

    def next(self, reason: str) -> Mail:
        """An envelope that a check answers by REASON."""
        if reason == "new":
            return mail(next(self._new))
        if reason == "early":
            return mail(next(self._pending))
        return mail(self._random.randrange(self.numbers.known))


# --- children -------------------------------------------------------------------------------------


class Workshop:
    """A directory with the installed LAUNCHER, and the log that children write on descriptor 2."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.launcher = str(directory / "bin" / "greycheck")
        self.log = os.open(directory / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._seen = 0

    def new_lines(self) -> list[str]:
        """What came to the log since it was last asked for."""
        found = os.pread(self.log, os.fstat(self.log).st_size - self._seen, self._seen)
        self._seen += len(found)
        return found.decode().splitlines()

    def database(self, name: str, numbers: Numbers, envelope: Callable[[int], Mail] = mail) -> Path:
        """A store NAME, filled with NUMBERS."""
        path = self.directory / f"{name}.db"
        fill(path, numbers, envelope)
        return path


@contextmanager
def workshop() -> Iterator[Workshop]:
    """A temporary directory in which ``greycheck install`` has put its launchers.

    TMPDIR says where.
    """
    with tempfile.TemporaryDirectory(prefix="greycheck-benchmark-") as name:
        directory = Path(name)
        programs = directory / "bin"
        programs.mkdir()
        user = pwd.getpwuid(os.geteuid()).pw_name
        subprocess.run(
            [sys.executable, "-m", "greycheck", "install", str(programs), "--user", user],
            env=settings(directory / "installed.db"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found = Workshop(directory)
        try:
            yield found
        finally:
            os.close(found.log)


# What keeps processors awake as long as it is open (Linux,
# Documentation/power/pm_qos_interface.rst). Root alone may open it.
LATENCY = Path("/dev/cpu_dma_latency")


@contextmanager
def awake() -> Iterator[None]:
    """Keeps processors that have nothing to do from sleeping.

    Raises OSError where that is not allowed.
    """
    held = os.open(LATENCY, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(
            held, (0).to_bytes(4, sys.byteorder)
        )  # microseconds that a processor may take to wake
        yield
    finally:
        os.close(held)


def settings(database: Path | str) -> dict[str, str]:
    """An environment with the settings of every check here; DATABASE is a file or a URL."""
    return {
        "PATH": os.defpath,
        "GREYCHECK_CONFIG": "/dev/null",
        "GREYCHECK_DATABASE": str(database),
        "GREYCHECK_DELAY": str(DELAY),
    }


def tcpserver(client: str) -> dict[str, str]:
    """What tcpserver puts into the environment for CLIENT."""
    return {
        "PROTO": "TCP",
        "TCPLOCALIP": "192.0.2.25",
        "TCPLOCALPORT": "25",
        "TCPLOCALHOST": "mail.example.net",
        "TCPREMOTEIP": client,
        "TCPREMOTEPORT": "40000",
    }


def smtpextfork(database: Path | str, found: Mail) -> dict[str, str]:
    """The environment of a child that SMTPEXTFORK runs for the envelope FOUND, over DATABASE."""
    asked = {
        "REMOTEMF": found.sender,
        "REMOTERCPT": found.recipient,
        "REMOTEHELO": "client.example.com",
    }
    return settings(database) | tcpserver(found.client) | asked


def start(argv: Sequence[str], environ: Mapping[str, str], log: int) -> int:
    """Starts ARGV with /dev/null on descriptors 0 and 1 and LOG on 2; its process number."""
    descriptors = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
    )
    return os.posix_spawn(argv[0], list(argv), environ, file_actions=descriptors)


def check_code(status: int, code: int, what: str, place: Workshop | None = None) -> None:
    """Raises WrongAnswer where the wait STATUS of a child is not exit CODE, with what it wrote to
    the log of PLACE.
    """
    found = os.waitstatus_to_exitcode(status)
    if found != code:
        said = place.new_lines() if place else []
        raise WrongAnswer("\n".join([f"{what}: exit code {found}, not {code}", *said]))


def check_reasons(lines: Iterable[str], reasons: Iterable[str]) -> None:
    """Raises WrongAnswer where the log LINES do not give REASONS, one each, in any order."""
    written = list(lines)
    found = sorted(reason_of(line) for line in written)
    wanted = sorted(reasons)
    if found != wanted:
        wrong = next((line for line in written if reason_of(line) not in wanted), "")
        raise WrongAnswer(
            f"the log's reasons are {found[:5]}, {len(found)} in all, not {wanted[:5]},"
            f" {len(wanted)} in all\n{wrong}".rstrip()
        )


def reason_of(line: str) -> str:
    """The reason that a log LINE gives; the whole line where there is none."""
    return line.partition(" reason=")[2].partition(" ")[0] or line


# --- measuring ------------------------------------------------------------------------------------


class Times:
    """What was measured, and the milliseconds that it took each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.took: list[float] = []

    @property
    def median(self) -> float:
        """The median, in milliseconds."""
        return median(self.took)

    @property
    def p99(self) -> float:
        """What 99 of 100 stayed within, in milliseconds."""
        return sorted(self.took)[ceil(len(self.took) * 0.99) - 1]


class Case(Times):
    """One of the things that are measured in turn; ONCE does it once, and gives the
    milliseconds.
    """

    def __init__(self, name: str, once: Callable[[], float]) -> None:
        super().__init__(name)
        self.once = once


def interleave(cases: Sequence[Case], rounds: int) -> None:
    """Does every one of CASES in turn, ROUNDS times.

    One round before that fills the caches and does not count.
    """
    for number in range(rounds + 1):
        for case in cases:
            took = case.once()
            if number:
                case.took.append(took)


def bare(place: Workshop, environ: Mapping[str, str]) -> Callable[[], float]:
    """Runs the interpreter alone, in a child's ENVIRON."""
    return silent(place, BARE, environ, "bare interpreter")


def silent(
    place: Workshop, argv: Sequence[str], environ: Mapping[str, str], what: str
) -> Callable[[], float]:
    """Runs ARGV, called WHAT, in ENVIRON, and sees that it exits with 0."""

    def once() -> float:
        started = perf_counter()
        child = start(argv, environ, place.log)
        _child, status, _usage = os.wait4(child, 0)
        took = perf_counter() - started
        check_code(status, 0, what, place)
        return took * 1000

    return once


def checked(
    place: Workshop, reason: str, environ: Callable[[], Mapping[str, str]]
) -> Callable[[], float]:
    """Runs the launcher in what ENVIRON gives, and sees that it answers by REASON."""

    def once() -> float:
        variables = environ()
        started = perf_counter()
        child = start([place.launcher], variables, place.log)
        _child, status, _usage = os.wait4(child, 0)
        took = perf_counter() - started
        check_code(status, ANSWERS[reason], reason, place)
        check_reasons(place.new_lines(), [reason])
        return took * 1000

    return once


# --- the table ------------------------------------------------------------------------------------


class Ratio(NamedTuple):
    """A ratio, what it is a ratio to, and its bounds where it has a target."""

    value: float
    to: str
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.2f} x {self.to}"

    @property
    def target(self) -> str:
        """The target in words, and whether this run missed it."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} x" + (" missed" if self.value > self.at_most else "")
        if self.at_least is not None:
            return f">= {self.at_least:g} x" + (" missed" if self.value < self.at_least else "")
        return ""


def ratio(times: Times, to: Times, name: str, at_most: float | None = None) -> Ratio:
    """The ratio of the medians of two TIMES, the second of which is called NAME for short."""
    return Ratio(times.median / to.median, name, at_most)


def times_row(times: Times, to: Ratio | None = None) -> tuple[str, ...]:
    """The row of TIMES in a table."""
    return times.name, f"{times.median:.2f}", f"{times.p99:.2f}", *ratio_columns(to)


def ratio_columns(to: Ratio | None) -> tuple[str, str]:
    """The last two columns of a row: a ratio and its target."""
    return (str(to), to.target) if to else ("", "")


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints ROWS below HEADINGS, figures to the right of their columns, words to the left."""
    widths = [
        max(len(line[column]) for line in (headings, *rows)) for column in range(len(headings))
    ]
    words = (0, len(headings) - 2, len(headings) - 1)
    click.echo(title)
    for line in (headings, ["-" * width for width in widths], *rows):
        cells = (
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


TIMES = ("what", "median ms", "p99 ms", "ratio", "target")
