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

from sqlalchemy import Connection, Row, create_engine

from greycheck import settings
from greycheck.envelope import Triplet, triplet
from greycheck.hooks import smtpextfork
from greycheck.policy import Change, ClientRow, TripletRow, decide
from greycheck.store import statements
from greycheck.store.lean import triplet_key

STATEMENTS = statements.for_dialect("sqlite")


def main() -> NoReturn:
    """Checks the envelope of this process, and exits."""
    environ = dict(os.environb)
    found = settings.read(environ)
    asked = triplet(smtpextfork.envelope([], environ), found.ipv4_prefix, found.ipv6_prefix)
    key = triplet_key(asked)
    with create_engine(found.database).connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        rows = connection.execute(STATEMENTS["LOOKUP"], {"triplet_key": key, "address": asked.client}).one()
        verdict, changes = decide(triplet_row(rows), client_row(rows), found, int(time()))
        for change in changes:
            write(connection, asked, key, change)
        connection.commit()
        os._exit(smtpextfork.ANSWERS[verdict.action])


def triplet_row(found: Row[tuple[object, ...]]) -> TripletRow | None:
    """The triplet's part of a look-up."""
    columns = found._mapping
    if columns["first_attempt"] is None:
        return None
    names = ("first_attempt", "last_attempt", "early_attempts", "passes", "passed_at")
    return TripletRow(*(columns[name] for name in names))


def client_row(found: Row[tuple[object, ...]]) -> ClientRow | None:
    """The client's part of a look-up."""
    columns = found._mapping
    if columns["first_seen"] is None:
        return None
    return ClientRow(columns["first_seen"], columns["last_seen"], columns["client_passes"])


def write(connection: Connection, asked: Triplet, key: bytes, change: Change) -> None:
    """Writes CHANGE of a triplet. Clients have none here: no triplet passes for the first time."""
    old, new = change.old, change.new
    assert isinstance(new, TripletRow)
    values: dict[str, object] = {
        "first_attempt": new.first,
        "last_attempt": new.last,
        "early_attempts": new.early,
        "passes": new.passes,
        "passed_at": new.passed,
        "expires_at": change.expires,
    }
    if isinstance(old, TripletRow):
        name = "SWAP_TRIPLET"
        values |= {"key_triplet_key": key, "was_first_attempt": old.first, "was_last_attempt": old.last}
        values |= {"was_early_attempts": old.early, "was_passes": old.passes}
    else:
        name = "INSERT_TRIPLET"
        values |= {"triplet_key": key, "network": asked.network}
        values |= {"sender": asked.sender.decode(), "recipient": asked.recipient.decode()}
    if connection.execute(STATEMENTS[name], values).rowcount != 1:
        raise RuntimeError(f"{name}: the row is no longer what was read")


main()
