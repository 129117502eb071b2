"""The resident's SQLite file: many envelopes in one transaction, rules from memory, and others who
write to the same file.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer

import pytest

from greycheck import check, rule_keys
from greycheck.envelope import Envelope, triplet
from greycheck.policy import Change, ClientRow, Decision, Rows, RuleRow, TripletRow
from greycheck.resident import batch_store
from greycheck.resident.batch_store import Store, write_back
from greycheck.settings import Settings, read
from greycheck.store import compiled_sqlite, sqlite
from greycheck.store.base import Asked, StoreError, digest
from greycheck.store.causes import Again, Busy, NoSchema, WrongSchema
from greycheck.store.schema import migrate
from greycheck.store.writing import parameters

NOW = 1_800_000_000
SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")


def asked(sender: bytes = b"a@example.org", client: str = "192.0.2.1") -> Asked:
    envelope = Envelope("smtpextfork", client, sender, b"b@example.net")
    return Asked(envelope, triplet(envelope, 24, 64))


ASKED = asked()
FRESH = TripletRow(NOW, NOW)
NEW = [Change(None, FRESH, NOW + 9)]


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """The resident's connection to an empty store."""
    found = Store(str(path))
    yield found
    found.close()


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection to it."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def test_a_start_waits_for_who_has_the_file_to_himself(path: Path) -> None:
    """As the last one to leave it does, while he writes its log back."""
    leaver = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    leaver.execute("PRAGMA locking_mode = EXCLUSIVE")
    leaver.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        Store(str(path))
    leaving = Timer(0.3, leaver.close)
    leaving.start()
    found = Store(str(path), 60)
    leaving.join()
    # Afterwards it waits for nobody.
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert not found.begin_writing()
    found.close()


def put_rule(
    connection: sqlite3.Connection,
    pattern: str,
    key: bytes,
    kind: str = "sender",
    action: str = "allow",
) -> None:
    values = (digest(key), kind, pattern, action, "", 1)
    connection.execute(
        "INSERT INTO rule (match_key, kind, pattern, action, comment, created_at) VALUES (?, ?, ?,"
        " ?, ?, ?)",
        values,
    )


def put_sender(connection: sqlite3.Connection, sender: str, action: str = "allow") -> None:
    put_rule(connection, f"from:{sender}", rule_keys.key("sender", sender.encode()), action=action)


def put_expectation(connection: sqlite3.Connection, recipient: str = "b@example.net") -> None:
    put_rule(
        connection, f"to:{recipient}", rule_keys.expectation_key(recipient.encode(), b""), "expect"
    )


def look(store: Store, what: Asked = ASKED) -> Rows:
    """What is found in a batch of its own."""
    store.begin_reading()
    try:
        return store.lookup(what, NOW)
    finally:
        store.commit()


def write(store: Store, changes: list[Change], what: Asked = ASKED) -> bool:
    """Writes CHANGES in a batch of their own."""
    assert store.begin_writing()
    done = store.save(what, changes, patient=True)
    store.commit()
    return done


def patterns_of(found: Rows) -> list[str]:
    return [rule.pattern for rule in found.rules]


def row_of(found: Rows) -> tuple[int, int]:
    assert found.triplet
    return found.triplet.first, found.triplet.last


# --- together -------------------------------------------------------------------------------------

WAITS = batch_store.ReadRow(NOW + 9, NOW - 60, NOW - 30, 2, 0, None)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (NEW[0], "INSERT_TRIPLET"),
        (Change(None, TripletRow(1, 2, 3, 4, 5), 6), "INSERT_TRIPLET"),
        (Change(FRESH, TripletRow(1, 2, 3, 4, 5), 6), "SWAP_TRIPLET"),
        (Change(FRESH, TripletRow(NOW, NOW + 1, 1), NOW + 9), "SWAP_TRIPLET"),
        (Change(WAITS, TripletRow(NOW - 60, NOW, 3), NOW + 9), "COUNT_EARLY"),
        (Change(WAITS, TripletRow(NOW - 60, NOW, 3), NOW + 8), "SWAP_TRIPLET"),
        (Change(WAITS, TripletRow(NOW - 50, NOW, 3), NOW + 9), "SWAP_TRIPLET"),
        (Change(WAITS, TripletRow(NOW - 60, NOW, 2, 1, NOW), NOW + 9), "SWAP_TRIPLET"),
        (Change(WAITS, TripletRow(NOW - 60, NOW, 2, 0, NOW), NOW + 9), "SWAP_TRIPLET"),
    ],
)
def test_values_are_those_of_a_check(change: Change, kind: str) -> None:
    each = asked()
    each.authorised = 1
    found, values = batch_store.triplet_values(each, change)
    assert found == kind
    names = getattr(compiled_sqlite, kind)[1]
    wanted = parameters(each, change) | {"was_expires_at": WAITS.expires}
    assert values == tuple(wanted[name] for name in names)


