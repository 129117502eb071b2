"""What would change a verdict: commands, and settings."""

import shlex
from collections.abc import Callable

from greycheck.explain.explanation import Explanation, Remedy
from greycheck.hooks import delegation as protocol
from greycheck.log import show
from greycheck.policy import RuleRow, domain_of
from greycheck.rules import patterns
from greycheck.times import span


def command(*words: str) -> str:
    """Returns a greycheck command line for a shell. Arguments like options come after ``--``."""
    verb, *arguments = words
    guard = ["--"] if any(argument.startswith("-") for argument in arguments) else []
    return " ".join(["greycheck", verb, *guard, *(shlex.quote(argument) for argument in arguments)])


def _of_triplet(explanation: Explanation) -> tuple[str, str, str]:
    return (
        explanation.envelope.client or "",
        _written(explanation.envelope.sender),
        _written(explanation.envelope.recipient),
    )


def _written(address: bytes) -> str:
    """Returns ADDRESS as a command takes it: in brackets if it has no domain."""
    return show(address) if b"@" in address else f"<{show(address)}>"


def _forget_triplet(explanation: Explanation, effect: str) -> Remedy:
    return Remedy(command("forget", *_of_triplet(explanation)), effect)


def _for_incomplete(explanation: Explanation) -> list[Remedy]:
    if explanation.envelope.hook == protocol.NAME:
        return [
            Remedy(
                "client_address in each request",
                "the mail server then tells who its client is",
                setting=True,
            )
        ]
    return [
        Remedy(
            "run qmail-smtpd under tcpserver",
            "the hook then hands over a client address",
            setting=True,
        )
    ]


def _for_exempt(explanation: Explanation) -> list[Remedy]:
    by = explanation.verdict.detail.removeprefix("by=")
    if by == "null_sender":
        return [Remedy("null_sender = greylist", "the null sender is checked too", setting=True)]
    return [
        Remedy(f"{by} out of this client's line in tcprules", "the client is checked", setting=True)
    ]


def _remove_rule(rule: RuleRow) -> list[Remedy]:
    return [
        Remedy(
            command("rules", "remove", rule.pattern),
            "the next rule that matches decides, or what comes after",
        )
    ]


def _for_rule(explanation: Explanation) -> list[Remedy]:
    rule = explanation.decision.rule
    assert rule is not None
    return _remove_rule(rule)


def _for_strikes(explanation: Explanation) -> list[Remedy]:
    return [
        Remedy(
            command("forget", str(explanation.envelope.client)),
            "its strikes are forgotten, and its passes",
        ),
        _allow(explanation),
        Remedy("strikes = 0", "no client is refused for its strikes", setting=True),
    ]


def _allow(explanation: Explanation) -> Remedy:
    return Remedy(
        command("allow", str(explanation.envelope.client)), "all mail of this client passes"
    )


def _reject(explanation: Explanation) -> Remedy:
    return Remedy(
        command("reject", str(explanation.envelope.client)),
        "all mail of this client is refused for good",
    )


def _for_client(explanation: Explanation) -> list[Remedy]:
    return [
        Remedy(
            command("forget", str(explanation.envelope.client)),
            "the client is not known any more: the triplet decides",
        ),
        _reject(explanation),
    ]


def _for_passed(explanation: Explanation) -> list[Remedy]:
    rule = explanation.decision.rule
    more = _remove_rule(rule) if rule else [_reject(explanation)]
    return [_forget_triplet(explanation, "the next attempt is the first"), *more]


def _for_deferred(explanation: Explanation) -> list[Remedy]:
    rule = explanation.decision.rule
    remedies = [
        *(_remove_rule(rule) if rule else [_allow(explanation)]),
        *_release(explanation),
        *_expect(explanation),
        *_of_identity(explanation),
    ]
    if rule is None or rule.delay is None:
        remedies.append(
            Remedy(
                f"delay, now {span(explanation.settings.delay)}",
                "a shorter one, for all mail",
                setting=True,
            )
        )
    return remedies


def _release(explanation: Explanation) -> list[Remedy]:
    """Returns how to release this mail; nothing if it waits from no network yet."""
    pending = explanation.pending
    if explanation.decision.reason != "early" and not (pending and pending.others):
        return []
    words = command("release", *_of_triplet(explanation))
    return [Remedy(words, "its next attempt passes, from any network")]


