"""What domains say about all clients and about one: RFC 7208's limits, one by one.

The zone is NSD's; where a name server must not be honest, it is one in Python.
"""

import ipaddress
import time
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from greycheck.spf import evaluate
from greycheck.spf.dns import Resolver
from greycheck.spf.evaluate import QUERIES, Answer, networks_of, passes
from greycheck.spf.ranges import FIRST_IPV4, LAST_IPV4, Ranges
from tests import dns_servers
from tests.dns_servers import Behaviour, Liar, Nsd, answering

HOSTS = """
h 900 A 192.0.2.1
h AAAA 2001:db8::1
g A 192.0.2.2
g AAAA 2001:db8::2
four A 192.0.2.4
mapped AAAA ::ffff:192.0.2.9
mail MX 1 h
mail MX 2 g
null MX 0 .
mx10 MX 0 h
{mx10}
mx11 MX 0 h
{mx10_again}
mx11 MX 11 four
one.e A 127.0.0.2
192.0.2.1.i A 127.0.0.2
""".format(
    mx10="\n".join(f"mx10 MX {at} x{at}" for at in range(1, 10)),
    mx10_again="\n".join(f"mx11 MX {at} x{at}" for at in range(1, 10)),
)

# A domain's first label, and its record.
RECORDS = {
    "no": "",
    "minus": "-all",
    "plus": "+all",
    "bare": "",
    "list": "ip4:192.0.2.0/25 ip6:2001:db8::/64 -all",
    "minus-first": "-ip4:192.0.2.64/26 ip4:192.0.2.0/25 ?ip4:192.0.2.128/26 ip4:192.0.2.0/24",
    "a": "a:h.example/31//127 ~all",
    "mx": "mx:mail.example -all",
    "null-mx": "mx:null.example a:h.example",
    "mapped": "a:mapped.example ip6:::ffff:192.0.2.0/120 ip6:2001:db8::/32",
    "included": "include:list.example -all",
    "not-included": "?include:list.example ip4:192.0.2.0/24 -all",
    "include-soft": "include:soft.example ip4:192.0.2.7 -all",
    "soft": "~ip4:192.0.2.7 ip4:192.0.2.0/24 -all",
    "to": "ip4:192.0.2.3 redirect=list.example",
    "to-with-all": "redirect=list.example ?all",
    "fixed": "include:%{d1r}st.%{o1} -all",
    # errors
    "wrong": "ip4:192.0.2.1 -all mx/33",
    "wrong-inside": "ip4:192.0.2.1 include:wrong.example ip4:192.0.2.2",
    "none-inside": "ip4:192.0.2.1 include:nothing.example ip4:192.0.2.2",
    "nowhere": "ip4:192.0.2.1 redirect=nothing.example",
    "partly": "include:minus-then-wrong.example ip4:192.0.2.0/24",
    "minus-then-wrong": "-ip4:192.0.2.8/29 include:wrong.example",
    # look-ups
    "ten": "a:h.example " * 10 + "ip4:192.0.2.10",
    "eleven": "a:h.example " * 11 + "ip4:192.0.2.10",
    "nested": "include:nest1.example include:nest1.example ip4:192.0.2.10",
    "nest1": "a:h.example mx:mail.example exists:x.e.example ?ptr -all",
    "nested2": "include:nest1.example include:nest1.example a:h.example ip4:192.0.2.10",
    "loop": "ip4:192.0.2.10 include:loop.example ip4:192.0.2.11",
    "round": "ip4:192.0.2.10 redirect=round.example",
    "void2": "a:v.example mx:v.example ip4:192.0.2.10",
    "void3": "a:v.example mx:v.example ip4:192.0.2.10 exists:v.example ip4:192.0.2.11",
    "void-of-ipv6": "a:four.example a:four.example a:four.example ip4:192.0.2.10 ip6:2001:db8::10",
    "mx10": "mx:mx10.example ip4:192.0.2.10",
    "mx11": "mx:mx11.example ip4:192.0.2.10",
    # what depends on the client
    "exists": "ip4:192.0.2.8 exists:%{i}.i.example ip4:192.0.2.9 -all",
    "not-exists": "ip4:192.0.2.8 -exists:%{i}.i.example ip4:192.0.2.9 -all",
    "in-vain": "ip4:192.0.2.8 -exists:%{i}.i.example ~ptr ?include:%{l}.e.example -all",
    "by-local": "include:%{l}.e.example ip4:192.0.2.9 -all",
    "exists3": "exists:%{i}.a.example exists:%{i}.b.example exists:%{i}.c.example ip4:192.0.2.9",
    "inside": "-include:exists.example ip4:192.0.2.8/30 -all",
    "exists2": "exists:%{i}.a.example exists:%{i}.b.example a:v.example ip4:192.0.2.9",
    "exists-wrong": "exists:%{i}.i.example include:wrong.example ip4:192.0.2.9",
    "ptr-case": "ptr:H.Example -all",
    "ptr": "ptr:example -all",
    "ptr-name": "ptr:h.example -all",
    # too much
    "wide4": "ip4:16.0.0.0/8 ip4:17.0.0.0/32",
    "wide6": "ip6:2000::/24 ip6:3000::/128",
    "not-wide": "ip4:16.0.0.0/8 ip6:2000::/24",
    "narrowed": "-ip4:0.0.0.0/1 -ip4:128.0.0.0/1 ip4:0.0.0.0/0 -all",
    "all-but": "-exists:%{i}.i.example +all",
    "all-but-inside": "include:all-but.example -all",
    "neutral-all-but": "?include:all-but.example ip4:192.0.2.1",
    "always": "exists:one.e.example",
    "many": "include:many1.example include:many2.example a:crowd.example",
    "terms": "include:many1.example include:many2.example include:many3.example",
}


