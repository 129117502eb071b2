"""``greycheck policy``: the policy protocol on descriptors 0 and 1, for Postfix's spawn(8).

Postfix runs one process for each smtpd, and keeps it as long as that. So little is loaded and one
connection to the store is kept. For the lock of an SQLite file it waits as a forked child does. The
answers are the resident's.

spawn(8) makes its connection descriptor 2 as well, where a line of the log would be taken for an
answer. Lines go to the system's log then.

Interface: ``main(operator)``, called by ``__main__``, or by the command.

Diagnostics: one line for each verdict, as the forked child writes it, and ``warning`` for what
cannot be answered. Exit codes: 0 at the end of the input, and at SIGTERM; 1 after something that is
no request; 111 after a check that took longer than ``deadline``, which ``on_error`` has answered. A
mail server that gets no answer asks again, or does what its own settings say.
"""

import _signal
import _socket
import _thread
import fcntl
import posix
from time import monotonic, sleep, time

from greycheck import history, log
from greycheck.guard import LAST_RESORT, STACK
from greycheck.hooks.delegation import END, LET_THROUGH, Malformed
from greycheck.resident.journal import Journal
from greycheck.resident.kept_store import KeptStore
from greycheck.resident.messages import Messages
from greycheck.resident.peers import Peer, TooLong
from greycheck.resident.questions import Elsewhere, Question, Reader, Writer
from greycheck.resident.system_log import SystemLog
from greycheck.store.base import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Protocol

    from greycheck.policy import Verdict
    from greycheck.resident.learning import Learner

    class Log(Protocol):
        """The log: a Journal, or the system's."""

        def add(self, lines: bytes) -> None:
            """Adds LINES."""

        def flush(self, seconds: float = 0) -> None:
            """Writes what was added, within SECONDS."""


# The exit code after a check that took longer than its deadline.
OVERDUE = 111

# How long the log may take to be written at the end, in seconds.
LAST_WORDS = 0.2

# How long the deadline's thread sleeps at most while there are checks, in seconds: a request may
# bring a shorter deadline than the one before.
LOOK = 1.0


def main(operator: tuple[str, ...]) -> "NoReturn":
    """Answers until the end of the input, and exits. OPERATOR is the command line of commands."""
    code = 1
    journal: Log | None = None
    try:
        source, sink, journal = take_descriptors()
        code = Spawned(dict(posix.environ), operator, source, sink, journal).run()
    except Exception as error:
        journal = journal or Journal()
        journal.add(log.line(f"warning {type(error).__name__}: {error}"))
        journal.flush(LAST_WORDS)
    finally:
        # Closing an SQLite file would write its whole log back, and wait for the disk.
        posix._exit(code)


# --- descriptors ----------------------------------------------------------------------------------


def take_descriptors() -> "tuple[int, int, Log]":
    """Moves descriptors 0 and 1 away, and puts /dev/null there. Raises OSError.

    Returns the descriptor to read requests from, that to write answers to, and the log. What a
    driver may write to 1 or 2 must not be taken for an answer.
    """
    with_log = not is_same(1, 2)
    source, sink = (fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3) for descriptor in (0, 1))
    null = posix.open("/dev/null", posix.O_RDWR)
    for descriptor in (0, 1) if with_log and is_open(2) else (0, 1, 2):
        posix.dup2(null, descriptor)
    if null > 2:
        posix.close(null)
    return source, sink, Journal() if with_log else SystemLog()


def is_open(descriptor: int) -> bool:
    """Returns true if DESCRIPTOR is open."""
    try:
        posix.fstat(descriptor)
    except OSError:
        return False
    return True


def is_same(one: int, other: int) -> bool:
    """Returns true if the descriptors ONE and OTHER are the same file or connection."""
    if not is_open(one) or not is_open(other):
        return False
    first, second = posix.fstat(one), posix.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def is_internet(descriptor: int) -> bool:
    """Returns true if DESCRIPTOR is a socket, but no unix socket."""
    try:
        connection = _socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        return connection.family != _socket.AF_UNIX
    finally:
        connection.detach()


# --- answers --------------------------------------------------------------------------------------


