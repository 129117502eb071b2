"""qmail-spp: a plugin that says what becomes of a recipient (docs/hooks.rst#qmail-spp), and RFC
6647's first recipient.
"""

import os
import signal

import pytest

from tests.smtp.dialogue import ACCEPTED, DEFERRED_451, DEFERRED_AT_DATA, mail
from tests.smtp.mailhost import MailHost, wait_for
from tests.smtp.test_faults import locked, session, writing
from tests.support import both_ways, on_every_database, one_way

pytestmark = both_ways

BEGUN = """\
S: 220
C: EHLO client.example.org
S: 250
"""

TAKEN = """\
C: DATA
S: 354
C: .
S: 250
"""

LEFT = "C: QUIT\nS: 221\nS: closed"


def message(*answers: tuple[str, str], sender: str = "alice@example.org") -> str:
    """The commands up to DATA of a message to recipients at example.net, each with the reply to
    it.
    """
    asked = "\n".join(
        f"C: RCPT TO:<{recipient}@example.net>\nS: {reply}" for recipient, reply in answers
    )
    return f"C: MAIL FROM:<{sender}>\nS: 250\n{asked}\n"


# --- what the parent does -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "reply"),
    [
        ("E451 not now (#4.3.0)", "451 not now (#4.3.0)"),
        ("E553 never (#5.7.1)", "553 never (#5.7.1)"),
        ("", "250 ok"),
        ("N", "250 ok"),
        ("HX-Spam: no", "250 ok"),
    ],
)
def test_a_plugin_refuses_one_recipient_or_none(bare_mx: MailHost, says: str, reply: str) -> None:
    judge = bare_mx.script(
        "judge", f'test "$SMTPRCPTTO" = bob@example.net || exit 0; echo "{says}"'
    )
    server = bare_mx.start(SPP_RCPT=judge)
    server.play(BEGUN + message(("bob", reply), ("carol", "250")) + TAKEN + LEFT)


def test_a_plugin_that_rejects_ends_the_session(bare_mx: MailHost) -> None:
    bare_mx.start(SPP_RCPT=":echo 'R421 go away'").play(mail("S: 421 go away\nS: closed"))
    bare_mx.start(SPP_RCPT=":echo D").play(mail("S: closed"))


def test_what_is_said_later_is_said_later(bare_mx: MailHost) -> None:
    server = bare_mx.start(SPP_RCPT=":echo 'LD451 not now'")
    server.play(
        BEGUN
        + message(("bob", "250"))
        + "C: DATA\nS: 451 not now\nC: RSET\nS: 250\nC: DATA\nS: 503\n"
        + LEFT
    )
    server.play(
        BEGUN
        + message(("bob", "250"), ("carol", "250"))
        + "C: DATA\nS: 451 not now\nS: 451 not now\n"
        + LEFT
    )
    server = bare_mx.start(SPP_RCPT=":echo 'LR451 not now'")
    server.play(BEGUN + message(("bob", "250"), ("carol", "451 not now")) + LEFT)
    server = bare_mx.start(SPP_RCPT=":echo 'LM451 not now'")
    server.play(
        BEGUN + message(("bob", "250")) + TAKEN + "C: MAIL FROM:<a@x>\nS: 451 not now\n" + LEFT
    )


def test_plugins_run_in_turn_until_one_decides(bare_mx: MailHost) -> None:
    server = bare_mx.start(SPP_RCPT=":echo P250-wait;,:echo N;,:echo 'E451 never asked'")
    server.play(mail("S: 250 ok"))
    server = bare_mx.start(SPP_RCPT=":test $SMTPRCPTCOUNTALL != 2 || echo A;,:echo 'E451 not now'")
    server.play(BEGUN + message(("bob", "451"), ("carol", "250"), ("dave", "250")) + LEFT)


@pytest.mark.parametrize(
    "plugin", [":kill -9 $$", ":exit 120", "/nonexistent", ":echo 'LD451 too late'; exit 120"]
)
def test_a_plugin_that_fails_refuses_the_recipient(bare_mx: MailHost, plugin: str) -> None:
    bare_mx.start(SPP_RCPT=plugin).play(mail("S: 451 qmail-spp failure"))


