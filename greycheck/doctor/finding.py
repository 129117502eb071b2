"""What an examination is given, and what it gives: plain values."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greycheck import log
from greycheck.cli import install
from greycheck.settings import Settings

Level = Literal["ok", "note", "warning", "fault"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "fault")

MB = 1_000_000


@dataclass(frozen=True)
class Finding:
    """What was FOUND ABOUT something, at a LEVEL, and what to do, where there is something to be done."""

    level: Level
    about: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Installation:
    """What is examined: the DIRECTORY of the launchers, the ACCOUNT that qmail runs them as (or None), the SETTINGS of this process.

    NOW is in seconds since 1970; PROC is where the kernel shows processes.
    """

    directory: Path
    account: pwd.struct_passwd | None
    settings: Settings
    now: float
    proc: Path = Path("/proc")

    @property
    def launchers(self) -> list[Path]:
        """The launchers that are there, the programs of others left out."""
        return [path for path in self.programs if os.access(path, os.F_OK) and is_ours(path)]

    @property
    def programs(self) -> list[Path]:
        """Where the launchers should be."""
        return [self.directory / name for name in install.PROGRAMS]

    @property
    def user(self) -> str:
        """Who runs checks, as far as known."""
        return self.account.pw_name if self.account else "the user that qmail-smtpd runs as"


def is_ours(path: Path) -> bool:
    """Whether PATH can be read, and is a launcher."""
    try:
        return install.is_ours(path)
    except OSError:
        return False


def safe(text: str) -> str:
    """TEXT that others wrote, fit for a terminal."""
    return log.quoted(text)[1:-1]
