"""Queries of operators about senders' domains: lists, single ones, and forgetting them.

A domain is in the list where it has passed (table ``domain``), where DNS was asked for its SPF
(``spf``), or where its networks were learnt as a pool (``authorised``). A list reads these tables
once; rows are yielded as they are read.

Diagnostics: SQLAlchemy's.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    and_,
    case,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.sql.expression import Subquery

from greycheck import folding, normalise
from greycheck.log import show, show_address
from greycheck.normalise import IPV4_BITS, MAPPED, Network
from greycheck.store.admin import errors
from greycheck.store.admin.engine import reading
from greycheck.store.admin.expiry import BATCH
from greycheck.store.admin.queries import FETCHED, PAGING, Condition, Filter
from greycheck.store.base import DIGEST, domain_key
from greycheck.store.schema.tables import Digest, Packed, authorised, domain, provider, spf
from greycheck.store.waiting import PROVIDERS, packed_range

# The source of ranges that were learnt, and of those that say that a client may not send.
POOL, REFUSED = "pool", "refused"

# What the list is ordered by, and True if the largest comes first.
SORTS = {
    "first": ("first_seen", True),
    "last": ("last_seen", True),
    "early": ("passes", True),
    "expires": ("expires_at", False),
}

# The columns of the answer of DNS, as a row of the list has them.
ANSWER = ("state", "why", "per_client", "asked_at", "answered_at", "failures", "next_at")


@dataclass(frozen=True)
class Named:
    """A domain as an operator names it: its TEXT as tables have it, and its KEY."""

    text: str
    key: bytes


def named(domain: bytes) -> list[Named]:
    """Returns what DOMAIN may be in the tables: as written, and with its hosts folded.

    It is normalised as that of a sender.
    """
    written = normalise.mail_address(b"@" + domain)[1:]
    both = dict.fromkeys((written, folding.fold_hosts(written)))
    return [Named(show_address(each), domain_key(each)) for each in both]


def _own(key: bytes) -> Condition:
    """Returns the condition of ranges of the domain of KEY."""
    column = authorised.c.network_key
    return and_(column >= key, column <= key + b"\xff" * DIGEST)


# --- the list -------------------------------------------------------------------------------------


def _networks(now: int) -> Subquery:
    """Returns the number of each domain's networks that count at NOW, and of those of a pool."""
    key = func.substr(authorised.c.network_key, 1, DIGEST, type_=Digest).label("domain_key")
    counts = authorised.c.expires_at > now, authorised.c.source != REFUSED
    return (
        select(
            key,
            func.min(authorised.c.name).label("name"),
            func.count().label("networks"),
            func.count(case((authorised.c.source == POOL, 1))).label("pool_networks"),
        )
        .where(*counts, key != PROVIDERS)
        .group_by(key)
        .subquery("of_domain")
    )


def listed(
    wanted: Filter, now: int, sort: str = "last", reverse: bool = False
) -> Select[tuple[object, ...]]:
    """Returns the query of the domains that match WANTED at NOW, in the order of SORT."""
    query, columns = _query(wanted, now)
    name, falling = SORTS[sort]
    # What is not known has no time. Databases differ about where such rows come.
    order = func.coalesce(columns[name], 0 if falling else 1 << 62)
    ordered = order.desc() if falling != reverse else order.asc()
    return query.order_by(ordered, columns["name"])


def _query(
    wanted: Filter, now: int
) -> tuple[Select[tuple[object, ...]], dict[str, ColumnElement[Any]]]:
    """Returns the query of the domains that match WANTED, and its columns by name."""
    networks = _networks(now)
    learnt = select(networks.c.domain_key).where(networks.c.pool_networks > 0)
    keys = select(domain.c.domain_key).union(select(spf.c.domain_key), learnt).subquery("one")
    key = keys.c.domain_key
    columns: dict[str, ColumnElement[Any]] = {
        "domain_key": key,
        "name": func.coalesce(domain.c.name, spf.c.name, networks.c.name),
        **{each: domain.c[each] for each in ("passes", "first_seen", "last_seen", "expires_at")},
        **{each: spf.c[each] for each in ANSWER},
        "spf_expires_at": spf.c.expires_at,
        "networks": func.coalesce(networks.c.networks, 0),
        "pool_networks": func.coalesce(networks.c.pool_networks, 0),
    }
    joined = keys.outerjoin(domain, domain.c.domain_key == key)
    joined = joined.outerjoin(spf, spf.c.domain_key == key)
    joined = joined.outerjoin(networks, networks.c.domain_key == key)
    query = select(*(column.label(each) for each, column in columns.items())).select_from(joined)
    return query.where(*_conditions(wanted, columns, now)), columns


