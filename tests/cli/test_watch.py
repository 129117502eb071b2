"""``greycheck watch``: a log as it grows and is rotated, and what of it is shown."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from greycheck.cli.following import Lines, follow_file
from greycheck.cli.main import cli
from greycheck.cli.watch import is_below, is_like
from greycheck.log import line as other_line
from tests.simulation import test_replay
from tests.simulation.test_replay import EARLY, NEW, RETRY
from tests.support import ROOT

HOSTILE = "\\x1b[31mred\\x07@example.org"


@pytest.fixture(autouse=True)
def _clean(berlin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYCHECK_CONFIG", "/dev/null")
    monkeypatch.delenv("COLUMNS", raising=False)


def line(when: int, *more: str, **named: str) -> str:
    """A line of multilog's WHEN seconds after 2026-01-15 09:00:00: a day that is over."""
    return test_replay.line(when - 365 * 86400, *more, **named)


@dataclass
class Ran:
    """What a command printed."""

    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Ran]


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on a TEXT that comes by standard input."""

    def ran(*arguments: str, text: str | bytes = "", code: int = 0, columns: int = 0) -> Ran:
        path = place / "input"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        if columns:
            monkeypatch.setenv("COLUMNS", str(columns))
        with path.open() as source:
            monkeypatch.setattr(sys, "stdin", source)
            with pytest.raises(SystemExit) as ended:
                cli(["watch", *arguments], prog_name="greycheck")
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return Ran(said.out, said.err)

    return ran


LOG = (
    line(0, NEW, more=" wait=300")
    + line(60, EARLY, more=" wait=240")
    + "@4000000069689ea80000000 somebody: defer reason=new\n"
    + line(400, RETRY, "2001:db8::7", more=" delayed=400 identity=there.example")
    + line(500, "reject reason=rule", sender="", more=" rule=to:bob@example.net")
    + line(600, "accept reason=new", sender="x@sub.y.example", more=" wait=300 observed=defer")
)


def test_each_check_is_a_line_where_there_is_room(run: Run) -> None:
    assert run("-", text=LOG).lines == [
        "2026-01-15 09:00:00  defer   new            192.0.2.1  ann@there.example ->"
        " bob@example.net  wait 5m",
        "2026-01-15 09:01:00  defer   early          192.0.2.1  ann@there.example ->"
        " bob@example.net  wait 4m",
        "2026-01-15 09:06:40  accept  retry          2001:db8::7  ann@there.example ->"
        " bob@example.net  waited 6m 40s  identity=there.example",
        "2026-01-15 09:08:20  reject  rule           192.0.2.1  <> -> bob@example.net "
        " rule=to:bob@example.net",
        "2026-01-15 09:10:00  accept  new            192.0.2.1  x@sub.y.example ->"
        " bob@example.net  wait 5m  observed=defer",
    ]


LONG = "bounces-20261129-7f3a9c@announcements.of-a-list-with-a-long-name.of-somebody.example.org"


def test_on_80_columns_who_and_whom_have_a_line_of_their_own(run: Run) -> None:
    text = line(0, NEW, more=" wait=300")
    wide = "2001:db8:1111:2222:3333:4444:5555:6666"
    text += line(60, RETRY, wide, LONG, LONG, more=" delayed=90061")
    said = run("-", text=text, columns=80).lines
    assert said[:3] == [
        "2026-01-15",
        "09:00:00  defer   new            192.0.2.1  wait 5m",
        "          ann@there.example -> bob@example.net",
    ]
    assert said[3] == f"09:01:00  accept  retry          {wide}"
    assert said[4].startswith("          bounces-2026")
    assert said[4].count("example.org") == 2
    assert said[5] == "          waited 1d 1h"
    assert all(len(each) <= 80 for each in said)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        (("--verdict", "defer"), "00 01 10"),
        (("--verdict", "accept", "--verdict", "reject"), "06 08 10"),
        (("--reason", "early", "--reason", "rule"), "01 08"),
        (("--network", "192.0.2.0/25"), "00 01 08 10"),
        (("--network", "::/0"), "06"),
        (("--sender", "Ann@There.example."), "00 01 06"),
        (("--sender", "<>"), "08"),
        (("--sender", "bob@example.net"), ""),
        (("--recipient", "bob@"), "00 01 06 08 10"),
        (("--address", "@there.example", "--verdict", "accept"), "06"),
        (("--domain", "y.example"), "10"),
        (("--domain", "example"), "00 01 06 10"),
    ],
)
def test_filters_are_those_of_the_list(run: Run, options: tuple[str, ...], times: str) -> None:
    said = run("-", *options, text=LOG).lines
    assert [each[14:16] for each in said] == times.split()


@pytest.mark.parametrize(
    ("wanted", "address", "like"),
    [
        (b"ann@x.example", b"ANN@x.example.", True),
        (b"ann+a@x.example", b"ann+b@x.example", True),
        (b"ann@x.example", b"joann@x.example", False),
        (b"x.example", b"ann@x.example", True),
        (b"x.example", b"ann@sub.x.example", False),
        (b"@x.example", b"ann@x.example", True),
        (b"ann@", b"ann@y.example", True),
        (b"", b"", True),
        (b"", b"ann@x.example", False),
        (b"@x.example", b"", False),
    ],
)
def test_an_address_is_like_another(wanted: bytes, address: bytes, like: bool) -> None:
    assert is_like(wanted, address) == like


def test_a_domain_holds_what_is_below_it() -> None:
    assert is_below(b"x.example", b"a@sub.x.example")
    assert is_below(b".X.example", b"a@x.example.")
    assert not is_below(b"x.example", b"a@ax.example")
    assert not is_below(b"x.example", b"x.example")


def test_warnings_and_notes_are_shown_whatever_the_filter(run: Run) -> None:
    text = line(0, NEW).split(" ")[0].encode() + b" " + other_line("warning the disk is \x1b[31m")
    text += other_line("note listening on /run/greycheck/socket")
    said = run("-", "--reason", "retry", text=text).lines
    assert said[0] == "2026-01-15 09:00:00  warning the disk is \\x1b[31m"
    assert said[1] == "-         note listening on /run/greycheck/socket"


def test_nothing_of_a_log_reaches_the_terminal_unescaped(run: Run) -> None:
    text = line(0, NEW, sender=HOSTILE).encode()
    text += line(1, NEW, sender="\x1b[31m@x.example", more=' error="\x1b[2J\u202e"').encode()
    text += b"@4000000069689e8a00000000 greycheck: warning \x1b[2J\xff\n"
    for columns in (0, 80):
        result = run("-", text=text, columns=columns)
        assert all(each.isprintable() for each in result.lines)
        assert "\\x1b[31mred\\x07@example.org" in result.out
        assert "\\x1b[2J\\xe2\\x80\\xae" in result.out


def test_without_a_log_it_says_how(run: Run, place: Path) -> None:
    assert f"{place}/none" in run(str(place / "none"), code=1).err
    assert "did you mean" in run("-", "--reason", "earl", code=2).err.lower()
    assert "--network" in run("-", "--network", "x", code=2).err


# --- as a log grows -------------------------------------------------------------------------------


class Watch:
    """The command with a log at PATH, and what it printed."""

    def __init__(self, path: Path | str, *options: str, stdin: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "greycheck", "watch", str(path), *options],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        self.stdout: IO[bytes] = self.process.stdout

    def times(self, number: int) -> list[str]:
        """The minutes and seconds of the NUMBER checks that come next."""
        return [self.stdout.readline().decode()[14:19] for _ in range(number)]

    def end(self) -> tuple[int, bytes]:
        """Presses Ctrl-C; returns the exit code, and what was printed as an error."""
        self.process.send_signal(signal.SIGINT)
        _rest, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def add(path: Path, *seconds: int) -> None:
    """Appends checks of these SECONDS after the first."""
    with path.open("a") as log:
        for when in seconds:
            log.write(line(when, NEW))


def test_the_last_lines_come_first_and_then_those_that_are_written(place: Path) -> None:
    log = place / "current"
    add(log, *range(30))
    watch = Watch(log, "-n", "2")
    assert watch.times(2) == ["00:28", "00:29"]
    half = line(30, NEW)
    with log.open("a") as file:
        file.write(half[:70])
        file.flush()
        time.sleep(0.6)
        file.write(half[70:])
    add(log, 31)
    assert watch.times(2) == ["00:30", "00:31"]
    assert watch.end() == (0, b"")


def test_filters_count_before_the_last_lines_are_taken(place: Path) -> None:
    log = place / "current"
    log.write_text(line(0, RETRY) + "".join(line(1 + each, NEW) for each in range(99)))
    watch = Watch(log, "-n", "3", "--reason", "retry")
    assert watch.times(1) == ["00:00"]
    assert watch.end() == (0, b"")


def test_a_log_that_is_renamed_is_read_to_its_end_and_then_the_new_one(place: Path) -> None:
    """As multilog and logrotate do it: the writer goes on in the old file for a while."""
    log, old = place / "current", place / "@4000000069689e8a00000000.s"
    add(log, 1)
    watch = Watch(log, "-n", "1")
    assert watch.times(1) == ["00:01"]
    log.rename(old)
    add(old, 2)
    assert watch.times(1) == ["00:02"], "there is no new one yet"
    add(old, 3)
    add(log, 4)
    assert watch.times(2) == ["00:03", "00:04"]
    log.rename(place / "log.1")
    add(log, 5, 6)
    assert watch.times(2) == ["00:05", "00:06"]
    assert watch.end() == (0, b"")


def test_a_log_that_is_truncated_is_read_from_its_beginning(place: Path) -> None:
    """As logrotate's copytruncate does it."""
    log = place / "log"
    add(log, 1, 2, 3)
    watch = Watch(log, "-n", "1")
    assert watch.times(1) == ["00:03"]
    os.truncate(log, 0)
    add(log, 4)
    assert watch.times(1) == ["00:04"]
    assert watch.end() == (0, b"")


