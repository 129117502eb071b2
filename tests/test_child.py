"""The forked child as a mail server meets it: verdicts, descriptors, limits, addresses, and the
order of events (docs/hooks.rst).
"""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime

import pytest

from greycheck import hooks
from greycheck.cli.install import launcher
from greycheck.hooks import calling
from greycheck.hooks.record import Hook
from greycheck.policy import DEFER
from tests.support import ACCEPTED, DEFERRED, Child, both_ways, on_every_database, with_every_driver

# --- verdicts -------------------------------------------------------------------------------------


@with_every_driver
def test_a_mail_is_deferred_then_accepted(any_child: Child) -> None:
    assert any_child.smtpextfork().verdict == (DEFERRED, "new")
    any_child.age(100)
    assert any_child.smtpextfork().verdict == (DEFERRED, "early")
    any_child.age(200)
    assert any_child.smtpextfork().verdict == (ACCEPTED, "retry")
    assert any_child.smtpextfork().verdict == (ACCEPTED, "client")
    assert any_child.smtpextfork(client="192.0.2.77").verdict == (ACCEPTED, "known")
    assert any_child.rows("SELECT early_attempts, passes FROM triplet") == [(1, 1)]
    assert any_child.rows("SELECT address, passes FROM client") == [("192.0.2.1", 1)]


@with_every_driver
def test_both_hooks_decide_alike(child: Child) -> None:
    assert child.checkenv().verdict == (DEFERRED, "new")
    child.age(300)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")
    assert child.checkenv().verdict == (ACCEPTED, "client")


@on_every_database
def test_an_attempt_seen_by_both_hooks_is_counted_once(child: Child) -> None:
    child.checkenv(REMOTEMF=b"stale@example.org", REMOTERCPT=b"stale@example.net")
    child.smtpextfork()
    assert child.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(1, 0)]


@on_every_database
def test_the_log_line_tells_how_long_to_wait(child: Child) -> None:
    child.smtpextfork()
    child.age(100)
    ran = child.smtpextfork(sender=b"Alice@Example.ORG")
    [line] = ran.lines
    assert line.startswith(
        "greycheck: defer reason=early client=192.0.2.1 sender=<Alice@Example.ORG>"
        " recipient=<bob@example.net> wait="
    )
    assert 195 <= int(line.partition(" wait=")[2].split()[0]) <= 200
    assert " hook=smtpextfork ms=" in line


@on_every_database
def test_with_checkenv_ten_new_recipients_are_through_at_the_second_attempt(child: Child) -> None:
    recipients = [b"user%d@example.net" % number for number in range(10)]
    assert child.checkenv(recipient=recipients[0]).verdict == (
        DEFERRED,
        "new",
    )  # 421 and closed: the others are not offered
    child.age(300)
    assert [child.checkenv(recipient=recipient).code for recipient in recipients] == [ACCEPTED] * 10


@on_every_database
def test_a_retry_after_the_window_is_new(child: Child) -> None:
    child.smtpextfork()
    child.age(2 * 86400 + 2)
    assert child.smtpextfork().verdict == (DEFERRED, "new")


@with_every_driver
def test_a_used_triplet_is_refreshed_within_its_lifetime_and_new_after_it(any_child: Child) -> None:
    any_child.settings["GREYCHECK_CLIENT_PASSES"] = "0"
    any_child.smtpextfork()
    any_child.age(300)
    any_child.smtpextfork()
    any_child.age(36 * 86400 - 10)
    assert any_child.smtpextfork().verdict == (ACCEPTED, "known")
    any_child.age(36 * 86400 - 10)
    assert any_child.smtpextfork().verdict == (ACCEPTED, "known")
    any_child.age(36 * 86400 + 10)
    assert any_child.smtpextfork().verdict == (DEFERRED, "new")
    assert any_child.rows("SELECT passes, passed_at FROM triplet") == [(0, None)]


@with_every_driver
def test_a_clock_that_was_set_back_defers_for_one_delay_only(child: Child) -> None:
    child.smtpextfork()
    child.age(-10_000_000)
    assert child.smtpextfork().verdict == (DEFERRED, "early")
    child.age(300)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")


