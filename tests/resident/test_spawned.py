"""``greycheck policy``, asked by a mail server on its standard input and output."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greycheck.store.schema import migrate
from tests.resident.resident import ACCEPTED, DEFERRED, WITH_WAIT, Closed, Value, request
from tests.resident.spawned import PROGRAM, Spawned
from tests.servers import wait_until
from tests.support import ROOT, Database, SQLiteFile, on_every_database
from tests.test_faults import HANG_LOCKED, HANGS, locked, preload

# What a process may be that stays for each smtpd, in bytes.
SMALL = 16 << 20

Start = Callable[..., Spawned]


@pytest.fixture
def start(database: Database) -> Iterator[Start]:
    """Starts ``greycheck policy`` with settings given by name."""
    with ExitStack() as running:

        def started(
            environ: dict[str, str] | None = None, log: int | None = None, **settings: str
        ) -> Spawned:
            given = {"deadline": "60s"} | settings
            return running.enter_context(Spawned(database, given, environ=environ, log=log))

        yield started


@pytest.fixture
def spawned(start: Start, database: Database) -> Spawned:
    """One with a store that knows nobody."""
    database.make()
    return start()


@on_every_database
def test_a_mail_is_deferred_until_it_is_tried_again(start: Start, database: Database) -> None:
    spawned = start()
    assert spawned.ask() == DEFERRED
    assert spawned.ask().startswith("DEFER_IF_PERMIT ")
    database.age(300)
    assert spawned.ask() == ACCEPTED
    assert spawned.ask(sender="other@example.org") == ACCEPTED
    assert spawned.reasons(4) == ["new", "early", "retry", "client"]
    assert spawned.end() == 0


def test_the_first_makes_the_store(start: Start, database: Database) -> None:
    spawned = start()
    assert spawned.ask() == DEFERRED
    assert migrate.current(database.url) == migrate.head()
    database.age(300)
    assert spawned.ask() == ACCEPTED


def test_two_may_make_the_store_at_once(start: Start, database: Database) -> None:
    both = [start(), start()]
    for number, spawned in enumerate(both):
        spawned.send(request(sender=f"{number}@example.org"))
    assert [spawned.answer() for spawned in both] == [f"action={DEFERRED}".encode()] * 2
    assert database.rows("SELECT count(*) FROM triplet") == [(2,)]


def test_it_is_small(database: Database) -> None:
    database.make()
    with Spawned(database, measured=False) as spawned:
        for number in range(100):
            spawned.ask(sender=f"{number}@example.org")
        assert spawned.memory < SMALL


def test_no_command_line_is_loaded() -> None:
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import greycheck.resident.spawned\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-c", script], env={}, check=True, capture_output=True, text=True
    )
    assert set(ran.stdout.split()).isdisjoint(
        {"click", "sqlalchemy", "alembic", "typing", "re", "socket", "threading"}
    )


def test_help_is_the_command_lines() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "greycheck", "policy", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0
    assert "Postfix" in ran.stdout


# --- what it answers ------------------------------------------------------------------------------


def test_a_message_gets_one_header(start: Start, database: Database) -> None:
    spawned = start(header="yes")
    spawned.ask(instance="c.1")
    database.age(312)
    assert spawned.ask(instance="c.2").startswith("PREPEND X-Greylist: delayed 31")
    assert spawned.ask(instance="c.2", recipient="carol@example.net") == ACCEPTED
    assert spawned.ask(instance="c.3").startswith("PREPEND X-Greylist: client, by greycheck at ")


@pytest.mark.parametrize(("hook", "code"), [("smtpextfork", "101"), ("spp", "0")])
def test_a_native_child_is_told_how_to_end(spawned: Spawned, hook: str, code: str) -> None:
    spawned.send(request(greycheck_hook=hook))
    assert f"\nexit={code}\n" in spawned.answer().decode()
    assert spawned.is_closed()
    assert spawned.wait() == 0


def test_a_native_childs_first_recipient_vouches_for_later_ones(
    start: Start, database: Database
) -> None:
    place: dict[str, Value] = {
        "greycheck_hook": "spp",
        "TCPREMOTEPORT": "25025",
        "GREYCHECK_CLIENT_PASSES": "0",
    }
    for accepted, count, recipient, reason in (
        ("0", "1", "bob@example.net", "new"),
        ("0", "1", "bob@example.net", "retry"),
        ("1", "2", "carol@example.net", "message"),
    ):
        spawned = start()
        spawned.send(
            request(SMTPRCPTCOUNT=accepted, SMTPRCPTCOUNTALL=count, recipient=recipient, **place)
        )
        assert f" reason={reason} " in spawned.answer().decode()
        if reason == "new":
            database.age(300)


# --- how it is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\n\n", "a line without ="),
        (b"GET / HTTP/1.0\r\n\r\n\n\n", "a line without ="),
        (b"request=junk\nclient_address=192.0.2.1\n\n", "no request=smtpd_access_policy"),
        (request().replace(b"alice", b"al\0ice"), "a NUL"),
        (b"request=smtpd_access_policy", "the end within a request"),
        (request()[:-1], "the end within a request"),
        (b"x" * 2000, "a request longer than 1024 bytes"),
        (request(helo_name="x" * 2000), "a request longer than 1024 bytes"),
        (b"a=b\n" * 200 + b"\n" + b"x" * 400, "no request=smtpd_access_policy"),
        (request(greycheck_hook="hook"), "no such hook: "),
        (request(GREYCHECK_DATABASE="/elsewhere"), "GREYCHECK_DATABASE is another one here"),
    ],
)
def test_what_is_no_request_ends_it_without_an_answer(start: Start, data: bytes, said: str) -> None:
    spawned = start(max_request="1024")
    spawned.send(data)
    assert spawned.end() == 1
    assert spawned.is_closed()
    [line] = spawned.lines
    assert line.startswith(f"greycheck: warning standard input: not answered: {said}")


def test_a_request_after_another_one_is_too_long_as_well(start: Start) -> None:
    spawned = start(max_request="1024", null_sender="accept")
    spawned.send(request(sender="", helo_name="x" * 700) + request(sender="", helo_name="x" * 1000))
    assert spawned.answer() == b"action=DUNNO"
    assert spawned.is_closed()
    assert spawned.wait() == 1


def test_requests_before_what_is_none_are_answered(spawned: Spawned) -> None:
    spawned.send(request() + b"junk\n\n" + request())
    assert spawned.answer() == f"action={DEFERRED}".encode()
    with pytest.raises(Closed):
        spawned.answer()
    assert spawned.wait() == 1


def test_a_mail_server_that_is_gone_is_no_error(spawned: Spawned) -> None:
    spawned.send(request())
    spawned.socket.close()
    assert spawned.wait() == 0


def test_what_spawn_gives_it_for_a_log_is_the_connection_and_hears_nothing(
    database: Database,
) -> None:
    database.make()
    with Spawned(database, {"delay": "soon"}, spawned=True) as spawned:
        assert [spawned.ask(), spawned.ask(sender="b@example.org")] == [DEFERRED] * 2
        spawned.send(b"junk\n\n")
        assert spawned.is_closed()
        assert spawned.wait() == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_it_needs_both_descriptors(database: Database, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    environ = dict(os.environ) | {"GREYCHECK_CONFIG": "/dev/null", **database.environ}
    ran = subprocess.run(
        PROGRAM,
        env=environ,
        cwd=ROOT,
        input=request(),
        capture_output=True,
        preexec_fn=close,
    )
    assert ran.returncode == 1
    assert ran.stdout == b""
    assert ran.stderr == (
        b"" if 2 in closed else b"greycheck: warning OSError: [Errno 9] Bad file descriptor\n"
    )


def test_it_needs_no_log(database: Database) -> None:
    database.make()
    settings = {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_DEFER_TEXT": WITH_WAIT}
    environ = dict(os.environ) | settings | database.environ
    ran = subprocess.run(
        PROGRAM,
        env=environ,
        cwd=ROOT,
        input=request(),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.close(2),
    )
    assert (ran.returncode, ran.stdout) == (0, f"action={DEFERRED}\n\n".encode())


# --- the end --------------------------------------------------------------------------------------


def test_sigterm_ends_one_that_waits(spawned: Spawned) -> None:
    assert spawned.ask() == DEFERRED
    spawned.terminate()
    assert spawned.wait() == 0
    assert spawned.is_closed()


def test_what_is_asked_at_sigterm_is_still_answered(spawned: Spawned) -> None:
    assert isinstance(spawned.store, SQLiteFile)
    spawned.ask()
    with locked(spawned.store.path):
        spawned.send(request(sender="b@example.org") + request(sender="c@example.org"))
        wait_until(spawned.has_read, "it has read that", spawned.log)
        spawned.terminate()
    assert spawned.answer() == f"action={DEFERRED}".encode()
    assert spawned.is_closed()
    assert spawned.wait() == 0


# --- faults ---------------------------------------------------------------------------------------


def test_a_wrong_setting_is_warned_of_and_its_default_used(
    start: Start, database: Database
) -> None:
    database.make()
    spawned = start(delay="soon")
    assert spawned.ask() == DEFERRED
    assert spawned.reasons(1) == ["new"]
    assert spawned.lines[0].startswith(
        "greycheck: warning GREYCHECK_DELAY: delay = soon: not a duration"
    )


@pytest.mark.parametrize(
    ("on_error", "answer"),
    [
        ("accept", ACCEPTED),
        ("defer", "DEFER_IF_PERMIT 4.3.0 temporary failure, please try again later"),
    ],
)
def test_a_store_that_cannot_be_used_is_answered_by_on_error(
    start: Start, on_error: str, answer: str
) -> None:
    spawned = start(database="/nonexistent/greycheck.db", on_error=on_error)
    assert [spawned.ask(), spawned.ask()] == [answer, answer]
    assert spawned.reasons(2) == ["error", "error"]
    spawned.wait_for("/nonexistent: No such file or directory")


def test_no_store_is_answered_by_on_error(start: Start) -> None:
    spawned = start(database="nonsense")
    assert spawned.ask() == ACCEPTED
    spawned.wait_for('error="there is no store: see the warning before"')


def test_a_locked_file_is_waited_for_and_then_answered_by_on_error(
    start: Start, database: Database
) -> None:
    assert isinstance(database, SQLiteFile)
    database.make()
    spawned = start(deadline="1s")
    spawned.ask()
    with locked(database.path):
        assert spawned.ask(sender="b@example.org") == ACCEPTED
    assert spawned.reasons(2) == ["new", "error"]
    spawned.wait_for("locked by another process for 0.8s")
    assert spawned.ask(sender="b@example.org") == DEFERRED


def test_a_check_that_hardly_waited_does_not_make_the_next_one_hurry(
    start: Start, database: Database
) -> None:
    """A known triplet's use is written without waiting for long; a new one's row is worth the whole
    time there is.
    """
    assert isinstance(database, SQLiteFile)
    database.make()
    spawned = start(deadline="2s", client_passes="0")
    spawned.ask()
    database.age(300)
    assert spawned.ask() == ACCEPTED
    database.age(7200)
    with locked(database.path):
        assert spawned.ask() == ACCEPTED
        assert spawned.ask(sender="b@example.org") == ACCEPTED
    assert spawned.reasons(4) == ["new", "retry", "known", "error"]
    assert "locked by another process for 0.1s" in spawned.lines[2]
    assert "locked by another process for 1.6s" in spawned.lines[3]


def test_a_write_that_fails_holds_no_lock(start: Start, database: Database) -> None:
    assert isinstance(database, SQLiteFile)
    database.make()
    spawned = start()
    spawned.ask()
    connection = sqlite3.connect(database.path, isolation_level=None)
    connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON triplet BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    assert spawned.ask(sender="b@example.org") == ACCEPTED
    spawned.wait_for("disk full")
    connection.execute("DROP TRIGGER full")
    connection.close()
    assert spawned.ask(sender="b@example.org") == DEFERRED


def test_a_file_that_was_taken_away_is_made_again(start: Start, database: Database) -> None:
    assert isinstance(database, SQLiteFile)
    database.make()
    spawned = start()
    spawned.ask()
    old = database.path.with_name("old.db")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database.path}{suffix}").rename(f"{old}{suffix}")
    database.make()
    assert spawned.ask(sender="b@example.org") == DEFERRED
    assert database.rows("SELECT sender FROM triplet") == [("b@example.org",)]


def test_the_log_of_the_file_is_written_back(start: Start, database: Database) -> None:
    assert isinstance(database, SQLiteFile)
    database.make()
    spawned = start()
    wal = Path(f"{database.path}-wal")
    grown = 0
    for number in range(3000):
        spawned.ask(sender=f"{number}@example.org")
        size = wal.stat().st_size
        if size < grown:
            return
        grown = size
    pytest.fail(f"{grown} bytes")


@pytest.mark.parametrize("where", HANGS)
def test_a_driver_that_hangs_is_answered_for_at_the_deadline(
    start: Start, database: Database, where: str
) -> None:
    database.make()
    spawned = start(
        {"LD_PRELOAD": preload(database.directory, HANGS[where])}, deadline="1s", on_error="defer"
    )
    assert spawned.ask() == "DEFER_IF_PERMIT 4.3.0 temporary failure, please try again later"
    assert spawned.is_closed()
    assert spawned.wait() == 111
    spawned.wait_for('error="no answer within 1s"')


def test_a_driver_that_hangs_with_the_interpreters_lock_does_not_hang_for_ever(
    start: Start, database: Database
) -> None:
    database.make()
    spawned = start({"LD_PRELOAD": preload(database.directory, HANG_LOCKED)}, deadline="1s")
    spawned.send(request())
    assert spawned.is_closed()
    assert spawned.wait() != 0


def test_a_request_may_have_a_shorter_deadline_than_the_one_before(
    start: Start, database: Database
) -> None:
    database.make()
    spawned = start(
        {"LD_PRELOAD": preload(database.directory, HANGS["write"])},
        deadline="60s",
        null_sender="accept",
    )
    with locked(database.directory / "greycheck.db"):
        assert spawned.ask(GREYCHECK_DEADLINE="2s", sender="early@example.org") == ACCEPTED
    assert spawned.ask(GREYCHECK_DEADLINE="1s") == ACCEPTED
    assert spawned.wait() == 111


def test_a_stuck_log_holds_nothing(start: Start, database: Database) -> None:
    database.make()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    spawned = start(log=writer)
    for number in range(20):
        assert spawned.ask(sender=f"{number}@example.org") == DEFERRED
    assert spawned.end() == 0
    os.close(reader)
    os.close(writer)
