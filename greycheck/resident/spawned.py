"""``greycheck policy``: the policy protocol on descriptors 0 and 1, for Postfix's spawn(8).

One process for each smtpd, for as long as that wants it: so little is loaded, one connection to the store is kept, and who asks waits
for the lock of an SQLite file as a forked child does. The answers are the resident's.

spawn(8) makes its connection descriptor 2 as well, where a line of the log would be taken for an answer. There the log is the system's.

Interface: ``main(operator)``, called by ``__main__``, or by the command.

Diagnostics: one line a verdict, as a child writes it, and ``warning`` for what cannot be answered. Exit codes: 0 at the end of what is
asked, and at SIGTERM; 1 where something is asked that is no request; 111 where a check was not done by its deadline, and ``on_error`` has
answered. A mail server that finds the end instead of an answer asks again, or does what its own settings say.
"""

import _signal
import _socket
import _thread
import fcntl
import posix
from time import localtime, monotonic, sleep, time

from greycheck import log, policy
from greycheck.check import check, remember
from greycheck.child import PATIENCE
from greycheck.guard import LAST_RESORT, STACK
from greycheck.hooks.policy import MONTHS, Malformed
from greycheck.resident.journal import Journal
from greycheck.resident.peers import Peer, TooLong
from greycheck.resident.questions import Elsewhere, Messages, Question, Reader, Writer
from greycheck.store import connect
from greycheck.store.lean import NoSchema, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Protocol

    from greycheck.policy import Verdict
    from greycheck.settings import Settings
    from greycheck.store.lean import Store

    class Kept(Store, Protocol):
        """A store whose connection is used for one check after the other."""

        def begin(self, patience: float) -> None:
            """Another check, which gives up after PATIENCE seconds."""

        def close(self) -> None:
            """Leaves an SQLite file."""

    class Log(Protocol):
        """What takes the lines of the log."""

        def add(self, lines: bytes) -> None:
            """Takes LINES."""

        def flush(self, patience: float = 0) -> None:
            """Hands on what it has taken, within PATIENCE seconds."""


# The exit code after a check that was not done by its deadline.
OVERDUE = 111

# How long the log is waited for at the end, in seconds.
LAST_WORDS = 0.2

# How long the watch sleeps at most while there are checks, in seconds: a request may bring a shorter deadline than the one before.
LOOK = 1.0


def main(operator: tuple[str, ...]) -> "NoReturn":
    """Answers until there is nothing more to answer, and exits. OPERATOR is the command line of greycheck's commands."""
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
        # A connection that is closed would write the whole log of an SQLite file back, and wait for the disk.
        posix._exit(code)


# --- descriptors ----------------------------------------------------------------------------------------------------------


def take_descriptors() -> "tuple[int, int, Log]":
    """What to read requests from, where to write answers, and the log; /dev/null takes their places. Raises OSError.

    What is written to 1 or 2 without being asked, by a driver say, must not be taken for an answer.
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
    """Whether DESCRIPTOR is open."""
    try:
        posix.fstat(descriptor)
    except OSError:
        return False
    return True


def is_same(one: int, other: int) -> bool:
    """Whether the descriptors ONE and OTHER lead to the same place."""
    if not is_open(one) or not is_open(other):
        return False
    first, second = posix.fstat(one), posix.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def is_internet(descriptor: int) -> bool:
    """Whether DESCRIPTOR is a socket, and no unix socket: whoever can connect to it may be at the other end."""
    try:
        connection = _socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        return connection.family != _socket.AF_UNIX
    finally:
        connection.detach()


class SystemLog:
    """The system's log, as syslog(3) reaches it at PATH, but never waited for: a line that it does not take is lost."""

    # The facility mail, and the severities info and warning (RFC 5424 section 6.2.1).
    INFO, WARNING = 2 << 3 | 6, 2 << 3 | 4

    def __init__(self, path: str = "/dev/log") -> None:
        self._path = path

    def add(self, lines: bytes) -> None:
        """Sends each of LINES."""
        device = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            for line in lines.splitlines():
                device.sendto(self._message(line.removeprefix(b"greycheck: ")), self._path)
        except OSError:
            pass  # nobody takes it
        finally:
            device.close()

    def _message(self, said: bytes) -> bytes:
        priority = self.WARNING if said.startswith(b"warning ") else self.INFO
        return f"<{priority}>{self._now()} greycheck[{posix.getpid()}]: ".encode() + said

    @staticmethod
    def _now() -> str:
        _year, month, day, hour, minute, second = localtime()[:6]
        return f"{MONTHS[month - 1]} {day:2} {hour:02}:{minute:02}:{second:02}"

    def flush(self, patience: float = 0) -> None:
        """All is sent."""


# --- answers --------------------------------------------------------------------------------------------------------------