def zone() -> str:
    lines = [HOSTS]
    for label, record in RECORDS.items():
        text = f"v=spf1 {record}".rstrip()
        pieces = " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))
        lines.append(f"{label} TXT {pieces}")
    lines.append('two TXT "v=spf1 -all"\ntwo TXT "v=spf1 ip4:192.0.2.1 -all"')
    lines.append('texts 60 TXT "other"\ntexts 60 TXT "v=spf1 a:h.example" " -all"')
    for number in (1, 2, 3):
        text = " ".join(f"ip4:1{number}.{at >> 8}.{at & 255}.1" for at in range(990))
        pieces = " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))
        lines.append(f'many{number} TXT "v=spf1 " {pieces}')
    lines += [f"crowd A 13.0.{at}.1" for at in range(100)]
    return "\n".join(lines)


PTRS = "\n".join(
    [
        "1 PTR h.example.",
        "2 PTR h.example.",  # who is not there
        *(f"4 PTR a{number}.example." for number in range(12)),
        "4 PTR four.example.",
    ]
)


@pytest.fixture(scope="module")
def resolver() -> Iterator[Resolver]:
    with Nsd({"example.": zone(), "2.0.192.in-addr.arpa.": PTRS, "ip6.arpa.": ""}) as nsd:
        yield Resolver([nsd.address], 60)


def shown(ranges: Ranges) -> str:
    """As networks, with blanks between."""
    found: list[str] = []
    for first, last in ranges:
        if first >= FIRST_IPV4 and last <= LAST_IPV4:
            ends = [ipaddress.IPv4Address(end & 0xFFFFFFFF) for end in (first, last)]
            found += map(str, ipaddress.summarize_address_range(*ends))
        else:
            six = [ipaddress.IPv6Address(end) for end in (first, last)]
            found += map(str, ipaddress.summarize_address_range(*six))
    return " ".join(found)


def of(label: str, resolver: Resolver) -> Answer:
    return networks_of(f"{label}.example".encode(), resolver)


H, H6 = "192.0.2.1/32", "2001:db8::1/128"


