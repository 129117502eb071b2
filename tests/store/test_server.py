"""The child's store on a server: round trips, hosts in their order, conflicts, and what it tells
other checks.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import pytest

from greycheck.check import check
from greycheck.envelope import Envelope, triplet
from greycheck.policy import Change, Decision, TripletRow
from greycheck.settings import Settings, read
from greycheck.store import connect, drivers, server
from greycheck.store.base import Asked, StoreError
from greycheck.store.causes import Again, NoSchema
from greycheck.store.drivers import faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.schema import migrate
from greycheck.store.url import with_hosts
from tests.servers import ELSEWHERE, PASSWORD, USER, Galera, MariaDB, Postgres, Server

if TYPE_CHECKING:
    from greycheck.store.drivers import Connection

NOW = 1_800_000_000
ENVELOPE = Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net")
ASKED = Asked(ENVELOPE, triplet(ENVELOPE, 24, 64))
Kind = TypeVar("Kind", bound=Server)
NEW = [Change(None, TripletRow(NOW, NOW), NOW + 9)]


@pytest.fixture(params=["postgres", "mariadb"])
def found(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind with an empty store."""
    one: Server = request.getfixturevalue(request.param)
    yield from fresh(one)


def fresh(one: Kind) -> Iterator[Kind]:
    one.start()
    one.drop("lean")
    one.create("lean")
    migrate.upgrade(one.url("lean"))
    yield one
    one.start()


@pytest.fixture
def postgresql(postgres: Postgres) -> Iterator[Postgres]:
    yield from fresh(postgres)


@pytest.fixture
def mysql(mariadb: MariaDB) -> Iterator[MariaDB]:
    yield from fresh(mariadb)


def set_up(url: str, state: Path, **more: str) -> Settings:
    given = {
        "config": "/dev/null",
        "database": url,
        "state_directory": str(state),
        "deadline": "5s",
        **more,
    }
    return read(
        {f"GREYCHECK_{name.upper()}".encode(): value.encode() for name, value in given.items()}
    )


def store_at(url: str, state: Path, patience: float = 4) -> server.Store:
    made = connect(set_up(url, state), patience)
    assert isinstance(made, server.Store)
    return made


def at_hosts(url: str, *hosts: str) -> str:
    return with_hosts(url, hosts)


def connected(store: server.Store) -> "Connection":
    """The connection of STORE, made if there is none."""
    store._connect()
    assert store._session.connection is not None
    return store._session.connection


class Counting:
    """A connection that counts round trips."""

    def __init__(self, store: server.Store) -> None:
        self.connection = connected(store)
        self.statements: list[str] = []
        store._session.connection = self

    def run(
        self, sql: str, values: Sequence[object], seconds: float
    ) -> tuple[Sequence[Sequence[object]], int]:
        self.statements.append(sql)
        return self.connection.run(sql, values, seconds)

    def close(self) -> None:
        self.connection.close()


def trips(url: str, state: Path, envelope: Envelope, now: int) -> tuple[str, int]:
    """The reason of a check, and how many round trips it made."""
    store = store_at(url, state)
    counting = Counting(store)
    settings = set_up(url, state)
    return check(store, Decision(envelope, settings, now)).reason, len(counting.statements)


@pytest.mark.parametrize("with_rules", [False, True])
def test_a_known_triplet_is_one_round_trip_and_a_new_one_three(
    found: Server, tmp_path: Path, with_rules: bool
) -> None:
    if with_rules:
        key = "decode('00', 'hex')" if isinstance(found, Postgres) else "X'00'"
        found.sql(
            f"INSERT INTO rule VALUES ({key}, 'sender', 'sender:x', 'allow', NULL, '', 1, NULL)",
            "lean",
        )
    url = found.url("lean")
    assert trips(url, tmp_path, ENVELOPE, NOW) == ("new", 3)
    assert trips(url, tmp_path, ENVELOPE, NOW + 60) == ("early", 3)
    assert trips(url, tmp_path, ENVELOPE, NOW + 300)[0] == "retry"
    assert trips(url, tmp_path, ENVELOPE, NOW + 400) == ("client", 1)
    unknown = Envelope("smtpextfork", "192.0.2.9", b"a@example.org", b"b@example.net")
    assert trips(url, tmp_path, unknown, NOW + 400) == ("known", 1)
    assert trips(url, tmp_path, unknown, NOW + 9000) == ("known", 2)


