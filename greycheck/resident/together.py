"""Decides many questions at once from a server database, on one connection.

All look-ups of a batch are one query, all that waits besides another one, and all changes one
transaction: three round trips for a batch where each question alone would take three. Most changes
are of one triplet's row each: PostgreSQL makes all of these by a statement that commits itself.

This is the way of fair weather. Whatever does not go as it should (a lost race, a lock, a
connection that breaks, a row that cannot be read) undoes what is not committed and gives its
questions back: to be tried again together where a race was lost, or the connection as it wrote,
else one by one, as a child would (``check.check``), with all that is done there about faults. So a
lock that a batch waited for in vain marks no host, a race that it lost is not waited for, and one
bad question costs the others a second look.

Two questions that would write the same row are not in one transaction: the later one is given back.

``Shared`` is what all connections of a pool know in common: the rules in memory, by the generation
that the look-up reads with the rows, and what was counted a moment ago. With several hosts each
counts by itself: as many times as there are hosts, a limit may be passed by its share.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from greycheck import check
from greycheck.policy import IDENTITY, PENDING, ClientRow, Decision, Rows, TripletRow, Verdict
from greycheck.resident.newcomers import Newcomers, Rooms
from greycheck.resident.questions import Question
from greycheck.resident.wide import Arrays, List, Ranges, Table, union
from greycheck.rules.index import RuleIndex
from greycheck.settings import Settings
from greycheck.store import server
from greycheck.store.base import DIGEST, PAIR, Asked, StoreError, text
from greycheck.store.breaker import DOWN, STUCK
from greycheck.store.causes import NO_SCHEMA, Again, check_revision
from greycheck.store.drivers.faults import CONFLICT, LOCKED, Fault
from greycheck.store.server import READING, WRITING_FREE, WRITING_HELD
from greycheck.store.waiting import (
    MOST,
    PROVIDERS,
    crowd_parameters,
    identity,
    identity_parameters,
    pair_keys,
    sample,
    total,
)
from greycheck.store.writing import TRIPLETS, is_done, parameters, statement
from greycheck.unknown import Identity, Pending

# After a change to the rules they are read again once they are REREAD seconds old, or TIMES as old
# as reading them took. A program of an earlier release says nothing of its changes: OLD.
REREAD, TIMES, OLD = 0.05, 20, 10.0

# An estimate of all that waits counts for so long, in seconds.
ESTIMATE = 1.0

# How long a batch waits for a lock, in seconds: its questions are tried one by one then. MySQL's
# dialect counts whole seconds.
LOCK = {"postgresql": 0.2, "mysql": 1}

# How many rows a query of ranges gives at most, for each question and besides: where there are
# more, each question is asked by itself.
RANGE_ROWS, MORE_ROWS = 8, 64

# In which order the changes of a batch are made; those in the second line one by one. Everybody
# locks the tables in this order, and the rows of one by their keys: nobody waits in a circle.
ORDER = (
    *("INSERT_TRIPLET", "SWAP_TRIPLET", "INSERT_CLIENT", "SWAP_CLIENT"),
    *("INSERT_DOMAIN", "SWAP_DOMAIN", "PUT_NETWORK", "DELETE_RULE"),
)
MANY = {
    "INSERT_TRIPLET": "INSERT_TRIPLET",
    "SWAP_TRIPLET": "SWAP_TRIPLETS",
    "INSERT_CLIENT": "INSERT_CLIENT",
    "SWAP_CLIENT": "SWAP_CLIENTS",
}
MANY_OF_POSTGRESQL = {
    "SWAP_TRIPLET": "SWAP_TRIPLETS",
    "INSERT_CLIENT": "INSERT_CLIENTS",
    "SWAP_CLIENT": "SWAP_CLIENTS",
}

# The parameters that name the row of a change: where it is new, and where it is not.
_NEW_KEYS = ("triplet_key", "address", "domain_key", "network_key", "match_key")
KEYS = (*_NEW_KEYS, *(f"key_{name}" for name in _NEW_KEYS))

# The parts of what waits, for MySQL's dialect, as ``statements.PARTS`` numbers them.
DOMAINS, SPF, WRITTEN, NEAR, RANGES, IS_PROVIDER = range(6)


class Shared:
    """What all connections of a pool know in common."""

    def __init__(self) -> None:
        self.reading = threading.Lock()
        self._generation: int | None = None
        self._index: RuleIndex | None = None
        self._rows: list[object] = []
        self._read, self._took = float("-inf"), 0.0
        self.rooms = Rooms()
        # How many wait in all, by the limit, when that was counted (``monotonic``), and for which
        # time (seconds since 1970: a clock can be set).
        self.waiting: dict[int, tuple[int, float, int]] = {}

    def index(self, generation: int) -> RuleIndex | None:
        """Returns the rules of GENERATION; None where those in memory are of another one."""
        return self._index if self._generation == generation else None

    def is_due(self, generation: int) -> bool:
        """True if the rules are to be read again, as the database has those of GENERATION."""
        age = monotonic() - self._read
        return age > max(OLD if generation == self._generation else REREAD, TIMES * self._took)

    def take_rules(self, generation: int, rows: "list[Any]", began: float) -> None:
        """Takes all rules, ROWS, read after GENERATION was; reading them BEGAN then."""
        try:
            if rows != self._rows or self._index is None:
                self._index, self._rows = RuleIndex(rows), rows
            self._generation = generation
        except Exception:
            # One rule that cannot be read must not hide all others: each looks into the table.
            self._generation = None
        self._read = monotonic()
        self._took = self._read - began

    def were_added(self, number: int) -> None:
        """So many triplets more wait."""
        for limit, (counted, when, now) in list(self.waiting.items()):
            self.waiting[limit] = counted + number, when, now

    def forget_rules(self) -> None:
        """A rule was used up here: those in memory are old."""
        self._generation, self._read = None, float("-inf")


class _One:
    """A QUESTION of a batch, with what it ASKED of the store.

    ``need`` is what its decision waits for, ``changes`` what it changes: statements by name, and
    their parameters.
    """

    __slots__ = ("asked", "changes", "decision", "need", "question")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.decision: Decision = question.decision.anew()
        self.asked = Asked(question.envelope, question.decision.triplet)
        self.need = self.decision.advance()
        self.changes: list[tuple[str, dict[str, Any]]] = []


class Store(server.Store):
    """The server database of SETTINGS, for one batch of questions after the other.

    It knows what is SHARED with other connections. For a single question it is what it inherits.
    """

    def __init__(self, settings: Settings, patience: float, shared: Shared) -> None:
        super().__init__(settings, patience)
        self._shared = shared
        self.newcomers = Newcomers(shared.rooms)
        # Whether it decides a batch, or one question.
        self._is_batch = False
        compiled = self._compiled
        self._found: List | Arrays
        self._many: dict[str, Table | Arrays]
        self._locks_for: tuple[object, float] = None, 0
        if self._server.dialect == "mysql":
            self._found = List(compiled.FOUND)
            self._many = {kind: Table(getattr(compiled, name)) for kind, name in MANY.items()}
            names = ("DOMAINS", "SPF", "WRITTEN")
            self._lists = [List(getattr(compiled, f"WAITS_{name}")) for name in names]
            self._ranges = [
                Ranges(getattr(compiled, f"WAITS_{name}")) for name in ("NEAR", "RANGES")
            ]
        else:
            self._found = Arrays(compiled.FOUND)
            self._many = {
                kind: Arrays(getattr(compiled, name)) for kind, name in MANY_OF_POSTGRESQL.items()
            }
            self._waits = Arrays(compiled.WAITS)
            self._write = Arrays(compiled.WRITE_TRIPLETS)

    @property
    def is_on_trial(self) -> bool:
        """True if the host that is asked next is marked: one question is to try it, not many."""
        host = self._session.host
        if self._session.connection is None:
            host = self._hosts.left[0] if self._hosts.left else None
        marked = self._hosts.breaker.since
        return host is not None and any(marked(host, kind) is not None for kind in (DOWN, STUCK))

    def begin(self, patience: float) -> None:
        """As it is inherited. The first look-up says whether it is for a batch."""
        self._is_batch = False
        super().begin(patience)

    # --- looking up -------------------------------------------------------------------------------

    def look_up(self, batch: Sequence[Asked], nows: Sequence[int]) -> list[Rows] | None:
        """Returns what the store has for each of BATCH at its time of NOWS.

        None where the rules in memory are old, and cannot be read again yet.
        """
        self._is_batch = True
        self.newcomers.begin()
        self._wait_for_locks(LOCK[self._server.dialect])
        triplets: dict[bytes, TripletRow] = {}
        clients: dict[str, ClientRow] = {}
        revision, generation = None, 0
        keys, addresses = [each.key for each in batch], [each.triplet.client for each in batch]
        for key, address, *state in self._run(*self._found.of_lists(keys, addresses)):
            if key is not None:
                triplets[bytes(key)] = TripletRow(*state)
            elif state[1] is not None:
                clients[text(address)] = ClientRow(*state)
            elif address is not None:
                revision, generation = text(address), state[0] or 0
        self._answered(DOWN)
        if revision is None:
            raise StoreError(NO_SCHEMA)
        if revision != self._compiled.REVISION:
            check_revision(revision, self._compiled.REVISION)
        rules = self._rules(generation)
        if rules is None:
            return None
        return [
            Rows(
                triplets.get(asked.key),
                clients.get(asked.triplet.client),
                *rules.find(asked, now),
            )
            for asked, now in zip(batch, nows, strict=True)
        ]

    def _rules(self, generation: int) -> RuleIndex | None:
        shared = self._shared
        if shared.is_due(generation):
            with shared.reading:
                if shared.is_due(generation):  # another has not read them meanwhile
                    began = monotonic()
                    found = self._run(self._compiled.ALL_RULES[0])
                    shared.take_rules(generation, [server.rule(row) for row in found], began)
        return shared.index(generation)

    # --- what waits besides -----------------------------------------------------------------------

    def what_waits(self, batch: Sequence[_One]) -> list[tuple[bool, Identity]]:
        """Returns for each of BATCH whether others may have its pair, and its identity."""
        given = []
        for place, one in enumerate(batch):
            asked, now = one.asked, one.decision.now
            values = identity_parameters(asked, now, one.decision.settings)
            values["place"], values["triplet_key"] = place, asked.key
            low, high = pair_keys(asked.key) if asked.triplet.sender else (b"", b"")
            values["pair_low"], values["pair_high"] = low, high
            given.append(values)
        if self._server.dialect == "mysql":
            found = self._put_together(given)
        else:
            rows = self._run(*self._waits.given(given))
            by_place = {row[0]: (bool(row[1]), row[2:]) for row in rows}
            found = [by_place[place] for place in range(len(batch))]
        return [
            (others, identity(known, one.asked, one.decision.now))
            for one, (others, known) in zip(batch, found, strict=True)
        ]

    def _put_together(
        self, given: "Sequence[dict[str, Any]]"
    ) -> "list[tuple[bool, Sequence[Any]]]":
        """Returns what WAITS would, for MySQL's dialect, of the parameters GIVEN for each."""
        number = len(given)
        most = RANGE_ROWS * number + MORE_ROWS
        queries = [each.sql(number) for each in self._lists]
        queries += [each.sql(number) for each in self._ranges]
        flat: list[object] = [
            values[name] for each in self._lists for name in each.names for values in given
        ]
        for ranges in self._ranges:
            flat += [values[name] for values in given for name in ranges.names]
            flat.append(most)
        flat += [PROVIDERS, PROVIDERS + b"\xff" * DIGEST]
        queries.append(self._compiled.WAITS_PROVIDERS[0])
        domains: dict[bytes, Sequence[Any]] = {}
        records: dict[bytes, Sequence[Any]] = {}
        written: dict[bytes, Sequence[Any]] = {}
        near: list[bytes] = []
        ranges_of: dict[bytes, list[tuple[bytes, Any, Any, Any]]] = {}
        has_providers = False
        in_ranges = 0
        for part, key, network, a, b, c, said, last in self._run(union(queries), flat):
            if part == DOMAINS:
                domains[bytes(key)] = a, b, c
            elif part == SPF:
                records[bytes(key)] = said, a, b
            elif part == WRITTEN:
                written[bytes(key)] = a, b
            elif part == NEAR:
                near.append(bytes(key))
            elif part == RANGES:
                in_ranges += 1
                begin = bytes(network)
                ranges_of.setdefault(begin[:DIGEST], []).append((begin, last, said, a))
            else:
                has_providers = bool(a)
        if len(near) >= most or in_ranges >= most:
            return [self._of_one(values) for values in given]
        providers = self._of_providers(given) if has_providers else {}
        pairs: dict[bytes, list[bytes]] = {}
        for key in near:
            pairs.setdefault(key[:PAIR], []).append(key)
        none = (None, None, None)
        found: list[tuple[bool, Sequence[Any]]] = []
        for values in given:
            key, origin, domain = values["triplet_key"], values["origin"], values["domain_key"]
            own = max(
                (each for each in ranges_of.get(domain, ()) if each[0] <= origin),
                default=(b"", *none),
            )
            known = (
                *domains.get(domain, none),
                *records.get(domain, none),
                *own[1:],
                *providers.get(values["provider_origin"], none),
                *written.get(values["pair_key"], (None, None)),
            )
            others = bool(values["pair_low"]) and any(
                each != key for each in pairs.get(key[:PAIR], ())
            )
            found.append((others, known))
        return found

    def _of_one(self, values: "dict[str, Any]") -> "tuple[bool, Sequence[Any]]":
        sql, names = self._compiled.IDENTITY
        return bool(values["pair_low"]), self._run(sql, [values[name] for name in names])[0]

    def _of_providers(self, given: "Sequence[dict[str, Any]]") -> "dict[bytes, Sequence[Any]]":
        """Returns the range of a provider that may hold each client, by its key."""
        sql, names = self._compiled.PROVIDER_RANGE
        flat = [values[name] for values in given for name in names]
        rows = self._run(union([sql] * len(given)), flat)
        return {bytes(row[0]): row[1:] for row in rows}

    def pending(self, one: _One, others: bool, known: Identity) -> Pending:
        """Returns what waits besides ONE, whose identity is KNOWN; OTHERS may have its pair."""
        decision, asked, newcomers = one.decision, one.asked, self.newcomers
        settings, now = decision.settings, decision.now
        crowded, full = settings.network_limit, settings.pending_limit
        if others:
            found = self.waiting(asked, decision.since, now, settings)
            found.total += newcomers.besides(asked)
            if crowded:
                found.crowd = newcomers.counted(asked, crowded, found.crowd)
            return found
        crowd = in_all = 0
        if crowded:
            crowd = newcomers.crowd(asked, crowded, lambda: self._crowd(asked, now, settings))
        if full:
            in_all = newcomers.total(asked, full, lambda: self._estimate(full, now))
        return Pending(0, None, None, None, crowd, in_all, None, known)

    def _crowd(self, asked: Asked, now: int, settings: Settings) -> int:
        """Returns how many triplets of the network of ASKED wait, counted up to its limit."""
        sql, names = self._compiled.CROWD
        values = crowd_parameters(asked, now, settings)
        found: int = self._run(sql, [values[name] for name in names])[0][0]
        return found

    def _estimate(self, limit: int, now: int) -> int:
        """Returns about how many triplets wait in all; where LIMIT is not small, a moment ago."""
        counted, when, at = self._shared.waiting.get(limit, (0, float("-inf"), now))
        if limit > MOST and monotonic() - when < ESTIMATE and now == at:
            return counted
        sql, names = self._compiled.PENDING
        ranges, times = sample(limit)
        counts = []
        for low, high in ranges if times > 1 else ranges[:1]:
            values = {"low_0": low, "high_0": high, "now": now}
            counts.append(self._run(sql, [values[name] for name in names])[0][0])
        counted = total(counts, times)
        self._shared.waiting[limit] = counted, monotonic(), now
        return counted

    # --- writing ----------------------------------------------------------------------------------

    def save_all(self, batch: "list[_One]", written: "Callable[[_One], None]") -> None:
        """Writes the changes of BATCH; calls WRITTEN with each question whose are committed.

        Those that lost a race it leaves out. Raises Again where it cannot say what is written.
        """
        alone: list[_One] = []
        others: list[_One] = []
        for one in batch:
            (alone if self._is_written_alone(one) else others).append(one)
        self._claim_writes(patient=True)
        if alone:
            self._save_triplets(alone, written)
        if others and self._save_in_transaction(others):
            for one in others:
                written(one)

    def _is_written_alone(self, one: _One) -> bool:
        """Whether ``_save_triplets`` can write what ONE changes."""
        is_one = len(one.changes) == 1 and one.changes[0][0] in TRIPLETS
        return is_one and self._server.dialect == "postgresql"

    def _save_triplets(self, batch: "list[_One]", written: "Callable[[_One], None]") -> None:
        """As ``save_all`` where each of BATCH changes one triplet: one statement, which commits."""
        by_key = {one.asked.key: one for one in batch}
        none = dict.fromkeys(self._write.names)
        rows = [none | one.changes[0][1] | {"triplet_key": key} for key, one in by_key.items()]
        rows.sort(key=_row)
        are_new = all(one.changes[0][0] == "INSERT_TRIPLET" for one in batch)
        self._phase, self._patient = WRITING_FREE if are_new else WRITING_HELD, True
        found = [by_key[bytes(row[0])] for row in self._run(*self._write.given(rows))]
        self._phase = READING
        self._answered(STUCK)
        self._shared.were_added(sum(one.changes[0][0] == "INSERT_TRIPLET" for one in found))
        for one in found:
            written(one)

    def _save_in_transaction(self, batch: "list[_One]") -> bool:
        """Writes all changes of BATCH and commits, or writes none and returns False."""
        kinds: dict[str, list[dict[str, Any]]] = {}
        for one in batch:
            for kind, values in one.changes:
                kinds.setdefault(kind, []).append(values)
        self._phase, self._patient = WRITING_HELD, True
        if len(batch) > 1 or len(batch[0].changes) > 1:
            self._begin()
        for kind in ORDER:
            given = kinds.get(kind)
            if given is None:
                continue
            self._phase = WRITING_FREE if kind == "INSERT_TRIPLET" else WRITING_HELD
            if not all(self._changed(kind, given)):
                return self._end("ROLLBACK", False)
        self._phase = WRITING_FREE
        self._end("COMMIT", True)
        self._answered(STUCK)
        self._shared.were_added(len(kinds.get("INSERT_TRIPLET", ())))
        if "DELETE_RULE" in kinds:
            self._shared.forget_rules()
        return True

    def _changed(self, kind: str, given: "list[dict[str, Any]]") -> Iterable[bool]:
        """Makes all changes GIVEN of one KIND; yields whether what was to be done is done."""
        given.sort(key=_row)
        table = self._many.get(kind)
        if table is not None:
            yield self._change(*table.given(given)) == len(given)
            return
        sql, names = getattr(self._compiled, kind)
        for values in given:
            yield is_done(kind, self._change(sql, [values[name] for name in names]))

    # --- locks ------------------------------------------------------------------------------------

    def lookup(self, asked: Asked, now: int) -> Rows:
        """As it is inherited; for one question alone, with all patience for others' locks."""
        if not self._is_batch:
            self._wait_for_locks(self._lock_patience())
        return super().lookup(asked, now)

    def _after(self, fault: Fault) -> StoreError:
        """As it is inherited, but for what keeps a batch from its rows: that is no host's fault."""
        if not self._is_batch or fault.kind not in (LOCKED, CONFLICT):
            return super()._after(fault)
        self._phase = READING
        self._roll_back()
        said = f"{self._session.host}: {fault}"
        return Again(said) if fault.kind == CONFLICT else StoreError(said)

    def _wait_for_locks(self, seconds: float) -> None:
        """From now on the connection waits SECONDS for a lock; a new one has all patience."""
        self._connect()
        connection, all_patience = self._session.connection, self._lock_patience()
        since = self._locks_for[1] if self._locks_for[0] is connection else all_patience
        if seconds == since:
            return
        if self._server.dialect == "mysql":
            self._run(
                f"SET SESSION innodb_lock_wait_timeout = {seconds},"
                f" SESSION lock_wait_timeout = {seconds}"
            )
        else:
            self._run(f"SET lock_timeout = {seconds * 1000:.0f}")
        self._locks_for = connection, seconds


