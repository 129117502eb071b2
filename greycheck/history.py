"""Notes verdicts for ``greycheck stats``: lines behind each other in a file, the spool.

A check writes one line, after its answer; a resident counts in memory and writes a line for each
kind of verdict every few seconds. Operators' commands add the lines up in the store
(``greycheck.store.admin.history``). So a check asks the store nothing more for it, and hosts never
wait for each other.

A line has, with blanks between them: when, the verdict (``observe`` where only observed), its
reason, how long the mail was delayed in seconds, the recipient's domain, the sender's domain and
the client's network, and of how many attempts it tells. ``-`` is nothing.

Nothing here fails: mail does not wait for a statistic. What cannot be written is not counted.
"""

import posix

from greycheck.log import show_domain
from greycheck.normalise import AT, client_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.envelope import Envelope
    from greycheck.policy import Verdict
    from greycheck.settings import Settings

    # What is counted together: quarter of an hour, verdict, reason, delay, recipient's and sender's
    # domain, network.
    Kind = tuple[int, str, str, int, bytes, bytes, str]

# The spool's name, beside an SQLite store or in state_directory.
SPOOL = "greycheck.counts"

# It grows no further than this, in bytes: nobody adds it up.
LARGEST = 64 * 1024 * 1024

OBSERVE = "observe"

# Reasons that are not greylisting's.
UNCOUNTED = ("exempt", "incomplete")

# Reasons by which a triplet passes after its own wait. Where a client or a domain became known by
# another mail meanwhile, the row goes on to wait, and each further mail would tell of a longer one.
WAITED = ("retry", "pool", "expected")

# What is noted as of one time, in seconds: no time zone's day begins within.
QUARTER = 900

_FLAGS = posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK


def spool(settings: "Settings") -> str:
    """Returns the path of the spool under SETTINGS. Without a store that is no file."""
    directory = settings.database.path.rpartition("/")[0] or settings.state_directory
    return f"{directory}/{SPOOL}" if directory else ""


def kind(settings: "Settings", envelope: "Envelope", verdict: "Verdict", now: int) -> "Kind":
    """Returns as what VERDICT on ENVELOPE, given at NOW, is counted under SETTINGS.

    Senders' domains and networks are in it only where ``history_senders`` says so.
    """
    sender, network = b"", ""
    if settings.history_senders == "yes":
        sender = envelope.sender.rpartition(b"@")[2].lower()
        if envelope.client:
            network = client_network(envelope.client, settings.ipv4_prefix, settings.ipv6_prefix)
    return (
        now // QUARTER,
        OBSERVE if verdict.observed else verdict.action,
        verdict.reason,
        verdict.delayed if verdict.reason in WAITED else 0,
        envelope.recipient.rpartition(b"@")[2].lower() if AT in envelope.recipient else b"",
        sender,
        network,
    )


def line(counted: "Kind", number: int = 1) -> bytes:
    """Returns the line of NUMBER attempts that are COUNTED alike."""
    quarter, verdict, reason, delayed, recipient, sender, network = counted
    return (
        f"{quarter * QUARTER} {verdict} {reason} {delayed} {show_domain(recipient) or '-'}"
        f" {show_domain(sender) or '-'} {network or '-'} {number}\n"
    ).encode()


def note(settings: "Settings", envelope: "Envelope", verdict: "Verdict", now: int) -> None:
    """Notes VERDICT on ENVELOPE, given at NOW (seconds since 1970), where there is a history."""
    if settings.history and verdict.reason not in UNCOUNTED:
        append(settings, line(kind(settings, envelope, verdict, now)))


def append(settings: "Settings", lines: bytes) -> None:
    """Appends LINES to the spool under SETTINGS, if that is a file with room."""
    path = spool(settings)
    if posix.geteuid() == 0 and not _is_roots(path):
        return
    try:
        try:
            descriptor = posix.open(path, _FLAGS)
        except FileNotFoundError:
            descriptor = _made(path, settings.database_mode)
        try:
            status = posix.fstat(descriptor)
            if status.st_mode & 0o170000 == 0o100000 and status.st_size < LARGEST:
                posix.write(descriptor, lines)
        finally:
            posix.close(descriptor)
    except OSError:
        pass


def _made(path: str, mode: int) -> int:
    """Makes the spool at PATH with the permissions MODE, unless it is there; returns it, open.

    Raises OSError.
    """
    descriptor = posix.open(path, _FLAGS | posix.O_CREAT, mode)
    try:
        posix.fchmod(descriptor, mode)  # whatever the umask is
    except OSError:
        pass  # another one has made it just now
    return descriptor


def _is_roots(path: str) -> bool:
    """Whether root alone may write where PATH is."""
    from greycheck.store import rights
    from greycheck.store.base import StoreError

    try:
        rights.refuse_root(path)
    except StoreError:
        return False
    return True
