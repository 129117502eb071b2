"""What the doctor finds on hosts of Postfix and Exim: each fault made with real configurations and
sockets.
"""

import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from greycheck import doctor, settings
from greycheck.doctor import mailers, service, supervisor
from greycheck.doctor.finding import Finding, Installation
from greycheck.resident import program
from greycheck.store.schema import migrate
from tests.doctor.name_server import name_server
from tests.launchers.resident import Resident
from tests.servers import free_port

NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

MASTER = "smtp inet n - {chroot} - - smtpd\npickup unix n - y 60 1 pickup\n"


@pytest.fixture
def host(place: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """A host without qmail; its Postfix, of nobody's, asks at the socket that the settings have."""
    monkeypatch.setenv("GREYCHECK_CONFIG", f"{place}/greycheck.conf")
    monkeypatch.setattr(service, "QMAIL_HOME", place / "qmail")
    monkeypatch.setattr(mailers, "POSTFIX", place / "postfix")
    monkeypatch.setattr(mailers, "EXIM", (place / "exim.conf",))
    monkeypatch.setattr(mailers, "EXIM_USERS", (NOBODY.pw_name,))
    monkeypatch.setattr(supervisor, "SYSTEMD", place)
    monkeypatch.setattr(supervisor, "UNITS", (place,))
    (place / "greycheck.service").touch()
    for name in ("postfix", "proc", "state"):
        (place / name).mkdir()
    postfix(
        place, f"check_policy_service {{ unix:{place}/socket, timeout=10s, default_action=DUNNO }}"
    )
    migrate.upgrade(f"sqlite:///{place}/state/greycheck.db")
    return Installation(place / "qmail" / "bin", None, read(place), time.time(), place / "proc")


def read(place: Path, **variables: str) -> settings.Settings:
    (place / "greycheck.conf").write_text(
        "".join(f"{name} = {value}\n" for name, value in variables.items())
    )
    return settings.read(
        {
            b"GREYCHECK_CONFIG": os.fsencode(place / "greycheck.conf"),
            b"GREYCHECK_DATABASE": os.fsencode(place / "state" / "greycheck.db"),
            b"GREYCHECK_SOCKET": os.fsencode(place / "socket"),
            b"GREYCHECK_RESOLVER": name_server().encode(),
        }
    )


def postfix(place: Path, policy: str = "", chroot: str = "n", master: str = "") -> None:
    """Postfix in PLACE asks the POLICY service."""
    restrictions = (
        f"smtpd_recipient_restrictions =\n    permit_mynetworks,\n# no\n    {policy}\n"
        if policy
        else ""
    )
    (place / "postfix" / "main.cf").write_text(
        "compatibility_level = 3.6\nmail_owner = nobody\nqueue_directory ="
        f" {place}/queue\n{restrictions}"
    )
    (place / "postfix" / "master.cf").write_text(MASTER.format(chroot=chroot) + master)


@contextmanager
def resident(path: Path, answer: bytes = program.ANSWER) -> Iterator[None]:
    with Resident(path, answer):
        path.chmod(0o666)
        yield
    path.unlink()


@contextmanager
def at_port(port: int) -> Iterator[None]:
    """What greycheck answers by TCP at PORT, to each who asks: it does not tell there who it is."""
    with socket.create_server(("127.0.0.1", port)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _address = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"action=DUNNO\n\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def look(host: Installation) -> Finding:
    return next(mailers.check_mailers(host))


def test_a_postfix_that_is_answered_has_no_fault_and_needs_no_qmail(
    host: Installation, place: Path
) -> None:
    with resident(place / "socket"):
        found = doctor.examine(host)
    assert doctor.is_sound(found)
    assert "qmail" not in repr(found)
    assert found[0] == Finding(
        "ok", "mail server", f"Postfix asks unix:{place}/socket, where greycheck answers"
    )


def test_a_host_with_qmail_or_a_directory_of_launchers_is_qmails(
    host: Installation, place: Path
) -> None:
    assert mailers.find_mailers(replace(host, directory=place / "bin")) == []
    (place / "qmail").mkdir()
    assert mailers.find_mailers(host) == []


def test_a_host_of_neither_is_told_that_launchers_are_not_there(
    host: Installation, place: Path
) -> None:
    (place / "postfix" / "main.cf").unlink()
    assert [one.about for one in doctor.examine(host) if one.level == "fault"] == ["launchers"]


def test_a_resident_that_does_not_run_is_a_fault(host: Installation, place: Path) -> None:
    found = look(host)
    assert found.found == (
        f"Postfix asks unix:{place}/socket: No such file or directory: mail comes in without"
        " greylisting:"
        " greycheck serve does not run"
    )
    assert found.advice == "Run: systemctl enable --now greycheck"
    postfix(place, f"check_policy_service unix:{place}/socket")
    assert "mail is refused (451)" in look(host).found


def test_a_unit_that_is_not_there_is_put_there_for_the_user_of_this_host(
    host: Installation, place: Path
) -> None:
    (place / "greycheck.service").unlink()
    host = replace(host, account=pwd.getpwnam("nobody"))
    advice = supervisor.start(host).removeprefix("Run: ")
    assert advice.endswith(" && systemctl enable --now greycheck")
    subprocess.run(["sh", "-c", advice.rpartition(" && ")[0]], check=True)
    lines = (place / "greycheck.service").read_text().split("\n")
    assert "User=nobody" in lines
    assert f"ExecStart={Path(sys.executable).with_name('greycheck')} serve" in lines
    assert supervisor.start(host) == "Run: systemctl enable --now greycheck"


def test_without_systemd_it_is_started_by_hand(
    host: Installation, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SYSTEMD", place / "nowhere")
    assert look(host).advice == f"Run: {host.command} serve"
    assert supervisor.restart() == []
    (place / "greycheck").mkdir()
    monkeypatch.setattr(supervisor, "SERVICES", (place / "none", place / "greycheck"))
    for programs, command in (({"svc", "sv"}, "svc -t"), ({"sv"}, "sv restart")):
        monkeypatch.setattr(
            supervisor.shutil,
            "which",
            lambda program, there=programs: program if program in there else None,
        )
        assert supervisor.restart() == [f"{command} {place}/greycheck"]
    monkeypatch.setattr(supervisor.shutil, "which", lambda _program: None)
    assert supervisor.restart() == []


def test_a_postfix_that_does_not_ask_is_told_how(host: Installation, place: Path) -> None:
    postfix(place, "check_policy_service unix:private/spf")
    (place / "queue" / "private").mkdir(parents=True)
    with resident(place / "queue" / "private" / "spf", b"action=DUNNO\n\n"):
        found = look(host)
    assert found.found.endswith(
        "main.cf: no check_policy_service where greycheck answers: nothing is greylisted"
    )
    assert found.advice == (
        "Run: postconf -e 'smtpd_recipient_restrictions = permit_mynetworks, check_policy_service"
        " unix:private/spf,"
        f" check_policy_service {{ unix:{place}/socket, timeout=10s, default_action=DUNNO }}' &&"
        " postfix reload"
    )
    postfix(place)
    assert (
        "smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, rej"
        in look(host).advice
    )


def test_a_chrooted_postfix_that_does_not_ask_is_told_to_ask_a_port(
    host: Installation, place: Path
) -> None:
    postfix(place, chroot="y")
    advice, resident = [one.advice for one in mailers.check_mailers(host)]
    assert advice.startswith(
        f"Run: echo 'listen = 127.0.0.1:10023' >> {place}/greycheck.conf && systemctl restart"
    )
    assert "check_policy_service { inet:127.0.0.1:10023, timeout=10s" in advice
    assert resident == "Run: systemctl enable --now greycheck"


def test_a_chrooted_smtpd_is_given_a_port(host: Installation, place: Path) -> None:
    postfix(place, f"check_policy_service unix:{place}/socket", chroot="y")
    with resident(place / "socket"):
        found = look(host)
    assert (
        f"but its smtpd is chrooted, and there that is {place}/queue{place}/socket: No such file"
        in found.found
    )
    main = place / "postfix" / "main.cf"
    assert found.advice == (
        f"Run: echo 'listen = 127.0.0.1:10023' >> {place}/greycheck.conf && systemctl restart"
        " greycheck"
        f" && sed -i 's|unix:{place}/socket|inet:127.0.0.1:10023|' {main} && postfix reload"
    )
    port = free_port()
    listens = replace(host, settings=read(place, listen=f"127.0.0.1:{port}"))
    with resident(place / "socket"), at_port(port):
        assert look(listens).advice == (
            f"Run: sed -i 's|unix:{place}/socket|inet:127.0.0.1:{port}|' {main} && postfix reload"
        )
        postfix(place, f"check_policy_service inet:127.0.0.1:{port}", chroot="y")
        assert look(listens).level == "ok"


def test_a_socket_in_the_chroot_is_seen(host: Installation, place: Path) -> None:
    (place / "queue").mkdir()
    with resident(place / "queue" / "socket"):
        for policy in ("unix:/socket", "unix:socket"):
            postfix(place, f"check_policy_service {policy}", chroot="y")
            assert look(host).level == "ok"


def test_another_path_than_the_residents_is_told(host: Installation, place: Path) -> None:
    postfix(place, f"check_policy_service unix:{place}/old.socket")
    with resident(place / "socket"):
        found = look(host)
    assert found.found.endswith(
        f"No such file or directory: mail is refused (451); greycheck listens at {place}/socket"
    )
    main = place / "postfix" / "main.cf"
    assert (
        found.advice
        == f"Run: sed -i 's|unix:{place}/old\\.socket|unix:{place}/socket|' {main} && postfix"
        " reload"
    )


def test_a_port_that_the_resident_has_not_is_told(host: Installation, place: Path) -> None:
    port = free_port()
    postfix(place, f"check_policy_service inet:127.0.0.1:{port}", chroot="y")
    with resident(place / "socket"):
        found = look(host)
    assert f"Postfix asks inet:127.0.0.1:{port}: Connection refused" in found.found
    assert found.advice == (
        f"Run: echo 'listen = 127.0.0.1:{port}' >> {place}/greycheck.conf && systemctl restart"
        " greycheck"
    )


@as_root
def test_a_socket_that_postfix_may_not_open_is_given_to_its_group(
    host: Installation, place: Path
) -> None:
    with resident(place / "socket"):
        (place / "socket").chmod(0o660)
        found = look(host)
        assert (
            f"Permission denied: mail comes in without greylisting: {place}/socket (mode 0660,"
            " owner root)" in found.found
        )
        setting = f"socket_owner = :{mailers.access.group_name(NOBODY.pw_gid)}"
        assert (
            found.advice
            == f"Run: echo '{setting}' >> {place}/greycheck.conf && systemctl restart greycheck"
        )
        os.chown(place / "socket", 1, -1)
        had = replace(host, settings=read(place, socket_owner="root"))
        assert look(had).advice == (
            f"Run: usermod -aG {setting.partition(':')[2]} daemon &&"
            f" sed -i 's|^ *socket_owner *=.*|{setting}|' {place}/greycheck.conf && systemctl"
            " restart greycheck"
        )


@as_root
def test_a_directory_that_postfix_may_not_pass_is_opened(host: Installation, place: Path) -> None:
    (place / "run").mkdir(mode=0o700)
    postfix(place, f"check_policy_service unix:{place}/run/socket")
    with resident(place / "run" / "socket"):
        found = look(host)
    assert f"nobody may not enter {place}/run (mode 0700, owner root)" in found.found
    assert found.advice == f"Run: chmod o+x {place}/run"


def test_a_policy_that_postfix_starts_itself_is_well(host: Installation, place: Path) -> None:
    spawned = (
        "greycheck unix - n n - 0 spawn\n    user=greycheck argv=/opt/greycheck/bin/greycheck"
        " policy\n"
    )
    postfix(place, "check_policy_service unix:private/greycheck", master=spawned)
    assert (look(host).level, "starts greycheck policy" in look(host).found) == ("ok", True)


def test_the_configuration_of_the_postfix_that_runs_is_read(
    host: Installation, place: Path
) -> None:
    (place / "postfix").rename(place / "other")
    assert mailers.find_mailers(host) == []
    (place / "proc" / "7").mkdir()
    arguments = f"/usr/lib/postfix/sbin/master\0-c\0{place}/other\0-w\0"
    (place / "proc" / "7" / "cmdline").write_text(arguments)
    [found] = mailers.find_mailers(host) if os.geteuid() == 0 else [None]
    assert found is None or (found.file, found.reload) == (
        place / "other/main.cf",
        f"postfix -c {place}/other reload",
    )


@pytest.mark.parametrize(
    ("level", "shut"), [("3.6", False), ("1", False), ("0", True), ("", True), ("x", True)]
)
def test_what_master_says_nothing_of_is_as_old_as_postfix_is_to_be(level: str, shut: bool) -> None:
    main = {"compatibility_level": level} if level else {}
    assert mailers.is_chrooted(MASTER.format(chroot="-"), main) is shut


def test_what_is_no_number_of_ascii_counts_as_none(host: Installation, place: Path) -> None:
    master = MASTER.format(chroot="-")
    assert mailers.is_chrooted(master, {"compatibility_level": "²"})
    assert not mailers.is_chrooted(master, {"compatibility_level": "3"})
    postfix(place, f"check_policy_service inet:127.0.0.1:{'9' * 5000}")
    assert look(host).level == "fault"


def test_an_exim_is_found_by_its_configuration(host: Installation, place: Path) -> None:
    (place / "postfix" / "main.cf").unlink()
    (place / "exim.conf").write_text("begin acl\n")
    assert "exim.conf: no readsocket of greycheck's socket" in look(host).found
    asks = (
        "warn set acl_m_x ="
        f" ${{sg{{${{readsocket{{{place}/socket}}{{request\\n}}{{10s}}{{}}{{}}}}}}}}\n"
    )
    (place / "exim.conf").write_text(asks)
    assert f"Exim asks {place}/socket: No such file or directory" in look(host).found
    with resident(place / "socket"):
        assert look(host).level == "ok"
        (place / "exim.conf").write_text(asks.replace("/socket", "/old"))
        assert look(host).advice == f"Run: sed -i 's|{place}/old|{place}/socket|' {place}/exim.conf"
    (place / "exim.conf").write_text("${readsocket{inet:127.0.0.1:1}{x}}")
    assert "Exim asks inet:127.0.0.1:1: Connection refused" in look(host).found
    (place / "exim.conf").write_text("${readsocket{inet:greylist.example:1}{x}}")
    assert "no readsocket" in look(host).found, "a name is not looked up"


def test_who_runs_the_resident_is_whose_the_store_is(host: Installation, place: Path) -> None:
    if os.geteuid() == 0:
        os.chown(place / "state", NOBODY.pw_uid, -1)
        found = mailers.served_as(host)
        assert found is not None
        assert found.pw_name == "nobody"
    os.rename(place / "state", place / "gone")
    assert "no such directory" in repr(doctor.examine(host))
