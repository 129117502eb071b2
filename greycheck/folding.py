"""Sender folding: what changes from one message of a sender, or one attempt, to the next is left out of greylisting's key.

``normalise.fold_sender`` comes here with what is no plain name. Forms are told by their shape, never by whose they are:

    srs0=HASH=STAMP=domain=user  srs1=...  user+srs=HASH=STAMP=domain=user     hashes and stamps
    prvs=TAG=user  prvs=user=TAG  btv1==TAG==user  msprvs1=TAG=user            gone, the user stays
    user+detail                                                                gone, the user stays
    list-return-123-user=dom  bounce-123_4  owner-list-m123  0.1.2.3.4.5.6.7   numbers where a word, a recipient or their row says so
    hex, UUIDs, random letters and digits                                      tags, wherever they stand

A tag becomes ``#``, which no rule takes for a tag. Every step takes away characters that are no ``#``, or is the last one, so folding
comes to rest, and folding what is folded changes nothing. Work is bounded: what is longer than any address is left as it is.

Two senders of one domain that become one by mistake share a triplet, for one recipient and one client network. A tag that is missed
costs its sender one triplet a message until the client is known. So a shape that people give to names (``route66``, ``order-10234``)
is left alone where nothing else says that it is a tag.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The longest address that is folded, in bytes: beyond any that a mail program writes (899 come from qmail-smtpd).
LONGEST = 1024

# What stands where a tag stood. No step below takes it for a tag, so that folding comes to rest.
FOLDED = b"#"

# Words after which a number is a tag, and which as a label of a domain say that its users are tags.
BOUNCES = (b"bounce", b"bounces", b"return", b"returns", b"dated", b"msgid", b"verp", b"errors")

# Shortest hex tag: after such a word, by itself, and where it is the whole local part. Each must have digits among its letters.
_SHORT_HEX, _LONG_HEX, _WHOLE_HEX = 6, 12, 24

# Shortest tag of letters and digits: by itself, where it is the whole local part, and where it makes noise of what is joined to it.
_LONG_RANDOM, _WHOLE_RANDOM, _NOISE = 12, 20, 16

# How often letters and digits must take turns in such a tag: in a name such as route66 they do once. Less where a domain is for bounces.
_TURNS, _FEW_TURNS = 4, 2

# The lengths of the groups of a UUID; how many numbers in a row, dots between them, are no telephone number or date.
_UUID = (8, 4, 4, 4, 12)
_NUMBERS = 7

# Of hex in short groups: the shortest group, how many there must be, and of how many digits in all.
_GROUP, _GROUPS, _GROUPED = 4, 3, 20

# Shortest tag that may have its signature behind it.
_SIGNED = 20

# Labels of a domain that are never folded: the last ones, by which it belongs to somebody.
_OWN_LABELS = 3

# What ends a word.
_ENDS = b"-=_."

_DIGITS = b"0123456789"
_HEX = _DIGITS + b"abcdef"
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
_ALPHABET = _DIGITS + _LETTERS

# Letters and digits made alike, to count how often they take turns.
_ALIKE = bytes.maketrans(_LETTERS + _DIGITS, b"a" * 26 + b"0" * 10)


def fold(local: bytes, domain: bytes) -> tuple[bytes, bytes]:
    """LOCAL part and DOMAIN of a sender without what changes from message to message."""
    if len(local) + len(domain) >= LONGEST:
        return local, domain
    bounces = _is_of_bounces(domain)
    before, rest, whole = b"", local, local
    while True:
        wrapper, inside = _unwrap(rest)
        before += wrapper
        if inside == rest:
            inside = _fold_tags(rest, bounces)
        if inside == rest:
            if before + rest == whole or not before:
                break
            # What is at rest inside may have become the tag of what is around it: prvs=user+srs=...=TAG
            before, inside = b"", before + rest
            whole = inside
        rest = inside
    folded = before + rest
    return folded, fold_hosts(domain) if folded != local else domain


# --- wrappers ----------------------------------------------------------------------------------------------------------


def _unwrap(local: bytes) -> tuple[bytes, bytes]:
    """What of LOCAL is to be kept as it is now, and what is to be looked at again: all of it where nothing is wrapped around it."""
    if local[:4] in (b"srs0", b"srs1") and local[4:5] in (b"=", b"-", b"+"):
        return _unwrap_srs(local)
    user = _unwrap_batv(local)
    if user:
        return b"", user
    name, plus, detail = local.partition(b"+")
    if not plus or not name:
        return b"", local
    if detail.startswith(b"srs="):
        parts = detail.split(b"=", 4)
        if len(parts) == 5:
            return b"=".join([name + b"+srs", _mark(parts[1]), _mark(parts[2]), parts[3], b""]), parts[4]
    if name.endswith(b"=") and detail.isdigit():
        return b"", local  # fax=+49301234567
    return b"", name


def _mark(part: bytes) -> bytes:
    """What stands for PART of a wrapper, where there is one: nothing ever becomes longer."""
    return FOLDED if part else b""


def _unwrap_srs(local: bytes) -> tuple[bytes, bytes]:
    """``srs0=HASH=STAMP=domain=user`` and ``srs1=HASH=forwarder==HASH=STAMP=domain=user``: hashes and stamps go, the user is left.

    The first separator of each, and so the second of two in srs1, may be ``=``, ``-`` or ``+``.
    """
    start, original = b"srs0=", local[5:]
    if local.startswith(b"srs1"):
        its_hash, _equals, rest = original.partition(b"=")
        forwarder, equals, original = rest.partition(b"=")
        if not equals or original[:1] not in (b"=", b"-", b"+"):
            return b"", local
        start, original = b"=".join([b"srs1", _mark(its_hash), forwarder, b"", b""]), original[1:]
    parts = original.split(b"=", 3)
    if len(parts) < 4:
        return b"", local
    return b"=".join([start + _mark(parts[0]), _mark(parts[1]), parts[2], b""]), parts[3]


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
    """Ten hex digits, or nearly; of ``msprvs1`` letters and digits of any kind."""
    if scheme == b"msprvs1":
        return 8 <= len(text) <= 20 and text.isalnum() and _has_digit(text)
    return 8 <= len(text) <= 16 and _is_hex(text) and _has_digit(text)


# --- tags --------------------------------------------------------------------------------------------------------------


def _fold_tags(local: bytes, bounces: bool) -> bytes:
    """LOCAL with ``#`` for its tags. BOUNCES is whether the domain is one for bounces."""
    if len(local.translate(None, _ENDS)) == len(local):  # one word
        if _is_tag(local, _WHOLE_HEX) or _is_random(local, _WHOLE_RANDOM, _TURNS):
            return FOLDED
        return FOLDED if bounces and _is_random_user(local) else local
    words, ends = _split_words(local)
    bounce = next((index for index, word in enumerate(words) if word in BOUNCES), len(words))
    verp = ends.index(b"=") if b"=" in ends else -1
    if bounces and verp < 0 and bounce == len(words):
        joined = b"".join(words)
        # A recipient's address may be written in it, so that no two are divided alike.
        if any(map(_is_random_user, words)) or (len(joined) >= _WHOLE_HEX and _is_random_user(joined)):
            return FOLDED
    without = _without_token(local, bounces) if verp >= 0 else _without_noise(local, words, bounce)
    if without != local:
        return without
    tags = _tags(words, ends, bounce, verp)
    return b"".join((FOLDED if tag else word) + end for word, tag, end in zip(words, tags, ends, strict=True))


