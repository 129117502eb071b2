"""Finds the word that may have been meant, for a setting that does not exist.

It imports nothing, as a check may need it.

Interface: ``nearest``.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# No known word is longer.
LONGEST = 32


def nearest(word: str, known: "Iterable[str]") -> str:
    """Returns the KNOWN word that differs from WORD in at most one letter of three; else empty."""
    most = max(1, len(word) // 3)
    if len(word) > LONGEST:
        return ""
    distance, best = min(((_distance(word, each), each) for each in known), default=(most + 1, ""))
    return best if distance <= most else ""


def _distance(one: str, other: str) -> int:
    """Returns how many letters of ONE must be added, removed, changed or swapped to get OTHER."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
