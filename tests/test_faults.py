"""Each fault that can be caught ends in a verdict and one clear log line, within the deadline."""

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greycheck.launchers.python import interpreter, launcher
from greycheck.store.schema import migrate
from tests.support import ACCEPTED, DEFERRED, ROOT, Child, Ran

NOBODY = 65534


def as_nobody() -> dict[str, object]:
    """How to run a child as a user who owns nothing; root may write everywhere."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def ask(child: Child, sender: bytes = b"alice@example.org", **settings: str) -> Ran:
    """Runs it as SMTPEXTFORK does, as another user than the owner of the test's files."""
    environ = child.environ(REMOTEMF=sender, REMOTERCPT=b"bob@example.net", **settings)
    return child.run([child.programs / "greycheck"], environ, **as_nobody())


def assert_error(ran: Ran, message: str, code: int = ACCEPTED) -> None:
    assert ran.verdict == (code, "error")
    assert len(ran.lines) == 1
    assert message in ran.log
    assert " client=192.0.2.1 sender=<alice@example.org> recipient=<bob@example.net> " in ran.log


def test_the_operator_may_have_mail_deferred_instead(any_child: Child) -> None:
    any_child.database = any_child.database.parent / "none" / "greycheck.db"
    assert_error(
        any_child.smtpextfork(GREYCHECK_ON_ERROR="defer"),
        "none: No such file or directory",
        DEFERRED,
    )
    assert_error(
        any_child.checkenv(GREYCHECK_ON_ERROR="defer"), "none: No such file or directory", DEFERRED
    )


def test_the_stores_directory_is_missing(any_child: Child) -> None:
    any_child.database = any_child.database.parent / "none" / "greycheck.db"
    assert_error(any_child.smtpextfork(), "none: No such file or directory: make it")


def test_the_stores_directory_belongs_to_somebody_else(child: Child) -> None:
    child.database.parent.chmod(0o555)
    try:
        assert_error(
            ask(child),
            f"{child.database.parent}: user {NOBODY if os.geteuid() == 0 else os.geteuid()} cannot"
            " write here",
        )
    finally:
        child.database.parent.chmod(0o755)


def test_the_store_is_read_only(child: Child) -> None:
    child.make_store()
    child.database.chmod(0o444)
    child.database.parent.chmod(0o555)
    try:
        assert_error(ask(child), "cannot write")
    finally:
        child.database.parent.chmod(0o755)


def test_the_store_cannot_be_read(child: Child) -> None:
    child.make_store()
    child.database.chmod(0)
    child.database.parent.chmod(0o777)
    assert_error(ask(child), f"{child.database}: user ")


def test_the_stores_directory_cannot_be_entered(child: Child) -> None:
    child.make_store()
    child.database.parent.chmod(0o000)
    try:
        assert_error(ask(child), "cannot write here")
    finally:
        child.database.parent.chmod(0o755)


# The child of a machine that has no system's directory.
WITHOUT_SYSTEM_DIRECTORY = """
import sys
sys.path.insert(0, {root!r})
sys.argv[:] = ["greycheck"]
from greycheck import settings
settings.SYSTEM_DIRECTORY = {none!r}
from greycheck.child import main
main({operator!r})
"""


