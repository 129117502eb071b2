"""The resident and its SQLite file: what it has answered is there, whatever others do to the file,
and whatever happens to it.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from greycheck.resident import batch_store, file_store
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Resident, request
from tests.servers import SmallDisk, wait_until
from tests.support import CLIENT, RECIPIENT, ROOT, SENDER, Child, SQLiteFile

EARLY = "DEFER_IF_PERMIT 4.2.0 greylisted, please try again in "

COUNT = "SELECT count(*) FROM triplet WHERE sender = ?"


def path_of(resident: Resident) -> Path:
    """The store's file."""
    assert isinstance(resident.store, SQLiteFile)
    return resident.store.path


@pytest.fixture
def other(resident: Resident) -> Iterator[sqlite3.Connection]:
    """Another process's connection to the resident's store."""
    with connected(path_of(resident)) as connection:
        yield connection


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    yield connection
    connection.close()


@pytest.fixture
def alone(start: Start) -> Resident:
    """A resident for one test, which does to its file what it likes."""
    return start()


def ask_together(resident: Resident, questions: list[bytes]) -> list[str]:
    """The actions that QUESTIONS are answered with, which come to the resident in one turn."""
    peers = [resident.peer() for _ in questions]
    # It has taken them all, and is stopped while they ask.
    wait_until(
        lambda: len(list(Path(f"/proc/{resident.process.pid}/fd").iterdir())) > len(peers) + 5,
        "they are taken",
    )
    resident.signal(signal.SIGSTOP)
    for peer, question in zip(peers, questions, strict=True):
        peer.send(question)
    resident.signal(signal.SIGCONT)
    actions = [peer.action() for peer in peers]
    for peer in peers:
        peer.close()
    return actions


# --- what is answered is there --------------------------------------------------------------------


def test_no_deferral_is_answered_before_its_row_is_there_for_others(
    resident: Resident, other: sqlite3.Connection
) -> None:
    def ask(number: int) -> None:
        own = sqlite3.connect(path_of(resident), isolation_level=None, timeout=60)
        with resident.peer() as peer:
            for each in range(100):
                sender = f"{number}.{each}@example.org"
                assert peer.ask(sender=sender) == DEFERRED
                assert own.execute(COUNT, (sender,)).fetchone() == (1,), sender
        own.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert other.execute("SELECT count(*) FROM triplet").fetchone() == (800,)


def test_what_was_answered_outlives_a_kill(place: Path, empty_store: Path) -> None:
    store = SQLiteFile(place / "greycheck.db", empty_store)
    store.make()
    for turn in range(3):
        resident = Resident(place, {}, store).wait()
        senders = [f"{turn}.{number}@example.org" for number in range(20)]
        peers = [resident.peer() for _ in senders]
        for peer, sender in zip(peers, senders, strict=True):
            peer.send(request(sender=sender))
        assert {peer.action() for peer in peers} == {DEFERRED}
        resident.stop(signal.SIGKILL)
        for peer in peers:
            peer.close()
    with Resident(place, {}, store).wait() as resident:
        for turn in range(3):
            assert resident.ask(sender=f"{turn}.19@example.org").startswith(EARLY)
        assert resident.store.rows("SELECT count(*), count(DISTINCT sender) FROM triplet") == [
            (60, 60)
        ]


def test_the_same_mail_twice_in_one_turn_is_one_attempt(resident: Resident) -> None:
    actions = ask_together(resident, [request()] * 2)
    assert actions == [DEFERRED, DEFERRED]
    assert sorted(resident.reasons()) == ["early", "new"]
    assert resident.store.rows("SELECT early_attempts FROM triplet") == [(0,)]


def test_two_retries_in_one_turn_are_one_pass(resident: Resident) -> None:
    resident.ask()
    resident.age(300)
    assert ask_together(resident, [request()] * 3) == [ACCEPTED] * 3
    assert resident.reasons()[1] == "retry"
    assert resident.store.rows("SELECT passes FROM client") == [(1,)]


def test_mail_that_is_expected_once_passes_once_in_one_turn(resident: Resident) -> None:
    operate(resident, "expect", "bob@example.net")
    questions = [request(sender=f"{number}@example.org") for number in range(3)]
    assert sorted(ask_together(resident, questions)) == sorted([ACCEPTED, DEFERRED, DEFERRED])
    assert sorted(resident.reasons()) == ["expected", "new", "new"]


