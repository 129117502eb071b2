"""Examines the launchers, the modules that they load, and if their user may run and read them."""

import ast
import os
import pwd
import re
import shlex
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from errno import EACCES
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

import greycheck
from greycheck import hooks
from greycheck.doctor.finding import (
    DEFAULT_STORE,
    Finding,
    Installation,
    anothers,
    is_directory,
    is_ours,
    is_roots,
    make_directory,
    run,
    run_on,
    safe,
    set_to,
)
from greycheck.doctor.supervisor import restart, start
from greycheck.doctor.timings import milliseconds
from greycheck.hooks.delegation import BEGINNING, END, NO_QUESTION
from greycheck.launchers import native, python, trial
from greycheck.policy import UNKNOWN
from greycheck.privilege import access, files
from greycheck.store.schema import migrate

# The hook that runs each program.
HOOKS = {hook.PROGRAM: hook for hook in hooks.every()}


def check_launchers(installation: Installation) -> Iterator[Finding]:
    """Finds out if the programs of the hooks exist, are launchers of this version, and run."""
    directory = installation.directory
    if not directory.is_dir():
        found = f"{directory}: no such directory (--dir names another one, if they are elsewhere)"
        make = f"mkdir -p {shlex.quote(str(directory))} && {installing(installation)}"
        yield Finding("fault", "launchers", found, run(make))
        return
    there = [path for path in installation.programs if os.path.lexists(path)]
    if not there:
        yield Finding(
            "fault", "launchers", f"{directory}: no launcher here", run(installing(installation))
        )
        return
    compiled = [path for path in there if is_compiled(path)]
    again = run(installing(installation))
    examined = []
    for path in installation.programs:
        if path in there:
            examined.append(path)
        else:
            hook = HOOKS[path.name]
            found = f"{path}: not there: where {hook.TITLE} runs it, {hook.IF_MISSING}"
            yield Finding("fault", "launchers", found, again)
    for path in trial.behind(compiled):
        if os.path.lexists(path):
            examined.append(path)
        else:
            yield Finding(
                "fault",
                "launchers",
                f"{path}: not there; no check is made where the resident fails",
                again,
            )
    account = installation.known_account
    # Launchers that the user cannot reach are reported with the permissions.
    examined = [
        path
        for path in examined
        if account is None or not is_ours(path) or not is_barred(path, account)
    ]
    yield from once([(path, check_launcher(path, again, installation)) for path in examined])
    if compiled:
        yield check_resident(native.marks_of(compiled[0]).get("socket", ""), installation)


def once(found: list[tuple[Path, Finding]]) -> Iterator[Finding]:
    """Yields the findings in FOUND, each given with its launcher's path.

    A fault that several launchers have is reported once, with the first of them.
    """
    alike: dict[tuple[str, str], list[tuple[Path, Finding]]] = {}
    for path, one in found:
        alike.setdefault((one.level, one.found.replace(str(path), "")), []).append((path, one))
    for (path, one), *others in alike.values():
        if one.level == "ok":
            yield from [one, *(other for _path, other in others)]
            continue
        names = ", ".join(
            other.name if other.parent == path.parent else str(other) for other, _one in others
        )
        yield replace(one, found=f"{one.found} (and so {names})") if others else one


def installing(installation: Installation, directory: Path | None = None) -> str:
    """Returns the command that installs the launchers of INSTALLATION again, for the same user.

    They stay as they are, in C or in Python. With DIRECTORY it installs them there.
    """
    account = installation.account
    user = (
        account.pw_name
        if account and account.pw_name != trial.QMAIL_USER and installation.for_root
        else None
    )
    in_c = directory is None and any(map(is_compiled, installation.launchers))
    return trial.command(directory or installation.directory, user, in_c)


def is_compiled(path: Path) -> bool:
    """True if PATH can be read and is a launcher in C."""
    try:
        return bool(native.marks_of(path))
    except OSError:
        return False


