"""Mail, DNS and a run of ``greycheck resolve`` between two attempts, with real servers."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.dns_servers import Nsd
from tests.resolve.parts import ZONES, ran, resolved
from tests.support import ACCEPTED, DEFERRED, Child, on_every_database

SENDER = b"ann@pool.example"
OTHER = b"ben@pool.example"

# Two of the domain's networks, and one that is not.
FIRST, SECOND, STRANGER = "192.0.2.1", "198.51.100.9", "203.0.113.200"


@pytest.fixture(scope="module")
def nsd() -> Iterator[Nsd]:
    with Nsd(ZONES) as found:
        yield found


@on_every_database
def test_a_retry_from_another_network_of_the_domain_passes_and_then_all_mail_of_it(
    nsd: Nsd, child: Child
) -> None:
    assert child.smtpextfork(SENDER, client=FIRST).verdict == (DEFERRED, "new")
    report = resolved(child.store, nsd.address)
    assert (report.asked, report.answered, report.failed) == (1, 1, 0)
    assert child.smtpextfork(SENDER, client=SECOND).verdict == (DEFERRED, "new")
    child.age(301)
    ran = child.smtpextfork(SENDER, client="2001:db8:7::1")
    assert ran.verdict == (ACCEPTED, "retry")
    assert "identity=pool.example" in ran.log
    assert child.smtpextfork(OTHER, client="198.51.100.77").verdict == (ACCEPTED, "domain")
    assert child.smtpextfork(OTHER, client=STRANGER).verdict == (DEFERRED, "new")


@on_every_database
def test_what_was_first_tried_before_the_domain_was_asked_counts(nsd: Nsd, child: Child) -> None:
    assert child.smtpextfork(SENDER, client=FIRST).verdict == (DEFERRED, "new")
    child.age(301)
    assert child.smtpextfork(SENDER, client=SECOND).verdict == (DEFERRED, "new")
    resolved(child.store, nsd.address)
    assert child.smtpextfork(SENDER, client=SECOND).verdict == (ACCEPTED, "retry")


@on_every_database
def test_while_dns_fails_the_domain_keeps_its_identity_for_a_week(child: Child) -> None:
    day = 86400
    with Nsd(ZONES) as own:
        child.smtpextfork(SENDER, client=FIRST)
        assert resolved(child.store, own.address).answered == 1
        child.age(301)
        assert child.smtpextfork(SENDER, client=SECOND).verdict == (ACCEPTED, "retry")
        own.replace({"other.example.": ""})
        for days in (1, 2, 3):
            child.age(2 * day)
            report = resolved(child.store, own.address, interval=day)
            assert (report.answered, report.failed) == (0, 1)
            ran = child.smtpextfork(b"ann%d@pool.example" % days, client="192.0.2.200")
            assert ran.verdict == (ACCEPTED, "domain")
        child.age(2 * day)
        assert resolved(child.store, own.address, interval=day).failed == 1
        assert child.smtpextfork(OTHER, client="192.0.2.201").verdict == (DEFERRED, "new")
        own.replace(ZONES)
        assert resolved(child.store, own.address, day, day).answered == 1
        assert child.smtpextfork(OTHER, client="198.51.100.7").verdict == (ACCEPTED, "domain")


@pytest.mark.parametrize("domain", ["all.example", "none.example", "wrong.example"])
def test_a_domain_without_an_identity_gains_nothing(nsd: Nsd, child: Child, domain: str) -> None:
    sender = b"ann@" + domain.encode()
    assert child.smtpextfork(sender, client=FIRST).verdict == (DEFERRED, "new")
    assert resolved(child.store, nsd.address).answered == 1
    [(state, failures)] = child.rows("SELECT state, failures FROM spf")
    assert (state, failures) == ({"all": "wide", "none": "none", "wrong": "error"}[domain[:-8]], 0)
    assert child.rows("SELECT count(*) FROM authorised") == [(0,)]
    child.age(301)
    assert child.smtpextfork(sender, client=SECOND).verdict == (DEFERRED, "new")


def test_a_botnet_gains_nothing(nsd: Nsd, child: Child) -> None:
    """Its members are in none of the domain's networks, whatever the sender is."""
    clients = [f"203.0.{number}.5" for number in range(1, 20)]
    for address in clients:
        assert child.smtpextfork(SENDER, client=address).verdict[0] == DEFERRED
    resolved(child.store, nsd.address)
    child.age(301)
    for address in ("203.0.100.5", "203.0.101.5"):
        assert child.smtpextfork(SENDER, client=address).verdict == (DEFERRED, "new")


