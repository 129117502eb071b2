"""A sender's domain stands for the networks that it sends from: what a check makes of what the
store knows of them, in every store.

How it comes to be known is in tests/spf and tests/resolve.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from greycheck.check import check
from greycheck.envelope import Envelope, triplet
from greycheck.log import verdict_line
from greycheck.policy import (
    Change,
    Decision,
    authority,
)
from greycheck.settings import Settings, read
from greycheck.simulation.schedules import SCHEDULES, times
from greycheck.store import base, waiting
from greycheck.store.base import Asked
from greycheck.store.schema import tables
from greycheck.unknown import (
    Identity,
    NetworkRow,
)
from tests.support import Database, SQLiteFile, in_every_store
from tests.test_docs import tables as documented
from tests.test_schedules import COLUMNS, FIRST, NOW, settings

DOMAIN = "provider.example"
SENDER = b"alice@provider.example"
RECIPIENT = b"bob@example.net"
NETWORKS = ("40.0.0.0/12", "2001:db8::/40")
YEAR = 365 * 86400
DELAY = 300


def authorise(
    database: Database,
    *networks: str,
    domain: str = DOMAIN,
    source: str = "spf",
    state: str = "found",
    until: int = NOW + YEAR,
) -> None:
    """Lets NETWORKS send for DOMAIN, and its SPF have STATE (empty: nobody asked)."""
    key = waiting.PROVIDERS if source == "provider" else base.domain_key(domain.encode())
    for network in networks:
        first, last = waiting.packed_range(network)
        database.execute(
            insert(tables.authorised).values(
                network_key=key + first,
                last=last,
                source=source,
                name=domain,
                added_at=NOW,
                expires_at=until,
            )
        )
    if state:
        database.execute(
            insert(tables.spf).values(
                domain_key=key,
                name=domain,
                state=state,
                why="",
                per_client=0,
                answered_at=NOW,
                asked_at=NOW,
                failures=0,
                next_at=NOW,
                expires_at=until,
            )
        )


def envelope(
    client: str,
    sender: bytes = SENDER,
    recipient: bytes = RECIPIENT,
    spf_passed: bool = False,
) -> Envelope:
    return Envelope("smtpextfork", client, sender, recipient, spf_passed=spf_passed)


class Checks:
    """Checks with DATABASE under settings GIVEN, at a time after NOW."""

    def __init__(self, database: Database, **given: object) -> None:
        self.store = database.connect(20)
        # What is of the client alone would hide what is of the domain.
        self.settings: Settings = settings(**{"client_passes": 0, **given})

    def decide(self, client: str, after: int, **parts: object) -> Decision:
        asked = envelope(client, **parts)  # type: ignore[arg-type]
        return check(self.store, Decision(asked, self.settings, NOW + after))

    def reason(self, client: str, after: int, **parts: object) -> str:
        return self.decide(client, after, **parts).reason


@in_every_store
def test_a_retry_from_any_of_its_networks_passes_and_then_the_domain_is_known(
    database: Database,
) -> None:
    authorise(database, *NETWORKS)
    checks = Checks(database)
    first = checks.decide("40.1.1.1", 0)
    assert (first.action, first.reason, first.domain) == ("defer", "new", DOMAIN.encode())
    early = checks.decide("40.2.2.2", DELAY - 1)
    assert (early.reason, early.wait) == ("new", 1)
    passed = checks.decide("2001:db8:1::1", DELAY)
    assert (passed.action, passed.reason, passed.step) == ("accept", "retry", "moved")
    assert passed.delayed == DELAY
    assert checks.reason("2001:db8:1::1", DELAY + 1) == "known"
    assert checks.reason("40.9.9.9", DELAY + 1, recipient=b"carol@example.net") == "domain"
    other = checks.decide("40.8.8.8", DELAY + 2, sender=b"dave@provider.example")
    assert (other.action, other.reason) == ("accept", "domain")
    [(name, passes, seen)] = database.rows(
        select(tables.domain.c.name, tables.domain.c.passes, tables.domain.c.first_seen)
    )
    assert (name, passes, seen) == (DOMAIN, 1, NOW + DELAY)


@in_every_store
def test_who_may_not_send_for_the_domain_gains_nothing(database: Database) -> None:
    authorise(database, "40.0.0.0/12")
    checks = Checks(database, pool_networks=0)
    assert checks.reason("40.1.1.1", 0) == "new"
    stranger = checks.decide("50.1.1.1", DELAY)
    assert (stranger.reason, stranger.domain) == ("new", b"")
    assert checks.reason("40.2.1.1", DELAY) == "retry"
    # The domain is known; the stranger still waits, and passes by his own retry alone.
    assert checks.reason("50.2.1.1", DELAY + 1, recipient=b"carol@example.net") == "new"
    assert checks.reason("50.1.1.1", 2 * DELAY) == "retry"
    # Just outside, on both sides.
    for client in ("39.255.255.255", "40.16.0.0", "2001:db7:ffff::1"):
        assert checks.reason(client, DELAY + 2, recipient=b"x@example.net") == "new"


@in_every_store
def test_where_identities_are_switched_off_what_the_store_holds_of_them_is_nothing(
    database: Database,
) -> None:
    authorise(database, *NETWORKS)
    checks = Checks(database, identity="no", pool_networks=0)
    assert checks.reason("40.1.1.1", 0) == "new"
    other = checks.decide("40.2.2.2", DELAY)
    assert (other.reason, other.domain) == ("new", b"")
    held = Identity(source="spf")
    assert authority(held, other.envelope, checks.settings) == ""
    assert authority(held, other.envelope, settings()) == "spf"


@in_every_store
def test_what_a_stranger_tried_first_does_not_count_for_the_domain(database: Database) -> None:
    authorise(database, "40.0.0.0/12")
    checks = Checks(database, pool_networks=0)
    for number in range(5):
        assert checks.reason(f"50.{number}.1.1", 60 * number) == "new"
    assert checks.reason("40.1.1.1", 2 * DELAY) == "new"


@in_every_store
def test_what_was_first_tried_before_the_domain_was_resolved_counts(database: Database) -> None:
    checks = Checks(database, pool_networks=0)
    first = checks.decide("40.1.1.1", 0)
    assert (first.reason, first.domain) == ("new", b"")
    authorise(database, "40.0.0.0/12")
    assert checks.reason("40.2.1.1", DELAY) == "retry"


@in_every_store
@pytest.mark.parametrize(
    ("source", "state", "until", "counts"),
    [
        ("spf", "found", NOW + YEAR, True),
        ("client", "found", NOW + YEAR, True),
        ("refused", "found", NOW + YEAR, False),
        ("pool", "none", NOW + YEAR, True),
        ("pool", "", NOW + YEAR, True),
        # What the domain says of its networks counts more than what was seen.
        ("pool", "found", NOW + YEAR, False),
        ("spf", "found", NOW + DELAY, False),
        # What only a newer program knows.
        ("other", "found", NOW + YEAR, False),
    ],
)
def test_what_authorises(
    database: Database, source: str, state: str, until: int, counts: bool
) -> None:
    authorise(database, "40.1.1.1/32", "40.2.1.1/32", source=source, state=state, until=until)
    checks = Checks(database, pool_networks=0)
    assert checks.reason("40.1.1.1", 0) == "new"
    assert checks.reason("40.2.1.1", DELAY) == ("retry" if counts else "new")


@in_every_store
def test_the_null_sender_and_a_shared_address_have_no_identity(database: Database) -> None:
    authorise(database, "40.0.0.0/12", "10.0.0.0/8")
    authorise(database, "40.0.0.0/12", domain="")
    checks = Checks(database, pool_networks=0, trust_spfresult="yes")
    for sender, clients in ((b"", ("40.1.1.1", "40.2.1.1")), (SENDER, ("10.1.1.1", "10.2.1.1"))):
        assert checks.reason(clients[0], 0, sender=sender, spf_passed=True) == "new"
        assert checks.reason(clients[1], DELAY, sender=sender, spf_passed=True) == "new"
    assert database.rows(select(tables.domain.c.name)) == []


@in_every_store
def test_spfresult_counts_where_it_is_trusted_and_nowhere_else(database: Database) -> None:
    mail = {"spf_passed": True}
    distrusting = Checks(database, pool_networks=0)
    assert distrusting.reason("40.1.1.1", 0, **mail) == "new"
    assert distrusting.reason("50.1.1.1", DELAY, **mail) == "new"
    trusting = Checks(database, pool_networks=0, trust_spfresult="yes")
    told = {**mail, "recipient": b"carol@example.net"}
    assert trusting.decide("40.1.1.1", 0, **told).authorised_by == "SPFRESULT"
    assert trusting.reason("50.1.1.1", 1, recipient=b"carol@example.net") == "new"
    assert trusting.reason("60.1.1.1", DELAY, **told) == "retry"
    assert trusting.reason("70.1.1.1", DELAY + 1, sender=b"dave@provider.example", **mail) == (
        "domain"
    )
    assert trusting.reason("70.1.1.1", DELAY + 1, sender=b"dave@provider.example") == "new"


@in_every_store
def test_domain_passes_as_client_passes(database: Database) -> None:
    authorise(database, *NETWORKS)
    twice = Checks(database, domain_passes=2)
    for number, before in enumerate(("new", "domain")):
        mail = {"recipient": b"%d@example.net" % number}
        assert twice.reason("40.1.1.1", 1000 * number, **mail) == "new"
        assert twice.reason("40.2.1.1", 1000 * number + DELAY, **mail) == "retry"
        mail = {"recipient": b"x%d@example.net" % number}
        assert twice.reason("40.3.1.1", 1000 * number + DELAY + 1, **mail) == before
    never = Checks(database, domain_passes=0)
    assert never.reason("40.4.1.1", 5000, recipient=b"y@example.net") == "new"
    assert never.reason("40.5.1.1", 5000 + DELAY, recipient=b"y@example.net") == "retry"


@in_every_store
def test_a_domain_is_forgotten_after_its_lifetime(database: Database) -> None:
    authorise(database, *NETWORKS)
    checks = Checks(database, lifetime="10d")
    assert checks.reason("40.1.1.1", 0) == "new"
    assert checks.reason("40.2.1.1", DELAY) == "retry"
    used = DELAY + 9 * 86400
    assert checks.reason("40.3.1.1", used, recipient=b"x@example.net") == "domain"
    end = used + 10 * 86400
    assert checks.reason("40.3.1.1", end, recipient=b"y@example.net") == "domain"
    over = end + 10 * 86400 + 1
    assert checks.reason("40.3.1.1", over, recipient=b"z@example.net") == "new"
    assert checks.reason("40.4.1.1", over + DELAY, recipient=b"z@example.net") == "retry"
    assert database.rows(select(tables.domain.c.passes, tables.domain.c.first_seen)) == [
        (1, NOW + over + DELAY)
    ]


@in_every_store
def test_nobody_waits_for_a_use_of_a_domain_to_be_recorded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorise(database, *NETWORKS)
    checks = Checks(database)
    patience: list[tuple[str, bool]] = []
    save = checks.store.save

    def saved(asked: Asked, changes: list[Change], patient: bool) -> bool:
        patience.append((",".join(type(change.new).__name__ for change in changes), patient))
        return save(asked, changes, patient)

    monkeypatch.setattr(checks.store, "save", saved)
    assert checks.reason("40.1.1.1", 0) == "new"
    assert checks.reason("40.2.1.1", DELAY) == "retry"
    assert checks.reason("40.3.1.1", 9999, recipient=b"x@example.net") == "domain"
    assert patience == [
        ("TripletRow", True),
        ("TripletRow,DomainRow", True),
        ("DomainRow", False),
    ]


@in_every_store
def test_observed_identities_change_no_verdict_and_are_told(database: Database) -> None:
    authorise(database, *NETWORKS)
    observing = Checks(database, identity="observe", pool_networks=0)
    assert observing.reason("40.1.1.1", 0) == "new"
    second = observing.decide("40.2.1.1", DELAY)
    assert (second.action, second.reason, second.by_identity) == ("defer", "new", "retry")
    line = verdict_line(second.envelope, second.verdict(), 1).decode()
    assert f" identity={DOMAIN} by_identity=retry hook=" in line
    assert second.wait == DELAY
    # Who passes by himself makes the domain known all the same.
    assert observing.reason("40.1.1.1", DELAY) == "retry"
    third = observing.decide("40.3.1.1", DELAY, recipient=b"x@example.net")
    assert (third.reason, third.by_identity) == ("new", "domain")
    off = Checks(database, identity="no", pool_networks=0)
    fourth = off.decide("40.2.1.1", DELAY + 1)
    assert (fourth.reason, fourth.domain, fourth.by_identity) == ("early", b"", "")


@in_every_store
def test_a_retry_from_its_own_network_makes_the_domain_known_too(database: Database) -> None:
    authorise(database, *NETWORKS)
    checks = Checks(database)
    assert checks.reason("40.1.1.1", 0) == "new"
    assert checks.reason("40.1.1.7", DELAY) == "retry"
    assert checks.reason("40.2.1.1", DELAY, recipient=b"x@example.net") == "domain"


# --- learnt pools ---------------------------------------------------------------------------------


@in_every_store
@pytest.mark.parametrize(
    ("state", "learns"), [("", True), ("none", True), ("wide", True), ("found", False)]
)
def test_the_networks_of_a_pool_are_one_client_for_its_domain_from_then_on(
    database: Database, state: str, learns: bool
) -> None:
    if state:
        authorise(database, state=state)
    checks = Checks(database)
    for number in range(3):
        assert checks.reason(f"40.{number}.1.1", 60 * number) == "new"
    assert checks.reason("40.3.1.1", 600) == "pool"
    found = database.rows(select(tables.authorised.c.source, tables.authorised.c.name))
    assert found == ([("pool", DOMAIN)] * 4 if learns else [])
    # The first mail after that waits: what passed as a pool did not yet count for the domain.
    mail = {"recipient": b"x@example.net"}
    assert checks.reason("40.0.1.9", 700, **mail) == "new"
    expected = "retry" if learns else "new"
    assert checks.reason("40.1.1.9", 700 + DELAY, **mail) == expected
    later = checks.reason("40.2.1.9", 800 + DELAY, recipient=b"y@example.net")
    assert later == ("domain" if learns else "new")
    # Another network is none of them; another domain has not learnt from it.
    assert checks.reason("41.0.1.1", 801 + DELAY, recipient=b"y@example.net") == "new"
    assert checks.reason("40.2.1.9", 802 + DELAY, sender=b"a@other.example") == "new"


@in_every_store
def test_a_pool_prolongs_no_range_that_the_domain_named_itself(database: Database) -> None:
    authorise(database, "40.1.1.0/24")
    authorise(database, "40.2.1.0/24", source="pool", state="")
    of_both = [
        Change(None, NetworkRow(f"40.{number}.1.0/24", NOW), NOW + 2 * YEAR) for number in (1, 2)
    ]
    asked = envelope("40.1.1.1")
    store = Checks(database).store
    assert store.save(Asked(asked, triplet(asked, 24, 64)), of_both, patient=True)
    assert set(
        database.rows(select(tables.authorised.c.source, tables.authorised.c.expires_at))
    ) == {("spf", NOW + YEAR), ("pool", NOW + 2 * YEAR)}


@in_every_store
def test_a_botnet_that_passes_as_a_pool_is_nothing_to_a_domain_with_spf(database: Database) -> None:
    """It forges a domain whose SPF nobody has asked for yet; then that is known."""
    checks = Checks(database)
    for number in range(3):
        assert checks.reason(f"60.{number}.1.1", 60 * number) == "new"
    assert checks.reason("60.3.1.1", 600) == "pool"
    authorise(database, *NETWORKS)
    for number in range(4):
        mail = {"recipient": b"%d@example.net" % number}
        assert checks.reason(f"60.{number}.1.1", 700, **mail) == "new"


@in_every_store
@pytest.mark.parametrize(("passes", "reasons"), [(0, ["new", "retry"]), (1, ["new", "retry"])])
def test_what_was_learnt_of_a_pool_is_prolonged_by_its_use(
    database: Database, passes: int, reasons: list[str]
) -> None:
    checks = Checks(database, lifetime="10d", domain_passes=passes)
    for number in range(3):
        assert checks.reason(f"40.{number}.1.1", 60 * number) == "new"
    assert checks.reason("40.3.1.1", 600) == "pool"
    later, mail = 5 * 86400, {"recipient": b"x@example.net"}
    assert [
        checks.reason("40.0.1.2", later, **mail),
        checks.reason("40.1.1.2", later + DELAY, **mail),
    ] == reasons
    if passes:  # and by that of the domain, once an hour
        assert checks.reason("40.2.1.2", later + 9999, recipient=b"y@example.net") == "domain"
    found = database.rows(
        select(tables.authorised.c.expires_at).order_by(tables.authorised.c.expires_at)
    )
    learnt, used = NOW + 600 + 10 * 86400, NOW + later + DELAY + 10 * 86400
    prolonged = [(used,), (NOW + later + 9999 + 10 * 86400,)] if passes else [(used,)]
    assert found == [(learnt,)] * (4 - len(prolonged)) + prolonged


# --- providers and correspondents -----------------------------------------------------------------


@in_every_store
def test_a_provider_that_is_let_in_passes_at_its_first_attempt(database: Database) -> None:
    authorise(database, "40.0.0.0/12", domain="google.example", source="provider", state="")
    checks = Checks(database)
    passed = checks.decide("40.1.1.1", 0)
    assert (passed.action, passed.reason) == ("accept", "provider")
    assert passed.detail == "provider=google.example"
    assert passed.changes == []
    assert checks.reason("40.1.1.1", 0, sender=b"") == "provider"
    assert checks.reason("40.16.0.0", 0) == "new"
    observing = Checks(database, identity="observe").decide("40.1.1.1", 0)
    assert (observing.reason, observing.by_identity) == ("new", "provider")
    # Where identities are off, what is known of a client is asked for its correspondents alone.
    off = Checks(database, identity="no", learn_outbound="60d")
    assert off.reason("40.1.1.2", 0, recipient=b"x@example.net") == "new"


def written(database: Database, sender: bytes, recipient: bytes, until: int) -> None:
    database.execute(
        insert(tables.correspondent).values(
            pair_key=waiting.correspondent_key(sender, recipient),
            sender=sender.decode(),
            recipient=recipient.decode(),
            first_seen=NOW - 9,
            last_seen=NOW - 9,
            expires_at=until,
        )
    )


@in_every_store
def test_whom_the_recipient_has_written_to_may_answer_him(database: Database) -> None:
    written(database, SENDER, RECIPIENT, NOW + YEAR)
    written(database, SENDER, b"old@example.net", NOW)
    checks = Checks(database, learn_outbound="60d")
    assert checks.reason("50.1.1.1", 0) == "correspondent"
    assert checks.reason("50.1.1.1", 0, sender=b"Alice+tag@Provider.example") == "correspondent"
    assert checks.reason("50.1.1.1", 0, recipient=b"carol@example.net") == "new"
    assert checks.reason("50.1.1.1", 0, recipient=b"old@example.net") == "new"
    assert Checks(database).reason("50.1.1.1", 0) == "new"
    # Where the sender's domain says who may send for it, only these may.
    authorise(database, *NETWORKS)
    checks = Checks(database, learn_outbound="60d", pool_networks=0)
    assert checks.reason("50.1.1.9", 1) == "early"
    assert checks.reason("40.1.1.1", 1) == "correspondent"


# --- schedules ------------------------------------------------------------------------------------

TABLE = [
    (delay, name, at)
    for delay, row in FIRST.items()
    for name, at in zip(COLUMNS, times(row)[1:], strict=True)
]


@pytest.fixture
def here(tmp_path: Path, empty_store: Path) -> Iterator[Database]:
    file = SQLiteFile(tmp_path / "greycheck.db", empty_store)
    file.make()
    yield file
    file.leave()


@pytest.mark.parametrize("resolved", ["before", "after the first attempt"])
@pytest.mark.parametrize(("delay", "name", "at"), TABLE)
def test_every_provider_passes_at_its_first_attempt_after_the_delay(
    here: Database, delay: int, name: str, at: int, resolved: str
) -> None:
    """Each attempt from a network of its own; and the next mail of that sender at once."""
    if resolved == "before":
        authorise(here, *NETWORKS)
    checks = Checks(here, delay=f"{delay}s")
    for number, after in enumerate(SCHEDULES[name]):
        decision = checks.decide(f"40.1.{number}.1", after)
        if decision.action == "accept":
            break
        if number == 0 and resolved != "before":
            authorise(here, *NETWORKS)
    assert (after, decision.reason) == (at, "retry")
    assert checks.reason("40.2.1.1", at + 1, recipient=b"carol@example.net") == "domain"


def test_the_table_of_the_documents_is_what_is_played(tmp_path: Path, empty_store: Path) -> None:
    [rows] = [table for table in documented("docs/schedules.rst") if "attempt" in table[0][1]]
    played = []
    for number, (name, *_said) in enumerate(rows):
        cells = []
        for known in (False, True):
            store = SQLiteFile(tmp_path / f"{number}-{known}.db", empty_store)
            store.make()
            if known:
                authorise(store, *NETWORKS)
            checks = Checks(store)
            cells.append("never")
            for attempt, after in enumerate(SCHEDULES[name], 1):
                if checks.decide(f"40.1.{attempt}.1", after).action == "accept":
                    cells[-1] = f"{after // 60}:{after % 60:02}, attempt {attempt}"
                    break
            store.leave()
        played.append([name, *cells])
    assert [row[0] for row in rows] == list(SCHEDULES)
    assert played == [list(row) for row in rows]


def test_the_settings_of_these_tests_are_the_defaults_but_for_what_they_name() -> None:
    found = read({b"GREYCHECK_CONFIG": b"/dev/null"})
    assert (found.identity, found.domain_passes, found.trust_spfresult) == ("yes", 1, "no")
    assert (found.resolver, found.learn_outbound) == ((), 0)
