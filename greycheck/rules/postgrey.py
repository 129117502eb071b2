"""Reads postgrey's whitelists of clients and recipients as patterns of rules.

They are read as postgrey 1.33 and later does: a line is tried as /regex/, then as an address or
part of one, then as a network; anything else is a domain.

Interface: ``postgrey_client`` and ``postgrey_recipient`` read one line.

Diagnostics: ``ValueError``, which says what to write instead.
"""

import ipaddress
import re

from greycheck.rules.patterns import NAMELESS, Pattern, parse, partial_ipv4

# What may stand before the literal rest of a regex: it matches the domain and all names under it,
# or only the names under it.
_AND_UNDER = (
    "(^|\\.)",
    "(?:^|\\.)",
    "(\\.|^)",
    "(?:\\.|^)",
    "^(.*\\.)?",
    "^(?:.*\\.)?",
    "^(.+\\.)?",
    "^(?:.+\\.)?",
)

_ONLY_UNDER = ("^.*\\.", "^.+\\.", ".*\\.", ".+\\.", "\\.", ".")

_AT_OR_UNDER = (
    "[@.]",
    "[.@]",
    "[\\@\\.]",
    "(@|\\.)",
    "(?:@|\\.)",
    "(\\@|\\.)",
    "(?:\\@|\\.)",
    "(\\.|@)",
    "(?:\\.|@)",
)

_AT = ("^.*@", "^.*\\@", "^.+@", "^.+\\@", ".*@", ".*\\@", ".+@", ".+\\@", "@", "\\@")

_DOTS = "its dots, which stand for any character, are taken as dots"


def postgrey_client(line: str) -> Pattern:
    """Returns the pattern of a LINE of postgrey's whitelist_clients.

    Raises ValueError with the cause.
    """
    if len(line) > 1 and line.startswith("/") and line.endswith("/"):
        return _client_regex(line[1:-1])
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,2}", line) and partial_ipv4(line):
        return parse(partial_ipv4(line))
    if line.count(":") > 1:
        return _postgrey_ipv6(line)
    if re.fullmatch(r"[\d.]+(/\d+)?", line):
        return _postgrey_ipv4(line)
    _refuse_words(line)
    if line.lower() == "unknown":
        raise ValueError(NAMELESS)
    if line.startswith(("[", "@")):
        return parse(line)  # which says how it is written
    if line.startswith("."):
        return _noting(parse(f"name:{line}"), f"matches {line[1:]} itself too")
    return parse(f"name:.{line}")


def _refuse_words(line: str) -> None:
    if len(line.split()) != 1:
        raise ValueError("more than one word: postgrey does not take it either")


def _postgrey_ipv4(line: str) -> Pattern:
    try:
        network = ipaddress.IPv4Network(line, strict=False)
    except ValueError:
        return parse(line)
    if not network.prefixlen:
        raise ValueError("postgrey takes no network of all addresses")
    pattern = parse(str(network).removesuffix("/32"))
    return (
        pattern
        if pattern.text in (line, line.removesuffix("/32"))
        else _noting(pattern, f"the network of {line}")
    )


def _postgrey_ipv6(line: str) -> Pattern:
    """Reads an IPv6 LINE as postgrey does: it matches addresses whose text begins with it."""
    if "/" in line:
        return parse(line)
    if line.endswith("::"):
        raise ValueError(
            f"the beginning of addresses, of no certain length: write a network, as allow {line}/64"
        )
    try:
        return parse(line)
    except ValueError:
        groups = line.removesuffix(":").split(":")
        if "" in groups or len(groups) > 7:
            raise
        return _noting(
            parse(f"{':'.join(groups)}::/{16 * len(groups)}"), f"addresses that begin with {line}"
        )


