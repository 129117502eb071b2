r"""What an operator writes to say which mail a rule is for, and the key that it becomes.

    192.0.2.0/24  192.0.2.7  2001:db8::/32         the client's address, any prefix length
    name:mail.example.com  name:.example.com       its name from DNS; with the dot, the domain and what is under it
    helo:mail.example.com  helo:.example.com       what it calls itself
    from:user@example.com  from:user@              the sender, as it is written or as greylisting folds it; the user at any domain
    from:example.com  from:.example.com            the sender's domain; with the dot, also what is under it
    from:<>                                        the null sender
    to:...                                         the recipient, in the same forms

A byte that has a meaning here or that cannot be printed is written ``\xNN``, as the log shows it, so that an address can be copied
from there. Every pattern becomes what the forked child makes of the same address (``greycheck.normalise``, ``greycheck.rules``).

Interface: ``parse``, ``expectation``, ``broader``, ``reach``; and of postgrey's whitelists ``postgrey_client`` and ``postgrey_recipient``.

Diagnostics: ``ValueError`` with the reason, and what to write instead, where a pattern is ambiguous or can never match.
"""

import ipaddress
import re
from dataclasses import dataclass

from greycheck import normalise, rules
from greycheck.log import show

KIND_OF = {"to": "recipient", "from": "sender", "name": "name", "helo": "helo"}
FIELD_OF = {kind: field for field, kind in KIND_OF.items()}

# The longest address that qmail-smtpd hands over, in bytes (contract.md section 4).
ADDRESS = 899

# What the name of a host is made of (RFC 1123 section 2.1; underscores are met).
_OF_HOST_NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789-_."

_BEFORE_IPV4 = 96  # bits before the IPv4 address in one that stands for it


@dataclass(frozen=True)
class Pattern:
    """A pattern: its KIND, its KEY (``greycheck.rules.key``, not yet digested) and its canonical TEXT, which parses to the same.

    ``note`` says what of it was taken otherwise than it was written; empty for nothing.
    """

    kind: str
    key: bytes
    text: str
    note: str = ""

    @property
    def value(self) -> bytes:
        """What the key says beside the kind."""
        return self.key.partition(b"\0")[2]


def parse(text: str) -> Pattern:
    """The pattern that TEXT writes. Raises ValueError with the reason where it is none, or can never match."""
    _refuse_unprintable(text)
    field, colon, written = text.partition(":")
    kind = KIND_OF.get(field.lower(), "") if colon else ""
    if kind in ("recipient", "sender"):
        return _address(kind, written)
    if kind:
        return _name(kind, written)
    return _network(text)


def expectation(recipient: str, domain: str | None = None) -> Pattern:
    """The pattern of mail to RECIPIENT that is expected, from DOMAIN and what is under it, or from anybody.

    Raises ValueError where RECIPIENT is no whole address, or DOMAIN no domain.
    """
    to = parse(recipient if recipient.lower().startswith("to:") else f"to:{recipient}")
    if b"@" not in to.value or to.value.endswith(b"@"):
        raise ValueError("write the whole address of the recipient, as bob@example.net")
    if domain is None:
        return Pattern(rules.EXPECT, rules.expectation_key(to.value, b""), to.text)
    bare = domain.lower().removeprefix("from:").removeprefix(".")
    if "@" in bare:
        raise ValueError(f"write the sender's domain alone: {bare.rpartition('@')[2]}")
    sender = parse(f"from:.{bare}")
    return Pattern(rules.EXPECT, rules.expectation_key(to.value, sender.value), f"{to.text} {sender.text}", sender.note)


def broader(pattern: Pattern) -> list[bytes]:
    """The keys of the same kind that match all that PATTERN matches and more, in the order in which they decide after it."""
    return [rules.key(pattern.kind, value) for value in _broader_values(pattern.kind, pattern.value)]


def _broader_values(kind: str, value: bytes) -> list[bytes]:
    if kind == "network":
        bits, prefix, network = network_parts(value)
        return [rules.network_value(bits, network << (bits - prefix), shorter) for shorter in range(prefix - 1, -1, -1)]
    if kind not in FIELD_OF or not value or value.endswith(b"@"):
        return []
    if b"@" in value and kind in ("recipient", "sender"):
        return rules.address_values(value)[1:]
    if value.startswith(b"."):
        return rules.name_values(value[1:])[2:]
    return rules.name_values(value)[1:]


# Networks of so many bits, or fewer, are a large part of all clients: 1/128 of IPv4, and of IPv6 more than any provider has.
WIDE = {normalise.IPV4_BITS: 7, normalise.IPV6_BITS: 15}


