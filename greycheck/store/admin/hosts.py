"""Probes the hosts of a server database one by one as a check would: same driver, same limits.

Interface: ``probe`` returns the status of one host. It does not raise for a fault of the host.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, time
from typing import TYPE_CHECKING

from greycheck.store import compiled_postgresql
from greycheck.store.drivers.faults import Fault
from greycheck.store.url import Host, Server

if TYPE_CHECKING:
    from greycheck.store.drivers import Connection, Driver

# Time limit for each statement on a host, and for the connect, in seconds.
TIMEOUT = 3.0

# The oldest versions that this program supports.
OLDEST = {"PostgreSQL": (13, 0), "MariaDB": (10, 6), "MySQL": (8, 0)}

PRIMARY = "Primary"
SYNCED = "Synced"


@dataclass(frozen=True)
class Cluster:
    """How a Galera node sees its cluster.

    ``status`` is PRIMARY if it has a quorum; ``state`` is the node's own, SYNCED if it is up to
    date; ``size`` is the number of nodes.
    """

    status: str
    state: str
    size: int


@dataclass(frozen=True)
class HostStatus:
    """The status of a host. With a ``fault`` the rest may be unknown.

    ``connecting`` is how long the connect took, and ``ahead`` how far its clock is ahead of this
    host's, both in seconds; ``revision`` is that of the schema, None if there is none.
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
        """True if a check can read and write there."""
        return self.fault is None and not self.is_read_only

    @property
    def is_too_old(self) -> bool:
        """True if its version is older than the oldest supported one."""
        parts = re.match(r"(\d+)(?:\.(\d+))?", self.version)
        return parts is not None and (int(parts[1]), int(parts[2] or 0)) < OLDEST[self.product]


def probe(server: Server, driver: "Driver", host: Host) -> HostStatus:
    """Returns the status of HOST of the database SERVER, by DRIVER."""
    started = perf_counter()
    try:
        connection = driver.Connection(_also_reading(server), host, TIMEOUT, int(TIMEOUT))
    except Fault as fault:
        return HostStatus(host, fault)
    status = HostStatus(host, connecting=perf_counter() - started)
    try:
        status = (_probe_postgresql if server.dialect == "postgresql" else _probe_mysql)(
            connection, status
        )
        return replace(status, revision=_revision(connection, server.dialect))
    except Fault as fault:
        return replace(status, fault=fault)
    finally:
        connection.close()


def _also_reading(server: Server) -> Server:
    """Returns SERVER with options that accept a host that takes no writes."""
    if server.dialect != "postgresql":
        return server
    options = {**server.options, "target_session_attrs": "any"}
    return Server(
        server.dialect,
        server.driver,
        server.user,
        server.password,
        server.database,
        server.hosts,
        options,
    )


def _probe_postgresql(connection: "Connection", status: HostStatus) -> HostStatus:
    sql = (
        "SELECT current_setting('server_version'), (current_setting('transaction_read_only') ="
        " 'on')::int,"
        " coalesce((SELECT ssl::int FROM pg_stat_ssl WHERE pid = pg_backend_pid()), 0),"
        " (extract(epoch from clock_timestamp()) * 1000)::bigint"
    )
    [(version, read_only, encrypted, now)] = _rows(connection, sql)
    return replace(
        status,
        product="PostgreSQL",
        version=version,
        is_read_only=read_only == "1",
        is_encrypted=encrypted == "1",
        ahead=int(now) / 1000 - time(),
    )


def _probe_mysql(connection: "Connection", status: HostStatus) -> HostStatus:
    sql = "SELECT @@version, @@global.read_only, CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"
    [(version, read_only, now)] = _rows(connection, sql)
    return replace(
        status,
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
    """Returns the value of one line of SHOW; None if there is no line."""
    rows = _rows(connection, sql)
    return rows[0][1] if rows else None


# Finds out if the table with the schema's revision exists.
HAS_SCHEMA = {
    "postgresql": "SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL",
    "mysql": "SHOW TABLES LIKE 'alembic_version'",
}


def _revision(connection: "Connection", dialect: str) -> str | None:
    """Returns the schema's revision; None if there is no schema.

    Raises Fault if the node has no quorum, which only a query of a table tells.
    """
    if not _rows(connection, HAS_SCHEMA[dialect]):
        return None
    rows = _rows(connection, compiled_postgresql.SCHEMA[0])  # the same in every dialect
    return rows[0][0] if rows else None


def _rows(connection: "Connection", sql: str) -> Sequence[tuple[str, ...]]:
    """Returns the rows of a statement, as text."""
    return [tuple(map(_text, row)) for row in connection.run(sql, (), TIMEOUT)[0]]


def _text(value: object) -> str:
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else ""
        if value is None
        else str(value)
    )
