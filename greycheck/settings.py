"""The settings: one table of names, types, defaults and meanings, and how they are read.

The environment counts first (``GREYCHECK_DELAY=1m``, from envdir, or from tcprules for one client),
then a file of ``name = value`` lines, then the defaults. A setting that cannot be read never stops
mail: the default is used, and ``problems`` says so in words that name the file and line, or the
variable. The forked child logs them; operators' commands refuse with the same words.

The table feeds the parser, ``greycheck config`` and the manual.
"""

import posix

from greycheck import normalise

CONFIG_FILE = "/etc/greycheck.conf"
SYSTEM_DIRECTORY = "/var/lib/greycheck"
DATABASE_FILE = "greycheck.db"
PREFIX = b"GREYCHECK_"

# How much of a settings file is read, in bytes.
FILE = 65536

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> int:
    """Seconds from ``90``, ``90s``, ``5m``, ``24h`` or ``36d``."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    if not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise ValueError("not a duration (as 90, 90s, 5m, 24h or 36d)")
    return int(number) * _UNITS[unit]


def duration_text(seconds: int) -> str:
    """SECONDS as one would write them: in the largest unit that divides them."""
    for unit in "dhm":
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


# A kind of setting is how its text is parsed, and how its value is written again: what ``show``
# writes, ``parse`` reads as the same.


def _whole(low: int, high: int) -> "Kind":
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 9 or not low <= int(text) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(text)

    return parse, str


# Ten years: longer than any use of it, and short enough for the columns and timers that times go
# through.
LONGEST = 3650 * 86400


def _duration(low: int, high: int = LONGEST) -> "Kind":
    def parse(text: str) -> int:
        seconds = duration(text)
        if not low <= seconds <= high:
            raise ValueError(f"not from {low}s to {duration_text(high)}")
        return seconds

    return parse, duration_text


def _choice(*choices: str) -> "Kind":
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return text.lower()

    return parse, str


class Database:
    """Where the store is: in an SQLite file, on a server, or nowhere.

    ``url``     as SQLAlchemy has it, with its password; empty where there is no store
    ``path``    the SQLite file; empty where it is none
    ``server``  what the URL of a server says; None where it is no server's

    Made once, when settings are read: everything else takes it from there. ``migrate.shown`` writes
    it without its password.
    """

    __slots__ = ("path", "server", "url")

    def __init__(self, url: str = "") -> None:
        """Reads URL. Raises ValueError, without its password, if it is a server's and wrong."""
        self.url = url
        self.path = ""
        self.server: Server | None = None
        if url.startswith("sqlite"):
            self.path = url.partition(":///")[2]
        elif url:
            from greycheck.store.url import parse_url

            self.server = parse_url(url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Database) and self.url == other.url


def database_at(place: "Database | str") -> Database:
    """Returns the database at PLACE, which may be a URL. Raises ValueError as ``Database``."""
    return place if isinstance(place, Database) else Database(place)


def read_database(text: str) -> Database:
    """Returns the database that TEXT names: a URL, or the absolute path of an SQLite file.

    Raises ValueError.
    """
    scheme, sep, _rest = text.partition("://")
    if sep and scheme.partition("+")[0] == "sqlite":
        text = text[len(scheme) + 4 :]
    elif sep:
        return Database(text)
    if not text.startswith("/"):
        raise ValueError(
            "not an SQLAlchemy URL or an absolute path (as"
            " sqlite:////var/lib/greycheck/greycheck.db)"
        )
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        raise ValueError("an SQLite file whose path is no UTF-8 cannot be named in a URL")
    if "?" in text or "%" in text:
        raise ValueError("an SQLite file with ? or % in its path cannot be named in a URL")
    return Database("sqlite:///" + text)


def _show_database(database: Database) -> str:
    return database.url


def _absolute_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("not an absolute path")
    return text


_DATABASE = read_database, _show_database
_PATH = _absolute_path, str


def _parse_hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip() for host in text.split(",") if host.strip())
    if hosts:
        from greycheck.store.url import read_host

        for host in hosts:
            read_host(host)
    return hosts


_HOSTS = _parse_hosts, ", ".join


def _parse_domains(text: str) -> tuple[str, ...]:
    return tuple(domain.strip().lower() for domain in text.split(",") if domain.strip())


_DOMAINS = _parse_domains, ", ".join


