"""Puts each step of a decision into words: what it looked at, and what it found."""

from collections.abc import Callable

from greycheck import policy, unknown
from greycheck.explain.explanation import (
    DECIDES,
    LINES,
    PASSES,
    TELL_MESSAGES,
    UNCHANGED,
    UNREACHED,
    Explanation,
    Step,
)
from greycheck.log import show
from greycheck.policy import RuleRow, Timings
from greycheck.rules.patterns import is_release
from greycheck.store.waiting import POOL_MOST
from greycheck.times import away, local, span
from greycheck.unknown import Identity


def steps_of(explanation: Explanation) -> list[Step]:
    """Returns all steps of EXPLANATION's decision in order, those after the deciding one too."""
    steps = []
    outcome = PASSES
    for name in LINES:
        decides = name == explanation.line
        looked_at, found = _IN_WORDS[name](explanation)
        steps.append(Step(name, looked_at, found, DECIDES if decides else outcome))
        if decides:
            outcome = UNCHANGED if explanation.decision.reason in ("new", "early") else UNREACHED
    return steps


def _incomplete(explanation: Explanation) -> tuple[str, str]:
    return (
        "the client's address",
        f"missing: {explanation.envelope.missing}" if explanation.envelope.missing else "complete",
    )


def _exempt(explanation: Explanation) -> tuple[str, str]:
    by = (
        explanation.verdict.detail.removeprefix("by=")
        if explanation.verdict.reason == "exempt"
        else ""
    )
    return (
        "RELAYCLIENT, SMTPAUTHUSER, GREYCHECK=off, null_sender",
        f"exempt by {by}" if by else "nothing exempts it",
    )


def _rule(explanation: Explanation) -> tuple[str, str]:
    looked_at = "rules over pairs; by recipient, sender, network, name, HELO"
    if explanation.rows is None:
        return looked_at, ""
    deciding = explanation.decision.rule
    lines = [_rule_in_words(rule, deciding) for rule in explanation.rows.rules]
    return looked_at, "\n".join(lines) or "no rule matches"


def _rule_in_words(rule: RuleRow, deciding: RuleRow | None) -> str:
    delay = f", delay {span(rule.delay)}" if rule.delay is not None else ""
    line = f"{rule.action} {rule.pattern}{delay}"
    if rule is deciding:
        return f"{line}: the first that counts"
    if rule.kind == "name" and rule.action == "allow" and deciding is None:
        return f"{line}: does not count, verified_names = no"
    return f"{line}: does not decide"


def _skipped_by_rule(explanation: Explanation) -> bool:
    return (rule := explanation.decision.rule) is not None and rule.action == "greylist"


def _strikes(explanation: Explanation) -> tuple[str, str]:
    settings = explanation.settings
    looked_at = f"client {explanation.envelope.client or '-'}, strikes = {settings.strikes}"
    if explanation.rows is None:
        return looked_at, ""
    if not settings.strikes:
        return looked_at, "off"
    row = explanation.rows.client
    if explanation.verdict.reason == "strikes" and (row is None or row.struck <= explanation.now):
        return (
            looked_at,
            f"this retry is strike {settings.strikes}: refused for {span(settings.strike_time)}",
        )
    if _skipped_by_rule(explanation):
        return looked_at, "not looked at: the rule greylists this mail"
    if explanation.decision.shared:
        return looked_at, SHARED
    if row is None or not (row.strikes or row.struck > explanation.now):
        return looked_at, "no strikes"
    if row.struck > explanation.now + settings.strike_time:
        return (
            looked_at,
            f"refused until {local(row.struck)}: does not count, a clock was wrong when that was"
            " written",
        )
    if row.struck > explanation.now:
        return looked_at, f"refused until {local(row.struck)}, {away(row.struck, explanation.now)}"
    return looked_at, f"{row.strikes} in a row, not refused"


# Said of a client whose address may be shared with others.
SHARED = "does not count: many clients may share such an address"


def _client(explanation: Explanation) -> tuple[str, str]:
    settings = explanation.settings
    looked_at = (
        f"client {explanation.envelope.client or '-'}, client_passes = {settings.client_passes}"
    )
    if explanation.rows is None:
        return looked_at, ""
    row = explanation.rows.client
    if not settings.client_passes:
        return looked_at, "off"
    if _skipped_by_rule(explanation):
        return looked_at, "not looked at: the rule greylists this mail"
    if explanation.decision.shared:
        return looked_at, SHARED
    if row is None or not row.passes:
        return looked_at, "has never passed"
    known = "known" if policy.is_known(row, settings, explanation.now) else "not known"
    return (
        looked_at,
        f"{known}: {_times(row.passes)} passed, last {away(row.last, explanation.now)}",
    )


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _known(explanation: Explanation) -> tuple[str, str]:
    looked_at = f"the triplet, lifetime {span(explanation.settings.lifetime)}"
    if explanation.rows is None:
        return looked_at, ""
    row = explanation.decision.row
    if row is None or row.passed is None:
        return looked_at, "has not passed"
    over = ": its lifetime is over" if explanation.decision.phase == policy.OVER else ""
    return (
        looked_at,
        f"passed {away(row.passed, explanation.now)}, last used"
        f" {away(row.last, explanation.now)}{over}",
    )


