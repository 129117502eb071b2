"""A server database: the driver, each host, the marks of those that do not answer, passwords, what is in it, and how fast it answers."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from shlex import quote
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from greycheck import child
from greycheck.cli import access, launcher, server
from greycheck.doctor.finding import LOOK_UPS, Finding, Installation, Level, milliseconds, run, safe, weigh
from greycheck.settings import Settings, duration_text
from greycheck.store import drivers, faults, lean_server, schema
from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.engine import open_engine
from greycheck.store.hosts import OLDEST, PRIMARY, SYNCED, Seen
from greycheck.store.server import DRIVERS, LOCKED, SILENT, Fault, Server, ssl_mode, with_hosts

if TYPE_CHECKING:
    from greycheck.store.drivers import Connection

# Milliseconds of a check of a known triplet, as benchmarks/databases.py measured it, and what the drivers are called where they come from.
COSTS = {"psycopg2": 24, "psycopg": 102, "mysqldb": 12, "pymysql": 31}
PACKAGES = {"psycopg2": "psycopg2", "psycopg": "psycopg 3", "mysqldb": "mysqlclient", "pymysql": "PyMySQL"}

# Seconds that a server's clock may be away from this host's. Checks take all times from their own.
CLOCKS_APART = 5

# What verifies the server, to be added to a URL.
VERIFYING = {
    "postgresql": "sslmode=verify-full&sslrootcert=/PATH/TO/ca.pem",
    "mysql": "ssl_mode=VERIFY_IDENTITY&ssl_ca=/PATH/TO/ca.pem",
}

# Who holds what a check waits for.
HOLDERS = {
    "postgresql": "SELECT pid, usename, state, query, pg_blocking_pids(pid) FROM pg_stat_activity",
    "mysql": "SHOW FULL PROCESSLIST; SHOW ENGINE INNODB STATUS",
}


def look_at_server(asked: Server, installation: Installation) -> Iterator[Finding]:
    """The server database ASKED. Raises StoreError where its driver is not installed for this command."""
    driver = installation.driver
    assert driver is not None
    yield look_at_driver(asked, driver, f"greycheck install {quote(str(installation.directory))}")
    yield from look_at_secrets(installation)
    if not driver.name:
        return
    seen = server.look(asked, driver.name, installation.known_account)
    for one in seen:
        found = look_at_host(one, seen, asked, installation)
        if found.level == "fault" and one is seen[-1]:
            end = f"{found.found}: every check answers by on_error ({installation.settings.on_error})"
            found = replace(found, found=end)
        yield found
        if one.fault is None:
            yield from look_at_connection(one, asked)
    yield from look_at_marks(asked, seen, installation.settings)
    usable = next((one for one in seen if one.is_usable), None)
    if usable is None:
        return
    yield (schema_finding := look_at_schema(usable, installation.settings))
    if schema_finding.level == "fault":
        return
    latency = look_at_latency(asked, driver.name, usable, installation)
    yield latency
    if latency.level != "fault":
        yield from look_into_server(asked, usable, installation)


# --- driver, passwords, marks -----------------------------------------------------------------------------------------


def look_at_driver(asked: Server, driver: server.Found, again: str = "greycheck install DIR") -> Finding:
    """The driver that checks use, and whether there is a quicker one."""
    if not driver.name:
        extra = drivers.EXTRAS[asked.driver or DRIVERS[asked.dialect][0]]
        command = f"{launcher.interpreter()} -m pip install 'greycheck[{extra}]' && {again}"
        found = (
            f"no driver for {asked.dialect} that launchers find: every check answers by on_error ({safe(driver.why)})"
        )
        return Finding("fault", "driver", found, run(command))
    quickest = DRIVERS[asked.dialect][0]
    if driver.name == quickest:
        return Finding("ok", "driver", f"{PACKAGES[driver.name]}, the quickest here")
    why = f"; that one is not found: {safe(driver.why)}" if driver.why else ""
    found = (
        f"{PACKAGES[driver.name]}: a check takes some {COSTS[driver.name]} ms with it,"
        f" {COSTS[quickest]} ms with {PACKAGES[quickest]}{why}"
    )
    named = f", and leave +{driver.name} out of the database's URL" if asked.driver else ""
    advice = f"Run: pip install 'greycheck[{drivers.EXTRAS[quickest]}]', then greycheck install{named}."
    return Finding("warning", "driver", found, advice)


def look_at_secrets(installation: Installation) -> Iterator[Finding]:
    """Passwords that others can read, and the directory of the marks."""
    account = installation.known_account
    group = access.group_name(account.pw_gid) if account else "qmail"
    for exposure in server.exposures(installation.settings, account):
        file = quote(exposure.partition(" password in ")[2].rpartition(" (mode")[0])
        advice = run(f"chgrp {quote(group)} {file} && chmod 0640 {file}")
        yield Finding("warning", "password", exposure, advice)
    complaint = server.state_complaint(installation.settings, account)
    if complaint:
        directory = quote(installation.settings.state_directory)
        owner = f"-o {quote(account.pw_name)} " if account else ""
        yield Finding("warning", "marks", complaint, run(f"install -d -m 0700 {owner}{directory}"))


def look_at_marks(asked: Server, seen: Sequence[Seen], found: Settings) -> Iterator[Finding]:
    """Which hosts checks leave out, because one of them waited in vain."""
    breaker = Breaker(found.state_directory, asked)
    for one in seen:
        for kind, what in ((DOWN, "checks leave it out"), (STUCK, "checks write nothing there")):
            since = breaker.since(one.host, kind)
            if since is None:
                continue
            text = f"{one.host}: did not answer {duration_text(int(since))} ago; {what}, and try again now and then"
            if one.is_usable:
                yield Finding("note", "marks", f"{text}; it does now, and one of the next checks finds out")
            else:
                yield Finding(
                    "warning",
                    "marks",
                    text,
                    f"The mark, {breaker.path(one.host, kind)}, goes by itself once it answers.",
                )


# --- hosts ------------------------------------------------------------------------------------------------------------


def look_at_host(one: Seen, seen: Sequence[Seen], asked: Server, installation: Installation) -> Finding:
    """Whether a check can use the host ONE of those SEEN."""
    others = any(other.is_usable for other in seen)
    worst: Level = "warning" if others else "fault"
    if one.cluster is not None and one.cluster.status != PRIMARY:
        alone = f"{one.host}: {safe(one.cluster.status)}: it is cut off from its cluster"
        return Finding(worst, "server", alone, "Mend the network between the nodes, or see wsrep_cluster_address.")
    if one.fault is not None:
        why, advice = _cause(one, asked, installation)
        return Finding(worst, "server", f"{one.host}: {why}", advice)
    text = f"{one.host}: {one.product} {safe(one.version)}, connects in {milliseconds(one.connecting)}"
    if one.cluster is not None:
        text += f", {safe(one.cluster.state)} in a cluster of {one.cluster.size}"
        if one.cluster.state != SYNCED:
            return Finding(
                "warning", "server", text, "Wait until it is Synced; other hosts before it in database's URL."
            )
    if one.is_too_old:
        oldest = ".".join(map(str, OLDEST[one.product]))
        return Finding("warning", "server", text, f"Upgrade it: greycheck is for {one.product} {oldest} and newer.")
    if one.is_read_only:
        advice = "" if others else "Let database name the host that takes writes."
        return Finding("note" if others else "fault", "server", f"{text}, takes no writes", advice)
    return Finding("ok", "server", text)


# What servers say to who does not know the password.
NO_PASSWORD = re.compile(r"password authentication failed|no password supplied|Access denied for user.*using password")

# What they say of a database that is not there; and what is said where nobody listens.
NO_DATABASE = re.compile(r"database .*does not exist|Unknown database")
NO_HOST = re.compile(r"could not translate host name|Unknown .*host|[Nn]ame or service not known")
NOBODY = re.compile(r"Connection refused|No such file or directory|Can't connect")


def _cause(one: Seen, asked: Server, installation: Installation) -> tuple[str, str]:
    """Why the host ONE cannot be used, and what to do: one command, where that is known."""
    assert one.fault is not None
    said = faults.cause(str(one.fault)).removeprefix("FATAL:").strip().replace('"', "")
    on_host = "" if is_here(one) else f"ssh {quote(one.host.name)} "
    postgresql = asked.dialect == "postgresql"
    if one.fault.kind == SILENT:
        stopped = "It takes connections and does not answer, or packets are dropped: see whether it is stopped."
        return safe(said), stopped
    if NO_PASSWORD.search(said):
        source = installation.settings.sources["database"]
        where = f"Write the right password into {source}"
        admin = (
            f"sudo -u postgres psql -c '\\password {asked.user}'"
            if postgresql
            else f"mariadb -e 'SHOW GRANTS FOR {asked.user}'"
        )
        return f"the password of {asked.user} is wrong: {safe(said)}", f"{where}; or set it there: {on_host}{admin}"
    if NO_DATABASE.search(said):
        made = "mariadb-admin create"
        if postgresql:
            made = f"sudo -u postgres createdb -O {quote(asked.user or 'greycheck')} -T template0 -E UTF8"
        why = f"there is no database {asked.database}: {safe(said)}"
        return why, run(f"{on_host}{made} {quote(asked.database)}")
    if NO_HOST.search(said):
        where = installation.settings.sources["database"]
        return f"there is no such host: {safe(said)}", f"Write the right one into {where}"
    if NOBODY.search(said):
        name = "postgresql" if postgresql else "mariadb"
        refused = safe(said.partition(" Is the server running")[0])
        return f"no server listens there: {refused}", run(f"{on_host}systemctl start {name}")
    return safe(said), "See whether its own rules or a firewall keep this host out."


def look_at_connection(one: Seen, asked: Server) -> Iterator[Finding]:
    """Whether others on the way to the host ONE can read, and whether its clock is right."""
    if not is_here(one):
        verified = is_verified(asked)
        if not one.is_encrypted:
            text = f"{one.host}: not encrypted: the network sees who writes to whom, and may see the password"
        else:
            text = f"{one.host}: encrypted, but not verified: whoever is between can take its place, and learn the password"
        if not one.is_encrypted or not verified:
            yield Finding("warning", "server", text, f"Add to the database's URL: {VERIFYING[asked.dialect]}")
    if abs(one.ahead) > CLOCKS_APART:
        text = f"{one.host}: its clock is {abs(one.ahead):.0f}s {'ahead of' if one.ahead > 0 else 'behind'} this host's"
        yield Finding("note", "clock", text, "One of them is wrong. Checks use their own host's: let NTP set all.")


def is_here(one: Seen) -> bool:
    """Whether the way to the host ONE does not leave this machine."""
    name = one.host.name
    return one.host.is_socket or name in ("", "localhost", "::1") or name.startswith("127.")


def is_verified(asked: Server) -> bool:
    """Whether connections to the database ASKED are made to a verified server only."""
    if asked.dialect == "mysql":
        return ssl_mode(asked).startswith("VERIFY")
    return asked.options.get("sslmode", "").startswith("verify-")


# --- schema and latency -----------------------------------------------------------------------------------------------


def look_at_schema(one: Seen, found: Settings) -> Finding:
    """Whether the schema that the host ONE has is one for this program."""
    url = schema.shown(found.database)
    wrong = server.misfit(one.revision)
    if wrong:
        said, _colon, command = wrong.rpartition(": run ")
        until = "every check answers by on_error until then"
        return Finding("fault", "store", f"{url}: {said or wrong}: {until}", run(command) if said else "")
    if one.revision == schema.head():
        return Finding("ok", "store", f"{url}: schema at {one.revision}")
    return Finding("note", "store", f"{url}: the schema is {schema.standing(one.revision)}")


def look_at_latency(asked: Server, driver: str, one: Seen, installation: Installation) -> Finding:
    """How long the host ONE takes for a connection, a look-up and a write, as a check does them. The write is rolled back."""
    found = installation.settings
    patience = found.deadline * child.PATIENCE
    used = Server(asked.dialect, driver, asked.user, asked.password, asked.database, asked.hosts, asked.options)
    room = drivers.load(used)[1]
    started = perf_counter()
    try:
        with access.acting_as(installation.known_account):
            connection = room.Connection(used, one.host, patience, max(1, int(patience * lean_server.LOCK_PATIENCE)))
        connecting = perf_counter() - started
        try:
            read, slowest = time_look_ups(connection, asked.dialect, patience)
            written = time_write(connection, asked.dialect, patience)
        finally:
            connection.close()
    except Fault as fault:
        held = fault.kind in (LOCKED, SILENT)
        advice = f"Find out who holds the tables: {HOLDERS[asked.dialect]}" if held else "See the server's log."
        text = f"{one.host}: {safe(str(fault))}: a new triplet is answered by on_error ({found.on_error})"
        return Finding("fault", "latency", text, advice)
    text = f"{one.host}: connecting takes {milliseconds(connecting)}, a look-up {milliseconds(read)} (the slowest of"
    text += f" {LOOK_UPS}: {milliseconds(slowest)}), a write {milliseconds(written)}"
    return weigh(text, connecting + slowest + written, found, "Take a nearer or faster server, or a longer deadline.")


def time_look_ups(connection: "Connection", dialect: str, patience: float) -> tuple[float, float]:
    """The median and the longest time of a check's look-up, in seconds."""
    sql, names = import_module(f"greycheck.store.compiled_{dialect}").LOOKUP_IPV4
    times = []
    for _number in range(LOOK_UPS):
        keys = [os.urandom(16) for _name in names[2:]]
        started = perf_counter()
        connection.run(sql, [os.urandom(16), "192.0.2.1", *keys], patience)
        times.append(perf_counter() - started)
    return median(times), max(times)


