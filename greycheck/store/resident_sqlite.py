"""The resident's SQLite: one connection that stays open, on which many envelopes are decided in one transaction.

It never waits for another process that writes: ``begin_writing`` says whether the lock was there. Rules are found in memory
(``rule_index``) as long as nobody else has written to the file since they were read, and else in the table, as a child does, until they
are read again.

One connection reads and writes, in one thread. Two, one of which commits in a thread of its own, were built first: each commit threw away
what the other had in memory, and the threads got in each other's way, so that a new triplet cost 170 us instead of 100.
"""

import posix
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from greycheck.policy import Change, Found, TripletRow
from greycheck.store import compiled_sqlite as compiled
from greycheck.store import lean_sqlite
from greycheck.store.lean import (
    Asked,
    Busy,
    NoSchema,
    StoreError,
    check_revision,
    made,
    parameters,
    statement,
)
from greycheck.store.rule_index import RuleIndex

ROWS = compiled.ROWS[0]

# How soon rules are read again after somebody has written, in seconds; or as many times longer than that took.
REREAD, TIMES = 0.05, 20

# How long an estimate of all that waits is good for, in seconds; where somebody has written, so many TIMES longer than it took.
ESTIMATE = 1.0

# What part of a network's limit is let in uncounted, at first and from one count to the next, and of how many networks that is remembered.
UNCOUNTED, NETWORKS = 64, 10_000

# Bytes by which the write-ahead log may grow before it is written back.
LOG_STEP = 4 << 20

# How long writers may be kept out to begin it anew, where somebody reads what is in it, in seconds.
BEGINNING = 0.02

# How long the log may become, in pages, before writers are kept out for the moment that it takes to begin it anew; how often it is tried
# to make that short, and what makes it short enough, in pages.
LONGEST, PASSES, REST = 16384, 8, 100

# Kibibytes of the file that are kept in memory.
CACHE = 32 << 10


