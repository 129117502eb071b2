"""Root's rights: whoever owns the store gains nothing when root runs any command on it."""

import contextlib
import json
import os
import posix
import pty
import pwd
import random
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from greycheck.cli import install
from greycheck.cli.main import cli
from greycheck.doctor.telling import told
from greycheck.envelope import Envelope, triplet
from greycheck.launchers import python, trial
from greycheck.privilege import access, apart
from greycheck.settings import Settings
from greycheck.settings import read as read_settings
from greycheck.store import connect, drivers, rights
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import Asked, StoreError
from greycheck.store.schema import migrate
from tests.dns_servers import Nsd
from tests.servers import MariaDB
from tests.support import Child

NOBODY = pwd.getpwnam("nobody")
OTHER = pwd.getpwnam("daemon")

# How long a command may take before it counts as one that hangs, in seconds.
HANGS = 120


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")


class Site:
    """A host: the directory of a store that nobody owns, one of root's, one of launchers, and an
    environment that names the store.
    """

    def __init__(self, place: Path, launchers: Path) -> None:
        self.place = place
        self.launchers = launchers
        self.directory = place / "store"
        self.store = self.directory / "greycheck.db"
        self.roots = place / "root"
        self.bin = place / "bin"
        for directory in (self.directory, self.roots, self.bin):
            directory.mkdir(mode=0o755)
        os.chown(self.directory, NOBODY.pw_uid, NOBODY.pw_gid)
        self.environ = {
            "PATH": os.defpath,
            "HOME": "/root",
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DATABASE": str(self.store),
            "GREYCHECK_SOCKET": f"{place}/socket",
            # Where nobody answers.
            "GREYCHECK_RESOLVER": "127.0.0.1:1",
        }
        self.victim = self.roots / "victim"
        self.victim.write_text("root's own\n")
        self.target = self.roots / "made"
        self.foreign = self.roots / "foreign.db"
        connection = sqlite3.connect(self.foreign)
        with connection:
            connection.execute("CREATE TABLE other (x)")
        connection.close()
        self.foreign.chmod(0o666)

    def make(self, template: Path) -> None:
        """Makes the store, as its owner has it."""
        shutil.copy(template, self.store)
        self.store.chmod(0o600)
        os.chown(self.store, NOBODY.pw_uid, NOBODY.pw_gid)

    def settings(self) -> Settings:
        return read_settings(
            {name.encode(): value.encode() for name, value in self.environ.items()}
        )

    def untouched(self) -> None:
        """That nothing of root's was removed, made or changed."""
        assert self.victim.read_text() == "root's own\n"
        assert not os.path.lexists(self.target)
        assert self.foreign.stat().st_uid == 0
        assert sorted(path.name for path in self.roots.iterdir()) == ["foreign.db", "victim"]
        connection = sqlite3.connect(self.foreign)
        try:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]
        finally:
            connection.close()


@pytest.fixture
def site(place: Path, launchers: Path) -> Site:
    return Site(place, launchers)


class Ran:
    """What a command came to: its exit code (None: killed, for it hung), and what it printed."""

    def __init__(self, code: int | None, printed: str) -> None:
        self.code = code
        self.printed = printed

    @property
    def words(self) -> str:
        return " ".join(self.printed.split())


