"""Requests read by their form: whatever comes, it is what is read line by line."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greycheck.envelope import Envelope
from greycheck.hooks import delegation as protocol
from greycheck.hooks.delegation import Malformed
from greycheck.resident import forms
from greycheck.resident.forms import PASSED_OVER, Forms
from greycheck.resident.messages import Messages
from greycheck.resident.peers import Peer
from greycheck.resident.questions import Elsewhere, Reader

NAMES = st.sampled_from(
    [
        b"request",
        b"sender",
        b"recipient",
        b"instance",
        b"size",
        b"GREYCHECK_DELAY",
        b"a.b",
        b"",
        b"\\d",
    ]
)
VALUES = st.sampled_from(
    [b"", b"smtpd_access_policy", b"a=b", b"=", b"a\0b", b"\xff", b"a\rb", b"[^\\n]*"]
)
LINES = st.one_of(st.tuples(NAMES, VALUES).map(b"=".join), st.sampled_from([b"sender", b"", b"x"]))
REQUESTS = st.lists(LINES, min_size=1, max_size=5).map(
    lambda lines: b"\n".join([b"request=smtpd_access_policy", *lines])
)

# As Postfix 3.7 asks.
POSTFIX = b"""request=smtpd_access_policy
protocol_state=RCPT
protocol_name=ESMTP
client_address=192.0.2.1
client_name=mail.example.org
client_port=52430
reverse_client_name=mail.example.org
server_address=192.0.2.25
server_port=25
helo_name=mail.example.org
sender=a@example.org
recipient=b@example.net
recipient_count=0
queue_id=
instance=7f2.6a01b2c3.0
size=12345
etrn_domain=
stress=
sasl_method=
sasl_username=
sasl_sender=
ccert_subject=
ccert_issuer=
ccert_fingerprint=
ccert_pubkey_fingerprint=
encryption_protocol=TLSv1.3
encryption_cipher=TLS_AES_256_GCM_SHA384
encryption_keysize=256
policy_context=
compatibility_level=3.6
mail_version=3.7.11"""


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Forms are learned as soon as they come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "LEARNING", -1)
        yield


def read(attributes: "dict[bytes, bytes] | None") -> dict[bytes, bytes] | None:
    """What anybody wants to know of ATTRIBUTES."""
    return (
        None
        if attributes is None
        else {name: v for name, v in attributes.items() if name not in PASSED_OVER}
    )


def by_lines(request: bytes) -> dict[bytes, bytes] | None:
    try:
        return protocol.attributes(request)
    except Malformed:
        return None


def by_form(found: Forms, request: bytes) -> dict[bytes, bytes] | None:
    try:
        return found.attributes(request)
    except Malformed:
        return None


@given(st.lists(st.tuples(REQUESTS, st.lists(VALUES, max_size=3)), min_size=1, max_size=5))
def test_a_request_is_read_the_same_by_its_form(requests: list[tuple[bytes, list[bytes]]]) -> None:
    found = Forms()
    for request, others in requests:
        for each in (
            request,
            request,
            request,
            *(request.replace(b"a=b", other) for other in others),
        ):
            assert read(by_form(found, each)) == read(by_lines(each))


def test_what_postfix_asks_is_read_by_its_form_from_the_third_time_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Forms()
    for _ in range(2):
        assert found.attributes(POSTFIX) == protocol.attributes(POSTFIX)
    monkeypatch.setattr(protocol, "attributes", None)
    assert found.attributes(POSTFIX)[b"sender"] == b"a@example.org"
    assert not found.attributes(POSTFIX).keys() & PASSED_OVER
    with pytest.raises(Malformed, match="a NUL"):
        found.attributes(POSTFIX.replace(b"a@", b"\0@"))
    with pytest.raises(Malformed, match="no request="):
        found.attributes(POSTFIX.replace(b"smtpd_access_policy", b"other"))


def test_the_forms_of_several_servers_are_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they have as many lines; of more than MOST the one that was learned first is read
    line by line again.
    """
    found = Forms()
    requests = [
        POSTFIX.replace(b"sender=", b"sender%d=" % number) for number in range(forms.MOST + 1)
    ]
    for request in requests:
        for _ in range(2):
            found.attributes(request)
    monkeypatch.setattr(protocol, "attributes", None)
    for number, request in enumerate(requests[1:], 1):
        assert found.attributes(request)[b"sender%d" % number] == b"a@example.org"
    with pytest.raises(TypeError):
        found.attributes(requests[0])


