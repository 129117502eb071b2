"""Databases for tests of the schema: what is in them, statements that fail, and migrations of programs yet to come."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event, inspect, text

from greycheck.store import schema
from tests.support import ROOT, Child

NAME = "revisions"

KEY = b"0123456789abcdef"
TRIPLET = (
    "INSERT INTO triplet (triplet_key, network, sender, recipient, first_attempt, last_attempt, early_attempts, passes, expires_at)"
    " VALUES ({}, 'n', 's', 'r', 1, 2, 3, 4, 5)"
)
CLIENT = "INSERT INTO client (address, passes, first_seen, last_seen, expires_at) VALUES ('192.0.2.1', 1, 2, 3, 4)"


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
                    found = [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in result]
        return found

    def shape(self) -> dict[str, tuple[Any, Any, Any, Any]]:
        """The tables with their columns, keys and indexes, and on MySQL's dialect their engine and collation; alembic's own aside."""
        with self.engine.connect() as connection:
            found = inspect(connection)
            return {
                name: (
                    [{**column, "type": repr(column["type"])} for column in found.get_columns(name)],
                    found.get_pk_constraint(name),
                    sorted((str(index["name"]), index["column_names"]) for index in found.get_indexes(name)),
                    found.get_table_options(name) if self.kind == "mysql" else None,
                )
                for name in sorted(set(found.get_table_names()) - {"alembic_version"})
            }

    def write_rows(self) -> None:
        """A row of each table of the first revision, as a program of that writes it."""
        key = f"CAST('{KEY.decode()}' AS BLOB)" if self.kind == "sqlite" else f"'{KEY.decode()}'"
        self.run(TRIPLET.format(key), CLIENT)

    def revisions(self) -> list[str]:
        """The rows of alembic_version."""
        if not inspect(self.engine).has_table("alembic_version"):
            return []
        return [row[0] for row in self.run("SELECT version_num FROM alembic_version")]

    def close(self) -> None:
        self.engine.dispose()


class Stopped(BaseException):
    """As a kill."""


@contextmanager
def before_statement(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Calls ACT before the statement of that NUMBER which changes the schema or its revision. Yields those that came before."""
    seen: list[str] = []

    def look(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        words = statement.split()
        if words[0] in ("CREATE", "ALTER", "DROP") or "alembic_version" in words[1:3]:
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
from greycheck.store import steps

revision, down_revision, branch_labels, depends_on = "0003_0001", "0002", None, None


def upgrade():
    steps.add_column("triplet", sa.Column("note", sa.String(9)))
    steps.make_table(
        "news", sa.Column("number", sa.Integer(), nullable=False), sa.PrimaryKeyConstraint("number", name="pk_news")
    )


def downgrade():
    steps.drop_table("news")
    steps.drop_column("triplet", "note")
"""

CONTRACT = """
import sqlalchemy as sa
from greycheck.store import steps

revision, down_revision, branch_labels, depends_on = "0004_0003", "0003_0001", None, None


def upgrade():
    steps.drop_column("client", "{column}")


def downgrade():
    steps.add_column("client", sa.Column("{column}", sa.BigInteger(), nullable=False, server_default="0"))
"""


def write_migrations(directory: Path, *texts: str) -> Path:
    """The program's migrations, and further ones with TEXTS, in DIRECTORY."""
    shutil.copytree(schema.migrations(), directory, ignore=shutil.ignore_patterns("__pycache__"))
    for number, migration in enumerate(texts, 3):
        (directory / "versions" / f"{number:04}_further.py").write_text(migration)
    return directory


def write_program(directory: Path, *texts: str) -> None:
    """A program of those migrations in DIRECTORY: it writes the new column of EXPAND."""
    write_migrations(directory / "migrations", *texts)
    package = directory / "greycheck"
    shutil.copytree(ROOT / "greycheck", package, ignore=shutil.ignore_patterns("__pycache__"))
    replace(package / "store/tables.py", '    Index(None, "pair_digest"),\n', '    Column("note", String(9)),\n')
    replace(
        package / "store/lean.py",
        '        values["pair_digest"] = asked.pair\n',
        '        values |= {"pair_digest": asked.pair, "note": "new"}\n',
    )
    subprocess.run([sys.executable, "-m", "greycheck.store.generate"], cwd=directory, check=True)
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
    return subprocess.Popen(program, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def command(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """How it ended."""
    with started(*arguments, **environ) as ran:
        stdout, stderr = ran.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, ran.returncode, stdout, stderr)
