"""``greycheck policy``: answers the policy protocol for Postfix's spawn."""

import sys

import click

from greycheck.resident import spawned


@click.command()
def policy() -> None:
    """Answer a mail server on standard input and output, for Postfix's spawn(8).

    It does what serve does, for one smtpd and without a daemon.

    It speaks Postfix's policy delegation protocol until the end of its input. The log goes to
    descriptor 2; where that is the connection itself, as under spawn, to the system's log.
    """
    spawned.main((sys.executable, "-I", "-m", "greycheck"))
