"""What greylisting decides: one state machine, and one table with the order of its steps.

Everything that affects a verdict is here, and in ``greycheck.unknown`` for mail that is not known;
nothing reads a clock, a store, an environment or a descriptor. A ``Decision`` goes through
``STEPS``. It stops where it needs something that a store knows, says what, and goes on when it was
given that. Whoever drives it (``greycheck.check``) adds nothing to it, so the forked child, the
resident, ``greycheck policy`` and ``explain`` decide alike.

    decision = Decision(envelope, settings, now)
    while need := decision.advance():
        ...                                  # take_rows, take_earlier, take_message, take_pending
    decision.changes                         # what has to be written before the verdict holds
    decision.verdict()                       # what to answer, and to log

The rows in ``changes`` are written only where they still are what was read (compare and swap). A
race that is lost shows itself, and is decided again (``anew``).

Times are whole seconds since 1970, UTC. A time in the future, written by a host whose clock is
ahead or before a clock was set back, counts as now. docs/decision.rst says why each step is there.
"""

from greycheck.envelope import Envelope, triplet
from greycheck.normalise import is_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from greycheck.envelope import Triplet
    from greycheck.settings import Settings
    from greycheck.unknown import DomainRow, Identity, NetworkRow, Pending

ACCEPT = "accept"
DEFER = "defer"
REJECT = "reject"

# A row in use is written again only when its last use is this many seconds old, or half a shorter
# lifetime.
REFRESH = 3600


# --- values ---------------------------------------------------------------------------------------


class Verdict:
    """What to answer: an ACTION (accept, defer or reject), its REASON, and what the log line adds.

    ``wait`` is the number of seconds until a retry would pass, on a deferral. ``detail`` is one
    more ``name=value``, which the log escapes. ``unrecorded`` says why the store does not know of
    this attempt, where it should. ``observed`` is the action that would have been taken, in observe
    mode. ``opens_message`` is true where later recipients of the same message pass because of this
    one. ``delayed`` is how long ago the first attempt was, in seconds, where a wait ends.
    ``warning`` is a further line for the log. ``identity`` is the sender's domain where the client
    may send for it; ``by_identity`` is the reason that this would have been, where identities are
    only observed.
    """

    __slots__ = (
        "action",
        "by_identity",
        "delayed",
        "detail",
        "identity",
        "observed",
        "opens_message",
        "reason",
        "unrecorded",
        "wait",
        "warning",
    )

    def __init__(
        self,
        action: str,
        reason: str,
        wait: int = 0,
        detail: str = "",
        unrecorded: str = "",
        observed: str = "",
        opens_message: bool = False,
        delayed: int = 0,
        warning: str = "",
        identity: bytes = b"",
        by_identity: str = "",
    ) -> None:
        self.action: Final = action
        self.reason: Final = reason
        self.wait: Final = wait
        self.detail: Final = detail
        self.unrecorded: Final = unrecorded
        self.observed: Final = observed
        self.opens_message: Final = opens_message
        self.delayed: Final = delayed
        self.warning: Final = warning
        self.identity: Final = identity
        self.by_identity: Final = by_identity


class TripletRow:
    """What the store knows of a triplet.

    Its FIRST and LAST attempt, how many were EARLY, how many PASSES were recorded, and when it
    PASSED (None: it waits).
    """

    __slots__ = ("early", "first", "last", "passed", "passes")

    def __init__(
        self, first: int, last: int, early: int = 0, passes: int = 0, passed: int | None = None
    ) -> None:
        self.first = first
        self.last = last
        self.early = early
        self.passes = passes
        self.passed = passed


class ClientRow:
    """What the store knows of a client address.

    How many triplets passed from it, and when it was first and last let through; how many strikes
    it has in a row, and until when it is refused for them (0: it is not).
    """

    __slots__ = ("first", "last", "passes", "strikes", "struck")

    def __init__(
        self, first: int, last: int, passes: int, strikes: int = 0, struck: int = 0
    ) -> None:
        self.first = first
        self.last = last
        self.passes = passes
        self.strikes = strikes
        self.struck = struck


