"""Patterns: what operators may write, and that it matches what it says, against a matcher written
from the manual alone.
"""

import ipaddress
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from greycheck import normalise, rule_keys
from greycheck.envelope import Envelope
from greycheck.rules import patterns
from greycheck.rules.patterns import parse
from greycheck.rules.postgrey import postgrey_client, postgrey_recipient

# --- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("name:Mail.Example.COM.", "name:mail.example.com"),
        ("NAME:.example.com", "name:.example.com"),
        ("helo:[192.0.2.7]", "helo:[192.0.2.7]"),
        ("helo:a\\x20b", "helo:a\\x20b"),
        ("from:Alice@Example.ORG.", "from:alice@example.org"),
        ("from:<alice@example.org>", "from:alice@example.org"),
        ("from:alice@", "from:alice@"),
        ("from:example.org", "from:example.org"),
        ("from:.Example.org.", "from:.example.org"),
        ("from:<>", "from:<>"),
        ("to:<>", "to:<>"),
        ("to:bob+news@example.net", "to:bob+news@example.net"),
        ("to:john\\x20doe@example.net", "to:john\\x20doe@example.net"),
        ("to:\\xff@example.net", "to:\\xff@example.net"),
        ("to:a@b@example.net", "to:a@b@example.net"),
        ("to:/G=J/@example.net", "to:\\x2fG=J/@example.net".lower()),
        ("to:\\x2a@example.net", "to:\\x2a@example.net"),
        ("to:cost$@example.net", "to:cost$@example.net"),
        ("helo:cost\\x24", "helo:cost\\x24"),
        (
            "FROM:John@Foodomain.net TO:<joe@joedomain.net>",
            "from:john@foodomain.net to:joe@joedomain.net",
        ),
        ("::ffff:192.0.2.0/120 to:.Example.net", "192.0.2.0/24 to:.example.net"),
        ("fe80::/10 to:<>", "fe80::/10 to:<>"),
        ("name:.x to:b@", "name:.x to:b@"),
        ("helo:x to:b@", "helo:x to:b@"),
    ],
)
def test_a_pattern_is_kept_in_one_spelling(written: str, text: str) -> None:
    assert parse(written).text == text
    assert parse(text) == parse(written)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("64:ff9b::192.0.2.33", "192.0.2.33"),
        ("64:ff9b::192.0.2.0/120", "192.0.2.0/24"),
        ("64:ff9b:1::192.0.2.0/120", "192.0.2.0/24"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45"),
        ("2001::/16", "2001::/16"),
        ("64::/16", "64::/16"),
        ("64:ff9b:1::/48", "64:ff9b:1::/48"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_of_addresses_that_stand_for_ipv4_is_the_ipv4_network(
    written: str, text: str
) -> None:
    assert parse(written).text == text
    assert parse(text).key == parse(written).key


@pytest.mark.parametrize(
    "written", ["64:ff9b::/96", "64:ff9b::/64", "2001::/32", "2001:0:1::/48", "::ffff:0:0/64"]
)
def test_a_network_whose_clients_are_ipv4_here_says_so(written: str) -> None:
    with pytest.raises(ValueError, match=r"IPv4 here: write the .*IPv4"):
        parse(written)
    assert "is that one" not in parse("64:ff9b:2::/48").note
    assert "are that one here" in parse("64:ff9b:1::/48").note


def test_a_senders_tag_is_taken_as_it_is_written_and_that_is_said() -> None:
    pattern = parse("from:list-return-1234-bob=example.net@lists.example.org")
    assert pattern.text == "from:list-return-1234-bob=example.net@lists.example.org"
    assert "matches this one address" in pattern.note
    assert (
        "from:list-return-#-bob=example.net@lists.example.org, from:lists.example.org, or the"
        " client's" in pattern.note
    )
    assert parse("from:alice+news@").text == "from:alice+news@"
    assert parse("to:list-return-1234-bob=example.net@example.net").note == ""


def test_other_letters_are_matched_as_they_are_spelt_and_that_is_said() -> None:
    assert "spells it xn--mnchen-3ya.de" in parse("to:anna@münchen.de").note
    assert "spells it .xn--mnchen-3ya.de" in parse("helo:.münchen.de").note
    assert parse("helo:\\xff.de").note == ""


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "empty: write an address"),
        (
            "example.com",
            "Write one of name:example.com, helo:example.com, from:example.com, to:example.com",
        ),
        (".example.com", "it is also what is under it: name:.example.com"),
        ("bob@example.net", "Write from:bob@example.net or to:bob@example.net"),
        ("<>", "the null sender is written from:<>"),
        ("sender:bob", "there is no sender: here; write one of name:bob"),
        ("192.0.2", "not a whole address: write 192.0.2.0/24"),
        ("192.0.2.", "not a whole address: write 192.0.2.0/24"),
        ("10", "not a whole address: write 10.0.0.0/8"),
        ("10.*", "not a whole address: write 10.0.0.0/8"),
        ("256.1", "no address or network"),
        ("192.0.2.1.1", "no address or network"),
        ("2001:db8:", "no address or network"),
        ("192.0.2.7/24", "the network is 192.0.2.0/24; the address alone is 192.0.2.7"),
        ("2001:db8::1/32", "the network is 2001:db8::/32; the address alone is 2001:db8::1"),
        ("::ffff:192.0.2.7/120", "the network is 192.0.2.0/24"),
        ("192.0.2.0/33", "/33 is no prefix length: write a whole number from 0 to 32"),
        ("192.0.2.0/", "/ is no prefix length"),
        ("2001:db8::/129", "a whole number from 0 to 128"),
        ("192.0.2.0/255.255.255.0", "write /24"),
        ("::ffff:0:0/90", "write the IPv4 network"),
        ("0.0.0.0", "no client's address; all addresses are 0.0.0.0/0"),
        ("::", "no client's address; all addresses are ::/0"),
        ("*", "all addresses are 0.0.0.0/0 and ::/0"),
        ("*.example.com", "write name:.example.com for the domain and what is under it"),
        ("name:*.example.com", "write name:.example.com"),
        ("from:*@example.com", "write from:example.com;"),
        ("from:bob@*", "write from:bob@;"),
        ("from:*", "write from:.example.com"),
        ("to:b*b@example.com", "a star itself is \\x2a"),
        ("to:*.*", "write to:.example.com"),
        ("/example/", "regular expressions do not count"),
        ("name:^mail", "regular expressions do not count"),
        ("to:bob@example.net$", "regular expressions do not count"),
        ("helo:mail\\d", "a backslash stands before xNN only"),
        ("name:a b", "write \\x20"),
        ("to:bob@example.net\t", "write \\x09"),
        ("to:\udcff@example.net", "write \\xff"),
        ("to:a\0b", "holds a NUL"),
        ("to:a\\x00b", "holds a NUL"),
        ("to:a\\x0ab", "holds a NUL or a line's end"),
        ('to:"john"@example.net', "write \\x22"),
        ("to:a<b@example.net", "write \\x3c"),
        ("from:", "the null sender is written from:<>"),
        ("to:", "write what to is to match"),
        ("name:.", "write what name is to match"),
        ("name:.a..b", "two dots in a row"),
        ("to:.a.b.c.d.e.f.g", "write to:.b.c.d.e.f.g, or the whole name"),
        ("name:.a.b.c.d.e.f.g", "only the 6 nearest the root"),
        ("name:" + 256 * "a", "longer than 255 bytes"),
        ("to:" + 900 * "a", "longer than 899 bytes"),
        ("name:192.0.2.7", "that is an address, not a name: write 192.0.2.7"),
        ("name:a@b", "no host's name holds @"),
        ("name:Unknown", "no rule by name matches one"),
        ("[2001:db8::]/48", "brackets are no part of it: write 2001:db8::/48"),
        ("@example.org", "Write from:example.org or to:example.org for all of the domain"),
        ("a@example.org", "Write from:a@example.org or to:a@example.org"),
        ("name:münchen.de", "write name:xn--mnchen-3ya.de"),
        ("name:\\xff.de", "names in DNS are ASCII"),
        ("from:@example.org", "the whole domain is from:example.org"),
        ("from:@", "no user before the @"),
        ("from:alice@.", "no domain after the @; the user at any domain is from:alice@"),
        (
            "from:alice@.example.org",
            "at one domain (from:alice@example.org) or at any (from:alice@)",
        ),
    ],
)
def test_what_can_never_match_is_refused_with_what_to_write(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse(written)


# --- against a matcher of its own -----------------------------------------------------------------

LABELS = st.sampled_from(["a", "b", "com"])
DOMAINS = st.lists(LABELS, min_size=1, max_size=8).map(".".join)
LOCALS = st.sampled_from(["u", "v", "u+x", "bounce-12345", "a", "a@b", "a.b"])
ADDRESSES = st.one_of(st.just(""), LOCALS, st.builds("{}@{}".format, LOCALS, DOMAINS))
IPV4 = st.sampled_from([0, 1, 2, 0x80, 0xFF]).map(
    lambda low: ipaddress.IPv4Address(0xC0000200 | low)
)
IPV6 = st.sampled_from([1, 2, 1 << 64, 0xFFFF << 32]).map(
    lambda low: ipaddress.IPv6Address(0x20010DB8 << 96 | low)
)
MAPPED = IPV4.map(lambda address: ipaddress.IPv6Address(f"::ffff:{address}"))
CLIENTS = st.one_of(IPV4, IPV6, MAPPED).map(str)
HOSTS = st.one_of(st.just(""), DOMAINS)


def spelt(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """TEXT in a spelling that means the same."""
    return st.builds(
        lambda text, upper, dot: (text.upper() if upper else text) + dot,
        text,
        st.booleans(),
        st.sampled_from(["", "."]),
    )


def network(client: str, prefix: int) -> str:
    bits = ipaddress.ip_address(client).max_prefixlen
    return str(ipaddress.ip_network(f"{client}/{min(prefix, bits)}", strict=False))


NETWORKS = st.builds(network, CLIENTS, st.integers(0, 128))
MAIL_PATTERNS = st.one_of(
    st.just("<>"),
    DOMAINS,
    DOMAINS.map(".{}".format),
    LOCALS.map("{}@".format),
    st.builds("{}@{}".format, LOCALS, DOMAINS),
)
NAME_PATTERNS = st.one_of(DOMAINS, DOMAINS.map(".{}".format))
PATTERNS = st.one_of(
    NETWORKS,
    st.builds("{}:{}".format, st.sampled_from(["from", "to"]), MAIL_PATTERNS),
    st.builds("{}:{}".format, st.sampled_from(["name", "helo"]), NAME_PATTERNS),
)
ENVELOPES = st.builds(
    lambda client, sender, recipient, name, helo: Envelope(
        "test",
        normalise.client_address(client.encode()),
        sender.encode(),
        recipient.encode(),
        name=name.encode(),
        helo=helo.encode(),
    ),
    CLIENTS,
    spelt(ADDRESSES),
    spelt(ADDRESSES),
    spelt(HOSTS),
    spelt(HOSTS),
)


def key_set(envelope: Envelope) -> list[bytes]:
    written = normalise.mail_address(envelope.sender)
    return rule_keys.keys(
        envelope,
        normalise.fold_sender(written),
        normalise.mail_address(envelope.recipient),
        written,
    )


def folded(address: str) -> str:
    """What greylisting makes of a sender; of the tags used here it knows two."""
    return re.sub(r"^(u)\+x|^(bounce)-12345", lambda found: found[1] or found[2] + "-#", address)


def matches(written: str, envelope: Envelope) -> bool:
    """Whether the manual's words say that WRITTEN matches ENVELOPE."""
    field, _, value = written.partition(":")
    if field == "to":
        return matches_address(value, as_read(envelope.recipient))
    if field == "from":
        sender = as_read(envelope.sender)
        return matches_address(value, sender) or (
            "@" in sender and matches_address(value, folded(sender))
        )
    if field in ("name", "helo"):
        host = (envelope.name if field == "name" else envelope.helo).decode().lower().rstrip(".")
        return host != "" and matches_domain(value, host)
    net, client = ipaddress.ip_network(written), ipaddress.ip_address(envelope.client or "")
    if (
        isinstance(net, ipaddress.IPv6Network)
        and (mapped := net.network_address.ipv4_mapped)
        and net.prefixlen >= 96
    ):
        net = ipaddress.ip_network(f"{mapped}/{net.prefixlen - 96}")
    return client.version == net.version and client in net


def as_read(address: bytes) -> str:
    text = address.decode().lower()
    return text.rstrip(".") if "@" in text else text


def matches_address(value: str, address: str) -> bool:
    if value == "<>":
        return address == ""
    local, at, domain = address.rpartition("@")
    if value.endswith("@"):
        return address == value[:-1] if not at else local == value[:-1]
    if "@" in value:
        return address == value
    # An address without a domain is all that it is: to:postmaster matches it as a domain of that
    # name would.
    return matches_domain(value, domain) if at else address == value


def matches_domain(value: str, domain: str) -> bool:
    if value.startswith("."):
        return domain == value[1:] or domain.endswith(value)
    return domain == value


def rank(written: str) -> tuple[int, ...]:
    """How early WRITTEN decides, by the manual's words: the lowest first."""
    field, _, value = written.partition(":")
    kind = ["to", "from", "", "name", "helo"].index(
        field if field in ("to", "from", "name", "helo") else ""
    )
    if not kind - 2:
        net = ipaddress.ip_network(written)
        mapped = (
            isinstance(net, ipaddress.IPv6Network)
            and net.network_address.ipv4_mapped
            and net.prefixlen >= 96
        )
        return kind, -(net.prefixlen - 96 if mapped else net.prefixlen)
    if value.startswith("."):
        return kind, 3, -value.count(".")
    return kind, 1 if value.endswith("@") else 2 if "@" not in value else 0


def usable(written: str) -> patterns.Pattern | None:
    try:
        return parse(written)
    except ValueError:
        return None


@given(PATTERNS, st.booleans(), ENVELOPES)
@example("from:.com", False, Envelope("test", "192.0.2.1", b"u@a.com", b""))
def test_a_pattern_matches_exactly_what_it_says(
    written: str, upper: bool, envelope: Envelope
) -> None:
    assume(envelope.client is not None)
    pattern = usable(written.upper() if upper else written)
    if pattern is None:
        assert (written.count(".") > rule_keys.DOMAINS and ":." in written) or "::ffff" in written
        return
    assert (pattern.key in key_set(envelope)) == matches(written, envelope)


@given(st.lists(PATTERNS, min_size=2, max_size=12), ENVELOPES)
def test_of_patterns_that_match_the_most_specific_one_decides(
    written: list[str], envelope: Envelope
) -> None:
    assume(envelope.client is not None)
    by_key = {pattern.key: text for text in written if (pattern := usable(text))}
    deciding = next((by_key[key] for key in key_set(envelope) if key in by_key), None)
    expected = min(
        (text for text in by_key.values() if matches(text, envelope)), key=rank, default=None
    )
    assert (deciding and rank(deciding)) == (expected and rank(expected))


@given(PATTERNS, PATTERNS, ENVELOPES)
def test_what_is_broader_matches_all_that_a_pattern_matches_and_decides_later(
    one: str, other: str, envelope: Envelope
) -> None:
    assume(envelope.client is not None)
    first, second = usable(one), usable(other)
    assume(first is not None and second is not None)
    assert first
    assert second
    if second.key in patterns.broader(first):
        keys = key_set(envelope)
        assert first.key not in keys or keys.index(first.key) < keys.index(second.key)


def test_what_is_broader_comes_in_the_order_in_which_it_decides() -> None:
    def texts(written: str) -> list[bytes]:
        return [key.partition(b"\0")[2] for key in patterns.broader(parse(written))]

    assert texts("to:bob@example.net") == [b"bob@", b"example.net", b".example.net", b".net"]
    assert texts("to:example.net") == [b".example.net", b".net"]
    assert texts("name:.example.net") == [b".net"]
    assert texts("to:bob@") == texts("from:<>") == texts("name:.net") == texts("0.0.0.0/0") == []
    assert texts("192.0.0.0/2") == [b"32/1:1", b"32/0:0"]
    assert patterns.broader(patterns.expectation("bob@example.net")) == []


@given(st.binary(max_size=40), st.sampled_from(["from:", "to:", "helo:"]))
def test_any_address_of_the_log_can_be_written_and_reads_as_itself(
    address: bytes, field: str
) -> None:
    written = field + "".join(f"\\x{byte:02x}" for byte in address)
    pattern = usable(written)
    assume(pattern is not None)
    assert pattern is not None
    again = parse(pattern.text)
    assert (again.key, again.text) == (pattern.key, pattern.text)
    assert pattern.text.isprintable()
    assert " " not in pattern.text


@given(st.text(max_size=30), st.sampled_from(["", "from:", "to:", "name:", "helo:"]))
def test_any_text_is_a_pattern_or_refused(text: str, field: str) -> None:
    pattern = usable(field + text)
    if pattern:
        assert parse(pattern.text).key == pattern.key


# --- expectations ---------------------------------------------------------------------------------


def test_an_expectation_is_for_a_recipient_and_perhaps_a_domain() -> None:
    assert patterns.expectation("Bob@Example.net").text == "to:bob@example.net"
    found = patterns.expectation("to:bob@example.net", "Example.com")
    assert (found.kind, found.text) == (rule_keys.EXPECT, "to:bob@example.net from:.example.com")
    assert found.key == rule_keys.expectation_key(b"bob@example.net", b".example.com")
    assert patterns.expectation("to:bob@example.net", "from:.example.com") == found
    assert found.key in rule_keys.expectation_keys(b"x@mail.example.com", b"bob@example.net")


@pytest.mark.parametrize(
    ("recipient", "domain", "reason"),
    [
        ("bob@", None, "write the whole address"),
        ("example.net", None, "write the whole address"),
        ("bob@example.net", "alice@example.org", "write the sender's domain alone: example.org"),
        ("bob@example.net", "*.example.org", "write from:.example.com"),
        ("bob@example.net", "", "write what from is to match|null sender"),
    ],
)
def test_an_expectation_that_can_never_match_is_refused(
    recipient: str, domain: str | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        patterns.expectation(recipient, domain)


# --- postgrey -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text", "note"),
    [
        ("southwest.com", "name:.southwest.com", ""),
        (".example.com", "name:.example.com", "example.com itself too"),
        ("66.216.126.174", "66.216.126.174", ""),
        ("195.235.39", "195.235.39.0/24", ""),
        ("10", "10.0.0.0/8", ""),
        ("192.0.2.0/24", "192.0.2.0/24", ""),
        ("192.0.2.7/32", "192.0.2.7", ""),
        ("192.0.2.7/16", "192.0.0.0/16", "the network of 192.0.2.7/16"),
        ("2001:db8::1", "2001:db8::1", ""),
        ("2001:db8::/32", "2001:db8::/32", ""),
        ("2001:db8:1", "2001:db8:1::/48", "begin with 2001:db8:1"),
        ("2001:db8:1:", "2001:db8:1::/48", "begin with 2001:db8:1:"),
        (r"/\.example\.com$/", "name:.example.com", "example.com itself too"),
        (r"/^.*\.example\.com$/", "name:.example.com", "example.com itself too"),
        (r"/(^|\.)example\.com$/", "name:.example.com", ""),
        (r"/^(?:.*\.)?Example\.com$/", "name:.example.com", ""),
        (r"/.example.com$/", "name:.example.com", "example.com itself too; its dots"),
        (r"/^mail\.example\.com$/", "name:mail.example.com", ""),
        (r"/^odk.fdv.uni-lj.si$/", "name:odk.fdv.uni-lj.si", "its dots"),
    ],
)
def test_a_line_of_whitelist_clients_becomes_a_pattern(line: str, text: str, note: str) -> None:
    pattern = postgrey_client(line)
    assert pattern.text == text
    assert pattern.note.startswith(note) if not note else note in pattern.note
    assert bool(pattern.note) == bool(note)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            r"/example\.com$/",
            "so that badexample.com matches; where all of the domain is meant: greycheck allow"
            " name:.example.com",
        ),
        (
            r"/^mail\d*\.example\.com$/",
            "more than a domain; where all of the domain is meant: greycheck allow"
            " name:.example.com",
        ),
        (r"/^mta[12].siol.net$/", "a regular expression that is more than a domain"),
        (r"/\.example\.com/", "its end is not tied to the name's end"),
        ("//", "its end is not tied"),
        ("unknown", "calls a client without a name"),
        ("/^unknown$/", "calls a client without a name"),
        ("[2001:db8::]/48", "brackets are no part of it: write 2001:db8::/48"),
        ("[192.0.2.7]", "brackets are no part of it: write 192.0.2.7"),
        ("@example.org", "Write from:example.org or to:example.org"),
        ("two words", "more than one word"),
        ("1.2.3.0/0", "no network of all addresses"),
        ("1.2.3.999", "no address or network"),
        ("999", "no address or network"),
        ("2001:db8::", "of no certain length"),
        ("2001:db8:x", "no address or network"),
        ("2001:::", "of no certain length"),
        ("a:b::c:d:", "no address or network"),
        ("a/b", "no host's name holds /"),
        (".", "no address or network"),
        ("a.b.c.d.e.f.g", "deeper than 6 names"),
    ],
)
def test_a_line_of_whitelist_clients_that_is_no_pattern_is_refused_with_the_reason(
    line: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        postgrey_client(line)


@pytest.mark.parametrize(
    ("line", "text", "note"),
    [
        ("postmaster@", "to:postmaster@", ""),
        ("bob@example.net", "to:bob@example.net", ""),
        ("example.net", "to:.example.net", ""),
        (r"/@example\.net$/", "to:example.net", ""),
        (r"/^.*\@example\.net$/", "to:example.net", ""),
        (r"/[@.]example\.net$/", "to:.example.net", ""),
        (r"/\.example\.net$/", "to:.example.net", "example.net itself too"),
        (r"/.example.net$/", "to:.example.net", "itself too; its dots"),
        (r"/^bob@example\.net$/", "to:bob@example.net", ""),
        (r"/^bob@/", "to:bob@", ""),
        (r"/^b.b\@.*$/", "to:b.b@", "its dots"),
    ],
)
def test_a_line_of_whitelist_recipients_becomes_a_pattern(line: str, text: str, note: str) -> None:
    pattern = postgrey_recipient(line)
    assert pattern.text == text
    assert note in pattern.note
    assert bool(pattern.note) == bool(note)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("@example.net", "the whole domain is to:example.net"),
        ("bob example.net", "more than one word"),
        (r"/example\.net$/", "greycheck allow to:.example.net"),
        (r"/^bob.*@example\.net$/", "greycheck allow to:.example.net"),
        (r"/^bob.*@/", "more than a domain"),
        (r"/@bob@example\.net$/", "more than a domain"),
        (r"/^example\.net$/", "more than a domain"),
        ("/bob/", "its end is not tied"),
    ],
)
def test_a_line_of_whitelist_recipients_that_is_no_pattern_is_refused_with_the_reason(
    line: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        postgrey_recipient(line)


@given(
    HOSTS.filter(bool),
    st.sampled_from(["a.com", r"/(^|\.)a\.com$/", r"/^(.+\.)?b\.com$/", r"/^a\.b$/", "com", "b.a"]),
)
def test_what_postgrey_matches_a_mapped_line_matches(host: str, line: str) -> None:
    regex = line[1:-1] if line.startswith("/") else rf"(?:^|\.){re.escape(line)}$"
    envelope = Envelope("test", "192.0.2.1", b"", b"", name=host.encode())
    assert (postgrey_client(line).key in key_set(envelope)) == bool(
        re.search(regex, host, re.IGNORECASE)
    )


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("to:b@x from:a@x", "the recipient comes last: write from:a@x to:b@x"),
        ("to:a@x to:b@x", "the first pattern is no to:"),
        ("from:a@x from:b@x", "the second pattern of a pair is the recipient's"),
        ("from:a@x 192.0.2.1", "the second pattern of a pair is the recipient's"),
        ("from:a@x to:", "empty"),
        ("192.0.2.1/24 to:b@x", "has bits beyond the prefix"),
        ("from:john smith@x", "has a blank"),
        ("from:a@x  to:b@x", "has a blank"),
        ("from:a@x to:b@x to:c@x", "has a blank"),
        ("someone to:b@x", "has a blank"),
    ],
)
def test_what_is_no_pair_is_refused_with_what_to_write(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse(written)


def test_a_pair_has_the_key_of_both_its_parts_in_their_order() -> None:
    pair, other = parse("from:a@x to:b@x"), parse("from:b@x to:a@x")
    assert pair.key == rule_keys.pair_key(b"sender\0a@x", b"b@x")
    assert pair.key != other.key
    assert (pair.kind, [part.text for part in pair.parts or ()]) == (
        "sender",
        ["from:a@x", "to:b@x"],
    )


def test_a_pair_says_what_both_its_parts_say() -> None:
    note = parse("name:x to:b@bücher.example").note
    assert "xn--bcher-kva.example" in note
    assert parse("from:b@bücher.example to:b@bücher.example").note == f"{note}; {note}"


def test_what_is_broader_than_a_pair_comes_in_the_order_in_which_it_decides() -> None:
    first = [b"sender\0a@x.y", b"sender\0a@", b"sender\0x.y", b"sender\0.x.y", b"sender\0.y"]
    expected = [rule_keys.pair_key(key, to) for to in (b"b.c", b".b.c", b".c") for key in first]
    assert patterns.broader(parse("from:a@x.y to:b.c")) == expected[1:]


@pytest.mark.parametrize(
    ("narrow", "wide", "is_within"),
    [
        ("from:a@x to:b@y", "from:a@x to:y", True),
        ("from:a@x to:b@y", "from:x to:b@y", True),
        ("from:a@x to:b@y", "from:x to:y", True),
        ("from:a@x to:b@y", "from:a@x to:b@y", False),
        ("from:a@x to:y", "from:x to:b@y", False),
        ("from:a@x to:b@y", "from:a@x", True),
        ("from:a@x to:b@y", "from:.x", True),
        ("from:a@x to:b@y", "to:y", True),
        ("from:a@x to:b@y", "from:b@y", False),
        ("from:a@x", "from:a@x to:b@y", False),
        ("192.0.2.1 to:b@y", "192.0.2.0/24", True),
        ("192.0.2.1", "192.0.2.0/24", True),
    ],
)
def test_a_pair_is_within_what_one_of_its_parts_is_within(
    narrow: str, wide: str, is_within: bool
) -> None:
    assert patterns.is_within(parse(narrow), parse(wide)) == is_within


@pytest.mark.parametrize(
    ("written", "reach"),
    [
        ("0.0.0.0/0 to:b@y", ""),
        ("from:.com to:.net", "every domain in .com, to every domain in .net"),
        ("0.0.0.0/0 to:.net", "all IPv4 clients, to every domain in .net"),
    ],
)
def test_a_pair_is_a_large_part_of_all_mail_where_both_its_parts_are(
    written: str, reach: str
) -> None:
    assert patterns.reach(parse(written)) == reach