def reach(pattern: Pattern) -> str:
    """What PATTERN matches, in words, where that is so much that it may not have been meant; else empty."""
    if pattern.kind == "network":
        bits, prefix, _ = network_parts(pattern.value)
        kind = "IPv4" if bits == normalise.IPV4_BITS else "IPv6"
        if prefix > WIDE[bits]:
            return ""
        return f"a large part of all {kind} clients" if prefix else f"all {kind} clients"
    if pattern.kind in FIELD_OF and pattern.value.startswith(b".") and pattern.value.count(b".") == 1:
        return f"every domain in {_shown(pattern.value)}"
    return ""


def network_parts(value: bytes) -> tuple[int, int, int]:
    """The address bits, prefix length and leading bits of a network as ``rules.network_value`` writes it."""
    bits, _, rest = value.partition(b"/")
    prefix, _, network = rest.partition(b":")
    return int(bits), int(prefix), int(network, 16)


# --- networks ----------------------------------------------------------------------------------------------------------


def _network(text: str) -> Pattern:
    address, slash, length = text.partition("/")
    try:
        bits, value = normalise.written_bits(address)
    except ValueError:
        raise ValueError(_no_network(text)) from None
    bits, value, prefix, note = of_clients(bits, value, _prefix(length, bits) if slash else bits)
    network = normalise.network(bits, value, prefix)
    if prefix == bits:
        network = network.partition("/")[0]
        if not value:
            raise ValueError(f"{network} is no client's address; all addresses are {network}/0")
    elif value & ((1 << (bits - prefix)) - 1):
        alone = normalise.network(bits, value, bits).partition("/")[0]
        raise ValueError(f"has bits beyond the prefix: the network is {network}; the address alone is {alone}")
    return Pattern("network", rules.key("network", rules.network_value(bits, value, prefix)), network, note)


_ARE_IPV4 = {
    normalise.MAPPED: "IPv4-mapped addresses",
    normalise.TRANSLATED: "IPv4-translated addresses",
    normalise.NAT64: "addresses of NAT64",
}


def of_clients(bits: int, value: int, prefix: int) -> tuple[int, int, int, str]:
    """The bits, value and prefix length that clients in a network written with BITS, VALUE and PREFIX have here; and a note.

    Raises ValueError where clients of such addresses are IPv4 here (``normalise.ipv4_within``), and there is no such network of them.
    """
    if bits == normalise.IPV4_BITS:
        return bits, value, prefix, ""
    within, high = normalise.ipv4_within(value), value >> 32
    names = _ARE_IPV4.get(high, "")
    if names:
        if prefix > _BEFORE_IPV4 or (prefix == _BEFORE_IPV4 and high == normalise.MAPPED):
            return normalise.IPV4_BITS, value & 0xFFFFFFFF, prefix - _BEFORE_IPV4, ""
        raise ValueError(f"{names} are IPv4 here: write the IPv4 network, as 192.0.2.0/24 or 0.0.0.0/0")
    if value >> 96 == normalise.TEREDO and prefix >= 32:
        if prefix < bits or within is None:
            raise ValueError("addresses of Teredo are IPv4 here: write the client's IPv4 address or network")
        return normalise.IPV4_BITS, within, normalise.IPV4_BITS, ""
    if value >> 80 == normalise.NAT64_LOCAL and prefix >= 48:
        if within is not None and prefix > _BEFORE_IPV4:
            return normalise.IPV4_BITS, within, prefix - _BEFORE_IPV4, ""
        return bits, value, prefix, "clients whose address there ends in an IPv4 address are that one here"
    return bits, value, prefix, ""


def _prefix(length: str, bits: int) -> int:
    if length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= bits:
        return int(length)
    try:
        mask = ipaddress.IPv4Network(f"0.0.0.0/{length}").prefixlen if bits == normalise.IPV4_BITS else None
    except ValueError:
        mask = None
    instead = f"a whole number from 0 to {bits}" if mask is None else f"/{mask}"
    raise ValueError(f"/{length} is no prefix length: write {instead}")


def _no_network(text: str) -> str:
    """Why TEXT, which names no field, is no network; and what to write."""
    if not text:
        return f"empty: write an address, a network, or one of {_fields('...')}"
    if text == "<>":
        return "the null sender is written from:<>"
    bare = text.replace("[", "", 1).replace("]", "", 1)
    if text.startswith("[") and "]" in text and normalise.client_address(bare.partition("/")[0].encode()):
        return f"brackets are no part of it: write {bare}"
    partial = _partial_ipv4(text.removesuffix("*") if text.endswith(".*") else text)
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
    return f"which name? Write one of {_fields(text)}; with a dot before it, it is also what is under it: {under}"


