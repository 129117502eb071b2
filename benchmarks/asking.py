"""What an operator's questions cost on a store of a million triplets: CPU of the whole command,
start of Python and SQLAlchemy included.

``greycheck config``, which asks no store, is what every command costs. Half of the triplets wait;
nothing but the order of ``expires`` has an index, so that lists read the table once.
"""

import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

import click

from benchmarks.common import (
    PENDING,
    QUICK_ROWS,
    Numbers,
    mail,
    options,
    print_table,
    settings,
    workshop,
)

ROWS = 1_000_000
TARGET = 1.0

FIRST = mail(PENDING)

QUESTIONS = {
    "config": ("config",),
    "explain": ("explain", FIRST.client, FIRST.sender, FIRST.recipient),
    "show": ("show", FIRST.client, FIRST.sender, FIRST.recipient),
    "list": ("list",),
    "list --sort expires": ("list", "--sort", "expires"),
    "list passed --address": ("list", "passed", "--address", FIRST.recipient),
    "list --domain": ("list", "--domain", "example.org"),
    "list --network": ("list", "--network", "128.0.0.0/1"),
    "list --older": ("list", "--older", "1h"),
    "list clients": ("list", "clients"),
}


@click.command(help=__doc__)
@options(rounds=5, quick_rounds=1)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    half = (QUICK_ROWS if quick else ROWS) // 2
    with workshop() as place:
        database = place.database("asked", Numbers(half, pending=half, clients=half))
        environ = settings(database) | {"COLUMNS": "80"}
        seconds: dict[str, list[float]] = {name: [] for name in QUESTIONS}
        for _round in range(rounds):
            for name, command in QUESTIONS.items():
                seconds[name].append(cpu(command, environ))
    table = [row(name, median(taken), median(seconds["config"])) for name, taken in seconds.items()]
    print_table(
        f"asking (rounds: {rounds}, rows: {2 * half})", ("what", "CPU s", "ratio", "target"), table
    )


def cpu(command: tuple[str, ...], environ: dict[str, str]) -> float:
    """The seconds of CPU that a greycheck COMMAND takes."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "greycheck", *command],
        env=environ,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(name: str, taken: float, config: float) -> tuple[str, ...]:
    """A line of the table."""
    missed = "" if taken < TARGET else " missed"
    return name, f"{taken:.2f}", f"{taken / config:.2f} x config", f"< {TARGET:g} s{missed}"


if __name__ == "__main__":
    main()
