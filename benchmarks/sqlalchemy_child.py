"""The same check through SQLAlchemy Core: what a forked child costs that imports it. For ``benchmarks.throughput`` only.

It takes SMTPEXTFORK's environment, reads and writes with the statements of ``greycheck.store.statements``, decides with the same policy
and ends without closing its connection, as the launcher does. It logs nothing and has no deadline, both to its advantage.
"""

import os
import sys
from pathlib import Path
from time import time
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent))

from sqlalchemy import create_engine

from greycheck import settings
from greycheck.envelope import triplet
from greycheck.hooks import smtpextfork
from greycheck.policy import Found, decide
from greycheck.store import compiled_sqlite, lean, statements

STATEMENTS = statements.for_dialect("sqlite")


def main() -> NoReturn:
    """Checks the envelope of this process, and exits."""
    environ = dict(os.environb)
    found = settings.read(environ)
    envelope = smtpextfork.envelope([], environ)
    asked = lean.Asked(envelope, triplet(envelope, found.ipv4_prefix, found.ipv6_prefix))
    with create_engine(found.database).connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        keys = {"triplet_key": asked.key, "address": asked.triplet.client}
        row = connection.execute(STATEMENTS["LOOKUP"], keys).one()
        verdict, changes = decide(Found(*lean.rows(tuple(row), compiled_sqlite.REVISION)), found, int(time()))
        for change in changes:
            name = lean.statement(change)
            if connection.execute(STATEMENTS[name], lean.parameters(asked, change)).rowcount != 1:
                raise RuntimeError(f"{name}: the row is no longer what was read")
        connection.commit()
        os._exit(smtpextfork.ANSWERS[verdict.action])


main()
