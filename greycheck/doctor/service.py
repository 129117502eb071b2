"""The qmail-smtpd that runs now: its memory, its user, its hooks, its settings."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from greycheck import settings
from greycheck.cli import access, files
from greycheck.doctor.finding import MB, Finding, Installation, run, safe
from greycheck.doctor.launchers import ENDS, HOOKS, lifts_limits, run_by_script
from greycheck.doctor.processes import HOOK_VARIABLES, SESSION, Service, services
from greycheck.store import schema

# Bytes of address space (softlimit -m) that a check was measured to need, and with room to spare: with an SQLite file, and by the driver
# of a server database, TLS included.
MEMORY = {
    "": (16_200_000, 18_000_000),
    "mysqldb": (21_100_000, 24_000_000),
    "pymysql": (24_700_000, 28_000_000),
    "psycopg2": (30_700_000, 34_000_000),
    "psycopg": (47_400_000, 53_000_000),
}

# Where CHECKENV looks for its program, on every qmail that was not told otherwise.
QMAIL_HOME = Path("/var/qmail")

# How many programs of SMTPEXTFORK are looked at.
PROGRAMS = 20

# A directory that may stand in a command for root to paste.
PLAIN = re.compile(r"/[A-Za-z0-9/._+-]+")

# Bytes that are read of qmail-spp's list of programs.
PLUGINS = 1_000_000


def look_at_services(installation: Installation) -> Iterator[Finding]:
    """The qmail-smtpd that runs now: its memory, its environment."""
    account = installation.account
    trusted = {0, os.geteuid()} | ({account.pw_uid} if account else set())
    acting = installation.known_account
    found = services(installation.proc, trusted, acting)
    if not found:
        yield Finding("note", "service", "no tcpserver with qmail-smtpd is running, as far as can be seen")
        return
    for service in found:
        yield from look_at_user(service, installation)
        if service.uid not in trusted:
            continue
        yield look_at_memory(service, installation)
        if service.environ is None:
            unknown = f"{service.shown}: its environment cannot be read by {schema.user_name(os.geteuid())}"
            yield Finding("note", "service", unknown, "Run: sudo greycheck doctor" if os.geteuid() else "")
            continue
        if acting is None and os.geteuid() == 0:
            unread = f"{service.shown}: what it names is not looked at: root reads it as the user of checks alone"
            yield Finding("note", "service", unread, "Say which user qmail-smtpd runs as: --user NAME")
            continue
        # Whoever started it chose the names: nobody else's rights are lent to them.
        with access.acting_as(acting):
            told = [*look_at_hooks(service, installation), *look_at_relaying(service)]
            told += look_at_environment(service, service.usual, installation)
        yield from told


def look_at_memory(service: Service, installation: Installation) -> Finding:
    """The soft limit of SERVICE, against what a check needs."""
    if service.memory is None:
        return Finding("ok", "memory", f"{service.shown}: no soft limit")
    text = f"{service.shown}: soft limit {service.memory / MB:.1f} MB"
    needed, advised = MEMORY[installation.driver.name if installation.driver else ""]
    advice = f"Give it {advised / MB:.0f} MB at least: softlimit -m {advised + 2 * MB}"
    if service.memory >= advised:
        return Finding("ok", "memory", text)
    scripts = (installation.programs[1], QMAIL_HOME / "bin" / "qmail-checkenv")
    if any(map(lifts_limits, scripts)) and b"SMTPEXTFORK" not in dict(service.environ or ()):
        return Finding("note", "memory", f"{text}, which qmail-checkenv.sh lifts")
    if service.memory >= needed:
        return Finding("warning", "memory", f"{text}: {needed / MB:.1f} MB are just enough", advice)
    stops = f"{text}, a check needs {needed / MB:.1f}: SMTPEXTFORK accepts all mail, CHECKENV stops all"
    return Finding("fault", "memory", stops, advice)


def look_at_user(service: Service, installation: Installation) -> Iterator[Finding]:
    """Whether SERVICE runs as the user that permissions were looked at for. root still changes to another."""
    account = installation.account
    if account is None or service.uid in (0, account.pw_uid):
        return
    user = schema.user_name(service.uid)
    text = f"{service.shown} runs as {user}, permissions were looked at for {account.pw_name}"
    yield Finding("warning", "service", text, f"If it serves mail, run: greycheck doctor --user {user}")


def look_at_hooks(service: Service, installation: Installation) -> Iterator[Finding]:
    """Which hook SERVICE has switched on, for whatever clients, and whether its program is there."""
    values = list(dict.fromkeys((*(service.environ or ()), *service.rule, *service.rules)))
    names = [name.decode() for name in HOOK_VARIABLES if name in dict(values)]
    plugins = plugins_of(QMAIL_HOME)
    names += ["qmail-spp"] * any("greycheck-spp" in plugin for plugin in plugins)
    if not names and service.name == SESSION:
        return
    if not names:
        text = f"{service.shown}: no hook's variable (SMTPEXTFORK, CHECKENV, RCPTCHECK) in its environment or its rules"
        yield Finding("warning", "service", text, "Switch one on, for tcpserver in the rules or with envdir.")
        return
    yield Finding("ok", "service", f"{service.shown}: {', '.join(names)} switched on")
    programs = [program for program in listed(service.usual.get(b"SMTPEXTFORK", b"")) if program]
    targets = set(map(os.path.realpath, installation.programs))
    if programs and not any(os.path.realpath(program) in targets for program in programs):
        text = f"{service.shown}: SMTPEXTFORK names {safe(', '.join(programs))}"
        yield Finding("warning", "service", text, f"Let it name {installation.programs[0]}, or name its place: --dir")
    missing = [Missing("qmail-spp", each, ENDS["qmail-spp"]) for each in plugins]
    for name, value in values:
        missing += programs_of(name.decode(), value, installation)
    if b"CHECKENV" in dict(values):
        missing += run_by_checkenv(service.usual.get(b"CHECKENV_PROGRAM", b""), installation)
    gone = [one for one in dict.fromkeys(missing) if is_gone(one.program)]
    for one in gone[:PROGRAMS]:
        text = f"{service.shown}: {one.by}: {safe(one.program)}: no such program: {one.end}"
        yield Finding("fault", "service", text, one.advice(installation))


@dataclass(frozen=True)
class Missing:
    """A PROGRAM that a hook runs BY a variable or a file, and what becomes of mail where it is not there."""

    by: str
    program: str
    end: str

    def advice(self, installation: Installation) -> str:
        """What to do where it is not there."""
        directory, _slash, name = self.program.rpartition("/")
        # Whoever started the server chose it.
        if name in HOOKS and PLAIN.fullmatch(directory):
            make = "" if Path(directory).is_dir() else f"mkdir -p {shlex.quote(directory)} && "
            return run(f"{make}greycheck install {shlex.quote(directory)}")
        launcher = next(name for name, hook in HOOKS.items() if self.by.startswith(hook))
        return f"Let {self.by} name {installation.directory}/{launcher}"


def listed(value: bytes) -> list[str]:
    """The programs of the list VALUE, PROGRAMS at most."""
    return [os.fsdecode(program) for program in value.split(b",", PROGRAMS)[:PROGRAMS]]


def programs_of(hook: str, value: bytes, installation: Installation) -> list[Missing]:
    """The programs of the HOOK whose variable is set to VALUE; none of other variables."""
    if hook == "CHECKENV":
        return [Missing(hook, str(checkenv_program(installation)), ENDS[hook])]
    if hook == "RCPTCHECK":
        return [Missing(hook, os.fsdecode(value), ENDS[hook])]
    programs = listed(value) if hook.startswith("SMTPEXTFORK") else []
    return [Missing(hook, program, ENDS["SMTPEXTFORK"]) for program in programs]


def run_by_checkenv(named: bytes, installation: Installation) -> list[Missing]:
    """What qmail-checkenv.sh runs, if that is CHECKENV's program: what is NAMED, or what it names itself."""
    program = checkenv_program(installation)
    if not lifts_limits(program):
        return []
    return [Missing("CHECKENV", os.fsdecode(named) or run_by_script(program), "nothing is checked")]


