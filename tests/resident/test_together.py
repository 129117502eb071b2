"""Many questions decided at once from a server database: as one after the other, whatever one of
them meets.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from greycheck import check, rule_keys, settings
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.resident import together
from greycheck.resident.messages import Messages
from greycheck.resident.pool import Pool
from greycheck.resident.questions import Question
from greycheck.resident.together import Shared, Store
from greycheck.resident.wide import Arrays, List, Ranges, Table
from greycheck.rules import patterns
from greycheck.settings import Settings
from greycheck.store import base, causes, compiled_mysql, server, waiting
from greycheck.store.admin import rulebook
from greycheck.store.admin.engine import open_engine
from greycheck.store.drivers import faults
from greycheck.store.schema import tables
from greycheck.store.schema.tables import client, triplet
from greycheck.unknown import Identity
from tests.resident.test_pool import each_kind, marks
from tests.servers import Postgres, wait_until
from tests.support import RECIPIENT, Database, ServerDatabase, on_every_server
from tests.test_identity import authorise

MANY = 40

# How many domains of each kind there are in a history.
DOMAINS = 8

# Now, for those questions whose time is given.
NOW = 1_000_000_000
DELAY = 300


def questions_of(
    found: Settings, envelopes: Sequence[Envelope], now: int | None = None
) -> list[Question]:
    """Questions about ENVELOPES at NOW."""
    peer: Any = SimpleNamespace(has_left=lambda: False)
    made = [Question(peer, envelope, found, None, []) for envelope in envelopes]
    for question in made:
        if now is not None:
            question.decision.now = now
        assert question.decision.advance()
    return made


def settings_of(database: Database, **given: object) -> Settings:
    environ = {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_POOL_SIZE": "2", **database.environ}
    environ |= {f"GREYCHECK_{name.upper()}": str(value) for name, value in given.items()}
    return settings.read({name.encode(): value.encode() for name, value in environ.items()})


def mail(number: int, sender: str = "{}@example.org", network: int | None = None) -> Envelope:
    """Envelope NUMBER, from a network of its own."""
    third = number if network is None else network
    address = f"198.51.{third % 250}.{number % 250 + 1}"
    return Envelope("policy", address, sender.format(number).encode(), RECIPIENT)


class Batches:
    """Decides batches of questions with STORE, and says what came of each."""

    def __init__(self, found: Settings, store: Store | None = None) -> None:
        self.settings = found
        self.store = store or Store(found, 20, Shared())

    def decide(self, questions: Sequence[Question]) -> tuple[list[Verdict | None], list[Question]]:
        """The verdict on each of QUESTIONS, None where there is none; and who lost a race."""
        verdicts: dict[Question, Verdict] = {}
        rest = dict.fromkeys(questions)
        self.store.begin(20)
        lost = together.decide(self.store, rest, Messages().first_passed, verdicts.__setitem__)
        self.store.rest()
        assert set(rest) == set(questions) - set(verdicts)
        return [verdicts.get(question) for question in questions], lost

    def ask(self, envelopes: Sequence[Envelope], now: int) -> list[str]:
        """The reasons of the verdicts on ENVELOPES at NOW; empty where there is none."""
        verdicts, _lost = self.decide(questions_of(self.settings, envelopes, now))
        return [verdict.reason if verdict else "" for verdict in verdicts]


# --- the same as one after the other --------------------------------------------------------------


def fill(database: Database) -> None:
    """Domains, providers, correspondents, rules, and a pair of whom many wait."""
    for number in range(DOMAINS):
        authorise(database, "198.51.0.0/20", domain=f"held{number}.example")
        authorise(database, "198.51.0.0/24", "198.51.2.0/24", domain=f"some{number}.example")
        pooled = f"pooled{number}.example"
        authorise(database, "198.51.8.0/22", domain=pooled, source="pool", state="")
    authorise(database, "198.51.6.0/23", domain="big.example", source="provider", state="")
    outside = waiting.correspondent_key(b"friend@out.example", RECIPIENT)
    database.execute(
        insert(tables.correspondent).values(
            pair_key=outside,
            sender="friend@out.example",
            recipient=RECIPIENT.decode(),
            first_seen=NOW,
            last_seen=NOW,
            expires_at=NOW + 10**9,
        )
    )
    engine = open_engine(database.url)
    for written, action in (
        ("198.51.11.0/24", "allow"),
        ("from:.refused0.example", "reject"),
        ("from:.slow1.example to:bob@example.net", "greylist"),
    ):
        rulebook.put(engine, patterns.parse(written), action, None, "", None, NOW)
    engine.dispose()


def histories(random: Random) -> Iterator[tuple[int, list[Envelope]]]:
    """Batches of envelopes, and when they come.

    No two of one client or one domain are in a batch: one after the other they would see what the
    other one has written.
    """
    names = ("held", "some", "pooled", "slow", "refused", "other")
    domains = [f"{name}{number}.example" for name in names for number in range(DOMAINS)]
    now = NOW
    known: list[Envelope] = []
    for _ in range(8):
        batch: dict[bytes, Envelope] = {b"": mail(0, "", 3)}
        batch[b"out.example"] = mail(200 + random.randrange(9), "friend@out.example", 12)
        for domain in random.sample(domains, len(domains)):
            number = random.randrange(200)
            new = mail(number, f"{number % 3}@{domain}", random.randrange(14))
            again = [envelope for envelope in known if envelope.sender.endswith(domain.encode())]
            batch[domain.encode()] = (
                random.choice(again) if again and random.random() < 0.6 else new
            )
        apart = {envelope.client: envelope for envelope in batch.values()}
        yield now, list(apart.values())
        known += apart.values()
        now += random.choice((10, DELAY, 2 * DELAY))


@on_every_server
@pytest.mark.parametrize("seed", range(2))
def test_a_batch_decides_as_one_after_the_other_would(database: ServerDatabase, seed: int) -> None:
    given = settings_of(
        database, learn_outbound="60d", client_passes=2, pool_networks=0, domain_passes=1
    )
    told: dict[str, list[tuple[object, ...]]] = {}
    rows: dict[str, list[tuple[object, ...]]] = {}
    for way in ("together", "alone"):
        database.empty()
        fill(database)
        batches, alone = Batches(given), database.connect(20)
        told[way] = []
        for now, envelopes in histories(Random(seed)):
            questions = questions_of(given, envelopes, now)
            if way == "together":
                left = questions
                verdicts: dict[Question, Verdict] = {}
                for _ in range(len(questions)):
                    found, left_over = batches.decide(left)
                    verdicts |= {
                        question: verdict
                        for question, verdict in zip(left, found, strict=True)
                        if verdict is not None
                    }
                    left = [question for question in left if question not in verdicts]
                    assert set(left) == set(left_over)
                    if not left:
                        break
                said = [verdicts[question] for question in questions]
            else:
                said = [check.check(alone, question.decision).verdict() for question in questions]
            told[way] += [
                (now, envelope.client, envelope.sender, verdict.action, verdict.reason)
                for envelope, verdict in zip(envelopes, said, strict=True)
            ]
        rows[way] = [
            row
            for table in (triplet, client, tables.domain, tables.authorised, tables.rule)
            for row in sorted(database.rows(select(table)), key=repr)
        ]
        batches.store.close()
        alone.tidy()
    reasons = {row[4] for row in told["alone"]}
    assert {"new", "early", "retry", "known", "domain", "provider", "correspondent"} <= reasons
    assert told["together"] == told["alone"]
    assert rows["together"] == rows["alone"]


@each_kind
def test_clients_of_one_network_in_a_batch_have_each_an_identity_of_its_own(
    database: ServerDatabase,
) -> None:
    """Their triplet is the same, down to its key."""
    given = settings_of(database, learn_outbound="60d")
    domain = "held.example"
    authorise(database, "192.0.2.20/32", "192.0.2.64/26", domain=domain)
    authorise(database, "192.0.2.30/32", domain="big.example", source="provider", state="")
    batches, alone = Batches(given), database.connect(20)
    hosts = [10, 20, 30, 70, 200]
    envelopes = [
        Envelope("policy", f"192.0.2.{host}", b"one@held.example", RECIPIENT) for host in hosts
    ]
    questions = questions_of(given, [*envelopes, *reversed(envelopes)], NOW)
    ones = [together._One(question) for question in questions]
    assert len({one.asked.key for one in ones}) == 1
    found = [known for _others, known in batches.store.what_waits(ones)]
    assert [(known.source, known.provider) for known in found[: len(hosts)]] == [
        ("", ""),
        ("spf", ""),
        ("", "big.example"),
        ("spf", ""),
        ("", ""),
    ]
    expected = [alone.identity(one.asked, NOW, given) for one in ones]
    assert list(map(vars_of, found)) == list(map(vars_of, expected))
    batches.store.close()
    alone.tidy()


def vars_of(known: Identity) -> list[object]:
    return [getattr(known, name) for name in known.__slots__]


class Counting(Store):
    """Says how often it has counted what waits: in a network, and in all."""

    def __init__(self, found: Settings) -> None:
        super().__init__(found, 20, Shared())
        self.counted = [0, 0]

    def _crowd(self, *given: Any) -> int:
        self.counted[0] += 1
        return super()._crowd(*given)

    def _estimate(self, *given: Any) -> int:
        self.counted[1] += 1
        return super()._estimate(*given)


@each_kind
def test_the_limit_of_a_network_holds_in_a_batch_and_is_counted_once_in_it(
    database: ServerDatabase,
) -> None:
    given = settings_of(database, network_limit=3, pending_limit=0)
    batches = Batches(given, store := Counting(given))
    many = [mail(number, network=7) for number in range(20)]
    others = [mail(number, network=8) for number in range(20, 24)]
    assert batches.ask(many + others, NOW) == ["new"] * 3 + ["crowded"] * 17 + ["new"] * 3 + [
        "crowded"
    ]
    assert store.counted == [2, 0]
    # Who waits already is no newcomer.
    assert batches.ask(many, NOW + 10) == ["early"] * 3 + ["crowded"] * 17
    assert store.counted == [3, 0]
    assert batches.ask([*others[1:], *many[3:]], NOW + 20) == ["early"] * 2 + ["crowded"] * 18
    assert database.rows("SELECT count(*) FROM triplet") == [(6,)]


@each_kind
def test_the_same_mail_twice_is_no_crowd(database: ServerDatabase) -> None:
    given = settings_of(database, network_limit=1)
    batches = Batches(given)
    questions = questions_of(given, [mail(1), mail(2, network=1), mail(1)], NOW)
    verdicts, lost = batches.decide(questions)
    assert [verdict and verdict.reason for verdict in verdicts] == ["new", "crowded", None]
    assert lost == questions[2:]


@each_kind
def test_who_waits_elsewhere_too_meets_the_same_limit(database: ServerDatabase) -> None:
    given = settings_of(database, network_limit=2)
    batches = Batches(given)
    elsewhere = [Envelope("policy", "203.0.113.1", mail(n).sender, RECIPIENT) for n in (0, 3)]
    assert batches.ask(elsewhere, NOW) == ["new"] * 2
    many = [mail(number, network=7) for number in range(4)]
    assert batches.ask(many, NOW + 10) == ["new"] * 2 + ["crowded"] * 2


@each_kind
def test_the_limit_of_all_that_waits_holds_in_a_batch(database: ServerDatabase) -> None:
    given = settings_of(database, network_limit=0, pending_limit=3)
    batches = Batches(given, store := Counting(given))
    many = [mail(number) for number in range(20)]
    assert batches.ask(many, NOW) == ["new"] * 3 + ["full"] * 17
    assert batches.ask(many, NOW + 10) == ["early"] * 3 + ["full"] * 17
    assert store.counted == [0, 2]


@each_kind
def test_a_pair_of_whom_very_many_wait_is_asked_about_by_itself(database: ServerDatabase) -> None:
    """The query of pairs ends at a number of rows, which hides nobody else's."""
    given = settings_of(database, pool_networks=4, network_limit=0)
    batches = Batches(given)
    crowd = [
        Envelope("policy", f"10.{n // 250}.{n % 250}.1", b"one@example.org", RECIPIENT)
        for n in range(600)
    ]
    for start in range(0, len(crowd), 100):
        batches.ask(crowd[start : start + 100], NOW)
    others = [mail(number) for number in range(20)]
    again = [Envelope("policy", f"203.0.{n}.1", others[n].sender, RECIPIENT) for n in range(20)]
    assert set(batches.ask(others, NOW)) == {"new"}
    last = Envelope("policy", "203.0.113.7", b"one@example.org", RECIPIENT)
    questions = questions_of(given, [*again, last], NOW + 1)
    batches.decide(questions)
    seen = [question.decision.anew() for question in questions]
    one = [together._One(question) for question in questions]
    found = batches.store.what_waits(one)
    assert [others for others, _identity in found] == [True] * len(seen)