def test_a_plugin_that_has_spoken_and_then_fails_is_heard_twice(bare_mx: MailHost) -> None:
    server = bare_mx.start(SPP_RCPT=":echo 'E451 not now'; kill -9 $$")
    server.play(mail("S: 451 not now\nS: 451 qmail-spp failure"))


def test_a_plugin_is_told_of_all_recipients(bare_mx: MailHost) -> None:
    counts = bare_mx.script(
        "counts",
        'echo "$# <$SMTPMAILFROM> <$SMTPRCPTTO> $SMTPRCPTCOUNT $SMTPRCPTCOUNTALL $SMTPRCPTHOSTSOK'
        ' $SMTPHELOHOST" >&2',
        'case "$SMTPRCPTTO" in bob*) echo "E451 no";; esac',
    )
    server = bare_mx.start(SPP_RCPT=counts, RCPTHOSTS="example.net")
    server.play(
        BEGUN
        + message(("bob", "451"), ("carol", "250"), ("dave", "250"))
        + "C: RCPT TO:<erin@example.com>\nS: 553 sorry, that domain\nC: RSET\nS: 250\n"
        + message(("carol", "250"), sender="")
        + LEFT
    )
    told = [line for line in bare_mx.log() if line.startswith("0 ")]
    assert told == [
        "0 <alice@example.org> <bob@example.net> 0 1 1 client.example.org",
        "0 <alice@example.org> <carol@example.net> 0 2 1 client.example.org",
        "0 <alice@example.org> <dave@example.net> 1 3 1 client.example.org",
        "0 <alice@example.org> <erin@example.com> 2 4 0 client.example.org",
        "0 <> <carol@example.net> 0 1 1 client.example.org",
    ]


def test_a_plugin_may_take_a_recipient_that_rcpthosts_refuses(bare_mx: MailHost) -> None:
    bare_mx.start(SPP_RCPT=":echo O", RCPTHOSTS="").play(mail(ACCEPTED))


# --- verdicts -------------------------------------------------------------------------------------


@on_every_database
def test_a_mail_is_deferred_and_its_retry_passes(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp)
    server.play(mail("S: 451 greylisted, please try again"))
    mx.age(300)
    server.play(mail(ACCEPTED))
    server.play(mail(ACCEPTED, recipient="carol@example.net"))
    assert mx.reasons() == ["new", "retry", "client"]
    assert all(" hook=spp " in line for line in mx.checks())


def test_the_client_is_told_what_is_set(mx: MailHost) -> None:
    server = mx.start(
        GREYCHECK_DEFER_TEXT="come back in {wait}s", GREYCHECK_DELAY="1m", SPP_RCPT=mx.spp
    )
    server.play(mail("S: 451 come back in 60s (#4.3.0)"))


def test_a_rule_refuses_one_recipient_for_good(mx: MailHost) -> None:
    mx.command("reject", "to:bob@example.net")
    server = mx.start(GREYCHECK_REJECT_TEXT="no", SPP_RCPT=mx.spp)
    server.play(BEGUN + message(("bob", "553 no (#5.7.1)"), ("carol", "451")) + LEFT)


def test_a_relay_client_is_exempt(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp, rules='127.0.0.2:allow,RELAYCLIENT=""\n:allow')
    server.play(mail(ACCEPTED), client="127.0.0.2")
    assert " by=RELAYCLIENT " in mx.check()
    assert mx.count("triplet") == 0


def test_what_qmail_smtpd_refuses_itself_is_not_greylisted(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp, RCPTHOSTS="example.net")
    server.play(mail("S: 553 sorry, that domain", recipient="bob@example.com"))
    assert " by=SMTPRCPTHOSTSOK " in mx.check()
    assert mx.count("triplet") == 0


