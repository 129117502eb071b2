"""``greycheck simulate``: what other settings would have made of the mail in a log."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import time

import click

from greycheck import log, settings
from greycheck.cli import terminal
from greycheck.cli.columns import facts, wrapped
from greycheck.cli.common import foreseen, read_settings
from greycheck.cli.output import console, print_json
from greycheck.cli.rules import text_lines
from greycheck.cli.terminal import Console, Table, Text
from greycheck.privilege import files
from greycheck.rules.index import RuleIndex
from greycheck.rules.rule import Rule, read_lines
from greycheck.settings import Settings
from greycheck.simulation import telling
from greycheck.simulation.figures import CURRENT, OTHER, Simulation
from greycheck.simulation.history import Log
from greycheck.simulation.replay import Way, simulate

# The width of the names of what was simulated, in columns.
LABEL = 9

# The settings that decide about mail that a log tells of, each an option.
OPTIONS = (
    "delay",
    "retry_window",
    "lifetime",
    "ipv4_prefix",
    "ipv6_prefix",
    "client_passes",
    "domain_passes",
    "pool_networks",
    "identity",
    "null_sender",
    "strikes",
    "strike_interval",
    "strike_time",
    "learn_outbound",
    "network_limit",
    "pending_limit",
)


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each setting of OPTIONS to COMMAND, which takes them by its name."""
    for name in reversed(OPTIONS):
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar="VALUE",
            help=settings.BY_NAME[name].meaning,
        )(command)
    return command


@click.command("simulate")
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE...",
    help="A log, and any number of further ones; - is standard input.",
)
@click.argument("more", nargs=-1, metavar="")
@setting_options
@click.option(
    "--rules",
    "rules",
    metavar="FILE",
    help="Under the rules of FILE, as greycheck rules export writes it, and no others.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON, by day too.")
def simulate_(
    logs: tuple[str, ...],
    more: tuple[str, ...],
    rules: str | None,
    as_json: bool,
    **given: str | None,
) -> None:
    """Work out what other settings would have made of the mail that a log tells of.

    FILE is a log with greycheck's own lines and their times, as multilog, syslog or journalctl
    writes it; several are read in the order of their times. Each line is an attempt, on which the
    check's own decision is made again: under the settings as they are now, and under those that are
    given here. No store is opened.

    \b
        greycheck simulate --log /var/log/smtpd/@*.s --delay 15m

    It is approximate. What passed in the log was not tried again: where the given settings would
    defer it still, the published schedule of its sender stands in, and the figures say for how many
    mails. Which networks may send for a domain is known as far as the log has identity=. Without
    --rules those rules count that the log names. A mail is told by its sender and its recipient.
    """  # noqa: D301
    names = (*logs, *more)
    if not names:
        raise click.UsageError("name a log: greycheck simulate --log /var/log/smtpd/current")
    now = int(time())
    current = read_settings()
    changed = {name: value for name, value in given.items() if value is not None}
    ways = [Way(CURRENT, current)]
    notes: list[str] = []
    if changed or rules is not None:
        index = None
        if rules is not None:
            index, notes = _read_rules(rules, now)
        ways.append(Way(OTHER, _with(changed), index))
    with foreseen(), ExitStack() as opened:
        sources = [_log(name, opened) for name in names]
        with _progress(sources) as progress:
            found = simulate(sources, ways, current.lifetime, now, progress)
    if found.first is None:
        raise click.ClickException(_nothing(found))
    found.settings = [
        (name, _shown(name, ways[0].settings), _shown(name, ways[-1].settings))
        for name in OPTIONS
        if _shown(name, ways[0].settings) != _shown(name, ways[-1].settings)
    ]
    found.rules = rules
    if as_json:
        print_json(found.as_data())
        return
    for note in notes:
        terminal.echo(f"Note: {note}", err=True)
    show(console(), found)


# --- what it is given -----------------------------------------------------------------------------


