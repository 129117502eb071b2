"""One check against a store that loses races and fails, and against the real one."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from greycheck import rule_keys
from greycheck.check import ATTEMPTS, check, decide, remember
from greycheck.envelope import OF_MESSAGE, Envelope, Triplet, message_triplet, triplet
from greycheck.log import show
from greycheck.policy import Change, ClientRow, Decision, Rows, RuleRow, TripletRow
from greycheck.settings import Settings, read
from greycheck.store import base, causes, waiting
from greycheck.store.base import Asked, StoreError
from greycheck.store.causes import Again
from greycheck.store.schema import migrate, tables
from greycheck.store.sqlite import Store
from greycheck.unknown import MESSAGE_TIME, Identity, Pending
from tests.support import Database, in_every_store, on_every_database

NOW = 1_800_000_000
PATIENCE = 20
SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")


class Fake:
    """A store that loses the first LOSSES races, is asked AGAIN so often, or fails with ERROR.

    It has ROW, and from the first race that it lost on the row that was written MEANWHILE.
    """

    def __init__(
        self,
        losses: int = 0,
        error: StoreError | None = None,
        row: TripletRow | None = None,
        again: int = 0,
        meanwhile: TripletRow | None = None,
    ) -> None:
        self.losses = losses
        self.again = again
        self.error = error
        self.row = row
        self.meanwhile = meanwhile
        self.locks = self.saves = 0

    def lookup(self, _asked: Asked, _now: int) -> Rows:
        return Rows(self.row)

    def waiting(self, _asked: Asked, _since: int, _now: int, _settings: Settings) -> Pending:
        return Pending()

    def identity(self, _asked: Asked, _now: int, _settings: Settings) -> Identity:
        return Identity()

    def networks(self, _asked: Asked, _since: int, _settings: Settings) -> Sequence[str]:
        return ()

    notes: Sequence[str] = ()

    def lock(self, _asked: Asked) -> None:
        self.locks += 1

    def save(self, _asked: Asked, _changes: list[Change], patient: bool) -> bool:
        assert patient
        self.saves += 1
        if self.error:
            raise self.error
        self.again -= 1
        if self.again >= 0:
            self.row = self.meanwhile or self.row
            raise Again("deadlock")
        self.losses -= 1
        self.row = self.meanwhile or self.row
        return self.losses < 0

    def tidy(self) -> None:
        raise AssertionError

    def overdue(self) -> None:
        raise AssertionError


def test_a_lost_race_is_decided_again_under_the_lock() -> None:
    store = Fake(losses=2)
    assert check(store, Decision(ENVELOPE, SETTINGS, NOW)).reason == "new"
    assert store.locks == 2


@pytest.mark.parametrize("lost", ["losses", "again"])
def test_what_is_decided_again_is_by_what_was_written_meanwhile(lost: str) -> None:
    store = Fake(meanwhile=TripletRow(NOW - 300, NOW - 300), **{lost: 1})  # type: ignore[arg-type]
    assert check(store, Decision(ENVELOPE, SETTINGS, NOW)).reason == "retry"


def test_a_store_that_fails_is_asked_once() -> None:
    store = Fake(error=StoreError("disk full"), row=TripletRow(NOW - 100, NOW - 100))
    check(store, Decision(ENVELOPE, SETTINGS, NOW))
    assert (store.saves, store.locks) == (1, 0)


def test_a_store_that_cannot_be_read_decides_nothing(path: Path) -> None:
    with closing(Store(str(path), 1)) as store:
        store.begin(1)
        store._execute("ALTER TABLE client RENAME TO hidden")
        with pytest.raises(StoreError, match="no such table: client"):
            check(store, Decision(ENVELOPE, SETTINGS, NOW))


def test_a_race_is_not_lost_for_ever() -> None:
    with pytest.raises(StoreError, match=f"lost {ATTEMPTS} times"):
        check(Fake(losses=99), Decision(ENVELOPE, SETTINGS, NOW))


def test_a_new_triplet_that_cannot_be_recorded_is_no_deferral() -> None:
    with pytest.raises(StoreError, match="disk full"):
        check(Fake(error=StoreError("disk full")), Decision(ENVELOPE, SETTINGS, NOW))


def test_a_race_that_is_lost_for_ever_leaves_what_is_recorded() -> None:
    verdict = check(
        Fake(losses=99, row=TripletRow(NOW - 100, NOW - 100)), Decision(ENVELOPE, SETTINGS, NOW)
    )
    assert (verdict.reason, verdict.unrecorded) == (
        "early",
        f"the race for this triplet was lost {ATTEMPTS} times",
    )


@pytest.mark.parametrize("again", [1, ATTEMPTS])
def test_what_another_host_was_quicker_to_change_is_decided_again(again: int) -> None:
    store = Fake(again=again)
    if again < ATTEMPTS:
        assert check(store, Decision(ENVELOPE, SETTINGS, NOW)).reason == "new"
    else:
        with pytest.raises(Again, match="deadlock"):
            check(store, Decision(ENVELOPE, SETTINGS, NOW))


@pytest.mark.parametrize(("age", "reason"), [(100, "early"), (300, "retry")])
def test_every_other_verdict_stands(age: int, reason: str) -> None:
    row = TripletRow(NOW - age, NOW - age)
    verdict = check(Fake(error=StoreError("disk full"), row=row), Decision(ENVELOPE, SETTINGS, NOW))
    assert (verdict.reason, verdict.unrecorded) == (reason, "disk full")


# --- the first recipient of a message -------------------------------------------------------------

MESSAGE = b"192.0.2.1 port 25025"
EACH_WAITS = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_CLIENT_PASSES": b"0"})


def recipient(address: bytes, first: bool = False, message: bytes = MESSAGE) -> Envelope:
    """The first or a later recipient of a message."""
    return Envelope("spp", "192.0.2.1", b"a@example.org", address, message=message, first=first)


def test_what_could_not_be_recorded_opens_no_message() -> None:
    first, row = recipient(b"b@example.net", first=True), TripletRow(NOW - 300, NOW - 300)
    assert check(Fake(row=row), Decision(first, EACH_WAITS, NOW)).opens_message
    assert not check(
        Fake(row=row, error=StoreError("disk full")), Decision(first, EACH_WAITS, NOW)
    ).opens_message
    assert not check(
        Fake(row=row),
        Decision(recipient(b"b@example.net", first=True, message=b""), EACH_WAITS, NOW),
    ).opens_message
    assert not check(
        Fake(row=row), Decision(recipient(b"b@example.net"), EACH_WAITS, NOW)
    ).opens_message


@pytest.mark.parametrize("passed", [True, False])
def test_what_a_message_has_may_be_kept_elsewhere(passed: bool) -> None:
    messages: list[bytes] = []

    def first_passed(_store: "base.Store", decision: Decision) -> bool:
        assert decision.now == NOW
        messages.append(decision.envelope.message)
        return passed

    def reason(envelope: Envelope) -> str:
        return check(Fake(), Decision(envelope, SETTINGS, NOW), first_passed).reason

    assert reason(recipient(b"c@example.net")) == ("message" if passed else "new")
    assert messages == [MESSAGE]
    assert reason(recipient(b"c@example.net", message=b"")) == "new"
    assert reason(recipient(b"c@example.net", first=True)) == "new"
    assert messages == [MESSAGE]


@given(
    st.binary().filter(lambda address: b"\0" not in address),
    st.binary().filter(lambda address: b"\0" not in address),
)
def test_no_recipient_is_taken_for_a_message(sender: bytes, address: bytes) -> None:
    one = Triplet("192.0.2.1", "192.0.2.0/24", sender, address)
    message = message_triplet(one, address)
    others = [
        Triplet("192.0.2.1", "192.0.2.0/24", *parts)
        for parts in ((sender, address), (address, sender))
    ]
    assert Asked(ENVELOPE, message).key not in {Asked(ENVELOPE, other).key for other in others}
    assert not show(address).startswith(show(OF_MESSAGE))


# --- the real store -------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    return tmp_path / "greycheck.db"


class Stores:
    """Connections to DATABASE, as children have them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.execute = database.execute
        self.opened: list[base.Connected] = []

    def open(self) -> "base.Store":
        """A further connection."""
        self.opened.append(self.database.connect(PATIENCE))
        return self.opened[-1]

    def close(self) -> None:
        """Ends all, and the transactions that they are in."""
        for store in self.opened:
            store.close()


