"""Daily totals of what was decided, which outlive the rows of triplets.

Programs of 0003 to 0005 go on: no check asks for them.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from greycheck.store.schema import migration_ops

revision = "0006_0003"
down_revision = "0005_0003"
branch_labels = None
depends_on = None

digest = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
shown = sa.Text().with_variant(
    mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


def upgrade() -> None:
    migration_ops.make_table(
        "history",
        sa.Column("total_key", digest, nullable=False, comment="digest of day, kind and names"),
        sa.Column(
            "day", sa.Integer(), nullable=False, comment="days since 1970, local; 0: all days"
        ),
        sa.Column(
            "kind",
            sa.String(8),
            nullable=False,
            comment="verdict, hour, delay, never, sender, network, ever, waited, file or expire",
        ),
        sa.Column(
            "verdict",
            sa.String(8),
            nullable=False,
            comment="accept, defer, reject, observe or never",
        ),
        sa.Column(
            "name",
            shown,
            nullable=False,
            comment="of the reason, hour, delay, sender or network",
        ),
        sa.Column("recipient", shown, nullable=False, comment="domain of recipients"),
        sa.Column(
            "number", sa.BigInteger(), nullable=False, comment="attempts; of never, triplets"
        ),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("total_key", name="pk_history"),
    )
    migration_ops.make_index("history", "day")
    migration_ops.make_index("history", "expires_at")


def downgrade() -> None:
    migration_ops.drop_index("history", "expires_at")
    migration_ops.drop_index("history", "day")
    migration_ops.drop_table("history")