def _tags(words: list[bytes], ends: list[bytes], bounce: int, verp: int) -> list[bool]:
    """Which of WORDS are tags. BOUNCE is the first word that says so; VERP the one before the first ``=``, or negative."""
    # What is written of a recipient's name begins after the last hyphen before the domain's =.
    user = max((index + 1 for index in range(verp) if ends[index] == b"-"), default=verp)
    tags: list[bool] = []
    for index, word in enumerate(words):
        after = index > bounce
        within_user = user < index <= verp
        tags.append(
            _is_tag(word, _LONG_HEX)
            or _is_random(word, _LONG_RANDOM, _TURNS)
            or (after and not within_user and (word.isdigit() or _is_tag(word, _SHORT_HEX)))
            or (after and index < user and _is_grouped(word))
            or (after and tags[-1] and words[index - 1].isdigit() and len(word) >= _SHORT_HEX and _is_grouped(word))
            or (0 < index < verp and word.isdigit())
        )
    _mark_uuids(words, tags)
    _mark_groups(words, ends, tags)
    _mark_rows_of_numbers(words, ends, tags)
    _mark_neighbours(words, ends, tags)
    if len(words) > 1 and tags[-2] and len(words[-2]) >= _SIGNED and ends[-2] == b"." and len(words[-1]) >= _GROUP:
        tags[-1] = tags[-1] or words[-1].isalnum()  # the signature of what is before it
    if words[0] == b"owner" and words[-1][:1] == b"m" and words[-1][1:].isdigit():
        tags[-1] = True
    return tags


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


def _without_token(local: bytes, bounces: bool) -> bytes:
    """LOCAL, which names a recipient as ``user=domain``, without a token behind that, or right before it where the domain says BOUNCES."""
    user, _equals, rest = local.partition(b"=")
    host, token, text = rest.partition(b"__")
    if token and len(text) >= _LONG_RANDOM - 2 and not text.translate(None, _ALPHABET + b"-"):
        return user + b"=" + host + b"__" + FOLDED
    tag = len(user) - len(user.lstrip(_HEX))
    if bounces and 8 <= tag < len(user) and _has_digit(user[:tag]) and user[tag : tag + 1].isalpha():
        return FOLDED + local[tag:]
    return local


