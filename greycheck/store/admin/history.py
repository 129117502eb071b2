"""Daily totals: adds up what checks noted in the spool, and reads it for ``greycheck stats``.

Checks write lines to the spool of their host (``greycheck.history``). ``collect`` takes the whole
file away by renaming it, and adds its totals in one transaction, with a row that says so: it is
never added twice, wherever it is killed. ``read`` returns the totals of the store and what this
host's spool has besides.

A total's ``kind`` says what is counted, and what its names are:

    ========= ================== ========================== =================
    kind      verdict            name                       recipient
    ========= ================== ========================== =================
    verdict   of the attempts    reason                     recipients' domain
    hour      of the attempts    hour of the day, 00 to 23
    delay                        a wait's length (``step``) recipients' domain
    never     ``never``          once or again              recipients' domain
    sender    also ``never``     senders' domain
    network   also ``never``     clients' network
    ever      of the attempts    reason
    waited                       ``step``, or sum
    file                         of the spool that was added
    ========= ================== ========================== =================

``ever`` and ``waited`` are of all days, and only grow. ``never`` counts triplets that expired
without having passed, on the day of their first attempt: of one attempt (once) or more (again).
Of recipients, senders and networks a day has KEPT names at least; the others are one name, which is
empty. ``-`` is who has no domain.

Diagnostics: SQLAlchemy's.
"""

import os
import re
import socket
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from math import ceil, log2
from pathlib import Path
from time import localtime, time_ns
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, or_, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import Insert

from greycheck.envelope import OF_MESSAGE
from greycheck.history import LARGEST, SPOOL, spool
from greycheck.log import show
from greycheck.settings import Settings
from greycheck.store.admin.engine import reading
from greycheck.store.admin.errors import retry_on_conflict
from greycheck.store.base import digest
from greycheck.store.schema.tables import history

VERDICT, HOUR, DELAY, NEVER = "verdict", "hour", "delay", "never"
SENDER, NETWORK, EVER, WAITED, FILE = "sender", "network", "ever", "waited", "file"

# A triplet of which one attempt was made, or more, and that never passed.
ONCE, AGAIN = "once", "again"

SUM = "sum"

# How many names of recipients, senders and networks a day keeps of each.
KEPT = 500

# How long a spool is left alone once it is renamed, in seconds: a check may be about to write.
SETTLED = 2

# How long it is remembered that a spool was added, and how long totals of all days stay after the
# last attempt, in seconds.
REMEMBERED = 30 * 86400
FOR_GOOD = 3650 * 86400

# Rows in one statement.
BATCH = 500

# How many steps double a delay: a step is 9 % longer than the one before.
STEPS = 8

_EPOCH = date(1970, 1, 1).toordinal()
_LINE = re.compile(
    rb"(\d{1,12}) (accept|defer|reject|observe) ([a-z]{1,20}) (\d{1,10})"
    rb" ([!-~]{1,900}) ([!-~]{1,900}) ([0-9a-f:./-]{1,45}) (\d{1,12})\n"
)


class Total(NamedTuple):
    """What one number counts; see above. ``day`` is in days since 1970, 0 for all days."""

    day: int
    kind: str
    verdict: str
    name: str = ""
    recipient: str = ""


Totals = Counter[Total]


def day_of(moment: int) -> int:
    """Returns the local day of MOMENT (seconds since 1970), in days since 1970."""
    year, month, day = localtime(moment)[:3]
    return date(year, month, day).toordinal() - _EPOCH


def date_of(day: int) -> date:
    """Returns the date of DAY (days since 1970)."""
    return date.fromordinal(day + _EPOCH)


def step(seconds: int) -> int:
    """Returns the number of the step in which a delay of SECONDS, at least 1, is counted."""
    return ceil(STEPS * log2(seconds))


def longest(number: int) -> float:
    """Returns the longest delay of step NUMBER, in seconds."""
    return float(2 ** (number / STEPS))


# --- lines ----------------------------------------------------------------------------------------


