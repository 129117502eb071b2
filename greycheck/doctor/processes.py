"""The processes that run qmail-smtpd, as /proc shows them: what they hand on to each check.

Interface: ``services``. It reads what it may, and never waits for anybody.
"""

import os
import pwd
import re
import struct
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

# How many values of hooks are kept that rules have, and among how many slots of a cdb the rule for everybody is looked for.
VALUES, SLOTS = 100, 1000

HOOK_VARIABLES = (b"SMTPEXTFORK", b"SMTPEXTFORKR", b"CHECKENV", b"RCPTCHECK")

# What besides is kept of an environment: who is not checked, and which launcher qmail-checkenv.sh runs.
KEPT = (*HOOK_VARIABLES, b"RELAYCLIENT", b"CHECKENV_PROGRAM")

# A variable that a rule sets for its clients, as tcprules compiles it.
SET = re.compile(rb"\+(" + b"|".join(HOOK_VARIABLES) + rb")=([^\0]*)\0")

# Where a server listens that serves this host alone.
LOOPBACK = re.compile(rb"127\.[0-9.]+|::1|localhost")

Pairs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Service:
    """A process that gives greycheck its environment and its limits.

    ``memory`` is its soft limit in bytes, None for unlimited or unknown; ``environ`` is None where it cannot be read, and holds only
    what matters here. ``rules`` is what hooks are set to by rules of tcpserver, for whatever clients, ``rule`` what the rule for
    everybody sets; ``is_local`` is whether it listens to this host alone.
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
        """What a client has in its environment for whom there is no rule of his own."""
        return dict((self.environ or ()) + self.rule)

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


def environment(directory: Path) -> Pairs | None:
    """What matters here of the environment of the process shown in DIRECTORY; None where it cannot be read."""
    try:
        return kept(read(directory / "environ", SHOWN))
    except PermissionError:
        return None


def kept(text: bytes) -> Pairs:
    """What matters here of the environment TEXT."""
    pairs = (pair.partition(b"=")[::2] for pair in text.split(b"\0"))
    return tuple(sorted((name, value) for name, value in pairs if name in KEPT or name.startswith(b"GREYCHECK")))


def rules_file(directory: Path, arguments: list[bytes], account: pwd.struct_passwd | None) -> bytes:
    """What is in the rules file of a tcpserver (``-x cdb``); nothing where it cannot be read. ACCOUNT as for ``services``."""
    path = next((value for argument, value in pairwise(arguments) if _takes_rules(argument)), None)
    if path is None or (account is None and os.geteuid() == 0):
        return b""
    try:
        # The link itself may be passed by the process's owner alone.
        place = (directory / "cwd").readlink()
        with acting_as(account):
            return read(place / os.fsdecode(path), RULES_FILE)
    except OSError:
        return b""


def _takes_rules(argument: bytes) -> bool:
    return argument.startswith(b"-") and argument.endswith(b"x") and argument[1:].isalnum()


def rules_variables(rules: bytes) -> Pairs:
    """What the RULES set hooks to, for whatever clients; VALUES of them at most."""
    found: dict[tuple[bytes, bytes], None] = {}
    for match in SET.finditer(rules):
        found[match[1], match[2]] = None
        if len(found) == VALUES:
            break
    return tuple(found)


# The hash of the empty key in a cdb.
EMPTY = 5381


def rule_for_everybody(rules: bytes) -> bytes:
    """The environment that the RULES, a cdb, give to clients for whom there is no other rule: the empty key's."""
    try:
        table, slots = struct.unpack_from("<II", rules, EMPTY % 256 * 8)
        for number in range(min(slots, SLOTS)):
            found, place = struct.unpack_from("<II", rules, table + (EMPTY // 256 + number) % slots * 8)
            if place == 0:
                break
            key, data = struct.unpack_from("<II", rules, place)
            if found == EMPTY and key == 0:
                text = rules[place + 8 : place + 8 + data]
                return b"\0".join(each[1:] for each in text.split(b"\0") if each.startswith(b"+"))
    except struct.error:
        pass  # it is no cdb, or longer than what was read
    return b""
