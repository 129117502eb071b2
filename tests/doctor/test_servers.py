"""What the doctor finds of server databases: each fault made on a real server."""

import os
import pwd
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from greycheck import doctor, settings
from greycheck.doctor import launchers, server, service, store
from greycheck.doctor.finding import Finding, Installation
from greycheck.launchers import database as needs
from greycheck.launchers import python
from greycheck.store import drivers
from greycheck.store.admin import hosts
from greycheck.store.admin.hosts import HostStatus
from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.drivers.faults import Fault
from greycheck.store.schema import migrate
from greycheck.store.url import Host, parse_url, with_hosts
from tests import servers
from tests.doctor.name_server import name_server
from tests.servers import Galera, MariaDB, Postgres, free_port
from tests.support import ServerDatabase, on_every_server

ME = pwd.getpwuid(os.geteuid())

# What installs psycopg2, for this Python.
PSYCOPG2 = f"psycopg2>={'2.9.5' if sys.version_info < (3, 12) else '2.9.10'}"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = pwd.getpwnam("nobody")

on_both = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def home(place: Path, request: pytest.FixtureRequest) -> Path:
    """A place with launchers, a state directory and a /proc of its own."""
    programs: Path = request.getfixturevalue("launchers")
    for name in ("bin", "proc", "state"):
        (place / name).mkdir()
    for name in python.PROGRAMS:
        shutil.copy2(programs / name, place / "bin" / name)
    return place


def installation(home: Path, url: str, **variables: str) -> Installation:
    """A sound installation in HOME that uses the database URL."""
    environ = {
        "CONFIG": "/dev/null",
        "DATABASE": url,
        "STATE_DIRECTORY": str(home / "state"),
        "RESOLVER": name_server(),
        **variables,
    }
    found = settings.read(
        {f"GREYCHECK_{name}".encode(): value.encode() for name, value in environ.items() if value}
    )
    return Installation(home / "bin", ME, found, time.time(), home / "proc")


def look(home: Path, url: str, **variables: str) -> list[Finding]:
    """What is found of the store at URL."""
    return list(store.check_store(installation(home, url, **variables)))


def only(found: list[Finding], level: str, about: str = "") -> Finding:
    """The one finding of LEVEL."""
    some = [one for one in found if one.level == level and about in one.about]
    assert len(some) == 1, found
    return some[0]


# --- the whole ------------------------------------------------------------------------------------


@on_every_server
def test_a_sound_installation_has_no_fault_and_nothing_is_written(
    database: ServerDatabase, home: Path
) -> None:
    found = doctor.examine(installation(home, database.url))
    assert doctor.is_sound(found)
    slower = "+psycopg:" in database.url or "+pymysql:" in database.url
    assert [one.about for one in found if one.level == "warning"] == ["driver"] * slower
    assert {one.about for one in found} >= {
        "driver",
        "server",
        "store",
        "latency",
        "clock",
        "cron",
        "permissions",
    }
    assert database.rows("SELECT count(*) FROM triplet") == [(0,)]
    assert not any(servers.PASSWORD in one.found + one.advice for one in found)
    assert list((home / "state").iterdir()) == []


@on_both
def test_rows_of_the_future_and_rows_left_over_are_seen(
    database: ServerDatabase, home: Path
) -> None:
    ahead = int(time.time()) + 3600
    row = "(address, passes, first_seen, last_seen, expires_at, strikes, struck_until) VALUES"
    database.execute(text(f"INSERT INTO client {row} ('192.0.2.1', 1, 1, {ahead}, 1, 0, 0)"))
    found = look(home, database.url)
    assert "1 rows are of the future" in only(found, "warning", "clock").found
    cron = only(found, "warning", "cron")
    assert "client: 1" in cron.found
    assert cron.advice.startswith(f"Run: (crontab -u {ME.pw_name} -l; echo '7 * * * * ")


@on_both
def test_clients_at_an_address_that_many_share_are_seen(
    database: ServerDatabase, home: Path
) -> None:
    row = "(address, passes, first_seen, last_seen, expires_at, strikes, struck_until) VALUES"
    for client in ("192.0.2.1", "172.32.0.1", "fc::1"):
        database.execute(text(f"INSERT INTO client {row} ('{client}', 1, 1, 1, 1, 0, 0)"))
    assert [one for one in look(home, database.url) if one.about == "clients"] == []
    for client in ("172.18.0.1", "fd00::1"):
        database.execute(text(f"INSERT INTO client {row} ('{client}', 1, 1, 1, 1, 0, 0)"))
        found = only(look(home, database.url), "warning", "clients").found
        assert client in found


