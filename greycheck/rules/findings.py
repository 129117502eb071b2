"""Finds rules that are wrong, or that have no effect because of others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from greycheck import rule_keys
from greycheck.rules import patterns
from greycheck.rules.patterns import Pattern
from greycheck.rules.rule import Rule, stamp
from greycheck.settings import Settings, duration_text
from greycheck.store.base import digest

# Mail that is delayed this long, in seconds, comes back to its sender: programs give up after 4 or
# 5 days (RFC 5321 section 4.5.4.1).
LONGEST_DELAY = 4 * 86400


@dataclass(frozen=True)
class Finding:
    """A fault of RULE: its kind in one word (WHAT), and a TEXT with the cause and what to do.

    WHAT is ``expired``, ``unmatchable``, ``unverified``, ``redundant``, ``undecided`` (the rule
    never decides) or ``delay``.
    """

    rule: Rule
    what: str
    text: str


def check_rules(every: Sequence[Rule], settings: Settings, now: int) -> list[Finding]:
    """Returns the faults of EVERY rule of a store under SETTINGS, at NOW.

    Expectations are skipped: they end by themselves.
    """
    findings = []
    valid: list[tuple[Rule, Pattern]] = []
    for rule in every:
        if rule.kind == rule_keys.EXPECT:
            continue
        if not rule.counts(now):
            findings.append(
                Finding(rule, "expired", f"expired at {stamp(rule.expires_at or 0)}: remove it")
            )
            continue
        try:
            valid.append((rule, _pattern_of(rule)))
        except ValueError as error:
            findings.append(Finding(rule, "unmatchable", f"matches nothing: {error}: remove it"))
    for rule, _ in valid:
        findings += _by_settings(rule, settings)
    effective = [(rule, pattern) for rule, pattern in valid if _is_effective(rule, settings)]
    return findings + _redundant(effective, settings) + _undecided(effective)


def _pattern_of(rule: Rule) -> Pattern:
    pattern = patterns.parse(rule.pattern)
    if digest(pattern.key) != rule.match_key:
        raise ValueError("its key is not its pattern's")
    return pattern


def _is_effective(rule: Rule, settings: Settings) -> bool:
    """True if greycheck.policy.deciding_rule takes RULE into account."""
    return rule.kind != "name" or rule.action != rule_keys.ALLOW or settings.verified_names == "yes"


def _by_settings(rule: Rule, settings: Settings) -> list[Finding]:
    if not _is_effective(rule, settings):
        return [
            Finding(
                rule,
                "unverified",
                "allows nothing: verified_names is no, as anybody can write a name into his"
                " reverse DNS;"
                " run tcpserver with -p and set verified_names = yes, or allow the address",
            )
        ]
    if rule.delay is None:
        return []
    if rule.delay >= LONGEST_DELAY:
        return [
            Finding(
                rule,
                "delay",
                f"delay {duration_text(rule.delay)}: senders give up before a retry could pass",
            )
        ]
    if rule.delay >= settings.retry_window:
        window = duration_text(settings.retry_window + rule.delay)
        return [
            Finding(
                rule,
                "delay",
                f"delay {duration_text(rule.delay)} is not shorter than retry_window"
                f" {duration_text(settings.retry_window)}:"
                f" for such mail the window is {window}; a shorter delay would do, or a longer"
                " retry_window",
            )
        ]
    return []


def _same_effect(one: Rule, other: Rule, settings: Settings) -> bool:
    delays = {settings.delay if rule.delay is None else rule.delay for rule in (one, other)}
    return one.action == other.action and (one.action != rule_keys.GREYLIST or len(delays) == 1)


def _redundant(effective: Sequence[tuple[Rule, Pattern]], settings: Settings) -> list[Finding]:
    """Returns a finding for each rule that has no effect.

    Without it, the next broader rule would decide the same.
    """
    by_key = {pattern.key: rule for rule, pattern in effective}
    firsts = _first_parts(effective)
    findings = []
    for rule, pattern in effective:
        keys = _following_pairs(pattern, firsts) if pattern.parts else patterns.broader(pattern)
        following = next((by_key[key] for key in keys if key in by_key), None)
        if following and _same_effect(rule, following, settings) and following.outlasts(rule):
            findings.append(
                Finding(
                    rule,
                    "redundant",
                    f"{line_of(following)} has the same effect: remove one of them",
                )
            )
    return findings


def _first_parts(effective: Sequence[tuple[Rule, Pattern]]) -> dict[bytes, list[Pattern]]:
    """Returns the first parts of all pairs, by their recipients' values."""
    firsts: dict[bytes, list[Pattern]] = {}
    for _, pattern in effective:
        if pattern.parts:
            first, to = pattern.parts
            firsts.setdefault(to.value, []).append(first)
    return firsts


def _following_pairs(pattern: Pattern, firsts: dict[bytes, list[Pattern]]) -> Iterator[bytes]:
    """Yields the keys of broader pairs, as far as nothing else can decide between them and PATTERN.

    FIRSTS are the first parts of all pairs by recipient. With another recipient, other pairs may
    match some of the same mail, and come before.
    """
    assert pattern.parts
    first, to = pattern.parts
    chain = [first.key, *patterns.broader(first)]
    yield from (rule_keys.pair_key(key, to.value) for key in chain[1:])
    recipients = [to.value, *(key.partition(b"\0")[2] for key in patterns.broader(to))]
    for before, recipient in pairwise(recipients):
        others = [*firsts.get(before, ()), *firsts.get(recipient, ())]
        if any(other.key not in chain for other in others):
            return
        yield from (rule_keys.pair_key(key, recipient) for key in chain)


