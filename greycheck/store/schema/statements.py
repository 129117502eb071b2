"""The statements that a check runs, built from the tables.

``for_dialect`` returns them all by name; ``generate`` compiles them ahead of time into
``compiled_*.py``, which the forked child runs. Each writing statement is guarded: it changes one
row, or none if the row is no longer the one that was read.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Delete,
    FromClause,
    Insert,
    Integer,
    LargeBinary,
    Select,
    String,
    Subquery,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    table,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.schema import Table
from sqlalchemy.types import TypeEngine

from greycheck import normalise, rule_keys
from greycheck.store.base import PAIR
from greycheck.store.schema.tables import (
    DIGEST,
    Digest,
    Origin,
    alembic_version,
    authorised,
    client,
    correspondent,
    domain,
    generation,
    rule,
    spf,
    triplet,
)
from greycheck.store.waiting import (
    AUTHORISING,
    CORRESPONDENTS,
    DOMAIN_READ,
    MOST,
    MOST_READ,
    POOL_MOST,
    POOL_READ,
    RANGES,
)
from greycheck.unknown import POOL_GAP

# The columns of a row that a change may set, and that a guard compares.
TRIPLET_STATE = ("first_attempt", "last_attempt", "early_attempts", "passes")
ALSO = ("passed_at", "expires_at")
CLIENT_STATE = ("passes", "first_seen", "last_seen", "strikes", "struck_until")
DOMAIN_STATE = ("passes", "first_seen", "last_seen")


def _rows() -> tuple[list[ColumnElement[Any]], FromClause]:
    """Returns the columns and the FROM of a look-up.

    The columns are the schema's revision, the triplet's and the client's, NULL where there is no
    row.
    """
    one = select(literal_column("1").label("one")).subquery("one")
    columns: list[ColumnElement[Any]] = [
        select(alembic_version.c.version_num).scalar_subquery().label("revision"),
        triplet.c.first_attempt,
        triplet.c.last_attempt,
        triplet.c.early_attempts,
        triplet.c.passes,
        triplet.c.passed_at,
        client.c.first_seen,
        client.c.last_seen,
        client.c.passes.label("client_passes"),
        client.c.strikes,
        client.c.struck_until,
    ]
    return columns, _joined(one, bindparam("triplet_key"), bindparam("address"))


def _joined(one: FromClause, key: ColumnElement[Any], address: ColumnElement[Any]) -> FromClause:
    """Joins ONE row with the triplet of KEY and the client of ADDRESS, or NULL."""
    rows = one.outerjoin(triplet, triplet.c.triplet_key == key)
    return rows.outerjoin(client, client.c.address == address)


def rows() -> Select[tuple[object, ...]]:
    """Returns the query of both rows for the resident, which has revision and rules in memory.

    It asks for as many envelopes as the table ``asked`` has rows, which whoever runs it puts in
    front (WITH). The first column is the triplet's key. The last ones say when the triplet's row
    expires, and if other triplets share the pair; that is NULL if the triplet has passed.
    """
    asked = table("asked", column("wanted", Digest), column("address"))
    (_revision, *columns), _from = _rows()
    other = triplet.alias("other")
    pair = func.substr(asked.c.wanted, literal_column("1"), literal_column(str(PAIR)))
    after = cast(pair.concat(literal_column(f"x'{'ff' * DIGEST}'")), LargeBinary)
    others = exists().where(
        other.c.triplet_key >= pair,
        other.c.triplet_key < after,
        other.c.triplet_key != asked.c.wanted,
    )
    return select(
        asked.c.wanted,
        *columns,
        triplet.c.expires_at,
        case((triplet.c.passes > literal_column("0"), null()), else_=others).label("others"),
    ).select_from(_joined(asked, asked.c.wanted, asked.c.address))


def lookup() -> Select[tuple[object, ...]]:
    """Returns the query of both rows; a last column is true if there is any rule.

    It is for a file, where a second query for the rules is cheap.
    """
    columns, rows = _rows()
    return select(*columns, exists(select(rule.c.match_key)).label("any_rules")).select_from(rows)


def lookup_with_rules(keys: int) -> Select[tuple[object, ...]]:
    """Returns the query of both rows, with each rule under one of so many KEYS.

    It gives one row for each rule, and one row without any. It is for a server, where each round
    trip takes time.
    """
    columns, rows = _rows()
    return select(*columns, *RULE).select_from(
        rows.outerjoin(rule, rule.c.match_key.in_(_keys(keys)))
    )


def revision() -> Select[tuple[object, ...]]:
    """Returns the query of the schema's revision alone, for when the rows cannot be read."""
    return select(alembic_version.c.version_num)


