"""The resident and a server database: right verdicts, and none later than its deadline, whatever
happens to the server.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from greycheck import check, settings
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.resident import together
from greycheck.resident.messages import Messages
from greycheck.resident.pool import LONG, Pool
from greycheck.resident.questions import Question
from greycheck.store import drivers
from greycheck.store.breaker import DOWN, Breaker
from greycheck.store.drivers import faults
from greycheck.store.url import parse_url
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Resident, request
from tests.resident.test_unforeseen import faulty
from tests.servers import PASSWORD, USER, Postgres, Server, wait_until
from tests.support import CLIENT, Child, Database, ServerDatabase, SQLiteFile, on_every_server

EARLY = "DEFER_IF_PERMIT 4.2.0 greylisted, please try again in "
DEADLINE = 2

each_kind = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def served(database: ServerDatabase) -> Iterator[Server]:
    """The server of the test's database, which runs again afterwards."""
    yield database.server
    database.server.start()


def make_due(database: ServerDatabase) -> None:
    """As if a minute had passed since all marks were made."""
    past = time.time() - 60
    for mark in marks(database):
        mark.write_text(f"{int(past)}\n")
        os.utime(mark, (past, past))


def marks(database: ServerDatabase) -> list[Path]:
    return [
        path for path in database.directory.iterdir() if path.name.startswith(("down-", "stuck-"))
    ]


def connections(found: Server) -> int:
    """How many connections the ordinary user has."""
    if isinstance(found, Postgres):
        sql = (
            f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{USER}' AND application_name ="
            " 'greycheck'"
        )
    else:
        # The test's own is one of them.
        sql = f"SELECT count(*) - 1 FROM information_schema.processlist WHERE user = '{USER}'"
    return int(found.sql(sql, "")[0][0])


def said(resident: Resident, words: str) -> int:
    """How often the resident's log holds WORDS."""
    return "\n".join(resident.lines).count(words)


# --- verdicts -------------------------------------------------------------------------------------


@on_every_server
def test_what_a_child_began_the_resident_goes_on_with_and_the_other_way_round(
    start: Start, database: ServerDatabase, launchers: Path
) -> None:
    resident, child = start({"store": database}), Child(launchers, database)
    assert resident.ask() == DEFERRED
    assert child.smtpextfork().reason == "early"
    assert child.smtpextfork("next@example.org").reason == "new"
    assert resident.ask(sender="next@example.org").startswith(EARLY)
    resident.age(300)
    assert child.smtpextfork().reason == "retry"
    assert resident.ask(sender="next@example.org") == ACCEPTED
    assert resident.ask(sender="another@example.org") == ACCEPTED
    assert resident.reasons() == ["new", "early", "client", "client"]
    assert resident.ask(client_address="2001:db8::1") == DEFERRED
    assert resident.store.rows("SELECT passes FROM client") == [(1,)]


@each_kind
def test_a_first_recipient_vouches_for_later_ones(start: Start, database: ServerDatabase) -> None:
    resident = start({"store": database}, client_passes="0")
    count = {"SMTPRCPTCOUNT": "0", "SMTPRCPTCOUNTALL": "1", "TCPREMOTEPORT": "1"}
    assert "E451" in resident.ask_as("spp", **count)["say"]
    resident.age(300)
    assert "say" not in resident.ask_as("spp", **count)
    later = {"SMTPRCPTCOUNT": "1", "SMTPRCPTCOUNTALL": "2", "TCPREMOTEPORT": "1"}
    assert "say" not in resident.ask_as("spp", recipient="carol@example.net", **later)
    assert resident.reasons() == ["new", "retry", "message"]


@each_kind
def test_a_first_recipient_that_a_mail_server_tells_of_vouches_too(
    start: Start, database: ServerDatabase
) -> None:
    resident = start({"store": database}, client_passes="0")
    assert resident.ask(instance="one") == DEFERRED
    resident.age(300)
    assert resident.ask(instance="two") == ACCEPTED
    assert resident.ask(instance="two", recipient="carol@example.net") == ACCEPTED
    assert resident.ask(instance="three", recipient="carol@example.net") == DEFERRED
    assert resident.reasons() == ["new", "retry", "message", "new"]


