"""The processes that run qmail-smtpd, as /proc shows them: what they hand on to each check.

Interface: ``services``. It reads what it may, and never waits for anybody.
"""

import os
import pwd
import re
from collections.abc import Container
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from greycheck.cli.access import acting_as
from greycheck.cli.files import read

SERVERS = ("tcpserver", "sslserver", "tcpsvd")
SESSION = "qmail-smtpd"

# Bytes of a rules file (tcprules' cdb) that are looked through.
RULES_FILE = 16_000_000

# Bytes that are read of a file in /proc.
SHOWN = 4_000_000

# How many kinds of services are kept where others than root started them: each may hold as much as is read.
MOST = 20

HOOK_VARIABLES = (b"SMTPEXTFORK", b"SMTPEXTFORKR", b"CHECKENV", b"RCPTCHECK")


@dataclass(frozen=True)
class Service:
    """A process that gives greycheck its environment and its limits.

    ``memory`` is its soft limit in bytes, None for unlimited or unknown; ``environ`` is None where it cannot be read, and holds only
    what matters here; ``rules`` is what of that the rules of tcpserver set for some client.
    """

    pid: int
    name: str
    uid: int
    memory: int | None
    environ: tuple[tuple[bytes, bytes], ...] | None
    rules: tuple[bytes, ...] = ()

    @property
    def shown(self) -> str:
        """Its name and number."""
        return f"{self.name} ({self.pid})"


def services(proc: Path, trusted: Container[int], account: pwd.struct_passwd | None) -> list[Service]:
    """What runs qmail-smtpd, by PROC; one of each kind, many sessions of one server being alike. Others than root have MOST kinds.

    Of processes of users that are not TRUSTED nothing but name and user is told: they may call themselves what they like. Files that
    the others name are read as ACCOUNT; by root without one, they are not read.
    """
    alike: dict[Service, Service] = {}
    for directory in sorted(
        (path for path in proc.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name)
    ):
        try:
            service = read_service(directory, trusted, account)
        except OSError:
            continue  # it has ended meanwhile, or is hidden
        if service and (service.uid == 0 or len(alike) < MOST):
            alike.setdefault(replace(service, pid=0), service)
    return list(alike.values())


def read_service(directory: Path, trusted: Container[int], account: pwd.struct_passwd | None) -> Service | None:
    """The process shown in DIRECTORY, if it is a qmail-smtpd or a server that runs one. Raises OSError where it has ended.

    TRUSTED and ACCOUNT as for ``services``.
    """
    arguments = read(directory / "cmdline", SHOWN).split(b"\0")[:-1]
    programs = [os.fsdecode(argument.rpartition(b"/")[2]) for argument in arguments]
    if SESSION not in programs or programs[0] not in (*SERVERS, SESSION):
        return None
    uid = user(directory)
    if uid not in trusted:
        return Service(int(directory.name), programs[0], uid, None, None)
    return Service(
        int(directory.name),
        programs[0],
        uid,
        soft_limit((directory / "limits").read_text()),
        environment(directory),
        rules_variables(directory, arguments, account),
    )


def user(directory: Path) -> int:
    """Who started the process shown in DIRECTORY: its real user. What cannot be dumped is shown as root's, whoever started it."""
    try:
        found = re.search(rb"^Uid:\s+([0-9]+)", read(directory / "status", SHOWN), re.MULTILINE)
    except FileNotFoundError:
        found = None
    return int(found.group(1)) if found else directory.stat().st_uid


def soft_limit(limits: str) -> int | None:
    """The soft limit of the address space in bytes, from the text of /proc/PID/limits; None where there is none."""
    found = re.search(r"^Max address space +([0-9]+) ", limits, re.MULTILINE)
    return int(found.group(1)) if found else None


def environment(directory: Path) -> tuple[tuple[bytes, bytes], ...] | None:
    """What matters here of the environment of the process shown in DIRECTORY; None where it cannot be read."""
    try:
        text = read(directory / "environ", SHOWN)
    except PermissionError:
        return None
    pairs = (pair.partition(b"=")[::2] for pair in text.split(b"\0"))
    return tuple(
        sorted((name, value) for name, value in pairs if name in HOOK_VARIABLES or name.startswith(b"GREYCHECK"))
    )


def rules_variables(directory: Path, arguments: list[bytes], account: pwd.struct_passwd | None) -> tuple[bytes, ...]:
    """The hooks that the rules file of a tcpserver (``-x cdb``) switches on for some client. ACCOUNT as for ``services``."""
    path = next((value for argument, value in pairwise(arguments) if _takes_rules(argument)), None)
    if path is None or (account is None and os.geteuid() == 0):
        return ()
    try:
        # The link itself may be passed by the process's owner alone.
        place = (directory / "cwd").readlink()
        with acting_as(account):
            text = read(place / os.fsdecode(path), RULES_FILE)
    except OSError:
        return ()
    return tuple(name for name in HOOK_VARIABLES if b"+" + name + b"=" in text)


def _takes_rules(argument: bytes) -> bool:
    return argument.startswith(b"-") and argument.endswith(b"x") and argument[1:].isalnum()
