"""All rules in memory, for the resident.

It gives the same answer as the table of rules, without a digest of every key that could match. The
value that a rule matches is read from its pattern (``greycheck.rules.patterns``). If a pattern
cannot be read, or its digest is not the row's key, the index cannot be built (``Unreadable``), and
the table is asked instead. Greycheck never writes such a rule.
"""

from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_pton

from greycheck import normalise, rule_keys
from greycheck.policy import RuleRow
from greycheck.rules import patterns
from greycheck.rules.patterns import Pattern
from greycheck.store.base import Asked, digest

Row = tuple[bytes, str, str, str, int | None, int | None]


# What a rule matches: a network as its address bits, prefix length and leading bits; anything else
# as in its key.
Value = bytes | tuple[int, int, int]


class Unreadable(Exception):
    """A rule that only a look-up in the table can find."""


class _Kind:
    """The rules of one kind, by the value that they match.

    It also knows which values of an envelope could match at all, so that most are never looked up.
    """

    __slots__ = ("hidden", "labels", "prefixes", "suspects", "users", "values")

    def __init__(self) -> None:
        self.values: dict[Value, tuple[RuleRow, int | None]] = {}
        # All values, and the last labels of names. Most mail has none of them: no rule matches it.
        self.suspects: set[bytes] = set()
        # The numbers of labels of those domains whose hosts match too, largest first.
        self.labels: list[int] = []
        # ``users``: there is a rule for a user at any domain. ``hidden``: an address may match
        # although it holds none of ``suspects``.
        self.users = self.hidden = False
        # The prefix lengths of the networks of each address length, longest first.
        self.prefixes: dict[int, list[int]] = {normalise.IPV4_BITS: [], normalise.IPV6_BITS: []}

    def add(self, kind: str, value: bytes, rule: RuleRow, expires: int | None) -> None:
        """Adds RULE, which matches VALUE of KIND and is valid until EXPIRES (a time, or None)."""
        if kind == "network":
            bits, prefix, network = patterns.network_parts(value)
            self.values[bits, prefix, network] = rule, expires
            _insert(self.prefixes[bits], prefix)
            return
        self.values[value] = rule, expires
        self.suspects.add(value)
        if value.startswith(b".") and value.count(b".") <= rule_keys.DOMAINS:
            _insert(self.labels, value.count(b"."))
        if value.endswith(b"@"):
            self.users = self.hidden = True
        if value and (b"@" not in value or kind in ("name", "helo")):
            self.suspects.add(value[value.rfind(b".") + 1 :])
            self.hidden = self.hidden or b"." not in value[1:]

    def may_match(self, address: bytes) -> bool:
        """False if no rule of this kind matches ADDRESS."""
        return (
            address[address.rfind(b".") + 1 :] in self.suspects
            or address in self.suspects
            or self.hidden
        )

    def of_sender(self, spelt: list[bytes]) -> list[bytes]:
        """Returns those of ``rule_keys.sender_values`` for which there may be a rule."""
        return self.of_address(spelt[0]) if len(spelt) == 1 else rule_keys.sender_values(spelt)

    def of_address(self, address: bytes) -> list[bytes]:
        """Returns those of ``rule_keys.address_values`` for which there may be a rule."""
        local, at, domain = address.rpartition(b"@")
        if not at:
            return rule_keys.address_values(address)
        found = [address, local + b"@"] if self.users else [address]
        return found + self.of_name(domain) if domain else found

    def of_name(self, name: bytes) -> list[bytes]:
        """Returns those of ``rule_keys.name_values`` for which there may be a rule."""
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
    """An index of ROWS, as ``statements.matching`` returns them. Raises Unreadable."""

    def __init__(self, rows: Iterable[Row]) -> None:
        # Only those kinds of which there are rules.
        self._kinds: dict[str, _Kind] = {}
        # Which recipients have rules over pairs, and the first parts of those, by recipient.
        self._recipients = _Kind()
        self._pairs: dict[bytes, dict[str, _Kind]] = {}
        for key, kind, pattern, action, delay, expires in rows:
            if action == rule_keys.PAIRS:  # a mark for those who look into the table
                continue
            parsed = _parsed(key, kind, pattern)
            rule = RuleRow(key, kind, pattern, action, delay)
            if not parsed.parts:
                self._kinds.setdefault(kind, _Kind()).add(kind, parsed.value, rule, expires)
                continue
            first, to = parsed.parts
            if to.value not in self._pairs:
                self._recipients.add("recipient", to.value, rule, None)
                self._pairs[to.value] = {}
            of_recipient = self._pairs[to.value].setdefault(kind, _Kind())
            of_recipient.add(kind, first.value, rule, expires)

    def find(self, asked: Asked, now: int) -> tuple[list[RuleRow], RuleRow | None]:
        """Returns the rules that match ASKED at NOW, the deciding one first.

        Also returns the expectation, or None.
        """
        triplet, kinds = asked.triplet, self._kinds
        found: list[RuleRow] = []
        if self._pairs and self._recipients.may_match(triplet.recipient):
            for value in dict.fromkeys(self._recipients.of_address(triplet.recipient)):
                if value in self._pairs:
                    _take_first(found, self._pairs[value], asked, now)
        kind = kinds.get("recipient")
        if kind is not None and kind.may_match(triplet.recipient):
            _take(found, kind, kind.of_address(triplet.recipient), now)
        _take_first(found, kinds, asked, now)
        expected: list[RuleRow] = []
        kind = kinds.get(rule_keys.EXPECT)
        if kind is not None:
            keys = [
                rule_keys.release_key(*asked.shown),
                *rule_keys.expectation_keys(triplet.written, triplet.recipient),
            ]
            _take(expected, kind, [key.partition(b"\0")[2] for key in keys], now)
        return found, expected[0] if expected else None


