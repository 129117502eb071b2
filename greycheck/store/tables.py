"""The tables, declared once. Alembic's migrations make them; nothing else does.

Times are whole seconds since 1970, UTC. Every row has ``expires_at``: after it, nobody asks for the row again and ``greycheck expire``
removes it. Whether a row still counts is decided from its times by the policy, under the settings of that moment.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, text
from sqlalchemy.dialects import mysql

NAMING = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}

metadata = MetaData(naming_convention=NAMING)

# A BLAKE2b digest: the same length on every database, and beyond the reach of any collation.
DIGEST = 16
Digest = LargeBinary(DIGEST).with_variant(mysql.BINARY(DIGEST), "mysql", "mariadb")

# Canonical addresses and networks are ASCII; the longest, an IPv6 network, has 43 characters.
Address = String(45).with_variant(mysql.VARCHAR(45, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")

# What log.show_address makes of an address, or log.show of what else people read. No index has it.
Shown = Text().with_variant(mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")

triplet = Table(
    "triplet",
    metadata,
    Column("triplet_key", Digest, primary_key=True, comment="digest of network, sender and recipient"),
    Column("network", Address, nullable=False),
    Column("sender", Shown, nullable=False, comment="normalised and folded; empty: the null sender"),
    Column("recipient", Shown, nullable=False, comment="normalised"),
    Column("first_attempt", BigInteger, nullable=False),
    Column("last_attempt", BigInteger, nullable=False, comment="or last recorded use, once passed"),
    Column("early_attempts", Integer, nullable=False),
    Column("passes", Integer, nullable=False, comment="recorded uses, one an hour at most; 0 while it waits"),
    Column("passed_at", BigInteger, comment="NULL while it waits"),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "expires_at"),
    # What waits of one network. Rows that have passed are none of it, and cost nothing where an index can leave them out.
    Index(
        None,
        "network",
        "passes",
        "expires_at",
        sqlite_where=text("passes = 0"),
        postgresql_where=text("passes = 0"),
    ),
    # SQLite keeps rows in the order they come: those that are new together, or over together, share their pages.
    sqlite_with_rowid=True,
)

client = Table(
    "client",
    metadata,
    Column("address", Address, primary_key=True),
    Column("passes", Integer, nullable=False, comment="triplets that passed from this address"),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False, comment="last recorded use"),
    Column("expires_at", BigInteger, nullable=False),
    Column("strikes", Integer, nullable=False, server_default="0", comment="hasty retries in a row"),
    Column("struck_until", BigInteger, nullable=False, server_default="0", comment="refused until then; 0: not"),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

rule = Table(
    "rule",
    metadata,
    Column("match_key", Digest, primary_key=True, comment="digest of kind and what it matches (greycheck.rules)"),
    Column("kind", String(9), nullable=False, comment="recipient, sender, network, name, helo or expect"),
    Column("pattern", Shown, nullable=False, comment="as it was written"),
    Column("action", String(8), nullable=False, comment="allow, reject or greylist"),
    Column("delay", BigInteger, comment="of greylist: its own; NULL: the setting's"),
    Column("comment", Shown, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, comment="NULL: never"),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# Alembic's own, named here only so that a check can read the schema's revision along with its rows.
alembic_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
