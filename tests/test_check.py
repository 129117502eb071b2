"""One check against a store that loses races and fails, and against the real one."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from greycheck import rules
from greycheck.check import ATTEMPTS, check, remember
from greycheck.envelope import OF_MESSAGE, Envelope, Triplet, message_triplet, triplet
from greycheck.log import show
from greycheck.policy import MESSAGE_TIME, Change, ClientRow, Found, RuleRow, TripletRow, Waiting
from greycheck.settings import Settings, read
from greycheck.store import lean, schema, tables
from greycheck.store.lean import Again, Asked, StoreError
from greycheck.store.lean_sqlite import Store
from tests.support import Database, in_every_store, with_every_driver

NOW = 1_800_000_000
PATIENCE = 20
SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")


class Fake:
    """A store that loses the first LOSSES races, is to be asked AGAIN so often, or fails with ERROR."""

    def __init__(
        self, losses: int = 0, error: StoreError | None = None, row: TripletRow | None = None, again: int = 0
    ) -> None:
        self.losses = losses
        self.again = again
        self.error = error
        self.row = row
        self.locks = 0

    def lookup(self, _asked: Asked, _now: int) -> Found:
        return Found(self.row)

    def waiting(self, _asked: Asked, _since: int, _now: int, _settings: Settings) -> Waiting:
        return Waiting()

    notes: Sequence[str] = ()

    def lock(self, _asked: Asked) -> None:
        self.locks += 1

    def save(self, _asked: Asked, _changes: list[Change], patient: bool) -> bool:
        assert patient
        if self.error:
            raise self.error
        self.again -= 1
        if self.again >= 0:
            raise Again("deadlock")
        self.losses -= 1
        return self.losses < 0

    def tidy(self) -> None:
        raise AssertionError

    def overdue(self) -> None:
        raise AssertionError


def test_a_lost_race_is_decided_again_under_the_lock() -> None:
    store = Fake(losses=2)
    assert check(store, ENVELOPE, SETTINGS, NOW).reason == "new"
    assert store.locks == 2


def test_a_race_is_not_lost_for_ever() -> None:
    with pytest.raises(StoreError, match=f"lost {ATTEMPTS} times"):
        check(Fake(losses=99), ENVELOPE, SETTINGS, NOW)


def test_a_new_triplet_that_cannot_be_recorded_is_no_deferral() -> None:
    with pytest.raises(StoreError, match="disk full"):
        check(Fake(error=StoreError("disk full")), ENVELOPE, SETTINGS, NOW)


def test_a_race_that_is_lost_for_ever_leaves_what_is_recorded() -> None:
    verdict = check(Fake(losses=99, row=TripletRow(NOW - 100, NOW - 100)), ENVELOPE, SETTINGS, NOW)
    assert (verdict.reason, verdict.unrecorded) == ("early", f"the race for this triplet was lost {ATTEMPTS} times")


@pytest.mark.parametrize("again", [1, ATTEMPTS])
def test_what_another_host_was_quicker_to_change_is_decided_again(again: int) -> None:
    store = Fake(again=again)
    if again < ATTEMPTS:
        assert check(store, ENVELOPE, SETTINGS, NOW).reason == "new"
    else:
        with pytest.raises(Again, match="deadlock"):
            check(store, ENVELOPE, SETTINGS, NOW)


@pytest.mark.parametrize(("age", "reason"), [(100, "early"), (300, "retry")])
def test_every_other_verdict_stands(age: int, reason: str) -> None:
    row = TripletRow(NOW - age, NOW - age)
    verdict = check(Fake(error=StoreError("disk full"), row=row), ENVELOPE, SETTINGS, NOW)
    assert (verdict.reason, verdict.unrecorded) == (reason, "disk full")


# --- the first recipient of a message ---------------------------------------------------------------------------------

MESSAGE = b"192.0.2.1 port 25025"
EACH_WAITS = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_CLIENT_PASSES": b"0"})


def recipient(address: bytes, first: bool = False, message: bytes = MESSAGE) -> Envelope:
    """The first or a later recipient of a message."""
    return Envelope("spp", "192.0.2.1", b"a@example.org", address, message=message, first=first)


def test_what_could_not_be_recorded_vouches_for_nobody() -> None:
    first, row = recipient(b"b@example.net", first=True), TripletRow(NOW - 300, NOW - 300)
    assert check(Fake(row=row), first, EACH_WAITS, NOW).vouches
    assert not check(Fake(row=row, error=StoreError("disk full")), first, EACH_WAITS, NOW).vouches
    assert not check(Fake(row=row), recipient(b"b@example.net", first=True, message=b""), EACH_WAITS, NOW).vouches
    assert not check(Fake(row=row), recipient(b"b@example.net"), EACH_WAITS, NOW).vouches


@pytest.mark.parametrize("passed", [True, False])
def test_what_a_message_has_may_be_kept_elsewhere(passed: bool) -> None:
    messages: list[bytes] = []

    def first_passed(_store: "lean.Store", asked: Asked, now: int) -> bool:
        assert now == NOW
        messages.append(asked.envelope.message)
        return passed

    def reason(envelope: Envelope) -> str:
        return check(Fake(), envelope, SETTINGS, NOW, first_passed).reason

    assert reason(recipient(b"c@example.net")) == ("message" if passed else "new")
    assert messages == [MESSAGE]
    assert reason(recipient(b"c@example.net", message=b"")) == "new"
    assert reason(recipient(b"c@example.net", first=True)) == "new"
    assert messages == [MESSAGE]


@given(
    st.binary().filter(lambda address: b"\0" not in address), st.binary().filter(lambda address: b"\0" not in address)
)
def test_no_recipient_is_taken_for_a_message(sender: bytes, address: bytes) -> None:
    one = Triplet("192.0.2.1", "192.0.2.0/24", sender, address)
    message = message_triplet(one, address)
    others = [Triplet("192.0.2.1", "192.0.2.0/24", *parts) for parts in ((sender, address), (address, sender))]
    assert Asked(ENVELOPE, message).key not in {Asked(ENVELOPE, other).key for other in others}
    assert not show(address).startswith(show(OF_MESSAGE))


# --- the real store ---------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    schema.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    return tmp_path / "greycheck.db"


class Stores:
    """Connections to DATABASE, as children have them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.execute = database.execute
        self.opened: list[lean.Connected] = []

    def open(self) -> "lean.Store":
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
    network: str = "192.0.2.0/24", sender: bytes = b"a@example.org", recipient: bytes = b"b@example.net"
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
    assert row
    return [getattr(row, name) for name in row.__slots__]


