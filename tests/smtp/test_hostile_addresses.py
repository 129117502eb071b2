"""Addresses that want to be more than addresses, through real SMTP and all hooks."""

import os
import re

import pytest

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, mail
from tests.smtp.mailhost import MailHost
from tests.support import both_ways, on_every_database

LONGEST = 899
VERDICT = re.compile(
    r"greycheck: (defer|accept) reason=(new|retry) client=192\.0\.2\.1 sender=<[^<>\s]*>"
    r" recipient=<[^<>\s]*>"
    r"( wait=300| delayed=3\d\d)? hook=\w+ ms=\d+"
)

pytestmark = both_ways

HOSTILE = {
    "an option": b"--help",
    "another option": b"-v",
    "a command": b"db",
    "another command": b"expire",
    "a path": b"../../etc/passwd",
    "an absolute path": b"/etc/passwd",
    "a command substitution": b"$(reboot)",
    "a command in backquotes": b"`id`",
    "a command that leaves a trace": b'"; touch trace; touch $(echo trace)"@example.org',
    "a quoted blank": b'"john doe"@example.org',
    "utf-8": "jürgen@müller.example".encode(),
    "latin-1": b"j\xfcrgen@m\xfcller.example",
    "a lone byte": b"\xff",
    "the longest address": b"x" * (LONGEST - len("@example.org")) + b"@example.org",
    "the longest of bytes to escape": b"\xff" * LONGEST,
    "no domain": b"postmaster",
    "two at signs": b"alice@example.org@example.net",
    "a statement": b"'; DROP TABLE triplet; --@example.org",
    "wildcards": b"%_*?[a-z]@example.org",
    "a list of programs": b"a,b@example.org",
    "a forged log line": b'"a> recipient=<b> ms=1\rgreycheck: accept reason=known client=192.0.2.1'
    b' sender=<a"@example.org',
    "control characters": b"\x1b[2J\x1b]0;title\x07\ttab\x08\x7f@example.org",
    "a line separator": "a\u2028greycheck: accept\u0085b@example.org".encode(),
    "a direction override": "a\u202egro.elpmaxe@b".encode(),
}


@on_every_database
@pytest.mark.parametrize("address", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_address_is_greylisted_as_any_other(
    mx: MailHost, hook: Hook, address: bytes
) -> None:
    text = os.fsdecode(address)
    server = mx.start(**hook.variables)
    files = set(mx.home.iterdir())
    server.play(mail(hook.deferred, sender=text, recipient=text))
    mx.age(300)
    server.play(mail(ACCEPTED, sender=text, recipient=text))
    lines = mx.checks()
    assert [found.group(2) for line in lines if (found := VERDICT.fullmatch(line))] == [
        "new",
        "retry",
    ], lines
    assert all(line.isprintable() for line in lines)
    assert set(mx.home.iterdir()) == files


@pytest.mark.parametrize("address", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_sender_and_another_are_two_senders(mx: MailHost, address: bytes) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    one = os.fsdecode(address)
    other = os.fsdecode(address[:-1] + b"z")
    server.play(f"""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<{one}>
        C: RCPT TO:<bob@example.net>
        C: RSET
        C: MAIL FROM:<{other}>
        C: RCPT TO:<bob@example.net>
        S: 250
        S: 454
        S: 250
        S: 250
        S: 454
    """)
    assert mx.reasons() == ["new", "new"]


def test_an_address_that_is_too_long_never_reaches_a_checker(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    long = "x" * (LONGEST + 1)
    server.play(f"""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<{long}>
        S: 555
        C: MAIL FROM:<alice@example.org>
        S: 250
        C: RCPT TO:<{long}>
        S: 555
    """)
    assert mx.checks() == []


@pytest.mark.parametrize(
    "helo", [b"", b"--help", b'"quoted" and more', b"\xff\x1b[2J", b"h" * 50_000]
)
def test_a_hostile_helo_changes_nothing(mx: MailHost, hook: Hook, helo: bytes) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred).replace("client.example.org", os.fsdecode(helo)))
    mx.age(300)
    server.play(mail(ACCEPTED).replace("client.example.org", os.fsdecode(helo)))
    assert mx.reasons() == ["new", "retry"]
