"""Learns from outbound mail: a thread writes whom our users write to, and nobody waits for it.

The mail server has its answer before anything is handed over. What comes within GATHER is written
together, on a connection of its own that is closed afterwards: so neither a store that is locked or
silent, nor one that was replaced, is anybody's concern. What does not fit into the queue, or cannot
be written, is not learnt; the next mail to the same person may be.

Threads, and what each may touch. "Main" is the thread that calls ``add``, ``notes`` and ``close``.

    settings            main sets it, the worker reads it
    _said               main
    everything else     any thread, under _changed
"""

import _thread
import threading
from time import monotonic

from greycheck import outbound
from greycheck.policy import Verdict
from greycheck.resident.pool import import_driver
from greycheck.resident.questions import Question
from greycheck.settings import Settings
from greycheck.store import connect
from greycheck.store.base import STORE_SHARE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.outbound import Letter

# For how long more is gathered, in seconds, so that it is written together; how much may wait for
# that; and how much is written at once.
GATHER, QUEUE, BATCH = 1.0, 2000, 200

# How many correspondents are remembered that need not be looked up in the store.
KNOWN = 20000

# How often the log says what could not be recorded, in seconds.
MINUTE = 60

# How long the end may take, in seconds.
GOOD_BYE = 0.5

# The thread's stack, in bytes: drivers may be Python all through.
STACK = 1 << 20


class Learner:
    """Records in the store of SETTINGS whom our users write to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._changed = threading.Condition()
        self._queue: dict[tuple[bytes, bytes], Letter] = {}
        # Until when what is recorded counts, in seconds since 1970.
        self._known: dict[tuple[bytes, bytes], int] = {}
        self._notes: list[str] = []
        self._lost = 0
        self._why = ""
        self._said = float("-inf")
        self._worker: threading.Thread | None = None
        self._ends = False
        _import_store(settings)

    # --- the main thread --------------------------------------------------------------------------

    def add(self, question: Question, verdict: Verdict) -> None:
        """Learns from QUESTION, which has been answered by VERDICT. Raises nothing."""
        if verdict.reason != "exempt" or not question.settings.learn_outbound:
            return
        try:
            letter = outbound.of_envelope(question.envelope, question.settings, question.attempt)
            if letter is not None:
                self._add(letter)
        except Exception as error:
            self._lose(1, error)

    def _add(self, letter: "Letter") -> None:
        pair = letter.outside, letter.user
        with self._changed:
            known = self._known.get(pair)
            if pair in self._queue or (known is not None and not letter.is_news(known)):
                return
            if len(self._queue) >= QUEUE:
                self._lost += 1
                return
            if self._worker is None:
                _thread.stack_size(STACK)
                worker = threading.Thread(target=self._work, daemon=True)
                worker.start()
                self._worker = worker
            self._queue[pair] = letter
            self._changed.notify()

    def use(self, settings: Settings) -> None:
        """Writes to the store of SETTINGS from now on."""
        _import_store(settings)
        self.settings = settings

    def notes(self) -> list[str]:
        """What the log is to say: of hosts, and once a MINUTE of what was not recorded."""
        with self._changed:
            notes, self._notes = self._notes, []
            if self._lost and monotonic() - self._said >= MINUTE:
                self._said = monotonic()
                why = f": {self._why}" if self._why else ""
                notes.append(f"warning mails from which nothing was learnt: {self._lost}{why}")
                self._lost, self._why = 0, ""
        return notes

    def close(self) -> None:
        """Writes what waits, within GOOD_BYE."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join(GOOD_BYE)

    # --- the worker -------------------------------------------------------------------------------

    def _work(self) -> None:
        """Writes what was added, until ``close``."""
        while batch := self._next():
            try:
                self._write(list(batch.values()))
            except Exception as error:
                self._lose(len(batch), error)
                continue
            with self._changed:
                if len(self._known) >= KNOWN:
                    self._known.clear()
                self._known.update((pair, letter.expires) for pair, letter in batch.items())

    def _next(self) -> "dict[tuple[bytes, bytes], Letter]":
        """Waits for what is to be written next, and takes it; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ends or self._queue)
            self._changed.wait_for(lambda: self._ends or len(self._queue) >= BATCH, GATHER)
            taken = dict(list(self._queue.items())[:BATCH])
            for pair in taken:
                del self._queue[pair]
        return taken

    def _write(self, letters: "list[Letter]") -> None:
        settings = self.settings
        patience = settings.deadline * STORE_SHARE
        store = connect(settings, outbound.LOCK if settings.database.path else patience)
        try:
            store.learn(letters)
        finally:
            with self._changed:
                self._notes += store.notes
            store.close()

    def _lose(self, letters: int, error: Exception) -> None:
        """Counts LETTERS that were not recorded because of ERROR."""
        with self._changed:
            self._lost += letters
            self._why = f"{type(error).__name__}: {error}"


def _import_store(settings: Settings) -> None:
    """Imports what ``connect`` would.

    That puts stand-ins into ``sys.modules`` for a moment, which no other thread may meet.
    """
    if settings.database.path:
        from greycheck.store import sqlite  # noqa: F401
    elif settings.database.server is not None:
        import_driver(settings)
