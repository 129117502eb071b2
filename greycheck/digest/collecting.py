"""Collects what waits and has not come back, with the signs that it is legitimate, and ranks it.

Bounded: so many rows are read (``greycheck.store.admin.waiting``), and the best KEPT are looked at
more closely. What has arrived all the same, was released, or is refused by a rule is left out.

Diagnostics: SQLAlchemy's.
"""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping

from greycheck import log, normalise, rule_keys
from greycheck.digest.near import Near
from greycheck.digest.signs import Sign, score
from greycheck.envelope import Triplet
from greycheck.policy import ClientRow, domain_of, is_known
from greycheck.rules import patterns
from greycheck.settings import Settings
from greycheck.store.admin import rulebook, waiting
from greycheck.store.admin.engine import reading
from greycheck.store.admin.queries import as_today
from greycheck.store.admin.waiting import origin_within, provider_within
from greycheck.store.base import DIGEST, digest, domain_key
from greycheck.store.schema.tables import ORIGIN
from greycheck.store.waiting import AUTHORISING, correspondent_key, packed_range, pair_keys
from greycheck.times import away
from greycheck.unknown import DomainRow, is_known_domain

# How many rows are looked up at once, and how many are kept.
BATCH, KEPT = 500, 2000

# The least sum of weights with which a mail looks legitimate, unless the operator says otherwise.
LEAST = 2


@dataclass
class Candidate:
    """A ROW that waits, and the SIGNS of it.

    CLIENT is its address, empty if not known; SENDER and RECIPIENT are as bytes, KEY is that of the
    sender's domain, empty for the null sender.
    """

    row: RowMapping
    client: str
    sender: bytes
    recipient: bytes
    key: bytes
    signs: list[Sign] = field(default_factory=list)

    @property
    def domain(self) -> bytes:
        """The sender's domain."""
        return domain_of(self.sender)

    @property
    def pair(self) -> tuple[str, str]:
        """Sender and recipient, as the table has them."""
        return self.row["sender"], self.row["recipient"]

    @property
    def rank(self) -> tuple[int, int]:
        """By what it is ranked, the highest first."""
        return score(self.signs), self.row["last_attempt"]


@dataclass
class Entry:
    """A mail, by sender and recipient: its BEST candidate, and what is known of all of them.

    FIRST and LAST are its first and last attempt, ATTEMPTS their number; NETWORKS are as many as it
    was tried from.
    """

    best: Candidate
    first: int
    last: int
    attempts: int
    networks: int

    @property
    def score(self) -> int:
        """The sum of the weights of its signs."""
        return score(self.best.signs)


@dataclass
class Digest:
    """What was found: ENTRIES by the domain of their recipient, the highest score first.

    Of WAITING triplets ARRIVED came through all the same, RELEASED are let in already, and REFUSED
    a rule refuses. WHOLE is true if everything was looked at that there is, OBSERVED if nothing of
    it was deferred (``mode = observe``).
    """

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    waiting: int = 0
    arrived: int = 0
    released: int = 0
    refused: int = 0
    whole: bool = True
    observed: bool = False


# Returns the verified names of clients.
Names = Callable[[Iterable[str]], dict[str, str]]


def collect(
    engine: Engine,
    settings: Settings,
    now: int,
    older: int,
    recipient_domain: bytes = b"",
    least: int = LEAST,
    names: Names | None = None,
) -> Digest:
    """Returns what waits at NOW, was last tried OLDER seconds ago or more, and looks legitimate.

    That is what has a score of LEAST. With RECIPIENT_DOMAIN only its mail. NAMES verifies names.
    """
    every = rulebook.all_rules(engine)
    near = Near(every, settings, now)
    delay = max((rule.delay or 0 for rule in every), default=0)
    found = Digest(observed=settings.mode == "observe")
    kept: list[Candidate] = []
    rows = waiting.rows(engine, settings, now, older, delay, recipient_domain)
    with reading(engine).connect() as connection, closing(rows):
        lookup = _Lookup(connection, settings, now, near, found)
        while batch := list(islice(rows, BATCH)):
            kept += lookup.candidates(batch)
            if len(kept) > 2 * KEPT:
                kept = _best(kept, least, found)
    kept = _best(kept, least, found)
    if waiting.count_read(engine, settings, now, older, delay) > waiting.READ:
        found.whole = False
    if not _look_closer(engine, settings, now, kept, names):
        found.whole = False
    for entry in _entries(kept):
        if entry.score >= least:
            at = str(entry.best.row["recipient"]).rpartition("@")
            found.entries.setdefault(at[2] if at[1] else "", []).append(entry)
    found.entries = dict(sorted(found.entries.items()))
    return found


