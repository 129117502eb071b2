"""Makes what the resident listens on: a unix socket, TCP addresses, or what systemd has opened.

For systemd see sd_listen_fds(3) and sd_notify(3).

Diagnostics: ``OSError`` or ``SocketError`` with the path or address, and what to do.
"""

import ctypes
import fcntl
import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from greycheck.privilege import access
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.base import StoreError

# How many connections may wait to be accepted; the kernel has its own limit
# (net.core.somaxconn).
BACKLOG = 1024

# How often a lock is tried again that is removed before it is held.
ATTEMPTS = 10

# The most bytes that the path of a unix socket may have (unix(7)).
LONGEST = 107

# The first descriptor that systemd passes.
FIRST = 3


class SocketError(Exception):
    """A socket cannot be made; the message says why, and what to do."""


def activated(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Returns the sockets that systemd has opened for this process.

    Removes its variables from ENVIRON. Raises SocketError.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_handed_over(descriptor) for descriptor in range(FIRST, FIRST + int(count))]


def _handed_over(descriptor: int) -> socket.socket:
    wrong = SocketError(
        f"descriptor {descriptor}, as LISTEN_FDS counts, is no listening stream socket"
    )
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        raise wrong from None
    if found.type != socket.SOCK_STREAM or not found.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise wrong
    os.set_inheritable(descriptor, False)
    found.setblocking(False)
    return found


