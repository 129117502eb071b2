"""The servers that tests use do what is said of them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.servers import (
    ELSEWHERE,
    ENVIRON,
    PASSWORD,
    Galera,
    GaleraNode,
    MariaDB,
    Postgres,
    Server,
    Templates,
    state_of,
    wait_until,
)
from tests.support import ROOT

MODULES = {"postgres": "psycopg2", "mariadb": "MySQLdb"}


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Server:
    """Either server, running and with an empty database."""
    found: Server = request.getfixturevalue(request.param)
    found.start()
    found.empty()
    return found


@pytest.mark.parametrize("via", ["tcp", "socket"])
def test_the_ordinary_user(server: Server, via: str) -> None:
    pytest.importorskip(MODULES[server.kind])
    for password, said in (
        (PASSWORD, "no error"),
        ("wrong", r"password authentication failed|\(1045"),
    ):
        engine = create_engine(
            server.url(password=password, via="tcp" if via == "tcp" else "socket")
        )
        if password == PASSWORD:
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE mine (a INTEGER)"))
        else:
            with pytest.raises(DBAPIError, match=said):
                engine.connect()
        engine.dispose()
    assert server.sql("SELECT count(*) FROM mine") == [("0",)]


def test_rows(server: Server) -> None:
    assert server.sql("CREATE TABLE words (a INTEGER, b TEXT)") == []
    assert server.sql("INSERT INTO words VALUES (1, 'one word'), (2, '')") == []
    assert server.sql("SELECT a, b FROM words ORDER BY a") == [("1", "one word"), ("2", "")]
    with pytest.raises(RuntimeError, match=r"42P01|ERROR 1146 "):
        server.sql("SELECT 1 FROM nothing")


def test_another_database(server: Server) -> None:
    server.create("another")
    server.sql("CREATE TABLE words (a INTEGER)", "another")
    server.empty("another")
    server.sql("CREATE TABLE words (a INTEGER)", "another")
    server.drop("another")
    with pytest.raises(RuntimeError, match=r"does not exist|ERROR 1049 "):
        server.sql("SELECT 1", "another")


def test_empty_despite_an_open_transaction(server: Server) -> None:
    pytest.importorskip(MODULES[server.kind])
    engine = create_engine(server.url())
    connection = engine.connect()
    connection.execute(text("CREATE TABLE words (a INTEGER)"))
    connection.execute(text("SELECT * FROM words"))
    server.empty()
    with pytest.raises(DBAPIError):
        connection.execute(text("SELECT 1"))
    connection.invalidate()
    connection.close()
    engine.dispose()


def test_frozen(server: Server) -> None:
    server.freeze()
    with pytest.raises(subprocess.TimeoutExpired):
        server.sql("SELECT 1", timeout=0.3)
    assert not server.is_up()
    waiting = subprocess.Popen(
        server.client(""), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRON
    )
    server.thaw()
    assert waiting.communicate(b"SELECT 1;\n", timeout=60)[0] == b"1\n"
    assert server.is_up()


def test_killed(server: Server) -> None:
    server.sql("CREATE TABLE words (a INTEGER)")
    server.sql("INSERT INTO words VALUES (1)")
    server.kill()
    assert not server.is_up()
    with pytest.raises(RuntimeError, match=r"Connection refused|ERROR 2002 "):
        server.sql("SELECT 1")
    server.start()
    assert server.sql("SELECT a FROM words") == [("1",)]


def test_few_connections(server: Server) -> None:
    server.restart(max_connections=10)
    assert (
        server.sql(
            "SHOW VARIABLES LIKE 'max_connections'"
            if server.kind == "mariadb"
            else "SHOW max_connections"
        )[0][-1]
        == "10"
    )
    server.restart()


def test_start_says_what_the_log_says(templates: Templates) -> None:
    for kind in Postgres, MariaDB:
        with kind(templates) as server, pytest.raises(RuntimeError, match=r"no.such.setting"):
            server.start(no_such_setting=1)


@pytest.mark.parametrize(
    ("host", "ca", "verified"),
    [("127.0.0.1", "ca", True), ("127.0.0.1", "foreign_ca", False), (ELSEWHERE, "ca", False)],
)
def test_certificates(server: Server, host: str, ca: str, verified: bool) -> None:
    protocol = "postgres" if server.kind == "postgres" else "mysql"
    words = [
        "-starttls",
        protocol,
        "-connect",
        f"{host}:{server.port}",
        "-verify_ip",
        host,
        "-CAfile",
        getattr(server, ca),
    ]
    ran = subprocess.run(
        ["openssl", "s_client", "-x509_strict", "-verify_return_error", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (b"Verify return code: 0 (ok)" in ran.stdout) is verified, ran.stdout + ran.stderr


@pytest.mark.parametrize("kind", [Postgres, MariaDB])
def test_a_full_disk(templates: Templates, kind: type[Postgres] | type[MariaDB]) -> None:
    insert = f"INSERT INTO words VALUES ('{'x' * 200}')"
    with kind(templates, small_disk=True) as server:
        server.start()
        server.sql("CREATE TABLE words (a VARCHAR(200))")
        server.sql(insert)
        server.fill_disk()
        with pytest.raises(RuntimeError, match=r"53100.*No space left|ERROR 1114 .* is full"):
            server.sql(";".join([insert] * 1000))  # what pages have room for is stored
        assert server.is_up()
        count = int(server.sql("SELECT count(*) FROM words")[0][0])
        server.free_disk()
        server.sql(insert)
        server.kill()
        server.start()
        assert server.sql("SELECT count(*) FROM words") == [(str(count + 1),)]


def test_standby(postgres: Postgres, standby: Postgres) -> None:
    postgres.empty()
    postgres.sql("CREATE TABLE words (a INTEGER)")
    standby.catch_up()
    assert standby.sql("SELECT pg_is_in_recovery(), count(*) FROM words") == [("t", "0")]
    with pytest.raises(RuntimeError, match=r"25006.*read-only transaction"):
        standby.sql("INSERT INTO words VALUES (1)")


@pytest.fixture
def nodes(galera: Galera) -> list[GaleraNode]:
    """The nodes of a cluster with an empty table."""
    galera.start()
    galera.empty()
    galera.nodes[0].sql("CREATE TABLE words (a INTEGER PRIMARY KEY)")
    return galera.nodes


SYNCED = "SET wsrep_sync_wait=1; SELECT a FROM words"


def test_a_node_is_cut_off(galera: Galera, nodes: list[GaleraNode]) -> None:
    galera.isolate(2)
    assert nodes[2].galera_state().status == "non-Primary"
    assert nodes[2].sql("SELECT 1") == [("1",)]
    with pytest.raises(RuntimeError, match="ERROR 1047 "):
        nodes[2].sql("SELECT a FROM words")
    nodes[1].sql("INSERT INTO words VALUES (1)")
    galera.heal()
    assert nodes[2].sql(SYNCED) == [("1",)]


def test_a_node_is_killed(galera: Galera, nodes: list[GaleraNode]) -> None:
    nodes[0].kill()
    galera.wait_synced(1)
    nodes[1].sql("INSERT INTO words VALUES (1)")
    nodes[0].rejoin()
    galera.wait_synced(0)
    assert nodes[0].sql(SYNCED) == [("1",)]


def test_a_node_is_frozen(galera: Galera, nodes: list[GaleraNode]) -> None:
    nodes[1].freeze()
    galera.wait_synced(0)
    nodes[0].sql("INSERT INTO words VALUES (1)")
    nodes[1].thaw()
    galera.wait_synced(1)
    assert nodes[1].sql(SYNCED) == [("1",)]


def test_a_cluster_that_is_lost_is_replaced(galera: Galera, nodes: list[GaleraNode]) -> None:
    nodes[0].kill()
    nodes[2].kill()
    galera.start()
    assert [node.galera_state() for node in galera.nodes] == [("Primary", "Synced", 3)] * 3
    with pytest.raises(RuntimeError, match="ERROR 1146 "):
        galera.nodes[1].sql(SYNCED)


def test_servers_end_with_the_process_that_started_them() -> None:
    script = (
        "import sys\n"
        "from tests.servers import MariaDB, Postgres, Templates\n"
        "templates = Templates()\n"
        "servers = [Postgres(templates, small_disk=True), MariaDB(templates)]\n"
        "for server in servers:\n"
        "    server.start()\n"
        "print(templates.directory, servers[0].disk.keeper.pid, *(server.process.pid for server in"
        " servers), flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout
    directory, *pids = parent.stdout.readline().split()
    try:
        assert len(pids) == 3
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
        for pid in pids:
            wait_until(lambda pid=pid: state_of(int(pid)) in ("", "Z"), "the server is gone")  # type: ignore[misc]
    finally:
        shutil.rmtree(Path(os.fsdecode(directory)), ignore_errors=True)
