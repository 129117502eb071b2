"""The tables of triplets and known clients."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from greycheck.store.schema import migration_ops

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

digest = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
address = sa.String(45).with_variant(
    mysql.VARCHAR(45, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
shown = sa.Text().with_variant(
    mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


def upgrade() -> None:
    migration_ops.make_table(
        "triplet",
        sa.Column(
            "triplet_key", digest, nullable=False, comment="digest of network, sender and recipient"
        ),
        sa.Column("network", address, nullable=False),
        sa.Column(
            "sender", shown, nullable=False, comment="normalised and folded; empty: the null sender"
        ),
        sa.Column("recipient", shown, nullable=False, comment="normalised"),
        sa.Column("first_attempt", sa.BigInteger(), nullable=False),
        sa.Column(
            "last_attempt",
            sa.BigInteger(),
            nullable=False,
            comment="or last recorded use, once passed",
        ),
        sa.Column("early_attempts", sa.Integer(), nullable=False),
        sa.Column(
            "passes",
            sa.Integer(),
            nullable=False,
            comment="recorded uses, one an hour at most; 0 while it waits",
        ),
        sa.Column("passed_at", sa.BigInteger(), nullable=True, comment="NULL while it waits"),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("triplet_key", name="pk_triplet"),
    )
    migration_ops.make_index("triplet", "expires_at")
    migration_ops.make_table(
        "client",
        sa.Column("address", address, nullable=False),
        sa.Column(
            "passes", sa.Integer(), nullable=False, comment="triplets that passed from this address"
        ),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False, comment="last recorded use"),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address", name="pk_client"),
    )
    migration_ops.make_index("client", "expires_at")


def downgrade() -> None:
    migration_ops.drop_index("client", "expires_at")
    migration_ops.drop_table("client")
    migration_ops.drop_index("triplet", "expires_at")
    migration_ops.drop_table("triplet")
