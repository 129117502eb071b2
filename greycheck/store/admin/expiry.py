"""Removes expired rows in small batches, each in a short transaction, so that checks wait briefly.

Several hosts may do it at the same time. On a server each takes only rows that are not locked: it
waits for no row of a check's, nor for one that another host removes. Where triplets are counted, a
batch first waits for whoever else changes totals (``history.lock``); it has no row then that a
check could wait for, and nobody whom it waits for waits for it.

The nodes of a Galera cluster do not see each other's locks: two nodes that removed the same rows,
or counted at the same time, learn it at COMMIT, and one of them has to begin again. A node that
loses three times in a row leaves the rest to the other.
"""

from collections.abc import Callable, Iterator
from random import uniform
from time import monotonic, sleep

from sqlalchemy import Engine, Table, bindparam, delete, func, select
from sqlalchemy.exc import DBAPIError

from greycheck.settings import Settings
from greycheck.store.admin import errors
from greycheck.store.admin import history as totals
from greycheck.store.admin.engine import reading
from greycheck.store.schema.tables import (
    authorised,
    client,
    correspondent,
    domain,
    history,
    rule,
    spf,
    triplet,
)
from greycheck.unknown import MESSAGE_TIME

TABLES = (triplet, client, rule, domain, spf, authorised, correspondent, history)

# Rows in one transaction. On a slow disk they take some 20 ms of the write lock.
BATCH = 200

# How many lost races in a row show that another host removes rows too.
RACES = 3


class LeftToAnother(Exception):
    """Another host removes the same rows, and is faster."""


def count(engine: Engine, now: int) -> dict[str, int]:
    """Returns how many rows of each table expired before NOW."""
    with reading(engine).connect() as connection:
        return {
            table.name: connection.execute(
                select(func.count()).select_from(table).where(table.c.expires_at < now)
            ).scalar_one()
            for table in TABLES
        }


# How many expired rows ``doubt`` looks at.
LOOK = 10000

# The clock is doubted only if the last use is at least this old, in seconds: two days leave time to
# set it.
DOUBT = 2 * 86400


def doubt(engine: Engine, settings: Settings, now: int) -> bool:
    """True if the clock seems to have jumped ahead.

    Then rows that passed have expired, and no row that passed will expire soon. Each use sets
    ``expires_at`` to a lifetime later. So if any mail came between a lifetime ago and DOUBT before
    NOW, some row expires between now and a lifetime less DOUBT. Pending rows expire sooner, and are
    ignored. It reads two ranges of an index.
    """
    begin, end = now + settings.retry_window + settings.delay, now + settings.lifetime - DOUBT
    if begin >= end:
        return False
    with reading(engine).connect() as connection:
        for table in (triplet, client):
            recent = (
                select(table.c.passes)
                .where(table.c.expires_at > begin, table.c.expires_at < end)
                .limit(1)
            )
            if connection.execute(recent).first():
                return False
        for table, last in ((triplet, triplet.c.last_attempt), (client, client.c.last_seen)):
            over = select(table.c.passes, table.c.expires_at - last).where(table.c.expires_at < now)
            latest = over.order_by(table.c.expires_at.desc()).limit(LOOK)
            # A message's row, which lets later recipients pass, expires soon in any case.
            if any(
                passes and lasted > MESSAGE_TIME for passes, lasted in connection.execute(latest)
            ):
                return True
    return False


def expire(
    engine: Engine,
    now: int,
    batch: int = BATCH,
    rest: Callable[[float], None] = sleep,
    settings: Settings | None = None,
) -> Iterator[tuple[str, int]]:
    """Removes the rows that expired before NOW; yields (table, rows removed) after each batch.

    Under SETTINGS with a history, triplets that never passed are counted there.

    Between two batches it pauses for as long as the last one took (REST is called with seconds), so
    that other writers get half of the time. Raises LeftToAnother.
    """
    for table in TABLES:
        lost = 0
        removed = batch
        while removed == batch:
            started = monotonic()
            try:
                removed = _remove(engine, table, now, batch, settings)
            except DBAPIError as error:
                if not errors.is_conflict(error):
                    raise
                lost += 1
                if lost == RACES:
                    raise LeftToAnother from None
                rest(uniform(0, errors.PAUSE))
                continue
            lost = 0
            if removed:
                yield table.name, removed
                rest(monotonic() - started)


def _remove(engine: Engine, table: Table, now: int, batch: int, settings: Settings | None) -> int:
    """Removes up to BATCH rows of TABLE that are not locked; returns how many."""
    key = next(iter(table.primary_key))
    counts = table is triplet and settings is not None and settings.history
    columns = [table.c[name] for name in totals.Waiting._fields] if counts else [key]
    passes = [table.c.passes] if counts else []
    # SQLite has no row locks; the transaction has its one write lock already.
    free = (
        select(*columns, *passes)
        .where(table.c.expires_at < now)
        .order_by(table.c.expires_at)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    with engine.begin() as connection:
        if counts:
            totals.lock(connection, now)
        rows = connection.execute(free).all()
        keys = [row[0] for row in rows]
        if keys and engine.dialect.name == "mysql":
            # For many keys the server might read all rows, or all expired ones, and wait for locked
            # ones.
            connection.execute(
                delete(table).where(key == bindparam("one")), [{"one": one} for one in keys]
            )
        elif keys:
            connection.execute(delete(table).where(key.in_(keys)))
        if counts and settings is not None:
            waited = [totals.Waiting(*row[:-1]) for row in rows if not row[-1]]
            totals.add(connection, settings, totals.never(connection, settings, waited), now)
    return len(keys)
