"""What greylisting decides: a state machine over one triplet and one client.

Everything that affects a verdict lives here; nothing here reads a clock, a store, an environment or a descriptor. The functions take
rows, settings and ``now``, and return a verdict and the rows as they must be afterwards. The store writes those only where the rows
still are what was read (compare and swap), so a race that is lost shows itself and is decided again.

The order is that of greylisting.md. ``without_store`` answers for envelopes that nothing is looked up for. ``decide`` goes through
rules, strikes, known clients and the five phases of a triplet; ``TRANSITIONS`` is the whole policy about those. ``may_follow`` and
``vouches`` are about a message's later recipients and its first. ``look_around`` reconsiders a deferral by what waits besides.
``observe`` comes last and turns a verdict into what would have been.

Times are whole seconds since 1970, UTC. A time in the future, written by a host whose clock is ahead or before a clock was set back,
counts as now.
"""

from greycheck.envelope import Envelope, triplet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from greycheck.envelope import Triplet
    from greycheck.settings import Settings

ACCEPT = "accept"
DEFER = "defer"
REJECT = "reject"

# A row in use is written again only when its last use is this many seconds old, or half a shorter lifetime.
REFRESH = 3600

# How soon, in seconds, somebody who is not refused for his haste may be told that an address that many share is not made known once more.
TOLD = 3600

# How many early attempts a triplet may have for a client that the store does not know to get a row for its haste. Each address of a network
# retries the same triplets: of an IPv6 network there are more addresses than any table has room for.
HASTE = 16

# Attempts this many seconds apart are one attempt seen twice: both hooks may be on, and RCPT may be repeated (contract.md section 1).
SAME_ATTEMPT = 1


class Verdict:
    """An ACTION (accept, defer or reject), its REASON, and what the log line adds.

    ``wait`` is the number of seconds until a retry would pass, on a deferral. ``detail`` is one pair more,
    ``name=value``, which the log escapes.
    ``unrecorded`` says why the store does not know of this attempt, where it should. ``observed`` is the action that would have been
    taken, where the mode is to observe. ``vouches`` is whether later recipients of the same message pass because of this one.
    ``delayed`` is how long ago the first attempt was, in seconds, where the reason is that it was tried again. ``warning`` is what the
    log is to say besides, in a line of its own.
    """

    __slots__ = ("action", "delayed", "detail", "observed", "reason", "unrecorded", "vouches", "wait", "warning")

    def __init__(self, action: str, reason: str, wait: int = 0, detail: str = "") -> None:
        self.action = action
        self.reason = reason
        self.wait = wait
        self.detail = detail
        self.unrecorded = ""
        self.observed = ""
        self.vouches = False
        self.delayed = 0
        self.warning = ""


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
    """What the store knows of a client address.

    How many triplets passed from it, and when it was first and last let through; how many strikes it has in a row, and until when it
    is refused for them (0: it is not).
    """

    __slots__ = ("first", "last", "passes", "strikes", "struck")

    def __init__(self, first: int, last: int, passes: int, strikes: int = 0, struck: int = 0) -> None:
        self.first = first
        self.last = last
        self.passes = passes
        self.strikes = strikes
        self.struck = struck


class RuleRow:
    """A rule that matches: its KEY, ACTION, own DELAY in seconds (or None), its kind, and its pattern as a person reads it."""

    __slots__ = ("action", "delay", "key", "kind", "pattern")

    def __init__(self, key: bytes, kind: str, pattern: str, action: str, delay: int | None) -> None:
        self.key = key
        self.kind = kind
        self.pattern = pattern
        self.action = action
        self.delay = delay


class Found:
    """What the store knows of an envelope: the rows of its triplet and its client, and the rules that match, the deciding one first.

    ``expected`` is the rule by which somebody expects this mail. ``shared`` is the client's address where that need not be one client's
    (``normalise.is_private``), as behind a container's NAT, and else empty: such a client is neither known nor refused for its haste.
    """

    __slots__ = ("client", "expected", "rules", "shared", "triplet")

    def __init__(
        self,
        triplet: TripletRow | None = None,
        client: ClientRow | None = None,
        rules: "Sequence[RuleRow]" = (),
        expected: RuleRow | None = None,
    ) -> None:
        self.triplet = triplet
        self.client = client
        self.rules = rules
        self.expected = expected
        self.shared = ""


