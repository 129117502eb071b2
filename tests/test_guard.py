"""The deadline's thread. Its scenarios with a real hanging store are in test_child.py."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import pytest

from greycheck import guard


class Exited(Exception):
    pass


def never() -> NoReturn:
    raise AssertionError


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes of exits; the clock, the alarm and the thread do not run."""
    found: list[int] = []

    def leave(code: int) -> NoReturn:
        found.append(code)
        raise Exited

    monkeypatch.setattr(guard.posix, "_exit", leave)
    monkeypatch.setattr(guard, "sleep", lambda _seconds: None)
    monkeypatch.setattr(guard._thread, "start_new_thread", lambda _call, _arguments: 0)
    monkeypatch.setattr(guard.log, "alarm", lambda _seconds, _handler: None)
    monkeypatch.setattr(guard.log, "no_alarm", lambda: None)
    return found


def test_an_unsettled_check_is_answered_for(codes: list[int]) -> None:
    def expire() -> NoReturn:
        codes.append(101)
        raise Exited

    with pytest.raises(Exited):
        guard.Guard(5, expire)._watch()
    assert codes[0] == 101


def test_a_settled_check_is_cut_short_with_its_own_code(codes: list[int]) -> None:
    guarded = guard.Guard(-1, never)
    guarded.settle(100)
    with pytest.raises(Exited):
        guarded._watch()
    assert codes == [100]


def test_a_verdict_after_the_deadline_waits_for_the_exit(
    codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = guard.Guard(5, never)
    guarded._verdict.acquire()

    def exit_at_last(_seconds: float) -> NoReturn:
        raise Exited

    monkeypatch.setattr(guard, "sleep", exit_at_last)
    with pytest.raises(Exited):
        guarded.settle(0)
    assert codes == []


def test_a_deadline_within_settling_gives_the_verdict_or_the_answer_for_none(
    codes: list[int],
) -> None:
    """Between any two instructions of it: never a third answer, as an exit code that was not set
    yet would be.
    """

    def expire() -> NoReturn:
        codes.append(101)
        raise Exited

    tried = 0
    while _settle_with_deadline_at(tried, expire, codes):
        assert not codes or codes[0] in (100, 101), f"instruction {tried}"
        tried += 1
    assert tried > 10


def _settle_with_deadline_at(step: int, expire: Callable[[], NoReturn], codes: list[int]) -> bool:
    """Settles with 100, the deadline before the instruction of that number (from 1); whether it has
    so many.
    """
    codes.clear()
    guarded = guard.Guard(5, expire)
    steps = 0

    def at_each_instruction(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal steps
        if frame.f_code is not guard.Guard.settle.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == step:
                sys.settrace(None)
                guarded._watch()
        return at_each_instruction

    before = sys.gettrace()
    try:
        sys.settrace(at_each_instruction)  # type: ignore[arg-type]
        guarded.settle(100)
    except Exited:
        pass
    finally:
        sys.settrace(before)
    return steps >= step
