"""``greycheck install``: launchers that run, for the user that qmail runs as."""

import os
import pwd
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck import settings
from greycheck.cli import install as module
from greycheck.cli.main import cli
from greycheck.hooks import every
from greycheck.launchers import python, trial
from tests.smtp.mailhost import wait_for
from tests.support import ACCEPTED, DEFERRED, ROOT, Child, only_settings

ME = pwd.getpwuid(os.geteuid()).pw_name
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def qmail(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty bin directory; the store is beside it."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "store" / "greycheck.db"))
    (place / "bin").mkdir()
    (place / "store").mkdir()
    yield place / "bin"
    (place / "store").chmod(0o755)


def install(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["install", *map(str, arguments)], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def test_it_installs_the_programs_and_the_store(qmail: Path) -> None:
    output = install(qmail, "--user", ME).stdout
    child = Child(qmail, qmail.parent / "store" / "greycheck.db")
    assert child.database.exists()
    assert child.smtpextfork().verdict == (DEFERRED, "new")
    assert child.checkenv().verdict == (DEFERRED, "early")
    assert child.rcptcheck().verdict == (111, "early")
    assert child.spp().said.startswith("E451 ")
    assert f':allow,SMTPEXTFORK="{qmail}/greycheck"' in output
    assert ':allow,CHECKENV=""' in output
    assert f':allow,RCPTCHECK="{qmail}/greycheck-rcptcheck"' in output
    assert f"\n  {qmail}/greycheck-spp\n" in output
    assert f"  echo {qmail}/greycheck > env/SMTPEXTFORK" in output
    assert f"{qmail}/greycheck expire" in output


def test_the_printed_rules_are_what_tcprules_takes(qmail: Path) -> None:
    output = install(qmail, "--user", ME).stdout
    rules = [line.strip() for line in output.splitlines() if ":allow" in line]
    of_hooks = [rule for rule in rules if rule.startswith(":allow,")]
    assert len(of_hooks) == len([hook for hook in every() if ":allow" in hook.SWITCH_ON])
    tcprules = ROOT / ".deps/ucspi-tcp/usr/bin/tcprules"
    switches = ":allow," + ",".join(rule.removeprefix(":allow,") for rule in of_hooks)
    given = "\n".join([switches, *(rule for rule in rules if rule not in of_hooks)])
    subprocess.run([tcprules, qmail / "cdb", qmail / "tmp"], input=given.encode(), check=True)


def test_installing_again_is_harmless(qmail: Path) -> None:
    install(qmail, "--user", ME)
    before = (qmail / "greycheck").read_text()
    install(qmail, "--user", ME)
    assert (qmail / "greycheck").read_text() == before
    assert sorted(path.name for path in qmail.iterdir()) == sorted(python.PROGRAMS)


def test_uninstalling_takes_the_launchers_and_leaves_the_store(qmail: Path) -> None:
    install(qmail, "--user", ME)
    assert install(qmail, "--uninstall").stdout == "".join(
        f"{qmail}/{name}: removed\n" for name in python.PROGRAMS
    )
    assert list(qmail.iterdir()) == []
    assert (qmail.parent / "store" / "greycheck.db").exists()
    assert install(qmail, "--uninstall").stdout == ""


@pytest.mark.parametrize("action", [[], ["--uninstall"]])
@pytest.mark.parametrize("name", python.PROGRAMS)
def test_a_file_that_is_not_its_own_is_left_alone(
    qmail: Path, name: str, action: list[str]
) -> None:
    (qmail / name).write_text("#!/bin/sh\n# the site's own\n")
    assert (
        f"{qmail}/{name}: not written by greycheck install: left alone"
        in install(qmail, *action, code=1).stderr
    )
    assert (qmail / name).read_text() == "#!/bin/sh\n# the site's own\n"
    assert len(list(qmail.iterdir())) == 1


def test_a_dangling_link_is_left_alone(qmail: Path) -> None:
    (qmail / "qmail-checkenv").symlink_to("/nonexistent")
    install(qmail, code=1)
    assert (qmail / "qmail-checkenv").is_symlink()


def test_what_a_check_loads_is_compiled(qmail: Path) -> None:
    cache = module.package() / "__pycache__"
    for path in cache.glob("policy.*.pyc"):
        path.unlink()
    install(qmail, "--user", ME)
    assert list(cache.glob("policy.*.pyc"))


@pytest.mark.parametrize("spaces", [False, True])
def test_an_interpreter_whose_path_no_first_line_takes_is_started_by_sh(
    qmail: Path, monkeypatch: pytest.MonkeyPatch, spaces: bool
) -> None:
    directory = qmail.parent / ("with spaces" if spaces else "x" * 130)
    directory.mkdir()
    (directory / "python").symlink_to(python.interpreter())
    monkeypatch.setattr(python, "interpreter", lambda: str(directory / "python"))
    install(qmail, "--user", ME)
    assert (qmail / "greycheck").read_text().startswith("#!/bin/sh\n")
    child = Child(qmail, qmail.parent / "store" / "greycheck.db")
    assert child.checkenv(sender=b"--help", recipient=b"$(reboot) '\"").verdict == (DEFERRED, "new")
    child.age(300)
    assert child.checkenv(sender=b"--help", recipient=b"$(reboot) '\"").verdict == (
        ACCEPTED,
        "retry",
    )


def test_a_launcher_may_be_linked(qmail: Path) -> None:
    install(qmail, "--user", ME)
    (qmail.parent / "home").mkdir()
    link = qmail.parent / "home" / "qmail-checkenv"
    link.symlink_to(qmail / "greycheck")
    child = Child(link.parent, qmail.parent / "store" / "greycheck.db")
    assert child.checkenv(sender=b"db", recipient=b"upgrade").verdict == (DEFERRED, "new")


# --- for another user -----------------------------------------------------------------------------


def test_an_unknown_user_is_named(qmail: Path) -> None:
    assert (
        install(qmail, "--user", "nosuchuser", code=1).stderr == "Error: nosuchuser: no such user\n"
    )


def test_without_qmails_user_nobody_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "QMAIL_USER", "nosuchuser")
    assert trial.find_account(None) is None
    monkeypatch.setattr(trial, "QMAIL_USER", ME)
    account = trial.find_account(None)
    assert account
    assert account.pw_name == ME


# These need a second user.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@as_root
def test_it_runs_as_the_other_user(qmail: Path) -> None:
    os.chown(qmail.parent / "store", NOBODY.pw_uid, NOBODY.pw_gid)
    install(qmail, "--user", "nobody")
    store = qmail.parent / "store" / "greycheck.db"
    assert store.stat().st_uid == NOBODY.pw_uid
    child = Child(qmail, store)
    environ = child.environ(REMOTEMF=b"a", REMOTERCPT=b"b")
    ran = child.run(
        [qmail / "greycheck"], environ, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[]
    )
    assert ran.verdict == (DEFERRED, "new")


@as_root
def test_a_store_that_the_user_cannot_write_is_named(qmail: Path) -> None:
    stderr = install(qmail, "--user", "nobody", code=1).stderr
    assert f"nobody cannot write {qmail.parent}/store (mode 0755, owner root)" in stderr
    assert os.geteuid() == 0


@as_root
def test_a_directory_that_the_user_cannot_pass_is_named(qmail: Path) -> None:
    (qmail.parent / "store").chmod(0o700)
    qmail.chmod(0o700)
    stderr = install(qmail, "--user", "nobody", code=1).stderr
    assert (
        f"nobody may not enter {qmail} (mode 0700, owner root) on the way to {qmail}/greycheck"
        in stderr
    )
    assert f"nobody cannot write {qmail.parent}/store (mode 0700, owner root)" in stderr


@as_root
def test_an_interpreter_that_the_user_cannot_run_is_named(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(qmail.parent / "store", NOBODY.pw_uid, NOBODY.pw_gid)
    private = qmail.parent / "private"
    private.mkdir()
    (private / "python").symlink_to(python.interpreter())
    private.chmod(0o700)
    monkeypatch.setattr(trial, "interpreter", lambda: str(private / "python"))
    assert (
        f"nobody may not enter {private} (mode 0700, owner root)"
        in install(qmail, "--user", "nobody", code=1).stderr
    )


@as_root
def test_the_systems_directory_is_made_for_the_user(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = qmail.parent / "lib" / "greycheck"
    (qmail.parent / "lib").mkdir()
    monkeypatch.setattr(settings, "SYSTEM_DIRECTORY", str(system))
    monkeypatch.setattr(module, "SYSTEM_DIRECTORY", str(system))
    monkeypatch.delenv("GREYCHECK_DATABASE")
    install(qmail, "--user", "nobody")
    assert (system.stat().st_uid, system.stat().st_mode & 0o777) == (NOBODY.pw_uid, 0o700)
    assert (system / "greycheck.db").stat().st_uid == NOBODY.pw_uid


def test_who_is_not_root_cannot_tell_of_another(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})
    assert trial.check_as(NOBODY, [], found) == [
        "whether nobody can run this is not known: run greycheck install as root, or as nobody"
    ]
    with module.acting_as(NOBODY):
        pass


def test_a_launcher_that_does_not_run_is_reported(qmail: Path) -> None:
    broken = qmail / "greycheck"
    broken.write_text("#!/nonexistent/python\n")
    broken.chmod(0o755)
    assert trial.try_run(broken) == f"{broken}: does not run: No such file or directory"
    broken.write_text("#!/bin/sh\necho oops >&2\nexit 3\n")
    assert trial.try_run(broken) == f"{broken}: does not run: exit code 3: oops"


def test_an_installation_that_does_not_run_fails(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "try_run", lambda path, account=None: f"{path}: does not run")
    stderr = install(qmail, "--user", ME, code=1).stderr
    complaints = [f"{qmail}/{name}: does not run\n" for name in python.PROGRAMS]
    assert stderr == "".join(["Error: not ready:\n", *complaints])


def test_what_the_environment_says_is_to_be_said_to_the_service_too(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "1m")
    output = install(qmail, "--user", ME).stdout
    assert f"\n  echo {qmail.parent}/store/greycheck.db > env/GREYCHECK_DATABASE\n" in output
    assert "\n  echo 1m > env/GREYCHECK_DELAY\n" in output
    assert f" envdir /PATH/TO/env {qmail}/greycheck expire\n" in output


@pytest.mark.parametrize("name", ["com,ma", 'quo"te'])
def test_a_directory_that_fits_into_no_list_is_refused(qmail: Path, name: str) -> None:
    (qmail / name).mkdir()
    assert "does not fit into SMTPEXTFORK" in install(qmail / name, "--user", ME, code=1).stderr
    assert list((qmail / name).iterdir()) == []


def test_what_is_compiled_can_be_read_by_all_whatever_the_umask(qmail: Path) -> None:
    for path in (module.package() / "__pycache__").glob("policy.*.pyc"):
        path.unlink()
    umask = os.umask(0o077)
    try:
        install(qmail, "--user", ME)
    finally:
        os.umask(umask)
    [path] = (module.package() / "__pycache__").glob(f"policy.{sys.implementation.cache_tag}.pyc")
    assert path.stat().st_mode & 0o444 == 0o444


def test_what_cannot_be_compiled_is_named(qmail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.compileall, "compile_dir", lambda *_arguments, **_options: False)
    assert "could not be byte-compiled" in install(qmail, "--user", ME, code=1).stderr


def test_a_launcher_that_cannot_be_written_leaves_nothing(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Path, _target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(qmail))

    monkeypatch.setattr(Path, "replace", refuse)
    assert install(qmail, "--user", ME, code=1).stderr == f"Error: {qmail}: Permission denied\n"
    assert list(qmail.iterdir()) == []


# --- contrib/qmail-checkenv.sh --------------------------------------------------------------------

SCRIPT = ROOT / "contrib" / "qmail-checkenv.sh"
SHELLS = [["dash"], ["bash", "--posix"], ["busybox", "sh"]]


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def by_script(request: pytest.FixtureRequest, launchers: Path, place: Path) -> Child:
    """The child called through the script, run by one of the shells."""
    shell = shutil.which(request.param[0])
    assert shell, f"{request.param[0]} is missing"
    script = place / "qmail-checkenv"
    script.write_text(
        SCRIPT.read_text().replace("#!/bin/sh", f"#!{' '.join([shell, *request.param[1:]])}", 1)
    )
    script.chmod(0o755)
    child = Child(place, place / "greycheck.db")
    child.settings["CHECKENV_PROGRAM"] = str(launchers / "qmail-checkenv")
    return child


def test_the_script_hands_every_argument_on_unharmed(by_script: Child, launchers: Path) -> None:
    from tests.test_child import HOSTILE

    straight = Child(launchers, by_script.database)
    for address in HOSTILE:
        assert by_script.checkenv(sender=address, recipient=address[::-1]).verdict == (
            DEFERRED,
            "new",
        )
    straight.age(300)
    for address in HOSTILE:
        assert straight.checkenv(
            sender=address, recipient=address[::-1], GREYCHECK_CLIENT_PASSES="0"
        ).verdict == (
            ACCEPTED,
            "retry",
        )


def test_the_script_lifts_a_small_soft_limit(by_script: Child) -> None:
    by_script.settings["GREYCHECK_DEADLINE"] = "60s"
    argv: list[Path | bytes | str] = [
        "softlimit",
        "-m",
        "5000000",
        by_script.programs / "qmail-checkenv",
        b"a",
        b"b",
    ]
    assert by_script.run(argv, by_script.environ()).verdict == (DEFERRED, "new")


@pytest.mark.parametrize(("on_error", "code"), [("accept", ACCEPTED), ("defer", DEFERRED)])
def test_the_script_makes_a_verdict_of_every_failure(
    by_script: Child, on_error: str, code: int
) -> None:
    ran = by_script.checkenv(
        CHECKENV_PROGRAM="/nonexistent/qmail-checkenv", GREYCHECK_ON_ERROR=on_error
    )
    assert ran.verdict == (code, "error")
    assert 'error="/nonexistent/qmail-checkenv: not there, or no program"' in ran.lines[-1]


def program(directory: Path, line: str) -> str:
    """The path of a program named qmail-checkenv that runs the shell's LINE."""
    (directory / "other").mkdir()
    path = directory / "other" / "qmail-checkenv"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def test_the_script_passes_a_rejection_on(by_script: Child) -> None:
    assert by_script.checkenv(CHECKENV_PROGRAM=program(by_script.programs, "exit 100")).code == 100


def test_the_script_takes_no_program_of_another_name(by_script: Child, launchers: Path) -> None:
    ran = by_script.checkenv(sender="--help", CHECKENV_PROGRAM=str(launchers / "greycheck"))
    assert ran.verdict == (ACCEPTED, "error")
    assert "its name is not qmail-checkenv" in ran.log


# Programs that say something, or of which the shell, or theirs, has to complain.
BROKEN = {
    "exits": (b"#!/bin/sh\nexit 7\n", 0o755),
    "speaks": (b"#!/bin/sh\necho oops\necho oops >&2\nexit 7\n", 0o755),
    "killed": (b"#!/bin/sh\nkill -9 $$\n", 0o755),
    "without its interpreter": (b"#!/nonexistent/python3 -IS\n", 0o755),
    "without its interpreter behind a shell": (
        b"#!/bin/sh\n'''exec' /nonexistent/python3 -IS \"$0\" \"$@\"\n' '''\n",
        0o755,
    ),
    "without its shell": (b"#!/nonexistent/sh\n", 0o755),
    "of another machine": (b"\x7fELF" + b"\x01" * 100, 0o755),
    "for nobody to run": (b"#!/bin/sh\n", 0o644),
    "for nobody to read": (b"#!/usr/bin/python3 -IS\nraise SystemExit(7)\n", 0o111),
    "gone": (None, 0),
}


def broken(directory: Path, kind: str) -> str:
    """The path of a program named qmail-checkenv that is BROKEN."""
    content, mode = BROKEN[kind]
    path = directory / "broken" / "qmail-checkenv"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(("on_error", "code"), [("accept", ACCEPTED), ("defer", DEFERRED)])
@pytest.mark.parametrize("kind", BROKEN)
def test_the_script_waits_for_no_log_and_leaves_nothing_on_the_connection(
    by_script: Child,
    kind: str,
    on_error: str,
    code: int,
) -> None:
    log_reader, log = os.pipe()
    os.set_blocking(log, False)
    os.write(log, b"x" * 65536)
    os.set_blocking(log, True)
    reader, connection = os.pipe()
    argv: list[Path | str] = [by_script.programs / "qmail-checkenv", "a", "b"]
    environ = by_script.environ(
        CHECKENV_PROGRAM=broken(by_script.programs, kind), GREYCHECK_ON_ERROR=on_error
    )
    process = subprocess.Popen(argv, env=environ, stdin=connection, stdout=connection, stderr=log)
    os.close(connection)
    os.close(log)
    try:
        assert process.wait(timeout=60) == code
        assert select.select([reader], [], [], 60)[0], "something still holds the connection"
        assert os.read(reader, 100) == b""
        wait_for(lambda: not is_written(log_reader))
    finally:
        process.kill()
        os.close(reader)
        os.close(log_reader)


def is_written(reader: int) -> bool:
    """Whether a process has the pipe of READER open for writing, which may be full."""
    poll = select.poll()
    poll.register(reader, 0)
    return not poll.poll(0)


@pytest.mark.parametrize(("on_error", "code"), [("accept", ACCEPTED), ("defer", DEFERRED)])
@pytest.mark.parametrize("kind", BROKEN)
def test_the_script_tells_every_failure_in_one_line(
    by_script: Child, kind: str, on_error: str, code: int
) -> None:
    named = broken(by_script.programs, kind)
    ran = by_script.checkenv(CHECKENV_PROGRAM=named, GREYCHECK_ON_ERROR=on_error)
    assert (ran.code, ran.said) == (code, "")
    assert [line for line in ran.lines if line.startswith("greycheck: ")] == ran.lines[-1:]
    assert f' reason=error error="{named}: ' in ran.lines[-1]


def without_log(child: Child) -> list[Path | bytes | str]:
    """The command line of CHILD's qmail-checkenv, whose descriptor 2 is closed."""
    return ["sh", "-c", 'exec "$@" 2>&-', "sh", child.programs / "qmail-checkenv", "a", "b"]


def test_the_script_checks_where_the_log_is_closed(by_script: Child) -> None:
    assert by_script.run(without_log(by_script), by_script.environ()).code == DEFERRED
    assert by_script.checkenv(sender="a", recipient="b").verdict == (DEFERRED, "early")


@pytest.mark.parametrize(("on_error", "code"), [("accept", ACCEPTED), ("defer", DEFERRED)])
@pytest.mark.parametrize("kind", BROKEN)
def test_the_script_ends_in_a_verdict_where_the_log_is_closed(
    by_script: Child, kind: str, on_error: str, code: int
) -> None:
    environ = by_script.environ(
        CHECKENV_PROGRAM=broken(by_script.programs, kind), GREYCHECK_ON_ERROR=on_error
    )
    assert by_script.run(without_log(by_script), environ).code == code
