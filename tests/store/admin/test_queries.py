"""Lists, single rows and forgetting, against a store that is filled by hand and a search by
hand.
"""

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select

from greycheck import earlier, normalise
from greycheck.explain.decision import address_bytes
from greycheck.log import show, show_address
from greycheck.settings import read
from greycheck.store.admin import queries
from greycheck.store.admin.queries import Filter, read_network
from greycheck.store.schema.tables import metadata, triplet
from tests import databases

NOW = 1_800_000_000
DAY = 86400


class Rows:
    """Fills the store of ENGINE; the number of a row is its key."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.number = 0
        # How the table has an address; an earlier release had all of it.
        self.shown: Callable[[bytes], str] = show_address

    def triplet(
        self,
        sender: bytes = b"a@example.org",
        recipient: bytes = b"b@example.net",
        network: str = "192.0.2.0/24",
        first: int = NOW,
        last: int = NOW,
        early: int = 0,
        passed: int | None = None,
        expires: int = NOW + DAY,
    ) -> int:
        self.number += 1
        values = (
            self.number.to_bytes(16, "big"),
            network,
            self.shown(normalise.fold_sender(normalise.mail_address(sender))),
            self.shown(normalise.mail_address(recipient)),
            first,
            last,
            early,
            int(passed is not None),
            passed,
            expires,
        )
        databases.fill(self.engine, "triplet", [values])
        return self.number

    def networks(self, networks: list[str], addresses: list[str]) -> dict[int, str]:
        """Nothing but triplets of NETWORKS and clients of ADDRESSES; returns the networks by
        number.
        """
        self.number = len(networks)
        numbered = dict(enumerate(networks, 1))
        row = ("s", "r", NOW, NOW, 0, 0, None, NOW + DAY)
        with self.engine.begin() as connection:
            for table in metadata.tables.values():
                connection.execute(delete(table))
        databases.fill(
            self.engine,
            "triplet",
            [(number.to_bytes(16, "big"), text, *row) for number, text in numbered.items()],
        )
        databases.fill(
            self.engine,
            "client",
            [(address, 1, NOW, NOW, NOW + DAY, 0, 0) for address in addresses],
        )
        return numbered

    def client(
        self, address: str, first: int = NOW, last: int = NOW, strikes: int = 0, struck: int = 0
    ) -> None:
        values = (address, 1, first, last, NOW + DAY, strikes, struck)
        databases.fill(self.engine, "client", [values])


@pytest.fixture
def fill(engine: Engine) -> Rows:
    return Rows(engine)


def numbers(engine: Engine, wanted: Filter, which: str = "pending", **more: object) -> list[int]:
    found = list(queries.rows(engine, which, wanted, NOW, **{"sort": "expires", **more}))  # type: ignore[arg-type]
    assert "limit" in more or queries.count(engine, which, wanted, NOW) == len(found)
    return [int.from_bytes(row["triplet_key"], "big") for row in found]


# --- addresses ------------------------------------------------------------------------------------

ADDRESSES = [
    b"alice@example.org",
    b"Alice+tag@Example.ORG",
    b"alice@mail.example.org",
    b"alice@notexample.org",
    b"malice@example.org",
    b"al%ice@example.org",
    b"al_ce@example.org",
    b"alice@b@example.org",
    b"john doe@example.org",
    b"\xff@example.org",
    b"postmaster",
    b"example.org",
    b"",
]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (b"alice@example.org", {1, 2}),
        (b"ALICE+other@example.org.", {1, 2}),
        (b"alice@", {1, 2, 3, 4}),
        (b"@example.org", {1, 2, 5, 6, 7, 8, 9, 10}),
        (b"example.org", {1, 2, 5, 6, 7, 8, 9, 10, 12}),
        (b"@Example.org", {1, 2, 5, 6, 7, 8, 9, 10}),
        (b"mail.example.org", {3}),
        (b"al%ice@", {6}),
        (b"al_ce@", {7}),
        (b"john doe@example.org", {9}),
        (b"\xff@example.org", {10}),
        (b"postmaster", {11}),
        (b"org", set()),
        (b"", {13}),
    ],
)
def test_an_address_is_found_whole_by_its_user_or_by_its_domain(
    engine: Engine, fill: Rows, address: bytes, found: set[int]
) -> None:
    for sender in ADDRESSES:
        fill.triplet(sender=sender)
    assert set(numbers(engine, Filter(address=address))) == found


def test_an_address_is_found_as_recipient_without_folding(engine: Engine, fill: Rows) -> None:
    for recipient in (b"bob+list@example.net", b"bob@example.net", b"bob@sub.example.net"):
        fill.triplet(recipient=recipient)
    assert set(numbers(engine, Filter(address=b"Bob+List@example.net"))) == {1}
    assert set(numbers(engine, Filter(address=b"bob@"))) == {2, 3}
    assert set(numbers(engine, Filter(address=b"@sub.example.net"))) == {3}


# Alike as far as they are shown.
LONG = [b"\xff" * 800 + last for last in (b"a", b"b")]
LONG_ADDRESSES = [
    LONG[0] + b"@example.org",
    LONG[1] + b"@example.org",
    b"x@" + LONG[0],
    b"x@" + LONG[1] + b".example.org",
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("side", ["sender", "recipient"])
def test_an_address_that_is_cut_is_found_as_others_are(
    engine: Engine, fill: Rows, side: str, whole: bool
) -> None:
    if whole:
        fill.shown = show
    for address in LONG_ADDRESSES:
        fill.triplet(**{side: address})  # type: ignore[arg-type]
    for number, address in enumerate(LONG_ADDRESSES, 1):
        assert numbers(engine, Filter(address=address)) == [number]
    assert numbers(engine, Filter(address=LONG[0] + b"@")) == [1]
    assert numbers(engine, Filter(address=b"@" + LONG[0])) == [3]
    assert numbers(engine, Filter(address=LONG[0])) == [3]
    assert set(numbers(engine, Filter(address=b"@example.org"))) >= {1, 2}
    assert set(numbers(engine, Filter(domain=b"example.org"))) >= {1, 2, 4}
    for row in queries.rows(engine, "pending", Filter(), NOW):
        assert whole or len(str(row[side])) < 600
        written = address_bytes(str(row[side]))
        if not whole:  # as the list shows it
            assert numbers(engine, Filter(address=written)) == [
                int.from_bytes(row["triplet_key"], "big")
            ]


def test_a_sender_is_found_as_an_earlier_release_folded_it_and_by_a_host_that_is_folded(
    engine: Engine, fill: Rows
) -> None:
    written = b"support=example.com__9m4vlv27x6v0rxwe@mmh2xurvokdh.a.bnc.example.org"
    fill.triplet(sender=written)
    address = normalise.mail_address(b"user+srs=a=b=example.com=alice@tenant.example")
    values = [
        (2).to_bytes(16),
        "192.0.2.0/24",
        show(earlier.fold_sender(address)),
        "b@x",
        NOW,
        NOW,
        0,
        0,
        None,
        NOW + DAY,
    ]
    databases.fill(engine, "triplet", [tuple(values)])
    assert numbers(engine, Filter(address=address)) == [2]
    for wanted in (written, b"@mmh2xurvokdh.a.bnc.example.org", b"mmh2xurvokdh.a.bnc.example.org"):
        assert numbers(engine, Filter(address=wanted)) == [1]
    assert numbers(engine, Filter(domain=b"mmh2xurvokdh.a.bnc.example.org")) == [1]


@pytest.mark.parametrize(
    "domain", [b"example.org", b".example.org", b"@example.org", b"EXAMPLE.org."]
)
def test_a_domain_is_found_with_all_below_it(engine: Engine, fill: Rows, domain: bytes) -> None:
    for sender in ADDRESSES:
        fill.triplet(sender=sender)
    assert set(numbers(engine, Filter(domain=domain))) == {1, 2, 3, 5, 6, 7, 8, 9, 10}


# --- networks -------------------------------------------------------------------------------------

# Few bits of each octet or group vary, and there are zeros to be shortened, so that networks meet.
IPV4 = st.tuples(*[st.sampled_from([0, 1, 9, 10, 19, 100, 128, 199, 255])] * 4).map(
    lambda octets: ".".join(map(str, octets))
)
# None that stands for an IPv4 client: no client has one.
IPV6 = (
    st.lists(st.sampled_from([0, 0, 1, 0x10, 0xDB8, 0x8000, 0xFFFF]), min_size=8, max_size=8)
    .map(
        lambda groups: ipaddress.IPv6Address(b"".join(group.to_bytes(2, "big") for group in groups))
    )
    .filter(lambda address: normalise.ipv4_within(int(address)) is None)
    .map(str)
)
NETWORKS = st.tuples(IPV4, st.integers(0, 32)) | st.tuples(IPV6, st.integers(0, 128))


def canonical(address: str, prefix: int) -> str:
    return normalise.client_network(address, prefix, prefix)


def overlap(one: str, other: str) -> bool:
    left, right = ipaddress.ip_network(one, strict=False), ipaddress.ip_network(other, strict=False)
    return left.version == right.version and left.overlaps(right)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=st.lists(NETWORKS, min_size=1, max_size=12), asked=NETWORKS)
def test_networks_of_any_length_are_found_where_they_overlap(
    engine: Engine, known: list[tuple[str, int]], asked: tuple[str, int]
) -> None:
    addresses = {
        canonical(address, 128 if ":" in address else 32).partition("/")[0]
        for address, _prefix in known
    }
    networks = Rows(engine).networks([canonical(*network) for network in known], sorted(addresses))
    wanted = Filter(network=read_network(f"{asked[0]}/{asked[1]}"))
    expected = {
        number for number, network in networks.items() if overlap(network, f"{asked[0]}/{asked[1]}")
    }
    assert set(numbers(engine, wanted)) == expected
    found = {row["address"] for row in queries.rows(engine, "clients", wanted, NOW)}
    assert found == {address for address in addresses if overlap(address, f"{asked[0]}/{asked[1]}")}


def test_an_address_is_found_in_its_network(engine: Engine, fill: Rows) -> None:
    fill.triplet(network="192.0.2.0/24")
    fill.triplet(network="2001:db8::/64")
    assert numbers(engine, Filter(network=read_network("192.0.2.77"))) == [1]
    assert numbers(engine, Filter(network=read_network("2001:DB8:0::77"))) == [2]


@pytest.mark.parametrize(
    "text",
    ["", "192.0.2", "192.0.2.0/", "192.0.2.0/33", "192.0.2.0/x", "::1/129", "a.example", "\udcff"],
)
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a network|prefix length is no number"):
        read_network(text)


def test_the_limit_counts_what_fits(engine: Engine, fill: Rows) -> None:
    for number in range(6):
        fill.triplet(network=f"2001:db8:{number % 2:x}::/64", expires=NOW + number)
    assert numbers(engine, Filter(network=read_network("2001:db8::/48")), limit=2) == [1, 3]
    assert numbers(engine, Filter(), limit=2) == [1, 2]
    assert len(numbers(engine, Filter())) == 6


# --- time and order -------------------------------------------------------------------------------


def test_first_attempts_lie_between_two_times(engine: Engine, fill: Rows) -> None:
    for age in (10, 100, 1000):
        fill.triplet(first=NOW - age)
        fill.client(f"192.0.2.{age % 7}", first=NOW - age)
    assert numbers(engine, Filter(until=NOW - 100)) == [2, 3]
    assert numbers(engine, Filter(since=NOW - 100)) == [1, 2]
    assert len(list(queries.rows(engine, "clients", Filter(since=NOW - 100), NOW))) == 2


@pytest.mark.parametrize(
    ("sort", "order"),
    [("first", [2, 1, 3]), ("last", [3, 2, 1]), ("early", [1, 3, 2]), ("expires", [3, 1, 2])],
)
def test_a_list_is_sorted_and_turned_round(
    engine: Engine, fill: Rows, sort: str, order: list[int]
) -> None:
    fill.triplet(first=NOW - 20, last=NOW - 9, early=9, expires=NOW + 2)
    fill.triplet(first=NOW - 10, last=NOW - 5, early=1, expires=NOW + 3)
    fill.triplet(first=NOW - 30, last=NOW - 1, early=5, expires=NOW + 1)
    assert numbers(engine, Filter(), sort=sort) == order
    assert numbers(engine, Filter(), sort=sort, reverse=True) == order[::-1]


def test_each_list_has_its_rows(engine: Engine, fill: Rows) -> None:
    fill.triplet()
    fill.triplet(passed=NOW)
    fill.client("192.0.2.1")
    fill.client("192.0.2.2", struck=NOW + 1, strikes=3)
    fill.client("192.0.2.3", struck=NOW)
    assert numbers(engine, Filter()) == [1]
    assert numbers(engine, Filter(), "passed") == [2]
    assert {row["address"] for row in queries.rows(engine, "clients", Filter(), NOW)} == {
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
    }
    assert [row["address"] for row in queries.rows(engine, "struck", Filter(), NOW, "early")] == [
        "192.0.2.2"
    ]


def test_a_list_by_expiry_follows_the_index(file_engine: Engine) -> None:
    query = str(queries.listed("pending", Filter(), NOW, "expires", False).compile(file_engine))
    with file_engine.connect() as connection:
        plan = " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
    assert "USING INDEX ix_triplet_expires_at" in plan
    assert "TEMP B-TREE" not in plan


def test_a_list_keeps_no_writer_waiting(engine: Engine, fill: Rows) -> None:
    fill.triplet()
    fill.triplet()
    found = queries.rows(engine, "pending", Filter(), NOW)
    next(found)
    fill.triplet()
    assert len(list(found)) == 1


# --- single rows ----------------------------------------------------------------------------------


def test_a_triplet_is_found_by_the_beginning_of_its_key(engine: Engine, fill: Rows) -> None:
    fill.triplet()
    fill.triplet()
    assert len(queries.triplets_by_key(engine, "0000")) == 2
    assert queries.triplets_by_key(engine, f"{1:032x}")[0]["sender"] == "a@example.org"
    assert queries.triplets_by_key(engine, "ff") == []
    for wrong in ("0" * 33, "xyz"):
        with pytest.raises(ValueError, match="not the key of a triplet"):
            queries.triplets_by_key(engine, wrong)


def test_what_shares_a_pair_or_a_network_is_counted(engine: Engine, fill: Rows) -> None:
    fill.triplet()
    fill.triplet(network="198.51.100.0/24")
    fill.triplet(network="203.0.113.0/24", passed=NOW)
    fill.triplet(recipient=b"c@example.net", passed=NOW)
    fill.triplet(recipient=b"c@example.net", network="198.51.100.0/24")
    fill.triplet(sender=b"c@example.net", network="198.51.100.0/24")
    [row] = queries.triplets_by_key(engine, f"{1:032x}")
    assert queries.of_same_pair(engine, row) == (1, False)
    assert queries.of_same_network(engine, "192.0.2.0/24") == (1, 1, False)


def test_what_shares_a_pair_or_a_network_is_counted_within_bounds(
    engine: Engine, fill: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "COUNTED", 3)
    for number in range(6):
        fill.triplet(network=f"198.51.{number}.0/24")
        fill.triplet(recipient=b"c%d@example.net" % number)
    [row] = queries.triplets_by_key(engine, f"{1:032x}")
    others, may_be_more = queries.of_same_pair(engine, row)
    assert others <= 3
    assert may_be_more
    assert queries.of_same_network(engine, "192.0.2.0/24") == (3, 0, True)
    assert queries.of_same_network(engine, "198.51.0.0/24") == (1, 0, False)
    monkeypatch.setattr(queries, "COUNTED", 100)
    assert queries.of_same_pair(engine, row) == (5, False)
    assert queries.of_same_network(engine, "192.0.2.0/24") == (6, 0, False)


@pytest.mark.parametrize(
    ("first", "passed", "last", "found"),
    [
        (NOW - 299, None, NOW, ("waits", NOW + 1, NOW + 2 * DAY - 299)),
        (NOW - 300, None, NOW, ("due", NOW, NOW + 2 * DAY - 300)),
        (NOW - 2 * DAY - 1, None, NOW, ("over", NOW - 2 * DAY + 299, NOW - 1)),
        (NOW + 50, None, NOW, ("waits", NOW + 300, NOW + 2 * DAY)),
        (NOW - DAY, NOW - 9, NOW - 5, ("passed", NOW - 5, NOW - 5 + 36 * DAY)),
        (NOW - 99 * DAY, NOW - 98 * DAY, NOW - 37 * DAY, ("over", NOW - 37 * DAY, NOW - DAY)),
    ],
)
def test_a_row_counts_as_the_settings_of_the_moment_say(
    engine: Engine,
    fill: Rows,
    first: int,
    passed: int | None,
    last: int,
    found: tuple[str, int, int],
) -> None:
    fill.triplet(first=first, last=last, passed=passed)
    [row] = queries.triplets_by_key(engine, f"{1:032x}")
    assert queries.terms_of(row, read({b"GREYCHECK_CONFIG": b"/dev/null"}), NOW) == found


# --- forgetting -----------------------------------------------------------------------------------


def test_a_triplet_or_a_client_is_forgotten_once(engine: Engine, fill: Rows) -> None:
    fill.triplet()
    fill.triplet()
    fill.client("192.0.2.1")
    key = (1).to_bytes(16, "big")
    assert [queries.forget_triplet(engine, key), queries.forget_triplet(engine, key)] == [1, 0]
    assert [
        queries.forget_client(engine, "192.0.2.1"),
        queries.forget_client(engine, "192.0.2.1"),
    ] == [1, 0]
    assert numbers(engine, Filter()) == [2]


def test_an_address_is_forgotten_in_batches_with_rests_and_without_a_lock_between(
    engine: Engine, fill: Rows
) -> None:
    for number in range(25):
        fill.triplet(
            sender=b"a@example.org" if number % 2 else b"c@example.com", recipient=b"%d@x" % number
        )
    rests = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        with engine.begin() as connection:
            connection.execute(select(triplet).with_for_update(nowait=True)).all()

    wanted = Filter(address=b"a@example.org")
    assert list(queries.forget_all(engine, queries.TRIPLETS, wanted, NOW, batch=5, rest=rest)) == [
        5,
        5,
        2,
    ]
    assert len(rests) == 3
    assert len(numbers(engine, Filter())) == 13
    assert list(queries.forget_all(engine, queries.TRIPLETS, wanted, NOW, batch=5, rest=rest)) == []


def test_what_a_list_has_is_forgotten_and_nothing_else(engine: Engine, fill: Rows) -> None:
    numbered = fill.networks(
        ["2001:db8::/64", "2001:db8:0:1::/64", "2001:dc8::/64", "192.0.2.0/24"],
        ["2001:db8::7", "192.0.2.7"],
    )
    wanted = Filter(network=read_network("2001:db8::/32"))
    for which in ("passed", "struck"):
        assert sum(queries.forget_all(engine, which, wanted, NOW)) == 0
    assert sum(queries.forget_all(engine, "pending", wanted, NOW, batch=1)) == 2
    assert [numbered[number] for number in sorted(numbers(engine, Filter()))] == [
        "2001:dc8::/64",
        "192.0.2.0/24",
    ]
    assert sum(queries.forget_all(engine, "clients", wanted, NOW)) == 1
    assert [row["address"] for row in queries.rows(engine, "clients", Filter(), NOW)] == [
        "192.0.2.7"
    ]
