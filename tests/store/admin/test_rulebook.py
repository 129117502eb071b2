"""The rulebook: one rule a key, told what changed; rules as text; and what is wrong with them."""

import sqlite3
from contextlib import suppress
from threading import Thread

import pytest
from sqlalchemy import Connection, Engine, delete, event, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from greycheck import rule_keys, settings
from greycheck.rules import patterns
from greycheck.rules.findings import check_rules, remarks, rule_before_expectation
from greycheck.rules.patterns import parse
from greycheck.rules.rule import Change, Rule, as_line, make_rule, read_line, read_lines
from greycheck.settings import Settings
from greycheck.store.admin import rulebook
from greycheck.store.admin.engine import open_engine
from greycheck.store.admin.rulebook import ADDED, REMOVED, REPLACED, UNCHANGED
from greycheck.store.base import digest
from greycheck.store.schema.tables import rule as table
from tests.servers import wait_until
from tests.support import Database, on_every_server

NOW = 1_800_000_000
DAY = 86400


def settings_with(**values: str) -> Settings:
    environ = {b"GREYCHECK_CONFIG": b"/dev/null"}
    return settings.read(
        environ
        | {f"GREYCHECK_{name.upper()}".encode(): value.encode() for name, value in values.items()}
    )


def rule(text: str, now: int = NOW) -> Rule:
    """The rule that a line of TEXT writes."""
    read = read_line(text, now)
    assert read
    return read[0]


def put(engine: Engine, *lines: str) -> list[Change]:
    return rulebook.put_all(engine, [rule(line) for line in lines], NOW)


def lines(engine: Engine) -> list[str]:
    return [as_line(one) for one in rulebook.all_rules(engine)]


def marks(engine: Engine) -> list[tuple[str, int | None]]:
    """The recipients that have a mark, and when each ends."""
    with engine.connect() as connection:
        found = connection.execute(select(table).where(table.c.action == "pairs"))
        rows = [Rule(*row) for row in found]
    for mark in rows:
        assert mark.match_key == digest(rule_keys.mark_key(parse(mark.pattern).value))
    return sorted((mark.pattern, mark.expires_at) for mark in rows)


# --- one rule a key -------------------------------------------------------------------------------


def test_a_rule_is_added_then_unchanged(engine: Engine) -> None:
    pattern = parse("192.0.2.0/24")
    first = rulebook.put(engine, pattern, "greylist", 3600, "slow", NOW + DAY, NOW)
    assert (first.what, first.old) == (ADDED, None)
    again = rulebook.put(engine, pattern, "greylist", 3600, "slow", NOW + DAY, NOW + 5)
    assert (again.what, again.rule) == (UNCHANGED, first.rule)
    assert rulebook.all_rules(engine) == [first.rule]
    assert first.rule.created_at == NOW


@pytest.mark.parametrize(
    "line",
    [
        "reject 192.0.2.0/24 # why",
        "allow 192.0.2.0/24",
        "allow 192.0.2.0/24 expires=2037-01-01T00:00:00Z # why",
        "allow 192.0.2.0/24 # Why",
    ],
)
def test_whatever_else_is_said_replaces_it_and_tells_what_it_was(engine: Engine, line: str) -> None:
    [first] = put(engine, "allow 192.0.2.0/24 # why")
    [second] = put(engine, line)
    assert (second.what, second.old) == (REPLACED, first.rule)
    assert lines(engine) == [line]


def test_a_rule_that_is_over_is_as_good_as_none(engine: Engine) -> None:
    put(engine, "allow 192.0.2.0/24 expires=2027-02-01T00:00:00Z")
    later = NOW + 100 * DAY
    [change] = rulebook.put_all(engine, [rule("allow 192.0.2.0/24")], later)
    assert change.what == ADDED
    assert lines(engine) == ["allow 192.0.2.0/24"]


def test_only_greylist_has_a_delay_and_a_comment_is_one_line() -> None:
    with pytest.raises(ValueError, match="reject has no delay"):
        make_rule(parse("192.0.2.7"), "reject", 60)
    with pytest.raises(ValueError, match="one line of printable characters"):
        make_rule(parse("192.0.2.7"), "allow", comment="a\nb")


def test_many_rules_are_put_at_once(engine: Engine) -> None:
    wanted = [f"allow 10.0.{number >> 8}.{number & 255}" for number in range(1200)]
    assert {change.what for change in put(engine, *wanted)} == {ADDED}
    assert {change.what for change in put(engine, *wanted)} == {UNCHANGED}
    assert lines(engine) == wanted


