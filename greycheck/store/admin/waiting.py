"""What waits and has not come back, and what the store knows about it: for ``greycheck digest``.

Rows are read in the order of the index on ``expires_at``, READ at most. What is known about them is
asked in batches, one query for each thing that may be known, and each thing once.

Diagnostics: SQLAlchemy's.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Integer,
    RowMapping,
    Select,
    bindparam,
    func,
    literal_column,
    select,
    union_all,
    update,
)

from greycheck import normalise
from greycheck.log import show
from greycheck.normalise import IPV4_BITS, IPV6_BITS, MAPPED
from greycheck.policy import ClientRow, Timings, is_known
from greycheck.rules.rule import Rule
from greycheck.settings import Settings
from greycheck.store.admin import errors, rulebook
from greycheck.store.admin.engine import reading
from greycheck.store.admin.queries import FETCHED, PAGING
from greycheck.store.base import DIGEST
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
from greycheck.store.waiting import PROVIDERS, packed_range

# How many rows are read at most, those that pass or do not count among them.
READ = 100_000

# How many rows of clients are read at most for the neighbours of clients.
CLIENTS = 500_000

# How many keys one query looks up, how many ranges, and how many rows of one pair are read.
KEYS, RANGES, OF_PAIR = 500, 100, 500

# How much longer than by the settings a triplet may wait: another host's may be longer, in seconds.
MARGIN = 3600


# --- what waits -----------------------------------------------------------------------------------


def _read(settings: Settings, now: int, older: int, delay: int, most: int) -> Select[Any]:
    """Returns the query of MOST rows among which those are whose last attempt is OLDER seconds ago.

    DELAY is the longest of a rule.
    """
    longest = Timings(settings).retry_window + settings.delay + delay + MARGIN
    ends = triplet.c.expires_at
    return (
        select(triplet)
        .where(ends >= now, ends <= now - older + longest)
        .order_by(ends.desc())
        .limit(most)
    )


def count_read(engine: Engine, settings: Settings, now: int, older: int, delay: int) -> int:
    """Returns how many rows ``rows`` has to read, counted up to one more than READ."""
    read = _read(settings, now, older, delay, READ + 1).subquery("read_rows")
    with reading(engine).connect() as connection:
        return connection.execute(select(func.count()).select_from(read)).scalar_one()


def rows(
    engine: Engine,
    settings: Settings,
    now: int,
    older: int,
    delay: int = 0,
    recipient_domain: bytes = b"",
    most: int = 0,
) -> Generator[RowMapping, None, None]:
    """Yields what waits at NOW and was last tried OLDER seconds ago or more, the newest first.

    DELAY is the longest of a rule. Of MOST rows (0: READ) that are read those count whose recipient
    is at RECIPIENT_DOMAIN; empty: all.
    """
    read = _read(settings, now, older, delay, most or READ).subquery("read_rows")
    wanted = [read.c.passed_at.is_(None), read.c.last_attempt <= now - older]
    if recipient_domain:
        wanted.append(read.c.recipient.endswith("@" + show(recipient_domain), autoescape=True))
    query = select(read).where(*wanted).order_by(read.c.expires_at.desc())
    with reading(engine).connect() as connection:
        if engine.dialect.name == "mysql":
            connection.exec_driver_sql(f"SET SESSION net_write_timeout = {PAGING}")
        yield from connection.execution_options(yield_per=FETCHED).execute(query).mappings()


# --- what is known of it --------------------------------------------------------------------------


def _some(keys: Iterable[Any], size: int = KEYS) -> Iterator[list[Any]]:
    """Yields KEYS, each once, in lists of SIZE at most."""
    each = list(dict.fromkeys(keys))
    return (each[at : at + size] for at in range(0, len(each), size))


def by_key(
    connection: Connection, columns: Sequence[Any], keys: Iterable[Any]
) -> dict[Any, Sequence[Any]]:
    """Returns the COLUMNS of the rows whose first column is one of KEYS, by that."""
    found: dict[Any, Sequence[Any]] = {}
    for some in _some(keys):
        for row in connection.execute(select(*columns).where(columns[0].in_(some))):
            found[row[0] if isinstance(row[0], str) else bytes(row[0])] = row
    return found


def domains(connection: Connection, keys: Iterable[bytes]) -> dict[bytes, Sequence[Any]]:
    """Returns key, first use, last use and passes of each domain of KEYS that has passed."""
    columns = domain.c.domain_key, domain.c.first_seen, domain.c.last_seen, domain.c.passes
    return by_key(connection, columns, keys)


def answers(connection: Connection, keys: Iterable[bytes], now: int) -> dict[bytes, Sequence[Any]]:
    """Returns key, state and ``per_client`` of the SPF of each domain of KEYS, valid at NOW."""
    columns = spf.c.domain_key, spf.c.state, spf.c.per_client, spf.c.expires_at
    return {key: row for key, row in by_key(connection, columns, keys).items() if row[3] > now}


def clients(connection: Connection, addresses: Iterable[str]) -> dict[str, Sequence[Any]]:
    """Returns address, first use, last use and passes of each client of ADDRESSES that is known."""
    columns = client.c.address, client.c.first_seen, client.c.last_seen, client.c.passes
    return by_key(connection, columns, addresses)


def correspondents(connection: Connection, keys: Iterable[bytes], now: int) -> dict[bytes, int]:
    """Returns when the last mail of our user was, by each pair's key of KEYS that counts at NOW."""
    columns = correspondent.c.pair_key, correspondent.c.last_seen, correspondent.c.expires_at
    return {key: row[1] for key, row in by_key(connection, columns, keys).items() if row[2] > now}


