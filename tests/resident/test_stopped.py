"""A resident that was stopped for a while, by a signal, a lack of memory or a lid: what it was
asked meanwhile is counted once, or not.
"""

import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from greycheck.resident.connections import TAKEN
from greycheck.resident.events import DOUBT
from greycheck.resident.peers import Peer as Kept
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Peer, Resident, request
from tests.resident.spawned import Spawned
from tests.resident.test_unforeseen import OF_SENDER, faulty
from tests.servers import wait_until
from tests.support import DEFERRED as EXIT_DEFERRED
from tests.support import REJECTED as EXIT_REJECTED
from tests.support import Child, Database, Ran, SQLiteFile, on_every_database

GONE = "nobody waits for the answer any more: not decided"
EARLY = "DEFER_IF_PERMIT 4.2.0 greylisted, please try again in "
COUNTS = "SELECT sender, early_attempts, passes FROM triplet ORDER BY sender"

# Long enough for the resident to know that it was stopped, and for a native child to give up.
LONG = DOUBT + 1


def is_stopped(pid: int) -> bool:
    return " T " in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]


@contextmanager
def stopped(process: Resident | Spawned) -> Iterator[None]:
    """The process is stopped."""
    process.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(process.process.pid), "it is stopped")
    try:
        yield
    finally:
        process.process.send_signal(signal.SIGCONT)


def native(natives: Path, resident: Resident, **more: str) -> Callable[[str], Ran]:
    """A native child of RESIDENT, called with a sender, that waits for a second."""
    child = Child(natives, resident.store, resident.socket)
    return lambda sender: child.smtpextfork(sender, GREYCHECK_SOCKET_PATIENCE="1s", **more)


@on_every_database
@pytest.mark.parametrize("delay", ["300s", "2s"])
def test_what_children_gave_up_on_is_not_decided_again(
    start: Start, database: Database, natives: Path, delay: str
) -> None:
    resident = start({"store": database}, delay=delay)
    ask = native(natives, resident, GREYCHECK_DELAY=delay)
    senders = [f"{number}@example.org" for number in range(4)]
    with stopped(resident):
        with ThreadPoolExecutor(4) as pool:
            assert {ran.verdict for ran in pool.map(ask, senders)} == {(EXIT_DEFERRED, "new")}
        # A retry that never was would pass by now.
        time.sleep(LONG)
    assert resident.reasons() == []
    assert resident.warnings() == [f"{resident.socket}: {GONE}"] * 4
    assert resident.store.rows(COUNTS) == [(sender, 0, 0) for sender in senders]
    assert resident.store.rows("SELECT * FROM client") == []


@on_every_database
def test_they_make_no_strikes(start: Start, database: Database, natives: Path) -> None:
    strikes = {"strikes": "2", "strike_interval": "60s"}
    resident = start({"store": database}, **strikes)
    ask = native(natives, resident, GREYCHECK_STRIKES="2", GREYCHECK_STRIKE_INTERVAL="60s")
    with stopped(resident):
        assert ask("a@example.org").verdict == (EXIT_DEFERRED, "new")
        time.sleep(2)
        assert ask("a@example.org").verdict == (EXIT_DEFERRED, "early")
    assert resident.reasons() == []
    assert resident.store.rows(COUNTS) == [("a@example.org", 1, 0)]
    assert resident.store.rows("SELECT strikes, struck_until FROM client") == [(1, 0)]
    time.sleep(2)
    assert ask("a@example.org").verdict == (EXIT_REJECTED, "strikes")


def test_more_than_one_turn_takes_are_left_alone_too(start: Start) -> None:
    resident = start()
    with stopped(resident):
        for number in range(3 * TAKEN):
            with resident.peer() as peer:
                peer.send(request(greycheck_hook="checkenv", sender=f"{number}@example.org"))
        time.sleep(LONG)
    assert resident.ask() == DEFERRED
    assert resident.reasons() == ["new"]
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(1,)]


# --- when an attempt was made ---------------------------------------------------------------------


