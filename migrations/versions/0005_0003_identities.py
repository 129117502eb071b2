"""Senders' domains: what they say in SPF, which of them have passed, and whom our users write to.

And whether the rules have changed, for residents that keep them in memory.

Programs of 0003 and 0004 go on meanwhile, and afterwards: they do not ask for it.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from greycheck.store.schema import migration_ops

revision = "0005_0003"
down_revision = "0004_0003"
branch_labels = None
depends_on = None

digest = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
origin = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
shown = sa.Text().with_variant(
    mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


def whole(name: str, comment: str | None = None) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, comment=comment)


def moment(name: str, comment: str | None = None, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable, comment=comment)


def words(name: str, comment: str | None = None) -> sa.Column[str]:
    return sa.Column(name, shown, nullable=False, comment=comment)


def key(name: str, comment: str, kind: sa.LargeBinary = digest) -> sa.Column[bytes]:
    return sa.Column(name, kind, nullable=False, comment=comment)


def upgrade() -> None:
    migration_ops.add_column(
        "triplet",
        sa.Column(
            "origin",
            origin,
            comment="digest of the sender's domain and address of the first attempt; NULL: not"
            " known",
        ),
    )
    migration_ops.add_column(
        "triplet",
        sa.Column(
            "authorised",
            sa.Integer(),
            nullable=False,
            server_default="0",
            comment="1: the mail server found that the domain lets this client send",
        ),
    )
    migration_ops.make_table(
        "domain",
        key("domain_key", "digest of the domain"),
        words("name"),
        whole("passes", "triplets that passed with its identity"),
        moment("first_seen"),
        moment("last_seen", "last recorded use"),
        moment("expires_at"),
        sa.PrimaryKeyConstraint("domain_key", name="pk_domain"),
    )
    migration_ops.make_index("domain", "expires_at")
    migration_ops.make_table(
        "spf",
        key("domain_key", "digest of the domain"),
        words("name"),
        sa.Column(
            "state", sa.String(8), nullable=False, comment="found, none, wide, error or failed"
        ),
        words("why", "what was wrong, in words"),
        whole("per_client", "1: some of it can be told of a client only"),
        moment("answered_at", "the last answer of DNS; NULL: none yet", nullable=True),
        moment("asked_at"),
        whole("failures", "questions in a row without an answer"),
        moment("next_at", "when to ask again"),
        moment("expires_at"),
        sa.PrimaryKeyConstraint("domain_key", name="pk_spf"),
    )
    migration_ops.make_index("spf", "next_at")
    migration_ops.make_index("spf", "expires_at")
    migration_ops.make_table(
        "authorised",
        key("network_key", "digest of the domain and first address", origin),
        key(
            "last",
            "last address of the range",
            sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb"),
        ),
        sa.Column(
            "source",
            sa.String(8),
            nullable=False,
            comment="spf, client, refused (one address), pool or provider",
        ),
        words("name", "whose range it is"),
        moment("added_at"),
        moment("expires_at"),
        sa.PrimaryKeyConstraint("network_key", name="pk_authorised"),
    )
    migration_ops.make_index("authorised", "expires_at")
    migration_ops.make_table(
        "provider",
        key("domain_key", "digest of the domain"),
        words("name"),
        words("comment"),
        sa.Column("networks", sa.Text(), nullable=False, comment="those that count, a line each"),
        moment("created_at"),
        moment("answered_at", "the last answer of DNS; NULL: none yet", nullable=True),
        moment("asked_at"),
        words("why", "why the last question had no answer"),
        moment("expires_at", "NULL: never", nullable=True),
        sa.PrimaryKeyConstraint("domain_key", name="pk_provider"),
    )
    migration_ops.make_table(
        "correspondent",
        key("pair_key", "digest of both addresses"),
        words("sender", "who may answer, normalised and folded"),
        words("recipient", "our user, normalised"),
        moment("first_seen"),
        moment("last_seen", "last recorded mail to him"),
        moment("expires_at"),
        sa.PrimaryKeyConstraint("pair_key", name="pk_correspondent"),
    )
    migration_ops.make_index("correspondent", "expires_at")
    migration_ops.make_table(
        "generation",
        sa.Column("name", sa.String(16), nullable=False, comment="of what: rule"),
        moment("number", "another one after each change"),
        sa.PrimaryKeyConstraint("name", name="pk_generation"),
    )


def downgrade() -> None:
    migration_ops.drop_table("generation")
    migration_ops.drop_index("correspondent", "expires_at")
    migration_ops.drop_table("correspondent")
    migration_ops.drop_table("provider")
    migration_ops.drop_index("authorised", "expires_at")
    migration_ops.drop_table("authorised")
    migration_ops.drop_index("spf", "expires_at")
    migration_ops.drop_index("spf", "next_at")
    migration_ops.drop_table("spf")
    migration_ops.drop_index("domain", "expires_at")
    migration_ops.drop_table("domain")
    migration_ops.drop_column("triplet", "authorised")
    migration_ops.drop_column("triplet", "origin")
