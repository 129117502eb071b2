"""Examines a store's contents: its schema, traces of a wrong clock or a missing cron job."""

import shlex
from collections.abc import Iterator
from socket import gethostname

from sqlalchemy import Engine, and_, case, func, or_, select

from greycheck import normalise
from greycheck.doctor.finding import MB, Finding, Installation, run, safe
from greycheck.history import LARGEST
from greycheck.launchers import cron
from greycheck.metrics.counted import Spooled
from greycheck.settings import Settings, duration_text
from greycheck.store.admin import expiry
from greycheck.store.admin.engine import reading
from greycheck.store.admin.history import EXPIRE
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import client, history, triplet
from greycheck.times import span

# How many seconds the clocks of two hosts may differ.
CLOCKS_APART = 5

# What migrates the schema.
UPGRADE = "greycheck db upgrade"

# How many seconds expired rows may stay: cron runs once an hour.
LEFT_OVER = 86400


def check_schema(revision: str | None, settings: Settings) -> Finding:
    """Finds out if this program can use the schema at REVISION in the store of SETTINGS."""
    url = migrate.shown(settings.database)
    if revision is None and settings.database.path:
        return Finding("note", "store", f"{url}: empty: the first mail makes the tables")
    wrong = migrate.misfit(revision)
    if wrong:
        # Whoever writes the store chooses the revision in these words: no command is taken from it.
        said = wrong.removesuffix(f": run {UPGRADE}")
        found = f"{safe(f'{url}: {said}')}: every check answers by on_error until then"
        return Finding("fault", "store", found, run(UPGRADE) if said != wrong else "")
    if revision == migrate.head():
        return Finding("ok", "store", f"{url}: schema at {revision}")
    found = safe(f"{url}: the schema is {migrate.standing(revision)}")
    return Finding("note", "store", found)


def check_future(engine: Engine, now: int) -> Finding:
    """Finds out if there are rows from a clock ahead of NOW, in the first LOOKED of each table."""
    ahead = now + CLOCKS_APART
    rows, last, is_cut = 0, now, False
    with reading(engine).connect() as connection:
        for column in (triplet.c.first_attempt, client.c.last_seen):
            moment = select(column.label("moment")).limit(LOOKED).subquery("looked").c.moment
            later = case((moment > ahead, moment))
            every, some, latest = connection.execute(
                select(func.count(), func.count(later), func.max(later))
            ).one()
            rows, last, is_cut = rows + some, max(last, latest or now), is_cut or every == LOOKED
    if not rows:
        return Finding(
            "ok",
            "clock",
            f"no row{f' of {LOOKED} that were looked at' if is_cut else ''} is of the future",
        )
    return Finding(
        "warning",
        "clock",
        f"{'at least ' if is_cut else ''}{rows} rows are of the future, by"
        f" {last - now}s{'' if is_cut else ' at most'}:"
        " a clock was set back, or another host's is ahead; until they are right such triplets"
        " wait for another delay",
        run("timedatectl set-ntp true"),
    )


def check_cron(engine: Engine, now: int, installation: Installation) -> Finding:
    """Finds out if ``greycheck expire`` runs: then no row expired long ago."""
    left = expiry.count(engine, now - LEFT_OVER)
    if not any(left.values()):
        return Finding(
            "ok", "cron", f"nothing that expired is older than {duration_text(LEFT_OVER)}"
        )
    rows = ", ".join(f"{table}: {count}" for table, count in left.items() if count)
    advice = in_crontab(cron_line("7 * * * *", "expire", installation), installation)
    return Finding(
        "warning",
        "cron",
        f"rows that expired more than {duration_text(LEFT_OVER)} ago are still there ({rows}):"
        " expire does not run",
        advice,
    )


def check_spool(
    engine: Engine, waiting: Spooled, now: int, installation: Installation
) -> Iterator[Finding]:
    """Finds out if what checks of this host have counted is added to the store.

    WAITING is what is not. Nothing is found where nothing is counted.
    """
    if not installation.settings.history:
        return
    if waiting.oldest is None or waiting.oldest >= now - LEFT_OVER:
        text = f"no count of this host's checks waits for longer than {duration_text(LEFT_OVER)}"
        yield Finding("ok", "history", text)
        return
    with reading(engine).connect() as connection:
        query = select(history.c.number).where(
            history.c.kind == EXPIRE, history.c.name == gethostname()
        )
        ran = connection.execute(query.limit(1)).scalar()
    when = "it never did" if ran is None else f"it last did {span(max(now - ran, 0))} ago"
    text = (
        f"counts of this host's checks wait for {span(now - waiting.oldest)}"
        f" ({waiting.size / MB:.1f} MB): expire does not add them to the store here ({when})"
    )
    if waiting.size >= LARGEST:
        text += "; nothing more is counted until then"
    advice = in_crontab(cron_line("7 * * * *", "expire", installation), installation)
    yield Finding("warning", "history", text, advice)


def cron_line(times: str, command: str, installation: Installation) -> str:
    """Returns the line of a crontab that runs greycheck's COMMAND at TIMES."""
    return cron.line(times, installation.command, command)


def in_crontab(line: str, installation: Installation) -> str:
    """Returns the advice to put LINE into the crontab of whoever owns the store."""
    path = migrate.sqlite_path(installation.settings.database)
    if path:
        return crontab(migrate.user_name(path.stat().st_uid), line)
    if installation.account:
        return crontab(installation.account.pw_name, line)
    return f"Put into the crontab of {installation.user}, on one host or on each:\n{line}"


# How many shared addresses are named; and how many addresses with such a beginning are read.
SHARED, BEGUN = 3, 1000

# How many rows of a table are read to find those of the future: it takes some tenths of a second.
LOOKED = 1_000_000


def crontab(owner: str, line: str) -> str:
    """Returns the advice to put LINE into the crontab of OWNER."""
    whose = shlex.quote(owner)
    return run(f"(crontab -u {whose} -l; echo {shlex.quote(line)}) | crontab -u {whose} -")


def check_shared(engine: Engine) -> Iterator[Finding]:
    """Yields a warning if known clients have an address that many clients may share."""
    # Each beginning is one range of the primary key. PostgreSQL may sort by language, and then
    # there is no such range.
    address = (
        client.c.address.collate("C") if engine.dialect.name == "postgresql" else client.c.address
    )
    begun = (
        and_(address >= each, address < each[:-1] + chr(ord(each[-1]) + 1))
        for each in normalise.private_beginnings()
    )
    with reading(engine).connect() as connection:
        query = select(client.c.address).where(or_(*begun)).limit(BEGUN)
        found = [one for one in connection.execute(query).scalars() if normalise.is_private(one)][
            :SHARED
        ]
    if found:
        told = safe(", ".join(found))
        text = (
            f"clients come from {told}: behind NAT or a container's network: their"
            " addresses do not tell them apart"
        )
        advice = (
            "Let tcpserver see the real addresses; for hosts of your own, use a rule"
            " (greycheck rules)"
        )
        yield Finding("warning", "clients", text, advice)
