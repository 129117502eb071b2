"""Who besides root may write what checks and root go by: launchers, what these load, settings, the socket's directory."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from greycheck import settings
from greycheck.cli import install, launcher
from greycheck.doctor import service
from greycheck.doctor.finding import Finding, Installation, run, safe
from greycheck.doctor.launchers import is_compiled, named_interpreter, text_of
from greycheck.store import rights
from greycheck.store.lean import StoreError

# What a launcher in Python names: the package, the places of drivers, the commands' interpreter.
NAMED = re.compile(r"'(/[^'\\]*)'")


def look_at_writers(installation: Installation) -> Iterator[Finding]:
    """What others than root may write of what a check, or root, goes by. Each cause is told once."""
    causes: dict[str, None] = {}
    for path in gone_by(installation):
        causes.setdefault(writer_of(path, 0), None)
    account = installation.account.pw_uid if installation.account else 0
    # He must be able to read that file, and may own it: it says where the store is, as which nobody but him opens it.
    if installation.settings.database_file:
        causes.setdefault(writer_of(installation.settings.database_file, account), None)
    places: list[Finding] = []
    if installation.settings.socket:
        # Its directory is one on the way; one like /tmp is not closed by chmod.
        causes.setdefault(writer_of(installation.settings.socket, None), None)
        places = list(look_at_place(Path(installation.settings.socket).parent))
        yield from places
    causes.pop("", None)
    for cause in causes:
        found, _colon, advice = cause.rpartition(": ")
        yield Finding("warning", "writers", safe(found), run(advice))
    if not causes and not places:
        yield Finding("ok", "writers", "nobody else may write the launchers, what they load, or the settings")


def look_at_place(directory: Path) -> Iterator[Finding]:
    """Whether any user may make a socket in the sticky DIRECTORY, before the resident does."""
    mode = directory.stat().st_mode if directory.is_dir() else 0
    if mode & rights.STICKY and mode & rights.BY_OTHERS:
        found = f"{directory}: any user may put a socket of his own there, and answer in place of the resident"
        yield Finding(
            "warning", "writers", found, "Set socket to a path in a directory of its own: /run/greycheck/socket"
        )


def gone_by(installation: Installation) -> list[str]:
    """The paths that nobody but root may change, or who installed them where this is not root."""
    paths = [installation.directory, *(path for path in installation.programs if os.path.lexists(path))]
    compiled = [path for path in installation.launchers if is_compiled(path)]
    paths += install.behind(compiled)
    named = [str(path) for path in (*paths, launcher.package(), launcher.interpreter())]
    named += [os.environ.get("GREYCHECK_CONFIG", settings.CONFIG_FILE)]
    account = installation.account
    for one in service.services(installation.proc, {0} | ({account.pw_uid} if account else set()), None):
        named.append(os.fsdecode(dict(one.environ or ()).get(b"GREYCHECK_CONFIG", b"")))
    for path in installation.launchers:
        if not is_compiled(path):
            text = text_of(path)
            named += [named_interpreter(text), *NAMED.findall(text)]
    return list(dict.fromkeys(path for path in named if path.startswith("/")))


def writer_of(path: str, allowed: int | None) -> str:
    """Who may write PATH besides root, this user and the one ALLOWED (None: any one), and the command that mends it; or nothing."""
    try:
        if os.geteuid() == 0 and allowed == 0:
            rights.only_roots(path)
            return ""
        user = rights.owner(path)
    except StoreError as error:
        return str(error)
    if allowed is None or user in (0, os.geteuid(), allowed):
        return ""
    return f"{path}: is {rights.user_name(user)}'s: chown -h root {path}"
