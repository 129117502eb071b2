"""What residents and ``greycheck policy`` note of their verdicts for ``greycheck stats``."""

from pathlib import Path

import pytest

from greycheck import history
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.resident import counting
from greycheck.resident.counting import Counting
from tests.resident.conftest import Start
from tests.resident.resident import DEFERRED
from tests.resident.spawned import Spawned
from tests.servers import wait_until
from tests.support import DEFERRED as CODE_DEFERRED
from tests.support import RECIPIENT, Child, Database
from tests.test_history import envelope, settings, spooled

NOW = 1_800_000_000
NEW = ["defer", "new", "0", "example.net", "-", "-", "1"]
EARLY = ["defer", "early", "0", "example.net", "-", "-", "3"]


def test_a_resident_writes_what_it_counted_at_its_end(start: Start) -> None:
    resident = start()
    for _ in range(4):
        resident.ask()
    resident.ask(sasl_username="joe")
    assert resident.stop() == 0
    assert sorted(spooled(resident.store.directory)) == [EARLY, NEW]


def test_a_resident_writes_every_few_seconds(start: Start) -> None:
    resident = start()
    resident.ask()
    directory = resident.store.directory
    wait_until(lambda: spooled(directory) == [NEW], "it is written", lambda: str(directory))


def test_a_resident_whose_directory_is_gone_goes_on(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a server database the spool is in a directory that nothing else needs."""
    counts = Counting()
    told = settings(place / "gone")
    counts.add(told, envelope(), Verdict("accept", "client"), NOW)
    counts.end(told)
    resident = start(history="400d")
    path = resident.store.directory / history.SPOOL
    path.mkdir()
    resident.ask()
    assert resident.stop() == 0
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("way", ["resident"], indirect=True)
def test_a_child_in_c_is_counted_once(child: Child) -> None:
    child.make_store()
    path = child.store.directory / history.SPOOL
    path.unlink(missing_ok=True)
    assert child.smtpextfork().code == CODE_DEFERRED
    wait_until(lambda: spooled(path.parent) == [NEW], "it is written", lambda: str(path))


def test_policy_writes_one_line_each(database: Database) -> None:
    database.make()
    with Spawned(database, {"deadline": "60s"}) as spawned:
        assert spawned.ask() == DEFERRED
        spawned.ask(sasl_username="joe")
        spawned.ask()
        spawned.end()
    assert [line[1] for line in spooled(database.directory)] == ["new", "early"]


def test_the_same_verdicts_are_one_line(place: Path) -> None:
    counts, told = Counting(), settings(place)
    for moment in (NOW, NOW + 1, NOW + 899, NOW + 900):
        counts.add(told, envelope(), Verdict("accept", "client"), moment)
    counts.add(told, envelope(), Verdict("accept", "exempt"), NOW)
    counts.add(settings(place, HISTORY="0"), envelope(), Verdict("accept", "client"), NOW)
    counts.end(told)
    counts.end(told)
    assert [line[-1] for line in spooled(place)] == ["3", "1"]


def test_it_holds_a_limited_number(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST", 2)
    counts, told = Counting(), settings(place)
    for name in (b"a", b"b", b"c", b"a"):
        one = Envelope("policy", "192.0.2.1", b"", b"x@" + name, first=True)
        counts.add(told, one, Verdict("accept", "client"), NOW)
    counts.end(told)
    assert [(line[3], line[-1]) for line in spooled(place)] == [("a", "2"), ("b", "1")]


def test_where_no_thread_can_be_made_it_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, told = Counting(), settings(place)
    counts.add(told, envelope(recipient=RECIPIENT), Verdict("accept", "client"), NOW)

    def refuse(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as few:
        few.setattr(counting.threading.Thread, "start", refuse)
        counts.end(told)
    assert spooled(place) == []
    counts.end(told)
    assert len(spooled(place)) == 1
