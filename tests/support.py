"""The forked child as tests run it, and stores that they can age."""

import copy
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    NullPool,
    case,
    create_engine,
    delete,
    inspect,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError

from greycheck.policy import Change, Rows
from greycheck.resident import batch_store, together
from greycheck.settings import Settings, read
from greycheck.store import base, connect, drivers, writing
from greycheck.store.admin import rulebook
from greycheck.store.base import Asked
from greycheck.store.causes import Again
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import (
    authorised,
    client,
    correspondent,
    domain,
    history,
    provider,
    rule,
    spf,
    triplet,
)
from greycheck.unknown import Identity, Pending
from tests.servers import USER, GaleraNode, Server, wait_until

ROOT = Path(__file__).parent.parent

# A launcher under coverage: the interpreter with its site, and data saved at the exit that skips
# everything else.
MEASURED = f"""#!{sys.executable} -I
import posix, sys
sys.path.insert(0, {str(ROOT)!r})
import coverage
measure = coverage.Coverage(config_file={str(ROOT / "pyproject.toml")!r}, data_file={str(ROOT / ".coverage")!r}, data_suffix=True)
measure.start()
def saving(leave):
    def save_and_leave(*arguments):
        measure.stop()
        measure.save()
        leave(*arguments)
    return save_and_leave
posix._exit, posix.execv = saving(posix._exit), saving(posix.execv)
from greycheck.child import main
main(({sys.executable!r}, "-I", "-m", "greycheck"))
"""  # noqa: E501

ACCEPTED, REJECTED, DEFERRED = 0, 100, 101

CLIENT = "192.0.2.1"
SENDER = b"alice@example.org"
RECIPIENT = b"bob@example.net"

# --- stores ---------------------------------------------------------------------------------------

# What the fixture ``database`` can be: a dialect with its quickest driver, or with the other one.
DATABASES = ("sqlite", "postgresql", "mariadb")
SCHEMES = {"postgresql": "postgresql", "mysql": "mariadb"}
OTHER_DRIVERS = tuple(
    f"{scheme}+{name}" for dialect, scheme in SCHEMES.items() for name in drivers.names(dialect)[1:]
)
# What stands in a driver's place where a store is connected to as the resident does.
RESIDENT = "resident"
# Each driver with the fixture of a server that it speaks to.
FIXTURES = {"postgresql": "postgres", "mysql": "mariadb"}
DRIVERS = [(FIXTURES[record.dialect], name) for name, record in drivers.RECORDS.items()]

on_every_database = pytest.mark.parametrize("database", DATABASES, indirect=True)
with_every_driver = pytest.mark.parametrize("database", DATABASES + OTHER_DRIVERS, indirect=True)
# Each kind of store, as a child asks it and as a resident does; and through every driver too.
STORES = [*DATABASES, *(f"{scheme}+{RESIDENT}" for scheme in DATABASES)]
in_every_store = pytest.mark.parametrize("database", STORES, indirect=True)
in_every_way = pytest.mark.parametrize("database", [*STORES, *OTHER_DRIVERS], indirect=True)
on_every_server = pytest.mark.parametrize("database", DATABASES[1:] + OTHER_DRIVERS, indirect=True)

# Also with programs in C, which ask a resident that serves the test's store (see ``conftest.way``);
# and not so.
both_ways = pytest.mark.both_ways
one_way = pytest.mark.one_way

# The columns that hold a time, or NULL.
TIMES = {
    triplet: ("first_attempt", "last_attempt", "passed_at", "expires_at"),
    client: ("first_seen", "last_seen", "expires_at"),
    rule: ("created_at", "expires_at"),
    domain: ("first_seen", "last_seen", "expires_at"),
    spf: ("answered_at", "asked_at", "next_at", "expires_at"),
    authorised: ("added_at", "expires_at"),
    provider: ("created_at", "answered_at", "asked_at", "expires_at"),
    correspondent: ("first_seen", "last_seen", "expires_at"),
}


