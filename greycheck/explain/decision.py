"""Makes the decision that a check would make, with all that led to it, and writes nothing.

It uses the check's own ``policy.Decision`` with the rows of the store. Nothing is decided a second
time: the steps only put into words what the decision used.

Interface: ``envelope_of`` makes the envelope as a hook would, ``explain`` explains it,
``address_bytes`` reads an address as an operator writes it.

Diagnostics: ``StoreError`` if the store cannot be asked.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from greycheck import log
from greycheck.check import decide
from greycheck.envelope import EXEMPTING, Envelope
from greycheck.explain.explanation import HOOKS, Explanation
from greycheck.explain.remedies import REMEDIES
from greycheck.explain.steps import steps_of
from greycheck.hooks import calling
from greycheck.hooks import delegation as protocol
from greycheck.policy import Decision, Rows
from greycheck.settings import Settings
from greycheck.store.base import Asked
from greycheck.store.causes import NoSchema
from greycheck.unknown import Identity, Pending

if TYPE_CHECKING:
    from greycheck.store.base import Store


class EmptyStore:
    """Stands for a store that does not exist yet: it has no rows, and nothing is pending."""

    def lookup(self, _asked: Asked, _now: int) -> Rows:
        """Returns no rows."""
        return Rows()

    def waiting(self, _asked: Asked, _since: int, _now: int, _settings: Settings) -> Pending:
        """Returns that nothing is pending."""
        return Pending()

    def identity(self, _asked: Asked, _now: int, _settings: Settings) -> Identity:
        """Returns that nothing is known."""
        return Identity()

    def networks(self, _asked: Asked, _since: int, _settings: Settings) -> Sequence[str]:
        """Returns no networks."""
        return ()


def envelope_of(
    hook: str,
    client: bytes,
    sender: bytes,
    recipient: bytes,
    environ: dict[bytes, bytes],
    helo: bytes = b"",
    name: bytes = b"",
) -> Envelope:
    """Returns the envelope that HOOK, one of ASKING, would hand over.

    CLIENT is the client's address and NAME its name in DNS; empty if not known. Variables of
    ENVIRON may exempt the envelope, as for a child.
    """
    given = {
        variable.encode(): environ[variable.encode()]
        for variable in EXEMPTING
        if variable.encode() in environ
    }
    if hook == protocol.NAME:
        given |= {
            b"sender": sender,
            b"recipient": recipient,
            b"helo_name": helo,
            b"client_name": name,
        }
        return protocol.envelope(given | ({b"client_address": client} if client else {}))
    parts = {"client": client, "sender": sender, "recipient": recipient, "helo": helo}
    if name:
        parts["name"] = name
    argv, variables = calling.call(HOOKS[hook], parts)
    return HOOKS[hook].envelope(argv, given | variables)


def address_bytes(text: str) -> bytes:
    r"""Returns the bytes of a mail address as an operator writes it.

    TEXT is plain, in ``<>``, or has bytes escaped as the log shows them (``\x20``).
    """
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    return log.unshown(text.encode("utf-8", "surrogateescape"))


def explain(store: "Store | None", envelope: Envelope, settings: Settings, now: int) -> Explanation:
    """Returns what a check of ENVELOPE at NOW would decide with STORE, and why. Writes nothing.

    STORE is None if it does not exist yet. Raises StoreError.
    """
    decision = Decision(envelope, settings, now)
    if decision.advance():
        try:
            _decide(store or EmptyStore(), decision)
        except NoSchema:
            decision = decision.anew()
            _decide(EmptyStore(), decision)
    explanation = Explanation(decision, decision.verdict())
    explanation.steps = steps_of(explanation)
    explanation.passes = _passes(explanation)
    explanation.remedies = REMEDIES[decision.reason](explanation)
    return explanation


def _decide(store: "Store | EmptyStore", decision: Decision) -> None:
    # ``decide`` calls no other methods of a store.
    decide(store, Asked(decision.envelope, decision.triplet), decision)  # type: ignore[arg-type]


def _passes(explanation: Explanation) -> tuple[int, ...]:
    """Returns ``Explanation.passes``."""
    decision, now = explanation.decision, explanation.now
    if decision.rows is None:
        return ()
    timings = decision.timings
    if decision.reason == "new":
        return now + timings.delay, now + timings.retry_window
    if decision.reason == "early" and decision.row is not None:
        first = min(decision.row.first, now)
        return first + timings.delay, first + timings.retry_window
    if decision.reason == "strikes":
        client = decision.rows.client
        struck = client.struck if client else 0
        return (struck if struck > now else now + explanation.settings.strike_time,)
    return ()
