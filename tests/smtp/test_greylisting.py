"""The life of a triplet, told by both hooks."""

import pytest

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, DEFERRED_421, mail
from tests.smtp.mailhost import MailHost, wait_for
from tests.support import both_ways, on_every_database

pytestmark = [on_every_database, both_ways]

DELAY = 300
WINDOW = 48 * 3600
LIFETIME = 36 * 24 * 3600


def test_smtpextfork_defers_the_first_attempt_and_the_session_goes_on(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<bob@example.net>
        S: 454 sorry, temporary envelope failure
        C: DATA
        S: 503
        C: QUIT
        S: 221
        S: closed
    """)
    assert (
        " defer reason=new client=192.0.2.1 sender=<alice@example.org> recipient=<bob@example.net> "
        in mx.check()
    )
    assert " wait=300 hook=smtpextfork " in mx.check()


def test_checkenv_defers_the_first_attempt_and_the_session_ends(mx: MailHost) -> None:
    server = mx.start(CHECKENV="")
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<bob@example.net>
        S: 421 temporary envelope failure
        S: closed
    """)
    assert (
        " defer reason=new client=192.0.2.1 sender=<alice@example.org> recipient=<bob@example.net> "
        in mx.check()
    )
    assert " wait=300 hook=checkenv " in mx.check()


def test_an_early_retry_is_deferred_again(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY // 2)
    server.play(mail(hook.deferred))
    assert mx.reasons() == ["new", "early"]


def test_an_early_retry_does_not_prolong_the_wait(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY // 2)
    server.play(mail(hook.deferred))
    mx.age(DELAY // 2)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "early", "retry"]


def test_a_retry_after_the_delay_passes(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_what_passed_once_passes_again(mx: MailHost, hook: Hook) -> None:
    server = mx.start(GREYCHECK_CLIENT_PASSES="0", **hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    mx.age(LIFETIME // 2)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry", "known"]


def test_the_other_mail_of_a_client_that_passed_is_not_deferred(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    server.play(mail(ACCEPTED, sender="carol@example.com", recipient="dave@example.net"))
    assert mx.reasons() == ["new", "retry", "client"]


def test_a_retry_from_the_same_network_passes(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred), client="127.0.0.1")
    mx.age(DELAY)
    server.play(mail(ACCEPTED), client="127.0.0.99")
    assert mx.reasons() == ["new", "retry"]


def test_a_retry_from_another_network_is_new(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred), client="127.0.0.1")
    mx.age(DELAY)
    server.play(mail(hook.deferred), client="127.0.1.1")
    assert mx.reasons() == ["new", "new"]


@pytest.mark.parametrize(
    "change", [{"sender": "carol@example.org"}, {"recipient": "carol@example.net"}]
)
def test_another_sender_or_recipient_is_new(
    mx: MailHost, hook: Hook, change: dict[str, str]
) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY)
    server.play(mail(hook.deferred, **change))
    assert mx.reasons() == ["new", "new"]


def test_a_retry_after_the_window_is_new(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(WINDOW + 1)
    server.play(mail(hook.deferred))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "new", "retry"]


def test_an_unused_triplet_expires(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(WINDOW + 1)
    mx.expire()
    assert mx.count("triplet") == 0
    server.play(mail(hook.deferred))
    assert mx.reasons() == ["new", "new"]


def test_a_used_triplet_outlives_its_window(mx: MailHost) -> None:
    server = mx.start(CHECKENV="", GREYCHECK_CLIENT_PASSES="0")
    server.play(mail(DEFERRED_421))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    mx.age(WINDOW + 1)
    mx.expire()
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry", "known"]


def test_a_used_triplet_and_its_client_expire_after_their_lifetime(
    mx: MailHost, hook: Hook
) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    mx.age(LIFETIME + 1)
    mx.expire()
    assert (mx.count("triplet"), mx.count("client")) == (0, 0)
    server.play(mail(hook.deferred))
    assert mx.reasons() == ["new", "retry", "new"]


def test_both_hooks_speak_of_the_same_triplet(mx: MailHost) -> None:
    mx.start(CHECKENV="").play(mail(DEFERRED_421))
    mx.age(DELAY)
    mx.start(SMTPEXTFORK=mx.greycheck).play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]
    assert mx.count("triplet") == 1


def test_a_retry_that_passes_both_hooks_is_counted_once(mx: MailHost) -> None:
    server = mx.start(CHECKENV="", SMTPEXTFORK=mx.greycheck, GREYCHECK_CLIENT_PASSES="2")
    server.play(mail(DEFERRED_421))
    mx.age(DELAY)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry", "known"]
    assert mx.rows("SELECT early_attempts, passes FROM triplet") == [(0, 1)]
    assert mx.rows("SELECT passes FROM client") == [(1,)]


def test_an_early_retry_is_counted_once_where_both_hooks_are_on(mx: MailHost) -> None:
    server = mx.start(CHECKENV="", SMTPEXTFORK=mx.greycheck)
    server.play(mail(DEFERRED_421))
    mx.age(DELAY // 2)
    server.play(mail(DEFERRED_421))
    # The resident answers before it counts.
    wait_for(lambda: mx.rows("SELECT early_attempts FROM triplet") == [(1,)])


def test_a_second_check_of_the_same_attempt_is_not_counted(mx: MailHost) -> None:
    tolerant = mx.script("tolerant", f"{mx.greycheck}", "exit 0")
    server = mx.start(SMTPEXTFORK=f"{tolerant},{mx.greycheck}")
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<bob@example.net>
        S: 454
    """)
    assert mx.reasons() == ["new", "early"]
    assert mx.rows("SELECT early_attempts FROM triplet") == [(0,)]
