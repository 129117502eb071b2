"""How a change of a server database's schema waits: for another one like it, and for a table that somebody's transaction holds.

A statement that waits for a table makes all checks wait behind it, so it waits for a second only, lets them pass, and tries again. What
is tried again has changed nothing (PostgreSQL), or goes on where it was (MySQL: ``steps``).

The lock is PostgreSQL's advisory lock for the transaction, or GET_LOCK of MySQL's dialect, which a lost connection gives back. A node of
Galera knows of no other node's: there the steps themselves bear being taken twice, and the row of ``alembic_version`` is changed by
whoever is quicker; the other one looks again.

Diagnostics: ``Waited`` where somebody was waited for in vain.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from greycheck.store.engine import PATIENCE
from greycheck.store.tables import alembic_version, metadata

Tell = Callable[[str], None]
T = TypeVar("T")

# How long to wait for another upgrade, which may have many rows to go through, in seconds.
UPGRADE_PATIENCE = 600.0

# How long checks have between two attempts to get hold of a table, in seconds.
PAUSE = 1.0

# What an attempt begins with. In seconds and milliseconds: how long a statement waits for a table.
PREPARE = {
    "postgresql": ("SET LOCAL lock_timeout = 1000", "SET LOCAL statement_timeout = 0"),
    "mysql": ("SET SESSION lock_wait_timeout = 1",),
}

# "grey" in ASCII, and a number of our own: PostgreSQL's advisory locks are numbers, of one database.
NUMBERS = {"one": 0x67726579, "two": 1}
TAKE = {
    "postgresql": "SELECT pg_try_advisory_xact_lock(:one, :two)",
    "mysql": "SELECT GET_LOCK(LEFT(CONCAT('greycheck.', DATABASE()), 64), 0)",
}
# client_port is -1 on a socket, and NULL where this user may not see it.
HOST = "CASE a.client_port WHEN -1 THEN 'localhost' ELSE host(a.client_addr) END"
HOLDER = {
    "postgresql": f"SELECT {HOST} FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
    " AND l.classid = :one AND l.objid = :two AND a.datname = current_database()",
    "mysql": "SELECT host FROM information_schema.processlist"
    " WHERE id = IS_USED_LOCK(LEFT(CONCAT('greycheck.', DATABASE()), 64))",
}
TABLE_HOLDER = (
    f"SELECT {HOST}, c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a USING (pid)"
    " WHERE l.granted AND l.pid <> pg_backend_pid() AND a.datname = current_database() AND c.relname = ANY(:tables)"
    " ORDER BY a.xact_start LIMIT 1"
)

# What servers say where somebody else holds a table, or has made the same change on another node, or taken away its column since.
HELD: set[object] = {1205, "55P03", "40P01"}
CONFLICTS: set[object] = {1213, 1020, 1062, 1684, 1072}
LOST_RACE = "Online migration expected to match one row"


class Waited(Exception):
    """Somebody was waited for in vain; the message says for whom, and what to do."""


class _InTheWay(Exception):
    """WHO is in the way, what to do about it if he stays there, and for how long to wait, in seconds."""

    def __init__(self, who: str, advice: str, patience: float) -> None:
        super().__init__(who)
        self.advice = advice
        self.patience = patience


def patiently(connection: Connection, change: Callable[[], T], tell: Tell) -> T:
    """What CHANGE returns, done in a transaction and under the lock; TELL is told whom this waits for, once each.

    Raises Waited.
    """
    told: set[str] = set()
    since: dict[float, float] = {}
    while True:
        try:
            return _attempt(connection, change)
        except _InTheWay as found:
            who = found
        waited = monotonic() - since.setdefault(who.patience, monotonic())
        if waited > who.patience:
            raise Waited(f"{who}, and did for {waited:.0f}s: {who.advice}")
        if str(who) not in told:
            told.add(str(who))
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
                raise _InTheWay(who, "see whether it goes on, and run this again", UPGRADE_PATIENCE)
            return change()
    except (DBAPIError, CommandError) as error:
        code = code_of(error)
        if code in HELD:
            raise _InTheWay(_table_holder(connection), "end it, and run this again", PATIENCE) from None
        if dialect == "mysql" and (code in CONFLICTS or LOST_RACE in str(error)):
            raise _InTheWay(
                "another node's greycheck db upgrade changes the same", "run this again", PATIENCE
            ) from None
        raise


def _take(connection: Connection) -> bool:
    """Whether this transaction or connection has the lock now, or there is no such lock: some clusters refuse GET_LOCK."""
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
    """Who has a table of ours, as far as this user may know."""
    if connection.dialect.name == "postgresql":
        tables = [*metadata.tables, alembic_version.name]
        with connection.begin():
            found = connection.execute(text(TABLE_HOLDER), {"tables": tables}).one_or_none()
        if found:
            return f"a transaction from {_host(found[0])} holds the table {found[1]}"
    return "somebody's transaction holds a table (SHOW PROCESSLIST, or pg_stat_activity, tells whose)"


def _host(said: str | None) -> str:
    """The host of a connection as servers write it: MySQL's dialect with the port."""
    return said.partition(":")[0] if said and said.count(":") == 1 else said or "another host"


def code_of(error: Exception) -> object:
    """The error number of MySQL's dialect, or PostgreSQL's SQLSTATE; None where there is neither."""
    orig = getattr(error, "orig", None)
    state = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    return state or next(iter(getattr(orig, "args", ())), None)
