"""The child's SQLite.

Journal mode WAL is in the file since it was made; here come the pragmas of one connection. A child
never closes its connection: the last one to close would write the whole log back and wait for the
disk, each time (docs/hooks.rst#what-a-process-costs). Instead the log is emptied by whoever makes
it grow past another ``LOG_STEP``, after its verdict is given. SQLite's own automatic checkpoint
cannot do that: it never empties the log where one process comes after another, and from then on
would wait for the disk at every commit.
"""

import posix
import sys

from greycheck.policy import Change, Rows, RuleRow
from greycheck.store import compiled_sqlite as compiled
from greycheck.store.base import Asked, StoreError, imported, made

# Bytes of write-ahead log after which it is written back. A child that comes alone reads the log
# first, 0.15 ms for each 100 pages.
LOG_STEP = 1 << 20

# How long a write waits for another writer where the verdict does not hang on it, in seconds.
HURRY = 0.1


def _import_sqlite() -> "ModuleType":
    """Returns _sqlite3, imported without ``functools``.

    That costs more than the library itself, and is wanted for one name of a C module.
    """
    import _functools

    functools = type(sys)("functools")
    functools.__dict__["lru_cache"] = lambda size: (
        lambda call: _functools._lru_cache_wrapper(call, size, False, tuple)
    )
    return imported("_sqlite3", functools=functools)


TYPE_CHECKING = False
if TYPE_CHECKING:
    import _sqlite3
    from collections.abc import Sequence
    from types import ModuleType

    from greycheck.outbound import Letter
    from greycheck.settings import Settings
    from greycheck.unknown import Identity, Pending
else:
    _sqlite3 = _import_sqlite()


