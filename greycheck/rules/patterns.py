r"""Reads the patterns by which operators say which mail a rule is for, and makes their keys.

    192.0.2.0/24  192.0.2.7  2001:db8::/32
        the client's address, with any prefix length
    name:mail.example.com  name:.example.com
        its name from DNS; with the dot, the domain and all names under it
    helo:mail.example.com  helo:.example.com
        the name in its HELO
    from:user@example.com  from:user@
        the sender, as it is written or as greylisting folds it; the user at any domain
    from:example.com  from:.example.com
        the sender's domain; with the dot, also the domains under it
    from:<>
        the null sender
    to:...
        the recipient, in the same forms
    from:user@example.com to:user@example.net  192.0.2.0/24 to:example.net  ...
        a pair: any other pattern, a blank, and the recipient's; both must match

A byte that has a meaning here, or that cannot be printed, is written ``\xNN``, as the log shows it,
so that an address can be copied from there. A pattern's key is the one that the forked child makes
of the same address (``greycheck.normalise``, ``greycheck.rule_keys``).

Interface: ``parse``, ``expectation``, ``release``, ``expected``, ``broader``, ``is_within``,
``reach``.

Diagnostics: ``ValueError`` if a pattern is ambiguous or can never match, with the cause and what to
write instead.
"""

import ipaddress
import re
from dataclasses import dataclass

from greycheck import log, normalise, rule_keys
from greycheck.log import show

KIND_OF = {"to": "recipient", "from": "sender", "name": "name", "helo": "helo"}
FIELD_OF = {kind: field for field, kind in KIND_OF.items()}

# The longest address that qmail-smtpd hands over, in bytes (docs/hooks.rst#addresses).
ADDRESS = 899

# The characters of a host's name (RFC 1123 section 2.1; underscores occur too).
_OF_HOST_NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789-_."

_BEFORE_IPV4 = 96  # bits before the IPv4 address in one that stands for it


@dataclass(frozen=True)
class Pattern:
    """A pattern: its KIND, its KEY (``greycheck.rule_keys.key``, no digest), its canonical TEXT.

    TEXT parses to the same pattern. NOTE says where the pattern means something else than what was
    written; empty if nowhere. A pair has both its PARTS, the recipient's last, and the kind of the
    first one; any other pattern has none.
    """

    kind: str
    key: bytes
    text: str
    note: str = ""
    parts: "tuple[Pattern, Pattern] | None" = None

    @property
    def value(self) -> bytes:
        """The key without its kind. A pair has none of its own: its parts have."""
        return self.key.partition(b"\0")[2]


def parse(text: str) -> Pattern:
    """Returns the pattern that TEXT writes.

    Raises ValueError, with the cause, if it is not a pattern or can never match.
    """
    words = text.split(" ")
    if len(words) == 2 and all(map(_may_be_part, words)):
        return _pair(*words)
    _refuse_unprintable(text)
    field, colon, written = text.partition(":")
    kind = KIND_OF.get(field.lower(), "") if colon else ""
    if kind in ("recipient", "sender"):
        return _address(kind, written)
    if kind:
        return _name(kind, written)
    return _network(text)


def _may_be_part(word: str) -> bool:
    """True if WORD, one of two, looks like a pattern, and not like a part of an address."""
    field, colon, _ = word.partition(":")
    return (
        field.lower() in KIND_OF
        if colon and not _is_hex(field)
        else bool(colon or word[:1].isdigit())
    )


def _is_of_recipient(word: str) -> bool:
    return word.lower().startswith("to:")


def of_recipient(value: bytes) -> str:
    """Returns the text of the recipient's pattern with this VALUE."""
    return f"to:{_shown(value) if value else '<>'}"