@in_every_store
@pytest.mark.parametrize(
    "stale", [TripletRow(0, 2), TripletRow(1, 1), TripletRow(1, 2, early=1), TripletRow(1, 2, passes=1)]
)
def test_a_row_that_changed_meanwhile_is_not_overwritten(stores: Stores, stale: TripletRow) -> None:
    store = stores.open()
    store.save(ASKED, [Change(None, TripletRow(1, 2), 9)], patient=True)
    assert not store.save(ASKED, [Change(stale, TripletRow(7, 7), 9)], patient=True)
    assert values(store.lookup(ASKED, NOW).triplet) == values(TripletRow(1, 2))


@in_every_store
def test_a_row_that_came_meanwhile_is_not_overwritten(stores: Stores) -> None:
    one, other = stores.open(), stores.open()
    assert one.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
    assert not other.save(ASKED, [Change(None, TripletRow(2, 2), 9)], patient=True)


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
    with closing(Store(f"{tmp_path}/empty.db", 1)) as store, pytest.raises(lean.NoSchema, match="no such table"):
        store.lookup(ASKED, NOW)


@in_every_store
def test_a_decision_without_a_change_lets_go_of_the_lock(stores: Stores) -> None:
    store, other = stores.open(), stores.open()
    store.lock(ASKED)
    assert store.save(ASKED, [], patient=True)
    assert other.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)


def test_the_write_ahead_log_is_emptied_by_whom_makes_it_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greycheck.store.lean_sqlite.LOG_STEP", 100_000)
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


def test_a_write_ahead_log_that_cannot_be_emptied_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greycheck.store.lean_sqlite.LOG_STEP", 1)
    with closing(Store(str(path), 1)) as store:
        store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
        monkeypatch.setattr(store, "_execute", failing)
        store.tidy()


