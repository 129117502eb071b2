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
    """A unix socket that listens at ``path``, as the settings FOUND had it when it was made.

    ``identity`` is the device and number of what is there as long as nobody has taken it away.
    """

    def __init__(self, path: Path, found: Settings) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.path = path
        self.mode = found.socket_mode
        self.owner = found.socket_owner
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
    if os.geteuid() != 0:
        account = None
    maker = _maker(path.parent, account) if os.geteuid() == 0 else None
    with access.acting_as(maker):
        _make_directory(path.parent)
        lock = _lock(path)
        listening = _bound(Unix(path, found))
    if account is not None and maker is None:
        os.fchown(lock, account.pw_uid, account.pw_gid)
    user, group = found.socket_owner
    mine = account if maker is None else None
    _give(listening, _number(pwd.getpwnam, user, mine), _number(grp.getgrnam, group, mine), maker)
    listening.listen(BACKLOG)
    return listening


def again(gone: Unix) -> tuple[Unix, str]:
    """A socket in the place of one that is GONE, and what is wrong with it, if anything is. Raises SocketError."""
    path = gone.path
    _make_directory(path.parent)
    if not Path(f"{path}.lock").exists():
        _lock(path)
    found = Settings()
    found.socket_mode, found.socket_owner = gone.mode, gone.owner
    listening = _bound(Unix(path, found))
    wrong = ""
    try:
        user, group = gone.owner
        _give(listening, _number(pwd.getpwnam, user), _number(grp.getgrnam, group), None)
    except SocketError as error:
        wrong = str(error)
    listening.listen(BACKLOG)
    return listening, wrong


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
    """Holds PATH.lock as long as this process lives: of two that start at once only one may look and bind. Its descriptor."""
    try:
        lock = _open_lock(path)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SocketError(f"{path}: another greycheck serves there") from None
    except OSError as error:
        remedy = f"rm {quote(f'{path}.lock')}"
        raise SocketError(f"{path}.lock: {error.strerror}: {remedy}, once no greycheck serve runs") from None
    return lock


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(f"{path}.lock", flags, 0o600)
    except PermissionError:
        # Another user's, of one that served as root before. Where nobody serves any more it is of no use.
        if is_answered(path):
            raise
        Path(f"{path}.lock").unlink()
        return os.open(f"{path}.lock", flags, 0o600)


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


def _give(listening: Unix, user: int, group: int, maker: pwd.struct_passwd | None) -> None:
    """Gives the socket to USER and GROUP (-1: whom it has). Not by its name: MAKER may have put something else there meanwhile."""
    if (user, group) == (-1, -1):
        return
    descriptor = os.open(listening.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        is_ours = stat.S_ISSOCK(status.st_mode) and status.st_nlink == 1
        if not is_ours or (maker is not None and status.st_uid != maker.pw_uid):
            raise SocketError(f"{listening.path}: was exchanged while it was made")
        os.chown(f"/proc/self/fd/{descriptor}", user, group)
    except PermissionError:
        raise SocketError(
            f"{listening.path}: this user cannot give it to {':'.join(listening.owner)}:"
            " start as root with --user, or join the group"
        ) from None
    finally:
        os.close(descriptor)


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
