"""The lines of greycheck's own log, read back: one check each, as ``log.verdict_line`` wrote it.

Nothing in such a line can be forged by a peer, as no value but a quoted one has a blank. A line
that is not of this form is none of a check's.
"""

import re
from functools import lru_cache

from greycheck import normalise
from greycheck.log import unshown
from greycheck.mail_logs.lines import Line

_CHECK = re.compile(
    rb"(accept|defer|reject) reason=([a-z]{1,20}) client=([0-9a-f.:]{1,45}|-)"
    rb" sender=<([^ <>]*)> recipient=<([^ <>]*)>(?: (.*))?$"
)
_PAIR = re.compile(rb'([a-z_]+)=("[^"]*"|[^ ]*)')

# What a log's name for its program is, where it has one, and what each line begins with.
_PROGRAM, _PREFIX = b"greycheck", b"greycheck: "

# How other lines of greycheck's begin (``log.line``).
OTHERS = (b"warning", b"note")


class Check:
    """One check: its verdict's ACTION and REASON, the CLIENT, SENDER and RECIPIENT; what follows.

    The client's address is canonical, or None where the line had none. Addresses are as they were
    asked about: bytes, with nothing escaped, but for a long one that the log had to cut. REST is
    what the line says besides, for ``pairs``.
    """

    __slots__ = ("action", "client", "reason", "recipient", "rest", "sender")

    def __init__(
        self,
        action: str,
        reason: str,
        client: str | None,
        sender: bytes,
        recipient: bytes,
        rest: bytes,
    ) -> None:
        self.action = action
        self.reason = reason
        self.client = client
        self.sender = sender
        self.recipient = recipient
        self.rest = rest

    def pairs(self) -> dict[str, bytes]:
        """What the line says behind the recipient, by name: ``wait``, ``hook``, ...; as written."""
        return {name.decode(): value.strip(b'"') for name, value in _PAIR.findall(self.rest)}


def said(line: Line) -> bytes | None:
    """Returns what greycheck says by LINE, without its name; None where the line is another's."""
    says = line.says
    if says.startswith(_PREFIX):
        return says[len(_PREFIX) :]
    return says if line.program == _PROGRAM else None


def check(says: bytes) -> Check | None:
    """Returns the check that greycheck SAYS that it made; None where it says something else."""
    found = _CHECK.match(says)
    if found is None:
        return None
    action, reason, client, sender, recipient, rest = found.groups()
    return Check(
        action.decode(),
        reason.decode(),
        _client(client),
        sender if b"\\" not in sender else unshown(sender),
        recipient if b"\\" not in recipient else unshown(recipient),
        rest or b"",
    )


def is_other(says: bytes) -> bool:
    """Whether greycheck SAYS a warning or a note."""
    return says.startswith(OTHERS)


@lru_cache(4096)
def _client(text: bytes) -> str | None:
    return normalise.client_address(text)
