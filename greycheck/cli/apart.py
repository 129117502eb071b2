"""Work that root has done by another user, in a process of its own: plain values come back, and nothing else.

For commands whose other half needs root. What comes back is that user's word: its size is bounded, it must be JSON, and root does not
wait for it longer than for honest work.
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

from greycheck.cli.common import cause
from greycheck.store import faults, rights, schema
from greycheck.store.lean import StoreError

# How much may come back, in bytes, and how long it may take, in seconds: a migration waits 30 s for a lock.
MOST = 1 << 20
TIME = 120.0


def as_user(user: int, work: Callable[[], Any]) -> Any:
    """What WORK returns, a plain value, done as the USER of that number where this is root and he is another; else done here.

    Raises StoreError with the words of what WORK raised, and where the other process gives no answer.
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
    """In the other process: does WORK as USER and writes what came of it to WRITER. Does not return."""
    try:
        try:
            rights.become(user)
            # Root's own directory for temporary files may be closed to others.
            tempfile.tempdir = None
            answer = json.dumps({"done": work()})
        except DBAPIError as error:
            answer = _failed(f"{faults.of(error)}{schema.advice(error)}")
        except (schema.SchemaError, StoreError, SQLAlchemyError) as error:
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


def _failed(words: str) -> str:
    return json.dumps({"failed": words})


def _read(reader: int) -> bytes:
    """What the other process wrote, until it has closed its end, or has had its time, or its size."""
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
        found = json.loads(answer) if len(answer) <= MOST else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "done" in found:
        return found["done"]
    if isinstance(found, dict) and isinstance(found.get("failed"), str):
        raise StoreError(found["failed"])
    raise StoreError(f"a process of {rights.user_name(user)} gave no answer within {TIME:g}s, or none that can be read")