@pytest.mark.parametrize(
    ("label", "networks"),
    [
        ("minus", ""),
        ("bare", ""),
        ("list", "192.0.2.0/25 2001:db8::/64"),
        ("minus-first", "192.0.2.0/26 192.0.2.192/26"),
        ("a", "192.0.2.0/31 2001:db8::/127"),
        ("mx", "192.0.2.1/32 192.0.2.2/32 2001:db8::1/128 2001:db8::2/128"),
        ("null-mx", f"{H} {H6}"),
        ("mapped", "2001:db8::/32"),
        ("included", "192.0.2.0/25 2001:db8::/64"),
        ("not-included", "192.0.2.128/25"),
        ("include-soft", "192.0.2.0/24"),
        ("to", "192.0.2.0/25 2001:db8::/64"),
        ("to-with-all", ""),
        ("ten", f"{H} 192.0.2.10/32 {H6}"),
        ("void2", "192.0.2.10/32"),
        ("mx10", f"{H} 192.0.2.10/32 {H6}"),
        ("texts", f"{H} {H6}"),
        ("narrowed", ""),
        ("not-wide", "16.0.0.0/8 2000::/24"),
        ("many1", None),
    ],
)
def test_networks(resolver: Resolver, label: str, networks: str | None) -> None:
    answer = of(label, resolver)
    assert (answer.state, answer.why, answer.depends) == ("found", "", False)
    if networks is None:
        assert len(answer.ranges) == 990
    else:
        assert shown(answer.ranges) == networks


@pytest.mark.parametrize(
    ("label", "networks", "why"),
    [
        ("wrong-inside", H, "mx/33: a prefix longer"),
        ("none-inside", H, "without SPF record"),
        ("nowhere", H, "without SPF record"),
        ("partly", "192.0.2.8/29", "mx/33"),
        ("eleven", f"{H} {H6}", "over 10 terms that ask"),
        ("loop", "192.0.2.10/32", "over 10 terms that ask"),
        ("round", "192.0.2.10/32", "over 10 terms that ask"),
        ("void3", "192.0.2.10/32", "over 2 terms that find nothing"),
        # IPv4 is asked for on its own, and finds what it asks for.
        ("void-of-ipv6", "192.0.2.4/32 192.0.2.10/32", "over 2 terms that find nothing"),
    ],
)
def test_networks_before_an_error_hold(
    resolver: Resolver, label: str, networks: str, why: str
) -> None:
    answer = of(label, resolver)
    assert (answer.state, shown(answer.ranges), answer.depends) == ("found", networks, False)
    assert why in answer.why


@pytest.mark.parametrize(
    ("label", "state", "why"),
    [
        ("nothing", "none", "no SPF record"),
        ("mail", "none", "no SPF record"),
        ("wrong", "error", "mx/33: a prefix longer than an address"),
        ("two", "error", "several SPF records"),
        ("mx11", "error", "over 10 mail servers"),
        ("many", "error", "over 2000 networks"),
        ("plus", "wide", "too many"),
        ("wide4", "wide", "too many"),
        ("wide6", "wide", "too many"),
        ("all-but", "wide", "too many"),
        ("all-but-inside", "wide", "too many"),
        ("always", "wide", "too many"),
    ],
)
def test_no_networks(resolver: Resolver, label: str, state: str, why: str) -> None:
    answer = of(label, resolver)
    assert (answer.state, answer.ranges, answer.depends) == (state, Ranges(), False)
    assert why in answer.why


ALL_OTHER = "192.0.2.200"


