"""Finds users other than root who may change what checks and root rely on.

That is the launchers, what these load, the settings, and the socket's directory.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from greycheck import settings
from greycheck.doctor import service
from greycheck.doctor.finding import Finding, Installation, run, safe
from greycheck.doctor.launchers import is_compiled, named_interpreter, text_of
from greycheck.launchers import python, trial
from greycheck.store import rights
from greycheck.store.base import StoreError

# Paths in a launcher in Python: the package, the places of drivers, the commands' interpreter.
NAMED = re.compile(r"'(/[^'\\]*)'")


def check_writers(installation: Installation) -> Iterator[Finding]:
    """Yields what users other than root may change of what a check, or root, relies on.

    Each cause is reported once.
    """
    causes: dict[str, StoreError] = {}

    def look(path: str, allowed: int | None) -> None:
        cause = writer_of(path, allowed)
        if cause is not None:
            causes.setdefault(str(cause), cause)

    for path in relied_on(installation):
        look(path, 0)
    account = installation.account.pw_uid if installation.account else 0
    # The user of checks must be able to read this file, and may own it: it says where the store is,
    # and only that user opens the store by it.
    if installation.settings.database_file:
        look(installation.settings.database_file, account)
    for path in rights.options_of(installation.settings.database.server):
        look(path, account)
    places: list[Finding] = []
    if installation.settings.socket:
        # Its directory is on the way to it, so it is examined too; one like /tmp cannot be closed
        # by chmod.
        look(installation.settings.socket, None)
        places = list(check_place(Path(installation.settings.socket).parent))
        yield from places
    for cause in causes.values():
        yield Finding("warning", "writers", safe(cause.said), run(cause.command))
    if not causes and not places:
        yield Finding(
            "ok", "writers", "nobody else may write the launchers, what they load, or the settings"
        )


def check_place(directory: Path) -> Iterator[Finding]:
    """Yields a warning if any user may make a socket in DIRECTORY before the resident does.

    That is so if it is sticky and writable by all.
    """
    mode = directory.stat().st_mode if directory.is_dir() else 0
    if mode & rights.STICKY and mode & rights.BY_OTHERS:
        found = (
            f"{directory}: any user may put a socket of his own there, and answer in"
            " place of the resident"
        )
        yield Finding(
            "warning",
            "writers",
            found,
            "Set socket to a path in a directory of its own: /run/greycheck/socket",
        )


def relied_on(installation: Installation) -> list[str]:
    """Returns the paths that only root may change.

    If this process is not root's, the user that installed greycheck may change them too.
    """
    paths = [
        installation.directory,
        *(path for path in installation.programs if os.path.lexists(path)),
    ]
    compiled = [path for path in installation.launchers if is_compiled(path)]
    paths += trial.behind(compiled)
    named = [str(path) for path in (*paths, python.package(), python.interpreter())]
    named += [os.environ.get("GREYCHECK_CONFIG", settings.CONFIG_FILE)]
    account = installation.account
    for one in service.services(
        installation.proc, {0} | ({account.pw_uid} if account else set()), None
    ):
        named.append(os.fsdecode(dict(one.environ or ()).get(b"GREYCHECK_CONFIG", b"")))
    for path in installation.launchers:
        if not is_compiled(path):
            text = text_of(path)
            named += [named_interpreter(text), *NAMED.findall(text)]
    return list(dict.fromkeys(path for path in named if path.startswith("/")))


def writer_of(path: str, allowed: int | None) -> StoreError | None:
    """Returns who else may write PATH, and the command against it; None if nobody may.

    Root, this user and the user ALLOWED (None: any one user) may.
    """
    return next(filter(None, (_writer(each, allowed) for each in followed(path))), None)


def followed(path: str) -> list[str]:
    """Returns PATH with this user's own links followed, after the directories that have them.

    Root follows no link of a user, so for root that is PATH alone.
    """
    places: list[str] = []
    user = os.geteuid()
    here = Path(path)
    while user and len(places) < rights.LINKS:
        way = (*reversed(here.parents), here)
        link = next((each for each in way if _is_link_of(user, each)), None)
        if link is None:
            break
        places.append(str(link.parent))
        here = link.parent / link.readlink() / here.relative_to(link)
    return [*places, str(here)]


def _is_link_of(user: int, path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISLNK(status.st_mode) and status.st_uid == user


def _writer(path: str, allowed: int | None) -> StoreError | None:
    """Returns what ``writer_of`` says of PATH itself."""
    try:
        if os.geteuid() == 0 and allowed == 0:
            rights.only_roots(path)
            return None
        user = rights.owner(path)
    except StoreError as error:
        return error
    if allowed is None or user in (0, os.geteuid(), allowed):
        return None
    return StoreError(f"{path}: is {rights.user_name(user)}'s", f"chown -h root {quote(path)}")
