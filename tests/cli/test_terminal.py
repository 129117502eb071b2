"""What reaches a terminal: nothing of a database, a peer or a setting but what is there to be
read.
"""

import ast
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import greycheck
from greycheck.cli import terminal

PACKAGE = Path(greycheck.__file__).parent
HOSTILE = (
    "\x1b[31m\r\n"
    "\x07\x9b2J\x7f\u202e\u2066\u2028\u200b\ufe0f\U000e0041[bold][link=http://x]x[/link]"
)

# The text of a program that another interpreter runs, and lines of it.
APART = {"cli/terminal.py", "cli/server.py", "cli/apart.py"}


def prints(node: ast.AST) -> bool:
    """Whether NODE says something to a terminal by itself."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr) in {
            ("click", "echo"),
            ("click", "secho"),
            ("click", "style"),
            ("sys", "stdout"),
            ("sys", "stderr"),
            ("json", "dumps"),
        }
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] == "rich" and node.module != "rich.progress"
    if isinstance(node, ast.Import):
        return any(each.name.partition(".")[0] == "rich" for each in node.names)
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def test_one_file_prints() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        for path in sorted((PACKAGE / "cli").rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in APART
        for node in ast.walk(ast.parse(path.read_text()))
        if prints(node)
    ]
    assert found == []


def is_clean(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_shown_in_one_printable_line(text: str) -> None:
    assert terminal.shown(text).isprintable()


@given(st.text(st.characters(exclude_categories=())))
def test_json_is_printable_ascii_and_says_the_same(text: str) -> None:
    written = terminal.as_json({text: text})
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == json.loads(json.dumps({text: text}))


@given(st.text(st.characters(exclude_categories=())))
def test_tables_and_lines_are_clean(text: str) -> None:
    console = terminal.Console()
    table = terminal.Table.grid()
    table.add_row(
        text, terminal.Text(text), terminal.Text.assemble((text, "bold"), terminal.NEWLINE, text)
    )
    with console.capture() as got:
        console.print(table)
        console.print(text)
        console.print(terminal.Text("").append(text))
    assert is_clean(got.get())


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, str]:
    """The environment of commands whose store has hostile text in every column of text."""
    environ = {
        **os.environ,
        "GREYCHECK_DATABASE": str(tmp_path / "greycheck.db"),
        "GREYCHECK_CONFIG": os.devnull,
    }
    assert run(environ, "db", "upgrade").returncode == 0
    assert run(environ, "allow", "to:alice@example.org", "--comment", "x").returncode == 0
    import sqlite3
    from time import time

    now = int(time())
    with closing(sqlite3.connect(tmp_path / "greycheck.db")) as store, store:
        store.execute("PRAGMA ignore_check_constraints = 1")
        for table in ("triplet", "client", "rule"):
            columns = store.execute(f"PRAGMA table_info({table})").fetchall()
            texts = [
                name
                for _, name, kind, *_ in columns
                if kind.upper().startswith(("VARCHAR", "TEXT", "CHAR"))
            ]
            if table == "rule":
                store.execute("UPDATE rule SET pattern = ?, comment = ?", (HOSTILE, HOSTILE))
                continue
            names = [name for _, name, *_ in columns]
            values = [
                HOSTILE if name in texts else b"k" * 16 if "key" in name else now for name in names
            ]
            store.execute(
                f"INSERT INTO {table} ({','.join(names)}) VALUES ({','.join('?' * len(names))})",
                values,
            )
    return environ


def run(environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "greycheck", *arguments],
        env=environ,
        capture_output=True,
        check=False,
        timeout=60,
    )


COMMANDS = (
    ("list",),
    ("list", "passed"),
    ("list", "passed", "--json"),
    ("list", "clients"),
    ("show", "6b6b6b6b"),
    ("rules", "list"),
    ("rules", "check"),
    ("rules", "export"),
    ("explain", "192.0.2.1", HOSTILE, "bob@example.net"),
    ("show", HOSTILE),
    (HOSTILE,),
    ("rules", "remove", HOSTILE),
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
def test_no_command_shows_what_a_hostile_host_wrote(hostile: dict[str, str], encoding: str) -> None:
    environ = {**hostile, "PYTHONIOENCODING": encoding}
    for command in COMMANDS:
        done = run(environ, *command)
        said = done.stdout.decode(encoding) + done.stderr.decode(encoding)
        assert is_clean(said), command
        assert "Traceback" not in said, (command, said)
        assert said, command


@pytest.mark.parametrize(
    "command",
    [
        "db current", "db upgrade", "list", "expire", "show 192.0.2.1", "forget 192.0.2.1", "allow to:a@example.org",  # noqa: E501
        "rules export", "status", "stats", "report",
        "explain 192.0.2.1 a@example.org b@example.org",
    ],
)  # fmt: skip
def test_what_a_database_says_of_itself_ends_no_line(hostile: dict[str, str], command: str) -> None:
    import sqlite3

    with closing(sqlite3.connect(hostile["GREYCHECK_DATABASE"])) as store, store:
        store.execute("PRAGMA ignore_check_constraints = 1")
        store.execute(
            "UPDATE alembic_version SET version_num = ?", ("9999\nError: forged\r\x1b[2J",)
        )
    done = run(hostile, *command.split())
    [line] = (done.stdout + done.stderr).decode().splitlines()
    assert "9999\\x0aError: forged\\x0d\\x1b[2J" in line


def test_a_full_output_is_one_line(hostile: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        for command in (
            ("list", "passed"),
            ("rules", "list"),
            ("config",),
            ("allow", "to:x@example.org"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "greycheck", *command],
                env=hostile, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60,
            )  # fmt: skip
            assert (
                done.stderr == b"Error: the output could not be written: No space left on device\n"
            ), command
            assert done.returncode == 1


def test_a_reader_that_has_left_is_told_nothing(hostile: dict[str, str]) -> None:
    commands = [
        *COMMANDS[:7],
        ("config",),
        ("--help",),
        ("list", "--help"),
        ("--version",),
        ("db", "current"),
    ]
    for command in commands:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "greycheck", *command],
            env=hostile, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
        os.close(writer)
        assert (done.returncode, done.stderr) == (terminal.UNREAD, b""), command


def test_errors_that_nobody_reads_are_no_traceback(hostile: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "greycheck", "show", "nobody"]
    done = subprocess.run(
        command, env=hostile, stdout=subprocess.PIPE, stderr=writer, check=False, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (2, b"")


def test_what_nobody_foresaw_is_clean_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A row of another kind than the schema's ends a command, in words that may be the row's."""

    @click.command()
    def fails() -> None:
        raise ValueError(HOSTILE)

    with pytest.raises(SystemExit) as end:
        terminal.Group(commands={"fails": fails}).main(["fails"])
    said = capsys.readouterr().err
    assert is_clean(said)
    assert "ValueError: \\x1b[31m" in said
    assert end.value.code == 1
