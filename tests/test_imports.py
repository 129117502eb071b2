"""What one check loads: this list, and nothing else.

What joins it must be worth its time (docs/architecture.rst#two-speeds-one-source).
"""

import ast
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from greycheck import hooks
from greycheck.hooks import calling
from greycheck.hooks.record import Hook
from greycheck.launchers.python import driver_directories, interpreter
from greycheck.store import drivers
from greycheck.store.url import parse_url
from tests.support import ROOT, Child, ServerDatabase, on_every_server

# Beside what a bare interpreter loads. Of the interpreter's own library only modules written in C.
OURS = {
    "greycheck",
    "greycheck.child",
    "greycheck.envelope",
    "greycheck.hooks",
    "greycheck.loading",
    "greycheck.log",
    "greycheck.normalise",
    "greycheck.policy",
    "greycheck.settings",
}
OF_THE_STORE = {
    "greycheck.check",
    "greycheck.guard",
    "greycheck.history",
    "greycheck.store",
    "greycheck.store.compiled_sqlite",
    "greycheck.store.base",
    "greycheck.store.sqlite",
}
if os.geteuid() == 0:
    OF_THE_STORE.add("greycheck.store.rights")
BUILT_IN = {"_functools", "_sqlite3", "_blake2"}

# Where the mail is not known: what waits besides, and what is to be written.
OF_UNKNOWN = {"greycheck.store.waiting", "greycheck.store.writing", "greycheck.unknown"}

# With a server database, below the driver's own Python where there is something below.
OF_SERVERS = {
    "greycheck.check",
    "greycheck.guard",
    "greycheck.history",
    "greycheck.hooks.smtpextfork",
    "greycheck.rule_keys",
    "greycheck.store",
    "greycheck.store.breaker",
    "greycheck.store.causes",
    "greycheck.store.drivers",
    "greycheck.store.drivers.arguments",
    "greycheck.store.drivers.faults",
    "greycheck.store.base",
    "greycheck.store.host_list",
    "greycheck.store.matching",
    "greycheck.store.server",
    "greycheck.store.url",
}
if os.geteuid() == 0:
    OF_SERVERS.add("greycheck.store.rights")
OF_DRIVERS = {
    "psycopg2": {"psycopg2._psycopg", "psycopg2.errors", "_datetime", "select"},
    "mysqldb": {"MySQLdb._mysql", "MySQLdb._exceptions"},
}
BUILT_IN_OF_SERVERS = {"_blake2"}

LISTING = """
import posix, sys
sys.path.insert(0, {root!r})
sys.path.extend({drivers!r})
bare = set(sys.modules)
leave = posix._exit
def list_and_leave(code):
    posix.write(2, ("\\n".join(set(sys.modules) - bare)).encode())
    leave(code)
posix._exit = list_and_leave
sys.argv[:] = {argv!r}
from greycheck.loading import quicken
quicken()
from greycheck.child import main
main(("/nonexistent",))
"""


PARTS = {"client": b"192.0.2.1", "sender": b"a", "recipient": b"a"}


def loaded(child: Child, argv: list[str], **environ: str) -> set[str]:
    """The modules that a check loads, beside the interpreter's own."""
    script = LISTING.format(root=str(ROOT), drivers=driver_directories(), argv=argv)
    envelope = {
        os.fsdecode(name): value.decode()
        for hook in hooks.every()
        for name, value in calling.call(hook, PARTS)[1].items()
    }
    ran = child.run(
        [interpreter(), "-IS", "-c", script], child.environ(**(envelope | environ)), speaks=True
    )
    return set(ran.lines[1:])


@pytest.mark.parametrize("hook", hooks.every(), ids=lambda hook: hook.NAME)
def test_a_check_loads_this_and_nothing_else(child: Child, hook: Hook) -> None:
    child.make_store()
    called, _variables = calling.call(hook, PARTS)
    argv = [argument.decode() for argument in called]
    known = OURS | OF_THE_STORE | {f"greycheck.hooks.{hook.NAME}"} | BUILT_IN
    for _new_early_and_due in range(3):
        assert loaded(child, argv) == known | OF_UNKNOWN
        child.age(150)
    assert loaded(child, argv) == known


def test_tags_of_a_sender_cost_one_more_module_and_another_where_it_is_new(child: Child) -> None:
    child.make_store()
    more = [
        loaded(child, ["greycheck"], REMOTEMF="list-return-5-joe=example.com@example.org")
        for _new_and_early in "12"
    ]
    bare = OURS | OF_THE_STORE | OF_UNKNOWN | BUILT_IN
    bare |= {"greycheck.hooks.smtpextfork", "greycheck.folding"}
    # The same attempt, seen twice, is not written.
    assert more == [bare | {"greycheck.earlier"}, bare - {"greycheck.store.writing"}]


