"""Which word may have been meant. Without imports: a check says it too, of a setting that does not exist.

Interface: ``nearest``.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# No word that is looked for is longer.
LONGEST = 32


def nearest(word: str, known: "Iterable[str]") -> str:
    """The one of the KNOWN words that is spelt like WORD but for a letter in three; empty where none is."""
    most = max(1, len(word) // 3)
    if len(word) > LONGEST:
        return ""
    distance, found = min(((_distance(word, each), each) for each in known), default=(most + 1, ""))
    return found if distance <= most else ""


def _distance(one: str, other: str) -> int:
    """How many letters are missing, too many, wrong, or changed places with the next between ONE and OTHER."""
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
