"""A server database as its URL names it.

The URL is SQLAlchemy's: ``mariadb://user:password@/greycheck?host=db1:3306&host=db2``. Hosts are
tried in the order in which they stand there. ``settings.Database`` parses it, once, for the child
and for everybody else; nothing of SQLAlchemy is needed for it.

Interface: ``parse_url`` makes a ``Server`` of a URL.

Diagnostics: ``ValueError`` of a URL, never with its password.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What URLs call a dialect, and which one it is.
DIALECTS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}

# What a URL of MySQL's dialect may say after its question mark; libpq checks PostgreSQL's itself.
MYSQL_OPTIONS = frozenset(
    (
        "host",
        "port",
        "unix_socket",
        "read_default_file",
        "read_default_group",
        "ssl_mode",
        "ssl_check_hostname",
    )
    + ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher")
)
SSL_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")

# What counts here and not in a URL: the deadline, and the encoding.
IGNORED = frozenset(("charset", "client_encoding", "connect_timeout"))


class Host:
    """One of the hosts that share the database: a ``name`` and ``port``, or the path of a socket.

    PostgreSQL's is the path of its directory. Empty and None: whatever the driver takes by itself.
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
    """What a URL says.

    ``driver`` is one of ``drivers.RECORDS``, or empty; ``options`` is what is left for the driver.
    """

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

    def by(self, driver: str) -> "Server":
        """Returns the same server, asked by the DRIVER of that name."""
        return Server(
            self.dialect, driver, self.user, self.password, self.database, self.hosts, self.options
        )


def parse_url(url: str) -> Server:
    """The server of URL. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    name, plus, driver = scheme.partition("+")
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise ValueError(f"{name}: no such database here: sqlite, postgresql, mariadb or mysql")
    if plus:
        # Not at the top: a client that is not checked needs no driver.
        from greycheck.store import drivers

        known = drivers.names(dialect)
        if driver not in known:
            raise ValueError(f"{scheme}: no such driver here: {' or '.join(known)}")
    user, password, rest = _credentials(rest)
    rest, _, query = rest.partition("?")
    authority, _, database = rest.partition("/")
    if "@" in authority + "/" + database:
        raise ValueError("an @ in a user's name or a password is written %40")
    if not database:
        raise ValueError(
            f"{scheme}: which database? Its name follows the hosts,"
            f" as {scheme}://user@host/greycheck"
        )
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
    database = after.partition("/")[2]
    return f"{scheme}://{credentials}/{database}?{'&'.join(filter(None, options))}"


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
            found += (
                bytes.fromhex(digits)
                if len(digits) == 2 and not digits.isspace()
                else b"%" + digits.encode()
            )
        except ValueError:
            found += b"%" + digits.encode("utf-8", "surrogateescape")
        found += part[2:].encode("utf-8", "surrogateescape")
    return found.decode("utf-8", "replace")


def _hosts(options: dict[str, list[str]], authority: str) -> list[Host]:
    """The hosts of the options, which they are taken out of, or else that of the AUTHORITY."""
    ports = [_port(port) for value in options.pop("port", []) for port in value.split(",")]
    sockets = options.pop("unix_socket", [])
    names = [
        name.strip() for value in options.pop("host", []) + sockets for name in value.split(",")
    ]
    hosts = [read_host(name) for name in names or [authority]]
    if len(ports) not in (0, 1, len(hosts)):
        raise ValueError(f"{len(hosts)} hosts and {len(ports)} ports")
    for number, port in enumerate(ports * len(hosts) if len(ports) == 1 else ports):
        hosts[number].port = hosts[number].port or port
    return hosts


def read_host(text: str) -> Host:
    """Returns the host that ``name``, ``name:port``, ``[address]:port`` or a path names.

    Raises ValueError.
    """
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