def test_standard_input_is_read_as_it_comes(place: Path) -> None:
    reading, writing = os.pipe()
    watch = Watch("-", stdin=reading)
    os.close(reading)
    for when in (1, 2):
        os.write(writing, line(when, NEW).encode())
        assert watch.times(1) == [f"00:0{when}"]
    os.close(writing)
    assert watch.process.wait(60) == 0
    watch.end()


def test_it_ends_when_nobody_reads_it_although_nothing_comes(place: Path) -> None:
    log = place / "log"
    add(log, 1)
    watch = Watch(log)
    assert watch.times(1) == ["00:01"]
    watch.stdout.close()
    assert watch.process.wait(60) == 141
    assert watch.process.stderr is not None
    assert watch.process.stderr.read() == b""
    watch.process.stderr.close()


# --- lines ----------------------------------------------------------------------------------------


def test_a_line_comes_once_its_end_is_there_and_none_that_is_too_long() -> None:
    found = Lines()
    assert list(found.of(b"a\r\nb")) == [b"a"]
    assert list(found.of(b"c\nd")) == [b"bc"]
    assert list(found.of(b"x" * 20000)) == []
    assert list(found.of(b"y" * 20000)) == []
    assert list(found.of(b"\ne\n")) == [b"e"]
    found.skip()
    assert list(found.of(b"half\nf\n")) == [b"f"]


class Enough(Exception):
    """What a test raises where nothing is new."""


def stop() -> None:
    raise Enough


@pytest.mark.parametrize(
    ("back", "lines"),
    [(0, []), (6, [b"three"]), (7, [b"three"]), (9, [b"three"]), (99, [b"one", b"two", b"three"])],
)
def test_history_begins_with_a_whole_line(place: Path, back: int, lines: list[bytes]) -> None:
    path = place / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    found: list[bytes | None] = []
    with pytest.raises(Enough):
        found.extend(follow_file(path, back, stop))
    assert found == [*lines, None]
