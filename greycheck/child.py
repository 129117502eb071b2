"""The forked child, from first act to exit.

A mail server runs it once per RCPT TO and acts on its exit code, or on what it says
(docs/hooks.rst). It makes its descriptors safe, takes the envelope from the hook, and lets the
store be asked behind a deadline; every way out of here ends in one of the hook's answers and one
log line. The hook's words come first: where a line was said, nothing may go wrong after it that
would be another answer.

Interface: ``main(operator)``, called by a launcher that ``greycheck install`` wrote, or by
``__main__``.

Diagnostics: reason ``error`` with what failed, answered by ``on_error``.
"""

import _thread
import posix
import sys
from time import monotonic, time

from greycheck import hooks, log, settings
from greycheck.envelope import Envelope
from greycheck.policy import ACCEPT, DEFER, Decision, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from greycheck.hooks import Hook
    from greycheck.store.base import Store

# What completion scripts set for the program that they ask.
COMPLETION = b"_GREYCHECK_COMPLETE"

# When a native child began that asked the resident in vain, in milliseconds of CLOCK_MONOTONIC; and
# how long ago that may be, in seconds.
STARTED = b"_GREYCHECK_STARTED"
OLDEST = 600

# How long reading the settings may take, in seconds.
SETTINGS_DEADLINE = 5

# What is left to the store at least, in seconds, so that its patience is some.
LEAST = 0.1


def main(operator: tuple[str, ...]) -> "NoReturn":
    """Checks the envelope of this process and exits.

    Called with a command, it becomes the command line OPERATOR. Raises what keeps it from knowing
    which hook has called: the launcher answers then.
    """
    argv = [_bytes(argument) for argument in sys.argv]
    hook = hooks.called_by(argv)
    if hook is None or asks_completion(argv):
        _become(operator, argv[1:])
    if _is_person(argv):
        _become(operator, [b"--help"])
    check = Check(hook, operator)
    try:
        check.reply_fd = safe_descriptors(hook.reply is not None)
        check.read(argv)
        check.run()
    except BaseException as error:
        check.fail(error)
    finally:
        posix._exit(check.code)


def _become(operator: tuple[str, ...], arguments: list[bytes]) -> "NoReturn":
    """Becomes the command line OPERATOR with ARGUMENTS.

    No mail waits here: where that fails the exit code is 1.
    """
    try:
        posix.execv(operator[0], (*operator, *arguments))
    except OSError as error:
        said = (
            f"greycheck: {operator[0]}: {error.strerror}: install greycheck, then run its install"
            " command, again\n"
        )
        posix.write(2, said.encode("utf-8", "surrogateescape"))
        posix._exit(1)


def _limit_settings() -> None:
    """Limits the time to read the settings to SETTINGS_DEADLINE.

    The settings may name another deadline for all that follows.
    """

    def interrupt(_number: int, _frame: object) -> None:
        raise TimeoutError(f"the settings could not be read within {SETTINGS_DEADLINE}s")

    log.alarm(SETTINGS_DEADLINE, interrupt)


