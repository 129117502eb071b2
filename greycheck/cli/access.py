"""What the user that qmail runs checks as may do, and what others may not."""

import grp
import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from greycheck.store import schema


def account_of(user: int) -> pwd.struct_passwd:
    """The account of the user of that number; where there is none, what stands for it: a name and a group of the same number."""
    try:
        return pwd.getpwuid(user)
    except KeyError:
        return pwd.struct_passwd((str(user), "x", user, user, "", "/", ""))


def can_act_as(account: pwd.struct_passwd) -> bool:
    """Whether this process can find out what ACCOUNT may do."""
    return os.geteuid() in (0, account.pw_uid)


@contextmanager
def acting_as(account: pwd.struct_passwd | None) -> Iterator[None]:
    """With the effective user, group and groups of ACCOUNT; as who one is where there is none, or one is not root."""
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


def identity(account: pwd.struct_passwd | None) -> dict[str, object]:
    """What ``subprocess.run`` is told to run a program as ACCOUNT, if root asks: without root's terminal, into which he could type."""
    apart: dict[str, object] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
    if account is None or os.geteuid() != 0:
        return apart
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], **apart}


def named(account: pwd.struct_passwd | None) -> str:
    """That something was done as ACCOUNT, for a message."""
    return f" as {account.pw_name}" if account else ""


def barrier(path: Path, wanted: int, user: str) -> str:
    """What stands between the effective USER and PATH: the first directory that cannot be passed, or PATH itself; empty for nothing."""
    place = barred(path, wanted)
    return Barrier(place, ((path, wanted),)).said(user) if place else ""


def barred(path: Path, wanted: int) -> Path | None:
    """The first directory on the way to PATH that the effective user cannot pass, or PATH itself if he cannot do as WANTED; else None."""
    for parent in reversed(path.parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            return parent
    return None if os.access(path, wanted, effective_ids=True) else path


@dataclass(frozen=True)
class Barrier:
    """A PLACE that is closed to somebody, and what he NEEDED behind it or of it: paths, and what he wants of each."""

    place: Path
    needed: tuple[tuple[Path, int], ...]

    @property
    def wanted(self) -> int:
        """What he wants of the place itself; nothing where it is on the way alone."""
        return next((wanted for path, wanted in self.needed if path == self.place), 0)

    def said(self, user: str) -> str:
        """That it is closed to USER."""
        if self.wanted:
            return f"{user} cannot {'write' if self.wanted & os.W_OK else 'read'} {describe(self.place)}"
        more = f" and {len(self.needed) - 1} more" if len(self.needed) > 1 else ""
        return f"{user} may not enter {describe(self.place)} on the way to {self.needed[0][0]}{more}"


def barriers(needed: Iterable[tuple[Path, int]], account: pwd.struct_passwd) -> list[Barrier]:
    """What keeps ACCOUNT from the paths NEEDED, from what he wants of each; once each."""
    found: dict[Path, list[tuple[Path, int]]] = {}
    with acting_as(account):
        for path, wanted in needed:
            place = barred(path, wanted)
            if place:
                found.setdefault(place, []).append((path, wanted))
    every = [Barrier(place, tuple(behind)) for place, behind in found.items()]
    # Who may not write a directory may not write what is in it.
    return [one for one in every if not (one.wanted & os.W_OK and one.place.parent in found)]


def describe(path: Path) -> str:
    """PATH with its mode and owner."""
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} ({error.strerror})"
    return f"{path} (mode {status.st_mode & 0o7777:04o}, owner {schema.user_name(status.st_uid)})"


def exposure(path: Path, account: pwd.struct_passwd | None) -> str:
    """Who besides root, its owner and the group of ACCOUNT can read the password in the file PATH; empty for nobody."""
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
    """The name of group GID, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