def lock_triplet() -> Select[tuple[object, ...]]:
    """Returns the query that locks the triplet's row until the end of the transaction."""
    key = triplet.c.triplet_key
    return select(key).where(key == bindparam("triplet_key")).with_for_update()


# The columns of a rule that a check needs.
RULE = (
    rule.c.match_key,
    rule.c.kind,
    rule.c.pattern,
    rule.c.action,
    rule.c.delay,
    rule.c.expires_at,
)


def _keys(number: int) -> list[BindParameter[object]]:
    return [bindparam(f"key_{index}") for index in range(number)]


def matching(keys: int) -> Select[tuple[object, ...]]:
    """Returns the query of rules under any of KEYS keys, the parameters ``key_0`` and so on.

    It finds rules of one part, marks and expectations, or the pairs of marked recipients.
    """
    return select(*RULE).where(rule.c.match_key.in_(_keys(keys)))


def all_rules() -> Select[tuple[object, ...]]:
    """Returns the query of every rule, to be kept in memory."""
    return select(*RULE)


def others() -> Select[tuple[object, ...]]:
    """Returns the query that gives one row if another triplet of the same pair exists.

    Only then POOL is needed.
    """
    key = triplet.c.triplet_key
    range_of_pair = and_(key >= bindparam("pair_low"), key < bindparam("pair_high"))
    another: Select[tuple[object, ...]] = select(literal_column("1").label("one")).where(
        range_of_pair, key != bindparam("triplet_key")
    )
    return another.limit(literal_column("1")).offset(literal_column("0"))


def _first_of(
    low: str, high: str, columns: tuple[ColumnElement[Any], ...], most: int, name: str
) -> Subquery:
    """Returns the COLUMNS of the first MOST rows from key LOW to key HIGH, as subquery NAME.

    The limit comes before any condition: it bounds the rows that are read, not those that match.
    The order is that of the index.
    """
    key = triplet.c.triplet_key
    rows = select(*columns).where(key >= bindparam(low), key < bindparam(high)).order_by(key)
    return rows.limit(literal_column(str(most))).offset(literal_column("0")).subquery(name)


def pool(dialect: str) -> Select[tuple[object, ...]]:
    """Returns the query of pending triplets of the pair, for DIALECT.

    Its columns: how many other networks' are pending and the first attempt of the oldest; the
    newest first attempt of the pair; and how many of other networks' came POOL_GAP seconds or more
    after the one before.
    """
    asked = (
        triplet.c.network,
        triplet.c.sender,
        triplet.c.recipient,
        triplet.c.first_attempt,
        triplet.c.passes,
        triplet.c.origin,
        triplet.c.authorised,
    )
    of_pair = _first_of("pair_low", "pair_high", asked, POOL_READ, "of_pair")
    near = (
        select(of_pair.c.network, of_pair.c.first_attempt, of_pair.c.origin, of_pair.c.authorised)
        .where(
            of_pair.c.passes == literal_column("0"),
            of_pair.c.sender == bindparam("sender"),
            of_pair.c.recipient == bindparam("recipient"),
            of_pair.c.first_attempt >= bindparam("since"),
            # One of the future would keep others from passing until its time comes.
            of_pair.c.first_attempt <= bindparam("now"),
        )
        .limit(literal_column(str(POOL_MOST)))
        .offset(literal_column("0"))
        .subquery("near")
    )
    first = near.c.first_attempt
    is_another = near.c.network != bindparam("network")
    before = func.lag(first).over(partition_by=is_another, order_by=first)
    # MySQL would go through all ranges of the domain for each row: the store does that part.
    is_held = None if dialect == "mysql" else _holds(near.c.origin)
    of_domain = case((near.c.authorised == literal_column("1"), literal_column("1")), else_=is_held)
    attempts = select(
        is_another.label("is_another"),
        first,
        (first - before).label("gap"),
        of_domain.label("of_domain"),
    ).subquery("attempts")
    of_another, gap = attempts.c.is_another, attempts.c.gap
    begins_round = or_(gap.is_(None), gap >= literal_column(str(POOL_GAP)))
    columns: list[ColumnElement[Any]] = [
        func.count(case((of_another, literal_column("1")))).label("others"),
        func.min(case((of_another, attempts.c.first_attempt))).label("oldest"),
        func.max(attempts.c.first_attempt).label("newest"),
        func.count(case((and_(of_another, begins_round), literal_column("1")))).label("rounds"),
        func.min(
            case((attempts.c.of_domain == literal_column("1"), attempts.c.first_attempt))
        ).label("of_domain"),
    ]
    return select(*columns)


