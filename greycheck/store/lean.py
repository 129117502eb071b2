"""The child's way to the store: one connection, the statements compiled ahead of time, and no SQLAlchemy.

Each kind of database has its file (``lean_sqlite``) with a ``Store``; ``greycheck.store.connect`` chooses.

Diagnostics: ``StoreError``, whose message is ready for the log; ``NoSchema`` where there is nothing yet and first use may make it.
"""

import _blake2
import posix
import sys

from greycheck.envelope import Envelope, Triplet
from greycheck.log import show_address
from greycheck.policy import Change, ClientRow, Found, RuleRow, TripletRow, Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any, Protocol, TypeVar

    from greycheck.settings import Settings

    T = TypeVar("T")

    class Store(Protocol):
        """What a check asks of a database."""

        def lookup(self, asked: "Asked", now: int) -> Found:
            """The rows of a triplet and a client, and the rules that match and are not over at NOW."""

        def waiting(self, asked: "Asked", since: int, now: int, settings: Settings) -> Waiting:
            """What waits besides at NOW: of the same mail since SINCE; of its network and in all, as far as SETTINGS have limits."""

        def lock(self, asked: "Asked") -> None:
            """Holds off whoever else would write the same triplet, until the next ``save``."""

        def save(self, asked: "Asked", changes: list[Change], patient: bool) -> bool:
            """Writes all CHANGES, or none and returns False where a row is no longer what was read."""

        def tidy(self) -> None:
            """What may be put off until the verdict is given."""

        def overdue(self) -> None:
            """The deadline is over, and this store did not answer. Called from another thread."""

        @property
        def notes(self) -> Sequence[str]:
            """What the log is to say about the store, line by line."""

    class Connected(Store, Protocol):
        """What ``store.connect`` returns."""

        def close(self) -> None:
            """Leaves the store, and undone what was begun: for a process that goes on without it."""


def with_stand_ins(stand_ins: "dict[str, ModuleType]", call: "Callable[..., T]", *arguments: object) -> "T":
    """What CALL returns, made while STAND_INS, by name, are there instead of modules that it would import and hardly uses."""
    used = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(used)
    try:
        return call(*arguments)
    finally:
        for name in used:
            del sys.modules[name]


def imported(name: str, **stand_ins: "ModuleType") -> "ModuleType":
    """The module NAME, written in C, imported with STAND_INS."""
    with_stand_ins(stand_ins, __import__, name)
    return sys.modules[name]


def imported_from(package: str, module: str, **stand_ins: "ModuleType") -> "ModuleType":
    """The MODULE, written in C, of a PACKAGE whose own Python is not run. Raises ModuleNotFoundError."""
    from _frozen_importlib_external import PathFinder

    spec = None if package in sys.modules else PathFinder.find_spec(package)
    if spec is not None:
        stand_ins[package] = type(sys)(package)
        stand_ins[package].__path__ = spec.submodule_search_locations or []
    return imported(f"{package}.{module}", **stand_ins)


class StoreError(Exception):
    """The store cannot be asked or written; the message says why, and what to do."""


class Again(StoreError):
    """Nothing was written, and the check is to be decided again: another host's change was quicker, or another host is asked now."""


class Busy(StoreError):
    """Another process holds the lock of an SQLite file."""


class NoSchema(StoreError):
    """There is no directory, no file or no table yet."""


class WrongSchema(StoreError):
    """The schema is one of another program's, older or newer."""


def _word(path: str) -> str:
    """PATH as one word of a shell."""
    return path if path.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum() else _quoted(path)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def make_it(directory: str) -> str:
    """What to do about a missing DIRECTORY of the store."""
    return f"make it, as root: install -d -m 0700 -o {posix.geteuid()} {_word(directory)}"


def not_a_database(path: str) -> str:
    """What to do about a PATH that is no SQLite file, behind the cause."""
    if not path.endswith(".db"):
        return ": let database name another file"
    return f": move it away, and the next mail makes a new one: mv {_word(path)} {_word(path + '.broken')}"


# Bytes of a digest, and of how much of it a pair's rows have in common: others may too, if seldom.
DIGEST, PAIR = 16, 4


def digest(text: bytes) -> bytes:
    """16 bytes of BLAKE2b: what keys are, whatever a database's collation or longest index."""
    return _blake2.blake2b(text, digest_size=DIGEST).digest()


