"""RCPTCHECK: the program that this variable names, run once per RCPT TO without arguments.

SENDER and RECIPIENT are in its environment. Nobody hands over what the client calls itself.

Answers (docs/hooks.rst#rcptcheck): 100 refuses this recipient with 553, and the session goes on;
111 is 421 and the connection is closed; 120 and a signal are 421 and closed too; every other exit
code *accepts*, 101 too. After a deferral a client never gets to offer its second recipient.

Builds differ in where descriptor 1 leads: to the SMTP connection, or to the log.
"""

from greycheck.envelope import TCPSERVER, Envelope, from_variables
from greycheck.policy import ACCEPT, DEFER, REJECT

NAME = "rcptcheck"
PROGRAM = "greycheck-rcptcheck"
ARGUMENTS = ()
VARIABLES = TCPSERVER | {"sender": b"SENDER", "recipient": b"RECIPIENT"}
FURTHER = ()
ANSWERS = {ACCEPT: 0, DEFER: 111, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From the variables. One of the two addresses may be unset where it is empty."""
    return from_variables(NAME, environ, VARIABLES)


reply = None
identify = None

TITLE = "RCPTCHECK"
SWITCHES = (b"RCPTCHECK",)
TELLS_MESSAGES = False
RUNS = "path"
SWITCH_ON = """\
RCPTCHECK, in the same places:
  :allow,RCPTCHECK="{program}"
  echo {quoted} > env/RCPTCHECK"""
DEMO = (("RCPTCHECK", "{program}"),)
IF_MISSING = "all mail is deferred"
EXIT_STATUS = ((111, "Defer, to RCPTCHECK, which takes 101 for an acceptance."),)
ENVIRONMENT = ()
MANUAL = """\
The path of greycheck-rcptcheck, in the environment of qmail-smtpd. It is run without arguments; the
envelope is in TCPREMOTEIP, SENDER and RECIPIENT. A deferral is 421, and the connection is closed; a
rejection is 553, and the session goes on. A checker that cannot run stops all mail."""
