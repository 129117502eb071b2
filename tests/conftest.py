"""What all tests share: a place that any user can reach, and launchers installed as an operator
installs them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from greycheck.launchers.python import PROGRAMS
from greycheck.store.schema import migrate
from tests.resident.resident import Resident
from tests.servers import MariaDB, Postgres, galera, mariadb, postgres, standby, templates  # noqa: F401
from tests.support import MEASURED, NOWHERE, Child, Database, ServerDatabase, SQLiteFile

# A machine that has much else to do fails no test for that.
hypothesis.settings.register_profile("greycheck", deadline=None)
hypothesis.settings.load_profile("greycheck")


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory below directories that any user may pass; pytest's own are closed to
    others.
    """
    directory = Path(tempfile.mkdtemp(prefix="greycheck-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores SIGINT, and so would the programs that tests end by it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "both_ways: also with programs in C, which ask a resident")
    config.addinivalue_line("markers", "one_way: not so, where all others of the file are")
    config.addinivalue_line(
        "markers",
        "root: skipped for others than root, by its reason: dev/test runs it through sudo",
    )
    config.addinivalue_line(
        "markers",
        "system: needs more than Python, by its fixtures or their parameters: not in dev/test"
        " --quick",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    definition = metafunc.definition
    if "way" in metafunc.fixturenames and definition.get_closest_marker("both_ways"):
        ways = ["forked"] if definition.get_closest_marker("one_way") else ["forked", "resident"]
        metafunc.parametrize("way", ways, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each hook is tried with a file, and each server with one hook, or two where children fork."""
    spared = [
        item for item in items if hasattr(item, "callspec") and is_spared(item.callspec.params)
    ]
    config.hook.pytest_deselected(items=spared)
    left_out = set(spared)
    items[:] = [item for item in items if item not in left_out]
    # A file is one worker's: whoever begins one of these last would be waited for by all others.
    items.sort(key=lambda item: item.path.name not in LONG)
    for item in items:
        if needs_more_than_python(item):
            item.add_marker("system")
        if needs_root(item):
            item.add_marker("root")


# Files that take minutes.
LONG = ("test_migrate_servers.py", "test_faults.py", "test_faults_of_servers.py", "test_model.py")

# Fixtures that run a server or a compiler, and how a parameter begins that asks for one.
SYSTEM = frozenset(
    (
        "postgres",
        "standby",
        "mariadb",
        "galera",
        "on_postgresql",
        "on_mariadb",
        "natives",
        "bare_mx",
    )
)
SERVERS = ("postgres", "mariadb", "mysql", "galera")


def needs_more_than_python(item: pytest.Item) -> bool:
    given = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    on_server = any(isinstance(value, str) and value.startswith(SERVERS) for value in given)
    return (
        on_server or "resident" in given or not SYSTEM.isdisjoint(getattr(item, "fixturenames", ()))
    )


def needs_root(item: pytest.Item) -> bool:
    """Whether ITEM is skipped for others than root."""
    reasons = [str(mark.kwargs.get("reason", "")) for mark in item.iter_markers("skipif")]
    return any("root" in reason.split() for reason in reasons)


def is_spared(given: dict[str, object]) -> bool:
    on_server = given.get("database", "sqlite") != "sqlite" or "pair" in given
    hooks = ["SMTPEXTFORK"] if given.get("way") == "resident" else ["SMTPEXTFORK", "CHECKENV"]
    return on_server and given.get("hook", "SMTPEXTFORK") not in hooks


@pytest.fixture
def berlin() -> Iterator[None]:
    """A host whose time is not UTC: one hour ahead of it in winter."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """How programs come to their verdict: ``forked``, as a Python child, or by asking a
    ``resident`` that serves the test's store.
    """
    return str(getattr(request, "param", "forked"))


@pytest.fixture(scope="session")
def launchers() -> Iterator[Path]:
    """The directory of the programs, written by ``greycheck install``."""
    with tempfile.TemporaryDirectory(prefix="greycheck-bin-") as name:
        yield installed(Path(name))


@pytest.fixture(scope="session")
def natives() -> Iterator[Path]:
    """The directory of the programs in C, written by ``greycheck install --native``."""
    with tempfile.TemporaryDirectory(prefix="greycheck-native-") as name:
        yield installed(Path(name), "--native")


def installed(directory: Path, *options: str) -> Path:
    """DIRECTORY, with the programs that ``greycheck install`` puts there."""
    directory.chmod(0o755)
    user = "root" if os.geteuid() == 0 else str_user()
    subprocess.run(
        [sys.executable, "-m", "greycheck", "install", directory, "--user", user, *options],
        env={
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DATABASE": f"{directory}/unused.db",
            "GREYCHECK_SOCKET": str(NOWHERE),
        },
        check=True,
        capture_output=True,
    )
    return directory


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
    migrate.upgrade(f"sqlite:///{path}")
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


# For a process that coverage is not to measure. Residents are measured in tests/resident; there
# they may take three times as long.
UNMEASURED: dict[str, str | None] = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}

Serving = Callable[[ServerDatabase | None], Resident]


@pytest.fixture(scope="module")
def serving(empty_store: Path) -> Iterator[Serving]:
    """The resident of a server database, or with an SQLite file: one of each for a file of tests,
    and no row in its store.
    """
    started: dict[str, Resident] = {}
    with ExitStack() as running:

        def start(server_database: ServerDatabase | None) -> Resident:
            directory = Path(
                running.enter_context(tempfile.TemporaryDirectory(prefix="greycheck-test-"))
            )
            directory.chmod(0o755)
            store: Database = SQLiteFile(directory / "greycheck.db", empty_store)
            if server_database is not None:
                store = server_database.seen_from(directory)
            store.make()
            # Sessions may be another user's, and a busy machine may take its time.
            settings = {"socket_mode": "0666", "deadline": "60s"}
            return running.enter_context(
                Resident(directory, settings, store, environ=UNMEASURED)
            ).wait()

        def serve(server_database: ServerDatabase | None) -> Resident:
            name = server_database.url if server_database else ""
            if name not in started:
                started[name] = start(server_database)
            started[name].forget()
            return started[name]

        yield serve


@pytest.fixture
def database(
    request: pytest.FixtureRequest, place: Path, empty_store: Path, way: str
) -> Iterator[Database]:
    """An SQLite file that is yet to be made; where ``support.on_every_database`` asks for it, any
    store, with tables but no row.

    A resident's store has its tables.
    """
    dialect, _, driver = getattr(request, "param", "").partition("+")
    server_database: ServerDatabase | None = None
    if dialect not in ("", "sqlite"):
        server_database = request.getfixturevalue(f"on_{dialect}")
    if way == "resident":
        serving: Serving = request.getfixturevalue("serving")
        served = serving(server_database).store
        yield served
        served.leave()
        return
    found: Database = SQLiteFile(place / "greycheck.db", empty_store, driver == "resident")
    if server_database is not None:
        found = server_database.seen_from(place, driver)
    if dialect:
        found.make()
    yield found
    found.leave()


@pytest.fixture
def programs(request: pytest.FixtureRequest, way: str) -> Path:
    """The directory of the programs that a mail server runs."""
    found: Path = request.getfixturevalue("natives" if way == "resident" else "launchers")
    return found


@pytest.fixture
def child(programs: Path, database: Database, way: str) -> Child:
    """What a mail server runs, with a store of its own."""
    return Child(
        programs, database, database.directory / "socket" if way == "resident" else NOWHERE
    )


@pytest.fixture(params=["launcher", "measured"])
def any_child(request: pytest.FixtureRequest, database: Database) -> Child:
    """The forked child, as installed and under coverage."""
    name = "launchers" if request.param == "launcher" else "measured_launchers"
    return Child(request.getfixturevalue(name), database)
