"""Which hook ran the program, the envelope that each hands over, and what it is told
(docs/hooks.rst).
"""

import pytest

from greycheck import hooks, settings
from greycheck.envelope import Envelope
from greycheck.hooks import calling, checkenv, rcptcheck, smtpextfork, spp
from greycheck.hooks.record import Hook
from greycheck.policy import ACCEPT, DEFER, REJECT, Verdict

SETTINGS = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})

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
        ([b"/var/qmail/bin/greycheck-rcptcheck"], "rcptcheck"),
        ([b"/var/qmail/bin/greycheck-spp"], "spp"),
        ([b"greycheck-spp/greycheck"], "smtpextfork"),
    ],
)
def test_name_and_number_of_arguments_tell_the_hooks_apart(argv: list[bytes], name: str) -> None:
    hook = hooks.called_by(argv)
    assert hook
    assert name == hook.NAME


@pytest.mark.parametrize(
    "argv",
    [
        [b"greycheck", b"expire"],
        [b"greycheck", b"db", b"upgrade"],
        [b"greycheck-rcptcheck", b"a", b"b"],
        [b"greycheck-spp", b"expire"],
    ],
)
def test_a_command_is_no_hooks_call(argv: list[bytes]) -> None:
    assert hooks.called_by(argv) is None


def test_checkenv_hands_over_arguments() -> None:
    found = checkenv.envelope(
        [b"x", b"A@b", b"c@D"], TCP | {b"REMOTEMF": b"stale", b"REMOTERCPT": b"stale"}
    )
    assert (found.hook, found.client, found.sender, found.recipient) == (
        "checkenv",
        "192.0.2.1",
        b"A@b",
        b"c@D",
    )
    assert (found.missing, found.exempt) == ("", "")


@pytest.mark.parametrize("argv", [[b"x", b"a"], [b"x", b"a", b"b", b"c"]])
def test_checkenv_with_other_than_two_arguments_is_incomplete(argv: list[bytes]) -> None:
    assert checkenv.envelope(argv, TCP).missing == "SENDER,RECIPIENT"


def test_smtpextfork_hands_over_variables() -> None:
    found = smtpextfork.envelope([b"x"], TCP | {b"REMOTEMF": b"a@b", b"REMOTERCPT": b"c@d"})
    assert (found.hook, found.sender, found.recipient, found.missing) == (
        "smtpextfork",
        b"a@b",
        b"c@d",
        "",
    )


@pytest.mark.parametrize(
    "given", [{b"REMOTERCPT": b"c@d"}, {b"REMOTERCPT": b"c@d", b"REMOTEMF": b""}]
)
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
def test_a_relay_or_authenticated_client_is_exempt_even_if_the_variable_is_empty(
    name: str, value: bytes
) -> None:
    assert checkenv.envelope([b"x", b"", b""], TCP | {name.encode(): value}).exempt == name


# --- RCPTCHECK ------------------------------------------------------------------------------------


def test_rcptcheck_hands_over_variables() -> None:
    stale = {b"REMOTEMF": b"stale", b"REMOTERCPT": b"stale", b"REMOTEHELO": b"stale"}
    found = rcptcheck.envelope([b"x"], TCP | stale | {b"SENDER": b"a@b", b"RECIPIENT": b"c@d"})
    assert (found.hook, found.sender, found.recipient, found.helo) == (
        "rcptcheck",
        b"a@b",
        b"c@d",
        b"",
    )
    assert (found.missing, found.message) == ("", b"")
    assert rcptcheck.envelope([b"x"], TCP).missing == "SENDER,RECIPIENT"


def test_rcptcheck_takes_no_code_of_the_others_for_a_deferral() -> None:
    assert rcptcheck.ANSWERS == {ACCEPT: 0, DEFER: 111, REJECT: 100}


@pytest.mark.parametrize("hook", [smtpextfork, checkenv, rcptcheck])
def test_nothing_is_said_on_the_smtp_connection(hook: Hook) -> None:
    envelope = Envelope(hook.NAME, "192.0.2.1", b"", b"b@y")
    assert calling.reply(hook, Verdict(DEFER, "new", 300), envelope, SETTINGS) == b""
    assert hook.reply is None


# --- qmail-spp ------------------------------------------------------------------------------------

