"""The log on descriptor 2: one line a verdict, ``name=value`` pairs that no envelope can forge.

Interface: ``show`` makes any bytes fit for a line, a terminal or a table, and ``show_address`` an address of any length;
``verdict_line`` and ``line`` make lines; ``write`` and ``write_beside`` write them.

Diagnostics: none. A log that is closed, dead or stuck costs its lines and never the verdict.
"""

import _signal
import _thread
import posix

from greycheck.envelope import Envelope
from greycheck.policy import Verdict

# What an address may take of a line or a table, in bytes: its local part, and its domain, of which DNS knows no longer one.
LOCAL, DOMAIN = 450, 256

# No part of so short an address is longer, though each byte be escaped.
SHORT = min(LOCAL, DOMAIN) // len("\\xNN")

# What an error may take of a line, and further text: with an envelope's two addresses they stay below PIPE_BUF, so that lines never mix.
QUOTED, DETAIL = 900, 1000

# What stands where something was left out; its length follows. ``show`` writes no backslash but before an x.
CUT = "\\..."

# How long a stuck log pipe may hold the verdict, in seconds.
PATIENCE = 0.2

# How long a file may: it takes a line at once, and only a process that is not let run, one of hundreds, comes to its end by the clock.
PATIENCE_OF_FILE = 4.0

# What has a meaning in a line, and the bytes that have none and are printed as they are.
_SPECIAL = frozenset(' <>"\\')
_PLAIN = bytes(range(0x21, 0x7F)).translate(None, b'<>"\\')


def show(text: bytes) -> str:
    r"""TEXT with every byte escaped as ``\xNN`` that is no printable character, or that has a meaning in a log line.

    Reversible: two different texts never look the same.
    """
    if not text.translate(None, _PLAIN):  # most of all mail
        return text.decode()
    decoded = text.decode("utf-8", "surrogateescape")
    return "".join(
        char
        if char.isprintable() and char not in _SPECIAL
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in decoded
    )


def show_address(address: bytes) -> str:
    r"""ADDRESS as ``show`` has it, each part no longer than LOCAL or DOMAIN and a mark: ``beginning\...899.DIGEST@\...300.DIGEST.end``.

    Of a local part the beginning is shown, of a domain the end. The digest of what the part is keeps it apart from others.
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


def _mark(part: bytes) -> str:
    # Not before: hardly any address is so long.
    import _blake2

    return f"{CUT}{len(part)}.{_blake2.blake2b(part, digest_size=16).hexdigest()}"


def _is_long(text: str, size: int) -> bool:
    return len(text) > size // 4 and len(text.encode()) > size


def _beginning(text: str, size: int) -> str:
    """The first SIZE bytes of TEXT, without an escape that is not whole."""
    kept = text.encode()[:size].decode("utf-8", "ignore")
    escape = kept.rfind("\\", -3)
    return kept if escape < 0 else kept[:escape]


def _end(text: str, size: int) -> str:
    """The last SIZE bytes of TEXT, without an escape that is not whole."""
    kept = text.encode()[-size:].decode("utf-8", "ignore")
    before = text[: len(text) - len(kept)]
    escape = before.rfind("\\", -3)
    return kept if escape < 0 else kept[4 - (len(before) - escape) :]


def _clip(text: str, size: int) -> str:
    return _beginning(text, size) + f"{CUT}{len(text.encode())}" if _is_long(text, size) else text


def verdict_line(envelope: Envelope, verdict: Verdict, milliseconds: int) -> bytes:
    """The log line of VERDICT on ENVELOPE; MILLISECONDS is how long the check took, the interpreter's start not counted."""
    wait = f" wait={verdict.wait}" if verdict.wait else ""
    detail = f" {detail_of(verdict)}" if verdict.detail else ""
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
    """The detail of VERDICT, which is not empty, as a pair that neither its rule nor its error can forge."""
    name, _, value = verdict.detail.partition("=")
    if name == "error":
        return f"error={quoted(value)}"
    # A rule's pattern holds an address as ``show`` made it: what is escaped there is not escaped again.
    parts = value.split("\\")
    return _clip(f"{name}=" + "\\".join(show(_bytes(part)) for part in parts), DETAIL)


def quoted(text: str) -> str:
    """TEXT as the value of an ``error="..."`` pair."""
    return '"' + _clip(show(_bytes(text)).replace("\\x20", " "), QUOTED) + '"'


def _bytes(text: str) -> bytes:
    """TEXT in UTF-8, whatever it holds: a database's may have halves of characters that no byte stands for."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def line(text: str) -> bytes:
    """The log line that says TEXT, which begins with ``warning`` or ``note``."""
    return f"greycheck: {quoted(text)[1:-1]}\n".encode()


def write(lines: bytes, code: int) -> None:
    """Writes LINES to descriptor 2. Exits with CODE where the log takes nothing within PATIENCE. For the main thread."""

    # On a busy machine a process may not run for longer than that: the first alarm is a reminder, only the second is the end.
    def remind(_number: int, _frame: object) -> None:
        _signal.signal(_signal.SIGALRM, lambda _number, _frame: posix._exit(code))

    try:
        is_file = _is_file()  # before the clock runs
    except OSError:
        return
    patience = PATIENCE_OF_FILE if is_file else PATIENCE
    _signal.signal(_signal.SIGALRM, remind)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
    _signal.setitimer(_signal.ITIMER_REAL, patience / 2, patience / 2)
    try:
        _put(lines, is_file)
    except OSError:
        pass
    _signal.setitimer(_signal.ITIMER_REAL, 0)


def write_beside(lines: bytes) -> None:
    """Writes LINES as ``write`` does, for a thread beside a main thread that hangs, where no signal's handler runs."""
    written = _thread.allocate_lock()
    written.acquire()
    _thread.start_new_thread(_write_and_tell, (lines, written))
    written.acquire(timeout=PATIENCE)


def _write_and_tell(lines: bytes, written: _thread.LockType) -> None:
    try:
        _put(lines, _is_file())
    finally:
        written.release()


def _is_file() -> bool:
    """Whether descriptor 2 is a file. From now on it is appended to. Raises OSError.

    Who opened it without O_APPEND would write over what others wrote; now he does not, nor does who shares the descriptor.
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
