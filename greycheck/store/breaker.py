"""What checks tell each other of a host that does not answer.

Who finds out leaves a mark, and the next ones do not ask it.

A mark is a small file. That it exists says all that counts; its text is when it was made, its time
of modification when the host was last asked. So a kill leaves either a mark or none. Now and then
somebody asks the host nevertheless, one at a time: he holds the file's lock meanwhile, which ends
with him. Where the host answers, the mark goes.

Two kinds: ``DOWN`` (nothing is asked of the host) and ``STUCK`` (it answers, but takes no writes:
they alone are spared).

Bugs: without a directory that it may write to there are no marks, and each check finds out by
itself.
"""

import posix
from time import time

from greycheck.store.base import digest
from greycheck.store.url import Host, Server

DOWN = "down"
STUCK = "stuck"

# How soon a marked host is asked again, in seconds: first, and at last. Between, as long as it has
# been silent so far.
SOONEST, LATEST = 1, 30


class Breaker:
    """The marks of SERVER's hosts in DIRECTORY."""

    def __init__(self, directory: str, server: Server) -> None:
        self.directory = directory
        self._whose = f"{server.dialect} {server.user or posix.geteuid()} {server.database} "
        self._claims: dict[str, int] = {}

    def path(self, host: Host, kind: str) -> str:
        """The file that marks HOST."""
        name = str(host)
        shown = "".join(char if char.isalnum() or char in ".-" else "_" for char in name)[-80:]
        return f"{self.directory}/{kind}-{shown}-{digest((self._whose + name).encode()).hex()[:8]}"

    def since(self, host: Host, kind: str) -> float | None:
        """How long HOST has been marked, in seconds; None where it is not."""
        times = _times(self.path(host, kind))
        return None if times is None else max(0.0, time() - times[0])

    def is_due(self, host: Host, kind: str) -> bool:
        """Whether HOST is not marked, or is to be asked again."""
        times = _times(self.path(host, kind))
        return times is None or _is_over(*times)

    def claim(self, host: Host, kind: str) -> bool:
        """Whether this process is the one to ask a HOST that is due.

        No other one is until ``set``, ``clear``, ``release`` or its end.
        """
        path = self.path(host, kind)
        if path in self._claims:
            return True
        try:
            descriptor = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:
            # Another user's: nobody else can lock it. It is taken away where that is possible, and
            # keeps nobody from asking where not.
            if not self.is_due(host, kind):
                return False
            _is_removed(path)
            return True
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            posix.close(descriptor)
            return False
        except OSError:
            pass  # a file system without locks: better two who ask than none
        if not _is_at(descriptor, path) or not self.is_due(host, kind):
            posix.close(descriptor)
            return _times(path) is None
        self._claims[path] = descriptor
        return True

    def set(self, host: Host, kind: str) -> bool:
        """Marks HOST, or remembers that it was asked in vain.

        Whether the mark is new; raises OSError where it cannot be made.
        """
        path = self.path(host, kind)
        try:
            descriptor = posix.open(
                path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            claim = self._claims.pop(path, None)
            if claim is not None:
                try:
                    posix.utime(path)
                finally:
                    posix.close(claim)
            return False
        try:
            posix.write(descriptor, b"%d\n" % time())
            if posix.geteuid() == 0:
                owner = posix.stat(self.directory)
                posix.fchown(descriptor, owner.st_uid, owner.st_gid)
        finally:
            posix.close(descriptor)
        return True

    def clear(self, host: Host, kind: str) -> float | None:
        """Takes away the mark that this process claimed.

        Returns for how many seconds it was there; None where there was none.
        """
        path = self.path(host, kind)
        claim = self._claims.pop(path, None)
        if claim is None:
            return None
        since = self.since(host, kind)
        removed = _is_at(claim, path) and _is_removed(path)
        posix.close(claim)
        return since if removed else None

    def release(self) -> None:
        """Lets others ask what this process has claimed and come to no end with."""
        while self._claims:
            posix.close(self._claims.popitem()[1])


def _is_at(descriptor: int, path: str) -> bool:
    """Whether the file of DESCRIPTOR is still the one at PATH: not removed, nor made anew."""
    try:
        return posix.fstat(descriptor).st_ino == posix.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return False


def _is_removed(path: str) -> bool:
    try:
        posix.unlink(path)
    except OSError:
        return False
    return True


def _times(path: str) -> tuple[float, float] | None:
    """Returns when the mark at PATH was made, and when its host was last asked.

    None if there is no mark, or none that can be seen.
    """
    try:
        asked = posix.stat(path, follow_symlinks=False).st_mtime
    except OSError:
        return None
    try:
        descriptor = posix.open(
            path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
        )
    except OSError:
        return asked, asked
    text = posix.read(descriptor, 20)
    posix.close(descriptor)
    made = text.removesuffix(b"\n")
    return (min(float(made), asked) if made.isdigit() else asked), asked


def _is_over(made: float, asked: float) -> bool:
    """Whether a host that was ASKED last then is to be asked again.

    After a clock that was set back, at once.
    """
    return not 0 <= time() - asked < min(max(asked - made, SOONEST), LATEST)
