"""What of ``greycheck policy`` no mail server sees: the system's log, and the deadline's thread."""

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from greycheck import log
from greycheck.resident import kept_store, spawned
from greycheck.resident.journal import Journal
from greycheck.resident.spawned import Spawned, Watch
from greycheck.resident.system_log import SystemLog
from greycheck.store.base import StoreError
from tests.resident.resident import request


class Exited(Exception):
    pass


def never() -> NoReturn:
    raise AssertionError


def without_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has neither alarm nor thread run, and exits raised."""

    def leave(code: int) -> NoReturn:
        raise Exited(code)

    monkeypatch.setattr(spawned.posix, "_exit", leave)
    monkeypatch.setattr(spawned._thread, "start_new_thread", lambda _call, _arguments: 0)
    monkeypatch.setattr(log, "alarm", lambda _seconds, _handler: None)
    monkeypatch.setattr(log, "no_alarm", lambda: None)


# --- the system's log -----------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[socket.socket]:
    """What syslogd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as found:
        found.bind(str(tmp_path / "log"))
        yield found


def test_the_systems_log_gets_a_message_a_line(device: socket.socket) -> None:
    log = SystemLog(device.getsockname())
    log.add(b"greycheck: warning delay = soon\ngreycheck: defer reason=new\n")
    log.flush()
    said = [device.recv(1000).decode() for _ in range(2)]
    stamp = (
        r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ 123]\d \d\d:\d\d:\d\d"
        r" greycheck\[\d+\]: "
    )
    assert re.fullmatch("<20>" + stamp + "warning delay = soon", said[0])
    assert re.fullmatch("<22>" + stamp + "defer reason=new", said[1])


def test_a_log_that_takes_nothing_is_not_waited_for(device: socket.socket) -> None:
    log = SystemLog(device.getsockname())
    for _ in range(1000):
        log.add(b"greycheck: defer reason=new\n")


def test_no_log_is_no_fault(tmp_path: Path) -> None:
    SystemLog(str(tmp_path / "none")).add(b"greycheck: defer reason=new\n")


# --- answers --------------------------------------------------------------------------------------


