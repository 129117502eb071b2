"""The store of a process that answers one request after the other, with one open connection."""

import posix

from greycheck.check import check, remember
from greycheck.resident.messages import Messages
from greycheck.resident.questions import Question
from greycheck.store import connect
from greycheck.store.base import STORE_SHARE
from greycheck.store.causes import NoSchema

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from greycheck.policy import Verdict
    from greycheck.settings import Settings
    from greycheck.store.base import Store

    class Kept(Store, Protocol):
        """A store whose connection serves one check after the other."""

        def begin(self, patience: float) -> None:
            """Begins another check, with a time limit of PATIENCE seconds."""

        def close(self) -> None:
            """Closes an SQLite file."""


class KeptStore:
    """The store of SETTINGS, connected to at the first check.

    Where there is no SQLite file it is made then, by the command line OPERATOR.
    """

    def __init__(self, settings: "Settings", operator: tuple[str, ...]) -> None:
        self._settings = settings
        self._operator = operator
        self._store: Kept | None = None
        self._path = settings.database.path
        self._is_file = bool(self._path)
        self._file: tuple[int, int] | None = None

    def check(self, question: Question, messages: Messages) -> "Verdict":
        """Returns the verdict on QUESTION. Raises StoreError."""
        limit = question.settings.deadline * STORE_SHARE
        try:
            return self._checked(self._connected(limit), question, messages)
        except NoSchema:
            from greycheck.store import first_use

            self._drop()
            return self._checked(
                self._take(first_use.make(self._settings, self._operator, limit)),
                question,
                messages,
            )

    def _checked(self, store: "Kept", question: Question, messages: Messages) -> "Verdict":
        try:
            decision = check(store, question.decision, messages.first_passed)
        except BaseException:
            # An open transaction would hold its lock until the next check.
            self._drop()
            raise
        if decision.opens_message and question.hook:
            try:
                remember(store, decision, question.attempt)
            except Exception:
                # Later recipients wait, as those of other hooks do.
                self._drop()
        return decision.verdict()

    def _connected(self, limit: float) -> "Kept":
        """Returns the store for a check of LIMIT seconds; opens it anew if its file is gone."""
        if self._is_file and self._identity() != self._file:
            self._drop()
        if self._store is None:
            return self._take(connect(self._settings, limit))
        self._store.begin(limit)
        return self._store

    def _take(self, store: "Store") -> "Kept":
        taken: Kept = store  # type: ignore[assignment]  # each kind can begin again
        self._store = taken
        self._file = self._identity() if self._is_file else None
        return taken

    def _drop(self) -> None:
        """Closes an SQLite file. A connection to a server is repaired by its store."""
        if self._store is not None and self._is_file:
            self._store.close()
            self._store = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = posix.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def notes(self) -> list[str]:
        """Lines about the store for the log."""
        return list(self._store.notes) if self._store else []

    def tidy(self) -> None:
        """Does what could wait until the answer was sent."""
        if self._store is not None and self._is_file:
            self._store.tidy()

    def overdue(self) -> None:
        """Marks the host that has not answered by the deadline."""
        if self._store is not None:
            self._store.overdue()

    def leave(self) -> None:
        """Closes the connection to a server."""
        if self._store is not None:
            self._store.tidy()