SPP = TCP | {
    b"SMTPMAILFROM": b"a@b",
    b"SMTPRCPTTO": b"c@d",
    b"SMTPHELOHOST": b"me",
    b"TCPREMOTEPORT": b"25025",
}


def test_spp_hands_over_variables() -> None:
    found = spp.envelope([b"x"], SPP)
    assert (found.hook, found.sender, found.recipient, found.helo) == ("spp", b"a@b", b"c@d", b"me")
    assert (found.missing, found.exempt) == ("", "")
    assert spp.envelope([b"x"], TCP).missing == "SMTPMAILFROM,SMTPRCPTTO"


@pytest.mark.parametrize(
    ("accepted", "asked", "first", "told"),
    [
        (None, None, True, True),
        (b"0", None, True, True),
        (b"2", None, False, True),
        (b"0", b"1", True, True),
        (b"0", b"0", True, True),
        (b"0", b"2", False, False),
        (b"1", b"2", False, True),
        (b"1", b"1", True, True),
        (b"1", b"x", False, True),
    ],
)
def test_spp_tells_a_recipients_place_in_its_message(
    accepted: bytes | None, asked: bytes | None, first: bool, told: bool
) -> None:
    counts = {b"SMTPRCPTCOUNT": accepted, b"SMTPRCPTCOUNTALL": asked}
    found = spp.envelope(
        [b"x"], SPP | {name: value for name, value in counts.items() if value is not None}
    )
    assert (found.first, found.message) == (first, b"192.0.2.1 port 25025" if told else b"")


def test_without_the_clients_port_no_message_is_told_from_another() -> None:
    assert (
        spp.envelope(
            [b"x"], {name: value for name, value in SPP.items() if name != b"TCPREMOTEPORT"}
        ).message
        == b""
    )


@pytest.mark.parametrize(("allowed", "exempt"), [(b"0", "SMTPRCPTHOSTSOK"), (b"1", ""), (b"", "")])
def test_recipients_that_rcpthosts_refuses_are_left_to_it(allowed: bytes, exempt: str) -> None:
    assert spp.envelope([b"x"], SPP | {b"SMTPRCPTHOSTSOK": allowed}).exempt == exempt
    assert (
        spp.envelope([b"x"], SPP | {b"SMTPRCPTHOSTSOK": allowed, b"RELAYCLIENT": b""}).exempt
        == "RELAYCLIENT"
    )


def said(verdict: Verdict, sender: bytes = b"a@b", first: bool = True, **texts: str) -> bytes:
    """What qmail-spp is told of VERDICT, under the settings of those TEXTS."""
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})
    for name, value in texts.items():
        setattr(found, name, value)
    return spp.reply(verdict, Envelope("spp", "192.0.2.1", sender, b"c@d", first=first), found)


def test_spp_is_told_nothing_of_an_acceptance() -> None:
    assert said(Verdict(ACCEPT, "known")) == b""
    assert set(spp.ANSWERS.values()) == {0}


def test_spp_is_told_of_a_deferral_and_a_rejection() -> None:
    deferral = Verdict(DEFER, "new", 300)
    assert said(deferral) == b"E451 greylisted, please try again later (#4.3.0)\n"
    assert said(deferral, defer_text="later") == b"E451 later (#4.3.0)\n"
    assert said(Verdict(REJECT, "rule")) == b"E553 refused by local policy (#5.7.1)\n"
    assert (
        said(Verdict(DEFER, "error"))
        == b"E451 temporary failure, please try again later (#4.3.0)\n"
    )


def test_the_null_sender_is_refused_later_and_once_a_message() -> None:
    assert said(Verdict(DEFER, "new", 300), b"").startswith(b"LD451 ")
    assert said(Verdict(REJECT, "rule"), b"").startswith(b"LD553 ")
    assert said(Verdict(DEFER, "new", 300), b"", first=False).startswith(b"E451 ")


@pytest.mark.parametrize("text", ["x" * 1000, "\u00fc" * 1000, "a\r\nE250 b\0c", "\udcff"])
def test_whatever_the_text_is_it_is_one_line(text: str) -> None:
    line = said(Verdict(DEFER, "new", 300), defer_text=text)
    assert line.startswith(b"E451 ")
    assert line.endswith(b" (#4.3.0)\n")
    assert len(line) <= len(b"E451  (#4.3.0)\n") + spp.LONGEST
    assert not {0, 10, 13} & set(line[:-1])
    line.decode()
