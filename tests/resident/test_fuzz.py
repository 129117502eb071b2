"""Whatever is sent in whatever pieces: what is a request gets its answer, nothing else does, and
the resident goes on.
"""

import socket
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as some

from greycheck.hooks import every
from tests.resident.resident import Closed, Peer, Resident, request

SETTINGS = settings(max_examples=250)

HOOKS = tuple(hook.NAME.encode() for hook in every())
GOOD_CLIENTS = (b"192.0.2.1", b"198.51.100.77", b"2001:db8::1", b"::ffff:192.0.2.9")
BAD_CLIENTS = (b"", b"unknown", b"192.0.2", b"192.0.2.256", b"::1::", b"192.0.2.1 ", b"\xff")

NAMES = [
    b"request",
    b"protocol_state",
    b"client_address",
    b"sender",
    b"recipient",
    b"sasl_username",
    b"client_name",
]
NAMES += [
    b"helo_name",
    b"instance",
    b"greycheck_hook",
    b"GREYCHECK",
    b"GREYCHECK_DELAY",
    b"RELAYCLIENT",
    b"x",
    b"",
]

values = some.one_of(
    some.sampled_from(
        (
            b"smtpd_access_policy",
            b"RCPT",
            b"DATA",
            b"off",
            b"5m",
            b"a@b.example",
            b"=",
            b"\0",
            b"\r",
        )
    )
    | some.sampled_from(HOOKS + GOOD_CLIENTS + BAD_CLIENTS),
    some.binary(max_size=60).map(lambda value: value.replace(b"\n", b"")),
)
attributes = some.tuples(some.sampled_from(NAMES), values).map(b"=".join)
requests = some.lists(attributes, max_size=9).map(
    lambda lines: b"\n".join([b"request=smtpd_access_policy", *lines, b"", b""])
)
ordinary = some.builds(
    lambda sender, client: request(sender=sender, client_address=client),
    values,
    some.sampled_from(GOOD_CLIENTS + BAD_CLIENTS),
)
streams = some.lists(requests | ordinary | some.binary(max_size=80), max_size=6).map(b"".join)
cuts = some.lists(some.integers(0, 400), max_size=8)


def expected(stream: bytes) -> list[str]:
    """The first words of the answers to STREAM, as the protocol's own words have it."""
    answers = []
    for asked in stream.split(b"\n\n")[:-1]:
        lines = asked.split(b"\n")
        if not all(b"=" in line for line in lines) or b"\0" in asked:
            break
        found = dict(line.split(b"=", 1) for line in lines)
        hook = found.get(b"greycheck_hook")
        if found.get(b"request") != b"smtpd_access_policy":
            break
        if found.get(b"protocol_state", b"RCPT") not in (b"RCPT", b""):
            answers.append("action=DUNNO")
            continue
        if hook is not None and hook not in HOOKS:
            break
        is_let_through = (
            found.get(b"client_address") not in GOOD_CLIENTS
            or (b"sender" not in found and b"recipient" not in found)
            or found.get(b"sasl_username")
            or b"RELAYCLIENT" in found
            or found.get(b"GREYCHECK", b"").strip().lower() == b"off"
        )
        answers.append("action=DUNNO" if is_let_through else "action=DEFER_IF_PERMIT")
        if hook is not None:
            # A native child asks once.
            break
    return answers


def answers(resident: Resident, stream: bytes, pieces: list[int]) -> list[str]:
    """The first words of what the resident answers to STREAM, which is cut into PIECES."""
    with resident.peer() as peer, resident.peer() as other:
        last = 0
        # It may be closed meanwhile.
        with suppress(OSError):
            for cut in [*sorted(pieces), len(stream)]:
                peer.send(stream[last:cut])
                last = max(last, cut)
                # Its answer says that what is sent above was read.
                other.ask(protocol_state="DATA")
        return all_answers(peer)


def all_answers(peer: Peer) -> list[str]:
    """The first words of what PEER is answered when it sends no more.

    Part of an answer counts as one.
    """
    found = []
    with suppress(OSError):
        peer.socket.shutdown(socket.SHUT_WR)
    try:
        while True:
            found.append(peer.answer().decode().split()[0])
    except Closed as closed:
        return found + [part.decode() for part in closed.args if part]


@SETTINGS
@given(stream=streams, pieces=cuts)
def test_what_is_a_request_is_answered_and_nothing_else(
    kept_resident: Resident, stream: bytes, pieces: list[int]
) -> None:
    assert answers(kept_resident, stream, pieces) == expected(stream)
    assert kept_resident.process.poll() is None


@SETTINGS
@given(stream=some.binary(max_size=3000), pieces=cuts)
def test_noise_is_not_answered(kept_resident: Resident, stream: bytes, pieces: list[int]) -> None:
    assert answers(kept_resident, stream, pieces) == []
    assert kept_resident.ask(protocol_state="DATA") == "DUNNO"


@SETTINGS
@given(
    some.lists(some.tuples(some.integers(0, 3), some.binary(max_size=200) | ordinary), max_size=30)
)
def test_peers_do_not_get_each_others_answers(
    kept_resident: Resident, sent: list[tuple[int, bytes]]
) -> None:
    peers = [kept_resident.peer() for _ in range(4)]
    streams = [b"", b"", b"", b""]
    for number, data in sent:
        streams[number] += data
        with suppress(OSError):
            peers[number].send(data)
    for peer, stream in zip(peers, streams, strict=True):
        assert all_answers(peer) == expected(stream)
        peer.close()


def test_it_is_still_the_same_process_and_its_lines_are_whole(kept_resident: Resident) -> None:
    assert all(
        line.startswith("greycheck: ") and line.isprintable() for line in kept_resident.lines
    )
    assert "unforeseen" not in kept_resident.log()
