"""Strikes, pools, a full table and observing, through the real child: patterns that operators
reported against other greylisters.
"""

import pytest

from tests.support import ACCEPTED, DEFERRED, REJECTED, Child, on_every_database, with_every_driver

# --- pools ----------------------------------------------------------------------------------------


@with_every_driver
def test_outlook_from_another_network_at_each_of_eight_attempts_passes_at_the_fourth(
    child: Child,
) -> None:
    verdicts = []
    for attempt in range(8):
        verdicts.append(child.smtpextfork(client=f"40.{92 + attempt}.0.{7 + attempt}").verdict)
        child.age(600)
    assert verdicts == [(DEFERRED, "new")] * 3 + [(ACCEPTED, "pool")] * 5
    assert child.smtpextfork(client="40.95.0.10", recipient=b"carol@example.net").verdict == (
        ACCEPTED,
        "client",
    )


@on_every_database
def test_a_pool_that_tries_too_fast_waits_for_the_delay(child: Child) -> None:
    for attempt in range(6):
        assert child.smtpextfork(client=f"40.{92 + attempt}.0.7").code == DEFERRED
        child.age(40)
    child.age(100)
    assert child.smtpextfork(client="40.200.0.7").verdict == (ACCEPTED, "pool")


@on_every_database
def test_two_sendgrid_hosts_in_turn_pass_at_the_third_attempt(child: Child) -> None:
    hosts = ["149.72.1.1", "167.89.1.1"]
    verdicts = []
    for attempt in range(5):
        verdicts.append(child.smtpextfork(client=hosts[attempt % 2]).verdict)
        child.age(400)
    assert verdicts == [(DEFERRED, "new")] * 2 + [(ACCEPTED, "retry")] * 2 + [(ACCEPTED, "client")]


@on_every_database
def test_a_botnet_that_sends_one_sender_to_many_recipients_once_each_does_not_profit(
    child: Child,
) -> None:
    for number in range(30):
        ran = child.smtpextfork(client=f"10.0.{number}.1", recipient=b"user%d@example.net" % number)
        assert ran.verdict == (DEFERRED, "new")
        child.age(100)


@on_every_database
def test_bounces_from_everywhere_are_no_pool(child: Child) -> None:
    for number in range(8):
        assert child.smtpextfork(client=f"10.0.{number}.1", sender=b"").verdict == (DEFERRED, "new")
        child.age(400)


@on_every_database
def test_what_waited_longer_than_the_retry_window_makes_no_pool(child: Child) -> None:
    for number in range(3):
        child.smtpextfork(client=f"10.0.{number}.1")
    child.age(86402)
    assert child.smtpextfork(client="10.0.9.1").verdict == (DEFERRED, "new")


# --- strikes --------------------------------------------------------------------------------------

# A retry within 70 seconds is a strike, and none is late enough to pass.
HASTY = {"GREYCHECK_STRIKE_INTERVAL": "70s", "GREYCHECK_DELAY": "1h"}


@on_every_database
def test_a_client_that_hammers_is_refused(any_child: Child) -> None:
    any_child.settings |= HASTY | {"GREYCHECK_STRIKES": "3"}
    verdicts = []
    for _attempt in range(5):
        verdicts.append(any_child.smtpextfork().verdict)
        any_child.age(30)
    assert verdicts == [
        (DEFERRED, "new"),
        (DEFERRED, "early"),
        (DEFERRED, "early"),
        (REJECTED, "strikes"),
        (REJECTED, "strikes"),
    ]
    assert any_child.smtpextfork(recipient=b"another@example.net").verdict == (REJECTED, "strikes")
    assert any_child.smtpextfork(client="192.0.2.2").verdict == (DEFERRED, "early")


@on_every_database
def test_both_hooks_together_strike_once(child: Child) -> None:
    child.settings |= HASTY | {"GREYCHECK_STRIKES": "2"}
    codes = []
    for _attempt in range(3):
        codes += [child.checkenv().code, child.smtpextfork().code]
        child.age(30)
    assert codes == [DEFERRED] * 4 + [REJECTED] * 2


