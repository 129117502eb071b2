"""The schema on each kind of database: migrations that are stopped, that meet others, that are of
another program.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Integer, text
from sqlalchemy.exc import DBAPIError

from greycheck.store.schema import migrate, migration_ops, upgrade_lock
from greycheck.store.schema.migrate import SchemaError
from greycheck.store.schema.tables import metadata
from tests.servers import PASSWORD, Galera, MariaDB, Postgres, Server
from tests.store.schema.schemas import (
    CLIENT,
    CONTRACT,
    EXPAND,
    KEY,
    KEY_WITH_PAIR,
    MAILS,
    NAME,
    TRIPLET,
    Stopped,
    Store,
    before_statement,
    child,
    command,
    literal,
    migrations_until,
    started,
    stop,
    write_migrations,
    write_program,
)
from tests.support import ACCEPTED, DEFERRED, DRIVERS

OLD_TRIPLETS = "SELECT triplet_key, sender, first_attempt, passed_at, expires_at FROM triplet"
KEPT = [(KEY, "s", 1, None, 5)]
KEPT_WITH_PAIR = [(KEY_WITH_PAIR, "s", 1, None, 5)]


def fresh(server: Server, driver: str = "") -> str:
    """The URL of an empty database of SERVER."""
    server.start()
    server.drop(NAME)
    server.create(NAME)
    return server.url(NAME, driver or server.driver)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def store(request: pytest.FixtureRequest, place: Path) -> Iterator[Store]:
    """An empty database of each kind."""
    found = Store(
        f"sqlite:///{place}/greycheck.db"
        if request.param == "sqlite"
        else fresh(request.getfixturevalue(request.param))
    )
    yield found
    found.close()


on_servers = pytest.mark.parametrize("store", ["postgres", "mariadb"], indirect=True)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_lock, "PAUSE", 0.01)


@pytest.fixture
def nodes(galera: Galera) -> Iterator[list[Store]]:
    """Two nodes of a cluster with an empty database."""
    galera.start()
    fresh(galera.nodes[0])
    galera.nodes[1].sql("SELECT 1", "", timeout=60)
    found = [Store(node.url(NAME)) for node in galera.nodes[:2]]
    yield found
    for one in found:
        one.close()


# --- what there is --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "driver"), DRIVERS)
def test_migrations_make_what_the_tables_say(
    kind: str, driver: str, request: pytest.FixtureRequest
) -> None:
    store = Store(fresh(request.getfixturevalue(kind), driver))
    assert migrate.current(store.url) is None
    assert (
        migrate.upgrade(store.url)
        == migrate.upgrade(store.url)
        == migrate.current(store.url)
        == migrate.head()
    )
    with store.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_server_default": True, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []
    migrate.require(store.url)
    names = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    assert {name for _, _, indexes, _ in store.shape().values() for name, _ in indexes} == names
    store.close()


def test_no_default_of_the_server_matters(mariadb: MariaDB) -> None:
    url = fresh(mariadb)
    mariadb.sql(f"ALTER DATABASE {NAME} CHARACTER SET latin1 COLLATE latin1_swedish_ci")
    mariadb.sql("SET GLOBAL default_storage_engine = 'MyISAM'")
    try:
        migrate.upgrade(url)
    finally:
        mariadb.sql("SET GLOBAL default_storage_engine = 'InnoDB'")
    tables = mariadb.sql(
        "SELECT table_name, engine, table_collation FROM information_schema.tables WHERE"
        f" table_schema = '{NAME}'"
    )
    assert sorted(tables) == [
        (name, "InnoDB", "utf8mb4_bin") for name in sorted(["alembic_version", *metadata.tables])
    ]


def test_data_go_up_and_down(store: Store) -> None:
    migrate.upgrade(store.url)
    assert migrate.downgrade(store.url, "0001") == migrate.current(store.url) == "0001"
    with pytest.raises(
        SchemaError, match=r"at 0001, older than this program's .*: run greycheck db upgrade"
    ):
        migrate.require(store.url)
    store.write_rows()
    before = store.run("SELECT * FROM triplet"), store.run("SELECT * FROM client")
    migrate.upgrade(store.url)
    assert store.run("SELECT triplet_key, sender, passes FROM triplet") == [(KEY_WITH_PAIR, "s", 4)]
    assert store.run("SELECT address, expires_at, strikes, struck_until FROM client") == [
        ("192.0.2.1", 4, 0, 0)
    ]
    store.run("UPDATE client SET strikes = 5, struck_until = 6")
    migrate.downgrade(store.url, "0001")
    assert (store.run("SELECT * FROM triplet"), store.run("SELECT * FROM client")) == before
    assert migrate.downgrade(store.url, "base") is None
    assert store.shape() == {}
    assert migrate.upgrade(store.url) == migrate.head()
    assert store.run("SELECT count(*) FROM triplet") == [(0,)]


def test_every_table_goes_down_with_rows_in_it_and_comes_up_again(store: Store) -> None:
    """What an older schema has a place for is there at each step."""
    migrate.upgrade(store.url)
    assert store.tables() == set(metadata.tables)
    store.fill(*metadata.tables)
    whole, shape = store.contents(*metadata.tables), store.shape()
    for revision in migrate.known()[-2::-1]:
        migrate.downgrade(store.url, revision)
        columns = {name: found[0] for name, found in store.shape().items()}
        for name, rows in store.contents(*columns).items():
            assert len(rows) == len(whole[name]), f"{name} at {revision}"
            assert rows == whole[name] or columns[name] != shape[name][0], f"{name} at {revision}"
    migrate.upgrade(store.url)
    assert store.shape() == shape
    assert {name for name, rows in store.contents(*shape).items() if rows} == {"triplet", "client"}
    store.fill(*metadata.tables.keys() - {"triplet", "client"})
    migrate.downgrade(store.url, "base")
    assert store.shape() == {}
    migrate.upgrade(store.url)
    assert store.contents(*metadata.tables) == {name: [] for name in metadata.tables}


@pytest.mark.parametrize("batch", [1, 3, len(MAILS), 1000])
def test_rows_move_to_their_new_keys_and_back(
    store: Store, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_ops, "BATCH", batch)
    start_at_0002(store)
    pairs = dict(store.run("SELECT triplet_key, pair_digest FROM triplet"))
    migrate.upgrade(store.url)
    assert store.mails() == {mail.key: mail.row(number) for number, mail in enumerate(MAILS)}
    migrate.downgrade(store.url, "0002")
    assert store.mails() == {mail.old_key: mail.row(number) for number, mail in enumerate(MAILS)}
    back = dict(store.run("SELECT triplet_key, pair_digest FROM triplet"))
    assert back == {mail.old_key: mail.pair for mail in MAILS}
    assert {key: pair for key, pair in pairs.items() if pair} == {
        key: back[key] for key, pair in pairs.items() if pair
    }


def start_at_0002(store: Store) -> None:
    """The second revision, with rows."""
    if migrate.current(store.url) is None:
        migrate.upgrade(store.url)
    store.run("DELETE FROM triplet")
    if migrate.current(store.url) != "0002":
        migrate.downgrade(store.url, "0002")
    store.run("DELETE FROM triplet")
    store.write_rows_of_0002()


# Each revision, and the one before it.
STEPS = list(pairwise([None, *migrate.known()]))


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Has the migrations of this process end with a revision: returns their directory."""

    def end(revision: str) -> Path:
        directory = tmp_path / f"until-{revision}"
        if not directory.exists():
            with monkeypatch.context() as patch:
                patch.setattr(migrate, "migrations", ALL)
                migrations_until(directory, revision)
        monkeypatch.setattr(migrate, "migrations", lambda: directory)
        return directory

    return end


