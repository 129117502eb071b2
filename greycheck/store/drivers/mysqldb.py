"""mysqlclient: its C module ``MySQLdb._mysql`` alone, which leaves quoting values to its caller.

Its limits are whole seconds, for each wait on the socket.
"""

from time import monotonic

from greycheck.store.base import imported_from
from greycheck.store.drivers import arguments, faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.url import Host, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from sqlalchemy.engine.interfaces import DBAPIConnection

_mysql = imported_from("MySQLdb", "_mysql")
Error = _mysql.Error

# Types of columns that hold whole numbers (MySQL's protocol): TINY, SHORT, LONG, LONGLONG, INT24.
INTEGERS = dict.fromkeys((1, 2, 3, 8, 9), int)


def connect_arguments(server: Server, host: Host, seconds: float) -> dict[str, object]:
    """What the driver is told, beside the limits of statements."""
    options = server.options
    found = arguments.mysql_arguments(server, host) | {"connect_timeout": max(1, int(seconds))}
    mode = arguments.ssl_mode(server)
    if mode != "PREFERRED":
        found["ssl_mode"] = mode
    files = {
        name: options[f"ssl_{name}"]
        for name in ("ca", "capath", "cert", "key", "cipher")
        if f"ssl_{name}" in options
    }
    if files:
        found["ssl"] = files
    # No server is given a file of this host, whatever it asks for (LOAD DATA LOCAL), and whatever
    # the library does by itself.
    return {name: value for name, value in found.items() if value} | {"local_infile": 0}


class Connection:
    """A connection of the child."""

    def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
        self._limit = max(1, int(seconds))
        started = monotonic()
        try:
            self._connection = _mysql.connect(
                **connect_arguments(server, host, seconds),
                conv=INTEGERS,
                read_timeout=self._limit,
                write_timeout=self._limit,
                init_command=arguments.mysql_session(patience),
            )
            _insist_on_tls(server, self._connection)
        except _mysql.Error as error:
            raise faults.mysql_driver_fault(error, monotonic() - started, self._limit) from None

    def run(
        self, sql: str, values: "Sequence[object]", _seconds: float
    ) -> "tuple[Sequence[Sequence[object]], int]":
        """The rows, or how many rows were changed."""
        started = monotonic()
        try:
            statement = (
                sql.encode() % tuple(self._literal(value) for value in values)
                if values
                else sql.encode()
            )
            self._connection.query(statement)
            result = self._connection.store_result()
            return (result.fetch_row(0), 0) if result else ((), self._connection.affected_rows())
        except _mysql.Error as error:
            raise faults.mysql_driver_fault(error, monotonic() - started, self._limit) from None

    @staticmethod
    def _literal(value: object) -> bytes:
        """VALUE as it stands in SQL."""
        if value is None:
            return b"NULL"
        if isinstance(value, int):
            return b"%d" % value
        if isinstance(value, bytes):
            return b"X'" + value.hex().encode() + b"'"
        # In digits, so that no character set and no mode of the server can end it before its end.
        return b"_utf8mb4 X'" + str(value).encode().hex().encode() + b"'"

    def close(self) -> None:
        """Leaves the server."""
        self._connection.close()


def _insist_on_tls(server: Server, connection: "Any") -> None:
    """Raises Fault if TLS is wanted and not there.

    Unless it is to verify the server, MariaDB's library goes on without.
    """
    if arguments.ssl_mode(server) != "REQUIRED":
        return
    connection.query(b"SHOW SESSION STATUS LIKE 'Ssl_cipher'")
    if not connection.store_result().fetch_row(0)[0][1]:
        connection.close()
        raise Fault(faults.OTHER, "ssl_mode=REQUIRED, and the server speaks no TLS")


def connect(server: Server, host: Host, seconds: float) -> "DBAPIConnection":
    """A connection for SQLAlchemy, which wants to know of rows found, not of rows changed."""
    import MySQLdb
    from MySQLdb.constants import CLIENT

    made = MySQLdb.connect(
        **connect_arguments(server, host, seconds),
        client_flag=CLIENT.FOUND_ROWS,
        read_timeout=arguments.READING,
        init_command=arguments.MYSQL_COMMAND,
    )
    _insist_on_tls(server, made)
    found: DBAPIConnection = made  # type: ignore[assignment]
    return found