def tell_residents(connection: Connection) -> None:
    """Has residents over a server read the rules again, where its schema is new enough for that."""
    if connection.dialect.name != "sqlite" and inspect(connection).has_table("generation"):
        rulebook.change_generation(connection)


def only_settings(monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str] | None = None) -> None:
    """Has commands in this process read no settings but the variables GIVEN."""
    for name in list(os.environ):
        if name.startswith("GREYCHECK"):
            monkeypatch.delenv(name)
    for name, value in {"GREYCHECK_CONFIG": "/dev/null", **(given or {})}.items():
        monkeypatch.setenv(name, value)


class Database(ABC):
    """A store for tests: ``url`` is where it is, and ``directory`` where checks may leave their
    marks.
    """

    url: str
    directory: Path

    @property
    def environ(self) -> dict[str, str]:
        """The settings of a child that uses it."""
        return {
            "GREYCHECK_DATABASE": self.url,
            "GREYCHECK_STATE_DIRECTORY": str(self.directory),
            # A verdict is what most tests are about, not how long a busy machine takes for it.
            "GREYCHECK_DEADLINE": "60s",
        }

    @abstractmethod
    def make(self) -> None:
        """Sees to it that there are tables, without rows."""

    @abstractmethod
    def begin(self) -> AbstractContextManager[Connection]:
        """A transaction on it."""

    def connect(self, patience: float) -> "base.Connected":
        """A check's connection, which waits PATIENCE seconds at most."""
        environ = {"GREYCHECK_CONFIG": "/dev/null", **self.environ}
        return connect(
            read({os.fsencode(name): os.fsencode(value) for name, value in environ.items()}),
            patience,
        )

    def leave(self) -> None:  # noqa: B027
        """Closes what checks have opened of a file."""

    def empty(self) -> None:
        """Removes all rows."""
        with self.begin() as connection:
            for table in (*TIMES, provider, history):
                connection.execute(delete(table))
            tell_residents(connection)

    def execute(self, statement: Executable, values: Sequence[Mapping[str, object]] = ()) -> None:
        """Executes a STATEMENT and commits, once for each of VALUES where there are any.

        Where it changes rules, residents are told.
        """
        with self.begin() as connection:
            connection.execute(statement, values or None)
            if getattr(statement, "table", None) is rule:
                tell_residents(connection)

    def rows(self, query: str | Executable) -> list[tuple[object, ...]]:
        """The rows of a QUERY."""
        with self.begin() as connection:
            found = connection.execute(text(query) if isinstance(query, str) else query)
            return [
                tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in found
            ]

    def age(self, seconds: int) -> None:
        """Moves all that the store knows SECONDS into the past (or the future, if negative)."""
        struck = client.c.struck_until
        with self.begin() as connection:
            for table, names in TIMES.items():
                connection.execute(
                    update(table).values({name: table.c[name] - seconds for name in names})
                )
            tell_residents(connection)
            connection.execute(
                update(client).values(
                    struck_until=case((struck > seconds, struck - seconds), else_=0)
                )
            )


class SQLiteFile(Database):
    """The SQLite file PATH, which the first check makes, or ``make`` as a copy of TEMPLATE;
    ``is_kept`` where it is a resident's.
    """

    def __init__(self, path: Path, template: Path | None = None, is_kept: bool = False) -> None:
        self.path = path
        self.is_kept = is_kept
        self.template = template
        self.url = f"sqlite:///{path}"
        self.directory = path.parent
        self.opened: list[base.Connected] = []

    def make(self) -> None:
        if self.template is None or self.path.exists():
            migrate.upgrade(self.url)
        else:
            shutil.copy(self.template, self.path)

    def begin(self) -> AbstractContextManager[Connection]:
        return self._engine.begin()

    def connect(self, patience: float) -> "base.Connected":
        self.opened.append(Batches(self.path) if self.is_kept else super().connect(patience))
        return self.opened[-1]

    def leave(self) -> None:
        """Closes what checks have opened: Python 3.13 warns of what nobody closed."""
        while self.opened:
            self.opened.pop().close()

    @cached_property
    def _engine(self) -> Engine:
        return create_engine(self.url, poolclass=NullPool)


