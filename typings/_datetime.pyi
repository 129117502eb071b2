"""The part of datetime that is written in C."""
