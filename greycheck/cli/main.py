"""The command ``greycheck`` with all its commands."""

import click

from greycheck import __version__
from greycheck.cli.completion import completion
from greycheck.cli.config import config
from greycheck.cli.copy import copy
from greycheck.cli.db import db
from greycheck.cli.demo import demo
from greycheck.cli.digest import digest
from greycheck.cli.doctor import doctor
from greycheck.cli.expire import expire
from greycheck.cli.explain import explain
from greycheck.cli.forget import forget
from greycheck.cli.install import install
from greycheck.cli.learn import learn
from greycheck.cli.list import list_
from greycheck.cli.metrics import metrics
from greycheck.cli.policy import policy
from greycheck.cli.providers import providers
from greycheck.cli.release import release
from greycheck.cli.report import report
from greycheck.cli.resolve import resolve
from greycheck.cli.rules import allow, defer, expect, greylist, reject, rules
from greycheck.cli.serve import serve
from greycheck.cli.show import show
from greycheck.cli.simulate import simulate_
from greycheck.cli.stats import stats
from greycheck.cli.status import status
from greycheck.cli.terminal import Group
from greycheck.cli.watch import watch

EPILOG = """
Run by qmail-smtpd, without a command, greycheck checks one envelope: SMTPEXTFORK calls it
greycheck, CHECKENV qmail-checkenv.
"""


# The commands in the order of the help, each on a line of 80 columns.
SECTIONS = {
    "What was decided, and why": {
        "status": "Show what waits, passed, is known or refused, and from where.",
        "stats": "Tell what was deferred, passed, and never came back.",
        "report": "The same with tables for mail, or as a page with plots.",
        "metrics": "The same for Prometheus, as counters.",
        "list": "List what waits or passed, clients, and senders' domains.",
        "show": "Show all that is known of a triplet, a client or a domain.",
        "digest": "Tell what never came back, and looks legitimate. For cron.",
        "explain": "Explain what a check would decide now, and why.",
        "watch": "Show the log as it comes: verdict, reason, who and whom.",
        "simulate": "Work out what other settings would have done, from logs.",
    },
    "Whom to let in": {
        "allow": "Accept at once what PATTERN matches.",
        "reject": "Refuse for good what PATTERN matches.",
        "greylist": "Greylist what PATTERN matches, known clients too.",
        "defer": "Refuse what PATTERN matches for now, at every attempt.",
        "expect": "Let the next mail to RECIPIENT pass without delay.",
        "learn": "Learn from logs whom our users write to.",
        "release": "Let what waits pass at its next attempt.",
        "rules": "List, check, remove, export and import these rules.",
        "providers": "Let mail providers in at once, from their SPF's networks.",
        "forget": "Forget triplets, clients or domains.",
    },
    "Set up and run": {
        "install": "Make the store, and put the launchers into DIR.",
        "doctor": "Look whether all is as it must be, and say what to do.",
        "config": "Print the settings, and where each comes from.",
        "serve": "Answer mail servers and launchers in C over a socket.",
        "policy": "Answer one Postfix smtpd, for its spawn(8).",
        "completion": "Print what makes a shell complete commands.",
        "demo": "See it work: a mail deferred, tried again, and accepted.",
    },
    "The store": {
        "expire": "Remove what is over. For cron.",
        "resolve": "Ask DNS for the networks of senders' domains. For cron.",
        "db": "Make, change or show the schema.",
        "copy": "Copy all to another database.",
    },
}


@click.group(
    cls=Group,
    sections=SECTIONS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, package_name="greycheck", message="greycheck %(version)s")
def cli() -> None:
    """Greylisting for qmail.

    Defers a mail from an unknown triplet of client, sender and recipient until it is tried again.
    """


for command in (
    install,
    serve,
    policy,
    doctor,
    status,
    stats,
    report,
    metrics,
    digest,
    explain,
    list_,
    show,
    watch,
    simulate_,
    forget,
    config,
    expire,
    resolve,
    db,
    copy,
    completion,
    demo,
    allow,
    reject,
    greylist,
    defer,
    expect,
    learn,
    release,
    rules,
    providers,
):
    cli.add_command(command)
