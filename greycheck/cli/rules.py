"""``greycheck allow``, ``reject``, ``greylist``, ``expect`` and ``greycheck rules``: whom an operator lets through, or does not."""

import codecs
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import NoReturn

import click
from sqlalchemy import Engine

from greycheck import log, patterns
from greycheck import rules as keys
from greycheck.cli import asking, completing, terminal
from greycheck.cli.columns import Rows, wrapped
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.terminal import Console
from greycheck.patterns import Pattern
from greycheck.settings import Settings, duration_text
from greycheck.store import rulebook
from greycheck.store.rulebook import ADDED, REMOVED, REPLACED, UNCHANGED, Change, Finding, Rule

PATTERNS = """
    \b
    192.0.2.7  192.0.2.0/24  2001:db8::/32     the client's address or network
    name:mail.example.com  name:.example.com   its name; after a dot: and what is under it
    helo:mail.example.com  helo:.example.com   what it calls itself
    from:user@example.com  from:user@          the sender, with its tags or as it is folded; the user at any domain
    from:example.com  from:.example.com        the sender's domain; and what is under it
    from:<>                                    the null sender
    to:...                                     the recipient, in the same forms

    A pattern of more than a /8 of IPv4 or a /16 of IPv6, or of a top-level domain, wants --yes.

    Of several rules that match, one by recipient decides before one by sender, then network, name, HELO; of one kind the most specific.
"""

# How many lines a file may name as wrong before the rest is only counted.
MOST_FAULTS = 20


@dataclass
class Told:
    """What a command tells: the CHANGES, NOTES about them, and lines that it could not take; of a file how many (COUNTS) of each."""

    changes: list[Change]
    notes: list[str] = field(default_factory=list)
    not_mapped: list[dict[str, object]] = field(default_factory=list)
    dry_run: bool = False
    counts: dict[str, int] | None = None


def fail(text: str, error: ValueError) -> NoReturn:
    """Ends with exit code 1: what is wrong with TEXT."""
    raise click.ClickException(f"{quoted(text)}: {error}") from None


def quoted(text: str) -> str:
    """TEXT as it was written, what cannot be printed escaped."""
    return "".join(char if char.isprintable() else log.quoted(char)[1:-1] for char in text)


def parse(text: str) -> Pattern:
    """The pattern TEXT. Raises ClickException where it is none."""
    try:
        return patterns.parse(text)
    except ValueError as error:
        fail(text, error)


def as_json(rule: Rule | None) -> dict[str, object] | None:
    """RULE for JSON: durations in seconds, times in seconds since 1970."""
    if rule is None:
        return None
    return {
        "action": "expect" if rule.kind == keys.EXPECT else rule.action,
        "pattern": rule.pattern,
        "kind": rule.kind,
        "delay": rule.delay,
        "comment": rule.comment,
        "created_at": rule.created_at,
        "expires_at": rule.expires_at,
    }


def tell(told: Told, json: bool) -> None:
    """Prints what changed; notes go to standard error."""
    if json:
        changes = [{"what": one.what, "rule": as_json(one.rule), "was": as_json(one.old)} for one in told.changes]
        counts = {} if told.counts is None else {"counts": told.counts | {"not_mapped": len(told.not_mapped)}}
        asking.print_json(
            {"changes": changes, "notes": told.notes, "not_mapped": told.not_mapped, "dry_run": told.dry_run, **counts}
        )
        return
    for change in told.changes:
        was = f" (was: {rulebook.line(change.old)})" if change.what == REPLACED and change.old else ""
        say(f"{'would be ' if told.dry_run else ''}{change.what}: {rulebook.line(change.rule)}{was}")
    for line in told.not_mapped:
        say(f"not mapped: {line['file']}:{line['line']}: {line['text']}: {line['why']}")
    for note in told.notes:
        say(f"note: {note}", err=True)
    if told.counts is not None:
        every = told.counts | ({"not mapped": len(told.not_mapped)} if told.not_mapped else {})
        said = ", ".join(f"{number} {what}" for what, number in every.items() if number)
        say(f"rules: {said or 'none'}{' (dry run: nothing was changed)' if told.dry_run else ''}")


