"""What peers may do to the resident: it goes on, in bounded memory, and serves the others."""

import os
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Peer, Resident, request
from tests.servers import wait_until

# Bytes by which a resident may grow while it is being pestered: what few thousand peers may cost,
# and what Python keeps for itself.
GROWTH = 48 << 20


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for thousands of connections in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pester(peer: Peer, data: bytes, most: int) -> int:
    """Sends DATA again and again until the resident closes or MOST bytes are sent; how many
    were.
    """
    sent = 0
    try:
        while sent < most:
            sent += peer.socket.send(data)
    except ConnectionError:
        pass
    return sent


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"x" * 65536, b"x=y\n" * 16384, b"\0" * 65536], ids=["line", "lines", "zeros"]
)
def test_an_endless_request_is_cut_off(resident: Resident, data: bytes) -> None:
    before = resident.memory
    with resident.peer() as peer:
        assert pester(peer, data, 1 << 30) < 4 << 20
    assert resident.warnings() == [f"{resident.socket}: a request longer than 16384 bytes"]
    assert resident.memory - before < GROWTH
    assert resident.ask() == DEFERRED


def test_a_request_may_be_as_long_as_the_setting_says(start: Start) -> None:
    resident = start(max_request="2048")
    short = len(request(policy_context=""))
    assert resident.ask(policy_context="x" * (2048 - short)) == DEFERRED
    with resident.peer() as peer:
        peer.send(request(policy_context="x" * (2049 - short)))
        assert peer.is_closed()
    with resident.peer() as peer:
        peer.send(request(policy_context="x" * 4000) + request())
        assert peer.is_closed()
    assert len(resident.verdicts) == 1


def test_many_requests_in_one_write_may_be_longer_than_one(resident: Resident) -> None:
    with resident.peer() as peer:
        peer.send(request(protocol_state="DATA", policy_context="x" * 1000) * 200)
        assert [peer.action() for _ in range(200)] == [ACCEPTED] * 200


def test_garbage_is_no_obstacle(resident: Resident) -> None:
    rolled = random.Random(5)
    before = resident.memory
    for _ in range(200):
        with resident.peer() as peer:
            pester(peer, rolled.randbytes(rolled.choice([1, 100, 5000, 40000])), 1)
    assert resident.ask() == DEFERRED
    assert resident.memory - before < GROWTH


def test_warnings_are_so_many_a_second(start: Start) -> None:
    resident = start()

    def complain() -> bool:
        for _ in range(200):
            with resident.peer() as peer:
                peer.send(b"junk\n\n")
                assert peer.is_closed()
        return " more like these" in resident.log()

    wait_until(complain, "a second is over", resident.log)
    counted = [line for line in resident.warnings() if line.endswith("a line without =")]
    assert 10 <= len(counted) <= 200


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_descriptors")
def test_the_connection_that_was_idle_longest_gives_way(start: Start) -> None:
    resident = start()
    before = resident.memory
    peers = [resident.peer() for _ in range(2500)]
    assert peers[1000].ask() == DEFERRED
    assert resident.ask(sender="b@example.org") == DEFERRED
    more = [resident.peer() for _ in range(600)]
    assert more[-1].ask() == DEFERRED
    assert peers[1000].ask() == DEFERRED, "who asked a moment ago stays"
    assert peers[0].is_closed()
    assert peers[500].is_closed()
    assert peers[-1].ask() == DEFERRED
    assert resident.memory - before < GROWTH
    for peer in peers + more:
        peer.close()
    assert "2000 connections: the one that was idle longest is closed" in resident.warnings()[0]


@pytest.mark.usefixtures("many_descriptors")
def test_thousands_of_half_requests_cost_little_memory(resident: Resident) -> None:
    before = resident.memory
    peers = []
    for number in range(1900):
        peers.append(resident.peer())
        peers[-1].send(request(sender=f"{number}@example.org")[:-1] + b"x" * 4000)
    assert resident.ask() == DEFERRED
    assert resident.memory - before < GROWTH
    for peer in peers:
        peer.close()
    assert resident.ask() == DEFERRED


def test_the_limit_is_what_the_kernel_allows(start: Start) -> None:
    resident = start({"before": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))})
    peers = [resident.peer() for _ in range(100)]
    assert peers[-1].ask() == DEFERRED
    assert resident.ask(sender="b@example.org") == DEFERRED
    assert peers[0].is_closed()
    for peer in peers:
        peer.close()
    assert "16 connections: the one that was idle longest is closed" in resident.warnings()[0]


def test_the_soft_limit_is_raised(start: Start) -> None:
    resident = start({"before": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 4096))})
    peers = [resident.peer() for _ in range(200)]
    assert [peer.ask(protocol_state="DATA") for peer in peers] == [ACCEPTED] * 200
    for peer in peers:
        peer.close()


def test_a_connection_beyond_the_limit_is_not_taken_where_all_wait_for_answers(
    start: Start,
) -> None:
    resident = start(max_connections="3")
    with resident.store.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        peers = [resident.peer() for _ in range(3)]
        for peer in peers:
            peer.send(request())
        # Once it has read its settings again, it has read what was sent before.
        resident.reread()
        with resident.peer() as beyond:
            assert beyond.is_closed()
        connection.exec_driver_sql("ROLLBACK")
    assert [peer.action() for peer in peers] == [DEFERRED] * 3
    assert f"{resident.socket}: 3 connections wait for answers: not taken" in resident.warnings()
    for peer in peers:
        peer.close()