def test_each_finds_its_own_rows_among_many(store: Store) -> None:
    each = [asked(b"%d@example.org" % number, f"192.0.2.{number}") for number in range(1, 100)]
    assert store.begin_writing()
    for number, one in enumerate(each[::3]):
        client = Change(None, ClientRow(number, NOW, 1), NOW + 9)
        waits = Change(None, TripletRow(number, NOW, number), NOW + 9)
        assert store.save(one, [waits, client], patient=True)
    store.commit()
    alone = [look(store, one) for one in each]
    store.begin_reading()
    store.look_ahead([*each, *each])
    for one, found in zip(each, alone, strict=True):
        together, again = store.lookup(one, NOW), store.lookup(one, NOW)
        for rows in (together, again):
            for name in ("triplet", "client"):
                row, wanted = getattr(rows, name), getattr(found, name)
                assert (row is None) == (wanted is None)
                slots = (TripletRow if name == "triplet" else ClientRow).__slots__
                assert [getattr(row, slot, None) for slot in slots] == [
                    getattr(wanted, slot, None) for slot in slots
                ]
    store.commit()


def test_rows_in_another_order_are_nobodys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL promises none: each is looked up by itself then."""
    second = asked(b"b@example.org")
    assert store.begin_writing()
    assert store.save(ASKED, NEW, patient=True)
    store.commit()
    in_order = store._rows_of
    store.begin_reading()
    with monkeypatch.context() as turned:
        turned.setattr(store, "_rows_of", lambda asked: in_order(asked)[::-1])
        store.look_ahead([ASKED, second])
    assert store.lookup(ASKED, NOW).triplet is not None
    assert store.lookup(second, NOW).triplet is None


def test_what_was_looked_up_ahead_ends_with_its_transaction(
    store: Store, other: sqlite3.Connection
) -> None:
    second = asked(b"b@example.org")
    for end in (store.commit, store.roll_back, store.begin_writing):
        store.begin_reading()
        store.look_ahead([ASKED, second])
        store.look_ahead_for_identities([(ASKED, SETTINGS), (second, SETTINGS)])
        end()
        if not store.is_in_batch:
            assert write(store, NEW)
            store.begin_reading()
        else:
            assert store.save(ASKED, NEW, patient=True)
        assert store.lookup(ASKED, NOW).triplet
        store.roll_back()
        other.execute("DELETE FROM triplet")


def test_one_that_is_not_as_it_was_read_is_told_and_all_can_be_undone(store: Store) -> None:
    second = asked(b"b@example.org")
    assert write(store, NEW)
    stale = Change(TripletRow(NOW, NOW, 7), TripletRow(NOW, NOW, 8), NOW + 9)
    for change in (NEW[0], stale):
        assert store.begin_writing()
        with pytest.raises(Again):
            store.save_together([(second, NEW[0]), (ASKED, change)])
        store.roll_back()
        assert look(store, second).triplet is None
    assert store.begin_writing()
    store.save_together(
        [(second, NEW[0]), (ASKED, Change(FRESH, TripletRow(NOW, NOW + 5, 1), NOW + 9))]
    )
    store.commit()
    assert row_of(look(store)) == (NOW, NOW + 5)
    assert row_of(look(store, second)) == (NOW, NOW)


# --- rules ----------------------------------------------------------------------------------------


def test_a_rule_counts_at_the_very_next_question(store: Store, other: sqlite3.Connection) -> None:
    """However often and how soon after each other rules come and go."""
    for number in range(50):
        put_sender(other, "a@example.org", "reject" if number % 2 else "allow")
        found = look(store)
        assert [rule.action for rule in found.rules] == ["reject" if number % 2 else "allow"]
        assert patterns_of(look(store)) == ["from:a@example.org"]
        other.execute("DELETE FROM rule")
        assert look(store).rules == []
        assert look(store).rules == []


def test_rules_are_looked_up_in_memory_until_somebody_writes(
    store: Store, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_sender(other, "a@example.org")
    look(store)
    monkeypatch.setattr(store, "_rules", None)
    assert patterns_of(look(store)) == ["from:a@example.org"]
    assert write(store, NEW)
    assert patterns_of(look(store)) == ["from:a@example.org"]
    put_sender(other, "example.org")
    with pytest.raises(TypeError):
        look(store)


def test_they_are_read_again_only_so_often(
    store: Store, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_store, "REREAD", 0)
    monkeypatch.setattr(batch_store, "TIMES", 0)
    put_sender(other, "a@example.org")
    look(store)
    monkeypatch.setattr(store, "_rules", None)
    put_sender(other, "example.org")
    assert patterns_of(look(store)) == ["from:a@example.org", "from:example.org"]


def test_a_rule_that_memory_cannot_read_is_found_all_the_same(
    store: Store, other: sqlite3.Connection
) -> None:
    put_rule(other, "who knows what", rule_keys.key("sender", b"a@example.org"))
    for _ in range(2):
        assert patterns_of(look(store)) == ["who knows what"]


def test_a_batch_sees_one_state_of_the_rules(store: Store, other: sqlite3.Connection) -> None:
    put_sender(other, "a@example.org")
    store.begin_reading()
    other.execute("DELETE FROM rule")
    assert patterns_of(store.lookup(ASKED, NOW)) == ["from:a@example.org"]
    store.commit()
    assert look(store).rules == []


def test_a_rule_that_came_between_a_look_and_a_write_is_seen(
    store: Store, other: sqlite3.Connection
) -> None:
    look(store)
    put_sender(other, "a@example.org")
    assert store.begin_writing()
    assert patterns_of(store.lookup(ASKED, NOW)) == ["from:a@example.org"]
    store.commit()


def decide(store: Store, each: Asked, now: int = NOW) -> Decision:
    decision = Decision(each.envelope, SETTINGS, now)
    check.decide(store, each, decision)
    return decision


def test_an_expectation_is_used_once(store: Store, other: sqlite3.Connection) -> None:
    """By the first of a batch, too: the second finds it gone."""
    put_expectation(other)
    first, second = asked(), asked(b"c@example.org")
    decided = []
    store.begin_reading()
    for each in (first, second):
        decided.append((each, decide(store, each)))
    store.commit()
    assert [decision.reason for _, decision in decided] == ["expected", "expected"]
    assert store.begin_writing()
    assert [store.save(each, decision.changes, patient=True) for each, decision in decided] == [
        True,
        False,
    ]
    assert check.check(store, Decision(second.envelope, SETTINGS, NOW)).reason == "new"
    store.commit()
    found = look(store, asked(b"d@example.org"))
    assert found.expected is None
    assert look(store, first).triplet
    assert other.execute("SELECT count(*) FROM rule").fetchone() == (0,)


def test_an_expectation_whose_use_was_taken_back_is_still_there(
    store: Store, other: sqlite3.Connection
) -> None:
    put_expectation(other)
    expected = look(store).expected
    assert expected
    assert store.begin_writing()
    assert store.save(ASKED, [Change(expected, None)], patient=True)
    assert store.lookup(ASKED, NOW).expected is None
    store.roll_back()
    assert look(store).expected


# --- writing --------------------------------------------------------------------------------------


def test_a_batch_is_there_for_others_once_it_is_committed(
    store: Store, other: sqlite3.Connection
) -> None:
    count = "SELECT count(*) FROM triplet"
    assert store.begin_writing()
    for number in range(3):
        assert store.save(asked(b"%d@example.org" % number), NEW, patient=True)
    assert other.execute(count).fetchone() == (0,)
    store.commit()
    assert other.execute(count).fetchone() == (3,)


def test_the_same_new_triplet_twice_in_a_batch_is_one_row(store: Store) -> None:
    assert store.begin_writing()
    assert store.save(ASKED, NEW, patient=True)
    assert not store.save(ASKED, NEW, patient=True)
    assert check.check(store, Decision(ENVELOPE, SETTINGS, NOW)).reason == "early"
    store.commit()
    assert row_of(look(store)) == (NOW, NOW)


def test_changes_that_belong_together_are_written_both_or_not_at_all(store: Store) -> None:
    stale = Change(ClientRow(1, 1, 1), ClientRow(1, 1, 2), 9)
    assert store.begin_writing()
    assert store.save(asked(b"before@example.org"), NEW, patient=True)
    assert not store.save(ASKED, [*NEW, stale], patient=True)
    assert not store.save(ASKED, [stale, *NEW], patient=True)
    assert store.save(
        asked(b"after@example.org"), [*NEW, Change(None, ClientRow(1, 1, 1), 9)], patient=True
    )
    assert store.save(ASKED, [], patient=True)
    store.commit()
    assert look(store).triplet is None
    assert look(store, asked(b"before@example.org")).triplet
    found = look(store, asked(b"after@example.org"))
    assert found.triplet
    assert found.client


def test_what_another_process_was_quicker_to_change_is_decided_again(
    store: Store, path: Path
) -> None:
    """A retry is seen, another process counts it first, and it is no second pass."""
    passed = SETTINGS.delay
    assert write(store, NEW)
    store.begin_reading()
    decision = decide(store, ASKED, NOW + passed)
    store.commit()
    assert decision.reason == "retry"
    with closing(sqlite.Store(str(path), 1)) as child:
        assert check.check(child, Decision(ENVELOPE, SETTINGS, NOW + passed)).reason == "retry"
    assert store.begin_writing()
    assert not store.save(ASKED, decision.changes, patient=True)
    assert check.check(store, Decision(ENVELOPE, SETTINGS, NOW + passed)).reason == "client"
    store.commit()
    found = look(store).client
    assert found
    assert found.passes == 1


def test_whoever_writes_holds_up_nobody_who_reads(store: Store, other: sqlite3.Connection) -> None:
    assert write(store, NEW)
    other.execute("BEGIN IMMEDIATE")
    assert not store.begin_writing()
    assert look(store).triplet
    assert not store.begin_writing()
    other.execute("COMMIT")
    assert write(store, [Change(FRESH, TripletRow(NOW, NOW + 1), NOW)])


def test_changes_go_on_with_the_look_ups_where_nobody_wrote_meanwhile(
    store: Store, other: sqlite3.Connection
) -> None:
    other.execute("PRAGMA busy_timeout = 0")
    store.begin_reading()
    assert store.lookup(ASKED, NOW).triplet is None
    assert store.begin_writing()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    assert store.save(ASKED, NEW, patient=True)
    store.commit()
    assert look(store).triplet


def test_where_somebody_wrote_meanwhile_changes_begin_from_that(
    store: Store, other: sqlite3.Connection
) -> None:
    store.begin_reading()
    assert not store.lookup(ASKED, NOW).rules
    put_sender(other, "a@example.org")
    assert store.begin_writing()
    assert store.lookup(ASKED, NOW).rules
    store.commit()


def test_changes_do_not_begin_where_the_schema_became_another_programs(
    store: Store, other: sqlite3.Connection
) -> None:
    store.begin_reading()
    assert store.lookup(ASKED, NOW).triplet is None
    other.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(WrongSchema, match="newer than this program's"):
        store.begin_writing()
    assert not store.is_in_batch


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_written_apart_is_undone_alone(store: Store, fails: bool) -> None:
    before, after = asked(b"before@example.org"), asked(b"after@example.org")
    assert store.begin_writing()
    assert store.save(before, NEW, patient=True)
    with suppress(StoreError), store.apart():
        assert store.save(ASKED, NEW, patient=True)
        if fails:
            raise StoreError
    assert store.save(after, NEW, patient=True)
    with pytest.raises(KeyError), store.apart():
        raise KeyError
    store.commit()
    assert [bool(look(store, one).triplet) for one in (before, ASKED, after)] == [
        True,
        not fails,
        True,
    ]


def test_a_fault_that_ended_the_transaction_is_the_one_that_is_told(store: Store) -> None:
    """SQLite rolls back by itself where the disk is full; there is nothing to go back to then."""

    def fill_the_disk() -> None:
        store.roll_back()
        raise StoreError("disk full")

    assert store.begin_writing()
    with pytest.raises(StoreError, match="disk full"), store.apart():
        fill_the_disk()
    assert not store.is_in_batch


def test_a_file_that_another_process_has_for_itself_is_busy(store: Store, path: Path) -> None:
    assert write(store, NEW)
    store.close()
    alone = sqlite3.connect(path, isolation_level=None)
    alone.execute("PRAGMA locking_mode = EXCLUSIVE")
    alone.execute("BEGIN IMMEDIATE")
    with closing(alone), pytest.raises(Busy):
        Store(str(path)).begin_reading()


def test_a_batch_that_could_not_begin_can_begin_later(
    store: Store, other: sqlite3.Connection
) -> None:
    other.execute("ALTER TABLE rule RENAME TO hidden")
    for _ in range(2):
        with pytest.raises(NoSchema):
            look(store)
    other.execute("ALTER TABLE hidden RENAME TO rule")
    assert look(store).triplet is None


@pytest.mark.parametrize("reread", [0, 60])
@pytest.mark.parametrize(("revision", "what"), [("0001", "older"), ("9999", "newer")])
def test_a_schema_of_another_program_is_said(
    store: Store,
    other: sqlite3.Connection,
    revision: str,
    what: str,
    reread: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether rules are read again then or looked up in the table."""
    monkeypatch.setattr(batch_store, "TIMES", 0)
    assert look(store).triplet is None
    monkeypatch.setattr(batch_store, "REREAD", reread)
    other.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(StoreError, match=f"the schema is at {revision}, {what} than"):
        look(store)