class RuleRow:
    """A rule that matches: KEY, KIND, PATTERN as an operator reads it, ACTION, and DELAY.

    The kind of a pair is that of its first part. The delay is in seconds; None is the setting's.
    """

    __slots__ = ("action", "delay", "key", "kind", "pattern")

    def __init__(self, key: bytes, kind: str, pattern: str, action: str, delay: int | None) -> None:
        self.key = key
        self.kind = kind
        self.pattern = pattern
        self.action = action
        self.delay = delay


class Rows:
    """What the store has for one envelope: its TRIPLET's row, its CLIENT's, and the matching RULES.

    The rule that comes first decides. EXPECTED is the rule by which somebody expects this mail.
    """

    __slots__ = ("client", "expected", "rules", "triplet")

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


class Change:
    """A row to be written: from OLD as it was read (None: no row) to NEW (None: delete it).

    It expires at EXPIRES, in seconds since 1970.
    """

    __slots__ = ("expires", "new", "old")

    def __init__(
        self,
        old: "TripletRow | ClientRow | DomainRow | RuleRow | None",
        new: "TripletRow | ClientRow | DomainRow | NetworkRow | None",
        expires: int = 0,
    ) -> None:
        self.old = old
        self.new = new
        self.expires = expires


class Timings:
    """The delay, retry window and lifetime of one mail, in seconds.

    They are the settings', or those of the RULE that greylists it.
    """

    __slots__ = ("delay", "lifetime", "retry_window")

    def __init__(self, settings: "Settings", rule: RuleRow | None = None) -> None:
        self.delay = settings.delay if rule is None or rule.delay is None else rule.delay
        self.lifetime = settings.lifetime
        # A window that ends before the delay does would hold mail for ever.
        longer = self.delay if settings.retry_window <= self.delay else 0
        self.retry_window = settings.retry_window + longer


# --- the decision ---------------------------------------------------------------------------------

# What a decision needs to go on.
ROWS = "rows"  # the rows of its triplet and client, and the rules that match: take_rows
EARLIER = "earlier"  # its triplet's row under the key of an earlier release: take_earlier
MESSAGE = "message"  # whether the first recipient of the message has passed: take_message
PENDING = "pending"  # what else waits, and whom the client may send for: take_pending
IDENTITY = "identity"  # whom the client may send for, alone: take_identity
NETWORKS = "networks"  # from which networks the pair waits: take_networks

# Nothing: it is decided; of a step, that it lets the mail go on to the next.
NOTHING = ""

# What a step returns that has decided.
DECIDED = "decided"

# Phases of a triplet.
ABSENT = "absent"  # never seen, or expired and removed
EARLY = "early"  # waits, and its delay is not over
DUE = "due"  # waits, its delay is over and its retry window is not
KNOWN = "known"  # passed, and its lifetime is not over
OVER = "over"  # its retry window or its lifetime is over