def test_putting_instead_removes_the_others_but_not_what_is_expected(engine: Engine) -> None:
    put(engine, "allow 192.0.2.1", "allow 192.0.2.2")
    rulebook.put(engine, patterns.expectation("bob@example.net"), "allow", None, "", NOW + 900, NOW)
    wanted = [rule("allow 192.0.2.2"), rule("allow 192.0.2.3")]
    told = rulebook.put_all(engine, wanted, NOW, instead=True, dry_run=True)
    assert [(change.what, change.rule.pattern) for change in told] == [
        (UNCHANGED, "192.0.2.2"),
        (ADDED, "192.0.2.3"),
        (REMOVED, "192.0.2.1"),
    ]
    assert len(lines(engine)) == 3
    assert rulebook.put_all(engine, wanted, NOW, instead=True) == told
    assert lines(engine) == [
        "allow 192.0.2.2",
        "allow 192.0.2.3",
        "expect to:bob@example.net expires=2027-01-15T08:15:00Z",
    ]


def test_a_recipient_has_a_mark_as_long_as_it_has_a_pair(engine: Engine) -> None:
    put(engine, "defer from:a@example.org to:b@example.net", "allow 192.0.2.1 to:b@example.net")
    put(engine, "allow to:c@example.net", "reject from:<> to:<>", "reject helo:x to:.net")
    every = [("to:.net", None), ("to:<>", None), ("to:b@example.net", None)]
    assert marks(engine) == every
    rulebook.remove(engine, ["from:a@example.org to:b@example.net", "from:<> to:<>"])
    assert marks(engine) == [("to:.net", None), ("to:b@example.net", None)]
    rulebook.remove(engine, ["192.0.2.1 to:b@example.net"])
    assert marks(engine) == [("to:.net", None)]
    rulebook.put_all(engine, [rule("allow 192.0.2.1")], NOW, instead=True)
    assert marks(engine) == []
    assert lines(engine) == ["allow 192.0.2.1"]


def test_a_mark_ends_with_the_last_of_its_pairs(engine: Engine) -> None:
    put(engine, "allow 192.0.2.1 to:example.net expires=2027-02-01T00:00:00Z")
    assert marks(engine) == [("to:example.net", 1801440000)]
    put(engine, "allow 192.0.2.2 to:example.net expires=2027-02-01T00:00:09Z")
    assert marks(engine) == [("to:example.net", 1801440009)]
    put(engine, "allow 192.0.2.3 to:example.net")
    assert marks(engine) == [("to:example.net", None)]
    rulebook.remove(engine, ["192.0.2.3 to:example.net", "192.0.2.2 to:example.net"])
    assert marks(engine) == [("to:example.net", 1801440000)]


@on_every_server
def test_who_makes_a_pair_while_the_last_one_is_removed_has_its_mark(database: Database) -> None:
    """One removes a recipient's only pair, another makes a second one, at the same moment."""
    one, other = open_engine(database.url), open_engine(database.url)
    put(one, "defer from:a@example.org to:b@example.net")
    threads: list[Thread] = []

    @event.listens_for(one, "before_cursor_execute")
    def meanwhile(_connection: Connection, _cursor: object, sql: str, *_: object) -> None:
        """The pair is removed, and its mark not yet."""
        if sql.startswith("DELETE") and not threads:
            line = "defer from:c@example.org to:b@example.net"
            threads.append(Thread(target=put, args=(other, line)))
            threads[0].start()

    rulebook.remove(one, ["from:a@example.org to:b@example.net"])
    threads[0].join()
    assert lines(one) == ["defer from:c@example.org to:b@example.net"]
    assert marks(one) == [("to:b@example.net", None)]
    one.dispose()
    other.dispose()


def test_who_loses_a_race_finds_the_rule_of_the_other(engine: Engine) -> None:
    lost: list[int] = []

    def lose(*_arguments: object) -> None:
        if not lost:
            lost.append(1)
            raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

    event.listen(engine, "before_cursor_execute", lose)
    assert [change.what for change in put(engine, "allow 192.0.2.1")] == [ADDED]
    assert lost