class Waiting:
    """What waits besides.

    How many OTHERS of the same sender and recipient from other networks, and the OLDEST of them since when; the NEWEST first attempt of
    all networks of that pair, and the least GAP between two of them, in seconds (None where there are no two); how many triplets of the
    same network (CROWD, no further than anybody wants to know), and in all (TOTAL, an estimate).
    """

    __slots__ = ("crowd", "gap", "newest", "oldest", "others", "total")

    def __init__(
        self,
        others: int = 0,
        oldest: int | None = None,
        newest: int | None = None,
        gap: int | None = None,
        crowd: int = 0,
        total: int = 0,
    ) -> None:
        self.others = others
        self.oldest = oldest
        self.newest = newest
        self.gap = gap
        self.crowd = crowd
        self.total = total


class Change:
    """One row to be written: from OLD, as it was read (None: there was none), to NEW (None: there is none), which expires at EXPIRES."""

    __slots__ = ("expires", "new", "old")

    def __init__(
        self,
        old: "TripletRow | ClientRow | RuleRow | None",
        new: TripletRow | ClientRow | None,
        expires: int = 0,
    ) -> None:
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


class Terms:
    """The delay, retry window and lifetime that count for one mail, in seconds: the settings', or those of the RULE that greylists it."""

    __slots__ = ("delay", "lifetime", "retry_window")

    def __init__(self, settings: "Settings", rule: RuleRow | None = None) -> None:
        self.delay = settings.delay if rule is None or rule.delay is None else rule.delay
        self.lifetime = settings.lifetime
        # A window that ends before the delay does would hold mail for ever.
        self.retry_window = settings.retry_window + (self.delay if settings.retry_window <= self.delay else 0)


def phase(row: TripletRow | None, terms: Terms, now: int) -> str:
    """The phase of a triplet at NOW. Both ends belong to it: a retry passes exactly at delay, and still at the window's last second."""
    if row is None:
        return ABSENT
    if row.passed is not None:
        return KNOWN if now - row.last <= terms.lifetime else OVER
    age = now - min(row.first, now)
    if age < terms.delay:
        return EARLY
    return DUE if age <= terms.retry_window else OVER


def is_known(row: ClientRow | None, settings: "Settings", now: int) -> bool:
    """Whether the client has passed often enough for its other mail to pass too (RFC 6647 section 5, item 2)."""
    if row is None or not settings.client_passes:
        return False
    return row.passes >= settings.client_passes and now - row.last <= settings.lifetime


def decide(found: Found, settings: "Settings", now: int) -> tuple[Verdict, list[Change]]:
    """The verdict on an envelope of which the store has FOUND this, and the changes to be written; none is the common case.

    A verdict of reason `new` holds only once its change is committed. Every other one stands without: its row is there already.
    """
    rule = deciding(found.rules, settings)
    if rule is not None and rule.action == "allow":
        return Verdict(ACCEPT, "rule", detail=f"rule={rule.pattern}"), []
    if rule is not None and rule.action == "reject":
        return Verdict(REJECT, "rule", detail=f"rule={rule.pattern}"), []
    client = found.client
    if rule is None and client is not None and not found.shared:
        # Further ahead than anybody is ever refused for: a clock was wrong when that was written.
        if settings.strikes and now < client.struck <= now + settings.strike_time:
            return Verdict(REJECT, "strikes"), []
        if is_known(client, settings, now):
            return Verdict(ACCEPT, "client"), _used_by_client(client, found.triplet, Terms(settings), now)
    return _greylisted(found, Terms(settings, rule), settings, now, f"rule={rule.pattern}" if rule else "")