class Decision:
    """The decision on ENVELOPE under SETTINGS at NOW (seconds since 1970).

    ``advance`` goes on as far as it can. Once it returns nothing, ``action`` and ``reason`` are
    decided by ``step``, and ``changes`` are the rows to be written: most often none. What was given
    is left to be read (``rows``, ``row``, ``rule``, ``timings``, ``pending``), for ``explain``.
    ``client`` is the client's row where neither a rule nor a shared address keeps it from counting.
    ``domain`` is the sender's where the client may send for it, which can only be where
    ``may_have_identity`` is true.

    ``unrecorded`` is for whoever writes: why ``changes`` could not be written, where the verdict
    stands all the same.
    """

    __slots__ = (
        "_asked_earlier",
        "_at",
        "_current",
        "_triplet",
        "action",
        "authorised_by",
        "by_identity",
        "changes",
        "client",
        "delayed",
        "detail",
        "domain",
        "envelope",
        "first_passed",
        "identity",
        "may_have_identity",
        "networks",
        "now",
        "pending",
        "phase",
        "reason",
        "row",
        "rows",
        "rule",
        "settings",
        "shared",
        "timings",
        "unrecorded",
        "wait",
        "warning",
    )

    def __init__(
        self, envelope: Envelope, settings: "Settings", now: int, of: "Triplet | None" = None
    ) -> None:
        """OF is the triplet of ENVELOPE under SETTINGS, where somebody has made it before."""
        self.envelope = envelope
        self.settings = settings
        self.now = now
        self.action = self.reason = self.detail = self.unrecorded = self.warning = ""
        self.wait = self.delayed = self._at = 0
        self.changes: list[Change] = []
        self.rows: Rows | None = None
        self.pending: Pending | None = None
        self.identity: Identity | None = None
        self.domain = b""
        self.authorised_by = self.by_identity = ""
        self.networks: Sequence[str] | None = None
        self._triplet = of
        self.first_passed: bool | None = None
        self._asked_earlier = False

    def advance(self) -> str:
        """Goes on as far as possible; returns what it needs then, NOTHING once it is decided."""
        if self.reason:
            return NOTHING
        for step in STEPS[self._at :]:
            outcome = step.take(self)
            if outcome:
                self._at = STEPS.index(step)
                return NOTHING if self.reason else outcome
        raise AssertionError("the last step always decides")

    def anew(self) -> "Decision":
        """The same decision from its beginning, after somebody else has changed a row."""
        return Decision(self.envelope, self.settings, self.now, self._triplet)

    # What it was given.

    def take_rows(self, rows: Rows) -> None:
        """Takes what the store has for this envelope. It settles the rule and the times."""
        self.rows = rows
        self.row = self._current = rows.triplet
        self.rule = deciding_rule(rows.rules, self.settings) if rows.rules else None
        self.timings = Timings(self.settings, self.rule)
        self.phase = phase(self.row, self.timings, self.now)
        # Where many clients may share the address, as behind a container's NAT, it is no client
        # that can be known or refused for its haste.
        triplet = self.triplet
        self.shared = triplet.client if is_private(triplet.client) else ""
        self.client = None if self.shared or self.rule is not None else rows.client
        self.may_have_identity = (
            bool(triplet.sender) and not self.shared and self.settings.identity != "no"
        )

    def take_earlier(self, row: TripletRow | None) -> None:
        """Takes the triplet's row under the key of an earlier release, if it is alive."""
        self._asked_earlier = True
        found = phase(row, self.timings, self.now)
        if found not in (ABSENT, OVER):
            self.row, self.phase = row, found

    def take_message(self, first_passed: bool) -> None:
        """Takes whether the message's first recipient passed at most MESSAGE_TIME ago."""
        self.first_passed = first_passed

    def take_pending(self, pending: "Pending") -> None:
        """Takes what else waits, and what is known of the sender's domain."""
        self.pending = pending
        self.take_identity(pending.identity)

    def take_identity(self, identity: "Identity") -> None:
        """Takes what is known of the client and the sender's domain: whether it may send for it."""
        self.identity = identity
        if not self.may_have_identity:
            return
        by = authority(identity, self.envelope, self.settings)
        if by:
            self.domain, self.authorised_by = domain_of(self.triplet.sender), by

    def take_networks(self, networks: "Sequence[str]") -> None:
        """Takes the networks from which the same sender and recipient wait."""
        self.networks = networks

    # What it is about, and what came of it.

    @property
    def since(self) -> int:
        """Since when other mail counts as the same that waits: as long as the retry window is."""
        return self.now - self.timings.retry_window

    @property
    def triplet(self) -> "Triplet":
        """The triplet of its envelope, which must have a client."""
        if self._triplet is None:
            settings = self.settings
            self._triplet = triplet(self.envelope, settings.ipv4_prefix, settings.ipv6_prefix)
        return self._triplet

    @property
    def step(self) -> str:
        """The name of the step that decided, or at which it waits for what it needs."""
        return STEPS[self._at].name

    @property
    def opens_message(self) -> bool:
        """Whether later recipients of the message pass because of this one.

        This is its first recipient, greylisting lets it pass, and its client is not known: else
        they pass by that.
        """
        if self.reason not in ("known", "retry", "pool") or self.rows is None:
            return False
        if not self.envelope.message or not self.envelope.first or self.unrecorded:
            return False
        client = self.rows.client
        for change in self.changes:
            if isinstance(change.new, ClientRow):
                client = change.new
        return bool(self.shared) or not is_known(client, self.settings, self.now)

    @property
    def is_final_before_write(self) -> bool:
        """Whether the answer can be given before ``changes`` are written: they only count a use.

        A strike is more than that: with the next one another verdict is due.
        """
        if self.reason == "early":
            only_triplets = all(isinstance(change.new, TripletRow) for change in self.changes)
            return only_triplets and not self.needs_record
        return self.only_counts_use and not self.opens_message

    @property
    def only_counts_use(self) -> bool:
        """Whether ``changes`` record no more than a use of what is known: nobody waits for that."""
        return self.reason in ("known", "client", "domain")

    @property
    def needs_record(self) -> bool:
        """Whether the verdict is true only once ``changes`` are written.

        Unwritten, such a deferral would be repeated at each retry: what is new, and what waits
        since a time in the future, which each attempt would take for now.
        """
        if self.reason == "new":
            return True
        return self.reason == "early" and any(
            isinstance(change.old, TripletRow)
            and isinstance(change.new, TripletRow)
            and change.old.first != change.new.first
            for change in self.changes
        )

    def verdict(self) -> Verdict:
        """What to answer and to log.

        In observe mode that is an acceptance which tells the action.
        """
        action, observed = self.action, ""
        if action != ACCEPT and self.observing():
            action, observed = ACCEPT, action
        return Verdict(
            action,
            self.reason,
            self.wait,
            self.detail,
            self.unrecorded,
            observed,
            self.opens_message,
            self.delayed,
            self.warning,
            self.domain,
            self.by_identity,
        )

    def failed(self, message: str) -> Verdict:
        """The verdict of the setting ``on_error``, because the check failed by MESSAGE."""
        action, observed = self.settings.on_error, ""
        try:
            if action != ACCEPT and self.observing():
                action, observed = ACCEPT, action
        except Exception:
            pass  # the envelope itself is what cannot be worked with: it has no domain to look for
        return Verdict(action, "error", 0, f"error={message}", observed=observed)

    def observing(self) -> str:
        """The name of the setting by which such mail is only observed, or nothing."""
        settings = self.settings
        if settings.mode == "observe":
            return "mode"
        if not settings.observe_domains and not settings.observe_percent:
            return ""
        domain = domain_of(self.triplet.recipient).decode("utf-8", "surrogateescape")
        if domain in settings.observe_domains:
            return "observe_domains"
        return "observe_percent" if share(self.triplet.network) < settings.observe_percent else ""

    # For the steps.

    def decide(
        self,
        action: str,
        reason: str,
        changes: "Sequence[Change]" = (),
        wait: int = 0,
        detail: str | None = None,
    ) -> str:
        """Ends here, with CHANGES to be written; returns DECIDED, for the step to return.

        DETAIL is by default the rule that greylists it.
        """
        self.action, self.reason, self.wait = action, reason, wait
        if action == ACCEPT and self.rows is not None and self.phase in (EARLY, DUE):
            assert self.row is not None
            self.waited_since(self.row.first)
        if detail is not None:
            self.detail = detail
        elif self.rule is not None:
            self.detail = f"rule={self.rule.pattern.replace(' ', ',')}"
        self.changes = changes if isinstance(changes, list) else list(changes)
        if self._asked_earlier and self.row is not self._current and reason != "message":
            self._carry_over()
        return DECIDED

    def waited_since(self, first: int) -> None:
        """A wait ends of which the FIRST attempt was then, or before."""
        self.delayed = max(self.delayed, self.now - first)

    def _carry_over(self) -> None:
        """Makes the changes of a row under an earlier key changes of the row under today's.

        It is carried over even where nothing changed.
        """
        row, current = self.row, self._current
        assert row is not None
        is_changed = any(change.old is row for change in self.changes)
        self.changes = [
            Change(current, change.new, change.expires) if change.old is row else change
            for change in self.changes
        ]
        if not is_changed:
            since, time = min(row.first, self.now), self.timings.retry_window
            if row.passed is not None:
                since, time = row.last, self.timings.lifetime
            self.changes.insert(0, Change(current, row, since + time))


