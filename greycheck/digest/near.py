"""Finds operators' rules that allow what is near a mail that waits, and those that decide on it."""

from collections.abc import Iterable

from greycheck import normalise, rule_keys
from greycheck.envelope import Envelope, Triplet
from greycheck.policy import RuleRow, deciding_rule
from greycheck.rules import patterns
from greycheck.rules.index import RuleIndex, Unreadable
from greycheck.rules.rule import Rule
from greycheck.settings import Settings
from greycheck.store.base import Asked

# How many labels a domain has at least for its neighbours to be near.
LABELS = 2

# The first rule of a place by its pair's recipient, None for a rule that is over no pair: its
# number, and its text.
_Place = dict[bytes | None, tuple[int, str]]


class Near:
    """The rules of EVERY that count at NOW, by what is near them under SETTINGS."""

    def __init__(self, every: Iterable[Rule], settings: Settings, now: int) -> None:
        self._settings = settings
        self._now = now
        self._networks: dict[str, _Place] = {}
        # By the domain of their sender, and by each domain above that.
        self._at: dict[bytes, _Place] = {}
        self._below: dict[bytes, _Place] = {}
        self._index: RuleIndex | None = None
        valid = [rule for rule in every if rule.counts(now)]
        for number, rule in enumerate(valid):
            if rule.action == rule_keys.ALLOW and rule.kind in ("network", "sender"):
                self._add(number, rule)
        try:
            self._index = RuleIndex(
                (rule.match_key, rule.kind, rule.pattern, rule.action, rule.delay, rule.expires_at)
                for rule in valid
            )
        except Unreadable:
            self._index = None

    def _add(self, number: int, rule: Rule) -> None:
        try:
            pattern = patterns.parse(rule.pattern)
        except ValueError:
            return
        first, to = pattern, None
        if pattern.parts:
            first, to = pattern.parts[0], pattern.parts[1].value
        said = number, pattern.text
        if first.kind == "network":
            bits, prefix, value = patterns.network_parts(first.value)
            network = self._network(bits, value << (bits - prefix), prefix)
            if network:
                self._networks.setdefault(network, {}).setdefault(to, said)
            return
        domain = first.value.rpartition(b"@")[2].removeprefix(b".")
        self._at.setdefault(domain, {}).setdefault(to, said)
        for each in _and_above(domain)[1:]:
            self._below.setdefault(each, {}).setdefault(to, said)

    def _network(self, bits: int, value: int, prefix: int) -> str:
        """Returns the network of clients in which the narrower one of PREFIX is, else empty."""
        own = self._settings.ipv4_prefix
        if bits != normalise.IPV4_BITS:
            own = self._settings.ipv6_prefix
        return normalise.network(bits, value, own) if prefix >= own else ""

    def deciding(self, triplet: Triplet) -> RuleRow | None:
        """Returns the rule that decides on mail of TRIPLET; None where none does or nobody knows.

        What rules by name or by HELO say is not known: nobody has kept these.
        """
        if self._index is None:
            return None
        envelope = Envelope("", triplet.client, triplet.sender, triplet.recipient)
        return deciding_rule(
            self._index.find(Asked(envelope, triplet), self._now)[0], self._settings
        )

    def allowing(self, network: str, domain: bytes, recipient: bytes) -> str:
        """Returns a rule that allows what is near a client's NETWORK or a sender's DOMAIN.

        Near is what is in the same network; and the same domain, one above or one below. A rule
        over a pair is near only for its RECIPIENT. Empty where there is none.
        """
        places = [
            self._networks.get(network, {}),
            *(self._at.get(name, {}) for name in _and_above(domain)),
            self._below.get(domain, {}),
        ]
        recipients = (None, *rule_keys.address_values(recipient))
        # However many pairs a place has, only those of the recipient are looked at.
        for place in places:
            found = [place[to] for to in recipients if to in place]
            if found:
                return min(found)[1]
        return ""


def _and_above(domain: bytes) -> list[bytes]:
    """Returns DOMAIN and those above it, as far as they have LABELS labels."""
    labels = domain.split(b".")
    return [b".".join(labels[at:]) for at in range(len(labels) - LABELS + 1)]
