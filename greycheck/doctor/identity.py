"""Examines what senders' domains need: a DNS server that answers, and somebody who asks it."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, case, func, select

from greycheck.doctor.contents import cron_line
from greycheck.doctor.finding import Finding, Installation, safe
from greycheck.settings import Settings
from greycheck.store.admin.engine import reading
from greycheck.store.schema.tables import spf, triplet
from greycheck.times import span

# How long one DNS server may take for an answer here, in seconds, and how many are asked.
PATIENCE, SERVERS = 2.0, 3

# How old the last question may be, and a mail that waits, where somebody asks each minute.
LATE, WAITED = 86400, 3600

# How many domains, or rows that wait, are read, and how many domains are named.
LOOKED, NAMED = 1_000_000, 3

# From how many domains on it is the DNS server that fails, not theirs: that many, and half of all.
MANY = 10


def check_resolver(installation: Installation) -> Iterator[Finding]:
    """Finds out if the DNS servers that ``greycheck resolve`` asks answer."""
    settings = installation.settings
    if settings.identity == "no":
        yield Finding("ok", "resolver", "identity is no: no domain is asked in DNS")
        return
    try:
        from greycheck.resolve.work import resolver
        from greycheck.spf.dns import answers
    except ImportError as error:
        yield Finding(
            "warning",
            "resolver",
            f"greycheck resolve cannot run: {safe(str(error))}",
            "Install greycheck again: dnspython belongs to it.",
        )
        return
    try:
        servers = resolver(settings).servers
    except ValueError as error:
        yield Finding("warning", "resolver", safe(str(error)), ADVICE)
        return
    for address, port in servers[:SERVERS]:
        complaint = answers(address, port, PATIENCE)
        where = safe(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
        if complaint:
            text = f"{where}: {safe(complaint)}: domains get no identity"
            if len(servers) > 1:
                text = f"{where}: {safe(complaint)}: each question waits for it"
            yield Finding("warning", "resolver", text, ADVICE)
        else:
            yield Finding("ok", "resolver", f"{where} answers")


ADVICE = (
    "Let resolver name a DNS server that resolves for this host; or set identity = no, and nobody"
    " is asked."
)


def check_domains(engine: Engine, now: int, installation: Installation) -> Iterator[Finding]:
    """Finds out if the domains of senders are asked, and how many of them do not answer."""
    settings = installation.settings
    if settings.identity == "no":
        return
    with reading(engine).connect() as connection:
        numbers = _numbers(connection, now)
        names = _too_wide(connection)
        waits = _waits(connection, settings, now)
        full = _is_full(connection)
    asked = numbers["asked"]
    if waits and (asked is None or asked < now - LATE):
        last = "never" if asked is None else f"the last time {span(now - asked)} ago"
        yield Finding(
            "warning",
            "domains",
            f"mail waits, and its domains are not asked in DNS ({last}): neither greycheck serve"
            " nor cron does it",
            "Put into the crontab of the store's owner, on one host or on each:\n"
            + cron_line("* * * * *", "resolve", installation),
        )
    elif asked is None:
        yield Finding("ok", "domains", "none was asked in DNS yet")
    else:
        ago = span(max(now - asked, 0))
        yield Finding("ok", "domains", f"{numbers['domains']} kept; the last asked {ago} ago")
    if full:
        yield Finding(
            "warning",
            "domains",
            "so many domains or ranges are kept that no others are asked: somebody invents them",
            "See who: greycheck status, greycheck list pending. They expire by themselves.",
        )
    if numbers["failing"]:
        yield _failing(numbers, now)
    if names:
        wide = f"{numbers['wide']} domains let too many addresses send to mean one sender"
        yield Finding("note", "domains", f"{wide} ({', '.join(map(safe, names))}): no identity")


def _numbers(connection: Connection, now: int) -> dict[str, Any]:
    """Returns what is counted of the first LOOKED domains that are kept, by names."""
    looked = (
        select(spf.c.state, spf.c.failures, spf.c.asked_at, spf.c.answered_at)
        .where(spf.c.expires_at > now)
        .limit(LOOKED)
        .subquery("looked")
        .c
    )
    fails = looked.failures > 0
    row = connection.execute(
        select(
            func.count().label("domains"),
            func.max(looked.asked_at).label("asked"),
            func.count(case((fails, 1))).label("failing"),
            func.max(case((fails, looked.failures))).label("failures"),
            func.min(case((fails, looked.answered_at))).label("oldest"),
            func.count(case((looked.state == "wide", 1))).label("wide"),
        )
    ).one()
    return dict(row._mapping)


def _failing(numbers: dict[str, Any], now: int) -> Finding:
    """Returns the finding about domains that do not answer, by their NUMBERS."""
    text = (
        f"{numbers['failing']} of {numbers['domains']} domains do not answer, up to"
        f" {numbers['failures']} times in a row"
    )
    if numbers["oldest"] is not None:
        text += f"; the oldest answer that counts instead is of {span(now - numbers['oldest'])} ago"
    if numbers["failing"] >= MANY and 2 * numbers["failing"] >= numbers["domains"]:
        return Finding(
            "warning", "domains", text, "See resolver above: one of them may be at fault."
        )
    return Finding("note", "domains", text)


def _too_wide(connection: Connection) -> list[str]:
    """Returns some names of domains whose networks are too wide."""
    # Bounded by what is read, not by what is found.
    looked = select(spf.c.name, spf.c.state).limit(LOOKED).subquery("looked").c
    wide = select(looked.name).where(looked.state == "wide").limit(NAMED)
    return list(connection.execute(wide).scalars())


def _is_full(connection: Connection) -> bool:
    """True if no domain is asked any more that was not before."""
    try:
        from greycheck.resolve import due
    except ImportError:
        return False
    return due.is_full(connection)


def _waits(connection: Connection, settings: Settings, now: int) -> bool:
    """True if mail waits, for longer than a run would take to come, of a domain to be asked."""
    try:
        from greycheck.resolve import due
    except ImportError:
        return False
    expires = triplet.c.expires_at
    tried = (
        select(triplet.c.sender, triplet.c.passes)
        .where(
            expires > now + max(settings.retry_window - LATE, 0),
            expires < now + settings.retry_window - WAITED,
        )
        .order_by(expires.desc())
        .limit(due.READ)
    )
    return any(not passes and due.name_of(sender) for sender, passes in connection.execute(tried))
