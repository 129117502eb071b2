"""What the resident answers to mail servers and native children."""

import re
import socket

import pytest

from greycheck import hooks
from greycheck.hooks.record import Hook
from greycheck.policy import ACCEPT, DEFER, REJECT
from tests.resident.conftest import Start
from tests.resident.resident import (
    ACCEPTED,
    DEFERRED,
    REJECTED,
    Closed,
    Resident,
    Value,
    operate,
    request,
)
from tests.support import CLIENT

# --- answers --------------------------------------------------------------------------------------


def test_a_mail_is_deferred_until_it_is_tried_again(resident: Resident) -> None:
    assert resident.ask() == DEFERRED
    assert resident.ask(sender="other@example.org") == DEFERRED
    resident.age(300)
    assert resident.ask() == ACCEPTED
    assert resident.ask(sender="another@example.org") == ACCEPTED
    assert resident.reasons() == ["new", "new", "retry", "client"]


def test_who_hastens_is_rejected(start: Start) -> None:
    resident = start(strikes="2", strike_interval="70s")
    for _ in range(3):
        resident.ask()
        resident.age(10)
    assert resident.ask() == REJECTED
    assert resident.reasons()[-1] == "strikes"


def test_texts_are_those_of_the_settings(start: Start) -> None:
    resident = start(
        defer_text="grau gelistet: {wait} s", reject_text="nein", strikes="1", strike_interval="70s"
    )
    assert resident.ask() == "DEFER_IF_PERMIT 4.2.0 grau gelistet: 300 s"
    resident.age(2)
    assert resident.ask() == "REJECT 5.7.1 nein"


def test_an_accepted_message_gets_one_header(start: Start) -> None:
    resident = start(header="yes", null_sender="accept")
    header = f"PREPEND X-Greylist: exempt, by greycheck at {socket.gethostname()}; "
    assert resident.ask(instance="a.1", sasl_username="alice").startswith(header)
    assert (
        resident.ask(instance="a.1", sasl_username="alice", recipient="carol@example.net")
        == ACCEPTED
    )
    assert resident.ask(instance="a.2", sasl_username="alice").startswith(header)
    assert resident.ask(sasl_username="alice") == ACCEPTED
    assert resident.ask(instance="a.3") == DEFERRED


@pytest.mark.parametrize("state", ["RCPT", "", None])
def test_who_does_not_say_means_a_recipient(resident: Resident, state: str | None) -> None:
    assert resident.ask(protocol_state=state) == DEFERRED


@pytest.mark.parametrize(
    ("attributes", "missing"),
    [
        ({"client_address": None}, "client_address"),
        ({"client_address": ""}, "usable-client_address"),
        ({"client_address": "unknown"}, "usable-client_address"),
        ({"client_address": "192.0.2.256"}, "usable-client_address"),
        ({"sender": None, "recipient": None}, "sender,recipient"),
        (
            {"client_address": None, "sender": None, "recipient": None},
            "sender,recipient,client_address",
        ),
    ],
)
def test_an_incomplete_envelope_is_accepted(
    resident: Resident, attributes: dict[str, Value], missing: str
) -> None:
    assert resident.ask(**attributes) == ACCEPTED
    [line] = resident.verdicts
    assert " reason=incomplete " in line
    assert f" missing={missing} " in line


@pytest.mark.parametrize("attributes", [{"sender": None}, {"sender": ""}, {"recipient": None}])
def test_one_address_may_be_missing(resident: Resident, attributes: dict[str, Value]) -> None:
    assert resident.ask(**attributes) == DEFERRED


def test_an_empty_user_is_nobody(resident: Resident) -> None:
    assert resident.ask(sasl_username="") == DEFERRED


def test_a_mapped_address_is_an_ipv4_client(resident: Resident) -> None:
    assert resident.ask(client_address="::ffff:192.0.2.1") == DEFERRED
    assert resident.ask(client_address="2001:DB8:0::1") == DEFERRED
    assert resident.ask(client_address="64:ff9b::198.51.100.9") == DEFERRED
    clients = [re.findall(r" client=(\S+)", line)[0] for line in resident.verdicts]
    assert clients == [CLIENT, "2001:db8::1", "198.51.100.9"]


@pytest.mark.parametrize(
    "byte", [b"\t", b"\r", b"\x1b", b"\x7f", b"\xff", "ü".encode(), b'"', b"=", b" ", b"<"]
)
def test_any_byte_may_stand_in_an_address(resident: Resident, byte: bytes) -> None:
    assert resident.ask(sender=b"al" + byte + b"ice@example.org") == DEFERRED
    [line] = resident.verdicts
    assert line.isprintable()