def _fields(value: str) -> str:
    return ", ".join(f"{field}:{value}" for field in ("name", "helo", "from", "to"))


def _is_hex(text: str) -> bool:
    return all(char in "0123456789abcdefABCDEF" for char in text)


def _partial_ipv4(text: str) -> str:
    """The network of an IPv4 address that ends after one, two or three octets; empty where TEXT is none."""
    octets = text.removesuffix(".").split(".")
    if not 1 <= len(octets) <= 3:
        return ""
    try:
        return str(ipaddress.IPv4Network((".".join(octets + ["0"] * (4 - len(octets))), 8 * len(octets))))
    except ValueError:
        return ""


# --- names -------------------------------------------------------------------------------------------------------------


def _name(kind: str, written: str) -> Pattern:
    field = FIELD_OF[kind]
    _refuse_wildcard(field, written)
    value = normalise.host_name(_bytes(written))
    _refuse_domain(field, value)
    if len(value.removeprefix(b".")) > rules.NAME:
        raise ValueError(f"longer than {rules.NAME} bytes: no such name is looked at")
    if kind == "name":
        _refuse_no_host_name(value)
    return Pattern(kind, rules.key(kind, value), f"{field}:{_shown(value)}", _note_of_letters(value))


_NAMELESS = "so Postfix calls a client without a name: no rule by name matches one"


def _refuse_no_host_name(value: bytes) -> None:
    """Raises ValueError where neither tcpserver nor Postfix ever gives VALUE as a client's name."""
    if value == b"unknown":
        raise ValueError(_NAMELESS)
    if normalise.client_address(value):
        raise ValueError(f"that is an address, not a name: write {normalise.client_address(value)}")
    if not value.isascii():
        ascii_name = _ascii(value)
        raise ValueError("names in DNS are ASCII" + (f": write name:{ascii_name}" if ascii_name else ""))
    strange = value.translate(None, _OF_HOST_NAMES)
    if strange:
        raise ValueError(f"no host's name holds {show(strange[:1])}")


def _refuse_domain(field: str, value: bytes) -> None:
    """Raises ValueError where VALUE, a name or ``.domain``, is empty or is never looked up."""
    if not value:
        null = f": the null sender is written {field}:<>" if field == "from" else f": write what {field} is to match"
        raise ValueError("empty" + null)
    if not value.startswith(b"."):
        return
    labels = value[1:].split(b".")
    if b"" in labels:
        raise ValueError("two dots in a row")
    if len(labels) > rules.DOMAINS:
        nearest = _shown(b"." + b".".join(labels[-rules.DOMAINS :]))
        raise ValueError(
            f"deeper than {rules.DOMAINS} names: only the {rules.DOMAINS} nearest the root are looked up: write {field}:{nearest},"
            f" or the whole name without the dot"
        )


def _ascii(value: bytes) -> str:
    """The name VALUE as DNS spells it; empty where it cannot."""
    dot = "." if value.startswith(b".") else ""
    try:
        return dot + value.removeprefix(b".").decode().encode("idna").decode()
    except UnicodeError:
        return ""


def _note_of_letters(domain: bytes) -> str:
    if domain.isascii() or not _ascii(domain):
        return ""
    return f"matches only where it is spelt so; mail from a program that cannot spells it {_ascii(domain)}"


# --- mail addresses ----------------------------------------------------------------------------------------------------


def _address(kind: str, written: str) -> Pattern:
    field = FIELD_OF[kind]
    if written == "<>":
        return Pattern(kind, rules.key(kind, b""), f"{field}:<>")
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
                f"matches this one address, which changes from mail to mail: for all such mail write"
                f" {field}:{_shown(folded)}, {field}:{_shown(value.rpartition(b'@')[2])}, or the client's network"
            )
    else:
        value = normalise.mail_address(b"@" + value)[1:]
        _refuse_domain(field, value)
    domain = value.rpartition(b"@")[2]
    return Pattern(kind, rules.key(kind, value), f"{field}:{_shown(value)}", note or _note_of_letters(domain))


def _whole_address(field: str, value: bytes) -> bytes:
    """VALUE, ``user@domain`` or ``user@``, as the child has it."""
    local, _, domain = value.rpartition(b"@")
    if not local:
        raise ValueError("no user before the @" + (f": the whole domain is {field}:{_shown(domain)}" if domain else ""))
    if domain and not domain.strip(b"."):
        raise ValueError(f"no domain after the @; the user at any domain is {field}:{_shown(local)}@")
    if domain.startswith(b"."):
        bare = _shown(domain[1:])
        raise ValueError(
            f"a user is matched at one domain ({field}:{_shown(local)}@{bare}) or at any ({field}:{_shown(local)}@)"
        )
    return normalise.mail_address(value)


