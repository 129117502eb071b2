"""SMTPEXTFORK and SMTPEXTFORKR: a list of programs, each run once per RCPT TO with the envelope in its environment.

Answers (contract.md section 1): 0 goes on to the next program of the list, 101 refuses this recipient with 454, 100 with 554; the
session goes on. Every other exit code, and a signal, *accepts*.
"""

from greycheck.envelope import Envelope, from_variables
from greycheck.hooks import silence as says
from greycheck.policy import ACCEPT, DEFER, REJECT

__all__ = ["ANSWERS", "NAME", "envelope", "says"]

NAME = "smtpextfork"
ANSWERS = {ACCEPT: 0, DEFER: 101, REJECT: 100}


def envelope(argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:  # noqa: ARG001
    """From REMOTEMF, REMOTERCPT and tcpserver's variables. One of the two addresses may be unset where it is empty."""
    return from_variables(NAME, environ, b"REMOTEMF", b"REMOTERCPT", b"REMOTEHELO")
