"""All rules in memory, for the resident: the same answer as the table's, without a key being digested for each that might be there.

A rule's pattern gives its key (``greycheck.patterns``); where the digest is not the row's, or the pattern cannot be read, which no
program of ours writes, the index says nothing and the table is asked.
"""

from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_pton

from greycheck import normalise, patterns, rules
from greycheck.policy import RuleRow
from greycheck.store.lean import Asked, digest

Row = tuple[bytes, str, str, str, int | None, int | None]


# What a rule matches: a network by its address bits, prefix length and leading bits, all else as its key has it.
Value = bytes | tuple[int, int, int]


class Unreadable(Exception):
    """A rule that only the table can find."""


class _Kind:
    """The rules of one kind, by the value that they match; and what of an envelope's values any of them could be."""

    __slots__ = ("hidden", "labels", "prefixes", "suspects", "users", "values")

    def __init__(self) -> None:
        self.values: dict[Value, tuple[RuleRow, int | None]] = {}
        # All values, and the last labels of names. Most mail has neither: no rule matches it.
        self.suspects: set[bytes] = set()
        # How many labels the domains have whose hosts are matched too, most first.
        self.labels: list[int] = []
        # Whether there is a user at any domain; whether an address may match without having any of the suspects.
        self.users = self.hidden = False
        # Of each bit length the prefix lengths of networks, longest first.
        self.prefixes: dict[int, list[int]] = {normalise.IPV4_BITS: [], normalise.IPV6_BITS: []}

    def add(self, value: bytes, rule: RuleRow, expires: int | None) -> None:
        """Adds a RULE that matches VALUE and counts until it EXPIRES."""
        if rule.kind == "network":
            bits, prefix, network = patterns.network_parts(value)
            self.values[bits, prefix, network] = rule, expires
            _insert(self.prefixes[bits], prefix)
            return
        self.values[value] = rule, expires
        self.suspects.add(value)
        if value.startswith(b".") and value.count(b".") <= rules.DOMAINS:
            _insert(self.labels, value.count(b"."))
        if value.endswith(b"@"):
            self.users = self.hidden = True
        if value and (b"@" not in value or rule.kind in ("name", "helo")):
            self.suspects.add(value[value.rfind(b".") + 1 :])
            self.hidden = self.hidden or b"." not in value[1:]

    def may_match(self, address: bytes) -> bool:
        """Whether any value may match ADDRESS."""
        return address[address.rfind(b".") + 1 :] in self.suspects or address in self.suspects or self.hidden

    def of_sender(self, spelt: list[bytes]) -> list[bytes]:
        """Those of ``rules.sender_values`` that may be there."""
        return self.of_address(spelt[0]) if len(spelt) == 1 else rules.sender_values(spelt)

    def of_address(self, address: bytes) -> list[bytes]:
        """Those of ``rules.address_values`` that may be there."""
        local, at, domain = address.rpartition(b"@")
        if not at:
            return rules.address_values(address)
        found = [address, local + b"@"] if self.users else [address]
        return found + self.of_name(domain) if domain else found

    def of_name(self, name: bytes) -> list[bytes]:
        """Those of ``rules.name_values`` that may be there."""
        found = [name]
        if not name or name[name.rfind(b".") + 1 :] not in self.suspects:
            return found
        for number in self.labels:
            parts = name.rsplit(b".", number)
            if len(parts) > number:
                found.append(name[len(parts[0]) :])
            elif len(parts) == number:
                found.append(b"." + name)
        return found


def _insert(lengths: list[int], length: int) -> None:
    if length not in lengths:
        lengths.append(length)
        lengths.sort(reverse=True)


class RuleIndex:
    """The rules of ROWS, as ``statements.matching`` gives them. Raises Unreadable."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._kinds = {kind: _Kind() for kind in (*rules.KINDS, rules.EXPECT)}
        for key, kind, pattern, action, delay, expires in rows:
            value = _value(key, kind, pattern)
            self._kinds[kind].add(value, RuleRow(key, kind, pattern, action, delay), expires)

    def find(self, asked: Asked, now: int) -> tuple[list[RuleRow], RuleRow | None]:
        """The rules that match what is ASKED and are not over at NOW, the deciding one first; and the expectation, or None."""
        envelope, triplet, kinds = asked.envelope, asked.triplet, self._kinds
        found: list[RuleRow] = []
        if (kind := kinds["recipient"]).may_match(triplet.recipient):
            _take(found, kind, kind.of_address(triplet.recipient), now)
        if (kind := kinds["sender"]).values:
            spelt = rules.spellings(triplet.written, triplet.sender)
            if any(map(kind.may_match, spelt)):
                _take(found, kind, kind.of_sender(spelt), now)
        if (kind := kinds["network"]).values:
            bits, value = _bits(triplet.client)
            _take(found, kind, [(bits, length, value >> (bits - length)) for length in kind.prefixes[bits]], now)
        for kind, name in (kinds["name"], envelope.name), (kinds["helo"], envelope.helo):
            host = normalise.host_name(name)
            if host[host.rfind(b".") + 1 :] in kind.suspects and 0 < len(name) <= rules.NAME:
                _take(found, kind, kind.of_name(host), now)
        expected: list[RuleRow] = []
        if (kind := kinds[rules.EXPECT]).values:
            keys = rules.expectation_keys(triplet.written, triplet.recipient)
            _take(expected, kind, [key.partition(b"\0")[2] for key in keys], now)
        return found, expected[0] if expected else None


def _bits(address: str) -> tuple[int, int]:
    """``normalise.address_bits`` of a canonical ADDRESS, in a fifth of its time."""
    family, bits = (AF_INET6, normalise.IPV6_BITS) if ":" in address else (AF_INET, normalise.IPV4_BITS)
    return bits, int.from_bytes(inet_pton(family, address))


def _take(found: list[RuleRow], kind: _Kind, values: Iterable[Value], now: int) -> None:
    """Adds to what was FOUND the rules of KIND that match one of VALUES and count at NOW."""
    there = kind.values
    for value in values:
        rule = there.get(value)
        if rule is not None and (rule[1] is None or rule[1] > now):
            found.append(rule[0])


def _value(key: bytes, kind: str, pattern: str) -> bytes:
    """The value that a rule of KIND with this PATTERN and KEY matches."""
    try:
        if kind == rules.EXPECT:
            recipient, _, sender = pattern.partition(" ")
            parsed = patterns.expectation(recipient, sender or None)
        else:
            parsed = patterns.parse(pattern)
    except ValueError:
        raise Unreadable(pattern) from None
    if parsed.kind != kind or digest(parsed.key) != key:
        raise Unreadable(pattern)
    return parsed.value
