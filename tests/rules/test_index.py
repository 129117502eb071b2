"""Rules in memory: whatever rules there are and whatever is asked, what they say is what the table
would say.
"""

import ipaddress
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greycheck import rule_keys
from greycheck.envelope import Envelope, triplet
from greycheck.policy import RuleRow
from greycheck.rules import patterns
from greycheck.rules.index import Row, RuleIndex, Unreadable
from greycheck.rules.patterns import Pattern
from greycheck.store.base import Asked, digest
from greycheck.store.matching import RuleKeys

NOW = 1_800_000_000

# Few letters, so that rules and envelopes meet; more labels than are looked at, and no label where
# one should be.
DEEPEST = rule_keys.DOMAINS + 3
LABELS = st.sampled_from(["a", "b", "A", "bounce-7", ""])
NAMES = st.lists(LABELS, min_size=1, max_size=DEEPEST).map(".".join)
DOTTED = st.tuples(NAMES, st.sampled_from(["", ".", ".."])).map("".join)
LONG = st.sampled_from(["a." * 126 + "bbb", "a." * 127 + "bb", "a." * 128 + "b"])
HOSTS = st.one_of(st.just(""), DOTTED, LONG, st.sampled_from(["a@b", "b.a@b", "a@"]))
LOCALS = st.sampled_from(["a", "b", "a+b", "a@b", ".a", ".a.b", "", "A", "\xff"])
ADDRESSES = st.one_of(
    st.just(""), LOCALS, DOTTED, st.tuples(LOCALS, st.one_of(st.just(""), DOTTED)).map("@".join)
)
CLIENTS = st.sampled_from(
    ["192.0.2.1", "192.0.2.200", "10.0.0.1", "2001:db8::1", "2001:db8:0:1::5", "::1", "64::"]
)


@st.composite
def networks(draw: st.DrawFn) -> str:
    client = draw(CLIENTS)
    bits = 128 if ":" in client else 32
    # Most prefix lengths have nothing to meet: those near a bit that differs are drawn as often as
    # all others.
    prefix = draw(st.one_of(st.integers(0, bits), st.sampled_from([0, 24, 25, 32, 64, bits])))
    return parsed(f"{client}/{min(prefix, bits)}")


def parsed(network: str) -> str:
    """NETWORK without the bits behind its prefix."""

    return str(ipaddress.ip_network(network, strict=False))


PATTERNS = st.one_of(
    networks(),
    st.tuples(st.sampled_from(["name:", "helo:"]), st.sampled_from(["", "."]), DOTTED).map("".join),
    st.tuples(st.sampled_from(["from:", "to:"]), st.sampled_from(["", "."]), ADDRESSES).map(
        "".join
    ),
    st.tuples(st.sampled_from(["from:", "to:"]), LOCALS, st.just("@")).map("".join),
    st.sampled_from(["from:<>", "to:<>", "0.0.0.0/0", "::/0", "name:" + "a." * 127 + "b"]),
    st.sampled_from(["helo:a@b", "helo:.a@b", "helo:a@", "from:b", "from:.b", "from:a@b"]),
)
PAIRS = st.tuples(PATTERNS, st.sampled_from(["", "."]), ADDRESSES).map(
    lambda parts: f"{parts[0]} to:{parts[1]}{parts[2]}"
)
EXPECTED = st.tuples(ADDRESSES, st.one_of(st.none(), DOTTED))


def from_table(rows: Iterable[Row], wanted: Asked) -> "Said":
    """What those who look into the table find there: the marks of pairs are in it."""
    keys = RuleKeys(wanted)
    every = [*rows, *marks(rows)]
    first = {key for batch in keys.of_pairs(every, 7) for key in batch}
    looked_up = {*keys.padded(rule_keys.MOST_KEYS[128]), *first}
    return said(keys.pick((one for one in every if one[0] in looked_up), NOW))


