"""Each driver against its real server: how it connects, what it brings back, and that none of it
waits for ever.
"""

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text as sql_text

from greycheck.store import drivers
from greycheck.store.admin import engine
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import StoreError
from greycheck.store.drivers import faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.url import parse_url
from tests.servers import ELSEWHERE, PASSWORD, USER, MariaDB, Postgres, Server
from tests.support import DRIVERS

if TYPE_CHECKING:
    from greycheck.store.drivers import Connection


@pytest.fixture(params=DRIVERS, ids=[driver for _, driver in DRIVERS])
def named(request: pytest.FixtureRequest) -> Iterator[tuple[Server, str]]:
    kind, driver = request.param
    found: Server = request.getfixturevalue(kind)
    found.start()
    yield found, driver
    found.start()


def connected(url: str, seconds: float = 20, number: int = 0) -> "Connection":
    asked = parse_url(url)
    return drivers.load(asked)[1].Connection(asked, asked.hosts[number], seconds, 1)


def value(connection: "Connection", sql: str, *values: object) -> object:
    rows, _ = connection.run(sql, values, 20)
    return rows[0][0]


def is_encrypted(found: Server, connection: "Connection") -> bool:
    if isinstance(found, Postgres):
        return bool(
            value(
                connection,
                "SELECT CASE WHEN ssl THEN 1 ELSE 0 END FROM pg_stat_ssl WHERE pid ="
                " pg_backend_pid()",
            )
        )
    rows, _ = connection.run("SHOW STATUS LIKE 'Ssl_cipher'", (), 20)
    return bool(rows[0][1])


@pytest.mark.parametrize("via", ["tcp", "socket"])
def test_it_connects_with_a_password(named: tuple[Server, str], via: str) -> None:
    found, driver = named
    connection = connected(found.url(driver=driver, via=via))  # type: ignore[arg-type]
    assert value(connection, "SELECT 1") == 1
    connection.close()


def test_a_wrong_password_is_not_shown(named: tuple[Server, str]) -> None:
    found, driver = named
    with pytest.raises(Fault, match="password") as error:
        connected(found.url(driver=driver, password="s3cr:t/@%wrong"))
    assert "s3cr" not in str(error.value)


def test_a_password_may_stand_in_a_file(named: tuple[Server, str], tmp_path: Path) -> None:
    found, driver = named
    path = tmp_path / "password"
    if isinstance(found, Postgres):
        path.write_text(f"*:*:*:{USER}:{PASSWORD.replace(':', chr(92) + ':')}\n")
        option = "passfile"
    else:
        path.write_text(f'[client]\nuser={USER}\npassword="{PASSWORD}"\n')
        option = "read_default_file"
    path.chmod(0o600)
    url = found.url(driver=driver, **dict[str, Any]({option: str(path)})).replace(
        quote(f"{PASSWORD}", safe=""), ""
    )
    url = url.replace(f"{USER}:@", f"{USER}@")
    if isinstance(found, MariaDB):
        url = url.replace(f"{USER}@", "")
    assert "s3cr" not in url
    assert value(connected(url), "SELECT 1") == 1


def tls(found: Server, authority: Path) -> dict[str, Any]:
    if isinstance(found, Postgres):
        return {"sslmode": "verify-full", "sslrootcert": str(authority)}
    return {"ssl_ca": str(authority)}


def test_tls_is_verified(named: tuple[Server, str]) -> None:
    found, driver = named
    connection = connected(found.url(driver=driver, **tls(found, found.ca)))
    assert is_encrypted(found, connection)


def test_an_authority_that_nobody_trusts_is_refused(named: tuple[Server, str]) -> None:
    found, driver = named
    with pytest.raises(Fault, match=r"(?i)certificate|verif|ssl|tls"):
        connected(found.url(driver=driver, **tls(found, found.foreign_ca)))


def test_a_certificate_for_another_name_is_refused(named: tuple[Server, str]) -> None:
    found, driver = named
    with pytest.raises(Fault, match=r"(?i)certificate|verif|ssl|tls|match"):
        connected(found.url(driver=driver, host=ELSEWHERE, **tls(found, found.ca)))


