"""The operators' rules in the store, one rule per key.

Interface: ``put`` and ``put_all``, ``remove``, ``all_rules``, ``about``.

Each recipient of a rule over a pair has a mark (``greycheck.rule_keys``), which ends with the last
of its pairs. Whatever writes rules keeps the marks; nobody else sees them. It also changes the
rules' generation, so that residents that have all rules in memory read them again.

Functions take an SQLAlchemy engine, whose errors they do not catch, and NOW. Times are whole
seconds since 1970, UTC. A rule whose expiry is not after NOW is treated as if it did not exist.
"""

from collections.abc import Sequence
from dataclasses import replace
from secrets import randbits

from sqlalchemy import Connection, Engine, delete, insert, select, update

from greycheck import rule_keys
from greycheck.rules import patterns
from greycheck.rules.findings import is_under
from greycheck.rules.patterns import Pattern
from greycheck.rules.rule import ORDER, Change, Rule, make_rule
from greycheck.store.admin import errors
from greycheck.store.admin.engine import reading
from greycheck.store.base import digest
from greycheck.store.schema.statements import put as put_row
from greycheck.store.schema.tables import generation
from greycheck.store.schema.tables import rule as table

# What happened to a rule.
ADDED, REPLACED, UNCHANGED, REMOVED = "added", "replaced", "unchanged", "removed"

# Sorts after all that is printed.
LAST = (chr(0x10FFFF),)

# How many keys one statement has. SQLite takes some thousand parameters at most, others more.
_BATCH = 500


def put(
    engine: Engine,
    pattern: Pattern,
    action: str,
    delay: int | None,
    comment: str,
    expires_at: int | None,
    now: int,
) -> Change:
    """Stores the rule of PATTERN with these values; returns what that changed.

    DELAY is in seconds. Raises ValueError as ``make_rule`` does.
    """
    return put_all(engine, [make_rule(pattern, action, delay, comment, expires_at, now)], now)[0]


def put_all(
    engine: Engine,
    wanted: Sequence[Rule],
    now: int,
    instead: bool = False,
    dry_run: bool = False,
    keep_comments: bool = False,
) -> list[Change]:
    """Stores all WANTED rules, or none if the store fails; returns what that changed.

    INSTEAD removes every other rule, but no expectation. DRY_RUN changes nothing. KEEP_COMMENTS
    keeps the comment of a rule that is valid.
    """
    if dry_run:
        with reading(engine).connect() as connection:
            present = _present(connection, wanted, instead, lock=False)
            return _changes(present, _commented(wanted, present, now, keep_comments), now, instead)
    return errors.retry_on_conflict(lambda: _put_all(engine, wanted, now, instead, keep_comments))


def _commented(
    wanted: Sequence[Rule], present: dict[bytes, Rule], now: int, keep: bool
) -> Sequence[Rule]:
    """Returns WANTED; with KEEP, valid rules of PRESENT give their comments."""
    if not keep:
        return wanted
    there = {key: rule for key, rule in present.items() if rule.counts(now)}
    return [
        replace(rule, comment=there[rule.match_key].comment) if rule.match_key in there else rule
        for rule in wanted
    ]


def _put_all(
    engine: Engine, wanted: Sequence[Rule], now: int, instead: bool, keep: bool
) -> list[Change]:
    with engine.begin() as connection:
        return put_within(connection, wanted, now, instead, keep)


def put_within(
    connection: Connection,
    wanted: Sequence[Rule],
    now: int,
    instead: bool = False,
    keep_comments: bool = False,
) -> list[Change]:
    """Does what ``put_all`` does, in the transaction of CONNECTION, which may lose a race."""
    present = _present(connection, wanted, instead, lock=True)
    changes = _changes(present, _commented(wanted, present, now, keep_comments), now, instead)
    for change in changes:
        _write(connection, change)
    changed = [change.rule for change in changes if change.what != UNCHANGED]
    _mark(connection, changed)
    if changed:
        change_generation(connection)
    return changes


def _present(
    connection: Connection, wanted: Sequence[Rule], every: bool, lock: bool
) -> dict[bytes, Rule]:
    """Returns the rows of WANTED by key; with EVERY also all other rules, but no expectations.

    LOCK locks them.
    """
    keys = [rule.match_key for rule in wanted]
    queries = [
        select(table).where(table.c.match_key.in_(keys[start : start + _BATCH]))
        for start in range(0, len(keys), _BATCH)
    ]
    if every:
        # A check that uses up an expectation need not wait.
        queries.append(
            select(table).where(table.c.kind != rule_keys.EXPECT, table.c.action != rule_keys.PAIRS)
        )
    present: dict[bytes, Rule] = {}
    for query in queries:
        rows = connection.execute(query.with_for_update() if lock else query)
        present |= {row.match_key: Rule(*row) for row in rows}
    return present


