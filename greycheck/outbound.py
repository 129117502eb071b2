"""What is learnt from outbound mail: to whom our users write, who may answer them at once.

With ``learn_outbound`` a mail of a user of ours is worth a row: who may answer, and whom. It is
written only after the mail server has its answer, by somebody whom nobody waits for: the forked
child leaves a process of its own behind (``leave_behind``), the others have a thread
(``greycheck.resident.learning``). What cannot be written is not learnt.

Where ``learn_outbound`` is 0 nobody loads this file.
"""

import _signal
import posix

from greycheck import log, normalise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.envelope import Envelope
    from greycheck.settings import Settings

# What says that a client is a user of ours: the variables and the attribute that exempt it. What
# else exempts says nothing about who sends.
USERS = ("RELAYCLIENT", "SMTPAUTHUSER", "sasl_username")

# A correspondent is written again only when the last mail to him is so old, in seconds, or half as
# old as what is learnt may be.
REFRESH = 86400

# How long a process that was left behind may take, in seconds.
SECONDS = 5

# How long it waits for another writer of an SQLite file, in seconds: many may wait at once.
LOCK = 1.0

# How many descriptors a process may have that it inherits from a mail server.
DESCRIPTORS = 65536


class Letter:
    """A mail that USER of ours wrote to somebody OUTSIDE, and when it was WRITTEN.

    It counts until it EXPIRES. Both addresses are normalised; that of who may answer is folded, as
    a sender's is. Times are seconds since 1970.
    """

    __slots__ = ("_renewed", "expires", "outside", "user", "written")

    def __init__(self, outside: bytes, user: bytes, written: int, lifetime: int) -> None:
        self.outside = outside
        self.user = user
        self.written = written
        self.expires = written + lifetime
        self._renewed = self.expires - min(REFRESH, lifetime // 2)

    def is_news(self, expires: int) -> bool:
        """Whether it is to be recorded where what is known of the two EXPIRES then."""
        return expires <= self._renewed


def letter(sender: bytes, recipient: bytes, written: int, lifetime: int) -> Letter | None:
    """What a mail from SENDER, a user of ours, to RECIPIENT says, as they were written.

    Returns None where nothing is learnt: the null sender and programs (VERP, SRS) are no users, and
    who writes to his own domain writes to nobody outside.
    """
    user = user_of(sender)
    outside = normalise.fold_sender(normalise.mail_address(recipient))
    if not (_is_plain(user) and _is_plain(outside)):
        return None
    if user.rpartition(b"@")[2] == outside.rpartition(b"@")[2]:
        return None
    return Letter(outside, user, written, lifetime)


def of_envelope(envelope: "Envelope", settings: "Settings", now: int) -> Letter | None:
    """What ENVELOPE, which is exempt, says under SETTINGS; None where nothing is learnt."""
    if envelope.exempt not in USERS or not settings.learn_outbound:
        return None
    return letter(envelope.sender, envelope.recipient, now, settings.learn_outbound)


def user_of(sender: bytes) -> bytes:
    """The user who writes as SENDER, as he is written to: normalised, and without BATV.

    Empty where the address is one that a program made for one message. ``user+detail`` stays.
    """
    address = normalise.mail_address(sender)
    folded = normalise.fold_sender(address)
    if folded == address:
        return address
    from greycheck.folding import unwrap_batv

    local, _at, domain = address.rpartition(b"@")
    local = unwrap_batv(local) or local
    return local + b"@" + domain if folded == local.partition(b"+")[0] + b"@" + domain else b""


def _is_plain(address: bytes) -> bool:
    """Whether ADDRESS has a local part and a domain.

    More than one @ has what RELAYCLIENT="@..." was appended to: whom it is for is not known.
    """
    local, at, domain = address.partition(b"@")
    return bool(local and at and domain) and b"@" not in domain


def leave_behind(envelope: "Envelope", settings: "Settings", now: int) -> None:
    """Learns from ENVELOPE in a process of its own, which nobody waits for.

    To be called when the verdict is told and logged: this process has only to exit. Raises OSError
    where there can be no other one.
    """
    found = of_envelope(envelope, settings, now)
    if found is None or posix.fork():
        return
    try:
        _detach()
        record(found, settings)
    finally:
        posix._exit(0)


def _detach() -> None:
    """Lets go of all that is the mail server's, and ends this process in time by itself."""
    log.alarm(SECONDS, _signal.SIG_DFL)
    posix.setsid()
    null = posix.open("/dev/null", posix.O_RDWR)
    for descriptor in (0, 1, 2):
        posix.dup2(null, descriptor)
    posix.closerange(3, min(posix.sysconf("SC_OPEN_MAX"), DESCRIPTORS))


def record(found: Letter, settings: "Settings") -> None:
    """Records what was FOUND in the store of SETTINGS, if there is one. Nobody is told of faults.

    For a server it waits as long as a check would, but ends before this process is ended: a host
    that does not answer is marked.
    """
    from greycheck.store import connect
    from greycheck.store.base import STORE_SHARE, StoreError

    patience = LOCK if settings.database.path else min(settings.deadline * STORE_SHARE, SECONDS - 1)
    try:
        store = connect(settings, patience)
        store.learn([found])
        store.tidy()
    except StoreError:
        pass  # there is no store yet, or it does not answer