@on_every_database
def test_clients_of_one_network_share_a_triplet(child: Child) -> None:
    child.smtpextfork(client="192.0.2.1")
    child.age(300)
    assert child.smtpextfork(client="::ffff:192.0.2.250").verdict == (ACCEPTED, "retry")
    child.smtpextfork(client="2001:db8::1")
    child.age(300)
    assert child.smtpextfork(client="2001:DB8:0:0:ffff::9").verdict == (ACCEPTED, "retry")
    assert child.smtpextfork(client="2001:db8:0:1::9").verdict == (DEFERRED, "new")


@both_ways
def test_clients_behind_nat64_are_those_that_they_are(child: Child) -> None:
    """All of IPv4 is in one /64 there."""
    assert child.smtpextfork(client="64:ff9b::192.0.2.1").verdict == (DEFERRED, "new")
    child.age(400)
    assert child.smtpextfork(client="64:ff9b::203.0.113.9").verdict == (DEFERRED, "new")
    assert child.smtpextfork(client="64:ff9b::c000:201").verdict == (ACCEPTED, "retry")
    assert child.smtpextfork(client="192.0.2.1", sender="other@example.org").verdict == (
        ACCEPTED,
        "client",
    )


@on_every_database
def test_the_next_message_of_a_list_is_the_same_triplet(child: Child) -> None:
    child.settings["GREYCHECK_CLIENT_PASSES"] = "0"
    child.smtpextfork(sender=b"list-return-1234-bob=example.net@lists.example.org")
    child.age(300)
    assert child.smtpextfork(
        sender=b"list-return-1240-bob=example.net@lists.example.org"
    ).verdict == (
        ACCEPTED,
        "retry",
    )


@on_every_database
def test_settings_count_per_client(child: Child) -> None:
    child.smtpextfork()
    child.age(70)
    assert child.smtpextfork(GREYCHECK_DELAY="1m").verdict == (ACCEPTED, "retry")


# --- envelopes that nothing is looked up for ------------------------------------------------------


def test_without_any_variable_the_mail_is_accepted(any_child: Child) -> None:
    ran = any_child.run([any_child.programs / "greycheck"], {b"PATH": b"/usr/bin:/bin"})
    assert ran.verdict == (ACCEPTED, "incomplete")
    assert " missing=REMOTEMF,REMOTERCPT,TCPREMOTEIP " in ran.log


@pytest.mark.parametrize("client", ["0.0.0.0", "unknown", "", "192.0.2.999"])
def test_an_unusable_client_address_is_accepted_and_named(child: Child, client: str) -> None:
    ran = child.checkenv(client=client)
    assert ran.verdict == (ACCEPTED, "incomplete")
    assert " missing=usable-TCPREMOTEIP " in ran.log


def test_a_missing_client_address_is_accepted_and_named(child: Child) -> None:
    ran = child.smtpextfork(client=None)
    assert ran.verdict == (ACCEPTED, "incomplete")
    assert " missing=TCPREMOTEIP " in ran.log


@pytest.mark.parametrize("arguments", [[b"one"], [b"one", b"two", b"three"]])
def test_checkenv_with_a_wrong_number_of_arguments_is_accepted(
    child: Child, arguments: list[bytes]
) -> None:
    ran = child.run([child.programs / "qmail-checkenv", *arguments], child.environ())
    assert ran.verdict == (ACCEPTED, "incomplete")


@pytest.mark.parametrize(
    "variable", [{"RELAYCLIENT": ""}, {"SMTPAUTHUSER": "bob"}, {"GREYCHECK": "off"}]
)
def test_exempt_clients_are_accepted_and_leave_no_trace(
    child: Child, variable: dict[str, str]
) -> None:
    assert child.smtpextfork(**variable).verdict == (ACCEPTED, "exempt")
    assert not child.database.exists()


