"""The launcher in C: how it is compiled, and how one that is installed is known.

It asks the resident. Where that does not answer it becomes the launcher in Python that stands in
BEHIND under the same name, so each of these is written before the launcher in C is.

Diagnostics: ``click.ClickException`` with what the compiler said, and what to install.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import click

import greycheck
from greycheck.envelope import EXEMPTING, SPFRESULT
from greycheck.hooks import calling, every
from greycheck.hooks.record import Hook
from greycheck.launchers import python
from greycheck.policy import ACCEPT, DEFER, REJECT
from greycheck.privilege import files
from greycheck.settings import Settings

# The directory of the launchers in Python, below that of the programs.
BEHIND = "greycheck.d"

# musl's programs start in a quarter of the time that glibc's static ones take.
COMPILERS = ("musl-gcc", "cc")

FLAGS = (
    "-std=c99",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Os",
    "-s",
    "-static",
    "-no-pie",
)

# Fewer pages to be read at each start.
LINKING = ("-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,--build-id=none")

# What the address of a unix socket has room for, in bytes.
LONGEST_SOCKET = 107

# How long a compiler may take, in seconds.
COMPILING_TIME = 60

# How much of a program is searched for the mark, in bytes: some linkers put other notes and code
# before it; and how programs begin.
SEARCHED = 2_000_000
ELF = b"\x7fELF"

INSTALL = "apt-get install gcc musl-tools (or gcc and libc6-dev, or the like of your system)"


def source() -> Path:
    """The source of the launcher in C."""
    return python.package() / "launchers" / "greycheck.c"


def table() -> str:
    """Returns the initialisers of the C source's ``struct program``, made from the records."""
    return ", ".join(map(_row, every()))


def _row(hook: Hook) -> str:
    variables = [hook.VARIABLES.get(part, b"") for part in PARTS]
    codes = [str(hook.ANSWERS[action]) for action in (ACCEPT, DEFER, REJECT)]
    words = [calling.last_resort(hook, action)[1] for action in (ACCEPT, DEFER)]
    replies = [literal(os.fsdecode(each)) if hook.reply else "0" for each in words]
    further = [*EXEMPTING, os.fsdecode(SPFRESULT), *map(os.fsdecode, hook.FURTHER)]
    fields = (
        literal(hook.PROGRAM),
        f"LAUNCHERS {literal('/' + hook.PROGRAM)}",
        literal(hook.NAME),
        *(literal(os.fsdecode(each)) for each in variables),
        str(1 + len(hook.ARGUMENTS)),
        _braces(codes),
        _braces(replies),
        "(const char *const [])" + _braces([*map(literal, further), "0"]),
    )
    return _braces(fields)


def _braces(values: Iterable[str]) -> str:
    return "{" + ", ".join(values) + "}"


# The parts of an envelope of which a launcher in C knows the variables, in the order of its table.
PARTS = ("client", "name", "sender", "recipient", "helo")


def marks(launchers: Path, settings: Settings) -> dict[str, str]:
    """Returns what a program says of itself that is compiled now.

    It is for LAUNCHERS in Python, under SETTINGS.
    """
    return {
        "version": greycheck.__version__,
        "source": hashlib.sha256(source().read_bytes() + table().encode()).hexdigest()[:16],
        "socket": settings.socket,
        "patience": str(settings.socket_patience),
        "directory": str(launchers),
    }


def mark(launchers: Path, settings: Settings) -> str:
    """The text by which such a program is known."""
    lines = [
        f"{python.MARK} in C, compiled by `greycheck install --native`: run that again to change"
        " any of this."
    ]
    lines += [f"{name} {value}" for name, value in marks(launchers, settings).items()]
    return "\n".join(lines) + "\n"


def compile_program(launchers: Path, settings: Settings) -> tuple[bytes, str]:
    """A program for LAUNCHERS in Python and SETTINGS, and the compiler that made it.

    Raises ClickException.
    """
    if not settings.socket:
        raise click.ClickException("socket is empty: with nobody to ask, install without --native")
    if len(os.fsencode(settings.socket)) > LONGEST_SOCKET:
        raise click.ClickException(
            f"socket = {settings.socket}: longer than {LONGEST_SOCKET} bytes"
        )
    compilers = [compiler for compiler in COMPILERS if shutil.which(compiler)]
    if not compilers:
        raise click.ClickException(
            f"no C compiler: neither {' nor '.join(COMPILERS)} is there: {INSTALL}"
        )
    said = []
    with tempfile.TemporaryDirectory(prefix="greycheck-native-") as directory:
        program = Path(directory) / "greycheck"
        for compiler in compilers:
            complaint = run_compiler([compiler, *FLAGS, *LINKING], program, launchers, settings)
            if not complaint:
                return program.read_bytes(), compiler
            said.append(f"{compiler} makes no static program of {source()}: {complaint}")
    raise click.ClickException("\n".join([*said, f"Try: {INSTALL}"]))


def for_python_too(program: bytes, text: str) -> bytes:
    """Returns PROGRAM with the launcher TEXT at its end as an archive.

    Python runs that if it is given the file. An interpreter opens its script some milliseconds
    after the kernel has read its name from there: by then PROGRAM may have taken its place. What is
    left is the tenth of a millisecond between Python's look for an archive and its opening of a
    text.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), text)
    return program + content.getvalue()


def run_compiler(command: list[str], program: Path, launchers: Path, settings: Settings) -> str:
    """Compiles PROGRAM by COMMAND; what the compiler says where it fails."""
    definitions = [
        f"-DSOCKET={literal(settings.socket)}",
        f"-DPATIENCE={settings.socket_patience}",
        f"-DLAUNCHERS={literal(str(launchers))}",
        f"-DMARK={literal(mark(launchers, settings))}",
        f"-DPROGRAMS={table()}",
    ]
    try:
        ran = subprocess.run(
            [*command, *definitions, "-o", program, source()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILING_TIME,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ran.stderr.decode(errors="replace").strip() or "it fails" if ran.returncode else ""


def literal(text: str) -> str:
    r"""TEXT as a string of C, every byte that might mean something there as ``\NNN``."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /._-"
    return (
        '"'
        + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(text))
        + '"'
    )


def is_ours(path: Path) -> bool:
    """Whether PATH is a launcher that ``greycheck install`` made, in Python or in C."""
    return python.is_ours(path) or bool(marks_of(path))


def marks_of(path: Path) -> dict[str, str]:
    """What the launcher in C that PATH is says of itself; nothing where it is none."""
    if not path.is_file():
        return {}
    content = files.read(path, SEARCHED)
    _before, found, rest = content.partition(f"{python.MARK} in C".encode())
    if not content.startswith(ELF) or not found:
        return {}
    lines = os.fsdecode(rest.partition(b"\0")[0]).splitlines()[1:]
    return {name: value for name, _blank, value in (line.partition(" ") for line in lines)}


def differences(path: Path, settings: Settings) -> list[str]:
    """Returns in what the launcher PATH differs from one that is compiled now.

    That is in C, under SETTINGS.
    """
    theirs = marks_of(path)
    return [
        f"its {name} is {theirs.get(name, 'unknown')}, and would be {value} now"
        for name, value in marks(path.parent / BEHIND, settings).items()
        if theirs.get(name) != value
    ]
