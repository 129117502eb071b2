"""Finds what keeps an installed greycheck from working.

Interface: ``examine`` looks at an installation and returns findings; it changes nothing. Each
finding has a level:

- ``ok``: as it should be;
- ``note``: worth knowing, or could not be examined;
- ``warning``: works, but costs time, disk space or verdicts;
- ``fault``: stops mail or greylisting.

Each file here examines one thing: ``launchers``, ``configuration``, ``host``, ``store`` (an SQLite
file), ``server``, ``service``, ``mailers`` (Postfix and Exim), ``resident``, ``identity``.

Diagnostics: findings only; what cannot be examined becomes one.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from greycheck.doctor.configuration import check_settings
from greycheck.doctor.finding import Finding, Installation, run, safe
from greycheck.doctor.host import check_clock, check_space
from greycheck.doctor.identity import check_resolver
from greycheck.doctor.launchers import (
    check_launchers,
    check_modules,
    check_permissions,
    closed_places,
)
from greycheck.doctor.mailers import check_mailers, find_mailers, served_as
from greycheck.doctor.resident import check_program
from greycheck.doctor.service import check_services
from greycheck.doctor.store import check_store
from greycheck.doctor.writers import check_writers
from greycheck.store.base import Advised
from greycheck.store.schema import migrate

Examination = Callable[[Installation], Iterator[Finding]]

EXAMINATIONS: tuple[tuple[str, Examination], ...] = (
    ("launchers", check_launchers),
    ("modules", check_modules),
    ("permissions", check_permissions),
    ("writers", check_writers),
    ("settings", check_settings),
    ("disk", check_space),
    ("clock", check_clock),
    ("store", check_store),
    ("resolver", check_resolver),
    ("service", check_services),
    ("resident", check_program),
)


# The examinations of a host without qmail whose mail server asks the resident.
RESIDENTS: tuple[tuple[str, Examination], ...] = (
    ("mail server", check_mailers),
    *(
        pair
        for pair in EXAMINATIONS
        if pair[0] not in ("launchers", "modules", "permissions", "service")
    ),
)


def examine(installation: Installation) -> list[Finding]:
    """Returns all findings about INSTALLATION, in the order in which to act on them.

    A fault of what it examines does not raise.
    """
    findings: list[Finding] = []
    examinations = EXAMINATIONS
    if find_mailers(installation):
        examinations = RESIDENTS
        installation = replace(
            installation, account=installation.account or served_as(installation), is_qmails=False
        )
    for about, check in examinations:
        if about == "store" and (is_closed(installation) or has_fault(findings, "disk")):
            continue
        try:
            for finding in check(installation):
                if not follows(finding, findings):
                    findings.append(finding)
        except Advised as error:
            advice = run(error.command) if error.command else _advice(installation)
            findings.append(Finding("fault", about, safe(error.said), advice))
        except SQLAlchemyError as error:
            said = str(getattr(error, "orig", None) or error)
            findings.append(Finding("fault", about, safe(said), _advice(installation)))
        except OSError as error:
            findings.append(Finding("note", about, f"could not be looked at: {error}"))
    return findings


def is_closed(installation: Installation) -> bool:
    """True if permissions keep the user of checks from the store.

    They are reported already; nothing else can be said of the store.
    """
    path = migrate.sqlite_path(installation.settings.database)
    closed = (
        [one.place for one in closed_places(installation)]
        if path and installation.is_qmails
        else []
    )
    return path is not None and any(place in (path, *path.parents) for place in closed)


def has_fault(findings: list[Finding], about: str) -> bool:
    """True if one of FINDINGS is a fault of ABOUT."""
    return any((one.level, one.about) == ("fault", about) for one in findings)


def follows(finding: Finding, earlier: list[Finding]) -> bool:
    """True if FINDING is about a path for which one of the EARLIER findings reports a fault."""
    paths = [
        one.found.partition(": ")[0]
        for one in earlier
        if one.level == "fault" and one.found.startswith("/")
    ]
    return any(f": {path}: " in finding.found for path in paths)


def _advice(installation: Installation) -> str:
    """Returns what to do about a database that cannot be examined."""
    if migrate.sqlite_path(installation.settings.database):
        return run(
            f"sqlite3 {shlex.quote(str(migrate.sqlite_path(installation.settings.database)))}"
            " 'PRAGMA integrity_check'"
        )
    return "Until then every check may be answered by on_error: see the server's log too."


def is_sound(findings: list[Finding]) -> bool:
    """True if no finding would stop mail or greylisting."""
    return all(finding.level != "fault" for finding in findings)
