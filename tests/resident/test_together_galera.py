"""Residents over a Galera with batches in flight: a node is stopped and continued, one is killed,
one takes no writes any more, and another resident writes the same rows by its own node.

Every question has its verdict before its deadline, what is known passes all the time, no row of a
deferral is lost, and each attempt is counted once.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from greycheck import check
from greycheck.resident import together
from greycheck.resident.together import Store
from tests.resident.resident import DEFERRED, Asking, Resident
from tests.resident.resident import request as question
from tests.resident.test_pool import each_kind, make_due, marks
from tests.resident.test_together import mail, pool_of, questions_of, reasons_of, settings_of
from tests.servers import Galera, Postgres, Server, wait_until
from tests.support import ServerDatabase

CONNECTIONS = 32
# So many of them ask another resident too, at the same moment and about the same mail.
SHARING = 8
ATTEMPTS = 3  # of each mail, at each resident
APART = 4  # seconds
DEADLINE = 15  # seconds
PAUSE = 0.02  # seconds between two questions of a connection
CALM = 3 * CONNECTIONS  # so many answers in a row without a fault

MANY = 40


@pytest.fixture
def database(
    galera: Galera, place: Path, request: pytest.FixtureRequest
) -> Iterator[ServerDatabase]:
    """A database of the cluster; or of another server, where a test asks for one."""
    kind = getattr(request, "param", "")
    if kind:
        yield request.getfixturevalue(f"on_{kind}").seen_from(place)
        return
    galera.start()
    found = ServerDatabase(galera.nodes[0], place, "together")
    for node in galera.nodes:
        node.sql("SET wsrep_sync_wait = 1; SELECT count(*) FROM triplet", "together")
    yield found
    found.close()


def hosts(galera: Galera, first: int = 0) -> str:
    """The setting for a host whose own node is the one of number FIRST."""
    nodes = galera.nodes[first:] + galera.nodes[:first]
    return ", ".join(f"127.0.0.1:{node.port}" for node in nodes)


# --- residents under load -------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a question was answered with: its reason, why it is unrecorded, and after how many
    seconds. It is excused if there was trouble meanwhile.
    """

    reason: str
    unrecorded: bool
    took: float
    is_excused: bool

    @property
    def is_fault(self) -> bool:
        return self.reason == "error" or self.unrecorded


