"""The operations that migrations are made of. Each may be run again.

MySQL and MariaDB commit every change of the schema by itself. So a migration that was stopped is
done in part, and two nodes of a Galera cluster may run it at the same time, as no node knows the
locks of another. There, an operation makes only what does not exist yet, and removes only what
still exists. PostgreSQL and SQLite run a whole migration in one transaction: there, an operation
whose work is done already fails. While a migration changes rows in a way that would mislead a
check, the table is renamed (``take_away``).

Tables are InnoDB, utf8mb4 and without case folding, whatever the server's defaults are.

Diagnostics: ``ForeignTable`` if there is a table of that name that is not greycheck's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError, NoSuchTableError

OPTIONS: dict[str, Any] = {
    "sqlite_with_rowid": False,
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}

# Error numbers of MySQL's dialect: it exists already, or does not exist any more.
TABLE_EXISTS, NO_TABLE, NO_SUCH_TABLE = 1050, 1051, 1146
NO_COLUMN, COLUMN_EXISTS, INDEX_EXISTS, NOT_THERE = 1054, 1060, 1061, 1091

# Rows that a migration changes at a time.
BATCH = 2000

# The suffix of a table's name while it is taken away.
AWAY = "_upgrading"


class ForeignTable(Exception):
    """There is a table of that name already, with other columns."""


def make_table(name: str, *parts: sa.Column[Any] | sa.Constraint) -> None:
    """Makes the table NAME with its columns and its primary key. Raises ForeignTable."""
    # Another node may be further on, and have taken the table away.
    there = _columns(name) or _columns(name + AWAY)
    if there:
        wanted = {part.name for part in parts if isinstance(part, sa.Column)}
        if not wanted <= there:
            raise ForeignTable(
                f"there is a table {name} already that is not greycheck's: give greycheck a"
                " database of its own"
            )
        return
    with _unless_done(TABLE_EXISTS):
        op.create_table(name, *parts, **OPTIONS)


def drop_table(name: str) -> None:
    """Drops the table NAME."""
    if _resumable() and not _columns(name):
        return
    with _unless_done(NO_TABLE):
        op.drop_table(name)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Adds COLUMN, which has a default or may be NULL, so that older programs can go on writing."""
    if column.name in _columns(table):
        return
    with _unless_done(COLUMN_EXISTS, NO_SUCH_TABLE):
        op.add_column(table, column)


def drop_column(table: str, name: str) -> None:
    """Drops column NAME of TABLE."""
    if _resumable() and name not in _columns(table):
        return
    with _unless_done(NOT_THERE, NO_SUCH_TABLE):
        op.drop_column(table, name)


def make_index(table: str, column: str, *more: str, of: str = "") -> None:
    """Makes an index of COLUMN and of MORE, with the name that ``tables`` gives it.

    OF is a condition: only such rows are indexed, if the database can do that.
    """
    if index_name(table, column) in _indexes(table):
        return
    only: dict[str, Any] = (
        {f"{dialect}_where": sa.text(of) for dialect in ("sqlite", "postgresql")} if of else {}
    )
    with _unless_done(INDEX_EXISTS, NO_SUCH_TABLE):
        op.create_index(index_name(table, column), table, [column, *more], **only)


def drop_index(table: str, column: str) -> None:
    """Drops the index of COLUMN."""
    if _resumable() and index_name(table, column) not in _indexes(table):
        return
    with _unless_done(NOT_THERE, NO_SUCH_TABLE):
        op.drop_index(index_name(table, column), table)


def index_name(table: str, column: str) -> str:
    """Returns the name of the index of COLUMN, as ``tables.NAMING`` makes it."""
    return f"ix_{table.removesuffix(AWAY)}_{column}"


def lay_out(table: str, by_key: bool) -> None:
    """Sets how SQLite stores the rows of TABLE: BY_KEY, or in order of insertion.

    In order of insertion, keys have a separate index. By key, each row that is
    written changes a page of its own, as keys are random; in order of insertion, rows that are
    written together share pages. Servers have no such choice.
    """
    bind = op.get_bind()
    if bind.dialect.name != "sqlite":
        return
    old = sa.Table(table, sa.MetaData(), autoload_with=bind)
    new = old.to_metadata(sa.MetaData(), name=table + AWAY)
    new.dialect_options["sqlite"]["with_rowid"] = not by_key
    new.indexes.clear()
    new.create(bind)
    bind.execute(sa.insert(new).from_select(old.columns.keys(), sa.select(old)))
    op.drop_table(table)
    op.rename_table(new.name, table)
    for index in old.indexes:
        index.create(bind)


def take_away(table: str) -> str:
    """Keeps all others from TABLE; returns its name until ``give_back``.

    It is used if a check would otherwise read wrong rows. On MySQL's dialect the table is renamed:
    checks find no table, and end by ``on_error``. PostgreSQL locks it: checks wait until it is
    free, or end by ``on_error``. On SQLite the transaction keeps writers out, and readers see the
    old rows.
    """
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    if not _resumable():
        return table
    _rename(table, table + AWAY)
    return table + AWAY


def give_back(table: str) -> None:
    """Undoes ``take_away`` of TABLE."""
    if _resumable():
        _rename(table + AWAY, table)


def _rename(table: str, name: str) -> None:
    """Renames TABLE to NAME, unless that is done already. Raises ForeignTable if both exist."""
    # Look at the new name twice: another node may rename the table between two looks.
    if _columns(name) and _columns(table) and _columns(name):
        raise ForeignTable(f"there are both {table} and {name}: drop the one that was left over")
    if _columns(table):
        with _unless_done(NO_SUCH_TABLE):
            op.rename_table(table, name)


def is_away(connection: sa.Connection) -> bool:
    """True if a migration that was stopped has left a table renamed."""
    return connection.dialect.name == "mysql" and any(
        name.endswith(AWAY) for name in sa.inspect(connection).get_table_names()
    )


@contextmanager
def on_what_is_there() -> Iterator[None]:
    """Ignores errors of the block that come from another node that was faster.

    That node finished these rows and gave the table back, or dropped the column.
    """
    with _unless_done(NO_SUCH_TABLE, NO_COLUMN):
        yield


def save() -> None:
    """Commits a batch of rows if a migration is not one transaction."""
    if _resumable():
        op.get_bind().exec_driver_sql("COMMIT")


def _resumable() -> bool:
    return op.get_bind().dialect.name == "mysql"


def _columns(table: str) -> set[str]:
    """Returns the columns of TABLE; none without such a table.

    Returns none also where operations are not run again.
    """
    if not _resumable():
        return set()
    try:
        return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    except NoSuchTableError:
        return set()


def _indexes(table: str) -> set[str | None]:
    if not _resumable():
        return set()
    try:
        return {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
    except NoSuchTableError:
        return set()


@contextmanager
def _unless_done(*codes: int) -> Iterator[None]:
    """Ignores an error with one of CODES: another node was faster.

    It did this operation after this node looked, or is further on: it has taken away the table, or
    given back one that was taken away.
    """
    try:
        yield
    except DBAPIError as error:
        if not _resumable() or error.orig is None or error.orig.args[0] not in codes:
            raise