def say(text: str, err: bool = False) -> None:
    """Prints TEXT as a line; on a terminal it is broken between words. ERR: on standard error."""
    console = Console(stderr=err)
    for line in wrapped(terminal.shown(text), console.width) if console.is_terminal else [terminal.shown(text)]:
        console.print(line, soft_wrap=True)


JSON = click.option("--json", "json", is_flag=True, help="Print JSON.")
YES = click.option("--yes", is_flag=True, help="Also where that is a large part of all mail: 0.0.0.0/0, from:.com.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only tell what would change.")


def expires(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Of an option's VALUE: seconds, one at least."""
    seconds = asking.duration(context, option, value)
    if seconds == 0:
        raise click.BadParameter("must be 1s at least")
    return seconds


# --- one rule ----------------------------------------------------------------------------------------------------------


def refuse_wide(wanted: Sequence[Rule]) -> None:
    """Raises ClickException where one of the rules WANTED decides about so much mail that it may not have been meant."""
    for rule in wanted:
        reach = patterns.reach(patterns.parse(rule.pattern))
        if reach:
            raise click.ClickException(f"{rulebook.line_of(rule)}: that is {reach}: give --yes if it is meant")


def put(
    text: str, action: str, delay: int | None, comment: str | None, expires: int | None, yes: bool, json: bool
) -> None:
    """Makes the rule of the pattern TEXT and tells. Without YES it is none for a large part of all mail; without COMMENT it keeps its."""
    found = read_settings()
    now = int(time())
    pattern = parse(text)
    try:
        wanted = rulebook.made(pattern, action, delay, comment or "", None if expires is None else now + expires, now)
    except ValueError as error:
        fail(comment or "", error)
    if not yes:
        refuse_wide([wanted])
    with open_store(found) as engine:
        change = rulebook.put_all(engine, [wanted], now, keep_comments=comment is None)[0]
        notes = (
            [] if change.what == UNCHANGED else rulebook.remarks(change.rule, rulebook.all_rules(engine), found, now)
        )
    tell(Told([change], ([pattern.note] if pattern.note else []) + notes), json)


def rule_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options and the argument of each command that makes a rule."""
    for decorator in (
        JSON,
        YES,
        click.option("--expires", metavar="DURATION", callback=expires, help="End it after this time, as 7d."),
        click.option(
            "--comment", metavar="TEXT", help="Why; for people. Without it a rule keeps its comment; '' takes it away."
        ),
        click.argument("pattern", shell_complete=completing.of_rules),
    ):
        command = decorator(command)
    return command


@click.command(epilog=PATTERNS)
@rule_options
def allow(pattern: str, comment: str | None, expires: int | None, yes: bool, json: bool) -> None:
    """Accept at once what PATTERN matches.

    The rule of a pattern is what it was last made, but for its comment: without --expires it does not end. By name (name:) it counts
    only with verified_names = yes.
    """
    put(pattern, keys.ALLOW, None, comment, expires, yes, json)


@click.command(epilog=PATTERNS)
@rule_options
def reject(pattern: str, comment: str | None, expires: int | None, yes: bool, json: bool) -> None:
    """Refuse for good what PATTERN matches.

    The rule of a pattern is what it was last made, but for its comment: without --expires it does not end.
    """
    put(pattern, keys.REJECT, None, comment, expires, yes, json)


@click.command(epilog=PATTERNS)
@click.option(
    "--delay", metavar="DURATION", callback=asking.duration, help="Its own delay, as 1h.  [default: the setting's]"
)
@rule_options
def greylist(pattern: str, delay: int | None, comment: str | None, expires: int | None, yes: bool, json: bool) -> None:
    """Greylist what PATTERN matches, also from known clients, with a delay of its own if you like.

    The rule of a pattern is what it was last made, but for its comment: without --expires it does not end.
    """
    put(pattern, keys.GREYLIST, delay, comment, expires, yes, json)


@click.command()
@click.argument("recipient")
@click.option("--from", "domain", metavar="DOMAIN", help="Only from this domain and what is under it.")
@click.option("--for", "wait", metavar="DURATION", default="15m", show_default=True, callback=expires, help="How long.")
@JSON
def expect(recipient: str, domain: str | None, wait: int, json: bool) -> None:
    """Let the next mail to RECIPIENT pass without delay: a login code, a registration.

    It ends with that mail, or by itself. Without --from it may be anybody's mail that passes.
    """
    found = read_settings()
    now = int(time())
    try:
        pattern = patterns.expectation(recipient, domain)
    except ValueError as error:
        fail(recipient if domain is None else f"{recipient} from {domain}", error)
    with open_store(found) as engine:
        change = rulebook.put(engine, pattern, keys.ALLOW, None, "", now + wait, now)
        every = rulebook.all_rules(engine)
    notes = [pattern.note] if pattern.note else []
    ruling = rulebook.about_expectation(patterns.parse(pattern.text.split(" ")[0]), every, now)
    if ruling:
        fate = "passes anyway" if ruling.action == keys.ALLOW else "is rejected all the same"
        notes.append(f"{rulebook.line_of(ruling)} decides before: this mail {fate}")
    tell(Told([change], notes), json)


# --- all rules ---------------------------------------------------------------------------------------------------------


@click.group(cls=terminal.Group)
def rules() -> None:
    """See, check, remove and exchange the operators' rules. New ones: greycheck allow, reject, greylist, expect."""


@rules.command("list")
@click.argument("pattern", required=False, shell_complete=completing.of_rules)
@JSON
def list_rules(pattern: str | None, json: bool) -> None:
    """List the rules in the order of kinds in which they decide: by recipient, sender, network, name, HELO; then what is expected.

    With a PATTERN only its own, those that are broader or more specific, and those that have this text in their pattern or comment:
    192.0.2.7, from:.example.com, or just example.com.
    """
    found = read_settings()
    with open_store(found) as engine:
        every = rulebook.all_rules(engine)
    if pattern is not None:
        every = rulebook.about(pattern, every)
    if json:
        asking.print_json([as_json(rule) for rule in every])
    elif every:
        print_table(every, int(time()))
    elif pattern is not None:
        say(f"There is no rule about {quoted(pattern)}.")
    else:
        terminal.echo("There are no rules. Make one: greycheck allow 192.0.2.0/24")


def print_table(every: Sequence[Rule], now: int) -> None:
    """Prints a table of EVERY rule. A column that would be empty is left out."""
    columns: list[tuple[str, Callable[[Rule], str]]] = [
        ("ACTION", lambda rule: "expect" if rule.kind == keys.EXPECT else rule.action),
        ("PATTERN", lambda rule: rule.pattern),
        ("DELAY", lambda rule: "" if rule.delay is None else duration_text(rule.delay)),
        ("ENDS", lambda rule: ends(rule, now)),
        ("COMMENT", lambda rule: rule.comment),
    ]
    columns = [(title, cell) for title, cell in columns if any(cell(rule) for rule in every)]
    titles = [title for title, _ in columns]
    lines = [[(cell(rule), "" if rule.counts(now) else "dim") for _, cell in columns] for rule in every]
    table = Rows(asking.console(), titles.index("PATTERN"), titles.index("COMMENT") if "COMMENT" in titles else None)
    table.print(lines, [[(title, "bold") for title in titles]])


def ends(rule: Rule, now: int) -> str:
    """When RULE ends, in the largest unit of which there is one at least."""
    if rule.expires_at is None:
        return ""
    left = rule.expires_at - now
    if left <= 0:
        return "expired"
    size, unit = next((one for one in ((86400, "d"), (3600, "h"), (60, "m")) if left >= one[0]), (1, "s"))
    return f"in {left // size}{unit}"


@rules.command()
@click.argument("pattern", nargs=-1, required=True, shell_complete=completing.of_rules)
@JSON
def remove(pattern: tuple[str, ...], json: bool) -> None:
    """Remove the rule of each PATTERN, whatever its action, or none where one is no pattern.

    What is expected is removed by its pattern as the list shows it.
    """
    found = read_settings()
    with open_store(found) as engine:
        try:
            removed = rulebook.remove(engine, pattern)
        except ValueError as error:
            raise click.ClickException(quoted(str(error))) from None
    changes = [Change(REMOVED, rule, rule) for rule in removed if rule]
    absent = [f"{quoted(text)}: there is no such rule" for text, rule in zip(pattern, removed, strict=True) if not rule]
    tell(Told(changes, absent), json)


@rules.command()
@JSON
def check(json: bool) -> None:
    """Name rules that are over, that can never match or decide, and that say what another one says.

    Exits with 1 where there is one.
    """
    found = read_settings()
    with open_store(found) as engine:
        every = rulebook.all_rules(engine)
    findings = rulebook.check(every, found, int(time()))
    if json:
        asking.print_json([{"what": one.what, "rule": as_json(one.rule), "text": one.text} for one in findings])
    else:
        print_findings(findings)
    if findings:
        raise click.exceptions.Exit(1)
    if not json:
        terminal.echo(f"rules: {sum(rule.kind != keys.EXPECT for rule in every)}, and nothing wrong with them")


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints FINDINGS, those for the same reason together."""
    together: dict[str, list[str]] = {}
    for finding in findings:
        together.setdefault(f"{finding.what}: {finding.text}", []).append(rulebook.line_of(finding.rule))
    for reason, found in together.items():
        what, _, text = reason.partition(": ")
        say(f"{what}: {found[0]}: {text}" if len(found) == 1 else reason)
        for rule in found if len(found) > 1 else []:
            say(f"    {rule}")


@rules.command()
def export() -> None:
    """Print the rules that count as text, one a line, as greycheck rules import reads it. What is expected is left out."""
    found = read_settings()
    now = int(time())
    with open_store(found) as engine:
        every = rulebook.all_rules(engine)
    terminal.echo(f"# Rules of greycheck, {rulebook.stamp(now)}")
    for rule in every:
        if rule.counts(now) and rule.kind != keys.EXPECT:
            terminal.echo(terminal.shown(rulebook.line(rule)))


def text_lines(path: str) -> list[str]:
    """The lines of the file PATH, or of standard input (-), without a byte order mark; bytes that are no UTF-8 as surrogates."""
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").split("\n")


@rules.command("import")
@click.argument("file")
@click.option("--replace", is_flag=True, help="Remove every rule that is not in FILE. What is expected stays.")
@DRY_RUN
@YES
@JSON
def import_rules(file: str, replace: bool, dry_run: bool, yes: bool, json: bool) -> None:
    """Make the rules that FILE (- is standard input) names, all or none.

    A line is: allow PATTERN, reject PATTERN, or greylist PATTERN delay=1h, each with expires=2026-12-01T00:00:00Z and # a comment, if
    you like. Wrong lines are named, and then nothing changes.
    """
    found = read_settings()
    now = int(time())
    wanted, notes, faults = rulebook.read_lines(text_lines(file), now)
    name = "standard input" if file == "-" else file
    if faults:
        shown = [f"{name}:{quoted(fault)}" for fault in faults[:MOST_FAULTS]]
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise click.ClickException("\n".join([*shown, *more, "nothing was imported"]))
    if replace and not wanted:
        raise click.ClickException(f"{name}: there is no rule in it: nothing was replaced")
    with open_store(found) as engine:
        told = put_many(engine, wanted, found, now, replace, dry_run, yes)
    told.notes[:0] = [f"{name}:{note}" for note in notes]
    tell(told, json)


def put_many(
    engine: Engine, wanted: Sequence[Rule], found: Settings, now: int, replace: bool, dry_run: bool, yes: bool
) -> Told:
    """Puts all WANTED, and tells what changed and what is wrong with the changed ones. Without YES none is for a large part of all mail."""
    if not yes:
        would = rulebook.put_all(engine, wanted, now, instead=replace, dry_run=True)
        refuse_wide([change.rule for change in would if change.what in (ADDED, REPLACED)])
    changes = rulebook.put_all(engine, wanted, now, instead=replace, dry_run=dry_run)
    every = {rule.match_key: rule for rule in rulebook.all_rules(engine)}
    for change in changes:
        if change.what == REMOVED:
            every.pop(change.rule.match_key, None)
        else:
            every[change.rule.match_key] = change.rule
    touched = {change.rule.match_key for change in changes if change.what in (ADDED, REPLACED)}
    findings = [one for one in rulebook.check(list(every.values()), found, now) if one.rule.match_key in touched]
    unverified = [one for one in findings if one.what == "unverified"]
    notes = [f"{rulebook.line_of(one.rule)}: {one.text}" for one in findings if one.what != "unverified"]
    if unverified:
        first = f"{rulebook.line_of(unverified[0].rule)}"
        more = f" and {len(unverified) - 1} more by name" if len(unverified) > 1 else ""
        notes.append(f"{first}{more}: {unverified[0].text}")
    number = Counter(change.what for change in changes)
    counts = {what: number[what] for what in (ADDED, REPLACED, REMOVED, UNCHANGED)}
    return Told([change for change in changes if change.what != UNCHANGED], notes, dry_run=dry_run, counts=counts)


# --- postgrey ----------------------------------------------------------------------------------------------------------


@rules.command("import-postgrey")
@click.option("--clients", multiple=True, metavar="FILE", help="A whitelist_clients file. May be given again.")
@click.option("--recipients", multiple=True, metavar="FILE", help="A whitelist_recipients file. May be given again.")
@DRY_RUN
@YES
@JSON
def import_postgrey(
    clients: tuple[str, ...], recipients: tuple[str, ...], dry_run: bool, yes: bool, json: bool
) -> None:
    """Allow what postgrey's whitelists name.

    Each line becomes a rule, or is named with the reason why not. The comment before it becomes the rule's. At the end it is said how
    many of each there were.
    """
    if not clients and not recipients:
        raise click.UsageError("Name a file with --clients or --recipients.")
    found = read_settings()
    now = int(time())
    wanted: dict[bytes, Rule] = {}
    notes: list[str] = []
    not_mapped: list[dict[str, object]] = []
    readers: list[tuple[str, Callable[[str], Pattern]]] = [(path, patterns.postgrey_client) for path in clients]
    readers += [(path, patterns.postgrey_recipient) for path in recipients]
    for path, read in readers:
        for number, text, comment in postgrey_lines(text_lines(path)):
            try:
                pattern = read(text)
            except ValueError as error:
                not_mapped.append({"file": path, "line": number, "text": quoted(text), "why": str(error)})
                continue
            if pattern.note:
                notes.append(f"{path}:{number}: {quoted(text)} is allow {pattern.text}: {pattern.note}")
            wanted.setdefault(rulebook.digest(pattern.key), postgrey_rule(pattern, comment, now))
    with open_store(found) as engine:
        notes += leave_present(wanted, rulebook.all_rules(engine), now)
        told = put_many(engine, list(wanted.values()), found, now, replace=False, dry_run=dry_run, yes=yes)
    if any(rule.kind == "recipient" and "@" in rule.pattern for rule in wanted.values()):
        notes.append("a rule for user@ does not take user+detail@, as postgrey does")
    told.notes[:0] = notes
    told.not_mapped = not_mapped
    tell(told, json)


def leave_present(wanted: dict[bytes, Rule], every: Sequence[Rule], now: int) -> list[str]:
    """Takes out of WANTED, by key, what EVERY rule that is there decides otherwise, and says so. What allows it is as good."""
    notes = []
    for rule in every:
        if rule.match_key not in wanted or not rule.counts(now):
            continue
        if rule.action == keys.ALLOW:
            wanted[rule.match_key] = rule
        else:
            del wanted[rule.match_key]
            notes.append(f"{rulebook.line_of(rule)} stays: remove it first if postgrey's list is to count")
    return notes


def postgrey_rule(pattern: Pattern, comment: str, now: int) -> Rule:
    """The rule that allows PATTERN, for the reason that postgrey's list gives."""
    printable = "".join(char if char.isprintable() else "?" for char in comment)[: rulebook.COMMENT]
    return rulebook.made(pattern, keys.ALLOW, comment=printable or "from postgrey", now=now)


def postgrey_lines(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """The number, the text and the comment of each entry in LINES: the one beside it, or else those right before it."""
    before = ""
    for number, line in enumerate(lines, 1):
        text, _, comment = line.partition("#")
        if text.strip():
            yield number, text.strip(), comment.strip() or before
        elif not comment:
            before = ""
        else:
            before = comment.strip()
