"""Senders' domains in lists, alone, and forgotten, on every database."""

from collections.abc import Sequence

import pytest
from sqlalchemy import Engine, select

from greycheck.store.admin import domains
from greycheck.store.admin.domains import named
from greycheck.store.admin.queries import Filter, read_network
from greycheck.store.base import domain_key
from greycheck.store.schema.tables import authorised, domain
from greycheck.store.waiting import PROVIDERS, packed_range
from tests import databases

NOW = 1_800_000_000
DAY = 86400


def key(name: str) -> bytes:
    return domain_key(name.encode())


class Names:
    """Fills the tables of ENGINE."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def passed(self, name: str, passes: int = 1, last: int = NOW, first: int = NOW - DAY) -> None:
        row = (key(name), name, passes, first, last, NOW + DAY)
        databases.fill(self.engine, "domain", [row])

    def told(self, name: str, state: str = "found") -> None:
        row = (key(name), name, state, "", 0, NOW - 60, NOW - 60, 0, NOW + 60, NOW + DAY)
        databases.fill(self.engine, "spf", [row])

    def network(
        self, name: str, network: str, source: str = "pool", to: str = "", left: int = DAY
    ) -> None:
        first, last = packed_range(network)
        whose = PROVIDERS if source == "provider" else key(name)
        if to:
            last = packed_range(to)[1]
        row = (whose + first, last, source, name, NOW - 60, NOW + left)
        databases.fill(self.engine, "authorised", [row])


@pytest.fixture
def names(engine: Engine) -> Names:
    return Names(engine)


def listed(engine: Engine, wanted: Filter | None = None, **more: object) -> list[str]:
    found = domains.rows(engine, wanted or Filter(), NOW, **more)  # type: ignore[arg-type]
    names = [str(row["name"]) for row in found]
    if not more:
        assert domains.count(engine, wanted or Filter(), NOW) == len(names)
    return names


def ranges(engine: Engine, name: str) -> list[str]:
    return [domains.range_text(row) for row in domains.networks_of(engine, named(name.encode())[0])]


def test_a_domain_is_listed_by_what_passed_what_dns_said_or_what_was_learnt(
    engine: Engine, names: Names
) -> None:
    names.passed("both.example", 3)
    names.told("both.example")
    names.passed("passed.example", last=NOW - 5)
    names.told("told.example", "none")
    names.network("pool.example", "192.0.2.0/24")
    names.network("both.example", "192.0.2.0/24", "spf")
    names.network("both.example", "198.51.100.1/32", "client")
    names.network("both.example", "198.51.100.2/32", "refused")
    names.network("both.example", "203.0.113.0/24", left=0)  # over
    names.network("a provider", "203.0.113.0/24", "provider")
    names.network("nobody.example", "203.0.113.0/24", left=0)  # over
    found = {str(row["name"]): row for row in domains.rows(engine, Filter(), NOW)}
    assert list(found) == ["both.example", "passed.example", "pool.example", "told.example"]
    assert domains.count(engine, Filter(), NOW) == 4
    numbers = [(row["passes"], row["networks"], row["pool_networks"]) for row in found.values()]
    assert numbers == [(3, 2, 0), (1, 0, 0), (None, 1, 1), (None, 0, 0)]
    assert [row["state"] for row in found.values()] == ["found", None, None, "none"]


def test_they_are_ordered_and_limited(engine: Engine, names: Names) -> None:
    names.passed("a.example", 1, last=NOW - 10, first=NOW - 50)
    names.passed("b.example", 9, last=NOW - 20, first=NOW - 40)
    names.told("c.example")
    assert listed(engine, sort="last") == ["a.example", "b.example", "c.example"]
    assert listed(engine, sort="first") == ["b.example", "a.example", "c.example"]
    assert listed(engine, sort="early", limit=1) == ["b.example"]
    assert listed(engine, sort="last", reverse=True) == ["c.example", "b.example", "a.example"]
    assert listed(engine, sort="expires")[-1] == "c.example"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(domain=b"Example.ORG."), ["example.org", "mail.example.org"]),
        (Filter(domain=b"@mail.example.org"), ["mail.example.org"]),
        (Filter(domain=b"ample.org"), []),
        (Filter(domain=b"exa_ple.org"), []),
        (Filter(network=read_network("192.0.2.7")), ["example.org"]),
        (Filter(network=read_network("192.0.0.0/8")), ["example.org", "other.example"]),
        (Filter(network=read_network("0.0.0.0/0")), ["example.org", "other.example"]),
        (Filter(network=read_network("192.0.4.6")), []),
        (Filter(network=read_network("2001:db8:1::/48")), ["mail.example.org"]),
        (Filter(network=read_network("2001:db9::/32")), []),
        (Filter(since=NOW - 100), ["example.org"]),
        (Filter(until=NOW - 100), ["mail.example.org"]),
    ],
)
def test_they_are_chosen(
    engine: Engine, names: Names, wanted: Filter, expected: Sequence[str]
) -> None:
    names.passed("example.org", first=NOW - 50)
    names.passed("mail.example.org", first=NOW - 500)
    names.told("other.example")
    names.network("example.org", "192.0.2.0/24")
    names.network("mail.example.org", "2001:db8::/32", "spf")
    names.network("other.example", "192.0.4.1/32", "spf", to="192.0.4.5/32")
    names.network("other.example", "192.0.4.6/32", "refused")
    assert sorted(listed(engine, wanted)) == expected


def test_ranges_are_written_as_short_as_they_are(engine: Engine, names: Names) -> None:
    names.network("x", "0.0.0.0/8")
    names.network("x", "192.0.2.1/32")
    names.network("x", "192.0.2.4/32", to="192.0.2.6/32")
    names.network("x", "192.0.2.8/30", to="192.0.2.12/30")
    names.network("x", "2001:db8::/48")
    names.network("x", "2001:db9::1/128", to="2001:db9::3/128")
    names.network("xx", "203.0.113.0/24")
    assert ranges(engine, "x") == [
        "0.0.0.0/8",
        "192.0.2.1",
        "192.0.2.4 - 192.0.2.6",
        "192.0.2.8/29",
        "2001:db8::/48",
        "2001:db9::1 - 2001:db9::3",
    ]


def left(engine: Engine) -> tuple[list[str], list[str]]:
    with engine.connect() as connection:
        names = connection.execute(select(domain.c.name).order_by(domain.c.name)).scalars().all()
        ranges = connection.execute(select(authorised.c.name, authorised.c.source)).all()
    return list(names), sorted(f"{name} {source}" for name, source in ranges)


def fill(names: Names) -> None:
    for number in range(4):
        names.passed(f"{number}.example")
        names.told(f"{number}.example")
        names.network(f"{number}.example", "192.0.2.0/24", "spf")
        names.network(f"{number}.example", "198.51.100.0/24", "pool")
    names.network("learnt.example", "192.0.2.0/24")
    names.told("told.example")
    names.network("told.example", "192.0.2.0/24", "spf")


def test_one_is_forgotten_with_its_pool_and_dns_is_not(engine: Engine, names: Names) -> None:
    fill(names)
    assert domains.has(engine, key("0.example"), is_pool=True)
    assert domains.forget(engine, [key("0.example")], is_pool=False) == 1
    assert left(engine)[0] == ["1.example", "2.example", "3.example"]
    assert [each for each in left(engine)[1] if each.startswith("0")] == ["0.example spf"]
    assert domains.one(engine, named(b"0.example")[0])[1] is not None
    assert domains.forget(engine, [key("1.example")], is_pool=True) == 1
    assert "1.example" in left(engine)[0]
    assert not domains.has(engine, key("1.example"), is_pool=True)
    assert domains.has(engine, key("1.example"), is_pool=False)
    assert domains.forget(engine, [key("1.example")], is_pool=True) == 0
    assert domains.forget(engine, [key("told.example")], is_pool=False) == 0
    assert not domains.has(engine, key("told.example"), is_pool=False)


def test_those_that_are_chosen_are_forgotten_in_batches(engine: Engine, names: Names) -> None:
    fill(names)
    rests: list[float] = []
    wanted = Filter(network=read_network("192.0.2.0/24"))
    assert domains.count_forgettable(engine, wanted, NOW, is_pool=True) == 5
    assert domains.count_forgettable(engine, Filter(), NOW, is_pool=False) == 5
    batches = list(domains.forget_all(engine, wanted, NOW, True, 2, rests.append))
    assert (batches, len(rests)) == ([2, 2, 1], 3)
    assert left(engine)[0] == ["0.example", "1.example", "2.example", "3.example"]
    assert not any(each.endswith("pool") for each in left(engine)[1])
    assert list(domains.forget_all(engine, Filter(domain=b"example"), NOW, False, 9)) == [4]
    assert left(engine)[0] == []
    assert len(left(engine)[1]) == 5, "what DNS said stays"


def test_a_name_is_normalised_as_that_of_a_sender(engine: Engine, names: Names) -> None:
    assert [each.key for each in named(b"Example.ORG.")] == [key("example.org")]
    assert [each.text for each in named(b"a b\xff.x")] == [r"a\x20b\xff.x"]
    folded = named(b"0a1b2c3d4e5f.mail.example.org")
    assert [each.text for each in folded] == [
        "0a1b2c3d4e5f.mail.example.org",
        "#.mail.example.org",
    ]


def test_names_that_begin_so_are_offered(engine: Engine, names: Names) -> None:
    names.passed("example.org")
    names.told("example.org")
    names.told("example.net")
    names.told("50%.example")
    assert sorted(domains.beginning(engine, "exa", 9)) == ["example.net", "example.org"]
    assert domains.beginning(engine, "5%", 9) == []
