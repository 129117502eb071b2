"""Postfix's policy delegation protocol (SMTPD_POLICY_README).

A request is lines ``name=value`` and an empty one, an answer too. Postfix
(``check_policy_service``), Exim (``readsocket``), s/qmail's ``qmail-postgrey`` and greycheck's
launchers in C ask in it; the resident and ``greycheck policy`` answer.

Attributes of a request; all others are ignored:

``request``
    always ``smtpd_access_policy``.
``client_address``, ``sender``, ``recipient``, ``helo_name``
    the envelope.
``client_name``
    the client's name, verified; ``unknown`` if it is not. Nobody has verified
    ``reverse_client_name``.
``protocol_state``
    only at ``RCPT`` there is a recipient to decide about; any other state is let through.
``sasl_username``
    not empty: an authenticated client.
``instance``
    the same for all recipients of a message, and for no other message.

What tcprules and envdir would put into a child's environment is an attribute of the same name:
``GREYCHECK_DELAY=1m``, ``GREYCHECK=off``, ``RELAYCLIENT=``. A launcher in C also says which hook
called it, in ``greycheck_hook``, and when, in ``greycheck_time`` (seconds since 1970); its answer
says how to end.

Answers: ``DUNNO`` accepts and leaves further restrictions to the server, ``DEFER_IF_PERMIT``
refuses with 450, ``REJECT`` with 554; ``PREPEND`` accepts and adds a header. A refusal's text
begins with its code (RFC 3463): without one Postfix says 4.7.1, which some senders take for a
permanent refusal.
"""

from time import gmtime

from greycheck import normalise
from greycheck.envelope import EXEMPTING, PASSED, SPFRESULT, Envelope
from greycheck.policy import ACCEPT, DEFER, REJECT, client_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.policy import Verdict
    from greycheck.settings import Settings

NAME = "policy"
TITLE = "Policy delegation protocol"
SWITCHES = ()
TELLS_MESSAGES = True
MANUAL = """\
Postfix (check_policy_service), Exim (readsocket) and s/qmail (qmail-postgrey) ask greycheck serve;
or Postfix has greycheck policy spawned. The envelope is in client_address, sender, recipient and
helo_name; client_name is the client's verified name, instance the same for all recipients of a
message, sasl_username that of an authenticated client. Settings and variables that tcprules would
give to a client may be attributes too. Where protocol_state is not RCPT, the answer is DUNNO; else
DUNNO accepts, DEFER_IF_PERMIT and REJECT refuse with defer_text and reject_text, and with header =
yes PREPEND accepts the first recipient of a message and adds the header X-Greylist. What is no
request gets no answer; what a mail server does then is its own setting. s/qmail lets in what is
rejected."""
ANSWERS = {ACCEPT: "DUNNO", DEFER: "DEFER_IF_PERMIT", REJECT: "REJECT"}

REQUEST = b"smtpd_access_policy"

# No line of a request has this byte.
NUL = 0

# The end of a request, and of an answer.
END = b"\n\n"

# How each answer begins.
BEGINNING = b"action="

# A request about which there is nothing to decide, and the answer to all such, without their ends.
NO_QUESTION = b"request=" + REQUEST + b"\nprotocol_state=CONNECT"
LET_THROUGH = BEGINNING + ANSWERS[ACCEPT].encode()

# What a mail server says where it does not know a client's name.
UNKNOWN = b"unknown"

# The attributes that free a client from checking, as a native child repeats them.
VARIABLES = tuple((name.encode(), name) for name in EXEMPTING)


class Malformed(ValueError):
    """What is no request of this protocol."""


def attributes(request: bytes) -> dict[bytes, bytes]:
    """The attributes of a REQUEST without its end. The last of a name counts. Raises Malformed."""
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
    if NUL in request:
        raise Malformed("a NUL")


# The states in which there is something to decide.
DECIDED = (b"RCPT", b"")


def decides(attributes: dict[bytes, bytes]) -> bool:
    """Whether there is anything to decide about ATTRIBUTES: at RCPT, or if no state is given."""
    return attributes.get(b"protocol_state", b"RCPT") in DECIDED


