"""``greycheck install``: the launchers that qmail-smtpd runs, and what they need."""

import compileall
import os
import pwd
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import sleep

import click

from greycheck.cli import terminal
from greycheck.cli.common import foreseen, read_settings
from greycheck.hooks import every
from greycheck.launchers import cron, database, native, trial
from greycheck.launchers.python import PROGRAMS, launcher, package, passing
from greycheck.launchers.trial import (
    behind,
    check_as,
    command,
    find_account,
    try_database,
    try_run,
)
from greycheck.privilege import apart, files
from greycheck.privilege.access import acting_as, can_act_as
from greycheck.resident import program
from greycheck.settings import SYSTEM_DIRECTORY, Settings
from greycheck.store import rights
from greycheck.store.base import StoreError
from greycheck.store.schema import migrate

HELP = f"""\
Put {", ".join(PROGRAMS[:-1])} and {PROGRAMS[-1]} into DIR (say /var/qmail/bin), ready for qmail-smtpd.

Makes the store, byte-compiles what a check loads, checks that the launchers run, as the user that
qmail-smtpd runs as if called by root, and prints the lines that switch them on. Run it again after
each upgrade of greycheck, Python or a database's driver. The schema of a server database is not
made here (greycheck db upgrade does that); whether checks can use it is looked at.

With --native they are compiled by musl-gcc or cc, for the settings socket and socket_patience of
this moment, and those in Python are put into DIR/greycheck.d for where the resident does not
answer. Without it, later, they make way for those in Python again; DIR/greycheck.d stays, for
checks that have begun.
"""  # noqa: E501


@click.command(help=HELP)
@click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--user",
    help=f"The user that qmail-smtpd runs as.  [default: {trial.QMAIL_USER}, where it exists]",
)
@click.option(
    "--native",
    "in_c",
    is_flag=True,
    help="Compile them from C: they ask the resident, see greycheck serve.",
)
@click.option(
    "--uninstall", is_flag=True, help="Take the launchers away again. The store is left alone."
)
def install(directory: Path, user: str | None, in_c: bool, uninstall: bool) -> None:
    """See HELP."""
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
        foreign = [
            path
            for path in paths + behind(paths)
            if os.path.lexists(path) and not native.is_ours(path)
        ]
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


def put(paths: list[Path], user: str | None, in_c: bool) -> None:
    """Installs the launchers PATHS for USER, compiled if IN_C, and says how to switch them on."""
    settings = read_settings()
    account = find_account(user)
    if os.geteuid() == 0:
        account = settled(account, paths[0].parent, settings)
    compiled = native.compile_program(behind(paths)[0].parent, settings) if in_c else None
    make_store(settings, account)
    make_state_directory(settings, account)
    complaints = compile_rooms(account, settings)
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
        complaints += check_as(account, every, settings)
    complaints += try_database(
        in_python[0], account, settings, command(paths[0].parent, user, in_c)
    )
    if compiled:
        terminal.echo(
            f"compiled by {compiled[1]}; they ask the resident, greycheck serve, at",
            f"  {settings.socket}",
        )
    terminal.echo(*lines(paths, settings).split("\n"))
    with acting_as(account if account and can_act_as(account) else None):
        complaint = (
            program.other(settings.socket, settings.socket_patience) if settings.socket else ""
        )
    if complaint:
        terminal.echo("", f"{complaint}:", *program.RESTART.split("\n"))
    if complaints:
        raise click.ClickException("\n".join(["not ready:", *complaints]))


def settled(
    account: pwd.struct_passwd | None, directory: Path, settings: Settings
) -> pwd.struct_passwd:
    """For root: the ACCOUNT for which to install into DIRECTORY.

    Raises ClickException where there is none.

    Raises StoreError where SETTINGS are those of a third user, or where ACCOUNT may write
    others than the database's URL.
    """
    if account is None:
        command = f"greycheck install {shlex.quote(str(directory))} --user NAME"
        raise click.ClickException(
            f"{trial.QMAIL_USER}: no such user here: root would make a store that no check can"
            " use. Name"
            " the user that qmail-smtpd runs as:"
            f" {command}"
        )
    rights.owner_of(settings, marks=False)
    writer, file = rights.author(settings)
    if writer != account.pw_uid:
        rights.only_roots(file)
    for source in settings.sources.values():
        if source.startswith("/") and source != settings.database_file:
            rights.only_roots(source.rpartition(":")[0])
    return account


def put_native(paths: list[Path], program: bytes) -> None:
    """Installs PROGRAM as each of PATHS; before that what it becomes where nobody answers."""
    directory = behind(paths)[0].parent
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    for path in behind(paths):
        write(path, launcher(path.name).encode())
    in_python = [
        (path, other)
        for path, other in zip(paths, behind(paths), strict=True)
        if is_in_python(path)
    ]
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
    """Removes the launchers behind PATHS but those KEPT, and their directory once it is empty."""
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