@on_every_database
def test_the_null_sender_may_be_exempt(child: Child) -> None:
    assert child.checkenv(sender=b"").verdict == (DEFERRED, "new")
    assert child.checkenv(sender=b"", GREYCHECK_NULL_SENDER="accept").verdict == (
        ACCEPTED,
        "exempt",
    )


# --- addresses ------------------------------------------------------------------------------------

HOSTILE = [
    b"--help",
    b"--version",
    b"-",
    b"db",
    b"expire",
    b"",
    b"../../../etc/passwd",
    b"/absolute/path@example.org",
    b"$(reboot)@example.org",
    b"`reboot`;reboot|reboot&reboot@example.org",
    b"john doe@example.org",
    b"'quote\"s'@example.org",
    b"*?[a-z]@example.org",
    b"%s%n%00@example.org",
    b"a@b@c",
    b"tab\tcr\resc\x1b[2J@example.org",
    b"\xff",
    b"\x81\x82\x83\x84\x85\x86\x87\x88@example.org",
    "jörg@exämple.org".encode(),
    b"\xc3\x28@example.org",
    b"x" * 899,
    b"\xff" * 899,
    b" reason=known client=10.0.0.1",
    b"\\x20@example.org",
    b"'; DROP TABLE triplet; --@example.org",
]


@on_every_database
@pytest.mark.parametrize("address", HOSTILE, ids=lambda address: repr(address[:20]))
def test_any_address_is_greylisted_as_an_address(child: Child, address: bytes) -> None:
    assert child.checkenv(sender=address, recipient=address).verdict == (DEFERRED, "new")
    child.age(300)
    assert child.smtpextfork(sender=address, recipient=address).verdict == (ACCEPTED, "retry")


@with_every_driver
def test_bytes_that_are_no_text_stay_distinguishable(child: Child) -> None:
    for sender in (b"\xff@x", b"\xfe@x", b"\\xff@x", b"?@x", "\ufffd@x".encode()):
        assert child.smtpextfork(sender=sender).verdict == (DEFERRED, "new")


@on_every_database
def test_a_huge_helo_is_no_obstacle(child: Child) -> None:
    environ = child.environ(REMOTEMF=b"", REMOTERCPT=b"", REMOTEHELO=b'"\xff ' * 30000)
    assert child.run([child.programs / "greycheck"], environ).verdict == (DEFERRED, "new")


@on_every_database
@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.UTF-8", "ja_JP.eucJP", "nonsense"])
def test_the_locale_does_not_change_an_address(child: Child, locale: str) -> None:
    child.checkenv(sender=b"\xff\x8e\xa1@x")
    child.age(300)
    assert child.checkenv(sender=b"\xff\x8e\xa1@x", LC_ALL=locale).verdict == (ACCEPTED, "retry")


# --- environment and process ----------------------------------------------------------------------


@on_every_database
def test_an_inherited_environment_does_no_harm(child: Child) -> None:
    hostile = {
        "PYTHONPATH": "/nonexistent",
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": "/etc/passwd",
        "PYTHONINSPECT": "1",
    }
    assert child.smtpextfork(HOME="/root", TZ="nonsense", **hostile).verdict == (DEFERRED, "new")


@pytest.mark.parametrize(("mode", "bits"), [("0600", 0o600), ("0660", 0o660)])
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_the_umask_does_not_decide_who_reads_the_store(
    child: Child, umask: int, mode: str, bits: int
) -> None:
    environ = child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_DATABASE_MODE=mode)
    assert child.run([child.programs / "greycheck"], environ, umask=umask).verdict == (
        DEFERRED,
        "new",
    )
    for suffix in ("", "-wal", "-shm"):
        path = Path(f"{child.database}{suffix}")
        if path.exists():
            assert path.stat().st_mode & 0o777 == bits, path


def test_it_works_under_softlimit(child: Child) -> None:
    child.make_store()
    softlimit = ["softlimit", "-m", "18000000"]
    environ = child.environ(REMOTEMF=b"a", REMOTERCPT=b"b")
    assert child.run([*softlimit, child.programs / "greycheck"], environ).verdict == (
        DEFERRED,
        "new",
    )
    child.age(300)
    assert child.run([*softlimit, child.programs / "greycheck"], environ).verdict == (
        ACCEPTED,
        "retry",
    )
    assert child.run(
        [*softlimit, child.programs / "qmail-checkenv", b"a", b"c"], environ
    ).verdict == (
        ACCEPTED,
        "client",
    )


