"""Reading requests quickly: who asks often asks in the same form each time, the same attributes in the same order.

Such a form becomes a regular expression, which reads a request in half the time. What does not match it is read as any other request
is, so a form changes nothing but how long that takes.
"""

from time import monotonic

from greycheck.hooks import policy as protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable

# What Postfix says besides, and nobody here wants to know (SMTPD_POLICY_README).
PASSED_OVER = frozenset(
    b"protocol_name client_port server_address server_port compatibility_level mail_version recipient_count queue_id size etrn_domain"
    b" stress sasl_method sasl_sender ccert_subject ccert_issuer ccert_fingerprint ccert_pubkey_fingerprint encryption_protocol"
    b" encryption_cipher encryption_keysize policy_context".split()
)

# How often a form may be learned, in seconds, and of how many lines and bytes of names at most: that takes as long as a hundred requests.
LEARNING, LINES, BYTES = 1.0, 64, 1024

# How many forms are known at most; of more the one that was learned first is forgotten.
MOST = 8


class Forms:
    """The forms that were learned, the last of them first."""

    def __init__(self) -> None:
        self._known: list[tuple[Callable[[bytes], re.Match[bytes] | None], list[bytes]]] = []
        # The names that came last in no known form.
        self._last: list[bytes] = []
        self._learned = float("-inf")

    def attributes(self, request: bytes) -> dict[bytes, bytes]:
        """The attributes of a REQUEST, given without its end, all that anybody wants to know. Raises Malformed."""
        for match, names in self._known:
            found = match(request)
            if found:
                attributes = dict(zip(names, found.groups(), strict=True))
                protocol.check(request, attributes)
                return attributes
        return self._learn(request)

    def _learn(self, request: bytes) -> dict[bytes, bytes]:
        found = protocol.attributes(request)
        names, self._last = self._last, list(found)
        lines, now = request.count(b"\n"), monotonic()
        is_form = names == self._last and len(names) == lines + 1
        if is_form and lines < LINES and sum(map(len, names)) < BYTES and now - self._learned > LEARNING:
            self._learned = now
            self._known = [_form(names), *self._known[: MOST - 1]]
        return found


def _form(names: list[bytes]) -> "tuple[Callable[[bytes], re.Match[bytes] | None], list[bytes]]":
    """What reads a request of attributes with these NAMES, and the names of what it gives."""
    import re

    wanted = [name for name in names if name not in PASSED_OVER]
    # A value is the rest of its line, and never tried any shorter.
    lines = [re.escape(name) + (b"=(.*+)" if name in wanted else b"=.*+") for name in names]
    return re.compile(b"\n".join(lines)).fullmatch, wanted
