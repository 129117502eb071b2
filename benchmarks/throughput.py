"""Checks a second with four at once, against a child that makes the same check through SQLAlchemy.

A mixed load: 10 % new triplets, 60 % known, 30 % early, in stores of 100 000 known rows, one each.
Blocks of the two programs take turns; a block of the launcher has more checks, so that both take
about as long. The ratio is that of the median rates; the times are those of one check, from its
start to its end, among the four.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import click

from benchmarks.common import (
    ANSWERS,
    QUICK_ROWS,
    ROWS,
    Load,
    Mail,
    Numbers,
    Ratio,
    Times,
    Workshop,
    check_code,
    check_reasons,
    options,
    print_table,
    smtpextfork,
    start,
    times_row,
    workshop,
)

AT_ONCE = 4

# The share of each class of triplets, in percent.
SHARES = {"new": 10, "known": 60, "early": 30}

# Triplets that wait, for each known one. None comes round again within the second that makes two
# attempts one.
WAITING = 0.3

# Checks of one block: the launcher's, the other's.
BLOCKS, QUICK_BLOCKS = (400, 24), (40, 8)

TARGET = 15

HEADINGS = ("what", "median ms", "p99 ms", "checks/s", "ratio", "target")


class Program(Times):
    """A program under load, and the rates of its blocks so far, in checks a second."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environ: Callable[[Mail], Mapping[str, str]],
        load: Load,
        block: int,
        at_once: int = AT_ONCE,
    ) -> None:
        super().__init__(name)
        self.argv = argv
        self.environ = environ
        self.load = load
        self.block = block
        self.at_once = at_once
        self.rates: list[float] = []
        self._classes = Random(1)

    def run_block(self, log: int) -> list[str]:
        """Runs one block with the log on descriptor LOG; the reasons that its checks had."""
        reasons = self._classes.choices(list(SHARES), list(SHARES.values()), k=self.block)
        waiting = list(reasons)
        running: dict[int, tuple[str, float]] = {}
        began = perf_counter()
        while waiting or running:
            while waiting and len(running) < self.at_once:
                reason = waiting.pop()
                environ = self.environ(self.load.next(reason))
                started = perf_counter()
                running[start(self.argv, environ, log)] = reason, started
            child, status, _usage = os.wait4(-1, 0)
            reason, started = running.pop(child)
            self.took.append((perf_counter() - started) * 1000)
            check_code(status, ANSWERS[reason], f"{self.name}, {reason}")
        self.rates.append(self.block / (perf_counter() - began))
        return reasons


@click.command(help=__doc__)
@options(rounds=10, quick_rounds=1)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    rows = QUICK_ROWS if quick else ROWS
    with workshop() as place:
        launcher, other = programs(place, rows, QUICK_BLOCKS if quick else BLOCKS)
        for _round in range(rounds):
            reasons = launcher.run_block(place.log)
            check_reasons(place.new_lines(), reasons)
            other.run_block(place.log)
    title = f"throughput (rounds: {rounds}, rows: {rows}, checks at once: {AT_ONCE})"
    ratio = Ratio(median(launcher.rates) / median(other.rates), "SQLAlchemy", at_least=TARGET)
    print_table(title, HEADINGS, [program_row(other), program_row(launcher, ratio)])


def programs(place: Workshop, rows: int, blocks: tuple[int, int]) -> tuple[Program, Program]:
    """The launcher and the child that imports SQLAlchemy, each over its own copy of a store of
    ROWS.
    """
    numbers = Numbers(rows, round(rows * WAITING))
    first, second = place.database("launcher", numbers), place.directory / "sqlalchemy.db"
    shutil.copy(first, second)
    child = (sys.executable, "-I", str(Path(__file__).with_name("sqlalchemy_child.py")))
    return (
        Program(
            "launcher", [place.launcher], partial(smtpextfork, first), Load(numbers), blocks[0]
        ),
        Program("SQLAlchemy", child, partial(smtpextfork, second), Load(numbers), blocks[1]),
    )


def program_row(program: Program, ratio: Ratio | None = None) -> tuple[str, ...]:
    """The row of PROGRAM: times, rate, ratio."""
    name, middle, most, *ratios = times_row(program, ratio)
    return name, middle, most, f"{median(program.rates):.1f}", *ratios


if __name__ == "__main__":
    main()