def time_write(connection: "Connection", dialect: str, patience: float) -> float:
    """How long a check's write takes, in seconds, all but its commit. Rolls it back."""
    sql, names = import_module(f"greycheck.store.compiled_{dialect}").INSERT_TRIPLET
    row: dict[str, object] = dict.fromkeys(names, 0)
    row |= {"triplet_key": os.urandom(16), "network": "192.0.2.0/24", "sender": "", "recipient": ""}
    row["passed_at"] = None
    connection.run(lean_server.BEGIN[dialect], (), patience)
    started = perf_counter()
    connection.run(sql, [row[name] for name in names], patience)
    took = perf_counter() - started
    connection.run("ROLLBACK", (), patience)
    return took


def look_into_server(asked: Server, one: Seen, installation: Installation) -> Iterator[Finding]:
    """What is in the database, by its host ONE."""
    from greycheck.doctor.store import look_at_cron, look_at_future, look_at_shared

    url = installation.settings.database
    if len(asked.hosts) > 1 and not one.host.is_socket:
        url = with_hosts(url, [str(one.host)])
    engine = open_engine(url)
    try:
        with access.acting_as(installation.known_account):
            engine.connect().close()
        yield look_at_future(engine, int(installation.now))
        yield look_at_cron(engine, int(installation.now), installation)
        yield from look_at_shared(engine)
    finally:
        engine.dispose()
