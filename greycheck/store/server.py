"""A server database as its URL names it, and what its errors mean.

The URL is SQLAlchemy's: ``mariadb://user:password@/greycheck?host=db1:3306&host=db2``. Hosts are tried in the order in which they stand
there. Read here once, for the child and for everybody else; nothing of SQLAlchemy is needed for it.

Interface: ``parse`` makes a ``Server`` of a URL; drivers raise a ``Fault``, whose ``kind`` says what to do about it.

Diagnostics: ``ValueError`` of a URL, never with its password.
"""

from greycheck.store.lean import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What URLs call a dialect, and which one it is.
DIALECTS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}

# The drivers of a dialect, the quickest first; a URL without a driver takes the first that is there.
DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("mysqldb", "pymysql")}

# What a URL of MySQL's dialect may say after its question mark; libpq judges PostgreSQL's by itself.
MYSQL_OPTIONS = frozenset(
    ("host", "port", "unix_socket", "read_default_file", "read_default_group", "ssl_mode", "ssl_check_hostname")
    + ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher")
)
SSL_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")

# What counts here and not in a URL: the deadline, and the encoding.
IGNORED = frozenset(("charset", "client_encoding", "connect_timeout"))

# What each session of a check begins with. A server may speak another character set than the one it is spoken to in, read statements in
# another dialect, not commit, let statements wait for a lock for a day, and keep for hours what a client that is no more has locked.
MYSQL_SESSION = (
    "SET NAMES utf8mb4, SESSION sql_mode = 'STRICT_ALL_TABLES', SESSION autocommit = 1, SESSION wait_timeout = {1},"
    " SESSION lock_wait_timeout = {0}, SESSION innodb_lock_wait_timeout = {0}"
)

# How long an operator's command waits for one answer of MySQL's dialect, in seconds; libpq keeps connections alive by itself.
READING = 600

# After how many seconds a server gives up a client that does nothing.
IDLE = 10


def mysql_arguments(server: "Server", host: "Host") -> "dict[str, object]":
    """What both drivers of MySQL's dialect are told alike: who asks, for what, where."""
    where = {"unix_socket": host.name} if host.is_socket else {"host": host.name, "port": host.port}
    return {
        "user": server.user,
        "password": server.password,
        "database": server.database,
        "charset": "utf8mb4",
        "read_default_file": server.options.get("read_default_file"),
        "read_default_group": server.options.get("read_default_group"),
        **where,
    }


def mysql_session(patience: int) -> str:
    """The statement that a session begins with; PATIENCE is how long to wait for a lock, in seconds."""
    return MYSQL_SESSION.format(patience, IDLE)


class Host:
    """One of the hosts that share the database: a ``name`` and ``port``, or the path of a socket (PostgreSQL: of its directory).

    Empty and None: whatever the driver takes by itself.
    """

    __slots__ = ("name", "port")

    def __init__(self, name: str, port: int | None) -> None:
        self.name = name
        self.port = port

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name or "localhost"
        return name if self.port is None else f"{name}:{self.port}"

    @property
    def is_socket(self) -> bool:
        """Whether it is a path."""
        return self.name.startswith("/")


class Server:
    """What a URL says. ``driver`` is one of DRIVERS, or empty; ``options`` is what is left for the driver."""

    __slots__ = ("database", "dialect", "driver", "hosts", "options", "password", "user")

    def __init__(
        self,
        dialect: str,
        driver: str,
        user: str | None,
        password: str | None,
        database: str,
        hosts: list[Host],
        options: dict[str, str],
    ) -> None:
        self.dialect = dialect
        self.driver = driver
        self.user = user
        self.password = password
        self.database = database
        self.hosts = hosts
        self.options = options