def _best(candidates: list[Candidate], least: int, found: Digest) -> list[Candidate]:
    """Returns the best KEPT of CANDIDATES; says in FOUND if others have a score of LEAST too."""
    ranked = sorted(candidates, key=lambda one: one.rank, reverse=True)
    if len(ranked) > KEPT and score(ranked[KEPT].signs) >= least:
        found.whole = False
    return ranked[:KEPT]


def _entries(ranked: list[Candidate]) -> list[Entry]:
    """Returns the mails of candidates that are RANKED, each once, in that order."""
    entries: dict[tuple[str, str], Entry] = {}
    for one in ranked:
        row = one.row
        attempts, first, last = row["early_attempts"] + 1, row["first_attempt"], row["last_attempt"]
        entry = entries.get(one.pair)
        if entry is None:
            entries[one.pair] = Entry(one, first, last, attempts, 1)
        else:
            entry.first, entry.last = min(entry.first, first), max(entry.last, last)
            entry.attempts += attempts
            entry.networks += 1
    return list(entries.values())


def _look_closer(
    engine: Engine, settings: Settings, now: int, kept: list[Candidate], names: Names | None
) -> bool:
    """Adds to those KEPT, and ranks anew, the signs that are not asked for all.

    Returns True if all known clients were looked at.
    """
    alone = {one.row["network"] for one in kept if not _has(one, "client")}
    neighbours: dict[str, str] = {}
    whole = True
    if alone and settings.client_passes:
        neighbours, whole = waiting.known_neighbours(engine, settings, now, alone)
    for one in kept:
        neighbour = neighbours.get(one.row["network"])
        if neighbour and not _has(one, "client"):
            one.signs.append(Sign("network", f"its neighbour {neighbour} is a known client"))
    kept.sort(key=lambda one: one.rank, reverse=True)
    if names is not None:
        verified = names(one.client for one in kept if _is_own(one.client))
        for one in kept:
            if one.client in verified:
                words = f"its name {verified[one.client]} is verified"
                one.signs.append(Sign("name", words))
        kept.sort(key=lambda one: one.rank, reverse=True)
    return whole


def _has(one: Candidate, name: str) -> bool:
    return any(sign.name == name for sign in one.signs)


def _is_own(client: str) -> bool:
    """True if CLIENT is known, and no address that many may share."""
    return bool(client) and not normalise.is_private(client)


def _address(text: str) -> bytes:
    """Returns the bytes of an address as a table has it."""
    return log.unshown(text.encode("utf-8", "surrogateescape"))


