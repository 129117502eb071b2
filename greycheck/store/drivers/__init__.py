"""The drivers of server databases, one file each: a ``Connection`` for the child, and ``connect`` for SQLAlchemy.

The child's way goes below the driver's own Python where there is something below (C modules), which saves most of its time. Both are
told the same: TLS, sockets, password files.
"""

from greycheck.store.lean import StoreError
from greycheck.store.server import DRIVERS, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from sqlalchemy.engine.interfaces import DBAPIConnection

    from greycheck.store.server import Host

    class Connection(Protocol):
        """A connection that commits each statement, unless BEGIN was said."""

        def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
            """Connects to HOST within SECONDS. Statements wait PATIENCE seconds at most for a lock. Raises Fault."""

        def run(self, sql: str, values: Sequence[object], seconds: float) -> tuple[Sequence[Sequence[object]], int]:
            """The rows of a statement, or how many it changed, within SECONDS (or the driver's limits). Raises Fault."""

        def close(self) -> None:
            """Leaves the server, without waiting for it."""

    class Driver(Protocol):
        """One of the files here."""

        Connection: type[Connection]
        Error: type[Exception]

        def connect(self, server: Server, host: Host, seconds: float) -> DBAPIConnection:
            """A connection for SQLAlchemy. Raises the driver's errors."""


# What installs a driver.
EXTRAS = {"psycopg2": "postgresql", "psycopg": "psycopg", "mysqldb": "mysql", "pymysql": "pymysql"}


# The softlimit -m of a qmail-smtpd whose checks use a driver, as doctor advises it.
LIMITS = {"mysqldb": 26000000, "pymysql": 30000000, "psycopg2": 36000000, "psycopg": 55000000}


def load(server: Server) -> "tuple[str, Driver]":
    """The name and the file of SERVER's driver. Raises StoreError where none is installed."""
    names = (server.driver,) if server.driver else DRIVERS[server.dialect]
    for name in names:
        try:
            return name, __import__(f"greycheck.store.drivers.{name}", fromlist=[name])
        except ImportError as error:
            reason = error
        if "failed to map" in str(reason) or "annot allocate memory" in str(reason):
            raise StoreError(f"too little memory for {name} ({reason}): softlimit -m {LIMITS[name]}")
    raise StoreError(
        f"no driver for {server.dialect} ({reason}): pip install greycheck[{EXTRAS[names[0]]}], then greycheck install"
    )
