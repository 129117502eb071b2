"""Migrations up and down, with data, and the file that an embedded store is."""

import multiprocessing
import os
import pwd
import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError

from greycheck.privilege import access
from greycheck.store.schema import migrate
from greycheck.store.schema.migrate import SchemaError
from greycheck.store.schema.tables import metadata
from tests.store.schema.schemas import KEY_WITH_PAIR, before_statement


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
    migrate.upgrade(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_migrations_name_indexes_and_keys_as_the_tables_do(url: str) -> None:
    migrate.upgrade(url)
    names = {
        name
        for (name,) in query(
            url, "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'ix%'"
        )
    }
    assert names == {
        str(index.name) for table in metadata.tables.values() for index in table.indexes
    }


def test_rows_of_triplets_stand_in_the_order_they_come(url: str) -> None:
    """New ones share a page, whatever their keys are; older schemas have them where their keys
    say.
    """
    migrate.upgrade(url)
    assert "WITHOUT ROWID" not in made_by(url, "triplet")
    assert "WITHOUT ROWID" in made_by(url, "client")
    migrate.downgrade(url, "0002")
    assert "WITHOUT ROWID" in made_by(url, "triplet")


def made_by(url: str, table: str) -> str:
    [(statement,)] = query(url, f"SELECT sql FROM sqlite_master WHERE name = '{table}'")
    assert isinstance(statement, str)
    return statement


def test_upgrading_twice_changes_nothing(url: str) -> None:
    assert migrate.upgrade(url) == migrate.upgrade(url) == migrate.current(url) == migrate.head()


def test_every_migration_goes_down_and_up_with_data(url: str) -> None:
    migrate.upgrade(url)
    query(url, "INSERT INTO client VALUES ('192.0.2.1', 1, 1, 1, 1, 0, 0)")
    query(url, "INSERT INTO triplet VALUES (x'00', 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL, 0)")
    assert migrate.downgrade(url, "base") is None
    assert query(url, "SELECT name FROM sqlite_master WHERE name IN ('triplet', 'client')") == []
    assert migrate.upgrade(url) == migrate.head()
    assert query(url, "SELECT count(*) FROM triplet") == [(0,)]


def test_each_migration_keeps_what_the_one_before_knows(url: str) -> None:
    migrate.upgrade(url)
    query(url, "INSERT INTO client VALUES ('192.0.2.1', 1, 2, 3, 4, 5, 6)")
    query(url, "INSERT INTO triplet VALUES (x'00', 'n', 's', 'r', 1, 2, 3, 4, NULL, 5, NULL, 0)")
    assert migrate.downgrade(url, "0001") == "0001"
    assert query(url, "SELECT * FROM client") == [("192.0.2.1", 1, 2, 3, 4)]
    query(url, "INSERT INTO client VALUES ('192.0.2.2', 1, 2, 3, 4)")
    migrate.upgrade(url)
    assert query(url, "SELECT * FROM triplet") == [
        (KEY_WITH_PAIR, "n", "s", "r", 1, 2, 3, 4, None, 5, None, 0)
    ]
    assert query(url, "SELECT strikes, struck_until FROM client") == [(0, 0), (0, 0)]


def test_a_program_of_the_revision_before_can_still_write(url: str) -> None:
    """Expand first: hosts with the old program go on while the new schema is there."""
    migrate.upgrade(url)
    query(
        url,
        "INSERT INTO client (address, passes, first_seen, last_seen, expires_at) VALUES"
        " ('192.0.2.1', 1, 1, 1, 1)",
    )
    columns = (
        "triplet_key, network, sender, recipient, first_attempt, last_attempt, early_attempts,"
        " passes, expires_at"
    )
    query(url, f"INSERT INTO triplet ({columns}) VALUES (x'00', 'n', 's', 'r', 1, 1, 0, 0, 1)")


def test_the_log_is_write_ahead(url: str) -> None:
    migrate.upgrade(url)
    assert query(url, "PRAGMA journal_mode") == [("wal",)]


def test_there_is_no_revision_where_there_is_no_file(url: str, tmp_path: Path) -> None:
    assert migrate.current(url) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        SchemaError,
        match="there is no store yet: the first mail makes it, or: greycheck db upgrade",
    ):
        migrate.require(url)
    path = tmp_path / "greycheck.db"
    path.touch()
    with pytest.raises(SchemaError, match="there is no schema yet: run greycheck db upgrade"):
        migrate.require(f"sqlite:///{path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("closed", "mode", "owner", "said"),
    [
        ("away", 0o700, "root", "/away: nobody may not enter it, its owner is root: sudo -u root"
                                " greycheck COMMAND"),
        ("away", 0o755, "root", "/away: nobody may not write it, its owner is root: sudo -u root"
                                " greycheck COMMAND"),
        ("away", 0o500, "nobody", "/away: nobody may not write it, though it is nobody's: chmod"
                                  " u+rwx {}/away"),
        ("away/store.db", 0o600, "root", "/away/store.db: nobody may not write it, its owner is"
                                         " root: sudo -u root greycheck COMMAND"),
        ("away/store.db", 0, "nobody", "/away/store.db: nobody may not write it, though it is"
                                       " nobody's: chmod u+rw {}/away/store.db"),
        ("away/store.db", 0o600, "nobody", ""),
    ],
)  # fmt: skip
def test_who_may_not_use_a_store_is_told_why_and_what_to_do(
    place: Path, closed: str, mode: int, owner: str, said: str
) -> None:
    path = place / "away" / "store.db"
    path.parent.mkdir()
    path.touch(0o600)
    for each in (path.parent, path):
        shutil.chown(each, "nobody")
    shutil.chown(place / closed, owner)
    (place / closed).chmod(mode)
    with access.acting_as(pwd.getpwnam("nobody")):
        found = str(migrate.barred(path) or "")
        assert found == (place.as_posix() + said.format(place) if said else "")


