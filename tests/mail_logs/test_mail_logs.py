"""Who wrote to whom, by the logs of mail servers; and what in a log can mislead nobody."""

import random

import pytest

from greycheck import log
from greycheck.envelope import Envelope
from greycheck.mail_logs import lines, mails
from greycheck.mail_logs.mails import Mails, Pair
from greycheck.policy import Verdict

NOW = 1_796_000_000  # 2026-11-30 00:53:20 UTC


pytestmark = pytest.mark.usefixtures("berlin")


def read(*texts: bytes) -> list[Pair]:
    reader = Mails()
    found = [reader.read(lines.read(text, NOW)) for text in texts]
    return [pair for pair in found if pair is not None]


PAIR = (b"joe@ours.example", b"ann@there.example")

# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "when"),
    [
        (b"@400000006b0cc90a00000000 ", NOW),
        (b"2026-11-30 01:53:20.123456789 ", NOW),
        (b"2026-11-30 01:53:20 ", NOW),
        (b"2026-11-30 00:53:20 +0000 ", NOW),
        (b"2026-11-30T00:53:20Z host program[1]: ", NOW),
        (b"2026-11-30T02:53:20.123456+02:00 host program: ", NOW),
        (b"2026-11-29T19:53:20-0500 host program: ", NOW),
        (b"Nov 30 01:53:20 host program[1]: ", NOW),
        (b"Nov 30 01:53:20.123456 host program[1]: ", NOW),
        (b"<22>Nov 30 01:53:20 host program[1]: ", NOW),
        (b"Nov 30 11:53:20 host program[1]: ", NOW + 36000),
        (b"Dec  2 01:53:20 host program[1]: ", NOW - 363 * 86400),
        (b"", None),
    ],
)
def test_the_time_of_a_line(before: bytes, when: int | None) -> None:
    found = lines.read(before + b"it says so", NOW)
    assert (found.says, found.when) == (b"it says so", when)


@pytest.mark.parametrize(
    "text",
    [
        b"@ffffffffffffffff00000000 it says so",
        b"@3ffffffff000000a00000000 it says so",
        b"@400000006b0e1a9500000000 it says so",
        b"1969-12-31 01:00:00 it says so",
        b"2026-12-01T01:53:22+01:00 it says so",
        b"9998-01-01T00:00:00Z it says so",
    ],
)
def test_a_time_before_1970_or_in_the_future_is_none(text: bytes) -> None:
    found = lines.read(text, NOW)
    assert (found.says, found.when) == (b"it says so", None)


@pytest.mark.parametrize(
    "text",
    [
        b"@ffffffffffffffffffffffff x",
        b"@40000000 x",
        b"0000-99-99 99:99:99 x",
        b"9999-12-31T23:59:59+99:99 host program: x",
        b"Foo 31 12:00:00 host program: x",
        b"Feb 99 99:99:99 host program: x",
        b"9999-12-31T99:59:59Z host program: x",
        b"\xff\x00",
        b" ",
    ],
)
def test_a_time_that_cannot_be_is_none_or_another(text: bytes) -> None:
    found = lines.read(text, NOW)
    assert found.when is None or isinstance(found.when, int)


# --- greycheck ------------------------------------------------------------------------------------


def own_line(sender: bytes, recipient: bytes, by: str, client: str = "192.0.2.1") -> bytes:
    envelope = Envelope("smtpextfork", client, sender, recipient)
    return log.verdict_line(envelope, Verdict("accept", "exempt", 0, f"by={by}"), 1).rstrip()


@pytest.mark.parametrize("by", ["RELAYCLIENT", "SMTPAUTHUSER", "sasl_username"])
@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"@400000006b0cc90a00000000 ",
        b"2026-11-30 01:53:20.123456789 ",
        b"Nov 30 01:53:20 host qmail-smtpd: ",
    ],
)
def test_a_line_of_greycheck_says_it_all(by: str, before: bytes) -> None:
    assert read(before + own_line(*PAIR, by)) == [PAIR]


def test_greycheck_in_the_systems_log() -> None:
    says = own_line(*PAIR, "sasl_username").removeprefix(b"greycheck: ")
    assert read(b"Nov 30 01:53:20 host greycheck[77]: " + says) == [PAIR]
    # As the journal has what a unit of that name writes to descriptor 2.
    assert read(b"Nov 30 01:53:20 host greycheck[77]: greycheck: " + says) == [PAIR]