def test_two_changes_are_one_transaction(found: Server, tmp_path: Path) -> None:
    store = store_at(found.url("lean"), tmp_path)
    store.save(ASKED, NEW, patient=True)
    row = TripletRow(NOW, NOW)
    stale = Change(TripletRow(1, 1), TripletRow(2, 2), 9)
    assert not store.save(ASKED, [Change(row, TripletRow(NOW, NOW + 1), 9), stale], patient=True)
    kept = store_at(found.url("lean"), tmp_path).lookup(ASKED, NOW).triplet
    assert kept
    assert kept.last == NOW


def test_whoever_locks_a_row_is_alone_with_it(found: Server, tmp_path: Path) -> None:
    one, other = (store_at(found.url("lean"), tmp_path, 240) for _ in range(2))
    one.save(ASKED, NEW, patient=True)
    one.lock(ASKED)
    raced = []

    def race() -> None:
        other.lock(ASKED)
        row = other.lookup(ASKED, NOW).triplet
        assert row
        raced.append((row.last, other.save(ASKED, [], patient=True)))

    thread = Thread(target=race)
    thread.start()
    row = one.lookup(ASKED, NOW).triplet
    assert one.save(ASKED, [Change(row, TripletRow(NOW, NOW + 7), NOW)], patient=True)
    thread.join()
    assert raced == [(NOW + 7, True)]


# --- hosts ----------------------------------------------------------------------------------------


def test_hosts_that_do_not_answer_are_passed_over(found: Server, tmp_path: Path) -> None:
    url = at_hosts(found.url("lean"), "127.0.0.1:1", f"127.0.0.1:{found.port}")
    store = store_at(url, tmp_path)
    assert store.save(ASKED, NEW, patient=True)
    assert [note.partition(":1 ")[0] for note in store.notes] == ["warning 127.0.0.1"]
    after = store_at(url, tmp_path)
    assert after.lookup(ASKED, NOW).triplet
    assert after.notes == []