def test_all_or_nothing_where_the_store_fails(engine: Engine) -> None:
    inserted = []

    def fail(_connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("INSERT"):
            inserted.append(1)
            if len(inserted) == 2:
                raise sqlite3.OperationalError("disk I/O error")

    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(
        (OperationalError, sqlite3.OperationalError)
    ):  # SQLAlchemy 2.0 does not wrap it
        put(engine, "allow 192.0.2.1", "allow 192.0.2.2")
    assert lines(engine) == []


def test_rules_are_removed_by_what_they_mean_or_as_they_are_listed(engine: Engine) -> None:
    put(engine, "allow 192.0.2.1", "allow to:bob@example.net")
    rulebook.put(
        engine,
        patterns.expectation("bob@example.net", "example.com"),
        "allow",
        None,
        "",
        NOW + 900,
        NOW,
    )
    rulebook.put(engine, patterns.expectation("bob@example.net"), "allow", None, "", NOW + 900, NOW)
    removed = rulebook.remove(
        engine, ["::ffff:192.0.2.1", "192.0.2.2", "to:Bob@example.net from:Example.com"]
    )
    assert [one and one.pattern for one in removed] == [
        "192.0.2.1",
        None,
        "to:bob@example.net from:.example.com",
    ]
    assert [one and one.kind for one in rulebook.remove(engine, ["to:bob@example.net"])] == [
        "recipient"
    ]
    assert [one and one.kind for one in rulebook.remove(engine, ["to:bob@example.net"])] == [
        "expect"
    ]
    assert lines(engine) == []


def test_nothing_is_removed_where_one_is_no_pattern(engine: Engine) -> None:
    put(engine, "allow 192.0.2.1")
    with pytest.raises(ValueError, match=r"example\.com: which name"):
        rulebook.remove(engine, ["192.0.2.1", "example.com"])
    assert lines(engine) == ["allow 192.0.2.1"]


def test_a_row_whose_pattern_matches_nothing_can_be_removed(engine: Engine) -> None:
    rulebook.put_all(engine, [Rule(b"\0" * 16, "name", "name:*.example.com", "allow")], NOW)
    assert rulebook.remove(engine, ["name:*.example.com"])[0]
    assert lines(engine) == []


def test_rules_are_listed_as_they_decide(engine: Engine) -> None:
    written = [
        "allow from:<> to:.com",
        "allow 10.0.0.0/24 to:a@example.com",
        "allow from:.com to:b@example.com",
        "allow 9.0.0.0/8 to:b@example.com",
        "allow to:.com",
        "allow to:example.com",
        "allow to:a@example.com",
        "allow to:b@example.com",
        "allow from:<>",
        "allow 9.0.0.0/8",
        "allow 10.0.0.0/8",
        "allow 10.0.0.0/24",
        "allow 2001:db8::/32",
        "allow name:.com",
        "allow helo:.com",
    ]
    put(engine, *reversed(written))
    rulebook.put_all(engine, [Rule(b"\0" * 16, "network", "nonsense", "allow")], NOW)
    assert lines(engine) == [*written[:9], "allow nonsense", *written[9:]]


def waits(engine: Engine) -> bool:
    """Whether a transaction waits for another's lock."""
    query = (
        "SELECT VARIABLE_VALUE > 0 FROM information_schema.GLOBAL_STATUS"
        " WHERE VARIABLE_NAME = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
        if engine.dialect.name == "mysql"
        else "SELECT count(*) FROM pg_locks WHERE NOT granted"
    )
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql(query).scalar())


@on_every_server
def test_two_who_put_the_same_in_another_order_both_do(database: Database) -> None:
    """Where each waits for what the other has written, the database ends one of them, who begins
    again.
    """
    engine = open_engine(database.url)
    first, second = rule("allow 192.0.2.1"), rule("allow 192.0.2.2")
    others = [rule(f"reject 198.51.100.{number} # heavier") for number in range(20)]
    row = {column.name: getattr(first, column.name) for column in table.columns}
    found: list[list[Change]] = []
    with suppress(DBAPIError), engine.begin() as other:
        for one in [second, *others]:
            other.execute(insert(table).values({name: getattr(one, name) for name in row}))
        thread = Thread(target=lambda: found.append(rulebook.put_all(engine, [first, second], NOW)))
        thread.start()
        wait_until(lambda: waits(engine), "the two meet")
        other.execute(insert(table).values(row))
    thread.join(60)
    assert [change.rule.pattern for change in found[0]] == ["192.0.2.1", "192.0.2.2"]
    assert {"192.0.2.1", "192.0.2.2"} <= {one.pattern for one in rulebook.all_rules(engine)}
    engine.dispose()


