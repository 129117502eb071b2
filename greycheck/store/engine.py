"""The store for everybody but the forked child: an SQLAlchemy engine.

SQLite gets what the child's connection gets: journal mode WAL is in the file; a transaction begins by taking the write lock, so that
none fails half-way because another wrote in between; ``synchronous=NORMAL``. Whoever only reads says so (``reading``) and takes none.

A server database is asked through the same drivers, told the same, on the first of its hosts that can be used: one that answers, has
a quorum and takes writes. Its transactions are READ COMMITTED, where rows that are not wanted are not locked.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from greycheck.store import compiled_mysql, drivers, faults, rights, server
from greycheck.store.lean import StoreError
from greycheck.store.server import Fault, Host, Server

if TYPE_CHECKING:
    from greycheck.store.drivers import Driver

# How long an operator's command waits for another writer, in seconds.
PATIENCE = 30.0

# How long it waits for one host of a server database to take its connection, in seconds.
CONNECTING = 5.0


def open_engine(url: str) -> Engine:
    """An engine for URL. An SQLite file that is not there is not made: ``schema.upgrade`` does that.

    Raises StoreError where no driver is installed, and when it connects, where no host can be used.
    """
    if make_url(url).get_backend_name() != "sqlite":
        return _server_engine(url)
    engine = autocommitting_engine(url)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _server_engine(url: str) -> Engine:
    asked = server.parse(url)
    name, driver = drivers.load(asked)
    engine = create_engine(
        f"{asked.dialect}+{name}://", creator=lambda: _first_usable(asked, driver), isolation_level="READ COMMITTED"
    )
    event.listen(engine, "handle_error", _lost)
    return engine


def _first_usable(asked: Server, driver: "Driver") -> DBAPIConnection:
    """A connection to the first host that can be used; to one that takes no writes only where no other can."""
    reasons = []
    readers: list[Host] = []
    for host in asked.hosts:
        try:
            connection = driver.connect(asked, host, CONNECTING)
        except (driver.Error, Fault) as error:
            reasons.append(_why(host, error))
            continue
        try:
            if asked.dialect != "mysql" or _takes_writes(connection, driver):
                return connection
            readers.append(host)
        except driver.Error as error:
            reasons.append(_why(host, error))
        connection.close()
    if not readers:
        raise StoreError("; ".join(reasons))
    return driver.connect(asked, readers[0], CONNECTING)


def _why(host: Host, error: Exception) -> str:
    return f"{host}: {server.one_line(faults.cause(str(error.args[-1] if error.args else error)))}"


def _takes_writes(connection: DBAPIConnection, driver: "Driver") -> bool:
    """Whether the host of CONNECTION does. Raises the driver's error where it has no quorum, which only a table's own words tell."""
    cursor = connection.cursor()
    try:
        cursor.execute(compiled_mysql.SCHEMA[0])
        cursor.fetchall()
    except driver.Error as error:
        if error.args[0] != NO_SUCH_TABLE:
            raise
    cursor.execute("SELECT @@global.read_only")
    found = cursor.fetchone()
    cursor.close()
    connection.rollback()
    return not (found and found[0])


# Error numbers of MySQL's dialect.
NO_SUCH_TABLE, NO_QUORUM = 1146, 1047


def _lost(context: ExceptionContext) -> None:
    """A node without a quorum is one that is not there: its connection is thrown away, and not cleaned up in vain."""
    arguments = getattr(context.original_exception, "args", ())
    if arguments and arguments[0] == NO_QUORUM:
        context.is_disconnect = True


def autocommitting_engine(url: str) -> Engine:
    """An engine for an SQLite URL whose driver begins no transaction by itself.

    When it connects, StoreError keeps root out of what another user may write.
    """
    engine = create_engine(url, connect_args={"timeout": PATIENCE, "isolation_level": None})
    event.listen(engine, "do_connect", _refuse_root)
    return engine


def _refuse_root(_dialect: Dialect, _entry: object, arguments: tuple[object, ...], _options: object) -> None:
    database = str(arguments[0]) if arguments else ""
    if database and database != ":memory:":
        rights.refuse_root(str(Path(database).absolute()))


def _set_up(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("greycheck_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def reading(engine: Engine) -> Engine:
    """ENGINE for transactions that only read, and keep nobody waiting."""
    return engine.execution_options(greycheck_reads=True)


def empty_log(engine: Engine) -> None:
    """Writes SQLite's write-ahead log back and empties it, if nobody is using it just now."""
    if engine.dialect.name != "sqlite":
        return
    connection = autocommitting_engine(engine.url.render_as_string(hide_password=False)).connect()
    with connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 100")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.engine.dispose()
