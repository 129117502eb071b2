"""Addresses of any bytes in every database, whatever its collation: two are never one, each finds
its own row, and people read it back.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from greycheck import rule_keys
from greycheck.envelope import Envelope, Triplet
from greycheck.log import show, show_address
from greycheck.policy import Change, TripletRow
from greycheck.settings import read
from greycheck.store import base, drivers, server
from greycheck.store.base import Asked
from greycheck.store.schema import tables
from tests.servers import MariaDB, Postgres
from tests.support import Database, ServerDatabase, in_every_way

PATIENCE = 20
LONGEST = 899

# All bytes but the one that no address can hold (docs/hooks.rst#addresses), and what collations,
# encodings and columns do not tell apart.
ALIKE = [
    b"",
    *(b"x%c@example.org" % byte for byte in range(1, 256)),
    *"a A \u00e1 \u00c1 a\u0301 \u00e4 \u00e5 \u00e6 ae \u00df ss SS \u0131 \u0130 i I \ufb01 fi"
    " \uff41 \u00aa".encode().split(),
    *"\u00b2 2 \u2126 \u03a9 \u200ba a\u200b a\u00ad \u00a0 \u3000 \ufffd \ufffe \ufeff \u2028"
    " \u202e".encode().split(b" "),
    *"\U0001f600 \U0001f601 \U0001d49c \U00010400 \U00010428 \U0010ffff".encode().split(),
    *(b"trailing" + blanks for blanks in (b"", b" ", b"  ", b"\t", b"\xc2\xa0", b"\r", b"\n")),
    *rb"""\ \\ \xff \x20 ' '' " "" ` %s %% $1 ? :a {} NULL ; -- /* #""".split(),
    *b"\xed\xa0\x80 \xc0\x80 \xf5\x80\x80\x80 \xe2\x82 \xff\xfe \xfe\xff".split(),
    *(b"x" * length for length in (254, 255, 256, 767, 768, LONGEST - 1, LONGEST)),
    *(byte * LONGEST for byte in (b"\xff", b"\xfe", b"\\", b"'", b" ")),
    *(smile.encode() * (LONGEST // 4) for smile in "\U0001f600\U0001f601"),
]


def asked(sender: bytes, recipient: bytes) -> Asked:
    envelope = Envelope("smtpextfork", "192.0.2.1", sender, recipient)
    return Asked(envelope, Triplet("192.0.2.1", "192.0.2.0/24", sender, recipient))


def opened(database: Database) -> "base.Store":
    return database.connect(PATIENCE)


SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})


def keep_apart(store: "base.Store", database: Database, pairs: list[tuple[bytes, bytes]]) -> None:
    """Writes a row for each of PAIRS (sender and recipient, all different) and finds each again."""
    database.empty()
    for number, pair in enumerate(pairs):
        assert store.lookup(asked(*pair), 0).triplet is None, pair
        assert store.save(
            asked(*pair), [Change(None, TripletRow(number, number), number)], patient=True
        ), pair
    for number, pair in enumerate(pairs):
        found = store.lookup(asked(*pair), 0).triplet
        assert found, pair
        assert found.first == number
    rows = database.rows("SELECT sender, recipient FROM triplet ORDER BY first_attempt")
    assert rows == [(show_address(sender), show_address(recipient)) for sender, recipient in pairs]


@pytest.fixture
def store(database: Database) -> Iterator["base.Store"]:
    """A child's connection."""
    found = opened(database)
    yield found
    if isinstance(found, server.Store):
        found._session.disconnect()


@in_every_way
def test_addresses_that_look_alike_are_kept_apart(database: Database, store: "base.Store") -> None:
    keep_apart(store, database, [(address, b"bob@example.net") for address in ALIKE])
    keep_apart(store, database, [(b"alice@example.org", address) for address in ALIKE])


@in_every_way
def test_any_addresses_are_kept_apart(database: Database, store: "base.Store") -> None:
    address = st.binary(max_size=LONGEST).map(lambda found: found.replace(b"\0", b"\\"))
    close = st.text("aA \\'\u00e9\U0001f600", max_size=4).map(str.encode)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(address | close, address | close), max_size=8, unique=True))
    def hold(pairs: list[tuple[bytes, bytes]]) -> None:
        keep_apart(store, database, pairs)

    hold()