def envelope(attributes: dict[bytes, bytes], hook: str = NAME) -> Envelope:
    """The envelope of a request's ATTRIBUTES, handed over by HOOK."""
    get = attributes.get
    exempt = "sasl_username" if get(b"sasl_username") else ""
    for variable, name in VARIABLES:
        if variable in attributes:
            exempt = name
            break
    spf_passed = get(SPFRESULT, b"").lower() == PASSED
    return envelope_of(hook, exempt, spf_passed, *map(get, PARTS))


# The attributes that ``envelope_of`` is made of.
PARTS = (
    b"client_address",
    b"sender",
    b"recipient",
    b"client_name",
    b"reverse_client_name",
    b"helo_name",
)


def envelope_of(
    hook: str,
    exempt: str,
    spf_passed: bool,
    address: bytes | None,
    sender: bytes | None,
    recipient: bytes | None,
    name: bytes | None,
    unverified: bytes | None,
    helo: bytes | None,
) -> Envelope:
    """The envelope of the values of PARTS, None where there is no such attribute.

    It is EXEMPT by the variable or attribute of that name.
    """
    client = None if address is None else normalise.client_address(address)
    missing = "" if sender is not None or recipient is not None else "sender,recipient"
    if client is None:
        missing += ("," if missing else "") + ("" if address is None else "usable-")
        missing += "client_address"
    host = name or UNKNOWN
    if host == UNKNOWN and unverified is not None:
        host = unverified
    return Envelope(
        hook,
        client,
        sender or b"",
        recipient or b"",
        exempt,
        missing,
        b"" if host == UNKNOWN else host,
        helo or b"",
        spf_passed=spf_passed,
    )


def has_verified_name(attributes: dict[bytes, bytes]) -> bool:
    """Whether the client's name was verified by the mail server."""
    return is_verified(attributes.get(b"client_name"))


def is_verified(name: bytes | None) -> bool:
    """Whether NAME, the attribute client_name, is one that was verified."""
    return (name or UNKNOWN) != UNKNOWN


def action(verdict: "Verdict", settings: "Settings") -> str:
    """The answer's action for VERDICT, with what the client is told."""
    word = ANSWERS[verdict.action]
    if verdict.action == ACCEPT:
        return word
    told = client_text(verdict, settings)
    if has_code(told, verdict.action):
        return f"{word} {told}"
    return f"{word} {FAULT if verdict.reason == 'error' else CODES[verdict.action]} {told}"


# The code of a refusal whose text has none: other mailbox status, and delivery not authorized.
CODES = {DEFER: "4.2.0", REJECT: "5.7.1"}
FAULT = "4.3.0"


def has_code(told: str, action: str) -> bool:
    """Whether what is TOLD about a refusal begins with an enhanced status code, 4.2.0, say.

    It must be of the class (RFC 3463) of the refusal, ACTION.
    """
    if not told.startswith(CODES[action][0]):  # most texts
        return False
    parts = told.partition(" ")[0].split(".")
    are_numbers = all(part.isascii() and part.isdigit() for part in parts)
    return len(parts) == 3 and parts[0] == CODES[action][0] and are_numbers


def header(verdict: "Verdict", host: str, now: int) -> str:
    """The header that says how HOST came to accept a message at NOW (seconds since 1970).

    It is one line, and has nothing in it that a client said.
    """
    how = f"delayed {verdict.delayed} seconds" if verdict.delayed else f"{verdict.reason},"
    return f"X-Greylist: {how} by greycheck at {_shown(host)}; {date(now)}"


# How long a host's name may be in a header, in characters.
HOST = 255


def _shown(host: str) -> str:
    """HOST without what does not belong in a host's name."""
    plain = (char for char in host[:HOST] if char.isascii())
    return "".join(char for char in plain if char.isalnum() or char in "-._") or "localhost"


DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date(now: int) -> str:
    """NOW (seconds since 1970) as RFC 5322 section 3.3 writes it, in UTC.

    Not by strftime, which may use another language.
    """
    year, month, day, hour, minute, second, weekday = gmtime(now)[:7]
    written = f"{DAYS[weekday]}, {day:02} {MONTHS[month - 1]} {year}"
    return f"{written} {hour:02}:{minute:02}:{second:02} +0000"
