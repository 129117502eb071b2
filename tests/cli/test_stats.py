"""``greycheck stats``: a year whose true figures are known, and what is said without one."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from greycheck import history as spooling
from greycheck.cli import stats as command
from greycheck.cli.common import read_settings
from greycheck.cli.main import cli
from greycheck.store.admin import history
from greycheck.store.admin.engine import open_engine
from greycheck.store.admin.history import date_of, day_of
from tests.statistics.year import DAY, Truth, Year
from tests.support import Database, SQLiteFile, on_every_database, only_settings
from tests.test_history import settings

BEGIN = 1_800_000_000 - 1_800_000_000 % DAY + DAY // 2
DAYS = 365
NOW = BEGIN + (DAYS + 7) * DAY
FIRST, LAST = date_of(day_of(BEGIN)), date_of(day_of(BEGIN + (DAYS - 1) * DAY))
YEAR = ("--from", FIRST.isoformat(), "--to", LAST.isoformat())


@pytest.fixture(scope="module")
def year(empty_store: Path) -> Iterator[tuple[SQLiteFile, Truth]]:
    with tempfile.TemporaryDirectory(prefix="greycheck-test-") as name:
        database = SQLiteFile(Path(name) / "greycheck.db", empty_store)
        database.make()
        yield database, played(database, DAYS)


def played(database: Database, number: int) -> Truth:
    """NUMBER days of mail in DATABASE, and their true figures."""
    engine = open_engine(database.url)
    told = settings(
        database.directory,
        DATABASE=database.url,
        STATE_DIRECTORY=str(database.directory),
        HISTORY_SENDERS="yes",
    )
    truth = Year(database, engine, told, BEGIN, number).play()
    database.leave()
    engine.dispose()
    return truth


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    only_settings(monkeypatch)
    monkeypatch.setattr(command, "time", lambda: NOW)


def use(monkeypatch: pytest.MonkeyPatch, database: Database, **more: str) -> None:
    given = database.environ | {"GREYCHECK_HISTORY_SENDERS": "yes"} | more
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["stats", *arguments], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def data(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--json", "--limit", "0", *arguments).stdout)
    return found


def expected_rows(counted: Counter[tuple[str, str]]) -> dict[str, tuple[int, ...]]:
    """By name what is deferred, accepted, and never came back."""
    return {
        name: tuple(counted[name, what] for what in ("defer", "accept", "never"))
        for name in {name for name, _what in counted}
    }


def close(told: dict[str, int], delays: list[int]) -> None:
    """The percentiles that are TOLD of DELAYS are within a step."""
    for percent in (50, 95, 99) if delays else ():
        true = sorted(delays)[ceil(len(delays) * percent / 100) - 1]
        assert true <= told[f"p{percent}"] <= true * 2 ** (1 / 8) + 1
    assert bool(told) == bool(delays)


# --- a year ---------------------------------------------------------------------------------------


def test_each_day_is_what_happened(
    year: tuple[SQLiteFile, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, truth = year
    use(monkeypatch, database)
    found = data(*YEAR, "--by", "day")
    assert len(found["rows"]) == DAYS
    for row in found["rows"]:
        date = row["day"]
        told = Counter({"defer": row["deferred"], "accept": row["accepted"]})
        true: Counter[str] = Counter()
        for (day, verdict, _reason), number in truth.verdicts.items():
            if day == date:
                true[verdict] += number
        assert told == true, date
        assert row["attempts"] == true.total()
        assert row["never"] == truth.never[date, "once"] + truth.never[date, "again"]
        close(row["delay"], truth.delays[date])
    every = [delay for of_day in truth.delays.values() for delay in of_day]
    close(found["delay"], every)
    assert found["passed"] == len(every)
    never = Counter(dict.fromkeys(("once", "again"), 0))
    for (_day, how), number in truth.never.items():
        never[how] += number
    assert found["never"]["once"] == never["once"] > 50
    assert found["never"]["again"] == never["again"] > 20
    assert found["never"]["complete_to"] == LAST.isoformat()
    new = sum(n for (_, _, reason), n in truth.verdicts.items() if reason == "new")
    assert (found["new"], found["never"]["of_new"]) == (new, new)
    assert found["let_in"]["known clients"] == sum(
        n for (_, _, reason), n in truth.verdicts.items() if reason == "client"
    )


def test_recipients_senders_networks_and_reasons_are_what_happened(
    year: tuple[SQLiteFile, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, truth = year
    use(monkeypatch, database)
    for by, counted in (
        ("recipient", truth.recipients),
        ("sender", truth.senders),
        ("network", truth.networks),
    ):
        rows = data(*YEAR, "--by", by)["rows"]
        told = {row[by]: (row["deferred"], row["accepted"], row["never"]) for row in rows}
        assert told == expected_rows(counted)
        attempts = [row["attempts"] for row in rows]
        assert attempts == sorted(attempts, reverse=True)
    reasons: Counter[tuple[str, str]] = Counter()
    for (_day, verdict, reason), number in truth.verdicts.items():
        reasons[verdict, reason] += number
    rows = data(*YEAR, "--by", "reason")["rows"]
    assert {(row["verdict"], row["reason"]): row["attempts"] for row in rows} == reasons


def test_a_range_is_its_days(
    year: tuple[SQLiteFile, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, truth = year
    use(monkeypatch, database)
    of_year = {row["day"]: row for row in data(*YEAR, "--by", "day")["rows"]}
    day = date_of(day_of(BEGIN + 100 * DAY)).isoformat()
    found = data("--day", day, "--by", "recipient")
    assert (found["from"], found["to"]) == (day, day)
    assert found["attempts"] == of_year[day]["attempts"]
    assert sum(row["attempts"] for row in found["rows"]) == of_year[day]["attempts"]
    assert sum(row["never"] for row in found["rows"]) == of_year[day]["never"]
    assert truth.verdicts


@on_every_database
def test_a_month_on_each_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.make()
    truth = played(database, 20)
    use(monkeypatch, database)
    found = data("--from", FIRST.isoformat(), "--by", "recipient")
    told = {
        row["recipient"]: (row["deferred"], row["accepted"], row["never"]) for row in found["rows"]
    }
    assert told == expected_rows(truth.recipients)
    assert found["attempts"] == truth.verdicts.total()
    assert found["passed"] == sum(map(len, truth.delays.values()))


# --- words ----------------------------------------------------------------------------------------


def test_the_screen_has_80_columns_and_the_last_week(
    year: tuple[SQLiteFile, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, year[0])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(command, "time", lambda: NOW - 7 * DAY)
    for arguments in (
        (),
        ("--by", "sender"),
        ("--by", "network"),
        ("--by", "recipient"),
        ("--by", "reason"),
        YEAR,
    ):
        lines = run(*arguments).stdout.splitlines()
        assert max(map(len, lines)) <= 80
    lines = run().stdout.splitlines()
    assert lines[0].startswith("days")
    assert lines[0].endswith(", 7 days")
    [title] = [number for number, line in enumerate(lines) if line.startswith("day  ")]
    assert len(lines) - title == 8
    assert run("--by", "network", "--limit", "3").stdout.count("/24") == 3


def test_what_is_not_counted_is_said(
    year: tuple[SQLiteFile, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, year[0], GREYCHECK_HISTORY_SENDERS="no", GREYCHECK_HISTORY="0")
    said = run("--by", "sender", *YEAR).stdout
    assert "By sender nothing is counted: history_senders is no." in said
    assert "history     is 0: nothing is counted" in said


def test_what_is_not_yet_known_is_said(
    year: tuple[SQLiteFile, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, year[0])
    monkeypatch.setattr(command, "time", lambda: BEGIN + 100 * DAY)
    assert "not known before the retry window is over" in run("--day", "today").stdout
    assert "not known before the retry window is over" in run("--day", "yesterday").stdout
    said = " ".join(run().stdout.split())
    assert f"complete to {date_of(day_of(BEGIN + 97 * DAY))}" in said


def test_days_after_the_last_expire_are_not_complete(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What expired since is not counted yet, however long ago the retry window was over."""
    database.make()
    use(monkeypatch, database)
    days = ("--from", date_of(day_of(NOW) - 20).isoformat(), "--json")
    assert data(*days)["never"]["complete_to"] is None
    engine = open_engine(database.url)
    for moment in (NOW - 9 * DAY, NOW + 9 * DAY):
        history.note_expired(engine, moment)
        window = read_settings().retry_window
        last = day_of(min(moment, NOW) - window) - 1
        assert data(*days)["never"]["complete_to"] == date_of(last).isoformat()
    engine.dispose()


def test_the_spool_of_this_host_is_told_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    use(monkeypatch, database)
    assert "attempts    none\n" in run().stdout
    line = f"{NOW} observe new 0 example.net - - 3\n{NOW} accept error 0 example.net - - 1\n"
    (database.directory / spooling.SPOOL).write_text(line)
    said = run("--day", "today").stdout
    assert "attempts    4: 0 deferred, 3 only observed (75 %), 1 accepted (25 %)\n" in said
    assert "errors      1 check could not be made: see the log\n" in said
    assert data("--by", "day")["rows"][-1]["observed"] == 3
    assert "observed" in run("--by", "day").stdout


def test_before_the_first_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", str(tmp_path / "greycheck.db"))
    assert run().stdout.startswith("There is no store yet: ")
    assert data()["attempts"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--day", "monday"), "not a day"),
        (("--day", "1950-01-01"), "not a day"),
        (("--day", "today", "--to", "today"), "--day is one day"),
        (("--from", "today", "--to", "yesterday"), "is after"),
    ],
)
def test_a_wrong_line_is_refused(arguments: tuple[str, ...], said: str) -> None:
    assert said in run(*arguments, code=2).output
