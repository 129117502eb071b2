"""The steps of a migration: each may be taken again.

MySQL and MariaDB commit every change of the schema by itself, so a migration that was stopped has been done in part, and two nodes of a
Galera cluster may be at it at once, where no lock of one is known to the other. There a step makes what is not there yet, and takes
away what still is. PostgreSQL and SQLite do a whole migration in one transaction: there a step that finds its work done is a fault.
What would let a check find something else than there is takes the table away first (``take_away``).

Tables are InnoDB's, utf8mb4 and without any folding, whatever the server's defaults are.

Diagnostics: ``ForeignTable`` where a table of that name is there, and is none of greycheck's.
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

# Error numbers of MySQL's dialect: it is there already, or it is not there any more.
TABLE_EXISTS, NO_TABLE, NO_SUCH_TABLE = 1050, 1051, 1146
NO_COLUMN, COLUMN_EXISTS, INDEX_EXISTS, NOT_THERE = 1054, 1060, 1061, 1091

# Rows that a migration changes at once.
BATCH = 2000

# What a table is called while it is taken away.
AWAY = "_upgrading"


class ForeignTable(Exception):
    """A table of that name is there already, with other columns."""


def make_table(name: str, *parts: sa.Column[Any] | sa.Constraint) -> None:
    """Makes the table NAME of its columns and its primary key."""
    # Another node may be further, and have taken it away.
    there = _columns(name) or _columns(name + AWAY)
    if there:
        wanted = {part.name for part in parts if isinstance(part, sa.Column)}
        if not wanted <= there:
            raise ForeignTable(
                f"there is a table {name} already that is not greycheck's: give greycheck a database of its own"
            )
        return
    with _unless_done(TABLE_EXISTS):
        op.create_table(name, *parts, **OPTIONS)


def drop_table(name: str) -> None:
    """Takes the table NAME away."""
    if _resumable() and not _columns(name):
        return
    with _unless_done(NO_TABLE):
        op.drop_table(name)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Adds COLUMN, which has a default or may be NULL, so that older programs go on writing."""
    if column.name in _columns(table):
        return
    with _unless_done(COLUMN_EXISTS, NO_SUCH_TABLE):
        op.add_column(table, column)


def drop_column(table: str, name: str) -> None:
    """Takes a column away."""
    if _resumable() and name not in _columns(table):
        return
    with _unless_done(NOT_THERE, NO_SUCH_TABLE):
        op.drop_column(table, name)


def make_index(table: str, column: str, *more: str, of: str = "") -> None:
    """Makes an index of a COLUMN, and of MORE, with the name that ``tables`` gives it; OF rows alone where the server can do that."""
    if index_name(table, column) in _indexes(table):
        return
    only: dict[str, Any] = {f"{dialect}_where": sa.text(of) for dialect in ("sqlite", "postgresql")} if of else {}
    with _unless_done(INDEX_EXISTS, NO_SUCH_TABLE):
        op.create_index(index_name(table, column), table, [column, *more], **only)


def drop_index(table: str, column: str) -> None:
    """Takes it away."""
    if _resumable() and index_name(table, column) not in _indexes(table):
        return
    with _unless_done(NOT_THERE, NO_SUCH_TABLE):
        op.drop_index(index_name(table, column), table)


def index_name(table: str, column: str) -> str:
    """The name of the index of a COLUMN, as ``tables.NAMING`` makes it."""
    return f"ix_{table.removesuffix(AWAY)}_{column}"


def lay_out(table: str, by_key: bool) -> None:
    """Has SQLite keep the rows of TABLE BY_KEY, in a tree with nothing beside it, or in the order they come, with a tree of keys beside.

    Whoever writes where keys say writes a page for each row, as a key may be anywhere; rows that come one after the other share theirs.
    Servers know no such choice.
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
    """Keeps all others from TABLE; returns what it is called until it is given back.

    For whatever would let a check find something else than there is. On MySQL's dialect checks find no table, and end by ``on_error``.
    PostgreSQL locks it: they wait as long, or end so. On SQLite the transaction keeps writers out, and readers see what was.
    """
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    if not _resumable():
        return table
    _rename(table, table + AWAY)
    return table + AWAY


def give_back(table: str) -> None:
    """Lets others have TABLE again."""
    if _resumable():
        _rename(table + AWAY, table)


def _rename(table: str, name: str) -> None:
    """Calls TABLE by another NAME, unless that was done."""
    # Another node may be at it: only what is there before and after the other's look is there besides.
    if _columns(name) and _columns(table) and _columns(name):
        raise ForeignTable(f"there are both {table} and {name}: drop the one that was left over")
    if _columns(table):
        with _unless_done(NO_SUCH_TABLE):
            op.rename_table(table, name)


def is_away(connection: sa.Connection) -> bool:
    """Whether a migration that was stopped has left a table taken away."""
    return connection.dialect.name == "mysql" and any(
        name.endswith(AWAY) for name in sa.inspect(connection).get_table_names()
    )


@contextmanager
def on_what_is_there() -> Iterator[None]:
    """Work on rows, unless another node has done it and has given the table back, or has taken away what this works on."""
    with _unless_done(NO_SUCH_TABLE, NO_COLUMN):
        yield


def save() -> None:
    """Commits a batch of rows, where a migration is no transaction."""
    if _resumable():
        op.get_bind().exec_driver_sql("COMMIT")


def _resumable() -> bool:
    return op.get_bind().dialect.name == "mysql"


def _columns(table: str) -> set[str]:
    """The columns of TABLE where steps are taken again; else, and where there is no such table, none."""
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
    """Another node of a cluster may have taken the step since this one looked; the server says so with one of CODES.

    Or it is further, and has taken away the table of the step, or given back what was taken away: then there is none.
    """
    try:
        yield
    except DBAPIError as error:
        if not _resumable() or error.orig is None or error.orig.args[0] not in codes:
            raise
