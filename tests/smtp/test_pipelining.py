"""Pipelined groups: nothing of what the client sends may be swallowed by a checker."""

from tests.smtp.dialogue import ACCEPTED, DEFERRED_421, mail
from tests.smtp.mailhost import MailHost, wait_for
from tests.support import both_ways

pytestmark = both_ways

# What qmail-smtpd reads at once, in bytes.
BUFFER = 1024


def test_a_group_longer_than_the_buffer_is_answered_completely_and_in_order(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    rounds = 30
    asked = "\n".join(
        f"C: RCPT TO:<somebody-with-a-long-name-{number}@example.net>\nC: NOOP\nC: HELP\nC: RCPT TO"
        for number in range(rounds)
    )
    assert len(asked) > 2 * BUFFER
    answered = "S: 454\nS: 250\nS: 502\nS: 555\n" * rounds
    server.play(f"""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        {asked}
        C: QUIT
        S: 250
        {answered}
        S: 221
        S: closed
    """)
    assert mx.reasons() == ["new"] * rounds
    assert mx.count("triplet") == rounds


def test_a_known_client_may_send_a_message_in_two_writes(mx: MailHost) -> None:
    server = mx.start(CHECKENV="")
    server.play(mail(DEFERRED_421))
    mx.age(300)
    server.play(mail(ACCEPTED))
    server.play("""
        S: 220
        C: EHLO client.example.org
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        C: RCPT TO:<carol@example.net>
        C: DATA
        S: 250
        S: 250
        S: 250
        S: 250
        S: 354
        C: Subject: hello
        C:
        C: Hello.
        C: .
        C: QUIT
        S: 250
        S: 221
        S: closed
    """)
    assert mx.reasons() == ["new", "retry", "client", "client"]


def test_a_second_message_in_the_same_session_is_checked_too(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        C: RSET
        C: MAIL FROM:<carol@example.org>
        C: RCPT TO:<bob@example.net>
        C: QUIT
        S: 250
        S: 454
        S: 250
        S: 250
        S: 454
        S: 221
        S: closed
    """)
    assert mx.rows("SELECT sender FROM triplet ORDER BY sender") == [
        ("alice@example.org",),
        ("carol@example.org",),
    ]


def test_the_rest_of_a_group_is_checked_after_the_client_disconnected(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        C: RCPT TO:<carol@example.net>
        C: RCPT TO:<dave@example.net>
    """)
    wait_for(lambda: len(mx.checks()) == 3)
    assert mx.count("triplet") == 3


def test_what_was_checked_after_a_disconnect_counts_as_the_first_attempt(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play("S: 220\nC: MAIL FROM:<alice@example.org>\nC: RCPT TO:<bob@example.net>")
    wait_for(lambda: len(mx.checks()) == 1)
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_a_session_ends_when_its_client_has_gone(mx: MailHost) -> None:
    server = mx.start(CHECKENV="")
    server.play("S: 220\nC: MAIL FROM:<alice@example.org>\nC: RCPT TO:<bob@example.net>")
    wait_for(lambda: any(line.startswith("tcpserver: end ") for line in mx.log()))
    assert mx.reasons() == ["new"]


def test_a_session_ends_quietly_when_its_client_leaves_a_long_group_behind(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    longer_than_several_reads = "\n".join(["C: NOOP"] * BUFFER)
    server.play(f"""
        S: 220
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        {longer_than_several_reads}
    """)
    wait_for(lambda: any(line.startswith("tcpserver: end ") for line in mx.log()))
    assert mx.reasons() == ["new"]
