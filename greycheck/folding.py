"""Sender folding: removes from greylisting's key what changes from message to message of a sender.

``normalise.fold_sender`` calls this for what is not a plain name. Forms are recognised by their
shape, never by the company that uses them:

    srs0=HASH=STAMP=domain=user  srs1=...  user+srs=HASH=STAMP=domain=user
        hashes and stamps are replaced
    prvs=TAG=user  prvs=user=TAG  btv1==TAG==user  msprvs1=TAG=user
        the tag is removed, the user stays
    user+detail
        the detail is removed, the user stays
    list-return-123-user=dom  bounce-123_4  owner-list-m123  0.1.2.3.4.5.6.7
        numbers are replaced if a word, a recipient or their row shows that they are tags
    hex, UUIDs, random letters and digits
        tags are replaced, wherever they are

A tag becomes ``#``, which no rule takes for a tag. Each step removes characters other than ``#``,
or is the last one, so folding ends, and folding twice has the effect of folding once. Work is
bounded: what is longer than any address is not folded.

If two senders of one domain are folded to one by mistake, they share a triplet, for one recipient
and one client network. If a tag is missed, its sender has one triplet for each message until the
client is known. So a shape that people use in names (``route66``, ``order-10234``) is folded only
if something else shows that it is a tag.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The longest address that is folded, in bytes: longer than any that a mail program writes
# (qmail-smtpd passes up to 899).
LONGEST = 1024

# Replaces a tag. No step below takes it for a tag, so that folding ends.
FOLDED = b"#"

# Words after which a number is a tag. As a label of a domain they show that its users are tags.
BOUNCES = (b"bounce", b"bounces", b"return", b"returns", b"dated", b"msgid", b"verp", b"errors")

# The shortest number that is a tag where users are tags.
_SHORT_NUMBER = 6

# The shortest hex tag: after such a word, anywhere, and as the whole local part. It must have
# digits between its letters.
_SHORT_HEX, _LONG_HEX, _WHOLE_HEX = 6, 12, 24

# The shortest tag of letters and digits: anywhere; as the whole local part; and one that makes
# random what it is joined to.
_LONG_RANDOM, _WHOLE_RANDOM, _NOISE = 12, 20, 16

# How often such a tag must change between letters and digits: a name such as route66 does once. The
# lower number is for domains of bounces.
_TURNS, _FEW_TURNS = 4, 2

# The lengths of the groups of a UUID; and how many numbers with dots between them are more than a
# telephone number or a date.
_UUID = (8, 4, 4, 4, 12)
_NUMBERS = 7

# For hex in short groups: the shortest group, the least number of groups, and the least number of
# digits in all.
_GROUP, _GROUPS, _GROUPED = 4, 3, 20

# The shortest tag that may be followed by its signature.
_SIGNED = 20

# How many labels of a domain, the last ones, are never folded: by them it belongs to somebody.
_OWN_LABELS = 3

# The bytes that end a word.
_ENDS = b"-=_."

# How addresses of other systems begin, in which + is followed by the two hex digits of a byte
# (Exchange's encapsulated addresses).
_ENCODED = b"imcea"

_DIGITS = b"0123456789"
_HEX = _DIGITS + b"abcdef"
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
_ALPHABET = _DIGITS + _LETTERS

# Maps all letters to one and all digits to one, to count the changes between them.
_ALIKE = bytes.maketrans(_LETTERS + _DIGITS, b"a" * 26 + b"0" * 10)


def fold(local: bytes, domain: bytes) -> tuple[bytes, bytes]:
    """Returns the LOCAL part and the DOMAIN of a sender without what changes between messages."""
    if len(local) + len(domain) >= LONGEST:
        return local, domain
    before, rest, whole = b"", local, local
    of = domain  # what rest is a user of
    while True:
        wrapper, inside = _unwrap(rest)
        if wrapper:
            before += wrapper
            of = wrapper[:-1].rpartition(b"=")[2]
        if inside == rest:
            inside = _fold_tags(rest, _is_of_bounces(of))
        if inside == rest:
            if before + rest == whole or not before:
                break
            # The folded inside may now be the tag of what is around it: prvs=user+srs=...=TAG
            before, inside, of = b"", before + rest, domain
            whole = inside
        rest = inside
    folded = before + rest
    return folded, fold_hosts(domain) if folded != local else domain


# --- wrappers -------------------------------------------------------------------------------------


def _unwrap(local: bytes) -> tuple[bytes, bytes]:
    """Removes one wrapper. Returns the part of LOCAL that is final, and the part to fold further.

    The first ends with the domain of the second, and ``=``; it is empty if that is the same domain.
    The second is all of LOCAL if there is no wrapper.
    """
    if local[:4] in (b"srs0", b"srs1") and local[4:5] in (b"=", b"-", b"+"):
        return _unwrap_srs(local)
    user = unwrap_batv(local)
    if user:
        return b"", user
    name, plus, _detail = local.partition(b"+")
    if not plus or not name:
        return b"", local
    forwarder, srs, original = local.partition(b"+srs=")
    if srs and forwarder:
        start = (forwarder.partition(b"+")[0] or forwarder) + b"+srs="
        unwrapped = _unwrap_original(start, original)
        if unwrapped[0]:
            return unwrapped
    if name.endswith(b"=") or name.startswith(_ENCODED):
        return b"", local  # fax=+49301234567
    return b"", name


def _mark(part: bytes) -> bytes:
    """Returns the replacement of PART of a wrapper.

    It is empty if PART is: nothing ever becomes longer.
    """
    return FOLDED if part else b""


def _unwrap_srs(local: bytes) -> tuple[bytes, bytes]:
    """Unwraps SRS: replaces hashes and stamps, the user is left.

    The forms are ``srs0=HASH=STAMP=domain=user`` and
    ``srs1=HASH=forwarder==HASH=STAMP=domain=user``. The first separator of each, and so the second
    of two in srs1, may be ``=``, ``-`` or ``+``.
    """
    start, original = b"srs0=", local[5:]
    if local.startswith(b"srs1"):
        its_hash, _equals, rest = original.partition(b"=")
        forwarder, equals, original = rest.partition(b"=")
        if not equals or original[:1] not in (b"=", b"-", b"+"):
            return b"", local
        start, original = b"=".join([b"srs1", _mark(its_hash), forwarder, b"", b""]), original[1:]
    before, user = _unwrap_original(start, original)
    return (before, user) if before else (b"", local)


def _unwrap_original(start: bytes, original: bytes) -> tuple[bytes, bytes]:
    """Replaces hash and stamp of ORIGINAL, ``HASH=STAMP=domain=user``; START comes before them.

    Returns what is before the user, and the user; nothing before him if ORIGINAL is none.
    """
    parts = original.split(b"=", 3)
    if len(parts) < 4:
        return b"", original
    its_hash, stamp, domain, user = parts
    return b"=".join([start + _mark(its_hash), _mark(stamp), domain, b""]), user


def unwrap_batv(local: bytes) -> bytes:
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
    """True for about ten hex digits; for ``msprvs1``, for letters and digits of any kind."""
    if scheme == b"msprvs1":
        return 8 <= len(text) <= 20 and text.isalnum() and _has_digit(text)
    return 8 <= len(text) <= 16 and _is_hex(text) and _has_digit(text)


# --- tags -----------------------------------------------------------------------------------------


def _fold_tags(local: bytes, bounces: bool) -> bytes:
    """Returns LOCAL with ``#`` for its tags. BOUNCES is true if the domain is one for bounces."""
    if len(local.translate(None, _ENDS)) == len(local):  # one word
        if _is_tag(local, _WHOLE_HEX) or _is_random(local, _WHOLE_RANDOM, _TURNS):
            return FOLDED
        return FOLDED if bounces and (_is_random_user(local) or _is_number(local)) else local
    words, ends = _split_words(local)
    bounce = next((index for index, word in enumerate(words) if word in BOUNCES), len(words))
    verp = ends.index(b"=") if b"=" in ends else -1
    if bounces and verp < 0 and bounce == len(words):
        joined = b"".join(words)
        # It may contain a recipient's address, so that no two are split into the same words.
        if any(map(_is_random_user, words)) or (
            len(joined) >= _WHOLE_HEX and _is_random_user(joined)
        ):
            return FOLDED
    without = _without_token(local, bounces) if verp >= 0 else _without_noise(local, words, bounce)
    if without != local:
        return without
    tags = _tags(words, ends, bounce, verp)
    if bounces and verp < 0:
        _mark_numbers(words, tags)
    return b"".join(
        (FOLDED if tag else word) + end for word, tag, end in zip(words, tags, ends, strict=True)
    )