def _pair(one: str, other: str) -> Pattern:
    if not _is_of_recipient(other):
        raise ValueError(
            f"the recipient comes last: write {other} {one}"
            if _is_of_recipient(one)
            else "the second pattern of a pair is the recipient's, as to:bob@example.net"
        )
    if _is_of_recipient(one):
        raise ValueError("a message has one recipient at a time: the first pattern is no to:")
    parts = first, to = parse(one), parse(other)
    note = "; ".join(part.note for part in parts if part.note)
    key = rule_keys.pair_key(first.key, to.value)
    return Pattern(first.kind, key, f"{first.text} {to.text}", note, parts)


def expectation(recipient: str, domain: str | None = None) -> Pattern:
    """Returns the pattern of expected mail to RECIPIENT from DOMAIN and all domains under it.

    Without DOMAIN mail from any sender is expected. Raises ValueError if RECIPIENT is not a whole
    address, or DOMAIN not a domain.
    """
    to = parse(recipient if recipient.lower().startswith("to:") else f"to:{recipient}")
    if b"@" not in to.value or to.value.endswith(b"@"):
        raise ValueError("write the whole address of the recipient, as bob@example.net")
    if domain is None:
        return Pattern(rule_keys.EXPECT, rule_keys.expectation_key(to.value, b""), to.text)
    bare = domain.lower().removeprefix("from:").removeprefix(".")
    if "@" in bare:
        raise ValueError(f"write the sender's domain alone: {bare.rpartition('@')[2]}")
    sender = parse(f"from:.{bare}")
    return Pattern(
        rule_keys.EXPECT,
        rule_keys.expectation_key(to.value, sender.value),
        f"{to.text} {sender.text}",
        sender.note,
    )


def release(sender: str, recipient: str) -> Pattern:
    """Returns the pattern of mail that waits and is to pass at its next attempt.

    SENDER, folded, and RECIPIENT are as the table has them: escaped, and cut where they are long.
    """
    return Pattern(
        rule_keys.EXPECT,
        rule_keys.release_key(sender, recipient),
        f"to:{_whole(recipient)} from:{_whole(sender)}",
    )


def expected(text: str) -> Pattern:
    """Returns the pattern of TEXT, as ``expectation`` or ``release`` made it. Raises ValueError."""
    recipient, blank, sender = text.partition(" from:")
    if not is_release(text):
        return expectation(recipient, sender if blank else None)
    if " " in sender or not recipient.startswith("to:"):
        raise ValueError("not the pattern of mail that was released")
    return release(_bare(sender), _bare(recipient.removeprefix("to:")))


def is_release(text: str) -> bool:
    """True if TEXT, the pattern of what is expected, names a whole sender, and not a domain."""
    sender = text.partition(" from:")[2]
    return "@" in sender or sender.startswith("<")


def _whole(address: str) -> str:
    """Returns ADDRESS as it is written in a pattern: in brackets if it has no domain."""
    return address if "@" in address else f"<{address}>"


def _bare(written: str) -> str:
    return written[1:-1] if written.startswith("<") and written.endswith(">") else written


def broader(pattern: Pattern) -> list[bytes]:
    """Returns the keys of the same kind that match all that PATTERN matches and more.

    They are in the order in which they decide after PATTERN. To a pair, other pairs are.
    """
    if pattern.parts:
        first, to = pattern.parts
        return [
            rule_keys.pair_key(key, recipient)
            for recipient in [to.value, *_broader_values(to.kind, to.value)]
            for key in [first.key, *broader(first)]
        ][1:]
    return [
        rule_keys.key(pattern.kind, value) for value in _broader_values(pattern.kind, pattern.value)
    ]


def is_within(narrow: Pattern, wide: Pattern) -> bool:
    """True if WIDE matches all that NARROW matches and more, and decides after it."""
    if not narrow.parts:
        return not wide.parts and wide.key in broader(narrow)
    if not wide.parts:
        return any(_is_same_or_within(part, wide) for part in narrow.parts)
    both = zip(narrow.parts, wide.parts, strict=True)
    return narrow.key != wide.key and all(_is_same_or_within(*parts) for parts in both)


