"""Removing rows whose time is over: small batches, each a short transaction, so that no check waits for more than one.

Several hosts may do it at once. On a server each takes rows that nobody holds, so none waits for another, nor for a check. The nodes of
a Galera do not see each other's locks: two that took the same rows learn it when they commit, one of them has to begin again, and
whoever loses three times in a row leaves the rest to the other.
"""

from collections.abc import Callable, Iterator
from random import uniform
from time import monotonic, sleep

from sqlalchemy import Engine, Table, bindparam, delete, func, select
from sqlalchemy.exc import DBAPIError

from greycheck.policy import MESSAGE_TIME
from greycheck.settings import Settings
from greycheck.store import faults
from greycheck.store.engine import reading
from greycheck.store.tables import client, rule, triplet

TABLES = (triplet, client, rule)

# Rows of one transaction. On a slow disk, some 20 ms of the write lock.
BATCH = 200

# How many lost races in a row show that another host is at it.
RACES = 3


class LeftToAnother(Exception):
    """Another host removes the same rows, and is quicker."""


def count(engine: Engine, now: int) -> dict[str, int]:
    """How many rows of each table expired before NOW."""
    with reading(engine).connect() as connection:
        return {
            table.name: connection.execute(
                select(func.count()).select_from(table).where(table.c.expires_at < now)
            ).scalar_one()
            for table in TABLES
        }


# Of how many rows whose time is over it is looked whether they are worth a question.
LOOK = 10000

# How old what was used last may be at least, in seconds, before the clock is doubted: two days leave time to set it.
DOUBT = 2 * 86400


def doubt(engine: Engine, settings: Settings, now: int) -> bool:
    """Whether the clock seems to have jumped ahead: what passed is over, and nothing that passed is about to be.

    Each use moves ``expires_at`` to a lifetime from then. So where mail has come at all between a lifetime ago and DOUBT before NOW,
    something ends between now and a lifetime less DOUBT. What waits ends sooner, and is not asked about. Two ranges of an index.
    """
    begin, end = now + settings.retry_window + settings.delay, now + settings.lifetime - DOUBT
    if begin >= end:
        return False
    with reading(engine).connect() as connection:
        for table in (triplet, client):
            recent = select(table.c.passes).where(table.c.expires_at > begin, table.c.expires_at < end).limit(1)
            if connection.execute(recent).first():
                return False
        for table, last in ((triplet, triplet.c.last_attempt), (client, client.c.last_seen)):
            over = select(table.c.passes, table.c.expires_at - last).where(table.c.expires_at < now)
            latest = over.order_by(table.c.expires_at.desc()).limit(LOOK)
            # A message that lets its later recipients pass is over in a moment, and says nothing of a lifetime.
            if any(passes and lasted > MESSAGE_TIME for passes, lasted in connection.execute(latest)):
                return True
    return False


def expire(
    engine: Engine, now: int, batch: int = BATCH, rest: Callable[[float], None] = sleep
) -> Iterator[tuple[str, int]]:
    """Removes the rows that expired before NOW; yields (table, rows removed) after each batch. Raises LeftToAnother.

    Between two batches it rests as long as the last one took (calling REST with seconds), so that other writers get half of the time.
    """
    for table in TABLES:
        lost = 0
        found = batch
        while found == batch:
            started = monotonic()
            try:
                found = _remove(engine, table, now, batch)
            except DBAPIError as error:
                if not faults.is_conflict(error):
                    raise
                lost += 1
                if lost == RACES:
                    raise LeftToAnother from None
                rest(uniform(0, faults.PAUSE))
                continue
            lost = 0
            if found:
                yield table.name, found
                rest(monotonic() - started)


def _remove(engine: Engine, table: Table, now: int, batch: int) -> int:
    """Removes rows of TABLE that nobody else holds, a BATCH at most; returns how many."""
    key = next(iter(table.primary_key))
    # SQLite, which has no locks of rows, has taken the one lock of its file already.
    free = (
        select(key)
        .where(table.c.expires_at < now)
        .order_by(table.c.expires_at)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    with engine.begin() as connection:
        keys = connection.execute(free).scalars().all()
        if keys and engine.dialect.name == "mysql":
            # For many keys it might look at all rows, or at all that are over, and wait for those that others hold.
            connection.execute(delete(table).where(key == bindparam("one")), [{"one": one} for one in keys])
        elif keys:
            connection.execute(delete(table).where(key.in_(keys)))
    return len(keys)