def _row(values: "dict[str, Any]") -> bytes | str:
    """Returns the key of the row that a change with these VALUES is of."""
    found: bytes | str = next(values[name] for name in KEYS if name in values)
    return found


def decide(
    store: Store,
    rest: "dict[Question, None]",
    first_passed: "check.FirstPassed",
    tell: Callable[[Question, Verdict], None],
    will_write: Callable[[], None] = lambda: None,
) -> list[Question]:
    """Decides those of REST that can be decided together, which leave it then.

    TELL is called with each verdict as soon as it stands, WILL_WRITE once only changes are left to
    be written. FIRST_PASSED is that of ``check.check``. Returns those of REST that lost a race, or
    their connection as they were written. Raises StoreError, and whatever a row that cannot be read
    makes of itself: all of REST is undecided then.
    """
    batch = [_One(question) for question in rest]
    rows = store.look_up([one.asked for one in batch], [one.decision.now for one in batch])
    if rows is None:
        return []
    for one, found in zip(batch, rows, strict=True):
        one.decision.take_rows(found)
    asking = [one for one in batch if _needs_more(store, one, first_passed)]
    while asking:
        still_asking: list[_One] = []
        for one, (others, known) in zip(asking, store.what_waits(asking), strict=True):
            if one.need == PENDING:
                one.decision.take_pending(store.pending(one, others, known))
            else:
                one.decision.take_identity(known)
            if _needs_more(store, one, first_passed):
                still_asking.append(one)
        asking = still_asking
    lost: list[Question] = []
    changing: list[_One] = []
    taken: set[tuple[str, bytes | str]] = set()
    for one in batch:
        decision, question = one.decision, one.question
        if decision.opens_message and question.hook:
            continue  # another row is to be written after its own
        if not decision.changes:
            del rest[question]
            tell(question, decision.verdict())
            continue
        kinds = [(statement(change), change) for change in decision.changes]
        one.changes = [(kind, parameters(one.asked, change)) for kind, change in kinds]
        rows_of_it = {(kind.partition("_")[2], _row(values)) for kind, values in one.changes}
        if taken.isdisjoint(rows_of_it):
            taken |= rows_of_it
            changing.append(one)
        else:
            lost.append(question)
    if not changing:
        return lost
    will_write()

    def written(one: _One) -> None:
        del rest[one.question]
        tell(one.question, one.decision.verdict())

    with suppress(Again):
        store.save_all(changing, written)
    return lost + [one.question for one in changing if one.question in rest]


def _needs_more(store: Store, one: _One, first_passed: "check.FirstPassed") -> bool:
    """Goes on with the decision of ONE as far as it can alone; whether it needs what waits.

    Where it is made, what waits is counted with it from now on.
    """
    decision = one.decision
    while need := decision.advance():
        if need in (PENDING, IDENTITY):
            one.need = need
            return True
        check.answer(store, one.asked, decision, need, first_passed)
    check.finish(one.asked, decision)
    store.newcomers.add(one.asked, decision.changes)
    return False
