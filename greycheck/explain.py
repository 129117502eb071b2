"""Why: the decision that a check would make, with everything that led to it, and without a trace in the store.

The decision is ``check``'s own, on a ``Witness`` that remembers what the store answered and what would have been written. Nothing is
decided a second time here: the steps only tell in words what the witness saw, and the verdict's reason names the one that decided.

Interface: ``envelope_of`` makes the envelope as a hook would, ``explain`` explains it, ``address_bytes`` reads an address as an operator
writes it.

Diagnostics: ``StoreError`` where the store cannot be asked.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from re import sub
from time import localtime, strftime
from typing import TYPE_CHECKING

from greycheck import patterns, policy
from greycheck.check import check, first_passed
from greycheck.envelope import EXEMPTING, Envelope, Triplet, triplet
from greycheck.hooks import CHECKENV_PROGRAM, every, smtpextfork
from greycheck.hooks import policy as protocol
from greycheck.log import show
from greycheck.policy import Change, Found, RuleRow, Verdict, Waiting
from greycheck.settings import Settings
from greycheck.store.lean import POOL_MOST, Asked, NoSchema

if TYPE_CHECKING:
    from greycheck.hooks import Hook
    from greycheck.store.lean import Store

HOOKS: dict[str, "Hook"] = {hook.NAME: hook for hook in every()}

# Who may ask: the hooks, and a mail server by the policy protocol.
ASKING = (*HOOKS, protocol.NAME)

# The order of the steps, and the reasons that each gives. Observing comes after them and gives none.
REASONS = {
    "incomplete": ("incomplete",),
    "exempt": ("exempt",),
    "rule": ("rule",),
    "strikes": ("strikes",),
    "client": ("client",),
    "known": ("known",),
    "retry": ("new", "early", "retry"),
    "expected": ("expected",),
    "message": ("message",),
    "pool": ("pool",),
    "crowded": ("crowded",),
    "full": ("full",),
}

DECIDES = "decides"
PASSES = "goes on"
UNREACHED = "not reached"
UNCHANGED = "no change"


@dataclass(frozen=True)
class Step:
    """One step of the order: what it LOOKED_AT, what it FOUND, and its OUTCOME.

    The outcome is one of DECIDES, PASSES, UNREACHED, and, of a step that reconsiders a deferral and leaves it, UNCHANGED.
    """

    name: str
    looked_at: str
    found: str
    outcome: str


@dataclass(frozen=True)
class Remedy:
    """What an operator can do about a verdict: a COMMAND to run, or (SETTING) a setting to change, and its EFFECT."""

    command: str
    effect: str
    setting: bool = False


@dataclass
class Explanation:
    """A verdict at NOW (seconds since 1970) and how it came about.

    ``triplet`` is None where the envelope has no client. ``found`` and ``waiting`` are what the store answered, None where it was not
    asked. ``changes`` would have been written. ``passes`` are the first and last second of a deferred mail's retry that passes, or of
    a refusal for strikes the second at which it ends; () otherwise.
    """

    envelope: Envelope
    triplet: Triplet | None
    settings: Settings
    now: int
    found: Found | None
    waiting: Waiting | None
    verdict: Verdict
    changes: list[Change]
    steps: list[Step] = field(default_factory=list)
    passes: tuple[int, ...] = ()
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def decided(self) -> str:
        """The action that the steps led to, whatever observing made of it."""
        return self.verdict.observed or self.verdict.action

    @property
    def code(self) -> int:
        """The exit code with which the child would answer its hook; by the policy protocol, that of SMTPEXTFORK."""
        return HOOKS.get(self.envelope.hook, smtpextfork).ANSWERS[self.verdict.action]

    @property
    def answer(self) -> str:
        """The action of the policy protocol's answer; of a hook nothing."""
        return protocol.action(self.verdict, self.settings) if self.envelope.hook == protocol.NAME else ""


