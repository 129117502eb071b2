"""``greycheck serve`` runs ``greycheck resolve`` by itself, and ends it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from greycheck.resident.journal import Journal
from greycheck.resident.resolving import EVERY, Resolving
from greycheck.settings import Settings, read
from tests.dns_servers import Liar, Nsd, silent
from tests.resident.resident import ACCEPTED, DEFERRED, Resident
from tests.resolve.parts import ZONES
from tests.servers import family, state_of, wait_until
from tests.support import Database, on_every_database

SENDER = b"ann@pool.example"


@pytest.fixture(scope="module")
def nsd() -> Iterator[Nsd]:
    with Nsd(ZONES) as found:
        yield found


@on_every_database
def test_a_resident_asks_the_domains_of_what_waits(
    nsd: Nsd, place: Path, database: Database
) -> None:
    database.make()
    settings = {"resolver": nsd.address}
    with Resident(place, settings, database, resolves=True).wait() as resident:
        assert resident.ask(client_address="192.0.2.1", sender=SENDER) == DEFERRED
        wait_until(
            lambda: database.rows("SELECT state FROM spf") == [("found",)],
            "the domain is asked",
            resident.log,
        )
        database.age(301)
        assert resident.ask(client_address="198.51.100.1", sender=SENDER) == ACCEPTED
        assert resident.reasons() == ["new", "retry"]
        wait_until(lambda: len(family(resident.process.pid)) == 1, "the run has ended")
        assert resident.warnings() == []


def test_what_a_run_complains_of_is_in_the_residents_log(place: Path) -> None:
    with Resident(place, resolves=True).wait() as resident:
        # Of a schema that is taken away under its feet it says what is to be done.
        with resident.store.begin() as connection:
            connection.exec_driver_sql("DROP TABLE domain")
        wait_until(
            lambda: "warning resolve: no such table: domain" in resident.log(),
            "it complains",
            resident.log,
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_ends_with_its_resident(place: Path, number: int) -> None:
    with Liar(silent) as liar:
        settings = {"resolver": liar.address}
        with Resident(place, settings, resolves=True).wait() as resident:
            resident.ask(sender=SENDER)
            wait_until(lambda: bool(liar.queries), "DNS is asked", resident.log)
            [_resident, run] = family(resident.process.pid)
            assert resident.stop(number) == 0
            assert state_of(run) == ""


# --- without a resident ---------------------------------------------------------------------------


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    """The log of a resident, a file of PLACE."""
    with (place / "log").open("ab") as log:
        yield Journal(log.fileno())


def beside(
    journal: Journal, place: Path, wanted: bool = True, identity: str = "yes"
) -> tuple[Resolving, Settings]:
    """What a resident has, with the first run due."""
    environ = {
        b"GREYCHECK_CONFIG": b"/dev/null",
        b"GREYCHECK_DATABASE": f"{place}/greycheck.db".encode(),
        b"GREYCHECK_IDENTITY": identity.encode(),
    }
    found = Resolving(environ, journal, wanted)
    found._next = 0.0
    return found, read(environ)


def runs(resolving: Resolving) -> bool:
    return resolving._process is not None


@pytest.mark.parametrize(("identity", "wanted"), [("no", True), ("yes", False), ("observe", False)])
def test_where_nobody_wants_it_nothing_is_run(
    journal: Journal, place: Path, identity: str, wanted: bool
) -> None:
    resolving, settings = beside(journal, place, wanted, identity)
    resolving.tick(settings)
    assert not runs(resolving)


def test_a_run_that_does_not_end_is_killed_and_told(
    journal: Journal, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greycheck.resident.resolving.LONGEST", -1.0)
    resolving, settings = beside(journal, place)
    resolving.tick(settings)
    assert runs(resolving)

    def has_ended() -> bool:
        resolving.tick(settings)
        return not runs(resolving)

    wait_until(has_ended, "it is killed")
    journal.flush()
    said = (place / "log").read_text()
    assert "warning resolve: killed after -1s" in said
    assert "warning resolve: ended by signal 9" in said


def test_the_next_run_is_a_minute_later_and_none_comes_after_the_end(
    journal: Journal, place: Path
) -> None:
    resolving, settings = beside(journal, place)
    resolving.tick(settings)
    assert resolving._next - resolving._began == EVERY
    resolving.end()
    resolving._next = 0.0
    resolving.tick(settings)
    assert not runs(resolving)
