"""The resident killed under load: no row that was answered is lost, no mail gets a wrong verdict,
and children go on by themselves.
"""

import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.load import Load
from tests.resident.resident import ACCEPTED, DEFERRED, Asking, Closed, Peer, Resident
from tests.servers import wait_until
from tests.support import ACCEPTED as EXIT_ACCEPTED
from tests.support import DEFERRED as EXIT_DEFERRED
from tests.support import Child, Database, ServerDatabase, SQLiteFile, on_every_database

ALONE = ": checking without the resident"
CLOSED = "closed without an answer"


@pytest.fixture
def store(place: Path, empty_store: Path) -> SQLiteFile:
    found = SQLiteFile(place / "greycheck.db", empty_store)
    found.make()
    return found


Serve = Callable[[Database], Resident]


@pytest.fixture
def serve(place: Path) -> Iterator[Serve]:
    """Starts a resident in the place of one that was killed, or of none."""
    started: list[Resident] = []

    def start(store: Database) -> Resident:
        started.append(
            Resident(place, {"client_passes": "0", "network_limit": "0", "deadline": "20s"}, store)
        )
        return started[-1].wait()

    yield start
    for resident in started:
        resident.stop(signal.SIGKILL)


@pytest.fixture
def load(natives: Path, store: SQLiteFile, serve: Serve, place: Path) -> Load:
    """Programs in C at a steady rate, who wait for the resident as long as they do by
    themselves.
    """
    found = Load(natives, [store.url], place)
    for environ in found.environs:
        environ["GREYCHECK_SOCKET"] = str(place / "socket")
        environ["GREYCHECK_DEADLINE"] = "20s"
    found.prepare()
    return found


def senders(store: Database) -> set[str]:
    return {str(sender) for (sender,) in store.rows("SELECT sender FROM triplet")}


class Peers(Asking):
    """NUMBER peers of the resident at PLACE that ask about one new mail after the other;
    ``deferred`` is whom it has deferred.
    """

    def __init__(self, place: Path, number: int) -> None:
        super().__init__(number)
        self.socket = place / "socket"
        self.deferred: set[str] = set()
        self.wrong: list[str] = []

    def ask(self, number: int) -> None:
        each = 0
        while not self.over.is_set():
            try:
                with Peer(self.socket) as peer:
                    while not self.over.is_set():
                        each += 1
                        sender = f"{number}.{each}@peer.example"
                        action = peer.ask(sender=sender)
                        if action == DEFERRED:
                            self.deferred.add(sender)
                        else:
                            self.wrong.append(action)
            except (OSError, Closed):
                self.over.wait(0.01)


def test_kills_under_load_lose_no_row_and_no_mail(
    load: Load, store: SQLiteFile, serve: Serve, place: Path
) -> None:
    asking = Peers(place, 4)
    resident = serve(store)
    with load.going_on(), asking.going_on():
        load.calm()
        for _ in range(4):
            ended, deferred = len(load.ended), len(asking.deferred)
            wait_until(lambda: len(load.ended) > ended + 10, "children go on")  # noqa: B023
            wait_until(lambda: len(asking.deferred) > deferred + 100, "peers are answered")  # noqa: B023
            resident.stop(signal.SIGKILL)
            alone = len(load.said(ALONE))
            wait_until(lambda: len(load.said(ALONE)) > alone + 10, "children go on without it")  # noqa: B023
            resident = serve(store)
        answered = len(load.ended)
        wait_until(lambda: len(load.ended) > answered + 50, "children go on with it")
    with resident:
        found = senders(store)
        assert asking.deferred - found == set()
        assert asking.wrong == []
        assert load.lost(found) == []
        assert load.wrong() == []
        assert {one.process.returncode for one in load.ended} <= {EXIT_ACCEPTED, EXIT_DEFERRED}
        assert [
            one for one in load.ended if one.verdict[1] == "error" or "unrecorded" in one.log
        ] == []
        # Those at the end were answered by the one that runs.
        assert [one for one in load.ended[answered + 20 :] if ALONE in one.log] == []
        assert store.rows("PRAGMA integrity_check") == [("ok",)]


def test_what_was_asked_as_it_was_killed_is_asked_in_python(
    natives: Path, store: SQLiteFile, serve: Serve, place: Path
) -> None:
    resident = serve(store)
    resident.ask(sender="before@example.org")
    child = Child(natives, store, place / "socket")
    child.settings["GREYCHECK_DEADLINE"] = "60s"
    with sqlite3.connect(store.path, isolation_level=None) as other, ThreadPoolExecutor(10) as pool:
        other.execute("BEGIN IMMEDIATE")
        asking = [pool.submit(child.smtpextfork, f"{number}@example.org") for number in range(10)]
        wait_until(lambda: connections(resident.socket) == 10, "all have asked")
        resident.stop(signal.SIGKILL)
        other.execute("COMMIT")
        ended = [each.result() for each in asking]
    other.close()
    assert {ran.verdict for ran in ended} == {(EXIT_DEFERRED, "new")}
    assert {ran.lines[0] for ran in ended} == {
        f"greycheck: warning {place}/socket: {CLOSED}{ALONE}"
    }
    assert store.rows("SELECT count(*) FROM triplet") == [(11,)]


