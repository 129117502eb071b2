"""A store for tests that reach it as operators' commands do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from greycheck.store import schema
from greycheck.store.engine import open_engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An SQLite file with the schema and no rows."""
    schema.upgrade(f"sqlite:///{tmp_path}/greycheck.db")
    return tmp_path / "greycheck.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = open_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()
