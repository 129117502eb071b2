"""Postfix asks the resident, or has ``greycheck policy`` spawned: the lines of its page in docs/,
over real SMTP.
"""

import email.utils
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resident.resident import DEFAULT, Resident, operate
from tests.servers import free_port, wait_until
from tests.smtp import pages
from tests.smtp.conftest import Start
from tests.smtp.dialogue import TIMEOUT
from tests.smtp.maildir import USER
from tests.smtp.mailhost import tool
from tests.smtp.postfix import RECIPIENT, RELAY, Postfix, Session
from tests.support import ROOT, SENDER, SQLiteFile

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run Postfix")

OK = "250 2.1.5 Ok"
SAID = "<{}>: Recipient address rejected: {}"
DEFERRED = "450 4.2.0 " + SAID.format(RECIPIENT, "greylisted, please try again later")
REJECTED = "554 5.7.1 " + SAID.format(RECIPIENT, "refused by local policy")
NOT_ANSWERED = "451 4.3.5 " + SAID.format(RECIPIENT, "Server configuration problem")


class Host:
    """Postfix, and where its residents listen: all by the lines of that page, with paths and a port
    of their own.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port = free_port()
        self.store = SQLiteFile(place / "store" / "greycheck.db")
        self.store.path.parent.mkdir()
        restrictions = (
            pages.lines("postfix", "smtpd_recipient_restrictions")
            .partition("=")[2]
            .replace("\n", " ")
        )
        unix = restrictions.replace("inet:127.0.0.1:10023", f"unix:{place}/socket")
        assert unix != restrictions
        assert "permit_sasl_authenticated, " in unix
        spawn = pages.lines("postfix", " spawn\n").replace("user=greycheck", f"user={USER}")
        self.spawned = SQLiteFile(place / "spawned" / "greycheck.db")
        self.config = place / "greycheck.conf"
        self.spawn_log = place / "spawn.log"
        program = self.script("greycheck", f'exec {sys.executable} -I -m greycheck "$@"')
        logging = self.script("logging", f'exec {program} "$@" 2>> {self.spawn_log}')
        master = spawn.replace("/opt/greycheck/bin/greycheck", program)
        master += master.replace("greycheck unix", "logging unix").replace(program, logging)
        assert master.count(USER) == 2
        self.spawn_log.touch()
        shutil.chown(self.spawn_log, USER)
        services = {
            "unix": unix,
            "inet": restrictions.replace(":10023", f":{self.port}"),
            "strict": unix.replace(", default_action=DUNNO", ""),
            "spawn": unix.replace(f"unix:{place}/socket", "unix:private/greycheck"),
            "logging": unix.replace(f"unix:{place}/socket", "unix:private/logging"),
            "twice": f"{unix}, check_policy_service unix:{place}/socket",
            "authenticated": unix.replace("permit_sasl_authenticated, ", ""),
        }
        options = {name: {"smtpd_recipient_restrictions": line} for name, line in services.items()}
        options["always"] = {
            f"smtpd_{stage}_restrictions": f"check_policy_service unix:{place}/socket"
            for stage in ("client", "helo", "sender", "recipient", "data", "end_of_data")
        } | {"smtpd_delay_reject": "no"}
        main = pages.lines("postfix", "_time_limit")
        self.postfix = Postfix(place, options, master, main + main.replace("greycheck", "logging"))
        self.session = self.postfix.session
        self.delivered = self.postfix.delivered

    def resident(self, **settings: str) -> Resident:
        """A resident that listens, with SETTINGS."""
        name, _, owner = pages.lines("postfix", "socket_owner").splitlines()[1].partition(" = ")
        given = {"defer_text": DEFAULT, name: owner, "listen": f"127.0.0.1:{self.port}"} | settings
        return Resident(self.place, given, self.store).wait()

    def script(self, name: str, command: str) -> str:
        """The path of a shell script that runs COMMAND where no variable says more."""
        path = self.place / name
        path.write_text(
            f"#!/bin/sh\ncd {ROOT}\nGREYCHECK_CONFIG={self.config}\nexport"
            f" GREYCHECK_CONFIG\n{command}\n"
        )
        path.chmod(0o755)
        return str(path)

    def attempt(
        self, name: str = "unix", *recipients: str, sender: str = SENDER.decode()
    ) -> list[str]:
        """What a client is told who offers RECIPIENTS, or the usual one, and leaves."""
        with self.session(name) as client:
            return client.offer(*(recipients or [RECIPIENT]), sender=sender)

    def deliver(self, name: str = "unix", *recipients: str, sender: str = SENDER.decode()) -> None:
        """Delivers a message to RECIPIENTS, or the usual one."""
        with self.session(name) as client:
            assert client.offer(*(recipients or [RECIPIENT]), sender=sender) == [OK] * max(
                1, len(recipients)
            )
            assert client.deliver().startswith("250 2.0.0 Ok: queued as ")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """One Postfix for all: it takes longer to start than a scenario takes."""
    with tempfile.TemporaryDirectory(prefix="greycheck-postfix-") as name:
        place = Path(name)
        place.chmod(0o755)
        found = Host(place)
        with found.postfix:
            yield found


# --- the resident ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unix", "inet"])
def test_a_mail_is_deferred_and_then_delivered(host: Host, resident: Resident, name: str) -> None:
    assert host.attempt(name) == [DEFERRED]
    resident.age(100)
    [early] = host.attempt(name)
    assert re.fullmatch(re.escape(DEFERRED).replace("300", r"(200|19\d)"), early)
    resident.age(200)
    host.deliver(name)
    [message] = host.delivered(1)
    assert "X-Greylist" not in message
    assert resident.reasons() == ["new", "early", "retry"]
    assert resident.warnings() == []


def test_the_log_names_what_postfix_told(host: Host, resident: Resident) -> None:
    with host.session("unix", "127.0.0.5") as client:
        client.offer("Bob+x@Example.net", sender="List-1@example.org")
    [line] = resident.verdicts
    assert " client=192.0.2.5 sender=<List-1@example.org> recipient=<Bob+x@" in line
    assert " hook=policy " in line


def test_a_message_to_several_has_one_header(host: Host, start: Start) -> None:
    resident = start(header="yes")
    several = [RECIPIENT, "carol@example.net", "dave@example.net"]
    assert all(said.startswith("450 4.2.0 ") for said in host.attempt("unix", *several))
    resident.age(312)
    host.deliver("unix", *several)
    for message in host.delivered(3):
        [header] = message.get_all("X-Greylist", [])
        delayed = re.fullmatch(
            r"delayed (31\d) seconds by greycheck at (\S+); (.+)", " ".join(header.split())
        )
        assert delayed
        assert delayed[2] == socket.gethostname()
        assert email.utils.parsedate_to_datetime(delayed[3])
    host.deliver("unix", "erin@example.net")
    [message] = host.delivered(1)
    assert message["X-Greylist"].startswith(f"client, by greycheck at {socket.gethostname()}; ")
    assert resident.reasons() == ["new"] * 3 + ["retry"] + ["client"] * 3


def test_later_recipients_pass_with_the_first(host: Host, start: Start) -> None:
    resident = start(client_passes="0")
    host.attempt()
    resident.age(300)
    with host.session("unix") as client:
        assert client.offer(RECIPIENT, "carol@example.net") == [OK, OK]
        client.rset()
        assert client.offer("dave@example.net") != [OK]
    assert resident.reasons() == ["new", "retry", "message", "new"]


def test_two_messages_of_a_session_are_told_apart(host: Host, start: Start) -> None:
    resident = start(header="yes")
    host.attempt()
    resident.age(300)
    with host.session("unix") as client:
        for _ in range(2):
            assert client.offer(RECIPIENT, "carol@example.net") == [OK, OK]
            client.deliver()
    assert [len(message.get_all("X-Greylist", [])) for message in host.delivered(4)] == [1] * 4


def test_what_a_rule_rejects_is_rejected(host: Host, start: Start) -> None:
    operate(host.store, "reject", "from:example.org")
    resident = start()
    assert host.attempt() == [REJECTED]
    assert host.attempt(sender="alice@example.com") == [DEFERRED]
    assert resident.reasons() == ["rule", "new"]


def test_who_may_relay_is_not_asked_about(host: Host, resident: Resident) -> None:
    with host.session("unix", RELAY) as client:
        assert client.offer(RECIPIENT) == [OK]
    assert resident.verdicts == []


def test_what_postfix_refuses_itself_is_not_asked_about(host: Host, resident: Resident) -> None:
    [said] = host.attempt("unix", "bob@example.com")
    assert said.startswith(("454 4.2.0 ", "454 4.7.1 ", "554 5.7.1 "))
    assert resident.verdicts == []


def test_an_authenticated_client_is_exempt_where_it_is_asked_about(
    host: Host, resident: Resident
) -> None:
    """After ``permit_sasl_authenticated`` nobody asks; where that is missing, the attribute says
    it.

    Postfix 3.10 permits by the LOGIN of XCLIENT, older ones only where SASL is on.
    """
    with Session(host.postfix.ports["authenticated"]) as client:
        client.pretend(LOGIN="alice")
        assert client.offer(RECIPIENT) == [OK]
    [line] = resident.verdicts
    assert " reason=exempt " in line
    assert " by=sasl_username " in line


def test_a_verified_name_is_one_for_rules(host: Host, start: Start) -> None:
    command = [sys.executable, "-m", "greycheck", "allow", "name:.example.org"]
    environ = dict(os.environ) | {"GREYCHECK_CONFIG": "/dev/null"} | host.store.environ
    subprocess.run(command, env=environ, cwd=ROOT, check=True, capture_output=True)
    resident = start()
    for names, said in (
        ({"NAME": "mx.example.org", "REVERSE_NAME": "mx.example.org"}, OK),
        ({"NAME": "[UNAVAILABLE]", "REVERSE_NAME": "mx.example.org"}, DEFERRED),
    ):
        with Session(host.postfix.ports["unix"]) as client:
            client.pretend(ADDR="192.0.2.7", **names)
            assert client.offer(RECIPIENT) == [said]
    assert resident.reasons() == ["rule", "new"]


def test_an_ipv6_client_is_one(host: Host, resident: Resident) -> None:
    with Session(host.postfix.ports["unix"]) as client:
        client.pretend(ADDR="IPV6:2001:db8::7")
        assert client.offer(RECIPIENT) == [DEFERRED]
    assert " client=2001:db8::7 " in resident.verdicts[0]


def test_at_other_stages_it_has_nothing_to_say(host: Host, resident: Resident) -> None:
    """Postfix asks at CONNECT, HELO, MAIL, DATA and the end of the message too here."""
    assert host.attempt("always") == [DEFERRED]
    resident.age(300)
    host.deliver("always")
    host.delivered(1)
    assert resident.reasons() == ["new", "retry"]


def test_asked_twice_it_says_the_same(host: Host, resident: Resident) -> None:
    assert host.attempt("twice") == [DEFERRED]
    resident.age(300)
    host.deliver("twice")
    host.delivered(1)
    # A deferral only counts where nothing else rejects, so Postfix asks on.
    assert resident.reasons() == ["new", "early", "retry", "client"]


@pytest.mark.parametrize(
    "sender",
    [
        '"john doe"@example.org',
        "a=b=c@example.org",
        "x" * 60 + "@example.org",
        "a\\b@example.org",
        "",
    ],
)
def test_odd_senders_arrive_whole(host: Host, resident: Resident, sender: str) -> None:
    assert host.attempt(sender=sender) == [DEFERRED]
    resident.age(300)
    assert host.attempt(sender=sender) == [OK]
    assert resident.reasons() == ["new", "retry"]


def test_many_sessions_at_once(host: Host, resident: Resident) -> None:
    with Session(host.postfix.ports["unix"]) as client:
        assert client.offer(RECIPIENT, sender="list@example.org") == [DEFERRED]
    resident.age(300)
    with Session(host.postfix.ports["unix"]) as client:
        assert client.offer(RECIPIENT, sender="list@example.org") == [OK]
    where = f"inet:127.0.0.1:{host.postfix.ports['unix']}"
    command = [
        tool("smtp-source"),
        "-s",
        "8",
        "-m",
        "40",
        "-f",
        "list@example.org",
        "-t",
        RECIPIENT,
        where,
    ]
    subprocess.run(command, check=True, timeout=TIMEOUT)
    host.delivered(40)
    assert resident.reasons() == ["new", "retry"] + ["known"] * 40


def test_swaks_is_deferred_and_then_delivers(host: Host, resident: Resident) -> None:
    where = [
        "--server",
        "127.0.0.1",
        "--port",
        f"{host.postfix.ports['unix']}",
        "--helo",
        "client.example.org",
    ]
    command = [tool("swaks"), *where, "--from", SENDER.decode(), "--to", RECIPIENT]
    environ = {"PATH": os.defpath, "HOME": str(host.place)}
    ran = [subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT)]
    resident.age(300)
    ran.append(
        subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT)
    )
    assert [each.returncode for each in ran] == [24, 0]
    assert DEFERRED in ran[0].stdout
    host.delivered(1)


# --- without one ----------------------------------------------------------------------------------


def test_without_the_resident_mail_goes_on(host: Host, start: Start) -> None:
    """What was deferred before its end is remembered after it."""
    killed = host.resident()
    with host.session("unix") as client:
        assert client.offer(RECIPIENT) == [DEFERRED]
        killed.wait_for(" reason=new ")
        killed.stop(signal.SIGKILL)
        client.rset()
        assert client.offer(RECIPIENT, sender="other@example.org") == [OK]
        assert client.deliver().startswith("250 ")
    host.delivered(1)
    again = start()
    [said] = host.attempt()
    assert said.startswith("450 4.2.0 ")
    assert host.attempt(sender="other@example.org") == [DEFERRED]
    assert again.reasons() == ["early", "new"]
    again.age(300)
    host.deliver()
    host.delivered(1)
    assert again.stop() == 0


def test_without_that_setting_postfix_defers_itself(host: Host, start: Start) -> None:
    resident = start()
    assert host.attempt("strict") == [DEFERRED]
    assert resident.stop() == 0
    assert host.attempt("strict") == [NOT_ANSWERED]


# --- spawned --------------------------------------------------------------------------------------


@pytest.fixture
def spawned(host: Host, empty_store: Path) -> Iterator[Host]:
    """A store of its own, that of the user whom Postfix spawns ``greycheck policy`` as."""
    path = host.spawned.path
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    shutil.chown(path.parent, USER)
    shutil.chown(path, USER)
    host.config.write_text(f"database = {path}\nheader = yes\n")
    yield host
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("name", ["spawn", "logging"])
def test_a_mail_is_deferred_and_then_delivered_by_what_is_spawned(spawned: Host, name: str) -> None:
    assert spawned.attempt(name) == [DEFERRED]
    spawned.spawned.age(312)
    spawned.deliver(name, RECIPIENT, "carol@example.net")
    for message in spawned.delivered(2):
        [header] = message.get_all("X-Greylist", [])
        assert header.startswith("delayed 31")
    assert spawned.spawned.rows("SELECT count(*) FROM client") == [(1,)]


def test_what_is_spawned_logs_where_it_is_told_to(spawned: Host) -> None:
    spawned.spawn_log.write_text("")
    with spawned.session("logging") as client:
        client.offer(RECIPIENT, sender="b@example.org")
        client.rset()
        client.offer(RECIPIENT, sender="c@example.org")
    wait_until(
        lambda: spawned.spawn_log.read_text().count(" reason=new ") == 2,
        "two lines",
        spawned.spawn_log.read_text,
    )


def test_one_is_spawned_for_an_smtpd(spawned: Host) -> None:
    for number in range(10):
        assert spawned.attempt("spawn", sender=f"{number}@example.org") == [DEFERRED]
    assert (
        1
        <= spawned.postfix.processes(r"\S*python\S* .*greycheck policy")
        <= spawned.postfix.processes("smtpd ")
    )
    assert "private/greycheck" not in spawned.postfix.log()
