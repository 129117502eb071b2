"""Reads from /proc the processes that run qmail-smtpd: what they pass on to each check.

Interface: ``services``. It reads what it may, and never blocks.
"""

import os
import pwd
import re
import struct
from collections.abc import Container
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from greycheck.hooks import every
from greycheck.privilege.access import acting_as
from greycheck.privilege.files import read

SERVERS = ("tcpserver", "sslserver", "tcpsvd")
SESSION = "qmail-smtpd"

# How many bytes of a rules file (tcprules' cdb) are read.
RULES_FILE = 16_000_000

# How many bytes of a file in /proc are read.
SHOWN = 4_000_000

# The most different services that users other than root may have here: each may be as large as what
# is read.
MOST = 20

# The most values of hooks that are kept from rules; and the most slots of a cdb in which the rule
# for everybody is searched.
VALUES, SLOTS = 100, 1000

HOOK_VARIABLES = tuple(variable for hook in every() for variable in hook.SWITCHES)

# Other variables that are kept: who is not checked, and which launcher qmail-checkenv.sh runs.
KEPT = (*HOOK_VARIABLES, b"RELAYCLIENT", b"CHECKENV_PROGRAM")

# A variable that a rule sets for its clients, as tcprules compiles it.
SET = re.compile(rb"\+(" + b"|".join(map(re.escape, HOOK_VARIABLES)) + rb")=([^\0]*)\0")

# Addresses at which a server serves this host only.
LOOPBACK = re.compile(rb"127\.[0-9.]+|::1|localhost")

Pairs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Service:
    """A process that passes its environment and its limits on to greycheck.

    ``memory`` is its soft limit in bytes, None for unlimited or unknown. ``environ`` has only
    variables that matter here, and is None if it cannot be read. ``rules`` are the variables of
    hooks that tcpserver's rules set for any client, ``rule`` those that the rule for everybody
    sets. ``is_local`` is true if it listens to this host only.
    """

    pid: int
    name: str
    uid: int
    memory: int | None
    environ: Pairs | None
    rules: Pairs = ()
    rule: Pairs = ()
    is_local: bool = False

    @property
    def usual(self) -> dict[bytes, bytes]:
        """The environment of a client that has no rule of its own."""
        return dict((self.environ or ()) + self.rule)

    @property
    def shown(self) -> str:
        """Its name and number."""
        return f"{self.name} ({self.pid})"


def services(
    proc: Path, trusted: Container[int], account: pwd.struct_passwd | None
) -> list[Service]:
    """Returns the processes in PROC that run qmail-smtpd, one of each kind.

    Many sessions of one server are one kind. Users other than root have at most MOST kinds. Of
    processes of users who are not TRUSTED only name and user are returned: they can take any name.
    Files that other processes name are read as ACCOUNT; root does not read them without one.
    """
    alike: dict[Service, Service] = {}
    for directory in sorted(
        (path for path in proc.glob("[0-9]*") if path.name.isdecimal()),
        key=lambda path: int(path.name),
    ):
        try:
            service = read_service(directory, trusted, account)
        except OSError:
            continue  # it has ended meanwhile, or is hidden
        if service and (service.uid == 0 or len(alike) < MOST):
            alike.setdefault(replace(service, pid=0), service)
    return list(alike.values())


def read_service(
    directory: Path, trusted: Container[int], account: pwd.struct_passwd | None
) -> Service | None:
    """Returns the process in DIRECTORY if it is a qmail-smtpd or a server that runs one.

    Raises OSError if it has ended. TRUSTED and ACCOUNT are as for ``services``.
    """
    arguments = read(directory / "cmdline", SHOWN).split(b"\0")[:-1]
    programs = [os.fsdecode(argument.rpartition(b"/")[2]) for argument in arguments]
    if SESSION not in programs or programs[0] not in (*SERVERS, SESSION):
        return None
    uid = user(directory)
    if uid not in trusted:
        return Service(int(directory.name), programs[0], uid, None, None)
    rules = rules_file(directory, arguments, account)
    return Service(
        int(directory.name),
        programs[0],
        uid,
        soft_limit((directory / "limits").read_text()),
        environment(directory),
        rules_variables(rules),
        kept(rule_for_everybody(rules)),
        any(map(LOOPBACK.fullmatch, arguments)),
    )


def user(directory: Path) -> int:
    """Returns the real user of the process in DIRECTORY, who started it.

    The owner of the directory is not enough: a process that cannot be dumped seems to be root's.
    """
    try:
        match = re.search(rb"^Uid:\s+([0-9]+)", read(directory / "status", SHOWN), re.MULTILINE)
    except FileNotFoundError:
        match = None
    return int(match.group(1)) if match else directory.stat().st_uid


def soft_limit(limits: str) -> int | None:
    """Returns the soft limit of the address space in bytes; None if there is none.

    LIMITS is the text of /proc/PID/limits.
    """
    match = re.search(r"^Max address space +([0-9]+) ", limits, re.MULTILINE)
    return int(match.group(1)) if match else None


def environment(directory: Path) -> Pairs | None:
    """Returns what matters here of the environment of the process in DIRECTORY.

    Returns None if it cannot be read.
    """
    try:
        return kept(read(directory / "environ", SHOWN))
    except PermissionError:
        return None


def kept(text: bytes) -> Pairs:
    """Returns what matters here of the environment TEXT."""
    pairs = (pair.partition(b"=")[::2] for pair in text.split(b"\0"))
    return tuple(
        sorted(
            (name, value) for name, value in pairs if name in KEPT or name.startswith(b"GREYCHECK")
        )
    )


def rules_file(directory: Path, arguments: list[bytes], account: pwd.struct_passwd | None) -> bytes:
    """Returns the contents of a tcpserver's rules file (``-x cdb``); empty if it cannot be read.

    ACCOUNT is as for ``services``.
    """
    path = next((value for argument, value in pairwise(arguments) if _takes_rules(argument)), None)
    if path is None or (account is None and os.geteuid() == 0):
        return b""
    try:
        # Only the process's owner may follow the link itself.
        place = (directory / "cwd").readlink()
        with acting_as(account):
            return read(place / os.fsdecode(path), RULES_FILE)
    except OSError:
        return b""


def _takes_rules(argument: bytes) -> bool:
    return argument.startswith(b"-") and argument.endswith(b"x") and argument[1:].isalnum()


def rules_variables(rules: bytes) -> Pairs:
    """Returns what RULES set hooks to, for any client; at most VALUES of them."""
    variables: dict[tuple[bytes, bytes], None] = {}
    for match in SET.finditer(rules):
        variables[match[1], match[2]] = None
        if len(variables) == VALUES:
            break
    return tuple(variables)


# The hash of the empty key in a cdb.
EMPTY = 5381


def rule_for_everybody(rules: bytes) -> bytes:
    """Returns the environment that RULES, a cdb, give to clients without a rule of their own.

    It is the value of the empty key.
    """
    try:
        table, slots = struct.unpack_from("<II", rules, EMPTY % 256 * 8)
        for number in range(min(slots, SLOTS)):
            hashed, place = struct.unpack_from(
                "<II", rules, table + (EMPTY // 256 + number) % slots * 8
            )
            if place == 0:
                break
            key, data = struct.unpack_from("<II", rules, place)
            if hashed == EMPTY and key == 0:
                text = rules[place + 8 : place + 8 + data]
                return b"\0".join(each[1:] for each in text.split(b"\0") if each.startswith(b"+"))
    except struct.error:
        pass  # it is no cdb, or longer than what was read
    return b""
