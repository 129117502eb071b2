"""What another user's process finds for root's ``doctor``: it is not trusted.

Whoever owns a store, or a file that a driver reads, chooses what is opened there, so root looks as
that user, in a process that has no way back.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict

from greycheck.doctor.finding import LEVELS, Finding, Level, safe
from greycheck.privilege import apart
from greycheck.store.base import StoreError

# How many findings another user's process may tell.
MOST = 100


def told_by(user: int, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Returns what LOOK finds, run as USER where this process is root's (0: as root).

    Raises StoreError.
    """
    if os.geteuid() != 0 or user == 0:
        return list(look())
    found = apart.as_user(user, lambda: [asdict(finding) for finding in look()])
    return [told(one) for one in found[:MOST]] if isinstance(found, list) else []


def told(found: object) -> Finding:
    """Returns the finding that another user's process tells as FOUND.

    That is plain text which a terminal shows as it stands. Raises StoreError.
    """
    values = (
        [found.get(name) for name in ("level", "about", "found", "advice")]
        if isinstance(found, dict)
        else []
    )
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != 4 or texts[0] not in LEVELS:
        raise StoreError("the store's owner tells what is no finding")
    level: Level = next(level for level in LEVELS if level == texts[0])
    return Finding(
        level, safe(texts[1]), *("\n".join(map(safe, text.split("\n"))) for text in texts[2:])
    )