# --- what one question meets ----------------------------------------------------------------------


class Meddled(Store):
    """A store in which MEDDLE is called once, before the changes of a batch are written, or with
    LATE before they are committed: what writes triplets alone does both at once.
    """

    def __init__(self, found: Settings, meddle: Callable[[Any], None], late: bool = False) -> None:
        super().__init__(found, 20, Shared())
        self.meddle: Callable[[Any], None] | None = meddle
        self.is_late = late

    def _once(self) -> None:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle(self)

    def save_all(self, batch: list[Any], written: Callable[[Any], None]) -> None:
        if not self.is_late:
            self._once()
        super().save_all(batch, written)

    def _save_triplets(self, batch: list[Any], written: Callable[[Any], None]) -> None:
        if self.is_late:
            self._once()
        super()._save_triplets(batch, written)

    def _end(self, how: str, written: bool) -> bool:
        if how == "COMMIT" and self.is_late:
            self._once()
        return super()._end(how, written)


@each_kind
def test_who_lost_a_race_is_decided_anew_and_so_are_those_of_his_transaction(
    database: ServerDatabase,
) -> None:
    given = settings_of(database)
    envelopes = [mail(number) for number in range(MANY)]
    other = database.connect(20)

    def be_quicker(_store: Store) -> None:
        [question] = questions_of(given, envelopes[7:8], NOW)
        assert check.check(other, question.decision).reason == "new"

    batches = Batches(given, Meddled(given, be_quicker))
    questions = questions_of(given, envelopes, NOW + 10)
    told, lost = batches.decide(questions)
    if isinstance(database.server, Postgres):  # one statement writes all triplets
        assert lost == [questions[7]]
    else:
        assert set(lost) == set(questions)
    assert [verdict and verdict.reason for verdict in told] == [
        None if question in lost else "new" for question in questions
    ]
    assert database.rows("SELECT count(*) FROM triplet") == [(1 + MANY - len(lost),)]
    verdicts, lost = batches.decide(again := [each for each in questions if each in lost])
    assert [verdict and verdict.reason for verdict in verdicts] == [
        "early" if question is questions[7] else "new" for question in again
    ]
    assert not lost
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(MANY, 1)]