# Where all of them are.
ALL = migrate.migrations


@on_servers
def test_nobody_finds_a_row_while_rows_move(
    store: Store, monkeypatch: pytest.MonkeyPatch, only: Callable[[str], Path]
) -> None:
    """What has its old key still is not taken for new mail."""
    monkeypatch.setattr(migration_ops, "BATCH", 2)
    start_at_0002(store)
    only("0003")
    refused: list[bool] = []

    def look() -> None:
        with store.engine.connect() as check:
            if store.kind == "postgresql":
                check.execute(text("SET lock_timeout = 1"))
            try:
                check.execute(text("SELECT * FROM triplet"))
            except DBAPIError:
                refused.append(True)
            else:
                refused.append(False)

    moved = 0
    for number in range(1, 100):
        with before_statement(number, look) as seen:
            migrate.upgrade(store.url)
        if number > len(seen):
            break
        if seen[number - 1].startswith("UPDATE triplet"):
            assert refused[-1], seen[number - 1]
            moved += 1
        migrate.downgrade(store.url, "0002")
    assert moved >= 4


def test_what_was_stopped_on_its_way_is_finished_first(mariadb: MariaDB) -> None:
    store = Store(fresh(mariadb))
    start_at_0002(store)
    stop_away(store, lambda: migrate.upgrade(store.url))
    with pytest.raises(
        SchemaError, match="a greycheck db upgrade was stopped here: finish that first"
    ):
        migrate.downgrade(store.url, "base")
    migrate.upgrade(store.url)
    assert len(store.mails()) == len(MAILS)
    migrate.downgrade(store.url, "0003")
    stop_away(store, lambda: migrate.downgrade(store.url, "0002"))
    with pytest.raises(
        SchemaError, match="a greycheck db downgrade was stopped here: finish that first"
    ):
        migrate.upgrade(store.url)
    migrate.downgrade(store.url, "0002")
    store.run("CREATE TABLE triplet_upgrading (number INTEGER)")
    with pytest.raises(
        SchemaError,
        match="there are both triplet and triplet_upgrading: drop the one that was left over",
    ):
        migrate.upgrade(store.url)
    store.run("DROP TABLE triplet_upgrading")
    migrate.upgrade(store.url)
    assert len(store.mails()) == len(MAILS)
    store.close()