# --- spelling ----------------------------------------------------------------------------------------------------------


def _refuse_unprintable(text: str) -> None:
    for char in text:
        if char.isspace() or not char.isprintable():
            written = "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
            if char in "\0\n":
                raise ValueError("no address or name holds a NUL or a line's end")
            raise ValueError(
                f"has a blank, or a character that cannot be printed: where it belongs there, write {written}"
            )


def _bytes(written: str) -> bytes:
    r"""The bytes that WRITTEN means, ``\xNN`` put in."""
    _refuse_regex(written)
    for special in '<>"':
        if special in written:
            raise ValueError(
                f"brackets and quotes are no part of an address: leave them out, or write \\x{ord(special):02x}"
            )
    parts = re.split(r"\\x([0-9a-fA-F]{2})", written)
    if any("\\" in part for part in parts[::2]):
        raise ValueError(
            "a backslash stands before xNN only: one itself is written \\x5c, and regular expressions do not count here"
        )
    value = b"".join(bytes.fromhex(part) if index % 2 else part.encode() for index, part in enumerate(parts))
    if b"\0" in value or b"\n" in value:
        raise ValueError("no address or name holds a NUL or a line's end")
    return value


def _refuse_regex(written: str) -> None:
    if written.startswith("^") or written.endswith("$") or re.fullmatch(r"/.*/", written):
        raise ValueError("regular expressions do not count here: write a domain and what is under it as .example.com")


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
    """VALUE as text that parses to it again, and that forges no line of a log or a file."""
    text = show(value).replace("*", "\\x2a")
    if text[:1] in ("/", "^"):
        text = f"\\x{ord(text[0]):02x}{text[1:]}"
    return text[:-1] + "\\x24" if text.endswith("$") else text


# --- postgrey's whitelists ---------------------------------------------------------------------------------------------
#
# As postgrey 1.33 and later reads them: a line is tried as /regex/, address or part of it, network, and else is a domain.

# Before the literal rest of a regex: it and what is under it, and only what is under it.
_AND_UNDER = ("(^|\\.)", "(?:^|\\.)", "(\\.|^)", "(?:\\.|^)", "^(.*\\.)?", "^(?:.*\\.)?", "^(.+\\.)?", "^(?:.+\\.)?")
_ONLY_UNDER = ("^.*\\.", "^.+\\.", ".*\\.", ".+\\.", "\\.", ".")
_AT_OR_UNDER = ("[@.]", "[.@]", "[\\@\\.]", "(@|\\.)", "(?:@|\\.)", "(\\@|\\.)", "(?:\\@|\\.)", "(\\.|@)", "(?:\\.|@)")
_AT = ("^.*@", "^.*\\@", "^.+@", "^.+\\@", ".*@", ".*\\@", ".+@", ".+\\@", "@", "\\@")
_DOTS = "its dots, which stand for any character, are taken as dots"


def postgrey_client(line: str) -> Pattern:
    """The pattern of a LINE of postgrey's whitelist_clients. Raises ValueError with the reason where there is none."""
    if len(line) > 1 and line.startswith("/") and line.endswith("/"):
        return _client_regex(line[1:-1])
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,2}", line) and _partial_ipv4(line):
        return parse(_partial_ipv4(line))
    if line.count(":") > 1:
        return _postgrey_ipv6(line)
    if re.fullmatch(r"[\d.]+(/\d+)?", line):
        return _postgrey_ipv4(line)
    _refuse_words(line)
    if line.lower() == "unknown":
        raise ValueError(_NAMELESS)
    if line.startswith(("[", "@")):
        return parse(line)  # which says how it is written
    if line.startswith("."):
        return _noting(parse(f"name:{line}"), f"matches {line[1:]} itself too")
    return parse(f"name:.{line}")


def _refuse_words(line: str) -> None:
    if len(line.split()) != 1:
        raise ValueError("more than one word: postgrey does not take it either")


def _postgrey_ipv4(line: str) -> Pattern:
    try:
        network = ipaddress.IPv4Network(line, strict=False)
    except ValueError:
        return parse(line)
    if not network.prefixlen:
        raise ValueError("postgrey takes no network of all addresses")
    found = parse(str(network).removesuffix("/32"))
    return found if found.text in (line, line.removesuffix("/32")) else _noting(found, f"the network of {line}")


