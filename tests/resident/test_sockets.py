"""Where the resident listens, as whom, and where it will not."""

import fcntl
import grp
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greycheck.resident import sockets
from greycheck.settings import Settings
from greycheck.store.schema import migrate
from tests.conftest import UNMEASURED
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Peer, Resident
from tests.servers import free_port
from tests.support import SQLiteFile

IS_ROOT = os.geteuid() == 0

# Somebody who may run it: for root another user, for others themselves.
USER = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())
GROUP = grp.getgrgid(USER.pw_gid).gr_name


def refused(place: Path, *arguments: str, **settings: str) -> str:
    """The one line that a resident in PLACE ends with, which cannot serve."""
    resident = Resident(place, settings, arguments=arguments)
    assert resident.end() == 1
    said = resident.log()
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    return said.removeprefix("Error: ").rstrip("\n")


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as found:
        yield found


# --- the unix socket ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
def test_a_socket_has_the_mode_of_the_setting(start: Start, mode: str) -> None:
    resident = start(socket_mode=mode)
    assert stat.S_IMODE(resident.socket.stat().st_mode) == int(mode, 8)


def test_a_socket_is_closed_to_others_unless_a_setting_opens_it(start: Start) -> None:
    resident = start({"before": lambda: os.umask(0)})
    assert stat.S_IMODE(resident.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(Path(f"{resident.socket}.lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("owner", ["{user}", ":{group}", "{user}:{group}"])
def test_a_socket_belongs_to_whom_the_setting_says(start: Start, owner: str) -> None:
    resident = start(socket_owner=owner.format(user=USER.pw_name, group=GROUP))
    found = resident.socket.stat()
    assert found.st_uid == (USER.pw_uid if "user" in owner else os.geteuid())
    assert found.st_gid == (USER.pw_gid if "group" in owner else os.getegid())


@pytest.mark.parametrize("owner", ["no-such-user", ":no-such-group"])
def test_an_unknown_owner_is_refused(place: Path, owner: str) -> None:
    assert owner.strip(":") in refused(place, socket_owner=owner)


def test_a_socket_that_nobody_listens_on_is_replaced(
    start: Start, place: Path, listening: socket.socket
) -> None:
    listening.bind(str(place / "socket"))
    listening.close()
    assert start().ask() == DEFERRED


def test_a_resident_that_was_killed_leaves_room_for_the_next(place: Path, start: Start) -> None:
    first = Resident(place).wait()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert start().ask() == DEFERRED


def test_one_that_ended_leaves_room_for_the_next(place: Path, start: Start) -> None:
    with Resident(place) as first:
        first.wait()
    assert start().ask() == DEFERRED


def test_the_socket_of_a_running_one_is_left_alone(start: Start) -> None:
    resident = start()
    assert refused(resident.directory) == f"{resident.socket}: another greycheck serves there"
    assert resident.ask() == DEFERRED


def test_the_socket_of_another_program_is_left_alone(place: Path, listening: socket.socket) -> None:
    listening.bind(str(place / "socket"))
    listening.listen()
    assert refused(place) == f"{place}/socket: another program listens there"
    listening.setblocking(False)
    listening.accept()[0].close()


def test_what_is_no_socket_is_left_alone(place: Path) -> None:
    (place / "socket").write_text("precious")
    said = f"{place}/socket: is there, and is no socket: remove it, or set another socket"
    assert refused(place) == said
    assert (place / "socket").read_text() == "precious"
    (place / "socket").unlink()
    (place / "socket").symlink_to("elsewhere")
    assert refused(place) == said


def test_the_directory_of_the_socket_is_made(place: Path) -> None:
    path = place / "run" / "socket"
    with Resident(place, {"socket": str(path)}) as resident:
        resident.socket = path
        resident.wait()
        assert resident.ask() == DEFERRED
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_directory_that_cannot_be_made_is_named(place: Path) -> None:
    (place / "file").touch()
    said = refused(place, socket=f"{place}/none/run/socket")
    assert said == (
        f"{place}/none/run: No such file or directory: make it, for the user that greycheck serve"
        " runs as"
    )
    assert refused(place, socket=f"{place}/file/run/socket").startswith(
        f"{place}/file/run: Not a directory"
    )


def test_a_path_that_is_too_long_for_a_socket_is_named(place: Path) -> None:
    """Nothing is left behind, and the longest that there can be is served."""
    longest = place / ("x" * (106 - len(str(place))))
    with Resident(place, {"socket": str(longest)}) as resident:
        resident.socket = longest
        assert resident.wait().ask() == DEFERRED
    for too_long in (
        f"{longest}y",
        f"{place}/{'x' * 300}",
        f"{place}/run/{'é' * 60}",
    ):
        length = len(os.fsencode(too_long))
        assert refused(place, socket=too_long) == (
            f"GREYCHECK_SOCKET: socket = {too_long}: {length} bytes, and the path of a socket has"
            " 107 at most: set a shorter one"
        )
    assert {path.name for path in place.iterdir()} <= {
        "greycheck.counts",
        "greycheck.db",
        "log",
        longest.name,
        f"{longest.name}.lock",
    }


def test_wrong_settings_are_refused_in_the_childs_words(place: Path) -> None:
    assert refused(place, delay="soon").startswith("GREYCHECK_DELAY: delay = soon: not a duration")


def test_a_store_that_cannot_be_made_is_named(place: Path) -> None:
    assert f"{place}/none" in refused(place, database=f"{place}/none/greycheck.db")


def test_addresses_alone_are_listened_on_where_no_socket_is_named(place: Path) -> None:
    port = free_port()
    with Resident(place, {"socket": "", "listen": f"127.0.0.1:{port}"}) as resident:
        resident.wait_for(f"note listening on 127.0.0.1:{port}\n")
        with Peer(("127.0.0.1", port)) as peer:
            assert peer.ask() == DEFERRED
    assert not list(Path().glob("*.lock"))


def test_somewhere_it_must_listen(place: Path) -> None:
    assert refused(place, socket="") == "nothing to listen on: socket and listen are empty"


@pytest.mark.parametrize("lock", [True, False])
def test_a_socket_that_was_taken_away_is_made_again(start: Start, lock: bool) -> None:
    resident = start(socket_mode="0666")
    with resident.peer() as early:
        resident.socket.unlink()
        if lock:
            Path(f"{resident.socket}.lock").unlink()
        resident.wait_for(f"note {resident.socket}: the socket was taken away: made again")
        assert resident.ask() == DEFERRED
        assert early.ask(sender="b@example.org") == DEFERRED
    assert stat.S_IMODE(resident.socket.stat().st_mode) == 0o666
    assert Resident(resident.directory).end() == 1
    assert resident.log().endswith(f"Error: {resident.socket}: another greycheck serves there\n")


def test_a_directory_that_was_taken_away_is_made_again(place: Path) -> None:
    path = place / "run" / "socket"
    with Resident(place, {"socket": str(path)}) as resident:
        resident.socket = path
        resident.wait()
        path.parent.rename(place / "gone")
        resident.wait_for(f"note {path}: the socket was taken away: made again")
        assert resident.ask() == DEFERRED


def descriptors(resident: Resident) -> list[str]:
    """What RESIDENT has open, sorted."""
    return sorted(os.readlink(each) for each in Path(f"/proc/{resident.process.pid}/fd").iterdir())


def test_a_socket_that_is_taken_away_often_costs_no_descriptor(place: Path) -> None:
    path = place / "run" / "socket"
    with Resident(place, {"socket": str(path)}) as resident:
        resident.socket = path
        assert resident.wait().ask() == DEFERRED
        for time_ in range(1, 4):
            shutil.rmtree(path.parent)
            resident.wait_for("made again", time_)
            assert resident.ask(protocol_state="CONNECT") == ACCEPTED
        found = descriptors(resident)
        assert [each for each in found if "socket.lock" in each] == [f"{path}.lock"]


def test_a_lock_that_another_holds_is_not_gone_without(start: Start, place: Path) -> None:
    """Another resident may have made its own while this one's was away."""
    resident = start()
    lock = Path(f"{resident.socket}.lock")
    lock.unlink()
    with lock.open("w") as others:
        fcntl.flock(others, fcntl.LOCK_EX)
        resident.socket.unlink()
        wrong = (
            f"the socket was taken away, and no other can be made: {resident.socket}: another"
            " greycheck serves there"
        )
        resident.wait_for(wrong)
        assert not resident.socket.exists()
    resident.wait_for("made again")
    assert resident.ask() == DEFERRED
    with lock.open() as ours, pytest.raises(BlockingIOError):
        fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_link_in_the_place_of_the_lock_is_none(start: Start, place: Path) -> None:
    resident = start()
    lock = Path(f"{resident.socket}.lock")
    lock.rename(place / "elsewhere")
    lock.symlink_to("elsewhere")
    resident.socket.unlink()
    resident.wait_for(
        f"no other can be made: {lock}: Too many levels of symbolic links: rm {lock}, once no"
    )
    lock.unlink()
    resident.wait_for("made again")
    assert lock.is_file()
    assert resident.ask() == DEFERRED


def test_a_lock_that_is_removed_before_it_is_held_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts next would hold another one of that name."""
    path, flock = tmp_path / "socket", fcntl.flock
    removed: list[Path] = []

    def late(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(Path(f"{path}.lock"))
            removed[0].unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    found = Settings()
    found.socket, found.socket_mode, found.socket_owner = str(path), 0o660, ("", "")
    found.sources["socket"] = "default"
    with sockets.unix(found) as made:
        status = Path(f"{path}.lock").lstat()
        assert (status.st_dev, status.st_ino) == (
            os.fstat(made.lock).st_dev,
            os.fstat(made.lock).st_ino,
        )
        os.close(made.lock)
    assert len(removed) == 1


def test_whom_a_socket_is_given_to_is_looked_up_at_the_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the names (LDAP, say) may not answer while mail waits."""
    found = Settings()
    found.socket, found.socket_mode = str(tmp_path / "socket"), 0o660
    found.socket_owner = USER.pw_name, GROUP
    found.sources["socket"] = "default"
    first = sockets.unix(found)

    def silent(name: object) -> None:
        raise AssertionError(name)

    for module, name in ((pwd, "getpwnam"), (grp, "getgrnam")):
        monkeypatch.setattr(module, name, silent)
    first.path.unlink()
    second, wrong = sockets.again(first)
    assert wrong == ""
    status = second.path.stat()
    assert (status.st_uid, status.st_gid) == (USER.pw_uid, USER.pw_gid)
    os.close(second.lock)
    first.close()
    second.close()


def test_what_was_put_in_the_place_of_a_socket_is_left_alone_and_said_once(start: Start) -> None:
    resident = start()
    with resident.peer() as peer:
        resident.socket.unlink()
        resident.socket.write_text("precious")
        resident.wait_for("the socket was taken away, and no other can be made: ")
        for sender in range(30):
            assert peer.ask(sender=f"{sender}@example.org") == DEFERRED
            time.sleep(0.1)
        assert resident.log().count("the socket was taken away") == 1
        assert resident.socket.read_text() == "precious"
        resident.socket.unlink()
        resident.wait_for("made again")
        assert resident.ask() == DEFERRED


# --- users ----------------------------------------------------------------------------------------


def as_user() -> None:
    """Becomes USER, in a process that is to be his."""
    if IS_ROOT:
        os.setgroups([])
        os.setgid(USER.pw_gid)
        os.setuid(USER.pw_uid)


@pytest.mark.parametrize("whose", ["user", "root", "nobody yet"])
def test_who_it_becomes_can_use_the_socket_and_take_it_over(place: Path, whose: str) -> None:
    """Root makes them, with --user; later the supervisor starts it as that user."""
    os.chown(place, USER.pw_uid, USER.pw_gid)
    directory = Path(tempfile.mkdtemp(prefix="greycheck-run-", dir="/run" if IS_ROOT else None))
    path = directory / "run" / "socket"
    if whose != "nobody yet":
        path.parent.mkdir()
    if whose == "user":
        os.chown(path.parent, USER.pw_uid, USER.pw_gid)
    directory.chmod(0o755)
    try:
        given = {"socket": str(path)}
        with Resident(place, given, arguments=["--user", USER.pw_name]) as resident:
            resident.socket = path
            resident.wait()
            for each in (path, Path(f"{path}.lock")):
                assert (each.stat().st_uid, each.stat().st_gid) == (USER.pw_uid, USER.pw_gid)
            connects = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            subprocess.run(
                [sys.executable, "-c", connects, str(path)], preexec_fn=as_user, check=True
            )
        if IS_ROOT and whose == "root":
            return  # there only root can make a socket
        with Resident(place, given, before=as_user, environ=UNMEASURED) as later:
            later.socket = path
            assert later.wait().ask() == DEFERRED
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("listens", [False, True])
def test_what_root_has_left_behind_is_no_obstacle_unless_somebody_serves(
    place: Path, listens: bool
) -> None:
    """A socket of root's, as a version before this one left it, in a directory of the user's."""
    os.chown(place, USER.pw_uid, USER.pw_gid)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place / "socket"))
        (place / "socket").chmod(0o600)
        if listens:
            left.listen()
        if listens or IS_ROOT:
            resident = Resident(place, before=as_user, environ=UNMEASURED)
            assert resident.end() == 1
            said = resident.log()
            assert said.startswith(f"Error: {place}/socket")
            assert said.count("\n") == 1
            assert "None" not in said
            assert not IS_ROOT or f"rm {place}/socket, once no greycheck serve runs" in said
    if IS_ROOT:
        (place / "socket").unlink()
    with Resident(place, before=as_user, environ=UNMEASURED) as again:
        assert again.wait().ask() == DEFERRED


@pytest.mark.skipif(not IS_ROOT, reason="only root makes what others cannot open")
@pytest.mark.parametrize("is_held", [False, True])
def test_a_lock_that_cannot_be_opened_is_left_alone(place: Path, is_held: bool) -> None:
    """Whoever holds it may be about to listen."""
    os.chown(place, USER.pw_uid, USER.pw_gid)
    lock = place / "socket.lock"
    lock.touch(mode=0o600)
    with lock.open() as roots:
        if is_held:
            fcntl.flock(roots, fcntl.LOCK_EX)
        before = lock.stat().st_ino
        resident = Resident(place, before=as_user, environ=UNMEASURED)
        assert resident.end() == 1
        assert (
            resident.log()
            == f"Error: {lock}: Permission denied: rm {lock}, once no greycheck serve runs\n"
        )
        assert lock.stat().st_ino == before
    lock.unlink()
    with Resident(place, before=as_user, environ=UNMEASURED) as again:
        assert again.wait().ask() == DEFERRED


@pytest.mark.skipif(not IS_ROOT, reason="only root makes what others cannot write")
def test_who_may_make_no_lock_is_told_what_mends_it(place: Path) -> None:
    directory = place / "run dir"
    directory.mkdir()
    os.chown(place, USER.pw_uid, USER.pw_gid)
    resident = Resident(
        place, {"socket": f"{directory}/socket"}, before=as_user, environ=UNMEASURED
    )
    assert resident.end() == 1
    name = USER.pw_name
    assert resident.log() == (
        f"Error: {directory}/socket.lock: Permission denied:"
        f" chown {name} '{directory}', or start as root with --user {name}\n"
    )


# A number that no account has.
NUMBER = 54242


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes another")
@pytest.mark.parametrize("arguments", [(), ("--user", str(NUMBER))])
def test_it_becomes_the_owner_of_a_store_who_has_no_account(
    place: Path, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(KeyError):
        pwd.getpwuid(NUMBER)
    os.chown(place, NUMBER, NUMBER)
    with Resident(place, arguments=arguments) as resident:
        assert resident.wait().ask() == DEFERRED
        status = Path(f"/proc/{resident.process.pid}/status").read_text()
        assert f"Uid:\t{NUMBER}\t{NUMBER}\t{NUMBER}\t{NUMBER}\n" in status
        assert f"Gid:\t{NUMBER}\t{NUMBER}\t{NUMBER}\t{NUMBER}\n" in status
        assert resident.socket.stat().st_uid == NUMBER


@pytest.mark.skipif(not IS_ROOT, reason="only root may make a socket in another user's directory")
def test_a_directory_of_a_user_without_an_account_is_told_a_command_that_works(place: Path) -> None:
    directory = place / "run"
    directory.mkdir()
    os.chown(directory, NUMBER, NUMBER)
    said = refused(place, socket=f"{directory}/socket")
    assert said.endswith(f"root makes no socket there: greycheck serve --user {NUMBER}")
    os.chown(place, NUMBER, NUMBER)
    with Resident(
        place, {"socket": f"{directory}/socket"}, arguments=["--user", str(NUMBER)]
    ) as resident:
        resident.socket = directory / "socket"
        assert resident.wait().ask() == DEFERRED


@pytest.mark.parametrize(
    "name", ["4294967295", "99999999999999999999", "-1", "\N{SUPERSCRIPT TWO}", "1x"]
)
def test_what_is_no_number_of_a_user_is_refused(place: Path, name: str) -> None:
    assert refused(place, f"--user={name}") == f"{name}: no such user"


@pytest.mark.skipif(not IS_ROOT, reason="only root has rights to lose")
@pytest.mark.parametrize("name", ["socket", "socket.lock"])
@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_root_neither_gives_away_nor_removes_what_the_user_has_linked_to(
    place: Path, name: str, kind: Callable[[Path, Path], None]
) -> None:
    victim = Path(tempfile.mkdtemp(prefix="greycheck-victim-")) / "precious"
    victim.write_text("precious")
    victim.chmod(0o600)
    os.chown(place, USER.pw_uid, USER.pw_gid)
    kind(victim, place / name)
    resident = Resident(place, {"socket_owner": f":{GROUP}"}, arguments=["--user", USER.pw_name])
    resident.stop()
    assert (victim.read_text(), victim.stat().st_uid, victim.stat().st_gid) == ("precious", 0, 0)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    shutil.rmtree(victim.parent)


@pytest.mark.skipif(not IS_ROOT, reason="only root may make a socket in another user's directory")
def test_root_makes_no_socket_in_a_directory_of_another_user(place: Path) -> None:
    directory = place / "run"
    directory.mkdir()
    os.chown(directory, USER.pw_uid, USER.pw_gid)
    said = refused(place, socket=f"{directory}/socket")
    assert said == (
        f"{directory}: is {USER.pw_name}'s, and root makes no socket there: greycheck serve --user"
        f" {USER.pw_name}"
    )
    directory.chmod(0o777)
    assert "any user may write there" in refused(
        place, "--user", USER.pw_name, socket=f"{directory}/socket"
    )


def test_it_becomes_the_user_that_it_is_told(place: Path) -> None:
    os.chown(place, USER.pw_uid, USER.pw_gid)
    with Resident(place, arguments=["--user", USER.pw_name]) as resident:
        resident.wait()
        status = Path(f"/proc/{resident.process.pid}/status").read_text()
        found = {
            name: value.split()
            for name, _, value in (line.partition(":") for line in status.splitlines())
        }
        assert found["Uid"] == [str(USER.pw_uid)] * 4
        assert found["Gid"] == [str(USER.pw_gid)] * 4
        assert {int(group) for group in found["Groups"]} == set(
            os.getgrouplist(USER.pw_name, USER.pw_gid)
        )
        assert resident.ask() == DEFERRED
        assert (place / "greycheck.db").stat().st_uid == USER.pw_uid
        assert "serves as root" not in resident.log()


def test_as_root_it_warns(start: Start) -> None:
    assert (
        "serves as root: start it as the user that owns the store" in "".join(start().lines)
    ) == IS_ROOT


def test_an_unknown_user_is_refused(place: Path) -> None:
    assert refused(place, "--user", "no-such-user") == "no-such-user: no such user"


def test_only_root_becomes_another(place: Path) -> None:
    other = pwd.getpwuid(0).pw_name
    place.chmod(0o777)

    def become_user() -> None:
        os.setgid(USER.pw_gid)
        os.setuid(USER.pw_uid)

    resident = Resident(place, arguments=["--user", other], before=become_user)
    assert resident.end() == 1
    assert resident.log().startswith(f"Error: only root can become {other}\n")


def test_a_socket_cannot_be_given_away_by_others(place: Path) -> None:
    place.chmod(0o777)

    def become_user() -> None:
        os.setgroups([]) if IS_ROOT else None
        os.setgid(USER.pw_gid)
        os.setuid(USER.pw_uid)

    resident = Resident(place, {"socket_owner": "root"}, before=become_user)
    assert resident.end() == 1
    assert f"{place}/socket: this user cannot give it to root" in resident.log()


# --- addresses ------------------------------------------------------------------------------------


def test_it_listens_on_addresses_besides(start: Start) -> None:
    ports = free_port(), free_port()
    resident = start(listen=f"127.0.0.1:{ports[0]}, 0.0.0.0:{ports[1]}")
    for port in ports:
        with Peer(("127.0.0.1", port), "127.0.0.77") as peer:
            assert peer.ask() == DEFERRED
    assert resident.ask() == DEFERRED
    assert resident.lines[0] == (
        f"greycheck: note listening on {resident.socket}, 127.0.0.1:{ports[0]}, 0.0.0.0:{ports[1]}"
    )


def test_who_is_not_listed_may_not_ask(start: Start) -> None:
    port = free_port()
    resident = start(listen=f"127.0.0.1:{port}", listen_clients="192.0.2.0/24, 127.0.0.1, ::1")
    with Peer(("127.0.0.1", port), "127.0.0.2") as peer:
        assert peer.is_closed()
    with Peer(("127.0.0.1", port), "127.0.0.1") as peer:
        assert peer.ask() == DEFERRED
    assert resident.warnings() == ["127.0.0.2: may not ask here: see listen_clients"]


def test_nobody_may_ask_where_nobody_is_listed(start: Start) -> None:
    port = free_port()
    resident = start(listen=f"127.0.0.1:{port}", listen_clients="")
    with Peer(("127.0.0.1", port)) as peer:
        assert peer.is_closed()
    assert resident.ask() == DEFERRED


def test_it_listens_on_ipv6(start: Start) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET6) as trial:
        try:
            trial.bind(("::1", port))
        except OSError:
            pytest.skip("this machine has no ::1")
    resident = start(listen=f"[::1]:{port}")
    with Peer(("::1", port)) as peer:
        assert peer.ask() == DEFERRED
    with pytest.raises(ConnectionRefusedError):
        Peer(("127.0.0.1", port))
    assert f", [::1]:{port}" in resident.lines[0]
    resident.stop()
    with Resident(
        resident.directory, {"listen": f"[::]:{port}", "listen_clients": "127.0.0.0/8"}
    ) as narrow:
        narrow.wait()
        with Peer(("::1", port)) as peer:
            assert peer.is_closed()


def test_a_port_that_is_taken_is_named(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert (
            refused(place, listen=f"127.0.0.1:{port}")
            == f"127.0.0.1:{port}: Address already in use"
        )


def test_an_address_that_is_not_this_hosts_is_named(place: Path) -> None:
    said = refused(place, listen="192.0.2.1:10023")
    assert said == "192.0.2.1:10023: Cannot assign requested address"


# What a request may say besides, over a unix socket.
OWN_SETTINGS = {
    "GREYCHECK_DELAY": "1m",
    "GREYCHECK": "off",
    "GREYCHECK_STRIKES": "1",
    "GREYCHECK_STRIKE_TIME": "3650d",
    "GREYCHECK_STRIKE_INTERVAL": "3650d",
    "GREYCHECK_CLIENT_PASSES": "1",
    "GREYCHECK_DATABASE": "/nonexistent/greycheck.db",
    "greycheck_hook": "smtpextfork",
    "greycheck_time": "1",
}


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_settings_of_a_request_count_from_a_unix_socket_only(start: Start, name: str) -> None:
    port = free_port()
    resident = start(listen=f"127.0.0.1:{port}")
    with Peer(("127.0.0.1", port)) as peer:
        assert peer.ask(**{name: OWN_SETTINGS[name]}) == DEFERRED
        assert peer.ask(sender="b@example.org", **{name: OWN_SETTINGS[name]}) == DEFERRED
    said = "127.0.0.1: settings of a request count from a unix socket only"
    assert resident.warnings() == ([] if name == "greycheck_time" else [said])
    assert len(resident.verdicts) == 2
    assert all(" hook=policy " in line for line in resident.verdicts)


def test_that_settings_do_not_count_is_said_so_often_at_most(start: Start) -> None:
    """Who connects again for each request does not fill the log."""
    port = free_port()
    resident = start(listen=f"127.0.0.1:{port}")
    began = int(time.monotonic())
    for number in range(200):
        with Peer(("127.0.0.1", port)) as peer:
            assert peer.ask(sender=f"{number}@example.org", GREYCHECK_DELAY="1m") == DEFERRED
    said = "127.0.0.1: settings of a request count from a unix socket only"
    seconds = int(time.monotonic()) - began + 1
    assert 10 <= resident.log().count(said) <= 10 * seconds
    assert len(resident.verdicts) == 200


def test_nobody_has_a_client_refused_or_made_known_over_tcp(start: Start) -> None:
    port = free_port()
    resident = start(listen=f"127.0.0.1:{port}")
    with Peer(("127.0.0.1", port)) as peer:
        for _attempt in range(3):
            peer.ask(
                GREYCHECK_STRIKES="1",
                GREYCHECK_STRIKE_TIME="3650d",
                GREYCHECK_STRIKE_INTERVAL="3650d",
            )
            peer.ask(sender="b@example.org", GREYCHECK_DELAY="0")
            resident.age(10)
    assert resident.store.rows("SELECT * FROM client") == []
    assert set(resident.reasons()) == {"new", "early"}


# --- sockets from systemd -------------------------------------------------------------------------

# What systemd does: descriptors from 3 on, and variables that name the process they are meant for.
HAND_OVER = """
import os, sys
for place, descriptor in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(descriptor, place)
os.environ |= {"LISTEN_FDS": sys.argv[2], "LISTEN_PID": sys.argv[3] or str(os.getpid()), "LISTEN_FDNAMES": "x"}
os.execv(sys.argv[4], sys.argv[4:])
"""  # noqa: E501


def handed(place: Path, *given: socket.socket, count: str = "", pid: str = "") -> Resident:
    """A resident that systemd has handed the sockets GIVEN."""
    numbers = [each.fileno() for each in given]
    words = [",".join(map(str, numbers)), count or str(len(given)), pid]
    under = [sys.executable, "-c", HAND_OVER, *words]
    return Resident(place, under=under, pass_fds=tuple(numbers))


def test_it_serves_on_what_systemd_has_opened(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket() as two:
        one.bind(str(place / "activated"))
        two.bind(("127.0.0.1", 0))
        one.listen()
        two.listen()
        # Whoever connects before it runs waits.
        early = Peer(place / "activated")
        with handed(place, one, two) as resident:
            assert early.ask() == DEFERRED
            with Peer(two.getsockname()) as peer:
                assert peer.ask() == DEFERRED
            resident.wait_for(f"listening on {place}/activated, 127.0.0.1:{two.getsockname()[1]}\n")
            assert not resident.socket.exists()
        early.close()
        # What came while it was down waits for the next one.
        late = Peer(place / "activated")
        with handed(place, one, two):
            assert late.ask(sasl_username="x") == ACCEPTED
        late.close()


def test_what_was_meant_for_another_process_is_not_taken(
    place: Path, listening: socket.socket
) -> None:
    listening.bind(str(place / "activated"))
    listening.listen()
    with handed(place, listening, pid="1") as resident:
        assert resident.wait().ask() == DEFERRED


def test_what_is_no_listening_socket_is_refused(place: Path, listening: socket.socket) -> None:
    wrong = "Error: descriptor {}, as LISTEN_FDS counts, is no listening stream socket\n"
    listening.bind(str(place / "activated"))
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for given in (listening, datagrams):
            resident = handed(place, given)
            assert resident.end() == 1
            assert resident.log() == wrong.format(3)
    listening.listen()
    resident = handed(place, listening, count="100")
    assert resident.end() == 1
    assert resident.log() == wrong.format(4)


def test_a_count_that_is_no_number_is_passed_over(place: Path, listening: socket.socket) -> None:
    listening.bind(str(place / "activated"))
    listening.listen()
    with handed(place, listening, count="many") as resident:
        assert resident.wait().ask() == DEFERRED


def test_the_tables_are_there_before_anybody_is_answered(place: Path) -> None:
    store = SQLiteFile(place / "new.db")
    with Resident(place, store=store) as resident:
        assert resident.wait().ask() == DEFERRED
        assert store.rows("SELECT count(*) FROM triplet") == [(1,)]


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_tables_that_are_older_are_not_changed_without_being_asked(
    place: Path, empty_store: Path, revision: str
) -> None:
    """It may take long, and a supervisor would kill it, and start it again.

    Children go on without it meanwhile.
    """
    store = SQLiteFile(place / "greycheck.db", empty_store)
    store.make()
    migrate.downgrade(store.url, revision)
    said = refused(place)
    assert f"the schema is at {revision}, older than this program's {migrate.head()}" in said
    assert "run greycheck db upgrade" in said
    assert migrate.current(store.url) == revision
    migrate.upgrade(store.url)
    with Resident(place, store=store) as resident:
        assert resident.wait().ask() == DEFERRED
