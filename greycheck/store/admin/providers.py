"""The operators' providers in the store, and the ranges by which checks know their networks.

Interface: ``all_providers``; ``changes`` tells what answers of DNS would change, ``apply`` changes
it, ``remove`` removes. Functions take an SQLAlchemy engine, whose errors they do not catch, and
times as whole seconds since 1970, UTC.

Table ``provider`` has the networks of each. In table ``authorised`` are the ranges of all of them
together, under the key PROVIDERS: no two overlap, and each has the names of all providers whose it
is. Both are written in one transaction, which changes only the ranges that differ. Two hosts that
write at once do so one after the other: each transaction first writes the row of the key PROVIDERS
in table ``provider``, which is no provider.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from greycheck.spf import networks
from greycheck.spf.providers import Said, in_words
from greycheck.store.admin import errors
from greycheck.store.admin.engine import reading
from greycheck.store.base import StoreError, domain_key
from greycheck.store.schema.tables import authorised
from greycheck.store.schema.tables import provider as table
from greycheck.store.waiting import PROVIDERS

# The most providers: the names of all of them must have room at one range.
MOST = 100

# The most networks of all of them: to write so many holds up a check for a second at most.
MOST_NETWORKS = 20_000

# How long ranges stay, in seconds, unless they are written again: an old list is better than none.
KEPT = 3650 * 86400

# How many seconds old a list may be: ``greycheck providers refresh`` is for once a week.
FRESH = 7 * 86400

# How many keys one statement has.
_BATCH = 500

# The first and the last key that a range of providers may have.
_FIRST, _LAST = PROVIDERS + b"\0" * 16, PROVIDERS + b"\xff" * 16

# What happened to a provider. KEPT_OLD: DNS gave no list, so the old one stays.
ADDED, CHANGED, UNCHANGED, KEPT_OLD = "added", "changed", "unchanged", "kept"

# A range of addresses, packed, with the names of the providers whose it is.
Named = tuple[bytes, bytes, str]


class ChangedMeanwhile(StoreError):
    """Somebody else has changed what was to be changed."""


@dataclass(frozen=True)
class Provider:
    """A provider whose mail is let in: all NETWORKS that the SPF of the domain NAME authorises.

    ANSWERED_AT is when DNS last gave a list, ASKED_AT when it was last asked. WHY is what it said
    then instead of a list, or of a part of it, as ``STATE: words``; empty if all is well.
    """

    name: str
    comment: str
    networks: tuple[str, ...]
    created_at: int
    answered_at: int | None
    asked_at: int
    why: str = ""

    @property
    def state(self) -> str:
        """What the last question came to: a state as those of ``spf.evaluate.Answer``."""
        return self.why.partition(":")[0] if self.why else "found"

    def is_old(self, now: int) -> bool:
        """Whether DNS last gave a list longer than FRESH before NOW."""
        return self.answered_at is None or now - self.answered_at > FRESH

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty if all is well."""
        return in_words(self.state, self.why.partition(": ")[2], not self.networks)


@dataclass(frozen=True)
class Change:
    """WHAT happened to a PROVIDER, which was OLD before, and what DNS SAID of it."""

    what: str
    provider: Provider
    old: Provider | None
    said: Said

    @property
    def added(self) -> list[str]:
        """The networks that it has now, and had not before."""
        return _without(self.provider.networks, self.old.networks if self.old else ())

    @property
    def removed(self) -> list[str]:
        """The networks that it had before, and has not now."""
        return _without(self.old.networks if self.old else (), self.provider.networks)


def _without(these: Sequence[str], others: Collection[str]) -> list[str]:
    gone = set(others)
    return [one for one in these if one not in gone]


def all_providers(engine: Engine) -> list[Provider]:
    """Returns every provider, by name."""
    with reading(engine).connect() as connection:
        return list(_present(connection).values())


def _present(connection: Connection) -> dict[str, Provider]:
    rows = connection.execute(select(table).where(table.c.domain_key != PROVIDERS))
    found = [
        Provider(
            row.name,
            row.comment,
            tuple(row.networks.split()),
            row.created_at,
            row.answered_at,
            row.asked_at,
            row.why,
        )
        for row in rows
    ]
    return {one.name: one for one in sorted(found, key=lambda one: one.name)}


def changes(
    present: Mapping[str, Provider],
    said: Sequence[Said],
    comment: str | None = None,
    adding: bool = False,
) -> list[Change]:
    """Returns what the answers of DNS in SAID change of the PRESENT providers, by their names.

    Only a list takes the place of a list. With ADDING, those that are not there are added, and
    COMMENT, if any, is everyone's; without, such an answer is left out.
    """
    found = []
    for one in said:
        old = present.get(one.name)
        why = f"{one.state}: {one.why}" if one.why or one.state != "found" else ""
        if old is None:
            if adding and one.state == "found":
                new = Provider(
                    one.name,
                    comment or "",
                    one.networks,
                    one.asked_at,
                    one.asked_at,
                    one.asked_at,
                    why,
                )
                found.append(Change(ADDED, new, None, one))
            continue
        new = replace(old, asked_at=one.asked_at, why=why)
        if adding and comment is not None:
            new = replace(new, comment=comment)
        if one.state != "found":
            found.append(Change(KEPT_OLD, new, old, one))
            continue
        new = replace(new, networks=one.networks, answered_at=one.asked_at)
        found.append(Change(UNCHANGED if new.networks == old.networks else CHANGED, new, old, one))
    return found


