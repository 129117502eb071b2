"""Fifty children a second, and what happens to database servers: each child ends in time with a
verdict, none is wrong, no row is lost.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from greycheck.store.admin.engine import open_engine
from greycheck.store.base import StoreError
from greycheck.store.schema import migrate
from tests.load import Load
from tests.servers import PASSWORD, USER, Galera, MariaDB, Postgres, Server
from tests.support import DEFERRED

# --- a server and its faults ----------------------------------------------------------------------


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind in turn, empty and running, and running again afterwards."""
    found: Server = request.getfixturevalue(request.param)
    found.start()
    found.create("faults")
    migrate.upgrade(found.url("faults"))
    yield found
    found.start()
    found.drop("faults")


@pytest.fixture
def load(server: Server, launchers: Path, place: Path) -> Load:
    found = Load(launchers, [server.url("faults")], place)
    found.prepare()
    return found


def senders(url: str) -> set[str]:
    engine = open_engine(url)
    with engine.connect() as connection:
        found = set(connection.execute(text("SELECT sender FROM triplet")).scalars())
    engine.dispose()
    return found


def assert_sound(load: Load, url: str) -> None:
    assert len(load.ended) == load.number
    assert not load.wrong()
    assert not load.late()
    assert not load.lost(senders(url))
    assert not load.said(PASSWORD)


def test_a_stopped_server_costs_one_check_its_deadline_and_the_others_nothing(
    server: Server, load: Load
) -> None:
    with load.going_on():
        load.calm()
        server.freeze()
        load.wait(lambda: bool(load.said(": not asked")), "children do not ask")
        before = len(load.ended)
        load.wait(lambda: len(load.said(": not asked")) > 100, "children do not ask")
        asking = [one for one in load.ended[before:] if ": not asked" not in one.log]
        server.thaw()
        load.wait_recovered()
    assert_sound(load, server.url("faults"))
    assert load.said(" is not asked any more: ")
    assert load.said(" answers again after ")
    # Those that were asking when the mark was made, and one probe after the other.
    assert len(asking) < len(load.said(": not asked"))


def test_a_killed_server_is_asked_again_once_it_is_back(server: Server, load: Load) -> None:
    with load.going_on():
        load.calm()
        server.kill()
        load.wait_errors(30)
        server.start()
        load.wait_recovered()
    assert_sound(load, server.url("faults"))
    assert load.said(" is not asked any more: ")
    assert load.said(" answers again after ")


def test_a_server_without_a_connection_left(server: Server, load: Load) -> None:
    with load.going_on():
        load.calm()
        with limited(server):
            load.wait(
                lambda: bool(load.said("too many ") or load.said("max_user_connections")),
                "they are told",
            )
        load.wait_recovered()
    assert_sound(load, server.url("faults"))


@contextmanager
def limited(server: Server) -> Iterator[None]:
    """One connection for the checker, and that is taken."""
    if isinstance(server, Postgres):
        server.sql(f"ALTER ROLE {USER} CONNECTION LIMIT 1")
    else:
        server.sql(f"GRANT USAGE ON *.* TO {USER} WITH MAX_USER_CONNECTIONS 1")
    engine = open_engine(server.url("faults"))
    with patiently_connected(engine):
        yield
        if isinstance(server, Postgres):
            server.sql(f"ALTER ROLE {USER} CONNECTION LIMIT -1")
        else:
            server.sql(f"GRANT USAGE ON *.* TO {USER} WITH MAX_USER_CONNECTIONS 0")
    engine.dispose()


@contextmanager
def patiently_connected(engine: Engine) -> Iterator[None]:
    """The one connection there is, won from the children."""
    while True:
        try:
            with engine.connect():
                yield
                return
        except StoreError:
            time.sleep(0.001)


def test_another_password(server: Server, load: Load) -> None:
    with load.going_on():
        load.calm()
        set_password(server, "another")
        load.wait_errors(30)
        set_password(server, PASSWORD)
        load.wait_recovered()
    assert_sound(load, server.url("faults"))
    assert [one for one in load.ended if "password" in one.log]


def set_password(server: Server, password: str) -> None:
    if isinstance(server, Postgres):
        server.sql(f"ALTER ROLE {USER} PASSWORD '{password}'")
    else:
        server.sql(f"ALTER USER {USER} IDENTIFIED BY '{password}'")


@pytest.mark.parametrize("how", ["all", "writes"])
def test_a_table_that_an_operator_has_locked(server: Server, load: Load, how: str) -> None:
    """Who may read still gets his verdict, if it is recorded already."""
    with load.going_on():
        load.calm()
        with locked(server, how):
            load.wait_errors(40)
            before = len(load.ended)
            load.wait(lambda: len(load.ended) > before + 40, "children end")
            after = load.ended[before:]
        load.wait_recovered()
    assert_sound(load, server.url("faults"))
    if how == "writes":
        assert not [
            one for one in after if one.kind in ("known", "early") and one.verdict[1] == "error"
        ]
        assert load.said(" takes no writes: ")
        assert load.said(": not tried")
        assert load.said(" takes writes again after ")


