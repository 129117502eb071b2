"""The launcher in C: how it is compiled, and how one that is installed is known.

It asks the resident. Where that does not answer it becomes the launcher in Python that stands in BEHIND under the same name, so each
of these is written before the launcher in C is.

Diagnostics: ``click.ClickException`` with what the compiler said, and what to install.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import click

import greycheck
from greycheck.cli import files, launcher
from greycheck.settings import Settings

# The directory of the launchers in Python, below that of the programs.
BEHIND = "greycheck.d"

# musl's programs start in a quarter of the time that glibc's static ones take.
COMPILERS = ("musl-gcc", "cc")

FLAGS = ("-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Os", "-s", "-static", "-no-pie")

# Fewer pages to be read at each start.
LINKING = ("-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,--build-id=none")

# What the address of a unix socket has room for, in bytes.
LONGEST_SOCKET = 107

# How long a compiler may take, in seconds.
COMPILING_TIME = 60

# How much of a program is searched for the mark, in bytes: some linkers put other notes and code before it; and how programs begin.
SEARCHED = 2_000_000
ELF = b"\x7fELF"

INSTALL = "apt-get install gcc musl-tools (or gcc and libc6-dev, or the like of your system)"


def source() -> Path:
    """The source of the launcher in C."""
    return launcher.package() / "native" / "greycheck.c"


def marks(launchers: Path, found: Settings) -> dict[str, str]:
    """What a program compiled now, for LAUNCHERS in Python and under the settings FOUND, says of itself."""
    return {
        "version": greycheck.__version__,
        "source": hashlib.sha256(source().read_bytes()).hexdigest()[:16],
        "socket": found.socket,
        "patience": str(found.socket_patience),
        "directory": str(launchers),
    }


def mark(launchers: Path, found: Settings) -> str:
    """The text by which such a program is known."""
    lines = [f"{launcher.MARK} in C, compiled by `greycheck install --native`: run that again to change any of this."]
    lines += [f"{name} {value}" for name, value in marks(launchers, found).items()]
    return "\n".join(lines) + "\n"


def compile_program(launchers: Path, found: Settings) -> tuple[bytes, str]:
    """A program for LAUNCHERS in Python and the settings FOUND, and the compiler that made it. Raises ClickException."""
    if not found.socket:
        raise click.ClickException("socket is empty: with nobody to ask, install without --native")
    if len(os.fsencode(found.socket)) > LONGEST_SOCKET:
        raise click.ClickException(f"socket = {found.socket}: longer than {LONGEST_SOCKET} bytes")
    compilers = [compiler for compiler in COMPILERS if shutil.which(compiler)]
    if not compilers:
        raise click.ClickException(f"no C compiler: neither {' nor '.join(COMPILERS)} is there: {INSTALL}")
    said = []
    with tempfile.TemporaryDirectory(prefix="greycheck-native-") as directory:
        program = Path(directory) / "greycheck"
        for compiler in compilers:
            complaint = run_compiler([compiler, *FLAGS, *LINKING], program, launchers, found)
            if not complaint:
                return program.read_bytes(), compiler
            said.append(f"{compiler} makes no static program of {source()}: {complaint}")
    raise click.ClickException("\n".join([*said, f"Try: {INSTALL}"]))


def for_python_too(program: bytes, text: str) -> bytes:
    """PROGRAM with the launcher TEXT at its end as an archive, which Python runs where it is given the file.

    An interpreter opens its script some milliseconds after the kernel has read its name from there: by then PROGRAM may have taken
    its place. What is left is the tenth of a millisecond between Python's look for an archive and its opening of a text.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), text)
    return program + content.getvalue()


def run_compiler(command: list[str], program: Path, launchers: Path, found: Settings) -> str:
    """Compiles PROGRAM by COMMAND; what the compiler says where it fails."""
    definitions = [
        f"-DSOCKET={literal(found.socket)}",
        f"-DPATIENCE={found.socket_patience}",
        f"-DLAUNCHERS={literal(str(launchers))}",
        f"-DMARK={literal(mark(launchers, found))}",
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
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'


def is_ours(path: Path) -> bool:
    """Whether PATH is a launcher that ``greycheck install`` made, in Python or in C."""
    return launcher.is_ours(path) or bool(marks_of(path))


def marks_of(path: Path) -> dict[str, str]:
    """What the launcher in C that PATH is says of itself; nothing where it is none."""
    if not path.is_file():
        return {}
    content = files.read(path, SEARCHED)
    _before, found, rest = content.partition(f"{launcher.MARK} in C".encode())
    if not content.startswith(ELF) or not found:
        return {}
    lines = os.fsdecode(rest.partition(b"\0")[0]).splitlines()[1:]
    return {name: value for name, _blank, value in (line.partition(" ") for line in lines)}


def differences(path: Path, found: Settings) -> list[str]:
    """In what the launcher in C that PATH is differs from what would be compiled now, under the settings FOUND."""
    theirs = marks_of(path)
    return [
        f"its {name} is {theirs.get(name, 'unknown')}, and would be {value} now"
        for name, value in marks(path.parent / BEHIND, found).items()
        if theirs.get(name) != value
    ]