def run(site: Site, *arguments: str) -> Ran:
    """Runs the command with these ARGUMENTS in a process of root's."""
    output = site.place / f"output.{random.getrandbits(40)}"
    given = site.place / f"input.{random.getrandbits(40)}"
    given.write_text(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nsender=a@b\nrecipient=c@d\n\n"
    )
    child = os.fork()
    if child == 0:
        code = 70
        try:
            for number, name, flags in (
                (0, given, os.O_RDONLY),
                (1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            ):
                os.dup2(os.open(name, flags, 0o600), number)
            os.dup2(1, 2)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            tempfile.tempdir = None
            os.environ.clear()
            os.environ.update(site.environ)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            cli(list(arguments), prog_name="greycheck")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            print(f"TRACEBACK {type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            os._exit(code)

    def printed() -> str:
        return output.read_text(errors="replace") if output.exists() else ""

    end = time.monotonic() + HANGS
    found, status = os.waitpid(child, os.WNOHANG)
    while not found and time.monotonic() < end:
        if "note listening" in printed():
            os.kill(child, signal.SIGTERM)
        time.sleep(0.01)
        found, status = os.waitpid(child, os.WNOHANG)
    if not found:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Ran(None, printed())
    ran = Ran(os.waitstatus_to_exitcode(status), printed())
    assert "TRACEBACK" not in ran.printed, ran.printed
    return ran


# --- every command --------------------------------------------------------------------------------

ENVELOPE = ("192.0.2.1", "alice@example.org", "bob@example.net")

# Each command, with arguments that take it to the store. PLACE is the site's.
COMMANDS: dict[str, tuple[str, ...]] = {
    "allow": ("to:example.net",),
    "completion": ("bash",),
    "config": (),
    "copy": ("{store}", "{place}/copy/copy.db"),
    "db current": (),
    "db downgrade": ("base", "--yes"),
    "db upgrade": (),
    "demo": ("--delay", "4"),
    "digest": ("--names", "--links", "https://mx.example.net/x"),
    "doctor": ("--dir", "{launchers}", "--user", "nobody"),
    "expect": ("bob@example.net",),
    "expire": ("-v",),
    "explain": ENVELOPE,
    "forget": ENVELOPE,
    "greylist": ("to:example.net", "--delay", "1h"),
    "defer": ("from:a@example.org", "to:example.net"),
    "install": ("{bin}", "--user", "nobody"),
    "learn": ("{place}/log",),
    "list": (),
    "metrics": ("--output", "{place}/greycheck.prom"),
    "policy": (),
    "providers add": ("example.com", "--yes"),
    "providers known": (),
    "providers list": (),
    "providers refresh": ("--yes",),
    "providers remove": ("example.com",),
    "reject": ("to:example.net",),
    "release": ENVELOPE,
    "report": ("--html", "{place}/copy/report.html"),
    "resolve": (),
    "rules check": (),
    "rules export": (),
    "rules import": ("{place}/rules",),
    "rules import-postgrey": ("--clients", "{place}/clients"),
    "rules list": (),
    "rules remove": ("to:example.net",),
    "serve": (),
    "show": ENVELOPE,
    "stats": (),
    "simulate": ("--log", "{place}/checks"),
    "status": (),
    "watch": ("-",),
}

CHECK = (
    "2026-11-30 01:53:20 greycheck: defer reason=new client=192.0.2.1 sender=<a@example.org>"
    " recipient=<b@example.net> wait=300 hook=smtpextfork ms=1\n"
)

# What asks no store that a setting names: what it makes is its own.
WITHOUT = {"completion", "config", "demo", "providers known", "simulate", "watch"}


def leaves(group: click.Group, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_every_command_is_tried() -> None:
    assert set(leaves(cli)) == set(COMMANDS)


def command(site: Site, name: str) -> list[str]:
    """The command line of the command NAME."""
    (site.place / "rules").write_text("allow to:example.com\n")
    (site.place / "clients").write_text("example.com\n")
    (site.place / "log").write_text("")
    (site.place / "checks").write_text(CHECK)
    (site.place / "copy").mkdir(exist_ok=True)
    os.chown(site.place / "copy", NOBODY.pw_uid, NOBODY.pw_gid)
    given = {"place": site.place, "store": site.store, "bin": site.bin, "launchers": site.launchers}
    return [*name.split(), *(argument.format(**given) for argument in COMMANDS[name])]


MAGIC = bytes.fromhex("d9d505f920a163d7")


def hot_journal(store: Path, victim: Path) -> bytes:
    """A rollback journal of STORE that has nothing to roll back, and names VICTIM as the
    super-journal that goes with it.
    """
    with store.open("rb") as file:
        header = file.read(100)
    page_size = struct.unpack(">H", header[16:18])[0]
    page_size = 65536 if page_size == 1 else page_size
    pages = store.stat().st_size // page_size
    sector = 512
    begin = (MAGIC + struct.pack(">IIIII", 0, 1, pages, sector, page_size)).ljust(sector, b"\0")
    name = os.fsencode(victim)
    page_of_locks = (1 << 30) // page_size + 1
    return (
        begin
        + struct.pack(">I", page_of_locks)
        + name
        + struct.pack(">II", len(name), sum(name))
        + MAGIC
    )


def plant_journal(site: Site) -> None:
    journal = site.store.with_name("greycheck.db-journal")
    journal.write_bytes(hot_journal(site.store, site.victim))
    os.chown(journal, NOBODY.pw_uid, NOBODY.pw_gid)


def plant_dangling_link(site: Site) -> None:
    site.store.unlink()
    site.store.symlink_to(site.target)


def plant_link(site: Site) -> None:
    site.store.unlink()
    site.store.symlink_to(site.foreign)


def plant_hard_link(site: Site) -> None:
    site.store.unlink()
    os.link(site.foreign, site.store)


def plant_linked_directory(site: Site) -> None:
    """The owner of a directory further up puts a link to root's in the place of the store's."""
    shutil.rmtree(site.directory)
    site.directory.mkdir()
    os.chown(site.directory, NOBODY.pw_uid, NOBODY.pw_gid)
    (site.directory / "deeper").symlink_to(site.roots)
    site.store = site.directory / "deeper" / "made"
    site.environ["GREYCHECK_DATABASE"] = str(site.store)


def plant_pipe(suffix: str) -> Callable[[Site], None]:
    def plant(site: Site) -> None:
        path = site.store.with_name(site.store.name + suffix)
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o666)
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)

    return plant


ATTACKS: dict[str, Callable[[Site], None]] = {
    "journal": plant_journal,
    "dangling link": plant_dangling_link,
    "link": plant_link,
    "hard link": plant_hard_link,
    "linked directory": plant_linked_directory,
    "pipe": plant_pipe(""),
    "pipe as journal": plant_pipe("-journal"),
    "pipe as log": plant_pipe("-wal"),
    "pipe as index": plant_pipe("-shm"),
}


def test_the_journal_is_one_that_sqlite_obeys(site: Site, empty_store: Path) -> None:
    """Else the tests below would hold whatever root did."""
    site.make(empty_store)
    plant_journal(site)
    connection = sqlite3.connect(site.store)
    connection.execute("SELECT * FROM triplet").fetchall()
    connection.close()
    assert not site.victim.exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT])