@contextmanager
def locked(server: Server, how: str) -> Iterator[None]:
    """The table of triplets, locked by a session of the administrator."""
    if isinstance(server, Postgres):
        mode = "ACCESS EXCLUSIVE" if how == "all" else "SHARE"
        statements = f"BEGIN; LOCK TABLE triplet IN {mode} MODE; SELECT 'locked';\n"
    else:
        statements = (
            f"LOCK TABLES triplet {'WRITE' if how == 'all' else 'READ'}; SELECT 'locked';\n"
        )
    session = subprocess.Popen(
        [*server.client("faults"), *([] if isinstance(server, Postgres) else ["--unbuffered"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert session.stdin
    assert session.stdout
    session.stdin.write(statements.encode())
    session.stdin.flush()
    assert b"locked" in session.stdout.readline()
    try:
        yield
    finally:
        session.kill()
        session.wait()
        session.stdin.close()
        session.stdout.close()


@pytest.mark.parametrize("kind", [Postgres, MariaDB])
def test_a_full_disk(
    kind: type[Postgres | MariaDB], request: pytest.FixtureRequest, launchers: Path, place: Path
) -> None:
    with kind(request.getfixturevalue("templates"), small_disk=True) as server:
        server.start()
        server.create("faults")
        migrate.upgrade(server.url("faults"))
        load = Load(launchers, [server.url("faults")], place)
        load.prepare()
        with load.going_on():
            load.calm()
            server.fill_disk()
            load.wait_errors(10)
            server.free_disk()
            server.start()
            load.wait_recovered()
        assert_sound(load, server.url("faults"))


def test_more_children_than_connections(server: Server, launchers: Path, place: Path) -> None:
    """Two hundred at once, and a server for some twenty: they wait for each other, and each is
    recorded.
    """
    server.restart(max_connections=20)
    load = Load(launchers, [server.url("faults")], place)
    load.environs[0]["GREYCHECK_DEADLINE"] = "100s"
    for _ in range(200):
        load.start_one("new")
    load.wait(load.all_have_ended, "children end")
    assert {one.verdict for one in load.ended} == {(DEFERRED, "new")}
    assert len(senders(server.url("faults"))) == 200
    server.stop()


# --- a cluster and its faults ---------------------------------------------------------------------


@pytest.fixture
def cluster(galera: Galera) -> Iterator[Galera]:
    galera.start()
    galera.nodes[0].create("faults")
    migrate.upgrade(galera.nodes[0].url("faults"))
    yield galera
    galera.start()
    galera.nodes[0].drop("faults")


def urls(cluster: Galera) -> list[str]:
    """A URL for each of three MX hosts, with its own node first."""
    nodes = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
    plain = cluster.nodes[0].url("faults")
    start, _, end = plain.partition("@")
    database = end.partition("/")[2]
    return [
        f"{start}@/{database}?"
        + "&".join(f"host={host}" for host in nodes[number:] + nodes[:number])
        for number in range(len(nodes))
    ]


@pytest.fixture
def cluster_load(cluster: Galera, launchers: Path, place: Path) -> Load:
    found = Load(launchers, urls(cluster), place)
    found.prepare()
    return found


def rejoin(cluster: Galera) -> None:
    cluster.nodes[0].rejoin()
    cluster.wait_synced(0)


TROUBLES: dict[str, tuple[Callable[[Galera], None], Callable[[Galera], None]]] = {
    "killed": (lambda cluster: cluster.nodes[0].kill(), rejoin),
    # The minority's side is asked first by one MX, and passed over.
    "cut off": (lambda cluster: cluster.isolate(0), lambda cluster: cluster.heal()),
    # Going on, it answers for a moment from what it knew, and thinks itself in step.
    "stopped": (lambda cluster: cluster.nodes[0].freeze(), lambda cluster: cluster.nodes[0].thaw()),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_node_in_trouble_is_passed_over_and_comes_back(
    cluster: Galera, cluster_load: Load, trouble: str
) -> None:
    """By the MX host whose own node it is: others may find out as well, but have no reason to ask
    it again.
    """
    begin, end = TROUBLES[trouble]
    port = cluster.nodes[0].port
    with cluster_load.going_on():
        cluster_load.calm()
        begin(cluster)
        cluster_load.wait(
            lambda: bool(cluster_load.said(f":{port} is not asked any more", mx=0)),
            "a mark is made",
        )
        cluster_load.wait_recovered()
        end(cluster)
        cluster_load.wait(
            lambda: bool(cluster_load.said(f":{port} answers again", mx=0)), "it is asked again"
        )
        cluster.wait_synced(0)
        cluster_load.wait_recovered()
    for node in cluster.nodes:
        assert_sound(cluster_load, node.url("faults"))