def _tags(words: list[bytes], ends: list[bytes], bounce: int, verp: int) -> list[bool]:
    """Returns for each of WORDS True if it is a tag.

    BOUNCE is the index of the first word after which numbers are tags; VERP that of the word before
    the first ``=``, or negative.
    """
    # The recipient's user begins after the last hyphen before the = of its domain.
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
            or (
                after
                and tags[-1]
                and words[index - 1].isdigit()
                and len(word) >= _SHORT_HEX
                and _is_grouped(word)
            )
            or (0 < index < verp and word.isdigit())
        )
    _mark_uuids(words, tags)
    _mark_groups(words, ends, tags)
    _mark_rows_of_numbers(words, ends, tags)
    _mark_neighbours(words, ends, tags)
    if (
        len(words) > 1
        and tags[-2]
        and len(words[-2]) >= _SIGNED
        and ends[-2] == b"."
        and len(words[-1]) >= _GROUP
    ):
        tags[-1] = tags[-1] or words[-1].isalnum()  # the signature of what is before it
    if words[0] == b"owner" and words[-1][:1] == b"m" and words[-1][1:].isdigit():
        tags[-1] = True
    return tags


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


def _without_token(local: bytes, bounces: bool) -> bytes:
    """Returns LOCAL, which names a recipient as ``user=domain``, without a token behind it.

    If the domain is one for BOUNCES, a token right before it is removed too.
    """
    user, _equals, rest = local.partition(b"=")
    host, token, text = rest.partition(b"__")
    if token and len(text) >= _LONG_RANDOM - 2 and not text.translate(None, _ALPHABET + b"-"):
        return user + b"=" + host + b"__" + FOLDED
    tag = len(user) - len(user.lstrip(_HEX))
    if (
        bounces
        and 8 <= tag < len(user)
        and _has_digit(user[:tag])
        and user[tag : tag + 1].isalpha()
    ):
        return FOLDED + local[tag:]
    return local


