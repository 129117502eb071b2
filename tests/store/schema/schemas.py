"""Databases for tests of the schema: what is in them, statements that fail, and migrations of
programs yet to come.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    CursorResult,
    Engine,
    Inspector,
    NullPool,
    create_engine,
    event,
    insert,
    inspect,
    text,
)

from greycheck.envelope import Envelope, Triplet
from greycheck.log import show
from greycheck.store.base import Asked
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import metadata
from tests.databases import HARD_ROWS
from tests.support import ROOT, Child

NAME = "revisions"


def digest(text: bytes) -> bytes:
    """A key of those times."""
    return blake2b(text, digest_size=16).digest()


# The key of the row below, up to 0002 and from 0003 on.
KEY = digest(b"n\0s\0r")
KEY_WITH_PAIR = digest(b"s\0r")[:4] + KEY[:12]
TRIPLET = (
    "INSERT INTO triplet (triplet_key, network, sender, recipient, first_attempt, last_attempt,"
    " early_attempts, passes, expires_at)"
    " VALUES ({}, 'n', 's', 'r', 1, 2, 3, 4, 5)"
)
CLIENT = (
    "INSERT INTO client (address, passes, first_seen, last_seen, expires_at) VALUES ('192.0.2.1',"
    " 1, 2, 3, 4)"
)


def names_in(found: Inspector) -> set[str]:
    """The tables of a database; alembic's own aside."""
    return set(found.get_table_names()) - {"alembic_version"}


def rows_of(result: CursorResult[Any]) -> list[tuple[Any, ...]]:
    """All of RESULT, whatever the driver has for bytes."""
    return [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in result]


class Store:
    """The database at URL, asked as an operator with a client would."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine: Engine = create_engine(url, poolclass=NullPool)
        self.kind = self.engine.dialect.name

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last of STATEMENTS, all in one transaction."""
        found: list[tuple[Any, ...]] = []
        with self.engine.begin() as connection:
            for statement in statements:
                result = connection.execute(text(statement))
                if result.returns_rows:
                    found = rows_of(result)
        return found

    def shape(self) -> dict[str, tuple[Any, Any, Any, Any]]:
        """The tables with their columns, keys and indexes, and on MySQL's dialect their engine and
        collation; alembic's own aside.
        """
        with self.engine.connect() as connection:
            found = inspect(connection)
            columns, keys = found.get_multi_columns(), found.get_multi_pk_constraint()
            indexes = found.get_multi_indexes()
            return {
                name: (
                    [{**column, "type": repr(column["type"])} for column in columns[None, name]],
                    keys[None, name],
                    sorted(
                        (str(index["name"]), index["column_names"]) for index in indexes[None, name]
                    ),
                    found.get_table_options(name) if self.kind == "mysql" else None,
                )
                for name in sorted(names_in(found))
            }

    def write_rows(self) -> None:
        """A row of each table of the first revision, as a program of that writes it."""
        self.run(TRIPLET.format(literal(KEY, self.kind)), CLIENT)

    def write_rows_of_0002(self) -> None:
        """Rows as a program of the second revision writes them, of many kinds, and some as the
        first left them: without a pair.
        """
        parameters = {"passes": 4, "passed": 5}
        with self.engine.begin() as connection:
            for number, mail in enumerate(MAILS):
                connection.execute(
                    text(
                        "INSERT INTO triplet (triplet_key, pair_digest, network, sender,"
                        " recipient, first_attempt, last_attempt,"
                        " early_attempts, passes, passed_at, expires_at) VALUES"
                        " (:key, :pair, :network, :sender, :recipient, :first, 2, 3, :passes,"
                        " :passed, 5)"
                    ),
                    parameters
                    | {
                        "key": mail.old_key,
                        "pair": mail.pair if number % 4 else None,
                        "first": number,
                    }
                    | {
                        "network": mail.network,
                        "sender": show(mail.sender),
                        "recipient": show(mail.recipient),
                    },
                )

    def mails(self) -> dict[bytes, tuple[Any, ...]]:
        """The rows of triplets by their keys."""
        columns = "triplet_key, network, sender, recipient, first_attempt, passes, passed_at"
        return {row[0]: row[1:] for row in self.run(f"SELECT {columns} FROM triplet")}

    def tables(self) -> set[str]:
        """Their names; alembic's own aside."""
        return names_in(inspect(self.engine))

    def fill(self, *names: str) -> None:
        """Puts rows into the tables NAMES, as far as they have the columns."""
        with self.engine.begin() as connection:
            found = inspect(connection)
            for name in names:
                table = metadata.tables[name]
                there = {column["name"] for column in found.get_columns(name)}
                columns = [column.name for column in table.columns]
                rows = [
                    {key: value for key, value in zip(columns, row, strict=False) if key in there}
                    for row in HARD_ROWS[name]
                ]
                connection.execute(insert(table), rows)

    def contents(self, *names: str) -> dict[str, list[str]]:
        """The rows of the tables NAMES, in an order that does not depend on the database."""
        with self.engine.connect() as connection:
            return {
                name: sorted(map(repr, rows_of(connection.execute(text(f"SELECT * FROM {name}")))))
                for name in names
            }

    def revisions(self) -> list[str]:
        """The rows of alembic_version."""
        if not inspect(self.engine).has_table("alembic_version"):
            return []
        return [row[0] for row in self.run("SELECT version_num FROM alembic_version")]

    def close(self) -> None:
        self.engine.dispose()


