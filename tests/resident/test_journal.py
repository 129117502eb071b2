"""The resident's log, on real pipes and sockets."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from greycheck.resident import journal
from greycheck.resident.journal import Journal


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds one page."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def line(number: int, size: int = 100) -> bytes:
    return b"%06d" % number + b"x" * (size - 7) + b"\n"


def drained(reader: int) -> bytes:
    came = b""
    try:
        while more := os.read(reader, 1 << 16):
            came += more
    except BlockingIOError:
        pass
    return came


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    found = Journal(pipe[1])
    found.add(line(1))
    found.add(line(2))
    found.flush()
    assert not found.has_lines
    assert drained(pipe[0]) == line(1) + line(2)


def test_what_the_log_does_not_take_waits(pipe: tuple[int, int]) -> None:
    found = Journal(pipe[1])
    expected = [line(number) for number in range(3000)]
    for each in expected:
        found.add(each)
    found.flush()
    came = b""
    while found.has_lines:
        part = drained(pipe[0])
        assert part.endswith(b"\n"), "no line is cut"
        came += part
        found.flush()
    assert came + drained(pipe[0]) == b"".join(expected)


def test_what_a_stuck_log_loses_is_counted(pipe: tuple[int, int]) -> None:
    found = Journal(pipe[1])
    for number in range(20000):
        found.add(line(number))
        found.flush()
    came = b""
    while found.has_lines:
        came += drained(pipe[0])
        found.flush()
    came += drained(pipe[0])
    lines = came.split(b"\n")[:-1]
    [told] = [
        each for each in lines if each.startswith(b"greycheck: warning the log took nothing: ")
    ]
    assert len(lines) - 1 + int(told.split()[-3]) == 20000
    found.add(line(7))
    found.flush()
    assert drained(pipe[0]) == line(7), "it is told once"


def test_a_dead_log_loses_everything_at_once_and_is_told_when_it_lives_again() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.close(reader)
    found = Journal(writer)
    for number in range(500):
        found.add(line(number) + line(number))
    found.flush()
    found.add(line(1))
    found.flush()
    assert not found.has_lines
    again, living = os.pipe2(os.O_NONBLOCK)
    os.dup2(living, writer)
    found.add(line(2))
    found.flush()
    assert drained(again) == b"greycheck: warning the log took nothing: 1001 lines lost\n" + line(2)
    for descriptor in (again, living, writer):
        os.close(descriptor)


def test_a_full_disk_costs_lines_until_there_is_room(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    found = Journal(descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        for number in range(3):
            found.add(line(number))
        found.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not found.has_lines
    found.add(line(7))
    found.flush()
    os.close(descriptor)
    told = b"greycheck: warning the log took nothing: 2 lines lost\n"
    assert (tmp_path / "log").read_bytes() == (line(0) + line(1))[:150] + told + line(7)


def test_a_line_longer_than_a_pipe_takes_at_once_is_written_in_parts(pipe: tuple[int, int]) -> None:
    found = Journal(pipe[1])
    found.add(line(1, 10000))
    found.add(line(2))
    found.flush()
    assert drained(pipe[0]) == line(1, 10000) + line(2)


def test_warnings_beyond_so_many_a_second_are_counted(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 7.0
    monkeypatch.setattr(journal, "monotonic", lambda: now)
    found = Journal(pipe[1])
    for number in range(25):
        found.warn(f"number {number}")
    now = 8.5
    found.warn("next")
    found.flush()
    expected = [f"greycheck: warning number {number}\n" for number in range(10)]
    expected += ["greycheck: warning 15 more like these\n", "greycheck: warning next\n"]
    assert drained(pipe[0]).decode() == "".join(expected)
