"""Folds senders as releases before ``greycheck.folding`` did, so that their rows stay valid.

A new triplet whose sender has tags is looked up once more under its earlier key (``triplet_then``).
If it is pending or known there, it goes on from that row, under its present key
(``policy.Decision``); the old row expires. Rules for an address as it was folded then still match
it (``rule_keys``).

It is imported only if a sender has tags. It is to be removed with release 0.3, when all rows of
then have expired.
"""

from greycheck.envelope import Triplet

# Longer senders had no triplet (docs/hooks.rst#addresses).
LONGEST = 899


def triplet_then(triplet: Triplet) -> Triplet | None:
    """Returns TRIPLET with its earlier key; None if that is the same."""
    sender = fold_sender(triplet.written)
    return (
        None
        if sender == triplet.sender
        else Triplet(triplet.client, triplet.network, sender, triplet.recipient)
    )


# --- as it was ------------------------------------------------------------------------------------


def fold_sender(sender: bytes) -> bytes:
    """Returns SENDER (as mail_address returns it) as it was folded then.

    A sender that is longer than any in a store is not folded.
    """
    if len(sender) > LONGEST:
        return sender
    local, at, domain = sender.rpartition(b"@")
    if not at or (len(local) < _WHOLE_HEX and local.isalnum()):  # most of all mail
        return sender
    return _fold(local) + at + domain


# Replaces a tag. No step below takes it for a tag, so that folding ends.
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
    """Folds SRS: replaces hashes and stamps, and tags of the user.

    The forms are ``srs0=HASH=STAMP=domain=user`` and
    ``srs1=HASH=forwarder==HASH=STAMP=domain=user``. The first separator of each, and so the second
    of two in srs1, may be ``=``, ``-`` or ``+``.
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
    """Returns USER of ``prvs=TAG=USER`` and ``prvs=USER=TAG`` (draft-levine-smtp-batv); else empty.

    The scheme may also be ``msprvs1=`` or ``btv1==``.
    """
    scheme, equals, rest = local.partition(b"=")
    if not equals or scheme not in (b"prvs", b"msprvs1", b"btv1"):
        return b""
    first, equals, user = rest.lstrip(b"=").partition(b"=")
    if equals and _is_batv_tag(scheme, first):
        return user.lstrip(b"=")
    user, equals, last = rest.rpartition(b"=")
    return user.rstrip(b"=") if equals and _is_batv_tag(scheme, last) else b""


def _is_batv_tag(scheme: bytes, text: bytes) -> bool:
    """True for about ten hex digits; for ``msprvs1`` (SparkPost), any letters and digits."""
    if scheme == b"msprvs1":
        return 8 <= len(text) <= 20 and text.isalnum() and _has_digit(text)
    return 8 <= len(text) <= 16 and _is_hex(text) and _has_digit(text)


# Words after which a number is a tag.
_BOUNCES = (b"bounce", b"bounces", b"return", b"returns", b"dated", b"msgid", b"verp", b"errors")

# The shortest hex tag: after such a word, anywhere, and as the whole local part. It must have
# digits between its letters.
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
    return b"".join(
        (_FOLDED if tag else word) + end for word, tag, end in zip(words, tags, ends, strict=True)
    )


# The bytes that end a word.
_ENDS = b"-=_."


def _split_words(local: bytes) -> tuple[list[bytes], list[bytes]]:
    """Returns the words of LOCAL and the byte that ends each (empty for the last)."""
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
        if all(
            len(group) == length and _is_hex(group)
            for group, length in zip(groups, _UUID, strict=True)
        ):
            tags[start : start + len(_UUID)] = [True] * len(_UUID)


def _is_tag(word: bytes, shortest: int) -> bool:
    """True if WORD is hex of at least SHORTEST digits, with digits between its letters.

    So it is neither a number, nor a word with a year behind it.
    """
    return (
        len(word) >= shortest
        and _is_hex(word)
        and not word.isdigit()
        and _has_digit(word.rstrip(b"0123456789"))
    )


def _is_hex(text: bytes) -> bool:
    return not text.lower().strip(b"0123456789abcdef")


def _has_digit(text: bytes) -> bool:
    return any(digit in text for digit in b"0123456789")
