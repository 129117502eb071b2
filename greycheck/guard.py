"""The deadline: a thread that gives the verdict if the check does not.

A signal handler cannot run while a driver is blocked in C. A process of its own for the store costs
a fifth of the whole check (1.6 ms of 9.9 were measured: two interpreters copy each other's pages).
A thread costs 0.1 ms, and every driver lets it run while it waits. If a driver should ever block
with the interpreter's lock held, an alarm ends the process by its default action.

Interface: ``Guard(seconds, expire)`` starts the clock; ``settle(code)`` says that there is a
verdict. Until then, the thread calls ``expire()``, which must exit, when the time is over; after
that it exits with ``code``.

Bugs: a process that waits uninterruptibly for a disk that does not answer (state D of ps) cannot be
ended before the disk answers, not even with SIGKILL. Network file systems can be interrupted.
"""

import _signal
import _thread
import posix
from time import sleep

from greycheck import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# The thread's stack, in bytes. The default is the soft limit, more than softlimit leaves room for.
STACK = 256 * 1024

# How long after the deadline the alarm ends the process, in seconds.
LAST_RESORT = 1.0


class Guard:
    """A deadline in SECONDS from now. Raises RuntimeError if no thread can be started."""

    def __init__(self, seconds: float, expire: "Callable[[], NoReturn]") -> None:
        self._seconds = max(0.0, seconds)
        self._expire = expire
        self._code: int | None = None
        self._verdict = _thread.allocate_lock()
        log.alarm(self._seconds + LAST_RESORT, _signal.SIG_DFL)
        _thread.stack_size(STACK)
        _thread.start_new_thread(self._watch, ())

    def settle(self, code: int) -> None:
        """Says that there is a verdict, with exit code CODE.

        Does not return if the deadline was first.
        """
        # This is set before the lock is taken: a thread that finds the lock taken exits with this
        # code.
        self._code = code
        while not self._verdict.acquire(blocking=False):
            sleep(1)  # the thread is about to exit
        # From now on the thread is enough. If the alarm killed the process, the hook might get a
        # second answer.
        log.no_alarm()

    def _watch(self) -> "NoReturn":
        sleep(self._seconds)
        try:
            if self._verdict.acquire(blocking=False):
                self._expire()
        finally:
            posix._exit(self._code or 0)
