"""The statements that a check runs, built from the tables.

``for_dialect`` gives them all by name; ``generate`` compiles them ahead of time into ``compiled_*.py``, which the forked child runs.
Each writing statement is guarded: it changes one row, or none where the row is no longer what was read.
"""

from sqlalchemy import Insert, Select, Update, and_, bindparam, literal_column, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.schema import Table

from greycheck.store.tables import alembic_version, client, triplet

# Columns of a row that a change may set, and that a guard compares.
TRIPLET_STATE = ("first_attempt", "last_attempt", "early_attempts", "passes")
CLIENT_STATE = ("passes", "first_seen", "last_seen")


def lookup() -> Select[tuple[object, ...]]:
    """The schema's revision, the triplet's row and the client's, in one row; NULL where there is none."""
    one = select(literal_column("1").label("one")).subquery("one")
    return select(
        select(alembic_version.c.version_num).scalar_subquery().label("revision"),
        triplet.c.first_attempt,
        triplet.c.last_attempt,
        triplet.c.early_attempts,
        triplet.c.passes,
        triplet.c.passed_at,
        client.c.first_seen,
        client.c.last_seen,
        client.c.passes.label("client_passes"),
    ).select_from(
        one.outerjoin(triplet, triplet.c.triplet_key == bindparam("triplet_key")).outerjoin(
            client, client.c.address == bindparam("address")
        )
    )


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


def for_dialect(name: str) -> dict[str, Select[tuple[object, ...]] | Insert | Update]:
    """Every statement of a check, by name, for the dialect NAME (one of COMPILERS)."""
    return {
        "LOOKUP": lookup(),
        "INSERT_TRIPLET": insert_if_absent(triplet, name),
        "SWAP_TRIPLET": swap(triplet, TRIPLET_STATE, also=("passed_at", "expires_at")),
        "INSERT_CLIENT": insert_if_absent(client, name),
        "SWAP_CLIENT": swap(client, CLIENT_STATE, also=("expires_at",)),
    }


# Parameters are positional, as the lean drivers take them.
COMPILERS: dict[str, Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),  # type: ignore[no-untyped-call, unused-ignore]
    "postgresql": psycopg2.dialect(paramstyle="format"),  # type: ignore[no-untyped-call, unused-ignore]
    "mysql": mysql.dialect(paramstyle="format"),  # type: ignore[no-untyped-call, unused-ignore]
}
