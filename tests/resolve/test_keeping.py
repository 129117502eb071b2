"""What is written of a domain, by whom, and when it is asked again."""

import ipaddress
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from sqlalchemy import Engine, event, insert, update

from greycheck.resolve import due, keeping, work
from greycheck.resolve.due import Task
from greycheck.resolve.keeping import CEILING, FLOOR, MAX_AGE, NEGATIVE_FLOOR, Evaluated
from greycheck.spf.evaluate import Answer
from greycheck.spf.ranges import NOBODY, Ranges, network, value_of
from greycheck.store.admin import expiry
from greycheck.store.base import DIGEST, domain_key
from greycheck.store.schema.tables import authorised, spf
from tests.resolve.parts import engine_of
from tests.support import Database, on_every_database

NOW = 1_800_000_000
NAME = b"pool.example"


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    database.make()
    with engine_of(database) as found:
        yield found


def nets(*texts: str) -> Ranges:
    pairs: list[tuple[int, int]] = []
    for text in texts:
        address, _, length = text.partition("/")
        bits = int(length) + (0 if ":" in address else 96)
        pairs += network(value_of(address), bits).pairs
    return Ranges(pairs)


def found(*texts: str, perhaps: Ranges = NOBODY, ttl: int = 600) -> Answer:
    return Answer("found", "", nets(*texts), perhaps, ttl, 1)


FAILED = Answer("failed", "TXT pool.example: no answer", NOBODY, NOBODY, 0, 1)
NONE = Answer("none", "no SPF record", NOBODY, NOBODY, 60, 0)


def told(engine: Engine, now: int = NOW) -> Task:
    return due.named(engine, NAME, now)


def kept(engine: Engine, answer: Answer, now: int = NOW, *evaluated: Evaluated) -> bool:
    """Whether ANSWER was written, by somebody who has claimed the domain for that."""
    task = told(engine, now)
    claim = keeping.claim(engine, task, now, forced=True)
    assert claim is not None
    return keeping.keep(engine, claim, task, answer, evaluated, now)


def ranges_of(database: Database) -> list[tuple[str, str, str]]:
    """The rows of the domain: first and last address, and source."""
    rows = database.rows(
        authorised.select().where(authorised.c.name == "pool.example").order_by("network_key")
    )
    return [
        (work.text_of(row[0][DIGEST:]), work.text_of(row[1]), str(row[2]))  # type: ignore[index, arg-type]
        for row in rows
    ]


def packed(address: str) -> bytes:
    return keeping.packed(value_of(address))


def put(database: Database, text: str, source: str, expires: int = NOW + 99999) -> None:
    """Puts the network TEXT there, as checks put what they learn."""
    [(first, last)] = nets(text).pairs
    database.execute(
        insert(authorised).values(
            network_key=domain_key(NAME) + keeping.packed(first),
            last=keeping.packed(last),
            source=source,
            name="pool.example",
            added_at=NOW,
            expires_at=expires,
        )
    )


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "least", "most"),
    [
        (0, FLOOR, FLOOR),
        (FLOOR, FLOOR, FLOOR),
        (6000, 5400, 6000),
        (10**9, CEILING * 9 // 10, CEILING),
    ],
)
def test_an_answer_holds_as_long_as_its_ttl_between_two_bounds(
    ttl: int, least: int, most: int
) -> None:
    times = {keeping.hold(ttl) for _ in range(300)}
    assert least <= min(times) <= max(times) <= most
    assert len(times) > 9 or least == most


def test_that_there_is_none_holds_for_an_hour_at_least() -> None:
    assert keeping.hold(60, found=False) == NEGATIVE_FLOOR


def test_each_further_failure_is_followed_by_a_longer_pause() -> None:
    for failures, least in ((1, 60), (2, 120), (3, 240), (7, 3600), (99999, 3600)):
        assert least <= keeping.pause(failures) <= least * 5 // 4


# --- DNS that fails -------------------------------------------------------------------------------


@on_every_database
def test_while_dns_fails_the_old_answer_stays_until_it_is_too_old(
    database: Database, engine: Engine
) -> None:
    assert kept(engine, found("192.0.2.0/24"))
    before = ranges_of(database)
    for failures in (1, 2):
        assert kept(engine, FAILED, NOW + 700 * failures)
        row = told(engine, NOW).told
        assert row is not None
        assert (row.state, row.answered_at, row.failures) == ("found", NOW, failures)
        assert row.expires_at == NOW + MAX_AGE
        assert ranges_of(database) == before
    assert kept(engine, FAILED, NOW + MAX_AGE)
    row = told(engine, NOW).told
    assert row is not None
    assert (row.state, row.answered_at) == ("failed", None)
    assert ranges_of(database) == []