def test_who_always_asks_otherwise_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """To learn a form takes time: one a second, and none that is longer than those of mail
    servers.
    """
    monkeypatch.setattr(forms, "LEARNING", 60)
    learned: list[object] = []
    form = forms._form
    monkeypatch.setattr(forms, "_form", lambda names: learned.append(names) or form(names))  # type: ignore[func-returns-value]
    found = Forms()
    for lines, name in (
        (forms.LINES, b"a"),
        (5, b"a" * forms.BYTES),
        (5, b"a"),
        (6, b"a"),
        (7, b"a"),
    ):
        asked = b"\n".join(
            [
                b"request=smtpd_access_policy",
                *(b"%b%d=" % (name, number) for number in range(lines)),
            ]
        )
        for _ in range(3):
            found.attributes(asked)
    assert [len(names) for names in learned] == [6]  # type: ignore[arg-type]


# --- plain forms ----------------------------------------------------------------------------------

SAID = {
    b"request": [b"smtpd_access_policy", b"", b"other"],
    b"protocol_state": [b"RCPT", b"", b"DATA", b"CONNECT"],
    b"client_address": [b"192.0.2.1", b"2001:db8::1", b"unknown", b""],
    b"client_name": [b"mail.example.org", b"unknown", b""],
    b"reverse_client_name": [b"other.example.org", b"unknown", b""],
    b"helo_name": [b"mail.example.org", b""],
    b"sender": [b"a@example.org", b"", b"a\0b"],
    b"recipient": [b"b@example.net", b""],
    b"instance": [b"7f2.6a01b2c3.0", b""],
    b"sasl_username": [b"", b"bob"],
    b"size": [b"1", b"a=b"],
}
SPECIAL = [b"GREYCHECK_DELAY", b"RELAYCLIENT", b"SPFRESULT", b"greycheck_hook", b"greycheck_time"]


@given(st.data())
def test_a_plain_request_is_the_question_that_it_is_line_by_line(data: st.DataObject) -> None:
    """And one that is not plain, too."""
    names = [*SAID]
    special = data.draw(st.sampled_from([None, None, *SPECIAL]))
    if special:
        names.insert(data.draw(st.integers(0, len(names))), special)
    left_out = data.draw(st.sampled_from([None, None, *SAID]))
    names = [name for name in names if name != left_out]
    values = [
        data.draw(st.sampled_from([*SAID.get(name, [b"", b"pass", b"smtpextfork"])]))
        for name in names
    ]
    request = b"\n".join(map(b"=".join, zip(names, values, strict=True)))
    proper = b"\n".join(
        name + b"=" + (b"smtpd_access_policy" if name == b"request" else b"x") for name in names
    )
    environ = {b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DATABASE": b"/none"}
    readers = [Reader(environ, Messages(), lambda _: None) for _ in range(2)]
    if left_out != b"request":
        for _ in range(2):
            readers[0]._forms.attributes(proper)
        is_plain = special is None and left_out in (None, b"size")
        assert bool(readers[0]._forms._plain) == is_plain
    first, second = (asked(reader, request) for reader in readers)
    assert first == second


def asked(reader: Reader, request: bytes) -> object:
    """What READER makes of REQUEST."""
    try:
        question = reader.question(request, Peer(-1, "test", is_local=True))
    except (Malformed, Elsewhere) as error:
        return repr(error)
    if question is None:
        return None
    envelope = question.envelope
    return (
        [getattr(envelope, name) for name in Envelope.__slots__],
        question.settings.verified_names,
        question.settings.delay,
        question.problems,
        question.hook and question.hook.NAME,
        question.waited is None,
    )
