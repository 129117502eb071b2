"""The child's way to the store: one connection, the statements compiled ahead of time, and no SQLAlchemy.

Each kind of database has its file (``lean_sqlite``) with a ``Store``; ``greycheck.store.connect`` chooses.

Diagnostics: ``StoreError``, whose message is ready for the log; ``NoSchema`` where there is nothing yet and first use may make it.
"""

import _blake2

from greycheck.envelope import Triplet
from greycheck.policy import Change, ClientRow, TripletRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Store(Protocol):
        """What a check asks of a database."""

        def lookup(self, key: bytes, address: str) -> tuple[TripletRow | None, ClientRow | None]:
            """The rows of a triplet and a client."""

        def lock(self) -> None:
            """Holds every other writer off until the next ``save``."""

        def save(self, triplet: Triplet, key: bytes, changes: list[Change], patient: bool) -> bool:
            """Writes all CHANGES, or none and returns False where a row is no longer what was read."""

        def tidy(self) -> None:
            """What may be put off until the verdict is given."""


class StoreError(Exception):
    """The store cannot be asked or written; the message says why, and what to do."""


class NoSchema(StoreError):
    """There is no file or no table yet."""


DIGEST = 16


def triplet_key(triplet: Triplet) -> bytes:
    """The primary key of TRIPLET: 16 bytes of BLAKE2b. No part can hold a NUL (contract.md section 4), so the parts cannot run together."""
    parts = b"\0".join((triplet.network.encode(), triplet.sender, triplet.recipient))
    return _blake2.blake2b(parts, digest_size=DIGEST).digest()


def check_revision(found: str | None, wanted: str) -> None:
    """Raises StoreError where the schema is not the one that this program's statements were compiled for."""
    if found == wanted:
        return
    if found is None:
        raise NoSchema("the database has no schema: run greycheck db upgrade")
    if found < wanted:
        raise StoreError(f"the schema is at {found}, older than this program's {wanted}: run greycheck db upgrade")
    raise StoreError(
        f"the schema is at {found}, newer than this program's {wanted}: install the newer greycheck here too"
    )
