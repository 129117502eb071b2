"""``greycheck release``: what waits passes at its next attempt."""

import sys
from time import time

import click
from sqlalchemy import Engine, RowMapping

from greycheck.cli import completing, terminal
from greycheck.cli.common import foreseen, open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.output import asked_for, attempts_of, is_empty, print_json
from greycheck.cli.rules import DRY_RUN, JSON, as_json, decides_before, say
from greycheck.cli.show import one_triplet
from greycheck.digest import links
from greycheck.policy import Timings
from greycheck.rule_keys import ALLOW
from greycheck.rules import patterns
from greycheck.rules.findings import rule_before_expectation
from greycheck.rules.patterns import Pattern
from greycheck.rules.rule import Rule, make_rule
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.admin import queries, rulebook, waiting
from greycheck.times import away, local

# The longest line with a token that is read.
LINE = 1024


@click.command()
@click.argument(
    "what",
    nargs=-1,
    metavar="KEY | IP SENDER RECIPIENT",
    shell_complete=completing.of_store,
)
@click.option("--token", is_flag=True, help="Read the token of a link from standard input.")
@DRY_RUN
@JSON
def release(what: tuple[str, ...], token: bool, dry_run: bool, json: bool) -> None:
    """Let what waits pass at its next attempt, once, from whatever network that comes.

    KEY is a triplet's, or enough of its first digits, as `greycheck list` shows them; IP SENDER
    RECIPIENT are those of an attempt, as the log has them. The release ends with that attempt, or
    when the retry window of what waits is over. `greycheck rules list` shows it until then, and
    `greycheck rules remove` takes it back.

    With --token, what waits is named by the token of a link that `greycheck digest --links` made.
    It counts once. Where it does not count, --json prints why: its state is invalid, expired or
    used.

    What does not wait cannot be released: see `greycheck expect`.
    """
    settings, now = read_settings(), int(time())
    if token:
        if what:
            raise click.UsageError("--token is all that names what waits")
        _release_by_token(settings, now, dry_run, json)
        return
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
        rule = _rule(_pattern(what, row, settings), row, settings, now)
        change = rulebook.put_all(engine, [rule], now, dry_run=dry_run)[0]
        ruling = _rule_before(rule, rulebook.all_rules(engine), now)
    notes = [] if ruling is None else [decides_before(ruling)]
    if json:
        what_happened = {"what": change.what, "rule": as_json(change.rule), "notes": notes}
        print_json(what_happened | ({"dry_run": True} if dry_run else {}))
        return
    _tell(change.rule, notes, now, dry_run)


def _tell(rule: Rule, notes: list[str], now: int, dry_run: bool) -> None:
    """Says that the mail of RULE is released, or with DRY_RUN would be, and NOTES about it."""
    until = rule.expires_at or 0
    say(f"{'would be ' if dry_run else ''}released: {rule.pattern}")
    say(f"Its next attempt passes, from any network, until {local(until)} ({away(until, now)}).")
    for note in notes:
        say(f"note: {note}", err=True)


def _rule(pattern: Pattern, row: RowMapping, settings: Settings, now: int) -> Rule:
    """Returns the rule that releases what has PATTERN, as long as ROW waits."""
    until = min(row["expires_at"], now + Timings(settings).retry_window)
    return make_rule(pattern, ALLOW, expires_at=until, now=now)


# --- by the token of a link -----------------------------------------------------------------------


def _release_by_token(settings: Settings, now: int, dry_run: bool, json: bool) -> None:
    """Releases what the token on standard input names; with DRY_RUN only says what that is.

    Exits with 1 where the token does not count.
    """
    # The key is the owner's, with a server database too.
    with foreseen():
        rights.become_owner(settings, marks=True)
    text = sys.stdin.buffer.read(LINE).decode("ascii", "replace").removesuffix("\n")
    if is_empty(settings):
        raise click.ClickException("\n".join(no_store(settings)))
    with open_store(settings) as engine:
        secret = links.read_key(links.path_of(settings))
        try:
            named = links.read(secret, text, now)
            row, rule = _released(engine, named, settings, now, dry_run)
        except links.Refused as refused:
            if not json:
                raise click.ClickException(str(refused)) from None
            print_json({"state": refused.state})
            sys.exit(1)
        ruling = _rule_before(rule, rulebook.all_rules(engine), now)
    notes = [] if ruling is None else [decides_before(ruling)]
    if not json:
        _tell(rule, notes, now, dry_run)
        return
    print_json(
        {
            "state": "waits" if dry_run else "released",
            "sender": row["sender"],
            "recipient": row["recipient"],
            "first_attempt": row["first_attempt"],
            "until": rule.expires_at,
            "notes": notes,
        }
    )


def _released(
    engine: Engine, named: links.Token, settings: Settings, now: int, dry_run: bool
) -> tuple[RowMapping, Rule]:
    """Releases what the token NAMED, unless DRY_RUN; returns its row and the rule.

    Raises Refused where it does not wait, or was released by this token before.
    """

    def ruling(row: RowMapping) -> Rule:
        return _rule(_pattern((), row, settings), row, settings, now)

    row = waiting.at_first_attempt(engine, named.key, named.first, now)
    if row is None:
        raise links.Refused(links.USED)
    if dry_run:
        return row, ruling(row)
    rule = waiting.release_once(engine, named.key, named.first, ruling, now)
    if rule is None:
        raise links.Refused(links.USED)
    return row, rule


# --- what waits -----------------------------------------------------------------------------------


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
    return patterns.release(queries.as_today(row["sender"]), queries.as_today(row["recipient"]))


def _rule_before(rule: Rule, every: list[Rule], now: int) -> Rule | None:
    """Returns the one of EVERY rule that decides before RULE, on mail to the same recipient."""
    try:
        recipient = patterns.parse(rule.pattern.partition(" ")[0])
    except ValueError:
        return None
    return rule_before_expectation(recipient, every, now)
