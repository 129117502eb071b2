"""psycopg2: its C module alone, ``psycopg2._psycopg``.

libpq has no limit that holds against a server that is stopped, so waiting is done here: psycopg2
calls back wherever it would wait, one function for all connections of all threads.
"""

import _blake2
import _datetime
import _thread
import select
import sys
from time import monotonic

from greycheck.store.base import imported_from, with_stand_ins
from greycheck.store.drivers import Often, arguments, faults
from greycheck.store.drivers.faults import Fault
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

# What a session sets before it prepares a statement, so that its plan is made once, and is one that
# finds rows by indexes whatever is in the tables then. A server that has no such setting keeps
# planning.
PLANS = (
    "SELECT set_config(name, CASE name WHEN 'plan_cache_mode' THEN 'force_generic_plan' ELSE 'off'"
    " END, false) FROM pg_settings WHERE name IN ('plan_cache_mode', 'enable_seqscan',"
    " 'enable_hashjoin', 'enable_mergejoin', 'enable_material', 'jit')"
)

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
        # Whether statements that are run often are prepared, and what runs each of those that are.
        self._prepares = True
        self._prepared: dict[str, str] = {}

    @staticmethod
    def _connected(seconds: float, dsn: str) -> "tuple[Any, Any]":
        connection = _guarded(seconds, _psycopg._connect, dsn, None, 0)
        return connection, connection.cursor()

    def run(
        self, sql: str, values: "Sequence[object]", seconds: float
    ) -> "tuple[Sequence[Sequence[object]], int]":
        """The rows, or how many rows were changed."""
        if type(sql) is Often and self._prepares:
            self._run_prepared(sql, values, seconds)
        else:
            _guarded(seconds, self._cursor.execute, sql, values or None)
        rows = self._cursor.fetchall() if self._cursor.description else ()
        return rows, self._cursor.rowcount

    def _run_prepared(self, sql: str, values: "Sequence[object]", seconds: float) -> None:
        """Runs SQL prepared.

        Where that fails, nothing is prepared on this connection any more: a pooler may have given
        it to a server that knows nothing of it, or a table is no longer what it was.
        """
        try:
            _guarded(seconds, self._cursor.execute, self._as_prepared(sql, seconds), values)
        except Fault as fault:
            self._prepares = fault.kind != faults.OTHER
            raise

    def _as_prepared(self, sql: str, seconds: float) -> str:
        """What runs SQL, which is prepared with its first run.

        A name is of its SQL alone: where a pooler has several clients share a connection to the
        server, what another has prepared by it is the same.
        """
        if not self._prepared:
            _guarded(seconds, self._cursor.execute, PLANS)
        found = self._prepared.get(sql)
        if found is None:
            name = "greycheck_" + _blake2.blake2b(sql.encode(), digest_size=8).hexdigest()
            head, *parts = sql.split("%s")
            numbered = head + "".join(f"${place}{part}" for place, part in enumerate(parts, 1))
            _guarded(seconds, self._cursor.execute, f"PREPARE {name} AS {numbered}")
            found = self._prepared[sql] = f"EXECUTE {name} ({', '.join(['%s'] * len(parts))})"
        return found

    def close(self) -> None:
        """Leaves the server."""
        self._connection.close()


def connect(server: Server, host: Host, seconds: float) -> "DBAPIConnection":
    """A connection for SQLAlchemy."""
    import psycopg2

    found: DBAPIConnection = psycopg2.connect(arguments.libpq_dsn(server, host, seconds))  # type: ignore[assignment]
    return found
