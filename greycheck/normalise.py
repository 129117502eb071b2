"""What makes two envelopes the same: client addresses, networks, mail addresses and sender folding.

Pure functions of bytes and text. This file knows no settings, no store and no hook. It belongs to the forked child, where
``ipaddress`` alone would cost half as much as the whole check (contract.md section 6), so addresses are read here.

Mail addresses are bytes from end to end: what is no UTF-8 stays what it is.

Known warts: case is folded for ASCII only, so an internationalised address counts as two when its sender changes the case of a
letter between two attempts. Folding knows the forms that ``greycheck.folding`` names; a mailing system with another form has a triplet
for each message until one of its clients is known.
"""

IPV4_BITS = 32
IPV6_BITS = 128

# --- clients -----------------------------------------------------------------------------------------------------------


def client_address(text: bytes) -> str | None:
    """The one spelling of the client address TEXT: dotted IPv4, or IPv6 as RFC 5952 writes it.

    IPv6 that stands for an IPv4 client is IPv4 (see ``ipv4_within``); a zone (``%eth0``) goes. None for what is no address, and for the
    unspecified address, which tcp-env gives for every client of an IPv6 socket (contract.md section 3).
    """
    parsed = _parse(text)
    if parsed is None or parsed[1] == 0:
        return None
    return _text(*parsed) if b":" in text else text.decode()


def client_network(address: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """The network of a client ADDRESS (as client_address gives it) under the prefix lengths, as ``192.0.2.0/24``."""
    if ipv4_prefix == 24 and ":" not in address and "." in address:  # the default, and most of all mail
        return address[: address.rindex(".")] + ".0/24"
    bits, value = address_bits(address)
    return network(bits, value, ipv4_prefix if bits == IPV4_BITS else ipv6_prefix)


def network(bits: int, value: int, prefix: int) -> str:
    """The network that the first PREFIX of an address' BITS make, of which VALUE is one."""
    host_bits = bits - prefix
    return f"{_text(bits, value >> host_bits << host_bits)}/{prefix}"


# What begins a private (RFC 1918, RFC 4193), loopback, link-local (RFC 3927, RFC 4291) or carrier's (RFC 6598) address.
_PRIVATE_IPV4 = (
    ("10.", "127.", "169.254.", "192.168.")
    + tuple(f"172.{octet}." for octet in range(16, 32))
    + tuple(f"100.{octet}." for octet in range(64, 128))
)
_PRIVATE_IPV6 = ("fc", "fd", "fe8", "fe9", "fea", "feb")
PRIVATE = (*_PRIVATE_IPV4, "::1", *_PRIVATE_IPV6)


def is_private(address: str) -> bool:
    """Whether many clients may share a client ADDRESS (as client_address gives it): it is private, loopback, link-local or a carrier's."""
    if ":" not in address:
        return address.startswith("1") and address.startswith(
            _PRIVATE_IPV4
        )  # as they all do: four of five are told by that
    # Groups are written without leading zeros: fc:: is 00fc::.
    return address == "::1" or (address.startswith(_PRIVATE_IPV6) and address.index(":") == 4)


def address_bits(address: str) -> tuple[int, int]:
    """The length in bits (IPV4_BITS or IPV6_BITS) and the value of a client ADDRESS as client_address gives it."""
    parsed = _parse(address.encode())
    if parsed is None:
        raise ValueError(f"{address}: no client address")
    return parsed


# The first 96 bits of IPv6 addresses whose last 32 are an IPv4 client's: mapped (RFC 4291), translated (RFC 7915) and NAT64's (RFC 6052).
# Under NAT64 one /64 holds all of IPv4.
MAPPED, TRANSLATED, NAT64 = 0xFFFF, 0xFFFF0000, 0x64FF9B << 64

# NAT64's local prefix, 64:ff9b:1::/48 (RFC 8215), and Teredo's, 2001::/32 (RFC 4380), without which the rest of the bits is to be seen.
NAT64_LOCAL, TEREDO = 0x64FF9B0001, 0x20010000


def ipv4_within(value: int) -> int | None:
    """The IPv4 address of the client that has the IPv6 address VALUE; None where it is IPv6 itself.

    Of NAT64's local prefix the form of a /96 is known: the others have zeros at the end, as no client's IPv4 address has three. Teredo's
    clients share a /64 for each server; their last bits are inverted. Where addresses of one owner have a network of their own, as with
    6to4 and ISATAP, they stay IPv6; so does ``::a.b.c.d``, which no client has, and of which ``::1`` is one.
    """
    if value >> 32 in (MAPPED, TRANSLATED, NAT64) or (value >> 80 == NAT64_LOCAL and value & 0xFFFFFF):
        return value & 0xFFFFFFFF
    return ~value & 0xFFFFFFFF if value >> 96 == TEREDO else None


def written_bits(address: str) -> tuple[int, int]:
    """The length in bits and the value of ADDRESS as it is written, also where it stands for an IPv4 client; without its zone."""
    text = address.encode("utf-8", "surrogateescape").split(b"%", 1)[0]
    value = _parse_ipv6(text) if b":" in text else _parse_ipv4(text)
    if value is None:
        raise ValueError(f"{address}: no address")
    return IPV6_BITS if b":" in text else IPV4_BITS, value


def host_name(name: bytes) -> bytes:
    """NAME, of a client or from HELO, with its case folded and without a trailing dot."""
    return name.lower().rstrip(b".")


def _parse(text: bytes) -> tuple[int, int] | None:
    if b":" not in text:
        value = _parse_ipv4(text)
        return None if value is None else (IPV4_BITS, value)
    value = _parse_ipv6(text.split(b"%", 1)[0])
    if value is None:
        return None
    ipv4 = ipv4_within(value)
    return (IPV6_BITS, value) if ipv4 is None else (IPV4_BITS, ipv4)


# As each is written: whatever else can be read as a number (blanks, leading zeros) is none.
_OCTETS = {b"%d" % number: number for number in range(256)}


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
    """The 16-bit groups of one side of an IPv6 address; where it is the LAST side it may end in a dotted IPv4 address."""
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


def _text(bits: int, value: int) -> str:
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


# --- mail addresses ----------------------------------------------------------------------------------------------------


def mail_address(address: bytes) -> bytes:
    """ADDRESS with the case of both parts folded and without the domain's trailing dot. The null sender is empty."""
    address = address.lower()
    return address.removesuffix(b".") if b"@" in address else address


# Without one of these nothing folds; and one word of letters and digits that is shorter (most of all mail) does not either.
_OF_TAGS = b"0123456789+="
_WORD = 20


def fold_sender(sender: bytes) -> bytes:
    """SENDER (as mail_address gives it) without what changes from one message, or one attempt, to the next (``greycheck.folding``).

    Folded are VERP, BATV, SRS, ``user+detail`` and bounce tags; a name such as ``route66`` or ``branch-10234`` is left alone. The domain
    stays as far as it belongs to anybody. Folding what is folded changes nothing.
    """
    local, at, domain = sender.rpartition(b"@")
    if not at or len(local.translate(None, _OF_TAGS)) == len(local) or (len(local) < _WORD and local.isalnum()):
        return sender
    from greycheck import folding

    local, domain = folding.fold(local, domain)
    return local + at + domain
