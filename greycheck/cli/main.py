"""The tool as a whole."""

import click

from greycheck import __version__
from greycheck.cli.config import config
from greycheck.cli.db import db
from greycheck.cli.demo import demo
from greycheck.cli.expire import expire
from greycheck.cli.install import install

EPILOG = """
Run by qmail-smtpd, without a command, greycheck checks one envelope: SMTPEXTFORK calls it greycheck, CHECKENV qmail-checkenv.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="greycheck", message="greycheck %(version)s")
def cli() -> None:
    """Greylisting for qmail: defers a mail from an unknown triplet of client, sender and recipient until it is tried again."""


for command in (install, config, expire, db, demo):
    cli.add_command(command)