def test_mysqls_tls_may_be_asked_for_without_verifying_or_not_at_all(mariadb: MariaDB) -> None:
    mariadb.start()
    for driver in ("mysqldb", "pymysql"):
        assert is_encrypted(mariadb, connected(mariadb.url(driver=driver, ssl_mode="REQUIRED")))
        assert not is_encrypted(mariadb, connected(mariadb.url(driver=driver, ssl_mode="DISABLED")))


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_authorities_may_be_a_directory(mariadb: MariaDB, driver: str, tmp_path: Path) -> None:
    mariadb.start()
    (tmp_path / "none").mkdir()
    (tmp_path / "ours").mkdir()
    words = ["openssl", "x509", "-hash", "-noout", "-in", str(mariadb.ca)]
    name = subprocess.run(words, capture_output=True, check=True, encoding="ascii").stdout.strip()
    (tmp_path / "ours" / f"{name}.0").write_bytes(mariadb.ca.read_bytes())
    ours: dict[str, Any] = {"ssl_capath": str(tmp_path / "ours")}
    assert is_encrypted(mariadb, connected(mariadb.url(driver=driver, **ours)))
    none: dict[str, Any] = {"ssl_capath": str(tmp_path / "none")}
    with pytest.raises(Fault, match=r"(?i)certificate"):
        connected(mariadb.url(driver=driver, **none))


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_ciphers_and_a_certificate_of_ones_own_are_used(mariadb: MariaDB, driver: str) -> None:
    mariadb.start()
    mariadb.sql(f"ALTER USER {USER} REQUIRE X509")
    own: dict[str, Any] = {
        "ssl_ca": str(mariadb.ca),
        "ssl_cert": str(mariadb.certificate),
        "ssl_key": str(mariadb.key),
    }
    try:
        with pytest.raises(Fault, match="denied"):
            connected(mariadb.url(driver=driver, ssl_ca=str(mariadb.ca)))
        assert value(connected(mariadb.url(driver=driver, **own)), "SELECT 1") == 1
    finally:
        mariadb.sql(f"ALTER USER {USER} REQUIRE NONE")
    with pytest.raises(Fault, match=r"(?i)ssl|tls|cipher"):
        connected(mariadb.url(driver=driver, ssl_ca=str(mariadb.ca), ssl_cipher="NO-SUCH-CIPHER"))


