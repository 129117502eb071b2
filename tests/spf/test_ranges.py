"""Sets of addresses, against Python's own sets and the module ipaddress."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greycheck.spf import ranges
from greycheck.spf.ranges import ALL, FIRST_IPV4, IPV4, IPV6, Ranges

pairs = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))),
    max_size=8,
)


def members(found: Ranges) -> set[int]:
    return {value for first, last in found for value in range(first, last + 1)}


@given(pairs, pairs)
def test_ranges_are_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = Ranges(left), Ranges(right)
    assert members(a | b) == members(a) | members(b)
    assert members(a & b) == members(a) & members(b)
    assert members(a - b) == members(a) - members(b)
    assert a.size() == len(members(a))
    assert {value for value in range(70) if value in a} == members(a)


@given(pairs, pairs)
def test_the_same_set_is_equal_however_it_was_made(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    a, b = Ranges(left), Ranges(right)
    made = (a - b) | (a & b)
    assert made == a
    assert hash(made) == hash(a)
    assert all(here[1] + 1 < there[0] for here, there in zip(a.pairs, a.pairs[1:], strict=False))


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_an_ipv4_network_has_the_addresses_that_ipaddress_says(value: int, prefix: int) -> None:
    network = ipaddress.IPv4Network((value, prefix), strict=False)
    found = ranges.ipv4_network(value, prefix)
    first, last = int(network[0]), int(network[-1])
    assert found.pairs == ((FIRST_IPV4 | first, FIRST_IPV4 | last),)
    assert (found.ipv4_size(), found.ipv6_size()) == (network.num_addresses, 0)


@given(st.integers(0, 2**128 - 1), st.integers(0, 128))
def test_an_ipv6_network_has_no_ipv4_client(value: int, prefix: int) -> None:
    network = ipaddress.IPv6Network((value, prefix), strict=False)
    found = ranges.ipv6_network(value, prefix)
    assert found.ipv4_size() == 0
    assert found | (IPV4 & found) == Ranges([(int(network[0]), int(network[-1]))]) - IPV4


def test_all_is_every_address() -> None:
    assert ALL.size() == 2**128
    assert (IPV4.ipv4_size(), IPV6.ipv6_size()) == (2**32, 2**128 - 2**32)
    assert not IPV4 & IPV6


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "00000000000000000000ffffc0000201"),
        ("2001:db8::1", "20010db8000000000000000000000001"),
        ("255.255.255.255", "00000000000000000000ffffffffffff"),
    ],
)
def test_an_address_has_16_bytes_in_the_order_of_numbers(address: str, expected: str) -> None:
    assert ranges.packed(address).hex() == expected
    assert ranges.value_of(address) == int(expected, 16)


def test_what_is_no_address_has_no_bytes() -> None:
    with pytest.raises(ValueError, match="no client address"):
        ranges.packed("192.0.2.256")
