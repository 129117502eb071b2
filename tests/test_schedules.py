"""When real senders try again (published schedules), against the defaults: none is hasty, and whose
network changes passes in time.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from greycheck.check import check
from greycheck.envelope import Envelope
from greycheck.policy import Decision
from greycheck.settings import Settings, read
from greycheck.simulation.schedules import SCHEDULES, times
from greycheck.store import base
from greycheck.store.waiting import POOL_MOST
from greycheck.unknown import POOL_GAP
from tests.support import Database, SQLiteFile, in_every_store

NOW = 1_800_000_000

# The first attempt that could pass, if its provider is recognised whatever the address it comes
# from: by delay.
COLUMNS = ("gmail", "yahoo", "hotmail", "mail.ru", "yandex", "gmx", "aol", "qmail", "Exim")
FIRST = {
    60: "6:02 2:07 1:01 1:18 1:05 5:01 5:32 6:40 15:00",
    180: "6:02 5:39 3:04 19:15 6:53 5:01 5:32 6:40 15:00",
    300: "6:02 5:39 5:06 19:15 6:53 5:01 5:32 6:40 15:00",
    600: "29:02 12:58 12:08 19:15 14:55 12:33 11:32 26:40 15:00",
    900: "29:02 27:16 16:10 19:15 30:28 23:50 21:32 26:40 15:00",
    1500: "29:02 27:16 28:10 49:14 30:28 40:46 31:32 26:40 30:00",
}
TABLE = [
    (delay, name, at)
    for delay, row in FIRST.items()
    for name, at in zip(COLUMNS, times(row)[1:], strict=True)
]


def settings(**given: object) -> Settings:
    named = {"config": "/dev/null", **given}
    return read(
        {f"GREYCHECK_{name.upper()}".encode(): str(value).encode() for name, value in named.items()}
    )


def envelope(
    client: str, sender: bytes = b"alice@provider.example", recipient: bytes = b"bob@example.net"
) -> Envelope:
    return Envelope("smtpextfork", client, sender, recipient)


def passes(store: "base.Store", attempts: list[int], settings: Settings) -> tuple[int, str] | None:
    """When the first of ATTEMPTS passes, each from a network of its own, and why."""
    for number, after in enumerate(attempts):
        verdict = check(
            store, Decision(envelope(f"40.{number >> 8}.{number & 255}.1"), settings, NOW + after)
        )
        if verdict.action == "accept":
            return after, verdict.reason
    return None


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Iterator["base.Store"]:
    file = SQLiteFile(tmp_path / "greycheck.db", empty_store)
    file.make()
    yield file.connect(20)
    file.leave()


@pytest.mark.parametrize(("delay", "name", "at"), TABLE)
def test_a_provider_passes_from_anywhere_at_the_first_attempt_that_could(
    store: "base.Store", delay: int, name: str, at: int
) -> None:
    assert passes(store, SCHEDULES[name], settings(delay=f"{delay}s", pool_networks=1)) == (
        at,
        "pool",
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_provider_with_a_new_network_at_each_attempt_passes_at_the_fourth_that_is_late_enough(
    store: "base.Store", name: str
) -> None:
    """By default three networks make a pool: gmail passes at 56:36 instead of 6:02."""
    attempts = SCHEDULES[name]
    window = settings().retry_window
    expected = next(
        (
            after
            for number, after in enumerate(attempts)
            if number >= 3 and after - attempts[0] >= 300 and after - attempts[number - 3] <= window
        ),
        None,
    )
    found = passes(store, attempts, settings())
    if expected is None:
        assert found is None
    else:
        assert found == (expected, "pool")
    if name == "gmail":
        assert expected == 56 * 60 + 36


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_sender_is_hasty_by_default(store: "base.Store", name: str) -> None:
    """With strikes on, and from one address: none is refused, or has a strike that counts."""
    found = settings(strikes=1, delay="1h")
    assert found.strike_interval == settings().strike_interval
    for after in SCHEDULES[name]:
        assert check(store, Decision(envelope("192.0.2.1"), found, NOW + after)).reason in (
            "new",
            "early",
            "retry",
            "client",
        )
    least = min(later - first for first, later in pairwise(SCHEDULES[name]))
    assert least > found.strike_interval
    assert least >= POOL_GAP


# --- what is no provider --------------------------------------------------------------------------


@in_every_store
def test_a_sender_of_the_recipients_own_domain_is_no_pool_however_late(database: Database) -> None:
    store = database.connect(20)
    for number in range(8):
        asked = envelope(f"40.{number}.0.1", b"ceo@example.net")
        assert check(store, Decision(asked, settings(), NOW + 600 * number)).reason == "new"


@in_every_store
@pytest.mark.parametrize(("gap", "reason"), [(POOL_GAP - 1, "new"), (POOL_GAP, "pool")])
def test_attempts_that_follow_faster_than_any_queue_are_no_pool(
    database: Database, gap: int, reason: str
) -> None:
    store = database.connect(20)
    for number in range(3):
        assert (
            check(
                store, Decision(envelope(f"40.{number}.0.1"), settings(), NOW + gap * number)
            ).reason
            == "new"
        )
    assert check(store, Decision(envelope("40.9.0.1"), settings(), NOW + 600)).reason == reason


@in_every_store
@pytest.mark.parametrize("apart", [0, 2, 4, 5, 60])
def test_two_mails_at_once_pass_in_the_end_though_each_attempt_is_from_another_network(
    database: Database, apart: int
) -> None:
    store = database.connect(20)
    passed: dict[int, int] = {}
    for number in range(10):  # qmail's queue
        for mail in range(2):
            when = 400 * number * number + apart * mail
            asked = envelope(f"40.{number}.{mail}.1")
            if mail not in passed and (
                check(store, Decision(asked, settings(), NOW + when)).action == "accept"
            ):
                passed[mail] = when
    assert len(passed) == 2
    assert max(passed.values()) <= 4 * 3600 + apart


@in_every_store
def test_what_a_clock_recorded_that_was_ahead_keeps_no_pool_from_passing(
    database: Database,
) -> None:
    store = database.connect(20)
    check(store, Decision(envelope("40.8.0.1"), settings(), NOW + 365 * 86400))
    for number in range(3):
        check(store, Decision(envelope(f"40.{number}.0.1"), settings(), NOW + 600 * number))
    assert check(store, Decision(envelope("40.9.0.1"), settings(), NOW + 1800)).reason == "pool"


@in_every_store
@pytest.mark.parametrize(("gap", "reason"), [(POOL_GAP - 1, "new"), (POOL_GAP, "pool")])
def test_what_follows_the_last_attempt_faster_than_any_queue_is_no_pool(
    database: Database, gap: int, reason: str
) -> None:
    store = database.connect(20)
    for number in range(3):
        assert (
            check(
                store, Decision(envelope(f"40.{number}.0.1"), settings(), NOW + 600 * number)
            ).reason
            == "new"
        )
    assert (
        check(store, Decision(envelope("40.9.0.1"), settings(), NOW + 1200 + gap)).reason == reason
    )


@in_every_store
def test_no_more_networks_than_any_provider_has_are_counted(database: Database) -> None:
    store = database.connect(20)
    many = settings(delay="1d", pool_networks=POOL_MOST)
    for number in range(POOL_MOST):
        assert (
            check(store, Decision(envelope(f"40.0.{number}.1"), many, NOW + 10 * number)).reason
            == "new"
        )
    assert check(store, Decision(envelope("40.1.0.1"), many, NOW + 86400)).reason == "pool"
    more = settings(delay="1d", pool_networks=POOL_MOST + 1)
    assert check(store, Decision(envelope("40.1.1.1"), more, NOW + 86400 + 10)).reason == "new"
