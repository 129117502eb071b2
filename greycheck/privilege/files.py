"""Reads files that others may have put there: it does not block, and reads a bounded size."""

import os
import stat
from pathlib import Path


def read(path: Path, most: int) -> bytes:
    """Returns the first MOST bytes of the regular file PATH, without blocking.

    Raises OSError, also if PATH is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path}: not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


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
