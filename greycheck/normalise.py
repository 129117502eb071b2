"""Makes equal what greylisting takes for the same: client addresses, networks, mail addresses.

These are pure functions of bytes and text, without settings, store or hook. The forked child loads
this file; ``ipaddress`` alone would cost half as much as the whole check
(docs/hooks.rst#what-a-process-costs), so addresses are parsed here.

Mail addresses are always bytes: what is not UTF-8 stays as it is.

Known limits: case is folded for ASCII only, so an internationalised address counts as two if its
sender changes the case of a letter between two attempts. Folding knows only the forms that
``greycheck.folding`` lists; a mailing system with another form has a triplet for each message until
one of its clients is known.
"""

IPV4_BITS = 32
IPV6_BITS = 128

# Bytes that all mail is searched for, as numbers. A text of one byte takes Python six times as
# long: it first tries to take that for a number, in vain.
AT, COLON, PLUS = b"@:+"

# --- clients --------------------------------------------------------------------------------------


def client_address(text: bytes) -> str | None:
    """Returns the canonical form of the client address TEXT: dotted IPv4, or IPv6 as in RFC 5952.

    IPv6 that stands for an IPv4 client becomes IPv4 (see ``ipv4_within``); a zone (``%eth0``) is
    cut. Returns None if TEXT is not an address, and for the unspecified address, which tcp-env
    gives for every client of an IPv6 socket (docs/hooks.rst#environment-and-process).
    """
    parsed = _parse(text)
    if parsed is None or parsed[1] == 0:
        return None
    return address_text(*parsed) if COLON in text else text.decode()