def _before(
    origin: ColumnElement[Any], low: ColumnElement[Any], dialect: str
) -> ColumnElement[Any]:
    """Returns the query of the key of the range that begins last before ORIGIN, from LOW on.

    Ranges of one domain do not overlap: no other can hold that address. PostgreSQL knows no
    greatest of bytes before 18; the others are quicker with it, and it is the same step in the
    index.
    """
    key = authorised.alias("ranges").c.network_key
    if dialect != "postgresql":
        return select(func.max(key)).where(key <= origin, key >= low).scalar_subquery()
    last = select(key).where(key <= origin, key >= low).order_by(key.desc())
    return last.limit(literal_column("1")).offset(literal_column("0")).scalar_subquery()


def _holds(origin: ColumnElement[Any]) -> ColumnElement[Any]:
    """Returns 1 where the domain asked for authorises the address of ORIGIN; else 0 or NULL."""
    ranges = authorised.alias("ranges")
    is_held = and_(
        # The first 16 bytes are the domain's: all of its ranges compare by the address.
        ranges.c.last >= func.substr(origin, literal_column(str(DIGEST + 1))),
        ranges.c.expires_at > bindparam("now"),
        ranges.c.source.in_([literal_column(f"'{source}'") for source in AUTHORISING]),
    )
    held = select(case((is_held, literal_column("1")), else_=literal_column("0")))
    key = ranges.c.network_key
    last = held.where(key <= origin, key >= bindparam("domain_key")).order_by(key.desc())
    return last.limit(literal_column("1")).offset(literal_column("0")).scalar_subquery()


def _identity_columns(own: FromClause, of_provider: FromClause) -> list[ColumnElement[Any]]:
    """Returns the columns of IDENTITY, with those of two ranges: the domain's, and a provider's."""
    return [
        domain.c.passes.label("domain_passes"),
        domain.c.first_seen,
        domain.c.last_seen,
        spf.c.state,
        spf.c.answered_at,
        spf.c.expires_at.label("spf_expires"),
        own.c.last,
        own.c.source,
        own.c.expires_at.label("own_expires"),
        of_provider.c.last.label("provider_last"),
        of_provider.c.name.label("provider_name"),
        of_provider.c.expires_at.label("provider_expires"),
        correspondent.c.last_seen.label("written_at"),
        correspondent.c.expires_at.label("written_expires"),
    ]


def identity(dialect: str) -> Select[tuple[object, ...]]:
    """Returns the query of what is known of a client and its sender's domain, for DIALECT.

    The domain's row; the state of its SPF, and when DNS answered; the range that may hold the
    client, of the domain's and of all providers'; and when the recipient last wrote to the sender.
    They are in one row.
    """
    one = select(literal_column("1").label("one")).subquery("one")
    keys: dict[str, ColumnElement[Any]] = {
        name: bindparam(name, type_=Origin if name.endswith("origin") else None)
        for name in IDENTITY_KEYS
    }
    columns, joined = _identity(dialect, one, keys)
    return select(*columns).select_from(joined)


def identities() -> Select[tuple[object, ...]]:
    """Returns the same query for the resident's file, for all rows of the table ``asked``.

    Whoever runs it puts that table in front (WITH). The first column is the origin asked for.
    """
    asked = table("asked", *(column(name) for name in IDENTITY_KEYS))
    columns, joined = _identity("sqlite", asked, dict(asked.c.items()))
    return select(asked.c.origin, *columns).select_from(joined)


# What ``identity`` is asked with.
IDENTITY_KEYS = ("domain_key", "origin", "provider_origin", "provider_key", "pair_key")


def _identity(
    dialect: str, one: FromClause, keys: dict[str, ColumnElement[Any]]
) -> tuple[list[ColumnElement[Any]], FromClause]:
    """Returns the columns and the FROM of ``identity``, with KEYS, for each row of ONE."""
    own, of_provider = authorised.alias("own"), authorised.alias("of_provider")
    own_key = _before(keys["origin"], keys["domain_key"], dialect)
    provider_key = _before(keys["provider_origin"], keys["provider_key"], dialect)
    joined: FromClause = one.outerjoin(domain, domain.c.domain_key == keys["domain_key"])
    joined = joined.outerjoin(spf, spf.c.domain_key == keys["domain_key"])
    joined = joined.outerjoin(own, own.c.network_key == own_key)
    joined = joined.outerjoin(of_provider, of_provider.c.network_key == provider_key)
    joined = joined.outerjoin(correspondent, correspondent.c.pair_key == keys["pair_key"])
    return _identity_columns(own, of_provider), joined


