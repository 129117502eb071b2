"""What makes two envelopes the same: client addresses, networks, mail addresses and sender folding.

Pure functions of bytes and text. This file knows no settings, no store and no hook. It belongs to the forked child, where
``ipaddress`` alone would cost half as much as the whole check (contract.md section 6), so addresses are read here.

Mail addresses are bytes from end to end: what is no UTF-8 stays what it is.

Known warts: case is folded for ASCII only, so an internationalised address counts as two when its sender changes the case of a
letter between two attempts. Folding knows the forms that are written down below; a mailing system with another form has a triplet for
each message until one of its clients is known.
"""

IPV4_BITS = 32
IPV6_BITS = 128

# --- clients -----------------------------------------------------------------------------------------------------------


def client_address(text: bytes) -> str | None:
    """The one spelling of the client address TEXT: dotted IPv4, or IPv6 as RFC 5952 writes it.

    IPv4-mapped IPv6 is IPv4; a zone (``%eth0``) goes. None for what is no address, and for the unspecified address, which
    tcp-env gives for every client of an IPv6 socket (contract.md section 3).
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
    prefix = ipv4_prefix if bits == IPV4_BITS else ipv6_prefix
    host_bits = bits - prefix
    return f"{_text(bits, value >> host_bits << host_bits)}/{prefix}"


def address_bits(address: str) -> tuple[int, int]:
    """The length in bits (IPV4_BITS or IPV6_BITS) and the value of a client ADDRESS as client_address gives it."""
    parsed = _parse(address.encode())
    if parsed is None:
        raise ValueError(f"{address}: no client address")
    return parsed


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
    if value >> 32 == 0xFFFF:
        return IPV4_BITS, value & 0xFFFFFFFF
    return IPV6_BITS, value


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
        if not 1 <= len(part) <= 4 or not _is_hex(part):
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


def fold_sender(sender: bytes) -> bytes:
    """SENDER (as mail_address gives it) without what changes from one message, or one attempt, to the next.

    Folded are VERP, BATV, SRS, ``user+detail`` and bounce tags; a name such as ``route66`` or ``branch-10234`` is left alone: a number
    is only a tag where a word like ``bounce`` or a recipient's address says so. The domain stays, and folding what is folded changes
    nothing.
    """
    local, at, domain = sender.rpartition(b"@")
    if not at or (len(local) < _WHOLE_HEX and local.isalnum()):  # most of all mail
        return sender
    return _fold(local) + at + domain


# What stands where a tag stood. No step below takes it for a tag, so that folding comes to rest.
_FOLDED = b"#"


def _fold(local: bytes) -> bytes:
    while (folded := _fold_once(local)) != local:
        local = folded
    return local


def _fold_once(local: bytes) -> bytes:
    if local[:4] in (b"srs0", b"srs1") and local[4:5] in (b"=", b"-", b"+"):
        return _fold_srs(local)
    unwrapped = _unwrap_batv(local)
    if unwrapped:
        return unwrapped
    name, plus, _detail = local.partition(b"+")
    if plus and name:
        return name
    return _fold_tags(local)


def _fold_srs(local: bytes) -> bytes:
    """``srs0=HASH=STAMP=domain=user`` and ``srs1=HASH=forwarder==HASH=STAMP=domain=user``: hashes and stamps go, and tags of the user.

    The first separator of each, and so the second of two in srs1, may be ``=``, ``-`` or ``+``.
    """
    if local.startswith(b"srs0"):
        original = _fold_srs0(local[5:])
        return b"srs0=" + original if original else local
    _hash, equals, rest = local[5:].partition(b"=")
    forwarder, equals, original = rest.partition(b"=")
    if not equals or original[:1] not in (b"=", b"-", b"+"):
        return local
    original = _fold_srs0(original[1:])
    return b"=".join([b"srs1", _FOLDED, forwarder, b"", original]) if original else local


def _fold_srs0(original: bytes) -> bytes:
    parts = original.split(b"=", 3)
    return b"=".join([_FOLDED, _FOLDED, parts[2], _fold(parts[3])]) if len(parts) == 4 else b""


def _unwrap_batv(local: bytes) -> bytes:
    """USER of ``prvs=TAG=USER`` and ``prvs=USER=TAG`` (draft-levine-smtp-batv), also as ``msprvs1=`` and ``btv1==``; else empty."""
    scheme, equals, rest = local.partition(b"=")
    if not equals or scheme not in (b"prvs", b"msprvs1", b"btv1"):
        return b""
    first, equals, user = rest.lstrip(b"=").partition(b"=")
    if equals and _is_batv_tag(scheme, first):
        return user.lstrip(b"=")
    user, equals, last = rest.rpartition(b"=")
    return user.rstrip(b"=") if equals and _is_batv_tag(scheme, last) else b""


def _is_batv_tag(scheme: bytes, text: bytes) -> bool:
    """Ten hex digits, or nearly; of SparkPost's ``msprvs1`` letters and digits of any kind."""
    if scheme == b"msprvs1":
        return 8 <= len(text) <= 20 and text.isalnum() and _has_digit(text)
    return 8 <= len(text) <= 16 and _is_hex(text) and _has_digit(text)


