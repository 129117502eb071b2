"""The SMTP parent of the demonstration and the scenarios, command by command. tests/smtp/ runs it
for real.
"""

import os
import socket
from pathlib import Path

import pytest

from greycheck.demo import smtpd
from greycheck.demo.smtpd import Session, address

SWITCHES = (
    "CHECKENV",
    "RCPTCHECK",
    "RCPTHOSTS",
    "RELAYCLIENT",
    "SMTPEXTFORK",
    "SMTPEXTFORKR",
    "SPP_RCPT",
    "XF_QUITASAP",
)

TEMPORARY = b"421 temporary envelope failure (#4.3.0)"


@pytest.fixture(autouse=True)
def _qmail_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)


def program(path: str, code: int) -> str:
    file = Path.cwd() / path
    file.write_text(f"#!/bin/sh\nexit {code}\n")
    file.chmod(0o755)
    return str(file)


def talk(*commands: bytes) -> list[bytes]:
    """The replies to COMMANDS, sent as one group and followed by the end of input."""
    client, server = socket.socketpair()
    with client, server:
        client.sendall(b"".join(command + b"\r\n" for command in commands))
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(SystemExit):
            Session(server.fileno(), server.fileno()).run()
        server.shutdown(socket.SHUT_WR)
        replies = b""
        while chunk := client.recv(65536):
            replies += chunk
    return replies.removesuffix(b"\r\n").split(b"\r\n")[1:]


RCPT = (b"MAIL FROM:<a@x>", b"RCPT TO:<b@y>")


def rcpt() -> list[bytes]:
    """The replies to a RCPT TO, and to what follows it."""
    return talk(*RCPT, b"NOOP")[1:]


def test_a_message_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    replies = talk(
        b"HELO me",
        *RCPT,
        b"DATA",
        b"Subject: x",
        b"",
        b"..",
        b".",
        b"DATA",
        b"RSET",
        b"QUIT",
        b"NOOP",
    )
    assert [reply[:3] for reply in replies] == [
        b"250",
        b"250",
        b"250",
        b"354",
        b"250",
        b"503",
        b"250",
        b"221",
    ]
    assert capfd.readouterr().err == "smtpd: delivered from <a@x> to <b@y>\n"


def test_commands_out_of_order_are_refused() -> None:
    replies = talk(
        b"EHLO me",
        b"RCPT TO:<b@y>",
        b"MAIL FROM",
        b"MAIL FROM:<a@x>",
        b"RCPT TO",
        b"VRFY x",
        b"NOOP\0x",
    )
    assert [reply[:3] for reply in replies] == [
        b"250",
        b"250",
        b"250",
        b"503",
        b"555",
        b"250",
        b"555",
        b"502",
        b"250",
    ]


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        (b"FROM:<a@x>", b"a@x"),
        (b"FROM: <a@x> SIZE=1", b"a@x"),
        (b"FROM:a@x SIZE=1", b"a@x"),
        (b"FROM:<>", b""),
        (b'FROM:<"">', b""),
        (b'FROM:<"john doe"@x>', b"john doe@x"),
        (b"FROM:<john\\ doe@x>", b"john doe@x"),
        (b'FROM:<"a>b"@x>', b"a>b@x"),
        (b"FROM:<@relay,@other:a@x>", b"a@x"),
        (b"FROM", None),
        (b"FROM:<" + b"x" * 899 + b">", b"x" * 899),
        (b"FROM:<" + b"x" * 900 + b">", None),
    ],
)
def test_addresses_arrive_as_qmail_smtpd_hands_them_on(
    argument: bytes, found: bytes | None
) -> None:
    assert address(argument) == found


@pytest.mark.parametrize(
    ("code", "replies"),
    [
        (0, [b"250 ok", b"250 ok"]),
        (100, [b"553 permanent envelope failure (#5.7.1)"]),
        (101, [TEMPORARY]),
        (111, [TEMPORARY]),
        (None, [TEMPORARY, TEMPORARY]),
    ],
)
def test_what_checkenv_makes_of_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, code: int | None, replies: list[bytes]
) -> None:
    monkeypatch.setenv("CHECKENV", "")
    if code is not None:
        program("bin/qmail-checkenv", code)
    assert rcpt() == replies


@pytest.mark.parametrize(
    ("code", "reply", "logged"),
    [
        (0, b"250 ok", ""),
        (100, b"554 sorry, permanent envelope failure due to local policy", ""),
        (101, b"454 sorry, temporary envelope failure due to local policy", ""),
        (111, b"250 ok", "smtpd: unexpected code 111 from "),
        (None, b"250 ok", "smtpd: cannot run "),
    ],
)
def test_what_smtpextfork_makes_of_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: int | None,
    reply: bytes,
    logged: str,
) -> None:
    monkeypatch.setenv("SMTPEXTFORK", "/nonexistent" if code is None else program("checker", code))
    assert rcpt() == [reply, b"250 ok"]
    assert capfd.readouterr().err.startswith(logged)


def test_a_text_of_the_site_takes_the_place_of_the_refusals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMTPEXTFORK", program("checker", 101))
    monkeypatch.setenv("454SMTPEXTFORK", "come back later")
    assert rcpt() == [b"454 come back later", b"250 ok"]


def test_another_build_closes_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPEXTFORK", program("checker", 101))
    monkeypatch.setenv("XF_QUITASAP", "")
    assert rcpt() == [b"454 sorry, temporary envelope failure due to local policy"]


