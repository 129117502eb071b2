"""The SMTP parent answers as qmail-smtpd does (docs/hooks.rst#exit-codes): the other scenarios lean
on it.
"""

import pytest

from tests.smtp.dialogue import ACCEPTED, DEFERRED_421, DEFERRED_454, mail
from tests.smtp.mailhost import MailHost
from tests.support import both_ways

pytestmark = both_ways

UNKNOWN_CODES = (1, 2, 99, 102, 111, 120, 126, 127, 255)


def install_as_checkenv(mx: MailHost, *lines: str) -> None:
    program = mx.home / "bin" / "qmail-checkenv"
    program.unlink()
    program.symlink_to(mx.script("checkenv", *lines))


def answers(reply: str, times: int) -> str:
    return "\n".join([f"S: {reply}"] * times)


def play_checkenv(mx: MailHost, outcome: str, *lines: str) -> None:
    install_as_checkenv(mx, *lines)
    mx.start(CHECKENV="").play(mail(outcome))


def test_smtpextfork_lets_101_defer_and_100_refuse_one_recipient(bare_mx: MailHost) -> None:
    judge = bare_mx.script("judge", 'exit "${REMOTERCPT%@*}"')
    bare_mx.start(SMTPEXTFORK=judge).play("""
        S: 220
        C: HELO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<101@example.net>
        S: 454 sorry, temporary envelope failure due to local policy
        C: RCPT TO:<100@example.net>
        S: 554 sorry, permanent envelope failure due to local policy
        C: RCPT TO:<0@example.net>
        S: 250
        C: DATA
        S: 354
        C: .
        S: 250
    """)
    delivered = [line for line in bare_mx.log() if "delivered" in line]
    assert delivered == ["smtpd: delivered from <alice@example.org> to <0@example.net>"]


def test_smtpextfork_accepts_at_every_other_code(bare_mx: MailHost) -> None:
    judge = bare_mx.script("judge", 'exit "${REMOTERCPT%@*}"')
    asked = "\n".join(f"C: RCPT TO:<{code}@example.net>\nS: 250" for code in UNKNOWN_CODES)
    bare_mx.start(SMTPEXTFORK=judge).play(
        f"S: 220\nC: MAIL FROM:<alice@example.org>\nS: 250\n{asked}"
    )
    unexpected = [line for line in bare_mx.log() if "unexpected" in line]
    assert unexpected == [f"smtpd: unexpected code {code} from {judge}" for code in UNKNOWN_CODES]


def test_smtpextfork_accepts_where_a_signal_kills_the_program(bare_mx: MailHost) -> None:
    bare_mx.start(SMTPEXTFORK=bare_mx.script("dies", "kill -9 $$")).play(mail(ACCEPTED))


def test_smtpextfork_accepts_where_the_program_cannot_be_run(bare_mx: MailHost) -> None:
    bare_mx.start(SMTPEXTFORK=f"{bare_mx.place}/nothing").play(mail(ACCEPTED))


def test_checkenv_lets_100_refuse_and_close(bare_mx: MailHost) -> None:
    play_checkenv(bare_mx, "S: 553 permanent envelope failure (#5.7.1)\nS: closed", "exit 100")


def test_checkenv_lets_0_accept(bare_mx: MailHost) -> None:
    play_checkenv(bare_mx, ACCEPTED, "exit 0")


@pytest.mark.parametrize("how", [*(f"exit {code}" for code in (101, *UNKNOWN_CODES)), "kill -9 $$"])
def test_checkenv_is_a_temporary_failure_whatever_else_happens(bare_mx: MailHost, how: str) -> None:
    play_checkenv(bare_mx, DEFERRED_421, how)


def test_checkenv_says_so_twice_where_the_program_cannot_be_run(bare_mx: MailHost) -> None:
    (bare_mx.home / "bin" / "qmail-checkenv").unlink()
    twice = "S: 421 temporary envelope failure (#4.3.0)\n" * 2
    bare_mx.start(CHECKENV="").play(mail(f"{twice}S: closed"))


def test_checkenv_hands_the_envelope_over_as_arguments(bare_mx: MailHost) -> None:
    play_checkenv(bare_mx, ACCEPTED, 'echo "$# arguments, $0 $1 $2" >&2')
    assert "2 arguments, bin/qmail-checkenv alice@example.org bob@example.net" in bare_mx.log()


def test_a_stale_remotemf_does_not_mislead_checkenv(mx: MailHost) -> None:
    server = mx.start(CHECKENV="", REMOTEMF="mallory@example.com", REMOTERCPT="mallory@example.net")
    server.play(mail(DEFERRED_421))
    assert " sender=<alice@example.org> recipient=<bob@example.net> " in mx.check()


def test_a_checker_that_writes_to_the_client_is_noticed_here(bare_mx: MailHost) -> None:
    with pytest.raises(AssertionError, match="no line of a reply"):
        bare_mx.start(SMTPEXTFORK=bare_mx.script("talks", "echo usage")).play(mail(ACCEPTED))


def test_a_checker_that_reads_from_the_client_is_noticed_here(bare_mx: MailHost) -> None:
    reads = bare_mx.script("reads", 'case "$REMOTERCPT" in thief@*) read -r stolen;; esac')
    server = bare_mx.start(SMTPEXTFORK=reads)
    # The thief finds something only behind the 1024 bytes that the parent has read already.
    longer_than_one_read = "\n".join(["C: NOOP"] * 200)
    with pytest.raises(
        AssertionError, match=r"(expected b'250'|the server closed the connection.*)$"
    ):
        server.play(f"""
            S: 220
            C: MAIL FROM:<alice@example.org>
            C: RCPT TO:<thief@example.net>
            {longer_than_one_read}
            C: QUIT
            {answers("250", 202)}
            S: 221
        """)


def test_a_scenario_notices_a_wrong_reply(bare_mx: MailHost) -> None:
    with pytest.raises(AssertionError, match="S: 250 ok\nexpected b'454"):
        bare_mx.start().play(mail(DEFERRED_454))
