"""What the errors of a server database mean, in one set of words for all drivers.

Interface: drivers raise a ``Fault``, whose ``kind`` says what to do about it; where there is no
driver, ``drivers.load`` raises ``NoDriver``.
"""

from greycheck.store.base import StoreError
from greycheck.store.causes import NO_SCHEMA

GONE = "gone"  # no connection, or one that is lost
# There is a connection, and the server answers nothing: it starts, stops, or has no quorum.
UNUSABLE = "unusable"
SILENT = "silent"  # it did not answer in time
BUSY = "busy"  # all its connections are taken
READ_ONLY = "read-only"
LOCKED = "locked"  # somebody else's lock was waited for in vain
CONFLICT = (
    "conflict"  # a deadlock, or a change that another host was quicker to make: to be decided again
)
SCHEMA = "schema"  # there is no such table or column: its revision says whose schema it is
OURS = "ours"  # this process is short of memory: then drivers say that there is no connection
OTHER = "other"

MYSQL_KINDS = {
    **dict.fromkeys(
        (1152, 1158, 1159, 1160, 1161, 1180, 1927, 2002, 2003, 2006, 2013, 2055, 4031), GONE
    ),
    **dict.fromkeys((1047, 1053, 1077, 1079), UNUSABLE),
    **dict.fromkeys((1040, 1203, 1226), BUSY),
    **dict.fromkeys((1290, 1792, 1836), READ_ONLY),
    **dict.fromkeys((1205, 1317, 1969, 3024, 3572), LOCKED),
    **dict.fromkeys((1213, 1020), CONFLICT),
    1054: SCHEMA,
}

POSTGRESQL_KINDS = {
    **dict.fromkeys(("57P01", "57P02", "57P05"), GONE),
    "57P03": UNUSABLE,
    "53300": BUSY,
    "25006": READ_ONLY,
    **dict.fromkeys(("55P03", "57014"), LOCKED),
    **dict.fromkeys(("40001", "40P01"), CONFLICT),
    "42703": SCHEMA,
}

MISSING = (1146, "42P01")

# How PostgreSQL says "53300" to a connection that it does not take, and the kernel to one too many
# on a socket: libpq hands on the words.
TOO_MANY = ("too many ", "remaining connection slots", "Resource temporarily unavailable")

# Error numbers of MySQL's dialect from here on are its client's own.
CLIENT_ERRORS = range(2000, 3000)


class Fault(StoreError):
    """What a server or a driver said. ``kind`` is one of the words above."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class NoDriver(StoreError):
    """No driver is installed, for the CAUSE. WANTED is the name of the one to install.

    A command knows better than a check where to install it.
    """

    def __init__(self, cause: str, wanted: str) -> None:
        super().__init__(f"{cause}: run greycheck doctor, which says what installs one")
        self.cause = cause
        self.wanted = wanted


def mysql_driver_fault(error: Exception, seconds: float, limit: float) -> Fault:
    """Returns the fault of a driver's ERROR after SECONDS, of a LIMIT.

    To the driver, a limit that is over looks like a lost connection.
    """
    arguments = error.args or (None, error)
    fault = mysql_fault(arguments[0], str(arguments[-1]))
    return silent(seconds) if fault.kind == GONE and seconds >= 0.9 * limit else fault


def mysql_fault(code: object, message: str) -> Fault:
    """Returns the fault of an error CODE of MySQL's dialect.

    That is an int, or whatever a driver gives instead.
    """
    if code in MISSING:
        return Fault(SCHEMA, NO_SCHEMA)
    kind = MYSQL_KINDS.get(code, OTHER) if isinstance(code, int) else OTHER
    if code in CLIENT_ERRORS and _is_short_of_memory(message):
        kind = OURS
    elif code in CLIENT_ERRORS and "Errno 11]" in message:
        kind = BUSY
    return Fault(kind, one_line(message) + (f" ({code})" if isinstance(code, int) else ""))


def postgresql_fault(code: str | None, message: str) -> Fault:
    """Returns the fault of an SQLSTATE of PostgreSQL; it is None if there is no connection."""
    if code in MISSING:
        return Fault(SCHEMA, NO_SCHEMA)
    if code is None:
        kind = BUSY if any(words in message for words in TOO_MANY) else GONE
        # Where libpq has tried with TLS and without, the second line says the same.
        said = one_line(message.partition("\nconnection to server ")[0])
        return Fault(
            OURS if _is_short_of_memory(message) and "FATAL" not in message else kind, said
        )
    kind = GONE if code.startswith("08") else POSTGRESQL_KINDS.get(code, OTHER)
    return Fault(kind, f"{one_line(message)} ({code})")


def _is_short_of_memory(message: str) -> bool:
    return "memory" in message.lower() or "malloc" in message


def silent(seconds: float) -> Fault:
    """The fault of a server that was waited for so many SECONDS."""
    return Fault(SILENT, f"no answer for {seconds:.1f}s")


def one_line(message: str) -> str:
    """The lines of a MESSAGE as one."""
    return " ".join(message.split())