def test_bytes_that_a_line_has_escaped_come_back() -> None:
    pair = b'"j > o"\xff@ours.example', b"ann\\@there.example"
    assert read(own_line(*pair, "RELAYCLIENT")) == [pair]


@pytest.mark.parametrize(
    "text",
    [
        own_line(*PAIR, "GREYCHECK"),
        own_line(*PAIR, "null_sender"),
        own_line(*PAIR, "SMTPRCPTHOSTSOK"),
        own_line(PAIR[0], b"x" * 600 + b"@there.example", "RELAYCLIENT"),
        own_line(*PAIR, "RELAYCLIENT").replace(b"exempt", b"known"),
        b"x " + own_line(*PAIR, "RELAYCLIENT"),
        own_line(b"a> recipient=<x@y> by=RELAYCLIENT", b"", "GREYCHECK"),
        b"greycheck: accept reason=exempt by=RELAYCLIENT",
    ],
)
def test_other_lines_teach_nothing(text: bytes) -> None:
    assert read(text) == []


# --- Postfix --------------------------------------------------------------------------------------

SMTPD = b"Nov 30 01:53:20 mx postfix/submission/smtpd[11]: "
QMGR, SMTP = b"Nov 30 01:53:20 mx postfix/qmgr[12]: ", b"Nov 30 01:53:20 mx postfix/smtp[13]: "
LOGIN = SMTPD + b"4F1A2B3C4D: client=pc[192.0.2.9], sasl_method=PLAIN, sasl_username=joe"
FROM = QMGR + b"4F1A2B3C4D: from=<joe@ours.example>, size=1234, nrcpt=2 (queue active)"
TO = (
    SMTP + b"4F1A2B3C4D: to=<%s>, relay=mx.there.example[198.51.100.1]:25, delay=0.4,"
    b" delays=0/0/0.2/0.2, dsn=2.0.0, status=%s"
)
SENT = TO % (b"ann@there.example", b"sent (250 ok)")


def test_postfix() -> None:
    other = TO.replace(b">, relay", b">, orig_to=<all@ours.example>, relay") % (
        b"bob@there.example",
        b"sent (250 ok)",
    )
    assert read(LOGIN, FROM, SENT, other, QMGR + b"4F1A2B3C4D: removed", SENT) == [
        PAIR,
        (PAIR[0], b"bob@there.example"),
    ]


@pytest.mark.parametrize(
    "texts",
    [
        (FROM, SENT),
        (LOGIN.partition(b", sasl")[0], FROM, SENT),
        (LOGIN, FROM.replace(b"4F1A", b"5F1A"), SENT),
        (LOGIN, SENT),
        (LOGIN, FROM.replace(b"<joe@ours.example>", b"<>"), SENT),
        (LOGIN, FROM, SENT.replace(b"postfix/smtp[", b"postfix/lmtp[")),
        (LOGIN, FROM, TO % (b"ann@there.example", b"deferred (said: 450, status=sent (x)")),
        (LOGIN.replace(b"postfix/submission/smtpd", b"other"), FROM, SENT),
        (LOGIN.replace(b"pc[192", b"x sasl_username=y[192").replace(b", sasl_", b" "), FROM, SENT),
        (LOGIN.replace(b"4F1A2B3C4D", b"NOQUEUE: reject"), FROM, SENT),
        (LOGIN, FROM, QMGR + b"4F1A2B3C4D: removed", SENT),
    ],
)
def test_a_mail_of_postfix_that_is_no_users_or_was_not_sent(texts: tuple[bytes, ...]) -> None:
    assert read(*texts) == []


# --- qmail-send -----------------------------------------------------------------------------------

INFO = b"info msg 1234: bytes 567 from <joe@ours.example> qp 99 uid 1000"
START = b"starting delivery 5: msg 1234 to remote ann@there.example"


@pytest.mark.parametrize(
    "before",
    [b"@400000006b0cc90a00000000 ", b"", b"Nov 30 01:53:20 mx qmail: 1796000000.123456 "],
)
def test_qmail_send(before: bytes) -> None:
    texts = (b"new msg 1234", INFO, START, b"delivery 5: success: ok", b"end msg 1234", START)
    assert read(*(before + text for text in texts)) == [PAIR]


def test_a_time_of_splogger_counts() -> None:
    line = lines.read(b"Jan 30 01:53:20 mx qmail: 1790000000.123456 " + INFO, NOW)
    Mails().read(line)
    assert line.when == 1_790_000_000


