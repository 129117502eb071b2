"""A batch that is killed: before each of its statements, at each line from which on it writes, and
with the resident that decides it, whose clients go on by themselves; and a connection that ends at
each statement.

Each time the store has all changes of the batch or none, and whoever decides the same attempts
again makes it what it would have become without the kill.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import delete, insert, select

from greycheck import check, rule_keys
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.resident import together
from greycheck.resident.messages import Messages
from greycheck.resident.pool import Pool
from greycheck.resident.questions import Question
from greycheck.resident.together import Shared, Store
from greycheck.rules import patterns
from greycheck.settings import Settings
from greycheck.store import compiled_postgresql, server
from greycheck.store.admin import rulebook
from greycheck.store.admin.engine import open_engine
from greycheck.store.schema import tables
from tests.resident.resident import DEFERRED, Resident
from tests.resident.test_kill import ALONE, CLOSED
from tests.resident.test_pool import each_kind, marks
from tests.resident.test_stopped import stopped
from tests.resident.test_together import DELAY, NOW, Batches, questions_of, settings_of
from tests.servers import Postgres, wait_until
from tests.support import ACCEPTED as EXIT_ACCEPTED
from tests.support import DEFERRED as EXIT_DEFERRED
from tests.support import RECIPIENT, Child, ServerDatabase
from tests.test_identity import authorise

# The tables that a batch writes to.
WRITTEN = (tables.triplet, tables.client, tables.domain, tables.authorised, tables.rule)

# When the batch is decided; and when mail was first tried that had passed by NOW.
THEN = NOW + DELAY
LONG_AGO = NOW - 3 * DELAY

# What waits since NOW, and passes in the batch: a new client, one that has passed before, a domain
# that is new, one that has passed before, and one that a pool sends for.
DUE = (
    ("192.0.3.1", b"due@due.example"),
    ("192.0.4.1", b"two@two.example"),
    ("198.51.1.1", b"due@held0.example"),
    ("198.51.2.2", b"two@held1.example"),
    ("198.51.8.1", b"due@pooled.example"),
)
PASSED = (("192.0.4.1", b"one@two.example"), ("198.51.3.1", b"one@held1.example"))
KNOWN = ("192.0.8.1", b"known@known.example")
EARLY = ("192.0.5.1", b"early@early.example")
NEW = (*((f"192.0.6{n}.1", b"%d@new.example" % n) for n in range(3)),)
EXPECTED = ("192.0.7.1", b"friend@expected.example")

# Who changes a triplet's row alone; and how much of a batch is written.
FIRST = [sender for _client, sender in (*NEW, EARLY)]
NOTHING, TRIPLETS, ALL = range(3)

# The reasons of the batch, and those of the same attempts once it is committed.
REASONS = [*["new"] * len(NEW), "early", *["retry"] * len(DUE), "expected", "known"]
AGAIN = [*["early"] * len(NEW), "early", "known", "client", *["known"] * 5]

Told = list[bytes]
Contents = dict[str, list[tuple[object, ...]]]


def mails(*given: tuple[str, bytes]) -> list[Envelope]:
    return [Envelope("policy", client, sender, RECIPIENT) for client, sender in given]


class Noting(Store):
    """A store that remembers what kinds of changes it has made."""

    def __init__(self, found: Settings) -> None:
        super().__init__(found, 20, Shared())
        self.kinds: set[str] = set()

    def save_all(self, batch: list[Any], written: Callable[[Any], None]) -> None:
        self.kinds |= {kind for one in batch for kind, _values in one.changes}
        super().save_all(batch, written)


class Scene:
    """DATABASE, where a batch is due that makes changes of every kind.

    ``before`` is what its tables hold, ``after`` what they hold once the batch is decided; where
    one statement writes what changes nothing but a triplet, that comes ``first``.
    """

    def __init__(self, database: ServerDatabase) -> None:
        self.database = database
        given = {"client_passes": 2, "domain_passes": 2, "pool_size": 1}
        self.settings = settings_of(database, **given)
        self._prepare()
        self.before = self.contents()
        store = Noting(self.settings)
        verdicts, lost = Batches(self.settings, store).decide(self.questions())
        store.close()
        assert not lost
        assert store.kinds == set(together.ORDER)
        assert [verdict and verdict.reason for verdict in verdicts] == REASONS
        self.after = self.contents()
        self.restore()
        self.first = self.before
        if isinstance(database.server, Postgres):
            alone = Batches(self.settings)
            assert alone.ask(mails(*NEW, EARLY), THEN) == REASONS[: len(FIRST)]
            alone.store.close()
            self.first = self.contents()
            self.restore()

    def _prepare(self) -> None:
        self.database.empty()
        for number in range(2):
            authorise(self.database, "198.51.0.0/20", domain=f"held{number}.example")
        authorise(self.database, "198.51.8.0/24", domain="pooled.example", source="pool", state="")
        engine = open_engine(self.database.url)
        expected = patterns.expectation(f"to:{RECIPIENT.decode()}", "expected.example")
        rulebook.put(engine, expected, rule_keys.ALLOW, None, "", None, NOW)
        engine.dispose()
        earlier = Batches(self.settings)
        assert earlier.ask(mails(*PASSED, KNOWN), LONG_AGO) == ["new"] * 3
        assert earlier.ask(mails(*PASSED, KNOWN), LONG_AGO + DELAY) == ["retry"] * 3
        assert earlier.ask(mails(*DUE), NOW) == ["new"] * len(DUE)
        assert earlier.ask(mails(EARLY), THEN - 10) == ["new"]
        earlier.store.close()

    def questions(self) -> list[Question]:
        """The questions of the batch; that about the known one changes nothing."""
        return questions_of(self.settings, mails(*NEW, EARLY, *DUE, EXPECTED, KNOWN), THEN)

    def contents(self) -> Contents:
        return {
            table.name: sorted(self.database.rows(select(table)), key=repr) for table in WRITTEN
        }

    def restore(self) -> None:
        """Makes the contents those of before."""
        with self.database.begin() as connection:
            for table in WRITTEN:
                connection.execute(delete(table))
                names = [column.name for column in table.columns]
                if rows := self.before[table.name]:
                    connection.execute(
                        insert(table), [dict(zip(names, row, strict=True)) for row in rows]
                    )

    def decide_as_children(self) -> list[str]:
        """Decides the same attempts one by one, on another connection; the reasons."""
        alone = self.database.connect(20)
        verdicts = [check.check(alone, each.decision).verdict() for each in self.questions()]
        alone.close()
        assert not [verdict.unrecorded for verdict in verdicts if verdict.unrecorded]
        return [verdict.reason for verdict in verdicts]

    def written(self, told: Told) -> int:
        """How much of the batch was committed: NOTHING, TRIPLETS alone, or ALL of it.

        What was TOLD as a verdict that changes anything was.
        """
        found = self.contents()
        if found == self.after:
            return ALL
        if found == self.before:
            assert set(told) <= {KNOWN[1]}
            return NOTHING
        assert found == self.first
        assert set(told) <= {KNOWN[1], *FIRST}
        return TRIPLETS


@pytest.fixture
def scene(database: ServerDatabase) -> Scene:
    return Scene(database)


# --- the process ----------------------------------------------------------------------------------


def forked(scene: Scene, prepare: Callable[[Callable[[bytes], object]], None]) -> tuple[bool, Told]:
    """Decides the batch in a process of its own, which calls PREPARE before.

    Returns whether it was killed, and whose verdicts it has told. PREPARE is given a function that
    adds to these.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            store = Store(scene.settings, 20, Shared())
            questions = scene.questions()

            def say(text: bytes) -> None:
                os.write(writer, text + b"\n")

            prepare(say)
            store.begin(20)
            together.decide(
                store,
                dict.fromkeys(questions),
                Messages().first_passed,
                lambda question, _verdict: say(question.envelope.sender),
            )
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as told:
        said = told.read().split()
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status), said


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(number: int) -> Callable[[object], None]:
    """Has this process die before its statement of that NUMBER; 0: after it has committed."""

    def prepare(_say: object) -> None:
        run, left = server.Session.run, [number]

        def running(session: Any, sql: str, *given: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                die()
            found = run(session, sql, *given)
            if sql == "COMMIT" and number == 0:
                die()
            return found

        server.Session.run = running  # type: ignore[method-assign, assignment]

    return prepare


@each_kind
def test_killed_before_any_statement_a_batch_has_written_nothing(scene: Scene) -> None:
    number = 1
    while True:
        is_killed, told = forked(scene, dying_before(number))
        if not is_killed:
            break
        found = scene.written(told)
        assert found != ALL, number
        first = AGAIN if found == TRIPLETS else REASONS
        assert scene.decide_as_children() == first[: len(FIRST)] + REASONS[len(FIRST) :]
        assert scene.contents() == scene.after, number
        scene.restore()
        number += 1
    # Those of the look-up and of the rules, a query or more of what waits, one for each kind of
    # change, and what is around them.
    assert number > 3 + len(together.ORDER) + 3
    assert scene.written(told) == ALL


@each_kind
def test_killed_before_it_answers_a_batch_has_written_all(scene: Scene) -> None:
    is_killed, told = forked(scene, dying_before(0))
    assert is_killed
    assert told[0] == KNOWN[1]
    assert set(told[1:]) <= set(FIRST)
    assert scene.written(told) == ALL
    assert scene.decide_as_children() == AGAIN
    assert scene.contents() == scene.after


def tracing(met: Callable[[int], object]) -> None:
    """Has MET called with the number of each line of ``together`` from where on a batch writes."""
    is_writing = False

    def of_line(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and is_writing:
            met(frame.f_lineno)
        return of_line

    def of_call(frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal is_writing
        if frame.f_code.co_filename != together.__file__:
            return None
        is_writing = is_writing or frame.f_code.co_name == "save_all"
        return of_line

    sys.settrace(of_call)


@each_kind
def test_killed_at_any_line_a_batch_has_written_all_or_nothing(scene: Scene) -> None:
    def dying_at(line: int) -> Callable[[object], None]:
        return lambda _say: tracing(lambda met: die() if met == line else None)

    def noting(say: Callable[[bytes], object]) -> None:
        tracing(lambda met: say(b"line=%d" % met))

    _is_killed, told = forked(scene, noting)
    assert scene.written([]) == ALL
    scene.restore()
    lines = [int(each[5:]) for each in dict.fromkeys(told) if each.startswith(b"line=")]
    committed = []
    for line in lines:
        is_killed, told = forked(scene, dying_at(line))
        assert is_killed, line
        committed.append(scene.written(told))
        if committed[-1] != NOTHING:
            scene.restore()
    assert committed == sorted(committed)
    assert committed.count(ALL) >= 3
    assert len(committed) - committed.count(ALL) >= 20
    assert (TRIPLETS in committed) == (scene.first != scene.before)
    assert scene.decide_as_children() == REASONS
    assert scene.contents() == scene.after


# --- the connection -------------------------------------------------------------------------------


def end_connection(database: ServerDatabase, store: Store) -> None:
    """Ends STORE's connection, on the server, and waits until that is done."""
    store._connect()
    is_postgresql = isinstance(database.server, Postgres)
    query = "SELECT pg_backend_pid()" if is_postgresql else "SELECT CONNECTION_ID()"
    command = "SELECT pg_terminate_backend({}, 60000)" if is_postgresql else "KILL {}"
    number = store._session.run(query, (), 20)[0][0][0]
    database.server.sql(command.format(number), "")


def decided(scene: Scene) -> list[str]:
    """The reasons of a pool that is asked the batch's questions at once."""
    verdicts: dict[Question, Verdict] = {}

    def answer(question: Question, verdict: Verdict | None, _notes: list[str]) -> None:
        assert verdict is not None
        question.answered = True
        verdicts[question] = verdict

    pool = Pool(scene.settings, answer, Messages())
    questions = scene.questions()
    try:
        pool.decide(questions)

        def all_are() -> bool:
            pool.tick()
            return len(verdicts) == len(questions)

        wait_until(all_are, "all are answered")
    finally:
        pool.close()
    assert not [verdict.unrecorded for verdict in verdicts.values() if verdict.unrecorded]
    return [verdicts[question].reason for question in questions]


@each_kind
def test_a_connection_that_ends_before_any_statement_costs_no_verdict_and_counts_nothing_twice(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Store._answer
    left = 0

    def ending(store: Store, sql: str, values: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            end_connection(scene.database, store)
        return works(store, sql, values)

    monkeypatch.setattr(Store, "_answer", ending)
    number = 0
    while left <= 0:
        number += 1
        left = number
        assert decided(scene) == REASONS, number
        assert scene.contents() == scene.after, number
        scene.restore()
    assert number > 3 + len(together.ORDER) + 3
    assert marks(scene.database) == []


@each_kind
def test_a_commit_whose_answer_is_lost_counts_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Store._answer
    lost: list[str] = []

    def ending(store: Store, sql: str, values: Any) -> Any:
        found = works(store, sql, values)
        if lost and sql.startswith(lost[0]):
            lost.clear()
            end_connection(scene.database, store)
            return works(store, "SELECT 1", ())
        return found

    monkeypatch.setattr(Store, "_answer", ending)
    number = len(FIRST)
    expected = {"COMMIT": AGAIN}
    if isinstance(scene.database.server, Postgres):
        expected["COMMIT"] = REASONS[:number] + AGAIN[number:]
        expected[compiled_postgresql.WRITE_TRIPLETS[0]] = AGAIN[:number] + REASONS[number:]
    for statement, reasons in expected.items():
        lost[:] = [statement]
        assert decided(scene) == reasons
        assert not lost
        assert scene.contents() == scene.after
        scene.restore()


# --- the resident, and who has asked it -----------------------------------------------------------

# A resident that dies at a point of the first batch that somebody whose name begins with "new" is
# in.
KILLED = """
import os, signal, threading
from greycheck.resident import together
here = threading.local()

def reach(point):
    if point == "{point}" and getattr(here, "is_marked", False):
        os.kill(os.getpid(), signal.SIGKILL)

def around(name, before, after, of=lambda *given: True):
    works = getattr(together.Store, name)
    def instead(*given, **more):
        if of(*given):
            reach(before)
        found = works(*given, **more)
        if of(*given):
            reach(after)
        return found
    setattr(together.Store, name, instead)

around("look_up", "it looks up", "")
around("what_waits", "", "it has asked what waits")
around("_change", "", "it has written")
around("_save_triplets", "it commits", "it has committed")
around("_end", "it commits", "it has committed", lambda store, how, done: how == "COMMIT")
decide = together.decide

def marked(store, rest, *given):
    here.is_marked = any(each.envelope.sender.startswith(b"new") for each in rest)
    return decide(store, rest, *given)

together.decide = marked
from greycheck.cli.main import cli
cli(prog_name="greycheck")
"""

POINTS = (
    *("it looks up", "it has asked what waits", "it has written", "it commits"),
    "it has committed",
)


def connected(resident: Resident) -> int:
    """How many connections there are to the resident's socket, taken or not."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {resident.socket}") for line in lines)


@each_kind
def test_children_whose_resident_is_killed_within_a_batch_go_on_and_so_does_the_next_one(
    database: ServerDatabase, natives: Path, place: Path
) -> None:
    settings = {"client_passes": "0", "pool_networks": "0", "network_limit": "0"}
    child = Child(natives, database, place / "socket")
    child.settings |= {f"GREYCHECK_{name.upper()}": value for name, value in settings.items()}
    now = int(time.time())
    is_one_statement = isinstance(database.server, Postgres)
    for number, point in enumerate(POINTS):
        if point == "it has written" and is_one_statement:
            continue
        program = ["-c", KILLED.format(point=point)]
        resident = Resident(place, settings, database, program=program)
        try:
            # It goes on after the one before.
            assert resident.wait().ask(sender=f"next{number}@example.org") == DEFERRED
            for kind, ago in ("early", 100), ("due", 400):
                found = resident.ask_as(
                    "smtpextfork",
                    sender=f"{kind}{number}@example.org",
                    greycheck_time=f"{now - ago}",
                )
                assert " reason=new " in found["log"]
            kinds = ("new", "early", "due")
            with ThreadPoolExecutor(len(kinds)) as pool:
                with stopped(resident):
                    before = connected(resident)
                    asking = [
                        pool.submit(child.smtpextfork, f"{kind}{number}@example.org")
                        for kind in kinds
                    ]
                    wait_until(
                        lambda: connected(resident) == before + len(kinds),  # noqa: B023
                        "all have asked",
                    )
                new, early, due = (each.result() for each in asking)
            assert resident.end() == -signal.SIGKILL, point
        finally:
            resident.stop(signal.SIGKILL)
        assert new.verdict in ((EXIT_DEFERRED, "new"), (EXIT_DEFERRED, "early")), point
        assert early.verdict == (EXIT_DEFERRED, "early"), point
        assert due.verdict in ((EXIT_ACCEPTED, "retry"), (EXIT_ACCEPTED, "known")), point
        assert f"{CLOSED}{ALONE}" in new.log, point
        assert not [ran for ran in (new, early, due) if "unrecorded=" in ran.log], point
        assert database.rows(
            "SELECT early_attempts, passes FROM triplet"
            f" WHERE sender LIKE '%{number}@example.org' AND sender NOT LIKE 'next%'"
            " ORDER BY sender"
        ) == [(0, 1), (1, 0), (0, 0)], point
    with Resident(place, settings, database).wait() as resident:
        assert resident.ask(sender="last@example.org") == DEFERRED
        assert resident.reasons()[-1] == "new"
        assert resident.warnings() == []
    assert marks(database) == []