def _take_first(found: list[RuleRow], kinds: dict[str, _Kind], asked: Asked, now: int) -> None:
    """Appends to FOUND those rules of KINDS that match ASKED at NOW by anything but recipient."""
    envelope, triplet = asked.envelope, asked.triplet
    kind = kinds.get("sender")
    if kind is not None:
        spelt = rule_keys.spellings(triplet.written, triplet.sender)
        for address in spelt:
            if kind.may_match(address):
                _take(found, kind, kind.of_sender(spelt), now)
                break
    kind = kinds.get("network")
    if kind is not None:
        bits, value = _bits(triplet.client)
        there = kind.values
        for length in kind.prefixes[bits]:
            network = bits, length, value >> (bits - length)
            if network in there:
                _take(found, kind, (network,), now)
    kind = kinds.get("name")
    if kind is not None:
        _take_name(found, kind, envelope.name, now)
    kind = kinds.get("helo")
    if kind is not None:
        _take_name(found, kind, envelope.helo, now)


def _take_name(found: list[RuleRow], kind: _Kind, name: bytes, now: int) -> None:
    """Appends to FOUND the rules of KIND that match NAME and are valid at NOW."""
    if 0 < len(name) <= rule_keys.NAME:
        host = normalise.host_name(name)
        if host[host.rfind(b".") + 1 :] in kind.suspects:
            _take(found, kind, kind.of_name(host), now)


def _bits(address: str) -> tuple[int, int]:
    """Returns ``normalise.address_bits`` of a canonical ADDRESS, in a fifth of its time."""
    family, bits = (
        (AF_INET6, normalise.IPV6_BITS) if ":" in address else (AF_INET, normalise.IPV4_BITS)
    )
    return bits, int.from_bytes(inet_pton(family, address))


def _take(found: list[RuleRow], kind: _Kind, values: Iterable[Value], now: int) -> None:
    """Appends to FOUND the rules of KIND that match one of VALUES and are valid at NOW."""
    there = kind.values
    for value in values:
        rule = there.get(value)
        if rule is not None and (rule[1] is None or rule[1] > now):
            found.append(rule[0])


def _parsed(key: bytes, kind: str, pattern: str) -> Pattern:
    """Returns PATTERN of a rule of KIND with KEY. Raises Unreadable."""
    try:
        parsed = (patterns.expected if kind == rule_keys.EXPECT else patterns.parse)(pattern)
    except ValueError:
        raise Unreadable(pattern) from None
    if parsed.kind != kind or digest(parsed.key) != key:
        raise Unreadable(pattern)
    return parsed
