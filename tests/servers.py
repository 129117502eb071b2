"""PostgreSQL, MariaDB and Galera on loopback: real servers with data of their own, which tests
stop, freeze, kill and fill.

All of them are this process's: they end with the thread that started them. Ports lie below those
that the kernel gives to clients, so that a server that was killed finds its port free again, and no
client meets itself there.
"""

import functools
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self
from urllib.parse import quote, urlencode

import pytest

DATABASE = USER = "greycheck"
PASSWORD = "s3cr:t/@%"  # in a URL, four of these are written with percent signs
ELSEWHERE = "127.0.0.2"  # every server listens here too, and its certificate does not say so

PATIENCE = 60  # seconds for whatever should take less than one
PAUSE = 0.01
SMALL_DISK = 96  # megabytes

_newest = max(
    Path("/usr/lib/postgresql").glob("*/bin"),
    key=lambda path: float(path.parent.name),
    default=Path("/usr/bin"),
)
ENVIRON = {"PATH": f"{_newest}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
GALERA = "/usr/lib/galera/libgalera_smm.so"

_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that this process has not given away."""
    while True:
        port = random.SystemRandom().randrange(10000, 32768)
        if port in _ports:
            continue
        try:
            for address in ("127.0.0.1", ELSEWHERE):
                with socket.socket() as tried:
                    tried.bind((address, port))
        except OSError:
            continue
        _ports.add(port)
        return port


def run(
    command: Sequence[object],
    stdin: str = "",
    timeout: float = PATIENCE,
    prefix: Sequence[str] = (),
) -> str:
    """What COMMAND prints; what it complains about is the error."""
    ran = subprocess.run(
        [*prefix, *map(str, command)],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout,
        env=ENVIRON,
        cwd="/",
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))}: exit code {ran.returncode}: {ran.stderr or ran.stdout}"
        )
    return ran.stdout


def wait_until(happened: Callable[[], bool], what: str, log: Callable[[], str] = str) -> None:
    """Waits until it HAPPENED, with patience."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE} seconds\n{log()}")
        time.sleep(PAUSE)


def state_of(pid: int) -> str:
    """The letter of ps: T is stopped, Z is dead; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def family(pid: int) -> list[int]:
    """PID and its descendants."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").glob("*/children")
            for child in task.read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return [pid, *(member for child in children for member in family(child))]


