"""SIGTERM, SIGHUP, and what systemd is told about them."""

import os
import re
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from greycheck import settings
from greycheck.resident import server
from greycheck.resident.sockets import is_answered
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Peer, Resident, request
from tests.servers import wait_until
from tests.support import Database, ServerDatabase, SQLiteFile


@contextmanager
def locked(store: SQLiteFile) -> Iterator[None]:
    """Has the lock of STORE, as another writer."""
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def file_of(resident: Resident) -> SQLiteFile:
    assert isinstance(resident.store, SQLiteFile)
    return resident.store


@pytest.fixture
def conf(place: Path) -> Path:
    """A file of settings."""
    path = place / "conf"
    path.touch()
    return path


def with_file(start: Start, conf: Path, **settings: str) -> Resident:
    """A resident that reads CONF; where its store is, is in there."""
    return start({"environ": {"GREYCHECK_CONFIG": str(conf)}}, **settings)


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_asked_is_answered_before_the_end(start: Start, number: int) -> None:
    resident = start()
    with resident.peer() as peer, resident.peer() as idle:
        with locked(file_of(resident)):
            peer.send(request())
            # Who asks later is answered later: the question above is in its hands.
            assert idle.ask(protocol_state="DATA") == ACCEPTED
            resident.signal(number)
            assert idle.is_closed()
            with pytest.raises(OSError, match=r"refused|No such file"):
                resident.peer()
        assert peer.action() == DEFERRED
        assert peer.is_closed()
    assert resident.end() == 0
    assert resident.reasons() == ["new"]


def test_what_was_sent_before_the_end_is_answered_too(start: Start) -> None:
    resident = start()
    resident.signal(signal.SIGSTOP)
    peers = [resident.peer() for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.send(request(sender=f"{number}@example.org"))
    resident.signal(signal.SIGTERM)
    resident.signal(signal.SIGCONT)
    assert [peer.action() for peer in peers] == [DEFERRED] * 3
    assert resident.end() == 0
    for peer in peers:
        assert peer.is_closed()
        peer.close()


def test_half_a_request_does_not_hold_up_the_end(start: Start) -> None:
    resident = start()
    with resident.peer() as peer:
        peer.send(request()[:-1])
        assert resident.ask() == DEFERRED
        assert resident.stop() == 0
        assert peer.is_closed()


def test_the_end_leaves_no_log_behind_the_file(start: Start) -> None:
    resident = start()
    resident.ask()
    assert resident.stop() == 0
    assert not Path(f"{file_of(resident).path}-wal").exists()


def test_a_second_sigterm_changes_nothing(start: Start) -> None:
    resident = start()
    with resident.peer() as peer:
        with locked(file_of(resident)):
            peer.send(request())
            assert resident.ask(protocol_state="DATA") == ACCEPTED
            resident.signal(signal.SIGTERM)
            resident.signal(signal.SIGTERM)
            resident.signal(signal.SIGHUP)
        assert peer.action() == DEFERRED
    assert resident.end() == 0


def test_signals_that_were_blocked_by_the_parent_are_heeded(start: Start) -> None:
    resident = start(
        {
            "before": lambda: signal.pthread_sigmask(
                signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP]
            )
        }
    )
    resident.reread()
    assert resident.stop() == 0


def test_a_signal_between_listening_and_serving_is_heeded_later(place: Path) -> None:
    """Who has come to the socket by then is answered."""
    store = SQLiteFile(place / "greycheck.db")
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    with Resident(place, store=store) as resident:
        with closing(connection):
            wait_until(lambda: is_answered(resident.socket), "the socket is there", resident.log)
            with Peer(resident.socket) as peer:
                peer.send(request())
                resident.signal(signal.SIGHUP)
                resident.signal(signal.SIGTERM)
                connection.execute("ROLLBACK")
                assert peer.action() == DEFERRED
        assert resident.end() == 0


# --- settings -------------------------------------------------------------------------------------


def test_settings_are_read_again(start: Start, conf: Path) -> None:
    resident = with_file(start, conf)
    with resident.peer() as peer:
        assert peer.ask() == DEFERRED
        conf.write_text("delay = 1m\n")
        assert peer.ask(sender="b@example.org") == DEFERRED
        resident.reread()
        assert peer.ask(sender="c@example.org") == DEFERRED.replace("300", "60")
        assert peer.ask(sender="d@example.org", GREYCHECK_DELAY="2m") == DEFERRED.replace(
            "300", "120"
        )
    assert resident.lines[-3] == "greycheck: note settings read again"


