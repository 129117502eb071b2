"""The manual pages: in step with the commands and settings, and sound."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from greycheck import settings
from greycheck.cli import manual
from greycheck.cli.main import cli
from tests.support import ROOT


def commands(
    command: click.Command = cli, path: str = "greycheck"
) -> Iterator[tuple[str, click.Command]]:
    """Every command below COMMAND, and it, by its path."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


COMMANDS = dict(commands())


PAGES = ("greycheck.8", "greycheck.conf.5")


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_its_source_says(name: str) -> None:
    """Run `python -m greycheck.cli.manual` where this fails."""
    assert (manual.DOCS / name).read_text() == manual.pages()[name]


def test_they_are_written_by_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manual, "DOCS", tmp_path)
    manual.main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == manual.pages()


@pytest.mark.parametrize("name", PAGES)
def test_they_are_installed(name: str) -> None:
    assert (
        f'"docs/{name}" = "share/man/man{name[-1]}/{name}"' in (ROOT / "pyproject.toml").read_text()
    )


@pytest.mark.parametrize("path", COMMANDS)
def test_each_command_and_each_option_says_what_it_does(path: str) -> None:
    command = COMMANDS[path]
    assert (command.help or "").strip()
    for option in command.params:
        if isinstance(option, click.Option):
            assert (option.help or "").strip(), option.name


def plain(name: str) -> str:
    """The page NAME as a person reads it, on one line."""
    groff = shutil.which("groff")
    assert groff, "groff is missing: dev/test installs it"
    command = [groff, "-man", "-ww", "-Tutf8", "-P-cbou", str(manual.DOCS / name)]
    ran = subprocess.run(command, capture_output=True, check=True)
    assert ran.stderr == b""
    return " ".join(ran.stdout.decode().replace("\u2010", "-").replace("\u2212", "-").split())


def in_order(titles: str) -> str:
    """A pattern for a page with sections of these TITLES."""
    return " .* ".join(re.split(r" (?!STATUS|ALSO)", titles))


def test_groff_has_no_complaint_and_the_commands_are_all_there() -> None:
    page = plain("greycheck.8")
    titles = (
        "NAME SYNOPSIS DESCRIPTION COMMANDS LOG EXIT STATUS RIGHTS FILES ENVIRONMENT EXAMPLES SEE"
        " ALSO"
    )
    assert re.search(in_order(titles), page)
    for path, command in COMMANDS.items():
        if not isinstance(command, click.Group):
            assert f" {path} " in page
        for option in command.params:
            if path != "greycheck" and isinstance(option, click.Option):
                assert f" {option.opts[-1]} " in page
                assert " ".join((option.help or "").split()) in page


def test_groff_has_no_complaint_and_the_settings_are_all_there() -> None:
    page = plain("greycheck.conf.5")
    assert re.search(in_order("NAME SYNOPSIS DESCRIPTION SETTINGS NOTES EXAMPLES SEE ALSO"), page)
    for setting in settings.TABLE:
        assert f" {setting.name} {'= ' + setting.text if setting.text else ''}".rstrip() in page
        assert setting.meaning in page


def test_what_is_noted_or_shown_of_settings_is_about_settings() -> None:
    named = {name for names, _note in manual.NOTES for name in names.split(", ")}
    named |= {
        line.partition(" = ")[0] for _what, lines in manual.SETTINGS_EXAMPLES for line in lines
    }
    assert named <= {setting.name for setting in settings.TABLE}


@pytest.mark.parametrize("name", PAGES)
def test_no_line_is_wider_than_a_terminal(name: str) -> None:
    command = ["groff", "-man", "-Tutf8", "-rLL=78n", "-P-cbou", str(manual.DOCS / name)]
    ran = subprocess.run(command, capture_output=True, check=True)
    assert [line for line in ran.stdout.decode().splitlines() if len(line) > 80] == []


def test_text_is_never_taken_for_a_request() -> None:
    assert manual.text(".so /etc/passwd") == "\\&.so /etc/passwd"
    assert manual.text("'br") == "\\&'br"
    assert manual.text("a\\fB-x `y` ~ ^") == "a\\efB\\-x \\(gay\\(ga \\(ti \\(ha"


def test_an_options_default_is_told_where_click_tells_it() -> None:
    context = click.Context(click.Command("x"))
    assert (
        manual.option_help(
            click.Option(["--x"], default=5, show_default=True, help="Of x."), context
        )
        == "Of x. Default: 5."
    )
    assert manual.option_help(click.Option(["--x"], default=5, help="Of x."), context) == "Of x."
    assert (
        manual.option_term(click.Option(["-x", "--xyz"], is_flag=True), context)
        == "\\fB\\-x\\fR, \\fB\\-\\-xyz\\fR"
    )
    assert (
        manual.option_term(click.Option(["--x"], metavar="N"), context)
        == "\\fB\\-\\-x\\fR \\fIN\\fR"
    )


def test_hidden_commands_are_left_out_and_groups_that_do_something_are_not() -> None:
    group = click.Group("g", invoke_without_command=True)
    group.add_command(click.Command("shown"))
    group.add_command(click.Command("secret", hidden=True))
    outer = click.Context(click.Group("outer", {"g": group}), info_name="greycheck")
    assert [context.command.name for context in manual.contexts(outer)] == ["g", "shown"]


def test_the_rights_of_each_command_are_told_once() -> None:
    named = [name for names, _told in manual.RIGHTS for name in names.split(", ")]
    leaves = [
        path.removeprefix("greycheck ")
        for path, one in COMMANDS.items()
        if not isinstance(one, click.Group)
    ]
    assert sorted(named) == sorted(leaves)
