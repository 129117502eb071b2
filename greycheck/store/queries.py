"""What operators ask the store: lists of triplets and clients, single rows, and forgetting them.

A list reads its table from end to end (0.1 s of a million rows) and keeps the few rows that are wanted; only by expiry it follows an
index. Conditions are portable Core. Of a filter by IPv6 network the database sees no more than what is certain about its text, and
``Network.overlaps`` says the rest. Rows come as they are read: nothing here holds more than one batch.

Diagnostics: SQLAlchemy's; ``ValueError`` of a network or a key that is none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import monotonic, sleep

from sqlalchemy import ColumnElement, Engine, RowMapping, Select, Table, and_, case, delete, func, or_, select, true
from sqlalchemy.sql.schema import Column

from greycheck import earlier, folding, normalise, patterns, policy
from greycheck.envelope import OF_MESSAGE
from greycheck.log import CUT, show, show_address
from greycheck.policy import Terms, TripletRow
from greycheck.settings import Settings
from greycheck.store import faults
from greycheck.store.engine import reading
from greycheck.store.expiry import BATCH
from greycheck.store.lean import DIGEST, pair_keys
from greycheck.store.tables import client, triplet

LISTS = ("pending", "passed", "clients", "struck")

# Besides them: all triplets, those that wait and those that passed.
TRIPLETS = "triplets"

# What lists may be sorted by: the column of triplets, that of clients, and whether the largest comes first.
SORTS = {
    "first": ("first_attempt", "first_seen", True),
    "last": ("last_attempt", "last_seen", True),
    "early": ("early_attempts", "strikes", True),
    "expires": ("expires_at", "expires_at", False),
}

# Rows fetched at once.
FETCHED = 500

# How far rows are counted of which an operator only wants to know if they are many.
COUNTED = 10000

# How long a reader of a list may look at one page, in seconds.
PAGING = 86400

# What a row is called under the settings of the moment.
STATES = {policy.EARLY: "waits", policy.DUE: "due", policy.KNOWN: "passed", policy.OVER: "over"}

# What a row is called that is no triplet, but stands for a message whose first recipient passed (``check.remember``).
MESSAGE = "message"

Condition = ColumnElement[bool]


class Network:
    """The addresses that share their first ``prefix`` bits."""

    def __init__(self, text: str) -> None:
        """TEXT is ``192.0.2.0/23``, ``2001:db8::/32``, or one address. Bits behind the prefix do not count. Raises ValueError."""
        address, slash, prefix = text.partition("/")
        try:
            bits, value = normalise.written_bits(address)
        except ValueError:
            raise ValueError(f"{text}: not a network (as 192.0.2.0/24 or 2001:db8::/32)") from None
        if slash and not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and int(prefix) <= bits):
            raise ValueError(f"{text}: the prefix length is no number from 0 to {bits}")
        try:
            self.bits, value, self.prefix, _note = patterns.of_clients(bits, value, int(prefix) if slash else bits)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None
        self.host_bits = self.bits - self.prefix
        self.value = value >> self.host_bits << self.host_bits

    def overlaps(self, other: "Network") -> bool:
        """Whether one of the two lies in the other."""
        shift = max(self.host_bits, other.host_bits)
        return self.bits == other.bits and self.value >> shift == other.value >> shift


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted: all that each given value fits.

    ``address`` and ``domain`` are bytes (see ``of_address``, ``of_domain``); first attempts lie from ``since`` to ``until``, in
    seconds since 1970.
    """

    address: bytes | None = None
    domain: bytes | None = None
    network: Network | None = None
    since: int | None = None
    until: int | None = None


# --- conditions ---------------------------------------------------------------------------------------------------------


def of_address(address: bytes) -> Condition:
    """Triplets with a sender or recipient like ADDRESS, which is normalised as theirs were.

    It is a whole address, ``user@``, ``@domain``, or (without ``@``) a domain or an address that has none; empty is the null sender.
    """
    address = normalise.mail_address(address)
    if not address:
        return triplet.c.sender == ""
    senders = {normalise.fold_sender(address), earlier.fold_sender(address), *_with_folded_hosts(address)}
    if CUT.encode() in address:
        senders.add(address)
    return or_(
        *(_is_like(triplet.c.sender, sender) for sender in sorted(senders)), _is_like(triplet.c.recipient, address)
    )