class Load(Asking):
    """Connections that ask RESIDENTS about one mail after the other, and later about what is known.

    The first resident is asked by all; by some of them the second one too, about the same mail at
    the same moment. Each attempt has a time of its own, so each is to be counted.
    """

    def __init__(self, residents: Sequence[Resident]) -> None:
        super().__init__(CONNECTIONS)
        self.residents = residents
        self.first = int(time.time()) - 60
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.all: list[Answer] = []
        self.broken: list[Exception] = []
        self.in_trouble = False

    @contextmanager
    def going_on(self) -> Iterator[None]:
        for number in range(CONNECTIONS):
            for ago in 500, 100:
                found = self.residents[0].ask_as(
                    "smtpextfork",
                    sender=f"{number}@known.example",
                    greycheck_time=f"{int(time.time()) - ago}",
                    GREYCHECK_DELAY="1s",
                )
            assert " reason=retry " in found["log"]
        with super().going_on():
            yield

    def ask(self, number: int) -> None:
        each = 0
        try:
            while not self.over.is_set():
                each += 1
                for attempt in range(ATTEMPTS):
                    self._ask_at_once(f"{number}.{each}@own.example", attempt)
                self._ask_at_once(f"{number}@known.example", ATTEMPTS)
                if number < SHARING:
                    for attempt in range(ATTEMPTS):
                        sender = f"{number}.{each}@shared.example"
                        self._ask_at_once(sender, 2 * attempt, 2 * attempt + 1)
        except Exception as error:
            self.broken.append(error)

    def _ask_at_once(self, sender: str, *attempts: int) -> None:
        """Asks about each of ATTEMPTS of a mail another resident."""
        was_in_trouble, began = self.in_trouble, time.monotonic()
        with ExitStack() as opened:
            peers = [
                opened.enter_context(resident.peer())
                for resident, _ in zip(self.residents, attempts, strict=False)
            ]
            for peer, attempt in zip(peers, attempts, strict=True):
                when = str(self.first + APART * attempt)
                peer.send(
                    question(sender=sender, greycheck_hook="smtpextfork", greycheck_time=when)
                )
            for peer in peers:
                said = peer.answer().decode()
                found = re.search(r"^log=greycheck: \w+ reason=(\S+)", said, re.MULTILINE)
                assert found, said
                took = time.monotonic() - began
                is_excused = was_in_trouble or self.in_trouble
                answer = Answer(found[1], " unrecorded=" in said, took, is_excused)
                self.answers[sender].append(answer)
                self.all.append(answer)
        self.over.wait(PAUSE)

    # --- what happens -----------------------------------------------------------------------------

    def wait_calm(self) -> None:
        """Waits until so many in a row, from now on, are answered without a fault."""
        before = len(self.all)

        def is_calm() -> bool:
            assert not self.broken, self.broken
            last = self.all[max(before, len(self.all) - CALM) :]
            return len(last) >= CALM and not any(answer.is_fault for answer in last)

        wait_until(is_calm, "questions are answered without a fault", self._last)

    def _last(self) -> str:
        return "\n".join(self.residents[0].log().splitlines()[-20:])

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Faults are to be expected now, until some time after."""
        self.in_trouble = True
        yield
        self.wait_calm()
        self.in_trouble = False

    # --- what may not have happened ---------------------------------------------------------------

    def assert_sound(self, rows: dict[str, tuple[int, int]]) -> None:
        """ROWS are the first attempt and the number of early ones, by sender."""
        assert not self.broken, self.broken
        assert not [answer for answer in self.all if answer.is_fault and not answer.is_excused]
        usual = max(answer.took for answer in self.all if not answer.is_excused)
        assert not [answer for answer in self.all if answer.took > DEADLINE + 1 + usual]
        for sender, answers in self.answers.items():
            reasons = [answer.reason for answer in answers]
            if sender.endswith("@known.example"):
                assert set(reasons) == {"known"}
                continue
            assert set(reasons) <= {"new", "early", "error"}, (sender, answers)
            if set(reasons) != {"error"}:
                assert sender in rows, (sender, answers)
            if sender not in rows:
                continue
            first, early = rows[sender]
            assert reasons.count("new") <= 1, (sender, answers)
            assert early >= sum(not answer.is_fault for answer in answers) - 1, (sender, answers)
            if not answers[0].is_fault:
                assert first == self.first, (sender, answers)
            # Where a connection is lost, and another resident writes before it is found out that
            # the attempt was recorded, it counts again.
            if sender.endswith("@own.example") or not any(each.is_excused for each in answers):
                assert early < len(answers), (sender, answers)


def rows_of(galera: Galera, number: int) -> dict[str, tuple[int, int]]:
    """The first attempt and the number of early ones, by sender, as a node has them."""
    sql = "SET wsrep_sync_wait = 1; SELECT sender, first_attempt, early_attempts FROM triplet"
    found = galera.nodes[number].sql(sql, "together")
    return {sender: (int(first), int(early)) for sender, first, early in found}


@contextmanager
def residents(galera: Galera, database: ServerDatabase, place: Path) -> Iterator[list[Resident]]:
    """A resident for each of two hosts, each of which asks its own node first."""
    with ExitStack() as running:
        found = []
        for number in range(2):
            directory = place / f"mx{number}"
            directory.mkdir()
            settings = {
                "database_hosts": hosts(galera, number),
                "deadline": f"{DEADLINE}s",
                "delay": "1h",
                "client_passes": "0",
                "pool_networks": "0",
                "network_limit": "0",
            }
            store = database.seen_from(directory)
            found.append(running.enter_context(Resident(directory, settings, store)))
        for resident in found:
            resident.wait()
        yield found


def test_nodes_in_trouble_cost_no_verdict_and_no_row(
    galera: Galera, database: ServerDatabase, place: Path
) -> None:
    node = galera.nodes[0]
    with residents(galera, database, place) as (here, there):
        load = Load([here, there])
        with load.going_on():
            commits = committed(node)
            load.wait_calm()
            asked = len(load.all)
            # Many are one transaction.
            assert 0 < committed(node) - commits < asked

            with load.trouble():
                node.freeze()
                here.wait_for(gone := f":{node.port} is not asked any more")
                load.wait_calm()
                node.thaw()
                galera.wait_synced(0)
                make_due(cast(ServerDatabase, here.store))
                wait_until(lambda: not marks(cast(ServerDatabase, here.store)), "it is asked again")
            load.wait_calm()

            before = here.log().count(gone)
            with load.trouble():
                node.kill()
                here.wait_for(gone, before + 1)
                galera.wait_synced(1)
            load.wait_calm()
        for number in 1, 2:
            load.assert_sound(rows_of(galera, number))
        for resident in here, there:
            assert "unforeseen" not in resident.log()
            assert "one by one" not in resident.log()
            assert resident.ask(sender="after@example.org") == DEFERRED


def committed(node: Server) -> int:
    return int(node.sql("SHOW GLOBAL STATUS LIKE 'Com_commit'", "")[0][1])


# --- conflicts, and nodes that take no writes -----------------------------------------------------


def test_a_row_that_another_node_writes_while_a_batch_is_at_it_costs_no_verdict(
    galera: Galera, database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the commit that conflicts: its node has told nobody of its locks."""
    given = settings_of(database, database_hosts=hosts(galera, 1))
    [early] = questions_of(given, [mail(7)], int(time.time()) - 10)
    ends, is_over = Store._end, threading.Event()

    def meddle(store: Store, how: str, written: bool) -> bool:
        if how == "COMMIT" and not is_over.is_set():
            is_over.set()
            other = Store(given, 20, store._shared)
            assert check.check(other, early.decision).reason == "new"
            other.close()
        return ends(store, how, written)

    monkeypatch.setattr(Store, "_end", meddle)
    with pool_of(database, database_hosts=hosts(galera)) as ask:
        verdicts = ask([mail(number) for number in range(MANY)])
    assert is_over.is_set()
    assert {(verdict.reason, sender == mail(7).sender) for sender, verdict in verdicts.items()} == {
        ("new", False),
        ("early", True),
    }
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(MANY, 1)]
    assert marks(database) == []


