"""Where root's rights end: at what another user may write.

Whoever owns a store's directory chooses what SQLite opens, makes and removes there: links, and
journals that name files to be deleted. So root becomes that user, for good, before anything there
is opened; what is opened for it afterwards is opened with that user's rights. docs/threat-model.rst
says who must not do what.

Interface: ``become_owner`` gives up root's rights where the store is another user's,
``become_owner_of`` where files are; ``refuse_root`` is the bolt on each door to an SQLite file, and
``refuse_root_options`` on that of drivers: they let root in only where root alone may write.
``owner``, ``owner_of_store``, ``whose`` and ``only_roots`` say whose a path is. Nobody but root is
hindered by anything here.

Diagnostics: ``StoreError`` with the cause, and one command as its ``command``.
"""

import posix

from greycheck.store.base import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.settings import Settings
    from greycheck.store.url import Server

# What SQLite keeps beside a file, and the file itself.
SUFFIXES = ("", "-journal", "-wal", "-shm")

# How many links one path may have, as for the kernel.
LINKS = 40

TYPE, DIRECTORY, REGULAR, LINK, DEVICE = 0o170000, 0o040000, 0o100000, 0o120000, 0o020000
FIFO, SOCKET = 0o010000, 0o140000
STICKY, BY_GROUP, BY_OTHERS = 0o1000, 0o020, 0o002


def become_owner(settings: "Settings", marks: bool = False) -> None:
    """As root, becomes the owner of the store of SETTINGS for good, unless that is root alone.

    MARKS as for ``owner_of``. Raises StoreError if it is not clear whose the store is.
    """
    if posix.geteuid() == 0:
        become(owner_of(settings, marks))


def owner_of(settings: "Settings", marks: bool = True) -> int:
    """The user besides root whom the store of SETTINGS belongs to; 0 for nobody.

    With MARKS, of a server database, who owns the directory in which its hosts are marked. Whoever
    wrote the settings chooses what is opened, so it is opened as him. Raises StoreError where these
    are two users, or it is not clear who they are.
    """
    found, where = 0, settings.database.path
    if where:
        found = owner_of_store(where, settings.database_mode == 0o660)
    elif settings.database.server is not None and marks:
        where = settings.state_directory
        found = owner(where)
    writer, file = author(settings)
    if writer and found not in (0, writer):
        whose = (
            f"{where}: is {user_name(found)}'s, and {file}, which names it, {user_name(writer)}'s"
        )
        raise StoreError(whose, _run("chown -h root", file))
    return writer or found


def author(settings: "Settings") -> "tuple[int, str]":
    """Returns the user who may write a file of SETTINGS besides root, and that file; 0 for nobody.

    A file of options that the database's URL names is one of them: it names a library that the
    driver loads. Raises StoreError if there are several, or where a driver would wait for a pipe.
    """
    found = 0, ""
    server = settings.database.server
    options = options_of(server)
    _refuse_pipes(server)
    for source in [*settings.sources.values(), *options]:
        if not source.startswith("/"):
            continue
        is_whole = source == settings.database_file or source in options
        file = source if is_whole else source.rpartition(":")[0]
        user, status, there = _walk(file)
        if status is not None and status.st_mode & TYPE != DEVICE:
            _check_closed(there, status)
        if user and found[0] not in (0, user):
            whose = f"{file}: is {user_name(user)}'s, and {found[1]} {user_name(found[0])}'s"
            raise StoreError(whose, _run("chown -h root", file))
        found = (user, file) if user else found
    return found


def options_of(server: "Server | None") -> "list[str]":
    """The files of options in the URL of a database SERVER. Raises StoreError."""
    found = server.options.get("read_default_file", "") if server is not None else ""
    if found and not found.startswith("/"):
        raise StoreError(f"read_default_file={found}: name it by its whole path")
    return [found] if found else []


def refuse_root_options(server: "Server") -> None:
    """Raises StoreError if others than root may write a file of options of SERVER's URL."""
    for path in options_of(server):
        only_roots(path)


def _refuse_pipes(server: "Server | None") -> None:
    """Raises StoreError where a path in SERVER's URL is a pipe: a driver would wait for it."""
    for path in server.options.values() if server is not None else ():
        try:
            kind = posix.stat(path).st_mode & TYPE if path.startswith("/") else REGULAR
        except OSError:
            continue
        if kind in (FIFO, SOCKET):
            raise StoreError(f"{path}: is no regular file", _run("rm", path))