class _Lookup:
    """Makes candidates of rows, with what CONNECTION finds of them; counts in FOUND the others."""

    def __init__(
        self, connection: Connection, settings: Settings, now: int, near: Near, found: Digest
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._now = now
        self._near = near
        self._found = found
        self._pairs: set[tuple[bytes, bytes]] = set()
        self._uses: dict[tuple[str, str], tuple[int, int]] = {}
        self._has_providers = waiting.has_providers(connection)

    def candidates(self, rows: list[RowMapping]) -> list[Candidate]:
        """Returns the candidates of ROWS with their signs, without those that are settled."""
        self._found.waiting += len(rows)
        every = self._not_settled([self._candidate(row) for row in rows if _is_sound(row)])
        self._by_sender(every)
        self._by_client(every)
        return every

    def _candidate(self, row: RowMapping) -> Candidate:
        sender, recipient = _address(row["sender"]), _address(row["recipient"])
        key = domain_key(domain_of(sender)) if sender else b""
        origin = row["origin"]
        if origin and bytes(origin)[:DIGEST] != key:
            key = bytes(origin)[:DIGEST]  # of a sender that was cut
        return Candidate(row, waiting.address_of(origin), sender, recipient, key)

    def _not_settled(self, every: list[Candidate]) -> list[Candidate]:
        """Returns those of EVERY that wait for somebody, and adds what is known of their pairs."""
        keys = {one.pair: _release_key(one.row) for one in every}
        released = waiting.released(self._connection, keys.values(), self._now)
        pairs = {pair_keys(one.row["triplet_key"]) for one in every if one.sender}
        # Each once, however many rows of a pair there are.
        self._uses |= waiting.uses_of_pairs(self._connection, pairs - self._pairs)
        self._pairs |= pairs
        left = []
        for one in every:
            used = self._uses.get(one.pair) if one.sender else None
            if used is not None and used[1] >= one.row["first_attempt"]:
                self._found.arrived += 1
                continue
            if keys[one.pair] in released:
                self._found.released += 1
                continue
            if self._is_refused(one):
                self._found.refused += 1
                continue
            if used is not None:
                words = f"mail of this sender passed to this recipient {away(used[1], self._now)}"
                one.signs.append(Sign("pair", words))
            left.append(one)
        return left

    def _is_refused(self, one: Candidate) -> bool:
        """True if a rule refuses ONE; one that allows it is a sign."""
        client = one.client or str(one.row["network"]).partition("/")[0]
        rule = self._near.deciding(Triplet(client, one.row["network"], one.sender, one.recipient))
        if rule is not None and rule.action in (rule_keys.REJECT, rule_keys.DEFER):
            return True
        allowing = rule.pattern if rule is not None and rule.action == rule_keys.ALLOW else ""
        if allowing:
            one.signs.append(Sign("rule", f"since then a rule allows it: {allowing}"))
            return False
        near = self._near.allowing(one.row["network"], one.domain, one.recipient)
        if near:
            one.signs.append(Sign("rule", f"near is a rule that allows: {near}"))
        return False

    def _by_sender(self, every: list[Candidate]) -> None:
        """Adds the signs that go by the sender."""
        pairs = {one.pair: correspondent_key(one.sender, one.recipient) for one in every}
        written = waiting.correspondents(self._connection, pairs.values(), self._now)
        known = waiting.domains(self._connection, (one.key for one in every if one.key))
        answers = waiting.answers(
            self._connection, (one.key for one in every if one.key), self._now
        )
        held = waiting.ranges(
            self._connection,
            (
                origin_within(bytes(one.row["origin"]))
                for one in every
                if one.row["origin"] and (one.key in known or one.key in answers)
            ),
            self._now,
        )
        for one in every:
            when = written.get(pairs[one.pair]) if one.sender else None
            if when is not None:
                words = f"the recipient wrote to this sender {away(when, self._now)}"
                one.signs.append(Sign("correspondent", words))
            if one.key:
                self._by_domain(one, known.get(one.key), answers.get(one.key), held)

    def _by_domain(self, one: Candidate, known: Any, answer: Any, held: Any) -> None:
        """Adds the signs of a sender's domain: it is KNOWN, its SPF's ANSWER, what HELD finds."""
        name = log.show_domain(one.domain)
        row = DomainRow(*known[1:]) if known is not None else None
        if is_known_domain(row, self._settings, self._now):
            assert row is not None
            words = f"mail of {name} has passed, last {away(row.last, self._now)}"
            one.signs.append(Sign("domain", words))
        if not _is_own(one.client):
            return
        source = held.get(origin_within(bytes(one.row["origin"])), ("", ""))[0]
        if one.row["authorised"] or source in AUTHORISING:
            words = f"{name} lets {one.client} send, by its SPF"
            if source == "pool":
                words = f"{name} was seen to send from this network"
            one.signs.append(Sign("authorised", words))
        elif answer is not None and answer[1] == "found" and not answer[2]:
            one.signs.append(Sign("forged", f"{name} names other networks in its SPF"))

    def _by_client(self, every: list[Candidate]) -> None:
        """Adds the signs that go by the client."""
        known = waiting.clients(
            self._connection, (one.client for one in every if _is_own(one.client))
        )
        near: dict[Any, tuple[str, str]] = {}
        if self._has_providers:
            networks = (provider_within(one.row["network"]) for one in every)
            near = waiting.ranges(self._connection, networks, self._now)
        for one in every:
            row = known.get(one.client)
            client = ClientRow(*row[1:]) if row is not None else None
            if is_known(client, self._settings, self._now):
                assert client is not None
                words = f"{one.client} is a known client, last {away(client.last, self._now)}"
                one.signs.append(Sign("client", words))
            provider = near.get(provider_within(one.row["network"])) if near else None
            if provider is not None:
                words = f"in this network or near it {provider[1]} is let in"
                one.signs.append(Sign("provider", words))
            early = one.row["early_attempts"]
            if early:
                many = "once" if early == 1 else f"{early} times"
                one.signs.append(Sign("retried", f"it was tried again {many}, too early"))


def _is_sound(row: RowMapping) -> bool:
    """False if ROW is none that greycheck writes: its network or its origin is none."""
    try:
        packed_range(row["network"])
    except ValueError:
        return False
    return len(row["triplet_key"]) == DIGEST and len(row["origin"] or b"") in (0, ORIGIN)


def _release_key(row: RowMapping) -> bytes:
    pattern = patterns.release(as_today(row["sender"]), as_today(row["recipient"]))
    return digest(pattern.key)
