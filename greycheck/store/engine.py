"""The store for everybody but the forked child: an SQLAlchemy engine.

SQLite gets what the child's connection gets: journal mode WAL is in the file; a transaction begins by taking the write lock, so that
none fails half-way because another wrote in between; ``synchronous=NORMAL``. Whoever only reads says so (``reading``) and takes none.
"""

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

# How long an operator's command waits for another writer, in seconds.
PATIENCE = 30.0


def open_engine(url: str) -> Engine:
    """An engine for URL. An SQLite file that is not there is not made: ``schema.upgrade`` does that."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)
    engine = autocommitting_engine(url)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def autocommitting_engine(url: str) -> Engine:
    """An engine for an SQLite URL whose driver begins no transaction by itself."""
    return create_engine(url, connect_args={"timeout": PATIENCE, "isolation_level": None})


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
