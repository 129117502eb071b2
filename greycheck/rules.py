"""Operators' rules: what a rule matches, written as one exact key, and the keys that an envelope has.

A rule matches one thing about an envelope, and is found by one key: ``recipient``, ``sender``, ``network``, ``name`` or ``helo`` with
its value. An envelope has a bounded number of keys (its address under every prefix length, its names' domains), so one indexed query
finds all rules that match, however many there are. ``keys`` gives them in the order in which they decide: the first that has a rule
is the most specific one. That order is

    recipient, sender, network, name, HELO

(what the recipient wants counts before what the sender says and where the client stands), and within each: the whole address, then
``user@``, then the domain, then the domains above it; the longest prefix first; the whole name before the domains above it. A sender is
matched as it is written before it is as it is folded, and at the domain that it is written with.

An expectation is kept in the same table under a key of its own: recipient, with or without the sender's domain.

Pure functions; bytes in, bytes out. The forked child runs ``keys`` at every check of a store that has rules.

Known wart: an address without a domain (``postmaster``) and a domain of that name have the same key.
"""

from greycheck import normalise
from greycheck.envelope import Envelope

KINDS = ("recipient", "sender", "network", "name", "helo")
EXPECT = "expect"

ALLOW = "allow"
REJECT = "reject"
GREYLIST = "greylist"

# How many domains above a name are looked at. Of a deeper name those nearest the root count.
DOMAINS = 6

# What is longer is no name of a host (RFC 1035), and not looked at.
NAME = 255

# How many keys an envelope has at most, expectations included, by its client's address bits.
_OF_ADDRESSES, _OF_NAMES, _OF_EXPECTATIONS = 2 * (3 + DOMAINS) + 2 * 2, 2 * (1 + DOMAINS), 1 + DOMAINS
MOST_KEYS = {
    bits: _OF_ADDRESSES + bits + 1 + _OF_NAMES + _OF_EXPECTATIONS for bits in (normalise.IPV4_BITS, normalise.IPV6_BITS)
}


def key(kind: str, value: bytes) -> bytes:
    """The key of what KIND and VALUE match. No value can hold a NUL (contract.md section 4)."""
    return kind.encode() + b"\0" + value


def keys(envelope: Envelope, sender: bytes, recipient: bytes, written: bytes | None = None) -> list[bytes]:
    """The keys of ENVELOPE, which has a client, by falling precedence.

    SENDER, RECIPIENT and the sender as WRITTEN (None: as folded) are what its triplet has.
    """
    assert envelope.client is not None
    found = [key("recipient", value) for value in address_values(recipient)]
    found += [
        key("sender", value) for value in sender_values(spellings(sender if written is None else written, sender))
    ]
    found += [key("network", value) for value in network_values(envelope.client)]
    if 0 < len(envelope.name) <= NAME:
        found += [key("name", value) for value in name_values(normalise.host_name(envelope.name))]
    if 0 < len(envelope.helo) <= NAME:
        found += [key("helo", value) for value in name_values(normalise.host_name(envelope.helo))]
    return found


def expectation_keys(sender: bytes, recipient: bytes) -> list[bytes]:
    """The keys under which mail from SENDER to RECIPIENT may be expected; that of a named domain first."""
    domain = sender.rpartition(b"@")[2]
    return [expectation_key(recipient, value) for value in [*name_values(domain)[1:], b""]]


def expectation_key(recipient: bytes, domain: bytes) -> bytes:
    """The key of mail to RECIPIENT that is expected from ``.domain`` (it and what is under it), or from anybody if that is empty."""
    return key(EXPECT, recipient + b"\0" + domain)


def address_values(address: bytes) -> list[bytes]:
    """ADDRESS, ``user@``, its domain, and ``.domain`` for it and those above; of the null sender only that."""
    local, at, domain = address.rpartition(b"@")
    if not at:
        return [address, address + b"@"] if address else [b""]
    return [address, local + b"@", *(name_values(domain) if domain else ())]


def spellings(written: bytes, sender: bytes) -> list[bytes]:
    """What a sender is matched as: as it is WRITTEN, folded (SENDER), and as an earlier release folded it."""
    if written == sender and b"+" not in written:
        return [sender]
    from greycheck import earlier

    return list(dict.fromkeys((written, sender, earlier.fold_sender(written))))


def sender_values(spelt: list[bytes]) -> list[bytes]:
    """The ``address_values`` of a sender that is SPELT so, the domain as in the first."""
    values = address_values(spelt[0])
    if len(spelt) == 1:
        return values
    users = dict.fromkeys(address.rpartition(b"@")[0] + b"@" for address in spelt)
    return [*spelt, *users, *values[2:]]


def name_values(name: bytes) -> list[bytes]:
    """NAME, and ``.domain`` for it and the domains above it, longest first."""
    if not name:
        return [name]
    labels = name.split(b".")
    highest = max(0, len(labels) - DOMAINS)
    return [name, *(b"." + b".".join(labels[index:]) for index in range(highest, len(labels)))]


def network_values(address: str) -> list[bytes]:
    """The networks of a client ADDRESS, from itself to the one that holds all."""
    bits, value = normalise.address_bits(address)
    return [network_value(bits, value, prefix) for prefix in range(bits, -1, -1)]


def network_value(bits: int, value: int, prefix: int) -> bytes:
    """The network that the first PREFIX of an address' BITS make, of which VALUE is one."""
    return b"%d/%d:%x" % (bits, prefix, value >> (bits - prefix))
