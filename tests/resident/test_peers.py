"""What is kept of a connection, on real sockets."""

import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from greycheck.resident.peers import Peer, TooLong


@pytest.fixture
def pair() -> Iterator[tuple[Peer, socket.socket]]:
    """The resident's end of a connection, and the other one."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield Peer(ours.fileno(), "somewhere"), theirs
    ours.close()
    theirs.close()


def test_requests_are_taken_off_one_by_one(pair: tuple[Peer, socket.socket]) -> None:
    peer, other = pair
    other.send(b"a=b\n\nc=d\n")
    assert peer.read(1000)
    assert peer.has_request
    assert (peer.request(), peer.request()) == (b"a=b", None)
    other.send(b"\n")
    assert peer.read(1000)
    assert (peer.request(), peer.input) == (b"c=d", b"")


def test_what_is_too_long_is_told(pair: tuple[Peer, socket.socket]) -> None:
    peer, other = pair
    other.send(b"x" * 99 + b"\n\n")
    assert peer.read(60)
    with pytest.raises(TooLong):
        peer.read(60)


def test_the_end_and_nothing_are_told_apart(pair: tuple[Peer, socket.socket]) -> None:
    peer, other = pair
    with pytest.raises(BlockingIOError):
        peer.read(1000)
    other.close()
    assert not peer.read(1000)


def test_the_time_of_a_request_begins_with_its_first_byte(pair: tuple[Peer, socket.socket]) -> None:
    peer, other = pair
    # It was answered long ago, and asked nothing since.
    peer.since = monotonic() - 600
    now = monotonic()
    assert not peer.is_slow(now, 10)
    assert peer.is_idle(now, 300)
    assert not peer.is_idle(now, 3600)
    other.send(b"a=")
    peer.read(1000)
    now = monotonic()
    assert not peer.is_slow(now, 10)
    assert not peer.is_idle(now, 300)
    # Each further byte gives it no more time.
    peer.since -= 8
    other.send(b"b")
    peer.read(1000)
    assert not peer.is_slow(monotonic(), 10)
    peer.since -= 8
    assert peer.is_slow(monotonic(), 10)


def test_what_is_not_taken_waits(pair: tuple[Peer, socket.socket]) -> None:
    peer, other = pair
    answer = b"x" * (1 << 20)
    assert not peer.write(answer)
    assert peer.is_slow(monotonic() + 11, 10)
    assert not peer.write(b"y")
    came = 0
    while came <= len(answer):
        came += len(other.recv(1 << 20))
        peer.write(b"")
    assert peer.write(b"")
    assert peer.output == b""