def literal(key: bytes, kind: str) -> str:
    """KEY in a statement of a database of that KIND. A colon would be taken for a parameter's."""
    return f"'\\x{key.hex()}'" if kind == "postgresql" else f"x'{key.hex()}'"


class Mail(NamedTuple):
    """A triplet, and its keys."""

    network: str
    sender: bytes
    recipient: bytes

    @property
    def old_key(self) -> bytes:
        """Up to 0002."""
        return digest(b"\0".join((self.network.encode(), self.sender, self.recipient)))

    @property
    def pair(self) -> bytes | None:
        """What 0002 has besides."""
        return digest(self.sender + b"\0" + self.recipient) if self.sender else None

    @property
    def key(self) -> bytes:
        """As a check asks for it."""
        return Asked(
            Envelope("", "192.0.2.1", self.sender, self.recipient),
            Triplet("192.0.2.1", self.network, self.sender, self.recipient),
        ).key

    def row(self, number: int) -> tuple[Any, ...]:
        """What ``Store.mails`` has of it, the one of that NUMBER."""
        return self.network, show(self.sender), show(self.recipient), number, 4, 5


# One pair from many networks; bytes that are shown as others; no sender; and what stands for the
# other recipients of a message.
MAILS = [
    *(Mail(f"192.0.{number}.0/24", b"a@example.org", b"b@example.net") for number in range(5)),
    *(
        Mail("2001:db8::/64", sender, b"b@example.net")
        for sender in (b"", b'\xff\\x20"@example.org', "ä@b".encode())
    ),
    *(Mail("192.0.2.0/24", sender, b"x y\n\xfe@b") for sender in (b"", b"<>@c", b"\\x00@c")),
    *(Mail("192.0.2.0/24", sender, b"\0message") for sender in (b"", b"a@example.org")),
]


class Stopped(BaseException):
    """As a kill."""


