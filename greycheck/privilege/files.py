"""Reads files that others may have put there: it does not block, and reads a bounded size."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

# What nobody else can put in a file's place: nothing, and what this process has open already, as
# the pipe of a shell's ``<(zcat log.gz)``.
GIVEN = ("/dev/null", "/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def read(path: Path, most: int) -> bytes:
    """Returns the first MOST bytes of the regular file PATH, without blocking.

    Raises OSError, also if PATH is not a regular file.
    """
    with _regular(path) as file:
        return file.read(most)


def opened(path: Path) -> BinaryIO:
    """Opens PATH, which an operator has named, for reading. Raises OSError.

    For root it must be a regular file, or one of GIVEN: whoever may write in its directory could
    put a pipe there, on which root would wait for ever.
    """
    if os.geteuid() != 0 or str(path).startswith(GIVEN):
        return path.open("rb")
    return _regular(path)


def _regular(path: Path) -> BinaryIO:
    """Opens the regular file PATH, without waiting for anybody. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def cause(error: OSError) -> str:
    """Returns the message of ERROR, after the names of its files, if it has any."""
    names = [
        os.fsdecode(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes)
    ]
    return ": ".join(
        [" and ".join(names)] * bool(names) + [error.strerror or str(error) or type(error).__name__]
    )