@on_every_database
def test_an_attempt_counts_from_when_its_child_made_it(start: Start, database: Database) -> None:
    resident = start({"store": database}, delay="60s", strikes="1", strike_interval="300s")
    made = int(time.time()) - 50
    assert resident.ask_as("smtpextfork", greycheck_time=str(made))["exit"] == "101"
    assert resident.store.rows("SELECT first_attempt, last_attempt FROM triplet") == [(made, made)]
    # The same one, that somebody has counted by now.
    assert resident.ask_as("smtpextfork", greycheck_time=str(made + 1))["exit"] == "101"
    assert resident.store.rows("SELECT early_attempts FROM triplet") == [(0,)]
    assert resident.store.rows("SELECT * FROM client") == []
    resident.age(20)
    assert "reason=early" in resident.ask_as("checkenv", greycheck_time=str(made - 20))["log"]
    assert "reason=retry" in resident.ask_as("checkenv", greycheck_time=str(made + 49))["log"]


@pytest.mark.parametrize("told", ["", "-5", "x", "9" * 50, "0", "1e3", "{future}", "{old}"])
def test_a_time_that_cannot_be_is_not_believed(resident: Resident, told: str) -> None:
    now = int(time.time())
    resident.ask_as("smtpextfork", greycheck_time=told.format(future=now + 60, old=now - 3600))
    [(first,)] = resident.store.rows("SELECT first_attempt FROM triplet")
    assert isinstance(first, int)
    assert now <= first <= time.time()


def test_only_a_native_child_may_say_when(start: Start, place: Path) -> None:
    resident = start(listen="127.0.0.1:0")
    now = int(time.time())
    port = int(resident.log().partition("127.0.0.1:")[2].split()[0].rstrip(","))
    with Peer(("127.0.0.1", port)) as peer:
        peer.send(request(greycheck_hook="smtpextfork", greycheck_time=str(now - 50)))
        peer.answer()
    assert resident.ask(sender="b@example.org", greycheck_time=str(now - 50)) == DEFERRED
    assert all(
        int(str(first)) >= now
        for (first,) in resident.store.rows("SELECT first_attempt FROM triplet")
    )


def test_an_answer_that_comes_as_the_child_gives_up_is_one_attempt(
    start: Start, launchers: Path
) -> None:
    """Both have decided, whoever was first."""
    resident = start(strikes="1", strike_interval="300s")
    child = Child(launchers, resident.store)
    for order in ("resident", "child"):
        sender = f"{order}@example.org"
        made, started = int(time.time()), f"{(time.monotonic() - 5) * 1000:.0f}"
        for _ in range(2):
            if order == "resident":
                resident.ask_as("smtpextfork", sender=sender, greycheck_time=str(made - 5))
            ran = child.smtpextfork(
                sender, _GREYCHECK_STARTED=started, GREYCHECK_DEADLINE="60s", GREYCHECK_STRIKES="1"
            )
            assert ran.code == EXIT_DEFERRED
            if order == "child":
                resident.ask_as("smtpextfork", sender=sender, greycheck_time=str(made - 5))
    assert resident.store.rows(COUNTS) == [
        ("child@example.org", 0, 0),
        ("resident@example.org", 0, 0),
    ]
    assert resident.store.rows("SELECT * FROM client") == []


# --- mail servers ---------------------------------------------------------------------------------


@pytest.fixture(params=["unix", "inet"])
def kind(request: pytest.FixtureRequest) -> str:
    """By which kind of socket a mail server asks."""
    return str(request.param)


def serving(
    start: Start, kind: str, store: Database, **settings: str
) -> tuple[Resident, Callable[[], Peer]]:
    """A resident, and what connects to it by a socket of KIND."""
    resident = start({"store": store}, listen="127.0.0.1:0", **settings)
    port = int(resident.log().partition("127.0.0.1:")[2].split()[0].rstrip(","))
    return resident, resident.peer if kind == "unix" else lambda: Peer(("127.0.0.1", port))


@on_every_database
def test_mail_servers_that_gave_up_and_those_that_wait(
    start: Start, database: Database, kind: str
) -> None:
    resident, connect = serving(start, kind, database)
    known = [connect() for _ in range(2)]
    for each in known:
        assert each.ask(protocol_state="DATA") == ACCEPTED
    with stopped(resident):
        new = [connect() for _ in range(4)]
        peers = dict(
            zip(
                ("left", "waits", "left-new", "waits-new", "exim-left", "exim-waits"),
                [*known, *new],
                strict=True,
            )
        )
        for name, peer in peers.items():
            peer.send(request(sender=f"{name}@example.org"))
            if name.startswith("exim"):
                peer.socket.shutdown(socket.SHUT_WR)
        asked = time.time()
        time.sleep(LONG)
        for name, peer in peers.items():
            if "left" in name:
                peer.close()
    waiting = {name: peer for name, peer in peers.items() if "waits" in name}
    for name, peer in waiting.items():
        assert peer.action() == DEFERRED, name
        peer.close()
    assert sorted(resident.reasons()) == ["new"] * 3
    found = {
        str(sender): first
        for sender, first in resident.store.rows("SELECT sender, first_attempt FROM triplet")
    }
    assert sorted(found) == sorted(f"{name}@example.org" for name in waiting)
    for first in found.values():
        assert isinstance(first, int)
        # Idle, it looks once in a second; on a busy machine it may hear of them a moment later.
        assert asked - 3 < first < asked + LONG / 2


