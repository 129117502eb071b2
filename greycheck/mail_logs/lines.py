"""A line of a log without what loggers put before it: its time, whose line it is, and what it says.

Known are TAI64N of multilog, and its local form; syslog as of RFC 3164, whose lines have no year,
and as rsyslog and journald write it (``short``, ``short-precise``, ``short-iso`` of journalctl);
Exim's own; and a line without any of these. Times without a zone are local.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from time import localtime, mktime
from typing import BinaryIO

# The longest line that is read, in bytes.
LINE = 16384

# How far in the future a time may be, in seconds: clocks differ.
AHEAD = 86400

# The label of 1970 in TAI64 as multilog has it (ten leap seconds, and none since).
_TAI = (1 << 62) + 10

_TAI64N = re.compile(rb"@([0-9a-f]{16})[0-9a-f]{8} ")
_ISO = re.compile(
    rb"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,]\d{1,9})?"
    rb"(?: ?(Z|[+-]\d\d:?\d\d))? "
)
_SYSLOG = re.compile(
    rb"(?:<\d{1,3}>)?([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d)(?:\.\d{1,9})? "
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1
    )
}

# Who says it, by syslog: a host, a program, and its number.
_PROGRAM = re.compile(rb"[^\s:]+ ([^\s:\[]{1,64})(?:\[\d{1,10}\])?: ")


class Line:
    """What a line SAYS; WHEN, in seconds since 1970; and PROGRAM.

    When is None where it has no time, or one before 1970 or more than AHEAD in the future. The
    program is empty where no syslog names it.
    """

    __slots__ = ("program", "says", "when")

    def __init__(self, says: bytes, when: int | None = None, program: bytes = b"") -> None:
        self.says = says
        self.when = when
        self.program = program


def read(text: bytes, now: int) -> Line:
    """Returns the line TEXT, which has no end, as it is read at NOW (seconds since 1970)."""
    when: int | None
    if found := _TAI64N.match(text):
        when = int(found[1], 16) - _TAI
        return Line(text[found.end() :], when if 0 <= when <= now + AHEAD else None)
    is_bsd = False
    if found := _ISO.match(text):
        when = _iso(*found.groups())
    elif found := _SYSLOG.match(text):
        when, is_bsd = _without_year(now, *found.groups()), True
    else:
        return Line(text)
    if when is not None and not 0 <= when <= now + AHEAD:
        when = None
    rest = text[found.end() :]
    if (is_bsd or text[10:11] == b"T") and (program := _PROGRAM.match(rest)):
        return Line(rest[program.end() :], when, program[1])
    return Line(rest, when)


def bounded(source: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of SOURCE without their ends; of one that is longer than LINE, nothing."""
    read, longest = source.readline, LINE
    while text := read(longest):
        if text.endswith(b"\n"):  # most lines
            yield text.rstrip(b"\r\n")
            continue
        is_whole = len(text) < longest
        while not text.endswith(b"\n") and (rest := read(longest)):
            text = rest
        yield text.rstrip(b"\r\n") if is_whole else b""


def _iso(*parts: bytes | None) -> int | None:
    *minute, second, zone = parts
    begun = _minute(*minute, zone)
    return None if begun is None or int(second or 0) > 60 else begun + int(second or 0)


# Lines come close together: most share their minute with the one before. A time that is wrong is
# remembered as None.
@lru_cache(64)
def _minute(*parts: bytes | None) -> int | None:
    year, month, day, hour, minute = (int(part or 0) for part in parts[:5])
    zone = parts[5]
    try:
        if zone is None:
            return int(mktime((year, month, day, hour, minute, 0, 0, 0, -1)))
        return int(datetime(year, month, day, hour, minute, tzinfo=_zone(zone)).timestamp())
    except (ValueError, OverflowError):
        return None


def _zone(text: bytes) -> timezone:
    """The zone that TEXT names. Raises ValueError."""
    if text == b"Z":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return timezone(timedelta(minutes=-minutes if text[:1] == b"-" else minutes))


def _without_year(now: int, *parts: bytes) -> int | None:
    """The last time that these say, as of NOW."""
    begun = _last_minute(now, *parts[:4])
    return None if begun is None or int(parts[4]) > 60 else begun + int(parts[4])


@lru_cache(64)
def _last_minute(now: int, name: bytes, day: bytes, hour: bytes, minute: bytes) -> int | None:
    month = _MONTHS.get(name)
    if month is None:
        return None
    year = localtime(now).tm_year
    try:
        for each in (year + 1, year, year - 1):
            when = int(mktime((each, month, int(day), int(hour), int(minute), 0, 0, 0, -1)))
            if when <= now + AHEAD:
                return when
    except (ValueError, OverflowError):
        pass
    return None
