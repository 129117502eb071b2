"""PyMySQL, which is Python all through. Its limits are seconds, for each wait on the socket."""

from time import monotonic

import pymysql
from pymysql import Error
from pymysql.constants import CLIENT

from greycheck.store import server as servers
from greycheck.store.server import Fault, Host, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ssl import SSLContext
    from typing import Any

    from sqlalchemy.engine.interfaces import DBAPIConnection


# The first version that does not go on without TLS where the server, or somebody in between, says that there is none.
INSISTS = (1, 2)


def arguments(server: Server, host: Host, seconds: float) -> "dict[str, Any]":
    """What the driver is told, beside the limits of statements."""
    options = server.options
    found: dict[str, Any] = {
        "user": server.user,
        "password": None if server.password is None else server.password.encode(),
        "database": server.database,
        "connect_timeout": max(0.1, seconds),
        "charset": "utf8mb4",
        "read_default_file": options.get("read_default_file"),
        "read_default_group": options.get("read_default_group"),
    }
    if host.is_socket:
        found["unix_socket"] = host.name
    else:
        found |= {"host": host.name, "port": host.port}
    found = {name: value for name, value in found.items() if value}
    return found | _tls(server, host)


def _tls(server: Server, host: Host) -> "dict[str, Any]":
    mode = servers.ssl_mode(server)
    if mode == "DISABLED" or (mode == "PREFERRED" and host.is_socket):
        # Where nothing is asked for, encryption that nobody verifies is not worth the 50 ms of making it ready.
        return {"ssl_disabled": True}
    if mode == "PREFERRED":
        return {}
    if pymysql.VERSION[:2] < INSISTS:
        installed = ".".join(map(str, pymysql.VERSION[:3]))
        raise Fault(
            servers.OTHER, f"PyMySQL {installed} goes on without TLS where somebody wants that: install 1.2 or newer"
        )
    if mode == "REQUIRED":
        return {"ssl": _unverified()}
    options = server.options
    return {
        "ssl_ca": options.get("ssl_ca"),
        "ssl_cert": options.get("ssl_cert"),
        "ssl_key": options.get("ssl_key"),
        "ssl_verify_cert": True,
        "ssl_verify_identity": mode == "VERIFY_IDENTITY",
    }


def _unverified() -> "SSLContext":
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connection:
    """A connection of the child."""

    def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
        self._limit = max(0.1, seconds)
        started = monotonic()
        try:
            self._connection = pymysql.connect(
                **arguments(server, host, seconds),
                read_timeout=self._limit,
                write_timeout=self._limit,
                autocommit=None,
                init_command=servers.mysql_session(patience),
            )
        except (Error, OSError) as error:
            raise self._fault(error, monotonic() - started) from None

    def run(self, sql: str, values: "Sequence[object]", _seconds: float) -> "tuple[Sequence[Sequence[object]], int]":
        """The rows, or how many rows were changed."""
        started = monotonic()
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, tuple(values))
                return cursor.fetchall(), cursor.rowcount
        except (Error, OSError) as error:
            raise self._fault(error, monotonic() - started) from None

    def _fault(self, error: Exception, seconds: float) -> Fault:
        fault = servers.mysql_fault(error.args[0] if error.args else None, str(error.args[-1] if error.args else error))
        # A limit that is over looks like a connection that is lost.
        return servers.silent(seconds) if fault.kind == servers.GONE and seconds >= self._limit else fault

    def close(self) -> None:
        """Leaves the server."""
        self._connection.close()


def connect(server: Server, host: Host, seconds: float) -> "DBAPIConnection":
    """A connection for SQLAlchemy, which wants to know of rows found, not of rows changed."""
    made = pymysql.connect(**arguments(server, host, seconds), read_timeout=seconds, client_flag=CLIENT.FOUND_ROWS)
    # Its limit for connecting does not cover the server's greeting; that for reading does, and ends with it.
    made._read_timeout = servers.READING  # type: ignore[attr-defined]
    found: DBAPIConnection = made  # type: ignore[assignment]
    return found
