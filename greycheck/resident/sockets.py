"""What the resident listens on: a unix socket with owner and mode, addresses, or what systemd has opened (sd_listen_fds(3)).

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

from greycheck.cli import access
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.lean import StoreError

# Connections that may wait to be taken; the kernel has its own limit (net.core.somaxconn).
BACKLOG = 1024

# How often a lock is tried that is removed before it is held.
ATTEMPTS = 10

# How long the path of a unix socket may be, in bytes (unix(7)).
LONGEST = 107

# The first descriptor that systemd hands over.
FIRST = 3


class SocketError(Exception):
    """There can be no such socket; the message says why, and what to do."""


def activated(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd has opened for this process; ENVIRON is cleaned of what says so."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    return [_handed_over(descriptor) for descriptor in range(FIRST, FIRST + int(count))]


def _handed_over(descriptor: int) -> socket.socket:
    wrong = SocketError(f"descriptor {descriptor}, as LISTEN_FDS counts, is no listening stream socket")
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        raise wrong from None
    if found.type != socket.SOCK_STREAM or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise wrong
    os.set_inheritable(descriptor, False)
    found.setblocking(False)
    return found


class Unix(socket.socket):
    """A unix socket that listens at PATH, with MODE, given to the user and group of the numbers OWNER (-1: whoever makes it).

    ``identity`` is the device and number of what is there as long as nobody has taken it away; ``lock`` is the descriptor of the lock
    that is held for it.
    """

    def __init__(self, path: Path, mode: int, owner: tuple[int, int], lock: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.path = path
        self.mode = mode
        self.owner = owner
        self.lock = lock
        self.identity = (0, 0)

    def is_there(self) -> bool:
        """Whether who connects to its path comes here."""
        return _identity(self.path) == self.identity


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether PATH itself, and not by a link, is what is open as DESCRIPTOR."""
    status = os.fstat(descriptor)
    return _identity(path) == (status.st_dev, status.st_ino)


def made(found: Settings, account: pwd.struct_passwd | None = None) -> list[socket.socket]:
    """The sockets that the settings FOUND name, made by root for ACCOUNT, whom it is going to become."""
    if not found.socket and not found.listen:
        raise SocketError("nothing to listen on: socket and listen are empty")
    addresses = [internet(host, port) for host, port in found.listen]
    return [unix(found, account), *addresses] if found.socket else addresses


def unix(found: Settings, account: pwd.struct_passwd | None = None) -> Unix:
    """The unix socket, in the place of one that nobody listens on any more; it is ACCOUNT's, as far as no setting says whose it is.

    What ACCOUNT may write root does not touch: there the socket is made with ACCOUNT's rights, and only the socket itself is given away.
    """
    path = Path(found.socket)
    _check_length(found)
    if os.geteuid() != 0:
        account = None
    maker = _maker(path.parent, account) if os.geteuid() == 0 else None
    mine = account if maker is None else None
    user, group = found.socket_owner
    owner = _number(pwd.getpwnam, user, mine), _number(grp.getgrnam, group, mine)
    with access.acting_as(maker):
        _make_directory(path.parent)
        lock = _lock(path)
        if mine is not None:
            os.fchown(lock, mine.pw_uid, mine.pw_gid)
        listening = _bound(Unix(path, found.socket_mode, owner, lock))
    _give(listening, maker)
    listening.listen(BACKLOG)
    return listening


def again(gone: Unix) -> tuple[Unix, str]:
    """A socket in the place of one that is GONE, and what is wrong with it, if anything is. The lock passes to it. Raises SocketError."""
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


def _check_length(found: Settings) -> None:
    """Raises SocketError where no socket can be made at a path as long as that of the settings FOUND."""
    length = len(os.fsencode(found.socket))
    if length > LONGEST:
        where = f"{found.sources['socket']}: socket = {found.socket}"
        raise SocketError(f"{where}: {length} bytes, and the path of a socket has {LONGEST} at most: set a shorter one")


