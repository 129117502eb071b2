"""Sets of client addresses, as numbers: IPv4 and IPv6 in one space of 128 bits.

An IPv4 address is its IPv6 form ``::ffff:a.b.c.d``. A set is sorted ranges that neither overlap nor
touch, so two equal sets are equal tuples. Sets are never changed, only made.

Interface: ``Ranges``, ``network``, ``value_of``, ``packed``; ``ALL``, ``IPV4``, ``IPV6``.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from greycheck import normalise

BITS = normalise.IPV6_BITS

# The first IPv4 address, and the last one.
FIRST_IPV4 = normalise.MAPPED << 32
LAST_IPV4 = FIRST_IPV4 | 0xFFFFFFFF

# The number of bits before those of an IPv4 address.
IPV4_AT = BITS - normalise.IPV4_BITS

Range = tuple[int, int]


class Ranges:
    """A set of addresses: ``pairs`` are the first and the last address of each of its ranges."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[Range] = ()) -> None:
        """Joins PAIRS, which may overlap and be in any order."""
        self.pairs = _joined(pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return f"Ranges({list(self.pairs)!r})"

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def __len__(self) -> int:
        """Returns the number of ranges, not of addresses."""
        return len(self.pairs)

    def __iter__(self) -> Iterator[Range]:
        return iter(self.pairs)

    def __contains__(self, value: int) -> bool:
        place = bisect_right(self.pairs, value, key=_first)
        return place > 0 and value <= self.pairs[place - 1][1]

    def __or__(self, other: "Ranges") -> "Ranges":
        if not other.pairs or not self.pairs:
            return self if self.pairs else other
        mine = self.pairs
        # Those that overlap or touch, and those between.
        start, end = _window(mine, other.pairs[0][0] - 1, other.pairs[-1][1] + 1)
        return _made(mine[:start] + _joined(mine[start:end] + other.pairs) + mine[end:])

    def __and__(self, other: "Ranges") -> "Ranges":
        if not other.pairs or not self.pairs:
            return NOBODY
        start, end = _window(self.pairs, other.pairs[0][0], other.pairs[-1][1])
        mine = self.pairs[start:end]
        if not mine:
            return NOBODY
        start, end = _window(other.pairs, mine[0][0], mine[-1][1])
        others = other.pairs[start:end]
        shared: list[Range] = []
        i = j = 0
        while i < len(mine) and j < len(others):
            first, last = max(mine[i][0], others[j][0]), min(mine[i][1], others[j][1])
            if first <= last:
                shared.append((first, last))
            if mine[i][1] < others[j][1]:
                i += 1
            else:
                j += 1
        return _made(tuple(shared))

    def __sub__(self, other: "Ranges") -> "Ranges":
        if not other.pairs or not self.pairs:
            return self
        start, end = _window(self.pairs, other.pairs[0][0], other.pairs[-1][1])
        left: list[Range] = []
        taken, j = other.pairs, 0
        for first, last in self.pairs[start:end]:
            at = first
            while j < len(taken) and taken[j][1] < at:
                j += 1
            k = j
            while k < len(taken) and taken[k][0] <= last:
                if taken[k][0] > at:
                    left.append((at, taken[k][0] - 1))
                at = taken[k][1] + 1
                k += 1
            if at <= last:
                left.append((at, last))
            j = max(j, k - 1)
        return _made(self.pairs[:start] + tuple(left) + self.pairs[end:])

    def size(self) -> int:
        """Returns the number of addresses."""
        return sum(last - first + 1 for first, last in self.pairs)

    def ipv4_size(self) -> int:
        """Returns the number of IPv4 addresses."""
        return (self & IPV4).size()

    def ipv6_size(self) -> int:
        """Returns the number of addresses that are not IPv4."""
        return (self - IPV4).size()


def _first(pair: Range) -> int:
    return pair[0]


def _last(pair: Range) -> int:
    return pair[1]


def _window(pairs: tuple[Range, ...], first: int, last: int) -> tuple[int, int]:
    """Returns where those of PAIRS begin and end that have an address from FIRST to LAST.

    A list of thousands is not gone through for one network.
    """
    return bisect_left(pairs, first, key=_last), bisect_right(pairs, last, key=_first)


def _joined(pairs: Iterable[Range]) -> tuple[Range, ...]:
    joined: list[Range] = []
    for first, last in sorted(pairs):
        if joined and first <= joined[-1][1] + 1:
            if last > joined[-1][1]:
                joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _made(pairs: tuple[Range, ...]) -> Ranges:
    """Returns the set of PAIRS, which are sorted and joined."""
    made = Ranges()
    made.pairs = pairs
    return made


NOBODY = Ranges()


ALL = Ranges([(0, (1 << BITS) - 1)])
IPV4 = Ranges([(FIRST_IPV4, LAST_IPV4)])
IPV6 = ALL - IPV4


def network(value: int, prefix: int) -> Ranges:
    """Returns the network with the first PREFIX of the 128 bits of VALUE."""
    host_bits = BITS - prefix
    first = value >> host_bits << host_bits
    return Ranges([(first, first | ((1 << host_bits) - 1))])


def ipv4_network(value: int, prefix: int) -> Ranges:
    """Returns the network with the first PREFIX bits of the IPv4 address VALUE, of 32 bits."""
    return network(FIRST_IPV4 | value, IPV4_AT + prefix)


def ipv6_network(value: int, prefix: int) -> Ranges:
    """Returns the network with the first PREFIX bits of VALUE, without any IPv4 client."""
    return network(value, prefix) - IPV4


def value_of(address: str) -> int:
    """Returns the number of ADDRESS, which is as ``normalise.client_address`` returns it.

    Raises ValueError.
    """
    bits, value = normalise.address_bits(address)
    return FIRST_IPV4 | value if bits == normalise.IPV4_BITS else value


def packed(address: str) -> bytes:
    """Returns the 16 bytes of ADDRESS, which is as ``normalise.client_address`` returns it.

    Bytes are in the order of the numbers: a range of addresses is a range of these. Raises
    ValueError.
    """
    return value_of(address).to_bytes(BITS // 8, "big")
