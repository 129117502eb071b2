"""A log of greycheck's that was never written, and what is true of it whatever the delay is.

It has hosts that send spam and never come again, and servers that retry by a schedule and then send
more mail. Each client is in a network of its own. What becomes of each mail follows from its
schedule by arithmetic: no decision of greycheck's is made here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from greycheck.envelope import Envelope
from greycheck.log import verdict_line
from greycheck.policy import Verdict
from greycheck.simulation.schedules import SERVERS

DAY = 86400


@dataclass
class Truth:
    """How many mails pass at their first attempt, later, and never; and how long these waited."""

    at_once: int = 0
    delayed: int = 0
    never: int = 0
    deferrals: int = 0
    waited: int = 0
    longest: int = 0
    stood_in: int = 0


# A time, a client, a sender, a recipient, and a verdict.
Event = tuple[int, str, bytes, bytes, Verdict]


class Synthetic:
    """A log of SENDERS from BEGAN on, DAYS long, that was written where DELAY was so many seconds.

    Each server's later mails come MAILS times, a day at least after the one before.
    """

    # Those whose first retry tells their schedule from all others'.
    NAMES: Sequence[str] = ("qmail", "Postfix", "Exim", "Sendmail", "KumoMTA")

    def __init__(
        self, seed: int, senders: int, began: int, days: int, delay: int, mails: int
    ) -> None:
        self.random = Random(seed)
        self.senders = senders
        self.began = began
        self.days = days
        self.delay = delay
        self.mails = mails

    def _servers(self) -> Iterator[tuple[int, int, Sequence[int]]]:
        """Each server: its number, when it first sends, and its schedule."""
        draw = Random(self.random.random())
        for number in range(self.senders):
            begins = self.began + draw.randrange(max(1, self.days - self.mails - 3)) * DAY
            yield number, begins + draw.randrange(DAY), SERVERS[draw.choice(self.NAMES)]

    def events(self) -> list[Event]:
        """All lines, in the order of their times."""
        self.random.seed(1)
        found: list[Event] = []
        for number, begins, schedule in self._servers():
            client = f"{40 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.25"
            sender = f"user{number % 977}@host{number}.example".encode()
            found += self._spam(number, begins)
            for after in schedule:
                passes = after >= self.delay
                verdict = (
                    Verdict("accept", "retry", delayed=after)
                    if passes
                    else Verdict("defer", "early" if after else "new", self.delay - after)
                )
                found.append((begins + after, client, sender, b"bob@example.net", verdict))
                if passes:
                    break
            for more in range(self.mails):
                when = begins + (more + 1) * DAY + 7 * number % 20000
                to = f"user{more}@example.net".encode()
                found.append((when, client, sender, to, Verdict("accept", "client")))
        found.sort(key=lambda event: event[0])
        return found

    def _spam(self, number: int, begins: int) -> Iterator[Event]:
        """One bot for each server: half of them try twice within a minute."""
        client = f"{140 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.66"
        for after in (0, 40) if number % 2 else (0,):
            verdict = Verdict("defer", "early" if after else "new", self.delay - after)
            sender = f"spam{number}@victim.example".encode()
            yield begins + 17 + after, client, sender, b"bob@example.net", verdict

    def truth(self, delay: int) -> Truth:
        """What is true of it with a DELAY of so many seconds, all mails counted."""
        self.random.seed(1)
        found = Truth(at_once=self.senders * self.mails, never=self.senders)
        found.deferrals = self.senders + self.senders // 2
        for _number, _begins, schedule in self._servers():
            found.delayed += 1
            waited = next(after for after in schedule if after >= delay)
            logged = next(after for after in schedule if after >= self.delay)
            found.deferrals += schedule.index(waited)
            found.waited += waited
            found.longest = max(found.longest, waited)
            found.stood_in += waited > logged
        return found


def written(events: Sequence[Event]) -> Iterator[bytes]:
    """The lines of EVENTS as multilog has them, with TAI64N."""
    for when, client, sender, recipient, verdict in events:
        envelope = Envelope("smtpextfork", client, sender, recipient)
        yield b"@%016x00000000 " % ((1 << 62) + 10 + when) + verdict_line(envelope, verdict, 3)
