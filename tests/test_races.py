"""Many attempts at the same moment, from several processes and nodes, which write one row.

Each child has a clock of its own, handed in. However many first attempts and retries of one triplet
there are: one row, the earliest first attempt, and nobody is deferred after the delay. However many
triplets pass by one domain: each is counted.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import text

from greycheck.store.admin.engine import open_engine
from greycheck.store.base import domain_key
from greycheck.store.schema import migrate
from greycheck.store.waiting import packed_range
from tests import databases
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


class Mail(NamedTuple):
    """An attempt, and when it is made."""

    now: int
    client: str = "192.0.2.1"
    recipient: str = "bob@example.net"


def crowd(
    program: Path, urls: list[str], mails: list[Mail], **settings: str
) -> list[tuple[int, int, str]]:
    """Lets a child check each of MAILS, as many at once as may be; (time, exit code, reason) of
    each.
    """
    running: list[tuple[int, subprocess.Popen[str]]] = []
    ended = []
    for number, mail in enumerate(mails):
        environ = {
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DATABASE": urls[number % len(urls)],
            "GREYCHECK_STATE_DIRECTORY": str(program.parent),
            "GREYCHECK_DEADLINE": "100s",
            "GREYCHECK_POOL_NETWORKS": "0",
            "TCPREMOTEIP": mail.client,
            "REMOTEMF": "alice@example.org",
            "REMOTERCPT": mail.recipient,
            "TEST_NOW": str(mail.now),
            **settings,
        }
        child = subprocess.Popen(
            [program],
            env=environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        running.append((mail.now, child))
        if len(running) == AT_ONCE or number == len(mails) - 1:
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


@pytest.fixture
def program(place: Path) -> Path:
    """A child whose clock is handed in."""
    found = place / "greycheck"
    found.write_text(LAUNCHER)
    found.chmod(0o755)
    return found


def test_a_crowd_at_one_row(stores: list[str], program: Path) -> None:
    chance = random.Random(1)

    first = crowd(program, stores, [Mail(NOW + chance.randrange(30)) for _ in range(CHILDREN)])
    assert {code for _, code, _ in first} == {DEFERRED}
    assert sorted(reason for _, _, reason in first).count("new") == 1
    assert {reason for _, _, reason in first} == {"new", "early"}
    earliest = min(when for when, _, _ in first)
    for url in stores:
        assert rows(url, "SELECT first_attempt, passes FROM triplet") == [(earliest, 0)]

    retries = crowd(
        program, stores, [Mail(earliest + 300 + chance.randrange(30)) for _ in range(CHILDREN)]
    )
    assert {code for _, code, _ in retries} == {ACCEPTED}
    assert {reason for _, _, reason in retries} <= {"retry", "known", "client"}
    assert [reason for _, _, reason in retries].count("retry") == 1
    for url in stores:
        assert rows(url, "SELECT first_attempt, passes FROM triplet") == [(earliest, 1)]
        assert rows(url, "SELECT address, passes FROM client") == [("192.0.2.1", 1)]


# As many as a child may lose races: each one that it loses, another wins.
MAILS = 20
CLIENTS = ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"]


@pytest.mark.parametrize("stores", ["sqlite", "postgres", "mariadb"], indirect=True)
def test_a_crowd_from_several_networks_of_one_domain(stores: list[str], program: Path) -> None:
    """Each of these mails is retried from another network of the domain."""
    [url] = stores
    key, later = domain_key(b"example.org"), NOW + 10**6
    networks = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/64"]
    ranges = [packed_range(network) for network in networks]
    databases.fill_url(
        url,
        "authorised",
        [(key + first, last, "spf", "example.org", NOW, later) for first, last in ranges],
    )
    told: databases.Row = (key, "example.org", "found", "", 0, NOW, NOW, 0, later, later)
    databases.fill_url(url, "spf", [told])
    only_domains = {"GREYCHECK_CLIENT_PASSES": "0", "GREYCHECK_DOMAIN_PASSES": str(MAILS)}

    def at(now: int, turn: int, name: str) -> list[str]:
        mails = [
            Mail(now, CLIENTS[(number + turn) % len(CLIENTS)], f"{name}{number}@example.net")
            for number in range(MAILS)
        ]
        return [
            f"{code} {reason}" for _, code, reason in crowd(program, stores, mails, **only_domains)
        ]

    assert at(NOW, 0, "bob") == [f"{DEFERRED} new"] * MAILS
    assert rows(url, "SELECT * FROM domain") == []
    assert at(NOW + 300, 1, "bob") == [f"{ACCEPTED} retry"] * MAILS
    assert rows(url, "SELECT name, passes FROM domain") == [("example.org", MAILS)]
    assert at(NOW + 301, 2, "carol") == [f"{ACCEPTED} domain"] * MAILS
    assert rows(url, "SELECT name, passes FROM domain") == [("example.org", MAILS)]
