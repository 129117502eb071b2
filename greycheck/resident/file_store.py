"""Deciding from an SQLite file, many questions at a time.

All questions that came together are looked up in one transaction. Those whose verdict holds whatever is written are answered; the
others are written together, and answered once that is committed. Where another process holds the lock they wait for it, and the rest is
decided meanwhile.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, time

from greycheck import check, policy
from greycheck.child import PATIENCE
from greycheck.envelope import triplet
from greycheck.policy import Verdict
from greycheck.resident.questions import Messages, Question
from greycheck.settings import Settings
from greycheck.store import lean_sqlite, resident_sqlite, schema
from greycheck.store.lean import Asked, Busy, NoSchema, StoreError, WrongSchema
from greycheck.store.resident_sqlite import Store

# How soon a lock that somebody else holds is tried again, in seconds.
RETRY = 0.002

# How often it is looked whether the file is still there, and whether its log is to be written back, in seconds.
LOOK = 0.1

# How soon a file that was taken away is made once more, in seconds; and how long ``tick`` may wait where nothing is to be done.
IDLE = 1.0

# Changes after which the log is written back, some 10 MB of it: as soon as nobody has asked for as long as LOOK, or QUIET seconds after
# the first of them, or when they are MANY.
CHANGES, QUIET, MANY = 1500, 3.0, 12000

# How much may wait to be written where answers do not: somebody may have the lock for long.
AHEAD = 256

# After how many seconds it is looked whether somebody still waits for the answer to what is to be written.
LONG = 1.0

Answer = Callable[[Question, Verdict | None, "list[str]"], None]
Batch = list[tuple[Question, Asked]]


class FileStore:
    """The SQLite file that the settings FOUND name; each verdict is handed to ANSWER, and what has none to WARN.

    ANSWER is given None where nobody waits for a verdict. Raises StoreError where the file cannot be used; ``decide`` and ``tick`` raise
    WrongSchema where that is another program's.
    """

    def __init__(self, found: Settings, answer: Answer, messages: Messages, warn: Callable[[str], None]) -> None:
        self._settings = found
        self._path = found.database.partition(":///")[2]
        self._answer, self._warn = answer, warn
        self._messages = messages
        self._store: Store | None = Store(self._path)
        self._unwritten: Batch = []
        # Whether the last batch could be written: else whatever is to be written waits for that, so that its line can say so.
        self._writes = True
        self._writing_back: threading.Thread | None = None
        self._looked = self._decided = monotonic()
        self._made = float("-inf")
        # Changes since the log was last written back, and its size then; and when that was, or the first of them.
        self._changes = self._log = 0
        self._changed = monotonic()
        self._notes: list[str] = []

    # --- looking up -------------------------------------------------------------------------------------------------------

    def decide(self, questions: list[Question]) -> None:
        """Decides QUESTIONS, and answers those whose verdict holds whatever is written; ``tick`` writes."""
        self._decided = monotonic()
        asked: Batch = []
        for q in questions:
            try:
                asked.append(
                    (q, Asked(q.envelope, triplet(q.envelope, q.settings.ipv4_prefix, q.settings.ipv6_prefix)))
                )
            except Exception as error:
                self._tell(q, q.error(_said(error)))
        try:
            store = self._begin_reading()
        except Busy:
            self._unwritten += asked
            return
        except WrongSchema:
            raise
        except StoreError as error:
            for question, _asked in asked:
                self._tell(question, question.error(str(error)))
            return
        for each in asked:
            self._look_up(store, each)
        if self._unwritten:
            return  # that goes on in ``tick``
        try:
            store.commit()
        except StoreError:
            store.roll_back()

    def _look_up(self, store: Store, asked: tuple[Question, Asked]) -> None:
        question, what = asked
        try:
            verdict, changes = check.decide(
                store, what, question.settings, question.attempt, self._messages.first_passed
            )
        except Busy:
            self._unwritten.append(asked)
            return
        except WrongSchema:
            raise
        except Exception as error:
            self._tell(question, question.error(_said(error)))
            return
        if changes or (verdict.vouches and question.hook):
            question.verdict, question.changes = verdict, changes
            self._unwritten.append(asked)
            if not (self._writes and len(self._unwritten) < AHEAD and policy.holds(verdict, changes)):
                return
        self._tell(question, verdict)

    # --- writing ----------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Writes what is to be written, unless somebody else is at it, and answers it."""
        if not self._unwritten:
            return
        try:
            if self._store is not None and self._store.is_replaced():
                self._leave()
            store = self._open()
            if not store.begin_writing():
                self._give_up()
                return
        except WrongSchema:
            raise
        except StoreError as error:
            self._writes = False
            self._unrecorded(self._take(), error)
            return
        batch = self._save_all(store, [each for each in self._take() if self._is_wanted(each[0])])
        if not batch:
            store.roll_back()
            return
        try:
            store.commit()
        except Exception as error:
            store.roll_back()
            self._writes = False
            self._unrecorded(batch, error)
            return
        if not self._changes:
            self._changed = monotonic()
        self._changes += len(batch)
        self._writes = True
        for question, _asked in batch:
            assert question.verdict is not None
            self._tell(question, question.verdict)

    def _is_wanted(self, question: Question) -> bool:
        """Whether QUESTION is to be written: unless whoever waited for its answer has given up meanwhile."""
        if question.answered or monotonic() - question.started < LONG or not question.peer.has_left():
            return True
        self._answer(question, None, [])
        return False

    def _take(self) -> Batch:
        batch, self._unwritten = self._unwritten, []
        return batch

    def _save_all(self, store: Store, batch: Batch) -> Batch:
        """Writes the changes of BATCH, and returns it without what cannot be written, which is answered: a fault is that one's alone."""
        verdicts = [question.verdict for question, _asked in batch]
        try:
            for each in batch:
                self._save(store, each)
        except WrongSchema:
            self._unwritten = batch
            raise
        except Exception as error:
            store.roll_back()
            for (question, _asked), verdict in zip(batch, verdicts, strict=True):
                question.verdict = verdict
            return self._save_apart(store, batch, error)
        return batch

    def _save_apart(self, store: Store, batch: Batch, fault: Exception) -> Batch:
        """As ``_save_all``, after a FAULT has undone all of it: once more, and each so that it can be undone alone."""
        if len(batch) > 1:
            try:
                if not store.begin_writing():
                    self._unwritten = batch + self._unwritten
                    return []
            except StoreError as error:
                fault = error
        written: Batch = []
        for place, each in enumerate(batch):
            if not store.is_in_batch:
                # All has been undone: it was no single one's fault.
                self._writes = False
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
        question, asked = each
        if question.verdict is None or not store.save(asked, question.changes, patient=True):
            if question.answered:
                return  # somebody has counted it already, or there is nothing any more to be counted
            question.verdict = check.check(
                store, question.envelope, question.settings, question.attempt, self._messages.first_passed
            )
        if question.verdict.vouches and question.hook:
            with suppress(StoreError):  # later recipients wait, then
                check.remember(store, question.envelope, question.settings, question.attempt)

    def _give_up(self) -> None:
        """Answers what has waited for the lock for as long as it may."""
        now = monotonic()
        over: dict[float, Batch] = {}
        for question, asked in self._take():
            verdict = question.verdict
            hurried = verdict is not None and verdict.reason in ("client", "known") and not question.answered
            patience = lean_sqlite.HURRY if hurried else question.settings.deadline * PATIENCE
            if now - question.started < patience:
                self._unwritten.append((question, asked))
            elif self._is_wanted(question):
                over.setdefault(patience, []).append((question, asked))
        for patience, batch in over.items():
            self._writes = False
            self._unrecorded(batch, StoreError(f"{self._path}: locked by another process for {patience:.1f}s"))

    # --- answers ----------------------------------------------------------------------------------------------------------

    def _unrecorded(self, batch: Batch, fault: Exception) -> None:
        """Answers what could not be written because of FAULT: a verdict stands unless it is only true once it is recorded."""
        counted = sum(question.answered for question, _asked in batch)
        if counted:
            self._warn(f"{_said(fault)}: attempts or uses that were not recorded: {counted}")
        for question, _asked in batch:
            verdict = question.verdict
            if verdict is None or policy.needs_record(verdict, question.changes):
                verdict = question.error(_said(fault))
            else:
                verdict.unrecorded, verdict.vouches = _said(fault), False
            self._tell(question, verdict)

    def _tell(self, question: Question, verdict: Verdict) -> None:
        if question.answered:
            return
        if verdict.vouches and not question.hook:
            self._messages.vouch(question.envelope, int(time()))
        notes, self._notes = self._notes, []
        self._answer(question, verdict, notes)

    # --- the file ---------------------------------------------------------------------------------------------------------

    def _begin_reading(self) -> Store:
        """The store, with a batch of lookups begun."""
        store = self._open()
        try:
            store.begin_reading()
        except NoSchema:
            self._make()
            store = self._open()
            store.begin_reading()
        return store

    def _open(self) -> Store:
        """The store, opened anew where its file was taken away."""
        if self._store is None:
            try:
                self._store = Store(self._path)
            except NoSchema:
                self._make()
                self._store = Store(self._path)
        return self._store

    def _make(self) -> None:
        """Makes the store, as a first check would, where its file or its tables were taken away. Raises StoreError."""
        self._leave()
        if monotonic() - self._made < IDLE:
            raise StoreError(f"{self._path}: was taken away")
        self._made = monotonic()
        try:
            schema.upgrade(self._settings.database, self._settings.database_mode)
        except schema.SchemaError as error:
            raise StoreError(str(error)) from None
        self._notes.append(f"note {self._path}: was taken away: made anew")

    def _leave(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    # --- now and then -----------------------------------------------------------------------------------------------------

    @property
    def pause(self) -> float:
        """How long ``tick`` may wait, in seconds."""
        if self._unwritten:
            return RETRY
        return LOOK if self._changes > CHANGES else IDLE

    def tick(self) -> None:
        """What is to be done now and then: what waits for a lock, the log, a file that was taken away."""
        self._write()
        now = monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        store = self._store
        if store is not None and store.is_replaced():
            self._leave()
        elif store is not None and self._wants_write_back(store) and not self._is_writing_back():
            self._changes, self._log, self._changed = 0, store.log_size(), now
            self._writing_back = threading.Thread(target=resident_sqlite.write_back, args=(self._path,), daemon=True)
            self._writing_back.start()

    def _wants_write_back(self, store: Store) -> bool:
        """Whether the log is long: by what was changed here, as it is written over from its beginning; by its size, as others write too."""
        now = monotonic()
        if now - self._changed < QUIET and now - self._decided < LOOK and self._changes < MANY:
            return False
        return self._changes > CHANGES or store.log_size() > self._log + resident_sqlite.LOG_STEP

    def _is_writing_back(self) -> bool:
        return self._writing_back is not None and self._writing_back.is_alive()

    @property
    def waits(self) -> int:
        """How many questions wait to be written."""
        return len(self._unwritten)

    @property
    def owes(self) -> bool:
        """Whether any of them waits for its answer until then."""
        return any(not question.answered for question, _asked in self._unwritten)

    def close(self) -> None:
        """Leaves the file, its log written back."""
        if self._writing_back is not None:
            self._writing_back.join()
        lost = sum(question.answered for question, _asked in self._take())
        if lost:
            self._warn(f"attempts or uses that were not recorded: {lost}")
        self._leave()


def _said(error: Exception) -> str:
    """What is told of an ERROR: the store's own says it all."""
    return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
