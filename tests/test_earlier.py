"""What a store has of senders that were folded otherwise goes on to count, for forked children,
native ones and residents.
"""

from collections.abc import Sequence
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select

from greycheck import check, earlier, normalise, rule_keys
from greycheck.envelope import Envelope, triplet
from greycheck.log import show
from greycheck.policy import Change, Decision, Rows, TripletRow
from greycheck.settings import Settings, read
from greycheck.store import base
from greycheck.store.base import Asked
from greycheck.store.schema import tables
from greycheck.unknown import Identity, Pending
from tests.senders import ONE, TWO
from tests.servers import wait_until
from tests.support import (
    ACCEPTED,
    CLIENT,
    DEFERRED,
    RECIPIENT,
    REJECTED,
    Child,
    both_ways,
    on_every_database,
)

# Two messages of one sender: then each had a triplet of its own, or another one's.
SENDER = b"user+SRS=aBcDe=F1=example.com=alice@tenant.example"
NEXT = b"user+SRS=zYxWv=F2=example.com=alice@tenant.example"
SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})
NOW = 1_800_000_000


def asked_of(sender: bytes) -> Asked:
    envelope = Envelope("smtpextfork", CLIENT, sender, RECIPIENT)
    return Asked(envelope, triplet(envelope, 24, 64))


def then(sender: bytes) -> Asked:
    asked = asked_of(sender)
    found = earlier.triplet_then(asked.triplet)
    assert found is not None
    return Asked(asked.envelope, found)


def put_then(child: Child, ago: int, passed: bool = False) -> None:
    """A row as an earlier release made it AGO seconds ago."""
    asked, now = then(SENDER), int(time())
    child.make_store()
    values = {
        "triplet_key": asked.key,
        "network": asked.triplet.network,
        "sender": show(asked.triplet.sender),
        "recipient": show(asked.triplet.recipient),
        "first_attempt": now - ago,
        "last_attempt": now - ago,
        "early_attempts": 0,
        "passes": int(passed),
        "passed_at": now - ago if passed else None,
        "expires_at": now + 86400,
    }
    child.store.execute(insert(tables.triplet).values(values))


def passes_of(child: Child, asked: Asked) -> list[int]:
    table = tables.triplet
    with child.store.begin() as connection:
        query = select(table.c.passes).where(table.c.triplet_key == asked.key)
        return list(connection.execute(query).scalars())


@both_ways
@on_every_database
def test_what_waited_passes_at_its_retry(child: Child) -> None:
    put_then(child, 400)
    assert child.smtpextfork(sender=SENDER).verdict == (ACCEPTED, "retry")
    assert passes_of(child, asked_of(SENDER)) == [1]
    assert passes_of(child, then(SENDER)) == [0]


@both_ways
@on_every_database
def test_what_waits_goes_on_to_wait_from_its_first_attempt(child: Child) -> None:
    put_then(child, 100)
    assert child.smtpextfork(sender=SENDER).verdict == (DEFERRED, "early")
    wait_until(lambda: passes_of(child, asked_of(SENDER)) == [0], "it is carried over")
    child.age(250)
    assert child.smtpextfork(sender=SENDER).verdict == (ACCEPTED, "retry")


@both_ways
@on_every_database
@pytest.mark.parametrize("ago", [10, 7200])
def test_what_was_known_stays_known_and_is_looked_for_once(child: Child, ago: int) -> None:
    put_then(child, ago, passed=True)
    assert child.smtpextfork(sender=SENDER).verdict == (ACCEPTED, "known")
    wait_until(
        lambda: passes_of(child, asked_of(SENDER)) == [1 if ago == 10 else 2], "it is carried over"
    )
    assert child.smtpextfork(sender=NEXT).verdict == (ACCEPTED, "known")


@both_ways
@on_every_database
def test_what_was_over_is_new(child: Child) -> None:
    put_then(child, 40 * 86400)
    assert child.smtpextfork(sender=SENDER).verdict == (DEFERRED, "new")


@both_ways
@on_every_database
def test_a_rule_that_was_kept_as_folded_then_goes_on_to_match(child: Child) -> None:
    child.make_store()
    folded = then(SENDER).triplet.sender
    values = {
        "match_key": base.digest(rule_keys.key("sender", folded)),
        "kind": "sender",
        "pattern": f"from:{show(folded)}",
    }
    child.store.execute(
        insert(tables.rule).values(values | {"action": "reject", "comment": "", "created_at": 1})
    )
    assert child.smtpextfork(sender=NEXT).verdict == (REJECTED, "rule")