@on_every_server
def test_an_import_keeps_what_it_read_as_it_is(database: Database) -> None:
    """Else a rule that somebody removes between look and change would be told as there, and not
    be.
    """
    engine = open_engine(database.url)
    put(engine, "allow 192.0.2.1")
    thread = Thread(target=rulebook.remove, args=(engine, ["192.0.2.1"]))

    def meanwhile(_connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("UPDATE") and not thread.ident:
            thread.start()
            wait_until(lambda: waits(engine), "the other waits")

    event.listen(engine, "before_cursor_execute", meanwhile)
    [change] = rulebook.put_all(engine, [rule("reject 192.0.2.1")], NOW, instead=True)
    thread.join(60)
    assert change.what == REPLACED
    assert lines(engine) == []
    engine.dispose()


@on_every_server
def test_a_pair_is_put_while_a_check_uses_up_an_expectation(database: Database) -> None:
    engine = open_engine(database.url)
    rulebook.put(engine, patterns.expectation("bob@example.net"), "allow", None, "", NOW + 900, NOW)
    found: list[list[Change]] = []
    with engine.connect() as check:
        check.execute(delete(table).where(table.c.kind == rule_keys.EXPECT))
        pair = "allow from:ann@example.org to:bob@example.net"
        thread = Thread(target=lambda: found.append(put(engine, pair)))
        thread.start()
        wait_until(lambda: bool(found) or waits(engine), "it is put, or waits")
        assert found
        check.rollback()
    thread.join(60)
    assert len(marks(engine)) == 1
    engine.dispose()


PLANES = "é ß İ 漢字 \U0001d4b3 😀 \U0010ffef \\ % _ ' \" ;"


def test_every_character_of_a_comment_is_kept(engine: Engine) -> None:
    comment = "".join(char for char in PLANES if char.isprintable())
    [change] = rulebook.put_all(
        engine, [make_rule(parse("192.0.2.1"), "allow", comment=comment)], NOW
    )
    assert rulebook.all_rules(engine) == [change.rule]
    assert change.rule.comment == comment
    assert rulebook.put_all(engine, [change.rule], NOW)[0].what == UNCHANGED


# --- as text --------------------------------------------------------------------------------------

TEXTS = [
    "allow 192.0.2.0/24",
    "allow from:list-return-#-bob=example.net@lists.example.org # a # in the pattern",
    "reject from:.example.com expires=2027-12-01T00:00:00Z # spam",
    "greylist to:bob@example.net delay=1h",
    "greylist to:bob@example.net delay=90s expires=2027-12-01T00:00:00Z # über",
    "greylist to:bob@example.net delay=0s",
    "defer from:john@foodomain.net to:joe@joedomain.net",
    "greylist 192.0.2.0/24 to:.net delay=1h expires=2027-12-01T00:00:00Z # both",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_rule_as_text_reads_as_itself(text: str) -> None:
    assert as_line(rule(text)) == text


def test_comments_and_empty_lines_say_nothing() -> None:
    assert read_lines(["# Rules", "", "  \t", " # more"], NOW) == ([], [], [])


def test_a_line_may_be_spaced_and_spelt_otherwise() -> None:
    assert as_line(
        rule("  reject\tFROM:Example.COM   expires=2027-12-01T01:00:00+01:00\t#  x ")
    ) == ("reject from:example.com expires=2027-12-01T00:00:00Z # x")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("defer to:b@x from:a@x", "the recipient comes last: write from:a@x to:b@x"),
        ("defer to:a@x to:b@x", "the first pattern is no to:"),
        ("defer from:a@x helo:b", "the second pattern of a pair is the recipient's"),
        ("defer from:a@x to:b@x delay=1h", "defer has no delay"),
        ("permit 192.0.2.1", "permit: a line begins with allow, reject, greylist or defer"),
        ("allow", "allow what?"),
        ("allow example.com", "example.com: which name?"),
        ("allow 192.0.2.1 delay=1h", "allow has no delay"),
        ("greylist 192.0.2.1 delay=soon", "delay=soon: not a duration"),
        ("allow 192.0.2.1 expires=soon", "expires=soon: not a time with its zone"),
        ("allow 192.0.2.1 expires=2027-12-01T00:00:00", "not a time with its zone"),
        ("allow 192.0.2.1 192.0.2.2", "192.0.2.2: after the pattern come"),
        ("allow 192.0.2.1#why", "which name?"),
        ("allow 192.0.2.1 # a\x1bb", "one line of printable characters"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(text: str, fault: str) -> None:
    wanted, _, faults = read_lines(["allow 192.0.2.9", text], NOW)
    assert [one.pattern for one in wanted] == ["192.0.2.9"]
    assert len(faults) == 1
    assert faults[0].startswith("2: ")
    assert fault in faults[0]


def test_the_same_rule_twice_is_one_and_two_rules_for_one_pattern_are_a_fault() -> None:
    wanted, notes, faults = read_lines(
        ["allow 192.0.2.1", "allow ::ffff:192.0.2.1", "reject 192.0.2.1"], NOW
    )
    assert (len(wanted), notes, faults) == (1, [], ["3: 192.0.2.1 has another rule in line 1"])


def test_what_is_over_is_left_out_and_what_is_taken_otherwise_is_said() -> None:
    wanted, notes, faults = read_lines(
        ["allow 192.0.2.1 expires=2020-01-01T00:00:00Z", "allow from:alice+x@example.org"], NOW
    )
    assert [one.pattern for one in wanted] == ["from:alice+x@example.org"]
    assert notes[0] == "1: 192.0.2.1 expired: left out"
    assert notes[1].startswith("2: matches this one address, which changes from mail to mail")
    assert faults == []


# --- what is wrong --------------------------------------------------------------------------------


def findings(*texts: str, **values: str) -> list[str]:
    found = check_rules([rule(text, NOW) for text in texts], settings_with(**values), NOW)
    return [f"{one.what} {one.rule.pattern}" for one in found]


def test_good_rules_are_not_complained_of() -> None:
    assert (
        findings(
            "allow 192.0.2.0/24",
            "reject 192.0.2.7",
            "allow name:.example.com",
            "greylist to:bob@example.net delay=1h",
            "reject to:example.net",
            verified_names="yes",
        )
        == []
    )


def test_a_rule_that_is_over_is_named() -> None:
    assert findings("allow 192.0.2.1 expires=2020-01-01T00:00:00Z") == ["expired 192.0.2.1"]


def test_what_is_expected_is_not_looked_at() -> None:
    expected = make_rule(patterns.expectation("bob@example.net"), "allow", expires_at=1)
    assert check_rules([expected], settings_with(), NOW) == []


def test_a_row_that_matches_nothing_is_named() -> None:
    rows = [
        Rule(b"\0" * 16, "name", "name:*.example.com", "allow"),
        Rule(b"\1" * 16, "network", "192.0.2.1", "allow"),
    ]
    found = check_rules(rows, settings_with(verified_names="yes"), NOW)
    assert [one.what for one in found] == ["unmatchable", "unmatchable"]
    assert "wildcards do not count" in found[0].text
    assert "its key is not its pattern's" in found[1].text


def test_allowing_by_a_name_that_nobody_verified_is_named() -> None:
    assert findings("allow name:.example.com", "reject name:.example.org") == [
        "unverified name:.example.com"
    ]
    assert findings("allow name:.example.com", verified_names="yes") == []


def test_a_delay_that_no_retry_fits_into_is_named() -> None:
    assert findings("greylist 192.0.2.1 delay=47h", "greylist 192.0.2.2") == []
    assert findings("greylist 192.0.2.1 delay=48h") == ["delay 192.0.2.1"]
    [found] = check_rules([rule("greylist 192.0.2.1 delay=2d")], settings_with(), NOW)
    assert (
        "delay 2d is not shorter than retry_window 2d: for such mail the window is 4d" in found.text
    )
    [found] = check_rules([rule("greylist 192.0.2.1 delay=5d")], settings_with(), NOW)
    assert "senders give up" in found.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("allow 192.0.2.7", "allow 192.0.2.0/24"),
        ("allow to:bob@example.net", "allow to:bob@"),
        ("allow to:bob@example.net", "allow to:.net"),
        ("reject helo:mail.example.com", "reject helo:.example.com"),
        ("reject helo:.mail.example.com", "reject helo:.example.com"),
        ("greylist 192.0.2.7", "greylist 192.0.2.0/24 delay=5m"),
        ("allow 192.0.2.7 expires=2027-06-01T00:00:00Z", "allow 192.0.2.0/24"),
        (
            "allow 192.0.2.7 expires=2027-06-01T00:00:00Z",
            "allow 192.0.2.0/24 expires=2027-06-01T00:00:00Z",
        ),
    ],
)
def test_a_rule_that_says_what_the_next_broader_one_says_is_named(one: str, other: str) -> None:
    assert findings(one, other) == [f"redundant {rule(one).pattern}"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("allow 192.0.2.7", "reject 192.0.2.0/24"),
        ("allow 192.0.2.7", "allow 192.0.3.0/24"),
        ("allow to:bob@", "allow to:example.net"),
        ("greylist 192.0.2.7 delay=1h", "greylist 192.0.2.0/24"),
        ("allow 192.0.2.7", "allow 192.0.2.0/24 expires=2027-06-01T00:00:00Z"),
        (
            "allow 192.0.2.7 expires=2027-07-01T00:00:00Z",
            "allow 192.0.2.0/24 expires=2027-06-01T00:00:00Z",
        ),
        ("reject 192.0.2.7", "reject to:bob@example.net"),
        ("allow to:<>", "allow to:.net"),
    ],
)
def test_a_rule_without_which_something_would_change_is_not(one: str, other: str) -> None:
    assert findings(one, other) == []