def test_a_driver_that_would_go_on_without_tls_is_not_used_for_it(
    mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    mariadb.start()
    monkeypatch.setattr("pymysql.VERSION", (1, 1, 2, "final", 1))
    with pytest.raises(Fault, match=r"PyMySQL 1\.1\.2 goes on without TLS"):
        connected(mariadb.url(driver="pymysql", ssl_ca=str(mariadb.ca)))
    assert value(connected(mariadb.url(driver="pymysql")), "SELECT 1") == 1


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_a_server_without_tls_is_not_spoken_to_without_it(mariadb: MariaDB, driver: str) -> None:
    mariadb.restart(ssl="OFF")
    try:
        for mode in ("REQUIRED", "VERIFY_IDENTITY"):
            with pytest.raises(Fault, match=r"(?i)ssl|tls"):
                connected(mariadb.url(driver=driver, ssl_mode=mode))
            with pytest.raises(StoreError, match=r"(?i)ssl|tls"):
                open_engine(mariadb.url(driver=driver, ssl_mode=mode)).connect()
    finally:
        mariadb.stop()
        mariadb.start()


def test_a_name_that_does_not_count_counts_for_mysqldb_all_the_same(mariadb: MariaDB) -> None:
    """Its library knows verifying all or nothing."""
    mariadb.start()
    unnamed: dict[str, Any] = {"ssl_ca": str(mariadb.ca), "ssl_check_hostname": "false"}
    assert is_encrypted(
        mariadb, connected(mariadb.url(driver="pymysql", host=ELSEWHERE, **unnamed))
    )
    with pytest.raises(Fault, match=r"certificate|Hostname verification"):
        connected(mariadb.url(driver="mysqldb", host=ELSEWHERE, **unnamed))


def test_whoever_is_not_there_is_said_to_be_gone(named: tuple[Server, str]) -> None:
    found, driver = named
    found.stop()
    with pytest.raises(Fault) as error:
        connected(found.url(driver=driver))
    assert error.value.kind == faults.GONE
    assert "\n" not in str(error.value)


def test_a_stopped_server_is_not_waited_for(named: tuple[Server, str]) -> None:
    found, driver = named
    connection = connected(found.url(driver=driver), 1)
    found.freeze()
    for ask in (
        lambda: connection.run("SELECT 1", (), 1),
        lambda: connected(found.url(driver=driver), 1),
    ):
        with pytest.raises(Fault, match="no answer for") as error:
            ask()
        assert error.value.kind == faults.SILENT
    connection.close()


@pytest.mark.parametrize("driver", drivers.RECORDS)
def test_a_host_that_drops_packets_is_not_waited_for(driver: str) -> None:
    """A socket whose queue is full, and nobody takes from it: what comes then is not even
    refused.
    """
    with socket.socket() as full, ExitStack() as queue:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        scheme = drivers.RECORDS[driver].dialect
        with pytest.raises(Fault) as error:
            connected(f"{scheme}+{driver}://u:p@127.0.0.1:{full.getsockname()[1]}/g", 1)
    assert error.value.kind in (faults.SILENT, faults.GONE)


def test_a_connection_that_is_lost_is_gone(named: tuple[Server, str]) -> None:
    found, driver = named
    connection = connected(found.url(driver=driver))
    found.kill()
    with pytest.raises(Fault) as error:
        connection.run("SELECT 1", (), 20)
    assert error.value.kind == faults.GONE
    connection.close()


def test_what_a_statement_is_refused_for_is_said(named: tuple[Server, str]) -> None:
    found, driver = named
    connection = connected(found.url(driver=driver))
    for sql, kind, said in (
        ("SELEKT 1", faults.OTHER, "syntax"),
        ("SELECT * FROM nosuchtable", faults.SCHEMA, "run greycheck db upgrade"),
    ):
        with pytest.raises(Fault, match=said) as error:
            connection.run(sql, (), 20)
        assert error.value.kind == kind
    assert value(connection, "SELECT 1") == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
    st.binary(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
)
def test_values_come_back_as_they_were_sent(
    named: tuple[Server, str], text: str, raw: bytes, number: int
) -> None:
    found, driver = named
    connection = kept(found, driver)
    bytea, bigint = ("bytea", "bigint") if isinstance(found, Postgres) else ("binary(20)", "signed")
    shown = "text" if isinstance(found, Postgres) else "char"
    sql = f"SELECT CAST(%s AS {shown}), CAST(%s AS {bytea}), CAST(%s AS {bigint}), %s"
    if isinstance(found, MariaDB):
        raw = raw.ljust(20, b"\0")
    rows, _ = connection.run(sql, [text, raw, number, None], 20)
    shown_text, back, whole, nothing = rows[0]
    assert (shown_text.decode() if isinstance(shown_text, bytes) else shown_text) == text
    assert isinstance(back, (bytes, memoryview))
    assert (bytes(back), whole, nothing) == (raw, number, None)


CONNECTIONS: dict[tuple[int, str], "Connection"] = {}


def kept(found: Server, driver: str) -> "Connection":
    """One connection for all examples."""
    key = (found.process.pid if found.process else 0, driver)
    if key not in CONNECTIONS:
        CONNECTIONS[key] = connected(found.url(driver=driver))
    return CONNECTIONS[key]


def test_each_statement_is_committed_and_says_how_many_rows_it_changed(
    named: tuple[Server, str],
) -> None:
    found, driver = named
    found.create("committed")
    connection, other = (connected(found.url("committed", driver=driver)) for _ in range(2))
    connection.run("CREATE TABLE t (a integer PRIMARY KEY, b integer)", (), 20)
    assert connection.run("INSERT INTO t VALUES (%s, %s), (%s, %s)", (1, 1, 2, 1), 20)[1] == 2
    assert connection.run("UPDATE t SET b = %s WHERE b = %s", (2, 1), 20)[1] == 2
    assert value(other, "SELECT count(*) FROM t WHERE b = %s", 2) == 2
    for how, left in (("ROLLBACK", 2), ("COMMIT", 0)):
        connection.run("BEGIN", (), 20)
        assert connection.run("DELETE FROM t", (), 20)[1] == 2
        connection.run(how, (), 20)
        assert value(other, "SELECT count(*) FROM t") == left
    for one in (connection, other):
        one.close()
    found.drop("committed")


def test_somebody_elses_lock_is_waited_for_in_vain(named: tuple[Server, str]) -> None:
    found, driver = named
    found.create("locks")
    connection, other = (connected(found.url("locks", driver=driver)) for _ in range(2))
    connection.run("CREATE TABLE t (a integer PRIMARY KEY, b integer)", (), 20)
    connection.run("INSERT INTO t VALUES (1, 1)", (), 20)
    connection.run("BEGIN", (), 20)
    connection.run("UPDATE t SET b = 2", (), 20)
    with pytest.raises(Fault) as error:
        other.run("UPDATE t SET b = 3", (), 20)
    assert error.value.kind == faults.LOCKED
    for one in (connection, other):
        one.close()
    found.drop("locks")


def test_a_deadlock_is_a_conflict(named: tuple[Server, str]) -> None:
    from threading import Thread

    found, driver = named
    found.create("deadlocks")
    if isinstance(found, Postgres):
        found.sql("ALTER DATABASE deadlocks SET deadlock_timeout = '100ms'")
    one, other = (connected(found.url("deadlocks", driver=driver)) for _ in range(2))
    one.run("CREATE TABLE t (a integer PRIMARY KEY, b integer)", (), 20)
    one.run("INSERT INTO t VALUES (1, 1), (2, 1)", (), 20)
    kinds = []

    def update(connection: "Connection", number: int) -> None:
        try:
            connection.run("UPDATE t SET b = b + 1 WHERE a = %s", (number,), 20)
        except Fault as fault:
            kinds.append(fault.kind)
            connection.run("ROLLBACK", (), 20)

    for connection, number in ((one, 1), (other, 2)):
        connection.run("BEGIN", (), 20)
        update(connection, number)
    thread = Thread(target=update, args=(one, 2))
    thread.start()
    while not is_waiting(found):
        time.sleep(0.01)
    update(other, 1)
    thread.join()
    assert kinds == [faults.CONFLICT]
    for connection in (one, other):
        connection.close()
    found.drop("deadlocks")


def is_waiting(found: Server) -> bool:
    if isinstance(found, Postgres):
        return found.sql("SELECT count(*) FROM pg_locks WHERE NOT granted", "") != [("0",)]
    return found.sql(
        "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'", ""
    ) != [("0",)]


def test_a_driver_for_which_there_is_too_little_memory_is_not_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Short:
        def find_spec(self, name: str, *_more: object) -> None:
            if name.endswith("drivers.psycopg2"):
                raise ImportError("libpq.so.5: failed to map segment from shared object")

    monkeypatch.delitem(sys.modules, "greycheck.store.drivers.psycopg2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Short(), *sys.meta_path])
    with pytest.raises(
        StoreError,
        match=r"too little memory for psycopg2 \(libpq.* object\): softlimit -m 36000000",
    ):
        drivers.load(parse_url("postgresql://h/g"))


@pytest.mark.parametrize(
    ("driver", "bound"),
    [
        ("psycopg2", "psycopg2>="),
        ("psycopg", "psycopg>="),
        ("mysqldb", "mysqlclient>="),
        ("pymysql", "pymysql>="),
    ],
)
def test_what_installs_a_driver_is_one_command_with_the_bound_of_this_program(
    monkeypatch: pytest.MonkeyPatch, driver: str, bound: str
) -> None:
    assert engine.installing(driver).startswith(f"{sys.executable} -m pip install '{bound}")
    monkeypatch.setattr(engine.util, "find_spec", lambda _name: None)
    assert engine.installing(driver).startswith(
        f"uv pip install --python {sys.executable} '{bound}"
    )
    monkeypatch.setattr(engine.metadata, "requires", lambda _name: None)
    assert engine.installing(driver).endswith(f" {drivers.RECORDS[driver].distribution}")


def test_of_several_bounds_that_of_this_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    minor = sys.version_info.minor
    wanted = [
        f"psycopg2>=1; python_version < '3.{minor}'",
        f'psycopg2>=2; python_version >= "3.{minor + 1}" and extra == "postgresql"',
        f'psycopg2>=3; extra == "postgresql" and python_version < "3.{minor + 1}"',
    ]
    monkeypatch.setattr(engine.metadata, "requires", lambda _name: wanted)
    assert engine.installing("psycopg2").endswith(" 'psycopg2>=3'")


def test_a_package_that_nobody_installed_tells_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_name: str) -> None:
        raise engine.metadata.PackageNotFoundError

    monkeypatch.setattr(engine.metadata, "requires", requires)
    assert engine.installing("pymysql").endswith(" PyMySQL")


def test_the_quickest_driver_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drivers.load(parse_url("postgresql://h/g"))[0] == "psycopg2"
    assert drivers.load(parse_url("mariadb://h/g"))[0] == "mysqldb"
    monkeypatch.setitem(sys.modules, "greycheck.store.drivers.psycopg2", None)
    monkeypatch.setitem(sys.modules, "greycheck.store.drivers.mysqldb", None)
    assert drivers.load(parse_url("postgresql://h/g"))[0] == "psycopg"
    assert drivers.load(parse_url("mysql://h/g"))[0] == "pymysql"
    with pytest.raises(
        StoreError,
        match=r"no driver for mysql .*: run greycheck doctor, which says what installs one",
    ):
        drivers.load(parse_url("mysql+mysqldb://h/g"))


def test_what_a_server_waits_for_does_not_outlive_its_client(named: tuple[Server, str]) -> None:
    """A child that leaves at its deadline leaves no statement behind that waits for a lock for a
    day.
    """
    found, driver = named
    connection = connected(found.url(driver=driver))
    if isinstance(found, Postgres):
        found_limits = [
            value(connection, f"SELECT current_setting('{name}')")
            for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        ]
        assert found_limits == ["1s", "20s", "10s"]
    else:
        sql = "SELECT @@lock_wait_timeout, @@innodb_lock_wait_timeout, @@autocommit, @@wait_timeout"
        assert list(connection.run(sql, (), 20)[0][0]) == [1, 1, 1, 10]
    connection.close()


@pytest.mark.parametrize("driver", drivers.names("postgresql"))
def test_an_option_that_libpq_does_not_know_is_named(driver: str) -> None:
    with pytest.raises(Fault, match="sslmode") as error:
        connected(f"postgresql+{driver}://user:secret@127.0.0.1/g?sslmode=perhaps")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"character_set_client_handshake": "OFF", "character_set_server": "gbk"},
        {"character_set_client_handshake": "OFF", "character_set_server": "utf8mb3"},
        {"init_connect": "SET NAMES latin1", "session_track_system_variables": ""},
        {"sql_mode": "ORACLE"},
        {"sql_mode": "EMPTY_STRING_IS_NULL,NO_BACKSLASH_ESCAPES"},
        {"autocommit": "OFF"},
    ],
    ids=str,
)
@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_no_setting_of_the_server_changes_what_is_said_to_it(
    mariadb: MariaDB, settings: dict[str, str], driver: str
) -> None:
    """In some character sets a backslash may be half of a letter, and the quote behind it the end
    of the text.
    """
    mariadb.restart(**settings)
    try:
        connection = connected(mariadb.url(driver=driver))
        for text in ("", "€'@x", "\u00bf\\' OR 1 -- ", '"; DROP TABLE x', "\N{ELEPHANT}%s", "a\\"):
            assert value(connection, "SELECT CONCAT(%s, '')", text) in (text, text.encode())
    finally:
        mariadb.stop()
        mariadb.start()