def stop_away(store: Store, change: Callable[[], object]) -> None:
    """Stops CHANGE before its first statement after a table was taken away."""
    for number in range(1, 100):
        with before_statement(number, stop), suppress(Stopped):
            change()
        with store.engine.connect() as connection:
            if migration_ops.is_away(connection):
                return
    raise AssertionError("nothing is taken away")


# --- stopped anywhere -----------------------------------------------------------------------------


def stop_everywhere(store: Store, start: Callable[[], None], change: Callable[[], object]) -> int:
    """Stops CHANGE, from START on, at each of its statements in turn, and does it again.

    Where a stop takes back all of it, only at every fourth. Returns how many there were.
    """
    start()
    change()
    wanted, revisions = store.shape(), store.revisions()
    for number in range(1, 200, 1 if store.kind == "mysql" else 4):
        start()
        before = None if store.kind == "mysql" else whole(store)
        with before_statement(number, stop) as seen:
            try:
                change()
            except Stopped:
                pass
            else:
                return len(seen)
        if before:
            assert whole(store) == before
        change()
        assert (store.shape(), store.revisions()) == (wanted, revisions), f"stopped at {seen[-1]}"
    raise AssertionError("it never ends")


def whole(store: Store) -> object:
    """All that STORE has."""
    shape = store.shape()
    return shape, store.contents(*shape)


@pytest.mark.parametrize(("before", "revision"), STEPS)
def test_a_migration_that_is_stopped_is_gone_on_with(
    store: Store, only: Callable[[str], Path], before: str | None, revision: str
) -> None:
    """Up and down. What a step does between revisions, the whole way does."""
    if before:
        only("0001")
        migrate.upgrade(store.url)
        store.write_rows()
        only(before)
        migrate.upgrade(store.url)
    there = store.tables() - {"triplet", "client"}
    store.fill(*there)
    rows = store.contents(*there)
    only(revision)
    if before:
        kept = KEPT_WITH_PAIR if revision > "0002" else KEPT
        kept_before = KEPT_WITH_PAIR if before > "0002" else KEPT

    def at_before() -> None:
        if migrate.current(store.url) == revision:
            migrate.downgrade(store.url, before or "base")

    def up() -> None:
        migrate.upgrade(store.url)
        assert not before or store.run(OLD_TRIPLETS) == kept
        assert store.contents(*there) == rows

    def up_and_fill() -> None:
        """With rows in the tables that this migration makes."""
        up()
        made = store.tables() - {"triplet", "client"} - there if before else store.tables()
        store.fill(*made)

    def down() -> None:
        if migrate.current(store.url):
            migrate.downgrade(store.url, before or "base")
        assert not before or store.run(OLD_TRIPLETS) == kept_before
        assert store.contents(*there) == rows

    assert stop_everywhere(store, at_before, up) >= 2
    assert stop_everywhere(store, up_and_fill, down) >= 2


