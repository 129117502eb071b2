"""What one check loads: this list, and nothing else. Whatever joins it must be worth its time (design.md)."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from greycheck.cli.install import interpreter
from tests.support import ROOT, Child

# Beside what a bare interpreter loads. Of the interpreter's own library only modules written in C.
OURS = {
    "greycheck",
    "greycheck.child",
    "greycheck.envelope",
    "greycheck.hooks",
    "greycheck.log",
    "greycheck.normalise",
    "greycheck.policy",
    "greycheck.settings",
}
OF_THE_STORE = {
    "greycheck.check",
    "greycheck.guard",
    "greycheck.store",
    "greycheck.store.compiled_sqlite",
    "greycheck.store.lean",
    "greycheck.store.lean_sqlite",
}
BUILT_IN = {"_functools", "_sqlite3", "_blake2"}

LISTING = """
import posix, sys
sys.path.insert(0, {root!r})
bare = set(sys.modules)
leave = posix._exit
def list_and_leave(code):
    posix.write(2, ("\\n".join(set(sys.modules) - bare)).encode())
    leave(code)
posix._exit = list_and_leave
sys.argv[:] = {argv!r}
from greycheck.child import main
main(("/nonexistent",))
"""


def loaded(child: Child, argv: list[str], **environ: str) -> set[str]:
    """The modules that a check loads, beside the interpreter's own."""
    script = LISTING.format(root=str(ROOT), argv=argv)
    ran = child.run([interpreter(), "-IS", "-c", script], child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", **environ))
    return set(ran.lines[1:])


@pytest.mark.parametrize(
    ("argv", "hook"), [(["greycheck"], "smtpextfork"), (["bin/qmail-checkenv", "a", "b"], "checkenv")]
)
def test_a_check_loads_this_and_nothing_else(child: Child, argv: list[str], hook: str) -> None:
    child.make_store()
    for _new_early_and_due in range(3):
        assert loaded(child, argv) == OURS | OF_THE_STORE | {f"greycheck.hooks.{hook}"} | BUILT_IN
        child.age(150)


def test_rules_cost_one_more_module_where_there_are_any(child: Child) -> None:
    child.make_store()
    connection = sqlite3.connect(child.database)
    with connection:
        connection.execute("INSERT INTO rule VALUES (x'00', 'network', '10.0.0.0/8', 'allow', NULL, '', 1, NULL)")
    connection.close()
    assert loaded(child, ["greycheck"]) - OURS - OF_THE_STORE - BUILT_IN == {
        "greycheck.hooks.smtpextfork",
        "greycheck.rules",
    }


def test_an_exempt_client_costs_no_store(child: Child) -> None:
    assert loaded(child, ["greycheck"], RELAYCLIENT="") == OURS | {"greycheck.hooks.smtpextfork"}


def test_the_stand_in_for_functools_does_not_stay() -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import greycheck.store.lean_sqlite, functools; functools.partial"
    subprocess.run([interpreter(), "-IS", "-c", script], check=True, timeout=60)


def test_sqlite_works_as_with_functools(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import greycheck.store.lean_sqlite, _sqlite3
connection = _sqlite3.connect({str(tmp_path / "x.db")!r})
for number in range(1000):
    assert connection.execute("SELECT ?", (number,)).fetchone() == (number,)
    assert connection.execute(f"SELECT {{number}}").fetchone() == (number,)
connection.close()
"""
    subprocess.run([interpreter(), "-IS", "-c", script], check=True, timeout=60)
    assert sys.modules["functools"].__file__
