"""The database: reachable, its schema, its file, what is in it, and how fast it answers."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, insert
from sqlalchemy.exc import OperationalError

from greycheck.doctor.contents import (
    check_cron,
    check_future,
    check_schema,
    check_shared,
    check_spool,
)
from greycheck.doctor.finding import (
    Finding,
    Installation,
    is_directory,
    run,
    run_on,
    set_to,
)
from greycheck.doctor.identity import check_domains
from greycheck.doctor.providers import check_providers
from greycheck.doctor.server import check_server
from greycheck.doctor.telling import told_by
from greycheck.doctor.timings import (
    LOOK_UPS,
    middle_and_longest,
    milliseconds,
    new_triplet,
    timed,
    weigh,
)
from greycheck.metrics.counted import spooled
from greycheck.privilege import access
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.admin.engine import open_engine, reading
from greycheck.store.base import STORE_SHARE
from greycheck.store.schema import migrate, statements
from greycheck.store.schema.tables import triplet


def check_store(installation: Installation) -> Iterator[Finding]:
    """The database: reachable, its schema, its file, what is in it, and how fast it answers."""
    settings = installation.settings
    asked = settings.database.server
    if asked is not None:
        yield from check_server(asked, installation)
        return
    path = migrate.sqlite_path(settings.database)
    if path is not None and is_directory(path):
        advice = run(set_to("database", f"{path}/greycheck.db", settings))
        yield Finding("fault", "store", f"{path}: is a directory: database names no file", advice)
        return
    if path is None:
        answer = f"there is no store: every check answers by on_error ({settings.on_error})"
        yield Finding(
            "fault",
            "store",
            answer,
            "Mend database, database_file or database_hosts: see settings above.",
        )
        return
    yield from _as_owner(path, installation)


def _as_owner(path: Path, installation: Installation) -> list[Finding]:
    """What is found in the SQLite file PATH; as its owner, in a process of his, where root looks.

    What that says is not trusted.
    """
    user = rights.owner_of(installation.settings) if os.geteuid() == 0 else 0
    return told_by(user, lambda: _check_path(path, installation))


def _check_path(path: Path, installation: Installation) -> Iterator[Finding]:
    """What is found in the SQLite file PATH, by who this is."""
    settings = installation.settings
    obstacle = _before_opening(path, installation)
    if obstacle:
        yield obstacle
        return
    revision = migrate.current(settings.database)
    schema_finding = check_schema(revision, settings)
    yield schema_finding
    yield from check_file(path, installation)
    if revision is not None and schema_finding.level != "fault":
        engine = open_engine(settings.database)
        try:
            yield from check_contents(engine, installation)
        finally:
            engine.dispose()


def _before_opening(path: Path, installation: Installation) -> Finding | None:
    """What keeps this process from opening the SQLite file PATH."""
    me = migrate.user_name(os.geteuid())
    try:
        path.parent.stat()
        status = path.stat()
    except FileNotFoundError as error:
        if error.filename == str(path):
            return Finding("note", "store", f"{path}: not there yet: the first mail makes it")
        owner = installation.account.pw_name if installation.account else migrate.checker()
        advice = run(f"install -d -m 0700 -o {shlex.quote(owner)} {shlex.quote(str(path.parent))}")
        return Finding("fault", "store", f"{path.parent}: no such directory", advice)
    except OSError as error:
        return Finding(
            "note",
            "store",
            f"{path}: {me} cannot see it: {error.strerror}",
            "Run: sudo greycheck doctor",
        )
    if os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.R_OK | os.W_OK | os.X_OK):
        return None
    owner = migrate.user_name(status.st_uid)
    return Finding(
        "note",
        "store",
        f"{path}: {me} cannot look into it",
        run(f"sudo -u {shlex.quote(owner)} greycheck doctor"),
    )


def check_file(path: Path, installation: Installation) -> Iterator[Finding]:
    """The SQLite file PATH: its owner, its mode, the mode of its journal."""
    status = path.stat()
    mode = status.st_mode & 0o7777
    wanted = installation.settings.database_mode
    if mode & 0o007:
        found = f"{access.describe(path)}: any user can see who writes to whom"
        yield Finding(
            "warning", "store", found, run_on(path, f"chmod {wanted:04o}", installation.for_root)
        )
    elif mode != wanted:
        yield Finding("note", "store", f"{access.describe(path)}: database_mode is {wanted:04o}")
    else:
        yield Finding("ok", "store", access.describe(path))
    engine = open_engine(installation.settings.database)
    try:
        with reading(engine).connect() as connection:
            journal = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    finally:
        engine.dispose()
    if journal == "wal":
        yield Finding("ok", "store", "journal mode WAL")
        return
    found = (
        f"journal mode {journal}: a check that reads and one that writes wait for each other; WAL"
        " is set when no mail comes in"
    )
    yield Finding("warning", "store", found, run("greycheck db upgrade"))


def check_contents(engine: Engine, installation: Installation) -> Iterator[Finding]:
    """What is in the store, and how fast it answers."""
    now = int(installation.now)
    yield check_future(engine, now)
    yield check_cron(engine, now, installation)
    yield from check_spool(engine, spooled(installation.settings), now, installation)
    yield from check_domains(engine, now, installation)
    yield from check_shared(engine)
    yield from check_providers(engine, now, installation)
    yield check_latency(engine, installation.settings)


def holder(settings: Settings) -> str:
    """The advice to see who holds the SQLite file of SETTINGS."""
    return run(f"fuser -v {shlex.quote(str(migrate.sqlite_path(settings.database)))}")


def check_latency(engine: Engine, settings: Settings) -> Finding:
    """How long the store takes for a look-up and a write, against the deadline.

    The write is rolled back.
    """
    patience = settings.deadline * STORE_SHARE
    try:
        read, slowest = time_look_ups(engine)
        written = time_write(engine, patience)
    except OperationalError as error:
        return Finding(
            "fault",
            "latency",
            f"no write within {patience:.1f}s: {error.orig}: a new triplet is answered by on_error"
            f" ({settings.on_error})",
            holder(settings),
        )
    text = (
        f"a look-up takes {milliseconds(read)} (the slowest of {LOOK_UPS}:"
        f" {milliseconds(slowest)}),"
    )
    text += f" a write {milliseconds(written)}"
    return weigh(text, max(slowest, written), settings, "Take a faster disk, or a longer deadline.")


def time_look_ups(engine: Engine) -> tuple[float, float]:
    """The median and the longest time of a look-up, in seconds."""

    def look_up() -> float:
        asked = {"triplet_key": os.urandom(16), "address": "192.0.2.1"}
        with reading(engine).connect() as connection:
            return timed(lambda: connection.execute(statements.lookup(), asked).all())

    # The first also compiles the statement, which a check does not.
    look_up()
    return middle_and_longest(look_up)


def time_write(engine: Engine, patience: float) -> float:
    """Returns how long it takes to write a row, in seconds, and rolls it back.

    The wait for other writers, at most PATIENCE seconds, is part of it.
    """
    raw = engine.raw_connection()
    raw.cursor().execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
    raw.close()
    row = new_triplet()
    with engine.connect() as connection:
        took = timed(lambda: connection.execute(insert(triplet).values(row)))
        connection.rollback()
    return took
