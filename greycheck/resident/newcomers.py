"""How many triplets wait, where many questions are decided before any of them is written.

What waits in a network is not counted for each question: ``Rooms`` says how many may come before it
is counted again. And no count sees what was let in a moment ago and is not written yet:
``Newcomers`` adds that, so that a limit holds within a batch too, and asks for each number once in
a batch.

Bugs: batches that are decided at the same time, here or on other hosts, do not see each other's
newcomers, nor what another process's lock keeps from being written. Each of them may pass a limit
by as many questions as it has.
"""

from collections.abc import Callable, Iterable

from greycheck.policy import Change, TripletRow
from greycheck.store.base import Asked

# What waits in a network is counted once for each UNCOUNTED-th part of its limit that is let in,
# and that is remembered for so many NETWORKS.
UNCOUNTED, NETWORKS = 64, 10_000


class Rooms:
    """How many questions from each network may come before what waits there is counted again.

    By the limit too: a client may have one of its own. Threads may share it without a lock: each
    step is one operation of a dict, and a step that is lost costs a count, or one triplet more.
    """

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, int], int] = {}

    def take(self, network: str, limit: int) -> bool:
        """Takes a place in NETWORK, under LIMIT; returns false if there is none."""
        place = network, limit
        room = self._rooms.get(place, limit // UNCOUNTED)
        if room > 0:
            self._set(place, room - 1)
        return room > 0

    def were_counted(self, network: str, limit: int, waiting: int) -> None:
        """So many of NETWORK are WAITING, and one more is asked about."""
        self._set((network, limit), min(limit // UNCOUNTED, limit - waiting) - 1)

    def _set(self, place: tuple[str, int], room: int) -> None:
        if len(self._rooms) >= NETWORKS:
            self._rooms.clear()
        self._rooms[place] = room


class Newcomers:
    """What one batch counted, and which new triplets it let in that no count can see yet."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._crowds: dict[tuple[str, int], int] = {}
        self._totals: dict[int, int] = {}
        self._of_network: dict[str, set[bytes]] = {}
        self._all: set[bytes] = set()
        self._are_written = False

    def begin(self, are_written: bool = False) -> None:
        """Begins another batch. With ARE_WRITTEN it writes each newcomer at once: counts see it."""
        self._are_written = are_written
        self._crowds.clear()
        self._totals.clear()
        self._of_network.clear()
        self._all.clear()

    def crowd(self, asked: Asked, limit: int, count: Callable[..., int], *given: object) -> int:
        """Returns how many of the network of ASKED wait besides it, as far as LIMIT.

        COUNT counts them, of what is GIVEN. Returns 0 as long as they need not be counted.
        """
        network = asked.triplet.network
        counted = self._crowds.get((network, limit))
        if counted is None:
            if self._rooms.take(network, limit):
                return 0
            counted = count(*given)
        return self.counted(asked, limit, counted)

    def counted(self, asked: Asked, limit: int, counted: int) -> int:
        """As ``crowd``, where so many were COUNTED."""
        network = asked.triplet.network
        here = self._of_network.get(network, ())
        if not self._are_written:
            self._crowds[network, limit] = counted
        self._rooms.were_counted(network, limit, counted + len(here))
        return counted + len(here) - (asked.key in here)

    def total(self, asked: Asked, limit: int, count: Callable[[], int]) -> int:
        """Returns about how many wait in all besides ASKED, by COUNT, as far as LIMIT."""
        counted = self._totals.get(limit)
        if counted is None:
            counted = self._totals[limit] = count()
        return counted + self.besides(asked)

    def besides(self, asked: Asked) -> int:
        """Returns how many this batch has let in besides ASKED."""
        return len(self._all) - (asked.key in self._all)

    def add(self, asked: Asked, changes: Iterable[Change]) -> None:
        """CHANGES are made by what is ASKED: where it begins to wait it is one from now on."""
        if self._are_written:
            return
        for change in changes:
            if begins_to_wait(change) > 0:
                self._of_network.setdefault(asked.triplet.network, set()).add(asked.key)
                self._all.add(asked.key)


def begins_to_wait(change: Change) -> int:
    """Returns how many more triplets wait after CHANGE: 1, 0 or -1."""
    old, new = change.old, change.new
    if not isinstance(new, TripletRow):
        return 0
    # A triplet that begins anew had expired, and was not counted.
    waited = isinstance(old, TripletRow) and not old.passes and old.first == new.first
    return (not new.passes) - waited
