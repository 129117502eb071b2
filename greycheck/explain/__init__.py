"""Explains why a mail is deferred, accepted or refused: the decision, with each step in words."""
