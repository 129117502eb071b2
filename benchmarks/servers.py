"""Server databases to measure: a PostgreSQL, a MariaDB and a Galera on loopback, filled, and the
ways in which a check gets there.

They store as they do where nobody set them up otherwise: PostgreSQL and MariaDB wait for the disk
at every commit, the nodes of Galera leave that to the others. Beside each way stand scripts that do
next to nothing by the same driver.

Interface: ``databases``, ``Database``, ``Way``, ``script``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from ssl import CERT_REQUIRED, SSLContext
from time import time
from typing import Any, NamedTuple

from benchmarks.common import (
    AGE,
    BARE,
    LIFETIME,
    PENDING,
    Load,
    Mail,
    Numbers,
    address,
    asked,
    columns,
    mail,
    rule,
    smtpextfork,
)
from greycheck.launchers.python import driver_directories
from greycheck.store import drivers
from greycheck.store.admin.engine import open_engine
from greycheck.store.drivers import arguments
from greycheck.store.schema import migrate, tables
from greycheck.store.url import parse_url, with_hosts
from tests.servers import Galera, MariaDB, Postgres, Server, Templates

# The memory that servers keep pages in unless they are told otherwise.
PAGES = 128 << 20

POSTGRES = {"fsync": "on", "autovacuum": "on", "shared_buffers": f"{PAGES >> 20}MB"}
MARIADB = {
    "innodb_flush_log_at_trx_commit": 1,
    "innodb_doublewrite": 1,
    "innodb_buffer_pool_size": PAGES,
}

# Rows that one transaction inserts.
BATCH = 5000

# How long the scripts tell a driver to wait, in seconds, as a check does with its default deadline.
PATIENCE = 4.0

# Brings statistics up to date, as both servers do by themselves in time.
ANALYZE = {"postgresql": "VACUUM ANALYZE", "mysql": "ANALYZE TABLE triplet, client"}

# A script that imports, connects, asks, and ends at once, as a check does.
SCRIPT = """\
#!{interpreter} -IS
import posix, sys
sys.path.extend({drivers!r})
{body}
"""

# Import, connect and SELECT 1 as each driver's documentation has it.
DOCUMENTED = {
    "psycopg2": """\
import psycopg2
connection = psycopg2.connect({told!r})
cursor = connection.cursor()
cursor.execute("SELECT 1")
posix._exit(cursor.fetchone() != (1,))""",
    "psycopg": """\
import psycopg
connection = psycopg.connect({told!r})
posix._exit(connection.execute("SELECT 1").fetchone() != (1,))""",
    "mysqldb": """\
import MySQLdb
connection = MySQLdb.connect(**{told!r})
cursor = connection.cursor()
cursor.execute("SELECT 1")
posix._exit(cursor.fetchone() != (1,))""",
    "pymysql": """\
import pymysql
connection = pymysql.connect(**{told!r})
cursor = connection.cursor()
cursor.execute("SELECT 1")
posix._exit(cursor.fetchone() != (1,))""",
}

# The same with the lowest layer alone, which a check uses: what no check by this driver can be
# quicker than.
LOWEST = {
    "psycopg2": """\
import _datetime
package = sys.modules["psycopg2"] = type(sys)("psycopg2")
package.__path__ = {path!r}
extensions = sys.modules["psycopg2.extensions"] = type(sys)("psycopg2.extensions")
extensions.make_dsn = lambda *given, **options: ""
sys.modules["ssl"], sys.modules["datetime"] = type(sys)("ssl"), _datetime
from psycopg2 import _psycopg
connection = _psycopg._connect({told!r}, None, 0)
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("SELECT 1")
posix._exit(cursor.fetchone() != (1,))""",
    "psycopg": """\
from psycopg import pq
connection = pq.PGconn.connect({told!r}.encode())
posix._exit(connection.exec_(b"SELECT 1").get_value(0, 0) != b"1")""",
    "mysqldb": """\
package = sys.modules["MySQLdb"] = type(sys)("MySQLdb")
package.__path__ = {path!r}
from MySQLdb import _mysql
connection = _mysql.connect(**{told!r})
connection.query("SELECT 1")
posix._exit(connection.store_result().fetch_row() != ((b"1",),))""",
    "pymysql": """\
