"""PyMySQL, which is Python all through. Its limits are seconds, for each wait on the socket."""

from time import monotonic

import pymysql
from pymysql import Error
from pymysql.constants import CLIENT

from greycheck.store.drivers import arguments, faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.url import Host, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ssl import SSLContext
    from typing import Any

    from sqlalchemy.engine.interfaces import DBAPIConnection


# The first version that does not go on without TLS where the server, or somebody in between, says
# that there is none.
INSISTS = (1, 2)


def connect_arguments(server: Server, host: Host, seconds: float) -> "dict[str, Any]":
    """What the driver is told, beside the limits of statements."""
    found: dict[str, Any] = arguments.mysql_arguments(server, host) | {
        "connect_timeout": max(0.1, seconds)
    }
    # Text would be sent in Latin 1, and what has no place there be an error that shows it.
    found["password"] = None if server.password is None else server.password.encode()
    return {name: value for name, value in found.items() if value} | _tls(server, host)


def _tls(server: Server, host: Host) -> "dict[str, Any]":
    mode = arguments.ssl_mode(server)
    if mode == "DISABLED" or (mode == "PREFERRED" and host.is_socket):
        # Where nothing is asked for, encryption that nobody verifies is not worth the 50 ms of
        # making it ready.
        return {"ssl_disabled": True}
    if mode == "PREFERRED":
        return {}
    if pymysql.VERSION[:2] < INSISTS:
        installed = ".".join(map(str, pymysql.VERSION[:3]))
        raise Fault(
            faults.OTHER,
            f"PyMySQL {installed} goes on without TLS where somebody wants that: install 1.2 or"
            " newer",
        )
    return {"ssl": _context(server.options, mode)}


def _context(options: dict[str, str], mode: str) -> "SSLContext":
    """What is verified in MODE, one of SSL_MODES from REQUIRED on."""
    import ssl

    context = ssl.create_default_context(
        cafile=options.get("ssl_ca"), capath=options.get("ssl_capath")
    )
    context.check_hostname = mode == "VERIFY_IDENTITY"
    context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("VERIFY") else ssl.CERT_NONE
    if "ssl_cert" in options:
        context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    if "ssl_cipher" in options:
        context.set_ciphers(options["ssl_cipher"])
    return context


class Connection:
    """A connection of the child."""

    def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
        self._limit = max(0.1, seconds)
        started = monotonic()
        try:
            self._connection = pymysql.connect(
                **connect_arguments(server, host, seconds),
                read_timeout=self._limit,
                write_timeout=self._limit,
                autocommit=None,
                init_command=arguments.mysql_session(patience),
            )
        except (Error, OSError) as error:
            raise faults.mysql_driver_fault(error, monotonic() - started, self._limit) from None

    def run(
        self, sql: str, values: "Sequence[object]", _seconds: float
    ) -> "tuple[Sequence[Sequence[object]], int]":
        """The rows, or how many rows were changed."""
        started = monotonic()
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, tuple(values))
                return cursor.fetchall(), cursor.rowcount
        except (Error, OSError) as error:
            raise faults.mysql_driver_fault(error, monotonic() - started, self._limit) from None

    def close(self) -> None:
        """Leaves the server."""
        self._connection.close()


def connect(server: Server, host: Host, seconds: float) -> "DBAPIConnection":
    """A connection for SQLAlchemy, which wants to know of rows found, not of rows changed."""
    made = pymysql.connect(
        **connect_arguments(server, host, seconds),
        read_timeout=seconds,
        client_flag=CLIENT.FOUND_ROWS,
        init_command=arguments.MYSQL_COMMAND,
    )
    # Its limit for connecting does not cover the server's greeting; that for reading does, and ends
    # with it.
    made._read_timeout = arguments.READING  # type: ignore[attr-defined]
    found: DBAPIConnection = made  # type: ignore[assignment]
    return found