def failing(*_arguments: object) -> None:
    raise StoreError("disk full")


def test_keys_do_not_run_together() -> None:
    keys = {
        asked(network, sender, recipient).key
        for network, sender, recipient in [("a", b"b", b"c"), ("ab", b"", b"c"), ("a", b"", b"bc"), ("", b"ab", b"c")]
    }
    assert len(keys) == 4
    assert all(len(key) == lean.DIGEST for key in keys)


# --- messages ---------------------------------------------------------------------------------------------------------


@in_every_store
def test_later_recipients_follow_a_first_one_that_is_remembered(stores: Stores) -> None:
    later = recipient(b"c@example.net")
    assert check(stores.open(), later, EACH_WAITS, NOW).reason == "new"
    remember(stores.open(), recipient(b"b@example.net", first=True), EACH_WAITS, NOW)
    assert check(stores.open(), later, EACH_WAITS, NOW + 1).reason == "message"
    assert check(stores.open(), recipient(b"d@example.net"), EACH_WAITS, NOW + MESSAGE_TIME).reason == "message"
    assert check(stores.open(), recipient(b"d@example.net"), EACH_WAITS, NOW + MESSAGE_TIME + 1).reason == "new"
    assert (
        check(stores.open(), recipient(b"e@example.net", message=b"192.0.2.1 port 1"), EACH_WAITS, NOW).reason == "new"
    )
    waiting = stores.open().lookup(Asked(later, triplet(later, 24, 64)), NOW).triplet
    assert values(waiting) == values(TripletRow(NOW, NOW))


