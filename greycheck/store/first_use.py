"""The embedded store at its first use: the slow path, taken once.

The migrations need SQLAlchemy and alembic, which need ten times the memory and fifty times the time
of a check. So they run in a program of their own (``greycheck db upgrade``), under a lock on the
store's directory: of many first checks at once one makes the schema, and the others wait for it.
The program outlives a check whose deadline is over, and keeps the lock until it is done.
"""

import _signal
import fcntl
import posix

from greycheck import settings as names
from greycheck.envelope import Envelope, triplet
from greycheck.store import connect
from greycheck.store.base import Asked, StoreError
from greycheck.store.causes import NoSchema
from greycheck.store.sqlite_faults import make_it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.settings import Settings
    from greycheck.store.base import Connected

# What is kept of what the program prints about its failure, in bytes.
COMPLAINT = 1024


def make(settings: "Settings", operator: tuple[str, ...], patience: float) -> "Connected":
    """Makes the schema of SETTINGS' database, and connects.

    OPERATOR is the command line of greycheck's commands. Raises StoreError.
    """
    directory = settings.database.path.rpartition("/")[0] or "/"
    _make_default(directory, settings)
    try:
        lock = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}: {make_it(directory)}") from None
    try:
        return _looked_at(settings, patience)
    except NoSchema:
        _run(operator, settings, lock)
        return _looked_at(settings, patience)
    finally:
        posix.close(lock)


def _looked_at(settings: "Settings", patience: float) -> "Connected":
    """A connection whose schema was seen to be there."""
    store = connect(settings, patience)
    nobody = Envelope("", "192.0.2.1", b"", b"")
    try:
        store.lookup(Asked(nobody, triplet(nobody, 32, 128)), 0)
    except BaseException:
        store.close()
        raise
    return store


def _make_default(directory: str, settings: "Settings") -> None:
    """Makes the directory that no setting names, with its parents.

    Above all that is an ordinary user's state directory.
    """
    if settings.sources["database"] != "default" or directory == names.SYSTEM_DIRECTORY:
        return
    made = ""
    for part in directory.split("/")[1:]:
        made += "/" + part
        try:
            posix.mkdir(made, 0o700 if settings.database_mode == 0o600 else 0o770)
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(f"{made}: {error.strerror}") from None


def _run(operator: tuple[str, ...], settings: "Settings", lock: int) -> None:
    """Runs ``greycheck db upgrade`` with the LOCK in its hands too.

    Raises StoreError with what it said.
    """
    _lift_limits()
    _signal.signal(
        _signal.SIGCHLD, _signal.SIG_DFL
    )  # inherited ignored, it would leave nothing to wait for
    posix.set_inheritable(lock, True)
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    command = (*operator, "db", "upgrade")
    to_pipe = [(posix.POSIX_SPAWN_DUP2, writer, 2)]
    try:
        maker = posix.posix_spawn(operator[0], command, _environ(settings), file_actions=to_pipe)
    except OSError as error:
        raise StoreError(f"the schema could not be made: {operator[0]}: {error.strerror}") from None
    posix.close(writer)
    complaint = _read_all(reader)
    posix.close(reader)
    _maker, status = posix.waitpid(maker, 0)
    if status:
        said = _cause(complaint.decode("utf-8", "surrogateescape"))
        raise StoreError(
            f"the schema could not be made: {said or f'{operator[0]} ended with status {status}'}"
        )


def _read_all(reader: int) -> bytes:
    """The first COMPLAINT bytes that come from READER; of a traceback its mark and the last."""
    first, last = b"", b""
    while part := posix.read(reader, COMPLAINT):
        first = (first + part)[:COMPLAINT]
        last = (last + part)[-COMPLAINT:]
    mark = TRACEBACK.encode()
    return mark + b"\n" + last if mark in first else first


# How Python's account begins of an error that nobody foresaw; its last line says which.
TRACEBACK = "Traceback (most recent call last):"


def _cause(complaint: str) -> str:
    """What went wrong, by a COMPLAINT: its first line, or the last one of a traceback."""
    lines = [line for line in complaint.split("\n") if line.strip()]
    if not lines:
        return ""
    return (
        lines[-1]
        if TRACEBACK in complaint or lines[0][:1].isspace()
        else lines[0].removeprefix("Error: ")
    )


def _environ(settings: "Settings") -> dict[bytes, bytes]:
    """Returns the environment for ``db upgrade``: of our settings, only the two that count there.

    Another one that is wrong must not keep the store from being made.
    """
    environ = {
        name: value for name, value in posix.environ.items() if not name.startswith(b"GREYCHECK")
    }
    environ[b"GREYCHECK_CONFIG"] = b"/dev/null"
    environ[b"GREYCHECK_DATABASE"] = settings.database.url.encode("utf-8", "surrogateescape")
    environ[b"GREYCHECK_DATABASE_MODE"] = b"%04o" % settings.database_mode
    return environ


def _lift_limits() -> None:
    """Lifts soft limits, as a child may: softlimit sets no others.

    A check needs little, this more. See docs/hooks.rst#environment-and-process.
    """
    import resource

    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        _soft, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (hard, hard))