def _retry(explanation: Explanation) -> tuple[str, str]:
    rows, decision = explanation.rows, explanation.decision
    timings = Timings(explanation.settings) if rows is None else decision.timings
    delay, window = span(timings.delay), span(timings.retry_window)
    looked_at = f"the triplet, delay {delay}, retry window {window}"
    if rows is None:
        return looked_at, ""
    row, phase = explanation.decision.row, explanation.decision.phase
    if row is None:
        return looked_at, "never seen: this is the first attempt"
    if row.passed is not None:
        return looked_at, "counts as new" if phase == policy.OVER else "has passed already"
    first = f"first attempt {away(min(row.first, explanation.now), explanation.now)}"
    before = f", {_times(row.early)} early before" if row.early else ""
    words = {
        policy.EARLY: f"the delay is not over{before}",
        policy.DUE: "the delay is over",
        policy.OVER: "the retry window is over, counts as new",
    }
    return looked_at, f"{first}: {words[phase]}"


def _expected(explanation: Explanation) -> tuple[str, str]:
    looked_at = "mail that somebody expects, or that was released"
    if explanation.rows is None:
        return looked_at, ""
    expected = explanation.rows.expected
    if expected is None:
        return looked_at, "nobody expects it"
    how = "released as" if is_release(expected.pattern) else "expected by"
    return looked_at, f"{how} {expected.pattern}"


def _message(explanation: Explanation) -> tuple[str, str]:
    looked_at = f"whether the first recipient of the same message passed ({TELL_MESSAGES})"
    if explanation.rows is None:
        return looked_at, ""
    if explanation.envelope.first or not explanation.envelope.message:
        return looked_at, "this is the first recipient, or the only one known"
    return (
        looked_at,
        "it did" if explanation.verdict.reason == "message" else "it does not count, or did not",
    )


def _of_identity(
    explanation: Explanation, looked_at: str, is_off: bool, say: Callable[[Identity], str]
) -> tuple[str, str]:
    """Returns what a step found that looks at an identity, which SAY puts into words."""
    if is_off:
        return looked_at, "off"
    if explanation.rows is None:
        return looked_at, ""
    if _skipped_by_rule(explanation):
        return looked_at, "not looked at: the rule greylists this mail"
    identity = explanation.identity
    return looked_at, "" if identity is None else say(identity)


def _provider(explanation: Explanation) -> tuple[str, str]:
    return _of_identity(
        explanation,
        "networks of providers that are let in",
        explanation.settings.identity == "no",
        _provider_found,
    )


def _provider_found(identity: Identity) -> str:
    names = identity.provider.replace(",", ", ")
    return f"in a network of {names}" if names else "in none of them"


def _correspondent(explanation: Explanation) -> tuple[str, str]:
    kept = explanation.settings.learn_outbound
    looked_at = f"whom the recipient has written to, learn_outbound = {span(kept) if kept else 0}"

    def found(identity: Identity) -> str:
        if identity.written is None:
            return "not to this sender"
        line = f"to this sender, last {away(identity.written, explanation.now)}"
        if identity.state == "found" and not explanation.decision.domain:
            return f"{line}; does not count: not a client of the sender's domain"
        return line

    return _of_identity(explanation, looked_at, not kept, found)


# Said of a client that may send for its sender's domain, by what says so.
_AUTHORISED_BY = {
    "spf": "by SPF",
    "client": "by SPF, asked for this address",
    "pool": "as a pool that has passed",
    "SPFRESULT": "by SPFRESULT of the mail server",
}

# Said of one that may not, by the state of the domain's SPF.
_STATES = {
    "": "its SPF is not known yet (greycheck resolve)",
    "found": "its SPF does not name this client",
    "none": "it has no SPF",
    "wide": "its SPF is too wide to mean one sender (greycheck show domain)",
    "error": "its SPF is wrong (greycheck show domain)",
    "failed": "DNS does not tell its SPF (greycheck show domain)",
}


def _domain(explanation: Explanation) -> tuple[str, str]:
    settings, decision = explanation.settings, explanation.decision
    sender = b"" if explanation.triplet is None else explanation.triplet.sender
    name = show(policy.domain_of(sender)) if sender else "-"
    looked_at = f"the sender's domain {name}, domain_passes = {settings.domain_passes}"
    if settings.identity == "no":
        return looked_at, "off: identity = no"
    identity = explanation.identity
    if identity is None:
        return looked_at, ""
    if not sender:
        return looked_at, "the null sender has none"
    asked = "" if identity.answered is None else f", asked {away(identity.answered, decision.now)}"
    if not decision.domain:
        if decision.shared:
            return looked_at, SHARED
        said = _STATES.get(identity.state, identity.state)
        return looked_at, f"{said}{asked if identity.state else ''}"
    line = f"this client may send for it, {_AUTHORISED_BY[decision.authorised_by]}{asked}"
    row = identity.row
    if row is None or not row.passes:
        passed = "not known: it has never passed"
    else:
        known = "known" if unknown.is_known_domain(row, settings, decision.now) else "not known"
        passed = f"{known}: {_times(row.passes)} passed, last {away(row.last, decision.now)}"
    if settings.identity == "observe":
        return looked_at, f"{line}; {passed}; only observed"
    if _skipped_by_rule(explanation):
        return looked_at, f"{line}; does not count: the rule greylists this mail"
    return looked_at, f"{line}; {passed}"


