"""Waits before a server's schema is changed: for another such change, and for locked tables.

A statement that waits for a table makes all checks wait behind it. So it waits for one second only,
lets them pass, and is run again. What is run again has changed nothing (PostgreSQL), or resumes
(MySQL: ``migration_ops``).

The lock is PostgreSQL's advisory lock of the transaction, or GET_LOCK of MySQL's dialect, which
ends with the connection. The nodes of a Galera cluster do not know each other's locks: there, the
operations may run twice, and the node that is first changes the row of ``alembic_version``; the
other one runs again.

Diagnostics: ``LockTimeout`` if the wait took too long.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from greycheck.store.admin.engine import LOCK_TIMEOUT
from greycheck.store.schema.tables import alembic_version, metadata

Tell = Callable[[str], None]
T = TypeVar("T")

# How long to wait for another upgrade, which may have many rows to change, in seconds.
UPGRADE_TIMEOUT = 600.0

# How long to let checks pass between two attempts to lock a table, in seconds.
PAUSE = 1.0

# The first statements of an attempt. They set how long a statement waits for a table: 1000 ms, 1 s.
PREPARE = {
    "postgresql": ("SET LOCAL lock_timeout = 1000", "SET LOCAL statement_timeout = 0"),
    "mysql": ("SET SESSION lock_wait_timeout = 1",),
}

# "grey" in ASCII, and a number of greycheck's own: PostgreSQL's advisory locks are numbers, per
# database.
NUMBERS = {"one": 0x67726579, "two": 1}
TAKE = {
    "postgresql": "SELECT pg_try_advisory_xact_lock(:one, :two)",
    "mysql": "SELECT GET_LOCK(LEFT(CONCAT('greycheck.', DATABASE()), 64), 0)",
}
# client_port is -1 for a socket, and NULL if this user may not see it.
HOST = "CASE a.client_port WHEN -1 THEN 'localhost' ELSE host(a.client_addr) END"
HOLDER = {
    "postgresql": f"SELECT {HOST} FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE"
    " l.locktype = 'advisory' AND l.granted"
    " AND l.classid = :one AND l.objid = :two AND a.datname = current_database()",
    "mysql": "SELECT host FROM information_schema.processlist"
    " WHERE id = IS_USED_LOCK(LEFT(CONCAT('greycheck.', DATABASE()), 64))",
}
TABLE_HOLDER = (
    f"SELECT {HOST}, c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN"
    " pg_stat_activity a USING (pid)"
    " WHERE l.granted AND l.pid <> pg_backend_pid() AND a.datname = current_database() AND"
    " c.relname = ANY(:tables)"
    " ORDER BY a.xact_start LIMIT 1"
)

# Errors of servers if a table is locked; and if another node has made the same change, or dropped a
# column.
HELD: set[object] = {1205, "55P03", "40P01"}
CONFLICTS: set[object] = {1213, 1020, 1062, 1684, 1072}
LOST_RACE = "Online migration expected to match one row"


class LockTimeout(Exception):
    """The wait took too long. The message says for what, and what to do."""


class _Blocked(Exception):
    """WHO holds a lock, ADVICE on what to do about it, and how long to wait for it, in seconds."""

    def __init__(self, who: str, advice: str, timeout: float) -> None:
        super().__init__(who)
        self.advice = advice
        self.timeout = timeout


def run_under_lock(connection: Connection, change: Callable[[], T], tell: Tell) -> T:
    """Runs CHANGE in a transaction and under the lock, and returns its result.

    TELL is called with what this waits for, once for each text. Raises LockTimeout.
    """
    reported: set[str] = set()
    since: dict[float, float] = {}
    while True:
        try:
            return _attempt(connection, change)
        except _Blocked as blocked:
            who = blocked
        waited = monotonic() - since.setdefault(who.timeout, monotonic())
        if waited > who.timeout:
            raise LockTimeout(f"{who}, and did for {waited:.0f}s: {who.advice}")
        if str(who) not in reported:
            reported.add(str(who))
            tell(f"waiting: {who}")
        sleep(PAUSE)


def _attempt(connection: Connection, change: Callable[[], T]) -> T:
    dialect = connection.dialect.name
    try:
        with connection.begin():
            for statement in PREPARE[dialect]:
                connection.exec_driver_sql(statement)
            if not _take(connection):
                who = f"another greycheck db upgrade runs from {_holder(connection)}"
                raise _Blocked(who, "see whether it goes on, and run this again", UPGRADE_TIMEOUT)
            return change()
    except (DBAPIError, CommandError) as error:
        code = code_of(error)
        if code in HELD:
            raise _Blocked(
                _table_holder(connection), "end it, and run this again", LOCK_TIMEOUT
            ) from None
        if dialect == "mysql" and (code in CONFLICTS or LOST_RACE in str(error)):
            raise _Blocked(
                "another node's greycheck db upgrade changes the same",
                "run this again",
                LOCK_TIMEOUT,
            ) from None
        raise


def _take(connection: Connection) -> bool:
    """Takes the lock.

    True if it is taken, or if there is no such lock: some clusters refuse GET_LOCK.
    """
    dialect = connection.dialect.name
    try:
        return connection.execute(text(TAKE[dialect]), _numbers(dialect)).scalar() not in (0, False)
    except DBAPIError:
        if dialect != "mysql" or connection.invalidated:
            raise
        return True


def _holder(connection: Connection) -> str:
    dialect = connection.dialect.name
    return _host(connection.execute(text(HOLDER[dialect]), _numbers(dialect)).scalar())


def _numbers(dialect: str) -> dict[str, int]:
    return NUMBERS if dialect == "postgresql" else {}


def _table_holder(connection: Connection) -> str:
    """Returns in words who has locked one of greycheck's tables, as far as this user may see it."""
    if connection.dialect.name == "postgresql":
        tables = [*metadata.tables, alembic_version.name]
        with connection.begin():
            row = connection.execute(text(TABLE_HOLDER), {"tables": tables}).one_or_none()
        if row:
            return f"a transaction from {_host(row[0])} holds the table {row[1]}"
    return (
        "somebody's transaction holds a table (SHOW PROCESSLIST, or pg_stat_activity, tells whose)"
    )


def _host(said: str | None) -> str:
    """Returns the host of a connection as servers write it.

    MySQL's dialect adds a port, which is cut off.
    """
    return said.partition(":")[0] if said and said.count(":") == 1 else said or "another host"


def code_of(error: Exception) -> object:
    """Returns the error number of MySQL's dialect, or PostgreSQL's SQLSTATE.

    Returns None if there is neither.
    """
    orig = getattr(error, "orig", None)
    state = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    return state or next(iter(getattr(orig, "args", ())), None)
