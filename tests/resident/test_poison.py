"""A question that cannot be decided, or written, among many that can: it alone is answered by
``on_error``, as a forked child would.
"""

import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import update

from greycheck.store.schema.tables import triplet
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Resident, request
from tests.resident.test_stopped import stopped
from tests.resident.test_unforeseen import FAULT, OF_SENDER, faulty
from tests.support import Child, Database, SQLiteFile, on_every_database, on_every_server

MANY = 100

# The largest number that a column takes: what counts on from there cannot be written.
LARGEST = {"sqlite": (1 << 63) - 1, "server": (1 << 31) - 1}


def ask_together(resident: Resident, questions: list[bytes]) -> list[str]:
    """The actions that QUESTIONS are answered with, which come at once."""
    with ExitStack() as connected:
        peers = [connected.enter_context(resident.peer()) for _ in questions]
        for peer in peers:
            assert peer.ask(protocol_state="DATA") == "DUNNO"
        with stopped(resident):
            for peer, question in zip(peers, questions, strict=True):
                peer.send(question)
        return [peer.action() for peer in peers]


def among_others(*bad: bytes) -> list[bytes]:
    """BAD questions among MANY about new mail."""
    questions = [request(sender=f"{number}@good.example") for number in range(MANY)]
    for number, each in enumerate(bad):
        questions.insert((number + 1) * MANY // (len(bad) + 1), each)
    return questions


def reasons(resident: Resident) -> dict[str, str]:
    """The reasons of verdicts, by sender."""
    found = [line.partition(" reason=")[2] for line in resident.verdicts]
    return {
        each.partition("sender=<")[2].partition(">")[0]: each.partition(" ")[0] for each in found
    }


def all_good_are_new(resident: Resident) -> None:
    found = reasons(resident)
    assert {sender: found.get(sender) for sender in map("{}@good.example".format, range(MANY))} == {
        f"{number}@good.example": "new" for number in range(MANY)
    }
    assert resident.store.rows(
        "SELECT count(*) FROM triplet WHERE sender LIKE '%@good.example'"
    ) == [(MANY,)]


WRONG = {
    "text": "first_attempt = 'soon'",
    "blob": "last_attempt = x'00ff', first_attempt = x'00ff'",
    "huge": f"early_attempts = {LARGEST['sqlite']}, last_attempt = last_attempt - 100",
    "passed": "passed_at = 1, last_attempt = 'never', passes = 1",
    "key": "passes = 'x', passed_at = 1, last_attempt = last_attempt - 4000",
}


def test_rows_that_no_program_wrote(start: Start, child: Child) -> None:
    resident = start({"store": child.store}, client_passes="0", pool_networks="0")
    with resident.peer() as peer:
        for name in WRONG:
            assert peer.ask(sender=f"{name}@bad.example") == DEFERRED
    with closing(sqlite3.connect(child.database, isolation_level=None, timeout=60)) as other:
        for name, wrong in WRONG.items():
            other.execute(f"UPDATE triplet SET {wrong} WHERE sender = '{name}@bad.example'")
    by_child = {
        name: child.smtpextfork(
            f"{name}@bad.example", GREYCHECK_CLIENT_PASSES="0", GREYCHECK_POOL_NETWORKS="0"
        )
        for name in WRONG
    }
    ask_together(resident, among_others(*(request(sender=f"{name}@bad.example") for name in WRONG)))
    all_good_are_new(resident)
    found = reasons(resident)
    assert {name: found[f"{name}@bad.example"] for name in WRONG} == {
        name: ran.reason for name, ran in by_child.items()
    }
    assert {by_child["text"].reason, by_child["blob"].reason} == {"error"}
    assert by_child["huge"].reason == "early"
    assert " unrecorded=" in by_child["huge"].log
    assert "attempts or uses that were not recorded: 1" in resident.log()


@pytest.fixture
def child(database: Database, launchers: Path) -> Child:
    """A forked child beside the resident."""
    database.make()
    return Child(launchers, database)


@on_every_database
def test_counts_that_go_no_further(start: Start, child: Child) -> None:
    largest = LARGEST["sqlite" if isinstance(child.store, SQLiteFile) else "server"]
    settings = {"pool_networks": "0", "client_passes": "0"}
    child.settings |= {f"GREYCHECK_{name.upper()}": value for name, value in settings.items()}
    resident = start({"store": child.store}, **settings)
    assert resident.ask(sender="known@bad.example") == DEFERRED
    resident.age(400)
    assert resident.ask(sender="known@bad.example") == ACCEPTED
    resident.age(7200)
    assert resident.ask(sender="early@bad.example") == DEFERRED
    resident.age(10)
    child.store.execute(update(triplet).values(early_attempts=largest))
    child.store.execute(update(triplet).where(triplet.c.passes > 0).values(passes=largest))
    names = ("early", "known")
    ask_together(resident, among_others(*(request(sender=f"{name}@bad.example") for name in names)))
    all_good_are_new(resident)
    found = reasons(resident)
    for name in names:
        ran = child.smtpextfork(f"{name}@bad.example")
        assert ran.reason == found[f"{name}@bad.example"] == name
        assert " unrecorded=" in ran.log


IN_THE_STORE = {
    "deciding": ("greycheck.check", "decide"),
    "writing": ("greycheck.resident.batch_store", "Store.save"),
}


@pytest.mark.parametrize("fault", ["deciding", "writing"])
def test_a_fault_that_nobody_foresaw_is_one_questions_alone(start: Start, fault: str) -> None:
    resident = start(faulty(*IN_THE_STORE[fault], OF_SENDER), on_error="defer")
    bad = request(sender="boom@example.org")
    actions = ask_together(resident, among_others(bad, bad, bad))
    assert actions.count(FAULT) == 3
    all_good_are_new(resident)
    assert resident.ask(sender="after@example.org") == DEFERRED


def test_an_envelope_that_cannot_be_asked_about(start: Start) -> None:
    fault = faulty("greycheck.policy", "triplet", "arguments[0].sender == b'boom@example.org'")
    resident = start(fault, on_error="defer", observe_domains="example.com")
    actions = ask_together(resident, among_others(request(sender="boom@example.org")))
    assert actions.count(FAULT) == 1
    all_good_are_new(resident)


def test_one_that_cannot_be_answered(start: Start) -> None:
    """Not even by ``on_error``: its connection is closed, and that of nobody else."""
    wrong = "arguments[1].envelope.sender == b'boom@example.org'"
    resident = start(faulty("greycheck.resident.questions", "Writer.lines", wrong))
    with resident.peer() as peer:
        peer.send(request(sender="boom@example.org"))
        assert peer.is_closed()
    with ExitStack() as connected:
        peers = [connected.enter_context(resident.peer()) for _ in range(MANY + 1)]
        for peer in peers:
            assert peer.ask(protocol_state="DATA") == "DUNNO"
        with stopped(resident):
            for peer, question in zip(
                peers, among_others(request(sender="boom@example.org")), strict=True
            ):
                peer.send(question)
        assert [peer.is_closed() for peer in peers].count(True) == 1
    all_good_are_new(resident)


@on_every_server
def test_so_it_is_with_a_server(start: Start, database: Database) -> None:
    """More often than there are workers."""
    wrong = "arguments[0].envelope.sender == b'boom@example.org'"
    program = faulty("greycheck.policy", "Decision.take_rows", wrong)
    resident = start(program | {"store": database}, on_error="defer", pool_size="2")
    bad = request(sender="boom@example.org")
    for _ in range(3):
        assert ask_together(resident, [bad] * 3) == [FAULT] * 3
    assert ask_together(resident, among_others(bad, bad)).count(FAULT) == 2
    all_good_are_new(resident)


@pytest.mark.parametrize("pattern", ["CAST(x'fffe' AS TEXT)", "x'00'", "17"])
def test_a_rule_that_cannot_be_read_hides_no_other(start: Start, pattern: str) -> None:
    resident = start()
    assert isinstance(resident.store, SQLiteFile)
    with closing(sqlite3.connect(resident.store.path, isolation_level=None, timeout=60)) as other:
        other.execute(
            "INSERT INTO rule (match_key, kind, pattern, action, comment, created_at)"
            f" VALUES (x'00', 'sender', {pattern}, 'reject', '', 0)"
        )
    with resident.peer() as peer:
        for number in range(3):
            assert peer.ask(sender=f"{number}@example.org") == DEFERRED
            time.sleep(0.06)
    assert resident.reasons() == ["new"] * 3
    assert resident.warnings() == []
