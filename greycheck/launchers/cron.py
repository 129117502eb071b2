"""The line of a crontab that runs a command of greycheck, as operators are told to have it."""

import shlex
from pathlib import Path


def line(times: str, program: Path, command: str, before: str = "") -> str:
    """Returns the line that runs COMMAND of PROGRAM at TIMES, by what stands BEFORE it."""
    # cron takes a % for the end of the line.
    quoted = shlex.quote(str(program)).replace("%", "\\%")
    return f"{times} {before}{quoted} {command}"