def test_it_makes_the_store_under_softlimit(child: Child) -> None:
    environ = child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_DEADLINE="60s")
    assert child.run(
        ["softlimit", "-m", "18000000", child.programs / "greycheck"], environ
    ).verdict == (
        DEFERRED,
        "new",
    )


def test_too_little_memory_ends_in_a_verdict_where_the_interpreter_starts(child: Child) -> None:
    child.make_store()
    environ = child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_ON_ERROR="defer")
    found = set()
    for limit in range(13_000_000, 18_000_000, 50_000):
        ran = child.run(["softlimit", "-m", str(limit), child.programs / "greycheck"], environ)
        # Where Python cannot start, it ends with a code of its own.
        if ran.code == -signal.SIGSEGV:
            bare = ["softlimit", "-m", str(limit), "python3", "-IS", "-c", ""]
            assert child.run(bare, environ).code == ran.code
        elif ran.code not in (1, -signal.SIGABRT):
            assert ran.code == DEFERRED, (limit, ran.log)
            assert ran.log.count("greycheck: defer reason=") == 1, (limit, ran.log)
            found.update(re.findall(r"reason=(\w+)", ran.log))
    assert found == {"error", "new", "early"}


def block_everything() -> None:
    for number in (
        signal.SIGALRM,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGCHLD,
        signal.SIGTERM,
    ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@on_every_database
def test_blocked_and_ignored_signals_change_nothing(child: Child) -> None:
    environ = child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_DEADLINE="60s")
    assert child.run(
        [child.programs / "greycheck"], environ, preexec_fn=block_everything
    ).verdict == (DEFERRED, "new")


# --- descriptors ----------------------------------------------------------------------------------


def run_closed(child: Child, *closed: int) -> int:
    """The exit code of a child that starts with descriptors CLOSED."""

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    argv = [child.programs / "greycheck"]
    return subprocess.run(
        argv,
        env=child.environ(REMOTEMF=b"a", REMOTERCPT=b"b"),
        preexec_fn=close,
        timeout=60,
        check=False,
    ).returncode


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2), (0,), (1,)])
def test_closed_descriptors_do_not_reach_the_store(
    any_child: Child, closed: tuple[int, ...]
) -> None:
    child = any_child
    child.make_store()
    assert run_closed(child, *closed) == DEFERRED
    child.age(100)
    assert run_closed(child, *closed) == DEFERRED
    child.age(200)
    assert run_closed(child, *closed) == ACCEPTED
    assert child.rows("PRAGMA integrity_check") == [("ok",)]
    assert b"greycheck:" not in child.database.read_bytes()


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("broken", [False, True], ids=["verdict", "error"])
def test_a_stuck_log_does_not_hold_the_verdict(any_child: Child, broken: bool) -> None:
    any_child.make_store()
    reader, writer = full_pipe()
    database = "/dev/full/never" if broken else str(any_child.database)
    environ = any_child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_DATABASE=database)
    child = subprocess.Popen([any_child.programs / "greycheck"], env=environ, stderr=writer)
    try:
        assert child.wait(timeout=60) == (ACCEPTED if broken else DEFERRED)
    finally:
        os.close(reader)
        os.close(writer)


@on_every_database
def test_a_dead_log_does_not_change_the_verdict(any_child: Child) -> None:
    any_child.make_store()
    reader, writer = os.pipe()
    os.close(reader)
    environ = any_child.environ(REMOTEMF=b"a", REMOTERCPT=b"b")
    child = subprocess.Popen([any_child.programs / "greycheck"], env=environ, stderr=writer)
    os.close(writer)
    assert child.wait(timeout=60) == DEFERRED


