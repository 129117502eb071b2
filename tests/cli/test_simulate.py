"""``greycheck simulate``, as an operator runs it."""

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck.cli import simulate
from greycheck.cli.main import cli
from tests.simulation.synthetic import Synthetic, written
from tests.simulation.test_replay import EARLY, NEW, RETRY, line
from tests.support import ROOT, only_settings
from tests.test_schedules import NOW


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Default settings, and a store that nobody can open: none is wanted."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "none" / "greycheck.db"))
    monkeypatch.setenv("TZ", "UTC")
    # The logs here are of that time.
    monkeypatch.setattr(simulate, "time", lambda: NOW + 400 * 86400)


@pytest.fixture
def log(place: Path) -> Path:
    """Three mails of one day: one that waits 400 s, one that is known then, and spam."""
    path = place / "current"
    text = [line(0, NEW), line(400, RETRY, more=" delayed=400")]
    text += [line(500, "accept reason=client", recipient="eve@example.net")]
    text += [
        line(600, NEW, "203.0.113.1", "x@y.example"),
        line(200_000, NEW, "203.0.113.9", "z@z.example"),
    ]
    path.write_text("".join(text))
    return path


def run(*arguments: str | Path, text: str = "", code: int = 0) -> Result:
    given = ["simulate", *map(str, arguments)]
    result = CliRunner().invoke(cli, given, input=text, prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def table(text: str) -> dict[str, list[str]]:
    """The lines of a table by their first words, with what is in their columns."""
    rows = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in text.split("\n")]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def test_other_settings_are_told_beside_what_was_and_what_is(log: Path) -> None:
    said = run("--log", log, "--delay", "10m").stdout
    found = table(said)
    assert found["setting"] == ["delay: 5m now, 10m simulated"]
    assert found["mails"] == ["4", "4", "4"]
    assert found["passed at once"] == ["1", "1", "0", "-1"]
    assert found["passed after a wait"] == ["1", "1", "2", "+1"]
    assert found["within 15m"] == ["1", "1", "1"]
    assert found["within 30m"] == ["0", "0", "1", "+1"]
    assert found["never came again"] == ["1", "1", "1"]
    assert found["waited at the log's end"] == ["1", "1", "1"]
    assert found["by a schedule"] == ["0", "0", "2", "+2"]
    assert "1  passed at once -> passed after a wait" in said
    assert "Of 2 mails the log ends before these settings let them pass" in said
    assert "within 1d" not in said


def test_without_a_setting_the_log_is_compared_with_the_settings_as_they_are(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "10m")
    found = table(run("--log", log).stdout)
    assert found["passed after a wait"] == ["1", "2", "+1"]
    assert "setting" not in found


def test_json_has_all_figures_by_day_too(log: Path) -> None:
    found = json.loads(run("--log", log, "--ipv4-prefix", "32", "--json").stdout)
    assert found["settings"] == {"ipv4_prefix": {"current": "24", "simulated": "32"}}
    assert (found["lines"], found["checks"], found["unusable"]) == (5, 5, 0)
    ways = ("logged", "current", "simulated")
    assert tuple(found["ways"]) == ways
    assert [found["ways"][way]["delayed"] for way in ways] == [1, 1, 1]
    assert found["ways"]["logged"]["reasons"] == {"client": 1, "new": 2, "retry": 1}
    assert [day["day"] for day in found["days"]] == ["2027-01-15", "2027-01-17"]
    assert [day["logged"]["mails"] for day in found["days"]] == [3, 1]
    assert (found["first"], found["last"]) == (NOW, NOW + 200_000)
    assert {"from": "never", "to": "never", "mails": 1} in found["changes"]


def test_the_figures_of_a_synthetic_log_are_true(place: Path) -> None:
    made = Synthetic(5, 40, NOW, 20, 300, 3)
    (place / "log").write_bytes(b"".join(written(made.events())))
    found = json.loads(run("--log", place / "log", "--delay", "15m", "--json").stdout)
    for way, delay in (("logged", 300), ("current", 300), ("simulated", 900)):
        true = made.truth(delay)
        figures = found["ways"][way]
        assert (figures["at_once"], figures["delayed"]) == (true.at_once, true.delayed)
        assert (figures["never"], figures["deferrals"]) == (true.never, true.deferrals)
        assert figures["longest_wait"] == true.longest
        assert figures["by_schedule"] == true.stood_in
        assert figures["mean_wait"] == true.waited // true.delayed


