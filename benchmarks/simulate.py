"""What ``greycheck simulate`` costs on a year's log of a million lines: CPU and the most memory of
the whole command, start of Python included.

``greycheck config`` is what every command costs. The log is that of the tests: servers that retry
by their schedules and are known later, and as many hosts that send spam.
"""

import os
import subprocess
import sys

import click

from benchmarks.common import options, print_table, workshop
from tests.simulation.synthetic import Synthetic, written

# How many servers make a million lines, and how many a small log.
SERVERS, FEW = 60_700, 60
BEGAN = 1_760_000_000
TARGET = 60


@click.command(help=__doc__)
@options(rounds=3, quick_rounds=1)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    with workshop() as place:
        log = place.directory / "history"
        made = Synthetic(7, FEW if quick else SERVERS, BEGAN, 365, 300, 13)
        lines = made.events()
        with log.open("wb") as file:
            file.writelines(written(lines))
        commands = {
            "config": ("config",),
            "simulate": ("simulate", "--log", str(log)),
            "simulate --delay 15m": ("simulate", "--log", str(log), "--delay", "15m"),
        }
        number = len(lines)
        del lines
        least: dict[str, tuple[float, int]] = {}
        for _round in range(rounds):
            for name, command in commands.items():
                least[name] = min(cost(command), least.get(name, (float("inf"), 0)))
    config = least["config"][0]
    table = [
        (
            name,
            f"{seconds:.2f}",
            f"{most / 1e6:.0f}",
            f"{seconds / config:.2f} x config",
            f"< {TARGET} s{'' if seconds < TARGET else ' missed'}",
        )
        for name, (seconds, most) in least.items()
    ]
    print_table(
        f"simulate (rounds: {rounds}, lines: {number})",
        ("what", "CPU s", "MB", "ratio", "target"),
        table,
    )


def cost(command: tuple[str, ...]) -> tuple[float, int]:
    """The seconds of CPU that a greycheck COMMAND takes, and its most memory in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "greycheck", *command],
        env={"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null"},
        stdout=subprocess.DEVNULL,
    )
    _pid, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


if __name__ == "__main__":
    main()
