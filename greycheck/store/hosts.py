"""The hosts of a server database, looked at one by one as a check would ask them: the same driver, the same limits.

Interface: ``look`` says what one host is and does. It never raises for what is wrong with a host.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, time
from typing import TYPE_CHECKING

from greycheck.store import compiled_postgresql
from greycheck.store.server import Fault, Host, Server

if TYPE_CHECKING:
    from greycheck.store.drivers import Connection, Driver

# How long one host is waited for, in seconds: each statement, and connecting.
PATIENCE = 3.0

# The oldest versions that this program is for.
OLDEST = {"PostgreSQL": (13, 0), "MariaDB": (10, 6), "MySQL": (8, 0)}

PRIMARY = "Primary"
SYNCED = "Synced"


@dataclass(frozen=True)
class Cluster:
    """How a node of Galera sees its cluster: whether it is PRIMARY, its own state (SYNCED), and how many nodes there are."""

    status: str
    state: str
    size: int


@dataclass(frozen=True)
class Seen:
    """What a host is. With a ``fault`` nothing else may be known.

    ``connecting`` is how long it took, in seconds; ``ahead`` how far its clock is ahead of this host's, in seconds; ``revision`` that of
    the schema, None where there is none.
    """

    host: Host
    fault: Fault | None = None
    product: str = ""
    version: str = ""
    is_read_only: bool = False
    is_encrypted: bool = False
    connecting: float = 0.0
    ahead: float = 0.0
    cluster: Cluster | None = None
    revision: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether a check can read there and write."""
        return self.fault is None and not self.is_read_only

    @property
    def is_too_old(self) -> bool:
        """Whether its version is older than what this program is for."""
        found = re.match(r"(\d+)(?:\.(\d+))?", self.version)
        return found is not None and (int(found[1]), int(found[2] or 0)) < OLDEST[self.product]


def look(asked: Server, driver: "Driver", host: Host) -> Seen:
    """What HOST of the database ASKED is, by DRIVER."""
    started = perf_counter()
    try:
        connection = driver.Connection(_also_reading(asked), host, PATIENCE, int(PATIENCE))
    except Fault as fault:
        return Seen(host, fault)
    seen = Seen(host, connecting=perf_counter() - started)
    try:
        seen = (_look_at_postgresql if asked.dialect == "postgresql" else _look_at_mysql)(connection, seen)
        return replace(seen, revision=_revision(connection, asked.dialect))
    except Fault as fault:
        return replace(seen, fault=fault)
    finally:
        connection.close()


def _also_reading(asked: Server) -> Server:
    """ASKED, of hosts that take no writes too."""
    if asked.dialect != "postgresql":
        return asked
    options = {**asked.options, "target_session_attrs": "any"}
    return Server(asked.dialect, asked.driver, asked.user, asked.password, asked.database, asked.hosts, options)


def _look_at_postgresql(connection: "Connection", seen: Seen) -> Seen:
    sql = (
        "SELECT current_setting('server_version'), (current_setting('transaction_read_only') = 'on')::int,"
        " coalesce((SELECT ssl::int FROM pg_stat_ssl WHERE pid = pg_backend_pid()), 0),"
        " (extract(epoch from clock_timestamp()) * 1000)::bigint"
    )
    [(version, read_only, encrypted, now)] = _rows(connection, sql)
    return replace(
        seen,
        product="PostgreSQL",
        version=version,
        is_read_only=read_only == "1",
        is_encrypted=encrypted == "1",
        ahead=int(now) / 1000 - time(),
    )


def _look_at_mysql(connection: "Connection", seen: Seen) -> Seen:
    sql = "SELECT @@version, @@global.read_only, CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"
    [(version, read_only, now)] = _rows(connection, sql)
    return replace(
        seen,
        product="MariaDB" if "MariaDB" in version else "MySQL",
        version=version,
        is_read_only=read_only == "1",
        is_encrypted=_named(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'") not in (None, ""),
        ahead=int(now) / 1000 - time(),
        cluster=_cluster(connection),
    )


def _cluster(connection: "Connection") -> Cluster | None:
    if _named(connection, "SHOW SESSION VARIABLES LIKE 'wsrep_on'") != "ON":
        return None
    status, state, size = (
        _named(connection, f"SHOW GLOBAL STATUS LIKE 'wsrep_{name}'") or "0"
        for name in ("cluster_status", "local_state_comment", "cluster_size")
    )
    return Cluster(status, state, int(size))


def _named(connection: "Connection", sql: str) -> str | None:
    """The value of one line of SHOW."""
    found = _rows(connection, sql)
    return found[0][1] if found else None


# Whether the table with the schema's revision is there.
HAS_SCHEMA = {
    "postgresql": "SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL",
    "mysql": "SHOW TABLES LIKE 'alembic_version'",
}


def _revision(connection: "Connection", dialect: str) -> str | None:
    """Raises Fault where a node has no quorum, which only a table's own words tell."""
    if not _rows(connection, HAS_SCHEMA[dialect]):
        return None
    found = _rows(connection, compiled_postgresql.SCHEMA[0])  # the same in every dialect
    return found[0][0] if found else None


def _rows(connection: "Connection", sql: str) -> Sequence[tuple[str, ...]]:
    """The rows of a statement, as text."""
    return [tuple(map(_text, row)) for row in connection.run(sql, (), PATIENCE)[0]]


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