def marks(rows: Iterable[Row]) -> list[Row]:
    found = {}
    for _key, kind, text, *_ in rows:
        pair = None if kind == rule_keys.EXPECT else patterns.parse(text).parts
        if pair:
            key = digest(rule_keys.mark_key(pair[1].value))
            found[key] = (key, "recipient", pair[1].text, rule_keys.PAIRS, None, None)
    return list(found.values())


def row(pattern: Pattern, expires: int | None, action: str = "allow") -> Row:
    return digest(pattern.key), pattern.kind, pattern.text, action, None, expires


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """The rules of a store. What cannot be written down is left out."""
    found: dict[bytes, Row] = {}
    written = draw(st.lists(st.one_of(PATTERNS, PAIRS, EXPECTED), max_size=12))
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
    sender, recipient, name, helo = (
        draw(each).encode("latin-1") for each in (ADDRESSES, ADDRESSES, HOSTS, HOSTS)
    )
    return Envelope("smtpextfork", draw(CLIENTS), sender, recipient, name=name, helo=helo)


TAGGED = Envelope(
    "checkenv", "192.0.2.1", b"user+SRS=a=b=a.b=Bounce-5@0a1b2c3d4e5f.x.a.b.c", b"a@a.b"
)


def asked(envelope: Envelope) -> Asked:
    return Asked(envelope, triplet(envelope, 24, 64))


Said = tuple[list[tuple[object, ...]], tuple[object, ...] | None]


def said(found: tuple[list[RuleRow], RuleRow | None]) -> Said:
    matching, expected = found
    return [values(rule) for rule in matching], values(expected) if expected else None


def values(rule: RuleRow) -> tuple[object, ...]:
    return rule.key, rule.kind, rule.pattern, rule.action, rule.delay


DEEP = Envelope(
    "checkenv",
    "192.0.2.1",
    b".a@b.a.b.a.b.a.b",
    b"a@a.b",
    name=b"b.a.b.a.b.a.b.",
    helo=b"a" * (rule_keys.NAME + 1),
)


def of(*written: str) -> list[Row]:
    return [row(patterns.parse(each), None) for each in written]


@given(tables(), envelopes())
@example(
    of("from:user@", "from:user+srs=a=b=a.b=bounce-5@", "from:user+srs=#=#=a.b=bounce-#@#.x.a.b.c"),
    TAGGED,
)
@example(of("from:user@0a1b2c3d4e5f.x.a.b.c", "from:0a1b2c3d4e5f.x.a.b.c", "from:.b.c"), TAGGED)
@example(of("from:.a@", "from:.a@b", "name:.a.b.a.b.a.b", "helo:.a", "from:.b"), DEEP)
@example(
    of(
        "name:b.a.b.a.b.a.b",
        "name:.b",
        "0.0.0.0/0",
        "192.0.2.0/25",
        "192.0.2.1",
        "10.0.0.0/8",
        "::/0",
    ),
    DEEP,
)
@example(
    of("from:.b to:a@a.b", "192.0.2.1 to:.b", "name:.a.b to:a@", "helo:x to:a@a.b", "to:a@a.b"),
    DEEP,
)
@example(
    [row(patterns.expectation("a@a.b", domain), None) for domain in (None, "b", "a.b.a.b.a.b")],
    DEEP,
)
def test_memory_says_what_the_table_says(rows: list[Row], envelope: Envelope) -> None:
    wanted = asked(envelope)
    every = [*rows, *marks(rows)]
    assert said(RuleIndex(every).find(wanted, NOW)) == from_table(rows, wanted)


