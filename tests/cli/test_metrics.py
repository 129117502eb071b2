"""``greycheck metrics``: what it says of a store, where it writes it, and what Prometheus says."""

import os
import pwd
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert

from greycheck.cli import metrics as command
from greycheck.cli.main import cli
from greycheck.history import SPOOL
from greycheck.metrics import counted, exposition
from greycheck.metrics.counted import marks
from greycheck.settings import read
from greycheck.store.admin import history
from greycheck.store.admin.engine import open_engine
from greycheck.store.admin.history import SUM, Total, step
from greycheck.store.base import StoreError
from greycheck.store.breaker import DOWN, Breaker
from greycheck.store.schema.tables import provider, triplet
from tests.support import Database, on_every_database, only_settings
from tests.test_history import settings

NOW = 1_800_000_000


def samples(text: str) -> dict[str, float]:
    """What Prometheus' own parser makes of TEXT: name and labels, and the value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            shown = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
            found[f"{name}{{{shown}}}" if shown else name] = value
    return found


def promtool(*arguments: str | Path, text: str = "") -> None:
    """Has promtool look at TEXT or a file; it must find nothing."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    only_settings(monkeypatch)
    monkeypatch.setattr(command, "time", lambda: NOW)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch, database: Database) -> Database:
    database.make()
    for name, value in database.environ.items():
        monkeypatch.setenv(name, value)
    return database


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["metrics", *map(str, arguments)], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def fill(database: Database) -> None:
    """Verdicts, delays, one triplet that waits, two providers, and a host that expires rows."""
    totals: history.Totals = Counter(
        {
            Total(0, "ever", "defer", "new"): 7,
            Total(0, "ever", "accept", "retry"): 4,
            Total(0, "ever", "accept", 'x"\n'): 1,  # another host has written it
            Total(0, "waited", "", str(step(64))): 1,
            Total(0, "waited", "", str(step(65))): 2,
            Total(0, "waited", "", str(step(400_000))): 1,
            Total(0, "waited", "", SUM): 400_194,
        }
    )
    told = settings(database.directory, DATABASE=database.url)
    engine = open_engine(database.url)
    history.note_expired(engine, NOW - 7000)
    history.note_expired(engine, NOW - 60)
    waits = {
        "triplet_key": bytes(16),
        "network": "192.0.2.0/24",
        "sender": "a@example.org",
        "recipient": "b@example.net",
        "first_attempt": NOW - 900,
        "last_attempt": NOW - 900,
        "early_attempts": 0,
        "passes": 0,
        "expires_at": NOW + 90_000,
    }
    with engine.begin() as connection:
        history.add(connection, told, totals, NOW)
        connection.execute(insert(triplet), waits)
        for number, (name, answered) in enumerate(
            {"a.example": NOW - 5, "b.example": None}.items()
        ):
            row = {"domain_key": bytes([number] * 16), "name": name, "answered_at": answered}
            rest = {"comment": "", "networks": "", "created_at": 1, "asked_at": 1, "why": ""}
            connection.execute(insert(provider), row | rest)
    engine.dispose()


@on_every_database
def test_it_tells_what_the_store_has_and_promtool_accepts_it(used: Database) -> None:
    fill(used)
    (used.directory / SPOOL).write_text(f"{NOW} defer new 0 example.net - - 3\n")
    text = run().stdout
    found = samples(text)
    host = os.uname().nodename
    expected = {
        'greycheck_verdicts_total{reason="new",verdict="defer"}': 10,  # the spool has three
        'greycheck_verdicts_total{reason="retry",verdict="accept"}': 4,
        'greycheck_delay_seconds_bucket{le="64.0"}': 1,
        'greycheck_delay_seconds_bucket{le="128.0"}': 3,
        'greycheck_delay_seconds_bucket{le="262144.0"}': 3,
        'greycheck_delay_seconds_bucket{le="+Inf"}': 4,
        "greycheck_delay_seconds_count": 4,
        "greycheck_delay_seconds_sum": 400_194,
        "greycheck_store_up": 1,
        "greycheck_waiting_triplets": 1,
        "greycheck_due_triplets": 1,
        "greycheck_oldest_waiting_timestamp_seconds": NOW - 900,
        f'greycheck_expire_timestamp_seconds{{mx="{host}"}}': NOW - 60,
        'greycheck_provider_answer_timestamp_seconds{provider="a.example"}': NOW - 5,
        'greycheck_provider_answer_timestamp_seconds{provider="b.example"}': 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    # Besides those two errors, of which there are none.
    assert len([name for name in found if "verdicts_total" in name]) == 4
    promtool("check", "metrics", text=text)


def test_expire_leaves_its_time_with_no_history_too(
    used: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_HISTORY", "0")
    for _ in range(2):
        done = CliRunner().invoke(cli, ["expire", "--json"], prog_name="greycheck")
        assert '"history": 0' in done.stdout, done.output
    name = f'greycheck_expire_timestamp_seconds{{mx="{os.uname().nodename}"}}'
    assert samples(run().stdout)[name] > 0


def test_a_mark_of_a_host_is_told(place: Path) -> None:
    url = "postgresql://me@/grey?host=one.example&host=two.example"
    given = {"CONFIG": "/dev/null", "DATABASE": url, "STATE_DIRECTORY": str(place)}
    told = read({f"GREYCHECK_{name}".encode(): value.encode() for name, value in given.items()})
    server = told.database.server
    assert server is not None
    Breaker(str(place), server).set(server.hosts[1], DOWN)
    found = {(host, kind): seconds for host, kind, seconds in marks(told)}
    assert len(found) == 4
    assert [each for each, seconds in found.items() if seconds] == [(str(server.hosts[1]), DOWN)]


def test_the_file_is_renamed_into_its_place_and_anybody_may_read_it(
    used: Database, place: Path
) -> None:
    (place / "out").mkdir()
    file, target = place / "out" / "greycheck.prom", place / "target"
    target.write_text("kept")
    file.symlink_to(target)
    mask = os.umask(0o077)
    try:
        run("--output", file)
    finally:
        os.umask(mask)
    assert target.read_text() == "kept"
    assert file.lstat().st_mode == 0o100644
    assert samples(file.read_text())["greycheck_store_up"] == 1
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_store_that_cannot_be_read_is_told_in_the_file_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "greycheck.db").write_bytes(b"no database, and longer than any header of one" * 50)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "greycheck.db"))
    result = run("--output", place / "greycheck.prom", code=1)
    assert f"{place}/greycheck.db" in result.stderr or "not a database" in result.stderr
    found = samples((place / "greycheck.prom").read_text())
    assert found["greycheck_store_up"] == 0
    assert "greycheck_waiting_triplets" not in found


