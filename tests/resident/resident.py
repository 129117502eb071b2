"""``greycheck serve`` as tests start it: a real process with a socket, a store and a log of its
own; and peers that ask it.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.servers import PATIENCE, wait_until
from tests.support import CLIENT, RECIPIENT, ROOT, SENDER, Database, SQLiteFile

Value = str | bytes | None

ENVELOPE: dict[str, Value] = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "client_address": CLIENT,
    "sender": SENDER,
    "recipient": RECIPIENT,
}


class Deferral(str):
    """A deferral, equal to any other, however long it lets wait: a second may have passed
    meanwhile.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and re.sub(r"\d+", "", self) == re.sub(r"\d+", "", other)

    def __ne__(self, other: object) -> bool:
        return not self == other


ACCEPTED = "DUNNO"
# Not the default, which tells nobody for how long: this is how tests see it.
DEFAULT = "greylisted, please try again later"
WITH_WAIT = "greylisted, please try again in {wait} seconds"
DEFERRED = Deferral("DEFER_IF_PERMIT 4.2.0 greylisted, please try again in 300 seconds")
REJECTED = "REJECT 5.7.1 refused by local policy"


def request(**attributes: Value) -> bytes:
    """A request about an ordinary envelope with these ATTRIBUTES; what is None is left out."""
    given = {
        name: os.fsencode(value)
        for name, value in (ENVELOPE | attributes).items()
        if value is not None
    }
    return b"".join(name.encode() + b"=" + value + b"\n" for name, value in given.items()) + b"\n"


class Closed(Exception):
    """The resident has closed the connection; ARGS[0] is what it had sent of an answer."""


