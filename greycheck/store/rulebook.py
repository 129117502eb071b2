"""The operators' rules in the store, and what is wrong with them. One rule a key.

Interface: ``put`` and ``put_all``, ``remove``, ``all_rules``; ``line`` and ``read_lines`` for rules as text; ``check``, ``remarks``,
``about``.

Functions take an SQLAlchemy engine, whose errors they let through, and ``now``. Times are whole seconds since 1970, UTC. A rule whose
expiry is not after ``now`` counts no longer, and is treated as if it were not there.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, delete, insert, select, update

from greycheck import patterns, rules
from greycheck.patterns import Pattern
from greycheck.settings import Settings, duration, duration_text
from greycheck.store import faults
from greycheck.store.engine import reading
from greycheck.store.lean import digest
from greycheck.store.tables import rule as table

ACTIONS = (rules.ALLOW, rules.REJECT, rules.GREYLIST)
ORDER = (*rules.KINDS, rules.EXPECT)

# What happened to a rule.
ADDED, REPLACED, UNCHANGED, REMOVED = "added", "replaced", "unchanged", "removed"

# The longest comment, in characters.
COMMENT = 1000

# How many keys one statement asks for. SQLite takes some thousand parameters at most, others more.
_BATCH = 500

# Mail that is delayed so long comes back to its sender: programs give up after 4 or 5 days (RFC 5321 section 4.5.4.1).
LONGEST_DELAY = 4 * 86400


@dataclass(frozen=True)
class Rule:
    """A row of table ``rule``. ``delay`` is in seconds, or None for the setting's; ``expires_at`` is None for never."""

    match_key: bytes
    kind: str
    pattern: str
    action: str
    delay: int | None = None
    comment: str = ""
    created_at: int = 0
    expires_at: int | None = None

    def counts(self, now: int) -> bool:
        """Whether a check at NOW looks at it."""
        return self.expires_at is None or self.expires_at > now

    def outlasts(self, other: "Rule") -> bool:
        """Whether it counts at least as long as OTHER."""
        if self.expires_at is None or other.expires_at is None:
            return self.expires_at is None
        return self.expires_at >= other.expires_at

    def says(self) -> tuple[str, int | None, str, int | None]:
        """What an operator wrote of it beside its pattern."""
        return self.action, self.delay, self.comment, self.expires_at


@dataclass(frozen=True)
class Change:
    """WHAT happened (one of ADDED, REPLACED, UNCHANGED, REMOVED) to RULE, and the OLD row that was there, if there was one."""

    what: str
    rule: Rule
    old: Rule | None = None


def made(
    pattern: Pattern,
    action: str,
    delay: int | None = None,
    comment: str = "",
    expires_at: int | None = None,
    now: int = 0,
) -> Rule:
    """The rule of PATTERN. Raises ValueError where a delay is given to another action than greylist, or COMMENT is no line of text."""
    if delay is not None and action != rules.GREYLIST:
        raise ValueError(f"{action} has no delay: only greylist has one")
    comment = comment.strip()
    if len(comment) > COMMENT:
        raise ValueError(f"a comment is no longer than {COMMENT} characters")
    if not comment.isprintable():
        raise ValueError("a comment is one line of printable characters")
    return Rule(digest(pattern.key), pattern.kind, pattern.text, action, delay, comment, now, expires_at)


# --- in the store ------------------------------------------------------------------------------------------------------


def put(
    engine: Engine, pattern: Pattern, action: str, delay: int | None, comment: str, expires_at: int | None, now: int
) -> Change:
    """Makes the rule of PATTERN what is given, and tells what that changed. DELAY is in seconds. Raises ValueError as ``made``."""
    return put_all(engine, [made(pattern, action, delay, comment, expires_at, now)], now)[0]


