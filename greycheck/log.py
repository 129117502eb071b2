"""The log on descriptor 2: one line per verdict, in ``name=value`` pairs that cannot be forged.

Interface: ``show`` escapes any bytes for a line, a terminal or a table, ``show_address`` also
shortens an address; ``verdict_line`` and ``line`` make lines; ``write`` and ``write_from_thread``
write them. ``alarm`` is the one owner of SIGALRM.

Diagnostics: none. If the log is closed, dead or stuck, its lines are lost, but never the verdict.
"""

import _signal
import _thread
import posix

from greycheck.envelope import Envelope
from greycheck.policy import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# The longest local part and domain in a line or a table, in bytes. DNS has no longer domain.
LOCAL, DOMAIN = 450, 256

# No part of an address of at most this many bytes is longer, even if each byte is escaped.
SHORT = min(LOCAL, DOMAIN) // len("\\xNN")

# The longest error and the longest other text in a line. With the two addresses of an envelope a
# line stays below PIPE_BUF, so that lines never mix.
QUOTED, DETAIL = 800, 1000

# Marks where text was cut; the length of the whole follows. ``show`` writes a backslash only before
# an x.
CUT = "\\..."

# Time limit of a write to a log pipe, in seconds: a stuck log must not hold the verdict longer.
PIPE_TIMEOUT = 0.2

# How long a thread may take until it runs, in seconds, on a machine so busy that it hardly does.
# With PIPE_TIMEOUT that is less than what the deadline leaves (``guard.LAST_RESORT``).
BEGIN_TIMEOUT = 0.6

# Time limit of a write to a file, in seconds. A file takes a line at once: it is reached only if
# the machine is so busy that the process hardly runs.
FILE_TIMEOUT = 4.0

# Characters with a meaning in a line; and the bytes that are printed as they are.
_SPECIAL = frozenset(' <>"\\')
_PLAIN = bytes(range(0x21, 0x7F)).translate(None, b'<>"\\')


def show(text: bytes) -> str:
    r"""Returns TEXT with bytes escaped as ``\xNN``.

    Escaped are bytes that are not printable, or that have a meaning in a log line. It can be
    reversed: two different texts never look the same.
    """
    if not text.strip(_PLAIN):  # most mail
        return text.decode()
    decoded = text.decode("utf-8", "surrogateescape")
    return "".join(
        char
        if char.isprintable() and char not in _SPECIAL
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in decoded
    )


def unshown(text: bytes) -> bytes:
    r"""Returns the bytes that TEXT stands for: reverses ``show``.

    ``\xNN`` may be in either case.
    """
    result, *parts = text.split(b"\\x")
    for part in parts:
        try:
            byte = bytes.fromhex(part[:2].decode())
        except ValueError:
            byte = b""
        result += byte + part[2:] if byte else b"\\x" + part
    return result


def show_address(address: bytes) -> str:
    r"""Returns ADDRESS as ``show`` does, with long parts cut: over LOCAL or DOMAIN bytes.

    For example ``beginning\...899.DIGEST@\...300.DIGEST.end``: of a local part the beginning is
    kept, of a domain the end. The digest of the whole part makes it different from all others.
    """
    if len(address) <= SHORT:
        return show(address)
    local, at, domain = address.rpartition(b"@")
    if not at:
        local, domain = address, b""
    shown, host = show(local), show(domain)
    if _is_long(shown, LOCAL):
        shown = _beginning(shown, LOCAL) + _mark(local)
    if _is_long(host, DOMAIN):
        host = _mark(domain) + "." + _end(host, DOMAIN)
    return shown + at.decode() + host


def show_domain(domain: bytes) -> str:
    """Returns DOMAIN as ``show_address`` has that of an address."""
    return show_address(b"@" + domain)[1:]


def _mark(part: bytes) -> str:
    # Imported only here: hardly any address is so long.
    import _blake2

    return f"{CUT}{len(part)}.{_blake2.blake2b(part, digest_size=16).hexdigest()}"


def _is_long(text: str, size: int) -> bool:
    return len(text) > size // 4 and len(text.encode()) > size


def _beginning(text: str, size: int) -> str:
    """Returns the first SIZE bytes of TEXT, less an escape that is cut."""
    kept = text.encode()[:size].decode("utf-8", "ignore")
    escape = kept.rfind("\\", -3)
    return kept if escape < 0 else kept[:escape]


def _end(text: str, size: int) -> str:
    """Returns the last SIZE bytes of TEXT, less an escape that is cut."""
    kept = text.encode()[-size:].decode("utf-8", "ignore")
    before = text[: len(text) - len(kept)]
    escape = before.rfind("\\", -3)
    return kept if escape < 0 else kept[4 - (len(before) - escape) :]


def _clip(text: str, size: int) -> str:
    return _beginning(text, size) + f"{CUT}{len(text.encode())}" if _is_long(text, size) else text


