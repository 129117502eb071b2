"""Tables that cut what they choose, and text whose words stay whole."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from greycheck.cli import columns
from greycheck.cli.columns import Rows, cut, facts, wrapped
from greycheck.cli.main import cli
from greycheck.cli.terminal import Console

WORDS = st.text(st.characters(exclude_categories=("C", "Z", "M")), min_size=1, max_size=60)


def console(width: int, encoding: str = "utf-8") -> Console:
    found = Console()
    found.file = io.TextIOWrapper(io.BytesIO(), encoding)
    found.width = width
    return found


def printed(screen: Console) -> list[str]:
    screen.file.flush()
    raw: bytes = screen.file.buffer.getvalue()  # type: ignore[attr-defined]
    return raw.decode(screen.encoding).splitlines()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("COLUMNS", "40")
    return console(40)


@given(WORDS, st.integers(8, 50))
def test_what_is_cut_fits_and_keeps_both_ends(word: str, width: int) -> None:
    short = cut(word, width, console(width))
    assert cell_len(short) <= width
    assert (
        short == word if cell_len(word) <= width else short[0] == word[0] and short[-1] == word[-1]
    )


def test_the_ellipsis_is_one_that_the_output_can_show() -> None:
    assert cut("alice@example.org", 10, console(80, "ascii")) == "alic...org"
    assert cut("alice@example.org", 10, console(80)) == "alice\u2026.org"


@given(st.lists(WORDS, min_size=1), st.integers(10, 80))
def test_no_word_is_broken(words: list[str], width: int) -> None:
    lines = wrapped(" ".join(words), width)
    assert " ".join(lines).split() == words
    assert all(len(line) <= width or " " not in line for line in lines)


def test_of_a_table_the_comment_is_cut_and_a_long_pattern_stands_alone(narrow: Console) -> None:
    rows = [
        [("allow", ""), ("192.0.2.0/24", ""), ("in 6d", ""), ("the backup of the office", "")],
        [
            ("reject", ""),
            ("from:somebody@mail.example.org", ""),
            ("", ""),
            ("spam, spam, spam and more spam", ""),
        ],
        [("reject", ""), ("from:" + "x" * 40 + "@mail.example.org", ""), ("", ""), ("", "")],
    ]
    Rows(narrow, 1, 3).print(
        rows, [[("ACTION", ""), ("PATTERN", ""), ("ENDS", ""), ("COMMENT", "")]]
    )
    assert printed(narrow) == [
        "ACTION  PATTERN       ENDS   COMMENT",
        "allow   192.0.2.0/24  in 6d  the backup\u2026",
        "reject  from:somebody@mail.example.org",
        "          spam, spam, spam and more spam",
        "reject  from:xxxxxxxxxxx\u2026ail.example.org",
    ]


def test_without_anything_to_cut_what_follows_keeps_its_place(narrow: Console) -> None:
    long = "2001:db8:1111:2222:3333:4444:5555:6666"
    Rows(narrow, 0).print(
        [[("192.0.2.1", ""), ("7", ""), ("known", "")], [(long, ""), ("12", ""), ("known", "")]]
    )
    assert printed(narrow) == ["192.0.2.1  7   known", long, "           12  known"]


def test_where_nobody_looks_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    screen = console(80)
    Rows(screen, 0, 1).print([[("x" * 200, ""), ("y" * 200, "")]])
    assert printed(screen) == ["x" * 200 + "  " + "y" * 200]


def test_facts_have_a_line_of_their_own_where_they_are_too_long_beside_their_name(
    narrow: Console,
) -> None:
    path = "/var/lib/greycheck/of-this-host.db"
    facts(narrow, [("store", path), ("state", "one two three four five six seven eight")], 8)
    assert printed(narrow) == [
        "store",
        f"  {path}",
        "state     one two three four five six",
        "          seven eight",
    ]


def on_terminal(command: list[str], environ: dict[str, str]) -> str:
    """What COMMAND prints on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=follower, check=True)
    running = subprocess.Popen(command, env=environ, stdin=follower, stdout=follower)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the end of a terminal
        pass
    os.close(leader)
    assert running.wait() == 0
    return shown.decode()


def test_on_a_terminal_of_80_columns_a_pattern_is_whole(tmp_path: Path) -> None:
    pattern = "from:" + "a" * 43 + "@mail.example.org"
    environ = {
        **os.environ,
        "GREYCHECK_DATABASE": str(tmp_path / "greycheck.db"),
        "GREYCHECK_CONFIG": "/dev/null",
    }
    environ.pop("COLUMNS", None)
    shown = ""
    for words in (["db", "upgrade"], ["allow", pattern, "--comment", "c" * 90], ["rules", "list"]):
        shown += on_terminal(
            [sys.executable, "-m", "greycheck", *words], environ | {"TERM": "dumb"}
        )
    lines = shown.splitlines()
    assert f"added: allow {pattern} #" in lines
    assert f"allow   {pattern}" in lines
    assert columns.UNBOUND > 80
    assert lines[-1] == "          " + "c" * 69 + "\u2026"


# Prints the help of every command, each behind its name and a NUL.
HELPS = """
from click import Group
from greycheck.cli.main import cli

def help(command, words):
    print(" ".join(words), end="\\0")
    try:
        cli.main([*words, "--help"], prog_name="greycheck")
    except SystemExit:
        print(end="\\0")
    for name, inner in command.commands.items() if isinstance(command, Group) else ():
        help(inner, [*words, name])

help(cli, [])
"""


def test_on_a_terminal_of_80_columns_no_help_is_wider_and_no_word_of_it_is_broken() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    shown = on_terminal([sys.executable, "-c", HELPS], environ | {"TERM": "dumb"}).split("\0")
    helps = dict(zip(shown[::2], shown[1::2], strict=False))
    assert len(helps) > 25
    for name, text in helps.items():
        assert [line for line in text.splitlines() if cell_len(line) > 80] == [], name
        assert "..." not in text.partition("Commands:")[2], name
        command: click.Command = cli
        for word in name.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        said = [
            command.help,
            command.epilog,
            *(getattr(option, "help", "") for option in command.params),
        ]
        words = {word for each in said for word in (each or "").split()}
        assert words - {"\b"} <= set(text.split()), name
