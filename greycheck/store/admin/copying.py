"""Copies a store to another database: in batches by key, compared with the rows of the target.

A pass reads a batch from the source, looks up the same keys in the target, inserts missing rows
there and updates different ones. So rows that were copied before a kill are not copied again, and
another pass corrects rows that changed meanwhile. No step relies on how a database sorts text: each
is read in its own order, or by key.

Interface: ``Copying`` of two engines. Nobody else may write to the target meanwhile; the source may
be in use.

Diagnostics: SQLAlchemy's; ``Occupied`` if the target has rows that the source does not have,
``CopyError`` if it does not take a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from sqlalchemy import Engine, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import DataError
from sqlalchemy.sql.schema import Column

from greycheck.store.admin import errors, rulebook
from greycheck.store.admin.engine import reading
from greycheck.store.base import StoreError
from greycheck.store.schema.tables import generation, metadata, rule

# Each database has a generation of its own.
TABLES: tuple[Table, ...] = tuple(
    table for table in metadata.tables.values() if table is not generation
)

# Rows in one transaction.
BATCH = 1000

# The most passes until source and target are the same: while mail goes on, each pass has less to do
# than the one before.
PASSES = 4

Row = tuple[Any, ...]


class CopyError(StoreError):
    """The target does not take a row."""


class Occupied(CopyError):
    """The target holds rows that the source does not have."""


class Watch(Protocol):
    """Is called with the progress of a copy."""

    def phase(self, what: str, rows: int) -> None:
        """Another phase, WHAT, begins; it reads about ROWS rows."""

    def seen(self, rows: int) -> None:
        """ROWS more rows have been read."""

    def passed(self, difference: "dict[str, Difference]") -> None:
        """A pass has ended; DIFFERENCE is what it corrected, by table."""


@dataclass
class Sum:
    """The number of ``rows`` of a table, and the ``total`` of their digests, in any order."""

    rows: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        """Adds ROW."""
        digest = blake2b(ascii(row).encode(), digest_size=16).digest()
        self.rows += 1
        self.total = (self.total + int.from_bytes(digest)) % (1 << 128)

    @property
    def checksum(self) -> str:
        """The sum as 32 hexadecimal digits."""
        return f"{self.total:032x}"


@dataclass
class Difference:
    """How many rows of a table the target lacks, has with other values, or has in addition."""

    missing: int = 0
    other: int = 0
    surplus: int = 0

    def __bool__(self) -> bool:
        return bool(self.missing or self.other or self.surplus)


@dataclass
class Surplus:
    """The ``keys`` of rows that only the target has; ``alive`` of them have not expired."""

    keys: list[Any] = field(default_factory=list)
    alive: int = 0


@dataclass
class Outcome:
    """The sums of both sides by table, after ``passes`` passes.

    If they are not the same, ``differ`` is the difference that one more look found.
    """

    source: dict[str, Sum]
    target: dict[str, Sum]
    passes: int
    differ: dict[str, Difference]

    @property
    def same(self) -> bool:
        """True if source and target are the same."""
        return self.source == self.target


class Copying:
    """Copies from SOURCE to TARGET, which have the same schema. WATCH is told the progress."""

    def __init__(self, source: Engine, target: Engine, watch: Watch, batch: int = BATCH) -> None:
        self.source = source
        self.target = target
        self.watch = watch
        self.batch = batch

    def copy(self, now: int, overwrite: bool = False) -> Outcome:
        """Makes the target the same as the source.

        OVERWRITE removes rows that only the target has; without it, raises Occupied if there are
        any that had not expired at NOW.
        """
        surplus = self.surplus(now)
        alive = {name: rows.alive for name, rows in surplus.items() if rows.alive}
        if alive and not overwrite:
            counted = ", ".join(f"{name}: {rows}" for name, rows in alive.items())
            raise Occupied(f"it holds rows that the source does not have ({counted})")
        for number in range(1, PASSES + 1):
            self._remove(surplus)
            difference = self.compare(f"pass {number}", surplus, write=True)
            self.watch.passed(difference)
            source, target = self.sums()
            if source == target:
                return Outcome(source, target, number, {})
            surplus = self.surplus(now)
        return Outcome(source, target, number, self.compare("what differs", surplus, write=False))

    def surplus(self, now: int) -> dict[str, Surplus]:
        """Returns what only the target has, by table."""
        self.watch.phase("what the target holds", _size(self.target))
        return {table.name: self._surplus(table, now) for table in TABLES}

    def _surplus(self, table: Table, now: int) -> Surplus:
        key, surplus = _key(table), Surplus()
        for rows in self._batches(self.target, table, [key, table.c.expires_at]):
            keys = [row[0] for row in rows]
            with reading(self.source).connect() as connection:
                known = set(connection.execute(select(key).where(key.in_(keys))).scalars())
            gone = [row for row in rows if row[0] not in known]
            surplus.keys += [row[0] for row in gone]
            surplus.alive += sum(expires is None or expires >= now for _key, expires in gone)
        return surplus

    def _remove(self, surplus: dict[str, Surplus]) -> None:
        for table in TABLES:
            keys = surplus[table.name].keys
            for start in range(0, len(keys), self.batch):
                self._remove_batch(table, keys[start : start + self.batch])

    def _remove_batch(self, table: Table, keys: Sequence[object]) -> None:
        def attempt() -> None:
            with self.target.begin() as connection:
                connection.execute(delete(table).where(_key(table).in_(keys)))
                if table is rule:
                    rulebook.change_generation(connection)

        errors.retry_on_conflict(attempt)

    def compare(self, what: str, surplus: dict[str, Surplus], write: bool) -> dict[str, Difference]:
        """Compares source and target in one pass, called WHAT for WATCH.

        Returns how the target differs, by table. WRITE corrects the target.
        """
        self.watch.phase(what, _size(self.source))
        return {
            table.name: self._compare(table, len(surplus[table.name].keys), write)
            for table in TABLES
        }

    def _compare(self, table: Table, surplus: int, write: bool) -> Difference:
        difference = Difference(surplus=surplus)
        for rows in self._batches(self.source, table, list(table.columns)):
            try:
                missing, other = self._compare_batch(table, rows)
                if write and (missing or other):
                    self._write(table, rows, missing, other)
            except (DataError, ValueError) as error:
                said = errors.of(error) if isinstance(error, DataError) else error
                raise CopyError(f"{table.name}: the target does not take a row: {said}") from None
            difference.missing += len(missing)
            difference.other += len(other)
        return difference

    def _compare_batch(self, table: Table, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """Returns those of ROWS that the target lacks, and those that it has with other values."""
        query = select(table).where(_key(table).in_([row[0] for row in rows]))
        with reading(self.target).connect() as connection:
            known = {row[0]: tuple(row) for row in connection.execute(query)}
        return (
            [row for row in rows if row[0] not in known],
            [row for row in rows if row[0] in known and known[row[0]] != row],
        )

    def _write(self, table: Table, rows: list[Row], missing: list[Row], other: list[Row]) -> None:
        """Writes ROWS to the target: inserts those MISSING, updates those that are OTHER there.

        After a lost race the rows are compared again.
        """
        names = [column.name for column in table.columns]
        key = names[0]
        change = (
            update(table)
            .where(table.c[key] == bindparam(f"the_{key}"))
            .values({name: bindparam(f"new_{name}") for name in names[1:]})
        )

        compared = [(missing, other)]

        def attempt() -> None:
            missing, other = compared.pop() if compared else self._compare_batch(table, rows)
            with self.target.begin() as connection:
                if missing:
                    connection.execute(
                        insert(table), [dict(zip(names, row, strict=True)) for row in missing]
                    )
                if other:
                    prefixed = [f"the_{key}", *(f"new_{name}" for name in names[1:])]
                    connection.execute(
                        change, [dict(zip(prefixed, row, strict=True)) for row in other]
                    )
                if table is rule and (missing or other):
                    rulebook.change_generation(connection)

        errors.retry_on_conflict(attempt)

    def sums(self) -> tuple[dict[str, Sum], dict[str, Sum]]:
        """Returns counts and checksums of source and target, by table."""
        self.watch.phase("checksums", _size(self.source) + _size(self.target))
        return self._sums(self.source), self._sums(self.target)

    def _sums(self, engine: Engine) -> dict[str, Sum]:
        sums = {table.name: Sum() for table in TABLES}
        for table in TABLES:
            for rows in self._batches(engine, table, list(table.columns)):
                for row in rows:
                    sums[table.name].add(row)
        return sums

    def _batches(
        self, engine: Engine, table: Table, columns: list[Column[Any]]
    ) -> Iterator[list[Row]]:
        """Yields COLUMNS, the key first, of all rows in batches, ordered by key.

        Each batch is read in its own transaction.
        """
        key = _key(table)
        query = select(*columns).order_by(key).limit(self.batch)
        with reading(engine).connect() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        while rows:
            yield rows
            self.watch.seen(len(rows))
            with reading(engine).connect() as connection:
                rows = [tuple(row) for row in connection.execute(query.where(key > rows[-1][0]))]


def _key(table: Table) -> Column[Any]:
    return next(iter(table.primary_key))


def _size(engine: Engine) -> int:
    """Returns how many rows all tables of ENGINE have."""
    with reading(engine).connect() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in TABLES
        )