def test_a_rule_between_makes_a_rule_worth_keeping() -> None:
    assert findings("allow 192.0.2.7", "reject 192.0.2.0/24", "allow 192.0.0.0/16") == []
    # Nobody verified the name: the rule between does not count.
    assert findings("reject name:a.b.com", "allow name:.b.com", "reject name:.com") == [
        "unverified name:.b.com",
        "redundant name:a.b.com",
    ]


def test_a_network_whose_parts_all_have_rules_never_decides() -> None:
    parts = ["allow 192.0.2.0/26", "reject 192.0.2.64/26", "reject 192.0.2.128/25"]
    assert findings(*parts, "allow 192.0.2.0/24") == [
        "redundant 192.0.2.0/26",
        "undecided 192.0.2.0/24",
    ]
    assert findings(*parts[:2], "allow 192.0.2.0/24") == ["redundant 192.0.2.0/26"]
    assert "undecided 192.0.2.0/24" not in findings(
        "reject 192.0.2.0/25 expires=2027-06-01T00:00:00Z",
        "reject 192.0.2.128/25",
        "allow 192.0.2.0/24",
    )


def found(*written: str) -> list[tuple[str, str]]:
    every = [rule(line) for line in written]
    return [(one.rule.pattern, one.what) for one in check_rules(every, settings_with(), NOW)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from:a@example.org to:b@example.net", "from:example.org to:b@example.net"),
        ("from:a@example.org to:b@example.net", "from:a@example.org to:example.net"),
        ("192.0.2.1 to:b@example.net", "192.0.0.0/16 to:.net"),
    ],
)
def test_a_pair_that_says_what_the_next_broader_one_says_is_named(one: str, other: str) -> None:
    assert found(f"defer {one}", f"defer {other}") == [(one, "redundant")]
    assert found(f"defer {one}", f"reject {other}") == []