def verdict_line(envelope: Envelope, verdict: Verdict, milliseconds: int) -> bytes:
    """Returns the log line of VERDICT on ENVELOPE.

    MILLISECONDS is how long the check took, without the start of the interpreter.
    """
    wait = f" wait={verdict.wait}" if verdict.wait else ""
    if verdict.delayed:
        wait += f" delayed={verdict.delayed}"
    detail = f" {detail_of(verdict)}" if verdict.detail else ""
    if verdict.identity:
        detail += f" identity={show_domain(verdict.identity)}"
    if verdict.by_identity:
        detail += f" by_identity={verdict.by_identity}"
    if verdict.observed:
        detail += f" observed={verdict.observed}"
    if verdict.unrecorded:
        detail += f" unrecorded={quoted(verdict.unrecorded)}"
    return (
        f"greycheck: {verdict.action} reason={verdict.reason} client={envelope.client or '-'}"
        f" sender=<{show_address(envelope.sender)}> recipient=<{show_address(envelope.recipient)}>"
        f"{wait}{detail} hook={envelope.hook} ms={milliseconds}\n"
    ).encode()


def detail_of(verdict: Verdict) -> str:
    """Returns the detail of VERDICT, which is not empty, as a pair that cannot be forged."""
    name, _, value = verdict.detail.partition("=")
    if name == "error":
        return f"error={quoted(value)}"
    # A rule's pattern has addresses as ``show`` made them: what is escaped there is not escaped
    # again.
    parts = value.split("\\")
    return _clip(f"{name}=" + "\\".join(show(_bytes(part)) for part in parts), DETAIL)


def quoted(text: str) -> str:
    """Returns TEXT as the value of an ``error="..."`` pair."""
    return '"' + _clip(show(_bytes(text)).replace("\\x20", " "), QUOTED) + '"'


def _bytes(text: str) -> bytes:
    """Returns TEXT in UTF-8.

    A database's text may have halves of characters that no byte stands for.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def line(text: str) -> bytes:
    """Returns the log line of TEXT, which begins with ``warning`` or ``note``."""
    return f"greycheck: {quoted(text)[1:-1]}\n".encode()


# --- the alarm ------------------------------------------------------------------------------------


def alarm(seconds: float, handler: "Callable[[int, Any], object] | int", again: float = 0) -> None:
    """Calls HANDLER in SECONDS, and every AGAIN seconds after that, in place of any alarm before.

    A process has one alarm, and whoever sets it owns it. Here it limits, one after the other:
    reading the settings, the check itself (``guard``), and writing the log. It lives here because
    every check loads this file.
    """
    _signal.signal(_signal.SIGALRM, handler)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
    _signal.setitimer(_signal.ITIMER_REAL, seconds, again)


def no_alarm() -> None:
    """Switches the alarm off."""
    _signal.setitimer(_signal.ITIMER_REAL, 0)


# --- writing --------------------------------------------------------------------------------------


def write(lines: bytes, code: int) -> None:
    """Writes LINES to descriptor 2. For the main thread.

    Exits with CODE if the log takes nothing within the time limit.
    """

    # On a busy machine the process may not run for longer than the time limit. So the first alarm
    # only prepares: the second one exits.
    def remind(_number: int, _frame: object) -> None:
        _signal.signal(_signal.SIGALRM, lambda _number, _frame: posix._exit(code))

    try:
        is_file = _is_file()  # before the clock runs
    except OSError:
        return
    timeout = FILE_TIMEOUT if is_file else PIPE_TIMEOUT
    alarm(timeout / 2, remind, timeout / 2)
    try:
        _put(lines, is_file)
    except OSError:
        pass
    no_alarm()


def write_from_thread(lines: bytes) -> None:
    """Writes LINES as ``write`` does, for the deadline's thread.

    The main thread is blocked in C then, so that no signal handler can run.
    """
    begun, written = _thread.allocate_lock(), _thread.allocate_lock()
    begun.acquire()
    written.acquire()
    _thread.start_new_thread(_write_and_release, (lines, begun, written))
    begun.acquire(timeout=BEGIN_TIMEOUT)
    written.acquire(timeout=PIPE_TIMEOUT)


def _write_and_release(lines: bytes, begun: _thread.LockType, written: _thread.LockType) -> None:
    begun.release()
    try:
        _put(lines, _is_file())
    finally:
        written.release()


def _is_file() -> bool:
    """True if descriptor 2 is a file; from now on it is appended to. Raises OSError.

    A file that was opened without O_APPEND would be overwritten by each process that writes to it.
    The flag counts for all that share the descriptor.
    """
    if posix.fstat(2).st_mode & 0o170000 != 0o100000:
        return False
    import fcntl

    flags = fcntl.fcntl(2, fcntl.F_GETFL)
    if not flags & posix.O_APPEND:
        fcntl.fcntl(2, fcntl.F_SETFL, flags | posix.O_APPEND)
    return True


def _put(lines: bytes, is_file: bool) -> None:
    """Writes LINES to descriptor 2. Raises OSError."""
    if is_file:
        posix.write(2, lines)
        return
    for each in lines.splitlines(keepends=True):  # so that none is longer than a pipe takes at once
        posix.write(2, each)
