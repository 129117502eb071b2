"""Reads requests quickly: a client sends the same attributes in the same order each time.

Such an order of attributes becomes a regular expression, which reads a request in half the time.
A request that matches none is read as usual, so the result is the same. Postfix's are plain: they
have an envelope, and nothing else that counts, so that no names are needed.
"""

from operator import itemgetter
from time import monotonic

from greycheck.hooks import delegation as protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence

    Values = Sequence[bytes]

# Attributes that Postfix sends and that are not used here (SMTPD_POLICY_README).
PASSED_OVER = frozenset(
    b"protocol_name client_port server_address server_port compatibility_level"
    b" mail_version recipient_count queue_id size etrn_domain stress sasl_method"
    b" sasl_sender ccert_subject ccert_issuer ccert_fingerprint ccert_pubkey_fingerprint"
    b" encryption_protocol encryption_cipher encryption_keysize policy_context".split()
)

# What a plain form has, in the order of ``Forms.plain``; and the names that make it none.
PLAIN = (b"request", b"protocol_state", b"sasl_username", b"instance", *protocol.PARTS)
NOT_PLAIN = {protocol.SPFRESULT, *(variable for variable, _name in protocol.VARIABLES)}
OWN = b"greycheck"

# How often a form may be learned, in seconds, and of how many lines and bytes of names at most.
# Learning one takes as long as reading a hundred requests.
LEARNING, LINES, BYTES = 1.0, 64, 1024

# How many forms are kept; the oldest is dropped for a new one.
MOST = 8


class Forms:
    """The forms that were learned, the newest first."""

    def __init__(self) -> None:
        self._known: list[tuple[Callable[[bytes], re.Match[bytes] | None], list[bytes]]] = []
        # Those of them that are plain, with a function that takes the values of PLAIN.
        self._plain: list[
            tuple[Callable[[bytes], re.Match[bytes] | None], Callable[[Values], Values]]
        ] = []
        # The names of the last request that matched no form.
        self._last: list[bytes] = []
        self._learned = float("-inf")

    def attributes(self, request: bytes) -> dict[bytes, bytes]:
        """Returns the attributes of REQUEST, which has no end, without those of PASSED_OVER.

        Raises Malformed.
        """
        for match, names in self._known:
            found = match(request)
            if found:
                attributes = dict(zip(names, found.groups(), strict=True))
                protocol.check(request, attributes)
                return attributes
        return self._learn(request)

    def plain(self, request: bytes) -> "Values | None":
        """Returns the values of PLAIN but the first, where REQUEST has a plain form that is known.

        Returns None for all others, and where the request is Malformed.
        """
        for match, take in self._plain:
            found = match(request)
            if found:
                kind, *values = take(found.groups())
                return values if kind == protocol.REQUEST and protocol.NUL not in request else None
        return None

    def _learn(self, request: bytes) -> dict[bytes, bytes]:
        found = protocol.attributes(request)
        names, self._last = self._last, list(found)
        lines, now = request.count(b"\n"), monotonic()
        is_form = names == self._last and len(names) == lines + 1
        if (
            is_form
            and lines < LINES
            and sum(map(len, names)) < BYTES
            and now - self._learned > LEARNING
        ):
            self._learned = now
            self._known = [_form(names), *self._known[: MOST - 1]]
            self._plain = [
                (match, itemgetter(*map(wanted.index, PLAIN)))
                for match, wanted in self._known
                if _is_plain(wanted)
            ]
        return found


def _is_plain(names: list[bytes]) -> bool:
    """Returns true if requests with these NAMES have an envelope, and nothing else that counts."""
    return (
        NOT_PLAIN.isdisjoint(names)
        and set(PLAIN).issubset(names)
        and not any(name.lower().startswith(OWN) for name in names)
    )


def _form(names: list[bytes]) -> "tuple[Callable[[bytes], re.Match[bytes] | None], list[bytes]]":
    """Returns a function that matches a request with these NAMES, and the names of its groups."""
    import re

    wanted = [name for name in names if name not in PASSED_OVER]
    # A value is the rest of its line; ``*+`` never tries a shorter one.
    lines = [re.escape(name) + (b"=(.*+)" if name in wanted else b"=.*+") for name in names]
    return re.compile(b"\n".join(lines)).fullmatch, wanted