def deciding(rules: "Sequence[RuleRow]", settings: "Settings") -> RuleRow | None:
    """The first of RULES that counts. A name that nobody verified allows nothing: anybody can write one into his reverse DNS."""
    for rule in rules:
        if rule.kind != "name" or rule.action != "allow" or settings.verified_names == "yes":
            return rule
    return None


def _greylisted(
    found: Found, terms: Terms, settings: "Settings", now: int, detail: str
) -> tuple[Verdict, list[Change]]:
    row = found.triplet
    now_in = phase(row, terms, now)
    action, reason = TRANSITIONS[now_in]
    if action == DEFER and found.expected is not None:
        passed = Change(row, TripletRow(now, now, 0, 1, now), now + terms.lifetime)
        return Verdict(ACCEPT, "expected", detail=f"by={found.expected.pattern.replace(' ', ',')}"), [
            passed,
            Change(found.expected, None),
        ]
    if row is None or now_in == OVER:
        fresh = TripletRow(first=now, last=now)
        return Verdict(action, reason, terms.delay, detail), [Change(row, fresh, now + terms.retry_window)]
    if now_in == EARLY:
        return _early(row, found, terms, settings, now, detail)
    if now_in == KNOWN:
        return Verdict(action, reason, detail=detail), _used_triplet(row, terms, now)
    verdict = Verdict(action, reason, detail=detail)
    verdict.delayed = now - min(row.first, now)
    return _passing(verdict, found, settings, now)


def _early(
    row: TripletRow, found: Found, terms: Terms, settings: "Settings", now: int, detail: str
) -> tuple[Verdict, list[Change]]:
    client = found.client
    first = min(row.first, now)
    verdict = Verdict(DEFER, "early", first + terms.delay - now, detail)
    if first == row.first and abs(now - row.last) <= SAME_ATTEMPT:
        return verdict, []
    counted = Change(row, TripletRow(first, now, row.early + 1), first + terms.retry_window)
    if not settings.strikes or found.shared:
        return verdict, [counted]
    if client is None and row.early >= HASTE:
        return verdict, [counted]
    hammering = _is_hasty(row.last, settings, now) and _is_own(client, settings, now)
    strikes = (client.strikes if client else 0) + 1 if hammering else 0
    if strikes == (client.strikes if client else 0):
        return verdict, [counted]
    if strikes >= settings.strikes:
        return Verdict(REJECT, "strikes"), [counted, _struck(client, 0, now + settings.strike_time, settings, now)]
    return verdict, [counted, _struck(client, strikes, 0, settings, now)]


def _is_hasty(last: int, settings: "Settings", now: int) -> bool:
    """Whether an attempt NOW follows the LAST one too soon. After one in the future, before a clock was set back, nobody knows."""
    return 0 <= now - last <= settings.strike_interval


def _is_own(client: ClientRow | None, settings: "Settings", now: int) -> bool:
    """Whether the last attempt may have been CLIENT's own, as far as that is known: a triplet's may be another address's of its network.

    Of a client that never passed, the row says when its last strike was. Of others, and of the first strike, nothing is known.
    """
    return client is None or not client.strikes or bool(client.passes) or _is_hasty(client.last, settings, now)


def _struck(client: ClientRow | None, strikes: int, until: int, settings: "Settings", now: int) -> Change:
    """The client's row with STRIKES in a row, refused UNTIL (0: it is not). Where it never passed, ``last`` is its last strike."""
    expires = until or now + settings.retry_window
    if client is None:
        return Change(None, ClientRow(now, now, 0, strikes, until), expires)
    if not client.passes:
        return Change(client, ClientRow(client.first, now, 0, strikes, until), expires)
    expires = max(expires, client.last + settings.lifetime)
    return Change(client, ClientRow(client.first, client.last, client.passes, strikes, until), expires)


def _used_by_client(client: ClientRow, row: TripletRow | None, terms: Terms, now: int) -> list[Change]:
    """The changes that remember a use of a known client, and of the triplet if that has passed too."""
    triplet = _used_triplet(row, terms, now) if row is not None and phase(row, terms, now) == KNOWN else []
    if _is_recent(client, terms, now):
        return triplet
    used = ClientRow(client.first, now, client.passes, client.strikes, client.struck)
    return [*triplet, Change(client, used, now + terms.lifetime)]


