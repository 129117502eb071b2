"""Decides from a server database: a few connections, each with a thread that makes its checks.

Requests wait in a queue of ``max_queue``. Those beyond it, and those that waited until their
deadline, are answered by ``on_error``: a slow database delays nothing else.

An idle worker takes all that waits, and decides it together (``together``). A request that comes
while another batch is at the database waits for that to come back, so that more are decided
together: until there are ENOUGH, or for as long as two batches usually take. One that comes alone
waits for nobody.

What could not be decided together is decided one by one, each by whichever worker is free: a worker
does then what a forked child does, on a connection that stays open, with the same marks for hosts
that do not answer.

The worker that was idle last gets the next requests, so that few connections are in use where there
is little mail. The others close theirs after a while.

Threads, and what each may touch. "Main" is the thread that calls ``decide``, ``tick`` and
``close``; it alone answers requests (but for the watchdog, which does so once, before it exits).

    _asked, _notes, _looked   main
    _queue, _alone, _again,   any thread, under _lock
      _idle, _batches, _ends
    _stores                   each worker sets and deletes the entry of its own request; all read.
                              No lock: each of these is one operation of a dict
    a store, and its notes    its worker. After the deadline of its request main calls ``overdue``
                              on it, which marks the host, and takes its notes. Other workers read
                              ``awaits_connection``
    question.decision         its worker advances it. At the deadline main asks it for the verdict
                              by ``on_error``, which needs the envelope and the settings alone
    _decided, _said           workers append, main takes from the other end. No lock: deques
    _wrong                    workers set it, main reads it
    the pipe                  workers write a byte after each verdict, main reads
    question.answered         main sets it, workers read it
    messages                  main writes, workers look up. No lock: one operation of a dict

Bugs: a worker whose driver hangs for longer than its limits is missing until it comes back.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, time

from greycheck import check
from greycheck.policy import Verdict
from greycheck.resident import together
from greycheck.resident.messages import Messages
from greycheck.resident.questions import Question
from greycheck.resident.together import Shared, Store
from greycheck.settings import Settings
from greycheck.store import drivers
from greycheck.store.base import STORE_SHARE, StoreError
from greycheck.store.causes import WrongSchema
from greycheck.store.drivers import arguments

Answer = Callable[[Question, Verdict | None, "list[str]"], None]
# What a worker is given: questions, and whether to decide them together. None at the end.
Work = tuple[list[Question], bool]
Inbox = SimpleQueue[Work | None]

# How long a thread that has work may keep others from running, in seconds: a worker to which its
# database has answered is not to wait for all that others ask meanwhile. Python's own are 0.005.
TURN = 0.0005

# How often deadlines are checked, in seconds.
LOOK = 0.1

# While a batch is at the database, others wait until there are ENOUGH of them, or for as long as
# two batches usually take, but at least and at most so many seconds. No batch has more than MOST.
ENOUGH, LEAST, LONGEST, MOST = 16, 0.002, 0.05, 128

# Requests that waited longer than this in the queue, in seconds, are decided only if their client
# is still there.
LONG = 1.0

# How long ``tick`` may wait where nothing waits for an answer, in seconds.
IDLE = 60.0

# A connection that was not used for this long, in seconds, is closed: before the server would.
UNUSED = arguments.IDLE / 2

# How long closing all connections may take at the end, in seconds.
GOOD_BYE = 0.5


class Pool:
    """Decides from the server database of SETTINGS.

    ANSWER is called with each question, its verdict, and notes about the database for the log; with
    a verdict of None where the client has gone. ``descriptor`` can be read once ``tick`` has
    something to do.

    Raises StoreError without a driver. ``tick`` raises WrongSchema if the schema is another
    program's.
    """

    def __init__(self, settings: Settings, answer: Answer, messages: Messages) -> None:
        self._settings = settings
        self._answer = answer
        self._messages = messages
        import_driver(settings)
        sys.setswitchinterval(TURN)
        # Requests that are not answered; notes that no answer has passed on yet.
        self._asked: dict[Question, None] = {}
        self._notes: list[str] = []
        self._looked = monotonic()
        # Requests that no worker has taken, to be decided together or each alone; those that have
        # lost a race together; idle workers, most recently used last; how many have a batch, and
        # how long one usually takes, in seconds.
        self._lock = threading.Lock()
        self._queue: deque[Question] = deque()
        self._alone: deque[Question] = deque()
        self._again: set[Question] = set()
        self._idle: list[Inbox] = []
        self._batches = 0
        self._usual = LEAST
        self._ends = False
        self._shared = Shared()
        # The store that is in use for each request; finished verdicts, and notes of batches.
        self._stores: dict[Question, Store] = {}
        self._decided: deque[tuple[Question, Verdict | None, list[str]]] = deque()
        self._said: deque[str] = deque()
        self._wrong: WrongSchema | None = None
        self.descriptor, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._workers = [
            threading.Thread(target=self._work, daemon=True) for _ in range(settings.pool_size)
        ]
        for worker in self._workers:
            worker.start()

    # --- the main thread --------------------------------------------------------------------------

    def decide(self, questions: list[Question]) -> None:
        """Hands QUESTIONS to idle workers, or queues them.

        Those beyond ``max_queue`` are answered by ``on_error``.
        """
        with self._lock:
            waiting = len(self._queue) + len(self._alone)
            room = max(0, self._settings.max_queue + len(self._idle) - waiting)
            self._asked.update(dict.fromkeys(questions[:room]))
            self._queue.extend(questions[:room])
            self._hand_out(False)
        for question in questions[room:]:
            reason = f"{self._settings.max_queue} requests wait for the database: not asked"
            self._tell(question, question.failed(reason), [])

    def _hand_out(self, is_urgent: bool) -> None:
        """Gives idle workers what waits. Needs the lock.

        What can be decided together waits for more while a batch is at the database, unless it
        IS_URGENT.
        """
        while self._idle and (work := self._take(is_urgent)) is not None:
            self._idle.pop().put(work)

    def _take(self, is_urgent: bool) -> Work | None:
        """Returns what a worker is to do next, as ``_hand_out`` says. Needs the lock."""
        if self._alone:
            return [self._alone.popleft()], False
        if not self._queue:
            return None
        if self._batches and not is_urgent and len(self._queue) < ENOUGH:
            return None
        # One that has waited long leaves a batch little time: those that have come since are not in
        # it.
        now = monotonic()
        is_late = self._is_late(self._queue[0], now)
        batch: list[Question] = []
        while self._queue and len(batch) < MOST and self._is_late(self._queue[0], now) == is_late:
            batch.append(self._queue.popleft())
        self._batches += 1
        return batch, True

    @property
    def _patience(self) -> float:
        """Returns how long requests wait for a batch to come back, in seconds."""
        return min(max(2 * self._usual, LEAST), LONGEST)

    @staticmethod
    def _is_late(question: Question, now: float) -> bool:
        return now - question.started > question.settings.deadline / 2

    def tick(self) -> None:
        """Answers what is decided, and by ``on_error`` what is not decided by its deadline."""
        if self._queue:
            with self._lock:
                if self._queue and monotonic() - self._queue[0].started > self._patience:
                    self._hand_out(True)
        with suppress(BlockingIOError):
            os.read(self.descriptor, 65536)
        while self._said:
            self._notes.append(self._said.popleft())
        while self._decided:
            self._tell(*self._decided.popleft())
        if self._wrong is not None:
            raise self._wrong
        now = monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            self._end_overdue([question for question in self._asked if question.is_overdue(now)])

    def _end_overdue(self, questions: list[Question]) -> None:
        """Answers QUESTIONS, whose deadline is over, and marks the hosts that did not answer."""
        for question in questions:
            store = self._stores.get(question)
            notes: list[str] = []
            if store is not None:
                store.overdue()
                notes = _notes_of(store)
            late = question.failed(f"no answer within {question.settings.deadline}s")
            self._tell(question, None if question.peer.has_left() else late, notes)
        if questions:
            with self._lock:
                for queue in self._queue, self._alone:
                    left = [question for question in queue if question in self._asked]
                    queue.clear()
                    queue.extend(left)
                self._again.intersection_update(self._asked)

    def _tell(self, question: Question, verdict: Verdict | None, notes: list[str]) -> None:
        """Answers QUESTION by VERDICT, unless it is answered already; keeps NOTES for the log."""
        self._notes += notes
        if question.answered:
            return
        self._asked.pop(question, None)
        if verdict is None:
            self._answer(question, None, [])
            return
        if verdict.opens_message and not question.hook:
            self._messages.open(question.envelope, int(time()))
        notes, self._notes = self._notes, []
        self._answer(question, verdict, notes)

    @property
    def pause(self) -> float:
        """The time after which ``tick`` is to be called, in seconds."""
        if self._queue and self._idle:
            return self._patience
        return LOOK if self._asked else IDLE

    @property
    def pending(self) -> int:
        """The number of requests that are not answered."""
        return len(self._asked)

    @property
    def has_unanswered(self) -> bool:
        """True if there are any."""
        return bool(self._asked)

    def close(self) -> None:
        """Ends the workers, which close their connections. Waits for GOOD_BYE at most."""
        with self._lock:
            self._ends = True
            for inbox in self._idle:
                inbox.put(None)
        end = monotonic() + GOOD_BYE
        for worker in self._workers:
            worker.join(max(0, end - monotonic()))
        # A worker that still runs may write to the pipe: its number must not be given to another
        # file.
        if not any(worker.is_alive() for worker in self._workers):
            os.close(self.descriptor)
            os.close(self._wake)

    # --- workers ----------------------------------------------------------------------------------

    def _work(self) -> None:
        """Decides requests on a connection of its own, until ``close``. Runs in each worker."""
        inbox: Inbox = SimpleQueue()
        store = self._new_store()
        while (work := self._next(inbox, store)) is not None:
            questions, is_batch = work
            questions = [question for question in questions if not question.answered]
            self._stores.update(dict.fromkeys(questions, store))
            is_sound = False
            began = monotonic()
            try:
                if is_batch:
                    is_sound = self._decide_together(store, questions)
                else:
                    is_sound = self._decide_alone(store, questions)
            except WrongSchema as error:
                self._wrong = error
            if not is_sound:
                with suppress(Exception):
                    store.tidy()
                store = self._new_store()
            for question in questions:
                self._stores.pop(question, None)
            if is_batch:
                with self._lock:
                    self._batches -= 1
                    self._usual += (monotonic() - began - self._usual) / 8
            self._wake_main()
        store.tidy()

    def _wake_main(self) -> None:
        with suppress(BlockingIOError):  # it is full, so the main thread is awake
            os.write(self._wake, b"\0")

    def _decide_together(self, store: Store, questions: list[Question]) -> bool:
        """Decides QUESTIONS as one batch; those that it cannot are put back to be tried again.

        Returns false if the state of STORE's connection is unknown then. Raises WrongSchema.
        """
        rest = dict.fromkeys(question for question in questions if not self._has_left(question))
        lost: list[Question] = []
        is_sound = True
        if rest:
            try:
                store.begin(min(self._time_left(question) for question in rest) * STORE_SHARE)
                if not store.is_on_trial:
                    # What stands already is not held by what is to be written.
                    lost = together.decide(
                        store, rest, self._messages.first_passed, self._decide, self._wake_main
                    )
                store.rest()
            except WrongSchema:
                raise
            except StoreError:
                # Whatever it is: who is tried alone finds out, and says it.
                with suppress(StoreError):
                    store.rest()
            except Exception as error:
                # Nobody foresaw it, or one row cannot be read: whose it is will say so.
                self._said.append(
                    f"warning decided one by one, not together: {type(error).__name__}: {error}"
                )
                is_sound = False
            self._said.extend(_notes_of(store))
        with self._lock:
            again = [question for question in lost if question not in self._again]
            self._again.difference_update(questions)
            self._again.update(again)
            self._queue.extendleft(reversed(again))
            self._alone.extend(question for question in rest if question not in self._again)
            self._hand_out(False)
        return is_sound

    def _decide_alone(self, store: Store, questions: list[Question]) -> bool:
        """Decides each of QUESTIONS as a child does, with what is done there about every fault.

        Returns false if the state of STORE's connection is unknown then. Raises WrongSchema.
        """
        for question in questions:
            try:
                verdict = self._verdict(store, question)
                store.rest()
            except WrongSchema:
                raise
            except Exception as error:
                self._decide(question, question.failed(f"{type(error).__name__}: {error}"))
                return False
            self._decided.append((question, verdict, _notes_of(store)))
        return True

    def _decide(self, question: Question, verdict: Verdict | None) -> None:
        """Hands the VERDICT on QUESTION to the main thread."""
        self._decided.append((question, verdict, []))

    def _has_left(self, question: Question) -> bool:
        """Whether the client of QUESTION, which has waited long, has gone: then that is told."""
        if monotonic() - question.started <= LONG or not question.peer.has_left():
            return False
        self._decide(question, None)
        return True

    def _time_left(self, question: Question) -> float:
        """Returns how long QUESTION may take yet, in seconds."""
        limit = min(question.settings.deadline, self._settings.deadline)
        return limit - (monotonic() - question.started)

    def _new_store(self) -> Store:
        return Store(self._settings, self._settings.deadline * STORE_SHARE, self._shared)

    def _next(self, inbox: Inbox, store: Store) -> Work | None:
        """Waits for the next requests and returns them; None at the end.

        Closes the connection of STORE if none comes for UNUSED seconds, or if another worker cannot
        connect because its host has no connection left.
        """
        with self._lock:
            if self._ends:
                return None
            work = self._take(False)
            if work is not None:
                return work
            self._idle.append(inbox)
        if any(other.awaits_connection for other in list(self._stores.values())):
            store.tidy()
        try:
            return inbox.get(timeout=UNUSED)
        except Empty:
            store.tidy()
            return inbox.get()

    def _verdict(self, store: Store, question: Question) -> Verdict | None:
        """Returns the verdict on QUESTION, or None if its client has gone. Raises WrongSchema."""
        if monotonic() - question.started > LONG and question.peer.has_left():
            return None
        try:
            return self._check(store, question)
        except WrongSchema:
            raise
        except StoreError as error:
            return question.failed(str(error))

    def _check(self, store: Store, question: Question) -> Verdict:
        """Returns the verdict on QUESTION. Raises StoreError."""
        store.begin(self._time_left(question) * STORE_SHARE)
        decision = check.check(store, question.decision, self._messages.first_passed)
        if decision.opens_message and question.hook:
            try:
                check.remember(store, decision, question.attempt)
            except Exception:
                # Later recipients wait, as those of other hooks do.
                with suppress(Exception):
                    store.tidy()
        return decision.verdict()


def _notes_of(store: Store) -> list[str]:
    """Takes the notes of STORE for the log: each is said once."""
    notes, store.notes = store.notes, []
    return notes


def import_driver(settings: Settings) -> None:
    """Imports what connecting would import.

    Connecting puts stand-ins into ``sys.modules`` meanwhile: threads that import at once would get
    each other's.
    """
    server = settings.database.server
    assert server is not None
    name = drivers.load(server)[0]
    if name == "psycopg2":
        __import__(name)
