"""Launchers tried before they are trusted, as the user who will run them."""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from time import time

import click

from greycheck.envelope import Envelope
from greycheck.hooks import calling
from greycheck.launchers import database, native
from greycheck.launchers.python import interpreter, package
from greycheck.policy import DEFER, Verdict
from greycheck.privilege import apart
from greycheck.privilege.access import as_account, barriers, can_act_as, run_as
from greycheck.settings import Settings, read
from greycheck.store.schema import migrate

# The user that qmail-smtpd runs as, on every qmail.
QMAIL_USER = "qmaild"


def behind(paths: list[Path]) -> list[Path]:
    """Where the launchers in Python are that stand behind those in C at PATHS."""
    return [path.parent / native.BEHIND / path.name for path in paths]


def command(directory: Path, user: str | None, in_c: bool) -> str:
    """Returns the command that installs into DIRECTORY, for USER if given, in C if IN_C."""
    options = "--native " * in_c + (f"--user {shlex.quote(user)} " if user else "")
    return f"greycheck install {options}{shlex.quote(str(directory))}"


def find_account(user: str | None) -> pwd.struct_passwd | None:
    """The account of USER, or qmail's where it exists."""
    try:
        return pwd.getpwnam(user or QMAIL_USER)
    except KeyError:
        if user:
            raise click.ClickException(f"{user}: no such user") from None
        return None


# The envelope of a trial, from an address of documentation (RFC 5737).
CLIENT = "192.0.2.1"
PARTS = {"client": CLIENT.encode(), "sender": b"", "recipient": b""}

# How much of what a trial prints is looked at: the words are the settings'.
PRINTED = 6

# How long a trial may take, in seconds.
TRIAL_TIME = 30

# How the directory of a trial is called; after how many seconds none works in it any more, and how
# many that are left are looked at.
PREFIX = "greycheck-trial-"
LEFT, MOST = 3600, 1000


def try_run(path: Path, account: pwd.struct_passwd | None = None) -> str:
    """Lets the launcher PATH defer a mail, with a store of its own.

    Returns what is wrong, or nothing. All of it is done as ACCOUNT, if given: what that user owns
    it may exchange at any moment.
    """
    return str(
        apart.as_user(account.pw_uid if account else 0, lambda: _try_run(path, as_account(account)))
    )


def _try_run(path: Path, whose: str) -> str:
    """Lets the launcher PATH defer a mail; returns what is wrong. WHOSE says as whom."""
    hook = calling.of_program(path.name)
    argv, environ = calling.call(hook, PARTS)
    deferral = Verdict(DEFER, "new")
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null"})
    printed = calling.reply(hook, deferral, Envelope(hook.NAME, CLIENT, b"", b""), settings)
    _remove_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        migrate.upgrade(f"sqlite:///{directory}/greycheck.db")
        try:
            ran = subprocess.run(
                [path, *argv[1:]],
                # Nothing of the site's, a store of its own, and no resident.
                env=environ
                | {
                    b"GREYCHECK_CONFIG": b"/dev/null",
                    b"GREYCHECK_DATABASE": os.fsencode(f"{directory}/greycheck.db"),
                    b"GREYCHECK_SOCKET": os.fsencode(f"{directory}/socket"),
                },
                capture_output=True,
                timeout=TRIAL_TIME,
                check=False,
                cwd="/",
                **run_as(None),  # type: ignore[call-overload]
            )
        except OSError as error:
            return f"{path}: does not run{whose}: {error.strerror}"
        except subprocess.TimeoutExpired:
            return f"{path}: does not end{whose} within {TRIAL_TIME}s"
    said = ran.stderr.decode(errors="replace").strip()
    is_deferral = (ran.returncode, ran.stdout[:PRINTED]) == (hook.ANSWERS[DEFER], printed[:PRINTED])
    if is_deferral and "defer reason=new" in said:
        return ""
    return f"{path}: does not run{whose}: exit code {ran.returncode}: {said}"


def _remove_left() -> None:
    """Removes this user's directories of trials that were killed."""
    over = time() - LEFT
    for path in islice(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"), MOST):
        with suppress(OSError):
            status = path.lstat()
            if status.st_uid == os.geteuid() and status.st_mtime < over:
                shutil.rmtree(path, ignore_errors=True)  # follows no link


def check_as(account: pwd.struct_passwd, paths: list[Path], settings: Settings) -> list[str]:
    """Returns what keeps ACCOUNT from running the launchers PATHS under SETTINGS.

    They are run as that user, which only root can do.
    """
    if not can_act_as(account):
        return [
            f"whether {account.pw_name} can run this is not known: run greycheck install as root,"
            f" or as {account.pw_name}"
        ]
    complaints = unreachable(account, paths, settings)
    return complaints or [complaint for path in paths if (complaint := try_run(path, account))]


def unreachable(account: pwd.struct_passwd, paths: list[Path], settings: Settings) -> list[str]:
    """Returns what ACCOUNT cannot reach of what a check by the launchers PATHS needs.

    This process must be able to act as that user.
    """
    return [one.message(account.pw_name) for one in barriers(needed(paths, settings), account)]


def needed(paths: list[Path], settings: Settings) -> list[tuple[Path, int]]:
    """What a check by the launchers PATHS needs, and how."""
    every = [
        (path, os.R_OK | os.X_OK) for path in (Path(interpreter()), Path(sys.executable), *paths)
    ]
    every += [(package() / "child.py", os.R_OK), *database.needed(settings)]
    store = migrate.sqlite_path(settings.database)
    if store:
        every += [(store.parent, os.R_OK | os.W_OK | os.X_OK)]
        files = [store.with_name(store.name + suffix) for suffix in ("", "-wal", "-shm")]
        every += [(file, os.R_OK | os.W_OK) for file in files if os.access(file, os.F_OK)]
    return every


def try_database(
    path: Path, account: pwd.struct_passwd | None, settings: Settings, again: str
) -> list[str]:
    """Returns what keeps the launcher PATH from using its server database.

    Root asks as ACCOUNT. Empty for an SQLite file. AGAIN is the command that was run.
    """
    asked = settings.database.server
    if asked is None:
        return []
    complaints = database.complaints(asked, settings, account, again) or [
        database.try_server(path, account, settings)
    ]
    complaints += [
        database.state_complaint(settings, account),
        *database.exposures(settings, account).values(),
    ]
    return [complaint for complaint in complaints if complaint]
