"""What stands between "installed" and "works".

Interface: ``examine`` looks at an installation and gives findings; it changes nothing. Each finding has a level:

- ``ok``: as it should be;
- ``note``: worth knowing, or what could not be seen;
- ``warning``: works, and costs time, disk or verdicts;
- ``fault``: stops mail or greylisting.

Each file here looks at one thing: ``launchers``, ``configuration``, ``host``, ``store`` (an SQLite file), ``server``, ``service``,
``mailers`` (Postfix and Exim), ``resident``.

Diagnostics: none but findings; what cannot be looked at becomes one.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from greycheck.doctor.configuration import look_at_settings
from greycheck.doctor.finding import Finding, Installation, run, safe
from greycheck.doctor.host import look_at_clock, look_at_space
from greycheck.doctor.launchers import closed_places, look_at_launchers, look_at_modules, look_at_permissions
from greycheck.doctor.mailers import find_mailers, look_at_mailers, served_as
from greycheck.doctor.resident import look_at_program
from greycheck.doctor.service import look_at_services
from greycheck.doctor.store import look_at_store
from greycheck.doctor.writers import look_at_writers
from greycheck.store import schema
from greycheck.store.lean import StoreError

Examination = Callable[[Installation], Iterator[Finding]]

EXAMINATIONS: tuple[tuple[str, Examination], ...] = (
    ("launchers", look_at_launchers),
    ("modules", look_at_modules),
    ("permissions", look_at_permissions),
    ("writers", look_at_writers),
    ("settings", look_at_settings),
    ("disk", look_at_space),
    ("clock", look_at_clock),
    ("store", look_at_store),
    ("service", look_at_services),
    ("resident", look_at_program),
)


# What is looked at where no qmail is, but a mail server that asks the resident.
RESIDENTS: tuple[tuple[str, Examination], ...] = (
    ("mail server", look_at_mailers),
    *(pair for pair in EXAMINATIONS if pair[0] not in ("launchers", "modules", "permissions", "service")),
)


def examine(installation: Installation) -> list[Finding]:
    """Everything about INSTALLATION, in the order in which to mend it. Never raises for a fault of what it looks at."""
    findings: list[Finding] = []
    examinations = EXAMINATIONS
    if find_mailers(installation):
        examinations = RESIDENTS
        installation = replace(installation, account=installation.account or served_as(installation), is_qmails=False)
    for about, look in examinations:
        if about == "store" and (is_closed(installation) or has_fault(findings, "disk")):
            continue
        try:
            for finding in look(installation):
                if not follows(finding, findings):
                    findings.append(finding)
        except (schema.SchemaError, StoreError, SQLAlchemyError) as error:
            said = str(getattr(error, "orig", None) or error)
            cause, command = split(said)
            advice = run(command) if command else _advice(installation)
            findings.append(Finding("fault", about, safe(cause), advice))
        except OSError as error:
            findings.append(Finding("note", about, f"could not be looked at: {error}"))
    return findings


def is_closed(installation: Installation) -> bool:
    """Whether the user of checks cannot reach the store, which permissions have told: of what is in it nothing else is to be said."""
    path = schema.sqlite_path(installation.settings.database)
    closed = [one.place for one in closed_places(installation)] if path and installation.is_qmails else []
    return path is not None and any(place in (path, *path.parents) for place in closed)


# How a command begins that stands at the end of an error.
COMMAND = re.compile(r": ((?:chmod|chown|df|fuser|install|mount|mv|rm|runuser) [^:]+)$")


def split(said: str) -> tuple[str, str]:
    """An error as it is SAID, and the command at its end, if there is one."""
    found = COMMAND.search(said)
    return (said[: found.start()], found[1]) if found else (said, "")


def has_fault(findings: list[Finding], about: str) -> bool:
    """Whether one of FINDINGS is a fault of what they are ABOUT."""
    return any((one.level, one.about) == ("fault", about) for one in findings)


def follows(finding: Finding, earlier: list[Finding]) -> bool:
    """Whether FINDING is about a path of which one of the EARLIER ones has told what is wrong."""
    told = [one.found.partition(": ")[0] for one in earlier if one.level == "fault" and one.found.startswith("/")]
    return any(f": {path}: " in finding.found for path in told)


def _advice(installation: Installation) -> str:
    """What to do about a database that cannot be looked into."""
    if schema.sqlite_path(installation.settings.database):
        return run(
            f"sqlite3 {shlex.quote(str(schema.sqlite_path(installation.settings.database)))} 'PRAGMA integrity_check'"
        )
    return "Until then every check may be answered by on_error: see the server's log too."


def is_sound(findings: list[Finding]) -> bool:
    """Whether nothing in FINDINGS would stop mail or greylisting."""
    return all(finding.level != "fault" for finding in findings)