class Witness:
    """A store that is asked as a check asks it, remembers the answers, and writes nothing. Without a STORE it is an empty one."""

    def __init__(self, store: "Store | None") -> None:
        self._store = store
        self.found: Found | None = None
        self.around: Waiting | None = None
        self.changes: list[Change] = []

    def lookup(self, asked: Asked, now: int) -> Found:
        """What the store has of ASKED. Looked for under another key it counts where there is something."""
        found = Found() if self._store is None else self._store.lookup(asked, now)
        if self.found is None or found.triplet is not None:
            self.found = found
        return found

    def waiting(self, asked: Asked, since: int, now: int, settings: Settings) -> Waiting:
        """What waits besides."""
        self.around = Waiting() if self._store is None else self._store.waiting(asked, since, now, settings)
        return self.around

    def first_passed(self, _witness: "Store", asked: Asked, now: int) -> bool:
        """Whether the first recipient of the same message passed; that is no part of what was found of this one."""
        return self._store is not None and first_passed(self._store, asked, now)

    def lock(self, asked: Asked) -> None:
        """Holds nobody off: nothing is written."""

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:  # noqa: ARG002
        """Remembers CHANGES, as if they had been written."""
        self.changes = changes
        return True

    def tidy(self) -> None:
        """Puts nothing off."""

    def overdue(self) -> None:
        """Nobody waits for this."""

    @property
    def notes(self) -> "Sequence[str]":
        """What the store it asked has to say."""
        return () if self._store is None else self._store.notes


def envelope_of(
    hook: str,
    client: bytes,
    sender: bytes,
    recipient: bytes,
    environ: dict[bytes, bytes],
    helo: bytes = b"",
    name: bytes = b"",
) -> Envelope:
    """The envelope that HOOK, one of ASKING, would hand over of a CLIENT's address, called NAME in DNS.

    ENVIRON may exempt it, as it may a child's. An empty address is one that is not known.
    """
    given = {variable.encode(): environ[variable.encode()] for variable in EXEMPTING if variable.encode() in environ}
    if hook == protocol.NAME:
        given |= {b"sender": sender, b"recipient": recipient, b"helo_name": helo, b"client_name": name}
        return protocol.envelope(given | ({b"client_address": client} if client else {}))
    given |= {b"TCPREMOTEIP": client, b"REMOTEMF": sender, b"REMOTERCPT": recipient, b"REMOTEHELO": helo}
    given |= {b"SENDER": sender, b"RECIPIENT": recipient}
    given |= {b"SMTPMAILFROM": sender, b"SMTPRCPTTO": recipient, b"SMTPHELOHOST": helo}
    if name:
        given[b"TCPREMOTEHOST"] = name
    return HOOKS[hook].envelope([CHECKENV_PROGRAM, sender, recipient], given)


def address_bytes(text: str) -> bytes:
    r"""The bytes of a mail address as an operator writes it: plain, in ``<>``, or as the log shows it (``\x20``)."""
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    written = text.encode("utf-8", "surrogateescape")
    return sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), written)


def explain(store: "Store | None", envelope: Envelope, settings: Settings, now: int) -> Explanation:
    """What a check of ENVELOPE at NOW would decide on STORE (None: one that does not exist yet), and why. Writes nothing.

    Raises StoreError.
    """
    asked = triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix) if envelope.client is not None else None
    witness = Witness(store)
    verdict = policy.without_store(envelope, settings)
    if verdict is None:
        try:
            verdict = check(witness, envelope, settings, now, witness.first_passed)
        except NoSchema:
            witness = Witness(None)
            verdict = check(witness, envelope, settings, now, witness.first_passed)
        verdict = policy.observe(verdict, envelope, settings)
    told = Explanation(envelope, asked, settings, now, witness.found, witness.around, verdict, witness.changes)
    told.steps = _steps(told)
    told.passes = _passes(told)
    told.remedies = _REMEDIES[verdict.reason](told)
    return told


# --- when ---------------------------------------------------------------------------------------------------------------


