"""Stores for tests that reach them as operators' commands do: an SQLite file, or each database in
turn.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from greycheck.store.admin.engine import open_engine
from tests.support import DATABASES, ServerDatabase


@pytest.fixture
def path(tmp_path: Path, empty_store: Path) -> Path:
    """An SQLite file with the schema and no rows."""
    shutil.copy(empty_store, tmp_path / "greycheck.db")
    return tmp_path / "greycheck.db"


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a database with the schema and no rows."""
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('path')}"
    return server_url(request, request.param)


def server_url(request: pytest.FixtureRequest, name: str) -> str:
    found: ServerDatabase = request.getfixturevalue(f"on_{name}")
    found.make()
    return found.url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def file_engine(path: Path) -> Iterator[Engine]:
    """An engine for what only an SQLite file does."""
    engine = open_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()
