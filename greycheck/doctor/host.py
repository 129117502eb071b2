"""The host: room for the store, and the clock."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from time import gmtime, strftime

from greycheck.doctor.finding import MB, Finding, Installation, Level, run
from greycheck.store import schema

# Bytes and inodes of the store's file system below which there is a warning, and a fault.
SPACE = (100 * MB, 5 * MB)
INODES = (1000, 10)

# A clock before this, 2024-01-01, was never set.
NEVER_SET = 1704067200


def look_at_space(installation: Installation) -> Iterator[Finding]:
    """Room for the store: a new triplet that cannot be recorded is not deferred."""
    path = schema.sqlite_path(installation.settings.database)
    if path is None or not os.access(path.parent, os.F_OK):
        return
    status = os.statvfs(path.parent)
    if status.f_flag & os.ST_RDONLY:
        said, _colon, command = schema.trouble(path).rpartition(": ")
        yield Finding("fault", "disk", f"{said}: the store is there, and nothing can be recorded", run(command))
        return
    free = status.f_bavail * status.f_frsize
    yield Finding(_scarcity(free, SPACE), "disk", f"{path.parent}: {free / MB:.0f} MB free", _room(free, SPACE, path))
    # Some file systems (btrfs) have no fixed number of inodes.
    if status.f_files:
        inodes = status.f_favail
        yield Finding(
            _scarcity(inodes, INODES), "disk", f"{path.parent}: {inodes} inodes free", _room(inodes, INODES, path)
        )


def _scarcity(free: int, bounds: tuple[int, int]) -> Level:
    scarce, none = bounds
    return "fault" if free < none else "warning" if free < scarce else "ok"


def _room(free: int, bounds: tuple[int, int], path: Path) -> str:
    where = shlex.quote(str(path.parent))
    return f"Make room: new triplets cannot be recorded on a full disk. See: df -h {where}" if free < bounds[0] else ""


def look_at_clock(installation: Installation) -> Iterator[Finding]:
    """Whether the clock was ever set."""
    shown = strftime("%Y-%m-%d %H:%M:%S", gmtime(installation.now))
    if installation.now < NEVER_SET:
        advice = "Set it, with NTP: once it jumps, every triplet is over."
        yield Finding("fault", "clock", f"it is {shown} UTC, says the clock", advice)
        return
    yield Finding("ok", "clock", f"{shown} UTC")