def local(moment: int) -> str:
    """MOMENT (seconds since 1970) in local time, with its zone."""
    return strftime("%Y-%m-%d %H:%M:%S %Z", localtime(moment))


def span(seconds: int) -> str:
    """SECONDS in their two largest units."""
    for size, name, next_size, next_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size}{name}" + (f" {rest}{next_name}" if rest else "")
    return f"{seconds}s"


def away(moment: int, now: int) -> str:
    """MOMENT as seen from NOW: ``in 5m`` or ``3d 2h ago``."""
    if moment == now:
        return "now"
    return f"in {span(moment - now)}" if moment > now else f"{span(now - moment)} ago"


def _terms(told: Explanation) -> policy.Terms:
    return policy.Terms(told.settings, _deciding(told))


def _deciding(told: Explanation) -> RuleRow | None:
    return policy.deciding(told.found.rules, told.settings) if told.found else None


def _passes(told: Explanation) -> tuple[int, ...]:
    """See Explanation."""
    if told.found is None:
        return ()
    reason, row, client = told.verdict.reason, told.found.triplet, told.found.client
    terms = _terms(told)
    if reason == "new":
        return told.now + terms.delay, told.now + terms.retry_window
    if reason == "early" and row is not None:
        first = min(row.first, told.now)
        return first + terms.delay, first + terms.retry_window
    if reason == "strikes":
        struck = client.struck if client else 0
        return (struck if struck > told.now else told.now + told.settings.strike_time,)
    return ()


# --- the steps ----------------------------------------------------------------------------------------------------------


def _steps(told: Explanation) -> list[Step]:
    steps = []
    outcome = PASSES
    for name, reasons in REASONS.items():
        decides = told.verdict.reason in reasons
        looked_at, found = _TELL[name](told)
        steps.append(Step(name, looked_at, found, DECIDES if decides else outcome))
        if decides:
            outcome = UNCHANGED if told.verdict.reason in ("new", "early") else UNREACHED
    return steps


def _incomplete(told: Explanation) -> tuple[str, str]:
    return "the client's address", f"missing: {told.envelope.missing}" if told.envelope.missing else "complete"


def _exempt(told: Explanation) -> tuple[str, str]:
    by = told.verdict.detail.removeprefix("by=") if told.verdict.reason == "exempt" else ""
    return "RELAYCLIENT, SMTPAUTHUSER, GREYCHECK=off, null_sender", f"exempt by {by}" if by else "nothing exempts it"


def _rule(told: Explanation) -> tuple[str, str]:
    looked_at = "rules by recipient, sender, network, name, HELO"
    if told.found is None:
        return looked_at, ""
    deciding = _deciding(told)
    lines = [_told_rule(rule, deciding) for rule in told.found.rules]
    return looked_at, "\n".join(lines) or "no rule matches"


def _told_rule(rule: RuleRow, deciding: RuleRow | None) -> str:
    delay = f", delay {span(rule.delay)}" if rule.delay is not None else ""
    line = f"{rule.action} {rule.pattern}{delay}"
    if rule is deciding:
        return f"{line}: the first that counts"
    if rule.kind == "name" and rule.action == "allow" and deciding is None:
        return f"{line}: does not count, verified_names = no"
    return f"{line}: does not decide"


def _skipped_by_rule(told: Explanation) -> bool:
    return (rule := _deciding(told)) is not None and rule.action == "greylist"


def _strikes(told: Explanation) -> tuple[str, str]:
    settings = told.settings
    looked_at = f"client {told.envelope.client or '-'}, strikes = {settings.strikes}"
    if told.found is None:
        return looked_at, ""
    if not settings.strikes:
        return looked_at, "off"
    row = told.found.client
    if told.verdict.reason == "strikes" and (row is None or row.struck <= told.now):
        return looked_at, f"this retry is strike {settings.strikes}: refused for {span(settings.strike_time)}"
    if _skipped_by_rule(told):
        return looked_at, "not looked at: the rule greylists this mail"
    if told.found.shared:
        return looked_at, SHARED
    if row is None or not (row.strikes or row.struck > told.now):
        return looked_at, "no strikes"
    if row.struck > told.now + settings.strike_time:
        return looked_at, f"refused until {local(row.struck)}: does not count, a clock was wrong when that was written"
    if row.struck > told.now:
        return looked_at, f"refused until {local(row.struck)}, {away(row.struck, told.now)}"
    return looked_at, f"{row.strikes} in a row, not refused"