@on_every_database
def test_what_depends_on_the_client_is_asked_for_those_that_wait(nsd: Nsd, child: Child) -> None:
    sender = b"ann@each.example"
    for address in ("192.0.2.7", "198.51.100.8"):
        assert child.smtpextfork(sender, client=address).verdict[0] == DEFERRED
    report = resolved(child.store, nsd.address)
    assert (report.answered, report.clients) == (1, 2)
    rows = child.rows("SELECT source FROM authorised ORDER BY network_key")
    assert rows == [("client",), ("refused",), ("spf",)]
    # Another one that waits is evaluated without the domain being asked again; these two are not.
    assert child.smtpextfork(sender, client="203.0.114.1").verdict[0] == DEFERRED
    report = resolved(child.store, nsd.address)
    assert (report.asked, report.clients) == (0, 1)
    report = resolved(child.store, nsd.address)
    assert (report.asked, report.clients) == (0, 0)
    child.age(301)
    ran = child.smtpextfork(sender, client="203.0.113.1")
    assert (ran.verdict, "identity=each.example" in ran.log) == ((ACCEPTED, "retry"), True)
    assert child.smtpextfork(b"eve@each.example", client="192.0.2.7").reason == "domain"
    assert child.smtpextfork(b"eve@each.example", client="198.51.100.8").reason == "new"


def test_mail_of_before_the_upgrade_has_its_turn_within_a_day(nsd: Nsd, child: Child) -> None:
    """Its rows do not say where it came from."""
    child.smtpextfork(SENDER)
    child.age(7 * 3600)
    with child.store.begin() as connection:
        connection.exec_driver_sql("UPDATE triplet SET origin = NULL")
        key = connection.exec_driver_sql("SELECT triplet_key FROM triplet").scalar_one()
    turn = (int.from_bytes(key[:8], "big") * 86400) >> 64
    until = (turn - int(time.time())) % 86400
    assert resolved(child.store, nsd.address, until - 30).asked == 0
    assert resolved(child.store, nsd.address, until + 30).asked == 1


def test_the_command_says_what_a_domain_says(nsd: Nsd, child: Child) -> None:
    child.make_store()
    code, said, complained = ran(child.store, nsd.address, "Pool.Example.", "all.example")
    assert (code, complained) == (0, "")
    assert said.splitlines()[0].startswith("pool.example: found, 3 networks; answered ")
    assert said.splitlines()[1:4] == [
        "    192.0.2.0/24",
        "    198.51.100.0/24",
        "    2001:db8::/32",
    ]
    assert said.splitlines()[4].startswith("all.example: wide, 0 networks; answered ")
    assert ran(child.store, nsd.address) == (0, "", "")
    code, said, complained = ran(child.store, nsd.address, "-v")
    assert (code, complained) == (0, "")
    assert said.startswith("domains: 0 asked")


def test_a_name_server_that_does_not_answer_is_told(child: Child) -> None:
    child.make_store()
    code, said, complained = ran(child.store, "127.0.0.1:9", "pool.example")
    assert (code, complained) == (1, "")
    assert said.startswith("pool.example: failed, 0 networks; 1 questions in a row")
    assert "TXT pool.example: Connection refused" in said


def test_what_a_domain_says_is_shown_escaped(nsd: Nsd, child: Child) -> None:
    child.make_store()
    code, said, complained = ran(child.store, nsd.address, "evil.example")
    assert (code, complained) == (0, "")
    assert said.startswith("evil.example: error, 0 networks; answered ")
    assert "\\x1b[31m\\x0a" in said
    assert all(char.isprintable() for char in said.rstrip("\n"))


def test_it_speaks_json(nsd: Nsd, child: Child) -> None:
    child.make_store()
    _code, said, _complained = ran(child.store, nsd.address, "--json", "pool.example")
    [one] = json.loads(said)
    assert (one["domain"], one["state"], len(one["networks"])) == ("pool.example", "found", 3)
    _code, said, _complained = ran(child.store, nsd.address, "--json")
    assert json.loads(said) == {
        "asked": 0,
        "answered": 0,
        "failed": 0,
        "clients": 0,
        "left": 0,
        "elsewhere": 0,
    }


def test_before_the_first_mail_there_is_nothing_to_ask(child: Child) -> None:
    assert ran(child.store, "127.0.0.1:9") == (0, "", "")
    code, _said, complained = ran(child.store, "127.0.0.1:9", "pool.example")
    assert (code, "there is no store yet" in complained) == (1, True)


def test_no_domain(child: Child) -> None:
    child.make_store()
    code, _said, complained = ran(child.store, "127.0.0.1:9", "nowhere")
    assert (code, "nowhere: not a domain that DNS can have" in complained) == (2, True)
