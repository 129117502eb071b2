"""``greycheck install``: the launchers that qmail-smtpd runs, and what they need."""

import compileall
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import sleep

import click

from greycheck.cli import apart, files, native, server, terminal
from greycheck.cli.access import acting_as, barriers, can_act_as, named
from greycheck.cli.common import foreseen, read_settings
from greycheck.cli.launcher import PROGRAMS, interpreter, launcher, package, passing
from greycheck.resident import program
from greycheck.settings import SYSTEM_DIRECTORY, Settings
from greycheck.store import rights, schema
from greycheck.store.lean import StoreError

# The user that qmail-smtpd runs as, on every qmail.
QMAIL_USER = "qmaild"


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--user", help=f"The user that qmail-smtpd runs as.  [default: {QMAIL_USER}, where it exists]")
@click.option("--native", "in_c", is_flag=True, help="Compile them from C: they ask the resident, see greycheck serve.")
@click.option("--uninstall", is_flag=True, help="Take the launchers away again. The store is left alone.")
def install(directory: Path, user: str | None, in_c: bool, uninstall: bool) -> None:
    """Put greycheck, qmail-checkenv, greycheck-rcptcheck and greycheck-spp into DIR (say /var/qmail/bin), ready for qmail-smtpd.

    Makes the store, byte-compiles what a check loads, checks that the launchers run, as the user that qmail-smtpd runs as if called by
    root, and prints the lines that switch them on. Run it again after each upgrade of greycheck, Python or a database's driver. The
    schema of a server database is not made here (greycheck db upgrade does that); whether checks can use it is looked at.

    With --native they are compiled by musl-gcc or cc, for the settings socket and socket_patience of this moment, and those in Python are
    put into DIR/greycheck.d for where the resident does not answer. Without it, later, they make way for those in Python again;
    DIR/greycheck.d stays, for checks that have begun.
    """
    if not set(str(directory.resolve())).isdisjoint(UNQUOTABLE):
        raise click.ClickException(
            f"{directory}: a comma or a quote in its path does not fit into SMTPEXTFORK or tcprules"
        )
    paths = [directory.resolve() / name for name in PROGRAMS]
    with foreseen():
        if os.geteuid() == 0:
            # Root reads, runs and removes what is there, and writes more beside it.
            rights.only_roots(str(directory.absolute()))
            rights.only_roots(str(directory.absolute() / native.BEHIND))
        foreign = [path for path in paths + behind(paths) if os.path.lexists(path) and not native.is_ours(path)]
        if uninstall:
            remove([path for path in paths if path not in foreign])
            remove_behind(paths, foreign)
        if foreign:
            named = ", ".join(map(str, foreign))
            raise click.ClickException(f"{named}: not written by greycheck install: left alone")
        if not uninstall:
            put(paths, user, in_c)


# What ends a program's name in SMTPEXTFORK's list, or a value in the rules of tcprules.
UNQUOTABLE = ',"'


# How long a check may take from its start until Python has opened what it runs, in seconds.
REST = 1.0


def behind(paths: list[Path]) -> list[Path]:
    """Where the launchers in Python are that stand behind those in C at PATHS."""
    return [path.parent / native.BEHIND / path.name for path in paths]


def put(paths: list[Path], user: str | None, in_c: bool) -> None:
    """Installs the launchers PATHS for USER, compiled if they are to be IN_C, and says how to switch them on."""
    found = read_settings()
    account = find_account(user)
    if os.geteuid() == 0:
        account = settled(account, paths[0].parent, found)
    compiled = native.compile_program(behind(paths)[0].parent, found) if in_c else None
    make_store(found, account)
    make_state_directory(found, account)
    complaints = compile_rooms(account, found)
    if compiled:
        put_native(paths, compiled[0])
    else:
        # What is behind stays: a child in C that has begun may still become it.
        for path in [path for path in behind(paths) if path.exists()] + paths:
            write(path, launcher(path.name).encode())
    in_python = behind(paths) if compiled else paths
    every = list(dict.fromkeys(paths + in_python))
    if account is None or not can_act_as(account):
        complaints += [complaint for path in every if (complaint := try_run(path))]
    if account:
        complaints += check_as(account, every, found)
    complaints += try_database(in_python[0], account, found)
    if compiled:
        terminal.echo(f"compiled by {compiled[1]}; they ask the resident, greycheck serve, at {found.socket}")
    terminal.echo(*lines(paths, found).split("\n"))
    with acting_as(account if account and can_act_as(account) else None):
        complaint = program.other(found.socket, found.socket_patience) if found.socket else ""
    if complaint:
        terminal.echo("", f"{complaint}:", *program.RESTART.split("\n"))
    if complaints:
        raise click.ClickException("\n".join(["not ready:", *complaints]))


