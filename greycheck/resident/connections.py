"""The clients of the resident: accepts connections, reads requests, sends answers, closes.

What a request means and how it is answered is not known here: the loop (``server``) takes whole
requests from the peers in ``ready``, and hands over answers (``send``).

Limits on clients are kept here: how many (``max_connections``), which addresses
(``listen_clients``), how long a request may be (``max_request``), how long it may take to arrive
and its answer to be taken (``request_time``), how long nothing may be asked (``idle_time``).
"""

import errno
import os
import resource
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from greycheck import normalise
from greycheck.resident.events import IN, OUT, Events
from greycheck.resident.journal import Journal
from greycheck.resident.listeners import Listeners
from greycheck.resident.peers import Peer, TooLong
from greycheck.resident.sockets import shown
from greycheck.settings import Settings

# How many connections one turn accepts from each socket.
TAKEN = 64

# Descriptors that are no client's: listening sockets, the store, the log, and some to spare.
OWN_DESCRIPTORS = 64

# How long the end waits for a request that has begun to arrive, and for the first request of a new
# connection, in seconds.
GRACE = 1.0

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connections:
    """The clients that came by LISTENERS, under SETTINGS.

    ``ready`` are the peers whose input is to be looked at. ``now`` is the time of this turn
    (``monotonic``), which the loop sets: a clock for each answer would cost more. ``on_fault`` is
    called with a peer and the error if reading from it raises an unexpected one.
    """

    on_fault: Callable[[Peer, Exception], None]

    def __init__(
        self, listeners: Listeners, events: Events, journal: Journal, settings: Settings
    ) -> None:
        self.listeners = listeners
        self.peers: dict[int, Peer] = {}
        self.ready: deque[Peer] = deque()
        self.now = monotonic()
        self.is_draining = False
        self._drained_by = 0.0
        self._events = events
        self._journal = journal
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Takes SETTINGS from now on."""
        self._settings = settings
        self._room = _raise_limit(settings.max_connections)

    # --- accepting --------------------------------------------------------------------------------

    def accept(self, listening: socket.socket) -> bool:
        """Accepts clients that wait at LISTENING, up to TAKEN. Returns true if no more wait."""
        for _ in range(TAKEN):
            if self.is_draining and len(self.peers) >= self._room:
                return False
            try:
                # Makes a socket object only to drop it, 3 us. socket._accept() would not, but is
                # private.
                connected, address = listening.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.EINVAL:  # it is shut, and no more clients wait
                    return True
                if error.errno in NO_DESCRIPTORS:
                    self._journal.warn(f"{shown(listening)}: {error.strerror}")
                    self._make_room(len(self.peers))
                self._events.is_behind = True
                return False
            self._add(connected.detach(), address, listening)
        self._events.is_behind = True
        return False

    def _add(self, descriptor: int, address: object, listening: socket.socket) -> None:
        """Adds the connection DESCRIPTOR from ADDRESS by LISTENING, unless a limit forbids it."""
        where = self.listeners.name(listening)
        if isinstance(address, tuple) and address:
            where = address[0]
            if not self._may_ask(where):
                self._journal.warn(f"{where}: may not ask here: see listen_clients")
                os.close(descriptor)
                return
        os.set_blocking(descriptor, False)
        if not self._make_room(self._room):
            count = len(self.peers)
            self._journal.warn(f"{where}: {count} connections wait for answers: not taken")
            os.close(descriptor)
            return
        peer = Peer(descriptor, where, listening.family == socket.AF_UNIX)
        self.peers[descriptor] = peer
        # Most clients send at once: their request is there without another turn.
        try:
            self.read(peer)
        except Exception as error:
            self.on_fault(peer, error)

    def _may_ask(self, address: str) -> bool:
        canonical = normalise.client_address(address.encode())
        if canonical is None:
            return False
        bits, value = normalise.address_bits(canonical)
        client = normalise.Network(bits, value, bits)
        return any(network.overlaps(client) for network in self._settings.listen_clients)

    def _make_room(self, room: int) -> bool:
        """Closes the connection that was idle longest, if there are ROOM or more.

        Returns false if there are, and all of them wait for answers.
        """
        if len(self.peers) < room:
            return True
        idle = [peer for peer in self.peers.values() if not peer.has_request]
        if not idle:
            return False
        longest = min(idle, key=lambda peer: peer.since)
        count = len(self.peers)
        self._journal.warn(
            f"{longest.where}: {count} connections: the one that was idle longest is closed"
        )
        self.close(longest)
        return True

    # --- reading and sending ----------------------------------------------------------------------

    def read(self, peer: Peer) -> None:
        """Reads from PEER. It is ``ready`` then, unless it waits for an answer, or is closed."""
        try:
            there = peer.read(self._settings.max_request)
        except BlockingIOError:
            self.expect(peer, IN)
            return
        except TooLong:
            limit = self._settings.max_request
            self._journal.warn(f"{peer.where}: a request longer than {limit} bytes")
            self.close(peer)
            return
        except OSError:
            self.close(peer)
            return
        if not there and peer.has_request:
            # It has shut down its side alone, as Exim does, and wants its answer.
            self.expect(peer, 0)
        elif not there:
            self.close(peer)
        elif peer.question is None and not peer.output:
            self.ready.append(peer)
        else:
            # It asks before it has its answer: it is read again after that.
            self.expect(peer, 0)

    def expect(self, peer: Peer, events: int) -> None:
        """Waits for EVENTS of PEER from now on (0: for none)."""
        if events == peer.registered:
            return
        if not peer.registered:
            self._events.register(peer.descriptor, events)
        elif events:
            self._events.modify(peer.descriptor, events)
        else:
            self._events.unregister(peer.descriptor)
        peer.registered = events

    def send(self, peer: Peer, answer: bytes) -> None:
        """Sends ANSWER to PEER, behind what is unsent still, and goes on with its next request."""
        try:
            sent = peer.write(answer)
        except OSError:
            self.close(peer)
            return
        peer.since = self.now
        if not sent:
            self.expect(peer, OUT)
        elif peer.ends:
            self.close(peer)
        elif peer.input:
            self.ready.append(peer)
        elif self.is_draining:
            self._let_go(peer)
        elif peer.registered != IN:
            self.expect(peer, IN)

    # --- closing ----------------------------------------------------------------------------------

    def close(self, peer: Peer) -> None:
        """Closes the connection of PEER. Raises OSError."""
        del self.peers[peer.descriptor]
        peer.close()

    def drop(self, peer: Peer) -> None:
        """Closes the connection of PEER, unless it is closed already."""
        if not peer.is_closed:
            with suppress(OSError):
                self.close(peer)

    def sweep(self) -> None:
        """Closes connections that are slow or idle; makes sockets again that were removed."""
        now = monotonic()
        settings = self._settings
        for peer in list(self.peers.values()):
            if peer.is_slow(now, settings.request_time):
                what = "takes no answer" if peer.output else "has not finished its request"
                self._journal.warn(f"{peer.where}: {what} within {settings.request_time}s")
                self.close(peer)
            elif peer.is_idle(now, settings.idle_time):
                self.close(peer)
        if not self.is_draining:
            self.listeners.make_again(self.accept)

    # --- the end ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begins the end: no more clients may connect; requests that have arrived are answered."""
        self.is_draining = True
        self._drained_by = monotonic() + GRACE
        self.listeners.shut()
        for peer in list(self.peers.values()):
            # All others have a request that is not whole yet.
            if peer.has_asked and not peer.input and not peer.has_request:
                self._let_go(peer)
        self.drain_on()

    def drain_on(self) -> None:
        """Accepts clients that had connected before; after GRACE closes those with no request."""
        is_over = monotonic() > self._drained_by
        for listening in self.listeners:
            if self.accept(listening) or is_over:
                self.listeners.close(listening)
        for peer in list(self.peers.values()) if is_over else ():
            if not peer.has_request:
                self._let_go(peer)

    @property
    def is_drained(self) -> bool:
        """True once all clients are answered and closed."""
        return not (self.listeners or self.peers or self.ready)

    def _let_go(self, peer: Peer) -> None:
        """Closes the connection of PEER, unless it has sent another request in the meantime."""
        peer.shut()
        self.read(peer)
        if not peer.is_closed and not peer.has_request:
            self.close(peer)


def _raise_limit(connections: int) -> int:
    """Raises RLIMIT_NOFILE for so many CONNECTIONS; returns how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - OWN_DESCRIPTORS))
