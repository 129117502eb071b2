"""Examines the resident that runs now: which version of the program it is."""

from collections.abc import Iterator

from greycheck.doctor.finding import Finding, Installation, run
from greycheck.doctor.supervisor import restart
from greycheck.privilege import access
from greycheck.resident import program


def check_program(installation: Installation) -> Iterator[Finding]:
    """Finds out if the resident at the setting ``socket``, if any, is the installed version."""
    settings = installation.settings
    with access.acting_as(installation.known_account):
        complaint = (
            program.other(settings.socket, settings.socket_patience) if settings.socket else ""
        )
    if complaint:
        advice = (
            run(" && ".join(restart()))
            if restart()
            else f"{program.RESTART[0].upper()}{program.RESTART[1:]}."
        )
        yield Finding("warning", "resident", complaint, advice)
    else:
        yield Finding(
            "ok", "resident", f"{settings.socket}: no resident there runs another version"
        )