def _is_same_or_within(narrow: Pattern, wide: Pattern) -> bool:
    return wide.key == narrow.key or wide.key in broader(narrow)


def _broader_values(kind: str, value: bytes) -> list[bytes]:
    if kind == "network":
        bits, prefix, network = network_parts(value)
        return [
            rule_keys.network_value(bits, network << (bits - prefix), shorter)
            for shorter in range(prefix - 1, -1, -1)
        ]
    if kind not in FIELD_OF or not value or value.endswith(b"@"):
        return []
    if b"@" in value and kind in ("recipient", "sender"):
        return rule_keys.address_values(value)[1:]
    if value.startswith(b"."):
        return rule_keys.name_values(value[1:])[2:]
    return rule_keys.name_values(value)[1:]


# Networks with a prefix of at most this length are a large part of all clients: 1/128 of IPv4, and
# more of IPv6 than any provider has.
WIDE = {normalise.IPV4_BITS: 7, normalise.IPV6_BITS: 15}


def reach(pattern: Pattern) -> str:
    """Returns what PATTERN matches, in words, if that is so much that it may be a mistake.

    Else returns an empty text. Of a pair, both parts must be so wide.
    """
    if pattern.parts:
        first, to = map(reach, pattern.parts)
        return f"{first}, to {to}" if first and to else ""
    if pattern.kind == "network":
        bits, prefix, _ = network_parts(pattern.value)
        kind = "IPv4" if bits == normalise.IPV4_BITS else "IPv6"
        if prefix > WIDE[bits]:
            return ""
        return f"a large part of all {kind} clients" if prefix else f"all {kind} clients"
    if (
        pattern.kind in FIELD_OF
        and pattern.value.startswith(b".")
        and pattern.value.count(b".") == 1
    ):
        return f"every domain in {_shown(pattern.value)}"
    return ""


def network_parts(value: bytes) -> tuple[int, int, int]:
    """Returns the address bits, prefix length and leading bits of ``rule_keys.network_value``."""
    bits, _, rest = value.partition(b"/")
    prefix, _, network = rest.partition(b":")
    return int(bits), int(prefix), int(network, 16)


# --- networks -------------------------------------------------------------------------------------


class WrongPrefix(ValueError):
    """LENGTH is not a prefix length: not a number from 0 to BITS, the bits of the address."""

    def __init__(self, length: str, bits: int) -> None:
        super().__init__(_no_prefix(length, bits))
        self.bits = bits


def written_network(text: str) -> tuple[int, int, int]:
    """Returns the address bits, the value and the prefix length of the network that TEXT writes.

    TEXT is ``192.0.2.0/23``, ``2001:db8::/32``, or one address. Raises WrongPrefix, and ValueError
    if there is no address.
    """
    address, slash, length = text.partition("/")
    bits, value = normalise.written_bits(address)
    prefix = normalise.prefix_length(length, bits) if slash else bits
    if prefix is None:
        raise WrongPrefix(length, bits)
    return bits, value, prefix


def _network(text: str) -> Pattern:
    try:
        written = written_network(text)
    except WrongPrefix:
        raise
    except ValueError:
        raise ValueError(_no_network(text)) from None
    bits, value, prefix, note = of_clients(*written)
    network = normalise.network(bits, value, prefix)
    if prefix == bits:
        network = network.partition("/")[0]
        if not value:
            raise ValueError(f"{network} is no client's address; all addresses are {network}/0")
    elif value & ((1 << (bits - prefix)) - 1):
        alone = normalise.network(bits, value, bits).partition("/")[0]
        raise ValueError(
            f"has bits beyond the prefix: the network is {network}; the address alone is {alone}"
        )
    return Pattern(
        "network",
        rule_keys.key("network", rule_keys.network_value(bits, value, prefix)),
        network,
        note,
    )


