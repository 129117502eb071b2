"""The child's PostgreSQL, MariaDB or MySQL: one connection to the first of its hosts that is fit for it.

A known triplet is one round trip, and a new one three: what there is, what waits besides, the row. Each statement commits by itself;
two changes that belong together are a transaction. Nothing here relies on what a transaction sees at a second look, so every isolation
level from READ COMMITTED on will do: what is written is guarded by what was read, and compared with the row as it is then.

Diagnostics: ``Again`` where the check is to be decided again (a lost race, another host), ``StoreError`` where that is of no use.
``notes`` are lines for the log: which host does not answer, and which one answers again.
"""

import posix
from time import monotonic, sleep

from greycheck.policy import Change, Found, Waiting
from greycheck.store import drivers, server
from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.lean import (
    Again,
    Asked,
    RuleKeys,
    StoreError,
    WrongSchema,
    check_revision,
    parameters,
    rows,
    statement,
    total,
    waiting_parameters,
)
from greycheck.store.server import Fault, Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    from greycheck.settings import Settings
    from greycheck.store.drivers import Connection

# How long to wait for a lock, as a share of all the time there is; in whole seconds, one at least.
LOCK_PATIENCE = 0.25

# The share of all time that a host must have been given for its silence to count, and that a further attempt is worth while in.
FAIR = 0.2

# The share of a host's time that a connection must have been made in for a check to go on with it: drivers set limits by that.
FAIR_SHARE = 0.5

# How long to wait before a host is asked again that has no connection left, in seconds; or before a lost race is run again, at most.
PAUSE = 0.05

BEGIN = {"postgresql": "BEGIN ISOLATION LEVEL READ COMMITTED", "mysql": "START TRANSACTION"}


