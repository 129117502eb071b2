"""Macros of SPF records (RFC 7208 section 7): their syntax, and what they stand for.

Interface: ``parse`` makes pieces of a text; ``expand`` makes the text of pieces and a ``Client``;
``fixed`` tells whether the client has no part in it; ``shortened`` makes a name of the result.

Diagnostics: ``ValueError``, with a text that may be shown, where the syntax is wrong.
"""

from collections.abc import Callable
from typing import NamedTuple

from greycheck.log import show

# What may stand in a text beside macros: any printable character but the blank and "%".
LITERAL = frozenset(bytes(range(0x21, 0x7F))) - {ord("%")}

DELIMITERS = b".-+,/_="
LETTERS = b"slodiphv"
LETTERS_OF_EXPLANATIONS = b"crt"

# Letters whose value the domain and the kind of the client's address decide. A sender's domain is
# the one that is asked, so "o" is one of them.
FIXED = b"odv"

# What "%%", "%_" and "%-" stand for. Literal text has neither "%" nor, in a domain, a blank.
_ESCAPED = {ord("%"): b"%", ord("_"): b" ", ord("-"): b"%20"}
ESCAPES = frozenset(_ESCAPED.values())

# Not escaped in URLs (RFC 3986 section 2.3).
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

# The longest name that DNS has, written, in octets.
LONGEST = 253

# The most labels that any name has, so more digits say nothing else.
_MOST_LABELS = 128


class Macro(NamedTuple):
    """One macro: its LETTER in lower case, and how its value is changed.

    LABELS is the number of labels that are kept from the right, 0 for all.
    """

    letter: int
    labels: int
    reverse: bool
    delimiters: bytes
    escaped: bool


Piece = bytes | Macro
Pieces = tuple[Piece, ...]
Values = Callable[[int], bytes]


def parse(text: bytes, explanation: bool = False) -> Pieces:
    """Returns the pieces of TEXT: literal text and macros.

    Only an EXPLANATION may have blanks and the letters c, r and t. Raises ValueError.
    """
    pieces: list[Piece] = []
    at = 0
    while at < len(text):
        if text[at] != ord("%"):
            end = text.find(b"%", at)
            literal = text[at:] if end < 0 else text[at:end]
            if not LITERAL.issuperset(literal.replace(b" ", b"") if explanation else literal):
                raise ValueError(f"a character that no macro string has: {show(literal[:60])}")
            pieces.append(literal)
            at += len(literal)
        elif text[at + 1 : at + 2] == b"{":
            end = text.find(b"}", at)
            if end < 0:
                raise ValueError("a macro without its end")
            pieces.append(_macro(text[at + 2 : end], explanation))
            at = end + 1
        elif at + 1 < len(text) and text[at + 1] in _ESCAPED:
            pieces.append(_ESCAPED[text[at + 1]])
            at += 2
        else:
            raise ValueError("a % that begins no macro")
    return tuple(pieces)


def _macro(text: bytes, explanation: bool) -> Macro:
    wrong = ValueError(f"not a macro: %{{{show(text[:20])}}}")
    letter, rest = text[:1].lower(), text[1:]
    known = LETTERS + LETTERS_OF_EXPLANATIONS if explanation else LETTERS
    if not letter or letter not in known:
        raise wrong
    after = rest.lstrip(b"0123456789")
    digits = rest[: len(rest) - len(after)]
    significant = digits.lstrip(b"0")
    if digits and not significant:
        raise wrong
    labels = int(significant[:4] or b"0")
    reverse = after[:1] in (b"r", b"R")
    delimiters = after[1:] if reverse else after
    if delimiters.translate(None, DELIMITERS):
        raise wrong
    return Macro(
        letter[0],
        min(labels, _MOST_LABELS),
        reverse,
        bytes(set(delimiters)) or b".",
        text[:1].isupper(),
    )


def fixed(pieces: Pieces) -> bool:
    """True if PIECES stand for the same text with every client of one kind of address."""
    return all(isinstance(piece, bytes) or piece.letter in FIXED for piece in pieces)


def expand(pieces: Pieces, value_of: Values) -> bytes:
    """Returns the text of PIECES; VALUE_OF returns what a letter stands for."""
    return b"".join(
        piece if isinstance(piece, bytes) else _changed(piece, value_of(piece.letter))
        for piece in pieces
    )


def _changed(macro: Macro, value: bytes) -> bytes:
    between = macro.delimiters[:1]
    same = bytes.maketrans(macro.delimiters, between * len(macro.delimiters))
    parts = value.translate(same).split(between)
    if macro.reverse:
        parts.reverse()
    text = b".".join(parts[-macro.labels :] if macro.labels else parts)
    if not macro.escaped:
        return text
    return b"".join(bytes((byte,)) if byte in _UNRESERVED else b"%%%02X" % byte for byte in text)


def shortened(name: bytes) -> bytes:
    """Returns NAME without as many labels from the left as make it too long for DNS."""
    name = name.removesuffix(b".")
    return name if len(name) <= LONGEST else name[-LONGEST - 1 :].partition(b".")[2]


def address_text(value: int, ipv4: bool) -> bytes:
    """Returns what "i" stands for: four numbers, or with IPv6 32 digits, with dots between them."""
    if ipv4:
        return b".".join(b"%d" % byte for byte in (value & 0xFFFFFFFF).to_bytes(4, "big"))
    return b".".join(bytes((digit,)) for digit in b"%032x" % value)
