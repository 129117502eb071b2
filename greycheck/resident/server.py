"""The resident's loop: takes connections, reads requests, hands questions to the store, and sends answers.

One turn: what has come is read; all whole requests become questions and are decided together; their answers are sent; then the log is
written. SIGTERM drains: nothing more is taken, what was asked is answered. SIGHUP reads the settings again. A schema that is another
program's ends it at once, and whoever asked is left to that program.

Diagnostics: one line a verdict, as a child writes it, and a ``warning`` for what peers do that they should not.
"""

import errno
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, monotonic_ns
from traceback import extract_tb

from greycheck import log, normalise, policy
from greycheck.hooks.policy import Malformed
from greycheck.policy import Verdict
from greycheck.resident import program
from greycheck.resident.file_store import FileStore
from greycheck.resident.journal import Journal
from greycheck.resident.peers import Peer, TooLong, left
from greycheck.resident.pool import Pool
from greycheck.resident.questions import Elsewhere, Messages, Question, Reader, Writer
from greycheck.resident.sockets import SocketError, Unix, again, notify, shown, shut
from greycheck.settings import Settings
from greycheck.store.lean import StoreError, WrongSchema

# How many connections are taken in one turn, from each socket.
TAKEN = 64

# How often one turn looks for more to be committed together.
ROUNDS = 2

# How often peers are looked at for having taken too long, in seconds.
SWEEP = 1.0

# Descriptors that are no peer's: sockets, the store, the log, and room.
OWN_DESCRIPTORS = 64

# How long the log is waited for at the end, in seconds.
LAST_WORDS = 0.2

# What came in a turn is looked at for whether anybody still waits for it where it may have been there for so many seconds. As this process
# looks once in SWEEP seconds at least, it was stopped, or had more to do than it could.
DOUBT = 1.5

# How many events one look brings at most.
EVENTS = 1000

# How long the end waits for a request that was begun, and for the first one of a new connection, in seconds; and how often it looks.
GRACE, GRACE_LOOK = 1.0, 0.05

# The exit code where a supervisor is to start the resident again.
AGAIN = 111

# Settings that a store is opened with; and those that count from the start to the end. All others count from the next request on.
OF_THE_STORE = ("database", "database_mode", "state_directory", "deadline", "pool_size", "max_queue")
OF_THE_START = ("socket", "socket_mode", "socket_owner", "listen")

IN, OUT = select.EPOLLIN, select.EPOLLOUT

ENDS = {signal.SIGTERM, signal.SIGINT}
SIGNALS = (*ENDS, signal.SIGHUP)