def become_owner_of(paths: "list[str]", shared: bool) -> None:
    """As root, becomes the one user whose all the SQLite files PATHS are, for good.

    SHARED as for ``owner_of_store``. Raises StoreError if they are several users', or it is not
    clear whose they are.
    """
    if posix.geteuid() != 0:
        return
    users = {path: owner_of_store(path, shared) for path in paths}
    if len(set(users.values())) > 1:
        (first, one), (second, other) = users.items()
        directory = second.rpartition("/")[0] or "/"
        raise StoreError(
            f"{first} is {user_name(one)}'s and {second} is {user_name(other)}'s, and nobody may"
            " open both",
            _run(f"chown -h {_word(user_name(one))}", directory),
        )
    for user in users.values():
        become(user)
        break


def refuse_root(path: str) -> None:
    """Raises StoreError if this is root, and others may write the SQLite file PATH."""
    if posix.geteuid() != 0:
        return
    user = owner_of_store(path, False)
    if user:
        name = user_name(user)
        raise StoreError(
            f"{path}: is {name}'s: root does not open it",
            f"runuser -u {_word(name)} -- greycheck COMMAND",
        )


def become(user: int) -> None:
    """Becomes the user of that number, with his groups, for good.

    Root stays as it is. Raises StoreError.
    """
    if user == 0:
        return
    import pwd

    try:
        account = pwd.getpwuid(user)
        name, group = account.pw_name, account.pw_gid
    except KeyError:
        name, group = "", user
    try:
        if name:
            posix.initgroups(name, group)
        else:
            posix.setgroups([])
        posix.setresgid(group, group, group)
        posix.setresuid(user, user, user)
    except OSError as error:
        told = name or str(user)
        raise StoreError(
            f"root cannot become {told} here ({error.strerror}): run it as {told}"
        ) from None


def owner_of_store(path: str, shared: bool) -> int:
    """The user whose the SQLite file PATH is, there or not: the owner of its directory.

    A SHARED store (database_mode = 0660) may be written by the directory's group too. Raises
    StoreError where anybody else may write, or where there is something else than files of that
    user.
    """
    directory = path.rpartition("/")[0] or "/"
    user, status, there = _walk(directory)
    if status is None:
        return user
    if status.st_mode & TYPE != DIRECTORY:
        raise StoreError(f"{directory}: is no directory")
    mode = status.st_mode
    if mode & BY_OTHERS:
        whose = f"{there}: any user may write there, and put another store in this one's place"
        raise _open_to_all(whose, there, mode)
    group = mode & BY_GROUP
    if group and not shared:
        raise StoreError(
            f"{there}: a group may write there (set database_mode = 0660, if they share the store)",
            _run("chmod g-w", there),
        )
    if group and not user:
        raise StoreError(
            f"{there}: is root's, and a group may write there (let it belong to whoever qmail runs"
            " checks as)",
            _run("chown qmaild", there),
        )
    for suffix in SUFFIXES:
        _check_file(path + suffix, status, bool(group))
    return user


def _check_file(path: str, directory: "posix.stat_result", shared: bool) -> None:
    """Raises StoreError unless PATH is missing, or a regular file of the DIRECTORY's owner.

    In a SHARED directory it may be of the directory's group.
    """
    try:
        status = posix.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    kind = status.st_mode & TYPE
    if kind == LINK:
        raise StoreError(
            f"{path}: is a symbolic link, which root does not follow", _run("rm", path)
        )
    if kind != REGULAR:
        if kind == DIRECTORY and path.endswith(SUFFIXES[1:]):
            raise StoreError(f"{path}: is a directory", _run("rmdir", path))
        if kind == DIRECTORY:
            raise StoreError(
                f"{path}: is a directory: set database to a file in it: {path}/greycheck.db"
            )
        if kind in (FIFO, SOCKET):
            raise StoreError(f"{path}: is no regular file", _run("rm", path))
        raise StoreError(f"{path}: is no regular file: name a file")
    if status.st_uid == directory.st_uid or (
        shared and status.st_uid and status.st_gid == directory.st_gid
    ):
        return
    whose = (
        f"{path}: is {user_name(status.st_uid)}'s, in a directory of {user_name(directory.st_uid)}"
    )
    if status.st_nlink > 1:
        # Whoever owns the directory may have made it: it is the same file as one that is not his.
        raise StoreError(f"{whose}, and has another name somewhere else", _run("rm", path))
    raise StoreError(whose, _run(f"chown -h {_word(user_name(directory.st_uid))}", path))


