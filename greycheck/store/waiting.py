"""What a store is asked of a mail that is not known: what else waits, whom its client may send for.

The parameters of these statements, and what their rows say. ``greycheck.unknown`` decides by it.
"""

import posix

from greycheck.normalise import address_bits
from greycheck.store.base import DIGEST, PAIR, Asked, digest, packed, text
from greycheck.unknown import NOBODY, DomainRow, Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from greycheck.settings import Settings


# The sources of ranges from which a client may send for the domain.
AUTHORISING = ("spf", "client", "pool")


# Stands in the place of a domain's key where the ranges of all providers are.
PROVIDERS = b"\xffproviders".ljust(DIGEST, b"\xff")


# Stands in its place where there is no domain. A digest may be the same, once in 2^128.
NO_DOMAIN = b"\0" * DIGEST


# Of how many correspondents one user's rows tell: a stolen account writes to any number.
CORRESPONDENTS = 5000


def correspondent_key(sender: bytes, recipient: bytes) -> bytes:
    """The key of mail from SENDER, folded, that answers what RECIPIENT wrote; both normalised.

    All keys of one recipient stand together, as those of a pair do.
    """
    user = digest(b"correspondent\0" + recipient)
    return user[:PAIR] + digest(b"correspondent\0" + sender + b"\0" + recipient)[:-PAIR]


def packed_range(network: str) -> tuple[bytes, bytes]:
    """The first and the last address of NETWORK, as ``192.0.2.0/24``, packed."""
    address, _, prefix = network.partition("/")
    bits, _value = address_bits(address)
    first = packed(address)
    hosts = (1 << (bits - int(prefix))) - 1
    return first, (int.from_bytes(first, "big") | hosts).to_bytes(16, "big")


def wants_identity(settings: "Settings") -> bool:
    """Whether anything of IDENTITY counts under SETTINGS."""
    return settings.identity != "no" or bool(settings.learn_outbound)


def origin_of(asked: Asked) -> bytes:
    """The origin by which IDENTITY is asked: without a domain that of the client alone."""
    return asked.origin or NO_DOMAIN + packed(asked.triplet.client)


def identity_parameters(asked: Asked, now: int, settings: "Settings") -> dict[str, object]:
    """The parameters of IDENTITY, by name, and those that POOL has besides."""
    origin = origin_of(asked)
    key = b""
    if settings.learn_outbound:
        key = correspondent_key(asked.triplet.sender, asked.triplet.recipient)
    return {
        "now": now,
        "origin": origin,
        "domain_key": origin[:DIGEST],
        "provider_origin": PROVIDERS + origin[DIGEST:],
        "provider_key": PROVIDERS,
        "pair_key": key,
    }


def identity(found: "Sequence[Any]", asked: Asked, now: int) -> Identity:
    """What IDENTITY found for what was ASKED, as far as it is valid at NOW."""
    if not any(found):
        return NOBODY
    passes, first, last, state, answered, until, *ranges, written, written_until = found
    end, source, own_until, provider_end, provider, provider_until = ranges
    address = packed(asked.triplet.client)
    is_told = state is not None and until > now
    said = text(state) if is_told else ""
    by = ""
    if end is not None and own_until > now and bytes(end) >= address:
        by = text(source)
        # What the domain itself says counts more than what was seen.
        if by not in AUTHORISING or (by == "pool" and said == "found"):
            by = ""
    is_provider = provider_end is not None and provider_until > now
    return Identity(
        None if passes is None else DomainRow(first, last, passes),
        said,
        answered if is_told else None,
        by,
        text(provider) if is_provider and bytes(provider_end) >= address else "",
        written if written is not None and written_until > now else None,
    )