_ARE_IPV4 = {
    normalise.MAPPED: "IPv4-mapped addresses",
    normalise.TRANSLATED: "IPv4-translated addresses",
    normalise.NAT64: "addresses of NAT64",
}


def of_clients(bits: int, value: int, prefix: int) -> tuple[int, int, int, str]:
    """Returns bits, value and prefix length by which greycheck knows a network's clients.

    Also returns a note, or empty. The network is written with BITS, VALUE and PREFIX. Its clients
    may be IPv4 for greycheck (``normalise.ipv4_within``). Raises ValueError if they are, and make
    up no IPv4 network.
    """
    if bits == normalise.IPV4_BITS:
        return bits, value, prefix, ""
    within, high = normalise.ipv4_within(value), value >> 32
    names = _ARE_IPV4.get(high, "")
    if names:
        if prefix > _BEFORE_IPV4 or (prefix == _BEFORE_IPV4 and high == normalise.MAPPED):
            return normalise.IPV4_BITS, value & 0xFFFFFFFF, prefix - _BEFORE_IPV4, ""
        raise ValueError(
            f"{names} are IPv4 here: write the IPv4 network, as 192.0.2.0/24 or 0.0.0.0/0"
        )
    if value >> 96 == normalise.TEREDO and prefix >= 32:
        if prefix < bits or within is None:
            raise ValueError(
                "addresses of Teredo are IPv4 here: write the client's IPv4 address or network"
            )
        return normalise.IPV4_BITS, within, normalise.IPV4_BITS, ""
    if value >> 80 == normalise.NAT64_LOCAL and prefix >= 48:
        if within is not None and prefix > _BEFORE_IPV4:
            return normalise.IPV4_BITS, within, prefix - _BEFORE_IPV4, ""
        return (
            bits,
            value,
            prefix,
            "clients whose address there ends in an IPv4 address are that one here",
        )
    return bits, value, prefix, ""


def _no_prefix(length: str, bits: int) -> str:
    """Returns why LENGTH is not a prefix length of BITS, and what to write."""
    try:
        mask = (
            ipaddress.IPv4Network(f"0.0.0.0/{length}").prefixlen
            if bits == normalise.IPV4_BITS
            else None
        )
    except ValueError:
        mask = None
    instead = f"a whole number from 0 to {bits}" if mask is None else f"/{mask}"
    return f"/{length} is no prefix length: write {instead}"


def _no_network(text: str) -> str:
    """Returns why TEXT, which names no field, is not a network; and what to write."""
    if not text:
        return f"empty: write an address, a network, or one of {_fields('...')}"
    if text == "<>":
        return "the null sender is written from:<>"
    bare = text.replace("[", "", 1).replace("]", "", 1)
    if (
        text.startswith("[")
        and "]" in text
        and normalise.client_address(bare.partition("/")[0].encode())
    ):
        return f"brackets are no part of it: write {bare}"
    partial = partial_ipv4(text.removesuffix("*") if text.endswith(".*") else text)
    if partial:
        return f"not a whole address: write {partial}"
    _refuse_wildcard("", text)
    _refuse_regex(text)
    field, colon, rest = text.partition(":")
    if "@" in text and not colon:
        whole = "" if text.removeprefix("@") == text else " for all of the domain"
        text = text.removeprefix("@")
        return f"sender or recipient? Write from:{text} or to:{text}{whole}"
    if colon and field.isalpha() and not _is_hex(field):
        return f"there is no {field}: here; write one of {_fields(rest)}"
    if colon or "/" in text or set(text) <= set("0123456789."):
        return "no address or network, as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
    under = f"name:.{text.removeprefix('.')}"
    return (
        f"which name? Write one of {_fields(text)}; with a dot before it, it is also what is under"
        f" it: {under}"
    )


def _fields(value: str) -> str:
    return ", ".join(f"{field}:{value}" for field in ("name", "helo", "from", "to"))