@each_kind
def test_what_cannot_be_remembered_of_a_message_does_not_change_its_verdict(
    start: Start, database: ServerDatabase
) -> None:
    broken = faulty("greycheck.check", "remember", "True")
    resident = start({"store": database, **broken}, client_passes="0", on_error="defer")
    count = {"SMTPRCPTCOUNT": "0", "SMTPRCPTCOUNTALL": "1", "TCPREMOTEPORT": "1"}
    assert "E451" in resident.ask_as("spp", **count)["say"]
    resident.age(300)
    assert "say" not in resident.ask_as("spp", **count)
    assert resident.reasons() == ["new", "retry"]
    assert resident.ask(sender="after@example.org") == DEFERRED


@each_kind
def test_many_at_once_are_decided_as_one_after_the_other(
    start: Start, database: ServerDatabase
) -> None:
    resident = start({"store": database}, pool_size="4")

    def ask(number: int) -> None:
        with resident.peer() as peer:
            for each in range(25):
                assert peer.ask(sender=f"{number}.{each}@example.org") == DEFERRED
                assert peer.ask(sender="same@example.org") in (
                    DEFERRED,
                    EARLY + "299 seconds",
                    EARLY + "298 seconds",
                )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(201,)]
    assert set(resident.reasons()) == {"new", "early"}
    assert resident.reasons().count("new") == 201
    assert said(resident, "unrecorded") == 0
    # One that was left is there until its process on the server has ended.
    wait_until(
        lambda: 1 <= connections(database.server) <= 4, "as many connections as the pool may have"
    )


@each_kind
def test_little_mail_needs_few_connections(start: Start, database: ServerDatabase) -> None:
    resident = start({"store": database})
    for number in range(20):
        resident.ask(sender=f"{number}@example.org")
    # The next question may come before the last worker is at rest again, on a busy machine several
    # times.
    wait_until(lambda: connections(database.server) <= 2, "a connection or two")


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_connection_that_nobody_needs_is_given_back_in_good_order(
    start: Start, database: ServerDatabase
) -> None:
    """Before the server takes it and writes that into its log; and so it is at the end."""
    broken = "SHOW GLOBAL STATUS LIKE 'Aborted_clients'"
    before = database.server.sql(broken, "")
    resident = start({"store": database})
    assert resident.ask() == DEFERRED
    assert connections(database.server) == 1
    wait_until(lambda: connections(database.server) == 0, "the connection is given back")
    assert resident.ask().startswith(EARLY)
    assert resident.stop() == 0
    assert connections(database.server) == 0
    assert database.server.sql(broken, "") == before


# --- a server that does not answer ----------------------------------------------------------------


def timed(resident: Resident, sender: str) -> tuple[str, float]:
    """The action that a question about SENDER is answered with, and after how many seconds."""
    began = time.monotonic()
    return resident.ask(sender=sender), time.monotonic() - began


