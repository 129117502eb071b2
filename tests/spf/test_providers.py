"""Providers: those that are known by name, and what their SPF lets in."""

import ipaddress
from collections.abc import Iterator

import pytest

from greycheck import normalise
from greycheck.spf import networks, providers, ranges
from greycheck.spf.dns import Resolver, domain_name
from greycheck.spf.providers import KNOWN, MOST_NETWORKS, PRIVATE, Said
from greycheck.spf.ranges import IPV4, NOBODY, Ranges
from tests.dns_servers import Liar, Nsd, silent

NOW = 1_800_000_000


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        ["192.0.2.0/24"],
        ["0.0.0.0/32", "255.255.255.255/32"],
        ["192.0.2.1/32", "192.0.2.2/31", "2001:db8::/32"],
        ["::/128", "64:ff9b::/96", "ffff::/16"],
        [],
    ],
)
def test_networks_are_the_set_that_they_came_from(written: list[str]) -> None:
    assert networks.written(Ranges(networks.pairs(written))) == written


def test_ipv6_beside_all_of_ipv4_stays_apart_from_it() -> None:
    around = IPV4 | ranges.network(ranges.FIRST_IPV4 - 1, 128)
    assert len(around) == 1
    assert networks.written(around) == ["0.0.0.0/0", "::fffe:ffff:ffff/128"]


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_each_known_provider_has_domains_that_dns_may_have(name: str) -> None:
    assert providers.domains_of(name.upper()) == KNOWN[name]
    for domain in KNOWN[name]:
        assert domain_name(domain.encode()) == domain.encode()
        assert providers.name_of(domain) == name


def test_a_domain_is_its_own_provider() -> None:
    assert providers.domains_of("Mail.Example.") == ("mail.example",)
    assert providers.domains_of("b\u00fccher.example") == ("xn--bcher-kva.example",)
    assert providers.name_of("mail.example") == ""


@pytest.mark.parametrize(
    "text", ["nobody", "192.0.2.1", "a b.example", "", "a,b.example", "\udcff.x"]
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a domain nor a provider"):
        providers.domains_of(text)


def test_a_word_that_was_mistyped_is_suggested() -> None:
    with pytest.raises(ValueError, match="Did you mean google"):
        providers.domains_of("gogle")


# --- what DNS says --------------------------------------------------------------------------------

ZONES = {
    "plain.example.": "@ TXT \"v=spf1 ip4:192.0.2.0/25 ip4:192.0.2.128/25 ip6:2001:db8::/32 -all\"",
    "both.example.": "@ TXT \"v=spf1 ip4:192.0.2.0/24 exists:%{i}.both.example -all\"",
    "client.example.": "@ TXT \"v=spf1 exists:%{i}.client.example -all\"",
    "nobody.example.": "@ TXT \"v=spf1 -all\"",
    "wide.example.": "@ TXT \"v=spf1 ip4:64.0.0.0/6 -all\"",
    "all.example.": "@ TXT \"v=spf1 +all\"",
    "wrong.example.": "@ TXT \"v=spf1 ip4:what -all\"",
    "private.example.": "@ TXT \"v=spf1 ip4:172.16.0.0/12 -all\"",
    "mixed.example.": "@ TXT \"v=spf1 ip4:192.168.0.0/24 ip4:192.0.2.7 -all\"",
    "silent.example.": "@ TXT \"no spf\"",
    "many.example.": "@ TXT \"v=spf1 include:a.many.example include:b.many.example -all\"\n"
    + "\n".join(
        f"{letter} TXT "
        + " ".join(
            f'" ip4:192.{second}.{third}.{host}"'
            for third in range(4)
            for host in range(1, 256, 2)
        ).replace('" ip4', '"v=spf1 ip4', 1)
        for letter, second in (("a", 1), ("b", 2))
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def nsd() -> Iterator[Nsd]:
    with Nsd(ZONES) as server:
        yield server


@pytest.mark.parametrize(
    ("domain", "state", "why", "found"),
    [
        ("plain", "found", "", ("192.0.2.0/24", "2001:db8::/32")),
        ("both", "found", "", ("192.0.2.0/24",)),
        ("client", "found", "only a client itself can tell whether it may send", ()),
        ("nobody", "found", "nobody may send", ()),
        ("wide", "wide", "too many addresses pass", ()),
        ("all", "wide", "too many addresses pass", ()),
        ("wrong", "error", None, ()),
        ("private", "found", "from private networks only", ()),
        ("mixed", "found", "", ("192.0.2.7/32",)),
        ("silent", "none", "no SPF record", ()),
        ("many", "error", f"over {MOST_NETWORKS} networks", ()),
    ],
)
def test_what_a_domain_lets_in(
    nsd: Nsd, domain: str, state: str, why: str | None, found: tuple[str, ...]
) -> None:
    [said] = providers.look_up([f"{domain}.example"], [nsd.address])
    assert (said.state, said.networks) == (state, found)
    assert said.why == why if why is not None else said.why
    assert said.depends == (domain in ("both", "client"))


def test_each_domain_is_asked_for_and_answers_keep_their_order(nsd: Nsd) -> None:
    names = ["wrong.example", "plain.example", "both.example", "nobody.example"]
    assert [one.name for one in providers.look_up(names, [nsd.address])] == names


def test_without_an_answer_it_says_so() -> None:
    with Liar(silent) as liar:
        said = providers.ask("plain.example", Resolver([liar.address], seconds=0.2), NOW)
    assert said == Said("plain.example", "failed", "TXT plain.example: no answer", (), False, NOW)


# --- private networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("begin", normalise.private_beginnings())
def test_private_addresses_are_no_providers(begin: str) -> None:
    if begin == "::1":
        address = begin
    elif "." in begin:
        address = begin + ".".join("0" * (4 - begin.count(".")))
    else:
        address = begin.ljust(4, "0") + "::"
    assert normalise.is_private(str(ipaddress.ip_address(address)))
    assert ranges.value_of(str(ipaddress.ip_address(address))) in PRIVATE


def test_only_private_ones_are() -> None:
    for first, last in PRIVATE:
        for value, inside in ((first - 1, False), (first, True), (last, True), (last + 1, False)):
            [text] = networks.written(Ranges([(value, value)]))
            address = text.partition("/")[0]
            # ``is_private`` goes by how an address begins: fec0:: is another matter.
            assert normalise.is_private(address) == inside or address in ("::", "::2")
    assert PRIVATE & NOBODY == NOBODY
