"""The launcher in C as tests compile and run it, with programs that stand for the launchers in
Python.
"""

import ast
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from greycheck import settings
from greycheck.hooks import every
from greycheck.launchers import native, python

NAMES = python.PROGRAMS

# With what exit codes a hook is answered.
CODES = {code for hook in every() for code in hook.ANSWERS.values()}

# How the program that stands for a launcher in Python ends: as no hook wants it.
PYTHON = 42

# It notes its arguments and environment, which signals are blocked, what is left of an alarm, and
# which sockets are open.
STAND_IN = f"""#!{python.interpreter()} -IS
import _signal, os, stat, sys
blocked = [int(each) for each in _signal.pthread_sigmask(_signal.SIG_BLOCK, [])]
alarm = _signal.getitimer(_signal.ITIMER_REAL)
sockets = []
for each in range(20):
    try:
        sockets += [each] * stat.S_ISSOCK(os.fstat(each).st_mode)
    except OSError:
        pass
with open(os.environb[b"NOTES"], "w") as notes:
    notes.write(repr(([os.fsencode(each) for each in sys.argv], dict(os.environb), blocked, alarm, sockets)))
os._exit({PYTHON})
"""  # noqa: E501

SANITIZED = ["cc", "-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]
SANITIZED += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# A machine that is busy with other tests may let a resident wait.
PATIENCE = {b"GREYCHECK_SOCKET_PATIENCE": b"60s"}

# What sanitizers find goes to a file: a child's descriptors may be closed.
OPTIONS = "detect_leaks=0:exitcode=99:log_path="


@dataclass
class Python:
    """What the stand-in was given."""

    arguments: list[bytes]
    environ: dict[bytes, bytes]
    blocked: list[int]
    alarm: tuple[float, float]
    sockets: list[int]


@dataclass
class Ran:
    """How a program ended: its exit code, what it wrote on 1 and 2, and what Python was given, if
    it was asked.
    """

    code: int
    said: bytes
    log: bytes
    python: Python | None

    @property
    def lines(self) -> list[str]:
        return self.log.decode(errors="replace").splitlines()


class Programs:
    """The programs, compiled by COMMAND, in a DIRECTORY with stand-ins for those in Python."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self.directory = directory
        self.behind = directory / native.BEHIND
        self.behind.mkdir(parents=True)
        self.socket = directory / "socket"
        for name in NAMES:
            (self.behind / name).write_text(STAND_IN)
            (self.behind / name).chmod(0o755)
        found = settings.read(
            {b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_SOCKET": os.fsencode(self.socket)}
        )
        complaint = native.run_compiler(command, directory / NAMES[0], self.behind, found)
        assert not complaint, complaint
        for name in NAMES[1:]:
            os.link(directory / NAMES[0], directory / name)

    def run(
        self,
        name: str | bytes,
        *arguments: bytes | str,
        environ: dict[bytes, bytes],
        before: Callable[[], object] | None = None,
        log: int = subprocess.PIPE,
        argv: Sequence[bytes] | None = None,
        restore_signals: bool = True,
    ) -> Ran:
        """Runs program NAME with an SMTP dialogue on 0, watched."""
        reader, writer = os.pipe()
        os.write(writer, b"QUIT\r\n")
        os.close(writer)
        with tempfile.TemporaryDirectory() as directory:
            notes = Path(directory) / "notes"
            Path(directory).chmod(0o777)
            variables = PATIENCE | environ | {b"NOTES": os.fsencode(notes)}
            variables |= dict.fromkeys(
                (b"ASAN_OPTIONS", b"UBSAN_OPTIONS"), f"{OPTIONS}{directory}/fault".encode()
            )
            program = self.directory / os.fsdecode(name)
            try:
                ran = subprocess.run(
                    [*argv] if argv else [program, *arguments],
                    executable=program,
                    env=variables,
                    stdin=reader,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    preexec_fn=before
                    or (
                        None if argv is None else os.getpid
                    ),  # without one, Python 3.13 refuses an empty name
                    restore_signals=restore_signals,
                    timeout=120,
                    check=False,
                )
                assert os.read(reader, 100) == b"QUIT\r\n", "the program read what the client sent"
            finally:
                os.close(reader)
            faults = [path.read_text() for path in Path(directory).glob("fault*")]
            assert not faults, faults
            python = Python(*ast.literal_eval(notes.read_text())) if notes.exists() else None
        assert ran.returncode in CODES or (ran.returncode == PYTHON and python), ran
        return Ran(ran.returncode, ran.stdout, ran.stderr or b"", python)