def apply(
    engine: Engine,
    said: Sequence[Said],
    now: int,
    comment: str | None = None,
    adding: bool = False,
    shown: Sequence[Change] | None = None,
) -> list[Change]:
    """Writes what ``changes`` returns for SAID, all or nothing; returns it.

    Raises ChangedMeanwhile if networks would change in another way than in the changes SHOWN, and
    ValueError if there would be over MOST providers, or over MOST_NETWORKS of all of them.
    """
    return errors.retry_on_conflict(lambda: _apply(engine, said, now, comment, adding, shown))


def _apply(
    engine: Engine,
    said: Sequence[Said],
    now: int,
    comment: str | None,
    adding: bool,
    shown: Sequence[Change] | None,
) -> list[Change]:
    with engine.begin() as connection:
        _lock(connection)
        present = _present(connection)
        found = changes(present, said, comment, adding)
        if shown is not None and _differences(found) != _differences(shown):
            raise ChangedMeanwhile("somebody else has changed the providers meanwhile: try again")
        for change in found:
            present[change.provider.name] = change.provider
        if len(present) > MOST:
            raise ValueError(f"over {MOST} providers")
        if sum(len(one.networks) for one in present.values()) > MOST_NETWORKS:
            raise ValueError(f"over {MOST_NETWORKS} networks of all providers")
        for change in found:
            _put(connection, change)
        _put_ranges(connection, list(present.values()), now)
        return found


def _differences(found: Sequence[Change]) -> list[tuple[str, list[str], list[str]]]:
    return [(one.provider.name, one.added, one.removed) for one in found]


def remove(engine: Engine, names: Sequence[str], now: int) -> list[Provider]:
    """Removes the providers NAMES, or none if the store fails; returns those that were there."""
    return errors.retry_on_conflict(lambda: _remove(engine, names, now))


def _remove(engine: Engine, names: Sequence[str], now: int) -> list[Provider]:
    with engine.begin() as connection:
        _lock(connection)
        present = _present(connection)
        gone = [present.pop(name) for name in dict.fromkeys(names) if name in present]
        for one in gone:
            key = domain_key(one.name.encode())
            connection.execute(delete(table).where(table.c.domain_key == key))
        _put_ranges(connection, list(present.values()), now)
        return gone


def _lock(connection: Connection) -> None:
    """Waits until no other transaction changes providers, and keeps others waiting.

    On Galera the later one fails at COMMIT instead. Where two insert the row at once, one of them
    fails. Both are tried again.
    """
    locked = connection.execute(
        update(table)
        .where(table.c.domain_key == PROVIDERS)
        .values(created_at=table.c.created_at + 1)
    )
    if not locked.rowcount:
        row = {"name": "", "comment": "", "networks": "", "created_at": 1, "asked_at": 0, "why": ""}
        connection.execute(insert(table).values(domain_key=PROVIDERS, **row))


def _put(connection: Connection, change: Change) -> None:
    one = change.provider
    key = domain_key(one.name.encode())
    values = {
        "name": one.name,
        "comment": one.comment,
        "networks": "\n".join(one.networks),
        "created_at": one.created_at,
        "answered_at": one.answered_at,
        "asked_at": one.asked_at,
        "why": one.why,
    }
    if change.old is None:
        connection.execute(insert(table).values(domain_key=key, **values))
    else:
        connection.execute(update(table).where(table.c.domain_key == key).values(values))


def ranges_of(providers: Sequence[Provider]) -> list[Named]:
    """Returns the ranges of all PROVIDERS together, sorted: none overlaps another.

    A range ends where another set of providers begins. Its names have commas between.
    """
    steps: dict[int, list[tuple[str, int]]] = {}
    for one in providers:
        for first, last in networks.pairs(one.networks):
            steps.setdefault(first, []).append((one.name, 1))
            steps.setdefault(last + 1, []).append((one.name, -1))
    found: list[Named] = []
    here: Counter[str] = Counter()
    names, start = "", 0
    for at in sorted(steps):
        for name, step in steps[at]:
            here[name] += step
        now = ",".join(sorted(name for name, count in here.items() if count))
        if now == names:
            continue
        if names:
            found.append((start.to_bytes(16), (at - 1).to_bytes(16), names))
        names, start = now, at
    return found


def _put_ranges(connection: Connection, providers: Sequence[Provider], now: int) -> None:
    """Makes the ranges in the store those of PROVIDERS: writes only what differs."""
    wanted = {PROVIDERS + first: (last, names) for first, last, names in ranges_of(providers)}
    key = authorised.c.network_key
    there = select(key, authorised.c.last, authorised.c.name, authorised.c.expires_at)
    present = {
        bytes(row.network_key): row
        for row in connection.execute(there.where(key >= _FIRST, key <= _LAST))
    }
    gone = [one for one in present if one not in wanted]
    for start in range(0, len(gone), _BATCH):
        connection.execute(delete(authorised).where(key.in_(gone[start : start + _BATCH])))
    until = now + KEPT
    new, changed = [], []
    for one, (last, names) in wanted.items():
        row = present.get(one)
        if row is None:
            new.append(_row(one, last, names, until) | {"added_at": now})
        elif bytes(row.last) != last or row.name != names or row.expires_at < now + KEPT // 2:
            changed.append({f"new_{name}": v for name, v in _row(one, last, names, until).items()})
    if new:
        connection.execute(insert(authorised), new)
    if changed:
        columns = ("last", "name", "source", "expires_at")
        connection.execute(
            update(authorised)
            .where(key == bindparam("new_network_key"))
            .values({name: bindparam(f"new_{name}") for name in columns}),
            changed,
        )


def _row(key: bytes, last: bytes, names: str, until: int) -> dict[str, object]:
    return {
        "network_key": key,
        "last": last,
        "source": "provider",
        "name": names,
        "expires_at": until,
    }
