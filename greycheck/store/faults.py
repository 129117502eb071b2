"""What SQLAlchemy's errors mean, and what is done again because somebody else was quicker.

On Galera a transaction learns only at COMMIT that another node has changed the same rows. Elsewhere two transactions may wait for each
other, and the database ends one of them. Either way nothing was written, and it can begin again.
"""

import re
from collections.abc import Callable
from random import uniform
from time import sleep
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from greycheck.store import server
from greycheck.store.lean import StoreError

T = TypeVar("T")

# What libpq says before the cause: the host, which is named anyway.
BEFORE = re.compile(r"connection to server (?:at|on) .{1,200}? failed: ")

# How often a transaction is tried, and how long to rest before it begins again, in seconds at most.
TRIES = 5
PAUSE = 0.1


def of(error: DBAPIError) -> StoreError:
    """ERROR as the forked child has it: one line, and of a server its kind."""
    said = error.orig
    arguments = getattr(said, "args", ())
    if arguments and isinstance(arguments[0], int):
        return server.mysql_fault(arguments[0], str(arguments[-1]))
    # What psycopg2 and psycopg call an SQLSTATE.
    for name in ("pgcode", "sqlstate"):
        if hasattr(said, name):
            return server.postgresql_fault(getattr(said, name), cause(str(said)))
    return StoreError(server.one_line(cause(str(said))))


def cause(said: str) -> str:
    """What is SAID by libpq without the hosts, each cause once: it may have tried a host with TLS and without."""
    parts = (part.strip() for part in BEFORE.split(said))
    return " ".join(dict.fromkeys(part for part in parts if part))


def is_conflict(error: DBAPIError) -> bool:
    """Whether the transaction lost a race, so that it may win at the next try."""
    fault = of(error)
    return isinstance(fault, server.Fault) and fault.kind == server.CONFLICT


def again(attempt: Callable[[], T], rest: Callable[[float], None] = sleep) -> T:
    """What ATTEMPT, a whole transaction, returns; begun again where it loses a race or inserts what another has just inserted.

    Between two tries it rests for a random time (calling REST with seconds), so that the same two do not meet again.
    """
    for _try in range(TRIES - 1):
        try:
            return attempt()
        except DBAPIError as error:
            if not isinstance(error, IntegrityError) and not is_conflict(error):
                raise
        rest(uniform(0, PAUSE))
    return attempt()