def test_an_ordinary_users_first_mail_makes_his_state_directory(child: Child) -> None:
    home = child.database.parent / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    environ = child.environ(
        REMOTEMF=b"a", REMOTERCPT=b"b", HOME=str(home), GREYCHECK_DEADLINE="60s"
    )
    del environ[b"GREYCHECK_DATABASE"]
    script = WITHOUT_SYSTEM_DIRECTORY.format(
        root=str(ROOT), none=f"{home}/none", operator=(sys.executable, "-I", "-m", "greycheck")
    )
    ran = child.run([interpreter(), "-IS", "-c", script], environ, **as_nobody())
    assert ran.verdict == (DEFERRED, "new")
    made = home / ".local" / "state" / "greycheck"
    assert (made.stat().st_mode & 0o777, (made / "greycheck.db").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


@pytest.fixture(scope="module")
def small_disk(launchers: Path) -> dict[str, list[object]]:
    """How children ended on a disk of 400 KB, filled and emptied and made read-only."""
    place = launchers / "small-disk"
    place.mkdir()
    unshare, child = ["unshare", "--mount"], [str(launchers / "greycheck")]
    user = os.geteuid()
    if user:
        # Who may mount there is root there; the children are the ordinary user's all the same.
        unshare = [*unshare, "--map-root-user"]
        child = ["unshare", f"--map-user={user}", *child]
    script = [sys.executable, str(ROOT / "tests" / "in_small_disk.py"), str(place), *child]
    ran = subprocess.run([*unshare, *script], capture_output=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    found: dict[str, list[object]] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize(
    ("event", "code", "said"),
    [
        (
            "no room to make the store",
            ACCEPTED,
            'accept reason=error .*error="the schema could not be made: .*full',
        ),
        ("recorded", DEFERRED, "defer reason=new"),
        (
            "new, disk full",
            ACCEPTED,
            'accept reason=error .*error=".*database or disk is full .SQLITE_FULL.',
        ),
        (
            "new, disk full, on_error=defer",
            DEFERRED,
            'defer reason=error .*error=".*database or disk is full .SQLITE_FULL.',
        ),
        ("early, disk full", DEFERRED, 'defer reason=early .*unrecorded=".*full .SQLITE_FULL.'),
        ("due, disk full", ACCEPTED, 'accept reason=retry .*unrecorded=".*full .SQLITE_FULL.'),
        # Each attempt would be the first for ever.
        ("of the future, disk full", ACCEPTED, 'accept reason=error .*error=".*full .SQLITE_FULL.'),
        (
            "of the future, disk full, on_error=defer",
            DEFERRED,
            'defer reason=error .*error=".*full .SQLITE_FULL.',
        ),
        (
            "new, disk full and nobody there",
            ACCEPTED,
            'accept reason=error .*error=".*SQLITE_(FULL|IOERR_SHMSIZE|CANTOPEN)',
        ),
        ("new, room again", DEFERRED, "defer reason=new"),
        ("integrity", 0, "^ok$"),
        ("new, read-only", ACCEPTED, "accept reason=error"),
        ("of the future, read-only", ACCEPTED, "accept reason=error"),
    ],
)
def test_a_full_or_read_only_disk(
    small_disk: dict[str, list[object]], event: str, code: int, said: str
) -> None:
    found_code, log = small_disk[event]
    assert found_code == code
    assert re.search(said, str(log)), log
    assert str(log).count("\n") <= 1


@pytest.mark.parametrize(
    "content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_the_file_is_not_a_database(any_child: Child, content: bytes) -> None:
    any_child.database.write_bytes(content)
    assert_error(any_child.smtpextfork(), f"{any_child.database}: ")
    assert any_child.database.read_bytes() == content


def test_the_path_is_a_directory(child: Child) -> None:
    child.database.mkdir()
    assert_error(child.smtpextfork(), f"{child.database}: ")


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql", "oracle", "postgresql+asyncpg"])
def test_a_password_never_reaches_the_log(any_child: Child, scheme: str) -> None:
    for url in (f"{scheme}://user:secret@127.0.0.1:1/db", f"{scheme}://user:se@cret@127.0.0.1/db"):
        ran = any_child.smtpextfork(GREYCHECK_DATABASE=url)
        assert ran.verdict == (ACCEPTED, "error")
        assert "cret" not in ran.log


def test_an_unusable_database_is_not_replaced_by_another(any_child: Child) -> None:
    ran = any_child.smtpextfork(GREYCHECK_DATABASE="oracle://host/db")
    assert ran.verdict == (ACCEPTED, "error")
    assert ran.lines[0] == (
        "greycheck: warning GREYCHECK_DATABASE: database: oracle: no such database here: sqlite,"
        " postgresql, mariadb or mysql;"
        " there is no store, and on_error answers"
    )
    assert 'error="there is no store: see the warning before"' in ran.lines[1]


@contextmanager
def locked(path: Path, how: str = "IMMEDIATE") -> Iterator[None]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE" if how == "EXCLUSIVE" else "SELECT 1")
    connection.execute(f"BEGIN {how}")
    connection.execute("DELETE FROM client")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_the_file_is_locked_for_longer_than_the_deadline(any_child: Child, how: str) -> None:
    any_child.make_store()
    with locked(any_child.database, how):
        assert_error(
            any_child.smtpextfork(GREYCHECK_DEADLINE="1s"), "locked by another process for 0.8s"
        )


def test_what_waits_in_a_locked_file_is_answered_as_it_stands(child: Child) -> None:
    child.smtpextfork(sender=b"due@example.org", client="192.0.2.1")
    child.age(200)
    child.smtpextfork(sender=b"early@example.org", client="198.51.100.1")
    child.age(100)
    with locked(child.database):
        due = child.smtpextfork(
            sender=b"due@example.org", client="192.0.2.1", GREYCHECK_DEADLINE="1s"
        )
        early = child.smtpextfork(
            sender=b"early@example.org", client="198.51.100.1", GREYCHECK_DEADLINE="1s"
        )
    assert due.verdict == (ACCEPTED, "retry")
    assert early.verdict == (DEFERRED, "early")
    assert " unrecorded=" in due.log
    assert " unrecorded=" in early.log


def test_known_mail_does_not_wait_for_a_lock(child: Child) -> None:
    child.smtpextfork()
    child.age(300)
    child.smtpextfork()
    child.age(7200)
    with locked(child.database):
        ran = child.smtpextfork(GREYCHECK_DEADLINE="60s")
    assert ran.verdict == (ACCEPTED, "client")
    assert " unrecorded=" in ran.log


@pytest.mark.parametrize(
    ("revision", "said"),
    [("0000", "older than this program's"), ("9999", "newer than this program's")],
)
def test_the_schema_is_of_another_version(any_child: Child, revision: str, said: str) -> None:
    any_child.make_store()
    with sqlite3.connect(any_child.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()
    assert_error(any_child.smtpextfork(), f"the schema is at {revision}, {said}")


def test_a_schema_that_was_taken_back_is_made_again(child: Child) -> None:
    child.make_store()
    migrate.downgrade(f"sqlite:///{child.database}", "base")
    assert child.smtpextfork(GREYCHECK_DEADLINE="60s").verdict == (DEFERRED, "new")


def test_a_wrong_settings_file_is_named_and_mail_goes_on(any_child: Child) -> None:
    config = any_child.database.parent / "greycheck.conf"
    config.write_text("delay = soon\nlifetime = 40d\nnonsense\n")
    ran = any_child.smtpextfork(GREYCHECK_CONFIG=str(config))
    assert ran.verdict == (DEFERRED, "new")
    assert ran.lines[0] == f"greycheck: warning {config}:3: not a line of the form name = value"
    assert ran.lines[1].startswith(f"greycheck: warning {config}:1: delay = soon: not a duration")
    assert " wait=300 " in ran.lines[2]


def test_a_settings_file_that_cannot_be_read_makes_no_other_store(
    any_child: Child, tmp_path: Path
) -> None:
    """It may name another one, which knows who is known."""
    missing = tmp_path / "greycheck.conf"
    environ = any_child.environ(
        GREYCHECK_CONFIG=str(missing),
        HOME=str(tmp_path),
        REMOTEMF="a@example.org",
        REMOTERCPT="b@example.net",
    )
    named = [name for name in environ if name.startswith(b"GREYCHECK_DATABASE")]
    assert named
    for name in named:
        del environ[name]
    ran = any_child.run([any_child.programs / "greycheck"], environ)
    assert ran.verdict == (ACCEPTED, "error")
    assert ran.lines[0].startswith(f"greycheck: warning {missing}: No such file or directory; ")
    assert list(tmp_path.rglob("*.db")) == []
    ran = any_child.smtpextfork(GREYCHECK_CONFIG=str(missing))
    assert ran.verdict == (DEFERRED, "new")
    assert ran.lines[0] == f"greycheck: warning {missing}: No such file or directory"


def test_the_schema_cannot_be_made(any_child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's interpreter that is gone: the program to make the schema with does not
    start.
    """
    text = launcher().replace(repr(sys.executable), repr("/nonexistent/python"))
    path = any_child.database.parent / "greycheck"
    path.write_text(text)
    path.chmod(0o755)
    any_child.programs = path.parent
    assert_error(
        any_child.smtpextfork(),
        "the schema could not be made: /nonexistent/python: No such file or directory",
    )


@pytest.mark.parametrize(
    ("on_error", "code", "action"), [("accept", ACCEPTED, "accept"), (" Defer", DEFERRED, "defer")]
)
def test_a_package_that_cannot_be_read_still_ends_in_a_verdict(
    child: Child, on_error: str, code: int, action: str
) -> None:
    path = child.database.parent / "greycheck"
    path.write_text(launcher().replace(repr(str(ROOT)), repr("/nonexistent")))
    path.chmod(0o755)
    ran = child.run(
        [path], child.environ(REMOTEMF=b"a", REMOTERCPT=b"b", GREYCHECK_ON_ERROR=on_error)
    )
    assert ran.code == code
    # Beside a checkout there may be another directory of that name, with migrations and no module
    # in it.
    assert re.fullmatch(
        f'greycheck: {action} reason=error error="ModuleNotFoundError: No module named'
        " 'greycheck(.loading)?'\"",
        ran.lines[0],
    )
    assert len(ran.lines) == 1


# --- hanging and crashing in C --------------------------------------------------------------------

HANG = """
#include <stddef.h>
#include <unistd.h>
static void hang(void) { for (;;) pause(); }
"""
HANGS = {
    # A disk that does not answer: while the driver reads, the interpreter's lock is free.
    "read": HANG + "ssize_t pread64(int f, void *b, size_t n, off_t o) { hang(); return 0; }",
    # The same at the commit.
    "write": HANG
    + "ssize_t pwrite64(int f, const void *b, size_t n, off_t o) { hang(); return 0; }",
}
HANG_LOCKED = (
    HANG
    + "int sqlite3_bind_blob(void *s, int i, const void *v, int n, void *d) { hang(); return 0; }"
)


def preload(place: Path, source: str) -> str:
    """A shared object of C SOURCE, for LD_PRELOAD."""
    target = place / "hang.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", target, "-x", "c", "-"], input=source.encode(), check=True
    )
    return str(target)


@pytest.mark.parametrize("where", HANGS)
@pytest.mark.parametrize("stuck_log", [False, True])
def test_a_driver_that_hangs_ends_at_the_deadline(
    child: Child, where: str, stuck_log: bool
) -> None:
    child.make_store()
    environ = child.environ(
        REMOTEMF=b"alice@example.org",
        REMOTERCPT=b"bob@example.net",
        LD_PRELOAD=preload(child.database.parent, HANGS[where]),
        GREYCHECK_DEADLINE="1s",
    )
    if not stuck_log:
        assert_error(child.run([child.programs / "greycheck"], environ), "no answer within 1s")
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    process = subprocess.Popen([child.programs / "greycheck"], env=environ, stderr=writer)
    assert process.wait(timeout=60) == ACCEPTED
    os.close(reader)
    os.close(writer)


def test_a_driver_that_hangs_with_the_interpreters_lock_does_not_hang_for_ever(
    child: Child,
) -> None:
    child.make_store()
    environ = child.environ(
        REMOTEMF=b"a",
        REMOTERCPT=b"b",
        LD_PRELOAD=preload(child.database.parent, HANG_LOCKED),
        GREYCHECK_DEADLINE="1s",
    )
    ran = child.run([child.programs / "greycheck"], environ)
    assert ran.code != 127  # no verdict is possible; what counts is the end


# --- kills and crowds -----------------------------------------------------------------------------


def start(
    child: Child, sender: bytes, client: str = "192.0.2.1", **settings: str
) -> "subprocess.Popen[bytes]":
    environ = child.environ(client, REMOTEMF=sender, REMOTERCPT=b"bob@example.net", **settings)
    return subprocess.Popen(
        [child.programs / "greycheck"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_child_killed_at_any_moment_leaves_a_sound_store(child: Child) -> None:
    child.make_store()
    chance = random.Random(1)
    deferred = set()
    # About as long as a child takes just now, so that half of them are killed, at any moment.
    patience = 0.03
    for number in range(150):
        sender = b"sender%d@example.org" % number
        process = start(child, sender)
        try:
            code = process.wait(timeout=patience * chance.uniform(0.2, 1.4))
            patience *= 0.9
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            patience *= 1.1
        if code == DEFERRED:
            deferred.add(sender.decode())
    assert child.rows("PRAGMA integrity_check") == [("ok",)]
    recorded = {str(sender) for (sender,) in child.rows("SELECT sender FROM triplet")}
    assert deferred <= recorded
    assert 0 < len(deferred) < 150
    child.age(300)
    assert child.smtpextfork(sender=deferred.pop().encode()).verdict == (ACCEPTED, "retry")


def test_a_first_use_killed_at_any_moment_is_made_up_for(place: Path, launchers: Path) -> None:
    chance = random.Random(2)
    for number in range(4):
        child = Child(launchers, place / f"{number}.db")
        process = start(child, b"alice@example.org")
        time.sleep(chance.uniform(0.01, 0.8))
        process.kill()
        process.wait()
        assert child.smtpextfork(GREYCHECK_DEADLINE="60s").code == DEFERRED
        assert child.rows("PRAGMA integrity_check") == [("ok",)]


def crowd(child: Child, number: int, same: bool) -> list[int]:
    """The exit codes of NUMBER children at once, with the SAME triplet or one each."""
    processes = [
        start(
            child,
            b"alice@example.org" if same else b"sender.%d@example.org" % index,
            client="192.0.2.1" if same else f"10.0.{index}.1",
            GREYCHECK_DEADLINE="120s",
        )
        for index in range(number)
    ]
    return [process.wait(timeout=240) for process in processes]


@pytest.mark.parametrize("same", [False, True], ids=["200 triplets", "one triplet"])
def test_200_first_uses_at_once_make_one_store_and_all_answer(child: Child, same: bool) -> None:
    assert crowd(child, 200, same) == [DEFERRED] * 200
    assert child.rows("SELECT count(*) FROM triplet") == [(1 if same else 200,)]
    child.age(300)
    assert crowd(child, 200, same) == [ACCEPTED] * 200
    assert child.rows("SELECT count(*), min(passes), max(passes) FROM triplet") == [
        (1 if same else 200, 1, 1)
    ]
    assert child.rows("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("client_passes", ["0", "1", "1000"])
def test_200_retries_at_once_on_a_full_store_all_pass(child: Child, client_passes: str) -> None:
    child.make_store()
    fill(child, 50_000)
    child.settings["GREYCHECK_CLIENT_PASSES"] = client_passes
    assert crowd(child, 200, same=True) == [DEFERRED] * 200
    child.age(300)
    assert crowd(child, 200, same=True) == [ACCEPTED] * 200
    assert child.rows("SELECT count(*) FROM triplet") == [(50_001,)]
    if client_passes == "1000":
        assert child.rows("SELECT passes FROM client") == [(1,)]


def fill(child: Child, number: int) -> None:
    """NUMBER waiting triplets of other clients."""
    now = int(time.time())
    connection = sqlite3.connect(child.database)
    with connection:
        connection.executemany(
            "INSERT INTO triplet VALUES (?, '203.0.113.0/24', 'x@example.org', 'y@example.net', ?,"
            " ?, 0, 0, NULL, ?, NULL, 0)",
            (
                (random.Random(index).randbytes(16), now, now, now + 86400)
                for index in range(number)
            ),
        )
    connection.close()