def test_rules_cost_two_more_modules_where_there_are_any(child: Child) -> None:
    child.make_store()
    connection = sqlite3.connect(child.database)
    with connection:
        connection.execute(
            "INSERT INTO rule VALUES (x'00', 'network', '10.0.0.0/8', 'allow', NULL, '', 1, NULL)"
        )
    connection.close()
    assert loaded(child, ["greycheck"]) - OURS - OF_THE_STORE - OF_UNKNOWN - BUILT_IN == {
        "greycheck.hooks.smtpextfork",
        "greycheck.rule_keys",
        "greycheck.store.matching",
    }


@on_every_server
def test_a_check_of_a_server_loads_this_and_nothing_else(child: Child) -> None:
    """A driver that is Python all through loads its own, and what that wants of the interpreter's
    library.
    """
    assert isinstance(child.store, ServerDatabase)
    dialect, driver = child.store.url.partition(":")[0].split("+")
    ours = (
        OURS
        | OF_SERVERS
        | {f"greycheck.store.compiled_{dialect}", f"greycheck.store.drivers.{driver}"}
    )
    for more in (OF_UNKNOWN, OF_UNKNOWN, OF_UNKNOWN, set()):  # new, early, due and known
        found = loaded(child, ["greycheck"])
        assert {name for name in found if name.startswith("greycheck")} == ours | more
        assert not any(name.startswith("sqlalchemy") for name in found)
        if driver in OF_DRIVERS:
            assert found - ours - more == OF_DRIVERS[driver] | BUILT_IN_OF_SERVERS
        child.age(150)


@on_every_server
def test_no_stand_in_of_a_driver_stays(database: ServerDatabase) -> None:
    """Whoever imports afterwards what a driver was given a stand-in for gets the real one."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.extend({driver_directories()!r})
from greycheck.store import drivers
from greycheck.store.url import parse_url
asked = parse_url({database.url!r})
name, driver = drivers.load(asked)
connection = driver.Connection(asked, asked.hosts[0], 60, 60)
assert [tuple(map(int, row)) for row in connection.run("SELECT 1 + 1", (), 60)[0]] == [(2,)]
real = driver.connect(asked, asked.hosts[0], 60)
cursor = real.cursor()
cursor.execute("SELECT CAST('2024-02-29' AS date), CAST(1.5 AS decimal(3, 1))")
import datetime, decimal
assert tuple(cursor.fetchone()) == (datetime.date(2024, 2, 29), decimal.Decimal("1.5"))
assert datetime.datetime.now()
real.close()
connection.close()
"""
    subprocess.run([interpreter(), "-IS", "-c", script], check=True, timeout=60)


def test_what_psycopg2_connects_with_is_not_left_behind(
    on_postgresql: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parse_url(on_postgresql.url)
    driver = drivers.load(asked)[1]
    monkeypatch.delitem(sys.modules, "psycopg2.extensions", raising=False)
    connection = driver.Connection(asked, asked.hosts[0], 60, 60)
    connection.close()
    assert "psycopg2.extensions" not in sys.modules


def test_an_exempt_client_costs_no_store(child: Child) -> None:
    assert loaded(child, ["greycheck"], RELAYCLIENT="") == OURS | {"greycheck.hooks.smtpextfork"}


def test_learning_from_an_exempt_client_costs_one_module_before_the_answer(child: Child) -> None:
    """All else is loaded by a process that nobody waits for."""
    child.make_store()
    found = loaded(child, ["greycheck"], RELAYCLIENT="", GREYCHECK_LEARN_OUTBOUND="60d")
    assert found == OURS | {"greycheck.hooks.smtpextfork", "greycheck.outbound"}


def test_the_stand_in_for_functools_does_not_stay() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import greycheck.store.sqlite, functools;"
        " functools.partial"
    )
    subprocess.run([interpreter(), "-IS", "-c", script], check=True, timeout=60)


def test_sqlite_works_as_with_functools(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import greycheck.store.sqlite, _sqlite3
connection = _sqlite3.connect({str(tmp_path / "x.db")!r})
for number in range(1000):
    assert connection.execute("SELECT ?", (number,)).fetchone() == (number,)
    assert connection.execute(f"SELECT {{number}}").fetchone() == (number,)
connection.close()
"""
    subprocess.run([interpreter(), "-IS", "-c", script], check=True, timeout=60)
    assert sys.modules["functools"].__file__


# --- who may import whom --------------------------------------------------------------------------


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The names that TREE imports, within functions too, but for what only types want."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{each.name}" for each in node.names)
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        yield from imports_of(node)


def test_there_is_no_circle_of_files() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "greycheck").rglob("*.py")
    }
    wants = {}
    for name, path in files.items():
        found = [each for each in imports_of(ast.parse(path.read_text())) if each in files]
        # ``from package import file`` wants the file; of the package itself only what it is asked.
        wants[name] = {
            each
            for each in found
            if each != name and not any(other.startswith(f"{each}.") for other in found)
        }
    TopologicalSorter(wants).prepare()  # which raises CycleError, with the circle
