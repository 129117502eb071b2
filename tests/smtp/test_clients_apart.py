"""Clients that tcprules sets apart: relay clients, clients that are not checked, and clients with
settings of their own.
"""

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, DEFERRED_421, DEFERRED_454, mail
from tests.smtp.mailhost import MailHost
from tests.support import both_ways, on_every_database

pytestmark = both_ways

RELAY = '127.0.0.2:allow,RELAYCLIENT=""\n:allow'
FIXING_RELAY = '127.0.0.2:allow,RELAYCLIENT="@fixme"\n:allow'


def test_a_relay_client_is_not_checked_where_only_smtpextfork_is_set(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck, rules=RELAY)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert mx.checks() == []
    assert "smtpd: relay client, and SMTPEXTFORKR is not set" in mx.log()


def test_a_relay_client_is_exempt_where_greycheck_is_in_smtpextforkr(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck, SMTPEXTFORKR=mx.greycheck, rules=RELAY)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert " accept reason=exempt client=192.0.2.2 " in mx.check()
    assert " by=RELAYCLIENT " in mx.check()


def test_only_the_smtpextforkr_list_is_run_for_a_relay_client(mx: MailHost) -> None:
    refuses = mx.script("refuses", "exit 100")
    server = mx.start(SMTPEXTFORK=mx.greycheck, SMTPEXTFORKR=refuses, rules=RELAY)
    server.play(mail("S: 554 sorry"), client="127.0.0.2")
    assert mx.checks() == []


def test_smtpextforkr_does_not_concern_an_ordinary_client(mx: MailHost) -> None:
    refuses = mx.script("refuses", "exit 100")
    server = mx.start(SMTPEXTFORKR=refuses, rules=RELAY)
    server.play(mail(ACCEPTED), client="127.0.0.1")


def test_a_relay_client_is_exempt_under_checkenv(mx: MailHost) -> None:
    server = mx.start(CHECKENV="", rules=RELAY)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert " accept reason=exempt client=192.0.2.2 " in mx.check()
    assert mx.count("triplet") == 0


def test_a_relay_client_with_a_suffix_is_exempt_under_checkenv(mx: MailHost) -> None:
    server = mx.start(CHECKENV="", rules=FIXING_RELAY)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert mx.reasons() == ["exempt"]
    assert " recipient=<bob@example.net@fixme> " in mx.check()


def test_a_relay_client_with_a_suffix_is_exempt_under_smtpextforkr(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORKR=mx.greycheck, rules=FIXING_RELAY)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert mx.reasons() == ["exempt"]
    assert " recipient=<bob@example.net@fixme> " in mx.check()


def test_an_ordinary_client_is_greylisted_beside_a_relay_client(mx: MailHost, hook: Hook) -> None:
    server = mx.start(rules=RELAY, **hook.variables)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    server.play(mail(hook.deferred), client="127.0.0.1")
    assert mx.reasons()[-1] == "new"


def test_checkenv_may_be_left_out_for_relay_clients(mx: MailHost) -> None:
    server = mx.start(rules='127.0.0.2:allow,RELAYCLIENT=""\n:allow,CHECKENV=""')
    server.play(mail(ACCEPTED), client="127.0.0.2")
    server.play(mail(DEFERRED_421), client="127.0.0.1")
    assert mx.reasons() == ["new"]


def test_smtpextfork_may_be_switched_on_by_tcprules(mx: MailHost) -> None:
    server = mx.start(rules=f'127.0.0.2:allow,SMTPEXTFORK="{mx.greycheck}"\n:allow')
    server.play(mail(ACCEPTED), client="127.0.0.1")
    server.play(mail(DEFERRED_454), client="127.0.0.2")
    assert mx.reasons() == ["new"]


def test_greycheck_off_frees_one_client(mx: MailHost, hook: Hook) -> None:
    server = mx.start(rules='127.0.0.2:allow,GREYCHECK="off"\n:allow', **hook.variables)
    server.play(mail(ACCEPTED), client="127.0.0.2")
    server.play(mail(hook.deferred), client="127.0.0.1")
    assert mx.reasons() == ["exempt", "new"]


@on_every_database
def test_one_client_waits_longer(mx: MailHost, hook: Hook) -> None:
    server = mx.start(rules='127.0.2.:allow,GREYCHECK_DELAY="1h"\n:allow', **hook.variables)
    server.play(mail(hook.deferred), client="127.0.0.1")
    server.play(mail(hook.deferred), client="127.0.2.1")
    mx.age(300)
    server.play(mail(ACCEPTED), client="127.0.0.1")
    server.play(mail(hook.deferred), client="127.0.2.1")
    mx.age(3300)
    server.play(mail(ACCEPTED), client="127.0.2.1")
    assert mx.reasons() == ["new", "new", "retry", "early", "retry"]


def test_a_wrong_setting_for_one_client_stops_no_mail(mx: MailHost, hook: Hook) -> None:
    server = mx.start(rules='127.0.2.:allow,GREYCHECK_DELAY="soon"\n:allow', **hook.variables)
    server.play(mail(hook.deferred), client="127.0.2.1")
    mx.age(300)
    server.play(mail(ACCEPTED), client="127.0.2.1")
    assert mx.reasons() == ["new", "retry"]
    warning, verdict = mx.checks()[:2]
    assert warning.startswith("greycheck: warning GREYCHECK_DELAY: delay = soon: not a duration")
    assert " wait=300 " in verdict
