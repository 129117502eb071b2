"""``greycheck doctor --monitor``: its line, its exit codes, and that it ends in time."""

import os
import pwd
import re
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import click
import pytest

from greycheck.doctor.finding import Finding
from greycheck.doctor.monitoring import LONGEST, monitored
from greycheck.launchers import trial
from greycheck.privilege import access, apart
from tests.cli.test_doctor import ME, database, doctor  # noqa: F401
from tests.servers import wait_until

NOBODY = pwd.getpwnam("nobody").pw_uid

LINE = re.compile(
    r"GREYCHECK (OK|WARNING|CRITICAL) - ([^|\n]+) \| faults=(\d+);;0;0 warnings=(\d+);0;;0"
    r" notes=(\d+);;;0 time=\d+\.\d\ds;;;0;10\n"
)


def test_the_three_codes_of_an_installation(
    database: Path,  # noqa: F811
    launchers: Path,
) -> None:
    for directory, mode, code, word in (
        (launchers, 0o600, 0, "OK"),
        (launchers, 0o644, 1, "WARNING"),
        (Path("/nonexistent"), 0o600, 2, "CRITICAL"),
    ):
        database.chmod(mode)
        result = doctor("--dir", directory, "--user", ME, "--monitor", code=code)
        found = LINE.fullmatch(result.stdout)
        assert found is not None, result.stdout
        assert found[1] == word
        assert (int(found[3]) > 0, int(found[4]) > 0) == (code == 2, code == 1), found[0]
    assert "launchers: /nonexistent: no such directory" in result.stdout


def test_what_cannot_be_examined_is_unknown(database: Path) -> None:  # noqa: F811
    said = doctor("--user", "nosuchuser", "--monitor", code=3).stdout
    assert said.startswith("GREYCHECK UNKNOWN - nosuchuser: no such user | time=")

    def dies() -> list[Finding]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def refuses() -> list[Finding]:
        raise click.ClickException("not here")

    def fails() -> list[Finding]:
        raise ValueError("a fault")

    for examined, words in (
        (dies, "the examination ended without an answer"),
        (refuses, "not here"),
        (fails, "ValueError: a fault"),
    ):
        code, line = monitored(examined, 10)
        assert (code, line.partition(" | ")[0]) == (3, f"GREYCHECK UNKNOWN - {words}")


def test_it_ends_in_time_and_so_does_what_hangs(place: Path) -> None:
    def hangs() -> list[Finding]:
        (place / "pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        return []

    code, line = monitored(hangs, 0.5)
    assert (code, line.partition(" | ")[0]) == (3, "GREYCHECK UNKNOWN - no answer within 0.5s")
    child = int((place / "pid").read_text())
    # It was killed; here its end is taken up, if it was not yet.
    try:
        _pid, status = os.waitpid(child, 0)
    except ChildProcessError:
        return
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_what_it_has_started_ends_with_it(place: Path) -> None:
    """A launcher that is tried has a session of its own, so that it has no terminal."""

    def tries() -> list[Finding]:
        program = f"echo $$ > {place}/pid.new; mv {place}/pid.new {place}/pid; exec sleep 600"
        subprocess.run(["sh", "-c", program], check=False, **access.run_as(None))  # type: ignore[call-overload]
        return []

    def ends_early() -> list[Finding]:
        return apart.as_user(NOBODY if os.geteuid() == 0 else os.geteuid(), tries) or []

    place.chmod(0o777)
    for examined in (tries, ends_early):
        code, _line = monitored(examined, 2)
        assert code == 3
        started = int((place / "pid").read_text())
        wait_until(partial(has_ended, started), "it has ended")
        (place / "pid").unlink()


def test_it_ends_by_itself_where_the_monitor_is_killed(place: Path) -> None:
    def hangs() -> list[Finding]:
        (place / "new").write_text(str(os.getpid()))
        (place / "new").rename(place / "pid")
        time.sleep(600)
        return []

    monitor = os.fork()
    if monitor == 0:
        monitored(hangs, 0.5)
        os._exit(0)
    wait_until((place / "pid").exists, "it examines")
    os.kill(monitor, signal.SIGKILL)
    os.waitpid(monitor, 0)
    wait_until(partial(has_ended, int((place / "pid").read_text())), "it has ended")


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


def test_directories_of_trials_that_were_killed_go_at_the_next(
    place: Path, launchers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    old, young, other = (place / f"{trial.PREFIX}{name}" for name in ("old", "young", "link"))
    for each in (old, young, place / "kept"):
        each.mkdir()
        (each / "greycheck.db").touch()
    other.symlink_to(place / "kept")
    for path in (old, other):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert trial.try_run(launchers / "greycheck") == ""
    assert sorted(path.name for path in place.iterdir()) == sorted(["kept", young.name, other.name])
    assert (place / "kept" / "greycheck.db").exists()


def test_what_others_wrote_is_one_plain_line(place: Path) -> None:
    hostile = "x | faults=0\n\x1b[2J" + "y" * 1000
    code, line = monitored(lambda: [Finding("fault", "store", hostile)] * 5, 10)
    assert code == 2
    assert line.isprintable()
    assert line.count("|") == 1
    assert len(line) < LONGEST + 200
    code, line = monitored(lambda: [Finding("warning", "disk", "full")] * 5, 10)
    assert "disk: full; disk: full; disk: full; 2 more | faults=0" in line


@pytest.mark.parametrize("arguments", [("--json",), ("--timeout", "0")])
def test_what_makes_no_sense_is_refused(
    database: Path,  # noqa: F811
    arguments: tuple[str, ...],
) -> None:
    doctor("--monitor", *arguments, code=2)
