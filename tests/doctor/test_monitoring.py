"""``greycheck doctor --monitor``: its line, its exit codes, and that it ends in time."""

import os
import re
import signal
import time
from pathlib import Path

import click
import pytest

from greycheck.doctor.finding import Finding
from greycheck.doctor.monitoring import LONGEST, monitored
from tests.cli.test_doctor import ME, database, doctor  # noqa: F401

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