@pytest.mark.parametrize(("revision", "what"), [("0000", "older"), ("9999", "newer")])
def test_another_revision_is_refused_with_its_name(url: str, revision: str, what: str) -> None:
    migrate.upgrade(url)
    query(url, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(
        SchemaError, match=f"the schema is at {revision}, {what} than this program's"
    ):
        migrate.require(url)


def test_a_newer_schema_is_not_upgraded(url: str) -> None:
    migrate.upgrade(url)
    query(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="newer than this program's"):
        migrate.upgrade(url)


def test_a_file_that_is_no_database_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "greycheck.db").write_bytes(b"nonsense" * 1000)
    for call in (migrate.upgrade, migrate.current, migrate.require):
        with pytest.raises(SchemaError, match="file is not a database"):
            call(url)


def test_a_migration_that_fails_leaves_the_old_schema(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("alembic.op.create_index", fail)
    with pytest.raises(RuntimeError):
        migrate.upgrade(url)
    assert query(url, "SELECT name FROM sqlite_master") == []


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_file_has_the_mode_that_was_asked_for(url: str, tmp_path: Path, mode: int) -> None:
    old = os.umask(0o077)
    try:
        migrate.upgrade(url, mode)
    finally:
        os.umask(old)
    assert (tmp_path / "greycheck.db").stat().st_mode & 0o777 == mode


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=f"{tmp_path}/none: No such file or directory"):
        migrate.upgrade(f"sqlite:///{tmp_path}/none/greycheck.db")


def test_a_directory_of_somebody_else_is_named_with_its_owner(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(migrate.os, "open", refuse)
    monkeypatch.setattr(migrate.os, "geteuid", lambda: 123456)
    with pytest.raises(
        SchemaError,
        match=r"user 123456 cannot make a store here, its owner is .*: install -d -m 0700 -o"
        r" 123456 /var/lib",
    ):
        migrate.upgrade(url)


def test_a_store_is_not_made_where_somebody_else_could_take_it_away(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        fields = list(real(path, **options))
        fields[4] = 4711
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(migrate.os, "geteuid", lambda: 123456)
    with pytest.raises(SchemaError, match="its owner is user 4711: install -d"):
        migrate.upgrade(url)


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SchemaError, match="loop: Too many levels of symbolic links"):
        migrate.current(f"sqlite:///{tmp_path}/loop")


def test_there_is_nothing_to_take_back_where_there_is_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="there is no schema to take back"):
        migrate.downgrade(url, "base")
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
    assert advice in migrate.advice(DatabaseError("", None, sqlite3.Error(said)))


def test_a_file_that_cannot_be_made_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_arguments: object) -> int:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(migrate.os, "open", refuse)
    with pytest.raises(SchemaError, match=r"greycheck\.db: No space left on device"):
        migrate.upgrade(url)


