"""What a check needs of this host to use a server database: a driver, files, a kept password.

Each function here says what is missing in words for the operator, with what to do.
"""

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from greycheck.envelope import Envelope, triplet
from greycheck.hooks import calling, smtpextfork
from greycheck.launchers import python
from greycheck.privilege import access, apart, files
from greycheck.settings import CONFIG_FILE, Settings
from greycheck.store import drivers
from greycheck.store.admin import hosts
from greycheck.store.admin.engine import installing, load_driver, open_engine
from greycheck.store.admin.hosts import HostStatus
from greycheck.store.base import Asked, StoreError
from greycheck.store.drivers import faults
from greycheck.store.schema import migrate, tables
from greycheck.store.url import Server

# How long a trial may take, in seconds.
TRIAL_TIME = 30


# --- the driver -----------------------------------------------------------------------------------

# Prints which driver a launcher's interpreter finds, why it does not find those before, and the
# files that were loaded.
SEARCH = """\
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, {package!r})
sys.path += {directories!r}
from greycheck.store import server
import greycheck.store.compiled_{dialect}
for name in {names!r}:
    try:
        __import__("greycheck.store.drivers." + name)
    except Exception as error:
        print("missing", name, ascii(str(error) or type(error).__name__))
    else:
        print("found", name)
        break
for module in list(sys.modules.values()):
    print("file", getattr(module, "__file__", None) or "")
"""


@dataclass(frozen=True)
class Found:
    """The driver that launchers find (empty: none), WHY not another, and the FILES it loads."""

    name: str
    why: str
    files: tuple[Path, ...] = ()


