"""epoll, and how long an event may have waited before it was read.

A process that was stopped, or had more to do than it could, finds requests whose clients have gone
away. epoll does not say since when an event is there. ``Events`` knows the latest time at which
nothing can have been waiting, so it knows how old the oldest event can be.
"""

import select
from time import monotonic

IN, OUT = select.EPOLLIN, select.EPOLLOUT

# How many events one ``wait`` returns at most.
EVENTS = 1000

# Where an event may have waited for this long, in seconds, the server checks that its client is
# still there. The loop waits once a second at least, so the process was stopped or is overloaded.
DOUBT = 1.5


class Events:
    """The epoll set of the resident.

    ``age`` is how long an event of the last ``wait`` may have been there, in seconds. ``is_behind``
    is true where more is there than one turn takes; code that leaves something unread sets it.

    MAY_BE_LATE: clients may have been waiting since before the start, because a supervisor held the
    sockets.
    """

    def __init__(self, may_be_late: bool) -> None:
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self._waited = monotonic()
        # The latest time at which nothing was left unread.
        self._all_read = self._waited - DOUBT if may_be_late else self._waited
        self.is_behind = False
        self.age = 0.0

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Waits for SECONDS at most; returns descriptors with their events."""
        began = monotonic()
        if began - self._waited < DOUBT and not self.is_behind:
            self._all_read = began
        self._waited = began
        events = self._epoll.poll(seconds, EVENTS)
        self.is_behind = len(events) == EVENTS
        self.age = monotonic() - self._all_read
        return events
