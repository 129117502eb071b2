"""Faults that nobody foresaw: they cost what was asked in that moment, and never the resident."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.resident.conftest import Start
from tests.resident.resident import DEFERRED, Peer, Resident, request

FAULT = "DEFER_IF_PERMIT 4.3.0 temporary failure, please try again later"

# A resident in which one function fails where what it is called with has to do with
# boom@example.org.
FAULTY = """
import os, socket, sys, time
import {module} as module
holder = getattr(module, "{holder}", module)
works = holder.{name}
def {name}(*arguments, **more):
    if {when}:
        {how}
    return works(*arguments, **more)
holder.{name} = {name}
from greycheck.cli.main import cli
cli(prog_name="greycheck")
"""


FAILS = 'raise ZeroDivisionError("the moon is wrong")'
HANGS = "time.sleep(600)"


def faulty(module: str, name: str, when: str, how: str = FAILS) -> dict[str, Any]:
    """Options of a resident in which NAME of MODULE fails where the expression WHEN is true of its
    ARGUMENTS; HOW is what it does then.
    """
    holder, _, function = name.rpartition(".")
    return {
        "program": [
            "-c",
            FAULTY.format(module=module, holder=holder, name=function, when=when, how=how),
        ]
    }


def ask_for_trouble(peer: Peer) -> str:
    return peer.ask(sender="boom@example.org")


def complaints(resident: Resident) -> list[str]:
    """What is complained of, without the place in the program."""
    found = [line for line in resident.warnings() if line.startswith("unforeseen: ")]
    assert all(re.search(r" \(\S+:\d+\)$", line) for line in found), found
    return [line.rpartition(" (")[0] for line in found]


OF_SENDER = "arguments[1].envelope.sender == b'boom@example.org'"
AMONG_THEM = "any(each.envelope.sender == b'boom@example.org' for each in arguments[1])"

IN_THE_STORE = {
    "deciding": ("greycheck.check", "decide", OF_SENDER),
    "writing": ("greycheck.resident.batch_store", "Store.save", OF_SENDER),
    "all": ("greycheck.resident.file_store", "FileStore.decide", AMONG_THEM),
}


@pytest.mark.parametrize("fault", IN_THE_STORE)
def test_what_was_asked_is_answered_by_on_error(start: Start, fault: str) -> None:
    resident = start(faulty(*IN_THE_STORE[fault]), on_error="defer")
    with resident.peer() as peer:
        assert peer.ask() == DEFERRED
        for number in range(1, 4):
            assert ask_for_trouble(peer) == FAULT
            assert peer.ask(sender=f"{number}@example.org") == DEFERRED
    assert [reason for reason in resident.reasons() if reason != "error"] == ["new"] * 4
    errors = [line for line in resident.verdicts if " reason=error " in line]
    assert len(errors) == 3
    assert all(' error="ZeroDivisionError: the moon is wrong" ' in line for line in errors)
    if fault == "all":
        assert complaints(resident) == ["unforeseen: ZeroDivisionError: the moon is wrong"] * 3


@pytest.mark.parametrize("fault", IN_THE_STORE)
def test_the_store_is_in_order_afterwards(start: Start, fault: str) -> None:
    resident = start(faulty(*IN_THE_STORE[fault]))
    with resident.peer() as peer:
        ask_for_trouble(peer)
        assert peer.ask() == DEFERRED
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(1,)]
    resident.age(300)
    assert resident.ask() == "DUNNO"


def test_who_waits_for_a_lock_meanwhile_is_answered_once(start: Start) -> None:
    resident = start(faulty(*IN_THE_STORE["all"]), on_error="defer")
    with resident.store.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with resident.peer() as waiting, resident.peer() as other:
            waiting.send(request())
            assert ask_for_trouble(other) == FAULT
            assert waiting.action() == FAULT
            connection.exec_driver_sql("ROLLBACK")
            assert waiting.ask().startswith("DEFER_IF_PERMIT 4.2.0 greylisted, ")
            assert other.ask().startswith("DEFER_IF_PERMIT 4.2.0 greylisted, ")
    assert resident.reasons().count("error") == 2


OF_A_PEER = {
    "reading": ("greycheck.resident.peers", "Peer.read", "b'boom' in arguments[0].input"),
    "understanding": ("greycheck.resident.questions", "Reader.question", "b'boom' in arguments[1]"),
    "answering": ("greycheck.resident.questions", "Writer.answer", OF_SENDER),
    "sending": ("greycheck.resident.peers", "Peer.write", "b' 77 ' in arguments[1]"),
}


@pytest.mark.parametrize("fault", OF_A_PEER)
def test_who_cannot_be_answered_is_left(start: Start, fault: str) -> None:
    resident = start(faulty(*OF_A_PEER[fault]))
    with resident.peer() as other:
        assert other.ask() == DEFERRED
        for number in range(3):
            with resident.peer() as peer:
                # Another triplet each time: its delay begins anew.
                asked = request(
                    sender="boom@example.org",
                    recipient=f"{number}@example.com",
                    GREYCHECK_DELAY="77s",
                )
                peer.send(asked[:-1])
                other.ask(protocol_state="DATA")
                peer.send(asked[-1:])
                assert peer.is_closed()
            assert other.ask(sender="b@example.org").startswith("DEFER_IF_PERMIT ")
    assert complaints(resident)[0] == "unforeseen: ZeroDivisionError: the moon is wrong"


def test_who_cannot_be_counted_is_answered(start: Start) -> None:
    of_sender = "arguments[2].sender == b'boom@example.org'"
    resident = start(faulty("greycheck.resident.counting", "Counting.add", of_sender))
    with resident.peer() as peer:
        assert ask_for_trouble(peer) == DEFERRED
        assert peer.ask() == DEFERRED
    assert resident.reasons() == ["new"] * 2
    assert complaints(resident) == ["unforeseen: ZeroDivisionError: the moon is wrong"]


def test_who_cannot_be_read_when_he_is_taken_is_left(start: Start) -> None:
    peeked = "socket.socket(fileno=os.dup(arguments[0].descriptor)).recv(9999, socket.MSG_PEEK)"
    resident = start(faulty("greycheck.resident.peers", "Peer.read", f"b'boom' in {peeked}"))
    resident.signal(signal.SIGSTOP)
    with resident.peer() as peer:
        peer.send(request(sender="boom@example.org"))
        resident.signal(signal.SIGCONT)
        assert peer.is_closed()
    assert resident.ask() == DEFERRED


@pytest.mark.parametrize(
    "name",
    [
        "Connections.sweep",
        "Connections.accept",
        "FileStore.tick",
        "Server._handle_other",
        "Server._obey",
        "Journal.warn",
    ],
)
def test_a_fault_that_stays_is_survived(start: Start, name: str) -> None:
    """Twice at least: what comes up at each turn, and what comes up while that is dealt with."""
    holder = name.partition(".")[0]
    module = "file_store" if holder == "FileStore" else holder.lower()
    often = "len(tries := sys.modules.setdefault('tries', [])) < 3 and not tries.append(1)"
    resident = start(faulty(f"greycheck.resident.{module}", name, often))
    resident.reread()
    with resident.peer() as peer:
        peer.send(b"junk\n\n")
        assert peer.is_closed()
    assert resident.ask() == DEFERRED


def test_a_disk_that_hangs_ends_it_with_an_answer_so_that_it_is_started_anew(place: Path) -> None:
    options = faulty("greycheck.check", "decide", OF_SENDER, HANGS)
    resident = Resident(
        place, {"deadline": "1s", "on_error": "defer"}, program=options["program"]
    ).wait()
    with resident.peer() as peer, resident.peer() as other:
        assert other.ask() == DEFERRED
        assert ask_for_trouble(peer) == FAULT
        assert peer.is_closed()
        assert other.is_closed()
    assert resident.end() == 111
    assert ' error="no answer within 1s" ' in resident.verdicts[-1]
    assert resident.warnings() == ["the store does not answer: greycheck serve ends"]