def owner(path: str) -> int:
    """The user besides root who may change what PATH is, there or not; 0 for nobody.

    Raises StoreError where several may.
    """
    user, status, there = _walk(path)
    if status is not None and status.st_mode & TYPE == DIRECTORY:
        _check_closed(there, status)
    return user


def whose(path: str) -> int:
    """The user besides root whose PATH is, or who may put another in its place; 0 for nobody.

    Raises StoreError where several may, or a link leads there that root did not make.
    """
    return _walk(path)[0]


def only_roots(path: str) -> None:
    """Raises StoreError where others than root may change what PATH is, or write it.

    What is not there is nobody's.
    """
    _user, status, there = _walk(path, only_root=True)
    if status is not None and status.st_mode & TYPE != DEVICE:
        _check_closed(there, status)


def _walk(path: str, only_root: bool = False) -> "tuple[int, posix.stat_result | None, str]":
    """Returns who owns PATH besides root (0: nobody), its status (None: missing), its real path.

    Each directory on the way must be closed to others; from the first that is another user's on,
    all must be that user's. Links are followed only where root made them, in directories of root's.
    Raises StoreError; with ONLY_ROOT, at the first place that is another user's.
    """
    user, at, links = 0, "", 0
    status = posix.lstat("/")
    rest = path.split("/")[::-1]
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = at.rpartition("/")[0]
            status = posix.lstat(at or "/")
            continue
        _check_closed(at or "/", status, parent=True)
        here = f"{at}/{name}"
        try:
            status = posix.lstat(here)
        except FileNotFoundError:
            return user, None, here
        except OSError as error:
            raise StoreError(f"{here}: {error.strerror}") from None
        if status.st_mode & TYPE == LINK:
            links += 1
            if user or status.st_uid or links > LINKS:
                raise StoreError(
                    f"{here}: is a symbolic link, which root does not follow: name the directory"
                    " itself"
                )
            target = posix.readlink(here)
            rest += target.split("/")[::-1]
            at = "" if target.startswith("/") else at
            status = posix.lstat(at or "/")
            continue
        if only_root and status.st_uid:
            whose = (
                f"{here}: is {user_name(status.st_uid)}'s, and root goes by nothing that another"
                " user may write"
            )
            if rest:
                raise StoreError(f"{whose}: keep it in a directory of root")
            raise StoreError(whose, _run("chown -h root", here))
        if user and status.st_uid != user:
            whose = f"{here}: is {user_name(status.st_uid)}'s, in a directory of {user_name(user)}"
            raise StoreError(whose, _run(f"chown -h {_word(user_name(user))}", here))
        user, at = status.st_uid, here
    return user, status, at or "/"


def _check_closed(path: str, status: "posix.stat_result", parent: bool = False) -> None:
    """Raises StoreError if others than the owner may write PATH.

    A PARENT of a path may be a sticky directory, as /tmp is.
    """
    mode = status.st_mode
    if parent and mode & STICKY and status.st_uid == 0:
        return
    if mode & BY_OTHERS:
        raise _open_to_all(f"{path}: any user may write there", path, mode)
    if mode & BY_GROUP:
        raise StoreError(f"{path}: a group may write there", _run("chmod g-w", path))


def _open_to_all(said: str, path: str, mode: int) -> StoreError:
    """The error SAID of PATH, whose MODE lets any user write: other programs need it in /tmp."""
    if mode & STICKY:
        return StoreError(f"{said}: choose another directory")
    return StoreError(said, _run("chmod o-w", path))


def user_name(user: int) -> str:
    """The name of the user of that number, or the number."""
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _run(command: str, path: str) -> str:
    return f"{command} {_word(path)}"


def _word(text: str) -> str:
    """TEXT as one word of a shell."""
    from shlex import quote

    return quote(text)
