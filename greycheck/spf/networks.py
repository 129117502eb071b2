"""Sets of addresses as networks in text, as ``192.0.2.0/24`` and ``2001:db8::/32``.

Interface: ``written`` makes networks of ``Ranges``, ``pairs`` the first and the last address of
each network.
"""

import ipaddress
from collections.abc import Iterable

from greycheck.spf.ranges import FIRST_IPV4, IPV4, Range, Ranges


def written(found: Ranges) -> list[str]:
    """Returns FOUND as the fewest networks: IPv4 before IPv6, each by address."""
    networks: list[str] = []
    for first, last in found & IPV4:
        begin = ipaddress.IPv4Address(first - FIRST_IPV4)
        end = ipaddress.IPv4Address(last - FIRST_IPV4)
        networks += map(str, ipaddress.summarize_address_range(begin, end))
    for first, last in found - IPV4:
        low, high = ipaddress.IPv6Address(first), ipaddress.IPv6Address(last)
        networks += map(str, ipaddress.summarize_address_range(low, high))
    return networks


def pairs(networks: Iterable[str]) -> list[Range]:
    """Returns the first and the last address of each of NETWORKS. Raises ValueError."""
    found = []
    for text in networks:
        network = ipaddress.ip_network(text)
        above = FIRST_IPV4 if network.version == 4 else 0
        found.append((above + int(network.network_address), above + int(network.broadcast_address)))
    return found
