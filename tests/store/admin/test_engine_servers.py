"""The engine of operators' commands: the first host that can be used."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from greycheck.store import drivers
from greycheck.store.admin.engine import open_engine, reading
from greycheck.store.base import StoreError
from greycheck.store.schema import migrate
from greycheck.store.url import with_hosts
from tests.servers import PASSWORD, Galera, MariaDB, Postgres


def port_of(url: str) -> int:
    """The port of the host that an engine for URL is connected to."""
    engine = open_engine(url)
    with engine.connect() as connection:
        sql = "SELECT inet_server_port()" if url.startswith("postgresql") else "SELECT @@port"
        found = int(connection.execute(text(sql)).scalar_one())
    engine.dispose()
    return found


@pytest.mark.parametrize("driver", drivers.names("postgresql"))
def test_a_postgresql_that_is_down_or_a_standby_is_passed_over(
    postgres: Postgres, standby: Postgres, driver: str
) -> None:
    postgres.start()
    standby.start()
    hosts = ("127.0.0.1:1", f"127.0.0.1:{standby.port}", f"127.0.0.1:{postgres.port}")
    assert port_of(with_hosts(postgres.url(driver=driver), hosts)) == postgres.port


@pytest.mark.parametrize("driver", drivers.RECORDS)
def test_where_no_host_answers_each_is_named(driver: str) -> None:
    scheme = drivers.RECORDS[driver].dialect
    url = f"{scheme}+{driver}://user:secret@/g?host=127.0.0.1:1&host=127.0.0.1:2"
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1: .*; 127\.0\.0\.1:2: ") as error:
        open_engine(url).connect()
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_a_mariadb_that_takes_no_writes_is_read_where_there_is_no_other(
    mariadb: MariaDB, driver: str
) -> None:
    mariadb.start()
    mariadb.sql("SET GLOBAL read_only = ON")
    try:
        assert (
            port_of(
                with_hosts(mariadb.url(driver=driver), ("127.0.0.1:1", f"127.0.0.1:{mariadb.port}"))
            )
            == mariadb.port
        )
    finally:
        mariadb.sql("SET GLOBAL read_only = OFF")


@pytest.fixture
def cluster(galera: Galera) -> Iterator[Galera]:
    galera.start()
    galera.nodes[0].drop("engine")
    galera.nodes[0].create("engine")
    migrate.upgrade(galera.nodes[0].url("engine"))
    galera.wait_synced(1)
    yield galera
    galera.start()
    galera.nodes[0].drop("engine")


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_a_node_without_a_quorum_is_passed_over(
    cluster: Galera, driver: str, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = cluster.nodes[0], cluster.nodes[1]
    url = with_hosts(
        one.url("engine", driver=driver), (f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}")
    )
    engine = open_engine(url)
    with reading(engine).connect() as connection:
        assert connection.execute(text("SELECT @@port")).scalar_one() == one.port
        cluster.isolate(0)
        with pytest.raises(DBAPIError, match="1047"):
            connection.execute(text("SELECT * FROM triplet"))
        assert connection.invalidated
    with reading(engine).connect() as connection:
        assert connection.execute(text("SELECT @@port")).scalar_one() == other.port
    engine.dispose()
    cluster.heal()
    assert capfd.readouterr().err == "", (
        "the pool says nothing about a connection that is thrown away"
    )


def test_a_password_is_not_in_what_an_engine_says_of_itself(postgres: Postgres) -> None:
    assert PASSWORD not in repr(open_engine(postgres.url()))