def test_several_logs_and_standard_input_are_read_together(place: Path) -> None:
    (place / "new").write_text(line(400, RETRY, more=" delayed=400"))
    (place / "old").write_text(line(0, NEW))
    found = json.loads(run("--log", place / "new", place / "old", "--json").stdout)
    assert found["ways"]["current"]["delayed"] == 1
    text = line(100, EARLY)
    mixed = json.loads(
        run("--log", place / "new", "--log", place / "old", "-", "--json", text=text).stdout
    )
    assert (mixed["lines"], mixed["ways"]["logged"]["deferrals"]) == (3, 2)


def test_what_can_be_read_only_once_is_read_once(log: Path) -> None:
    """As bash makes of <(zcat mail.log.*.gz)."""
    reading, writing = os.pipe()
    os.write(writing, log.read_bytes())
    os.close(writing)
    found = json.loads(run("--log", f"/dev/fd/{reading}", "--json").stdout)
    os.close(reading)
    assert found["ways"]["logged"]["mails"] == 4


def test_rules_of_a_file_stand_in_the_place_of_those_that_the_log_names(
    log: Path, place: Path
) -> None:
    rules = place / "rules"
    rules.write_text("allow 192.0.2.0/24 # partner\nallow name:mx.example.org\n")
    result = run("--log", log, "--rules", rules)
    assert table(result.stdout)["passed at once"] == ["1", "1", "2", "+1"]
    assert "1 rules by name or HELO match nothing" in result.stderr
    rules.write_text("allow 192.0.2.0/24\nallow what is this\nfoo\n")
    said = run("--log", log, "--rules", rules, code=1).output
    assert f"{rules}:2:" in said
    assert f"{rules}:3:" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--delay", "5x"), "--delay"),
        (("--ipv4-prefix", "33"), "not a whole number from 1 to 32"),
        (("--identity", "perhaps"), "not one of yes, observe, no"),
        (("--delay", "3d"), "retry_window ends before delay is over"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    log: Path, options: tuple[str, ...], words: str
) -> None:
    assert words in run("--log", log, *options, code=2).output


def test_a_log_that_is_not_there_or_says_nothing_is_named(place: Path, log: Path) -> None:
    assert f"{place}/none" in run("--log", place / "none", code=1).output
    assert "name a log" in run(code=2).output
    assert "no line of 1 is one of a check" in run("--log", "-", text="x\n", code=1).output
    bare = line(0, NEW).partition(" ")[2]
    assert "has both a time and a client" in run("--log", "-", text=bare, code=1).output
    assert run("--log", log, place, code=1).output.count(str(place)) == 1


def test_a_reader_who_cannot_write_learns_nothing_of_a_store(log: Path, place: Path) -> None:
    run("--log", log)
    assert sorted(path.name for path in place.iterdir()) == ["current"]


def test_memory_is_bounded_by_what_waits_and_is_known(place: Path) -> None:
    """Spam from ever new clients, a hundred days of it: what is over is dropped."""
    script = (
        "import sys; sys.argv[1:] = ['simulate', '--log', '-', '--json'];"
        "from greycheck.__main__ import main; main()"
    )

    def most(days: int) -> int:
        """The most memory that so many DAYS take, in KiB."""
        text = b"".join(
            line(
                (day - 400) * 86400 + 40 * number,
                NEW,
                f"{40 + day % 100}.{number >> 8}.{number & 255}.1",
                f"spam{number}@host{day}.example",
            ).encode()
            for day in range(days)
            for number in range(300)
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text)
        process.stdin.close()
        said = json.loads(process.stdout.read())
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        process.stdout.close()
        assert status == 0
        assert said["ways"]["current"]["mails"] == 300 * days
        found: resource.struct_rusage = usage
        return found.ru_maxrss

    assert most(100) - most(10) < 6000


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_tells_a_person_how_far_it_is_and_nobody_else(place: Path, is_terminal: bool) -> None:
    log = place / "of-last-year"
    log.write_text(line(-400 * 86400, NEW))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "greycheck", "simulate", "--log", str(log)],
        stdout=subprocess.PIPE,
        stderr=theirs if is_terminal else subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"},
    )
    os.close(theirs)
    output, errors = process.communicate(timeout=60)
    seen = os.read(ours, 65536) if is_terminal else b""
    os.close(ours)
    assert process.returncode == 0
    assert b"passed at once" in output
    assert b"reading" not in output
    assert (b"reading" in seen, errors or b"") == (is_terminal, b"")


def test_a_time_without_a_year_is_the_last_such_time(place: Path) -> None:
    """As syslog has it."""
    day = "Jan 15 01:53:20 host greycheck[7]: "
    text = day + line(0, NEW).partition("greycheck: ")[2]
    found = json.loads(run("--log", "-", "--json", text=text).stdout)
    assert found["first"] == NOW + 31_514_000