def add_up(lines: Iterable[bytes]) -> Totals:
    """Returns the totals of LINES of a spool. What is no whole line is left out."""
    totals: Totals = Counter()
    for found in map(_LINE.fullmatch, lines):
        if found is None:
            continue
        when, seconds, number = int(found[1]), int(found[4]), int(found[8])
        verdict, reason, recipient, sender, network = (
            found[part].decode() for part in (2, 3, 5, 6, 7)
        )
        moment = localtime(when)
        day = day_of(when)
        totals[Total(day, VERDICT, verdict, reason, recipient)] += number
        totals[Total(day, HOUR, verdict, f"{moment.tm_hour:02}")] += number
        totals[Total(0, EVER, verdict, reason)] += number
        if seconds:
            of = str(step(seconds))
            totals[Total(day, DELAY, "", of, recipient)] += number
            totals[Total(0, WAITED, "", of)] += number
            totals[Total(0, WAITED, "", SUM)] += seconds * number
        if network != "-":
            totals[Total(day, NETWORK, verdict, network)] += number
            totals[Total(day, SENDER, verdict, sender)] += number
    return totals


# --- the spool ------------------------------------------------------------------------------------


def collect(engine: Engine, settings: Settings, now: int, settled: float = SETTLED) -> int:
    """Adds what the spool of this host has to the store, at NOW; returns how many files it added.

    Those that were renamed less than SETTLED seconds ago are left to the next time.
    """
    path = Path(spool(settings))
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f"{SPOOL}.{time_ns()}.{os.getpid()}"))
    added = 0
    for taken in _taken(path):
        if time_ns() - int(taken.name.split(".")[2]) < settled * 1e9:
            continue
        if _add_file(engine, settings, taken, now):
            added += 1
        taken.unlink(missing_ok=True)
    return added


def _taken(path: Path) -> list[Path]:
    """Returns the files that ``collect`` has renamed, the oldest first."""
    name = re.compile(re.escape(SPOOL) + r"\.\d{1,20}\.\d{1,10}")
    return sorted(each for each in path.parent.glob(f"{SPOOL}.*") if name.fullmatch(each.name))


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of the regular file at PATH, if it is one and can be read."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size < 2 * LARGEST:
            while line := file.readline(4096):
                yield line


def _add_file(engine: Engine, settings: Settings, path: Path, now: int) -> bool:
    """Adds the totals of the spool at PATH, unless they were added before."""
    totals = add_up(_lines(path))
    marker = Total(0, FILE, "", f"{socket.gethostname()} {path.name}")

    def attempt() -> bool:
        with engine.begin() as connection:
            if _has(connection, marker):
                return False
            # It is inserted, not added to: of two that add the same file one fails.
            connection.execute(history.insert(), _row(marker, 1, now + REMEMBERED))
            add(connection, settings, totals, now)
        return True

    try:
        return retry_on_conflict(attempt)
    except IntegrityError:
        return False


def _has(connection: Connection, total: Total) -> bool:
    query = select(history.c.day).where(history.c.total_key == key(total))
    return connection.execute(query).first() is not None


# --- writing --------------------------------------------------------------------------------------


def key(total: Total) -> bytes:
    """Returns the key of the row of TOTAL."""
    return digest("\0".join(map(str, total)).encode())


def add(connection: Connection, settings: Settings, totals: Totals, now: int) -> None:
    """Adds TOTALS to those of the store, in the transaction of CONNECTION at NOW.

    A day that is over for the ``history`` of SETTINGS is left out.
    """
    kept = Counter(
        {
            total: number
            for total, number in _bounded(connection, totals).items()
            if not total.day or _end(total, settings, now) > now
        }
    )
    # All who write do it in the same order: none waits for one that waits for him.
    rows = [
        _row(total, number, _end(total, settings, now))
        for total, number in sorted(kept.items(), key=lambda each: key(each[0]))
    ]
    for start in range(0, len(rows), BATCH):
        connection.execute(_adding(connection.dialect.name), rows[start : start + BATCH])
    for day, kind in sorted({(total.day, total.kind) for total in kept}):
        if kind in (SENDER, NETWORK):
            _prune(connection, settings, day, kind, now)


def _end(total: Total, settings: Settings, now: int) -> int:
    return (total.day + 1) * 86400 + settings.history if total.day else now + FOR_GOOD


def _row(total: Total, number: int, expires: int) -> dict[str, object]:
    return {
        "total_key": key(total),
        **total._asdict(),
        "number": number,
        "expires_at": expires,
    }


def _adding(dialect: str) -> Insert:
    """Returns the statement that inserts a row, or adds its number to that of the row there is."""
    if dialect == "mysql":
        there = mysql.insert(history)
        return there.on_duplicate_key_update(
            number=history.c.number + there.inserted.number, expires_at=there.inserted.expires_at
        )
    one = postgresql.insert(history) if dialect == "postgresql" else sqlite.insert(history)
    return one.on_conflict_do_update(
        index_elements=[history.c.total_key],
        set_={
            "number": history.c.number + one.excluded.number,
            "expires_at": one.excluded.expires_at,
        },
    )


