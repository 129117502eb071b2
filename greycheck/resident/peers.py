"""The connections of the resident: what came, what waits to be sent, since when.

A peer has one question at a time, as the protocol has it; what it sends meanwhile waits unread, or in its buffer up to the limit of one
request. Whatever a peer does costs no more than that: ``max_request`` bytes, one answer, one descriptor.
"""

import _socket
import os
import select
import sys
from time import monotonic, sleep

from greycheck.hooks.policy import END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.resident.questions import Question


# How each answer begins; and how long an end that is far away takes to refuse that, in seconds.
BEGINNING = b"action="
ROUND_TRIP = 0.02


class TooLong(Exception):
    """A request longer than it may be."""


class Peer:
    """A connection on DESCRIPTOR, from WHERE (for the log); IS_LOCAL where that is a unix socket.

    ``since`` is when it last did what was expected of it (``monotonic``); ``question`` is what it waits for an answer to.
    """

    __slots__ = (
        "descriptor",
        "ends",
        "has_asked",
        "input",
        "is_closed",
        "is_local",
        "output",
        "question",
        "registered",
        "said",
        "since",
        "was_refused",
        "where",
    )

    def __init__(self, descriptor: int, where: str, is_local: bool = False) -> None:
        self.descriptor = descriptor
        self.where = where
        self.is_local = is_local
        self.is_closed = self.has_asked = False
        # Whether it was told that its settings do not count.
        self.was_refused = False
        # What of its answer was sent before there was one.
        self.said = b""
        self.input = b""
        self.output = b""
        self.question: Question | None = None
        self.registered = 0
        # Whether it is left once it has what waits to be sent.
        self.ends = False
        self.since = monotonic()

    def read(self, limit: int) -> bool:
        """Reads what came. False at the end of it. Raises OSError, BlockingIOError where nothing came, and TooLong beyond LIMIT."""
        came = os.read(self.descriptor, limit)
        if not came:
            return False
        if self.input:
            self.input += came
        else:
            self.input = came
            self.since = monotonic()
        if len(self.input) > limit and self.input.find(END, 0, limit) < 0:
            raise TooLong
        return True

    @property
    def has_request(self) -> bool:
        """Whether a whole request waits, or its answer."""
        return self.question is not None or bool(self.output) or END in self.input

    def request(self) -> bytes | None:
        """The next whole request, without its end, taken off what came; None where there is none yet."""
        request, end, rest = self.input.partition(END)
        if not end:
            return None
        self.input = rest
        self.has_asked = True
        return request

    def write(self, answer: bytes) -> bool:
        """Sends ANSWER, behind what waits already. Whether all of it is sent; raises OSError."""
        if self.said:
            answer, self.said = answer.removeprefix(self.said), b""
        if self.output:
            answer = self.output + answer
        try:
            sent = os.write(self.descriptor, answer)
        except BlockingIOError:
            sent = 0
        self.output = answer[sent:]
        return not self.output

    def shut(self) -> None:
        """Lets nothing more be sent here, where the kernel can see to that; what was sent before can still be read."""
        if self.is_local:
            connection = _socket.socket(fileno=self.descriptor)
            try:
                connection.shutdown(_socket.SHUT_RD)
            except OSError:
                pass  # he has left
            finally:
                connection.detach()

    def has_shut(self) -> bool:
        """Whether nothing more comes from the other end."""
        watch = select.poll()
        watch.register(self.descriptor, select.POLLRDHUP)
        return bool(watch.poll(0))

    def has_left(self) -> bool:
        """Whether nobody waits at the other end any more. Who has shut his side alone, as Exim does, waits."""
        if self.is_closed:
            return True
        watch = select.poll()
        watch.register(self.descriptor, 0)  # POLLHUP and POLLERR come unasked
        return bool(watch.poll(0))

    def begin(self, beginning: bytes) -> None:
        """Sends the BEGINNING of an answer that is not there yet."""
        try:  # noqa: SIM105
            self.said = beginning[: os.write(self.descriptor, beginning)]
        except OSError:
            pass  # ``has_left`` tells

    def age(self, most: float) -> float:
        """For how long the last that came has been here, in seconds, MOST at most. A unix socket does not tell: that long."""
        if self.is_local:
            return most
        connection = _socket.socket(fileno=self.descriptor)
        try:
            return min(most, last_received(connection.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, 104)))
        except OSError:
            return most  # some other kind of socket, or connection
        finally:
            connection.detach()

    def close(self) -> None:
        """Ends the connection. Raises OSError."""
        self.is_closed = True
        os.close(self.descriptor)

    def is_slow(self, now: float, request_time: int) -> bool:
        """Whether it takes longer than REQUEST_TIME over a request that it began, or over taking its answer, at NOW."""
        return bool(self.input or self.output) and self.question is None and now - self.since > request_time

    def is_idle(self, now: float, idle_time: int) -> bool:
        """Whether it has asked nothing for IDLE_TIME at NOW."""
        return self.question is None and now - self.since > idle_time


def last_received(info: bytes) -> float:
    """How many seconds ago a TCP connection received something, by its INFO (``tcpi_last_data_recv`` in linux/tcp.h)."""
    return int.from_bytes(info[52:56], sys.byteorder) / 1000


def left(peers: list[Peer]) -> set[Peer]:
    """Those of PEERS at whose other end nobody waits any more.

    Over TCP an end that was closed looks like one that has only shut its side. It is sent how each answer begins: who is gone refuses it.
    """
    shut = [peer for peer in peers if not peer.is_local and peer.has_shut()]
    for peer in shut:
        peer.begin(BEGINNING)
    if shut:
        sleep(ROUND_TRIP)
    return {peer for peer in peers if peer.has_left()}