class Unix(socket.socket):
    """A unix socket at PATH with MODE, for the user and group of the numbers OWNER (-1: unchanged).

    ``lock`` is the descriptor of the lock that is held for it. ``identity`` is the device and inode
    number of its file: another one there means that it was removed.
    """

    def __init__(self, path: Path, mode: int, owner: tuple[int, int], lock: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.path = path
        self.mode = mode
        self.owner = owner
        self.lock = lock
        self.identity = (0, 0)

    def is_there(self) -> bool:
        """Returns true if its file is still at its path: clients that connect there come here."""
        return _identity(self.path) == self.identity


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_at(path: Path, descriptor: int) -> bool:
    """Returns true if PATH itself, not through a link, is the file that is open as DESCRIPTOR."""
    status = os.fstat(descriptor)
    return _identity(path) == (status.st_dev, status.st_ino)


def made(settings: Settings, account: pwd.struct_passwd | None = None) -> list[socket.socket]:
    """Makes the sockets of SETTINGS. Root makes them for ACCOUNT, which it becomes later.

    Raises SocketError, OSError.
    """
    if not settings.socket and not settings.listen:
        raise SocketError("nothing to listen on: socket and listen are empty")
    addresses = [internet(host, port) for host, port in settings.listen]
    return [unix(settings, account), *addresses] if settings.socket else addresses


def unix(settings: Settings, account: pwd.struct_passwd | None = None) -> Unix:
    """Makes the unix socket, in the place of one on which no process listens any more.

    It belongs to ACCOUNT, unless ``socket_owner`` says otherwise. Root writes nothing into a
    directory that ACCOUNT may write to: the socket is made there with ACCOUNT's rights, and only
    the socket itself is given to another owner.
    """
    path = Path(settings.socket)
    _check_length(settings)
    if os.geteuid() != 0:
        account = None
    maker = _maker(path.parent, account) if os.geteuid() == 0 else None
    mine = account if maker is None else None
    user, group = settings.socket_owner
    owner = _number(pwd.getpwnam, user, mine), _number(grp.getgrnam, group, mine)
    with access.acting_as(maker):
        _make_directory(path.parent)
        lock = _lock(path)
        if mine is not None:
            os.fchown(lock, mine.pw_uid, mine.pw_gid)
        listening = _bound(Unix(path, settings.socket_mode, owner, lock))
    _give(listening, maker)
    listening.listen(BACKLOG)
    return listening


def again(gone: Unix) -> tuple[Unix, str]:
    """Makes a socket in the place of GONE, whose file was removed; it takes over the lock.

    Returns it, and what is wrong with its owner, if anything is. Raises SocketError.
    """
    path = gone.path
    _make_directory(path.parent)
    if not _is_at(_lock_of(path), gone.lock):
        held, gone.lock = gone.lock, _lock(path)
        os.close(held)
    listening = _bound(Unix(path, gone.mode, gone.owner, gone.lock))
    wrong = ""
    try:
        _give(listening, None)
    except SocketError as error:
        wrong = str(error)
    listening.listen(BACKLOG)
    return listening, wrong


def _check_length(settings: Settings) -> None:
    """Raises SocketError if the path of the socket in SETTINGS is too long."""
    length = len(os.fsencode(settings.socket))
    if length > LONGEST:
        where = f"{settings.sources['socket']}: socket = {settings.socket}"
        raise SocketError(
            f"{where}: {length} bytes, and the path of a socket has {LONGEST} at most:"
            " set a shorter one"
        )


def _bound(listening: Unix) -> Unix:
    """Binds LISTENING to its path and returns it.

    A socket there on which no process listens is removed. Raises SocketError for anything else.
    """
    path = listening.path
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(
                f"{path}: is there, and is no socket: remove it, or set another socket"
            )
        if is_answered(path):
            raise SocketError(f"{path}: another program listens there")
        try:
            path.unlink()
        except OSError as error:
            raise SocketError(
                f"{path}: is left over, and cannot be removed ({error.strerror}):"
                f" rm {quote(str(path))}"
            ) from None
    # Not by chmod: another user could put a link in the place of the name.
    umask = os.umask(0o777 & ~listening.mode)
    try:
        listening.bind(str(path))
    except OSError as error:
        raise SocketError(f"{path}: {error.strerror or error}") from None
    finally:
        os.umask(umask)
    listening.identity = _identity(path) or (0, 0)
    return listening


def _maker(directory: Path, account: pwd.struct_passwd | None) -> pwd.struct_passwd | None:
    """Returns the user that makes the socket in DIRECTORY: its owner, or None for root.

    Raises SocketError if that is neither ACCOUNT nor root.
    """
    try:
        owner = rights.owner(str(directory))
    except StoreError as error:
        raise SocketError(str(error)) from None
    if owner == 0 and account is not None and not directory.exists():
        # Only root can write to the directory above it.
        _make_directory(directory)
        os.chown(directory, account.pw_uid, account.pw_gid, follow_symlinks=False)
        return account
    if owner == 0:
        return None
    if account is None or account.pw_uid != owner:
        name = rights.user_name(owner)
        raise SocketError(
            f"{directory}: is {name}'s, and root makes no socket there:"
            f" greycheck serve --user {quote(name)}"
        )
    return account


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise SocketError(
            f"{directory}: {error.strerror}: make it, for the user that greycheck serve runs as"
        ) from None


def _lock(path: Path) -> int:
    """Locks PATH, so that of two processes that start at once only one looks and binds.

    Returns the descriptor of the lock. A lock file that cannot be opened is left alone: its owner,
    say root, may hold it. Raises SocketError.
    """
    file = _lock_of(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for _ in range(ATTEMPTS):
        try:
            lock = os.open(file, flags, 0o600)
        except OSError as error:
            raise SocketError(f"{file}: {error.strerror}{_remedy(file)}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise SocketError(f"{path}: another greycheck serves there") from None
            raise SocketError(f"{file}: {error.strerror}") from None
        if _is_at(file, lock):
            return lock
        os.close(lock)  # it was removed before it was held
    raise SocketError(f"{file}: is removed again and again")


def _lock_of(path: Path) -> Path:
    return Path(f"{path}.lock")


def _remedy(lock: Path) -> str:
    """Returns what to do about a LOCK that cannot be opened or made."""
    if os.path.lexists(lock):
        return f": rm {quote(str(lock))}, once no greycheck serve runs"
    if os.access(lock.parent, os.W_OK | os.X_OK, effective_ids=True):
        return ""
    name = rights.user_name(os.geteuid())
    user = quote(name)
    return f": chown {user} {quote(str(lock.parent))}, or start as root with --user {user}"


def is_answered(path: Path) -> bool:
    """Returns true if a process listens on the unix socket PATH. Raises SocketError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            # It is another user's, say of a resident that ran as root: it cannot be asked.
            whose = access.describe(path)
            advice = f"rm {quote(str(path))}, once no greycheck serve runs"
            raise SocketError(
                f"{whose}: cannot be asked whether anybody listens ({error.strerror}): {advice}"
            ) from None
    return True


def _number(of: Callable[[str], Any], name: str, account: pwd.struct_passwd | None = None) -> int:
    """Returns the number OF the user or group NAME; of ACCOUNT if there is no name, else -1.

    Raises SocketError.
    """
    try:
        entry = of(name) if name else account
    except KeyError as error:
        raise SocketError(f"socket_owner: {error.args[0]}") from None
    if entry is None:
        return -1
    return int(entry[2] if name or of is pwd.getpwnam else entry[3])


def _give(listening: Unix, maker: pwd.struct_passwd | None) -> None:
    """Gives the socket to its owner. Raises SocketError.

    Not by its name: MAKER may have put something else there in the meantime.
    """
    if listening.owner == (-1, -1):
        return
    descriptor = os.open(listening.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        is_ours = stat.S_ISSOCK(status.st_mode) and status.st_nlink == 1
        if not is_ours or (maker is not None and status.st_uid != maker.pw_uid):
            raise SocketError(f"{listening.path}: was exchanged while it was made")
        os.chown(f"/proc/self/fd/{descriptor}", *listening.owner)
    except PermissionError:
        raise SocketError(
            f"{listening.path}: this user cannot give it to {_owner_name(*listening.owner)}:"
            " start as root with --user, or join the group"
        ) from None
    finally:
        os.close(descriptor)


def _owner_name(user: int, group: int) -> str:
    """USER and GROUP as the setting socket_owner has them."""
    named = "" if user == -1 else rights.user_name(user)
    return named if group == -1 else f"{named}:{access.group_name(group)}"


def internet(host: str, port: int) -> socket.socket:
    """The socket that listens on HOST and PORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise SocketError(f"{host}:{port}: {error.strerror}") from None
    listening.listen(BACKLOG)
    return listening


def shown(listening: socket.socket) -> str:
    """Returns the path or address of a LISTENING socket."""
    name = listening.getsockname()
    if isinstance(name, str | bytes):
        return os.fsdecode(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


# A filter that drops all that a socket receives (linux/filter.h: BPF_RET | BPF_K, 0), and the
# option that sets it (asm-generic/socket.h).
NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
SO_ATTACH_FILTER = 26


def shut(listening: socket.socket) -> None:
    """Lets no more clients connect to LISTENING. Those that wait there can still be accepted."""
    if listening.family == socket.AF_UNIX:
        listening.shutdown(socket.SHUT_RD)
        return
    # shutdown(2) on a TCP socket would drop the connections that wait. So packets that ask for a
    # connection are dropped: the client sends another in a second.
    program = ctypes.create_string_buffer(NOTHING)
    option = struct.pack("HP", len(NOTHING) // 8, ctypes.addressof(program))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)


def notify(environ: Mapping[bytes, bytes], state: str) -> None:
    """Sends STATE to systemd, if it wants that (sd_notify(3))."""
    address = environ.get(b"NOTIFY_SOCKET", b"")
    if not address:
        return
    if address.startswith(b"@"):
        address = b"\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as out, suppress(OSError):
        out.sendto(state.encode(), address)
