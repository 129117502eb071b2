"""Numbers about the store, for ``greycheck status``: queries of ROWS rows at most each.

Diagnostics: SQLAlchemy's.
"""

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Engine, and_, case, func, select

from greycheck import rule_keys
from greycheck.envelope import OF_MESSAGE
from greycheck.log import show
from greycheck.policy import Timings
from greycheck.settings import Settings
from greycheck.store.admin.engine import reading
from greycheck.store.schema.tables import (
    authorised,
    client,
    correspondent,
    domain,
    provider,
    rule,
    spf,
    triplet,
)

# How many rows of a table are read at most: more than pending_limit allows, in half a second with
# SQLite.
ROWS = 2_000_000

# The sources of this many pending triplets, the newest, are counted.
NEWEST = 10_000

# How many senders and networks are named.
TOP = 5

DAY = 86400


@dataclass
class Summary:
    """Numbers of rows that are valid at some moment.

    Times are in seconds since 1970, None if there is no row. ``attempts`` is how many attempts were
    deferred in the day before, of ``attempted`` triplets, of which ``arrived`` have passed since.
    ``senders`` and ``networks`` are the most frequent sources of the NEWEST pending triplets, with
    their numbers; senders are domains. ``whole`` is true if all rows were read.

    ``domains`` have passed often enough, ``resolved`` have an SPF that names their ``ranges``, and
    ``failing`` had no answer when DNS was last asked for them.
    """

    waiting: int = 0
    due: int = 0
    passed: int = 0
    known: int = 0
    refused: int = 0
    rules: int = 0
    domains: int = 0
    resolved: int = 0
    failing: int = 0
    ranges: int = 0
    providers: int = 0
    correspondents: int = 0
    since: int | None = None
    last: int | None = None
    attempts: int = 0
    attempted: int = 0
    arrived: int = 0
    senders: list[tuple[str, int]] = field(default_factory=list)
    networks: list[tuple[str, int]] = field(default_factory=list)
    whole: bool = True


def summary(engine: Engine, settings: Settings, now: int) -> Summary:
    """Returns the numbers of the store of ENGINE at NOW under SETTINGS."""
    numbers = Summary()
    _triplets(engine, settings, now, numbers)
    _clients(engine, settings, now, numbers)
    _domains(engine, settings, now, numbers)
    _sources(engine, settings, now, numbers)
    return numbers


def _triplets(engine: Engine, settings: Settings, now: int, numbers: Summary) -> None:
    mark = show(OF_MESSAGE)
    columns = (
        triplet.c.first_attempt,
        triplet.c.last_attempt,
        triplet.c.early_attempts,
        triplet.c.passed_at,
    )
    rows = (
        select(*columns)
        .where(func.substr(triplet.c.recipient, 1, len(mark)) != mark)
        .limit(ROWS)
        .subquery()
    )
    row = rows.c
    terms = Timings(settings)
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
        every, numbers.waiting, numbers.due, numbers.passed, numbers.since, numbers.last, *day = (
            connection.execute(query).one()
        )
    numbers.attempts, numbers.attempted, numbers.arrived = map(int, day)
    numbers.whole = every < ROWS


def _number(
    condition: ColumnElement[bool], column: ColumnElement[int] | int = 1
) -> ColumnElement[int]:
    """Returns the count of rows that meet CONDITION and in which COLUMN is not NULL."""
    return func.count(case((condition, column)))


def _clients(engine: Engine, settings: Settings, now: int, numbers: Summary) -> None:
    rows = select(client).limit(ROWS).subquery()
    is_known = and_(
        rows.c.passes >= settings.client_passes, rows.c.last_seen >= now - settings.lifetime
    )
    is_struck = and_(rows.c.struck_until > now, rows.c.struck_until <= now + settings.strike_time)
    times = func.min(rows.c.first_seen), func.max(rows.c.last_seen)
    query = select(func.count(), _number(is_known), _number(is_struck), *times).select_from(rows)
    valid = rule.c.expires_at.is_(None) | (rule.c.expires_at > now)
    counting = and_(valid, rule.c.action != rule_keys.PAIRS)
    with reading(engine).connect() as connection:
        every, known, refused, first, last = connection.execute(query).one()
        numbers.rules = connection.execute(
            select(func.count()).select_from(rule).where(counting)
        ).scalar_one()
    numbers.known = known if settings.client_passes else 0
    numbers.refused = refused if settings.strikes else 0
    numbers.since = min(
        (moment for moment in (numbers.since, first) if moment is not None), default=None
    )
    numbers.last = max(
        (moment for moment in (numbers.last, last) if moment is not None), default=None
    )
    numbers.whole = numbers.whole and every < ROWS


def _domains(engine: Engine, settings: Settings, now: int, numbers: Summary) -> None:
    """Counts what is known of senders' domains, and whom our users write to."""
    names = select(domain).limit(ROWS).subquery()
    is_known = and_(
        names.c.passes >= settings.domain_passes, names.c.last_seen >= now - settings.lifetime
    )
    told = select(spf).limit(ROWS).subquery()
    is_found = and_(told.c.state == "found", told.c.expires_at > now)
    ranges = select(authorised).limit(ROWS).subquery()
    is_named = and_(ranges.c.expires_at > now, ranges.c.source.in_(("spf", "client")))
    answers = select(correspondent).limit(ROWS).subquery()
    with reading(engine).connect() as connection:
        every, known = connection.execute(
            select(func.count(), _number(is_known)).select_from(names)
        ).one()
        numbers.resolved, numbers.failing = connection.execute(
            select(_number(is_found), _number(told.c.failures > 0)).select_from(told)
        ).one()
        numbers.ranges = connection.execute(
            select(_number(is_named)).select_from(ranges)
        ).scalar_one()
        numbers.correspondents = connection.execute(
            select(_number(answers.c.expires_at > now)).select_from(answers)
        ).scalar_one()
        numbers.providers = connection.execute(
            select(func.count()).select_from(provider)
        ).scalar_one()
    numbers.domains = known if settings.domain_passes else 0
    numbers.whole = numbers.whole and every < ROWS


def _sources(engine: Engine, settings: Settings, now: int, numbers: Summary) -> None:
    """The newest pending triplets are those that expire last: an index has them together."""
    end = triplet.c.expires_at
    query = (
        select(triplet.c.sender, triplet.c.network)
        .where(triplet.c.passes == 0, end >= now, end <= now + Timings(settings).retry_window)
        .order_by(end.desc())
        .limit(NEWEST)
    )
    senders: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    with reading(engine).connect() as connection:
        for sender, network in connection.execute(query):
            senders[sender.rpartition("@")[2] or "<>"] += 1
            networks[network] += 1
    numbers.senders, numbers.networks = senders.most_common(TOP), networks.most_common(TOP)
