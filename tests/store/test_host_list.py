"""What a fault says of a host, row by row, and the order in which hosts are asked.

No server is needed.
"""

import re
from pathlib import Path

import pytest

from greycheck.store import host_list
from greycheck.store.breaker import DOWN, STUCK
from greycheck.store.drivers import faults
from greycheck.store.host_list import (
    CONNECTING,
    ELSEWHERE,
    HERE,
    HERE_ONCE,
    NOWHERE,
    READING,
    WRITING_FREE,
    WRITING_HELD,
    HostList,
    judge,
)
from greycheck.store.url import parse_url

PHASES = (CONNECTING, READING, WRITING_HELD, WRITING_FREE)
KINDS = [
    value
    for name, value in vars(faults).items()
    if name.isupper() and isinstance(value, str) and " " not in value
]


def test_each_kind_of_fault_is_judged_in_each_phase() -> None:
    assert set(host_list._TABLE) == set(KINDS)
    for kind in KINDS:
        for phase in PHASES:
            mark, way = judge(kind, phase)
            assert mark in ("", DOWN, STUCK)
            assert way in (NOWHERE, HERE, HERE_ONCE, ELSEWHERE)


@pytest.mark.parametrize(
    ("kind", "connecting", "reading", "held", "free"),
    [
        (faults.GONE, (DOWN, ELSEWHERE), (DOWN, HERE_ONCE), ("", HERE_ONCE), (STUCK, HERE_ONCE)),
        (
            faults.UNUSABLE,
            (DOWN, ELSEWHERE),
            (DOWN, ELSEWHERE),
            ("", ELSEWHERE),
            (STUCK, ELSEWHERE),
        ),
        (faults.SILENT, (DOWN, ELSEWHERE), (DOWN, ELSEWHERE), ("", ELSEWHERE), (STUCK, ELSEWHERE)),
        (faults.BUSY, (DOWN, HERE), (DOWN, ELSEWHERE), ("", ELSEWHERE), (STUCK, ELSEWHERE)),
        (
            faults.READ_ONLY,
            (DOWN, ELSEWHERE),
            (STUCK, ELSEWHERE),
            (STUCK, ELSEWHERE),
            (STUCK, ELSEWHERE),
        ),
        (faults.LOCKED, (DOWN, ELSEWHERE), (DOWN, HERE), ("", HERE), (STUCK, HERE)),
        (faults.CONFLICT, (DOWN, ELSEWHERE), ("", HERE), ("", HERE), ("", HERE)),
        (faults.SCHEMA, (DOWN, ELSEWHERE), ("", NOWHERE), ("", NOWHERE), ("", NOWHERE)),
        (faults.OTHER, (DOWN, ELSEWHERE), ("", NOWHERE), ("", NOWHERE), ("", NOWHERE)),
        (faults.OURS, ("", NOWHERE), ("", NOWHERE), ("", NOWHERE), ("", NOWHERE)),
    ],
)
def test_what_a_fault_says_of_its_host(
    kind: str,
    connecting: tuple[str, str],
    reading: tuple[str, str],
    held: tuple[str, str],
    free: tuple[str, str],
) -> None:
    assert [judge(kind, phase) for phase in PHASES] == [connecting, reading, held, free]


def hosts(directory: Path) -> HostList:
    return HostList(parse_url("mysql://u@/g?host=a,b,c"), str(directory))


def names(found: HostList) -> list[str]:
    return [str(host) for host in found.left]


def test_hosts_are_asked_in_their_order_those_that_take_writes_first(tmp_path: Path) -> None:
    found = hosts(tmp_path)
    assert names(found) == ["a", "b", "c"]
    found.mark(found.left[0], STUCK, "read-only")
    found.mark(found.left[1], DOWN, "no answer")
    assert found.notes == [
        "warning a takes no writes: read-only",
        "warning b is not asked any more: no answer",
    ]
    found.start()
    assert (names(found), found.notes) == (["c", "a"], [])
    assert re.fullmatch(r"b has not answered for [01]s: not asked", found.reason)


def test_a_host_comes_back_once_for_each_check(tmp_path: Path) -> None:
    found = hosts(tmp_path)
    host = found.first()
    assert host
    found.take()
    assert found.come_back(host)
    assert names(found) == ["a", "b", "c"]
    assert not found.come_back(host)
    found.start()
    assert found.come_back(host)


def test_where_no_host_is_due_there_is_none(tmp_path: Path) -> None:
    found = hosts(tmp_path)
    for host in list(found.left):
        found.mark(host, DOWN, "no answer")
    found.start()
    assert found.first() is None
    assert re.fullmatch(r"c has not answered for [01]s: not asked", found.reason)


def test_a_host_that_takes_no_writes_is_named(tmp_path: Path) -> None:
    found = hosts(tmp_path)
    assert found.takes_writes(found.left[0])
    found.mark(found.left[0], STUCK, "read-only")
    assert not found.takes_writes(found.left[0])
    assert re.fullmatch(r"a has taken no writes for [01]s: not tried", found.reason)
