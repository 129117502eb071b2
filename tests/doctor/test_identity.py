"""What the doctor finds of the DNS servers, and of the domains that are asked."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import dns.rcode
import pytest
from sqlalchemy import insert

from greycheck import settings
from greycheck.doctor import identity
from greycheck.doctor.finding import Finding, Installation
from greycheck.resolve import due
from greycheck.settings import Settings
from greycheck.store.base import domain_key
from greycheck.store.schema.tables import spf, triplet
from tests.dns_servers import Liar, garbage, says, silent
from tests.doctor.name_server import name_server
from tests.resolve.parts import engine_of
from tests.support import ROOT, Database, on_every_database

HOUR, DAY = 3600, 86400


def read(**variables: str) -> Settings:
    environ = {"CONFIG": "/dev/null", "RESOLVER": name_server(), **variables}
    return settings.read(
        {f"GREYCHECK_{name}".encode(): os.fsencode(value) for name, value in environ.items()}
    )


def resolvers(**variables: str) -> list[Finding]:
    there = Installation(Path("/nonexistent"), None, read(**variables), time.time())
    return list(identity.check_resolver(there))


def domains(database: Database, **variables: str) -> list[Finding]:
    now = time.time()
    there = Installation(Path("/nonexistent"), None, read(**variables), now)
    with engine_of(database) as engine:
        return list(identity.check_domains(engine, int(now), there))


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.found) for one in findings]


# --- the DNS server -------------------------------------------------------------------------------


def test_a_name_server_that_answers() -> None:
    assert told(resolvers()) == [("ok", f"{name_server()} answers")]


def test_one_that_does_not_is_a_warning_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PATIENCE", 0.05)
    with Liar(silent) as liar:
        [warning, fine] = resolvers(RESOLVER=f"{liar.address}, {name_server()}")
    assert (warning.level, fine.level) == ("warning", "ok")
    assert warning.found == f"{liar.address}: no answer within 0.05s: each question waits for it"
    assert warning.advice


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (says(dns.rcode.REFUSED), "REFUSED"),
        (says(dns.rcode.SERVFAIL), "SERVFAIL"),
        (garbage, "no sense: "),
    ],
)
def test_one_that_does_not_resolve_is_a_warning(behaviour: object, said: str) -> None:
    with Liar(behaviour) as liar:  # type: ignore[arg-type]
        [warning] = resolvers(RESOLVER=liar.address)
    assert warning.level == "warning"
    assert warning.found.startswith(f"{liar.address}: {said}")
    assert warning.found.endswith(": domains get no identity")


def test_where_no_domain_is_asked_no_name_server_is_needed(database: Database) -> None:
    database.make()
    assert told(resolvers(IDENTITY="no", RESOLVER="127.0.0.1:9")) == [
        ("ok", "identity is no: no domain is asked in DNS")
    ]
    assert domains(database, IDENTITY="no") == []


# In a process of its own, as modules that are imported stay.
WITHOUT_DNSPYTHON = """
import sys, time
sys.modules["dns"] = None
from pathlib import Path
from greycheck import settings
from greycheck.cli import main
from greycheck.doctor import identity
from greycheck.doctor.finding import Installation
found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})
there = Installation(Path("/nonexistent"), None, found, time.time())
for one in identity.check_resolver(there):
    print(one.level, one.found)
"""


def test_without_dnspython_only_this_is_missing() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_DNSPYTHON],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert ran.stdout.startswith("warning greycheck resolve cannot run: ")


# --- domains --------------------------------------------------------------------------------------


def put(database: Database, name: str, **values: object) -> None:
    now = int(time.time())
    row = {
        "domain_key": domain_key(name.encode()),
        "name": name,
        "state": "found",
        "why": "",
        "per_client": 0,
        "answered_at": now - 60,
        "asked_at": now - 60,
        "failures": 0,
        "next_at": now + HOUR,
        "expires_at": now + 7 * DAY,
    }
    database.execute(insert(spf).values(**(row | values)))


def wait_with(database: Database, sender: str, ago: int) -> None:
    now = int(time.time())
    row = {
        "triplet_key": os.urandom(16),
        "network": "192.0.2.0/24",
        "sender": sender,
        "recipient": "bob@example.net",
        "first_attempt": now - ago,
        "last_attempt": now - ago,
        "early_attempts": 0,
        "passes": 0,
        "expires_at": now - ago + 48 * HOUR,
    }
    database.execute(insert(triplet).values(row))


@on_every_database
def test_all_is_well_where_domains_are_asked(database: Database) -> None:
    database.make()
    assert told(domains(database)) == [("ok", "none was asked in DNS yet")]
    put(database, "one.example")
    wait_with(database, "ann@one.example", 2 * HOUR)
    [(level, found)] = told(domains(database))
    assert level == "ok"
    assert re.fullmatch(r"1 kept; the last asked 1m( \d+s)? ago", found)


@on_every_database
def test_that_nobody_asks_is_a_warning(database: Database) -> None:
    database.make()
    wait_with(database, "ann@one.example", 2 * HOUR)
    [warning] = domains(database)
    assert (warning.level, "(never)" in warning.found) == ("warning", True)
    assert "\n* * * * * " in warning.advice
    assert warning.advice.endswith("greycheck resolve")
    put(database, "two.example", asked_at=int(time.time()) - 2 * DAY)
    [warning] = domains(database)
    assert "(the last time 2d ago)" in warning.found


@pytest.mark.parametrize(
    ("sender", "ago"), [("ann@one.example", 60), ("", 2 * HOUR), ("ann@localhost", 2 * HOUR)]
)
def test_what_waits_for_a_moment_or_has_no_domain_is_no_sign_of_that(
    database: Database, sender: str, ago: int
) -> None:
    database.make()
    wait_with(database, sender, ago)
    assert told(domains(database)) == [("ok", "none was asked in DNS yet")]


def test_domains_that_do_not_answer_are_counted(database: Database) -> None:
    database.make()
    now = int(time.time())
    put(database, "one.example")
    put(database, "two.example", failures=9, answered_at=now - 3 * DAY)
    [_fine, note] = domains(database)
    assert note.level == "note"
    assert note.found == (
        "1 of 2 domains do not answer, up to 9 times in a row; the oldest answer that counts"
        " instead is of 3d ago"
    )
    for number in range(10):
        put(database, f"x{number}.example", state="failed", failures=1, answered_at=None)
    [_fine, warning] = domains(database)
    assert (warning.level, warning.found[:32]) == ("warning", "11 of 12 domains do not answer, ")
    assert warning.advice


def test_that_somebody_fills_the_store_with_domains_is_a_warning(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    put(database, "one.example")
    monkeypatch.setattr(due, "MOST_DOMAINS", 0)
    monkeypatch.setattr(due, "PART", 1)
    [_fine, warning] = domains(database)
    assert (warning.level, warning.advice != "") == ("warning", True)
    assert warning.found.startswith("so many domains or ranges are kept")


def test_domains_that_are_too_wide_are_named(database: Database) -> None:
    database.make()
    for number in range(5):
        put(database, f"wide{number}.example", state="wide")
    [_fine, note] = domains(database)
    assert note.level == "note"
    assert note.found.startswith("5 domains let too many addresses send to mean one sender (wide")
    assert note.found.count(".example") == 3
