"""The forked child, from first act to exit.

A mail server runs it once per RCPT TO and acts on its exit code (contract.md). It makes its descriptors safe, takes the envelope from
the hook, and lets the store be asked behind a deadline; every way out of here ends in 0, 100 or 101 and one log line.

Interface: ``main(operator)``, called by a launcher that ``greycheck install`` wrote, or by ``__main__``.

Diagnostics: reason ``error`` with what failed, answered by ``on_error``.
"""

import _signal
import posix
import sys
from time import monotonic, time

from greycheck import hooks, log, policy, settings
from greycheck.policy import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from greycheck.hooks import Hook
    from greycheck.store.lean import Store

# The part of the deadline that a statement may wait for a lock, so that the message can name the lock.
PATIENCE = 0.8

# What completion scripts set for the program that they ask.
COMPLETION = b"_GREYCHECK_COMPLETE"

# How long reading the settings may take, in seconds.
SETTINGS_DEADLINE = 5

# Codes for faults met before a hook and its settings are known.
ON_ERROR = {b"defer": 101}


def main(operator: tuple[str, ...]) -> "NoReturn":
    """Checks the envelope of this process and exits; or, called with a command, becomes the command line OPERATOR."""
    code = ON_ERROR.get(posix.environ.get(b"GREYCHECK_ON_ERROR", b"").strip().lower(), 0)
    try:
        argv = [_bytes(argument) for argument in sys.argv]
        hook = hooks.called_by(argv)
        if hook is None or asks_completion(argv):
            _become(operator, argv[1:])
        if _is_person(argv):
            _become(operator, [b"--help"])
        safe_descriptors()
        _limit_settings()
        check = Check(hook, argv, operator)
        code = hook.ANSWERS[check.settings.on_error]
        code = check.run()
    except BaseException as error:
        action = policy.DEFER if code else policy.ACCEPT
        fault = log.quoted(f"{type(error).__name__}: {error}")
        log.write(f"greycheck: {action} reason=error error={fault}\n".encode(), code)
    finally:
        posix._exit(code)


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
    """The check of one envelope."""

    def __init__(self, hook: "Hook", argv: list[bytes], operator: tuple[str, ...]) -> None:
        self.started = monotonic()
        self.hook = hook
        self.operator = operator
        self.store: Store | None = None
        self.envelope = hook.envelope(argv, posix.environ)
        self.settings = settings.read(posix.environ)
        _signal.setitimer(_signal.ITIMER_REAL, 0)

    def run(self) -> int:
        """Finds the verdict, logs it, and gives its exit code."""
        verdict = policy.without_store(self.envelope, self.settings)
        if verdict is not None:
            code = self.hook.ANSWERS[verdict.action]
            log.write(self.lines(verdict), code)
            return code
        from greycheck.guard import Guard

        guard = Guard(self.settings.deadline - (monotonic() - self.started), self.expire)
        try:
            verdict = self.ask_store()
        except Exception as error:
            verdict = self.error(str(error) if is_foreseen(error) else f"{type(error).__name__}: {error}")
        verdict = policy.observe(verdict, self.envelope, self.settings)
        code = self.hook.ANSWERS[verdict.action]
        guard.settle(code)
        log.write(self.lines(verdict), code)
        if self.store is not None:
            self.store.tidy()
        return code

    def ask_store(self) -> Verdict:
        """The verdict, from the store."""
        from greycheck.check import check
        from greycheck.store import connect
        from greycheck.store.lean import NoSchema

        patience = self.settings.deadline * PATIENCE
        now = int(time())
        try:
            self.store = connect(self.settings, patience)
            return check(self.store, self.envelope, self.settings, now)
        except NoSchema:
            from greycheck.store import first_use

            self.store = first_use.make(self.settings, self.operator, patience)
            return check(self.store, self.envelope, self.settings, now)

    def expire(self) -> "NoReturn":
        """The deadline is over: the verdict of ``on_error``, from the guard's thread."""
        verdict = policy.observe(
            self.error(f"no answer within {self.settings.deadline}s"), self.envelope, self.settings
        )
        try:
            if self.store is not None:
                self.store.overdue()
            log.write_beside(self.lines(verdict))
        finally:
            posix._exit(self.hook.ANSWERS[verdict.action])

    def error(self, message: str) -> Verdict:
        """The verdict of ``on_error``, because of MESSAGE."""
        return Verdict(self.settings.on_error, "error", detail=f"error={log.quoted(message)}")

    def lines(self, verdict: Verdict) -> bytes:
        """The log lines of VERDICT, after those of settings that cannot be used and of hosts that come and go."""
        lines = [log.line(f"warning {problem}") for problem in self.settings.problems]
        if self.store is not None:
            lines += [log.line(note) for note in self.store.notes]
        milliseconds = round((monotonic() - self.started) * 1000)
        return b"".join(lines) + log.verdict_line(self.envelope, verdict, milliseconds)


def is_foreseen(error: Exception) -> bool:
    """Whether ERROR is the store's own, whose message says it all."""
    from greycheck.store.lean import StoreError

    return isinstance(error, StoreError)


def safe_descriptors() -> None:
    """/dev/null on 0 and 1, which are the SMTP connection, and on 2 where it is closed (contract.md section 2)."""
    null = posix.open("/dev/null", posix.O_RDWR)
    posix.dup2(null, 0)
    posix.dup2(null, 1)
    try:
        posix.fstat(2)
    except OSError:
        posix.dup2(null, 2)
    if null > 2:
        posix.close(null)


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