def find_driver(asked: Server, account: pwd.struct_passwd | None) -> Found:
    """The driver that launchers use for the database ASKED, as ACCOUNT if root looks."""
    script = SEARCH.format(
        package=str(python.package().parent),
        directories=python.driver_directories(),
        dialect=asked.dialect,
        names=drivers.usable(asked),
    )
    try:
        ran = subprocess.run(
            [python.interpreter(), "-IS", "-c", script],
            capture_output=True,
            text=True,
            timeout=TRIAL_TIME,
            check=False,
            cwd="/",
            **access.run_as(account),  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Found("", str(error))
    lines = [line.split(" ", 1) for line in ran.stdout.splitlines()]
    said = {
        word: [rest for key, rest in lines if key == word] for word in ("found", "missing", "file")
    }
    why = "; ".join(said["missing"]) or faults.one_line(ran.stderr[-500:])
    if not said["found"]:
        return Found("", why)
    return Found(
        said["found"][0], why, tuple(Path(name) for name in said["file"] if name.startswith("/"))
    )


def install_driver(asked: Server, again: str) -> str:
    """Returns the command that installs a driver where launchers find none.

    AGAIN is the command to run after that, if any.
    """
    return " && ".join(filter(None, [installing(drivers.usable(asked)[0]), again]))


# --- files and passwords --------------------------------------------------------------------------


def settings_file() -> Path:
    """The settings file of this process."""
    return Path(os.environ.get("GREYCHECK_CONFIG") or CONFIG_FILE)


def needed(settings: Settings) -> list[tuple[Path, int]]:
    """Returns what a check needs besides an SQLite file, by SETTINGS.

    That is paths, and how it needs them, as os.access has it.
    """
    wanted = [(settings_file(), os.R_OK)] if settings_file().is_file() else []
    if settings.database_file:
        wanted += [(Path(settings.database_file), os.R_OK)]
    asked = settings.database.server
    if asked is not None:
        wanted += [(path, os.R_OK) for path in _named(asked, drivers.of(asked).files)]
    return wanted


def _named(asked: Server, options: tuple[str, ...]) -> list[Path]:
    """The files that OPTIONS of the database's URL name."""
    return [
        Path(asked.options[name]) for name in options if asked.options.get(name, "").startswith("/")
    ]


def state_complaint(settings: Settings, account: pwd.struct_passwd | None) -> str:
    """Returns what keeps ACCOUNT from marking hosts, or lets anybody mark them.

    Empty if nothing does, and for an SQLite file.
    """
    path = Path(settings.state_directory)
    if settings.database.server is None:
        return ""
    with access.acting_as(account):
        complaint = access.barrier(
            path, os.R_OK | os.W_OK | os.X_OK, migrate.user_name(os.geteuid())
        )
    if complaint:
        return f"{complaint}: each check finds out by itself that a host does not answer"
    if path.stat().st_mode & 0o002:
        return f"{access.describe(path)}: any user can make checks leave hosts out"
    return ""


def exposures(settings: Settings, account: pwd.struct_passwd | None) -> dict[Path, str]:
    """The files with a password that others than ACCOUNT can read, and in words who can."""
    asked = settings.database.server
    if asked is None:
        return {}
    return {
        path: exposure
        for path in _secrets(settings, asked, account)
        if (exposure := access.exposure(path, account))
    }


def _secrets(
    settings: Settings, asked: Server, account: pwd.struct_passwd | None
) -> Iterator[Path]:
    """The files that hold a password; root looks into them as ACCOUNT."""
    source = settings.sources["database"]
    if asked.password and source == settings.database_file:
        yield Path(source)
    elif asked.password and source.rpartition(":")[2].isdigit():
        yield Path(source.rpartition(":")[0])
    yield from _named(asked, drivers.of(asked).secret_files)
    for path in _named(asked, ("read_default_file",)):
        with access.acting_as(account):
            is_secret = _has_password(path)
        if is_secret:
            yield path


# How much of a file of options is read, in bytes.
LARGEST = 1 << 20


def _has_password(path: Path) -> bool:
    try:
        text = files.read(path, LARGEST)
    except OSError:
        return False
    return bool(re.search(rb"^\s*password\s*=", text, re.MULTILINE))


# --- the server -----------------------------------------------------------------------------------


def look(asked: Server, driver: str) -> list[HostStatus]:
    """Returns what each host of the database ASKED is, by the DRIVER of that name.

    Not for root: what a file or a server has the driver load would be root. Raises StoreError.
    """
    used = asked.by(driver)
    _name, room = load_driver(used)
    return [hosts.probe(used, room, host) for host in asked.hosts]


def complaints(
    asked: Server, settings: Settings, account: pwd.struct_passwd | None, again: str
) -> list[str]:
    """What keeps checks under SETTINGS from using the server database ASKED.

    AGAIN is what installs the launchers.
    """
    driver = find_driver(asked, account)
    if not driver.name:
        return [
            f"no driver for {asked.dialect} that launchers find ({driver.why}):"
            f" {install_driver(asked, again)}"
        ]
    try:
        found = apart.as_user(
            account.pw_uid if account else 0, lambda: _complaints(asked, settings, driver.name)
        )
    except StoreError as error:
        return [str(error)]
    return [str(each) for each in found] if isinstance(found, list) else []


def _complaints(asked: Server, settings: Settings, driver: str) -> list[str]:
    """What keeps checks under SETTINGS from using the database ASKED, by who this is."""
    seen = look(asked, driver)
    usable = [one for one in seen if one.is_usable]
    if not usable:
        return [f"{one.host}: {one.fault or 'takes no writes'}" for one in seen]
    wrong = migrate.misfit(usable[0].revision)
    return [f"{migrate.shown(settings.database)}: {wrong}"] if wrong else []


# --- a trial --------------------------------------------------------------------------------------

# The envelope of the trial, from an address of documentation (RFC 5737), and settings under which
# it touches only its own row.
CLIENT, ADDRESS = "192.0.2.1", b"trial@greycheck.invalid"
ENVELOPE = Envelope(smtpextfork.NAME, CLIENT, ADDRESS, ADDRESS)
PARTS = {"client": CLIENT.encode(), "sender": ADDRESS, "recipient": ADDRESS}
ALONE = {
    "GREYCHECK_MODE": "enforce",
    "GREYCHECK_CLIENT_PASSES": "0",
    "GREYCHECK_STRIKES": "0",
    "GREYCHECK_POOL_NETWORKS": "0",
    "GREYCHECK_PENDING_LIMIT": "0",
    "GREYCHECK_HISTORY": "0",
}


def try_server(path: Path, account: pwd.struct_passwd | None, settings: Settings) -> str:
    """Lets the launcher PATH, SMTPEXTFORK's, ask the server database for one mail.

    ACCOUNT is as whom, if root does it. Returns what is wrong, or nothing.

    The row that this makes is taken away again; where that fails, it is gone with its retry window.
    """
    environ = {name: value for name, value in os.environ.items() if name.startswith("GREYCHECK_")}
    environ |= ALONE | {"GREYCHECK_STATE_DIRECTORY": settings.state_directory}
    _argv, variables = calling.call(smtpextfork, PARTS)
    environ |= {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}
    try:
        ran = subprocess.run(
            [path],
            env=environ,
            capture_output=True,
            timeout=settings.deadline + TRIAL_TIME,
            check=False,
            cwd="/",
            **access.run_as(account),  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: does not run{access.as_account(account)}: {error}"
    finally:
        _forget(settings, account)
    said = ran.stderr.decode(errors="replace").strip()
    if " reason=" in said and " reason=error " not in said and " unrecorded=" not in said:
        return ""
    return (
        f"{path}: cannot use {migrate.shown(settings.database)}{access.as_account(account)}: {said}"
    )


def _forget(settings: Settings, account: pwd.struct_passwd | None) -> None:
    key = Asked(ENVELOPE, triplet(ENVELOPE, settings.ipv4_prefix, settings.ipv6_prefix)).key

    def forget() -> None:
        engine = open_engine(settings.database)
        with engine.begin() as connection:
            connection.execute(delete(tables.triplet).where(tables.triplet.c.triplet_key == key))
        engine.dispose()

    with suppress(StoreError, SQLAlchemyError):
        apart.as_user(account.pw_uid if account else 0, forget)
