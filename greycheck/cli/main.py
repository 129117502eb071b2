"""The tool as a whole."""

import click

from greycheck import __version__
from greycheck.cli.completion import completion
from greycheck.cli.config import config
from greycheck.cli.copy import copy
from greycheck.cli.db import db
from greycheck.cli.demo import demo
from greycheck.cli.doctor import doctor
from greycheck.cli.expire import expire
from greycheck.cli.explain import explain
from greycheck.cli.forget import forget
from greycheck.cli.install import install
from greycheck.cli.list import list_
from greycheck.cli.policy import policy
from greycheck.cli.rules import allow, expect, greylist, reject, rules
from greycheck.cli.serve import serve
from greycheck.cli.show import show
from greycheck.cli.terminal import Group

EPILOG = """
Run by qmail-smtpd, without a command, greycheck checks one envelope: SMTPEXTFORK calls it greycheck, CHECKENV qmail-checkenv.
"""


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="greycheck", message="greycheck %(version)s")
def cli() -> None:
    """Greylisting for qmail: defers a mail from an unknown triplet of client, sender and recipient until it is tried again."""


for command in (
    install,
    serve,
    policy,
    doctor,
    explain,
    list_,
    show,
    forget,
    config,
    expire,
    db,
    copy,
    completion,
    demo,
    allow,
    reject,
    greylist,
    expect,
    rules,
):
    cli.add_command(command)