def compile_rooms(account: pwd.struct_passwd | None, settings: Settings) -> list[str]:
    """Byte-compiles the package and the driver of checks for whoever runs them, whatever the umask.

    Returns what is wrong where that fails.
    """
    asked = settings.database.server
    files = database.find_driver(asked, account).files if asked else ()
    umask = os.umask(0o022)
    try:
        compiled = bool(compileall.compile_dir(package(), quiet=2))
        not_compiled = [str(package())] * (not compiled) + compile_files(files)
    finally:
        os.umask(umask)
    return [
        f"{path}: could not be byte-compiled: each check would do that again, and take twice its"
        " time"
        for path in not_compiled
    ]


def compile_files(files: Iterable[Path]) -> list[str]:
    """Byte-compiles those of FILES that are modules in Python, where they are not yet.

    Returns the directories of those where that fails.
    """
    sources = [path for path in files if path.suffix == ".py"]
    failed = [
        path for path in sources if is_others(path) or not compileall.compile_file(path, quiet=2)
    ]
    return list(dict.fromkeys(str(path.parent) for path in failed))


def is_others(path: Path) -> bool:
    """Whether this is root, and others may change what it would write beside PATH."""
    if os.geteuid() == 0:
        try:
            rights.only_roots(str(path.parent / "__pycache__"))
        except StoreError:
            return True
    return False


def make_store(settings: Settings, account: pwd.struct_passwd | None) -> None:
    """Makes the embedded store.

    If root asks, it is in the system's directory, which is made for qmail's user.
    """
    path = migrate.sqlite_path(settings.database)
    if path is None:
        return
    if settings.sources["database"] == "default" and not path.parent.exists():
        make_directory(
            path.parent,
            account if str(path.parent) == SYSTEM_DIRECTORY else None,
            settings.database_mode == 0o660,
        )
    owner = rights.owner_of(settings) if os.geteuid() == 0 else 0
    apart.as_user(owner, lambda: migrate.upgrade(settings.database, settings.database_mode))


def make_directory(path: Path, account: pwd.struct_passwd | None, shared: bool = False) -> None:
    """Makes the directory PATH for ACCOUNT if root asks; SHARED with his group.

    By whoever owns the directories that are there.
    """

    def make() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        if account and os.geteuid() == 0:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        if shared:
            path.chmod(0o2770)

    apart.as_user(rights.owner(str(path)) if os.geteuid() == 0 else 0, make)


def make_state_directory(settings: Settings, account: pwd.struct_passwd | None) -> None:
    """Makes the directory in which checks mark hosts of a server database.

    If root asks, it is made for qmail's user.
    """
    path = Path(settings.state_directory)
    if settings.database.server is None or path.exists():
        return
    make_directory(path, account)


def lines(paths: list[Path], settings: Settings) -> str:
    """What to write where, to switch the launchers in PATHS on with SETTINGS."""
    switches = [
        hook.SWITCH_ON.format(program=path, quoted=shlex.quote(str(path)))
        for hook, path in zip(every(), paths, strict=True)
    ]
    names = [f"GREYCHECK_{name.upper()}" for name in settings.sources]
    mine = {name: os.environ[name] for name in (*names, "GREYCHECK_CONFIG") if name in os.environ}
    variables = "".join(
        f"\n  echo {shlex.quote(shown(name, value))} > env/{name}" for name, value in mine.items()
    )
    if variables:
        variables = (
            "\nWhat is set in this environment, qmail-smtpd and cron must have too; by envdir:"
            f"{variables}"
        )
    if any(shown(name, value) != value for name, value in mine.items()):
        variables += (
            "\n*** is a password: better keep that line in a file that only qmail's user can"
            "\nread, and set GREYCHECK_DATABASE_FILE to its path"
        )
    before = "envdir /PATH/TO/env " if mine else ""
    expire = cron.line("7 * * * *", paths[0], "expire", before)
    resolve = (
        "\nAnd where no greycheck serve runs, once a minute, so that providers are known:"
        f"\n  {cron.line('* * * * *', paths[0], 'resolve', before)}"
        if settings.identity != "no"
        else ""
    )
    whose = (
        "qmail's user, on one host that uses the database or on each"
        if settings.database.server
        else "the store's owner"
    )
    shown_paths, hooks = "\n".join(map(str, paths)), "\n".join(switches)
    return f"""\
{shown_paths}

Switch one of the hooks on, for tcpserver's clients that are not relay clients.
{hooks}
Leave relay clients out, and single clients if you like:
  127.:allow,RELAYCLIENT=""
  192.0.2.25:allow,GREYCHECK="off"
And once an hour, from the crontab of {whose}:
  {expire}{resolve}{variables}"""


def shown(name: str, value: str) -> str:
    """The VALUE of the variable NAME, a password hidden."""
    return migrate.shown(value) if name == "GREYCHECK_DATABASE" and "://" in value else value