@on_every_database
def test_a_retry_that_came_too_early_does_not_pass_because_it_waited(
    start: Start, database: Database, kind: str
) -> None:
    resident, connect = serving(
        start, kind, database, delay="4s", strikes="1", strike_interval="60s"
    )
    with connect() as peer:
        assert peer.ask().startswith("DEFER")
        with stopped(resident):
            peer.send(request())
            time.sleep(5)
        assert peer.action().startswith(EARLY)
    assert resident.reasons() == ["new", "early"]
    assert resident.store.rows(
        "SELECT count(*) FROM client WHERE passes > 0 OR struck_until > 0"
    ) == [(0,)]


def test_who_was_answered_before_is_no_worse_for_it(start: Start) -> None:
    resident = start()
    with resident.peer() as peer:
        for _ in range(2):
            with stopped(resident):
                time.sleep(LONG)
            assert peer.ask() in (DEFERRED, EARLY + "300 seconds") or peer.ask().startswith(EARLY)
    assert resident.warnings() == []


# --- what waits in the resident -------------------------------------------------------------------


def test_what_waits_for_a_lock_is_not_written_for_who_has_given_up(
    start: Start, natives: Path
) -> None:
    resident = start(deadline="60s", strikes="1")
    assert isinstance(resident.store, SQLiteFile)
    ask = native(natives, resident, GREYCHECK_DEADLINE="60s", GREYCHECK_STRIKES="1")
    with (
        closing(sqlite3.connect(resident.store.path, isolation_level=None)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("BEGIN IMMEDIATE")
        asking = pool.submit(ask, "a@example.org")
        with resident.peer() as peer:
            peer.send(request(sender="b@example.org"))
            time.sleep(LONG)
            other.execute("ROLLBACK")
            assert asking.result().verdict == (EXIT_DEFERRED, "new")
            assert peer.action() == DEFERRED
    assert resident.reasons() == ["new"]
    assert resident.store.rows(COUNTS) == [("a@example.org", 0, 0), ("b@example.org", 0, 0)]


def test_to_be_stopped_while_it_decides_is_no_fault_of_the_store(start: Start) -> None:
    stop = "import signal; os.kill(os.getpid(), signal.SIGSTOP)"
    resident = start(faulty("greycheck.check", "finish", OF_SENDER, stop), deadline="2s")
    with resident.peer() as peer:
        for _ in range(2):
            peer.send(request(sender="boom@example.org"))
            wait_until(lambda: is_stopped(resident.process.pid), "it is stopped")
            time.sleep(3)
            resident.signal(signal.SIGCONT)
            assert peer.action().startswith("DEFER")
    assert resident.process.poll() is None


@on_every_database
def test_a_process_of_its_own_for_each_smtpd_decides_nothing_for_who_has_left(
    database: Database,
) -> None:
    database.make()
    with Spawned(database, {"deadline": "60s"}) as spawned:
        assert spawned.ask() == DEFERRED
        with stopped(spawned):
            spawned.send(request(sender="left@example.org"))
            spawned.socket.close()
    assert spawned.process.returncode == 0
    assert database.rows("SELECT count(*) FROM triplet") == [(1,)]
    assert GONE in spawned.log_file.read_text()


def test_it_is_told_apart_who_left_and_who_only_sends_no_more() -> None:
    for half in (False, True):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            kept = Kept(ours.fileno(), "", is_local=True)
            theirs.sendall(b"a=b\n\n")
            assert not kept.has_left()
            if half:
                theirs.shutdown(socket.SHUT_WR)
            else:
                theirs.close()
            assert kept.has_shut()
            assert kept.has_left() is not half
            assert kept.read(100)
            assert kept.has_left() is not half
