"""CHECKENV: ``bin/qmail-checkenv SENDER RECIPIENT``, run once per RCPT TO.

Answers (docs/hooks.rst#exit-codes): 0 accepts; 100 is 553 and the connection is closed; 101, every
other exit code, and a signal are 421 and the connection is closed. A client therefore never gets to
offer its second recipient.
"""

from greycheck.envelope import TCPSERVER, Envelope, from_client
from greycheck.policy import ACCEPT, DEFER, REJECT

NAME = "checkenv"
PROGRAM = "qmail-checkenv"
ARGUMENTS = ("sender", "recipient")
VARIABLES = TCPSERVER
FURTHER = ()
ANSWERS = {ACCEPT: 0, DEFER: 101, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:
    """From the two arguments, whatever they look like, and tcpserver's variables.

    REMOTEMF may be stale and is not looked at.
    """
    if len(argv) != 3:
        return Envelope(NAME, None, b"", b"", missing="SENDER,RECIPIENT")
    return from_client(NAME, environ, VARIABLES, argv[1], argv[2])


# Descriptor 1 is the SMTP connection.
reply = None
identify = None

TITLE = "CHECKENV"
SWITCHES = (b"CHECKENV",)
TELLS_MESSAGES = False
RUNS = "home"
SWITCH_ON = """\
CHECKENV, which runs bin/qmail-checkenv below the qmail home:
  :allow,CHECKENV=""
  echo > env/CHECKENV"""
DEMO = (("CHECKENV", ""),)
IF_MISSING = "all mail is stopped"
EXIT_STATUS = ()
ENVIRONMENT = ()
MANUAL = """\
Where it is set, to any value, qmail-smtpd runs bin/qmail-checkenv below the qmail home with sender
and recipient as arguments. A deferral is 421, a rejection 553, and the connection is closed. A
checker that cannot run stops all mail."""
