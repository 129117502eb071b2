"""How many wait in a network and in all, as one batch sees it."""

import pytest

from greycheck.envelope import Envelope, triplet
from greycheck.policy import Change, TripletRow
from greycheck.resident import newcomers
from greycheck.resident.newcomers import Newcomers, Rooms
from greycheck.store.base import Asked

NEW = [Change(None, TripletRow(1, 1), 9)]
LIMIT = 3


def asked(number: int, network: int = 2) -> Asked:
    envelope = Envelope(
        "policy", f"192.0.{network}.1", b"%d@example.org" % number, b"b@example.net"
    )
    return Asked(envelope, triplet(envelope, 24, 64))


class Table:
    """Counts WAITING rows, and how often it was asked to."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting, self.times = waiting, 0

    def count(self) -> int:
        self.times += 1
        return self.waiting


@pytest.fixture
def batch() -> Newcomers:
    return Newcomers(Rooms())


def test_who_is_let_in_counts_for_those_after_him(batch: Newcomers) -> None:
    table, seen = Table(1), []
    for number in range(4):
        seen.append(batch.crowd(asked(number), LIMIT, table.count))
        batch.add(asked(number), NEW)
    assert (seen, table.times) == ([1, 2, 3, 4], 1)
    assert batch.crowd(asked(9, network=3), LIMIT, table.count) == 1
    assert batch.total(asked(9), 10, table.count) == 5
    assert batch.total(asked(0), 10, table.count) == 4
    assert table.times == 3


def test_the_next_batch_counts_anew(batch: Newcomers) -> None:
    table = Table()
    batch.crowd(asked(1), LIMIT, table.count)
    batch.total(asked(1), LIMIT, table.count)
    batch.add(asked(1), NEW)
    batch.begin()
    assert batch.besides(asked(2)) == 0
    assert batch.crowd(asked(2), LIMIT, table.count) == 0
    assert batch.total(asked(2), LIMIT, table.count) == 0
    assert table.times == 4


def test_nobody_stands_in_his_own_way(batch: Newcomers) -> None:
    table = Table(2)
    assert batch.crowd(asked(1), LIMIT, table.count) == 2
    batch.add(asked(1), NEW)
    assert batch.crowd(asked(1), LIMIT, table.count) == 2
    assert batch.crowd(asked(2), LIMIT, table.count) == 3


def test_only_what_begins_to_wait_is_new(batch: Newcomers) -> None:
    waits = TripletRow(1, 1)
    for change in (
        Change(waits, TripletRow(1, 2, 1), 9),
        Change(waits, TripletRow(1, 2, 0, 1, 2), 9),
        Change(None, TripletRow(1, 2, 0, 1, 2), 9),
    ):
        batch.add(asked(1), [change])
    assert batch.besides(asked(2)) == 0


def test_what_is_written_at_once_is_counted_by_the_table(batch: Newcomers) -> None:
    table, seen = Table(), []
    batch.begin(are_written=True)
    for number in range(3):
        seen.append(batch.crowd(asked(number), LIMIT, table.count))
        batch.add(asked(number), NEW)
        table.waiting += 1
    assert (seen, table.times) == ([0, 1, 2], 3)
    assert batch.besides(asked(9)) == 0


def test_a_large_limit_is_counted_in_steps_and_never_passed(batch: Newcomers) -> None:
    """Whatever the batches."""
    limit, table, times = 64 * 5, Table(), []
    for start in range(0, 2 * limit, 7):
        let_in = 0
        batch.begin()
        for number in range(start, start + 7):
            if batch.crowd(asked(number), limit, table.count) < limit:
                batch.add(asked(number), NEW)
                let_in += 1
        table.waiting += let_in
        times.append(table.times)
    assert table.waiting == limit
    assert times[limit // 7] <= 65
    # Beyond it, once in each batch.
    assert times[-1] - times[-11] == 10


def test_what_was_counted_otherwise_is_known_too(batch: Newcomers) -> None:
    table = Table()
    batch.add(asked(1), NEW)
    assert batch.counted(asked(2), 640, 9) == 10
    assert batch.crowd(asked(3), 640, table.count) == 10
    assert table.times == 0


def test_so_many_networks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "NETWORKS", 2)
    rooms = Rooms()
    for network in ("a", "b", "c"):
        assert rooms.take(network, 64)
    assert [rooms.take(network, 64) for network in ("c", "a")] == [False, True]
