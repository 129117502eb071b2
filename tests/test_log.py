"""Log lines that no envelope can forge, and a log that never holds a verdict."""

import _thread
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greycheck import log
from greycheck.envelope import Envelope
from greycheck.policy import ACCEPT, DEFER, Verdict
from tests.support import ROOT


def line(
    sender: bytes = b"a@example.org",
    recipient: bytes = b"b@example.net",
    verdict: Verdict | None = None,
) -> str:
    envelope = Envelope("smtpextfork", "192.0.2.1", sender, recipient)
    return log.verdict_line(envelope, verdict or Verdict(DEFER, "new", wait=300), 9).decode()


def test_a_line_tells_the_verdict_and_the_triplet() -> None:
    assert line() == (
        "greycheck: defer reason=new client=192.0.2.1 sender=<a@example.org>"
        " recipient=<b@example.net>"
        " wait=300 hook=smtpextfork ms=9\n"
    )


def test_the_null_sender_is_shown_as_brackets() -> None:
    assert " sender=<> " in line(b"")


def test_an_acceptance_names_no_wait_but_its_detail() -> None:
    verdict = Verdict(ACCEPT, "retry", detail="by=RELAYCLIENT", unrecorded="disk full")
    assert line(verdict=verdict).endswith(
        ' by=RELAYCLIENT unrecorded="disk full" hook=smtpextfork ms=9\n'
    )


def test_an_observed_verdict_shows_what_would_have_been() -> None:
    verdict = Verdict(ACCEPT, "new", wait=300, observed=DEFER)
    assert " reason=new " in line(verdict=verdict)
    assert line(verdict=verdict).endswith(" wait=300 observed=defer hook=smtpextfork ms=9\n")


def test_an_envelope_without_a_client_shows_a_dash() -> None:
    envelope = Envelope("checkenv", None, b"", b"", missing="TCPREMOTEIP")
    assert b" client=- " in log.verdict_line(envelope, Verdict(ACCEPT, "incomplete"), 0)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"john doe@x", r"john\x20doe@x"),
        (b"a>\tb", r"a\x3e\x09b"),
        (b"\x1b[2J", r"\x1b[2J"),
        (b"back\\slash", r"back\x5cslash"),
        (b"\xff", r"\xff"),
        ("jörg@example.org".encode(), "jörg@example.org"),
        ("\u202eevil".encode(), r"\xe2\x80\xaeevil"),
        (b"list-7-user=dom@host", "list-7-user=dom@host"),
    ],
)
def test_bytes_that_could_mislead_are_escaped(raw: bytes, shown: str) -> None:
    assert log.show(raw) == shown


@given(st.binary(max_size=30))
def test_what_is_shown_can_be_read_again(one: bytes) -> None:
    assert log.unshown(log.show(one).encode("utf-8", "surrogateescape")) == one
    assert log.unshown(rb"\x4a\x4A\x\x4\xzz\x  a\x41") == rb"JJ\x\x4\xzz\x  aA"


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_what_is_shown_alike_is_alike(one: bytes, other: bytes) -> None:
    assert (log.show(one) == log.show(other)) == (one == other)


@given(st.binary(max_size=899), st.binary(max_size=899))
def test_no_address_forges_a_field_or_a_line(sender: bytes, recipient: bytes) -> None:
    text = line(sender, recipient)
    assert text.isprintable() or text[:-1].isprintable()
    assert text.count("\n") == 1
    names = [field.partition("=")[0] for field in text.split()]
    assert names == [
        "greycheck:",
        "defer",
        "reason",
        "client",
        "sender",
        "recipient",
        "wait",
        "hook",
        "ms",
    ]


@pytest.mark.parametrize("byte", [b"\xff", b"x", "\u00e9".encode(), "\u4e2d".encode(), b" "])
@pytest.mark.parametrize("domain", [b"", b"@host", b"@" + b"\xff" * 2000])
def test_the_longest_line_is_written_at_once(byte: bytes, domain: bytes) -> None:
    worst = byte * 2000 + domain
    for detail in (f"rule=from:{log.show(worst)}", f"error={'x' * 5000}"):
        verdict = Verdict(
            DEFER,
            "new",
            300,
            detail,
            unrecorded="\x1b" * 5000,
            observed="defer",
            delayed=10**9,
            identity=worst.rpartition(b"@")[2],
            by_identity="correspondent",
        )
        assert len(line(worst, worst, verdict).encode()) < 4096
    assert len(log.line("warning " + "x" * 9000)) < 4096