# --- what waits besides ---------------------------------------------------------------------------


def waits(store: Store, limit: int = 10) -> tuple[int, int | None, int]:
    store.begin_reading()
    found = store.waiting(ASKED, 0, NOW, settings_with(pending_limit=limit))
    store.commit()
    return found.others, found.oldest, found.total


def test_others_of_a_pair_are_asked_for_where_there_are_any(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the triplet is new, or was known and its lifetime is over."""
    look(store)
    monkeypatch.setattr("greycheck.store.waiting.pool_parameters", None)
    store.begin_reading()
    assert store.lookup(ASKED, NOW).triplet is None
    assert store.waiting(ASKED, 0, NOW, settings_with(pending_limit=0, network_limit=0)).others == 0
    store.commit()
    monkeypatch.undo()
    assert write(store, NEW, asked(client="198.51.100.1"))
    for passed in (None, NOW - 10**8):
        if passed:
            assert write(
                store, [Change(None, TripletRow(passed, passed, 0, 1, passed), passed + 9)]
            )
        store.begin_reading()
        assert (store.lookup(ASKED, NOW).triplet is None) == (passed is None)
        assert (
            store.waiting(ASKED, 0, NOW, settings_with(pending_limit=0, network_limit=0)).others
            == 1
        )
        store.commit()


def test_what_waits_in_all_is_counted_now_and_then(
    store: Store, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_store, "TIMES", 9999)
    assert write(store, NEW, asked(client="198.51.100.1"))
    assert waits(store) == (1, NOW, 1)
    other.execute("DELETE FROM triplet")
    assert waits(store) == (0, None, 1)
    assert waits(store, limit=0) == (0, None, 0)
    monkeypatch.setattr(batch_store, "TIMES", 0)
    assert waits(store) == (0, None, 0)
    assert write(store, NEW)
    assert waits(store) == (0, None, 1)
    passed = TripletRow(NOW, NOW, 0, 1, NOW)
    assert write(store, [Change(FRESH, passed, 0)])
    assert waits(store) == (0, None, 0)
    assert write(store, [Change(passed, FRESH, NOW + 9)])
    assert write(store, [Change(None, passed, 0)], asked(client="198.51.100.1"))
    assert waits(store) == (0, None, 1)
    monkeypatch.setattr(batch_store, "ESTIMATE", 0)
    assert waits(store) == (0, None, 1)


def test_the_number_of_what_waits_follows_what_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_store, "ESTIMATE", 9999)
    early, anew = TripletRow(NOW, NOW + 1, 1), TripletRow(NOW + 99, NOW + 99)
    passed = TripletRow(NOW + 99, NOW + 99, 0, 1, NOW + 99)
    assert waits(store)[2] == 0
    for old, new, is_written, number in (
        (None, FRESH, True, 1),
        (None, FRESH, False, 1),
        (FRESH, early, True, 1),
        (early, anew, True, 2),  # its time was over, so no count would have had it
        (early, anew, False, 2),
        (anew, passed, True, 1),
        (anew, passed, False, 1),
    ):
        assert write(store, [Change(old, new, NOW)]) == is_written
        assert waits(store)[2] == number


def test_a_limit_on_what_waits_holds_within_a_batch(store: Store) -> None:
    few = settings_with(pending_limit=3)
    assert store.begin_writing()
    reasons = [
        check.check(store, Decision(asked(b"%d@example.org" % number).envelope, few, NOW)).reason
        for number in range(5)
    ]
    store.commit()
    assert reasons == ["new", "new", "new", "full", "full"]


def settings_with(**changed: int) -> Settings:
    environ = {b"GREYCHECK_CONFIG": b"/dev/null"}
    return read(
        environ
        | {f"GREYCHECK_{name.upper()}".encode(): b"%d" % value for name, value in changed.items()}
    )


# --- the file -------------------------------------------------------------------------------------


def test_a_file_that_was_replaced_is_noticed(store: Store, path: Path, empty_store: Path) -> None:
    assert not store.is_replaced()
    assert write(store, NEW)
    assert not store.is_replaced()
    path.rename(path.with_name("old.db"))
    assert store.is_replaced()
    shutil.copy(empty_store, path)
    assert store.is_replaced()


def test_whoever_leaves_a_file_that_was_replaced_takes_nothing_of_the_new_one_with_him(
    store: Store, path: Path, empty_store: Path
) -> None:
    assert write(store, NEW)
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        file.rename(f"{file}.old")
    shutil.copy(empty_store, path)
    with closing(sqlite.Store(str(path), 1)) as child:
        assert child.save(ASKED, [Change(None, TripletRow(7, 7), 9)], patient=True)
        store.close()
        with closing(sqlite.Store(str(path), 1)) as other:
            assert row_of(other.lookup(ASKED, NOW)) == (7, 7)
        with closing(Store(str(path))) as resident:
            assert row_of(look(resident)) == (7, 7)


@pytest.mark.parametrize("kept", [(), ("-wal",), ("-wal", "-shm")])
def test_a_file_that_is_made_anew_has_nothing_of_the_old_one(
    path: Path, kept: tuple[str, ...]
) -> None:
    """Whatever of it was left lying beside."""
    store = Store(str(path))
    assert write(store, NEW)
    for suffix in {"", "-wal", "-shm"} - set(kept):
        Path(f"{path}{suffix}").unlink()
    migrate.upgrade(f"sqlite:///{path}")
    assert store.is_replaced()
    store.close()
    with closing(Store(str(path))) as again:
        assert look(again).triplet is None
        assert write(again, NEW)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_file_that_is_not_there_is_no_schema(path: Path) -> None:
    path.unlink()
    with pytest.raises(NoSchema):
        Store(str(path))


# --- the log --------------------------------------------------------------------------------------


def test_the_log_is_written_back_by_whoever_is_told_to_alone(store: Store, path: Path) -> None:
    for number in range(100):
        assert write(store, NEW, asked(b"%d@example.org" % number))
    assert store.log_size() > 400_000
    store.begin_reading()
    store.lookup(ASKED, NOW)
    write_back(str(path))
    store.commit()
    write_back(str(path))
    size = store.log_size()
    assert look(store, asked(b"99@example.org")).triplet
    assert write(store, NEW)
    assert store.log_size() == size, "the log begins anew"


def test_a_log_that_cannot_be_written_back_is_left(path: Path) -> None:
    path.write_text("no database, and of some length")
    write_back(str(path))
    path.unlink()
    write_back(str(path))
    assert not path.exists()


def test_a_rule_is_what_it_was_in_the_table(store: Store, other: sqlite3.Connection) -> None:
    put_sender(other, "a@example.org", "reject")
    in_table, in_memory = look(store).rules[0], look(store).rules[0]
    assert [getattr(in_table, name) for name in RuleRow.__slots__] == [
        getattr(in_memory, name) for name in RuleRow.__slots__
    ]


# --- what waits of one network --------------------------------------------------------------------


def test_a_network_is_counted_once_in_a_part_of_its_limit(
    store: Store, other: sqlite3.Connection
) -> None:
    few = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_NETWORK_LIMIT": b"320"})

    def crowds(times: int, limits: Settings = few) -> list[int]:
        """How many wait, as each of so many batches is told."""
        found = []
        for _ in range(times):
            store.begin_reading()
            found.append(store.waiting(ASKED, 0, NOW, limits).crowd)
            store.commit()
        return found

    def put(first: int, last: int) -> None:
        other.executemany(
            "INSERT INTO triplet VALUES"
            " (?, '192.0.2.0/24', 's', 'r', ?, ?, 0, 0, NULL, ?, NULL, 0)",
            [(number.to_bytes(16, "big"), NOW, NOW, NOW + 9) for number in range(first, last)],
        )

    put(0, 316)
    assert (
        crowds(12) == [0] * 5 + [316] + [0] * 3 + [316] + [0] * 2
    )  # four more are let in, or what there is room for
    put(316, 400)
    assert crowds(3) == [0, 320, 320]
    other.execute("DELETE FROM triplet WHERE triplet_key >= ?", [(100).to_bytes(16, "big")])
    assert crowds(6) == [100] + [0] * 4 + [100]
    # Under a limit of a client's own it is counted by that.
    strict = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_NETWORK_LIMIT": b"9"})
    assert crowds(1, strict) == [9]
