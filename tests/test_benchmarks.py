"""Every benchmark starts, finds its answers right, and prints its ratios. How large they are is nobody's business here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

# The ratios that each prints.
RATIOS = {
    "check": ["x bare"] * 4 + ["x known", "x new"],
    "asking": ["x config"] * 10,
    "rules": ["x bare"] * 3 + ["x 20 rules"],
    "throughput": ["x SQLAlchemy"],
    "memory": ["x bare"] * 12,
    "databases": ["x bare"] * (1 + 11 * 2 + 5) + ["x SELECT 1"] * 11 * 2 + ["x lowest"] * 11 + ["x SQLite"] * 5,
    "rcpt": ["x one read"] * 2 + ["x one read, _exit"],
}


def run(name: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        env={"PATH": os.defpath},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", RATIOS)
def test_quick_run_prints_the_ratios_in_80_columns(name: str) -> None:
    printed = run(name, "--quick")

    found = re.findall(r"\b\d+\.\d\d (x (?!missed)\S+(?: \S+)*)", printed)
    assert sorted(found) == sorted(RATIOS[name])
    assert max(map(len, printed.splitlines())) <= 80


def test_rounds_count_before_quick() -> None:
    assert "(rounds: 1)" in run("check", "--rounds", "1", "--quick")


def test_every_benchmark_is_tested_and_in_the_manual() -> None:
    text = (ROOT / "benchmarks" / "README.rst").read_text()

    commands = {path.stem for path in Path(ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}

    assert commands == set(RATIOS)
    assert all(f"benchmarks.{name}" in text for name in commands)
