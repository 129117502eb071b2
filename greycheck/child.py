"""The forked child, from first act to exit.

A mail server runs it once per RCPT TO and acts on its exit code, or on what it says (contract.md). It makes its descriptors safe, takes
the envelope from the hook, and lets the store be asked behind a deadline; every way out of here ends in one of the hook's answers and one
log line. The hook's words come first: where a line was said, nothing may go wrong after it that would be another answer.

Interface: ``main(operator)``, called by a launcher that ``greycheck install`` wrote, or by ``__main__``.

Diagnostics: reason ``error`` with what failed, answered by ``on_error``.
"""

import _signal
import _thread
import posix
import sys
from time import monotonic, time

from greycheck import hooks, log, policy, settings
from greycheck.envelope import Envelope
from greycheck.policy import ACCEPT, DEFER, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from greycheck.hooks import Hook
    from greycheck.store.lean import Store

# The part of the deadline that a statement may wait for a lock, so that the message can name the lock.
PATIENCE = 0.8

# What completion scripts set for the program that they ask.
COMPLETION = b"_GREYCHECK_COMPLETE"

# When a native child began that asked the resident in vain, in milliseconds of CLOCK_MONOTONIC; and how long ago that may be, in seconds.
STARTED = b"_GREYCHECK_STARTED"
OLDEST = 600

# How long reading the settings may take, in seconds.
SETTINGS_DEADLINE = 5

# What is left to the store at least, in seconds, so that its patience is some.
LEAST = 0.1


def main(operator: tuple[str, ...]) -> "NoReturn":
    """Checks the envelope of this process and exits; or, called with a command, becomes the command line OPERATOR.

    Raises what keeps it from knowing which hook has called: the launcher answers then.
    """
    argv = [_bytes(argument) for argument in sys.argv]
    hook = hooks.called_by(argv)
    if hook is None or asks_completion(argv):
        _become(operator, argv[1:])
    if _is_person(argv):
        _become(operator, [b"--help"])
    check = Check(hook, operator)
    try:
        check.speaker = safe_descriptors(hook.says is not hooks.silence)
        check.read(argv)
        check.run()
    except BaseException as error:
        check.fail(error)
    finally:
        posix._exit(check.code)


def _become(operator: tuple[str, ...], arguments: list[bytes]) -> "NoReturn":
    """Becomes the command line OPERATOR with ARGUMENTS. No mail waits here: where that fails the exit code is 1."""
    try:
        posix.execv(operator[0], (*operator, *arguments))
    except OSError as error:
        said = f"greycheck: {operator[0]}: {error.strerror}: install greycheck, then run its install command, again\n"
        posix.write(2, said.encode("utf-8", "surrogateescape"))
        posix._exit(1)


def _limit_settings() -> None:
    """Lets reading the settings take the default deadline at most; they may say another one for all that follows."""

    def interrupt(_number: int, _frame: object) -> None:
        raise TimeoutError(f"the settings could not be read within {SETTINGS_DEADLINE}s")

    _signal.signal(_signal.SIGALRM, interrupt)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
    _signal.setitimer(_signal.ITIMER_REAL, SETTINGS_DEADLINE)


