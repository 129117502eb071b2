"""Runs ``greycheck resolve`` once a minute beside the resident, in a process of its own.

So neither DNS nor what it needs ever touches the resident's loop, and nothing here waits: once a
second ``tick`` looks whether the process has ended, whether it has said anything, and whether the
next is due. What it says goes to the resident's log, as warnings. It is killed with the resident;
at whatever point that is, the store is whole.
"""

import os
import subprocess
import sys
from time import monotonic

from greycheck.resident.journal import Journal
from greycheck.settings import Settings

# How often it runs, and how soon the first time, in seconds.
EVERY, FIRST = 60.0, 2.0

# After how many seconds one is killed that should have ended by itself.
LONGEST = 300.0

# How much is read of what it says at a time, and how many lines of that are logged.
SAID, LINES = 65536, 5

# How long its end is waited for once it is killed, in seconds.
DYING = 1.0

# Variables of a supervisor that are meant for the resident alone.
OWN = (b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID")


class Resolving:
    """The process, for a resident with ENVIRON that logs to JOURNAL."""

    def __init__(self, environ: dict[bytes, bytes], journal: Journal, wanted: bool) -> None:
        """Never runs anything unless it is WANTED."""
        self._environ = {name: value for name, value in environ.items() if name not in OWN}
        self._journal = journal
        self._wanted = wanted and bool(sys.executable)
        self._next = monotonic() + FIRST
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def tick(self, settings: Settings) -> None:
        """Looks after the process; starts the next if it is due under SETTINGS."""
        now = monotonic()
        if self._process is not None:
            self._look(self._process, now)
        elif self._wanted and now >= self._next and settings.identity != "no":
            self._start(now)

    def kill(self) -> None:
        """Kills the process. No other is started."""
        self._wanted = False
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Kills the process, and waits for its end."""
        self.kill()
        if self._process is not None:
            try:
                self._process.wait(DYING)
            except subprocess.TimeoutExpired:
                return
            self._forget(self._process)

    def _start(self, now: float) -> None:
        self._began, self._next = now, now + EVERY
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "greycheck", "resolve"],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self._journal.warn(f"resolve: not started: {error}")
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _look(self, process: "subprocess.Popen[bytes]", now: float) -> None:
        code = process.poll()
        self._tell(process)
        if code is None:
            if now - self._began > LONGEST:
                self._journal.warn(f"resolve: killed after {LONGEST:g}s")
                process.kill()
            return
        self._forget(process)
        if code < 0:
            self._journal.warn(f"resolve: ended by signal {-code}")

    def _tell(self, process: "subprocess.Popen[bytes]") -> None:
        """Logs what PROCESS has said."""
        assert process.stdout is not None
        try:
            said = os.read(process.stdout.fileno(), SAID)
        except BlockingIOError:
            return
        lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
        # Of an account of what nobody foresaw the end says most.
        for line in lines[-LINES:]:
            self._journal.warn(f"resolve: {line.removeprefix('Error: ')}")

    def _forget(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
