"""The statements that a check runs, built from the tables.

``for_dialect`` gives them all by name; ``generate`` compiles them ahead of time into ``compiled_*.py``, which the forked child runs.
Each writing statement is guarded: it changes one row, or none where the row is no longer what was read.
"""

from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Delete,
    FromClause,
    Insert,
    Integer,
    LargeBinary,
    Select,
    Subquery,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    false,
    func,
    literal_column,
    null,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.schema import Table

from greycheck import normalise, rules
from greycheck.store.lean import MOST, MOST_READ, PAIR, POOL_MOST, POOL_READ, RANGES
from greycheck.store.tables import DIGEST, Digest, alembic_version, client, rule, triplet

# Columns of a row that a change may set, and that a guard compares.
TRIPLET_STATE = ("first_attempt", "last_attempt", "early_attempts", "passes")
CLIENT_STATE = ("passes", "first_seen", "last_seen", "strikes", "struck_until")


def _rows() -> tuple[list[ColumnElement[Any]], FromClause]:
    """The schema's revision, the triplet's columns and the client's, NULL where there is no row; and where they come from."""
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
    """ONE row beside the triplet of KEY and the client of ADDRESS, if they are there."""
    rows = one.outerjoin(triplet, triplet.c.triplet_key == key)
    return rows.outerjoin(client, client.c.address == address)


def rows() -> Select[tuple[object, ...]]:
    """The rows, for whoever knows the rest, and whether there may be others of the same pair, NULL where the triplet has passed."""
    asked = select(
        bindparam("triplet_key", type_=Digest).label("wanted"), bindparam("address").label("address")
    ).subquery("asked")
    (_revision, *columns), _from = _rows()
    other = triplet.alias("other")
    pair = func.substr(asked.c.wanted, literal_column("1"), literal_column(str(PAIR)))
    after = cast(pair.concat(literal_column(f"x'{'ff' * DIGEST}'")), LargeBinary)
    others = exists().where(
        other.c.triplet_key >= pair, other.c.triplet_key < after, other.c.triplet_key != asked.c.wanted
    )
    return select(
        *columns, case((triplet.c.passes > literal_column("0"), null()), else_=others).label("others")
    ).select_from(_joined(asked, asked.c.wanted, asked.c.address))


def lookup() -> Select[tuple[object, ...]]:
    """The rows, and whether there are any rules: for a file, where asking for these is cheap when there are."""
    columns, rows = _rows()
    return select(*columns, exists(select(rule.c.match_key)).label("any_rules")).select_from(rows)


def lookup_with_rules(keys: int) -> Select[tuple[object, ...]]:
    """The rows once for each rule under any of so many KEYS, and at least once: for a server, where a round trip is what costs."""
    columns, rows = _rows()
    return select(*columns, *RULE).select_from(rows.outerjoin(rule, rule.c.match_key.in_(_keys(keys))))


def revision() -> Select[tuple[object, ...]]:
    """The schema's revision alone, for where the rows cannot be read."""
    return select(alembic_version.c.version_num)


def lock_triplet() -> Select[tuple[object, ...]]:
    """Waits until nobody else is changing the triplet, and keeps it so until the transaction's end."""
    key = triplet.c.triplet_key
    return select(key).where(key == bindparam("triplet_key")).with_for_update()


# What a check wants to know of a rule.
RULE = (rule.c.match_key, rule.c.kind, rule.c.pattern, rule.c.action, rule.c.delay, rule.c.expires_at)


def _keys(number: int) -> list[BindParameter[object]]:
    return [bindparam(f"key_{index}") for index in range(number)]


def matching(keys: int) -> Select[tuple[object, ...]]:
    """The rules under any of so many KEYS, parameters ``key_0`` and so on."""
    return select(*RULE).where(rule.c.match_key.in_(_keys(keys)))


def all_rules() -> Select[tuple[object, ...]]:
    """Every rule, for whoever keeps them in memory."""
    return select(*RULE)


def others() -> Select[tuple[object, ...]]:
    """One row where any other triplet of the same pair is: only then is there something to ask POOL for."""
    key = triplet.c.triplet_key
    range_of_pair = and_(key >= bindparam("pair_low"), key < bindparam("pair_high"))
    another: Select[tuple[object, ...]] = select(literal_column("1").label("one")).where(
        range_of_pair, key != bindparam("triplet_key")
    )
    return another.limit(literal_column("1")).offset(literal_column("0"))


def _first_of(low: str, high: str, columns: tuple[ColumnElement[Any], ...], most: int, name: str) -> Subquery:
    """The COLUMNS of the first rows of a range of keys, MOST of them, under NAME: what they say is asked of no more than these.

    The limit comes before any condition: it bounds the rows that are read, not those that are answered. The order keeps to the index.
    """
    key = triplet.c.triplet_key
    rows = select(*columns).where(key >= bindparam(low), key < bindparam(high)).order_by(key)
    return rows.limit(literal_column(str(most))).offset(literal_column("0")).subquery(name)


