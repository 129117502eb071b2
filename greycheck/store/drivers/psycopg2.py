"""psycopg2: its C module alone, ``psycopg2._psycopg``.

libpq has no limit that holds against a server that is stopped, so waiting is done here: psycopg2
calls back wherever it would wait, one function for all connections of all threads.
"""

import _datetime
import _thread
import select
import sys
from time import monotonic

from greycheck.store.base import imported_from, with_stand_ins
from greycheck.store.drivers import arguments, faults
from greycheck.store.url import Host, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sqlalchemy.engine.interfaces import DBAPIConnection

# ``ssl`` is imported only for its side effect on an OpenSSL older than 1.1, ``datetime`` for the
# part of it that is written in C.
_psycopg = imported_from("psycopg2", "_psycopg", ssl=type(sys)("ssl"), datetime=_datetime)
Error = _psycopg.Error

# Where there is a password, it would import the whole package as it connects, and re, json and
# decimal with it, only to write down how it connected, the password left out. A cursor wants no
# more of ``datetime`` than that module.
_EXTENSIONS = type(sys)("psycopg2.extensions")
_EXTENSIONS.make_dsn = lambda *_given, **_options: ""  # type: ignore[attr-defined]
STAND_INS = {
    "psycopg2": type(sys)("psycopg2"),
    "psycopg2.extensions": _EXTENSIONS,
    "datetime": _datetime,
}

# What ``poll`` of a connection returns.
READY, READ = 0, 1

# Until when each thread's call may last (``monotonic``), and how long it was given, in seconds; and
# the lock of whoever changes that.
_limits: "dict[int, tuple[float, float]]" = {}
_changing = _thread.allocate_lock()


def _wait(connection: "Any") -> None:
    """Waits until CONNECTION, which may be SQLAlchemy's, is ready.

    Raises Fault where it is not in time.
    """
    until, seconds = _limits.get(_thread.get_ident()) or (
        monotonic() + arguments.READING,
        arguments.READING,
    )
    while (state := connection.poll()) != READY:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN if state == READ else select.POLLOUT)
        left = until - monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise faults.silent(seconds)


def _guarded(seconds: float, call: "Callable[..., Any]", *arguments: object) -> "Any":
    """What CALL returns, if it does within SECONDS."""
    thread = _thread.get_ident()
    with _changing:
        _limits[thread] = monotonic() + seconds, seconds
        _psycopg.set_wait_callback(_wait)
    try:
        return call(*arguments)
    except _psycopg.Error as error:
        raise faults.postgresql_fault(error.pgcode, str(error)) from None
    finally:
        with _changing:
            del _limits[thread]
            if not _limits:
                _psycopg.set_wait_callback(None)


class Connection:
    """A connection of the child."""

    def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
        dsn = arguments.libpq_dsn(server, host, seconds, patience)
        self._connection, self._cursor = with_stand_ins(STAND_INS, self._connected, seconds, dsn)
        self._connection.autocommit = True

    @staticmethod
    def _connected(seconds: float, dsn: str) -> "tuple[Any, Any]":
        connection = _guarded(seconds, _psycopg._connect, dsn, None, 0)
        return connection, connection.cursor()

    def run(
        self, sql: str, values: "Sequence[object]", seconds: float
    ) -> "tuple[Sequence[Sequence[object]], int]":
        """The rows, or how many rows were changed."""
        _guarded(seconds, self._cursor.execute, sql, values or None)
        rows = self._cursor.fetchall() if self._cursor.description else ()
        return rows, self._cursor.rowcount

    def close(self) -> None:
        """Leaves the server."""
        self._connection.close()


def connect(server: Server, host: Host, seconds: float) -> "DBAPIConnection":
    """A connection for SQLAlchemy."""
    import psycopg2

    found: DBAPIConnection = psycopg2.connect(arguments.libpq_dsn(server, host, seconds))  # type: ignore[assignment]
    return found
