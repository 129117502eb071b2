"""Client addresses against the standard library's, mail addresses, and sender folding."""

import ipaddress
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greycheck import folding
from greycheck.folding import BOUNCES
from greycheck.normalise import client_address, client_network, fold_sender, mail_address
from tests.senders import ONE, TWO

STANDS_FOR_IPV4 = [
    ipaddress.IPv6Network(each) for each in ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
]
NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_ipv4(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if (
        isinstance(address, ipaddress.IPv4Address)
        or address.teredo
        or any(address in each for each in STANDS_FOR_IPV4)
    ):
        return True
    return address in NAT64_LOCAL and bool(int(address) & 0xFFFFFF)


def expected(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if isinstance(address, ipaddress.IPv6Address) and is_ipv4(address):
        address = (
            address.teredo[1]
            if address.teredo
            else ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        )
    return None if int(address) == 0 else str(address)


addresses = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.integers(0, 2**32 - 1).map(lambda low: ipaddress.IPv6Address(0xFFFF << 32 | low)),
    st.builds(
        lambda network, low: network[low % network.num_addresses],
        st.sampled_from([*STANDS_FOR_IPV4, NAT64_LOCAL, ipaddress.IPv6Network("2001::/32")]),
        st.integers(0, 2**80),
    ),
    st.lists(st.sampled_from([0, 0, 0, 1, 0xFFFF]), min_size=8, max_size=8).map(
        lambda groups: ipaddress.IPv6Address(":".join(f"{group:x}" for group in groups))
    ),
)


@given(addresses, st.booleans())
def test_every_spelling_of_an_address_is_one_client(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, upper: bool
) -> None:
    for spelling in (str(address), address.exploded):
        text = spelling.upper() if upper else spelling
        assert client_address(text.encode()) == expected(address)


@given(st.text(alphabet="0123456789abcfx:.%- ", max_size=45))
def test_text_is_an_address_exactly_where_the_standard_library_says_so(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if "%" not in text:
            assert client_address(text.encode()) is None
    else:
        without_zone = type(address)(int(address))
        assert client_address(text.encode()) == expected(without_zone)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_address_or_none(text: bytes) -> None:
    client_address(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0.0.0.0",
        b"::",
        b"::ffff:0.0.0.0",
        b"unknown",
        b"192.0.2",
        b"192.0.2.256",
        b"192.0.2.01",
        b"1.2.3.4.5",
    ]
    + [
        b"1::2::3",
        b"1:2:3:4:5:6:7",
        b"1:2:3:4:5:6:7:8::",
        b"1:2:3:4:5:6:7:8:9",
        b"12345::",
        b"::g",
        b"::1.2.3",
        b"1.2.3.4::",
        b":::",
    ],
)
def test_what_is_no_usable_address_is_none(text: bytes) -> None:
    assert client_address(text) is None


def test_a_zone_is_dropped() -> None:
    assert client_address(b"fe80::1%eth0") == "fe80::1"


@given(st.ip_addresses(v=4).filter(int), st.integers(1, 32))
def test_an_ipv4_network_is_what_the_mask_leaves(
    address: ipaddress.IPv4Address, prefix: int
) -> None:
    assert client_network(str(address), prefix, 64) == str(
        ipaddress.ip_network((address, prefix), strict=False)
    )


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (b"64:ff9b::192.0.2.33", "192.0.2.33"),
        (b"64:FF9B::c000:221", "192.0.2.33"),
        (b"64:ff9b:1::c000:221", "192.0.2.33"),
        (b"64:ff9b:1:fffe:1::192.0.2.33", "192.0.2.33"),
        (b"::ffff:0:192.0.2.33", "192.0.2.33"),
        (b"2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45"),
        (
            b"64:ff9b:1:c000:2:2100::",
            "64:ff9b:1:c000:2:2100::",
        ),  # RFC 6052 with a /48: how much of it is the prefix is not known
        (b"64:ff9b::", None),
        (b"2002:c000:221::1", "2002:c000:221::1"),  # 6to4: a network of the address's owner
        (b"fe80::5efe:192.0.2.33", "fe80::5efe:c000:221"),  # ISATAP: one in its site's network
        (b"::192.0.2.33", "::c000:221"),
        (b"::1", "::1"),
        (b"2001:1::1", "2001:1::1"),
        (b"64:ff9b:2::1.2.3.4", "64:ff9b:2::102:304"),
    ],
)
def test_what_stands_for_an_ipv4_client_is_that_client(address: bytes, client: str | None) -> None:
    """Under NAT64 one /64 holds all of IPv4."""
    assert client_address(address) == client