def _used_triplet(row: TripletRow, terms: Terms, now: int) -> list[Change]:
    if _is_recent(row, terms, now):
        return []
    used = TripletRow(row.first, now, row.early, row.passes + 1, row.passed)
    return [Change(row, used, now + terms.lifetime)]


def _is_recent(row: TripletRow | ClientRow, terms: Terms, now: int) -> bool:
    """Whether the last use of ROW was recorded a moment ago, so that this one need not be."""
    return abs(now - row.last) < min(REFRESH, terms.lifetime // 2)


def _passing(verdict: Verdict, found: Found, settings: "Settings", now: int) -> tuple[Verdict, list[Change]]:
    """VERDICT, an acceptance, and the changes that make a triplet pass, and its client known.

    A client whose address need not be its own has a row that tells when that was last warned of, and that never counts.
    """
    row, client = found.triplet, found.client
    expires = now + settings.lifetime
    first, early = (min(row.first, now), row.early) if row else (now, 0)
    passed = Change(row, TripletRow(first, now, early, 1, now), expires)
    if not settings.client_passes:
        return verdict, [passed]
    if found.shared:
        if client is not None and client.passes and abs(now - client.last) < TOLD:
            return verdict, [passed]
        verdict.warning = (
            f"{found.shared} is an address that many clients may share: it is not made known (tcpserver behind NAT?)"
        )
    if client is None or now - client.last > settings.lifetime:
        return verdict, [passed, Change(client, ClientRow(now, now, 1), expires)]
    return verdict, [passed, Change(client, ClientRow(client.first, now, client.passes + 1), expires)]


# How long the first recipient of a message that passed vouches for later ones, in seconds. Nobody takes longer to name them.
MESSAGE_TIME = 600


def may_follow(verdict: Verdict, found: Found, settings: "Settings") -> bool:
    """Whether VERDICT on a later recipient falls where the first one passed: RFC 6647 section 5, item 1. An operator's rule stands."""
    return verdict.action == DEFER and deciding(found.rules, settings) is None


def followed() -> tuple[Verdict, list[Change]]:
    """The verdict on such a recipient, of which nothing is recorded: reason `message`."""
    return Verdict(ACCEPT, "message"), []


def vouches(verdict: Verdict, changes: "Sequence[Change]", found: Found, settings: "Settings", now: int) -> bool:
    """Whether VERDICT on the first recipient is what lets later ones pass: greylisting let it pass, and does not know its client."""
    if verdict.reason not in ("known", "retry", "pool"):
        return False
    client = found.client
    for change in changes:
        if isinstance(change.new, ClientRow):
            client = change.new
    return bool(found.shared) or not is_known(client, settings, now)


def holds(verdict: Verdict, changes: "Sequence[Change]") -> bool:
    """Whether VERDICT is the same whatever becomes of its CHANGES: they only count an attempt or a use of what is recorded.

    A strike is no such thing: with the next one another verdict is due.
    """
    if verdict.vouches:
        return False
    if verdict.reason == "early":
        return all(isinstance(change.new, TripletRow) for change in changes) and not needs_record(verdict, changes)
    return verdict.reason in ("known", "client")


def needs_record(verdict: Verdict, changes: "Sequence[Change]") -> bool:
    """Whether VERDICT is only true once its CHANGES are recorded: a deferral whose mail would be deferred at each retry without them.

    That is what is new, and what waits since a time in the future, which each attempt would take for now.
    """
    if verdict.reason == "new":
        return True
    return verdict.reason == "early" and any(
        isinstance(change.old, TripletRow)
        and isinstance(change.new, TripletRow)
        and change.old.first != change.new.first
        for change in changes
    )


def is_remembered(row: TripletRow | None, now: int, seconds: int = MESSAGE_TIME) -> bool:
    """Whether ROW says that a message's first recipient passed not more than so many SECONDS before NOW."""
    return row is not None and now - row.last <= seconds


def remembering(row: TripletRow | None, now: int) -> Change:
    """The change to ROW that says so."""
    return Change(row, TripletRow(now, now, 0, 1, now), now + MESSAGE_TIME)


# Attempts of one message from one provider's networks are at least this many seconds apart: of the schedules that are known (docs), the
# hastiest retries after six. What comes closer are several senders.
POOL_GAP = 5


def looks_around(verdict: Verdict, settings: "Settings") -> bool:
    """Whether ``look_around`` may change VERDICT."""
    if verdict.reason == "new":
        return bool(settings.pool_networks or settings.network_limit or settings.pending_limit)
    return verdict.reason == "early" and bool(settings.pool_networks)


def look_around(
    verdict: Verdict,
    changes: list[Change],
    found: Found,
    asked: "Triplet",
    waiting: Waiting,
    settings: "Settings",
    now: int,
) -> tuple[Verdict, list[Change]]:
    """VERDICT and CHANGES on what is ASKED, reconsidered by what is WAITING besides: reasons `pool`, `crowded` and `full`.

    Providers retry from another network each time; what waits from enough of them, the oldest longer than the delay, has been retried.
    Where too much of one network waits, what is new from there is deferred and not recorded: what waits already passes at its retry, and
    makes its client known. Where too many triplets wait in all, somebody is filling the table, and new ones are let through.
    """
    if waiting.others and is_pool(asked, waiting, Terms(settings, deciding(found.rules, settings)), settings, now):
        return _passing(Verdict(ACCEPT, "pool", detail=verdict.detail), found, settings, now)
    if verdict.reason == "new" and settings.network_limit and waiting.crowd >= settings.network_limit:
        return Verdict(DEFER, "crowded", verdict.wait, verdict.detail), []
    if verdict.reason == "new" and settings.pending_limit and waiting.total >= settings.pending_limit:
        return Verdict(ACCEPT, "full", detail=verdict.detail), []
    return verdict, changes


def is_pool(asked: "Triplet", waiting: Waiting, terms: Terms, settings: "Settings", now: int) -> bool:
    """Whether what is ASKED is a retry of what is WAITING from other networks.

    A sender of the recipient's own domain is none whose provider is elsewhere. Attempts that follow each other sooner than any queue
    does are several senders', as a botnet's are.
    """
    if not settings.pool_networks or waiting.others < settings.pool_networks or waiting.oldest is None:
        return False
    if now - waiting.oldest < terms.delay or is_own_domain(asked):
        return False
    newest = waiting.oldest if waiting.newest is None else waiting.newest
    return now - newest >= POOL_GAP and (waiting.gap is None or waiting.gap >= POOL_GAP)


def is_own_domain(asked: "Triplet") -> bool:
    """Whether the sender of what is ASKED is of the recipient's own domain."""
    return asked.sender.rpartition(b"@")[2] == asked.recipient.rpartition(b"@")[2]


def observe(verdict: Verdict, envelope: Envelope, settings: "Settings") -> Verdict:
    """VERDICT on ENVELOPE, or the acceptance that remembers it where such mail is only observed."""
    if verdict.action != ACCEPT and _is_observed(envelope, settings):
        verdict.observed, verdict.action = verdict.action, ACCEPT
    return verdict


def _is_observed(envelope: Envelope, settings: "Settings") -> bool:
    if settings.mode == "observe":
        return True
    if not settings.observe_domains and not settings.observe_percent:
        return False
    asked = triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix)
    domain = asked.recipient.rpartition(b"@")[2].decode("utf-8", "surrogateescape")
    return domain in settings.observe_domains or share(asked.network) < settings.observe_percent


def share(network: str) -> int:
    """A stable number from 0 to 99 for a client NETWORK (FNV-1a: nothing is to be imported for it)."""
    value = 0xCBF29CE484222325
    for byte in network.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return (value >> 32) % 100
