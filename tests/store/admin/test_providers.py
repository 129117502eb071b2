"""Providers in the store: the networks of each, and the ranges of all of them together."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import Engine, delete, event, select

from greycheck.spf.providers import Said
from greycheck.store.admin import providers
from greycheck.store.admin.engine import open_engine
from greycheck.store.admin.providers import (
    ADDED,
    CHANGED,
    KEPT,
    KEPT_OLD,
    UNCHANGED,
    Change,
    ChangedMeanwhile,
    Provider,
)
from greycheck.store.base import domain_key
from greycheck.store.schema.tables import authorised
from greycheck.store.waiting import PROVIDERS
from tests.servers import Galera
from tests.support import DATABASES, ServerDatabase

NOW = 1_800_000_000

SYNC = "SET SESSION wsrep_sync_wait = 15"


def said(name: str, *networks: str, at: int = NOW, state: str = "found", why: str = "") -> Said:
    return Said(name, state, why, networks, False, at)


def add(engine: Engine, *answers: Said, comment: str | None = None) -> list[Change]:
    return providers.apply(engine, answers, NOW, comment, adding=True)


def ranges(engine: Engine) -> list[tuple[str, str, str]]:
    """The ranges in the store: first and last address in hexadecimal digits, and the names."""
    with engine.connect() as connection:
        rows = connection.execute(select(authorised).order_by(authorised.c.network_key)).all()
    assert all(row.network_key[:16] == PROVIDERS and row.source == "provider" for row in rows)
    return [(row.network_key[16:].hex()[-8:], row.last.hex()[-8:], row.name) for row in rows]


# --- ranges ---------------------------------------------------------------------------------------


def provider(name: str, *networks: str) -> Provider:
    return Provider(name, "", networks, NOW, NOW, NOW)


def covered(found: Sequence[tuple[bytes, bytes, str]]) -> dict[int, str]:
    """The names at each of the addresses 192.0.2.0 to 192.0.2.255 in FOUND."""
    base = int.from_bytes(b"\0" * 10 + b"\xff\xff\xc0\0\2\0")
    return {
        host: names
        for first, last, names in found
        for host in range(256)
        if int.from_bytes(first) <= base + host <= int.from_bytes(last)
    }


def test_where_networks_overlap_a_range_has_both_names() -> None:
    both = [provider("b.example", "192.0.2.0/25"), provider("a.example", "192.0.2.64/26")]
    found = providers.ranges_of(both)
    names = covered(found)
    assert [names.get(host) for host in (0, 63, 64, 127, 128)] == [
        "b.example",
        "b.example",
        "a.example,b.example",
        "a.example,b.example",
        None,
    ]
    assert len(found) == 2


def test_no_two_ranges_overlap_and_none_could_be_joined() -> None:
    every = [
        provider("a.example", "192.0.2.0/26", "192.0.2.64/26", "2001:db8::/32"),
        provider("b.example", "192.0.2.32/27", "192.0.2.128/25", "2001:db8:8::/48"),
        provider("c.example", "192.0.2.40/32", "0.0.0.0/32", "255.255.255.255/32"),
        provider("d.example", "ffff::/16", "::/128"),
    ]
    found = providers.ranges_of(every)
    for (_first, last, names), (first, _last, other) in pairwise(found):
        assert last < first
        assert names != other or int.from_bytes(last) + 1 < int.from_bytes(first)
    assert covered(found)[40] == "a.example,b.example,c.example"
    assert found[-1][1] == b"\xff" * 16


# --- adding, and another list ---------------------------------------------------------------------


def test_a_provider_is_added_with_its_networks_and_comment(engine: Engine) -> None:
    [change] = add(engine, said("a.example", "192.0.2.0/24", "2001:db8::/32"), comment="why")
    assert (change.what, change.added, change.removed) == (
        ADDED,
        ["192.0.2.0/24", "2001:db8::/32"],
        [],
    )
    networks = ("192.0.2.0/24", "2001:db8::/32")
    assert providers.all_providers(engine) == [
        Provider("a.example", "why", networks, NOW, NOW, NOW)
    ]
    assert ranges(engine) == [("c0000200", "c00002ff", "a.example")] + [
        ("00000000", "ffffffff", "a.example")
    ]


def test_a_new_list_takes_the_place_of_the_old_one(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24", "198.51.100.0/24"), comment="why")
    answer = said("a.example", "192.0.2.0/24", "203.0.113.0/24", at=NOW + 9)
    [change] = providers.apply(engine, [answer], NOW + 9)
    assert (change.what, change.added, change.removed) == (
        CHANGED,
        ["203.0.113.0/24"],
        ["198.51.100.0/24"],
    )
    [found] = providers.all_providers(engine)
    assert (found.comment, found.created_at, found.answered_at) == ("why", NOW, NOW + 9)
    assert [first for first, _last, _name in ranges(engine)] == ["c0000200", "cb007100"]


def test_only_rows_that_differ_are_written(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24", "198.51.100.0/24"))
    written: list[tuple[str, object]] = []

    def watch(_c: object, _cursor: object, sql: str, values: object, *_rest: object) -> None:
        if "authorised" in sql and not sql.startswith("SELECT"):
            written.append((sql.split()[0], len(values) if isinstance(values, list) else 1))

    event.listen(engine, "before_cursor_execute", watch)
    [change] = providers.apply(
        engine, [said("a.example", "192.0.2.0/24", "198.51.100.0/24", at=NOW + 9)], NOW + 9
    )
    assert change.what == UNCHANGED
    assert written == []
    providers.apply(engine, [said("a.example", "192.0.2.0/24", "203.0.113.0/24")], NOW + 9)
    assert [verb for verb, _rows in written] == ["DELETE", "INSERT"]
    with engine.connect() as connection:
        added = connection.execute(select(authorised.c.added_at)).scalars().all()
    assert sorted(added) == [NOW, NOW + 9]


def test_ranges_live_for_years_and_are_renewed_in_time(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24"))
    providers.apply(engine, [said("a.example", "192.0.2.0/24")], NOW + KEPT // 2 - 9)
    with engine.connect() as connection:
        assert connection.execute(select(authorised.c.expires_at)).scalars().all() == [NOW + KEPT]
    later = NOW + KEPT // 2 + 9
    providers.apply(engine, [said("a.example", "192.0.2.0/24")], later)
    with engine.connect() as connection:
        assert connection.execute(select(authorised.c.expires_at)).scalars().all() == [later + KEPT]


@pytest.mark.parametrize("state", ["failed", "error", "wide", "none"])
def test_without_a_list_from_dns_the_old_one_stays(engine: Engine, state: str) -> None:
    add(engine, said("a.example", "192.0.2.0/24"))
    before = ranges(engine)
    answer = said("a.example", at=NOW + 9, state=state, why="no answer")
    [change] = providers.apply(engine, [answer], NOW + 9)
    assert (change.what, change.added, change.removed) == (KEPT_OLD, [], [])
    [found] = providers.all_providers(engine)
    assert (found.networks, found.answered_at, found.asked_at) == (
        ("192.0.2.0/24",),
        NOW,
        NOW + 9,
    )
    assert (found.why, found.state) == (f"{state}: no answer", state)
    assert ranges(engine) == before
    providers.apply(engine, [said("a.example", "192.0.2.0/24", at=NOW + 10)], NOW + 10)
    assert providers.all_providers(engine)[0].state == "found"


def test_a_domain_that_says_that_nobody_sends_has_an_empty_list(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24"))
    providers.apply(engine, [said("a.example", why="nobody may send")], NOW + 9)
    assert ranges(engine) == []
    assert providers.all_providers(engine)[0].networks == ()


def test_what_was_removed_meanwhile_does_not_come_back(engine: Engine) -> None:
    assert providers.apply(engine, [said("a.example", "192.0.2.0/24")], NOW) == []
    assert providers.all_providers(engine) == []
    assert ranges(engine) == []


def test_what_was_shown_is_what_is_written_or_nothing_is(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24"))
    present = {one.name: one for one in providers.all_providers(engine)}
    answer = [said("a.example", "203.0.113.0/24")]
    shown = providers.changes(present, answer)
    providers.apply(engine, [said("a.example", "198.51.100.0/24")], NOW)
    before = ranges(engine)
    with pytest.raises(ChangedMeanwhile, match="try again"):
        providers.apply(engine, answer, NOW, shown=shown)
    assert ranges(engine) == before
    shown = providers.changes({one.name: one for one in providers.all_providers(engine)}, answer)
    providers.apply(engine, answer, NOW, shown=shown)
    assert ranges(engine) == [("cb007100", "cb0071ff", "a.example")]


def test_a_comment_is_kept_unless_another_is_given(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24"), comment="old")
    add(engine, said("a.example", "192.0.2.0/24"))
    assert providers.all_providers(engine)[0].comment == "old"
    add(engine, said("a.example", "192.0.2.0/24"), comment="new")
    assert providers.all_providers(engine)[0].comment == "new"


def test_there_is_a_limit(engine: Engine) -> None:
    many = [said(f"{number}.example", "192.0.2.0/24") for number in range(providers.MOST)]
    add(engine, *many)
    assert len(ranges(engine)) == 1
    with pytest.raises(ValueError, match="over 100 providers"):
        add(engine, said("one-more.example", "192.0.2.0/24"))
    assert len(providers.all_providers(engine)) == providers.MOST


def test_there_is_a_limit_for_the_networks_of_all(file_engine: Engine) -> None:
    many = [f"198.{second}.{third}.0/24" for second in range(4) for third in range(250)]
    each = len(many)
    full = [said(f"{number}.example", *many) for number in range(providers.MOST_NETWORKS // each)]
    add(file_engine, *full)
    with pytest.raises(ValueError, match="over 20000 networks of all providers"):
        add(file_engine, said("one-more.example", "192.0.2.0/24"))
    assert len(providers.all_providers(file_engine)) == len(full)


def test_ranges_that_were_lost_come_back_with_the_next_refresh(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24"))
    with engine.begin() as connection:
        connection.execute(delete(authorised))
    assert ranges(engine) == []
    providers.apply(engine, [said("a.example", "192.0.2.0/24")], NOW)
    assert ranges(engine) == [("c0000200", "c00002ff", "a.example")]


# --- removing -------------------------------------------------------------------------------------


def test_of_two_that_share_networks_the_other_keeps_its_own(engine: Engine) -> None:
    add(engine, said("a.example", "192.0.2.0/24"), said("b.example", "192.0.2.128/25"))
    assert ranges(engine) == [
        ("c0000200", "c000027f", "a.example"),
        ("c0000280", "c00002ff", "a.example,b.example"),
    ]
    [gone] = providers.remove(engine, ["a.example", "a.example", "c.example"], NOW)
    assert gone.name == "a.example"
    assert ranges(engine) == [("c0000280", "c00002ff", "b.example")]
    providers.remove(engine, ["b.example"], NOW)
    assert ranges(engine) == []


def test_ranges_of_domains_are_left_alone(engine: Engine) -> None:
    own = {
        "network_key": domain_key(b"a.example") + b"\0" * 16,
        "last": b"\0" * 16,
        "source": "spf",
        "name": "a.example",
        "added_at": NOW,
        "expires_at": NOW + 9,
    }
    with engine.begin() as connection:
        connection.execute(authorised.insert().values(own))
    add(engine, said("a.example", "192.0.2.0/24"))
    providers.remove(engine, ["a.example"], NOW)
    with engine.connect() as connection:
        assert connection.execute(select(authorised.c.source)).scalars().all() == ["spf"]


# --- two at once ----------------------------------------------------------------------------------


@pytest.fixture(params=[*DATABASES, "galera"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """The URLs by which several hosts reach one store."""
    if request.param != "galera":
        found = "path" if request.param == "sqlite" else f"on_{request.param}"
        store = request.getfixturevalue(found)
        if request.param == "sqlite":
            yield [f"sqlite:///{store}"]
        else:
            store.make()
            yield [store.url]
        return
    galera: Galera = request.getfixturevalue("galera")
    galera.start()
    first = ServerDatabase(galera.nodes[0], tmp_path, "providers")
    for node in galera.nodes:
        node.sql(f"{SYNC}; SELECT count(*) FROM provider", "providers")
    yield [node.url("providers") for node in galera.nodes]
    first.close()


def test_hosts_that_add_at_once_make_ranges_that_do_not_overlap(hosts: list[str]) -> None:
    """Each would see only its own provider, and write a range within or around the other's."""
    lengths = range(20, 28)
    failures: list[BaseException] = []

    def host(length: int) -> None:
        engine = open_engine(hosts[length % len(hosts)])
        try:
            add(engine, said(f"n{length}.example", f"192.0.0.0/{length}"))
        except BaseException as error:
            failures.append(error)
        finally:
            engine.dispose()

    threads = [Thread(target=host, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    engine = open_engine(hosts[0])
    if len(hosts) > 1:
        # What is read here, is read after all that any node has committed.
        event.listen(engine, "connect", lambda raw, _entry: raw.cursor().execute(SYNC))
    found = ranges(engine)
    names = [one.name for one in providers.all_providers(engine)]
    engine.dispose()
    assert names == [f"n{length}.example" for length in lengths]
    assert found[0] == ("c0000000", "c000001f", ",".join(names))
    assert len(found) == len(lengths)
    for (_first, last, _name), (first, _last, _other) in pairwise(found):
        assert int(first, 16) == int(last, 16) + 1
