"""The tables, declared in one place. Only alembic's migrations make them.

Times are whole seconds since 1970, UTC. Every row has ``expires_at``: after it, no check uses the
row and ``greycheck expire`` removes it. Until then the policy decides from a row's times, under the
current settings, if the row is valid.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import mysql

NAMING = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}

metadata = MetaData(naming_convention=NAMING)

# A BLAKE2b digest: it has the same length on every database, and no collation changes how it
# compares.
DIGEST = 16
Digest = LargeBinary(DIGEST).with_variant(mysql.BINARY(DIGEST), "mysql", "mariadb")

# The digest of a sender's domain, and an address behind it: 16 bytes, IPv4 as mapped (RFC 4291).
ORIGIN = DIGEST + 16
Origin = LargeBinary(ORIGIN).with_variant(mysql.BINARY(ORIGIN), "mysql", "mariadb")
Packed = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")

# Canonical addresses and networks are ASCII; the longest, an IPv6 network, has 43 characters.
Address = String(45).with_variant(
    mysql.VARCHAR(45, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)

# Text as log.show_address makes it of an address, or log.show of other texts. It is in no index.
Shown = Text().with_variant(
    mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)

triplet = Table(
    "triplet",
    metadata,
    Column(
        "triplet_key", Digest, primary_key=True, comment="digest of network, sender and recipient"
    ),
    Column("network", Address, nullable=False),
    Column(
        "sender", Shown, nullable=False, comment="normalised and folded; empty: the null sender"
    ),
    Column("recipient", Shown, nullable=False, comment="normalised"),
    Column("first_attempt", BigInteger, nullable=False),
    Column("last_attempt", BigInteger, nullable=False, comment="or last recorded use, once passed"),
    Column("early_attempts", Integer, nullable=False),
    Column(
        "passes",
        Integer,
        nullable=False,
        comment="recorded uses, one an hour at most; 0 while it waits",
    ),
    Column("passed_at", BigInteger, comment="NULL while it waits"),
    Column("expires_at", BigInteger, nullable=False),
    Column(
        "origin",
        Origin,
        comment="digest of the sender's domain and address of the first attempt; NULL: not known",
    ),
    Column(
        "authorised",
        Integer,
        nullable=False,
        server_default="0",
        comment="1: the mail server found that the domain lets this client send",
    ),
    Index(None, "expires_at"),
    # For the pending triplets of a network. Where an index can have a condition, rows that passed
    # are not in it, and cost nothing.
    Index(
        None,
        "network",
        "passes",
        "expires_at",
        sqlite_where=text("passes = 0"),
        postgresql_where=text("passes = 0"),
    ),
    # SQLite stores rows in order of insertion: rows that are new together, and expire together,
    # share pages.
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
    Column(
        "strikes", Integer, nullable=False, server_default="0", comment="hasty retries in a row"
    ),
    Column(
        "struck_until",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="refused until then; 0: not",
    ),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

rule = Table(
    "rule",
    metadata,
    Column(
        "match_key",
        Digest,
        primary_key=True,
        comment="digest of kind and what it matches (greycheck.rule_keys)",
    ),
    Column(
        "kind",
        String(9),
        nullable=False,
        comment="recipient, sender, network, name, helo or expect",
    ),
    Column("pattern", Shown, nullable=False, comment="as it was written"),
    # Or defer; or pairs, of a mark (greycheck.rule_keys).
    Column("action", String(8), nullable=False, comment="allow, reject or greylist"),
    Column("delay", BigInteger, comment="of greylist: its own; NULL: the setting's"),
    Column("comment", Shown, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, comment="NULL: never"),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# A sender's domain that has passed, as ``client`` is for an address. Checks write it.
domain = Table(
    "domain",
    metadata,
    Column("domain_key", Digest, primary_key=True, comment="digest of the domain"),
    Column("name", Shown, nullable=False),
    Column("passes", Integer, nullable=False, comment="triplets that passed with its identity"),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False, comment="last recorded use"),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# What a domain says in SPF. ``greycheck resolve`` writes it.
spf = Table(
    "spf",
    metadata,
    Column("domain_key", Digest, primary_key=True, comment="digest of the domain"),
    Column("name", Shown, nullable=False),
    Column("state", String(8), nullable=False, comment="found, none, wide, error or failed"),
    Column("why", Shown, nullable=False, comment="what was wrong, in words"),
    Column(
        "per_client", Integer, nullable=False, comment="1: some of it can be told of a client only"
    ),
    Column("answered_at", BigInteger, comment="the last answer of DNS; NULL: none yet"),
    Column("asked_at", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False, comment="questions in a row without an answer"),
    Column("next_at", BigInteger, nullable=False, comment="when to ask again"),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "next_at"),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# The addresses that a domain, or a provider, sends from, as ranges that do not overlap.
authorised = Table(
    "authorised",
    metadata,
    Column(
        "network_key", Origin, primary_key=True, comment="digest of the domain and first address"
    ),
    Column("last", Packed, nullable=False, comment="last address of the range"),
    Column(
        "source",
        String(8),
        nullable=False,
        comment="spf, client, refused (one address), pool or provider",
    ),
    Column("name", Shown, nullable=False, comment="whose range it is"),
    Column("added_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# What an operator lets in at the first attempt: all that the SPF of NAME authorises.
provider = Table(
    "provider",
    metadata,
    Column("domain_key", Digest, primary_key=True, comment="digest of the domain"),
    Column("name", Shown, nullable=False),
    Column("comment", Shown, nullable=False),
    Column("networks", Text, nullable=False, comment="those that count, a line each"),
    Column("created_at", BigInteger, nullable=False),
    Column("answered_at", BigInteger, comment="the last answer of DNS; NULL: none yet"),
    Column("asked_at", BigInteger, nullable=False),
    Column("why", Shown, nullable=False, comment="why the last question had no answer"),
    Column("expires_at", BigInteger, comment="NULL: never"),
    sqlite_with_rowid=False,
)

# Whom our own users write to: an answer to them passes.
correspondent = Table(
    "correspondent",
    metadata,
    Column("pair_key", Digest, primary_key=True, comment="digest of both addresses"),
    Column("sender", Shown, nullable=False, comment="who may answer, normalised and folded"),
    Column("recipient", Shown, nullable=False, comment="our user, normalised"),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False, comment="last recorded mail to him"),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# Changes with every change to the rules: who keeps them in memory reads them again.
generation = Table(
    "generation",
    metadata,
    Column("name", String(16), primary_key=True, comment="of what: rule"),
    Column("number", BigInteger, nullable=False, comment="another one after each change"),
    sqlite_with_rowid=False,
)

# Daily totals (greycheck.store.admin.history). No check asks for them.
history = Table(
    "history",
    metadata,
    Column("total_key", Digest, primary_key=True, comment="digest of day, kind and names"),
    Column("day", Integer, nullable=False, comment="days since 1970, local; 0: all days"),
    Column(
        "kind",
        String(8),
        nullable=False,
        comment="verdict, hour, delay, never, sender, network, ever, waited, file or expire",
    ),
    Column("verdict", String(8), nullable=False, comment="accept, defer, reject, observe or never"),
    Column("name", Shown, nullable=False, comment="of the reason, hour, delay, sender or network"),
    Column("recipient", Shown, nullable=False, comment="domain of recipients"),
    Column("number", BigInteger, nullable=False, comment="attempts; of never, triplets"),
    Column("expires_at", BigInteger, nullable=False),
    Index(None, "day"),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)

# Alembic's own table, declared here only so that a check can read the schema's revision with its
# rows.
alembic_version = Table(
    "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True)
)
