"""What looks legitimate of what waits, and by which signs, on every database."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, update

from greycheck.digest import collecting
from greycheck.digest.collecting import Digest
from greycheck.digest.names import is_spelt
from greycheck.digest.near import Near
from greycheck.rules import patterns
from greycheck.rules.rule import Rule, make_rule
from greycheck.settings import Settings, read
from greycheck.store.admin import rulebook, waiting
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import domain_key
from greycheck.store.schema.tables import triplet
from tests.digest.stores import DAY, HOUR, Waiting
from tests.support import Database, on_every_database

OLDER = 4 * HOUR
DEFAULTS = read({b"GREYCHECK_CONFIG": b"/dev/null"})


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    database.make()
    engine = open_engine(database.url)
    yield engine
    engine.dispose()


def rule(text: str, action: str = "allow", expires: int | None = None) -> Rule:
    return make_rule(patterns.parse(text), action, expires_at=expires)


def found(engine: Engine, store: Waiting, settings: Settings = DEFAULTS, least: int = 1) -> Digest:
    return collecting.collect(engine, settings, store.now, OLDER, least=least)


def signs(digest: Digest) -> dict[str, set[str]]:
    """The names of signs of each mail, by its sender."""
    return {
        entry.best.row["sender"]: {sign.name for sign in entry.best.signs}
        for entries in digest.entries.values()
        for entry in entries
    }


@on_every_database
def test_each_sign_is_found_where_it_is_and_nowhere_else(
    engine: Engine, database: Database
) -> None:
    store = Waiting(database)
    store.spf(b"own.example", "203.0.113.0/24", "2001:db8::/32")
    store.domain(b"own.example")
    store.domain(b"unused.example", passes=0)
    store.client("192.0.2.9")
    store.client("192.0.2.200", passes=0)
    store.provider("provider.example", "198.51.100.128/25")
    store.correspondent(b"friend@plain.example", b"bob@example.net")
    store.correspondent(b"former@plain.example", b"bob@example.net", left=-1)
    rulebook.put_all(engine, [rule("from:.partner.example")], store.now)
    store.mail(b"pair@plain.example", client="100.0.0.1", ago=9 * DAY, passed=8 * DAY)
    store.mail(b"pair@plain.example", client="100.0.1.1")
    for sender, client in (
        (b"both@own.example", "203.0.113.7"),
        (b"six@own.example", "2001:db8::7"),
        (b"forged@own.example", "100.0.2.1"),
        (b"shared@own.example", "10.0.0.1"),
        (b"client@plain.example", "192.0.2.9"),
        (b"network@unused.example", "192.0.2.10"),
        (b"provider@plain.example", "198.51.100.1"),
        (b"no-provider@plain.example", "198.51.101.1"),
        (b"friend@plain.example", "100.0.3.1"),
        (b"former@plain.example", "100.0.3.2"),
        (b"near@mail.partner.example", "100.0.4.1"),
        (b"sibling@example", "100.0.5.1"),
        (b"nobody@plain.example", "100.0.6.1"),
    ):
        store.mail(sender, client=client)
    store.mail(b"again@plain.example", client="100.0.7.1", early=3, last=5 * HOUR)
    store.mail(b"said@plain.example", client="100.0.8.1", authorised=1)
    store.mail(b"", client="203.0.113.8", early=1)
    assert signs(found(engine, store, least=-9)) == {
        "pair@plain.example": {"pair"},
        "both@own.example": {"authorised", "domain"},
        "six@own.example": {"authorised", "domain"},
        "forged@own.example": {"forged", "domain"},
        "shared@own.example": {"domain"},
        "client@plain.example": {"client"},
        "network@unused.example": {"network"},
        "provider@plain.example": {"provider"},
        "no-provider@plain.example": set(),
        "friend@plain.example": {"correspondent"},
        "former@plain.example": set(),
        "near@mail.partner.example": {"rule"},
        "sibling@example": set(),
        "nobody@plain.example": set(),
        "again@plain.example": {"retried"},
        "said@plain.example": {"authorised"},
        "": {"retried"},
    }
    ranked = [entry.best.row["sender"] for entry in found(engine, store).entries["example.net"]]
    assert ranked[0] == "friend@plain.example"
    assert set(ranked[1:4]) == {"both@own.example", "six@own.example", "pair@plain.example"}


@on_every_database
def test_what_is_settled_or_too_young_is_left_out_and_counted(
    engine: Engine, database: Database
) -> None:
    store = Waiting(database)
    store.domain(b"known.example")
    store.mail(b"young@known.example", ago=3 * HOUR)
    store.mail(b"tried-lately@known.example", ago=9 * HOUR, last=HOUR, early=1)
    store.mail(b"over@known.example", ago=47 * HOUR, left=-1)
    store.mail(b"passed@known.example", ago=9 * HOUR, passed=8 * HOUR)
    store.mail(b"arrived@known.example", client="192.0.2.1")
    store.mail(b"arrived@known.example", client="203.0.113.1", ago=6 * HOUR, passed=5 * HOUR)
    store.mail(b"refused@known.example")
    store.mail(b"deferred@known.example", b"Bob@Example.NET")
    store.mail(b"released@known.example")
    store.mail(b"taken-back@known.example")
    store.mail(b"waits@known.example")
    released = patterns.release("released@known.example", "bob@example.net")
    over = patterns.release("taken-back@known.example", "bob@example.net")
    rulebook.put_all(
        engine,
        [
            rule("from:refused@known.example", "reject"),
            rule("from:deferred@known.example to:bob@example.net", "defer"),
            make_rule(released, "allow", expires_at=store.now + HOUR),
            make_rule(over, "allow", expires_at=store.now),
        ],
        store.now,
    )
    digest = found(engine, store)
    assert set(signs(digest)) == {"taken-back@known.example", "waits@known.example"}
    counts = digest.waiting, digest.arrived, digest.released, digest.refused, digest.whole
    assert counts == (6, 1, 1, 2, True)


def test_the_same_mail_from_several_networks_is_one_and_domains_stand_apart(
    engine: Engine, database: Database
) -> None:
    store = Waiting(database)
    store.domain(b"known.example")
    for number in range(3):
        store.mail(b"a@known.example", client=f"192.0.{number}.1", early=number, last=5 * HOUR)
    store.mail(b"a@known.example", b"carol@other.example")
    store.mail(b"a@known.example", b"postmaster")
    digest = found(engine, store)
    assert list(digest.entries) == ["", "example.net", "other.example"]
    [entry] = digest.entries["example.net"]
    assert (entry.networks, entry.attempts) == (3, 6)
    only = collecting.collect(engine, DEFAULTS, store.now, OLDER, b"other.example")
    assert list(only.entries) == ["other.example"]
    assert collecting.collect(engine, DEFAULTS, store.now, OLDER, b"ther.example").entries == {}


@on_every_database
def test_it_reads_so_many_rows_and_says_that_there_are_more(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Waiting(database)
    store.domain(b"known.example")
    for number in range(20):
        store.mail(b"%d@known.example" % number, ago=(5 + number) * HOUR)
    assert found(engine, store).whole
    rows = waiting.rows(engine, DEFAULTS, store.now, OLDER, most=5)
    assert [row["sender"] for row in rows] == [f"{number}@known.example" for number in range(5)]
    monkeypatch.setattr(waiting, "READ", 19)
    assert not found(engine, store).whole
    # The best are kept, and batches change nothing.
    monkeypatch.setattr(collecting, "KEPT", 3)
    monkeypatch.setattr(collecting, "BATCH", 2)
    monkeypatch.setattr(waiting, "KEYS", 2)
    monkeypatch.setattr(waiting, "RANGES", 2)
    database.execute(
        update(triplet).where(triplet.c.sender == "17@known.example").values(early_attempts=1)
    )
    monkeypatch.setattr(waiting, "READ", 100)
    digest = found(engine, store)
    assert not digest.whole
    assert found(engine, store, least=9).whole
    assert list(signs(digest)) == [
        "17@known.example",
        "0@known.example",
        "1@known.example",
    ]


def test_the_settings_that_make_nothing_known_take_their_signs_away(
    engine: Engine, database: Database
) -> None:
    store = Waiting(database)
    store.domain(b"known.example")
    store.client("192.0.2.9")
    store.mail(b"a@known.example", client="192.0.2.9")
    store.mail(b"b@known.example", client="192.0.2.10")
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null"})
    settings.client_passes = settings.domain_passes = 0
    assert found(engine, store, settings).entries == {}


def test_a_sender_that_was_cut_is_known_by_its_origin(engine: Engine, database: Database) -> None:
    store = Waiting(database)
    domain = b"x" * 400 + b".example"
    store.domain(domain)
    store.mail(b"a@" + domain)
    assert list(signs(found(engine, store)).values()) == [{"domain"}]


def test_a_pool_that_was_seen_is_a_sign_and_a_range_that_is_over_or_refused_none(
    engine: Engine, database: Database
) -> None:
    store = Waiting(database)
    for name, source, left in ((b"pool", "pool", DAY), (b"over", "spf", 0), (b"no", "refused", 1)):
        store.domain(name + b".example")
        store.range(domain_key(name + b".example"), "192.0.2.0/24", source, "", left)
        store.mail(b"a@" + name + b".example", client="192.0.2.5")
    names = signs(found(engine, store))
    assert names == {
        "a@pool.example": {"domain", "authorised"},
        "a@over.example": {"domain"},
        "a@no.example": {"domain"},
    }


# --- rules that are near --------------------------------------------------------------------------

NEAR = [
    ("192.0.2.128/25", True),
    ("192.0.2.7", True),
    ("192.0.0.0/16", False),
    ("198.51.100.7", False),
    ("from:news.partner.example", True),
    ("from:ann@news.partner.example", True),
    ("from:.partner.example", True),
    ("from:deep.below.news.partner.example", True),
    ("from:other.partner.example", False),
    ("from:.example", False),
    ("from:<>", False),
    ("from:ann@", False),
    ("to:bob@example.net", False),
    ("from:partner.example to:bob@example.net", True),
    ("from:partner.example to:.net", True),
    ("from:partner.example to:carol@example.net", False),
    ("192.0.2.7 to:example.net", True),
    ("192.0.2.7 to:example.com", False),
]


@pytest.mark.parametrize(("pattern", "is_near"), NEAR)
def test_which_rule_is_near(pattern: str, is_near: bool) -> None:
    mail = ("192.0.2.0/24", b"news.partner.example", b"bob@example.net")
    near = Near([rule(pattern)], DEFAULTS, 1)
    assert near.allowing(*mail) == (patterns.parse(pattern).text if is_near else "")
    for other in (rule(pattern, "reject"), rule(pattern, expires=1)):
        assert Near([other], DEFAULTS, 1).allowing(*mail) == ""


def test_of_many_pairs_of_a_domain_the_first_of_this_recipient_is_told() -> None:
    others = [f"from:partner.example to:u{number}@example.net" for number in range(500)]
    pairs = ["from:ann@partner.example to:bob@example.net", "from:partner.example to:.net"]
    near = Near([rule(text) for text in others + pairs], DEFAULTS, 1)
    mail = ("192.0.2.0/24", b"partner.example", b"bob@example.net")
    assert near.allowing(*mail) == patterns.parse(pairs[0]).text
    near = Near([rule(text) for text in [pairs[1], *others, pairs[0]]], DEFAULTS, 1)
    assert near.allowing(*mail) == patterns.parse(pairs[1]).text


def test_a_rule_that_matches_by_now_lets_it_in(engine: Engine, database: Database) -> None:
    store = Waiting(database)
    store.mail()
    rulebook.put_all(engine, [rule("192.0.0.0/16")], store.now)
    [entry] = found(engine, store).entries["example.net"]
    assert [sign.words for sign in entry.best.signs] == [
        "since then a rule allows it: 192.0.0.0/16"
    ]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (b"host-192-0-2-7.dsl.example", True),
        (b"7.2.0.192.pool.example", True),
        (b"192.000.002.007.example", True),
        (b"mail7.example", False),
        (b"mx2-192.example.org", False),
        ("192-0-²-7.example".encode(), False),
        ("١٩٢-0-2-7.example".encode(), False),
    ],
)
def test_a_name_that_spells_the_address_is_nobodys(name: bytes, is_one: bool) -> None:
    assert is_spelt(name, "192.0.2.7") is is_one
