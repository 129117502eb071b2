"""Expiry in small batches, beside checks and other hosts."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import OperationalError

from greycheck.settings import read
from greycheck.store.admin import expiry
from greycheck.store.admin.engine import empty_log, open_engine
from greycheck.store.schema.tables import triplet
from greycheck.unknown import MESSAGE_TIME
from tests import databases

NOW = 1_800_000_000
NONE = dict.fromkeys((table.name for table in expiry.TABLES), 0)


def fill(engine: Engine, expired: int, alive: int) -> None:
    """Triplets, clients and rules, so many EXPIRED and so many ALIVE.

    The oldest has the highest key.
    """
    times = [
        NOW - 1 - index if index < expired else NOW + index - expired
        for index in range(expired + alive)
    ]
    keys = [index.to_bytes(16, "big") for index in range(len(times))]
    rows = [
        (key, "n", "s", "r", 1, 1, 0, 0, None, time) for key, time in zip(keys, times, strict=True)
    ]
    databases.fill(engine, "triplet", rows)
    databases.fill(engine, "client", [(f"c{time}", 1, 1, 1, time, 0, 0) for time in times])
    databases.fill(engine, "rule", [(keys[0], "network", "p", "allow", None, "", 1, None)])


def test_rows_whose_time_is_over_go_and_the_others_stay(engine: Engine) -> None:
    fill(engine, expired=5, alive=4)
    assert expiry.count(engine, NOW) == NONE | {"triplet": 5, "client": 5, "rule": 0}
    assert list(expiry.expire(engine, NOW)) == [("triplet", 5), ("client", 5)]
    assert expiry.count(engine, NOW) == NONE | {"triplet": 0, "client": 0, "rule": 0}
    assert expiry.count(engine, NOW + 100) == NONE | {"triplet": 4, "client": 4, "rule": 0}
    assert list(expiry.expire(engine, NOW)) == []


def test_it_works_in_batches_and_rests_between_them(engine: Engine) -> None:
    fill(engine, expired=25, alive=0)
    rests: list[float] = []
    found = list(expiry.expire(engine, NOW, batch=10, rest=rests.append))
    assert found == [
        ("triplet", 10),
        ("triplet", 10),
        ("triplet", 5),
        ("client", 10),
        ("client", 10),
        ("client", 5),
    ]
    assert len(rests) == len(found)
    assert all(rest > 0 for rest in rests)


def test_no_lock_is_held_between_batches(engine: Engine) -> None:
    fill(engine, expired=25, alive=0)
    for _table, _rows in expiry.expire(engine, NOW, batch=10, rest=lambda _seconds: None):
        with engine.begin() as connection:
            connection.execute(select(triplet).with_for_update(nowait=True)).all()


def test_counting_keeps_nobody_waiting(engine: Engine) -> None:
    fill(engine, expired=1, alive=0)
    with engine.begin() as writer:
        writer.execute(triplet.update().values(expires_at=NOW))
        assert expiry.count(engine, NOW) == NONE | {"triplet": 1, "client": 1, "rule": 0}


def test_several_hosts_at_once_remove_each_row_once(url: str, engine: Engine) -> None:
    fill(engine, expired=300, alive=10)
    removed: list[int] = []

    def host() -> None:
        engine = open_engine(url)
        removed.extend(rows for _table, rows in expiry.expire(engine, NOW, batch=7))
        engine.dispose()

    threads = [threading.Thread(target=host) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(removed) == 600
    assert expiry.count(engine, NOW + 100) == NONE | {"triplet": 10, "client": 10, "rule": 0}


def test_the_write_ahead_log_is_given_back(path: Path, file_engine: Engine) -> None:
    fill(file_engine, expired=100, alive=0)
    list(expiry.expire(file_engine, NOW))
    assert Path(f"{path}-wal").stat().st_size > 0
    empty_log(file_engine)
    assert Path(f"{path}-wal").stat().st_size == 0


# --- lost races -----------------------------------------------------------------------------------


class Deadlock(Exception):
    """What drivers of MySQL's dialect raise."""


def lose(engine: Engine, times: int) -> None:
    """Lets the next so many deletions of ENGINE lose a race."""
    left = [None] * times

    def fail(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("DELETE") and left:
            left.pop()
            raise OperationalError(
                statement, {}, Deadlock(1213, "Deadlock found when trying to get lock")
            )

    event.listen(engine, "before_cursor_execute", fail)


def test_a_lost_race_is_run_again_after_a_rest(file_engine: Engine) -> None:
    fill(file_engine, expired=25, alive=0)
    lose(file_engine, expiry.RACES - 1)
    rests: list[float] = []
    assert (
        sum(rows for _table, rows in expiry.expire(file_engine, NOW, batch=10, rest=rests.append))
        == 50
    )
    assert len(rests) == 6 + expiry.RACES - 1


def test_who_loses_again_and_again_leaves_the_rest_to_the_other(file_engine: Engine) -> None:
    fill(file_engine, expired=25, alive=0)
    found = expiry.expire(file_engine, NOW, batch=10, rest=lambda _seconds: None)
    assert next(found) == ("triplet", 10)
    lose(file_engine, expiry.RACES)
    with pytest.raises(expiry.LeftToAnother):
        next(found)
    assert expiry.count(file_engine, NOW) == NONE | {"triplet": 15, "client": 25, "rule": 0}


def test_another_fault_of_the_database_is_let_through(file_engine: Engine) -> None:
    fill(file_engine, expired=1, alive=0)
    with file_engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE rule")
    with pytest.raises(OperationalError, match="no such table: rule"):
        list(expiry.expire(file_engine, NOW))


DAY = 86400


def used(number: int, last: int, lifetime: int) -> databases.Row:
    """A triplet that was used LAST, for a LIFETIME."""
    return (number.to_bytes(16, "big"), "n", "s", "r", last, last, 0, 1, last, last + lifetime)


def test_a_clock_that_jumped_ahead_is_doubted(engine: Engine) -> None:
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null"})
    assert not expiry.doubt(engine, settings, NOW)
    databases.fill(
        engine, "triplet", [used(1, NOW - 37 * DAY, 36 * DAY), used(2, NOW - 700, MESSAGE_TIME)]
    )
    assert expiry.doubt(engine, settings, NOW)
    databases.fill(engine, "triplet", [used(3, NOW - 100, 36 * DAY)])
    assert expiry.doubt(engine, settings, NOW)
    databases.fill(engine, "triplet", [used(4, NOW - 10 * DAY, 36 * DAY)])
    assert not expiry.doubt(engine, settings, NOW)


def test_a_message_that_is_over_in_a_new_store_is_no_reason_to_doubt(engine: Engine) -> None:
    settings = read({b"GREYCHECK_CONFIG": b"/dev/null"})
    databases.fill(
        engine, "triplet", [used(1, NOW - 700, MESSAGE_TIME), used(2, NOW - 100, 36 * DAY)]
    )
    databases.fill(engine, "client", [("c", 1, NOW - 100, NOW - 100, NOW + 36 * DAY, 0, 0)])
    assert not expiry.doubt(engine, settings, NOW)
