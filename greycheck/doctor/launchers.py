"""The launchers, the modules that they load, and whether the user that runs them may."""

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
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

import greycheck
from greycheck.cli import access, files, install, launcher, native
from greycheck.doctor.finding import (
    DEFAULT_STORE,
    Finding,
    Installation,
    is_directory,
    is_ours,
    make_directory,
    milliseconds,
    run,
    safe,
    set_to,
)
from greycheck.store import schema

# Which hook runs each program.
HOOKS = {
    "greycheck": "SMTPEXTFORK",
    "qmail-checkenv": "CHECKENV",
    "greycheck-rcptcheck": "RCPTCHECK",
    "greycheck-spp": "qmail-spp",
}


# What becomes of mail where a hook's program is not there.
ENDS = {
    "SMTPEXTFORK": "all mail is accepted",
    "CHECKENV": "all mail is stopped",
    "RCPTCHECK": "all mail is deferred",
    "qmail-spp": "all mail is deferred",
}


def look_at_launchers(installation: Installation) -> Iterator[Finding]:
    """The programs that the hooks run: there, ours, of this version and interpreter, and they run."""
    directory = installation.directory
    if not directory.is_dir():
        found = f"{directory}: no such directory"
        yield Finding("fault", "launchers", found, f"Name the one that has them: --dir DIR. {_again(directory)}")
        return
    there = [path for path in installation.programs if os.path.lexists(path)]
    if not there:
        yield Finding("fault", "launchers", f"{directory}: no launcher here", _again(directory))
        return
    compiled = [path for path in there if is_compiled(path)]
    again = _again(directory, bool(compiled))
    looked = []
    for path in installation.programs:
        if path in there:
            looked.append(path)
        else:
            hook = HOOKS[path.name]
            yield Finding("fault", "launchers", f"{path}: not there: where {hook} runs it, {ENDS[hook]}", again)
    for path in install.behind(compiled):
        if os.path.lexists(path):
            looked.append(path)
        else:
            yield Finding("fault", "launchers", f"{path}: not there; no check is made where the resident fails", again)
    account = installation.known_account
    # What he cannot reach is told with the permissions.
    looked = [path for path in looked if account is None or not is_ours(path) or not is_barred(path, account)]
    yield from once([(path, look_at_launcher(path, again, installation)) for path in looked])
    if compiled:
        yield look_at_resident(native.marks_of(compiled[0]).get("socket", ""), installation)


def once(found: list[tuple[Path, Finding]]) -> Iterator[Finding]:
    """What was FOUND of launchers, each with its path; what is wrong with several in the same way is told with the first of them."""
    alike: dict[tuple[str, str], list[tuple[Path, Finding]]] = {}
    for path, one in found:
        alike.setdefault((one.level, one.found.replace(str(path), "")), []).append((path, one))
    for (path, one), *others in alike.values():
        if one.level == "ok":
            yield from [one, *(other for _path, other in others)]
            continue
        names = ", ".join(other.name if other.parent == path.parent else str(other) for other, _one in others)
        yield replace(one, found=f"{one.found} (and so {names})") if others else one


def _again(directory: Path, in_c: bool = False) -> str:
    """The advice to install once more."""
    return f"Run: greycheck install {'--native ' if in_c else ''}{shlex.quote(str(directory))}"


def is_compiled(path: Path) -> bool:
    """Whether PATH can be read, and is a launcher in C."""
    try:
        return bool(native.marks_of(path))
    except OSError:
        return False


def look_at_launcher(path: Path, again: str, installation: Installation) -> Finding:
    """One launcher of INSTALLATION; it is run as the user of checks. AGAIN is the advice to install it once more."""
    if not is_ours(path):
        return _foreign(path, again)
    account = installation.known_account
    if account is None and os.geteuid() == 0:
        found = f"{path}: not run: root runs it as the user of checks alone"
        return Finding("note", "launchers", found, "Say which user qmail-smtpd runs as: --user NAME")
    complaint = install.try_run(path, account)
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
    """Whether ACCOUNT cannot reach the launcher PATH, or what each launcher of this program needs."""
    with access.acting_as(account):
        needed = [(program, os.R_OK | os.X_OK) for program in (path, Path(launcher.interpreter()))]
        needed.append((launcher.package() / "child.py", os.R_OK))
        return any(access.barrier(one, wanted, account.pw_name) for one, wanted in needed)


def text_of(path: Path) -> str:
    """The text of the launcher PATH, in Python. Raises OSError."""
    return files.read(path, LONGEST).decode(errors="replace")


# Bytes that are read of a launcher in Python.
LONGEST = 1_000_000

# What the resident is asked: something about which there is nothing to decide.
QUESTION = b"request=smtpd_access_policy\nprotocol_state=CONNECT\n\n"


