"""A rule, and how it is written and read as a line of text: in a file, or for a command."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from greycheck import rule_keys
from greycheck.rules import patterns
from greycheck.rules.patterns import Pattern
from greycheck.settings import duration_text
from greycheck.store.base import digest
from greycheck.times import bounded_duration, stamp

# The longest comment, in characters.
COMMENT = 1000

ACTIONS = (rule_keys.ALLOW, rule_keys.REJECT, rule_keys.GREYLIST, rule_keys.DEFER)

ORDER = (*rule_keys.KINDS, rule_keys.EXPECT)


@dataclass(frozen=True)
class Rule:
    """A row of table ``rule``.

    ``delay`` is in seconds, None for that of the settings; ``created_at`` and ``expires_at`` are in
    seconds since 1970, ``expires_at`` is None if the rule never expires.
    """

    match_key: bytes
    kind: str
    pattern: str
    action: str
    delay: int | None = None
    comment: str = ""
    created_at: int = 0
    expires_at: int | None = None

    def counts(self, now: int) -> bool:
        """True if the rule is valid at NOW."""
        return self.expires_at is None or self.expires_at > now

    @property
    def command(self) -> str:
        """The command that makes such a rule: its action, or expect or release."""
        if self.kind != rule_keys.EXPECT:
            return self.action
        return "release" if patterns.is_release(self.pattern) else "expect"

    def outlasts(self, other: "Rule") -> bool:
        """True if the rule is valid at least as long as OTHER."""
        if self.expires_at is None or other.expires_at is None:
            return self.expires_at is None
        return self.expires_at >= other.expires_at

    def says(self) -> tuple[str, int | None, str, int | None]:
        """Returns all that an operator wrote of the rule except its pattern."""
        return self.action, self.delay, self.comment, self.expires_at


@dataclass(frozen=True)
class Change:
    """What happened to RULE: WHAT is ADDED, REPLACED, UNCHANGED or REMOVED; OLD the row before."""

    what: str
    rule: Rule
    old: Rule | None = None


def make_rule(
    pattern: Pattern,
    action: str,
    delay: int | None = None,
    comment: str = "",
    expires_at: int | None = None,
    now: int = 0,
) -> Rule:
    """Returns the rule of PATTERN.

    Raises ValueError if DELAY, in seconds, is given with another action than greylist, or if
    COMMENT is not one line of text.
    """
    if delay is not None and action != rule_keys.GREYLIST:
        raise ValueError(f"{action} has no delay: only greylist has one")
    said = one_comment(comment)
    return Rule(
        digest(pattern.key), pattern.kind, pattern.text, action, delay, said, now, expires_at
    )


def one_comment(text: str) -> str:
    """Returns TEXT as a comment. Raises ValueError if it is not one line of text."""
    comment = text.strip()
    if len(comment) > COMMENT:
        raise ValueError(f"a comment is no longer than {COMMENT} characters")
    if not comment.isprintable():
        raise ValueError("a comment is one line of printable characters")
    return comment


def as_line(rule: Rule) -> str:
    """Returns RULE as a line of text.

    For example ``greylist to:bob@example.net delay=1h expires=2026-12-01T00:00:00Z # comment``, or
    ``defer from:ann@example.com to:bob@example.net``.
    """
    words = [rule.command, rule.pattern]
    if rule.delay is not None:
        words.append(f"delay={duration_text(rule.delay)}")
    if rule.expires_at is not None:
        words.append(f"expires={stamp(rule.expires_at)}")
    if rule.comment:
        words.append(f"# {rule.comment}")
    return " ".join(words)


def read_line(text: str, now: int) -> tuple[Rule, str] | None:
    """Returns the rule that TEXT, one line, writes, and the note of its pattern.

    Returns None for an empty line or a comment. Raises ValueError.
    """
    content, comment = _split_comment(text)
    words = content.split()
    if not words:
        return None
    if words[0] not in ACTIONS:
        raise ValueError(
            f"{words[0]}: a line begins with {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}"
        )
    if len(words) < 2:
        raise ValueError(f"{words[0]} what? A pattern follows, as 192.0.2.0/24")
    is_pair = len(words) > 2 and words[2].partition(":")[0].lower() in patterns.KIND_OF
    options = words[3:] if is_pair else words[2:]
    pattern = _parsed(" ".join(words[1:3]) if is_pair else words[1])
    delay, expires_at = None, None
    for option in options:
        name, _, value = option.partition("=")
        if name == "delay":
            delay = _seconds(value)
        elif name == "expires":
            expires_at = _time(value)
        else:
            raise ValueError(
                f"{option}: after the pattern come delay=, expires= or a comment that begins with #"
            )
    return make_rule(pattern, words[0], delay, comment, expires_at, now), pattern.note


def _split_comment(text: str) -> tuple[str, str]:
    """Returns TEXT before and after the # of a comment. Inside a pattern # has no meaning."""
    before, *after = re.split(r"(?:^|\s)#", text, maxsplit=1)
    return before, "".join(after)


def _parsed(text: str) -> Pattern:
    try:
        return patterns.parse(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


def _seconds(text: str) -> int:
    try:
        return bounded_duration(text)
    except ValueError as error:
        raise ValueError(f"delay={text}: {error}") from None


def _time(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"expires={text}: not a time with its zone, as 2026-12-01T00:00:00Z")
    return int(moment.timestamp())


def read_lines(lines: Iterable[str], now: int) -> tuple[list[Rule], list[str], list[str]]:
    """Returns the rules that LINES write, notes about them, and faults.

    Notes and faults begin with their line's number. An expired rule is left out, with a note. The
    same rule twice is one rule; two different rules with the same key are a fault.
    """
    rules: dict[bytes, tuple[int, Rule]] = {}
    notes: list[str] = []
    faults: list[str] = []
    for number, text in enumerate(lines, 1):
        try:
            read = read_line(text, now)
        except ValueError as error:
            faults.append(f"{number}: {error}")
            continue
        if read is None:
            continue
        rule, note = read
        if note:
            notes.append(f"{number}: {note}")
        first, same = rules.setdefault(rule.match_key, (number, rule))
        if same.says() != rule.says():
            faults.append(f"{number}: {rule.pattern} has another rule in line {first}")
        elif not rule.counts(now):
            notes.append(f"{number}: {rule.pattern} expired: left out")
    return [rule for _, rule in rules.values() if rule.counts(now)], notes, faults
