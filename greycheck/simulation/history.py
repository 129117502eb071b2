"""Attempts, as greycheck's own log tells of them, in the order of their time, and of which mail.

A log does not name mails: attempts of one sender (folded) for one recipient are one mail's, from
whatever network, until one of them is accepted or refused, or no more come. Of the null sender only
those from one network are: what bounces from everywhere is no mail.

Diagnostics: OSError, with its file, where a log cannot be read.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, BinaryIO

from greycheck import normalise
from greycheck.envelope import Envelope, Triplet
from greycheck.mail_logs import checks, lines
from greycheck.outbound import USERS
from greycheck.policy import RuleRow
from greycheck.privilege import files
from greycheck.simulation.store import around

# How long after its last attempt a mail is over, and after its first, in seconds: the slowest known
# sender tries every 25 hours, and none longer than five days (RFC 5321 section 4.5.4.1).
IDLE, LONGEST = 36 * 3600, 5 * 86400

# How often it is looked for mails that are over, in seconds.
SWEEP = 6 * 3600

# How many retries of a mail are remembered: enough to tell whose schedule it is.
RETRIES = 24

# What exempts although a setting decides about it: such mail is simulated.
BY_SETTING = b"null_sender"

# The hooks that tell which recipients are of one message. That of a log is not known: all of one
# client and sender within MESSAGE_TIME are taken for one.
OF_MESSAGES = (b"spp", b"policy")
MESSAGE = b"logged"


# What the reason of a verdict begins with that was only observed.
OBSERVED = "observed "

# What a line may say that counts here, beside its first words.
_SAYS_MORE = re.compile(rb"\b(?:by|observed|delayed|identity|provider|rule)=|hook=(?:spp|policy)\b")


class Counts:
    """How many LINES were read, how many bytes of them, and what was left out, and why."""

    def __init__(self) -> None:
        self.lines = self.bytes = self.checks = self.exempt = self.unusable = 0


class Attempt:
    """One attempt: WHEN (seconds since 1970), its ENVELOPE, and what was logged of it.

    SENDER is folded, RECIPIENT normalised, WRITTEN the sender before folding. IDENTITY is the
    sender's domain where the client was seen to send for it. DELAYED is how long ago the first
    attempt was, in seconds, where a wait ended. RULES are those that decided it. LETTER is true
    where it is a user's own mail.
    """

    __slots__ = (
        "action",
        "delayed",
        "envelope",
        "identity",
        "letter",
        "prefixes",
        "provider",
        "reason",
        "recipient",
        "rules",
        "sender",
        "triplet",
        "when",
        "written",
    )

    def __init__(self, when: int, action: str, reason: str, envelope: Envelope) -> None:
        self.when = when
        self.action = action
        self.reason = reason
        self.envelope = envelope
        self.written, self.sender = _normalised(envelope.sender)
        self.recipient = normalise.mail_address(envelope.recipient)
        # Its triplet as it was last made, and with which prefix lengths.
        self.triplet: Triplet | None = None
        self.prefixes: tuple[int, int] | None = None
        self.identity = b""
        self.provider = ""
        self.delayed = 0
        self.letter = False
        self.rules: list[RuleRow] = []

    @property
    def pair(self) -> tuple[str, bytes, bytes]:
        """What attempts of one mail have in common."""
        network = "" if self.sender else around(self.envelope.client or "")
        return network, self.sender, self.recipient


@lru_cache(1 << 16)
def _normalised(address: bytes) -> tuple[bytes, bytes]:
    """ADDRESS normalised, and folded besides: addresses come again and again."""
    written = normalise.mail_address(address)
    return written, normalise.fold_sender(written)


class Mail:
    """The attempts of one mail, as far as they have come; FIRST and LAST are times.

    LATEST is its last attempt. ENDED is true once the log accepted or refused it. DEFERRALS is how
    many attempts the log deferred. ``networks`` are clients with the times of their attempts.
    ``ways`` is for whoever replays it.
    """

    __slots__ = ("clients", "deferrals", "ended", "first", "latest", "retries", "ways")

    def __init__(self, attempt: Attempt) -> None:
        self.first = attempt.when
        self.latest = attempt
        self.ended = False
        self.deferrals = 0
        self.retries: list[int] = []
        self.clients: list[tuple[int, str]] = []
        self.ways: list[Any] = []

    def take(self, attempt: Attempt) -> None:
        """Takes the ATTEMPT that comes next."""
        self.latest = attempt
        client = attempt.envelope.client
        assert client is not None
        if len(self.clients) < RETRIES:
            self.clients.append((attempt.when, client))
            if attempt.when > self.first:
                self.retries.append(attempt.when - self.first)
        if attempt.action == "defer":
            self.deferrals += 1
        else:
            self.ended = True


class Mails:
    """Puts the attempts of one mail together. WHEN_OVER is called with each mail that is over."""

    def __init__(self, when_over: Callable[[Mail], None]) -> None:
        self._open: dict[tuple[str, bytes, bytes], Mail] = {}
        self._when_over = when_over
        self._swept = 0

    def begun(self, attempt: Attempt) -> Mail | None:
        """Returns the mail of ATTEMPT, if it has been tried before; else None."""
        now, pair = attempt.when, attempt.pair
        if now - self._swept > SWEEP:
            self._sweep(now)
        mail = self._open.get(pair)
        if mail is None or not _is_over(mail, now):
            return mail
        self._when_over(self._open.pop(pair))
        return None

    def take(self, attempt: Attempt, mail: Mail | None) -> Mail:
        """Has MAIL, which ``begun`` returned, take the ATTEMPT; returns it, or a new one."""
        if mail is None:
            mail = Mail(attempt)
            if attempt.action == "defer":
                self._open[attempt.pair] = mail
        mail.take(attempt)
        if mail.ended:
            self._open.pop(attempt.pair, None)
        return mail

    def rest(self) -> Iterator[Mail]:
        """Yields the mails that are still open, and forgets them."""
        while self._open:
            yield self._open.popitem()[1]

    def _sweep(self, now: int) -> None:
        self._swept = now
        for pair in [pair for pair, mail in self._open.items() if _is_over(mail, now)]:
            self._when_over(self._open.pop(pair))


def _is_over(mail: Mail, now: int) -> bool:
    return now - mail.latest.when > IDLE or now - mail.first > LONGEST


# --- reading --------------------------------------------------------------------------------------


class Reader:
    """Reads attempts from logs, as of NOW; counts in COUNTS what there is."""

    def __init__(self, now: int) -> None:
        self.counts = Counts()
        self._now = now
        # The delays of rules that greylist, as far as a line tells them.
        self._delays: dict[str, int] = {}

    def attempts(self, sources: Sequence["Log"]) -> Iterator[Attempt]:
        """Yields the attempts of SOURCES, in the order of their times, which never go back."""
        last = 0
        for when, says in _merged(sources, self._now, self.counts):
            attempt = self._attempt(max(when, last), says)
            if attempt is not None:
                last = attempt.when
                yield attempt

    def _attempt(self, when: int, says: bytes) -> Attempt | None:
        counts, found = self.counts, checks.check(says)
        if found is None:
            return None
        counts.checks += 1
        if found.client is None or b"\0" in found.sender or b"\0" in found.recipient:
            counts.unusable += 1
            return None
        envelope = Envelope("logged", found.client, found.sender, found.recipient)
        attempt = Attempt(when, found.action, found.reason, envelope)
        if _SAYS_MORE.search(found.rest) is None:  # most lines
            return attempt
        pairs = found.pairs()
        if found.reason == "exempt" and pairs.get("by") != BY_SETTING:
            counts.exempt += 1
            attempt.letter = pairs.get("by", b"").decode("ascii", "replace") in USERS
            envelope.exempt = pairs.get("by", b"").decode("ascii", "replace")
            return attempt if attempt.letter else None
        self._take_pairs(attempt, pairs)
        return attempt

    def _take_pairs(self, attempt: Attempt, pairs: dict[str, bytes]) -> None:
        if "observed" in pairs:
            # What was only observed was accepted, and not tried again.
            attempt.reason = f"{OBSERVED}{attempt.reason}"
        if "delayed" in pairs:
            attempt.delayed = _number(pairs["delayed"])
        if "identity" in pairs:
            attempt.identity = normalise.mail_address(attempt.sender).rpartition(b"@")[2]
        if "provider" in pairs:
            attempt.provider = pairs["provider"].decode("ascii", "replace")
        if "rule" in pairs:
            attempt.rules = [self._rule(attempt, pairs)]
        if attempt.reason == "message":
            attempt.envelope.message, attempt.envelope.first = MESSAGE, False
        elif pairs.get("hook") in OF_MESSAGES:
            attempt.envelope.message = MESSAGE

    def _rule(self, attempt: Attempt, pairs: dict[str, bytes]) -> RuleRow:
        """The rule that a line names: it decided, or greylists."""
        pattern = pairs["rule"].decode("utf-8", "replace").replace(",", " ")
        if attempt.reason.removeprefix(OBSERVED) == "rule":
            action = pairs.get("observed", attempt.action.encode()).decode("ascii", "replace")
            named = {"accept": "allow", "reject": "reject"}.get(action, "defer")
            return RuleRow(b"", "recipient", pattern, named, None)
        if attempt.reason.endswith("new") and "wait" in pairs:
            self._delays[pattern] = _number(pairs["wait"])
        return RuleRow(b"", "recipient", pattern, "greylist", self._delays.get(pattern))


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 10 else 0


class Log:
    """A log: the file at PATH, which is opened when its time has come, or an open STREAM."""

    def __init__(self, path: Path | None = None, stream: BinaryIO | None = None) -> None:
        self.path = path
        self.stream = stream

    def open(self) -> BinaryIO:
        """Opens it. Raises OSError."""
        if self.stream is not None:
            return self.stream
        assert self.path is not None
        return files.opened(self.path)


# The time of a line, and what greycheck says by it.
Entry = tuple[int, bytes]


def _merged(sources: Sequence[Log], now: int, counts: Counts) -> Iterator[Entry]:
    """Yields the lines of checks in SOURCES, by time. Only those are open whose times overlap.

    Within one source the order stays: two processes write their lines a moment apart. Raises
    OSError.
    """
    firsts = sorted(
        ((_first(source, now), number) for number, source in enumerate(sources)), reverse=True
    )
    opened: list[tuple[int, int, bytes, Iterator[Entry]]] = []
    while firsts or opened:
        while firsts and (not opened or firsts[-1][0] <= opened[0][0]):
            number = firsts.pop()[1]
            _push(opened, number, _of_log(sources[number], now, counts))
        if opened:
            when, number, says, entries = heappop(opened)
            yield when, says
            if opened or firsts:
                _push(opened, number, entries)
            else:
                yield from entries


def _push(
    opened: list[tuple[int, int, bytes, Iterator[Entry]]], number: int, entries: Iterator[Entry]
) -> None:
    """Puts the next of ENTRIES, of source NUMBER, where it belongs in OPENED, if there is one."""
    entry = next(entries, None)
    if entry is not None:
        heappush(opened, (entry[0], number, entry[1], entries))


def _of_log(source: Log, now: int, counts: Counts) -> Iterator[Entry]:
    stream = source.open()
    try:
        yield from _entries(stream, now, counts)
    finally:
        if source.stream is None:
            stream.close()


def _first(source: Log, now: int) -> int:
    """The time of the first check in SOURCE; 0 for a stream, which can be read only once."""
    if source.stream is not None:
        return 0
    with source.open() as stream:
        return next((when for when, _says in _entries(stream, now, Counts())), 0)


def _entries(stream: BinaryIO, now: int, counts: Counts) -> Iterator[Entry]:
    """Yields the time of each line of a check in STREAM, and what it says."""
    read, said = lines.read, checks.said
    for text in lines.bounded(stream):
        counts.lines += 1
        counts.bytes += len(text) + 1
        if b" reason=" not in text or b"greycheck" not in text:
            continue
        line = read(text, now)
        says = said(line)
        if says is None:
            continue
        if line.when is None:
            counts.unusable += 1
            continue
        yield line.when, says