def test_requests_with_settings_of_their_own_are_laid_over_the_file_as_it_was_read(
    start: Start, conf: Path
) -> None:
    """Reading it for one of them would be waiting for a disk in the middle of all others."""
    conf.write_text("delay = 3m\n")
    resident = with_file(start, conf)
    with resident.peer() as peer:
        conf.unlink()
        os.mkfifo(conf)
        assert peer.ask(GREYCHECK_STRIKES="0") == DEFERRED.replace("300", "180")
        conf.unlink()
        conf.write_text("delay = 1m\n")
        assert peer.ask(sender="b@example.org", GREYCHECK_STRIKES="1") == DEFERRED.replace(
            "300", "180"
        )
        resident.reread()
        assert peer.ask(sender="c@example.org", GREYCHECK_STRIKES="1") == DEFERRED.replace(
            "300", "60"
        )
    assert resident.warnings() == []


def test_what_a_store_keeps_of_the_settings_opens_it_anew() -> None:
    """It has the settings that it was opened with; whatever else counts is asked of the reader,
    which is new after SIGHUP.
    """
    package = Path(server.__file__).parent
    kept = [package / "pool.py", package / "file_store.py", package.parent / "store" / "server.py"]
    used = {
        name
        for path in kept
        for name in re.findall(r"\b(?:self\._)?settings\.([a-z_]+)\b", path.read_text())
    }
    used &= {setting.name for setting in settings.TABLE}
    assert used <= set(server.OF_THE_STORE)
    assert used >= {"deadline", "state_directory", "max_queue", "database"}


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_the_deadline_of_a_server_database_is_changed_too(
    start: Start, conf: Path, database: Database
) -> None:
    """And where it leaves its marks: a server that is frozen has its answer by the new one, not by
    the old one of a minute.
    """
    conf.write_text("deadline = 60s\n")
    marks = conf.parent / "marks"
    marks.mkdir()
    variables = {
        "GREYCHECK_CONFIG": str(conf),
        "GREYCHECK_DEADLINE": None,
        "GREYCHECK_STATE_DIRECTORY": None,
    }
    resident = start({"store": database, "environ": variables})
    conf.write_text(f"deadline = 1s\nstate_directory = {marks}\n")
    assert resident.ask() == DEFERRED
    resident.reread()
    assert isinstance(database, ServerDatabase)
    database.server.freeze()
    try:
        assert resident.ask(sender="b@example.org") == ACCEPTED
        assert list(marks.iterdir())
    finally:
        database.server.thaw()


def test_a_wrong_file_is_warned_of(start: Start, conf: Path) -> None:
    resident = with_file(start, conf)
    conf.write_text("delay = soon\ndealy = 1m\n")
    resident.reread()
    assert resident.ask() == DEFERRED
    assert resident.warnings() == [
        f"{conf}:1: delay = soon: not a duration (as 90, 90s, 5m, 24h or 36d); using 5m",
        f"{conf}:2: dealy: no such setting: did you mean delay?",
    ]
    conf.unlink()
    resident.reread(2)
    assert resident.warnings()[2:] == [f"{conf}: No such file or directory"]
    assert resident.ask() == DEFERRED


def test_a_file_that_became_a_pipe_is_not_waited_for(start: Start, conf: Path) -> None:
    resident = with_file(start, conf)
    conf.unlink()
    os.mkfifo(conf)
    resident.reread()
    assert resident.ask() == DEFERRED
    writer = os.open(conf, os.O_RDWR | os.O_NONBLOCK)
    try:
        resident.reread(2)
        assert resident.ask(sender="b@example.org") == DEFERRED
    finally:
        os.close(writer)
    assert resident.warnings() == [f"{conf}: Resource temporarily unavailable"]