class Batches:
    """The resident's connection to the SQLite file PATH as a check has one: all that it asks is a
    batch of its own.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self._store = batch_store.Store(str(path))
        self._is_locked = False

    @contextmanager
    def _reading(self) -> Iterator[batch_store.Store]:
        if self._is_locked:
            yield self._store
            return
        self._store.begin_reading()
        try:
            yield self._store
        finally:
            self._store.commit()

    def lookup(self, asked: Asked, now: int) -> Rows:
        with self._reading() as store:
            return store.lookup(asked, now)

    def waiting(self, asked: Asked, since: int, now: int, settings: Settings) -> Pending:
        with self._reading() as store:
            return store.waiting(asked, since, now, settings)

    def identity(self, asked: Asked, now: int, settings: Settings) -> Identity:
        with self._reading() as store:
            return store.identity(asked, now, settings)

    def networks(self, asked: Asked, since: int, settings: Settings) -> Sequence[str]:
        with self._reading() as store:
            return store.networks(asked, since, settings)

    def lock(self, _asked: Asked) -> None:
        wait_until(self._store.begin_writing, "nobody else writes")
        self._is_locked = True

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:
        if not self._is_locked:
            self.lock(asked)
        self._is_locked = False
        done = self._store.save(asked, changes, patient)
        self._store.commit()
        return done

    def tidy(self) -> None:
        """Each is one batch: nothing is left to do."""

    def close(self) -> None:
        self._store.close()

    def overdue(self) -> None:
        """A file is nobody's fault."""


# How a new database treats texts where nobody says anything else: as unlike SQLite as can be had
# for nothing.
COLLATIONS = {"postgresql": "", "mysql": "CHARACTER SET latin1 COLLATE latin1_swedish_ci"}


class ServerDatabase(Database):
    """A new database NAME of SERVER, with tables, and a connection that stays open.

    ``close`` ends that.
    """

    is_kept = False

    def __init__(
        self, server: Server, directory: Path, name: str = "verdicts", collation: str = ""
    ) -> None:
        self.server = server
        self.directory = directory
        self.name = name
        server.start()
        server.drop(name)
        server.sql(f"CREATE DATABASE {name} {collation or COLLATIONS[server.dialect]}", "")
        if server.dialect == "mysql":
            server.sql(f"GRANT ALL ON {name}.* TO {USER}", "")
        else:
            server.sql(f"ALTER DATABASE {name} OWNER TO {USER}", "")
        self.url = self._url(server.driver)
        connected_so: dict[str, str] = {}
        if server.dialect == "postgresql":
            connected_so["client_encoding"] = "utf8"
        elif isinstance(server, GaleraNode):
            # What a test reads or changes here, it does after all that any node has committed.
            connected_so["init_command"] = "SET SESSION wsrep_sync_wait = 15"
        self._engine = create_engine(
            self.url, pool_pre_ping=True, pool_size=1, connect_args=connected_so
        )
        migrate.upgrade(self.url)

    def seen_from(self, directory: Path, driver: str | None = None) -> "ServerDatabase":
        """The same database, through another DRIVER and with marks in another DIRECTORY.

        RESIDENT stands for the way in which the resident asks.
        """
        other = copy.copy(self)
        other.directory = directory
        other.is_kept = driver == RESIDENT
        other.url = self._url("" if other.is_kept else driver or self.server.driver)
        return other

    def connect(self, patience: float) -> "base.Connected":
        return Together(self, patience) if self.is_kept else super().connect(patience)

    def _url(self, driver: str) -> str:
        driver = driver or self.server.driver
        if (
            self.server.dialect == "postgresql"
        ):  # libpq would encrypt if it can, which takes most of the time of a check
            return self.server.url(self.name, driver, sslmode="disable")
        return self.server.url(self.name, driver)

    def make(self) -> None:
        """Sees to it that the server runs too, whatever others did to it."""
        try:
            self.empty()
        except DBAPIError:
            self.server.start()
            self.empty()

    def begin(self) -> AbstractContextManager[Connection]:
        return self._engine.begin()

    def close(self) -> None:
        self._engine.dispose()