@pytest.mark.parametrize(
    ("label", "sure", "perhaps", "not_perhaps"),
    [
        # Who exists passes, and so do those after it; all others may.
        ("exists", "192.0.2.8/31", [ALL_OTHER, "2001:db8::"], []),
        ("not-exists", "192.0.2.8/32", ["192.0.2.9"], [ALL_OTHER]),
        ("in-vain", "192.0.2.8/32", [], [ALL_OTHER, "192.0.2.9"]),
        # The included domain may have no record for some: an error.
        ("by-local", "", ["192.0.2.9", ALL_OTHER], []),
        # All three may find nothing: an error.
        ("exists3", "", ["192.0.2.9", ALL_OTHER], []),
        ("exists2", "", ["192.0.2.9", ALL_OTHER], []),
        # Who exists has passed before the error.
        ("exists-wrong", "", ["192.0.2.1", "192.0.2.9"], []),
        ("inside", "", ["192.0.2.10"], ["192.0.2.8", "192.0.2.9", ALL_OTHER]),
        ("ptr", "", [], [ALL_OTHER]),
        ("ptr-name", "", [ALL_OTHER, "2001:db8::"], []),
        ("neutral-all-but", "", [H[:-3]], [ALL_OTHER]),
    ],
)
def test_what_depends_on_the_client_is_left_open(
    resolver: Resolver, label: str, sure: str, perhaps: list[str], not_perhaps: list[str]
) -> None:
    answer = of(label, resolver)
    assert shown(answer.ranges) == sure
    assert [one for one in perhaps if evaluate.ranges.value_of(one) not in answer.perhaps] == []
    assert [one for one in not_perhaps if evaluate.ranges.value_of(one) in answer.perhaps] == []
    assert answer.depends == bool(perhaps)


def one(label: str, address: str, resolver: Resolver, sender: bytes = b"one@x.example") -> str:
    return passes(f"{label}.example".encode(), sender, address, b"helo.example", resolver).result


@pytest.mark.parametrize(
    ("label", "address", "result"),
    [
        ("nothing", "192.0.2.1", "none"),
        ("bare", "192.0.2.1", "neutral"),
        ("minus", "192.0.2.1", "fail"),
        ("plus", "192.0.2.1", "pass"),
        ("a", "192.0.2.9", "softfail"),
        ("minus-first", "192.0.2.130", "neutral"),
        ("to", "192.0.2.200", "fail"),
        ("to", "192.0.2.3", "pass"),
        ("wrong", "192.0.2.1", "permerror"),
        ("two", "192.0.2.1", "permerror"),
        ("eleven", "192.0.2.1", "pass"),
        ("eleven", "192.0.2.10", "permerror"),
        ("mapped", "192.0.2.9", "neutral"),
        ("exists", "192.0.2.1", "pass"),
        ("exists", "192.0.2.2", "fail"),
        ("not-exists", "192.0.2.1", "fail"),
        ("by-local", "192.0.2.9", "permerror"),
        ("exists3", "192.0.2.9", "permerror"),
        ("ptr-name", "192.0.2.1", "pass"),
        ("ptr-name", "192.0.2.2", "fail"),
        ("ptr-case", "192.0.2.1", "pass"),
        ("ptr-name", "2001:db8::1", "fail"),
        ("fixed", "192.0.2.1", "permerror"),
    ],
)
def test_one_client(resolver: Resolver, label: str, address: str, result: str) -> None:
    assert one(label, address, resolver) == result


def test_an_address_that_is_none_is_the_callers_fault(resolver: Resolver) -> None:
    with pytest.raises(ValueError, match="no client address"):
        passes(b"list.example", b"", "localhost", b"", resolver)


@pytest.mark.parametrize("domain", [b"", b"[192.0.2.1]", b"localhost", b"\xff.example", b"a" * 300])
def test_what_is_no_domain_asks_nobody(domain: bytes) -> None:
    with Liar(dns_servers.garbage) as liar:
        resolver = Resolver([liar.address])
        assert networks_of(domain, resolver).state == "none"
        assert passes(domain, b"", "192.0.2.1", b"", resolver).result == "none"
        assert liar.queries == []


def test_an_answer_holds_as_long_as_the_shortest_record(resolver: Resolver) -> None:
    assert of("texts", resolver).ttl == 60
    assert of("a", resolver).ttl == 900
    assert of("list", resolver).ttl == 3600
    assert of("nothing", resolver).ttl == 300
    assert passes(b"a.example", b"", "192.0.2.1", b"", resolver).ttl == 900


def test_more_terms_than_anybody_needs_are_an_error(resolver: Resolver) -> None:
    answer = of("terms", resolver)
    # Three include, 1980 are the first two's, and 17 are left for the third.
    assert (answer.state, len(answer.ranges)) == ("found", 1980 + 17)
    assert answer.why == "over 2000 terms"


