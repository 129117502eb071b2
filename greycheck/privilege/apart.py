"""Runs work for root as another user, in a process of its own, which returns only plain values.

For commands whose other half needs root. Root does not trust the answer: its size is bounded, it
must be JSON, and root waits for it no longer than honest work takes.
"""

import json
import os
import select
import signal
import tempfile
from collections.abc import Callable
from time import monotonic
from typing import Any

import click
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from greycheck.privilege.access import die_with_parent
from greycheck.privilege.files import cause
from greycheck.store import rights
from greycheck.store.admin import errors
from greycheck.store.base import Advised, StoreError
from greycheck.store.schema import migrate

# The largest answer, in bytes, and the time limit in seconds: a migration waits 30 s for a lock.
MOST = 1 << 20
TIME = 120.0


def as_user(user: int, work: Callable[[], Any]) -> Any:
    """Runs WORK as the user with number USER, and returns its result, a plain value.

    Runs it in this process if this is not root's, or if USER is root. Raises StoreError with the
    message of WORK's error, or if the other process gives no answer.
    """
    if os.geteuid() != 0 or user == 0:
        return work()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _do(user, work, writer)
    os.close(writer)
    try:
        answer = _read(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return _unpacked(answer, user)


def _do(user: int, work: Callable[[], Any], writer: int) -> None:
    """In the other process: runs WORK as USER and writes the result to WRITER. Does not return."""
    try:
        try:
            rights.become(user)
            die_with_parent()
            # Root's own directory for temporary files may be closed to others.
            tempfile.tempdir = None
            answer = json.dumps({"done": work()})
        except DBAPIError as error:
            answer = _failed(f"{errors.of(error)}{migrate.advice(error)}")
        except Advised as error:
            answer = _failed(error.said, error.command)
        except SQLAlchemyError as error:
            answer = _failed(str(error))
        except click.ClickException as error:
            answer = _failed(error.message)
        except OSError as error:
            answer = _failed(cause(error))
        except Exception as error:
            answer = _failed(f"{type(error).__name__}: {error}")
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer.encode())
    finally:
        os._exit(0)


def _failed(said: str, command: str = "") -> str:
    return json.dumps({"failed": said, "command": command})


def _read(reader: int) -> bytes:
    """Returns what the other process writes until it ends, or is over its time or size."""
    end = monotonic() + TIME
    answer = b""
    while len(answer) <= MOST and select.select([reader], [], [], max(0.0, end - monotonic()))[0]:
        more = os.read(reader, 65536)
        if not more:
            break
        answer += more
    return answer


def _unpacked(answer: bytes, user: int) -> Any:
    try:
        result = json.loads(answer) if len(answer) <= MOST else None
    except (ValueError, RecursionError):
        result = None
    if isinstance(result, dict) and "done" in result:
        return result["done"]
    match result:
        case {"failed": str() as said, "command": str() as command}:
            raise StoreError(said, command)
    raise StoreError(
        f"a process of {rights.user_name(user)} gave no answer within {TIME:g}s, or none that can"
        " be read"
    )