class Store:
    """A server database under SETTINGS. It connects when it is asked first, and gives up PATIENCE seconds from now."""

    def __init__(self, settings: "Settings", patience: float) -> None:
        self._server = server.parse(settings.database)
        self._compiled: ModuleType = __import__(
            f"greycheck.store.compiled_{self._server.dialect}", fromlist=["REVISION"]
        )
        self._patience = patience
        self._until = monotonic() + patience
        self._breaker = Breaker(settings.state_directory, self._server)
        self.notes: list[str] = []
        # Whether it waits for the host to have a connection left.
        self.is_hungry = False
        self._reason = "there was no time left to ask the database"
        self._hosts = self._in_order()
        self._host: Host | None = None
        self._connection: Connection | None = None
        self._reconnected = False
        self._in_transaction = False
        self._writing = False
        self._patient = True
        # Whether the host is to blame for a write that it does not do: a row may be held by somebody, a new one by nobody.
        self._blaming = False
        # What the host was given for the last answer, and when it connected, in seconds.
        self._given = self._limit = 0.0
        self._asking_since = 0.0

    def begin(self, patience: float) -> None:
        """Another check, on the connection that there is: it gives up PATIENCE seconds from now. Raises StoreError where no host is due.

        What it waits for locks, and what is fair to a host, stays as it was: a check that comes late is nobody else's fault.
        """
        self.rest()
        self._until = monotonic() + patience
        self.notes = []
        self._reconnected = self._writing = False
        self._hosts = self._in_order()
        if self._connection is None:
            return
        while self._hosts and not self._breaker.claim(self._hosts[0], DOWN):
            self._reason = self._unasked(self._hosts.pop(0))
        if not self._hosts:
            raise StoreError(self._reason)
        # A connection that was made in a hurry keeps its limits, and would fail what takes its time.
        if self._hosts[0] is not self._host or self._limit < patience * FAIR_SHARE / len(self._server.hosts):
            self._disconnect()
        else:
            del self._hosts[0]

    def rest(self) -> None:
        """A check is over. What it did not come to an end with, it leaves to others."""
        self._breaker.release()
        if self._in_transaction:
            self._disconnect()

    # --- what a check asks ------------------------------------------------------------------------------------------------

    def lookup(self, asked: Asked, now: int) -> Found:
        """The rows of the triplet and the client, and the rules that match."""
        compiled = self._compiled
        sql, names = compiled.LOOKUP_IPV6 if ":" in asked.triplet.client else compiled.LOOKUP_IPV4
        keys = RuleKeys(asked)
        found = self._run(sql, [asked.key, asked.triplet.client, *keys.padded(len(names) - 2)])
        self._answered(DOWN)
        if found[0][0] is None:
            raise StoreError(server.NO_SCHEMA)
        there = rows((_text(found[0][0]), *found[0][1:]), compiled.REVISION)
        return Found(*there, *keys.pick(map(_rule, found), now))

    def waiting(self, asked: Asked, since: int, now: int, settings: "Settings") -> Waiting:
        """What waits besides."""
        sql, names = self._compiled.WAITING
        values, times = waiting_parameters(asked, since, now, settings)
        others, oldest, newest, gap, crowd, *counts = self._run(sql, [values[name] for name in names])[0]
        return Waiting(others, oldest, newest, gap, crowd, total(counts, times))

    def lock(self, asked: Asked) -> None:
        """Begins a transaction that holds the triplet's row, where there is one, against everybody else."""
        self._connected()
        self._writing, self._patient, self._blaming = True, True, False
        self._begin()
        self._run(self._compiled.LOCK_TRIPLET[0], [asked.key])
        self._writing = False

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:
        """Writes all CHANGES and commits, or writes none and returns False. Not PATIENT: another's lock is waited for once."""
        if not changes:
            return self._end("ROLLBACK", True)
        self._claim_writes(patient)
        self._writing, self._patient, self._blaming = True, patient, False
        if len(changes) > 1:
            self._begin()
        for change in changes:
            sql, names = getattr(self._compiled, statement(change))
            self._blaming = statement(change) == "INSERT_TRIPLET"
            values = parameters(asked, change)
            if self._change(sql, [values[name] for name in names]) != 1:
                return self._end("ROLLBACK", False)
        self._blaming = True
        self._end("COMMIT", True)
        self._answered(STUCK)
        return True

    def tidy(self) -> None:
        """Says good-bye: servers log a line for each client who does not."""
        if self._connection is not None:
            self._disconnect()

    close = tidy

    def overdue(self) -> None:
        """The deadline is over while a host was asked."""
        asked_for = monotonic() - self._asking_since if self._asking_since else 0.0
        if self._host is not None and self._is_fair(asked_for):
            self._blame(self._host, f"no answer for {asked_for:.1f}s")

    # --- statements -------------------------------------------------------------------------------------------------------

    def _run(self, sql: str, values: "Sequence[object]" = ()) -> "Sequence[Sequence[Any]]":
        """The rows of a statement."""
        return self._answer(sql, values)[0]

    def _change(self, sql: str, values: "Sequence[object]") -> int:
        """How many rows a statement changed."""
        return self._answer(sql, values)[1]

    def _answer(self, sql: str, values: "Sequence[object]") -> "tuple[Sequence[Sequence[Any]], int]":
        connection = self._connected()
        self._given = self._share()
        self._asking_since = monotonic()
        try:
            return connection.run(sql, values, self._given)
        except Fault as fault:
            raise self._judged(fault) from None
        finally:
            self._asking_since = 0.0

    def _begin(self) -> None:
        if not self._in_transaction:
            self._run(BEGIN[self._server.dialect])
            self._in_transaction = True

    def _end(self, how: str, written: bool) -> bool:
        if self._in_transaction:
            self._run(how)
        self._in_transaction = self._writing = False
        return written

    def _judged(self, fault: Fault) -> StoreError:
        """What to raise for FAULT, after all has been done about it that can be."""
        host = self._host
        assert host is not None
        if fault.kind in (server.OTHER, server.OURS, server.SCHEMA):
            self._roll_back()
            self._writing = False
            found = self._explained(fault)
            return (WrongSchema if isinstance(found, WrongSchema) else StoreError)(f"{host}: {found}")
        if fault.kind in (server.CONFLICT, server.LOCKED):
            return self._after_others(fault)
        self._disconnect()
        self._reason = f"{host}: {fault}"
        if fault.kind == server.READ_ONLY:
            self._mark(host, STUCK, str(fault))
        elif fault.kind != server.GONE or not self._comes_back():
            self._blame(host, str(fault), fault.kind == server.SILENT)
        self._writing = False
        return Again(self._reason) if self._hosts else StoreError(self._reason)

    def _blame(self, host: Host, why: str, was_silent: bool = False) -> None:
        """Marks HOST for what it did not do. Whoever WAS SILENT must have been given time."""
        if was_silent and not self._is_fair(self._given):
            return
        if not self._writing:
            self._mark(host, DOWN, why)
        elif self._blaming:
            self._mark(host, STUCK, why)

    def _comes_back(self) -> bool:
        """Whether the host whose connection was lost is to be asked once more."""
        if self._reconnected or self._host is None:
            return False
        self._reconnected = True
        self._hosts.insert(0, self._host)
        return True

    def _explained(self, fault: Fault) -> StoreError:
        """FAULT, or what says more: that a table or column is not there because the schema is another program's."""
        if fault.kind == server.SCHEMA and self._connection is not None:
            try:
                found = self._connection.run(self._compiled.SCHEMA[0], (), self._share())[0]
                check_revision(_text(found[0][0]) if found else None, self._compiled.REVISION)
            except StoreError as error:
                return error
        return fault

    def _after_others(self, fault: Fault) -> StoreError:
        """What to raise where somebody else was quicker, or holds a lock."""
        host, writing = self._host, self._writing
        assert host is not None
        self._roll_back()
        wanted = self._lock_patience() if fault.kind == server.LOCKED else self._patience * FAIR
        if self._left() >= wanted and (self._patient or fault.kind == server.CONFLICT):
            self._writing = False
            # Who lost the same race must not come back at the same moment, be it another process or another thread of this one.
            sleep(PAUSE * (posix.urandom(1)[0] + 32) / 256)
            return Again(f"{host}: {fault}")
        if fault.kind == server.LOCKED and (self._patient or not writing):
            self._blame(host, str(fault))
        self._writing = False
        return StoreError(f"{host}: {fault}")

    def _roll_back(self) -> None:
        if self._in_transaction and self._connection is not None:
            self._in_transaction = False
            try:
                self._connection.run("ROLLBACK", (), self._share())
            except Fault as fault:
                self._disconnect()
                self._reason = f"{self._host}: {fault}"
                self._comes_back()

    # --- hosts ------------------------------------------------------------------------------------------------------------

    def _in_order(self) -> list[Host]:
        """The hosts to ask, those that take writes first."""
        due = [host for host in self._server.hosts if self._breaker.is_due(host, DOWN)]
        for host in self._server.hosts:
            if host not in due:
                self._reason = self._unasked(host)
        stuck = [host for host in due if not self._breaker.is_due(host, STUCK)]
        return [host for host in due if host not in stuck] + stuck

    def _connected(self) -> "Connection":
        """The connection to the first host that takes one."""
        while self._connection is None:
            if not self._hosts or self._left() <= 0:
                raise StoreError(self._reason)
            self._host = host = self._hosts[0]
            if not self._breaker.claim(host, DOWN):
                self._reason = self._unasked(self._hosts.pop(0))
                continue
            self._connection = self._connection_to(host)
            del self._hosts[0]
        return self._connection

    def _connection_to(self, host: Host) -> "Connection | None":
        """A connection to HOST, or None after all has been done about it that can be. Raises StoreError where that is nobody's fault."""
        # Not before: loading a driver costs more than all that a check does without it.
        driver = drivers.load(self._server)[1]
        until = monotonic() + self._share()
        while True:
            self._given = self._limit = max(until - monotonic(), PAUSE)
            self._asking_since = monotonic()
            try:
                return driver.Connection(self._server, host, self._given, self._lock_patience())
            except Fault as fault:
                self._reason = f"{host}: {fault}"
                if fault.kind == server.OURS:
                    raise StoreError(self._reason) from None
                if fault.kind != server.BUSY or monotonic() + PAUSE >= until:
                    self._blame(host, str(fault), fault.kind == server.SILENT)
                    return None
            finally:
                self._asking_since = 0.0
            self.is_hungry = True
            sleep(PAUSE)
            self.is_hungry = False

    def _disconnect(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        self._in_transaction = False

    def _left(self) -> float:
        """The time that is left, in seconds."""
        return self._until - monotonic()

    def _share(self) -> float:
        """What one host may take of it."""
        return max(self._left(), PAUSE) / max(1, len(self._hosts) + (self._connection is not None))

    def _is_fair(self, seconds: float) -> bool:
        """Whether a host that was given so many SECONDS had time enough to answer."""
        return seconds >= self._patience * min(FAIR, 0.5 / len(self._server.hosts))

    def _lock_patience(self) -> int:
        return max(1, int(self._patience * LOCK_PATIENCE))

    # --- what other checks are told ---------------------------------------------------------------------------------------

    def _claim_writes(self, patient: bool) -> None:
        """Raises where the host takes no writes, and this is not the check that tries it again: Again where there is another host."""
        self._connected()
        host = self._host
        assert host is not None
        if self._breaker.claim(host, STUCK):
            return
        self._reason = f"{host} has taken no writes for {self._since(host, STUCK)}: not tried"
        if not patient or not self._hosts:
            self._roll_back()
            raise StoreError(self._reason)
        self._disconnect()
        raise Again(self._reason)

    def _mark(self, host: Host, kind: str, why: str) -> None:
        what = f"{host} {'takes no writes' if kind == STUCK else 'is not asked any more'}: {why}"
        try:
            if self._breaker.set(host, kind):
                self.notes.append(f"warning {what}")
        except OSError as error:
            self.notes.append(f"warning {what}; others cannot be told: {self._breaker.directory}: {error.strerror}")

    def _answered(self, kind: str) -> None:
        """The host did what it was not expected to do."""
        assert self._host is not None
        seconds = self._breaker.clear(self._host, kind)
        if seconds is not None:
            what = "takes writes" if kind == STUCK else "answers"
            self.notes.append(f"note {self._host} {what} again after {seconds:.0f}s")

    def _unasked(self, host: Host) -> str:
        return f"{host} has not answered for {self._since(host, DOWN)}: not asked"

    def _since(self, host: Host, kind: str) -> str:
        return f"{self._breaker.since(host, kind) or 0:.0f}s"


def _rule(row: "Sequence[Any]") -> tuple[bytes, str, str, str, int | None, int | None]:
    """The columns of a rule in a ROW of LOOKUP; an empty key where there is none."""
    key, kind, pattern, action, delay, expires = row[11:]
    return bytes(key or b""), _text(kind), _text(pattern), _text(action), delay, expires


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
