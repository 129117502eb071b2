"""The child's PostgreSQL, MariaDB or MySQL: a connection to the first host that can be used.

A known triplet takes one round trip, and a new one three: the rows, what else is pending, and the
write. Where the recipient has rules over pairs, they take one more. MariaDB and MySQL take two more
where a client of the sender's domain meets mail that waits from other networks. Each statement
commits by itself; two changes that belong together are a transaction. No statement relies on what
its transaction read before, so every isolation level from READ COMMITTED on will do: a write
compares the row with what was read, and changes nothing if they differ.

``Session`` is the connection and its transaction, ``HostList`` the order of the hosts and their
marks; what a fault means is a table (``host_list.judge``). ``Store`` runs with them what a check
needs, within the time that it has.

Diagnostics: ``Again`` where the check is to be decided again (a lost race, another host),
``StoreError`` where that is of no use. ``notes`` are lines for the log: which host does not answer,
and which one answers again.
"""

import posix
from time import monotonic, sleep

from greycheck.policy import Change, Rows
from greycheck.store import drivers
from greycheck.store.base import DIGEST, Asked, StoreError, made, text
from greycheck.store.breaker import DOWN, STUCK
from greycheck.store.causes import NO_SCHEMA, Again, WrongSchema, check_revision
from greycheck.store.drivers import faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.host_list import (
    CONNECTING,
    HERE,
    HERE_ONCE,
    NOWHERE,
    READING,
    WRITING_FREE,
    WRITING_HELD,
    HostList,
    judge,
)
from greycheck.store.matching import RuleKeys
from greycheck.store.url import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    from greycheck.outbound import Letter
    from greycheck.settings import Settings
    from greycheck.store.drivers import Connection, Driver
    from greycheck.store.url import Server
    from greycheck.unknown import Identity, Pending

# How long to wait for a lock, as a share of all the time there is; in whole seconds, one at least.
LOCK_PATIENCE = 0.25

# A share of the time of a check. A host that is silent is marked only if it had at least so much; a
# conflict is tried again only if so much is left.
FAIR = 0.2

# A connection that had less than this share of a host's time to connect is not used for another
# check: drivers keep limits made of that time.
FAIR_SHARE = 0.5

# How long to wait before connecting again to a host that had no connection left, in seconds; and at
# most before a lost race is run again, for each that this check has lost.
PAUSE = 0.05

# How many columns of WAITING are those of POOL, and of IDENTITY.
POOL, IDENTITY = 5, 14

BEGIN = {"postgresql": "BEGIN ISOLATION LEVEL READ COMMITTED", "mysql": "START TRANSACTION"}


