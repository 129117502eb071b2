"""What the store has for ``greycheck metrics``, as plain values.

Diagnostics: SQLAlchemy's, and StoreError.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, func, select

from greycheck.history import SPOOL, spool
from greycheck.log import quoted
from greycheck.privilege import files
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.admin import history
from greycheck.store.admin.engine import reading
from greycheck.store.admin.history import EVER, EXPIRE, SUM, WAITED
from greycheck.store.admin.summary import ROWS, Summary, summary
from greycheck.store.base import StoreError
from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import provider, triplet

# How many providers and hosts are named at most.
NAMED = 200

_WORD = re.compile(r"[a-z]{1,20}")

# How a line of the spool begins, and how many bytes are read of it.
_FIRST = re.compile(rb"(\d{5,11}) ")
_LONGEST = 12


@dataclass
class Counted:
    """What was counted. Times are in seconds since 1970.

    ``verdicts`` are attempts by verdict and reason, ``waited`` passes by the step of their delay
    (``history.step``), which have waited ``seconds`` in all. ``oldest`` is the first attempt of
    what has waited longest, None where nothing waits among the first ROWS to expire. ``expired`` is
    when each host last ran ``greycheck expire``, ``answered`` when DNS last told of each provider,
    0 for never.
    """

    summary: Summary = field(default_factory=Summary)
    revision: str = ""
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    waited: Counter[int] = field(default_factory=Counter)
    seconds: int = 0
    oldest: int | None = None
    expired: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)


def counted(engine: Engine, settings: Settings, now: int) -> Counted:
    """Returns what the store of ENGINE has at NOW under SETTINGS."""
    found = Counted(summary(engine, settings, now), migrate.current(settings.database) or "")
    # No day is asked for: only what is of all days comes.
    for total, number in history.read(engine, settings, 1, 0, now).items():
        if total.kind == EVER and _WORD.fullmatch(total.verdict) and _WORD.fullmatch(total.name):
            found.verdicts[total.verdict, total.name] += number
        elif total.kind == WAITED and total.name == SUM:
            found.seconds += number
        elif total.kind == WAITED and total.name.isdecimal() and len(total.name) < 6:
            found.waited[int(total.name)] += number
        elif total.kind == EXPIRE and len(found.expired) < NAMED:
            found.expired[_plain(total.name)] = number
    # What waits longest expires first; what has passed may stand before it.
    looked = (
        select(triplet.c.first_attempt, triplet.c.passes)
        .where(triplet.c.expires_at >= now)
        .order_by(triplet.c.expires_at)
        .limit(ROWS)
        .subquery("looked")
        .c
    )
    waits = select(func.min(looked.first_attempt)).where(
        looked.passes == 0, looked.first_attempt.between(now - settings.retry_window, now)
    )
    names = select(provider.c.name, provider.c.answered_at).order_by(provider.c.name).limit(NAMED)
    with reading(engine).connect() as connection:
        found.oldest = connection.execute(waits).scalar()
        for name, answered in connection.execute(names):
            found.answered[_plain(name)] = answered or 0
    return found


def marks(settings: Settings) -> Iterator[tuple[str, str, float]]:
    """Yields each host of a server database with each kind of mark, and for how many seconds.

    0 where it is not marked.
    """
    server = settings.database.server
    if server is None:
        return
    breaker = Breaker(settings.state_directory, server)
    for host in server.hosts[:NAMED]:
        for kind in (DOWN, STUCK):
            since = breaker.since(host, kind)
            # A mark that was made just now is one, too.
            yield _plain(str(host)), kind, 0.0 if since is None else max(1.0, since)


class Spooled(NamedTuple):
    """Counts of this host that are not in the store: their SIZE in bytes, and how old they are.

    OLDEST is the time of the first, in seconds since 1970; None where there is none, or nobody
    knows.
    """

    size: int = 0
    oldest: int | None = None


def spooled(settings: Settings) -> Spooled:
    """Returns what the spool of SETTINGS has. Root reads none that another may write."""
    size = 0
    first: list[int] = []
    with suppress(OSError, StoreError):
        path = Path(spool(settings) or "/nonexistent/-")
        rights.refuse_root(str(path))
        for each in path.parent.glob(f"{SPOOL}*"):
            with suppress(OSError):
                size += each.lstat().st_size
                found = _FIRST.match(files.read(each, _LONGEST))
                first += [int(found[1])] if found else []
    return Spooled(size, min(first, default=None))


def _plain(text: str) -> str:
    """Returns TEXT, which may come from another host, in printable characters of ASCII."""
    return quoted(text[:255])[1:-1].encode("ascii", "backslashreplace").decode()
