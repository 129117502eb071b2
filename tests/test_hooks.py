"""Which hook ran the program, and the envelope that each hands over (contract.md sections 1, 3 and 4)."""

import pytest

from greycheck import hooks
from greycheck.hooks import checkenv, smtpextfork

TCP = {b"TCPREMOTEIP": b"192.0.2.1"}


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([b"/var/qmail/bin/greycheck"], "smtpextfork"),
        ([b"greycheck"], "smtpextfork"),
        ([b"bin/qmail-checkenv", b"a", b"b"], "checkenv"),
        ([b"bin/qmail-checkenv", b"", b""], "checkenv"),
        ([b"bin/qmail-checkenv", b"--help", b"b"], "checkenv"),
        ([b"bin/qmail-checkenv", b"expire"], "checkenv"),
        ([b"bin/qmail-checkenv"], "smtpextfork"),
    ],
)
def test_the_number_of_arguments_tells_the_hooks_apart(argv: list[bytes], name: str) -> None:
    hook = hooks.called_by(argv)
    assert hook
    assert name == hook.NAME


@pytest.mark.parametrize("argv", [[b"greycheck", b"expire"], [b"greycheck", b"db", b"upgrade"]])
def test_a_command_is_no_hooks_call(argv: list[bytes]) -> None:
    assert hooks.called_by(argv) is None


def test_checkenv_hands_over_arguments() -> None:
    found = checkenv.envelope([b"x", b"A@b", b"c@D"], TCP | {b"REMOTEMF": b"stale", b"REMOTERCPT": b"stale"})
    assert (found.hook, found.client, found.sender, found.recipient) == ("checkenv", "192.0.2.1", b"A@b", b"c@D")
    assert (found.missing, found.exempt) == ("", "")


@pytest.mark.parametrize("argv", [[b"x", b"a"], [b"x", b"a", b"b", b"c"]])
def test_checkenv_with_other_than_two_arguments_is_incomplete(argv: list[bytes]) -> None:
    assert checkenv.envelope(argv, TCP).missing == "SENDER,RECIPIENT"


def test_smtpextfork_hands_over_variables() -> None:
    found = smtpextfork.envelope([b"x"], TCP | {b"REMOTEMF": b"a@b", b"REMOTERCPT": b"c@d"})
    assert (found.hook, found.sender, found.recipient, found.missing) == ("smtpextfork", b"a@b", b"c@d", "")


@pytest.mark.parametrize("given", [{b"REMOTERCPT": b"c@d"}, {b"REMOTERCPT": b"c@d", b"REMOTEMF": b""}])
def test_the_null_sender_may_be_empty_or_unset(given: dict[bytes, bytes]) -> None:
    found = smtpextfork.envelope([b"x"], TCP | given)
    assert (found.sender, found.missing) == (b"", "")


def test_the_recipient_may_be_empty() -> None:
    assert smtpextfork.envelope([b"x"], TCP | {b"REMOTEMF": b"a@b"}).recipient == b""


def test_without_any_variable_no_hook_called() -> None:
    assert smtpextfork.envelope([b"x"], {}).missing == "REMOTEMF,REMOTERCPT,TCPREMOTEIP"
    assert smtpextfork.envelope([b"x"], TCP).missing == "REMOTEMF,REMOTERCPT"


@pytest.mark.parametrize("address", [b"0.0.0.0", b"", b"unknown", b"::"])
def test_an_unusable_address_is_named(address: bytes) -> None:
    found = checkenv.envelope([b"x", b"", b""], {b"TCPREMOTEIP": address})
    assert (found.client, found.missing) == (None, "usable-TCPREMOTEIP")


@pytest.mark.parametrize("name", ["RELAYCLIENT", "SMTPAUTHUSER"])
@pytest.mark.parametrize("value", [b"", b"@fixme"])
def test_a_relay_or_authenticated_client_is_exempt_even_if_the_variable_is_empty(name: str, value: bytes) -> None:
    assert checkenv.envelope([b"x", b"", b""], TCP | {name.encode(): value}).exempt == name
