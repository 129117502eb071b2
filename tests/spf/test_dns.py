"""The resolver, with NSD and with servers that lie, on loopback."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from greycheck.spf import dns as questions
from greycheck.spf.dns import NEGATIVE, RECORDS, Failed, Found, Resolver, domain_name, server
from tests import dns_servers
from tests.dns_servers import HOST, Behaviour, Liar, Nsd, answering
from tests.servers import free_port

ZONE = """
ns A 127.0.0.1
txt 60 TXT "v=spf1 " "-all"
txt 60 TXT "other"
big TXT {big}
a 100 A 192.0.2.1
a 100 A 192.0.2.2
six AAAA 2001:db8::1
mx MX 10 Mail.Example.
mx MX 0 .
alias 50 CNAME a
far CNAME elsewhere.invalid.
loop1 CNAME loop2
loop2 CNAME loop1
"""


@pytest.fixture(scope="module")
def nsd() -> Iterator[Nsd]:
    big = " ".join(f'"{"x" * 250}"' for _ in range(20))
    zones = {"example.": ZONE.format(big=big), "2.0.192.in-addr.arpa.": "1 PTR Host.Example."}
    with Nsd(zones) as started:
        yield started


def soon() -> float:
    return time.monotonic() + 30


def ask(address: str, name: bytes, kind: str, seconds: float = 20) -> Found:
    return Resolver([address], seconds).ask(name, kind, soon())


@pytest.mark.parametrize(
    ("name", "kind", "records", "ttl"),
    [
        (b"txt.example", "TXT", {b"v=spf1 -all", b"other"}, 60),
        (b"TXT.Example.", "TXT", {b"v=spf1 -all", b"other"}, 60),
        (b"big.example", "TXT", {b"x" * 5000}, 3600),
        (b"a.example", "A", {bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))}, 100),
        (b"alias.example", "A", {bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))}, 50),
        (b"six.example", "AAAA", {bytes.fromhex("20010db8000000000000000000000001")}, 3600),
        (b"mx.example", "MX", {b"mail.example", b""}, 3600),
        (b"1.2.0.192.in-addr.arpa", "PTR", {b"host.example"}, 3600),
    ],
)
def test_records(nsd: Nsd, name: bytes, kind: str, records: set[bytes], ttl: int) -> None:
    found = ask(nsd.address, name, kind)
    assert set(found.records) == records
    assert (found.ttl, found.missing) == (ttl, False)


@pytest.mark.parametrize(
    ("name", "kind", "missing"),
    [(b"a.example", "AAAA", False), (b"none.example", "A", True)],
)
def test_what_is_not_there_holds_as_long_as_the_zone_says(
    nsd: Nsd, name: bytes, kind: str, missing: bool
) -> None:
    assert ask(nsd.address, name, kind) == Found((), 300, missing)


def test_that_there_is_nothing_holds_no_longer_than_hours() -> None:
    soa = "@ 9999999 SOA ns admin 1 3600 900 86400 9999999"
    with Nsd({"example.": f"$ORIGIN example.\n$TTL 9999999\n{soa}\n@ NS ns"}) as nsd:
        assert ask(nsd.address, b"none.example", "A") == Found((), NEGATIVE, missing=True)


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a", b"a.", b"a..b", b"x" * 64 + b".example", b"x." * 127 + b"ab"]
)
def test_a_name_that_dns_cannot_have_is_not_asked_for(name: bytes) -> None:
    with Liar(dns_servers.garbage) as liar:
        assert ask(liar.address, name, "A") == Found((), NEGATIVE, missing=True)
        assert liar.queries == []


@pytest.mark.parametrize(
    "name", [b"a\x00b.example", b"\xff\xfe.example", b"a\\b.example", b" .example"]
)
def test_other_bytes_are_part_of_a_name(nsd: Nsd, name: bytes) -> None:
    assert ask(nsd.address, name, "A") == Found((), 300, missing=True)


def test_a_loop_of_aliases_has_failed(nsd: Nsd) -> None:
    with pytest.raises(Failed):
        ask(nsd.address, b"loop1.example", "A")


def test_the_same_question_is_asked_once(nsd: Nsd) -> None:
    resolver = Resolver([nsd.address])
    first = resolver.ask(b"a.example", "A", soon())
    assert resolver.ask(b"A.example.", "A", soon()) is first
    assert resolver.asked == 1


def test_zones_can_be_replaced() -> None:
    with Nsd({"example.": "a A 192.0.2.1"}) as nsd:
        assert ask(nsd.address, b"a.example", "A").records == (bytes((192, 0, 2, 1)),)
        nsd.replace({"example.": "a A 192.0.2.9"})
        assert ask(nsd.address, b"a.example", "A").records == (bytes((192, 0, 2, 9)),)


# --- servers that lie -----------------------------------------------------------------------------


def reply(change: Callable[[dns.message.QueryMessage], None]) -> Behaviour:
    def behave(query: dns.message.Message, tcp: bool) -> bytes:
        response = dns.message.make_response(query, recursion_available=True)
        assert isinstance(response, dns.message.QueryMessage)
        change(response)
        return response.to_wire(max_size=65535)

    return behave


def add(*lines: str) -> Callable[[dns.message.QueryMessage], None]:
    return lambda response: response.answer.extend(dns_servers.rrset(line) for line in lines)


def no_recursion(response: dns.message.QueryMessage) -> None:
    response.flags &= ~dns.flags.RA
    response.authority.append(dns.rrset.from_text("example.", 60, "IN", "NS", "ns.example."))


def missing_and_there(response: dns.message.QueryMessage) -> None:
    response.set_rcode(dns.rcode.NXDOMAIN)
    add("a.example. 60 A 192.0.2.1")(response)


def flood(response: dns.message.QueryMessage) -> None:
    numbers = (f"10.0.{number >> 8}.{number & 255}" for number in range(RECORDS + 1))
    add("a.example. 60 A " + " | ".join(numbers))(response)


LIES = {
    "SERVFAIL": (dns_servers.says(dns.rcode.SERVFAIL), "SERVFAIL"),
    "REFUSED": (dns_servers.says(dns.rcode.REFUSED), "REFUSED"),
    "YXDOMAIN": (dns_servers.says(dns.rcode.YXDOMAIN), "YXDOMAIN"),
    "garbage": (dns_servers.garbage, "no sense"),
    "wrong id": (dns_servers.wrong_id, "no sense"),
    "another name": (reply(add("b.example. 60 A 192.0.2.1")), "another name"),
    "besides": (
        reply(add("a.example. 60 A 192.0.2.1", "b.example. 60 A 192.0.2.1")),
        "another name",
    ),
    "loop": (
        reply(add("a.example. 60 CNAME b.example.", "b.example. 60 CNAME a.example.")),
        "loop of CNAMEs",
    ),
    "flood": (reply(flood), f"more than {RECORDS} records"),
    "no recursion": (reply(no_recursion), "does not resolve"),
    "both": (reply(missing_and_there), "does not exist"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_has_failed(lie: str) -> None:
    behaviour, why = LIES[lie]
    with Liar(behaviour) as liar:
        resolver = Resolver([liar.address], 20)
        for _again in range(2):
            with pytest.raises(Failed, match=f"A a.example: .*{why}"):
                resolver.ask(b"a.example", "A", soon())
        # Each server is asked twice, and the failure is kept.
        assert resolver.asked == 2


def test_a_port_that_nobody_listens_on() -> None:
    resolver = Resolver([f"{HOST}:{free_port()}"], 20)
    with pytest.raises(Failed, match=r"A a.example: Connection refused"):
        resolver.ask(b"a.example", "A", soon())


def test_an_answer_of_a_few_bytes() -> None:
    with Liar(lambda query, tcp: b"\x00" * 5) as liar, pytest.raises(Failed, match="no sense"):
        ask(liar.address, b"a.example", "A")


def test_a_connection_that_ends_amid_an_answer() -> None:
    with Liar(dns_servers.truncated) as liar:
        liar.closes = True
        with pytest.raises(Failed, match=r"A a.example: closed"):
            ask(liar.address, b"a.example", "A")


def test_silence_ends_in_time() -> None:
    with Liar(dns_servers.silent) as liar:
        resolver = Resolver([liar.address], 0.2)
        with pytest.raises(Failed, match="no answer"):
            resolver.ask(b"a.example", "A", soon())
        assert [tcp for _name, _kind, tcp in liar.queries] == [False, False]


@pytest.mark.parametrize("drips", [False, True])
def test_an_answer_that_does_not_end_by_tcp_ends_in_time(drips: bool) -> None:
    with Liar(lambda query, tcp: None if tcp else dns_servers.truncated(query, tcp)) as liar:
        liar.drips = drips
        with pytest.raises(Failed, match="no answer"):
            ask(liar.address, b"a.example", "A", 0.4)
        assert {tcp for _name, _kind, tcp in liar.queries} == {False, True}


def test_a_slow_answer_comes_too_late_or_not() -> None:
    true = answering(lambda name, kind: [f"{name} 60 A 192.0.2.1"])
    with Liar(true, delay=3600) as liar, pytest.raises(Failed, match="no answer"):
        ask(liar.address, b"a.example", "A", 0.2)
    with Liar(true, delay=0.1) as liar:
        assert ask(liar.address, b"a.example", "A", 60).ttl == 60


def test_the_deadline_ends_what_a_server_would_take_longer_for() -> None:
    with Liar(dns_servers.silent) as liar:
        resolver = Resolver([liar.address], 3600)
        with pytest.raises(Failed, match="no answer"):
            resolver.ask(b"a.example", "A", time.monotonic() + 0.2)
        # The next domain has time of its own, so it is asked for again.
        liar.behaviour = answering(lambda name, kind: [f"{name} 60 A 192.0.2.1"])
        assert resolver.ask(b"a.example", "A", soon()).records == (bytes((192, 0, 2, 1)),)


def test_after_the_deadline_nobody_is_asked() -> None:
    with Liar(dns_servers.garbage) as liar:
        with pytest.raises(Failed, match="no time left"):
            Resolver([liar.address]).ask(b"a.example", "A", time.monotonic())
        assert liar.queries == []


def test_the_next_server_is_asked_and_stays_the_first(nsd: Nsd) -> None:
    with Liar(dns_servers.says(dns.rcode.SERVFAIL)) as liar:
        resolver = Resolver([liar.address, nsd.address])
        for name in (b"a.example", b"six.example", b"txt.example"):
            resolver.ask(name, "TXT", soon())
        assert len(liar.queries) == 1


def test_what_is_forged_by_udp_is_asked_by_tcp() -> None:
    true = answering(lambda name, kind: [f"{name} 60 A 192.0.2.1"])
    with Liar(lambda query, tcp: (true if tcp else dns_servers.wrong_id)(query, tcp)) as liar:
        found = ask(liar.address, b"a.example", "A")
        assert found.records == (bytes((192, 0, 2, 1)),)
        assert [tcp for _name, _kind, tcp in liar.queries] == [False, True]


def test_what_is_truncated_by_tcp_too_has_failed() -> None:
    with Liar(dns_servers.truncated) as liar, pytest.raises(Failed, match="no sense: Truncated"):
        ask(liar.address, b"a.example", "A")


def test_a_name_is_shown_escaped() -> None:
    with (
        Liar(dns_servers.says(dns.rcode.SERVFAIL)) as liar,
        pytest.raises(Failed, match=r"A \\x1b\[2j\.example: SERVFAIL"),
    ):
        ask(liar.address, b"\x1b[2J.example", "A")


# --- settings, domains ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("fe80::1%lo", ("fe80::1%lo", 53)),
    ],
)
def test_a_server(text: str, expected: tuple[str, int]) -> None:
    assert server(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "ns.example", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:+5",
     "[192.0.2.1]", "[::1", "[::1]5", "[::1]:", "192.0.2.1:53:53", ":53", "192.0.2.1:\u0661"],
)  # fmt: skip
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(ValueError, match="no "):
        server(text)


def test_the_servers_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n")
    assert questions.of_system(path) == [("192.0.2.1", 53), ("2001:db8::1", 53)]


@pytest.mark.parametrize("text", [None, "", "search example\n"])
def test_a_system_without_servers(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="no name server"):
        questions.of_system(path)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (b"Example.COM", b"example.com"),
        (b"example.com.", b"example.com"),
        (b"_x.a-b.example", b"_x.a-b.example"),
        ("b\u00fccher.example".encode(), b"xn--bcher-kva.example"),
        ("B\u00dcCHER\u3002example".encode(), b"xn--bcher-kva.example"),
        (b"xn--bcher-kva.example", b"xn--bcher-kva.example"),
        (b".".join([b"a" * 61] * 4) + b".abcd", b".".join([b"a" * 61] * 4) + b".abcd"),
    ],
)
def test_a_domain(domain: bytes, expected: bytes) -> None:
    assert domain_name(domain) == expected


@pytest.mark.parametrize(
    "domain",
    [
        b"", b".", b"..", b"localhost", b"localhost.", b".example", b"a..example", b"example.com..",
        b"[192.0.2.1]", b"[IPv6:2001:db8::1]", b"192.0.2.1", b"2001:db8::1", b"a b.example",
        b"a\x00.example", b"a\n.example", b"a\\.example", b"a@b.example", b"\xff.example",
        b"x" * 64 + b".example", b"a." * 127 + b"ab", b"a" * 100000, b"\xc3\xbc" * 50000,
        "stra\u00dfe.example".encode(), "\u00fc.".encode() * 100,
        ("\u00fc" * 60).encode() + b".example",
        "\u00fc".encode(), "\u202e.example".encode(), "\u00fc..example".encode(),
    ],
)  # fmt: skip
def test_what_is_no_domain(domain: bytes) -> None:
    assert domain_name(domain) is None