@on_every_database
def test_a_struck_client_is_taken_back_after_its_time(child: Child) -> None:
    child.settings |= HASTY | {"GREYCHECK_STRIKES": "1", "GREYCHECK_STRIKE_TIME": "2h"}
    child.smtpextfork()
    child.age(30)
    assert child.smtpextfork().verdict == (REJECTED, "strikes")
    child.age(7202)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")


@on_every_database
def test_without_the_setting_nobody_is_struck(child: Child) -> None:
    for _attempt in range(5):
        assert child.smtpextfork().code == DEFERRED
        child.age(10)
    assert child.rows("SELECT count(*) FROM client") == [(0,)]


# --- a full table ---------------------------------------------------------------------------------


@on_every_database
def test_a_table_that_is_full_takes_no_more_and_lets_mail_through(any_child: Child) -> None:
    any_child.settings |= {"GREYCHECK_PENDING_LIMIT": "3"}
    for number in range(3):
        assert any_child.smtpextfork(sender=b"%d@example.org" % number).verdict == (DEFERRED, "new")
    assert any_child.smtpextfork(sender=b"3@example.org").verdict == (ACCEPTED, "full")
    assert any_child.smtpextfork(sender=b"0@example.org").verdict == (DEFERRED, "early")
    any_child.age(300)
    assert any_child.smtpextfork(sender=b"0@example.org").verdict == (ACCEPTED, "retry")
    assert any_child.rows("SELECT count(*) FROM triplet") == [(3,)]


# --- observing ------------------------------------------------------------------------------------


@on_every_database
def test_observing_records_and_logs_and_accepts(any_child: Child) -> None:
    any_child.settings |= {"GREYCHECK_MODE": "observe"}
    ran = any_child.smtpextfork()
    assert ran.verdict == (ACCEPTED, "new")
    assert ran.log.startswith("greycheck: accept reason=new ")
    assert " wait=300 observed=defer " in ran.log
    any_child.age(300)
    assert any_child.smtpextfork().verdict == (ACCEPTED, "retry")
    assert any_child.rows("SELECT passes FROM triplet") == [(1,)]


@on_every_database
@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        (b"bob@Example.NET.", ACCEPTED),
        (b"bob@sub.example.net", DEFERRED),
        (b"bob@example.com", DEFERRED),
    ],
)
def test_observing_can_be_for_recipient_domains(child: Child, recipient: bytes, code: int) -> None:
    ran = child.checkenv(recipient=recipient, GREYCHECK_OBSERVE_DOMAINS="example.org, example.NET")
    assert ran.verdict == (code, "new")


def test_observing_can_be_for_a_share_of_clients_which_stays_the_same(child: Child) -> None:
    networks = [f"10.0.{number}.1" for number in range(20)]
    first = [
        child.smtpextfork(client=client, GREYCHECK_OBSERVE_PERCENT="50").code for client in networks
    ]
    again = [
        child.smtpextfork(client=client, GREYCHECK_OBSERVE_PERCENT="50").code for client in networks
    ]
    assert first == again
    assert {ACCEPTED, DEFERRED} == set(first)
    less = [
        child.smtpextfork(client=client, GREYCHECK_OBSERVE_PERCENT="20").code for client in networks
    ]
    assert all(code == ACCEPTED for code, few in zip(first, less, strict=True) if few == ACCEPTED)


def test_an_error_is_observed_like_any_verdict(child: Child) -> None:
    ran = child.smtpextfork(
        GREYCHECK_DATABASE="/nonexistent/greycheck.db",
        GREYCHECK_ON_ERROR="defer",
        GREYCHECK_MODE="observe",
    )
    assert ran.verdict == (ACCEPTED, "error")
    assert " observed=defer " in ran.log
