"""The signs that a mail which waits is legitimate: one table of names, weights and meanings.

What looks legitimate is what has signs: their weights are added up, and the sum ranks it.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """A sign that was found: its NAME in WEIGHTS, and what it is in WORDS."""

    name: str
    words: str

    @property
    def weight(self) -> int:
        """How much it counts; negative where it speaks against."""
        return WEIGHTS[self.name][0]


# Weight and meaning of each sign, the weightiest first. docs/digest.rst says why.
WEIGHTS = {
    "correspondent": (5, "the recipient has written to this sender"),
    "pair": (4, "mail of this sender has passed to this recipient before"),
    "client": (3, "other mail of this client has passed, and made it known"),
    "authorised": (2, "the sender's domain lets this client send, by its SPF"),
    "domain": (2, "the sender's domain has passed before, and is known"),
    "network": (2, "another client of the same network is known"),
    "provider": (2, "networks of a provider that is let in are near, or it is in one"),
    "rule": (2, "a rule that allows is near, or matches"),
    "retried": (1, "it was tried again, too early"),
    "name": (1, "the client's name is verified: forward-confirmed reverse DNS"),
    "forged": (-3, "the sender's domain names other networks in its SPF"),
}


def score(signs: Iterable[Sign]) -> int:
    """Returns the sum of the weights of SIGNS."""
    return sum(sign.weight for sign in signs)
