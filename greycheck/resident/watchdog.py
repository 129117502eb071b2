"""Ends the process if one turn of its loop hangs: a read from a dead disk cannot be interrupted."""

import os
import threading
from collections.abc import Callable
from time import monotonic

# The exit code that tells a supervisor to start the resident again.
AGAIN = 111

# How often the thread looks, in seconds.
LOOK = 0.5

# A thread that looks this many seconds later than it should was stopped with its process.
STOPPED = 2.5


class Watchdog:
    """Calls GIVE_UP, then exits with AGAIN, if a turn takes longer than DEADLINE seconds.

    The loop sets ``turn`` to the time at which a turn begins (``monotonic``), and to 0 at its end.
    Time for which the whole process was stopped does not count.
    """

    def __init__(self, deadline: float, give_up: Callable[[], None]) -> None:
        self.turn = 0.0
        self.deadline = deadline
        self._give_up = give_up

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        end = threading.Event()
        looked = resumed = monotonic()
        while not end.wait(LOOK):
            began, now = self.turn, monotonic()
            if now - looked > STOPPED:
                resumed = now
            looked = now
            if began and now - max(began, resumed) > self.deadline:
                try:
                    self._give_up()
                finally:
                    os._exit(AGAIN)
