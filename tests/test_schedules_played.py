"""The published schedules through real programs, with the time handed in: a forked child, and a
native one that asks a resident. Each attempt comes from a network of its own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greycheck.simulation.schedules import SCHEDULES
from tests.resident.resident import Resident
from tests.support import ACCEPTED, DEFERRED, Child, Database, Ran
from tests.test_identity import NETWORKS, SENDER, authorise
from tests.test_model import CLOCK, Clocked, programs
from tests.test_schedules import NOW, settings

# For which a fixture of that name stands here too.
__all__ = ["programs"]

DELAY = 300

Ask = Callable[..., Ran]


# Each schedule with a forked child; that a resident decides alike, a short and a long one show.
EVERY = [("forked", name) for name in SCHEDULES] + [("resident", "gmail"), ("resident", "yandex")]


@pytest.fixture
def child(request: pytest.FixtureRequest, database: Database, place: Path) -> Iterator[Child]:
    if request.param == "forked":
        yield Child(request.getfixturevalue("programs"), database)
        return
    found = Clocked(request.getfixturevalue("natives"), database, place / "socket")
    found.clock = place / "now"
    found.clock.write_text("0")
    (place / "sitecustomize.py").write_text(CLOCK.format(path=str(found.clock)))
    with Resident(place, {"deadline": "60s"}, database, environ={"PYTHONPATH": str(place)}).wait():
        yield found


@pytest.fixture
def ask(child: Child) -> Ask:
    def asked(client: str, after: int, sender: bytes = SENDER, recipient: str = "b@x.net") -> Ran:
        environ = child.environ(client, TEST_NOW=str(NOW + after))
        environ |= {b"REMOTEMF": sender, b"REMOTERCPT": recipient.encode()}
        return child.run([child.programs / "greycheck"], environ)

    return asked


def attempts(ask: Ask, schedule: list[int], network: str = "40.1") -> int | None:
    """When the first attempt of SCHEDULE passes, in seconds after the first."""
    for number, after in enumerate(schedule):
        ran = ask(f"{network}.{number}.1", after)
        if ran.code == ACCEPTED:
            assert "identity=provider.example" in ran.log
            assert ran.reason == "retry"
            return after
        assert ran.verdict == (DEFERRED, "new")
    return None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("child", "name"), EVERY, indirect=["child"])
def test_every_sender_passes_at_its_first_attempt_after_the_delay(
    ask: Ask, database: Database, name: str
) -> None:
    authorise(database, *NETWORKS)
    schedule = SCHEDULES[name]
    first = next(after for after in schedule if after >= DELAY)
    assert attempts(ask, schedule) == first
    # The second mail of that sender passes at once; and so does another's of the same domain.
    assert ask("40.9.1.1", first + 1, recipient="c@x.net").verdict == (ACCEPTED, "domain")
    other = ask("40.8.1.1", first + 2, sender=b"dave@provider.example")
    assert other.verdict == (ACCEPTED, "domain")
    # A stranger does not, whatever domain he claims.
    assert ask("50.9.1.1", first + 3, recipient="c@x.net").verdict == (DEFERRED, "new")
    assert ask("40.8.1.1", first + 3, sender=b"x@other.example").verdict == (DEFERRED, "new")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("child", ["forked", "resident"], indirect=True)
def test_a_botnet_and_a_domain_whose_spf_is_too_wide_gain_nothing(
    ask: Ask, database: Database
) -> None:
    authorise(database, *NETWORKS)
    authorise(database, domain="wide.example", state="wide")
    # Four bots at once, again and again: no pool, and no client of the domain that they claim.
    for after in (0, 400, 800):
        for number in range(4):
            ran = ask(f"60.{number}.{after // 4}.1", after + number)
            assert ran.verdict == (DEFERRED, "new")
            ran = ask(f"61.{number}.{after // 4}.1", after + number, sender=b"x@wide.example")
            assert ran.verdict == (DEFERRED, "new")
            assert "identity=" not in ran.log


def test_the_delay_here_is_the_default() -> None:
    assert settings().delay == DELAY