def test_a_silent_host_is_passed_over_in_time(
    found: Server, tmp_path: Path, templates: object
) -> None:
    """The kernel accepts for a process that is stopped: here one that never calls accept."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = at_hosts(
            found.url("lean"), f"127.0.0.1:{silent.getsockname()[1]}", f"127.0.0.1:{found.port}"
        )
        store = store_at(url, tmp_path, 6)
        assert store.lookup(ASKED, NOW).triplet is None
        assert "no answer for" in store.notes[0]


def test_the_settings_say_in_which_order(found: Server, tmp_path: Path) -> None:
    url = at_hosts(found.url("lean"), "127.0.0.1:1")
    store = connect(set_up(url, tmp_path, database_hosts=f"127.0.0.1:{found.port}, 127.0.0.1:1"), 4)
    assert store.lookup(ASKED, NOW).triplet is None
    assert store.notes == []


def test_all_hosts_down_is_said_of_the_last_and_then_costs_nothing(
    found: Server, tmp_path: Path
) -> None:
    url = at_hosts(found.url("lean"), "127.0.0.1:1", "127.0.0.1:2")
    store = store_at(url, tmp_path)
    with pytest.raises(StoreError, match=r"^127\.0\.0\.1:2: .*(refused|connect)"):
        store.lookup(ASKED, NOW)
    assert len(store.notes) == 2
    after = store_at(url, tmp_path)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:2 has not answered for \ds: not asked"):
        after.lookup(ASKED, NOW)
    assert after.notes == []


def test_a_host_that_is_not_asked_costs_no_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "mysql://user:secret@127.0.0.1:1/g"
    with pytest.raises(StoreError):
        store_at(url, tmp_path).lookup(ASKED, NOW)
    monkeypatch.setattr(drivers, "load", None)
    with pytest.raises(StoreError, match="not asked"):
        store_at(url, tmp_path).lookup(ASKED, NOW)


def make_due(state: Path) -> None:
    """As if a minute had passed since all marks were made."""
    past = time.time() - 60
    for mark in state.iterdir():
        mark.write_text(f"{int(past)}\n")
        os.utime(mark, (past, past))


def test_who_answers_again_is_asked_again(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    found.stop()
    with pytest.raises(StoreError):
        store_at(url, tmp_path).lookup(ASKED, NOW)
    make_due(tmp_path)
    asking = store_at(url, tmp_path)
    with pytest.raises(StoreError, match="onnect"):
        asking.lookup(ASKED, NOW)
    assert asking.notes == [], "that is known already"
    found.start()
    with pytest.raises(StoreError, match="not asked"):
        store_at(url, tmp_path).lookup(ASKED, NOW)
    make_due(tmp_path)
    store = store_at(url, tmp_path)
    store.lookup(ASKED, NOW)
    assert [note.partition(" answers again after ")[0] for note in store.notes] == [
        f"note 127.0.0.1:{found.port}"
    ]
    assert list(tmp_path.iterdir()) == []


def test_while_one_asks_the_others_do_not(found: Server, tmp_path: Path) -> None:
    url = at_hosts(found.url("lean"), "127.0.0.1:1", f"127.0.0.1:{found.port}")
    store_at(url, tmp_path).lookup(ASKED, NOW)
    make_due(tmp_path)
    one, other = store_at(url, tmp_path), store_at(url, tmp_path)
    assert one._hosts.breaker.claim(one._hosts.left[0], "down")
    other.lookup(ASKED, NOW)
    assert other.notes == []
    assert str(other._session.host) == f"127.0.0.1:{found.port}"


def test_without_a_state_directory_each_check_says_so(found: Server, tmp_path: Path) -> None:
    url = at_hosts(found.url("lean"), "127.0.0.1:1", f"127.0.0.1:{found.port}")
    for _ in range(2):
        store = store_at(url, tmp_path / "none")
        store.lookup(ASKED, NOW)
        assert store.notes[0].endswith(
            f"; others cannot be told: {tmp_path}/none: No such file or directory"
        )


def test_a_connection_lost_between_two_statements_is_made_again(
    found: Server, tmp_path: Path
) -> None:
    store = store_at(found.url("lean"), tmp_path)
    store.lookup(ASKED, NOW)
    found.kill()
    found.start()
    with pytest.raises(Again):
        store.save(ASKED, NEW, patient=True)
    store.lock(ASKED)
    assert store.save(ASKED, NEW, patient=True)
    assert store.notes == []


def test_a_second_loss_is_too_much(found: Server, tmp_path: Path) -> None:
    store = store_at(found.url("lean"), tmp_path)
    for expected in (Again, StoreError):
        store.lookup(ASKED, NOW)
        found.kill()
        found.start()
        with pytest.raises(expected):
            store.lookup(ASKED, NOW)
    assert " is not asked any more: " in store.notes[0]


def test_a_host_that_takes_no_writes_is_left_for_another(
    postgresql: Postgres, standby: Postgres, tmp_path: Path
) -> None:
    postgres = postgresql
    standby.start()
    standby.catch_up()
    for driver in drivers.names("postgresql"):
        url = at_hosts(
            postgres.url("lean", driver=driver),
            f"127.0.0.1:{standby.port}",
            f"127.0.0.1:{postgres.port}",
        )
        state = tmp_path / driver
        state.mkdir()
        store = store_at(url, state)
        assert check(store, Decision(ENVELOPE, set_up(url, state), NOW)).reason in ("new", "early")
        assert "127.0.0.1" in store.notes[0]
        other_state = tmp_path / f"{driver}-reading"
        other_state.mkdir()
        reading = store_at(
            at_hosts(
                postgres.url("lean", driver=driver, target_session_attrs="any"),
                f"127.0.0.1:{standby.port}",
            ),
            other_state,
        )
        with pytest.raises(StoreError, match="read-only"):
            reading.save(ASKED, [Change(TripletRow(1, 1), TripletRow(2, 2), 9)], patient=True)
        assert " takes no writes: " in reading.notes[0]


def test_a_host_set_read_only_still_knows_whom_it_knows(mysql: MariaDB, tmp_path: Path) -> None:
    mariadb = mysql
    url = mariadb.url("lean")
    settings = set_up(url, tmp_path)
    check(store_at(url, tmp_path), Decision(ENVELOPE, settings, NOW))
    check(store_at(url, tmp_path), Decision(ENVELOPE, settings, NOW + 300))
    mariadb.sql("SET GLOBAL read_only = ON")
    try:
        other = Envelope("smtpextfork", "198.51.100.1", b"a@example.org", b"new@example.net")
        store = store_at(url, tmp_path)
        with pytest.raises(StoreError, match="read-only"):
            check(store, Decision(other, settings, NOW))
        assert " takes no writes: " in store.notes[0]
        with pytest.raises(StoreError, match=r"has taken no writes for \ds: not tried"):
            check(store_at(url, tmp_path), Decision(other, settings, NOW))
        known = check(store_at(url, tmp_path), Decision(ENVELOPE, settings, NOW + 9000))
        assert known.reason == "client"
        assert "not tried" in known.unrecorded
    finally:
        mariadb.sql("SET GLOBAL read_only = OFF")
    make_due(tmp_path)
    store = store_at(url, tmp_path)
    assert check(store, Decision(other, settings, NOW)).reason == "new"
    assert " takes writes again after " in store.notes[0]


def test_a_server_without_a_connection_left_is_waited_for(found: Server, tmp_path: Path) -> None:
    limit(found, 1)
    try:
        keeping = store_at(found.url("lean"), tmp_path)
        keeping.lookup(ASKED, NOW)
        impatient = store_at(found.url("lean"), tmp_path / "none", 2)
        with pytest.raises(StoreError, match=r"oo many |max_user_connections"):
            impatient.lookup(ASKED, NOW)
        waiting = store_at(found.url("lean"), tmp_path, 30)

        def leave() -> None:
            time.sleep(0.3)
            keeping._session.disconnect()

        thread = Thread(target=leave)
        thread.start()
        waiting.lookup(ASKED, NOW)
        thread.join()
        assert waiting.notes == []
    finally:
        limit(found, -1)


def test_what_a_host_said_counts_more_than_that_the_last_try_was_too_short(
    found: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(found.url("lean"), tmp_path, 0.2)
    said = iter([Fault(faults.BUSY, "too many connections"), faults.silent(0.1)])

    def fail(*_arguments: object) -> None:
        raise next(said)

    monkeypatch.setattr(drivers.load(store._server)[1], "Connection", fail)
    with pytest.raises(StoreError, match="too many connections"):
        store.lookup(ASKED, NOW)


def limit(found: Server, connections: int) -> None:
    if isinstance(found, Postgres):
        found.sql(f"ALTER ROLE {USER} CONNECTION LIMIT {connections}")
    else:
        found.sql(f"GRANT USAGE ON *.* TO {USER} WITH MAX_USER_CONNECTIONS {max(0, connections)}")


def test_a_check_without_memory_blames_no_host(
    found: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(found.url("lean"), tmp_path)

    def fail(*_arguments: object) -> None:
        raise Fault(faults.OURS, "connection to server failed: out of memory")

    monkeypatch.setattr(drivers.load(store._server)[1], "Connection", fail)
    with pytest.raises(StoreError, match="out of memory"):
        store.lookup(ASKED, NOW)
    assert store.notes == []
    assert list(tmp_path.iterdir()) == []


# --- faults in the middle -------------------------------------------------------------------------


class Failing:
    """A connection whose statements that begin with WORDS fail with FAULT, the first TIMES
    times.
    """

    def __init__(self, store: server.Store, words: str, fault: Fault, times: int = 1) -> None:
        self.connection = connected(store)
        self.words = words
        self.fault = fault
        self.times = times
        self.said: list[str] = []
        self.closed = False
        store._session.connection = self

    def run(
        self, sql: str, values: Sequence[object], seconds: float
    ) -> tuple[Sequence[Sequence[object]], int]:
        self.said.append(sql.partition(" ")[0])
        if sql.startswith(self.words) and self.times:
            self.times -= 1
            raise self.fault
        return self.connection.run(sql, values, seconds)

    def close(self) -> None:
        self.closed = True
        self.connection.close()


def decide(store: server.Store, url: str, state: Path, now: int = NOW) -> Decision:
    return check(store, Decision(ENVELOPE, set_up(url, state), now))


def hurry(store: server.Store) -> None:
    """Its time is up a moment after it has connected."""
    store._patience = 0.5
    store._until = time.monotonic() + 0.5


@pytest.mark.parametrize("kind", [faults.CONFLICT, faults.LOCKED])
@pytest.mark.parametrize("times", [1, 3])
def test_a_conflict_is_decided_again(found: Server, tmp_path: Path, kind: str, times: int) -> None:
    url = found.url("lean")
    store = store_at(url, tmp_path)
    failing = Failing(store, "INSERT", Fault(kind, "deadlock"), times)
    assert decide(store, url, tmp_path).reason == "new"
    assert failing.said.count("INSERT") == times + 1
    assert store_at(url, tmp_path).lookup(ASKED, NOW).triplet


def test_losers_of_a_race_in_one_process_wait_for_different_times(
    found: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(server, "sleep", waited.append)
    url = found.url("lean")
    for _loser in range(8):
        store = store_at(url, tmp_path)
        Failing(store, "INSERT", Fault(faults.CONFLICT, "deadlock"), 1)
        decide(store, url, tmp_path)
        found.sql("DELETE FROM triplet", "lean")
    assert len(waited) == 8
    assert len(set(waited)) > 2
    assert all(0 < seconds < 2 * server.PAUSE for seconds in waited)


@pytest.mark.parametrize("words", ["COMMIT", "client"])
def test_a_transaction_that_fails_anywhere_is_decided_again(
    found: Server, tmp_path: Path, words: str
) -> None:
    url = found.url("lean")
    decide(store_at(url, tmp_path), url, tmp_path)
    store = store_at(url, tmp_path)
    failing = Failing(
        store,
        "INSERT INTO client" if words == "client" else words,
        Fault(faults.CONFLICT, "deadlock"),
    )
    assert decide(store, url, tmp_path, NOW + 300).reason == "retry"
    assert not failing.times
    kept = store_at(url, tmp_path).lookup(ASKED, NOW)
    assert kept.client
    assert kept.triplet
    assert (kept.client.passes, kept.triplet.passes) == (1, 1)


def test_a_conflict_for_ever_ends_with_the_time(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    store = store_at(url, tmp_path)
    Failing(store, "INSERT", Fault(faults.CONFLICT, "deadlock"), 9999)
    hurry(store)
    with pytest.raises(StoreError, match="deadlock"):
        decide(store, url, tmp_path)


@pytest.mark.parametrize(
    ("words", "mark"), [("INSERT", "takes no writes"), ("SELECT", "is not asked any more")]
)
def test_a_lock_for_ever_marks_what_it_stops(
    found: Server, tmp_path: Path, words: str, mark: str
) -> None:
    url = found.url("lean")
    store = store_at(url, tmp_path)
    Failing(store, words, Fault(faults.LOCKED, "lock timeout"), 9999)
    hurry(store)
    with pytest.raises(StoreError, match="lock timeout"):
        decide(store, url, tmp_path)
    assert mark in store.notes[0]


def test_a_known_triplet_does_not_wait_for_a_lock_twice(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    decide(store_at(url, tmp_path), url, tmp_path)
    decide(store_at(url, tmp_path), url, tmp_path, NOW + 300)
    store = store_at(url, tmp_path)
    failing = Failing(store, "UPDATE", Fault(faults.LOCKED, "lock timeout"), 9999)
    verdict = decide(store, url, tmp_path, NOW + 9000)
    assert (verdict.reason, verdict.unrecorded) == (
        "client",
        f"127.0.0.1:{found.port}: lock timeout",
    )
    assert failing.said.count("UPDATE") == 1
    assert store.notes == []


def test_a_commit_that_is_never_answered_is_asked_for_elsewhere(
    found: Server, tmp_path: Path
) -> None:
    here = f"127.0.0.1:{found.port}"
    url = at_hosts(found.url("lean"), here, here.replace("127.0.0.1", ELSEWHERE))
    decide(store_at(url, tmp_path), url, tmp_path)
    store = store_at(url, tmp_path)
    failing = Failing(store, "COMMIT", faults.silent(1))
    assert decide(store, url, tmp_path, NOW + 300).reason == "retry"
    assert failing.closed
    assert f"{here} takes no writes: no answer for 1.0s" in store.notes[0]


def test_silence_for_a_moment_is_no_silence(found: Server, tmp_path: Path) -> None:
    """Where little time is left, a host is not to be blamed for not having answered in it."""
    store = store_at(found.url("lean"), tmp_path)
    Failing(store, "SELECT", faults.silent(0.1))
    store._patience = 3600
    with pytest.raises(StoreError, match="no answer for"):
        store.lookup(ASKED, NOW)
    assert store.notes == []


def test_a_node_that_is_not_ready_is_left(found: Server, tmp_path: Path) -> None:
    here = f"127.0.0.1:{found.port}"
    url = at_hosts(found.url("lean"), here, here.replace("127.0.0.1", ELSEWHERE))
    store = store_at(url, tmp_path)
    Failing(
        store,
        "SELECT",
        Fault(faults.UNUSABLE, "WSREP has not yet prepared node for application use (1047)"),
    )
    assert decide(store, url, tmp_path).reason == "new"
    assert f"{here} is not asked any more: WSREP" in store.notes[0]


def test_what_is_no_fault_of_the_host_is_passed_on(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    store = store_at(url, tmp_path)
    failing = Failing(store, "INSERT", Fault(faults.OTHER, "disk full (53100)"), 9999)
    with pytest.raises(StoreError, match="disk full"):
        decide(store, url, tmp_path)
    assert store.notes == []
    assert not failing.closed


def test_a_rollback_that_fails_ends_the_connection(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    decide(store_at(url, tmp_path), url, tmp_path)
    store = store_at(url, tmp_path)
    failing = Failing(store, "client", Fault(faults.CONFLICT, "deadlock"))
    failing.words = "INSERT INTO client"
    store._begin()
    rolling = Failing(store, "ROLLBACK", Fault(faults.GONE, "gone"))
    rolling.words = "ROLLBACK"
    failing.times = 1
    assert decide(store, url, tmp_path, NOW + 300).reason == "retry"
    assert rolling.closed


def test_the_deadline_marks_the_host_that_was_being_asked(found: Server, tmp_path: Path) -> None:
    store = store_at(found.url("lean"), tmp_path)
    store.overdue()
    store.lookup(ASKED, NOW)
    store.overdue()
    assert store.notes == [], "it is not being asked"
    store._session._asking_since = time.monotonic()
    store.overdue()
    assert store.notes == [], "it has had no time"
    store._session._asking_since = time.monotonic() - 3.9
    store.overdue()
    assert "is not asked any more: no answer for 3.9s" in store.notes[0]


def test_an_empty_table_of_revisions_is_no_schema(found: Server, tmp_path: Path) -> None:
    found.sql("DELETE FROM alembic_version", "lean")
    with pytest.raises(StoreError, match="has no schema: run greycheck db upgrade") as error:
        store_at(found.url("lean"), tmp_path).lookup(ASKED, NOW)
    assert not isinstance(error.value, NoSchema), "no check makes a server's"


def test_a_check_says_good_bye(found: Server, tmp_path: Path) -> None:
    """Servers log a line for each client who does not."""
    before = found.log.read_text()
    for driver in drivers.names("postgresql" if isinstance(found, Postgres) else "mysql"):
        url = found.url("lean", driver=driver)
        store = store_at(url, tmp_path)
        decide(store, url, tmp_path)
        store.tidy()
        store.tidy()
    found.sql("SELECT 1")
    said = found.log.read_text().removeprefix(before)
    assert "Aborted" not in said
    assert "could not receive data" not in said


def hold_a_row(found: Server) -> server.Store:
    """A check that stopped for ever where it held its triplet's row."""
    holding = store_at(found.url("lean"), Path("/nonexistent"))
    holding.lock(ASKED)
    return holding


