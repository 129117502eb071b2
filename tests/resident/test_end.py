"""SIGTERM under load: what has reached a socket is answered, by this resident or by the one that
systemd starts next.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from greycheck.resident.connections import GRACE, TAKEN
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Closed, Peer, Resident, request
from tests.resident.test_sockets import handed
from tests.resident.test_stopped import serving, stopped
from tests.servers import wait_until
from tests.support import Child, SQLiteFile


@pytest.fixture(params=["unix", "inet"])
def kind(request: pytest.FixtureRequest) -> str:
    """By which kind of socket it is asked."""
    return str(request.param)


@pytest.fixture
def store(place: Path, empty_store: Path) -> SQLiteFile:
    return SQLiteFile(place / "greycheck.db", empty_store)


def test_all_that_wait_to_be_taken_are_answered(start: Start, store: SQLiteFile, kind: str) -> None:
    resident, connect = serving(start, kind, store)
    with ExitStack() as connected:
        with stopped(resident):
            peers = [connected.enter_context(connect()) for _ in range(4 * TAKEN)]
            for number, peer in enumerate(peers):
                peer.send(request(sender=f"{number}@example.org"))
            resident.signal(signal.SIGTERM)
        assert {peer.action() for peer in peers} == {DEFERRED}
    assert resident.end() == 0
    assert len(resident.log().split(" reason=new ")) == len(peers) + 1


def test_more_than_may_be_connected_are_taken_one_after_the_other(
    start: Start, store: SQLiteFile, kind: str
) -> None:
    resident, connect = serving(start, kind, store, max_connections="10")
    with ExitStack() as connected:
        with stopped(resident):
            peers = [connected.enter_context(connect()) for _ in range(50)]
            for number, peer in enumerate(peers):
                peer.send(request(sender=f"{number}@example.org"))
            resident.signal(signal.SIGTERM)
        assert {peer.action() for peer in peers} == {DEFERRED}
    assert resident.end() == 0


def begins_to_end(resident: Resident, connect: Callable[[], Peer]) -> None:
    """RESIDENT has heeded SIGTERM."""

    def refuses() -> bool:
        try:
            connect().close()
        except OSError:
            return True
        return False

    resident.signal(signal.SIGTERM)
    wait_until(refuses, "nobody is taken any more")


@pytest.mark.parametrize("sent", [0, 1, 50, -1])
def test_a_request_that_was_begun_may_be_finished(start: Start, sent: int) -> None:
    resident = start()
    whole = request()
    with resident.peer() as peer:
        peer.send(whole[:sent])
        assert resident.ask(protocol_state="DATA") == ACCEPTED
        begins_to_end(resident, resident.peer)
        peer.send(whole[sent:])
        assert peer.action() == DEFERRED
        assert peer.is_closed()
    assert resident.end() == 0


def test_who_does_not_go_on_is_not_waited_for_without_end(start: Start) -> None:
    resident = start()
    with resident.peer() as silent, resident.peer() as slow:
        slow.send(request()[:-1])
        assert resident.ask(protocol_state="DATA") == ACCEPTED
        began = time.monotonic()
        assert resident.stop() == 0
        assert time.monotonic() - began > GRACE / 2
        assert silent.is_closed()
        assert slow.is_closed()


def test_several_requests_at_once_are_all_answered(
    start: Start, store: SQLiteFile, kind: str
) -> None:
    resident, connect = serving(start, kind, store)
    with connect() as peer:
        assert peer.ask(protocol_state="DATA") == ACCEPTED
        with stopped(resident):
            peer.send(b"".join(request(sender=f"{number}@example.org") for number in range(20)))
            resident.signal(signal.SIGTERM)
        assert [peer.action() for _ in range(20)] == [DEFERRED] * 20
        assert peer.is_closed()
    assert resident.end() == 0


def test_who_asks_too_late_is_told_so_as_he_asks(start: Start) -> None:
    """So that nothing reaches a resident that does not answer it."""
    resident = start()
    with resident.peer() as peer:
        assert peer.ask() == DEFERRED
        assert resident.stop() == 0
        with pytest.raises(BrokenPipeError):
            peer.send(request())


def test_what_waits_at_a_supervisors_socket_is_left_to_the_next(place: Path) -> None:
    with ExitStack() as opened:
        sockets = [
            opened.enter_context(socket.socket(family))
            for family in (socket.AF_UNIX, socket.AF_INET)
        ]
        sockets[0].bind(str(place / "activated"))
        sockets[1].bind(("127.0.0.1", 0))
        for each in sockets:
            each.listen(1024)
        addresses = (place / "activated", sockets[1].getsockname())
        peers: list[Peer] = []
        for turn in range(2):
            resident = handed(place, *sockets)
            with Peer(addresses[0]) as peer:
                assert peer.ask(protocol_state="DATA") == ACCEPTED
            with stopped(resident):
                for address in addresses:
                    peers += [opened.enter_context(Peer(address)) for _ in range(2 * TAKEN)]
                resident.signal(signal.SIGTERM)
                for number, peer in enumerate(peers[4 * TAKEN * turn :]):
                    peer.send(request(sender=f"{turn}.{number}@example.org"))
            assert resident.end() == 0
        with handed(place, *sockets):
            with Peer(addresses[0]) as peer:
                assert peer.ask(protocol_state="DATA") == ACCEPTED
            assert {peer.action() for peer in peers} == {DEFERRED}


# --- under load -----------------------------------------------------------------------------------

CYCLES = 12


class Asking:
    """Threads that ask, each as ONE does, until all is over; what was lost is whatever was sent and
    not answered.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answered = 0
        self.refused = 0
        self.lost: list[str] = []
        self._lock = threading.Lock()

    def count(self, answered: int = 0, refused: int = 0, lost: str = "") -> None:
        with self._lock:
            self.answered += answered
            self.refused += refused
            self.lost += [lost] if lost else []

    @contextmanager
    def by(self, *works: Callable[[int], None]) -> Iterator[None]:
        threads = [
            threading.Thread(target=work, args=[number]) for number, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def keeps_asking(
        self, number: int, connect: Callable[[], Peer], times: int, is_strict: bool = True
    ) -> None:
        """Asks so many TIMES on one connection.

        Not STRICT: as Postfix does, who knows that one may end between two requests.
        """
        each = 0
        while not self.over.is_set():
            try:
                peer = connect()
            except OSError:
                self.count(refused=1)
                self.over.wait(0.005)
                continue
            with peer:
                for turn in range(times):
                    each += 1
                    try:
                        peer.send(request(sender=f"{number}.{each}@peer.example"))
                    except OSError:
                        self.count(refused=1)
                        break
                    try:
                        peer.answer()
                    except Closed as closed:
                        if is_strict or turn == 0 or closed.args[0]:
                            self.count(
                                lost=f"{number}: request {turn} of a connection: {closed.args[0]!r}"
                            )
                        break
                    self.count(answered=1)


def test_no_request_is_lost_when_it_is_started_anew_again_and_again(
    place: Path, store: SQLiteFile, natives: Path
) -> None:
    store.make()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    asking = Asking()
    child = Child(natives, store, place / "socket")
    said: list[str] = []

    def children(number: int) -> None:
        each = 0
        while not asking.over.is_set():
            each += 1
            ran = child.smtpextfork(
                f"{number}.{each}@child.example",
                GREYCHECK_DEADLINE="60s",
                GREYCHECK_NETWORK_LIMIT="0",
            )
            said.append(ran.lines[0])
            if ran.verdict != (101, "new"):
                asking.count(lost=ran.log)

    def by_unix() -> Peer:
        return Peer(place / "socket")

    def by_inet() -> Peer:
        return Peer(address)

    works = [
        children,
        children,
        lambda number: asking.keeps_asking(number, by_unix, 1),
        lambda number: asking.keeps_asking(number, by_unix, 50),
        lambda number: asking.keeps_asking(number, by_inet, 1),
        lambda number: asking.keeps_asking(number, by_inet, 50, is_strict=False),
    ]
    settings = {
        "listen": f"127.0.0.1:{address[1]}",
        "deadline": "60s",
        "client_passes": "0",
        "network_limit": "0",
    }
    with asking.by(*works):
        for _ in range(CYCLES):
            resident = Resident(place, settings, store).wait()
            answered = asking.answered
            wait_until(lambda: asking.answered > answered + 30, "they are answered")  # noqa: B023
            assert resident.stop() == 0
    assert asking.lost == []
    assert asking.refused > 0
    # Where it could not be asked it was not there, or said so before it had the request.
    assert [line for line in said if "makes no sense" in line or "no answer in time" in line] == []
    assert [line for line in said if "closed without an answer" in line] == []
