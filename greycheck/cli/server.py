"""What a check needs before a server database can answer it: a driver that launchers find, files, a password that is kept.

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

from greycheck import settings
from greycheck.cli import access, launcher
from greycheck.envelope import Envelope, triplet
from greycheck.settings import Settings
from greycheck.store import drivers, hosts, lean, schema, server, tables
from greycheck.store.engine import open_engine
from greycheck.store.hosts import Seen
from greycheck.store.lean import Asked, StoreError
from greycheck.store.server import Server

# How long a trial may take, in seconds.
TRIAL_TIME = 30


def of(found: Settings) -> Server | None:
    """The server database of the settings FOUND; None for an SQLite file, and where there is none that can be used."""
    if not found.database or found.database.startswith("sqlite:"):
        return None
    return server.parse(found.database)


# --- the driver -------------------------------------------------------------------------------------------------------

# Prints which driver a launcher's interpreter finds, why it does not find those before, and the files that were loaded.
SEARCH = """\
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, {package!r})
sys.path += {directories!r}
from greycheck.store import lean_server
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
    """The driver that launchers find, empty for none; WHY not another one; the FILES that they load with it."""

    name: str
    why: str
    files: tuple[Path, ...] = ()


def find_driver(asked: Server, account: pwd.struct_passwd | None) -> Found:
    """The driver that launchers use for the database ASKED, as ACCOUNT if root looks."""
    script = SEARCH.format(
        package=str(launcher.package().parent),
        directories=launcher.driver_directories(),
        dialect=asked.dialect,
        names=(asked.driver,) if asked.driver else server.DRIVERS[asked.dialect],
    )
    try:
        ran = subprocess.run(
            [launcher.interpreter(), "-IS", "-c", script],
            capture_output=True,
            text=True,
            timeout=TRIAL_TIME,
            check=False,
            cwd="/",
            **access.identity(account),  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Found("", str(error))
    lines = [line.split(" ", 1) for line in ran.stdout.splitlines()]
    said = {word: [rest for key, rest in lines if key == word] for word in ("found", "missing", "file")}
    why = "; ".join(said["missing"]) or server.one_line(ran.stderr[-500:])
    if not said["found"]:
        return Found("", why)
    return Found(said["found"][0], why, tuple(Path(name) for name in said["file"] if name.startswith("/")))


def no_driver(asked: Server, found: Found) -> str:
    """What to do where launchers find no driver."""
    extra = drivers.EXTRAS[asked.driver or server.DRIVERS[asked.dialect][0]]
    return (
        f"no driver for {asked.dialect} that launchers find ({found.why}):"
        f" pip install 'greycheck[{extra}]' for {launcher.interpreter()}, then greycheck install"
    )


# --- files and passwords ----------------------------------------------------------------------------------------------

# Options of URLs that name files which a check reads; those that hold a password or a key by their nature.
FILES = {
    "postgresql": ("passfile", "sslrootcert", "sslcert", "sslkey", "sslcrl"),
    "mysql": ("read_default_file", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_key"),
}
SECRET = ("passfile", "sslkey", "ssl_key")


def settings_file() -> Path:
    """The settings file of this process."""
    return Path(os.environ.get("GREYCHECK_CONFIG") or settings.CONFIG_FILE)


def needed(found: Settings) -> list[tuple[Path, int]]:
    """What a check reads or writes besides an SQLite file, by the settings FOUND: paths, and what it wants there, as os.access does."""
    wanted = [(settings_file(), os.R_OK)] if settings_file().is_file() else []
    if found.database_file:
        wanted += [(Path(found.database_file), os.R_OK)]
    asked = of(found)
    if asked is not None:
        wanted += [(path, os.R_OK) for path in _named(asked, FILES[asked.dialect])]
    return wanted


def _named(asked: Server, options: tuple[str, ...]) -> list[Path]:
    """The files that OPTIONS of the database's URL name."""
    return [Path(asked.options[name]) for name in options if asked.options.get(name, "").startswith("/")]


def state_complaint(found: Settings, account: pwd.struct_passwd | None) -> str:
    """What keeps ACCOUNT from marking hosts that do not answer, or lets anybody do that; empty for nothing, and for an SQLite file."""
    path = Path(found.state_directory)
    if of(found) is None:
        return ""
    with access.acting_as(account):
        complaint = access.barrier(path, os.R_OK | os.W_OK | os.X_OK, schema.user_name(os.geteuid()))
    if complaint:
        return f"{complaint}: each check finds out by itself that a host does not answer"
    if path.stat().st_mode & 0o002:
        return f"{access.describe(path)}: any user can make checks leave hosts out"
    return ""


def exposures(found: Settings, account: pwd.struct_passwd | None) -> list[str]:
    """The files with a password that others than ACCOUNT can read."""
    asked = of(found)
    if asked is None:
        return []
    return [exposure for path in _secrets(found, asked) if (exposure := access.exposure(path, account))]


def _secrets(found: Settings, asked: Server) -> Iterator[Path]:
    """The files that hold a password."""
    source = found.sources["database"]
    if asked.password and source == found.database_file:
        yield Path(source)
    elif asked.password and source.rpartition(":")[2].isdigit():
        yield Path(source.rpartition(":")[0])
    yield from _named(asked, SECRET)
    yield from (path for path in _named(asked, ("read_default_file",)) if _has_password(path))


def _has_password(path: Path) -> bool:
    try:
        # A pipe would be waited for.
        return path.is_file() and bool(re.search(r"^\s*password\s*=", path.read_text(errors="replace"), re.MULTILINE))
    except OSError:
        return False


# --- the server -------------------------------------------------------------------------------------------------------


def look(asked: Server, driver: str, account: pwd.struct_passwd | None) -> list[Seen]:
    """What each host of the database ASKED is, by the DRIVER of that name, as ACCOUNT if root looks. Raises StoreError."""
    used = Server(asked.dialect, driver, asked.user, asked.password, asked.database, asked.hosts, asked.options)
    _name, room = drivers.load(used)
    with access.acting_as(account):
        return [hosts.look(used, room, host) for host in asked.hosts]


def misfit(revision: str | None) -> str:
    """Why a schema at REVISION is not one for this program; empty where it is."""
    if revision is None:
        return "there is no schema yet: run greycheck db upgrade"
    return "" if lean.fits(revision, schema.head()) else f"the schema is {schema.standing(revision)}"


def complaints(asked: Server, found: Settings, account: pwd.struct_passwd | None) -> list[str]:
    """What keeps checks under the settings FOUND from using the server database ASKED."""
    driver = find_driver(asked, account)
    if not driver.name:
        return [no_driver(asked, driver)]
    try:
        seen = look(asked, driver.name, account)
    except StoreError as error:
        return [str(error)]
    usable = [one for one in seen if one.is_usable]
    if not usable:
        return [f"{one.host}: {one.fault or 'takes no writes'}" for one in seen]
    wrong = misfit(usable[0].revision)
    return [f"{schema.shown(found.database)}: {wrong}"] if wrong else []


# --- a trial ----------------------------------------------------------------------------------------------------------

# The envelope of the trial, from an address of documentation (RFC 5737), and settings under which it touches only its own row.
CLIENT = "192.0.2.1"
ENVELOPE = Envelope("smtpextfork", CLIENT, b"trial@greycheck.invalid", b"trial@greycheck.invalid")
ALONE = {
    "GREYCHECK_MODE": "enforce",
    "GREYCHECK_CLIENT_PASSES": "0",
    "GREYCHECK_STRIKES": "0",
    "GREYCHECK_POOL_NETWORKS": "0",
    "GREYCHECK_PENDING_LIMIT": "0",
}


def try_server(path: Path, account: pwd.struct_passwd | None, found: Settings) -> str:
    """Lets the launcher PATH ask the server database for one mail, as ACCOUNT if root does; what is wrong, or nothing.

    The row that this makes is taken away again; where that fails, it is gone with its retry window.
    """
    environ = {name: value for name, value in os.environ.items() if name.startswith("GREYCHECK_")}
    environ |= ALONE | {"GREYCHECK_STATE_DIRECTORY": found.state_directory, "TCPREMOTEIP": CLIENT}
    environ |= {"REMOTEMF": ENVELOPE.sender.decode(), "REMOTERCPT": ENVELOPE.recipient.decode()}
    try:
        ran = subprocess.run(
            [path],
            env=environ,
            capture_output=True,
            timeout=found.deadline + TRIAL_TIME,
            check=False,
            cwd="/",
            **access.identity(account),  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: does not run{access.named(account)}: {error}"
    finally:
        _forget(found, account)
    said = ran.stderr.decode(errors="replace").strip()
    if " reason=" in said and " reason=error " not in said and " unrecorded=" not in said:
        return ""
    return f"{path}: cannot use {schema.shown(found.database)}{access.named(account)}: {said}"


def _forget(found: Settings, account: pwd.struct_passwd | None) -> None:
    key = Asked(ENVELOPE, triplet(ENVELOPE, found.ipv4_prefix, found.ipv6_prefix)).key
    with suppress(StoreError, SQLAlchemyError), access.acting_as(account):
        engine = open_engine(found.database)
        with engine.begin() as connection:
            connection.execute(delete(tables.triplet).where(tables.triplet.c.triplet_key == key))
        engine.dispose()