def _bounded(connection: Connection, totals: Totals) -> Totals:
    """Returns TOTALS with no more than KEPT domains of recipients a day, those of the store first.

    Mail servers take mail for few domains; one that takes it for all must not fill the store.
    """
    numbers: dict[int, Counter[str]] = {}
    for total, number in totals.items():
        if total.kind in (VERDICT, DELAY, NEVER):
            numbers.setdefault(total.day, Counter())[total.recipient] += number
    allowed: dict[int, set[str]] = {}
    for day, counted in numbers.items():
        query = select(history.c.recipient).where(
            history.c.day == day, history.c.kind.in_((VERDICT, DELAY, NEVER))
        )
        known = set(connection.execute(query.distinct().limit(2 * KEPT)).scalars())
        fresh = [name for name, _ in counted.most_common() if name not in known]
        allowed[day] = known | set(fresh[: max(0, KEPT - len(known))])
    bounded: Totals = Counter()
    for total, number in totals.items():
        if total.kind in (VERDICT, DELAY, NEVER) and total.recipient not in allowed[total.day]:
            total = total._replace(recipient="")
        bounded[total] += number
    return bounded


def _prune(connection: Connection, settings: Settings, day: int, kind: str, now: int) -> None:
    """Makes one of all names of DAY and KIND but the KEPT busiest, once there are twice as many."""
    of_day = and_(history.c.day == day, history.c.kind == kind, history.c.name != "")
    number = func.sum(history.c.number)
    names = select(history.c.name).where(of_day).group_by(history.c.name)
    if connection.execute(select(func.count()).select_from(names.subquery())).scalar_one() <= (
        2 * KEPT
    ):
        return
    kept = set(connection.execute(names.order_by(number.desc()).limit(KEPT)).scalars())
    rest: Totals = Counter()
    gone = []
    for row in connection.execute(select(history).where(of_day)).mappings().all():
        if row["name"] not in kept:
            rest[Total(day, kind, row["verdict"])] += row["number"]
            gone.append(row["total_key"])
    for start in range(0, len(gone), BATCH):
        chosen = history.c.total_key.in_(gone[start : start + BATCH])
        connection.execute(delete(history).where(chosen))
    add(connection, settings, rest, now)


# --- what never came back -------------------------------------------------------------------------


class Waiting(NamedTuple):
    """A triplet that expires while it waits."""

    triplet_key: bytes
    network: str
    sender: str
    recipient: str
    first_attempt: int
    early_attempts: int


def never(settings: Settings, rows: Sequence[Waiting]) -> Totals:
    """Returns the totals of ROWS, triplets that expired without having passed."""
    totals: Totals = Counter()
    mark = show(OF_MESSAGE)
    for row in rows:
        if row.recipient.startswith(mark):
            continue
        day = day_of(row.first_attempt)
        how = AGAIN if row.early_attempts else ONCE
        totals[Total(day, NEVER, NEVER, how, _domain(row.recipient))] += 1
        if settings.history_senders == "yes":
            totals[Total(day, SENDER, NEVER, _domain(row.sender))] += 1
            totals[Total(day, NETWORK, NEVER, row.network)] += 1
    return totals


def _domain(address: str) -> str:
    return address.rpartition("@")[2] if "@" in address else "-"


# --- reading --------------------------------------------------------------------------------------


def read(engine: Engine, settings: Settings, first: int, last: int) -> Totals:
    """Returns the totals of the days FIRST to LAST, and those of all days.

    What this host's spool has and the store has not is in them.
    """
    days: ColumnElement[bool] = or_(history.c.day == 0, history.c.day.between(first, last))
    columns = [history.c[name] for name in Total._fields]
    query = select(*columns, history.c.number).where(days, history.c.kind != FILE)
    totals: Totals = Counter()
    # The spool is read first: what is added to the store meanwhile is not counted twice.
    path = Path(spool(settings))
    spooled = [(each, add_up(_lines(each))) for each in (path, *_taken(path))]
    with reading(engine).connect() as connection:
        host = socket.gethostname()
        for each, counted in spooled:
            if each == path or not _has(connection, Total(0, FILE, "", f"{host} {each.name}")):
                totals += Counter(
                    {
                        total: number
                        for total, number in counted.items()
                        if not total.day or first <= total.day <= last
                    }
                )
        for *names, number in connection.execute(query):
            totals[Total(*names)] += number
    return totals
