"""What is kept of one domain, for people: its state, and its networks as they are written."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, select

from greycheck.resolve import due
from greycheck.resolve.keeping import MOST_ROWS
from greycheck.resolve.work import text_of
from greycheck.store.admin.engine import reading
from greycheck.store.base import DIGEST
from greycheck.store.schema.tables import authorised, spf


@dataclass(frozen=True)
class Said:
    """What a domain said: its STATE and WHY, when, and the NETWORKS that may send for it."""

    state: str
    why: str
    per_client: bool
    answered_at: int | None
    failures: int
    next_at: int
    networks: list[str]


def said(engine: Engine, key: bytes, now: int) -> Said | None:
    """Returns what is kept at NOW of the domain of KEY; None where nothing is."""
    here = authorised.c.network_key.between(key + bytes(16), key + b"\xff" * 16)
    ranges = (
        select(authorised.c.network_key, authorised.c.last)
        .where(here, authorised.c.expires_at > now, authorised.c.source != "refused")
        .order_by(authorised.c.network_key)
        .limit(MOST_ROWS)
    )
    with reading(engine).connect() as connection:
        row = due.told(connection, key)
        why = connection.execute(select(spf.c.why).where(spf.c.domain_key == key)).scalar()
        if row is None:
            return None
        networks = [
            network
            for first, last in connection.execute(ranges)
            for network in networks_of(bytes(first)[DIGEST:], bytes(last))
        ]
    return Said(
        row.state,
        why or "",
        row.per_client,
        row.answered_at,
        row.failures,
        row.next_at,
        networks,
    )


def networks_of(first: bytes, last: bytes) -> Iterator[str]:
    """Yields the networks that the range from FIRST to LAST is made of, as they are written."""
    ends = ipaddress.ip_address(text_of(first)), ipaddress.ip_address(text_of(last))
    if ends[0].version != ends[1].version:  # nothing says so
        yield f"{ends[0]}-{ends[1]}"
        return
    for network in ipaddress.summarize_address_range(*ends):
        yield str(network)
