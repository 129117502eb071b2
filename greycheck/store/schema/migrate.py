"""Makes and migrates the schema with alembic, and makes the file of an SQLite store.

A newer schema may say that this program can use it (``base.fits``); migrations/README.rst says how.

A PLACE is a database as settings hold it, or its URL.

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
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    column,
    inspect,
    or_,
    select,
    table,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.schema import CreateTable

from greycheck.settings import SYSTEM_DIRECTORY, Database, database_at
from greycheck.store import base, causes, rights, sqlite_faults
from greycheck.store.admin import errors
from greycheck.store.admin.engine import LOCK_TIMEOUT, autocommitting_engine, open_engine
from greycheck.store.base import StoreError
from greycheck.store.causes import fits
from greycheck.store.schema import migration_ops, upgrade_lock
from greycheck.store.schema.tables import alembic_version, metadata
from greycheck.store.schema.upgrade_lock import Tell

T = TypeVar("T")
Place = Database | str

_PACKAGE = Path(__file__).parents[2]


class SchemaError(base.Advised):
    """The schema cannot be made, or this program cannot use it."""


def migrations() -> Path:
    """Returns the directory of the migrations.

    It is in the installed package, or next to the package in a checkout.
    """
    shipped = _PACKAGE / "migrations"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "migrations"


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Returns the newest revision, which this program works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def known() -> list[str]:
    """Returns the revisions that this program has migrations for, the oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][
        ::-1
    ]


def standing(revision: str | None) -> str:
    """Returns how a schema at REVISION stands to this program, in words, with what to do."""
    if revision is None:
        return f"not made yet, this program's is {head()}"
    return causes.standing(revision, head())


def misfit(revision: str | None) -> str:
    """Returns why this program cannot use a schema at REVISION, and what to do; empty if it can."""
    if revision is None:
        return "there is no schema yet: run greycheck db upgrade"
    return "" if fits(revision, head()) else f"the schema is {standing(revision)}"


def current(place: Place) -> str | None:
    """Returns the revision of the database at PLACE; None if it has no schema or does not exist."""
    database = _at(place)
    path = sqlite_path(database)
    if path is not None and not is_there(path):
        return None
    with _connect(database) as connection:
        if path is not None:
            _require_tables(connection, path)
        return _revision(connection)


def _require_tables(connection: Connection, path: Path) -> None:
    """Raises SchemaError where something else stands for a table in the SQLite file PATH.

    Nothing bounds what reading a view takes.
    """
    objects = table("sqlite_master", column("name"), column("type"), column("sql"))
    found = connection.scalar(
        select(objects.c.name)
        .where(
            objects.c.name.in_([*metadata.tables, alembic_version.name]),
            or_(objects.c.type != "table", objects.c.sql.startswith("CREATE VIRTUAL")),
        )
        .limit(1)
    )
    if found is not None:
        raise SchemaError(f"{path}: {found} is no table: greycheck has not made this")


def _revision(connection: Connection) -> str | None:
    heads = MigrationContext.configure(connection).get_current_heads()
    if len(heads) > 1:
        raise SchemaError(
            f"alembic_version says {' and '.join(sorted(heads))}: delete all rows but the right one"
        )
    return heads[0] if heads else None


# Said of an SQLite file that does not exist, while nothing is wrong.
NO_STORE = "there is no store yet: the first mail makes it, or: greycheck db upgrade"


def require(place: Place) -> None:
    """Raises SchemaError if this program cannot use the schema of the database at PLACE."""
    database = _at(place)
    revision = current(database)
    if revision is None:
        path = sqlite_path(database)
        if path is not None and not is_there(path):
            raise trouble(path) or SchemaError(f"{path}: {NO_STORE}")
    wrong = misfit(revision)
    if wrong:
        raise SchemaError(f"{shown(database)}: {wrong}")


def _moves_rows(revision: str | None) -> bool:
    """True if the migration to REVISION renames a table while it works.

    If a table is renamed now, a migration was stopped: the downgrade from REVISION if this is true,
    else the upgrade to the revision after it.
    """
    if revision is None:
        return False
    return bool(
        getattr(
            ScriptDirectory.from_config(_config()).get_revision(revision).module,
            "moves_rows",
            False,
        )
    )


def _silently(_text: str) -> None:
    """Reports nothing."""


def upgrade(place: Place, mode: int = 0o600, tell: Tell = _silently) -> str:
    """Upgrades the database at PLACE to ``head``, and returns its revision then.

    The revision may be newer, if a newer program has upgraded it and this one can use its schema.
    An SQLite file that does not exist is made with MODE. TELL is called with a text on what this
    waits for. Raises SchemaError.
    """
    database = _at(place)
    path = sqlite_path(database)
    if path is not None:
        _refuse_root(path)
        make_file(path, mode)

    def bring_up(connection: Connection) -> str:
        revision = _revision(connection)
        if revision is not None and revision not in known():
            wrong = misfit(revision)
            if wrong:
                raise SchemaError(wrong)
            return revision
        if migration_ops.is_away(connection) and _moves_rows(revision):
            raise SchemaError("a greycheck db downgrade was stopped here: finish that first")
        _prepare(connection)
        command.upgrade(_config(connection), "head")
        return head()

    return _change(database, bring_up, tell)