# --- the steps ------------------------------------------------------------------------------------


def _incomplete(it: Decision) -> str:
    """An envelope without a client or addresses cannot be looked up."""
    if it.envelope.missing:
        return it.decide(ACCEPT, "incomplete", detail=f"missing={it.envelope.missing}")
    return NOTHING


def _exempt(it: Decision) -> str:
    """A relay client, an authenticated one, or what a setting exempts is not checked."""
    if it.envelope.exempt:
        return it.decide(ACCEPT, "exempt", detail=f"by={it.envelope.exempt}")
    if it.settings.off:
        return it.decide(ACCEPT, "exempt", detail="by=GREYCHECK")
    if not it.envelope.sender and it.settings.null_sender == ACCEPT:
        return it.decide(ACCEPT, "exempt", detail="by=null_sender")
    return NOTHING


def _rule(it: Decision) -> str:
    """An operator's rule allows, defers or rejects.

    One that greylists lets the mail go on to its triplet. An action that only a newer program knows
    defers too: its operator can still say what becomes of the mail.
    """
    if it.rows is None:
        return ROWS
    rule = it.rule
    if rule is None or rule.action == "greylist":
        return NOTHING
    if rule.action == "allow":
        return it.decide(ACCEPT, "rule")
    if rule.action == "reject":
        return it.decide(REJECT, "rule")
    return it.decide(DEFER, "rule", wait=it.timings.delay)