@on_every_database
def test_nothing_stays_behind_that_holds_the_connection(child: Child) -> None:
    reader, writer = os.pipe()
    child_process = subprocess.Popen(
        [child.programs / "greycheck"],
        env=child.environ(REMOTEMF=b"a", REMOTERCPT=b"b"),
        stdin=writer,
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)
    assert child_process.wait(timeout=60) == DEFERRED
    said = b""
    while chunk := os.read(reader, 4096):  # ends when the last holder of the pipe has ended
        said += chunk
    os.close(reader)
    assert said.startswith(b"greycheck: defer reason=new ")


# --- qmail-spp ------------------------------------------------------------------------------------

TOLD_TO_WAIT = "E451 greylisted, please try again later (#4.3.0)\n"
TOLD_OF_A_FAULT = "E451 temporary failure, please try again later (#4.3.0)\n"


@on_every_database
def test_qmail_spp_is_told_in_one_line(any_child: Child) -> None:
    ran = any_child.spp()
    assert (ran.code, ran.reason, ran.said) == (0, "new", TOLD_TO_WAIT)
    any_child.age(300)
    ran = any_child.spp()
    assert (ran.code, ran.reason, ran.said) == (0, "retry", "")


@on_every_database
def test_the_first_recipient_vouches_for_ten_minutes(any_child: Child) -> None:
    any_child.settings["GREYCHECK_CLIENT_PASSES"] = "0"
    any_child.spp()
    any_child.age(300)
    assert any_child.spp().reason == "retry"
    assert any_child.spp(recipient="carol@example.net", counts=(1, 2)).reason == "message"
    assert any_child.spp(recipient="carol@example.net", counts=(1, 2), port="1").reason == "new"
    any_child.age(590)
    assert any_child.spp(recipient="dave@example.net", counts=(1, 2)).reason == "message"
    any_child.age(11)
    assert any_child.spp(recipient="dave@example.net", counts=(1, 2)).reason == "new"


def test_a_known_mail_writes_once_a_message(child: Child) -> None:
    child.settings["GREYCHECK_CLIENT_PASSES"] = "0"
    child.spp()
    child.age(300)
    child.spp()
    rows = child.rows("SELECT * FROM triplet ORDER BY recipient")
    for counts in ((0, 1), (0, 1), (1, 2)):
        assert child.spp(counts=counts).reason == "known"
    assert child.rows("SELECT * FROM triplet ORDER BY recipient") == rows
    assert [row[3] for row in rows] == ["\\x00192.0.2.1\\x20port\\x2025025", "bob@example.net"]


def test_a_message_that_nobody_else_can_follow_leaves_no_row(child: Child) -> None:
    child.spp()
    child.age(300)
    for _retry_and_then_known_client in range(2):
        child.spp()
    assert child.rows("SELECT count(*) FROM triplet") == [(1,)]


@pytest.mark.parametrize(
    "closed", ["", "0<&-", "1>&-", "2>&-", "0<&- 2>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"]
)
def test_any_descriptor_may_be_closed(any_child: Child, closed: str) -> None:
    any_child.make_store()
    environ = any_child.environ(SMTPMAILFROM=b"a", SMTPRCPTTO=b"b", SMTPHELOHOST=b"c")
    ran = any_child.run(
        ["sh", "-c", f"exec {any_child.programs}/greycheck-spp {closed}"], environ, speaks=True
    )
    assert ran.code == 0
    assert ran.said == ("" if "1>" in closed else TOLD_TO_WAIT)
    assert ("defer reason=new" in ran.log) == ("2>" not in closed)
    assert any_child.rows("SELECT count(*) FROM triplet") == [(1,)]


def test_words_that_nobody_takes_do_not_hold_the_exit(any_child: Child) -> None:
    any_child.make_store()
    reader, writer = full_pipe()
    environ = any_child.environ(SMTPMAILFROM=b"a", SMTPRCPTTO=b"b", GREYCHECK_DEADLINE="1s")
    child = subprocess.Popen([any_child.programs / "greycheck-spp"], env=environ, stdout=writer)
    try:
        assert child.wait(timeout=60) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_a_program_that_is_run_meanwhile_does_not_hold_the_pipe(child: Child) -> None:
    """The maker of the schema, for one: qmail-smtpd reads until the last holder is gone."""
    assert child.spp(GREYCHECK_DEADLINE="60s").said == TOLD_TO_WAIT