def test_the_last_of_two_attributes_counts(resident: Resident) -> None:
    with resident.peer() as peer:
        peer.send(request().replace(b"\nsender=", b"\nsender=mallory@example.org\nsender="))
        assert peer.action() == DEFERRED
    assert "sender=<alice@example.org>" in resident.verdicts[0]


def test_unknown_attributes_are_passed_over(resident: Resident) -> None:
    more: dict[str, Value] = {
        "policy_context": "x",
        "ccert_subject": "y=z",
        "size": "",
        "GREYCHECKER": "1",
    }
    assert resident.ask(**more) == DEFERRED
    assert resident.warnings() == []


def test_a_verified_name_is_one_for_rules(resident: Resident) -> None:
    operate(resident.store, "allow", "name:.example.org")
    assert (
        resident.ask(client_name="mx.example.org", reverse_client_name="mx.example.org") == ACCEPTED
    )
    assert resident.ask(client_name="unknown", reverse_client_name="mx.example.org") == DEFERRED
    assert resident.ask(client_name="unknown") == DEFERRED


# --- settings of a request ------------------------------------------------------------------------


def test_checking_may_be_off_for_a_request(resident: Resident) -> None:
    assert resident.ask(GREYCHECK="off") == ACCEPTED
    assert resident.ask(GREYCHECK="on") == DEFERRED
    assert resident.reasons() == ["exempt", "new"]


def test_a_wrong_setting_of_a_request_is_warned_of_and_its_default_used(resident: Resident) -> None:
    assert resident.ask(GREYCHECK_DELAY="soon", GREYCHECK_DEALY="1m") == DEFERRED
    assert sorted(resident.warnings()) == [
        "GREYCHECK_DEALY: dealy: no such setting: did you mean delay?",
        "GREYCHECK_DELAY: delay = soon: not a duration (as 90, 90s, 5m, 24h or 36d); using 5m",
    ]
    assert resident.ask(sender="b@example.org") == DEFERRED
    assert len(resident.warnings()) == 2


def test_settings_of_thousands_of_requests_cost_no_memory(resident: Resident) -> None:
    with resident.peer() as peer:
        peer.ask()
        before = resident.memory
        for number in range(3000):
            peer.ask(GREYCHECK_DELAY=f"{number + 2}", GREYCHECK_DEFER_TEXT="x" * 4000)
    assert resident.memory - before < 64 << 20


@pytest.mark.parametrize(
    "name",
    [
        "GREYCHECK_DATABASE",
        "GREYCHECK_DATABASE_FILE",
        "GREYCHECK_CONFIG",
        "GREYCHECK_DATABASE_MODE",
    ],
)
def test_a_request_that_names_another_store_is_not_answered(resident: Resident, name: str) -> None:
    with resident.peer() as peer:
        peer.send(request(**{name: "/var/x/y.db"}))
        assert peer.is_closed()
    resident.wait_for("is another one here")
    assert resident.warnings() == [f"{resident.socket}: not answered: {name} is another one here"]
    assert resident.verdicts == []


def test_a_request_may_name_the_same_store(resident: Resident) -> None:
    url = resident.store.url
    assert resident.ask(GREYCHECK_DATABASE=url, GREYCHECK_CONFIG="/dev/null") == DEFERRED
    assert resident.ask(GREYCHECK_DATABASE=url.removeprefix("sqlite:///")) == DEFERRED
    assert resident.warnings() == []


def test_settings_of_the_resident_itself_are_not_a_requests_to_change(resident: Resident) -> None:
    assert resident.ask(GREYCHECK_MAX_CONNECTIONS="1", GREYCHECK_SOCKET="/elsewhere") == DEFERRED
    peers = [resident.peer() for _ in range(3)]
    assert [peer.ask() for peer in peers] == [DEFERRED] * 3
    for peer in peers:
        peer.close()


# --- native children ------------------------------------------------------------------------------

LINE = "greycheck: {} client=192.0.2.1 sender=<alice@example.org> recipient=<bob@example.net>"


every_hook = pytest.mark.parametrize("hook", hooks.every(), ids=lambda hook: hook.NAME)


@every_hook
def test_a_native_child_is_told_how_to_end(resident: Resident, hook: Hook) -> None:
    found = resident.ask_as(hook.NAME)
    assert found["action"] == DEFERRED
    assert found["exit"] == str(hook.ANSWERS[DEFER])
    assert found["log"].startswith(LINE.format("defer reason=new"))
    assert found["log"] == resident.verdicts[0]
    resident.age(300)
    found = resident.ask_as(hook.NAME)
    assert (found["action"], found["exit"], found.get("say")) == (
        ACCEPTED,
        str(hook.ANSWERS[ACCEPT]),
        None,
    )
    assert found["log"].startswith(LINE.format("accept reason=retry"))


