"""The store of triplets, clients and rules.

What a check loads is in this folder: ``connect`` opens the kind of database that the settings name
(``sqlite`` or ``server``), with statements that were compiled ahead of time (``compiled_*``). The
schema they are compiled from, and its migrations, are in ``schema``; the SQL of operators' commands
is in ``admin``. Only these two use SQLAlchemy.
"""

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.settings import Settings
    from greycheck.store.base import Connection


def connect(settings: "Settings", patience: float) -> "Connection":
    """Returns a connection to the database of SETTINGS.

    It waits PATIENCE seconds at most for a lock, or for a server in all. A process of root's
    becomes the owner of that store for good. Raises StoreError.
    """
    if posix.geteuid() == 0:
        from greycheck.store import rights

        rights.become_owner(settings, marks=True)
    database = settings.database
    if database.path:
        from greycheck.store import sqlite

        return sqlite.Store(database.path, patience)
    if database.server is None:
        from greycheck.store.base import StoreError

        raise StoreError("there is no store: see the warning before")
    from greycheck.store import server

    return server.Store(settings, patience)