def _conditions(
    wanted: Filter, columns: dict[str, ColumnElement[Any]], now: int
) -> Iterator[Condition]:
    if wanted.since is not None:
        yield columns["first_seen"] >= wanted.since
    if wanted.until is not None:
        yield columns["first_seen"] <= wanted.until
    if wanted.domain is not None:
        yield _is_below(columns["name"], wanted.domain)
    if wanted.network is not None:
        yield columns["domain_key"].in_(_of_network(wanted.network, now))


def _is_below(name: ColumnElement[Any], wanted: bytes) -> Condition:
    """Returns the condition that NAME is the domain WANTED or one below it."""
    bare = normalise.host_name(wanted.lstrip(b"@."))
    texts = [show(each) for each in dict.fromkeys((bare, folding.fold_hosts(bare)))]
    whole = [show_address(bare)]
    below = (name.endswith("." + text, autoescape=True) for text in texts)
    return or_(name.in_([*texts, *whole]), *below)


def _of_network(network: Network, now: int) -> Select[Any]:
    """Returns the query of the keys of domains with a range that overlaps NETWORK, valid at NOW."""
    first, last = packed_range(str(network))
    start = func.substr(authorised.c.network_key, DIGEST + 1, type_=Packed)
    return select(func.substr(authorised.c.network_key, 1, DIGEST, type_=Digest)).where(
        start <= last,
        authorised.c.last >= first,
        authorised.c.expires_at > now,
        authorised.c.source != REFUSED,
    )


def rows(
    engine: Engine,
    wanted: Filter,
    now: int,
    sort: str = "last",
    reverse: bool = False,
    limit: int = 0,
) -> Generator[RowMapping, None, None]:
    """Yields the domains that match WANTED at NOW, in the order of SORT; 0 as LIMIT: all."""
    query = listed(wanted, now, sort, reverse)
    with reading(engine).connect() as connection:
        if engine.dialect.name == "mysql":
            connection.exec_driver_sql(f"SET SESSION net_write_timeout = {PAGING}")
        streaming = connection.execution_options(yield_per=FETCHED)
        yield from streaming.execute(query.limit(limit) if limit else query).mappings()


def count(engine: Engine, wanted: Filter, now: int) -> int:
    """Returns how many domains ``rows`` would yield."""
    found = _query(wanted, now)[0].subquery()
    with reading(engine).connect() as connection:
        return connection.execute(select(func.count()).select_from(found)).scalar_one()


# --- one domain -----------------------------------------------------------------------------------


def one(
    engine: Engine, asked: Named
) -> tuple[RowMapping | None, RowMapping | None, RowMapping | None]:
    """Returns the rows of ASKED as a known domain, of its SPF, and as a provider."""
    with reading(engine).connect() as connection:
        known, answer, let_in = (
            connection.execute(select(table).where(table.c.domain_key == asked.key))
            .mappings()
            .one_or_none()
            for table in (domain, spf, provider)
        )
    return known, answer, let_in


def networks_of(engine: Engine, asked: Named) -> Iterator[RowMapping]:
    """Yields the ranges of ASKED, from the lowest address."""
    query = select(authorised).where(_own(asked.key)).order_by(authorised.c.network_key)
    with reading(engine).connect() as connection:
        streaming = connection.execution_options(yield_per=FETCHED)
        yield from streaming.execute(query).mappings()


