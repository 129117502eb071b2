"""The operator's commands on PostgreSQL and MariaDB: what they do, and what they say where the
server does not.
"""

import json
from pathlib import Path
from time import time

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Table, insert, update

from greycheck.cli.main import cli
from greycheck.store.schema import migrate, tables
from tests import databases
from tests.servers import PASSWORD, MariaDB, Postgres, Server, free_port
from tests.support import Child, Database, on_every_server, only_settings

ATTEMPT = ("192.0.2.1", "alice@example.org", "bob@example.net")

COMMANDS = [
    ("list",),
    ("show", "192.0.2.1"),
    ("forget", "192.0.2.1"),
    ("forget", "--address", "@example.org"),
    ("expire",),
    ("allow", "192.0.2.1"),
    ("expect", "bob@example.net"),
    ("rules", "list"),
    ("rules", "remove", "192.0.2.1"),
    ("rules", "check"),
    ("rules", "export"),
    ("providers", "list"),
    ("providers", "refresh"),
    ("providers", "remove", "example.com"),
    ("explain", *ATTEMPT),
]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    only_settings(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def store(child: Child, database: Database, monkeypatch: pytest.MonkeyPatch) -> Child:
    """A store that the commands find, and the child that fills it."""
    for name, value in database.environ.items():
        monkeypatch.setenv(name, value)
    return child


def run(*arguments: str, code: int = 0, text: str | None = None) -> Result:
    result = CliRunner().invoke(cli, arguments, input=text, prog_name="greycheck")
    assert result.exit_code == code, result.output
    assert PASSWORD not in result.output
    return result


# What a terminal would act on, in few enough characters for any column, and in ASCII.
HOSTILE = "\x1b[31m\r\n\x07\x7fx"


@on_every_server
def test_what_another_host_wrote_is_text_and_its_lines_are_one(store: Child) -> None:
    now = int(time())
    rows: dict[Table, dict[str, object]] = {
        tables.triplet: {
            "network": HOSTILE,
            "sender": HOSTILE,
            "recipient": HOSTILE,
            "triplet_key": b"k" * 16,
        }
        | {
            "first_attempt": now,
            "last_attempt": now,
            "early_attempts": 0,
            "passes": 1,
            "passed_at": now,
        },
        tables.client: {"address": HOSTILE, "passes": 1, "first_seen": now, "last_seen": now}
        | {"strikes": 0, "struck_until": 0},
        tables.rule: {
            "match_key": b"r" * 16,
            "kind": "sender",
            "pattern": f"from:{HOSTILE}",
            "action": "allow",
        }
        | {"comment": HOSTILE, "created_at": now},
    }
    for table, values in rows.items():
        store.store.execute(insert(table).values(values | {"expires_at": now + 9999}))
    commands: list[tuple[str, ...]] = [
        ("list", "passed"),
        ("list", "clients"),
        ("show", "6b6b6b6b"),
        ("rules", "list"),
        ("rules", "export"),
    ]
    commands += [
        ("rules", "check"),
        ("status",),
        ("stats",),
        ("report",),
        ("expire", "-v"),
        ("explain", *ATTEMPT),
    ]
    for command in commands:
        said = CliRunner().invoke(cli, command, prog_name="greycheck").output
        assert said, command
        assert all(char.isprintable() or char == "\n" for char in said), (command, said)
    [line] = [
        line for line in run("rules", "export").output.splitlines() if not line.startswith("#")
    ]
    assert "\\x1b[31m\\x0d\\x0a" in line
    store.store.execute(update(tables.alembic_version).values(version_num=f"9999{HOSTILE}"))
    try:
        of_schema = [
            CliRunner().invoke(cli, command, prog_name="greycheck").output for command in commands
        ]
    finally:
        store.store.execute(update(tables.alembic_version).values(version_num=migrate.head()))
    for command, said in zip(commands, of_schema, strict=True):
        assert "9999\\x1b[31m\\x0d\\x0a\\x07\\x7fx, newer" in said, (command, said)
        assert all(char.isprintable() or char == "\n" for char in said), (command, said)


@on_every_server
def test_what_children_write_is_listed_shown_explained_and_forgotten(store: Child) -> None:
    store.smtpextfork()
    store.smtpextfork(sender=b"Carol@example.com", client="2001:db8::1")
    assert [
        row["sender"]
        for row in json.loads(run("list", "--address", "@example.org", "--json").stdout)
    ] == ["alice@example.org"]
    assert "carol@example.com" in run("list", "--network", "2001:db8::/32").stdout
    assert run("explain", *ATTEMPT, "--exit-code", code=101).stdout.count("reason=early") == 1
    assert "a retry passes" in run("show", *ATTEMPT).stdout
    store.age(400)
    assert "reason=retry" in run("explain", *ATTEMPT).stdout
    assert store.smtpextfork().reason == "retry"
    assert "192.0.2.1" in run("list", "clients").stdout
    assert run("forget", "192.0.2.1").stdout == "1 client forgotten.\n"
    assert run("forget", "--address", "@example.org").stdout == "1 triplet forgotten.\n"
    assert store.smtpextfork().reason == "new"


@on_every_server
def test_rules_are_made_found_by_children_and_removed(store: Child) -> None:
    run("reject", "192.0.2.0/24", "--comment", "\u6f22\u5b57 \U0001f600")
    assert store.smtpextfork().reason == "rule"
    assert "\u6f22\u5b57 \U0001f600" in run("rules", "list").stdout
    exported = run("rules", "export").stdout
    run("rules", "remove", "192.0.2.0/24")
    assert store.smtpextfork().reason == "new"
    assert (
        "added: reject 192.0.2.0/24"
        in run("rules", "import", "-", "--replace", text=exported).stdout
    )
    run("rules", "check")
    run("rules", "remove", "192.0.2.0/24")
    run("expect", "bob@example.net")
    assert store.smtpextfork().reason == "expected"


@on_every_server
def test_what_is_over_is_removed(store: Child) -> None:
    databases.fill_url(store.store.url, "client", [("192.0.2.9", 1, 1, 1, 1, 0, 0)])
    store.smtpextfork()
    assert (
        run("expire", "--dry-run").stdout
        == "triplet: 0 to remove, client: 1 to remove, rule: 0 to remove\n"
    )
    assert (
        run("expire", "-v", "--yes").stdout
        == "triplet: 0 removed, client: 1 removed, rule: 0 removed\n"
    )
    assert "alice" in run("list").stdout


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    found.start()
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_a_schema_each_command_says_what_to_do(
    server: Server, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    server.empty()
    monkeypatch.setenv("GREYCHECK_DATABASE", server.url())
    error = run(*command, code=1).stderr
    assert "run greycheck db upgrade" in error
    assert len(error.splitlines()) == (2 if command[0] == "explain" else 1)


@pytest.mark.parametrize("kind", [Postgres, MariaDB])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_where_no_host_answers_each_command_says_so_in_a_line(
    kind: type[Server], command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_port(), free_port()
    password = "s3cr%3At%2F%40%25"
    hosts = "&".join(f"host=127.0.0.1:{port}" for port in ports)
    monkeypatch.setenv(
        "GREYCHECK_DATABASE", f"{kind.dialect}://greycheck:{password}@/greycheck?{hosts}"
    )
    monkeypatch.setenv("GREYCHECK_STATE_DIRECTORY", str(tmp_path))
    error = run(*command, code=1).stderr
    assert password not in error
    assert f"127.0.0.1:{ports[1]}" in error
    assert len(error.splitlines()) == (2 if command[0] == "explain" else 1)
    assert list(tmp_path.iterdir()) == [], (
        "an operator's marks would keep checks from a host that is up again"
    )
