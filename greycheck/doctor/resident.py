"""The resident that runs now: which program it has."""

from collections.abc import Iterator

from greycheck.cli import access
from greycheck.doctor.finding import Finding, Installation
from greycheck.resident import program


def look_at_program(installation: Installation) -> Iterator[Finding]:
    """Whether the resident at the setting ``socket``, if there is one, runs what is installed."""
    found = installation.settings
    with access.acting_as(installation.known_account):
        complaint = program.other(found.socket, found.socket_patience) if found.socket else ""
    if complaint:
        yield Finding("warning", "resident", complaint, f"{program.RESTART[0].upper()}{program.RESTART[1:]}.")
    else:
        yield Finding("ok", "resident", f"{found.socket}: none there that runs another program than this")