def connections(path: Path) -> int:
    """How many connections whoever listens on the unix socket PATH has taken."""
    connected = "03"
    found = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(words[5] == connected and words[-1] == str(path) for words in found)


def test_a_resident_that_hangs_costs_children_their_patience_and_no_verdict(
    natives: Path, store: SQLiteFile, serve: Serve, place: Path
) -> None:
    child = Child(natives, store, place / "socket")
    child.settings["GREYCHECK_SOCKET_PATIENCE"] = "1s"
    with serve(store) as resident:
        assert child.smtpextfork("known@example.org").lines == resident.verdicts
        store.age(300)
        resident.signal(signal.SIGSTOP)
        with ThreadPoolExecutor(8) as pool:
            ended = list(
                pool.map(lambda number: child.smtpextfork(f"{number}@example.org"), range(8))
            )
            assert child.smtpextfork("known@example.org").verdict == (EXIT_ACCEPTED, "retry")
        resident.signal(signal.SIGCONT)
        assert {ran.verdict for ran in ended} == {(EXIT_DEFERRED, "new")}
        assert {ran.lines[0] for ran in ended} == {
            f"greycheck: warning {place}/socket: no answer in time{ALONE}"
        }
        # What it reads now is about mail that was answered already.
        resident.wait_for("nobody waits for the answer any more: not decided", len(ended) + 1)
        assert resident.reasons() == ["new"]
        store.age(300)
        assert {child.smtpextfork(f"{number}@example.org").verdict for number in range(8)} == {
            (EXIT_ACCEPTED, "retry")
        }
        assert store.rows("SELECT count(*) FROM triplet") == [(9,)]


def test_another_takes_over_the_socket_of_one_that_was_killed(
    store: SQLiteFile, serve: Serve, place: Path
) -> None:
    for number in range(3):
        resident = serve(store)
        assert resident.ask(sender=f"{number}@example.org") == DEFERRED
        resident.stop(signal.SIGKILL)
        assert (place / "socket").is_socket()
    with serve(store) as resident:
        assert resident.ask(sender="0@example.org").startswith("DEFER_IF_PERMIT")
        assert resident.store.rows("SELECT count(*) FROM triplet") == [(3,)]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_kill_loses_nothing_of_a_server_database(
    database: ServerDatabase, serve: Serve, place: Path
) -> None:
    asking = Peers(place, 8)
    resident = serve(database)
    with asking.going_on():
        for turn in range(3):
            wait_until(lambda: len(asking.deferred) > 100 * turn, "peers are answered")  # noqa: B023
            resident.stop(signal.SIGKILL)
            resident = serve(database)
    with resident:
        assert asking.deferred - senders(database) == set()
        assert asking.wrong == []


# --- a crowd --------------------------------------------------------------------------------------

CHILDREN = 150


@on_every_database
def test_a_crowd_at_one_row_of_whom_the_resident_answers_half(
    database: Database, natives: Path, launchers: Path, place: Path
) -> None:
    """As in ``test_races``: one row, and one pass."""
    settings = {"deadline": "100s", "pool_networks": "0", "max_connections": str(CHILDREN + 50)}
    children = [Child(natives, database, place / "socket"), Child(launchers, database)]
    for child in children:
        child.settings |= {f"GREYCHECK_{name.upper()}": value for name, value in settings.items()}

    def crowd() -> list[tuple[int, str]]:
        with ThreadPoolExecutor(30) as pool:
            return [
                ran.verdict
                for ran in pool.map(
                    lambda number: children[number % 2].smtpextfork(), range(CHILDREN)
                )
            ]

    with Resident(place, settings, database).wait() as resident:
        first = crowd()
        assert {code for code, _ in first} == {EXIT_DEFERRED}
        assert [reason for _, reason in first].count("new") == 1
        assert {reason for _, reason in first} == {"new", "early"}
        assert database.rows("SELECT count(*), sum(passes) FROM triplet") == [(1, 0)]
        database.age(300)
        retries = crowd()
        assert {code for code, _ in retries} == {EXIT_ACCEPTED}
        assert [reason for _, reason in retries].count("retry") == 1
        assert {reason for _, reason in retries} <= {"retry", "known", "client"}
        assert database.rows("SELECT passes FROM triplet") == [(1,)]
        assert database.rows("SELECT address, passes FROM client") == [("192.0.2.1", 1)]
        assert len(resident.verdicts) == CHILDREN
        assert resident.ask() == ACCEPTED
