"""The steps of greylisting for a mail that is not known: from its retry to its first attempt.

``greycheck.policy`` has the order of all steps, and those before these. Most mail is known, so a
check loads this file only where it goes further. Each step is the function of its name; as there,
nothing here reads a clock, a store, an environment or a descriptor.
"""

from greycheck.policy import (
    ACCEPT,
    DEFER,
    DUE,
    EARLY,
    IDENTITY,
    MESSAGE,
    NETWORKS,
    NOTHING,
    PENDING,
    REJECT,
    Change,
    ClientRow,
    Decision,
    TripletRow,
    domain_of,
    is_recent,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from greycheck.envelope import Triplet
    from greycheck.settings import Settings


# A client whose address many may share is warned of at most once in so many seconds.
WARNED = 3600


# How many early attempts a triplet may have for an unknown client to get a row for its haste. Each
# address of a network retries the same triplets: an IPv6 network has more of them than any table
# has room for.
HASTE = 16


# Attempts this many seconds apart are one attempt seen twice: both hooks may be on, and RCPT may be
# repeated (docs/hooks.rst).
SAME_ATTEMPT = 1


# How long the first recipient of a message that passed lets later ones pass, in seconds. No client
# takes longer to name them.
MESSAGE_TIME = 600


# Attempts of one message from one provider's networks are at least this many seconds apart: of the
# known schedules (docs/schedules.rst) the hastiest retries after six. Closer ones are several
# senders, or several messages of one at once: a pool needs so many times as many rounds then.
POOL_GAP = 5
CLOSE_ROUNDS = 2


# --- values ---------------------------------------------------------------------------------------


class DomainRow:
    """What the store knows of a sender's domain that has passed.

    How many triplets passed with its identity, and when it was first and last let through.
    """

    __slots__ = ("first", "last", "passes")

    def __init__(self, first: int, last: int, passes: int) -> None:
        self.first = first
        self.last = last
        self.passes = passes


class NetworkRow:
    """A NETWORK of clients that sent for the sender's domain, as a pool does; ADDED when it did."""

    __slots__ = ("added", "network")

    def __init__(self, network: str, added: int) -> None:
        self.network = network
        self.added = added


class Identity:
    """What the store knows of a client and of the domain of its sender.

    ROW says whether the domain has passed. STATE is that of the domain's SPF (docs/identity.rst),
    ANSWERED when DNS said so; both are empty where nobody has asked yet. SOURCE says by what the
    client is authorised for the domain: ``spf`` (a network), ``client`` (this address), ``pool``;
    empty where it is not. PROVIDER is the operator's provider whose network this is. WRITTEN is
    when the recipient last wrote to this sender.
    """

    __slots__ = ("answered", "provider", "row", "source", "state", "written")

    def __init__(
        self,
        row: DomainRow | None = None,
        state: str = "",
        answered: int | None = None,
        source: str = "",
        provider: str = "",
        written: int | None = None,
    ) -> None:
        self.row = row
        self.state = state
        self.answered = answered
        self.source = source
        self.provider = provider
        self.written = written


# Where nothing is known.
NOBODY = Identity()


class Pending:
    """What else waits in the store.

    OTHERS is how many rows of the same sender and recipient wait from other networks, OLDEST since
    when the first of them; NEWEST is the last first attempt from any network of that pair, and
    ROUNDS how many of the others' came at least POOL_GAP seconds after the one before (None: all).
    What is of the future counts for none of these. CROWD is how many triplets of the same network
    wait (counted no further than the limit), TOTAL how many in all (an estimate). OF_DOMAIN is the
    oldest first attempt of the pair from a client that may send for the sender's domain, and
    IDENTITY what is known of this one.
    """

    __slots__ = ("crowd", "identity", "newest", "of_domain", "oldest", "others", "rounds", "total")

    def __init__(
        self,
        others: int = 0,
        oldest: int | None = None,
        newest: int | None = None,
        rounds: int | None = None,
        crowd: int = 0,
        total: int = 0,
        of_domain: int | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.others = others
        self.oldest = oldest
        self.newest = newest
        self.rounds = others if rounds is None else rounds
        self.crowd = crowd
        self.total = total
        self.of_domain = of_domain
        self.identity = identity or NOBODY


# --- the steps ------------------------------------------------------------------------------------


def retry(it: Decision) -> str:
    """The triplet waits, its delay is over and its retry window is not: it passes."""
    if it.phase == DUE:
        assert it.row is not None
        if it.identity is None and it.settings.domain_passes and it.may_have_identity:
            return IDENTITY
        return passes(it, "retry")
    return NOTHING


def expected(it: Decision) -> str:
    """An operator or a program expects this mail: it passes, once."""
    assert it.rows is not None
    expected, now = it.rows.expected, it.now
    if expected is not None:
        passed = Change(it.row, TripletRow(now, now, 0, 1, now), now + it.timings.lifetime)
        by = f"by={expected.pattern.replace(' ', ',')}"
        return it.decide(ACCEPT, "expected", (passed, Change(expected, None)), detail=by)
    return NOTHING


def message(it: Decision) -> str:
    """A later recipient of a message passes where its first one did (RFC 6647 5(1)).

    Nothing is recorded of it. An operator's rule stands.
    """
    if it.rule is not None or it.envelope.first or not it.envelope.message:
        return NOTHING
    if it.first_passed is None:
        return MESSAGE
    if it.first_passed:
        return it.decide(ACCEPT, "message")
    return NOTHING


def provider(it: Decision) -> str:
    """The client is in a network of a provider whose mail the operator lets in (RFC 6647 5(6))."""
    if it.rule is not None or it.settings.identity == "no":
        return NOTHING
    if it.pending is None:
        return PENDING
    provider = it.pending.identity.provider
    if provider:
        return _by_identity(it, "provider", f"provider={provider}")
    return NOTHING


def correspondent(it: Decision) -> str:
    """The recipient has written to this sender.

    Where the sender's domain says who may send for it, it must be one of these.
    """
    if it.rule is not None or not it.settings.learn_outbound:
        return NOTHING
    if it.pending is None:
        return PENDING
    identity = it.pending.identity
    if identity.written is not None and (it.domain or identity.state != "found"):
        return it.decide(ACCEPT, "correspondent")
    return NOTHING


def domain(it: Decision) -> str:
    """The client may send for the sender's domain, which has passed often enough: so does this."""
    if it.rule is not None or not it.may_have_identity or not it.settings.domain_passes:
        return NOTHING
    if it.pending is None:
        return PENDING
    if it.domain and is_known_domain(it.pending.identity.row, it.settings, it.now):
        return _by_identity(it, "domain", "", _used_domain(it))
    return NOTHING


def moved(it: Decision) -> str:
    """The mail waits from another client that may send for the same domain, and its delay is over.

    The domain stands in the network's place.
    """
    if not it.may_have_identity:
        return NOTHING
    if it.pending is None:
        return PENDING
    since = it.pending.of_domain
    if not it.domain or since is None or it.now - since < it.timings.delay:
        return NOTHING
    if it.settings.identity == "observe":
        it.by_identity = it.by_identity or "retry"
        return NOTHING
    it.waited_since(since)
    return passes(it, "retry")


def haste(it: Decision) -> str:
    """A retry that follows the last attempt too fast is a strike; with enough of them, a refusal.

    What an early attempt changes is worked out here, for ``early``.
    """
    if it.phase != EARLY:
        return NOTHING
    row, settings, now = it.row, it.settings, it.now
    assert row is not None
    assert it.rows is not None
    first = min(row.first, now)
    if first == row.first and abs(now - row.last) <= SAME_ATTEMPT:
        return NOTHING
    expires = first + it.timings.retry_window
    it.changes = [Change(row, TripletRow(first, now, row.early + 1), expires)]
    client = it.rows.client
    if not settings.strikes or it.shared or (client is None and row.early >= HASTE):
        return NOTHING
    before = client.strikes if client else 0
    is_strike = _is_hasty(row.last, settings, now) and _is_own(client, settings, now)
    strikes = before + 1 if is_strike else 0
    if strikes == before:
        return NOTHING
    if strikes >= settings.strikes:
        struck = _struck(client, 0, now + settings.strike_time, settings, now)
        return it.decide(REJECT, "strikes", (*it.changes, struck), detail="")
    it.changes.append(_struck(client, strikes, 0, settings, now))
    return NOTHING


def pool(it: Decision) -> str:
    """A provider retries from another network each time: its mail waits from enough of them.

    The oldest must have waited for the delay.
    """
    if not it.settings.pool_networks:
        return NOTHING
    if it.pending is None:
        return PENDING
    if not is_pool(it, it.pending):
        return NOTHING
    learns = it.may_have_identity and it.pending.identity.state != "found"
    if learns and it.networks is None:
        return NETWORKS
    assert it.pending.oldest is not None
    it.waited_since(it.pending.oldest)
    decided = passes(it, "pool")
    if learns:
        # What the domain itself says of its networks counts more than what was seen.
        expires = it.now + it.settings.lifetime
        networks = dict.fromkeys((it.triplet.network, *(it.networks or ())))
        it.changes += [Change(None, NetworkRow(network, it.now), expires) for network in networks]
    return decided


def crowded(it: Decision) -> str:
    """Too much of one network waits: what is new from there is deferred and not recorded.

    What waits already passes at its retry, and makes its client known.
    """
    limit = it.settings.network_limit
    if not limit or it.phase == EARLY:
        return NOTHING
    if it.pending is None:
        return PENDING
    if it.pending.crowd >= limit:
        return it.decide(DEFER, "crowded", wait=it.timings.delay)
    return NOTHING


def full(it: Decision) -> str:
    """Too many triplets wait in all, so somebody fills the table: new ones are let through."""
    limit = it.settings.pending_limit
    if not limit or it.phase == EARLY:
        return NOTHING
    if it.pending is None:
        return PENDING
    if it.pending.total >= limit:
        return it.decide(ACCEPT, "full")
    return NOTHING


def new(it: Decision) -> str:
    """The triplet is unknown, or its time is over: it is recorded, and waits from now on."""
    if it.phase != EARLY:
        now, times = it.now, it.timings
        fresh = Change(it.row, TripletRow(now, now), now + times.retry_window)
        return it.decide(DEFER, "new", (fresh,), _wait(it, now))
    return NOTHING


def early(it: Decision) -> str:
    """The triplet waits, and its delay is not over."""
    assert it.row is not None
    return it.decide(DEFER, "early", it.changes, _wait(it, min(it.row.first, it.now)))


def _wait(it: Decision, since: int) -> int:
    """Returns how long a mail still waits, in seconds, of which the first attempt was at SINCE.

    Where the client may send for the domain, that of another of its clients counts.
    """
    if it.domain and it.settings.identity == "yes" and it.pending is not None:
        since = min(since, it.pending.of_domain or since)
    return since + it.timings.delay - it.now


def passes(it: Decision, reason: str) -> str:
    """Ends with an acceptance by which the triplet passes.

    Its client becomes known, and the domain that it may send for. A client whose address many
    may share has a row that tells when that was last warned of, and that never counts.
    """
    assert it.rows is not None
    row, client, now, settings = it.row, it.rows.client, it.now, it.settings
    expires = now + settings.lifetime
    first, early = (min(row.first, now), row.early) if row else (now, 0)
    changes = [Change(row, TripletRow(first, now, early, 1, now), expires)]
    if not settings.client_passes:
        return it.decide(ACCEPT, reason, changes + _passed_by_domain(it))
    if it.shared:  # which has no domain
        if client is not None and client.passes and abs(now - client.last) < WARNED:
            return it.decide(ACCEPT, reason, changes)
        it.warning = (
            f"{it.shared} is an address that many clients may share: it is not made known"
            " (tcpserver behind NAT?)"
        )
    if client is None or now - client.last > settings.lifetime:
        changes.append(Change(client, ClientRow(now, now, 1), expires))
    else:
        changes.append(Change(client, ClientRow(client.first, now, client.passes + 1), expires))
    return it.decide(ACCEPT, reason, changes + _passed_by_domain(it))


# --- what the steps ask ---------------------------------------------------------------------------


def is_known_domain(row: DomainRow | None, settings: "Settings", now: int) -> bool:
    """Whether the domain of ROW has passed often enough for its other mail to pass too."""
    if row is None or not settings.domain_passes:
        return False
    return row.passes >= settings.domain_passes and now - row.last <= settings.lifetime


def _by_identity(it: Decision, reason: str, detail: str, changes: "Sequence[Change]" = ()) -> str:
    """Lets a mail pass for REASON; where identities are only observed, says that it would."""
    if it.settings.identity == "observe":
        it.by_identity = it.by_identity or reason
        return NOTHING
    return it.decide(ACCEPT, reason, changes, detail=detail)


def _used_domain(it: Decision) -> list[Change]:
    """Returns the change that records a use of a known domain."""
    assert it.identity is not None
    row = it.identity.row
    if row is None or is_recent(row, it):
        return []
    used = DomainRow(row.first, it.now, row.passes)
    return [Change(row, used, it.now + it.settings.lifetime), *_used_network(it)]


def _used_network(it: Decision) -> list[Change]:
    """Returns the change that prolongs what was learnt of a pool, where the client is of one."""
    if it.authorised_by != "pool":
        return []
    used = NetworkRow(it.triplet.network, it.now)
    return [Change(None, used, it.now + it.settings.lifetime)]


def _passed_by_domain(it: Decision) -> list[Change]:
    """Returns the change by which the domain becomes known that the client may send for.

    A domain that is known is hardly written: all hosts share its row.
    """
    if not it.domain or it.identity is None:
        return []
    if not it.settings.domain_passes:
        return _used_network(it)
    row, now = it.identity.row, it.now
    if is_known_domain(row, it.settings, now):
        return _used_domain(it)
    if row is None or now - row.last > it.settings.lifetime:
        new = DomainRow(now, now, 1)
    else:
        new = DomainRow(row.first, now, row.passes + 1)
    return [Change(row, new, now + it.settings.lifetime), *_used_network(it)]


def _is_hasty(last: int, settings: "Settings", now: int) -> bool:
    """Whether an attempt NOW follows the LAST one too fast.

    After one in the future, before a clock was set back, that is not known.
    """
    return 0 <= now - last <= settings.strike_interval


def _is_own(client: ClientRow | None, settings: "Settings", now: int) -> bool:
    """Whether the last attempt may have been CLIENT's own, and not its neighbour's in the network.

    Of a client that never passed, the row says when its last strike was. Of others, and of the
    first strike, nothing is known.
    """
    if client is None or not client.strikes or client.passes:
        return True
    return _is_hasty(client.last, settings, now)


def _struck(
    client: ClientRow | None, strikes: int, until: int, settings: "Settings", now: int
) -> Change:
    """The client's row with STRIKES in a row, refused UNTIL (0: it is not).

    Where the client never passed, ``last`` is its last strike.
    """
    expires = until or now + settings.retry_window
    if client is None:
        return Change(None, ClientRow(now, now, 0, strikes, until), expires)
    if not client.passes:
        return Change(client, ClientRow(client.first, now, 0, strikes, until), expires)
    expires = max(expires, client.last + settings.lifetime)
    new = ClientRow(client.first, client.last, client.passes, strikes, until)
    return Change(client, new, expires)


def is_pool(it: Decision, pending: Pending) -> bool:
    """Whether this is a retry of what waits from other networks, ``pool_networks`` of them.

    A sender of the recipient's own domain is none whose provider is elsewhere. Attempts that follow
    each other faster than any queue retries may be several senders', as a botnet's are: they count
    as one, and more are needed.
    """
    now = it.now
    if pending.rounds < rounds_needed(pending, it.settings) or pending.oldest is None:
        return False
    if now - pending.oldest < it.timings.delay or is_own_domain(it.triplet):
        return False
    newest = pending.oldest if pending.newest is None else pending.newest
    return now - newest >= POOL_GAP


def rounds_needed(pending: Pending, settings: "Settings") -> int:
    """How many rounds make a pool of what is PENDING."""
    is_close = pending.rounds < pending.others
    return settings.pool_networks * (CLOSE_ROUNDS if is_close else 1)


def is_own_domain(triplet: "Triplet") -> bool:
    """Whether sender and recipient of TRIPLET are of one domain."""
    return domain_of(triplet.sender) == domain_of(triplet.recipient)


# --- what stands for a message --------------------------------------------------------------------


def message_passed_recently(row: TripletRow | None, now: int, seconds: int = MESSAGE_TIME) -> bool:
    """Whether a message's ROW says that its first recipient passed at most SECONDS before NOW."""
    return row is not None and now - row.last <= seconds


def message_row(row: TripletRow | None, now: int) -> Change:
    """The change to a message's ROW that records that its first recipient passed."""
    return Change(row, TripletRow(now, now, 0, 1, now), now + MESSAGE_TIME)