@pytest.fixture
def stores(database: Database) -> Iterator[Stores]:
    """Connections to a store that has tables and no row."""
    found = Stores(database)
    yield found
    found.close()


def asked(
    network: str = "192.0.2.0/24",
    sender: bytes = b"a@example.org",
    recipient: bytes = b"b@example.net",
) -> Asked:
    return Asked(ENVELOPE, Triplet("192.0.2.1", network, sender, recipient))


ASKED = asked()


@in_every_store
def test_a_row_comes_back_as_it_was_saved(stores: Stores) -> None:
    store = stores.open()
    row, client = TripletRow(1, 2, 3, 4, 5), ClientRow(6, 7, 8, 9, 10)
    assert store.save(ASKED, [Change(None, row, 9), Change(None, client, 10)], patient=True)
    found = store.lookup(ASKED, NOW)
    assert (values(found.triplet), values(found.client)) == (values(row), values(client))


def values(row: TripletRow | ClientRow | None) -> list[int | None]:
    kind = TripletRow if isinstance(row, TripletRow) else ClientRow
    return [getattr(row, name) for name in kind.__slots__]


@in_every_store
@pytest.mark.parametrize(
    "stale",
    [TripletRow(0, 2), TripletRow(1, 1), TripletRow(1, 2, early=1), TripletRow(1, 2, passes=1)],
)
def test_a_row_that_changed_meanwhile_is_not_overwritten(stores: Stores, stale: TripletRow) -> None:
    store = stores.open()
    store.save(ASKED, [Change(None, TripletRow(1, 2), 9)], patient=True)
    assert not store.save(ASKED, [Change(stale, TripletRow(7, 7), 9)], patient=True)
    assert values(store.lookup(ASKED, NOW).triplet) == values(TripletRow(1, 2))