@given(tables(), envelopes())
@example([row(patterns.expectation("a@a.b"), None)], TAGGED)
@example(of("0.0.0.0/0 to:a@a.b"), DEEP)
@example([], Envelope("smtpextfork", "192.0.2.1", b"", b"postmaster"))
@example([], Envelope("smtpextfork", "192.0.2.1", b"\xff" * 1000 + b"@x", b".a@.b"))
def test_what_is_released_is_found_in_memory_as_in_the_table(
    rows: list[Row], envelope: Envelope
) -> None:
    wanted = asked(envelope)
    released = row(patterns.release(*wanted.shown), None)
    found = said(RuleIndex([*rows, released]).find(wanted, NOW))
    assert found == from_table([*rows, released], wanted)
    assert found[1]
    assert found[1][0] == released[0], "what was released is used up before what is expected"


@given(envelopes())
@example(TAGGED)
def test_every_key_of_an_envelope_is_found_in_memory(envelope: Envelope) -> None:
    """Each value that is looked up in the table, as a rule of its own, in so far as anybody can
    write it down.
    """
    wanted = asked(envelope)
    sender, recipient = wanted.triplet.sender, wanted.triplet.recipient
    rows = {}
    for key in rule_keys.keys(envelope, sender, recipient, wanted.triplet.written):
        kind, _, value = key.partition(b"\0")
        try:
            pattern = patterns.parse(written(kind.decode(), value))
        except ValueError:
            continue
        if pattern.key == key:
            rows[digest(key)] = row(pattern, None)
    found = said(RuleIndex(rows.values()).find(wanted, NOW))
    assert found == from_table(rows.values(), wanted)
    assert {rule[0] for rule in found[0]} == rows.keys()


@given(envelopes())
@example(TAGGED)
def test_every_pair_of_keys_of_an_envelope_is_found_in_the_order_of_both(
    envelope: Envelope,
) -> None:
    wanted = asked(envelope)
    triplet = wanted.triplet
    recipients = list(dict.fromkeys(rule_keys.address_values(triplet.recipient)))
    first = dict.fromkeys(rule_keys.first_keys(envelope, triplet.sender, triplet.written))
    rows = {}
    # Each key of the first part with one recipient: all with all would take long.
    every = [(number % len(recipients), key) for number, key in enumerate(first)]
    for number, key in sorted(every, key=lambda one: one[0]):
        recipient = recipients[number]
        kind, _, value = key.partition(b"\0")
        texts = written(kind.decode(), value), written("recipient", recipient)
        try:
            pattern = patterns.parse(" ".join(texts))
        except ValueError:
            continue
        if pattern.key == rule_keys.pair_key(key, recipient):
            rows[digest(pattern.key)] = row(pattern, None)
    matching, _expected = RuleIndex(rows.values()).find(wanted, NOW)
    assert list(dict.fromkeys(rule.key for rule in matching)) == list(rows)
    assert (said((matching, None))) == from_table(rows.values(), wanted)


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
        (
            digest(rule_keys.key("recipient", b"a@a.b")),
            "recipient",
            "to:b@a.b",
            "allow",
            None,
            None,
        ),
        (digest(rule_keys.key("recipient", b"a@a.b")), "sender", "to:a@a.b", "allow", None, None),
        (digest(rule_keys.key("recipient", b"a@a.b")), "recipient", "to:/a/", "allow", None, None),
        (
            digest(rule_keys.key("recipient", b"a@a.b")),
            "country",
            "country:xx",
            "allow",
            None,
            None,
        ),
        (
            digest(rule_keys.key("sender", b"a@a.b")),
            "sender",
            "from:a@a.b to:b",
            "allow",
            None,
            None,
        ),
        (digest(rule_keys.expectation_key(b"a@a.b", b"")), "expect", "nobody", "allow", None, None),
        (digest(rule_keys.expectation_key(b"a@a.b", b"")), "expect", "", "allow", None, None),
        (digest(rule_keys.release_key("a@a", "b@b")), "expect", "b from:a@a", "allow", None, None),
    ],
)
def test_what_no_program_of_ours_has_written_is_left_to_the_table(row: Row) -> None:
    with pytest.raises(Unreadable):
        RuleIndex([row])
