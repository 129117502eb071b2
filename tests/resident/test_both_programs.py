"""What each program answers that speaks the policy protocol: resident and ``greycheck policy``."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.resident.resident import ACCEPTED, DEFERRED, REJECTED, Resident, Value, operate, request
from tests.resident.spawned import Spawned
from tests.support import CLIENT, SQLiteFile

Server = Resident | Spawned
StartServer = Callable[..., Server]


@pytest.fixture(params=["serve", "policy"])
def start_server(
    request: pytest.FixtureRequest, place: Path, empty_store: Path
) -> Iterator[StartServer]:
    """Starts one with settings given by name and a store that knows nobody."""
    store = SQLiteFile(place / "greycheck.db", empty_store)
    store.make()
    with ExitStack() as running:

        def started(**settings: str) -> Server:
            if request.param == "serve":
                return running.enter_context(Resident(place, settings, store)).wait()
            return running.enter_context(Spawned(store, {"deadline": "60s"} | settings))

        yield started


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """One with the default settings."""
    return start_server()


def test_the_log_is_that_of_a_child(server: Server) -> None:
    server.ask()
    [line] = server.verdicts
    expected = (
        "greycheck: defer reason=new client=192.0.2.1 sender=<alice@example.org>"
        " recipient=<bob@example.net>"
        r" wait=300 hook=policy ms=\d+"
    )
    assert re.fullmatch(expected, line)


def test_what_a_rule_rejects_is_rejected(server: Server) -> None:
    assert server.ask() == DEFERRED
    operate(server.store, "reject", CLIENT)
    assert server.ask() == REJECTED


def test_later_recipients_of_a_message_pass_with_its_first(start_server: StartServer) -> None:
    server = start_server(client_passes="0")
    server.ask(instance="b.1")
    server.age(300)
    assert server.ask(instance="b.2") == ACCEPTED
    assert server.ask(instance="b.2", recipient="carol@example.net") == ACCEPTED
    assert server.ask(instance="b.3", recipient="dave@example.net") == DEFERRED
    assert server.reasons() == ["new", "retry", "message", "new"]


@pytest.mark.parametrize(
    "state", ["CONNECT", "EHLO", "MAIL", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN", "whatever"]
)
def test_nothing_but_recipients_is_decided_about(server: Server, state: str) -> None:
    assert server.ask(protocol_state=state) == ACCEPTED
    assert server.verdicts == []
    assert isinstance(server, Resident) or server.log() == ""


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"sasl_username": "alice"}, "sasl_username"),
        ({"RELAYCLIENT": ""}, "RELAYCLIENT"),
        ({"RELAYCLIENT": "@fixme"}, "RELAYCLIENT"),
        ({"SMTPAUTHUSER": "alice"}, "SMTPAUTHUSER"),
    ],
)
def test_who_may_relay_is_exempt(server: Server, attributes: dict[str, Value], name: str) -> None:
    assert server.ask(**attributes) == ACCEPTED
    [line] = server.verdicts
    assert " reason=exempt " in line
    assert f"{name}" in line


def test_a_request_may_bring_settings_along(server: Server) -> None:
    assert (
        server.ask(GREYCHECK_DELAY="1m")
        == "DEFER_IF_PERMIT 4.2.0 greylisted, please try again in 60 seconds"
    )
    assert (
        server.ask(GREYCHECK_DELAY="2m", sender="b@example.org")
        == "DEFER_IF_PERMIT 4.2.0 greylisted, please try again in 120 seconds"
    )
    assert server.ask(sender="c@example.org") == DEFERRED
    assert server.ask(GREYCHECK_MODE="observe", sender="d@example.org") == ACCEPTED
    assert server.verdicts[-1].count(" observed=defer ") == 1


def test_several_requests_may_come_in_one_write(server: Server) -> None:
    with server.peer() as peer:
        peer.send(
            b"".join(
                request(GREYCHECK_DELAY=f"{number + 10}", sender=f"{number}@x.example")
                for number in range(40)
            )
        )
        waits = [re.findall(r" in (\d+)", peer.action()) for _ in range(40)]
    assert waits == [[f"{number + 10}"] for number in range(40)]


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    with server.peer() as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for byte in request() + request():
            peer.send(bytes([byte]))
        assert [peer.action(), peer.action()] == [DEFERRED, DEFERRED]
