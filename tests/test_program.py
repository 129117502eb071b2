"""Which program a resident runs, as ``greycheck install`` and ``greycheck doctor`` ask it."""

import os
import pwd
import socket
from pathlib import Path

import pytest

from greycheck import __version__
from greycheck.doctor import examine
from greycheck.doctor import resident as looking
from greycheck.doctor.finding import Installation
from greycheck.resident import program
from greycheck.settings import Settings
from greycheck.store.compiled_sqlite import REVISION
from tests.cli.test_install import ME, install, qmail  # noqa: F401
from tests.doctor.test_doctor import installed, read  # noqa: F401
from tests.launchers.resident import Resident as Scripted
from tests.launchers.resident import Script
from tests.resident.conftest import start  # noqa: F401
from tests.resident.resident import Peer

OURS = f"{__version__} for schema {REVISION} is installed"


def test_one_that_runs_the_same_program_says_so(start, place: Path) -> None:  # type: ignore[no-untyped-def] # noqa: F811
    resident = start(listen="127.0.0.1:0")
    assert program.other(str(resident.socket), 60) == ""
    port = int(resident.log().partition("127.0.0.1:")[2].split()[0].rstrip(","))
    with Peer(("127.0.0.1", port)) as stranger:
        stranger.send(program.REQUEST + b"\n\n")
        assert stranger.answer() == b"action=DUNNO", "who may come from anywhere is told nothing"
    assert resident.reasons() == []


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        (b"action=DUNNO\n\n", "an older greycheck"),
        (b"action=DUNNO\nversion=0.0.1\nschema=0002\n\n", "greycheck 0.0.1 for schema 0002"),
        (
            program.ANSWER.replace(REVISION.encode(), b"9999"),
            f"greycheck {__version__} for schema 9999",
        ),
        (b"action=DUNNO\nversion=\x1b[2J\nschema=0002\n\n", "an older greycheck"),
        (b"action=DUNNO\nversion=1\nschema=" + b"1" * 5000 + b"\n\n", "an older greycheck"),
        (b"action=\xff\xfe\n\n", "an older greycheck"),
    ],
)
def test_another_is_named(place: Path, answer: bytes, runs: str) -> None:
    with Scripted(place / "socket", answer):
        said = program.other(f"{place}/socket", 60)
    assert said == f"{place}/socket: the resident there runs {runs}, and {OURS}"


@pytest.mark.parametrize("script", [None, b"", b"HTTP/1.1 400\n\n", Scripted.hang])
def test_what_gives_no_answer_is_none(place: Path, script: bytes | Script | None) -> None:
    with Scripted(place / "socket", script):
        assert program.other(f"{place}/socket", 1) == ""


def test_nobody_there_is_no_complaint(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(f"{place}/socket")
        assert program.other(f"{place}/socket", 1) == ""
    assert program.other(f"{place}/none", 1) == ""
    assert program.other("/" + "x" * 200, 1) == ""


def with_socket(installed: Installation, place: Path) -> Installation:  # noqa: F811
    found: Settings = read(installed.settings.database.url, SOCKET=f"{place}/socket")
    return Installation(
        installed.directory, pwd.getpwuid(os.geteuid()), found, installed.now, installed.proc
    )


@pytest.mark.parametrize(
    ("answer", "warned"), [(b"action=DUNNO\n\n", True), (program.ANSWER, False)]
)
def test_doctor_finds_it(
    installed: Installation,  # noqa: F811
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    warned: bool,
) -> None:
    monkeypatch.setattr(looking, "restart", list)
    with Scripted(place / "socket", answer):
        found = [one for one in examine(with_socket(installed, place)) if one.about == "resident"]
    assert [one.level for one in found] == ["warning" if warned else "ok"]
    assert [one.advice for one in found] == [
        "Restart it: svc -t, sv restart or systemctl restart greycheck." * warned
    ]
    (place / "socket").unlink()
    monkeypatch.setattr(looking, "restart", lambda: ["systemctl restart greycheck"])
    with Scripted(place / "socket", answer):
        [one] = looking.check_program(with_socket(installed, place))
    assert one.advice == "Run: systemctl restart greycheck" * warned


@pytest.mark.parametrize(("answer", "told"), [(b"action=DUNNO\n\n", True), (program.ANSWER, False)])
@pytest.mark.parametrize("how", [[], ["--native"]])
def test_install_says_what_to_restart(
    qmail: Path,  # noqa: F811
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    told: bool,
    how: list[str],
) -> None:
    monkeypatch.setenv("GREYCHECK_SOCKET", str(place / "resident"))
    with Scripted(place / "resident", answer):
        output = install(*how, qmail, "--user", ME).stdout
    last = (
        f"\n{place}/resident: the resident there runs an older greycheck, and {OURS}:\n"
        f"{program.RESTART}\n"
    )
    assert output.endswith(last) is told
    assert ("restart" in output) is told
