"""What each reason means, for operators. The manual, docs/decision.rst and ``explain`` read it.

The order is that of ``policy.STEPS``. A test fails for a step whose reason has no meaning here.
"""

from dataclasses import dataclass

from greycheck.explain.explanation import TELL_MESSAGES
from greycheck.policy import STEPS


@dataclass(frozen=True)
class Reason:
    """A reason: the VERDICT that has it, and its MEANING in one sentence."""

    verdict: str
    meaning: str


_MEANINGS = {
    "incomplete": Reason(
        "accept", "No usable client address, or not called by a hook; missing= says which variable."
    ),
    "exempt": Reason(
        "accept", "A relay or authenticated client, or checking is off for it; by= says why."
    ),
    "rule": Reason(
        "accept, defer or reject", "A rule of the operator matches; rule= is its pattern."
    ),
    "strikes": Reason("reject", "The client has retried too hastily, again and again."),
    "client": Reason("accept", "The client address has passed before."),
    "known": Reason("accept", "The triplet has passed before."),
    "retry": Reason(
        "accept",
        "A retry after the delay, from the same network or one of the same domain: from now on"
        " triplet, client and domain are known.",
    ),
    "expected": Reason("accept", "This mail was expected or released (greycheck expect, release)."),
    "provider": Reason(
        "accept",
        "The client is in a network of a provider that is let in (greycheck providers); provider="
        " is its name.",
    ),
    "correspondent": Reason(
        "accept", "The recipient has written to this sender before (learn_outbound)."
    ),
    "domain": Reason(
        "accept", "The client may send for the sender's domain, identity=, which has passed before."
    ),
    "message": Reason(
        "accept",
        f"A later recipient of a message whose first one passed by greylisting ({TELL_MESSAGES}).",
    ),
    "pool": Reason(
        "accept",
        "The same sender and recipient wait from enough other networks, the oldest longer than the"
        " delay.",
    ),
    "crowded": Reason(
        "defer",
        "network_limit or more triplets of this client's network wait; this one is not recorded.",
    ),
    "full": Reason(
        "accept", "More triplets wait than pending_limit allows; this one is not recorded."
    ),
    "new": Reason("defer", "The triplet was never seen, or its retry window or lifetime is over."),
    "early": Reason("defer", "A retry before the delay is over."),
    "error": Reason(
        "accept", "The check could not be made; error= says why. With on_error = defer: defer."
    ),
}

# All reasons, in the order of the steps. ``error`` has no step: the check itself failed.
REASONS = {name: _MEANINGS[name] for name in (*(step.reason for step in STEPS), "error")}
