"""``greycheck doctor --monitor``: one line for Nagios and its kin, within a time.

The examinations run in a process of its own, which is killed when the time is over: a disk or a
database that does not answer holds it, not the monitor. What it has started dies with it. Where the
monitor itself is killed, its own alarm ends it; the directory of a trial that is left goes at a
later trial. The line and the exit codes are those of the Monitoring Plugins' guidelines.
"""

import json
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from time import monotonic

import click

from greycheck.doctor.finding import LEVELS, Finding, safe

OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

# The largest answer in bytes, how many findings the line names, and how long its words are.
MOST = 1 << 20
NAMED = 3
LONGEST = 400

# How many seconds later than the monitor the other process gives up by itself.
LATER = 1.0


def monitored(examined: Callable[[], list[Finding]], timeout: float) -> tuple[int, str]:
    """Returns the exit code and the line on what is EXAMINED, after TIMEOUT seconds at most."""
    began = monotonic()
    answer = _asked(examined, timeout)
    took = monotonic() - began
    time = f"time={took:.2f}s;;;0;{timeout:g}"
    if answer is None:
        return UNKNOWN, _line(UNKNOWN, f"no answer within {timeout:g}s", time)
    if isinstance(answer, str):
        return UNKNOWN, _line(UNKNOWN, answer, time)
    faults, warnings, notes = (
        [one for one in answer if one.level == level] for level in ("fault", "warning", "note")
    )
    code = CRITICAL if faults else WARNING if warnings else OK
    worst = faults + warnings
    said = [f"{one.about}: {one.found}" for one in worst[:NAMED]]
    if len(worst) > NAMED:
        said.append(f"{len(worst) - NAMED} more")
    numbers = (
        f"faults={len(faults)};;0;0 warnings={len(warnings)};0;;0 notes={len(notes)};;;0 {time}"
    )
    words = "; ".join(said) or "nothing here would stop mail or greylisting"
    return code, _line(code, words, numbers)


def _line(code: int, words: str, numbers: str) -> str:
    """Returns the line; | would begin the numbers, and others may have written WORDS."""
    plain = safe(words).replace("|", "/")
    shown = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}..."
    return f"GREYCHECK {WORDS[code]} - {shown} | {numbers}"


def _asked(examined: Callable[[], list[Finding]], timeout: float) -> list[Finding] | str | None:
    """Returns what another process has EXAMINED, what went wrong there, or None: no answer."""
    end = monotonic() + timeout
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _examine(examined, writer, timeout + LATER)
    os.close(writer)
    answer = b""
    try:
        while len(answer) <= MOST:
            if not select.select([reader], [], [], max(0.0, end - monotonic()))[0]:
                return None
            more = os.read(reader, 65536)
            if not more:
                break
            answer += more
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        # What it has started, too.
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        # Where even that takes time, its end is not waited for.
        os.waitpid(child, os.WNOHANG)
    return _read(answer)


def _read(answer: bytes) -> list[Finding] | str:
    try:
        found = json.loads(answer)
    except ValueError:
        return "the examination ended without an answer"
    if isinstance(found, str):
        return found
    return [Finding(*each) for each in found if each[0] in LEVELS]


def _examine(examined: Callable[[], list[Finding]], writer: int, seconds: float) -> None:
    """In the other process: sends what is EXAMINED to WRITER, for SECONDS. Does not return."""
    try:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        try:
            answer = json.dumps([astuple(one) for one in examined()])
        except click.ClickException as error:
            answer = json.dumps(error.message)
        except Exception as error:
            answer = json.dumps(f"{type(error).__name__}: {error}")
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer.encode())
    finally:
        os._exit(0)