@as_root
@on_both
def test_it_looks_as_qmails_user(database: ServerDatabase, home: Path) -> None:
    (home / "state").chmod(0o777)
    looked = replace(installation(home, database.url), account=NOBODY)
    found = list(store.check_store(looked))
    assert doctor.is_sound(found)
    assert "any user can make checks leave hosts out" in only(found, "warning", "marks").found
    (home / "state").chmod(0o700)
    assert (
        "nobody cannot write" in only(list(server.check_secrets(looked)), "warning", "marks").found
    )


# --- driver ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["postgresql://h/d", "mariadb://h/d", "mysql+pymysql://h/d"])
def test_without_a_driver_every_check_fails(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(python, "driver_directories", list)
    found = only(look(home, url), "fault", "driver")
    assert f"no driver for {parse_url(url).dialect}" in found.found
    assert "No module named" in found.found
    assert re.fullmatch(
        rf"Run: {sys.executable} -m pip install '(psycopg2|mysqlclient|pymysql)>=[0-9.]+' &&"
        rf" greycheck install (--user root )?{home}/bin",
        found.advice,
    )


def test_a_driver_that_is_missing_is_named_where_a_slower_one_is_used() -> None:
    asked = parse_url("postgresql://h/d")
    found = server.check_driver(
        asked, needs.Found("psycopg", "psycopg2 'No module'"), "greycheck install /q/bin"
    )
    assert found.level == "warning"
    assert (
        "102 ms with it, 24 ms with psycopg2; that one is not found: psycopg2 'No module'"
        in found.found
    )
    assert (
        found.advice
        == f"Run: {sys.executable} -m pip install '{PSYCOPG2}' && greycheck install /q/bin"
    )
    named = server.check_driver(
        parse_url("mysql+pymysql://h/d"), needs.Found("pymysql", ""), "greycheck install /q/bin"
    )
    assert named.found.endswith("(the database's URL names +pymysql: leave that out)")
    assert "mysqlclient>=" in named.advice


def test_a_driver_that_launchers_find_and_this_command_does_not_is_a_fault(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "find_driver", lambda _asked, _account: needs.Found("psycopg2", ""))
    monkeypatch.setitem(sys.modules, "greycheck.store.drivers.psycopg2", None)
    found = [
        one
        for one in doctor.examine(installation(home, "postgresql://h/d"))
        if one.level == "fault"
    ]
    assert [one.found.partition(" (")[0] for one in found] == ["no driver for postgresql"]
    assert [one.advice for one in found] == [f"Run: {sys.executable} -m pip install '{PSYCOPG2}'"]


def test_modules_of_the_driver_are_looked_at_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = installation(home, "mysql+pymysql://h/d")
    assert any("pymysql" in name for name in launchers.driver_modules(looked))
    assert launchers.driver_modules(installation(home, "/x.db")) == {}
    monkeypatch.setattr(
        launchers, "staleness", lambda source: "not compiled" if "pymysql" in source.parts else ""
    )
    assert "pymysql" in only(list(launchers.check_modules(looked)), "warning").found


@pytest.mark.parametrize(
    ("driver", "memory", "level"), [("mysqldb", 26, "warning"), ("psycopg2", 22, "fault")]
)
def test_a_soft_limit_is_held_against_what_the_driver_needs(
    home: Path, driver: str, memory: int, level: str
) -> None:
    looked = installation(home, f"{'postgresql' if driver == 'psycopg2' else 'mysql'}://h/d")
    limited = service.Service(1, "tcpserver", 0, memory * 1_000_000, ())
    found = service.check_memory(limited, looked)
    assert found.level == level
    # As a check that runs out of memory says it.
    assert found.advice.endswith(f": softlimit -m {drivers.RECORDS[driver].softlimit}")


# --- hosts ----------------------------------------------------------------------------------------


def at_ports(url: str, *ports: int) -> str:
    """URL with hosts at PORTS instead of its own."""
    return with_hosts(url, [f"127.0.0.1:{port}" for port in ports])


@on_both
def test_a_host_that_is_down_is_a_warning_while_another_one_answers(
    database: ServerDatabase, home: Path
) -> None:
    dead = free_port()
    found = look(home, at_ports(database.url, dead, database.server.port))
    assert f"127.0.0.1:{dead}: " in only(found, "warning").found
    assert only(found, "ok", "server").found.startswith(f"127.0.0.1:{database.server.port}: ")
    assert "latency" in {one.about for one in found if one.level == "ok"}


@on_both
def test_no_host_is_a_fault(database: ServerDatabase, home: Path) -> None:
    found = look(home, at_ports(database.url, free_port()))
    said = only(found, "fault", "server")
    assert ": no server listens there: " in said.found
    assert said.found.endswith(": every check answers by on_error (accept)")
    name = "postgresql" if "postgresql" in database.url else "mariadb"
    assert said.advice == f"Run: systemctl start {name}"
    assert [one.about for one in found if one.level == "fault"] == ["server"]


@on_both
def test_a_database_that_is_not_there_is_told_first(database: ServerDatabase, home: Path) -> None:
    said = only(look(home, f"{database.url.rpartition('/')[0]}/nosuch"), "fault")
    assert ": there is no database nosuch: " in said.found or "denied" in said.found
    assert said.advice


def test_a_host_that_there_is_not_is_told_first(home: Path) -> None:
    said = only(look(home, "postgresql://u@nosuch.invalid/d"), "fault", "server").found
    assert said.startswith("nosuch.invalid: there is no such host: ")


@pytest.mark.parametrize(
    "words",
    ["password authentication failed for user", "Access denied for user 'u' (using password: YES)"],
)
def test_a_wrong_password_is_told_first(words: str) -> None:
    said = f'connection to server at "h", port 1 failed: FATAL:  {words}'
    fault = Fault("gone", f"{said} {said}")
    looked = Installation(
        Path("/x"), None, settings.read({b"GREYCHECK_DATABASE": b"postgresql://u:x@h/d"}), 0
    )
    found = server.check_host(
        HostStatus(Host("h", 1), fault), [], parse_url("postgresql://u:x@h/d"), looked
    )
    assert found.found == f"h:1: the password of u is wrong: {words}"
    assert found.advice.startswith(
        "Write the right password into GREYCHECK_DATABASE; or set it there: ssh h 'sudo -u post"
    )


@pytest.mark.parametrize(
    ("user", "host"), [("x`id`", "h"), ("x;id", "h"), ("u", "-oProxyCommand=id"), ("u", "h;id")]
)
@pytest.mark.parametrize(
    "words", ["password authentication failed", "database does not exist", "Connection refused"]
)
def test_what_a_url_names_is_no_command(user: str, host: str, words: str) -> None:
    looked = Installation(
        Path("/x"), None, settings.read({b"GREYCHECK_DATABASE": b"postgresql://u:x@h/d"}), 0
    )
    asked = parse_url("postgresql://u:x@h/d")
    asked.user = user
    status = HostStatus(Host(host, 1), Fault("gone", words))
    found = server.check_host(status, [], asked, looked)
    is_named = host != "h" or "Connection" not in words
    assert ("id" in found.advice) is False
    assert ("ssh" in found.advice) is not is_named


@on_every_server
def test_a_server_that_is_stopped_is_told_so_in_time(
    database: ServerDatabase, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "TIMEOUT", 1.0)
    database.server.freeze()
    try:
        found = look(home, database.url)
    finally:
        database.server.thaw()
    assert "no answer for" in only(found, "fault", "server").found
    assert "whether it is stopped" in only(found, "fault", "server").advice


def test_a_standby_is_a_note_and_alone_a_fault(
    on_postgresql: ServerDatabase, standby: Postgres, home: Path
) -> None:
    found = look(home, at_ports(on_postgresql.url, standby.port, on_postgresql.server.port))
    assert f"127.0.0.1:{standby.port}: PostgreSQL" in only(found, "note", "server").found
    assert only(found, "note", "server").found.endswith("takes no writes")
    assert doctor.is_sound(found)
    alone = look(home, standby.url(on_postgresql.name))
    assert (
        "takes no writes: every check answers by on_error" in only(alone, "fault", "server").found
    )


def test_a_mariadb_that_takes_no_writes_is_a_fault(on_mariadb: ServerDatabase, home: Path) -> None:
    on_mariadb.server.sql("SET GLOBAL read_only = 1", "")
    try:
        found = look(home, on_mariadb.url)
    finally:
        on_mariadb.server.sql("SET GLOBAL read_only = 0", "")
    assert (
        "takes no writes: every check answers by on_error" in only(found, "fault", "server").found
    )


def test_a_node_that_is_cut_off_is_passed_over(galera: Galera, home: Path) -> None:
    galera.start()
    migrate.upgrade(galera.nodes[0].url())
    url = at_ports(galera.nodes[0].url(), *(node.port for node in galera.nodes))
    found = look(home, url)
    assert doctor.is_sound(found)
    assert [
        ", Synced in a cluster of 3" in one.found for one in found if one.about == "server"
    ] == [True] * 3
    galera.isolate(0)
    try:
        found = look(home, url)
        alone = look(home, galera.nodes[0].url())
    finally:
        galera.heal()
        galera.empty()
    assert "non-Primary: it is cut off from its cluster" in only(found, "warning", "server").found
    assert doctor.is_sound(found)
    assert not doctor.is_sound(alone)


SEEN = HostStatus(Host("db1", None), product="MariaDB", version="10.6.1-MariaDB", revision="1")


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({}, "ok", "db1: MariaDB 10.6.1-MariaDB, connects in 0.0 ms"),
        ({"version": "10.5.9-MariaDB"}, "warning", "10.5.9"),
        ({"product": "MySQL", "version": "8.0.1"}, "ok", "MySQL 8.0.1"),
        ({"product": "MySQL", "version": "5.7.1"}, "warning", "MySQL 5.7.1"),
        ({"product": "PostgreSQL", "version": "13"}, "ok", "PostgreSQL 13"),
        ({"product": "PostgreSQL", "version": "12.9"}, "warning", "PostgreSQL 12.9"),
        (
            {"cluster": hosts.Cluster("Primary", "Donor/Desynced", 3)},
            "warning",
            "Donor/Desynced in a cluster of 3",
        ),
        ({"cluster": hosts.Cluster("non-Primary", "Initialized", 1)}, "fault", "cut off"),
    ],
)
def test_hosts_are_told_by_what_they_are(changes: dict[str, object], level: str, says: str) -> None:
    seen = replace(SEEN, **changes)  # type: ignore[arg-type]
    looked = Installation(Path("/x"), None, settings.read({}), 0)
    found = server.check_host(
        seen, [SEEN] if level == "warning" else [], parse_url("mariadb://u@db1/d"), looked
    )
    assert (found.level, says in found.found) == (level, True), found
    assert found.advice or level == "ok"