def _without_noise(local: bytes, words: list[bytes], bounce: int) -> bytes:
    """LOCAL without what follows a word such as bounce (the one of index BOUNCE), where that is base64: no two are divided alike."""
    noisy = any(
        len(word) >= _NOISE and not _is_hex(word) and _is_random(word, _NOISE, _TURNS) for word in words[bounce:]
    )
    if not noisy:
        return local
    start = sum(len(word) + 1 for word in words[: bounce + 1])
    run = local[start:].partition(b".")[0]
    return local[:start] + FOLDED + local[start + len(run) :] if len(run) >= 2 * _NOISE else local


def _mark_uuids(words: list[bytes], tags: list[bool]) -> None:
    for start in range(len(words) - len(_UUID) + 1):
        groups = words[start : start + len(_UUID)]
        if all(len(group) == length and _is_hex(group) for group, length in zip(groups, _UUID, strict=True)):
            tags[start : start + len(_UUID)] = [True] * len(_UUID)


def _mark_groups(words: list[bytes], ends: list[bytes], tags: list[bool]) -> None:
    """Marks hex in short groups, such as ``a1b2c3d4.0f9e8d7c.12345678``: one in which letters and digits are mixed is not enough."""
    for start, end in _runs(words, ends, lambda word: len(word) >= _GROUP and _is_hex(word)):
        group = words[start:end]
        mixed = sum(_has_digit(word) and not word.isdigit() for word in group)
        if len(group) >= _GROUPS and mixed >= 2 and sum(map(len, group)) >= _GROUPED:
            tags[start:end] = [True] * len(group)


def _mark_rows_of_numbers(words: list[bytes], ends: list[bytes], tags: list[bool]) -> None:
    """Marks the numbers of a long row with dots between them, but for the first, which belongs to what is before it."""
    for start, end in _runs(words, ends, lambda word: word.isdigit() or word == FOLDED, b"."):
        if end - start >= _NUMBERS:
            tags[start + 1 : end] = [True] * (end - start - 1)


def _mark_neighbours(words: list[bytes], ends: list[bytes], tags: list[bool]) -> None:
    """Marks numbers, and short hex with digits in it, beside what is a tag without anything that says so, and beside them."""
    for at in [index for index, word in enumerate(words) if tags[index] and len(word) >= _LONG_HEX]:
        for step in (-1, 1):
            index = at + step
            while 0 <= index < len(words) and not tags[index] and ends[min(index, index - step)] != b"=":
                if not (words[index].isdigit() or _is_grouped(words[index])):
                    break
                tags[index] = True
                index += step


def _runs(
    words: list[bytes], ends: list[bytes], belongs: "Callable[[bytes], bool]", joint: bytes = b".-_"
) -> "Iterator[tuple[int, int]]":
    """From where to where words that BELONG together stand in a row, with a JOINT between them."""
    start = 0
    while start < len(words):
        end = start
        while end < len(words) and belongs(words[end]) and (end == start or ends[end - 1] in joint):
            end += 1
        if end > start:
            yield start, end
        start = max(end, start + 1)


# --- hosts -------------------------------------------------------------------------------------------------------------


def _is_of_bounces(domain: bytes) -> bool:
    """Whether a label of DOMAIN, above its last, says that its users are tags: ``bounces.example.com``."""
    labels = domain.split(b".")[:-1]
    return any(label in BOUNCES or label.startswith((b"bounce", b"bnc")) for label in labels)


def fold_hosts(domain: bytes) -> bytes:
    """DOMAIN with ``#`` for labels that are tags, below those by which it belongs to somebody."""
    labels = domain.split(b".")
    for index, label in enumerate(labels[:-_OWN_LABELS]):
        if _is_tag(label, _LONG_HEX) or _is_random(label, _LONG_RANDOM, _FEW_TURNS):
            labels[index] = FOLDED
    return b".".join(labels)


# --- words -------------------------------------------------------------------------------------------------------------


def _is_tag(word: bytes, shortest: int) -> bool:
    """Whether WORD is hex of that length at least, its digits among its letters: not a number, and no word with a year behind it."""
    return len(word) >= shortest and _is_hex(word) and not word.isdigit() and _has_digit(word.rstrip(_DIGITS))


def _is_random(word: bytes, shortest: int, turns: int) -> bool:
    """Whether WORD is letters and digits, so many at least, that take so many TURNS at least."""
    if len(word) < shortest or word.translate(None, _ALPHABET):
        return False
    alike = word.translate(_ALIKE)
    return alike.count(b"a0") + alike.count(b"0a") >= turns


def _is_random_user(word: bytes) -> bool:
    """Whether WORD is a tag where users are tags: few turns are enough, or a digit before all letters of a long one."""
    return _is_random(word, _LONG_RANDOM, _FEW_TURNS) or (word[:1].isdigit() and _is_random(word, _NOISE, 1))


def _is_grouped(word: bytes) -> bool:
    return len(word) >= _GROUP and _is_hex(word) and _has_digit(word)


def _is_hex(text: bytes) -> bool:
    return not text.lower().strip(_HEX)


def _has_digit(text: bytes) -> bool:
    return len(text.translate(None, _DIGITS)) < len(text)