class Conversation:
    """What is said on a SOCKET."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(PATIENCE)
        self._came = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> bytes:
        """The next answer, without its end. Raises Closed."""
        while b"\n\n" not in self._came:
            try:
                came = self.socket.recv(65536)
            except ConnectionError:
                came = b""
            if not came:
                raise Closed(self._came)
            self._came += came
        answer, _, self._came = self._came.partition(b"\n\n")
        return answer

    def action(self) -> str:
        """The action of the next answer, which says nothing else."""
        name, _, action = self.answer().decode().partition("=")
        assert name == "action", name
        assert "\n" not in action, action
        return action

    def ask(self, **attributes: Value) -> str:
        """The action that a request with ATTRIBUTES is answered with."""
        self.send(request(**attributes))
        return self.action()

    def is_closed(self) -> bool:
        """Whether the other side ends it without another word."""
        try:
            self.answer()
        except Closed as closed:
            return bool(closed.args[0] == b"")
        return False


class Peer(Conversation):
    """A connection to the resident at ADDRESS: a path, or host and port."""

    def __init__(self, address: Path | tuple[str, int], source: str = "") -> None:
        if isinstance(address, Path):
            connected = socket.socket(socket.AF_UNIX)
        else:
            connected = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        if source:
            connected.bind((source, 0))
        try:
            connected.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            connected.close()
            raise
        super().__init__(connected)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()


class Resident:
    """``greycheck serve`` in DIRECTORY with SETTINGS, an SQLite file or STORE, and what else a
    process may be given.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, str] | None = None,
        store: Database | None = None,
        arguments: Iterable[str] = (),
        under: Iterable[str] = (),
        log: int | None = None,
        environ: dict[str, str | None] | None = None,
        pass_fds: tuple[int, ...] = (),
        before: Callable[[], object] | None = None,
        program: Iterable[str] = ("-m", "greycheck"),
        resolves: bool = False,
    ) -> None:
        self.directory = directory
        self.socket = directory / "socket"
        self.store = store or SQLiteFile(directory / "greycheck.db")
        self._log = directory / "log"
        self._forgotten = self._log.stat().st_size if self._log.exists() else 0
        # Coverage tells its children by variables how to measure themselves.
        inherited = {
            name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")
        }
        variables: dict[str, str | None] = {
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_SOCKET": str(self.socket),
            "GREYCHECK_DEFER_TEXT": WITH_WAIT,
            **self.store.environ,
            **{f"GREYCHECK_{name.upper()}": value for name, value in (settings or {}).items()},
            **(environ or {}),
        }
        quiet = () if resolves else ("--no-resolve",)
        with self._log.open("ab") as own:
            self.process = subprocess.Popen(
                [*under, sys.executable, *program, "serve", *quiet, *arguments],
                env=inherited
                | {name: value for name, value in variables.items() if value is not None},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=own,
                stderr=own if log is None else log,
                pass_fds=pass_fds,
                preexec_fn=before,
            )

    def __enter__(self) -> "Resident":
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        code = self.stop()
        assert type_ or code == 0, f"exit code {code}: {self.log()}"

    # --- the process ------------------------------------------------------------------------------

    def wait(self) -> "Resident":
        """Waits until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, f"exit code {self.process.returncode}: {self.log()}"
            return self._settle()

        wait_until(answers, "the resident answers", self.log)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it by signal NUMBER, if it still runs; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def reread(self, times: int = 1) -> None:
        """Has it read its settings again, and waits until it has done so for as many TIMES in
        all.
        """
        self.signal(signal.SIGHUP)
        self.wait_for("settings read again", times)

    @property
    def memory(self) -> int:
        """Its resident memory, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    # --- what it says -----------------------------------------------------------------------------

    def log(self) -> str:
        """What it has logged, since ``forget``."""
        return self._log.read_bytes()[self._forgotten :].decode(errors="replace")

    def forget(self) -> None:
        """Has ``log`` begin here, and empties the store."""
        self.store.empty()
        self._settle()
        self._forgotten = self._log.stat().st_size

    def _settle(self) -> bool:
        """Waits until it has logged what it has answered: it does before it reads anything else.

        False where it answers nothing.
        """
        try:
            return self.process.poll() is None and self.ask(protocol_state="CONNECT") == ACCEPTED
        except (OSError, Closed):
            return False

    @property
    def lines(self) -> list[str]:
        """The lines of its log, those of all answers that came included."""
        self._settle()
        return self.log().splitlines()

    @property
    def verdicts(self) -> list[str]:
        """The lines that are verdicts."""
        return [line for line in self.lines if " reason=" in line]

    def reasons(self) -> list[str]:
        """The reasons of its verdicts."""
        return [line.partition(" reason=")[2].partition(" ")[0] for line in self.verdicts]

    def warnings(self) -> list[str]:
        """The warnings, without what all lines begin with."""
        start = "greycheck: warning "
        found = [line.removeprefix(start) for line in self.lines if line.startswith(start)]
        return [line for line in found if not line.startswith("serves as root")]

    def wait_for(self, text: str, times: int = 1) -> None:
        """Waits until its log holds TEXT so many TIMES."""
        wait_until(lambda: self.log().count(text) >= times, f"{text} in the log", self.log)

    # --- asking it --------------------------------------------------------------------------------

    def peer(self) -> Peer:
        """A new connection."""
        return Peer(self.socket)

    def ask(self, **attributes: Value) -> str:
        """The action that a request with ATTRIBUTES is answered with, on a connection of its
        own.
        """
        with self.peer() as peer:
            return peer.ask(**attributes)

    def ask_as(self, hook: str, **attributes: Value) -> dict[str, str]:
        """What a native child, called as HOOK, is answered; the resident closes after that.

        Lines of the log are joined.
        """
        with self.peer() as peer:
            peer.send(request(greycheck_hook=hook, **attributes))
            found: dict[str, str] = {}
            for line in peer.answer().decode().split("\n"):
                name, _, value = line.partition("=")
                found[name] = f"{found[name]}\n{value}" if name in found else value
            assert peer.is_closed(), "the connection stays open"
            return found

    def age(self, seconds: int) -> None:
        """Moves all that the store knows SECONDS into the past."""
        self.store.age(seconds)


class Asking(ABC):
    """NUMBER threads that ask, each by ``ask`` with its own number, until it is ``over``."""

    def __init__(self, number: int) -> None:
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=[each]) for each in range(number)]

    @abstractmethod
    def ask(self, number: int) -> None:
        """Asks until it is over, in the thread NUMBER."""

    @contextmanager
    def going_on(self) -> Iterator[None]:
        for thread in self.threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in self.threads:
                thread.join()


def operate(store: Database, *arguments: str) -> None:
    """Runs an operator's command on STORE."""
    ran = subprocess.run(
        [sys.executable, "-m", "greycheck", *arguments],
        env=dict(os.environ) | {"GREYCHECK_CONFIG": "/dev/null"} | store.environ,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