def test_the_stores_owner_gains_nothing_by_a_command_of_roots(
    site: Site, empty_store: Path, name: str, attack: str
) -> None:
    site.make(empty_store)
    arguments = command(site, name)
    ATTACKS[attack](site)
    arguments = [
        str(site.store) if argument.endswith("store/greycheck.db") else argument
        for argument in arguments
    ]
    ran = run(site, *arguments)
    assert ran.code is not None, f"it hangs: {ran.printed}"
    site.untouched()
    if attack != "journal" and name not in ("policy", "doctor"):
        assert ran.code, ran.printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("learn", "{pipe}"),
        ("report", "--simulation", "{pipe}"),
        ("rules", "import", "{pipe}"),
        ("rules", "import-postgrey", "--clients", "{pipe}"),
        ("simulate", "--log", "{pipe}"),
        ("simulate", "--log", "-", "--rules", "{pipe}"),
        ("watch", "{pipe}"),
    ],
    ids=" ".join,
)
def test_root_waits_for_no_pipe_in_the_place_of_a_file_that_it_names(
    site: Site, empty_store: Path, arguments: tuple[str, ...]
) -> None:
    site.make(empty_store)
    site.environ["GREYCHECK_LEARN_OUTBOUND"] = "60d"
    pipe = site.directory / "named"
    os.mkfifo(pipe, 0o666)
    ran = run(site, *(argument.format(pipe=pipe) for argument in arguments))
    assert ran.code == 1
    assert f"{pipe}: not a regular file" in ran.words


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_what_asks_no_store_is_not_hindered_by_one(
    site: Site, empty_store: Path, name: str
) -> None:
    site.make(empty_store)
    plant_journal(site)
    ran = run(site, *command(site, name))
    assert ran.code == 0, ran.printed
    site.untouched()


@pytest.mark.parametrize("program", python.PROGRAMS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nor_by_a_check_that_root_runs(
    site: Site, empty_store: Path, program: str, attack: str
) -> None:
    site.make(empty_store)
    ATTACKS[attack](site)
    child = Child(site.launchers, site.store)
    names = ("REMOTEMF", "REMOTERCPT", "SENDER", "RECIPIENT", "SMTPMAILFROM", "SMTPRCPTTO")
    envelope: dict[str, str | bytes] = dict.fromkeys(names, b"a@b")
    arguments = [b"a@b", b"a@b"] if program == "qmail-checkenv" else []
    ran = child.run(
        [site.launchers / program, *arguments], child.environ("192.0.2.1", **envelope), speaks=True
    )
    assert " reason=" in ran.log
    site.untouched()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT | {"install"}])