def put_all(
    engine: Engine,
    wanted: Sequence[Rule],
    now: int,
    instead: bool = False,
    dry_run: bool = False,
    keep_comments: bool = False,
) -> list[Change]:
    """Puts all WANTED, or none where the store fails, and tells what that changed.

    INSTEAD removes every other rule; expectations stay. DRY_RUN only tells. KEEP_COMMENTS leaves the comment of a rule that counts.
    """
    if dry_run:
        with reading(engine).connect() as connection:
            present = _present(connection, wanted, instead, lock=False)
            return _changes(present, _commented(wanted, present, now, keep_comments), now, instead)
    return faults.again(lambda: _put_all(engine, wanted, now, instead, keep_comments))


def _commented(wanted: Sequence[Rule], present: dict[bytes, Rule], now: int, keep: bool) -> Sequence[Rule]:
    """WANTED, with the comments of PRESENT rules that count, if those are to be KEPT."""
    if not keep:
        return wanted
    there = {key: rule for key, rule in present.items() if rule.counts(now)}
    return [
        replace(rule, comment=there[rule.match_key].comment) if rule.match_key in there else rule for rule in wanted
    ]


def _put_all(engine: Engine, wanted: Sequence[Rule], now: int, instead: bool, keep: bool) -> list[Change]:
    with engine.begin() as connection:
        present = _present(connection, wanted, instead, lock=True)
        changes = _changes(present, _commented(wanted, present, now, keep), now, instead)
        for change in changes:
            _write(connection, change)
        return changes


def _present(connection: Connection, wanted: Sequence[Rule], every: bool, lock: bool) -> dict[bytes, Rule]:
    """The rows by key: of WANTED, and with EVERY all the others but what is expected. LOCK keeps them as they are."""
    keys = [rule.match_key for rule in wanted]
    queries = [
        select(table).where(table.c.match_key.in_(keys[start : start + _BATCH]))
        for start in range(0, len(keys), _BATCH)
    ]
    if every:
        # A check that uses up what is expected need not wait.
        queries.append(select(table).where(table.c.kind != rules.EXPECT))
    found: dict[bytes, Rule] = {}
    for query in queries:
        rows = connection.execute(query.with_for_update() if lock else query)
        found |= {row.match_key: Rule(*row) for row in rows}
    return found


def _changes(present: dict[bytes, Rule], wanted: Sequence[Rule], now: int, instead: bool) -> list[Change]:
    changes = [_change(present.get(rule.match_key), rule, now) for rule in wanted]
    if instead:
        kept = {rule.match_key for rule in wanted}
        changes += [
            Change(REMOVED, old, old)
            for old in present.values()
            if old.match_key not in kept and old.kind != rules.EXPECT
        ]
    return changes


def _change(old: Rule | None, rule: Rule, now: int) -> Change:
    if old is None:
        return Change(ADDED, rule)
    if not old.counts(now):
        return Change(ADDED, rule, old)
    if old.says() == rule.says() and old.pattern == rule.pattern:
        return Change(UNCHANGED, old, old)
    return Change(REPLACED, rule, old)


def _write(connection: Connection, change: Change) -> None:
    rule = change.rule
    if change.what == REMOVED:
        connection.execute(delete(table).where(table.c.match_key == rule.match_key))
    elif change.what != UNCHANGED:
        values = {column.name: getattr(rule, column.name) for column in table.columns}
        if change.old is None:
            connection.execute(insert(table).values(values))
        else:
            connection.execute(update(table).where(table.c.match_key == rule.match_key).values(values))


def remove(engine: Engine, written: Sequence[str]) -> list[Rule | None]:
    """Removes the rule of each pattern WRITTEN, or none where the store fails; returns each as it was, None where there was none.

    A pattern is found by what it means, else by its text as ``all_rules`` has it: an expectation, or what matches nothing. Raises
    ValueError where it is neither.
    """
    return faults.again(lambda: _remove(engine, written))


def _remove(engine: Engine, written: Sequence[str]) -> list[Rule | None]:
    with engine.begin() as connection:
        found = [_find(connection, text) for text in written]
        for rule in found:
            if rule:
                connection.execute(delete(table).where(table.c.match_key == rule.match_key))
        return found