# What is said of a client whose address need not be its own.
SHARED = "does not count: many clients may share such an address"


def _client(told: Explanation) -> tuple[str, str]:
    settings = told.settings
    looked_at = f"client {told.envelope.client or '-'}, client_passes = {settings.client_passes}"
    if told.found is None:
        return looked_at, ""
    row = told.found.client
    if not settings.client_passes:
        return looked_at, "off"
    if _skipped_by_rule(told):
        return looked_at, "not looked at: the rule greylists this mail"
    if told.found.shared:
        return looked_at, SHARED
    if row is None or not row.passes:
        return looked_at, "has never passed"
    known = "known" if policy.is_known(row, settings, told.now) else "not known"
    return looked_at, f"{known}: {_times(row.passes)} passed, last {away(row.last, told.now)}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _phase(told: Explanation) -> str:
    return policy.phase(told.found.triplet if told.found else None, _terms(told), told.now)


def _known(told: Explanation) -> tuple[str, str]:
    looked_at = f"the triplet, lifetime {span(told.settings.lifetime)}"
    if told.found is None:
        return looked_at, ""
    row = told.found.triplet
    if row is None or row.passed is None:
        return looked_at, "has not passed"
    over = ": its lifetime is over" if _phase(told) == policy.OVER else ""
    return looked_at, f"passed {away(row.passed, told.now)}, last used {away(row.last, told.now)}{over}"


def _retry(told: Explanation) -> tuple[str, str]:
    terms = _terms(told)
    looked_at = f"the triplet, delay {span(terms.delay)}, retry window {span(terms.retry_window)}"
    if told.found is None:
        return looked_at, ""
    row, phase = told.found.triplet, _phase(told)
    if row is None:
        return looked_at, "never seen: this is the first attempt"
    if row.passed is not None:
        return looked_at, "counts as new" if phase == policy.OVER else "waits no more"
    first = f"first attempt {away(min(row.first, told.now), told.now)}"
    before = f", {_times(row.early)} early before" if row.early else ""
    words = {
        policy.EARLY: f"the delay is not over{before}",
        policy.DUE: "the delay is over",
        policy.OVER: "the retry window is over, counts as new",
    }
    return looked_at, f"{first}: {words[phase]}"


def _expected(told: Explanation) -> tuple[str, str]:
    looked_at = "mail that somebody expects"
    if told.found is None:
        return looked_at, ""
    expected = told.found.expected
    return looked_at, f"expected by {expected.pattern}" if expected else "nobody expects it"


def _message(told: Explanation) -> tuple[str, str]:
    looked_at = "whether the first recipient of the same message passed (qmail-spp, policy)"
    if told.found is None:
        return looked_at, ""
    if told.envelope.first or not told.envelope.message:
        return looked_at, "taken for the first recipient"
    return looked_at, "it did" if told.verdict.reason == "message" else "it does not count, or did not"