class Asked:
    """What the check of an envelope asks a store for.

    ``key`` is the primary key of its triplet. It begins with a digest of sender and recipient, the pair that a pool shares, so that all
    keys of a pair stand together and no other index is to be kept. The null sender has none: what bounces from everywhere is no pool.
    """

    __slots__ = ("_shown", "envelope", "key", "triplet")

    def __init__(self, envelope: Envelope, triplet: Triplet) -> None:
        self._shown: tuple[str, str] | None = None
        self.envelope = envelope
        self.triplet = triplet
        # No part can hold a NUL (contract.md section 4), so the parts cannot run together.
        pair = triplet.sender + b"\0" + triplet.recipient
        every = digest(triplet.network.encode() + b"\0" + pair)
        self.key = digest(pair)[:PAIR] + every[:-PAIR] if triplet.sender else every

    @property
    def shown(self) -> tuple[str, str]:
        """Sender and recipient as the table has them, cut where they are long; made when they are wanted: what is known needs none."""
        if self._shown is None:
            self._shown = show_address(self.triplet.sender), show_address(self.triplet.recipient)
        return self._shown

    @property
    def is_tagged(self) -> bool:
        """Whether the sender has tags that are folded, or once were."""
        return self.triplet.sender != self.triplet.written or b"+" in self.triplet.sender


class RuleKeys:
    """The keys of all rules, and of all expectations, that would match what is ASKED, each by falling precedence."""

    __slots__ = ("_expectations", "_rules")

    def __init__(self, asked: Asked) -> None:
        from greycheck import rules

        sender, written, recipient = asked.triplet.sender, asked.triplet.written, asked.triplet.recipient
        self._rules = [digest(key) for key in rules.keys(asked.envelope, sender, recipient, written)]
        self._expectations = [digest(key) for key in rules.expectation_keys(written, recipient)]

    def padded(self, length: int) -> list[bytes]:
        """All of them, filled up with a key that nothing has to the LENGTH that a statement wants."""
        keys = self._rules + self._expectations
        return keys + [b""] * (length - len(keys))

    def pick(
        self, rows: "Iterable[tuple[bytes, str, str, str, int | None, int | None]]", now: int
    ) -> tuple[list[RuleRow], RuleRow | None]:
        """Of the ROWS of rules that were found those that are not over at NOW, the deciding one first; and the expectation, or None."""
        matching = {
            key: RuleRow(key, kind, pattern, action, delay)
            for key, kind, pattern, action, delay, expires in rows
            if expires is None or expires > now
        }
        expected = next((matching[key] for key in self._expectations if key in matching), None)
        return [matching[key] for key in self._rules if key in matching], expected


def waiting_parameters(asked: "Asked", since: int, now: int, settings: "Settings") -> tuple[dict[str, object], int]:
    """The parameters of WAITING, by name, and by what its totals are to be multiplied."""
    ranges, times = sample(settings.pending_limit)
    values = pool_parameters(asked, since) | crowd_parameters(asked, now, settings)
    for index, (low, high) in enumerate(ranges):
        values[f"low_{index}"], values[f"high_{index}"] = low, high
    return values, times


def pool_parameters(asked: "Asked", since: int) -> dict[str, object]:
    """The parameters of POOL, by name."""
    pair_low, pair_high = pair_keys(asked.key) if asked.triplet.sender else (b"", b"")
    sender, recipient = asked.shown
    return {
        "pair_low": pair_low,
        "pair_high": pair_high,
        "sender": sender,
        "recipient": recipient,
        "network": asked.triplet.network,
        "since": since,
    }


def crowd_parameters(asked: "Asked", now: int, settings: "Settings") -> dict[str, object]:
    """The parameters of CROWD, by name."""
    return {"network": asked.triplet.network, "now": now, "network_limit": settings.network_limit}


def pair_keys(key: bytes) -> tuple[bytes, bytes]:
    """The range of keys, from the first up to and without the second, in which all rows of the pair of KEY are."""
    return key[:PAIR], key[:PAIR] + b"\xff" * (DIGEST - PAIR + 1)


# Of how many rows of a pair a pool is made at most: no provider has more networks, and whoever sends from more is none. And how many rows
# are read for them, those of the pair that have passed, and those that only stand beside it, among them.
POOL_MOST, POOL_READ = 100, 500


# In how many ranges of keys waiting triplets are counted for an estimate of their number, how many are to be in each, and at how many
# the count ends: what was made to stand in one range is not worth more work than that. And how many rows of a range are read for it:
# where those that have passed are many times as many as may wait, the limit comes later, and a question still costs the same.
RANGES, SAMPLE, MOST, MOST_READ = 3, 128, 512, 2048


