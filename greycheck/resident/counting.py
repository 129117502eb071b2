"""What a resident counts for ``greycheck stats``, in memory, until it is written to the spool.

A thread writes: a disk that does not answer keeps no mail waiting. What is counted since the last
time is lost if the process is killed.
"""

import threading
from time import monotonic

from greycheck import history
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.settings import Settings

# How often it is written, in seconds.
EVERY = 5.0

# How many kinds are kept while nothing can be written; further ones are not counted.
MOST = 10_000

# How long the last writing may take, in seconds.
LAST = 1.0


class Counting:
    """Counts verdicts, and writes them to the spool."""

    def __init__(self) -> None:
        self._numbers: dict[history.Kind, int] = {}
        self._due = monotonic() + EVERY
        self._writer: threading.Thread | None = None

    def add(self, settings: Settings, envelope: Envelope, verdict: Verdict, now: int) -> None:
        """Counts VERDICT on ENVELOPE, given at NOW (seconds since 1970) under SETTINGS."""
        if not settings.history or verdict.reason in history.UNCOUNTED:
            return
        numbers = self._numbers
        kind = history.kind(settings, envelope, verdict, now)
        number = numbers.get(kind, 0)
        if number or len(numbers) < MOST:
            numbers[kind] = number + 1

    def tick(self, settings: Settings) -> None:
        """Begins to write what was counted, if it is time."""
        if self._numbers and monotonic() >= self._due and not self._is_writing():
            self._begin(settings)

    def end(self, settings: Settings) -> None:
        """Writes what is left; waits LAST seconds for it."""
        if self._numbers and not self._is_writing():
            self._begin(settings)
        if self._writer is not None:
            self._writer.join(LAST)

    def _is_writing(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def _begin(self, settings: Settings) -> None:
        self._due = monotonic() + EVERY
        writer = threading.Thread(target=_write, args=(settings, self._numbers), daemon=True)
        try:
            writer.start()
        except RuntimeError:
            return  # no thread can be made just now
        self._numbers, self._writer = {}, writer


def _write(settings: Settings, numbers: "dict[history.Kind, int]") -> None:
    history.append(settings, b"".join(history.line(*each) for each in numbers.items()))
