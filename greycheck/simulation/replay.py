"""Replays the attempts of a log under one or more sets of settings, by the check's own decision.

Each set of settings is a *way*, with a store of its own. An attempt is decided in each way in which
its mail has not passed yet: once it has, its sender would not have tried again. Where the log ends
a mail that a way still defers, nobody knows when the sender would have tried next: a schedule
stands in (``schedules``), from the clients that the log shows, in turn.

What the log shows as known before it began is taken to be known (``_prime``): else the first weeks
would look as if the store were empty.
"""

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from heapq import heappop, heappush
from itertools import takewhile
from time import localtime, strftime

from greycheck import check, outbound
from greycheck.envelope import Envelope, Triplet
from greycheck.normalise import client_network
from greycheck.policy import (
    ACCEPT,
    DEFER,
    EARLIER,
    STEPS,
    Change,
    ClientRow,
    Decision,
    TripletRow,
    domain_of,
)
from greycheck.rules.index import RuleIndex
from greycheck.settings import Settings
from greycheck.simulation import schedules
from greycheck.simulation.figures import (
    AT_ONCE,
    DELAYED,
    LOGGED,
    NEVER,
    REFUSED,
    WAITS,
    Day,
    Fate,
    Figures,
    Simulation,
)
from greycheck.simulation.history import IDLE, OBSERVED, Attempt, Log, Mail, Mails, Reader
from greycheck.simulation.store import Store, Told, Wanted
from greycheck.unknown import DomainRow

# The reasons by which a client, a triplet and a domain are known; and those that say nothing of
# these, as they come before.
CLIENT, TRIPLET, DOMAIN = "client", "known", "domain"
BEFORE = {step.reason for step in takewhile(lambda step: step.name != CLIENT, STEPS)} | {"error"}


class Way:
    """A set of SETTINGS under a NAME; RULES are None where those count that the log names."""

    def __init__(self, name: str, settings: Settings, rules: RuleIndex | None = None) -> None:
        self.name = name
        self.settings = settings
        self.rules = rules


class _Course:
    """How a mail fares in one way: DEFERRALS so far, the last REASON, and its FATE once settled.

    COMING yields the attempts of the schedule that stands in, in seconds after the first.
    """

    __slots__ = ("coming", "deferrals", "fate", "reason")

    def __init__(self) -> None:
        self.deferrals = 0
        self.reason = ""
        self.fate: Fate | None = None
        self.coming: Iterator[int] | None = None


class _Run:
    """One way with its store, and the attempts that schedules still have to make in it."""

    def __init__(self, way: Way, told: Told) -> None:
        self.way = way
        self.settings = way.settings
        self.store = Store(told, way.rules)
        self._prefixes = way.settings.ipv4_prefix, way.settings.ipv6_prefix
        self.coming: list[tuple[int, int, Mail]] = []
        self._number = 0

    def schedule(self, when: int, mail: Mail) -> None:
        """Has MAIL tried at the time WHEN."""
        self._number += 1
        heappush(self.coming, (when, self._number, mail))

    def triplet(self, attempt: Attempt, client: str) -> Triplet:
        """Makes the triplet of ATTEMPT, if CLIENT makes it."""
        network = client_network(client, *self._prefixes)
        made = Triplet(client, network, attempt.sender, attempt.recipient, attempt.written)
        attempt.triplet, attempt.prefixes = made, self._prefixes
        return made

    def make(
        self, attempt: Attempt, client: str, row: TripletRow | ClientRow | DomainRow, expires: int
    ) -> None:
        """Makes a ROW about ATTEMPT of CLIENT, which is over at EXPIRES."""
        asked = Wanted(attempt.envelope, self.triplet(attempt, client))
        self.store.save(asked, [Change(None, row, expires)], patient=False)

    def decide(self, attempt: Attempt, client: str, now: int) -> Decision:
        """The decision on ATTEMPT, made by CLIENT at NOW; what it changes is in the store."""
        envelope, store = attempt.envelope, self.store
        if envelope.client != client:
            envelope = Envelope("logged", client, envelope.sender, envelope.recipient)
        of = attempt.triplet
        if of is None or attempt.prefixes != self._prefixes or of.client != client:
            of = self.triplet(attempt, client)
        store.rules = attempt.rules
        decision, asked = Decision(envelope, self.settings, now, of), Wanted(envelope, of)
        while need := decision.advance():
            if need == EARLIER:  # there are no rows of an earlier release
                decision.take_earlier(None)
            else:
                check.answer(store, asked, decision, need)
        if decision.changes:
            store.save(asked, decision.changes, patient=False)
        if envelope.message and decision.opens_message:
            check.remember(store, decision, now)
        return decision