class Counting:
    """A store that has ROWS by key, and counts how often it is asked."""

    def __init__(self, rows: dict[bytes, TripletRow]) -> None:
        self.rows = rows
        self.asked: list[bytes] = []

    def lookup(self, asked: Asked, _now: int) -> Rows:
        self.asked.append(asked.key)
        return Rows(self.rows.get(asked.key))

    def waiting(self, _asked: Asked, _since: int, _now: int, _settings: Settings) -> Pending:
        return Pending(9, NOW - 900, NOW - 100, 60)

    def identity(self, _asked: Asked, _now: int, _settings: Settings) -> Identity:
        return Identity()

    def networks(self, _asked: Asked, _since: int, _settings: Settings) -> Sequence[str]:
        return ()


def decide(store: Counting, asked: Asked, settings: Settings) -> Decision:
    decision = Decision(asked.envelope, settings, NOW)
    check.decide(store, asked, decision)  # type: ignore[arg-type]
    return decision


@pytest.mark.parametrize(
    "sender", [b"alice@example.org", b"route66@example.org", b"order-10234@example.org", b""]
)
def test_what_has_no_tags_is_asked_for_once(sender: bytes) -> None:
    store = Counting({})
    decide(store, asked_of(sender), SETTINGS)
    assert len(store.asked) == 1


def test_what_is_not_there_either_way_is_new() -> None:
    store = Counting({})
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_POOL_NETWORKS": b"0"})
    assert decide(store, asked_of(SENDER), settings).reason == "new"
    assert len(store.asked) == 2


def test_what_is_known_as_it_is_folded_now_is_asked_for_once() -> None:
    asked = asked_of(SENDER)
    store = Counting({asked.key: TripletRow(NOW - 900, NOW - 10, 0, 1, NOW - 10)})
    assert decide(store, asked, SETTINGS).reason == "known"
    assert store.asked == [asked.key]


@pytest.mark.parametrize("over", [None, TripletRow(1, 1)])
def test_what_a_pool_lets_through_is_written_under_the_key_of_today(
    over: TripletRow | None,
) -> None:
    asked, waits = asked_of(SENDER), TripletRow(NOW - 100, NOW - 100)
    store = Counting({then(SENDER).key: waits} | ({asked.key: over} if over else {}))
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_POOL_NETWORKS": b"3"})
    decision = decide(store, asked, settings)
    assert decision.reason == "pool"
    changes = decision.changes
    assert [change.old for change in changes if isinstance(change.new, TripletRow)] == [over]
    assert not any(isinstance(change, Change) and change.old is waits for change in changes)


@pytest.mark.parametrize(
    ("row", "reason", "expires"),
    [
        (TripletRow(NOW - 9000, NOW - 10, 0, 2, NOW - 9000), "known", NOW - 10 + SETTINGS.lifetime),
        (TripletRow(NOW - 9, NOW, 1), "early", NOW - 9 + SETTINGS.retry_window),
    ],
)
def test_what_nothing_changes_is_carried_over_as_it_is(
    row: TripletRow, reason: str, expires: int
) -> None:
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_POOL_NETWORKS": b"0"})
    decision = decide(Counting({then(SENDER).key: row}), asked_of(SENDER), settings)
    assert decision.reason == reason
    [change] = decision.changes
    assert (change.old, change.new, change.expires) == (None, row, expires)


@pytest.mark.parametrize("sender", sorted({sender for pair in ONE + TWO for sender in pair}))
def test_whatever_was_folded_then_is_looked_for(sender: str) -> None:
    address = normalise.mail_address(sender.encode())
    if earlier.fold_sender(address) != normalise.fold_sender(address):
        assert asked_of(sender.encode()).triplet.is_tagged


@given(st.from_regex(rb"[a-z0-9._=+#-]{1,40}@([a-z0-9]{1,14}\.){0,4}example", fullmatch=True))
def test_any_sender_that_was_folded_then_is_looked_for(sender: bytes) -> None:
    if earlier.fold_sender(sender) != sender:
        assert asked_of(sender).triplet.is_tagged


def test_what_is_longer_than_any_sender_was_left_as_it_is() -> None:
    sender = b"srs0=" * 400 + b"u@host"
    assert earlier.fold_sender(sender) == sender
