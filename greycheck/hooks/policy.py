"""Postfix's policy delegation protocol: a request of ``name=value`` lines and an empty one, an answer of the same kind.

Postfix (``check_policy_service``), Exim (``readsocket``), s/qmail's ``qmail-postgrey`` and greycheck's own native child ask in it; the
resident and ``greycheck policy`` answer.

Attributes of a request, of which all others are passed over (Postfix, SMTPD_POLICY_README):

``request``
    always ``smtpd_access_policy``.
``client_address``, ``sender``, ``recipient``, ``helo_name``
    the envelope.
``client_name``
    the client's name, verified; ``unknown`` where it is not. ``reverse_client_name`` is a name that nobody has verified.
``protocol_state``
    only at ``RCPT`` there is a recipient to decide about; any other state is let through.
``sasl_username``
    not empty: an authenticated client.
``instance``
    the same for all recipients of a message, and for no other message.

What tcprules and envdir would put into a child's environment is an attribute of the same name: ``GREYCHECK_DELAY=1m``, ``GREYCHECK=off``,
``RELAYCLIENT=``. A native child says besides as which hook it was called, in ``greycheck_hook``, and when, in ``greycheck_time``
(seconds since 1970); its answer says how to end.

Answers: ``DUNNO`` accepts and leaves further restrictions to the server, ``DEFER_IF_PERMIT`` refuses with 450, ``REJECT`` with 554;
``PREPEND`` accepts and adds a header. A refusal's text begins with its code (RFC 3463): without one Postfix says 4.7.1, which some
senders take for a refusal for good.
"""

from time import gmtime

from greycheck import normalise
from greycheck.envelope import EXEMPTING, Envelope
from greycheck.hooks import text
from greycheck.policy import ACCEPT, DEFER, REJECT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.policy import Verdict
    from greycheck.settings import Settings

NAME = "policy"
ANSWERS = {ACCEPT: "DUNNO", DEFER: "DEFER_IF_PERMIT", REJECT: "REJECT"}

REQUEST = b"smtpd_access_policy"

# The end of a request, and of an answer.
END = b"\n\n"

# What a mail server says where it does not know a client's name.
UNKNOWN = b"unknown"

# The attributes that free a client from checking, as a native child repeats them.
VARIABLES = {name.encode(): name for name in EXEMPTING}


class Malformed(ValueError):
    """What is no request of this protocol."""


def attributes(request: bytes) -> dict[bytes, bytes]:
    """The attributes of a REQUEST, given without its end. The last of a name counts. Raises Malformed."""
    try:
        found = dict([line.split(b"=", 1) for line in request.split(b"\n")])
    except ValueError:
        raise Malformed("a line without =") from None
    check(request, found)
    return found


def check(request: bytes, attributes: dict[bytes, bytes]) -> None:
    """Raises Malformed where a REQUEST with these ATTRIBUTES is none of this protocol."""
    if attributes.get(b"request") != REQUEST:
        raise Malformed("no request=smtpd_access_policy")
    if b"\0" in request:
        raise Malformed("a NUL")


def decides(attributes: dict[bytes, bytes]) -> bool:
    """Whether there is anything to be decided about ATTRIBUTES: at RCPT, which is also meant where a client does not say."""
    return attributes.get(b"protocol_state", b"RCPT") in (b"RCPT", b"")


def envelope(attributes: dict[bytes, bytes], hook: str = NAME) -> Envelope:
    """The envelope of a request's ATTRIBUTES, handed over by HOOK."""
    get = attributes.get
    address = get(b"client_address")
    client = None if address is None else normalise.client_address(address)
    sender, recipient = get(b"sender"), get(b"recipient")
    missing = "" if sender is not None or recipient is not None else "sender,recipient"
    if client is None:
        missing += ("," if missing else "") + ("client_address" if address is None else "usable-client_address")
    exempt = "sasl_username" if get(b"sasl_username") else ""
    if not VARIABLES.keys().isdisjoint(attributes):
        exempt = next(name for variable, name in VARIABLES.items() if variable in attributes)
    host = get(b"client_name") or UNKNOWN
    if host == UNKNOWN:
        host = get(b"reverse_client_name", UNKNOWN)
    return Envelope(
        hook,
        client,
        sender or b"",
        recipient or b"",
        exempt,
        missing,
        b"" if host == UNKNOWN else host,
        get(b"helo_name", b""),
    )


def has_verified_name(attributes: dict[bytes, bytes]) -> bool:
    """Whether the client's name was verified by the mail server."""
    return (attributes.get(b"client_name") or UNKNOWN) != UNKNOWN


def action(verdict: "Verdict", settings: "Settings") -> str:
    """The answer's action for VERDICT, with what the client is told."""
    word = ANSWERS[verdict.action]
    if verdict.action == ACCEPT:
        return word
    told = text(verdict, settings)
    if has_code(told, verdict.action):
        return f"{word} {told}"
    return f"{word} {FAULT if verdict.reason == 'error' else CODES[verdict.action]} {told}"


# What a refusal's text begins with where the setting has no such code: other or undefined mailbox status; delivery not authorized.
CODES = {DEFER: "4.2.0", REJECT: "5.7.1"}
FAULT = "4.3.0"


def has_code(told: str, action: str) -> bool:
    """Whether what is TOLD about a refusal, ACTION, begins with an enhanced status code of its class (RFC 3463): 4.2.0, say."""
    parts = told.partition(" ")[0].split(".")
    return len(parts) == 3 and parts[0] == CODES[action][0] and all(part.isascii() and part.isdigit() for part in parts)


def header(verdict: "Verdict", host: str, now: int) -> str:
    """The header that tells how HOST came to accept a message at NOW (seconds since 1970): one line, of nothing that a client said."""
    how = f"delayed {verdict.delayed} seconds" if verdict.delayed else f"{verdict.reason},"
    return f"X-Greylist: {how} by greycheck at {_shown(host)}; {date(now)}"


# How long a host's name may be in a header, in characters.
HOST = 255


def _shown(host: str) -> str:
    """HOST without what does not belong in a host's name."""
    return "".join(char for char in host[:HOST] if char.isascii() and (char.isalnum() or char in "-._")) or "localhost"


DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date(now: int) -> str:
    """NOW (seconds since 1970) as RFC 5322 section 3.3 writes it, in UTC. Not strftime, which may speak another language."""
    year, month, day, hour, minute, second, weekday = gmtime(now)[:7]
    return f"{DAYS[weekday]}, {day:02} {MONTHS[month - 1]} {year} {hour:02}:{minute:02}:{second:02} +0000"
