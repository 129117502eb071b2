"""A store copied to another database: exact, in batches, while it changes, and again."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, delete, event, insert, update

from greycheck.store.admin import copying
from greycheck.store.admin.copying import CopyError, Copying, Difference, Occupied, Sum
from greycheck.store.admin.engine import open_engine
from greycheck.store.schema.tables import authorised, client, provider, rule, triplet
from tests import databases
from tests.databases import ADDRESSES, KEYS, LATER, NOW
from tests.store.conftest import server_url
from tests.support import DATABASES

TABLES = tuple(table.name for table in copying.TABLES)
NOTHING = dict.fromkeys(TABLES, Difference())

DIRECTIONS = [(one, other) for one in DATABASES for other in DATABASES if one != other]


class Watch:
    """Does nothing but what it is told to do after a pass."""

    def __init__(self, passed: Callable[[], None] = lambda: None) -> None:
        self.after_pass = passed
        self.differences: list[dict[str, Difference]] = []

    def phase(self, what: str, rows: int) -> None:
        assert what
        self.rows = rows

    def seen(self, rows: int) -> None:
        self.rows -= rows
        assert self.rows >= 0

    def passed(self, difference: dict[str, Difference]) -> None:
        self.differences.append(difference)
        self.after_pass()


def fill(url: str) -> None:
    """Rows that a database might not keep as they are, in each table that is copied."""
    for table in TABLES:
        databases.fill_url(url, table, databases.HARD_ROWS[table])


def contents(url: str) -> dict[str, list[databases.Row]]:
    return {table: databases.contents(url, table) for table in TABLES}


class Pair:
    """Two stores."""

    def __init__(self, source_url: str, target_url: str) -> None:
        self.source_url = source_url
        self.target_url = target_url
        self.source = open_engine(source_url)
        self.target = open_engine(target_url)
        self.watch = Watch()

    def copy(self, overwrite: bool = False, batch: int = 5) -> copying.Outcome:
        return Copying(self.source, self.target, self.watch, batch).copy(NOW, overwrite)

    def change(self, engine: Engine, *statements: object) -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[call-overload]


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two empty stores, of different databases: of the DIRECTION that is asked for, or from a file
    to PostgreSQL.
    """
    names = getattr(request, "param", ("sqlite", "postgresql"))
    urls = [
        f"sqlite:///{request.getfixturevalue('path')}"
        if name == "sqlite"
        else server_url(request, name)
        for name in names
    ]
    found = Pair(*urls)
    yield found
    found.source.dispose()
    found.target.dispose()


each_direction = pytest.mark.parametrize("pair", DIRECTIONS, indirect=True, ids="-".join)
to_servers = pytest.mark.parametrize(
    "pair", [("sqlite", "postgresql"), ("sqlite", "mariadb")], indirect=True, ids="-".join
)


# --- exact ----------------------------------------------------------------------------------------


@each_direction
def test_every_byte_arrives(pair: Pair) -> None:
    fill(pair.source_url)
    outcome = pair.copy()
    assert outcome.same
    assert outcome.passes == 1
    assert contents(pair.target_url) == contents(pair.source_url)
    assert {name: found.rows for name, found in outcome.target.items()} == {
        **dict.fromkeys(TABLES, len(KEYS)),
        "client": len(ADDRESSES),
    }


@each_direction
def test_a_second_copy_has_nothing_to_do(pair: Pair) -> None:
    fill(pair.source_url)
    first = pair.copy()
    statements: list[str] = []
    event.listen(
        pair.target,
        "before_cursor_execute",
        lambda _c, _k, statement, *_more: statements.append(statement),
    )
    second = pair.copy()
    assert second == first
    assert pair.watch.differences[-1] == dict.fromkeys(TABLES, Difference())
    assert not [
        statement for statement in statements if not statement.startswith(("SELECT", "BEGIN"))
    ]


@each_direction
def test_what_was_copied_in_part_or_differs_is_put_right(pair: Pair) -> None:
    fill(pair.source_url)
    pair.copy()
    pair.change(
        pair.target,
        delete(triplet).where(triplet.c.triplet_key.in_(KEYS[::3])),
        update(triplet)
        .where(triplet.c.triplet_key == KEYS[1])
        .values(sender="other", passed_at=None),
        update(client).where(client.c.address == "::1").values(strikes=99),
        insert(client).values(
            address="9.9.9.9",
            passes=1,
            first_seen=1,
            last_seen=1,
            expires_at=NOW - 1,
            strikes=0,
            struck_until=0,
        ),
        delete(rule),
        update(authorised).where(authorised.c.last == KEYS[0]).values(source="spf"),
        delete(provider).where(provider.c.domain_key == KEYS[0]),
    )
    assert pair.copy().same
    assert pair.watch.differences[-1] == NOTHING | {
        "authorised": Difference(other=1),
        "provider": Difference(missing=1),
        "triplet": Difference(missing=len(KEYS[::3]), other=1),
        "client": Difference(other=1, surplus=1),
        "rule": Difference(missing=len(KEYS)),
    }
    assert contents(pair.target_url) == contents(pair.source_url)


