"""Macros: RFC 7208's own tables (section 7.4), and what is none."""

import pytest

from greycheck.spf import macros

VALUES = {
    "s": b"strong-bad@email.example.com",
    "l": b"strong-bad",
    "o": b"email.example.com",
    "d": b"email.example.com",
    "h": b"mx.example.com",
    "p": b"mx.example.org",
    "v": b"in-addr",
    "i": b"192.0.2.3",
}
IPV6 = VALUES | {
    "v": b"ip6",
    "i": macros.address_text(0x20010DB8000000000000000000CB01, ipv4=False),
}


def expanded(text: bytes, values: dict[str, bytes]) -> bytes:
    return macros.expand(macros.parse(text), lambda letter: values[chr(letter)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"%{s}", b"strong-bad@email.example.com"),
        (b"%{o}", b"email.example.com"),
        (b"%{d}", b"email.example.com"),
        (b"%{d4}", b"email.example.com"),
        (b"%{d3}", b"email.example.com"),
        (b"%{d2}", b"example.com"),
        (b"%{d1}", b"com"),
        (b"%{dr}", b"com.example.email"),
        (b"%{d2r}", b"example.email"),
        (b"%{l}", b"strong-bad"),
        (b"%{l-}", b"strong.bad"),
        (b"%{lr}", b"strong-bad"),
        (b"%{lr-}", b"bad.strong"),
        (b"%{l1r-}", b"strong"),
        (
            b"%{ir}.%{v}._spf.%{d2}",
            b"3.2.0.192.in-addr._spf.example.com",
        ),
        (b"%{lr-}.lp._spf.%{d2}", b"bad.strong.lp._spf.example.com"),
        (
            b"%{lr-}.lp.%{ir}.%{v}._spf.%{d2}",
            b"bad.strong.lp.3.2.0.192.in-addr._spf.example.com",
        ),
        (
            b"%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}",
            b"3.2.0.192.in-addr.strong.lp._spf.example.com",
        ),
        (b"%{d2}.trusted-domains.example.net", b"example.com.trusted-domains.example.net"),
    ],
)
def test_the_table_of_the_rfc(text: bytes, expected: bytes) -> None:
    assert expanded(text, VALUES) == expected


def test_the_rfc_with_ipv6() -> None:
    address = b"1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2"
    values = IPV6 | {"i": macros.address_text(0x20010DB800000000000000000000CB01, ipv4=False)}
    assert expanded(b"%{ir}.%{v}._spf.%{d2}", values) == address + b".ip6._spf.example.com"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"%%%_%-", b"% %20"),
        (b"%{L}", b"strong-bad"),
        (b"%{S}", b"strong-bad%40email.example.com"),
        (b"%{O2R}", b"example.email"),
        (b"%{d999999999999999999999999}", b"email.example.com"),
        (b"%{d0002}", b"example.com"),
        (b"%{s1-@}", None),
        (b"%{l2-+,/_=.}", b"strong.bad"),
        (b"a/b.example", b"a/b.example"),
    ],
)
def test_other_forms(text: bytes, expected: bytes | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="not a macro"):
            macros.parse(text)
    else:
        assert expanded(text, VALUES) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"%",
        b"%(d)",
        b"%{d",
        b"%{}",
        b"%{x}",
        b"%{d0}",
        b"%{dr2}",
        b"%{d 2}",
        b"%{c}",
        b"%{r}",
        b"%{t}",
        b"a b",
        b"a\tb",
        b"\xc3\xa4",
        b"a\x7f",
    ],
)
def test_what_is_no_macro_string(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"macro|begins"):
        macros.parse(text)


def test_an_explanation_has_more_letters_and_blanks() -> None:
    pieces = macros.parse(b"%{c} is not of %{d}, says %{r} at %{t}", explanation=True)
    values = VALUES | {"c": b"192.0.2.3", "r": b"mx.example.net", "t": b"1"}
    assert macros.expand(pieces, lambda letter: values[chr(letter)]) == (
        b"192.0.2.3 is not of email.example.com, says mx.example.net at 1"
    )


@pytest.mark.parametrize("letter", "slodhipv")
def test_only_the_domain_and_the_kind_of_address_are_fixed(letter: str) -> None:
    assert macros.fixed(macros.parse(b"a.%%{%s}.b" % letter.encode())) == (letter in "odv")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a.example.", b"a.example"),
        (b".".join([b"a" * 49] * 5) + b".ab", b".".join([b"a" * 49] * 5) + b".ab"),
        (b"b." + b".".join([b"a" * 49] * 5) + b".ab", b".".join([b"a" * 49] * 5) + b".ab"),
        (b"bc.d." + b".".join([b"a" * 49] * 5) + b".abcd", b".".join([b"a" * 49] * 4) + b".abcd"),
        (b"a" * 300, b""),
        (b"x.".join([b"a" * 300, b"b.c"]), b"b.c"),
    ],
)
def test_a_long_name_loses_labels_from_the_left(name: bytes, expected: bytes) -> None:
    assert macros.shortened(name) == expected
