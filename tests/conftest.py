"""What all tests share: a place that any user can reach, and launchers installed as an operator installs them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import MEASURED, Child


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory below directories that any user may pass; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="greycheck-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def launchers() -> Iterator[Path]:
    """The directory of greycheck and qmail-checkenv, written by ``greycheck install``."""
    with tempfile.TemporaryDirectory(prefix="greycheck-bin-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        subprocess.run(
            [sys.executable, "-m", "greycheck", "install", name, "--user", "root" if os.geteuid() == 0 else str_user()],
            env={"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_DATABASE": f"{name}/unused.db"},
            check=True,
            capture_output=True,
        )
        yield directory


def str_user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="session")
def measured_launchers() -> Iterator[Path]:
    """The same two programs, run under coverage by an interpreter with its site."""
    with tempfile.TemporaryDirectory(prefix="greycheck-measured-") as name:
        for program in ("greycheck", "qmail-checkenv"):
            path = Path(name) / program
            path.write_text(MEASURED)
            path.chmod(0o755)
        yield Path(name)


@pytest.fixture
def child(launchers: Path, place: Path) -> Child:
    """The forked child with a store of its own."""
    return Child(launchers, place / "greycheck.db")


@pytest.fixture(params=["launcher", "measured"])
def any_child(request: pytest.FixtureRequest, place: Path) -> Child:
    """The forked child, as installed and under coverage."""
    name = "launchers" if request.param == "launcher" else "measured_launchers"
    return Child(request.getfixturevalue(name), place / "greycheck.db")