class Together(together.Store):
    """The resident's connection to DATABASE as a check has one: all that it asks is a batch, but
    for a check that lost a race.
    """

    def __init__(self, database: ServerDatabase, patience: float) -> None:
        environ = {"GREYCHECK_CONFIG": "/dev/null", **database.environ}
        found = read({os.fsencode(name): os.fsencode(value) for name, value in environ.items()})
        super().__init__(found, patience, together.Shared())

    def lock(self, asked: Asked) -> None:
        self._is_batch = False
        self._wait_for_locks(self._lock_patience())
        super().lock(asked)

    def lookup(self, asked: Asked, now: int) -> Rows:
        found = None if self._session.in_transaction else self.look_up([asked], [now])
        return super().lookup(asked, now) if found is None else found[0]

    def waiting(self, asked: Asked, since: int, now: int, settings: Settings) -> Pending:
        [(others, known)] = self.what_waits([one := _one(asked, now, settings)])
        if others:
            return super().waiting(asked, since, now, settings)
        return self.pending(one, others, known)

    def identity(self, asked: Asked, now: int, settings: Settings) -> Identity:
        return self.what_waits([_one(asked, now, settings)])[0][1]

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:
        if not changes or self._session.in_transaction:
            return super().save(asked, changes, patient)
        one = _one(asked, 0, None)
        made = [(writing.statement(each), writing.parameters(asked, each)) for each in changes]
        one.changes = made
        done: list[object] = []
        with suppress(Again):
            self.save_all([one], done.append)
        return bool(done)


def _one(asked: Asked, now: int, settings: Settings | None) -> Any:
    """What stands for one question of a batch."""
    return SimpleNamespace(asked=asked, decision=SimpleNamespace(now=now, settings=settings))


# --- the child ------------------------------------------------------------------------------------


class Ran:
    """How a child ended: its exit CODE, its LOG and what it SAID, checked for having left
    descriptors 0 and 1 alone.
    """

    def __init__(self, code: int, log: bytes, said: bytes = b"") -> None:
        self.code = code
        self.log = log.decode()
        self.lines = self.log.splitlines()
        self.said = said.decode()

    @property
    def reason(self) -> str:
        found = re.search(r" reason=(\S+)", self.log)
        assert found, self.log
        return found.group(1)

    @property
    def verdict(self) -> tuple[int, str]:
        return self.code, self.reason

    def __repr__(self) -> str:
        return f"<{self.code} {self.log!r}>"


# A socket that nobody listens on: no resident of the machine answers a test.
NOWHERE = Path("/nonexistent/greycheck/socket")


