"""SMTPEXTFORK and SMTPEXTFORKR: a list of programs, each run once per RCPT TO.

The envelope is in their environment.

Answers (docs/hooks.rst#exit-codes): 0 goes on to the next program of the list, 101 refuses this
recipient with 454, 100 with 554; the session goes on. Every other exit code, and a signal,
*accepts*.
"""

from greycheck.envelope import TCPSERVER, Envelope, from_variables
from greycheck.policy import ACCEPT, DEFER, REJECT

NAME = "smtpextfork"
PROGRAM = "greycheck"
ARGUMENTS = ()
VARIABLES = TCPSERVER | {"sender": b"REMOTEMF", "recipient": b"REMOTERCPT", "helo": b"REMOTEHELO"}
FURTHER = ()
ANSWERS = {ACCEPT: 0, DEFER: 101, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From the variables. One of the two addresses may be unset where it is empty."""
    return from_variables(NAME, environ, VARIABLES)


# Descriptor 1 is the SMTP connection.
reply = None
identify = None

TITLE = "SMTPEXTFORK"
SWITCHES = (b"SMTPEXTFORK", b"SMTPEXTFORKR")
TELLS_MESSAGES = False
RUNS = "list"
SWITCH_ON = """\
SMTPEXTFORK, in the rules that tcprules compiles, or as a file of envdir:
  :allow,SMTPEXTFORK="{program}"
  echo {quoted} > env/SMTPEXTFORK"""
DEMO = (("SMTPEXTFORK", "{program}"),)
IF_MISSING = "all mail is accepted"
EXIT_STATUS = ()
ENVIRONMENT = (
    (
        "454SMTPEXTFORK, 554SMTPEXTFORK",
        "The text of a refusal: read by qmail-smtpd, not by greycheck.",
    ),
)
MANUAL = """\
A list of programs with commas between, in the environment of qmail-smtpd; the second for relay
clients. Each is run without arguments; the envelope is in TCPREMOTEIP, REMOTEMF, REMOTERCPT and
REMOTEHELO. A deferral is 454, a rejection 554, and the session goes on."""