def pool() -> Select[tuple[object, ...]]:
    """How many others of the same pair wait, the oldest since when; the newest of the pair, and the least time between two of them."""
    asked = (triplet.c.network, triplet.c.sender, triplet.c.recipient, triplet.c.first_attempt, triplet.c.passes)
    of_pair = _first_of("pair_low", "pair_high", asked, POOL_READ, "of_pair")
    near = (
        select(of_pair.c.network, of_pair.c.first_attempt)
        .where(
            of_pair.c.passes == literal_column("0"),
            of_pair.c.sender == bindparam("sender"),
            of_pair.c.recipient == bindparam("recipient"),
            of_pair.c.first_attempt >= bindparam("since"),
        )
        .limit(literal_column(str(POOL_MOST)))
        .offset(literal_column("0"))
        .subquery("near")
    )
    first = near.c.first_attempt
    before = func.lag(first).over(order_by=first)
    attempts = select(near.c.network, first, (first - before).label("gap")).subquery("attempts")
    of_another = attempts.c.network != bindparam("network")
    columns: list[ColumnElement[Any]] = [
        func.count(case((of_another, literal_column("1")))).label("others"),
        func.min(case((of_another, attempts.c.first_attempt))).label("oldest"),
        func.max(attempts.c.first_attempt).label("newest"),
        func.min(attempts.c.gap).label("gap"),
    ]
    return select(*columns)


def crowd(dialect: str) -> Select[tuple[object, ...]]:
    """How many of one network wait, and are not over, up to its limit; for the database DIALECT.

    PostgreSQL takes another index for an equality and a limit, or reads the table, where it believes that there are many. A range of one
    network in an order that only the right index has leaves it no choice.
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
    """How many of all triplets in a range of keys wait, and are not over, up to ``lean.MOST``. INDEX is that of the range."""
    of_range = _first_of(
        f"low_{index}", f"high_{index}", (triplet.c.passes, triplet.c.expires_at), MOST_READ, f"of_range_{index}"
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
    """What POOL and CROWD say, and what PENDING says of each range of keys, in one row; for the database DIALECT."""
    parts: list[FromClause] = [pool().subquery("pool"), crowd(dialect).subquery("crowd")]
    parts += [pending(index).subquery(f"pending_{index}") for index in range(RANGES)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part, true())
    return select(*(column for part in parts for column in part.c)).select_from(joined)


def take_lock() -> Delete:
    """Writes nothing, and lets nobody else write to a file until the transaction's end."""
    return delete(rule).where(false())


def insert_if_absent(table: Table, dialect: str) -> Insert:
    """Inserts a row whose primary key is not there yet: one row changed, or none."""
    values: dict[str, object] = {column.name: bindparam(column.name) for column in table.columns}
    if dialect == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_nothing()
    if dialect == "postgresql":
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    key = next(iter(table.primary_key))
    # Not INSERT IGNORE, which would let wrong values pass as well. Setting a key to itself counts as no row changed.
    return mysql.insert(table).values(values).on_duplicate_key_update({key.name: key})


def swap(table: Table, state: tuple[str, ...], also: tuple[str, ...]) -> Update:
    """Sets the columns STATE and ALSO of one row, where STATE still is what was read (``was_...``)."""
    key = next(iter(table.primary_key))
    unchanged = [table.c[name] == bindparam(f"was_{name}") for name in state]
    return (
        update(table)
        .where(and_(key == bindparam(f"key_{key.name}"), *unchanged))
        .values({name: bindparam(name) for name in (*state, *also)})
    )


Statement = Select[tuple[object, ...]] | Insert | Update | Delete


def for_dialect(name: str) -> dict[str, Statement]:
    """Every statement of a check, by name, for the dialect NAME (one of COMPILERS)."""
    most = {"IPV4": rules.MOST_KEYS[normalise.IPV4_BITS], "IPV6": rules.MOST_KEYS[normalise.IPV6_BITS]}
    looking: dict[str, Statement]
    if name == "sqlite":
        looking = {"LOOKUP": lookup(), **{f"RULES_{kind}": matching(keys) for kind, keys in most.items()}}
        looking |= {
            "TAKE_LOCK": take_lock(),
            "ROWS": rows(),
            "ALL_RULES": all_rules(),
            "OTHERS": others(),
            "POOL": pool(),
            "CROWD": crowd(name),
            "PENDING": pending(),
        }
    else:
        looking = {f"LOOKUP_{kind}": lookup_with_rules(keys) for kind, keys in most.items()}
        looking["LOCK_TRIPLET"] = lock_triplet()
        looking["WAITING"] = waiting(name)
    return {
        "SCHEMA": revision(),
        **looking,
        "INSERT_TRIPLET": insert_if_absent(triplet, name),
        "SWAP_TRIPLET": swap(triplet, TRIPLET_STATE, also=("passed_at", "expires_at")),
        "INSERT_CLIENT": insert_if_absent(client, name),
        "SWAP_CLIENT": swap(client, CLIENT_STATE, also=("expires_at",)),
        "DELETE_RULE": delete(rule).where(rule.c.match_key == bindparam("match_key")),
    }


# Parameters are positional, as the lean drivers take them.
COMPILERS: dict[str, Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),  # type: ignore[no-untyped-call, unused-ignore]
    "postgresql": psycopg2.dialect(paramstyle="format"),  # type: ignore[no-untyped-call, unused-ignore]
    "mysql": mysql.dialect(paramstyle="format"),  # type: ignore[no-untyped-call, unused-ignore]
}