class Spawned:
    """Answers what comes from SOURCE at SINK, under the settings of ENVIRON."""

    def __init__(
        self, environ: dict[bytes, bytes], operator: tuple[str, ...], source: int, sink: int, journal: "Log"
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
        self._question: Question | None = None
        self._idles = False
        self._ends = False

    def run(self) -> int:
        """Answers until the end; the exit code."""
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
        self._store.leave()
        self._log.flush(LAST_WORDS)
        return code

    def _next(self) -> bytes | None:
        """The next request, or None at the end. Raises Malformed."""
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
        """SIGTERM: what is in hand is still answered."""
        self._ends = True
        if self._idles:
            self._store.leave()
            self._log.flush(LAST_WORDS)
            posix._exit(0)

    def _answer(self, request: bytes) -> None:
        """Answers REQUEST, then logs it. Raises Malformed, Elsewhere and OSError."""
        question = self._reader.question(request, self._peer)
        if question is None:
            self._say(b"action=DUNNO\n\n")
            return
        if self._is_connection and self._peer.has_left():
            # This process was stopped meanwhile, and who asked has asked somebody else.
            self._warn(f"{self._peer.where}: nobody waits for the answer any more: not decided")
            return
        verdict = policy.without_store(question.envelope, question.settings)
        if verdict is None:
            self._question = question
            self._watch.begin(question.settings.deadline)
            verdict = policy.observe(self._decide(question), question.envelope, question.settings)
            self._watch.settle()
        self._tell(question, verdict)
        self._store.tidy()

    def _decide(self, question: Question) -> "Verdict":
        """The verdict on QUESTION, from the store."""
        try:
            verdict = self._store.check(question, self._messages)
        except StoreError as error:
            return question.error(str(error))
        except Exception as error:
            return question.error(f"{type(error).__name__}: {error}")
        if verdict.vouches and not question.hook:
            self._messages.vouch(question.envelope, int(time()))
        return verdict

    def _tell(self, question: Question, verdict: "Verdict") -> None:
        """Answers QUESTION by VERDICT, and logs that."""
        lines = self._writer.lines(question, verdict, self._store.notes)
        self._log.add(lines)
        try:
            self._say(self._writer.answer(question, verdict, lines))
        finally:
            self._log.flush()
        # A native child is told once, and waits for the end.
        self._ends = self._ends or question.hook is not None

    def _say(self, answer: bytes) -> None:
        while answer:
            answer = answer[posix.write(self._sink, answer) :]

    def _expire(self) -> None:
        """The deadline is over: the verdict of ``on_error``, from the watch's thread."""
        question = self._question
        assert question is not None
        self._store.overdue()
        verdict = question.error(f"no answer within {question.settings.deadline}s")
        self._tell(question, policy.observe(verdict, question.envelope, question.settings))

    def _warn(self, text: str) -> None:
        self._log.add(log.line(f"warning {text}"))
        self._log.flush()


class KeptStore:
    """The store that the settings FOUND name, connected to when it is asked first; an SQLite file is made then, by OPERATOR."""

    def __init__(self, found: "Settings", operator: tuple[str, ...]) -> None:
        self._settings = found
        self._operator = operator
        self._store: Kept | None = None
        self._is_file = found.database.startswith("sqlite:")
        self._path = found.database.partition(":///")[2]
        self._file: tuple[int, int] | None = None

    def check(self, question: Question, messages: Messages) -> "Verdict":
        """The verdict on QUESTION. Raises StoreError."""
        patience = question.settings.deadline * PATIENCE
        try:
            return self._checked(self._connected(patience), question, messages)
        except NoSchema:
            from greycheck.store import first_use

            self._drop()
            return self._checked(
                self._take(first_use.make(self._settings, self._operator, patience)), question, messages
            )

    def _checked(self, store: "Kept", question: Question, messages: Messages) -> "Verdict":
        now = question.attempt
        try:
            verdict = check(store, question.envelope, question.settings, now, messages.first_passed)
        except BaseException:
            # What is in the middle of a transaction would hold its lock until the next check.
            self._drop()
            raise
        if verdict.vouches and question.hook:
            try:  # noqa: SIM105
                remember(store, question.envelope, question.settings, now)
            except StoreError:
                pass  # later recipients wait, as those of other hooks do
        return verdict

    def _connected(self, patience: float) -> "Kept":
        """The store, for a check that may take PATIENCE seconds; another one where its file was taken away."""
        if self._is_file and self._identity() != self._file:
            self._drop()
        if self._store is None:
            return self._take(connect(self._settings, patience))
        self._store.begin(patience)
        return self._store

    def _take(self, store: "Store") -> "Kept":
        taken: Kept = store  # type: ignore[assignment]  # each kind can begin again
        self._store = taken
        self._file = self._identity() if self._is_file else None
        return taken

    def _drop(self) -> None:
        """Leaves the connection to a file. That to a server looks after itself."""
        if self._store is not None and self._is_file:
            self._store.close()
            self._store = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = posix.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def notes(self) -> list[str]:
        """What the log is to say about the store."""
        return list(self._store.notes) if self._store else []

    def tidy(self) -> None:
        """What may be put off until the verdict is given."""
        if self._store is not None and self._is_file:
            self._store.tidy()

    def overdue(self) -> None:
        """The deadline is over, and the store did not answer."""
        if self._store is not None:
            self._store.overdue()

    def leave(self) -> None:
        """Says good-bye to a server."""
        if self._store is not None:
            self._store.tidy()


class Watch:
    """The deadline, as ``greycheck.guard`` has it, for one check after the other: a thread that calls EXPIRE, then exits.

    The thread sleeps until the deadline of the check that it has seen, and then looks for another: it wakes once in that time, not at
    each check.
    """

    def __init__(self, expire: "Callable[[], None]") -> None:
        self._expire = expire
        # The end of the check in hand (``monotonic``), and the lock that whoever answers it takes.
        self._hand: tuple[float, _thread.LockType] | None = None
        self._wake = _thread.allocate_lock()
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
        _thread.stack_size(STACK)
        _thread.start_new_thread(self._watch, ())

    def begin(self, seconds: float) -> None:
        """A check begins that may take SECONDS."""
        _signal.setitimer(_signal.ITIMER_REAL, seconds + LAST_RESORT)
        self._hand = monotonic() + seconds, _thread.allocate_lock()
        if self._wake.locked():
            self._wake.release()

    def settle(self) -> None:
        """There is a verdict. Where the deadline was first, this never returns."""
        assert self._hand is not None
        while not self._hand[1].acquire(blocking=False):
            sleep(1)  # the thread is about to exit
        self._hand = None
        _signal.setitimer(_signal.ITIMER_REAL, 0)

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
