"""greycheck copy, as an operator runs it: arguments, what it prints, a kill in the middle, and what
it refuses.
"""

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import func, insert, select

from greycheck.cli import copy as copying
from greycheck.cli.main import cli
from greycheck.rules import patterns
from greycheck.store.admin import rulebook
from greycheck.store.admin.copying import TABLES
from greycheck.store.admin.engine import open_engine
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import triplet
from tests import databases
from tests.servers import PASSWORD, wait_until
from tests.support import ROOT, ServerDatabase, only_settings

ALIVE = 1 << 40
ROWS = 2500


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, and no settings."""
    only_settings(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(number: int, start: int = 0) -> list[databases.Row]:
    return [
        (key.to_bytes(16), "192.0.2.0/24", f"s{key}@example.org", "r", 1, 1, 0, 0, None, ALIVE)
        for key in range(start, start + number)
    ]


@pytest.fixture
def source(place: Path) -> Path:
    """A file with some rows."""
    migrate.upgrade(f"sqlite:///{place}/source.db")
    databases.fill_url(f"sqlite:///{place}/source.db", "triplet", rows(3))
    return place / "source.db"


def triplets(url: str | Path) -> list[databases.Row]:
    return databases.contents(f"sqlite:///{url}" if isinstance(url, Path) else url, "triplet")


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["copy", *map(str, arguments)], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


# --- what it does and prints ----------------------------------------------------------------------


def test_it_makes_the_target_and_prints_counts_and_checksums(source: Path, place: Path) -> None:
    result = run("source.db", place / "target.db")
    assert result.stderr == "pass 1: 3 rows inserted, 0 updated, 0 removed\n"
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[:2] == [
        ["source:", f"sqlite:///{source}"],
        ["target:", f"sqlite:///{place}/target.db"],
    ]
    assert [line[0] for line in lines[3::2]] == [table.name for table in TABLES]
    assert [line[-1] for line in lines[4::2]] == ["same"] * len(TABLES)
    assert lines[3][1:3] == ["source", "3"]
    assert lines[3][3] == lines[4][2]
    assert all(len(line) <= 80 for line in result.stdout.splitlines()[2:])
    assert triplets(place / "target.db") == triplets(source)
    assert (place / "target.db").stat().st_mode & 0o777 == 0o600
    assert run(source, "sqlite:///" + str(place / "target.db")).stderr.startswith(
        "pass 1: 0 rows inserted"
    )


def test_it_speaks_json(source: Path, place: Path) -> None:
    found = json.loads(run(source, "target.db", "--json").stdout)
    assert (found["same"], found["passes"], found["differ"]) == (True, 1, {})
    assert found["tables"]["triplet"]["source"]["rows"] == 3
    assert found["tables"]["triplet"]["source"] == found["tables"]["triplet"]["target"]
    assert found["target"] == f"sqlite:///{place}/target.db"


def test_a_file_names_a_database_with_its_password(
    source: Path, place: Path, on_mariadb: ServerDatabase
) -> None:
    on_mariadb.make()
    (place / "url").write_text(on_mariadb.url + "\nnothing that counts\n")
    result = run(source, "@url")
    assert triplets(on_mariadb.url) == triplets(source)
    assert PASSWORD not in result.output
    assert on_mariadb.url not in result.output
    assert "target: mysql+mysqldb://greycheck:***@127.0.0.1:" in result.stdout


def test_who_keeps_the_rules_of_the_target_in_memory_is_told_that_they_changed(
    source: Path, place: Path
) -> None:
    target = place / "target.db"

    def generations() -> list[databases.Row]:
        return databases.contents(f"sqlite:///{target}", "generation")

    def put(path: Path, pattern: str) -> None:
        engine = open_engine(f"sqlite:///{path}")
        rulebook.put(engine, patterns.parse(pattern), "allow", None, "", None, 1)
        engine.dispose()

    put(source, "192.0.2.1")
    run(source, target)
    first = generations()
    assert len(first) == 1
    run(source, target)
    assert generations() == first
    put(target, "192.0.2.2")
    second = generations()
    assert second != first
    run(source, target, "--overwrite")
    assert generations() != second


def test_a_bar_on_a_terminal(source: Path, place: Path) -> None:
    leader, terminal = pty.openpty()
    command = [sys.executable, "-m", "greycheck", "copy", str(source), str(place / "target.db")]
    environ = {
        "GREYCHECK_CONFIG": "/dev/null",
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environ)
    os.close(terminal)
    said = b""
    while True:
        try:
            said += os.read(leader, 65536)
        except OSError:
            break
    os.close(leader)
    assert process.communicate()[0].count(b"same") == len(TABLES)
    assert process.returncode == 0
    assert "━".encode() in said
    assert b"pass 1: 3 rows inserted" in said


# --- what it refuses ------------------------------------------------------------------------------

EVERYBODY = "everybody sees the arguments of a command (ps), and this one holds a password"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@db1/greycheck",
        "mariadb://:secret@/greycheck?host=db1",
        "postgresql+psycopg2://user@db1/greycheck?password=secret",
    ],
)
def test_a_password_in_an_argument_is_refused_with_the_reason(source: Path, url: str) -> None:
    for arguments in ((source, url), (url, source)):
        error = run(*arguments, code=2).stderr
        assert EVERYBODY in " ".join(error.split())
        assert "secret" not in error


def test_a_url_without_a_password_is_tried(source: Path) -> None:
    error = run(source, "mariadb://greycheck@127.0.0.1:1/greycheck", code=1).stderr
    assert error.startswith("Error: mariadb://greycheck@127.0.0.1:1/greycheck: 127.0.0.1:1: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("@none", "TARGET: none: No such file or directory"),
        ("@.", "TARGET: .: Is a directory"),
        ("@source.db", "TARGET: not an SQLAlchemy URL or an absolute path"),
        ("oracle://a/b", "TARGET: oracle: no such database here"),
        ("postgresql://u:s3cret/x@h/b", "TARGET: "),
        ("source.db", "SOURCE and TARGET are the same"),
    ],
)
def test_what_is_no_database_is_refused(source: Path, text: str, why: str) -> None:
    error = run(source, text, code=2).stderr
    assert why in error
    assert "s3cret" not in error


def test_there_must_be_a_source(source: Path, place: Path) -> None:
    assert f"{place}/none.db: there is no such file" in run("none.db", "target.db", code=1).stderr
    sqlite3.connect(place / "empty.db").close()
    assert "there is no schema yet" in run("empty.db", "target.db", code=1).stderr
    assert not (place / "target.db").exists()


@pytest.mark.parametrize("which", ["source.db", "target.db"])
def test_both_must_have_the_schema_of_this_program(source: Path, place: Path, which: str) -> None:
    migrate.upgrade(f"sqlite:///{place}/target.db")
    with sqlite3.connect(place / which) as connection:
        connection.execute(f"UPDATE alembic_version SET version_num = '9999_{migrate.head()[:4]}'")
    connection.close()
    error = run("source.db", "target.db", code=1).stderr
    assert f"{place}/{which}: the schema is at 9999" in error
    assert "to copy, both sides must be at this program's" in error


def test_a_target_with_rows_of_its_own_is_refused(source: Path, place: Path) -> None:
    migrate.upgrade(f"sqlite:///{place}/target.db")
    databases.fill_url(f"sqlite:///{place}/target.db", "triplet", rows(2, start=10))
    error = run(source, "target.db", code=1).stderr
    assert (
        "it holds rows that the source does not have (triplet: 2): --overwrite removes them"
        in error
    )
    assert len(triplets(place / "target.db")) == 2
    assert (
        run(source, "target.db", "--overwrite").stderr
        == "pass 1: 3 rows inserted, 0 updated, 2 removed\n"
    )
    assert triplets(place / "target.db") == triplets(source)


def test_what_the_target_does_not_take_is_one_line(
    source: Path, place: Path, on_postgresql: ServerDatabase
) -> None:
    on_postgresql.make()
    (place / "url").write_text(on_postgresql.url)
    databases.fill_url(f"sqlite:///{source}", "client", [("x" * 46, 1, 1, 1, ALIVE, 0, 0)])
    error = run(source, "@url", code=1).stderr
    assert error.startswith("Error: client: the target does not take a row: ")
    assert error.count("\n") == 1


def test_a_source_that_does_not_rest_is_told_of(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = iter(range(100, 200))
    passed = copying.ProgressBar.passed

    def mail(told: copying.ProgressBar, found: dict[str, copying.Difference]) -> None:
        passed(told, found)
        databases.fill_url(f"sqlite:///{source}", "triplet", rows(1, start=next(number)))

    monkeypatch.setattr(copying.ProgressBar, "passed", mail)
    result = run(source, "target.db", code=1)
    assert "DIFFERS" in result.stdout
    assert result.stderr.count("pass ") == 4
    assert (
        "after 4 passes the target still differs (triplet: 1 missing, 0 not the same, 0 too many)"
        in result.stderr
    )
    monkeypatch.undo()
    monkeypatch.setenv("GREYCHECK_CONFIG", "/dev/null")
    assert json.loads(run(source, place / "target.db", "--json").stdout)["same"]


# --- a kill in the middle -------------------------------------------------------------------------


@contextmanager
def copying_process(place: Path, source: str, target: str) -> Iterator[subprocess.Popen[bytes]]:
    """It runs until it is killed."""
    for name, url in (("source", source), ("target", target)):
        (place / name).write_text(url)
    command = [sys.executable, "-m", "greycheck", "copy", f"@{place}/source", f"@{place}/target"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        yield process
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_after_a_kill_it_goes_on_where_it_was(
    place: Path, source: Path, request: pytest.FixtureRequest, name: str
) -> None:
    """It is killed when two batches are stored, and while the third is being written."""
    databases.fill_url(f"sqlite:///{source}", "triplet", rows(ROWS - 3, start=3))
    target: ServerDatabase = request.getfixturevalue(f"on_{name}")
    target.make()
    engine = open_engine(target.url)
    names = [column.name for column in triplet.columns]

    def stored() -> object:
        return target.rows(select(func.count()).select_from(triplet))[0][0]

    with engine.connect() as blocking:
        # Another transaction has one of the rows, so that whoever inserts it too has to wait.
        blocking.execute(
            insert(triplet).values(dict(zip(names, rows(1, start=2200)[0], strict=False)))
        )
        with copying_process(place, f"sqlite:///{source}", target.url):
            wait_until(lambda: stored() == 2000, "two batches are copied")
        assert stored() == 2000
    engine.dispose()
    result = run("@source", "@target")
    assert result.stderr == f"pass 1: {ROWS - 2000} rows inserted, 0 updated, 0 removed\n"
    assert triplets(target.url) == triplets(source)


def test_after_a_kill_a_file_is_sound_and_is_completed(
    place: Path, on_postgresql: ServerDatabase
) -> None:
    on_postgresql.make()
    databases.fill_url(on_postgresql.url, "triplet", rows(4 * ROWS))
    target = f"sqlite:///{place}/target.db"
    with copying_process(place, on_postgresql.url, target):
        wait_until(lambda: has_rows(place / "target.db"), "something is copied")
    assert json.loads(run("@source", "@target", "--json").stdout)["same"]
    assert triplets(target) == triplets(on_postgresql.url)


def has_rows(path: Path) -> bool:
    if not path.exists():
        return False
    connection = sqlite3.connect(path, timeout=30)
    try:
        return bool(connection.execute("SELECT 1 FROM triplet LIMIT 1").fetchone())
    except sqlite3.OperationalError:  # no table yet
        return False
    finally:
        connection.close()