def parse(url: str) -> Server:
    """The server of URL. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    name, plus, driver = scheme.partition("+")
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise ValueError(f"{name}: no such database here: sqlite, postgresql, mariadb or mysql")
    if plus and driver not in DRIVERS[dialect]:
        raise ValueError(f"{scheme}: no such driver here: {' or '.join(DRIVERS[dialect])}")
    user, password, rest = _credentials(rest)
    rest, _, query = rest.partition("?")
    authority, _, database = rest.partition("/")
    if "@" in authority + "/" + database:
        raise ValueError("an @ in a user's name or a password is written %40")
    if not database:
        raise ValueError(f"{scheme}: which database? Its name follows the hosts, as {scheme}://user@host/greycheck")
    options = _query(query)
    hosts = _hosts(options, authority)
    if dialect == "mysql":
        _check_mysql(options)
    plain = {key: values[-1] for key, values in options.items() if key not in IGNORED}
    return Server(dialect, driver, user, password, decoded(database), hosts, plain)


def with_hosts(url: str, hosts: "Sequence[str]") -> str:
    """URL, which can be parsed, with these HOSTS instead of its own."""
    scheme, _, rest = url.partition("://")
    _, _, after = _credentials(rest)
    credentials = rest[: len(rest) - len(after)]
    after, _, query = after.partition("?")
    options = [option for option in query.split("&") if option.partition("=")[0] not in _OF_HOSTS]
    options += [f"host={host}" for host in hosts]
    return f"{scheme}://{credentials}/{after.partition('/')[2]}?{'&'.join(option for option in options if option)}"


_OF_HOSTS = ("host", "port", "unix_socket")


def _credentials(rest: str) -> tuple[str | None, str | None, str]:
    before, at, after = rest.partition("@")
    user, colon, password = before.partition(":")
    if not at or "/" in user:
        return None, None, rest
    return decoded(user) or None, decoded(password) if colon else None, after


def _query(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in text.split("&"):
        key, _, value = part.replace("+", " ").partition("=")
        if value:
            found.setdefault(decoded(key), []).append(decoded(value))
    return found


def decoded(text: str) -> str:
    """TEXT with each ``%XX`` as the byte that it stands for, in UTF-8."""
    head, *parts = text.split("%")
    if not parts:
        return text
    found = head.encode("utf-8", "surrogateescape")
    for part in parts:
        digits = part[:2]
        try:
            found += bytes.fromhex(digits) if len(digits) == 2 and not digits.isspace() else b"%" + digits.encode()
        except ValueError:
            found += b"%" + digits.encode("utf-8", "surrogateescape")
        found += part[2:].encode("utf-8", "surrogateescape")
    return found.decode("utf-8", "replace")


def _hosts(options: dict[str, list[str]], authority: str) -> list[Host]:
    """The hosts of the options, which they are taken out of, or else that of the AUTHORITY."""
    ports = [_port(port) for value in options.pop("port", []) for port in value.split(",")]
    sockets = options.pop("unix_socket", [])
    names = [name.strip() for value in options.pop("host", []) + sockets for name in value.split(",")]
    hosts = [read_host(name) for name in names or [authority]]
    if len(ports) not in (0, 1, len(hosts)):
        raise ValueError(f"{len(hosts)} hosts and {len(ports)} ports")
    for number, port in enumerate(ports * len(hosts) if len(ports) == 1 else ports):
        hosts[number].port = hosts[number].port or port
    return hosts


def read_host(text: str) -> Host:
    """The host that ``name``, ``name:port``, ``[address]:port`` or a path names. Raises ValueError."""
    if text.startswith("/"):
        return Host(text, None)
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        if not bracket or port[:1] not in ("", ":"):
            raise ValueError(f"{text}: not a host (as db1, db1:3306 or [2001:db8::1]:3306)")
        return Host(name, _port(port[1:]))
    name, _, port = text.partition(":")
    return Host(name, _port(port))


def _port(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65536:
        raise ValueError(f"{text}: not a port")
    return int(text)


def _check_mysql(options: dict[str, list[str]]) -> None:
    for name in options:
        if name not in MYSQL_OPTIONS | IGNORED:
            name = name if name.isidentifier() else "an option"
            raise ValueError(f"{name}: no such option here: {', '.join(sorted(MYSQL_OPTIONS))}")
    mode = options.get("ssl_mode", ["PREFERRED"])[-1].upper()
    if mode not in SSL_MODES:
        raise ValueError(f"ssl_mode={mode}: not one of {', '.join(SSL_MODES)}")


def ssl_mode(server: Server) -> str:
    """How far TLS goes with MySQL's dialect, one of SSL_MODES: who names an authority wants the server to be verified.

    MariaDB's library, which mysqlclient uses, verifies the name along with the authority: VERIFY_CA is VERIFY_IDENTITY there.
    """
    given = server.options.get("ssl_mode", "").upper()
    if given:
        return given
    if not server.options.keys() & {"ssl_ca", "ssl_capath"}:
        return "PREFERRED"
    unnamed = server.options.get("ssl_check_hostname", "").lower() in ("false", "0", "no", "off")
    return "VERIFY_CA" if unnamed else "VERIFY_IDENTITY"


def libpq_dsn(server: Server, host: Host, seconds: float, patience: int | None = None) -> str:
    """What libpq is told, as it wants to be told it. With PATIENCE, statements end after SECONDS, and wait so long for a lock.

    Each statement of a check has an index that gives its rows in the order in which it wants the first few. A server that does not know
    yet how many there are (a flood is quicker than its statistics) might read all of them by a bitmap, and sort them.
    """
    options = dict(server.options)
    given = {
        "host": host.name,
        "port": host.port,
        "user": server.user,
        "password": server.password,
        "dbname": server.database,
        "client_encoding": "UTF8",
        "connect_timeout": max(2, int(seconds)),
        # Asking for a Kerberos ticket that nobody has costs as much as all the rest of connecting.
        "gssencmode": options.pop("gssencmode", "disable"),
        "target_session_attrs": options.pop("target_session_attrs", "read-write"),
        "application_name": options.pop("application_name", "greycheck"),
    }
    session = options.pop("options", "")
    if patience is not None:
        limits = {"statement": seconds, "lock": patience, "idle_in_transaction_session": IDLE}
        session = "-c enable_bitmapscan=off " + session
        session += "".join(f" -c {name}_timeout={int(limit * 1000)}" for name, limit in limits.items())
    given |= {"options": session.strip(), **options}
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in given.items() if value not in (None, ""))


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


# --- faults -----------------------------------------------------------------------------------------------------------

GONE = "gone"  # no connection, or one that is lost
UNUSABLE = "unusable"  # there is a connection, and the server answers nothing: it starts, stops, or has no quorum
SILENT = "silent"  # it did not answer in time
BUSY = "busy"  # all its connections are taken
READ_ONLY = "read-only"
LOCKED = "locked"  # somebody else's lock was waited for in vain
CONFLICT = "conflict"  # a deadlock, or a change that another host was quicker to make: to be decided again
SCHEMA = "schema"  # there is no such table or column: its revision says whose schema it is
OURS = "ours"  # this process is short of memory: then drivers say that there is no connection
OTHER = "other"

MYSQL_KINDS = {
    **dict.fromkeys((1152, 1158, 1159, 1160, 1161, 1180, 1927, 2002, 2003, 2006, 2013, 2055, 4031), GONE),
    **dict.fromkeys((1047, 1053, 1077, 1079), UNUSABLE),
    **dict.fromkeys((1040, 1203, 1226), BUSY),
    **dict.fromkeys((1290, 1792, 1836), READ_ONLY),
    **dict.fromkeys((1205, 1317, 1969, 3024, 3572), LOCKED),
    **dict.fromkeys((1213, 1020), CONFLICT),
    1054: SCHEMA,
}
POSTGRESQL_KINDS = {
    **dict.fromkeys(("57P01", "57P02", "57P05"), GONE),
    "57P03": UNUSABLE,
    "53300": BUSY,
    "25006": READ_ONLY,
    **dict.fromkeys(("55P03", "57014"), LOCKED),
    **dict.fromkeys(("40001", "40P01"), CONFLICT),
    "42703": SCHEMA,
}
MISSING = (1146, "42P01")
NO_SCHEMA = "the database has no schema: run greycheck db upgrade"

# How PostgreSQL says "53300" to a connection that it does not take, and the kernel to one too many on a socket: libpq hands on the words.
TOO_MANY = ("too many ", "remaining connection slots", "Resource temporarily unavailable")

# Error numbers of MySQL's dialect from here on are its client's own.
CLIENT_ERRORS = range(2000, 3000)


class Fault(StoreError):
    """What a server or a driver said. ``kind`` is one of the words above."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def mysql_driver_fault(error: Exception, seconds: float, limit: float) -> Fault:
    """The fault of a driver's ERROR after SECONDS, of a LIMIT: to the driver, one that is over looks like a connection that is lost."""
    arguments = error.args or (None, error)
    fault = mysql_fault(arguments[0], str(arguments[-1]))
    return silent(seconds) if fault.kind == GONE and seconds >= 0.9 * limit else fault


