"""Finds out what the user that runs checks may do, and what others may not."""

import ctypes
import grp
import os
import pwd
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from greycheck.store.schema import migrate


def account_of(user: int) -> pwd.struct_passwd:
    """Returns the account with number USER.

    Without such an account, returns one whose name and group are that number.
    """
    try:
        return pwd.getpwuid(user)
    except KeyError:
        return pwd.struct_passwd((str(user), "x", user, user, "", "/", ""))


def can_act_as(account: pwd.struct_passwd) -> bool:
    """True if this process can find out what ACCOUNT may do."""
    return os.geteuid() in (0, account.pw_uid)


@contextmanager
def acting_as(account: pwd.struct_passwd | None) -> Iterator[None]:
    """Runs the block with the effective user, group and groups of ACCOUNT.

    Changes nothing if ACCOUNT is None, or if this process is not root's.
    """
    if account is None or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    group = os.getegid()
    os.setgroups([])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def run_as(account: pwd.struct_passwd | None) -> dict[str, object]:
    """Returns the arguments by which ``subprocess.run`` runs a program as ACCOUNT.

    Without root's rights they do not change the user. The program has no access to root's terminal,
    so that it cannot type into it. It does not outlive this process.
    """
    apart: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
        "preexec_fn": die_with_parent,
    }
    if account is None or os.geteuid() != 0:
        return apart
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], **apart}


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent is gone, as one that is killed itself.

    For a process that was just forked, and has changed its user: a later change would undo it.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# linux/prctl.h
PR_SET_PDEATHSIG = 1


def as_account(account: pwd.struct_passwd | None) -> str:
    """Returns " as" and the name of ACCOUNT, for a message; empty for None."""
    return f" as {account.pw_name}" if account else ""


def barrier(path: Path, wanted: int, user: str) -> str:
    """Returns in words what keeps the effective user, called USER, from PATH; empty for nothing.

    WANTED is what is to be done with PATH, as for os.access.
    """
    place = barred(path, wanted)
    return Barrier(place, ((path, wanted),)).message(user) if place else ""


def barred(path: Path, wanted: int) -> Path | None:
    """Returns the first directory on the way to PATH that the effective user cannot pass.

    Returns PATH itself if WANTED, as for os.access, is not allowed there; None if nothing is
    closed.
    """
    for parent in reversed(path.parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            return parent
    return None if os.access(path, wanted, effective_ids=True) else path


@dataclass(frozen=True)
class Barrier:
    """A PLACE that is closed to a user, and the paths that NEEDED it, each with the access wanted.

    The access is as for os.access. A path is PLACE itself, or is behind it.
    """

    place: Path
    needed: tuple[tuple[Path, int], ...]

    @property
    def wanted(self) -> int:
        """The access wanted to the place itself; 0 if it is only on the way."""
        return next((wanted for path, wanted in self.needed if path == self.place), 0)

    def message(self, user: str) -> str:
        """Returns a message that the place is closed to USER."""
        if self.wanted:
            return (
                f"{user} cannot {'write' if self.wanted & os.W_OK else 'read'}"
                f" {describe(self.place)}"
            )
        more = f" and {len(self.needed) - 1} more" if len(self.needed) > 1 else ""
        return (
            f"{user} may not enter {describe(self.place)} on the way to {self.needed[0][0]}{more}"
        )


def barriers(needed: Iterable[tuple[Path, int]], account: pwd.struct_passwd) -> list[Barrier]:
    """Returns the places that keep ACCOUNT from the NEEDED paths, each place once.

    NEEDED are paths, each with the access wanted, as for os.access.
    """
    by_place: dict[Path, list[tuple[Path, int]]] = {}
    with acting_as(account):
        for path, wanted in needed:
            place = barred(path, wanted)
            if place:
                by_place.setdefault(place, []).append((path, wanted))
    every = [Barrier(place, tuple(behind)) for place, behind in by_place.items()]
    # Without write access to a directory there is none to the files in it: one message is enough.
    return [one for one in every if not (one.wanted & os.W_OK and one.place.parent in by_place)]


def describe(path: Path) -> str:
    """Returns PATH with its mode and owner, for a message."""
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} ({error.strerror})"
    return f"{path} (mode {status.st_mode & 0o7777:04o}, owner {migrate.user_name(status.st_uid)})"


def exposure(path: Path, account: pwd.struct_passwd | None) -> str:
    """Returns which users can read the password in the file PATH although they should not.

    Root, the owner and the group of ACCOUNT may. Empty if nobody else can.
    """
    try:
        status = path.stat()
        closed = not all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)
    except OSError:
        return ""
    if status.st_mode & 0o004 and not closed:
        return f"any user can read the password in {describe(path)}"
    if status.st_mode & 0o040 and status.st_gid not in (0, account.pw_gid if account else 0):
        return f"the group {group_name(status.st_gid)} can read the password in {describe(path)}"
    return ""


def group_name(gid: int) -> str:
    """Returns the name of group GID, or its number if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
