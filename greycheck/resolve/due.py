"""Which domains are to be asked: those of mail that waits, and those that are known.

Three lists, each bounded in the rows that are read for it, and taken from in turn, so that a flood
in one of them does not keep the others waiting:

- what was first tried in the last two hours, newest first, by the index on ``expires_at``;
- the triplets in one part of all keys, and
- the known domains in one part of all keys. Which part it is tells the clock alone: within a day
  all triplets have their turn, within an hour all known domains. So what was missed is found
  again, whatever the other hosts' settings are, and nothing needs to be remembered.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import randrange
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from greycheck import log
from greycheck.policy import domain_of
from greycheck.settings import Settings
from greycheck.spf import dns
from greycheck.store.admin.engine import reading
from greycheck.store.base import DIGEST, domain_key
from greycheck.store.schema.tables import authorised, domain, spf, triplet

# How long ago the first attempt of a triplet may be for the quick list, and how much longer than
# the setting its retry window may be, as rules have delays of their own.
LOOKBACK, MARGIN = 2 * 3600, 3600

# How many rows are read for one list, and how many keys are looked up in one query.
READ, KEYS = 20000, 200

# In which time each triplet, and each known domain, has its turn.
DAY, HOUR = 86400, 3600

# How many domains and ranges are kept at most, and in which part of all keys they are counted. With
# more, somebody fills the store, and nobody is asked who was not before.
MOST_DOMAINS, MOST_RANGES, PART = 1_000_000, 2_000_000, 256

# Further ahead than anybody ever puts the next question: a clock was wrong when that was written.
FURTHEST = 2 * DAY

# How many clients of one domain are evaluated in one run, and of how many it is looked up whether
# they were: the last that tried.
MOST_CLIENTS, CLIENTS_READ = 20, 100


@dataclass
class Told:
    """The row of a domain in ``spf``."""

    state: str
    per_client: bool
    answered_at: int | None
    asked_at: int
    failures: int
    next_at: int
    expires_at: int

    def is_due(self, now: int) -> bool:
        """True if the domain is to be asked at NOW."""
        return self.next_at <= now or self.next_at > now + FURTHEST


@dataclass
class Task:
    """A DOMAIN, and the CLIENTS that wait with mail of it: each packed address with a sender.

    KEY is the domain's. TOLD is its row, None where nobody has asked yet.
    """

    key: bytes
    domain: bytes
    told: Told | None = None
    clients: dict[bytes, bytes] = field(default_factory=dict)

    def asks(self, now: int) -> bool:
        """True if the domain is to be asked at NOW."""
        return self.told is None or self.told.is_due(now)

    def has_work(self, now: int) -> bool:
        """True if the domain is to be asked at NOW, or may have something to say of its clients."""
        if self.told is None or self.asks(now):
            return True
        return bool(self.clients) and self.told.per_client and self.told.state == "found"


def tasks(engine: Engine, settings: Settings, now: int, interval: int, limit: int) -> list[Task]:
    """Returns what is to be done at NOW under SETTINGS, LIMIT domains at most.

    INTERVAL is how many seconds ago the last run was.
    """
    found: dict[bytes, Task] = {}
    with reading(engine).connect() as connection:
        lists = [
            _by_domain(_tried_lately(connection, settings, now), found),
            _by_domain(_in_turn(connection, now, interval), found),
            _known(connection, now, interval, found),
        ]
        _look_up(connection, found)
        full = is_full(connection)
    chosen: dict[bytes, Task] = {}
    for task in _in_rotation(lists):
        if task.has_work(now) and not (full and task.told is None):
            chosen.setdefault(task.key, task)
            if len(chosen) >= limit:
                break
    return list(chosen.values())


def named(engine: Engine, domain: bytes, now: int) -> Task:
    """Returns the task of asking DOMAIN, with its row at NOW."""
    task = Task(domain_key(domain), domain)
    with reading(engine).connect() as connection:
        _look_up(connection, {task.key: task})
    if task.told is not None and task.told.expires_at <= now:
        task.told = None
    return task


def is_full(connection: Connection) -> bool:
    """True if more is kept than there should be, by an estimate.

    Keys are digests: any part of them has its share of all rows. Nobody foresees which it is.
    """
    first = randrange(PART)
    low = bytes([first])
    high = bytes([first + 1]) if first + 1 < PART else b"\xff" * (DIGEST + 1)
    for key, most in ((spf.c.domain_key, MOST_DOMAINS), (authorised.c.network_key, MOST_RANGES)):
        some = select(key).where(key >= low, key < high).limit(most // PART + 1).subquery("some")
        if connection.execute(select(func.count()).select_from(some)).scalar_one() > most // PART:
            return True
    return False


def told(connection: Connection, key: bytes, lock: bool = False) -> Told | None:
    """Returns the row of the domain of KEY, and with LOCK holds others off it."""
    query = select(*_TOLD).where(spf.c.domain_key == key)
    row = connection.execute(query.with_for_update() if lock else query).first()
    return None if row is None else _told(row)


def not_evaluated(engine: Engine, task: Task, now: int) -> dict[bytes, bytes]:
    """Returns those clients of TASK of which nothing is known at NOW, MOST_CLIENTS at most."""
    if task.told is None or not task.told.per_client:
        return dict(list(task.clients.items())[:MOST_CLIENTS])
    left = {}
    key = authorised.c.network_key
    with reading(engine).connect() as connection:
        for address, sender in task.clients.items():
            row = connection.execute(
                select(authorised.c.last, authorised.c.expires_at)
                .where(key <= task.key + address, key >= task.key)
                .order_by(key.desc())
                .limit(1)
            ).first()
            if row is None or row.last < address or row.expires_at <= now:
                left[address] = sender
                if len(left) == MOST_CLIENTS:
                    break
    return left


# --- the lists ------------------------------------------------------------------------------------

# Origin, sender, and whether it waits.
Tried = tuple[bytes | None, str, bool]


def _tried_lately(connection: Connection, settings: Settings, now: int) -> Iterator[Tried]:
    """Yields what waits and was first tried lately, newest first."""
    begin = now + settings.retry_window - LOOKBACK
    end = now + settings.retry_window + settings.delay + MARGIN
    expires = triplet.c.expires_at
    rows = (
        select(triplet.c.origin, triplet.c.sender, triplet.c.passes)
        .where(expires >= max(begin, now), expires <= end)
        .order_by(expires.desc())
        .limit(READ)
    )
    # What has passed is read too: so the number of rows that are read is bounded.
    for origin, sender, passes in connection.execute(rows):
        if not passes:
            yield origin, sender, True


def _in_turn(connection: Connection, now: int, interval: int) -> Iterator[Tried]:
    """Yields what waits or is known and has its turn."""
    key = triplet.c.triplet_key
    for low, high in turns(now, interval, DAY):
        rows = (
            select(triplet.c.origin, triplet.c.sender, triplet.c.passes, triplet.c.expires_at)
            .where(key >= low, key < high)
            .order_by(key)
            .limit(READ)
        )
        for origin, sender, passes, expires in connection.execute(rows):
            if expires > now:
                yield origin, sender, not passes


def _known(
    connection: Connection, now: int, interval: int, found: dict[bytes, Task]
) -> Iterator[Task]:
    """Returns the tasks of known domains that have their turn, and adds them to those FOUND."""
    key = domain.c.domain_key
    listed = []
    for low, high in turns(now, interval, HOUR):
        rows = select(key, domain.c.name, domain.c.expires_at).where(key >= low, key < high)
        for each, name, expires in connection.execute(rows.order_by(key).limit(READ)):
            if expires > now:
                task = _task(bytes(each), name, found)
                if task is not None:
                    listed.append(task)
    return iter(listed)


def turns(now: int, interval: int, period: int) -> list[tuple[bytes, bytes]]:
    """Returns the parts of all keys whose turn came in the INTERVAL of seconds before NOW.

    Each goes from its first key up to, not with, the second. Within PERIOD all keys have theirs.
    """
    if interval >= period:
        return [(_at(0, period), _at(period, period))]
    begin, end = (now - interval) % period, now % period
    if begin < end:
        return [(_at(begin, period), _at(end, period))]
    parts = [(_at(begin, period), _at(period, period)), (_at(0, period), _at(end, period))]
    return [part for part in parts if part[0] < part[1]]


def _at(moment: int, period: int) -> bytes:
    if moment >= period:
        return b"\xff" * (DIGEST + 1)
    return ((moment << 64) // period).to_bytes(8, "big")


def _by_domain(tried: Iterable[Tried], found: dict[bytes, Task]) -> Iterator[Task]:
    """Returns the tasks of the domains of what was TRIED, and adds them to those FOUND."""
    listed: dict[bytes, Task] = {}
    for origin, sender, waits in tried:
        task = _task(origin and bytes(origin[:DIGEST]), sender, found)
        if task is None:
            continue
        listed.setdefault(task.key, task)
        if waits and origin and len(task.clients) < CLIENTS_READ:
            task.clients.setdefault(
                bytes(origin[DIGEST:]), log.unshown(sender.encode("utf-8", "surrogateescape"))
            )
    return iter(listed.values())


def _task(key: bytes | None, address: str, found: dict[bytes, Task]) -> Task | None:
    """Returns the task of the domain of ADDRESS, as tables have it; None if DNS can have none.

    KEY is the domain's, if that is known. One that is new is added to those FOUND.
    """
    if key is not None and key in found:
        return found[key]
    name = name_of(address)
    if name is None:
        return None
    own = domain_key(name)
    if key not in (None, own):
        return None
    return found.setdefault(own, Task(own, name))


def name_of(address: str) -> bytes | None:
    """Returns the domain of ADDRESS as tables have it, or of a domain alone; None if it has none.

    One that is so long that it is cut there cannot be told.
    """
    shown = address.rpartition("@")[2]
    if not shown or log.CUT in shown:
        return None
    name = domain_of(log.unshown(shown.encode("utf-8", "surrogateescape")))
    return None if dns.domain_name(name) is None else name


def _in_rotation(lists: list[Iterator[Task]]) -> Iterator[Task]:
    """Yields one of each of LISTS in turn, until all are at their end."""
    while lists:
        for each in list(lists):
            task = next(each, None)
            if task is None:
                lists.remove(each)
            else:
                yield task


_TOLD = (
    spf.c.state,
    spf.c.per_client,
    spf.c.answered_at,
    spf.c.asked_at,
    spf.c.failures,
    spf.c.next_at,
    spf.c.expires_at,
)


def _told(row: Sequence[Any]) -> Told:
    state, per_client, *times = row
    return Told(state, bool(per_client), *times)


def _look_up(connection: Connection, found: dict[bytes, Task]) -> None:
    """Gives to all tasks FOUND the rows of their domains."""
    keys = list(found)
    for at in range(0, len(keys), KEYS):
        some = keys[at : at + KEYS]
        query = select(spf.c.domain_key, *_TOLD).where(spf.c.domain_key.in_(some))
        for row in connection.execute(query):
            found[bytes(row[0])].told = _told(row[1:])