def _of_identity(explanation: Explanation) -> list[Remedy]:
    """Returns what would make the sender's domain count; nothing if a rule greylists this mail."""
    decision, identity = explanation.decision, explanation.identity
    settings, sender = explanation.settings, decision.triplet.sender
    if decision.rule is not None or decision.shared or not sender:
        return []
    if settings.identity == "no":
        return [Remedy("identity = yes", "the networks of a domain count as one", setting=True)]
    domain = show(domain_of(sender))
    if identity is None or not _is_domain(domain):
        return []
    found = []
    if decision.by_identity:
        effect = f"this mail passes, reason {decision.by_identity}"
        found.append(Remedy("identity = yes", effect, setting=True))
    if not identity.state and not decision.domain:
        effect = "asks DNS who sends for that domain: then a retry from any of its networks passes"
        found.append(Remedy(command("resolve", domain), effect))
    if decision.domain and identity.state == "found" and not identity.provider:
        effect = "mail from that domain's networks passes at its first attempt"
        found.append(Remedy(command("providers", "add", domain), effect))
    return found


def _is_domain(text: str) -> bool:
    """Whether TEXT may be the name of a domain in DNS."""
    try:
        patterns.parse(f"from:{text}")
    except ValueError:
        return False
    return "." in text


def _expect(explanation: Explanation) -> list[Remedy]:
    """Returns how to expect this mail; nothing if its recipient is not a whole address."""
    assert explanation.triplet is not None
    recipient, domain = (
        show(explanation.triplet.recipient),
        show(explanation.triplet.sender.rpartition(b"@")[2]),
    )
    try:
        patterns.expectation(recipient, domain or None)
    except ValueError:
        return []
    words = command("expect", recipient) + (f" --from {shlex.quote(domain)}" if domain else "")
    return [Remedy(words, "the next mail of this kind passes at once")]


def _for_expected(explanation: Explanation) -> list[Remedy]:
    assert explanation.rows is not None
    assert explanation.rows.expected is not None
    return _remove_rule(explanation.rows.expected)


def _for_provider(explanation: Explanation) -> list[Remedy]:
    assert explanation.identity is not None
    names = explanation.identity.provider.split(",")
    return [
        Remedy(command("providers", "remove", *names), "its networks are not let in any more"),
        _reject(explanation),
    ]


def _for_correspondent(explanation: Explanation) -> list[Remedy]:
    return [
        Remedy("learn_outbound = 0", "whom our users write to does not count", setting=True),
        _reject(explanation),
    ]


def _for_domain(explanation: Explanation) -> list[Remedy]:
    domain = show(explanation.decision.domain)
    return [
        Remedy(
            command("forget", "domain", domain),
            "the domain is not known any more: its next mail waits",
        ),
        Remedy("domain_passes = 0", "no domain becomes known", setting=True),
        _reject(explanation),
    ]


def _for_message(explanation: Explanation) -> list[Remedy]:
    return [
        Remedy(
            command("greylist", f"to:{show(explanation.envelope.recipient)}"),
            "this recipient always waits",
        ),
        _reject(explanation),
    ]


def _for_pool(explanation: Explanation) -> list[Remedy]:
    return [
        Remedy("pool_networks = 0", "retries from other networks do not count", setting=True),
        _reject(explanation),
    ]


def _for_crowded(explanation: Explanation) -> list[Remedy]:
    return [
        *_for_deferred(explanation),
        Remedy("greycheck list pending", "what waits from there; each passes at its retry"),
        Remedy(
            f"network_limit, now {explanation.settings.network_limit}",
            "a higher one, or 0 for any number",
            setting=True,
        ),
    ]


def _for_full(explanation: Explanation) -> list[Remedy]:
    return [
        Remedy("greycheck expire", "triplets whose time is over do not count any more"),
        Remedy(
            f"pending_limit, now {explanation.settings.pending_limit}",
            "a higher one, or 0 for any number",
            setting=True,
        ),
    ]


REMEDIES: dict[str, Callable[[Explanation], list[Remedy]]] = {
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
    "provider": _for_provider,
    "correspondent": _for_correspondent,
    "domain": _for_domain,
    "message": _for_message,
    "pool": _for_pool,
    "crowded": _for_crowded,
    "full": _for_full,
}
