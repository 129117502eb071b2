"""The resident's log on descriptor 2. Lines are kept until it takes them, so nothing waits for it.

Where it takes nothing, lines beyond ``KEPT`` bytes are lost; where it fails, all are. The first
line that it takes again says how many.
"""

import os
import select
from time import monotonic

from greycheck import log

# How many bytes are kept for a log that takes nothing.
KEPT = 1 << 20

# How many bytes are written at once: a pipe that is ready takes so many (POSIX, PIPE_BUF).
ATOMIC = 4096

# How many warnings are written in one second.
WARNINGS = 10


class Journal:
    """The log on DESCRIPTOR."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lines: list[bytes] = []
        self._size = 0
        self._lost = 0
        # All lines that were ever lost.
        self.lost = 0
        self._second = 0
        self._warned = 0

    def add(self, lines: bytes) -> None:
        """Adds LINES to those that are to be written."""
        if self._size + len(lines) > KEPT:
            self._count_lost(lines.count(b"\n"))
            return
        self._lines.append(lines)
        self._size += len(lines)

    def warn(self, text: str) -> None:
        """Adds TEXT as a warning, unless there were WARNINGS in this second: then it is counted."""
        second = int(monotonic())
        if second != self._second:
            if self._warned > WARNINGS:
                self.add(log.line(f"warning {self._warned - WARNINGS} more like these"))
            self._second, self._warned = second, 0
        self._warned += 1
        if self._warned <= WARNINGS:
            self.add(log.line(f"warning {text}"))

    @property
    def has_lines(self) -> bool:
        """True if there are lines that the log has not taken."""
        return self._size > 0

    def flush(self, seconds: float = 0) -> None:
        """Writes as much as the log takes within SECONDS."""
        end = monotonic() + seconds
        while self._lines and self._poll.poll(max(0, end - monotonic()) * 1000):
            said = (
                log.line(f"warning the log took nothing: {self._lost} lines lost")
                if self._lost
                else b""
            )
            chunk = self._chunk(ATOMIC - len(said))
            try:
                written = os.write(self._descriptor, said + chunk)
            except BlockingIOError:
                self._keep(chunk)
                return
            except OSError:
                self._keep(chunk)
                self._lose()
                return
            self._lost = 0
            if written < len(said) + len(chunk):
                self._keep((said + chunk)[written:])

    def _chunk(self, most: int) -> bytes:
        """Takes the first lines, as many as fit into MOST bytes; one line at least."""
        together = b"".join(self._lines)
        end = len(together)
        if end > most:
            end = together.rfind(b"\n", 0, most) + 1 or most
        chunk, rest = together[:end], together[end:]
        self._lines = [rest] if rest else []
        self._size = len(rest)
        return chunk

    def _keep(self, chunk: bytes) -> None:
        self._lines.insert(0, chunk)
        self._size += len(chunk)

    def _lose(self) -> None:
        """Drops all lines: the log cannot be written."""
        self._count_lost(sum(lines.count(b"\n") for lines in self._lines))
        self._lines.clear()
        self._size = 0

    def _count_lost(self, number: int) -> None:
        self._lost += number
        self.lost += number
