"""What comes in one turn is looked up and written together, and comes out as if each had come
alone: in the verdicts, in the rows, and where one of it is at fault.
"""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert

from greycheck.envelope import Envelope
from greycheck.policy import Change, Decision, Verdict
from greycheck.resident import batch_store
from greycheck.resident.file_store import FileStore
from greycheck.resident.messages import Messages
from greycheck.resident.peers import Peer
from greycheck.resident.questions import Question
from greycheck.settings import Settings, read
from greycheck.store import base, causes, writing
from greycheck.store.causes import Busy, WrongSchema
from greycheck.store.schema import tables
from tests.support import SQLiteFile
from tests.test_identity import authorise, written
from tests.test_schedules import NOW

SENDERS = [b"%d@example.org" % number for number in range(200)]
YEAR = 365 * 86400


class Turns:
    """The resident's store over the file PATH, and what it answered, by sender."""

    def __init__(self, path: Path, **settings: str) -> None:
        environ = {b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DATABASE": bytes(path)}
        environ |= {
            b"GREYCHECK_" + name.upper().encode(): value.encode()
            for name, value in settings.items()
        }
        self.settings: Settings = read(environ)
        self.warnings: list[str] = []
        self.answers: list[tuple[bytes, Verdict]] = []
        self.store = FileStore(self.settings, self._answer, Messages(), self.warnings.append)

    def _answer(self, question: Question, verdict: Verdict | None, _notes: list[str]) -> None:
        assert verdict is not None
        question.answered = True
        self.answers.append((question.envelope.sender, verdict))

    def ask(self, envelopes: Sequence[Envelope], now: int = NOW) -> None:
        """Has ENVELOPES decided in one turn, but for what has to be written."""
        questions = []
        for envelope in envelopes:
            question = Question(Peer(-1, "test"), envelope, self.settings, None, [])
            question.decision = Decision(envelope, self.settings, now)
            assert question.decision.advance()
            questions.append(question)
        self.store.decide(questions)

    def turn(self, envelopes: Sequence[Envelope], now: int = NOW) -> list[tuple[bytes, str]]:
        """Has ENVELOPES decided in one turn; returns senders and reasons, in the order asked."""
        self.answers.clear()
        self.ask(envelopes, now)
        self.store.tick()
        return self.reasons(envelopes)

    def reasons(self, envelopes: Sequence[Envelope]) -> list[tuple[bytes, str]]:
        """The senders and reasons of what was answered, in the order of ENVELOPES."""
        assert len(self.answers) == len(envelopes)
        order = {envelope.sender: place for place, envelope in reversed([*enumerate(envelopes)])}
        found = sorted(self.answers, key=lambda answer: order[answer[0]])
        return [(sender, verdict.reason) for sender, verdict in found]

    def counted(self, envelopes: Sequence[Envelope], now: int = NOW) -> Counter[str]:
        """How often each reason was given for ENVELOPES in one turn."""
        return Counter(reason for _sender, reason in self.turn(envelopes, now))


@pytest.fixture
def path(tmp_path: Path, empty_store: Path) -> Path:
    """An empty store."""
    return Path(shutil.copy(empty_store, tmp_path / "greycheck.db"))


@pytest.fixture
def started() -> Iterator[Callable[..., Turns]]:
    """Opens stores, and closes them."""
    opened: list[Turns] = []

    def start(path: Path, **settings: str) -> Turns:
        opened.append(Turns(path, **settings))
        return opened[-1]

    yield start
    for each in opened:
        each.store.close()


@pytest.fixture
def turns(path: Path, started: Callable[..., Turns]) -> Turns:
    """The resident's store, in which neither a client nor a pool lets anything pass."""
    return started(path, client_passes="0", pool_networks="0")


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection to it."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


def envelope(
    sender: bytes, client: str = "192.0.2.1", recipient: bytes = b"bob@example.net"
) -> Envelope:
    return Envelope("policy", client, sender, recipient)


MANY = [envelope(sender) for sender in SENDERS]


def rows(path: Path, columns: str = "*", table: str = "triplet") -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()


def turns_of(step: int) -> list[list[Envelope]]:
    """The mail of one STEP of what follows: the same again, from the same clients, from others of
    their networks, and from other networks.
    """
    found: list[list[Envelope]] = [[], [], []]
    for n in range(200):
        third, last = n % 7 + (step if n % 5 == 1 else 0), step if n % 3 == 0 else 1
        client = f"{40 + 10 * (n % 3)}.{n % 40}.{third}.{last}"
        sender = b"u@d%d.example" % (n % 60) if n % 50 else b""
        recipient = b"%db@example.net" % n if n % 4 else b"bob@example.net"
        found[0 if n < 60 else 1 if n < 120 else 2].append(envelope(sender, client, recipient))
    return found


def test_two_hundred_are_as_if_each_had_come_alone(
    path: Path, tmp_path: Path, empty_store: Path, started: Callable[..., Turns]
) -> None:
    """In their verdicts and in all tables, through all that may happen to a mail."""
    alone = Path(shutil.copy(empty_store, tmp_path / "alone.db"))
    for database in (SQLiteFile(path), SQLiteFile(alone)):
        for number in range(0, 60, 3):
            authorise(database, "40.0.0.0/12", domain=f"d{number}.example")
        authorise(database, "40.16.0.0/12", domain="x", source="refused", state="")
        authorise(database, "50.0.0.0/8", domain="let-in.example", source="provider", state="")
        authorise(database, "40.1.0.0/16", domain="d1.example", state="none", source="pool")
        authorise(database, "60.1.0.0/16", domain="d2.example", state="", until=NOW)
        for number in range(0, 60, 7):
            written(database, b"u@d%d.example" % number, b"bob@example.net", NOW + YEAR)
        database.execute(
            insert(tables.rule).values(
                match_key=base.digest(b"sender\0u@d5.example"),
                kind="sender",
                pattern="from:u@d5.example",
                action="reject",
                comment="",
                created_at=NOW,
            )
        )
    settings = {"learn_outbound": "60d", "domain_passes": "3", "strikes": "2"}
    together, singly = started(path, **settings), started(alone, **settings)
    told: set[str] = set()
    for step, now in enumerate((0, 5, 20, 400, 410, 7600, 40 * 86400)):
        # In turns in which no two are of one pair: alone, the second would find the first.
        for turn in turns_of(step):
            found = []
            for asked, at_once in ((together, len(turn)), (singly, 1)):
                asked.answers.clear()
                for start in range(0, len(turn), at_once):
                    asked.ask(turn[start : start + at_once], NOW + now)
                asked.store.tick()
                found.append(
                    sorted(
                        (sender, each.action, each.reason, each.wait, each.detail)
                        for sender, each in asked.answers
                    )
                )
            assert found[0] == found[1]
            told.update(reason for _sender, _action, reason, *_ in found[0])
    assert {"new", "early", "known", "retry", "client", "domain"} <= told
    assert {"provider", "rule", "correspondent", "pool"} <= told
    for table in ("triplet", "client", "domain", "authorised"):
        columns = "*" if table != "triplet" else ", ".join(tables.triplet.c.keys())
        assert rows(path, columns, table) == rows(alone, columns, table)


def test_they_take_few_statements(turns: Turns) -> None:
    turns.turn([])
    statements: list[str] = []
    turns.store._open()._connection.set_trace_callback(statements.append)
    turns.turn(MANY)
    kinds = Counter(" ".join(statement.split()[:2]) for statement in statements)
    looks = 2 * -(-len(MANY) // batch_store.TOGETHER)
    assert kinds["WITH asked(wanted,"] + kinds["WITH asked(domain_key,"] == looks
    assert kinds["INSERT INTO"] == len(MANY)
    assert kinds["SELECT count(*)"] < 20  # what waits of the network, now and then, and in all
    assert len(kinds) == 8


def test_a_hundred_of_a_kind_are_one_row_and_one_attempt(turns: Turns, path: Path) -> None:
    found = turns.counted([envelope(SENDERS[n // 2]) for n in range(200)])
    assert found == {"new": 100, "early": 100}
    assert rows(path, "count(*), sum(early_attempts)") == [(100, 0)]
    # Each of them counts one early attempt, and no more.
    found = turns.counted([envelope(SENDERS[n // 2]) for n in range(200)], NOW + 60)
    assert found == {"early": 200}
    assert rows(path, "count(*), sum(early_attempts)") == [(100, 100)]
    found = turns.counted([envelope(SENDERS[n // 2]) for n in range(200)], NOW + 400)
    assert found == {"retry": 100, "known": 100}
    assert rows(path, "count(*), sum(passes)") == [(100, 100)]


def test_an_early_attempt_leaves_the_end_of_its_row_unless_that_has_changed(
    turns: Turns, path: Path, started: Callable[..., Turns]
) -> None:
    ends = "DISTINCT first_attempt, last_attempt, early_attempts, expires_at"
    window = turns.settings.retry_window
    turns.turn(MANY)
    assert turns.counted(MANY, NOW + 60) == {"early": 200}
    assert rows(path, ends) == [(NOW, NOW + 60, 1, NOW + window)]
    shorter = started(path, client_passes="0", pool_networks="0", retry_window="1h")
    assert shorter.counted(MANY, NOW + 120) == {"early": 200}
    assert rows(path, ends) == [(NOW, NOW + 120, 2, NOW + 3600)]
    # Under a clock that was wrong it begins anew.
    assert turns.counted(MANY, NOW - 7200) == {"early": 200}
    assert rows(path, ends) == [(NOW - 7200, NOW - 7200, 3, NOW - 7200 + window)]


# --- others who write -----------------------------------------------------------------------------

QUICKER = (
    "INSERT INTO triplet SELECT triplet_key, network, sender, recipient, :now - 60, :now - 60, 0,"
    " 0, NULL, :now + 9999, origin, authorised FROM kept.triplet"
    " WHERE CAST(sender AS INTEGER) % 40 = 0"
)


def kept(path: Path, other: sqlite3.Connection) -> None:
    """Lets OTHER have the rows of the file PATH, as they are, under the name kept."""
    copy = path.with_name("kept.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    other.execute("ATTACH ? AS kept", [str(copy)])


def test_rows_that_another_process_was_quicker_to_write(
    turns: Turns, path: Path, other: sqlite3.Connection
) -> None:
    turns.turn(MANY)
    kept(path, other)
    other.execute("DELETE FROM main.triplet")
    turns.answers.clear()
    turns.ask(MANY)
    assert turns.answers == []
    other.execute(QUICKER, {"now": NOW})
    turns.store.tick()
    assert Counter(reason for _sender, reason in turns.reasons(MANY)) == {"new": 195, "early": 5}
    assert rows(path, "count(*)") == [(200,)]
    assert rows(path, "early_attempts, count(*)", "triplet GROUP BY 1") == [(0, 195), (1, 5)]
    assert not turns.store.pending


def test_rows_that_it_changed_or_removed_meanwhile(
    turns: Turns, path: Path, other: sqlite3.Connection
) -> None:
    turns.turn(MANY)
    turns.answers.clear()
    turns.ask([*MANY, envelope(b"one@example.org")], NOW + 60)
    other.execute(
        "UPDATE triplet SET last_attempt = ?, early_attempts = 7 WHERE sender = '1@example.org'",
        [NOW + 30],
    )
    other.execute("DELETE FROM triplet WHERE sender = '2@example.org'")
    turns.store.tick()
    # Early ones are answered before they are counted; those that somebody else has changed are
    # not counted.
    assert Counter(verdict.reason for _sender, verdict in turns.answers) == {"early": 200, "new": 1}
    assert rows(path, "early_attempts, count(*)", "triplet GROUP BY 1") == [
        (0, 1),
        (1, 198),
        (7, 1),
    ]


@pytest.fixture
def undone(
    turns: Turns, path: Path, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> list[Callable[[], object]]:
    """What MANY wait for, as OTHER has written some of them: calls that are made as soon as all is
    undone because of that.
    """
    turns.turn(MANY)
    kept(path, other)
    other.execute("DELETE FROM main.triplet")
    turns.answers.clear()
    turns.ask(MANY)
    other.execute(QUICKER, {"now": NOW})
    roll_back, save_together = batch_store.Store.roll_back, batch_store.Store.save_together
    calls: list[Callable[[], object]] = []
    faults: list[causes.Again] = []

    def noting(store: batch_store.Store, changes: list[tuple[base.Asked, Change]]) -> None:
        try:
            save_together(store, changes)
        except causes.Again as fault:
            faults.append(fault)
            raise

    def and_then(store: batch_store.Store) -> None:
        roll_back(store)
        while faults and calls:
            calls.pop()()

    monkeypatch.setattr(batch_store.Store, "save_together", noting)
    monkeypatch.setattr(batch_store.Store, "roll_back", and_then)
    return calls


def test_the_lock_is_lost_again_where_each_is_to_be_written_by_itself(
    turns: Turns, path: Path, other: sqlite3.Connection, undone: list[Callable[[], object]]
) -> None:
    undone.append(lambda: other.execute("BEGIN IMMEDIATE"))
    turns.store.tick()
    assert not undone
    for _ in range(2):
        assert turns.answers == []
        assert turns.store.pending == 200
        turns.store.tick()
    other.execute("COMMIT")
    turns.store.tick()
    assert Counter(reason for _sender, reason in turns.reasons(MANY)) == {"new": 195, "early": 5}
    assert rows(path, "count(*)") == [(200,)]


def test_a_newer_schema_comes_there(
    turns: Turns, path: Path, other: sqlite3.Connection, undone: list[Callable[[], object]]
) -> None:
    """Nothing is answered: the program that is installed is to decide."""
    undone.append(lambda: other.execute("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WrongSchema):
        turns.store.tick()
    assert turns.answers == []
    assert turns.store.pending == 200
    assert rows(path, "count(*)") == [(5,)]


def test_who_waits_for_the_lock_is_written_with_those_that_come_later(
    turns: Turns, path: Path, other: sqlite3.Connection
) -> None:
    other.execute("BEGIN IMMEDIATE")
    assert turns.turn([]) == []
    turns.ask(MANY[:100])
    turns.store.tick()
    assert turns.store.pending == 100
    other.execute("COMMIT")
    turns.ask(MANY[90:])
    turns.store.tick()
    assert Counter(verdict.reason for _sender, verdict in turns.answers) == {
        "new": 200,
        "early": 10,
    }
    assert rows(path, "count(*), sum(early_attempts)") == [(200, 0)]


# --- faults ---------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_read_hides_no_other(turns: Turns, path: Path) -> None:
    turns.turn(MANY)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(
            "UPDATE triplet SET passed_at = CAST(x'ff' AS TEXT) WHERE sender = '77@example.org'"
        )
        other.execute("UPDATE triplet SET first_attempt = 'soon' WHERE sender = '78@example.org'")
        other.execute(
            "UPDATE triplet SET early_attempts = 9223372036854775807"
            " WHERE sender = '79@example.org'"
        )
    found = dict(turns.turn(MANY, NOW + 60))
    assert (found.pop(b"77@example.org"), found.pop(b"78@example.org")) == ("error", "error")
    assert set(found.values()) == {"early"}
    assert rows(path, "count(*)", "triplet WHERE early_attempts = 1") == [(197,)]
    assert [line.rpartition(": ")[2] for line in turns.warnings] == ["1"]


def test_what_is_known_of_a_domain_and_cannot_be_read_hides_no_other(
    turns: Turns, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(
            "INSERT INTO spf VALUES (?, 'bad.example', CAST(x'ff' AS TEXT), '', 0, 1, 1, 0, 1, ?)",
            [base.domain_key(b"bad.example"), NOW + YEAR],
        )
    envelopes = [*MANY[:100], envelope(b"a@bad.example"), *MANY[100:]]
    found = dict(turns.turn(envelopes))
    assert found.pop(b"a@bad.example") == "error"
    assert set(found.values()) == {"new"}
    assert rows(path, "count(*)") == [(200,)]


def test_one_that_cannot_be_written_among_two_hundred(
    turns: Turns, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = writing.statement
    values = batch_store.triplet_values

    def failing(asked: base.Asked, change: Change) -> tuple[str, tuple[object, ...]]:
        if asked.envelope.sender == b"100@example.org":
            raise ZeroDivisionError
        return values(asked, change)

    def failing_too(change: Change) -> str:
        if change is bad.decision.changes[0]:
            raise ZeroDivisionError
        return statement(change)

    monkeypatch.setattr(batch_store, "triplet_values", failing)
    monkeypatch.setattr(batch_store, "statement", failing_too)
    turns.ask(MANY)
    (bad,) = [q for q, _ in turns.store._unwritten if q.envelope.sender == b"100@example.org"]
    turns.store.tick()
    found = dict(turns.reasons(MANY))
    assert found.pop(b"100@example.org") == "error"
    assert set(found.values()) == {"new"}
    assert rows(path, "count(*)") == [(199,)]


def test_a_lock_at_the_first_look_is_waited_for(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file is recovered after a crash: no look-up works, together or alone."""

    def busy(*_arguments: object) -> None:
        raise Busy("recovering")

    monkeypatch.setattr(batch_store.Store, "look_ahead", lambda *_: None)
    monkeypatch.setattr(batch_store.Store, "lookup", busy)
    turns.ask(MANY)
    assert turns.answers == []
    assert turns.store.pending == 200
    monkeypatch.undo()
    turns.store.tick()
    assert {verdict.reason for _sender, verdict in turns.answers} == {"new"}


def test_a_disk_that_is_full(turns: Turns, path: Path) -> None:
    """SQLite's own limit stands for the disk: it undoes the whole transaction."""
    store = turns.store._open()
    pages = store._run("PRAGMA page_count").fetchone()[0]
    store._run(f"PRAGMA max_page_count = {pages + 1}")
    turns.turn(MANY)
    assert {verdict.reason for _sender, verdict in turns.answers} == {"error"}
    assert {verdict.detail for _sender, verdict in turns.answers} == {
        f"error={path}: database or disk is full (SQLITE_FULL)"
    }
    assert rows(path, "count(*)") == [(0,)]
    store._run("PRAGMA max_page_count = 100000")
    assert turns.counted(MANY) == {"new": 200}
    assert rows(path, "count(*)") == [(200,)]
