"""Finds out what starts the resident on this host, and the command that does it."""

import shlex
import shutil
import sys
from pathlib import Path

from greycheck.doctor.finding import Installation, run, substitution
from greycheck.launchers import python

SYSTEMD = Path("/run/systemd/system")

# The resident's directories under daemontools and runit; and the commands that restart it.
SERVICES = tuple(
    map(Path, ("/service/greycheck", "/etc/service/greycheck", "/var/service/greycheck"))
)

SUPERVISORS = (("svc", "svc -t"), ("sv", "sv restart"))

# Where systemd looks for units. The first one is the operator's, into which a unit is put.
UNITS = tuple(
    map(Path, ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"))
)

UNIT = "greycheck.service"

# The user and the program in the unit of contrib/.
UNIT_USER, UNIT_PROGRAM = "qmaild", "/opt/greycheck/bin/greycheck"


def restart() -> list[str]:
    """Returns the command that restarts the resident by its supervisor; empty without one."""
    if SYSTEMD.is_dir():
        return ["systemctl restart greycheck"]
    service = next((place for place in SERVICES if place.is_dir()), None)
    command = next((command for program, command in SUPERVISORS if shutil.which(program)), "")
    return [f"{command} {service}"] if service and command else []


def start(installation: Installation) -> str:
    """Returns the advice to start the resident."""
    if SYSTEMD.is_dir():
        return run(" && ".join([*_put_unit(installation), "systemctl enable --now greycheck"]))
    user = (
        f" --user {shlex.quote(installation.account.pw_name)}"
        if installation.account and installation.for_root
        else ""
    )
    return run(f"{shlex.quote(str(installation.command))} serve{user}")


def _put_unit(installation: Installation) -> list[str]:
    """Returns the command that installs contrib's unit for this host's user and program.

    Empty if there is a unit already.
    """
    if any((directory / UNIT).exists() for directory in UNITS):
        return []
    user = installation.account.pw_name if installation.account else UNIT_USER
    program_here = str(Path(sys.executable).with_name("greycheck"))
    changed = {f"={UNIT_USER}$": f"={user}", UNIT_PROGRAM: program_here}
    changes = [
        f"-e {substitution(old, new)}"
        for old, new in changed.items()
        if old.strip("=$") not in (new, new[1:])
    ]
    places = (python.package() / "contrib", python.package().parent / "contrib")
    unit = shlex.quote(
        str(next((place for place in places if place.is_dir()), places[0]) / "systemd" / UNIT)
    )
    return [
        f"sed {' '.join(changes)} {unit} > {UNITS[0]}/{UNIT}"
        if changes
        else f"cp {unit} {UNITS[0]}/"
    ]