def operate(resident: Resident, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an operator's command on the resident's store."""
    environ = {"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null", **resident.store.environ}
    command = [sys.executable, "-m", "greycheck", *arguments]
    ran = subprocess.run(
        command, env=environ, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran


# --- a lock that another process holds ------------------------------------------------------------


@contextmanager
def locked(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def test_known_mail_is_answered_while_another_process_writes_and_new_mail_after(
    resident: Resident, other: sqlite3.Connection
) -> None:
    resident.ask(sender="known@example.org")
    resident.age(300)
    assert resident.ask(sender="known@example.org") == ACCEPTED
    with resident.peer() as new, resident.peer() as known:
        with locked(other):
            new.send(request(sender="new@example.org", client_address="198.51.100.1"))
            for _ in range(20):
                assert known.ask(sender="known@example.org") == ACCEPTED
            assert resident.reasons() == ["new", "retry"] + ["client"] * 20
        assert new.action() == DEFERRED
    assert resident.reasons()[-1] == "new"
    assert other.execute(COUNT, ("new@example.org",)).fetchone() == (1,)


def test_what_cannot_be_written_by_the_deadline_is_answered_as_it_stands(start: Start) -> None:
    resident = start(deadline="1s", client_passes="0", pool_networks="0")
    for sender in ("due@example.org", "known@example.org"):
        resident.ask(sender=sender)
    resident.age(300)
    resident.ask(sender="known@example.org")
    resident.age(4000)
    resident.ask(sender="early@example.org")
    resident.age(60)
    held = f"{path_of(resident)}: locked by another process for"
    with connected(path_of(resident)) as other, locked(other), ThreadPoolExecutor(4) as pool:
        senders = ["due@example.org", "known@example.org", "early@example.org", "new@example.org"]
        actions = list(pool.map(lambda sender: resident.ask(sender=sender), senders))
        # What is only counted is answered at once, and its fault told when it comes.
        told = f"greycheck: warning {held} 0.8s: attempts or uses that were not recorded: "
        wait_until(
            lambda: (
                sum(
                    int(line.rpartition(": ")[2])
                    for line in resident.log().splitlines()
                    if told in line
                )
                == 2
            ),
            "the faults are told",
            resident.log,
        )
    assert actions == [ACCEPTED, ACCEPTED, EARLY + "240 seconds", ACCEPTED]
    lines = {
        line.partition("sender=<")[2].partition("@")[0]: line for line in resident.verdicts[-4:]
    }
    for sender, reason in (
        ("due", "retry"),
        ("known", "known"),
        ("early", "early"),
        ("new", "error"),
    ):
        assert f"reason={reason}" in lines[sender]
    assert f'unrecorded="{held} 0.8s"' in lines["due"]
    assert f'error="{held} 0.8s"' in lines["new"]
    assert {
        line.partition("sender=<")[2].partition("@")[0] for line in resident.verdicts[-4:-2]
    } == {"known", "early"}
    assert "unrecorded" not in lines["known"] + lines["early"]


def test_what_was_forgotten_meanwhile_is_not_counted(
    resident: Resident, other: sqlite3.Connection
) -> None:
    resident.ask()
    resident.age(10)
    with locked(other):
        assert resident.ask().startswith(EARLY)
        other.execute("DELETE FROM triplet")
    assert resident.ask(sender="new@example.org") == DEFERRED
    assert resident.store.rows("SELECT sender FROM triplet") == [("new@example.org",)]


def test_what_is_only_counted_is_answered_first_but_not_without_end(start: Start) -> None:
    """While another process has the lock, what waits to be written is no more than so many and
    those that wait for their answer.
    """
    resident = start(deadline="60s", client_passes="0", pool_networks="0")
    senders = [f"{number}@example.org" for number in range(file_store.AHEAD + 20)]
    with resident.peer() as peer:
        for sender in senders:
            peer.ask(sender=sender)
        resident.age(10)
        with connected(path_of(resident)) as other, locked(other):
            for sender in senders[: file_store.AHEAD - 1]:
                assert peer.ask(sender=sender).startswith(EARLY)
            others = [resident.peer() for _ in senders[file_store.AHEAD - 1 :]]
            for each, sender in zip(others, senders[file_store.AHEAD - 1 :], strict=True):
                each.send(request(sender=sender))
            assert len(resident.verdicts) == len(senders) + file_store.AHEAD - 1
        for each in others:
            assert each.action().startswith(EARLY)
            each.close()
    assert resident.store.rows("SELECT count(*) FROM triplet WHERE early_attempts = 1") == [
        (len(senders),)
    ]


# --- a file that cannot be used -------------------------------------------------------------------


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def test_a_file_that_was_removed_is_made_anew(alone: Resident) -> None:
    """As a first check would do."""
    path = path_of(alone)
    alone.ask()
    remove(path)
    assert alone.ask(sender="next@example.org") == DEFERRED
    assert alone.reasons() == ["new", "new"]
    alone.wait_for(f"note {path}: was taken away: made anew")
    assert alone.store.rows("SELECT sender FROM triplet") == [("next@example.org",)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_moved_away_is_made_anew_and_keeps_what_it_had(alone: Resident) -> None:
    path = path_of(alone)
    alone.ask()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(f"{path}.old{suffix}")
    assert alone.ask(sender="next@example.org") == DEFERRED
    assert SQLiteFile(Path(f"{path}.old")).rows("SELECT count(*) FROM triplet") == [(1,)]
    assert alone.store.rows("SELECT count(*) FROM triplet") == [(1,)]
    assert alone.reasons() == ["new", "new"]


def test_another_file_in_its_place_is_the_store_from_then_on(
    alone: Resident, empty_store: Path
) -> None:
    path = path_of(alone)
    alone.ask()
    remove(path)
    shutil.copy(empty_store, path)
    assert alone.ask(sender="next@example.org") == DEFERRED
    assert alone.reasons() == ["new", "new"]
    alone.age(300)
    assert alone.ask(sender="next@example.org") == ACCEPTED
    assert alone.ask(client_address="198.51.100.1") == DEFERRED


def test_tables_that_were_taken_back_are_made_again(alone: Resident) -> None:
    alone.ask()
    operate(alone, "db", "downgrade", "base", "--yes")
    assert alone.ask() == DEFERRED
    assert alone.reasons() == ["new", "new"]


def test_while_there_is_no_place_for_a_file_on_error_decides(alone: Resident) -> None:
    directory = path_of(alone).parent
    away = directory.with_name(f"{directory.name}-away")
    alone.ask()
    with alone.peer() as peer:
        directory.rename(away)
        try:
            assert peer.ask(sender="next@example.org") == ACCEPTED
            assert peer.ask(sender="next@example.org") == ACCEPTED
        finally:
            away.rename(directory)
        assert [line.partition(" reason=")[0] for line in alone.verdicts[1:]] == [
            "greycheck: accept"
        ] * 2
        assert 'No such file or directory"' in alone.verdicts[1]
        assert alone.reasons() == ["new", "error", "error"]
        wait_until(lambda: peer.ask().startswith(EARLY), "the file is found again")


def test_what_is_no_database_is_said_and_left_alone(alone: Resident) -> None:
    path = path_of(alone)
    garbage = b"this is no database " * 1000
    remove(path)
    path.write_bytes(garbage)
    assert alone.ask() == ACCEPTED
    assert f'error="{path}: file is not a database: move it away' in alone.verdicts[-1]
    assert path.read_bytes() == garbage
    path.unlink()
    wait_until(lambda: alone.ask() == DEFERRED, "there is a new one")


def test_a_file_that_may_not_be_written_is_said(place: Path, empty_store: Path) -> None:
    store = SQLiteFile(place / "store" / "greycheck.db", empty_store)
    store.path.parent.mkdir()
    store.make()
    as_nobody = ["--user", "nobody"] if os.geteuid() == 0 else []
    if as_nobody:
        for path in (place, store.path.parent, store.path):
            shutil.chown(path, "nobody")
    with Resident(place, {}, store, as_nobody).wait() as resident:
        assert resident.ask() == DEFERRED
        remove(store.path)
        store.make()
        store.path.chmod(0o444)
        store.path.parent.chmod(0o555)
        try:
            assert resident.ask(sender="new@example.org") == ACCEPTED
            assert f'error="{store.path}: user ' in resident.verdicts[-1]
            assert "cannot write it" in resident.verdicts[-1]
        finally:
            store.path.parent.chmod(0o755)


@pytest.fixture
def on_small_disk(place: Path) -> Iterator[tuple[Resident, SmallDisk]]:
    """A resident whose store is on a disk of its own."""
    mounted = place / "disk"
    mounted.mkdir()
    disk = SmallDisk(mounted)
    disk.path.chmod(0o755)
    try:
        store = SQLiteFile(mounted / "greycheck.db")
        with Resident(
            place, {"client_passes": "0", "pool_networks": "0"}, store, under=disk.prefix
        ).wait() as resident:
            yield resident, disk
    finally:
        disk.remove()


SEEN = (
    "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1],"
    " isolation_level=None).execute(sys.argv[2]).fetchall())"
)


def inside(resident: Resident, disk: SmallDisk, sql: str) -> str:
    """The rows of SQL, for the store on DISK: others than who is in there see another place under
    that path.
    """
    command = [*disk.prefix, sys.executable, "-c", SEEN, str(path_of(resident)), sql]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd="/"
    ).stdout.strip()


AGED = "UPDATE triplet SET first_attempt = first_attempt - 300, last_attempt = last_attempt - 300"


def test_a_full_disk(on_small_disk: tuple[Resident, SmallDisk]) -> None:
    resident, disk = on_small_disk
    for sender in ("due@example.org", "known@example.org"):
        resident.ask(sender=sender)
    inside(resident, disk, AGED)
    resident.ask(sender="early@example.org")
    inside(
        resident,
        disk,
        "UPDATE triplet SET last_attempt = last_attempt - 10 WHERE sender LIKE 'early@%'",
    )
    resident.ask(sender="known@example.org")
    disk.fill()
    wait_until(lambda: resident.ask(sender=os.urandom(8).hex()) == ACCEPTED, "the disk is full")
    full = "database or disk is full (SQLITE_FULL)"
    assert f'error="{path_of(resident)}: {full}"' in resident.verdicts[-1]
    assert resident.ask(sender="known@example.org") == ACCEPTED
    assert "reason=known" in resident.verdicts[-1]
    assert "unrecorded" not in resident.verdicts[-1]
    for sender, reason in (("due", "retry"), ("early", "early")):
        assert resident.ask(sender=f"{sender}@example.org").startswith(
            ACCEPTED if sender == "due" else EARLY
        )
        assert f"reason={reason}" in resident.verdicts[-1]
        assert f'unrecorded="{path_of(resident)}: {full}"' in resident.verdicts[-1]
    disk.free()
    assert resident.ask(sender="early@example.org").startswith(EARLY)
    assert "unrecorded" not in resident.verdicts[-1]
    assert resident.ask(sender="new@example.org") == DEFERRED
    assert inside(resident, disk, "SELECT passes FROM triplet WHERE sender LIKE 'due@%'") == "(0,)"
    assert inside(resident, disk, "PRAGMA integrity_check") == "('ok',)"


AHEAD = (
    "UPDATE triplet SET first_attempt = first_attempt + 7200, last_attempt = last_attempt + 7200"
    " WHERE sender LIKE 'ahead@%'"
)


def test_a_first_attempt_in_the_future_and_a_full_disk(
    on_small_disk: tuple[Resident, SmallDisk],
) -> None:
    """Each attempt would be the first, for ever: that is no deferral that stands."""
    resident, disk = on_small_disk
    assert resident.ask(sender="ahead@example.org") == DEFERRED
    inside(resident, disk, AHEAD)
    disk.fill()
    wait_until(lambda: resident.ask(sender=os.urandom(8).hex()) == ACCEPTED, "the disk is full")
    assert resident.ask(sender="ahead@example.org") == ACCEPTED
    full = f'error="{path_of(resident)}: database or disk is full (SQLITE_FULL)"'
    assert "accept reason=error" in resident.verdicts[-1]
    assert full in resident.verdicts[-1]
    told = resident.ask_as("smtpextfork", sender="ahead@example.org", GREYCHECK_ON_ERROR="defer")
    assert told["exit"] == "101"
    assert "defer reason=error" in told["log"]
    assert full in told["log"]
    disk.free()
    assert resident.ask(sender="ahead@example.org").startswith(EARLY)
    assert "unrecorded" not in resident.verdicts[-1]
    inside(resident, disk, AGED)
    assert resident.ask(sender="ahead@example.org") == ACCEPTED
    assert "reason=retry" in resident.verdicts[-1]


# --- the log --------------------------------------------------------------------------------------


def test_the_log_is_written_back_while_all_goes_on(resident: Resident) -> None:
    database = Path(path_of(resident))
    log = Path(f"{database}-wal")
    before = database.stat().st_size
    over = Event()

    def ask(number: int) -> None:
        with resident.peer() as peer:
            for each in range(100_000):
                address = f"198.{18 + number}.{each // 256 % 256}.1"
                assert peer.ask(sender=f"{each}@example.org", client_address=address) == DEFERRED
                if over.is_set():
                    return

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        try:
            wait_until(
                lambda: database.stat().st_size > before, "what is in the log is in the file"
            )
        finally:
            over.set()
        for each in asking:
            each.result()
    assert log.stat().st_size < 4 * batch_store.LONGEST * 4096
    assert resident.store.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_log_that_somebody_reads_is_written_back_later(alone: Resident) -> None:
    database = path_of(alone)
    log = Path(f"{database}-wal")
    alone.ask()
    number = 0
    with connected(database) as other, alone.peer() as peer:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM triplet").fetchone()
        before = database.stat().st_size
        while log.stat().st_size < 2 * batch_store.LOG_STEP:
            number += 1
            assert peer.ask(sender=f"{number}@example.org") == DEFERRED
        assert other.execute("SELECT count(*) FROM triplet").fetchone() == (1,)
        other.execute("COMMIT")

        def is_written_back() -> bool:
            nonlocal number
            number += 1
            assert peer.ask(sender=f"{number}@example.org") == DEFERRED
            return database.stat().st_size > before

        wait_until(is_written_back, "what is in the log is in the file")
        assert other.execute("SELECT count(*) FROM triplet").fetchone() == (number + 1,)


def test_where_no_thread_can_be_made_the_log_is_written_back_later(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "greycheck.db"
    shutil.copy(empty_store, path)
    store = batch_store.Store(str(path))
    found = file_store.WriteBack(str(path))
    found.count(file_store.CHANGES + 1)
    found.last_decision -= 1

    def refuse(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as few:
        few.setattr(file_store.threading.Thread, "start", refuse)
        found.start_if_due(store)
    found.join()
    assert found.changes > file_store.CHANGES
    found.start_if_due(store)
    found.join()
    assert found.changes == 0
    store.close()


def test_at_its_end_the_resident_leaves_no_log(start: Start) -> None:
    resident = start()
    resident.ask()
    assert resident.stop() == 0
    assert sorted(path.name for path in resident.directory.glob("greycheck.db*")) == [
        "greycheck.db"
    ]


# --- beside others --------------------------------------------------------------------------------


def test_children_and_operators_use_the_same_file(start: Start, launchers: Path) -> None:
    """Hundreds at once, of whom none loses a row or is told anything wrong."""
    resident = start(deadline="60s")
    path = path_of(resident)
    child = Child(launchers, path)
    child.settings["GREYCHECK_DEADLINE"] = "60s"
    over = Event()
    faults: list[str] = []

    def operators() -> None:
        while not over.is_set():
            for command in (
                ["expire"],
                ["allow", "from:friend@example.org"],
                ["forget", "198.51.100.9"],
            ):
                if over.is_set():
                    return
                environ = {
                    "PATH": os.defpath,
                    "GREYCHECK_CONFIG": "/dev/null",
                    **resident.store.environ,
                }
                ran = subprocess.run(
                    [sys.executable, "-m", "greycheck", *command],
                    env=environ,
                    cwd=ROOT,
                    check=False,
                    capture_output=True,
                    text=True,
                )
                if ran.returncode:
                    faults.append(ran.stderr)

    def peers(number: int) -> None:
        with resident.peer() as peer:
            for each in range(150):
                assert peer.ask(sender=f"peer{number}.{each}@example.org") == DEFERRED
                assert peer.ask(sender=f"peer{number}.{each}@example.org").startswith(EARLY)

    def children(number: int) -> None:
        for each in range(15):
            ran = child.smtpextfork(f"child{number}.{each}@example.org")
            assert ran.verdict == (101, "new"), ran

    operator = Thread(target=operators)
    operator.start()
    try:
        with ThreadPoolExecutor(12) as pool:
            asking = [pool.submit(peers, number) for number in range(6)]
            asking += [pool.submit(children, number) for number in range(6)]
            for each in asking:
                each.result()
    finally:
        over.set()
        operator.join()
    assert faults == []
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(6 * 150 + 6 * 15,)]
    assert resident.store.rows("PRAGMA integrity_check") == [("ok",)]
    assert set(resident.reasons()) == {"new", "early"}


def test_what_a_child_began_the_resident_goes_on_with_and_the_other_way_round(
    resident: Resident, launchers: Path
) -> None:
    child = Child(launchers, path_of(resident))
    assert child.smtpextfork().reason == "new"
    assert resident.ask().startswith(EARLY)
    resident.age(300)
    assert resident.ask() == ACCEPTED
    assert child.smtpextfork().reason == "client"
    operate(resident, "forget", CLIENT, SENDER.decode(), RECIPIENT.decode())
    operate(resident, "forget", CLIENT)
    assert resident.ask() == DEFERRED
    operate(resident, "reject", CLIENT)
    assert resident.ask().startswith("REJECT")
    assert child.smtpextfork().reason == "rule"


def test_rows_from_the_future_count_as_of_now(resident: Resident) -> None:
    """As after a clock that was set back."""
    resident.ask()
    resident.age(-3600)
    assert resident.ask() == DEFERRED
    assert resident.reasons() == ["new", "early"]
    resident.age(300)
    assert resident.ask() == ACCEPTED
    resident.age(-7200)
    assert resident.ask() == ACCEPTED
    assert resident.reasons()[2:] == ["retry", "client"]
