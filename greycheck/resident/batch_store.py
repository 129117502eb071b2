"""The resident's SQLite file: one connection that stays open, many envelopes in one transaction.

It never waits for another process that writes: ``begin_writing`` returns false where that has the
lock. Rules are found in memory (``rules.index``) as long as no other process has written to the
file since they were read. After that they are looked up in the table, as a child does, until they
are read again.

Half of what a look-up costs is its statement. So what a turn has is looked up ahead, TOGETHER at a
time, and taken from there by the check that asks for it. That lasts until the transaction ends or
begins to write. Rows are written by ``executemany``: an INSERT of several rows makes SQLite keep
a journal for the statement, and costs twice as much.

One connection reads and writes, in one thread. Two connections, one of which commits in a thread of
its own, were tried first: each commit emptied the page cache of the other, and the threads waited
for each other, so that a new triplet cost 170 us instead of 100.
"""

import posix
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from time import monotonic
from typing import Any

from greycheck.policy import Change, ClientRow, Rows, TripletRow
from greycheck.resident.newcomers import Newcomers, Rooms, begins_to_wait
from greycheck.rules.index import RuleIndex
from greycheck.settings import Settings
from greycheck.store import compiled_sqlite as compiled
from greycheck.store import sqlite
from greycheck.store.base import DIGEST, Asked, StoreError
from greycheck.store.causes import Again, Busy, NoSchema, check_revision
from greycheck.store.waiting import (
    PROVIDERS,
    correspondent_key,
    identity,
    origin_of,
    wants_identity,
)
from greycheck.store.writing import is_done, parameters, statement
from greycheck.unknown import Identity, Pending

# The driver asks whatever is neither a number nor a text how it is to be stored, and makes an error
# of each answer that is missing, 1 us for a key. What is told so is stored as it is.
sqlite3.register_adapter(bytes, lambda value: value)
sqlite3.register_adapter(type(None), lambda value: value)

# A row that was found.
Found = tuple[Any, ...]

# The places of the last columns of ROWS.
CLIENT, EXPIRES, OTHERS = 6, 11, 12

# How many envelopes one statement asks for at most.
TOGETHER = 32


def _of_many(sql: str, names: str) -> list[str]:
    """Returns SQL that asks for 0, 1, 2 up to TOGETHER rows of the table ``asked`` with NAMES."""
    row = f"({', '.join('?' for _ in names.split(', '))})"
    return [
        f"WITH asked({names}) AS (VALUES {', '.join([row] * number)}) {sql}"
        for number in range(TOGETHER + 1)
    ]


ROWS = _of_many(compiled.ROWS[0], "wanted, address")
IDENTITIES = _of_many(
    compiled.IDENTITIES[0], "domain_key, origin, provider_origin, provider_key, pair_key"
)

# After a write by another process, rules are read again once they are REREAD seconds old, or TIMES
# as old as reading them took.
REREAD, TIMES = 0.05, 20

# An estimate of all that waits counts for this long, in seconds; after a write by another process
# for TIMES as long as counting took, if that is less.
ESTIMATE = 1.0

# Bytes by which the write-ahead log may grow before it is written back.
LOG_STEP = 4 << 20

# How long writers may be blocked to restart the log while another process reads it, in seconds.
BEGINNING = 0.02

# The size of the log, in pages, above which writers are blocked for a moment to restart it; how
# many passive checkpoints are tried before; and the remainder, in pages, that is small enough.
LONGEST, PASSES, REST = 16384, 8, 100

# The size of the page cache, in KiB.
CACHE = 32 << 10


class ReadRow(TripletRow):
    """A triplet's row as it was read here, and when it EXPIRES."""

    __slots__ = ("expires",)

    def __init__(
        self, expires: int, first: int, last: int, early: int, passes: int, passed: int | None
    ) -> None:
        super().__init__(first, last, early, passes, passed)
        self.expires = expires


class Cache:
    """The age of what was read from the file, and the version of the file that it was read from.

    ``version`` is the file's data_version when it was read, NOT_READ before that or after a change
    here. ``took`` is how long reading took, in seconds.
    """

    NOT_READ = -1

    __slots__ = ("_read", "took", "version")

    def __init__(self) -> None:
        self.version = self.NOT_READ
        self.took = 0.0
        self._read = float("-inf")

    def age(self, now: float) -> float:
        """Returns how many seconds before NOW (``monotonic``) it was read."""
        return now - self._read

    def was_read(self, version: int, began: float) -> None:
        """Notes that it was read from VERSION; reading BEGAN then (``monotonic``) and is done."""
        self.version = version
        self._read = monotonic()
        self.took = self._read - began