@in_every_store
@pytest.mark.parametrize(
    "stale",
    [
        ClientRow(0, 2, 3, 4, 5),
        ClientRow(1, 0, 3, 4, 5),
        ClientRow(1, 2, 0, 4, 5),
        ClientRow(1, 2, 3, 0, 5),
        ClientRow(1, 2, 3, 4, 0),
    ],
)
def test_nor_is_a_client_that_changed_meanwhile(stores: Stores, stale: ClientRow) -> None:
    store, row = stores.open(), ClientRow(1, 2, 3, 4, 5)
    store.save(ASKED, [Change(None, row, 9)], patient=True)
    assert not store.save(ASKED, [Change(stale, ClientRow(7, 7, 7, 7, 7), 9)], patient=True)
    assert values(store.lookup(ASKED, NOW).client) == values(row)


@in_every_store
def test_a_row_that_came_meanwhile_is_not_overwritten(stores: Stores) -> None:
    one, other = stores.open(), stores.open()
    row, client = TripletRow(1, 1), ClientRow(1, 1, 1)
    assert one.save(ASKED, [Change(None, row, 9), Change(None, client, 9)], patient=True)
    for new in (TripletRow(2, 2), ClientRow(2, 2, 2)):
        assert not other.save(ASKED, [Change(None, new, 9)], patient=True)
    found = one.lookup(ASKED, NOW)
    assert (values(found.triplet), values(found.client)) == (values(row), values(client))


@in_every_store
def test_a_change_writes_every_column_of_its_row_and_of_no_other(stores: Stores) -> None:
    """Others may look the same but for their keys."""
    store = stores.open()
    row, client = TripletRow(1, 1), ClientRow(1, 1, 1)
    another = Asked(ENVELOPE, Triplet("198.51.100.1", "198.51.100.0/24", b"", b"c@example.net"))
    for one in (ASKED, another):
        store.save(one, [Change(None, row, 9), Change(None, client, 9)], patient=True)
    changes = [
        Change(row, TripletRow(2, 3, 4, 5, 6), 7),
        Change(client, ClientRow(2, 3, 4, 5, 6), 7),
    ]
    assert store.save(ASKED, changes, patient=True)
    assert stores.database.rows(
        "SELECT network, first_attempt, last_attempt, early_attempts, passes, passed_at, expires_at"
        " FROM triplet ORDER BY first_attempt"
    ) == [("198.51.100.0/24", 1, 1, 0, 0, None, 9), ("192.0.2.0/24", 2, 3, 4, 5, 6, 7)]
    assert stores.database.rows(
        "SELECT address, first_seen, last_seen, passes, strikes, struck_until, expires_at"
        " FROM client ORDER BY first_seen"
    ) == [("198.51.100.1", 1, 1, 1, 0, 0, 9), ("192.0.2.1", 2, 3, 4, 5, 6, 7)]


@in_every_store
def test_all_changes_are_written_or_none(stores: Stores) -> None:
    store = stores.open()
    stale = Change(ClientRow(1, 1, 1), ClientRow(1, 1, 2), 9)
    assert not store.save(ASKED, [Change(None, TripletRow(1, 1), 9), stale], patient=True)
    gone = Change(RuleRow(b"key", "expect", "", "allow", None), None)
    assert not store.save(ASKED, [Change(None, TripletRow(1, 1), 9), gone], patient=True)
    found = store.lookup(ASKED, NOW)
    assert (found.triplet, found.client) == (None, None)


@in_every_store
def test_changes_can_be_saved_under_the_lock(stores: Stores) -> None:
    store = stores.open()
    store.lock(ASKED)
    assert store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
    assert stores.open().save(ASKED, [Change(TripletRow(1, 1), TripletRow(1, 2), 9)], patient=True)