def _strikes(it: Decision) -> str:
    """A client that was refused for its haste stays refused for ``strike_time``."""
    client = it.client
    if client is None or not it.settings.strikes:
        return NOTHING
    # Further ahead than anybody is ever refused for: a clock was wrong when that was written.
    if it.now < client.struck <= it.now + it.settings.strike_time:
        return it.decide(REJECT, "strikes")
    return NOTHING


def _client(it: Decision) -> str:
    """A client that has passed often enough is known: its other mail passes too (RFC 6647 5(2))."""
    client = it.client
    if client is not None and is_known(client, it.settings, it.now):
        return it.decide(ACCEPT, "client", _used_by_client(it, client))
    return NOTHING


def _known(it: Decision) -> str:
    """The triplet has passed before, and was used within its lifetime."""
    if it.phase in (ABSENT, OVER) and not it._asked_earlier and it.triplet.is_tagged:
        return EARLIER
    if it.phase == KNOWN:
        return it.decide(ACCEPT, "known", _used_triplet(it))
    return NOTHING


# The file of the steps for mail that is not known: most checks do not load it.
UNKNOWN = "greycheck.unknown"


class Step:
    """A step of the order: its NAME, the REASON that it gives, and the function that TAKEs it.

    The function returns what it needs, NOTHING where the mail goes on to the next step, or DECIDED.
    Where none is given, it is that of the same name in UNKNOWN.
    """

    __slots__ = ("name", "reason", "take")

    def __init__(
        self, name: str, reason: str, take: "Callable[[Decision], str] | None" = None
    ) -> None:
        self.name = name
        self.reason = reason
        self.take = take or self._load

    def _load(self, it: Decision) -> str:
        """Takes this step by its function in UNKNOWN, now and from now on."""
        self.take = getattr(__import__(UNKNOWN, fromlist=(self.name,)), self.name)
        return self.take(it)