def look_at_resident(path: str, installation: Installation) -> Finding:
    """Whether the resident answers the launchers in C, at the socket PATH and as the user that they run as."""
    began = time.monotonic()
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(installation.settings.socket_patience)
            with access.acting_as(installation.known_account):
                asking.connect(path)
            asking.sendall(QUESTION)
            answer = asking.recv(4096)
    except OSError as error:
        complaint = error.strerror or "no answer"
    else:
        complaint = "" if answer.startswith(b"action=") else "no answer"
    if not complaint:
        return Finding("ok", "resident", f"{path}: answers after {milliseconds(time.monotonic() - began)}")
    found = f"{path}: {complaint}: every check takes as long as Python takes to start"
    advice = f"Run greycheck serve under a supervisor; {installation.user} must be able to open its socket"
    return Finding("warning", "resident", found, f"{advice} (socket_mode, socket_owner).")


def _foreign(path: Path, again: str) -> Finding:
    """A program that is not a launcher. It is not run: what it would do is not known."""
    if is_dangling(path):
        found = f"{path}: a link to {safe(str(path.readlink()))}, which is not there"
        return Finding("fault", "launchers", found, again)
    if not os.access(path, os.R_OK):
        reason = access.describe(path)
        return Finding("warning", "launchers", f"{reason}: cannot be read by {schema.user_name(os.geteuid())}", again)
    if lifts_limits(path):
        return Finding("note", "launchers", f"{path}: the script qmail-checkenv.sh; the launcher it names is not tried")
    found = f"{path}: not written by greycheck install"
    word = shlex.quote(str(path))
    advice = run(f"mv {word} {word}.old && {again.removeprefix('Run: ')}")
    return Finding("warning", "launchers", found, f"If it is not meant to be: {advice}")


def is_dangling(path: Path) -> bool:
    """Whether PATH is a link to what is not there."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def lifts_limits(path: Path) -> bool:
    """Whether PATH is contrib/qmail-checkenv.sh, which lifts a soft limit that is too small."""
    try:
        return b"qmail-checkenv.sh" in files.read(path, 1024)
    except OSError:
        return False


def run_by_script(path: Path) -> str:
    """The launcher that PATH, a qmail-checkenv.sh, runs where the environment names none; nothing where that cannot be told."""
    try:
        found = re.search(rb"^PROGRAM=\$\{CHECKENV_PROGRAM:-(/[^}\n]+)\}", files.read(path, 4096), re.MULTILINE)
    except OSError:
        return ""
    return os.fsdecode(found[1]) if found else ""


PARTS = (
    ("version", re.compile(rf"^{re.escape(launcher.MARK)} ([^\s,]+)", re.MULTILINE)),
    ("package", re.compile(r"^    sys\.path\.insert\(0, '(.+)'\)$", re.MULTILINE)),
    ("place of drivers", re.compile(r"^    sys\.path\.extend\(\[(.*)\]\)$", re.MULTILINE)),
    ("commands' interpreter", re.compile(r"^    main\(\('([^']+)'", re.MULTILINE)),
)


def differences(text: str, program: str = launcher.PROGRAMS[0]) -> list[str]:
    """In what the launcher TEXT differs from the one that this interpreter and package would write for PROGRAM."""
    mine = launcher.launcher(program)
    if text == mine:
        return []
    pairs = [("interpreter", named_interpreter(text), named_interpreter(mine))]
    pairs += [(what, _part(pattern, text), _part(pattern, mine)) for what, pattern in PARTS]
    differ = [f"its {what} is {theirs}, this one's is {ours}" for what, theirs, ours in pairs if theirs != ours]
    return differ or ["it was edited"]


def named_interpreter(text: str) -> str:
    """The interpreter that a launcher's TEXT starts, by its first line or by way of sh."""
    first, _newline, rest = text.partition("\n")
    program = first.removeprefix("#!").removesuffix(" -IS")
    if program != "/bin/sh":
        return program
    return _part(re.compile(r"^'''exec' (.+) -IS "), rest)


