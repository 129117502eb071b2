"""RCPTCHECK: 421 and the end of the session for a deferral, 553 for one recipient that is refused
(docs/hooks.rst#rcptcheck).
"""

import os
import signal

import pytest

from tests.smtp.dialogue import ACCEPTED, DEFERRED_421_RCPTCHECK, mail
from tests.smtp.mailhost import MailHost, wait_for
from tests.smtp.test_faults import session, writing
from tests.support import both_ways, on_every_database

pytestmark = both_ways

REFUSED = """\
S: 553 sorry, this recipient is not valid
C: QUIT
S: 221
S: closed"""

FAILED = "S: 421 unable to execute recipient check (#4.3.0)\nS: closed"


# --- what the parent does -------------------------------------------------------------------------


def test_100_refuses_one_recipient_and_the_session_goes_on(bare_mx: MailHost) -> None:
    judge = bare_mx.script("judge", 'exit "${RECIPIENT%@*}"')
    bare_mx.start(RCPTCHECK=judge).play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<100@example.net>
        S: 553 sorry
        C: RCPT TO:<0@example.net>
        S: 250
        C: DATA
        S: 354
        C: .
        S: 250
    """)
    delivered = [line for line in bare_mx.log() if "delivered" in line]
    assert delivered == ["smtpd: delivered from <alice@example.org> to <0@example.net>"]


def test_111_ends_the_session(bare_mx: MailHost) -> None:
    bare_mx.start(RCPTCHECK=bare_mx.script("judge", "exit 111")).play(mail(DEFERRED_421_RCPTCHECK))


@pytest.mark.parametrize("how", ["exit 120", "kill -9 $$"])
def test_a_program_that_fails_ends_the_session(bare_mx: MailHost, how: str) -> None:
    bare_mx.start(RCPTCHECK=bare_mx.script("judge", how)).play(mail(FAILED))


def test_a_program_that_is_not_there_ends_the_session(bare_mx: MailHost) -> None:
    bare_mx.start(RCPTCHECK=f"{bare_mx.place}/nothing").play(mail(FAILED))


@pytest.mark.parametrize("code", [0, 1, 99, 101, 127, 255])
def test_every_other_code_accepts(bare_mx: MailHost, code: int) -> None:
    bare_mx.start(RCPTCHECK=bare_mx.script("judge", f"exit {code}")).play(mail(ACCEPTED))


def test_what_the_program_prints_goes_to_the_log(bare_mx: MailHost) -> None:
    tells = bare_mx.script("tells", 'echo "$# arguments, <$SENDER> <$RECIPIENT>"')
    bare_mx.start(RCPTCHECK=tells).play(mail(ACCEPTED))
    assert "0 arguments, <alice@example.org> <bob@example.net>" in bare_mx.log()


# --- greycheck ------------------------------------------------------------------------------------


@on_every_database
def test_a_mail_is_deferred_and_its_retry_passes(mx: MailHost) -> None:
    server = mx.start(RCPTCHECK=mx.rcptcheck)
    server.play(mail(DEFERRED_421_RCPTCHECK))
    mx.age(300)
    server.play(mail(ACCEPTED))
    server.play(mail(ACCEPTED, recipient="carol@example.net"))
    assert mx.reasons() == ["new", "retry", "client"]
    assert all(" hook=rcptcheck " in line for line in mx.checks())


def test_a_rule_refuses_one_recipient_for_good(mx: MailHost) -> None:
    mx.command("reject", "to:bob@example.net")
    server = mx.start(RCPTCHECK=mx.rcptcheck)
    server.play(mail(REFUSED))
    assert mx.check().startswith("greycheck: reject reason=rule ")


def test_a_relay_client_is_exempt(mx: MailHost) -> None:
    server = mx.start(RCPTCHECK=mx.rcptcheck, rules='127.0.0.2:allow,RELAYCLIENT=""\n:allow')
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert " by=RELAYCLIENT " in mx.check()
    assert mx.count("triplet") == 0


@on_every_database
def test_ten_pipelined_recipients_pass_at_the_second_attempt(mx: MailHost) -> None:
    server = mx.start(RCPTCHECK=mx.rcptcheck)
    recipients = [f"user{number}@example.net" for number in range(10)]
    asked = "\n".join(f"C: RCPT TO:<{recipient}>" for recipient in recipients)
    begun = (
        f"S: 220\nC: EHLO client.example.org\nS: 250\nC: MAIL FROM:<alice@example.org>\n{asked}\nC:"
        " DATA\nS: 250\n"
    )
    server.play(f"{begun}S: 421 unable to verify recipient\nS: closed")
    mx.age(300)
    server.play(begun + "S: 250\n" * 10 + "S: 354\nC: .\nC: QUIT\nS: 250\nS: 221\nS: closed")
    assert mx.reasons() == ["new", "retry"] + ["client"] * 9


@pytest.mark.parametrize(
    ("on_error", "outcome"), [("accept", ACCEPTED), ("defer", DEFERRED_421_RCPTCHECK)]
)
def test_the_deadline_is_answered_by_on_error(mx: MailHost, on_error: str, outcome: str) -> None:
    server = mx.start(GREYCHECK_DEADLINE="1s", GREYCHECK_ON_ERROR=on_error, RCPTCHECK=mx.rcptcheck)
    with writing(mx.child.database):
        server.play(mail(outcome))
    assert mx.reasons() == ["error"]


def test_a_check_whose_session_was_killed_still_ends(mx: MailHost) -> None:
    starts = mx.script("starts", "echo started >&2", f"exec {mx.rcptcheck}")
    server = mx.start(GREYCHECK_DEADLINE="1s", RCPTCHECK=starts)
    with writing(mx.child.database):
        server.play("S: 220\nC: MAIL FROM:<alice@example.org>\nC: RCPT TO:<bob@example.net>")
        wait_for(lambda: "started" in mx.log())
        os.kill(session(mx), signal.SIGKILL)
        wait_for(lambda: mx.reasons() == ["error"])


@pytest.mark.parametrize(
    ("on_error", "outcome"), [("accept", ACCEPTED), ("defer", DEFERRED_421_RCPTCHECK)]
)
def test_the_launcher_answers_where_the_package_is_gone(
    mx: MailHost, on_error: str, outcome: str
) -> None:
    server = mx.start(
        GREYCHECK_ON_ERROR=on_error, RCPTCHECK=mx.without_package("greycheck-rcptcheck")
    )
    server.play(mail(outcome))
    assert mx.reasons() == ["error"]
