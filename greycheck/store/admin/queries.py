"""Queries of operators: lists of triplets and clients, single rows, and forgetting them.

A list reads its whole table (0.1 s for a million rows) and keeps the rows that match; only a list
by expiry uses an index. Conditions are portable SQLAlchemy Core. For a filter by IPv6 network the
database compares only the part of the text that is certain; ``Network.overlaps`` decides the rest.
Rows are yielded as they are read: at most one batch is in memory.

Diagnostics: SQLAlchemy's; ``ValueError`` for a wrong network or key.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from time import monotonic, sleep

from sqlalchemy import (
    ColumnElement,
    Engine,
    RowMapping,
    Select,
    Table,
    and_,
    case,
    delete,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.sql.schema import Column

from greycheck import earlier, folding, normalise, policy, unknown
from greycheck.envelope import OF_MESSAGE
from greycheck.log import CUT, show, show_address, unshown
from greycheck.normalise import Network
from greycheck.policy import Timings, TripletRow
from greycheck.rules import patterns
from greycheck.settings import Settings
from greycheck.store.admin import errors
from greycheck.store.admin.engine import reading
from greycheck.store.admin.expiry import BATCH
from greycheck.store.base import DIGEST, Asked
from greycheck.store.schema.tables import client, correspondent, domain, triplet
from greycheck.store.waiting import pair_keys

# The list that ``greycheck.store.admin.domains`` reads.
DOMAINS = "domains"

# Whom our users wrote to.
CORRESPONDENTS = "correspondents"

LISTS = ("pending", "passed", "clients", "struck", DOMAINS, CORRESPONDENTS)

# A further list: all triplets, pending and passed.
TRIPLETS = "triplets"

# The orders of lists: the column of triplets, that of clients, and True if the largest comes first.
SORTS = {
    "first": ("first_attempt", "first_seen", True),
    "last": ("last_attempt", "last_seen", True),
    "early": ("early_attempts", "strikes", True),
    "expires": ("expires_at", "expires_at", False),
}

# Rows fetched at a time.
FETCHED = 500

# The most rows that are counted if an operator only needs to know that there are many.
COUNTED = 10000

# How long a reader of a list may look at one page, in seconds.
PAGING = 86400

# The states of a triplet under the current settings.
STATES = {policy.EARLY: "waits", policy.DUE: "due", policy.KNOWN: "passed", policy.OVER: "over"}

# The state of a row that stands not for a triplet, but for a message whose first recipient passed
# (``check.remember``).
MESSAGE = "message"

Condition = ColumnElement[bool]


def read_network(text: str) -> Network:
    """Returns the network of clients that TEXT writes.

    TEXT is ``192.0.2.0/23``, ``2001:db8::/32``, or one address. Bits after the prefix are ignored.
    Raises ValueError.
    """
    try:
        written = patterns.written_network(text)
    except patterns.WrongPrefix as error:
        raise ValueError(f"{text}: the prefix length is no number from 0 to {error.bits}") from None
    except ValueError:
        raise ValueError(f"{text}: not a network (as 192.0.2.0/24 or 2001:db8::/32)") from None
    try:
        bits, value, prefix, _note = patterns.of_clients(*written)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    return Network(bits, value, prefix)


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted: those that match all given values.

    ``address`` and ``domain`` are bytes (see ``of_address``, ``of_domain``); first attempts are
    between ``since`` and ``until``, in seconds since 1970.
    """

    address: bytes | None = None
    domain: bytes | None = None
    network: Network | None = None
    since: int | None = None
    until: int | None = None


# --- conditions -----------------------------------------------------------------------------------


def of_address(address: bytes, table: Table = triplet) -> Condition:
    """Returns the condition of rows of TABLE with a sender or recipient like ADDRESS.

    ADDRESS is normalised as theirs. It is a whole address, ``user@``, ``@domain``, or (without
    ``@``) a domain or an address without one; empty is the null sender.
    """
    address = normalise.mail_address(address)
    if not address:
        return table.c.sender == ""
    senders = {
        normalise.fold_sender(address),
        earlier.fold_sender(address),
        *_with_folded_hosts(address),
    }
    if CUT.encode() in address:
        senders.add(address)
    return or_(
        *(_is_like(table.c.sender, sender) for sender in sorted(senders)),
        _is_like(table.c.recipient, address),
    )


