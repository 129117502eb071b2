"""What greylisting decides: a state machine over one triplet and one client.

Everything that affects a verdict lives here; nothing here reads a clock, a store, an environment or a descriptor. The functions take
rows, settings and ``now``, and return a verdict and the rows as they must be afterwards. The store writes those only where the rows
still are what was read (compare and swap), so a race that is lost shows itself and is decided again.

A triplet is in one of five phases; ``TRANSITIONS`` is the whole policy about them. Before a triplet counts, ``without_store`` answers
for envelopes that nothing is looked up for, and a known client passes whatever its triplet (greylisting.md gives the order).

Times are whole seconds since 1970, UTC. A time in the future, written by a host whose clock is ahead or before a clock was set back,
counts as now.
"""

from greycheck.envelope import Envelope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.settings import Settings

ACCEPT = "accept"
DEFER = "defer"
REJECT = "reject"

# A row in use is written again only when its last use is this many seconds old.
REFRESH = 3600

# Attempts this many seconds apart are one attempt seen twice: both hooks may be on, and RCPT may be repeated (contract.md section 1).
SAME_ATTEMPT = 1


class Verdict:
    """An ACTION (accept, defer or reject), its REASON, and what the log line adds.

    ``wait`` is the number of seconds until a retry would pass, on a deferral. ``detail`` is further ``name=value`` text. ``unrecorded``
    says why the store does not know of this attempt, where it should.
    """

    __slots__ = ("action", "detail", "reason", "unrecorded", "wait")

    def __init__(self, action: str, reason: str, wait: int = 0, detail: str = "") -> None:
        self.action = action
        self.reason = reason
        self.wait = wait
        self.detail = detail
        self.unrecorded = ""


class TripletRow:
    """What the store knows of a triplet: its first and last attempt, early attempts, recorded passes, and when it passed (or None)."""

    __slots__ = ("early", "first", "last", "passed", "passes")

    def __init__(self, first: int, last: int, early: int = 0, passes: int = 0, passed: int | None = None) -> None:
        self.first = first
        self.last = last
        self.early = early
        self.passes = passes
        self.passed = passed


class ClientRow:
    """What the store knows of a client address: how many triplets passed from it, and when it was first and last let through."""

    __slots__ = ("first", "last", "passes")

    def __init__(self, first: int, last: int, passes: int) -> None:
        self.first = first
        self.last = last
        self.passes = passes


class Change:
    """One row to be written: from OLD, as it was read (None: there was none), to NEW, which expires at EXPIRES."""

    __slots__ = ("expires", "new", "old")

    def __init__(self, old: TripletRow | ClientRow | None, new: TripletRow | ClientRow, expires: int) -> None:
        self.old = old
        self.new = new
        self.expires = expires


def without_store(envelope: Envelope, settings: "Settings") -> Verdict | None:
    """The verdict on an envelope that needs no look-up, or None: reasons `incomplete` and `exempt`."""
    if envelope.missing:
        return Verdict(ACCEPT, "incomplete", detail=f"missing={envelope.missing}")
    if envelope.exempt:
        return Verdict(ACCEPT, "exempt", detail=f"by={envelope.exempt}")
    if settings.off:
        return Verdict(ACCEPT, "exempt", detail="by=GREYCHECK")
    if not envelope.sender and settings.null_sender == ACCEPT:
        return Verdict(ACCEPT, "exempt", detail="by=null_sender")
    return None


# Phases of a triplet.
ABSENT = "absent"  # never seen, or expired and removed
EARLY = "early"  # waits, and its delay is not over
DUE = "due"  # waits, its delay is over and its retry window is not
KNOWN = "known"  # passed, and its lifetime is not over
OVER = "over"  # its retry window or its lifetime is over

#   phase: (action, reason)
TRANSITIONS = {
    ABSENT: (DEFER, "new"),
    OVER: (DEFER, "new"),
    EARLY: (DEFER, "early"),
    DUE: (ACCEPT, "retry"),
    KNOWN: (ACCEPT, "known"),
}


def phase(row: TripletRow | None, settings: "Settings", now: int) -> str:
    """The phase of a triplet at NOW. Both ends belong to it: a retry passes exactly at delay, and still at the window's last second."""
    if row is None:
        return ABSENT
    if row.passed is not None:
        return KNOWN if now - row.last <= settings.lifetime else OVER
    age = now - min(row.first, now)
    if age < settings.delay:
        return EARLY
    return DUE if age <= settings.retry_window else OVER


def is_known(row: ClientRow | None, settings: "Settings", now: int) -> bool:
    """Whether the client has passed often enough for its other mail to pass too (RFC 6647 section 5, item 2)."""
    if row is None or not settings.client_passes:
        return False
    return row.passes >= settings.client_passes and now - row.last <= settings.lifetime


def decide(
    row: TripletRow | None, client: ClientRow | None, settings: "Settings", now: int
) -> tuple[Verdict, list[Change]]:
    """The verdict on a triplet whose ROW and CLIENT row were read, and the changes to be written; none is the common case.

    A verdict of reason `new` holds only once its change is committed. Every other one stands without: its row is there already.
    """
    if client is not None and is_known(client, settings, now):
        return Verdict(ACCEPT, "client"), _used(client, ClientRow(client.first, now, client.passes), settings, now)
    now_in = phase(row, settings, now)
    action, reason = TRANSITIONS[now_in]
    if row is None or now_in == OVER:
        fresh = TripletRow(first=now, last=now)
        return Verdict(action, reason, wait=settings.delay), [Change(row, fresh, now + settings.retry_window)]
    if now_in == EARLY:
        first = min(row.first, now)
        return Verdict(action, reason, wait=first + settings.delay - now), _early(row, first, settings, now)
    if now_in == KNOWN:
        used = TripletRow(row.first, now, row.early, row.passes + 1, row.passed)
        return Verdict(action, reason), _used(row, used, settings, now)
    passed = Change(row, TripletRow(row.first, now, row.early, 1, now), now + settings.lifetime)
    return Verdict(action, reason), [passed, *_passed_client(client, settings, now)]


def _early(row: TripletRow, first: int, settings: "Settings", now: int) -> list[Change]:
    if first == row.first and abs(now - row.last) <= SAME_ATTEMPT:
        return []
    return [Change(row, TripletRow(first, now, row.early + 1), first + settings.retry_window)]


def _used(row: TripletRow | ClientRow, used: TripletRow | ClientRow, settings: "Settings", now: int) -> list[Change]:
    if abs(now - row.last) < REFRESH:
        return []
    return [Change(row, used, now + settings.lifetime)]


def _passed_client(client: ClientRow | None, settings: "Settings", now: int) -> list[Change]:
    if not settings.client_passes:
        return []
    expires = now + settings.lifetime
    if client is None or now - client.last > settings.lifetime:
        return [Change(client, ClientRow(now, now, 1), expires)]
    return [Change(client, ClientRow(client.first, now, client.passes + 1), expires)]