def settled(account: pwd.struct_passwd | None, directory: Path, found: Settings) -> pwd.struct_passwd:
    """For root: the ACCOUNT for which to install into DIRECTORY. Raises ClickException where there is none.

    Raises StoreError where the settings FOUND are those of a third user, or where ACCOUNT may write others than the database's URL.
    """
    if account is None:
        command = f"greycheck install {shlex.quote(str(directory))} --user NAME"
        raise click.ClickException(
            f"{QMAIL_USER}: no such user here: root would make a store that no check can use. Name the user that qmail-smtpd runs as:"
            f" {command}"
        )
    rights.owner_of(found, marks=False)
    writer, file = rights.author(found)
    if writer != account.pw_uid:
        rights.only_roots(file)
    for source in found.sources.values():
        if source.startswith("/") and source != found.database_file:
            rights.only_roots(source.rpartition(":")[0])
    return account


def put_native(paths: list[Path], program: bytes) -> None:
    """Installs PROGRAM as each of PATHS; before that what it becomes where nobody answers."""
    directory = behind(paths)[0].parent
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    for path in behind(paths):
        write(path, launcher(path.name).encode())
    in_python = [(path, other) for path, other in zip(paths, behind(paths), strict=True) if is_in_python(path)]
    passing_on = [(path, text) for path, other in in_python if (text := passing(path.name, other))]
    for path, text in passing_on:
        write(path, text.encode())
    if passing_on:
        sleep(REST)
    for path in paths:
        write(path, native.for_python_too(program, launcher(path.name)))


def is_in_python(path: Path) -> bool:
    """Whether a program in Python, or a link to one, is at PATH."""
    return path.is_file() and files.read(path, 2) == b"#!"


def remove(paths: list[Path]) -> None:
    """Removes the launchers that are there."""
    for path in paths:
        if path.exists():
            path.unlink()
            terminal.echo(f"{path}: removed")


def remove_behind(paths: list[Path], kept: Iterable[Path]) -> None:
    """Removes the launchers behind PATHS, save those KEPT, and their directory if nothing else is there."""
    remove([path for path in behind(paths) if path not in kept])
    directory = behind(paths)[0].parent
    if directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir()):
        directory.rmdir()
        terminal.echo(f"{directory}: removed")


