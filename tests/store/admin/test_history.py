"""Daily totals in the store: what is added up, once; what never came back; what goes again."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from greycheck import history as spooling
from greycheck.envelope import Envelope
from greycheck.envelope import triplet as triplet_of
from greycheck.settings import Settings
from greycheck.store.admin import expiry, history
from greycheck.store.admin.engine import open_engine, reading
from greycheck.store.admin.history import (
    DELAY,
    EVER,
    HOUR,
    NETWORK,
    NEVER,
    SENDER,
    VERDICT,
    WAITED,
    Total,
    add_up,
    collect,
    day_of,
    longest,
    read,
    step,
)
from greycheck.store.base import Asked, StoreError, packed
from greycheck.store.schema.tables import triplet
from tests.databases import fill
from tests.support import Database, on_every_database, on_every_server
from tests.test_history import settings

NOW = 1_800_000_000
TODAY = day_of(NOW)
DAY = 86400
HOUR_OF_NOW = f"{history.localtime(NOW).tm_hour:02}"


@pytest.fixture
def told(database: Database) -> Settings:
    """The settings of DATABASE, with senders."""
    return settings_of(database)


def settings_of(database: Database, **more: str) -> Settings:
    given = {"HISTORY_SENDERS": "yes", "STATE_DIRECTORY": str(database.directory)} | more
    return settings(database.directory, DATABASE=database.url, **given)


@pytest.fixture
def store(database: Database) -> Iterator[Engine]:
    database.make()
    engine = open_engine(database.url)
    yield engine
    engine.dispose()


def line(
    when: int = NOW,
    verdict: str = "defer",
    reason: str = "new",
    wait: int = 0,
    recipient: str = "example.net",
    sender: str = "example.org",
    network: str = "192.0.2.0/24",
    number: int = 1,
) -> bytes:
    return f"{when} {verdict} {reason} {wait} {recipient} {sender} {network} {number}\n".encode()


def spool(database: Database, *lines: bytes) -> Path:
    path = database.directory / spooling.SPOOL
    with path.open("ab") as file:
        file.write(b"".join(lines))
    return path


def attempts(totals: history.Totals) -> int:
    return sum(number for total, number in totals.items() if total.kind == VERDICT and total.day)


# --- lines ----------------------------------------------------------------------------------------


def test_a_line_is_counted_by_day_hour_reason_wait_sender_and_network() -> None:
    found = add_up([line(number=3), line(verdict="accept", reason="retry", wait=400)], NOW)
    assert found == Counter(
        {
            Total(TODAY, VERDICT, "defer", "new", "example.net"): 3,
            Total(TODAY, VERDICT, "accept", "retry", "example.net"): 1,
            Total(TODAY, HOUR, "defer", HOUR_OF_NOW): 3,
            Total(TODAY, HOUR, "accept", HOUR_OF_NOW): 1,
            Total(TODAY, DELAY, "", str(step(400))): 1,
            Total(TODAY, SENDER, "defer", "example.org"): 3,
            Total(TODAY, SENDER, "accept", "example.org"): 1,
            Total(TODAY, NETWORK, "defer", "192.0.2.0/24"): 3,
            Total(TODAY, NETWORK, "accept", "192.0.2.0/24"): 1,
            Total(0, EVER, "defer", "new"): 3,
            Total(0, EVER, "accept", "retry"): 1,
            Total(0, WAITED, "", str(step(400))): 1,
            Total(0, WAITED, "", "sum"): 400,
        }
    )


WRONG = (
    b"",
    b"\n",
    line()[:-1],  # cut by a full disk
    b"1" + line(),  # behind what was cut
    line(when=NOW + 3 * DAY),
    line(when=5),
    b"9" * 30 + line(),
    line(verdict="maybe"),
    line(reason="Not_a_reason"),
    line(number=10**12),
    line(recipient="a b"),
    line(recipient="x" * 1000),
    line(recipient="\x1b[2J"),
    line(sender="\u202e"),
    line().replace(b"example.net", b"\xff\xfe"),
    line(network="192.0.2.0/24;"),
    line() + b"x",
)


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_what_is_no_whole_line_is_left_out(wrong: bytes) -> None:
    assert add_up([wrong, line()], NOW) == add_up([line()], NOW)


def test_a_name_in_utf_8_is_one() -> None:
    assert add_up([line(recipient="bücher.example")], NOW)[
        Total(TODAY, VERDICT, "defer", "new", "bücher.example")
    ]


def test_no_total_of_one_file_is_larger_than_fits() -> None:
    found = add_up([line(wait=10**9 - 1, number=10**9 - 1)] * 3, NOW)
    assert max(found.values()) == history.LARGEST_TOTAL


def test_very_many_names_are_not_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HELD", 3000)
    lines = (
        line(recipient=name, sender=name, network=f"2001:db8:{number:x}::/64")
        for number in range(9000)
        for name in (f"{number}.example", "busy.example")
    )
    found = add_up(lines, NOW)
    assert len(found) < 4000
    assert found[Total(TODAY, VERDICT, "defer", "new", "busy.example")] == 9000
    for kind in (VERDICT, SENDER, NETWORK):
        assert sum(number for total, number in found.items() if total.kind == kind) == 18000


def test_a_step_is_nine_percent_longer_than_the_one_before() -> None:
    assert all(
        longest(step(seconds) - 1) < seconds <= longest(step(seconds))
        for seconds in (2, 300, 301, 86400, 10**9)
    )
    assert longest(9) / longest(8) == pytest.approx(1.0905, abs=1e-4)


# --- the spool ------------------------------------------------------------------------------------


@on_every_database
def test_what_was_spooled_is_added_once(store: Engine, database: Database, told: Settings) -> None:
    spool(database, line(), line(), line(verdict="accept", reason="retry", wait=400))
    read_before = read(store, told, TODAY, TODAY, NOW)
    assert collect(store, told, NOW, settled=0) == 1
    assert collect(store, told, NOW, settled=0) == 0
    assert read(store, told, TODAY, TODAY, NOW) == read_before
    spool(database, line())
    after = read(store, told, TODAY, TODAY, NOW)
    assert attempts(after) == 4
    assert after[Total(0, SENDER, "defer", "example.org")] == 3
    assert after[Total(0, VERDICT, "accept", "retry", "example.net")] == 1
    collect(store, told, NOW, settled=0)
    assert read(store, told, TODAY, TODAY, NOW) == after
    assert read(store, told, TODAY - 9, TODAY - 1, NOW) == Counter(
        {total: number for total, number in after.items() if total.kind in (EVER, WAITED)}
    )


def test_a_file_that_was_just_taken_is_read_and_added_once_it_has_settled(
    store: Engine, database: Database, told: Settings
) -> None:
    """A check may have opened it before, and write into it yet."""
    spool(database, line())
    history.take(told)
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 1
    [taken] = database.directory.glob(f"{spooling.SPOOL}.*")
    rests = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        with taken.open("ab") as file:
            file.write(line())

    spool(database, line())
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 2
    assert collect(store, told, NOW, settled=1000, rest=rest) == 1
    assert len(rests) == 1
    assert 900 < rests[0] <= 1000
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 3


def test_what_was_taken_long_ago_or_by_a_clock_ahead_is_not_waited_for(
    store: Engine, database: Database, told: Settings
) -> None:
    for name in ("1.1", f"{10**19}.1"):
        spool(database, line()).rename(database.directory / f"{spooling.SPOOL}.{name}")

    def rest(_seconds: float) -> None:
        raise AssertionError("nothing is to be waited for")

    assert collect(store, told, NOW, rest=rest) == 2


def test_a_kill_between_commit_and_removal_adds_nothing_twice(
    store: Engine, database: Database, told: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool(database, line())

    def killed(_path: Path, missing_ok: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(store, told, NOW, settled=0)
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 1
    assert collect(store, told, NOW, settled=0) == 0
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 1
    assert not list(database.directory.glob(f"{spooling.SPOOL}*"))


@on_every_database
def test_two_at_once_add_it_once(store: Engine, database: Database, told: Settings) -> None:
    path = spool(database, *[line()] * 50)
    path.rename(path.with_name(f"{spooling.SPOOL}.1.1"))
    added: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: added.append(
                history._add_file(store, told, path.with_name(f"{spooling.SPOOL}.1.1"), NOW)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [False, False, False, True]
    path.with_name(f"{spooling.SPOOL}.1.1").unlink()
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 50


def test_what_is_no_regular_file_is_taken_for_an_empty_one(
    store: Engine, database: Database, told: Settings, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(line())
    path = database.directory / spooling.SPOOL
    for is_link in (True, False):
        if is_link:
            path.symlink_to(secret)
        else:
            os.mkfifo(path)
        if os.geteuid() == 0:
            with pytest.raises(StoreError, match="rm "):
                collect(store, told, NOW, settled=0)
            path.unlink()
            continue
        assert attempts(read(store, told, TODAY, TODAY, NOW)) == 0
        collect(store, told, NOW, settled=0)
        assert not os.path.lexists(path)
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 0
    assert secret.read_bytes() == line()
    with path.open("wb") as file:
        file.truncate(2 * spooling.LARGEST)
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 0
    path.unlink()
    path.mkdir()
    with pytest.raises((OSError, StoreError), match="directory"):
        collect(store, told, NOW, settled=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_may_not_be_taken_away_is_said_and_read_without(
    store: Engine, database: Database, told: Settings
) -> None:
    spool(database, line()).chmod(0o600)
    database.directory.chmod(0o755)
    for path in database.directory.glob("greycheck.db*"):
        path.chmod(0o644)
    with reading(store).connect() as open_before:
        open_before.exec_driver_sql("SELECT 1")
        child = os.fork()
        if not child:
            os.setuid(65534)
            found = attempts(read(store, told, TODAY, TODAY, NOW))
            try:
                collect(store, told, NOW, settled=0)
            except PermissionError:
                os._exit(7 + found)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to misuse")
def test_root_neither_reads_nor_removes_the_spool_of_another(
    store: Engine, database: Database, told: Settings
) -> None:
    spool(database, line())
    os.chown(database.directory, 65534, -1)
    for act in (
        lambda: collect(store, told, NOW, settled=0),
        lambda: read(store, told, TODAY, TODAY, NOW),
    ):
        with pytest.raises(StoreError, match=r"nobody|65534"):
            act()


def test_a_spool_that_is_taken_away_while_it_is_read_is_read_again(
    store: Engine, database: Database, told: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look into the spool and that into the store another process adds it."""
    spool(database, line())
    real, times = reading, []

    def slow(engine: Engine) -> Engine:
        times.append(1)
        if len(times) == 1:
            with monkeypatch.context() as other:
                other.setattr(history, "reading", real)
                collect(store, told, NOW, settled=0)
        return real(engine)

    monkeypatch.setattr(history, "reading", slow)
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 1
    assert len(times) == 2