def _undecided(effective: Sequence[tuple[Rule, Pattern]]) -> list[Finding]:
    """Returns a finding for each rule that never decides.

    Rules before it match all that it matches. Those of one part stand together, and so do pairs
    with one recipient.
    """
    together: dict[bytes | None, list[tuple[Rule, Pattern]]] = {None: []}
    for rule, pattern in effective:
        recipient = pattern.parts[1].value if pattern.parts else None
        first = pattern.parts[0] if pattern.parts else pattern
        together.setdefault(recipient, []).append((rule, first))
    findings: list[Finding] = []
    covered: set[bytes] = set()
    for recipient, some in together.items():
        found, everybody = _undecided_among(some, "" if recipient is None else " and recipient")
        findings += found
        if everybody and recipient is not None:
            covered.add(recipient)
    for rule, pattern in together[None]:
        keys = (pattern.key, *patterns.broader(pattern))
        if rule.kind == "recipient" and any(key.partition(b"\0")[2] in covered for key in keys):
            findings.append(
                Finding(
                    rule,
                    "undecided",
                    "never decides: every address has a rule over a pair, which comes before",
                )
            )
    return findings


def _undecided_among(some: Sequence[tuple[Rule, Pattern]], more: str) -> tuple[list[Finding], bool]:
    """Returns the findings, and whether every address has a rule by network that does not end.

    MORE is what a rule is also by.
    """
    networks = {
        patterns.network_parts(pattern.value)
        for rule, pattern in some
        if rule.kind == "network" and rule.expires_at is None
    }
    halves = _covered_by_halves(networks)
    everybody = {(bits, 0, 0) for bits in rule_keys.MOST_KEYS} <= networks | halves
    findings = []
    for rule, pattern in some:
        if rule.kind == "network" and patterns.network_parts(pattern.value) in halves:
            findings.append(
                Finding(
                    rule,
                    "undecided",
                    "never decides: smaller networks that make up all of it have rules",
                )
            )
        elif rule.kind in ("name", "helo") and everybody:
            findings.append(
                Finding(
                    rule,
                    "undecided",
                    f"never decides: every address has a rule by network{more}, which comes before",
                )
            )
    return findings, everybody


def _covered_by_halves(networks: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """Returns the networks of which both halves are in NETWORKS, or are covered so themselves."""
    made_up: set[tuple[int, int, int]] = set()
    by_prefix: dict[tuple[int, int], set[int]] = {}
    for bits, prefix, value in networks:
        by_prefix.setdefault((bits, prefix), set()).add(value)
    for bits in rule_keys.MOST_KEYS:
        for prefix in range(bits, 0, -1):
            values = by_prefix.get((bits, prefix), set())
            pairs = {value >> 1 for value in values if value ^ 1 in values}
            by_prefix.setdefault((bits, prefix - 1), set()).update(pairs)
            made_up |= {(bits, prefix - 1, value) for value in pairs}
    return made_up


def line_of(rule: Rule) -> str:
    """Returns action and pattern of RULE, for use in a sentence."""
    return f"{rule.action} {rule.pattern}"


def remarks(rule: Rule, every: Sequence[Rule], settings: Settings, now: int) -> list[str]:
    """Returns remarks for an operator who has just stored RULE.

    They are the faults of RULE, and how it overlaps with EVERY rule of its kind and with pairs, at
    NOW.
    """
    findings = [
        f"{line_of(rule)}: {finding.text}"
        for finding in check_rules(every, settings, now)
        if finding.rule == rule
    ]
    pattern = _pattern_of(rule)
    same: list[Rule] = []
    other: list[Rule] = []
    for one in every:
        if (
            one.kind == rule_keys.EXPECT
            or one == rule
            or not one.counts(now)
            or not _is_effective(one, settings)
        ):
            continue
        if is_under(one, pattern):
            (same if _same_effect(one, rule, settings) else other).append(one)
    if same:
        findings.append(f"{line_of(rule)} has the same effect as {_listed(same)}")
    if other:
        findings.append(f"{_listed(other)} {_decide(other)} before {line_of(rule)}: more specific")
    return findings


def is_under(rule: Rule, pattern: Pattern) -> bool:
    """True if PATTERN matches all that RULE matches, and decides after it."""
    try:
        return patterns.is_within(_pattern_of(rule), pattern)
    except ValueError:
        return False


def _decide(some: Sequence[Rule]) -> str:
    return "decides" if len(some) == 1 else "decide"


def _listed(some: Sequence[Rule]) -> str:
    named = ", ".join(line_of(rule) for rule in some[:3])
    return named + (f" and {len(some) - 3} more" if len(some) > 3 else "")


def rule_before_expectation(recipient: Pattern, every: Sequence[Rule], now: int) -> Rule | None:
    """Returns the rule that decides on mail to RECIPIENT before expectations are looked up.

    It is taken from EVERY rule, as of NOW. Returns None if there is no such rule.
    """
    by_key = {rule.match_key: rule for rule in every if rule.counts(now)}
    keys = (recipient.key, *patterns.broader(recipient))
    first = next((by_key[digest(key)] for key in keys if digest(key) in by_key), None)
    return None if first is None or first.action == rule_keys.GREYLIST else first