def test_settings_that_are_wrong_do_not_leave_old_numbers(
    used: Database, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "out").mkdir()
    file = place / "out" / "greycheck.prom"
    run("--output", file)
    assert samples(file.read_text())["greycheck_store_up"] == 1
    monkeypatch.setenv("GREYCHECK_DELAY", "soon")
    assert "not a duration" in run("--output", file, code=1).stderr
    found = samples(file.read_text())
    assert found["greycheck_store_up"] == 0
    assert "greycheck_spool_bytes" not in found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks whose a store is")
def test_a_store_that_root_does_not_open_leaves_no_old_numbers(
    used: Database, tmp_path: Path
) -> None:
    file = tmp_path / "greycheck.prom"
    run("--output", file)
    used.directory.chmod(0o777)
    assert "any user may write there" in run("--output", file, code=1).stderr
    assert samples(file.read_text())["greycheck_store_up"] == 0


def test_any_name_is_one_that_root_takes() -> None:
    hostile = 'bücher "\u202e\n\x1b{}\\ \U0001f600'
    names = {counted._plain(hostile): 1, counted._plain("ä" * 1000): 2}
    text = exposition.text(exposition.Families(counted.Counted(answered=names, expired=names)))
    assert command._checked([text, ""]) == (text, "")
    assert len(samples(text)) > 4


def test_the_oldest_is_of_what_waits_now(used: Database) -> None:
    fill(used)
    engine = open_engine(used.url)
    row = {
        "network": "192.0.2.0/24",
        "sender": "a@example.org",
        "recipient": "b@example.net",
        "early_attempts": 0,
    }
    with engine.begin() as connection:
        for number, (first, passes) in enumerate(
            {NOW + 99_999: 0, NOW - 5000: 1, NOW - 10**7: 0}.items(), 1
        ):
            times = {"first_attempt": first, "last_attempt": first, "expires_at": NOW + number}
            one = {"triplet_key": bytes([number] * 16), "passes": passes}
            connection.execute(insert(triplet), row | times | one)
    engine.dispose()
    assert samples(run().stdout)["greycheck_oldest_waiting_timestamp_seconds"] == NOW - 900


def test_the_age_of_the_spool_is_that_of_its_first_line(used: Database) -> None:
    spool = used.directory / SPOOL
    spool.write_text(f"{NOW - 50} defer new 0 example.net - - 3\n")
    (used.directory / f"{SPOOL}.1.1").write_text(f"{NOW - 70} defer new 0 example.net - - 3\n")
    found = samples(run().stdout)
    assert found["greycheck_spool_oldest_timestamp_seconds"] == NOW - 70
    assert found["greycheck_spool_bytes"] == 2 * spool.stat().st_size


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_root_writes_nothing_into_a_directory_of_another(used: Database, place: Path) -> None:
    (place / "out").mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(place / "out", nobody.pw_uid, nobody.pw_gid)
    result = run("--output", place / "out" / "greycheck.prom", code=1)
    assert f"{place}/out" in result.stderr
    assert list((place / "out").iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [None, ["greycheck_x 1\n"], [1, ""], ["node_load1 7\n", ""], ["greycheck_x \x1b\n", ""]],
)
def test_what_another_user_tells_is_numbers_of_greychecks_or_refused(answer: object) -> None:
    with pytest.raises(StoreError, match="something else than numbers"):
        command._checked(answer)


def test_without_the_library_it_says_how_to_install_it(
    used: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    said = run(code=1).stderr
    assert "metrics need prometheus_client, which is not installed here: " in said
    assert re.search(r"install '?prometheus_client", said), said