def _find(connection: Connection, text: str) -> Rule | None:
    to, blank, sender = text.partition(" from:")
    fault = None
    try:
        key = digest((patterns.expectation(to, sender) if blank else patterns.parse(text)).key)
    except ValueError as error:
        key, fault = b"", ValueError(f"{text}: {error}")
    row = connection.execute(select(table).where(table.c.match_key == key).with_for_update()).first()
    # No statement compares patterns: how they compare would depend on the database.
    found = Rule(*row) if row else next((rule for rule in _rules(connection) if rule.pattern == text), None)
    if found is None and fault:
        raise fault
    return found


def all_rules(engine: Engine) -> list[Rule]:
    """Every row, expired ones and expectations too, in the order of kinds in which they decide, then by pattern."""
    with reading(engine).connect() as connection:
        return sorted(_rules(connection), key=lambda rule: (ORDER.index(rule.kind), _sorting(rule)))


def _rules(connection: Connection) -> list[Rule]:
    return [Rule(*row) for row in connection.execute(select(table))]


def _sorting(rule: Rule) -> tuple[str, ...]:
    """Networks by address; addresses of one domain, and domains of one domain, together."""
    if rule.kind == "network":
        return (_network_order(rule.pattern), rule.pattern)
    user, at, domain = rule.pattern.partition(":")[2].rpartition("@")
    return (*reversed(domain.removeprefix(".").split(".")), at, user, rule.pattern)


def _network_order(text: str) -> str:
    try:
        bits, prefix, value = patterns.network_parts(patterns.parse(text).value)
    except ValueError:
        return ""
    return f"{bits:3} {value << (bits - prefix):032x} {prefix:3}"


# --- as text -----------------------------------------------------------------------------------------------------------


def stamp(time: int) -> str:
    """TIME as ``2026-12-01T00:00:00Z``."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def line(rule: Rule) -> str:
    """RULE as a line of text: ``greylist to:bob@example.net delay=1h expires=2026-12-01T00:00:00Z # comment``."""
    words = ["expect" if rule.kind == rules.EXPECT else rule.action, rule.pattern]
    if rule.delay is not None:
        words.append(f"delay={duration_text(rule.delay)}")
    if rule.expires_at is not None:
        words.append(f"expires={stamp(rule.expires_at)}")
    if rule.comment:
        words.append(f"# {rule.comment}")
    return " ".join(words)


def read_line(text: str, now: int) -> tuple[Rule, str] | None:
    """The rule that a line of TEXT writes, and the note of its pattern; None for a comment or nothing. Raises ValueError."""
    content, comment = _split_comment(text)
    words = content.split()
    if not words:
        return None
    if words[0] not in ACTIONS:
        raise ValueError(f"{words[0]}: a line begins with {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}")
    if len(words) < 2:
        raise ValueError(f"{words[0]} what? A pattern follows, as 192.0.2.0/24")
    pattern = _parsed(words[1])
    delay, expires_at = None, None
    for option in words[2:]:
        name, _, value = option.partition("=")
        if name == "delay":
            delay = _seconds(value)
        elif name == "expires":
            expires_at = _time(value)
        else:
            raise ValueError(f"{option}: after the pattern come delay=, expires= or a comment that begins with #")
    return made(pattern, words[0], delay, comment, expires_at, now), pattern.note


def _split_comment(text: str) -> tuple[str, str]:
    """TEXT before and after the # that begins a comment. Inside of a pattern # is a character as others."""
    before, *after = re.split(r"(?:^|\s)#", text, maxsplit=1)
    return before, "".join(after)


