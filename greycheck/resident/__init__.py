"""The resident: the child's decision behind a socket, with the store kept open.

``greycheck serve``, for many clients at once, in one thread that never waits for a client, the log
or a lock (docs/architecture.rst says what other threads own):

    server        the loop, signals, reload
    connections   clients; ``listeners``: the sockets they come by, made in ``sockets``;
                  ``peers``: one connection; ``events``: epoll; ``watchdog``: a turn that hangs
    questions     a request, read, and its answer, written; ``forms`` reads it quickly;
                  ``messages``: which recipients are one message's; ``answers`` sends and logs it
    backend       the store in use: ``file_store`` for an SQLite file, by ``batch_store``;
                  ``pool`` for a server database
    journal       the log

``spawned`` is ``greycheck policy``: one client on descriptors 0 and 1, the same requests and
answers; ``kept_store`` is its store, ``system_log`` its log. ``program`` tells which program runs.
"""
