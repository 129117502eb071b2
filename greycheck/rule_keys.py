"""Operators' rules: the key of what a rule matches, and the keys that an envelope has.

A rule matches one thing about an envelope, and is found by one key: ``recipient``, ``sender``,
``network``, ``name`` or ``helo`` with its value. An envelope has a bounded number of keys (its
address under every prefix length, the domains of its names), so one indexed query finds all rules
that match, however many there are. ``keys`` returns them in the order in which they decide: the
first one that has a rule is the most specific. That order is

    recipient, sender, network, name, HELO

(the recipient's wish counts before the sender, and that before the client's network), and within
each: the whole address, then ``user@``, then the domain, then the domains above it; the longest
prefix first; the whole name before the domains above it. A sender is matched first as written, then
as folded; its domain as written.

A rule over a pair matches a recipient and one thing more; its key is that of both (``pair_key``).
There are as many keys of pairs as one part has times those of the other, too many to look up at
every mail. So each recipient of a pair has a mark beside it: a row with a key of its own
(``mark_key``) and the action PAIRS, which matches nothing. Marks are looked up with all other keys,
and pairs only for those recipients that have one. Any pair decides before any rule of one part:
first by recipient, then by the other part, each in the order above.

An expectation is in the same table, with a key of its own: the recipient, with or without the
sender's domain. So is what was released: the recipient and the whole sender, as the table has them.

These are pure functions of bytes. The forked child runs ``keys`` at every check if the store has
rules.

Known limit: an address without a domain (``postmaster``) and a domain of that name have the same
key.
"""

from greycheck import normalise
from greycheck.envelope import Envelope

KINDS = ("recipient", "sender", "network", "name", "helo")
EXPECT = "expect"

ALLOW = "allow"
REJECT = "reject"
GREYLIST = "greylist"
DEFER = "defer"

# The action of a mark. A program that does not know of marks never looks up their keys.
PAIRS = "pairs"

_PAIR = "pair"

# How many domains above a name are looked up. Of a deeper name, those nearest the root are.
DOMAINS = 6

# The longest name of a host (RFC 1035), in bytes. Longer ones are not looked up.
NAME = 255

# The largest number of keys of an envelope by its client's address bits: of all that can stand
# first in a pair, and of all that are looked up at once, marks and expectations among them.
_OF_RECIPIENT, _OF_NAMES, _OF_EXPECTATIONS = 3 + DOMAINS, 2 * (1 + DOMAINS), 2 + DOMAINS
_OF_SENDER = _OF_RECIPIENT + 2 * 2
MOST_FIRST_KEYS = {
    bits: _OF_SENDER + bits + 1 + _OF_NAMES for bits in (normalise.IPV4_BITS, normalise.IPV6_BITS)
}
MOST_KEYS = {
    bits: 2 * _OF_RECIPIENT + most + _OF_EXPECTATIONS for bits, most in MOST_FIRST_KEYS.items()
}


def key(kind: str, value: bytes) -> bytes:
    """Returns the key of KIND and VALUE. No value has a NUL byte (docs/hooks.rst#addresses)."""
    return kind.encode() + b"\0" + value


def keys(
    envelope: Envelope, sender: bytes, recipient: bytes, written: bytes | None = None
) -> list[bytes]:
    """Returns the keys of ENVELOPE, which has a client, the most specific first.

    SENDER, RECIPIENT and the sender as WRITTEN (None: as folded) are those of its triplet. Keys of
    pairs are not among them.
    """
    ordered = [key("recipient", value) for value in address_values(recipient)]
    return ordered + first_keys(envelope, sender, written)


def first_keys(envelope: Envelope, sender: bytes, written: bytes | None = None) -> list[bytes]:
    """Returns those of ``keys`` that can be the first part of a pair: all but the recipient's."""
    assert envelope.client is not None
    ordered = [
        key("sender", value)
        for value in sender_values(spellings(sender if written is None else written, sender))
    ]
    ordered += [key("network", value) for value in network_values(envelope.client)]
    if 0 < len(envelope.name) <= NAME:
        ordered += [key("name", value) for value in name_values(normalise.host_name(envelope.name))]
    if 0 < len(envelope.helo) <= NAME:
        ordered += [key("helo", value) for value in name_values(normalise.host_name(envelope.helo))]
    return ordered


def pair_key(first: bytes, recipient: bytes) -> bytes:
    """Returns the key of a pair: FIRST, the key of its first part, with a RECIPIENT's value."""
    return key(_PAIR, first + b"\0" + recipient)


def mark_key(recipient: bytes) -> bytes:
    """Returns the key of the mark that says that there are pairs with RECIPIENT, a value."""
    return key(PAIRS, recipient)


def expectation_keys(sender: bytes, recipient: bytes) -> list[bytes]:
    """Returns the keys by which mail from SENDER to RECIPIENT may be expected.

    Those with a domain are first.
    """
    domain = sender.rpartition(b"@")[2]
    return [expectation_key(recipient, value) for value in [*name_values(domain)[1:], b""]]


def expectation_key(recipient: bytes, domain: bytes) -> bytes:
    """Returns the key of expected mail to RECIPIENT from ``.domain`` and all domains under it.

    Without DOMAIN it is the key of mail from any sender.
    """
    return key(EXPECT, recipient + b"\0" + domain)


def release_key(sender: str, recipient: str) -> bytes:
    """Returns the key of released mail: SENDER, folded, and RECIPIENT as the table has them.

    It begins with a NUL, so that no expectation has the same.
    """
    return key(EXPECT, f"\0{recipient}\0{sender}".encode("utf-8", "replace"))


def address_values(address: bytes) -> list[bytes]:
    """Returns ADDRESS, ``user@``, its domain, and ``.domain`` for it and those above it.

    For the null sender returns only that.
    """
    local, at, domain = address.rpartition(b"@")
    if not at:
        return [address, address + b"@"] if address else [b""]
    return [address, local + b"@", *(name_values(domain) if domain else ())]


def spellings(written: bytes, sender: bytes) -> list[bytes]:
    """Returns the spellings by which a sender is matched, each once.

    They are as WRITTEN, folded (SENDER), and folded as in an earlier release.
    """
    if written == sender and normalise.PLUS not in written:
        return [sender]
    from greycheck import earlier

    return list(dict.fromkeys((written, sender, earlier.fold_sender(written))))


def sender_values(spelt: list[bytes]) -> list[bytes]:
    """Returns the ``address_values`` of a sender that has the spellings SPELT.

    Its domain is that of the first one.
    """
    values = address_values(spelt[0])
    if len(spelt) == 1:
        return values
    users = dict.fromkeys(address.rpartition(b"@")[0] + b"@" for address in spelt)
    return [*spelt, *users, *values[2:]]


def name_values(name: bytes) -> list[bytes]:
    """Returns NAME, and ``.domain`` for it and the domains above it, longest first."""
    if not name:
        return [name]
    labels = name.split(b".")
    highest = max(0, len(labels) - DOMAINS)
    return [name, *(b"." + b".".join(labels[index:]) for index in range(highest, len(labels)))]


def network_values(address: str) -> list[bytes]:
    """Returns the networks of a client ADDRESS, from the address alone to that of all addresses."""
    bits, value = normalise.address_bits(address)
    return [network_value(bits, value, prefix) for prefix in range(bits, -1, -1)]


def network_value(bits: int, value: int, prefix: int) -> bytes:
    """Returns the value of a network, for its key.

    It is the network with the first PREFIX bits of VALUE, an address of BITS bits.
    """
    return b"%d/%d:%x" % (bits, prefix, value >> (bits - prefix))
