"""The key of a triplet begins with what its pair of sender and recipient have in common, so that
pools need no index of their own.

A new triplet is written at one random place instead of two. SQLite keeps rows in the order they
come from now on, so that place is one of a tree of keys alone. It fits no older program: that looks
for rows under other keys.
"""

import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from greycheck.store.schema import migration_ops

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
moves_rows = True

digest = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")

# The first 4 bytes of the pair's digest, then the first 12 of the old key, which is that of all
# three. A row that has its new key stays, so that whoever does this twice, or at once on two nodes,
# never goes back.
IS_OLD = "substr(triplet_key, 1, 4) <> substr(pair_digest, 1, 4)"
MOVE = (
    f"UPDATE {{table}} SET triplet_key = {{key}} WHERE triplet_key >= :first AND triplet_key <="
    f" :last AND {IS_OLD}"
)
NEW_KEY = {
    "sqlite": "CAST(substr(pair_digest, 1, 4) || substr(triplet_key, 1, 12) AS BLOB)",
    "postgresql": "substr(pair_digest, 1, 4) || substr(triplet_key, 1, 12)",
    "mysql": "concat(substr(pair_digest, 1, 4), substr(triplet_key, 1, 12))",
}


def upgrade() -> None:
    table = migration_ops.take_away("triplet")
    migration_ops.drop_index(table, "pair_digest")
    migration_ops.lay_out(table, by_key=False)
    with migration_ops.on_what_is_there():
        _give_pairs(table, _as_in_0003)  # to rows that are older than 0002
        _give_new_keys(table)
    migration_ops.drop_column(table, "pair_digest")
    migration_ops.give_back("triplet")


def downgrade() -> None:
    table = migration_ops.take_away("triplet")
    migration_ops.add_column(
        table,
        sa.Column(
            "pair_digest",
            digest,
            comment="digest of sender and recipient; NULL for the null sender",
        ),
    )
    with migration_ops.on_what_is_there():
        _give_pairs(table, _as_in_0002)
    migration_ops.lay_out(table, by_key=True)
    migration_ops.make_index(table, "pair_digest")
    migration_ops.give_back("triplet")


def _give_new_keys(table: str) -> None:
    """Moves rows that have a pair to their new key."""
    rows, bind = _rows(table), op.get_bind()
    move = sa.text(MOVE.format(table=table, key=NEW_KEY[bind.dialect.name])).bindparams(
        sa.bindparam("first", type_=digest), sa.bindparam("last", type_=digest)
    )
    for keys in _batches(rows, ["triplet_key"], sa.text(IS_OLD)):
        bind.execute(move, {"first": keys[0].triplet_key, "last": keys[-1].triplet_key})
        migration_ops.save()


def _give_pairs(table: str, with_pair: Callable[[sa.Row[Any]], dict[str, bytes]]) -> None:
    """Gives rows that have a sender but no pair the key and the pair that WITH_PAIR says."""
    rows, bind = _rows(table), op.get_bind()
    change = (
        sa.update(rows)
        .where(rows.c.triplet_key == sa.bindparam("old"))
        .values(triplet_key=sa.bindparam("key"), pair_digest=sa.bindparam("pair"))
    )
    without = sa.and_(rows.c.pair_digest.is_(None), rows.c.sender != "")
    for found in _batches(rows, ["triplet_key", "network", "sender", "recipient"], without):
        bind.execute(change, [with_pair(row) for row in found])
        migration_ops.save()


def _as_in_0002(row: sa.Row[Any]) -> dict[str, bytes]:
    pair = _bytes(row.sender) + b"\0" + _bytes(row.recipient)
    key = row.network.encode() + b"\0" + pair
    return {
        "old": bytes(row.triplet_key),
        "key": blake2b(key, digest_size=16).digest(),
        "pair": blake2b(pair, digest_size=16).digest(),
    }


def _as_in_0003(row: sa.Row[Any]) -> dict[str, bytes]:
    old = _as_in_0002(row)
    return old | {"key": old["pair"][:4] + old["key"][:12]}


def _bytes(shown: str) -> bytes:
    """What log.show has SHOWN."""
    return re.sub(
        rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), shown.encode()
    )


def _rows(table: str) -> sa.TableClause:
    return sa.table(
        table,
        *(sa.column(name, digest) for name in ("triplet_key", "pair_digest")),
        *(sa.column(name, sa.Text()) for name in ("network", "sender", "recipient")),
    )


def _batches(
    rows: sa.TableClause, columns: list[str], which: sa.ColumnElement[bool] | sa.TextClause
) -> Iterator[list[sa.Row[Any]]]:
    """COLUMNS of ROWS for WHICH that is true, in the order of keys.

    What moves ahead meanwhile may come once more.
    """
    key, last = rows.c.triplet_key, b""
    while True:
        query = (
            sa.select(*(rows.c[name] for name in columns))
            .where(which, key > last)
            .order_by(key)
            .limit(migration_ops.BATCH)
        )
        found = list(op.get_bind().execute(query))
        if not found:
            return
        yield found
        last = bytes(found[-1].triplet_key)
