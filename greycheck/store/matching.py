"""Which keys of rules and expectations a store is asked for, and which rows of them count."""

from greycheck import rule_keys
from greycheck.policy import RuleRow
from greycheck.store.base import Asked, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class RuleKeys:
    """The keys of all rules and of all expectations that match what is ASKED.

    Each list begins with the key that counts first. Which pairs there may be is known once the
    marks of their recipients were found (``greycheck.rule_keys``).
    """

    __slots__ = ("_asked", "_expectations", "_marks", "_pairs", "_rules")

    def __init__(self, asked: Asked) -> None:
        sender, written, recipient = (
            asked.triplet.sender,
            asked.triplet.written,
            asked.triplet.recipient,
        )
        self._asked = asked
        self._rules = [
            digest(key) for key in rule_keys.keys(asked.envelope, sender, recipient, written)
        ]
        self._marks = {
            digest(rule_keys.mark_key(value)): value
            for value in rule_keys.address_values(recipient)
        }
        expectations = rule_keys.expectation_keys(written, recipient)
        self._expectations = [
            digest(key) for key in (rule_keys.release_key(*asked.shown), *expectations)
        ]
        self._pairs: list[bytes] = []

    def padded(self, length: int) -> list[bytes]:
        """Returns all of them but pairs, filled up to LENGTH with a key that no rule has."""
        return _padded([*self._rules, *self._marks, *self._expectations], length)

    def of_pairs(self, rows: "Sequence[tuple[Any, ...]]", length: int) -> list[list[bytes]]:
        """Returns the keys of the pairs whose recipients have a mark among ROWS, most often none.

        They are in lists of LENGTH, as one statement takes them.
        """
        found = {row[0] for row in rows}
        marked = [value for mark, value in self._marks.items() if mark in found]
        if not marked:
            return []
        triplet = self._asked.triplet
        first = rule_keys.first_keys(self._asked.envelope, triplet.sender, triplet.written)
        self._pairs = [digest(rule_keys.pair_key(key, value)) for value in marked for key in first]
        return [
            _padded(self._pairs[start : start + length], length)
            for start in range(0, len(self._pairs), length)
        ]

    def pick(
        self, rows: "Iterable[tuple[bytes, str, str, str, int | None, int | None]]", now: int
    ) -> tuple[list[RuleRow], RuleRow | None]:
        """Returns the valid ones of ROWS at NOW, the deciding one first; and the expectation.

        ROWS have those of pairs too, if ``of_pairs`` named any.
        """
        matching = {
            key: RuleRow(key, kind, pattern, action, delay)
            for key, kind, pattern, action, delay, expires in rows
            if expires is None or expires > now
        }
        expected = next((matching[key] for key in self._expectations if key in matching), None)
        ordered = self._pairs + self._rules
        return [matching[key] for key in ordered if key in matching], expected


def _padded(keys: list[bytes], length: int) -> list[bytes]:
    return keys + [b""] * (length - len(keys))