def _postgrey_ipv6(line: str) -> Pattern:
    """As postgrey, which compares the text of an IPv6 address as far as the line goes."""
    if "/" in line:
        return parse(line)
    if line.endswith("::"):
        raise ValueError(f"the beginning of addresses, of no certain length: write a network, as allow {line}/64")
    try:
        return parse(line)
    except ValueError:
        groups = line.removesuffix(":").split(":")
        if "" in groups or len(groups) > 7:
            raise
        return _noting(parse(f"{':'.join(groups)}::/{16 * len(groups)}"), f"addresses that begin with {line}")


def _client_regex(regex: str) -> Pattern:
    head, tail = _head(regex, (*_AND_UNDER, *_ONLY_UNDER, "^"))
    literal, dots = _literal(tail.removesuffix("$")) if tail.endswith("$") else ("", False)
    if not literal or not head:
        raise ValueError(_no_domain(regex, "allow name:."))
    if head == "^":
        return _noting(parse(f"name:{literal}"), _DOTS if dots else "")
    notes = [f"matches {literal} itself too"] if head in _ONLY_UNDER else []
    return _noting(parse(f"name:.{literal}"), "; ".join(notes + [_DOTS] * (dots or head == ".")))


def postgrey_recipient(line: str) -> Pattern:
    """The pattern of a LINE of postgrey's whitelist_recipients. Raises ValueError with the reason where there is none."""
    if len(line) > 1 and line.startswith("/") and line.endswith("/"):
        return _recipient_regex(line[1:-1])
    if line.startswith("@"):
        raise ValueError(f"matches nobody, as no user is before the @: the whole domain is to:{line[1:]}")
    _refuse_words(line)
    return parse(f"to:{line}" if "@" in line else f"to:.{line.removeprefix('.')}")


def _recipient_regex(regex: str) -> Pattern:
    if regex.startswith("^"):
        user, at, _ = regex[1:].removesuffix(".*$").removesuffix(".*").partition("@")
        literal, dots = _literal(user.removesuffix("\\"))
        if at and literal and re.fullmatch(r"[^@]*@(\.\*\$?)?", regex[1:]):
            return _noting(parse(f"to:{literal}@"), _DOTS if dots else "")
    head, tail = _head(regex, (*_AT_OR_UNDER, *_AT, *_ONLY_UNDER, "^"))
    literal, dots = _literal(tail.removesuffix("$")) if tail.endswith("$") else ("", False)
    note = _DOTS if dots else ""
    if not literal or not head or ("@" in literal) != (head == "^"):
        raise ValueError(_no_domain(regex, "allow to:."))
    if head in _AT or head == "^":
        return _noting(parse(f"to:{literal}"), note)
    if head in _ONLY_UNDER:
        note = "; ".join([f"matches {literal} itself too"] + [_DOTS] * (dots or head == "."))
    return _noting(parse(f"to:.{literal}"), note)


def _head(regex: str, heads: tuple[str, ...]) -> tuple[str, str]:
    """The first of HEADS with which REGEX begins, and what follows; empty and all of it where it begins with none."""
    head = next((head for head in heads if regex.startswith(head)), "")
    return head, regex[len(head) :]


def _literal(regex: str) -> tuple[str, bool]:
    """The text that REGEX stands for, and whether a dot in it stands for any character; empty where it is more than text."""
    if not re.fullmatch(r"([\w@.-]|\\[.@_-])+", regex, re.ASCII) or ".." in regex:
        return "", False
    return regex.replace("\\", ""), bool(re.search(r"(?<!\\)\.", regex))


def _no_domain(regex: str, command: str) -> str:
    """Why REGEX is no domain suffix, and the command to run where one was meant."""
    tail = re.search(r"((?:[\w-]+\\?\.)+[\w-]+)\$$", regex, re.ASCII)
    if not regex.endswith(("$", "@")):
        why = "its end is not tied to the name's end ($), so that a name that only holds it matches"
    elif tail and tail.group(0) == regex:
        why = f"it is not tied to a dot, so that bad{tail.group(1)} matches".replace("\\", "")
    else:
        why = "a regular expression that is more than a domain"
    # Only what follows a dot is certain to be whole names.
    domain = re.search(r"(?:\\\.|@)((?:[\w-]+\\?\.)+[\w-]+)\$$", regex, re.ASCII)
    meant = tail.group(1) if tail and tail.group(0) == regex else domain.group(1) if domain else ""
    if not meant:
        return why
    return f"{why}; where all of the domain is meant: greycheck {command}{meant}".replace("\\", "")


def _noting(pattern: Pattern, note: str) -> Pattern:
    notes = "; ".join(text for text in (note, pattern.note) if text)
    return Pattern(pattern.kind, pattern.key, pattern.text, notes)
