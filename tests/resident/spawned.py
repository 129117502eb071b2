"""``greycheck policy`` as tests start it: a real process that is asked on its standard input, or as
Postfix's spawn asks it.
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

from tests.resident.resident import ACCEPTED, WITH_WAIT, Conversation
from tests.servers import PATIENCE, wait_until
from tests.support import ROOT, Database

# What pip's program does, save that the exit that skips everything else saves what coverage has
# measured.
MEASURED = """
import posix, sys
def save_and_leave(code, leave=posix._exit):
    measure = "coverage" in sys.modules and sys.modules["coverage"].Coverage.current()
    if measure:
        measure.stop()
        measure.save()
    leave(code)
posix._exit = save_and_leave
sys.argv = ["greycheck", "policy"]
from greycheck.__main__ import main
main()
"""
PROGRAM = [sys.executable, "-c", MEASURED]


class Spawned(Conversation):
    """``greycheck policy`` with STORE and SETTINGS; where it is SPAWNED its log's descriptor is the
    connection, as spawn(8) has it.
    """

    def __init__(
        self,
        store: Database,
        settings: dict[str, str] | None = None,
        spawned: bool = False,
        environ: dict[str, str] | None = None,
        log: int | None = None,
        measured: bool = True,
    ) -> None:
        self.store = store
        self.log_file = store.directory / "log"
        # What coverage measures it writes into an SQLite file of its own: where SQLite is made to
        # hang, nothing can be measured.
        measured = measured and "LD_PRELOAD" not in (environ or {})
        inherited = {
            name: value
            for name, value in os.environ.items()
            if measured and name.startswith("COVERAGE_")
        }
        variables = {
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DEFER_TEXT": WITH_WAIT,
            **store.environ,
            **{f"GREYCHECK_{name.upper()}": value for name, value in (settings or {}).items()},
            **(environ or {}),
        }
        mine, others = socket.socketpair()
        super().__init__(mine)
        with others, self.log_file.open("ab") as own:
            self.process = subprocess.Popen(
                PROGRAM,
                env=inherited | variables,
                cwd=ROOT,
                stdin=others.fileno(),
                stdout=others.fileno(),
                stderr=log or (others if spawned else own).fileno(),
            )

    def __enter__(self) -> "Spawned":
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.socket.close()
        try:
            self.wait()
        finally:
            self.process.kill()
            self.process.wait()

    def has_read(self) -> bool:
        """Whether it has read all that was sent."""
        unread = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, b"\0" * 4))
        return unread == (0,)

    def end(self) -> int:
        """Says that nothing more is asked; the exit code."""
        self.socket.shutdown(socket.SHUT_WR)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return int(self.process.wait(PATIENCE))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    @property
    def memory(self) -> int:
        """Its resident memory, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def log(self) -> str:
        """All that it has logged."""
        return self.log_file.read_bytes().decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.log().splitlines()

    def wait_for(self, text: str) -> None:
        """Waits until its log holds TEXT: an answer comes before its line."""
        wait_until(lambda: text in self.log(), f"{text} in the log", self.log)

    @property
    def verdicts(self) -> list[str]:
        """The lines that are verdicts, those of all answers included: it reads on after them."""
        assert self.ask(protocol_state="CONNECT") == ACCEPTED
        return [line for line in self.lines if " reason=" in line]

    def reasons(self, number: int | None = None) -> list[str]:
        """The reasons of its verdicts, once there are so many, or of all that it has answered."""
        if number is not None:
            wait_until(
                lambda: self.log().count(" reason=") >= number,
                f"{number} verdicts in the log",
                self.log,
            )
        lines = self.verdicts if number is None else self.lines
        return [
            line.partition(" reason=")[2].partition(" ")[0] for line in lines if " reason=" in line
        ]

    # --- as a resident is asked -------------------------------------------------------------------

    def peer(self) -> AbstractContextManager[Conversation]:
        """Its only connection."""
        return nullcontext(self)

    def age(self, seconds: int) -> None:
        """Moves all that the store knows SECONDS into the past."""
        self.store.age(seconds)