# Words after which a number is a tag.
_BOUNCES = (b"bounce", b"bounces", b"return", b"returns", b"dated", b"msgid", b"verp", b"errors")

# Shortest hex tag: after such a word, by itself, and where it is the whole local part. Each must have digits among its letters.
_SHORT_HEX, _LONG_HEX, _WHOLE_HEX = 6, 12, 24

# The lengths of the groups of a UUID.
_UUID = (8, 4, 4, 4, 12)


def _fold_tags(local: bytes) -> bytes:
    if len(local.translate(None, _ENDS)) == len(local):  # one word
        return _FOLDED if _is_tag(local, _WHOLE_HEX) else local
    words, ends = _split_words(local)
    bounce = next((index for index, word in enumerate(words) if word in _BOUNCES), len(words))
    verp = ends.index(b"=") if b"=" in ends else 0
    tags = [
        _is_tag(word, _LONG_HEX)
        or (index > bounce and (word.isdigit() or _is_tag(word, _SHORT_HEX)))
        or (0 < index < verp and word.isdigit())
        for index, word in enumerate(words)
    ]
    _mark_uuids(words, tags)
    return b"".join((_FOLDED if tag else word) + end for word, tag, end in zip(words, tags, ends, strict=True))


# What ends a word.
_ENDS = b"-=_."


def _split_words(local: bytes) -> tuple[list[bytes], list[bytes]]:
    """The words of LOCAL and the byte that ends each (empty for the last)."""
    words, ends, start = [], [], 0
    for index, byte in enumerate(local):
        if byte in _ENDS:
            words.append(local[start:index])
            ends.append(local[index : index + 1])
            start = index + 1
    words.append(local[start:])
    ends.append(b"")
    return words, ends


def _mark_uuids(words: list[bytes], tags: list[bool]) -> None:
    for start in range(len(words) - len(_UUID) + 1):
        groups = words[start : start + len(_UUID)]
        if all(len(group) == length and _is_hex(group) for group, length in zip(groups, _UUID, strict=True)):
            tags[start : start + len(_UUID)] = [True] * len(_UUID)


def _is_tag(word: bytes, shortest: int) -> bool:
    """Whether WORD is hex of that length at least, its digits among its letters: not a number, and no word with a year behind it."""
    return len(word) >= shortest and _is_hex(word) and not word.isdigit() and _has_digit(word.rstrip(b"0123456789"))


def _is_hex(text: bytes) -> bool:
    return not text.lower().strip(b"0123456789abcdef")


def _has_digit(text: bytes) -> bool:
    return any(digit in text for digit in b"0123456789")
