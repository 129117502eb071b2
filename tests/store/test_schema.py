"""Migrations up and down, with data, and the file that an embedded store is."""

import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError

from greycheck.store import schema
from greycheck.store.schema import SchemaError
from greycheck.store.tables import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/greycheck.db"


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.commit()
        connection.close()


def test_the_migrations_make_what_the_tables_say(url: str) -> None:
    schema.upgrade(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_migrations_name_indexes_and_keys_as_the_tables_do(url: str) -> None:
    schema.upgrade(url)
    names = {name for (name,) in query(url, "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'ix%'")}
    assert names == {str(index.name) for table in metadata.tables.values() for index in table.indexes}


def test_upgrading_twice_changes_nothing(url: str) -> None:
    assert schema.upgrade(url) == schema.upgrade(url) == schema.current(url) == schema.head()


def test_every_migration_goes_down_and_up_with_data(url: str) -> None:
    schema.upgrade(url)
    query(url, "INSERT INTO client VALUES ('192.0.2.1', 1, 1, 1, 1, 0, 0)")
    query(url, "INSERT INTO triplet VALUES (x'00', 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL)")
    assert schema.downgrade(url, "base") is None
    assert query(url, "SELECT name FROM sqlite_master WHERE name IN ('triplet', 'client')") == []
    assert schema.upgrade(url) == schema.head()
    assert query(url, "SELECT count(*) FROM triplet") == [(0,)]


def test_each_migration_keeps_what_the_one_before_knows(url: str) -> None:
    schema.upgrade(url)
    query(url, "INSERT INTO client VALUES ('192.0.2.1', 1, 2, 3, 4, 5, 6)")
    query(url, "INSERT INTO triplet VALUES (x'00', 'n', 's', 'r', 1, 2, 3, 4, NULL, 5, x'06')")
    assert schema.downgrade(url, "0001") == "0001"
    assert query(url, "SELECT * FROM client") == [("192.0.2.1", 1, 2, 3, 4)]
    query(url, "INSERT INTO client VALUES ('192.0.2.2', 1, 2, 3, 4)")
    schema.upgrade(url)
    assert query(url, "SELECT * FROM triplet") == [(b"\0", "n", "s", "r", 1, 2, 3, 4, None, 5, None)]
    assert query(url, "SELECT strikes, struck_until FROM client") == [(0, 0), (0, 0)]


def test_a_program_of_the_revision_before_can_still_write(url: str) -> None:
    """Expand first: hosts with the old program go on while the new schema is there."""
    schema.upgrade(url)
    query(
        url, "INSERT INTO client (address, passes, first_seen, last_seen, expires_at) VALUES ('192.0.2.1', 1, 1, 1, 1)"
    )
    columns = "triplet_key, network, sender, recipient, first_attempt, last_attempt, early_attempts, passes, expires_at"
    query(url, f"INSERT INTO triplet ({columns}) VALUES (x'00', 'n', 's', 'r', 1, 1, 0, 0, 1)")


def test_the_log_is_write_ahead(url: str) -> None:
    schema.upgrade(url)
    assert query(url, "PRAGMA journal_mode") == [("wal",)]


def test_there_is_no_revision_where_there_is_no_file(url: str, tmp_path: Path) -> None:
    assert schema.current(url) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SchemaError, match="there is no schema yet: run greycheck db upgrade"):
        schema.require(url)


@pytest.mark.parametrize(("revision", "what"), [("0000", "older"), ("9999", "newer")])
def test_another_revision_is_refused_with_its_name(url: str, revision: str, what: str) -> None:
    schema.upgrade(url)
    query(url, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(SchemaError, match=f"the schema is at {revision}, {what} than this program's"):
        schema.require(url)


def test_a_newer_schema_is_not_upgraded(url: str) -> None:
    schema.upgrade(url)
    query(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="newer than this program's"):
        schema.upgrade(url)


def test_a_file_that_is_no_database_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "greycheck.db").write_bytes(b"nonsense" * 1000)
    for call in (schema.upgrade, schema.current, schema.require):
        with pytest.raises(SchemaError, match="file is not a database"):
            call(url)


def test_a_migration_that_fails_leaves_the_old_schema(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("alembic.op.create_index", fail)
    with pytest.raises(RuntimeError):
        schema.upgrade(url)
    assert query(url, "SELECT name FROM sqlite_master") == []


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_file_has_the_mode_that_was_asked_for(url: str, tmp_path: Path, mode: int) -> None:
    old = os.umask(0o077)
    try:
        schema.upgrade(url, mode)
    finally:
        os.umask(old)
    assert (tmp_path / "greycheck.db").stat().st_mode & 0o777 == mode


def test_the_owner_of_the_directory_owns_the_file(url: str, tmp_path: Path) -> None:
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(tmp_path, owner, -1)
    schema.upgrade(url)
    assert (tmp_path / "greycheck.db").stat().st_uid == owner


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=f"{tmp_path}/none: No such file or directory"):
        schema.upgrade(f"sqlite:///{tmp_path}/none/greycheck.db")


def test_a_directory_of_somebody_else_is_named_with_its_owner(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(schema.os, "open", refuse)
    monkeypatch.setattr(schema.os, "geteuid", lambda: 123456)
    with pytest.raises(SchemaError, match=r"user 123456 cannot make a store here, its owner is .*: chown it"):
        schema.upgrade(url)


def test_a_store_is_not_made_where_somebody_else_could_take_it_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        fields = list(real(path, **options))
        fields[4] = 4711
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(schema.os, "geteuid", lambda: 123456)
    with pytest.raises(SchemaError, match="its owner is user 4711: chown it"):
        schema.upgrade(url)


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SchemaError, match="loop: Too many levels of symbolic links"):
        schema.current(f"sqlite:///{tmp_path}/loop")


def test_there_is_nothing_to_take_back_where_there_is_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="there is no schema to take back"):
        schema.downgrade(url, "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("database is locked", "fuser"),
        ("file is not a database", "move it away"),
        ("readonly", "may not write"),
        ("x", ""),
    ],
)
def test_what_to_do_is_said_where_it_is_known(said: str, advice: str) -> None:
    assert advice in schema.advice(DatabaseError("", None, sqlite3.Error(said)))


def test_a_file_that_cannot_be_made_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_arguments: object) -> int:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(schema.os, "open", refuse)
    with pytest.raises(SchemaError, match=r"greycheck\.db: No space left on device"):
        schema.upgrade(url)


def test_many_upgrades_at_once_make_one_schema(url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(schema.upgrade, [url] * 12) == [schema.head()] * 12
    assert query(url, "SELECT count(*) FROM alembic_version") == [(1,)]


def test_a_password_is_not_shown() -> None:
    assert schema.shown("postgresql://user:secret@host/db") == "postgresql://user:***@host/db"
    assert schema.sqlite_path("postgresql://user:secret@host/db") is None
    assert schema.shown("postgresql://user:secret@host:port/db") == "postgresql://..."


def test_a_lock_that_stays_is_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "PATIENCE", 0.2)
    connection = sqlite3.connect(tmp_path / "greycheck.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SchemaError, match="database is locked"):
        schema.upgrade(url)
    connection.close()