class Asked:
    """What answers here instead of a process of its own: its end of the pipes, and the log."""

    def __init__(self, directory: Path, database: str) -> None:
        source, self.to = os.pipe()
        self.of, sink = os.pipe()
        self.log = (directory / "log").open("w+b")
        environ = {b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DATABASE": database.encode()}
        self.spawned = Spawned(environ, ("/nonexistent",), source, sink, Journal(self.log.fileno()))
        self._ends = [source, sink, self.to, self.of]

    def close(self) -> None:
        self.spawned._store._drop()
        for descriptor in self._ends:
            os.close(descriptor)
        self.log.close()


@pytest.fixture
def asked(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """One with an empty store, whose alarm and thread do not run."""
    without_alarm(monkeypatch)
    shutil.copy(empty_store, tmp_path / "greycheck.db")
    found = Asked(tmp_path, str(tmp_path / "greycheck.db"))
    yield found
    found.close()


def test_the_deadline_is_answered_by_on_error(asked: Asked) -> None:
    os.write(asked.to, request())
    asked.spawned._answer(asked.spawned._next() or b"")
    assert os.read(asked.of, 1000).startswith(b"action=DEFER_IF_PERMIT ")
    asked.spawned._expire()
    assert os.read(asked.of, 1000) == b"action=DUNNO\n\n"
    asked.log.seek(0)
    assert b' error="no answer within 5s" ' in asked.log.read()


def test_sigterm_while_nothing_is_asked_ends_it_at_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.spawned._idles = True
    with pytest.raises(Exited, match="0"):
        asked.spawned._end(15, None)


def test_sigterm_before_the_next_request_is_the_end(asked: Asked) -> None:
    asked.spawned._end(15, None)
    assert asked.spawned._next() is None


def test_what_nobody_foresaw_is_an_error_of_one_check(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> NoReturn:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(kept_store, "check", fail)
    os.write(asked.to, request())
    asked.spawned._answer(asked.spawned._next() or b"")
    assert os.read(asked.of, 1000) == b"action=DUNNO\n\n"
    asked.log.seek(0)
    assert b' error="ZeroDivisionError: by zero" ' in asked.log.read()


@pytest.mark.parametrize("error", [StoreError("disk full"), ZeroDivisionError("by zero")], ids=repr)
def test_what_cannot_be_remembered_of_a_message_does_not_change_its_verdict(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_arguments: object) -> NoReturn:
        raise error

    monkeypatch.setattr(kept_store, "remember", fail)
    more = {
        "GREYCHECK_DELAY": "0",
        "GREYCHECK_CLIENT_PASSES": "0",
        "greycheck_hook": "spp",
        "TCPREMOTEPORT": "25",
    }
    for reason in (b" reason=new ", b" reason=retry "):
        asked.spawned._ends = False
        os.write(asked.to, request(**more))
        asked.spawned._answer(asked.spawned._next() or b"")
        assert reason in os.read(asked.of, 4000)


def test_what_fails_after_an_answer_costs_nothing_but_a_line(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the requests after it, nor what else is to be done then."""
    faults = [MemoryError("no more"), BrokenPipeError("of the database")]

    def fail(*_arguments: object) -> NoReturn:
        raise faults[0]

    done: list[str] = []
    monkeypatch.setattr(spawned.history, "note", fail)
    monkeypatch.setattr(asked.spawned, "_learn", lambda *_given: done.append("learnt"))
    monkeypatch.setattr(asked.spawned._store, "tidy", lambda: done.append("tidied"))
    for _ in range(2):
        os.write(asked.to, request())
        asked.spawned._answer(asked.spawned._next() or b"")
        assert os.read(asked.of, 1000).startswith(b"action=DEFER_IF_PERMIT ")
    assert done == ["learnt", "tidied"] * 2
    monkeypatch.setattr(asked.spawned._store, "tidy", fail)
    faults.reverse()
    os.write(asked.to, request())
    asked.spawned._answer(asked.spawned._next() or b"")
    asked.log.seek(0)
    said = [line.rstrip() for line in asked.log if b" warning " in line]
    assert (
        said
        == [b"greycheck: warning after an answer: MemoryError: no more"] * 2
        + [b"greycheck: warning after an answer: BrokenPipeError: of the database"] * 2
    )


# --- the deadline ---------------------------------------------------------------------------------


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch whose alarm and thread do not run."""
    without_alarm(monkeypatch)
    return Watch(never)


def test_a_check_that_is_not_settled_is_answered_for(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired: list[bool] = []
    monkeypatch.setattr(watch, "_expire", lambda: expired.append(True))
    watch.begin(0)
    with pytest.raises(Exited, match="111"):
        watch._watch()
    assert expired == [True]


def test_a_verdict_after_the_deadline_waits_for_the_exit(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exit_at_last(_seconds: float) -> NoReturn:
        raise Exited

    monkeypatch.setattr(spawned, "sleep", exit_at_last)
    watch.begin(0)
    assert watch._hand
    watch._hand[1].acquire()
    with pytest.raises(Exited):
        watch.settle()


def test_the_thread_sleeps_until_the_deadline_and_then_until_it_is_woken(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is settled meanwhile does not wake it; what begins after it went to sleep does."""
    slept: list[float] = []

    def settle_asleep(seconds: float) -> None:
        slept.append(seconds)
        watch.settle()
        if len(slept) == 1:
            watch.begin(0.5)
        else:
            watch._wake.acquire(blocking=False)
            monkeypatch.setattr(watch, "_wake", Waker())

    class Waker:
        def acquire(self) -> NoReturn:
            raise Exited

    monkeypatch.setattr(spawned, "sleep", settle_asleep)
    watch.begin(60)
    with pytest.raises(Exited):
        watch._watch()
    assert slept[0] == spawned.LOOK
    assert 0 < slept[1] <= 0.5