@pytest.mark.parametrize(("ahead", "says"), [(60.0, "60s ahead of"), (-7.0, "7s behind")])
def test_a_clock_that_is_wrong_is_a_note(ahead: float, says: str) -> None:
    here = replace(SEEN, host=Host("localhost", None), ahead=ahead)
    [found] = server.check_connection(here, parse_url("mariadb://h/d"))
    assert (found.level, says in found.found) == ("note", True)


@on_both
def test_a_servers_clock_is_this_hosts(database: ServerDatabase) -> None:
    asked = parse_url(database.url)
    [seen] = needs.look(asked, asked.driver)
    assert abs(seen.ahead) < 300, "minutes, on one machine"


# --- TLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("/run/x", True),
        ("db1", False),
        ("10.0.0.1", False),
    ],
)
def test_what_does_not_leave_this_machine_needs_no_tls(name: str, here: bool) -> None:
    assert server.is_here(replace(SEEN, host=Host(name, None))) is here
    assert (
        bool(
            list(
                server.check_connection(
                    replace(SEEN, host=Host(name, None)), parse_url("mysql://h/d")
                )
            )
        )
        is not here
    )


@pytest.mark.parametrize(
    ("driver", "query", "says"),
    [
        ("psycopg2", {"sslmode": "disable"}, "not encrypted"),
        ("psycopg2", {"sslmode": "require"}, "encrypted, but not verified"),
        ("psycopg2", {"sslmode": "verify-full", "sslrootcert": "CA"}, ""),
        ("mysqldb", {"ssl_mode": "DISABLED"}, "not encrypted"),
        ("mysqldb", {"ssl_mode": "REQUIRED"}, "encrypted, but not verified"),
        ("pymysql", {"ssl_ca": "CA"}, ""),
    ],
)
def test_a_connection_that_others_could_read_is_a_warning(
    home: Path,
    postgres: Postgres,
    mariadb: MariaDB,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    query: dict[str, str],
    says: str,
) -> None:
    """As if loopback were a network."""
    monkeypatch.setattr(server, "is_here", lambda _one: False)
    asked = postgres if driver == "psycopg2" else mariadb
    asked.start()
    said = "&".join(f"{name}={value.replace('CA', str(asked.ca))}" for name, value in query.items())
    found = [
        one
        for one in look(home, f"{asked.url(driver=driver)}?{said}")
        if one.about == "server" and one.advice
    ]
    assert [says in one.found for one in found] == ([True] if says else [])
    assert all("Add to the database's URL: ssl" in one.advice for one in found)