def _log(name: str, opened: ExitStack) -> Log:
    """The log NAME; what can be read only once, as a pipe, is OPENED. Raises OSError."""
    if name == "-":
        return Log(stream=sys.stdin.buffer)
    path = Path(name)
    stream = files.opened(path)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return Log(stream=opened.enter_context(stream))
    stream.close()
    return Log(path)


def _with(changed: dict[str, str]) -> Settings:
    """The settings of this process with those that are CHANGED. Raises UsageError."""
    environ = dict(os.environb)
    for name, value in changed.items():
        environ[settings.PREFIX + name.upper().encode()] = os.fsencode(value)
    found = settings.read(environ)
    if found.problems:
        words = "\n".join(log.quoted(problem)[1:-1] for problem in found.problems)
        for name in changed:
            option = f"--{name.replace('_', '-')}"
            words = words.replace(f"GREYCHECK_{name.upper()}", option)
        raise click.UsageError(words)
    return found


def _read_rules(path: str, now: int) -> tuple[RuleIndex, list[str]]:
    """The rules in the file PATH, and what is to be said of them. Raises ClickException."""
    read, notes, faults = read_lines(text_lines(path), now)
    if faults:
        raise click.ClickException("\n".join(f"{path}:{terminal.shown(fault)}" for fault in faults))
    unknown = sum(rule.kind in ("name", "helo") for rule in read)
    notes = [f"{path}:{note}" for note in notes]
    if unknown:
        notes.append(f"{path}: {unknown} rules by name or HELO match nothing: a log has neither")
    return RuleIndex([_row(rule) for rule in read]), notes


def _row(rule: Rule) -> tuple[bytes, str, str, str, int | None, int | None]:
    return rule.match_key, rule.kind, rule.pattern, rule.action, rule.delay, rule.expires_at


def _shown(name: str, of: Settings) -> str:
    """The value of the setting NAME, as an operator writes it."""
    return str(settings.BY_NAME[name].show(getattr(of, name)))


def _nothing(found: Simulation) -> str:
    """Why nothing could be simulated."""
    if found.unusable:
        return (
            f"none of {found.unusable} lines of checks has both a time and a client: let multilog"
            " write times (t), or take the log of syslog or journalctl"
        )
    return f"no line of {found.lines} is one of a check of greycheck's"


@contextmanager
def _progress(logs: Sequence[Log]) -> Iterator[Callable[[int], None] | None]:
    """Shows on a terminal how much of LOGS is read; yields whom to tell it, in bytes."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    sizes = [log.path.stat().st_size for log in logs if log.path is not None]
    size = sum(sizes) if len(sizes) == len(logs) else None
    columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as bar:
        task = bar.add_task("reading", total=size)
        yield lambda done: bar.update(task, completed=done)


# --- for people -----------------------------------------------------------------------------------


def show(screen: Console, found: Simulation) -> None:
    """Prints what was FOUND to SCREEN."""
    facts(screen, telling.about(found), LABEL)
    screen.print()
    screen.print(_table(found))
    if len(found.ways) > 2:
        screen.print()
        _show_changes(screen, found)
    if note := telling.stood_in(found):
        screen.print()
        for line in wrapped(note, min(screen.width, 80)):
            screen.print(Text(line, "dim"), soft_wrap=True)


def _table(found: Simulation) -> Table:
    titles, rows = telling.table(found)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    for _title in titles[1:]:
        table.add_column(justify="right")
    table.add_row(*(Text(title, "bold") for title in titles))
    for row in rows:
        table.add_row(*row)
    return table


def _show_changes(screen: Console, found: Simulation) -> None:
    """Prints how many mails fare otherwise than under the current settings."""
    changed = [(pair, number) for pair, number in found.changes.items() if pair[0] != pair[1]]
    if not changed:
        screen.print("No mail fares otherwise than under the current settings, but for its wait.")
        return
    screen.print("Mails that fare otherwise than under the current settings", style="bold")
    for (before, after), number in sorted(changed, key=lambda each: -each[1]):
        screen.print(f"{number:>9}  {telling.FATES[before]} -> {telling.FATES[after]}")
