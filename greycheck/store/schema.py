"""The schema: alembic's migrations, the file that an embedded store is made of, and the revision it is at.

A newer schema may say that this program can use it (``lean.fits``); README.rst beside the migrations says how it does.

Interface: ``upgrade``, ``downgrade``, ``current``, ``head``, ``require``, ``standing``.

Diagnostics: ``SchemaError`` with what to do, in one line and never with a password.
"""

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from time import monotonic, sleep
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Column, Connection, MetaData, SmallInteger, String, Table, UniqueConstraint, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.schema import CreateTable

from greycheck.settings import SYSTEM_DIRECTORY
from greycheck.store import faults, rights, server, steps, upgrade_lock
from greycheck.store.engine import PATIENCE, autocommitting_engine, open_engine
from greycheck.store.lean import StoreError, fits, not_a_database
from greycheck.store.upgrade_lock import Tell

T = TypeVar("T")

_PACKAGE = Path(__file__).parent.parent


class SchemaError(Exception):
    """The schema cannot be made or is not the one that this program knows."""


def migrations() -> Path:
    """The directory of the migrations: in the package as installed, beside it in a checkout."""
    shipped = _PACKAGE / "migrations"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "migrations"


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest revision, which this program works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def known() -> list[str]:
    """The revisions that this program has migrations for, the oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


def standing(revision: str | None) -> str:
    """How a schema at REVISION stands to this program, in words, with what to do."""
    ours = head()
    if revision is None or revision == ours:
        return f"at {revision or 'nothing'}, this program is at {ours}"
    if fits(revision, ours):
        return f"at {revision}, newer than this program's {ours}, which can use it"
    if revision < ours:
        return f"at {revision}, older than this program's {ours}: run greycheck db upgrade"
    return f"at {revision}, newer than this program's {ours}: install the newer greycheck here too"


def current(url: str) -> str | None:
    """The revision that the database at URL is at; None where it has no schema, or is not there at all."""
    path = sqlite_path(url)
    if path is not None and not is_there(path):
        return None
    with _connect(url) as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_heads()
    if len(found) > 1:
        raise SchemaError(f"alembic_version says {' and '.join(sorted(found))}: delete all rows but the right one")
    return found[0] if found else None


def require(url: str) -> None:
    """Raises SchemaError where this program cannot use the schema of the database at URL."""
    found = current(url)
    if found is None:
        path = sqlite_path(url)
        why = "no such file: " if path is not None and not is_there(path) else ""
        if why and (cause := trouble(path)):
            raise SchemaError(cause)
        raise SchemaError(f"{shown(url)}: {why}there is no schema yet: run greycheck db upgrade")
    if not fits(found, head()):
        raise SchemaError(f"{shown(url)}: the schema is {standing(found)}")


def _moves_rows(revision: str | None) -> bool:
    """Whether the migration to REVISION takes a table away meanwhile.

    Where a table is away, that migration was stopped on its way back if so; if not, the one after it on its way there.
    """
    if revision is None:
        return False
    return bool(getattr(ScriptDirectory.from_config(_config()).get_revision(revision).module, "moves_rows", False))


def _silently(_text: str) -> None:
    """Tells nobody."""


def upgrade(url: str, mode: int = 0o600, tell: Tell = _silently) -> str:
    """Brings the database at URL to ``head`` and returns where it is then: further, where a newer program was here and this one can go on.

    An SQLite file is made with MODE where there is none. TELL is told whom this waits for.
    """
    path = sqlite_path(url)
    if path is not None:
        _refuse_root(path)
        make_file(path, mode)

    def bring_up(connection: Connection) -> str:
        found = _revision(connection)
        if found is not None and found not in known():
            if fits(found, head()):
                return found
            raise SchemaError(f"the schema is {standing(found)}")
        if steps.is_away(connection) and _moves_rows(found):
            raise SchemaError("a greycheck db downgrade was stopped here: finish that first")
        _prepare(connection)
        command.upgrade(_config(connection), "head")
        return head()

    return _change(url, bring_up, tell)


def downgrade(url: str, revision: str, tell: Tell = _silently) -> str | None:
    """Brings the database at URL down to REVISION (``base``: to nothing) and returns where it is then. TELL as for ``upgrade``."""
    if current(url) is None:
        raise SchemaError(f"{shown(url)}: there is no schema to take back")

    def take_back(connection: Connection) -> str | None:
        found = _revision(connection)
        if found is not None and found not in known():
            raise SchemaError(f"the schema is at {found}, which this program does not know: use the one that made it")
        if steps.is_away(connection) and not _moves_rows(found):
            raise SchemaError("a greycheck db upgrade was stopped here: finish that first")
        command.downgrade(_config(connection), revision)
        return _revision(connection)

    return _change(url, take_back, tell)


def _prepare(connection: Connection) -> None:
    """What has to be right before the first migration."""
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise SchemaError(
                f"the database's encoding is {encoding}, which has no place for every address: make another one,"
                " with CREATE DATABASE greycheck ENCODING 'UTF8' TEMPLATE template0"
            )
    if connection.dialect.name == "mysql" and not inspect(connection).has_table(_VERSION.name):
        connection.execute(CreateTable(_VERSION, if_not_exists=True))


# Alembic's own table where no transaction holds a migration together: nothing that two nodes of a cluster do can make it two rows.
_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), primary_key=True),
    Column("only_row", SmallInteger, nullable=False, server_default="1"),
    UniqueConstraint("only_row"),
    **steps.OPTIONS,
)


def _change(url: str, change: Callable[[Connection], T], tell: Tell) -> T:
    """What CHANGE returns, which is done as a whole or can be gone on with."""
    with _connect(url) as connection:
        if connection.dialect.name == "sqlite":
            with _transaction(connection):
                return change(connection)
        return upgrade_lock.patiently(connection, lambda: change(connection), tell)


@contextmanager
def _connect(url: str) -> Iterator[Connection]:
    """A connection to URL. Its faults, and those of the migrations, are a SchemaError of one line."""
    if not url:
        raise SchemaError("there is no store: the settings that say where it is cannot be used")
    try:
        with _opened(url) as connection:
            yield connection
    except DBAPIError as error:
        path = sqlite_path(url)
        raise SchemaError(trouble(path) or f"{shown(url)}: {faults.of(error)}{advice(error, path)}") from None
    except (SchemaError, StoreError, CommandError, steps.ForeignTable, upgrade_lock.Waited) as error:
        raise SchemaError(f"{shown(url)}: {error}") from None


@contextmanager
def _opened(url: str) -> Iterator[Connection]:
    try:
        engine = open_engine(url) if sqlite_path(url) is None else autocommitting_engine(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(str(error)) from None
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def trouble(path: Path | None) -> str:
    """Why the SQLite file PATH cannot be used, as far as its place or its disk tell: the cause, then one command. Else nothing."""
    if path is None:
        return ""
    try:
        if path.is_dir():
            return f"{path}: is a directory: set database to a file in it: {path}/greycheck.db"
        room = os.statvfs(path.parent)
    except FileNotFoundError:
        maker = f"install -d -m 0700 -o {quote(checker())} {quote(str(path.parent))}"
        return f"{path.parent}: no such directory: {maker}"
    except OSError:
        return ""
    mount = next(place for place in (path.parent, *path.parent.parents) if place.is_mount())
    if room.f_flag & os.ST_RDONLY:
        return f"{mount}: is mounted read-only: mount -o remount,rw {quote(str(mount))}"
    if room.f_bavail == 0 or (room.f_files and room.f_favail == 0):
        return f"{mount}: the disk is full: df -h {quote(str(mount))}"
    return ""


# Whom checks run as: on hosts with qmail, and on others, as the README has it.
CHECKERS = ("qmaild", "greycheck")


def checker() -> str:
    """Who is to own a store that is not there: who this is, or for root whoever checks run as here."""
    if os.geteuid() != 0:
        return rights.user_name(os.geteuid())
    for name in CHECKERS:
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return CHECKERS[0]


def advice(error: DBAPIError, path: Path | None = None) -> str:
    """What to do about an ERROR of the database, of the SQLite file PATH if it is one, where that is known."""
    words = str(error.orig)
    if upgrade_lock.code_of(error) in NOT_ALLOWED:
        return ": greycheck's user must own the database, or have all rights in it"
    if "locked" in words:
        who = f"fuser -v {quote(str(path))}" if path else "see who it is with fuser"
        return f": another process writes, and did for {PATIENCE:g}s: {who}"
    if "not a database" in words:
        return not_a_database(str(path)) if path else ": move it away, and the next mail makes a new one"
    if "readonly" in words or "unable to open" in words:
        return f": {user_name(os.geteuid())} may not write it, or its directory"
    return ""


# What servers say to who may not make a table: the error numbers of MySQL's dialect, PostgreSQL's SQLSTATE.
NOT_ALLOWED: set[object] = {1044, 1142, "42501"}


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """One transaction around SQLite's migrations, so that a kill leaves the old schema or the new one. Its lock keeps others out."""
    _use_write_ahead_log(connection)
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        # Interrupted, the connection is closed already, which is the same.
        if not connection.invalidated:
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _use_write_ahead_log(connection: Connection) -> None:
    """Journal mode WAL stays in the file. SQLite does not wait for a lock here, so this does."""
    end = monotonic() + PATIENCE
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except OperationalError as error:
            if "locked" not in str(error.orig) or monotonic() > end:
                raise
            sleep(0.01)
        else:
            return


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL; None for a server's, or where there is no store."""
    if not url.startswith("sqlite"):
        return None
    database = make_url(url).database
    return Path(database) if database else None


