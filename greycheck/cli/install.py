"""``greycheck install``: the launchers that qmail-smtpd runs.

A launcher starts the interpreter in its fastest way, without its site, and goes straight to the child's rooms. It is also the last
resort: where not even the package can be read, it still ends in a verdict and a log line.
"""

import compileall
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

import greycheck
from greycheck.cli.common import foreseen, read_settings
from greycheck.settings import SYSTEM_DIRECTORY, Settings
from greycheck.store import schema

PROGRAMS = ("greycheck", "qmail-checkenv")

# The user that qmail-smtpd runs as, on every qmail.
QMAIL_USER = "qmaild"

MARK = "# A launcher of greycheck"

# What older kernels take of a first line, in bytes.
SHEBANG = 127

LAUNCHER = """\
{mark} {version}, written by `greycheck install`: run that again rather than edit this.
try:
    import sys
    sys.dont_write_bytecode = True
    sys.path.insert(0, {package!r})
    from greycheck.child import main
    main({operator!r})
except BaseException as error:
    import posix, _signal
    defer = posix.environ.get(b'GREYCHECK_ON_ERROR', b'').strip().lower() == b'defer'
    code, verdict = (101, 'defer') if defer else (0, 'accept')
    try:
        _signal.signal(_signal.SIGALRM, lambda number, frame: posix._exit(code))
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGALRM])
        _signal.alarm(1)
        text = ascii('%s: %s' % (type(error).__name__, error))
        posix.write(2, ('greycheck: %s reason=error error=%s\\n' % (verdict, text)).encode())
    finally:
        posix._exit(code)
"""


def interpreter() -> str:
    """The interpreter itself, behind any virtual environment: what a launcher starts."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def launcher() -> str:
    """The text of a launcher for this interpreter and this package."""
    program = interpreter()
    first = f"#!{program} -IS\n"
    if len(first) > SHEBANG or not set(program).isdisjoint(" \t"):
        first = f"#!/bin/sh\n'''exec' {shlex.quote(program)} -IS \"$0\" \"$@\"\n' '''\n"
    return first + LAUNCHER.format(
        mark=MARK,
        version=greycheck.__version__,
        package=str(package().parent),
        operator=(sys.executable, "-I", "-m", "greycheck"),
    )


def package() -> Path:
    """The directory of the package."""
    return Path(greycheck.__file__).parent.resolve()


def is_ours(path: Path) -> bool:
    """Whether PATH is a launcher that this command wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(1024)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--user", help=f"The user that qmail-smtpd runs as.  [default: {QMAIL_USER}, where it exists]")
@click.option("--uninstall", is_flag=True, help="Take the launchers away again. The store is left alone.")
def install(directory: Path, user: str | None, uninstall: bool) -> None:
    """Put greycheck and qmail-checkenv into DIR (say /var/qmail/bin), ready for qmail-smtpd.

    Makes the store, byte-compiles what a check loads, checks that the launchers run, as the user that qmail-smtpd runs as if called by
    root, and prints the lines that switch them on. Run it again after each upgrade of greycheck or Python.
    """
    if not set(str(directory.resolve())).isdisjoint(UNQUOTABLE):
        raise click.ClickException(
            f"{directory}: a comma or a quote in its path does not fit into SMTPEXTFORK or tcprules"
        )
    paths = [directory.resolve() / name for name in PROGRAMS]
    with foreseen():
        foreign = [path for path in paths if (path.exists() or path.is_symlink()) and not is_ours(path)]
        if uninstall:
            remove([path for path in paths if path not in foreign])
        if foreign:
            named = ", ".join(map(str, foreign))
            raise click.ClickException(f"{named}: not written by greycheck install: left alone")
        if not uninstall:
            put(paths, user)


# What ends a program's name in SMTPEXTFORK's list, or a value in the rules of tcprules.
UNQUOTABLE = ',"'


def put(paths: list[Path], user: str | None) -> None:
    """Installs the launchers PATHS for USER, and says how to switch them on."""
    found = read_settings()
    account = find_account(user)
    make_store(found, account)
    complaints = compile_rooms()
    for path in paths:
        write(path)
    complaints += [complaint for path in paths if (complaint := try_run(path))]
    if account:
        complaints += check_as(account, paths, found)
    click.echo(lines(paths, found))
    if complaints:
        raise click.ClickException("\n".join(["not ready:", *complaints]))


def remove(paths: list[Path]) -> None:
    """Removes the launchers that are there."""
    for path in paths:
        if path.exists():
            path.unlink()
            click.echo(f"{path}: removed")


def write(path: Path) -> None:
    """Writes a launcher to PATH at once, so that no check meets half of one."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(launcher())
        Path(draft).chmod(0o755)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


def compile_rooms() -> list[str]:
    """Byte-compiles the package for whoever runs it, whatever the umask; what is wrong where that fails."""
    umask = os.umask(0o022)
    try:
        compiled = compileall.compile_dir(package(), quiet=2)
    finally:
        os.umask(umask)
    if compiled:
        return []
    return [f"{package()}: could not be byte-compiled: each check would do that again, and take twice its time"]


def find_account(user: str | None) -> pwd.struct_passwd | None:
    """The account of USER, or qmail's where it exists."""
    try:
        return pwd.getpwnam(user or QMAIL_USER)
    except KeyError:
        if user:
            raise click.ClickException(f"{user}: no such user") from None
        return None