def _with_folded_hosts(address: bytes) -> list[bytes]:
    """Returns ADDRESS with the hosts of its domain folded as greylisting may have done.

    Returns nothing if it has a local part.
    """
    local, at, domain = address.rpartition(b"@")
    return [] if local else [at + folding.fold_hosts(domain)]


def _is_like(column: Column[str], address: bytes) -> Condition:
    """Returns the condition that the text in COLUMN is ADDRESS, whole or cut.

    Rows of an earlier release are not cut.
    """
    if address.startswith(b"@"):
        return or_(*(column.endswith(text, autoescape=True) for text in _texts(address)))
    if address.endswith(b"@"):
        # The local part is all before the last @, and may contain more of them.
        return or_(
            *(
                and_(
                    column.startswith(text, autoescape=True),
                    func.substr(column, len(text) + 1).not_like("%@%"),
                )
                for text in _texts(address)
            )
        )
    if b"@" in address:
        return column.in_(_texts(address))
    return or_(column.in_(_texts(address)), _is_like(column, b"@" + address))


def _texts(address: bytes) -> list[str]:
    """Returns the texts that the table may have for ADDRESS, which may be a cut one from a list."""
    texts = [show_address(address), show(address)]
    if CUT.encode() in address:
        texts.append(show(address).replace(show(CUT.encode()), CUT))
    return list(dict.fromkeys(texts))


def of_domain(domain: bytes, table: Table = triplet) -> Condition:
    """Returns the condition of rows of TABLE with a sender or recipient at DOMAIN or below it."""
    name = normalise.host_name(domain.lstrip(b"@."))
    senders = dict.fromkeys((name, folding.fold_hosts(name)))
    return or_(
        *(_is_below(table.c.sender, show(sender)) for sender in senders),
        _is_below(table.c.recipient, show(name)),
    )


def _is_below(column: Column[str], name: str) -> Condition:
    below = and_(column.endswith("." + name, autoescape=True), column.contains("@"))
    return or_(column.endswith("@" + name, autoescape=True), below)


def of_network(column: Column[str], network: Network) -> Condition:
    """Returns the condition of rows whose network or address in COLUMN overlaps with NETWORK.

    For IPv6 other rows may match too.
    """
    above = [
        normalise.network(network.bits, network.value, length)
        for length in range(network.prefix + 1)
    ]
    within = _within_ipv4 if network.bits == normalise.IPV4_BITS else _perhaps_within_ipv6
    return or_(column.in_(above), within(column, network))


def _within_ipv4(column: Column[str], network: Network) -> Condition:
    octets = [str(octet) for octet in network.value.to_bytes(4)]
    whole, bits = divmod(network.prefix, 8)
    if not network.prefix:
        return column.not_like("%:%")
    lead = ".".join(octets[:whole])
    if not bits:
        return (
            column.startswith(lead + ".")
            if whole < 4
            else or_(column == lead, column.startswith(lead + "/"))
        )
    low = int(octets[whole])
    lead += "." if lead else ""
    ends = (".%",) if whole < 3 else ("", "/%")
    patterns = [
        lead + octet + end for octet in _octets(low, low + (1 << 8 - bits) - 1) for end in ends
    ]
    return and_(column.startswith(lead), or_(*(column.like(pattern) for pattern in patterns)))


def _octets(low: int, high: int) -> Iterator[str]:
    """Yields LIKE patterns of the numbers from LOW to HIGH.

    Ten numbers that begin with a multiple of ten are one pattern.
    """
    number = low
    while number <= high:
        if number >= 10 and number % 10 == 0 and number + 9 <= high:
            yield f"{number // 10}_"
            number += 10
        else:
            yield str(number)
            number += 1


