"""Keeps what a domain said: its state and its networks, for all hosts that share the store.

A domain is claimed before it is asked: its next question is put ahead, so that no other host asks
too. What comes of it is written in one transaction, and only by whoever has the last claim: so an
older answer never overwrites a newer one, whatever the hosts' clocks say, and a process that is
killed leaves nothing half done. Its claim is over after CLAIM seconds.

Ranges of one domain never overlap: a check looks only at the one that begins last before the
client. What the domain itself says counts before what is known of one client, and that before what
was seen of a pool.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import randint

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from greycheck.log import show_address
from greycheck.resolve.due import Task, Told, told
from greycheck.spf.evaluate import Answer
from greycheck.spf.ranges import Ranges
from greycheck.store.admin.errors import retry_on_conflict
from greycheck.store.base import DIGEST
from greycheck.store.schema.tables import authorised, spf

# For how many seconds nobody else asks a domain that somebody began to ask.
CLAIM = 120

# The shortest and the longest time for which an answer holds, whatever its TTL; and the shortest
# for "there is none", or "it is wrong".
FLOOR, CEILING, NEGATIVE_FLOOR = 300, 86400, 3600

# The pause after the first question without an answer, and the longest one.
PAUSE, LONGEST_PAUSE = 60, 3600

# How long an answer is used while DNS fails; and how long it is kept where there are no networks,
# as long as mail waits: whoever invents domains leaves no more rows than he has mail waiting.
MAX_AGE, NEGATIVE_AGE = 7 * 86400, 2 * 86400

# How long those networks count that were found before DNS failed, where there is no older answer.
PART = 86400

# The most rows of one domain that are gone through. With more, only what DNS says now is kept.
MOST_ROWS = 5000

# The longest text of what was wrong.
WHY = 400


@dataclass(frozen=True)
class Claim:
    """Who asks the domain of KEY: its row is still so."""

    key: bytes
    asked_at: int
    next_at: int
    failures: int


@dataclass(frozen=True)
class Evaluated:
    """What a domain said of one client: the packed ADDRESS, whether it PASSES, and until when."""

    address: bytes
    passes: bool
    expires: int


def claim(engine: Engine, task: Task, now: int, forced: bool = False) -> Claim | None:
    """Returns the claim to ask the domain of TASK at NOW.

    Returns None if another host has asked, or asks: unless it is FORCED.
    """

    def attempt() -> Claim | None:
        with engine.begin() as connection:
            row = told(connection, task.key, lock=True)
            if row is not None and not forced and not row.is_due(now):
                return None
            next_at = now + CLAIM
            if row is not None and (row.asked_at, row.next_at) == (now, next_at):
                next_at += 1  # each claim is another one
            values: dict[str, object] = {"asked_at": now, "next_at": next_at}
            if row is None:
                made = {
                    "domain_key": task.key,
                    "name": show_address(task.domain),
                    "failures": 0,
                    **NO_ANSWER,
                    "expires_at": now + NEGATIVE_AGE,
                }
                connection.execute(insert(spf).values(values | made))
                return Claim(task.key, now, next_at, 0)
            if row.expires_at <= now:  # not to be removed while it is asked
                values |= {**NO_ANSWER, "expires_at": now + NEGATIVE_AGE}
            connection.execute(update(spf).where(spf.c.domain_key == task.key).values(values))
            return Claim(task.key, now, next_at, row.failures)

    return retry_on_conflict(attempt)


# The columns of a row of a domain of which there is no answer.
NO_ANSWER: dict[str, object] = {"state": "failed", "why": "", "per_client": 0, "answered_at": None}


def keep(
    engine: Engine,
    mine: Claim,
    task: Task,
    answer: Answer,
    evaluated: Sequence[Evaluated],
    now: int,
) -> bool:
    """Writes the ANSWER for the domain of TASK, and what was EVALUATED, at NOW.

    Returns False, and writes nothing, if the domain was claimed again, or forgotten, since it was
    claimed as MINE.
    """

    def attempt() -> bool:
        with engine.begin() as connection:
            row = told(connection, task.key, lock=True)
            if row is None or Claim(task.key, row.asked_at, row.next_at, row.failures) != mine:
                return False
            values, replaces = _values(row, answer, now)
            connection.execute(update(spf).where(spf.c.domain_key == task.key).values(values))
            if answer.state == "failed":
                if replaces:
                    networks = Networks(connection, task, now)
                    networks.offer(answer.ranges, now + PART)
                    networks.write()
                return True
            networks = Networks(connection, task, now)
            networks.keep_clients_in(answer.perhaps)
            if answer.state == "found":
                networks.drop_pools()
            networks.offer(answer.ranges, now + MAX_AGE)
            networks.add(evaluated)
            networks.write()
            return True

    return retry_on_conflict(attempt)


def keep_clients(engine: Engine, task: Task, evaluated: Sequence[Evaluated], now: int) -> bool:
    """Adds what was EVALUATED of clients to the answer that TASK has read, at NOW.

    Returns False, and writes nothing, if that is no longer the domain's answer.
    """

    def attempt() -> bool:
        with engine.begin() as connection:
            row = told(connection, task.key, lock=True)
            assert task.told is not None
            if row is None or row.answered_at != task.told.answered_at or row.state != "found":
                return False
            networks = Networks(connection, task, now)
            networks.add(evaluated)
            networks.write()
            return True

    return retry_on_conflict(attempt)


def _values(row: Told, answer: Answer, now: int) -> tuple[dict[str, object], bool]:
    """Returns the columns of a domain's ROW after ANSWER at NOW.

    With it true if that replaces the networks: of an answer that is too old nothing is left.
    """
    why = answer.why[:WHY]
    if answer.state == "failed":
        failures = row.failures + 1
        values: dict[str, object] = {
            "why": why,
            "failures": failures,
            "next_at": now + pause(failures),
        }
        if row.answered_at is not None and row.expires_at > now:
            return values, False
        return {**NO_ANSWER, **values, "expires_at": now + NEGATIVE_AGE}, True
    return {
        "state": answer.state,
        "why": why,
        "per_client": int(answer.depends),
        "answered_at": now,
        "failures": 0,
        "next_at": now + hold(answer.ttl, answer.state == "found"),
        "expires_at": now + (MAX_AGE if answer.state == "found" else NEGATIVE_AGE),
    }, True


def hold(ttl: int, found: bool = True) -> int:
    """Returns for how many seconds an answer with TTL holds: a little less than it might.

    So not all questions come back at once. FOUND is false if the domain has no networks.
    """
    floor = FLOOR if found else NEGATIVE_FLOOR
    most = min(max(ttl, floor), CEILING)
    return randint(max(floor, most - most // 10), most)


def pause(failures: int) -> int:
    """Returns for how many seconds a domain is not asked after so many FAILURES in a row."""
    most = min(PAUSE << min(failures - 1, 16), LONGEST_PAUSE)
    return most + randint(0, most // 4)


# --- ranges ---------------------------------------------------------------------------------------

# The first and last address, the source, and when it expires.
Range = tuple[bytes, bytes, str, int]

# What is known of one client.
OF_CLIENT = ("client", "refused")


class Networks:
    """The ranges of the domain of TASK at NOW, as they are and as they are to be."""

    def __init__(self, connection: Connection, task: Task, now: int) -> None:
        self._connection = connection
        self._task = task
        self._now = now
        self._here = authorised.c.network_key.between(task.key + bytes(16), task.key + b"\xff" * 16)
        columns = (
            authorised.c.network_key,
            authorised.c.last,
            authorised.c.source,
            authorised.c.expires_at,
        )
        rows = connection.execute(select(*columns).where(self._here).limit(MOST_ROWS + 1)).all()
        if len(rows) > MOST_ROWS:
            connection.execute(delete(authorised).where(self._here))
            rows = []
        self._were: dict[bytes, Range] = {
            bytes(key): (bytes(key)[DIGEST:], bytes(last), source, expires)
            for key, last, source, expires in rows
        }
        alive = [each for each in self._were.values() if each[3] > now]
        self._said = [each for each in alive if each[2] == "spf"]
        self._others = [each for each in alive if each[2] != "spf"]

    def offer(self, ranges: Ranges, expires: int) -> None:
        """Has RANGES, and no others, as what the domain says."""
        self._said = [(packed(first), packed(last), "spf", expires) for first, last in ranges]

    def keep_clients_in(self, perhaps: Ranges) -> None:
        """Forgets of the clients whom the domain does not leave open: those not in PERHAPS."""
        self._others = [
            each for each in self._others if each[2] not in OF_CLIENT or _value(each[0]) in perhaps
        ]

    def drop_pools(self) -> None:
        """Forgets what was seen of pools."""
        self._others = [each for each in self._others if each[2] != "pool"]

    def add(self, evaluated: Iterable[Evaluated]) -> None:
        """Adds what was EVALUATED of clients; it counts before what was known of them."""
        new = [
            (each.address, each.address, "client" if each.passes else "refused", each.expires)
            for each in evaluated
        ]
        theirs = {each[0] for each in new}
        self._others = new + [
            each for each in self._others if each[2] not in OF_CLIENT or each[0] not in theirs
        ]

    def write(self) -> None:
        """Writes what has changed."""
        wanted = {self._task.key + each[0]: each for each in self._apart()}
        gone = {key for key, was in self._were.items() if wanted.get(key, was[:0])[:3] != was[:3]}
        new = [key for key in wanted if key not in self._were or key in gone]
        kept = wanted.keys() & self._were.keys() - gone
        later = [key for key in kept if wanted[key][3] != self._were[key][3]]
        one = authorised.c.network_key == bindparam("one")
        if gone:
            # For many keys at once some servers might read all rows.
            self._connection.execute(delete(authorised).where(one), [{"one": key} for key in gone])
        for expires in {wanted[key][3] for key in later if wanted[key][2] == "spf"}:
            of_domain = update(authorised).where(self._here, authorised.c.source == "spf")
            self._connection.execute(of_domain.values(expires_at=expires))
        single = [key for key in later if wanted[key][2] != "spf"]
        if single:
            self._connection.execute(
                update(authorised).where(one).values(expires_at=bindparam("until")),
                [{"one": key, "until": wanted[key][3]} for key in single],
            )
        if new:
            name = show_address(self._task.domain)
            self._connection.execute(
                insert(authorised),
                [
                    {
                        "network_key": key,
                        "last": wanted[key][1],
                        "source": wanted[key][2],
                        "name": name,
                        "added_at": self._now,
                        "expires_at": wanted[key][3],
                    }
                    for key in new
                ],
            )

    def _apart(self) -> list[Range]:
        """Returns the ranges as they are to be: none overlaps another."""
        said = Ranges(
            (_value(first), _value(last)) for first, last, _source, _expires in self._said
        )
        chosen = list(self._said)
        end = -1
        # Of clients first: they are told of one address. Of the rest the widest that begins first.
        clients = [each for each in self._others if each[2] in OF_CLIENT]
        single = Ranges((_value(each[0]), _value(each[0])) for each in clients)
        chosen += [each for each in clients if _value(each[0]) not in said]
        pools = sorted(
            (each for each in self._others if each[2] not in OF_CLIENT),
            key=lambda each: (each[0], -_value(each[1])),
        )
        for each in pools:
            first, last = _value(each[0]), _value(each[1])
            own = Ranges([(first, last)])
            if first > end and not own & said and not own & single:
                chosen.append(each)
                end = last
        return chosen


def packed(value: int) -> bytes:
    """Returns the 16 bytes of the address VALUE."""
    return value.to_bytes(16, "big")


def _value(address: bytes) -> int:
    return int.from_bytes(address, "big")
