"""Reads SQLAlchemy's errors, and runs a transaction again that lost a race.

On Galera a transaction learns only at COMMIT that another node has changed the same rows. On other
databases two transactions may wait for each other, and the database ends one of them. In both cases
nothing was written, and the transaction can be run again.
"""

import re
from collections.abc import Callable
from random import uniform
from time import sleep
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from greycheck.store.base import StoreError
from greycheck.store.drivers import faults

T = TypeVar("T")

# libpq's text before the cause: it names the host, which messages name anyway.
BEFORE = re.compile(r"connection to server (?:at|on) .{1,200}? failed: ")

# How often a transaction is tried, and the longest pause before it is tried again, in seconds, for
# each race that it has lost.
TRIES = 12
PAUSE = 0.1


def of(error: DBAPIError) -> StoreError:
    """Returns ERROR as the forked child has it: one line, and for a server its kind."""
    said = error.orig
    arguments = getattr(said, "args", ())
    if arguments and isinstance(arguments[0], int):
        return faults.mysql_fault(arguments[0], str(arguments[-1]))
    # The names that psycopg2 and psycopg have for SQLSTATE.
    for name in ("pgcode", "sqlstate"):
        if hasattr(said, name):
            return faults.postgresql_fault(getattr(said, name), cause(str(said)))
    return StoreError(faults.one_line(cause(str(said))))


def cause(said: str) -> str:
    """Returns libpq's message without the hosts, each cause once.

    libpq may have tried a host with TLS and without.
    """
    parts = (part.strip() for part in BEFORE.split(said))
    return " ".join(dict.fromkeys(part for part in parts if part))


def is_conflict(error: DBAPIError) -> bool:
    """True if the transaction lost a race, so that it may succeed at the next try."""
    fault = of(error)
    return isinstance(fault, faults.Fault) and fault.kind == faults.CONFLICT


def retry_on_conflict(attempt: Callable[[], T], rest: Callable[[float], None] = sleep) -> T:
    """Runs ATTEMPT, a whole transaction, and returns its result.

    Runs it again if it loses a race, or inserts a row that was inserted meanwhile. Between two
    tries it pauses for a random time (REST is called with seconds), the longer the more it has
    lost, so that the same do not collide again.
    """
    for lost in range(1, TRIES):
        try:
            return attempt()
        except DBAPIError as error:
            if not isinstance(error, IntegrityError) and not is_conflict(error):
                raise
        rest(uniform(0, PAUSE * lost))
    return attempt()
