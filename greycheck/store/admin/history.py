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
    delay                        a wait's length (``step``)
    never     ``never``          once or again              recipients' domain
    sender    also ``never``     senders' domain
    network   also ``never``     clients' network
    ever      of the attempts    reason
    waited                       ``step``, or sum
    file                         of the spool that was added
    expire                       of the host
    lock
    ========= ================== ========================== =================

``ever`` and ``waited`` are of all days, and only grow. The number of ``expire`` is when that host
last ran ``greycheck expire`` to its end, in seconds since 1970. ``never`` counts triplets that
expired without having passed, on the day of their first attempt: of one attempt (once) or more
(again). Of recipients, senders and networks a day has KEPT names at least; the others are one name,
which is empty. ``-`` is who has no domain. ``lock`` counts nothing: whoever adds or removes totals
changes its row first, so that they do it one after the other.

Diagnostics: SQLAlchemy's, and OSError where the spool cannot be taken away.
"""

import os
import re
import socket
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from functools import cache
from math import ceil, log2
from pathlib import Path
from time import localtime, sleep, time_ns
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from greycheck.envelope import OF_MESSAGE
from greycheck.history import LARGEST, SPOOL, spool
from greycheck.log import show
from greycheck.normalise import IPV4_BITS, IPV6_BITS, address_text, is_private
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.admin.engine import reading
from greycheck.store.admin.errors import retry_on_conflict
from greycheck.store.base import MAPPED_BYTES, digest
from greycheck.store.schema.tables import DIGEST, authorised, client, domain, history, spf, triplet
from greycheck.store.waiting import AUTHORISING, pair_keys

VERDICT, HOUR, DELAY, NEVER = "verdict", "hour", "delay", "never"
SENDER, NETWORK, EVER, WAITED, FILE = "sender", "network", "ever", "waited", "file"
EXPIRE, LOCK = "expire", "lock"

# The kinds that name domains of recipients, and those that tell of one day.
OF_RECIPIENTS = (VERDICT, NEVER)
OF_A_DAY = (VERDICT, HOUR, DELAY, NEVER)

# A triplet of which one attempt was made, or more, and that never passed.
ONCE, AGAIN = "once", "again"

SUM = "sum"

# How many names of recipients, senders and networks a day keeps of each.
KEPT = 200

# How many different totals of a spool are held in memory at once, about.
HELD = 100_000

# How long a spool is left alone once it is renamed, in seconds: a check may be about to write.
SETTLED = 2

# How far ahead of this host's clock a line may be, in seconds: what is later was cut in writing.
AHEAD = 86400

# No total of one spool is larger, whatever was written there: a row's sum stays within 64 bits.
LARGEST_TOTAL = 10**15

# How long it is remembered that a spool was added or that a host has run expire, and how long
# totals of all days stay after the last attempt, in seconds.
REMEMBERED = 30 * 86400
FOR_GOOD = 3650 * 86400

# Rows in one statement.
BATCH = 500

# How often the spool is read again that was taken away meanwhile.
TRIES = 5

# How many steps double a delay: a step is 9 % longer than the one before.
STEPS = 8

_EPOCH = date(1970, 1, 1).toordinal()
_LINE = re.compile(
    rb"(\d{5,11}) (accept|defer|reject|observe) ([a-z]{1,20}) (\d{1,9})"
    rb" ([^\x00-\x20\x7f]{1,900}) ([^\x00-\x20\x7f]{1,900}) ([0-9a-f:./-]{1,45}) (\d{1,9})\n"
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
    return number_of(date(year, month, day))


def number_of(day: date) -> int:
    """Returns DAY in days since 1970."""
    return day.toordinal() - _EPOCH


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


def add_up(lines: Iterable[bytes], now: int) -> Totals:
    """Returns the totals at NOW of LINES of a spool. What is no whole line is left out.

    Of very many names the busiest are kept, as in the store.
    """
    totals: Totals = Counter()
    for found in map(_LINE.fullmatch, lines):
        if found is None:
            continue
        when, seconds, number = int(found[1]), int(found[4]), int(found[8])
        if not 2 * 86400 <= when <= now + AHEAD:
            continue
        try:
            verdict, reason, recipient, sender, network = (
                found[part].decode() for part in (2, 3, 5, 6, 7)
            )
        except UnicodeDecodeError:
            continue
        if not (recipient + sender).isprintable():
            continue
        moment = localtime(when)
        day = number_of(date(*moment[:3]))
        totals[Total(day, VERDICT, verdict, reason, recipient)] += number
        totals[Total(day, HOUR, verdict, f"{moment.tm_hour:02}")] += number
        totals[Total(0, EVER, verdict, reason)] += number
        if seconds:
            of = str(step(seconds))
            totals[Total(day, DELAY, "", of)] += number
            totals[Total(0, WAITED, "", of)] += number
            totals[Total(0, WAITED, "", SUM)] += seconds * number
        if network != "-":
            totals[Total(day, NETWORK, verdict, network)] += number
            totals[Total(day, SENDER, verdict, sender)] += number
        if len(totals) > HELD:
            totals = _narrowed(totals, {})
    for total, number in totals.items():
        totals[total] = min(number, LARGEST_TOTAL)
    return totals


# What has many names: a day and a kind, VERDICT for all that tell of recipients.
Dimension = tuple[int, str]


def _dimension(total: Total) -> tuple[Dimension, str] | None:
    """Returns where the name of TOTAL is one of many, and that name; None where it is not."""
    if total.kind in OF_RECIPIENTS:
        return (total.day, VERDICT), total.recipient
    if total.kind in (SENDER, NETWORK):
        return (total.day, total.kind), total.name
    return None


def _unnamed(total: Total) -> Total:
    if total.kind in OF_RECIPIENTS:
        return total._replace(recipient="")
    return total._replace(name="")


def _narrowed(totals: Totals, known: dict[Dimension, set[str]]) -> Totals:
    """Returns TOTALS with KNOWN names and KEPT others a day; all further ones are one name.

    Of recipients there are no more than KEPT in all: mail servers take mail for few domains, and
    one that takes it for all must not fill the store.
    """
    numbers: defaultdict[Dimension, Counter[str]] = defaultdict(Counter)
    for total, number in totals.items():
        if (found := _dimension(total)) is not None:
            numbers[found[0]][found[1]] += number
    allowed: dict[Dimension, set[str]] = {}
    for dimension, counted in numbers.items():
        names = known.get(dimension, set())
        room = max(0, KEPT - len(names)) if dimension[1] == VERDICT else KEPT
        fresh = [name for name, _number in counted.most_common() if name not in names]
        allowed[dimension] = names | set(fresh[:room])
    narrowed: Totals = Counter()
    for total, number in totals.items():
        found = _dimension(total)
        is_kept = found is None or found[1] in allowed[found[0]]
        narrowed[total if is_kept else _unnamed(total)] += number
    return narrowed


# --- the spool ------------------------------------------------------------------------------------


def take(settings: Settings) -> None:
    """Takes away the spool of this host, for ``collect``: checks begin another one.

    Raises OSError if it cannot be taken away: what is in it stays there.
    """
    path = _spool(settings)
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f"{SPOOL}.{time_ns()}.{os.getpid()}"))


def collect(
    engine: Engine,
    settings: Settings,
    now: int,
    settled: float = SETTLED,
    rest: Callable[[float], None] = sleep,
) -> int:
    """Adds to the store, at NOW, what was taken of this host; returns how many files it added.

    It takes the spool itself where nothing was taken before. It waits until SETTLED seconds have
    passed since the last of them was taken (REST is called with seconds). Raises OSError if a file
    cannot be taken away.
    """
    path, added = _spool(settings), 0
    if not _taken(path):
        take(settings)
    for taken in _taken(path):
        missing = settled - (time_ns() - int(taken.name.split(".")[2])) / 1e9
        # More than that: the clock was set back since.
        if settings.history and 0 < missing <= settled:
            rest(missing)
        if settings.history and _add_file(engine, settings, taken, now):
            added += 1
        taken.unlink(missing_ok=True)
    return added


def _spool(settings: Settings) -> Path:
    """Returns the path of this host's spool. Raises StoreError for root in another's directory."""
    path = spool(settings)
    rights.refuse_root(path)
    return Path(path)


# How many files are added, or read, at once: those of a host whose commands were killed as often.
FILES = 8


def _taken(path: Path) -> list[Path]:
    """Returns the files that ``collect`` has renamed, the oldest first, FILES at most."""
    name = re.compile(re.escape(SPOOL) + r"\.\d{1,20}\.\d{1,10}")
    try:
        found = sorted(each for each in path.parent.iterdir() if name.fullmatch(each.name))
        return found[:FILES]
    except (FileNotFoundError, PermissionError):
        return []


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of the regular file at PATH, if it is one.

    Raises FileNotFoundError, or PermissionError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError:
        return  # a link, or a socket
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        # One that has another name too was not taken here.
        is_one = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if is_one and status.st_size < 2 * LARGEST:
            while line := file.readline(4096):
                yield line


def _marker(name: str) -> Total:
    """Returns what is counted where the spool of this host that has NAME was added."""
    return Total(0, FILE, "", f"{socket.gethostname()} {name}")


def _add_file(engine: Engine, settings: Settings, path: Path, now: int) -> bool:
    """Adds the totals of the spool at PATH, unless they were added before."""
    try:
        totals = add_up(_lines(path), now)
    except FileNotFoundError:
        return False  # another one has added it meanwhile
    marker = _marker(path.name)

    def attempt() -> bool:
        with engine.begin() as connection:
            lock(connection, now)
            if _has(connection, marker):
                return False
            # It is inserted, not added to: of two that add the same file one fails.
            connection.execute(history.insert(), _row(marker, 1, now + REMEMBERED))
            add(connection, settings, totals, now)
        return True

    # The one that fails is tried again, and sees the other's row then.
    return retry_on_conflict(attempt)


def _has(connection: Connection, total: Total) -> bool:
    query = select(history.c.day).where(history.c.total_key == key(total))
    return connection.execute(query).first() is not None


# --- writing --------------------------------------------------------------------------------------


def key(total: Total) -> bytes:
    """Returns the key of the row of TOTAL."""
    return digest("\0".join(map(str, total)).encode())


def lock(connection: Connection, now: int) -> None:
    """Waits, at NOW, until the transaction of CONNECTION is the only one that changes totals.

    So it is until its end. What it has locked before, others wait for meanwhile: let it be nothing.
    On the nodes of a Galera cluster several may go on; all but one of them fail at COMMIT.
    """
    row = _row(Total(0, LOCK, ""), 0, now + FOR_GOOD)
    connection.execute(_adding(connection.dialect.name), [row])


def add(connection: Connection, settings: Settings, totals: Totals, now: int) -> None:
    """Adds TOTALS to those of the store, at NOW, in the transaction of CONNECTION, with its lock.

    A day that is over for the ``history`` of SETTINGS is left out, and so are senders and networks
    where there are to be none.
    """
    kept: Totals = Counter(
        {
            total: number
            for total, number in totals.items()
            if (not total.day or _end(total, settings, now) > now)
            and (total.kind not in (SENDER, NETWORK) or settings.history_senders == "yes")
        }
    )
    kept = _narrowed(kept, _known(connection, kept))
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


def _known(connection: Connection, totals: Totals) -> dict[Dimension, set[str]]:
    """Returns the names that the store has already where TOTALS have some of many."""
    wanted = {found[0] for total in totals if (found := _dimension(total)) is not None}
    known: dict[Dimension, set[str]] = {}
    for day, kind in sorted(wanted):
        column = history.c.recipient if kind == VERDICT else history.c.name
        kinds = OF_RECIPIENTS if kind == VERDICT else (kind,)
        query = select(column).where(history.c.day == day, history.c.kind.in_(kinds), column != "")
        known[day, kind] = set(connection.execute(query.distinct().limit(4 * KEPT)).scalars())
    return known


def _prune(connection: Connection, settings: Settings, day: int, kind: str, now: int) -> None:
    """Makes one of all names of DAY and KIND but the KEPT busiest, once there are twice as many."""
    of_day = and_(history.c.day == day, history.c.kind == kind, history.c.name != "")
    names = select(history.c.name).where(of_day).group_by(history.c.name)
    number = connection.execute(select(func.count()).select_from(names.subquery())).scalar_one()
    if number <= 2 * KEPT:
        return
    found = connection.execute(select(history).where(of_day)).mappings().all()
    numbers: Counter[str] = Counter()
    for row in found:
        numbers[row["name"]] += row["number"]
    kept = {name for name, _number in numbers.most_common(KEPT)}
    gone = [row for row in found if row["name"] not in kept]
    rest: Totals = Counter()
    for row in gone:
        rest[Total(day, kind, row["verdict"])] += row["number"]
    _delete(connection, [row["total_key"] for row in gone])
    add(connection, settings, rest, now)


def _delete(connection: Connection, keys: Sequence[bytes]) -> None:
    for start in range(0, len(keys), BATCH):
        chosen = history.c.total_key.in_(keys[start : start + BATCH])
        connection.execute(delete(history).where(chosen))


def forget(engine: Engine, settings: Settings, now: int) -> int:
    """Removes what SETTINGS no longer want: days that are over at NOW, and senders and networks.

    Rows have their end from the settings under which they were written. Returns how many went.
    """
    # ``_end`` is over by then.
    unwanted: ColumnElement[bool] = history.c.day.between(1, (now - settings.history) // 86400 - 1)
    if not settings.history:
        unwanted = history.c.kind != EXPIRE
    elif settings.history_senders != "yes":
        unwanted = or_(unwanted, history.c.kind.in_((SENDER, NETWORK)))
    query = select(history.c.total_key).where(unwanted).limit(BATCH)

    def attempt() -> int:
        with reading(engine).connect() as connection:
            keys = list(connection.execute(query).scalars())
        if keys:
            with engine.begin() as connection:
                lock(connection, now)
                _delete(connection, keys)
        return len(keys)

    removed = 0
    while found := retry_on_conflict(attempt):
        removed += found
    return removed


def last_expired(totals: Totals) -> int:
    """Returns when a host last ran ``greycheck expire`` to its end by TOTALS; 0: none has."""
    return max((number for total, number in totals.items() if total.kind == EXPIRE), default=0)


def note_expired(engine: Engine, now: int) -> None:
    """Notes that this host has run ``greycheck expire`` at NOW."""
    row = _row(Total(0, EXPIRE, "", socket.gethostname()), now, now + REMEMBERED)
    there = history.c.total_key == row["total_key"]
    change = update(history).where(there).values(number=now, expires_at=row["expires_at"])

    def attempt() -> None:
        with engine.begin() as connection:
            if not connection.execute(change).rowcount:
                connection.execute(history.insert(), row)

    retry_on_conflict(attempt)


# --- what never came back -------------------------------------------------------------------------


class Waiting(NamedTuple):
    """A triplet that expires while it waits."""

    triplet_key: bytes
    network: str
    sender: str
    recipient: str
    first_attempt: int
    early_attempts: int
    origin: bytes | None
    authorised: int


def never(connection: Connection, settings: Settings, rows: Sequence[Waiting]) -> Totals:
    """Returns the totals of those of ROWS that never came back.

    A triplet may wait to its end although its mail has come: from another network; or because its
    client, or the domain that it may send for, became known by another mail meanwhile, and has had
    all its mail let in since: as far as SETTINGS let it in.
    """
    totals: Totals = Counter()
    mark = show(OF_MESSAGE)
    rows = [row for row in rows if not row.recipient.startswith(mark)]
    # An address that many may share makes neither itself nor a domain known.
    origins = {
        origin
        for origin in {bytes(row.origin) for row in rows if row.origin}
        if not is_private(_address(origin))
    }
    clients = _last_seen(
        connection, client, {_address(origin) for origin in origins}, settings.client_passes
    )
    domains = _last_seen(
        connection,
        domain,
        {origin[:DIGEST] for origin in origins},
        settings.domain_passes if settings.identity == "yes" else 0,
    )
    passed = _passed(connection, rows)
    for row in rows:
        origin = bytes(row.origin or b"")
        if origin in origins:
            if clients.get(_address(origin), 0) > row.first_attempt:
                continue
            if domains.get(origin[:DIGEST], 0) > row.first_attempt and (
                row.authorised or _may_send(connection, origin)
            ):
                continue
        if (row.sender, row.recipient) in passed:
            continue
        day = day_of(row.first_attempt)
        how = AGAIN if row.early_attempts else ONCE
        totals[Total(day, NEVER, NEVER, how, _domain(row.recipient))] += 1
        if settings.history_senders == "yes":
            totals[Total(day, SENDER, NEVER, _domain(row.sender))] += 1
            totals[Total(day, NETWORK, NEVER, row.network)] += 1
    return totals


def _address(origin: bytes) -> str:
    """Returns the client's address in ORIGIN."""
    packed = origin[DIGEST:]
    if packed.startswith(MAPPED_BYTES):
        return address_text(IPV4_BITS, int.from_bytes(packed[len(MAPPED_BYTES) :], "big"))
    return address_text(IPV6_BITS, int.from_bytes(packed, "big"))


