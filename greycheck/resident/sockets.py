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
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from greycheck.settings import Settings

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


def made(found: Settings) -> list[socket.socket]:
    """The sockets that the settings FOUND name."""
    return [unix(found), *(internet(host, port) for host, port in found.listen)]


def unix(found: Settings) -> socket.socket:
    """The unix socket, in the place of one that nobody listens on any more."""
    path = Path(found.socket)
    _make_directory(path.parent)
    _lock(path)
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(f"{path}: is there, and is no socket: remove it, or set another socket")
        if is_answered(path):
            raise SocketError(f"{path}: another program listens there")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Neither the mode nor the owner is set by way of a name that somebody else could put a link in the place of.
    umask = os.umask(0o777 & ~found.socket_mode)
    try:
        listening.bind(str(path))
    except OSError as error:
        raise SocketError(f"{path}: {error.strerror or error}") from None
    finally:
        os.umask(umask)
    _own(path, found.socket_owner)
    listening.listen(BACKLOG)
    return listening


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise SocketError(
            f"{directory}: {error.strerror}: make it, for the user that greycheck serve runs as"
        ) from None


def _lock(path: Path) -> None:
    """Holds PATH.lock as long as this process lives: of two that start at once only one may look and bind."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SocketError(f"{path}: another greycheck serves there") from None


def is_answered(path: Path) -> bool:
    """Whether somebody listens on the unix socket PATH."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True
        except ConnectionRefusedError:
            return False
    return True


def _own(path: Path, owner: tuple[str, str]) -> None:
    user, group = owner
    try:
        uid = pwd.getpwnam(user).pw_uid if user else -1
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise SocketError(f"socket_owner: {error.args[0]}") from None
    try:
        os.chown(path, uid, gid, follow_symlinks=False)
    except PermissionError:
        raise SocketError(
            f"{path}: this user cannot give it to {':'.join(owner)}: start as root with --user, or join the group"
        ) from None


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
