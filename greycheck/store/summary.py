"""What the store knows in a few numbers, for ``greycheck status``: three queries, none of which looks at more than ROWS rows.

Diagnostics: SQLAlchemy's.
"""

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Engine, and_, case, func, select

from greycheck.envelope import OF_MESSAGE
from greycheck.log import show
from greycheck.policy import Terms
from greycheck.settings import Settings
from greycheck.store.engine import reading
from greycheck.store.tables import client, rule, triplet

# How many rows of a table are looked at: more than pending_limit is by itself, in half a second of SQLite.
ROWS = 2_000_000

# Of how many of the triplets that wait, the newest, it is counted where they come from.
NEWEST = 10_000

# How many senders and networks are named.
TOP = 5

DAY = 86400


@dataclass
class Summary:
    """Numbers of rows that count at some moment; times are seconds since 1970, None where there is no row.

    ``attempts`` is how many were deferred in the day before, of ``attempted`` triplets, of which ``arrived`` have passed since.
    ``senders`` and ``networks`` are those from which most of the NEWEST triplets wait: domains, and how many. ``whole`` is whether all
    rows were looked at.
    """

    waiting: int = 0
    due: int = 0
    passed: int = 0
    known: int = 0
    refused: int = 0
    rules: int = 0
    since: int | None = None
    last: int | None = None
    attempts: int = 0
    attempted: int = 0
    arrived: int = 0
    senders: list[tuple[str, int]] = field(default_factory=list)
    networks: list[tuple[str, int]] = field(default_factory=list)
    whole: bool = True


def summary(engine: Engine, settings: Settings, now: int) -> Summary:
    """What the store of ENGINE knows at NOW under SETTINGS."""
    found = Summary()
    _triplets(engine, settings, now, found)
    _clients(engine, settings, now, found)
    _sources(engine, settings, now, found)
    return found


def _triplets(engine: Engine, settings: Settings, now: int, found: Summary) -> None:
    mark = show(OF_MESSAGE)
    columns = triplet.c.first_attempt, triplet.c.last_attempt, triplet.c.early_attempts, triplet.c.passed_at
    rows = select(*columns).where(func.substr(triplet.c.recipient, 1, len(mark)) != mark).limit(ROWS).subquery()
    row = rows.c
    terms = Terms(settings)
    waits = and_(row.passed_at.is_(None), row.first_attempt >= now - terms.retry_window)
    today = row.first_attempt > now - DAY
    query = select(
        func.count(),
        _number(waits),
        _number(and_(waits, row.first_attempt <= now - terms.delay)),
        _number(row.last_attempt >= now - terms.lifetime, row.passed_at),
        func.min(row.first_attempt),
        func.max(row.last_attempt),
        func.coalesce(func.sum(case((today, row.early_attempts + 1), else_=0)), 0),
        _number(today),
        _number(today, row.passed_at),
    ).select_from(rows)
    with reading(engine).connect() as connection:
        every, found.waiting, found.due, found.passed, found.since, found.last, *day = connection.execute(query).one()
    found.attempts, found.attempted, found.arrived = map(int, day)
    found.whole = every < ROWS


def _number(condition: ColumnElement[bool], column: ColumnElement[int] | int = 1) -> ColumnElement[int]:
    """How many rows meet CONDITION and have COLUMN."""
    return func.count(case((condition, column)))


def _clients(engine: Engine, settings: Settings, now: int, found: Summary) -> None:
    rows = select(client).limit(ROWS).subquery()
    is_known = and_(rows.c.passes >= settings.client_passes, rows.c.last_seen >= now - settings.lifetime)
    is_struck = and_(rows.c.struck_until > now, rows.c.struck_until <= now + settings.strike_time)
    times = func.min(rows.c.first_seen), func.max(rows.c.last_seen)
    query = select(func.count(), _number(is_known), _number(is_struck), *times).select_from(rows)
    counting = rule.c.expires_at.is_(None) | (rule.c.expires_at > now)
    with reading(engine).connect() as connection:
        every, known, refused, first, last = connection.execute(query).one()
        found.rules = connection.execute(select(func.count()).select_from(rule).where(counting)).scalar_one()
    found.known = known if settings.client_passes else 0
    found.refused = refused if settings.strikes else 0
    found.since = min((moment for moment in (found.since, first) if moment is not None), default=None)
    found.last = max((moment for moment in (found.last, last) if moment is not None), default=None)
    found.whole = found.whole and every < ROWS


def _sources(engine: Engine, settings: Settings, now: int, found: Summary) -> None:
    """The newest that wait are those that will be over last: an index has them together."""
    end = triplet.c.expires_at
    query = (
        select(triplet.c.sender, triplet.c.network)
        .where(triplet.c.passes == 0, end >= now, end <= now + Terms(settings).retry_window)
        .order_by(end.desc())
        .limit(NEWEST)
    )
    senders: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    with reading(engine).connect() as connection:
        for sender, network in connection.execute(query):
            senders[sender.rpartition("@")[2] or "<>"] += 1
            networks[network] += 1
    found.senders, found.networks = senders.most_common(TOP), networks.most_common(TOP)