def _last_seen(
    connection: Connection, table: Table, keys: "set[str] | set[bytes]", passes: int
) -> dict[object, int]:
    """Returns when those of KEYS of TABLE were last seen that have passed PASSES times (0: none).

    So often they must have passed for all their mail to be let in.
    """
    if not passes:
        return {}
    column = next(iter(table.primary_key))
    wanted, found = sorted(keys), {}
    for start in range(0, len(wanted), BATCH):
        query = select(column, table.c.last_seen).where(
            column.in_(wanted[start : start + BATCH]), table.c.passes >= passes
        )
        for name, seen in connection.execute(query):
            found[bytes(name) if isinstance(name, memoryview) else name] = seen
    return found


def _may_send(connection: Connection, origin: bytes) -> bool:
    """True if the client of ORIGIN may send for the domain of it (``store.base.identity``)."""
    column = authorised.c.network_key
    query = (
        select(authorised.c.last, authorised.c.source)
        .where(column >= origin[:DIGEST], column <= origin)
        .order_by(column.desc())
        .limit(1)
    )
    found = connection.execute(query).first()
    if found is None or found[1] not in AUTHORISING or bytes(found[0]) < origin[DIGEST:]:
        return False
    if found[1] != "pool":
        return True
    says = select(spf.c.state).where(next(iter(spf.primary_key)) == origin[:DIGEST])
    return connection.execute(says).scalar() != "found"


