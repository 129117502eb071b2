"""The store that the resident decides from: opened at the start, replaced when settings change."""

import select
from collections.abc import Callable

from greycheck.resident.events import IN, Events
from greycheck.resident.file_store import Answer, FileStore
from greycheck.resident.messages import Messages
from greycheck.resident.pool import Pool
from greycheck.settings import Settings
from greycheck.store.base import StoreError


class Backend:
    """``store`` is the one in use: a FileStore for an SQLite file, a Pool for a server database.

    MAKE_STORE creates tables where there are none, and raises StoreError where the store cannot be
    used. ANSWER takes verdicts, WARN warnings. A Pool wakes the loop by a descriptor in EVENTS.
    """

    def __init__(
        self,
        settings: Settings,
        make_store: Callable[[Settings], None],
        answer: Answer,
        messages: Messages,
        warn: Callable[[str], None],
        events: Events,
    ) -> None:
        self._make_store = make_store
        self._answer = answer
        self._messages = messages
        self._warn = warn
        self._events = events
        self.store = self.open(settings)
        self._watch()

    def open(self, settings: Settings) -> FileStore | Pool:
        """Returns the store of SETTINGS, opened. Raises StoreError."""
        if not settings.has_store:
            raise StoreError("there is no store: see the warning before")
        self._make_store(settings)
        if settings.database.path:
            return FileStore(settings, self._answer, self._messages, self._warn)
        return Pool(settings, self._answer, self._messages)

    def replace(self, store: FileStore | Pool, new_turn: Callable[[], None]) -> None:
        """Uses STORE from now on, after all requests to the old one are answered.

        NEW_TURN is called again and again while that takes time.
        """
        while self.store.pending:
            new_turn()
            select.select([], [], [], self.store.pause)
            self.store.tick()
        if isinstance(self.store, Pool):
            self._events.unregister(self.store.descriptor)
        self.store.close()
        self.store = store
        self._watch()

    def _watch(self) -> None:
        """Lets the store wake the loop."""
        if isinstance(self.store, Pool):
            self._events.register(self.store.descriptor, IN)
