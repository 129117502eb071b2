"""The policy protocol's attributes, answers and header, and a mail server that knows little of
it.
"""

import email.utils
import re
import socket
from datetime import UTC, datetime

import pytest

from greycheck import settings
from greycheck.envelope import Envelope
from greycheck.hooks import delegation as protocol
from greycheck.hooks.delegation import Malformed
from greycheck.policy import ACCEPT, DEFER, IDENTITY, REJECT, Decision, Rows, TripletRow, Verdict
from greycheck.unknown import Identity
from tests.resident.conftest import Start
from tests.resident.resident import Peer

SETTINGS = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})
NOW = 1795190307
REQUEST = b"request=smtpd_access_policy\n"

# --- the header -----------------------------------------------------------------------------------


def retried(after: int) -> Verdict:
    """The verdict on what is tried again AFTER so many seconds."""
    decision = Decision(Envelope(protocol.NAME, "192.0.2.1", b"a@b", b"c@d"), SETTINGS, NOW)
    decision.advance()
    decision.take_rows(Rows(TripletRow(NOW - after, NOW - after)))
    assert decision.advance() == IDENTITY
    decision.take_identity(Identity())
    assert decision.advance() == ""
    return decision.verdict()


def test_the_header_says_how_long_a_mail_was_delayed() -> None:
    expected = (
        "X-Greylist: delayed 312 seconds by greycheck at mx.example.net; Fri, 20 Nov 2026 15:58:27"
        " +0000"
    )
    assert protocol.header(retried(312), "mx.example.net", NOW) == expected


@pytest.mark.parametrize("reason", ["known", "client", "rule", "exempt", "pool", "error"])
def test_of_other_mail_the_header_says_why_it_passed(reason: str) -> None:
    found = protocol.header(
        Verdict(ACCEPT, reason, detail="rule=secret.example"), "mx.example.net", NOW
    )
    assert found.startswith(f"X-Greylist: {reason}, by greycheck at mx.example.net; ")
    assert "secret" not in found


def test_where_no_delay_is_wanted_none_is_told_of() -> None:
    assert protocol.header(Verdict(ACCEPT, "retry"), "mx", NOW).startswith(
        "X-Greylist: retry, by greycheck at mx; "
    )


@pytest.mark.parametrize("host", ["mx\r\nX-Evil: 1", "mx;", "m x", "mx\0", "mx\xe9", "mx(comment)"])
def test_the_name_of_the_host_adds_nothing_to_the_header(host: str) -> None:
    found = protocol.header(retried(312), host, NOW)
    assert re.fullmatch(
        r"X-Greylist: delayed 312 seconds by greycheck at [\w.-]+; [\w, :+]+", found
    )


def test_no_name_is_too_long_for_the_header() -> None:
    assert len(protocol.header(retried(86400), "x" * 10000, NOW)) < 900
    assert " at localhost; " in protocol.header(retried(312), "", NOW)


@pytest.mark.parametrize("now", [0, 951782400, 1704067199, NOW, 4102444800])
def test_the_date_is_that_of_rfc_5322(now: int) -> None:
    parsed = email.utils.parsedate_to_datetime(protocol.date(now))
    assert parsed == datetime.fromtimestamp(now, UTC)
    assert protocol.date(now) == email.utils.format_datetime(parsed)


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "name", "is_verified"),
    [
        (b"client_name=mx.example.org\nreverse_client_name=other.example", b"mx.example.org", True),
        (b"client_name=unknown\nreverse_client_name=other.example", b"other.example", False),
        (b"client_name=\nreverse_client_name=other.example", b"other.example", False),
        (b"client_name=\nreverse_client_name=unknown", b"", False),
        (b"client_name=unknown", b"", False),
        (b"client_name=", b"", False),
        (b"sender=", b"", False),
    ],
)
def test_a_name_is_verified_where_the_mail_server_says_it(
    attributes: bytes, name: bytes, is_verified: bool
) -> None:
    """Exim has an empty name where Postfix has none."""
    found = protocol.attributes(REQUEST + attributes)
    assert protocol.envelope(found).name == name
    assert protocol.has_verified_name(found) == is_verified


@pytest.mark.parametrize(
    "request_", [b"", b"sender=a", b"request=other", REQUEST + b"sender", REQUEST + b"sender=\0"]
)
def test_what_is_no_request_is_malformed(request_: bytes) -> None:
    with pytest.raises(Malformed):
        protocol.attributes(request_)


def test_a_verdict_is_an_action() -> None:
    assert protocol.action(Verdict(ACCEPT, "known"), SETTINGS) == "DUNNO"
    assert protocol.action(Verdict(DEFER, "new", 300), SETTINGS) == (
        "DEFER_IF_PERMIT 4.2.0 greylisted, please try again later"
    )
    assert (
        protocol.action(Verdict(REJECT, "strikes"), SETTINGS)
        == "REJECT 5.7.1 refused by local policy"
    )


# --- s/qmail --------------------------------------------------------------------------------------


def qmail_postgrey(
    address: tuple[str, int], sender: str, recipient: str, ip: str, host: str
) -> int:
    """What s/qmail's qmail-postgrey exits with: 10 after DEFER_IF_PERMIT, 0 after DUNNO, PREPEND
    and all else.

    It asks once in a connection, for what it has in its arguments (qmail-postgrey(8)): nothing
    about state, HELO or message.
    """
    with Peer(address) as peer:
        peer.send(
            f"request=smtpd_access_policy\nclient_address={ip}\nclient_name={host}\n"
            f"sender={sender}\nrecipient={recipient}\n\n".encode()
        )
        answer = peer.answer()
    assert answer.startswith((b"action=DUNNO", b"action=PREPEND ", b"action=DEFER_IF_PERMIT "))
    return 10 if answer.startswith(b"action=DEFER_IF_PERMIT") else 0


def test_s_qmail_defers_and_then_accepts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    resident = start(listen=f"127.0.0.1:{port}", header="yes")
    asked = (
        ("127.0.0.1", port),
        "alice@example.org",
        "bob@example.net",
        "192.0.2.1",
        "client.example.org",
    )
    assert qmail_postgrey(*asked) == 10
    resident.age(300)
    assert qmail_postgrey(*asked) == 0
    assert resident.reasons() == ["new", "retry"]