def test_observing_says_nothing(mx: MailHost) -> None:
    server = mx.start(GREYCHECK_MODE="observe", SPP_RCPT=mx.spp)
    server.play(mail(ACCEPTED))
    assert " observed=defer " in mx.check()


# --- the null sender ------------------------------------------------------------------------------


def test_a_sender_callback_finds_the_recipient_and_its_mail_waits(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp)
    server.play(BEGUN + message(("bob", "250"), sender="") + LEFT)
    server.play(mail(DEFERRED_AT_DATA, sender=""))
    mx.age(300)
    server.play(mail(ACCEPTED, sender=""))
    assert mx.reasons() == ["new", "early", "retry"]


def test_a_rule_refuses_the_null_sender_at_data(mx: MailHost) -> None:
    mx.command("reject", "to:bob@example.net")
    server = mx.start(SPP_RCPT=mx.spp)
    server.play(mail("S: 250\nC: DATA\nS: 553 refused by local policy (#5.7.1)", sender=""))


def test_data_is_answered_once_however_many_recipients_a_bounce_has(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp)
    recipients = [("bob", "250"), ("carol", "451"), ("dave", "451")]
    server.play(
        BEGUN + message(*recipients, sender="") + "C: DATA\nS: 451\nC: NOOP\nS: 250 ok\n" + LEFT
    )


# --- the first recipient of a message (RFC 6647 section 5, item 1) --------------------------------


@on_every_database
def test_later_recipients_need_not_wait_where_the_first_one_passed(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp, GREYCHECK_CLIENT_PASSES="0")
    server.play(BEGUN + message(("bob", "451"), ("carol", "451")) + LEFT)
    mx.age(300)
    server.play(BEGUN + message(("bob", "250"), ("dave", "250"), ("erin", "250")) + TAKEN + LEFT)
    server.play(BEGUN + message(("bob", "250"), ("frank", "250")) + TAKEN + LEFT)
    assert mx.reasons() == ["new", "new", "retry", "message", "message", "known", "message"]
    assert mx.rows(
        "SELECT count(*) FROM triplet WHERE recipient IN ('dave@example.net', 'frank@example.net')"
    ) == [(0,)]


@on_every_database
def test_a_client_that_is_known_needs_no_row_for_its_messages(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp)
    server.play(mail("S: 451"))
    mx.age(300)
    server.play(BEGUN + message(("bob", "250"), ("carol", "250"), ("dave", "250")) + TAKEN + LEFT)
    assert mx.reasons() == ["new", "retry", "client", "client"]
    assert mx.count("triplet") == 1


def test_all_recipients_may_come_at_once(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp, GREYCHECK_CLIENT_PASSES="0")
    server.play(mail("S: 451"))
    mx.age(300)
    server.play(f"""{BEGUN}
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        C: RCPT TO:<carol@example.net>
        C: NOOP
        C: DATA
        S: 250
        S: 250
        S: 250
        S: 250
        S: 354
        C: .
        S: 250
    """)
    assert mx.reasons() == ["new", "retry", "message"]


def test_only_the_first_recipient_vouches_for_others(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp, GREYCHECK_CLIENT_PASSES="0")
    server.play(mail("S: 451"))
    mx.age(300)
    server.play(BEGUN + message(("carol", "451"), ("bob", "250"), ("dave", "451")) + LEFT)
    assert mx.reasons() == ["new", "new", "retry", "new"]


def test_a_message_from_another_sender_in_the_same_session_waits(mx: MailHost) -> None:
    server = mx.start(SPP_RCPT=mx.spp, GREYCHECK_CLIENT_PASSES="0")
    server.play(mail("S: 451"))
    mx.age(300)
    one = message(("bob", "250"), ("carol", "250"))
    other = message(("bob", "451"), ("carol", "451"), sender="mallory@example.org")
    server.play(BEGUN + one + TAKEN + other + LEFT)
    server.play(BEGUN + message(("carol", "451"), ("dave", "451")) + LEFT)
    assert mx.reasons() == ["new", "retry", "message", "new", "new", "new", "new"]


