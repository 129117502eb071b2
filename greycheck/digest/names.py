"""Verifies clients' names: the address has a name (PTR) that has the address (RFC 8601 2.7.3).

Bounded in the number of clients and in time; whoever is not asked is as one without a name.
"""

import re
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from greycheck.log import show
from greycheck.normalise import IPV4_BITS, address_bits
from greycheck.spf.dns import Failed, Resolver

# How many clients are asked for, at once and in all; how long that may take, and of how many names
# of one client, in seconds.
THREADS, CLIENTS, SECONDS, NAMES = 8, 100, 20.0, 3


def verified(
    resolver: Resolver, clients: Iterable[str], seconds: float = SECONDS
) -> dict[str, str]:
    """Returns the verified name of each of CLIENTS that has one, all asked within SECONDS.

    A name that only spells the address says nothing of who has it, and is left out.
    """
    some = list(dict.fromkeys(clients))[:CLIENTS]
    ends = time.monotonic() + seconds
    with ThreadPoolExecutor(THREADS) as threads:
        names = threads.map(lambda client: name_of(resolver, client, ends), some)
        return {client: name for client, name in zip(some, names, strict=True) if name}


def name_of(resolver: Resolver, client: str, ends: float) -> str:
    """Returns the verified name of CLIENT, else empty; asks until ENDS (``time.monotonic``)."""
    bits, value = address_bits(client)
    kind, family = ("A", socket.AF_INET) if bits == IPV4_BITS else ("AAAA", socket.AF_INET6)
    try:
        for name in resolver.ask(_reverse(bits, value), "PTR", ends).records[:NAMES]:
            said = resolver.ask(name, kind, ends).records if name else ()
            if socket.inet_pton(family, client) in said and not is_spelt(name, client):
                return show(name)
    except Failed:
        pass
    return ""


def _reverse(bits: int, value: int) -> bytes:
    if bits == IPV4_BITS:
        octets = (b"%d" % (value >> shift & 0xFF) for shift in range(0, bits, 8))
        return b".".join(octets) + b".in-addr.arpa"
    return b".".join(b"%x" % (value >> shift & 0xF) for shift in range(0, bits, 4)) + b".ip6.arpa"


def is_spelt(name: bytes, client: str) -> bool:
    """True if NAME has all numbers of an IPv4 CLIENT in it, as providers name their customers."""
    if ":" in client:
        return False
    numbers = {int(each) for each in re.findall(rb"[0-9]+", name) if len(each) <= 3}
    return numbers.issuperset(map(int, client.split(".")))