def networks() -> Select[tuple[object, ...]]:
    """Returns the query of the networks from which the pair waits, as a pool's attempts do.

    Also the first attempt and the origin of each.
    """
    of_pair = _first_of(
        "pair_low",
        "pair_high",
        (
            triplet.c.network,
            triplet.c.sender,
            triplet.c.recipient,
            triplet.c.first_attempt,
            triplet.c.passes,
            triplet.c.origin,
        ),
        POOL_READ,
        "of_pair",
    )
    return (
        select(of_pair.c.network, of_pair.c.first_attempt, of_pair.c.origin)
        .where(
            of_pair.c.passes == literal_column("0"),
            of_pair.c.sender == bindparam("sender"),
            of_pair.c.recipient == bindparam("recipient"),
            of_pair.c.first_attempt >= bindparam("since"),
        )
        .limit(literal_column(str(POOL_MOST)))
        .offset(literal_column("0"))
    )


def ranges() -> Select[tuple[object, ...]]:
    """Returns the query of the ranges of a domain, in order, as many as one may have."""
    key = authorised.c.network_key
    columns = key, authorised.c.last, authorised.c.source, authorised.c.expires_at
    of_domain = select(*columns).where(key >= bindparam("domain_key"), key <= bindparam("high"))
    return (
        of_domain.order_by(key).limit(literal_column(str(DOMAIN_READ))).offset(literal_column("0"))
    )


def correspondence() -> Select[tuple[object, ...]]:
    """Returns the query of how long somebody whom one of our users wrote to may answer him."""
    found = correspondent.c.pair_key == bindparam("pair_key")
    return select(correspondent.c.expires_at).where(found)


def correspondents() -> Select[tuple[object, ...]]:
    """Returns the query that counts whom one user wrote to, up to ``base.CORRESPONDENTS``."""
    key = correspondent.c.pair_key
    near = (
        select(literal_column("1").label("one"))
        .where(key >= bindparam("pair_low"), key < bindparam("pair_high"))
        .order_by(key)
        .limit(literal_column(str(CORRESPONDENTS)))
        .offset(literal_column("0"))
        .subquery("of_user")
    )
    columns: list[ColumnElement[Any]] = [func.count().label("correspondents")]
    return select(*columns).select_from(near)


def crowd(dialect: str) -> Select[tuple[object, ...]]:
    """Returns the query that counts the network's pending triplets, up to its limit, for DIALECT.

    For an equality and a limit PostgreSQL uses another index, or reads the whole table, if it
    expects many rows. So it gets a range of one network in an order that only the right index has.
    """
    network: BindParameter[object] = bindparam("network")
    now: BindParameter[object] = bindparam("now")
    none: ColumnElement[int] = literal_column("0")
    wanted: tuple[ColumnElement[bool], ...]
    if dialect == "postgresql":
        columns = tuple_(triplet.c.network, triplet.c.passes, triplet.c.expires_at)
        wanted = (columns >= tuple_(network, none, now), triplet.c.network <= network)
    else:
        wanted = (triplet.c.network == network, triplet.c.expires_at >= now)
    near = (
        select(literal_column("1").label("one"))
        .where(triplet.c.passes == none, *wanted)
        .order_by(triplet.c.network, triplet.c.passes, triplet.c.expires_at)
        .limit(bindparam("network_limit", type_=Integer))
        .offset(literal_column("0"))
        .subquery("of_network")
    )
    counted: list[ColumnElement[Any]] = [func.count().label("crowd")]
    return select(*counted).select_from(near)


def pending(index: int = 0) -> Select[tuple[object, ...]]:
    """Returns the query that counts pending triplets in a range of keys, up to ``base.MOST``.

    INDEX is the number of the range.
    """
    of_range = _first_of(
        f"low_{index}",
        f"high_{index}",
        (triplet.c.passes, triplet.c.expires_at),
        MOST_READ,
        f"of_range_{index}",
    )
    near = (
        select(literal_column("1").label("one"))
        .where(of_range.c.passes == literal_column("0"), of_range.c.expires_at >= bindparam("now"))
        .limit(literal_column(str(MOST)))
        .offset(literal_column("0"))
        .subquery(f"range_{index}")
    )
    columns: list[ColumnElement[Any]] = [func.count().label("total")]
    return select(*columns).select_from(near)


