"""Exim asks the resident by ``readsocket``: the lines of its page in docs/, over real SMTP."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resident.resident import DEFAULT, Resident, operate
from tests.smtp import pages
from tests.smtp.conftest import Start
from tests.smtp.exim import Exim
from tests.smtp.postfix import RECIPIENT, RELAY
from tests.support import SENDER, SQLiteFile

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the users of Exim")

OK = "250 Accepted"
DEFERRED = "451 4.2.0 greylisted, please try again later"
REJECTED = "550 5.7.1 refused by local policy"


class Host:
    """Exim, and where its residents listen: all by the lines of that page, with a path of their
    own.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = SQLiteFile(place / "store" / "greycheck.db")
        self.store.path.parent.mkdir()
        asks = pages.lines("exim", "readsocket").replace("/run/greycheck/socket", f"{place}/socket")
        # A loopback address never becomes known: it is told as the address of that number in
        # 192.0.2.0/24.
        asks = asks.replace(
            "$sender_host_address", "${sg{$sender_host_address}{^127.0.0.}{192.0.2.}}"
        )
        self.exim = Exim(place, asks, pages.lines("exim", "acl_m_instance ="))
        self.session = self.exim.session
        self.delivered = self.exim.delivered

    def resident(self, **settings: str) -> Resident:
        """A resident that listens, with SETTINGS. Exim's own group is not there: it is nobody's."""
        return Resident(
            self.place, {"socket_owner": ":nogroup", "defer_text": DEFAULT} | settings, self.store
        ).wait()

    def attempt(self, *recipients: str, sender: str = SENDER.decode()) -> list[str]:
        """What a client is told who offers RECIPIENTS, or the usual one, and leaves."""
        with self.session() as client:
            return client.offer(*(recipients or [RECIPIENT]), sender=sender)

    def deliver(self, *recipients: str) -> None:
        """Delivers a message to RECIPIENTS, or the usual one."""
        with self.session() as client:
            assert client.offer(*(recipients or [RECIPIENT])) == [OK] * max(1, len(recipients))
            assert client.deliver().startswith("250 OK id=")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """One Exim for all."""
    with tempfile.TemporaryDirectory(prefix="greycheck-exim-") as name:
        place = Path(name)
        place.chmod(0o755)
        found = Host(place)
        with found.exim:
            yield found
        assert found.exim.log("panic") == ""


def test_a_mail_is_deferred_and_then_delivered(host: Host, resident: Resident) -> None:
    assert host.attempt() == [DEFERRED]
    resident.age(300)
    host.deliver()
    [message] = host.delivered(1)
    assert "X-Greylist" not in message
    assert resident.reasons() == ["new", "retry"]
    assert resident.warnings() == []


def test_the_log_names_what_exim_told(host: Host, resident: Resident) -> None:
    with host.session("127.0.0.5") as client:
        client.offer("Bob+x@Example.net", sender="List-1@example.org")
    [line] = resident.verdicts
    assert (
        " client=192.0.2.5 sender=<List-1@example.org> recipient=<bob+x@example.net> wait=300"
        " hook=policy " in line
    )


def test_a_message_to_several_has_one_header(host: Host, start: Start) -> None:
    resident = start(header="yes")
    several = [RECIPIENT, "carol@example.net", "dave@example.net"]
    assert host.attempt(*several) == [DEFERRED] * 3
    resident.age(312)
    host.deliver(*several)
    host.deliver("erin@example.net")
    headers = [message.get_all("X-Greylist", []) for message in host.delivered(4)]
    assert [len(each) for each in headers] == [1] * 4
    delayed = [each for each in headers if each[0].startswith("delayed 31")]
    assert len(delayed) == 3
    assert all(f" by greycheck at {socket.gethostname()}; " in each[0] for each in headers)
    assert resident.reasons() == ["new"] * 3 + ["retry"] + ["client"] * 3


def test_later_recipients_pass_with_the_first(host: Host, start: Start) -> None:
    resident = start(client_passes="0")
    host.attempt()
    resident.age(300)
    with host.session() as client:
        assert client.offer(RECIPIENT, "carol@example.net") == [OK, OK]
        client.rset()
        assert client.offer("dave@example.net") == [DEFERRED]
    assert resident.reasons() == ["new", "retry", "message", "new"]


def test_what_a_rule_rejects_is_rejected(host: Host, start: Start) -> None:
    operate(host.store, "reject", "from:example.org")
    resident = start()
    assert host.attempt() == [REJECTED]
    assert host.attempt(sender="alice@example.com") == [DEFERRED]
    assert resident.reasons() == ["rule", "new"]


def test_who_may_relay_is_not_asked_about(host: Host, resident: Resident) -> None:
    with host.session(RELAY) as client:
        assert client.offer(RECIPIENT) == [OK]
    assert resident.verdicts == []


@pytest.mark.parametrize(
    "sender", ['"john doe"@example.org', "a=b=c@example.org", "${run{id}}@example.org", ""]
)
def test_odd_senders_arrive_whole(host: Host, resident: Resident, sender: str) -> None:
    assert host.attempt(sender=sender) == [DEFERRED]
    resident.age(300)
    assert host.attempt(sender=sender) == [OK]
    assert resident.reasons() == ["new", "retry"]


def test_without_the_resident_mail_goes_on(host: Host, start: Start) -> None:
    """What was deferred before its end is remembered after it."""
    killed = host.resident()
    assert host.attempt() == [DEFERRED]
    killed.stop(signal.SIGKILL)
    assert host.attempt(sender="other@example.org") == [OK]
    again = start()
    again.age(300)
    assert host.attempt() == [OK]
    assert host.attempt(sender="other@example.org") == [OK]
    assert again.reasons() == ["retry", "client"]
