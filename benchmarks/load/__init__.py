"""The load programs, built and run: each asks for decisions as fast as it gets them, and counts the
answers.

``loadgen`` asks a server over its socket, ``spawnload`` runs a child for each decision; README.md
says how. What asks nobody anything, the empty program, is a child's floor.

Interface: ``Programs``, ``Work``, ``Block``.

Diagnostics: ``WrongAnswer`` where an answer is not what its triplet asks for; ClickException where
nothing compiles C.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.common import PENDING, Numbers, WrongAnswer

SOURCES = Path(__file__).parent

# How long a block may take, in seconds.
PATIENCE = 60.0

# What compiles a program that starts as fast as a program can, the best first.
STATIC = {"musl": ("musl-gcc", "-static"), "glibc": ("cc", "-static")}

EMPTY = "int main(void) { return 0; }\n"

# The counts that are 0 where every answer is right.
WRONG = ("err", "new_pass", "known_defer", "early_pass")


class Work(NamedTuple):
    """DECISIONS to be asked for, AT_ONCE at a time, at most for SECONDS, of triplets of a class
    (``new``, ``known``, ``early``, or ``mixed``: 10, 60 and 30 %) in a store of NUMBERS. New ones
    are numbered from FIRST_NEW on; SEED draws the others.
    """

    workload: str
    at_once: int
    decisions: int
    numbers: Numbers
    first_new: int
    seed: int
    seconds: float = PATIENCE

    @property
    def options(self) -> tuple[str, ...]:
        """The options that both programs have for it."""
        known = f"{self.numbers.over}:{self.numbers.known - self.numbers.over}"
        return (
            *(
                "-w",
                self.workload,
                "-c",
                str(self.at_once),
                "-n",
                str(self.decisions),
                "-t",
                str(self.seconds),
            ),
            *(
                "-k",
                known,
                "-e",
                f"{PENDING}:{self.numbers.pending}",
                "-b",
                str(self.first_new),
                "-s",
                str(self.seed),
            ),
        )


class Block(NamedTuple):
    """What a block of work took: decisions a second, and the microseconds of one; how many were of
    each class. ``p999`` is only known where a server was asked.
    """

    rate: float
    median: float
    p99: float
    p999: float
    most: float
    classes: Mapping[str, int]

    @property
    def asked(self) -> int:
        """How many decisions were asked for."""
        return sum(self.classes.values())


class Programs:
    """The programs, built into DIRECTORY."""

    def __init__(self, directory: Path) -> None:
        if not shutil.which("cc"):
            raise click.ClickException(
                "no C compiler (cc): the load programs cannot be built; apt-get install gcc"
                " libc6-dev"
            )
        self.loadgen = build("cc", directory / "loadgen", SOURCES / "loadgen.c", "-lpthread")
        self.spawnload = build("cc", directory / "spawnload", SOURCES / "spawnload.c")
        source = directory / "empty.c"
        source.write_text(EMPTY)
        self.libc, (compiler, *options) = next(
            (libc, c) for libc, c in STATIC.items() if shutil.which(c[0])
        )
        self.empty = build(compiler, directory / "empty", source, *options)

    def ask(self, protocol: str, address: str, work: Work) -> Block:
        """Does WORK with the server that speaks PROTOCOL at ADDRESS."""
        return block([self.loadgen, "-p", protocol, "-a", address, *work.options])

    def run(self, child: str, work: Work, environ: Mapping[str, str], log: int) -> Block:
        """Does WORK by running CHILD in ENVIRON for each decision, with descriptor LOG as its
        descriptor 2.
        """
        return block([self.spawnload, *work.options, "--", child], environ, log)


def build(compiler: str, program: Path, source: Path, *options: str) -> str:
    """Compiles SOURCE to PROGRAM; its path."""
    subprocess.run([compiler, "-O2", "-o", program, source, *options], check=True)
    return str(program)


def block(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, log: int | None = None
) -> Block:
    """Runs the load program ARGV, and sees that every answer was right."""
    ran = subprocess.run(
        argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, check=True
    )
    found: dict[str, Any] = json.loads(ran.stdout)
    wrong = [f"{name}: {found[name]}" for name in WRONG if found[name]]
    if wrong or not found["n"]:
        raise WrongAnswer(
            f"of {found['n']} answers, {', '.join(wrong)}"
            f" {found.get('errtext', '')}\n{' '.join(argv)}"
        )
    classes = {
        "new": found["new_defer"],
        "known": found["known_pass"],
        "early": found["early_defer"],
    }
    return Block(
        found["rate"],
        found["p50us"],
        found["p99us"],
        found.get("p999us", nan),
        found["maxus"],
        classes,
    )
