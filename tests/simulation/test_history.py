"""Attempts are read from logs of any logger, in the order of their times."""

import io
from pathlib import Path

import pytest

from greycheck.envelope import Envelope
from greycheck.log import verdict_line
from greycheck.mail_logs import checks, lines
from greycheck.policy import Verdict
from greycheck.simulation.history import Attempt, Log, Reader
from greycheck.simulation.schedules import SCHEDULES, following, of_sender
from tests.simulation.test_replay import NEW, line
from tests.test_schedules import NOW

SAYS = verdict_line(
    Envelope("smtpextfork", "192.0.2.1", b"a@b.example", b"c@d.example"),
    Verdict("defer", "new", 300),
    3,
)


pytestmark = pytest.mark.usefixtures("berlin")


def read(*logs: bytes | Path, now: int = NOW) -> tuple[list[Attempt], Reader]:
    reader = Reader(now)
    sources = [
        Log(each) if isinstance(each, Path) else Log(stream=io.BytesIO(each)) for each in logs
    ]
    return list(reader.attempts(sources)), reader


@pytest.mark.parametrize(
    "before",
    [
        b"@400000006b49d20a00000000 ",
        b"2027-01-15 09:00:00.123456789 ",
        b"2027-01-15T08:00:00Z host qmail-smtpd[7]: ",
        b"Jan 15 09:00:00 host qmail-smtpd: ",
        b"Jan 15 09:00:00.123456 host greycheck[77]: ",
        b"2027-01-15T09:00:00+0100 host greycheck[77]: ",
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_line_of_any_logger_is_an_attempt(before: bytes, named: bool) -> None:
    says = SAYS if named or b"greycheck" not in before else SAYS.removeprefix(b"greycheck: ")
    ((attempt,), reader) = read(before + says)
    assert (attempt.when, attempt.action, attempt.reason) == (NOW, "defer", "new")
    assert (attempt.envelope.client, attempt.sender) == ("192.0.2.1", b"a@b.example")
    assert (reader.counts.lines, reader.counts.checks) == (1, 1)


def test_other_lines_and_those_without_time_or_client_are_counted_and_left_out() -> None:
    text = SAYS + b"@400000006b49d20a00000000 greycheck: warning: a reason=new of its own\n"
    text += line(0, "accept reason=incomplete", "-").encode()
    text += line(0, "accept reason=exempt", more=" by=GREYCHECK").encode()
    text += b"@400000006b49d20a00000000 somebody: " + SAYS.partition(b": ")[2] + b"x" * 20000
    found, reader = read(text)
    counts = reader.counts
    assert (found, counts.lines, counts.checks) == ([], 6, 2)
    assert (counts.unusable, counts.exempt) == (2, 1)


def test_several_logs_are_read_by_their_times_and_opened_only_then(place: Path) -> None:
    spans = {"c": (5, 9), "a": (0, 3), "b": (2, 6), "d": ()}
    for name, times in spans.items():
        text = "".join(line(when, NEW, sender=f"{name}@x.example") for when in times)
        (place / name).write_text(text)
    found, reader = read(*(place / name for name in spans))
    assert [attempt.when - NOW for attempt in found] == [0, 2, 3, 5, 6, 9]
    assert [attempt.sender[:1] for attempt in found] == [b"a", b"b", b"a", b"c", b"b", b"c"]
    assert reader.counts.lines == 6


def test_times_never_go_back() -> None:
    text = line(5, NEW) + line(3, NEW) + line(7, NEW)
    assert [attempt.when - NOW for attempt in read(text.encode())[0]] == [5, 5, 7]


def test_escaped_bytes_come_back_and_hostile_lines_fail_nothing() -> None:
    hostile = Envelope("x", "2001:db8::1", b'"j > o"\xff@x.example', b"\x1b[31m\\@d.example")
    text = b"@400000006b49d20a00000000 " + verdict_line(hostile, Verdict("defer", "new", 9), 1)
    ((attempt,), _reader) = read(text)
    assert attempt.envelope.sender == hostile.sender
    assert attempt.envelope.recipient == hostile.recipient
    for cut in range(0, len(text), 3):
        read(text[:cut] + b"\xff\0", b"\n" + text[cut:])


def test_pairs_are_read_as_they_were_written() -> None:
    verdict = Verdict("accept", "error", detail="error=disk is full", identity=b"x.example")
    text = verdict_line(Envelope("spp", "192.0.2.1", b"", b"c@d"), verdict, 7).rstrip()
    found = checks.check(checks.said(lines.read(text, NOW)) or b"")
    assert found is not None
    assert found.pairs() == {
        "error": b"disk is full",
        "identity": b"x.example",
        "hook": b"spp",
        "ms": b"7",
    }


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_until_its_sender_gives_up(name: str) -> None:
    known = SCHEDULES[name]
    assert list(following(name, 0))[: len(known) - 1] == known[1:]
    late = list(following(name, known[-1]))
    assert all(at > known[-1] for at in late)
    assert late == sorted(set(late))
    assert bool(late) == (name not in ("qq", "aol", "Exchange Online"))
    assert next(following(name, known[-1] + 1), None) == next(iter(late), None)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_sender_is_known_by_its_attempts(name: str) -> None:
    assert of_sender("x.example", tuple(SCHEDULES[name][1:6])) == name
    nearly = [after + 1 + after // 100 for after in SCHEDULES[name][1:6]]
    near = of_sender("x.example", tuple(nearly))
    assert near == name or {near, name} <= {"gmx", "mail.com"}


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("gmail.com", "gmail"),
        ("yahoo.co.uk", "yahoo"),
        ("gmx.de", "gmx"),
        ("mail.com", "mail.com"),
        ("mail.example", "Postfix"),
        ("", "Postfix"),
    ],
)
def test_a_sender_that_never_retried_is_known_by_its_domain_or_not_at_all(
    domain: str, name: str
) -> None:
    assert of_sender(domain, ()) == name