def test_an_answer_that_is_over_while_dns_is_asked_is_gone(
    database: Database, engine: Engine
) -> None:
    assert kept(engine, found("192.0.2.0/24"))
    task = told(engine, NOW)
    claim = keeping.claim(engine, task, NOW + MAX_AGE - 1, forced=True)
    assert claim is not None
    assert keeping.keep(engine, claim, task, FAILED, [], NOW + MAX_AGE)
    row = told(engine, NOW).told
    assert row is not None
    assert (row.state, row.answered_at) == ("failed", None)
    assert ranges_of(database) == []


def test_the_first_answer_after_failures_counts(database: Database, engine: Engine) -> None:
    assert kept(engine, FAILED)
    assert kept(engine, FAILED, NOW + 61)
    assert kept(engine, found("192.0.2.0/24"), NOW + 500)
    row = told(engine).told
    assert row is not None
    assert (row.state, row.answered_at, row.failures) == ("found", NOW + 500, 0)
    assert NOW + 500 + 540 <= row.next_at <= NOW + 500 + 600


def test_without_an_older_answer_the_networks_before_the_failure_count(
    database: Database, engine: Engine
) -> None:
    part = Answer("failed", "include", nets("192.0.2.0/24"), NOBODY, 0, 2)
    assert kept(engine, part)
    assert ranges_of(database) == [("192.0.2.0", "192.0.2.255", "spf")]
    assert kept(engine, found("198.51.100.0/24"), NOW + 60)
    assert kept(engine, part, NOW + 120)
    assert ranges_of(database) == [("198.51.100.0", "198.51.100.255", "spf")]


# --- ranges ---------------------------------------------------------------------------------------


@on_every_database
def test_a_new_answer_takes_the_place_of_the_old_one(database: Database, engine: Engine) -> None:
    assert kept(engine, found("192.0.2.0/24", "198.51.100.0/25", "2001:db8::/32"))
    assert kept(engine, found("192.0.2.0/24", "198.51.100.0/24", ttl=60), NOW + 9)
    assert ranges_of(database) == [
        ("192.0.2.0", "192.0.2.255", "spf"),
        ("198.51.100.0", "198.51.100.255", "spf"),
    ]
    expires = database.rows("SELECT DISTINCT expires_at FROM authorised")
    assert expires == [(NOW + 9 + MAX_AGE,)]
    assert kept(engine, NONE, NOW + 10)
    assert ranges_of(database) == []


