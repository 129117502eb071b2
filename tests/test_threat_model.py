"""docs/threat-model.rst: each of its lines is held by tests that exist."""

import ast
import re

import pytest

from tests.support import ROOT

MODEL = ROOT / "docs" / "threat-model.rst"

PARTIES = (
    "SMTP client",
    "A user of ours",
    "Who has a link",
    "Local user",
    "Policy client",
    "Who publishes SPF",
    "The store's owner",
    "Another MX",
    "The database's host",
    "A provider, and the name servers",
    "root",
)

NAMED = re.compile(r"^  ``(tests/[\w/]+\.py)::(\w+)``$")


def lines(text: str) -> dict[str, list[tuple[str, str]]]:
    """What stands in TEXT below each title of a party: (what, the whole line with its tests), WHAT
    being "May" or "Must not".
    """
    found: dict[str, list[tuple[str, str]]] = {}
    party, what = "", ""
    rows = text.splitlines()
    for row, below in zip(rows, [*rows[1:], ""], strict=True):
        if below and set(below) == {"-"}:
            party = row
            found[party] = []
        elif row in ("May:", "Must not:"):
            what = row.rstrip(":")
        elif row.startswith("- "):
            found[party].append((what, row))
        elif row.startswith("  ") and found.get(party):
            said, line = found[party][-1]
            found[party][-1] = said, f"{line}\n{row}"
    return found


LINES = lines(MODEL.read_text())


def test_each_party_may_something_and_must_not_do_something() -> None:
    assert tuple(LINES) == PARTIES
    for party, found in LINES.items():
        assert {what for what, _line in found} == {"May", "Must not"}, party


@pytest.mark.parametrize(
    ("party", "line"), [(party, line) for party in LINES for _what, line in LINES[party]]
)
def test_each_line_is_held_by_tests_that_exist(party: str, line: str) -> None:
    named = [match.groups() for row in line.splitlines() if (match := NAMED.match(row))]
    assert named, f"{party}: no test holds this: {line}"
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in tests, f"{path} has no {name}"


def test_operators_find_it() -> None:
    assert "docs/threat-model.rst" in (ROOT / "README.rst").read_text()