def waiting(dialect: str) -> Select[tuple[object, ...]]:
    """Returns the query that joins POOL, IDENTITY, CROWD and each PENDING, for DIALECT."""
    parts: list[FromClause] = [
        pool(dialect).subquery("pool"),
        identity(dialect).subquery("identity"),
        crowd(dialect).subquery("crowd"),
    ]
    parts += [pending(index).subquery(f"pending_{index}") for index in range(RANGES)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part, true())
    return select(*(column for part in parts for column in part.c)).select_from(joined)


# --- of many questions at once ------------------------------------------------------------------
#
# For residents over a server. Each is compiled for one question; ``resident.wide`` makes it as wide
# as there are questions.


def found(dialect: str) -> CompoundSelect[tuple[object, ...]]:
    """Returns the query of the rows of many triplets and clients, for DIALECT: those there are.

    A triplet's row has its key and no address, a client's its address and no key. One row has
    neither key nor address, but the schema's revision and the generation of the rules.
    """
    none: ColumnElement[Any] = null()

    def one_of(key: ColumnElement[Any]) -> ColumnElement[bool]:
        if dialect == "postgresql":
            return key == func.any(_array(key.name, key.type))
        given: BindParameter[Any] = bindparam(key.name, expanding=True)
        return key.in_(given)

    triplets = select(
        triplet.c.triplet_key.label("triplet_key"),
        none.label("address"),
        triplet.c.first_attempt.label("a"),
        triplet.c.last_attempt.label("b"),
        triplet.c.early_attempts.label("c"),
        triplet.c.passes.label("d"),
        triplet.c.passed_at.label("e"),
    ).where(one_of(triplet.c.triplet_key))
    clients = select(
        none,
        client.c.address,
        client.c.first_seen,
        client.c.last_seen,
        client.c.passes,
        client.c.strikes,
        client.c.struck_until,
    ).where(one_of(client.c.address))
    number = select(generation.c.number).where(generation.c.name == literal_column("'rule'"))
    schema = select(
        none,
        select(alembic_version.c.version_num).scalar_subquery(),
        number.scalar_subquery(),
        none,
        none,
        none,
        none,
    )
    return union_all(triplets, clients, schema)


def waits() -> Select[tuple[object, ...]]:
    """Returns the query of whether the pair waits elsewhere too, and of IDENTITY, for PostgreSQL.

    Its first column is the question's place among all, as rows come in any order; its second one is
    true where another triplet has the pair: only then POOL is needed. No key tells questions apart:
    clients of one network have the same triplet, each with an identity of its own.
    """
    of_pair = ("triplet_key", "pair_low", "pair_high", "pair_key")
    of_client = ("domain_key", "origin", "provider_key", "provider_origin")
    types: dict[str, TypeEngine[Any]] = {"place": BigInteger()}
    asked = _asked("postgresql", types | dict.fromkeys((*of_pair, *of_client), Origin))
    own = _range_before(asked.c.origin, asked.c.domain_key).lateral("own")
    of_provider = _range_before(asked.c.provider_origin, asked.c.provider_key).lateral(
        "of_provider"
    )
    joined = asked.outerjoin(domain, domain.c.domain_key == asked.c.domain_key)
    joined = joined.outerjoin(spf, spf.c.domain_key == asked.c.domain_key)
    joined = joined.outerjoin(own, true()).outerjoin(of_provider, true())
    joined = joined.outerjoin(correspondent, correspondent.c.pair_key == asked.c.pair_key)
    others = _others(asked.c.triplet_key, asked.c.pair_low, asked.c.pair_high)
    columns = [
        asked.c.place,
        others.label("others"),
        *_identity_columns(own, of_provider),
    ]
    return select(*columns).select_from(joined)


# The parts of what waits for MySQL's dialect, and the numbers by which their rows are told apart.
PARTS = ("DOMAINS", "SPF", "WRITTEN", "NEAR", "RANGES", "PROVIDERS")


