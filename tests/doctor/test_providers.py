"""What the doctor finds of providers: old lists, and those whose SPF is wrong."""

import os
import pwd
import time
from pathlib import Path

import pytest

from greycheck import settings
from greycheck.doctor import store
from greycheck.doctor.finding import Finding, Installation
from greycheck.spf.providers import Said
from greycheck.store.admin import providers
from greycheck.store.admin.engine import open_engine
from tests.support import Database, on_every_database

ME = pwd.getpwuid(os.geteuid())
NOW = int(time.time())
DAY = 86400


@pytest.fixture
def home(place: Path) -> Path:
    (place / "bin").mkdir()
    (place / "proc").mkdir()
    return place


def found(home: Path, database: Database, **variables: str) -> list[Finding]:
    """What the doctor says of providers in DATABASE."""
    environ = {**database.environ, "GREYCHECK_CONFIG": "/dev/null", **variables}
    read = settings.read({name.encode(): value.encode() for name, value in environ.items()})
    installation = Installation(home / "bin", ME, read, NOW, home / "proc")
    return [one for one in store.check_store(installation) if one.about == "providers"]


def put(database: Database, *answers: Said) -> None:
    engine = open_engine(database.url)
    providers.apply(engine, answers, NOW, adding=True)
    engine.dispose()


def said(name: str, days: int, state: str = "found", why: str = "", networks: int = 1) -> Said:
    """What DNS said of NAME so many DAYS ago."""
    some = tuple(f"192.0.2.{number}/32" for number in range(networks))
    return Said(name, state, why, some if state == "found" else (), False, NOW - days * DAY)


@on_every_database
def test_without_a_provider_it_says_nothing(home: Path, database: Database) -> None:
    assert found(home, database) == []


@on_every_database
def test_fresh_lists_are_well(home: Path, database: Database) -> None:
    put(database, said("a.example", 7, networks=3), said("b.example", 1))
    [one] = found(home, database)
    assert (one.level, one.found) == ("ok", "2 with 4 networks, the oldest list 7d old")


@on_every_database
def test_old_lists_that_nobody_asks_for_lead_to_cron(home: Path, database: Database) -> None:
    put(database, said("a.example", 9), said("b.example", 8), said("c.example", 1))
    [one] = found(home, database)
    assert one.level == "warning"
    assert "a.example (9d), b.example (8d): refresh does not run" in one.found
    assert "c.example" not in one.found
    assert "17 4 * * 1" in one.advice
    assert "providers refresh --yes" in one.advice


def test_an_old_list_that_dns_does_not_renew_is_told_with_its_cause(
    home: Path, database: Database
) -> None:
    database.make()
    put(database, said("a.example", 9))
    put(database, said("a.example", 1, "failed", "TXT a.example: no answer"))
    [one] = found(home, database)
    assert (one.level, one.advice) == ("warning", "Run: greycheck providers refresh")
    assert one.found.endswith("(9d): DNS did not answer: TXT a.example: no answer")


@pytest.mark.parametrize(
    ("state", "why", "level", "words"),
    [
        ("failed", "no answer", "note", "DNS did not answer: no answer: its list of 3d ago counts"),
        ("wide", "too many addresses pass", "warning", "its SPF is too wide: too many"),
        ("error", "over 10 terms", "warning", "its SPF is wrong: over 10 terms"),
        ("none", "no SPF record", "warning", "no SPF record: its list of 3d ago counts still"),
        ("found", "over 10 terms", "note", "a part of its SPF is wrong: over 10 terms"),
    ],
)
def test_what_is_wrong_with_a_fresh_one_is_told(
    home: Path, database: Database, state: str, why: str, level: str, words: str
) -> None:
    database.make()
    put(database, said("a.example", 3))
    put(database, said("a.example", 1, state, why))
    [one] = found(home, database)
    assert (one.level, one.about) == (level, "providers")
    assert one.found.startswith(f"a.example: {words}")
    assert one.advice.startswith("Run: greycheck providers ")
    assert one.advice.endswith(" a.example")


def test_a_name_in_the_store_is_no_command(home: Path, database: Database) -> None:
    database.make()
    put(database, said("a.example;id", 3))
    put(database, said("a.example;id", 1, "failed", "no answer"))
    [one] = found(home, database)
    assert one.advice == "Run: greycheck providers refresh 'a.example;id'"


def test_one_that_lets_nobody_in_is_told(home: Path, database: Database) -> None:
    database.make()
    put(database, said("a.example", 1, "found", "nobody may send", networks=0))
    [one] = found(home, database)
    assert (one.level, one.found) == ("note", "a.example: nobody may send")


def test_where_identities_are_off_it_says_that_none_counts(home: Path, database: Database) -> None:
    database.make()
    put(database, said("a.example", 9))
    [one] = found(home, database, GREYCHECK_IDENTITY="no")
    assert (one.level, one.found.endswith("identity = no")) == ("note", True)


def test_of_many_only_some_are_named(home: Path, database: Database) -> None:
    database.make()
    put(database, *(said(f"p{number}.example", 9) for number in range(9)))
    [one] = found(home, database)
    assert "p4.example (9d) and 4 more: refresh" in one.found
