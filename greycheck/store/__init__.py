"""The store of triplets and clients.

``tables`` and ``statements`` say in SQLAlchemy Core what there is and what is asked; ``compiled_*`` is the same ahead of time, for the
forked child, who reaches it through ``connect`` and ``lean_*``. Everybody else uses ``engine``. ``server`` reads the URL of a server
database for both, and ``drivers`` knows what its drivers want to be told.
"""

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.settings import Settings
    from greycheck.store.lean import Connected


def connect(settings: "Settings", patience: float) -> "Connected":
    """A connection to the database of SETTINGS, which waits PATIENCE seconds at most for another's lock, or for a server in all.

    A process of root's becomes the owner of that store for good.
    """
    if posix.geteuid() == 0:
        from greycheck.store import rights

        rights.become_owner(settings, marks=True)
    scheme, _sep, path = settings.database.partition("://")
    if scheme == "sqlite":
        from greycheck.store import lean_sqlite

        return lean_sqlite.Store(path[1:], patience)
    if not scheme:
        from greycheck.store.lean import StoreError

        raise StoreError("there is no store: see the warning before")
    from greycheck.store import lean_server

    return lean_server.Store(settings, patience)
