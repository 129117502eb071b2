"""Remembers messages: their later recipients pass where an earlier one has passed."""

from collections import OrderedDict

from greycheck.check import message_passed
from greycheck.envelope import Envelope
from greycheck.hooks import delegation as protocol
from greycheck.unknown import MESSAGE_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from greycheck.policy import Decision
    from greycheck.store.base import Store

    K = TypeVar("K")


# How many messages are remembered.
MESSAGES = 4096


class Messages:
    """The last messages, by the attribute ``instance``: it is the same for all recipients of one.

    Clients of the policy protocol send it, so their messages are kept in memory here. Those of
    hooks are kept in the store (``check.remember``).
    """

    def __init__(self) -> None:
        # Messages whose later recipients pass, and since when (seconds since 1970).
        self._open: OrderedDict[tuple[bytes, str | None, bytes], int] = OrderedDict()
        # Messages that have their header.
        self._headed: OrderedDict[bytes, int] = OrderedDict()

    def identify(self, envelope: Envelope, instance: bytes) -> None:
        """Sets the message of ENVELOPE to INSTANCE, and whether this is its first recipient."""
        envelope.message = instance
        envelope.first = (instance, envelope.client, envelope.sender) not in self._open

    def first_passed(self, store: "Store", decision: "Decision") -> bool:
        """Returns true if an earlier recipient of its message passed at most MESSAGE_TIME ago."""
        envelope = decision.envelope
        if envelope.hook != protocol.NAME:
            return message_passed(store, decision)
        since = self._open.get((envelope.message, envelope.client, envelope.sender), 0)
        return decision.now - since <= MESSAGE_TIME

    def open(self, envelope: Envelope, now: int) -> None:
        """Lets later recipients of the message of ENVELOPE pass from NOW on."""
        _remember(self._open, (envelope.message, envelope.client, envelope.sender), now)

    def wants_header(self, instance: bytes) -> bool:
        """Returns true if the message INSTANCE has no header yet; from now on it has."""
        if not instance or instance in self._headed:
            return False
        _remember(self._headed, instance, 0)
        return True


def _remember(messages: "OrderedDict[K, int]", message: "K", now: int) -> None:
    if len(messages) >= MESSAGES:
        messages.popitem(last=False)
    messages[message] = now
