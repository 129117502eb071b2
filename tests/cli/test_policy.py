"""``greycheck policy`` as a command: it is the program that Postfix spawns, which
tests/resident/test_spawned.py asks.
"""

import sys
from typing import NoReturn

import pytest
from click.testing import CliRunner

from greycheck import __main__
from greycheck.cli.main import cli
from greycheck.resident import spawned


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(operator: tuple[str, ...]) -> NoReturn:
        raise SystemExit(f"answers with {operator[1:]}")

    monkeypatch.setattr(spawned, "main", answer)


def test_the_command_line_answers_too() -> None:
    result = CliRunner().invoke(cli, ["policy"], prog_name="greycheck")
    assert str(result.exception) == "answers with ('-I', '-m', 'greycheck')"


@pytest.mark.parametrize("program", ["greycheck", "/opt/greycheck/bin/greycheck"])
def test_pips_program_goes_there_at_once(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(sys, "argv", [program, "policy"])
    monkeypatch.delattr("greycheck.cli.main.cli")
    with pytest.raises(SystemExit, match="answers with"):
        __main__.main()


def test_under_a_hooks_name_it_is_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """CHECKENV calls with two arguments; whatever has one, under that name, is nobody's command."""

    def check(_operator: tuple[str, ...]) -> NoReturn:
        raise SystemExit("checks")

    monkeypatch.setattr("greycheck.child.main", check)
    monkeypatch.setattr(sys, "argv", ["bin/qmail-checkenv", "policy"])
    with pytest.raises(SystemExit, match="checks"):
        __main__.main()


def test_it_takes_no_argument() -> None:
    result = CliRunner().invoke(cli, ["policy", "more"], prog_name="greycheck")
    assert result.exit_code == 2