def mysql_fault(code: object, message: str) -> Fault:
    """The fault of an error CODE (an int, or whatever a driver gives instead) of MySQL's dialect."""
    if code in MISSING:
        return Fault(SCHEMA, NO_SCHEMA)
    kind = MYSQL_KINDS.get(code, OTHER) if isinstance(code, int) else OTHER
    if code in CLIENT_ERRORS and _is_short_of_memory(message):
        kind = OURS
    elif code in CLIENT_ERRORS and "Errno 11]" in message:
        kind = BUSY
    return Fault(kind, one_line(message) + (f" ({code})" if isinstance(code, int) else ""))


def postgresql_fault(code: str | None, message: str) -> Fault:
    """The fault of an SQLSTATE of PostgreSQL; None where there is none, because there is no connection."""
    if code in MISSING:
        return Fault(SCHEMA, NO_SCHEMA)
    if code is None:
        kind = BUSY if any(words in message for words in TOO_MANY) else GONE
        # Where libpq has tried with TLS and without, the second line says the same.
        said = one_line(message.partition("\nconnection to server ")[0])
        return Fault(OURS if _is_short_of_memory(message) and "FATAL" not in message else kind, said)
    kind = GONE if code.startswith("08") else POSTGRESQL_KINDS.get(code, OTHER)
    return Fault(kind, f"{one_line(message)} ({code})")


def _is_short_of_memory(message: str) -> bool:
    return "memory" in message.lower() or "malloc" in message


def silent(seconds: float) -> Fault:
    """The fault of a server that was waited for so many SECONDS."""
    return Fault(SILENT, f"no answer for {seconds:.1f}s")


def one_line(message: str) -> str:
    """The lines of a MESSAGE as one."""
    return " ".join(message.split())