def oldest_held(
    waiting: "Sequence[tuple[int, bytes | None]]", ranges: "Sequence[Sequence[Any]]", now: int
) -> int | None:
    """The oldest first attempt of what is WAITING from an origin that one of RANGES holds at NOW.

    RANGES are in order, and do not overlap.
    """
    from _bisect import bisect_right

    keys = [bytes(each[0]) for each in ranges]
    found: list[int] = []
    for first, origin in waiting:
        at = bisect_right(keys, origin) if origin else 0
        if origin and at:
            _key, last, source, expires = ranges[at - 1]
            if bytes(last) >= origin[DIGEST:] and expires > now and text(source) in AUTHORISING:
                found.append(first)
    return min(found, default=None)


def waiting_parameters(
    asked: "Asked", since: int, now: int, settings: "Settings"
) -> tuple[dict[str, object], int]:
    """The parameters of WAITING, by name, and by what its totals are to be multiplied."""
    ranges, times = sample(settings.pending_limit)
    values = pool_parameters(asked, since, now, settings) | crowd_parameters(asked, now, settings)
    for index, (low, high) in enumerate(ranges):
        values[f"low_{index}"], values[f"high_{index}"] = low, high
    return values, times


def pool_parameters(
    asked: "Asked", since: int, now: int, settings: "Settings"
) -> dict[str, object]:
    """The parameters of POOL, by name, with those of IDENTITY, and of NETWORKS."""
    pair_low, pair_high = pair_keys(asked.key) if asked.triplet.sender else (b"", b"")
    sender, recipient = asked.shown
    return identity_parameters(asked, now, settings) | {
        "pair_low": pair_low,
        "pair_high": pair_high,
        "sender": sender,
        "recipient": recipient,
        "network": asked.triplet.network,
        "since": since,
    }


def crowd_parameters(asked: "Asked", now: int, settings: "Settings") -> dict[str, object]:
    """The parameters of CROWD, by name."""
    return {"network": asked.triplet.network, "now": now, "network_limit": settings.network_limit}


def pair_keys(key: bytes) -> tuple[bytes, bytes]:
    """Returns the range of keys of the pair of KEY: from the first up to, not with, the second."""
    return key[:PAIR], key[:PAIR] + b"\xff" * (DIGEST - PAIR + 1)


# Of how many rows of a pair a pool is made at most: no provider has more networks, and whoever
# sends from more is none. And how many rows are read for them, those of the pair that have passed,
# and those that only stand beside it, among them.
POOL_MOST, POOL_READ = 100, 500


# How many ranges of a domain are read where the database cannot find the one that is wanted: more
# than one has.
DOMAIN_READ = 2500


# In how many ranges of keys waiting triplets are counted for an estimate of their number, how many
# are to be in each, and at how many the count ends: what was made to stand in one range is not
# worth more work than that. And how many rows of a range are read for it: where those that have
# passed are many times as many as may wait, the limit comes later, and a question still costs the
# same.
RANGES, SAMPLE, MOST, MOST_READ = 3, 128, 512, 2048


def sample(limit: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Returns the ranges of keys in which to count, and the factor for a total (0: do not count).

    Each range goes from its first key up to, not with, its second. Keys are digests and so spread
    evenly: of LIMIT waiting triplets about SAMPLE are in any range of their share of all keys.
    Nobody can foresee which ranges these are, and the middle count is taken: keys are not secret,
    and could be made to stand together. If LIMIT is small, the first range holds all.
    """
    nothing = (b"", b"")
    if not limit:
        return [nothing] * RANGES, 0
    times = limit // SAMPLE
    if limit <= MOST:
        return [(b"", b"\xff" * (DIGEST + 1)), nothing, nothing], 1
    width = (1 << 64) // times
    starts = [int.from_bytes(posix.urandom(8), "big") % ((1 << 64) - width) for _ in range(RANGES)]
    return [
        (start.to_bytes(8, "big"), (start + width).to_bytes(8, "big")) for start in starts
    ], times


def total(counts: "Sequence[int]", times: int) -> int:
    """How many wait in all, by the COUNTS in the ranges of ``sample``, and by what to multiply."""
    return counts[0] if times == 1 else sorted(counts)[len(counts) // 2] * times
