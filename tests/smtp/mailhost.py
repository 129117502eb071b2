"""A mail host for tests: real tcpserver, the SMTP parent behind it, the checker installed, and a
log.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, sleep

from greycheck.launchers.python import launcher
from tests.smtp.dialogue import TIMEOUT, play
from tests.support import ROOT, Child

IPV4_BUILD = "ucspi-tcp"
IPV6_BUILD = "ucspi-tcp-ipv6"

# One session of the SMTP parent. Without its site Python starts in a third of the time, and there
# are thousands of sessions. Clients connect from loopback addresses, which never become known:
# 127.0.0.x is checked as 192.0.2.x, and 127.0.y.x as 198.51.y.x.
SESSION = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
address = os.environ.get("TCPREMOTEIP", "")
if address.startswith("127."):
    os.environ["TCPREMOTEIP"] = address.replace("127.0.0.", "192.0.2.").replace("127.0.", "198.51.")
elif address == "::1":
    os.environ["TCPREMOTEIP"] = "2001:db8::1"
from greycheck.demo.smtpd import main
main()
"""
PARENT = (sys.executable, "-IS", "-c", SESSION)

# Long enough for a child to be slow on a busy machine: a scenario that is about the deadline sets
# its own.
DEADLINE = "60s"


def ucspi(build: str, program: str) -> str:
    """The path of a PROGRAM of one of the two builds of ucspi-tcp."""
    path = ROOT / ".deps" / build / "usr" / "bin" / program
    assert path.is_file(), f"{path} is missing: dev/test fetches it"
    return str(path)


def tool(name: str) -> str:
    """The path of an installed program.

    Where it is missing the test fails: a skipped one would prove nothing.
    """
    path = shutil.which(name, path=f"{os.defpath}:/usr/sbin:/sbin")
    assert path, f"{name} is missing: dev/test installs it"
    return path


class Server:
    """A tcpserver that listens on HOST and PORT."""

    def __init__(self, process: "subprocess.Popen[bytes]", host: str, port: int) -> None:
        self.process = process
        self.host = host
        self.port = port

    def play(self, text: str, client: str | None = None) -> None:
        """Plays the dialogue TEXT from the address CLIENT."""
        play(text, self.host, self.port, client)

    def stop(self) -> None:
        """Ends it, and every session and checker below it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


class MailHost:
    """A directory with a qmail home, a log and the servers that share them and the child's
    store.
    """

    def __init__(self, place: Path, child: Child) -> None:
        self.place = place
        self.child = child
        self.age = child.age
        self.rows = child.rows
        self.greycheck = str(child.programs / "greycheck")
        self.checkenv = str(child.programs / "qmail-checkenv")
        self.rcptcheck = str(child.programs / "greycheck-rcptcheck")
        self.spp = str(child.programs / "greycheck-spp")
        self.home = place / "qmail"
        (self.home / "bin").mkdir(parents=True)
        (self.home / "bin" / "qmail-checkenv").symlink_to(self.checkenv)
        self.log_file = place / "log"
        self.log_file.touch()
        self.servers: list[Server] = []

    def start(
        self,
        build: str = IPV4_BUILD,
        host: str = "127.0.0.1",
        listen: str | None = None,
        rules: str = "",
        under: Sequence[str] = (),
        user: str = "",
        **environ: str,
    ) -> Server:
        """Starts a tcpserver of BUILD whose sessions get ENVIRON, and what tcprules makes of RULES
        for their client.

        It listens on LISTEN, tcpserver's word for it, where that is not the HOST that clients
        connect to. UNDER is a command that runs tcpserver, and USER the account that sessions run
        as.
        """
        command = [
            *under,
            ucspi(build, "tcpserver"),
            "-1",
            "-v",
            "-H",
            "-R",
            "-l0",
            "-c60",
            "-b128",
        ]
        if rules:
            command += ["-x", self.compiled(rules)]
        if user:
            account = pwd.getpwnam(user)
            command += [f"-u{account.pw_uid}", f"-g{account.pw_gid}"]
        command += [listen or host, "0", *PARENT]
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environ(**environ),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout
        port = process.stdout.readline()
        server = Server(process, host, int(port or 0))
        self.servers.append(server)
        assert port, self.log()
        return server

    def stop(self) -> None:
        """Stops every server."""
        while self.servers:
            self.servers.pop().stop()

    def environ(self, **more: str) -> dict[bytes, bytes]:
        """The environment of a run script.

        The parent must not set LC_CTYPE for the checker: qmail-smtpd does not.
        """
        variables: dict[str, str | bytes] = {
            "QMAIL_HOME": str(self.home),
            "PYTHONCOERCECLOCALE": "0",
            "GREYCHECK_DEADLINE": DEADLINE,
        }
        return self.child.environ(None, **(variables | more))

    def compiled(self, rules: str) -> str:
        """The path of RULES, compiled by tcprules."""
        compiled = self.place / f"rules{len(self.servers)}.cdb"
        command = [ucspi(IPV4_BUILD, "tcprules"), str(compiled), f"{compiled}.new"]
        subprocess.run(command, input=rules.encode() + b"\n", check=True)
        return str(compiled)

    def script(self, name: str, *lines: str) -> str:
        """The path of a shell script, to be run in the place of a checker."""
        path = self.place / name
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return str(path)

    def without_package(self, program: str) -> str:
        """The path of the launcher PROGRAM whose package cannot be found."""
        directory = self.place / "broken"
        directory.mkdir()
        path = directory / program
        path.write_text(launcher(program).replace(repr(str(ROOT)), repr("/nonexistent")))
        path.chmod(0o755)
        return str(path)

    def command(self, *words: str) -> None:
        """Runs a command of greycheck."""
        subprocess.run(
            [sys.executable, "-m", "greycheck", *words],
            env=self.environ(),
            check=True,
            timeout=TIMEOUT,
        )

    def expire(self) -> None:
        """What cron does once an hour."""
        self.command("expire", "--yes")

    def log(self) -> list[str]:
        """The lines of the log. Only a line feed ends one."""
        text = self.log_file.read_bytes().decode("utf-8", "surrogateescape")
        return text.removesuffix("\n").split("\n")

    def checks(self) -> list[str]:
        """The log lines of greycheck."""
        return [line for line in self.log() if line.startswith("greycheck: ")]

    def check(self) -> str:
        """The log line of the one check that there was."""
        [line] = self.checks()
        return line

    def reasons(self) -> list[str]:
        """The reasons of all checks, in the order of their verdicts."""
        return [
            found
            for line in self.checks()
            for found in re.findall(r"^greycheck: \w+ reason=(\w+)", line)
        ]

    def count(self, table: str) -> object:
        """How many rows TABLE has."""
        return self.rows(f"SELECT count(*) FROM {table}")[0][0]


def wait_for(happened: Callable[[], bool]) -> None:
    """Waits until something HAPPENED that no client is told of."""
    end = monotonic() + TIMEOUT
    while not happened():
        assert monotonic() < end
        sleep(0.01)
