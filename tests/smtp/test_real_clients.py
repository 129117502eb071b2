"""Clients that others wrote: swaks, smtplib and Postfix's smtp-source."""

import smtplib
import subprocess

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, TIMEOUT, mail
from tests.smtp.mailhost import MailHost, Server, tool
from tests.support import both_ways

pytestmark = both_ways

SENDER = "alice@example.org"
RECIPIENT = "bob@example.net"
MESSAGE = f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nSubject: hello\r\n\r\nHello.\r\n"

# swaks: the server took no recipient.
NO_RECIPIENTS = 24


def swaks(mx: MailHost, server: Server, *options: str) -> "subprocess.CompletedProcess[str]":
    """Sends one mail with swaks, which looks for a file of options in its home."""
    where = ["--server", server.host, "--port", str(server.port), "--helo", "client.example.org"]
    return subprocess.run(
        [tool("swaks"), *where, "--from", SENDER, "--to", RECIPIENT, *options],
        env={"PATH": "/usr/bin:/bin", "HOME": str(mx.place)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def smtp_source(server: Server, *options: str) -> "subprocess.CompletedProcess[str]":
    """Sends mail with smtp-source."""
    return subprocess.run(
        [
            tool("smtp-source"),
            "-f",
            SENDER,
            "-t",
            RECIPIENT,
            *options,
            f"inet:{server.host}:{server.port}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def delivered(mx: MailHost) -> int:
    """How many messages the parent took, counted by recipient."""
    return sum(line.startswith("smtpd: delivered ") for line in mx.log())


def test_swaks_is_deferred_and_then_delivers(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    ran = swaks(mx, server)
    assert ran.returncode == NO_RECIPIENTS, ran.stdout + ran.stderr
    mx.age(300)
    ran = swaks(mx, server)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert mx.reasons() == ["new", "retry"]
    assert delivered(mx) == 1


def test_swaks_pipelines_and_is_deferred_and_then_delivers(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    ran = swaks(mx, server, "--pipeline")
    assert ran.returncode == NO_RECIPIENTS, ran.stdout + ran.stderr
    mx.age(300)
    ran = swaks(mx, server, "--pipeline")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert mx.reasons() == ["new", "retry"]


def test_smtplib_is_deferred_and_then_delivers_under_smtpextfork(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    refused = send(server)
    assert refused == {RECIPIENT: (454, b"sorry, temporary envelope failure due to local policy")}
    mx.age(300)
    assert send(server) == {}
    assert delivered(mx) == 1


def test_smtplib_is_deferred_and_then_delivers_under_checkenv(mx: MailHost) -> None:
    server = mx.start(CHECKENV="")
    refused = send(server)
    assert refused == {RECIPIENT: (421, b"temporary envelope failure (#4.3.0)")}
    mx.age(300)
    assert send(server) == {}
    assert delivered(mx) == 1


def send(server: Server) -> dict[str, tuple[int, bytes]]:
    """Sends the message with smtplib; the recipients that were refused, with code and text."""
    with smtplib.SMTP(server.host, server.port, "client.example.org", timeout=TIMEOUT) as client:
        try:
            return client.sendmail(SENDER, [RECIPIENT], MESSAGE)
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients


def test_smtplib_hands_over_to_those_recipients_that_pass(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck, GREYCHECK_CLIENT_PASSES="0")
    send(server)
    mx.age(300)
    with smtplib.SMTP(server.host, server.port, "client.example.org", timeout=TIMEOUT) as client:
        refused = client.sendmail(SENDER, [RECIPIENT, "carol@example.net"], MESSAGE)
    assert list(refused) == ["carol@example.net"]
    assert delivered(mx) == 1


def test_smtp_source_delivers_twenty_messages_of_a_known_client_in_four_sessions(
    mx: MailHost, hook: Hook
) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(300)
    server.play(mail(ACCEPTED))
    ran = smtp_source(server, "-s4", "-m20", "-N")
    assert ran.returncode == 0, ran.stderr
    assert delivered(mx) == 1 + 20
    assert mx.reasons()[2:] == ["client"] * 20


def test_smtp_source_is_refused_while_it_is_unknown(mx: MailHost) -> None:
    server = mx.start(SMTPEXTFORK=mx.greycheck)
    ran = smtp_source(server)
    assert ran.returncode != 0
    assert "454 sorry" in ran.stderr
    assert mx.reasons() == ["new"]
