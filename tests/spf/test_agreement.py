"""What is found for all clients, what is found for one, and the RFC worked out plainly agree.

The records are random, and asked for from NSD.
"""

import ipaddress
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greycheck.spf import ranges
from greycheck.spf.dns import Resolver
from greycheck.spf.evaluate import Answer, networks_of, passes
from tests.dns_servers import Nsd
from tests.spf.zones import HELOS, IPV4, IPV6, LOCALS, World

world = World(seed=7208)
addresses = st.sampled_from([*map(str, IPV4), *map(str, IPV6), "192.0.2.1", "2001:db8:1::"])


@pytest.fixture(scope="module")
def resolver() -> Iterator[Resolver]:
    with Nsd(world.zones()) as nsd:
        yield Resolver([nsd.address], 60)


answers: dict[str, Answer] = {}


def answer(domain: str, resolver: Resolver) -> Answer:
    if domain not in answers:
        answers[domain] = networks_of(domain.encode(), resolver)
    return answers[domain]


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    domain=st.sampled_from(world.domains),
    address=addresses,
    local=st.sampled_from(LOCALS),
    helo=st.sampled_from(HELOS),
)
def test_all_at_once_one_by_one_and_the_rfc_agree(
    resolver: Resolver, domain: str, address: str, local: str, helo: str
) -> None:
    expected = world.check(domain, ipaddress.ip_address(address), local, helo)
    sender = f"{local}@{domain}".encode()
    one = passes(domain.encode(), sender, address, helo.encode(), resolver)
    assert (one.result, bool(one.why)) == (expected, expected == "permerror")

    every = answer(domain, resolver)
    value = ranges.value_of(address)
    assert every.state in ("found", "none", "wide", "error")
    if value in every.ranges:
        assert expected == "pass"
    elif value not in every.perhaps and not every.why:
        assert expected != "pass"
    if every.state == "none":
        assert expected == "none"


def test_the_random_records_are_of_all_kinds(resolver: Resolver) -> None:
    found = [answer(domain, resolver) for domain in world.domains]
    assert {one.state for one in found} >= {"found", "none", "error"}
    assert sum(one.state == "found" and bool(one.ranges) and not one.why for one in found) > 20
    assert sum(one.depends for one in found) > 20
    assert sum(one.state == "found" and bool(one.why) and bool(one.ranges) for one in found) > 5
    results = {
        world.check(domain, address, local, helo)
        for domain in world.domains
        for address in [*IPV4, *IPV6]
        for local in LOCALS
        for helo in HELOS
    }
    assert results == {"pass", "fail", "softfail", "neutral", "none", "permerror"}