def test_many_upgrades_at_once_make_one_schema(url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(migrate.upgrade, [url] * 12) == [migrate.head()] * 12
    assert query(url, "SELECT count(*) FROM alembic_version") == [(1,)]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:secret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:secret@host:port/db", "postgresql://..."),
        ("postgresql://user:se@cret@host/db", "postgresql://..."),
        (
            "postgresql://user@host/db?password=secret&sslpassword=secret",
            "postgresql://user@host/db",
        ),
        (
            "postgresql://user@/db?passfile=/etc/pass&host=a",
            "postgresql://user@/db?host=a&passfile=%2Fetc%2Fpass",
        ),
        ("mariadb://user:secret@/db?host=a&host=b:1", "mariadb://user:***@/db?host=a&host=b%3A1"),
        ("oracle://user:secret@host/db", "oracle://..."),
        ("", "no store"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert migrate.shown(url) == shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "there is no store: the settings that say where it is cannot be used"),
        ("oracle://user:secret@host/db", "oracle://...: oracle: no such database here"),
        ("postgresql+pg8000://user:secret@host/db", r"postgresql\+pg8000://...: .*no such driver"),
        (
            "postgresql://user:secret@127.0.0.1:1/db",
            r"postgresql://user:\*\*\*@127.0.0.1:1/db: 127.0.0.1:1: .*refused",
        ),
        ("sqlite:////dev/null", r"/dev/null: .*"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(url: str, said: str) -> None:
    for call in (migrate.upgrade, migrate.require, lambda url: migrate.downgrade(url, "base")):
        with pytest.raises(SchemaError, match=said) as caught:
            call(url)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_where_a_schema_stands_is_said_with_what_to_do() -> None:
    ours = migrate.head()
    assert migrate.standing(None) == f"not made yet, this program's is {ours}"
    assert migrate.standing(ours) == f"at {ours}, this program is at {ours}"
    assert (
        migrate.standing("0000")
        == f"at 0000, older than this program's {ours}: run greycheck db upgrade"
    )
    assert (
        migrate.standing("9999_0001")
        == f"at 9999_0001, newer than this program's {ours}, which can use it"
    )
    assert (
        migrate.standing("9999")
        == f"at 9999, newer than this program's {ours}: install the newer greycheck here too"
    )


def test_a_schema_that_fits_is_left_as_it_is(url: str) -> None:
    migrate.upgrade(url)
    query(url, "UPDATE alembic_version SET version_num = '9999_0001'")
    migrate.require(url)
    assert migrate.upgrade(url) == migrate.current(url) == "9999_0001"


def test_an_unknown_revision_is_named(url: str) -> None:
    migrate.upgrade(url)
    with pytest.raises(SchemaError, match="Can't locate revision identified by 'nonsense'"):
        migrate.downgrade(url, "nonsense")
    query(url, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaError, match=f"at 0000, older than this program's {migrate.head()}"):
        migrate.upgrade(url)
    with pytest.raises(SchemaError, match="at 0000, which this program does not know"):
        migrate.downgrade(url, "base")


def test_revisions_are_numbered_and_never_fit_an_older_program_again() -> None:
    """See migrations/README.rst."""
    known = migrate.known()
    assert [revision[:4] for revision in known] == [
        f"{number:04}" for number in range(1, len(known) + 1)
    ]
    oldest = [revision.partition("_")[2] or revision for revision in known]
    assert all(
        fits[:4] == fits and fits <= revision for fits, revision in zip(oldest, known, strict=True)
    )
    assert oldest[2:] == sorted(oldest[2:])
    assert {
        path.name[: len(revision) + 1] for path, revision in zip(_files(), known, strict=True)
    } == {f"{revision}_" for revision in known}


def _files() -> list[Path]:
    return sorted((migrate.migrations() / "versions").glob("*.py"))


def test_an_interrupted_upgrade_leaves_the_old_schema(url: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with before_statement(3, interrupt), pytest.raises(KeyboardInterrupt):
        migrate.upgrade(url)
    assert query(url, "SELECT name FROM sqlite_master") == []


def test_a_lock_that_stays_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr("greycheck.store.admin.engine.LOCK_TIMEOUT", 0.2)
    connection = sqlite3.connect(tmp_path / "greycheck.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SchemaError, match="database is locked"):
        migrate.upgrade(url)
    connection.close()
