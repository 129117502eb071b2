"""What SPF records say, and which are wrong."""

import pytest

from greycheck.spf import record
from greycheck.spf.record import Record, Term, Wrong


def parse(terms: str) -> Record:
    return record.parse(b"v=spf1 " + terms.encode("latin-1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", Term("+", "all")),
        ("-ALL", Term("-", "all")),
        ("~all", Term("~", "all")),
        ("?all", Term("?", "all")),
        ("a", Term("+", "a")),
        ("A/24", Term("+", "a", prefix4=24)),
        ("a//64", Term("+", "a", prefix6=64)),
        ("a/0//0", Term("+", "a", prefix4=0, prefix6=0)),
        ("a:b.example/24//64", Term("+", "a", (b"b.example",), prefix4=24, prefix6=64)),
        ("a:b.example.", Term("+", "a", (b"b.example.",))),
        ("mx:b/c.example", Term("+", "mx", (b"b/c.example",))),
        ("mx", Term("+", "mx")),
        ("ptr", Term("+", "ptr")),
        ("ptr:b.example", Term("+", "ptr", (b"b.example",))),
        ("?exists:b.e-x", Term("?", "exists", (b"b.e-x",))),
        ("include:_spf.b.x1", Term("+", "include", (b"_spf.b.x1",))),
        ("ip4:192.0.2.1", Term("+", "ip4", value=0xC0000201)),
        ("ip4:192.0.2.1/0", Term("+", "ip4", value=0xC0000201, prefix4=0)),
        ("ip6:::1/128", Term("+", "ip6", value=1)),
        (
            "ip6:2001:db8::192.0.2.1/32",
            Term("+", "ip6", value=0x20010DB8 << 96 | 0xC0000201, prefix6=32),
        ),
    ],
)
def test_a_term(text: str, expected: Term) -> None:
    assert parse(text).terms == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "all:b.example", "all/8", "-", "+-all", "all.", "al", "alll", "a,mx", "=a", "9=a", "+x=y",
        "a:", "a:/24", "a/", "a/33", "a/024", "a//129", "a//", "a/24/64", "a:b.example/24//64/",
        "a:localhost", "a:b.1", "a:b.-c", "a:b.c-", "a:b..", "a:192.0.2.1", "a:b.%%c",
        "a:b.example%",
        "mx:", "mx/-1", "include", "include:", "include/24", "exists", "exists:", "ptr:", "ptr/24",
        "ip4", "ip4:", "ip4:192.0.2", "ip4:192.0.2.1/33", "ip4:192.0.2.1/", "ip4:192.0.2.1//32",
        "ip4:192.0.2.01", "ip4:192.0.2.256", "ip4:192.0.2.1:25", "ip4:b.example", "ip4:2001:db8::",
        "ip6:192.0.2.1", "ip6:2001:db8", "ip6:::1/129", "ip6:::1//64", "ip6:fe80::1%eth0",
        "include:b.example/24", "exists:%{c}.example", "exp=", "exp=%{t}.example", "exp=b",
        "redirect=",
        "redirect=b.example redirect=b.example", "exp=b.example EXP=c.example", "x=%{", "x=%{c}",
        "a\tmx", "\xe4", "ip4:192.0.2.1\t", "a\n", "redirect:b.example",
    ],
)  # fmt: skip
def test_one_wrong_term_makes_the_record_wrong(text: str) -> None:
    with pytest.raises(Wrong):
        parse(f"ip4:192.0.2.1 {text} -all")


LONG = ["\x1b[2J", "ip4:" + "1." * 9000, "ip6:" + ":" * 9000, "a:" + "x" * 9000,
        "x=%{" + "\x00" * 9000,
        "a:b.example%{" + "\x1b" * 9000, "x=" + "\x1b" * 9000, "include:" + "%" * 9001]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_an_error_shows_the_term_escaped_and_cut(text: str) -> None:
    with pytest.raises(Wrong) as caught:
        parse(text)
    shown = str(caught.value)
    assert shown.isprintable()
    assert len(shown) < 600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redirect=b.example", (b"b.example",)),
        ("Redirect=b.example ip4:192.0.2.1", (b"b.example",)),
        ("redirect=b.example -all", ()),
        ("ip4:192.0.2.1 exp=b.example x=%{d} y.z-1=", ()),
        ("exists=%%", ()),
    ],
)
def test_modifiers(text: str, expected: tuple[bytes, ...]) -> None:
    assert parse(text).redirect == expected


@pytest.mark.parametrize(
    "text", ["a:%{d}", "a:b.%_", "a:b.%%", "a:b.%-", "a:%{l}.%{d2r}", "a:.com"]
)
def test_a_domain_ends_in_a_macro_or_a_top_label(text: str) -> None:
    assert len(parse(text).terms) == 1


def test_blanks_between_terms() -> None:
    assert parse("  a   mx  ") == parse("a mx")
    assert record.parse(b"v=spf1") == Record(())


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], None),
        ([b"v=spf1"], b"v=spf1"),
        ([b"google", b"v=spf1 -all"], b"v=spf1 -all"),
        ([b"V=SPF1 -all"], b"V=SPF1 -all"),
        ([b"v=spf10 -all", b"v=spf1-all", b" v=spf1", b"v=spf1\t-all", b"v=spf2.0/pra"], None),
    ],
)
def test_the_record_among_texts(texts: list[bytes], expected: bytes | None) -> None:
    assert record.chosen(texts) == expected


def test_several_records_are_wrong() -> None:
    with pytest.raises(Wrong, match="several"):
        record.chosen([b"v=spf1 -all", b"v=spf1 -all"])
