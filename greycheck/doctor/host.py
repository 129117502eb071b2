"""Examines the host: space for the store, and the clock."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from greycheck.doctor.finding import MB, Finding, Installation, Level, run, safe
from greycheck.store.schema import migrate
from greycheck.times import utc

# Bytes and inodes free on the store's file system: below the first number it is a warning, below
# the second a fault.
SPACE = (100 * MB, 5 * MB)
INODES = (1000, 10)

# A clock that shows an earlier time than this, 2024-01-01, was never set.
NEVER_SET = 1704067200


def check_space(installation: Installation) -> Iterator[Finding]:
    """Yields how much space there is for the store.

    A triplet that cannot be recorded is not deferred.
    """
    path = migrate.sqlite_path(installation.settings.database)
    if path is None or not os.access(path.parent, os.F_OK):
        return
    status = os.statvfs(path.parent)
    if status.f_flag & os.ST_RDONLY:
        cause = migrate.trouble(path)
        said, command = (cause.said, cause.command) if cause else (f"{path}: read-only", "")
        yield Finding(
            "fault",
            "disk",
            f"{safe(said)}: the store is there, and nothing can be recorded",
            run(command),
        )
        return
    free = status.f_bavail * status.f_frsize
    yield Finding(
        _scarcity(free, SPACE),
        "disk",
        f"{path.parent}: {free / MB:.0f} MB free",
        _room(free, SPACE, path),
    )
    # Some file systems (btrfs) have no fixed number of inodes.
    if status.f_files:
        inodes = status.f_favail
        yield Finding(
            _scarcity(inodes, INODES),
            "disk",
            f"{path.parent}: {inodes} inodes free",
            _room(inodes, INODES, path),
        )


def _scarcity(free: int, bounds: tuple[int, int]) -> Level:
    scarce, none = bounds
    return "fault" if free < none else "warning" if free < scarce else "ok"


def _room(free: int, bounds: tuple[int, int], path: Path) -> str:
    where = shlex.quote(str(path.parent))
    return (
        f"Make room: new triplets cannot be recorded on a full disk. See: df -h {where}"
        if free < bounds[0]
        else ""
    )


def check_clock(installation: Installation) -> Iterator[Finding]:
    """Finds out if the clock was ever set."""
    shown = utc(installation.now)
    if installation.now < NEVER_SET:
        found = f"it is {shown}, says the clock: once it jumps, every triplet is over"
        yield Finding("fault", "clock", found, run("timedatectl set-ntp true"))
        return
    yield Finding("ok", "clock", shown)