@contextmanager
def taking_no_writes(found: Server) -> Iterator[Callable[[], None]]:
    """What has a server take no writes any more, for as long as this lasts."""
    is_postgresql = isinstance(found, Postgres)

    def change(word: str) -> None:
        if is_postgresql:
            found.sql(
                f"ALTER SYSTEM SET default_transaction_read_only = {word}; SELECT pg_reload_conf()",
                "",
            )
        else:
            found.sql(f"SET GLOBAL read_only = {word}", "")

    try:
        yield lambda: change("on")
    finally:
        change("off")


def read_only_before_the_first_batch_writes(
    monkeypatch: pytest.MonkeyPatch, turn: Callable[[], None]
) -> threading.Event:
    """Has TURN called in the middle of a batch, once; returns what says that it was."""
    save_all, has_turned = Store.save_all, threading.Event()

    def save(store: Store, batch: list[Any], written: Callable[[Any], None]) -> None:
        if not has_turned.is_set():
            has_turned.set()
            turn()
            if store._server.dialect == "postgresql":
                said = "SHOW default_transaction_read_only"
                wait_until(
                    lambda: store._session.run(said, (), 20)[0][0][0] == "on", "it is read-only"
                )
        save_all(store, batch, written)

    monkeypatch.setattr(Store, "save_all", save)
    return has_turned


def test_a_node_that_takes_no_writes_any_more_is_passed_over_for_them(
    galera: Galera, database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        taking_no_writes(galera.nodes[0]) as turn,
        pool_of(database, database_hosts=hosts(galera)) as ask,
    ):
        has_turned = read_only_before_the_first_batch_writes(monkeypatch, turn)
        assert reasons_of(ask([mail(number) for number in range(MANY)])) == {"new"}
        assert has_turned.is_set()
        assert [mark.name[:6] for mark in marks(database)] == ["stuck-"]
        assert reasons_of(ask([mail(MANY + number) for number in range(MANY)])) == {"new"}
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(2 * MANY, 0)]


@each_kind
def test_a_server_that_takes_no_writes_any_more_lets_pass_what_is_known(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, early = (mail(number, "{}@other.example") for number in range(2))
    new = [mail(number) for number in range(10, 10 + MANY)]
    # After each change of the store by a test its rules are read again.
    monkeypatch.setattr(together, "REREAD", 0)
    monkeypatch.setattr(together, "TIMES", 0)
    database.make()
    if isinstance(database.server, Postgres):
        # By itself libpq would connect to no server that takes no writes.
        database.url += "&target_session_attrs=any"
    with (
        taking_no_writes(database.server) as turn,
        pool_of(database, pool_size=1, client_passes=0) as ask,
    ):
        assert reasons_of(ask([known])) == {"new"}
        database.age(400)
        assert reasons_of(ask([known])) == {"retry"}
        assert reasons_of(ask([early])) == {"new"}
        database.age(10)
        has_turned = read_only_before_the_first_batch_writes(monkeypatch, turn)
        verdicts = ask([*new, early, known])
        assert has_turned.is_set()
        assert {verdicts[each.sender].reason for each in new} == {"error"}
        assert verdicts[early.sender].reason == "early"
        assert verdicts[early.sender].unrecorded
        assert verdicts[known.sender].reason == "known"
        assert [mark.name[:6] for mark in marks(database)] == ["stuck-"]
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(2, 0)]
    make_due(database)
    with pool_of(database, pool_size=1, client_passes=0) as ask:
        assert reasons_of(ask([*new, early])) == {"new", "early"}
    assert marks(database) == []
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(2 + MANY, 1)]