@each_kind
def test_of_changes_of_several_rows_either_all_are_written_or_none(
    database: ServerDatabase,
) -> None:
    """Each mail that passes makes its client known besides."""
    given = settings_of(database, client_passes=1)
    envelopes = [mail(number, network=number) for number in range(MANY)]
    other = database.connect(20)

    def be_quicker(_store: Store) -> None:
        [question] = questions_of(given, envelopes[7:8], NOW + DELAY)
        assert check.check(other, question.decision).reason == "retry"

    assert Batches(given).ask(envelopes, NOW) == ["new"] * MANY
    batches = Batches(given, Meddled(given, be_quicker))
    questions = questions_of(given, envelopes, NOW + DELAY)
    verdicts, lost = batches.decide(questions)
    assert verdicts == [None] * MANY
    assert set(lost) == set(questions)
    passed = "SELECT count(*) FROM triplet WHERE passes = 1"
    assert database.rows(passed) == database.rows("SELECT count(*) FROM client") == [(1,)]
    verdicts, lost = batches.decide(questions)
    assert [verdict and verdict.reason for verdict in verdicts] == [
        "client" if number == 7 else "retry" for number in range(MANY)
    ]
    assert not lost
    assert database.rows(passed) == database.rows("SELECT count(*) FROM client") == [(MANY,)]


