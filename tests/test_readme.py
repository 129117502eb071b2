"""What the README says, held against the program."""

import re
import subprocess
from subprocess import PIPE

import docutils.core
import pytest

from greycheck import explain, manual, policy, settings
from greycheck.cli.main import cli
from tests.support import ROOT

README = (ROOT / "README.rst").read_text()


@pytest.mark.parametrize("path", ["README.rst", "benchmarks/README.rst"])
def test_it_is_sound_restructured_text(path: str) -> None:
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False}
    docutils.core.publish_string((ROOT / path).read_text(), writer="null", settings_overrides=strict)


def test_it_lists_every_setting_with_default_and_meaning() -> None:
    rows = re.findall(r"^(\w+) +((?:\S+(?: \S+)*)?) {2,}(\S.*\.)$", README, re.MULTILINE)
    assert rows == [(setting.name, setting.text, setting.meaning) for setting in settings.TABLE]


def test_it_explains_every_reason() -> None:
    found = re.findall(r"^``(\w+)`` +(accept|defer|reject) ", README, re.MULTILINE)
    rows = dict(found)
    reasons = {reason: action for action, reason in policy.TRANSITIONS.values()}
    accepting = ("incomplete", "exempt", "rule", "client", "expected", "message", "pool", "full", "error")
    # In one order everywhere: the one in which they are asked.
    assert [reason for reason, _ in found] == [reason for reason, _, _ in manual.REASONS]
    steps = [reason for asked in explain.REASONS.values() for reason in asked]
    assert [reason for reason in steps if reason not in ("new", "early")] + ["new", "early", "error"] == list(rows)
    assert rows == reasons | {"strikes": "reject", "crowded": "defer"} | dict.fromkeys(accepting, "accept")


def test_it_names_every_command() -> None:
    section = README.partition("\nCommands\n")[2].partition("\nThe log\n")[0]
    for name in cli.commands:
        assert f"``greycheck {name}" in section


def test_its_two_commands_are_there() -> None:
    for command in ("dev/demo", "dev/test"):
        assert f"\n    {command}\n" in README
        assert (ROOT / command).stat().st_mode & 0o111
    assert "\nsh dev/test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("title", "number", "within"),
    [
        ("Install", 1, "apt-get install python3-venv"),
        ("Hosts without qmail", 1, "systemctl enable --now greycheck.service"),
        ("Postfix", 1, "smtpd_recipient_restrictions ="),
        ("Postfix", 2, "swaks --server mx.example.net"),
    ],
)
def test_the_first_hour_finds_its_lines(title: str, number: int, within: str) -> None:
    script = (ROOT / "dev" / "first_hour").read_text()
    assert re.search(rf'(type_in|readme) "?{title}"? {number}\b', script)
    function = script[script.index("readme() {") :].partition("\n}\n")[0]
    ran = subprocess.run(
        ["sh", "-euc", f'{function}\n}}\nreadme "$@"', "sh", title, str(number)], cwd=ROOT, stdout=PIPE, check=True
    )
    assert within in ran.stdout.decode()


def test_every_figure_has_been_measured() -> None:
    figures = README.partition("\n.. figures\n")[2].partition("\nHow it is built\n")[0]
    assert len(re.findall(r"^\S.* {2,}[0-9].* {2,}at ", figures, re.MULTILINE)) >= 6
