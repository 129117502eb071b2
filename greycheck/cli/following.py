"""Follows a log as it grows, through rotation: multilog's, logrotate's by rename and by truncation.

A file that was renamed is read to its end before the new one of its name is begun; one that became
shorter is read from its beginning. A line is yielded once its end is there.

Diagnostics: OSError, with the file, where the log cannot be opened at first; later it is waited
for.
"""

import errno
import os
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from greycheck.mail_logs import lines
from greycheck.privilege import files

# How often a log is looked at that says nothing new, in seconds.
PAUSE = 0.25

# What says that nobody reads the output any more.
GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL

# How much is read at once, in bytes.
CHUNK = 1 << 16


class Lines:
    """Puts together the lines of what is read bit by bit; of one that is too long, nothing."""

    def __init__(self) -> None:
        self._rest = b""
        self._skips = False

    def of(self, read: bytes) -> Iterator[bytes]:
        """Yields the lines that end in what was READ, without their ends."""
        *whole, self._rest = (self._rest + read).split(b"\n")
        for text in whole:
            if not self._skips and len(text) < lines.LINE:
                yield text.rstrip(b"\r")
            self._skips = False
        if len(self._rest) >= lines.LINE:
            self._rest, self._skips = b"", True

    def skip(self) -> None:
        """Leaves out what comes before the next end."""
        self._skips = True

    def forget(self) -> None:
        """Forgets what has no end yet."""
        self._rest, self._skips = b"", False


def follow_file(path: Path, back: int, pause: Callable[[], None]) -> Iterator[bytes | None]:
    """Yields the lines of the file at PATH that begin at most BACK bytes before its end.

    Then it yields None, once, and then the lines that come, for ever. PAUSE is called where there
    is nothing new, and returns after a moment. Raises OSError.
    """
    stream: BinaryIO = files.opened(path)
    try:
        found = Lines()
        if _go_back(stream.fileno(), back):
            found.skip()
        is_history = True
        while True:
            if read := os.read(stream.fileno(), CHUNK):
                yield from found.of(read)
                continue
            if is_history:
                is_history = False
                yield None
            if _is_shorter(stream.fileno()):
                os.lseek(stream.fileno(), 0, os.SEEK_SET)
                found.forget()
                continue
            new = _another(path, stream.fileno())
            if new is None:
                pause()
                continue
            # What was written to the old one between the last look and its new name.
            while read := os.read(stream.fileno(), CHUNK):
                yield from found.of(read)
            yield from found.of(b"\n")
            stream.close()
            stream = new
            found.forget()
    finally:
        stream.close()


def follow_stream(descriptor: int, wait: Callable[[int], None]) -> Iterator[bytes]:
    """Yields the lines that come from DESCRIPTOR, to its end. WAIT returns once there is more."""
    found = Lines()
    while True:
        wait(descriptor)
        read = os.read(descriptor, CHUNK)
        if not read:
            break
        yield from found.of(read)
    yield from found.of(b"\n")


class Waiting:
    """Waits for a log, and notices when the reader of the output has gone.

    Raises BrokenPipeError then.
    """

    def __init__(self, output: int = 1) -> None:
        self._output = output
        self._poll = select.poll()
        # No event but an error is asked for: that the other end of a pipe is closed.
        self._poll.register(output, 0)

    def pause(self) -> None:
        """Waits for PAUSE seconds."""
        self._see(self._poll.poll(PAUSE * 1000))

    def until_there_is_more(self, descriptor: int) -> None:
        """Waits until DESCRIPTOR can be read."""
        self._poll.register(descriptor, select.POLLIN)
        self._see(self._poll.poll())

    def _see(self, events: list[tuple[int, int]]) -> None:
        for descriptor, event in events:
            if descriptor == self._output and event & GONE:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _go_back(descriptor: int, back: int) -> bool:
    """Goes BACK bytes before the end of a file; returns whether that is within a line."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return False
    start = max(0, found.st_size - back)
    os.lseek(descriptor, start, os.SEEK_SET)
    return start > 0 and os.pread(descriptor, 1, start - 1) != b"\n"


def _is_shorter(descriptor: int) -> bool:
    """Whether the file was cut since it was read."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return False
    return found.st_size < os.lseek(descriptor, 0, os.SEEK_CUR)


def _another(path: Path, descriptor: int) -> BinaryIO | None:
    """The file at PATH, open, where it is no longer the one that is read; else None.

    Between two names there is none.
    """
    try:
        there = path.stat()
        here = os.fstat(descriptor)
        if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
            return None
        return files.opened(path)
    except OSError:
        return None
