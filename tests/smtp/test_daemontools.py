"""What daemontools puts around qmail-smtpd: softlimit's memory and envdir's settings."""

from pathlib import Path

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, DEFERRED_421, DEFERRED_454, mail
from tests.smtp.mailhost import MailHost, tool
from tests.support import both_ways

pytestmark = both_ways

# Bytes that a check has to make do with.
MEMORY = 18_000_000


def limited(mx: MailHost, program: str) -> str:
    """The path of a script that runs PROGRAM with little memory: the parent, being Python too,
    would need more.
    """
    return mx.script("limited", f'exec {tool("softlimit")} -m {MEMORY} {program} "$@"')


def envdir(place: Path, variables: dict[str, str]) -> list[str]:
    """The command that runs another with VARIABLES, one file each."""
    directory = place / "env"
    directory.mkdir()
    for name, value in variables.items():
        (directory / name).write_text(value + "\n")
    return [tool("envdir"), str(directory)]


def test_softlimit_leaves_enough_memory_under_smtpextfork(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=limited(mx, mx.greycheck))
    server.play(mail(DEFERRED_454))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_softlimit_leaves_enough_memory_under_checkenv(mx: MailHost) -> None:
    program = mx.home / "bin" / "qmail-checkenv"
    program.unlink()
    program.symlink_to(limited(mx, mx.checkenv))
    server = mx.start(CHECKENV="")
    server.play(mail(DEFERRED_421))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_the_first_mail_makes_the_store_under_softlimit(bare_mx: MailHost) -> None:
    server = bare_mx.start(SMTPEXTFORK=limited(bare_mx, bare_mx.greycheck))
    server.play(mail(DEFERRED_454))
    assert bare_mx.reasons() == ["new"]


def test_the_longest_addresses_fit_into_softlimit(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=limited(mx, mx.greycheck))
    server.play(mail(DEFERRED_454, sender="\udcff" * 899, recipient="\udcfe" * 899))
    mx.age(300)
    server.play(mail(ACCEPTED, sender="\udcff" * 899, recipient="\udcfe" * 899))
    assert mx.reasons() == ["new", "retry"]


def test_envdir_switches_a_hook_on_and_supplies_the_settings(mx: MailHost, hook: Hook) -> None:
    settings = {"GREYCHECK_DELAY": "1m", "GREYCHECK_RETRY_WINDOW": "2h"}
    server = mx.start(under=envdir(mx.place, hook.variables | settings))
    server.play(mail(hook.deferred))
    assert " wait=60 " in mx.check()
    mx.age(60)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]


def test_envdir_supplies_the_text_of_a_deferral(mx: MailHost) -> None:
    variables = {
        "SMTPEXTFORK": mx.greycheck,
        "454SMTPEXTFORK": "greylisted, see http://www.example.net/",
    }
    server = mx.start(under=envdir(mx.place, variables))
    server.play(mail("S: 454 greylisted, see http://www.example.net/"))


def test_envdir_and_softlimit_work_together(mx: MailHost) -> None:
    variables = {"SMTPEXTFORK": limited(mx, mx.greycheck), "GREYCHECK_DELAY": "2m"}
    server = mx.start(under=envdir(mx.place, variables))
    server.play(mail(DEFERRED_454))
    mx.age(120)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]