@in_every_way
def test_the_same_addresses_of_another_network_are_a_pool_and_others_are_none(
    database: Database, store: "base.Store"
) -> None:
    for number, address in enumerate(ALIKE):
        there = Asked(
            asked(b"", b"").envelope,
            Triplet("198.51.100.1", "198.51.100.0/24", address, b"bob@example.net"),
        )
        assert store.save(there, [Change(None, TripletRow(number, number), number)], patient=True)
    for number, address in enumerate(ALIKE):
        waiting = store.waiting(asked(address, b"bob@example.net"), 0, 1_000, SETTINGS)
        assert (waiting.others, waiting.oldest) == ((1, number) if address else (0, None)), address


# Alike as far as they are shown.
LONG = [b"\xff" * 880 + last + b"@example.org" for last in (b"a", b"b")] + [b"\xff" * 899]


@in_every_way
def test_long_addresses_are_cut_and_kept_apart_all_the_same(
    database: Database, store: "base.Store"
) -> None:
    for number, address in enumerate(LONG):
        there = Asked(
            asked(b"", b"").envelope, Triplet("198.51.100.1", "198.51.100.0/24", address, address)
        )
        assert store.save(there, [Change(None, TripletRow(number, number), number)], patient=True)
    for number, address in enumerate(LONG):
        waiting = store.waiting(asked(address, address), 0, 1_000, SETTINGS)
        assert (waiting.others, waiting.oldest) == (1, number)
    assert store.waiting(asked(LONG[0], LONG[1]), 0, 1_000, SETTINGS).others == 0
    for text in (
        text for row in database.rows("SELECT sender, recipient FROM triplet") for text in row
    ):
        assert len(str(text)) < 600
        assert "\\..." in str(text)


@in_every_way
def test_rules_for_addresses_that_look_alike_are_kept_apart(
    database: Database, store: "base.Store"
) -> None:
    written = {"kind": "sender", "action": "allow", "comment": "", "created_at": 1}
    keys = [
        {"match_key": base.digest(rule_keys.key("sender", address)), "pattern": show(address)}
        for address in ALIKE
    ]
    database.execute(insert(tables.rule).values(written), keys)
    for address in ALIKE:
        found = store.lookup(asked(address, b"bob@example.net"), 0).rules
        assert [rule.pattern for rule in found] == [show(address)]


# --- servers that are set otherwise ---------------------------------------------------------------

MARIADB_COLLATIONS = [
    "CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
    "CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
    "CHARACTER SET utf8mb3 COLLATE utf8mb3_turkish_ci",
    "CHARACTER SET ucs2 COLLATE ucs2_general_ci",
]


@pytest.mark.parametrize("collation", MARIADB_COLLATIONS)
def test_the_collation_of_a_mariadb_does_not_matter(
    mariadb: MariaDB, place: Path, collation: str
) -> None:
    hold_in_a_database_of_its_own(ServerDatabase(mariadb, place, "collated", collation))


def test_the_collation_of_a_postgresql_does_not_matter(postgres: Postgres, place: Path) -> None:
    collation = (
        "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'sv-u-ks-level1'"  # no case, no accents
    )
    hold_in_a_database_of_its_own(ServerDatabase(postgres, place, "collated", collation))


@pytest.mark.parametrize(
    "mode", ["ANSI,NO_BACKSLASH_ESCAPES", "", "TRADITIONAL,PAD_CHAR_TO_FULL_LENGTH"]
)
def test_the_mode_of_a_mariadb_does_not_matter(mariadb: MariaDB, place: Path, mode: str) -> None:
    mariadb.start()
    [(usual,)] = mariadb.sql("SELECT @@global.sql_mode", "")
    mariadb.sql(f"SET GLOBAL sql_mode = '{mode}'", "")
    try:
        hold_in_a_database_of_its_own(ServerDatabase(mariadb, place, "moded"))
    finally:
        mariadb.sql(f"SET GLOBAL sql_mode = '{usual}'", "")


@pytest.mark.parametrize(
    "setting",
    ["standard_conforming_strings = off", "bytea_output = 'escape'", "client_encoding = 'LATIN1'"],
)
def test_the_settings_of_a_postgresql_do_not_matter(
    postgres: Postgres, place: Path, setting: str
) -> None:
    database = ServerDatabase(postgres, place, "settled")
    postgres.sql(f"ALTER DATABASE settled SET {setting}", "")
    hold_in_a_database_of_its_own(database)


def hold_in_a_database_of_its_own(database: ServerDatabase) -> None:
    for driver in drivers.names(
        "postgresql" if database.server.dialect == "postgresql" else "mysql"
    ):
        store = opened(database.seen_from(database.directory, driver))
        keep_apart(store, database, [(address, address) for address in ALIKE[::3]])
        assert isinstance(store, server.Store)
        store._session.disconnect()
    database.close()
    database.server.drop(database.name)