def test_moving_rows_is_gone_on_with_where_it_was_stopped(
    store: Store, monkeypatch: pytest.MonkeyPatch, only: Callable[[str], Path]
) -> None:
    monkeypatch.setattr(migration_ops, "BATCH", 3)
    start_at_0002(store)
    only("0003")

    def up_and_look() -> None:
        migrate.upgrade(store.url)
        assert store.mails() == {mail.key: mail.row(number) for number, mail in enumerate(MAILS)}

    def start_at_0003() -> None:
        start_at_0002(store)
        migrate.upgrade(store.url)

    def down_and_look() -> None:
        migrate.downgrade(store.url, "0002")
        assert store.mails() == {
            mail.old_key: mail.row(number) for number, mail in enumerate(MAILS)
        }

    assert stop_everywhere(store, lambda: start_at_0002(store), up_and_look) >= 6
    assert stop_everywhere(store, start_at_0003, down_and_look) >= 6


# --- several at once ------------------------------------------------------------------------------


@on_servers
def test_many_upgrades_at_once_make_one_schema(store: Store) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(migrate.upgrade, [store.url] * 12) == [migrate.head()] * 12
    assert store.revisions() == [migrate.head()]


@on_servers
def test_whoever_waits_for_another_upgrade_is_told(store: Store) -> None:
    told: list[str] = []
    with store.engine.connect() as other:
        assert upgrade_lock._take(other)

        def tell(said: str) -> None:
            told.append(said)
            assert store.shape() == {}
            other.invalidate()

        assert migrate.upgrade(store.url, tell=tell) == migrate.head()
    assert told == ["waiting: another greycheck db upgrade runs from 127.0.0.1"]


@on_servers
def test_another_upgrade_is_not_waited_for_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade_lock, "UPGRADE_TIMEOUT", 0.2)
    told: list[str] = []
    said = (
        r"another greycheck db upgrade runs from 127.0.0.1, and did for \ds: see whether it goes"
        " on, and run this again"
    )
    with store.engine.connect() as other:
        assert upgrade_lock._take(other)
        with pytest.raises(SchemaError, match=said):
            migrate.upgrade(store.url, tell=told.append)
        other.invalidate()
    assert told == ["waiting: another greycheck db upgrade runs from 127.0.0.1"]
    assert migrate.upgrade(store.url) == migrate.head()