@given(
    st.ip_addresses(v=6).filter(lambda address: int(address) >> 48 != 0 and not is_ipv4(address)),
    st.integers(1, 128),
)
def test_an_ipv6_network_is_what_the_mask_leaves(
    address: ipaddress.IPv6Address, prefix: int
) -> None:
    network = client_network(str(address), 24, prefix)
    assert ipaddress.ip_network(network) == ipaddress.ip_network((address, prefix), strict=False)


def test_a_network_of_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="no client address"):
        client_network("nonsense", 24, 64)


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        (b"John.Doe@Example.COM", b"john.doe@example.com"),
        (b"john@example.com.", b"john@example.com"),
        (b"postmaster", b"postmaster"),
        (b"POSTMASTER.", b"postmaster."),
        (b"", b""),
        (b"a@b@EXAMPLE.com.", b"a@b@example.com"),
        (b"a@example.com..", b"a@example.com."),
        (b"\xff\xc3\x84@Example.com", b"\xff\xc3\x84@example.com"),
    ],
)
def test_case_is_folded_and_the_trailing_dot_goes(address: bytes, normal: bytes) -> None:
    assert mail_address(address) == normal


@pytest.mark.parametrize(
    "senders",
    [
        # VERP: the list's next message.
        [b"list-return-1234-user=dom@host", b"list-return-1235-user=dom@host"],
        [b"list-return-7-user=dom.example@host", b"list-return-10-user=dom.example@host"],
        [b"list-return-7-2024-user=dom.example@host", b"list-return-10-2025-user=dom.example@host"],
        [b"bounces+user=dom.example@host", b"bounces@host"],
        [
            b"bounce+a1b2c3.d4e5f6-user=dom.example@host",
            b"bounce+a9b9c9.d0e0f0-user=dom.example@host",
        ],
        # BATV, both orders, and its relatives.
        [b"prvs=1234abcdef=user@host", b"prvs=9876fedcba=user@host", b"user@host"],
        [b"prvs=user=1234abcdef@host", b"prvs=user=9876fedcba@host", b"user@host"],
        [b"btv1==1234abcdef==user@host", b"btv1==0234abcdef==user@host", b"user@host"],
        [b"msprvs1=17123abcdef=user@host", b"user@host"],
        [b"prvs=1234abcdef=user+tag@host", b"user@host"],
        # SRS.
        [b"srs0=abcd=5x=dom.example=user@forwarder", b"srs0=zz12=6y=dom.example=user@forwarder"],
        [b"srs0+abcd=5x=dom.example=user@forwarder", b"srs0=zz12=6y=dom.example=user@forwarder"],
        [
            b"srs1=hash=first.example==abcd=5x=dom.example=user@second",
            b"srs1=hsah=first.example==zz12=6y=dom.example=user@second",
        ],
        # Details.
        [b"user+detail@host", b"user+another@host", b"user@host"],
        # Bounce tags.
        [b"bounce-12345@host", b"bounce-67890@host"],
        [b"msgid-5f3a9c1b2d@host", b"msgid-0f3a9c1b2e@host"],
        [
            b"0100018d1a2b3c4d-1a2b3c4d-1234-5678-9abc-def012345678-000000@amazonses.example",
            b"0100018d1a2b3c4e-2a2b3c4d-abcd-dead-beef-def012345679-000000@amazonses.example",
        ],
        [b"bounces-1a2b3c4d5e6f7a8b_list@host", b"bounces-0000000000000001_list@host"],
    ],
)
def test_tags_are_folded(senders: list[bytes]) -> None:
    assert len({fold_sender(sender) for sender in senders}) == 1


