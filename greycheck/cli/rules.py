"""``greycheck allow``, ``reject``, ``greylist``, ``defer``, ``expect``, ``rules``: the rules."""

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

from greycheck import log
from greycheck import rule_keys as keys
from greycheck.cli import completing, output, terminal
from greycheck.cli.columns import Rows, wrapped
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.terminal import Console
from greycheck.privilege import files
from greycheck.rules import patterns, postgrey
from greycheck.rules.findings import Finding, check_rules, line_of, remarks, rule_before_expectation
from greycheck.rules.patterns import Pattern
from greycheck.rules.rule import COMMENT, Change, Rule, as_line, make_rule, read_lines
from greycheck.settings import Settings, duration_text
from greycheck.store.admin import rulebook
from greycheck.store.admin.rulebook import ADDED, REMOVED, REPLACED, UNCHANGED
from greycheck.times import coarse, stamp

PATTERNS = """
    \b
    192.0.2.7  192.0.2.0/24  2001:db8::/32     the client's address or network
    name:mail.example.com  name:.example.com   its name; .NAME: and all below it
    helo:mail.example.com  helo:.example.com   what it calls itself
    from:user@example.com                      the sender, with its tags or folded
    from:user@                                 the sender's user, at any domain
    from:example.com  from:.example.com        its domain; .NAME: and all below it
    from:<>                                    the null sender
    to:...                                     the recipient, in the same forms
    from:example.com to:user@                  a pair: any of these, a recipient

    A pattern of more than a /8 of IPv4 or a /16 of IPv6, or of a top-level domain, needs --yes.

    Of several rules that match, one over a pair decides first; then one by recipient before one by
    sender, then network, name, HELO; of one kind the most specific. Of pairs the most specific
    recipient decides first.
"""

# How many wrong lines of a file are printed; the rest is only counted.
MOST_FAULTS = 20


@dataclass
class Report:
    """What a command reports: CHANGES, NOTES about them, and lines that it could not read.

    COUNTS has the number of each, for a file.
    """

    changes: list[Change]
    notes: list[str] = field(default_factory=list)
    not_mapped: list[dict[str, object]] = field(default_factory=list)
    dry_run: bool = False
    counts: dict[str, int] | None = None


def fail(text: str, error: ValueError) -> NoReturn:
    """Exits with code 1 and a message that TEXT is wrong, because of ERROR."""
    raise click.ClickException(f"{quoted(text)}: {error}") from None


def quoted(text: str) -> str:
    """Returns TEXT as it was written, with unprintable characters escaped."""
    return "".join(char if char.isprintable() else log.quoted(char)[1:-1] for char in text)


def parse(text: str) -> Pattern:
    """Returns the pattern TEXT. Raises ClickException if it is not a pattern."""
    try:
        return patterns.parse(text)
    except ValueError as error:
        fail(text, error)


def as_json(rule: Rule | None) -> dict[str, object] | None:
    """Returns RULE for JSON: durations in seconds, times in seconds since 1970."""
    if rule is None:
        return None
    return {
        "action": rule.command,
        "pattern": rule.pattern,
        "kind": rule.kind,
        "delay": rule.delay,
        "comment": rule.comment,
        "created_at": rule.created_at,
        "expires_at": rule.expires_at,
    }


def tell(report: Report, json: bool) -> None:
    """Prints the changes; notes go to standard error."""
    if json:
        changes = [
            {"what": one.what, "rule": as_json(one.rule), "was": as_json(one.old)}
            for one in report.changes
        ]
        counts = (
            {}
            if report.counts is None
            else {"counts": report.counts | {"not_mapped": len(report.not_mapped)}}
        )
        output.print_json(
            {
                "changes": changes,
                "notes": report.notes,
                "not_mapped": report.not_mapped,
                "dry_run": report.dry_run,
                **counts,
            }
        )
        return
    for change in report.changes:
        was = f" (was: {as_line(change.old)})" if change.what == REPLACED and change.old else ""
        say(f"{'would be ' if report.dry_run else ''}{change.what}: {as_line(change.rule)}{was}")
    for line in report.not_mapped:
        say(f"not mapped: {line['file']}:{line['line']}: {line['text']}: {line['why']}")
    for note in report.notes:
        say(f"note: {note}", err=True)
    if report.counts is not None:
        every = report.counts | (
            {"not mapped": len(report.not_mapped)} if report.not_mapped else {}
        )
        said = ", ".join(f"{number} {what}" for what, number in every.items() if number)
        say(f"rules: {said or 'none'}{' (dry run: nothing was changed)' if report.dry_run else ''}")