def test_a_recipient_that_a_rule_lets_pass_vouches_for_nobody(mx: MailHost) -> None:
    mx.command("allow", "to:bob@example.net")
    server = mx.start(SPP_RCPT=mx.spp, GREYCHECK_CLIENT_PASSES="0")
    server.play(BEGUN + message(("bob", "250"), ("carol", "451")) + LEFT)
    assert mx.reasons() == ["rule", "new"]


def test_a_recipient_that_a_rule_greylists_waits_whoever_vouches(mx: MailHost) -> None:
    mx.command("greylist", "to:carol@example.net")
    server = mx.start(SPP_RCPT=mx.spp, GREYCHECK_CLIENT_PASSES="0")
    server.play(mail("S: 451"))
    mx.age(300)
    server.play(BEGUN + message(("bob", "250"), ("carol", "451"), ("dave", "250")) + TAKEN + LEFT)
    assert mx.reasons() == ["new", "retry", "new", "message"]


# --- faults ---------------------------------------------------------------------------------------

FAULT = "S: 451 temporary failure, please try again later (#4.3.0)\n" + LEFT


@one_way
def test_a_missing_store_is_answered_by_on_error(bare_mx: MailHost) -> None:
    missing = f"{bare_mx.place}/missing/greycheck.db"
    server = bare_mx.start(
        GREYCHECK_DATABASE=missing, GREYCHECK_ON_ERROR="defer", SPP_RCPT=bare_mx.spp
    )
    server.play(mail(FAULT))
    server.play(mail(DEFERRED_AT_DATA, sender=""))
    assert bare_mx.reasons() == ["error", "error"]


@one_way
@pytest.mark.parametrize(("on_error", "outcome"), [("accept", ACCEPTED), ("defer", FAULT)])
def test_the_deadline_is_answered_once_by_on_error(
    bare_mx: MailHost, on_error: str, outcome: str
) -> None:
    server = bare_mx.start(
        GREYCHECK_DEADLINE="1s", GREYCHECK_ON_ERROR=on_error, SPP_RCPT=bare_mx.spp
    )
    with locked(bare_mx.place):
        server.play(mail(outcome))
    assert 'error="no answer within 1s"' in bare_mx.check()


def test_a_check_whose_session_was_killed_still_ends(mx: MailHost) -> None:
    starts = mx.script("starts", "echo started >&2", f"exec {mx.spp}")
    server = mx.start(GREYCHECK_DEADLINE="1s", GREYCHECK_ON_ERROR="defer", SPP_RCPT=starts)
    with writing(mx.child.database):
        server.play("S: 220\nC: MAIL FROM:<alice@example.org>\nC: RCPT TO:<bob@example.net>")
        wait_for(lambda: "started" in mx.log())
        os.kill(session(mx), signal.SIGKILL)
        wait_for(lambda: mx.reasons() == ["error"])


def test_a_check_that_was_killed_is_the_parents_fault(mx: MailHost) -> None:
    doomed = mx.script("doomed", f"{mx.spp} & kill -9 $!; wait $!; kill -9 $$")
    mx.start(SPP_RCPT=doomed).play(mail("S: 451 qmail-spp failure"))


@pytest.mark.parametrize("log", ["&-", "/dev/full"], ids=["closed", "full"])
def test_mail_is_greylisted_where_the_log_takes_nothing(mx: MailHost, log: str) -> None:
    server = mx.start(SPP_RCPT=f":exec {mx.spp} 2>{log}")
    server.play(mail(DEFERRED_451))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.checks() == []


@pytest.mark.parametrize(("on_error", "outcome"), [("accept", ACCEPTED), ("defer", FAULT)])
def test_the_launcher_answers_where_the_package_is_gone(
    mx: MailHost, on_error: str, outcome: str
) -> None:
    server = mx.start(GREYCHECK_ON_ERROR=on_error, SPP_RCPT=mx.without_package("greycheck-spp"))
    server.play(mail(outcome))
    assert mx.reasons() == ["error"]