import pymysql
connection = pymysql.connect(**{told!r}, autocommit=None)
cursor = connection.cursor()
cursor.execute("SELECT 1")
posix._exit(cursor.fetchone() != (1,))""",
}


class Way(NamedTuple):
    """A way to a database: its NAME, the DRIVER, and the URL that says it all."""

    name: str
    driver: str
    url: str

    def environ(self, state: Path, found: Mail) -> dict[str, str]:
        """The environment of a check of the envelope FOUND that goes this way, with marks in the
        directory STATE.
        """
        return smtpextfork(self.url, found) | {"GREYCHECK_STATE_DIRECTORY": str(state)}


class Database(NamedTuple):
    """A database that is filled: its NAME, the LOAD of what it holds, and the WAYS to it."""

    name: str
    load: Load
    ways: list[Way]


@contextmanager
def databases(numbers: Numbers) -> Iterator[list[Database]]:
    """The three, each with NUMBERS; they end with the context."""
    templates = Templates()
    try:
        with (
            Postgres(templates) as postgres,
            MariaDB(templates) as mariadb,
            Galera(templates) as galera,
        ):
            postgres.start(**POSTGRES)
            mariadb.start(**MARIADB)
            galera.start()
            for node in galera.nodes:
                node.sql(f"SET GLOBAL innodb_buffer_pool_size = {PAGES}")
            for found in (postgres, mariadb, galera.nodes[0]):
                fill(found, numbers)
            yield [
                Database("PostgreSQL", Load(numbers), ways_to_postgres(postgres)),
                Database("MariaDB", Load(numbers), ways_to_mariadb(mariadb)),
                Database("Galera", Load(numbers), ways_to_galera(galera)),
            ]
    finally:
        templates.remove()


def ways_to_postgres(found: Postgres) -> list[Way]:
    """TCP, the unix socket and TCP with TLS that verifies, by psycopg2; TCP and TLS by psycopg."""

    def tls(driver: str) -> str:
        return found.url(driver=driver, sslmode="verify-full", sslrootcert=str(found.ca))

    return [
        Way("psycopg2, TCP", "psycopg2", found.url(driver="psycopg2", sslmode="disable")),
        Way("psycopg2, socket", "psycopg2", found.url(driver="psycopg2", via="socket")),
        Way("psycopg2, TLS", "psycopg2", tls("psycopg2")),
        Way("psycopg, TCP", "psycopg", found.url(driver="psycopg", sslmode="disable")),
        Way("psycopg, TLS", "psycopg", tls("psycopg")),
    ]


def ways_to_mariadb(found: MariaDB) -> list[Way]:
    """TCP, the unix socket and TCP with TLS that verifies, by mysqldb; TCP and TLS by pymysql."""
    return [
        Way("mysqldb, TCP", "mysqldb", found.url(driver="mysqldb", ssl_mode="DISABLED")),
        Way("mysqldb, socket", "mysqldb", found.url(driver="mysqldb", via="socket")),
        Way("mysqldb, TLS", "mysqldb", found.url(driver="mysqldb", ssl_ca=str(found.ca))),
        Way("pymysql, TCP", "pymysql", found.url(driver="pymysql", ssl_mode="DISABLED")),
        Way("pymysql, TLS", "pymysql", found.url(driver="pymysql", ssl_ca=str(found.ca))),
    ]


def ways_to_galera(found: Galera) -> list[Way]:
    """TCP by mysqldb, with all nodes in the URL."""
    first = found.nodes[0].url(driver="mysqldb", ssl_mode="DISABLED")
    hosts = [f"127.0.0.1:{node.port}" for node in found.nodes]
    return [Way("mysqldb, 3 hosts", "mysqldb", with_hosts(first, hosts))]


def fill(found: Server, numbers: Numbers) -> None:
    """Makes the schema in the server FOUND, and fills it with NUMBERS, last used AGE seconds
    ago.
    """
    migrate.upgrade(found.url())
    now = int(time()) - AGE
    engine = open_engine(found.url())
    names = [column.name for column in tables.triplet.columns]
    triplets: Iterator[dict[str, Any]] = (
        {name: made[name] for name in names}
        for made in (columns(asked(mail(number)), now, number < PENDING) for number in numbers)
    )
    clients: Iterator[dict[str, Any]] = (
        {
            "address": address(n),
            "passes": 1,
            "first_seen": now,
            "last_seen": now,
            "expires_at": now + LIFETIME,
        }
        for n in range(numbers.clients)
    )
    columns_of_rule = [column.name for column in tables.rule.columns]
    rules: Iterator[dict[str, Any]] = (
        dict(zip(columns_of_rule, (*found[:3], "allow", None, "", found[3], None), strict=True))
        for found in (rule(number, now) for number in range(numbers.rules))
    )
    filled = (tables.triplet, triplets), (tables.client, clients), (tables.rule, rules)
    for table, rows in filled:
        while batch := list(islice(rows, BATCH)):
            with engine.begin() as connection:
                connection.execute(table.insert(), batch)
    engine.dispose()
    found.sql(ANALYZE[found.dialect])


def script(directory: Path, name: str, texts: dict[str, str], way: Way) -> str:
    """A program NAME in DIRECTORY that does what TEXTS has for the driver of WAY, there."""
    asked_server = parse_url(way.url)
    host = asked_server.hosts[0]
    told: object
    if asked_server.dialect == "postgresql":
        told = arguments.libpq_dsn(asked_server, host, PATIENCE)
    else:
        driver: Any = drivers.load(asked_server)[1]
        told = written(driver.connect_arguments(asked_server, host, PATIENCE), asked_server.options)
    places = driver_directories()
    package = drivers.RECORDS[way.driver].package
    packages = [str(path) for path in (Path(place) / package for place in places) if path.is_dir()]
    path = directory / name
    body = texts[way.driver].format(told=told, path=packages)
    path.write_text(SCRIPT.format(interpreter=BARE[0], drivers=places, body=body))
    path.chmod(0o700)
    return str(path)


def written(told: dict[str, object], options: dict[str, str]) -> dict[str, object]:
    """What a driver of MySQL's dialect is TOLD, as a script's text can hold it: of a context, what
    PyMySQL makes the same one from.
    """
    context = told.get("ssl")
    if not isinstance(context, SSLContext):
        return told
    verified = {
        "check_hostname": context.check_hostname,
        "verify_mode": context.verify_mode is CERT_REQUIRED,
    }
    return told | {
        "ssl": {"ca": options.get("ssl_ca"), "capath": options.get("ssl_capath"), **verified}
    }
