"""A year of mail under a clock of its own, decided by checks on a real store, and its true figures.

Who plays it knows what each sender does, and so what must be counted: nothing here asks the
statistics.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from greycheck import history as spooling
from greycheck.check import check
from greycheck.envelope import Envelope
from greycheck.policy import Decision
from greycheck.settings import Settings
from greycheck.store.admin import expiry, history
from tests.support import Database

DAY = 86400
RECIPIENTS = ("example.net", "example.com", "bücher.example")


@dataclass
class Truth:
    """What happened, by day as ``2026-11-20``; ``delays`` are in seconds."""

    verdicts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    never: Counter[tuple[str, str]] = field(default_factory=Counter)
    delays: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    recipients: Counter[tuple[str, str]] = field(default_factory=Counter)
    senders: Counter[tuple[str, str]] = field(default_factory=Counter)
    networks: Counter[tuple[str, str]] = field(default_factory=Counter)


class Year:
    """NUMBER days from BEGIN (seconds since 1970) on in DATABASE, played under SETTINGS."""

    def __init__(
        self, database: Database, engine: Engine, settings: Settings, begin: int, number: int
    ) -> None:
        self.settings, self.engine = settings, engine
        self.truth = Truth()
        self.begin, self.number = begin, number
        self._store = database.connect(60)
        self._random = random.Random(7)
        self._serial = 0

    def play(self) -> Truth:
        """Plays all days, with ``greycheck expire`` each third night; then seven days later."""
        for day in range(self.number):
            noon = self.begin + day * DAY
            self._one_day(noon)
            if day % 3 == 2:
                self._expire(noon + DAY // 2)
        self._expire(self.begin + (self.number + 7) * DAY)
        return self.truth

    def _expire(self, now: int) -> None:
        for _batch in expiry.expire(self.engine, now, rest=lambda _s: None, settings=self.settings):
            pass
        history.collect(self.engine, self.settings, now, settled=0)
        history.note_expired(self.engine, now)

    def _one_day(self, noon: int) -> None:
        chance = self._random
        # Attempts come in the order of the clock, as mail does.
        due: list[tuple[int, str, str, str, str]] = []
        for _mail in range(chance.randrange(1, 4)):
            sender, client, recipient = self._somebody("legit")
            first, wait = noon + chance.randrange(600), chance.randrange(300, 9000)
            due += [
                (first, client, sender, recipient, "new"),
                (first + wait, client, sender, recipient, "retry"),
                (first + wait + 60, client, "more-" + sender, recipient, "client"),
            ]
            self.truth.delays[self._date(first + wait)].append(wait)
        # One mail to two: the first retry makes the client known, and so the other is no loss.
        sender, client, recipient = self._somebody("two")
        due += [(noon, client, sender, who, "new") for who in (recipient, "x" + recipient)]
        due += [
            (noon + 400, client, sender, recipient, "retry"),
            (noon + 401, client, sender, "x" + recipient, "client"),
        ]
        self.truth.delays[self._date(noon)].append(400)
        for _mail in range(chance.randrange(3)):
            sender, client, recipient = self._somebody("spam")
            is_hasty = chance.random() < 0.3
            due.append((noon + 5, client, sender, recipient, "new"))
            if is_hasty:
                due.append((noon + 65, client, sender, recipient, "early"))
            self.truth.never[self._date(noon), "again" if is_hasty else "once"] += 1
            self.truth.recipients[recipient.rpartition("@")[2], "never"] += 1
            self.truth.senders[sender.rpartition("@")[2], "never"] += 1
            self.truth.networks[self._network(client), "never"] += 1
        for now, client, sender, recipient, reason in sorted(due):
            self._attempt(now, client, sender, recipient, reason)

    def _somebody(self, kind: str) -> tuple[str, str, str]:
        """A sender of that KIND, its client, and a recipient: a pair that is new."""
        self._serial += 1
        number = self._serial
        client = f"198.{number >> 8}.{number & 255}.1"
        domain = f"{kind}{number % 5}.example"
        return (
            f"{kind}x{chr(97 + number % 26)}{_letters(number)}@{domain}",
            client,
            f"bob@{self._random.choice(RECIPIENTS)}",
        )

    def _attempt(self, now: int, client: str, sender: str, recipient: str, reason: str) -> None:
        envelope = Envelope("smtpextfork", client, sender.encode(), recipient.encode(), first=True)
        decision = Decision(envelope, self.settings, now)
        assert decision.advance()
        verdict = check(self._store, decision).verdict()
        assert verdict.reason == reason, (verdict.reason, reason, sender)
        spooling.note(self.settings, envelope, verdict, now)
        domain = recipient.rpartition("@")[2]
        self.truth.verdicts[self._date(now), verdict.action, reason] += 1
        self.truth.recipients[domain, verdict.action] += 1
        self.truth.senders[sender.rpartition("@")[2], verdict.action] += 1
        self.truth.networks[self._network(client), verdict.action] += 1

    @staticmethod
    def _date(moment: int) -> str:
        return datetime.fromtimestamp(moment).date().isoformat()

    @staticmethod
    def _network(client: str) -> str:
        return client.rpartition(".")[0] + ".0/24"


def _letters(number: int) -> str:
    """NUMBER as a word, in which folding sees no tag."""
    word = ""
    while number:
        number, rest = divmod(number, 20)
        word += "bcdfghjklmnpqrstvwxz"[rest] + "a"
    return word
