"""One connection of the resident: its input, its unsent output, and since when it waits.

A peer has one request in hand at a time, as the protocol has it. What it sends meanwhile stays in
the kernel, or in its buffer up to the limit of one request. So whatever a peer does, it costs
``max_request`` bytes, one answer and one descriptor.
"""

import _socket
import os
import select
import sys
from time import monotonic, sleep

from greycheck.hooks.delegation import BEGINNING, END

# How long a remote client takes to refuse the beginning of an answer, in seconds.
ROUND_TRIP = 0.02


class TooLong(Exception):
    """A request is longer than ``max_request``."""


class Peer:
    """A connection on DESCRIPTOR, from WHERE (for the log); IS_LOCAL if that is a unix socket.

    ``since`` is when it last sent the beginning of a request, or took an answer (``monotonic``).
    ``question`` is the request that it waits for the answer to, or None. ``registered`` is the
    epoll events that are waited for.
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
        # True once a warning said that its settings do not count.
        self.was_refused = False
        # The part of its answer that was sent before there was a verdict.
        self.said = b""
        self.input = b""
        self.output = b""
        self.question: object = None
        self.registered = 0
        # True if it is closed once its output is sent.
        self.ends = False
        self.since = monotonic()

    def read(self, limit: int) -> bool:
        """Reads once. Returns false at the end of the input.

        Raises OSError, BlockingIOError if nothing is there, and TooLong if a request has more than
        LIMIT bytes.
        """
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
        """True if a whole request waits here, or its answer."""
        return self.question is not None or bool(self.output) or END in self.input

    def request(self) -> bytes | None:
        """Takes the next whole request from the input, without its end; None if none is whole."""
        request, end, rest = self.input.partition(END)
        if not end:
            return None
        self.input = rest
        self.has_asked = True
        return request

    def write(self, answer: bytes) -> bool:
        """Sends ANSWER, behind the output that is not sent yet.

        Returns true if nothing is left to be sent. Raises OSError.
        """
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
        """Shuts down the receiving side. What was sent before can still be read.

        Over TCP the kernel would not refuse what is sent later, so nothing is done.
        """
        if self.is_local:
            connection = _socket.socket(fileno=self.descriptor)
            try:
                connection.shutdown(_socket.SHUT_RD)
            except OSError:
                pass  # the client has closed it
            finally:
                connection.detach()

    def has_shut(self) -> bool:
        """Returns true if the client has closed the connection, or its sending side."""
        watch = select.poll()
        watch.register(self.descriptor, select.POLLRDHUP)
        return bool(watch.poll(0))

    def has_left(self) -> bool:
        """Returns true if the client has closed the connection.

        One that has shut down its sending side alone, as Exim does, waits for the answer.
        """
        if self.is_closed:
            return True
        watch = select.poll()
        watch.register(self.descriptor, 0)  # POLLHUP and POLLERR come unasked
        return bool(watch.poll(0))

    def begin(self, beginning: bytes) -> None:
        """Sends the BEGINNING of an answer before there is a verdict."""
        try:  # noqa: SIM105
            self.said = beginning[: os.write(self.descriptor, beginning)]
        except OSError:
            pass  # ``has_left`` finds out

    def age(self, most: float) -> float:
        """Returns how long ago the last input came, in seconds, MOST at most.

        A unix socket does not say: then MOST.
        """
        if self.is_local:
            return most
        connection = _socket.socket(fileno=self.descriptor)
        try:
            return min(
                most,
                last_received(connection.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, 104)),
            )
        except OSError:
            return most  # some other kind of socket, or connection
        finally:
            connection.detach()

    def close(self) -> None:
        """Ends the connection. Raises OSError."""
        self.is_closed = True
        os.close(self.descriptor)

    def is_slow(self, now: float, request_time: int) -> bool:
        """Returns true if a request, or its answer, takes longer than REQUEST_TIME to arrive.

        REQUEST_TIME is in seconds, NOW ``monotonic``.
        """
        return (
            bool(self.input or self.output)
            and self.question is None
            and now - self.since > request_time
        )

    def is_idle(self, now: float, idle_time: int) -> bool:
        """Returns true if nothing was asked for IDLE_TIME seconds at NOW (``monotonic``)."""
        return self.question is None and now - self.since > idle_time


def last_received(info: bytes) -> float:
    """Returns how many seconds ago a TCP connection received data.

    INFO is its TCP_INFO; the field is ``tcpi_last_data_recv`` (linux/tcp.h).
    """
    return int.from_bytes(info[52:56], sys.byteorder) / 1000


def left(peers: list[Peer]) -> set[Peer]:
    """Returns those of PEERS whose clients have closed the connection.

    Over TCP a client that has closed looks like one that has shut down its sending side alone. It
    is sent the beginning of an answer: one that has closed refuses that.
    """
    shut = [peer for peer in peers if not peer.is_local and peer.has_shut()]
    for peer in shut:
        peer.begin(BEGINNING)
    if shut:
        sleep(ROUND_TRIP)
    return {peer for peer in peers if peer.has_left()}
