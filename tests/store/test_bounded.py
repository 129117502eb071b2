"""What a question costs, whatever the table holds: the rows that each database reads for it, and the index that it finds them by."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text

from greycheck.envelope import Envelope, Triplet
from greycheck.settings import read
from greycheck.store import compiled_mysql, compiled_postgresql, compiled_sqlite, lean, tables
from greycheck.store.lean import Asked
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
PAIR = ASKED.key[: lean.PAIR]

# From how many networks a pair comes. A server in which each takes its time has more than enough to show it with fewer.
MANY = {"sqlite": 131_000, "postgresql": 131_000, "mysql": 30_000}

# Rows that a question may read: those of the pair, of its network, and of three ranges of keys; and what leads there.
MOST = lean.POOL_READ + SETTINGS.network_limit + lean.RANGES * lean.MOST_READ + 1000

# Rows of one pair from so many networks, whose keys begin alike, made where they are to be.
SERIES = {
    "sqlite": (
        "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < :many)",
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
    database: Database, many: int, passes: int, network: str = "'n' || n", pair: bytes = PAIR, knows: bool = True
) -> None:
    """MANY rows of a PAIR, each from a NETWORK of its own, that wait (PASSES 0) or have passed. The database KNOWS how many."""
    with database.begin() as connection:
        before, key, series = SERIES[connection.dialect.name]
        network = "CONCAT('n', n)" if connection.dialect.name == "mysql" and "||" in network else network
        columns = ", ".join(column.name for column in tables.triplet.columns)
        passed = NOW if passes else "NULL"
        connection.execute(
            text(
                f"INSERT INTO triplet ({columns}) {before} SELECT {key}, {network}, 'a@example.org', 'b@example.net',"
                f" {NOW - 900} - n, {NOW - 900}, 0, {passes}, {passed}, {NOW + 9999} FROM {series}"
            ),
            {"pair": pair, "many": many},
        )
    if knows:
        settle(database)


def settle(database: Database) -> None:
    """Lets a database know what it has, as it does by itself after a while."""
    with database.begin() as connection:
        connection.exec_driver_sql("ANALYZE TABLE triplet" if connection.dialect.name == "mysql" else "ANALYZE")


def question() -> dict[str, object]:
    """The parameters of the statements that say what waits, by name."""
    values, _times = lean.waiting_parameters(ASKED, 0, NOW, SETTINGS)
    # A range that holds the pair's rows, as one that is drawn may.
    return (
        values
        | {"triplet_key": ASKED.key}
        | {
            f"{end}_{index}": bound
            for index in range(lean.RANGES)
            for end, bound in zip(("low", "high"), lean.pair_keys(ASKED.key), strict=True)
        }
    )


@contextmanager
def asking(database: Database, name: str, before: str = "") -> Iterator[tuple[Connection, str, tuple[Any, ...]]]:
    """A connection, and the compiled statement NAME after BEFORE with its parameters."""
    with database.begin() as connection:
        sql, names = getattr(COMPILED[connection.dialect.name], name)
        values = question()
        yield connection, before + sql, tuple(values[parameter] for parameter in names)


def read_rows(database: Database) -> int:
    """How many rows and entries of indexes the database reads to say what is waiting."""
    if database.url.startswith("sqlite"):
        ranges = lean.RANGES * read_by_steps(database, "PENDING")
        return sum(read_by_steps(database, name) for name in ("OTHERS", "POOL", "CROWD")) + ranges
    with asking(database, "WAITING") as (connection, sql, values):
        if connection.dialect.name == "postgresql":
            [[plan]] = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values).all()
            return scanned(plan[0]["Plan"])
        before = handled(connection)
        connection.exec_driver_sql(sql, values).all()
        return handled(connection) - before


def read_by_steps(database: Database, name: str) -> int:
    """How many rows an SQLite file is read for the statement NAME, by what its machine has to do."""
    with asking(database, name) as (connection, sql, values):
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
    """How many rows a CONNECTION to MariaDB has read; each is read once more from a table in memory, made for a part of a statement."""
    counts = connection.exec_driver_sql("SHOW SESSION STATUS WHERE Variable_name RLIKE '^Handler_read'").all()
    return sum(int(number) for _name, number in counts) // 2


def scanned(plan: dict[str, Any]) -> int:
    """The rows that the scans of a PLAN of PostgreSQL read."""
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
    own = plan["Actual Rows"] + removed if "Relation Name" in plan or "Index Name" in plan else 0
    return int(own * plan["Actual Loops"]) + sum(scanned(part) for part in plan.get("Plans", ()))


@on_every_database
def test_a_question_about_a_pair_from_many_networks_reads_a_bounded_number_of_rows(database: Database) -> None:
    """A limit on what is answered is none on what is read: of rows that have passed none is answered."""
    with database.begin() as connection:
        many = MANY[connection.dialect.name]
    flood(database, many, 1)
    assert read_rows(database) < MOST


@pytest.mark.parametrize("database", ["postgresql", "postgresql+psycopg"], indirect=True)
def test_a_flood_that_the_server_has_no_statistics_of_is_not_read_as_a_whole(database: Database) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE triplet SET (autovacuum_enabled = off)")
    assert isinstance(database, ServerDatabase)
    database.server.sql("DELETE FROM pg_statistic WHERE starelid = 'triplet'::regclass", database.name)
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
    waiting = database.connect(20).waiting(ASKED, 0, NOW, SETTINGS)
    assert waiting.others == lean.POOL_MOST
    assert waiting.oldest is not None
    assert NOW - 3900 <= waiting.oldest < NOW - 900


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
        assert "USING COVERING INDEX ix_triplet_network" in line or "USING INDEX ix_triplet_network" in line
        assert "network=? AND expires_at>?" in line or "network=? AND passes=? AND expires_at>?" in line
    elif server == "postgresql":
        assert re.search("Index (Only )?Scan using ix_triplet_network|Bitmap Index Scan on ix_triplet_network", line)
    else:
        assert "range" in line or "ref" in line
    assert database.connect(20).waiting(ASKED, 0, NOW, SETTINGS).crowd == SETTINGS.network_limit


@on_every_database
def test_where_all_else_has_passed_the_count_of_what_waits_ends_too(database: Database) -> None:
    """Of a small limit the range is all keys, and the table may hold a million that have passed."""
    flood(database, 20_000, 1, pair=b"\1\1\1\1")
    few = read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_PENDING_LIMIT": b"10"})
    rows = [
        {"triplet_key": bytes([0, number]) + bytes(14), "network": f"n{number}", "sender": "", "recipient": ""}
        | {"first_attempt": NOW, "last_attempt": NOW, "early_attempts": 0, "passes": 0, "expires_at": NOW}
        for number in range(12)
    ]
    database.execute(insert(tables.triplet), rows)
    assert database.connect(20).waiting(ASKED, 0, NOW, few).total == 12
