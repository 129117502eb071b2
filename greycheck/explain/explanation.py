"""What an explanation holds: the decision, each step in words, and what would change it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from greycheck.envelope import Envelope, Triplet
from greycheck.hooks import delegation as protocol
from greycheck.hooks import every, records, smtpextfork
from greycheck.policy import STEPS, Change, Decision, Rows, Verdict
from greycheck.settings import Settings
from greycheck.unknown import Identity, Pending

if TYPE_CHECKING:
    from greycheck.hooks import Hook


HOOKS: dict[str, "Hook"] = {hook.NAME: hook for hook in every()}

# The names of all callers: the hooks, and the policy protocol.
ASKING = tuple(record.NAME for record in records())

# What mail servers call those that tell which recipients are of one message.
TELL_MESSAGES = ", ".join(record.TITLE for record in records() if record.TELLS_MESSAGES)

# Steps that have no line of their own, and the step whose line covers them.
TOLD_WITH = {"haste": "strikes", "new": "retry", "early": "retry"}

# The lines of an explanation, in the order of the decision.
LINES = [step.name for step in STEPS if step.name not in TOLD_WITH]

DECIDES = "decides"
PASSES = "goes on"
UNREACHED = "not reached"
UNCHANGED = "no change"


@dataclass(frozen=True)
class Step:
    """One step of the order: what it LOOKED_AT, what it FOUND, and its OUTCOME.

    OUTCOME is DECIDES, PASSES or UNREACHED; or UNCHANGED, if the step may override a deferral and
    did not.
    """

    name: str
    looked_at: str
    found: str
    outcome: str


@dataclass(frozen=True)
class Remedy:
    """What an operator can do about a verdict, and its EFFECT.

    COMMAND is a command to run, or, if SETTING is true, a setting to change.
    """

    command: str
    effect: str
    setting: bool = False


@dataclass
class Explanation:
    """A DECISION that was made, its VERDICT, and how it came about.

    ``passes`` are the first and the last second at which a retry of a deferred mail passes; for a
    refusal for strikes the second at which it ends; else empty. All are in seconds since 1970.
    """

    decision: Decision
    verdict: Verdict
    steps: list[Step] = field(default_factory=list)
    passes: tuple[int, ...] = ()
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def envelope(self) -> Envelope:
        """The envelope that was decided on."""
        return self.decision.envelope

    @property
    def settings(self) -> Settings:
        """The settings of the decision."""
        return self.decision.settings

    @property
    def now(self) -> int:
        """The time of the decision, in seconds since 1970."""
        return self.decision.now

    @property
    def triplet(self) -> Triplet | None:
        """The triplet of the envelope; None if the envelope has no client."""
        return None if self.envelope.client is None else self.decision.triplet

    @property
    def rows(self) -> Rows | None:
        """The store's rows of the envelope; None if the store was not asked."""
        return self.decision.rows

    @property
    def pending(self) -> Pending | None:
        """What else is pending; None if that was not asked."""
        return self.decision.pending

    @property
    def identity(self) -> Identity | None:
        """What is known of the client and its sender's domain; None if that was not asked."""
        return self.decision.identity

    @property
    def changes(self) -> list[Change]:
        """The changes to rows that a check would have written."""
        return self.decision.changes

    @property
    def line(self) -> str:
        """The one of LINES that covers the deciding step."""
        step = self.decision.step
        return TOLD_WITH.get(step, step)

    @property
    def decided(self) -> str:
        """The action of the deciding step, before observe mode is applied."""
        return self.decision.action

    @property
    def code(self) -> int:
        """The exit code of the child's answer to its hook.

        For the policy protocol, which has none, that of SMTPEXTFORK.
        """
        return HOOKS.get(self.envelope.hook, smtpextfork).ANSWERS[self.verdict.action]

    @property
    def answer(self) -> str:
        """The action of the policy protocol's answer; empty for a hook."""
        if self.envelope.hook != protocol.NAME:
            return ""
        return protocol.action(self.verdict, self.settings)