@contextmanager
def before_statement(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Calls ACT before the statement of that NUMBER which changes the schema, rows or its revision.

    Yields those that came before.
    """
    seen: list[str] = []

    def look(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        words = statement.split()
        if words[0] in ("CREATE", "ALTER", "DROP", "UPDATE") or "alembic_version" in words[1:3]:
            seen.append(statement)
            if len(seen) == number:
                act()

    event.listen(Engine, "before_cursor_execute", look)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", look)


def stop() -> None:
    """Raises Stopped."""
    raise Stopped


EXPAND = """
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from greycheck.store.schema import migration_ops

revision, down_revision, branch_labels, depends_on = "0098_0004", "HEAD", None, None


def upgrade():
    migration_ops.add_column("triplet", sa.Column("note", sa.String(9)))
    migration_ops.make_table(
        "news", sa.Column("number", sa.Integer(), nullable=False), sa.PrimaryKeyConstraint("number", name="pk_news")
    )


def downgrade():
    migration_ops.drop_table("news")
    migration_ops.drop_column("triplet", "note")
"""  # noqa: E501

CONTRACT = """
import sqlalchemy as sa
from greycheck.store.schema import migration_ops

revision, down_revision, branch_labels, depends_on = "0099_0098", "0098_0004", None, None


def upgrade():
    migration_ops.drop_column("client", "{column}")


def downgrade():
    migration_ops.add_column("client", sa.Column("{column}", sa.BigInteger(), nullable=False, server_default="0"))
"""  # noqa: E501


def write_migrations(directory: Path, *texts: str) -> Path:
    """The program's migrations, and further ones with TEXTS, in DIRECTORY."""
    shutil.copytree(migrate.migrations(), directory, ignore=shutil.ignore_patterns("__pycache__"))
    for number, migration in enumerate(texts, 98):
        text = migration.replace('"HEAD"', f'"{migrate.head()}"')
        (directory / "versions" / f"{number:04}_further.py").write_text(text)
    return directory


def migrations_until(directory: Path, revision: str) -> Path:
    """The program's migrations until REVISION, in DIRECTORY, as the program of that time had."""
    write_migrations(directory)
    known = migrate.known()
    for later in known[known.index(revision) + 1 :]:
        (found,) = (directory / "versions").glob(f"{later}_*.py")
        found.unlink()
    return directory


def write_program(directory: Path, *texts: str) -> None:
    """A program of those migrations in DIRECTORY: it writes the new column of EXPAND."""
    write_migrations(directory / "migrations", *texts)
    package = directory / "greycheck"
    shutil.copytree(ROOT / "greycheck", package, ignore=shutil.ignore_patterns("__pycache__"))
    replace(
        package / "store/schema/tables.py",
        '    Column("passed_at"',
        '    Column("note", String(9)),\n    Column("passed_at"',
    )
    replace(
        package / "store/writing.py",
        '        values["triplet_key"], values["network"] =',
        '        values["note"] = "new"\n        values["triplet_key"], values["network"] =',
    )
    subprocess.run(
        [sys.executable, "-m", "greycheck.store.schema.generate"], cwd=directory, check=True
    )
    launcher = directory / "bin" / "greycheck"
    launcher.parent.mkdir()
    launcher.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.path.insert(0, {str(directory)!r})\n"
        f"from greycheck.child import main\nmain(({sys.executable!r}, '-I', '-m', 'greycheck'))\n"
    )
    launcher.chmod(0o755)


def replace(path: Path, old: str, new: str) -> None:
    """Changes a line of a program."""
    before = path.read_text()
    assert before.count(old) == 1, f"{path} has no line {old!r}"
    path.write_text(before.replace(old, new))


def child(programs: Path, url: str, directory: Path, **settings: str) -> Child:
    """A child that uses the database at URL, with marks in DIRECTORY."""
    made = Child(programs, directory / "unused.db")
    made.settings = {
        "GREYCHECK_DATABASE": url,
        "GREYCHECK_STATE_DIRECTORY": str(directory),
        "GREYCHECK_DEADLINE": "60s",
        **settings,
    }
    return made


def started(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
    """greycheck with ARGUMENTS, which runs on the database that ENVIRON names."""
    given = {"GREYCHECK_CONFIG": "/dev/null", "PATH": "/usr/bin:/bin", **environ}
    program = (sys.executable, "-m", "greycheck", *arguments)
    return subprocess.Popen(
        program, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def command(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """How it ended."""
    with started(*arguments, **environ) as ran:
        stdout, stderr = ran.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, ran.returncode, stdout, stderr)