# Real forms of mailing systems: what they send from for two messages.
@pytest.mark.parametrize(
    "senders",
    [
        [b"list-return-1234-@lists.example", b"list-return-1235-@lists.example"],
        [
            b"srs0=abcd=xy=lists.example=list-return-1234-joe=dom.example@forwarder",
            b"srs0=efgh=xz=lists.example=list-return-1240-joe=dom.example@forwarder",
        ],
        [
            b"srs1=hhh=first.example=+hhh=tt=org.example=joe@f",
            b"srs1=iii=first.example=+jjj=uu=org.example=joe@f",
        ],
        [
            b"msprvs1=17906etliylrc=bounces-243-23@sp.example",
            b"msprvs1=17912kcqtxabc=bounces-243-23@sp.example",
        ],
        [
            b"bounce-mc.us11_35190433.3091425-79d0a4b4a3@mail.example",
            b"bounce-mc.us11_35190433.3092777-1fe0a4b4b9@mail.example",
        ],
        [
            b"bounce-md_8570218.5ec2f1a7.v1-0a1b2c3d4e5f60718293a4b5c6d7e8f9@mandrill.example",
            b"bounce-md_8570218.5ec3a0b1.v1-1a1b2c3d4e5f60718293a4b5c6d7e8fa@mandrill.example",
        ],
        [
            b"jason-dated-989108708.a17f80@mastaler.example",
            b"jason-dated-989208999.b27f81@mastaler.example",
        ],
        [b"bounce-12_html-345-678@et.example", b"bounce-13_html-346-679@et.example"],
        [b"5f3a9c1b2d5f3a9c1b2d5f3a@bounce.example", b"0f3a9c1b2d5f3a9c1b2d5f3b@bounce.example"],
        [b"bounce-1234@x", b"bounce-1235@x"],
    ],
)
def test_tags_of_mailing_systems_are_folded(senders: list[bytes]) -> None:
    assert len({fold_sender(sender) for sender in senders}) == 1


@pytest.mark.parametrize(
    "sender",
    [
        b"route66@host",
        b"info2@host",
        b"sales-2024@host",
        b"123456789@host",
        b"deadbeef@host",
        b"john_19851012@host",
        b"anna-19850612@host",
        b"mary-jane@host",
        b"feed-facade@host",
        b"agent-007@host",
        b"+detail@host",
        b"prvs=@host",
        b"prvs=johnsmith1=x@host",
        b"srs0=half@host",
        b"srs1=hash==x@host",
        b"srs1=hash=fwd=x@host",
        b"srs1=hash=fwd==x@host",
        b"postmaster",
        b"",
        b"a#b@host",
        b"fans-abba1974@host",
        b"club-decade1980@host",
        b"cafe-facade2020@host",
        b"branch-10234@bank.example",
        b"zip-90210@host",
        b"tel-442079460000@host",
        b"info-10115-ada-10117@host",
        b"john.smith_1234567890123456@host",
        b"returns@shop.example",
        b"bouncer-5@host",
    ],
)
def test_names_are_left_alone(sender: bytes) -> None:
    assert fold_sender(sender) == sender


def test_the_two_halves_of_one_name_do_not_change_another() -> None:
    assert fold_sender(b"srs0=h=t=a=b=c=d@host") == fold_sender(b"srs0=x=y=a=b=c=d@host")
    assert fold_sender(b"srs0=h=t=a=u@host") != fold_sender(b"srs0=h=t=b=u@host")


words = st.sampled_from(
    [
        b"list",
        b"return",
        b"bounce",
        b"prvs",
        b"srs0",
        b"srs1",
        b"btv1",
        b"user",
        b"1234abcdef",
        b"12345",
        b"7",
        b"dom.example",
        b"#",
        b"",
    ]
)
locals_ = st.one_of(
    st.lists(st.one_of(words, st.binary(max_size=6)), max_size=9).flatmap(
        lambda parts: st.lists(
            st.sampled_from([b"-", b"=", b"+", b"_", b".", b"=="]),
            min_size=len(parts),
            max_size=len(parts),
        ).map(lambda ends: b"".join(part + end for part, end in zip(parts, ends, strict=True)))
    ),
    st.binary(max_size=40),
)
domains = st.sampled_from([b"host", b"dom.example", b"", b"x-12345.example"])


@given(locals_, domains)
def test_folding_is_idempotent_and_keeps_the_domain(local: bytes, domain: bytes) -> None:
    address = mail_address(local + b"@" + domain)
    folded = fold_sender(address)
    assert fold_sender(folded) == folded
    assert folded.rpartition(b"@")[2] == address.rpartition(b"@")[2]


@pytest.mark.parametrize(
    ("sender", "folded"),
    [
        (b"prvs=user+srs=hhhh=tt=example.org=1234abcd12+x@example.com", b"user@example.com"),
        (b"msprvs1=user+srs=hhhh=tt=example.org=1234abcd12+x@example.com", b"user@example.com"),
    ],
)
def test_what_comes_to_rest_inside_a_wrapper_is_looked_at_with_what_is_around_it(
    sender: bytes, folded: bytes
) -> None:
    assert fold_sender(sender) == folded
    assert fold_sender(folded) == folded


