"""The drivers of server databases, one file each.

Each has a ``Connection`` for the child, and ``connect`` for SQLAlchemy. ``RECORDS`` holds what else
the program knows of each driver.

The child's way goes below the driver's own Python where there is something below (C modules), which
saves most of its time. Both ways get the same TLS, sockets and password files.

A new driver is its file here, its record, its extra in ``pyproject.toml`` and its line in the table
of drivers in the documents: ``tests/store/test_driver_records.py`` names what is missing.

Reading a URL imports this package, so it imports nothing by itself.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from sqlalchemy.engine.interfaces import DBAPIConnection

    from greycheck.store.url import Host, Server

    class Connection(Protocol):
        """A connection that commits each statement, unless BEGIN was said."""

        def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
            """Connects to HOST within SECONDS. Statements wait PATIENCE seconds at most for a lock.

            Raises Fault.
            """

        def run(
            self, sql: str, values: Sequence[object], seconds: float
        ) -> tuple[Sequence[Sequence[object]], int]:
            """Returns the rows of a statement, and how many rows it changed.

            It takes SECONDS at most (or the driver's limits). Raises Fault.
            """

        def close(self) -> None:
            """Leaves the server, without waiting for it."""

    class Driver(Protocol):
        """One of the files here."""

        Connection: type[Connection]
        Error: type[Exception]

        def connect(self, server: Server, host: Host, seconds: float) -> DBAPIConnection:
            """Returns a connection for SQLAlchemy. Raises the driver's errors."""


class Often(str):
    """A statement that one connection runs again and again: the driver may have it prepared.

    Nothing but the types of its parameters depends on their values.
    """

    __slots__ = ()


# Options of a URL that name files which a check reads, and those of them that hold a password or a
# key; options that hold a password themselves. The same for all drivers of a dialect.
_LIBPQ_FILES = ("passfile", "sslrootcert", "sslcert", "sslkey", "sslcrl")
_LIBPQ_SECRET_FILES = ("passfile", "sslkey")
_LIBPQ_PASSWORDS = ("password", "sslpassword")
_MYSQL_FILES = ("read_default_file", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_key")
_MYSQL_SECRET_FILES = ("ssl_key",)


class Record:
    """What the program knows of one driver, beside its file here.

    ``name``          in URLs (``mysql+pymysql://``), and of its file here
    ``dialect``       of its SQL: ``postgresql`` or ``mysql``
    ``extra``         of this program's package, which installs it
    ``distribution``  in the package index; ``package`` is what Python imports
    ``title``         for people
    ``connect_ms``    milliseconds of its connect and ``SELECT 1`` (benchmarks/servers.py)
    ``check_ms``      milliseconds of a check of a known triplet (benchmarks/databases.py)
    ``needed``        bytes of address space that a check was measured to need, TLS included, on
                      Debian 12 or 13, whichever is more; ``advised`` leaves some room
    ``libraries``     the system's libraries that it loads, without version; empty for pure Python
    ``built_with``    the package of Debian's that has their headers
    ``files``         options of a URL that name files which a check reads
    ``secret_files``  those of ``files`` that always hold a password or a key
    ``passwords``     options of a URL that hold a password themselves
    """

    __slots__ = (
        "advised",
        "built_with",
        "check_ms",
        "connect_ms",
        "dialect",
        "distribution",
        "extra",
        "files",
        "libraries",
        "name",
        "needed",
        "package",
        "passwords",
        "secret_files",
        "title",
    )

    def __init__(
        self,
        name: str,
        dialect: str,
        *,
        extra: str,
        distribution: str,
        package: str,
        title: str,
        connect_ms: float,
        check_ms: float,
        needed: int,
        advised: int,
        libraries: tuple[str, ...],
        built_with: str,
        files: tuple[str, ...],
        secret_files: tuple[str, ...],
        passwords: tuple[str, ...],
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.extra = extra
        self.distribution = distribution
        self.package = package
        self.title = title
        self.connect_ms = connect_ms
        self.check_ms = check_ms
        self.needed = needed
        self.advised = advised
        self.libraries = libraries
        self.built_with = built_with
        self.files = files
        self.secret_files = secret_files
        self.passwords = passwords

    @property
    def softlimit(self) -> int:
        """The softlimit -m to advise, in bytes: qmail-smtpd's own memory comes on top."""
        return self.advised + 2_000_000


# All drivers by name, the quickest of its dialect first: a URL without a driver takes the first
# that is installed.
RECORDS = {
    record.name: record
    for record in (
        Record(
            "psycopg2",
            "postgresql",
            extra="postgresql",
            distribution="psycopg2",
            package="psycopg2",
            title="psycopg2",
            connect_ms=31.4,
            check_ms=24.3,
            needed=30_700_000,
            advised=34_000_000,
            libraries=("libpq",),
            built_with="libpq-dev",
            files=_LIBPQ_FILES,
            secret_files=_LIBPQ_SECRET_FILES,
            passwords=_LIBPQ_PASSWORDS,
        ),
        Record(
            "psycopg",
            "postgresql",
            extra="psycopg",
            distribution="psycopg",
            package="psycopg",
            title="psycopg 3",
            connect_ms=96.0,
            check_ms=102.4,
            needed=47_400_000,
            advised=53_000_000,
            libraries=("libpq",),
            built_with="libpq-dev",
            files=_LIBPQ_FILES,
            secret_files=_LIBPQ_SECRET_FILES,
            passwords=_LIBPQ_PASSWORDS,
        ),
        Record(
            "mysqldb",
            "mysql",
            extra="mysql",
            distribution="mysqlclient",
            package="MySQLdb",
            title="mysqlclient",
            connect_ms=16.7,
            check_ms=12.3,
            needed=25_000_000,
            advised=28_000_000,
            libraries=("libmariadb",),
            built_with="libmariadb-dev",
            files=_MYSQL_FILES,
            secret_files=_MYSQL_SECRET_FILES,
            passwords=(),
        ),
        Record(
            "pymysql",
            "mysql",
            extra="pymysql",
            distribution="PyMySQL",
            package="pymysql",
            title="PyMySQL",
            connect_ms=27.1,
            check_ms=31.2,
            needed=29_800_000,
            advised=33_000_000,
            libraries=(),
            built_with="",
            files=_MYSQL_FILES,
            secret_files=_MYSQL_SECRET_FILES,
            passwords=(),
        ),
    )
}


def names(dialect: str) -> tuple[str, ...]:
    """Returns the names of the drivers of DIALECT, the quickest first."""
    return tuple(name for name, record in RECORDS.items() if record.dialect == dialect)


def usable(server: "Server") -> tuple[str, ...]:
    """Returns the names of the drivers that SERVER's URL allows, the quickest first."""
    return (server.driver,) if server.driver else names(server.dialect)


def of(server: "Server") -> Record:
    """Returns the record of the driver that a check of SERVER takes if it is installed."""
    return RECORDS[usable(server)[0]]


def load(server: "Server") -> "tuple[str, Driver]":
    """Returns the name and the file of SERVER's driver.

    Raises StoreError where there is too little memory for it, or where root would read what
    another user may write; NoDriver where none is installed.
    """
    # Not at the top: see there.
    import posix

    from greycheck.store.drivers.faults import NoDriver, StoreError

    if posix.geteuid() == 0:
        from greycheck.store.rights import refuse_root_options

        refuse_root_options(server)
    allowed = usable(server)
    for name in allowed:
        try:
            return name, __import__(f"greycheck.store.drivers.{name}", fromlist=[name])
        except ImportError as error:
            reason = error
        if "failed to map" in str(reason) or "annot allocate memory" in str(reason):
            limit = RECORDS[name].softlimit
            raise StoreError(f"too little memory for {name} ({reason}): softlimit -m {limit}")
    raise NoDriver(f"no driver for {server.dialect} ({reason})", allowed[0])
