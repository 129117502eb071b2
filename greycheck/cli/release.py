"""``greycheck release``: what waits passes at its next attempt."""

from time import time

import click
from sqlalchemy import Engine, RowMapping

from greycheck import log
from greycheck.cli import completing, terminal
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.output import asked_for, attempts_of, is_empty, print_json
from greycheck.cli.rules import JSON, as_json, decides_before, say
from greycheck.cli.show import one_triplet
from greycheck.policy import Timings
from greycheck.rule_keys import ALLOW
from greycheck.rules import patterns
from greycheck.rules.findings import rule_before_expectation
from greycheck.rules.patterns import Pattern
from greycheck.rules.rule import Rule
from greycheck.settings import Settings
from greycheck.store.admin import queries, rulebook
from greycheck.times import away, local


@click.command()
@click.argument(
    "what",
    nargs=-1,
    required=True,
    metavar="KEY | IP SENDER RECIPIENT",
    shell_complete=completing.of_store,
)
@JSON
def release(what: tuple[str, ...], json: bool) -> None:
    """Let what waits pass at its next attempt, once, from whatever network that comes.

    KEY is a triplet's, or enough of its first digits, as `greycheck list` shows them; IP SENDER
    RECIPIENT are those of an attempt, as the log has them. The release ends with that attempt, or
    when the retry window of what waits is over. `greycheck rules list` shows it until then, and
    `greycheck rules remove` takes it back.

    What does not wait cannot be released: see `greycheck expect`.
    """
    settings, now = read_settings(), int(time())
    if len(what) not in (1, 3):
        raise click.UsageError("name a triplet that waits: KEY, or IP SENDER RECIPIENT")
    digits, address = asked_for(what, settings)
    if address:
        raise click.UsageError(
            f"{what[0]}: a client's mail is let in by greycheck allow; here name what waits: KEY,"
            " or IP SENDER RECIPIENT"
        )
    if is_empty(settings):
        raise click.ClickException("\n".join(no_store(settings)))
    with open_store(settings) as engine:
        row = _waiting(engine, what, digits, settings, now)
        pattern = _pattern(what, row, settings)
        until = min(row["expires_at"], now + Timings(settings).retry_window)
        change = rulebook.put(engine, pattern, ALLOW, None, "", until, now)
        ruling = _rule_before(pattern, rulebook.all_rules(engine), now)
    notes = [] if ruling is None else [decides_before(ruling)]
    if json:
        print_json({"what": change.what, "rule": as_json(change.rule), "notes": notes})
        return
    say(f"released: {pattern.text}")
    say(f"Its next attempt passes, from any network, until {local(until)} ({away(until, now)}).")
    for note in notes:
        say(f"note: {note}", err=True)


def _waiting(
    engine: Engine, what: tuple[str, ...], digits: list[str], settings: Settings, now: int
) -> RowMapping:
    """Returns the row of WHAT waits, of the triplet that is named or else of the same pair.

    DIGITS are those of its keys. Raises ClickException.
    """
    found = [row for each in digits if (row := one_triplet(engine, each)) is not None]
    for row in found:
        if queries.waits(row, now):
            return row
    if len(what) == 3:
        asked = attempts_of(what, settings)[0]
        others = queries.waiting_of_pair(engine, asked, now)
        if others:
            return max(others, key=lambda row: int(row["expires_at"]))
    why = _why_not(found[0], now) if found else "nothing is known that waits by this"
    raise click.ClickException(terminal.shown(f"{' '.join(what)}: {why}"))


def _why_not(row: RowMapping, now: int) -> str:
    """Returns why what ROW says does not wait at NOW."""
    if queries.message_of(row):
        return "that is no triplet: it stands for a message whose first recipient passed"
    passed = row["passed_at"]
    if passed is None or row["expires_at"] < now:
        return "it does not wait any more: its next attempt counts as the first"
    return f"it does not wait: it passed {away(passed, now)}"


def _pattern(what: tuple[str, ...], row: RowMapping, settings: Settings) -> Pattern:
    """Returns the pattern that the next attempt of WHAT has, of which ROW waits."""
    if len(what) == 3:
        # An earlier release may have folded the sender of the row in another way.
        return patterns.release(*attempts_of(what, settings)[0].shown)
    return patterns.release(_today(row["sender"]), _today(row["recipient"]))


def _today(text: str) -> str:
    """Returns the address TEXT of a row as it is written today. Some rows have long ones whole."""
    if log.CUT in text:
        return text
    return log.show_address(log.unshown(text.encode("utf-8", "surrogateescape")))


def _rule_before(pattern: Pattern, every: list[Rule], now: int) -> Rule | None:
    """Returns the one of EVERY rule that decides before, on mail to the recipient of PATTERN."""
    try:
        recipient = patterns.parse(pattern.text.partition(" ")[0])
    except ValueError:
        return None
    return rule_before_expectation(recipient, every, now)
