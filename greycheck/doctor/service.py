"""The qmail-smtpd that runs now: its memory, its user, its hooks, its settings."""

import os
from collections.abc import Iterator
from pathlib import Path

from greycheck import settings
from greycheck.cli import access, files
from greycheck.doctor.finding import MB, Finding, Installation, safe
from greycheck.doctor.launchers import lifts_limits
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
            yield Finding("note", "service", unknown, "Run greycheck doctor as root.")
            continue
        if acting is None and os.geteuid() == 0:
            unread = f"{service.shown}: what it names is not looked at: root reads it as the user of checks alone"
            yield Finding("note", "service", unread, "Say which user qmail-smtpd runs as: --user NAME")
            continue
        # Whoever started it chose the names: nobody else's rights are lent to them.
        with access.acting_as(acting):
            told = [*look_at_hooks(service, dict(service.environ), installation)]
            told += look_at_environment(service, dict(service.environ), installation)
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


def look_at_hooks(service: Service, environ: dict[bytes, bytes], installation: Installation) -> Iterator[Finding]:
    """Which hook SERVICE has switched on, and whether its program is there."""
    names = [name.decode() for name in HOOK_VARIABLES if name in environ or name in service.rules]
    names += ["qmail-spp"] * has_plugin(QMAIL_HOME)
    if not names and service.name == SESSION:
        return
    if not names:
        text = f"{service.shown}: no hook's variable (SMTPEXTFORK, CHECKENV, RCPTCHECK) in its environment or its rules"
        yield Finding("warning", "service", text, "Switch one on, for tcpserver in the rules or with envdir.")
        return
    yield Finding("ok", "service", f"{service.shown}: {', '.join(names)} switched on")
    listed = environ.get(b"SMTPEXTFORK", b"").split(b",", PROGRAMS)[:PROGRAMS]
    programs = [os.fsdecode(program) for program in listed if program]
    targets = set(map(os.path.realpath, installation.programs))
    if programs and not any(os.path.realpath(program) in targets for program in programs):
        text = f"{service.shown}: SMTPEXTFORK names {safe(', '.join(programs))}"
        yield Finding("warning", "service", text, f"Let it name {installation.programs[0]}, or name its place: --dir")
    yield from (
        Finding("fault", "service", f"{service.shown}: SMTPEXTFORK: {safe(program)}: no such program: accepts all mail")
        for program in programs
        if not is_there(program)
    )
    program = os.fsdecode(environ.get(b"RCPTCHECK", b""))
    if program and not is_there(program):
        text = f"{service.shown}: RCPTCHECK: {safe(program)}: no such program: all mail is deferred"
        yield Finding("fault", "service", text, f"Run: greycheck install {installation.directory}")
    if b"CHECKENV" in environ and not is_there(str(installation.programs[1])):
        text = f"{service.shown}: CHECKENV is set, and {installation.programs[1]} is not there: all mail is stopped"
        yield Finding("fault", "service", text, f"Run: greycheck install {installation.directory}")


def is_there(program: str) -> bool:
    """Whether PROGRAM is there for whom this process acts as."""
    return os.access(program, os.F_OK, effective_ids=True)


def has_plugin(home: Path) -> bool:
    """Whether qmail-spp in the qmail HOME runs greycheck-spp."""
    try:
        return b"greycheck-spp" in files.read(home / "control" / "smtpplugins", PLUGINS)
    except OSError:
        return False


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