def test_what_is_cut_says_so_and_how_long_it_was() -> None:
    text = line(b"\xff" * 899 + b"@host", b"b@example.net")
    assert re.search(
        r" sender=<(\\xff){112}\\\.\.\.899\.[0-9a-f]{32}@host> recipient=<b@example.net> ", text
    )
    assert log.show_address(b"a@" + b"b." * 200 + b"end").endswith("b.b.b.end")
    assert r"\...400" not in line(
        b"x" * 200 + rb"\...400" + b"@host", b"b@example.net"
    )  # nobody forges it
    assert log.quoted("y" * 5000).endswith(r'y\...5000"')


@given(
    st.binary(max_size=9),
    st.integers(1, 400),
    st.sampled_from([b"", b"@host", b"@"]),
    st.binary(max_size=3),
)
def test_cut_addresses_are_kept_apart_and_no_escape_is_cut(
    part: bytes, times: int, at: bytes, last: bytes
) -> None:
    one, other = part * times + at + last, part * times + b"x" + at + last
    assert log.show_address(one) != log.show_address(other)
    shown = log.show_address(part * times + last)
    assert len(shown.encode()) < log.LOCAL + log.DOMAIN + 100
    assert not re.search(r"\\(?!x[0-9a-f]{2}|\.\.\.\d)", shown)
    if len(log.show(one).encode()) <= log.DOMAIN:
        assert log.show_address(one) == log.show(one)


def test_a_problem_is_one_line() -> None:
    assert (
        log.line("warning " + 'a\n"b" = 5\udcff')
        == b"greycheck: warning a\\x0a\\x22b\\x22 = 5\\xff\n"
    )


@pytest.mark.parametrize("write", [lambda text: log.write(text, 101), log.write_from_thread])
def test_lines_go_to_descriptor_2(write: object, capfd: pytest.CaptureFixture[str]) -> None:
    assert callable(write)
    write(b"a line\n")
    assert capfd.readouterr().err == "a line\n"


def test_a_thread_that_does_not_run_at_once_still_writes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a busy machine that takes longer than a log may."""
    start = _thread.start_new_thread

    def start_later(call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        def run() -> None:
            sleep(log.PIPE_TIMEOUT * 2)
            call(*arguments)

        start(run, ())

    monkeypatch.setattr(_thread, "start_new_thread", start_later)
    log.write_from_thread(b"a line\n")
    assert capfd.readouterr().err == "a line\n"


def test_a_dead_log_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        reader, writer = os.pipe()
        os.close(reader)
        saved = os.dup(2)
        os.dup2(writer, 2)
        try:
            log.write(b"lost\n", 0)
        finally:
            os.dup2(saved, 2)
            for descriptor in (saved, writer):
                os.close(descriptor)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_many_share_a_file_and_lose_no_line(tmp_path: Path, shared: bool, flags: int) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    common = os.open(path, os.O_WRONLY | flags)
    children = []
    for number in range(60):
        child = os.fork()
        if not child:
            try:
                os.dup2(common if shared else os.open(path, os.O_WRONLY | flags), 2)
                said = b"%d first\n%d %s\n" % (number, number, b"x" * 900)
                log.write(said, 1) if number % 2 else log.write_from_thread(said)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    os.close(common)
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    expected = [f"{number} {text}" for number in range(60) for text in ("first", "x" * 900)]
    assert sorted(lines[1:]) == sorted(expected)
    # What one has to say stands together.
    assert all(lines[at].split()[0] == lines[at + 1].split()[0] for at in range(1, len(lines), 2))


def test_what_shares_the_descriptor_of_a_file_goes_on_behind_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = (
        "import os, sys; from greycheck import log; os.write(2, b'one\\n'); log.write(b'two\\n', 1)"
    )
    with path.open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stderr=file, check=True, cwd=ROOT)
        os.write(file.fileno(), b"three\n")
    assert path.read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    "end", ["\n", "\r\n", "\x1b[2J", " ", "\u2028", "\u202e", "\x9b", "\udc9b"]
)
def test_no_rule_of_the_store_forges_a_line_or_a_pair(end: str) -> None:
    verdict = Verdict(ACCEPT, "rule", detail=f"rule=x@example.org{end}reason=forged")
    line = log.verdict_line(
        Envelope("smtpextfork", "192.0.2.1", b"a@example.org", b"b@example.net"), verdict, 1
    )
    assert line.decode().removesuffix("\n").isprintable()
    assert " reason=forged" not in line.decode()
    assert line.count(b" ") == 8


def test_a_pattern_is_logged_as_the_store_has_it() -> None:
    verdict = Verdict(ACCEPT, "rule", detail="rule=a\\x20b@example.org")
    assert b" rule=a\\x20b@example.org " in log.verdict_line(
        Envelope("", "192.0.2.1", b"a", b"b"), verdict, 1
    )
