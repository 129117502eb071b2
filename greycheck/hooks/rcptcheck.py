"""RCPTCHECK: the program that the variable names, run once per RCPT TO without arguments, with SENDER and RECIPIENT in its environment.

Answers (contract.md section 7): 100 refuses this recipient with 553, and the session goes on; 111 is 421 and the connection is closed; 120
and a signal are 421 and closed too; every other exit code *accepts*. A client therefore never gets to offer its second recipient
after a deferral, as with CHECKENV. 101, a deferral to the other hooks, is none here.

Builds differ in where descriptor 1 leads: to the SMTP connection, or to the log. Nobody hands over what the client calls itself.
"""

from greycheck.envelope import Envelope, from_variables
from greycheck.hooks import silence as says
from greycheck.policy import ACCEPT, DEFER, REJECT

__all__ = ["ANSWERS", "NAME", "envelope", "says"]

NAME = "rcptcheck"
ANSWERS = {ACCEPT: 0, DEFER: 111, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From SENDER, RECIPIENT and tcpserver's variables. One of the two addresses may be unset where it is empty."""
    return from_variables(NAME, environ, b"SENDER", b"RECIPIENT")