def test_another_file_of_the_database_is_used_from_then_on(
    start: Start, place: Path, conf: Path
) -> None:
    conf.write_text(f"database = {place}/greycheck.db\n")
    resident = start({"environ": {"GREYCHECK_CONFIG": str(conf), "GREYCHECK_DATABASE": None}})
    assert resident.ask() == DEFERRED
    resident.age(100)
    conf.write_text(f"database = {place}/other.db\n")
    with resident.peer() as peer:
        with locked(file_of(resident)):
            peer.send(request(sender="b@example.org"))
            assert resident.ask(protocol_state="DATA") == ACCEPTED
            resident.signal(signal.SIGHUP)
        assert peer.action() == DEFERRED
        resident.wait_for("settings read again")
        assert peer.ask() == DEFERRED
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(2,)]
    assert SQLiteFile(place / "other.db").rows("SELECT count(*) FROM triplet") == [(1,)]
    assert not Path(f"{place}/greycheck.db-wal").exists()


@pytest.mark.parametrize(
    "line",
    [
        "database = {place}/none/greycheck.db",
        "database = {place}/conf",
        "database = postgresql://nobody:secret@127.0.0.1:1/none?connect_timeout=1",
        "database = greycheck.db",
        "database_file = {place}/none",
    ],
)
def test_a_broken_database_is_not_changed_to(
    start: Start, place: Path, conf: Path, line: str
) -> None:
    conf.write_text(f"database = {place}/greycheck.db\n")
    resident = start({"environ": {"GREYCHECK_CONFIG": str(conf), "GREYCHECK_DATABASE": None}})
    assert resident.ask() == DEFERRED
    conf.write_text(line.format(place=place) + "\ndelay = 1m\n")
    resident.signal(signal.SIGHUP)
    resident.wait_for(": the settings stay as they were")
    assert resident.ask(sender="b@example.org") == DEFERRED
    assert "secret" not in resident.log()
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(2,)]


def test_what_takes_a_restart_is_named(start: Start, conf: Path) -> None:
    resident = with_file(start, conf)
    conf.write_text("socket_mode = 0666\nlisten = 127.0.0.1:10023\n")
    resident.reread()
    assert resident.warnings() == ["socket_mode, listen: takes a restart"]


def test_limits_are_changed_too(start: Start, conf: Path) -> None:
    resident = with_file(start, conf)
    conf.write_text("max_connections = 2\nmax_request = 1024\n")
    resident.reread()
    with resident.peer() as peer:
        peer.send(request(policy_context="x" * 1024))
        assert peer.is_closed()
    peers = [resident.peer() for _ in range(3)]
    assert peers[2].ask() == DEFERRED
    assert peers[0].is_closed()
    for each in peers:
        each.close()


def test_many_signals_are_as_one(start: Start) -> None:
    resident = start()
    for _ in range(200):
        resident.signal(signal.SIGHUP)
    assert resident.ask() == DEFERRED
    resident.wait_for("settings read again")


# --- systemd --------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def notified(request: pytest.FixtureRequest, place: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens as systemd does, and its address in NOTIFY_SOCKET."""
    address = f"{place}/notify" if request.param == "path" else f"@{place}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(address.replace("@", "\0"))
        found.settimeout(60)
        yield found, address


def test_systemd_is_told_how_it_stands(start: Start, notified: tuple[socket.socket, str]) -> None:
    told, address = notified
    resident = start({"environ": {"NOTIFY_SOCKET": address}})
    assert told.recv(1000) == b"READY=1"
    resident.reread()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]{6,}", told.recv(1000))
    assert told.recv(1000) == b"READY=1"
    assert resident.stop() == 0
    assert told.recv(1000) == b"STOPPING=1"


def test_systemd_is_told_that_it_is_ready_where_reading_again_failed(
    start: Start, place: Path, conf: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"{place}/notify")
        told.settimeout(60)
        conf.write_text(f"database = {place}/greycheck.db\n")
        variables = {
            "NOTIFY_SOCKET": f"{place}/notify",
            "GREYCHECK_CONFIG": str(conf),
            "GREYCHECK_DATABASE": None,
        }
        resident = start({"environ": variables})
        conf.write_text("database = nowhere\n")
        resident.signal(signal.SIGHUP)
        assert [told.recv(1000)[:9] for _ in range(3)] == [b"READY=1", b"RELOADING", b"READY=1"]


def test_nobody_who_listens_is_no_obstacle(start: Start, place: Path) -> None:
    assert start({"environ": {"NOTIFY_SOCKET": f"{place}/none"}}).ask() == DEFERRED
    with Peer(place / "socket") as peer:
        assert peer.ask(sender="b@example.org") == DEFERRED
