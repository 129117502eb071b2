"""Where Postfix and Exim deliver."""

import email
import shutil
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from tests.servers import wait_until

# Who mail is delivered as, and who Postfix runs other programs as: neither root nor Postfix itself
# may.
USER = "nobody"
USER_ID = 65534


class Maildir:
    """The maildir PATH in a directory of USER's, which the first delivery makes; LOG is shown where
    nothing arrives.
    """

    def __init__(self, path: Path, log: Callable[[], str]) -> None:
        path.parent.mkdir()
        shutil.chown(path.parent, USER)
        self._new = path / "new"
        self._log = log
        self._seen: set[Path] = set()

    def delivered(self, number: int) -> list[Message]:
        """The messages that were delivered since this was asked last, once there are so many."""
        wait_until(lambda: len(self._arrived()) >= number, f"{number} messages", self._log)
        found = self._arrived()
        self._seen |= found
        assert len(found) == number
        return [email.message_from_bytes(path.read_bytes()) for path in found]

    def _arrived(self) -> set[Path]:
        return (set(self._new.iterdir()) if self._new.exists() else set()) - self._seen
