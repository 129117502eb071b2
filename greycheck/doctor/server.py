"""A server database: driver, hosts, their marks, passwords, what is in it, how fast it answers."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from shlex import quote
from time import perf_counter
from typing import TYPE_CHECKING

from greycheck.doctor.contents import (
    check_cron,
    check_future,
    check_schema,
    check_shared,
    check_spool,
)
from greycheck.doctor.finding import Finding, Installation, Level, is_roots, run, run_on, safe
from greycheck.doctor.identity import check_domains
from greycheck.doctor.launchers import installing
from greycheck.doctor.providers import check_providers
from greycheck.doctor.supervisor import restart
from greycheck.doctor.telling import told_by
from greycheck.doctor.timings import (
    LOOK_UPS,
    middle_and_longest,
    milliseconds,
    new_triplet,
    timed,
    weigh,
)
from greycheck.launchers import database
from greycheck.metrics.counted import spooled
from greycheck.privilege import access
from greycheck.settings import Settings, duration_text
from greycheck.store import drivers, rights, server
from greycheck.store.admin import errors
from greycheck.store.admin.engine import installing as installing_driver
from greycheck.store.admin.engine import load_driver, open_engine
from greycheck.store.admin.hosts import OLDEST, PRIMARY, SYNCED, HostStatus
from greycheck.store.base import STORE_SHARE
from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.drivers.arguments import ssl_mode
from greycheck.store.drivers.faults import LOCKED, SILENT, Fault
from greycheck.store.url import Server, with_hosts

if TYPE_CHECKING:
    from greycheck.store.drivers import Connection

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


def check_server(asked: Server, installation: Installation) -> Iterator[Finding]:
    """The server database ASKED.

    Raises StoreError where its driver is not installed for this command.
    """
    driver = installation.driver
    assert driver is not None
    again = installing(installation) if installation.is_qmails else " && ".join(restart())
    yield check_driver(asked, driver, again)
    yield from check_secrets(installation)
    if not driver.name:
        return
    user = 0
    if os.geteuid() == 0:
        account, writer = installation.known_account, rights.author(installation.settings)[0]
        user = account.pw_uid if account else writer
    yield from told_by(user, lambda: _check_hosts(asked, driver.name, installation))


def _check_hosts(asked: Server, driver: str, installation: Installation) -> Iterator[Finding]:
    """The hosts of the database ASKED, which the DRIVER of that name asks, by who this is."""
    seen = database.look(asked, driver)
    for one in seen:
        found = check_host(one, seen, asked, installation)
        if found.level == "fault" and one is seen[-1]:
            end = (
                f"{found.found}: every check answers by on_error ({installation.settings.on_error})"
            )
            found = replace(found, found=end)
        yield found
        if one.fault is None:
            yield from check_connection(one, asked)
    yield from check_marks(asked, seen, installation.settings)
    usable = next((one for one in seen if one.is_usable), None)
    if usable is None:
        return
    yield (schema_finding := check_schema(usable.revision, installation.settings))
    if schema_finding.level == "fault":
        return
    latency = check_latency(asked, driver, usable, installation)
    yield latency
    if latency.level != "fault":
        yield from check_contents(asked, usable, installation)


# --- driver, passwords, marks ---------------------------------------------------------------------


def check_driver(asked: Server, driver: database.Found, again: str) -> Finding:
    """The driver that checks use, and whether there is a quicker one.

    AGAIN is what has to be run after a driver was installed.
    """
    if not driver.name:
        found = (
            f"no driver for {asked.dialect} that launchers find: every check answers by on_error"
            f" ({safe(driver.why)})"
        )
        return Finding("fault", "driver", found, run(database.install_driver(asked, again)))
    used = drivers.RECORDS[driver.name]
    quickest = drivers.RECORDS[drivers.names(asked.dialect)[0]]
    if used is quickest:
        return Finding("ok", "driver", f"{used.title}, the quickest here")
    why = f"; that one is not found: {safe(driver.why)}" if driver.why else ""
    found = (
        f"{used.title}: a check takes some {used.check_ms:.0f} ms with it,"
        f" {quickest.check_ms:.0f} ms with {quickest.title}{why}"
    )
    if asked.driver:
        found += f" (the database's URL names +{driver.name}: leave that out)"
    return Finding(
        "warning",
        "driver",
        found,
        run(" && ".join(filter(None, [installing_driver(quickest.name), again]))),
    )


def check_secrets(installation: Installation) -> Iterator[Finding]:
    """Passwords that others can read, and the directory of the marks."""
    account = installation.known_account
    group = access.group_name(account.pw_gid) if account else "qmail"
    for path, exposure in database.exposures(installation.settings, account).items():
        file = quote(str(path))
        if installation.for_root and not is_roots(path):
            advice = run_on(path, "chmod 0600", for_root=True)
        else:
            advice = run(f"chgrp {quote(group)} {file} && chmod 0640 {file}")
        yield Finding("warning", "password", exposure, advice)
    complaint = database.state_complaint(installation.settings, account)
    if complaint:
        directory = quote(installation.settings.state_directory)
        owner = f"-o {quote(account.pw_name)} " if account else ""
        yield Finding("warning", "marks", complaint, run(f"install -d -m 0700 {owner}{directory}"))


def check_marks(asked: Server, seen: Sequence[HostStatus], settings: Settings) -> Iterator[Finding]:
    """Which hosts checks leave out, because one of them waited in vain."""
    breaker = Breaker(settings.state_directory, asked)
    for one in seen:
        for kind, what in ((DOWN, "checks leave it out"), (STUCK, "checks write nothing there")):
            since = breaker.since(one.host, kind)
            if since is None:
                continue
            text = (
                f"{one.host}: did not answer {duration_text(int(since))} ago; {what}, and try again"
                " now and then"
            )
            if one.is_usable:
                yield Finding(
                    "note", "marks", f"{text}; it does now, and one of the next checks finds out"
                )
            else:
                yield Finding(
                    "warning",
                    "marks",
                    text,
                    f"The mark, {breaker.path(one.host, kind)}, goes by itself once it answers.",
                )


# --- hosts ----------------------------------------------------------------------------------------


def check_host(
    one: HostStatus, seen: Sequence[HostStatus], asked: Server, installation: Installation
) -> Finding:
    """Whether a check can use the host ONE of those SEEN."""
    others = any(other.is_usable for other in seen)
    worst: Level = "warning" if others else "fault"
    if one.cluster is not None and one.cluster.status != PRIMARY:
        alone = f"{one.host}: {safe(one.cluster.status)}: it is cut off from its cluster"
        return Finding(
            worst,
            "server",
            alone,
            "Mend the network between the nodes, or see wsrep_cluster_address.",
        )
    if one.fault is not None:
        why, advice = _cause(one, asked, installation)
        return Finding(worst, "server", f"{one.host}: {why}", advice)
    text = (
        f"{one.host}: {one.product} {safe(one.version)}, connects in {milliseconds(one.connecting)}"
    )
    if one.cluster is not None:
        text += f", {safe(one.cluster.state)} in a cluster of {one.cluster.size}"
        if one.cluster.state != SYNCED:
            return Finding(
                "warning",
                "server",
                text,
                "Wait until it is Synced; other hosts before it in database's URL.",
            )
    if one.is_too_old:
        oldest = ".".join(map(str, OLDEST[one.product]))
        return Finding(
            "warning",
            "server",
            text,
            f"Upgrade it: greycheck is for {one.product} {oldest} and newer.",
        )
    if one.is_read_only:
        advice = "" if others else "Let database name the host that takes writes."
        return Finding("note" if others else "fault", "server", f"{text}, takes no writes", advice)
    return Finding("ok", "server", text)


# What servers say to who does not know the password.
NO_PASSWORD = re.compile(
    r"password authentication failed|no password supplied|Access denied for user.*using password"
)

# What they say of a database that is not there; and what is said where nobody listens.
NO_DATABASE = re.compile(r"database .*does not exist|Unknown database")
NO_HOST = re.compile(r"could not translate host name|Unknown .*host|[Nn]ame or service not known")
NOBODY = re.compile(r"Connection refused|No such file or directory|Can't connect")


def _cause(one: HostStatus, asked: Server, installation: Installation) -> tuple[str, str]:
    """Why the host ONE cannot be used, and what to do: one command, where that is known."""
    assert one.fault is not None
    said = errors.cause(str(one.fault)).removeprefix("FATAL:").strip().replace('"', "")
    postgresql = asked.dialect == "postgresql"
    if one.fault.kind == SILENT:
        stopped = (
            "It takes connections and does not answer, or packets are dropped: see whether it is"
            " stopped."
        )
        return safe(said), stopped
    if NO_PASSWORD.search(said):
        source = installation.settings.sources["database"]
        where = f"Write the right password into {source}"
        admin = (
            f"sudo -u postgres psql -c '\\password {asked.user}'"
            if postgresql
            else f"mariadb -e 'SHOW GRANTS FOR {asked.user}'"
        )
        setting = _there(one, admin, asked.user or "")
        return (
            f"the password of {asked.user} is wrong: {safe(said)}",
            f"{where}; or set it there: {setting}" if setting else where,
        )
    if NO_DATABASE.search(said):
        made, user = "mariadb-admin create", asked.user or "greycheck"
        if postgresql:
            made = f"sudo -u postgres createdb -O {user} -T template0 -E UTF8"
        why = f"there is no database {asked.database}: {safe(said)}"
        return why, run(_there(one, f"{made} {asked.database}", user, asked.database))
    if NO_HOST.search(said):
        where = installation.settings.sources["database"]
        return f"there is no such host: {safe(said)}", f"Write the right one into {where}"
    if NOBODY.search(said):
        name = "postgresql" if postgresql else "mariadb"
        refused = safe(said.partition(" Is the server running")[0])
        return f"no server listens there: {refused}", run(_there(one, f"systemctl start {name}"))
    return safe(said), "See whether its own rules or a firewall keep this host out."


# A name that is one word to a shell, to psql and to SQL, and no option.
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _there(one: HostStatus, command: str, *names: str) -> str:
    """Returns what runs COMMAND, which has NAMES in it, on the host ONE.

    Empty if a name is not plain: there two shells read it, and psql.
    """
    far = () if is_here(one) else (one.host.name,)
    if not all(map(PLAIN.fullmatch, (*names, *far))):
        return ""
    return f"ssh {one.host.name} {quote(command)}" if far else command


def check_connection(one: HostStatus, asked: Server) -> Iterator[Finding]:
    """Whether others on the way to the host ONE can read, and whether its clock is right."""
    if not is_here(one):
        verified = is_verified(asked)
        if not one.is_encrypted:
            text = (
                f"{one.host}: not encrypted: the network sees who writes to whom, and may see the"
                " password"
            )
        else:
            text = (
                f"{one.host}: encrypted, but not verified: whoever is between can take its place,"
                " and learn the password"
            )
        if not one.is_encrypted or not verified:
            yield Finding(
                "warning", "server", text, f"Add to the database's URL: {VERIFYING[asked.dialect]}"
            )
    if abs(one.ahead) > CLOCKS_APART:
        text = (
            f"{one.host}: its clock is {abs(one.ahead):.0f}s"
            f" {'ahead of' if one.ahead > 0 else 'behind'} this host's"
        )
        yield Finding(
            "note", "clock", f"{text}; checks use their own host's", run("timedatectl set-ntp true")
        )


def is_here(one: HostStatus) -> bool:
    """Whether the way to the host ONE does not leave this machine."""
    name = one.host.name
    return one.host.is_socket or name in ("", "localhost", "::1") or name.startswith("127.")


def is_verified(asked: Server) -> bool:
    """Whether connections to the database ASKED are made to a verified server only."""
    if asked.dialect == "mysql":
        return ssl_mode(asked).startswith("VERIFY")
    return asked.options.get("sslmode", "").startswith("verify-")


# --- schema and latency ---------------------------------------------------------------------------


def check_latency(
    asked: Server, driver: str, one: HostStatus, installation: Installation
) -> Finding:
    """How long the host ONE takes for a connection, a look-up and a write, as a check does them.

    The write is rolled back.
    """
    settings = installation.settings
    patience = settings.deadline * STORE_SHARE
    used = asked.by(driver)
    room = load_driver(used)[1]
    started = perf_counter()
    try:
        connection = room.Connection(
            used, one.host, patience, max(1, int(patience * server.LOCK_PATIENCE))
        )
        connecting = perf_counter() - started
        try:
            read, slowest = time_look_ups(connection, asked.dialect, patience)
            written = time_write(connection, asked.dialect, patience)
        finally:
            connection.close()
    except Fault as fault:
        held = fault.kind in (LOCKED, SILENT)
        advice = (
            f"Find out who holds the tables: {HOLDERS[asked.dialect]}"
            if held
            else "See the server's log."
        )
        text = (
            f"{one.host}: {safe(str(fault))}: a new triplet is answered by on_error"
            f" ({settings.on_error})"
        )
        return Finding("fault", "latency", text, advice)
    text = (
        f"{one.host}: connecting takes {milliseconds(connecting)}, a look-up {milliseconds(read)}"
        " (the slowest of"
    )
    text += f" {LOOK_UPS}: {milliseconds(slowest)}), a write {milliseconds(written)}"
    return weigh(
        text,
        connecting + slowest + written,
        settings,
        "Take a nearer or faster server, or a longer deadline.",
    )


def time_look_ups(connection: "Connection", dialect: str, patience: float) -> tuple[float, float]:
    """The median and the longest time of a check's look-up, in seconds."""
    sql, names = import_module(f"greycheck.store.compiled_{dialect}").LOOKUP_IPV4

    def look_up() -> float:
        keys = [os.urandom(16) for _name in names[2:]]
        values = [os.urandom(16), "192.0.2.1", *keys]
        return timed(lambda: connection.run(sql, values, patience))

    return middle_and_longest(look_up)


def time_write(connection: "Connection", dialect: str, patience: float) -> float:
    """How long a check's write takes, in seconds, all but its commit. Rolls it back."""
    sql, names = import_module(f"greycheck.store.compiled_{dialect}").INSERT_TRIPLET
    row = new_triplet()
    values = [row[name] for name in names]
    connection.run(server.BEGIN[dialect], (), patience)
    took = timed(lambda: connection.run(sql, values, patience))
    connection.run("ROLLBACK", (), patience)
    return took


def check_contents(asked: Server, one: HostStatus, installation: Installation) -> Iterator[Finding]:
    """What is in the database, by its host ONE."""
    url = installation.settings.database.url
    if len(asked.hosts) > 1 and not one.host.is_socket:
        url = with_hosts(url, [str(one.host)])
    engine = open_engine(url)
    try:
        waiting = spooled(installation.settings)
        yield check_future(engine, int(installation.now))
        yield check_cron(engine, int(installation.now), installation)
        yield from check_spool(engine, waiting, int(installation.now), installation)
        yield from check_domains(engine, int(installation.now), installation)
        yield from check_shared(engine)
        yield from check_providers(engine, int(installation.now), installation)
    finally:
        engine.dispose()
