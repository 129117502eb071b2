"""Rules, strikes of clients, and the pair of sender and recipient that pools share.

Every new column of an old table has a default or may be NULL, so that programs of the revision before go on writing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

digest = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
shown = sa.Text().with_variant(mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")


def upgrade() -> None:
    op.add_column(
        "triplet",
        sa.Column("pair_digest", digest, comment="digest of sender and recipient; NULL for the null sender"),
    )
    op.create_index("ix_triplet_pair_digest", "triplet", ["pair_digest"])
    op.add_column(
        "client",
        sa.Column("strikes", sa.Integer(), nullable=False, server_default="0", comment="hasty retries in a row"),
    )
    op.add_column(
        "client",
        sa.Column(
            "struck_until", sa.BigInteger(), nullable=False, server_default="0", comment="refused until then; 0: not"
        ),
    )
    op.create_table(
        "rule",
        sa.Column("match_key", digest, nullable=False, comment="digest of kind and what it matches (greycheck.rules)"),
        sa.Column("kind", sa.String(9), nullable=False, comment="recipient, sender, network, name, helo or expect"),
        sa.Column("pattern", shown, nullable=False, comment="as it was written"),
        sa.Column("action", sa.String(8), nullable=False, comment="allow, reject or greylist"),
        sa.Column("delay", sa.BigInteger(), nullable=True, comment="of greylist: its own; NULL: the setting's"),
        sa.Column("comment", shown, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True, comment="NULL: never"),
        sa.PrimaryKeyConstraint("match_key", name="pk_rule"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_rule_expires_at", "rule", ["expires_at"])


def downgrade() -> None:
    op.drop_index("ix_rule_expires_at", "rule")
    op.drop_table("rule")
    op.drop_column("client", "struck_until")
    op.drop_column("client", "strikes")
    op.drop_index("ix_triplet_pair_digest", "triplet")
    op.drop_column("triplet", "pair_digest")