# --- marks and passwords --------------------------------------------------------------------------


@on_both
def test_marks_of_hosts_are_told(database: ServerDatabase, home: Path) -> None:
    dead = free_port()
    url = at_ports(database.url, dead, database.server.port)
    breaker = Breaker(str(home / "state"), parse_url(url))
    first, second = parse_url(url).hosts
    breaker.set(first, DOWN)
    breaker.set(second, STUCK)
    found = look(home, url)
    gone = only(found, "warning", "marks")
    assert gone.found.startswith(f"127.0.0.1:{dead}: did not answer ")
    assert breaker.path(first, DOWN) in gone.advice
    assert "checks write nothing there" in only(found, "note", "marks").found
    assert sorted(os.listdir(home / "state")) == sorted(
        Path(breaker.path(*one)).name for one in ((first, DOWN), (second, STUCK))
    )


def exposed(home: Path, url: str, **variables: str) -> list[str]:
    looked = replace(installation(home, url, **variables), account=NOBODY)
    return [one.found for one in server.check_secrets(looked) if one.about == "password"]


@as_root
@pytest.mark.parametrize(
    ("mode", "group", "says"),
    [
        (0o600, 0, ""),
        (0o640, 0, ""),
        (0o640, NOBODY.pw_gid, ""),
        (0o640, 12345, "the group 12345 can read the password"),
        (0o640, 1, "the group daemon can read the password"),
        (0o644, 0, "any user can read the password"),
    ],
)
def test_a_password_that_others_can_read_is_a_warning(
    home: Path, mode: int, group: int, says: str
) -> None:
    secret = home / "database"
    secret.write_text("mariadb://user:secret@host/db\n")
    secret.chmod(mode)
    os.chown(secret, 0, group)
    found = exposed(home, "", DATABASE_FILE=str(secret))
    assert [one.startswith(says) for one in found] == [True] * bool(says)
    secret.write_text("mariadb://user@host/db\n")
    assert exposed(home, "", DATABASE_FILE=str(secret)) == []


