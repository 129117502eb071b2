"""The resident: the child's decision behind a socket, with the store kept open.

``questions`` reads requests, ``peers`` holds connections, ``sockets`` makes what listens; ``file_store`` and ``pool`` decide, for an SQLite
file and for a server database; ``journal`` is the log; ``server`` brings them together. All but the pool's workers and the writing back of
SQLite's log is one thread that never waits for a peer, the log or a lock.
``spawned`` is ``greycheck policy``: one peer on descriptors 0 and 1, asked and answered alike.
"""