def write(path: Path, content: bytes) -> None:
    """Writes the program CONTENT to PATH at once, so that no check meets half of one."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o755)
            file.flush()
            os.fsync(descriptor)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


def compile_rooms(account: pwd.struct_passwd | None, found: Settings) -> list[str]:
    """Byte-compiles the package and the driver of checks for whoever runs them, whatever the umask; what is wrong where that fails."""
    asked = server.of(found)
    files = server.find_driver(asked, account).files if asked else ()
    umask = os.umask(0o022)
    try:
        compiled = bool(compileall.compile_dir(package(), quiet=2))
        not_compiled = [str(package())] * (not compiled) + compile_files(files)
    finally:
        os.umask(umask)
    return [
        f"{path}: could not be byte-compiled: each check would do that again, and take twice its time"
        for path in not_compiled
    ]


def compile_files(files: Iterable[Path]) -> list[str]:
    """Byte-compiles those of FILES that are modules in Python, where they are not; the directories of those where that fails."""
    sources = [path for path in files if path.suffix == ".py"]
    failed = [path for path in sources if is_others(path) or not compileall.compile_file(path, quiet=2)]
    return list(dict.fromkeys(str(path.parent) for path in failed))


def is_others(path: Path) -> bool:
    """Whether this is root, and others may change what it would write beside PATH."""
    if os.geteuid() == 0:
        try:
            rights.only_roots(str(path.parent / "__pycache__"))
        except StoreError:
            return True
    return False


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
        make_directory(
            path.parent, account if str(path.parent) == SYSTEM_DIRECTORY else None, found.database_mode == 0o660
        )
    owner = rights.owner_of(found) if os.geteuid() == 0 else 0
    apart.as_user(owner, lambda: schema.upgrade(found.database, found.database_mode))


def make_directory(path: Path, account: pwd.struct_passwd | None, shared: bool = False) -> None:
    """Makes the directory PATH for ACCOUNT if root asks; SHARED with his group. By whoever owns the directories that are there."""

    def make() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        if account and os.geteuid() == 0:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        if shared:
            path.chmod(0o2770)

    apart.as_user(rights.owner(str(path)) if os.geteuid() == 0 else 0, make)


def make_state_directory(found: Settings, account: pwd.struct_passwd | None) -> None:
    """Makes the directory in which checks mark hosts of a server database, for qmail's user if root asks."""
    path = Path(found.state_directory)
    if server.of(found) is None or path.exists():
        return
    make_directory(path, account)


# The environment of a trial: nothing of the site's, a store of its own, and no resident.
TRIAL = {"TCPREMOTEIP": "192.0.2.1", "GREYCHECK_CONFIG": "/dev/null"}
TRIAL |= {"REMOTEMF": "", "REMOTERCPT": "", "SENDER": "", "RECIPIENT": "", "SMTPMAILFROM": "", "SMTPRCPTTO": ""}

# How a deferral there looks: the exit code, and how what is printed begins.
DEFERRED = {"greycheck-rcptcheck": (111, b""), "greycheck-spp": (0, b"LD451 ")}

# How long a trial may take, in seconds.
TRIAL_TIME = 30


def try_run(path: Path, account: pwd.struct_passwd | None = None) -> str:
    """Lets the launcher PATH defer a mail, with a store made for that, as ACCOUNT if given; what is wrong with it, or nothing.

    All of it is done as ACCOUNT: what he owns he may exchange at any moment.
    """
    return str(apart.as_user(account.pw_uid if account else 0, lambda: _try_run(path, named(account))))


