"""What a driver must have beside its file, named where it is missing."""

import re
import subprocess
import tomllib
from importlib import metadata, util
from pathlib import Path

import pytest

from benchmarks import memory, servers
from greycheck.launchers.python import driver_directories, interpreter
from greycheck.store import drivers
from tests.support import DATABASES, OTHER_DRIVERS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = "\n".join(
    path.read_text() for path in [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
)

each_driver = pytest.mark.parametrize("record", drivers.RECORDS.values(), ids=drivers.RECORDS)


def test_each_file_has_a_record_and_each_record_a_file() -> None:
    directory = Path(drivers.__file__).parent
    files = {path.stem for path in directory.glob("*.py") if "class Connection" in path.read_text()}
    assert files - {"__init__"} == set(drivers.RECORDS)
    assert all(name == record.name for name, record in drivers.RECORDS.items())


@each_driver
def test_it_has_an_extra_that_installs_it_and_that_the_tests_install(
    record: drivers.Record,
) -> None:
    extras = PROJECT["optional-dependencies"]
    for wanted in extras[record.extra]:
        assert re.fullmatch(
            rf"{record.distribution}>=[0-9.]+(; python_version (<|>=) '3\.\d+')?", wanted
        )
    assert re.search(rf"\[(\w+,)*{record.extra},", " ".join(extras["test"]))


@each_driver
def test_its_package_comes_with_its_distribution(record: drivers.Record) -> None:
    assert util.find_spec(record.package)
    assert record.distribution.lower() in {
        name.lower() for name in metadata.packages_distributions()[record.package]
    }


@each_driver
def test_it_is_the_quickest_or_comes_after_quicker_ones(record: drivers.Record) -> None:
    names = drivers.names(record.dialect)
    slower = [drivers.RECORDS[name] for name in names[names.index(record.name) + 1 :]]
    assert all(record.check_ms < other.check_ms for other in slower)


@each_driver
def test_it_loads_the_libraries_of_its_record(record: drivers.Record) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.extend({driver_directories()!r})
__import__("greycheck.store.drivers.{record.name}")
print(open("/proc/self/maps").read())
"""
    ran = subprocess.run(
        [interpreter(), "-IS", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    # A wheel brings its own, with a digest in the name.
    loaded = set(re.findall(r"/(libpq|libmariadb)[-.][^/\n]*so", ran.stdout))
    assert loaded == set(record.libraries)


@each_driver
def test_the_documents_and_the_tests_set_up_say_what_it_is_built_with(
    record: drivers.Record,
) -> None:
    assert bool(record.built_with) == bool(record.libraries)
    assert record.built_with in DOCUMENTS
    assert record.built_with in (ROOT / "dev" / "packages").read_text()


@each_driver
def test_the_documents_have_its_line_with_its_figures(record: drivers.Record) -> None:
    line = re.search(
        rf"^``{record.extra}`` +{re.escape(record.title)} .*$", DOCUMENTS, re.MULTILINE
    )
    assert line, f"{record.name}: no line in the table of drivers"
    connect, check, _resident, limit = re.split(r" {2,}", line[0])[2:]
    assert connect == f"{record.connect_ms:.1f} ms"
    ratio = record.check_ms / record.connect_ms
    assert check.removesuffix(" of that") == f"{record.check_ms:.1f} ms, {ratio:.2f} x"
    # Doctor's is rounded up, by half a megabyte at most.
    assert 0 <= record.needed / 1_000_000 - float(limit.removesuffix(" MB")) < 0.5
    assert record.needed < record.advised < record.softlimit


@each_driver
def test_its_files_with_secrets_are_among_its_files(record: drivers.Record) -> None:
    assert set(record.secret_files) <= set(record.files)
    assert not set(record.passwords) & set(record.files)


@each_driver
def test_the_tests_and_the_benchmarks_use_it(record: drivers.Record) -> None:
    quickest = drivers.names(record.dialect)[0] == record.name
    scheme = {"postgresql": "postgresql", "mysql": "mariadb"}[record.dialect]
    assert scheme in DATABASES if quickest else f"{scheme}+{record.name}" in OTHER_DRIVERS
    assert record.name in servers.DOCUMENTED
    assert record.name in servers.LOWEST
    assert any(way.startswith(f"{record.name}, ") for way in memory.WAYS)
