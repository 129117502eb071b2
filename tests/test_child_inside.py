"""What of the child no scenario reaches from outside under coverage: threads, lost limits, and the
stand-in for functools.
"""

import _thread
import importlib.machinery
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn

import pytest

from greycheck import child, history, hooks, log, settings, store
from greycheck.hooks import smtpextfork, spp
from greycheck.policy import Verdict
from greycheck.store import causes, first_use, sqlite, sqlite_faults
from greycheck.store.base import StoreError
from greycheck.store.causes import NoSchema
from greycheck.store.schema import migrate

if TYPE_CHECKING:
    from greycheck.hooks import Hook

ENVIRON = {
    b"GREYCHECK_CONFIG": b"/dev/null",
    b"TCPREMOTEIP": b"192.0.2.1",
    b"REMOTEMF": b"a@x",
    b"REMOTERCPT": b"b@y",
}


class Exited(BaseException):
    def __init__(self, code: int) -> None:
        self.code = code


@pytest.fixture(autouse=True)
def _exits(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> NoReturn:
        raise Exited(code)

    monkeypatch.setattr(child.posix, "_exit", leave)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    given = dict(ENVIRON)
    monkeypatch.setattr(child.posix, "environ", given)
    return given


# --- the child ------------------------------------------------------------------------------------


def test_where_nothing_can_be_counted_the_verdict_stands(
    environ: dict[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def note(*_arguments: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(history, "note", note)
    # Its thread would end this process.
    monkeypatch.setattr(
        "greycheck.guard.Guard",
        lambda _seconds, _expire: type("Guard", (), {"settle": lambda _self, _code: None})(),
    )
    environ[b"GREYCHECK_DATABASE"] = str(tmp_path / "none" / "greycheck.db").encode()
    check = child.Check(smtpextfork, ("/nonexistent",))
    check.read([b"greycheck"])
    check.run()
    assert check.code == 0
    [line] = capfd.readouterr().err.splitlines()
    assert " reason=error " in line


def test_where_no_process_can_be_left_behind_the_verdict_stands(
    environ: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fork() -> NoReturn:
        raise BlockingIOError(11, "no more")

    monkeypatch.setattr(child.posix, "fork", fork)
    environ |= {
        b"RELAYCLIENT": b"",
        b"GREYCHECK_LEARN_OUTBOUND": b"60d",
        b"GREYCHECK_ON_ERROR": b"defer",
        b"REMOTEMF": b"joe@ours.example",
        b"REMOTERCPT": b"ann@there.example",
    }
    check = child.Check(smtpextfork, ("/nonexistent",))
    check.read([b"greycheck"])
    check.run()
    assert check.code == 0
    verdict, warning = capfd.readouterr().err.splitlines()
    assert " reason=exempt " in verdict
    assert warning.startswith("greycheck: warning nothing is learnt from this mail: BlockingIO")


@pytest.mark.parametrize(
    ("on_error", "code", "action"), [(b"accept", 0, "accept"), (b"defer", 101, "defer")]
)
def test_the_deadline_is_answered_by_on_error(
    environ: dict[bytes, bytes],
    capfd: pytest.CaptureFixture[str],
    on_error: bytes,
    code: int,
    action: str,
) -> None:
    environ[b"GREYCHECK_ON_ERROR"] = on_error
    check = child.Check(smtpextfork, ("/nonexistent",))
    check.read([b"greycheck"])
    with pytest.raises(Exited) as exited:
        check.expire()
    assert exited.value.code == code
    assert (
        f"greycheck: {action} reason=error client=192.0.2.1 sender=<a@x> recipient=<b@y> error="
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("on_error", "code", "action"), [(b"", 0, "accept"), (b"defer", 101, "defer")]
)
def test_a_fault_of_any_kind_ends_in_a_verdict(
    environ: dict[bytes, bytes],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    on_error: bytes,
    code: int,
    action: str,
) -> None:
    def fail(_environ: object) -> NoReturn:
        raise MemoryError("no more")

    environ[b"GREYCHECK_ON_ERROR"] = on_error
    monkeypatch.setattr(child.settings, "read", fail)
    monkeypatch.setattr(child, "safe_descriptors", lambda _is_read: -1)
    monkeypatch.setattr(sys, "argv", ["greycheck"])
    with pytest.raises(Exited) as exited:
        child.main(("/nonexistent",))
    assert exited.value.code == code
    assert (
        f'greycheck: {action} reason=error error="MemoryError: no more"\n' == capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("oops"), b'error="ZeroDivisionError: oops"'),
        (
            ImportError("lib.so: failed to map segment"),
            b'"too little memory (lib.so: failed to map segment): softlimit',
        ),
    ],
)
def test_what_a_driver_raises_is_named_with_its_kind(
    environ: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch, error: Exception, said: bytes
) -> None:
    def fail(*_arguments: object) -> NoReturn:
        raise error

    logged: list[bytes] = []
    monkeypatch.setattr(child.Check, "ask_store", fail)
    monkeypatch.setattr(
        "greycheck.guard.Guard",
        lambda _seconds, _expire: type("Guard", (), {"settle": lambda _self, _code: None})(),
    )
    monkeypatch.setattr(child.log, "write", lambda lines, _code: logged.append(lines))
    check = child.Check(smtpextfork, ("/nonexistent",))
    check.read([b"greycheck"])
    check.run()
    assert check.code == 0
    assert said in logged[0]


def test_a_command_whose_program_is_gone_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["greycheck", "expire"])
    with pytest.raises(Exited):
        child.main(("/nonexistent/python", "-m", "greycheck"))
    said = capfd.readouterr().err
    assert said.startswith(
        "greycheck: /nonexistent/python: No such file or directory: install greycheck"
    )


def test_settings_that_cannot_be_read_in_time_are_a_fault(
    environ: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def wait(_environ: object) -> NoReturn:
        signal.pause()
        raise AssertionError

    monkeypatch.setattr(child, "SETTINGS_DEADLINE", 0.05)
    monkeypatch.setattr(child.settings, "read", wait)
    monkeypatch.setattr(child, "safe_descriptors", lambda _is_read: -1)
    monkeypatch.setattr(sys, "argv", ["greycheck"])
    environ[b"GREYCHECK_ON_ERROR"] = b"defer"
    with pytest.raises(Exited) as exited:
        child.main(("/nonexistent",))
    assert exited.value.code == 101
    assert (
        'error="TimeoutError: the settings could not be read within 0.05s"'
        in capfd.readouterr().err
    )


# --- the hook's answer ----------------------------------------------------------------------------

OF_SPP = {b"SMTPMAILFROM": b"a@x", b"SMTPRCPTTO": b"b@y"}


@pytest.fixture
def speaking(environ: dict[bytes, bytes]) -> Iterator[tuple[child.Check, int]]:
    """A check for a hook that is told in words, and the descriptor that it listens on."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    environ |= OF_SPP | {b"GREYCHECK_ON_ERROR": b"defer"}
    check = child.Check(spp, ("/nonexistent",))
    check.reply_fd = writer
    yield check, reader
    os.close(reader)
    os.close(writer)


def test_only_the_first_verdict_is_told(speaking: tuple[child.Check, int]) -> None:
    check, reader = speaking
    check.read([b"greycheck-spp"])
    for verdict in (
        Verdict("defer", "new", 300),
        Verdict("reject", "rule"),
        Verdict("accept", "known"),
    ):
        check.tell(verdict)
        assert check.action == "defer"
    assert os.read(reader, 1000) == b"E451 greylisted, please try again later (#4.3.0)\n"


def test_what_was_accepted_in_silence_is_not_refused_afterwards(
    speaking: tuple[child.Check, int],
) -> None:
    check, reader = speaking
    check.read([b"greycheck-spp"])
    check.tell(Verdict("accept", "known"))
    check.fail(MemoryError())
    assert check.action == "accept"
    with pytest.raises(BlockingIOError):
        os.read(reader, 1000)


def test_the_deadline_is_told_in_words(
    speaking: tuple[child.Check, int], capfd: pytest.CaptureFixture[str]
) -> None:
    check, reader = speaking
    check.read([b"greycheck-spp"])
    with pytest.raises(Exited) as exited:
        check.expire()
    assert exited.value.code == 0
    assert os.read(reader, 1000) == b"E451 temporary failure, please try again later (#4.3.0)\n"
    assert capfd.readouterr().err.startswith("greycheck: defer reason=error ")


def test_a_fault_before_anything_is_known_is_told_in_words(
    speaking: tuple[child.Check, int],
) -> None:
    check, reader = speaking
    check.fail(MemoryError("no more"))
    assert os.read(reader, 1000) == b"E451 temporary failure, please try again later (#4.3.0)\n"
    assert check.code == 0


def test_a_session_that_was_killed_is_told_nothing(environ: dict[bytes, bytes]) -> None:
    environ |= OF_SPP
    reader, writer = os.pipe()
    os.close(reader)
    check = child.Check(spp, ("/nonexistent",))
    check.read([b"greycheck-spp"])
    check.reply_fd = writer
    check.tell(Verdict("defer", "new", 300))
    os.close(writer)
    assert check.code == 0


@pytest.mark.parametrize("hook", hooks.every(), ids=lambda hook: hook.NAME)
@pytest.mark.parametrize(("on_error", "action"), [(b"defer", "defer"), (b"", "accept")])
def test_each_hook_has_its_own_code_for_a_fault(
    environ: dict[bytes, bytes], hook: "Hook", on_error: bytes, action: str
) -> None:
    environ[b"GREYCHECK_ON_ERROR"] = on_error
    assert child.Check(hook, ("/nonexistent",)).code == hook.ANSWERS[action]


def test_a_message_that_cannot_be_remembered_is_forgotten(
    environ: dict[bytes, bytes], tmp_path: Path
) -> None:
    environ |= OF_SPP | {b"TCPREMOTEPORT": b"25025"}
    migrate.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    store = sqlite.Store(f"{tmp_path}/greycheck.db", 1)
    store._connection.close()
    check = child.Check(spp, ("/nonexistent",))
    check.read([b"greycheck-spp"])
    check.leave(store, check.decision)


def test_whatever_fails_after_the_verdict_changes_nothing(
    environ: dict[bytes, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        tidied = False

        def lookup(self, *_given: object) -> NoReturn:
            raise ZeroDivisionError

        def tidy(self) -> NoReturn:
            self.tidied = True
            raise MemoryError

    environ |= OF_SPP | {b"TCPREMOTEPORT": b"25025"}
    check = child.Check(spp, ("/nonexistent",))
    check.read([b"greycheck-spp"])
    store = Broken()
    check.leave(store, check.decision)  # type: ignore[arg-type]
    assert store.tidied
    assert capfd.readouterr().err == ""


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "began"),
    [
        (None, 5000.0),
        (b"4999250", 4999.25),
        (b"5000000", 5000.0),
        (b"4400001", 4400.001),
        (b"4400000", 5000.0),
        (b"5000001", 5000.0),
        (b"", 5000.0),
        (b"-1", 5000.0),
        (b"4999.5", 5000.0),
        (b"9" * 5000, 5000.0),
    ],
)
def test_a_check_began_when_its_native_child_did(
    environ: dict[bytes, bytes], given: bytes | None, began: float
) -> None:
    if given is not None:
        environ[b"_GREYCHECK_STARTED"] = given
    assert child._started(5000.0) == began


# --- the log --------------------------------------------------------------------------------------


def test_the_thread_that_writes_tells_when_it_is_done(capfd: pytest.CaptureFixture[str]) -> None:
    begun, written = _thread.allocate_lock(), _thread.allocate_lock()
    begun.acquire()
    written.acquire()
    log._write_and_release(b"a line\n", begun, written)
    assert not begun.locked()
    assert not written.locked()
    assert capfd.readouterr().err == "a line\n"


# --- the lean store -------------------------------------------------------------------------------


class FakeSqlite(importlib.machinery.SourceFileLoader):
    """Stands in for the extension module: it takes its one name from functools, as that does."""

    def exec_module(self, module: object) -> None:
        from functools import lru_cache

        module.__dict__["cached"] = lru_cache(2)(lambda text: text.upper())


class Finder:
    @staticmethod
    def find_spec(name: str, *_arguments: object) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.machinery.ModuleSpec(name, FakeSqlite(name, ""))
            if name == "_sqlite3"
            else None
        )


def test_a_server_that_kept_a_check_until_the_deadline_is_told_of(
    environ: dict[bytes, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    class Silent:
        notes = ("warning db1:3306 is not asked any more: no answer for 4.0s",)
        asked = 0

        def overdue(self) -> None:
            self.asked += 1

    check = child.Check(smtpextfork, ("/nonexistent",))
    check.read([b"greycheck"])
    check.store = silent = Silent()  # type: ignore[assignment]
    with pytest.raises(Exited):
        check.expire()
    assert silent.asked == 1
    assert capfd.readouterr().err.startswith(
        "greycheck: warning db1:3306 is not asked any more: no answer for 4.0s\n"
    )


def test_sqlite_is_imported_without_functools(monkeypatch: pytest.MonkeyPatch) -> None:
    functools = sys.modules["functools"]
    monkeypatch.delitem(sys.modules, "functools")
    monkeypatch.delitem(sys.modules, "_sqlite3")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    sqlite._import_sqlite()
    assert "functools" not in sys.modules
    assert sys.modules["_sqlite3"].__dict__["cached"]("text") == "TEXT"
    monkeypatch.undo()
    assert sys.modules["functools"] is functools


@pytest.mark.parametrize(
    ("exists", "message"), [(False, "No such file"), (True, "greycheck.db: text")]
)
def test_a_file_that_cannot_be_opened_is_explained(
    tmp_path: Path, exists: bool, message: str
) -> None:
    if exists:
        (tmp_path / "greycheck.db").touch()
    error = sqlite_faults.cannot_open(f"{tmp_path}/greycheck.db", "text")
    assert message in str(error)
    assert isinstance(error, NoSchema) != exists


def test_a_file_that_cannot_be_made_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_faults.posix, "access", lambda _name, _mode: False)
    assert "cannot write here" in str(sqlite_faults.cannot_open(f"{tmp_path}/greycheck.db", "text"))


@pytest.mark.parametrize(
    ("denied", "message"), [("directory", "cannot write here"), ("file", "cannot write it")]
)
def test_a_file_of_somebody_else_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str, message: str
) -> None:
    def refuse(_path: str, _flags: int) -> NoReturn:
        raise PermissionError

    path = tmp_path / "greycheck.db"
    path.touch()
    monkeypatch.setattr(sqlite_faults.posix, "access", lambda _name, _mode: denied == "file")
    monkeypatch.setattr(sqlite_faults.posix, "open", refuse)
    assert message in str(sqlite_faults.cannot_open(str(path), "text"))


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sqlite_faults.posix, "statvfs", lambda _path: type("", (), {"f_flag": os.ST_RDONLY})()
    )
    said = str(sqlite_faults.cannot_open(f"{tmp_path}/x.db", "text"))
    assert "is on a read-only file system" in said


def test_a_path_that_cannot_be_looked_at_is_explained(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "loop/greycheck.db"):
        assert "Too many levels" in str(sqlite_faults.cannot_open(str(path), "text"))


def test_a_file_below_the_root_directory_has_a_directory_too() -> None:
    said = str(sqlite_faults.cannot_open("/greycheck-none.db", "text"))
    assert said.startswith("/greycheck-none.db: " if os.access("/", os.W_OK) else "/: user ")


def test_a_revision_that_cannot_be_read_explains_nothing(tmp_path: Path) -> None:
    migrate.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    store = sqlite.Store(f"{tmp_path}/greycheck.db", 1)
    store._check_revision()
    store._connection.close()
    store._check_revision()


def test_a_schema_without_a_revision_is_none() -> None:
    with pytest.raises(NoSchema):
        causes.check_revision(None, "0001")


# --- first use ------------------------------------------------------------------------------------


def found_in(directory: Path) -> settings.Settings:
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})
    found.database = settings.Database(f"sqlite:///{directory}/greycheck.db")
    return found


def test_the_default_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "greycheck"
    first_use._make_default(str(directory), found_in(directory))
    first_use._make_default(str(directory), found_in(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_uid == pwd.getpwuid(os.geteuid()).pw_uid


def test_a_directory_that_a_setting_names_is_not_made(tmp_path: Path) -> None:
    found = found_in(tmp_path / "none")
    found.sources["database"] = "GREYCHECK_DATABASE"
    with pytest.raises(StoreError, match="none: No such file or directory"):
        first_use.make(found, ("/nonexistent",), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_default_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/greycheck: Not a directory"):
        first_use._make_default(f"{tmp_path}/file/greycheck", found_in(tmp_path))


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, tuple[int, int]]]:
    """Limits that are only written down."""
    import resource

    kept: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (1000, 2000))
    monkeypatch.setattr(resource, "setrlimit", kept.__setitem__)
    return kept  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Error: disk full' >&2; exit 1", "the schema could not be made: disk full"),
        (
            "echo warning >&2; echo 'Traceback (most recent call last):' >&2; yes '  File x' |"
            " head -n 999 >&2;"
            " printf 'ValueError: no such thing\\n' >&2; exit 1",
            "the schema could not be made: ValueError: no such thing",
        ),
        (
            "echo 'Traceback (most recent call last):' >&2; yes 'cut here' | head -n 999 >&2;"
            " echo 'ValueError: no such thing' >&2; exit 1",
            "the schema could not be made: ValueError: no such thing",
        ),
        ("exit 3", "the schema could not be made: .*maker ended with status 768"),
        ("exit 0", "No such file"),
    ],
)
def test_what_the_maker_of_the_schema_says_is_passed_on(
    tmp_path: Path, limits: dict[int, tuple[int, int]], script: str, said: str
) -> None:
    maker = tmp_path / "maker"
    maker.write_text(f"#!/bin/sh\n{script}\n")
    maker.chmod(0o755)
    with pytest.raises(StoreError, match=said):
        first_use.make(found_in(tmp_path), (str(maker),), 1)
    assert set(limits.values()) == {(2000, 2000)}


@pytest.mark.usefixtures("limits")
def test_a_maker_that_does_not_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="/nonexistent: No such file or directory"):
        first_use.make(found_in(tmp_path), ("/nonexistent",), 1)


@pytest.mark.usefixtures("limits")
def test_the_maker_gets_the_database_and_no_other_setting(
    tmp_path: Path, environ: dict[bytes, bytes]
) -> None:
    environ[b"GREYCHECK_DELAY"] = b"nonsense"
    environ[b"HOME"] = b"/home"
    assert first_use._environ(found_in(tmp_path)) == {
        **{name: value for name, value in ENVIRON.items() if not name.startswith(b"GREYCHECK")},
        b"HOME": b"/home",
        b"GREYCHECK_CONFIG": b"/dev/null",
        b"GREYCHECK_DATABASE": f"sqlite:///{tmp_path}/greycheck.db".encode(),
        b"GREYCHECK_DATABASE_MODE": b"0600",
    }


def test_who_comes_second_finds_the_store_made(tmp_path: Path) -> None:
    from greycheck.store.schema import migrate

    migrate.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    first_use.make(found_in(tmp_path), ("/nonexistent",), 1).close()


# --- what rarely goes wrong -----------------------------------------------------------------------


def test_a_warning_stands_before_the_verdict(environ: dict[bytes, bytes]) -> None:
    check = child.Check(smtpextfork, ("/nonexistent",))
    check.read([b"greycheck"])
    verdict = Verdict("accept", "retry", warning="many clients share 10.0.0.1")
    warning, line = check.lines(verdict).splitlines()
    assert warning == b"greycheck: warning many clients share 10.0.0.1"
    assert line.startswith(b"greycheck: accept reason=retry ")


def test_half_a_character_is_logged_as_bytes() -> None:
    assert log.quoted("\ud800x") == '"\\xed\\xa0\\x80x"'


def test_a_log_that_cannot_be_looked_at_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise OSError

    monkeypatch.setattr(log, "_is_file", fail)
    log.write(b"x\n", 1)


def test_another_user_than_root_becomes_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "greycheck.db"
    migrate.upgrade(f"sqlite:///{path}")
    monkeypatch.setattr(child.posix, "geteuid", lambda: 65534)
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DATABASE": bytes(path)})
    connected = store.connect(found, 1)
    assert isinstance(connected, sqlite.Store)
    connected.close()


def test_a_store_without_a_schema_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "greycheck.db"
    path.touch(0o600)
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DATABASE": bytes(path)})
    with pytest.raises(NoSchema):
        first_use._looked_at(found, 1)


def test_a_path_is_one_word_of_a_shell() -> None:
    assert sqlite_faults.word("/var/lib/greycheck/a-b_c.db") == "/var/lib/greycheck/a-b_c.db"
    assert sqlite_faults.word("/a b/it's") == "'/a b/it'\"'\"'s'"


def test_a_disk_that_fails_is_full_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "greycheck.db"
    migrate.upgrade(f"sqlite:///{path}")
    found = sqlite.Store(str(path), 1)
    error = sqlite._sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert str(found._fault(error)) == f"{path}: disk I/O error (SQLITE_IOERR_WRITE)"
    monkeypatch.setattr(
        sqlite_faults.posix,
        "statvfs",
        lambda _path: SimpleNamespace(f_bavail=0, f_files=0, f_favail=0),
    )
    assert str(found._fault(error)) == f"{path}: the disk is full (SQLITE_IOERR_WRITE)"
    found.close()
    monkeypatch.undo()
    assert sqlite_faults.full("/nonexistent/greycheck.db") == ""
