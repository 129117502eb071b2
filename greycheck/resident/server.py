"""The loop of ``greycheck serve``: waits, reads requests, has them decided, and sends answers.

In one turn it reads from all clients that have sent something, hands all whole requests to the
store together, sends their answers and writes the log. The parts of it:

    events        epoll, and how late a request may be read
    listeners     the sockets that listen
    connections   the clients: accept, read, send, close, limits
    backend       the store in use
    learning      what outbound mail teaches, written by a thread of its own
    answers       verdict to answer and log line; unexpected errors
    watchdog      ends the process if a turn hangs
    resolving     runs ``greycheck resolve`` beside it
    figures       tells Prometheus what was counted, in threads of its own

Signals: at SIGTERM and SIGINT no more is accepted, requests that have arrived are answered, and
``run`` returns. At SIGHUP the settings are read again.

Diagnostics: one line for each verdict, as the forked child writes it; ``warning`` for faults of
clients and of the store. If the schema is another program's, or a turn hangs, the process ends with
exit code 111, for the supervisor to start the program that is installed.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, monotonic_ns

from greycheck import log
from greycheck.hooks.delegation import END, LET_THROUGH, Malformed
from greycheck.metrics.numbers import Numbers
from greycheck.resident import figures, program
from greycheck.resident.answers import Answers
from greycheck.resident.backend import Backend
from greycheck.resident.connections import Connections
from greycheck.resident.events import DOUBT, IN, OUT, Events
from greycheck.resident.file_store import FileStore
from greycheck.resident.journal import Journal
from greycheck.resident.learning import Learner
from greycheck.resident.listeners import Listeners
from greycheck.resident.messages import Messages
from greycheck.resident.peers import Peer, left
from greycheck.resident.questions import Elsewhere, Question, Reader, Writer
from greycheck.resident.resolving import Resolving
from greycheck.resident.sockets import notify
from greycheck.resident.watchdog import AGAIN, Watchdog
from greycheck.settings import Settings
from greycheck.store.base import StoreError
from greycheck.store.causes import WrongSchema

# How often one turn reads, so that more requests are committed together.
ROUNDS = 2

# How often clients are examined for being slow or idle, in seconds.
SWEEP = 1.0

# How often the end is examined for being reached, in seconds.
DRAINING = 0.05

# How long the log may take to be written at the end, in seconds.
LAST_WORDS = 0.2

# Settings whose change opens the store anew; and those that need a restart. All others count from
# the next request on.
OF_THE_STORE = (
    "database",
    "database_mode",
    "state_directory",
    "deadline",
    "pool_size",
    "max_queue",
)
OF_THE_START = ("socket", "socket_mode", "socket_owner", "listen", "metrics_listen")

ENDS = {signal.SIGTERM, signal.SIGINT}
SIGNALS = (*ENDS, signal.SIGHUP)


class Server:
    """Serves on the sockets LISTENING under the settings of ENVIRON, and logs to JOURNAL.

    MAKE_STORE makes the store of settings ready to be used, or raises StoreError, as this does.
    Where a supervisor KEEPS the sockets, clients that wait there at the end are left to the next
    process. It RESOLVES domains unless something else does.
    """

    def __init__(
        self,
        listening: list[socket.socket],
        environ: dict[bytes, bytes],
        journal: Journal,
        make_store: Callable[[Settings], None],
        keeps: bool = False,
        resolves: bool = True,
    ) -> None:
        self.journal = journal
        self._environ = environ
        self._messages = Messages()
        self._reader = Reader(environ, self._messages, journal.warn)
        settings = self._reader.settings
        self._events = Events(may_be_late=keeps)
        self._connections = Connections(
            Listeners(listening, self._events, journal, keeps), self._events, journal, settings
        )
        writer = Writer(socket.gethostname(), self._messages)
        self._answers = Answers(writer, self._connections, journal)
        self._connections.on_fault = self._answers.close_faulty
        self._backend = Backend(
            settings, make_store, self._answers.answer, self._messages, journal.warn, self._events
        )
        self._learner = Learner(settings)
        self._watchdog = Watchdog(settings.deadline, self._give_up)
        self._resolving = Resolving(environ, journal, resolves)
        self._swept = monotonic()
        # Requests of this turn, for the watchdog.
        self._in_hand: list[Question] = []
        # Signals that came and were not obeyed yet. A byte on this pipe wakes the loop.
        self._signals: list[int] = []
        self._read_wake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._events.register(self._read_wake, IN)

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT. Calls READY once signals are handled."""
        for number in SIGNALS:
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        figures.start(self._reader.settings.metrics_listen, self, self.journal)
        self._watchdog.start()
        ready()
        code = 0
        while not self._is_drained():
            events = self._events.wait(self._pause())
            try:
                self._one_turn(events)
            except WrongSchema as error:
                self._hand_over(error)
                code = AGAIN
                break
            except Exception as error:
                self._recover(error)
        self._resolving.end()
        self._backend.store.close()
        self._answers.counting.end(self._reader.settings)
        self._learner.close()
        self._note_learnt()
        self.journal.flush(LAST_WORDS)
        if code:
            sys.exit(code)

    @property
    def numbers(self) -> Numbers:
        """What was counted, for Prometheus."""
        return self._answers.numbers

    @property
    def waiting(self) -> int:
        """How many requests the store has in hand."""
        return self._backend.store.pending

    @property
    def peers(self) -> int:
        """How many clients are connected."""
        return len(self._connections.peers)

    @property
    def lost(self) -> int:
        """How many lines of the log were lost."""
        return self.journal.lost

    def _pause(self) -> float:
        """Returns how long the loop may wait for the next event, in seconds."""
        if self._connections.ready:
            return 0
        return min(self._backend.store.pause, DRAINING if self._connections.is_draining else SWEEP)

    def _is_drained(self) -> bool:
        connections = self._connections
        return (
            connections.is_draining and connections.is_drained and not self._backend.store.pending
        )

    def _begin_turn(self) -> None:
        self._watchdog.turn = self._connections.now = monotonic()

    def _one_turn(self, events: list[tuple[int, int]]) -> None:
        """Acts on EVENTS, and on all that is due."""
        self._begin_turn()
        store = self._backend.store
        if not ENDS.isdisjoint(self._signals):
            self._drain()
        self._in_hand = []
        for _ in range(ROUNDS):
            self._handle(events)
            if not store.has_unanswered:
                break
            # Requests that came in the meantime are committed together with those that wait. The
            # log of what was answered is written before.
            self.journal.flush()
            events = self._events.wait(0)
            if not events:
                break
        store.tick()
        if self._connections.now - self._swept > SWEEP:
            self._swept = monotonic()
            self._connections.sweep()
            self._note_learnt()
            self._resolving.tick(self._reader.settings)
            self._answers.counting.tick(self._reader.settings)
        self._watchdog.turn = 0.0
        if self._connections.is_draining:
            self._connections.drain_on()
        if self._signals:
            self._obey()
        if self.journal.has_lines:
            self.journal.flush()

    def _handle(self, events: list[tuple[int, int]]) -> None:
        """Reads and sends by EVENTS, and has all whole requests decided."""
        connections, close_faulty = self._connections, self._answers.close_faulty
        peers, ready = connections.peers, connections.ready
        for descriptor, event in events:
            peer = peers.get(descriptor)
            try:
                if peer is None:
                    self._handle_other(descriptor)
                elif event & OUT:
                    connections.send(peer, b"")
                else:
                    connections.read(peer)
            except Exception as error:
                close_faulty(peer, error)
        questions = []
        for _ in range(len(ready)):
            peer = ready.popleft()
            try:
                question = self._next_question(peer)
            except Exception as error:
                close_faulty(peer, error)
                continue
            if question is not None:
                questions.append(question)
        is_late = self._events.age > DOUBT
        if questions and (is_late or any(question.waited for question in questions)):
            questions = self._still_wanted(questions)
        if questions:
            self._in_hand += questions
            self._backend.store.decide(questions)

    def _handle_other(self, descriptor: int) -> None:
        """Acts on an event of DESCRIPTOR, which is no client's."""
        listening = self._connections.listeners.find(descriptor)
        if listening is not None:
            self._connections.accept(listening)
            return
        # A byte that woke the loop, for a signal or the pool; or a client closed in this turn.
        with suppress(OSError):
            os.read(descriptor, 4096)

    def _next_question(self, peer: Peer) -> Question | None:
        """Returns the next request of PEER that needs the store, or None.

        A request that needs none is answered at once.
        """
        connections = self._connections
        if peer.is_closed or peer.question is not None:
            return None
        request = peer.request()
        if request is None:
            connections.expect(peer, IN)
            return None
        try:
            question = self._reader.question(request, peer)
        except (Malformed, Elsewhere) as error:
            self.journal.warn(f"{peer.where}: not answered: {error}")
            connections.close(peer)
            return None
        if question is None:
            asks_program = request == program.REQUEST and peer.is_local
            connections.send(peer, program.ANSWER if asks_program else LET_THROUGH + END)
            return None
        peer.question = question
        if question.decision.advance():
            return question
        verdict = question.decision.verdict()
        self._answers.answer(question, verdict, [])
        self._learner.add(question, verdict)
        return None

    def _still_wanted(self, questions: list[Question]) -> list[Question]:
        """Returns those of QUESTIONS, which may have waited, whose clients are still there.

        They are decided as of the time at which they can have been asked first.
        """
        age = self._events.age
        gone = left([question.peer for question in questions])
        for question in questions:
            if question.peer in gone:
                self._answers.answer(question, None, [])
            elif question.waited is None and (seconds := question.peer.age(age)) > DOUBT:
                question.may_be_as_old_as(seconds)
        return [question for question in questions if not question.answered]

    def _note_learnt(self) -> None:
        """Logs what there is to say of what our users' mail teaches."""
        for note in self._learner.notes():
            self.journal.add(log.line(note))

    # --- faults -----------------------------------------------------------------------------------

    def _recover(self, error: Exception) -> None:
        """Answers all clients that wait by ``on_error``, because of ERROR; closes the SQLite file.

        The file is opened again for the next request.
        """
        self._watchdog.turn = 0.0
        self._connections.now = monotonic()
        self._answers.complain(error)
        for peer in list(self._connections.peers.values()):
            self._answers.fail_pending(peer, error)
        store = self._backend.store
        if isinstance(store, FileStore):
            with suppress(Exception):
                store.close()

    def _hand_over(self, error: WrongSchema) -> None:
        """Closes all connections unanswered: only the program that is installed can decide now.

        A launcher in C goes on as the launcher in Python, Postfix asks again.
        """
        self.journal.add(
            log.line(f"warning {error}: greycheck serve ends, and decides nothing more")
        )
        for peer in list(self._connections.peers.values()):
            self._connections.drop(peer)

    def _give_up(self) -> None:
        """Answers the requests of this turn by ``on_error``, in the watchdog's thread."""
        self._resolving.kill()
        for question in list(self._in_hand):
            self._answers.fail(question, f"no answer within {question.settings.deadline}s")
        self.journal.add(log.line("warning the store does not answer: greycheck serve ends"))
        self.journal.flush(LAST_WORDS)

    # --- signals ----------------------------------------------------------------------------------

    def _obey(self) -> None:
        numbers, self._signals = self._signals, []
        if signal.SIGHUP in numbers:
            self._reload()
        if not ENDS.isdisjoint(numbers):
            self._drain()

    def _drain(self) -> None:
        if not self._connections.is_draining:
            notify(self._environ, "STOPPING=1")
            self._resolving.kill()
            self._connections.drain()

    def _reload(self) -> None:
        """Reads the settings again, and tells the supervisor."""
        notify(self._environ, f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")
        try:
            self._use(Reader(self._environ, self._messages, self.journal.warn))
        finally:
            notify(self._environ, "READY=1")

    def _use(self, reader: Reader) -> None:
        """Uses the settings of READER from now on, unless their store cannot be opened."""
        old, new = self._reader.settings, reader.settings
        for problem in new.problems:
            self.journal.add(log.line(f"warning {problem}"))
        if any(getattr(new, name) != getattr(old, name) for name in OF_THE_STORE):
            try:
                store = self._backend.open(new)
            except StoreError as error:
                self.journal.add(log.line(f"warning {error}: the settings stay as they were"))
                return
            # However many requests wait for the old one, it is no turn that hangs.
            self._backend.replace(store, self._begin_turn)
            self._watchdog.turn = 0.0
        changed = [name for name in OF_THE_START if getattr(new, name) != getattr(old, name)]
        if changed:
            self.journal.add(log.line(f"warning {', '.join(changed)}: takes a restart"))
        self._learner.use(new)
        self._reader = reader
        self._connections.use(new)
        self._watchdog.deadline = new.deadline
        self.journal.add(log.line("note settings read again"))