def _try_run(path: Path, whose: str) -> str:
    """Lets the launcher PATH defer a mail, with a store made for that; what is wrong with it, or nothing. WHOSE says as whom."""
    command = [str(path), "", ""] if path.name == "qmail-checkenv" else [str(path)]
    code, printed = DEFERRED.get(path.name, (101, b""))
    with tempfile.TemporaryDirectory(prefix="greycheck-trial-") as directory:
        schema.upgrade(f"sqlite:///{directory}/greycheck.db")
        try:
            ran = subprocess.run(
                command,
                env=TRIAL
                | {"GREYCHECK_DATABASE": f"{directory}/greycheck.db", "GREYCHECK_SOCKET": f"{directory}/socket"},
                capture_output=True,
                timeout=TRIAL_TIME,
                check=False,
                cwd="/",
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return f"{path}: does not run{whose}: {error.strerror}"
        except subprocess.TimeoutExpired:
            return f"{path}: does not end{whose} within {TRIAL_TIME}s"
    said = ran.stderr.decode(errors="replace").strip()
    if ran.returncode == code and ran.stdout[:6] == printed and "defer reason=new" in said:
        return ""
    return f"{path}: does not run{whose}: exit code {ran.returncode}: {said}"


def check_as(account: pwd.struct_passwd, paths: list[Path], found: Settings) -> list[str]:
    """What keeps ACCOUNT from running the launchers PATHS under the settings FOUND: they are run as him. Only root can tell."""
    if not can_act_as(account):
        return [
            f"whether {account.pw_name} can run this is not known: run greycheck install as root, or as {account.pw_name}"
        ]
    complaints = unreachable(account, paths, found)
    return complaints or [complaint for path in paths if (complaint := try_run(path, account))]


def unreachable(account: pwd.struct_passwd, paths: list[Path], found: Settings) -> list[str]:
    """What ACCOUNT, as whom this process can act, cannot reach of what a check by the launchers PATHS needs."""
    return [one.said(account.pw_name) for one in barriers(needed(paths, found), account)]


def needed(paths: list[Path], found: Settings) -> list[tuple[Path, int]]:
    """What a check by the launchers PATHS needs, and how."""
    every = [(path, os.R_OK | os.X_OK) for path in (Path(interpreter()), Path(sys.executable), *paths)]
    every += [(package() / "child.py", os.R_OK), *server.needed(found)]
    store = schema.sqlite_path(found.database)
    if store:
        every += [(store.parent, os.R_OK | os.W_OK | os.X_OK)]
        files = [store.with_name(store.name + suffix) for suffix in ("", "-wal", "-shm")]
        every += [(file, os.R_OK | os.W_OK) for file in files if os.access(file, os.F_OK)]
    return every


def try_database(path: Path, account: pwd.struct_passwd | None, found: Settings) -> list[str]:
    """What keeps the launcher PATH from using its server database, as ACCOUNT if root asks; nothing for an SQLite file."""
    asked = server.of(found)
    if asked is None:
        return []
    complaints = server.complaints(asked, found, account) or [server.try_server(path, account, found)]
    complaints += [server.state_complaint(found, account), *server.exposures(found, account)]
    return [complaint for complaint in complaints if complaint]


def lines(paths: list[Path], found: Settings) -> str:
    """What to write where, to switch the launchers in PATHS on with the settings FOUND."""
    program, checkenv, rcptcheck, spp = paths
    names = [f"GREYCHECK_{name.upper()}" for name in found.sources]
    mine = {name: os.environ[name] for name in (*names, "GREYCHECK_CONFIG") if name in os.environ}
    settings = "".join(f"\n  echo {shlex.quote(shown(name, value))} > env/{name}" for name, value in mine.items())
    if settings:
        settings = f"\nWhat you set in this environment, qmail-smtpd and cron must have too; with envdir:{settings}"
    if any(shown(name, value) != value for name, value in mine.items()):
        settings += (
            "\n*** is a password: better keep that line in a file that only qmail's user can read, and set"
            " GREYCHECK_DATABASE_FILE to its path"
        )
    expire = f"{'envdir /PATH/TO/env ' if mine else ''}{program} expire"
    whose = "qmail's user, on one host that uses the database or on each" if server.of(found) else "the store's owner"
    shown_paths = "\n".join(map(str, paths))
    return f"""\
{shown_paths}

Switch one of the hooks on, for tcpserver's clients that are not relay clients.
SMTPEXTFORK, in the rules that tcprules compiles, or as a file of envdir:
  :allow,SMTPEXTFORK="{program}"
  echo {shlex.quote(str(program))} > env/SMTPEXTFORK
CHECKENV, which runs bin/{checkenv.name} below the qmail home:
  :allow,CHECKENV=""
  echo > env/CHECKENV
RCPTCHECK, in the same places:
  :allow,RCPTCHECK="{rcptcheck}"
  echo {shlex.quote(str(rcptcheck))} > env/RCPTCHECK
qmail-spp, by a line below [rcpt] in control/smtpplugins:
  {spp}
Leave relay clients out, and single clients if you like:
  127.:allow,RELAYCLIENT=""
  192.0.2.25:allow,GREYCHECK="off"
And once an hour, from the crontab of {whose}:
  7 * * * * {expire}{settings}"""


def shown(name: str, value: str) -> str:
    """The VALUE of the variable NAME, a password hidden."""
    return schema.shown(value) if name == "GREYCHECK_DATABASE" and "://" in value else value
