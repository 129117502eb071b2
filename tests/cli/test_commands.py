"""The operator's commands, as an operator runs them."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck import settings
from greycheck.cli import demo
from greycheck.cli.main import SECTIONS, cli
from greycheck.store.admin import expiry
from greycheck.store.schema import migrate
from tests.support import only_settings


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a store that the commands find."""
    path = tmp_path / "greycheck.db"
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(path))
    return path


def run(*arguments: str, code: int = 0, text: str | None = None) -> Result:
    result = CliRunner().invoke(cli, arguments, input=text, prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def test_help_lists_each_command_once_in_a_line_of_its_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)
    output = run("--help").stdout
    for title, said in SECTIONS.items():
        assert f"\n{title}:\n" in output
        for name, words in said.items():
            assert f"\n  {name:10}  {words}\n" in output


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["lsit"], "list"),
        (["db", "upgarde"], "upgrade"),
        (["rules", "lst"], "list"),
        (["rules", "xyz"], ""),
        (["list", "pendign"], "pending"),
        (["list", "early"], "pending"),
        (["list", "refused"], "struck"),
        (["list", "--sort", "frist"], "first"),
        (["explain", "--hook", "sp", "192.0.2.1", "a@b", "c@d"], "spp"),
    ],
)
def test_what_may_have_been_meant_is_said(arguments: list[str], meant: str) -> None:
    said = run(*arguments, code=2).stderr
    assert said.endswith(f" Did you mean {meant}?\n") if meant else "Did you mean" not in said


# --- config ---------------------------------------------------------------------------------------


def test_config_prints_each_setting_with_value_source_and_meaning(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "600")
    monkeypatch.setenv("GREYCHECK_DEADLINE", "7s")
    monkeypatch.setenv("GREYCHECK_DATABASE_MODE", "0660")
    monkeypatch.setenv("GREYCHECK_CLIENT_PASSES", "5")
    output = run("config").stdout
    for setting in settings.TABLE:
        said = f"{setting.meaning} Read by: {setting.where} From: "
        assert said in output.replace("\n# ", " "), setting.name
    assert [line for line in output.splitlines() if line[:1] == "#" and len(line) > 80] == []
    assert "# From: GREYCHECK_DELAY\ndelay = 10m\n" in output
    assert "\ndeadline = 7s\n" in output
    assert "\ndatabase_mode = 0660\n" in output
    assert "\nclient_passes = 5\n" in output
    assert "# From: default\nlifetime = 36d\n" in output
    assert f"\ndatabase = sqlite:///{store}\n" in output


def test_config_prints_the_settings_that_are_named(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "600")
    lines = run("config", "GREYCHECK_DELAY", "retry-window", "delay").stdout.splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "delay = 10m",
        "",
        "retry_window = 48h",
    ]
    assert [
        row["name"] for row in json.loads(run("config", "delay", "--json").stdout)["settings"]
    ] == ["delay"]
    assert run("config", "dealy", code=2).stderr.endswith(
        "Error: dealy: no such setting. Did you mean delay?\n"
    )


def test_config_prints_the_settings_that_are_set(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "5m")  # its default: set all the same
    settled = [
        row["name"] for row in json.loads(run("config", "--changed", "--json").stdout)["settings"]
    ]
    assert settled == ["database", "delay"]
    assert run("config", "lifetime", "--changed").stdout == "# None of these is set.\n"


def test_what_config_prints_is_a_settings_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run("config").stdout
    (tmp_path / "conf").write_text(output)
    monkeypatch.setenv("GREYCHECK_CONFIG", str(tmp_path / "conf"))
    monkeypatch.delenv("GREYCHECK_DATABASE")
    again = json.loads(run("config", "--json").stdout)
    assert again["problems"] == []
    assert {row["source"].partition(":")[0] for row in again["settings"]} == {
        str(tmp_path / "conf")
    }
    assert again["settings"][0]["value"] == f"sqlite:///{store}"