class Check:
    """The check of one envelope for HOOK."""

    def __init__(self, hook: "Hook", operator: tuple[str, ...]) -> None:
        self.started = _started(monotonic())
        self.hook = hook
        self.operator = operator
        self.store: Store | None = None
        self.speaker = -1
        # Nothing of these is known yet; a fault meets them as they are.
        self.action = DEFER if posix.environ.get(b"GREYCHECK_ON_ERROR", b"").strip().lower() == b"defer" else ACCEPT
        self.envelope = Envelope(hook.NAME, None, b"", b"", first=False)
        self.settings = settings.Settings()
        self._told = _thread.allocate_lock()

    @property
    def code(self) -> int:
        """The exit code of the verdict, or until there is one, of ``on_error``."""
        return self.hook.ANSWERS[self.action]

    def read(self, argv: list[bytes]) -> None:
        """Reads the envelope from ARGV or the environment, and the settings."""
        _limit_settings()
        self.envelope = self.hook.envelope(argv, posix.environ)
        self.settings = settings.read(posix.environ)
        self.action = self.settings.on_error
        _signal.setitimer(_signal.ITIMER_REAL, 0)

    def run(self) -> None:
        """Finds the verdict, tells it, and logs it."""
        verdict = policy.without_store(self.envelope, self.settings)
        if verdict is not None:
            self.tell(verdict)
            log.write(self.lines(verdict), self.code)
            return
        from greycheck.guard import Guard

        guard = Guard(self.left(), self.expire)
        try:
            verdict = self.ask_store()
        except Exception as error:
            if is_foreseen(error):
                said = str(error)
            elif isinstance(error, ImportError) and "failed to map" in str(error):
                said = f"too little memory ({error}): softlimit -m 20000000"
            else:
                said = f"{type(error).__name__}: {error}"
            verdict = self.error(said)
        verdict = policy.observe(verdict, self.envelope, self.settings)
        guard.settle(self.hook.ANSWERS[verdict.action])
        self.tell(verdict)
        log.write(self.lines(verdict), self.code)
        if self.store is not None:
            self.leave(self.store, verdict)

    def tell(self, verdict: Verdict) -> None:
        """Gives the hook VERDICT: its words, if it has any for it, and the exit code. Only the first one that it is given counts."""
        if not self._told.acquire(blocking=False):
            return
        self.action = verdict.action
        words = self.hook.says(verdict, self.envelope, self.settings)
        if words:
            try:
                posix.write(self.speaker, words)
            except OSError:
                pass  # the session was killed

    def left(self) -> float:
        """What is left of the deadline, in seconds."""
        return self.settings.deadline - (monotonic() - self.started)

    def ask_store(self) -> Verdict:
        """The verdict, from the store."""
        from greycheck.check import check
        from greycheck.store import connect
        from greycheck.store.lean import NoSchema

        patience = max(self.left(), LEAST) * PATIENCE
        # When the attempt was made: a resident that was asked in vain may have recorded it, or be about to, and counts from then too.
        now = int(time() - (monotonic() - self.started))
        try:
            self.store = connect(self.settings, patience)
            return check(self.store, self.envelope, self.settings, now)
        except NoSchema:
            from greycheck.store import first_use

            self.store = first_use.make(self.settings, self.operator, patience)
            return check(self.store, self.envelope, self.settings, now)

    def leave(self, store: "Store", verdict: Verdict) -> None:
        """What may be put off until VERDICT is given. The next recipient is not asked about before this process has ended."""
        if verdict.vouches:
            from greycheck.check import remember
            from greycheck.store.lean import StoreError

            try:
                remember(store, self.envelope, self.settings, int(time()))
            except StoreError:
                pass  # later recipients wait, as those of other hooks do
        store.tidy()

    def expire(self) -> "NoReturn":
        """The deadline is over: the verdict of ``on_error``, from the guard's thread."""
        try:
            verdict = policy.observe(
                self.error(f"no answer within {self.settings.deadline}s"), self.envelope, self.settings
            )
            self.tell(verdict)
            if self.store is not None:
                self.store.overdue()
            log.write_beside(self.lines(verdict))
        finally:
            posix._exit(self.code)

    def fail(self, error: BaseException) -> None:
        """The verdict of ``on_error``, because of an ERROR that nobody foresaw, wherever it was met."""
        _signal.signal(_signal.SIGALRM, lambda _number, _frame: posix._exit(self.code))
        _signal.setitimer(_signal.ITIMER_REAL, SETTINGS_DEADLINE)
        self.tell(Verdict(self.action, "error"))
        fault = log.quoted(f"{type(error).__name__}: {error}")
        log.write(f"greycheck: {self.action} reason=error error={fault}\n".encode(), self.code)

    def error(self, message: str) -> Verdict:
        """The verdict of ``on_error``, because of MESSAGE."""
        return Verdict(self.settings.on_error, "error", detail=f"error={message}")

    def lines(self, verdict: Verdict) -> bytes:
        """The log lines of VERDICT, after those of settings that cannot be used and of hosts that come and go."""
        lines = [log.line(f"warning {problem}") for problem in self.settings.problems]
        if self.store is not None:
            lines += [log.line(note) for note in self.store.notes]
        if verdict.warning:
            lines.append(log.line(f"warning {verdict.warning}"))
        milliseconds = round((monotonic() - self.started) * 1000)
        return b"".join(lines) + log.verdict_line(self.envelope, verdict, milliseconds)


def is_foreseen(error: Exception) -> bool:
    """Whether ERROR is the store's own, whose message says it all."""
    from greycheck.store.lean import StoreError

    return isinstance(error, StoreError)


def safe_descriptors(speaks: bool = False) -> int:
    """/dev/null on 0 and 1, which are the SMTP connection, and on 2 where it is closed (contract.md section 2).

    Where the hook SPEAKS, what was on 1 is what it listens to. That moves out of the way of all that writes to 1 without being asked,
    and is not handed on to other programs; its descriptor is returned, or -1.
    """
    null = posix.open("/dev/null", posix.O_RDWR)
    posix.dup2(null, 0)
    for descriptor in (1, 2):
        try:
            posix.fstat(descriptor)
        except OSError:
            posix.dup2(null, descriptor)
    speaker = posix.dup(1) if speaks else -1
    posix.dup2(null, 1)
    if null > 2:
        posix.close(null)
    return speaker


def _started(now: float) -> float:
    """When this check began, as seen NOW (``monotonic``): when its native child did, where one has asked the resident before."""
    text = posix.environ.get(STARTED, b"")
    began = int(text) / 1000 if text.isdigit() and len(text) < 20 else now
    return began if 0 <= now - began < OLDEST else now


def _bytes(argument: str) -> bytes:
    return argument.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def asks_completion(argv: list[bytes]) -> bool:
    """Whether a shell asks how a command line may go on: it runs the bare name with COMPLETION in the environment.

    A mail server's child with that variable must not be taken for it, or the variable would be a way around the check. What a shell
    leaves on descriptor 0 is a terminal or /dev/null; a mail server's connection is neither, and a hook sets at least one variable.
    """
    return COMPLETION in posix.environ and _is_bare(argv) and _is_character_device(0)


def _is_person(argv: list[bytes]) -> bool:
    """Whether a person typed the bare name at a terminal."""
    return _is_bare(argv) and posix.isatty(0)


def _is_bare(argv: list[bytes]) -> bool:
    """Whether there is nothing but the program's name: no argument, and no hook's variable."""
    return len(argv) == 1 and not any(name in posix.environ for name in (b"REMOTEMF", b"REMOTERCPT", b"TCPREMOTEIP"))


def _is_character_device(descriptor: int) -> bool:
    try:
        return posix.fstat(descriptor).st_mode & 0o170000 == 0o020000
    except OSError:
        return False