def check_launcher(path: Path, again: str, installation: Installation) -> Finding:
    """Returns the finding about one launcher, which is run as the user of checks.

    AGAIN is the advice to install it again.
    """
    if not is_ours(path):
        return _foreign(path, again)
    account = installation.known_account
    if account is None and os.geteuid() == 0:
        found = f"{path}: not run: root runs it as the user of checks alone"
        return Finding(
            "note", "launchers", found, "Say which user qmail-smtpd runs as: --user NAME"
        )
    complaint = trial.try_run(path, account)
    if complaint:
        return Finding("fault", "launchers", complaint, again)
    if is_compiled(path):
        differs = native.differences(path, installation.settings)
        is_so = "compiled, runs"
    else:
        differs = differences(text_of(path), path.name)
        is_so = "runs"
    if differs:
        return Finding("warning", "launchers", f"{path}: {is_so}, but {'; '.join(differs)}", again)
    return Finding("ok", "launchers", f"{path}: version {greycheck.__version__}, {is_so}")


def is_barred(path: Path, account: pwd.struct_passwd) -> bool:
    """True if ACCOUNT cannot reach the launcher PATH, or what every launcher here needs."""
    with access.acting_as(account):
        needed = [(program, os.R_OK | os.X_OK) for program in (path, Path(python.interpreter()))]
        needed.append((python.package() / "child.py", os.R_OK))
        return any(access.barrier(one, wanted, account.pw_name) for one, wanted in needed)


def text_of(path: Path) -> str:
    """Returns the text of the launcher PATH, in Python. Raises OSError."""
    return files.read(path, LONGEST).decode(errors="replace")


# How many bytes of a launcher in Python are read.
LONGEST = 1_000_000


def check_resident(path: str, installation: Installation) -> Finding:
    """Finds out if the resident answers the launchers in C, at the socket PATH.

    It is asked as the user that runs them.
    """
    began = time.monotonic()
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(installation.settings.socket_patience)
            with access.acting_as(installation.known_account):
                asking.connect(path)
            asking.sendall(NO_QUESTION + END)
            answer = asking.recv(4096)
    except OSError as error:
        complaint = error.strerror or "no answer"
    else:
        complaint = "" if answer.startswith(BEGINNING) else "no answer"
    if not complaint:
        return Finding(
            "ok", "resident", f"{path}: answers after {milliseconds(time.monotonic() - began)}"
        )
    found = f"{path}: {complaint}: every check takes as long as Python takes to start"
    if complaint == os.strerror(EACCES):
        return Finding("warning", "resident", found, opening(path, installation))
    return Finding("warning", "resident", found, start(installation))


def opening(path: str, installation: Installation) -> str:
    """Returns the advice that lets the user of checks open the resident's socket at PATH."""
    account = installation.known_account or access.account_of(os.geteuid())
    with access.acting_as(account):
        barred = access.barred(Path(path), os.W_OK)
    if barred and barred != Path(path):
        return run_on(barred, "chmod o+x", installation.for_root)
    owner = set_to("socket_owner", f":{access.group_name(account.pw_gid)}", installation.settings)
    return run(" && ".join([owner, *restart()]))


def _foreign(path: Path, again: str) -> Finding:
    """Returns the finding about a program that is not a launcher.

    It is not run: it may do anything.
    """
    if is_dangling(path):
        found = f"{path}: a link to {safe(str(path.readlink()))}, which is not there"
        return Finding("fault", "launchers", found, again)
    if not os.access(path, os.R_OK):
        reason = access.describe(path)
        return Finding(
            "warning",
            "launchers",
            f"{reason}: cannot be read by {migrate.user_name(os.geteuid())}",
            again,
        )
    if lifts_limits(path):
        return Finding(
            "note",
            "launchers",
            f"{path}: the script qmail-checkenv.sh; the launcher it names is not tried",
        )
    found = f"{path}: not written by greycheck install"
    word = shlex.quote(str(path))
    advice = run(f"mv {word} {word}.old && {again.removeprefix('Run: ')}")
    return Finding("warning", "launchers", found, f"If it is not meant to be: {advice}")