def _with_folded_hosts(address: bytes) -> list[bytes]:
    """The domain in ADDRESS, where there is no more in it, as greylisting may have folded it."""
    local, at, domain = address.rpartition(b"@")
    return [] if local else [at + folding.fold_hosts(domain)]


def _is_like(column: Column[str], address: bytes) -> Condition:
    """Whether the text in COLUMN is ADDRESS: whole or cut, as rows of an earlier release are not."""
    if address.startswith(b"@"):
        return or_(*(column.endswith(text, autoescape=True) for text in _texts(address)))
    if address.endswith(b"@"):
        # The local part is all before the last @, and may hold others.
        return or_(
            *(
                and_(column.startswith(text, autoescape=True), func.substr(column, len(text) + 1).not_like("%@%"))
                for text in _texts(address)
            )
        )
    if b"@" in address:
        return column.in_(_texts(address))
    return or_(column.in_(_texts(address)), _is_like(column, b"@" + address))


def _texts(address: bytes) -> list[str]:
    """How the table may have ADDRESS, which may be written as a list shows it where it is cut."""
    found = [show_address(address), show(address)]
    if CUT.encode() in address:
        found.append(show(address).replace(show(CUT.encode()), CUT))
    return list(dict.fromkeys(found))


def of_domain(domain: bytes) -> Condition:
    """Triplets with a sender or recipient at DOMAIN or below it."""
    name = normalise.host_name(domain.lstrip(b"@."))
    senders = dict.fromkeys((name, folding.fold_hosts(name)))
    return or_(
        *(_is_below(triplet.c.sender, show(sender)) for sender in senders), _is_below(triplet.c.recipient, show(name))
    )


def _is_below(column: Column[str], name: str) -> Condition:
    below = and_(column.endswith("." + name, autoescape=True), column.contains("@"))
    return or_(column.endswith("@" + name, autoescape=True), below)


def of_network(column: Column[str], network: Network) -> Condition:
    """Rows whose network or address in COLUMN overlaps with NETWORK; of IPv6 perhaps others besides."""
    above = [normalise.network(network.bits, network.value, length) for length in range(network.prefix + 1)]
    within = _within_ipv4 if network.bits == normalise.IPV4_BITS else _perhaps_within_ipv6
    return or_(column.in_(above), within(column, network))


def _within_ipv4(column: Column[str], network: Network) -> Condition:
    octets = [str(octet) for octet in network.value.to_bytes(4)]
    whole, bits = divmod(network.prefix, 8)
    if not network.prefix:
        return column.not_like("%:%")
    lead = ".".join(octets[:whole])
    if not bits:
        return column.startswith(lead + ".") if whole < 4 else or_(column == lead, column.startswith(lead + "/"))
    low = int(octets[whole])
    lead += "." if lead else ""
    ends = (".%",) if whole < 3 else ("", "/%")
    patterns = [lead + octet + end for octet in _octets(low, low + (1 << 8 - bits) - 1) for end in ends]
    return and_(column.startswith(lead), or_(*(column.like(pattern) for pattern in patterns)))


def _octets(low: int, high: int) -> Iterator[str]:
    """LIKE patterns of the numbers from LOW to HIGH; whole tens are one."""
    number = low
    while number <= high:
        if number >= 10 and number % 10 == 0 and number + 9 <= high:
            yield f"{number // 10}_"
            number += 10
        else:
            yield str(number)
            number += 1