@pytest.mark.parametrize(
    ("relay_list", "code"), [(None, b"250"), ("", b"250"), ("checker", b"454")]
)
def test_relay_clients_have_a_list_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    relay_list: str | None,
    code: bytes,
) -> None:
    monkeypatch.setenv("RELAYCLIENT", "")
    monkeypatch.setenv("SMTPEXTFORK", program("ordinary", 100))
    if relay_list is not None:
        monkeypatch.setenv("SMTPEXTFORKR", program(relay_list, 101) if relay_list else "")
    assert rcpt()[0][:3] == code
    assert ("SMTPEXTFORKR is not set" in capfd.readouterr().err) == (relay_list is None)


@pytest.mark.parametrize(
    ("code", "replies"),
    [
        (0, [b"250 ok", b"250 ok"]),
        (101, [b"250 ok", b"250 ok"]),
        (100, [b"553 sorry, this recipient is not valid (#5.1.1)", b"250 ok"]),
        (111, [b"421 unable to verify recipient (#4.3.0)"]),
        (120, [b"421 unable to execute recipient check (#4.3.0)"]),
        (None, [b"421 unable to execute recipient check (#4.3.0)"]),
    ],
)
def test_what_rcptcheck_makes_of_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, code: int | None, replies: list[bytes]
) -> None:
    monkeypatch.setenv("RCPTCHECK", "/nonexistent" if code is None else program("checker", code))
    assert rcpt() == replies


@pytest.mark.parametrize(
    ("plugins", "replies"),
    [
        (":", [b"250 ok", b"250 ok"]),
        (
            ":echo; echo HX: y; echo Cx@y; echo SX=y; echo UX; echo LXy; echo",
            [b"250 ok", b"250 ok"],
        ),
        (":echo P250-so", [b"250-so", b"250 ok", b"250 ok"]),
        (":echo E451 no; echo E452 no,:echo E453 no", [b"451 no", b"250 ok"]),
        (":echo N,:echo E451 no", [b"250 ok", b"250 ok"]),
        (":echo R421 no", [b"421 no"]),
        (":echo D", []),
        (":exit 1", [b"250 ok", b"250 ok"]),
        (":exit 120", [b"451 qmail-spp failure: :exit 120: can't execute (#4.3.0)", b"250 ok"]),
        (":kill $$", [b"451 qmail-spp failure: :kill $$: child crashed (#4.3.0)", b"250 ok"]),
        (
            "/nonexistent",
            [b"451 qmail-spp failure: /nonexistent: can't execute (#4.3.0)", b"250 ok"],
        ),
    ],
)
def test_what_qmail_spp_makes_of_a_plugin(
    monkeypatch: pytest.MonkeyPatch, plugins: str, replies: list[bytes]
) -> None:
    monkeypatch.setenv("SPP_RCPT", plugins)
    assert [reply for reply in rcpt() if reply] == replies


def test_what_qmail_spp_says_later(monkeypatch: pytest.MonkeyPatch) -> None:
    later = (b"DATA", b"RCPT TO:<c@y>", b"MAIL FROM:<d@x>", b"RSET", b"MAIL FROM:<d@x>")
    monkeypatch.setenv("SPP_RCPT", ":echo LD451; echo LR452; echo LM453")
    assert [reply[:3] for reply in talk(*RCPT, *later)[1:]] == [
        b"250",
        b"451",
        b"452",
        b"453",
        b"250",
        b"250",
    ]


def test_a_plugin_may_switch_all_plugins_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPP_RCPT", ":test $SMTPRCPTCOUNTALL = 1 || echo A,:echo E451")
    assert [reply[:3] for reply in talk(*RCPT, RCPT[1], RCPT[1])[1:]] == [b"451", b"250", b"250"]


@pytest.mark.parametrize(
    ("recipient", "relay", "plugins", "code"),
    [
        (b"b@Y", None, "", b"250"),
        (b"postmaster", None, "", b"250"),
        (b"b@z", None, "", b"553"),
        (b"b@z", "", "", b"250"),
        (b"b@z", None, ":echo N", b"553"),
        (b"b@z", None, ":echo O", b"250"),
    ],
)
def test_mail_is_taken_for_the_domains_in_rcpthosts(
    monkeypatch: pytest.MonkeyPatch, recipient: bytes, relay: str | None, plugins: str, code: bytes
) -> None:
    monkeypatch.setenv("RCPTHOSTS", "x,y")
    monkeypatch.setenv("SPP_RCPT", plugins)
    if relay is not None:
        monkeypatch.setenv("RELAYCLIENT", relay)
    assert talk(RCPT[0], b"RCPT TO:<" + recipient + b">")[1][:3] == code


def test_main_serves_one_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QMAIL_HOME", str(tmp_path / "bin"))
    sessions: list[str] = []
    monkeypatch.setattr(Session, "run", lambda _self: sessions.append(os.getcwd()))
    smtpd.main()
    assert sessions == [str(tmp_path / "bin")]


def test_a_client_that_has_gone_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_self: Session) -> None:
        raise BrokenPipeError

    monkeypatch.setenv("QMAIL_HOME", ".")
    monkeypatch.setattr(Session, "run", gone)
    with pytest.raises(SystemExit):
        smtpd.main()