class Session:
    """A connection to one host of SERVER, and its transaction.

    ``host``   the last one that it connected to, or tried to
    ``given``  how long the host could take for its last answer, in seconds
    ``limit``  how long it could take to connect, in seconds: drivers keep limits made of that
    """

    def __init__(self, server: "Server") -> None:
        self._server = server
        self.host: Host | None = None
        self.connection: Connection | None = None
        self.in_transaction = False
        self.given = self.limit = 0.0
        self._asking_since = 0.0

    def connect(self, driver: "Driver", host: Host, seconds: float, lock_patience: int) -> None:
        """Connects to HOST by DRIVER within SECONDS. Locks are waited for LOCK_PATIENCE seconds.

        Raises Fault.
        """
        self.host = host
        self.given = self.limit = seconds
        self._asking_since = monotonic()
        try:
            self.connection = driver.Connection(self._server, host, seconds, lock_patience)
        finally:
            self._asking_since = 0.0

    def run(
        self, sql: str, values: "Sequence[object]", seconds: float
    ) -> "tuple[Sequence[Sequence[Any]], int]":
        """Returns a statement's rows, and how many it changed, within SECONDS. Raises Fault."""
        assert self.connection is not None
        self.given = seconds
        self._asking_since = monotonic()
        try:
            return self.connection.run(sql, values, seconds)
        finally:
            self._asking_since = 0.0

    def asked_for(self) -> float:
        """Returns how long the statement or connect that runs now has taken so far, in seconds."""
        return monotonic() - self._asking_since if self._asking_since else 0.0

    def roll_back(self, seconds: float) -> Fault | None:
        """Ends the transaction, if there is one, within SECONDS. Disconnects where that fails.

        Returns the fault then.
        """
        if not self.in_transaction or self.connection is None:
            return None
        self.in_transaction = False
        try:
            self.connection.run("ROLLBACK", (), seconds)
        except Fault as fault:
            self.disconnect()
            return fault
        return None

    def disconnect(self) -> None:
        """Leaves the host. Servers log a line for each client who does not say good-bye."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.in_transaction = False


class Store:
    """The server database of SETTINGS, for one check after the other.

    It connects with its first statement. A check ends PATIENCE seconds from now.
    """

    def __init__(self, settings: "Settings", patience: float) -> None:
        server = settings.database.server
        assert server is not None
        self._server = server
        self._compiled: ModuleType = __import__(
            f"greycheck.store.compiled_{self._server.dialect}", fromlist=["REVISION"]
        )
        self._patience = patience
        self._until = monotonic() + patience
        self._hosts = HostList(server, settings.state_directory)
        self._session = Session(server)
        self._phase = READING
        # Whether another's lock may be waited for more than once.
        self._patient = True
        # How many races this check has lost.
        self._lost = 0
        # Whether it waits for the host to have a connection left.
        self.awaits_connection = False

    @property
    def notes(self) -> list[str]:
        """Lines for the log: which host does not answer, and which one answers again."""
        return self._hosts.notes

    @notes.setter
    def notes(self, notes: list[str]) -> None:
        self._hosts.notes = notes

    def begin(self, patience: float) -> None:
        """Begins another check, on the same connection. It ends PATIENCE seconds from now.

        How long it waits for locks, and how much time is fair to a host, stays as with the first
        check: no host is marked because a check begins late. Raises StoreError if no host is due.
        """
        self.rest()
        self._until = monotonic() + patience
        self._phase = READING
        self._lost = 0
        self._hosts.start()
        if self._session.connection is None:
            return
        first = self._hosts.first()
        if first is None:
            raise StoreError(self._hosts.reason)
        # A connection that was made in a hurry keeps its short limits.
        is_hurried = self._session.limit < patience * FAIR_SHARE / len(self._server.hosts)
        if first is not self._session.host or is_hurried:
            self._session.disconnect()
        else:
            self._hosts.take()

    def rest(self) -> None:
        """Ends a check. What it did not come to an end with, it leaves to others."""
        self._hosts.release()
        if self._session.in_transaction:
            self._session.disconnect()

    # --- what a check asks ------------------------------------------------------------------------

    def lookup(self, asked: Asked, now: int) -> Rows:
        """The rows of the triplet and the client, and the rules that match."""
        compiled = self._compiled
        sql, names = compiled.LOOKUP_IPV6 if ":" in asked.triplet.client else compiled.LOOKUP_IPV4
        keys = RuleKeys(asked)
        found = self._run(sql, [asked.key, asked.triplet.client, *keys.padded(len(names) - 2)])
        self._answered(DOWN)
        if found[0][0] is None:
            raise StoreError(NO_SCHEMA)
        check_revision(text(found[0][0]), compiled.REVISION)
        there = made(found[0][1:11])
        rules = [rule(row[11:]) for row in found]
        pairs = compiled.PAIRS_IPV6 if ":" in asked.triplet.client else compiled.PAIRS_IPV4
        for values in keys.of_pairs(rules, len(pairs[1])):
            rules += map(rule, self._run(pairs[0], values))
        return Rows(*there, *keys.pick(rules, now))

    def waiting(self, asked: Asked, since: int, now: int, settings: "Settings") -> "Pending":
        """What waits besides."""
        from greycheck.policy import (
            authority,
        )
        from greycheck.store.waiting import identity, total, waiting_parameters
        from greycheck.unknown import (
            Pending,
        )

        sql, names = self._compiled.WAITING
        values, times = waiting_parameters(asked, since, now, settings)
        found = self._run(sql, [values[name] for name in names])[0]
        others, oldest, newest, rounds, of_domain, *known = found[: POOL + IDENTITY]
        crowd, *counts = found[POOL + IDENTITY :]
        in_all = total(counts, times)
        told = identity(known, asked, now)
        if others and self._server.dialect == "mysql" and authority(told, asked.envelope, settings):
            held = self._oldest_held(asked, since, now, settings)
            of_domain = min((each for each in (of_domain, held) if each is not None), default=None)
        return Pending(others, oldest, newest, rounds, crowd, in_all, of_domain, told)

    def _oldest_held(self, asked: Asked, since: int, now: int, settings: "Settings") -> int | None:
        """The oldest first attempt of the pair from a client that may send for the domain."""
        from greycheck.store.waiting import oldest_held, pool_parameters

        sql, names = self._compiled.NETWORKS
        values = pool_parameters(asked, since, now, settings)
        waiting = self._run(sql, [values[name] for name in names])
        key = values["domain_key"]
        assert isinstance(key, bytes)
        ranges = self._run(self._compiled.DOMAIN_RANGES[0], (key, key + b"\xff" * DIGEST))
        return oldest_held([(row[1], row[2] and bytes(row[2])) for row in waiting], ranges, now)

    def identity(self, asked: Asked, now: int, settings: "Settings") -> "Identity":
        """What is known of the client and of its sender's domain."""
        from greycheck.store.waiting import identity, identity_parameters

        sql, names = self._compiled.IDENTITY
        values = identity_parameters(asked, now, settings)
        return identity(self._run(sql, [values[name] for name in names])[0], asked, now)

    def networks(self, asked: Asked, since: int, settings: "Settings") -> "Sequence[str]":
        """The networks from which the pair waits."""
        from greycheck.store.waiting import pool_parameters

        sql, names = self._compiled.NETWORKS
        values = pool_parameters(asked, since, 0, settings)
        return [text(row[0]) for row in self._run(sql, [values[name] for name in names])]

    def lock(self, asked: Asked) -> None:
        """Begins a transaction that locks the triplet's row, if there is one."""
        self._connect()
        self._phase, self._patient = WRITING_HELD, True
        self._begin()
        self._run(self._compiled.LOCK_TRIPLET[0], [asked.key])
        self._phase = READING

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:
        """Writes all CHANGES and commits, or writes none and returns False.

        Unless PATIENT, it waits for another's lock only once.
        """
        if not changes:
            return self._end("ROLLBACK", True)
        from greycheck.store.writing import TRIPLETS, is_done, parameters, statement

        self._claim_writes(patient)
        self._phase, self._patient = WRITING_HELD, patient
        if len(changes) > 1:
            self._begin()
        for change in changes:
            kind = statement(change)
            sql, names = getattr(self._compiled, kind)
            self._phase = WRITING_FREE if kind == "INSERT_TRIPLET" else WRITING_HELD
            values = parameters(asked, change)
            if not is_done(kind, self._change(sql, [values[name] for name in names])):
                self._end("ROLLBACK", False)
                if kind not in TRIPLETS:
                    self._give_way()  # all mail of that client or domain wants this row
                return False
        self._phase = WRITING_FREE
        self._end("COMMIT", True)
        self._answered(STUCK)
        return True

    def learn(self, letters: "Sequence[Letter]") -> int:
        """Records LETTERS one by one, but for what is known; returns how many."""
        return sum(map(self._learn, letters))

    def _learn(self, letter: "Letter") -> bool:
        from greycheck.store.waiting import CORRESPONDENTS
        from greycheck.store.writing import letter_parameters

        compiled, values = self._compiled, letter_parameters(letter)

        def given(names: "Sequence[str]") -> list[object]:
            return [values[name] for name in names]

        sql, names = compiled.CORRESPONDENT
        found = self._run(sql, given(names))
        self._answered(DOWN)
        if found and not letter.is_news(found[0][0]):
            return False
        if not found:
            sql, names = compiled.CORRESPONDENTS
            if self._run(sql, given(names))[0][0] >= CORRESPONDENTS:
                return False
        self._claim_writes(patient=False)
        self._phase, self._patient = WRITING_HELD, False
        sql, names = compiled.PUT_CORRESPONDENT
        self._change(sql, given(names))
        self._phase = READING
        self._answered(STUCK)
        return True

    def tidy(self) -> None:
        """Leaves the server."""
        self._session.disconnect()

    close = tidy

    def overdue(self) -> None:
        """The deadline is over while a host was asked: marks it. Called from another thread."""
        seconds = self._session.asked_for()
        if self._session.host is not None and self._is_fair(seconds):
            self._mark(judge(faults.SILENT, self._phase)[0], f"no answer for {seconds:.1f}s")

    # --- statements -------------------------------------------------------------------------------

    def _run(self, sql: str, values: "Sequence[object]" = ()) -> "Sequence[Sequence[Any]]":
        """The rows of a statement."""
        return self._answer(sql, values)[0]

    def _change(self, sql: str, values: "Sequence[object]") -> int:
        """How many rows a statement changed."""
        return self._answer(sql, values)[1]

    def _answer(
        self, sql: str, values: "Sequence[object]"
    ) -> "tuple[Sequence[Sequence[Any]], int]":
        self._connect()
        try:
            return self._session.run(sql, values, self._share())
        except Fault as fault:
            raise self._after(fault) from None

    def _begin(self) -> None:
        if not self._session.in_transaction:
            self._run(BEGIN[self._server.dialect])
            self._session.in_transaction = True

    def _end(self, how: str, written: bool) -> bool:
        if self._session.in_transaction:
            self._run(how)
        self._session.in_transaction = False
        self._phase = READING
        return written

    # --- faults -----------------------------------------------------------------------------------

    def _after(self, fault: Fault) -> StoreError:
        """Does what can be done about the FAULT of a statement, and returns what to raise."""
        phase, host = self._phase, self._session.host
        assert host is not None
        self._phase = READING
        mark, way = judge(fault.kind, phase)
        if way == NOWHERE:
            self._roll_back()
            said = self._explained(fault)
            return (WrongSchema if isinstance(said, WrongSchema) else StoreError)(f"{host}: {said}")
        if way == HERE:
            self._roll_back()
            if self._may_repeat(fault.kind):
                self._give_way()
                return Again(f"{host}: {fault}")
            if self._patient or phase == READING:
                self._mark(mark, str(fault))
            return StoreError(f"{host}: {fault}")
        self._session.disconnect()
        self._hosts.reason = f"{host}: {fault}"
        if way != HERE_ONCE or not self._hosts.come_back(host):
            self._blame(mark, fault)
        return Again(self._hosts.reason) if self._hosts.left else StoreError(self._hosts.reason)

    def _may_repeat(self, kind: str) -> bool:
        """Whether there is time for another attempt after a fault of KIND: CONFLICT, or LOCKED."""
        if kind == faults.LOCKED:
            return self._patient and self._left() >= self._lock_patience()
        return self._left() >= self._patience * FAIR

    def _give_way(self) -> None:
        """Waits for a moment, as a race was lost.

        Those that lost the same one must not come back at the same moment, be they processes or
        threads of this one; the less, the more they are.
        """
        self._lost += 1
        longest = min(PAUSE * self._lost, FAIR * self._left())
        sleep(max(0, longest) * (posix.urandom(1)[0] + 32) / 288)

    def _blame(self, mark: str, fault: Fault) -> None:
        """Marks the host for FAULT; for its silence only where it had time enough to answer."""
        if fault.kind != faults.SILENT or self._is_fair(self._session.given):
            self._mark(mark, str(fault))

    def _mark(self, mark: str, why: str) -> None:
        if mark:
            assert self._session.host is not None
            self._hosts.mark(self._session.host, mark, why)

    def _explained(self, fault: Fault) -> StoreError:
        """Returns FAULT, or WrongSchema if a column is missing because the schema does not fit."""
        if fault.kind == faults.SCHEMA and self._session.connection is not None:
            try:
                found = self._session.connection.run(self._compiled.SCHEMA[0], (), self._share())[0]
                check_revision(text(found[0][0]) if found else None, self._compiled.REVISION)
            except StoreError as error:
                return error
        return fault

    def _roll_back(self) -> None:
        fault = self._session.roll_back(self._share())
        if fault is not None:
            assert self._session.host is not None
            self._hosts.reason = f"{self._session.host}: {fault}"
            self._hosts.come_back(self._session.host)

    # --- hosts ------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connects to the first host that takes a connection, if needed. Raises StoreError."""
        while self._session.connection is None:
            host = self._hosts.first() if self._left() > 0 else None
            if host is None:
                raise StoreError(self._hosts.reason)
            self._connect_to(host)
            self._hosts.take()

    def _connect_to(self, host: Host) -> None:
        """Connects to HOST, or marks it and returns.

        Raises StoreError where this process has no memory for a connection, or no driver.
        """
        # Not before: loading a driver costs more than all that a check does without it.
        driver = drivers.load(self._server)[1]
        until = monotonic() + self._share()
        was_busy = False
        while True:
            try:
                seconds = max(until - monotonic(), PAUSE)
                self._session.connect(driver, host, seconds, self._lock_patience())
            except Fault as fault:
                # That the last try had too little time says less than what the host said before.
                if not was_busy or fault.kind != faults.SILENT:
                    self._hosts.reason = f"{host}: {fault}"
                mark, way = judge(fault.kind, CONNECTING)
                if way == NOWHERE:
                    raise StoreError(self._hosts.reason) from None
                was_busy = way == HERE
                if not was_busy or monotonic() + PAUSE >= until:
                    self._blame(mark, fault)
                    return
            else:
                return
            self.awaits_connection = True
            sleep(PAUSE)
            self.awaits_connection = False

    def _claim_writes(self, patient: bool) -> None:
        """Raises where the host takes no writes, and this is not the check that tries it again.

        Again where there is another host, else StoreError.
        """
        self._connect()
        assert self._session.host is not None
        if self._hosts.takes_writes(self._session.host):
            return
        if not patient or not self._hosts.left:
            self._roll_back()
            raise StoreError(self._hosts.reason)
        self._session.disconnect()
        raise Again(self._hosts.reason)

    def _answered(self, kind: str) -> None:
        """The host did what it was not expected to do."""
        assert self._session.host is not None
        self._hosts.answered(self._session.host, kind)

    # --- time -------------------------------------------------------------------------------------

    def _left(self) -> float:
        """The time that is left, in seconds."""
        return self._until - monotonic()

    def _share(self) -> float:
        """What one host may take of it."""
        hosts = len(self._hosts.left) + (self._session.connection is not None)
        return max(self._left(), PAUSE) / max(1, hosts)

    def _is_fair(self, seconds: float) -> bool:
        """Whether a host that was given so many SECONDS had time enough to answer."""
        return seconds >= self._patience * min(FAIR, 0.5 / len(self._server.hosts))

    def _lock_patience(self) -> int:
        return max(1, int(self._patience * LOCK_PATIENCE))


def rule(row: "Sequence[Any]") -> tuple[bytes, str, str, str, int | None, int | None]:
    """The columns of a rule in a ROW; an empty key where there is none."""
    key, kind, pattern, action, delay, expires = row
    return bytes(key or b""), text(kind), text(pattern), text(action), delay, expires