def _without_noise(local: bytes, words: list[bytes], bounce: int) -> bytes:
    """Returns LOCAL without the base64 that follows a word such as bounce, if there is any.

    BOUNCE is the index of that word. Base64 has separators in it, so no two are split alike.
    """
    noisy = any(
        len(word) >= _NOISE and not _is_hex(word) and _is_random(word, _NOISE, _TURNS)
        for word in words[bounce:]
    )
    if not noisy:
        return local
    start = sum(len(word) + 1 for word in words[: bounce + 1])
    run = local[start:].partition(b".")[0]
    return local[:start] + FOLDED + local[start + len(run) :] if len(run) >= 2 * _NOISE else local


def _mark_uuids(words: list[bytes], tags: list[bool]) -> None:
    for start in range(len(words) - len(_UUID) + 1):
        groups = words[start : start + len(_UUID)]
        if all(
            len(group) == length and _is_hex(group)
            for group, length in zip(groups, _UUID, strict=True)
        ):
            tags[start : start + len(_UUID)] = [True] * len(_UUID)


def _mark_groups(words: list[bytes], ends: list[bytes], tags: list[bool]) -> None:
    """Marks hex in short groups, such as ``a1b2c3d4.0f9e8d7c.12345678``.

    At least two of the groups must have both letters and digits.
    """
    for start, end in _runs(words, ends, lambda word: len(word) >= _GROUP and _is_hex(word)):
        group = words[start:end]
        mixed = sum(_has_digit(word) and not word.isdigit() for word in group)
        if len(group) >= _GROUPS and mixed >= 2 and sum(map(len, group)) >= _GROUPED:
            tags[start:end] = [True] * len(group)


