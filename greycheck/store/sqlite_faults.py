"""What an error of SQLite means, in words, and what to do about it."""

import posix

from greycheck.store.base import StoreError
from greycheck.store.causes import Busy, NoSchema


def fault(path: str, error: Exception, patience: float) -> StoreError:
    """Returns what to raise for ERROR of the file at PATH, after PATIENCE seconds for a lock."""
    name = getattr(error, "sqlite_errorname", "")
    message = str(error)
    if message.startswith("no such table"):
        return NoSchema(f"{path}: {message}: run greycheck db upgrade")
    if name == "SQLITE_CANTOPEN" or name.startswith("SQLITE_READONLY"):
        return cannot_open(path, message)
    if name == "SQLITE_NOTADB":
        return StoreError(f"{path}: {message}{not_a_database(path)}")
    if name.startswith("SQLITE_BUSY"):
        return Busy(f"{path}: locked by another process for {patience:.1f}s")
    if name.startswith("SQLITE_IOERR"):
        message = full(path) or message
    return StoreError(f"{path}: {message}" + (f" ({name})" if name else ""))


def word(path: str) -> str:
    """Returns PATH as one word of a shell."""
    return (
        path
        if path.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum()
        else _quoted(path)
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def make_it(directory: str) -> str:
    """What to do about a missing DIRECTORY of the store."""
    return f"make it, as root: install -d -m 0700 -o {posix.geteuid()} {word(directory)}"


def not_a_database(path: str) -> str:
    """What to do about a PATH that is no SQLite file, behind the cause."""
    cause, command = replacing(path)
    return f": {cause}: {command}" if command else f": {cause}"


def replacing(path: str) -> tuple[str, str]:
    """What to do about a PATH that is no SQLite file, and the command for that, or empty."""
    if not path.endswith(".db"):
        return "let database name another file", ""
    moving = f"mv {word(path)} {word(path + '.broken')}"
    return "move it away, and the next mail makes a new one", moving


def full(path: str) -> str:
    """Says that the disk of PATH is full, if it is."""
    try:
        room = posix.statvfs(path.rpartition("/")[0] or "/")
    except OSError:
        return ""
    return "the disk is full" if room.f_bavail == 0 or (room.f_files and room.f_favail == 0) else ""


def cannot_open(path: str, message: str) -> StoreError:
    """Returns what keeps the file at PATH from being opened, of which SQLite says MESSAGE."""
    directory = path.rpartition("/")[0] or "/"
    try:
        owner = posix.stat(directory).st_uid
    except FileNotFoundError as error:
        return NoSchema(f"{directory}: {error.strerror}: {make_it(directory)}")
    except OSError as error:
        return StoreError(f"{directory}: {error.strerror}")
    if posix.statvfs(directory).f_flag & posix.ST_RDONLY:
        return StoreError(f"{directory}: is on a read-only file system")
    me = posix.geteuid()
    writable = posix.access(directory, posix.W_OK | posix.X_OK)
    try:
        posix.close(posix.open(path, posix.O_RDWR | posix.O_CLOEXEC))
    except FileNotFoundError as error:
        if writable:
            return NoSchema(f"{path}: {error.strerror}")
    except PermissionError:
        if posix.access(directory, posix.X_OK):
            return StoreError(
                f"{path}: user {me} cannot write it, its owner is user {posix.stat(path).st_uid}"
            )
    except OSError as error:
        return StoreError(f"{path}: {error.strerror}")
    if not writable:
        return StoreError(
            f"{directory}: user {me} cannot write here, its owner is user {owner}: chown it, or"
            " run as its owner"
        )
    return StoreError(f"{path}: {message}")