@each_kind
def test_a_server_that_is_stopped_costs_nobody_more_than_the_deadline(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    resident = start({"store": database}, deadline=f"{DEADLINE}s", pool_size="3")
    with ThreadPoolExecutor(30) as pool:
        quiet = max(
            took
            for _, took in pool.map(
                lambda number: timed(resident, f"{number}@quiet.example"), range(30)
            )
        )
        served.freeze()
        stuck = list(pool.map(lambda number: timed(resident, f"{number}@stuck.example"), range(30)))
        assert {action for action, _ in stuck} == {ACCEPTED}
        assert max(took for _, took in stuck) < DEADLINE + 0.5 + quiet
        assert len([line for line in resident.verdicts if "no answer" in line]) <= 3 + 3
        # The mark spares the others even the attempt.
        assert [path.name[:5] for path in marks(database)] == ["down-"]
        assert said(resident, " is not asked any more: ") == 1
        assert not [
            number
            for number in range(10)
            if timed(resident, f"{number}@later.example")[1] > DEADLINE / 2
        ]
        assert ": not asked" in resident.verdicts[-1]
        # Where it is due, one question is the trial.
        make_due(database)
        tried = list(pool.map(lambda number: timed(resident, f"{number}@tried.example"), range(10)))
        assert len([took for _, took in tried if took > DEADLINE / 2]) == 1
        served.thaw()
        make_due(database)
        wait_until(
            lambda: resident.ask(sender="after@example.org") != ACCEPTED, "it is asked again"
        )
        assert marks(database) == []
        after = list(pool.map(lambda number: timed(resident, f"{number}@after.example"), range(30)))
    assert {action for action, _ in after} == {DEFERRED}
    assert said(resident, " answers again after ") == 1


@each_kind
def test_what_finds_the_queue_full_is_answered_at_once(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    resident = start({"store": database}, deadline="30s", pool_size="1", max_queue="2")
    resident.ask()
    peers = [resident.peer() for _ in range(10)]
    served.freeze()
    for number, peer in enumerate(peers):
        peer.send(request(sender=f"{number}@example.org"))
    # The worker takes one of them, two or three, and two wait.
    full = "2 requests wait for the database: not asked"
    resident.wait_for(full, 5)
    served.thaw()
    actions = [peer.action() for peer in peers]
    for peer in peers:
        peer.close()
    refused = said(resident, full)
    assert 5 <= refused <= 7
    assert sorted(actions) == sorted([ACCEPTED] * refused + [DEFERRED] * (10 - refused))
    assert Counter(resident.reasons()) == {"new": 11 - refused, "error": refused}
    assert resident.ask(sender="after@example.org") == DEFERRED


@each_kind
def test_each_question_has_a_deadline_of_its_own(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    """Whoever came first may wait for longer."""
    resident = start({"store": database}, deadline="30s", pool_size="1")
    resident.ask()
    with resident.peer() as patient, resident.peer() as other:
        served.freeze()
        patient.send(request(sender="patient@example.org"))
        other.send(request(sender="other@example.org", GREYCHECK_DEADLINE="1s"))
        assert other.action() == ACCEPTED
        assert 'error="no answer within 1s"' in resident.verdicts[-1]
        assert len(resident.verdicts) == 2
        served.thaw()
        assert patient.action() == DEFERRED


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_driver_that_waits_for_longer_than_the_deadline_is_not_waited_for(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    """Its limits are whole seconds, of when it connected."""
    resident = start({"store": database}, deadline="4s", pool_size="1")
    assert resident.ask() == DEFERRED
    served.freeze()
    assert resident.ask(sender="next@example.org", GREYCHECK_DEADLINE="1s") == ACCEPTED
    assert 'error="no answer within 1s"' in resident.verdicts[-1]
    assert [warning.partition(": ")[2] for warning in resident.warnings()] == ["no answer for 1.0s"]
    assert len(marks(database)) == 1
    served.thaw()
    make_due(database)
    wait_until(lambda: resident.ask(sender="after@example.org") != ACCEPTED, "it is asked again")
    assert said(resident, " is not asked any more: ") == 1


@each_kind
def test_what_comes_late_because_of_many_is_no_fault_of_the_server(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    """Those at the end of a long queue have little time left, and a server that does not answer
    within that is not marked.
    """
    resident = start({"store": database}, deadline="5s", pool_size="1", on_error="defer")
    resident.ask()
    hurried = [
        request(sender=f"{number}@example.org", GREYCHECK_DEADLINE="1s") for number in range(5)
    ]
    with holding(served):
        peers = [resident.peer() for _ in hurried]
        for peer, question in zip(peers, hurried, strict=True):
            peer.send(question)
        for peer in peers:
            assert peer.action().startswith("DEFER")
            peer.close()
    assert said(resident, " is not asked any more: ") == 0
    assert resident.ask(sender="after@example.org") == DEFERRED
    assert resident.reasons()[-1] == "new"


@contextmanager
def holding(found: Server) -> Iterator[None]:
    """The server is stopped for less time than would be held against it."""
    found.freeze()
    thawing = threading.Timer(0.7, found.thaw)
    thawing.start()
    yield
    thawing.join()


@each_kind
def test_a_server_that_was_killed_is_asked_again_once_it_is_back(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    resident = start({"store": database}, deadline="20s")
    assert resident.ask() == DEFERRED
    served.kill()
    assert resident.ask(sender="meanwhile@example.org") == ACCEPTED
    assert "reason=error" in resident.verdicts[-1]
    assert len(marks(database)) == 1
    served.start()
    make_due(database)
    assert resident.ask().startswith(EARLY)
    assert said(resident, " is not asked any more: ") == 1
    assert said(resident, " answers again after ") == 1
    assert said(resident, PASSWORD) == 0


@on_every_server
def test_a_server_that_was_restarted_costs_no_verdict(
    start: Start, database: ServerDatabase, served: Server
) -> None:
    resident = start({"store": database}, pool_size="4")
    with ThreadPoolExecutor(8) as pool:
        for turn in range(3):
            senders = [f"{turn}.{number}@example.org" for number in range(8)]
            actions = pool.map(lambda sender: resident.ask(sender=sender), senders)
            assert set(actions) == {DEFERRED}
            served.restart()
    assert resident.ask(sender="0.0@example.org").startswith(EARLY)
    assert set(resident.reasons()) == {"new", "early"}
    assert resident.warnings() == []
    assert marks(database) == []


# --- a server with conditions ---------------------------------------------------------------------


@contextmanager
def limited(found: Server, most: int) -> Iterator[None]:
    """MOST connections for the ordinary user."""
    if isinstance(found, Postgres):
        found.sql(f"ALTER ROLE {USER} CONNECTION LIMIT {most}")
    else:
        found.sql(f"GRANT USAGE ON *.* TO {USER} WITH MAX_USER_CONNECTIONS {most}")
    try:
        yield
    finally:
        if isinstance(found, Postgres):
            found.sql(f"ALTER ROLE {USER} CONNECTION LIMIT -1")
        else:
            found.sql(f"GRANT USAGE ON *.* TO {USER} WITH MAX_USER_CONNECTIONS 0")


@each_kind
def test_fewer_connections_than_the_pool_wants_are_shared(
    start: Start, database: ServerDatabase
) -> None:
    found = database.server
    # One is the test's own.
    with limited(found, 3):
        resident = start({"store": database}, pool_size="6", deadline="20s")
        with ThreadPoolExecutor(12) as pool:
            for turn in range(3):
                senders = [f"{turn}.{number}@example.org" for number in range(36)]
                actions = pool.map(lambda sender: resident.ask(sender=sender), senders)
                assert set(actions) == {DEFERRED}
    assert set(resident.reasons()) == {"new"}
    assert resident.warnings() == []
    assert marks(database) == []


@each_kind
def test_another_password_is_told_and_the_right_one_is_enough(
    start: Start, database: ServerDatabase
) -> None:
    found = database.server
    resident = start({"store": database})
    assert resident.ask() == DEFERRED
    set_password(found, "another")
    try:
        # What is connected stays so.
        assert resident.ask(sender="next@example.org") == DEFERRED
        found.restart()
        assert resident.ask(sender="third@example.org") == ACCEPTED
        assert "password" in resident.verdicts[-1]
    finally:
        set_password(found, PASSWORD)
    make_due(database)
    assert resident.ask(sender="third@example.org") == DEFERRED
    assert said(resident, PASSWORD) == 0


def set_password(found: Server, password: str) -> None:
    if isinstance(found, Postgres):
        found.sql(f"ALTER ROLE {USER} PASSWORD '{password}'")
    else:
        found.sql(f"ALTER USER {USER} IDENTIFIED BY '{password}'")


# --- two hosts ------------------------------------------------------------------------------------


class Gate:
    """A port that leads to a PORT, and can be shut; ``passed`` is how many connections came
    through.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._sockets: list[socket.socket] = []
        self.passed = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open()

    def _open(self) -> None:
        threading.Thread(target=self._serve, args=[self._listening], daemon=True).start()

    def reopen(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._open()

    def shut(self) -> None:
        if self._listening.fileno() >= 0:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
        while self._sockets:
            with suppress(OSError):  # it has ended
                self._sockets.pop().shutdown(socket.SHUT_RDWR)

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                came, _address = listening.accept()
            except OSError:
                return
            self.passed += 1
            led = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [came, led]
            for one, other in ((came, led), (led, came)):
                threading.Thread(target=self._hand_on, args=[one, other], daemon=True).start()

    @staticmethod
    def _hand_on(one: socket.socket, other: socket.socket) -> None:
        with other, suppress(OSError):  # the other way round it has ended
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def gate(database: ServerDatabase) -> Iterator[Gate]:
    found = Gate(database.server.port)
    yield found
    found.shut()


@each_kind
def test_the_second_host_takes_over_and_the_first_is_gone_back_to(
    start: Start, database: ServerDatabase, gate: Gate
) -> None:
    hosts = f"127.0.0.1:{gate.port}, 127.0.0.1:{database.server.port}"
    resident = start({"store": database}, database_hosts=hosts, pool_size="4", deadline="20s")

    def ask_many(domain: str) -> None:
        with ThreadPoolExecutor(8) as pool:
            actions = pool.map(lambda number: resident.ask(sender=f"{number}@{domain}"), range(16))
            assert set(actions) == {DEFERRED}

    ask_many("first.example")
    assert gate.passed
    gate.shut()
    ask_many("second.example")
    assert set(resident.reasons()) == {"new"}
    assert [line.partition(": ")[0] for line in resident.warnings()] == [
        f"127.0.0.1:{gate.port} is not asked any more"
    ]
    passed = gate.passed
    ask_many("again.example")
    assert gate.passed == passed
    gate.reopen()
    make_due(database)
    ask_many("back.example")
    assert gate.passed > passed
    assert said(resident, f"127.0.0.1:{gate.port} answers again after ") == 1
    assert set(resident.reasons()) == {"new"}
    # Now that it answers nobody asks the second any more.
    gate.shut()
    ask_many("twice.example")
    assert said(resident, f"127.0.0.1:{gate.port} is not asked any more") == 2


# --- settings that change -------------------------------------------------------------------------


class Configured(SQLiteFile):
    """An SQLite file, and a configuration file beside it that names this or another store.

    A check there takes two seconds at most.
    """

    def __init__(self, path: Path, template: Path) -> None:
        super().__init__(path, template)
        self.config = path.with_name("greycheck.conf")
        self.name(self)

    def name(self, store: Database) -> None:
        """Names STORE from now on."""
        self.config.write_text(
            f"database = {store.url}\nstate_directory = {self.directory}\ndeadline = 2s\n"
        )

    @property
    def environ(self) -> dict[str, str]:
        return {"GREYCHECK_CONFIG": str(self.config)}


@pytest.fixture
def configured(place: Path, empty_store: Path) -> Configured:
    return Configured(place / "greycheck.db", empty_store)


@each_kind
def test_another_database_is_used_from_then_on(
    start: Start, database: ServerDatabase, configured: Configured
) -> None:
    resident = start({"store": configured})
    assert resident.ask() == DEFERRED
    configured.name(database)
    resident.reread()
    with ThreadPoolExecutor(8) as pool:
        assert set(
            pool.map(lambda number: resident.ask(sender=f"{number}@example.org"), range(8))
        ) == {DEFERRED}
    assert database.rows("SELECT count(*) FROM triplet") == [(8,)]
    configured.name(configured)
    resident.reread(times=2)
    assert resident.ask().startswith(EARLY)
    assert resident.reasons() == ["new"] * 9 + ["early"]
    wait_until(lambda: connections(database.server) == 0, "the server is left")


@each_kind
def test_what_waits_for_a_database_that_is_left_is_answered_first(
    start: Start, database: ServerDatabase, served: Server, configured: Configured
) -> None:
    configured.name(database)
    resident = start({"store": configured})
    assert resident.ask() == DEFERRED
    served.freeze()
    with resident.peer() as peer, resident.peer() as other:
        peer.send(request(sender="waits@example.org"))
        assert other.ask(sasl_username="alice") == ACCEPTED  # so the one before has been read
        configured.name(configured)
        resident.reread()
        assert peer.action() == ACCEPTED
        assert peer.ask() == DEFERRED
    assert resident.reasons() == ["new", "exempt", "error", "new"]


# --- faults that nobody foresaw -------------------------------------------------------------------


@each_kind
def test_a_fault_that_nobody_foresaw_is_told_and_the_worker_goes_on(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[Verdict] = []

    def answer(question: Question, verdict: Verdict | None, _notes: list[str]) -> None:
        assert verdict is not None
        question.answered = True
        answered.append(verdict)

    environ = {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_POOL_SIZE": "1", **database.environ}
    found = settings.read({name.encode(): value.encode() for name, value in environ.items()})
    pool = Pool(found, answer, Messages())

    def ask() -> str:
        envelope = Envelope("policy", CLIENT, b"a@example.org", b"b@example.net")
        pool.decide([Question(cast(Any, None), envelope, found, None, [])])

        def is_answered() -> bool:
            pool.tick()
            return bool(answered)

        wait_until(is_answered, "it is answered")
        verdict = answered.pop()
        return f"{verdict.reason} {verdict.detail}"

    try:
        assert ask() == "new "
        with monkeypatch.context() as broken:
            broken.setattr(together.Store, "look_up", lambda *_given: 1 / 0)
            broken.setattr(check, "check", lambda *_given: 1 / 0)
            assert ask() == "error error=ZeroDivisionError: division by zero"
        assert ask() == "early "
        assert pool.pending == 0
    finally:
        pool.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_note_is_said_once(database: ServerDatabase) -> None:
    """And not again by who finds nothing to decide: its client has gone."""
    environ = {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_POOL_SIZE": "1", **database.environ}
    found = settings.read({name.encode(): value.encode() for name, value in environ.items()})
    parsed = found.database.server
    assert parsed is not None
    Breaker(str(database.directory), parsed).set(parsed.hosts[0], DOWN)
    make_due(database)
    reasons: list[str] = []
    said: list[str] = []

    def answer(question: Question, verdict: Verdict | None, notes: list[str]) -> None:
        question.answered = True
        reasons.append(verdict.reason if verdict else "")
        said.extend(notes)

    pool = Pool(found, answer, Messages())
    try:
        for number, has_left in enumerate((False, True, False)):
            peer: Any = SimpleNamespace(has_left=lambda has_left=has_left: has_left)
            envelope = Envelope("policy", CLIENT, b"%d@example.org" % number, b"b@example.net")
            question = Question(peer, envelope, found, None, [])
            question.decision.advance()
            if has_left:
                question.started -= 1.5 * LONG
            pool.decide([question])

            def is_answered(number: int = number) -> bool:
                pool.tick()
                return len(reasons) > number

            wait_until(is_answered, "it is answered")
    finally:
        pool.close()
    assert reasons == ["new", "", "new"]
    assert [note.partition(" after ")[0] for note in said] == [
        f"note {parsed.hosts[0]} answers again"
    ]


# --- drivers in threads ---------------------------------------------------------------------------


@on_every_server
def test_connections_of_several_threads_have_their_own_limits(database: ServerDatabase) -> None:
    """One that has time is not cut short by one that has none, and does not take its limit away."""
    parsed = parse_url(database.url)
    driver = drivers.load(parsed)[1]
    pause = "SELECT pg_sleep(1.5)" if parsed.dialect == "postgresql" else "SELECT SLEEP(1.5)"

    def wait(seconds: float) -> str:
        connection = driver.Connection(parsed, parsed.hosts[0], seconds, 1)
        try:
            connection.run(pause, (), seconds)
        except faults.Fault as fault:
            return fault.kind
        else:
            return "answered"
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(wait, [30, 1, 30, 1, 30, 1]))
    assert found[::2] == ["answered"] * 3
    assert set(found[1::2]) <= {faults.SILENT, faults.LOCKED}
