"""What a question costs, whatever the table holds: the rows that each database reads for it, and
the index that it finds them by.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text

from greycheck import rule_keys
from greycheck.envelope import Envelope, Triplet
from greycheck.settings import read
from greycheck.store import (
    base,
    compiled_mysql,
    compiled_postgresql,
    compiled_sqlite,
    matching,
    waiting,
)
from greycheck.store.base import Asked
from greycheck.store.schema import tables
from tests.support import Database, ServerDatabase, in_every_store, on_every_database

COMPILED: dict[str, ModuleType] = {
    "sqlite": compiled_sqlite,
    "postgresql": compiled_postgresql,
    "mysql": compiled_mysql,
}

NOW = 1_800_000_000
NETWORK = "192.0.2.0/24"
SETTINGS = read({b"GREYCHECK_CONFIG": b"/dev/null"})
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")
ASKED = Asked(ENVELOPE, Triplet("192.0.2.1", NETWORK, ENVELOPE.sender, ENVELOPE.recipient))
PAIR = ASKED.key[: base.PAIR]

# From how many networks a pair comes. A server in which each takes its time has more than enough to
# show it with fewer.
MANY = {"sqlite": 131_000, "postgresql": 131_000, "mysql": 30_000}

# Rows that a question may read: those of the pair, of its network, and of three ranges of keys; and
# what leads there.
MOST = waiting.POOL_READ + SETTINGS.network_limit + waiting.RANGES * waiting.MOST_READ + 1000

# Rows of one pair from so many networks, whose keys begin alike, made where they are to be.
SERIES = {
    "sqlite": (
        "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n <"
        " :many)",
        "CAST(:pair || randomblob(12) AS BLOB)",
        "series",
    ),
    "postgresql": (
        "",
        "CAST(:pair AS bytea) || substring(decode(md5(CAST(n AS text)), 'hex') FROM 1 FOR 12)",
        "generate_series(1, :many) AS series (n)",
    ),
    "mysql": (
        "",
        "CONCAT(:pair, SUBSTRING(UNHEX(MD5(n)), 1, 12))",
        "(SELECT seq AS n FROM seq_1_to_200000 WHERE seq <= :many) AS series",
    ),
}


def flood(
    database: Database,
    many: int,
    passes: int,
    network: str = "'n' || n",
    pair: bytes = PAIR,
    knows: bool = True,
) -> None:
    """MANY rows of a PAIR, each from a NETWORK of its own, that wait (PASSES 0) or have passed.

    The database KNOWS how many.
    """
    with database.begin() as connection:
        before, key, series = SERIES[connection.dialect.name]
        network = (
            "CONCAT('n', n)" if connection.dialect.name == "mysql" and "||" in network else network
        )
        columns = ", ".join(column.name for column in tables.triplet.columns)
        passed = NOW if passes else "NULL"
        connection.execute(
            text(
                f"INSERT INTO triplet ({columns}) {before} SELECT {key}, {network},"
                " 'a@example.org', 'b@example.net',"
                f" {NOW - 900} - n, {NOW - 900}, 0, {passes}, {passed}, {NOW + 9999}, NULL, 0"
                f" FROM {series}"
            ),
            {"pair": pair, "many": many},
        )
    if knows:
        settle(database)


def settle(database: Database) -> None:
    """Lets a database know what it has, as it does by itself after a while."""
    with database.begin() as connection:
        connection.exec_driver_sql(
            "ANALYZE TABLE triplet" if connection.dialect.name == "mysql" else "ANALYZE"
        )


def question() -> dict[str, object]:
    """The parameters of the statements that say what waits, by name."""
    values, _times = waiting.waiting_parameters(ASKED, 0, NOW, SETTINGS)
    # A range that holds the pair's rows, as one that is drawn may.
    return (
        values
        | {"triplet_key": ASKED.key}
        | {
            f"{end}_{index}": bound
            for index in range(waiting.RANGES)
            for end, bound in zip(("low", "high"), waiting.pair_keys(ASKED.key), strict=True)
        }
    )


@contextmanager
def asking(
    database: Database, name: str, before: str = ""
) -> Iterator[tuple[Connection, str, tuple[Any, ...]]]:
    """A connection, and the compiled statement NAME after BEFORE with its parameters."""
    with database.begin() as connection:
        sql, names = getattr(COMPILED[connection.dialect.name], name)
        values = question()
        yield connection, before + sql, tuple(values[parameter] for parameter in names)


def read_for_pairs(database: Database) -> int:
    """How many rows and entries of an index are read for the pairs of the recipient of ASKED."""
    keys = matching.RuleKeys(ASKED)
    mark = base.digest(rule_keys.mark_key(ENVELOPE.recipient))
    with database.begin() as connection:
        sql, names = COMPILED[connection.dialect.name].PAIRS_IPV4
        [values] = keys.of_pairs([(mark,)], len(names))
        if connection.dialect.name == "postgresql":
            [[plan]] = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", tuple(values)
            ).all()
            return scanned(plan[0]["Plan"])
        if connection.dialect.name == "mysql":
            before = handled(connection)
            connection.exec_driver_sql(sql, tuple(values)).all()
            return handled(connection) - before
        return counted_steps(connection, sql, tuple(values))


def read_rows(database: Database) -> int:
    """How many rows and entries of indexes the database reads to say what is waiting."""
    if database.url.startswith("sqlite"):
        ranges = waiting.RANGES * read_by_steps(database, "PENDING")
        return sum(read_by_steps(database, name) for name in ("OTHERS", "POOL", "CROWD")) + ranges
    with asking(database, "WAITING") as (connection, sql, values):
        if connection.dialect.name == "postgresql":
            [[plan]] = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values
            ).all()
            return scanned(plan[0]["Plan"])
        before = handled(connection)
        connection.exec_driver_sql(sql, values).all()
        return handled(connection) - before


def read_by_steps(database: Database, name: str) -> int:
    """How many rows an SQLite file is read for the statement NAME, by what its machine has to
    do.
    """
    with asking(database, name) as (connection, sql, values):
        return counted_steps(connection, sql, values)


def counted_steps(connection: Connection, sql: str, values: tuple[Any, ...]) -> int:
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(step, 50)  # some 50 instructions of its machine lead to a row
    connection.exec_driver_sql(sql, values).all()
    driver.set_progress_handler(None, 0)
    return steps


def handled(connection: Connection) -> int:
    """How many rows a CONNECTION to MariaDB has read; each is read once more from a table in
    memory, made for a part of a statement.
    """
    counts = connection.exec_driver_sql(
        "SHOW SESSION STATUS WHERE Variable_name RLIKE '^Handler_read'"
    ).all()
    return sum(int(number) for _name, number in counts) // 2


def scanned(plan: dict[str, Any]) -> int:
    """The rows that the scans of a PLAN of PostgreSQL read."""
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
    own = plan["Actual Rows"] + removed if "Relation Name" in plan or "Index Name" in plan else 0
    return int(own * plan["Actual Loops"]) + sum(scanned(part) for part in plan.get("Plans", ()))


@on_every_database
def test_a_question_about_a_pair_from_many_networks_reads_a_bounded_number_of_rows(
    database: Database,
) -> None:
    """A limit on what is answered is none on what is read: of rows that have passed none is
    answered.
    """
    with database.begin() as connection:
        many = MANY[connection.dialect.name]
    flood(database, many, 1)
    assert read_rows(database) < MOST


@pytest.mark.parametrize("database", ["postgresql", "postgresql+psycopg"], indirect=True)
def test_a_flood_that_the_server_has_no_statistics_of_is_not_read_as_a_whole(
    database: Database,
) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE triplet SET (autovacuum_enabled = off)")
    assert isinstance(database, ServerDatabase)
    database.server.sql(
        "DELETE FROM pg_statistic WHERE starelid = 'triplet'::regclass", database.name
    )
    flood(database, 30_000, 0, knows=False)
    sql, names = compiled_postgresql.WAITING
    values = question()
    store: Any = database.connect(20)
    [[plan]] = store._run(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", [values[name] for name in names])
    store.close()
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE triplet RESET (autovacuum_enabled)")
    found = json.loads(plan) if isinstance(plan, str) else plan
    assert scanned(found[0]["Plan"]) < MOST


@in_every_store
def test_a_pair_from_more_networks_than_are_read_still_is_a_pool(database: Database) -> None:
    flood(database, 3000, 0)
    found = database.connect(20).waiting(ASKED, 0, NOW, SETTINGS)
    assert found.others == waiting.POOL_MOST
    assert found.oldest is not None
    assert NOW - 3900 <= found.oldest < NOW - 900


@on_every_database
def test_what_waits_of_one_network_is_counted_by_the_index(database: Database) -> None:
    flood(database, 20_000, 0)
    flood(database, 2000, 1, f"'{NETWORK}'", b"\1\1\1\1")
    flood(database, 1200, 0, f"'{NETWORK}'", b"\2\2\2\2")
    server = database.url.partition(":")[0].partition("+")[0]
    name = "CROWD" if server == "sqlite" else "WAITING"
    with asking(database, name, "EXPLAIN QUERY PLAN " if server == "sqlite" else "EXPLAIN ") as (
        connection,
        sql,
        values,
    ):
        plan = [str(row) for row in connection.exec_driver_sql(sql, values).all()]
    [line] = [line for line in plan if "ix_triplet_network" in line]
    if server == "sqlite":
        assert (
            "USING COVERING INDEX ix_triplet_network" in line
            or "USING INDEX ix_triplet_network" in line
        )
        assert (
            "network=? AND expires_at>?" in line
            or "network=? AND passes=? AND expires_at>?" in line
        )
    elif server == "postgresql":
        assert re.search(
            "Index (Only )?Scan using ix_triplet_network|Bitmap Index Scan on ix_triplet_network",
            line,
        )
    else:
        assert "range" in line or "ref" in line
    assert database.connect(20).waiting(ASKED, 0, NOW, SETTINGS).crowd == SETTINGS.network_limit


def put_pairs(database: Database, numbers: range) -> None:
    """Rules over a pair of the recipient of ASKED and a client elsewhere, and their mark."""
    rows = []
    for number in numbers:
        client = rule_keys.key("network", b"32/32:%x" % (0x0A000000 + number))
        key = base.digest(rule_keys.pair_key(client, ENVELOPE.recipient))
        rows.append(
            {"match_key": key, "kind": "network", "pattern": f"{number}", "action": "defer"}
        )
    if not numbers.start:
        key = base.digest(rule_keys.mark_key(ENVELOPE.recipient))
        mark = {"kind": "recipient", "pattern": "", "action": rule_keys.PAIRS}
        rows.append(mark | {"match_key": key})
    database.execute(
        insert(tables.rule), [row | {"comment": "", "created_at": NOW} for row in rows]
    )
    with database.begin() as connection:
        connection.exec_driver_sql(
            "ANALYZE TABLE rule" if connection.dialect.name == "mysql" else "ANALYZE rule"
        )


@on_every_database
def test_pairs_are_sought_by_their_keys_however_many_a_recipient_has(database: Database) -> None:
    """PostgreSQL reads a table of some pages as a whole, as long as that costs it less."""
    put_pairs(database, range(2000))
    few = read_for_pairs(database)
    put_pairs(database, range(2000, 20_000))
    many = read_for_pairs(database)
    assert many <= rule_keys.MOST_FIRST_KEYS[32] * 3
    if not database.url.startswith("postgresql"):
        assert abs(few - many) <= 2


@on_every_database
def test_of_a_recipient_without_pairs_no_pair_is_sought(database: Database) -> None:
    """One mark more or less is all that mail to others meets."""
    put_pairs(database, range(20))
    store: Any = database.connect(20)
    asked: list[str] = []
    run = store._run

    def noted(sql: str, values: Any = ()) -> Any:
        asked.append(sql)
        return run(sql, values)

    store._run = noted
    other = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"c@example.org")
    store.lookup(Asked(other, Triplet("192.0.2.1", NETWORK, other.sender, other.recipient)), NOW)
    without = len(asked)
    store.lookup(ASKED, NOW)
    assert len(asked) == without * 2 + 1


@on_every_database
def test_where_all_else_has_passed_the_count_of_what_waits_ends_too(database: Database) -> None:
    """Of a small limit the range is all keys, and the table may hold a million that have passed."""
    flood(database, 20_000, 1, pair=b"\1\1\1\1")
    few = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_PENDING_LIMIT": b"10"})
    rows = [
        {
            "triplet_key": bytes([0, number]) + bytes(14),
            "network": f"n{number}",
            "sender": "",
            "recipient": "",
        }
        | {
            "first_attempt": NOW,
            "last_attempt": NOW,
            "early_attempts": 0,
            "passes": 0,
            "expires_at": NOW,
        }
        for number in range(12)
    ]
    database.execute(insert(tables.triplet), rows)
    assert database.connect(20).waiting(ASKED, 0, NOW, few).total == 12


# --- who may send for a domain --------------------------------------------------------------------

# As many ranges as a domain may have, ten times over; and as many networks as a pool counts.
RANGES = 20_000
WAITING = waiting.POOL_MOST


@pytest.mark.parametrize("settled", [True, False])
@on_every_database
def test_who_may_send_is_found_by_steps_in_an_index_however_many_ranges_there_are(
    database: Database, settled: bool
) -> None:
    """Ten thousand ranges of the domain before the client's, and as many behind it; and a hundred
    that wait, each of a client that one of the ranges holds.
    """
    origin = ASKED.origin
    assert origin
    key, address = origin[: base.DIGEST], int.from_bytes(origin[base.DIGEST :], "big")
    firsts = [address + 16 * (number - RANGES // 2) for number in range(RANGES)]
    common = {"source": "spf", "name": "example.org", "added_at": NOW, "expires_at": NOW + 9999}
    for start in range(0, RANGES, 2000):
        database.execute(
            insert(tables.authorised),
            [
                common
                | {
                    "network_key": key + first.to_bytes(16, "big"),
                    "last": (first + 7).to_bytes(16, "big"),
                }
                for first in firsts[start : start + 2000]
            ],
        )
    waits = {"sender": "a@example.org", "recipient": "b@example.net", "passes": 0, "authorised": 0}
    times = {"first_attempt": NOW - 900, "last_attempt": NOW - 900, "expires_at": NOW + 9999}
    database.execute(
        insert(tables.triplet),
        [
            waits
            | times
            | {
                "triplet_key": PAIR + number.to_bytes(12, "big"),
                "network": f"n{number}",
                "early_attempts": 0,
                "passed_at": None,
                "origin": key + (firsts[number * 150] + number % 16).to_bytes(16, "big"),
            }
            for number in range(WAITING)
        ],
    )
    if settled:
        settle_all(database)
    assert read_of(database, "IDENTITY") < 60
    # A row of the pair takes a step in the index of ranges, and a few instructions or rows more.
    assert read_of(database, "POOL") < 12 * WAITING
    found = database.connect(20).waiting(ASKED, 0, NOW, SETTINGS)
    assert (found.identity.source, found.of_domain) == ("spf", NOW - 900)


def settle_all(database: Database) -> None:
    for table in ("authorised", "triplet"):
        with database.begin() as connection:
            mysql = connection.dialect.name == "mysql"
            connection.exec_driver_sql(f"ANALYZE {'TABLE ' if mysql else ''}{table}")


def read_of(database: Database, name: str) -> int:
    """How many rows and entries of indexes are read for the statement NAME; on a server POOL is a
    part of WAITING.
    """
    if database.url.startswith("sqlite"):
        return read_by_steps(database, name)
    with asking(database, "WAITING" if name == "POOL" else name) as (connection, sql, values):
        if connection.dialect.name == "postgresql":
            explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values)
            [[plan]] = explained.all()
            return scanned(plan[0]["Plan"])
        before = handled(connection)
        connection.exec_driver_sql(sql, values).all()
        return handled(connection) - before