def _part(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group(1) if found else "unknown"


def look_at_modules(installation: Installation) -> Iterator[Finding]:
    """Whether what a check loads is byte-compiled: a module that is not costs time at every mail."""
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
    """The advice to install once more, as who may write compiled modules."""
    owner = launcher.package().stat().st_uid
    other = "" if os.geteuid() in (0, owner) else f"sudo -u {shlex.quote(schema.rights.user_name(owner))} "
    return run(f"{other}greycheck install {shlex.quote(str(installation.directory))}")


def modules() -> dict[str, Path]:
    """The source of each module of greycheck that a check may load: what the child imports, and what that imports."""
    sources: dict[str, Path] = {}
    waiting = ["greycheck", "greycheck.child"]
    while waiting:
        name = waiting.pop(0)
        source = source_of(name)
        if source and name not in sources:
            sources[name] = source
            waiting += imports(source.read_bytes())
    return sources


def driver_modules(installation: Installation) -> dict[str, Path]:
    """The source of each module that a check loads besides, with the driver of a server database."""
    files = installation.driver.files if installation.driver else ()
    return {str(path): path for path in files if path.suffix == ".py" and launcher.package() not in path.parents}


def source_of(name: str) -> Path | None:
    """The file of module NAME of this package; None where it is not a module."""
    place = launcher.package().joinpath(*name.split(".")[1:])
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def imports(text: bytes) -> list[str]:
    """The names in this package that the source TEXT imports, with the packages on the way."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "greycheck":
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            names += [node.module.rpartition(".")[0]]
    return names


def staleness(source: Path) -> str:
    """Why the compiled form of SOURCE is of no use; empty where it is up to date."""
    path = compiled_path(source)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        return "not compiled" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
    if len(head) < 16:
        return "cut short"
    magic, flags, mtime, size = struct.unpack("<4sIII", head)
    if magic != MAGIC_NUMBER:
        return "for another Python"
    if flags:
        unchecked = flags == 1
        return "" if unchecked or head[8:] == source_hash(source.read_bytes()) else "older than its source"
    status = source.stat()
    same = (mtime, size) == (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    return "" if same else "older than its source"


def compiled_path(source: Path) -> Path:
    """Where a launcher's interpreter looks for the compiled form of SOURCE; it heeds no variable."""
    return source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"


def look_at_permissions(installation: Installation) -> Iterator[Finding]:
    """Whether the user that qmail runs launchers as reaches all that a check needs."""
    account = installation.account
    if account is None:
        found = f"not looked at: there is no user {install.QMAIL_USER} here"
        yield Finding("note", "permissions", found, "Say which user qmail-smtpd runs as: --user NAME")
        return
    if not access.can_act_as(account):
        found = f"not looked at: {schema.user_name(os.geteuid())} cannot tell what {account.pw_name} may do"
        yield Finding("note", "permissions", found, f"Run greycheck doctor as root, or as {account.pw_name}.")
        return
    closed = closed_places(installation)
    yield from (Finding("fault", "permissions", one.said(account.pw_name), mend(one, installation)) for one in closed)
    unreadable = unreadable_modules(account)
    advice = run(f"chmod -R go+rX {shlex.quote(str(launcher.package()))}")
    yield from (Finding("warning", "permissions", complaint, advice) for complaint in unreadable)
    if not closed and not unreadable:
        yield Finding("ok", "permissions", f"{account.pw_name} can run the launchers and use the store")


def closed_places(installation: Installation) -> list[access.Barrier]:
    """What keeps the user that runs checks from what they need; nothing where this process cannot tell.

    A directory for the store that is not there is told with the store.
    """
    account = installation.known_account
    if account is None:
        return []
    compiled = [path for path in installation.launchers if is_compiled(path)]
    in_python = [path for path in install.behind(compiled) if path.exists()]
    needed = install.needed(installation.launchers + in_python, installation.settings)
    store = schema.sqlite_path(installation.settings.database)
    if store and (is_directory(store) or schema.trouble(store)):
        # That is told with the disk, or with the store.
        needed = [each for each in needed if not each[1] & os.W_OK]
    return [one for one in access.barriers(needed, account) if os.path.lexists(one.place)]


def mend(closed: access.Barrier, installation: Installation) -> str:
    """The command that opens what is CLOSED to the user that runs checks."""
    account, store = installation.account, schema.sqlite_path(installation.settings.database)
    assert account is not None
    user, place = shlex.quote(account.pw_name), shlex.quote(str(closed.place))
    is_his = closed.place.stat().st_uid == account.pw_uid
    if store and closed.place == store.parent:
        if is_his:
            return run(f"chmod u+rwx {place}")
        if all(path.name.startswith(store.name) for path in closed.place.iterdir()):
            # Another user may have put links there to what is not his.
            return run(f"chown {'-h' if closed.place.stat().st_uid else '-R'} {user} {place}")
        return run(f"{make_directory(account)} && {set_to('database', DEFAULT_STORE, installation.settings)}")
    if not closed.wanted:
        return run(f"chmod o+x {place}")
    if is_his:
        return run(f"chmod u+rw {place}")
    if store and closed.wanted & os.W_OK:
        return run(f"chown -h {user} {place}")
    if closed.wanted & os.X_OK:
        return run(f"chmod go+rx {place}")
    if launcher.package() in closed.place.parents:
        return run(f"chmod -R go+rX {shlex.quote(str(launcher.package()))}")
    return run(f"chgrp {shlex.quote(access.group_name(account.pw_gid))} {place} && chmod g+r {place}")


def unreadable_modules(account: pwd.struct_passwd) -> list[str]:
    """Compiled modules that ACCOUNT cannot read, and so compiles anew at every mail."""
    compiled = [path for source in modules().values() if (path := compiled_path(source)).exists()]
    closed = access.barriers(((path, os.R_OK) for path in compiled), account)
    # What lies above the package was told already.
    return [one.said(account.pw_name) for one in closed if one.place not in launcher.package().parents][:3]