@each_kind
def test_two_attempts_of_one_mail_in_a_batch_are_two(database: ServerDatabase) -> None:
    batches = Batches(settings_of(database))
    questions = [
        *questions_of(batches.settings, [mail(1), mail(2)], NOW),
        *questions_of(batches.settings, [mail(1)], NOW + 10),
        *questions_of(batches.settings, [mail(1)], NOW + 20),
    ]
    verdicts, lost = batches.decide(questions)
    assert [verdict and verdict.reason for verdict in verdicts] == ["new", "new", None, None]
    assert lost == questions[2:]
    for counted in (1, 2):
        assert batches.decide(lost[:1])[0][0]
        lost = lost[1:]
        assert database.rows("SELECT sum(early_attempts) FROM triplet") == [(counted,)]


def fail_once(kind: str) -> Callable[[Store], None]:
    """Has the next statement of a store fail with a fault of KIND."""

    def meddle(store: Store) -> None:
        connection: Any = store._session.connection

        def failing(*_given: object) -> None:
            del connection.run
            raise faults.Fault(kind, "as the server says")

        connection.run = failing

    return meddle


@pytest.fixture
def sleepless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a server's store does may sleep."""
    monkeypatch.setattr(server, "sleep", lambda _seconds: pytest.fail("it sleeps"))