def _is_hex(text: str) -> bool:
    return all(char in "0123456789abcdefABCDEF" for char in text)


def partial_ipv4(text: str) -> str:
    """Returns the network of an IPv4 address with one, two or three octets; else empty."""
    octets = text.removesuffix(".").split(".")
    if not 1 <= len(octets) <= 3:
        return ""
    try:
        return str(
            ipaddress.IPv4Network((".".join(octets + ["0"] * (4 - len(octets))), 8 * len(octets)))
        )
    except ValueError:
        return ""


# --- names ----------------------------------------------------------------------------------------


def _name(kind: str, written: str) -> Pattern:
    field = FIELD_OF[kind]
    _refuse_wildcard(field, written)
    value = normalise.host_name(_bytes(written))
    _refuse_domain(field, value)
    if len(value.removeprefix(b".")) > rule_keys.NAME:
        raise ValueError(f"longer than {rule_keys.NAME} bytes: no such name is looked at")
    if kind == "name":
        _refuse_no_host_name(value)
    return Pattern(
        kind, rule_keys.key(kind, value), f"{field}:{_shown(value)}", _note_of_letters(value)
    )


NAMELESS = "so Postfix calls a client without a name: no rule by name matches one"


def _refuse_no_host_name(value: bytes) -> None:
    """Raises ValueError if neither tcpserver nor Postfix ever gives VALUE as a client's name."""
    if value == b"unknown":
        raise ValueError(NAMELESS)
    if normalise.client_address(value):
        raise ValueError(f"that is an address, not a name: write {normalise.client_address(value)}")
    if not value.isascii():
        ascii_name = _ascii(value)
        raise ValueError(
            "names in DNS are ASCII" + (f": write name:{ascii_name}" if ascii_name else "")
        )
    strange = value.translate(None, _OF_HOST_NAMES)
    if strange:
        raise ValueError(f"no host's name holds {show(strange[:1])}")


def _refuse_domain(field: str, value: bytes) -> None:
    """Raises ValueError if VALUE, a name or ``.domain``, is empty or is never looked up."""
    if not value:
        null = (
            f": the null sender is written {field}:<>"
            if field == "from"
            else f": write what {field} is to match"
        )
        raise ValueError("empty" + null)
    if not value.startswith(b"."):
        return
    labels = value[1:].split(b".")
    if b"" in labels:
        raise ValueError("two dots in a row")
    if len(labels) > rule_keys.DOMAINS:
        nearest = _shown(b"." + b".".join(labels[-rule_keys.DOMAINS :]))
        raise ValueError(
            f"deeper than {rule_keys.DOMAINS} names: only the {rule_keys.DOMAINS} nearest the root"
            f" are looked up: write {field}:{nearest},"
            f" or the whole name without the dot"
        )


def _ascii(value: bytes) -> str:
    """Returns the name VALUE in the ASCII form of DNS; empty if it has none."""
    dot = "." if value.startswith(b".") else ""
    try:
        return dot + value.removeprefix(b".").decode().encode("idna").decode()
    except UnicodeError:
        return ""


def _note_of_letters(domain: bytes) -> str:
    if domain.isascii() or not _ascii(domain):
        return ""
    return (
        "matches only where it is spelt so; mail from a program that cannot spells it"
        f" {_ascii(domain)}"
    )


# --- mail addresses -------------------------------------------------------------------------------


