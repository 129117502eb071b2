"""Every transition of the policy, and both ends of every window."""

from dataclasses import dataclass, replace
from typing import cast

import pytest

from greycheck import policy
from greycheck.envelope import Envelope
from greycheck.policy import ACCEPT, DEFER, ClientRow, TripletRow
from greycheck.settings import Settings

NOW = 1_800_000_000
DELAY, WINDOW, LIFETIME = 300, 86400, 36 * 86400


@dataclass(frozen=True)
class Values:
    """The settings that the policy reads."""

    delay: int = DELAY
    retry_window: int = WINDOW
    lifetime: int = LIFETIME
    client_passes: int = 1
    null_sender: str = "greylist"
    off: bool = False


DEFAULTS = Values()


def decide(
    row: TripletRow | None, client: ClientRow | None = None, values: Values = DEFAULTS
) -> tuple[policy.Verdict, list[policy.Change]]:
    return policy.decide(row, client, cast(Settings, values), NOW)


def state(row: TripletRow | ClientRow) -> dict[str, int | None]:
    return {name: getattr(row, name) for name in row.__slots__}


def test_an_unknown_triplet_is_recorded_and_deferred() -> None:
    verdict, [change] = decide(None)
    assert (verdict.action, verdict.reason, verdict.wait) == (DEFER, "new", DELAY)
    assert change.old is None
    assert state(change.new) == {"first": NOW, "last": NOW, "early": 0, "passes": 0, "passed": None}
    assert change.expires == NOW + WINDOW


@pytest.mark.parametrize("age", [2, DELAY - 1])
def test_a_retry_before_the_delay_is_over_is_counted_and_deferred(age: int) -> None:
    row = TripletRow(NOW - age, NOW - age, early=3)
    verdict, [change] = decide(row)
    assert (verdict.action, verdict.reason, verdict.wait) == (DEFER, "early", DELAY - age)
    assert change.old is row
    assert state(change.new) == {"first": NOW - age, "last": NOW, "early": 4, "passes": 0, "passed": None}
    assert change.expires == NOW - age + WINDOW


@pytest.mark.parametrize("age", [0, 1])
def test_the_same_attempt_seen_twice_is_counted_once(age: int) -> None:
    verdict, changes = decide(TripletRow(NOW - age, NOW - age))
    assert (verdict.reason, changes) == ("early", [])


@pytest.mark.parametrize("age", [DELAY, WINDOW])
def test_a_retry_in_the_window_passes_and_makes_the_client_known(age: int) -> None:
    row = TripletRow(NOW - age, NOW - 10, early=1)
    verdict, [passed, known] = decide(row)
    assert (verdict.action, verdict.reason) == (ACCEPT, "retry")
    assert state(passed.new) == {"first": NOW - age, "last": NOW, "early": 1, "passes": 1, "passed": NOW}
    assert passed.expires == known.expires == NOW + LIFETIME
    assert known.old is None
    assert state(known.new) == {"first": NOW, "last": NOW, "passes": 1}


def test_a_retry_after_the_window_is_a_new_message() -> None:
    row = TripletRow(NOW - WINDOW - 1, NOW - 100, early=5)
    verdict, [change] = decide(row)
    assert (verdict.action, verdict.reason) == (DEFER, "new")
    assert change.old is row
    assert state(change.new) == {"first": NOW, "last": NOW, "early": 0, "passes": 0, "passed": None}


@pytest.mark.parametrize("idle", [0, policy.REFRESH - 1])
def test_a_known_triplet_passes_and_writes_nothing(idle: int) -> None:
    verdict, changes = decide(TripletRow(NOW - 9999, NOW - idle, passes=1, passed=NOW - 9000))
    assert (verdict.action, verdict.reason, changes) == (ACCEPT, "known", [])


@pytest.mark.parametrize("idle", [policy.REFRESH, LIFETIME])
def test_a_known_triplet_is_refreshed_once_an_hour(idle: int) -> None:
    row = TripletRow(NOW - LIFETIME, NOW - idle, early=1, passes=2, passed=NOW - LIFETIME + 400)
    verdict, [change] = decide(row)
    assert verdict.reason == "known"
    assert state(change.new) == {**state(row), "last": NOW, "passes": 3}
    assert change.expires == NOW + LIFETIME


def test_a_triplet_whose_lifetime_is_over_is_new() -> None:
    row = TripletRow(NOW - 2 * LIFETIME, NOW - LIFETIME - 1, passes=9, passed=NOW - 2 * LIFETIME + 400)
    verdict, [change] = decide(row)
    assert (verdict.action, verdict.reason) == (DEFER, "new")
    assert state(change.new) == {"first": NOW, "last": NOW, "early": 0, "passes": 0, "passed": None}


def test_a_first_attempt_in_the_future_counts_as_now_and_is_moved_there() -> None:
    row = TripletRow(NOW + 5000, NOW + 5000)
    verdict, [change] = decide(row)
    assert (verdict.reason, verdict.wait) == ("early", DELAY)
    assert isinstance(change.new, TripletRow)
    assert change.new.first == NOW
    assert change.expires == NOW + WINDOW


