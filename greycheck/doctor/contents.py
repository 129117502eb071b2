"""Examines a store's contents: its schema, traces of a wrong clock or a missing cron job."""

import shlex
from collections.abc import Iterator

from sqlalchemy import Engine, and_, case, func, or_, select

from greycheck import normalise
from greycheck.doctor.finding import Finding, Installation, run, safe
from greycheck.settings import Settings, duration_text
from greycheck.store.admin import expiry
from greycheck.store.admin.engine import reading
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import client, triplet

# How many seconds the clocks of two hosts may differ.
CLOCKS_APART = 5

# How many seconds expired rows may stay: cron runs once an hour.
LEFT_OVER = 86400


def check_schema(revision: str | None, settings: Settings) -> Finding:
    """Finds out if this program can use the schema at REVISION in the store of SETTINGS."""
    url = migrate.shown(settings.database)
    if revision is None and settings.database.path:
        return Finding("note", "store", f"{url}: empty: the first mail makes the tables")
    wrong = migrate.misfit(revision)
    if wrong:
        said, _colon, command = wrong.rpartition(": run ")
        until = "every check answers by on_error until then"
        return Finding(
            "fault", "store", f"{url}: {said or wrong}: {until}", run(command) if said else ""
        )
    if revision == migrate.head():
        return Finding("ok", "store", f"{url}: schema at {revision}")
    return Finding("note", "store", f"{url}: the schema is {migrate.standing(revision)}")


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
    advice = in_crontab(f"7 * * * * {installation.command} expire", installation)
    return Finding(
        "warning",
        "cron",
        f"rows that expired more than {duration_text(LEFT_OVER)} ago are still there ({rows}):"
        " expire does not run",
        advice,
    )


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
        for each in normalise.PRIVATE
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
