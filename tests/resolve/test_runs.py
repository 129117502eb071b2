"""Whole runs: several at once, one that is killed, and far more domains than fit into one."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import pytest
from sqlalchemy import event, insert, select

from greycheck.resolve import due, keeping, work
from greycheck.store.admin import expiry
from greycheck.store.base import domain_key, packed
from greycheck.store.schema.tables import authorised, domain, triplet
from greycheck.store.waiting import packed_range
from tests import databases
from tests.dns_servers import Liar, answering, silent
from tests.resolve.parts import command, engine_of, ran, resolved, settings_of
from tests.servers import wait_until
from tests.support import Child, Database, on_every_database

WHOLE = "192.0.2.0/24"


def spf_of_everybody(_name: str, kind: str) -> list[str]:
    return [f'{_name} 600 TXT "v=spf1 ip4:{WHOLE} -all"'] if kind == "TXT" else []


@pytest.fixture
def liar() -> Iterator[Liar]:
    """A name server where every domain has a record."""
    with Liar(answering(spf_of_everybody)) as found:
        yield found


def wait_with(database: Database, names: list[str], ago: int = 0) -> None:
    """Puts a triplet of each domain of NAMES there, which was tried AGO seconds ago."""
    now = int(time.time()) - ago
    rows = []
    for number, name in enumerate(names):
        key = os.urandom(16)
        rows.append(
            {
                "triplet_key": key,
                "network": "192.0.2.0/24",
                "sender": f"ann@{name}",
                "recipient": "bob@example.net",
                "first_attempt": now,
                "last_attempt": now,
                "early_attempts": 0,
                "passes": 0,
                "passed_at": None,
                "expires_at": now + 48 * 3600 - number // 1000,
                "origin": domain_key(name.encode()) + packed("192.0.2.1"),
                "authorised": 0,
            }
        )
    with database.begin() as connection:
        connection.execute(insert(triplet), rows)


def names_asked(liar: Liar) -> Counter[str]:
    return Counter(name.rstrip(".") for name, kind, _tcp in liar.queries if kind == "TXT")


# --- several at once ------------------------------------------------------------------------------


@on_every_database
def test_of_several_runs_at_once_one_asks_each_domain(liar: Liar, database: Database) -> None:
    database.make()
    names = [f"d{number}.example" for number in range(60)]
    wait_with(database, names)
    liar.delay = 0.02
    runs = [command(database, liar.address, "-v") for _ in range(3)]
    said = [run.communicate(timeout=60) for run in runs]
    assert [complained for _said, complained in said] == ["", "", ""]
    assert names_asked(liar) == dict.fromkeys(names, 1)
    assert database.rows("SELECT count(*) FROM authorised") == [(60,)]
    assert database.rows("SELECT count(*), min(failures) FROM spf WHERE state = 'found'") == [
        (60, 0)
    ]


def put_expired(database: Database, names: list[str]) -> None:
    """Puts rows of each domain of NAMES there whose time is over, in all tables that have such."""
    now = int(time.time())
    over, (first, last) = now - 60, packed_range("192.0.2.0/25")
    keys = [(domain_key(name.encode()), name) for name in names]
    rows: dict[str, list[databases.Row]] = {
        "spf": [
            (key, name, "found", "", 0, over - 9, over - 9, 0, over - 5, over) for key, name in keys
        ],
        "authorised": [(key + first, last, "spf", name, over - 9, over) for key, name in keys],
        "domain": [(key, name, 1, over - 9, over - 9, over) for key, name in keys],
    }
    for table, found in rows.items():
        databases.fill_url(database.url, table, found)


def expire_until(done: threading.Event, database: Database) -> int:
    """Removes what is over, in small batches, until it is DONE; returns how many rows that were."""
    removed = 0
    with engine_of(database) as engine:
        while not done.is_set():
            with suppress(expiry.LeftToAnother):
                for _table, rows in expiry.expire(engine, int(time.time()), 5):
                    removed += rows
    return removed


@on_every_database
def test_checks_and_expiry_go_on_beside_it(liar: Liar, child: Child) -> None:
    """Of half of the domains the store has what was said long ago, and is removed meanwhile."""
    names = [f"d{number}.example" for number in range(200)]
    forgotten = [f"gone{number}.example" for number in range(100)]
    child.make_store()
    wait_with(child.store, names)
    put_expired(child.store, names[::2] + forgotten)
    done = threading.Event()
    deferred = 0
    with ThreadPoolExecutor(1) as threads:
        expiring = threads.submit(expire_until, done, child.store)
        try:
            run = command(child.store, liar.address, "-v")
            while run.poll() is None:
                ran_ = child.smtpextfork(f"eve@d{deferred}.example", client="192.0.2.77")
                assert ran_.reason in ("new", "early"), ran_
                assert "unrecorded" not in ran_.log
                deferred += 1
            said, complained = run.communicate()
        finally:
            done.set()
    assert complained == ""
    assert said.startswith("domains: 200 asked, 200 answered, 0 failed")
    # Beside the resolver both may have removed what it has written anew; of the rest nobody else.
    assert expiring.result() >= len(names) // 2 + len(forgotten)
    with engine_of(child.store) as engine:
        assert dict(expiry.count(engine, int(time.time()))) == dict.fromkeys(
            (table.name for table in expiry.TABLES), 0
        )
    assert child.rows("SELECT count(*) FROM spf WHERE state = 'found'") == [(200,)]
    assert child.store.rows(select(authorised.c.last).distinct()) == [(packed_range(WHOLE)[1],)]
    assert child.rows("SELECT count(*) FROM authorised") == [(200,)]
    assert child.rows("SELECT count(*) FROM domain") == [(0,)]
    assert child.rows("SELECT count(*) FROM triplet") == [(200 + deferred,)]


# --- killed ---------------------------------------------------------------------------------------


def kill_at(liar: Liar, questions: int, run: "subprocess.Popen[str]") -> None:
    """Kills RUN once LIAR was asked so many QUESTIONS, or it has no more."""
    wait_until(lambda: len(liar.queries) >= questions or run.poll() is not None, "it asks")
    run.send_signal(signal.SIGKILL)
    run.communicate()


@on_every_database
def test_a_run_that_is_killed_keeps_nobody_from_asking_later(
    liar: Liar, database: Database
) -> None:
    database.make()
    names = [f"d{number}.example" for number in range(40)]
    wait_with(database, names)
    liar.delay = 0.02
    for questions in (1, 12, 25):
        kill_at(liar, len(liar.queries) + questions, command(database, liar.address))
    liar.delay = 0
    # What the killed ones had claimed is asked once their claims are over, the rest at once.
    resolved(database, liar.address)
    resolved(database, liar.address, keeping.CLAIM + 1)
    assert database.rows("SELECT count(*) FROM spf WHERE state = 'found'") == [(40,)]
    assert database.rows("SELECT count(*) FROM authorised") == [(40,)]


def test_a_name_server_that_is_silent_does_not_hold_a_run_for_longer_than_it_may(
    database: Database,
) -> None:
    database.make()
    wait_with(database, [f"d{number}.example" for number in range(30)])
    with Liar(silent) as liar:
        code, said, complained = ran(database, liar.address, "--seconds", "4", "-v")
    assert (code, complained) == (0, "")
    assert " 0 answered" in said
    assert " 0 left" not in said
    [(failed,)] = database.rows("SELECT count(*) FROM spf WHERE failures = 1")
    assert isinstance(failed, int)
    assert failed >= work.THREADS


# --- which, and how many --------------------------------------------------------------------------


def test_a_flood_of_domains_costs_a_run_no_more_than_its_limits(
    liar: Liar, database: Database
) -> None:
    database.make()
    flood = [f"x{number}.example" for number in range(100_000)]
    for at in range(0, len(flood), 20_000):
        wait_with(database, flood[at : at + 20_000], ago=60)
    wait_with(database, ["new.example"])
    now = int(time.time())
    database.execute(
        insert(domain).values(
            domain_key=domain_key(b"known.example"),
            name="known.example",
            passes=1,
            first_seen=now,
            last_seen=now,
            expires_at=now + 99999,
        )
    )
    read = []
    with engine_of(database) as engine:
        event.listen(engine, "before_cursor_execute", lambda *given: read.append(given[2]))
        settings = settings_of(database, liar.address)
        tasks = due.tasks(engine, settings, now, 3600, 50)
        assert len(read) <= 3 + 2 * due.READ // due.KEYS + 8
    chosen = [task.domain for task in tasks]
    assert len(chosen) == 50
    assert chosen[0] == b"new.example"
    assert b"known.example" in chosen[:3]
    with engine_of(database) as engine:
        report = work.run(engine, settings, now, limit=50)
    assert (report.asked, report.answered) == (50, 50)
    assert database.rows("SELECT count(*) FROM spf") == [(50,)]
    assert names_asked(liar)["new.example"] == 1


@on_every_database
def test_where_the_store_is_full_none_is_asked_that_was_not_before(
    liar: Liar, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    wait_with(database, ["old.example"])
    assert resolved(database, liar.address).answered == 1
    wait_with(database, ["new.example"])
    for name in ("MOST_DOMAINS", "MOST_RANGES"):
        with monkeypatch.context() as small, engine_of(database) as engine:
            small.setattr(due, name, 0)
            small.setattr(due, "PART", 1)
            now = int(time.time()) + 3600
            tasks = due.tasks(engine, settings_of(database, liar.address), now, 60, 10)
            assert [task.domain for task in tasks] == [b"old.example"]
    assert resolved(database, liar.address).answered == 1


def test_all_keys_have_their_turn_within_the_time_and_none_twice() -> None:
    for interval, start in ((60, 0), (70, 86_399), (59, 12_345), (86_400, 5)):
        parts = due.turns(start, interval, due.DAY) if interval >= due.DAY else []
        for moment in range(start + interval, start + due.DAY + 1, interval):
            parts += due.turns(moment, interval, due.DAY)
        rest = due.DAY % interval
        parts = sorted(set(parts + (due.turns(start + due.DAY, rest, due.DAY) if rest else [])))
        assert parts[0][0] == bytes(8)
        assert parts[-1][1] == b"\xff" * 17
        for one, other in pairwise(parts):
            assert one[1] == other[0]


def at_turn(name: bytes, period: int) -> int:
    """The second of PERIOD at which the domain NAME has its turn."""
    return (int.from_bytes(domain_key(name)[:8], "big") * period) >> 64


def test_a_known_domain_is_asked_again_and_one_that_is_over_is_not(
    liar: Liar, database: Database
) -> None:
    database.make()
    now = int(time.time())
    lasting = {b"known.example": now + 30 * 86400, b"over.example": now + 600}
    for name, expires in lasting.items():
        database.execute(
            insert(domain).values(
                domain_key=domain_key(name),
                name=name.decode(),
                passes=1,
                first_seen=now,
                last_seen=now,
                expires_at=expires,
            )
        )
    assert resolved(database, liar.address, 0, 3600).answered == 2
    assert resolved(database, liar.address, 500, 3600).asked == 0
    assert resolved(database, liar.address, 700, 3600).asked == 1
    assert names_asked(liar) == {"known.example": 2, "over.example": 1}
    # With a run each minute it has its turn in one of sixty.
    until = (at_turn(b"known.example", due.HOUR) - now) % due.HOUR + due.HOUR
    assert resolved(database, liar.address, until - 30).asked == 0
    assert resolved(database, liar.address, until + 30).asked == 1


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("ann@Pool.example", b"Pool.example"),
        ("ann@x\\xc3\\xa4.example", "x\u00e4.example".encode()),
        ("ann@\\...300.00ff.example", None),
        ("", None),
        ("ann", None),
        ("ann@localhost", None),
        ("ann@[192.0.2.1]", None),
        ("ann@a b.example", None),
        ("pool.example", b"pool.example"),
    ],
)
def test_the_domain_of_an_address_as_tables_have_it(address: str, name: bytes | None) -> None:
    assert due.name_of(address) == name


def test_a_row_whose_origin_is_of_another_domain_is_not_believed(database: Database) -> None:
    database.make()
    wait_with(database, ["pool.example"])
    database.execute(triplet.update().values(sender="ann@other.example"))
    with engine_of(database) as engine:
        now = int(time.time())
        assert due.tasks(engine, settings_of(database, "127.0.0.1:9"), now, 60, 10) == []


def test_where_the_setting_says_no_nothing_is_asked(liar: Liar, child: Child) -> None:
    child.smtpextfork(b"ann@pool.example")
    assert ran(child.store, liar.address, "-v", identity="no") == (
        0,
        "identity is no: no domain is asked\n",
        "",
    )
    assert liar.queries == []
    # Whoever names a domain is answered all the same.
    code, said, _complained = ran(child.store, liar.address, "pool.example", identity="no")
    assert (code, said.startswith("pool.example: found, 1 network;")) == (0, True)