def beginning(engine: Engine, text: str, limit: int) -> list[str]:
    """Returns names of domains that begin with TEXT, LIMIT of each table at most."""
    with reading(engine).connect() as connection:
        names: list[str] = []
        for table in (domain, spf):
            begins = table.c.name.startswith(text, autoescape=True)
            names += connection.execute(select(table.c.name).where(begins).limit(limit)).scalars()
    return list(dict.fromkeys(names))


def range_text(row: RowMapping) -> str:
    """Returns the range of ROW as an address, as a network, or as two addresses."""
    first = int.from_bytes(bytes(row["network_key"])[DIGEST:])
    last = int.from_bytes(bytes(row["last"]))
    bits = normalise.IPV6_BITS
    if first >> IPV4_BITS == last >> IPV4_BITS == MAPPED:
        bits, first, last = IPV4_BITS, first & 0xFFFFFFFF, last & 0xFFFFFFFF
    hosts = (first ^ last).bit_length()
    lowest, _, _prefix = normalise.network(bits, first, bits).partition("/")
    if first == last:
        return lowest
    if first >> hosts << hosts == first and first | (1 << hosts) - 1 == last:
        return normalise.network(bits, first, bits - hosts)
    return f"{lowest} - {normalise.network(bits, last, bits).partition('/')[0]}"


# --- forgetting -----------------------------------------------------------------------------------


def forgettable(wanted: Filter, now: int, is_pool: bool) -> Subquery:
    """Returns the keys of the domains that match WANTED and of which something may be forgotten.

    That is what has passed or was learnt as a pool; with IS_POOL only the latter.
    """
    query, columns = _query(wanted, now)
    learnt = columns["pool_networks"] > 0
    is_one = learnt if is_pool else or_(learnt, columns["passes"].is_not(None))
    return query.where(is_one).subquery("forgettable")


def count_forgettable(engine: Engine, wanted: Filter, now: int, is_pool: bool) -> int:
    """Returns of how many domains ``forget_all`` would forget something."""
    keys = forgettable(wanted, now, is_pool)
    with reading(engine).connect() as connection:
        return connection.execute(select(func.count()).select_from(keys)).scalar_one()


def forget_all(
    engine: Engine,
    wanted: Filter,
    now: int,
    is_pool: bool,
    batch: int = BATCH,
    rest: Callable[[float], None] = sleep,
) -> Iterator[int]:
    """Forgets the domains that match WANTED; yields of how many something was removed.

    Works as ``queries.forget_all``.
    """
    found = forgettable(wanted, now, is_pool)
    key = found.c.domain_key
    last: list[Condition] = []
    while True:
        started = monotonic()
        query = select(key).where(*last).order_by(key).limit(batch)
        with reading(engine).connect() as connection:
            keys = [bytes(each) for each in connection.execute(query).scalars()]
        if not keys:
            return
        last = [key > keys[-1]]
        yield forget(engine, keys, is_pool)
        rest(monotonic() - started)


def forget(engine: Engine, keys: Sequence[bytes], is_pool: bool) -> int:
    """Removes the domains of KEYS, and what was learnt of them as a pool; IS_POOL: only that.

    Returns of how many of them there was something. What DNS said of them stays.
    """

    def attempt() -> int:
        with engine.begin() as connection:
            return sum(_forget(connection, key, is_pool) for key in keys)

    return errors.retry_on_conflict(attempt)


def _forget(connection: Connection, key: bytes, is_pool: bool) -> int:
    learnt = delete(authorised).where(_own(key), authorised.c.source == POOL)
    removed = connection.execute(learnt).rowcount
    if not is_pool:
        removed += connection.execute(delete(domain).where(domain.c.domain_key == key)).rowcount
    return int(removed > 0)


def has(engine: Engine, key: bytes, is_pool: bool) -> bool:
    """Whether ``forget`` would remove anything of the domain of KEY."""
    learnt = select(authorised.c.last).where(_own(key), authorised.c.source == POOL).limit(1)
    known = select(domain.c.passes).where(domain.c.domain_key == key)
    with reading(engine).connect() as connection:
        if connection.execute(learnt).first() is not None:
            return True
        return not is_pool and connection.execute(known).first() is not None