# How many pairs are asked for at once.
PAIRS = 50


@cache
def _of_pairs() -> Select[Any]:
    """Returns the query of senders and recipients that passed within PAIRS ranges of keys."""
    column = triplet.c.triplet_key
    ranges = (
        and_(column >= bindparam(f"low{number}"), column <= bindparam(f"high{number}"))
        for number in range(PAIRS)
    )
    return select(triplet.c.sender, triplet.c.recipient).where(triplet.c.passes > 0, or_(*ranges))


def _passed(connection: Connection, rows: Sequence[Waiting]) -> set[tuple[str, str]]:
    """Returns senders and recipients of ROWS whose mail has passed from another network."""
    found: set[tuple[str, str]] = set()
    # The keys of one pair stand together, but for the null sender's.
    keys = sorted({pair_keys(bytes(row.triplet_key)) for row in rows if row.sender})
    for start in range(0, len(keys), PAIRS):
        chunk = keys[start : start + PAIRS]
        chunk += chunk[-1:] * (PAIRS - len(chunk))
        given: dict[str, bytes] = {}
        for number, (low, high) in enumerate(chunk):
            given |= {f"low{number}": low, f"high{number}": high}
        found |= {(row[0], row[1]) for row in connection.execute(_of_pairs(), given)}
    return found


