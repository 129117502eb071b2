"""Where the resident listens, as whom, and where it will not."""

import grp
import os
import pwd
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


# --- the unix socket --------------------------------------------------------------------------------------------------


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


def test_a_socket_that_nobody_listens_on_is_replaced(start: Start, place: Path, listening: socket.socket) -> None:
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
    assert said == (f"{place}/none/run: No such file or directory: make it, for the user that greycheck serve runs as")
    assert refused(place, socket=f"{place}/file/run/socket").startswith(f"{place}/file/run: Not a directory: ")


def test_a_path_that_is_too_long_for_a_socket_is_named(place: Path) -> None:
    path = place / ("x" * 120)
    assert refused(place, socket=str(path)).startswith(f"{path}: ")


def test_wrong_settings_are_refused_in_the_childs_words(place: Path) -> None:
    assert refused(place, delay="soon").startswith("GREYCHECK_DELAY: delay = soon: not a duration")


def test_a_store_that_cannot_be_made_is_named(place: Path) -> None:
    assert f"{place}/none" in refused(place, database=f"{place}/none/greycheck.db")


# --- users ------------------------------------------------------------------------------------------------------------


def test_it_becomes_the_user_that_it_is_told(place: Path) -> None:
    os.chown(place, USER.pw_uid, USER.pw_gid)
    with Resident(place, arguments=["--user", USER.pw_name]) as resident:
        resident.wait()
        status = Path(f"/proc/{resident.process.pid}/status").read_text()
        found = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
        assert found["Uid"] == [str(USER.pw_uid)] * 4
        assert found["Gid"] == [str(USER.pw_gid)] * 4
        assert {int(group) for group in found["Groups"]} == set(os.getgrouplist(USER.pw_name, USER.pw_gid))
        assert resident.ask() == DEFERRED
        assert (place / "greycheck.db").stat().st_uid == USER.pw_uid
        assert "serves as root" not in resident.log()


def test_as_root_it_warns(start: Start) -> None:
    assert ("serves as root: start it as the user that owns the store" in "".join(start().lines)) == IS_ROOT


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


# --- addresses --------------------------------------------------------------------------------------------------------


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
    with Resident(resident.directory, {"listen": f"[::]:{port}", "listen_clients": "127.0.0.0/8"}) as narrow:
        narrow.wait()
        with Peer(("::1", port)) as peer:
            assert peer.is_closed()


def test_a_port_that_is_taken_is_named(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refused(place, listen=f"127.0.0.1:{port}") == f"127.0.0.1:{port}: Address already in use"


def test_an_address_that_is_not_this_hosts_is_named(place: Path) -> None:
    said = refused(place, listen="192.0.2.1:10023")
    assert said == "192.0.2.1:10023: Cannot assign requested address"


# --- sockets from systemd ---------------------------------------------------------------------------------------------

# What systemd does: descriptors from 3 on, and variables that name the process they are meant for.
HAND_OVER = """
import os, sys
for place, descriptor in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(descriptor, place)
os.environ |= {"LISTEN_FDS": sys.argv[2], "LISTEN_PID": sys.argv[3] or str(os.getpid()), "LISTEN_FDNAMES": "x"}
os.execv(sys.argv[4], sys.argv[4:])
"""


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


def test_what_was_meant_for_another_process_is_not_taken(place: Path, listening: socket.socket) -> None:
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
