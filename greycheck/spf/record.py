"""SPF records: which of a name's texts is one, and what it says (RFC 7208 sections 4.5, 4.6, 12).

The whole record is read before any of it counts, so an error in its last term is one of the record.

Interface: ``chosen`` picks the record among texts, ``parse`` makes a ``Record`` of it.

Diagnostics: ``Wrong``, with a text that may be shown: the record is a permanent error.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from greycheck import normalise
from greycheck.log import show
from greycheck.spf import macros
from greycheck.spf.macros import Pieces

VERSION = b"v=spf1"

# The most bytes of a term that an error shows.
SHOWN = 60


class Wrong(Exception):
    """The domain says something that no record may say; the text tells what."""


@dataclass(frozen=True)
class Term:
    """A directive: QUALIFIER is one of ``+-~?``, MECHANISM a name in lower case.

    DOMAIN is empty where the term names none. VALUE is the address of ``ip4`` and ``ip6``; PREFIX4
    and PREFIX6 are the lengths of the network's prefix.
    """

    qualifier: str
    mechanism: str
    domain: Pieces = ()
    value: int = 0
    prefix4: int = normalise.IPV4_BITS
    prefix6: int = normalise.IPV6_BITS


@dataclass(frozen=True)
class Record:
    """What a record says: TERMS in their order, and the domain of ``redirect``, if any.

    A ``redirect`` beside an ``all`` says nothing (section 6.1) and is left out.
    """

    terms: tuple[Term, ...]
    redirect: Pieces = ()


def chosen(texts: Iterable[bytes]) -> bytes | None:
    """Returns the one of TEXTS that is an SPF record; None if none is.

    The version may be in either case, as all quoted text of a grammar (RFC 5234 section 2.3).
    Raises Wrong if there are several.
    """
    records = [text for text in texts if text.lower() == VERSION or is_record(text)]
    if len(records) > 1:
        raise Wrong("several SPF records")
    return records[0] if records else None


def is_record(text: bytes) -> bool:
    """True if TEXT begins with the version and a blank."""
    return text[: len(VERSION) + 1].lower() == VERSION + b" "


_TERM = re.compile(rb"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?=[:/]|\Z)(.*)", re.I | re.S)
_MODIFIER = re.compile(rb"([A-Za-z][A-Za-z0-9._-]*)=(.*)", re.S)
_LENGTH = rb"(0|[1-9][0-9]{0,2})"
_NETWORK4 = re.compile(rb":([0-9.]+)(?:/" + _LENGTH + rb")?")
_NETWORK6 = re.compile(rb":([0-9A-Fa-f:.]+)(?:/" + _LENGTH + rb")?")
_HOSTS = re.compile(rb"(?::(.+?))?(?:/" + _LENGTH + rb")?(?://" + _LENGTH + rb")?", re.S)
_TOP_LABEL = re.compile(rb"\.(?![0-9]+\.?\Z)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.?\Z")


def parse(text: bytes) -> Record:
    """Returns what the record TEXT says. Raises Wrong if any of it is wrong."""
    terms: list[Term] = []
    modifiers: dict[bytes, Pieces] = {}
    for word in text[len(VERSION) :].split(b" "):
        if not word:
            continue
        try:
            if directive := _TERM.fullmatch(word):
                sign, mechanism, rest = directive.groups()
                terms.append(_term(sign.decode() or "+", mechanism.decode().lower(), rest))
            else:
                _take_modifier(modifiers, word)
        except ValueError as error:
            raise Wrong(f"{show(word[:SHOWN])}: {error}") from None
    ends = any(term.mechanism == "all" for term in terms)
    return Record(tuple(terms), () if ends else modifiers.get(b"redirect", ()))


def _take_modifier(modifiers: dict[bytes, Pieces], word: bytes) -> None:
    found = _MODIFIER.fullmatch(word)
    if found is None:
        raise ValueError("no such term")
    name, value = found[1].lower(), found[2]
    if name not in (b"redirect", b"exp"):
        macros.parse(value)
        return
    if name in modifiers:
        raise ValueError("given twice")
    modifiers[name] = domain_spec(value)


def _term(qualifier: str, mechanism: str, rest: bytes) -> Term:
    if mechanism in ("ip4", "ip6"):
        return _network(qualifier, mechanism, rest)
    if mechanism in ("a", "mx"):
        found = _HOSTS.fullmatch(rest)
        if found is None:
            raise ValueError("no domain and prefix")
        domain, prefix4, prefix6 = found.groups()
        return Term(
            qualifier,
            mechanism,
            domain_spec(domain) if domain is not None else (),
            prefix4=_prefix(prefix4, normalise.IPV4_BITS),
            prefix6=_prefix(prefix6, normalise.IPV6_BITS),
        )
    if mechanism == "all" or (mechanism == "ptr" and not rest):
        if rest:
            raise ValueError("takes nothing")
        return Term(qualifier, mechanism)
    if not rest.startswith(b":"):
        raise ValueError("names no domain")
    return Term(qualifier, mechanism, domain_spec(rest[1:]))


def _network(qualifier: str, mechanism: str, rest: bytes) -> Term:
    found = (_NETWORK4 if mechanism == "ip4" else _NETWORK6).fullmatch(rest)
    if found is None:
        raise ValueError("no network")
    try:
        bits, value = normalise.written_bits(found[1].decode())
    except ValueError:
        raise ValueError("no address") from None
    if mechanism == "ip4":
        return Term(qualifier, mechanism, value=value, prefix4=_prefix(found[2], bits))
    if bits != normalise.IPV6_BITS:
        raise ValueError("no IPv6 address")
    return Term(qualifier, mechanism, value=value, prefix6=_prefix(found[2], bits))


def _prefix(text: bytes | None, bits: int) -> int:
    if text is None:
        return bits
    if int(text) > bits:
        raise ValueError("a prefix longer than an address")
    return int(text)


def domain_spec(text: bytes) -> Pieces:
    """Returns the pieces of TEXT, a domain with macros (RFC 7208 section 7.1).

    It must end in a macro or in a top label. Raises ValueError.
    """
    pieces = macros.parse(text)
    if not pieces:
        raise ValueError("names no domain")
    last = pieces[-1]
    if isinstance(last, bytes) and not (last in macros.ESCAPES or _TOP_LABEL.search(last)):
        raise ValueError("no domain")
    return pieces
