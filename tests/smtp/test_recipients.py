"""Null senders, and messages to several recipients."""

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, mail
from tests.smtp.mailhost import MailHost
from tests.support import both_ways, on_every_database

pytestmark = [on_every_database, both_ways]

TEN = [f"user{number}@example.net" for number in range(10)]


def to_ten(reply: str) -> str:
    """A message to ten recipients, each answered with REPLY."""
    asked = "\n".join(f"C: RCPT TO:<{recipient}>\nS: {reply}" for recipient in TEN)
    return f"""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        {asked}
    """


TEN_AT_ONCE = "\n".join(
    ["C: MAIL FROM:<alice@example.org>", *(f"C: RCPT TO:<{user}>" for user in TEN), "C: DATA"]
)


def test_the_null_sender_is_greylisted(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred_bounce, sender=""))
    mx.age(300)
    server.play(mail(ACCEPTED, sender=""))
    assert mx.reasons() == ["new", "retry"]
    assert all(" sender=<> " in line for line in mx.checks())


def test_a_quoted_nothing_is_the_null_sender(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred_bounce, sender=""))
    mx.age(300)
    server.play(mail(ACCEPTED, sender='""'))
    assert mx.reasons() == ["new", "retry"]


def test_the_null_sender_may_be_accepted(mx: MailHost, hook: Hook) -> None:
    server = mx.start(GREYCHECK_NULL_SENDER="accept", **hook.variables)
    server.play(mail(ACCEPTED, sender=""))
    assert mx.reasons() == ["exempt"]
    assert " by=null_sender " in mx.check()


def test_an_empty_recipient_is_greylisted(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred_bounce, sender="", recipient=""))
    assert mx.reasons() == ["new"]


def test_smtpextfork_defers_ten_recipients_and_lets_all_pass_later(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play(to_ten("454"))
    mx.age(300)
    server.play(to_ten("250"))
    assert mx.reasons() == ["new"] * 10 + ["retry"] + ["client"] * 9


def test_smtpextfork_lets_each_recipient_wait_where_clients_are_not_remembered(
    mx: MailHost,
) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck, GREYCHECK_CLIENT_PASSES="0")
    server.play(to_ten("454"))
    mx.age(300)
    server.play(to_ten("250"))
    assert mx.reasons() == ["new"] * 10 + ["retry"] * 10


def test_checkenv_closes_at_the_first_of_ten_recipients(mx: MailHost) -> None:
    server = mx.start(CHECKENV="")
    server.play(f"""
        S: 220
        C: EHLO client.example.org
        S: 250
        {TEN_AT_ONCE}
        S: 250
        S: 421 temporary envelope failure
        S: closed
    """)
    assert mx.reasons() == ["new"]


def test_checkenv_lets_ten_recipients_pass_at_the_second_attempt(mx: MailHost) -> None:
    server = mx.start(CHECKENV="")
    server.play(mail("S: 421\nS: closed", recipient=TEN[0]))
    mx.age(300)
    server.play(to_ten("250"))
    assert mx.reasons() == ["new", "retry"] + ["client"] * 9


def test_smtpextfork_refuses_only_the_recipient_that_is_new(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck, GREYCHECK_CLIENT_PASSES="0")
    server.play(mail("S: 454"))
    mx.age(300)
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<carol@example.net>
        S: 454
        C: RCPT TO:<bob@example.net>
        S: 250
        C: DATA
        S: 354
        C: .
        S: 250
        C: QUIT
        S: 221
        S: closed
    """)
    delivered = [line for line in mx.log() if "delivered" in line]
    assert delivered == ["smtpd: delivered from <alice@example.org> to <bob@example.net>"]


def test_the_same_recipient_twice_is_one_attempt(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        C: RCPT TO:<bob@example.net>
        S: 250
        S: 454
        S: 454
        C: QUIT
        S: 221
        S: closed
    """)
    assert mx.rows("SELECT early_attempts FROM triplet") == [(0,)]


def test_the_case_of_an_address_does_not_matter(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(300)
    server.play(mail(ACCEPTED, sender="Alice@EXAMPLE.org", recipient="BOB@example.net."))
    assert mx.reasons() == ["new", "retry"]


def test_a_retry_with_another_batv_tag_passes(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred, sender="prvs=1234abcd01=alice@example.org"))
    mx.age(300)
    server.play(mail(ACCEPTED, sender="prvs=5678abcd02=alice@example.org"))
    assert mx.reasons() == ["new", "retry"]