def _parsed(text: str) -> Pattern:
    try:
        return patterns.parse(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


def _seconds(text: str) -> int:
    try:
        return duration(text)
    except ValueError as error:
        raise ValueError(f"delay={text}: {error}") from None


def _time(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f"expires={text}: not a time with its zone, as 2026-12-01T00:00:00Z")
    return int(found.timestamp())


def read_lines(lines: Iterable[str], now: int) -> tuple[list[Rule], list[str], list[str]]:
    """The rules that LINES write, notes about them, and what is wrong; notes and faults begin with the number of their line.

    A rule that is over is left out with a note. The same rule twice is one; a key with two different rules is a fault.
    """
    found: dict[bytes, tuple[int, Rule]] = {}
    notes, faults = [], []
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
        first, same = found.setdefault(rule.match_key, (number, rule))
        if same.says() != rule.says():
            faults.append(f"{number}: {rule.pattern} has another rule in line {first}")
        elif not rule.counts(now):
            notes.append(f"{number}: {rule.pattern} expired: left out")
    return [rule for _, rule in found.values() if rule.counts(now)], notes, faults


# --- what is wrong -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """WHAT is wrong with RULE, in one word, and the TEXT that says why and what to do.

    ``expired``, ``unmatchable``, ``unverified``, ``redundant``, ``undecided`` (never decides) or ``delay``.
    """

    rule: Rule
    what: str
    text: str


def check(every: Sequence[Rule], settings: Settings, now: int) -> list[Finding]:
    """What is wrong with EVERY rule of a store under SETTINGS. Expectations end by themselves and are not looked at."""
    found = []
    valid: list[tuple[Rule, Pattern]] = []
    for rule in every:
        if rule.kind == rules.EXPECT:
            continue
        if not rule.counts(now):
            found.append(Finding(rule, "expired", f"expired at {stamp(rule.expires_at or 0)}: remove it"))
            continue
        try:
            valid.append((rule, _pattern_of(rule)))
        except ValueError as error:
            found.append(Finding(rule, "unmatchable", f"matches nothing: {error}: remove it"))
    for rule, _ in valid:
        found += _by_settings(rule, settings)
    effective = [(rule, pattern) for rule, pattern in valid if _is_effective(rule, settings)]
    return found + _redundant(effective, settings) + _undecided(effective)


def _pattern_of(rule: Rule) -> Pattern:
    pattern = patterns.parse(rule.pattern)
    if digest(pattern.key) != rule.match_key:
        raise ValueError("its key is not its pattern's")
    return pattern


def _is_effective(rule: Rule, settings: Settings) -> bool:
    """Whether RULE counts by greycheck.policy.deciding."""
    return rule.kind != "name" or rule.action != rules.ALLOW or settings.verified_names == "yes"


def _by_settings(rule: Rule, settings: Settings) -> list[Finding]:
    if not _is_effective(rule, settings):
        return [
            Finding(
                rule,
                "unverified",
                "allows nothing: verified_names is no, as anybody can write a name into his reverse DNS;"
                " run tcpserver with -p and set verified_names = yes, or allow the address",
            )
        ]
    if rule.delay is None:
        return []
    if rule.delay >= LONGEST_DELAY:
        return [Finding(rule, "delay", f"delay {duration_text(rule.delay)}: senders give up before a retry could pass")]
    if rule.delay >= settings.retry_window:
        window = duration_text(settings.retry_window + rule.delay)
        return [
            Finding(
                rule,
                "delay",
                f"delay {duration_text(rule.delay)} is not shorter than retry_window {duration_text(settings.retry_window)}:"
                f" for such mail the window is {window}; a shorter delay would do, or a longer retry_window",
            )
        ]
    return []


def _same_effect(one: Rule, other: Rule, settings: Settings) -> bool:
    delays = {settings.delay if rule.delay is None else rule.delay for rule in (one, other)}
    return one.action == other.action and (one.action != rules.GREYLIST or len(delays) == 1)


def _redundant(effective: Sequence[tuple[Rule, Pattern]], settings: Settings) -> list[Finding]:
    """Rules without which the next broader one would decide the same."""
    by_key = {pattern.key: rule for rule, pattern in effective}
    found = []
    for rule, pattern in effective:
        following = next((by_key[key] for key in patterns.broader(pattern) if key in by_key), None)
        if following and _same_effect(rule, following, settings) and following.outlasts(rule):
            found.append(Finding(rule, "redundant", f"{line_of(following)} has the same effect: remove one of them"))
    return found


def _undecided(effective: Sequence[tuple[Rule, Pattern]]) -> list[Finding]:
    """Rules that never decide, as others before them match all that they match."""
    networks = {
        patterns.network_parts(pattern.value)
        for rule, pattern in effective
        if rule.kind == "network" and rule.expires_at is None
    }
    halves = _covered_by_halves(networks)
    everybody = {(bits, 0, 0) for bits in rules.MOST_KEYS} <= networks | halves
    found = []
    for rule, pattern in effective:
        if rule.kind == "network" and patterns.network_parts(pattern.value) in halves:
            found.append(
                Finding(rule, "undecided", "never decides: smaller networks that make up all of it have rules")
            )
        elif rule.kind in ("name", "helo") and everybody:
            found.append(
                Finding(rule, "undecided", "never decides: every address has a rule by network, which comes before")
            )
    return found


def _covered_by_halves(networks: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """The networks both halves of which are in NETWORKS, or are made up in the same way."""
    made_up: set[tuple[int, int, int]] = set()
    by_prefix: dict[tuple[int, int], set[int]] = {}
    for bits, prefix, value in networks:
        by_prefix.setdefault((bits, prefix), set()).add(value)
    for bits in rules.MOST_KEYS:
        for prefix in range(bits, 0, -1):
            values = by_prefix.get((bits, prefix), set())
            pairs = {value >> 1 for value in values if value ^ 1 in values}
            by_prefix.setdefault((bits, prefix - 1), set()).update(pairs)
            made_up |= {(bits, prefix - 1, value) for value in pairs}
    return made_up


def line_of(rule: Rule) -> str:
    """RULE in two words, for a sentence."""
    return f"{rule.action} {rule.pattern}"


def remarks(rule: Rule, every: Sequence[Rule], settings: Settings, now: int) -> list[str]:
    """What an operator who has just put RULE should know of EVERY rule of its kind beside it."""
    found = [f"{line_of(rule)}: {finding.text}" for finding in check(every, settings, now) if finding.rule == rule]
    pattern = _pattern_of(rule)
    same: list[Rule] = []
    other: list[Rule] = []
    for one in every:
        if one.kind == rules.EXPECT or one == rule or not one.counts(now) or not _is_effective(one, settings):
            continue
        if one.kind == rule.kind and _is_under(one, pattern):
            (same if _same_effect(one, rule, settings) else other).append(one)
    if same:
        found.append(f"{line_of(rule)} has the same effect as {_listed(same)}")
    if other:
        found.append(f"{_listed(other)} {_decide(other)} before {line_of(rule)}: more specific")
    return found


def about(text: str, every: Sequence[Rule]) -> list[Rule]:
    """Those of EVERY rule that are about what TEXT writes: its own, broader and more specific ones, and those whose text holds it."""
    try:
        pattern = patterns.parse(text)
    except ValueError:
        pattern = None
    broader = [] if pattern is None else [digest(key) for key in (pattern.key, *patterns.broader(pattern))]
    word = text.lower()
    return [
        rule
        for rule in every
        if rule.match_key in broader
        or word in rule.pattern.lower()
        or word in rule.comment.lower()
        or (pattern is not None and rule.kind == pattern.kind and _is_under(rule, pattern))
    ]


def _is_under(rule: Rule, pattern: Pattern) -> bool:
    try:
        return pattern.key in patterns.broader(_pattern_of(rule))
    except ValueError:
        return False


def _decide(some: Sequence[Rule]) -> str:
    return "decides" if len(some) == 1 else "decide"


def _listed(some: Sequence[Rule]) -> str:
    named = ", ".join(line_of(rule) for rule in some[:3])
    return named + (f" and {len(some) - 3} more" if len(some) > 3 else "")


def about_expectation(recipient: Pattern, every: Sequence[Rule], now: int) -> Rule | None:
    """The rule of EVERY one that decides about mail to RECIPIENT before an expectation is looked at, if there is one."""
    by_key = {rule.match_key: rule for rule in every if rule.counts(now)}
    keys = (recipient.key, *patterns.broader(recipient))
    found = next((by_key[digest(key)] for key in keys if digest(key) in by_key), None)
    return None if found is None or found.action == rules.GREYLIST else found
