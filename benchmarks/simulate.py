"""What ``greycheck simulate`` costs on a year's log of a million lines: CPU and the most memory of
the whole command, start of Python included.

``greycheck config`` is what every command costs. The log is that of the tests: servers that retry
by their schedules and are known later, and as many hosts that send spam.
"""

import os
import subprocess
import sys
from pathlib import Path

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
        number = write(log, FEW if quick else SERVERS)
        commands = {
            "config": ("config",),
            "simulate": ("simulate", "--log", str(log)),
            "simulate --delay 15m": ("simulate", "--log", str(log), "--delay", "15m"),
        }
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


def write(log: Path, servers: int) -> int:
    """Writes the LOG of so many SERVERS; returns how many lines it has.

    In a process of its own: what this one ever had would count as its children's.
    """
    child = os.fork()
    if child == 0:
        with log.open("wb") as file:
            file.writelines(written(Synthetic(7, servers, BEGAN, 365, 300, 13).events()))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with log.open("rb") as file:
        return sum(1 for _line in file)


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