def _mark_rows_of_numbers(words: list[bytes], ends: list[bytes], tags: list[bool]) -> None:
    """Marks the numbers of a long row with dots between them.

    The first is not marked: it belongs to what is before it.
    """
    for start, end in _runs(words, ends, lambda word: word.isdigit() or word == FOLDED, b"."):
        if end - start >= _NUMBERS:
            tags[start + 1 : end] = [True] * (end - start - 1)


def _mark_numbers(words: list[bytes], tags: list[bool]) -> None:
    """Marks the numbers of a user of a domain of bounces: long ones, and all behind a tag."""
    behind = False
    for index, word in enumerate(words):
        tags[index] = tags[index] or _is_number(word) or (behind and word.isdigit())
        behind = behind or tags[index]


def _mark_neighbours(words: list[bytes], ends: list[bytes], tags: list[bool]) -> None:
    """Marks numbers, and short hex with digits, next to a long tag, and then next to those."""
    for at in [index for index, word in enumerate(words) if tags[index] and len(word) >= _LONG_HEX]:
        for step in (-1, 1):
            index = at + step
            while (
                0 <= index < len(words)
                and not tags[index]
                and ends[min(index, index - step)] != b"="
            ):
                if not (words[index].isdigit() or _is_grouped(words[index])):
                    break
                tags[index] = True
                index += step


def _runs(
    words: list[bytes], ends: list[bytes], belongs: "Callable[[bytes], bool]", joint: bytes = b".-_"
) -> "Iterator[tuple[int, int]]":
    """Yields start and end of each run of words that BELONG together, with a JOINT between them."""
    start = 0
    while start < len(words):
        end = start
        while end < len(words) and belongs(words[end]) and (end == start or ends[end - 1] in joint):
            end += 1
        if end > start:
            yield start, end
        start = max(end, start + 1)


# --- hosts ----------------------------------------------------------------------------------------


def _is_of_bounces(domain: bytes) -> bool:
    """True if a label of DOMAIN, except its last, shows that its users are tags.

    For example ``bounces.example.com``.
    """
    labels = domain.split(b".")[:-1]
    return any(label in BOUNCES or label.startswith((b"bounce", b"bnc")) for label in labels)


def fold_hosts(domain: bytes) -> bytes:
    """Returns DOMAIN with ``#`` for labels that are tags.

    The last labels, by which it belongs to somebody, are not changed.
    """
    labels = domain.split(b".")
    for index, label in enumerate(labels[:-_OWN_LABELS]):
        if _is_tag(label, _LONG_HEX) or _is_random(label, _LONG_RANDOM, _FEW_TURNS):
            labels[index] = FOLDED
    return b".".join(labels)


# --- words ----------------------------------------------------------------------------------------


def _is_tag(word: bytes, shortest: int) -> bool:
    """True if WORD is hex of at least SHORTEST digits, with digits between its letters.

    So it is neither a number, nor a word with a year behind it.
    """
    return (
        len(word) >= shortest
        and _is_hex(word)
        and not word.isdigit()
        and _has_digit(word.rstrip(_DIGITS))
    )


def _is_random(word: bytes, shortest: int, turns: int) -> bool:
    """True if WORD is at least SHORTEST letters and digits, which change at least TURNS times."""
    if len(word) < shortest or word.translate(None, _ALPHABET):
        return False
    alike = word.translate(_ALIKE)
    return alike.count(b"a0") + alike.count(b"0a") >= turns


def _is_random_user(word: bytes) -> bool:
    """True if WORD is a tag where users are tags.

    Then few changes are enough, or, in a long word, a digit before all letters.
    """
    return _is_random(word, _LONG_RANDOM, _FEW_TURNS) or (
        word[:1].isdigit() and _is_random(word, _NOISE, 1)
    )


def _is_number(word: bytes) -> bool:
    """True if WORD is a number that is a tag where users are tags."""
    return len(word) >= _SHORT_NUMBER and word.isdigit()


def _is_grouped(word: bytes) -> bool:
    return len(word) >= _GROUP and _is_hex(word) and _has_digit(word)


def _is_hex(text: bytes) -> bool:
    return not text.lower().strip(_HEX)


def _has_digit(text: bytes) -> bool:
    return len(text.translate(None, _DIGITS)) < len(text)