# The whole order. Each step decides, or lets the mail go on to the next; the last one always
# decides. What ``explain``, the manual and docs/decision.rst say of the order they take from here.
STEPS = (
    Step("incomplete", "incomplete", _incomplete),
    Step("exempt", "exempt", _exempt),
    Step("rule", "rule", _rule),
    Step("strikes", "strikes", _strikes),
    Step("client", "client", _client),
    Step("known", "known", _known),
    Step("retry", "retry"),
    Step("expected", "expected"),
    Step("message", "message"),
    Step("provider", "provider"),
    Step("correspondent", "correspondent"),
    Step("domain", "domain"),
    Step("moved", "retry"),
    Step("haste", "strikes"),
    Step("pool", "pool"),
    Step("crowded", "crowded"),
    Step("full", "full"),
    Step("new", "new"),
    Step("early", "early"),
)


# --- what the steps ask ---------------------------------------------------------------------------


def phase(row: TripletRow | None, timings: Timings, now: int) -> str:
    """The phase of a triplet's ROW at NOW.

    Both ends belong to it: a retry passes exactly at the delay, and still at the window's last
    second.
    """
    if row is None:
        return ABSENT
    if row.passed is not None:
        return KNOWN if now - row.last <= timings.lifetime else OVER
    age = now - min(row.first, now)
    if age < timings.delay:
        return EARLY
    return DUE if age <= timings.retry_window else OVER


def is_known(row: ClientRow | None, settings: "Settings", now: int) -> bool:
    """Whether the client of ROW has passed often enough for its other mail to pass too."""
    if row is None or not settings.client_passes:
        return False
    return row.passes >= settings.client_passes and now - row.last <= settings.lifetime


def authority(identity: "Identity", envelope: Envelope, settings: "Settings") -> str:
    """By what the client of ENVELOPE may send for the sender's domain; empty where it may not."""
    if settings.identity == "no":
        return ""
    if settings.trust_spfresult == "yes" and envelope.spf_passed:
        return "SPFRESULT"
    return identity.source


def deciding_rule(rules: "Sequence[RuleRow]", settings: "Settings") -> RuleRow | None:
    """The first of RULES that counts.

    A name that nobody verified allows nothing: anybody can write one into his reverse DNS.
    """
    for rule in rules:
        if rule.kind != "name" or rule.action != "allow" or settings.verified_names == "yes":
            return rule
    return None


def _used_by_client(it: Decision, client: ClientRow) -> list[Change]:
    """Returns the changes that record a use of a known client.

    The triplet's use is recorded too, if that has passed.
    """
    changes = _used_triplet(it) if it.phase == KNOWN else []
    if not is_recent(client, it):
        used = ClientRow(client.first, it.now, client.passes, client.strikes, client.struck)
        changes.append(Change(client, used, it.now + it.timings.lifetime))
    return changes


def _used_triplet(it: Decision) -> list[Change]:
    row = it.row
    if row is None or is_recent(row, it):
        return []
    used = TripletRow(row.first, it.now, row.early, row.passes + 1, row.passed)
    return [Change(row, used, it.now + it.timings.lifetime)]


def is_recent(row: "TripletRow | ClientRow | DomainRow", it: Decision) -> bool:
    """Whether the last use of ROW was recorded a moment ago, so that this one need not be."""
    return abs(it.now - row.last) < min(REFRESH, it.timings.lifetime // 2)


def domain_of(address: bytes) -> bytes:
    """The domain of a normalised ADDRESS, or all of it where it has none."""
    return address.rpartition(b"@")[2]


def share(network: str) -> int:
    """A stable number from 0 to 99 for a client NETWORK (FNV-1a: nothing is to be imported)."""
    value = 0xCBF29CE484222325
    for byte in network.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return (value >> 32) % 100


# What a client is told where the check could not be made.
FAULT = "temporary failure, please try again later"


def client_text(verdict: Verdict, settings: "Settings") -> str:
    """What a client is told about VERDICT, a deferral or a refusal, where its hook lets it."""
    if verdict.reason == "error":
        return FAULT
    if verdict.action == DEFER:
        return settings.defer_text.replace("{wait}", str(verdict.wait))
    return settings.reject_text
