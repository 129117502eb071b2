"""The store in memory answers as an SQLite file does, and keeps nothing that is over."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from greycheck.check import check
from greycheck.envelope import Envelope, triplet
from greycheck.policy import Change, Decision, TripletRow
from greycheck.simulation.store import Store, Told, Wanted
from greycheck.store import base
from tests.support import SQLiteFile
from tests.test_schedules import NOW, settings

CLIENTS = [f"40.{number}.{host}.1" for number in range(6) for host in (0, 1)] + ["10.1.1.1"]
SENDERS = [b"a@x.example", b"b@x.example", b"", b"c@net.example", b"list-return-7-b=n@l.example"]
RECIPIENTS = [b"bob@net.example", b"eve@net.example"]


@pytest.fixture
def file(tmp_path: Path, empty_store: Path) -> Iterator["base.Store"]:
    file = SQLiteFile(tmp_path / "greycheck.db", empty_store)
    file.make()
    yield file.connect(20)
    file.leave()


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_have_the_same_verdicts_in_memory_and_in_a_file(
    file: "base.Store", seed: int
) -> None:
    draw = Random(seed)
    values = settings(
        delay=draw.choice(["1m", "5m"]),
        retry_window=draw.choice(["20m", "2d"]),
        lifetime=draw.choice(["1h", "36d"]),
        client_passes=draw.choice([0, 1, 2]),
        domain_passes=draw.choice([0, 1]),
        strikes=draw.choice([0, 2]),
        pool_networks=draw.choice([0, 1, 2]),
        network_limit=draw.choice([0, 2, 1000]),
        pending_limit=draw.choice([0, 12, 500]),
        identity=draw.choice(["yes", "yes", "observe", "no"]),
    )
    store, now = Store(Told(values.lifetime)), NOW
    reasons = set()
    for _ in range(400):
        now += draw.choice([0, 1, 3, 10, 60, 300, 4000])
        asked = Envelope("x", draw.choice(CLIENTS), draw.choice(SENDERS), draw.choice(RECIPIENTS))
        ours, theirs = (check(one, Decision(asked, values, now)) for one in (store, file))
        assert (ours.action, ours.reason, ours.wait, ours.delayed) == (
            theirs.action,
            theirs.reason,
            theirs.wait,
            theirs.delayed,
        )
        assert ours.verdict().identity == theirs.verdict().identity
        reasons.add(ours.reason)
    assert len(reasons) >= 3


def test_a_pool_that_was_seen_does_not_count_once_the_domain_says_who_sends() -> None:
    values, told = settings(delay="5m", pool_networks=1), Told(86400)
    store = Store(told)

    def source(now: int) -> str:
        asked = Envelope("x", "40.2.0.1", b"a@x.example", b"eve@net.example")
        return store.identity(Wanted(asked, triplet(asked, 24, 64)), now, values).source

    for number, client in enumerate(("40.1.0.1", "40.2.0.1")):
        asked = Envelope("x", client, b"a@x.example", b"bob@net.example")
        found = check(store, Decision(asked, values, NOW + 400 * number))
    assert (found.reason, source(NOW + 500)) == ("pool", "pool")
    told.sends(b"x.example", "40.3.0.1", NOW + 500)
    assert source(NOW + 501) == ""


def put(store: Store, number: int, row: TripletRow, expires: int) -> None:
    asked = Envelope("x", f"40.0.{number >> 8}.{number & 255}", b"a%d@x.example" % number, b"b@c")
    store.save(Wanted(asked, triplet(asked, 24, 64)), [Change(None, row, expires)], patient=True)


def ask(store: Store, now: int) -> None:
    asked = Envelope("x", "192.0.2.1", b"a@x.example", b"b@c")
    store.lookup(Wanted(asked, triplet(asked, 24, 64)), now)


def test_what_is_over_is_dropped_and_what_is_prolonged_is_not() -> None:
    store = Store(Told(99))
    for number in range(500):
        put(store, number, TripletRow(NOW, NOW), NOW + number)
    put(store, 0, TripletRow(NOW, NOW, 0, 1, NOW), NOW + 9999)
    ask(store, NOW + 300)
    assert len(store) == 201, "0 passed, and 300 to 499 wait"
    ask(store, NOW + 9999)
    assert len(store) == 1
    ask(store, NOW + 10_000)
    assert len(store) == 0


def test_what_the_log_told_is_forgotten_when_it_was_long_ago() -> None:
    told = Told(86400)
    told.sends(b"x.example", "40.0.0.1", NOW)
    told.provides("big", "40.1.0.1", NOW)
    assert told.may_send(b"x.example", "40.0.0.9")
    assert not told.may_send(b"x.example", "40.0.1.9")
    assert told.since(b"x.example") == NOW
    assert (told.provider("40.1.0.7"), told.provider("40.0.0.1")) == ("big", "")
    told.sends(b"y.example", "40.0.0.1", NOW + 8 * 86400)
    assert not told.may_send(b"x.example", "40.0.0.9")
    assert (told.provider("40.1.0.7"), told.since(b"x.example")) == ("", None)
