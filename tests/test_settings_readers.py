"""Where each setting counts is what the code reads: which program's file names it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest

from greycheck import settings
from greycheck.cli.config import READERS
from tests.support import ROOT

# The programs that a file is a part of: the first pattern counts that fits.
OF_ALL = {"check", "expire", "commands"}
FILES: tuple[tuple[str, set[str]], ...] = (
    # Where one setting feeds another; and what shows them all, or looks whether they are right.
    ("settings.py", set()),
    ("cli/config.py", set()),
    ("cli/explain.py", set()),
    ("explain/*", set()),
    ("doctor/*", set()),
    ("launchers/greycheck.c", {"launcher"}),
    ("launchers/native.py", {"launcher"}),
    ("launchers/*", {"commands"}),
    ("resident/spawned.py", {"policy"}),
    ("resident/kept_store.py", {"policy"}),
    ("resident/questions.py", {"serve", "policy"}),
    ("resident/learning.py", {"check"}),
    ("resident/counting.py", {"check"}),
    ("resident/*", {"serve"}),
    ("digest/*", {"commands"}),
    ("simulation/*", set()),
    ("resolve/*", {"commands"}),
    ("store/rights.py", OF_ALL),
    ("store/admin/expiry.py", {"expire"}),
    ("store/admin/history.py", {"expire"}),
    ("store/admin/*", {"commands"}),
    ("store/*", {"check"}),
    ("rules/*", {"commands"}),
    ("statistics/*", {"commands"}),
    ("metrics/*", {"commands"}),
    ("cli/common.py", {"expire", "commands"}),
    ("cli/serve.py", {"serve"}),
    ("cli/expire.py", {"expire"}),
    ("cli/*", {"commands"}),
    ("child.py", {"check"}),
    ("outbound.py", {"check"}),
    ("history.py", {"check"}),
    ("policy.py", {"check"}),
    ("unknown.py", {"check"}),
)

# What counts wherever another one does, whose value it gives.
PARTS_OF = {"database_file": "database", "database_hosts": "database"}


def named() -> Iterator[tuple[str, str]]:
    """Each file of the program, and a setting that it reads."""
    for path in sorted((ROOT / "greycheck").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.search(
                r"(^|[._])settings(\(\))?$", ast.unparse(node.value)
            ):
                yield str(path.relative_to(ROOT / "greycheck")), node.attr
    for path in (ROOT / "greycheck").rglob("*.c"):
        for name in re.findall(r'getenv\("GREYCHECK_(\w+)"\)', path.read_text()):
            yield str(path.relative_to(ROOT / "greycheck")), name.lower()


def pattern_of(file: str) -> str:
    return next(pattern for pattern, _programs in FILES if fnmatch(file, pattern))


def read_by() -> dict[str, set[str]]:
    """The programs that read each setting."""
    names = {setting.name for setting in settings.TABLE}
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file, name in named():
        if name in names:
            found[name] |= dict(FILES)[pattern_of(file)]
    for name, of in PARTS_OF.items():
        found[name] |= found[of]
    # Who answers a mail server checks.
    return {name: of - {"serve", "policy"} if "check" in of else of for name, of in found.items()}


READ_BY = read_by()


@pytest.mark.parametrize("setting", settings.TABLE, ids=lambda setting: str(setting.name))
def test_the_record_names_the_programs_that_read_a_setting(setting: settings.Setting) -> None:
    where = setting.where.split(", ")
    assert where == [name for name in READERS if name in where]
    assert set(where) == READ_BY[setting.name]


def test_each_line_of_these_has_files_that_read_settings() -> None:
    assert {pattern_of(file) for file, _name in named()} == {pattern for pattern, _ in FILES}