def _address(kind: str, written: str) -> Pattern:
    field = FIELD_OF[kind]
    if written == "<>":
        return Pattern(kind, rule_keys.key(kind, b""), f"{field}:<>")
    if written.startswith("<") and written.endswith(">"):
        written = written[1:-1]
    _refuse_wildcard(field, written)
    value = _bytes(written)
    if len(value) > ADDRESS:
        raise ValueError(f"longer than {ADDRESS} bytes: qmail-smtpd takes no such address")
    note = ""
    if b"@" in value:
        value = _whole_address(field, value)
        if kind == "sender" and (folded := normalise.fold_sender(value)) != value:
            note = (
                "matches this one address, which changes from mail to mail: for all such mail"
                " write"
                f" {field}:{_shown(folded)}, {field}:{_shown(value.rpartition(b'@')[2])}, or the"
                " client's network"
            )
    else:
        value = normalise.mail_address(b"@" + value)[1:]
        _refuse_domain(field, value)
    domain = value.rpartition(b"@")[2]
    return Pattern(
        kind,
        rule_keys.key(kind, value),
        f"{field}:{_shown(value)}",
        note or _note_of_letters(domain),
    )


def _whole_address(field: str, value: bytes) -> bytes:
    """Returns VALUE, ``user@domain`` or ``user@``, normalised as the child does it."""
    local, _, domain = value.rpartition(b"@")
    if not local:
        raise ValueError(
            "no user before the @"
            + (f": the whole domain is {field}:{_shown(domain)}" if domain else "")
        )
    if domain and not domain.strip(b"."):
        raise ValueError(
            f"no domain after the @; the user at any domain is {field}:{_shown(local)}@"
        )
    if domain.startswith(b"."):
        bare = _shown(domain[1:])
        raise ValueError(
            f"a user is matched at one domain ({field}:{_shown(local)}@{bare}) or at any"
            f" ({field}:{_shown(local)}@)"
        )
    return normalise.mail_address(value)


# --- spelling -------------------------------------------------------------------------------------


def _refuse_unprintable(text: str) -> None:
    for char in text:
        if char.isspace() or not char.isprintable():
            written = "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
            if char in "\0\n":
                raise ValueError("no address or name holds a NUL or a line's end")
            raise ValueError(
                "has a blank, or a character that cannot be printed: where it belongs there,"
                f" write {written}"
            )


def _bytes(written: str) -> bytes:
    r"""Returns the bytes that WRITTEN means: ``\xNN`` becomes the byte NN. Raises ValueError."""
    _refuse_regex(written)
    for special in '<>"':
        if special in written:
            raise ValueError(
                "brackets and quotes are no part of an address: leave them out, or write"
                f" \\x{ord(special):02x}"
            )
    if "\\" in re.sub(r"\\x[0-9a-fA-F]{2}", "", written):
        raise ValueError(
            "a backslash stands before xNN only: one itself is written \\x5c, and regular"
            " expressions do not count here"
        )
    value = log.unshown(written.encode())
    if b"\0" in value or b"\n" in value:
        raise ValueError("no address or name holds a NUL or a line's end")
    return value


def _refuse_regex(written: str) -> None:
    if written.startswith("^") or written.endswith("$") or re.fullmatch(r"/.*/", written):
        raise ValueError(
            "regular expressions do not count here: write a domain and what is under it as"
            " .example.com"
        )


def _refuse_wildcard(field: str, written: str) -> None:
    if "*" not in written:
        return
    if written == "*" and not field:
        raise ValueError("wildcards do not count here: all addresses are 0.0.0.0/0 and ::/0")
    if written.startswith(("*.", "*@")):
        instead = written[1:].removeprefix("@")
    elif written.endswith("@*"):
        instead = written[:-1]
    else:
        instead = ".example.com"
    if "*" in instead or len(instead) < 2:
        instead = ".example.com"
    raise ValueError(
        f"wildcards do not count here: write {field or 'name'}:{instead}"
        + (" for the domain and what is under it" if instead.startswith(".") else "")
        + "; a star itself is \\x2a"
    )


def _shown(value: bytes) -> str:
    """Returns VALUE as text that parses to VALUE, and cannot forge a line of a log or a file."""
    text = show(value).replace("*", "\\x2a")
    if text[:1] in ("/", "^"):
        text = f"\\x{ord(text[0]):02x}{text[1:]}"
    return text[:-1] + "\\x24" if text.endswith("$") else text