def say(text: str, err: bool = False) -> None:
    """Prints TEXT as a line, which is wrapped on a terminal. With ERR it goes to standard error."""
    console = Console(stderr=err)
    for line in (
        wrapped(terminal.shown(text), console.width)
        if console.is_terminal
        else [terminal.shown(text)]
    ):
        console.print(line, soft_wrap=True)


# The largest file of rules, in bytes: a million of them.
LARGEST = 64 << 20

JSON = click.option("--json", "json", is_flag=True, help="Print JSON.")
YES = click.option(
    "--yes", is_flag=True, help="Also where that is a large part of all mail: 0.0.0.0/0, from:.com."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only tell what would change.")


# --- one rule -------------------------------------------------------------------------------------


def refuse_wide(wanted: Sequence[Rule]) -> None:
    """Raises ClickException if a rule of WANTED matches so much mail that it may be a mistake."""
    for rule in wanted:
        reach = patterns.reach(patterns.parse(rule.pattern))
        if reach:
            raise click.ClickException(
                f"{line_of(rule)}: that is {reach}: give --yes if it is meant"
            )


def put(
    words: tuple[str, ...],
    action: str,
    delay: int | None,
    comment: str | None,
    expires: int | None,
    yes: bool,
    json: bool,
) -> None:
    """Stores the rule of the pattern WORDS, two of a pair, and reports it.

    Without YES, a rule for a large part of all mail is refused. Without COMMENT, the rule keeps its
    comment.
    """
    settings = read_settings()
    now = int(time())
    pattern = parse(" ".join(words))
    try:
        wanted = make_rule(
            pattern, action, delay, comment or "", None if expires is None else now + expires, now
        )
    except ValueError as error:
        fail(comment or "", error)
    if not yes:
        refuse_wide([wanted])
    with open_store(settings) as engine:
        change = rulebook.put_all(engine, [wanted], now, keep_comments=comment is None)[0]
        notes = (
            []
            if change.what == UNCHANGED
            else remarks(change.rule, rulebook.all_rules(engine), settings, now)
        )
    tell(Report([change], ([pattern.note] if pattern.note else []) + notes), json)


def rule_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds to COMMAND the options and the argument of all commands that make a rule."""
    for decorator in (
        JSON,
        YES,
        click.option(
            "--expires",
            metavar="DURATION",
            callback=output.lasting,
            help="End it after this time, as 7d.",
        ),
        click.option(
            "--comment",
            metavar="TEXT",
            help="Why; for people. Without it a rule keeps its comment; '' takes it away.",
        ),
        click.argument(
            "pattern",
            nargs=-1,
            required=True,
            metavar="PATTERN [to:...]",
            shell_complete=completing.of_parts,
        ),
    ):
        command = decorator(command)
    return command


@click.command(epilog=PATTERNS)
@rule_options
def allow(
    pattern: tuple[str, ...], comment: str | None, expires: int | None, yes: bool, json: bool
) -> None:
    """Accept at once what PATTERN matches.

    A pattern has one rule: a new one takes its place, and keeps its comment. Without --expires it
    does not end. A rule by name (name:) counts only with verified_names = yes.
    """
    put(pattern, keys.ALLOW, None, comment, expires, yes, json)


@click.command(epilog=PATTERNS)
@rule_options
def reject(
    pattern: tuple[str, ...], comment: str | None, expires: int | None, yes: bool, json: bool
) -> None:
    """Refuse for good what PATTERN matches.

    A pattern has one rule: a new one takes its place, and keeps its comment. Without --expires it
    does not end.
    """
    put(pattern, keys.REJECT, None, comment, expires, yes, json)


@click.command(epilog=PATTERNS)
@click.option(
    "--delay",
    metavar="DURATION",
    callback=output.duration,
    help="Its own delay, as 1h.  [default: the setting's]",
)
@rule_options
def greylist(
    pattern: tuple[str, ...],
    delay: int | None,
    comment: str | None,
    expires: int | None,
    yes: bool,
    json: bool,
) -> None:
    """Greylist what PATTERN matches, also from known clients, with a delay of its own if you like.

    A pattern has one rule: a new one takes its place, and keeps its comment. Without --expires it
    does not end.
    """
    put(pattern, keys.GREYLIST, delay, comment, expires, yes, json)


@click.command(epilog=PATTERNS)
@rule_options
def defer(
    pattern: tuple[str, ...], comment: str | None, expires: int | None, yes: bool, json: bool
) -> None:
    """Refuse for now, at every attempt, what PATTERN matches.

    Its sender tries again until he gives up, after some days. A pattern has one rule: a new one
    takes its place, and keeps its comment. Without --expires it does not end.
    """
    put(pattern, keys.DEFER, None, comment, expires, yes, json)


def decides_before(ruling: Rule) -> str:
    """Returns the note that the rule RULING decides on mail that is expected or released."""
    fates = {keys.ALLOW: "passes anyway", keys.REJECT: "is rejected all the same"}
    fate = fates.get(ruling.action, "is deferred all the same")
    return f"{line_of(ruling)} decides before: this mail {fate}"


@click.command()
@click.argument("recipient")
@click.option(
    "--from", "domain", metavar="DOMAIN", help="Only from this domain and what is under it."
)
@click.option(
    "--for",
    "wait",
    metavar="DURATION",
    default="15m",
    show_default=True,
    callback=output.lasting,
    help="How long.",
)
@JSON
def expect(recipient: str, domain: str | None, wait: int, json: bool) -> None:
    """Let the next mail to RECIPIENT pass without delay: a login code, a registration.

    It ends with that mail, or by itself. Without --from, mail from anybody will do.
    """
    settings = read_settings()
    now = int(time())
    try:
        pattern = patterns.expectation(recipient, domain)
    except ValueError as error:
        fail(recipient if domain is None else f"{recipient} from {domain}", error)
    with open_store(settings) as engine:
        change = rulebook.put(engine, pattern, keys.ALLOW, None, "", now + wait, now)
        every = rulebook.all_rules(engine)
    notes = [pattern.note] if pattern.note else []
    ruling = rule_before_expectation(patterns.parse(pattern.text.split(" ")[0]), every, now)
    if ruling:
        notes.append(decides_before(ruling))
    tell(Report([change], notes), json)


# --- all rules ------------------------------------------------------------------------------------


@click.group(cls=terminal.Group)
def rules() -> None:
    """See, check, remove and exchange the operators' rules.

    New ones: greycheck allow, reject, greylist, defer, expect.
    """


@rules.command("list", short_help="List the rules, or those about PATTERN.")
@click.argument("words", nargs=-1, metavar="[PATTERN [to:...]]", shell_complete=completing.of_parts)
@JSON
def list_rules(words: tuple[str, ...], json: bool) -> None:
    """List the rules in the order of kinds in which they decide.

    Over pairs, then by recipient, sender, network, name, HELO; then what is expected or released.

    With a PATTERN only its own, those that are broader or more specific, pairs that it is a part
    of, and those that have this text in their pattern or comment: 192.0.2.7, from:.example.com, or
    just example.com.
    """
    pattern = " ".join(words) if words else None
    settings = read_settings()
    with open_store(settings) as engine:
        every = rulebook.all_rules(engine)
    if pattern is not None:
        every = rulebook.about(pattern, every)
    if json:
        output.print_json([as_json(rule) for rule in every])
    elif every:
        print_table(every, int(time()))
    elif pattern is not None:
        say(f"There is no rule about {quoted(pattern)}.")
    else:
        terminal.echo("There are no rules. Make one: greycheck allow 192.0.2.0/24")


def print_table(every: Sequence[Rule], now: int) -> None:
    """Prints a table of EVERY rule. A column that would be empty is left out."""
    columns: list[tuple[str, Callable[[Rule], str]]] = [
        ("ACTION", lambda rule: rule.command),
        ("PATTERN", lambda rule: rule.pattern),
        ("DELAY", lambda rule: "" if rule.delay is None else duration_text(rule.delay)),
        ("ENDS", lambda rule: ends(rule, now)),
        ("COMMENT", lambda rule: rule.comment),
    ]
    columns = [(title, cell) for title, cell in columns if any(cell(rule) for rule in every)]
    titles = [title for title, _ in columns]
    lines = [
        [(cell(rule), "" if rule.counts(now) else "dim") for _, cell in columns] for rule in every
    ]
    table = Rows(
        output.console(),
        titles.index("PATTERN"),
        titles.index("COMMENT") if "COMMENT" in titles else None,
    )
    table.print(lines, [[(title, "bold") for title in titles]])


def ends(rule: Rule, now: int) -> str:
    """Returns when RULE ends, in its largest unit; empty if it does not."""
    if rule.expires_at is None:
        return ""
    left = rule.expires_at - now
    if left <= 0:
        return "expired"
    return f"in {coarse(left)}"


@rules.command(short_help="Remove the rule of each PATTERN.")
@click.argument("pattern", nargs=-1, required=True, shell_complete=completing.of_rules)
@JSON
def remove(pattern: tuple[str, ...], json: bool) -> None:
    """Remove the rule of each PATTERN, whatever its action, or none where one is no pattern.

    A pair is one PATTERN, in quotes: 'from:ann@example.com to:bob@example.net'. What is expected or
    released is removed by its pattern as the list shows it.
    """
    settings = read_settings()
    with open_store(settings) as engine:
        try:
            removed = rulebook.remove(engine, pattern)
        except ValueError as error:
            raise click.ClickException(quoted(str(error))) from None
    changes = [Change(REMOVED, rule, rule) for rule in removed if rule]
    absent = [
        f"{quoted(text)}: there is no such rule"
        for text, rule in zip(pattern, removed, strict=True)
        if not rule
    ]
    tell(Report(changes, absent), json)


@rules.command(short_help="Name rules that are over or have no effect.")
@JSON
def check(json: bool) -> None:
    """Name rules that are over, that can never match or decide, and that say what another one says.

    Exits with 1 where there is one.
    """
    settings = read_settings()
    with open_store(settings) as engine:
        every = rulebook.all_rules(engine)
    findings = check_rules(every, settings, int(time()))
    if json:
        output.print_json(
            [{"what": one.what, "rule": as_json(one.rule), "text": one.text} for one in findings]
        )
    else:
        print_findings(findings)
    if findings:
        raise click.exceptions.Exit(1)
    if not json:
        terminal.echo(
            f"rules: {sum(rule.kind != keys.EXPECT for rule in every)}, and nothing wrong with them"
        )


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints FINDINGS, those for the same reason together."""
    together: dict[str, list[str]] = {}
    for finding in findings:
        together.setdefault(f"{finding.what}: {finding.text}", []).append(line_of(finding.rule))
    for reason, found in together.items():
        what, _, text = reason.partition(": ")
        say(f"{what}: {found[0]}: {text}" if len(found) == 1 else reason)
        for rule in found if len(found) > 1 else []:
            say(f"    {rule}")


@rules.command(short_help="Print the rules that count as text.")
def export() -> None:
    """Print the rules that count as text, one a line, as greycheck rules import reads it.

    What is expected is left out.
    """
    settings = read_settings()
    now = int(time())
    with open_store(settings) as engine:
        every = rulebook.all_rules(engine)
    terminal.echo(f"# Rules of greycheck, {stamp(now)}")
    for rule in every:
        if rule.counts(now) and rule.kind != keys.EXPECT:
            terminal.echo(terminal.shown(as_line(rule)))


def text_lines(path: str) -> list[str]:
    """Returns the lines of the file PATH, or of standard input (-), without a byte order mark.

    Bytes that are not UTF-8 become surrogates.
    """
    try:
        if path == "-":
            content = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with files.opened(Path(path)) as file:
                content = file.read(LARGEST + 1)
    except OSError as error:
        raise click.ClickException(terminal.shown(files.cause(error))) from None
    if len(content) > LARGEST:
        raise click.ClickException(f"{terminal.shown(path)}: larger than {LARGEST} bytes")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").split("\n")


@rules.command("import", short_help="Make the rules that FILE names.")
@click.argument("file")
@click.option(
    "--replace", is_flag=True, help="Remove every rule that is not in FILE. What is expected stays."
)
@DRY_RUN
@YES
@JSON
def import_rules(file: str, replace: bool, dry_run: bool, yes: bool, json: bool) -> None:
    """Make the rules that FILE (- is standard input) names, all or none.

    A line is: allow PATTERN, reject PATTERN, defer PATTERN, or greylist PATTERN delay=1h, each with
    expires=2026-12-01T00:00:00Z and # a comment, if you like. PATTERN may be a pair. Wrong lines
    are named, and then nothing changes.
    """
    settings = read_settings()
    now = int(time())
    wanted, notes, faults = read_lines(text_lines(file), now)
    name = "standard input" if file == "-" else file
    if faults:
        shown = [f"{name}:{quoted(fault)}" for fault in faults[:MOST_FAULTS]]
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise click.ClickException("\n".join([*shown, *more, "nothing was imported"]))
    if replace and not wanted:
        raise click.ClickException(f"{name}: there is no rule in it: nothing was replaced")
    with open_store(settings) as engine:
        report = put_many(engine, wanted, settings, now, replace, dry_run, yes)
    report.notes[:0] = [f"{name}:{note}" for note in notes]
    tell(report, json)


def put_many(
    engine: Engine,
    wanted: Sequence[Rule],
    settings: Settings,
    now: int,
    replace: bool,
    dry_run: bool,
    yes: bool,
) -> Report:
    """Stores all WANTED rules; returns what changed, and what is wrong with the changed ones.

    Without YES, a rule for a large part of all mail is refused.
    """
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
    findings = [
        one
        for one in check_rules(list(every.values()), settings, now)
        if one.rule.match_key in touched
    ]
    unverified = [one for one in findings if one.what == "unverified"]
    notes = [f"{line_of(one.rule)}: {one.text}" for one in findings if one.what != "unverified"]
    if unverified:
        first = f"{line_of(unverified[0].rule)}"
        more = f" and {len(unverified) - 1} more by name" if len(unverified) > 1 else ""
        notes.append(f"{first}{more}: {unverified[0].text}")
    number = Counter(change.what for change in changes)
    counts = {what: number[what] for what in (ADDED, REPLACED, REMOVED, UNCHANGED)}
    return Report(
        [change for change in changes if change.what != UNCHANGED],
        notes,
        dry_run=dry_run,
        counts=counts,
    )


# --- postgrey -------------------------------------------------------------------------------------


@rules.command("import-postgrey")
@click.option(
    "--clients", multiple=True, metavar="FILE", help="A whitelist_clients file. May be given again."
)
@click.option(
    "--recipients",
    multiple=True,
    metavar="FILE",
    help="A whitelist_recipients file. May be given again.",
)
@DRY_RUN
@YES
@JSON
def import_postgrey(
    clients: tuple[str, ...], recipients: tuple[str, ...], dry_run: bool, yes: bool, json: bool
) -> None:
    """Allow what postgrey's whitelists name.

    Each line becomes a rule, or is named with the reason why not. The comment before it becomes the
    rule's. At the end it is said how many of each there were.
    """
    if not clients and not recipients:
        raise click.UsageError("Name a file with --clients or --recipients.")
    settings = read_settings()
    now = int(time())
    wanted: dict[bytes, Rule] = {}
    notes: list[str] = []
    not_mapped: list[dict[str, object]] = []
    readers: list[tuple[str, Callable[[str], Pattern]]] = [
        (path, postgrey.postgrey_client) for path in clients
    ]
    readers += [(path, postgrey.postgrey_recipient) for path in recipients]
    for path, read in readers:
        for number, text, comment in postgrey_lines(text_lines(path)):
            try:
                pattern = read(text)
            except ValueError as error:
                not_mapped.append(
                    {"file": path, "line": number, "text": quoted(text), "why": str(error)}
                )
                continue
            if pattern.note:
                notes.append(
                    f"{path}:{number}: {quoted(text)} is allow {pattern.text}: {pattern.note}"
                )
            wanted.setdefault(rulebook.digest(pattern.key), postgrey_rule(pattern, comment, now))
    with open_store(settings) as engine:
        notes += leave_present(wanted, rulebook.all_rules(engine), now)
        report = put_many(
            engine, list(wanted.values()), settings, now, replace=False, dry_run=dry_run, yes=yes
        )
    if any(rule.kind == "recipient" and "@" in rule.pattern for rule in wanted.values()):
        notes.append("a rule for user@ does not take user+detail@, as postgrey does")
    report.notes[:0] = notes
    report.not_mapped = not_mapped
    tell(report, json)


def leave_present(wanted: dict[bytes, Rule], every: Sequence[Rule], now: int) -> list[str]:
    """Removes from WANTED (by key) the rules whose key already has another action among EVERY rule.

    Returns a note for each. A rule that allows the same stays as it is.
    """
    notes = []
    for rule in every:
        if rule.match_key not in wanted or not rule.counts(now):
            continue
        if rule.action == keys.ALLOW:
            wanted[rule.match_key] = rule
        else:
            del wanted[rule.match_key]
            notes.append(f"{line_of(rule)} stays: remove it first if postgrey's list is to count")
    return notes


def postgrey_rule(pattern: Pattern, comment: str, now: int) -> Rule:
    """Returns the rule that allows PATTERN, with the COMMENT of postgrey's list."""
    printable = "".join(char if char.isprintable() else "?" for char in comment)[:COMMENT]
    return make_rule(pattern, keys.ALLOW, comment=printable or "from postgrey", now=now)


def postgrey_lines(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yields the number, the text and the comment of each entry in LINES.

    The comment is that in the same line, or else the one right before it.
    """
    before = ""
    for number, line in enumerate(lines, 1):
        text, _, comment = line.partition("#")
        if text.strip():
            yield number, text.strip(), comment.strip() or before
        elif not comment:
            before = ""
        else:
            before = comment.strip()