def test_without_a_history_the_spool_is_removed_and_so_are_totals(
    store: Engine, database: Database, told: Settings
) -> None:
    spool(database, line())
    collect(store, told, NOW, settled=0)
    spool(database, line())
    without = settings_of(database, HISTORY="0")
    assert collect(store, without, NOW, settled=0) == 0
    assert history.forget(store, without, NOW) > 0
    assert database.rows("SELECT day FROM history") == []
    assert not list(database.directory.glob(f"{spooling.SPOOL}*"))


# --- several hosts --------------------------------------------------------------------------------


def totals_of(names: list[str], number: int = 1) -> history.Totals:
    return Counter({Total(TODAY, SENDER, "defer", name): number for name in names})


@on_every_database
def test_hosts_that_add_and_prune_at_once_never_wait_for_each_other_in_a_circle(
    store: Engine, database: Database, told: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEPT", 4)
    faults: list[BaseException] = []

    def host(number: int) -> None:
        engine = open_engine(database.url)
        try:
            for turn in range(12):
                names = [f"{number}-{turn}-{name}.example" for name in range(9)] + ["all.example"]
                with engine.begin() as connection:
                    history.lock(connection, NOW)
                    history.add(connection, told, totals_of(names), NOW)
        except BaseException as fault:
            faults.append(fault)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=host, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    found = read(store, told, TODAY, TODAY, NOW)
    assert sum(number for total, number in found.items() if total.kind == SENDER) == 4 * 12 * 10


@on_every_server
def test_who_waits_for_the_totals_has_no_row_that_a_check_could_wait_for(
    store: Engine, database: Database, told: Settings
) -> None:
    fill(store, "triplet", [row("once@a.example")])
    other = open_engine(database.url)
    of_triplet = select(triplet.c.sender).with_for_update(skip_locked=True)
    with store.begin() as first:
        history.lock(first, NOW)
        history.add(first, told, totals_of(["a.example"]), NOW)
        second = threading.Thread(target=lambda: list(expiry.expire(other, NOW, settings=told)))
        second.start()
        second.join(1)
        assert second.is_alive(), "it waits for the first one"
        with store.begin() as third:
            assert third.execute(of_triplet).all() == [("once@a.example",)]
    second.join()
    other.dispose()
    assert database.rows("SELECT sender FROM triplet") == []


# --- how long, and how many -----------------------------------------------------------------------


@on_every_database
def test_days_go_when_their_time_is_over_and_senders_where_nobody_wants_them(
    store: Engine, database: Database, told: Settings
) -> None:
    days = [NOW - age * DAY for age in (0, 20, 399, 402)]
    spool(database, *(line(when) for when in days))
    collect(store, told, NOW, settled=0)
    kept = {day_of(when) for when in days[:3]}

    def of(column: str) -> set[object]:
        return {row[0] for row in database.rows(f"SELECT {column} FROM history WHERE day > 0")}

    assert of("day") == kept
    assert history.forget(store, told, NOW) == 0
    history.forget(store, settings_of(database, HISTORY="30d"), NOW)
    assert of("day") == {day_of(when) for when in days[:2]}
    assert of("kind") == {VERDICT, HOUR, SENDER, NETWORK}
    history.forget(store, settings_of(database, HISTORY_SENDERS="no"), NOW)
    assert of("kind") == {VERDICT, HOUR}
    for _removed in expiry.expire(store, NOW + 500 * DAY, rest=lambda _seconds: None):
        pass
    assert of("day") == set()
    kinds = {kind for (kind,) in database.rows("SELECT kind FROM history")}
    assert kinds == {EVER, history.LOCK}


@on_every_database
def test_a_day_keeps_the_busiest_names_and_one_for_all_others(
    store: Engine, database: Database, told: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEPT", 5)
    for turn in range(4):
        names = [f"{turn}-{number}.example" for number in range(8)]
        spool(
            database,
            line(recipient="busy.example", sender="busy.example", network="10.0.0.0/24", number=9),
            *(
                line(recipient=name, sender=name, network=f"10.{turn}.{number}.0/24")
                for number, name in enumerate(names)
            ),
        )
        collect(store, told, NOW, settled=0)
    found = read(store, told, TODAY, TODAY, NOW)
    for kind in (VERDICT, SENDER, NETWORK):
        of_kind = {
            total.recipient if kind == VERDICT else total.name: number
            for total, number in found.items()
            if total.kind == kind and not total.day
        }
        assert sum(of_kind.values()) == 4 * (9 + 8)
        busy = "10.0.0.0/24" if kind == NETWORK else "busy.example"
        assert of_kind[busy] == (37 if kind == NETWORK else 36)
        assert of_kind[""] > 0
        assert len(of_kind) <= (6 if kind == VERDICT else 11)


# --- what never came back -------------------------------------------------------------------------


def row(
    sender: str,
    network: str = "192.0.2",
    early: int = 0,
    passed: bool = False,
    authorised_by_mailer: int = 0,
    recipient: str = "bob@example.net",
) -> tuple[object, ...]:
    """A triplet that expired just before NOW, or passed; its address is .1 of NETWORK."""
    envelope = Envelope(
        "smtpextfork", f"{network}.1", sender.encode(), recipient.encode(), first=True
    )
    asked = Asked(envelope, triplet_of(envelope, 24, 64))
    first = NOW - 3 * DAY
    return (
        asked.key,
        f"{network}.0/24",
        *asked.shown,
        first,
        first + 60,
        early,
        int(passed),
        first + 600 if passed else None,
        NOW + (DAY if passed else -10),
        asked.origin,
        authorised_by_mailer,
    )


@on_every_database
def test_what_expires_while_it_waits_never_came_back(
    store: Engine, database: Database, told: Settings
) -> None:
    first = NOW - 3 * DAY
    ours = Asked(
        Envelope("x", "203.0.113.1", b"a@known.example", b"bob@example.net", first=True),
        triplet_of(
            Envelope("x", "203.0.113.1", b"a@known.example", b"bob@example.net", first=True), 24, 64
        ),
    )
    assert ours.origin is not None
    key = ours.origin[:16]
    fill(
        store,
        "triplet",
        [
            row("once@a.example"),
            row("again@a.example", early=2),
            row("", early=1),
            row("passed@a.example", passed=True),
            row("moved@a.example", passed=True),
            row("moved@a.example", "192.0.3"),
            # Its client became known by another mail, and so it was let in.
            row("more@b.example", "198.51.100"),
            # Known before, and forgotten: that is no sign.
            row("old@b.example", "198.51.101"),
            row("a@known.example", "203.0.113"),
            row("forged@known.example", "203.0.114"),
            row("told@known.example", "203.0.115", authorised_by_mailer=1),
            row("x@a.example", recipient="\0message"),
        ],
    )
    fill(
        store,
        "client",
        [
            ("198.51.100.1", 1, first, first + 600, NOW + DAY, 0, 0),
            ("198.51.101.1", 1, first - DAY, first - 600, NOW + DAY, 0, 0),
        ],
    )
    fill(store, "domain", [(key, "known.example", 1, first, first + 900, NOW + DAY)])
    fill(
        store,
        "authorised",
        [
            (key + packed("203.0.113.0"), packed("203.0.113.255"), "spf", "known.example", 1, 1),
            (
                key + packed("203.0.114.0"),
                packed("203.0.114.255"),
                "refused",
                "known.example",
                1,
                1,
            ),
        ],
    )
    for _batch in expiry.expire(store, NOW, batch=5, rest=lambda _seconds: None, settings=told):
        pass
    found = read(store, told, TODAY - 9, TODAY, NOW)
    day = day_of(first)
    assert {t: n for t, n in found.items() if NEVER in (t.kind, t.verdict) and t.day} == {
        Total(day, NEVER, NEVER, "once"): 3,
        Total(day, NEVER, NEVER, "again"): 2,
    }
    names = {t.name: n for t, n in found.items() if t.kind == SENDER and t.verdict == NEVER}
    assert names == {"a.example": 2, "-": 1, "b.example": 1, "known.example": 1}
    assert found[Total(0, NETWORK, NEVER, "203.0.114.0/24")] == 1
    assert found[Total(0, NEVER, NEVER, "once", "example.net")] == 3


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ({}, {"shared@c.example"}),
        ({"CLIENT_PASSES": "2"}, {"shared@c.example", "mine@b.example"}),
        ({"CLIENT_PASSES": "0"}, {"shared@c.example", "mine@b.example"}),
        ({"DOMAIN_PASSES": "2"}, {"shared@c.example", "its@known.example"}),
        ({"DOMAIN_PASSES": "0"}, {"shared@c.example", "its@known.example"}),
        ({"IDENTITY": "observe"}, {"shared@c.example", "its@known.example"}),
        ({"IDENTITY": "no"}, {"shared@c.example", "its@known.example"}),
    ],
)
def test_what_is_not_known_by_the_settings_hides_nothing_that_never_came(
    store: Engine, database: Database, more: dict[str, str], lost: set[str]
) -> None:
    """All of them have passed once since; an address that many share is known to nobody."""
    first = NOW - 3 * DAY
    of_domain = row("its@known.example", "203.0.113")
    key = bytes(of_domain[10])[:16]  # type: ignore[call-overload]
    rows = [row("mine@b.example", "198.51.100"), row("shared@c.example", "10.1.2"), of_domain]
    fill(store, "triplet", rows)
    fill(
        store,
        "client",
        [
            (address, 1, first, first + 600, NOW + DAY, 0, 0)
            for address in ("198.51.100.1", "10.1.2.1")
        ],
    )
    fill(store, "domain", [(key, "known.example", 1, first, first + 900, NOW + DAY)])
    low, high = packed("203.0.113.0"), packed("203.0.113.255")
    fill(store, "authorised", [(key + low, high, "spf", "known.example", 1, NOW + DAY)])
    told = settings_of(database, **more)
    assert next(expiry.expire(store, NOW, settings=told)) == ("triplet", 3)
    found = read(store, told, TODAY - 9, TODAY, NOW)
    domains = {total.name for total in found if (total.kind, total.verdict) == (SENDER, NEVER)}
    assert domains == {sender.rpartition("@")[2] for sender in lost}