@pytest.mark.parametrize(
    "between",
    [
        "reject 192.0.2.0/24 to:b@example.net",
        "reject from:.org to:b@example.net",
        "reject 192.0.2.0/24 to:example.net",
        "reject from:c@example.org to:example.net",
    ],
)
def test_a_pair_that_another_may_come_behind_is_worth_keeping(between: str) -> None:
    """What PAIR matches, a rule of another action may match too, before the broader one does."""
    pair, wide = "defer from:example.org to:b@example.net", "defer from:example.org to:example.net"
    assert found(pair, wide) == [("from:example.org to:b@example.net", "redundant")]
    assert found(pair, wide, between) == []


def test_a_pair_and_a_rule_of_one_part_are_both_worth_keeping() -> None:
    assert found("defer from:a@example.org to:b@example.net", "defer to:b@example.net") == []


def test_what_every_address_has_a_pair_before_never_decides() -> None:
    everybody = ["defer 0.0.0.0/0 to:example.net", "defer ::/0 to:example.net"]
    hidden = ["allow helo:x to:example.net", "allow to:b@example.net", "reject to:example.net"]
    shown = ["allow helo:x to:b@example.net", "allow to:.net", "allow helo:x", "allow from:x@x"]
    every = found(*everybody, *hidden, *shown)
    assert set(every) == {(line.partition(" ")[2], "undecided") for line in hidden}
    assert found(*everybody[:1], *hidden) == []