def _mode(*modes: str) -> "Kind":
    def parse(text: str) -> int:
        if text not in modes:
            raise ValueError(f"not {', '.join(modes[:-1])} or {modes[-1]}")
        return int(text, 8)

    return parse, "{:04o}".format


def _parse_owner(text: str) -> tuple[str, str]:
    user, _, group = text.partition(":")
    if ":" in group or " " in text:
        raise ValueError("not a user, a :group or user:group")
    return user, group


def _show_owner(owner: tuple[str, str]) -> str:
    user, group = owner
    return f"{user}:{group}" if group else user


_OWNER = _parse_owner, _show_owner


# What listens on every address of a host.
ANY_ADDRESS = ("0.0.0.0", "::")


def _parse_listen(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for each in text.split(",") if text else ():
        host, colon, port = each.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        address = host if host in ANY_ADDRESS else normalise.client_address(host.encode())
        if (
            not colon
            or address is None
            or not (port.isascii() and port.isdigit() and int(port) < 65536)
        ):
            raise ValueError(
                f"{each.strip()}: not an address and a port (as 127.0.0.1:10023 or [::1]:10023)"
            )
        found.append((address, int(port)))
    return tuple(found)


def _show_listen(addresses: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses
    )


_LISTEN = _parse_listen, _show_listen


def _parse_name_servers(text: str) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for each in text.split(",") if text else ():
        each = each.strip()
        is_bare = normalise.client_address(each.encode()) is not None
        try:
            found += _parse_listen(each if not is_bare else f"[{each}]:53")
        except ValueError:
            raise ValueError(
                f"{each}: not an address, with or without a port (as 127.0.0.1 or [::1]:53)"
            ) from None
    return tuple(found)


_NAME_SERVERS = _parse_name_servers, _show_listen


def _parse_networks(text: str) -> tuple[normalise.Network, ...]:
    found = []
    for each in text.split(",") if text else ():
        address, _, prefix = each.strip().partition("/")
        canonical = (
            address if address in ANY_ADDRESS else normalise.client_address(address.encode())
        )
        bits, value = normalise.address_bits(canonical) if canonical else (0, 0)
        length = normalise.prefix_length(prefix, bits) if prefix else bits
        if canonical is None or length is None:
            raise ValueError(f"{each.strip()}: not a network (as 192.0.2.0/24 or 2001:db8::/32)")
        found.append(normalise.Network(bits, value, length))
    return tuple(found)


def _show_networks(networks: tuple[normalise.Network, ...]) -> str:
    return ", ".join(map(str, networks))


_NETWORKS = _parse_networks, _show_networks
_TEXT = str, str

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from greycheck.store.url import Server

    Kind = tuple[Callable[[str], object], Callable[[Any], str]]


class Setting:
    """One row of the table.

    ``default`` and ``text`` are the same value, parsed and as an operator writes it. ``parse``
    makes a value of text, and raises ValueError; ``show`` makes text of a value that ``parse``
    reads as the same. ``where`` are the programs that read it, names of ``cli.config.READERS``
    with commas between.
    """

    __slots__ = ("default", "meaning", "name", "parse", "show", "text", "where")

    def __init__(
        self, name: str, kind: "Kind", text: str, meaning: str, where: str = "check"
    ) -> None:
        self.name = name
        self.parse, self.show = kind
        self.text = text
        self.default = self.parse(text) if text or name != "database" else Database()
        self.meaning = meaning
        self.where = where


TABLE = (
    Setting(
        "database",
        _DATABASE,
        "",
        "Where triplets are kept: an SQLAlchemy URL, or the path of an SQLite file.",
        "check, expire, commands",
    ),
    Setting(
        "database_file",
        _PATH,
        "",
        "A file with the database's URL in its first line, for the checker alone to read.",
        "check, expire, commands",
    ),
    Setting(
        "database_hosts",
        _HOSTS,
        "",
        "Hosts of a server in the order in which they are tried here, instead of the URL's.",
        "check, expire, commands",
    ),
    Setting(
        "state_directory",
        _PATH,
        "",
        "Where checks note that a server does not answer; else where an SQLite file would be.",
        "check, expire, commands",
    ),
    Setting(
        "database_mode",
        _mode("0600", "0660"),
        "0600",
        "Permissions of an SQLite file that greycheck makes: 0600 or 0660.",
        "check, expire, commands",
    ),
    Setting(
        "delay",
        _duration(0),
        "5m",
        "How long after the first attempt a retry still comes too early.",
        "check, expire, commands",
    ),
    Setting(
        "retry_window",
        _duration(1),
        "48h",
        "How long after the first attempt a retry still counts as the same message.",
        "check, expire, commands",
    ),
    Setting(
        "lifetime",
        _duration(1),
        "36d",
        "How long what passed is remembered after its last use.",
        "check, expire, commands",
    ),
    Setting(
        "history",
        _duration(0),
        "400d",
        "How long daily totals are kept for greycheck stats; 0: nothing is counted.",
        "check, expire, commands",
    ),
    Setting(
        "history_senders",
        _choice("no", "yes"),
        "no",
        "Whether the totals tell senders' domains and networks of clients, the busiest of a day.",
        "check, expire, commands",
    ),
    Setting(
        "ipv4_prefix",
        _whole(1, 32),
        "24",
        "Prefix length that makes a network of an IPv4 client.",
        "check, commands",
    ),
    Setting(
        "ipv6_prefix",
        _whole(1, 128),
        "64",
        "Prefix length that makes a network of an IPv6 client.",
        "check, commands",
    ),
    Setting(
        "client_passes",
        _whole(0, 1000000),
        "1",
        "After how many passed triplets all mail of a client address passes; 0 never.",
        "check, expire, commands",
    ),
    Setting(
        "null_sender",
        _choice("greylist", "accept"),
        "greylist",
        "What happens to the null sender: greylist or accept.",
    ),
    Setting(
        "strikes",
        _whole(0, 1000),
        "0",
        "After how many hasty retries in a row a client is refused; 0 never.",
        "check, commands",
    ),
    Setting(
        "strike_interval",
        _duration(2),
        "5s",
        "How soon after the last attempt a retry is a strike.",
    ),
    Setting(
        "strike_time",
        _duration(1),
        "24h",
        "How long a client is refused for its strikes.",
        "check, commands",
    ),
    Setting(
        "pool_networks",
        _whole(0, 1000),
        "3",
        "From how many other networks the same mail must wait to count as retried; 0 never.",
    ),
    Setting(
        "identity",
        _choice("yes", "observe", "no"),
        "yes",
        "Whether a sender's domain stands for the networks it sends from: yes, observe or no.",
        "check, expire, commands",
    ),
    Setting(
        "domain_passes",
        _whole(0, 1000000),
        "1",
        "After how many passed triplets all mail of a domain passes from its networks; 0 never.",
        "check, expire, commands",
    ),
    Setting(
        "trust_spfresult",
        _choice("yes", "no"),
        "no",
        "Whether SPFRESULT=pass of the mail server gives the domain's identity: yes or no.",
    ),
    Setting(
        "resolver",
        _NAME_SERVERS,
        "",
        "DNS servers that are asked for SPF, with commas between; by default the system's.",
        "commands",
    ),
    Setting(
        "link_key_file",
        _PATH,
        "",
        "The file of the key of greycheck digest's links; by default link.key beside the store.",
        "commands",
    ),
    Setting(
        "learn_outbound",
        _duration(0),
        "0",
        "How long whom our users write to may answer them at once; 0 never.",
        "check, commands",
    ),
    Setting(
        "network_limit",
        _whole(0, 1000000),
        "1000",
        "How many triplets of one client network may wait before new ones are not recorded; 0 for"
        " any number.",
    ),
    Setting(
        "pending_limit",
        _whole(0, 999999999),
        "1000000",
        "How many triplets may wait before new ones are accepted; 0 for any number.",
    ),
    Setting(
        "verified_names",
        _choice("yes", "no"),
        "no",
        "Whether tcpserver verifies TCPREMOTEHOST (-p): yes or no.",
        "check, commands",
    ),
    Setting(
        "mode",
        _choice("enforce", "observe"),
        "enforce",
        "Whether verdicts count or are only logged: enforce or observe.",
        "check, commands",
    ),
    Setting(
        "observe_domains",
        _DOMAINS,
        "",
        "Recipient domains for which verdicts are only logged, with commas between.",
    ),
    Setting(
        "observe_percent",
        _whole(0, 100),
        "0",
        "Share of client networks for which verdicts are only logged, in percent.",
    ),
    Setting(
        "deadline",
        _duration(1, 600),
        "5s",
        "How long one check may take before on_error answers.",
        "check, commands",
    ),
    Setting(
        "on_error",
        _choice("accept", "defer"),
        "accept",
        "The verdict where the check cannot be made: accept or defer.",
        "check, launcher",
    ),
    Setting(
        "socket",
        _PATH,
        "/run/greycheck/socket",
        "Where the resident listens, and native children ask: a unix socket.",
        "launcher, serve, commands",
    ),
    Setting(
        "socket_mode",
        _mode("0600", "0660", "0666"),
        "0660",
        "Permissions of that socket: 0600, 0660 or 0666.",
        "serve",
    ),
    Setting(
        "socket_owner", _OWNER, "", "Owner of that socket: a user, a :group or user:group.", "serve"
    ),
    Setting(
        "socket_patience",
        _duration(1, 60),
        "1s",
        "How long a native child waits for the resident.",
        "launcher, commands",
    ),
    Setting(
        "listen",
        _LISTEN,
        "",
        "Where the resident listens besides: addresses and ports, with commas between.",
        "serve",
    ),
    Setting(
        "listen_clients",
        _NETWORKS,
        "127.0.0.0/8, ::1",
        "Networks that may ask the resident there.",
        "serve",
    ),
    Setting(
        "metrics_listen",
        _LISTEN,
        "",
        "Where the resident answers Prometheus: addresses and ports, with commas between.",
        "serve",
    ),
    Setting(
        "max_connections",
        _whole(1, 100000),
        "2000",
        "How many peers the resident serves at once.",
        "serve",
    ),
    Setting(
        "max_request",
        _whole(1024, 1048576),
        "16384",
        "How long a request to the resident may be, in bytes.",
        "serve, policy",
    ),
    Setting(
        "request_time",
        _duration(1, 600),
        "10s",
        "How long a peer may take over a request, or over taking an answer.",
        "serve",
    ),
    Setting(
        "idle_time",
        _duration(1),
        "20m",
        "How long the resident keeps the connection of a peer that asks nothing.",
        "serve",
    ),
    Setting(
        "max_queue",
        _whole(1, 1000000),
        "1000",
        "How many requests may wait for a server database at once.",
        "serve",
    ),
    Setting(
        "pool_size",
        _whole(1, 1000),
        "8",
        "How many connections to a server database the resident has.",
        "serve",
    ),
    Setting(
        "header",
        _choice("yes", "no"),
        "no",
        "Whether a policy's answer adds X-Greylist to a message: yes or no.",
        "serve, policy",
    ),
    Setting(
        "defer_text",
        _TEXT,
        "greylisted, please try again later",
        "What a deferral tells a client, where the hook lets it.",
    ),
    Setting(
        "reject_text",
        _TEXT,
        "refused by local policy",
        "What a refusal tells a client, where the hook lets it.",
    ),
)

BY_NAME = {setting.name: setting for setting in TABLE}
_DEFAULTS = {setting.name: setting.default for setting in TABLE}


class Settings:
    """The values of the table, where each came from, and what was wrong.

    ``sources`` maps a name to ``/path:line``, a variable or ``default``; ``problems`` are lines for
    the log. ``off`` is the variable GREYCHECK=off, which tcprules sets for a client that is not to
    be checked. ``database`` is nowhere if the settings that say where the store is cannot be used.
    """

    if TYPE_CHECKING:
        database: Database
        database_file: str
        database_hosts: tuple[str, ...]
        state_directory: str
        database_mode: int
        delay: int
        retry_window: int
        lifetime: int
        history: int
        history_senders: str
        ipv4_prefix: int
        ipv6_prefix: int
        client_passes: int
        null_sender: str
        strikes: int
        strike_interval: int
        strike_time: int
        pool_networks: int
        identity: str
        domain_passes: int
        trust_spfresult: str
        resolver: tuple[tuple[str, int], ...]
        link_key_file: str
        learn_outbound: int
        network_limit: int
        pending_limit: int
        verified_names: str
        mode: str
        observe_domains: tuple[str, ...]
        observe_percent: int
        deadline: int
        on_error: str
        socket: str
        socket_mode: int
        socket_owner: tuple[str, str]
        socket_patience: int
        listen: tuple[tuple[str, int], ...]
        listen_clients: tuple[normalise.Network, ...]
        metrics_listen: tuple[tuple[str, int], ...]
        max_connections: int
        max_request: int
        request_time: int
        idle_time: int
        max_queue: int
        pool_size: int
        header: str
        defer_text: str
        reject_text: str

    def __init__(self) -> None:
        vars(self).update(_DEFAULTS)
        self.off = False
        self.has_store = True
        self.sources = dict.fromkeys(BY_NAME, "default")
        self.problems: list[str] = []

    def set(self, setting: Setting, value: object, source: str) -> None:
        """Takes VALUE for SETTING; SOURCE says where from."""
        setattr(self, setting.name, value)
        self.sources[setting.name] = source


# What a file says of each setting by its name, and where; what is wrong with its lines; and why it
# was not read to its end, empty if it was.
Lines = tuple[dict[str, tuple[str, str]], list[str], str]


def read(environ: dict[bytes, bytes], lines: Lines | None = None) -> Settings:
    """Returns the settings of a process with ENVIRON. Never fails.

    LINES are those of its file, if it was read before.
    """
    settings = Settings()
    in_file, problems, unread = read_file(environ) if lines is None else lines
    given = in_file.copy()
    _read_environ(environ, given, settings)
    if unread and not any(given.get(name, ("",))[0] for name in ("database", "database_file")):
        _lose_store(settings, unread)  # it may name one
    elif unread:
        settings.problems.append(unread)
    settings.problems += problems
    unknown = 0
    for name, (text, source) in given.items():
        setting = BY_NAME.get(name)
        if setting is not None:
            _take(settings, setting, text, source)
        else:
            unknown += 1
            said = no_such(name) if unknown <= GUESSES else f"{name}: no such setting"
            settings.problems.append(f"{source}: {said}")
    _settle_database(settings, environ)
    _hold_together(settings)
    return settings


# Of how many settings that do not exist it is looked for what was meant: a file of nothing else
# must not cost a check its deadline.
GUESSES = 5


def no_such(name: str) -> str:
    """What is said of a setting NAME that does not exist."""
    from greycheck.spelling import nearest

    near = nearest(name, BY_NAME)
    return f"{name}: no such setting" + (f": did you mean {near}?" if near else "")


def _is_seen(text: str) -> bool:
    from greycheck.unseen import UNSEEN

    return UNSEEN.isdisjoint(text)


def _take(settings: Settings, setting: Setting, text: str, source: str) -> None:
    try:
        value = setting.parse(text)
        if not text.isprintable() or not (text.isascii() or _is_seen(text)):
            raise ValueError("not a line of printable characters")  # noqa: TRY301
        settings.set(setting, value, source)
    except ValueError as error:
        # The value of one of these may hold a password.
        if setting.name in _WHERE:
            _lose_store(settings, f"{source}: {setting.name}: {error}")
            return
        settings.problems.append(
            f"{source}: {setting.name} = {text}: {error}; using {setting.text or 'the default'}"
        )


# The settings that say where the store is. Where one cannot be used, no other store is: it would
# know of nobody.
_WHERE = ("database", "database_file", "database_hosts")


def _lose_store(settings: Settings, problem: str) -> None:
    settings.has_store = False
    settings.problems.append(f"{problem}; there is no store, and on_error answers")


def _settle_database(settings: Settings, environ: dict[bytes, bytes]) -> None:
    """Makes one database of the settings that say where the store is."""
    if settings.database_file and not settings.database.url:
        _read_database_file(settings)
    if not settings.has_store:
        settings.database = Database()
    elif not settings.database.url:
        settings.database = Database(f"sqlite:///{default_directory(environ)}/{DATABASE_FILE}")
    elif settings.database.server is not None:
        if settings.database_hosts:
            from greycheck.store.url import with_hosts

            settings.database = Database(with_hosts(settings.database.url, settings.database_hosts))
        settings.state_directory = settings.state_directory or default_directory(environ)


def _read_database_file(settings: Settings) -> None:
    path, source = settings.database_file, settings.sources["database_file"]
    try:
        settings.database = database_in_file(path)
        settings.sources["database"] = path
    except OSError as error:
        _lose_store(settings, f"{source}: database_file: {path}: {error.strerror}")
    except ValueError as error:
        _lose_store(settings, f"{path}: {error}")


def database_in_file(path: str) -> Database:
    """Returns the database that the first line of the file PATH names.

    Raises OSError, and ValueError as ``read_database``.
    """
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        text = posix.read(descriptor, FILE).decode("utf-8", "surrogateescape")
    finally:
        posix.close(descriptor)
    return read_database(text.partition("\n")[0].strip())


def _hold_together(settings: Settings) -> None:
    """Mends a retry window that ends before the delay does: no retry could ever pass."""
    if settings.retry_window > settings.delay:
        return
    source = settings.sources[
        "retry_window" if settings.sources["retry_window"] != "default" else "delay"
    ]
    window, delay = BY_NAME["retry_window"], BY_NAME["delay"]
    settings.set(window, window.default, "default")
    used = f"retry_window = {window.text}"
    if settings.retry_window <= settings.delay:
        settings.set(delay, delay.default, "default")
        used += ", delay = 5m"
    settings.problems.append(
        f"{source}: retry_window ends before delay is over: no retry could pass; using {used}"
    )


def read_file(environ: dict[bytes, bytes]) -> Lines:
    """What the settings file says that a process with ENVIRON reads. Never fails."""
    given: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    unread = _read_file(environ.get(PREFIX + b"CONFIG"), given, problems)
    return given, problems, unread


def _read_file(path: bytes | None, given: dict[str, tuple[str, str]], problems: list[str]) -> str:
    """Reads the file at PATH into GIVEN and PROBLEMS; returns why not all of it."""
    name = (
        CONFIG_FILE
        if path is None
        else path.decode("utf-8", "surrogateescape") or "GREYCHECK_CONFIG, which is empty"
    )
    try:
        fd = posix.open(
            CONFIG_FILE if path is None else path,
            posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK,
        )
    except OSError as error:
        if path is not None or not isinstance(error, FileNotFoundError):
            return f"{name}: {error.strerror}"
        return ""
    try:
        content = posix.read(fd, FILE + 1)
    except OSError as error:
        return f"{name}: {error.strerror}"
    finally:
        posix.close(fd)
    unread = ""
    if len(content) > FILE:
        # The line that is cut may say something else than the whole one.
        whole, end, _cut = content[:FILE].rpartition(b"\n")
        content = whole + end
        line = content.count(b"\n") + 1
        unread = f"{name}: longer than {FILE} bytes: line {line} and what follows is not read"
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for number, each in enumerate(text.split("\n"), 1):
        each = each.strip()
        if not each or each.startswith("#"):
            continue
        setting, equals, value = each.partition("=")
        if not equals:
            problems.append(f"{name}:{number}: not a line of the form name = value")
            continue
        given[setting.strip().lower()] = (value.strip(), f"{name}:{number}")
    return unread


def _read_environ(
    environ: dict[bytes, bytes], given: dict[str, tuple[str, str]], settings: Settings
) -> None:
    for key, value in environ.items():
        if not key.startswith(b"GREYCHECK"):
            continue
        variable = key.decode("utf-8", "surrogateescape")
        text = value.decode("utf-8", "surrogateescape").strip()
        if key == b"GREYCHECK":
            settings.off = text.lower() == "off"
            if text.lower() not in ("off", "on", ""):
                settings.problems.append(f"{variable}: {text}: neither on nor off; using on")
        elif key.startswith(PREFIX) and key != PREFIX + b"CONFIG":
            given[variable[len(PREFIX) :].lower()] = (text, variable)


def default_directory(environ: dict[bytes, bytes]) -> str:
    """Where the SQLite file lives when no setting says so.

    The system's directory where it exists; else, for an ordinary user (one who owns his home
    directory), his state directory; else the system's, so that the message about its absence names
    it. HOME alone proves nothing: a service may inherit /root's.
    """
    try:
        posix.stat(SYSTEM_DIRECTORY)
    except OSError:
        pass
    else:
        return SYSTEM_DIRECTORY
    home = environ.get(b"HOME", b"").decode("utf-8", "surrogateescape")
    user = posix.geteuid()
    try:
        ordinary = user != 0 and home.startswith("/") and posix.stat(home).st_uid == user
    except OSError:
        ordinary = False
    if not ordinary:
        return SYSTEM_DIRECTORY
    state = environ.get(b"XDG_STATE_HOME", b"").decode("utf-8", "surrogateescape")
    return (state if state.startswith("/") else home + "/.local/state") + "/greycheck"