@on_servers
def test_an_upgrade_of_another_database_is_not_waited_for(
    store: Store, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(
        "postgres" if store.kind == "postgresql" else "mariadb"
    )
    server.drop("beside")
    server.create("beside")
    beside = Store(server.url("beside"))
    with beside.engine.connect() as other:
        assert upgrade_lock._take(other)
        assert migrate.upgrade(store.url, tell=pytest.fail) == migrate.head()
    beside.close()


@on_servers
def test_a_table_that_somebody_holds_is_waited_for_without_keeping_checks(store: Store) -> None:
    told: list[str] = []
    migrate.upgrade(store.url)
    migrate.downgrade(store.url, "0001")
    with store.engine.connect() as other, store.engine.connect() as check:
        other.execute(text("SELECT * FROM client")).all()
        if store.kind == "postgresql":
            check.execute(text("SET lock_timeout = 1"))
        else:
            check.execute(text("SET lock_wait_timeout = 0"))

        def tell(said: str) -> None:
            told.append(said)
            check.execute(text(CLIENT))
            check.execute(text(TRIPLET.format(literal(KEY, store.kind))))
            check.commit()
            other.rollback()

        assert migrate.upgrade(store.url, tell=tell) == migrate.head()
    assert store.run(OLD_TRIPLETS) == KEPT_WITH_PAIR
    who = (
        "a transaction from 127.0.0.1 holds the table client"
        if store.kind == "postgresql"
        else "somebody's transaction"
    )
    assert len(told) == 1
    assert told[0].startswith(f"waiting: {who}")


@on_servers
def test_a_table_that_somebody_keeps_ends_the_upgrade(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade_lock, "LOCK_TIMEOUT", 0)
    migrate.upgrade(store.url)
    migrate.downgrade(store.url, "0001")
    with store.engine.connect() as other:
        other.execute(text("SELECT * FROM client")).all()
        with pytest.raises(
            SchemaError,
            match=r"transaction .*holds .*, and did for \d+s: end it, and run this again",
        ):
            migrate.upgrade(store.url)
    assert store.revisions() == ["0001"]


@on_servers
def test_a_table_whose_holder_is_gone_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    migrate.upgrade(store.url)
    migrate.downgrade(store.url, "0001")
    holder = upgrade_lock._table_holder
    with store.engine.connect() as other:
        other.execute(text("SELECT * FROM client")).all()

        def gone(connection: object) -> str:
            other.rollback()
            return holder(connection)  # type: ignore[arg-type]

        monkeypatch.setattr(upgrade_lock, "_table_holder", gone)
        assert migrate.upgrade(store.url, tell=told.append) == migrate.head()
    assert told == [
        "waiting: somebody's transaction holds a table (SHOW PROCESSLIST, or pg_stat_activity,"
        " tells whose)"
    ]


def test_a_cluster_without_such_locks_is_upgraded(
    mariadb: MariaDB, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(upgrade_lock.TAKE, "postgresql", "SELECT no_such_lock()")
    with pytest.raises(SchemaError, match="no_such_lock"):
        migrate.upgrade(fresh(postgres))
    url = fresh(mariadb)
    monkeypatch.setitem(upgrade_lock.TAKE, "mysql", "SELECT NO_SUCH_LOCK()")
    assert migrate.upgrade(url) == migrate.head()


def test_two_nodes_at_once_make_one_schema(nodes: list[Store]) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for _round in range(3):
            assert (
                pool.map(migrate.upgrade, [store.url for store in nodes] * 2, 1)
                == [migrate.head()] * 4
            )
            assert nodes[0].revisions() == [migrate.head()]
            migrate.downgrade(nodes[0].url, "base")


def upgrade(directory: Path, _before: str, url: str) -> None:
    """To the last of the migrations in DIRECTORY. In any process."""
    migrate.migrations = lambda: directory
    migrate.upgrade(url)


def take_back(directory: Path, before: str, url: str) -> None:
    """To the revision BEFORE it, if it is not there yet."""
    migrate.migrations = lambda: directory
    if migrate.current(url) not in (None, before):
        migrate.downgrade(url, before)


def meet_everywhere(
    nodes: list[Store],
    start: Callable[[], None],
    change: Callable[[str], None],
    look: Callable[[Store], object],
) -> int:
    """CHANGE, from START on: one node does it all while the other is before any of its statements.

    LOOK is always the same after it.

    Returns how many statements there were.
    """
    one, other = nodes
    start()
    change(one.url)
    wanted = look(one)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for number in range(1, 100):
            start()
            with before_statement(number, lambda: pool.apply(change, (other.url,))) as seen:
                change(one.url)
            assert look(one) == wanted, f"met at {seen[number - 1]}"
            if len(seen) < number:
                return number
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("before", "revision"), STEPS)
def test_two_nodes_may_meet_anywhere(
    nodes: list[Store], only: Callable[[str], Path], before: str | None, revision: str
) -> None:
    url = nodes[0].url
    if before:
        only(before)
        migrate.upgrade(url)
    of_both = only(revision), before or "base"
    up, down = partial(upgrade, *of_both), partial(take_back, *of_both)

    def look(store: Store) -> object:
        return store.shape(), store.revisions()

    assert meet_everywhere(nodes, lambda: down(url), up, look) > 2
    assert meet_everywhere(nodes, lambda: up(url), down, look) > 2


def test_two_nodes_may_move_the_same_rows(
    nodes: list[Store], monkeypatch: pytest.MonkeyPatch, only: Callable[[str], Path]
) -> None:
    monkeypatch.setattr(migration_ops, "BATCH", 5)
    one, _other = nodes
    start_at_0002(one)
    of_both = only("0003"), "0002"
    up, down = partial(upgrade, *of_both), partial(take_back, *of_both)

    def start_moved() -> None:
        start_at_0002(one)
        up(one.url)

    def look(store: Store) -> object:
        return store.shape(), store.revisions(), store.mails()

    assert meet_everywhere(nodes, lambda: start_at_0002(one), up, look) > 6
    assert meet_everywhere(nodes, start_moved, down, look) > 6


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)
def test_a_node_that_is_behind_leaves_alone_what_another_has_taken_away(store: Store) -> None:
    migrate.upgrade(store.url)
    store.run(f"RENAME TABLE triplet TO triplet{migration_ops.AWAY}")
    before = store.shape()
    with (
        store.engine.connect() as connection,
        Operations.context(MigrationContext.configure(connection)),
    ):
        migration_ops.make_table(
            "triplet", Column("triplet_key", Integer), Column("expires_at", Integer)
        )
        migration_ops.add_column("triplet", Column("pair_digest", Integer))
        migration_ops.make_index("triplet", "expires_at")
        migration_ops.drop_index("triplet", "expires_at")
        migration_ops.drop_column("triplet", "expires_at")
    assert store.shape() == before