class Store(lean_sqlite.Store):
    """The SQLite file PATH. Its methods raise Busy where that is not possible just now."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 0)
        try:
            self._run("PRAGMA synchronous = NORMAL")
            self._run("PRAGMA wal_autocheckpoint = 0")
            self._run(f"PRAGMA cache_size = -{CACHE}")
            self._file = posix.stat(path)
        except OSError as error:
            self._connection.close()
            raise NoSchema(f"{path}: {error.strerror}") from None
        except StoreError:
            self._connection.close()
            raise
        self._index = RuleIndex(())
        self._indexed: list[object] = []
        self._indexed_at = -1
        self._indexed_when = float("-inf")
        self._indexing_took = 0.0
        self._fresh = False
        self._version = 0
        # What was asked last, where no others of its pair were found along with its rows.
        self._alone: Asked | None = None
        # All that waits: how many, of which version, since when, and how long counting took.
        self._total = self._counted_at = self._counted_now = 0
        self._counted_when = float("-inf")
        self._counting_took = 0.0
        # How many new triplets of a network are let in before it is counted how many wait.
        self._room: dict[str, int] = {}

    def is_replaced(self) -> bool:
        """Whether the file at the path is no longer the one that is open."""
        try:
            found = posix.stat(self._path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (self._file.st_dev, self._file.st_ino)

    # --- transactions -----------------------------------------------------------------------------------------------------

    def begin_reading(self) -> None:
        """Begins a batch of lookups that see the same state, or goes on with it."""
        if self._connection.in_transaction:
            return
        self._run("BEGIN")
        try:
            # It changes with every commit of another connection, and with none of this one.
            self._version = version = self._run("PRAGMA data_version").fetchone()[0]
            self._fresh = version == self._indexed_at
            if not self._fresh and monotonic() - self._indexed_when > max(REREAD, TIMES * self._indexing_took):
                self._read_rules(version)
        except StoreError:
            self.roll_back()
            raise

    def begin_writing(self) -> bool:
        """Begins a batch of changes, in the state that lookups saw if nobody has changed it since. False where another process is at it."""
        # Whoever is decided again looks into the table, which may have been changed.
        self._fresh = False
        try:
            if self._connection.in_transaction:
                self._run(compiled.TAKE_LOCK[0])
                return True
        except StoreError:
            self.roll_back()
        try:
            self._run("BEGIN IMMEDIATE")
        except Busy:
            return False
        try:
            self._require_revision()  # somebody has written since it was looked at, perhaps another program's ``db upgrade``
        except StoreError:
            self.roll_back()
            raise
        return True

    @property
    def is_in_batch(self) -> bool:
        """Whether a batch is begun. SQLite ends one by itself where it cannot go on, as on a full disk."""
        return self._connection.in_transaction

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is written in here is undone alone where it fails, unless SQLite has undone the batch."""
        self._run("SAVEPOINT apart")
        try:
            yield
        except BaseException:
            if self.is_in_batch:
                self._run("ROLLBACK TO apart")
                self._run("RELEASE apart")
            raise
        self._run("RELEASE apart")

    def commit(self) -> None:
        """Ends a batch. Raises StoreError where its changes could not be written; none of them was, then."""
        self._run("COMMIT")

    def roll_back(self) -> None:
        """Ends a batch whose changes are not wanted, or cannot be had."""
        with suppress(sqlite3.Error):  # it is over, then
            self._connection.rollback()

    # --- what a check asks ------------------------------------------------------------------------------------------------

    def lookup(self, asked: Asked, now: int) -> Found:
        """The rows of the triplet and the client, and the rules that match."""
        if not self._fresh:
            return super().lookup(asked, now)
        try:
            *found, others = self._connection.execute(ROWS, (asked.key, asked.triplet.client)).fetchone()
        except sqlite3.Error as error:
            raise self._explained(error) from None
        self._alone = asked if others == 0 else None
        return Found(*made(found), *self._index.find(asked, now))

    def _is_alone(self, asked: Asked) -> bool:
        return asked is self._alone

    def _crowd(self, network: str, limit: int, now: int) -> int:
        """How many of NETWORK wait, up to LIMIT: looked for once in so many questions; until then as few as to let all of them in."""
        room = self._room.get(network, limit // UNCOUNTED)
        crowd = 0
        if room <= 0:
            crowd = super()._crowd(network, limit, now)
            room = min(limit // UNCOUNTED, limit - crowd)
        if len(self._room) >= NETWORKS:
            self._room.clear()
        self._room[network] = room - 1
        return crowd

    def _estimate(self, limit: int, now: int) -> int:
        """How many wait in all, as others had it a moment ago, with what was added here since."""
        began = monotonic()
        good_for = ESTIMATE if self._version == self._counted_at else min(ESTIMATE, TIMES * self._counting_took)
        # What waits is over by the clock on the wall, which can be set.
        if began - self._counted_when > good_for or now != self._counted_now:
            self._total = super()._estimate(limit, now)
            self._counted_at, self._counted_when, self._counted_now = self._version, began, now
            self._counting_took = monotonic() - began
        return self._total

    def lock(self, _asked: Asked) -> None:
        """A batch of changes has the lock."""

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:  # noqa: ARG002
        """Writes all CHANGES of one check in a batch, or writes none and returns False."""
        if len(changes) == 1:
            return self._write(asked, changes[0])
        self._run("SAVEPOINT one")
        done = all(self._write(asked, change) for change in changes)
        if not done:
            self._run("ROLLBACK TO one")
        self._run("RELEASE one")
        return done

    def _write(self, asked: Asked, change: Change) -> bool:
        kind = statement(change)
        if kind == "DELETE_RULE":
            self._indexed_at = -1
        sql, names = getattr(compiled, kind)
        values = parameters(asked, change)
        done = self._run(sql, [values[name] for name in names]).rowcount == 1
        if done and isinstance(change.new, TripletRow):
            old, new = change.old, change.new
            # One that begins anew was over, and not counted.
            waited = isinstance(old, TripletRow) and not old.passes and old.first == new.first
            self._total += (not new.passes) - waited
        return done

    def _require_revision(self) -> None:
        revision = self._run(compiled.SCHEMA[0]).fetchone()
        check_revision(revision[0] if revision else None, compiled.REVISION)

    def _read_rules(self, version: int) -> None:
        began = monotonic()
        self._require_revision()  # as every look-up does that is not made from memory
        try:
            found = self._connection.execute(compiled.ALL_RULES[0]).fetchall()
            if found != self._indexed:
                self._index, self._indexed = RuleIndex(found), found
            self._indexed_at, self._fresh = version, True
        except Exception:
            # One that nobody can read must not keep all others from being found: the table is asked, as a child does.
            self._indexed_at = -1
        self._indexed_when = monotonic()
        self._indexing_took = self._indexed_when - began


def write_back(path: str) -> None:
    """Writes the log of the file PATH back into it. For a thread of its own.

    The log keeps its size: to write over it costs less than to make it grow again. A disk that is slow to confirm would let writers wait
    as long as it takes twice for that, so they are kept out only where they never pause by themselves.
    """
    try:
        connection = sqlite3.connect(lean_sqlite.uri(path), uri=True, isolation_level=None, timeout=BEGINNING)
    except sqlite3.Error:
        return
    try:
        # While others read and write. Where nobody wrote meanwhile, the next one begins the log anew.
        _busy, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages <= LONGEST:
            return
        # What was written meanwhile is less each time; the last of it is worth a moment without writers.
        for _ in range(PASSES):
            _busy, pages, _done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages - done < REST:
                break
            done = pages
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
    except sqlite3.Error:
        pass
    finally:
        connection.close()