class Server:
    """Serves on the sockets LISTENING under the settings of ENVIRON.

    MAKE_STORE sees to it that the store of settings can be used. It raises StoreError where it cannot, as this does. Where a supervisor
    KEEPS the sockets, what waits at them at the end is left to whom it starts next.
    """

    def __init__(
        self,
        listening: list[socket.socket],
        environ: dict[bytes, bytes],
        journal: Journal,
        make_store: Callable[[Settings], None],
        keeps: bool = False,
    ) -> None:
        self.journal = journal
        self._environ = environ
        self._make_store = make_store
        self._keeps = keeps
        self._messages = Messages()
        self._reader = Reader(environ, self._messages, journal.warn)
        self._writer = Writer(socket.gethostname(), self._messages)
        self._store = self._open(self._settings)
        self._listening = {each.fileno(): each for each in listening}
        self._names = {each.fileno(): shown(each) for each in listening}
        self._peers: dict[int, Peer] = {}
        self._ready: deque[Peer] = deque()
        self._epoll = select.epoll()
        self._signals: list[int] = []
        self._drains = False
        self._patient_until = 0.0
        self._swept = monotonic()
        self._turn = 0.0
        # When it was looked last for what has come; since when all that had come is known, or will be after this turn; whether more
        # waits than one turn takes; and for how long, at most, what came last may have waited.
        self._looked = monotonic()
        self._known = self._looked - DOUBT if keeps else self._looked
        self._behind = False
        self._age = 0.0
        self._in_hand: list[Question] = []
        # What was said about sockets that were taken away.
        self._missed: set[str] = set()
        for descriptor in self._listening:
            self._epoll.register(descriptor, IN)
        self._read_wake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._read_wake, IN)
        self._watch_store()
        self._room = _raise_limit(self._settings.max_connections)

    @property
    def _settings(self) -> Settings:
        return self._reader.settings

    # --- one turn ---------------------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT, and until then what was asked is answered. READY is called once signals are heeded."""
        for number in SIGNALS:
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        ready()
        code = 0
        while not (self._drains and self._is_drained()):
            events = self._look(self._pause())
            try:
                self._one_turn(events)
            except WrongSchema as error:
                self._hand_over(error)
                code = AGAIN
                break
            except Exception as error:
                self._recover(error)
        self._store.close()
        self.journal.flush(LAST_WORDS)
        if code:
            sys.exit(code)

    def _look(self, pause: float) -> list[tuple[int, int]]:
        """What has come, after PAUSE seconds at most."""
        began = monotonic()
        if began - self._looked < DOUBT and not self._behind:
            self._known = began
        self._looked = began
        events = self._epoll.poll(pause, EVENTS)
        self._behind = len(events) == EVENTS
        self._age = monotonic() - self._known
        return events

    def _one_turn(self, events: list[tuple[int, int]]) -> None:
        self._turn = monotonic()
        if not ENDS.isdisjoint(self._signals):
            self._drain()
        self._in_hand = []
        for _ in range(ROUNDS):
            self._ask(events)
            if not self._store.owes:
                break
            # What came meanwhile is committed along with what is to be written; what was answered is in the log before.
            self.journal.flush()
            events = self._look(0)
            if not events:
                break
        self._store.tick()
        if self._turn - self._swept > SWEEP:
            self._sweep()
        self._turn = 0.0
        if self._drains:
            self._drain_on()
        if self._signals:
            self._obey()
        if self.journal.waits:
            self.journal.flush()

    def _ask(self, events: list[tuple[int, int]]) -> None:
        """Reads what came by EVENTS, and asks the store about it."""
        for descriptor, event in events:
            peer = self._peers.get(descriptor)
            try:
                if peer is None:
                    self._no_peer(descriptor)
                elif event & OUT:
                    self._send(peer, b"")
                else:
                    self._read(peer)
            except Exception as error:
                self._leave(peer, error)
        questions = []
        for _ in range(len(self._ready)):
            peer = self._ready.popleft()
            try:
                question = self._next_question(peer)
            except Exception as error:
                self._leave(peer, error)
                continue
            if question is not None:
                questions.append(question)
        if questions and (self._age > DOUBT or any(question.waited for question in questions)):
            questions = self._still_wanted(questions)
        if questions:
            self._in_hand += questions
            self._store.decide(questions)

    def _still_wanted(self, questions: list[Question]) -> list[Question]:
        """Those of QUESTIONS, which were asked a while ago, that somebody still waits for; they count from when they were asked."""
        gone = left([question.peer for question in questions])
        for question in questions:
            if question.peer in gone:
                self._answer(question, None, [])
            elif question.waited is None and (age := question.peer.age(self._age)) > DOUBT:
                question.may_be_as_old_as(age)
        return [question for question in questions if not question.answered]

    def _pause(self) -> float:
        if self._ready:
            return 0
        return min(self._store.pause, GRACE_LOOK if self._drains else SWEEP)

    def _no_peer(self, descriptor: int) -> None:
        listening = self._listening.get(descriptor)
        if listening is not None:
            self._take(listening)
        else:
            # A signal, or the store: what it is shows itself in this turn. Or a peer who was left in this one.
            with suppress(OSError):
                os.read(descriptor, 4096)

    # --- what nobody foresaw ----------------------------------------------------------------------------------------------

    def _leave(self, peer: Peer | None, error: Exception) -> None:
        """Leaves PEER, over whom an ERROR came up that nobody foresaw."""
        self._complain(error)
        if peer is not None:
            self._answer_by_error(peer, error)
            self._drop(peer)

    def _recover(self, error: Exception) -> None:
        """Answers all that was asked by ``on_error``, because of an ERROR that nobody foresaw, and opens the store's file anew."""
        self._turn = 0.0
        self._complain(error)
        for peer in list(self._peers.values()):
            self._answer_by_error(peer, error)
        if isinstance(self._store, FileStore):
            with suppress(Exception):
                self._store.close()

    def _answer_by_error(self, peer: Peer, error: Exception) -> None:
        question = peer.question
        if question is None:
            return
        try:
            # What went wrong may have been the answer itself.
            if question.answered:
                self._drop(peer)
            else:
                self._answer_by_fault(question, f"{type(error).__name__}: {error}")
        except Exception:
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        """Closes the connection of PEER, if that was not done before."""
        if self._peers.get(peer.descriptor) is peer:
            with suppress(OSError):
                self._close(peer)

    def _answer_by_fault(self, question: Question, fault: str) -> None:
        self._answer(question, question.error(fault), [])

    def _hand_over(self, error: WrongSchema) -> None:
        """Leaves all that was asked, because of an ERROR that only another program can mend.

        A native child becomes the launcher in Python, whose program is the one that is installed now; Postfix asks again.
        """
        self.journal.add(log.line(f"warning {error}: greycheck serve ends, and decides nothing more"))
        for peer in list(self._peers.values()):
            self._drop(peer)

    def _complain(self, error: Exception) -> None:
        with suppress(Exception):
            place = extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.journal.warn(f"unforeseen: {type(error).__name__}: {error} ({where})")

    # --- connections ------------------------------------------------------------------------------------------------------

    def _take(self, listening: socket.socket) -> bool:
        """Takes those who wait at LISTENING, up to TAKEN of them. Whether that is all."""
        for _ in range(TAKEN):
            if self._drains and len(self._peers) >= self._room:
                return False
            try:
                descriptor, address = listening._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.EINVAL:  # it is shut, and nobody waits any more
                    return True
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.journal.warn(f"{shown(listening)}: {error.strerror}")
                    self._make_room(len(self._peers))
                self._behind = True
                return False
            where = self._names[listening.fileno()]
            if isinstance(address, tuple) and address:
                where = address[0]
                if not self._may_ask(where):
                    self.journal.warn(f"{where}: may not ask here: see listen_clients")
                    os.close(descriptor)
                    continue
            os.set_blocking(descriptor, False)
            if not self._make_room(self._room):
                self.journal.warn(f"{where}: {len(self._peers)} connections wait for answers: not taken")
                os.close(descriptor)
                continue
            peer = Peer(descriptor, where, listening.family == socket.AF_UNIX)
            self._peers[descriptor] = peer
            # Most send at once: what is there already needs no further turn.
            try:
                self._read(peer)
            except Exception as error:
                self._leave(peer, error)
        self._behind = True
        return False

    def _may_ask(self, address: str) -> bool:
        canonical = normalise.client_address(address.encode())
        if canonical is None:
            return False
        for network in self._settings.listen_clients:
            length = int(network.rpartition("/")[2])
            same_kind = (":" in network) == (":" in canonical)
            if same_kind and normalise.client_network(canonical, length, length) == network:
                return True
        return False

    def _make_room(self, room: int) -> bool:
        """Closes the connection that has been idle for longest where there are ROOM or more. Whether there is room then."""
        if len(self._peers) < room:
            return True
        idle = [peer for peer in self._peers.values() if not peer.has_request]
        if not idle:
            return False
        longest = min(idle, key=lambda peer: peer.since)
        self.journal.warn(f"{longest.where}: {len(self._peers)} connections: the one that was idle longest is closed")
        self._close(longest)
        return True

    def _read(self, peer: Peer) -> None:
        try:
            there = peer.read(self._settings.max_request)
        except BlockingIOError:
            self._expect(peer, IN)
            return
        except TooLong:
            self.journal.warn(f"{peer.where}: a request longer than {self._settings.max_request} bytes")
            self._close(peer)
            return
        except OSError:
            self._close(peer)
            return
        if not there and peer.has_request:
            # It has shut its side alone, as Exim does, and wants its answer all the same.
            self._expect(peer, 0)
        elif not there:
            self._close(peer)
        elif peer.question is None and not peer.output:
            self._ready.append(peer)
        else:
            # It asks before it has its answer, and is read again after that.
            self._expect(peer, 0)

    def _next_question(self, peer: Peer) -> Question | None:
        """The next question of PEER, where it needs the store."""
        if self._peers.get(peer.descriptor) is not peer or peer.question is not None:
            return None
        request = peer.request()
        if request is None:
            self._expect(peer, IN)
            return None
        try:
            question = self._reader.question(request, peer)
        except (Malformed, Elsewhere) as error:
            self.journal.warn(f"{peer.where}: not answered: {error}")
            self._close(peer)
            return None
        if question is None:
            self._send(peer, program.ANSWER if request == program.REQUEST and peer.is_local else b"action=DUNNO\n\n")
            return None
        peer.question = question
        verdict = policy.without_store(question.envelope, question.settings)
        if verdict is None:
            return question
        self._answer(question, verdict, [])
        return None

    def _expect(self, peer: Peer, events: int) -> None:
        """Waits for EVENTS of PEER."""
        if events == peer.registered:
            return
        if not peer.registered:
            self._epoll.register(peer.descriptor, events)
        elif events:
            self._epoll.modify(peer.descriptor, events)
        else:
            self._epoll.unregister(peer.descriptor)
        peer.registered = events

    def _close(self, peer: Peer) -> None:
        del self._peers[peer.descriptor]
        peer.close()

    # --- answers ----------------------------------------------------------------------------------------------------------

    def _answer(self, question: Question, verdict: Verdict | None, notes: list[str]) -> None:
        """Logs VERDICT on QUESTION, and sends it to the peer if he is still there, unless he has an answer already.

        None: there is none, as he waits no more. A fault here costs him alone.
        """
        if question.answered:
            return
        question.answered = True
        try:
            if verdict is None:
                self.journal.warn(f"{question.peer.where}: nobody waits for the answer any more: not decided")
                self._drop(question.peer)
            else:
                observed = policy.observe(verdict, question.envelope, question.settings)
                self._answer_by(question, observed, notes)
        except Exception as error:
            self._complain(error)
            self._drop(question.peer)

    def _answer_by(self, question: Question, verdict: Verdict, notes: list[str]) -> None:
        lines = self._writer.lines(question, verdict, notes)
        self.journal.add(lines)
        peer = question.peer
        peer.question = None
        if self._peers.get(peer.descriptor) is peer:
            peer.ends = question.hook is not None
            self._send(peer, self._writer.answer(question, verdict, lines))

    def _send(self, peer: Peer, answer: bytes) -> None:
        """Sends ANSWER to PEER, and goes on with what he sends next, unless he is to be left."""
        try:
            sent = peer.write(answer)
        except OSError:
            self._close(peer)
            return
        peer.since = self._turn or monotonic()
        if not sent:
            self._expect(peer, OUT)
        elif peer.ends:
            self._close(peer)
        elif peer.input:
            self._ready.append(peer)
        elif self._drains:
            self._let_go(peer)
        elif peer.registered != IN:
            self._expect(peer, IN)

    # --- now and then -----------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        now = self._swept = monotonic()
        found = self._settings
        for peer in list(self._peers.values()):
            if peer.is_slow(now, found.request_time):
                what = "takes no answer" if peer.output else "has not finished its request"
                self.journal.warn(f"{peer.where}: {what} within {found.request_time}s")
                self._close(peer)
            elif peer.is_idle(now, found.idle_time):
                self._close(peer)

        for listening in list(self._listening.values()):
            if isinstance(listening, Unix) and not listening.is_there() and not self._drains:
                self._listen_again(listening)

    def _listen_again(self, gone: Unix) -> None:
        """Listens in the place of the socket that is GONE: nobody can ask there any more. It is tried at each look."""
        try:
            listening, wrong = again(gone)
        except (SocketError, OSError) as error:
            self._miss(f"warning {gone.path}: the socket was taken away, and no other can be made: {error}")
            return
        self._take(gone)  # who was quick enough to ask there
        self._epoll.unregister(gone.fileno())
        del self._listening[gone.fileno()], self._names[gone.fileno()]
        gone.close()
        self._missed.clear()
        self._listening[listening.fileno()] = listening
        self._names[listening.fileno()] = shown(listening)
        self._epoll.register(listening.fileno(), IN)
        self.journal.add(log.line(f"note {listening.path}: the socket was taken away: made again"))
        if wrong:
            self.journal.add(log.line(f"warning {wrong}"))

    def _miss(self, line: str) -> None:
        if line not in self._missed:
            self._missed.add(line)
            self.journal.add(log.line(line))

    def _obey(self) -> None:
        numbers, self._signals = self._signals, []
        if signal.SIGHUP in numbers:
            self._reread()
        if not ENDS.isdisjoint(numbers):
            self._drain()

    def _drain(self) -> None:
        """Lets nothing more be asked, and answers what was."""
        if self._drains:
            return
        notify(self._environ, "STOPPING=1")
        self._drains = True
        self._patient_until = monotonic() + GRACE
        for descriptor, listening in list(self._listening.items()):
            self._epoll.unregister(descriptor)
            if self._keeps:
                self._stop_listening(descriptor)
            else:
                shut(listening)
        for peer in list(self._peers.values()):
            # Others have not finished what they began.
            if peer.has_asked and not peer.input and not peer.has_request:
                self._let_go(peer)
        self._drain_on()

    def _drain_on(self) -> None:
        """Takes those who still wait to be taken, and leaves those who have begun a request and do not go on."""
        is_over = monotonic() > self._patient_until
        for descriptor, listening in list(self._listening.items()):
            if self._take(listening) or is_over:
                self._stop_listening(descriptor)
        for peer in list(self._peers.values()) if is_over else ():
            if not peer.has_request:
                self._let_go(peer)

    def _stop_listening(self, descriptor: int) -> None:
        self._listening.pop(descriptor).close()

    def _let_go(self, peer: Peer) -> None:
        """Closes the connection of PEER, unless he has asked meanwhile."""
        peer.shut()
        self._read(peer)
        if self._peers.get(peer.descriptor) is peer and not peer.has_request:
            self._close(peer)

    def _is_drained(self) -> bool:
        return not (self._listening or self._peers or self._ready or self._store.waits)

    def _reread(self) -> None:
        """Reads the settings again; another database is used from now on, if it can be."""
        notify(self._environ, f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")
        try:
            self._take_settings(Reader(self._environ, self._messages, self.journal.warn))
        finally:
            notify(self._environ, "READY=1")

    def _take_settings(self, reader: Reader) -> None:
        old, new = self._settings, reader.settings
        for problem in new.problems:
            self.journal.add(log.line(f"warning {problem}"))
        if any(getattr(new, name) != getattr(old, name) for name in OF_THE_STORE):
            try:
                store = self._open(new)
            except StoreError as error:
                self.journal.add(log.line(f"warning {error}: the settings stay as they were"))
                return
            self._finish_store()
            self._store = store
            self._watch_store()
        changed = [name for name in OF_THE_START if getattr(new, name) != getattr(old, name)]
        if changed:
            self.journal.add(log.line(f"warning {', '.join(changed)}: takes a restart"))
        self._reader = reader
        self._room = _raise_limit(new.max_connections)
        self.journal.add(log.line("note settings read again"))

    def _finish_store(self) -> None:
        """Answers what waits for the store, and leaves it."""
        while self._store.waits:
            # However many of them there are, it is no turn that hangs.
            self._turn = monotonic()
            select.select([], [], [], self._store.pause)
            self._store.tick()
        self._turn = 0.0
        if isinstance(self._store, Pool):
            self._epoll.unregister(self._store.descriptor)
        self._store.close()

    # --- the store --------------------------------------------------------------------------------------------------------

    def _open(self, found: Settings) -> "FileStore | Pool":
        if not found.has_store:
            raise StoreError("there is no store: see the warning before")
        self._make_store(found)
        if found.database.startswith("sqlite:"):
            return FileStore(found, self._answer, self._messages, self.journal.warn)
        return Pool(found, self._answer, self._messages)

    def _watch_store(self) -> None:
        if isinstance(self._store, Pool):
            self._epoll.register(self._store.descriptor, IN)

    def _watch(self) -> None:
        """Ends the process where a turn takes longer than the deadline, say because a disk does not answer. In a thread of its own."""
        end = threading.Event()
        looked = resumed = monotonic()
        while not end.wait(SWEEP / 2):
            began, now = self._turn, monotonic()
            if now - looked > SWEEP + DOUBT:
                resumed = now  # the process was stopped, and what it was at is not to blame
            looked = now
            if began and now - max(began, resumed) > self._settings.deadline:
                self._give_up()

    def _give_up(self) -> None:
        """Answers what is in hand by ``on_error``, and leaves; a supervisor starts the resident again."""
        try:
            for question in list(self._in_hand):
                self._answer_by_fault(question, f"no answer within {question.settings.deadline}s")
            self.journal.add(log.line("warning the store does not answer: greycheck serve ends"))
            self.journal.flush(LAST_WORDS)
        finally:
            os._exit(AGAIN)


def _raise_limit(connections: int) -> int:
    """Lets this process have so many CONNECTIONS, as far as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(1, min(connections, soft - OWN_DESCRIPTORS))