def test_a_node_that_always_loses_gives_up(
    mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade_lock, "LOCK_TIMEOUT", 0)
    url = fresh(mariadb)
    migrate.upgrade(url)
    store = Store(url)
    store.run("UPDATE alembic_version SET version_num = '0001'")
    # Its row is another one's before each of its looks.
    there = (
        "CREATE TRIGGER other BEFORE UPDATE ON alembic_version FOR EACH ROW SIGNAL SQLSTATE '45000'"
        " SET MYSQL_ERRNO = 1213"
    )
    store.run(there)
    with pytest.raises(
        SchemaError, match="another node's greycheck db upgrade changes the same, and did for"
    ):
        migrate.upgrade(url)
    store.close()


# --- refused --------------------------------------------------------------------------------------


def test_an_encoding_without_room_for_every_address_is_refused(postgres: Postgres) -> None:
    postgres.start()
    postgres.drop("ascii")
    postgres.sql(
        "CREATE DATABASE ascii OWNER greycheck ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
        "",
    )
    with pytest.raises(
        SchemaError, match=r"encoding is SQL_ASCII.*CREATE DATABASE greycheck ENCODING 'UTF8'"
    ):
        migrate.upgrade(postgres.url("ascii"))
    assert migrate.current(postgres.url("ascii")) is None


@on_servers
def test_a_table_of_somebody_else_is_left_alone(store: Store) -> None:
    store.run("CREATE TABLE client (number INTEGER)")
    with pytest.raises(SchemaError, match=r"client.* already") as caught:
        migrate.upgrade(store.url)
    assert "\n" not in str(caught.value)
    assert store.run("SELECT * FROM client") == []
    assert [column["name"] for column in store.shape()["client"][0]] == ["number"]


def test_who_may_make_no_table_is_told_so(postgres: Postgres, mariadb: MariaDB) -> None:
    on_postgres, on_mariadb = fresh(postgres), fresh(mariadb)
    postgres.sql(f"ALTER DATABASE {NAME} OWNER TO postgres", "")
    mariadb.sql(
        f"CREATE USER reader IDENTIFIED BY 'geheim'; GRANT SELECT ON {NAME}.* TO reader", ""
    )
    try:
        for url in (on_postgres, mariadb.url(NAME, user="reader", password="geheim")):
            with pytest.raises(
                SchemaError,
                match="greycheck's user must own the database, or have all rights in it",
            ):
                migrate.upgrade(url)
    finally:
        mariadb.sql("DROP USER reader", "")
    assert migrate.current(on_mariadb) is None