def _refuse_root(path: Path) -> None:
    try:
        rights.refuse_root(str(path.absolute()))
    except StoreError as error:
        raise SchemaError(str(error)) from None


def shown(url: str) -> str:
    """URL without its passwords."""
    if not url:
        return "no store"
    if url.startswith("sqlite:"):
        return url  # SQLAlchemy would write its path with escapes, which no setting takes
    try:
        server.parse(url)
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url.partition("://")[0] + "://..."
    secrets = [name for name in parsed.query if "passw" in name]
    return parsed.difference_update_query(secrets).render_as_string(hide_password=True)


def is_there(path: Path) -> bool:
    """Whether the file PATH exists. Raises SchemaError where that cannot be told."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SchemaError(f"{path}: {error.strerror}: {user_name(os.geteuid())} may not look there") from None
    return True


def make_file(path: Path, mode: int) -> None:
    """Makes the empty SQLite file PATH with permissions MODE, whatever the umask.

    Raises SchemaError where the directory is not there, or is somebody else's, who could put another file in its place.
    """
    try:
        directory = path.parent.stat()
        if is_there(path):
            return
        if directory.st_uid not in (0, os.geteuid()):
            raise SchemaError(_not_ours(path.parent, directory.st_uid))
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    except FileExistsError:
        return
    except PermissionError:
        raise SchemaError(_not_ours(path.parent, directory.st_uid)) from None
    except OSError as error:
        raise SchemaError(f"{error.filename}: {error.strerror}") from None
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _not_ours(directory: Path, owner: int) -> str:
    me = user_name(os.geteuid())
    # Of another directory than one of its own he is not to become the owner.
    place = str(directory) if directory.name == "greycheck" else SYSTEM_DIRECTORY
    command = f"install -d -m 0700 -o {quote(rights.user_name(os.geteuid()))} {quote(place)}"
    move = "" if place == str(directory) else f", and set database to {place}/greycheck.db"
    return f"{directory}: {me} cannot make a store here, its owner is {user_name(owner)}: {command}{move}"


def user_name(uid: int) -> str:
    """The name of user UID, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