# Plain: words of letters with a number behind them, the words that announce bounces apart.
plain_word = st.from_regex(rb"[a-z]{1,10}[0-9]{0,12}", fullmatch=True).filter(
    lambda word: word not in BOUNCES
)
number = st.from_regex(rb"[0-9]{1,16}", fullmatch=True)
plain = st.lists(st.one_of(plain_word, number), min_size=1, max_size=4).flatmap(
    lambda parts: st.lists(
        st.sampled_from([b".", b"-", b"_"]), min_size=len(parts) - 1, max_size=len(parts) - 1
    ).map(lambda ends: b"".join(part + end for part, end in zip(parts, [*ends, b""], strict=True)))
)


@given(plain, plain, domains)
def test_folding_never_merges_two_plain_addresses(one: bytes, other: bytes, domain: bytes) -> None:
    assert (fold_sender(one + b"@" + domain) == fold_sender(other + b"@" + domain)) == (
        one == other
    )


def folded(sender: str) -> bytes:
    return fold_sender(mail_address(sender.encode()))


@pytest.mark.parametrize(("one", "other"), ONE)
def test_two_messages_of_one_sender_are_one(one: str, other: str) -> None:
    assert folded(one) == folded(other)


@pytest.mark.parametrize(("one", "other"), TWO)
def test_two_senders_stay_two(one: str, other: str) -> None:
    assert folded(one) != folded(other)


# What is put around an address again and again, or into it.
layers = st.sampled_from(
    [
        b"srs0=",
        b"SRS0+a=b=dom.example=",
        b"srs1=a=b==c=d=e=",
        b"prvs=0123456789=",
        b"btv1==0123456789a==",
        b"user+srs=a=b=dom.example=",
        b"user+x+srs=a=b=bounces.dom.example=",
        b"imceaex-+20",
        b"-1234567-8",
        b"bounce-1a2b3c=",
        b"bounce-",
        b"list-return-12-",
        b"x__0123456789ab=",
        b"0a1b-",
        b"17.",
        b"=",
        b"+",
        b"-",
        b"#",
    ]
)
hosts = st.sampled_from(
    [
        b"dom.example",
        b"mmh2xurvokdh.eu.bnc.dom.example",
        b"bounces.dom.example",
        b"5hnj2mufr87e4htv.a.dom.example",
        b"x",
    ]
)


@given(st.lists(layers, max_size=12), st.integers(1, 300), locals_, hosts)
def test_whatever_is_wrapped_is_folded_once_and_becomes_no_longer(
    wrapped: list[bytes], times: int, local: bytes, domain: bytes
) -> None:
    address = mail_address(b"".join(wrapped) * times + local + b"@" + domain)
    folded = fold_sender(address)
    assert fold_sender(folded) == folded
    assert len(folded) <= len(address)
    assert folded.rpartition(b"@")[2].split(b".")[-3:] == domain.split(b".")[-3:]


@given(st.text("ab019-+=", max_size=30), hosts)
@example("a1b2c3d4e5f6", b"bounces.dom.example")
@example("123456", b"bounces.dom.example")
def test_what_is_found_at_a_glance_to_have_no_tags_has_none(local: str, domain: bytes) -> None:
    """``fold_sender`` hands over to ``folding`` only what may have tags."""
    found, host = folding.fold(local.encode(), domain)
    assert fold_sender(local.encode() + b"@" + domain) == found + b"@" + host


@given(st.text("abcdefghijklmnopqrstuvwxyz._-'", min_size=1, max_size=60), hosts)
def test_what_has_neither_digits_nor_tags_is_left_alone(local: str, domain: bytes) -> None:
    assert fold_sender(local.encode() + b"@" + domain) == local.encode() + b"@" + domain


@pytest.mark.parametrize(
    "layer",
    [b"srs0=", b"srs0=a=b=c=", b"prvs=0123456789=", b"user+srs=a=b=c=", b"a+", b"x-1-", b"="],
)
@pytest.mark.parametrize("size", [1963, 65536])
def test_work_is_bounded_whatever_the_length(layer: bytes, size: int) -> None:
    """A sender that is longer than any that is written ended in RecursionError."""
    sender = layer * (size // len(layer)) + b"u@host"
    calls = 0

    def count(_frame: object, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        folded = fold_sender(sender)
    finally:
        sys.setprofile(None)
    assert calls < 100
    assert fold_sender(folded) == folded
