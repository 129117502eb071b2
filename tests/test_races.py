"""Hundreds of first attempts and retries of one triplet at the same moment, from several processes
and nodes.

Each child has a clock of its own, handed in. However many there are: one row, the earliest first
attempt, and nobody is deferred after the delay.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from greycheck.store.admin.engine import open_engine
from greycheck.store.schema import migrate
from tests.servers import Galera, Server
from tests.support import ACCEPTED, DEFERRED
from tests.test_model import LAUNCHER

NOW = 1_800_000_000
CHILDREN = 200
AT_ONCE = 50  # as many as there are connections


@pytest.fixture(params=["sqlite", "postgres", "mariadb", "galera"])
def stores(request: pytest.FixtureRequest, place: Path) -> Iterator[list[str]]:
    """The URLs of one empty store, as its hosts have it."""
    if request.param == "sqlite":
        migrate.upgrade(f"sqlite:///{place}/greycheck.db")
        yield [f"sqlite:///{place}/greycheck.db"]
        return
    found: Server | Galera = request.getfixturevalue(request.param)
    found.start()
    servers = found.nodes if isinstance(found, Galera) else [found]
    servers[0].drop("races")
    servers[0].create("races")
    migrate.upgrade(servers[0].url("races"))
    for node in servers:
        node.sql(
            "SET wsrep_sync_wait = 1; SELECT * FROM triplet"
            if isinstance(found, Galera)
            else "SELECT 1",
            "races",
        )
    yield [server.url("races") for server in servers]
    servers[0].drop("races")


def crowd(program: Path, urls: list[str], times: list[int]) -> list[tuple[int, int, str]]:
    """Lets a child check the same mail at each of TIMES, as many at once as may be; (time, exit
    code, reason) of each.
    """
    running: list[tuple[int, subprocess.Popen[str]]] = []
    ended = []
    for number, now in enumerate(times):
        environ = {
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DATABASE": urls[number % len(urls)],
            "GREYCHECK_STATE_DIRECTORY": str(program.parent),
            "GREYCHECK_DEADLINE": "100s",
            "GREYCHECK_POOL_NETWORKS": "0",
            "TCPREMOTEIP": "192.0.2.1",
            "REMOTEMF": "alice@example.org",
            "REMOTERCPT": "bob@example.net",
            "TEST_NOW": str(now),
        }
        child = subprocess.Popen(
            [program],
            env=environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        running.append((now, child))
        if len(running) == AT_ONCE or number == len(times) - 1:
            for when, one, said in [
                (*each, each[1].communicate(timeout=120)[1]) for each in running
            ]:
                assert said.count("\n") == 1, said
                assert " unrecorded=" not in said, said
                ended.append((when, one.returncode, said.partition("reason=")[2].partition(" ")[0]))
            running = []
    return ended


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    engine = open_engine(url)
    with engine.connect() as connection:
        if "mysql" in url:
            connection.execute(text("SET wsrep_sync_wait = 1"))
        found = [tuple(row) for row in connection.execute(text(sql))]
    engine.dispose()
    return found


def test_a_crowd_at_one_row(stores: list[str], place: Path) -> None:
    program = place / "greycheck"
    program.write_text(LAUNCHER)
    program.chmod(0o755)
    chance = random.Random(1)

    first = crowd(program, stores, [NOW + chance.randrange(30) for _ in range(CHILDREN)])
    assert {code for _, code, _ in first} == {DEFERRED}
    assert sorted(reason for _, _, reason in first).count("new") == 1
    assert {reason for _, _, reason in first} == {"new", "early"}
    earliest = min(when for when, _, _ in first)
    for url in stores:
        assert rows(url, "SELECT first_attempt, passes FROM triplet") == [(earliest, 0)]

    retries = crowd(
        program, stores, [earliest + 300 + chance.randrange(30) for _ in range(CHILDREN)]
    )
    assert {code for _, code, _ in retries} == {ACCEPTED}
    assert {reason for _, _, reason in retries} <= {"retry", "known", "client"}
    assert [reason for _, _, reason in retries].count("retry") == 1
    for url in stores:
        assert rows(url, "SELECT first_attempt, passes FROM triplet") == [(earliest, 1)]
        assert rows(url, "SELECT address, passes FROM client") == [("192.0.2.1", 1)]
