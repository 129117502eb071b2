"""A resident whose schema is another program's, after an upgrade say: it decides nothing more, and
makes way for that program.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.resident.resident import ACCEPTED, DEFERRED, Peer, Resident, request
from tests.resident.test_stopped import stopped
from tests.support import ACCEPTED as EXIT_ACCEPTED
from tests.support import DEFERRED as EXIT_DEFERRED
from tests.support import Child, Database, SQLiteFile, on_every_database

REVISIONS = [
    ("9999", "the schema is at 9999, newer than this program's"),
    ("0001", "the schema is at 0001, older than this program's"),
]


def set_revision(store: Database, revision: str) -> str:
    """Has the schema say REVISION, as another program's would; what it said before."""
    [(before,)] = store.rows("SELECT version_num FROM alembic_version")
    store.execute(
        text("UPDATE alembic_version SET version_num = :revision").bindparams(revision=revision)
    )
    return str(before)


@pytest.fixture
def resident(place: Path, empty_store: Path, database: Database) -> Resident:
    """One for a test that ends it."""
    return Resident(place, {"client_passes": "0"}, database).wait()


def closed_by(resident: Resident, peers: list[Peer]) -> None:
    """RESIDENT ends by itself, and leaves PEERS without an answer."""
    for peer in peers:
        assert peer.is_closed()
        peer.close()
    assert resident.end() == 111


@on_every_database
@pytest.mark.parametrize(("revision", "said"), REVISIONS)
def test_it_decides_nothing_more_and_ends(
    resident: Resident, database: Database, revision: str, said: str
) -> None:
    try:
        assert resident.ask() == DEFERRED
        idle, peers = resident.peer(), [resident.peer() for _ in range(20)]
        assert idle.ask(protocol_state="DATA") == ACCEPTED
        ours = set_revision(database, revision)
        try:
            with stopped(resident):
                for number, peer in enumerate(peers):
                    peer.send(request(sender=f"{number}@example.org"))
            closed_by(resident, [idle, *peers])
        finally:
            set_revision(database, ours)
    finally:
        resident.stop()
    assert [
        line.partition(" reason=")[2].partition(" ")[0]
        for line in resident.log().splitlines()
        if " reason=" in line
    ] == ["new"]
    [line] = [
        line
        for line in resident.log().splitlines()
        if " warning " in line and "as root" not in line
    ]
    assert said in line
    assert line.endswith(": greycheck serve ends, and decides nothing more")
    assert database.rows("SELECT count(*) FROM triplet") == [(1,)]


def test_a_native_child_goes_on_in_python(
    resident: Resident, database: Database, natives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the new program by then, here one that can still make a store of its own."""
    child = Child(natives, database, resident.socket)
    try:
        assert child.smtpextfork().verdict == (EXIT_DEFERRED, "new")
        set_revision(database, "9999")
        elsewhere = str(database.directory / "new.db")
        # What the child itself says of its store would not be answered by any resident.
        ran = child.smtpextfork("b@example.org")
        assert ran.lines[0].endswith(": closed without an answer: checking without the resident")
        assert ran.verdict == (EXIT_ACCEPTED, "error")
        assert resident.end() == 111
        ran = child.smtpextfork("b@example.org", GREYCHECK_DATABASE=elsewhere)
        assert ran.verdict == (EXIT_DEFERRED, "new")
    finally:
        resident.stop()


def test_what_was_answered_and_not_counted_is_told(resident: Resident, database: Database) -> None:
    """An upgrade came between: what this program would write now is not the new one's."""
    assert isinstance(database, SQLiteFile)
    try:
        with resident.peer() as peer:
            assert peer.ask() == DEFERRED
            database.age(10)
            with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert peer.ask().startswith("DEFER_IF_PERMIT ")
                other.execute("UPDATE alembic_version SET version_num = '9999'")
                other.execute("COMMIT")
            assert peer.is_closed()
        assert resident.end() == 111
    finally:
        resident.stop()
    assert "attempts or uses that were not recorded: 1" in resident.log()
    assert database.rows("SELECT early_attempts FROM triplet") == [(0,)]


def test_a_newer_schema_that_fits_it_is_used(resident: Resident, database: Database) -> None:
    ours = set_revision(database, "x").partition("_")[0]
    set_revision(database, f"9999_{ours}")
    with resident:
        assert resident.ask() == DEFERRED
