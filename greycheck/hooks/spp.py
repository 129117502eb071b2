"""qmail-spp: a plugin of the section ``[rcpt]``, run once per RCPT TO without arguments, with the envelope in its environment.

Facts (contract.md section 7, and qmail-spp's own documentation):

``SMTPMAILFROM``, ``SMTPRCPTTO``, ``SMTPHELOHOST``
    the envelope. Descriptor 0 is closed, and 1 a pipe that qmail-smtpd reads commands from, one a line.
``SMTPRCPTCOUNT``
    how many recipients of this message have been accepted so far.
``SMTPRCPTCOUNTALL``
    how many RCPT TO there were since MAIL FROM, this one included. Older builds do not have it.
``SMTPRCPTHOSTSOK``
    ``0`` where qmail-smtpd itself is going to refuse the recipient, whose domain is not in rcpthosts. The other hooks are not asked
    about those at all.

Answers: nothing accepts, as far as this plugin is concerned. ``E`` and a reply refuse this recipient, and the session goes on. ``LD`` and
a reply accept it, and refuse at DATA: that is for the null sender, since a sender callback stops at RCPT TO and means no mail. Each
``LD`` adds a reply of its own to the one DATA, so only the first recipient of a message may have one. The exit code is 0 whatever the
verdict. A signal, or 120, is 451, behind whatever has been said.

Known wart: what ``LD`` said stays until RSET. A client that goes on with another message instead is refused at DATA once more.
"""

from greycheck.envelope import Envelope, from_variables
from greycheck.hooks import text
from greycheck.policy import ACCEPT, DEFER, REJECT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.policy import Verdict
    from greycheck.settings import Settings

NAME = "spp"
ANSWERS = {ACCEPT: 0, DEFER: 0, REJECT: 0}

# The reply code of a verdict, and its enhanced status code.
REPLIES = {DEFER: ("451", "#4.3.0"), REJECT: ("553", "#5.7.1")}

# How long the text of a reply may be, in bytes: the line has 512 (RFC 5321 section 4.5.3.1.5).
LONGEST = 400


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From the plugin's and tcpserver's variables. One of the two addresses may be unset where it is empty."""
    found = from_variables(NAME, environ, b"SMTPMAILFROM", b"SMTPRCPTTO", b"SMTPHELOHOST")
    identify(found, environ)
    return found


def identify(envelope: Envelope, environ: dict[bytes, bytes]) -> None:
    """Tells ENVELOPE what ENVIRON, or a request that repeats it, has of its message and of this recipient's place in it."""
    accepted = environ.get(b"SMTPRCPTCOUNT", b"0")
    envelope.first = environ.get(b"SMTPRCPTCOUNTALL", b"0" if accepted == b"0" else b"2") in (b"0", b"1")
    if b"TCPREMOTEPORT" in environ and (envelope.first or accepted != b"0"):
        # A session, more exactly: nothing tells its messages from one sender apart.
        envelope.message = f"{envelope.client} port ".encode() + environ[b"TCPREMOTEPORT"]
    if environ.get(b"SMTPRCPTHOSTSOK") == b"0" and not envelope.exempt:
        envelope.exempt = "SMTPRCPTHOSTSOK"


def says(verdict: "Verdict", envelope: Envelope, settings: "Settings") -> bytes:
    """The command that refuses the recipient, or nothing."""
    if verdict.action == ACCEPT:
        return b""
    command = "E" if envelope.sender or not envelope.first else "LD"
    code, status = REPLIES[verdict.action]
    told = text(verdict, settings).encode("utf-8", "ignore").translate(None, b"\0\r\n")
    told = told[:LONGEST].decode("utf-8", "ignore").encode()
    return f"{command}{code} ".encode() + told + f" ({status})\n".encode()
