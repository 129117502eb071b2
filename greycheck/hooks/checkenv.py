"""CHECKENV: ``bin/qmail-checkenv SENDER RECIPIENT``, run once per RCPT TO.

Answers (contract.md section 1): 0 accepts; 100 is 553 and the connection is closed; 101, every other exit code, and a signal are
421 and the connection is closed. A client therefore never gets to offer its second recipient.
"""

from greycheck.envelope import Envelope, from_tcpserver
from greycheck.hooks import silence as says
from greycheck.policy import ACCEPT, DEFER, REJECT

__all__ = ["ANSWERS", "NAME", "envelope", "says"]

NAME = "checkenv"
ANSWERS = {ACCEPT: 0, DEFER: 101, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:
    """From the two arguments, whatever they look like, and tcpserver's variables. REMOTEMF may be stale and is not looked at."""
    if len(argv) != 3:
        return Envelope(NAME, None, b"", b"", missing="SENDER,RECIPIENT")
    return from_tcpserver(NAME, environ, argv[1], argv[2])
