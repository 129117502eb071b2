"""The store for all but the forked child: an SQLAlchemy engine.

For SQLite it sets what the child's connection has: ``synchronous=NORMAL`` (journal mode WAL is kept
in the file). A transaction begins with the write lock, so that none fails half-way because another
one wrote. A transaction that only reads says so (``reading``) and takes no lock.

A server database is used through the same drivers with the same arguments, on the first of its
hosts that can be used: one that answers, has a quorum and takes writes. Its transactions are READ
COMMITTED, so that rows that do not match are not locked.
"""

import re
import sys
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from greycheck.settings import Database, database_at
from greycheck.store import compiled_mysql, drivers, rights
from greycheck.store.admin import errors
from greycheck.store.base import StoreError
from greycheck.store.drivers import faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.url import Host, Server

if TYPE_CHECKING:
    from greycheck.store.drivers import Driver

# How long an operator's command waits for another writer, in seconds.
LOCK_TIMEOUT = 30.0

# How long it waits for a connection to one host of a server database, in seconds.
CONNECT_TIMEOUT = 5.0


def open_engine(place: Database | str) -> Engine:
    """Returns an engine for the database at PLACE, or at a URL.

    It does not make an SQLite file: ``migrate.upgrade`` does. Raises StoreError if no driver is
    installed, and, when it connects, if no host can be used; ValueError for a wrong URL.
    """
    database = database_at(place)
    if database.server is not None:
        return _server_engine(database.server)
    engine = autocommitting_engine(database.url)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _server_engine(server: Server) -> Engine:
    name, driver = load_driver(server)
    engine = create_engine(
        f"{server.dialect}+{name}://",
        creator=lambda: _first_usable(server, driver),
        isolation_level="READ COMMITTED",
    )
    event.listen(engine, "handle_error", _lost)
    return engine


def load_driver(server: Server) -> "tuple[str, Driver]":
    """Returns the driver for SERVER, as ``drivers.load`` does.

    Raises StoreError, which names the command that installs the driver here.
    """
    try:
        return drivers.load(server)
    except faults.NoDriver as error:
        raise StoreError(error.cause, installing(error.wanted)) from None


def installing(driver: str) -> str:
    """Returns the command that installs DRIVER next to this program, in a version that fits."""
    return installing_library(drivers.RECORDS[driver].distribution)


def installing_library(name: str) -> str:
    """Returns the command that installs the distribution NAME, as ``installing`` does."""
    wanted = []
    with suppress(metadata.PackageNotFoundError):
        for each in metadata.requires("greycheck") or []:
            bounded, _, marker = each.partition(";")
            if _is_for_this_python(marker):
                wanted.append(bounded.strip())
    bound = next(
        (each for each in wanted if re.match(rf"{name}\b(?!-)", each, re.IGNORECASE)), name
    )
    python = quote(sys.executable)
    # uv makes environments without pip.
    pip = (
        f"{python} -m pip install" if util.find_spec("pip") else f"uv pip install --python {python}"
    )
    return f"{pip} {quote(bound)}"


def _is_for_this_python(marker: str) -> bool:
    """Whether MARKER of a requirement, whatever else it says, leaves this version of Python."""
    found = re.search(r"""python_version (<|>=) ["']3\.(\d+)""", marker)
    return not found or (sys.version_info.minor < int(found[2])) == (found[1] == "<")


def _first_usable(server: Server, driver: "Driver") -> DBAPIConnection:
    """Returns a connection to the first host that can be used.

    A host that takes no writes is used only if no other can be.
    """
    reasons = []
    readers: list[Host] = []
    for host in server.hosts:
        try:
            connection = driver.connect(server, host, CONNECT_TIMEOUT)
        except (driver.Error, Fault) as error:
            reasons.append(_why(host, error))
            continue
        try:
            if server.dialect != "mysql" or _takes_writes(connection, driver):
                return connection
            readers.append(host)
        except driver.Error as error:
            reasons.append(_why(host, error))
        connection.close()
    if not readers:
        raise StoreError("; ".join(reasons))
    return driver.connect(server, readers[0], CONNECT_TIMEOUT)


def _why(host: Host, error: Exception) -> str:
    return f"{host}: {faults.one_line(errors.cause(str(error.args[-1] if error.args else error)))}"


def _takes_writes(connection: DBAPIConnection, driver: "Driver") -> bool:
    """True if the host of CONNECTION takes writes.

    Raises the driver's error if the host has no quorum, which only a query of a table tells.
    """
    cursor = connection.cursor()
    try:
        cursor.execute(compiled_mysql.SCHEMA[0])
        cursor.fetchall()
    except driver.Error as error:
        if error.args[0] != NO_SUCH_TABLE:
            raise
    cursor.execute("SELECT @@global.read_only")
    row = cursor.fetchone()
    cursor.close()
    connection.rollback()
    return not (row and row[0])


# Error numbers of MySQL's dialect.
NO_SUCH_TABLE, NO_QUORUM = 1146, 1047


def _lost(context: ExceptionContext) -> None:
    """Treats a node without a quorum as lost: its connection is closed without a rollback."""
    arguments = getattr(context.original_exception, "args", ())
    if arguments and arguments[0] == NO_QUORUM:
        context.is_disconnect = True


def autocommitting_engine(url: str) -> Engine:
    """Returns an engine for an SQLite URL whose driver begins no transaction by itself.

    When it connects, it raises StoreError if root would use a file that another user may write.
    """
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None})
    event.listen(engine, "do_connect", _refuse_root)
    return engine


def _refuse_root(
    _dialect: Dialect, _entry: object, arguments: tuple[object, ...], _options: object
) -> None:
    database = str(arguments[0]) if arguments else ""
    if database and database != ":memory:":
        rights.refuse_root(str(Path(database).absolute()))


# How many steps of SQLite's machine go by between two looks for a signal: some milliseconds.
STEPS = 200_000


def _set_up(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
    # A signal is obeyed within a statement too, however long a hostile file makes it.
    connection.set_progress_handler(lambda: None, STEPS)


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("greycheck_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def reading(engine: Engine) -> Engine:
    """Returns ENGINE for transactions that only read, and block no writer."""
    return engine.execution_options(greycheck_reads=True)


def empty_log(engine: Engine) -> None:
    """Writes SQLite's write-ahead log back and empties it, if no other process uses it just now."""
    if engine.dialect.name != "sqlite":
        return
    connection = autocommitting_engine(engine.url.render_as_string(hide_password=False)).connect()
    with connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 100")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.engine.dispose()