def test_a_clock_that_is_a_second_ahead_moves_the_first_attempt_to_the_earlier_clock() -> None:
    verdict, [change] = decide(TripletRow(NOW + 1, NOW + 1))
    assert verdict.reason == "early"
    assert isinstance(change.new, TripletRow)
    assert change.new.first == NOW


def test_a_last_use_in_the_future_is_refreshed_when_it_is_an_hour_off() -> None:
    assert decide(TripletRow(NOW, NOW + 10, passes=1, passed=NOW))[1] == []
    [change] = decide(TripletRow(NOW, NOW + policy.REFRESH, passes=1, passed=NOW))[1]
    assert change.new.last == NOW


def test_without_a_delay_the_second_attempt_passes_at_once() -> None:
    assert decide(TripletRow(NOW, NOW), values=replace(DEFAULTS, delay=0))[0].reason == "retry"


@pytest.mark.parametrize("row", [None, TripletRow(NOW - 5, NOW - 5), TripletRow(NOW, NOW, passes=1, passed=NOW)])
def test_a_known_client_passes_whatever_the_triplet(row: TripletRow | None) -> None:
    verdict, changes = decide(row, ClientRow(NOW - 50, NOW - 50, 1))
    assert (verdict.action, verdict.reason, changes) == (ACCEPT, "client", [])


def test_a_known_client_is_refreshed_once_an_hour() -> None:
    client = ClientRow(NOW - LIFETIME, NOW - policy.REFRESH, 4)
    [change] = decide(None, client)[1]
    assert state(change.new) == {"first": NOW - LIFETIME, "last": NOW, "passes": 4}
    assert change.old is client


def test_a_client_that_was_long_away_is_not_known() -> None:
    client = ClientRow(NOW - 2 * LIFETIME, NOW - LIFETIME - 1, 4)
    assert decide(None, client)[0].reason == "new"
    verdict, [_passed, known] = decide(TripletRow(NOW - DELAY, NOW - DELAY), client)
    assert verdict.reason == "retry"
    assert state(known.new) == {"first": NOW, "last": NOW, "passes": 1}


def test_a_client_must_pass_as_often_as_the_setting_says() -> None:
    five = replace(DEFAULTS, client_passes=5)
    assert decide(None, ClientRow(NOW, NOW, 4), five)[0].reason == "new"
    assert decide(None, ClientRow(NOW, NOW, 5), five)[0].reason == "client"
    _verdict, [_passed, known] = decide(TripletRow(NOW - DELAY, NOW), ClientRow(NOW - 7, NOW - 7, 3), five)
    assert state(known.new) == {"first": NOW - 7, "last": NOW, "passes": 4}


def test_known_clients_can_be_switched_off() -> None:
    off = replace(DEFAULTS, client_passes=0)
    assert decide(None, ClientRow(NOW, NOW, 9), off)[0].reason == "new"
    _verdict, changes = decide(TripletRow(NOW - DELAY, NOW), None, off)
    assert len(changes) == 1


def envelope(sender: bytes = b"a@example.org", exempt: str = "", missing: str = "") -> Envelope:
    return Envelope("smtpextfork", None if missing else "192.0.2.1", sender, b"b@example.net", exempt, missing)


@pytest.mark.parametrize(
    ("asked", "values", "reason", "detail"),
    [
        (envelope(missing="TCPREMOTEIP"), DEFAULTS, "incomplete", "missing=TCPREMOTEIP"),
        (envelope(missing="TCPREMOTEIP", exempt="RELAYCLIENT"), DEFAULTS, "incomplete", "missing=TCPREMOTEIP"),
        (envelope(exempt="RELAYCLIENT"), DEFAULTS, "exempt", "by=RELAYCLIENT"),
        (envelope(), replace(DEFAULTS, off=True), "exempt", "by=GREYCHECK"),
        (envelope(b""), replace(DEFAULTS, null_sender=ACCEPT), "exempt", "by=null_sender"),
    ],
)
def test_some_envelopes_need_no_look_up(asked: Envelope, values: Values, reason: str, detail: str) -> None:
    verdict = policy.without_store(asked, cast(Settings, values))
    assert verdict
    assert (verdict.action, verdict.reason, verdict.detail) == (ACCEPT, reason, detail)


@pytest.mark.parametrize(
    ("asked", "values"),
    [(envelope(), DEFAULTS), (envelope(b""), DEFAULTS), (envelope(), replace(DEFAULTS, null_sender=ACCEPT))],
)
def test_the_others_are_looked_up(asked: Envelope, values: Values) -> None:
    assert policy.without_store(asked, cast(Settings, values)) is None


def test_every_phase_has_a_transition() -> None:
    assert set(policy.TRANSITIONS) == {policy.ABSENT, policy.EARLY, policy.DUE, policy.KNOWN, policy.OVER}