def test_networks_whose_parts_all_have_pairs_never_decide_for_that_recipient() -> None:
    halves = [f"allow 192.0.2.{half}/25 to:example.net" for half in (0, 128)]
    whole = [f"reject 192.0.2.0/24 to:{domain}example.net" for domain in ("", "b@")]
    assert found(*halves, *whole) == [("192.0.2.0/24 to:example.net", "undecided")]


def test_who_makes_a_rule_is_told_of_pairs_that_come_before() -> None:
    wide, pair = rule("allow from:.example.org"), rule("defer from:a@example.org to:b@example.net")
    assert remarks(wide, [wide, pair], settings_with(), NOW) == [
        "defer from:a@example.org to:b@example.net decides before allow from:.example.org:"
        " more specific"
    ]
    assert remarks(pair, [wide, pair], settings_with(), NOW) == []


def test_names_never_decide_where_every_address_has_a_rule() -> None:
    assert findings(
        "greylist 0.0.0.0/0", "reject ::/1", "greylist 8000::/1", "reject helo:.example.com"
    ) == ["undecided helo:.example.com"]
    assert findings("greylist 0.0.0.0/0", "reject helo:.example.com") == []


# --- what an operator is told of a new rule -------------------------------------------------------


def remarks_on(new: str, *others: str, **values: str) -> list[str]:
    every = [rule(text) for text in (new, *others)]
    return remarks(every[0], every, settings_with(**values), NOW)


def test_a_rule_alone_calls_for_no_remark() -> None:
    assert (
        remarks_on("allow 192.0.2.0/24", "reject 198.51.100.0/24", "allow to:bob@example.net") == []
    )


def test_it_is_told_that_a_broader_rule_says_the_same() -> None:
    assert remarks_on("allow 192.0.2.7", "allow 192.0.2.0/24") == [
        "allow 192.0.2.7: allow 192.0.2.0/24 has the same effect: remove one of them"
    ]


def test_it_is_told_of_more_specific_rules() -> None:
    assert remarks_on("allow 192.0.2.0/24", "allow 192.0.2.7", "reject 192.0.2.8") == [
        "allow 192.0.2.0/24 has the same effect as allow 192.0.2.7",
        "reject 192.0.2.8 decides before allow 192.0.2.0/24: more specific",
    ]


def test_it_is_told_nothing_of_rules_of_another_kind() -> None:
    others = ["reject to:a@example.net", "allow from:.example.com", "reject helo:.example.com"]
    assert remarks_on("allow 192.0.2.0/24", *others) == []


# --- which rules are about something --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.7", ["192.0.2.0/24", "192.0.2.7"]),
        ("192.0.0.0/16", ["192.0.2.0/24", "192.0.2.7"]),
        ("198.51.100.1", []),
        ("from:alice@mail.example.com", ["from:.example.com"]),
        ("from:.com", ["from:.example.com"]),
        ("Example.com", ["from:.example.com", "helo:example.com"]),
        ("office", ["192.0.2.7"]),
        ("bob@", ["to:bob@example.net"]),
    ],
)
def test_rules_are_found_by_what_they_match_and_by_their_text(text: str, found: list[str]) -> None:
    every = [
        rule("allow to:bob@example.net"),
        rule("reject from:.example.com"),
        rule("allow 192.0.2.0/24"),
        rule("reject 192.0.2.7 # the Office"),
        rule("allow helo:example.com"),
    ]
    assert [one.pattern for one in rulebook.about(text, every)] == found


def test_rules_that_do_not_count_are_not_told_of() -> None:
    every = [
        rule("allow 192.0.2.0/24"),
        rule("reject 192.0.2.7 expires=2020-01-01T00:00:00Z"),
        Rule(b"\0" * 16, "network", "nonsense", "reject"),
        make_rule(patterns.expectation("bob@example.net"), "allow", expires_at=NOW + 5),
    ]
    assert remarks(every[0], every, settings_with(), NOW) == []


def test_what_decides_before_an_expectation_is_found() -> None:
    recipient = parse("to:bob@example.net")

    def decides(*texts: str) -> str | None:
        found = rule_before_expectation(recipient, [rule(text) for text in texts], NOW)
        return found.pattern if found else None

    assert decides("reject to:.net", "allow to:alice@example.net") == "to:.net"
    assert decides("greylist to:bob@", "reject to:.net") is None
    assert decides("reject to:.net expires=2020-01-01T00:00:00Z") is None