def _perhaps_within_ipv6(column: Column[str], network: Network) -> Condition:
    """The groups before the first zero, which may be spelt ``::``, are certain."""
    groups = [network.value >> shift & 0xFFFF for shift in range(112, -1, -16)][: min(network.prefix // 16, 7)]
    certain = groups[: groups.index(0)] if 0 in groups else groups
    return column.startswith("".join(f"{group:x}:" for group in certain)) if certain else column.like("%:%")


# --- lists --------------------------------------------------------------------------------------------------------------


def rows(
    engine: Engine, which: str, wanted: Filter, now: int, sort: str = "last", reverse: bool = False, limit: int = 0
) -> Iterator[RowMapping]:
    """The rows of the list WHICH (one of LISTS) that are WANTED, in the order of SORT or its REVERSE; LIMIT of them, or (0) all."""
    exact = wanted.network is None or wanted.network.bits == normalise.IPV4_BITS
    query = listed(which, wanted, now, sort, reverse)
    if limit and exact:
        query = query.limit(limit)
    with reading(engine).connect() as connection:
        if engine.dialect.name == "mysql":
            # It would give up an operator who reads page by page.
            connection.exec_driver_sql(f"SET SESSION net_write_timeout = {PAGING}")
        found = connection.execution_options(yield_per=FETCHED).execute(query).mappings()
        fitting = (row for row in found if exact or _overlaps(row, which, wanted.network))
        yield from islice(fitting, limit or None)


def listed(which: str, wanted: Filter, now: int, sort: str, reverse: bool) -> Select[tuple[object, ...]]:
    """The query of ``rows``."""
    table = table_of(which)
    of_triplets, of_clients, falling = SORTS[sort]
    column = table.c[of_triplets if table is triplet else of_clients]
    order = column.desc() if falling != reverse else column.asc()
    return select(table).where(_belongs(which, now), *_conditions(table, wanted)).order_by(order)


def _belongs(which: str, now: int) -> Condition:
    """Whether a row belongs to the list WHICH at NOW."""
    return {
        TRIPLETS: true(),
        "pending": triplet.c.passed_at.is_(None),
        "passed": triplet.c.passed_at.is_not(None),
        "clients": true(),
        "struck": client.c.struck_until > now,
    }[which]


def count(engine: Engine, which: str, wanted: Filter, now: int) -> int:
    """How many rows ``rows`` would give."""
    if wanted.network is not None and wanted.network.bits != normalise.IPV4_BITS:
        return sum(1 for _row in rows(engine, which, wanted, now))
    table = table_of(which)
    query = select(func.count()).select_from(table).where(_belongs(which, now), *_conditions(table, wanted))
    with reading(engine).connect() as connection:
        return connection.execute(query).scalar_one()


def table_of(which: str) -> Table:
    """The table of the list WHICH."""
    return client if which in ("clients", "struck") else triplet


def _conditions(table: Table, wanted: Filter) -> Iterator[Condition]:
    place, first = (
        (triplet.c.network, triplet.c.first_attempt) if table is triplet else (client.c.address, client.c.first_seen)
    )
    if wanted.since is not None:
        yield first >= wanted.since
    if wanted.until is not None:
        yield first <= wanted.until
    if wanted.network is not None:
        yield of_network(place, wanted.network)
    if wanted.domain is not None:
        yield of_domain(wanted.domain)
    if wanted.address is not None:
        yield of_address(wanted.address)


def _overlaps(row: RowMapping, which: str, network: Network | None) -> bool:
    place = row["network"] if table_of(which) is triplet else row["address"]
    return network is None or network.overlaps(Network(place))


# --- single rows --------------------------------------------------------------------------------------------------------


def triplets_by_key(engine: Engine, digits: str) -> list[RowMapping]:
    """The triplets, two at most, whose key begins with these hexadecimal DIGITS. Raises ValueError."""
    if len(digits) > 2 * DIGEST or digits.strip("0123456789abcdef"):
        raise ValueError(f"{digits}: not the key of a triplet ({2 * DIGEST} hexadecimal digits) or its beginning")
    low, high = (bytes.fromhex(digits.ljust(2 * DIGEST, fill)) for fill in "0f")
    key = triplet.c.triplet_key
    with reading(engine).connect() as connection:
        return list(connection.execute(select(triplet).where(key >= low, key <= high).limit(2)).mappings())


def beginning(engine: Engine, text: str, digits: int, limit: int) -> list[str]:
    """The keys of triplets, in so many DIGITS, and the addresses of clients that begin with TEXT: LIMIT of each at most."""
    found: list[str] = []
    key, address = triplet.c.triplet_key, client.c.address
    with reading(engine).connect() as connection:
        if len(text) <= 2 * DIGEST and not text.strip("0123456789abcdef"):
            low, high = (bytes.fromhex(text.ljust(2 * DIGEST, fill)) for fill in "0f")
            keys = select(key).where(key >= low, key <= high).order_by(key).limit(limit)
            found += [bytes(each).hex()[:digits] for each in connection.execute(keys).scalars()]
        clients = select(address).where(address.startswith(text, autoescape=True)).limit(limit)
        return found + list(connection.execute(clients).scalars())


def client_by_address(engine: Engine, address: str) -> RowMapping | None:
    """The row of a client ADDRESS in its one spelling."""
    with reading(engine).connect() as connection:
        return connection.execute(select(client).where(client.c.address == address)).mappings().one_or_none()


def of_same_pair(engine: Engine, row: RowMapping) -> tuple[int, bool]:
    """How many triplets of the sender and recipient of ROW wait from other networks, and whether there may be more.

    No more than COUNTED rows are looked at.
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
        every, others = connection.execute(select(func.count(), func.count(case((other, 1)))).select_from(near)).one()
    return others, every == COUNTED


def of_same_network(engine: Engine, network: str) -> tuple[int, int, bool]:
    """How many triplets of a client NETWORK, as it is written in the table, are waiting, how many have passed, and if there may be more.

    No more than COUNTED of each are counted; those that wait are found by an index.
    """
    counts = []
    with reading(engine).connect() as connection:
        for which in (triplet.c.passes == 0, triplet.c.passes > 0):
            near = select(triplet.c.passes).where(triplet.c.network == network, which).limit(COUNTED).subquery("near")
            counts.append(connection.execute(select(func.count()).select_from(near)).scalar_one())
    waiting, passed = counts
    return waiting, passed, COUNTED in counts


def message_of(row: RowMapping) -> str:
    """Which message the ROW of a triplet stands for, as ``192.0.2.1 port 25025``; of a triplet nothing."""
    mark = show(OF_MESSAGE)
    recipient = str(row["recipient"])
    return recipient.removeprefix(mark).replace(show(b" "), " ") if recipient.startswith(mark) else ""


def terms_of(row: RowMapping, settings: Settings, now: int) -> tuple[str, int, int]:
    """What a triplet's ROW is under SETTINGS at NOW (one of STATES), and from when until when (seconds since 1970) that counts.

    Of a waiting one: when a retry passes, from the first second to the last. Of one that passed: its last use, and its lifetime's end.
    The delay of a rule is not known here: which rule matches depends on the mail. A MESSAGE lets its later recipients pass until then.
    """
    if message_of(row):
        last = row["last_attempt"]
        state = MESSAGE if now - last <= policy.MESSAGE_TIME else STATES[policy.OVER]
        return state, last, last + policy.MESSAGE_TIME
    known = TripletRow(
        row["first_attempt"], row["last_attempt"], row["early_attempts"], row["passes"], row["passed_at"]
    )
    terms = Terms(settings)
    state = STATES[policy.phase(known, terms, now)]
    if known.passed is not None:
        return state, known.last, known.last + terms.lifetime
    first = min(known.first, now)
    return state, first + terms.delay, first + terms.retry_window


# --- forgetting ---------------------------------------------------------------------------------------------------------


def forget_triplet(engine: Engine, key: bytes) -> int:
    """Removes the triplet of KEY; returns how many there were."""
    return _removed(engine, triplet, triplet.c.triplet_key == key)


def forget_client(engine: Engine, address: str) -> int:
    """Removes the row of a client ADDRESS, passes and strikes; returns how many there were."""
    return _removed(engine, client, client.c.address == address)


def forget_all(
    engine: Engine, which: str, wanted: Filter, now: int, batch: int = BATCH, rest: Callable[[float], None] = sleep
) -> Iterator[int]:
    """Removes the rows of the list WHICH, or of all TRIPLETS, that are WANTED; yields how many after each batch, a short transaction.

    It finds them without a lock, and rests between batches as long as one took (calling REST with seconds).
    """
    table = table_of(which)
    key, place = (triplet.c.triplet_key, triplet.c.network) if table is triplet else (client.c.address,) * 2
    conditions = [_belongs(which, now), *_conditions(table, wanted)]
    last: list[Condition] = []
    while True:
        started = monotonic()
        query = select(key, place.label("place")).where(*conditions, *last).order_by(key).limit(batch)
        with reading(engine).connect() as connection:
            found = connection.execute(query).all()
        if not found:
            return
        last = [key > found[-1][0]]
        keys = [row[0] for row in found if wanted.network is None or wanted.network.overlaps(Network(row.place))]
        yield _removed(engine, table, key.in_(keys)) if keys else 0
        rest(monotonic() - started)


def _removed(engine: Engine, table: Table, which: Condition) -> int:
    """Removes the rows of TABLE for WHICH that is true; returns how many."""

    def attempt() -> int:
        with engine.begin() as connection:
            return connection.execute(delete(table).where(which)).rowcount

    return faults.again(attempt)
