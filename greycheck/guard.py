"""The deadline: a thread that gives the verdict where the check does not.

A signal's handler would not run while a driver hangs in C, and a process of its own for the store costs a fifth of the whole check
(1.6 ms of 9.9 were measured: two interpreters copy each other's pages). A thread costs 0.1 ms; every driver lets it run while it waits.
Behind it stands an alarm whose default action ends the process, should a driver ever hang with the interpreter's lock held.

Interface: ``Guard(seconds, expire)`` starts the clock; ``settle(code)`` ends the wait for a verdict. Until then, ``expire()`` is called
when the time is over, in the thread, and must exit; after that, whatever still runs is cut short by an exit with ``code``.

Bugs: a process that waits uninterruptibly for a disk that does not answer (state D of ps) cannot be ended by anybody, not even with
SIGKILL, before the disk answers. Network file systems can be interrupted.
"""

import _signal
import _thread
import posix
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# Bytes of stack of the thread. The default is the soft limit, more than softlimit leaves room for.
STACK = 256 * 1024

# How much later than the thread the alarm ends the process, in seconds.
LAST_RESORT = 1.0


class Guard:
    """A deadline SECONDS from now. Raises RuntimeError where no thread can be started."""

    def __init__(self, seconds: float, expire: "Callable[[], NoReturn]") -> None:
        self._seconds = max(0.0, seconds)
        self._expire = expire
        self._code: int | None = None
        self._verdict = _thread.allocate_lock()
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
        _signal.setitimer(_signal.ITIMER_REAL, self._seconds + LAST_RESORT)
        _thread.stack_size(STACK)
        _thread.start_new_thread(self._watch, ())

    def settle(self, code: int) -> None:
        """The verdict is found; CODE is its exit code. Where the deadline was first, this never returns."""
        # Before the lock is taken: whoever finds it taken exits with this code.
        self._code = code
        while not self._verdict.acquire(blocking=False):
            sleep(1)  # the thread is about to exit
        # The thread is enough from here on; to be killed would be another answer, behind what the hook may be told now.
        _signal.setitimer(_signal.ITIMER_REAL, 0)

    def _watch(self) -> "NoReturn":
        sleep(self._seconds)
        try:
            if self._verdict.acquire(blocking=False):
                self._expire()
        finally:
            posix._exit(self._code or 0)
