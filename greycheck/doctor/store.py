"""The database: reachable, its schema, its file, what is in it, and how fast it answers."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter

from sqlalchemy import Engine, and_, case, func, insert, or_, select
from sqlalchemy.exc import OperationalError

from greycheck import child, normalise
from greycheck.cli import access, apart, server
from greycheck.doctor.finding import (
    LEVELS,
    LOOK_UPS,
    Finding,
    Installation,
    Level,
    is_directory,
    milliseconds,
    run,
    safe,
    set_to,
    weigh,
)
from greycheck.doctor.server import look_at_server
from greycheck.settings import Settings, duration_text
from greycheck.store import expiry, rights, schema, statements
from greycheck.store.engine import open_engine, reading
from greycheck.store.lean import StoreError, fits
from greycheck.store.tables import client, triplet

# How many addresses are named that many clients share, and among how many that begin so they are looked for.
SHARED, BEGUN = 3, 1000

# Of how many rows of a table it is asked whether they are of the future: some tenths of a second.
LOOKED = 1_000_000

# How many findings another process may tell.
MOST = 100

# Seconds that the clocks of two hosts may be apart.
CLOCKS_APART = 5

# Seconds for which expired rows may stay: cron runs once an hour.
LEFT_OVER = 86400


def look_at_store(installation: Installation) -> Iterator[Finding]:
    """The database: reachable, its schema, its file, what is in it, and how fast it answers."""
    found = installation.settings
    asked = server.of(found)
    if asked is not None:
        yield from look_at_server(asked, installation)
        return
    path = schema.sqlite_path(found.database)
    if path is not None and is_directory(path):
        advice = run(set_to("database", f"{path}/greycheck.db", found))
        yield Finding("fault", "store", f"{path}: is a directory: database names no file", advice)
        return
    if path is None:
        answer = f"there is no store: every check answers by on_error ({found.on_error})"
        yield Finding("fault", "store", answer, "Mend database, database_file or database_hosts: see settings above.")
        return
    yield from _as_owner(path, installation)


def _as_owner(path: Path, installation: Installation) -> list[Finding]:
    """What is found in the SQLite file PATH; as its owner, in a process of his, where root looks. What that says is not trusted."""
    if os.geteuid() != 0:
        return list(_look(path, installation))
    user = rights.owner_of(installation.settings)
    if user == 0:
        return list(_look(path, installation))
    found = apart.as_user(user, lambda: [asdict(finding) for finding in _look(path, installation)])
    return [told(one) for one in found[:MOST]] if isinstance(found, list) else []


def told(found: object) -> Finding:
    """The finding that another user's process tells as FOUND, plain text that a terminal shows as it stands. Raises StoreError."""
    values = [found.get(name) for name in ("level", "about", "found", "advice")] if isinstance(found, dict) else []
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != 4 or texts[0] not in LEVELS:
        raise StoreError("the store's owner tells what is no finding")
    level: Level = next(level for level in LEVELS if level == texts[0])
    return Finding(level, safe(texts[1]), *("\n".join(map(safe, text.split("\n"))) for text in texts[2:]))


def _look(path: Path, installation: Installation) -> Iterator[Finding]:
    """What is found in the SQLite file PATH, by who this is."""
    found = installation.settings
    obstacle = _before_opening(path, installation)
    if obstacle:
        yield obstacle
        return
    revision = schema.current(found.database)
    schema_finding = _schema(revision, found)
    yield schema_finding
    yield from look_at_file(path, installation)
    if revision is not None and schema_finding.level != "fault":
        engine = open_engine(found.database)
        try:
            yield from look_into_store(engine, installation)
        finally:
            engine.dispose()


