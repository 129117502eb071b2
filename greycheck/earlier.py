"""How senders were folded before ``greycheck.folding``: what a store has of them goes on to count.

A triplet that is new, and whose sender has tags, is looked for once more under the key that it had then (``row``); where it waits or is
known there it goes on from that, under its key of today (``carried_over``). The row of then is left to expire. Rules that were made for
an address as it was folded then go on to match it (``rules.spellings``).

Nobody else wants this: it is imported where a sender has tags, and is to go with release 0.3, when every row of then is over.
"""

from greycheck.envelope import Triplet
from greycheck.policy import Change, Terms, TripletRow
from greycheck.store.lean import Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from greycheck.store.lean import Store

# Senders that were longer came to no triplet (contract.md section 4).
LONGEST = 899


def asked_then(asked: Asked) -> Asked | None:
    """What is ASKED as it was asked for then; None where that is the same."""
    now = asked.triplet
    sender = fold_sender(asked.triplet.written)
    if sender == now.sender:
        return None
    return Asked(asked.envelope, Triplet(now.client, now.network, sender, now.recipient))


def row(store: "Store", asked: Asked, now: int) -> TripletRow | None:
    """The row that STORE has of what is ASKED from then, if there is one. Raises StoreError."""
    then = asked_then(asked)
    return None if then is None else store.lookup(then, now).triplet


def carried_over(
    changes: "Sequence[Change]", row: TripletRow, there: TripletRow | None, terms: Terms, now: int
) -> list[Change]:
    """CHANGES of ROW, which is from then, as changes of what is THERE under today's key. It is carried over even where nothing changed."""
    carried = [Change(there, change.new, change.expires) if change.old is row else change for change in changes]
    if all(change.old is not row for change in changes):
        expires = min(row.first, now) + terms.retry_window if row.passed is None else row.last + terms.lifetime
        carried.insert(0, Change(there, row, expires))
    return carried


# --- as it was ---------------------------------------------------------------------------------------------------------


def fold_sender(sender: bytes) -> bytes:
    """SENDER (as mail_address gives it) as it was folded then. What is longer than any sender of a store's rows is left as it is."""
    if len(sender) > LONGEST:
        return sender
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
