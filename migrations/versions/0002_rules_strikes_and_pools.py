"""Rules, strikes of clients, and the pair of sender and recipient that pools share."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from greycheck.store.schema import migration_ops

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

digest = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
shown = sa.Text().with_variant(
    mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


def upgrade() -> None:
    migration_ops.add_column(
        "triplet",
        sa.Column(
            "pair_digest",
            digest,
            comment="digest of sender and recipient; NULL for the null sender",
        ),
    )
    migration_ops.make_index("triplet", "pair_digest")
    migration_ops.add_column(
        "client",
        sa.Column(
            "strikes",
            sa.Integer(),
            nullable=False,
            server_default="0",
            comment="hasty retries in a row",
        ),
    )
    migration_ops.add_column(
        "client",
        sa.Column(
            "struck_until",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="refused until then; 0: not",
        ),
    )
    migration_ops.make_table(
        "rule",
        sa.Column(
            "match_key",
            digest,
            nullable=False,
            comment="digest of kind and what it matches (greycheck.rule_keys)",
        ),
        sa.Column(
            "kind",
            sa.String(9),
            nullable=False,
            comment="recipient, sender, network, name, helo or expect",
        ),
        sa.Column("pattern", shown, nullable=False, comment="as it was written"),
        sa.Column("action", sa.String(8), nullable=False, comment="allow, reject or greylist"),
        sa.Column(
            "delay",
            sa.BigInteger(),
            nullable=True,
            comment="of greylist: its own; NULL: the setting's",
        ),
        sa.Column("comment", shown, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True, comment="NULL: never"),
        sa.PrimaryKeyConstraint("match_key", name="pk_rule"),
    )
    migration_ops.make_index("rule", "expires_at")


def downgrade() -> None:
    migration_ops.drop_index("rule", "expires_at")
    migration_ops.drop_table("rule")
    migration_ops.drop_column("client", "struck_until")
    migration_ops.drop_column("client", "strikes")
    migration_ops.drop_index("triplet", "pair_digest")
    migration_ops.drop_column("triplet", "pair_digest")
