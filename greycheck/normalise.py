"""What makes two envelopes the same: client addresses, networks, mail addresses and sender folding.

Pure functions of bytes and text. This file knows no settings, no store and no hook. It belongs to the forked child, where
``ipaddress`` alone would cost half as much as the whole check (contract.md section 6), so addresses are read here.

Mail addresses are bytes from end to end: what is no UTF-8 stays what it is.

Known warts: case is folded for ASCII only, so an internationalised address counts as two when its sender changes the case of a
letter between two attempts; and a plain address that looks exactly like a tag (``anna-19850612``) is folded like one.
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
    return _text(*parsed)


def client_network(address: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """The network of a client ADDRESS (as client_address gives it) under the prefix lengths, as ``192.0.2.0/24``."""
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


def _parse_ipv4(text: bytes) -> int | None:
    octets = text.split(b".")
    if len(octets) != 4:
        return None
    value = 0
    for octet in octets:
        if not octet.isdigit() or len(octet) > 3 or (len(octet) > 1 and octet[0] == 0x30) or int(octet) > 255:
            return None
        value = value << 8 | int(octet)
    return value


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
    if b"@" in address:
        address = address.rstrip(b".")
    return address


def fold_sender(sender: bytes) -> bytes:
    """SENDER (as mail_address gives it) without what changes from one message, or one attempt, to the next.

    Folded are VERP, BATV, SRS, ``user+detail`` and bounce tags; a name such as ``route66`` is left alone. The domain stays, and
    folding what is folded changes nothing.
    """
    local, at, domain = sender.rpartition(b"@")
    if not at:
        return sender
    while (folded := _fold_once(local)) != local:
        local = folded
    return local + at + domain


# What stands where a tag stood. No step below takes it for a tag, so that folding comes to rest.
_FOLDED = b"#"


def _fold_once(local: bytes) -> bytes:
    for prefix in (b"srs0", b"srs1"):
        if local.startswith(prefix) and local[4:5] in (b"=", b"-", b"+"):
            return _fold_srs(local)
    unwrapped = _unwrap_batv(local)
    if unwrapped:
        return unwrapped
    name, plus, _detail = local.partition(b"+")
    if plus and name:
        return name
    return _fold_tags(local)


def _fold_srs(local: bytes) -> bytes:
    """``srs0=HASH=STAMP=domain=user`` and ``srs1=HASH=forwarder==HASH=STAMP=domain=user``: hashes and stamps go."""
    if local.startswith(b"srs0"):
        parts = local[5:].split(b"=", 3)
        if len(parts) < 4:
            return local
        return b"=".join([b"srs0", _FOLDED, _FOLDED, parts[2], parts[3]])
    forwarder, double, original = local[5:].partition(b"==")
    parts = original.split(b"=", 3)
    _hash, equals, forwarder = forwarder.partition(b"=")
    if not double or not equals or len(parts) < 4:
        return local
    return b"=".join([b"srs1", _FOLDED, forwarder, b"", _FOLDED, _FOLDED, parts[2], parts[3]])


def _unwrap_batv(local: bytes) -> bytes:
    """USER of ``prvs=TAG=USER`` and ``prvs=USER=TAG`` (draft-levine-smtp-batv), also as ``msprvs1=`` and ``btv1==``; else empty."""
    scheme, equals, rest = local.partition(b"=")
    if not equals or scheme not in (b"prvs", b"msprvs1", b"btv1"):
        return b""
    rest = rest.lstrip(b"=")
    first, equals, user = rest.partition(b"=")
    if equals and _is_batv_tag(first):
        return user.lstrip(b"=")
    user, equals, last = rest.rpartition(b"=")
    return user.rstrip(b"=") if equals and _is_batv_tag(last) else b""


def _is_batv_tag(text: bytes) -> bool:
    return 8 <= len(text) <= 16 and _is_hex(text) and _has_digit(text)


# A number this long, or hex this long with a digit in it, is a tag where a dash or an equals sign sets it off from other words;
# shorter ones are names (``sales-2024``). Before VERP's ``user=domain`` every number is one: ezmlm counts from 1.
TAG_DIGITS = 5
TAG_HEX = 8
_ENDS_OF_WORDS = b"-=_"


def _fold_tags(local: bytes) -> bytes:
    words, ends = _split_words(local)
    if len(words) < 2:
        return local  # a mailbox that is one number, as 123456789@example.com
    verp = _verp_starts(ends)
    tags = [_is_tag(word, index, ends) or (0 < index < verp and word.isdigit()) for index, word in enumerate(words)]
    _join_tags(words, tags)
    return b"".join((_FOLDED if tag else word) + end for word, tag, end in zip(words, tags, ends, strict=True))


def _split_words(local: bytes) -> tuple[list[bytes], list[bytes]]:
    """The words of LOCAL and the byte that ends each (empty for the last)."""
    words, ends, start = [], [], 0
    for index, byte in enumerate(local):
        if byte in _ENDS_OF_WORDS:
            words.append(local[start:index])
            ends.append(local[index : index + 1])
            start = index + 1
    words.append(local[start:])
    ends.append(b"")
    return words, ends


def _verp_starts(ends: list[bytes]) -> int:
    """The index of USER's last word in a trailing ``user=domain``; 0 where there is none."""
    for index in range(len(ends) - 1, 0, -1):
        if ends[index] == b"=":
            return index
    return 0


def _join_tags(words: list[bytes], tags: list[bool]) -> None:
    """Marks short hex words between two tags as part of one tag: the middle of a UUID."""
    last = -1
    for index, word in enumerate(words):
        if tags[index]:
            if last >= 0:
                tags[last:index] = [True] * (index - last)
            last = index
        elif not _is_hex(word):
            last = -1


def _is_tag(word: bytes, index: int, ends: list[bytes]) -> bool:
    before = ends[index - 1] if index else b""
    if b"_" in (before, ends[index]) and len(word) < 2 * TAG_HEX:
        return False  # underscores tie names together: john_19851012
    if word.isdigit():
        return len(word) >= TAG_DIGITS
    return len(word) >= TAG_HEX and _is_hex(word) and _has_digit(word)


def _is_hex(text: bytes) -> bool:
    return not text.lower().strip(b"0123456789abcdef")


def _has_digit(text: bytes) -> bool:
    return len(text.strip(b"abcdefABCDEF")) > 0
