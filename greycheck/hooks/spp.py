"""qmail-spp: a plugin of the section ``[rcpt]``, run once per RCPT TO without arguments.

Facts (docs/hooks.rst#qmail-spp, and qmail-spp's own documentation):

``SMTPMAILFROM``, ``SMTPRCPTTO``, ``SMTPHELOHOST``
    the envelope. Descriptor 0 is closed. 1 is a pipe from which qmail-smtpd reads commands, one a
    line.
``SMTPRCPTCOUNT``
    how many recipients of this message have been accepted so far.
``SMTPRCPTCOUNTALL``
    how many RCPT TO there were since MAIL FROM, this one included. Older builds do not have it.
``SMTPRCPTHOSTSOK``
    ``0`` if qmail-smtpd itself is going to refuse the recipient, whose domain is not in rcpthosts.
    The other hooks are not asked about those at all.

Answers: nothing accepts, as far as this plugin is concerned. ``E`` and a reply refuse this
recipient, and the session goes on. ``LD`` and a reply accept it, and refuse at DATA: that is for
the null sender, since a sender callback stops at RCPT TO and means no mail. Each ``LD`` adds
another reply to the one DATA, so only the first recipient of a message may have one. The exit code
is 0 whatever the verdict. A signal, or 120, is 451, after whatever has been said.

Known wart: what ``LD`` said stays until RSET. A client that goes on with another message instead is
refused at DATA once more.
"""

from greycheck.envelope import TCPSERVER, Envelope, from_variables
from greycheck.policy import ACCEPT, DEFER, REJECT, client_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.policy import Verdict
    from greycheck.settings import Settings

NAME = "spp"
PROGRAM = "greycheck-spp"
ARGUMENTS = ()
VARIABLES = TCPSERVER | {
    "sender": b"SMTPMAILFROM",
    "recipient": b"SMTPRCPTTO",
    "helo": b"SMTPHELOHOST",
}
FURTHER = (b"SMTPRCPTCOUNT", b"SMTPRCPTCOUNTALL", b"SMTPRCPTHOSTSOK", b"TCPREMOTEPORT")
ANSWERS = {ACCEPT: 0, DEFER: 0, REJECT: 0}

# The reply code of a verdict, and its enhanced status code.
REPLIES = {DEFER: ("451", "#4.3.0"), REJECT: ("553", "#5.7.1")}

# How long the text of a reply may be, in bytes: the line has 512 (RFC 5321 section 4.5.3.1.5).
LONGEST = 400


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From the variables. One of the two addresses may be unset where it is empty."""
    found = from_variables(NAME, environ, VARIABLES)
    identify(found, environ)
    return found


def identify(envelope: Envelope, environ: dict[bytes, bytes]) -> None:
    """Sets the message of ENVELOPE, and whether this is its first recipient, by ENVIRON.

    A request that repeats the environment will do.
    """
    accepted = environ.get(b"SMTPRCPTCOUNT", b"0")
    asked = environ.get(b"SMTPRCPTCOUNTALL", b"0" if accepted == b"0" else b"2")
    envelope.first = asked in (b"0", b"1")
    if b"TCPREMOTEPORT" in environ and (envelope.first or accepted != b"0"):
        # A session, more exactly: nothing tells its messages from one sender apart.
        envelope.message = f"{envelope.client} port ".encode() + environ[b"TCPREMOTEPORT"]
    if environ.get(b"SMTPRCPTHOSTSOK") == b"0" and not envelope.exempt:
        envelope.exempt = "SMTPRCPTHOSTSOK"


def reply(verdict: "Verdict", envelope: Envelope, settings: "Settings") -> bytes:
    """The command that refuses the recipient, or nothing."""
    if verdict.action == ACCEPT:
        return b""
    command = "E" if envelope.sender or not envelope.first else "LD"
    code, status = REPLIES[verdict.action]
    told = client_text(verdict, settings).encode("utf-8", "ignore").translate(None, b"\0\r\n")
    told = told[:LONGEST].decode("utf-8", "ignore").encode()
    return f"{command}{code} ".encode() + told + f" ({status})\n".encode()


TITLE = "qmail-spp"
SWITCHES = ()
TELLS_MESSAGES = True
RUNS = "plugin"
SWITCH_ON = """\
qmail-spp, by a line below [rcpt] in control/smtpplugins:
  {program}"""
DEMO = (("SPP_RCPT", "{program}"),)
IF_MISSING = "all mail is deferred"
EXIT_STATUS = ((0, "to qmail-spp, which reads the verdict instead, any verdict."),)
ENVIRONMENT = (
    (
        "SMTPRCPTCOUNT, SMTPRCPTCOUNTALL, TCPREMOTEPORT",
        """\
How many recipients qmail-spp has accepted, how many it was asked for, and in which session.""",
    ),
    (
        "SMTPRCPTHOSTSOK",
        "With the value 0, from qmail-spp: qmail-smtpd refuses the recipient itself.",
    ),
)
MANUAL = """\
greycheck-spp is a plugin: its path is a line of control/smtpplugins, in the section [rcpt], before
any plugin that accepts for good (N, O, A). The envelope is in TCPREMOTEIP, SMTPMAILFROM, SMTPRCPTTO
and SMTPHELOHOST. It prints a command for qmail-smtpd: a deferral is 451, a rejection 553, with
defer_text and reject_text, and the session goes on. With the null sender the first recipient of a
message is accepted, and DATA refused (LD), so that a sender callback, which stops before that,
finds what it looks for. Where the first recipient of a message passed by greylisting, later ones
need not wait (RFC 6647, 5(1)). Recipients that qmail-smtpd is going to refuse by its rcpthosts are
not checked. A plugin that crashes or cannot run is 451."""