def test_a_row_that_somebody_holds_does_not_stop_other_rows(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    decide(store_at(url, tmp_path), url, tmp_path)
    holding = hold_a_row(found)
    store = store_at(url, tmp_path, 3)
    held = decide(store, url, tmp_path, NOW + 60)
    assert (held.reason, store.notes) == ("early", [])
    assert held.unrecorded
    other = Envelope("smtpextfork", "198.51.100.1", b"a@example.org", b"b@example.net")
    assert (
        check(store_at(url, tmp_path), Decision(other, set_up(url, tmp_path), NOW)).reason == "new"
    )
    holding.tidy()


def test_who_tries_to_write_again_does_not_keep_others_from_another_host(
    found: Server, tmp_path: Path
) -> None:
    here = f"127.0.0.1:{found.port}"
    url = at_hosts(found.url("lean"), here, here.replace("127.0.0.1", ELSEWHERE))
    trying, other = store_at(url, tmp_path), store_at(url, tmp_path)
    trying._hosts.breaker.set(trying._hosts.left[0], "stuck")
    make_due(tmp_path)
    assert trying._hosts.breaker.claim(trying._hosts.left[0], "stuck")
    assert decide(other, url, tmp_path).reason == "new"
    assert str(other._session.host).startswith(ELSEWHERE)


def test_a_host_without_a_connection_left_gets_its_share_of_time(
    found: Server, tmp_path: Path
) -> None:
    limit(found, 1)
    try:
        here = f"127.0.0.1:{found.port}"
        keeping = store_at(found.url("lean"), tmp_path)
        keeping.lookup(ASKED, NOW)
        url = at_hosts(found.url("lean"), here, "127.0.0.1:1")
        store = store_at(url, tmp_path, 4)
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:1: "):
            store.lookup(ASKED, NOW)
        assert store._left() > 0, "the other host was asked in time"
    finally:
        limit(found, -1)


@pytest.mark.parametrize("hosts", [1, 3, 8])
def test_a_share_of_the_time_is_fair_however_many_hosts_there_are(
    tmp_path: Path, hosts: int
) -> None:
    store = store_at(
        "mysql://u@/g?" + "&".join(f"host=db{number}" for number in range(hosts)), tmp_path, 4
    )
    assert store._is_fair(store._share())
    assert not store._is_fair(0.01)


def test_a_database_without_a_schema_says_what_to_do(found: Server, tmp_path: Path) -> None:
    found.empty("lean")
    with pytest.raises(StoreError, match="has no schema: run greycheck db upgrade"):
        store_at(found.url("lean"), tmp_path).lookup(ASKED, NOW)


def test_errors_do_not_show_the_password(found: Server, tmp_path: Path) -> None:
    set_password(found, "another")
    try:
        store = store_at(found.url("lean"), tmp_path)
        with pytest.raises(StoreError, match="password") as error:
            store.lookup(ASKED, NOW)
        assert PASSWORD not in str(error.value) + str(store.notes)
    finally:
        set_password(found, PASSWORD)


def set_password(found: Server, password: str) -> None:
    how = (
        f"ALTER ROLE {USER} PASSWORD"
        if isinstance(found, Postgres)
        else f"ALTER USER {USER} IDENTIFIED BY"
    )
    found.sql(f"{how} '{password}'")


# --- one check after the other --------------------------------------------------------------------


def again(store: server.Store, patience: float = 4) -> object:
    """What a further check finds on the connection that there is."""
    store.begin(patience)
    found = store.lookup(ASKED, NOW).triplet
    store.rest()
    return found


def test_a_further_check_goes_on_with_the_connection(found: Server, tmp_path: Path) -> None:
    store = store_at(found.url("lean"), tmp_path)
    again(store)
    connection = store._session.connection
    assert connection
    again(store)
    again(store, 0.1)
    assert store._session.connection is connection


def test_a_further_check_asks_no_host_that_is_marked_and_keeps_its_connection(
    found: Server, tmp_path: Path
) -> None:
    store, other = (store_at(found.url("lean"), tmp_path) for _ in range(2))
    again(store)
    connection = store._session.connection
    other._hosts.breaker.set(other._server.hosts[0], "down")
    with pytest.raises(StoreError, match=r"has not answered for \d+s: not asked"):
        store.begin(4)
    make_due(tmp_path)
    assert other._hosts.breaker.claim(other._server.hosts[0], "down")
    with pytest.raises(StoreError, match=r"has not answered for 6\ds: not asked"):
        store.begin(4)
    other.rest()
    store.begin(4)
    store.lookup(ASKED, NOW)
    assert " answers again after 6" in store.notes[0]
    assert store._session.connection is connection
    again(store)
    assert store.notes == []


def test_a_further_check_goes_back_to_the_first_host_that_is_due(
    found: Server, tmp_path: Path
) -> None:
    here = f"127.0.0.1:{found.port}"
    there = here.replace("127.0.0.1", ELSEWHERE)
    store = store_at(at_hosts(found.url("lean"), here, there), tmp_path)
    store._hosts.breaker.set(store._server.hosts[0], "down")
    again(store)
    assert str(store._session.host) == there
    again(store)
    assert str(store._session.host) == there
    make_due(tmp_path)
    again(store)
    assert str(store._session.host) == here
    assert f"{here} answers again" in store.notes[0]
    again(store)
    assert str(store._session.host) == here


def test_what_was_claimed_and_not_settled_is_left_to_others(found: Server, tmp_path: Path) -> None:
    store, other = (store_at(found.url("lean"), tmp_path) for _ in range(2))
    other._hosts.breaker.set(other._server.hosts[0], "down")
    make_due(tmp_path)
    store.begin(4)
    Failing(store, "SELECT", faults.silent(0.1))
    store._until = time.monotonic() + 0.1
    with pytest.raises(StoreError, match="no answer"):
        store.lookup(ASKED, NOW)
    store._hosts.breaker.claim(store._server.hosts[0], "down")
    with pytest.raises(StoreError, match="not asked"):
        other.lookup(ASKED, NOW)
    store.rest()
    again(other)
    assert " answers again " in other.notes[0]


def test_a_transaction_that_a_check_did_not_end_ends_with_it(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    store = store_at(url, tmp_path)
    decide(store, url, tmp_path)
    store.lock(ASKED)
    store.rest()
    assert decide(store_at(url, tmp_path), url, tmp_path, NOW + 60).reason == "early"
    assert again(store)


def test_a_check_that_comes_late_is_no_fault_of_the_host(found: Server, tmp_path: Path) -> None:
    store = store_at(found.url("lean"), tmp_path)
    again(store)
    store.begin(0.1)
    Failing(store, "SELECT", faults.silent(0.1))
    with pytest.raises(StoreError, match="no answer"):
        store.lookup(ASKED, NOW)
    assert store.notes == []


def test_a_connection_that_was_made_in_a_hurry_is_made_again(found: Server, tmp_path: Path) -> None:
    """Its limits are for that hurry."""
    store = store_at(found.url("lean"), tmp_path)
    again(store, 1.1)
    connection = store._session.connection
    again(store, 1.1)
    assert store._session.connection is connection
    again(store)
    assert store._session.connection is not connection


def test_a_connection_that_was_lost_meanwhile_costs_no_check(found: Server, tmp_path: Path) -> None:
    url = found.url("lean")
    store = store_at(url, tmp_path)
    decide(store, url, tmp_path)
    for number in range(2):
        found.restart()
        store.begin(20)
        assert decide(store, url, tmp_path, NOW + 60 + number).reason == "early"
        assert store.notes == []
        store.rest()


# --- a cluster ------------------------------------------------------------------------------------


def test_nodes_that_change_the_same_row_agree(galera: Galera, tmp_path: Path) -> None:
    galera.start()
    galera.nodes[0].drop("lean")
    galera.nodes[0].create("lean")
    migrate.upgrade(galera.nodes[0].url("lean"))
    for node in galera.nodes:
        node.sql("SET wsrep_sync_wait = 1; SELECT * FROM triplet", "lean")
    reasons: list[list[str]] = [[], [], []]

    def retry(number: int) -> None:
        state = tmp_path / str(number)
        state.mkdir()
        url = galera.nodes[number].url("lean")
        for attempt in range(20):
            settings = set_up(url, state, client_passes="0", deadline="60s")
            reasons[number].append(
                check(connect(settings, 48), Decision(ENVELOPE, settings, NOW + 2 * attempt)).reason
            )

    threads = [Thread(target=retry, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(some.count("new") for some in reasons) == 1
    assert sum(some.count("early") for some in reasons) == 59
    for node in galera.nodes:
        rows = node.sql(
            "SET wsrep_sync_wait = 1; SELECT first_attempt, last_attempt FROM triplet", "lean"
        )
        assert rows == [(str(NOW), str(NOW + 38))]
    galera.nodes[0].drop("lean")