def _before_opening(path: Path, installation: Installation) -> Finding | None:
    """What keeps this process from opening the SQLite file PATH."""
    me = schema.user_name(os.geteuid())
    try:
        path.parent.stat()
        status = path.stat()
    except FileNotFoundError as error:
        if error.filename == str(path):
            return Finding("note", "store", f"{path}: not there yet: the first mail makes it")
        owner = installation.account.pw_name if installation.account else schema.checker()
        advice = run(f"install -d -m 0700 -o {shlex.quote(owner)} {shlex.quote(str(path.parent))}")
        return Finding("fault", "store", f"{path.parent}: no such directory", advice)
    except OSError as error:
        return Finding("note", "store", f"{path}: {me} cannot see it: {error.strerror}", "Run: sudo greycheck doctor")
    if os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.R_OK | os.W_OK | os.X_OK):
        return None
    owner = schema.user_name(status.st_uid)
    return Finding(
        "note", "store", f"{path}: {me} cannot look into it", f"Run: sudo -u {shlex.quote(owner)} greycheck doctor"
    )


def _schema(revision: str | None, found: Settings) -> Finding:
    url = schema.shown(found.database)
    head = schema.head()
    if revision == head:
        return Finding("ok", "store", f"{url}: schema at {head}")
    if revision is None:
        return Finding("note", "store", f"{url}: empty: the first mail makes the tables")
    text = f"{url}: the schema is {schema.standing(revision)}"
    if fits(revision, head):
        return Finding("note", "store", text)
    return Finding("fault", "store", text, "Until then every check answers by on_error.")


def look_at_file(path: Path, installation: Installation) -> Iterator[Finding]:
    """The SQLite file PATH: its owner, its mode, the mode of its journal."""
    status = path.stat()
    mode = status.st_mode & 0o7777
    wanted = installation.settings.database_mode
    if mode & 0o007:
        found = f"{access.describe(path)}: any user can see who writes to whom"
        yield Finding("warning", "store", found, f"Run: chmod {wanted:04o} {shlex.quote(str(path))}")
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
    found = f"journal mode {journal}: a check that reads and one that writes wait for each other"
    yield Finding("warning", "store", found, "Run greycheck db upgrade when no mail comes in: it sets WAL.")


def look_into_store(engine: Engine, installation: Installation) -> Iterator[Finding]:
    """What is in the store, and how fast it answers."""
    now = int(installation.now)
    yield look_at_future(engine, now)
    yield look_at_cron(engine, now, installation)
    yield from look_at_shared(engine)
    yield look_at_latency(engine, installation.settings)


def look_at_future(engine: Engine, now: int) -> Finding:
    """Rows written by a clock that was ahead of NOW, among the first LOOKED of each table."""
    ahead = now + CLOCKS_APART
    rows, last, is_cut = 0, now, False
    with reading(engine).connect() as connection:
        for column in (triplet.c.first_attempt, client.c.last_seen):
            moment = select(column.label("moment")).limit(LOOKED).subquery("looked").c.moment
            later = case((moment > ahead, moment))
            every, some, latest = connection.execute(select(func.count(), func.count(later), func.max(later))).one()
            rows, last, is_cut = rows + some, max(last, latest or now), is_cut or every == LOOKED
    if not rows:
        return Finding("ok", "clock", f"no row{f' of {LOOKED} that were looked at' if is_cut else ''} is of the future")
    return Finding(
        "warning",
        "clock",
        f"{'at least ' if is_cut else ''}{rows} rows are of the future, by {last - now}s{'' if is_cut else ' at most'}:"
        " a clock was set back, or another host's is ahead",
        "Let NTP set the clocks of all hosts. Until then such triplets wait for another delay.",
    )


