"""What an examination is given, and what it gives: plain values."""

import os
import pwd
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Literal

from greycheck import child, log, settings
from greycheck.cli import access, launcher, native, server
from greycheck.settings import Settings, duration_text

Level = Literal["ok", "note", "warning", "fault"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "fault")

MB = 1_000_000

# How many look-ups are timed.
LOOK_UPS = 9


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

    NOW is in seconds since 1970; PROC is where the kernel shows processes; IS_QMAILS is whether checks are made by qmail's hooks.
    """

    directory: Path
    account: pwd.struct_passwd | None
    settings: Settings
    now: float
    proc: Path = Path("/proc")
    is_qmails: bool = True

    @property
    def launchers(self) -> list[Path]:
        """The launchers that are there, the programs of others left out."""
        return [path for path in self.programs if os.access(path, os.F_OK) and is_ours(path)]

    @property
    def programs(self) -> list[Path]:
        """Where the launchers should be."""
        return [self.directory / name for name in launcher.PROGRAMS]

    @property
    def user(self) -> str:
        """Who runs checks, as far as known."""
        by = "qmail-smtpd runs as" if self.is_qmails else "greycheck serve runs as"
        return self.account.pw_name if self.account else f"the user that {by}"

    @property
    def command(self) -> Path:
        """The program that operators run: the launcher, or where there is none this one."""
        launched = self.directory / "greycheck"
        return launched if launched.exists() else Path(sys.executable).with_name("greycheck")

    @property
    def known_account(self) -> pwd.struct_passwd | None:
        """The account, where this process can act as it."""
        return self.account if self.account and access.can_act_as(self.account) else None

    @cached_property
    def driver(self) -> server.Found | None:
        """The driver of the server database, as launchers find it; None where there is no such database."""
        asked = server.of(self.settings)
        return server.find_driver(asked, self.known_account) if asked else None


def is_ours(path: Path) -> bool:
    """Whether PATH can be read, and is a launcher."""
    try:
        return native.is_ours(path)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Whether PATH can be seen, and is a directory."""
    try:
        return path.is_dir()
    except OSError:
        return False


def safe(text: str) -> str:
    """TEXT that others wrote, fit for a terminal."""
    return log.quoted(text)[1:-1]


def run(command: str) -> str:
    """The advice to run COMMAND, whose words are quoted; none where a terminal would not show it as it is."""
    return f"Run: {command}" if command.isascii() and command.isprintable() else ""


# Where the store is if no setting says where.
DEFAULT_STORE = f"{settings.SYSTEM_DIRECTORY}/{settings.DATABASE_FILE}"


def make_directory(account: pwd.struct_passwd) -> str:
    """The command that makes the directory of the store for ACCOUNT."""
    return f"install -d -o {quote(account.pw_name)} -m 0700 {settings.SYSTEM_DIRECTORY}"


def set_to(name: str, value: str, found: Settings) -> str:
    """The command that sets NAME to VALUE in the file of the settings FOUND."""
    file = quote(os.environ.get("GREYCHECK_CONFIG", settings.CONFIG_FILE))
    if found.sources[name].startswith("GREYCHECK_"):
        return f"export {found.sources[name]}={quote(value)}"
    if found.sources[name].startswith("/"):
        return f"sed -i {quote(f's|^ *{name} *=.*|{name} = {value}|')} {file}"
    return f"echo {quote(f'{name} = {value}')} >> {file}"


def milliseconds(seconds: float) -> str:
    """SECONDS as text."""
    return f"{seconds * 1000:.1f} ms"


def weigh(text: str, slow: float, found: Settings, advice: str) -> Finding:
    """TEXT about a store that takes SLOW seconds for a check, held against the deadline of the settings FOUND."""
    patience = found.deadline * child.PATIENCE
    text += f", of a deadline of {duration_text(found.deadline)}"
    if slow > patience:
        return Finding("fault", "latency", text, f"Checks end by on_error. {advice}")
    if slow > patience / 4:
        return Finding("warning", "latency", text, f"That is near. {advice}")
    return Finding("ok", "latency", text)