@as_root
def test_a_password_behind_a_closed_directory_is_kept(home: Path) -> None:
    (home / "closed").mkdir(mode=0o700)
    secret = home / "closed" / "database"
    secret.write_text("mariadb://user:secret@host/db\n")
    secret.chmod(0o644)
    assert exposed(home, "", DATABASE_FILE=str(secret)) == []


def test_every_file_that_may_hold_a_password_is_looked_at(home: Path) -> None:
    for name, words in (
        ("conf", ""),
        ("my.cnf", "[client]\npassword = x\n"),
        ("other.cnf", "[client]\nuser = x\n"),
        ("pass", ""),
    ):
        (home / name).write_text(words)
        (home / name).chmod(0o644)
    assert exposed(home, f"mariadb://u@h/d?read_default_file={home}/other.cnf") == []
    assert f"{home}/my.cnf" in exposed(home, f"mariadb://u@h/d?read_default_file={home}/my.cnf")[0]
    assert f"{home}/pass" in exposed(home, f"postgresql://u@h/d?passfile={home}/pass")[0]
    assert exposed(home, f"postgresql://u@h/d?passfile={home}/nosuch") == []
    assert exposed(home, f"mariadb://u@h/d?read_default_file={home}/nosuch") == []
    (home / "conf").write_text("delay = 5m\ndatabase = mariadb://user:secret@host/db\n")
    assert f"{home}/conf" in exposed(home, "", CONFIG=str(home / "conf"))[0]
    assert exposed(home, "mariadb://user:secret@host/db") == []
    assert exposed(home, "/x.db") == []