class Replay:
    """Replays attempts in WAYS; LIFETIME (seconds) is how long what the log tells is believed."""

    def __init__(self, ways: Sequence[Way], lifetime: int) -> None:
        self._told = Told(lifetime)
        self._runs = [_Run(way, self._told) for way in ways]
        self._mails = Mails(self._over)
        self._lifetime = lifetime
        # What was seen in the log while it may tell what was known before.
        self._seen: set[object] = set()
        # How often what is known has passed at least.
        self._passes = [
            max(1, getattr(ways[0].settings, name)) for name in ("client_passes", "domain_passes")
        ]
        # The figures of each day, in each way.
        self._days: defaultdict[str, list[Figures]] = defaultdict(
            lambda: [Figures() for _ in range(len(ways) + 1)]
        )
        # And how many of today passed at their first attempt in each way, by the reasons.
        self._today = ""
        self._at_once: dict[tuple[str, ...], int] = {}
        names = [LOGGED, *(way.name for way in ways)]
        self.result = Simulation(names, [Figures() for _ in names])

    def take(self, attempt: Attempt) -> None:
        """Takes the ATTEMPT that comes next. Its time must not be before the last one's."""
        now, result = attempt.when, self.result
        if result.first is None:
            result.first = now
        result.last = now
        for run in self._runs:
            if run.coming and run.coming[0][0] < now:
                self._stand_in(now)
                break
        if attempt.letter:
            self._learn(attempt)
            return
        mail = self._mails.begun(attempt)
        client = attempt.envelope.client
        assert client is not None
        self._tell(attempt, client, mail)
        is_early = now - result.first <= self._lifetime
        if is_early:
            self._prime(attempt, client, result.first)
        elif self._seen:
            self._seen.clear()
        decisions: list[Decision] = []
        if mail is None and attempt.action == ACCEPT and not attempt.delayed:
            reasons = [attempt.reason]
            for run in self._runs:
                decision = run.decide(attempt, client, now)
                decisions.append(decision)
                if decision.action == ACCEPT:
                    reasons.append(decision.reason)
            if len(reasons) > len(decisions):  # most of all mail
                self._passed_at_once(_day(now // 900), tuple(reasons))
                return
        mail = self._begin(attempt, mail)
        for number, (run, course) in enumerate(zip(self._runs, mail.ways, strict=True)):
            if course.fate is None:
                decision = decisions[number] if decisions else run.decide(attempt, client, now)
                self._fare(run, course, mail, decision)
        if mail.ended:
            self._settle(mail)

    def _begin(self, attempt: Attempt, mail: Mail | None) -> Mail:
        """Returns MAIL, or a new one, after it has taken ATTEMPT."""
        is_new = mail is None
        mail = self._mails.take(attempt, mail)
        if is_new:
            mail.ways = [_Course() for _ in self._runs]
            first, began = attempt.when - attempt.delayed, self.result.first
            if attempt.delayed and began is not None and first < began:
                self._waited(attempt, mail, first)
        return mail

    def _waited(self, attempt: Attempt, mail: Mail, first: int) -> None:
        """MAIL waited since its FIRST attempt, which was made before the log began."""
        mail.first = first
        client = attempt.envelope.client
        assert client is not None
        for run in self._runs:
            expires = first + run.settings.retry_window
            run.make(attempt, client, TripletRow(first, first), expires)

    def finish(self) -> Simulation:
        """Ends: what schedules still have to try is tried. Returns the figures of all."""
        self._stand_in(None)
        last = self.result.last or 0
        for mail in self._mails.rest():
            self._end(mail, WAITS if last - mail.latest.when <= IDLE else NEVER)
        self._include_at_once()
        for day, ways in sorted(self._days.items()):
            self.result.days.append(Day(day, ways))
            for total, of_day in zip(self.result.total, ways, strict=True):
                total.include(of_day)
        return self.result

    # --- attempts ---------------------------------------------------------------------------------

    def _fare(self, run: _Run, course: _Course, mail: Mail, decision: Decision) -> None:
        """MAIL was tried in the way of RUN, and this is the DECISION."""
        now = decision.now
        course.reason = decision.reason
        if decision.action == DEFER:
            course.deferrals += 1
            if course.coming is not None or mail.ended:
                self._try_later(run, course, mail, now)
            return
        what = REFUSED
        if decision.action == ACCEPT:
            what = DELAYED if now > mail.first or course.deferrals else AT_ONCE
        course.fate = _fate(course, what, now - mail.first)

    def _try_later(self, run: _Run, course: _Course, mail: Mail, now: int) -> None:
        """The log has no further attempt of MAIL: its schedule has, or it gives up."""
        after = now - mail.first
        if course.coming is None:
            domain = domain_of(mail.latest.sender).decode("ascii", "replace")
            name = schedules.of_sender(domain, tuple(mail.retries))
            course.coming = schedules.following(name, after)
        following = next(course.coming, None)
        if following is None:
            course.fate = _fate(course, NEVER, 0)
        else:
            run.schedule(mail.first + following, mail)

    def _stand_in(self, until: int | None) -> None:
        """Makes the attempts that schedules have to make before UNTIL, or all of them."""
        for number, run in enumerate(self._runs):
            while run.coming and (until is None or run.coming[0][0] < until):
                now, _number, mail = heappop(run.coming)
                course = mail.ways[number]
                clients = mail.clients
                client = clients[course.deferrals % len(clients)][1]
                self._fare(run, course, mail, run.decide(mail.latest, client, now))
                if course.fate is not None:
                    self._settle(mail)

    # --- fates ------------------------------------------------------------------------------------

    def _over(self, mail: Mail) -> None:
        """No more attempts of MAIL come, and none was accepted."""
        self._end(mail, NEVER)

    def _end(self, mail: Mail, what: str) -> None:
        for course in mail.ways:
            if course.fate is None:
                course.fate = _fate(course, what, 0)
        self._count(mail, Fate(what, mail.latest.reason, 0, mail.deferrals))

    def _settle(self, mail: Mail) -> None:
        """Counts MAIL, which the log has ended, if its fate is settled in each way."""
        for course in mail.ways:
            if course.fate is None:
                return
        waited = mail.latest.when - mail.first
        what = REFUSED
        if mail.latest.action == ACCEPT:
            waited = max(waited, mail.latest.delayed)
            what = DELAYED if waited or mail.deferrals else AT_ONCE
        self._count(mail, Fate(what, mail.latest.reason, waited, mail.deferrals))

    def _count(self, mail: Mail, logged: Fate) -> None:
        fates = (logged, *(course.fate for course in mail.ways))
        for figures, fate in zip(self._days[_day(mail.first // 900)], fates, strict=True):
            figures.add(fate)
        self.result.changes[fates[-2].what, fates[-1].what] += 1

    def _passed_at_once(self, day: str, reasons: tuple[str, ...]) -> None:
        if day != self._today:
            self._include_at_once()
            self._today = day
        self._at_once[reasons] = self._at_once.get(reasons, 0) + 1

    def _include_at_once(self) -> None:
        for reasons, mails in self._at_once.items():
            for figures, reason in zip(self._days[self._today], reasons, strict=True):
                figures.add(Fate(AT_ONCE, reason), mails)
            self.result.changes[AT_ONCE, AT_ONCE] += mails
        self._at_once.clear()

    # --- what the log tells -----------------------------------------------------------------------

    def _learn(self, attempt: Attempt) -> None:
        for run in self._runs:
            letter = outbound.of_envelope(attempt.envelope, run.settings, attempt.when)
            if letter is not None:
                run.store.learn(letter)

    def _tell(self, attempt: Attempt, client: str, mail: Mail | None) -> None:
        """Notes what the log says of the client's network, and of those that tried MAIL before."""
        now, domain = attempt.when, attempt.identity
        if attempt.provider:
            self._told.provides(attempt.provider, client, now)
        if attempt.reason == "correspondent":
            self._wrote(attempt)
        if not domain:
            return
        since = self._told.since(domain)
        self._told.sends(domain, client, now)
        for when, before in mail.clients if mail is not None else ():
            # The domain had not been asked then; or it is the one whose wait ends now.
            if since is None or when < since or when == now - attempt.delayed:
                self._told.sends(domain, before, now)

    def _wrote(self, attempt: Attempt) -> None:
        """The log says that the recipient has written to this sender."""
        for run in self._runs:
            lasts = run.settings.learn_outbound
            if lasts:
                letter = outbound.Letter(attempt.sender, attempt.recipient, attempt.when, lasts)
                run.store.learn(letter)

    def _prime(self, attempt: Attempt, client: str, began: int) -> None:
        """Takes for known what the log shows as such when it shows it first.

        The log BEGAN then. What was known counts as last used at that time.
        """
        reason = attempt.reason
        if reason.removeprefix(OBSERVED) in BEFORE:
            return
        self._know(
            attempt,
            client,
            client,
            reason == CLIENT,
            ClientRow(began, began, self._passes[0]),
            began,
        )
        if reason != CLIENT:
            row = TripletRow(began, began, 0, 1, began)
            self._know(attempt, client, attempt.pair, reason == TRIPLET, row, began)
        if attempt.identity and reason not in (CLIENT, TRIPLET):
            self._know(
                attempt,
                client,
                attempt.identity,
                reason == DOMAIN,
                DomainRow(began, began, self._passes[1]),
                began,
            )

    def _know(
        self,
        attempt: Attempt,
        client: str,
        key: object,
        is_known: bool,
        row: "ClientRow | TripletRow | DomainRow",
        began: int,
    ) -> None:
        """Makes a ROW of what the log shows first, by KEY, if it IS_KNOWN there."""
        if key in self._seen:
            return
        self._seen.add(key)
        if is_known:
            self.result.known += 1
            for run in self._runs:
                run.make(attempt, client, row, began + run.settings.lifetime)


# No zone's days begin within a quarter of an hour.
@lru_cache(256)
def _day(quarter: int) -> str:
    return strftime("%Y-%m-%d", localtime(quarter * 900))


def _fate(course: _Course, what: str, waited: int) -> Fate:
    waits = waited if what == DELAYED else 0
    return Fate(what, course.reason, waits, course.deferrals, course.coming is not None)


def simulate(
    logs: Sequence[Log],
    ways: Sequence[Way],
    lifetime: int,
    now: int,
    progress: Callable[[int], None] | None = None,
    every: int = 2000,
) -> Simulation:
    """Returns what each of WAYS would have made of the mail that LOGS tell of, as of NOW.

    LIFETIME, in seconds, is how long what the log tells of networks is believed. PROGRESS is told,
    once in EVERY attempts, how many bytes were read. Raises OSError.
    """
    reader = Reader(now)
    replay = Replay(ways, lifetime)
    with _no_collector():
        for number, attempt in enumerate(reader.attempts(logs)):
            replay.take(attempt)
            if progress is not None and number % every == 0:
                progress(reader.counts.bytes)
    result, counts = replay.finish(), reader.counts
    result.lines, result.checks = counts.lines, counts.checks
    result.exempt, result.unusable = counts.exempt, counts.unusable
    return result


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without the collector of circles of objects: there are none here, and it costs a tenth."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
