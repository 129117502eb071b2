"""The first mail makes the store, where that is an SQLite file."""

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import mail
from tests.smtp.mailhost import MailHost
from tests.smtp.test_many_sessions import play_at_once


def test_the_first_mail_makes_the_store(bare_mx: MailHost, hook: Hook) -> None:
    server = bare_mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    assert bare_mx.reasons() == ["new"]
    assert bare_mx.count("triplet") == 1


def test_many_first_mails_at_once_make_one_store(bare_mx: MailHost) -> None:
    server = bare_mx.start(SMTPEXTFORK=bare_mx.greycheck)
    play_at_once(
        server, [mail("S: 454", sender=f"user{number}@example.org") for number in range(8)]
    )
    assert bare_mx.reasons() == ["new"] * 8
    assert bare_mx.count("triplet") == 8