def dying(account: str) -> list[str]:
    """A prefix that runs a program as ACCOUNT, if root may choose, until the thread that started it
    ends.

    The last of the prefixes, since the kernel forgets that wish at every change of a user.
    """
    found = pwd.getpwnam(account) if os.geteuid() == 0 else None
    to_account = (
        [f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--init-groups"] if found else []
    )
    return ["setpriv", *to_account, "--pdeathsig", "KILL"]


def own(account: str, *paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            shutil.chown(path, account, pwd.getpwnam(account).pw_gid)


class SmallDisk:
    """A tmpfs at PLACE that only programs with its prefix see there; PATH is where others find
    it.
    """

    def __init__(self, place: Path) -> None:
        self.log = place.with_name("small-disk.log")
        root = os.geteuid() == 0
        mount = (
            f'mount -t tmpfs -o size={SMALL_DISK}m,mode=0755 none "$0" && echo mounted >&2 && exec'
            " sleep infinity"
        )
        unshare = ["unshare", "--mount"] if root else ["unshare", "--map-root-user", "--mount"]
        with self.log.open("wb") as log:
            self.keeper = subprocess.Popen(
                [*unshare, "setpriv", "--pdeathsig", "KILL", "sh", "-c", mount, place],
                stderr=log,
                env=ENVIRON,
                cwd="/",
            )
        wait_until(
            lambda: b"mounted" in self.log.read_bytes() or self.keeper.poll() is not None, "mount"
        )
        if self.keeper.poll() is not None:
            raise RuntimeError(f"no small disk: {self.log.read_text()}")
        self.path = Path(f"/proc/{self.keeper.pid}/root{place}")
        self.prefix = ["nsenter", f"--target={self.keeper.pid}", "--mount"]
        if not root:  # root in there, which PostgreSQL would not be
            self.prefix += ["--user", "--preserve-credentials"]
            self.prefix += [
                "unshare",
                "--user",
                f"--map-user={os.geteuid()}",
                f"--map-group={os.getegid()}",
            ]

    def fill(self) -> None:
        """Leaves no room for another block."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                return

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def remove(self) -> None:
        self.keeper.kill()
        self.keeper.wait()


class Templates:
    """A directory for servers, with certificates and new data directories, each made when it is
    first asked for.
    """

    def __init__(self) -> None:
        self.directory = Path(
            tempfile.mkdtemp(prefix="greycheck-", dir="/tmp")
        )  # short, for names of sockets
        self.directory.chmod(0o755)
        self.numbers: dict[str, int] = {}

    def new_directory(self, kind: str, account: str) -> Path:
        self.numbers[kind] = number = self.numbers.get(kind, 0) + 1
        directory = self.directory / f"{kind}-{number}"
        directory.mkdir(mode=0o755)
        own(account, directory)
        return directory

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    @functools.cached_property
    def certificates(self) -> Path:
        """A directory with ca.pem, server.pem and server.key, and foreign.pem, the certificate of a
        CA that signed nothing.
        """
        directory = self.directory / "certificates"
        directory.mkdir()
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        request = ["openssl", "req", "-x509", "-days", "2", *key]
        ca = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        for name in ("ca", "foreign"):
            files = ["-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"]
            run([*request, "-subj", f"/CN=greycheck's {name}", *ca, *files])
        # OpenSSL's own configuration would make this a CA too.
        words = directory / "server.cnf"
        words.write_text(
            "[req]\ndistinguished_name=name\nx509_extensions=server\n[name]\n[server]\nbasicConstraints=critical,CA:FALSE\n"
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        signer = ["-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-config", words]
        files = ["-keyout", directory / "server.key", "-out", directory / "server.pem"]
        run([*request, "-subj", "/CN=localhost", *signer, *files])
        return directory

    @functools.cached_property
    def postgres(self) -> Path:
        directory = self.new_directory("new-postgres", Postgres.account)
        words = [
            "--username=postgres",
            "--no-locale",
            "--encoding=UTF8",
            "--no-sync",
            "--no-instructions",
        ]
        run(["initdb", *words, "-D", directory], prefix=dying(Postgres.account))
        (directory / "pg_hba.conf").write_text(
            "local all postgres trust\nlocal replication postgres trust\n"
            "local all all scram-sha-256\nhost all all 127.0.0.0/8 scram-sha-256\n"
        )
        statements = (
            f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'\nCREATE DATABASE {DATABASE} OWNER"
            f" {USER}\n"
        )
        single = [
            "postgres",
            "--single",
            "-D",
            directory,
            "-c",
            "fsync=off",
            "-c",
            "exit_on_error=on",
            "postgres",
        ]
        run(single, statements, prefix=dying(Postgres.account))
        return directory

    @functools.cached_property
    def mariadb(self) -> Path:
        directory = self.new_directory("new-mariadb", MariaDB.account)
        statements = self.directory / "mariadb.sql"
        statements.write_text(
            "FLUSH PRIVILEGES;\n"
            f"CREATE USER {USER} IDENTIFIED BY '{PASSWORD}';\n"
            f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4;\nGRANT ALL ON {DATABASE}.* TO"
            f" {USER};\n"
        )
        words = [
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-log-bin",
        ]
        log_size = f"--innodb-log-file-size={MariaDB.settings['innodb_log_file_size']}"
        # In /tmp, two of them at once would take each other's tables for their own.
        own_tmp = self.new_directory("tmp-mariadb", MariaDB.account)
        places = [f"--datadir={directory}", f"--tmpdir={own_tmp}", f"--extra-file={statements}"]
        install = ["mariadb-install-db", *words, log_size, *places]
        run(install, prefix=dying(MariaDB.account))
        return directory

    @functools.cached_property
    def galera(self) -> Path:
        """The data of a cluster of one that was left in order, which is what makes it a
        Galera's.
        """
        with GaleraNode(self, self.mariadb, [GaleraPorts()], 0) as node:
            node.start(wsrep_new_cluster="ON")
            node.stop()
            (node.data / "galera.cache").unlink()
            directory = self.new_directory("new-galera", MariaDB.account)
            run(["cp", "-a", f"{node.data}/.", directory])
        return directory


class Server:
    """What servers have in common: a directory, a port, a process, and an administrator on the unix
    socket.
    """

    kind: ClassVar[str]
    account: ClassVar[str]
    dialect: ClassVar[str]
    driver: ClassVar[str]
    ending: ClassVar[signal.Signals]  # asks for a clean end, without waiting for clients

    def __init__(
        self, templates: Templates, template: Path | None, *, small_disk: bool = False
    ) -> None:
        self.directory = templates.new_directory(self.kind, self.account)
        self.data = self.directory / "data"
        self.data.mkdir(mode=0o700)
        own(self.account, self.data)
        self.port = free_port()
        self.log = self.directory / "log"
        self.ca = templates.certificates / "ca.pem"
        self.foreign_ca = templates.certificates / "foreign.pem"
        self.certificate, self.key = self.directory / "server.pem", self.directory / "server.key"
        for path in (self.certificate, self.key):
            shutil.copy(templates.certificates / path.name, path)
            own(self.account, path)
        self.key.chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen: list[int] = []
        self.disk = SmallDisk(self.data) if small_disk else None
        if template:
            run(["cp", "-a", f"{template}/.", self.disk.path if self.disk else self.data])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # What each kind says in its own way.

    def command(self, **settings: object) -> list[str]:
        """The server's command line."""
        raise NotImplementedError

    def socket_query(self) -> dict[str, str]:
        """What a URL says after its question mark to use the unix socket."""
        raise NotImplementedError

    def client(self, database: str) -> list[str]:
        """The command line client as the administrator, for statements on its standard input."""
        raise NotImplementedError

    def rows(self, said: str) -> list[tuple[str, ...]]:
        """The rows that the client printed."""
        raise NotImplementedError

    def create(self, database: str) -> None:
        """Makes a DATABASE that belongs to the ordinary user."""
        raise NotImplementedError

    def drop(self, database: str) -> None:
        """Takes a DATABASE away, and the connections to it."""
        raise NotImplementedError

    # What all do alike.

    def url(
        self,
        database: str = DATABASE,
        driver: str | None = None,
        user: str = USER,
        password: str = PASSWORD,
        via: Literal["tcp", "socket"] = "tcp",
        host: str = "127.0.0.1",
        **query: str,
    ) -> str:
        """SQLAlchemy's URL of a DATABASE; without a driver's name if DRIVER is empty."""
        driver = self.driver if driver is None else driver
        scheme = f"{self.dialect}+{driver}" if driver else self.dialect
        where = f"{host}:{self.port}" if via == "tcp" else ""
        query = query if via == "tcp" else {**self.socket_query(), **query}
        said = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{where}/{database}"
        return f"{said}?{urlencode(query)}" if query else said

    def sql(
        self, statement: str, database: str = DATABASE, timeout: float = PATIENCE
    ) -> list[tuple[str, ...]]:
        """The rows of the administrator's STATEMENT or statements, each committed for itself."""
        return self.rows(run(self.client(database), f"{statement};\n", timeout))

    def start(self, **settings: object) -> None:
        """Sees to it that it runs and answers, whatever a test did to it.

        SETTINGS are for a server that did not run.
        """
        self.thaw()
        self.launch(**settings)
        self.wait_ready()

    def restart(self, **settings: object) -> None:
        """Starts it anew with SETTINGS, which count until it ends."""
        self.stop()
        self.start(**settings)

    def launch(self, **settings: object) -> None:
        """Starts the process, if none runs, and does not wait."""
        if self.is_running():
            return
        prefix = [*(self.disk.prefix if self.disk else []), *dying(self.account)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *self.command(**settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRON,
                cwd="/",
            )

    def wait_ready(self) -> None:
        wait_until(
            lambda: not self.is_running() or self.is_up(), f"{self.directory} is up", self.tail
        )
        if not self.is_running():
            raise RuntimeError(f"{self.directory} does not start\n{self.tail()}")

    def tail(self) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_up(self) -> bool:
        """Whether it answers."""
        if self.frozen or not self.is_running():
            return False
        try:
            return self.answers()
        except (RuntimeError, subprocess.TimeoutExpired):
            return False

    def answers(self) -> bool:
        return self.sql("SELECT 1", "", timeout=5) == [("1",)]

    def stop(self) -> None:
        """Ends it cleanly, clients or not."""
        self.thaw()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.ending)
            self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Ends it and its children as a kernel without memory does."""
        if self.is_running():
            self.freeze()
            assert self.process is not None
            for pid in reversed(self.frozen):
                os.kill(pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
            for pid in self.frozen[1:]:  # their memory is the next server's hindrance
                wait_until(lambda pid=pid: state_of(pid) in ("", "Z"), f"process {pid} is gone")  # type: ignore[misc]
        self.frozen = []

    def freeze(self) -> None:
        """Stops it and its children: the kernel goes on to accept connections for them."""
        if self.frozen or not self.is_running():
            return
        assert self.process is not None
        self.freeze_one(self.process.pid)  # makes no further children
        self.frozen = family(self.process.pid)
        for pid in self.frozen[1:]:
            self.freeze_one(pid)

    @staticmethod
    def freeze_one(pid: int) -> None:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return
        wait_until(lambda: state_of(pid) in ("", "T", "Z"), f"process {pid} is stopped")

    def thaw(self) -> None:
        for pid in reversed(self.frozen):
            if state_of(pid) == "T":
                os.kill(pid, signal.SIGCONT)
        self.frozen = []

    def fill_disk(self) -> None:
        assert self.disk, "small_disk=True gives it one"
        self.disk.fill()

    def free_disk(self) -> None:
        assert self.disk, "small_disk=True gives it one"
        self.disk.free()

    def empty(self, database: str = DATABASE) -> None:
        """Leaves no table in a DATABASE that there is, nor a connection to it."""
        self.drop(database)
        self.create(database)

    def remove(self) -> None:
        self.kill()
        if self.disk:
            self.disk.remove()
        shutil.rmtree(self.directory, ignore_errors=True)


class Postgres(Server):
    """A PostgreSQL, or with a PRIMARY a hot standby of that."""

    kind, account, dialect, driver = "postgres", "postgres", "postgresql", "psycopg2"
    ending = signal.SIGINT
    settings: ClassVar[dict[str, object]] = {
        "fsync": "off",  # a killed server loses nothing: the kernel has it
        "shared_buffers": "16MB",
        "max_connections": 50,
        "max_wal_senders": 4,
        "wal_keep_size": "1GB",  # whoever stops a standby for a while need not make another
        "autovacuum": "off",
        "checkpoint_timeout": "1h",  # one on a full disk ends the server
        "jit": "off",
        "ssl": "on",
    }

    def __init__(
        self, templates: Templates, *, small_disk: bool = False, primary: "Postgres | None" = None
    ) -> None:
        self.templates, self.primary = templates, primary
        super().__init__(templates, None if primary else templates.postgres, small_disk=small_disk)
        self.socket_directory = self.directory
        if primary:
            where = f"host={primary.socket_directory} port={primary.port} user=postgres"
            words = [
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                f"--dbname={where}",
                "-D",
                str(self.data),
            ]
            run(["pg_basebackup", *words], prefix=dying(self.account))

    def standby(self) -> "Postgres":
        """A further server that follows this one, which must run; yet to be started.

        ``SELECT pg_promote()`` makes it a primary.
        """
        return Postgres(self.templates, primary=self)

    def catch_up(self) -> None:
        """Waits until a standby has all that its primary has."""
        assert self.primary, "this is no standby"
        written = self.primary.sql("SELECT pg_current_wal_insert_lsn()", "")[0][0]
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
        wait_until(
            lambda: self.sql(replayed, "") == [("t",)], f"{self.directory} has {written}", self.tail
        )

    def command(self, **settings: object) -> list[str]:
        own_settings: dict[str, object] = {
            "port": self.port,
            "listen_addresses": f"127.0.0.1,{ELSEWHERE}",
            "unix_socket_directories": self.socket_directory,
            "ssl_cert_file": self.certificate,
            "ssl_key_file": self.key,
        }
        said = {**self.settings, **own_settings, **settings}
        return [
            "postgres",
            "-D",
            str(self.data),
            *(word for name in said for word in ("-c", f"{name}={said[name]}")),
        ]

    def socket_query(self) -> dict[str, str]:
        return {"host": str(self.socket_directory), "port": str(self.port)}

    def client(self, database: str) -> list[str]:
        words = [
            "-XAtq",
            "-F",
            "\x1f",
            "-R",
            "\x1e",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            "VERBOSITY=verbose",
        ]
        return [
            "psql",
            *words,
            "-h",
            str(self.socket_directory),
            "-p",
            str(self.port),
            "-U",
            "postgres",
            database or "postgres",
        ]

    def rows(self, said: str) -> list[tuple[str, ...]]:
        return (
            [tuple(row.split("\x1f")) for row in said.removesuffix("\n").split("\x1e")]
            if said
            else []
        )

    def create(self, database: str) -> None:
        self.sql(f"CREATE DATABASE {database} OWNER {USER}", "")

    def drop(self, database: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)", "")

    def empty(self, database: str = DATABASE) -> None:
        # A new database would be a thousand files.
        others = f"FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        self.sql(
            f"SELECT pg_terminate_backend(pid, {PATIENCE}000) {others}; DROP OWNED BY {USER}; DROP"
            " SCHEMA public CASCADE;"
            "CREATE SCHEMA public AUTHORIZATION pg_database_owner; GRANT USAGE ON SCHEMA public TO"
            " PUBLIC",
            database,
        )


class MariaDB(Server):
    """A MariaDB that belongs to no cluster."""

    kind, account, dialect, driver = "mariadb", "mysql", "mysql", "mysqldb"
    ending = signal.SIGTERM
    settings: ClassVar[dict[str, object]] = {
        "skip_name_resolve": "ON",
        "character_set_server": "utf8mb4",
        "performance_schema": "OFF",
        "innodb_buffer_pool_size": "16M",
        "innodb_log_file_size": "8M",
        "innodb_flush_log_at_trx_commit": 2,  # a killed server loses nothing: the kernel has it
        "innodb_doublewrite": 0,
        "binlog_format": "ROW",
        "innodb_autoinc_lock_mode": 2,
        # Who crashes, of a full disk say, is gone at once: while it prints a trace, for seconds,
        # its other threads go on answering.
        "stack_trace": "OFF",
    }

    def __init__(
        self, templates: Templates, template: Path | None = None, *, small_disk: bool = False
    ) -> None:
        super().__init__(templates, template or templates.mariadb, small_disk=small_disk)
        self.socket = self.directory / "socket"

    def command(self, **settings: object) -> list[str]:
        own_settings: dict[str, object] = {
            "datadir": self.data,
            "tmpdir": self.directory,
            "socket": self.socket,
            "pid_file": self.directory / "pid",
            "port": self.port,
            "bind_address": f"127.0.0.1,{ELSEWHERE}",
            "ssl_ca": self.ca,
            "ssl_cert": self.certificate,
            "ssl_key": self.key,
        }
        said = {**self.settings, **own_settings, **settings}
        return ["mariadbd", "--no-defaults", *(f"--{name}={said[name]}" for name in said)]

    def socket_query(self) -> dict[str, str]:
        return {"unix_socket": str(self.socket)}

    def client(self, database: str) -> list[str]:
        words = [
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--skip-ssl",
            "--no-auto-rehash",
            "--default-character-set=utf8mb4",
        ]
        return [
            "mariadb",
            *words,
            f"--socket={self.socket}",
            "--user=root",
            f"--database={database}",
        ]

    def rows(self, said: str) -> list[tuple[str, ...]]:
        return [tuple(row.split("\t")) for row in said.splitlines()]

    def create(self, database: str) -> None:
        self.sql(f"CREATE DATABASE {database}; GRANT ALL ON {database}.* TO {USER}", "")

    def drop(self, database: str) -> None:
        # An open transaction would hold it up: all connections of the ordinary user end.
        self.sql(f"KILL USER {USER}; DROP DATABASE IF EXISTS {database}", "")


class GaleraPorts:
    """The ports of a node, besides that for clients."""

    def __init__(self) -> None:
        self.group, self.transfer, self.increments = free_port(), free_port(), free_port()


class GaleraState(NamedTuple):
    """How a node sees its cluster."""

    status: str  # Primary or non-Primary
    state: str  # Synced, ...
    size: int


class GaleraNode(MariaDB):
    """A node of a Galera, with the data of TEMPLATE."""

    kind = "galera"

    def __init__(
        self, templates: Templates, template: Path, ports: Sequence[GaleraPorts], number: int
    ) -> None:
        super().__init__(templates, template)
        own = ports[number]
        timers = (  # Those that ship would tell a dead node after 6.4 s.
            "evs.keepalive_period=PT0.2S;evs.inactive_check_period=PT0.1S;evs.suspect_timeout=PT1S;evs.inactive_timeout=PT2S;"
            "evs.install_timeout=PT1S;evs.join_retrans_period=PT0.2S;gmcast.peer_timeout=PT1S;gmcast.time_wait=PT0.5S;"
            "pc.announce_timeout=PT1S"
        )
        self.wsrep = {
            "wsrep_on": "ON",
            # Where it is on, from MariaDB 11.4, no option can be changed at run time.
            "loose_plugin_wsrep_provider": "OFF",
            "wsrep_provider": GALERA,
            "wsrep_cluster_name": "greycheck",
            "wsrep_cluster_address": "gcomm://"
            + ",".join(f"127.0.0.1:{node.group}" for node in ports),
            "wsrep_node_name": f"node{number}",
            "wsrep_node_address": f"127.0.0.1:{own.group}",
            "wsrep_node_incoming_address": f"127.0.0.1:{self.port}",
            "wsrep_sst_method": "rsync",
            "wsrep_sst_receive_address": f"127.0.0.1:{own.transfer}",
            "wsrep_provider_options": f"base_host=127.0.0.1;base_port={own.group};"
            f"gmcast.listen_addr=tcp://127.0.0.1:{own.group};ist.recv_addr=127.0.0.1:{own.increments};"
            f"ist.recv_bind=127.0.0.1:{own.increments};gcache.size=8M;gcache.page_size=8M;{timers}",
        }

    def command(self, **settings: object) -> list[str]:
        return super().command(**{**self.wsrep, **settings})

    def answers(self) -> bool:
        """Whether it does, and not only that it is no part of a cluster."""
        return self.galera_state()[:2] == ("Primary", "Synced")

    def galera_state(self) -> GaleraState:
        names = ("wsrep_cluster_status", "wsrep_local_state_comment", "wsrep_cluster_size")
        found = {
            row[0]: row[1]
            for row in self.sql(f"SHOW GLOBAL STATUS WHERE Variable_name IN {names}", "", timeout=5)
        }
        status, state, size = (found[name] for name in names)
        return GaleraState(status, state, int(size))

    def rejoin(self) -> None:
        """Comes back after a kill, and waits until it is synced."""
        log = self.directory / "recovery.log"
        log.unlink(missing_ok=True)
        run(self.command(wsrep_recover="ON", log_error=log), prefix=dying(self.account))
        position = re.search(r"Recovered position:\s*(\S+)", log.read_text())
        assert position, log.read_text()
        self.start(wsrep_start_position=position.group(1))

    def provide(self, option: str) -> None:
        self.sql(f"SET GLOBAL wsrep_provider_options='{option}'", "")


class Galera:
    """Three nodes, which start as if all had crashed together: at once and without a transfer."""

    def __init__(self, templates: Templates, size: int = 3) -> None:
        self.templates = templates
        self.size = size
        self.nodes: list[GaleraNode] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """A new cluster, if this one is not whole: then the nodes are others, and what they stored
        is gone.
        """
        if self.nodes and all(
            node.is_up() and node.galera_state().size == self.size for node in self.nodes
        ):
            return
        self.remove()
        ports = [GaleraPorts() for _ in range(self.size)]
        self.nodes = [
            GaleraNode(self.templates, self.templates.galera, ports, number)
            for number in range(self.size)
        ]
        members = sorted(str(uuid.uuid1()) for _ in self.nodes)
        view = "".join(f"member: {member} 0\n" for member in members)
        for node, member in zip(self.nodes, members, strict=True):
            saved = node.data / "gvwstate.dat"
            saved.write_text(
                f"my_uuid: {member}\n#vwbeg\nview_id: 3 {members[0]} 3\nbootstrap:"
                f" 0\n{view}#vwend\n"
            )
            own(node.account, saved)
        for node in self.nodes:
            node.launch()
        for number in range(self.size):
            self.wait_synced(number)

    def wait_synced(self, number: int, size: int | None = None) -> None:
        """Waits until a node is synced in a cluster of SIZE nodes, or of all that run, and the
        others of them agree.
        """
        node = self.nodes[number]
        size = size or sum(one.is_running() and not one.frozen for one in self.nodes)
        node.wait_ready()

        def agreed() -> bool:
            synced = [one for one in self.nodes if one.is_up() and one.galera_state().size == size]
            return node in synced and len(synced) == size

        wait_until(agreed, f"{node.directory} is synced with {size - 1} more", node.tail)

    def isolate(self, number: int) -> None:
        """Cuts a node off the others, and waits until all have noticed."""
        self.nodes[number].provide("gmcast.isolate=1")
        wait_until(
            lambda: self.nodes[number].galera_state().status == "non-Primary",
            "the cut is noticed",
            self.nodes[number].tail,
        )
        others = [
            other
            for other in range(self.size)
            if other != number and self.nodes[other].is_running()
        ]
        for other in others:
            self.wait_synced(other, len(others))

    def heal(self) -> None:
        """Ends all cuts, and waits until all nodes that run are synced."""
        running = [number for number in range(self.size) if self.nodes[number].is_running()]
        for number in running:
            self.nodes[number].provide("gmcast.isolate=0")
        for number in running:
            self.wait_synced(number)

    def empty(self, database: str = DATABASE) -> None:
        """Leaves no table in a DATABASE, nor a connection to any node."""
        for node in self.nodes:
            node.sql(f"KILL USER {USER}", "")
        self.nodes[0].empty(database)

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()
        self.nodes = []


@pytest.fixture(scope="session")
def templates() -> Iterator[Templates]:
    """New data directories and certificates."""
    made = Templates()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def postgres(templates: Templates) -> Iterator[Postgres]:
    """A PostgreSQL for all tests: one that breaks it calls ``start()`` when it is done, one that
    stores calls ``empty()``.
    """
    with Postgres(templates) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def standby(postgres: Postgres) -> Iterator[Postgres]:
    """A hot standby of that PostgreSQL."""
    with postgres.standby() as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def mariadb(templates: Templates) -> Iterator[MariaDB]:
    """A MariaDB for all tests, on the same terms."""
    with MariaDB(templates) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def galera(templates: Templates) -> Iterator[Galera]:
    """A Galera for all tests, on the same terms."""
    with Galera(templates) as cluster:
        cluster.start()
        yield cluster