@pytest.mark.parametrize(
    "texts",
    [
        (START,),
        (INFO, START.replace(b"remote", b"local")),
        (INFO.replace(b"1234", b"99"), START),
        (INFO.replace(b"<joe@ours.example>", b"<>"), START),
    ],
)
def test_a_mail_of_qmail_that_does_not_leave_or_is_nobodys(texts: tuple[bytes, ...]) -> None:
    assert read(*texts) == []


# --- Exim -----------------------------------------------------------------------------------------

AT = b"2026-11-30 01:53:20 "
CAME = (
    AT + b"1tHPyI-000000001aB-2Xyz <= joe@ours.example H=(pc) [192.0.2.9] P=esmtpsa"
    b" A=plain_server:joe S=1234"
)
GOES = (
    AT + b"1tHPyI-000000001aB-2Xyz => ann@there.example R=dnslookup T=remote_smtp"
    b' H=mx.there.example [198.51.100.1] C="250 ok"'
)
DONE = AT + b"1tHPyI-000000001aB-2Xyz Completed"


@pytest.mark.parametrize("name", [b"1tHPyI-000000001aB-2Xyz", b"1tHPyI-0001aB-2X"])
@pytest.mark.parametrize("before", [AT, b"Nov 30 01:53:20 mx exim[7]: ", AT + b"[77] "])
def test_exim(name: bytes, before: bytes) -> None:
    more = GOES.replace(b"=> ann@", b"-> bob@")
    texts = (
        text.replace(b"1tHPyI-000000001aB-2Xyz", name).replace(AT, before)
        for text in (CAME, GOES, more, DONE, GOES)
    )
    assert read(*texts) == [PAIR, (PAIR[0], b"bob@there.example")]


@pytest.mark.parametrize(
    "texts",
    [
        (GOES,),
        (CAME.replace(b" A=plain_server:joe", b""), GOES),
        (CAME.replace(b" A=plain_server:joe", b' T="x A=plain:joe"'), GOES),
        (CAME.replace(b" A=plain_server:joe", b' T="\\" A=plain:joe"'), GOES),
        (CAME.replace(b" A=plain_server:joe", b"").replace(b"(pc)", b"(pc A=x)"), GOES),
        (CAME, GOES.replace(b" H=mx.there.example [198.51.100.1]", b"")),
        (CAME, GOES.replace(b"=>", b"==")),
        (CAME, GOES.replace(b"=>", b"**")),
        (CAME.replace(b"joe@ours.example", b"<>"), DONE, GOES),
    ],
)
def test_a_mail_of_exim_that_is_no_users_or_does_not_leave(texts: tuple[bytes, ...]) -> None:
    assert read(*texts) == []


# --- bounds ---------------------------------------------------------------------------------------


def test_so_many_mails_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mails, "MAILS", 2)
    reader = Mails()
    for number in range(1, 5):
        reader.read(lines.read(INFO.replace(b"1234", b"%d" % number), NOW))
    went = [
        reader.read(lines.read(START.replace(b"1234", b"%d" % number), NOW))
        for number in range(1, 5)
    ]
    assert went == [None, None, PAIR, PAIR]
    assert len(reader._senders) == 2


def test_no_address_is_longer_than_any_that_a_mail_server_takes() -> None:
    long = b"x" * 900 + b"@there.example"
    assert read(INFO, START.replace(b"ann@there.example", long)) == []
    assert read(INFO.replace(b"joe@ours.example", long), START) == []


def test_whatever_a_line_says_it_fails_nothing() -> None:
    """Lines that are cut, spliced, and full of other bytes."""
    chance = random.Random(13)
    known = [LOGIN, FROM, SENT, INFO, START, CAME, GOES, DONE, own_line(*PAIR, "RELAYCLIENT")]
    reader = Mails()
    for _ in range(20000):
        one, other = chance.choice(known), chance.choice(known)
        text = bytearray(one[: chance.randrange(len(one))] + other[chance.randrange(len(other)) :])
        for _ in range(chance.randrange(3)):
            text.insert(chance.randrange(len(text) + 1), chance.randrange(256))
        reader.read(lines.read(bytes(text), NOW))


def test_a_long_line_takes_no_long_time() -> None:
    """No form of it is tried again from each of its bytes: that would take hours here."""
    parts = (b"(", b'"', b'\\"', b"\\", b", ", b" A=", b"> qp ", b"<", b"to=<", b"() ", b'"" ')
    for start in (CAME, GOES, LOGIN, FROM, SENT, INFO, START):
        for part in parts:
            read(start + part * (1_000_000 // len(part)))