@each_kind
@pytest.mark.usefixtures("sleepless")
def test_a_conflict_is_a_lost_race(database: ServerDatabase) -> None:
    """With Galera the commit may say so, of what another node has changed."""
    given = settings_of(database)
    envelopes = [mail(number) for number in range(MANY)]
    batches = Batches(given, Meddled(given, fail_once(faults.CONFLICT), late=True))
    questions = questions_of(given, envelopes, NOW)
    verdicts, lost = batches.decide(questions)
    assert verdicts == [None] * MANY
    assert lost == questions
    assert batches.ask(envelopes, NOW) == ["new"] * MANY
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(MANY, 0)]


@each_kind
@pytest.mark.usefixtures("sleepless")
def test_a_conflict_as_changes_of_several_rows_are_committed_is_one_too(
    database: ServerDatabase,
) -> None:
    given = settings_of(database, client_passes=1)
    envelopes = [mail(number, network=number) for number in range(MANY)]
    assert Batches(given).ask(envelopes, NOW) == ["new"] * MANY
    batches = Batches(given, Meddled(given, fail_once(faults.CONFLICT), late=True))
    questions = questions_of(given, envelopes, NOW + DELAY)
    verdicts, lost = batches.decide(questions)
    assert verdicts == [None] * MANY
    assert lost == questions
    assert database.rows("SELECT count(*) FROM client") == [(0,)]
    assert batches.ask(envelopes, NOW + DELAY) == ["retry"] * MANY
    assert database.rows("SELECT count(*) FROM client") == [(MANY,)]


@each_kind
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.usefixtures("sleepless")
def test_a_lock_that_a_batch_waits_for_in_vain_is_no_fault_of_the_host(
    database: ServerDatabase, late: bool
) -> None:
    """With as little time as is left to the last one of a long queue too."""
    given = settings_of(database)
    batches = Batches(given, Meddled(given, fail_once(faults.LOCKED), late))
    questions = questions_of(given, [mail(number) for number in range(MANY)], NOW)
    rest = dict.fromkeys(questions)
    batches.store.begin(2)
    with pytest.raises(base.StoreError, match="as the server says") as raised:
        together.decide(batches.store, rest, Messages().first_passed, lambda *_given: None)
    assert not isinstance(raised.value, causes.Again)
    assert list(rest) == questions
    assert not marks(database)
    assert not batches.store.notes
    assert batches.ask([question.envelope for question in questions], NOW) == ["new"] * MANY


@each_kind
def test_only_a_batch_has_little_patience_for_a_lock(database: ServerDatabase) -> None:
    """And whoever is decided alone after it has all that a check has."""
    batches = Batches(settings_of(database))
    store = batches.store
    is_postgresql = isinstance(database.server, Postgres)
    query = (
        "SELECT setting FROM pg_settings WHERE name = 'lock_timeout'"
        if is_postgresql
        else "SELECT @@innodb_lock_wait_timeout"
    )
    little, much = (200, 5000) if is_postgresql else (1, 5)

    def patience() -> int:
        return int(store._run(query)[0][0])

    for number in range(2):
        assert batches.ask([mail(number)], NOW) == ["new"]
        assert patience() == little
        [question] = questions_of(batches.settings, [mail(number)], NOW + 10)
        store.begin(20)
        store.lookup(base.Asked(question.envelope, question.decision.triplet), NOW + 10)
        assert patience() == much
    store.close()