class Store(sqlite.Store):
    """The SQLite file PATH. Its methods raise Busy where another process has the lock.

    To open it, a lock is waited for PATIENCE seconds: whoever leaves a file last, or finds it after
    a crash, has all of it for a moment.
    """

    def __init__(self, path: str, patience: float = 0) -> None:
        super().__init__(path, patience)
        try:
            self._run("PRAGMA synchronous = NORMAL")
            self._run("PRAGMA wal_autocheckpoint = 0")
            self._run(f"PRAGMA cache_size = -{CACHE}")
            if patience:
                self.begin(0)
            self._file = posix.stat(path)
        except OSError as error:
            self._connection.close()
            raise NoSchema(f"{path}: {error.strerror}") from None
        except StoreError:
            self._connection.close()
            raise
        # The version of the file that this transaction reads (data_version).
        self._version = 0
        # The rules as they were read, with an index. In a transaction that reads the same version
        # they are found there.
        self._rules_read = Cache()
        self._rule_rows: list[object] = []
        self._index = RuleIndex(())
        self._rules_in_memory = False
        # An estimate of all that waits, and the time (seconds since 1970) for which it was counted.
        self._counted = Cache()
        self._total = self._counted_for = 0
        # The time for which the estimate was found to count in this transaction.
        self._estimated_for = -1
        # What this transaction let in, which is in none of its counts.
        self._newcomers = Newcomers(Rooms())
        # What was looked up ahead in this transaction, each to be taken once.
        self._rows: dict[Asked, Found] = {}
        self._identities: dict[Asked, Found] = {}
        # The envelopes that were looked up in it whose sender and recipient have no other triplet.
        self._alone: set[Asked] = set()

    def is_replaced(self) -> bool:
        """Returns true if the file at the path is no longer the one that is open."""
        try:
            found = posix.stat(self._path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (self._file.st_dev, self._file.st_ino)

    # --- transactions -----------------------------------------------------------------------------

    def begin_reading(self) -> None:
        """Begins a transaction of lookups, which all see the same state, unless one is open."""
        if self._connection.in_transaction:
            return
        self._run("BEGIN")
        self._forget_ahead()
        try:
            # It changes with every commit of another connection, and with none of this one.
            self._version = self._run("PRAGMA data_version").fetchone()[0]
            rules = self._rules_read
            self._rules_in_memory = self._version == rules.version
            if not self._rules_in_memory and rules.age(monotonic()) > max(
                REREAD, TIMES * rules.took
            ):
                self._read_rules()
        except StoreError:
            self.roll_back()
            raise

    def begin_writing(self) -> bool:
        """Begins a transaction of changes, or goes on with that of lookups if nothing has changed.

        Returns false if another process has the lock.
        """
        # What is decided again looks into the tables: rows and rules may have changed.
        self._rules_in_memory = False
        self._forget_ahead(is_writing=True)
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
            # Another process has written since the lookups, perhaps a newer ``db upgrade``.
            self._require_revision()
        except StoreError:
            self.roll_back()
            raise
        return True

    @property
    def is_in_batch(self) -> bool:
        """True while a transaction is open. SQLite ends one by itself, as on a full disk."""
        return self._connection.in_transaction

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Undoes what is written inside if that fails, and nothing else of the transaction."""
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
        """Ends the transaction. Raises StoreError if its changes could not be written: none was."""
        self._run("COMMIT")

    def roll_back(self) -> None:
        """Ends the transaction without its changes."""
        with suppress(sqlite3.Error):  # it has ended, then
            self._connection.rollback()

    # --- one check --------------------------------------------------------------------------------

    def lookup(self, asked: Asked, now: int) -> Rows:
        """Returns the rows of the triplet and the client, and the rules that match."""
        if not self._rules_in_memory:
            return super().lookup(asked, now)
        found = self._rows.pop(asked, None)
        if found is None:
            try:
                (found,) = self._rows_of([asked])
            except sqlite3.Error as error:
                raise self._explained(error) from None
        if found[OTHERS] == 0:
            self._alone.add(asked)
        triplet = None if found[1] is None else ReadRow(found[EXPIRES], *found[1:CLIENT])
        client = None if found[CLIENT] is None else ClientRow(*found[CLIENT:EXPIRES])
        return Rows(triplet, client, *self._index.find(asked, now))

    def _is_alone(self, asked: Asked) -> bool:
        return asked in self._alone

    def identity(self, asked: Asked, now: int, settings: Settings) -> Identity:
        """Returns what is known of the client and of its sender's domain."""
        found = self._identities.pop(asked, None)
        return (
            super().identity(asked, now, settings)
            if found is None
            else identity(found[1:], asked, now)
        )

    def look_ahead(self, asked: Sequence[Asked]) -> None:
        """Looks up the rows of all that is ASKED, for ``lookup``.

        If that fails, ``lookup`` looks for each by itself, so that a fault is that one's alone.
        """
        if len(asked) < 2 or not self._rules_in_memory:
            return
        for start in range(0, len(asked), TOGETHER):
            part = asked[start : start + TOGETHER]
            with suppress(sqlite3.Error):
                self._rows.update(_matched(part, self._rows_of(part), [each.key for each in part]))

    def look_ahead_for_identities(self, asked: Sequence[tuple[Asked, Settings]]) -> None:
        """Looks up what is known of the clients and domains of all that is ASKED, for ``identity``.

        It may fail as ``look_ahead`` may.
        """
        wanted = [each for each in asked if wants_identity(each[1])]
        if len(wanted) < 2:
            return
        for start in range(0, len(wanted), TOGETHER):
            part = wanted[start : start + TOGETHER]
            values = [_identity_values(each, settings) for each, settings in part]
            with suppress(sqlite3.Error):
                found = self._connection.execute(
                    IDENTITIES[len(part)], list(chain.from_iterable(values))
                ).fetchall()
                self._identities.update(
                    _matched([each for each, _ in part], found, [row[1] for row in values])
                )

    def _rows_of(self, asked: Sequence[Asked]) -> list[Found]:
        """Returns the rows of all that is ASKED. Raises sqlite3.Error."""
        values = [value for each in asked for value in (each.key, each.triplet.client)]
        return self._connection.execute(ROWS[len(asked)], values).fetchall()

    def _forget_ahead(self, is_writing: bool = False) -> None:
        """Forgets what counts for one transaction; the next one IS_WRITING, or looks up."""
        self._newcomers.begin(are_written=is_writing)
        self._rows.clear()
        self._identities.clear()
        self._alone.clear()
        self._estimated_for = -1

    def waiting(self, asked: Asked, since: int, now: int, settings: Settings) -> Pending:
        """Returns what waits besides, with what this transaction has let in."""
        if asked in self._alone:  # most mail
            crowd, most = settings.network_limit, settings.pending_limit
            found = Pending(
                crowd=self._crowd(asked, crowd, now) if crowd else 0,
                total=self._estimate(most, now) if most else 0,
                identity=self.identity(asked, now, settings),
            )
        else:
            found = super().waiting(asked, since, now, settings)
        found.total += self._newcomers.besides(asked)
        return found

    def announce(self, asked: Asked, changes: Sequence[Change]) -> None:
        """CHANGES of what is ASKED are to be written: what waits is counted with them."""
        self._newcomers.add(asked, changes)

    def _crowd(self, asked: Asked, limit: int, now: int) -> int:
        return self._newcomers.crowd(asked, limit, super()._crowd, asked, limit, now)

    def _estimate(self, limit: int, now: int) -> int:
        """Returns about how many triplets wait: as counted a moment ago, and changed here since."""
        if now == self._estimated_for:
            return self._total
        began, counted = monotonic(), self._counted
        lifetime = ESTIMATE
        if counted.version != self._version:
            lifetime = min(ESTIMATE, TIMES * counted.took)
        # Waiting ends by the wall clock, which can be set.
        if counted.age(began) > lifetime or now != self._counted_for:
            self._total = super()._estimate(limit, now)
            self._counted_for = now
            counted.was_read(self._version, began)
        self._estimated_for = now
        return self._total

    def lock(self, _asked: Asked) -> None:
        """Does nothing: a transaction of changes has the lock."""

    def save(self, asked: Asked, changes: list[Change], patient: bool) -> bool:  # noqa: ARG002
        """Writes all CHANGES of one check and returns true, or writes none and returns false."""
        if len(changes) == 1:
            return self._write(asked, changes[0])
        self._run("SAVEPOINT one")
        done = all(self._write(asked, change) for change in changes)
        if not done:
            self._run("ROLLBACK TO one")
        self._run("RELEASE one")
        return done

    def save_together(self, changes: Sequence[tuple[Asked, Change]]) -> None:
        """Writes one change of a triplet's row for each that was asked.

        Raises Again if one of the rows is not what was read: the transaction is to be undone then.
        """
        kinds: dict[str, list[tuple[object, ...]]] = {
            "INSERT_TRIPLET": [],
            "SWAP_TRIPLET": [],
            "COUNT_EARLY": [],
        }
        waiting = 0
        for asked, change in changes:
            kind, values = triplet_values(asked, change)
            kinds[kind].append(values)
            waiting += begins_to_wait(change)
        for kind, rows in kinds.items():
            if not rows:
                continue
            try:
                done = self._connection.executemany(getattr(compiled, kind)[0], rows).rowcount
            except (sqlite3.Error, OverflowError) as error:
                raise self._explained(error) from None
            if done != len(rows):
                raise Again(f"{self._path}: another process was quicker")
        self._total += waiting

    def _write(self, asked: Asked, change: Change) -> bool:
        kind = statement(change)
        if kind == "DELETE_RULE":
            self._rules_read.version = Cache.NOT_READ
        sql, names = getattr(compiled, kind)
        values = parameters(asked, change)
        done = is_done(kind, self._run(sql, [values[name] for name in names]).rowcount)
        if done:
            self._total += begins_to_wait(change)
        return done

    def _require_revision(self) -> None:
        revision = self._run(compiled.SCHEMA[0]).fetchone()
        check_revision(revision[0] if revision else None, compiled.REVISION)

    def _read_rules(self) -> None:
        """Reads all rules into memory. Raises StoreError; rules that cannot be read stay there."""
        began, version = monotonic(), self._version
        self._require_revision()  # as each lookup does that does not find its rules in memory
        try:
            rows = self._connection.execute(compiled.ALL_RULES[0]).fetchall()
            if rows != self._rule_rows:
                self._index, self._rule_rows = RuleIndex(rows), rows
            self._rules_in_memory = True
        except Exception:
            # One rule that cannot be read must not hide all others: lookups ask the table.
            version = Cache.NOT_READ
        self._rules_read.was_read(version, began)


def triplet_values(asked: Asked, change: Change) -> tuple[str, tuple[object, ...]]:
    """Returns the name of the statement that makes CHANGE, of a triplet's row, and its values.

    These are ``parameters`` in their order, without their names.
    """
    old, new = change.old, change.new
    assert isinstance(new, TripletRow)
    if not isinstance(old, TripletRow):
        sender, recipient = asked.shown
        return "INSERT_TRIPLET", (
            asked.key,
            asked.triplet.network,
            sender,
            recipient,
            new.first,
            new.last,
            new.early,
            new.passes,
            new.passed,
            change.expires,
            asked.origin,
            asked.authorised,
        )
    was = (asked.key, old.first, old.last, old.early, old.passes)
    if (
        isinstance(old, ReadRow)
        and new.first == old.first
        and new.passes == old.passes
        and new.passed == old.passed
        and change.expires == old.expires
    ):
        return "COUNT_EARLY", (new.last, new.early, *was, old.expires)
    return "SWAP_TRIPLET", (
        new.first,
        new.last,
        new.early,
        new.passes,
        new.passed,
        change.expires,
        *was,
    )


def _identity_values(asked: Asked, settings: Settings) -> tuple[object, ...]:
    """Returns the row of IDENTITIES for what is ASKED."""
    origin = origin_of(asked)
    key = None
    if settings.learn_outbound:
        key = correspondent_key(asked.triplet.sender, asked.triplet.recipient)
    return origin[:DIGEST], origin, PROVIDERS + origin[DIGEST:], PROVIDERS, key


def _matched(
    asked: Sequence[Asked], found: list[Found], keys: Sequence[object]
) -> Iterable[tuple[Asked, Found]]:
    """Returns each of ASKED with its row of FOUND, which begins with its key of KEYS.

    Rows come in the order in which they were asked for. SQL does not promise that: where they do
    not, none is returned.
    """
    return zip(asked, found, strict=True) if [row[0] for row in found] == keys else ()


def write_back(path: str) -> None:
    """Writes the write-ahead log of the file PATH back into it. For a thread of its own.

    The log keeps its size: overwriting it costs less than making it grow again. To restart it,
    writers must be blocked, for twice as long as the disk takes to confirm a write. So that is done
    only where writers never pause by themselves.
    """
    try:
        connection = sqlite3.connect(
            sqlite.uri(path), uri=True, isolation_level=None, timeout=BEGINNING
        )
    except sqlite3.Error:
        return
    try:
        # Others read and write meanwhile. If none wrote, the next writer restarts the log.
        _busy, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages <= LONGEST:
            return
        # Less was written meanwhile each time; writers are blocked for the last of it only.
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