def test_another_domains_ranges_are_left_alone(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        for key in (b"\0" * 16, b"\xff" * 16):
            connection.execute(
                insert(authorised).values(
                    network_key=key + packed("192.0.2.0"),
                    last=packed("192.0.2.9"),
                    source="spf",
                    name="other",
                    added_at=NOW,
                    expires_at=NOW + 5,
                )
            )
    assert kept(engine, found("192.0.2.0/24"))
    assert kept(engine, NONE, NOW + 1)
    assert database.rows("SELECT name, expires_at FROM authorised") == [("other", NOW + 5)] * 2


def test_what_the_domain_says_takes_the_place_of_what_was_seen(
    database: Database, engine: Engine
) -> None:
    put(database, "203.0.113.0/24", "pool")
    assert kept(engine, NONE)
    assert ranges_of(database) == [("203.0.113.0", "203.0.113.255", "pool")]
    assert kept(engine, found("192.0.2.0/24"), NOW + 1)
    assert ranges_of(database) == [("192.0.2.0", "192.0.2.255", "spf")]


def test_of_pools_that_overlap_the_wider_is_left(database: Database, engine: Engine) -> None:
    put(database, "203.0.113.64/26", "pool")
    put(database, "203.0.113.0/24", "pool")
    assert kept(engine, NONE)
    assert ranges_of(database) == [("203.0.113.0", "203.0.113.255", "pool")]


def test_clients_within_the_new_networks_or_out_of_question_go(
    database: Database, engine: Engine
) -> None:
    perhaps = nets("10.0.0.0/8")
    expires = NOW + 99999
    for_three = [
        Evaluated(packed("10.1.1.1"), True, expires),
        Evaluated(packed("10.2.2.2"), False, expires),
        Evaluated(packed("10.3.3.3"), True, expires),
    ]
    assert kept(engine, found("192.0.2.0/24", perhaps=perhaps), NOW, *for_three)
    assert [row[2] for row in ranges_of(database)] == ["client", "refused", "client", "spf"]
    narrower = found("10.2.0.0/16", perhaps=nets("10.3.0.0/16"))
    assert kept(engine, narrower, NOW + 1)
    assert ranges_of(database) == [
        ("10.2.0.0", "10.2.255.255", "spf"),
        ("10.3.3.3", "10.3.3.3", "client"),
    ]


def test_what_is_found_of_a_client_later_counts(database: Database, engine: Engine) -> None:
    everybody = nets("0.0.0.0/0")
    one = packed("10.1.1.1")
    assert kept(engine, found(perhaps=everybody), NOW, Evaluated(one, False, NOW + 300))
    task = told(engine)
    task.clients = {one: b"ann@pool.example"}
    assert due.not_evaluated(engine, task, NOW + 299) == {}
    assert due.not_evaluated(engine, task, NOW + 300) == task.clients
    later = [Evaluated(one, True, NOW + 900)]
    assert keeping.keep_clients(engine, task, later, NOW + 301)
    assert ranges_of(database) == [("10.1.1.1", "10.1.1.1", "client")]
    assert kept(engine, found("10.0.0.0/8"), NOW + 302)
    assert not keeping.keep_clients(engine, task, later, NOW + 303), "of an older answer"


def test_ranges_never_overlap_and_are_those_of_the_last_answer(
    database: Database, engine: Engine
) -> None:
    chance = random.Random(7)

    def some(most: int) -> list[str]:
        return [
            str(
                ipaddress.ip_network(
                    (f"10.0.{chance.randrange(4)}.{chance.randrange(256)}", prefix), strict=False
                )
            )
            for prefix in chance.choices((22, 24, 26, 30, 32), k=chance.randrange(most))
        ]

    for step in range(60):
        now = NOW + step
        answer = chance.choice((found(*some(5), perhaps=nets(*some(3))), FAILED, NONE))
        clients = [
            Evaluated(packed(f"10.0.0.{chance.randrange(256)}"), chance.random() < 0.5, now + 9)
            for _ in range(chance.randrange(4))
        ]
        unique = list({one.address: one for one in clients}.values())
        for text in some(3):
            [(first, _last)] = nets(text).pairs
            key = domain_key(NAME) + keeping.packed(first)
            query = authorised.select().where(authorised.c.network_key == key)
            if not database.rows(query):
                put(database, text, "pool", now + chance.randrange(30))
        assert kept(engine, answer, now, *unique)
        rows = ranges_of(database)
        if answer.state != "failed":
            for one, other in pairwise(rows):
                assert value_of(one[1]) < value_of(other[0]), rows
            said = {(f, t) for f, t, source in rows if source == "spf"}
            wanted = {
                (work.text_of(keeping.packed(f)), work.text_of(keeping.packed(t)))
                for f, t in answer.ranges
            }
            assert said == wanted


def test_a_domain_with_very_many_rows_is_cleared(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST_ROWS", 3)
    for number in range(5):
        put(database, f"203.0.{number}.0/24", "pool")
    assert kept(engine, NONE)
    assert ranges_of(database) == []


# --- claims ---------------------------------------------------------------------------------------


@on_every_database
def test_one_claims_a_domain_and_the_next_only_once_that_is_over(engine: Engine) -> None:
    task = told(engine)
    assert keeping.claim(engine, task, NOW) is not None
    assert keeping.claim(engine, task, NOW + keeping.CLAIM - 1) is None
    assert keeping.claim(engine, task, NOW + keeping.CLAIM) is not None


@on_every_database
def test_an_older_answer_never_overwrites_a_newer_one(database: Database, engine: Engine) -> None:
    """Not even where the clock of whoever asked later is behind."""
    task = told(engine)
    slow = keeping.claim(engine, task, NOW)
    quick = keeping.claim(engine, task, NOW - 30, forced=True)
    assert slow is not None
    assert quick is not None
    assert keeping.keep(engine, quick, task, found("192.0.2.0/24"), (), NOW - 29)
    assert not keeping.keep(engine, slow, task, found("10.0.0.0/24"), (), NOW + 1)
    assert ranges_of(database) == [("192.0.2.0", "192.0.2.255", "spf")]


def test_two_claims_of_one_second_are_two(engine: Engine) -> None:
    task = told(engine)
    assert keeping.claim(engine, task, NOW) != keeping.claim(engine, task, NOW, forced=True)


def test_what_was_forgotten_meanwhile_stays_forgotten(database: Database, engine: Engine) -> None:
    task = told(engine)
    claim = keeping.claim(engine, task, NOW)
    assert claim is not None
    database.execute(spf.delete())
    assert not keeping.keep(engine, claim, task, found("192.0.2.0/24"), (), NOW + 1)
    assert (database.rows("SELECT * FROM spf"), ranges_of(database)) == ([], [])


@on_every_database
def test_what_is_expired_while_it_is_asked_is_not_removed(
    database: Database, engine: Engine
) -> None:
    assert kept(engine, found("192.0.2.0/24"))
    later = NOW + MAX_AGE + 9
    task = told(engine, later)
    claim = keeping.claim(engine, task, later)
    assert claim is not None
    assert dict(expiry.expire(engine, later)) == {"authorised": 1}
    assert keeping.keep(engine, claim, task, found("10.0.0.0/24"), (), later + 1)
    assert ranges_of(database) == [("10.0.0.0", "10.0.0.255", "spf")]


def test_a_time_in_the_far_future_is_not_waited_for(database: Database, engine: Engine) -> None:
    assert kept(engine, found("192.0.2.0/24"))
    database.execute(update(spf).values(next_at=NOW + 10**8))
    assert keeping.claim(engine, told(engine), NOW + 1) is not None


# --- killed ---------------------------------------------------------------------------------------


def dies_at(statement: int, database: Database, work_: Callable[[Engine], object]) -> bool:
    """Whether a process that does WORK_ died of SIGKILL before its STATEMENT was run."""
    child = os.fork()
    if child == 0:
        try:
            with engine_of(database) as engine:
                left = [statement]

                def count(*_: object) -> None:
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                event.listen(engine, "before_cursor_execute", count)
                event.listen(engine, "commit", count)
                work_(engine)
        finally:
            os._exit(0)
    _pid, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def keep_new(engine: Engine, now: int) -> None:
    kept(engine, found("10.0.0.0/24"), now)


def keep_client(engine: Engine, now: int) -> None:
    later = [Evaluated(packed("10.1.1.1"), True, now + 900)]
    assert keeping.keep_clients(engine, told(engine, now), later, now)


def at(now: int, write: Callable[[Engine, int], None]) -> Callable[[Engine], None]:
    """What writes at that time."""
    return lambda engine: write(engine, now)


OLD = [
    ("192.0.2.0", "192.0.2.255", "spf"),
    ("198.51.100.0", "198.51.100.255", "spf"),
    ("203.0.113.0", "203.0.113.255", "pool"),
]


@on_every_database
@pytest.mark.parametrize(
    ("write", "new", "statements"),
    [
        (keep_new, [("10.0.0.0", "10.0.0.255", "spf")], 5),
        (keep_client, [("10.1.1.1", "10.1.1.1", "client"), *OLD], 4),
    ],
)
def test_killed_at_any_point_it_leaves_the_old_answer_or_the_new_one(
    database: Database,
    write: Callable[[Engine, int], None],
    new: list[tuple[str, str, str]],
    statements: int,
) -> None:
    database.make()
    with engine_of(database) as engine:
        perhaps = nets("10.0.0.0/8")
        assert kept(engine, found("192.0.2.0/24", "198.51.100.0/24", perhaps=perhaps))
        put(database, "203.0.113.0/24", "pool")
    assert ranges_of(database) == OLD
    deaths = 0
    now = NOW + 1000
    while dies_at(deaths + 1, database, at(now, write)):
        deaths += 1
        assert ranges_of(database) == OLD
        # Its claim is over after a time; nobody is kept out for good.
        now += keeping.CLAIM
        with engine_of(database) as engine:
            row = told(engine, NOW).told
            assert row is not None
            assert row.next_at <= now
    assert deaths >= statements
    assert ranges_of(database) == new


def test_the_time_of_a_run_is_bounded_and_what_is_left_is_asked_by_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins nothing that it might not end."""
    began = time.monotonic()

    class Nothing:
        def ask(self, *_: object) -> None:
            raise AssertionError

    report = work.work_off(engine, Nothing(), [told(engine)], NOW, began - 1)  # type: ignore[arg-type]
    assert (report.asked, report.left) == (0, 1)