@in_every_store
def test_a_message_that_is_remembered_is_written_again_only_when_its_time_is_half_over(stores: Stores) -> None:
    first = recipient(b"b@example.net", first=True)
    message = Asked(first, message_triplet(triplet(first, 24, 64), MESSAGE))
    written = []
    for now in (NOW, NOW + MESSAGE_TIME // 2, NOW + MESSAGE_TIME // 2 + 1, NOW + 9999):
        remember(stores.open(), first, EACH_WAITS, now)
        row = stores.open().lookup(message, now).triplet
        assert row
        written.append(row.last - NOW)
    assert written == [0, 0, MESSAGE_TIME // 2 + 1, 9999]


# --- rules ------------------------------------------------------------------------------------------------------------


def put(stores: Stores, key: bytes, kind: str = "network", action: str = "allow", expires: int | None = None) -> None:
    values = {"match_key": lean.digest(key), "kind": kind, "pattern": shown(key), "action": action}
    stores.execute(insert(tables.rule).values(values | {"comment": "", "created_at": 1, "expires_at": expires}))


def shown(key: bytes) -> str:
    """KEY as a text that every database takes: none but SQLite takes a NUL."""
    return key.decode().replace("\0", "|")


@in_every_store
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
def test_rules_come_in_the_order_in_which_they_decide(stores: Stores, client: str) -> None:
    envelope = Envelope(
        "smtpextfork", client, b"A@Example.org", b"b@example.net", name=b"mx.example.com.", helo=b"HELO.example"
    )
    wanted = Asked(envelope, triplet(envelope, 24, 64))
    keys = rules.keys(envelope, b"a@example.org", b"b@example.net")
    for key in keys[::-1]:
        put(stores, key)
    put(stores, rules.key("network", b"32/32:0"))
    found = stores.open().lookup(wanted, NOW)
    assert [rule.pattern for rule in found.rules] == [shown(key) for key in keys]
    assert found.expected is None


@in_every_store
@pytest.mark.parametrize(("expires", "counts"), [(None, True), (NOW + 1, True), (NOW, False)])
def test_a_rule_counts_until_it_is_over(stores: Stores, expires: int | None, counts: bool) -> None:
    put(stores, rules.key("sender", b"a@example.org"), "sender", "reject", expires)
    assert (check(stores.open(), ENVELOPE, SETTINGS, NOW).reason == "rule") == counts


@in_every_store
@pytest.mark.parametrize("domain", [b"", b".example.org", b".org"])
def test_expected_mail_passes_once(stores: Stores, domain: bytes) -> None:
    put(stores, rules.expectation_key(b"b@example.net", domain), "expect", "allow", NOW + 900)
    assert check(stores.open(), ENVELOPE, SETTINGS, NOW).reason == "expected"
    assert check(stores.open(), ENVELOPE, SETTINGS, NOW).reason == "known"
    other = Envelope("smtpextfork", "198.51.100.1", b"c@example.org", b"b@example.net")
    assert check(stores.open(), other, SETTINGS, NOW).reason == "new"


@in_every_store
def test_mail_from_elsewhere_is_not_expected(stores: Stores) -> None:
    put(stores, rules.expectation_key(b"b@example.net", b".example.com"), "expect", "allow", NOW + 900)
    assert check(stores.open(), ENVELOPE, SETTINGS, NOW).reason == "new"


@in_every_store
def test_the_most_specific_expectation_is_used_up_first(stores: Stores) -> None:
    for domain in (b"", b".org", b".example.org"):
        put(stores, rules.expectation_key(b"b@example.net", domain), "expect", "allow", NOW + 900)
    expected = stores.open().lookup(ASKED, NOW).expected
    assert expected
    assert expected.pattern.endswith("|.example.org")


# --- what waits besides -----------------------------------------------------------------------------------------------


def wait_from(stores: Stores, network: str, first: int, **more: bytes) -> None:
    stores.open().save(asked(network, **more), [Change(None, TripletRow(first, first), first + 9999)], patient=True)


@in_every_store
def test_the_same_mail_from_other_networks_is_counted(stores: Stores) -> None:
    for number in range(4):
        wait_from(stores, f"10.0.{number}.0/24", NOW - 100 * number)
    wait_from(stores, "192.0.2.0/24", NOW - 9000)
    wait_from(stores, "10.0.9.0/24", NOW - 9000, sender=b"other@example.org")
    wait_from(stores, "10.0.9.0/24", NOW - 9000, recipient=b"other@example.net")
    passed = Change(None, TripletRow(NOW - 9000, NOW, 0, 1, NOW), NOW)
    stores.open().save(asked("10.0.8.0/24"), [passed], patient=True)
    waiting = stores.open().waiting(ASKED, NOW - 250, 0, limits(100))
    assert (waiting.others, waiting.oldest, waiting.total) == (3, NOW - 200, 7)
    assert (waiting.newest, waiting.gap) == (NOW, 100)


@in_every_store
def test_what_only_stands_beside_a_pair_is_none_of_it(stores: Stores) -> None:
    """The keys of two pairs may begin the same."""
    columns = {"recipient": "b@example.net", "first_attempt": NOW, "last_attempt": NOW, "expires_at": NOW, "passes": 0}
    rows = [
        {
            "triplet_key": ASKED.key[: lean.PAIR] + bytes([number]) * 12,
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
    assert stores.open().waiting(ASKED, 0, 0, limits(0)).others == 2


@in_every_store
def test_bounces_are_no_pool(stores: Stores) -> None:
    for number in range(4):
        wait_from(stores, f"10.0.{number}.0/24", NOW - 1000, sender=b"")
    waiting = stores.open().waiting(asked(sender=b""), NOW - 9000, 0, limits(0))
    assert (waiting.others, waiting.oldest, waiting.total) == (0, None, 0)


@with_every_driver
@pytest.mark.parametrize("limit", [20_000, 100_000])
def test_the_number_of_all_that_waits_is_estimated_well(stores: Stores, limit: int) -> None:
    columns = {"network": "", "sender": "", "recipient": "", "first_attempt": 1, "last_attempt": 1, "expires_at": 1}
    rows = [{"triplet_key": lean.digest(b"%d" % number)} for number in range(20_000)]
    stores.execute(insert(tables.triplet).values(columns | {"early_attempts": 0, "passes": 0}), rows)
    store = stores.open()
    estimates = [store.waiting(asked(f"{number}"), 0, 0, limits(limit)).total for number in range(50)]
    assert 0.9 < sum(estimates) / 50 / 20_000 < 1.1


@in_every_store
@pytest.mark.parametrize("same", [4, 1])
def test_what_was_made_to_stand_together_does_not_seem_to_be_everything(stores: Stores, same: int) -> None:
    """Keys can be chosen, by whoever tries many senders: no range of them is everything, nor more work than any other."""
    columns = {"network": "", "sender": "", "recipient": "", "first_attempt": 1, "last_attempt": 1, "expires_at": 1}
    rows = [{"triplet_key": ASKED.key[:same] + lean.digest(b"%d" % number)[same:]} for number in range(3000)]
    stores.execute(insert(tables.triplet).values(columns | {"early_attempts": 0, "passes": 0}), rows)
    store = stores.open()
    estimates = [store.waiting(ASKED, 0, 0, limits(2_000_000)).total for _ in range(50)]
    assert sum(estimate >= 2_000_000 for estimate in estimates) < 5


@given(st.integers(1, 999_999_999))
def test_a_sample_is_a_few_ranges_of_keys_in_proportion(limit: int) -> None:
    ranges, times = lean.sample(limit)
    used = [(low, high) for low, high in ranges if high]
    assert all(low < high for low, high in used)
    assert len(used) == (1 if times == 1 else 3)
    assert times == 1 or all(int.from_bytes(high) - int.from_bytes(low) == (1 << 64) // times for low, high in used)
    assert times == 1 or lean.sample(limit)[0] != ranges


@in_every_store
def test_what_is_over_or_has_passed_does_not_count(stores: Stores) -> None:
    for number in range(9):
        row, expires = (TripletRow(NOW - 9, NOW - 9), NOW - (number < 3))
        if number == 8:
            row, expires = TripletRow(NOW - 9, NOW, 0, 1, NOW), NOW + 9
        there = Asked(ASKED.envelope, Triplet("", "192.0.2.0/24", b"%d@example.org" % number, b"b@example.net"))
        assert stores.open().save(there, [Change(None, row, expires)], patient=True)
    waiting = stores.open().waiting(ASKED, 0, NOW, limits(100, 60))
    assert (waiting.crowd, waiting.total) == (5, 5)
    waiting = stores.open().waiting(asked("198.51.100.0/24"), 0, NOW, limits(100, 60))
    assert (waiting.crowd, waiting.total) == (0, 5)


@in_every_store
def test_a_crowd_is_counted_no_further_than_its_limit(stores: Stores) -> None:
    columns = {"network": "192.0.2.0/24", "sender": "", "recipient": "", "first_attempt": 1, "last_attempt": 1}
    rows = [{"triplet_key": lean.digest(b"%d" % number)} for number in range(50)]
    stores.execute(insert(tables.triplet).values(columns | {"early_attempts": 0, "passes": 0, "expires_at": NOW}), rows)
    for limit in (1, 20, 49, 50, 51):
        assert stores.open().waiting(ASKED, 0, NOW, limits(0, limit)).crowd == min(limit, 50)
    assert stores.open().waiting(ASKED, 0, NOW, limits(0, 0)).crowd == 0


def limits(pending: int, network: int = 1000) -> Settings:
    """The settings with these limits."""
    given = {"config": "/dev/null", "pending_limit": f"{pending}", "network_limit": f"{network}"}
    return read({f"GREYCHECK_{name.upper()}".encode(): value.encode() for name, value in given.items()})


@pytest.mark.parametrize(
    ("name", "said"), [("SQLITE_FULL", "disk full (SQLITE_FULL)"), ("", "disk full"), ("SQLITE_NOTADB", "move it away")]
)
def test_what_the_driver_says_is_passed_on_with_its_code(path: Path, name: str, said: str) -> None:
    error = sqlite3.OperationalError("disk full")
    error.sqlite_errorname = name
    with closing(Store(str(path), 1)) as store:
        assert said in str(store._fault(error))


def test_special_characters_of_a_path_are_no_parameters(tmp_path: Path) -> None:
    directory = tmp_path / "a #&mode=memory"
    directory.mkdir()
    schema.upgrade(f"sqlite:///{directory}/greycheck.db")
    with closing(Store(f"{directory}/greycheck.db", 1)) as store:
        store.save(ASKED, [Change(None, TripletRow(1, 1), 9)], patient=True)
    connection = sqlite3.connect(directory / "greycheck.db")
    assert connection.execute("SELECT count(*) FROM triplet").fetchone() == (1,)
    connection.close()
