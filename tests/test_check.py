"""One check against a store that loses races and fails, and against the real one."""

import sqlite3
from pathlib import Path

import pytest

from greycheck.check import ATTEMPTS, check
from greycheck.envelope import Envelope, Triplet
from greycheck.policy import Change, ClientRow, TripletRow
from greycheck.settings import read
from greycheck.store import connect, lean, schema
from greycheck.store.lean import StoreError
from greycheck.store.lean_sqlite import Store

NOW = 1_800_000_000
SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")


class Fake:
    """A store that loses the first LOSSES races, or fails with ERROR."""

    def __init__(self, losses: int = 0, error: StoreError | None = None, row: TripletRow | None = None) -> None:
        self.losses = losses
        self.error = error
        self.row = row
        self.locks = 0

    def lookup(self, _key: bytes, _address: str) -> tuple[TripletRow | None, ClientRow | None]:
        return self.row, None

    def lock(self) -> None:
        self.locks += 1

    def save(self, _triplet: Triplet, _key: bytes, _changes: list[Change], patient: bool) -> bool:
        assert patient
        if self.error:
            raise self.error
        self.losses -= 1
        return self.losses < 0

    def tidy(self) -> None:
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


@pytest.mark.parametrize(("age", "reason"), [(100, "early"), (300, "retry")])
def test_every_other_verdict_stands(age: int, reason: str) -> None:
    row = TripletRow(NOW - age, NOW - age)
    verdict = check(Fake(error=StoreError("disk full"), row=row), ENVELOPE, SETTINGS, NOW)
    assert (verdict.reason, verdict.unrecorded) == (reason, "disk full")


# --- the real store ---------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    schema.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    return tmp_path / "greycheck.db"


TRIPLET = Triplet("192.0.2.1", "192.0.2.0/24", b"a@example.org", b"b@example.net")
KEY = lean.triplet_key(TRIPLET)


def test_a_row_comes_back_as_it_was_saved(path: Path) -> None:
    store = Store(str(path), 1)
    row, client = TripletRow(1, 2, 3, 4, 5), ClientRow(6, 7, 8)
    assert store.save(TRIPLET, KEY, [Change(None, row, 9), Change(None, client, 10)], patient=True)
    found, found_client = store.lookup(KEY, "192.0.2.1")
    assert found
    assert found_client
    assert [getattr(found, name) for name in TripletRow.__slots__] == [
        getattr(row, name) for name in TripletRow.__slots__
    ]
    assert [getattr(found_client, name) for name in ClientRow.__slots__] == [
        getattr(client, name) for name in ClientRow.__slots__
    ]


@pytest.mark.parametrize(
    "stale", [TripletRow(0, 2), TripletRow(1, 1), TripletRow(1, 2, early=1), TripletRow(1, 2, passes=1)]
)
def test_a_row_that_changed_meanwhile_is_not_overwritten(path: Path, stale: TripletRow) -> None:
    store = Store(str(path), 1)
    store.save(TRIPLET, KEY, [Change(None, TripletRow(1, 2), 9)], patient=True)
    assert not store.save(TRIPLET, KEY, [Change(stale, TripletRow(7, 7), 9)], patient=True)
    found, _client = store.lookup(KEY, "")
    assert found
    assert (found.first, found.last) == (1, 2)


def test_a_row_that_came_meanwhile_is_not_overwritten(path: Path) -> None:
    one, other = Store(str(path), 1), Store(str(path), 1)
    assert one.save(TRIPLET, KEY, [Change(None, TripletRow(1, 1), 9)], patient=True)
    assert not other.save(TRIPLET, KEY, [Change(None, TripletRow(2, 2), 9)], patient=True)


def test_all_changes_are_written_or_none(path: Path) -> None:
    store = Store(str(path), 1)
    stale = Change(ClientRow(1, 1, 1), ClientRow(1, 1, 2), 9)
    assert not store.save(TRIPLET, KEY, [Change(None, TripletRow(1, 1), 9), stale], patient=True)
    assert store.lookup(KEY, "192.0.2.1") == (None, None)


def test_changes_can_be_saved_under_the_lock(path: Path) -> None:
    store = Store(str(path), 1)
    store.lock()
    assert store.save(TRIPLET, KEY, [Change(None, TripletRow(1, 1), 9)], patient=True)
    assert Store(str(path), 0.1).save(TRIPLET, KEY, [Change(TripletRow(1, 1), TripletRow(1, 2), 9)], patient=True)


def test_a_file_without_tables_has_no_schema(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(lean.NoSchema, match="no such table"):
        Store(f"{tmp_path}/empty.db", 1).lookup(KEY, "")


def test_another_kind_of_database_is_named_without_its_password() -> None:
    found = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DATABASE": b"postgresql://user:secret@host/db"})
    with pytest.raises(StoreError, match=r"^postgresql: this version keeps its triplets in SQLite only$"):
        connect(found, 1)


def test_a_decision_without_a_change_lets_go_of_the_lock(path: Path) -> None:
    store, other = Store(str(path), 1), Store(str(path), 0.1)
    store.lock()
    assert store.save(TRIPLET, KEY, [], patient=True)
    assert other.save(TRIPLET, KEY, [Change(None, TripletRow(1, 1), 9)], patient=True)


def test_the_write_ahead_log_is_emptied_by_whom_makes_it_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greycheck.store.lean_sqlite.LOG_STEP", 100_000)
    log = Path(f"{path}-wal")
    largest = 0
    for number in range(100):
        store = Store(str(path), 1)
        triplet = Triplet("192.0.2.1", f"{number}", b"", b"")
        store.save(triplet, lean.triplet_key(triplet), [Change(None, TripletRow(1, 1), number)], patient=True)
        largest = max(largest, log.stat().st_size)
        store.tidy()
    assert largest < 120_000


def test_a_write_ahead_log_that_cannot_be_emptied_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greycheck.store.lean_sqlite.LOG_STEP", 1)
    store = Store(str(path), 1)
    store.save(TRIPLET, KEY, [Change(None, TripletRow(1, 1), 9)], patient=True)
    monkeypatch.setattr(store, "_execute", failing)
    store.tidy()


def failing(*_arguments: object) -> None:
    raise StoreError("disk full")


def test_keys_do_not_run_together() -> None:
    keys = {
        lean.triplet_key(Triplet("", network, sender, recipient))
        for network, sender, recipient in [("a", b"b", b"c"), ("ab", b"", b"c"), ("a", b"", b"bc"), ("", b"ab", b"c")]
    }
    assert len(keys) == 4
    assert all(len(key) == lean.DIGEST for key in keys)


def test_special_characters_of_a_path_are_no_parameters(tmp_path: Path) -> None:
    directory = tmp_path / "a #&mode=memory"
    directory.mkdir()
    schema.upgrade(f"sqlite:///{directory}/greycheck.db")
    store = Store(f"{directory}/greycheck.db", 1)
    store.save(TRIPLET, KEY, [Change(None, TripletRow(1, 1), 9)], patient=True)
    connection = sqlite3.connect(directory / "greycheck.db")
    assert connection.execute("SELECT count(*) FROM triplet").fetchone() == (1,)
    connection.close()
