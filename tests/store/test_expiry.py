"""Expiry in small batches, beside checks and other hosts."""

import sqlite3
import threading
from pathlib import Path

from sqlalchemy import Engine

from greycheck.store import expiry
from greycheck.store.engine import empty_log, open_engine

NOW = 1_800_000_000


def fill(path: Path, expired: int, alive: int) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for index in range(expired + alive):
            expires = NOW - 1 - index if index < expired else NOW + index - expired
            key = index.to_bytes(16, "big")
            connection.execute(
                "INSERT INTO triplet VALUES (?, 'n', 's', 'r', 1, 1, 0, 0, NULL, ?, NULL)", (key, expires)
            )
            connection.execute("INSERT INTO client VALUES (?, 1, 1, 1, ?, 0, 0)", (f"c{index}", expires))
    connection.close()


def test_rows_whose_time_is_over_go_and_the_others_stay(path: Path, engine: Engine) -> None:
    fill(path, expired=5, alive=4)
    assert expiry.count(engine, NOW) == {"triplet": 5, "client": 5, "rule": 0}
    assert list(expiry.expire(engine, NOW)) == [("triplet", 5), ("client", 5)]
    assert expiry.count(engine, NOW) == {"triplet": 0, "client": 0, "rule": 0}
    assert expiry.count(engine, NOW + 100) == {"triplet": 4, "client": 4, "rule": 0}
    assert list(expiry.expire(engine, NOW)) == []


def test_it_works_in_batches_and_rests_between_them(path: Path, engine: Engine) -> None:
    fill(path, expired=25, alive=0)
    rests: list[float] = []
    found = list(expiry.expire(engine, NOW, batch=10, rest=rests.append))
    assert found == [("triplet", 10), ("triplet", 10), ("triplet", 5), ("client", 10), ("client", 10), ("client", 5)]
    assert len(rests) == len(found)
    assert all(rest > 0 for rest in rests)


def test_no_lock_is_held_between_batches(path: Path, engine: Engine) -> None:
    fill(path, expired=25, alive=0)
    for _table, _rows in expiry.expire(engine, NOW, batch=10, rest=lambda _seconds: None):
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        other.close()


def test_counting_keeps_nobody_waiting(path: Path, engine: Engine) -> None:
    writer = sqlite3.connect(path, timeout=0, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert expiry.count(engine, NOW) == {"triplet": 0, "client": 0, "rule": 0}
    writer.close()


def test_several_hosts_at_once_remove_each_row_once(path: Path) -> None:
    fill(path, expired=300, alive=10)
    removed: list[int] = []

    def host() -> None:
        engine = open_engine(f"sqlite:///{path}")
        removed.extend(rows for _table, rows in expiry.expire(engine, NOW, batch=7))
        engine.dispose()

    threads = [threading.Thread(target=host) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(removed) == 600


def test_the_write_ahead_log_is_given_back(path: Path, engine: Engine) -> None:
    fill(path, expired=100, alive=0)
    list(expiry.expire(engine, NOW))
    assert Path(f"{path}-wal").stat().st_size > 0
    empty_log(engine)
    assert Path(f"{path}-wal").stat().st_size == 0
