"""Every transition of the policy, and both ends of every window."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from greycheck import policy, unknown
from greycheck.envelope import Envelope
from greycheck.policy import (
    ACCEPT,
    DEFER,
    EARLIER,
    IDENTITY,
    MESSAGE,
    NETWORKS,
    PENDING,
    REJECT,
    ROWS,
    Change,
    ClientRow,
    Decision,
    Rows,
    RuleRow,
    TripletRow,
    Verdict,
)
from greycheck.settings import Settings
from greycheck.unknown import DomainRow, Identity, Pending

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
    on_error: str = "accept"
    strikes: int = 0
    strike_interval: int = 70
    strike_time: int = 86400
    pool_networks: int = 3
    identity: str = "yes"
    domain_passes: int = 1
    trust_spfresult: str = "no"
    learn_outbound: int = 0
    network_limit: int = 1000
    pending_limit: int = 1000
    verified_names: str = "no"
    mode: str = "enforce"
    observe_domains: tuple[str, ...] = ()
    observe_percent: int = 0
    ipv4_prefix: int = 24
    ipv6_prefix: int = 64


DEFAULTS = Values()
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")
LATER = Envelope("spp", "192.0.2.1", b"a@example.org", b"b@example.net", message=b"1", first=False)
FIRST = Envelope("spp", "192.0.2.1", b"a@example.org", b"b@example.net", message=b"1")


def made(
    rows: Rows,
    values: Values = DEFAULTS,
    now: int = NOW,
    envelope: Envelope = ENVELOPE,
    pending: Pending | None = None,
    first_passed: bool = False,
    identity: Identity | None = None,
    networks: Sequence[str] = (),
) -> tuple[Decision, list[str]]:
    """The decision for which the store has ROWS, and what it asked for on its way."""
    decision = Decision(envelope, cast(Settings, values), now)
    asked = []
    while need := decision.advance():
        asked.append(need)
        if need == ROWS:
            decision.take_rows(rows)
        elif need == EARLIER:
            decision.take_earlier(None)
        elif need == MESSAGE:
            decision.take_message(first_passed)
        elif need == IDENTITY:
            decision.take_identity(identity or Identity())
        elif need == NETWORKS:
            decision.take_networks(networks)
        else:
            assert need == PENDING
            decision.take_pending(pending or Pending())
    return decision, asked


def decided(rows: Rows, values: Values = DEFAULTS, now: int = NOW) -> tuple[Verdict, list[Change]]:
    decision, _asked = made(rows, values, now)
    return decision.verdict(), decision.changes


def decide(
    row: TripletRow | None, client: ClientRow | None = None, values: Values = DEFAULTS
) -> tuple[Verdict, list[Change]]:
    return decided(Rows(row, client), values)


def state(row: object) -> dict[str, int | None]:
    assert row
    return {name: getattr(row, name) for name in type(row).__slots__}  # type: ignore[attr-defined]


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
    assert state(change.new) == {
        "first": NOW - age,
        "last": NOW,
        "early": 4,
        "passes": 0,
        "passed": None,
    }
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
    assert state(passed.new) == {
        "first": NOW - age,
        "last": NOW,
        "early": 1,
        "passes": 1,
        "passed": NOW,
    }
    assert passed.expires == known.expires == NOW + LIFETIME
    assert known.old is None
    assert state(known.new) == {"first": NOW, "last": NOW, "passes": 1, "strikes": 0, "struck": 0}


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


@pytest.mark.parametrize(("idle", "refreshed"), [(899, 0), (900, 1)])
def test_what_lives_shorter_is_refreshed_at_half_of_its_life(idle: int, refreshed: int) -> None:
    short = replace(DEFAULTS, lifetime=1800, retry_window=600)
    assert (
        len(
            decide(TripletRow(NOW - 9999, NOW - idle, passes=1, passed=NOW - 9000), values=short)[1]
        )
        == refreshed
    )
    assert len(decide(None, ClientRow(NOW - 9999, NOW - idle, 1), short)[1]) == refreshed


def test_mail_of_a_known_client_keeps_its_triplet_known_too() -> None:
    client = ClientRow(NOW - LIFETIME, NOW - policy.REFRESH, 4)
    row = TripletRow(NOW - LIFETIME, NOW - LIFETIME, passes=2, passed=NOW - LIFETIME)
    verdict, [used, _client] = decide(row, client)
    assert verdict.reason == "client"
    assert state(used.new) == {**state(row), "last": NOW, "passes": 3}
    assert len(decide(TripletRow(NOW - LIFETIME, NOW - LIFETIME), client)[1]) == 1


def test_a_triplet_whose_lifetime_is_over_is_new() -> None:
    row = TripletRow(
        NOW - 2 * LIFETIME, NOW - LIFETIME - 1, passes=9, passed=NOW - 2 * LIFETIME + 400
    )
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
    assert isinstance(change.new, TripletRow)
    assert change.new.last == NOW


def test_without_a_delay_the_second_attempt_passes_at_once() -> None:
    assert decide(TripletRow(NOW, NOW), values=replace(DEFAULTS, delay=0))[0].reason == "retry"


@pytest.mark.parametrize(
    "row", [None, TripletRow(NOW - 5, NOW - 5), TripletRow(NOW, NOW, passes=1, passed=NOW)]
)
def test_a_known_client_passes_whatever_the_triplet(row: TripletRow | None) -> None:
    verdict, changes = decide(row, ClientRow(NOW - 50, NOW - 50, 1))
    assert (verdict.action, verdict.reason, changes) == (ACCEPT, "client", [])


def test_a_known_client_is_refreshed_once_an_hour() -> None:
    client = ClientRow(NOW - LIFETIME, NOW - policy.REFRESH, 4)
    [change] = decide(None, client)[1]
    assert state(change.new) == {
        "first": NOW - LIFETIME,
        "last": NOW,
        "passes": 4,
        "strikes": 0,
        "struck": 0,
    }
    assert change.old is client


def test_a_client_that_was_long_away_is_not_known() -> None:
    client = ClientRow(NOW - 2 * LIFETIME, NOW - LIFETIME - 1, 4)
    assert decide(None, client)[0].reason == "new"
    verdict, [_passed, known] = decide(TripletRow(NOW - DELAY, NOW - DELAY), client)
    assert verdict.reason == "retry"
    assert state(known.new) == {"first": NOW, "last": NOW, "passes": 1, "strikes": 0, "struck": 0}


def test_a_client_must_pass_as_often_as_the_setting_says() -> None:
    five = replace(DEFAULTS, client_passes=5)
    assert decide(None, ClientRow(NOW, NOW, 4), five)[0].reason == "new"
    assert decide(None, ClientRow(NOW, NOW, 5), five)[0].reason == "client"
    _verdict, [_passed, known] = decide(
        TripletRow(NOW - DELAY, NOW), ClientRow(NOW - 7, NOW - 7, 3), five
    )
    assert state(known.new) == {
        "first": NOW - 7,
        "last": NOW,
        "passes": 4,
        "strikes": 0,
        "struck": 0,
    }


def test_known_clients_can_be_switched_off() -> None:
    off = replace(DEFAULTS, client_passes=0)
    assert decide(None, ClientRow(NOW, NOW, 9), off)[0].reason == "new"
    _verdict, changes = decide(TripletRow(NOW - DELAY, NOW), None, off)
    assert len(changes) == 1


def envelope(sender: bytes = b"a@example.org", exempt: str = "", missing: str = "") -> Envelope:
    return Envelope(
        "smtpextfork", None if missing else "192.0.2.1", sender, b"b@example.net", exempt, missing
    )


@pytest.mark.parametrize(
    ("asked", "values", "reason", "detail"),
    [
        (envelope(missing="TCPREMOTEIP"), DEFAULTS, "incomplete", "missing=TCPREMOTEIP"),
        (
            envelope(missing="TCPREMOTEIP", exempt="RELAYCLIENT"),
            DEFAULTS,
            "incomplete",
            "missing=TCPREMOTEIP",
        ),
        (envelope(exempt="RELAYCLIENT"), DEFAULTS, "exempt", "by=RELAYCLIENT"),
        (envelope(), replace(DEFAULTS, off=True), "exempt", "by=GREYCHECK"),
        (envelope(b""), replace(DEFAULTS, null_sender=ACCEPT), "exempt", "by=null_sender"),
    ],
)
def test_some_envelopes_need_no_look_up(
    asked: Envelope, values: Values, reason: str, detail: str
) -> None:
    decision = Decision(asked, cast(Settings, values), NOW)
    assert decision.advance() == ""
    verdict = decision.verdict()
    assert (verdict.action, verdict.reason, verdict.detail) == (ACCEPT, reason, detail)


@pytest.mark.parametrize(
    ("asked", "values"),
    [
        (envelope(), DEFAULTS),
        (envelope(b""), DEFAULTS),
        (envelope(), replace(DEFAULTS, null_sender=ACCEPT)),
    ],
)
def test_the_others_are_looked_up(asked: Envelope, values: Values) -> None:
    assert Decision(asked, cast(Settings, values), NOW).advance() == ROWS


def test_the_last_step_decides_whatever_comes_so_far() -> None:
    for phase, row in {
        policy.ABSENT: None,
        policy.EARLY: TripletRow(NOW - 9, NOW - 9),
        policy.DUE: TripletRow(NOW - DELAY, NOW - 9),
        policy.KNOWN: TripletRow(0, NOW, 0, 1, 0),
        policy.OVER: TripletRow(0, 0),
    }.items():
        decision, _asked = made(Rows(row))
        assert decision.phase == phase
        assert decision.reason


# --- rules ----------------------------------------------------------------------------------------


def rule(action: str, delay: int | None = None, kind: str = "network") -> RuleRow:
    return RuleRow(b"key", kind, "192.0.2.0/24", action, delay)


def with_rules(
    *rules: RuleRow,
    row: TripletRow | None = None,
    client: ClientRow | None = None,
    values: Values = DEFAULTS,
) -> tuple[Verdict, list[Change]]:
    return decided(Rows(row, client, rules), values)


KNOWN_CLIENT = ClientRow(NOW - 50, NOW - 50, 1)


@pytest.mark.parametrize(("action", "verdict"), [("allow", ACCEPT), ("reject", REJECT)])
def test_a_rule_decides_before_all_else_and_writes_nothing(action: str, verdict: str) -> None:
    for client in (None, KNOWN_CLIENT, ClientRow(NOW, NOW, 0, 0, NOW + 100)):
        found, changes = with_rules(rule(action), client=client)
        assert (found.action, found.reason, found.detail, changes) == (
            verdict,
            "rule",
            "rule=192.0.2.0/24",
            [],
        )


@pytest.mark.parametrize("action", ["defer", "what a newer program may have"])
def test_a_rule_that_defers_does_so_at_every_attempt_and_records_nothing(action: str) -> None:
    known = TripletRow(NOW - 900, NOW - 9, 0, 1, NOW - 9)
    for row in (None, TripletRow(NOW - DELAY, NOW - DELAY), known):
        verdict, changes = with_rules(rule(action), row=row, client=KNOWN_CLIENT)
        assert (verdict.action, verdict.reason, verdict.wait) == (DEFER, "rule", DELAY)
        assert changes == []


def test_what_a_rule_defers_is_only_observed_where_all_is() -> None:
    verdict, _changes = with_rules(rule("defer"), values=replace(DEFAULTS, mode="observe"))
    assert (verdict.action, verdict.observed) == (ACCEPT, DEFER)


def test_a_pair_is_one_word_of_the_log() -> None:
    pair = RuleRow(b"key", "sender", "from:a@example.org to:b@example.net", "defer", None)
    assert with_rules(pair)[0].detail == "rule=from:a@example.org,to:b@example.net"


def test_a_pair_with_a_name_allows_only_where_it_is_verified() -> None:
    pair = RuleRow(b"key", "name", "name:.example.org to:b@example.net", "allow", None)
    assert with_rules(pair)[0].reason == "new"
    assert with_rules(pair, values=replace(DEFAULTS, verified_names="yes"))[0].action == ACCEPT


def test_the_first_of_several_rules_decides() -> None:
    assert with_rules(rule("reject"), rule("allow"))[0].action == REJECT


def test_a_rule_that_greylists_does_so_with_its_own_delay_and_for_known_clients_too() -> None:
    verdict, [change] = with_rules(rule("greylist", 3600), client=KNOWN_CLIENT)
    assert (verdict.action, verdict.reason, verdict.wait, verdict.detail) == (
        DEFER,
        "new",
        3600,
        "rule=192.0.2.0/24",
    )
    assert change.expires == NOW + WINDOW
    assert (
        with_rules(rule("greylist", 3600), row=TripletRow(NOW - 3599, NOW - 9))[0].reason == "early"
    )
    assert (
        with_rules(rule("greylist", 3600), row=TripletRow(NOW - 3600, NOW - 9))[0].reason == "retry"
    )
    assert (
        with_rules(rule("greylist", 3600), row=TripletRow(NOW - 9, NOW - 9, 0, 1, NOW))[0].reason
        == "known"
    )


def test_a_rule_that_greylists_without_a_delay_takes_the_settings() -> None:
    assert with_rules(rule("greylist"))[0].wait == DELAY


def test_a_rule_whose_delay_outlasts_the_window_makes_it_longer() -> None:
    verdict, [change] = with_rules(rule("greylist", 2 * WINDOW))
    assert change.expires == NOW + 3 * WINDOW
    assert (
        with_rules(rule("greylist", 2 * WINDOW), row=TripletRow(NOW - 2 * WINDOW, NOW - 9))[
            0
        ].reason
        == "retry"
    )
    assert verdict.wait == 2 * WINDOW


def test_a_name_allows_only_where_it_is_verified() -> None:
    named = rule("allow", kind="name")
    assert with_rules(named)[0].reason == "new"
    assert with_rules(named, rule("reject"))[0].action == REJECT
    assert with_rules(named, values=replace(DEFAULTS, verified_names="yes"))[0].action == ACCEPT
    assert with_rules(rule("reject", kind="name"))[0].action == REJECT


# --- mail that is expected ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [None, TripletRow(NOW - 9, NOW - 9), TripletRow(0, 0), TripletRow(0, 0, 0, 1, 0)]
)
def test_expected_mail_passes_once_and_its_triplet_is_known(row: TripletRow | None) -> None:
    expected = RuleRow(b"key", "expect", "to:b@example.net", "allow", None)
    verdict, [passed, used] = decided(Rows(row, None, (), expected))
    assert (verdict.action, verdict.reason, verdict.detail) == (
        ACCEPT,
        "expected",
        "by=to:b@example.net",
    )
    assert state(passed.new) == {"first": NOW, "last": NOW, "early": 0, "passes": 1, "passed": NOW}
    assert passed.old is row
    assert (used.old, used.new) == (expected, None)


def test_mail_that_would_pass_anyway_does_not_use_an_expectation_up() -> None:
    expected = RuleRow(b"key", "expect", "to:b@example.net", "allow", None)
    due = Rows(TripletRow(NOW - DELAY, NOW - 9), None, (), expected)
    assert decided(due)[0].reason == "retry"
    assert decided(Rows(None, KNOWN_CLIENT, (), expected))[0].reason == "client"


# --- an address that many clients may share -------------------------------------------------------

SHARED = Envelope("smtpextfork", "172.18.0.1", b"a@example.org", b"b@example.net")


@pytest.mark.parametrize(
    ("client", "warns"),
    [
        (None, True),
        (ClientRow(NOW - unknown.WARNED, NOW - unknown.WARNED, 1), True),
        (ClientRow(NOW - unknown.WARNED + 1, NOW - unknown.WARNED + 1, 1), False),
        (ClientRow(NOW - 9, NOW - 9, 0), True),
    ],
)
def test_of_a_shared_address_is_warned_once_an_hour(client: ClientRow | None, warns: bool) -> None:
    due = TripletRow(NOW - DELAY, NOW - DELAY)
    decision, _asked = made(Rows(due, client), envelope=SHARED)
    assert (decision.reason, bool(decision.verdict().warning)) == ("retry", warns)
    assert len(decision.changes) == 1 + warns


def test_a_shared_address_is_neither_known_nor_refused() -> None:
    for client in (KNOWN_CLIENT, ClientRow(NOW - 9, NOW - 9, 1, 0, NOW + 9)):
        assert (
            made(Rows(None, client), replace(DEFAULTS, strikes=1), envelope=SHARED)[0].reason
            == "new"
        )


# --- strikes --------------------------------------------------------------------------------------

STRIKES = replace(DEFAULTS, strikes=3)


def early(
    client: ClientRow | None, since: int = 10, values: Values = STRIKES
) -> tuple[Verdict, list[Change]]:
    return decide(TripletRow(NOW - 100, NOW - since), client, values)


@pytest.mark.parametrize("since", [2, 10, 70])
def test_a_hasty_retry_is_a_strike(since: int) -> None:
    verdict, [counted, struck] = early(None, since)
    assert (verdict.reason, counted.old is not None) == ("early", True)
    assert state(struck.new) == {"first": NOW, "last": NOW, "passes": 0, "strikes": 1, "struck": 0}
    assert struck.expires == NOW + WINDOW


def test_the_last_strike_refuses_the_client_for_a_time() -> None:
    verdict, [_counted, struck] = early(ClientRow(NOW - 90, NOW - 10, 0, strikes=2))
    assert (verdict.action, verdict.reason) == (REJECT, "strikes")
    assert state(struck.new) == {
        "first": NOW - 90,
        "last": NOW,
        "passes": 0,
        "strikes": 0,
        "struck": NOW + 86400,
    }
    assert struck.expires == NOW + 86400


@pytest.mark.parametrize(
    ("until", "reason"),
    [
        (NOW + 1, "strikes"),
        (NOW, "new"),
        (NOW + 86400, "strikes"),
        (NOW + 86401, "new"),  # nobody is refused for so long: the clock was wrong when it began
    ],
)
def test_a_struck_client_is_refused_until_its_time_is_over(until: int, reason: str) -> None:
    verdict, _changes = decide(None, ClientRow(0, 0, 0, 0, until), STRIKES)
    assert verdict.reason == reason


def test_strikes_come_before_a_known_client_and_end_with_the_setting() -> None:
    struck = ClientRow(NOW, NOW, 9, 0, NOW + 100)
    assert decide(None, struck, STRIKES)[0].reason == "strikes"
    assert decide(None, struck)[0].reason == "client"


def test_a_patient_retry_ends_the_row_of_strikes() -> None:
    _verdict, [_counted, struck] = early(ClientRow(0, 0, 0, strikes=2), since=71)
    assert isinstance(struck.new, ClientRow)
    assert struck.new.strikes == 0
    assert len(early(ClientRow(0, 0, 0), since=71)[1]) == 1


def test_the_same_attempt_seen_twice_is_no_strike() -> None:
    assert early(ClientRow(0, 0, 0, strikes=2), since=1)[1] == []


def test_what_another_address_of_the_network_tried_is_no_strike() -> None:
    """It knows sender and recipient, and tries between this client's retries, which are as patient
    as any.
    """
    honest: ClientRow | None = None
    noted = []
    for now in range(NOW + 71, NOW + DELAY, 71):
        verdict, changes = decided(Rows(TripletRow(NOW, now - 2, 2), honest), STRIKES, now)
        assert (verdict.action, verdict.reason) == (DEFER, "early")
        honest = next(
            (change.new for change in changes if isinstance(change.new, ClientRow)), honest
        )
        noted.append(honest.strikes if honest else 0)
    assert max(noted) == 1


@pytest.mark.parametrize("ahead", [2, 3600])
def test_a_retry_after_the_clock_was_set_back_is_no_strike(ahead: int) -> None:
    """Else each mail that a client has waiting counts against it, and is refused for good."""
    verdict, changes = early(ClientRow(0, NOW + ahead, 0, strikes=2), since=-ahead)
    assert (verdict.action, verdict.reason) == (DEFER, "early")
    assert [change.new.strikes for change in changes if isinstance(change.new, ClientRow)] == [0]
    assert len(early(None, since=-ahead)[1]) == 1


@pytest.mark.parametrize(
    ("client", "strikes"),
    [
        (
            ClientRow(NOW - 9999, NOW - 9999, 2, strikes=1),
            2,
        ),  # it has passed: when its last strike was is not known
        (ClientRow(NOW - 9999, NOW - 9999, 0, strikes=0), 1),  # its first one
        (
            ClientRow(NOW - 9999, NOW - 9999, 0, strikes=1),
            0,
        ),  # its last strike is long ago: another one's attempt
        (ClientRow(NOW - 60, NOW - 60, 0, strikes=1), 2),
    ],
)
def test_haste_counts_as_far_as_it_may_be_the_clients_own(client: ClientRow, strikes: int) -> None:
    values = replace(STRIKES, strikes=5, client_passes=9)
    _verdict, changes = early(client, values=values)
    assert [change.new.strikes for change in changes if isinstance(change.new, ClientRow)] == [
        strikes
    ]


def test_who_is_hasty_from_one_address_after_another_gets_no_row_for_each() -> None:
    row = TripletRow(NOW - 100, NOW - 3, early=unknown.HASTE)
    verdict, [counted] = decide(row, None, STRIKES)
    assert (verdict.action, verdict.reason) == (DEFER, "early")
    assert isinstance(counted.new, TripletRow)
    assert len(decide(row, ClientRow(NOW - 3, NOW - 3, 0, strikes=1), STRIKES)[1]) == 2


def test_a_pass_ends_the_row_of_strikes() -> None:
    _verdict, [_passed, known] = decide(
        TripletRow(NOW - DELAY, NOW - 9), ClientRow(NOW, NOW, 0, strikes=2), STRIKES
    )
    assert state(known.new) == {"first": NOW, "last": NOW, "passes": 1, "strikes": 0, "struck": 0}


def test_a_strike_does_not_shorten_what_is_remembered_of_a_client() -> None:
    _verdict, [_counted, struck] = early(
        ClientRow(NOW - 9, NOW - 9, 2), values=replace(STRIKES, client_passes=5)
    )
    assert struck.expires == NOW - 9 + LIFETIME


# --- pools, and a full table ----------------------------------------------------------------------


def look_around(
    others: int = 0,
    oldest: int | None = None,
    total: int = 0,
    row: TripletRow | None = None,
    values: Values = DEFAULTS,
    newest: int | None = None,
    rounds: int | None = None,
    crowd: int = 0,
    sender: bytes = b"a@example.org",
) -> tuple[Verdict, list[Change]]:
    pending = Pending(others, oldest, newest, rounds, crowd, total)
    decision, asked = made(Rows(row), values, envelope=envelope(sender), pending=pending)
    learns = decision.reason == "pool"
    assert asked == [ROWS, PENDING, *([NETWORKS] if learns else [])]
    # What a pool learns has tests of its own.
    return decision.verdict(), decision.changes[: 2 if learns else None]


@pytest.mark.parametrize("row", [None, TripletRow(NOW - 5, NOW - 5)])
def test_what_waits_from_enough_other_networks_passes(row: TripletRow | None) -> None:
    verdict, [passed, known] = look_around(3, NOW - DELAY, row=row)
    assert (verdict.action, verdict.reason) == (ACCEPT, "pool")
    assert isinstance(passed.new, TripletRow)
    assert (passed.old, passed.new.passed) == (row, NOW)
    assert isinstance(known.new, ClientRow)


@pytest.mark.parametrize(("others", "oldest"), [(2, NOW - DELAY), (3, NOW - DELAY + 1), (0, None)])
def test_fewer_networks_or_a_delay_that_is_not_over_do_not_pass(
    others: int, oldest: int | None
) -> None:
    assert look_around(others, oldest)[0].reason == "new"


@pytest.mark.parametrize(
    ("newest", "rounds", "reason"),
    [
        (NOW - 5, 9, "pool"),
        (NOW - 5, None, "pool"),
        (NOW - 60, 1, "new"),
        (NOW - 60, 5, "new"),
        (NOW - 60, 6, "pool"),
        (NOW - 4, 9, "new"),
        (NOW + 60, 9, "new"),
    ],
)
def test_attempts_that_follow_each_other_sooner_than_any_queue_retries_may_be_several_senders(
    newest: int, rounds: int | None, reason: str
) -> None:
    """They count as one, and twice as many are needed."""
    assert look_around(9, NOW - DELAY, newest=newest, rounds=rounds)[0].reason == reason


def test_a_sender_of_the_recipients_own_domain_is_no_pool() -> None:
    assert look_around(9, NOW - DELAY, sender=b"ceo@example.net")[0].reason == "new"


def test_a_crowd_is_deferred_and_not_recorded() -> None:
    verdict, changes = look_around(crowd=1000)
    assert (verdict.action, verdict.reason, verdict.wait, changes) == (DEFER, "crowded", DELAY, [])
    assert look_around(crowd=999)[0].reason == "new"
    assert look_around(crowd=1000, row=TripletRow(NOW - 5, NOW - 5))[0].reason == "early"
    assert look_around(crowd=1000, values=replace(DEFAULTS, network_limit=0))[0].reason == "new"
    assert look_around(crowd=1000, total=1000)[0].reason == "crowded"
    assert look_around(9, NOW - DELAY, crowd=1000)[0].reason == "pool"


def test_pools_can_be_switched_off() -> None:
    assert look_around(99, 0, values=replace(DEFAULTS, pool_networks=0))[0].reason == "new"


def test_a_full_table_lets_new_triplets_through_and_records_none() -> None:
    verdict, changes = look_around(total=1000)
    assert (verdict.action, verdict.reason, changes) == (ACCEPT, "full", [])
    assert look_around(total=999)[0].reason == "new"
    assert look_around(total=1000, row=TripletRow(NOW - 5, NOW - 5))[0].reason == "early"
    assert look_around(total=9999, values=replace(DEFAULTS, pending_limit=0))[0].reason == "new"


def test_nobody_looks_around_for_other_verdicts_or_without_a_reason() -> None:
    off = replace(DEFAULTS, pool_networks=0, pending_limit=0, network_limit=0, identity="no")
    assert made(Rows(), off)[1] == [ROWS]
    assert made(Rows(TripletRow(0, NOW, 0, 1, NOW)))[1] == [ROWS]
    waits = Rows(TripletRow(NOW - 9, NOW - 9))
    assert made(waits, replace(DEFAULTS, pool_networks=0, identity="no"))[1] == [ROWS]


# --- the first recipient of a message -------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "rules", "reason"),
    [
        (None, [], "message"),
        (TripletRow(NOW - 9, NOW - 9), [], "message"),
        (None, [rule("allow", kind="name")], "message"),
        (None, [rule("greylist")], "new"),
        (None, [rule("reject")], "rule"),
        (TripletRow(NOW - DELAY, NOW - DELAY), [], "retry"),
    ],
)
def test_a_deferral_that_no_rule_wants_falls_where_the_first_recipient_passed(
    row: TripletRow | None, rules: list[RuleRow], reason: str
) -> None:
    decision, _asked = made(Rows(row, None, rules), envelope=LATER, first_passed=True)
    assert decision.reason == reason
    unpassed, _asked = made(Rows(row, None, rules), envelope=LATER)
    assert unpassed.reason == (
        "retry" if reason == "retry" else "rule" if reason == "rule" else unpassed.reason
    )
    assert unpassed.reason != "message"


def test_what_passes_with_its_message_is_not_recorded() -> None:
    decision, asked = made(Rows(TripletRow(NOW - 9, NOW - 9)), envelope=LATER, first_passed=True)
    assert (decision.action, decision.changes, decision.opens_message) == (ACCEPT, [], False)
    assert asked == [ROWS, MESSAGE]


def test_a_recipient_that_is_not_told_of_a_message_is_the_only_one() -> None:
    alone = Envelope("spp", "192.0.2.1", b"a@example.org", b"b@example.net", first=False)
    decision, asked = made(Rows(), envelope=alone, first_passed=True)
    assert (decision.reason, MESSAGE in asked) == ("new", False)


def test_a_later_recipient_opens_no_message() -> None:
    known = Rows(TripletRow(0, NOW, 0, 1, NOW))
    assert made(known, NOT_KNOWN, envelope=FIRST)[0].opens_message
    assert not made(known, NOT_KNOWN, envelope=LATER)[0].opens_message


EXPECTED = RuleRow(b"key", "expect", "to:b@example.net", "allow", None)
NOT_KNOWN = replace(DEFAULTS, client_passes=0)


@pytest.mark.parametrize(
    ("rows", "pending", "reason", "opens"),
    [
        (Rows(TripletRow(0, NOW, 0, 1, NOW)), None, "known", True),
        (Rows(TripletRow(NOW - DELAY, NOW - DELAY)), None, "retry", True),
        (Rows(), Pending(3, NOW - DELAY), "pool", True),
        (Rows(None, None, [rule("allow")]), None, "rule", False),
        (Rows(None, None, (), EXPECTED), None, "expected", False),
        (Rows(), Pending(total=1000), "full", False),
        (Rows(), Pending(crowd=1000), "crowded", False),
        (Rows(), None, "new", False),
    ],
)
def test_only_what_passes_by_greylisting_opens_its_message(
    rows: Rows, pending: Pending | None, reason: str, opens: bool
) -> None:
    decision, _asked = made(rows, NOT_KNOWN, envelope=FIRST, pending=pending)
    assert (decision.reason, decision.opens_message) == (reason, opens)
    assert decision.verdict().opens_message == opens
    alone, _asked = made(rows, NOT_KNOWN, pending=pending)
    assert not alone.opens_message
    decision.unrecorded = "disk full"
    assert not decision.opens_message


def test_what_needs_no_look_up_opens_no_message() -> None:
    exempt = Envelope("spp", "192.0.2.1", b"a@b", b"c@d", "RELAYCLIENT", message=b"1")
    assert not made(Rows(), envelope=exempt)[0].opens_message


@pytest.mark.parametrize(
    ("passes", "client_passes", "opens"),
    [(None, 1, False), (None, 0, True), (None, 2, True), (1, 2, False)],
)
def test_who_makes_its_client_known_opens_no_message(
    passes: int | None, client_passes: int, opens: bool
) -> None:
    row = TripletRow(NOW - DELAY, NOW - DELAY)
    client = None if passes is None else ClientRow(NOW - 9, NOW - 9, passes)
    values = replace(DEFAULTS, client_passes=client_passes)
    decision, _asked = made(Rows(row, client), values, envelope=FIRST)
    assert (decision.reason, decision.opens_message) == ("retry", opens)


def test_a_known_client_that_a_rule_greylists_opens_no_message() -> None:
    row, client = TripletRow(0, NOW, 0, 1, NOW), ClientRow(NOW, NOW, 1)
    decision, _asked = made(Rows(row, client, [rule("greylist")]), envelope=FIRST)
    assert (decision.reason, decision.opens_message) == ("known", False)


@pytest.mark.parametrize(
    ("passed", "remembered"),
    [
        (None, False),
        (NOW, True),
        (NOW - unknown.MESSAGE_TIME, True),
        (NOW - unknown.MESSAGE_TIME - 1, False),
    ],
)
def test_a_message_is_remembered_for_a_moment(passed: int | None, remembered: bool) -> None:
    row = None if passed is None else unknown.message_row(None, passed).new
    assert row is None or isinstance(row, TripletRow)
    assert unknown.message_passed_recently(row, NOW) == remembered


@pytest.mark.parametrize(
    ("rows", "values", "reason", "final"),
    [
        (Rows(TripletRow(NOW - 10, NOW - 10)), DEFAULTS, "early", True),
        (Rows(TripletRow(NOW - 10, NOW - 10)), replace(DEFAULTS, strikes=5), "early", False),
        (Rows(TripletRow(NOW - 200, NOW - 200)), replace(DEFAULTS, strikes=5), "early", True),
        (Rows(TripletRow(NOW - 9999, NOW - 9999, 0, 1, NOW - 9999)), DEFAULTS, "known", True),
        (Rows(None, ClientRow(NOW - 9999, NOW - 9999, 1)), DEFAULTS, "client", True),
        (Rows(TripletRow(NOW - 400, NOW - 400)), DEFAULTS, "retry", False),
        (Rows(), DEFAULTS, "new", False),
    ],
)
def test_what_only_counts_is_final_before_it_is_written(
    rows: Rows, values: Values, reason: str, final: bool
) -> None:
    decision, _asked = made(rows, values)
    assert (decision.reason, decision.is_final_before_write) == (reason, final)


def test_what_opens_a_message_is_not_final_before_it_is_written() -> None:
    rows = Rows(TripletRow(NOW - 9999, NOW - 9999, 0, 1, NOW - 9999))
    assert not made(rows, envelope=FIRST)[0].is_final_before_write


def test_what_waits_since_the_future_must_be_recorded() -> None:
    decision, _asked = made(Rows(TripletRow(NOW + 99, NOW + 99)))
    assert (decision.reason, decision.needs_record, decision.is_final_before_write) == (
        "early",
        True,
        False,
    )
    assert not made(Rows(TripletRow(NOW - 9, NOW - 9)))[0].needs_record
    assert made(Rows())[0].needs_record


def test_what_is_remembered_counts_as_no_waiting_triplet() -> None:
    change = unknown.message_row(None, NOW)
    assert state(change.new) == {"first": NOW, "last": NOW, "early": 0, "passes": 1, "passed": NOW}
    assert (change.old, change.expires) == (None, NOW + unknown.MESSAGE_TIME)


# --- observing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "observed"),
    [
        (DEFAULTS, False),
        (replace(DEFAULTS, mode="observe"), True),
        (replace(DEFAULTS, observe_domains=("example.net",)), True),
        (replace(DEFAULTS, observe_domains=("example.com",)), False),
        (replace(DEFAULTS, observe_percent=100), True),
        (replace(DEFAULTS, observe_percent=policy.share("192.0.2.0/24")), False),
        (replace(DEFAULTS, observe_percent=policy.share("192.0.2.0/24") + 1), True),
    ],
)
@pytest.mark.parametrize(
    ("rows", "action", "reason", "wait"),
    [(Rows(), DEFER, "new", DELAY), (Rows(None, None, [rule("reject")]), REJECT, "rule", 0)],
)
def test_a_verdict_that_is_observed_accepts_and_tells(
    values: Values, observed: bool, rows: Rows, action: str, reason: str, wait: int
) -> None:
    verdict = decided(rows, values)[0]
    assert (verdict.action, verdict.observed) == ((ACCEPT, action) if observed else (action, ""))
    assert (verdict.reason, verdict.wait) == (reason, wait)


def test_an_acceptance_is_not_observed() -> None:
    verdict = decided(Rows(TripletRow(0, NOW, 0, 1, NOW)), replace(DEFAULTS, mode="observe"))[0]
    assert (verdict.action, verdict.observed) == (ACCEPT, "")


@pytest.mark.parametrize(("on_error", "observed"), [(ACCEPT, ""), (DEFER, "defer")])
def test_a_check_that_failed_is_observed_too(on_error: str, observed: str) -> None:
    values = replace(DEFAULTS, mode="observe", on_error=on_error)
    verdict = Decision(ENVELOPE, cast(Settings, values), NOW).failed("disk full")
    assert (verdict.action, verdict.observed, verdict.detail) == (
        ACCEPT,
        observed,
        "error=disk full",
    )


def test_a_check_whose_envelope_is_what_failed_has_a_verdict_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: object) -> None:
        raise RecursionError

    monkeypatch.setattr(policy, "triplet", fail)
    values = replace(DEFAULTS, observe_domains=("example.net",), on_error=DEFER)
    verdict = Decision(ENVELOPE, cast(Settings, values), NOW).failed("too deep")
    assert (verdict.action, verdict.reason, verdict.observed) == (DEFER, "error", "")


def test_the_share_of_a_network_is_stable_and_even() -> None:
    """The same in every release: else mail that was only observed is deferred after an upgrade."""
    assert [policy.share(network) for network in ("192.0.2.0/24", "2001:db8::/64")] == [23, 29]
    shares = [policy.share(f"10.{high}.{low}.0/24") for high in range(100) for low in range(100)]
    assert all(60 <= shares.count(percent) <= 140 for percent in range(100))


# --- how long a mail waited -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "pending", "reason", "delayed"),
    [
        (Rows(TripletRow(NOW - DELAY - 7, NOW - 9)), None, "retry", DELAY + 7),
        (Rows(TripletRow(NOW - 9, NOW - 9), ClientRow(NOW - 9, NOW - 9, 1)), None, "client", 9),
        (Rows(TripletRow(NOW - 9, NOW - 9), rules=[rule("allow")]), None, "rule", 9),
        (Rows(), Pending(3, NOW - 900, NOW - 100, 60), "pool", 900),
        (Rows(TripletRow(NOW - 9, NOW - 9)), Pending(3, NOW - 900, NOW - 9, 60), "pool", 900),
        (
            Rows(),
            Pending(1, NOW - 900, of_domain=NOW - 800, identity=Identity(source="spf")),
            "retry",
            800,
        ),
        # Nothing waited, or it waits on.
        (Rows(client=ClientRow(NOW - 9, NOW - 9, 1)), None, "client", 0),
        (Rows(TripletRow(0, NOW, 0, 1, NOW)), None, "known", 0),
        (Rows(TripletRow(NOW - 9, NOW - 9)), None, "early", 0),
        (Rows(TripletRow(NOW - 9, NOW - 9), rules=[rule("reject")]), None, "rule", 0),
        (Rows(TripletRow(0, 0)), None, "new", 0),
    ],
)
def test_the_verdict_that_ends_a_wait_tells_how_long_it_was(
    rows: Rows, pending: Pending | None, reason: str, delayed: int
) -> None:
    decision, _asked = made(rows, pending=pending)
    assert (decision.reason, decision.verdict().delayed) == (reason, delayed)


# --- steps that ask for what waits by themselves --------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        # Each is the first that wants to know what waits: those before it are off.
        ({"identity": "no", "learn_outbound": 60}, "correspondent"),
        ({"domain_passes": 1}, "domain"),
        ({"domain_passes": 0}, "retry"),
        ({"identity": "no", "pool_networks": 3}, "pool"),
        ({"identity": "no", "pool_networks": 0}, "crowded"),
        ({"identity": "no", "pool_networks": 0, "network_limit": 0}, "full"),
    ],
)
def test_whichever_step_comes_first_asks_what_waits_once(
    values: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(step for step in policy.STEPS if step.name != "provider")
    monkeypatch.setattr(policy, "STEPS", steps)
    known = DomainRow(NOW - 9, NOW - 9, 1)
    identity = Identity(known, source="spf", written=NOW - 9)
    pending = Pending(3, NOW - 900, NOW - 100, 60, 9999, 9999, NOW - 900, identity)
    decision, asked = made(Rows(), replace(DEFAULTS, **values), pending=pending)
    assert decision.reason == reason
    assert asked.count(PENDING) == 1