def _moved(explanation: Explanation) -> tuple[str, str]:
    looked_at = "sender and recipient from other clients of the domain"
    pending, decision = explanation.pending, explanation.decision
    if explanation.settings.identity == "no":
        return looked_at, "off: identity = no"
    if pending is None:
        return looked_at, ""
    if not decision.domain:
        return looked_at, "not looked at: not known as a client of the sender's domain"
    if pending.of_domain is None:
        return looked_at, "waits from none"
    first = f"first attempt {away(min(pending.of_domain, explanation.now), explanation.now)}"
    is_over = explanation.now - pending.of_domain >= decision.timings.delay
    return looked_at, f"{first}: the delay is {'over' if is_over else 'not over'}"


def _pool(explanation: Explanation) -> tuple[str, str]:
    needed = explanation.settings.pool_networks
    looked_at = f"sender and recipient from other networks, pool_networks = {needed}"
    if not needed:
        return looked_at, "off"
    pending = explanation.pending
    if pending is None:
        return looked_at, ""
    if not pending.others or pending.oldest is None:
        return looked_at, "waits from no other network"
    networks = "network" if pending.others == 1 else "networks"
    since = away(min(pending.oldest, explanation.now), explanation.now)
    # This triplet's own row may be one of those that were counted.
    least = "at least " if pending.others >= POOL_MOST - 1 else ""
    line = f"waits from {least}{pending.others} other {networks}, since {since}"
    if pending.others < needed or explanation.verdict.reason == "pool":
        return looked_at, line
    needed = unknown.rounds_needed(pending, explanation.settings)
    if explanation.triplet is not None and unknown.is_own_domain(explanation.triplet):
        return looked_at, f"{line}; does not count: sender and recipient are of one domain"
    if pending.rounds < needed:
        within = span(unknown.POOL_GAP)
        return (
            looked_at,
            f"{line}; some within {within} of each other, so {needed} rounds are needed:"
            f" there are {pending.rounds}",
        )
    if pending.newest is not None and explanation.now - pending.newest < unknown.POOL_GAP:
        return looked_at, f"{line}; the last a moment ago: not one sender that retries"
    return looked_at, line


def _crowded(explanation: Explanation) -> tuple[str, str]:
    limit = explanation.settings.network_limit
    network = explanation.triplet.network if explanation.triplet else "its network"
    looked_at = f"waiting triplets of {network}, network_limit = {limit}"
    if not limit:
        return looked_at, "off"
    if explanation.pending is None:
        return looked_at, ""
    return (
        looked_at,
        f"{explanation.pending.crowd} wait"
        if explanation.pending.crowd < limit
        else f"{limit} or more wait: crowded",
    )


def _full(explanation: Explanation) -> tuple[str, str]:
    limit = explanation.settings.pending_limit
    looked_at = f"waiting triplets, pending_limit = {limit}"
    if not limit:
        return looked_at, "off"
    if explanation.pending is None:
        return looked_at, ""
    return (
        looked_at,
        f"about {explanation.pending.total} wait:"
        f" {'not full' if explanation.pending.total < limit else 'full'}",
    )


_IN_WORDS: dict[str, Callable[[Explanation], tuple[str, str]]] = {
    "incomplete": _incomplete,
    "exempt": _exempt,
    "rule": _rule,
    "strikes": _strikes,
    "client": _client,
    "known": _known,
    "retry": _retry,
    "expected": _expected,
    "message": _message,
    "provider": _provider,
    "correspondent": _correspondent,
    "domain": _domain,
    "moved": _moved,
    "pool": _pool,
    "crowded": _crowded,
    "full": _full,
}


def observing(explanation: Explanation) -> str:
    """Returns in words the setting by which this mail is only observed.

    Empty if it is not observed, or the envelope has no client.
    """
    triplet = explanation.triplet
    by = "" if triplet is None else explanation.decision.observing()
    if by == "observe_percent":
        assert triplet is not None
        share = policy.share(triplet.network)
        return (
            f"{by} = {explanation.settings.observe_percent}, and {triplet.network} is in share"
            f" {share}"
        )
    if by == "observe_domains":
        assert triplet is not None
        return f"{by} has {show(policy.domain_of(triplet.recipient))}"
    return f"{by} = observe" if by else ""
