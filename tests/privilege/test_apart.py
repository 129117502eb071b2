"""Work that root has done by a process of another user: he gets a plain answer, or an error."""

import os
import pwd
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import NoSuchModuleError

from greycheck.privilege import apart
from greycheck.privilege.apart import as_user
from greycheck.store.base import StoreError
from greycheck.store.schema.migrate import SchemaError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
USER = pwd.getpwnam("nobody").pw_uid


def fail(error: Exception) -> None:
    raise error


def test_without_another_user_it_is_done_in_this_process() -> None:
    done: list[int] = []
    me = os.geteuid()
    assert as_user(0 if me == 0 else me, lambda: done.append(os.getpid())) is None
    assert done == [os.getpid()]
    with pytest.raises(ZeroDivisionError):
        as_user(0 if me == 0 else me, lambda: 1 / 0)


@as_root
def test_it_is_done_by_that_user_in_another_process() -> None:
    pid, user, real = as_user(USER, lambda: [os.getpid(), os.geteuid(), os.getuid()])
    assert pid != os.getpid()
    assert (user, real) == (USER, USER)
    assert not os.path.exists(f"/proc/{pid}")


@as_root
@pytest.mark.parametrize(
    "value", [None, "", "\x1b\udcff\u2028", 0, 1.5, True, [1, ["a", None]], {"a": {"b": []}}]
)
def test_a_plain_value_comes_back_as_it_is(value: object) -> None:
    assert as_user(USER, lambda: value) == value


def of_the_database() -> None:
    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("SELECT no_such"))


@as_root
@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: fail(StoreError("the store")), "the store"),
        (lambda: fail(SchemaError("the schema")), "the schema"),
        (lambda: fail(NoSuchModuleError("the module")), "the module"),
        (lambda: fail(click.ClickException("of a command")), "of a command"),
        (lambda: fail(FileNotFoundError(2, "No such", "/a")), "/a: No such"),
        (lambda: fail(RuntimeError("any other")), "RuntimeError: any other"),
        (of_the_database, "no such column: no_such"),
        (object, "TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_an_error_comes_back_in_words(work: Callable[[], object], said: str) -> None:
    with pytest.raises(StoreError) as told:
        as_user(USER, work)
    assert said in str(told.value)


@as_root
def test_it_has_a_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Root's own may be closed to others."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    assert as_user(USER, lambda: os.access(tempfile.gettempdir(), os.W_OK))


# --- an answer that is not one --------------------------------------------------------------------


def write(answer: bytes) -> None:
    """Ends this process, with ANSWER in the place of its own."""
    os.write(find_pipe(), answer)
    os._exit(0)


def find_pipe() -> int:
    """The descriptor of the last pipe that this process has."""
    descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    return [one for one in descriptors if os.path.exists(f"/proc/self/fd/{one}") and is_pipe(one)][
        -1
    ]


def is_pipe(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:")


@as_root
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[" * 60000,
        b"\xff\xfe",
        b'{"done": 1',
        b'{"other": 1}',
        b'{"failed": 1}',
        b'["done"]',
        b"null",
    ],
)
def test_what_is_no_answer_is_not_believed(answer: bytes) -> None:
    with pytest.raises(StoreError, match="gave no answer"):
        as_user(USER, lambda: write(answer))


@as_root
def test_what_another_user_tells_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    least = len('{"done": ""}')
    assert len(as_user(USER, lambda: "x" * (apart.MOST - least))) == apart.MOST - least
    with pytest.raises(StoreError, match="gave no answer"):
        as_user(USER, lambda: "x" * (apart.MOST + 1))
    monkeypatch.setattr(apart, "TIME", 0.2)
    with pytest.raises(StoreError, match="gave no answer"):
        as_user(USER, lambda: os.kill(os.getpid(), signal.SIGSTOP))


@as_root
def test_a_command_against_a_fault_comes_back_by_itself() -> None:
    def fails() -> None:
        raise StoreError("x: rm -rf y: is closed", "chmod o+x 'x: rm -rf y'")

    with pytest.raises(StoreError) as raised:
        as_user(USER, fails)
    assert raised.value.said == "x: rm -rf y: is closed"
    assert raised.value.command == "chmod o+x 'x: rm -rf y'"