def sample(limit: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """The ranges of keys, each from the first up to and without the second, in which to count, and by what to multiply (0: not at all).

    Keys are digests and so spread evenly: of LIMIT waiting triplets some SAMPLE are in any range of their share of all keys. Which ranges
    these are nobody can foresee, and the count of the middle one counts: keys are not secret, and could be made to stand together.
    Where LIMIT is small the first range holds all.
    """
    nothing = (b"", b"")
    if not limit:
        return [nothing] * RANGES, 0
    times = limit // SAMPLE
    if limit <= MOST:
        return [(b"", b"\xff" * (DIGEST + 1)), nothing, nothing], 1
    width = (1 << 64) // times
    starts = [int.from_bytes(posix.urandom(8), "big") % ((1 << 64) - width) for _ in range(RANGES)]
    return [(start.to_bytes(8, "big"), (start + width).to_bytes(8, "big")) for start in starts], times


def total(counts: "Sequence[int]", times: int) -> int:
    """How many wait in all, by the COUNTS in the ranges of ``sample``, and by what to multiply."""
    return counts[0] if times == 1 else sorted(counts)[len(counts) // 2] * times


def check_revision(found: str | None, wanted: str) -> None:
    """Raises StoreError where a program whose statements were compiled for the revision WANTED cannot use the schema that is FOUND."""
    if found is None:
        raise NoSchema("the database has no schema: run greycheck db upgrade")
    if fits(found, wanted):
        return
    if found < wanted:
        raise WrongSchema(f"the schema is at {found}, older than this program's {wanted}: run greycheck db upgrade")
    raise WrongSchema(
        f"the schema is at {found}, newer than this program's {wanted}: install the newer greycheck here too"
    )


def fits(found: str, wanted: str) -> bool:
    """Whether a program for the revision WANTED can use the schema that is FOUND.

    A newer schema says itself how old a program may be: ``0005_0003`` is the fifth, and fits programs from the third on.
    """
    revision, _, oldest = found.partition("_")
    program = wanted.partition("_")[0]
    return revision == program or (oldest or revision) <= program < revision


def rows(found: tuple[object, ...], wanted: str) -> tuple[TripletRow | None, ClientRow | None]:
    """The triplet's and the client's row of what LOOKUP found, for a program that is compiled for the revision WANTED."""
    if found[0] != wanted:
        check_revision(found[0], wanted)  # type: ignore[arg-type]
    return made(found[1:11])


def made(found: "Sequence[Any]") -> tuple[TripletRow | None, ClientRow | None]:
    """The triplet's and the client's row of the columns that were FOUND."""
    return (
        None if found[0] is None else TripletRow(*found[:5]),
        None if found[5] is None else ClientRow(*found[5:]),
    )


def statement(change: Change) -> str:
    """The name of the compiled statement that makes CHANGE, or changes no row where its old row is no longer there."""
    if isinstance(change.new, TripletRow):
        return "INSERT_TRIPLET" if change.old is None else "SWAP_TRIPLET"
    if isinstance(change.new, ClientRow):
        return "INSERT_CLIENT" if change.old is None else "SWAP_CLIENT"
    return "DELETE_RULE"


def parameters(asked: Asked, change: Change) -> dict[str, object]:
    """The parameters of that statement, by name."""
    old, new = change.old, change.new
    if isinstance(new, TripletRow):
        values = _triplet_state("", new)
        values["passed_at"], values["expires_at"] = new.passed, change.expires
        if isinstance(old, TripletRow):
            return values | _triplet_state("was_", old) | {"key_triplet_key": asked.key}
        values["triplet_key"], values["network"] = asked.key, asked.triplet.network
        values["sender"], values["recipient"] = asked.shown
        return values
    if isinstance(new, ClientRow):
        values = _client_state("", new) | {"expires_at": change.expires}
        if isinstance(old, ClientRow):
            return values | _client_state("was_", old) | {"key_address": asked.triplet.client}
        return values | {"address": asked.triplet.client}
    assert isinstance(old, RuleRow)
    return {"match_key": old.key}


def _triplet_state(prefix: str, row: TripletRow) -> dict[str, object]:
    return {
        prefix + "first_attempt": row.first,
        prefix + "last_attempt": row.last,
        prefix + "early_attempts": row.early,
        prefix + "passes": row.passes,
    }


def _client_state(prefix: str, row: ClientRow) -> dict[str, object]:
    return {
        prefix + "passes": row.passes,
        prefix + "first_seen": row.first,
        prefix + "last_seen": row.last,
        prefix + "strikes": row.strikes,
        prefix + "struck_until": row.struck,
    }