def test_lookups_are_told(resolver: Resolver) -> None:
    assert of("list", resolver).lookups == 0
    assert of("included", resolver).lookups == 1
    assert of("ten", resolver).lookups == 10


def down_at(name: str, otherwise: Behaviour) -> Behaviour:
    """As OTHERWISE, but for NAME."""
    down = dns_servers.says(dns.rcode.SERVFAIL)

    def behave(query: dns.message.Message, tcp: bool) -> bytes | None:
        named = query.question[0].name.to_text() == name
        return (down if named else otherwise)(query, tcp)

    return behave


# --- macros of the client -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("macro", "sender", "asked"),
    [
        ("%{s}", b"strong-bad@x.example", "strong-bad\\@seen.example."),
        ("%{l1r-}", b"strong-bad@x.example", "strong."),
        ("%{l}", b"", "postmaster."),
        ("%{l}", b"a@b@x.example", "a\\@b."),
        ("%{ir}.%{v}", b"", "3.2.0.192.in-addr."),
        ("%{h}", b"", "helo.example."),
        ("%{p}", b"", "unknown."),
        ("%{S}", b"a@x.example", "a%40seen.example."),
    ],
)
def test_macros_ask_for_what_they_stand_for(macro: str, sender: bytes, asked: str) -> None:
    def records(name: str, kind: str) -> list[str]:
        if name == "seen.example." and kind == "TXT":
            return [f'{name} 60 TXT "v=spf1 exists:{macro}.e.example"']
        return []

    with Liar(answering(records)) as liar:
        resolver = Resolver([liar.address], 20)
        passes(b"seen.example", sender, "192.0.2.3", b"helo.example", resolver)
        assert (f"{asked}e.example.", "A", False) in liar.queries


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("z.example.", "a.seen.example.", "Seen.Example."), "seen.example."),
        (("b.example.", "z.seen.example.", "a.seen.example."), "a.seen.example."),
        (("z.example.", "b.example.", "xseen.example."), "b.example."),
        (("forged.example.", "down.example."), "unknown."),
    ],
)
def test_of_the_names_of_a_client_the_domain_is_preferred(
    names: tuple[str, ...], chosen: str
) -> None:
    def records(name: str, kind: str) -> list[str]:
        if name == "seen.example." and kind == "TXT":
            return [f'{name} 60 TXT "v=spf1 exists:%{{p}}.e.example"']
        if kind == "PTR":
            return [f"{name} 60 PTR {' | '.join(names)}"]
        return [] if name.startswith("forged") else [f"{name} 60 A 192.0.2.3"]

    with Liar(down_at("down.example.", answering(records))) as liar:
        resolver = Resolver([liar.address], 20)
        passes(b"seen.example", b"", "192.0.2.3", b"", resolver)
        assert (f"{chosen}e.example.", "A", False) in liar.queries


@pytest.mark.parametrize(
    ("down", "result"),
    [("nowhere.example.", "permerror"), ("3.2.0.192.in-addr.arpa.", "fail")],
)
def test_a_client_whose_names_cannot_be_asked_for_is_not_one_without(
    down: str, result: str
) -> None:
    def records(name: str, kind: str) -> list[str]:
        return [f'{name} 60 TXT "v=spf1 ptr ptr ptr -all"'] if kind == "TXT" else []

    with Liar(down_at(down, answering(records))) as liar:
        resolver = Resolver([liar.address], 20)
        assert passes(b"a.example", b"", "192.0.2.3", b"", resolver).result == result


def test_ten_names_of_a_client_are_read() -> None:
    names = [f"x{number}.example." for number in range(30)]

    def records(name: str, kind: str) -> list[str]:
        if kind == "TXT":
            return [f'{name} 60 TXT "v=spf1 ptr -all"']
        return [f"{name} 60 PTR {' | '.join(names)}"] if kind == "PTR" else []

    with Liar(answering(records)) as liar:
        resolver = Resolver([liar.address], 20)
        assert passes(b"a.example", b"", "192.0.2.3", b"", resolver).result == "fail"
        assert sum(kind == "A" for _name, kind, _tcp in liar.queries) == 10


