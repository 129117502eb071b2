"""The schema: alembic's migrations, the file that an embedded store is made of, and the revision it is at.

Interface: ``upgrade``, ``downgrade``, ``current``, ``head``, ``require``.

Diagnostics: ``SchemaError`` with what to do.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from greycheck.store.engine import PATIENCE, autocommitting_engine, open_engine

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


def current(url: str) -> str | None:
    """The revision that the database at URL is at; None where it has no schema, or is not there at all."""
    path = sqlite_path(url)
    if path is not None and not is_there(path):
        return None
    with _connect(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require(url: str) -> None:
    """Raises SchemaError where the database at URL is not at ``head``."""
    found = current(url)
    if found is None:
        raise SchemaError(f"{shown(url)}: there is no schema yet: run greycheck db upgrade")
    if found != head():
        what = "older" if found < head() else "newer"
        raise SchemaError(f"{shown(url)}: the schema is at {found}, {what} than this program's {head()}")


def upgrade(url: str, mode: int = 0o600) -> str:
    """Brings the database at URL to ``head`` and returns that. An SQLite file is made with MODE where there is none."""
    path = sqlite_path(url)
    if path is not None:
        make_file(path, mode)
    with _transaction(url) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found > head():
            raise SchemaError(f"{shown(url)}: the schema is at {found}, newer than this program's {head()}")
        command.upgrade(_config(connection), "head")
    return head()


def downgrade(url: str, revision: str) -> str | None:
    """Brings the database at URL down to REVISION (``base``: to nothing) and returns where it is then."""
    if current(url) is None:
        raise SchemaError(f"{shown(url)}: there is no schema to take back")
    with _transaction(url) as connection:
        command.downgrade(_config(connection), revision)
        return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _connect(url: str) -> Iterator[Connection]:
    engine = open_engine(url) if sqlite_path(url) is None else autocommitting_engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    except DatabaseError as error:
        raise SchemaError(f"{shown(url)}: {error.orig}{advice(error)}") from None
    finally:
        engine.dispose()


def advice(error: DatabaseError) -> str:
    """What to do about an ERROR of the database, where that is known."""
    said = str(error.orig)
    if "locked" in said:
        return f": another process writes, and did for {PATIENCE:g}s: see who it is with fuser"
    if "not a database" in said:
        return ": move it away, and the next mail makes a new one"
    if "readonly" in said or "unable to open" in said:
        return f": {user_name(os.geteuid())} may not write it, or its directory"
    return ""


@contextmanager
def _transaction(url: str) -> Iterator[Connection]:
    """One transaction around a migration, so that a kill leaves the old schema or the new one. SQLite's lock keeps others out."""
    with _connect(url) as connection:
        if connection.dialect.name != "sqlite":
            with connection.begin():
                yield connection
            return
        _use_write_ahead_log(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
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
    """The file of an SQLite URL; None for a server's."""
    parsed: URL = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def shown(url: str) -> str:
    """URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return url.partition("://")[0] + "://..."


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
    """Makes the empty SQLite file PATH with permissions MODE, whatever the umask; for root, in the name of its directory's owner.

    Raises SchemaError where the directory is not there, or is somebody else's, who could put another file in its place.
    """
    try:
        directory = path.parent.stat()
        if is_there(path):
            return
        if directory.st_uid not in (0, os.geteuid()) and os.geteuid() != 0:
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
        if os.geteuid() == 0:
            os.fchown(descriptor, directory.st_uid, directory.st_gid)
    finally:
        os.close(descriptor)


def _not_ours(directory: Path, owner: int) -> str:
    return (
        f"{directory}: {user_name(os.geteuid())} cannot make a store here, its owner is {user_name(owner)}:"
        " chown it to the user that qmail runs greycheck as"
    )


def user_name(uid: int) -> str:
    """The name of user UID, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