def test_config_names_a_wrong_line_and_hides_a_password(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").write_text("delay = soon\n")
    monkeypatch.setenv("GREYCHECK_CONFIG", str(tmp_path / "conf"))
    monkeypatch.setenv("GREYCHECK_DATABASE", "postgresql://user:secret@host/db")
    result = run("config", code=1)
    assert f"greycheck: {tmp_path}/conf:1: delay = soon: not a duration" in result.stderr
    assert "secret" not in result.output
    assert "postgresql://user:***@host/db" in result.stdout
    assert json.loads(run("config", "--json", code=1).stdout)["problems"]


def test_config_shows_where_a_server_is_and_never_its_password(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("mariadb://user:s3cret@db1/greycheck?ssl_ca=/ca.pem\n")
    monkeypatch.delenv("GREYCHECK_DATABASE")
    monkeypatch.setenv("GREYCHECK_DATABASE_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("GREYCHECK_DATABASE_HOSTS", "db2:3307, db1")
    monkeypatch.setenv("GREYCHECK_STATE_DIRECTORY", "/run/greycheck")
    result = run("config")
    url = "mariadb://user:***@/greycheck?host=db2%3A3307&host=db1&ssl_ca=%2Fca.pem"
    assert f"# From: {tmp_path}/url\n# database = {url}\n" in result.stdout
    assert f"# From: GREYCHECK_DATABASE_FILE\ndatabase_file = {tmp_path}/url\n" in result.stdout
    assert "\ndatabase_hosts = db2:3307, db1\n" in result.stdout
    assert "\nstate_directory = /run/greycheck\n" in result.stdout
    as_json = run("config", "--json")
    rows = {row["name"]: row for row in json.loads(as_json.output)["settings"]}
    assert (rows["database"]["value"], rows["database"]["source"]) == (url, f"{tmp_path}/url")
    assert "s3cret" not in result.output + as_json.output
    (tmp_path / "conf").write_text(result.stdout)
    for name in ("DATABASE_FILE", "DATABASE_HOSTS", "STATE_DIRECTORY"):
        monkeypatch.delenv(f"GREYCHECK_{name}")
    monkeypatch.setenv("GREYCHECK_CONFIG", str(tmp_path / "conf"))
    again = {
        row["name"]: row["value"] for row in json.loads(run("config", "--json").output)["settings"]
    }
    assert again == {name: row["value"] for name, row in rows.items()}


def test_config_shows_no_database_where_none_can_be_used(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", "nosuch://user:s3cret@host/db")
    result = run("config", code=1)
    assert "\n# database =\n" in result.stdout
    assert "GREYCHECK_DATABASE: database: nosuch: no such database here" in result.stderr
    assert "s3cret" not in result.output


@pytest.mark.parametrize(
    "command",
    [["expire"], ["db", "current"], ["config"], ["doctor"], ["install", "{}"]],
)
def test_no_command_tells_a_password_that_it_cannot_use(
    store: Path, place: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", "mariadb://user:s3cret@host")
    output = run(*(word.format(place) for word in command), code=1).output
    assert "which database?" in " ".join(output.split())
    assert "s3cret" not in output


@pytest.mark.parametrize(
    "command", [["expire"], ["db", "current"], ["db", "upgrade"], ["install", "{}"]]
)
def test_commands_refuse_wrong_settings_in_the_same_words(
    store: Path, place: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("GREYCHECK_DELAY", "soon")
    said = run(*(word.format(place) for word in command), code=1).stderr
    assert "GREYCHECK_DELAY: delay = soon: not a duration" in said
    assert not store.exists()


# --- db -------------------------------------------------------------------------------------------


def test_db_makes_shows_and_takes_back_the_schema(store: Path) -> None:
    assert run("db", "current").stdout.startswith("There is no store yet: ")
    assert run("db", "upgrade").stdout == f"sqlite:///{store}: at {migrate.head()}\n"
    assert (
        f"at {migrate.head()}, this program is at {migrate.head()}" in run("db", "current").stdout
    )
    run("db", "downgrade", "base", text="n\n", code=1)
    assert migrate.current(f"sqlite:///{store}") == migrate.head()
    assert run("db", "downgrade", "base", "--yes").stdout == f"sqlite:///{store}: at nothing\n"


def test_db_tells_what_is_wrong_in_one_line(store: Path) -> None:
    store.write_bytes(b"nonsense" * 1000)
    for command in ("upgrade", "current"):
        assert run("db", command, code=1).stderr == (
            f"Error: sqlite:///{store}: file is not a database: move it away, and the next mail"
            " makes a new one:"
            f" mv {store} {store}.broken\n"
        )


def test_db_downgrade_to_no_known_revision_is_refused(store: Path) -> None:
    run("db", "upgrade")
    assert "xyz" in run("db", "downgrade", "xyz", "--yes", code=1).stderr


# --- expire ---------------------------------------------------------------------------------------


def fill(store: Path) -> None:
    migrate.upgrade(f"sqlite:///{store}")
    connection = sqlite3.connect(store)
    with connection:
        connection.execute(
            "INSERT INTO triplet VALUES (x'00', 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL, 0)"
        )
        connection.execute(
            "INSERT INTO triplet VALUES"
            " (x'01', 'n', 's', 'r', 1, 1, 0, 0, NULL, 99999999999, NULL, 0)"
        )
        connection.execute("INSERT INTO client VALUES ('192.0.2.1', 1, 1, 1, 1, 0, 0)")
        # What was used a week ago: the clock is right.
        used = int(time.time()) - 7 * 86400
        row = ("192.0.2.2", 1, used, used, used + 36 * 86400)
        connection.execute("INSERT INTO client VALUES (?, ?, ?, ?, ?, 0, 0)", row)
    connection.close()


def test_expire_is_silent(store: Path) -> None:
    fill(store)
    assert run("expire").output == ""
    connection = sqlite3.connect(store)
    assert connection.execute("SELECT count(*) FROM triplet").fetchone() == (1,)
    connection.close()


def test_expire_says_what_it_did_where_asked(store: Path) -> None:
    fill(store)
    assert (
        run("expire", "--dry-run").output
        == "triplet: 1 to remove, client: 1 to remove, rule: 0 to remove\n"
    )
    assert run("expire", "-v").output == "triplet: 1 removed, client: 1 removed, rule: 0 removed\n"
    assert run("expire", "-v").output == "triplet: 0 removed, client: 0 removed, rule: 0 removed\n"
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("INSERT INTO domain VALUES (zeroblob(16), 'x', 1, 1, 1, 1)")
    connection.close()
    assert run("expire", "-v").output.endswith("rule: 0 removed, domain: 1 removed\n")


def test_expire_and_db_current_speak_json(store: Path) -> None:
    assert json.loads(run("db", "current", "--json").output)["revision"] is None
    fill(store)
    said = {
        "dry_run": False,
        "rows": dict.fromkeys((table.name for table in expiry.TABLES), 0)
        | {"triplet": 1, "client": 1},
        "left_to_another_host": False,
    }
    assert json.loads(run("expire", "--dry-run", "--json").output) == said | {"dry_run": True}
    assert json.loads(run("expire", "--json").output) == said
    found = json.loads(run("db", "current", "--json").output)
    assert found == {
        "database": f"sqlite:///{store}",
        "revision": migrate.head(),
        "program": migrate.head(),
    }


def test_expire_says_where_asked_that_another_host_is_quicker(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)

    def lose(*_arguments: object, **_options: object) -> Iterator[tuple[str, int]]:
        yield "triplet", 1
        raise expiry.LeftToAnother

    monkeypatch.setattr(expiry, "expire", lose)
    assert run("expire").output == ""
    assert run("expire", "-v").output == (
        "triplet: 1 removed, client: 0 removed, rule: 0 removed\n"
        "another host is removing them too, and was quicker: the rest is left to it\n"
    )
    assert json.loads(run("expire", "--json").output)["left_to_another_host"]


@pytest.mark.parametrize("after", ["", "a check"])
def test_expire_removes_nothing_where_the_clock_has_jumped_ahead(store: Path, after: str) -> None:
    """Ten years; also where mail has been checked meanwhile, and so has been recorded as of
    then.
    """
    migrate.upgrade(f"sqlite:///{store}")
    now = int(time.time())
    connection = sqlite3.connect(store)
    with connection:
        for day in range(36):
            used = now - 3650 * 86400 - day * 86400
            row = (bytes([day]), used, used, used, used + 36 * 86400)
            connection.execute(
                "INSERT INTO triplet VALUES (?, 'n', 's', 'r', ?, ?, 0, 1, ?, ?, NULL, 0)", row
            )
        connection.execute(
            "INSERT INTO client VALUES ('192.0.2.1', 1, ?, ?, ?, 0, 0)",
            (used, used, used + 36 * 86400),
        )
        if after:
            values = (b"new", now, now, now + 2 * 86400)
            connection.execute(
                "INSERT INTO triplet VALUES (?, 'n', 's', 'r', ?, ?, 0, 0, NULL, ?, NULL, 0)",
                values,
            )
            connection.execute(
                "INSERT INTO client VALUES ('192.0.2.2', 1, ?, ?, ?, 0, 0)",
                (now, now, now + 36 * 86400),
            )
    said = run("expire", code=1).output
    assert "has the clock jumped ahead? Nothing was removed." in said
    assert "greycheck expire --yes" in said
    assert connection.execute("SELECT count(*) FROM triplet WHERE passes").fetchone() == (36,)
    assert run("expire", "--yes").output == ""
    assert connection.execute("SELECT count(*) FROM triplet WHERE passes").fetchone() == (0,)
    connection.close()


def test_expire_removes_what_waits_whatever_the_clock_says(store: Path) -> None:
    migrate.upgrade(f"sqlite:///{store}")
    connection = sqlite3.connect(store)
    with connection:
        connection.execute(
            "INSERT INTO triplet VALUES (x'00', 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL, 0)"
        )
    assert run("expire", "-v").output.startswith("triplet: 1 removed")
    connection.close()


def test_expire_before_the_first_mail_has_nothing_to_do(store: Path) -> None:
    assert run("expire").output == ""
    assert run("expire", "-v").output.startswith("There is no store yet: ")
    assert not store.exists()


def test_expire_tells_where_the_directory_is_missing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", str(store.parent / "none" / "greycheck.db"))
    assert (
        "none: no such directory, so there is no store yet: install -d -m 0700 -o "
        in run("expire", code=1).stderr
    )


def test_expire_tells_what_the_database_says(store: Path) -> None:
    fill(store)
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("DROP TABLE client")
    connection.close()
    assert run("expire", code=1).stderr == "Error: no such table: client\n"


def test_expire_under_load_removes_all_and_defers_nobody(store: Path, launchers: Path) -> None:
    from tests.support import DEFERRED, Child

    migrate.upgrade(f"sqlite:///{store}")
    connection = sqlite3.connect(store)
    with connection:
        for number in range(5000):
            row = (number.to_bytes(16, "big"),)
            connection.execute(
                "INSERT INTO triplet VALUES (?, 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL, 0)", row
            )
    connection.close()
    child = Child(launchers, store)
    expiring = [
        subprocess.Popen([sys.executable, "-m", "greycheck", "expire"]) for _host in range(2)
    ]
    for number in range(40):
        assert (
            child.smtpextfork(
                sender=b"sender%d@example.org" % number, GREYCHECK_DEADLINE="60s"
            ).code
            == DEFERRED
        )
    assert [process.wait(timeout=120) for process in expiring] == [0, 0]
    assert child.rows("SELECT count(*) FROM triplet") == [(40,)]


# --- the tool as a whole --------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    output = run("--help").stdout
    for command in cli.commands:
        assert f"  {command} " in output


def test_the_version_is_the_packages() -> None:
    from greycheck import __version__

    assert run("--version").stdout == f"greycheck {__version__}\n"


# What the demonstration's server says to a deferral.
REFUSALS = {"smtpextfork": "454", "checkenv": "421", "rcptcheck": "421", "spp": "451"}


@pytest.mark.parametrize("hook", demo.HOOKS)
def test_demo_shows_a_mail_deferred_then_accepted(hook: str) -> None:
    """In a terminal of 80 columns; the one test here that waits."""
    command = [sys.executable, "-m", "greycheck", "demo", "--delay", "8", "--hook", hook]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    replies = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("  S: ")]
    assert replies.count(REFUSALS[hook]) == 2
    assert replies.count("354") == 1
    for reason in ("reason=new", "reason=early", "reason=retry"):
        assert f" {reason} " in ran.stdout
    assert "  sender          alice@example.org" in ran.stdout
    assert [line for line in ran.stdout.splitlines() if len(line) > 80] == []
    assert "From now on all mail of 192.0.2.1 passes at once." in " ".join(ran.stdout.split())


def test_demo_says_in_one_line_why_it_cannot_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from click import ClickException

    monkeypatch.setattr(
        demo.pwd, "getpwuid", lambda _uid: type("", (), {"pw_name": "nosuchuser"})()
    )
    with pytest.raises(ClickException, match="no such user"):
        demo.install(
            tmp_path,
            os.environ
            | {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_DATABASE": f"{tmp_path}/greycheck.db"},
        )