def test_a_file_without_tables_has_no_schema(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with (
        closing(Store(f"{tmp_path}/empty.db", 1)) as store,
        pytest.raises(causes.NoSchema, match="no such table"),
    ):
        store.lookup(ASKED, NOW)


@in_every_store
def test_a_decision_without_a_change_lets_go_of_the_lock(stores: Stores) -> None:
    store, other = stores.open(), stores.open()
    store.lock(ASKED)
    assert store.save(ASKED, [], patient=True)
    assert other.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)


def test_the_write_ahead_log_is_emptied_by_whom_makes_it_grow(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greycheck.store.sqlite.LOG_STEP", 100_000)
    log = Path(f"{path}-wal")
    largest = 0
    opened = ExitStack()  # closed, the last one would empty it
    for number in range(100):
        store = opened.enter_context(closing(Store(str(path), 1)))
        store.save(asked(f"{number}"), [Change(None, TripletRow(1, 1), number)], patient=True)
        largest = max(largest, log.stat().st_size)
        store.tidy()
    opened.close()
    assert largest < 150_000


def test_a_write_ahead_log_is_left_until_it_grows_past_a_step(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Path(f"{path}-wal")
    with closing(Store(str(path), 1)) as store:
        store.save(asked("small"), [Change(None, TripletRow(1, 1), 9)], patient=True)
        store.tidy()
        assert log.stat().st_size
        monkeypatch.setattr("greycheck.store.sqlite.LOG_STEP", 1)
        store.save(asked("large"), [Change(None, TripletRow(1, 1), 9)], patient=True)
        monkeypatch.undo()
        store.save(asked("small again"), [Change(None, TripletRow(1, 1), 9)], patient=True)
        store.tidy()
        assert not log.stat().st_size


@pytest.mark.parametrize(("patient", "waits"), [(True, 300), (False, 100)])
def test_who_is_not_patient_hardly_waits_for_another_writer(
    path: Path, patient: bool, waits: int
) -> None:
    with closing(Store(str(path), 1)) as other, closing(Store(str(path), 0.3)) as store:
        store.begin(0.3)
        other.lock(ASKED)
        with pytest.raises(causes.Busy, match=f"locked by another process for {waits / 1000}s"):
            store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient)
        assert pragma(store, "busy_timeout") == waits


@pytest.mark.parametrize(
    ("row", "reason", "waits"),
    [
        (TripletRow(NOW - 9999, NOW - 9999, 0, 1, NOW - 9999), "known", 0.1),
        (ClientRow(NOW - 9999, NOW - 9999, 1), "client", 0.1),
        (TripletRow(NOW - 9, NOW - 9), "early", 0.3),
    ],
)
def test_what_is_known_hardly_waits_to_be_recorded(
    path: Path, row: TripletRow | ClientRow, reason: str, waits: float
) -> None:
    with closing(Store(str(path), 1)) as other, closing(Store(str(path), 0.3)) as store:
        other.save(
            Asked(ENVELOPE, triplet(ENVELOPE, 24, 64)),
            [Change(None, row, NOW + 9999)],
            patient=True,
        )
        other.lock(ASKED)
        decision = check(store, Decision(ENVELOPE, SETTINGS, NOW))
    assert decision.reason == reason
    assert decision.unrecorded.endswith(f": locked by another process for {waits}s")


def test_a_message_hardly_waits_to_be_remembered(path: Path) -> None:
    with closing(Store(str(path), 1)) as other, closing(Store(str(path), 0.3)) as store:
        other.lock(ASKED)
        decision = Decision(recipient(b"b@example.net", first=True), EACH_WAITS, NOW)
        with pytest.raises(causes.Busy, match=r"locked by another process for 0\.1s"):
            remember(store, decision, NOW)


def test_a_decision_without_a_change_waits_for_nobody(path: Path) -> None:
    with closing(Store(str(path), 1)) as other, closing(Store(str(path), 0)) as store:
        other.lock(ASKED)
        assert store.save(ASKED, [], patient=False)


def test_a_commit_does_not_wait_for_the_disk(path: Path) -> None:
    """The log is durable enough, and it is emptied once the verdict is given."""
    with closing(Store(str(path), 1)) as store:
        store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
        normal, never = 1, 0
        assert pragma(store, "synchronous") == normal
        assert pragma(store, "wal_autocheckpoint") == never


def pragma(store: Store, name: str) -> int:
    found: int = store._execute(f"PRAGMA {name}").fetchone()[0]
    return found


def test_a_write_ahead_log_that_cannot_be_emptied_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greycheck.store.sqlite.LOG_STEP", 1)
    with closing(Store(str(path), 1)) as store:
        store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
        monkeypatch.setattr(store, "_execute", failing)
        store.tidy()


def failing(*_arguments: object) -> None:
    raise StoreError("disk full")


def test_keys_do_not_run_together() -> None:
    keys = {
        asked(network, sender, recipient).key
        for network, sender, recipient in [
            ("a", b"b", b"c"),
            ("ab", b"", b"c"),
            ("a", b"", b"bc"),
            ("", b"ab", b"c"),
        ]
    }
    assert len(keys) == 4
    assert all(len(key) == base.DIGEST for key in keys)


# --- messages -------------------------------------------------------------------------------------


@in_every_store
def test_later_recipients_follow_a_first_one_that_is_remembered(stores: Stores) -> None:
    later = recipient(b"c@example.net")
    assert check(stores.open(), Decision(later, EACH_WAITS, NOW)).reason == "new"
    remember(stores.open(), Decision(recipient(b"b@example.net", first=True), EACH_WAITS, NOW), NOW)
    assert check(stores.open(), Decision(later, EACH_WAITS, NOW + 1)).reason == "message"
    assert (
        check(
            stores.open(), Decision(recipient(b"d@example.net"), EACH_WAITS, NOW + MESSAGE_TIME)
        ).reason
        == "message"
    )
    assert (
        check(
            stores.open(), Decision(recipient(b"d@example.net"), EACH_WAITS, NOW + MESSAGE_TIME + 1)
        ).reason
        == "new"
    )
    assert (
        check(
            stores.open(),
            Decision(recipient(b"e@example.net", message=b"192.0.2.1 port 1"), EACH_WAITS, NOW),
        ).reason
        == "new"
    )
    waiting = stores.open().lookup(Asked(later, triplet(later, 24, 64)), NOW).triplet
    assert values(waiting) == values(TripletRow(NOW, NOW))


@in_every_store
def test_a_message_that_is_remembered_is_written_again_only_when_its_time_is_half_over(
    stores: Stores,
) -> None:
    first = recipient(b"b@example.net", first=True)
    message = Asked(first, message_triplet(triplet(first, 24, 64), MESSAGE))
    written = []
    for now in (NOW, NOW + MESSAGE_TIME // 2, NOW + MESSAGE_TIME // 2 + 1, NOW + 9999):
        remember(stores.open(), Decision(first, EACH_WAITS, now), now)
        row = stores.open().lookup(message, now).triplet
        assert row
        written.append(row.last - NOW)
    assert written == [0, 0, MESSAGE_TIME // 2 + 1, 9999]


# --- rules ----------------------------------------------------------------------------------------


def put(
    stores: Stores,
    key: bytes,
    kind: str = "network",
    action: str = "allow",
    expires: int | None = None,
) -> None:
    values = {"match_key": base.digest(key), "kind": kind, "pattern": shown(key), "action": action}
    stores.execute(
        insert(tables.rule).values(values | {"comment": "", "created_at": 1, "expires_at": expires})
    )


def shown(key: bytes) -> str:
    """KEY as a text that every database takes: none but SQLite takes a NUL."""
    return key.decode().replace("\0", "|")


@in_every_store
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
def test_rules_come_in_the_order_in_which_they_decide(stores: Stores, client: str) -> None:
    envelope = Envelope(
        "smtpextfork",
        client,
        b"A@Example.org",
        b"b@example.net",
        name=b"mx.example.com.",
        helo=b"HELO.example",
    )
    wanted = Asked(envelope, triplet(envelope, 24, 64))
    keys = rule_keys.keys(envelope, b"a@example.org", b"b@example.net")
    for key in keys[::-1]:
        put(stores, key)
    put(stores, rule_keys.key("network", b"32/32:0"))
    found = stores.open().lookup(wanted, NOW)
    assert [rule.pattern for rule in found.rules] == [shown(key) for key in keys]
    assert found.expected is None


@in_every_store
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
def test_pairs_come_before_all_else_by_recipient_and_then_by_their_other_part(
    stores: Stores, client: str
) -> None:
    helo = b"h.example"
    envelope = Envelope("smtpextfork", client, b"a@example.org", b"b@example.net", helo=helo)
    wanted = Asked(envelope, triplet(envelope, 24, 64))
    recipients = rule_keys.address_values(b"b@example.net")
    first = rule_keys.first_keys(envelope, b"a@example.org")
    # More than one statement takes, where pairs of several recipients are looked up.
    pairs = [rule_keys.pair_key(key, to) for to in recipients[:3] for key in first[::3]]
    single = rule_keys.key("recipient", b"b@example.net")
    for key in [single, *pairs[::-1], rule_keys.pair_key(first[0], b"c@example.net")]:
        put(stores, key)
    for value in [*recipients[:3], b"c@example.net"]:
        put(stores, rule_keys.mark_key(value), "recipient", rule_keys.PAIRS)
    found = stores.open().lookup(wanted, NOW)
    assert [rule.pattern for rule in found.rules] == [shown(key) for key in [*pairs, single]]


@in_every_store
@pytest.mark.parametrize(("expires", "counts"), [(None, True), (NOW + 1, True), (NOW, False)])
def test_a_pair_defers_until_it_is_over(stores: Stores, expires: int | None, counts: bool) -> None:
    sender = rule_keys.key("sender", b"a@example.org")
    put(stores, rule_keys.pair_key(sender, b"b@example.net"), "sender", "defer", expires)
    put(stores, rule_keys.mark_key(b"b@example.net"), "recipient", rule_keys.PAIRS, expires)
    assert (check(stores.open(), Decision(ENVELOPE, SETTINGS, NOW)).reason == "rule") == counts


@in_every_store
@pytest.mark.parametrize(("expires", "counts"), [(None, True), (NOW + 1, True), (NOW, False)])
def test_a_rule_counts_until_it_is_over(stores: Stores, expires: int | None, counts: bool) -> None:
    put(stores, rule_keys.key("sender", b"a@example.org"), "sender", "reject", expires)
    assert (check(stores.open(), Decision(ENVELOPE, SETTINGS, NOW)).reason == "rule") == counts


@in_every_store
@pytest.mark.parametrize("domain", [b"", b".example.org", b".org"])
def test_expected_mail_passes_once(stores: Stores, domain: bytes) -> None:
    put(stores, rule_keys.expectation_key(b"b@example.net", domain), "expect", "allow", NOW + 900)
    assert check(stores.open(), Decision(ENVELOPE, SETTINGS, NOW)).reason == "expected"
    assert check(stores.open(), Decision(ENVELOPE, SETTINGS, NOW)).reason == "known"
    other = Envelope("smtpextfork", "198.51.100.1", b"c@example.org", b"b@example.net")
    assert check(stores.open(), Decision(other, SETTINGS, NOW)).reason == "new"


@in_every_store
def test_mail_from_elsewhere_is_not_expected(stores: Stores) -> None:
    put(
        stores,
        rule_keys.expectation_key(b"b@example.net", b".example.com"),
        "expect",
        "allow",
        NOW + 900,
    )
    assert check(stores.open(), Decision(ENVELOPE, SETTINGS, NOW)).reason == "new"


@in_every_store
@pytest.mark.parametrize(
    "mail",
    [
        {"sender": b"b-5-bob=example.net@example.org"},
        {"sender": b""},
        {"sender": b"\x1b[1m \xff@example.org"},
        {"sender": b"s" * 2000 + b"@example.org"},
        {"recipient": b"postmaster"},
    ],
)
def test_what_was_released_passes_once_whatever_network_tries_first(
    stores: Stores, mail: dict[str, bytes]
) -> None:
    envelopes = [
        Envelope(
            "smtpextfork",
            f"198.51.{number}.1",
            mail.get("sender", b"a@example.org"),
            mail.get("recipient", b"b@example.net"),
        )
        for number in range(3)
    ]
    wanted = [Asked(envelope, triplet(envelope, 24, 64)) for envelope in envelopes]
    put(stores, rule_keys.release_key(*wanted[0].shown), "expect", "allow", NOW + 900)
    # Both look it up before one of them writes.
    slower = Decision(envelopes[1], SETTINGS, NOW)
    late = stores.open()
    decide(late, wanted[1], slower)
    assert slower.reason == "expected"
    assert check(stores.open(), Decision(envelopes[2], SETTINGS, NOW)).reason == "expected"
    assert not late.save(wanted[1], slower.changes, patient=True), "it was used up meanwhile"
    assert check(stores.open(), Decision(envelopes[1], SETTINGS, NOW)).reason == "new"
    assert check(stores.open(), Decision(envelopes[2], SETTINGS, NOW)).reason == "known"


@in_every_store
def test_other_mail_was_not_released(stores: Stores) -> None:
    put(stores, rule_keys.release_key("a@example.com", "b@example.net"), "expect", "allow")
    put(stores, rule_keys.release_key("b@example.net", "a@example.org"), "expect", "allow")
    assert check(stores.open(), Decision(ENVELOPE, SETTINGS, NOW)).reason == "new"


@in_every_store
def test_the_most_specific_expectation_is_used_up_first(stores: Stores) -> None:
    for domain in (b"", b".org", b".example.org"):
        put(
            stores,
            rule_keys.expectation_key(b"b@example.net", domain),
            "expect",
            "allow",
            NOW + 900,
        )
    expected = stores.open().lookup(ASKED, NOW).expected
    assert expected
    assert expected.pattern.endswith("|.example.org")


# --- what waits besides ---------------------------------------------------------------------------


def wait_from(stores: Stores, network: str, first: int, **more: bytes) -> None:
    stores.open().save(
        asked(network, **more), [Change(None, TripletRow(first, first), first + 9999)], patient=True
    )


@in_every_store
def test_the_same_mail_from_other_networks_is_counted(stores: Stores) -> None:
    for number in range(4):
        wait_from(stores, f"10.0.{number}.0/24", NOW - 100 * number)
    wait_from(stores, "192.0.2.0/24", NOW - 9000)
    wait_from(stores, "10.0.9.0/24", NOW - 9000, sender=b"other@example.org")
    wait_from(stores, "10.0.9.0/24", NOW - 9000, recipient=b"other@example.net")
    passed = Change(None, TripletRow(NOW - 9000, NOW, 0, 1, NOW), NOW)
    stores.open().save(asked("10.0.8.0/24"), [passed], patient=True)
    waiting = stores.open().waiting(ASKED, NOW - 250, NOW, limits(100))
    assert (waiting.others, waiting.oldest, waiting.total) == (3, NOW - 200, 7)
    assert (waiting.newest, waiting.rounds) == (NOW, 3)


@in_every_store
def test_attempts_close_behind_each_other_are_one_round_and_the_own_network_is_in_none(
    stores: Stores,
) -> None:
    for number, first in enumerate((90, 86, 82, 60, 55, 20)):
        wait_from(stores, f"10.0.{number}.0/24", NOW - first)
    for number, first in enumerate((90, 20)):  # as early as others
        wait_from(stores, f"10.1.{number}.0/24", NOW - first)
    wait_from(stores, "192.0.2.0/24", NOW - 57)
    waiting = stores.open().waiting(ASKED, NOW - 250, NOW, limits(100))
    assert (waiting.others, waiting.rounds) == (8, 4)


@in_every_store
def test_attempts_of_the_future_are_no_part_of_a_pool(stores: Stores) -> None:
    wait_from(stores, "10.0.1.0/24", NOW - 100)
    wait_from(stores, "10.0.2.0/24", NOW)
    wait_from(stores, "10.0.3.0/24", NOW + 1)
    wait_from(stores, "10.0.4.0/24", NOW + 9_000_000)
    waiting = stores.open().waiting(ASKED, NOW - 250, NOW, limits(100))
    assert (waiting.others, waiting.rounds, waiting.newest) == (2, 2, NOW)


@in_every_store
def test_what_only_stands_beside_a_pair_is_none_of_it(stores: Stores) -> None:
    """The keys of two pairs may begin the same."""
    columns = {
        "recipient": "b@example.net",
        "first_attempt": NOW,
        "last_attempt": NOW,
        "expires_at": NOW,
        "passes": 0,
    }
    rows = [
        {
            "triplet_key": ASKED.key[: base.PAIR] + bytes([number]) * 12,
            "network": f"10.0.{number}.0/24",
            "sender": sender,
        }
        for number, sender in (
            (0, "a@example.org"),
            (1, "A@example.org"),
            (255, "a@example.org"),
        )
    ]
    stores.execute(insert(tables.triplet).values(columns | {"early_attempts": 0}), rows)
    assert stores.open().waiting(ASKED, 0, NOW, limits(0)).others == 2


@in_every_store
def test_bounces_are_no_pool(stores: Stores) -> None:
    for number in range(4):
        wait_from(stores, f"10.0.{number}.0/24", NOW - 1000, sender=b"")
    waiting = stores.open().waiting(asked(sender=b""), NOW - 9000, NOW, limits(0))
    assert (waiting.others, waiting.oldest, waiting.total) == (0, None, 0)


@on_every_database
def test_the_number_of_all_that_waits_is_estimated_well(stores: Stores) -> None:
    columns = {
        "network": "",
        "sender": "",
        "recipient": "",
        "first_attempt": 1,
        "last_attempt": 1,
        "expires_at": 1,
    }
    rows = [{"triplet_key": base.digest(b"%d" % number)} for number in range(20_000)]
    stores.execute(
        insert(tables.triplet).values(columns | {"early_attempts": 0, "passes": 0}), rows
    )
    store = stores.open()
    for limit in (20_000, 100_000):
        estimates = [
            store.waiting(asked(f"{number}"), 0, 0, limits(limit)).total for number in range(50)
        ]
        assert 0.9 < sum(estimates) / 50 / 20_000 < 1.1


@in_every_store
@pytest.mark.parametrize("same", [4, 1])
def test_what_was_made_to_stand_together_does_not_seem_to_be_everything(
    stores: Stores, same: int
) -> None:
    """Keys can be chosen, by whoever tries many senders: no range of them is everything, nor more
    work than any other.
    """
    columns = {
        "network": "",
        "sender": "",
        "recipient": "",
        "first_attempt": 1,
        "last_attempt": 1,
        "expires_at": 1,
    }
    rows = [
        {"triplet_key": ASKED.key[:same] + base.digest(b"%d" % number)[same:]}
        for number in range(3000)
    ]
    stores.execute(
        insert(tables.triplet).values(columns | {"early_attempts": 0, "passes": 0}), rows
    )
    store = stores.open()
    estimates = [store.waiting(ASKED, 0, 0, limits(2_000_000)).total for _ in range(50)]
    assert sum(estimate >= 2_000_000 for estimate in estimates) < 5


@given(st.integers(1, 999_999_999))
def test_a_sample_is_a_few_ranges_of_keys_in_proportion(limit: int) -> None:
    ranges, times = waiting.sample(limit)
    used = [(low, high) for low, high in ranges if high]
    assert all(low < high for low, high in used)
    assert len(used) == (1 if times == 1 else 3)
    assert times == 1 or all(
        int.from_bytes(high) - int.from_bytes(low) == (1 << 64) // times for low, high in used
    )
    assert times == 1 or waiting.sample(limit)[0] != ranges


@in_every_store
def test_what_is_over_or_has_passed_does_not_count(stores: Stores) -> None:
    for number in range(9):
        row, expires = (TripletRow(NOW - 9, NOW - 9), NOW - (number < 3))
        if number == 8:
            row, expires = TripletRow(NOW - 9, NOW, 0, 1, NOW), NOW + 9
        there = Asked(
            ASKED.envelope,
            Triplet("192.0.2.1", "192.0.2.0/24", b"%d@example.org" % number, b"b@example.net"),
        )
        assert stores.open().save(there, [Change(None, row, expires)], patient=True)
    waiting = stores.open().waiting(ASKED, 0, NOW, limits(100, 60))
    assert (waiting.crowd, waiting.total) == (5, 5)
    waiting = stores.open().waiting(asked("198.51.100.0/24"), 0, NOW, limits(100, 60))
    assert (waiting.crowd, waiting.total) == (0, 5)


@in_every_store
def test_a_crowd_is_counted_no_further_than_its_limit(stores: Stores) -> None:
    columns = {
        "network": "192.0.2.0/24",
        "sender": "",
        "recipient": "",
        "first_attempt": 1,
        "last_attempt": 1,
    }
    rows = [{"triplet_key": base.digest(b"%d" % number)} for number in range(50)]
    stores.execute(
        insert(tables.triplet).values(
            columns | {"early_attempts": 0, "passes": 0, "expires_at": NOW}
        ),
        rows,
    )
    for limit in (1, 20, 49, 50, 51):
        assert stores.open().waiting(ASKED, 0, NOW, limits(0, limit)).crowd == min(limit, 50)
    assert stores.open().waiting(ASKED, 0, NOW, limits(0, 0)).crowd == 0


def limits(pending: int, network: int = 1000) -> Settings:
    """The settings with these limits."""
    given = {"config": "/dev/null", "pending_limit": f"{pending}", "network_limit": f"{network}"}
    return read(
        {f"GREYCHECK_{name.upper()}".encode(): value.encode() for name, value in given.items()}
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_FULL", "disk full (SQLITE_FULL)"),
        ("", "disk full"),
        ("SQLITE_NOTADB", "move it away"),
    ],
)
def test_what_the_driver_says_is_passed_on_with_its_code(path: Path, name: str, said: str) -> None:
    error = sqlite3.OperationalError("disk full")
    error.sqlite_errorname = name
    with closing(Store(str(path), 1)) as store:
        assert said in str(store._fault(error))


def test_special_characters_of_a_path_are_no_parameters(tmp_path: Path) -> None:
    directory = tmp_path / "a #&mode=memory"
    directory.mkdir()
    migrate.upgrade(f"sqlite:///{directory}/greycheck.db")
    with closing(Store(f"{directory}/greycheck.db", 1)) as store:
        store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
    connection = sqlite3.connect(directory / "greycheck.db")
    assert connection.execute("SELECT count(*) FROM triplet").fetchone() == (1,)
    connection.close()
