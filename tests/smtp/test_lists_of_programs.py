"""SMTPEXTFORK's list of programs, with greycheck among others, and the words of its refusals."""

from tests.smtp.dialogue import ACCEPTED, DEFERRED_454, mail
from tests.smtp.mailhost import MailHost
from tests.support import both_ways

pytestmark = both_ways

REFUSED = """\
S: 554 sorry, permanent envelope failure due to local policy
C: QUIT
S: 221
S: closed"""


def test_greycheck_is_asked_after_a_program_that_accepts(mx: MailHost) -> None:
    accepts = mx.script("accepts", "exit 0")
    server = mx.start(SMTPEXTFORK=f"{accepts},{mx.greycheck}")
    server.play(mail(DEFERRED_454))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_greycheck_is_asked_after_a_program_that_answers_nonsense(mx: MailHost) -> None:
    nonsense = mx.script("nonsense", "exit 3")
    server = mx.start(SMTPEXTFORK=f"{nonsense},{mx.greycheck}")
    server.play(mail(DEFERRED_454))
    assert f"smtpd: unexpected code 3 from {nonsense}" in mx.log()
    assert mx.reasons() == ["new"]


def test_greycheck_is_not_asked_after_a_program_that_refuses(mx: MailHost) -> None:
    refuses = mx.script("refuses", "exit 100")
    server = mx.start(SMTPEXTFORK=f"{refuses},{mx.greycheck}")
    server.play(mail(REFUSED))
    assert mx.checks() == []


def test_a_program_after_greycheck_is_not_asked_about_deferred_mail(mx: MailHost) -> None:
    refuses = mx.script("refuses", "echo asked >&2", "exit 100")
    server = mx.start(SMTPEXTFORK=f"{mx.greycheck},{refuses}")
    server.play(mail(DEFERRED_454))
    assert "asked" not in mx.log()


def test_a_program_after_greycheck_may_still_refuse(mx: MailHost) -> None:
    refuses = mx.script("refuses", "exit 100")
    server = mx.start(SMTPEXTFORK=f"{mx.greycheck},{refuses}")
    server.play(mail(DEFERRED_454))
    mx.age(300)
    server.play(mail(REFUSED))
    assert mx.reasons() == ["new", "retry"]


def test_greycheck_never_gives_an_unexpected_code(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    server.play(mail(DEFERRED_454))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert not [line for line in mx.log() if "unexpected" in line]


def test_another_checker_sees_the_envelope_that_greycheck_sees(mx: MailHost) -> None:
    tells = mx.script(
        "tells", 'echo "told of $REMOTEMF, $REMOTERCPT, $REMOTEHELO by $TCPREMOTEIP" >&2'
    )
    server = mx.start(SMTPEXTFORK=f"{tells},{mx.greycheck}")
    server.play(mail(DEFERRED_454))
    assert "told of alice@example.org, bob@example.net, client.example.org by 192.0.2.1" in mx.log()


def test_the_build_that_quits_as_soon_as_possible_closes_after_a_deferral(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck, XF_QUITASAP="")
    server.play("""
        S: 220
        C: HELO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<bob@example.net>
        S: 454 sorry, temporary envelope failure
        S: closed
    """)
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_the_text_of_a_deferral_comes_from_tcprules(mx: MailHost) -> None:
    server = mx.start(
        SMTPEXTFORK=mx.greycheck, rules=':allow,454SMTPEXTFORK="greylisted: come back in 5 minutes"'
    )
    server.play(mail("S: 454 greylisted: come back in 5 minutes"))
    assert mx.reasons() == ["new"]


def test_the_text_of_a_refusal_comes_from_the_environment(mx: MailHost) -> None:
    refuses = mx.script("refuses", "exit 100")
    server = mx.start(SMTPEXTFORK=f"{mx.greycheck},{refuses}", **{"554SMTPEXTFORK": "not here"})
    server.play(mail(DEFERRED_454))
    mx.age(300)
    server.play(mail("S: 554 not here"))