# --- schema and latency ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_a_schema_that_is_missing_or_unknown_is_a_fault(
    name: str, home: Path, request: pytest.FixtureRequest
) -> None:
    asked: servers.Server = request.getfixturevalue(name)
    asked.start()
    asked.drop("schemata")
    asked.create("schemata")
    url = asked.url("schemata")
    try:
        assert (
            "there is no schema yet: every check answers by" in only(look(home, url), "fault").found
        )
        assert only(look(home, url), "fault").advice == "Run: greycheck db upgrade"
        migrate.upgrade(url)
        asked.sql("UPDATE alembic_version SET version_num = '9999'", "schemata")
        assert "newer than this program's" in only(look(home, url), "fault").found
        asked.sql(
            f"UPDATE alembic_version SET version_num = '9999_{migrate.head()[:4]}'", "schemata"
        )
        assert "which can use it" in only(look(home, url), "note", "store").found
        asked.sql("DELETE FROM alembic_version", "schemata")
        assert "there is no schema yet" in only(look(home, url), "fault").found
    finally:
        asked.drop("schemata")


@contextmanager
def locked(database: ServerDatabase) -> Iterator[None]:
    """With the table of triplets locked by an operator's session."""
    engine = create_engine(database.url)
    postgresql = database.server.dialect == "postgresql"
    with engine.connect() as connection:
        connection.execute(
            text("LOCK TABLE triplet" if postgresql else "LOCK TABLES triplet WRITE")
        )
        yield
    engine.dispose()


@on_every_server
def test_a_table_that_somebody_holds_is_a_fault(database: ServerDatabase, home: Path) -> None:
    with locked(database):
        found = only(look(home, database.url, DEADLINE="2s"), "fault")
    assert found.about == "latency"
    assert "a new triplet is answered by on_error (accept)" in found.found
    assert "pg_stat_activity" in found.advice or "SHOW FULL PROCESSLIST" in found.advice


def test_what_a_user_may_not_do_is_a_fault(on_postgresql: ServerDatabase, home: Path) -> None:
    on_postgresql.execute(text("REVOKE INSERT ON triplet FROM CURRENT_USER"))
    try:
        found = only(look(home, on_postgresql.url), "fault", "latency")
    finally:
        on_postgresql.execute(text("GRANT INSERT ON triplet TO CURRENT_USER"))
    assert "permission denied" in found.found
    assert found.advice == "See the server's log."


@on_both
def test_a_slow_server_is_held_against_the_deadline(
    database: ServerDatabase, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "time_write", lambda *_arguments: 30.0)
    found = only(look(home, database.url, DEADLINE="60s"), "warning", "latency")
    assert "a write 30000.0 ms, of a deadline of 1m" in found.found


def test_what_the_driver_says_of_a_table_that_is_gone_is_a_fault(
    on_mariadb: ServerDatabase, home: Path
) -> None:
    on_mariadb.execute(text("RENAME TABLE client TO hidden"))
    try:
        found = [
            one
            for one in doctor.examine(installation(home, on_mariadb.url))
            if one.level == "fault"
        ]
    finally:
        on_mariadb.execute(text("RENAME TABLE hidden TO client"))
    assert [one.about for one in found] == ["latency"]


def test_a_service_with_another_server_is_told_without_its_password(home: Path) -> None:
    theirs = (
        (b"GREYCHECK_CONFIG", b"/dev/null"),
        (b"GREYCHECK_DATABASE", b"mariadb://u:secret@h/d"),
    )
    running = service.Service(1, "tcpserver", 0, None, theirs)
    [found] = service.check_environment(running, dict(theirs), installation(home, "/x.db"))
    assert "tcpserver (1) uses mariadb://u:***@h/d, this command sqlite:////x.db" in found.found
    lost = ((b"GREYCHECK_CONFIG", b"/dev/null"), (b"GREYCHECK_DATABASE", b"nosuch://u:secret@h/d"))
    wrong = list(service.check_environment(running, dict(lost), installation(home, "/x.db")))
    assert any("uses no store, this command" in one.found for one in wrong)
    assert not any("secret" in one.found for one in wrong)


def test_commands_and_checks_name_a_wrong_password_once(on_postgresql: ServerDatabase) -> None:
    url = on_postgresql.url.replace("//greycheck:", "//greycheck:not-")
    with pytest.raises(migrate.SchemaError) as told:
        migrate.require(url)
    assert str(told.value).count("password authentication failed") == 1
    assert "connection to server" not in str(told.value)
    asked = parse_url(url)
    with pytest.raises(Fault) as said:
        drivers.load(asked)[1].Connection(asked, asked.hosts[0], 5.0, 1)
    assert str(said.value).count("password authentication failed") == 1