def is_dangling(path: Path) -> bool:
    """True if PATH is a link to a file that does not exist."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def lifts_limits(path: Path) -> bool:
    """True if PATH is contrib/qmail-checkenv.sh, which lifts a soft limit that is too small."""
    try:
        return b"qmail-checkenv.sh" in files.read(path, 1024)
    except OSError:
        return False


def run_by_script(path: Path) -> str:
    """Returns the launcher that PATH, a qmail-checkenv.sh, runs if the environment names none.

    Empty if that cannot be found out.
    """
    try:
        match = re.search(
            rb"^PROGRAM=\$\{CHECKENV_PROGRAM:-(/[^}\n]+)\}", files.read(path, 4096), re.MULTILINE
        )
    except OSError:
        return ""
    return os.fsdecode(match[1]) if match else ""


PARTS = (
    ("version", re.compile(rf"^{re.escape(python.MARK)} ([^\s,]+)", re.MULTILINE)),
    ("package", re.compile(r"^    sys\.path\.insert\(0, '(.+)'\)$", re.MULTILINE)),
    ("place of drivers", re.compile(r"^    sys\.path\.extend\(\[(.*)\]\)$", re.MULTILINE)),
    ("commands' interpreter", re.compile(r"^    main\(\('([^']+)'", re.MULTILINE)),
)


def differences(text: str, program: str = python.PROGRAMS[0]) -> list[str]:
    """Returns in what the launcher TEXT differs from the one for PROGRAM.

    The other is what this interpreter and package would write.
    """
    mine = python.launcher(program)
    if text == mine:
        return []
    pairs = [("interpreter", named_interpreter(text), named_interpreter(mine))]
    pairs += [(what, _part(pattern, text), _part(pattern, mine)) for what, pattern in PARTS]
    differ = [
        f"its {what} is {theirs}, this one's is {ours}"
        for what, theirs, ours in pairs
        if theirs != ours
    ]
    return differ or ["it was edited"]


def named_interpreter(text: str) -> str:
    """Returns the interpreter that a launcher's TEXT starts, in its first line or through sh."""
    first, _newline, rest = text.partition("\n")
    program = first.removeprefix("#!").removesuffix(" -IS")
    if program != "/bin/sh":
        return program
    return _part(re.compile(r"^'''exec' (.+) -IS "), rest)