def end_connection(database: ServerDatabase, store: Store) -> None:
    """Ends STORE's connection, on the server."""
    is_postgresql = isinstance(database.server, Postgres)
    query = "SELECT pg_backend_pid()" if is_postgresql else "SELECT CONNECTION_ID()"
    command = "SELECT pg_terminate_backend({})" if is_postgresql else "KILL {}"
    number = store._session.run(query, (), 20)[0][0][0]
    database.server.sql(command.format(number), "")


@contextmanager
def pool_of(
    database: ServerDatabase, **given: object
) -> Iterator[Callable[[Sequence[Envelope]], dict[bytes, Verdict]]]:
    """A function that has a pool decide envelopes at once, and returns the verdicts by sender."""
    found = settings_of(database, **given)
    answered: dict[bytes, Verdict] = {}

    def answer(question: Question, verdict: Verdict | None, _notes: list[str]) -> None:
        assert verdict is not None
        question.answered = True
        answered[question.envelope.sender] = verdict

    pool = Pool(found, answer, Messages())

    def ask(envelopes: Sequence[Envelope]) -> dict[bytes, Verdict]:
        answered.clear()
        pool.decide(questions_of(found, envelopes))

        def all_are() -> bool:
            pool.tick()
            return len(answered) == len(envelopes)

        wait_until(all_are, "all are answered")
        return dict(answered)

    try:
        yield ask
    finally:
        pool.close()


def reasons_of(verdicts: dict[bytes, Verdict]) -> set[str]:
    return {verdict.reason for verdict in verdicts.values()}


