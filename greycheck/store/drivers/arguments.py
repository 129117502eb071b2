"""What a driver is told when it connects, made of a server's URL.

Interface: ``mysql_arguments`` and ``mysql_session`` for both drivers of MySQL's dialect,
``libpq_dsn`` for both of PostgreSQL's.
"""

from greycheck.store.url import Host, Server

# What each session of an operator's command begins with: a server may begin another transaction, or
# disconnect, at each COMMIT.
MYSQL_COMMAND = "SET SESSION completion_type = 'NO_CHAIN'"

# What each session of a check begins with. A server may besides speak another character set than
# the one it is spoken to in, read statements in another dialect, not commit, let statements wait
# for a lock for a day, and keep for hours what a client that is no more has locked.
MYSQL_SESSION = (
    "SET NAMES utf8mb4, SESSION sql_mode = 'STRICT_ALL_TABLES', SESSION autocommit = 1,"
    " SESSION completion_type = 'NO_CHAIN', SESSION wait_timeout = {1},"
    " SESSION lock_wait_timeout = {0}, SESSION innodb_lock_wait_timeout = {0}"
)

# How long an operator's command waits for one answer of MySQL's dialect, in seconds; libpq keeps
# connections alive by itself.
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
    """Returns the statement that a session begins with; it waits PATIENCE seconds for a lock."""
    return MYSQL_SESSION.format(patience, IDLE)


def ssl_mode(server: Server) -> str:
    """Returns how far TLS goes with MySQL's dialect: one of SSL_MODES.

    A URL that names an authority wants the server to be verified. MariaDB's library, which
    mysqlclient uses, verifies the name along with the authority: VERIFY_CA is VERIFY_IDENTITY
    there.
    """
    given = server.options.get("ssl_mode", "").upper()
    if given:
        return given
    if not server.options.keys() & {"ssl_ca", "ssl_capath"}:
        return "PREFERRED"
    unnamed = server.options.get("ssl_check_hostname", "").lower() in ("false", "0", "no", "off")
    return "VERIFY_CA" if unnamed else "VERIFY_IDENTITY"


def libpq_dsn(server: Server, host: Host, seconds: float, patience: int | None = None) -> str:
    """What libpq is told, as it wants to be told it.

    With PATIENCE, statements end after SECONDS, and wait so long for a lock.

    Each statement of a check has an index that gives its rows in the order in which it wants the
    first few. A server that does not know yet how many there are (a flood is quicker than its
    statistics) might read all of them by a bitmap, and sort them.
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
        session += "".join(
            f" -c {name}_timeout={int(limit * 1000)}" for name, limit in limits.items()
        )
    given |= {"options": session.strip(), **options}
    return " ".join(
        f"{name}={_quoted(str(value))}" for name, value in given.items() if value not in (None, "")
    )


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