def downgrade(place: Place, revision: str, tell: Tell = _silently) -> str | None:
    """Downgrades the database at PLACE to REVISION, and returns its revision then.

    REVISION ``base`` leaves no schema. TELL is as for ``upgrade``. Raises SchemaError.
    """
    database = _at(place)
    if current(database) is None:
        raise SchemaError(f"{shown(database)}: there is no schema to take back")

    def take_back(connection: Connection) -> str | None:
        present = _revision(connection)
        if present is not None and present not in known():
            raise SchemaError(
                f"the schema is at {present}, which this program does not know: use the one"
                " that made it"
            )
        if migration_ops.is_away(connection) and not _moves_rows(present):
            raise SchemaError("a greycheck db upgrade was stopped here: finish that first")
        command.downgrade(_config(connection), revision)
        return _revision(connection)

    return _change(database, take_back, tell)


def _prepare(connection: Connection) -> None:
    """Checks and makes what the first migration needs."""
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise SchemaError(
                f"the database's encoding is {encoding}, which has no place for every address:"
                " make another one,"
                " with CREATE DATABASE greycheck ENCODING 'UTF8' TEMPLATE template0"
            )
    if connection.dialect.name == "mysql" and not inspect(connection).has_table(_VERSION.name):
        connection.execute(CreateTable(_VERSION, if_not_exists=True))


# Alembic's own table, for databases that commit each statement of a migration by itself: it has one
# row at most, whatever two nodes of a cluster do.
_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), primary_key=True),
    Column("only_row", SmallInteger, nullable=False, server_default="1"),
    UniqueConstraint("only_row"),
    **migration_ops.OPTIONS,
)


def _change(database: Database, change: Callable[[Connection], T], tell: Tell) -> T:
    """Runs CHANGE and returns its result.

    A change that is stopped leaves nothing, or can be resumed.
    """
    with _connect(database) as connection:
        if connection.dialect.name == "sqlite":
            with _transaction(connection):
                return change(connection)
        return upgrade_lock.run_under_lock(connection, lambda: change(connection), tell)


@contextmanager
def _connect(database: Database) -> Iterator[Connection]:
    """Yields a connection to DATABASE.

    Errors of the connection and of migrations become a SchemaError of one line.
    """
    if not database.url:
        raise SchemaError("there is no store: the settings that say where it is cannot be used")
    try:
        with _opened(database) as connection:
            yield connection
    except DBAPIError as error:
        path = sqlite_path(database)
        known = (trouble(path) or barred(path)) if path else None
        said, command = _remedy(error, path)
        raise known or SchemaError(
            f"{shown(database)}: {errors.of(error)}{said}", command
        ) from None
    except base.Advised as error:
        raise SchemaError(f"{shown(database)}: {error.said}", error.command) from None
    except (
        CommandError,
        migration_ops.ForeignTable,
        upgrade_lock.LockTimeout,
    ) as error:
        raise SchemaError(f"{shown(database)}: {error}") from None


@contextmanager
def _opened(database: Database) -> Iterator[Connection]:
    engine = autocommitting_engine(database.url) if database.path else open_engine(database)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def trouble(path: Path | None) -> SchemaError | None:
    """Returns why the SQLite file PATH cannot be used, and one command against it; else None.

    It looks at the directory and the disk only, not at permissions.
    """
    if path is None:
        return None
    try:
        if path.is_dir():
            return SchemaError(
                f"{path}: is a directory: set database to a file in it: {path}/greycheck.db"
            )
        room = os.statvfs(path.parent)
    except FileNotFoundError:
        maker = f"install -d -m 0700 -o {quote(checker())} {quote(str(path.parent))}"
        return SchemaError(f"{path.parent}: no such directory, so there is no store yet", maker)
    except OSError:
        return None
    mount = next(place for place in (path.parent, *path.parent.parents) if place.is_mount())
    if room.f_flag & os.ST_RDONLY:
        return SchemaError(
            f"{mount}: is mounted read-only", f"mount -o remount,rw {quote(str(mount))}"
        )
    if room.f_bavail == 0 or (room.f_files and room.f_favail == 0):
        return SchemaError(f"{mount}: the disk is full", f"df -h {quote(str(mount))}")
    return None


def barred(path: Path) -> SchemaError | None:
    """Returns what keeps the effective user from the SQLite file PATH, and one command against it.

    None if nothing does, or if PATH does not exist.
    """
    if os.access(path, os.F_OK, effective_ids=True) and not path.is_file():
        return None
    me = rights.user_name(os.geteuid())
    for place in (*reversed(path.parents), path):
        is_file = place == path
        wanted = (
            os.R_OK | os.W_OK
            if is_file
            else os.R_OK | os.W_OK | os.X_OK
            if place == path.parent
            else os.X_OK
        )
        if not os.access(place, os.F_OK, effective_ids=True) or os.access(
            place, wanted, effective_ids=True
        ):
            continue
        owner = rights.user_name(place.stat().st_uid)
        what = (
            "write it" if os.access(place, os.X_OK, effective_ids=True) or is_file else "enter it"
        )
        if owner == me:
            return SchemaError(
                f"{place}: {me} may not {what}, though it is {me}'s",
                f"chmod u+rw{'' if is_file else 'x'} {quote(str(place))}",
            )
        return SchemaError(
            f"{place}: {me} may not {what}, its owner is {owner}",
            f"sudo -u {quote(owner)} greycheck COMMAND",
        )
    return None


