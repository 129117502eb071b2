"""The numbers of ``greycheck status``."""

import pytest
from sqlalchemy import Engine

from greycheck.envelope import OF_MESSAGE
from greycheck.log import show
from greycheck.rules import patterns
from greycheck.settings import Settings, read
from greycheck.store.admin import rulebook
from greycheck.store.admin import summary as module
from greycheck.store.admin.summary import Summary, summary
from tests import databases
from tests.store.admin.test_queries import Rows

NOW = 1_800_000_000
DAY = 86400


def settings(**values: str) -> Settings:
    given = {f"GREYCHECK_{name}".encode(): value.encode() for name, value in values.items()}
    return read({b"GREYCHECK_CONFIG": b"/dev/null", **given})


def fill(engine: Engine) -> None:
    rows = Rows(engine)
    rows.triplet(first=NOW - 60, early=2, last=NOW - 30)
    rows.triplet(first=NOW - 600, sender=b"c@example.org", expires=NOW + 7)
    rows.triplet(first=NOW - 700, sender=b"", network="2001:db8::/64", expires=NOW + 8)
    rows.triplet(first=NOW - 3 * DAY, expires=NOW - DAY)  # over
    rows.triplet(first=NOW - 900, passed=NOW - 500, last=NOW - 400, expires=NOW + 35 * DAY)
    rows.triplet(
        first=NOW - 9 * DAY, passed=NOW - 9 * DAY, last=NOW - 5 * DAY, expires=NOW + 30 * DAY
    )
    rows.triplet(
        first=NOW - 90 * DAY, passed=NOW - 90 * DAY, last=NOW - 80 * DAY, expires=NOW - 44 * DAY
    )  # over
    mark = show(OF_MESSAGE) + "192.0.2.1"
    databases.fill(
        engine, "triplet", [(b"m" * 16, "n", "a@b", mark, NOW, NOW, 0, 1, NOW, NOW + 600)]
    )
    rows.client("192.0.2.1", first=NOW - 95 * DAY, last=NOW - 10)
    rows.client("192.0.2.2", strikes=7, struck=NOW + 60)
    rows.client("192.0.2.3", last=NOW - 40 * DAY)
    fill_domains(engine)
    rulebook.put(engine, patterns.parse("192.0.2.9"), "allow", None, "", None, NOW)
    rulebook.put(engine, patterns.parse("192.0.2.8"), "allow", None, "", NOW + 5, NOW)


def fill_domains(engine: Engine) -> None:
    """One domain that is known, and one that was; SPF of four; networks of five sources."""
    for name, last in (("a", NOW), ("b", NOW - 40 * DAY)):
        databases.fill(engine, "domain", [(name.encode() * 16, name, 1, NOW, last, NOW + DAY)])
    for name, state, failures, expires in (
        ("a", "found", 0, NOW + DAY),
        ("b", "found", 2, NOW + DAY),
        ("c", "found", 0, NOW - DAY),
        ("d", "none", 0, NOW + DAY),
    ):
        row = (name.encode() * 16, name, state, "", 0, NOW, NOW, failures, NOW, expires)
        databases.fill(engine, "spf", [row])
    for number, source in enumerate(("spf", "client", "refused", "pool", "provider", "spf")):
        expires = NOW - DAY if number == 5 else NOW + DAY
        network = (bytes([number]) * 32, b"\xff" * 16, source, "a", NOW, expires)
        databases.fill(engine, "authorised", [network])
    databases.fill(engine, "provider", [(b"p" * 16, "p", "", "", NOW, NOW, NOW, "", None)])
    databases.fill(engine, "correspondent", [(b"c" * 16, "a@b", "c@d", NOW, NOW, NOW + DAY)])
    databases.fill(engine, "correspondent", [(b"d" * 16, "a@b", "c@d", NOW, NOW, NOW - DAY)])


def test_rows_that_count_are_counted(engine: Engine) -> None:
    fill(engine)
    found = summary(engine, settings(STRIKES="5"), NOW)
    assert found == Summary(
        waiting=3,
        due=2,
        passed=2,
        known=2,
        refused=1,
        rules=2,
        domains=1,
        resolved=2,
        failing=1,
        ranges=2,
        providers=1,
        correspondents=1,
        since=NOW - 95 * DAY,
        last=NOW,
        attempts=6,
        attempted=4,
        arrived=1,
        senders=[("example.org", 2), ("<>", 1)],
        networks=[("192.0.2.0/24", 2), ("2001:db8::/64", 1)],
    )
    off = summary(engine, settings(CLIENT_PASSES="0", DOMAIN_PASSES="0"), NOW + 6)
    assert (off.known, off.refused, off.rules, off.domains) == (0, 0, 1, 0)


def test_an_empty_store_has_nothing(engine: Engine) -> None:
    assert summary(engine, settings(), NOW) == Summary()


def test_no_more_rows_are_looked_at_than_it_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(engine)
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(module, "NEWEST", 1)
    found = summary(engine, settings(), NOW)
    assert not found.whole
    assert found.waiting + found.passed <= 2
    assert sum(number for _, number in found.networks) == 1
