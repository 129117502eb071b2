"""The child's way to the store: one connection, statements compiled ahead, no SQLAlchemy.

Each kind of database has its file (``sqlite``, ``server``) with a ``Store``;
``greycheck.store.connect`` chooses.

Diagnostics: ``StoreError``, whose message is ready for the log; ``NoSchema`` where there is nothing
yet and first use may make it.
"""

import _blake2
import sys

from greycheck.envelope import Envelope, Triplet
from greycheck.log import show_address
from greycheck.normalise import IPV4_BITS, MAPPED, address_bits
from greycheck.policy import Change, ClientRow, Rows, TripletRow, domain_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any, Protocol, TypeVar

    from greycheck.outbound import Letter
    from greycheck.settings import Settings
    from greycheck.unknown import Identity, Pending

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


def text(value: object) -> str:
    """VALUE as text: what some drivers give as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def made(found: "Sequence[Any]") -> tuple[TripletRow | None, ClientRow | None]:
    """The triplet's and the client's row of the columns that were FOUND."""
    return (
        None if found[0] is None else TripletRow(*found[:5]),
        None if found[5] is None else ClientRow(*found[5:]),
    )