def checkenv_program(installation: Installation) -> Path:
    """The program that CHECKENV runs: in qmail's home where there is one, else among the launchers of INSTALLATION."""
    directory = QMAIL_HOME / "bin"
    return directory / "qmail-checkenv" if directory.is_dir() else installation.programs[1]


def is_gone(program: str) -> bool:
    """Whether a PROGRAM is named by its whole path, and is not there for whom this process acts as."""
    is_path = program.startswith("/") and " " not in program
    return is_path and not os.access(program, os.F_OK, effective_ids=True)


def look_at_relaying(service: Service) -> Iterator[Finding]:
    """Whether SERVICE takes everybody for a relay client. A session may be one's, and a server of this host alone serves no others."""
    if b"RELAYCLIENT" not in service.usual or service.name == SESSION or service.is_local:
        return
    where = "the rule for everybody sets" if b"RELAYCLIENT" in dict(service.rule) else "its environment has"
    text = (
        f"{service.shown}: {where} RELAYCLIENT: nothing is checked, and anybody may send mail to anywhere by this host"
    )
    advice = 'Set it in rules for your own networks alone: 127.:allow,RELAYCLIENT=""'
    yield Finding("fault", "service", text, advice)


def plugins_of(home: Path) -> list[str]:
    """The programs that qmail-spp in the qmail HOME runs."""
    try:
        lines = os.fsdecode(files.read(home / "control" / "smtpplugins", PLUGINS)).split("\n")
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip() and line[0] not in "#["]


def look_at_environment(service: Service, environ: dict[bytes, bytes], installation: Installation) -> Iterator[Finding]:
    """Settings of SERVICE that are not those of this process."""
    theirs = settings.read(environ)
    mine = installation.settings
    for problem in theirs.problems:
        if problem not in mine.problems:
            yield Finding(
                "warning", "service", f"{service.shown}: {safe(problem)}", "Mend it where the service starts."
            )
    if theirs.off:
        text = f"{service.shown}: GREYCHECK=off: nothing is checked"
        yield Finding(
            "note" if service.name == SESSION else "fault", "service", text, "Set it for single clients only."
        )
    if theirs.mode != mine.mode:
        yield Finding("note", "service", f"{service.shown}: mode = {theirs.mode}, here it is {mine.mode}")
    if theirs.database != mine.database:
        yield Finding(
            "warning",
            "service",
            f"{service.shown} uses {safe(schema.shown(theirs.database))}, this command"
            f" {safe(schema.shown(mine.database))}",
            "Run it, and expire in cron, with the same: envdir DIR greycheck doctor",
        )