@pytest.mark.parametrize(("state", "lost"), [("found", 1), ("none", 0)])
def test_what_was_seen_of_a_domain_counts_less_than_what_it_says_itself(
    store: Engine, told: Settings, state: str, lost: int
) -> None:
    first = NOW - 3 * DAY
    of_pool = row("its@known.example", "203.0.113")
    key = bytes(of_pool[10])[:16]  # type: ignore[call-overload]
    low, high = packed("203.0.113.0"), packed("203.0.113.255")
    fill(store, "triplet", [of_pool])
    fill(store, "domain", [(key, "known.example", 1, first, first + 900, NOW + DAY)])
    fill(store, "authorised", [(key + low, high, "pool", "known.example", 1, NOW + DAY)])
    said = (key, "known.example", state, "", 0, first, first, 0, NOW + DAY, NOW + DAY)
    fill(store, "spf", [said])
    assert next(expiry.expire(store, NOW, settings=told)) == ("triplet", 1)
    found = read(store, told, TODAY - 9, TODAY, NOW)
    assert sum(number for total, number in found.items() if total.day and total.kind == NEVER) == (
        lost
    )


def test_without_a_history_expiry_counts_nothing(store: Engine, database: Database) -> None:
    fill(store, "triplet", [row("once@a.example")])
    without = settings_of(database, HISTORY="0")
    assert list(expiry.expire(store, NOW, settings=without)) == [("triplet", 1)]
    assert database.rows("SELECT day FROM history") == []


