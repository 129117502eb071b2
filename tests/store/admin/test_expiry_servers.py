"""Expiry on server databases: several hosts at once, beside checks; on the nodes of a Galera
too.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine, delete, event, func, select

from greycheck.envelope import Envelope
from greycheck.envelope import triplet as triplet_of
from greycheck.store.admin import expiry
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import Asked
from greycheck.store.schema.tables import client, triplet
from tests import databases
from tests.servers import Galera
from tests.support import ACCEPTED, DEFERRED, RECIPIENT, ROOT, Child, Ran, ServerDatabase

DAY = 86400
HOSTS = 3

# Rows that nobody asks for, and rows of each kind that children ask for.
FILLERS, ASKED = 4000, 40


@pytest.fixture
def galera_databases(galera: Galera, tmp_path: Path) -> Iterator[list[ServerDatabase]]:
    """One database, seen from each node."""
    galera.start()
    first = ServerDatabase(galera.nodes[0], tmp_path, "expiry")
    seen = [first]
    for node in galera.nodes[1:]:
        other = first.seen_from(tmp_path)
        other.url = node.url("expiry")
        seen.append(other)
    yield seen
    first.close()


@pytest.fixture(params=["postgresql", "mariadb", "galera"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> list[ServerDatabase]:
    """An empty store as each of several MX hosts reaches it."""
    if request.param == "galera":
        found: list[ServerDatabase] = request.getfixturevalue("galera_databases")
        return found
    one: ServerDatabase = request.getfixturevalue(f"on_{request.param}")
    one.make()
    return [one.seen_from(tmp_path)] * HOSTS


# --- beside checks --------------------------------------------------------------------------------


class Asking:
    """A KIND of children: the row of their triplet, the STEP from when one is over to when the next
    one is, and how they must end.
    """

    def __init__(
        self,
        kind: str,
        verdict: tuple[int, str],
        first: int,
        last: int,
        passed: int | None,
        expires: int,
        step: int = 0,
    ) -> None:
        self.kind = kind
        self.verdict = verdict
        self.row = (first, last, 0, int(passed is not None), passed)
        self.expires = expires
        self.step = step

    def client(self, number: int) -> str:
        return f"10.{len(self.kind)}.{number}.1"

    def sender(self, number: int) -> bytes:
        return b"%s%d@example.org" % (self.kind.encode(), number)

    def rows(self) -> list[databases.Row]:
        found: list[databases.Row] = []
        for number in range(ASKED):
            envelope = Envelope("", self.client(number), self.sender(number), RECIPIENT)
            asked = Asked(envelope, triplet_of(envelope, 24, 64))
            expires = self.expires + number * self.step
            sender = self.sender(number).decode()
            found.append((asked.key, asked.triplet.network, sender, "r", *self.row, expires))
        return found


def test_hosts_expire_at_once_while_children_check(
    stores: list[ServerDatabase], launchers: Path, place: Path
) -> None:
    """Every expired row goes; no check ends in an error, waits for a lock in vain, or forgets what
    counts.
    """
    now = int(time.time())
    kinds = [
        # The row is over: whether it is still there or was just removed, the attempt is the first.
        Asking("over", (DEFERRED, "new"), 1, 2, 2, now - DAY, FILLERS // ASKED),
        Asking(
            "known", (ACCEPTED, "known"), now - 9 * DAY, now - 9000, now - 8 * DAY, now + 30 * DAY
        ),
        Asking("waited", (ACCEPTED, "retry"), now - 3600, now - 3600, None, now + DAY),
    ]
    fillers = [
        (b"\0\0" + number.to_bytes(14), "n", "s", "r", 1, 1, 0, 0, None, now - DAY + number)
        for number in range(FILLERS)
    ]
    databases.fill_url(
        stores[0].url, "triplet", fillers + [row for kind in kinds for row in kind.rows()]
    )
    clients = [
        (f"10.9.{number >> 8}.{number & 255}", 1, 1, 1, now - DAY, 0, 0)
        for number in range(FILLERS // 4)
    ]
    databases.fill_url(stores[0].url, "client", clients)

    attempts = [(kind, number) for number in range(ASKED) for kind in kinds]
    done = Event()
    begun = Event()
    more = count(ASKED)

    def attempt(index: int, kind: Asking, number: int) -> tuple[Asking, Ran]:
        child = Child(launchers, stores[index % len(stores)])
        begun.set()
        return kind, child.smtpextfork(
            kind.sender(number), client=kind.client(number % 250), GREYCHECK_DEADLINE="60s"
        )

    def strangers(index: int) -> list[tuple[Asking, Ran]]:
        """Mail that nobody knows, for as long as anybody expires."""
        new = Asking("new", (DEFERRED, "new"), 0, 0, None, 0)
        found = []
        while not done.is_set():
            found.append(attempt(index, new, next(more)))
        return found

    with ThreadPoolExecutor(6) as threads:
        beside = [threads.submit(strangers, index) for index in range(2)]
        assert begun.wait(60)
        expiring = [
            # Whoever begins late may find all that passed used just now, and doubt the clock.
            subprocess.Popen(
                [sys.executable, "-m", "greycheck", "expire", "--json", "--yes"],
                env=Child(launchers, store).environ(),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for store in stores
        ]
        asking = [threads.submit(attempt, index, *one) for index, one in enumerate(attempts)]
        said = [process.communicate(timeout=300) for process in expiring]
        done.set()
        ran = [one.result() for one in asking] + [one for each in beside for one in each.result()]

    assert [process.returncode for process in expiring] == [0] * len(stores), said
    removed = [json.loads(out)["rows"] for out, _err in said]
    wrong = [
        (kind.kind, one)
        for kind, one in ran
        if one.verdict != kind.verdict or "unrecorded" in one.log
    ]
    assert not wrong
    total = sum(rows["triplet"] for rows in removed)
    assert FILLERS <= total <= FILLERS + ASKED
    assert sum(rows["client"] for rows in removed) == len(clients)
    with stores[0].begin() as connection:
        if stores[0].server.kind == "galera":
            connection.exec_driver_sql("SET SESSION wsrep_sync_wait = 1")
        left = {row.sender: row.expires_at for row in connection.execute(select(triplet))}
    assert min(left.values()) > now
    asked = {kind.sender(number).decode() for kind in kinds for number in range(ASKED)}
    assert asked <= left.keys(), "a row that a check wrote is gone"


# --- how a batch is found -------------------------------------------------------------------------


def test_a_batch_is_found_by_the_index(stores: list[ServerDatabase]) -> None:
    rows = [
        (number.to_bytes(16), "n", "s" * 99, "r", 1, 1, 0, 0, None, number)
        for number in range(4000)
    ]
    databases.fill_url(stores[0].url, "triplet", rows)
    [engine] = list(engines(stores[:1]))
    found: list[tuple[str, object]] = []

    def remember(
        _connection: object, _cursor: object, statement: str, values: object, *_more: object
    ) -> None:
        if statement.startswith("SELECT"):
            found.append((statement, values))

    event.listen(engine, "before_cursor_execute", remember)
    assert next(expiry.expire(engine, 500)) == ("triplet", expiry.BATCH)
    event.remove(engine, "before_cursor_execute", remember)
    [(statement, values)] = found
    assert "FOR UPDATE SKIP LOCKED" in statement
    with engine.connect() as connection:
        plan = str(connection.exec_driver_sql(f"EXPLAIN {statement}", values).all())  # type: ignore[arg-type]
    assert "ix_triplet_expires_at" in plan
    assert "sort" not in plan.lower()
    engine.dispose()


def engines(stores: list[ServerDatabase]) -> list[Engine]:
    return [open_engine(store.url) for store in stores]


@pytest.mark.parametrize("rows", [20, 300, 3000])
def test_hosts_take_rows_that_no_other_has_taken(stores: list[ServerDatabase], rows: int) -> None:
    """However many there are, which changes how a database looks for them; none is waited for."""
    store = stores[0]
    databases.fill_url(
        store.url,
        "triplet",
        [(number.to_bytes(16), "n", "s", "r", 1, 1, 0, 0, None, number) for number in range(rows)],
    )
    [engine] = engines([store])
    with engine.begin() as other:
        for number in range(5):
            other.execute(
                select(triplet)
                .where(triplet.c.triplet_key == number.to_bytes(16))
                .with_for_update()
            ).all()
        removed = [
            found for _table, found in expiry.expire(engine, rows + 1, rest=lambda _seconds: None)
        ]
        assert sum(removed) == rows - 5
        assert store.rows(select(func.count()).select_from(triplet)) == [(5,)]
    assert list(expiry.expire(engine, rows + 1)) == [("triplet", 5)]
    engine.dispose()


def test_a_row_that_a_check_has_just_written_is_not_waited_for_and_stays(
    stores: list[ServerDatabase],
) -> None:
    store = stores[0]
    databases.fill_url(
        store.url, "client", [(f"192.0.2.{number}", 1, 1, 1, 1, 0, 0) for number in range(3)]
    )
    [engine] = engines([store])
    with engine.begin() as check:
        check.execute(
            client.update().where(client.c.address == "192.0.2.1").values(expires_at=1000)
        )
        assert list(expiry.expire(engine, 99)) == [("client", 2)]
    assert list(expiry.expire(engine, 99)) == []
    assert store.rows(select(client.c.address)) == [("192.0.2.1",)]
    engine.dispose()


# --- a Galera -------------------------------------------------------------------------------------


def be_quicker(here: Engine, there: Engine, times: int) -> None:
    """So many times, what HERE is about to remove is removed THERE, and by what HERE commits it has
    heard of that.
    """
    left = [None] * times

    def remove(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if not statement.startswith("DELETE") or not left:
            return
        left.pop()
        oldest = select(triplet.c.triplet_key).order_by(triplet.c.expires_at).limit(10)
        with there.begin() as connection:
            connection.exec_driver_sql("SET SESSION wsrep_sync_wait = 1")
            keys = connection.execute(oldest).scalars().all()
            connection.execute(delete(triplet).where(triplet.c.triplet_key.in_(keys)))

    event.listen(here, "before_cursor_execute", remove)


@pytest.mark.parametrize("times", [expiry.RACES - 1, expiry.RACES])
def test_a_node_that_loses_tries_again_and_then_leaves_it_to_the_other(
    galera_databases: list[ServerDatabase], times: int
) -> None:
    rows = [(number.to_bytes(16), "n", "s", "r", 1, 1, 0, 0, None, number) for number in range(100)]
    databases.fill_url(galera_databases[0].url, "triplet", rows)
    here, there = engines([galera_databases[1], galera_databases[0]])
    with here.connect() as connection:
        connection.exec_driver_sql("SET SESSION wsrep_sync_wait = 1")
        assert connection.execute(select(func.count()).select_from(triplet)).scalar() == 100
    be_quicker(here, there, times)
    found = expiry.expire(here, 1000, batch=10)
    if times < expiry.RACES:
        assert sum(rows for _table, rows in found) == 100 - 10 * times
    else:
        with pytest.raises(expiry.LeftToAnother):
            list(found)
    for engine in (here, there):
        engine.dispose()