# --- DNS that fails, and domains that cost --------------------------------------------------------


def test_a_failure_of_dns_is_told_apart_with_the_networks_so_far() -> None:
    def records(name: str, kind: str) -> list[str]:
        return [f'{name} 60 TXT "v=spf1 ip4:192.0.2.1 a:down.example ip4:192.0.2.2 +all"']

    with Liar(down_at("down.example.", answering(records))) as liar:
        resolver = Resolver([liar.address], 20)
        answer = networks_of(b"a.example", resolver)
        assert (answer.state, shown(answer.ranges), answer.ttl) == ("failed", H, 0)
        assert answer.why == "A down.example: SERVFAIL"
        result = passes(b"a.example", b"", "192.0.2.2", b"", resolver)
        assert (result.result, result.why) == ("temperror", "A down.example: SERVFAIL")
        assert result.ttl == 0
        assert passes(b"a.example", b"", "192.0.2.1", b"", resolver).result == "pass"


def test_a_failure_of_dns_counts_before_an_error() -> None:
    texts = {
        "a.example.": "ip4:192.0.2.1 include:b.example a:down.example",
        "b.example.": "-ip4:192.0.2.8/29 all:wrong -all",
        "c.example.": "ip4:192.0.2.1 include:d.example a:down.example",
        "d.example.": "-ip4:192.0.2.8/29 include:b.example",
    }

    def records(name: str, kind: str) -> list[str]:
        return [f'{name} 60 TXT "v=spf1 {texts[name]}"'] if kind == "TXT" else []

    with Liar(down_at("down.example.", answering(records))) as liar:
        resolver = Resolver([liar.address], 20)
        assert networks_of(b"a.example", resolver).state == "found"
        answer = networks_of(b"c.example", resolver)
        assert (answer.state, answer.why) == ("failed", "A down.example: SERVFAIL")


def test_a_silent_server_ends_at_the_deadline() -> None:
    with Liar(dns_servers.silent) as liar:
        resolver = Resolver([liar.address], 3600)
        answer = networks_of(b"a.example", resolver, time.monotonic() + 0.2)
        assert (answer.state, answer.why) == ("failed", "TXT a.example: no answer")
        result = passes(b"a.example", b"", "192.0.2.1", b"", resolver, time.monotonic())
        assert result.result == "temperror"


def test_includes_without_end() -> None:
    def records(name: str, kind: str) -> list[str]:
        return [f'{name} 60 TXT "v=spf1 ip4:192.0.2.1 include:x{name} include:y{name} +all"']

    with Liar(answering(records)) as liar:
        answer = networks_of(b"a.example", Resolver([liar.address], 20))
        assert (answer.state, shown(answer.ranges)) == ("found", H)
        assert "over 10 terms" in answer.why
        assert len(liar.queries) == 11


def test_a_domain_costs_a_bounded_number_of_questions() -> None:
    def records(name: str, kind: str) -> list[str]:
        if kind == "TXT":
            terms = " ".join(f"mx:m{number}.example" for number in range(10))
            return [f'{name} 60 TXT "v=spf1 {terms}"']
        if kind == "MX":
            hosts = " | ".join(f"{number} h{number}.{name}" for number in range(10))
            return [f"{name} 60 MX {hosts}"]
        return [f"{name} 60 {kind} {'192.0.2.1' if kind == 'A' else '2001:db8::1'}"]

    with Liar(answering(records)) as liar:
        answer = networks_of(b"a.example", Resolver([liar.address], 20))
        assert answer.why == f"over {QUERIES} questions to DNS"
        assert len(liar.queries) <= 2 * QUERIES


def test_what_a_domain_says_is_escaped() -> None:
    def records(name: str, kind: str) -> list[str]:
        return [f'{name} 60 TXT "v=spf1 \\027[2J\\010{"x" * 100}"']

    with Liar(answering(records)) as liar:
        answer = networks_of(b"a.example", Resolver([liar.address], 20))
        assert answer.state == "error"
        assert answer.why.isprintable()
        assert len(answer.why) < 300