@pytest.mark.parametrize("batch", [1, 2, len(KEYS), 1000])
def test_the_size_of_a_batch_does_not_matter(pair: Pair, batch: int) -> None:
    fill(pair.source_url)
    assert pair.copy(batch=batch).same
    assert contents(pair.target_url) == contents(pair.source_url)


def test_an_empty_store_is_copied_too(pair: Pair) -> None:
    assert pair.copy().target == dict.fromkeys(TABLES, Sum())


# --- checksums ------------------------------------------------------------------------------------


def sum_of(*rows: tuple[object, ...]) -> Sum:
    found = Sum()
    for row in rows:
        found.add(row)
    return found


def test_a_checksum_does_not_depend_on_the_order() -> None:
    assert sum_of((b"a", 1), (b"b", 2)) == sum_of((b"b", 2), (b"a", 1))


@pytest.mark.parametrize(
    "row",
    [
        (b"a", "b", 1),
        ("a", b"b", 1),
        ("a", "b", 1, None),
        ("a", "b ", 1),
        ("a'", "b", 1),
        ("a", "b", "1"),
    ],
)
def test_a_checksum_tells_rows_apart(row: tuple[object, ...]) -> None:
    assert sum_of(row) != sum_of(("a", "b", 1))
    assert sum_of(row, row) != sum_of(("a", "b", 1), ("a", "b", 1))


def test_a_checksum_is_the_same_tomorrow() -> None:
    assert sum_of((b"\0 ", "\U0001f600'", None, -1)).checksum == "422c9da71e3648a18e3275d8f5a0d5a6"


# --- a target with rows of its own ----------------------------------------------------------------


@to_servers
def test_a_target_that_holds_more_is_refused_before_anything_is_written(pair: Pair) -> None:
    fill(pair.source_url)
    databases.fill_url(
        pair.target_url,
        "client",
        [("9.9.9.9", 1, 1, 1, NOW, 0, 0), ("9.9.9.8", 1, 1, 1, NOW - 1, 0, 0)],
    )
    databases.fill_url(
        pair.target_url, "rule", [(b"r" * 16, "network", "p", "allow", None, "", 1, None)]
    )
    before = contents(pair.target_url)
    with pytest.raises(
        Occupied, match=r"rows that the source does not have \(client: 1, rule: 1\)"
    ):
        pair.copy()
    assert contents(pair.target_url) == before
    assert pair.copy(overwrite=True).same
    assert contents(pair.target_url) == contents(pair.source_url)


# --- a source that changes ------------------------------------------------------------------------


@each_direction
def test_what_changes_meanwhile_is_copied_by_another_pass(pair: Pair) -> None:
    fill(pair.source_url)

    def mail() -> None:
        if len(pair.watch.differences) == 1:
            pair.change(
                pair.source,
                delete(rule).where(rule.c.match_key == KEYS[0]),
                update(triplet).where(triplet.c.triplet_key == KEYS[1]).values(passes=7),
                insert(client).values(
                    address="0.0.0.0",
                    passes=1,
                    first_seen=1,
                    last_seen=1,
                    expires_at=9,
                    strikes=0,
                    struck_until=0,
                ),
            )

    pair.watch.after_pass = mail
    outcome = pair.copy()
    assert outcome.same
    assert outcome.passes == 2
    assert pair.watch.differences[1] == NOTHING | {
        "triplet": Difference(other=1),
        "client": Difference(missing=1),
        "rule": Difference(surplus=1),
    }
    assert contents(pair.target_url) == contents(pair.source_url)


def test_a_source_that_does_not_rest_is_told_of(pair: Pair) -> None:
    fill(pair.source_url)
    pair.watch.after_pass = lambda: pair.change(
        pair.source, update(triplet).values(passes=triplet.c.passes - 1)
    )
    outcome = pair.copy()
    assert not outcome.same
    assert outcome.passes == copying.PASSES
    assert outcome.source["client"] == outcome.target["client"]
    assert outcome.source["triplet"].rows == outcome.target["triplet"].rows
    assert outcome.differ == NOTHING | {"triplet": Difference(other=len(KEYS))}


# --- races and refusals ---------------------------------------------------------------------------


@to_servers
def test_two_copies_at_once_do_not_disturb_each_other(pair: Pair) -> None:
    fill(pair.source_url)
    other = open_engine(pair.target_url)
    inserted: list[str] = []

    def quicker(_connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("INSERT") and not inserted:
            inserted.append(statement)
            assert Copying(pair.source, other, Watch()).copy(NOW).same

    event.listen(pair.target, "before_cursor_execute", quicker)
    assert pair.copy().same
    assert inserted
    assert contents(pair.target_url) == contents(pair.source_url)
    other.dispose()


@to_servers
def test_a_row_that_the_target_does_not_take_is_told_of_with_its_table(pair: Pair) -> None:
    databases.fill_url(pair.source_url, "client", [("x" * 46, 1, 1, 1, LATER, 0, 0)])
    with pytest.raises(CopyError, match=r"^client: the target does not take a row: .*too long"):
        pair.copy()


def test_a_text_that_postgresql_does_not_take_is_told_of(pair: Pair) -> None:
    databases.fill_url(pair.source_url, "client", [("a\0b", 1, 1, 1, LATER, 0, 0)])
    with pytest.raises(CopyError, match=r"^client: the target does not take a row: .*NUL"):
        pair.copy()
