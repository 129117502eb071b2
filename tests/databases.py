"""Rows for stores of any kind, as tuples of all columns."""

from collections.abc import Sequence

from sqlalchemy import Engine, insert, select

from greycheck.store.admin.engine import open_engine
from greycheck.store.schema.tables import metadata

Row = tuple[object, ...]


def fill(engine: Engine, table: str, rows: Sequence[Row]) -> None:
    """Puts ROWS into TABLE. The last columns, which have defaults, may be left out."""
    found = metadata.tables[table]
    names = [column.name for column in found.columns]
    with engine.begin() as connection:
        connection.execute(insert(found), [dict(zip(names, row, strict=False)) for row in rows])


def fill_url(url: str, table: str, rows: Sequence[Row]) -> None:
    """The same for the store at URL."""
    engine = open_engine(url)
    fill(engine, table, rows)
    engine.dispose()


def contents(url: str, table: str) -> list[Row]:
    """All rows of TABLE in the store at URL, by the bytes of their keys."""
    engine = open_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(select(metadata.tables[table]))]
    engine.dispose()
    return sorted(
        found, key=lambda row: row[0] if isinstance(row[0], bytes) else str(row[0]).encode()
    )
