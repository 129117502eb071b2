"""Removing rows whose time is over: small batches, each a short transaction, so that no check waits for more than one.

Several hosts may do it at once: what one has removed, the others do not find.
"""

from collections.abc import Callable, Iterator
from time import monotonic, sleep

from sqlalchemy import Engine, delete, func, select

from greycheck.store.engine import reading
from greycheck.store.tables import client, rule, triplet

TABLES = (triplet, client, rule)

# Rows of one transaction. On a slow disk, some 20 ms of the write lock.
BATCH = 200


def count(engine: Engine, now: int) -> dict[str, int]:
    """How many rows of each table expired before NOW."""
    with reading(engine).connect() as connection:
        return {
            table.name: connection.execute(
                select(func.count()).select_from(table).where(table.c.expires_at < now)
            ).scalar_one()
            for table in TABLES
        }


def expire(
    engine: Engine, now: int, batch: int = BATCH, rest: Callable[[float], None] = sleep
) -> Iterator[tuple[str, int]]:
    """Removes the rows that expired before NOW; yields (table, rows removed) after each batch.

    Between two batches it rests as long as the last one took (calling REST with seconds), so that other writers get half of the time.
    """
    for table in TABLES:
        key = next(iter(table.primary_key))
        over = table.c.expires_at < now
        found = batch
        while found == batch:
            started = monotonic()
            with engine.begin() as connection:
                keys = (
                    connection.execute(select(key).where(over).order_by(table.c.expires_at).limit(batch))
                    .scalars()
                    .all()
                )
                removed = connection.execute(delete(table).where(key.in_(keys), over)).rowcount if keys else 0
            found = len(keys)
            if found:
                yield table.name, removed
                rest(monotonic() - started)
