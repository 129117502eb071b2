"""Decides from an SQLite file, many requests in one transaction.

All requests that came together are looked up in one read transaction, many by one statement
(``look_ahead``). Those whose verdict holds before anything is written are answered. All changes are
then written in one transaction, those of a triplet's row alone by one statement
(``save_together``). If one of them fails, or a row is not what was read, all is undone and each
request is written by itself. Where another process holds the lock, writing is tried again and again
while reading goes on.

A request is in one of these states (``state``). All but those that are DONE are in ``_unwritten``:

    TO_DECIDE   not decided: another process had the lock when it was looked up
    TO_ANSWER   decided, with changes to write; it is answered once they are committed
    TO_COUNT    answered, with changes to write that only count
    DONE        answered, with nothing to write

    from          to          by            when
    (new)         DONE        decide,       it cannot be decided
                              _look_up
    (new)         DONE        _look_up      nothing is to be written
    (new)         TO_COUNT    _look_up      the verdict is final, the last write worked, and fewer
                                            than AHEAD are unwritten
    (new)         TO_ANSWER   _look_up      all others with changes
    (new)         TO_DECIDE   decide,       the file is locked
                              _look_up
    TO_DECIDE     TO_ANSWER   _save         it has the lock to write, and decides
    TO_ANSWER     TO_ANSWER   _save         another process has changed a row: decides again
    TO_ANSWER     TO_DECIDE   _save_all     the transaction in which it was decided is undone
    any           DONE        _write        its changes are committed
    any           DONE        _unrecorded   they cannot be written, or the lock was not had in time
    not TO_COUNT  DONE        _is_wanted    its client has gone
    not TO_COUNT  TO_COUNT    the server    it has answered by ``on_error``

A request that is TO_COUNT is dropped if another process has changed its row, which has counted it
then, or if it was never decided.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, time

from greycheck import check
from greycheck.policy import NOTHING, PENDING, TripletRow, Verdict
from greycheck.resident import batch_store
from greycheck.resident.batch_store import Store
from greycheck.resident.messages import Messages
from greycheck.resident.questions import Question
from greycheck.settings import Settings
from greycheck.store import sqlite
from greycheck.store.base import STORE_SHARE, Asked, StoreError
from greycheck.store.causes import Busy, NoSchema, WrongSchema
from greycheck.store.schema import migrate

# States of a request that is not written yet.
TO_DECIDE, TO_ANSWER, TO_COUNT = "to decide", "to answer", "to count"

# How soon a lock that another process holds is tried again, in seconds.
RETRY = 0.002

# How often ``tick`` checks that the file is there and its log short, in seconds.
LOOK = 0.1

# How soon a file that was removed is made once more, in seconds; and how long ``tick`` may wait
# where nothing is to be done.
IDLE = 1.0

# The log is written back after CHANGES changes, some 10 MB of it, once nothing was asked for LOOK;
# at the latest QUIET seconds after the first of them, or after MANY.
CHANGES, QUIET, MANY = 1500, 3.0, 12000

# How long a start waits for a file that another process has to itself, in seconds: as one does that
# leaves it, or finds a crashed one's log.
OPENING = 5.0

# How many requests may be unwritten, another process having the lock, before answers wait for it.
AHEAD = 256

# Requests that wait longer than this, in seconds, are written only if their client is still there.
LONG = 1.0

Answer = Callable[[Question, Verdict | None, "list[str]"], None]
Batch = list[tuple[Question, Asked]]


def state(question: Question) -> str:
    """Returns the state of QUESTION, which is not written yet."""
    if question.answered:
        return TO_COUNT
    return TO_ANSWER if question.decision.reason else TO_DECIDE


class FileStore:
    """Decides from the SQLite file of SETTINGS.

    ANSWER is called with each question, its verdict, and notes about the store for the log; with a
    verdict of None where the client has gone. WARN takes warnings about what was not recorded.

    Raises StoreError if the file cannot be used. ``decide`` and ``tick`` raise WrongSchema if the
    schema is another program's.
    """

    def __init__(
        self,
        settings: Settings,
        answer: Answer,
        messages: Messages,
        warn: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._path = settings.database.path
        self._answer, self._warn = answer, warn
        self._messages = messages
        self._store: Store | None = Store(self._path, OPENING)
        self._unwritten: Batch = []
        # While writing fails, no answer is sent before its write: its log line tells of the fault.
        self._last_write_worked = True
        self._write_back = WriteBack(self._path)
        self._looked = monotonic()
        self._made = float("-inf")
        self._notes: list[str] = []

    # --- looking up -------------------------------------------------------------------------------

    def decide(self, questions: list[Question]) -> None:
        """Looks QUESTIONS up; answers those whose verdict is final. ``tick`` writes the changes."""
        self._write_back.last_decision = monotonic()
        asked: Batch = []
        for q in questions:
            try:
                asked.append((q, Asked(q.envelope, q.decision.triplet)))
            except Exception as error:
                self._tell(q, q.failed(_said(error)))
        try:
            store = self._begin_reading()
        except Busy:
            self._unwritten += asked
            return
        except WrongSchema:
            raise
        except StoreError as error:
            for question, _asked in asked:
                self._tell(question, question.failed(str(error)))
            return
        store.look_ahead([each for _question, each in asked])
        waiting = [each for each in asked if self._look_up(store, each, PENDING)]
        store.look_ahead_for_identities([(each, question.settings) for question, each in waiting])
        for each in waiting:
            self._look_up(store, each)
        if self._unwritten:
            return  # ``tick`` goes on with the transaction
        try:
            store.commit()
        except StoreError:
            store.roll_back()

    def _look_up(self, store: Store, each: tuple[Question, Asked], until: str = NOTHING) -> bool:
        """Decides one request, and answers it if that holds; returns true if it needs UNTIL before.

        Raises WrongSchema.
        """
        question, asked = each
        decision = question.decision
        try:
            if check.decide(store, asked, decision, self._messages.first_passed, until):
                return True
        except Busy:
            question.decision = decision.anew()
            self._unwritten.append(each)
            return False
        except WrongSchema:
            raise
        except Exception as error:
            self._tell(question, question.failed(_said(error)))
            return False
        if decision.changes or (question.hook and decision.opens_message):
            store.announce(asked, decision.changes)
            self._unwritten.append(each)
            may_be_answered = self._last_write_worked and len(self._unwritten) < AHEAD
            if not (may_be_answered and decision.is_final_before_write):
                return False
        self._tell(question, decision.verdict())
        return False

    # --- writing ----------------------------------------------------------------------------------

    def _write(self) -> None:
        """Writes all changes and answers their requests, unless another process has the lock."""
        if not self._unwritten:
            return
        try:
            if self._store is not None and self._store.is_replaced():
                self._close_file()
            store = self._open()
            if not store.begin_writing():
                self._answer_late()
                return
        except WrongSchema:
            raise
        except StoreError as error:
            self._last_write_worked = False
            self._unrecorded(self._take(), error)
            return
        now = monotonic()
        batch = [each for each in self._take() if self._is_wanted(each[0], now)]
        batch = self._save_all(store, batch)
        if not batch:
            store.roll_back()
            return
        try:
            store.commit()
        except Exception as error:
            store.roll_back()
            self._last_write_worked = False
            self._unrecorded(batch, error)
            return
        self._write_back.count(len(batch))
        self._last_write_worked = True
        for question, _asked in batch:
            if not question.answered:
                self._tell(question, question.decision.verdict())

    def _is_wanted(self, question: Question, now: float) -> bool:
        """Returns false if the client of QUESTION has gone while it waited: it is not written.

        NOW is ``monotonic``.
        """
        if question.answered or now - question.started < LONG:
            return True
        if not question.peer.has_left():
            return True
        self._answer(question, None, [])
        return False

    def _take(self) -> Batch:
        """Returns all unwritten requests, and leaves none."""
        batch, self._unwritten = self._unwritten, []
        return batch

    def _save_all(self, store: Store, batch: Batch) -> Batch:
        """Writes the changes of BATCH in the transaction of STORE.

        Returns those that were written. If one fails, or of many at once one has lost a race, each
        is written so that it can fail alone. Raises WrongSchema.
        """
        decisions = [question.decision for question, _asked in batch]
        try:
            for each in _save_together(store, batch):
                self._save(store, each)
        except WrongSchema:
            self._unwritten = batch
            raise
        except Exception as error:
            store.roll_back()
            for (question, _asked), decision in zip(batch, decisions, strict=True):
                question.decision = decision
            return self._save_apart(store, batch, error)
        return batch

    def _save_apart(self, store: Store, batch: Batch, fault: Exception) -> Batch:
        """As ``_save_all``, after FAULT, with a savepoint for each: a fault undoes one alone.

        Raises WrongSchema.
        """
        if len(batch) > 1:
            try:
                if not store.begin_writing():
                    self._unwritten = batch + self._unwritten
                    return []
            except WrongSchema:
                self._unwritten = batch
                raise
            except StoreError as error:
                fault = error
        written: Batch = []
        for place, each in enumerate(batch):
            if not store.is_in_batch:
                # SQLite has undone all of it, as on a full disk: no single request is at fault.
                self._last_write_worked = False
                self._unrecorded(written + batch[place:], fault)
                return []
            try:
                with store.apart():
                    self._save(store, each)
                written.append(each)
            except Exception as error:
                fault = error
                self._unrecorded([each], error)
        return written

    def _save(self, store: Store, each: tuple[Question, Asked]) -> None:
        """Writes the changes of one request. Decides it first if it is not, or its rows changed."""
        question, asked = each
        decision = question.decision
        if not decision.reason or not store.save(asked, decision.changes, patient=True):
            if state(question) == TO_COUNT:
                return
            decision = check.check(store, decision, self._messages.first_passed)
            question.decision = decision
        if decision.opens_message and question.hook:
            with suppress(StoreError):  # later recipients wait, then
                check.remember(store, decision, question.attempt)

    def _answer_late(self) -> None:
        """Answers requests for which another process has held the lock too long."""
        now = monotonic()
        late: dict[float, Batch] = {}
        for question, asked in self._take():
            # A use of what is known need not wait for the lock that long.
            hurried = state(question) == TO_ANSWER and question.decision.only_counts_use
            limit = sqlite.HURRY if hurried else question.settings.deadline * STORE_SHARE
            if now - question.started < limit:
                self._unwritten.append((question, asked))
            elif self._is_wanted(question, now):
                late.setdefault(limit, []).append((question, asked))
        for limit, batch in late.items():
            self._last_write_worked = False
            fault = StoreError(f"{self._path}: locked by another process for {limit:.1f}s")
            self._unrecorded(batch, fault)

    # --- answers ----------------------------------------------------------------------------------

    def _unrecorded(self, batch: Batch, fault: Exception) -> None:
        """Answers BATCH, which could not be written because of FAULT.

        A verdict stands without its record, unless it is true only once it is recorded.
        """
        lost = sum(state(question) == TO_COUNT for question, _asked in batch)
        if lost:
            self._warn(f"{_said(fault)}: attempts or uses that were not recorded: {lost}")
        for question, _asked in batch:
            decision = question.decision
            if decision.reason and not decision.needs_record:
                decision.unrecorded = _said(fault)
                self._tell(question, decision.verdict())
            else:
                self._tell(question, question.failed(_said(fault)))

    def _tell(self, question: Question, verdict: Verdict) -> None:
        """Answers QUESTION by VERDICT, unless it is answered already."""
        if question.answered:
            return
        if verdict.opens_message and not question.hook:
            self._messages.open(question.envelope, int(time()))
        notes, self._notes = self._notes, []
        self._answer(question, verdict, notes)

    # --- the file ---------------------------------------------------------------------------------

    def _begin_reading(self) -> Store:
        """Begins a read transaction; makes the store anew if its tables were removed."""
        store = self._open()
        try:
            store.begin_reading()
        except NoSchema:
            self._make()
            store = self._open()
            store.begin_reading()
        return store

    def _open(self) -> Store:
        """Returns the store, opened if it is not; made anew if the file was removed."""
        if self._store is None:
            try:
                self._store = Store(self._path)
            except NoSchema:
                self._make()
                self._store = Store(self._path)
        return self._store

    def _make(self) -> None:
        """Makes the store as a first check would. Raises StoreError, if only IDLE is not over."""
        self._close_file()
        if monotonic() - self._made < IDLE:
            raise StoreError(f"{self._path}: was taken away")
        self._made = monotonic()
        try:
            migrate.upgrade(self._settings.database, self._settings.database_mode)
        except migrate.SchemaError as error:
            raise StoreError(str(error)) from None
        self._notes.append(f"note {self._path}: was taken away: made anew")

    def _close_file(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    # --- the loop's calls -------------------------------------------------------------------------

    @property
    def pause(self) -> float:
        """The time after which ``tick`` is to be called, in seconds."""
        if self._unwritten:
            return RETRY
        return LOOK if self._write_back.changes > CHANGES else IDLE

    def tick(self) -> None:
        """Writes changes; now and then closes a file that was removed, or writes its log back."""
        self._write()
        now = monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        if self._store is None:
            return
        if self._store.is_replaced():
            self._close_file()
        else:
            self._write_back.start_if_due(self._store)

    @property
    def pending(self) -> int:
        """The number of unwritten requests."""
        return len(self._unwritten)

    @property
    def has_unanswered(self) -> bool:
        """True if one of them is not answered."""
        return any(not question.answered for question, _asked in self._unwritten)

    def close(self) -> None:
        """Closes the file. The log is written back by that."""
        self._write_back.join()
        lost = sum(state(question) == TO_COUNT for question, _asked in self._take())
        if lost:
            self._warn(f"attempts or uses that were not recorded: {lost}")
        self._close_file()


def _save_together(store: Store, batch: Batch) -> Batch:
    """Writes those of BATCH at once that change a triplet's row, and nothing else.

    Returns the others, in their order. Of several changes of one triplet the first is written so.
    """
    changes, others, keys = [], [], set()
    for each in batch:
        question, asked = each
        decision = question.decision
        if (
            decision.reason
            and len(decision.changes) == 1
            and isinstance(decision.changes[0].new, TripletRow)
            and asked.key not in keys
            and not (question.hook and decision.opens_message)
        ):
            changes.append((asked, decision.changes[0]))
        else:
            others.append(each)
        keys.add(asked.key)
    if len(changes) < 2:
        return batch
    store.save_together(changes)
    return others


class WriteBack:
    """Writes the write-ahead log of the file PATH back, in a thread, when that disturbs least.

    ``changes`` is how many were committed here since it was last written back. ``last_decision`` is
    when something was last asked (``monotonic``); the owner sets it.
    """

    def __init__(self, path: str) -> None:
        self.changes = 0
        self.last_decision = self._first_change = monotonic()
        self._path = path
        self._size = 0
        self._thread: threading.Thread | None = None

    def count(self, changes: int) -> None:
        """Counts CHANGES that were committed."""
        if not self.changes:
            self._first_change = monotonic()
        self.changes += changes

    def start_if_due(self, store: Store) -> None:
        """Starts the thread if the log is long, once nothing is asked or enough time is over."""
        if not self._is_due(store) or (self._thread is not None and self._thread.is_alive()):
            return
        thread = threading.Thread(target=batch_store.write_back, args=(self._path,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no thread can be made just now
        self._thread = thread
        self.changes, self._size, self._first_change = 0, store.log_size(), monotonic()

    def _is_due(self, store: Store) -> bool:
        now = monotonic()
        is_quiet = now - self.last_decision >= LOOK
        if not is_quiet and now - self._first_change < QUIET and self.changes < MANY:
            return False
        # By changes, as the log is written over from its beginning and does not grow for them; by
        # size, as other processes write too.
        return self.changes > CHANGES or store.log_size() > self._size + batch_store.LOG_STEP

    def join(self) -> None:
        """Waits for the thread to end."""
        if self._thread is not None:
            self._thread.join()


def _said(error: Exception) -> str:
    """Returns the text of ERROR; the store's own errors say all without their type."""
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