def test_two_revisions_are_none(store: Store) -> None:
    store.run("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    store.run("INSERT INTO alembic_version VALUES ('0001'), ('0002')")
    for call in (migrate.current, migrate.upgrade, migrate.require):
        with pytest.raises(
            SchemaError,
            match="alembic_version says 0001 and 0002: delete all rows but the right one",
        ):
            call(store.url)


# --- another program's schema ---------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path: Path) -> Callable[..., Path]:
    """Makes migrations of a program yet to come."""
    return lambda *texts: write_migrations(tmp_path / "migrations", *texts)


def test_a_newer_schema_that_fits_is_used(
    store: Store, newer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = migrate.head()
    with monkeypatch.context() as patch:
        directory = newer(EXPAND)
        patch.setattr(migrate, "migrations", lambda: directory)
        assert migrate.upgrade(store.url) == migrate.current(store.url) == "0098_0004"
    shape = store.shape()
    migrate.require(store.url)
    assert migrate.upgrade(store.url) == migrate.current(store.url) == "0098_0004"
    assert (
        migrate.standing("0098_0004")
        == f"at 0098_0004, newer than this program's {migrate.head()}, which can use it"
    )
    with pytest.raises(
        SchemaError,
        match="at 0098_0004, which this program does not know: use the one that made it",
    ):
        migrate.downgrade(store.url, "0001")
    assert store.shape() == shape
    monkeypatch.setattr(migrate, "migrations", lambda: directory)
    assert migrate.downgrade(store.url, own) == own
    assert set(store.shape()) == set(metadata.tables)


def test_a_newer_schema_that_does_not_fit_is_refused(
    store: Store, newer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = newer(EXPAND, CONTRACT.format(column="strikes"))
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: directory)
        assert migrate.upgrade(store.url) == "0099_0098"
    for call in (migrate.require, migrate.upgrade):
        said = (
            f"the schema is at 0099_0098, newer than this program's {migrate.head()}: install"
            " the newer greycheck here too"
        )
        with pytest.raises(SchemaError, match=said):
            call(store.url)
    assert migrate.current(store.url) == "0099_0098"


def test_further_migrations_that_are_stopped_are_gone_on_with(
    store: Store, newer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = migrate.head()
    directory = newer(EXPAND, CONTRACT.format(column="strikes"))
    monkeypatch.setattr(migrate, "migrations", lambda: directory)
    migrate.upgrade(store.url)

    def second() -> None:
        migrate.downgrade(store.url, own)

    assert stop_everywhere(store, second, lambda: migrate.upgrade(store.url)) >= 5


def test_old_and_new_children_share_an_expanded_schema(
    store: Store,
    place: Path,
    measured_launchers: Path,
    newer: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = migrate.head()
    write_program(place / "new", EXPAND)
    directory = newer(EXPAND)
    old = child(
        measured_launchers, store.url, place, GREYCHECK_DELAY="0", GREYCHECK_CLIENT_PASSES="0"
    )
    new = child(
        place / "new/bin", store.url, place, GREYCHECK_DELAY="0", GREYCHECK_CLIENT_PASSES="0"
    )
    migrate.upgrade(store.url)
    assert old.smtpextfork(sender="a@example.org").verdict == (DEFERRED, "new")
    too_old = new.smtpextfork(sender="a@example.org")
    assert too_old.verdict == (ACCEPTED, "error")
    assert (
        f"the schema is at {own}, older than this program's 0098_0004: run greycheck db upgrade"
        in too_old.log
    )
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: directory)
        migrate.upgrade(store.url)
    assert new.smtpextfork(sender="b@example.org").verdict == (DEFERRED, "new")
    assert old.smtpextfork(sender="c@example.org").verdict == (DEFERRED, "new")
    for one, sender in (new, "a"), (old, "b"), (new, "c"):
        assert one.smtpextfork(sender=f"{sender}@example.org").verdict == (ACCEPTED, "retry")
    for one in (old, new):
        for sender in "abc":
            assert one.smtpextfork(sender=f"{sender}@example.org").verdict == (ACCEPTED, "known")
    assert store.run("SELECT sender, note, passes FROM triplet ORDER BY sender") == [
        ("a@example.org", None, 1),
        ("b@example.org", "new", 1),
        ("c@example.org", None, 1),
    ]


@pytest.mark.parametrize("column", ["struck_until", "expires_at"])
@pytest.mark.parametrize(("on_error", "code"), [("accept", ACCEPTED), ("defer", DEFERRED)])
def test_a_child_that_a_schema_excludes_says_so(
    store: Store,
    place: Path,
    measured_launchers: Path,
    newer: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    on_error: str,
    code: int,
    column: str,
) -> None:
    own = migrate.head()
    directory = newer(EXPAND, CONTRACT.format(column=column))
    if column == "expires_at":
        # An indexed column, which only writing needs.
        path = directory / "versions/0099_further.py"
        path.write_text(
            path.read_text().replace(
                "    migration_ops.drop_",
                '    migration_ops.drop_index("client", "expires_at")\n    migration_ops.drop_',
            )
        )
    monkeypatch.setattr(migrate, "migrations", lambda: directory)
    migrate.upgrade(store.url)
    ran = child(measured_launchers, store.url, place, GREYCHECK_ON_ERROR=on_error).smtpextfork()
    assert ran.verdict == (code, "error")
    said = (
        f"the schema is at 0099_0098, newer than this program's {own}: install the newer"
        " greycheck here too"
    )
    assert said in ran.log


# --- the command ----------------------------------------------------------------------------------


@on_servers
def test_the_command_goes_all_the_way_and_shows_no_password(store: Store, place: Path) -> None:
    where = place / "database"
    where.write_text(store.url + "\n")
    where.chmod(0o600)
    outputs: list[str] = []

    def run(*arguments: str, code: int = 0) -> str:
        in_file = len(outputs) % 2
        environ = (
            {"GREYCHECK_DATABASE_FILE": str(where)}
            if in_file
            else {"GREYCHECK_DATABASE": store.url}
        )
        ran = command("db", *arguments, **environ)
        assert ran.returncode == code, ran
        outputs.append(ran.stdout + ran.stderr)
        return outputs[-1]

    shown = migrate.shown(store.url)
    assert ":***@" in shown
    assert run("current") == f"{shown}: not made yet, this program's is {migrate.head()}\n"
    assert run("upgrade") == f"{shown}: at {migrate.head()}\n"
    assert run("current") == f"{shown}: at {migrate.head()}, this program is at {migrate.head()}\n"
    assert f'"revision": "{migrate.head()}"' in run("current", "--json")
    assert run("downgrade", "0001", "--yes") == f"{shown}: at 0001\n"
    assert (
        run("current")
        == f"{shown}: at 0001, older than this program's {migrate.head()}: run greycheck db"
        " upgrade\n"
    )
    assert "Can't locate revision identified by 'nonsense'" in run(
        "downgrade", "nonsense", "--yes", code=1
    )
    store.run("UPDATE alembic_version SET version_num = '9999_0001'")
    assert (
        run("upgrade")
        == f"{shown}: at 9999_0001, newer than this program's {migrate.head()}, which can use it\n"
    )
    store.run("UPDATE alembic_version SET version_num = '9999'")
    assert "install the newer greycheck here too" in run("upgrade", code=1)
    assert "at 9999, which this program does not know" in run("downgrade", "base", "--yes", code=1)
    for said in outputs:
        assert not any(secret in said for secret in (PASSWORD, "s3cr", "Traceback"))


@on_servers
def test_the_command_says_whom_it_waits_for(store: Store) -> None:
    with store.engine.connect() as other:
        assert upgrade_lock._take(other)
        with started("db", "upgrade", GREYCHECK_DATABASE=store.url) as waiting:
            assert waiting.stderr is not None
            assert (
                waiting.stderr.readline()
                == "waiting: another greycheck db upgrade runs from 127.0.0.1\n"
            )
            other.invalidate()
            assert waiting.communicate(timeout=120) == (
                f"{migrate.shown(store.url)}: at {migrate.head()}\n",
                "",
            )
    assert waiting.returncode == 0


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_server_that_does_not_answer_is_one_line(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    url = fresh(server)
    wrong = server.url(NAME, password="Wr0ng")
    port = server.port
    nobody = url.replace(f":{port}/", ":1/")
    for where, arguments in (
        (nobody, ["current"]),
        (nobody, ["upgrade"]),
        (wrong, ["downgrade", "base", "--yes"]),
    ):
        ran = command("db", *arguments, GREYCHECK_DATABASE=where)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith(f"Error: {migrate.shown(where)}: 127.0.0.1:")
        assert ran.stderr.count("\n") == 1
        assert not any(secret in ran.stderr for secret in ("s3cr", "Wr0ng"))