class Spawned:
    """Answers requests from descriptor SOURCE at SINK, under the settings of ENVIRON."""

    def __init__(
        self,
        environ: dict[bytes, bytes],
        operator: tuple[str, ...],
        source: int,
        sink: int,
        journal: "Log",
    ) -> None:
        self._messages = Messages()
        self._reader = Reader(environ, self._messages, self._warn)
        self._writer = Writer(posix.uname().nodename, self._messages)
        self._store = KeptStore(self._reader.settings, operator)
        self._peer = Peer(source, "standard input", not is_internet(source))
        self._sink = sink
        self._is_connection = posix.fstat(source).st_mode & 0o170000 == 0o140000
        self._log = journal
        self._watch = Watch(self._expire)
        self._learner: Learner | None = None
        self._question: Question | None = None
        self._idles = False
        self._ends = False

    def run(self) -> int:
        """Answers until the end of the input. Returns the exit code."""
        _signal.signal(_signal.SIGTERM, self._end)
        for problem in self._reader.settings.problems:
            self._warn(problem)
        try:
            while not self._ends and (request := self._next()) is not None:
                self._answer(request)
            code = 0
        except (Malformed, Elsewhere) as error:
            self._warn(f"{self._peer.where}: not answered: {error}")
            code = 1
        except BrokenPipeError:
            code = 0
        self._leave()
        return code

    def _next(self) -> bytes | None:
        """Returns the next request, or None at the end. Raises Malformed."""
        limit = self._reader.settings.max_request
        while (request := self._peer.request()) is None:
            self._idles = True
            if self._ends:
                return None
            try:
                there = self._peer.read(limit)
            except TooLong:
                raise Malformed(f"a request longer than {limit} bytes") from None
            finally:
                self._idles = False
            if not there:
                if self._peer.input:
                    raise Malformed("the end within a request")
                return None
        return request

    def _end(self, _number: int, _frame: object) -> None:
        """Handles SIGTERM: a request in hand is still answered."""
        self._ends = True
        if self._idles:
            self._leave()
            posix._exit(0)

    def _answer(self, request: bytes) -> None:
        """Answers REQUEST, then logs it. Raises Malformed, Elsewhere and OSError."""
        question = self._reader.question(request, self._peer)
        if question is None:
            self._say(LET_THROUGH + END)
            return
        if self._is_connection and self._peer.has_left():
            # This process was stopped, and the client has asked another one in the meantime.
            self._warn(f"{self._peer.where}: nobody waits for the answer any more: not decided")
            return
        if question.decision.advance():
            self._question = question
            self._watch.begin(question.settings.deadline)
            verdict = self._decide(question)
            self._watch.settle()
        else:
            verdict = question.decision.verdict()
        self._tell(question, verdict)
        settings, envelope, now = question.settings, question.envelope, question.decision.now
        self._try(lambda: history.note(settings, envelope, verdict, now))
        self._try(lambda: self._learn(question, verdict))
        self._try(self._store.tidy)

    def _try(self, act: "Callable[[], None]") -> None:
        """Does what may wait until the answer is given, and changes no answer if it fails."""
        try:
            act()
        except Exception as error:
            self._warn(f"after an answer: {type(error).__name__}: {error}")

    def _learn(self, question: Question, verdict: "Verdict") -> None:
        """Learns from outbound mail, which has its answer, where a setting says so."""
        if verdict.reason != "exempt" or not question.settings.learn_outbound:
            return
        try:
            if self._learner is None:
                from greycheck.resident.learning import Learner

                self._learner = Learner(self._reader.settings)
        except Exception as error:
            self._warn(f"nothing is learnt from this mail: {type(error).__name__}: {error}")
            return
        self._learner.add(question, verdict)
        self._note_learnt(self._learner)

    def _note_learnt(self, learner: "Learner") -> None:
        for note in learner.notes():
            self._log.add(log.line(note))

    def _leave(self) -> None:
        """Ends all but this process. Nobody waits any more for what is still to be learnt."""
        self._store.leave()
        self._log.flush(LAST_WORDS)
        if self._learner is not None:
            for descriptor in (self._peer.descriptor, self._sink):
                posix.close(descriptor)
            self._learner.close()
            self._note_learnt(self._learner)
            self._log.flush(LAST_WORDS)

    def _decide(self, question: Question) -> "Verdict":
        """Returns the verdict on QUESTION."""
        try:
            verdict = self._store.check(question, self._messages)
        except StoreError as error:
            return question.failed(str(error))
        except Exception as error:
            return question.failed(f"{type(error).__name__}: {error}")
        if verdict.opens_message and not question.hook:
            self._messages.open(question.envelope, int(time()))
        return verdict

    def _tell(self, question: Question, verdict: "Verdict") -> None:
        """Answers QUESTION by VERDICT, and logs it."""
        lines = self._writer.lines(question, verdict, self._store.notes)
        self._log.add(lines)
        try:
            self._say(self._writer.answer(question, verdict, lines))
        finally:
            self._log.flush()
        # A launcher in C asks once, and waits for the end.
        self._ends = self._ends or question.hook is not None

    def _say(self, answer: bytes) -> None:
        while answer:
            answer = answer[posix.write(self._sink, answer) :]

    def _expire(self) -> None:
        """Answers by ``on_error`` at the deadline, in the thread of Watch."""
        question = self._question
        assert question is not None
        self._store.overdue()
        self._tell(question, question.failed(f"no answer within {question.settings.deadline}s"))

    def _warn(self, text: str) -> None:
        self._log.add(log.line(f"warning {text}"))
        self._log.flush()


class Watch:
    """The deadline of one check after the other, as ``greycheck.guard`` has it for one.

    A thread calls EXPIRE at the deadline, then exits. It sleeps until the deadline of the check
    that it has seen last, so it wakes once in that time, not at each check.
    """

    def __init__(self, expire: "Callable[[], None]") -> None:
        self._expire = expire
        # The deadline of the check in hand (``monotonic``), and its lock: the main thread or this
        # one answers it, the one that takes the lock.
        self._hand: tuple[float, _thread.LockType] | None = None
        self._wake = _thread.allocate_lock()
        _thread.stack_size(STACK)
        _thread.start_new_thread(self._watch, ())

    def begin(self, seconds: float) -> None:
        """Begins a check that may take SECONDS."""
        log.alarm(seconds + LAST_RESORT, _signal.SIG_DFL)
        self._hand = monotonic() + seconds, _thread.allocate_lock()
        if self._wake.locked():
            self._wake.release()

    def settle(self) -> None:
        """Ends the check: it has a verdict. If the deadline came first, this never returns."""
        assert self._hand is not None
        while not self._hand[1].acquire(blocking=False):
            sleep(1)  # the thread is about to exit
        self._hand = None
        log.no_alarm()

    def _watch(self) -> "NoReturn":
        while True:
            hand = self._hand
            if hand is None:
                self._wake.acquire()
                continue
            left = hand[0] - monotonic()
            if left > 0:
                sleep(min(left, LOOK))
            elif hand[1].acquire(blocking=False):
                try:
                    self._expire()
                finally:
                    posix._exit(OVERDUE)
