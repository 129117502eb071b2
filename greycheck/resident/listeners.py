"""The sockets that the resident listens on, from the start to the end of its life.

Sockets are made in ``sockets``. Here they are watched: a unix socket whose file was removed is made
again, and at the end no more clients are let in.
"""

import socket
from collections.abc import Callable, Iterator

from greycheck import log
from greycheck.resident.events import IN, Events
from greycheck.resident.journal import Journal
from greycheck.resident.sockets import SocketError, Unix, again, shown, shut


class Listeners:
    """The SOCKETS that listen, registered with EVENTS.

    Where a supervisor KEEPS them, clients that wait there at the end are left to the next process.
    """

    def __init__(
        self, sockets: list[socket.socket], events: Events, journal: Journal, keeps: bool
    ) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._events = events
        self._journal = journal
        self._keeps = keeps
        # Complaints about sockets that cannot be made again; each is logged once.
        self._complaints: set[str] = set()
        for each in sockets:
            self._add(each)

    def _add(self, listening: socket.socket) -> None:
        descriptor = listening.fileno()
        self._sockets[descriptor] = listening
        self._names[descriptor] = shown(listening)
        self._events.register(descriptor, IN)

    def __len__(self) -> int:
        return len(self._sockets)

    def __iter__(self) -> Iterator[socket.socket]:
        return iter(list(self._sockets.values()))

    def find(self, descriptor: int) -> socket.socket | None:
        """Returns the socket of DESCRIPTOR, or None if that is something else."""
        return self._sockets.get(descriptor)

    def name(self, listening: socket.socket) -> str:
        """Returns the path or address of LISTENING, as the log has it."""
        return self._names[listening.fileno()]

    def make_again(self, accept: Callable[[socket.socket], object]) -> None:
        """Makes each unix socket again whose file was removed.

        Clients that connected before that are handed to ACCEPT. What cannot be made is tried again
        at the next call.
        """
        for listening in self:
            if isinstance(listening, Unix) and not listening.is_there():
                self._replace(listening, accept)

    def _replace(self, gone: Unix, accept: Callable[[socket.socket], object]) -> None:
        try:
            listening, wrong = again(gone)
        except (SocketError, OSError) as error:
            self._complain(
                f"warning {gone.path}: the socket was taken away, and no other can be made: {error}"
            )
            return
        accept(gone)
        self._events.unregister(gone.fileno())
        del self._sockets[gone.fileno()], self._names[gone.fileno()]
        gone.close()
        self._complaints.clear()
        self._add(listening)
        self._journal.add(log.line(f"note {listening.path}: the socket was taken away: made again"))
        if wrong:
            self._journal.add(log.line(f"warning {wrong}"))

    def _complain(self, line: str) -> None:
        if line not in self._complaints:
            self._complaints.add(line)
            self._journal.add(log.line(line))

    def shut(self) -> None:
        """Lets no more clients connect. Those who have can still be accepted."""
        for listening in self:
            self._events.unregister(listening.fileno())
            if self._keeps:
                self.close(listening)
            else:
                shut(listening)

    def close(self, listening: socket.socket) -> None:
        """Closes LISTENING, which ``shut`` has taken from the events."""
        del self._sockets[listening.fileno()]
        listening.close()
