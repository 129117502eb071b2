"""SMTPEXTFORK and SMTPEXTFORKR: a list of programs, each run once per RCPT TO with the envelope in its environment.

Answers (contract.md section 1): 0 goes on to the next program of the list, 101 refuses this recipient with 454, 100 with 554; the
session goes on. Every other exit code, and a signal, *accepts*.
"""

from greycheck.envelope import Envelope, from_tcpserver
from greycheck.policy import ACCEPT, DEFER, REJECT

NAME = "smtpextfork"
ANSWERS = {ACCEPT: 0, DEFER: 101, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From REMOTEMF, REMOTERCPT and tcpserver's variables. One of the two addresses may be unset where it is empty."""
    sender = environ.get(b"REMOTEMF")
    recipient = environ.get(b"REMOTERCPT")
    found = from_tcpserver(NAME, environ, sender or b"", recipient or b"", environ.get(b"REMOTEHELO", b""))
    if sender is None and recipient is None:
        found.missing = "REMOTEMF,REMOTERCPT" + (f",{found.missing}" if found.missing else "")
    return found