def _perhaps_within_ipv6(column: Column[str], network: Network) -> Condition:
    """Only the groups before the first zero, which may be written ``::``, are certain."""
    groups = [network.value >> shift & 0xFFFF for shift in range(112, -1, -16)][
        : min(network.prefix // 16, 7)
    ]
    certain = groups[: groups.index(0)] if 0 in groups else groups
    return (
        column.startswith("".join(f"{group:x}:" for group in certain))
        if certain
        else column.like("%:%")
    )


# --- lists ----------------------------------------------------------------------------------------


def rows(
    engine: Engine,
    which: str,
    wanted: Filter,
    now: int,
    sort: str = "last",
    reverse: bool = False,
    limit: int = 0,
) -> Generator[RowMapping, None, None]:
    """Yields the rows of the list WHICH (one of LISTS) that match WANTED, in the order of SORT.

    REVERSE reverses the order. LIMIT is the most rows; 0: all.
    """
    exact = wanted.network is None or wanted.network.bits == normalise.IPV4_BITS
    query = listed(which, wanted, now, sort, reverse)
    if limit and exact:
        query = query.limit(limit)
    with reading(engine).connect() as connection:
        if engine.dialect.name == "mysql":
            # Its default timeout would end the query of an operator who reads page by page.
            connection.exec_driver_sql(f"SET SESSION net_write_timeout = {PAGING}")
        read = connection.execution_options(yield_per=FETCHED).execute(query).mappings()
        fitting = (row for row in read if exact or _overlaps(row, which, wanted.network))
        yield from islice(fitting, limit or None)


def listed(
    which: str, wanted: Filter, now: int, sort: str, reverse: bool
) -> Select[tuple[object, ...]]:
    """Returns the query of ``rows``."""
    table = table_of(which)
    of_triplets, of_clients, falling = SORTS[sort]
    # Of correspondents there are neither early attempts nor strikes.
    column = table.c.get(of_triplets if table is triplet else of_clients, table.c.expires_at)
    order = column.desc() if falling != reverse else column.asc()
    return select(table).where(_belongs(which, now), *_conditions(table, wanted)).order_by(order)


def _belongs(which: str, now: int) -> Condition:
    """Returns the condition that a row belongs to the list WHICH at NOW."""
    return {
        TRIPLETS: true(),
        "pending": triplet.c.passed_at.is_(None),
        "passed": triplet.c.passed_at.is_not(None),
        "clients": true(),
        "struck": client.c.struck_until > now,
        CORRESPONDENTS: true(),
    }[which]


def count(engine: Engine, which: str, wanted: Filter, now: int) -> int:
    """Returns how many rows ``rows`` would yield."""
    if wanted.network is not None and wanted.network.bits != normalise.IPV4_BITS:
        return sum(1 for _row in rows(engine, which, wanted, now))
    table = table_of(which)
    query = (
        select(func.count())
        .select_from(table)
        .where(_belongs(which, now), *_conditions(table, wanted))
    )
    with reading(engine).connect() as connection:
        return connection.execute(query).scalar_one()


def table_of(which: str) -> Table:
    """Returns the table of the list WHICH."""
    if which == DOMAINS:
        return domain
    if which == CORRESPONDENTS:
        return correspondent
    return client if which in ("clients", "struck") else triplet


def _conditions(table: Table, wanted: Filter) -> Iterator[Condition]:
    place, first = (
        (triplet.c.network, triplet.c.first_attempt)
        if table is triplet
        else (client.c.address, table.c.first_seen)
    )
    if wanted.since is not None:
        yield first >= wanted.since
    if wanted.until is not None:
        yield first <= wanted.until
    if wanted.network is not None:
        yield of_network(place, wanted.network)
    if wanted.domain is not None:
        yield of_domain(wanted.domain, table)
    if wanted.address is not None:
        yield of_address(wanted.address, table)


def _overlaps(row: RowMapping, which: str, network: Network | None) -> bool:
    place = row["network"] if table_of(which) is triplet else row["address"]
    return network is None or network.overlaps(read_network(place))


# --- single rows ----------------------------------------------------------------------------------


def triplets_by_key(engine: Engine, digits: str) -> list[RowMapping]:
    """Returns the triplets, two at most, whose key begins with the hexadecimal DIGITS.

    Raises ValueError.
    """
    if len(digits) > 2 * DIGEST or digits.strip("0123456789abcdef"):
        raise ValueError(
            f"{digits}: not the key of a triplet ({2 * DIGEST} hexadecimal digits) or its beginning"
        )
    low, high = (bytes.fromhex(digits.ljust(2 * DIGEST, fill)) for fill in "0f")
    key = triplet.c.triplet_key
    with reading(engine).connect() as connection:
        return list(
            connection.execute(select(triplet).where(key >= low, key <= high).limit(2)).mappings()
        )


def beginning(engine: Engine, text: str, digits: int, limit: int) -> list[str]:
    """Returns triplets' keys, cut to DIGITS digits, and clients' addresses that begin with TEXT.

    LIMIT is the most of each.
    """
    beginnings: list[str] = []
    key, address = triplet.c.triplet_key, client.c.address
    with reading(engine).connect() as connection:
        if len(text) <= 2 * DIGEST and not text.strip("0123456789abcdef"):
            low, high = (bytes.fromhex(text.ljust(2 * DIGEST, fill)) for fill in "0f")
            keys = select(key).where(key >= low, key <= high).order_by(key).limit(limit)
            matching = connection.execute(keys).scalars()
            beginnings += [bytes(each).hex()[:digits] for each in matching]
        clients = select(address).where(address.startswith(text, autoescape=True)).limit(limit)
        return beginnings + list(connection.execute(clients).scalars())


def client_by_address(engine: Engine, address: str) -> RowMapping | None:
    """Returns the row of the client ADDRESS, in canonical form; None if there is none."""
    with reading(engine).connect() as connection:
        return (
            connection.execute(select(client).where(client.c.address == address))
            .mappings()
            .one_or_none()
        )


def of_same_pair(engine: Engine, row: RowMapping) -> tuple[int, bool]:
    """Returns how many triplets with sender and recipient of ROW are pending from other networks.

    Also returns True if there may be more: at most COUNTED rows are read.
    """
    low, high = pair_keys(row["triplet_key"])
    near = (
        select(triplet)
        .where(triplet.c.triplet_key >= low, triplet.c.triplet_key < high)
        .order_by(triplet.c.triplet_key)
        .limit(COUNTED)
        .subquery("near")
    )
    other = and_(
        near.c.sender == row["sender"],
        near.c.recipient == row["recipient"],
        near.c.network != row["network"],
        near.c.passes == 0,
    )
    with reading(engine).connect() as connection:
        every, others = connection.execute(
            select(func.count(), func.count(case((other, 1)))).select_from(near)
        ).one()
    return others, every == COUNTED


def waits(row: RowMapping, now: int) -> bool:
    """Whether the ROW of a triplet waits at NOW, and its retry window is not over."""
    return row["passed_at"] is None and row["expires_at"] >= now and not message_of(row)


def waiting_of_pair(engine: Engine, asked: Asked, now: int) -> list[RowMapping]:
    """Returns the rows that wait at NOW with sender and recipient of ASKED, from any network.

    At most COUNTED rows are read. The null sender is no pair: see ``Asked``.
    """
    if not asked.triplet.sender:
        return []
    low, high = pair_keys(asked.key)
    near = (
        select(triplet)
        .where(triplet.c.triplet_key >= low, triplet.c.triplet_key < high)
        .order_by(triplet.c.triplet_key)
        .limit(COUNTED)
    )
    with reading(engine).connect() as connection:
        return [
            row
            for row in connection.execute(near).mappings()
            if waits(row, now) and (row["sender"], row["recipient"]) == asked.shown
        ]


def of_same_network(engine: Engine, network: str) -> tuple[int, int, bool]:
    """Returns how many triplets of a client NETWORK are pending, and how many passed.

    NETWORK is written as in the table. Also returns True if there may be more: at most COUNTED of
    each are counted; pending ones are found by an index.
    """
    counts = []
    with reading(engine).connect() as connection:
        for which in (triplet.c.passes == 0, triplet.c.passes > 0):
            near = (
                select(triplet.c.passes)
                .where(triplet.c.network == network, which)
                .limit(COUNTED)
                .subquery("near")
            )
            counts.append(connection.execute(select(func.count()).select_from(near)).scalar_one())
    waiting, passed = counts
    return waiting, passed, COUNTED in counts


def as_today(text: str) -> str:
    """Returns the address TEXT of a row as it is written today. Some rows have long ones whole."""
    if CUT in text:
        return text
    return show_address(unshown(text.encode("utf-8", "surrogateescape")))


def message_of(row: RowMapping) -> str:
    """Returns the message that the ROW of a triplet stands for, as ``192.0.2.1 port 25025``.

    Empty for a row of a triplet.
    """
    mark = show(OF_MESSAGE)
    recipient = str(row["recipient"])
    return (
        recipient.removeprefix(mark).replace(show(b" "), " ") if recipient.startswith(mark) else ""
    )


def terms_of(row: RowMapping, settings: Settings, now: int) -> tuple[str, int, int]:
    """Returns the state (one of STATES) of a triplet's ROW under SETTINGS at NOW.

    Also returns two times, in seconds since 1970. For a pending triplet they are the first and the
    last second at which a retry passes; for one that passed its last use, and the end of its
    lifetime; for a MESSAGE the time in which it lets later recipients pass. A rule's delay is not
    known here: which rule matches depends on the mail.
    """
    if message_of(row):
        last = row["last_attempt"]
        state = MESSAGE if now - last <= unknown.MESSAGE_TIME else STATES[policy.OVER]
        return state, last, last + unknown.MESSAGE_TIME
    known = TripletRow(
        row["first_attempt"],
        row["last_attempt"],
        row["early_attempts"],
        row["passes"],
        row["passed_at"],
    )
    terms = Timings(settings)
    state = STATES[policy.phase(known, terms, now)]
    if known.passed is not None:
        return state, known.last, known.last + terms.lifetime
    first = min(known.first, now)
    return state, first + terms.delay, first + terms.retry_window


# --- forgetting -----------------------------------------------------------------------------------


def forget_triplet(engine: Engine, key: bytes) -> int:
    """Removes the triplet of KEY; returns how many were removed."""
    return _removed(engine, triplet, triplet.c.triplet_key == key)


def forget_client(engine: Engine, address: str) -> int:
    """Removes the row of the client ADDRESS, passes and strikes; returns how many were removed."""
    return _removed(engine, client, client.c.address == address)


def forget_correspondent(engine: Engine, key: bytes, dry_run: bool = False) -> int:
    """Removes the correspondent of KEY, or only looks; returns how many are removed."""
    if not dry_run:
        return _removed(engine, correspondent, correspondent.c.pair_key == key)
    known = select(func.count()).where(correspondent.c.pair_key == key)
    with reading(engine).connect() as connection:
        return connection.execute(known).scalar_one()


def forget_all(
    engine: Engine,
    which: str,
    wanted: Filter,
    now: int,
    batch: int = BATCH,
    rest: Callable[[float], None] = sleep,
) -> Iterator[int]:
    """Removes the rows of the list WHICH, or of all TRIPLETS, that match WANTED.

    Yields the number of removed rows after each batch, a short transaction. Rows are found without
    a lock. Between two batches it pauses for as long as one took (REST is called with seconds).
    """
    table = table_of(which)
    key = next(iter(table.primary_key))
    place = triplet.c.network if table is triplet else key
    conditions = [_belongs(which, now), *_conditions(table, wanted)]
    last: list[Condition] = []
    while True:
        started = monotonic()
        query = (
            select(key, place.label("place")).where(*conditions, *last).order_by(key).limit(batch)
        )
        with reading(engine).connect() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        last = [key > rows[-1][0]]
        keys = [
            row[0]
            for row in rows
            if wanted.network is None or wanted.network.overlaps(read_network(row.place))
        ]
        yield _removed(engine, table, key.in_(keys)) if keys else 0
        rest(monotonic() - started)


def _removed(engine: Engine, table: Table, which: Condition) -> int:
    """Removes the rows of TABLE that match WHICH; returns how many."""

    def attempt() -> int:
        with engine.begin() as connection:
            return connection.execute(delete(table).where(which)).rowcount

    return errors.retry_on_conflict(attempt)