class Check:
    """The check of one envelope for HOOK."""

    def __init__(self, hook: "Hook", operator: tuple[str, ...]) -> None:
        self.started = _started(monotonic())
        self.hook = hook
        self.operator = operator
        self.store: Store | None = None
        self.reply_fd = -1
        # Nothing of these is known yet; a fault meets them as they are.
        self.action = (
            DEFER
            if posix.environ.get(b"GREYCHECK_ON_ERROR", b"").strip().lower() == b"defer"
            else ACCEPT
        )
        self.envelope = Envelope(hook.NAME, None, b"", b"", first=False)
        self.settings = settings.Settings()
        self.decision = Decision(self.envelope, self.settings, 0)
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
        # When the attempt was made: a resident that was asked in vain may have recorded it, or be
        # about to, and counts from then too.
        made = int(time() - (monotonic() - self.started))
        self.decision = Decision(self.envelope, self.settings, made)
        log.no_alarm()

    def run(self) -> None:
        """Finds the verdict, tells it, and logs it."""
        decision = self.decision
        if not decision.advance():
            verdict = decision.verdict()
            self.tell(verdict)
            log.write(self.lines(verdict), self.code)
            if self.settings.learn_outbound and verdict.reason == "exempt":
                self.learn()
            return
        from greycheck.guard import Guard

        guard = Guard(self.left(), self.expire)
        try:
            decision = self.ask_store(decision)
            verdict = decision.verdict()
        except Exception as error:
            if is_foreseen(error):
                said = str(error)
            elif isinstance(error, ImportError) and "failed to map" in str(error):
                said = f"too little memory ({error}): softlimit -m 20000000"
            else:
                said = f"{type(error).__name__}: {error}"
            verdict = decision.failed(said)
        guard.settle(self.hook.ANSWERS[verdict.action])
        self.tell(verdict)
        log.write(self.lines(verdict), self.code)
        if self.settings.history:
            self.count(verdict, decision.now)
        if self.store is not None:
            self.leave(self.store, decision if verdict.opens_message else None)

    def tell(self, verdict: Verdict) -> None:
        """Gives the hook VERDICT: its words, if it has any for it, and the exit code.

        Only the first one that it is given counts.
        """
        if not self._told.acquire(blocking=False):
            return
        self.action = verdict.action
        reply = self.hook.reply
        if reply is not None and (words := reply(verdict, self.envelope, self.settings)):
            try:
                posix.write(self.reply_fd, words)
            except OSError:
                pass  # the session was killed

    def left(self) -> float:
        """What is left of the deadline, in seconds."""
        return self.settings.deadline - (monotonic() - self.started)

    def ask_store(self, decision: Decision) -> Decision:
        """Makes DECISION with what the store knows, and records it there; returns it."""
        from greycheck.check import check
        from greycheck.store import connect
        from greycheck.store.base import STORE_SHARE, StoreError

        patience = max(self.left(), LEAST) * STORE_SHARE
        try:
            self.store = connect(self.settings, patience)
            return check(self.store, decision)
        except StoreError as error:
            from greycheck.store.causes import NoSchema

            if not isinstance(error, NoSchema):
                raise
            from greycheck.store import first_use

            self.store = first_use.make(self.settings, self.operator, patience)
            return check(self.store, decision)

    def leave(self, store: "Store", opening: Decision | None) -> None:
        """Does what may wait until the verdict is given.

        Records OPENING, if there is one, which lets later recipients of its message pass. The mail
        server asks about the next recipient only when this process has ended.
        """
        try:
            if opening is not None:
                from greycheck.check import remember

                remember(store, opening, int(time()))
        except Exception:
            pass  # later recipients wait, as those of other hooks do
        try:
            store.tidy()
        except Exception:
            pass  # the server notices, or the next check writes the log back

    def count(self, verdict: Verdict, now: int) -> None:
        """Notes VERDICT, given at NOW, for ``greycheck stats``, if that can be done."""
        try:
            from greycheck import history

            history.note(self.settings, self.envelope, verdict, now)
        except Exception:
            pass  # too little memory, for instance: it is told, and nothing but a number is lost

    def learn(self) -> None:
        """Learns from outbound mail, after its verdict, in a process that nobody waits for."""
        try:
            from greycheck import outbound

            outbound.leave_behind(self.envelope, self.settings, self.decision.now)
        except Exception as error:
            said = f"nothing is learnt from this mail: {type(error).__name__}: {error}"
            log.write(log.line(f"warning {said}"), self.code)

    def expire(self) -> "NoReturn":
        """The deadline is over: ends with the verdict of ``on_error``, from the guard's thread."""
        try:
            verdict = self.decision.failed(f"no answer within {self.settings.deadline}s")
            self.tell(verdict)
            if self.store is not None:
                self.store.overdue()
            log.write_from_thread(self.lines(verdict))
        finally:
            posix._exit(self.code)

    def fail(self, error: BaseException) -> None:
        """Gives the verdict of ``on_error``, because of an unforeseen ERROR."""
        log.alarm(SETTINGS_DEADLINE, lambda _number, _frame: posix._exit(self.code))
        self.tell(Verdict(self.action, "error"))
        fault = log.quoted(f"{type(error).__name__}: {error}")
        log.write(f"greycheck: {self.action} reason=error error={fault}\n".encode(), self.code)

    def lines(self, verdict: Verdict) -> bytes:
        """Returns the log lines of VERDICT.

        Before it come those of wrong settings, and of hosts that come and go.
        """
        lines = [log.line(f"warning {problem}") for problem in self.settings.problems]
        if self.store is not None:
            lines += [log.line(note) for note in self.store.notes]
        if verdict.warning:
            lines.append(log.line(f"warning {verdict.warning}"))
        milliseconds = round((monotonic() - self.started) * 1000)
        return b"".join(lines) + log.verdict_line(self.envelope, verdict, milliseconds)


def is_foreseen(error: Exception) -> bool:
    """Whether ERROR is the store's own, whose message says it all."""
    from greycheck.store.base import StoreError

    return isinstance(error, StoreError)


def safe_descriptors(is_read: bool = False) -> int:
    """Puts /dev/null on 0 and 1, the SMTP connection, and on 2 if that is closed.

    If the hook reads 1 (IS_READ), returns a duplicate of it for the reply: nothing that writes to 1
    unasked reaches the hook, and other programs do not inherit it. Otherwise returns -1. See
    docs/hooks.rst#descriptors.
    """
    null = posix.open("/dev/null", posix.O_RDWR)
    posix.dup2(null, 0)
    for descriptor in (1, 2):
        try:
            posix.fstat(descriptor)
        except OSError:
            posix.dup2(null, descriptor)
    reply_fd = posix.dup(1) if is_read else -1
    posix.dup2(null, 1)
    if null > 2:
        posix.close(null)
    return reply_fd


def _started(now: float) -> float:
    """Returns when this check began, by ``monotonic``, which says NOW.

    Where a native child has asked the resident before, that is when the native child began.
    """
    text = posix.environ.get(STARTED, b"")
    began = int(text) / 1000 if text.isdigit() and len(text) < 20 else now
    return began if 0 <= now - began < OLDEST else now


def _bytes(argument: str) -> bytes:
    return argument.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def asks_completion(argv: list[bytes]) -> bool:
    """Whether a shell asks how a command line may go on.

    It runs the bare name with COMPLETION in the environment. A mail server's child with that
    variable must not be taken for it, or the variable would be a way around the check. What a shell
    leaves on descriptor 0 is a terminal or /dev/null; a mail server's connection is neither, and a
    hook sets at least one variable.
    """
    return COMPLETION in posix.environ and _is_bare(argv) and _is_character_device(0)


def _is_person(argv: list[bytes]) -> bool:
    """Whether a person typed the bare name at a terminal."""
    return _is_bare(argv) and posix.isatty(0)


def _is_bare(argv: list[bytes]) -> bool:
    """Whether there is nothing but the program's name: no argument, and no variable of its hook."""
    hook = hooks.called_by(argv) if len(argv) == 1 else None
    return hook is not None and posix.environ.keys().isdisjoint(hook.VARIABLES.values())


def _is_character_device(descriptor: int) -> bool:
    try:
        return posix.fstat(descriptor).st_mode & 0o170000 == 0o020000
    except OSError:
        return False
