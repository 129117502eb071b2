"""What outbound mail teaches the programs that answer mail servers over a socket."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic

import pytest

from greycheck import outbound
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.resident import learning
from greycheck.resident.learning import Learner
from greycheck.resident.questions import Question
from greycheck.settings import Settings, read
from tests.resident.resident import ACCEPTED, DEFERRED, Resident
from tests.resident.spawned import Spawned
from tests.servers import wait_until
from tests.support import Database, ServerDatabase, SQLiteFile, on_every_database

Server = Resident | Spawned
StartServer = Callable[..., Server]

USER = "joe@ours.example"
OUTSIDE = "ann@there.example"
STRANGER = "198.51.100.7"
PAIR = (OUTSIDE, USER)


@pytest.fixture(params=["serve", "policy"])
def start(request: pytest.FixtureRequest, place: Path, database: Database) -> Iterator[StartServer]:
    """Starts either program; it learns, and defers where it cannot know."""
    database.make()
    if isinstance(database, ServerDatabase):
        database = database.seen_from(place)
    with ExitStack() as running:

        def started(**settings: str) -> Server:
            given = {"learn_outbound": "60d", "on_error": "defer"} | settings
            if request.param == "serve":
                return running.enter_context(Resident(place, given, database)).wait()
            return running.enter_context(Spawned(database, given))

        yield started


def learnt(store: Database) -> list[tuple[object, ...]]:
    return store.rows("SELECT sender, recipient FROM correspondent ORDER BY sender")


def wait_until_learnt(store: Database, *pairs: tuple[str, str]) -> None:
    wanted = list(pairs or [PAIR])
    wait_until(lambda: learnt(store) == wanted, "it is learnt", lambda: str(learnt(store)))


@on_every_database
def test_an_answer_passes_and_nothing_else_does(start: StartServer, database: Database) -> None:
    server = start()
    assert server.ask(sender=USER, recipient=OUTSIDE, sasl_username="joe") == ACCEPTED
    wait_until_learnt(database)
    asked = [
        server.ask(sender=OUTSIDE, recipient=recipient, client_address=STRANGER)
        for recipient in (USER, "eve@ours.example")
    ]
    assert asked == [ACCEPTED, DEFERRED]


def test_what_else_is_exempt_teaches_nothing(start: StartServer, database: Database) -> None:
    server = start()
    off = {"GREYCHECK": "off"}
    server.ask(sender=USER, recipient="1@there.example", **off)
    server.ask(sender="", recipient="2@there.example", sasl_username="joe")
    server.ask(sender=USER, recipient="3@there.example", sasl_username="")
    little = {"GREYCHECK_LEARN_OUTBOUND": "0"}
    server.ask(sender=USER, recipient="4@there.example", sasl_username="joe", **little)
    server.ask(sender=USER, recipient=OUTSIDE, RELAYCLIENT="")
    wait_until_learnt(database)


def test_what_waits_is_written_at_the_end(start: StartServer, database: Database) -> None:
    server = start()
    server.ask(sender=USER, recipient=OUTSIDE, sasl_username="joe")
    if isinstance(server, Spawned):
        assert server.end() == 0
    else:
        assert server.stop() == 0
    assert learnt(database) == [PAIR]


def test_a_locked_file_holds_no_outbound_mail(start: StartServer, database: Database) -> None:
    """200 of them, and the next one is learnt from once the lock is free."""
    server = start()
    assert isinstance(database, SQLiteFile)
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answers = {
            server.ask(sender=USER, recipient=f"{number}@there.example", sasl_username="joe")
            for number in range(200)
        }
        other.execute("ROLLBACK")
    assert answers == {ACCEPTED}

    def is_learnt() -> bool:
        server.ask(sender=USER, recipient=OUTSIDE, sasl_username="joe")
        return PAIR in learnt(database)

    wait_until(is_learnt, "it is learnt once the lock is free")


def test_a_silent_server_holds_no_outbound_mail(
    request: pytest.FixtureRequest,
    start: StartServer,
    on_postgresql: ServerDatabase,
    place: Path,
) -> None:
    on_postgresql.make()
    store = on_postgresql.seen_from(place)
    server = start(database=store.url, state_directory=str(place))
    on_postgresql.server.freeze()
    try:
        answers = {
            server.ask(sender=USER, recipient=f"{number}@there.example", sasl_username="joe")
            for number in range(200)
        }
    finally:
        on_postgresql.server.thaw()
    assert answers == {ACCEPTED}

    def is_learnt() -> bool:
        server.ask(sender=USER, recipient=OUTSIDE, sasl_username="joe")
        return PAIR in learnt(store)

    wait_until(is_learnt, "it is learnt once the server answers")


def test_a_store_that_is_taken_away_holds_no_outbound_mail(
    start: StartServer, database: Database
) -> None:
    server = start()
    assert isinstance(database, SQLiteFile)
    for path in database.path.parent.glob("greycheck.db*"):
        path.unlink()
    assert server.ask(sender=USER, recipient=OUTSIDE, sasl_username="joe") == ACCEPTED
    assert server.ask(sender=USER, recipient="", sasl_username="joe") == ACCEPTED


def test_where_the_store_is_another_one_from_now_on(place: Path, empty_store: Path) -> None:
    """SIGHUP."""
    one, other = (SQLiteFile(place / f"{name}.db", empty_store) for name in ("one", "other"))
    one.make()
    other.make()
    file = place / "greycheck.conf"
    settings = f"learn_outbound = 60d\nsocket = {place}/socket\ndatabase = "
    file.write_text(f"{settings}{one.path}\n")
    environ = {"GREYCHECK_CONFIG": str(file), "GREYCHECK_DATABASE": None}
    with Resident(place, None, one, environ=environ) as resident:
        resident.wait()
        resident.ask(sender=USER, recipient="bob@there.example", sasl_username="joe")
        wait_until_learnt(one, ("bob@there.example", USER))
        file.write_text(f"{settings}{other.path}\n")
        resident.reread()
        resident.ask(sender=USER, recipient=OUTSIDE, sasl_username="joe")
        wait_until_learnt(other)
    assert learnt(one) == [("bob@there.example", USER)]


# --- the thread -----------------------------------------------------------------------------------


def question(number: int, found: Settings) -> Question:
    envelope = Envelope("policy", "192.0.2.1", USER.encode(), b"%d@there.example" % number)
    envelope.exempt = "sasl_username"
    return Question(None, envelope, found, None, [])  # type: ignore[arg-type]


def settings_of(store: Database) -> Settings:
    given = {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_LEARN_OUTBOUND": "60d", **store.environ}
    return read({os.fsencode(name): os.fsencode(value) for name, value in given.items()})


EXEMPT = Verdict("accept", "exempt")


def test_what_does_not_fit_is_counted_and_said_once_a_minute(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    monkeypatch.setattr(learning, "QUEUE", 2)
    monkeypatch.setattr(Learner, "_work", lambda _self: None)  # as one whose store is silent
    learner, found = Learner(settings_of(database)), settings_of(database)
    for number in (1, 1, 2, 3, 4):
        learner.add(question(number, found), EXEMPT)
    assert learner.notes() == ["warning mails from which nothing was learnt: 2"]
    learner.add(question(5, found), EXEMPT)
    assert learner.notes() == []
    learner._said = monotonic() - learning.MINUTE
    assert learner.notes() == ["warning mails from which nothing was learnt: 1"]
    learner.close()


def test_what_cannot_be_written_is_counted_with_its_cause(database: Database) -> None:
    learner = Learner(settings_of(database))
    learner.add(question(1, settings_of(database)), EXEMPT)
    learner.close()
    [note] = learner.notes()
    assert note.startswith("warning mails from which nothing was learnt: 1: NoSchema: ")


def test_a_known_correspondent_is_not_looked_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    found = settings_of(database)
    learner = Learner(found)
    learner.add(question(1, found), EXEMPT)
    wait_until_learnt(database, ("1@there.example", USER))
    wait_until(lambda: bool(learner._known), "it is remembered")
    learner.add(question(1, found), EXEMPT)
    assert not learner._queue
    monkeypatch.setattr(outbound, "REFRESH", 0)
    learner.add(question(1, found), EXEMPT)
    assert learner._queue, "what is old is written again"
    learner.close()


def test_where_no_thread_can_be_made_the_next_mail_tries_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    found = settings_of(database)
    learner, ended = Learner(found), Learner(found)

    def refuse(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as few:
        few.setattr(learning.threading.Thread, "start", refuse)
        for each in (learner, ended):
            each.add(question(1, found), EXEMPT)
    ended.close()
    assert learner.notes() == [
        "warning mails from which nothing was learnt: 1: RuntimeError: can't start new thread"
    ]
    learner.add(question(2, found), EXEMPT)
    wait_until_learnt(database, ("2@there.example", USER))
    learner.close()


def test_what_cannot_be_read_is_no_fault_of_the_mail(database: Database) -> None:
    learner = Learner(settings_of(database))
    wrong = question(1, settings_of(database))
    wrong.envelope.sender = None  # type: ignore[assignment]
    learner.add(wrong, EXEMPT)
    assert "nothing was learnt: 1: AttributeError" in learner.notes()[0]
    learner.close()