def _pool(told: Explanation) -> tuple[str, str]:
    needed = told.settings.pool_networks
    looked_at = f"sender and recipient from other networks, pool_networks = {needed}"
    if not needed:
        return looked_at, "off"
    waiting = told.waiting
    if waiting is None:
        return looked_at, ""
    if not waiting.others or waiting.oldest is None:
        return looked_at, "waits from no other network"
    networks = "network" if waiting.others == 1 else "networks"
    since = away(min(waiting.oldest, told.now), told.now)
    # This triplet's own row may be one of those that were counted.
    least = "at least " if waiting.others >= POOL_MOST - 1 else ""
    line = f"waits from {least}{waiting.others} other {networks}, since {since}"
    if waiting.others < needed or told.verdict.reason == "pool":
        return looked_at, line
    if told.triplet is not None and policy.is_own_domain(told.triplet):
        return looked_at, f"{line}; a sender of the recipient's own domain is no pool"
    if waiting.gap is not None and waiting.gap < policy.POOL_GAP:
        return looked_at, f"{line}; two within {span(waiting.gap)}: several senders"
    if waiting.newest is not None and told.now - waiting.newest < policy.POOL_GAP:
        return looked_at, f"{line}; the last a moment ago: several senders"
    return looked_at, line


def _crowded(told: Explanation) -> tuple[str, str]:
    limit = told.settings.network_limit
    network = told.triplet.network if told.triplet else "its network"
    looked_at = f"waiting triplets of {network}, network_limit = {limit}"
    if not limit:
        return looked_at, "off"
    if told.waiting is None:
        return looked_at, ""
    return looked_at, f"{told.waiting.crowd} wait" if told.waiting.crowd < limit else f"{limit} or more wait: crowded"


def _full(told: Explanation) -> tuple[str, str]:
    limit = told.settings.pending_limit
    looked_at = f"waiting triplets, pending_limit = {limit}"
    if not limit:
        return looked_at, "off"
    if told.waiting is None:
        return looked_at, ""
    return looked_at, f"about {told.waiting.total} wait: {'not full' if told.waiting.total < limit else 'full'}"


_TELL: dict[str, Callable[[Explanation], tuple[str, str]]] = {
    "incomplete": _incomplete,
    "exempt": _exempt,
    "rule": _rule,
    "strikes": _strikes,
    "client": _client,
    "known": _known,
    "retry": _retry,
    "expected": _expected,
    "message": _message,
    "pool": _pool,
    "crowded": _crowded,
    "full": _full,
}


def observing(told: Explanation) -> str:
    """What observe mode says of this mail, in words; of an envelope without a client nothing."""
    settings, asked = told.settings, told.triplet
    if asked is None:
        return ""
    if settings.mode == "observe":
        return "mode = observe"
    domain = show(asked.recipient.rpartition(b"@")[2])
    if domain in settings.observe_domains:
        return f"observe_domains has {domain}"
    share = policy.share(asked.network)
    if share < settings.observe_percent:
        return f"observe_percent = {settings.observe_percent}, and {asked.network} is in share {share}"
    return ""


# --- what would change it -----------------------------------------------------------------------------------------------


def command(*words: str) -> str:
    """A command line of greycheck for a shell; what looks like an option comes after ``--``."""
    verb, *arguments = words
    guard = ["--"] if any(argument.startswith("-") for argument in arguments) else []
    return " ".join(["greycheck", verb, *guard, *(shlex.quote(argument) for argument in arguments)])


def _of_triplet(told: Explanation) -> tuple[str, str, str]:
    return told.envelope.client or "", _written(told.envelope.sender), _written(told.envelope.recipient)


def _written(address: bytes) -> str:
    """ADDRESS as a command takes it: without a domain in brackets."""
    return show(address) if b"@" in address else f"<{show(address)}>"


def _forget_triplet(told: Explanation, effect: str) -> Remedy:
    return Remedy(command("forget", *_of_triplet(told)), effect)


def _for_incomplete(told: Explanation) -> list[Remedy]:
    if told.envelope.hook == protocol.NAME:
        return [Remedy("client_address in each request", "the mail server then tells who its client is", setting=True)]
    return [Remedy("run qmail-smtpd under tcpserver", "the hook then hands over a client address", setting=True)]


def _for_exempt(told: Explanation) -> list[Remedy]:
    by = told.verdict.detail.removeprefix("by=")
    if by == "null_sender":
        return [Remedy("null_sender = greylist", "the null sender is checked too", setting=True)]
    return [Remedy(f"{by} out of this client's line in tcprules", "the client is checked", setting=True)]