@pytest.mark.parametrize("what", ["CHAIN", "RELEASE"])
@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_after_a_commit_each_statement_commits_by_itself_whatever_the_server_does_then(
    mariadb: MariaDB, what: str, driver: str
) -> None:
    """Else what follows would be told as written, and be lost with the connection."""
    mariadb.restart(completion_type=what)
    try:
        connection = connected(mariadb.url(driver=driver))
        for end in ("COMMIT", "ROLLBACK"):
            connection.run("BEGIN", (), 20)
            connection.run(end, (), 20)
            assert value(connection, "SELECT @@in_transaction") == 0
        connection.close()
        engine = open_engine(mariadb.url(driver=driver))
        with engine.connect() as of_a_command:
            raw: Any = of_a_command.connection.dbapi_connection
            for finish in (of_a_command.commit, of_a_command.rollback):
                of_a_command.execute(sql_text("SELECT 1"))
                finish()
                cursor = raw.cursor()
                cursor.execute("SELECT @@in_transaction, @@completion_type")
                assert tuple(cursor.fetchone()) == (0, "NO_CHAIN")
        engine.dispose()
    finally:
        mariadb.stop()
        mariadb.start()


def test_a_statement_longer_than_the_kernel_takes_at_once(postgres: Postgres) -> None:
    """A server that goes on reading might be as quick as the kernel, so it does not at first."""
    postgres.start()
    for driver in drivers.names("postgresql"):
        connection = connected(postgres.url(driver=driver))
        postgres.freeze()
        goes_on = Timer(0.2, postgres.thaw)
        goes_on.start()
        assert value(connection, "SELECT length(%s)", "x" * 20_000_000) == 20_000_000
        goes_on.join()