def test_a_command_that_forgets_to_become_the_owner_is_refused(
    site: Site, empty_store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The engine and the lean store are the doors, and none opens for root: whoever writes a new
    command need not think of it.
    """
    site.make(empty_store)
    monkeypatch.setattr(rights, "become_owner", lambda *_arguments, **_options: None)
    monkeypatch.setattr(rights, "become_owner_of", lambda *_arguments, **_options: None)
    monkeypatch.setattr(rights, "become", lambda _user: None)
    monkeypatch.setattr(apart, "as_user", lambda _user, work: work())
    plant_journal(site)
    run(site, *command(site, name))
    site.untouched()
    assert site.store.with_name("greycheck.db-journal").exists()


# --- and still they work --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT])
def test_root_does_with_another_users_store_what_he_does_with_his_own(
    site: Site, empty_store: Path, name: str
) -> None:
    site.make(empty_store)
    if name == "rules remove":
        assert run(site, "allow", "to:example.net").code == 0
    with contextlib.ExitStack() as servers:
        if name.startswith("providers "):
            zone = '@ TXT "v=spf1 ip4:192.0.2.0/24 -all"'
            nsd = servers.enter_context(Nsd({"example.com.": zone}))
            site.environ["GREYCHECK_RESOLVER"] = nsd.address
        if name in ("providers refresh", "providers remove"):
            assert run(site, "providers", "add", "example.com", "--yes").code == 0
        if name == "learn":
            site.environ["GREYCHECK_LEARN_OUTBOUND"] = "60d"
        ran = run(site, *command(site, name))
    # Nothing is known of a triplet; the doctor finds what is missing here besides the store.
    assert ran.code == {"show": 1, "release": 1}.get(name, 0) or name == "doctor", ran.printed
    assert {path.stat().st_uid for path in site.directory.iterdir()} == {NOBODY.pw_uid}
    if name == "doctor":
        assert "schema at" in ran.words
        assert "journal mode WAL" in ran.words
        assert "a look-up takes" in ran.words


def test_a_store_that_root_makes_is_its_directorys_owners(site: Site) -> None:
    assert run(site, "db", "upgrade").code == 0
    assert site.store.stat().st_uid == NOBODY.pw_uid
    assert stat.S_IMODE(site.store.stat().st_mode) == 0o600
    assert run(site, "expire", "-v").code == 0


def test_a_user_without_a_name_can_own_a_store(site: Site) -> None:
    os.chown(site.directory, 54321, 54321)
    assert run(site, "db", "upgrade").code == 0
    assert site.store.stat().st_uid == 54321


def test_roots_own_store_stays_roots(site: Site) -> None:
    os.chown(site.directory, 0, 0)
    assert run(site, "db", "upgrade").code == 0
    assert site.store.stat().st_uid == 0
    assert run(site, "list").code == 0


def identity() -> str:
    """Who this process is, all of it."""
    with open("/proc/self/status") as status:
        return " ".join(
            " ".join(line.split()) for line in status if line.startswith(("Uid", "Gid", "Groups"))
        )


def test_what_is_given_up_is_all(site: Site) -> None:
    """Real, effective, saved and of files; user, group and groups: nothing leads back."""
    found = apart.as_user(NOBODY.pw_uid, identity)
    user, group = NOBODY.pw_uid, NOBODY.pw_gid
    groups = " ".join(map(str, sorted(set(os.getgrouplist("nobody", group)))))
    assert (
        found
        == f"Uid: {' '.join([str(user)] * 4)} Gid: {' '.join([str(group)] * 4)} Groups: {groups}"
    )


def test_a_link_that_root_made_is_followed(site: Site, empty_store: Path) -> None:
    site.make(empty_store)
    (site.place / "var").symlink_to("store")
    site.environ["GREYCHECK_DATABASE"] = f"{site.place}/bin/../var/greycheck.db"
    assert run(site, "list").code == 0


# --- a directory that others may write to ---------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shared", "said"),
    [
        (0o777, "0600", "any user may write there"),
        (0o1777, "0600", "any user may write there"),
        (0o777, "0660", "any user may write there"),
        (0o770, "0600", "if they share the store): chmod g-w {directory}"),
        (0o2770, "0600", "if they share the store): chmod g-w {directory}"),
        (0o2770, "0660", ""),
        (0o700, "0660", ""),
    ],
)
def test_a_directory_that_others_may_write_to_is_refused(
    site: Site, empty_store: Path, mode: int, shared: str, said: str
) -> None:
    site.make(empty_store)
    site.directory.chmod(mode)
    site.environ["GREYCHECK_DATABASE_MODE"] = shared
    ran = run(site, "list")
    assert ran.code == (1 if said else 0), ran.printed
    assert said.format(directory=site.directory) in ran.printed


def test_a_group_shares_what_root_opens_only_where_a_user_owns_it(
    site: Site, empty_store: Path
) -> None:
    site.make(empty_store)
    os.chown(site.directory, 0, OTHER.pw_gid)
    site.directory.chmod(0o2770)
    site.environ["GREYCHECK_DATABASE_MODE"] = "0660"
    ran = run(site, "list")
    assert ran.code == 1
    assert (
        f"{site.directory}: is root's, and a group may write there (let it belong to whoever qmail"
        f" runs checks as): chown qmaild {site.directory}\n" in ran.printed
    )


def test_files_of_the_group_that_shares_a_store_are_taken(site: Site, empty_store: Path) -> None:
    site.make(empty_store)
    os.chown(site.directory, NOBODY.pw_uid, OTHER.pw_gid)
    os.chown(site.store, OTHER.pw_uid, OTHER.pw_gid)
    site.directory.chmod(0o2770)
    site.store.chmod(0o666)
    site.environ["GREYCHECK_DATABASE_MODE"] = "0660"
    assert run(site, "list").code == 0
    site.environ["GREYCHECK_DATABASE_MODE"] = "0600"
    assert run(site, "list").code == 1


def test_a_directory_on_the_way_that_others_may_write_to_is_refused(
    site: Site, empty_store: Path
) -> None:
    site.make(empty_store)
    site.place.chmod(0o777)
    try:
        ran = run(site, "list")
    finally:
        site.place.chmod(0o755)
    assert ran.code == 1
    assert f"{site.place}: any user may write there: chmod o-w {site.place}" in ran.printed


@pytest.mark.parametrize("suffix", ["-wal", "-journal", "-shm"])
def test_nobody_is_led_to_a_store_within_a_directory_in_a_journals_place(
    site: Site, empty_store: Path, suffix: str
) -> None:
    site.make(empty_store)
    Path(f"{site.store}{suffix}").mkdir()
    ran = run(site, "list")
    assert ran.code == 1
    assert f"{site.store}{suffix}: is a directory: rmdir {site.store}{suffix}" in ran.words
    assert f"{suffix}/greycheck.db" not in ran.words


def test_nobody_is_told_to_close_a_directory_that_all_share(site: Site, empty_store: Path) -> None:
    site.make(empty_store)
    site.directory.chmod(0o1777)
    ran = run(site, "list")
    assert ran.code == 1
    assert f"{site.directory}: any user may write there" in ran.printed
    assert "chmod" not in ran.printed
    assert "choose another directory" in ran.printed


def test_a_file_of_roots_in_another_users_directory_is_refused(
    site: Site, empty_store: Path
) -> None:
    site.make(empty_store)
    os.chown(site.store, 0, 0)
    ran = run(site, "list")
    assert ran.code == 1
    assert (
        f"{site.store}: is root's, in a directory of nobody: chown -h nobody {site.store}"
        in ran.printed
    )


def test_another_users_file_in_a_directory_of_roots_is_refused(
    site: Site, empty_store: Path
) -> None:
    site.make(empty_store)
    os.chown(site.directory, 0, 0)
    ran = run(site, "list")
    assert ran.code == 1
    assert f"{site.store}: is nobody's, in a directory of root" in ran.printed


def test_no_advice_hands_over_a_file_that_has_another_name(site: Site) -> None:
    """chown of what the owner has linked there would be what he wants."""
    os.link(site.victim, site.store)
    ran = run(site, "list")
    assert ran.code == 1
    assert "chown" not in ran.printed
    assert f"rm {site.store}" in ran.printed


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT])
@pytest.mark.parametrize("kind", ["CONFIG", "DATABASE_FILE"])
def test_settings_that_another_user_wrote_do_not_choose_a_store(
    site: Site, empty_store: Path, name: str, kind: str
) -> None:
    """Or he would have root become a third user, and make tables in a file of his."""
    third = site.place / "third"
    third.mkdir()
    foreign = third / "other.db"
    shutil.copy(site.foreign, foreign)
    for path in (third, foreign):
        os.chown(path, OTHER.pw_uid, OTHER.pw_gid)
    before = foreign.read_bytes()
    settings = site.directory / "conf"
    settings.write_text(f"database = {foreign}\n" if kind == "CONFIG" else f"{foreign}\n")
    os.chown(settings, NOBODY.pw_uid, NOBODY.pw_gid)
    arguments = command(site, name)
    if name == "copy":
        arguments = ["copy", f"@{settings}", f"{site.place}/copy/copy.db"]
    del site.environ["GREYCHECK_DATABASE"]
    site.environ[f"GREYCHECK_{kind}"] = str(settings)
    ran = run(site, *arguments)
    assert ran.code is not None
    assert foreign.read_bytes() == before
    assert [path.name for path in third.iterdir()] == ["other.db"]


@pytest.mark.parametrize(("mode", "code"), [(0o640, 0), (0o660, 1), (0o646, 1)])
def test_a_settings_file_that_others_may_write_is_refused(
    site: Site, empty_store: Path, mode: int, code: int
) -> None:
    site.make(empty_store)
    settings = site.roots / "conf"
    settings.write_text(f"database = {site.store}\n")
    os.chown(settings, 0, NOBODY.pw_gid)
    settings.chmod(mode)
    del site.environ["GREYCHECK_DATABASE"]
    site.environ["GREYCHECK_CONFIG"] = str(settings)
    ran = run(site, "list")
    assert ran.code == code, ran.printed


def test_who_wrote_the_settings_is_whom_root_becomes(site: Site) -> None:
    """A file of root's that they name is not root's to open for him."""
    os.chown(site.directory, 0, 0)
    shutil.copy(site.foreign, site.store)
    before = site.store.read_bytes()
    settings = site.place / "url"
    settings.write_text(f"{site.store}\n")
    os.chown(settings, NOBODY.pw_uid, NOBODY.pw_gid)
    settings.chmod(0o600)
    del site.environ["GREYCHECK_DATABASE"]
    site.environ["GREYCHECK_DATABASE_FILE"] = str(settings)
    for name in ("db upgrade", "list", "install", "doctor", "serve"):
        assert run(site, *command(site, name)).code, name
        assert site.store.read_bytes() == before
    os.chown(site.directory, NOBODY.pw_uid, NOBODY.pw_gid)
    site.store.unlink()
    for name in ("db upgrade", "list", "install", "serve"):
        ran = run(site, *command(site, name))
        assert ran.code == 0, ran.printed
    assert site.store.stat().st_uid == NOBODY.pw_uid


@pytest.mark.parametrize("name", ["TMPDIR", "SQLITE_TMPDIR"])
def test_roots_directory_for_temporary_files_is_not_wanted(
    site: Site, empty_store: Path, name: str
) -> None:
    site.make(empty_store)
    site.roots.chmod(0o700)
    site.environ[name] = str(site.roots)
    for one in ("install", "expire", "list", "rules import"):
        ran = run(site, *command(site, one))
        assert ran.code == 0, ran.printed
    site.untouched()


# --- copy -----------------------------------------------------------------------------------------


def test_stores_of_two_users_are_not_copied_by_root(site: Site, empty_store: Path) -> None:
    site.make(empty_store)
    other = site.place / "other"
    other.mkdir()
    os.chown(other, OTHER.pw_uid, OTHER.pw_gid)
    ran = run(site, "copy", str(site.store), f"{other}/greycheck.db")
    assert ran.code == 1
    assert f"{site.store} is nobody's and {other}/greycheck.db is daemon's" in ran.printed
    assert f"chown -h nobody {other}" in ran.printed
    assert list(other.iterdir()) == []


# --- install --------------------------------------------------------------------------------------


def test_without_qmails_user_root_must_say_who_runs_checks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "QMAIL_USER", "nosuchuser")
    ran = run(site, "install", str(site.bin))
    assert ran.code == 1
    assert "nosuchuser: no such user here" in ran.printed
    assert f"greycheck install {site.bin} --user NAME" in ran.printed
    assert list(site.bin.iterdir()) == []
    assert list(site.directory.iterdir()) == []


@pytest.mark.parametrize("own", ["directory", "way", "behind"])
def test_launchers_are_not_put_where_others_may_write(site: Site, own: str) -> None:
    """Root runs them, once, to see that they run."""
    path = site.bin
    if own == "way":
        path = site.bin / "bin"
        path.mkdir()
    if own == "behind":
        (site.bin / "greycheck.d").mkdir()
    os.chown(
        site.bin if own != "behind" else site.bin / "greycheck.d", NOBODY.pw_uid, NOBODY.pw_gid
    )
    ran = run(site, "install", str(path), "--user", "nobody")
    assert ran.code == 1
    said = "keep it in a directory of root" if own == "way" else "chown -h root "
    assert (
        f"is nobody's, and root goes by nothing that another user may write: {said}" in ran.printed
    )
    assert not (path / "greycheck").exists()


@pytest.mark.parametrize("own", ["directory", "link"])
def test_launchers_are_not_taken_away_where_others_may_write(site: Site, own: str) -> None:
    """What is looked at there may be another file by the time that it is removed."""
    assert run(site, "install", str(site.bin), "--user", "nobody", "--uninstall").code == 0
    os.chown(site.directory, NOBODY.pw_uid, NOBODY.pw_gid)
    path = site.directory
    if own == "link":
        path = site.directory / "bin"
        path.symlink_to(site.launchers)
    before = sorted(site.launchers.iterdir())
    ran = run(site, "install", str(path), "--uninstall")
    assert ran.code == 1
    assert (
        f"{site.directory}: is nobody's, and root goes by nothing that another user may write"
        in ran.printed
    )
    assert sorted(site.launchers.iterdir()) == before


RACER = """
import os, sys
os.setgroups([]); os.setgid({gid}); os.setuid({uid})
print("ready", flush=True)
seen = set()
while True:
    for name in os.listdir({place!r}):
        path = os.path.join({place!r}, name)
        try:
            os.symlink({target!r}, os.path.join(path, "greycheck.db"))
            seen.add(path)
        except OSError:
            pass
"""


@pytest.mark.parametrize("name", ["install", "doctor"])
def test_who_is_quicker_in_a_trial_directory_gains_nothing(
    site: Site, empty_store: Path, name: str
) -> None:
    """What is the account's from the first moment, root never touches."""
    site.make(empty_store)
    trials = site.place / "tmp"
    trials.mkdir()
    trials.chmod(0o1777)
    site.environ["TMPDIR"] = str(trials)
    script = RACER.format(
        uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, place=str(trials), target=str(site.target)
    )
    racer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert racer.stdout
        racer.stdout.readline()
        for _ in range(3):
            run(site, *command(site, name))
            site.untouched()
    finally:
        racer.kill()
        racer.wait()
        assert racer.stdout
        racer.stdout.close()


NOSY = """#!/bin/sh
(exec 3</dev/tty) 2>/dev/null && echo it has a terminal >&2
[ -t 0 ] && echo it reads from a terminal >&2
exit 3
"""


def test_what_root_runs_as_another_user_has_no_terminal(site: Site) -> None:
    """Or that user, whose process it is, could type into it (TIOCSTI), and root's shell would read
    that.
    """
    nosy = site.bin / "greycheck"
    nosy.write_text(NOSY)
    nosy.chmod(0o755)
    child, terminal = pty.fork()
    if child == 0:
        try:
            ran = subprocess.run([nosy], stderr=subprocess.PIPE, check=False)
            os.write(1, b"control: " + ran.stderr.replace(b"\n", b";"))
            os.write(1, f" trial: {trial.try_run(nosy, NOBODY)}".encode())
            ran = subprocess.run(
                [nosy], stderr=subprocess.PIPE, check=False, **access.run_as(NOBODY)
            )  # type: ignore[call-overload]
            os.write(1, b" identity: " + ran.stderr)
        finally:
            os._exit(0)
    said = b""
    with contextlib.suppress(OSError):  # EIO is the end of a terminal
        while more := os.read(terminal, 1000):
            said += more
    os.close(terminal)
    os.waitpid(child, 0)
    text = " ".join(said.decode().split())
    assert "control: it has a terminal;it reads from a terminal;" in text, text
    assert text.count("terminal") == 2, text
    assert "trial: " in text
    assert "exit code 3" in text


def test_the_directory_of_marks_is_not_made_with_roots_rights_where_another_may_write(
    site: Site,
) -> None:
    """He would exchange it for a link before root gives it to qmail's user."""
    found = read_settings(
        {
            b"GREYCHECK_CONFIG": b"/dev/null",
            b"GREYCHECK_DATABASE": b"postgresql://greycheck@127.0.0.1:1/greycheck",
            b"GREYCHECK_STATE_DIRECTORY": os.fsencode(site.directory / "deeper" / "state"),
        }
    )
    install.make_state_directory(found, OTHER)
    assert {path.stat().st_uid for path in site.directory.rglob("*")} == {NOBODY.pw_uid}
    shutil.rmtree(site.directory / "deeper")
    (site.directory / "deeper").symlink_to(site.roots)
    with pytest.raises(StoreError, match="symbolic link"):
        install.make_state_directory(found, OTHER)
    site.untouched()


# --- marks of hosts -------------------------------------------------------------------------------


def test_a_check_marks_hosts_as_the_owner_of_the_directory(site: Site) -> None:
    found = read_settings(
        {
            b"GREYCHECK_CONFIG": b"/dev/null",
            b"GREYCHECK_DATABASE": b"postgresql://greycheck@127.0.0.1:1/greycheck",
            b"GREYCHECK_STATE_DIRECTORY": os.fsencode(site.directory),
        }
    )

    def ask() -> str:
        envelope = Envelope("", "192.0.2.1", b"a@b", b"c@d")
        with pytest.raises(StoreError):
            connect(found, 1.0).lookup(Asked(envelope, triplet(envelope, 24, 64)), 0)
        return identity()

    child_is = in_child(ask)
    assert f"Uid: {NOBODY.pw_uid} {NOBODY.pw_uid}" in child_is
    assert [path.stat().st_uid for path in site.directory.iterdir()] == [NOBODY.pw_uid]


def in_child(work: Callable[[], str]) -> str:
    """What WORK returns, done in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return found


# --- what comes back from another user's process --------------------------------------------------


def test_a_finding_of_another_users_process_is_text_for_a_terminal() -> None:
    found = told({"level": "fault", "about": "a\x1b[31m", "found": "b\r", "advice": "c\nd\x07"})
    assert "\x1b" not in found.about
    assert "\r" not in found.found
    assert found.advice.split("\n")[0] == "c"
    assert "\x07" not in found.advice
    perfect = {"level": "perfect", "about": "", "found": "", "advice": ""}
    wrongs: list[object] = [None, [], {}, perfect, {"level": "ok", "about": 1}]
    for wrong in wrongs:
        with pytest.raises(StoreError):
            told(wrong)


def test_a_store_that_root_does_not_open_is_a_finding(site: Site) -> None:
    site.store.symlink_to(site.foreign)
    ran = run(site, "doctor", "--dir", str(site.launchers), "--user", "nobody", "--json")
    found = [one for one in json.loads(ran.printed)["findings"] if one["about"] == "store"]
    assert [one["level"] for one in found] == ["fault"]
    assert f"{site.store}: is a symbolic link, which root does not follow" in found[0]["found"]
    assert found[0]["advice"] == f"Run: rm {site.store}"


def test_no_door_to_an_sqlite_file_opens_for_root(site: Site, empty_store: Path) -> None:
    site.make(empty_store)
    url = f"sqlite:///{site.store}"
    calls: list[Callable[[], object]] = [
        lambda: migrate.current(url),
        lambda: migrate.require(url),
        lambda: migrate.upgrade(url),
        lambda: migrate.downgrade(url, "base"),
        lambda: open_engine(url).connect(),
    ]
    for call in calls:
        with pytest.raises(
            (migrate.SchemaError, StoreError),
            match="is nobody's: root does not open it: runuser -u nobody",
        ):
            call()
    found = in_child(lambda: str(connect(site.settings(), 1.0) and identity()))
    assert f"Uid: {NOBODY.pw_uid} " in found


def test_a_way_up_leads_to_the_directory_that_is_judged(tmp_path: Path) -> None:
    inner = tmp_path / "open" / "inner"
    inner.mkdir(parents=True, mode=0o755)
    inner.parent.chmod(0o1777)
    with pytest.raises(StoreError, match="any user may write there"):
        rights.owner_of_store(f"{inner}/../greycheck.db", False)


# --- files that the URL of a server database names ------------------------------------------------

# A library that a driver loads where a file of options names it: it notes as whom, and takes back
# what rights it can.
SPY = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void begin(void)
{
    uid_t real, effective, saved;
    FILE *notes = fopen(NOTES, "a");
    if (seteuid(0)) {}
    getresuid(&real, &effective, &saved);
    if (notes) {
        fprintf(notes, "%u %u %u\n", real, effective, saved);
        fclose(notes);
    }
}
"""

ASKING = (
    ("status",),
    ("list", "pending"),
    ("stats",),
    ("db", "current"),
    ("rules", "list"),
    ("expire",),
    ("metrics",),
    ("explain", "192.0.2.1", "a@example.org", "b@example.net"),
    ("show", "192.0.2.1"),
    ("allow", "from:x.example"),
    ("providers", "list"),
    ("digest",),
    ("report",),
    ("policy",),
    ("resolve",),
    ("db", "upgrade"),
)


@pytest.fixture
def spied(site: Site, mariadb: MariaDB) -> Path:
    """The notes of a library that a file of the store's owner has the driver load."""
    mariadb.start()
    migrate.upgrade(mariadb.url())
    home = site.place / "home"
    home.mkdir()
    notes = home / "notes"
    (home / "spy.c").write_text(SPY)
    subprocess.run(
        ["cc", "-shared", "-fPIC", f'-DNOTES="{notes}"', "-o", home / "spy.so", home / "spy.c"],
        check=True,
    )
    options = home / "my.cnf"
    options.write_text(f"[client]\nplugin-dir={home}\ndefault-auth=spy\n")
    options.chmod(0o600)
    for path in (home, *home.iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    site.environ["GREYCHECK_DATABASE"] = mariadb.url(
        driver="mysqldb", read_default_file=str(options)
    )
    site.environ["GREYCHECK_STATE_DIRECTORY"] = str(site.directory)
    return notes


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_what_a_file_has_the_driver_load_runs_as_whose_that_file_is(
    site: Site, spied: Path, arguments: tuple[str, ...]
) -> None:
    run(site, *arguments)
    assert set(spied.read_text().splitlines()) == {" ".join([str(NOBODY.pw_uid)] * 3)}


def test_a_check_and_a_resident_that_root_starts_read_it_as_whose_it_is(
    site: Site, spied: Path
) -> None:
    asked = {"TCPREMOTEIP": "192.0.2.1", "REMOTEMF": "a@example.org", "REMOTERCPT": "b@example.net"}
    ran = subprocess.run(
        [site.launchers / "greycheck"],
        env=site.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert " reason=new " in ran.stderr
    run(site, "serve", "--no-resolve")
    assert set(spied.read_text().splitlines()) == {" ".join([str(NOBODY.pw_uid)] * 3)}


def test_root_follows_no_name_that_a_driver_looks_up_elsewhere(site: Site, spied: Path) -> None:
    url = site.environ["GREYCHECK_DATABASE"].partition("?")[0]
    site.environ["GREYCHECK_DATABASE"] = f"{url}?read_default_file=my.cnf"
    assert "read_default_file=my.cnf: name it by its whole path" in run(site, "status").words
    assert not spied.exists()


def test_no_driver_reads_for_root_what_another_user_may_write(
    site: Site, spied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever command forgot to become that user."""
    asked = site.settings().database.server
    assert asked is not None
    with pytest.raises(StoreError, match="root goes by nothing that another user may write"):
        drivers.load(asked)
    assert not spied.exists()
    with monkeypatch.context() as other:
        other.setattr(posix, "geteuid", lambda: NOBODY.pw_uid)
        assert drivers.load(asked)[0] == "mysqldb"


@pytest.mark.parametrize("command", ["doctor", "install"])
def test_doctor_and_install_ask_a_server_as_the_account_with_no_way_back(
    site: Site, spied: Path, command: str
) -> None:
    place = ["--dir", str(site.bin)] if command == "doctor" else [str(site.bin)]
    run(site, command, "--user", NOBODY.pw_name, *place)
    assert set(spied.read_text().splitlines()) == {" ".join([str(NOBODY.pw_uid)] * 3)}


@pytest.mark.parametrize(
    "url",
    [
        "mysql+mysqldb://u:p@127.0.0.1:1/d?read_default_file={}",
        "mysql+pymysql://u:p@127.0.0.1:1/d?read_default_file={}",
        "mysql+pymysql://u:p@127.0.0.1:1/d?ssl_ca={}",
        "postgresql://u:p@127.0.0.1:1/d?passfile={}",
        "postgresql://u:p@127.0.0.1:1/d?sslmode=verify-full&sslrootcert={}",
    ],
)
@pytest.mark.parametrize("arguments", [*ASKING[:3], ("doctor",)], ids=" ".join)
def test_a_pipe_that_the_url_names_keeps_no_command_of_roots_waiting(
    site: Site, url: str, arguments: tuple[str, ...]
) -> None:
    pipe = site.directory / "file"
    os.mkfifo(pipe)
    os.chown(pipe, NOBODY.pw_uid, NOBODY.pw_gid)
    site.environ["GREYCHECK_DATABASE"] = url.format(pipe)
    more = ("--user", NOBODY.pw_name, "--dir", str(site.bin)) if arguments == ("doctor",) else ()
    ran = run(site, *arguments, *more)
    assert ran.code is not None
    assert f"{pipe}: is no regular file" in ran.words


@pytest.mark.parametrize("option", ["postgresql://u:p@127.0.0.1:1/d?passfile={}", "{}/x/g.db"])
def test_doctor_has_root_change_no_mode_of_what_another_user_put_there(
    site: Site, option: str
) -> None:
    """As whoever owns the directory, a command reaches nothing of root's through a link there."""
    secret = site.roots / "victim"
    secret.chmod(0o600)
    link = site.directory / "link"
    link.symlink_to(secret if "passfile" in option else site.roots)
    site.roots.chmod(0o700)
    site.environ["GREYCHECK_DATABASE"] = option.format(link)
    ran = run(site, "doctor", "--user", NOBODY.pw_name, "--dir", str(site.bin))
    for line in ran.printed.splitlines():
        if str(link) in line and ("chmod" in line or "chgrp" in line or "chown" in line):
            assert f"runuser -u {NOBODY.pw_name} -- " in line, ran.printed
    site.roots.chmod(0o755)


def test_doctor_has_the_owner_close_his_store_not_root(site: Site, empty_store: Path) -> None:
    """What he puts in its place before root has read the advice keeps its mode."""
    site.make(empty_store)
    site.store.chmod(0o666)
    ran = run(site, "doctor", "--user", NOBODY.pw_name, "--dir", str(site.bin))
    assert f"runuser -u {NOBODY.pw_name} -- chmod 0600 {site.store}" in ran.words
    assert f"Run: chmod 0600 {site.store}" not in ran.words


# --- what has no end ------------------------------------------------------------------------------

ENDLESS = """
ALTER TABLE {0} RENAME TO other;
CREATE VIEW {0} AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)
    SELECT other.* FROM r LEFT JOIN other ON 1
"""


@pytest.mark.parametrize("table", ["triplet", "client", "rule", "alembic_version"])
@pytest.mark.parametrize("arguments", [*ASKING[:7], ("doctor",)], ids=" ".join)
def test_a_view_in_the_place_of_a_table_is_refused(
    site: Site, empty_store: Path, table: str, arguments: tuple[str, ...]
) -> None:
    site.make(empty_store)
    connection = sqlite3.connect(site.store)
    connection.executescript(ENDLESS.format(table))
    connection.close()
    os.chown(site.store, NOBODY.pw_uid, NOBODY.pw_gid)
    more = ("--user", NOBODY.pw_name, "--dir", str(site.bin)) if arguments == ("doctor",) else ()
    ran = run(site, *arguments, *more)
    assert ran.code is not None
    assert f"{table} is no table" in ran.words


def test_a_statement_without_end_is_ended_by_a_signal(site: Site, empty_store: Path) -> None:
    site.make(empty_store)
    program = (
        "import signal, sys\n"
        "from greycheck.store.admin.engine import open_engine\n"
        "with open_engine(sys.argv[1]).connect() as connection:\n"
        "    print('begins', flush=True)\n"
        "    connection.exec_driver_sql('WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL'\n"
        "        ' SELECT n + 1 FROM r) SELECT count(*) FROM r').fetchall()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, f"sqlite:///{site.foreign}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(HANGS) != 0
        finally:
            process.kill()
