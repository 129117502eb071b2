"""The same check through SQLAlchemy Core: what a forked child costs that imports it.

For ``benchmarks.throughput`` only.

It takes SMTPEXTFORK's environment, reads and writes with the statements of
``greycheck.store.schema.statements``, decides with the same policy and ends without closing its
connection, as the launcher does. It logs nothing and has no deadline, both to its advantage.
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
from greycheck.policy import Decision, Rows
from greycheck.store import base, writing
from greycheck.store.schema import statements
from greycheck.unknown import Pending

STATEMENTS = statements.for_dialect("sqlite")


def main() -> NoReturn:
    """Checks the envelope of this process, and exits."""
    environ = dict(os.environb)
    found = settings.read(environ)
    envelope = smtpextfork.envelope([], environ)
    asked = base.Asked(envelope, triplet(envelope, found.ipv4_prefix, found.ipv6_prefix))
    with create_engine(found.database.url).connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        keys = {"triplet_key": asked.key, "address": asked.triplet.client}
        row = connection.execute(STATEMENTS["LOOKUP"], keys).one()
        decision = Decision(envelope, found, int(time()))
        decision.advance()
        decision.take_rows(Rows(*base.made(row[1:11])))
        if decision.advance():
            # What else waits is not looked up here, to the advantage of this one.
            decision.take_pending(Pending())
            decision.advance()
        for change in decision.changes:
            name, values = writing.statement(change), writing.parameters(asked, change)
            if connection.execute(STATEMENTS[name], values).rowcount != 1:
                raise RuntimeError(f"{name}: the row is no longer what was read")
        connection.commit()
        os._exit(smtpextfork.ANSWERS[decision.action])


main()