class Child:
    """Runs the programs in the directory PROGRAMS against STORE, or the SQLite file of that path.

    ``socket`` is where those in C ask a resident; None is what was compiled in.
    """

    def __init__(
        self, programs: Path, store: Database | Path, socket: Path | None = NOWHERE
    ) -> None:
        self.programs = programs
        self.store = SQLiteFile(store) if isinstance(store, Path) else store
        self.socket = socket
        self.settings: dict[str, str] = {}

    @property
    def database(self) -> Path:
        """The SQLite file."""
        assert isinstance(self.store, SQLiteFile)
        return self.store.path

    @database.setter
    def database(self, path: Path) -> None:
        self.store = SQLiteFile(path)

    def environ(self, client: str | None = CLIENT, **more: str | bytes) -> dict[bytes, bytes]:
        """The environment that tcpserver gives, with the settings of this test."""
        environ: dict[str, str | bytes] = {
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "PROTO": "TCP",
            **self.store.environ,
            **self._asking,
            **self.settings,
            **more,
        }
        if client is not None:
            environ["TCPREMOTEIP"] = client
        return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}

    @property
    def _asking(self) -> dict[str, str]:
        """Where a resident is asked; a busy machine may take its time over the answer."""
        if self.socket is None:
            return {}
        return {"GREYCHECK_SOCKET": str(self.socket), "GREYCHECK_SOCKET_PATIENCE": "60s"}

    def smtpextfork(
        self,
        sender: str | bytes = SENDER,
        recipient: str | bytes = RECIPIENT,
        client: str | None = CLIENT,
        **more: str | bytes,
    ) -> Ran:
        """Runs it as SMTPEXTFORK does."""
        environ = self.environ(
            client, REMOTEMF=sender, REMOTERCPT=recipient, REMOTEHELO=b"client.example.org", **more
        )
        return self.run([self.programs / "greycheck"], environ)

    def checkenv(
        self,
        sender: str | bytes = SENDER,
        recipient: str | bytes = RECIPIENT,
        client: str | None = CLIENT,
        **more: str | bytes,
    ) -> Ran:
        """Runs it as CHECKENV does."""
        return self.run(
            [self.programs / "qmail-checkenv", sender, recipient], self.environ(client, **more)
        )

    def rcptcheck(
        self,
        sender: str | bytes = SENDER,
        recipient: str | bytes = RECIPIENT,
        client: str | None = CLIENT,
        **more: str | bytes,
    ) -> Ran:
        """Runs it as RCPTCHECK does."""
        environ = self.environ(client, SENDER=sender, RECIPIENT=recipient, **more)
        return self.run([self.programs / "greycheck-rcptcheck"], environ)

    def spp(
        self,
        sender: str | bytes = SENDER,
        recipient: str | bytes = RECIPIENT,
        client: str | None = CLIENT,
        counts: tuple[int, int] = (0, 1),
        port: str = "25025",
        **more: str | bytes,
    ) -> Ran:
        """Runs it as qmail-spp does, after so many recipients were accepted, and at the RCPT TO of
        that number (COUNTS).
        """
        envelope = {
            "SMTPMAILFROM": sender,
            "SMTPRCPTTO": recipient,
            "SMTPHELOHOST": b"client.example.org",
        }
        place = {
            "SMTPRCPTCOUNT": f"{counts[0]}",
            "SMTPRCPTCOUNTALL": f"{counts[1]}",
            "SMTPRCPTHOSTSOK": "1",
        }
        environ = self.environ(client, **({"TCPREMOTEPORT": port} | envelope | place | more))
        return self.run([self.programs / "greycheck-spp"], environ, speaks=True)

    def run(
        self, argv: Sequence[Path | bytes | str], environ: dict[bytes, bytes], **options: object
    ) -> Ran:
        """Runs ARGV with a pipe of SMTP commands on 0 and a watched pipe on 1, where it may say
        something only if it ``speaks``.
        """
        speaks = options.pop("speaks", False)
        reader, writer = os.pipe()
        os.write(writer, b"QUIT\r\n")
        try:
            ran = subprocess.run(  # type: ignore[call-overload]
                [os.fspath(argument) for argument in argv],
                env=environ,
                stdin=reader,
                capture_output=True,
                timeout=60,
                check=False,
                **options,
            )
            os.close(writer)
            writer = -1
            assert os.read(reader, 100) == b"QUIT\r\n", "the child read what the client sent"
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        assert speaks or ran.stdout == b"", "the child wrote to the client"
        return Ran(ran.returncode, ran.stderr, ran.stdout)

    def make_store(self) -> None:
        """Makes the store, as ``greycheck db upgrade`` does."""
        self.store.make()

    def age(self, seconds: int) -> None:
        """Moves all that the store knows SECONDS into the past (or the future, if negative)."""
        self.store.age(seconds)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """The rows of an SQL QUERY."""
        return self.store.rows(query)
