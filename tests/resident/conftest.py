"""Residents for tests: processes that are ended by SIGTERM, after which their exit code is 0."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.resident.resident import Resident
from tests.support import Database, SQLiteFile

Start = Callable[..., Resident]


@pytest.fixture
def start(place: Path, empty_store: Path) -> Iterator[Start]:
    """Starts a resident with settings given by name, and waits until it listens."""
    store = SQLiteFile(place / "greycheck.db", empty_store)
    with ExitStack() as running:

        def started(options: dict[str, Any] | None = None, **settings: str) -> Resident:
            given = dict(options or {})
            kept: Database = given.pop("store", store)
            kept.make()
            return running.enter_context(Resident(place, settings, kept, **given)).wait()

        yield started


@pytest.fixture(scope="module")
def kept_resident(empty_store: Path) -> Iterator[Resident]:
    """A resident with the default settings, for all tests of a file."""
    with tempfile.TemporaryDirectory(prefix="greycheck-test-") as name:
        store = SQLiteFile(Path(name) / "greycheck.db", empty_store)
        store.make()
        with Resident(Path(name), store=store) as resident:
            yield resident.wait()


@pytest.fixture
def resident(kept_resident: Resident) -> Resident:
    """The same, without rows and with an empty log.

    Who changes what it is starts one of his own.
    """
    kept_resident.forget()
    return kept_resident
