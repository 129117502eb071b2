"""The child's way to the store: one connection, statements compiled ahead, no SQLAlchemy.

Each kind of database has its file (``sqlite``, ``server``) with a ``Store``;
``greycheck.store.connect`` chooses.

Diagnostics: ``StoreError``, whose message is ready for the log; ``NoSchema`` where there is nothing
yet and first use may make it.
"""

import _blake2
import posix
import sys

from greycheck.envelope import Envelope, Triplet
from greycheck.log import show_address
from greycheck.normalise import IPV4_BITS, MAPPED, address_bits
from greycheck.policy import (
    NOBODY,
    Change,
    ClientRow,
    DomainRow,
    Identity,
    NetworkRow,
    Pending,
    Rows,
    RuleRow,
    TripletRow,
    domain_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any, Protocol, TypeVar

    from greycheck.outbound import Letter
    from greycheck.settings import Settings

    T = TypeVar("T")

    class Store(Protocol):
        """What a check asks of a database."""

        def lookup(self, asked: "Asked", now: int) -> Rows:
            """Returns the rows of a triplet and its client, and the rules that are valid at NOW."""

        def waiting(self, asked: "Asked", since: int, now: int, settings: Settings) -> Pending:
            """Returns what else waits at NOW.

            Of the same mail since SINCE; of its network and in all, as far as SETTINGS have limits.
            """

        def identity(self, asked: "Asked", now: int, settings: Settings) -> Identity:
            """Returns what is known at NOW of the client and of its sender's domain."""

        def networks(self, asked: "Asked", since: int, settings: Settings) -> Sequence[str]:
            """Returns the networks from which the same mail waits, first tried since SINCE."""

        def lock(self, asked: "Asked") -> None:
            """Holds off whoever else would write the same triplet, until the next ``save``."""

        def save(self, asked: "Asked", changes: list[Change], patient: bool) -> bool:
            """Writes all CHANGES; or none, and returns False, if a row is not what was read."""

        def tidy(self) -> None:
            """What may be put off until the verdict is given."""

        def overdue(self) -> None:
            """The deadline is over, and this store did not answer. Called from another thread."""

        @property
        def notes(self) -> Sequence[str]:
            """What the log is to say about the store, line by line."""

    class Connected(Store, Protocol):
        """A store of one's own."""

        def close(self) -> None:
            """Closes the store and undoes what was begun, for a process that goes on without it."""

    class Connection(Connected, Protocol):
        """What ``store.connect`` returns."""

        def begin(self, patience: float) -> None:
            """Begins another check on this connection, with a time limit of PATIENCE seconds."""

        def learn(self, letters: "Sequence[Letter]") -> int:
            """Records whom our users wrote to by LETTERS; returns of how many it is news."""


def with_stand_ins(
    stand_ins: "dict[str, ModuleType]", call: "Callable[..., T]", *arguments: object
) -> "T":
    """Returns what CALL returns, called while STAND_INS are in ``sys.modules``.

    They are cheap substitutes, by name, for modules that it would import and hardly uses.
    """
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
    """The MODULE, written in C, of a PACKAGE whose own Python is not run.

    Raises ModuleNotFoundError.
    """
    from _frozen_importlib_external import PathFinder

    spec = None if package in sys.modules else PathFinder.find_spec(package)
    if spec is not None:
        stand_ins[package] = type(sys)(package)
        stand_ins[package].__path__ = spec.submodule_search_locations or []
    return imported(f"{package}.{module}", **stand_ins)


class Advised(Exception):
    """What is wrong is SAID; COMMAND mends it, and is quoted for a shell, or empty.

    The message has both. Nobody cuts the command out of it: it may name what others have named.
    """

    def __init__(self, said: str = "", command: str = "") -> None:
        super().__init__(f"{said}: {command}" if command else said)
        self.said = said
        self.command = command


class StoreError(Advised):
    """The store cannot be asked or written; the message says why, and what to do."""


class Again(StoreError):
    """Nothing was written: decide again.

    Another host's change was quicker, or another host is asked now.
    """


class Busy(StoreError):
    """Another process holds the lock of an SQLite file."""


class NoSchema(StoreError):
    """There is no directory, no file or no table yet."""


class WrongSchema(StoreError):
    """The schema is one of another program's, older or newer."""


def _word(path: str) -> str:
    """PATH as one word of a shell."""
    return (
        path
        if path.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum()
        else _quoted(path)
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def make_it(directory: str) -> str:
    """What to do about a missing DIRECTORY of the store."""
    return f"make it, as root: install -d -m 0700 -o {posix.geteuid()} {_word(directory)}"


def not_a_database(path: str) -> str:
    """What to do about a PATH that is no SQLite file, behind the cause."""
    cause, command = replacing(path)
    return f": {cause}: {command}" if command else f": {cause}"


def replacing(path: str) -> tuple[str, str]:
    """What to do about a PATH that is no SQLite file, and the command for that, or empty."""
    if not path.endswith(".db"):
        return "let database name another file", ""
    moving = f"mv {_word(path)} {_word(path + '.broken')}"
    return "move it away, and the next mail makes a new one", moving


# The part of a check's deadline that the store may take. What is left is for the message, which can
# name the lock that was waited for.
STORE_SHARE = 0.8

# Bytes of a digest, and of how much of it a pair's rows have in common: others may too, if seldom.
DIGEST, PAIR = 16, 4


# A copy of it costs less than to make another.
_NO_TEXT = _blake2.blake2b(digest_size=DIGEST)


def digest(text: bytes) -> bytes:
    """16 bytes of BLAKE2b: what keys are, whatever a database's collation or longest index."""
    state = _NO_TEXT.copy()
    state.update(text)
    return state.digest()


class Asked:
    """What the check of an envelope asks a store for.

    ``key`` is the primary key of its triplet. It begins with a digest of sender and recipient, the
    pair that a pool shares, so that all keys of a pair stand together and no other index is to be
    kept. The null sender has none: what bounces from everywhere is no pool.
    """

    __slots__ = ("_origin", "_shown", "authorised", "envelope", "key", "triplet")

    def __init__(self, envelope: Envelope, triplet: Triplet) -> None:
        self._shown: tuple[str, str] | None = None
        self._origin = b""
        self.authorised = 0
        self.envelope = envelope
        self.triplet = triplet
        # No part can hold a NUL (docs/hooks.rst#addresses), so the parts cannot run together.
        pair = triplet.sender + b"\0" + triplet.recipient
        every = digest(triplet.network.encode() + b"\0" + pair)
        self.key = digest(pair)[:PAIR] + every[:-PAIR] if triplet.sender else every

    @property
    def shown(self) -> tuple[str, str]:
        """Sender and recipient as the table has them, cut if they are long.

        They are made when they are asked for: what is known does not need them.
        """
        if self._shown is None:
            self._shown = show_address(self.triplet.sender), show_address(self.triplet.recipient)
        return self._shown

    @property
    def origin(self) -> bytes | None:
        """The key of the sender's domain, and the packed address of the client behind it.

        The null sender has none, nor has what stands for a message.
        """
        if not self.triplet.sender or self.triplet.recipient.startswith(b"\0"):
            return None
        if not self._origin:
            key = domain_key(domain_of(self.triplet.sender))
            self._origin = key + packed(self.triplet.client)
        return self._origin


def domain_key(domain: bytes) -> bytes:
    """The key of a sender's DOMAIN, normalised."""
    return digest(b"domain\0" + domain)


# The sources of ranges from which a client may send for the domain.
AUTHORISING = ("spf", "client", "pool")

# Stands in the place of a domain's key where the ranges of all providers are.
PROVIDERS = b"\xffproviders".ljust(DIGEST, b"\xff")

# Stands in its place where there is no domain. A digest may be the same, once in 2^128.
NO_DOMAIN = b"\0" * DIGEST


# Of how many correspondents one user's rows tell: a stolen account writes to any number.
CORRESPONDENTS = 5000


def correspondent_key(sender: bytes, recipient: bytes) -> bytes:
    """The key of mail from SENDER, folded, that answers what RECIPIENT wrote; both normalised.

    All keys of one recipient stand together, as those of a pair do.
    """
    user = digest(b"correspondent\0" + recipient)
    return user[:PAIR] + digest(b"correspondent\0" + sender + b"\0" + recipient)[:-PAIR]


def letter_parameters(letter: "Letter") -> dict[str, object]:
    """The parameters of CORRESPONDENT, CORRESPONDENTS and PUT_CORRESPONDENT for LETTER, by name."""
    key = correspondent_key(letter.outside, letter.user)
    pair_low, pair_high = pair_keys(key)
    return {
        "pair_key": key,
        "pair_low": pair_low,
        "pair_high": pair_high,
        "sender": show_address(letter.outside),
        "recipient": show_address(letter.user),
        "first_seen": letter.written,
        "last_seen": letter.written,
        "expires_at": letter.expires,
    }


def packed(address: str) -> bytes:
    """The client ADDRESS in 16 bytes, IPv4 as mapped into IPv6 (RFC 4291): so they can be compared.

    ADDRESS is as ``normalise.client_address`` returns it.
    """
    if ":" not in address:  # most mail
        return MAPPED_BYTES + bytes(map(int, address.split(".")))
    bits, value = address_bits(address)
    return (
        MAPPED_BYTES + value.to_bytes(4, "big") if bits == IPV4_BITS else value.to_bytes(16, "big")
    )


# What IPv4 addresses begin with there.
MAPPED_BYTES = MAPPED.to_bytes(12, "big")


def packed_range(network: str) -> tuple[bytes, bytes]:
    """The first and the last address of NETWORK, as ``192.0.2.0/24``, packed."""
    address, _, prefix = network.partition("/")
    bits, _value = address_bits(address)
    first = packed(address)
    hosts = (1 << (bits - int(prefix))) - 1
    return first, (int.from_bytes(first, "big") | hosts).to_bytes(16, "big")


def wants_identity(settings: "Settings") -> bool:
    """Whether anything of IDENTITY counts under SETTINGS."""
    return settings.identity != "no" or bool(settings.learn_outbound)


def origin_of(asked: Asked) -> bytes:
    """The origin by which IDENTITY is asked: without a domain that of the client alone."""
    return asked.origin or NO_DOMAIN + packed(asked.triplet.client)


def identity_parameters(asked: Asked, now: int, settings: "Settings") -> dict[str, object]:
    """The parameters of IDENTITY, by name, and those that POOL has besides."""
    origin = origin_of(asked)
    key = b""
    if settings.learn_outbound:
        key = correspondent_key(asked.triplet.sender, asked.triplet.recipient)
    return {
        "now": now,
        "origin": origin,
        "domain_key": origin[:DIGEST],
        "provider_origin": PROVIDERS + origin[DIGEST:],
        "provider_key": PROVIDERS,
        "pair_key": key,
    }


def identity(found: "Sequence[Any]", asked: Asked, now: int) -> Identity:
    """What IDENTITY found for what was ASKED, as far as it is valid at NOW."""
    if not any(found):
        return NOBODY
    passes, first, last, state, answered, until, *ranges, written, written_until = found
    end, source, own_until, provider_end, provider, provider_until = ranges
    address = packed(asked.triplet.client)
    is_told = state is not None and until > now
    said = text(state) if is_told else ""
    by = ""
    if end is not None and own_until > now and bytes(end) >= address:
        by = text(source)
        # What the domain itself says counts more than what was seen.
        if by not in AUTHORISING or (by == "pool" and said == "found"):
            by = ""
    is_provider = provider_end is not None and provider_until > now
    return Identity(
        None if passes is None else DomainRow(first, last, passes),
        said,
        answered if is_told else None,
        by,
        text(provider) if is_provider and bytes(provider_end) >= address else "",
        written if written is not None and written_until > now else None,
    )


def oldest_held(
    waiting: "Sequence[tuple[int, bytes | None]]", ranges: "Sequence[Sequence[Any]]", now: int
) -> int | None:
    """The oldest first attempt of what is WAITING from an origin that one of RANGES holds at NOW.

    RANGES are in order, and do not overlap.
    """
    from _bisect import bisect_right

    keys = [bytes(each[0]) for each in ranges]
    found: list[int] = []
    for first, origin in waiting:
        at = bisect_right(keys, origin) if origin else 0
        if origin and at:
            _key, last, source, expires = ranges[at - 1]
            if bytes(last) >= origin[DIGEST:] and expires > now and text(source) in AUTHORISING:
                found.append(first)
    return min(found, default=None)


def text(value: object) -> str:
    """VALUE as text: what some drivers give as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


class RuleKeys:
    """The keys of all rules and of all expectations that match what is ASKED.

    Each list begins with the key that counts first. Which pairs there may be is known once the
    marks of their recipients were found (``greycheck.rule_keys``).
    """

    __slots__ = ("_asked", "_expectations", "_marks", "_pairs", "_rules")

    def __init__(self, asked: Asked) -> None:
        from greycheck import rule_keys

        sender, written, recipient = (
            asked.triplet.sender,
            asked.triplet.written,
            asked.triplet.recipient,
        )
        self._asked = asked
        self._rules = [
            digest(key) for key in rule_keys.keys(asked.envelope, sender, recipient, written)
        ]
        self._marks = {
            digest(rule_keys.mark_key(value)): value
            for value in rule_keys.address_values(recipient)
        }
        expectations = rule_keys.expectation_keys(written, recipient)
        self._expectations = [
            digest(key) for key in (rule_keys.release_key(*asked.shown), *expectations)
        ]
        self._pairs: list[bytes] = []

    def padded(self, length: int) -> list[bytes]:
        """Returns all of them but pairs, filled up to LENGTH with a key that no rule has."""
        return _padded([*self._rules, *self._marks, *self._expectations], length)

    def of_pairs(self, rows: "Sequence[tuple[Any, ...]]", length: int) -> list[list[bytes]]:
        """Returns the keys of the pairs whose recipients have a mark among ROWS, most often none.

        They are in lists of LENGTH, as one statement takes them.
        """
        found = {row[0] for row in rows}
        marked = [value for mark, value in self._marks.items() if mark in found]
        if not marked:
            return []
        from greycheck import rule_keys

        triplet = self._asked.triplet
        first = rule_keys.first_keys(self._asked.envelope, triplet.sender, triplet.written)
        self._pairs = [digest(rule_keys.pair_key(key, value)) for value in marked for key in first]
        return [
            _padded(self._pairs[start : start + length], length)
            for start in range(0, len(self._pairs), length)
        ]

    def pick(
        self, rows: "Iterable[tuple[bytes, str, str, str, int | None, int | None]]", now: int
    ) -> tuple[list[RuleRow], RuleRow | None]:
        """Returns the valid ones of ROWS at NOW, the deciding one first; and the expectation.

        ROWS have those of pairs too, if ``of_pairs`` named any.
        """
        matching = {
            key: RuleRow(key, kind, pattern, action, delay)
            for key, kind, pattern, action, delay, expires in rows
            if expires is None or expires > now
        }
        expected = next((matching[key] for key in self._expectations if key in matching), None)
        ordered = self._pairs + self._rules
        return [matching[key] for key in ordered if key in matching], expected


def _padded(keys: list[bytes], length: int) -> list[bytes]:
    return keys + [b""] * (length - len(keys))


def waiting_parameters(
    asked: "Asked", since: int, now: int, settings: "Settings"
) -> tuple[dict[str, object], int]:
    """The parameters of WAITING, by name, and by what its totals are to be multiplied."""
    ranges, times = sample(settings.pending_limit)
    values = pool_parameters(asked, since, now, settings) | crowd_parameters(asked, now, settings)
    for index, (low, high) in enumerate(ranges):
        values[f"low_{index}"], values[f"high_{index}"] = low, high
    return values, times


def pool_parameters(
    asked: "Asked", since: int, now: int, settings: "Settings"
) -> dict[str, object]:
    """The parameters of POOL, by name, with those of IDENTITY, and of NETWORKS."""
    pair_low, pair_high = pair_keys(asked.key) if asked.triplet.sender else (b"", b"")
    sender, recipient = asked.shown
    return identity_parameters(asked, now, settings) | {
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
    """Returns the range of keys of the pair of KEY: from the first up to, not with, the second."""
    return key[:PAIR], key[:PAIR] + b"\xff" * (DIGEST - PAIR + 1)


# Of how many rows of a pair a pool is made at most: no provider has more networks, and whoever
# sends from more is none. And how many rows are read for them, those of the pair that have passed,
# and those that only stand beside it, among them.
POOL_MOST, POOL_READ = 100, 500


# How many ranges of a domain are read where the database cannot find the one that is wanted: more
# than one has.
DOMAIN_READ = 2500

# In how many ranges of keys waiting triplets are counted for an estimate of their number, how many
# are to be in each, and at how many the count ends: what was made to stand in one range is not
# worth more work than that. And how many rows of a range are read for it: where those that have
# passed are many times as many as may wait, the limit comes later, and a question still costs the
# same.
RANGES, SAMPLE, MOST, MOST_READ = 3, 128, 512, 2048


def sample(limit: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Returns the ranges of keys in which to count, and the factor for a total (0: do not count).

    Each range goes from its first key up to, not with, its second. Keys are digests and so spread
    evenly: of LIMIT waiting triplets about SAMPLE are in any range of their share of all keys.
    Nobody can foresee which ranges these are, and the middle count is taken: keys are not secret,
    and could be made to stand together. If LIMIT is small, the first range holds all.
    """
    nothing = (b"", b"")
    if not limit:
        return [nothing] * RANGES, 0
    times = limit // SAMPLE
    if limit <= MOST:
        return [(b"", b"\xff" * (DIGEST + 1)), nothing, nothing], 1
    width = (1 << 64) // times
    starts = [int.from_bytes(posix.urandom(8), "big") % ((1 << 64) - width) for _ in range(RANGES)]
    return [
        (start.to_bytes(8, "big"), (start + width).to_bytes(8, "big")) for start in starts
    ], times


def total(counts: "Sequence[int]", times: int) -> int:
    """How many wait in all, by the COUNTS in the ranges of ``sample``, and by what to multiply."""
    return counts[0] if times == 1 else sorted(counts)[len(counts) // 2] * times


NO_SCHEMA = "the database has no schema: run greycheck db upgrade"


def check_revision(found: str | None, wanted: str) -> None:
    """Raises StoreError if a program for the revision WANTED cannot use the schema FOUND."""
    if found is None:
        raise NoSchema(NO_SCHEMA)
    if not fits(found, wanted):
        raise WrongSchema(f"the schema is {standing(found, wanted)}")


def standing(found: str, wanted: str) -> str:
    """Returns in words how the schema FOUND suits a program for WANTED, and what to do."""
    if found == wanted:
        return f"at {found}, this program is at {wanted}"
    if fits(found, wanted):
        return f"at {found}, newer than this program's {wanted}, which can use it"
    if found < wanted:
        return f"at {found}, older than this program's {wanted}: run greycheck db upgrade"
    return f"at {found}, newer than this program's {wanted}: install the newer greycheck here too"


def fits(found: str, wanted: str) -> bool:
    """Whether a program for the revision WANTED can use the schema that is FOUND.

    A newer schema says itself how old a program may be: ``0005_0003`` is the fifth, and fits
    programs from the third on.
    """
    revision, _, oldest = found.partition("_")
    program = wanted.partition("_")[0]
    return revision == program or (oldest or revision) <= program < revision


def rows(found: tuple[object, ...], wanted: str) -> tuple[TripletRow | None, ClientRow | None]:
    """Returns the triplet's and the client's row that LOOKUP found.

    Raises StoreError if the schema is none for a program of the revision WANTED.
    """
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
    """Returns the name of the compiled statement that makes CHANGE.

    It changes no row if the old one is no longer there.
    """
    if isinstance(change.new, TripletRow):
        return "INSERT_TRIPLET" if change.old is None else "SWAP_TRIPLET"
    if isinstance(change.new, ClientRow):
        return "INSERT_CLIENT" if change.old is None else "SWAP_CLIENT"
    if isinstance(change.new, DomainRow):
        return "INSERT_DOMAIN" if change.old is None else "SWAP_DOMAIN"
    return "PUT_NETWORK" if isinstance(change.new, NetworkRow) else "DELETE_RULE"


def is_done(name: str, changed: int) -> bool:
    """Whether the statement NAME, which CHANGED so many rows, did what it was to do.

    What is only put there may be there already.
    """
    return changed == 1 or name == "PUT_NETWORK"


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
        values["origin"], values["authorised"] = asked.origin, asked.authorised
        return values
    if isinstance(new, ClientRow):
        values = _client_state("", new) | {"expires_at": change.expires}
        if isinstance(old, ClientRow):
            return values | _client_state("was_", old) | {"key_address": asked.triplet.client}
        return values | {"address": asked.triplet.client}
    if isinstance(new, DomainRow):
        values = _domain_state("", new) | {"expires_at": change.expires}
        key = asked.origin[:DIGEST] if asked.origin else NO_DOMAIN
        if isinstance(old, DomainRow):
            return values | _domain_state("was_", old) | {"key_domain_key": key}
        return values | {"domain_key": key, "name": show_address(domain_of(asked.triplet.sender))}
    if isinstance(new, NetworkRow):
        first, last = packed_range(new.network)
        return {
            "network_key": (asked.origin or NO_DOMAIN)[:DIGEST] + first,
            "last": last,
            "source": "pool",
            "name": show_address(domain_of(asked.triplet.sender)),
            "added_at": new.added,
            "expires_at": change.expires,
        }
    assert isinstance(old, RuleRow)
    return {"match_key": old.key}


def _triplet_state(prefix: str, row: TripletRow) -> dict[str, object]:
    return {
        prefix + "first_attempt": row.first,
        prefix + "last_attempt": row.last,
        prefix + "early_attempts": row.early,
        prefix + "passes": row.passes,
    }


def _domain_state(prefix: str, row: DomainRow) -> dict[str, object]:
    return {
        prefix + "passes": row.passes,
        prefix + "first_seen": row.first,
        prefix + "last_seen": row.last,
    }


def _client_state(prefix: str, row: ClientRow) -> dict[str, object]:
    return {
        prefix + "passes": row.passes,
        prefix + "first_seen": row.first,
        prefix + "last_seen": row.last,
        prefix + "strikes": row.strikes,
        prefix + "struck_until": row.struck,
    }