def _part(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else "unknown"


def check_modules(installation: Installation) -> Iterator[Finding]:
    """Finds out if what a check loads is byte-compiled.

    A module that is not costs time for every mail.
    """
    sources = modules() | driver_modules(installation)
    stale = {name: why for name, source in sources.items() if (why := staleness(source))}
    if not stale:
        yield Finding("ok", "modules", f"{len(sources)} modules are compiled and up to date")
        return
    some = ", ".join(f"{name} ({why})" for name, why in list(stale.items())[:3])
    more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
    yield Finding(
        "warning",
        "modules",
        f"{len(stale)} of {len(sources)} must be compiled at every mail: {some}{more}",
        again_as_owner(installation),
    )


def again_as_owner(installation: Installation) -> str:
    """Returns the advice to install again, as a user who may write compiled modules."""
    owner = python.package().stat().st_uid
    other = (
        ""
        if os.geteuid() in (0, owner)
        else f"sudo -u {shlex.quote(migrate.rights.user_name(owner))} "
    )
    return run(f"{other}{installing(installation)}")


def modules() -> dict[str, Path]:
    """Returns the source of each module of greycheck that a check may load.

    These are the child and what finds it, what it imports, and what that imports; and what is named
    and not imported: the later steps of the decision, and the files of the hooks.
    """
    sources: dict[str, Path] = {}
    waiting = ["greycheck", "greycheck.loading", "greycheck.child", UNKNOWN]
    waiting += [f"{hooks.__name__}.{hook.NAME}" for hook in HOOKS.values()]
    while waiting:
        name = waiting.pop(0)
        source = source_of(name)
        if source and name not in sources:
            sources[name] = source
            waiting += imports(source.read_bytes())
    return sources


def driver_modules(installation: Installation) -> dict[str, Path]:
    """Returns the source of each other module that a check loads: those of a server's driver."""
    files = installation.driver.files if installation.driver else ()
    return {
        str(path): path
        for path in files
        if path.suffix == ".py" and python.package() not in path.parents
    }


def source_of(name: str) -> Path | None:
    """Returns the file of module NAME of this package; None if it is no module."""
    place = python.package().joinpath(*name.split(".")[1:])
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def imports(text: bytes) -> list[str]:
    """Returns the names in this package that the source TEXT imports, and their packages."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.partition(".")[0] == "greycheck"
        ):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            names += [node.module.rpartition(".")[0]]
    return names


def staleness(source: Path) -> str:
    """Returns why the compiled form of SOURCE cannot be used; empty if it can."""
    path = compiled_path(source)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        return (
            "not compiled" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        )
    if len(head) < 16:
        return "cut short"
    magic, flags, mtime, size = struct.unpack("<4sIII", head)
    if magic != MAGIC_NUMBER:
        return "for another Python"
    if flags:
        unchecked = flags == 1
        return (
            ""
            if unchecked or head[8:] == source_hash(source.read_bytes())
            else "older than its source"
        )
    status = source.stat()
    same = (mtime, size) == (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    return "" if same else "older than its source"


def compiled_path(source: Path) -> Path:
    """Returns where a launcher's interpreter looks for the compiled form of SOURCE.

    It ignores environment variables.
    """
    return source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"


def check_permissions(installation: Installation) -> Iterator[Finding]:
    """Finds out if the user that runs launchers for qmail can reach all that a check needs."""
    account = installation.account
    if account is None:
        found = f"not looked at: there is no user {trial.QMAIL_USER} here"
        yield Finding(
            "note", "permissions", found, "Say which user qmail-smtpd runs as: --user NAME"
        )
        return
    if not access.can_act_as(account):
        found = (
            f"not looked at: {migrate.user_name(os.geteuid())} cannot tell what"
            f" {account.pw_name} may do"
        )
        yield Finding(
            "note", "permissions", found, f"Run greycheck doctor as root, or as {account.pw_name}."
        )
        return
    closed = closed_places(installation)
    yield from (
        Finding("fault", "permissions", one.message(account.pw_name), mend(one, installation))
        for one in closed
    )
    unreadable = unreadable_modules(account)
    advice = run(f"chmod -R go+rX {shlex.quote(str(python.package()))}")
    yield from (Finding("warning", "permissions", complaint, advice) for complaint in unreadable)
    if not closed and not unreadable:
        yield Finding(
            "ok", "permissions", f"{account.pw_name} can run the launchers and use the store"
        )


def closed_places(installation: Installation) -> list[access.Barrier]:
    """Returns what keeps the user that runs checks from what it needs.

    Empty if this process cannot find out. A missing directory of the store is reported with the
    store.
    """
    account = installation.known_account
    if account is None:
        return []
    compiled = [path for path in installation.launchers if is_compiled(path)]
    in_python = [path for path in trial.behind(compiled) if path.exists()]
    needed = trial.needed(installation.launchers + in_python, installation.settings)
    store = migrate.sqlite_path(installation.settings.database)
    if store and (is_directory(store) or migrate.trouble(store)):
        # That is reported with the disk, or with the store.
        needed = [each for each in needed if not each[1] & os.W_OK]
    return [one for one in access.barriers(needed, account) if os.path.lexists(one.place)]


def mend(closed: access.Barrier, installation: Installation) -> str:
    """Returns the command that opens the CLOSED place to the user that runs checks."""
    account, store = installation.account, migrate.sqlite_path(installation.settings.database)
    assert account is not None
    user, place = shlex.quote(account.pw_name), shlex.quote(str(closed.place))
    is_owner = closed.place.stat().st_uid == account.pw_uid
    if store and closed.place == store.parent:
        if is_owner:
            return run_on(closed.place, "chmod u+rwx", installation.for_root)
        if all(path.name.startswith(store.name) for path in closed.place.iterdir()):
            # Another user may have put links there to files of others.
            return run(f"chown {'-h' if closed.place.stat().st_uid else '-R'} {user} {place}")
        return run(
            f"{make_directory(account)} &&"
            f" {set_to('database', DEFAULT_STORE, installation.settings)}"
        )
    if not closed.wanted:
        return run_on(closed.place, "chmod o+x", installation.for_root)
    if is_owner:
        return run_on(closed.place, "chmod u+rw", installation.for_root)
    if store and closed.wanted & os.W_OK:
        return run(f"chown -h {user} {place}")
    if closed.wanted & os.X_OK:
        return run_on(closed.place, "chmod go+rx", installation.for_root)
    if python.package() in closed.place.parents:
        return run(f"chmod -R go+rX {shlex.quote(str(python.package()))}")
    if installation.for_root and not is_roots(closed.place):
        return anothers(closed.place)
    return run(
        f"chgrp {shlex.quote(access.group_name(account.pw_gid))} {place} && chmod g+r {place}"
    )


def unreadable_modules(account: pwd.struct_passwd) -> list[str]:
    """Returns compiled modules that ACCOUNT cannot read, and so compiles again for every mail."""
    compiled = [path for source in modules().values() if (path := compiled_path(source)).exists()]
    closed = access.barriers(((path, os.R_OK) for path in compiled), account)
    # A place above the package was reported already.
    return [
        one.message(account.pw_name) for one in closed if one.place not in python.package().parents
    ][:3]