def client_network(address: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Returns the network of ADDRESS (as client_address returns it), as ``192.0.2.0/24``."""
    # The default prefix, and most mail.
    if ipv4_prefix == 24 and ":" not in address and "." in address:
        return address[: address.rindex(".")] + ".0/24"
    bits, value = address_bits(address)
    return network(bits, value, ipv4_prefix if bits == IPV4_BITS else ipv6_prefix)


def network(bits: int, value: int, prefix: int) -> str:
    """Returns the network with the first PREFIX bits of VALUE, an address of BITS bits."""
    host_bits = bits - prefix
    return f"{address_text(bits, value >> host_bits << host_bits)}/{prefix}"


def prefix_length(text: str, bits: int) -> int | None:
    """Returns the number that TEXT writes if it is the length of a prefix of BITS; else None."""
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= bits:
        return int(text)
    return None


class Network:
    """The client addresses that share the first ``prefix`` of ``bits`` bits with ``value``."""

    __slots__ = ("bits", "host_bits", "prefix", "value")

    def __init__(self, bits: int, value: int, prefix: int) -> None:
        """Ignores the bits of VALUE after PREFIX."""
        self.bits = bits
        self.prefix = prefix
        self.host_bits = bits - prefix
        self.value = value >> self.host_bits << self.host_bits

    def __str__(self) -> str:
        return network(self.bits, self.value, self.prefix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and str(self) == str(other)

    def overlaps(self, other: "Network") -> bool:
        """True if one of the two networks contains the other."""
        shift = max(self.host_bits, other.host_bits)
        return self.bits == other.bits and self.value >> shift == other.value >> shift


def is_private(address: str) -> bool:
    """True if many clients may share ADDRESS (as client_address returns it).

    It is a private (RFC 1918, RFC 4193), loopback, link-local (RFC 3927, RFC 4291) or carrier-grade
    NAT (RFC 6598) address.
    """
    if ":" in address:
        # Groups are written without leading zeros: fc:: is 00fc::.
        return address == "::1" or (address.startswith(_PRIVATE_IPV6) and address.index(":") == 4)
    if not address.startswith(_PRIVATE_IPV4):
        return False
    low, high = _SECOND.get(address[:4], (0, 255))
    return low <= int(address.split(".", 2)[1]) <= high


# How they begin, and which second octets are theirs where not all are.
_PRIVATE_IPV4 = ("10.", "100.", "127.", "169.254.", "172.", "192.168.")
_SECOND = {"100.": (64, 127), "172.": (16, 31)}
_PRIVATE_IPV6 = ("fc", "fd", "fe8", "fe9", "fea", "feb")


def private_beginnings() -> tuple[str, ...]:
    """Returns how private addresses begin, all of them and no other."""
    found = [begin for begin in _PRIVATE_IPV4 if begin not in _SECOND]
    for begin, (low, high) in _SECOND.items():
        found += [f"{begin}{octet}." for octet in range(low, high + 1)]
    return (*found, "::1", *_PRIVATE_IPV6)


def address_bits(address: str) -> tuple[int, int]:
    """Returns the length (IPV4_BITS or IPV6_BITS) and the value of ADDRESS.

    ADDRESS is as client_address returns it. Raises ValueError.
    """
    parsed = _parse(address.encode())
    if parsed is None:
        raise ValueError(f"{address}: no client address")
    return parsed


# The first 96 bits of IPv6 addresses whose last 32 are an IPv4 client's: mapped (RFC 4291),
# translated (RFC 7915) and NAT64's (RFC 6052). With NAT64 one /64 holds all of IPv4.
MAPPED, TRANSLATED, NAT64 = 0xFFFF, 0xFFFF0000, 0x64FF9B << 64

# The prefixes of NAT64 in a local network, 64:ff9b:1::/48 (RFC 8215), and of Teredo, 2001::/32 (RFC
# 4380).
NAT64_LOCAL, TEREDO = 0x64FF9B0001, 0x20010000


def ipv4_within(value: int) -> int | None:
    """Returns the IPv4 address of the client with IPv6 address VALUE.

    Returns None if it is not an IPv4 client.

    Of NAT64's local prefix only the form with a /96 is known: other forms end in three zero bytes,
    and no client's IPv4 address does. Teredo's clients share a /64 for each server; their last bits
    are inverted. Addresses that stay IPv6: those whose owner has a network of its own, as with 6to4
    and ISATAP; and ``::a.b.c.d``, which no client has (``::1`` is one of them).
    """
    if value >> 32 in (MAPPED, TRANSLATED, NAT64) or (
        value >> 80 == NAT64_LOCAL and value & 0xFFFFFF
    ):
        return value & 0xFFFFFFFF
    return ~value & 0xFFFFFFFF if value >> 96 == TEREDO else None


def written_bits(address: str) -> tuple[int, int]:
    """Returns the length in bits and the value of ADDRESS as written, without its zone.

    It is not changed to IPv4 if it stands for an IPv4 client. Raises ValueError.
    """
    text = address.encode("utf-8", "surrogateescape").split(b"%", 1)[0]
    value = _parse_ipv6(text) if b":" in text else _parse_ipv4(text)
    if value is None:
        raise ValueError(f"{address}: no address")
    return IPV6_BITS if b":" in text else IPV4_BITS, value


def host_name(name: bytes) -> bytes:
    """Returns NAME, from DNS or HELO, in lower case and without a trailing dot."""
    return name.lower().rstrip(b".")


def _parse(text: bytes) -> tuple[int, int] | None:
    if COLON not in text:
        value = _parse_ipv4(text)
        return None if value is None else (IPV4_BITS, value)
    value = _parse_ipv6(text.split(b"%", 1)[0])
    if value is None:
        return None
    ipv4 = ipv4_within(value)
    return (IPV6_BITS, value) if ipv4 is None else (IPV4_BITS, ipv4)


class _Octets(dict[bytes, int]):
    """The octets that were met, by how they are written: a table of all would cost each child."""

    def __missing__(self, text: bytes) -> int:
        # Other forms of a number (blanks, signs, leading zeros) are wrong.
        number = int(text) if text.isdigit() and len(text) <= 3 else 256
        if number > 255 or b"%d" % number != text:
            raise KeyError(text)
        self[text] = number
        return number


_OCTETS = _Octets()


def _parse_ipv4(text: bytes) -> int | None:
    try:
        a, b, c, d = text.split(b".")
        return _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
    except (ValueError, KeyError):
        return None


def _parse_ipv6(text: bytes) -> int | None:
    head, gap, tail = text.partition(b"::")
    high = _groups(head, last=not gap)
    low = _groups(tail, last=True)
    if high is None or low is None:
        return None
    missing = 8 - len(high) - len(low)
    if missing < 1 if gap else missing:
        return None
    value = 0
    for group in high + [0] * missing + low:
        value = value << 16 | group
    return value


def _groups(text: bytes, last: bool) -> list[int] | None:
    """Returns the 16-bit groups of one side of an IPv6 address; None if it is wrong.

    The LAST side may end in a dotted IPv4 address.
    """
    groups: list[int] = []
    if not text:
        return groups
    parts = text.split(b":")
    if last and b"." in parts[-1]:
        ipv4 = _parse_ipv4(parts.pop())
        if ipv4 is None:
            return None
        tail = [ipv4 >> 16, ipv4 & 0xFFFF]
    else:
        tail = []
    for part in parts:
        if not 1 <= len(part) <= 4 or part.lower().strip(b"0123456789abcdef"):
            return None
        groups.append(int(part, 16))
    return groups + tail


def address_text(bits: int, value: int) -> str:
    """Returns VALUE, an address of BITS bits, as ``client_address`` returns it."""
    if bits == IPV4_BITS:
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    groups = [value >> shift & 0xFFFF for shift in range(112, -1, -16)]
    start, length = _longest_zero_run(groups)
    if length < 2:
        return ":".join(f"{group:x}" for group in groups)
    head = ":".join(f"{group:x}" for group in groups[:start])
    tail = ":".join(f"{group:x}" for group in groups[start + length :])
    return f"{head}::{tail}"


def _longest_zero_run(groups: list[int]) -> tuple[int, int]:
    best_start = best_length = length = 0
    for index, group in enumerate(groups):
        length = length + 1 if group == 0 else 0
        if length > best_length:
            best_start, best_length = index - length + 1, length
    return best_start, best_length


# --- mail addresses -------------------------------------------------------------------------------


def mail_address(address: bytes) -> bytes:
    """Returns ADDRESS in lower case, without a trailing dot of its domain.

    The null sender is empty.
    """
    address = address.lower()
    return address.removesuffix(b".") if AT in address else address


# An address without one of these bytes has no tags; nor has a name of letters and digits that is
# shorter than _WORD: that is most mail.
_OF_TAGS = b"0123456789+="
_WORD = 12


def fold_sender(sender: bytes) -> bytes:
    """Returns SENDER (as mail_address returns it) without what changes from message to message.

    Folded are VERP, BATV, SRS, ``user+detail`` and bounce tags (``greycheck.folding``); a name such
    as ``route66`` or ``branch-10234`` is not. The domain is kept as far as it belongs to somebody.
    Folding twice has the effect of folding once.
    """
    local, at, domain = sender.rpartition(b"@")
    if (
        not at
        or (len(local) < _WORD and local.isalnum() and not local.isdigit())
        or len(local.translate(None, _OF_TAGS)) == len(local)
    ):
        return sender
    from greycheck import folding

    local, domain = folding.fold(local, domain)
    return local + at + domain
