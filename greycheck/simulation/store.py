"""A store in memory, for a simulation: what ``greycheck.store`` keeps in tables, in dictionaries.

It answers a check's questions as a database does (``store.base.Store``), for one process whose time
only goes on. What is over is dropped, so that memory is bounded by what waits and is known.

What the log itself tells is in ``Told``, which all stores of a simulation share: which networks
send for a domain, and which are a provider's.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from greycheck import normalise
from greycheck.envelope import Envelope, Triplet
from greycheck.outbound import Letter
from greycheck.policy import Change, ClientRow, Rows, RuleRow, TripletRow, domain_of
from greycheck.rules.index import RuleIndex
from greycheck.settings import Settings
from greycheck.store.base import Asked
from greycheck.store.waiting import POOL_MOST, wants_identity
from greycheck.unknown import NOBODY, POOL_GAP, DomainRow, Identity, NetworkRow, Pending

# The prefix lengths of the networks that are told to send for a domain, whatever those of triplets.
IPV4, IPV6 = 24, 64

# How often what is over is looked for among what a log told, in seconds.
SWEEP = 7 * 86400

Key = tuple[str, bytes, bytes]


class Wanted(Asked):
    """What a check asks for, without a database's key: nobody needs it here."""

    __slots__ = ()

    def __init__(self, envelope: Envelope, triplet: Triplet) -> None:
        self._shown = None
        self._origin = b""
        self.authorised = 0
        self.envelope = envelope
        self.triplet = triplet
        self.key = b""


class Told:
    """What the log tells of networks; forgotten when it was not seen for LIFETIME seconds."""

    def __init__(self, lifetime: int) -> None:
        self._lifetime = lifetime
        self._sends: dict[tuple[bytes, str], int] = {}
        self._domains: dict[bytes, tuple[int, int]] = {}
        self._providers: dict[str, tuple[str, int]] = {}
        self._swept = 0

    def sends(self, domain: bytes, client: str, now: int) -> None:
        """Notes that CLIENT may send for DOMAIN."""
        self._sends[domain, around(client)] = now
        first, _last = self._domains.get(domain, (now, now))
        self._domains[domain] = first, now
        self._sweep(now)

    def provides(self, provider: str, client: str, now: int) -> None:
        """Notes that CLIENT is in a network of PROVIDER."""
        self._providers[around(client)] = provider, now
        self._sweep(now)

    def may_send(self, domain: bytes, client: str) -> bool:
        """Whether a client near CLIENT was seen to send for DOMAIN."""
        return bool(self._sends) and (domain, around(client)) in self._sends

    def since(self, domain: bytes) -> int | None:
        """Since when the log names networks of DOMAIN; None where it does not."""
        found = self._domains.get(domain)
        return None if found is None else found[0]

    def provider(self, client: str) -> str:
        """Whose network CLIENT's is; empty where that is not known."""
        if not self._providers:
            return ""
        return self._providers.get(around(client), ("", 0))[0]

    def _sweep(self, now: int) -> None:
        if now - self._swept < SWEEP:
            return
        self._swept, over = now, now - self._lifetime
        self._sends = {key: seen for key, seen in self._sends.items() if seen >= over}
        self._domains = {key: seen for key, seen in self._domains.items() if seen[1] >= over}
        self._providers = {key: seen for key, seen in self._providers.items() if seen[1] >= over}


def around(client: str) -> str:
    """The network around CLIENT that what is told of it counts for."""
    return normalise.client_network(client, IPV4, IPV6)


class _Kept:
    """A row with the time when it EXPIRES; of a triplet, for which CLIENT it was made."""

    __slots__ = ("client", "expires", "row")
    row: Any

    def __init__(self, row: Any, expires: int, client: str = "") -> None:
        self.row = row
        self.expires = expires
        self.client = client


