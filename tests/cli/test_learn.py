"""``greycheck learn``: what logs teach, as an operator runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import time

import pytest
from click.testing import CliRunner, Result

from greycheck.cli import learn as learning
from greycheck.cli.main import cli
from greycheck.mail_logs import lines
from tests.support import (
    ACCEPTED,
    DEFERRED,
    ROOT,
    Child,
    Database,
    on_every_database,
    only_settings,
)

DAY = 86400
LINE = (
    "greycheck: accept reason=exempt client=192.0.2.1 sender=<{}> recipient=<{}>"
    " by=RELAYCLIENT hook=smtpextfork ms=0\n"
)
USER, OUTSIDE = "joe@ours.example", "ann@there.example"


@pytest.fixture
def store(child: Child, database: Database, monkeypatch: pytest.MonkeyPatch) -> Child:
    """A store that the command finds, without a row."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_LEARN_OUTBOUND", "60d")
    for name, value in database.environ.items():
        monkeypatch.setenv(name, value)
    child.make_store()
    return child


def run(*arguments: str | Path, text: str | bytes = "", code: int = 0) -> Result:
    given = ["learn", *map(str, arguments)]
    result = CliRunner().invoke(cli, given, input=text, prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def tai(seconds: float) -> str:
    return f"@{(1 << 62) + 10 + int(seconds):016x}00000000 "


def learnt(store: Child) -> list[tuple[object, ...]]:
    return store.rows("SELECT sender, recipient FROM correspondent ORDER BY sender")


@on_every_database
def test_an_answer_to_what_a_log_tells_passes(store: Child, place: Path) -> None:
    log = place / "current"
    log.write_text(tai(time()) + LINE.format(USER, OUTSIDE))
    said = run(log).stdout
    assert said == "1 lines: 1 mails of users, 0 of them too old.\n1 correspondents learnt.\n"
    asked = [
        store.smtpextfork(sender, USER, "198.51.100.7", GREYCHECK_LEARN_OUTBOUND="60d").verdict
        for sender in (OUTSIDE, "eve@there.example")
    ]
    assert asked == [(ACCEPTED, "correspondent"), (DEFERRED, "new")]
    assert "0 correspondents learnt" in run(log).stdout, "it is known"


def test_the_time_of_a_line_counts(store: Child) -> None:
    """What is over is left out; what is later prolongs; a time in the future is now."""
    now = int(time())
    times = {"old": now - 61 * DAY, "aged": now - 50 * DAY, "last": now - 10 * DAY}
    text = "".join(
        tai(when) + LINE.format(USER, f"{name}@there.example") for name, when in times.items()
    )
    text += tai(now - DAY) + LINE.format(USER, "last@there.example")
    text += tai(now + 99 * DAY) + LINE.format(USER, "next@there.example")
    text += LINE.format(USER, "bare@there.example")
    said = run("-", text=text).stdout
    assert said == "6 lines: 6 mails of users, 1 of them too old.\n4 correspondents learnt.\n"
    rows = store.rows("SELECT sender, last_seen, expires_at - last_seen FROM correspondent")
    found = {str(name).partition("@")[0]: seen for name, seen, _lasts in rows}
    assert {lasts for _name, _seen, lasts in rows} == {60 * DAY}
    assert found["aged"] == now - 50 * DAY
    assert found["last"] == now - DAY
    assert all(0 <= int(str(found[name])) - now < 60 for name in ("next", "bare"))


def test_a_later_log_that_is_older_takes_nothing_back(store: Child) -> None:
    now = int(time())
    for when in (now - DAY, now - 30 * DAY):
        run("-", text=tai(when) + LINE.format(USER, OUTSIDE))
    assert store.rows("SELECT last_seen FROM correspondent") == [(now - DAY,)]


def test_a_dry_run_tells_and_writes_nothing(store: Child) -> None:
    text = LINE.format(USER, OUTSIDE) * 2
    assert "1 correspondents to learn." in run("--dry-run", text=text).stdout
    counts = json.loads(run("--dry-run", "--json", text=text).stdout)
    assert counts == {"dry_run": True, "lines": 2, "mails": 2, "old": 0, "learnt": 1}
    assert learnt(store) == []


def test_verbose_names_them_and_no_byte_of_a_log_reaches_the_terminal(store: Child) -> None:
    text = LINE.format(USER, "\\x1b[31m@there.example")
    said = run("-v", text=text).stdout
    assert f"{USER} wrote to \\x1b[31m@there.example\n" in said
    assert learnt(store) == [("\\x1b[31m@there.example", USER)]


def test_only_users_of_a_domain(store: Child) -> None:
    text = "".join(
        f"info msg {number}: bytes 9 from <{sender}> qp 1 uid 2\n"
        f"starting delivery 1: msg {number} to remote {OUTSIDE}\n"
        for number, sender in enumerate((USER, "eve@elsewhere.example"), 1)
    )
    run("--domain", "Ours.Example.", text=text)
    assert learnt(store) == [(OUTSIDE, USER)]


def test_without_the_setting_it_says_which(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYCHECK_LEARN_OUTBOUND", "0")
    assert "set learn_outbound = 60d" in run(text="", code=1).output
    assert learnt(store) == []


def test_a_log_that_is_not_there_is_named(place: Path, store: Child) -> None:
    assert f"{place}/none" in run(place / "none", code=1).output
    assert learnt(store) == []


def test_without_a_store_it_says_so(place: Path, store: Child) -> None:
    store.database.unlink()
    assert "greycheck db upgrade" in run(text=LINE.format(USER, OUTSIDE), code=1).output


def test_many_are_written_in_batches(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not remembered any more is asked of the store again."""
    monkeypatch.setattr(learning, "BATCH", 2)
    monkeypatch.setattr(learning, "KNOWN", 3)
    names = [f"{number}@there.example" for number in range(7)]
    text = "".join(LINE.format(USER, name) for name in names * 2)
    assert "14 mails of users" in run(text=text).stdout
    assert learnt(store) == [(name, USER) for name in names]


def test_hostile_lines_fail_nothing(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long, cut, full of other bytes, and with a NUL in an address."""
    monkeypatch.setattr(lines, "LINE", 200)
    text = b"\xff\0\n" + b"x" * 5000 + LINE.format(USER, "1@there.example").encode()
    text += LINE.format(USER, "2\\x00@there.example").encode()
    text += LINE.format(USER, OUTSIDE).encode() + b"greycheck: accept reason=exempt"
    assert "1 correspondents learnt." in run(text=text).stdout
    assert learnt(store) == [(OUTSIDE, USER)]


def test_a_long_log_needs_little_memory(place: Path, store: Child) -> None:
    """However many mails begin in a log, and never end."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (300 << 20,) * 2);"
        "sys.argv[1:] = ['learn', '--dry-run']; from greycheck.__main__ import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    sender = "x" * 850
    for number in range(300_000):
        line = f"info msg {number}: bytes 9 from <{sender}{number}@ours.example> qp 1 uid 2\n"
        process.stdin.write(line.encode())
    said = process.communicate()[0]
    assert process.returncode == 0
    assert b"300000 lines" in said


# --- what was learnt ------------------------------------------------------------------------------


def operate(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, arguments, prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def known(store: Child) -> Child:
    """Two correspondents of one user, and one of another, who is over soon."""
    now = int(time())
    text = tai(now - 3600) + LINE.format(USER, OUTSIDE)
    text += tai(now - 2 * DAY) + LINE.format(USER, "bob@far.example")
    text += tai(now - 59 * DAY) + LINE.format("eve@ours.example", OUTSIDE)
    run(text=text)
    return store


@on_every_database
def test_correspondents_are_listed(known: Child) -> None:
    rows = json.loads(operate("list", "correspondents", "--json"))
    assert [(row["sender"], row["recipient"], row["counts"]) for row in rows] == [
        (OUTSIDE, USER, True),
        ("bob@far.example", USER, True),
        (OUTSIDE, "eve@ours.example", True),
    ]
    shown = operate("list", "correspondents", "--sort", "expires", "--limit", "1")
    assert f"{OUTSIDE}  eve@ours.example" in shown
    known.age(2 * DAY)
    assert "over" in operate("list", "correspondents", "--address", "eve@ours.example")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--address", USER), 2),
        (("--address", "Ann+x@There.example"), 2),
        (("--domain", "far.example"), 1),
        (("--domain", "ours.example"), 3),
        (("--older", "1d"), 2),
        (("--newer", "1d"), 1),
    ],
)
@pytest.mark.usefixtures("known")
def test_options_choose_correspondents(options: tuple[str, ...], count: int) -> None:
    assert operate("list", "correspondents", *options, "--count") == f"{count}\n"


@pytest.mark.usefixtures("known")
def test_a_correspondent_has_no_client() -> None:
    assert "no --network" in operate("list", "correspondents", "--network", "::/0", code=2)


@on_every_database
def test_one_correspondent_is_forgotten(known: Child) -> None:
    pair = ("correspondent", "Ann@there.example.", "JOE@ours.example")
    assert operate("forget", *pair, "--dry-run") == "1 correspondent to forget.\n"
    assert len(learnt(known)) == 3
    assert operate("forget", *pair) == "1 correspondent forgotten.\n"
    assert learnt(known) == [(OUTSIDE, "eve@ours.example"), ("bob@far.example", USER)]
    assert "nothing to forget" in operate("forget", *pair)


def test_all_that_a_stolen_account_taught_is_forgotten(known: Child) -> None:
    assert "2 correspondents" in operate("forget", "correspondents", "--address", USER)
    assert learnt(known) == [(OUTSIDE, "eve@ours.example")]


def test_both_are_to_be_named(known: Child) -> None:
    assert "name both" in operate("forget", "correspondent", OUTSIDE, code=2)
    assert len(learnt(known)) == 3
