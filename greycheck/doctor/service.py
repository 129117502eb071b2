"""Examines the qmail-smtpd that runs now: its memory, its user, its hooks, its settings."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from greycheck import settings
from greycheck.doctor.finding import MB, Finding, Installation, is_roots, run, safe
from greycheck.doctor.launchers import HOOKS, installing, lifts_limits, run_by_script
from greycheck.doctor.processes import HOOK_VARIABLES, SESSION, Service, services
from greycheck.hooks import checkenv
from greycheck.hooks.record import HOME, LIST, PLUGIN, Hook
from greycheck.privilege import access, files
from greycheck.store import drivers
from greycheck.store.schema import migrate

# Bytes of address space (softlimit -m) for a check with an SQLite file: what was measured, on
# Debian 13, where it is more than on 12, and with some reserve. A driver has those of its record.
SQLITE_MEMORY = 17_300_000, 18_000_000

# Where CHECKENV looks for its program, unless qmail was built for another directory.
QMAIL_HOME = Path("/var/qmail")

# How many programs of SMTPEXTFORK are examined.
PROGRAMS = 20

# A directory that is safe in a command that root pastes.
PLAIN = re.compile(r"/[A-Za-z0-9/._+-]+")

# How many bytes of qmail-spp's list of programs are read.
PLUGINS = 1_000_000

# The hook that each variable of a mail server switches on; and the hooks whose program is a plugin.
SWITCHES = {variable: hook for hook in HOOKS.values() for variable in hook.SWITCHES}
PLUGGED = [hook for hook in HOOKS.values() if hook.RUNS == PLUGIN]


def check_services(installation: Installation) -> Iterator[Finding]:
    """Yields findings on the qmail-smtpd that runs now: its memory, its environment."""
    account = installation.account
    trusted = {0, os.geteuid()} | ({account.pw_uid} if account else set())
    acting = installation.known_account
    found = services(installation.proc, trusted, acting)
    if not found:
        yield Finding(
            "note", "service", "no tcpserver with qmail-smtpd is running, as far as can be seen"
        )
        return
    for service in found:
        yield from check_user(service, installation)
        if service.uid not in trusted:
            continue
        yield check_memory(service, installation)
        if service.environ is None:
            unknown = (
                f"{service.shown}: its environment cannot be read by"
                f" {migrate.user_name(os.geteuid())}"
            )
            yield Finding(
                "note", "service", unknown, "Run: sudo greycheck doctor" if os.geteuid() else ""
            )
            continue
        if acting is None and os.geteuid() == 0:
            unread = (
                f"{service.shown}: what it names is not looked at: root reads it as the"
                " user of checks alone"
            )
            yield Finding(
                "note", "service", unread, "Say which user qmail-smtpd runs as: --user NAME"
            )
            continue
        # The user that started it chose these paths: they are read only with that user's rights.
        with access.acting_as(acting):
            findings = [*check_hooks(service, installation), *check_relaying(service)]
            findings += check_environment(service, service.usual, installation)
        yield from findings


def check_memory(service: Service, installation: Installation) -> Finding:
    """Finds out if the soft limit of SERVICE is enough for a check."""
    if service.memory is None:
        return Finding("ok", "memory", f"{service.shown}: no soft limit")
    text = f"{service.shown}: soft limit {service.memory / MB:.1f} MB"
    needed, advised = SQLITE_MEMORY
    if installation.driver and installation.driver.name:
        record = drivers.RECORDS[installation.driver.name]
        needed, advised = record.needed, record.advised
    advice = f"Give it {advised / MB:.0f} MB at least: softlimit -m {advised + 2 * MB}"
    if service.memory >= advised:
        return Finding("ok", "memory", text)
    directories = (installation.directory, QMAIL_HOME / "bin")
    scripts = [directory / checkenv.PROGRAM for directory in directories]
    if any(map(lifts_limits, scripts)) and b"SMTPEXTFORK" not in dict(service.environ or ()):
        return Finding("note", "memory", f"{text}, which qmail-checkenv.sh lifts")
    if service.memory >= needed:
        return Finding("warning", "memory", f"{text}: {needed / MB:.1f} MB are just enough", advice)
    stops = (
        f"{text}, a check needs {needed / MB:.1f}: SMTPEXTFORK accepts all mail, CHECKENV stops all"
    )
    return Finding("fault", "memory", stops, advice)


def check_user(service: Service, installation: Installation) -> Iterator[Finding]:
    """Yields a warning if SERVICE does not run as the user whose permissions were examined.

    root is right: it still changes to another user.
    """
    account = installation.account
    if account is None or service.uid in (0, account.pw_uid):
        return
    user = migrate.user_name(service.uid)
    text = f"{service.shown} runs as {user}, permissions were looked at for {account.pw_name}"
    yield Finding(
        "warning",
        "service",
        text,
        f"If it serves mail, run: greycheck doctor --user {shlex.quote(user)}",
    )


def check_hooks(service: Service, installation: Installation) -> Iterator[Finding]:
    """Yields which hooks SERVICE has switched on, for any client, and if their programs exist."""
    values = list(dict.fromkeys((*(service.environ or ()), *service.rule, *service.rules)))
    names = [name.decode() for name in HOOK_VARIABLES if name in dict(values)]
    plugins = plugins_of(QMAIL_HOME)
    names += [hook.TITLE for hook in PLUGGED if any(hook.PROGRAM in plugin for plugin in plugins)]
    if not names and service.name == SESSION:
        return
    if not names:
        known = ", ".join(hook.SWITCHES[0].decode() for hook in HOOKS.values() if hook.SWITCHES)
        text = f"{service.shown}: no hook's variable ({known}) in its environment or its rules"
        yield Finding(
            "warning", "service", text, "Switch one on, for tcpserver in the rules or with envdir."
        )
        return
    yield Finding("ok", "service", f"{service.shown}: {', '.join(names)} switched on")
    yield from check_lists(service, installation)
    missing = [
        Missing(hook, hook.TITLE, each, hook.IF_MISSING) for hook in PLUGGED for each in plugins
    ]
    for name, value in values:
        missing += programs_of(name, value, installation)
    if not dict(values).keys().isdisjoint(checkenv.SWITCHES):
        missing += run_by_checkenv(service.usual.get(b"CHECKENV_PROGRAM", b""), installation)
    gone = [one for one in dict.fromkeys(missing) if is_gone(one.program)]
    for one in gone[:PROGRAMS]:
        text = f"{service.shown}: {one.by}: {safe(one.program)}: no such program: {one.end}"
        yield Finding("fault", "service", text, one.advice(installation))


def check_lists(service: Service, installation: Installation) -> Iterator[Finding]:
    """Yields a warning if none of the programs that SERVICE lists for a hook is a launcher."""
    targets = set(map(os.path.realpath, installation.programs))
    for hook in HOOKS.values():
        if hook.RUNS != LIST:
            continue
        variable = hook.SWITCHES[0]
        programs = [program for program in listed(service.usual.get(variable, b"")) if program]
        if programs and not any(os.path.realpath(program) in targets for program in programs):
            text = f"{service.shown}: {variable.decode()} names {safe(', '.join(programs))}"
            launcher = installation.directory / hook.PROGRAM
            advice = f"Let it name {launcher}, or name its place: --dir"
            yield Finding("warning", "service", text, advice)


@dataclass(frozen=True)
class Missing:
    """A PROGRAM of HOOK that is named BY a variable or a file; END is what happens without it."""

    hook: Hook
    by: str
    program: str
    end: str

    def advice(self, installation: Installation) -> str:
        """Returns what to do if the program does not exist."""
        directory, _slash, name = self.program.rpartition("/")
        # The user that started the server chose the path: it may be in a directory of his.
        is_safe = not installation.for_root or is_roots(Path(directory))
        if name in HOOKS and PLAIN.fullmatch(directory) and is_safe:
            make = "" if Path(directory).is_dir() else f"mkdir -p {shlex.quote(directory)} && "
            return run(f"{make}{installing(installation, Path(directory))}")
        return f"Let {self.by} name {installation.directory}/{self.hook.PROGRAM}"


def listed(value: bytes) -> list[str]:
    """Returns the programs of the list VALUE, at most PROGRAMS."""
    return [os.fsdecode(program) for program in value.split(b",", PROGRAMS)[:PROGRAMS]]


def programs_of(variable: bytes, value: bytes, installation: Installation) -> list[Missing]:
    """Returns the programs that a hook runs if VARIABLE has VALUE; none for other variables."""
    hook = SWITCHES.get(variable)
    if hook is None:
        return []
    if hook.RUNS == HOME:
        programs = [str(program_at_home(hook, installation))]
    else:
        programs = listed(value) if hook.RUNS == LIST else [os.fsdecode(value)]
    return [Missing(hook, variable.decode(), program, hook.IF_MISSING) for program in programs]


def run_by_checkenv(named: bytes, installation: Installation) -> list[Missing]:
    """Returns what qmail-checkenv.sh runs, if that is CHECKENV's program.

    It is the program NAMED by the environment, or else the one named in the script.
    """
    program = program_at_home(checkenv, installation)
    if not lifts_limits(program):
        return []
    run_by_it = os.fsdecode(named) or run_by_script(program)
    return [Missing(checkenv, checkenv.TITLE, run_by_it, "nothing is checked")]


def program_at_home(hook: Hook, installation: Installation) -> Path:
    """Returns the program of HOOK in qmail's home; else that among INSTALLATION's launchers."""
    directory = QMAIL_HOME / "bin"
    return (directory if directory.is_dir() else installation.directory) / hook.PROGRAM


def is_gone(program: str) -> bool:
    """True if PROGRAM is a whole path, and does not exist for the effective user."""
    is_path = program.startswith("/") and " " not in program
    return is_path and not os.access(program, os.F_OK, effective_ids=True)


def check_relaying(service: Service) -> Iterator[Finding]:
    """Yields a fault if SERVICE takes every client for a relay client.

    A single session may be a relay client's, and a server for this host only has no other clients.
    """
    if b"RELAYCLIENT" not in service.usual or service.name == SESSION or service.is_local:
        return
    where = (
        "the rule for everybody sets"
        if b"RELAYCLIENT" in dict(service.rule)
        else "its environment has"
    )
    text = (
        f"{service.shown}: {where} RELAYCLIENT: nothing is checked, and anybody may send"
        " mail to anywhere by this host"
    )
    advice = 'Set it in rules for your own networks alone: 127.:allow,RELAYCLIENT=""'
    yield Finding("fault", "service", text, advice)


def plugins_of(home: Path) -> list[str]:
    """Returns the programs that qmail-spp runs, with qmail's home in HOME."""
    try:
        lines = os.fsdecode(files.read(home / "control" / "smtpplugins", PLUGINS)).split("\n")
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip() and line[0] not in "#["]


def check_environment(
    service: Service, environ: dict[bytes, bytes], installation: Installation
) -> Iterator[Finding]:
    """Yields settings of SERVICE that differ from those of this process."""
    theirs = settings.read(environ)
    mine = installation.settings
    for problem in theirs.problems:
        if problem not in mine.problems:
            yield Finding(
                "warning",
                "service",
                f"{service.shown}: {safe(problem)}",
                "Mend it where the service starts.",
            )
    if theirs.off:
        text = f"{service.shown}: GREYCHECK=off: nothing is checked"
        yield Finding(
            "note" if service.name == SESSION else "fault",
            "service",
            text,
            "Set it for single clients only.",
        )
    if theirs.mode != mine.mode:
        yield Finding(
            "note", "service", f"{service.shown}: mode = {theirs.mode}, here it is {mine.mode}"
        )
    if theirs.database != mine.database:
        yield Finding(
            "warning",
            "service",
            f"{service.shown} uses {safe(migrate.shown(theirs.database))}, this command"
            f" {safe(migrate.shown(mine.database))}",
            "Run it, and expire in cron, with the same: envdir DIR greycheck doctor",
        )