def test_connecting_and_leaving_is_no_obstacle(resident: Resident) -> None:
    before = resident.memory
    for number in range(5000):
        peer = resident.peer()
        if number % 3 == 0:
            peer.send(b"request=")
        if number % 5 == 0:
            peer.socket.shutdown(socket.SHUT_RDWR)
        peer.close()
    assert resident.ask() == DEFERRED
    assert resident.memory - before < GROWTH
    assert resident.warnings() == []


# --- time -----------------------------------------------------------------------------------------


def test_who_does_not_finish_his_request_is_left(start: Start) -> None:
    resident = start(request_time="1s")
    with resident.peer() as peer, resident.peer() as other:
        peer.send(request()[:-1])
        assert other.ask() == DEFERRED
        assert peer.is_closed()
        assert other.ask(sender="b@example.org") == DEFERRED, "who asks nothing has more time"
    assert resident.warnings() == [f"{resident.socket}: has not finished its request within 1s"]


def test_who_sends_byte_after_byte_is_left_too(start: Start) -> None:
    resident = start(request_time="1s")
    with resident.peer() as peer:
        peer.send(b"request=")
        peer.socket.settimeout(0.05)

        def is_left() -> bool:
            try:
                peer.send(b"x")
                return peer.is_closed()
            except ConnectionError:
                return True
            except TimeoutError:
                return False

        wait_until(is_left, "it is left", resident.log)


def test_who_takes_no_answers_is_left(start: Start) -> None:
    resident = start(request_time="1s")
    before = resident.memory
    with resident.peer() as peer, resident.peer() as other:
        assert pester(peer, request(GREYCHECK_DEFER_TEXT="x" * 8000) * 4, 1 << 30) < 64 << 20
        assert other.ask(sender="b@example.org") == DEFERRED
    assert f"{resident.socket}: takes no answer within 1s" in resident.warnings()
    assert resident.memory - before < GROWTH


def test_who_takes_his_answers_slowly_gets_them_all(resident: Resident) -> None:
    with resident.peer() as peer:
        peer.socket.setblocking(False)
        sent = 0
        unsent = request(GREYCHECK_DEFER_TEXT="x" * 8000) * 200
        while unsent:
            try:
                count = peer.socket.send(unsent)
            except BlockingIOError:
                break
            unsent, sent = unsent[count:], sent + count
        assert unsent, "the resident reads on though nobody takes its answers"
        peer.socket.setblocking(True)
        # From here on, each answer makes room for a request.
        for number in range(200):
            assert peer.action() == "DEFER_IF_PERMIT 4.2.0 " + "x" * 8000, number
            while unsent:
                try:
                    unsent = unsent[peer.socket.send(unsent, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    break


def test_who_asks_nothing_is_left_after_a_while(start: Start) -> None:
    resident = start(idle_time="1s")
    with resident.peer() as peer:
        assert peer.ask() == DEFERRED
        assert peer.is_closed()
    assert resident.warnings() == []


# --- the log --------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with suppress(OSError):
            os.close(descriptor)


def fill(writer: int) -> None:
    """Fills the pipe behind WRITER."""
    os.set_blocking(writer, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writer, b"\n" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)


def test_a_stuck_log_stops_nobody_and_is_told_what_it_lost(
    start: Start, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    fill(writer)
    resident = start({"log": writer})
    os.close(writer)
    before = resident.memory
    with resident.peer() as peer:
        for number in range(12000):
            assert peer.ask(sasl_username="x", sender=f"{number}@example.org") == ACCEPTED
    assert resident.memory - before < GROWTH
    os.set_blocking(reader, False)
    came = bytearray()
    later = []

    def is_told() -> bool:
        try:
            came.extend(os.read(reader, 1 << 20))
        except BlockingIOError:
            later.append(resident.ask(sasl_username="x", sender="last@example.org"))
        return b"<last@" in came

    wait_until(is_told, "the log is taken", lambda: came[-1000:].decode())
    lost, first, *lines = came.decode().lstrip("\n").splitlines()
    assert lost.startswith("greycheck: warning the log took nothing: ")
    assert first.startswith("greycheck: note listening on ")
    kept = [line for line in lines if "@example.org>" in line and "<last@" not in line]
    assert all(line.startswith("greycheck: accept reason=exempt ") for line in kept)
    assert "<0@example.org>" in kept[0]
    assert 12000 <= len(kept) + int(lost.split()[-3]) <= 12000 + len(later)


def test_a_stuck_log_does_not_hold_up_the_end(start: Start, pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    resident = start({"log": pipe[1]})
    assert resident.ask() == DEFERRED
    assert resident.stop() == 0


def test_a_dead_log_stops_nobody(start: Start, pipe: tuple[int, int]) -> None:
    resident = start({"log": pipe[1]})
    os.close(pipe[0])
    os.close(pipe[1])
    assert resident.ask() == DEFERRED
    resident.age(300)
    assert resident.ask() == ACCEPTED


def test_a_closed_log_is_no_file_of_another_use(start: Start) -> None:
    def close_all() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    resident = start({"before": close_all})
    assert resident.ask() == DEFERRED
    for descriptor in (0, 1, 2):
        assert os.readlink(f"/proc/{resident.process.pid}/fd/{descriptor}") == "/dev/null"
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(1,)]
