"""What all tests share: a place that any user can reach, and launchers installed as an operator installs them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from greycheck.cli.launcher import PROGRAMS
from greycheck.store import schema
from tests.servers import MariaDB, Postgres, galera, mariadb, postgres, standby, templates  # noqa: F401
from tests.support import MEASURED, Child, Database, ServerDatabase, SQLiteFile


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory below directories that any user may pass; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="greycheck-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def launchers() -> Iterator[Path]:
    """The directory of the programs, written by ``greycheck install``."""
    with tempfile.TemporaryDirectory(prefix="greycheck-bin-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        subprocess.run(
            [sys.executable, "-m", "greycheck", "install", name, "--user", "root" if os.geteuid() == 0 else str_user()],
            env={"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_DATABASE": f"{name}/unused.db"},
            check=True,
            capture_output=True,
        )
        yield directory


def str_user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="session")
def measured_launchers() -> Iterator[Path]:
    """The same programs, run under coverage by an interpreter with its site."""
    with tempfile.TemporaryDirectory(prefix="greycheck-measured-") as name:
        for program in PROGRAMS:
            path = Path(name) / program
            path.write_text(MEASURED)
            path.chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store without rows, to be copied: migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("store") / "greycheck.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def on_postgresql(
    postgres: Postgres,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerDatabase]:
    """A database of PostgreSQL for all tests that ask for ``database``."""
    found = ServerDatabase(postgres, tmp_path_factory.mktemp("state"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def on_mariadb(
    mariadb: MariaDB,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerDatabase]:
    """A database of MariaDB for all tests that ask for ``database``."""
    found = ServerDatabase(mariadb, tmp_path_factory.mktemp("state"))
    yield found
    found.close()


@pytest.fixture
def database(request: pytest.FixtureRequest, place: Path, empty_store: Path) -> Database:
    """An SQLite file that is yet to be made; where ``support.on_every_database`` asks for it, any store, with tables but no row."""
    dialect, _, driver = getattr(request, "param", "").partition("+")
    found: Database = SQLiteFile(place / "greycheck.db", empty_store)
    if dialect not in ("", "sqlite"):
        server_database: ServerDatabase = request.getfixturevalue(f"on_{dialect}")
        found = server_database.seen_from(place, driver)
    if dialect:
        found.make()
    return found


@pytest.fixture
def child(launchers: Path, database: Database) -> Child:
    """The forked child with a store of its own."""
    return Child(launchers, database)


@pytest.fixture(params=["launcher", "measured"])
def any_child(request: pytest.FixtureRequest, database: Database) -> Child:
    """The forked child, as installed and under coverage."""
    name = "launchers" if request.param == "launcher" else "measured_launchers"
    return Child(request.getfixturevalue(name), database)