def look_at_cron(engine: Engine, now: int, installation: Installation) -> Finding:
    """Whether ``greycheck expire`` runs: what is over for long should be gone."""
    left = expiry.count(engine, now - LEFT_OVER)
    if not any(left.values()):
        return Finding("ok", "cron", f"nothing that expired is older than {duration_text(LEFT_OVER)}")
    rows = ", ".join(f"{table}: {count}" for table, count in left.items() if count)
    path = schema.sqlite_path(installation.settings.database)
    line = f"7 * * * * {installation.command} expire"
    if path:
        advice = crontab(schema.user_name(path.stat().st_uid), line)
    else:
        advice = f"Put into the crontab of {installation.user}, on one host or on each:\n{line}"
    return Finding(
        "warning",
        "cron",
        f"rows that expired more than {duration_text(LEFT_OVER)} ago are still there ({rows}): expire does not run",
        advice,
    )


def crontab(owner: str, line: str) -> str:
    """The advice to put LINE into the crontab of OWNER."""
    whose = shlex.quote(owner)
    return run(f"(crontab -u {whose} -l; echo {shlex.quote(line)}) | crontab -u {whose} -")


def holder(found: Settings) -> str:
    """The advice to see who holds the SQLite file of the settings FOUND."""
    return run(f"fuser -v {shlex.quote(str(schema.sqlite_path(found.database)))}")


def look_at_shared(engine: Engine) -> Iterator[Finding]:
    """Known clients at an address that many may share: by such an address no client can be told from another."""
    # One range of the primary key for each beginning. PostgreSQL may sort as people do, and then there is no such range.
    address = client.c.address.collate("C") if engine.dialect.name == "postgresql" else client.c.address
    begun = (and_(address >= each, address < each[:-1] + chr(ord(each[-1]) + 1)) for each in normalise.PRIVATE)
    with reading(engine).connect() as connection:
        query = select(client.c.address).where(or_(*begun)).limit(BEGUN)
        found = [one for one in connection.execute(query).scalars() if normalise.is_private(one)][:SHARED]
    if found:
        told = safe(", ".join(found))
        text = f"clients come from {told}: behind NAT or a container's network: their addresses do not tell them apart"
        advice = "Let tcpserver see the real addresses; for hosts of your own, use a rule (greycheck rules)"
        yield Finding("warning", "clients", text, advice)


def look_at_latency(engine: Engine, found: Settings) -> Finding:
    """How long the store takes for a look-up and a write, against the deadline. The write is rolled back."""
    patience = found.deadline * child.PATIENCE
    try:
        read, slowest = time_look_ups(engine)
        written = time_write(engine, patience)
    except OperationalError as error:
        return Finding(
            "fault",
            "latency",
            f"no write within {patience:.1f}s: {error.orig}: a new triplet is answered by on_error ({found.on_error})",
            holder(found),
        )
    text = f"a look-up takes {milliseconds(read)} (the slowest of {LOOK_UPS}: {milliseconds(slowest)}),"
    text += f" a write {milliseconds(written)}"
    return weigh(text, max(slowest, written), found, "Take a faster disk, or a longer deadline.")


def time_look_ups(engine: Engine) -> tuple[float, float]:
    """The median and the longest time of a look-up, in seconds."""
    times = []
    for _number in range(LOOK_UPS + 1):
        asked = {"triplet_key": os.urandom(16), "address": "192.0.2.1"}
        with reading(engine).connect() as connection:
            started = perf_counter()
            connection.execute(statements.lookup(), asked).all()
            times.append(perf_counter() - started)
    # The first also compiled the statement, which a check does not.
    return median(times[1:]), max(times[1:])


def time_write(engine: Engine, patience: float) -> float:
    """How long it takes to write a row, in seconds, the wait for other writers, PATIENCE seconds at most, included. Rolls it back."""
    raw = engine.raw_connection()
    raw.cursor().execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
    raw.close()
    row: dict[str, object] = dict.fromkeys(
        ("first_attempt", "last_attempt", "early_attempts", "passes", "expires_at"), 0
    )
    row |= {"triplet_key": os.urandom(16), "network": "192.0.2.0/24", "sender": "", "recipient": ""}
    with engine.connect() as connection:
        started = perf_counter()
        connection.execute(insert(triplet).values(row))
        took = perf_counter() - started
        connection.rollback()
    return took
