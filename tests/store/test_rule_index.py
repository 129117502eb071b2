"""Rules in memory: whatever rules there are and whatever is asked, what they say is what the table would say."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greycheck import patterns, rules
from greycheck.envelope import Envelope, triplet
from greycheck.patterns import Pattern
from greycheck.policy import RuleRow
from greycheck.store.lean import Asked, RuleKeys, digest
from greycheck.store.rule_index import Row, RuleIndex, Unreadable

NOW = 1_800_000_000

# Few letters, so that rules and envelopes meet; more labels than are looked at, and no label where one should be.
DEEPEST = rules.DOMAINS + 3
LABELS = st.sampled_from(["a", "b", "A", "bounce-7", ""])
NAMES = st.lists(LABELS, min_size=1, max_size=DEEPEST).map(".".join)
DOTTED = st.tuples(NAMES, st.sampled_from(["", ".", ".."])).map("".join)
LONG = st.sampled_from(["a." * 126 + "bbb", "a." * 127 + "bb", "a." * 128 + "b"])
HOSTS = st.one_of(st.just(""), DOTTED, LONG, st.sampled_from(["a@b", "b.a@b", "a@"]))
LOCALS = st.sampled_from(["a", "b", "a+b", "a@b", ".a", ".a.b", "", "A", "\xff"])
ADDRESSES = st.one_of(st.just(""), LOCALS, DOTTED, st.tuples(LOCALS, st.one_of(st.just(""), DOTTED)).map("@".join))
CLIENTS = st.sampled_from(["192.0.2.1", "192.0.2.200", "10.0.0.1", "2001:db8::1", "2001:db8:0:1::5", "::1", "64::"])


@st.composite
def networks(draw: st.DrawFn) -> str:
    client = draw(CLIENTS)
    bits = 128 if ":" in client else 32
    # Most prefix lengths have nothing to meet: those near a bit that differs are drawn as often as all others.
    prefix = draw(st.one_of(st.integers(0, bits), st.sampled_from([0, 24, 25, 32, 64, bits])))
    return parsed(f"{client}/{min(prefix, bits)}")


def parsed(network: str) -> str:
    """NETWORK without the bits behind its prefix."""

    return str(ipaddress.ip_network(network, strict=False))


PATTERNS = st.one_of(
    networks(),
    st.tuples(st.sampled_from(["name:", "helo:"]), st.sampled_from(["", "."]), DOTTED).map("".join),
    st.tuples(st.sampled_from(["from:", "to:"]), st.sampled_from(["", "."]), ADDRESSES).map("".join),
    st.tuples(st.sampled_from(["from:", "to:"]), LOCALS, st.just("@")).map("".join),
    st.sampled_from(["from:<>", "to:<>", "0.0.0.0/0", "::/0", "name:" + "a." * 127 + "b"]),
    st.sampled_from(["helo:a@b", "helo:.a@b", "helo:a@", "from:b", "from:.b", "from:a@b"]),
)
EXPECTED = st.tuples(ADDRESSES, st.one_of(st.none(), DOTTED))


def row(pattern: Pattern, expires: int | None, action: str = "allow") -> Row:
    return digest(pattern.key), pattern.kind, pattern.text, action, None, expires


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """The rules of a store. What cannot be written down is left out."""
    found: dict[bytes, Row] = {}
    written = draw(st.lists(st.one_of(PATTERNS, EXPECTED), max_size=12))
    for each in written:
        # Of the text of what ends in several dots one is taken away each time.
        if any(part.endswith("..") for part in ([each] if isinstance(each, str) else each) if part):
            continue
        try:
            pattern = patterns.parse(each) if isinstance(each, str) else patterns.expectation(*each)
        except ValueError:
            continue
        expires = draw(st.sampled_from([None, None, NOW - 1, NOW, NOW + 1]))
        action = draw(st.sampled_from(["allow", "greylist", "reject"]))
        found[digest(pattern.key)] = row(pattern, expires, action)
    return list(found.values())


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    sender, recipient, name, helo = (draw(each).encode("latin-1") for each in (ADDRESSES, ADDRESSES, HOSTS, HOSTS))
    return Envelope("smtpextfork", draw(CLIENTS), sender, recipient, name=name, helo=helo)


TAGGED = Envelope("checkenv", "192.0.2.1", b"user+SRS=a=b=a.b=Bounce-5@0a1b2c3d4e5f.x.a.b.c", b"a@a.b")


def asked(envelope: Envelope) -> Asked:
    return Asked(envelope, triplet(envelope, 24, 64))


Said = tuple[list[tuple[object, ...]], tuple[object, ...] | None]


def said(found: tuple[list[RuleRow], RuleRow | None]) -> Said:
    matching, expected = found
    return [values(rule) for rule in matching], values(expected) if expected else None


def values(rule: RuleRow) -> tuple[object, ...]:
    return rule.key, rule.kind, rule.pattern, rule.action, rule.delay


DEEP = Envelope(
    "checkenv", "192.0.2.1", b".a@b.a.b.a.b.a.b", b"a@a.b", name=b"b.a.b.a.b.a.b.", helo=b"a" * (rules.NAME + 1)
)


def of(*written: str) -> list[Row]:
    return [row(patterns.parse(each), None) for each in written]


@given(tables(), envelopes())
@example(of("from:user@", "from:user+srs=a=b=a.b=bounce-5@", "from:user+srs=#=#=a.b=bounce-#@#.x.a.b.c"), TAGGED)
@example(of("from:user@0a1b2c3d4e5f.x.a.b.c", "from:0a1b2c3d4e5f.x.a.b.c", "from:.b.c"), TAGGED)
@example(of("from:.a@", "from:.a@b", "name:.a.b.a.b.a.b", "helo:.a", "from:.b"), DEEP)
@example(of("name:b.a.b.a.b.a.b", "name:.b", "0.0.0.0/0", "192.0.2.0/25", "192.0.2.1", "10.0.0.0/8", "::/0"), DEEP)
@example([row(patterns.expectation("a@a.b", domain), None) for domain in (None, "b", "a.b.a.b.a.b")], DEEP)
def test_memory_says_what_the_table_says(rows: list[Row], envelope: Envelope) -> None:
    wanted = asked(envelope)
    assert said(RuleIndex(rows).find(wanted, NOW)) == said(RuleKeys(wanted).pick(rows, NOW))


@given(envelopes())
@example(TAGGED)
def test_every_key_of_an_envelope_is_found_in_memory(envelope: Envelope) -> None:
    """Each value that is looked up in the table, as a rule of its own, in so far as anybody can write it down."""
    wanted = asked(envelope)
    sender, recipient = wanted.triplet.sender, wanted.triplet.recipient
    rows = {}
    for key in rules.keys(envelope, sender, recipient, wanted.triplet.written):
        kind, _, value = key.partition(b"\0")
        try:
            pattern = patterns.parse(written(kind.decode(), value))
        except ValueError:
            continue
        if pattern.key == key:
            rows[digest(key)] = row(pattern, None)
    found = said(RuleIndex(rows.values()).find(wanted, NOW))
    assert found == said(RuleKeys(wanted).pick(rows.values(), NOW))
    assert {rule[0] for rule in found[0]} == rows.keys()


def written(kind: str, value: bytes) -> str:
    """The pattern that an operator writes for VALUE."""
    if kind == "network":
        bits, prefix, network = patterns.network_parts(value)
        text = (network << (bits - prefix)).to_bytes(bits // 8)

        return f"{ipaddress.ip_address(text)}/{prefix}"
    if not value:
        return f"{patterns.FIELD_OF[kind]}:<>"
    return f"{patterns.FIELD_OF[kind]}:" + "".join(f"\\x{byte:02x}" for byte in value)


def test_no_rules_match_nothing() -> None:
    assert RuleIndex([]).find(asked(DEEP), NOW) == ([], None)


@pytest.mark.parametrize(
    "row",
    [
        (b"another digest", "recipient", "to:a@a.b", "allow", None, None),
        (digest(rules.key("recipient", b"a@a.b")), "recipient", "to:b@a.b", "allow", None, None),
        (digest(rules.key("recipient", b"a@a.b")), "sender", "to:a@a.b", "allow", None, None),
        (digest(rules.key("recipient", b"a@a.b")), "recipient", "to:/a/", "allow", None, None),
        (digest(rules.key("recipient", b"a@a.b")), "country", "country:xx", "allow", None, None),
        (digest(rules.expectation_key(b"a@a.b", b"")), "expect", "nobody", "allow", None, None),
        (digest(rules.expectation_key(b"a@a.b", b"")), "expect", "", "allow", None, None),
    ],
)
def test_what_no_program_of_ours_has_written_is_left_to_the_table(row: Row) -> None:
    with pytest.raises(Unreadable):
        RuleIndex([row])