class Store:
    """One connection to the SQLite file PATH.

    It waits PATIENCE seconds at most for a lock, and never closes.
    """

    notes: "Sequence[str]" = ()

    def __init__(self, path: str, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._locked = False
        self._log_grew = False
        if posix.geteuid() == 0:
            from greycheck.store import rights

            rights.refuse_root(path)
        try:
            self._connection = _sqlite3.connect(
                uri(path), timeout=patience, isolation_level=None, uri=True
            )
        except _sqlite3.Error as error:
            raise self._fault(error) from None

    def begin(self, patience: float) -> None:
        """Begins another check on this connection; it waits at most PATIENCE seconds for a lock."""
        self._patience = patience
        self._execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")

    def lookup(self, asked: Asked, now: int) -> Rows:
        """The rows of the triplet and the client, and the rules that match."""
        sql, names = compiled.LOOKUP
        found = self._execute(
            sql, names, {"triplet_key": asked.key, "address": asked.triplet.client}
        ).fetchone()
        if found[0] != compiled.REVISION:
            from greycheck.store.causes import check_revision

            check_revision(found[0], compiled.REVISION)
        rules, expected = self._rules(asked, now) if found[-1] else ([], None)
        return Rows(*made(found[1:11]), rules, expected)

    def _rules(self, asked: Asked, now: int) -> tuple[list[RuleRow], RuleRow | None]:
        """The rules that match, the deciding one first, and the expectation, if there is one."""
        from greycheck.store.matching import RuleKeys

        of_ipv6 = ":" in asked.triplet.client
        sql, names = compiled.RULES_IPV6 if of_ipv6 else compiled.RULES_IPV4
        keys = RuleKeys(asked)
        found = self._run(sql, keys.padded(len(names))).fetchall()
        pairs = compiled.PAIRS_IPV6 if of_ipv6 else compiled.PAIRS_IPV4
        for values in keys.of_pairs(found, len(pairs[1])):
            found += self._run(pairs[0], values).fetchall()
        return keys.pick(found, now)

    def waiting(self, asked: Asked, since: int, now: int, settings: "Settings") -> "Pending":
        """What waits besides."""
        from greycheck.store.waiting import pool_parameters
        from greycheck.unknown import Pending

        others, oldest, newest, rounds, of_domain = 0, None, None, None, None
        if not self._is_alone(asked):
            sql, names = compiled.POOL
            others, oldest, newest, rounds, of_domain = self._execute(
                sql, names, pool_parameters(asked, since, now, settings)
            ).fetchone()
        crowd = self._crowd(asked, settings.network_limit, now) if settings.network_limit else 0
        in_all = self._estimate(settings.pending_limit, now) if settings.pending_limit else 0
        known = self.identity(asked, now, settings)
        return Pending(others, oldest, newest, rounds, crowd, in_all, of_domain, known)

    def identity(self, asked: Asked, now: int, settings: "Settings") -> "Identity":
        """What is known of the client and of its sender's domain."""
        from greycheck.store.waiting import identity, identity_parameters, wants_identity
        from greycheck.unknown import NOBODY

        if not wants_identity(settings):
            return NOBODY
        sql, names = compiled.IDENTITY
        found = self._execute(sql, names, identity_parameters(asked, now, settings)).fetchone()
        return identity(found, asked, now)

    def networks(self, asked: Asked, since: int, settings: "Settings") -> "Sequence[str]":
        """The networks from which the pair waits."""
        from greycheck.store.waiting import pool_parameters

        sql, names = compiled.NETWORKS
        found = self._execute(sql, names, pool_parameters(asked, since, 0, settings))
        return [row[0] for row in found.fetchall()]

    def _is_alone(self, asked: Asked) -> bool:
        """Whether no other triplet of the same pair is there."""
        if not asked.triplet.sender:
            return True
        from greycheck.store.waiting import pair_keys

        pair_low, pair_high = pair_keys(asked.key)
        return self._run(compiled.OTHERS[0], (pair_low, pair_high, asked.key)).fetchone() is None

    def _crowd(self, asked: Asked, limit: int, now: int) -> int:
        """How many of the network of ASKED wait, up to LIMIT."""
        values = (asked.triplet.network, now, limit)
        crowd: int = self._run(compiled.CROWD[0], values).fetchone()[0]
        return crowd

    def _estimate(self, limit: int, now: int) -> int:
        """How many wait in all, as far as LIMIT wants to know."""
        from greycheck.store.waiting import sample, total

        ranges, times = sample(limit)
        counts = [
            self._run(compiled.PENDING[0], (low, high, now)).fetchone()[0]
            for low, high in ranges
            if high
        ]
        return total(counts, times)

    def lock(self, _asked: Asked) -> None:
        """Begins a transaction that no other writer can come between."""
        self._take_lock()

    def _take_lock(self) -> None:
        self._execute("PRAGMA synchronous = NORMAL")
        self._execute("PRAGMA wal_autocheckpoint = 0")
        self._execute("BEGIN IMMEDIATE")
        self._locked = True

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:
        """Writes all CHANGES and commits, or writes none and returns False.

        Not PATIENT: another writer is hardly waited for.
        """
        if not changes:
            return self._end("ROLLBACK", True)
        from greycheck.store.writing import is_done, parameters, statement

        log = self.log_size()
        if not patient:
            self._patience = HURRY
            self._execute(f"PRAGMA busy_timeout = {HURRY * 1000:.0f}")
        if not self._locked:
            self.lock(asked)
        for change in changes:
            kind = statement(change)
            sql, names = getattr(compiled, kind)
            changed = self._execute(sql, names, parameters(asked, change)).rowcount
            if not is_done(kind, changed):
                return self._end("ROLLBACK", False)
        self._end("COMMIT", True)
        self._log_grew = self._log_grew or self.log_size() // LOG_STEP > log // LOG_STEP
        return True

    def _end(self, how: str, written: bool) -> bool:
        if self._locked:
            self._execute(how)
            self._locked = False
        return written

    def learn(self, letters: "Sequence[Letter]") -> int:
        """Records LETTERS in one transaction, but for what is known; returns how many.

        The lock is taken only where there is something to write.
        """
        news = [values for letter in letters if (values := self._news(letter)) is not None]
        if not news:
            return 0
        log = self.log_size()
        self._take_lock()
        written = sum(map(self._put_correspondent, news))
        self._end("COMMIT", True)
        self._log_grew = self._log_grew or self.log_size() // LOG_STEP > log // LOG_STEP
        return written

    def _news(self, letter: "Letter") -> dict[str, object] | None:
        """The parameters of a LETTER that is to be recorded; None where it has been of late."""
        from greycheck.store.writing import letter_parameters

        values = letter_parameters(letter)
        found = self._execute(*compiled.CORRESPONDENT, values).fetchone()
        if found is None:
            return values
        values["pair_low"] = None
        return values if letter.is_news(found[0]) else None

    def _put_correspondent(self, values: dict[str, object]) -> bool:
        """Records a letter by its VALUES, unless its user has too many correspondents."""
        if values["pair_low"] is not None:
            from greycheck.store.waiting import CORRESPONDENTS

            (count,) = self._execute(*compiled.CORRESPONDENTS, values).fetchone()
            if count >= CORRESPONDENTS:
                return False
        self._execute(*compiled.PUT_CORRESPONDENT, values)
        return True

    def tidy(self) -> None:
        """Writes the log back where this connection made it grow past a step.

        Whoever else is writing is not waited for.

        A fault here changes no verdict; if it lasts, the next commit meets it.
        """
        if not self._log_grew:
            return
        try:
            self._execute("PRAGMA busy_timeout = 0")
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except StoreError:
            pass

    def overdue(self) -> None:
        """A file is nobody's fault."""

    def close(self) -> None:
        """Leaves the file, and undone what was begun: for a process that goes on without it."""
        self._connection.close()

    def _execute(
        self, sql: str, names: tuple[str, ...] = (), parameters: dict[str, object] | None = None
    ) -> "_sqlite3.Cursor":
        return self._run(sql, [parameters[name] for name in names] if parameters else [])

    def _run(self, sql: str, values: "Sequence[object]" = ()) -> "_sqlite3.Cursor":
        try:
            return self._connection.execute(sql, values)
        except (
            _sqlite3.Error,
            OverflowError,
        ) as error:  # a row's number that was the largest there is
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> StoreError:
        """What to raise for ERROR."""
        if "column" in str(error):
            self._check_revision()
        return self._fault(error)

    def _check_revision(self) -> None:
        """Raises StoreError where a column is not there because the schema is another program's."""
        from greycheck.store.causes import check_revision

        try:
            found = self._connection.execute(compiled.SCHEMA[0]).fetchone()
        except _sqlite3.Error:
            return
        check_revision(found[0] if found else None, compiled.REVISION)

    def log_size(self) -> int:
        """Bytes of write-ahead log."""
        try:
            return posix.stat(self._path + "-wal").st_size
        except OSError:
            return 0

    def _fault(self, error: Exception) -> StoreError:
        from greycheck.store.sqlite_faults import fault

        return fault(self._path, error, self._patience)


def uri(path: str) -> str:
    """PATH as an SQLite URI that opens an existing file only."""
    for special in "%?#":
        path = path.replace(special, f"%{ord(special):02x}")
    return f"file://{path}?mode=rw"
