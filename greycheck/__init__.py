"""Greylisting for qmail's SMTPEXTFORK and CHECKENV hooks."""

__version__ = "0.1.0"