def released(connection: Connection, keys: Iterable[bytes], now: int) -> set[bytes]:
    """Returns those of KEYS, of rules, for which there is one that counts at NOW."""
    columns = rule.c.match_key, rule.c.expires_at
    found = by_key(connection, columns, keys).items()
    return {key for key, row in found if row[1] is None or row[1] > now}


def uses_of_pairs(
    connection: Connection, ranges_of_keys: Iterable[tuple[bytes, bytes]]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns first and last use of the pairs that passed, by sender and recipient.

    RANGES_OF_KEYS are those of ``pair_keys``; of each OF_PAIR rows are read. What shares the
    beginning of its keys with another pair is found too.
    """
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for some in _some(ranges_of_keys, RANGES):
        values = _numbered(("low", "high"), some)
        query = _of_pairs(RANGES, connection.dialect.name)
        for sender, recipient, first, last in connection.execute(query, values):
            if first is not None:
                before = found.get((sender, recipient), (first, last))
                found[sender, recipient] = min(before[0], first), max(before[1], last)
    return found


@cache
def _of_pairs(size: int, dialect: str) -> Executable:
    """Returns the query of the triplets in SIZE ranges of keys, from ``low`` to before ``high``."""
    key = triplet.c.triplet_key
    columns = triplet.c.sender, triplet.c.recipient, triplet.c.passed_at, triplet.c.last_attempt
    return _together(
        [
            select(*columns)
            .where(key >= bindparam(f"low_{number}"), key < bindparam(f"high_{number}"))
            .order_by(key)
            .limit(OF_PAIR)
            for number in range(size)
        ],
        dialect,
    )


def _together(parts: list[Select[Any]], dialect: str) -> Executable:
    """Returns the query of what all PARTS find, each with an order and a limit of its own.

    Each is so small that no database reads a table for it, whatever it knows of the parameters.
    """
    if dialect != "sqlite":
        return union_all(*parts)
    # It takes no brackets around a part; others would make a table for each of these.
    named = (part.subquery(f"part_{number}") for number, part in enumerate(parts))
    return union_all(*(select(*part.c) for part in named))


def _numbered(names: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, object]:
    """Returns ROWS as parameters: of each its values by NAMES and its number.

    The first row fills up what is left of RANGES: a statement is made, and compiled, once.
    """
    padded = [*rows, *[rows[0]] * (RANGES - len(rows))]
    return {
        f"{name}_{number}": value
        for number, row in enumerate(padded)
        for name, value in zip(names, row, strict=True)
    }


class Within(NamedTuple):
    """What a range is looked for: from key LOW to key AT, and its last address LEAST or above."""

    low: bytes
    at: bytes
    least: bytes


def origin_within(origin: bytes) -> Within:
    """Returns by what the range of a domain is found that holds the client of ORIGIN."""
    return Within(origin[:DIGEST], origin, origin[DIGEST:])


def provider_within(network: str) -> Within:
    """Returns by what the last range of a provider is found that overlaps a client NETWORK."""
    first, last = packed_range(network)
    return Within(PROVIDERS, PROVIDERS + last, first)


def ranges(
    connection: Connection, wanted: Iterable[Within], now: int
) -> dict[Within, tuple[str, str]]:
    """Returns source and name of the range that each of WANTED finds, valid at NOW."""
    found: dict[Within, tuple[str, str]] = {}
    for some in _some(wanted, RANGES):
        values = _numbered(("low", "at"), [each[:2] for each in some])
        query = _ranges(RANGES, connection.dialect.name)
        for number, last, source, name, expires in connection.execute(query, values):
            each = some[number] if number < len(some) else some[0]
            if expires > now and bytes(last) >= each.least:
                found[each] = source, name
    return found


@cache
def _ranges(size: int, dialect: str) -> Executable:
    """Returns the query of SIZE ranges: of each the last one with a key from ``low`` to ``at``.

    Ranges do not overlap: no other one can hold what is asked for.
    """
    columns = authorised.c.last, authorised.c.source, authorised.c.name, authorised.c.expires_at
    key = authorised.c.network_key
    parts = [
        select(literal_column(str(number), Integer).label("number"), *columns)
        .where(key <= bindparam(f"at_{number}"), key >= bindparam(f"low_{number}"))
        .order_by(key.desc())
        .limit(1)
        for number in range(size)
    ]
    return _together(parts, dialect)


def has_providers(connection: Connection) -> bool:
    """True if the operator lets any provider in."""
    return connection.execute(select(provider.c.domain_key).limit(1)).first() is not None


def known_neighbours(
    engine: Engine, settings: Settings, now: int, networks: Container[str]
) -> tuple[dict[str, str], bool]:
    """Returns a known client of each of those NETWORKS that have one; True if all were looked at.

    CLIENTS rows are read at most, in the order of the table's key.
    """
    found: dict[str, str] = {}
    query = (
        select(client.c.address, client.c.passes, client.c.last_seen)
        .order_by(client.c.address)
        .limit(CLIENTS)
    )
    read = 0
    with reading(engine).connect() as connection:
        for address, passes, last in connection.execution_options(yield_per=FETCHED).execute(query):
            read += 1
            if not is_known(ClientRow(last, last, passes), settings, now):
                continue
            try:
                network = normalise.client_network(
                    address, settings.ipv4_prefix, settings.ipv6_prefix
                )
            except ValueError:  # whoever wrote that
                continue
            if network in networks and not normalise.is_private(address):
                found[network] = address
    return found, read < CLIENTS


def address_of(origin: bytes | None) -> str:
    """Returns the client's address of ORIGIN, as ``normalise.client_address``; empty for None."""
    if not origin:
        return ""
    value = int.from_bytes(bytes(origin)[DIGEST:])
    if value >> IPV4_BITS == MAPPED:
        return normalise.address_text(IPV4_BITS, value & 0xFFFFFFFF)
    return normalise.address_text(IPV6_BITS, value)


# --- a release by a link --------------------------------------------------------------------------


def at_first_attempt(engine: Engine, key: bytes, first: int, now: int) -> RowMapping | None:
    """Returns the row of KEY that waits at NOW since FIRST, in seconds since 1970; None if none."""
    with reading(engine).connect() as connection:
        return connection.execute(_waits(key, first, now)).mappings().one_or_none()


def _waits(key: bytes, first: int, now: int) -> Select[Any]:
    return select(triplet).where(
        triplet.c.triplet_key == key,
        triplet.c.first_attempt == first,
        triplet.c.passed_at.is_(None),
        triplet.c.expires_at >= now,
    )


def release_once(
    engine: Engine, key: bytes, first: int, ruling: Callable[[RowMapping], Rule], now: int
) -> Rule | None:
    """Stores the rule that RULING makes of the row of KEY that waits since FIRST; returns the rule.

    Returns None where there is no such row. With the rule the row is moved to a first attempt one
    second before, in one transaction: whoever asks again for the same first attempt finds nothing.
    No check ever moves a first attempt to later, so that nobody undoes this.
    """

    def attempt() -> Rule | None:
        with engine.begin() as connection:
            row = connection.execute(_waits(key, first, now).with_for_update()).mappings().first()
            if row is None:
                return None
            moved = (
                update(triplet)
                .where(triplet.c.triplet_key == key, triplet.c.first_attempt == first)
                .values(first_attempt=first - 1)
            )
            if connection.execute(moved).rowcount != 1:
                return None
            return rulebook.put_within(connection, [ruling(row)], now)[0].rule

    return errors.retry_on_conflict(attempt)