def _near(pair: dict[str, _Kept], since: int) -> list[tuple[str, _Kept]]:
    """What waits of a PAIR since SINCE, with its networks; no more than counts."""
    return [each for each in pair.items() if each[1].row.first >= since][:POOL_MOST]


class Store:
    """The rows of one simulation. RULES are None where each attempt brings its own (``rules``)."""

    notes: Sequence[str] = ()

    def __init__(self, told: Told, rules: RuleIndex | None = None) -> None:
        self._told = told
        self._index = rules
        # The rules that decide the attempt that comes next, where no others are given.
        self.rules: list[RuleRow] = []
        self._triplets: dict[Key, _Kept] = {}
        self._clients: dict[str, _Kept] = {}
        self._domains: dict[bytes, _Kept] = {}
        # The networks that a pool taught, by the domain, and by their name; until when.
        self._networks: dict[tuple[bytes, str], _Kept] = {}
        # When our users last wrote, by who may answer and whom.
        self._letters: dict[tuple[bytes, bytes], _Kept] = {}
        # What waits: by sender and recipient, by network, and how many in all.
        self._pairs: dict[tuple[bytes, bytes], dict[str, _Kept]] = {}
        self._crowds: dict[str, int] = {}
        self._waiting = 0
        # When to look whether a row is over: of each there is one entry.
        self._ends: list[tuple[int, int, dict[Any, _Kept], Any]] = []
        self._number = 0

    def __len__(self) -> int:
        """How many rows it has."""
        few = len(self._domains) + len(self._networks) + len(self._letters)
        return len(self._triplets) + len(self._clients) + few

    # --- what a check asks ------------------------------------------------------------------------

    def lookup(self, asked: Asked, now: int) -> Rows:
        """The rows of the triplet and its client, and the rules that match."""
        if self._ends and self._ends[0][0] < now:
            self._drop(now)
        of = asked.triplet
        row = self._triplets.get((of.network, of.sender, of.recipient))
        client = self._clients.get(of.client)
        rules, expected = self.rules, None
        if self._index is not None:
            rules, expected = self._index.find(asked, now)
        return Rows(
            None if row is None else row.row,
            None if client is None else client.row,
            rules,
            expected,
        )

    def waiting(self, asked: Asked, since: int, now: int, settings: Settings) -> Pending:
        """What else waits."""
        of, known = asked.triplet, self.identity(asked, now, settings)
        crowd = min(self._crowds.get(of.network, 0), settings.network_limit)
        pair = self._pairs.get((of.sender, of.recipient)) if of.sender else None
        if pair is None:  # most mail
            return Pending(0, None, None, None, crowd, self._waiting, None, known)
        near = _near(pair, since)
        firsts = [kept.row.first for _network, kept in near]
        others = sorted(kept.row.first for network, kept in near if network != of.network)
        domain = domain_of(of.sender)
        held = [
            kept.row.first
            for network, kept in near
            if self._authority(domain, kept.client, network, now)
        ]
        return Pending(
            len(others),
            others[0] if others else None,
            max(firsts, default=None),
            len(others) - sum(after - before < POOL_GAP for before, after in pairwise(others)),
            crowd,
            self._waiting,
            min(held, default=None),
            known,
        )

    def identity(self, asked: Asked, now: int, settings: Settings) -> Identity:
        """What is known of the client and of its sender's domain."""
        if not wants_identity(settings):
            return NOBODY
        of, told = asked.triplet, self._told
        row, state, source, written = None, "", "", None
        if of.sender:
            domain = domain_of(of.sender)
            row = self._domains.get(domain)
            source = self._authority(domain, of.client, of.network, now)
            state = "found" if told.since(domain) is not None else ""
            # What the domain itself says counts more than what was seen.
            if source == "pool" and state == "found":
                source = ""
        if self._letters and (letter := self._letters.get((of.sender, of.recipient))):
            written = letter.row if letter.expires > now else None
        provider = told.provider(of.client)
        if row is None and written is None and not (state or source or provider):
            return NOBODY
        return Identity(None if row is None else row.row, state, None, source, provider, written)

    def networks(self, asked: Asked, since: int, _settings: Settings) -> Sequence[str]:
        """The networks from which the same mail waits."""
        of = asked.triplet
        pair = self._pairs.get((of.sender, of.recipient), {}) if of.sender else {}
        return [network for network, _kept in _near(pair, since)]

    def lock(self, _asked: Asked) -> None:
        """Nobody else writes."""

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:  # noqa: ARG002
        """Writes all CHANGES: no row can be another than was read."""
        of = asked.triplet
        for change in changes:
            new = change.new
            if isinstance(new, TripletRow):
                self._put_triplet(asked, new, change.expires)
            elif isinstance(new, ClientRow):
                self._put(self._clients, of.client, new, change.expires)
            elif isinstance(new, DomainRow):
                self._put(self._domains, domain_of(of.sender), new, change.expires)
            elif isinstance(new, NetworkRow):
                key = domain_of(of.sender), new.network
                self._put(self._networks, key, new, change.expires)
        return True

    def tidy(self) -> None:
        """There is nothing to put off."""

    def overdue(self) -> None:
        """Nobody waits."""

    # --- what a log tells besides -----------------------------------------------------------------

    def learn(self, letter: Letter) -> None:
        """Records whom a user of ours wrote to."""
        key = letter.outside, letter.user
        self._put(self._letters, key, letter.written, letter.expires)

    # --- its rows ---------------------------------------------------------------------------------

    def _authority(self, domain: bytes, client: str, network: str, now: int) -> str:
        if self._told.may_send(domain, client):
            return "spf"
        learnt = self._networks.get((domain, network)) if self._networks else None
        return "pool" if learnt is not None and learnt.expires > now else ""

    def _put(self, table: dict[Any, _Kept], key: Any, row: object, expires: int) -> None:
        kept = table.get(key)
        if kept is None:
            table[key] = _Kept(row, expires)
            self._ends_at(expires, table, key)
        else:
            kept.row, kept.expires = row, expires

    def _put_triplet(self, asked: Asked, row: TripletRow, expires: int) -> None:
        of = asked.triplet
        key = of.network, of.sender, of.recipient
        kept = self._triplets.get(key)
        if kept is None:
            kept = _Kept(row, expires, of.client)
            self._triplets[key] = kept
            self._ends_at(expires, self._triplets, key)
            waited = False
        else:
            waited = not kept.row.passes
            kept.row, kept.expires = row, expires
        if waited != (not row.passes):
            self._count(key, kept, 1 if waited is False else -1)

    def _count(self, key: Key, kept: _Kept, more: int) -> None:
        """Counts that KEPT waits from now on (MORE is 1), or no longer (-1)."""
        network, *pair = key
        of_pair = pair[0], pair[1]
        self._waiting += more
        crowd = self._crowds.get(network, 0) + more
        if more > 0:
            self._crowds[network] = crowd
            self._pairs.setdefault(of_pair, {})[network] = kept
            return
        if crowd:
            self._crowds[network] = crowd
        else:
            del self._crowds[network]
        others = self._pairs[of_pair]
        del others[network]
        if not others:
            del self._pairs[of_pair]

    def _ends_at(self, expires: int, table: dict[Any, _Kept], key: Any) -> None:
        self._number += 1
        heappush(self._ends, (expires, self._number, table, key))

    def _drop(self, now: int) -> None:
        """Drops what was over before NOW, as ``greycheck expire`` does."""
        while self._ends and self._ends[0][0] < now:
            _expires, _number, table, key = heappop(self._ends)
            kept = table[key]
            if kept.expires >= now:
                self._ends_at(kept.expires, table, key)
                continue
            del table[key]
            if table is self._triplets and not kept.row.passes:
                self._count(key, kept, -1)