# The users that run checks: on hosts with qmail, and on others
# (docs/resident.rst#hosts-without-qmail).
CHECKERS = ("qmaild", "greycheck")


def checker() -> str:
    """Returns the name of the user who should own a new store.

    That is the effective user, or, for root, the user that runs checks on this host.
    """
    if os.geteuid() != 0:
        return rights.user_name(os.geteuid())
    for name in CHECKERS:
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return CHECKERS[0]


def advice(error: DBAPIError, path: Path | None = None) -> str:
    """Returns what to do about ERROR of the database, if that is known; else empty.

    PATH is the SQLite file, if the database is one.
    """
    said, command = _remedy(error, path)
    return f"{said}: {command}" if command else said


def _remedy(error: DBAPIError, path: Path | None) -> tuple[str, str]:
    """Returns what ``advice`` says, and its command by itself."""
    words = str(error.orig)
    if upgrade_lock.code_of(error) in NOT_ALLOWED:
        return ": greycheck's user must own the database, or have all rights in it", ""
    if "locked" in words:
        said = f": another process writes, and did for {LOCK_TIMEOUT:g}s"
        if path is None:
            return f"{said}: see who it is with fuser", ""
        return said, f"fuser -v {quote(str(path))}"
    if "not a database" in words:
        if path is None:
            return ": move it away, and the next mail makes a new one", ""
        said, command = sqlite_faults.replacing(str(path))
        return f": {said}", command
    if "readonly" in words or "unable to open" in words:
        return f": {user_name(os.geteuid())} may not write it, or its directory", ""
    return "", ""


# Errors of servers for a user who may not make a table: numbers of MySQL's dialect, SQLSTATE of
# PostgreSQL.
NOT_ALLOWED: set[object] = {1044, 1142, "42501"}


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """Runs SQLite's migrations in one transaction, under its write lock.

    A migration that is killed leaves the old schema or the new one.
    """
    _use_write_ahead_log(connection)
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        # If the transaction was interrupted, the connection is closed already, which rolls back
        # too.
        if not connection.invalidated:
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _use_write_ahead_log(connection: Connection) -> None:
    """Sets journal mode WAL, which the file keeps.

    SQLite does not wait for a lock here: this function does.
    """
    end = monotonic() + LOCK_TIMEOUT
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except OperationalError as error:
            if "locked" not in str(error.orig) or monotonic() > end:
                raise
            sleep(0.01)
        else:
            return


def sqlite_path(database: Database) -> Path | None:
    """Returns the SQLite file of DATABASE; None for a server, or if there is no store."""
    return Path(database.path) if database.path else None


def _at(place: Place) -> Database:
    """Returns the database at PLACE. Raises SchemaError."""
    try:
        return database_at(place)
    except ValueError as error:
        raise SchemaError(f"{shown(place)}: {error}") from None


def _refuse_root(path: Path) -> None:
    try:
        rights.refuse_root(str(path.absolute()))
    except StoreError as error:
        raise SchemaError(error.said, error.command) from None


def shown(place: Place) -> str:
    """Returns the URL of the database at PLACE without passwords; of a wrong URL its beginning."""
    url = place.url if isinstance(place, Database) else place
    if not url:
        return "no store"
    if url.startswith("sqlite:"):
        return url  # SQLAlchemy would write its path with escapes, which no setting takes
    try:
        database_at(place)
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url.partition("://")[0] + "://..."
    secrets = [name for name in parsed.query if "passw" in name]
    return parsed.difference_update_query(secrets).render_as_string(hide_password=True)


def is_there(path: Path) -> bool:
    """True if the file PATH exists.

    Raises SchemaError if that cannot be found out.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise barred(path) or SchemaError(f"{path}: {error.strerror}") from None
    return True


def make_file(path: Path, mode: int) -> None:
    """Makes the empty SQLite file PATH with permissions MODE, independent of the umask.

    Raises SchemaError if the directory does not exist, or if it is another user's, who could put
    another file there.
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
    # The command must not change the owner of a directory that is not greycheck's own.
    place = str(directory) if directory.name == "greycheck" else SYSTEM_DIRECTORY
    command = f"install -d -m 0700 -o {quote(rights.user_name(os.geteuid()))} {quote(place)}"
    move = "" if place == str(directory) else f", and set database to {place}/greycheck.db"
    return (
        f"{directory}: {me} cannot make a store here, its owner is {user_name(owner)}:"
        f" {command}{move}"
    )


def user_name(uid: int) -> str:
    """Returns the name of user UID, or ``user`` and its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