def test_the_environment_of_a_mail_server_does_not_lead_astray(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq reads PGHOST and others; what the URL says counts before."""
    postgres.start()
    monkeypatch.setenv("PGHOST", "192.0.2.1")
    monkeypatch.setenv("PGUSER", "nobody")
    monkeypatch.setitem(os.environ, "PGOPTIONS", "-c search_path=nowhere")
    for driver in drivers.names("postgresql"):
        assert value(connected(postgres.url(driver=driver)), "SELECT current_user::text") == USER


# --- a server that is an enemy --------------------------------------------------------------------

LOCAL_FILES = 0x80


class Thief:
    """A server of MySQL's dialect that answers each statement by asking for a file of its client's
    (LOAD DATA LOCAL).
    """

    def __init__(self, wanted: Path) -> None:
        self.wanted = wanted
        self.flags: list[int] = []
        self.got = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _address = self._listener.accept()
            except OSError:
                return
            with peer, peer.makefile("rb") as stream:
                self._talk(peer, stream)

    def _talk(self, peer: socket.socket, stream: Any) -> None:
        def send(number: int, body: bytes) -> None:
            peer.sendall(struct.pack("<I", len(body))[:3] + bytes([number]) + body)

        def take() -> tuple[int, bytes]:
            head = stream.read(4)
            if len(head) < 4:
                raise EOFError
            return head[3], stream.read(int.from_bytes(head[:3], "little"))

        fine = bytes.fromhex("00000002000000")
        offered = 0x0009F7FF & ~0x0800
        hello = (
            b"\x0a10.11.6-MariaDB\0"
            + struct.pack("<I", 1)
            + b"a" * 8
            + b"\0"
            + struct.pack("<H", offered & 0xFFFF)
        )
        hello += (
            b"\x2d"
            + struct.pack("<HH", 2, offered >> 16)
            + bytes([21])
            + bytes(10)
            + b"b" * 12
            + b"\0"
        )
        try:
            send(0, hello + b"mysql_native_password\0")
            number, login = take()
            self.flags.append(int.from_bytes(login[:4], "little"))
            send(number + 1, fine)
            while True:
                number, _statement = take()
                send(number + 1, b"\xfb" + os.fsencode(self.wanted))
                number, content = take()
                self.got += content
                send(number + 1, fine)
        except (EOFError, OSError):
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
def test_a_server_is_not_given_a_file_that_it_asks_for(driver: str, tmp_path: Path) -> None:
    """The client says at once that it gives none, and gives none."""
    (tmp_path / "secret").write_text("root's own\n")
    thief = Thief(tmp_path / "secret")
    try:
        url = f"mysql+{driver}://greycheck@127.0.0.1:{thief.port}/greycheck?ssl_mode=DISABLED"
        with pytest.raises(
            (Fault, RuntimeError)
        ):  # PyMySQL's own word for such a server is none of its errors
            connected(url, seconds=2).run("SELECT 1", (), 2)
        asked = parse_url(url)
        room = drivers.load(asked)[1]
        with pytest.raises((room.Error, RuntimeError)):
            room.connect(asked, asked.hosts[0], 2).cursor().execute("SELECT 1")
    finally:
        thief.close()
    assert thief.flags
    assert not any(flags & LOCAL_FILES for flags in thief.flags)
    assert b"root's own" not in thief.got