def _client_regex(regex: str) -> Pattern:
    head, tail = _head(regex, (*_AND_UNDER, *_ONLY_UNDER, "^"))
    literal, dots = _literal(tail.removesuffix("$")) if tail.endswith("$") else ("", False)
    if not literal or not head:
        raise ValueError(_no_domain(regex, "allow name:."))
    if head == "^":
        return _noting(parse(f"name:{literal}"), _DOTS if dots else "")
    notes = [f"matches {literal} itself too"] if head in _ONLY_UNDER else []
    return _noting(parse(f"name:.{literal}"), "; ".join(notes + [_DOTS] * (dots or head == ".")))


def postgrey_recipient(line: str) -> Pattern:
    """Returns the pattern of a LINE of whitelist_recipients. Raises ValueError with the cause."""
    if len(line) > 1 and line.startswith("/") and line.endswith("/"):
        return _recipient_regex(line[1:-1])
    if line.startswith("@"):
        raise ValueError(
            f"matches nobody, as no user is before the @: the whole domain is to:{line[1:]}"
        )
    _refuse_words(line)
    return parse(f"to:{line}" if "@" in line else f"to:.{line.removeprefix('.')}")


def _recipient_regex(regex: str) -> Pattern:
    if regex.startswith("^"):
        user, at, _ = regex[1:].removesuffix(".*$").removesuffix(".*").partition("@")
        literal, dots = _literal(user.removesuffix("\\"))
        if at and literal and re.fullmatch(r"[^@]*@(\.\*\$?)?", regex[1:]):
            return _noting(parse(f"to:{literal}@"), _DOTS if dots else "")
    head, tail = _head(regex, (*_AT_OR_UNDER, *_AT, *_ONLY_UNDER, "^"))
    literal, dots = _literal(tail.removesuffix("$")) if tail.endswith("$") else ("", False)
    note = _DOTS if dots else ""
    if not literal or not head or ("@" in literal) != (head == "^"):
        raise ValueError(_no_domain(regex, "allow to:."))
    if head in _AT or head == "^":
        return _noting(parse(f"to:{literal}"), note)
    if head in _ONLY_UNDER:
        note = "; ".join([f"matches {literal} itself too"] + [_DOTS] * (dots or head == "."))
    return _noting(parse(f"to:.{literal}"), note)


def _head(regex: str, heads: tuple[str, ...]) -> tuple[str, str]:
    """Returns the first of HEADS that REGEX begins with, and the rest; else empty and REGEX."""
    head = next((head for head in heads if regex.startswith(head)), "")
    return head, regex[len(head) :]


def _literal(regex: str) -> tuple[str, bool]:
    """Returns the text that REGEX stands for, and True if a dot in it stands for any character.

    The text is empty if REGEX is more than plain text.
    """
    if not re.fullmatch(r"([\w@.-]|\\[.@_-])+", regex, re.ASCII) or ".." in regex:
        return "", False
    return regex.replace("\\", ""), bool(re.search(r"(?<!\\)\.", regex))


def _no_domain(regex: str, command: str) -> str:
    """Returns why REGEX is not a domain suffix, and the COMMAND to run if one was meant."""
    tail = re.search(r"((?:[\w-]+\\?\.)+[\w-]+)\$$", regex, re.ASCII)
    if not regex.endswith(("$", "@")):
        why = "its end is not tied to the name's end ($), so that a name that only holds it matches"
    elif tail and tail.group(0) == regex:
        why = f"it is not tied to a dot, so that bad{tail.group(1)} matches".replace("\\", "")
    else:
        why = "a regular expression that is more than a domain"
    # Only what follows a dot is certain to be whole names.
    domain = re.search(r"(?:\\\.|@)((?:[\w-]+\\?\.)+[\w-]+)\$$", regex, re.ASCII)
    meant = tail.group(1) if tail and tail.group(0) == regex else domain.group(1) if domain else ""
    if not meant:
        return why
    return f"{why}; where all of the domain is meant: greycheck {command}{meant}".replace("\\", "")


def _noting(pattern: Pattern, note: str) -> Pattern:
    notes = "; ".join(text for text in (note, pattern.note) if text)
    return Pattern(pattern.kind, pattern.key, pattern.text, notes)
