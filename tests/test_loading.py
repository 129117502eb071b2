"""How a launcher finds its modules: by what is compiled, as long as that is of the source."""

import os
import py_compile
import subprocess
import sys
from importlib.util import module_from_spec
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

from greycheck import loading
from greycheck.launchers.python import launcher
from tests.support import ROOT, Child


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module that is compiled."""
    path = tmp_path / "room.py"
    path.write_text("VALUE = 1\n")
    py_compile.compile(str(path), doraise=True)
    return path


def value(module: Path) -> int | None:
    """What the compiled MODULE says; None where it is not used."""
    code = loading.compiled(str(module.parent), module.stem)
    if code is None:
        return None
    found: dict[str, int] = {}
    exec(code, found)
    return found["VALUE"]


def cached(module: Path) -> Path:
    return module.parent / "__pycache__" / f"{module.stem}{loading.CACHED}"


def test_a_module_that_is_compiled_is_not_read(module: Path) -> None:
    assert value(module) == 1


def test_a_source_that_is_newer_or_older_counts(module: Path) -> None:
    before = module.stat().st_mtime
    for when in (before + 2, before - 2):
        os.utime(module, (when, when))
        assert value(module) is None
    os.utime(module, (before, before))
    assert value(module) == 1


def test_a_source_of_another_size_counts(module: Path) -> None:
    when = module.stat().st_mtime
    module.write_text("VALUE = 10\n")
    os.utime(module, (when, when))
    assert value(module) is None


@pytest.mark.parametrize(
    "mode", [PycInvalidationMode.CHECKED_HASH, PycInvalidationMode.UNCHECKED_HASH]
)
def test_what_is_compiled_to_be_compared_by_its_content_is_left_to_the_interpreter(
    module: Path, mode: PycInvalidationMode
) -> None:
    py_compile.compile(str(module), doraise=True, invalidation_mode=mode)
    assert value(module) is None


def test_what_another_interpreter_compiled_is_not_used(module: Path) -> None:
    content = cached(module).read_bytes()
    cached(module).write_bytes(b"\0" + content[1:])
    assert value(module) is None
    cached(module).write_bytes(b"")
    assert value(module) is None


def test_what_is_not_compiled_is_left_to_the_interpreter(module: Path) -> None:
    cached(module).unlink()
    assert value(module) is None


def test_what_has_no_source_is_left_to_the_interpreter(module: Path) -> None:
    module.unlink()
    assert value(module) is None


def test_what_was_cut_is_an_error_as_it_is_the_interpreters(module: Path) -> None:
    cached(module).write_bytes(cached(module).read_bytes()[:30])
    with pytest.raises((EOFError, ValueError, TypeError)):
        value(module)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("greycheck", None),
        ("greycheck.child", None),
        ("greycheck.child", []),
        ("greycheck_more.child", ["/nonexistent"]),
        ("greycheck.child", ["/nonexistent"]),
        ("_sqlite3", None),
    ],
)
def test_only_modules_of_the_package_are_found(name: str, path: list[str] | None) -> None:
    assert loading.Finder.find_spec(name, path) is None


def test_a_package_is_found_with_the_place_of_its_modules(tmp_path: Path) -> None:
    package = tmp_path / "rooms"
    package.mkdir()
    (package / "__init__.py").write_text("VALUE = 1\n")
    py_compile.compile(str(package / "__init__.py"), doraise=True)
    spec = loading.Finder.find_spec("greycheck.rooms", [str(tmp_path)])
    assert spec is not None
    assert spec.submodule_search_locations == [str(package)]
    assert spec.origin == str(package / "__init__.py")


def test_what_is_found_is_loaded(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    loading.quicken()
    assert sys.meta_path[0] is loading.Finder
    spec = loading.Finder.find_spec("greycheck.room", [str(module.parent)])
    assert spec is not None
    loaded = module_from_spec(spec)
    assert loaded.__name__ == "greycheck.room"
    loading.Finder.exec_module(loaded)
    assert loaded.VALUE == 1


# What the launcher in Python ends with, told first.
TOLD = """\
import posix, sys
leave = posix._exit
def tell(code):
    names = sorted(name for name in sys.modules if name.startswith('greycheck.'))
    quick = [name for name in names if sys.modules[name].__spec__.loader.__class__ is type]
    posix.write(2, ('%d of %d\\n' % (len(quick), len(names))).encode())
    leave(code)
posix._exit = tell
"""


ENVELOPE = {"REMOTEMF": "alice@example.org", "REMOTERCPT": "bob@example.net"}


def copy_of_package(place: Path, compiled: bool) -> Path:
    """A copy of the package below PLACE, COMPILED or not."""
    subprocess.run(["cp", "-R", ROOT / "greycheck", place / "greycheck"], check=True)
    subprocess.run(
        ["find", place, "-name", "__pycache__", "-prune", "-exec", "rm", "-r", "{}", "+"],
        check=True,
    )
    if compiled:
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", str(place / "greycheck")], check=True
        )
    return place


@pytest.mark.parametrize("compiled", [True, False])
def test_a_launcher_loads_all_modules_so_where_they_are_compiled(
    child: Child, tmp_path: Path, compiled: bool
) -> None:
    child.make_store()
    place = copy_of_package(tmp_path, compiled)
    text = launcher().replace(repr(str(ROOT)), repr(str(place)))
    first, _line, rest = text.partition("\n")
    path = tmp_path / "qmail-greycheck"
    path.write_text(f"{first}\n{TOLD}{rest}")
    path.chmod(0o755)
    quick, _of, number = child.run([str(path)], child.environ(**ENVELOPE)).lines[-1].split(" ")
    # The first is what loads the others.
    assert int(quick) == (int(number) - 1 if compiled else 0)
    assert int(number) > 15


def test_a_source_that_changed_since_is_what_runs(child: Child, tmp_path: Path) -> None:
    child.make_store()
    place = copy_of_package(tmp_path, True)
    text = launcher().replace(repr(str(ROOT)), repr(str(place)))
    path = tmp_path / "qmail-greycheck"
    path.write_text(text)
    path.chmod(0o755)
    assert "reason=new" in child.run([str(path)], child.environ(**ENVELOPE)).lines[-1]
    source = place / "greycheck" / "log.py"
    written = source.read_text()
    assert "greycheck: {verdict.action}" in written
    source.write_text(written.replace("greycheck: {verdict.action}", "other: {verdict.action}"))
    assert child.run([str(path)], child.environ(**ENVELOPE)).lines[-1].startswith("other: defer")