def _changes(
    present: dict[bytes, Rule], wanted: Sequence[Rule], now: int, instead: bool
) -> list[Change]:
    changes = [_change(present.get(rule.match_key), rule, now) for rule in wanted]
    if instead:
        kept = {rule.match_key for rule in wanted}
        changes += [
            Change(REMOVED, old, old)
            for old in present.values()
            if old.match_key not in kept and old.kind != rule_keys.EXPECT
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
            connection.execute(
                update(table).where(table.c.match_key == rule.match_key).values(values)
            )


def _mark(connection: Connection, changed: Sequence[Rule]) -> None:
    """Makes the marks of the recipients of CHANGED pairs what all their pairs now say."""
    recipients = {_recipient(rule) for rule in changed} - {None}
    marks = {mark.match_key: mark for mark in map(_mark_of, recipients) if mark}
    if not marks:
        return
    # Locked before the pairs are read: another's mark or pair is seen, or waits until this is done.
    present = _present(connection, list(marks.values()), every=False, lock=True)
    pairs: dict[bytes | None, list[int | None]] = {}
    # They are locked by their keys: a search would lock all that it passes, expectations too, which
    # a check may be about to use up.
    of_these = [rule for rule in _rules(connection) if _recipient(rule) in recipients]
    for rule in _present(connection, of_these, every=False, lock=True).values():
        pairs.setdefault(_recipient(rule), []).append(rule.expires_at)
    for recipient in recipients:
        mark = _mark_of(recipient)
        assert mark is not None
        ends = pairs.get(recipient)
        old = present.get(mark.match_key)
        if ends is None:
            if old:
                _write(connection, Change(REMOVED, old, old))
            continue
        last = None if None in ends else max(end for end in ends if end is not None)
        if old is None or old.expires_at != last:
            _write(connection, Change(ADDED, replace(mark, expires_at=last), old))


def change_generation(connection: Connection) -> None:
    """Has those who keep all rules in memory read them again: some were changed by CONNECTION."""
    number = {"name": table.name, "number": randbits(62)}
    connection.execute(put_row(generation, connection.dialect.name, ("number",)), number)


def _recipient(rule: Rule) -> bytes | None:
    """Returns the recipient's value of a rule over a pair; None if RULE is no such rule."""
    if " " not in rule.pattern or rule.kind == rule_keys.EXPECT:
        return None
    try:
        parts = patterns.parse(rule.pattern).parts
    except ValueError:
        return None
    return parts[1].value if parts else None


def _mark_of(recipient: bytes | None) -> Rule | None:
    if recipient is None:
        return None
    text = patterns.of_recipient(recipient)
    return Rule(digest(rule_keys.mark_key(recipient)), "recipient", text, rule_keys.PAIRS)


def remove(engine: Engine, written: Sequence[str]) -> list[Rule | None]:
    """Removes the rule of each pattern WRITTEN, or none if the store fails.

    Returns each rule as it was; None if there was none. A rule is found by the meaning of its
    pattern, else by its text as ``all_rules`` has it: an expectation, or a rule that matches
    nothing. Raises ValueError if a pattern is neither.
    """
    return errors.retry_on_conflict(lambda: _remove(engine, written))


def _remove(engine: Engine, written: Sequence[str]) -> list[Rule | None]:
    with engine.begin() as connection:
        rules = [_find(connection, text) for text in written]
        for rule in rules:
            if rule:
                connection.execute(delete(table).where(table.c.match_key == rule.match_key))
        changed = [rule for rule in rules if rule]
        _mark(connection, changed)
        if changed:
            change_generation(connection)
        return rules


def _find(connection: Connection, text: str) -> Rule | None:
    fault = None
    try:
        key = digest((patterns.expected if " from:" in text else patterns.parse)(text).key)
    except ValueError as error:
        key, fault = b"", ValueError(f"{text}: {error}")
    row = connection.execute(
        select(table).where(table.c.match_key == key).with_for_update()
    ).first()
    # No SQL compares patterns: the result would depend on the database.
    rule = (
        Rule(*row)
        if row
        else next((rule for rule in _rules(connection) if rule.pattern == text), None)
    )
    if rule is None and fault:
        raise fault
    return rule


def all_rules(engine: Engine) -> list[Rule]:
    """Returns every rule, expired ones and expectations too.

    Those over pairs are first, by recipient; then they are in the order of kinds in which they
    decide, then by pattern.
    """
    with reading(engine).connect() as connection:
        return sorted(_rules(connection), key=_place)


def _rules(connection: Connection) -> list[Rule]:
    query = select(table).where(table.c.action != rule_keys.PAIRS)
    return [Rule(*row) for row in connection.execute(query)]


def _place(rule: Rule) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Returns the sort key of RULE."""
    first, pair, to = rule.pattern.partition(" to:")
    of_pair = _sorting("recipient", f"to:{to}") if pair and rule.kind != rule_keys.EXPECT else ()
    if not of_pair:
        first = rule.pattern
    # A kind that only a newer program knows comes last.
    place = ORDER.index(rule.kind) if rule.kind in ORDER else len(ORDER)
    return of_pair or LAST, place, _sorting(rule.kind, first)


def _sorting(kind: str, pattern: str) -> tuple[str, ...]:
    """Returns the sort key of a PATTERN of KIND.

    Networks are sorted by address. Addresses of one domain, and domains of one domain, stay
    together.
    """
    if kind == "network":
        return (_network_order(pattern), pattern)
    user, at, domain = pattern.partition(":")[2].rpartition("@")
    return (*reversed(domain.removeprefix(".").split(".")), at, user, pattern)


def _network_order(text: str) -> str:
    try:
        bits, prefix, value = patterns.network_parts(patterns.parse(text).value)
    except ValueError:
        return ""
    return f"{bits:3} {value << (bits - prefix):032x} {prefix:3}"


def about(text: str, every: Sequence[Rule]) -> list[Rule]:
    """Returns those of EVERY rule that concern what TEXT writes.

    They are the rule of that pattern, broader ones, more specific ones, pairs with it, and those
    with TEXT in their pattern or comment.
    """
    try:
        pattern = patterns.parse(text)
    except ValueError:
        pattern = None
    broader = (
        []
        if pattern is None
        else [digest(key) for key in (pattern.key, *patterns.broader(pattern))]
    )
    word = text.lower()
    return [
        rule
        for rule in every
        if rule.match_key in broader
        or word in rule.pattern.lower()
        or word in rule.comment.lower()
        or (pattern is not None and is_under(rule, pattern))
    ]
