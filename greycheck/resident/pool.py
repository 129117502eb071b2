"""Deciding from a server database: a few connections, each with a thread that makes one check after the other.

A check there is what a forked child does, on a connection that stays open, with the same marks for hosts that do not answer. Questions
wait in a queue of ``max_queue``; what finds it full, and what has waited until its deadline, is answered by ``on_error``, so that a slow
database holds up no more than that.

Whoever was last to use a connection is the first to use it again: what little mail needs is few connections, and the others are given
back. Only the thread that calls ``decide`` and ``tick`` answers questions.

Bugs: a thread whose driver hangs for longer than its limits is one less until it comes back.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, time

from greycheck import check
from greycheck.child import PATIENCE
from greycheck.policy import Verdict
from greycheck.resident.questions import Messages, Question
from greycheck.settings import Settings
from greycheck.store import drivers, server
from greycheck.store.lean import StoreError, WrongSchema
from greycheck.store.lean_server import Store

Answer = Callable[[Question, Verdict | None, "list[str]"], None]
Inbox = SimpleQueue[Question | None]

# How often deadlines are looked at, in seconds.
LOOK = 0.1

# After how many seconds in the queue it is looked whether somebody still waits for the answer.
LONG = 1.0

# How long ``tick`` may wait where nobody waits for an answer, in seconds.
IDLE = 60.0

# How long a connection may be unused until it is given back, in seconds: sooner than the server would take it (``server.IDLE``).
UNUSED = server.IDLE / 2

# How long saying good-bye to the server may take at the end, in seconds.
GOOD_BYE = 0.5


class Pool:
    """Connections to the database that the settings FOUND name; each verdict is handed to ANSWER, None where nobody waits for one.

    Raises StoreError without a driver; ``tick`` raises WrongSchema where the schema is another program's.
    """

    def __init__(self, found: Settings, answer: Answer, messages: Messages) -> None:
        self._settings = found
        self._answer = answer
        self._messages = messages
        _import_driver(found)
        # What waits for its answer; and the notes that no answer has told.
        self._asked: dict[Question, None] = {}
        self._notes: list[str] = []
        self._looked = monotonic()
        # What no worker has taken yet, and the workers that have nothing to do, who was at it last at the end.
        self._lock = threading.Lock()
        self._queue: deque[Question] = deque()
        self._idle: list[Inbox] = []
        self._ends = False
        # Whom a worker asks about which question, and what came of it.
        self._stores: dict[Question, Store] = {}
        self._decided: deque[tuple[Question, Verdict | None, list[str]]] = deque()
        self._wrong: WrongSchema | None = None
        # A byte on this pipe wakes whoever waits for verdicts.
        self.descriptor, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(found.pool_size)]
        for worker in self._workers:
            worker.start()

    # --- questions and answers --------------------------------------------------------------------------------------------

    def decide(self, questions: list[Question]) -> None:
        """Hands QUESTIONS to workers, or puts them into the queue; those beyond its end are answered at once."""
        with self._lock:
            room = max(0, self._settings.max_queue + len(self._idle) - len(self._queue))
            self._asked.update(dict.fromkeys(questions[:room]))
            self._queue.extend(questions[:room])
            while self._queue and self._idle:
                self._idle.pop().put(self._queue.popleft())
        for question in questions[room:]:
            reason = f"{self._settings.max_queue} requests wait for the database: not asked"
            self._tell(question, question.error(reason), [])

    def tick(self) -> None:
        """Answers what was decided, and what nobody has decided in time."""
        with suppress(BlockingIOError):
            os.read(self.descriptor, 65536)
        while self._decided:
            self._tell(*self._decided.popleft())
        if self._wrong is not None:
            raise self._wrong
        now = monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            self._end_overdue([question for question in self._asked if question.is_overdue(now)])

    def _end_overdue(self, questions: list[Question]) -> None:
        for question in questions:
            store = self._stores.get(question)
            notes: list[str] = []
            if store is not None:
                store.overdue()
                notes, store.notes = store.notes, []
            late = question.error(f"no answer within {question.settings.deadline}s")
            self._tell(question, None if question.peer.has_left() else late, notes)
        if questions:
            with self._lock:
                self._queue = deque(question for question in self._queue if question in self._asked)

    def _tell(self, question: Question, verdict: Verdict | None, notes: list[str]) -> None:
        self._notes += notes
        if question.answered:
            return
        self._asked.pop(question, None)
        if verdict is None:
            self._answer(question, None, [])
            return
        if verdict.vouches and not question.hook:
            self._messages.vouch(question.envelope, int(time()))
        notes, self._notes = self._notes, []
        self._answer(question, verdict, notes)

    @property
    def pause(self) -> float:
        """How long ``tick`` may wait, in seconds."""
        return LOOK if self._asked else IDLE

    @property
    def waits(self) -> int:
        """How many questions wait for their answer."""
        return len(self._asked)

    @property
    def owes(self) -> bool:
        """Whether there are any."""
        return bool(self._asked)

    def close(self) -> None:
        """Lets the workers end, who say good-bye to the server."""
        with self._lock:
            self._ends = True
            for inbox in self._idle:
                inbox.put(None)
        end = monotonic() + GOOD_BYE
        for worker in self._workers:
            worker.join(max(0, end - monotonic()))
        # Who still runs may want to wake somebody: a descriptor that is another one's by then must not be written to.
        if not any(worker.is_alive() for worker in self._workers):
            os.close(self.descriptor)
            os.close(self._wake)

    # --- workers ----------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """One worker: decides what it is given on a connection of its own."""
        inbox: Inbox = SimpleQueue()
        store = self._new_store()
        while (question := self._next(inbox, store)) is not None:
            if question.answered:
                continue
            self._stores[question] = store
            try:
                verdict = self._verdict(store, question)
                store.rest()
                self._decided.append((question, verdict, store.notes))
            except WrongSchema as error:
                self._wrong = error
            except Exception as error:
                # Nobody knows what its connection is at.
                with suppress(Exception):
                    store.tidy()
                store = self._new_store()
                self._decided.append((question, question.error(f"{type(error).__name__}: {error}"), []))
            del self._stores[question]
            with suppress(BlockingIOError):  # it is full, and who waits for verdicts awake
                os.write(self._wake, b"\0")
        store.tidy()

    def _new_store(self) -> Store:
        return Store(self._settings, self._settings.deadline * PATIENCE)

    def _next(self, inbox: Inbox, store: Store) -> Question | None:
        """The next question; None at the end.

        A STORE gives its connection back where nobody asks it for a while, or where another one's host has none left.
        """
        with self._lock:
            if self._ends:
                return None
            if self._queue:
                return self._queue.popleft()
            self._idle.append(inbox)
        if any(other.is_hungry for other in list(self._stores.values())):
            store.tidy()
        try:
            return inbox.get(timeout=UNUSED)
        except Empty:
            store.tidy()
            return inbox.get()

    def _verdict(self, store: Store, question: Question) -> Verdict | None:
        """The verdict on QUESTION; None where nobody waits for it any more. Raises WrongSchema."""
        if monotonic() - question.started > LONG and question.peer.has_left():
            return None
        try:
            return self._check(store, question)
        except WrongSchema:
            raise
        except StoreError as error:
            return question.error(str(error))

    def _check(self, store: Store, question: Question) -> Verdict:
        """The verdict on QUESTION. Raises StoreError."""
        left = min(question.settings.deadline, self._settings.deadline) - (monotonic() - question.started)
        store.begin(left * PATIENCE)
        made = question.attempt
        verdict = check.check(store, question.envelope, question.settings, made, self._messages.first_passed)
        if verdict.vouches and question.hook:
            with suppress(StoreError):  # later recipients wait, as those of other hooks do
                check.remember(store, question.envelope, question.settings, made)
        return verdict


def _import_driver(found: Settings) -> None:
    """Imports what connecting would import: of several threads that do that with stand-ins each would meet the others'."""
    name = drivers.load(server.parse(found.database))[0]
    if name == "psycopg2":
        __import__(name)
