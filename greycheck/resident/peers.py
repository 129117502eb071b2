"""The connections of the resident: what came, what waits to be sent, since when.

A peer has one question at a time, as the protocol has it; what it sends meanwhile waits unread, or in its buffer up to the limit of one
request. Whatever a peer does costs no more than that: ``max_request`` bytes, one answer, one descriptor.
"""

import os
from time import monotonic

from greycheck.hooks.policy import END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.resident.questions import Question


class TooLong(Exception):
    """A request longer than it may be."""


class Peer:
    """A connection on DESCRIPTOR, from WHERE (for the log).

    ``since`` is when it last did what was expected of it (``monotonic``); ``question`` is what it waits for an answer to.
    """

    __slots__ = ("descriptor", "ends", "input", "output", "question", "registered", "since", "where")

    def __init__(self, descriptor: int, where: str) -> None:
        self.descriptor = descriptor
        self.where = where
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
        return request

    def write(self, answer: bytes) -> bool:
        """Sends ANSWER, behind what waits already. Whether all of it is sent; raises OSError."""
        if self.output:
            answer = self.output + answer
        try:
            sent = os.write(self.descriptor, answer)
        except BlockingIOError:
            sent = 0
        self.output = answer[sent:]
        return not self.output

    def is_slow(self, now: float, request_time: int) -> bool:
        """Whether it takes longer than REQUEST_TIME over a request that it began, or over taking its answer, at NOW."""
        return bool(self.input or self.output) and self.question is None and now - self.since > request_time

    def is_idle(self, now: float, idle_time: int) -> bool:
        """Whether it has asked nothing for IDLE_TIME at NOW."""
        return self.question is None and now - self.since > idle_time