def make_store(found: Settings, account: pwd.struct_passwd | None) -> None:
    """Makes the embedded store; in the system's directory, which is made for qmail's user, if root asks."""
    path = schema.sqlite_path(found.database)
    if path is None:
        return
    if found.sources["database"] == "default" and not path.parent.exists():
        mode = 0o700 if found.database_mode == 0o600 else 0o2770
        path.parent.mkdir(parents=True)
        if str(path.parent) == SYSTEM_DIRECTORY and account:
            os.chown(path.parent, account.pw_uid, account.pw_gid)
        path.parent.chmod(mode)
    schema.upgrade(found.database, found.database_mode)


# The environment of a trial: nothing of the site's, and a store of its own.
TRIAL = {"TCPREMOTEIP": "192.0.2.1", "REMOTEMF": "", "REMOTERCPT": "", "GREYCHECK_CONFIG": "/dev/null"}

# How long a trial may take, in seconds.
TRIAL_TIME = 30


def try_run(path: Path, account: pwd.struct_passwd | None = None) -> str:
    """Lets the launcher PATH defer a mail, with a store made for that, as ACCOUNT if given; what is wrong with it, or nothing."""
    command = [str(path)] if path.name == "greycheck" else [str(path), "", ""]
    whose = f" as {account.pw_name}" if account else ""
    with tempfile.TemporaryDirectory(prefix="greycheck-trial-") as directory:
        if account and os.geteuid() == 0:
            os.chown(directory, account.pw_uid, account.pw_gid)
        schema.upgrade(f"sqlite:///{directory}/greycheck.db")
        try:
            ran = subprocess.run(
                command,
                env=TRIAL | {"GREYCHECK_DATABASE": f"{directory}/greycheck.db"},
                capture_output=True,
                timeout=TRIAL_TIME,
                check=False,
                cwd="/",
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as error:
            return f"{path}: does not run{whose}: {error.strerror}"
        except subprocess.TimeoutExpired:
            return f"{path}: does not end{whose} within {TRIAL_TIME}s"
    said = ran.stderr.decode(errors="replace").strip()
    if ran.returncode == 101 and "defer reason=new" in said:
        return ""
    return f"{path}: does not run{whose}: exit code {ran.returncode}: {said}"


def check_as(account: pwd.struct_passwd, paths: list[Path], found: Settings) -> list[str]:
    """What ACCOUNT cannot reach of what a check needs. Only root can tell."""
    if not can_act_as(account):
        return [
            f"whether {account.pw_name} can run this is not known: run greycheck install as root, or as {account.pw_name}"
        ]
    complaints = []
    needed = [(path, os.R_OK | os.X_OK) for path in (Path(interpreter()), Path(sys.executable), *paths)]
    needed += [(package() / "child.py", os.R_OK)]
    store = schema.sqlite_path(found.database)
    if store:
        needed += [(store.parent, os.R_OK | os.W_OK | os.X_OK)]
        files = [store.with_name(store.name + suffix) for suffix in ("", "-wal", "-shm")]
        needed += [(file, os.R_OK | os.W_OK) for file in files if os.access(file, os.F_OK)]
    with acting_as(account):
        for path, wanted in needed:
            complaint = barrier(path, wanted, account.pw_name)
            if complaint and complaint not in complaints:
                complaints.append(complaint)
    if not complaints and account.pw_uid != os.geteuid():
        complaints = [complaint for path in paths if (complaint := try_run(path, account))]
    return complaints


def can_act_as(account: pwd.struct_passwd) -> bool:
    """Whether this process can find out what ACCOUNT may do."""
    return os.geteuid() in (0, account.pw_uid)


@contextmanager
def acting_as(account: pwd.struct_passwd) -> Iterator[None]:
    """With the effective user, group and groups of ACCOUNT."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    group = os.getegid()
    os.setgroups([])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def barrier(path: Path, wanted: int, user: str) -> str:
    """What stands between the effective USER and PATH: the first directory that cannot be passed, or PATH itself; empty for nothing."""
    for parent in reversed(path.parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            return f"{user} cannot pass {describe(parent)} on the way to {path}"
    if not os.access(path, wanted, effective_ids=True):
        what = "write" if wanted & os.W_OK else "read"
        return f"{user} cannot {what} {describe(path)}"
    return ""


def describe(path: Path) -> str:
    """PATH with its mode and owner."""
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} ({error.strerror})"
    return f"{path} (mode {status.st_mode & 0o7777:04o}, owner {schema.user_name(status.st_uid)})"


def lines(paths: list[Path], found: Settings) -> str:
    """What to write where, to switch the launchers in PATHS on with the settings FOUND."""
    program, checkenv = paths
    names = [f"GREYCHECK_{name.upper()}" for name in found.sources]
    mine = {name: os.environ[name] for name in (*names, "GREYCHECK_CONFIG") if name in os.environ}
    settings = "".join(f"\n  echo {shlex.quote(value)} > env/{name}" for name, value in mine.items())
    if settings:
        settings = f"\nWhat you set in this environment, qmail-smtpd and cron must have too; with envdir:{settings}"
    expire = f"{'envdir /PATH/TO/env ' if mine else ''}{program} expire"
    return f"""\
{program}
{checkenv}

Switch one of the two hooks on, for tcpserver's clients that are not relay clients.
SMTPEXTFORK, in the rules that tcprules compiles, or as a file of envdir:
  :allow,SMTPEXTFORK="{program}"
  echo {shlex.quote(str(program))} > env/SMTPEXTFORK
CHECKENV, which runs bin/{checkenv.name} below the qmail home:
  :allow,CHECKENV=""
  echo > env/CHECKENV
Leave relay clients out, and single clients if you like:
  127.:allow,RELAYCLIENT=""
  192.0.2.25:allow,GREYCHECK="off"
And once an hour, from the crontab of the store's owner:
  7 * * * * {expire}{settings}"""
