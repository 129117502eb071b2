"""Floods and evasion, through what a mail server runs: the child in Python, and the one in C, which
asks a resident.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import ACCEPTED, DEFERRED, Child, Database, both_ways, on_every_database

pytestmark = both_ways

WINDOW = 48 * 3600

# --- what waits for one network -------------------------------------------------------------------


def flood(child: Child, numbers: range, client: str = "192.0.2.1") -> list[tuple[int, str]]:
    """The verdicts on mail from senders of these NUMBERS, each a triplet of its own."""
    return [
        child.smtpextfork(sender=b"s%d@example.org" % number, client=client).verdict
        for number in numbers
    ]


def recorded(child: Child) -> object:
    return child.rows("SELECT count(*) FROM triplet")[0][0]


@on_every_database
def test_what_is_new_in_a_crowded_network_is_deferred_and_not_recorded(child: Child) -> None:
    child.settings["GREYCHECK_NETWORK_LIMIT"] = "3"
    assert flood(child, range(3)) == [(DEFERRED, "new")] * 3
    assert flood(child, range(3, 8)) == [(DEFERRED, "crowded")] * 5
    assert flood(child, range(8, 9), client="192.0.2.200") == [(DEFERRED, "crowded")]
    assert recorded(child) == 3
    assert flood(child, range(1), client="198.51.100.1") == [(DEFERRED, "new")]
    child.age(100)
    assert flood(child, range(3)) == [(DEFERRED, "early")] * 3
    child.age(200)
    assert flood(child, range(3, 4)) == [(DEFERRED, "crowded")]
    assert flood(child, range(1)) == [(ACCEPTED, "retry")]
    assert flood(child, range(2, 9)) == [(ACCEPTED, "client")] * 7
    assert recorded(child) == 4


@on_every_database
def test_a_flood_from_a_network_leaves_others_and_what_passes_makes_room(child: Child) -> None:
    child.settings |= {"GREYCHECK_NETWORK_LIMIT": "2", "GREYCHECK_CLIENT_PASSES": "0"}
    assert (
        flood(child, range(4), "2001:db8:1:1::1")
        == [(DEFERRED, "new")] * 2 + [(DEFERRED, "crowded")] * 2
    )
    assert (
        flood(child, range(4), "2001:db8:1:2::1")
        == [(DEFERRED, "new")] * 2 + [(DEFERRED, "crowded")] * 2
    )
    child.age(300)
    assert flood(child, range(1), "2001:db8:1:1::1") == [(ACCEPTED, "retry")]
    assert flood(child, range(2, 4), "2001:db8:1:1::1") == [
        (DEFERRED, "new"),
        (DEFERRED, "crowded"),
    ]
    assert flood(child, range(2, 3), "2001:db8:1:2::1") == [(DEFERRED, "crowded")]


@on_every_database
def test_what_is_over_makes_no_crowd(child: Child) -> None:
    child.settings["GREYCHECK_NETWORK_LIMIT"] = "2"
    assert flood(child, range(3)) == [(DEFERRED, "new")] * 2 + [(DEFERRED, "crowded")]
    child.age(WINDOW - 60)
    assert flood(child, range(2, 3)) == [(DEFERRED, "crowded")]
    child.age(120)
    assert flood(child, range(2, 5)) == [(DEFERRED, "new")] * 2 + [(DEFERRED, "crowded")]
    assert recorded(child) == 4


@on_every_database
def test_the_log_and_the_client_are_told_of_a_crowd_as_of_any_deferral(child: Child) -> None:
    child.settings["GREYCHECK_NETWORK_LIMIT"] = "1"
    flood(child, range(1))
    ran = child.smtpextfork(sender=b"another@example.org")
    assert len(ran.lines) == 1
    assert "defer reason=crowded client=192.0.2.1 sender=<another@example.org>" in ran.log


@on_every_database
def test_a_network_that_is_crowded_does_not_make_the_table_full(child: Child) -> None:
    """Who fills the table from one network is not accepted for it."""
    child.settings |= {"GREYCHECK_NETWORK_LIMIT": "2", "GREYCHECK_PENDING_LIMIT": "3"}
    assert flood(child, range(6)) == [(DEFERRED, "new")] * 2 + [(DEFERRED, "crowded")] * 4
    assert flood(child, range(1), "198.51.100.1") == [(DEFERRED, "new")]


def test_who_shares_a_crowded_network_waits_unless_the_prefix_keeps_them_apart(
    child: Child,
) -> None:
    child.make_store()
    child.settings["GREYCHECK_NETWORK_LIMIT"] = "2"
    assert flood(child, range(3)) == [(DEFERRED, "new")] * 2 + [(DEFERRED, "crowded")]
    honest = range(9, 10), "192.0.2.200"
    assert flood(child, *honest) == [(DEFERRED, "crowded")]
    child.age(WINDOW - 60)
    assert flood(child, *honest) == [(DEFERRED, "crowded")]
    child.settings["GREYCHECK_IPV4_PREFIX"] = "32"
    assert flood(child, *honest) == [(DEFERRED, "new")]
    child.age(300)
    assert flood(child, *honest) == [(ACCEPTED, "retry")]


def test_a_site_of_many_networks_is_one_where_the_prefix_says_so(child: Child) -> None:
    child.make_store()
    child.settings |= {
        "GREYCHECK_NETWORK_LIMIT": "2",
        "GREYCHECK_PENDING_LIMIT": "4",
        "GREYCHECK_IPV6_PREFIX": "48",
    }

    def hop(site: str) -> list[tuple[int, str]]:
        return [flood(child, range(1), f"{site}:{number:x}::1")[0] for number in range(4)]

    assert hop("2001:db8:1") == [(DEFERRED, "new")] + [(DEFERRED, "early")] * 3
    del child.settings["GREYCHECK_IPV6_PREFIX"]
    assert hop("2001:db8:2") == [(DEFERRED, "new")] * 3 + [(ACCEPTED, "full")]


# --- pools ----------------------------------------------------------------------------------------


@on_every_database
def test_a_sender_of_the_recipients_own_domain_is_no_pool(child: Child) -> None:
    for number in range(6):
        ran = child.smtpextfork(sender=b"ceo@example.net", client=f"40.{number + 1}.0.1")
        assert ran.verdict == (DEFERRED, "new")
        child.age(400)


@on_every_database
def test_attempts_of_a_botnet_within_moments_are_no_pool(child: Child) -> None:
    for number in range(3):
        child.smtpextfork(client=f"40.{number + 1}.0.1")
        child.age(2)
    child.age(400)
    assert child.smtpextfork(client="40.9.0.1").verdict == (DEFERRED, "new")


# --- addresses that many share --------------------------------------------------------------------

PRIVATE = ["172.18.0.1", "10.1.2.3", "192.168.7.7", "127.0.0.1", "169.254.1.1", "100.64.0.9"]
PRIVATE += ["fd00:18::1", "fe80::1", "::1", "::ffff:172.18.0.1", "64:ff9b::a00:1"]


@pytest.mark.parametrize("client", PRIVATE)
def test_a_client_at_an_address_that_many_share_is_never_known(child: Child, client: str) -> None:
    """As in a container, where every client is 172.18.0.1: each triplet waits for itself."""
    child.make_store()
    assert flood(child, range(2), client) == [(DEFERRED, "new")] * 2
    child.age(300)
    assert flood(child, range(3), client) == [(ACCEPTED, "retry")] * 2 + [(DEFERRED, "new")]
    child.age(300)
    assert flood(child, range(4), client) == [(ACCEPTED, "known")] * 2 + [
        (ACCEPTED, "retry"),
        (DEFERRED, "new"),
    ]


@on_every_database
def test_the_log_warns_of_a_shared_address_once_an_hour(child: Child) -> None:
    def warned(number: int) -> list[str]:
        sender = b"s%d@example.org" % number
        child.smtpextfork(sender=sender, client="172.18.0.1")
        child.age(300)
        ran = child.smtpextfork(sender=sender, client="172.18.0.1")
        assert ran.verdict == (ACCEPTED, "retry")
        return [line for line in ran.lines if line.startswith("greycheck: warning ")]

    [line] = warned(0)
    assert re.search(
        r" 172\.18\.0\.1 is an address that many clients may share: it is not made known", line
    )
    assert warned(1) == []
    child.age(2900)
    assert warned(2) == []
    child.age(600)
    assert len(warned(3)) == 1
    assert warned(4) == []
    assert child.smtpextfork(sender=b"new@example.org", client="172.18.0.1").verdict == (
        DEFERRED,
        "new",
    )


@pytest.mark.parametrize(
    "client", ["172.32.0.1", "100.128.0.1", "192.169.0.1", "fec0::1", "2001:db8::1", "fc::1"]
)
def test_what_only_looks_like_one_is_made_known(child: Child, client: str) -> None:
    child.make_store()
    flood(child, range(1), client)
    child.age(300)
    assert flood(child, range(2), client) == [(ACCEPTED, "retry"), (ACCEPTED, "client")]


# --- a clock that was ahead, and a store that takes nothing ---------------------------------------

# What keeps rows of triplets as they are, and lets go again.
HELD = {
    "sqlite": (
        "CREATE TRIGGER held BEFORE UPDATE ON triplet BEGIN SELECT RAISE(ABORT, 'no room'); END",
        "DROP TRIGGER held",
    ),
    "postgresql": (
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no"
        " room'; END $$;"
        " CREATE TRIGGER held BEFORE UPDATE ON triplet FOR EACH ROW EXECUTE FUNCTION hold()",
        "DROP FUNCTION hold CASCADE",
    ),
    "mysql": (
        "CREATE TRIGGER held BEFORE UPDATE ON triplet FOR EACH ROW SIGNAL SQLSTATE '45000' SET"
        " MESSAGE_TEXT = 'no room'",
        "DROP TRIGGER held",
    ),
}


@contextmanager
def held(database: Database) -> Iterator[None]:
    """Nobody can write to a triplet that is there."""
    with database.begin() as connection:
        hold, let_go = HELD[connection.dialect.name]
        connection.exec_driver_sql(hold)
    try:
        yield
    finally:
        with database.begin() as connection:
            connection.exec_driver_sql(let_go)


@on_every_database
def test_a_first_attempt_in_the_future_that_cannot_be_moved_is_an_error(child: Child) -> None:
    """Each attempt would be the first for ever: on_error answers, and no deferral stands."""
    flood(child, range(2))
    child.age(-7200)
    with held(child.store):
        ran = child.smtpextfork(sender=b"s0@example.org")
        assert ran.verdict == (ACCEPTED, "error")
        assert "no room" in ran.log
        ran = child.smtpextfork(sender=b"s1@example.org", GREYCHECK_ON_ERROR="defer")
        assert ran.verdict == (DEFERRED, "error")
    assert flood(child, range(2)) == [(DEFERRED, "early")] * 2
    child.age(100)
    with held(child.store):
        assert flood(child, range(1)) == [(DEFERRED, "early")], "only the count of attempts is lost"
    child.age(200)
    assert flood(child, range(2)) == [(ACCEPTED, "retry"), (ACCEPTED, "client")]