@pytest.mark.parametrize(("on_error", "said"), [("accept", ""), ("defer", TOLD_OF_A_FAULT)])
def test_qmail_spp_is_told_of_a_fault_in_one_line(
    any_child: Child, on_error: str, said: str
) -> None:
    ran = any_child.spp(GREYCHECK_DATABASE="/dev/full/never", GREYCHECK_ON_ERROR=on_error)
    assert (ran.code, ran.reason, ran.said) == (0, "error", said)


def test_rcptcheck_has_codes_of_its_own(any_child: Child) -> None:
    assert any_child.rcptcheck().verdict == (111, "new")
    any_child.age(300)
    assert any_child.rcptcheck().verdict == (ACCEPTED, "retry")
    assert any_child.rcptcheck(
        GREYCHECK_DATABASE="/dev/full/never", GREYCHECK_ON_ERROR="defer"
    ).verdict == (
        111,
        "error",
    )


# --- behind a native child ------------------------------------------------------------------------


def test_the_time_of_a_native_child_counts(child: Child) -> None:
    child.make_store()
    now = clock_gettime(CLOCK_MONOTONIC)
    ran = child.smtpextfork(_GREYCHECK_STARTED=f"{(now - 3) * 1000:.0f}", GREYCHECK_DEADLINE="60s")
    assert ran.verdict == (DEFERRED, "new")
    assert 3000 <= int(ran.log.partition(" ms=")[2]) < 60_000
    with closing(sqlite3.connect(child.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ran = child.smtpextfork(
            b"c@d", _GREYCHECK_STARTED=f"{(now - 61) * 1000:.0f}", GREYCHECK_DEADLINE="60s"
        )
    assert ran.verdict == (ACCEPTED, "error")
    assert int(ran.log.partition(" ms=")[2]) >= 60_000


# --- a person -------------------------------------------------------------------------------------


def test_a_person_at_a_terminal_gets_help(child: Child) -> None:
    program = child.programs / "greycheck"
    command = f"script -qec {program} /dev/null"
    ran = subprocess.run(
        ["sh", "-c", command],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"Usage: greycheck" in ran.stdout


def test_a_launcher_with_a_command_is_the_operators_tool(any_child: Child) -> None:
    command: list[Path | str] = [any_child.programs / "greycheck", "config"]
    ran = subprocess.run(
        command, env=any_child.environ(), capture_output=True, timeout=60, check=True
    )
    assert b"delay = 5m" in ran.stdout


def test_a_launcher_whose_commands_are_gone_says_so_and_fails(child: Child) -> None:
    path = child.database.parent / "greycheck"
    path.write_text(launcher().replace(repr(sys.executable), repr("/nonexistent/python")))
    path.chmod(0o755)
    ran = subprocess.run([path, "expire"], capture_output=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"greycheck: /nonexistent/python: No such file or directory: ")


@pytest.mark.parametrize("hook", hooks.every(), ids=lambda hook: hook.NAME)
def test_a_launcher_whose_hook_cannot_be_read_answers_itself(child: Child, hook: Hook) -> None:
    path = child.database.parent / hook.PROGRAM
    missing = "sys.modules['greycheck.hooks'] = None\n    from greycheck.child"
    path.write_text(launcher(hook.PROGRAM).replace("from greycheck.child", missing))
    path.chmod(0o755)
    ran = child.run([path], child.environ(GREYCHECK_ON_ERROR="defer"), speaks=True)
    code, said = calling.last_resort(hook, DEFER)
    assert (ran.code, ran.said) == (code, said.decode())
    assert ran.log.startswith("greycheck: defer reason=error error=")


def test_the_program_that_pip_installs_is_the_child_too(child: Child) -> None:
    program = Path(sys.executable).parent / "greycheck"
    ran = child.run(
        [program], child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_DEADLINE="60s")
    )
    assert ran.verdict == (DEFERRED, "new")
