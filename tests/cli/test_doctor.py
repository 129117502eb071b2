"""``greycheck doctor``, as an operator runs it."""

import json
import os
import pty
import pwd
import select
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck.cli import doctor as module
from greycheck.cli.main import cli
from greycheck.doctor.finding import Finding
from greycheck.store.schema import migrate
from tests.doctor.name_server import name_server
from tests.support import ROOT, only_settings

ME = pwd.getpwuid(os.geteuid()).pw_name
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def database(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that the command finds, on a host where no qmail-smtpd runs."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "greycheck.db"))
    monkeypatch.setenv("GREYCHECK_RESOLVER", name_server())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("greycheck.doctor.service.services", lambda _proc, _trusted, _account: [])
    migrate.upgrade(f"sqlite:///{place}/greycheck.db")
    return place / "greycheck.db"


def doctor(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["doctor", *map(str, arguments)], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def test_a_sound_installation_ends_with_0(database: Path, launchers: Path) -> None:
    output = doctor("--dir", launchers, "--user", ME).stdout
    assert f"ok    launchers    {launchers}/greycheck: version" in output
    assert output.endswith("\nNothing here would stop mail or greylisting: 0 warnings, 1 note.\n")


def test_a_fault_ends_with_1_and_says_what_to_do(database: Path) -> None:
    output = doctor("--dir", "/nonexistent", "--user", ME, code=1).stdout
    assert "fault  launchers    /nonexistent: no such directory" in output
    assert (
        f"mkdir -p /nonexistent && greycheck install {'--user root ' * (ME == 'root')}/nonexistent"
        in output
    )
    assert "\nThis would stop mail or greylisting: 1 fault. Besides: " in output


def test_a_warning_alone_ends_with_0(database: Path, launchers: Path) -> None:
    database.chmod(0o644)
    assert "warning  store" in doctor("--dir", launchers, "--user", ME).stdout


def test_it_prints_json(database: Path, launchers: Path) -> None:
    report = json.loads(doctor("--dir", launchers, "--user", ME, "--json").stdout)
    assert report["sound"] is True
    assert {tuple(one) for one in report["findings"]} == {("level", "about", "found", "advice")}
    report = json.loads(doctor("--dir", "/nonexistent", "--user", ME, "--json", code=1).stdout)
    assert report["sound"] is False
    assert [one["about"] for one in report["findings"] if one["level"] == "fault"] == ["launchers"]


def test_settings_that_cannot_be_used_do_not_stop_it(
    database: Path, launchers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "soon")
    assert (
        "GREYCHECK_DELAY: delay = soon: not a duration"
        in doctor("--dir", launchers, "--user", ME).stdout
    )


def test_an_unknown_user_is_named(database: Path) -> None:
    assert doctor("--user", "nosuchuser", code=1).stderr == "Error: nosuchuser: no such user\n"


def test_a_directory_may_be_relative(
    database: Path, launchers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(launchers.parent)
    assert f"{launchers}/greycheck" in doctor("--dir", launchers.name, "--user", ME).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root runs every test as this one does")
def test_who_is_not_root_is_told_what_could_not_be_seen(database: Path, launchers: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "greycheck",
        "doctor",
        "--dir",
        str(launchers),
        "--user",
        "root",
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ran = subprocess.run(
        command,
        env=environ,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        extra_groups=[],
    )
    assert "Traceback" not in ran.stderr
    assert "not looked at: nobody cannot tell what root may do" in ran.stdout
    assert "nobody cannot look into it" in " ".join(ran.stdout.split())
    assert f"{launchers}/greycheck: version" in ran.stdout


def test_it_fits_a_terminal_of_80_columns(database: Path, launchers: Path) -> None:
    screen = in_terminal(
        [sys.executable, "-m", "greycheck", "doctor", "--dir", "/nonexistent" * 9, "--user", ME]
    )
    assert "\x1b[1;31mfault" in screen
    lines = [line for line in strip(screen).splitlines() if line.strip()]
    assert max(len(line) for line in lines if not line.startswith("mkdir ")) <= 80, (
        "but for a command to be copied"
    )
    assert "/nonexistent" * 9 in "".join("".join(lines).split())


def test_a_command_is_not_broken(
    database: Path, launchers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", f"/tmp{'/nonexistent' * 9}/greycheck.db")
    lines = doctor("--dir", launchers, "--user", ME, code=1).stdout.splitlines()
    assert f"install -d -m 0700 -o {ME} /tmp{'/nonexistent' * 9}" in lines
    assert [line.split() for line in lines].count(["Run:"]) == 1


def in_terminal(command: list[str]) -> str:
    """What COMMAND prints to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environ | {"TERM": "xterm"}
    )
    os.close(follower)
    output = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            output += os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
    os.close(leader)
    process.wait(60)
    return output.decode()


def strip(screen: str) -> str:
    """SCREEN without its colours."""
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", screen).replace("\r", "")


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ([], "Nothing here would stop mail or greylisting: 0 warnings, 0 notes."),
        (["ok", "warning"], "Nothing here would stop mail or greylisting: 1 warning, 0 notes."),
        (
            ["fault", "fault", "note"],
            "This would stop mail or greylisting: 2 faults. Besides: 0 warnings, 1 note.",
        ),
    ],
)
def test_it_sums_up(levels: list[str], says: str) -> None:
    assert module.summary([Finding(level, "", "") for level in levels]) == says  # type: ignore[arg-type]
