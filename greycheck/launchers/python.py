"""The launcher that qmail-smtpd runs: its text, interpreter, and paths of package and drivers.

It starts the interpreter in its fastest way, without its site, and goes straight to the child's
rooms. It is also the last resort: where not even the package can be read, it still ends in a
verdict and a log line.
"""

import os
import re
import shlex
import site
import sys
from pathlib import Path

import greycheck
from greycheck.hooks import every
from greycheck.hooks.calling import last_resort, of_program
from greycheck.policy import ACCEPT, DEFER
from greycheck.privilege import files

PROGRAMS = tuple(hook.PROGRAM for hook in every())

MARK = "# A launcher of greycheck"

# What older kernels take of a first line, in bytes, and what they do from 5.1 on.
SHEBANG, LONGER_SHEBANG = 127, 255

# A child ends before it has made garbage, so it does not look for any: among all that is imported
# that takes a tenth of its own time. Where drivers are comes last, so that nothing else is looked
# for there first. The last resort is compiled with the rest: where memory is short, it could not be
# compiled when it is needed.
LAUNCHER = """\
{mark} {version}, written by `greycheck install`: run that again rather than edit this.
try:
    import gc, sys
    gc.disable()
    sys.dont_write_bytecode = True
    sys.path.insert(0, {package!r})
    sys.path.extend({drivers!r})
    from greycheck.loading import quicken
    quicken()
    from greycheck.child import main
    main({operator!r})
except BaseException as error:
    import posix, _signal
    defer = posix.environ.get(b'GREYCHECK_ON_ERROR', b'').strip().lower() == b'defer'
    code, verdict, words = ({code}, 'defer', {words!r}) if defer else ({accepts}, 'accept', {no_words!r})
    try:
        _signal.signal(_signal.SIGALRM, lambda number, frame: posix._exit(code))
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGALRM])
        _signal.alarm(1)
        if words:
            posix.write(1, words)
        text = ascii('%s: %s' % (type(error).__name__, error))
        posix.write(2, ('greycheck: %s reason=error error=%s\\n' % (verdict, text)).encode())
    finally:
        posix._exit(code)
"""  # noqa: E501


def interpreter() -> str:
    """The interpreter itself, behind any virtual environment: what a launcher starts."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def package() -> Path:
    """The directory of the package."""
    return Path(greycheck.__file__).parent.resolve()


def driver_directories() -> list[str]:
    """Returns where drivers are installed for the interpreter that runs this.

    Not what only one user's home directory has.
    """
    found = dict.fromkeys(
        str(Path(name).resolve()) for name in site.getsitepackages() if Path(name).is_dir()
    )
    found.pop(str(package().parent), None)
    return list(found)


def launcher(program: str = PROGRAMS[0]) -> str:
    """Returns the text of the launcher PROGRAM, which the interpreter that runs this starts."""
    python = interpreter()
    first = f"#!{python} -IS\n"
    if len(first) > SHEBANG or not set(python).isdisjoint(" \t"):
        first = f"#!/bin/sh\n'''exec' {shlex.quote(python)} -IS \"$0\" \"$@\"\n' '''\n"
    hook = of_program(program)
    code, words = last_resort(hook, DEFER)
    accepts, no_words = last_resort(hook, ACCEPT)
    return first + LAUNCHER.format(
        mark=MARK,
        version=greycheck.__version__,
        package=str(package().parent),
        drivers=driver_directories(),
        operator=(sys.executable, "-I", "-m", "greycheck"),
        code=code,
        words=words,
        accepts=accepts,
        no_words=no_words,
    )


def passing(program: str, behind: Path) -> str | None:
    """Returns the text of the launcher PROGRAM for the moment in which one in C takes its place.

    None if there is none. Python opens the file that it runs more than once, by its name, and may
    meet one of each. Started by this one it opens the launcher BEHIND alone, once. An interpreter
    that began with the one before finds the same program in it.
    """
    opened = f"import sys;del sys.argv[0];exec(open({str(behind)!r},'rb').read())"
    first = f"#!{interpreter()} -ISc{opened}\n"
    release = [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]]
    _before, _line, text = launcher(program).partition(" -IS\n")
    is_taken = text and len(os.fsencode(first)) <= (
        LONGER_SHEBANG if release >= [5, 1] else SHEBANG
    )
    return first + text if is_taken else None


def is_ours(path: Path) -> bool:
    """Whether PATH is a launcher that ``greycheck install`` wrote."""
    return path.is_file() and MARK.encode() in files.read(path, 1024)
