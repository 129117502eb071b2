"""``greycheck doctor``: finds what keeps an installed greycheck from working."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import time

import click

from greycheck import __version__, settings
from greycheck.cli import terminal
from greycheck.cli.output import print_json
from greycheck.cli.terminal import Console, Table, Text
from greycheck.doctor import examine, is_sound
from greycheck.doctor.finding import LEVELS, Finding, Installation
from greycheck.doctor.monitoring import monitored
from greycheck.launchers.trial import QMAIL_USER, find_account

DIRECTORY = Path("/var/qmail/bin")

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "fault": "bold red"}


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DIRECTORY,
    show_default=True,
    help="Where greycheck install put the launchers.",
)
@click.option(
    "--user", help=f"The user that qmail-smtpd runs as.  [default: {QMAIL_USER}, where it exists]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--monitor",
    is_flag=True,
    help="Print one line for Nagios; exit with 0 OK, 1 WARNING, 2 CRITICAL or 3 UNKNOWN.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=10,
    show_default=True,
    help="How long --monitor may take: after that it is UNKNOWN.",
)
def doctor(directory: Path, user: str | None, as_json: bool, monitor: bool, timeout: float) -> None:
    """Look at everything between "installed" and "works", and say what to do.

    Launchers, compiled modules, permissions, settings, store, disk, clock, cron, DNS, and the
    qmail-smtpd that runs now. Without qmail, whether Postfix and Exim ask the resident, and hear
    it. It changes nothing. root sees most; anybody else is told what could not be seen. Exits with
    1 where something would stop mail or greylisting.

    With --monitor one line says it to Nagios and its kin, with numbers (performance data): a fault
    is CRITICAL, a warning WARNING.
    """

    def examined() -> list[Finding]:
        found = settings.read(dict(os.environb))
        return examine(Installation(directory.absolute(), find_account(user), found, time()))

    if monitor:
        if as_json:
            raise click.UsageError("--monitor prints one line: leave out --json")
        code, line = monitored(examined, timeout)
        terminal.echo(line)
        sys.exit(code)
    findings = examined()
    if as_json:
        report = {
            "version": __version__,
            "sound": is_sound(findings),
            "findings": [asdict(one) for one in findings],
        }
        print_json(report)
    else:
        show(findings)
    if not is_sound(findings):
        sys.exit(1)


def show(findings: list[Finding]) -> None:
    """Prints FINDINGS as a table, and a line that sums them up.

    A command that is too long for its column has a line of its own.
    """
    console = Console()
    widths = [
        max(len(finding.level) for finding in findings),
        max(len(finding.about) for finding in findings),
    ]
    room = console.width - sum(widths) - 2 * len(widths)
    table = grid(widths)
    for finding in findings:
        table.add_row(Text(finding.level, STYLES[finding.level]), finding.about, finding.found)
        command = finding.advice.removeprefix("Run: ")
        if command != finding.advice and len(finding.advice) > room:
            table.add_row("", "", Text("Run:", "bold"))
            console.print(table)
            console.print(Text(command, "bold"), soft_wrap=True)
            table = grid(widths)
        elif finding.advice:
            table.add_row("", "", Text(finding.advice, "bold"))
    if table.row_count:
        console.print(table)
    console.print(f"\n{summary(findings)}")


def grid(widths: list[int]) -> Table:
    """Returns a table of three columns: level and subject, of these WIDTHS, and what was found."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in widths:
        table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    return table


def summary(findings: list[Finding]) -> str:
    """Returns the numbers of FINDINGS in one line."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    faults, warnings, notes = (
        f"{counts[level]} {level}{'s'[: counts[level] != 1]}"
        for level in ("fault", "warning", "note")
    )
    if is_sound(findings):
        return f"Nothing here would stop mail or greylisting: {warnings}, {notes}."
    return f"This would stop mail or greylisting: {faults}. Besides: {warnings}, {notes}."