def waits_in_parts() -> dict[str, Select[tuple[object, ...]]]:
    """Returns the queries of what WAITS has, for MySQL's dialect, to be asked as one UNION ALL.

    That dialect goes through all of an index where a range depends on another row. So each query
    gives the rows of all questions, and the store puts together what belongs to one. Their columns:
    the number of the part, a key, the key of a range, three numbers, a text, the last address of a
    range. Those with ranges end at a limit.
    """
    none: ColumnElement[Any] = null()
    near, ranges = triplet.c.triplet_key, authorised.c
    most: BindParameter[object] = bindparam("most", type_=Integer)

    def part(name: str, *columns: ColumnElement[Any]) -> Select[tuple[object, ...]]:
        number: ColumnElement[Any] = literal_column(str(PARTS.index(name))).label("part")
        return select(number, *columns, *[none] * (7 - len(columns)))

    def one_of(key: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        values: BindParameter[Any] = bindparam(name, expanding=True)
        return key.in_(values)

    def row(table: Table, *names: str) -> tuple[ColumnElement[Any], ...]:
        key = next(iter(table.primary_key))
        return key, none, *(table.c[name] if name else none for name in names)

    domains = part("DOMAINS", *row(domain, "passes", "first_seen", "last_seen"))
    records = part("SPF", *row(spf, "answered_at", "expires_at", "", "state"))
    written = part("WRITTEN", *row(correspondent, "last_seen", "expires_at"))
    pairs = part("NEAR", near)
    held = part(
        "RANGES",
        none,
        ranges.network_key,
        ranges.expires_at,
        none,
        none,
        ranges.source,
        ranges.last,
    )
    of_provider = (
        ranges.network_key >= bindparam("provider_key"),
        ranges.network_key <= bindparam("high"),
    )
    return {
        "DOMAINS": domains.where(one_of(domain.c.domain_key, "domain_key")),
        "SPF": records.where(one_of(spf.c.domain_key, "domain_key")),
        "WRITTEN": written.where(one_of(correspondent.c.pair_key, "pair_key")),
        "NEAR": pairs.where(near >= bindparam("pair_low"), near < bindparam("pair_high"))
        .limit(most)
        .offset(literal_column("0")),
        "RANGES": held.where(
            ranges.network_key >= bindparam("domain_key"), ranges.network_key <= bindparam("origin")
        )
        .limit(most)
        .offset(literal_column("0")),
        "PROVIDERS": part("PROVIDERS", none, none, exists().where(*of_provider)),
    }


def provider_range() -> Select[tuple[object, ...]]:
    """Returns the query of the range of a provider that may hold a client, with that client."""
    origin: ColumnElement[Any] = bindparam("provider_origin", type_=Origin)
    ranges = _range_before(origin, bindparam("provider_key")).subquery("of_provider")
    return select(origin.label("wanted"), ranges.c.last, ranges.c.name, ranges.c.expires_at)


def _others(
    key: ColumnElement[Any], low: ColumnElement[Any], high: ColumnElement[Any]
) -> ColumnElement[bool]:
    other = triplet.alias("other").c.triplet_key
    return exists().where(other >= low, other < high, other != key)


def _range_before(
    origin: ColumnElement[Any], low: ColumnElement[Any]
) -> Select[tuple[object, ...]]:
    """Returns the query of the range that begins last before ORIGIN, from LOW on."""
    ranges = authorised.alias("ranges").c
    last = select(ranges.last, ranges.source, ranges.name, ranges.expires_at)
    last = last.where(ranges.network_key <= origin, ranges.network_key >= low)
    last = last.order_by(ranges.network_key.desc())
    return last.limit(literal_column("1")).offset(literal_column("0"))


def _asked(dialect: str, types: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """Returns a table ``asked`` for DIALECT: parameters of these TYPES, by name.

    It has one row; for PostgreSQL each parameter is an array, with an element for each row.
    """
    if dialect == "postgresql":
        given = [_array(name, kind) for name, kind in types.items()]
        columns = [column(name, kind) for name, kind in types.items()]
        return func.unnest(*given).table_valued(*columns).render_derived(name="asked")
    of_one: dict[str, ColumnElement[Any]] = {
        name: bindparam(name, type_=kind)
        if isinstance(kind, LargeBinary)
        else cast(bindparam(name), kind)
        for name, kind in types.items()
    }
    return select(*(value.label(name) for name, value in of_one.items())).subquery("asked")


def _array(name: str, kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """Returns the parameter NAME, an array of KIND, for PostgreSQL.

    Of texts without a limit: a cast would cut those that are longer.
    """
    element = Text() if isinstance(kind, String) else kind
    return cast(bindparam(name), postgresql.ARRAY(element))


def swap_many(table: Table, state: tuple[str, ...], also: tuple[str, ...], dialect: str) -> Update:
    """Returns SWAP of many rows, for DIALECT: it changes those whose STATE is what was read."""
    key = next(iter(table.primary_key))
    types: dict[str, TypeEngine[Any]] = {name: BigInteger() for name in (*state, *also)}
    types |= {f"key_{key.name}": key.type} | {f"was_{name}": BigInteger() for name in state}
    asked = _asked(dialect, types)
    return _swapped(table, asked, f"key_{key.name}", state, also)


def _swapped(
    table: Table, asked: FromClause, key: str, state: tuple[str, ...], also: tuple[str, ...]
) -> Update:
    """Returns SWAP of the rows of TABLE that are ASKED for, by the column KEY of that."""
    unchanged = [table.c[name] == asked.c[f"was_{name}"] for name in state]
    return (
        update(table)
        .where(and_(next(iter(table.primary_key)) == asked.c[key], *unchanged))
        .values({name: asked.c[name] for name in (*state, *also)})
    )


def take_lock() -> Delete:
    """Returns a statement that locks a file for writing until the transaction ends.

    It changes nothing.
    """
    return delete(rule).where(false())


def insert_if_absent(table: Table, dialect: str) -> Insert:
    """Returns the statement that inserts a row if its key does not exist.

    It changes one row, or none.
    """
    values: dict[str, object] = {column.name: bindparam(column.name) for column in table.columns}
    if dialect == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_nothing()
    if dialect == "postgresql":
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    key = next(iter(table.primary_key))
    # INSERT IGNORE would let wrong values pass too. A key that is set to itself counts as no row
    # changed.
    return mysql.insert(table).values(values).on_duplicate_key_update({key.name: key})


def insert_many(table: Table) -> Insert:
    """Returns the statement that inserts the rows whose keys do not exist, for PostgreSQL."""
    asked = _asked("postgresql", {column.name: column.type for column in table.columns})
    return _inserted(table, asked)


def _inserted(
    table: Table, asked: FromClause, only: ColumnElement[bool] | None = None
) -> postgresql.Insert:
    """Returns INSERT of the rows of TABLE that are ASKED for, of those with ONLY."""
    rows = select(*(asked.c[column.name] for column in table.columns))
    if only is not None:
        rows = rows.where(only)
    return postgresql.insert(table).from_select(list(table.columns), rows).on_conflict_do_nothing()


def write_triplets() -> CompoundSelect[tuple[object, ...]]:
    """Returns what inserts the triplets whose keys do not exist, and swaps others, for PostgreSQL.

    One statement does all of it and commits. ``asked`` has a row for each: one that is new has no
    ``was_passes``. It yields the keys of those that were written.
    """
    state = {f"was_{name}": triplet.c[name].type for name in TRIPLET_STATE}
    kinds = {column.name: column.type for column in triplet.columns} | state
    asked = select(*_asked("postgresql", kinds).c).cte("asked")
    key, is_new = triplet.c.triplet_key, asked.c.was_passes.is_(None)
    inserted = _inserted(triplet, asked, is_new).returning(key).cte("inserted")
    swaps = _swapped(triplet, asked, key.name, TRIPLET_STATE, ALSO)
    swapped = swaps.returning(key).cte("swapped")
    return union_all(select(inserted.c.triplet_key), select(swapped.c.triplet_key))


def put(
    table: Table,
    dialect: str,
    renewed: tuple[str, ...],
    only: ColumnElement[bool] | None = None,
) -> Insert:
    """Returns the statement that inserts a row, or sets only RENEWED columns of one there is.

    With ONLY, of one that this is true of.
    """

    def new(column: ColumnElement[Any]) -> ColumnElement[Any]:
        own = table.c[str(column.key)]
        return column if only is None else case((only, column), else_=own)

    values: dict[str, object] = {column.name: bindparam(column.name) for column in table.columns}
    key = next(iter(table.primary_key))
    if dialect == "mysql":
        one = mysql.insert(table).values(values)
        return one.on_duplicate_key_update({name: new(one.inserted[name]) for name in renewed})
    if dialect == "sqlite":
        here = sqlite.insert(table).values(values)
        return here.on_conflict_do_update(
            [key], set_={name: new(here.excluded[name]) for name in renewed}
        )
    there = postgresql.insert(table).values(values)
    return there.on_conflict_do_update(
        index_elements=[key], set_={name: new(there.excluded[name]) for name in renewed}
    )


def swap(table: Table, state: tuple[str, ...], also: tuple[str, ...]) -> Update:
    """Returns the statement that sets the columns STATE and ALSO of one row.

    It changes nothing unless STATE is still what was read (``was_...``).
    """
    key = next(iter(table.primary_key))
    unchanged = [table.c[name] == bindparam(f"was_{name}") for name in state]
    return (
        update(table)
        .where(and_(key == bindparam(f"key_{key.name}"), *unchanged))
        .values({name: bindparam(name) for name in (*state, *also)})
    )


def count_early() -> Update:
    """Returns the statement that counts an early attempt of a triplet, whose end does not change.

    It is what ``swap`` would do, but no index has to be written.
    """
    columns = (*(triplet.c[name] for name in TRIPLET_STATE), triplet.c.expires_at)
    unchanged = [column == bindparam(f"was_{column.name}") for column in columns]
    return (
        update(triplet)
        .where(and_(triplet.c.triplet_key == bindparam("key_triplet_key"), *unchanged))
        .values({name: bindparam(name) for name in ("last_attempt", "early_attempts")})
    )


Statement = (
    Select[tuple[object, ...]] | CompoundSelect[tuple[object, ...]] | Insert | Update | Delete
)


def for_dialect(name: str) -> dict[str, Statement]:
    """Returns every statement of a check, by name, for the dialect NAME (one of COMPILERS)."""
    versions = {"IPV4": normalise.IPV4_BITS, "IPV6": normalise.IPV6_BITS}
    most = {kind: rule_keys.MOST_KEYS[bits] for kind, bits in versions.items()}
    looking: dict[str, Statement]
    if name == "sqlite":
        looking = {
            "LOOKUP": lookup(),
            **{f"RULES_{kind}": matching(keys) for kind, keys in most.items()},
        }
        looking |= {
            "TAKE_LOCK": take_lock(),
            "ROWS": rows(),
            "IDENTITIES": identities(),
            "COUNT_EARLY": count_early(),
            "ALL_RULES": all_rules(),
            "OTHERS": others(),
            "POOL": pool(name),
            "CROWD": crowd(name),
            "PENDING": pending(),
        }
    else:
        looking = {f"LOOKUP_{kind}": lookup_with_rules(keys) for kind, keys in most.items()}
        looking["LOCK_TRIPLET"] = lock_triplet()
        looking["WAITING"] = waiting(name)
        looking |= {
            "ALL_RULES": all_rules(),
            "FOUND": found(name),
            "CROWD": crowd(name),
            "PENDING": pending(),
            "SWAP_TRIPLETS": swap_many(triplet, TRIPLET_STATE, ALSO, name),
            "SWAP_CLIENTS": swap_many(client, CLIENT_STATE, ("expires_at",), name),
        }
        if name == "mysql":
            looking["DOMAIN_RANGES"] = ranges()
            looking |= {f"WAITS_{part}": query for part, query in waits_in_parts().items()}
            looking["PROVIDER_RANGE"] = provider_range()
        else:
            looking["WAITS"] = waits()
            looking["WRITE_TRIPLETS"] = write_triplets()
            looking["INSERT_CLIENTS"] = insert_many(client)
    for kind, bits in versions.items():
        looking[f"PAIRS_{kind}"] = matching(rule_keys.MOST_FIRST_KEYS[bits])
    return {
        "SCHEMA": revision(),
        **looking,
        "IDENTITY": identity(name),
        "NETWORKS": networks(),
        "INSERT_TRIPLET": insert_if_absent(triplet, name),
        "SWAP_TRIPLET": swap(triplet, TRIPLET_STATE, ALSO),
        "INSERT_CLIENT": insert_if_absent(client, name),
        "SWAP_CLIENT": swap(client, CLIENT_STATE, also=("expires_at",)),
        "INSERT_DOMAIN": insert_if_absent(domain, name),
        "SWAP_DOMAIN": swap(domain, DOMAIN_STATE, also=("expires_at",)),
        # A range that the domain itself named stays as it is.
        "PUT_NETWORK": put(
            authorised, name, ("expires_at",), authorised.c.source == literal_column("'pool'")
        ),
        "CORRESPONDENT": correspondence(),
        "CORRESPONDENTS": correspondents(),
        "PUT_CORRESPONDENT": put(correspondent, name, ("last_seen", "expires_at")),
        "DELETE_RULE": delete(rule).where(rule.c.match_key == bindparam("match_key")),
    }


# Parameters are positional, as drivers expect them.
COMPILERS: dict[str, Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),  # type: ignore[no-untyped-call, unused-ignore]
    "postgresql": psycopg2.dialect(paramstyle="format"),  # type: ignore[no-untyped-call, unused-ignore]
    "mysql": mysql.dialect(paramstyle="format"),  # type: ignore[no-untyped-call, unused-ignore]
}