def _domain(address: str) -> str:
    return address.rpartition("@")[2] if "@" in address else "-"


# --- reading --------------------------------------------------------------------------------------


def read(engine: Engine, settings: Settings, first: int, last: int, now: int) -> Totals:
    """Returns the totals of the days FIRST to LAST, and those of all days, at NOW.

    Of each day they have what OF_A_DAY names, of recipients together. What tells of recipients,
    senders and networks is of all these days together, as day 0. What this host's spool has and the
    store has not is in them, if this user may read it.
    """
    path = _spool(settings)
    for _try in range(TRIES - 1):
        found = _read_once(engine, path, first, last, now)
        if found is not None:
            return found
    return _read_once(engine, path, first, last, now, is_last=True) or Counter()


def _read_once(
    engine: Engine, path: Path, first: int, last: int, now: int, is_last: bool = False
) -> Totals | None:
    """Returns the totals; None if the spool was taken away meanwhile, so that it may be in them.

    The spool is read before the store: nothing is missed.
    """
    before = _identity(path)
    spooled: list[tuple[Path, Totals]] = []
    for each in (path, *_taken(path)):
        with suppress(FileNotFoundError, PermissionError):
            spooled.append((each, add_up(_lines(each), now)))
    totals: Totals = Counter()
    markers = set()
    with reading(engine).connect() as connection:
        for day, kind, verdict, name, recipient, number in connection.execute(_query(first, last)):
            total = Total(day, kind, verdict, name, recipient)
            if total.kind == FILE:
                markers.add(total)
            elif total.kind != LOCK:
                totals[total] += int(number)
    if before != _identity(path) and before is not None and not is_last:
        return None
    for each, counted in spooled:
        if each == path or _marker(each.name) not in markers:
            _fold(totals, counted, first, last)
    return totals


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _query(first: int, last: int) -> CompoundSelect[Any]:
    """Returns the query of what ``read`` returns, in one statement: it sees one moment."""
    row = history.c
    number = func.sum(row.number)
    within = row.day.between(first, last)
    none, nobody = literal(0), literal("")
    of_days = (
        select(row.day, row.kind, row.verdict, row.name, nobody, number)
        .where(within, row.kind.in_(OF_A_DAY))
        .group_by(row.day, row.kind, row.verdict, row.name)
    )
    of_recipients = (
        select(none, row.kind, row.verdict, row.name, row.recipient, number)
        .where(within, row.kind.in_(OF_RECIPIENTS))
        .group_by(row.kind, row.verdict, row.name, row.recipient)
    )
    of_senders = (
        select(none, row.kind, row.verdict, row.name, nobody, number)
        .where(within, row.kind.in_((SENDER, NETWORK)))
        .group_by(row.kind, row.verdict, row.name)
    )
    of_all = select(row.day, row.kind, row.verdict, row.name, row.recipient, row.number).where(
        row.day == 0
    )
    return union_all(of_days, of_recipients, of_senders, of_all)


def _fold(totals: Totals, counted: Totals, first: int, last: int) -> None:
    """Adds what is COUNTED in a spool to TOTALS, as ``read`` returns them."""
    for total, number in counted.items():
        if not total.day:
            totals[total] += number
        elif first <= total.day <= last:
            if total.kind in OF_A_DAY:
                totals[total._replace(recipient="")] += number
            if _dimension(total) is not None:
                totals[total._replace(day=0)] += number
