"""Moving a store to another database: batches of rows in the order of keys, each compared with what the target has already.

A pass reads a batch from the source, looks for the same keys in the target, inserts what is missing there and updates what differs. So
what was copied before a kill is not copied again, and what changed meanwhile is put right by another pass. Nothing here relies on how
a database sorts text: each is asked in its own order, or by key.

Interface: ``Copying`` of two engines. Nobody else may write to the target meanwhile; to the source anybody may.

Diagnostics: SQLAlchemy's; ``Occupied`` of a target that holds more than the source, ``CopyError`` of rows that it does not take.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from sqlalchemy import Engine, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import DataError
from sqlalchemy.sql.schema import Column

from greycheck.store import faults
from greycheck.store.engine import reading
from greycheck.store.lean import StoreError
from greycheck.store.tables import metadata

TABLES: tuple[Table, ...] = tuple(metadata.tables.values())

# Rows of one transaction.
BATCH = 1000

# How many passes may be needed until source and target are the same: while mail goes on, each has less to do than the one before.
PASSES = 4

Row = tuple[Any, ...]


class CopyError(StoreError):
    """The target does not take a row."""


class Occupied(CopyError):
    """The target holds rows that the source does not have."""


class Watch(Protocol):
    """Who is told how it goes on."""

    def phase(self, what: str, rows: int) -> None:
        """Something else begins, over so many ROWS in all, as far as that can be told."""

    def seen(self, rows: int) -> None:
        """So many ROWS more have been dealt with."""

    def passed(self, difference: "dict[str, Difference]") -> None:
        """A pass is over; DIFFERENCE is what it put right."""


@dataclass
class Sum:
    """How many ``rows`` a table has, and the sum of their digests, in which their order does not count."""

    rows: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        """Counts ROW."""
        digest = blake2b(ascii(row).encode(), digest_size=16).digest()
        self.rows += 1
        self.total = (self.total + int.from_bytes(digest)) % (1 << 128)

    @property
    def checksum(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.total:032x}"


@dataclass
class Difference:
    """How many rows of a table the target had not, had otherwise, and had besides."""

    missing: int = 0
    other: int = 0
    surplus: int = 0

    def __bool__(self) -> bool:
        return bool(self.missing or self.other or self.surplus)


@dataclass
class Surplus:
    """The ``keys`` of rows that only the target has; of how many the time is not over."""

    keys: list[Any] = field(default_factory=list)
    alive: int = 0


@dataclass
class Outcome:
    """The sums of both sides by table, after so many ``passes``; and if these differ, what another look found to ``differ``."""

    source: dict[str, Sum]
    target: dict[str, Sum]
    passes: int
    differ: dict[str, Difference]

    @property
    def same(self) -> bool:
        """Whether the target is what the source is."""
        return self.source == self.target


class Copying:
    """From SOURCE to TARGET, which have the same schema. WATCH is told."""

    def __init__(self, source: Engine, target: Engine, watch: Watch, batch: int = BATCH) -> None:
        self.source = source
        self.target = target
        self.watch = watch
        self.batch = batch

    def copy(self, now: int, overwrite: bool = False) -> Outcome:
        """Makes the target what the source is. OVERWRITE removes what only the target has; else raises Occupied.

        Rows of the target that expired before NOW are no loss.
        """
        surplus = self.surplus(now)
        alive = {name: found.alive for name, found in surplus.items() if found.alive}
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
        """What only the target has, by table."""
        self.watch.phase("what the target holds", _size(self.target))
        return {table.name: self._surplus(table, now) for table in TABLES}

    def _surplus(self, table: Table, now: int) -> Surplus:
        key, found = _key(table), Surplus()
        for rows in self._batches(self.target, table, [key, table.c.expires_at]):
            keys = [row[0] for row in rows]
            with reading(self.source).connect() as connection:
                known = set(connection.execute(select(key).where(key.in_(keys))).scalars())
            gone = [row for row in rows if row[0] not in known]
            found.keys += [row[0] for row in gone]
            found.alive += sum(expires is None or expires >= now for _key, expires in gone)
        return found

    def _remove(self, surplus: dict[str, Surplus]) -> None:
        for table in TABLES:
            keys = surplus[table.name].keys
            for start in range(0, len(keys), self.batch):
                self._remove_batch(table, keys[start : start + self.batch])

    def _remove_batch(self, table: Table, keys: Sequence[object]) -> None:
        def attempt() -> None:
            with self.target.begin() as connection:
                connection.execute(delete(table).where(_key(table).in_(keys)))

        faults.again(attempt)

    def compare(self, what: str, surplus: dict[str, Surplus], write: bool) -> dict[str, Difference]:
        """One pass, for WATCH called WHAT: how the target differs from the source, by table. To WRITE puts that right."""
        self.watch.phase(what, _size(self.source))
        return {table.name: self._compare(table, len(surplus[table.name].keys), write) for table in TABLES}

    def _compare(self, table: Table, surplus: int, write: bool) -> Difference:
        found = Difference(surplus=surplus)
        for rows in self._batches(self.source, table, list(table.columns)):
            try:
                missing, other = self._compare_batch(table, rows)
                if write and (missing or other):
                    self._write(table, rows, missing, other)
            except (DataError, ValueError) as error:
                said = faults.of(error) if isinstance(error, DataError) else error
                raise CopyError(f"{table.name}: the target does not take a row: {said}") from None
            found.missing += len(missing)
            found.other += len(other)
        return found

    def _compare_batch(self, table: Table, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """Which of ROWS the target has not, and which it has otherwise."""
        query = select(table).where(_key(table).in_([row[0] for row in rows]))
        with reading(self.target).connect() as connection:
            known = {row[0]: tuple(row) for row in connection.execute(query)}
        return (
            [row for row in rows if row[0] not in known],
            [row for row in rows if row[0] in known and known[row[0]] != row],
        )

    def _write(self, table: Table, rows: list[Row], missing: list[Row], other: list[Row]) -> None:
        """Puts ROWS into the target: inserts those that are MISSING and updates the OTHER ones. Whoever loses a race compares again."""
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
                    connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in missing])
                if other:
                    prefixed = [f"the_{key}", *(f"new_{name}" for name in names[1:])]
                    connection.execute(change, [dict(zip(prefixed, row, strict=True)) for row in other])

        faults.again(attempt)

    def sums(self) -> tuple[dict[str, Sum], dict[str, Sum]]:
        """Counts and checksums of source and target, by table."""
        self.watch.phase("checksums", _size(self.source) + _size(self.target))
        return self._sums(self.source), self._sums(self.target)

    def _sums(self, engine: Engine) -> dict[str, Sum]:
        found = {table.name: Sum() for table in TABLES}
        for table in TABLES:
            for rows in self._batches(engine, table, list(table.columns)):
                for row in rows:
                    found[table.name].add(row)
        return found

    def _batches(self, engine: Engine, table: Table, columns: list[Column[Any]]) -> Iterator[list[Row]]:
        """COLUMNS, the key first, of all rows in the order of keys; each batch in a short transaction of its own."""
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
    """How many rows there are in all tables of ENGINE."""
    with reading(engine).connect() as connection:
        return sum(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in TABLES)