def _remove_rule(rule: RuleRow) -> list[Remedy]:
    return [Remedy(command("rules", "remove", rule.pattern), "the next rule that matches decides, or what comes after")]


def _for_rule(told: Explanation) -> list[Remedy]:
    rule = _deciding(told)
    assert rule is not None
    return _remove_rule(rule)


def _for_strikes(told: Explanation) -> list[Remedy]:
    return [
        Remedy(command("forget", str(told.envelope.client)), "its strikes are forgotten, and its passes"),
        _allow(told),
        Remedy("strikes = 0", "no client is refused for its strikes", setting=True),
    ]


def _allow(told: Explanation) -> Remedy:
    return Remedy(command("allow", str(told.envelope.client)), "all mail of this client passes")


def _reject(told: Explanation) -> Remedy:
    return Remedy(command("reject", str(told.envelope.client)), "all mail of this client is refused for good")


def _for_client(told: Explanation) -> list[Remedy]:
    return [
        Remedy(command("forget", str(told.envelope.client)), "the client is not known any more: the triplet decides"),
        _reject(told),
    ]


def _for_passed(told: Explanation) -> list[Remedy]:
    rule = _deciding(told)
    more = _remove_rule(rule) if rule else [_reject(told)]
    return [_forget_triplet(told, "the next attempt is the first"), *more]


def _for_deferred(told: Explanation) -> list[Remedy]:
    rule = _deciding(told)
    remedies = [*(_remove_rule(rule) if rule else [_allow(told)]), *_expect(told)]
    if rule is None or rule.delay is None:
        remedies.append(Remedy(f"delay, now {span(told.settings.delay)}", "a shorter one, for all mail", setting=True))
    return remedies


def _expect(told: Explanation) -> list[Remedy]:
    """How to expect this mail; no way where its recipient is no whole address."""
    assert told.triplet is not None
    recipient, domain = show(told.triplet.recipient), show(told.triplet.sender.rpartition(b"@")[2])
    try:
        patterns.expectation(recipient, domain or None)
    except ValueError:
        return []
    words = command("expect", recipient) + (f" --from {shlex.quote(domain)}" if domain else "")
    return [Remedy(words, "the next mail of this kind passes at once")]


def _for_expected(told: Explanation) -> list[Remedy]:
    assert told.found is not None
    assert told.found.expected is not None
    return _remove_rule(told.found.expected)


def _for_message(told: Explanation) -> list[Remedy]:
    return [
        Remedy(command("greylist", f"to:{show(told.envelope.recipient)}"), "this recipient always waits"),
        _reject(told),
    ]


def _for_pool(told: Explanation) -> list[Remedy]:
    return [Remedy("pool_networks = 0", "retries from other networks do not count", setting=True), _reject(told)]


def _for_crowded(told: Explanation) -> list[Remedy]:
    return [
        *_for_deferred(told),
        Remedy("greycheck list pending", "what waits from there; each passes at its retry"),
        Remedy(f"network_limit, now {told.settings.network_limit}", "a higher one, or 0 for any number", setting=True),
    ]


def _for_full(told: Explanation) -> list[Remedy]:
    return [
        Remedy("greycheck expire", "triplets whose time is over do not count any more"),
        Remedy(f"pending_limit, now {told.settings.pending_limit}", "a higher one, or 0 for any number", setting=True),
    ]


_REMEDIES: dict[str, Callable[[Explanation], list[Remedy]]] = {
    "incomplete": _for_incomplete,
    "exempt": _for_exempt,
    "rule": _for_rule,
    "strikes": _for_strikes,
    "client": _for_client,
    "known": _for_passed,
    "retry": _for_passed,
    "new": _for_deferred,
    "early": _for_deferred,
    "expected": _for_expected,
    "message": _for_message,
    "pool": _for_pool,
    "crowded": _for_crowded,
    "full": _for_full,
}
