"""The arguments and results of examinations: plain values."""

import os
import pwd
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Literal

from greycheck import log
from greycheck.launchers import database, native, python
from greycheck.privilege import access
from greycheck.settings import CONFIG_FILE, DATABASE_FILE, SYSTEM_DIRECTORY, Settings
from greycheck.store import rights
from greycheck.store.base import StoreError

Level = Literal["ok", "note", "warning", "fault"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "fault")

MB = 1_000_000


@dataclass(frozen=True)
class Finding:
    """What was FOUND ABOUT something, its LEVEL, and ADVICE on what to do, or an empty one."""

    level: Level
    about: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Installation:
    """What is examined.

    DIRECTORY is that of the launchers, ACCOUNT that as which qmail runs them (or None), SETTINGS
    those of this process. NOW is in seconds since 1970. PROC is where the kernel shows processes.
    IS_QMAILS is true if qmail's hooks make the checks, FOR_ROOT if root reads what is found, and
    runs what is advised, whoever looks for him.
    """

    directory: Path
    account: pwd.struct_passwd | None
    settings: Settings
    now: float
    proc: Path = Path("/proc")
    is_qmails: bool = True
    for_root: bool = field(default_factory=lambda: os.geteuid() == 0)

    @property
    def launchers(self) -> list[Path]:
        """The launchers that exist, without other programs of these names."""
        return [path for path in self.programs if os.access(path, os.F_OK) and is_ours(path)]

    @property
    def programs(self) -> list[Path]:
        """The paths at which the launchers should be."""
        return [self.directory / name for name in python.PROGRAMS]

    @property
    def user(self) -> str:
        """The name of the user that runs checks; if that is not known, a description."""
        by = "qmail-smtpd runs as" if self.is_qmails else "greycheck serve runs as"
        return self.account.pw_name if self.account else f"the user that {by}"

    @property
    def command(self) -> Path:
        """The program that operators run: the launcher, or this one if there is none."""
        launched = self.directory / "greycheck"
        return launched if launched.exists() else Path(sys.executable).with_name("greycheck")

    @property
    def known_account(self) -> pwd.struct_passwd | None:
        """The account, if this process can act as it; else None."""
        return self.account if self.account and access.can_act_as(self.account) else None

    @cached_property
    def driver(self) -> database.Found | None:
        """The driver of the server database, as launchers find it; None without such a database."""
        asked = self.settings.database.server
        return database.find_driver(asked, self.known_account) if asked else None


def is_ours(path: Path) -> bool:
    """True if PATH can be read and is a launcher."""
    try:
        return native.is_ours(path)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """True if PATH can be seen and is a directory."""
    try:
        return path.is_dir()
    except OSError:
        return False


def safe(text: str) -> str:
    """Returns TEXT, which may come from others, escaped for a terminal."""
    return log.quoted(text)[1:-1]


def run(command: str) -> str:
    """Returns the advice to run COMMAND, whose words are quoted already.

    Empty if there is none, or if a terminal would not show it as it is.
    """
    return f"Run: {command}" if command and command.isascii() and command.isprintable() else ""


def anothers(path: Path | str) -> str:
    """Returns the advice where no command on PATH is safe."""
    return f"See what {safe(str(path))} is: another user may have put it there."


def is_roots(path: Path) -> bool:
    """Whether root alone chooses what PATH is: a command on it changes nothing else."""
    try:
        return rights.whose(str(path)) == 0
    except StoreError:
        return False


def run_on(path: Path | str, command: str, for_root: bool) -> str:
    """Returns the advice to run COMMAND on PATH, which is quoted here.

    FOR_ROOT, where another user may put something else in the place of PATH, it is run as that
    user, who can change nothing that is not his. Where several may, there is no command.
    """
    quoted = f"{command} {quote(str(path))}"
    if not for_root:
        return run(quoted)
    try:
        user = rights.whose(str(path))
    except StoreError:
        return anothers(path)
    return run(f"runuser -u {quote(rights.user_name(user))} -- {quoted}" if user else quoted)


def substitution(pattern: str, text: str) -> str:
    """Returns sed's command, quoted for a shell, that puts TEXT in the place of PATTERN."""
    # After a | of its own TEXT could go on with flags, one of which runs commands.
    plain = re.sub(r"([\\&|])", r"\\\1", text)
    return quote(f"s|{pattern}|{plain}|")


# The store's path if no setting has one.
DEFAULT_STORE = f"{SYSTEM_DIRECTORY}/{DATABASE_FILE}"


def make_directory(account: pwd.struct_passwd) -> str:
    """Returns the command that makes the directory of the store for ACCOUNT."""
    return f"install -d -o {quote(account.pw_name)} -m 0700 {SYSTEM_DIRECTORY}"


def set_to(name: str, value: str, settings: Settings) -> str:
    """Returns the command that sets NAME to VALUE where SETTINGS have it from."""
    file = quote(os.environ.get("GREYCHECK_CONFIG", CONFIG_FILE))
    if settings.sources[name].startswith("GREYCHECK_"):
        return f"export {settings.sources[name]}={quote(value)}"
    if settings.sources[name].startswith("/"):
        return f"sed -i {substitution(f'^ *{name} *=.*', f'{name} = {value}')} {file}"
    return f"echo {quote(f'{name} = {value}')} >> {file}"
