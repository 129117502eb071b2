"""The run scripts and units in contrib, under the supervisors that they are for."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.resident.resident import ACCEPTED, Closed, Peer
from tests.servers import PATIENCE, wait_until
from tests.smtp.mailhost import tool
from tests.support import ROOT

CONTRIB = ROOT / "contrib"
SCRIPTS = sorted(path.relative_to(CONTRIB) for path in CONTRIB.rglob("run"))

# Root gives way to another user, as the scripts have it; others cannot, and stay themselves.
IS_ROOT = os.geteuid() == 0
USER = "nobody" if IS_ROOT else pwd.getpwuid(os.geteuid()).pw_name


def test_these_are_the_scripts() -> None:
    assert [str(path) for path in SCRIPTS] == [
        "daemontools/log/run",
        "daemontools/run",
        "runit/log/run",
        "runit/run",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_is_one_that_every_shell_reads(script: Path) -> None:
    path = CONTRIB / script
    assert path.stat().st_mode & 0o111
    for shell in (["sh"], ["bash", "--posix"], ["busybox", "sh"]):
        subprocess.run([*shell, "-n", path], check=True)
    copied = set(re.findall(r"contrib/(\S+run)\b", path.read_text()))
    assert all(Path(name) in SCRIPTS for name in copied)


class Service:
    """A service directory of KIND of supervisor in PLACE, with its log, and a socket and a store of
    its own.
    """

    def __init__(self, kind: str, place: Path) -> None:
        self.directory = place / "services" / "greycheck"
        self.socket = place / "sockets" / "socket"
        self.store = place / "store"
        self.store.mkdir()
        if IS_ROOT:
            shutil.chown(self.store, USER)
        program = place / "greycheck"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m greycheck "$@"\n')
        program.chmod(0o755)
        for script in ("run", "log/run"):
            path = self.directory / script
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (CONTRIB / kind / script).read_text()
            for old, new in (
                ("USER=qmaild", f"USER={USER}"),
                ("USER=qmaill", f"USER={USER}"),
                ("PROGRAM=/opt/greycheck/bin/greycheck", f"PROGRAM={program}"),
                ("SOCKETS=/run/greycheck", f"SOCKETS={self.socket.parent}"),
            ):
                text = text.replace(old, new)
            assert "/run/greycheck" not in text.partition("\n\n")[2]
            if not IS_ROOT:
                text = (
                    text.replace('setuidgid "$USER" ', "")
                    .replace('-u "$USER" ', "")
                    .replace('-o "$USER" ', "")
                )
            path.write_text(text)
            path.chmod(0o755)
        self.set(CONFIG="/dev/null", DATABASE=f"{self.store}/greycheck.db", SOCKET=str(self.socket))

    def set(self, **settings: str) -> None:
        """Puts SETTINGS into the directory env."""
        env = self.directory / "env"
        env.mkdir(exist_ok=True)
        for name, value in settings.items():
            (env / f"GREYCHECK_{name}").write_text(value)

    def ask(self, sender: str) -> str:
        with Peer(self.socket) as peer:
            return peer.ask(sender=sender)

    def answers(self) -> bool:
        try:
            with Peer(self.socket) as peer:
                return peer.ask(protocol_state="DATA") == ACCEPTED
        except (OSError, Closed):
            return False

    def wait(self) -> None:
        wait_until(self.answers, "the resident answers", self.log)

    def log(self) -> str:
        current = self.directory / "log" / "main" / "current"
        return current.read_text() if current.exists() else "no log"

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log().count(text) >= times, f"{text} in the log", self.log)


Supervise = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Starts a supervisor; ends it and all below it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str | Path) -> "subprocess.Popen[bytes]":
        environ = {"PATH": os.defpath}
        process = subprocess.Popen(
            command,
            env=environ,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_daemontools_runs_it(place: Path, supervise: Supervise) -> None:
    service = Service("daemontools", place)
    service.set(DELAY="7m", DEFER_TEXT="{wait} seconds")
    supervise(tool("svscan"), place / "services")
    service.wait()
    assert " 420 seconds" in service.ask("a@example.org")
    service.wait_for(" sender=<a@example.org> ")
    assert re.search(r"^@[0-9a-f]{24} greycheck: defer reason=new ", service.log(), re.MULTILINE)
    subprocess.run([tool("svc"), "-h", service.directory], check=True)
    service.wait_for("settings read again")
    service.set(DELAY="8m")
    subprocess.run([tool("svc"), "-t", service.directory], check=True)
    service.wait_for("note listening on ", 2)
    service.wait()
    assert " 480 seconds" in service.ask("b@example.org")
    subprocess.run([tool("svc"), "-dx", service.directory, service.directory / "log"], check=True)
    status = [tool("svstat"), str(service.directory)]
    wait_until(
        lambda: b"supervise not running" in subprocess.run(status, capture_output=True).stdout,
        "the end",
    )
    assert not service.answers()
    owner = service.socket.stat().st_uid
    assert owner == pwd.getpwnam(USER).pw_uid
    assert "serves as root" not in service.log()


def test_runit_runs_it(place: Path, supervise: Supervise) -> None:
    service = Service("runit", place)
    service.set(DELAY="7m", DEFER_TEXT="{wait} seconds")
    supervisor = supervise(tool("runsv"), service.directory)
    service.wait()
    assert " 420 seconds" in service.ask("a@example.org")
    service.wait_for(" sender=<a@example.org> ")
    subprocess.run([tool("sv"), "hup", service.directory], check=True, stdout=subprocess.DEVNULL)
    service.wait_for("settings read again")
    service.set(DELAY="8m")
    subprocess.run(
        [tool("sv"), "restart", service.directory], check=True, stdout=subprocess.DEVNULL
    )
    service.wait_for("note listening on ", 2)
    service.wait()
    assert " 480 seconds" in service.ask("b@example.org")
    subprocess.run([tool("sv"), "exit", service.directory], check=True, stdout=subprocess.DEVNULL)
    assert supervisor.wait(PATIENCE) == 0
    assert not service.answers()
    assert service.socket.stat().st_uid == pwd.getpwnam(USER).pw_uid
    assert "serves as root" not in service.log()


@pytest.mark.parametrize("kind", ["daemontools", "runit"])
def test_a_user_who_is_not_there_is_named_in_the_log(
    place: Path, supervise: Supervise, kind: str
) -> None:
    service = Service(kind, place)
    run = service.directory / "run"
    run.write_text(
        run.read_text()
        .replace(f"USER={USER}", "USER=no-such-user")
        .replace("-m 0755", "-o no-such-user")
    )
    command = (
        [tool("svscan"), place / "services"]
        if kind == "daemontools"
        else [tool("runsv"), service.directory]
    )
    supervise(*command)
    service.wait_for("invalid user")


# --- systemd --------------------------------------------------------------------------------------

UNITS = sorted(path.name for path in (CONTRIB / "systemd").iterdir())


def unit(name: str) -> dict[str, list[str]]:
    """The settings of the unit NAME, each with its values."""
    found: dict[str, list[str]] = {}
    for line in (CONTRIB / "systemd" / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_systemd_finds_nothing_wrong_with_its_units(place: Path) -> None:
    for name in UNITS:
        text = (CONTRIB / "systemd" / name).read_text()
        (place / name).write_text(text.replace("/opt/greycheck/bin/greycheck", tool("true")))
    command = [
        tool("systemd-analyze"),
        "verify",
        "--man=no",
        *(str(place / name) for name in UNITS),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_units_are_of_one_piece() -> None:
    service, listening = unit("greycheck.service"), unit("greycheck.socket")
    assert service["ExecStart"] == ["/opt/greycheck/bin/greycheck serve"]
    assert service["Type"] == ["notify"]
    assert unit("greycheck-expire.service")["ExecStart"] == ["/opt/greycheck/bin/greycheck expire"]
    weekly = unit("greycheck-providers.service")
    assert weekly["ExecStart"] == ["/opt/greycheck/bin/greycheck providers refresh --yes"]
    assert (
        service["User"]
        == listening["SocketUser"]
        == unit("greycheck-expire.service")["User"]
        == weekly["User"]
        == ["qmaild"]
    )
    assert listening["ListenStream"] == ["/run/greycheck/socket"]
    assert service["RuntimeDirectory"] == ["greycheck"]