@each_kind
@pytest.mark.parametrize("when", ["committing", "writing"])
def test_a_connection_that_ends_with_a_batch_in_flight_costs_no_verdict(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """One try is left, with a connection of its own; and no attempt counts twice."""
    what: object = "COMMIT" if when == "committing" else True
    name = "_end" if when == "committing" else "_claim_writes"
    if when == "committing" and isinstance(database.server, Postgres):
        name, what = "_save_triplets", None
    works = getattr(Store, name)
    ended = threading.Event()

    def ending(store: Store, *given: Any, **more: Any) -> Any:
        if what in (None, *given, *more.values()) and not ended.is_set():
            ended.set()
            end_connection(database, store)
        return works(store, *given, **more)

    monkeypatch.setattr(Store, name, ending)
    with pool_of(database) as ask:
        verdicts = ask([mail(number) for number in range(MANY)])
    assert ended.is_set()
    assert reasons_of(verdicts) == {"new"}
    assert database.rows("SELECT count(*), sum(early_attempts) FROM triplet") == [(MANY, 0)]


@each_kind
def test_a_row_that_another_has_locked_keeps_only_its_own_mail_waiting(
    database: ServerDatabase,
) -> None:
    envelopes = [mail(number) for number in range(MANY)]
    locked = envelopes[11].sender
    with pool_of(database, pool_size=3, deadline="20s") as ask:
        assert reasons_of(ask(envelopes)) == {"new"}
        database.age(10)
        of_locked = select(triplet.c.triplet_key).where(triplet.c.sender == locked.decode())
        [(key,)] = database.rows(of_locked)
        with database.begin() as other:
            other.execute(
                update(triplet)
                .where(triplet.c.triplet_key == key)
                .values(early_attempts=triplet.c.early_attempts)
            )
            verdicts = ask(envelopes)
        assert {verdict.reason + verdict.detail for verdict in verdicts.values()} == {"early"}
        assert {sender for sender, verdict in verdicts.items() if verdict.unrecorded} == {locked}
        database.age(10)
        assert reasons_of(ask(envelopes)) == {"early"}
    counted = database.rows(
        select(triplet.c.early_attempts, func.count()).group_by("early_attempts")
    )
    assert sorted(counted) == [(1, 1), (2, MANY - 1)]


@each_kind
def test_whoever_passes_by_a_row_that_all_of_a_crowd_write_is_counted(
    database: ServerDatabase,
) -> None:
    """Each batch can change a client's row once: all others are decided one by one, all at once."""
    number = 200
    envelopes = [
        Envelope("spp", "192.0.2.1", b"%d@example.org" % each, b"b@example.net")
        for each in range(number)
    ]
    crowd = {"pool_size": 8, "client_passes": 9999, "identity": "no", "deadline": "60s"}
    with pool_of(database, **crowd) as ask:
        assert reasons_of(ask(envelopes)) == {"new"}
        database.age(400)
        verdicts = ask(envelopes)
    assert reasons_of(verdicts) == {"retry"}
    assert not [verdict.unrecorded for verdict in verdicts.values() if verdict.unrecorded]
    assert database.rows("SELECT passes FROM client") == [(number,)]


@each_kind
def test_while_one_batch_is_stuck_others_are_decided(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_free, is_stuck = threading.Event(), threading.Event()
    save_all = Store.save_all

    def stuck(store: Store, batch: list[Any], written: Callable[[Any], None]) -> None:
        if not is_stuck.is_set():
            is_stuck.set()
            is_free.wait(60)
        save_all(store, batch, written)

    monkeypatch.setattr(Store, "save_all", stuck)
    found = settings_of(database, pool_size=2)
    answered: list[bytes] = []

    def answer(question: Question, _verdict: Verdict | None, _notes: list[str]) -> None:
        question.answered = True
        answered.append(question.envelope.sender)

    pool = Pool(found, answer, Messages())

    def is_answered() -> bool:
        pool.tick()
        return bool(answered)

    try:
        pool.decide(questions_of(found, [mail(1)]))
        assert is_stuck.wait(60)
        pool.decide(questions_of(found, [mail(2)]))
        wait_until(is_answered, "the second one is answered")
        assert answered == [mail(2).sender]
        is_free.set()
        wait_until(lambda: pool.tick() or len(answered) == 2, "both are answered")  # type: ignore[func-returns-value]
    finally:
        is_free.set()
        pool.close()


@each_kind
def test_what_nobody_foresaw_is_told_and_the_others_have_their_verdicts(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_rows = together.Decision.take_rows

    def faulty(decision: Any, rows: Any) -> None:
        if decision.envelope.sender == b"7@example.org":
            raise ZeroDivisionError("the moon is wrong")
        take_rows(decision, rows)

    monkeypatch.setattr(together.Decision, "take_rows", faulty)
    with pool_of(database) as ask:
        verdicts = ask([mail(number) for number in range(200)])
    assert [
        (sender, verdict.reason, verdict.detail)
        for sender, verdict in verdicts.items()
        if verdict.reason != "new"
    ] == [(b"7@example.org", "error", "error=ZeroDivisionError: the moon is wrong")]
    assert database.rows("SELECT count(*) FROM triplet") == [(199,)]


# --- rules ----------------------------------------------------------------------------------------


@each_kind
def test_a_rule_counts_from_the_moment_in_which_it_is_written(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that a program of an earlier release writes, which tells nobody, a little later."""
    engine = open_engine(database.url)
    batches = Batches(settings_of(database))
    assert batches.ask([mail(1)], NOW) == ["new"]
    allow = patterns.parse("from:example.org")
    monkeypatch.setattr(together, "REREAD", 0)
    monkeypatch.setattr(together, "TIMES", 0)
    rulebook.put(engine, allow, "allow", None, "", None, NOW)
    assert batches.ask([mail(2)], NOW) == ["rule"]
    rulebook.remove(engine, [allow.text])
    assert batches.ask([mail(3)], NOW) == ["new"]
    rulebook.put(engine, allow, "allow", None, "", None, NOW)
    assert batches.ask([mail(4)], NOW) == ["rule"]
    with database.begin() as earlier:
        earlier.execute(tables.rule.delete())
    assert batches.ask([mail(5)], NOW) == ["rule"]
    monkeypatch.setattr(together, "OLD", 0)
    assert batches.ask([mail(6)], NOW) == ["new"]
    engine.dispose()


@each_kind
def test_rules_that_are_old_are_looked_up_in_the_table(
    database: ServerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(database.url)
    batches = Batches(settings_of(database))
    assert batches.ask([mail(1)], NOW) == ["new"]
    monkeypatch.setattr(together, "REREAD", 3600)
    rulebook.put(engine, patterns.parse("from:example.org"), "allow", None, "", None, NOW)
    assert batches.ask([mail(2)], NOW) == [""]
    with pool_of(database) as ask:
        assert reasons_of(ask([mail(2), mail(3)])) == {"rule"}
    engine.dispose()


@each_kind
def test_an_expectation_is_used_once(database: ServerDatabase) -> None:
    engine = open_engine(database.url)
    expected = patterns.expectation("to:bob@example.net", "example.org")
    rulebook.put(engine, expected, rule_keys.ALLOW, None, "", None, NOW)
    batches = Batches(settings_of(database))
    assert batches.ask([mail(1), mail(2)], NOW) == ["expected", ""]
    assert batches.ask([mail(2)], NOW) == ["new"]
    engine.dispose()


@each_kind
def test_rows_are_locked_in_the_order_of_their_keys(database: ServerDatabase) -> None:
    """Those too whose changes are made one by one: nobody waits in a circle."""
    deleted: list[bytes] = []

    class Noted(Store):
        def _change(self, sql: str, values: Sequence[Any]) -> int:
            if sql == self._compiled.DELETE_RULE[0]:
                deleted.append(bytes(values[0]))
            return super()._change(sql, values)

    given = settings_of(database)
    batches = Batches(given, Noted(given, 20, Shared()))
    engine = open_engine(database.url)
    for number in range(12):
        expected = patterns.expectation(f"to:{number}@example.net")
        rulebook.put(engine, expected, rule_keys.ALLOW, None, "", None, NOW)
    engine.dispose()
    envelopes = [
        Envelope("policy", f"198.51.{number}.1", b"a@example.org", b"%d@example.net" % number)
        for number in range(12)
    ]
    assert batches.ask(envelopes, NOW) == ["expected"] * 12
    assert len(deleted) == 12
    assert deleted == sorted(deleted)


# --- statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", together.MANY.values())
@pytest.mark.parametrize("number", [1, 2, 33])
def test_a_statement_has_a_row_for_each_question(name: str, number: int) -> None:
    sql, names = getattr(compiled_mysql, name)
    wide = Table((sql, names))
    assert wide.sql(1) == sql
    assert wide.sql(number).count("%s") == number * len(names)
    assert wide.sql(number).replace("%s", "0").count("(") == wide.sql(number).count(")")


def test_lists_and_ranges_have_as_many() -> None:
    assert List(compiled_mysql.FOUND).sql(3).count("IN (%s, %s, %s)") == 2
    near = Ranges(compiled_mysql.WAITS_NEAR).sql(2)
    assert near.count(" OR ") == 1
    assert near.count("%s") == 5


TEXTS = ["", "plain", "NULL", 'a "quoted" one', "{a,b}", "back\\slash", "\u00fc \U0001f4e7", "'%s'"]
BYTES = [bytes(range(256)), b"", b"\\", b"'", b"{}", b"NULL", b"%s", None]
NUMBERS = [0, -1, 1 << 62, -(1 << 62), None, 7, 8, 9]


@on_every_server
def test_an_array_has_what_was_put_into_it(database: ServerDatabase) -> None:
    if not isinstance(database.server, Postgres):
        return
    store = Batches(settings_of(database)).store
    query = (
        "SELECT * FROM unnest(CAST(%s AS TEXT[]), CAST(%s AS BYTEA[]), CAST(%s AS BIGINT[]))",
        ("texts", "bytes", "numbers"),
    )
    for _ in range(2):
        rows = store._run(*Arrays(query).of_lists(TEXTS, BYTES, NUMBERS))
        assert [(text, raw and bytes(raw), number) for text, raw, number in rows] == [
            (text, raw and bytes(raw), number)
            for text, raw, number in zip(TEXTS, BYTES, NUMBERS, strict=True)
        ]
    store.close()


@each_kind
def test_a_statement_that_the_server_has_no_more_costs_no_verdict(
    database: ServerDatabase,
) -> None:
    """A pooler may give each transaction to another connection to the server."""
    if not isinstance(database.server, Postgres):
        return
    batches = Batches(settings_of(database))
    assert batches.ask([mail(1), mail(2)], NOW) == ["new", "new"]
    batches.store._run("DEALLOCATE ALL")
    with pytest.raises(base.StoreError, match="does not exist"):
        batches.ask([mail(3), mail(4)], NOW)
    assert batches.ask([mail(3), mail(4)], NOW) == ["new", "new"]
    assert batches.ask([mail(3), mail(4)], NOW + 1) == ["early", "early"]
    assert not marks(database)
    batches.store.close()
