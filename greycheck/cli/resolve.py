"""``greycheck resolve``: asks DNS which networks senders' domains send from, run by cron.

What asks DNS is imported only when it is run: other commands start sooner so.
"""

import time
from typing import TYPE_CHECKING

import click

from greycheck.cli import terminal
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.output import duration, is_empty, print_json
from greycheck.explain.decision import address_bytes
from greycheck.log import show_address
from greycheck.normalise import mail_address
from greycheck.policy import domain_of
from greycheck.resolve import LIMIT, SECONDS
from greycheck.settings import Settings
from greycheck.store.base import domain_key
from greycheck.times import away

if TYPE_CHECKING:
    from greycheck.resolve.due import Task
    from greycheck.resolve.telling import Said
    from greycheck.resolve.work import Report


@click.command()
@click.argument("named", metavar="[DOMAIN]...", nargs=-1)
@click.option("-v", "--verbose", is_flag=True, help="Say how many domains were asked.")
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000000),
    default=LIMIT,
    show_default=True,
    help="How many domains to ask at most.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1, 3600),
    default=SECONDS,
    show_default=True,
    help="When to end, whatever is left.",
)
@click.option(
    "--interval",
    metavar="DURATION",
    default="1m",
    show_default=True,
    callback=duration,
    help="How often it is run.",
)
def resolve(
    named: tuple[str, ...], verbose: bool, as_json: bool, limit: int, seconds: int, interval: int
) -> None:
    """Ask DNS for the networks of senders' domains, and keep them for all hosts.

    For cron, each minute: says nothing unless something is wrong.

    Asked are domains whose mail waits, and those that are known, when the answer before is over.
    Each question is bounded in time, and one host asks each domain. While DNS fails, the last
    answer counts for a week. greycheck serve does this by itself.

    Each DOMAIN that is named is asked at once, and what it says is printed. Exits with 1 where DNS
    does not answer.
    """
    from greycheck.resolve import telling, work

    settings, now = read_settings(), int(time.time())
    tasks = [_task(text) for text in named]
    if is_empty(settings):
        report = work.Report()
        if named:
            raise click.ClickException("there is no store yet: run greycheck db upgrade")
    else:
        with open_store(settings) as engine:
            began = time.monotonic()
            try:
                if named:
                    resolver = work.resolver(settings)
                    work.work_off(engine, resolver, tasks, now, began + seconds, forced=True)
                    said = [telling.said(engine, task.key, int(time.time())) for task in tasks]
                elif settings.identity == "no":
                    report = work.Report()
                else:
                    # The turns overlap a little: cron is not exact.
                    report = work.run(engine, settings, now, interval + 10, limit, seconds)
            except ValueError as error:
                raise click.ClickException(f"resolver: {error}") from None
    if named:
        _print_said(tasks, said, as_json, int(time.time()))
    elif as_json:
        print_json(vars(report))
    elif verbose:
        _print_report(report, settings)


def _task(text: str) -> "Task":
    """Returns the task of the domain that TEXT names. Raises UsageError."""
    from greycheck.resolve.due import Task
    from greycheck.spf import dns

    domain = domain_of(mail_address(b"@" + domain_of(address_bytes(text))))
    if dns.domain_name(domain) is None:
        raise click.UsageError(f"{text}: not a domain that DNS can have")
    return Task(domain_key(domain), domain)


def _print_report(report: "Report", settings: Settings) -> None:
    if settings.identity == "no":
        terminal.echo("identity is no: no domain is asked")
        return
    terminal.echo(
        f"domains: {report.asked} asked, {report.answered} answered, {report.failed} failed,"
        f" {report.elsewhere} asked by another host, {report.left} left for the next run;"
        f" clients: {report.clients} evaluated"
    )


def _print_said(tasks: "list[Task]", said: "list[Said | None]", as_json: bool, now: int) -> None:
    """Prints what was SAID by the domains of TASKS. Exits with 1 if one did not answer."""
    names = [show_address(task.domain) for task in tasks]
    if as_json:
        print_json(
            [
                {"domain": name, "state": None} if one is None else {"domain": name, **vars(one)}
                for name, one in zip(names, said, strict=True)
            ]
        )
    else:
        for name, one in zip(names, said, strict=True):
            terminal.echo(f"{name}: {'not asked' if one is None else _words(one, now)}")
            for network in one.networks if one else ():
                terminal.echo(f"    {network}")
    if any(one is None or one.failures for one in said):
        raise SystemExit(1)


def _words(said: "Said", now: int) -> str:
    many = f"{len(said.networks)} network{'s' * (len(said.networks) != 1)}"
    words = [f"{said.state}, {many}"]
    if said.per_client:
        words.append("more can be told of a client only")
    if said.answered_at is not None:
        words.append(f"answered {away(said.answered_at, now)}")
    if said.failures:
        words.append(f"{said.failures} questions in a row without an answer")
    return "; ".join(words) + (f" ({said.why})" if said.why else "")