@every_hook
def test_a_native_child_is_told_to_reject(start: Start, hook: Hook) -> None:
    resident = start(strikes="1", strike_interval="70s")
    resident.ask()
    resident.age(2)
    assert resident.ask_as(hook.NAME)["exit"] == str(hook.ANSWERS[REJECT])


def test_qmail_spp_is_told_what_to_say(start: Start) -> None:
    resident = start(strikes="1", strike_interval="70s")
    assert (
        resident.ask_as("spp")["say"] == "E451 greylisted, please try again in 300 seconds (#4.3.0)"
    )
    assert resident.ask_as("spp", sender="")["say"].startswith("LD451 ")
    resident.age(2)
    assert resident.ask_as("spp")["say"] == "E553 refused by local policy (#5.7.1)"


def test_a_native_child_gets_warnings_too(resident: Resident) -> None:
    found = resident.ask_as("smtpextfork", GREYCHECK_DELAY="soon")
    warning, verdict = found["log"].split("\n")
    assert warning.startswith("greycheck: warning GREYCHECK_DELAY: delay = soon: ")
    assert verdict.startswith(LINE.format("defer reason=new"))


def test_an_unknown_hook_is_not_answered(resident: Resident) -> None:
    with resident.peer() as peer:
        peer.send(request(greycheck_hook="h\xffok"))
        assert peer.is_closed()
    resident.wait_for("no such hook")


# --- connections ----------------------------------------------------------------------------------


def test_a_mail_server_may_keep_its_connection(resident: Resident) -> None:
    with resident.peer() as peer:
        assert [peer.ask(sender=f"{number}@example.org") for number in range(100)] == [
            DEFERRED
        ] * 100
    assert resident.reasons() == ["new"] * 100


def test_what_follows_a_request_in_the_same_write_is_the_next(resident: Resident) -> None:
    with resident.peer() as peer:
        whole = request() + request(sender="b@example.org")
        peer.send(whole[:-30])
        assert peer.action() == DEFERRED
        peer.send(whole[-30:])
        assert peer.action() == DEFERRED
    assert [re.findall(r" sender=<(\S+)>", line) for line in resident.verdicts] == [
        ["alice@example.org"],
        ["b@example.org"],
    ]


def test_eight_are_served_at_once(resident: Resident) -> None:
    peers = [resident.peer() for _ in range(8)]
    for round_ in range(20):
        for number, peer in enumerate(peers):
            peer.send(request(sender=f"{number}.{round_}@example.org"))
        assert [peer.action() for peer in peers] == [DEFERRED] * 8
    for peer in peers:
        peer.close()
    assert len(resident.verdicts) == 160


def test_who_shuts_his_side_gets_his_answers(resident: Resident) -> None:
    """As Exim's ``readsocket`` does."""
    with resident.peer() as peer:
        peer.send(request() + request(sender="b@example.org"))
        peer.socket.shutdown(socket.SHUT_WR)
        assert [peer.action(), peer.action()] == [DEFERRED, DEFERRED]
        assert peer.is_closed()


def test_who_leaves_before_his_answer_is_no_obstacle(resident: Resident) -> None:
    for number in range(50):
        with resident.peer() as peer:
            peer.send(request(sender=f"{number}@example.org"))
    assert resident.ask() == DEFERRED


@pytest.mark.parametrize(
    "data",
    [
        b"\n\n",
        b"\n",
        b"GET / HTTP/1.0\r\n\r\n\n\n",
        b"request=smtpd_access_policy\nno equals\n\n",
        b"request=junk\nclient_address=192.0.2.1\n\n",
        b"client_address=192.0.2.1\n\n",
        request().replace(b"alice", b"al\0ice"),
        bytes(range(256)) + b"\n\n",
        b"request=smtpd_access_policy\r\nprotocol_state=RCPT\r\n\r\n\n\n",
    ],
)
def test_what_is_no_request_is_not_answered(resident: Resident, data: bytes) -> None:
    with resident.peer() as peer:
        peer.send(data)
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.is_closed()
    assert resident.ask() == DEFERRED
    assert len(resident.verdicts) == 1


def test_a_request_before_what_is_none_is_answered(start: Start) -> None:
    resident = start()
    with resident.peer() as peer:
        peer.send(request() + b"junk\n\n" + request())
        assert peer.action() == DEFERRED
        with pytest.raises(Closed):
            peer.answer()
    assert resident.warnings() == [f"{resident.socket}: not answered: a line without ="]


def test_garbage_cannot_forge_a_line_of_the_log(start: Start) -> None:
    resident = start()
    with resident.peer() as peer:
        peer.send(request(greycheck_hook="x\r\x1b[31m greycheck: accept reason=known"))
        assert peer.is_closed()
    resident.wait_for("no such hook")
    assert all(line.isprintable() for line in resident.lines)
