"""Every benchmark starts, finds its answers right, and prints its ratios.

How large they are is nobody's business here.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks.common import BARE, LATENCY, Workshop, WrongAnswer, silent
from benchmarks.greylisters import PEERS, Postgrey, SqlgreyOverPostgres
from tests.support import ROOT


def ratios_of_peers() -> list[str]:
    """Those that benchmarks.peers prints with the peers that are installed here."""
    others = sum(not peer.missing() for peer in PEERS if peer is not Postgrey)
    to_postgrey = 0 if Postgrey.missing() else 3 * (others + 1) + 2
    return (
        ["x postgrey"] * to_postgrey
        + ["x 1000 rows"] * 3
        + ["x median"] * (2 + 4)
        + ["x SQLite"] * (12 + 2)
        + ["x sqlgrey"] * 2 * (not SqlgreyOverPostgres.missing())
        + ["x empty"] * (1 + os.access(LATENCY, os.W_OK))
    )


# The ratios that each prints.
RATIOS = {
    "check": ["x bare"] * 4 + ["x known", "x new"],
    "asking": ["x config"] * 10,
    "simulate": ["x config"] * 3,
    "rules": ["x bare"] * 3 + ["x 20 rules"] * 2 + ["x 20 pairs"],
    "throughput": ["x SQLAlchemy"],
    "memory": ["x bare"] * 12,
    "databases": ["x bare"] * (1 + 11 * 2 + 5)
    + ["x SELECT 1"] * 11 * 2
    + ["x lowest"] * 11
    + ["x SQLite"] * 5,
    "rcpt": ["x one read"] * 2 + ["x one read, _exit"],
    "peers": ratios_of_peers(),
}


@cache
def run(name: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        env={"PATH": os.defpath},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
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


def test_peers_are_measured_or_the_packages_named() -> None:
    printed = run("peers", "--quick")

    for peer in PEERS:
        assert (f"{peer.name}: known" in printed) != (
            f"{peer.name} is missing: apt-get install" in printed
        )


def test_ten_million_rows_are_a_run_of_their_own() -> None:
    assert "while they expire" in run("peers", "--ten-million", "--quick")


def test_what_a_failing_child_wrote_is_in_the_error(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    failing = silent(place, [*BARE[:-1], "raise SystemExit('no such host')"], {}, "SELECT 1")

    with pytest.raises(WrongAnswer, match=re.escape("SELECT 1: exit code 1, not 0\nno such host")):
        failing()

    os.close(place.log)


def test_every_benchmark_is_tested_and_in_the_manual() -> None:
    text = (ROOT / "benchmarks" / "README.rst").read_text()

    commands = {
        path.stem
        for path in Path(ROOT / "benchmarks").glob("*.py")
        if "__main__" in path.read_text()
    }

    assert commands == set(RATIOS)
    assert all(f"benchmarks.{name}" in text for name in commands)


def test_residents_side_by_side_are_a_run_of_their_own() -> None:
    printed = run("peers", "--hosts", "--quick", "--rounds", "1")

    assert len(re.findall(r"\b\d+\.\d\d x one", printed)) == 2 * 2 * 2
    assert max(map(len, printed.splitlines())) <= 80