# --- the command ----------------------------------------------------------------------------------


@on_every_database
def test_expire_collects_what_it_finds(store: Engine, database: Database) -> None:
    now = int(history.time_ns() / 1e9)
    spool(database, line(when=now))
    environ = {"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null", **database.environ}
    ran = subprocess.run(
        [sys.executable, "-m", "greycheck", "expire", "--yes"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert database.rows("SELECT number FROM history WHERE kind = 'verdict'") == [(1,)]


def test_of_many_files_that_were_taken_some_are_added_and_no_other_name_of_one(
    store: Engine, database: Database, told: Settings
) -> None:
    """However many there are, a command ends."""
    path = spool(database, line())
    path.rename(path.with_name("counts"))
    for number in range(3000):
        os.link(path.with_name("counts"), path.with_name(f"{spooling.SPOOL}.{number}.1"))
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 0
    assert collect(store, told, NOW, settled=0) <= history.FILES
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 0
    for number in range(3000):
        path.with_name(f"{spooling.SPOOL}.{number}.1").unlink(missing_ok=True)
    for number in range(2 * history.FILES):
        path.with_name(f"{spooling.SPOOL}.{number}.2").write_bytes(line())
    assert collect(store, told, NOW, settled=0) == history.FILES
    assert collect(store, told, NOW, settled=0) == history.FILES
    assert attempts(read(store, told, TODAY, TODAY, NOW)) == 2 * history.FILES