def _bound(listening: Unix) -> Unix:
    """LISTENING, bound to its path, where nothing is but perhaps a socket that nobody listens on."""
    path = listening.path
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(f"{path}: is there, and is no socket: remove it, or set another socket")
        if is_answered(path):
            raise SocketError(f"{path}: another program listens there")
        try:
            path.unlink()
        except OSError as error:
            raise SocketError(
                f"{path}: is left over, and cannot be removed ({error.strerror}): rm {quote(str(path))}"
            ) from None
    # The mode is not set by way of a name that somebody else could put a link in the place of.
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
    """Who makes the socket in DIRECTORY: ACCOUNT where it is his, and root (None) where it is root's alone. Raises SocketError."""
    try:
        owner = rights.owner(str(directory))
    except StoreError as error:
        raise SocketError(str(error)) from None
    if owner == 0 and account is not None and not directory.exists():
        # The directory above it is root's alone, or it would be somebody's.
        _make_directory(directory)
        os.chown(directory, account.pw_uid, account.pw_gid, follow_symlinks=False)
        return account
    if owner == 0:
        return None
    if account is None or account.pw_uid != owner:
        name = rights.user_name(owner)
        raise SocketError(
            f"{directory}: is {name}'s, and root makes no socket there: greycheck serve --user {quote(name)}"
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
    """Holds the lock of PATH: of two that start at once only one may look and bind. Its descriptor. Raises SocketError.

    A lock that cannot be opened is left alone: whether its owner, say root, holds it cannot be told from here.
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
    """What helps against a LOCK that cannot be opened or made, behind its cause."""
    if os.path.lexists(lock):
        return f": rm {quote(str(lock))}, once no greycheck serve runs"
    if os.access(lock.parent, os.W_OK | os.X_OK, effective_ids=True):
        return ""
    name = rights.user_name(os.geteuid())
    return f": chown {quote(name)} {quote(str(lock.parent))}, or start as root with --user {quote(name)}"


def is_answered(path: Path) -> bool:
    """Whether somebody listens on the unix socket PATH."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            # It is another user's, say one that served as root before: whether he listens cannot be told from here.
            whose = access.describe(path)
            advice = f"rm {quote(str(path))}, once no greycheck serve runs"
            raise SocketError(
                f"{whose}: cannot be asked whether anybody listens ({error.strerror}): {advice}"
            ) from None
    return True


def _number(of: Callable[[str], Any], name: str, account: pwd.struct_passwd | None = None) -> int:
    """The number OF the user or group NAME; of ACCOUNT where there is no name; -1 where there is neither. Raises SocketError."""
    try:
        entry = of(name) if name else account
    except KeyError as error:
        raise SocketError(f"socket_owner: {error.args[0]}") from None
    if entry is None:
        return -1
    return int(entry[2] if name or of is pwd.getpwnam else entry[3])


def _give(listening: Unix, maker: pwd.struct_passwd | None) -> None:
    """Gives the socket to its owner. Not by its name: MAKER may have put something else there meanwhile. Raises SocketError."""
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
    """The name of a LISTENING socket."""
    name = listening.getsockname()
    if isinstance(name, str | bytes):
        return os.fsdecode(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


# What passes over all that a socket receives (linux/filter.h: BPF_RET | BPF_K, 0), and how it is told (asm-generic/socket.h).
NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
SO_ATTACH_FILTER = 26


def shut(listening: socket.socket) -> None:
    """Lets nobody connect to LISTENING any more. Those who wait there can still be taken."""
    if listening.family == socket.AF_UNIX:
        listening.shutdown(socket.SHUT_RD)
        return
    # To shut a TCP socket would drop those who wait. What asks for a connection is passed over instead, and comes again in a second.
    program = ctypes.create_string_buffer(NOTHING)
    told = struct.pack("HP", len(NOTHING) // 8, ctypes.addressof(program))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, told)


def notify(environ: Mapping[bytes, bytes], state: str) -> None:
    """Tells the supervisor STATE, where it wants to be told (sd_notify(3))."""
    address = environ.get(b"NOTIFY_SOCKET", b"")
    if not address:
        return
    if address.startswith(b"@"):
        address = b"\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as out, suppress(OSError):
        out.sendto(state.encode(), address)
