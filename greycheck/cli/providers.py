"""``greycheck providers``: whose networks, by their SPF, are let in at the first attempt."""

from collections.abc import Iterator, Sequence
from time import time

import click
from sqlalchemy import Engine

from greycheck import normalise
from greycheck.cli import completing, output, terminal
from greycheck.cli.columns import Rows, facts
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.rules import DRY_RUN, JSON, quoted, say
from greycheck.rules.rule import one_comment
from greycheck.settings import Settings
from greycheck.spf import networks, ranges
from greycheck.spf import providers as spf
from greycheck.spf.providers import KNOWN, Said
from greycheck.store.admin import providers as book
from greycheck.store.admin.providers import ADDED, KEPT_OLD, UNCHANGED, Change, Provider
from greycheck.times import away, coarse, local

# The width of the names of ``list NAME``, in columns.
LABEL = 10

YES = click.option("--yes", is_flag=True, help="Do not ask. For cron.")


@click.group(cls=terminal.Group)
def providers() -> None:
    """Let mail providers in at the first attempt, from the networks that their SPF names.

    Nobody is let in so until you add one. Rules that greylist or reject count before.
    """


def as_json(one: Provider, now: int) -> dict[str, object]:
    """Returns ONE for JSON: times in seconds since 1970."""
    return {
        "provider": one.name,
        "known_as": spf.name_of(one.name),
        "comment": one.comment,
        "networks": list(one.networks),
        "created_at": one.created_at,
        "answered_at": one.answered_at,
        "asked_at": one.asked_at,
        "state": one.state,
        "why": one.trouble,
        "is_old": one.is_old(now),
    }


def title(name: str) -> str:
    """Returns the domain NAME, with the name by which its provider is known."""
    known = spf.name_of(name)
    return f"{name} ({known})" if known else name


def number_of(count: int) -> str:
    """Returns how many networks COUNT are, in words."""
    return f"{count or 'no'} network{'' if count == 1 else 's'}"


def domains_of(texts: Sequence[str]) -> list[str]:
    """Returns the domains that TEXTS name, each once. Raises ClickException."""
    found: dict[str, None] = {}
    for text in texts:
        try:
            found |= dict.fromkeys(spf.domains_of(text))
        except ValueError as error:
            raise click.ClickException(f"{quoted(text)}: {error}") from None
    return list(found)


def chosen(texts: Sequence[str], present: Sequence[Provider]) -> list[str]:
    """Returns the names of those PRESENT that TEXTS name. Raises ClickException if one is not."""
    names = [one.name for one in present]
    found: dict[str, None] = {}
    for text in texts:
        there = [name for name in domains_of([text]) if name in names]
        if not there:
            near = terminal.suggestion(text.lower(), names)
            raise click.ClickException(f"{quoted(text)}: no such provider is let in.{near}")
        found |= dict.fromkeys(there)
    return list(found)


def look_up(names: Sequence[str], settings: Settings) -> list[Said]:
    """Returns what DNS says of NAMES. Raises ClickException if no name server is known."""
    servers = [
        f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        for address, port in settings.resolver
    ]
    try:
        return spf.look_up(names, servers)
    except ValueError as error:
        raise click.ClickException(f"{error}: name one by the setting resolver") from None


# --- changing -------------------------------------------------------------------------------------


@providers.command(short_help="Let in what these providers send.")
@click.argument("name", nargs=-1, required=True, shell_complete=completing.of_providers)
@click.option("--comment", metavar="TEXT", help="Why; for people. Without it one keeps its own.")
@YES
@DRY_RUN
@JSON
def add(name: tuple[str, ...], comment: str | None, yes: bool, dry_run: bool, json: bool) -> None:
    """Let in what these providers send, at the first attempt.

    NAME is one of `greycheck providers known`, or any domain: it stands for all networks that its
    SPF authorises. DNS is asked now, the networks are shown, and on a terminal you are asked;
    elsewhere give --yes. If one has no networks, nothing is added.
    """
    settings = read_settings()
    try:
        comment = None if comment is None else one_comment(comment)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    names = domains_of(name)
    with open_store(settings) as engine:
        said = look_up(names, settings)
        refused = [
            f"{title(one.name)}: {spf.in_words(one.state, one.why, not one.networks)}"
            for one in said
            if one.state != "found" or not one.networks
        ]
        if refused:
            raise click.ClickException(terminal.shown("; ".join(refused)) + ": nothing was added")
        done = settle(engine, said, comment, True, yes, dry_run, json)
    notes(settings, [one for one in done if one.provider.networks])
    finish(done, dry_run)


@providers.command(short_help="Ask DNS again, and show what changes.")
@click.argument("name", nargs=-1, shell_complete=completing.of_providers)
@YES
@DRY_RUN
@JSON
def refresh(name: tuple[str, ...], yes: bool, dry_run: bool, json: bool) -> None:
    """Ask DNS again for the networks of all providers, or of these, and show what changes.

    On a terminal you are asked before a network comes (+) or goes (-); elsewhere give --yes.

    The list of a provider stays where DNS does not answer, or its SPF has become wrong, too wide or
    is not there. Then the exit code is 1. With --yes it is silent where nothing has changed.
    """
    settings = read_settings()
    if output.is_empty(settings):
        chosen(name, [])
        empty(json, yes)
        return
    with open_store(settings) as engine:
        present = book.all_providers(engine)
        names = chosen(name, present) if name else [one.name for one in present]
        if not names:
            empty(json, yes)
            return
        done = settle(engine, look_up(names, settings), None, False, yes, dry_run, json)
    finish(done, dry_run)


def empty(json: bool, quiet: bool = False) -> None:
    """Says that there is no provider."""
    if json:
        output.print_json([])
    elif not quiet:
        say("No provider is let in. Choose: greycheck providers known")


def settle(
    engine: Engine,
    said: Sequence[Said],
    comment: str | None,
    adding: bool,
    yes: bool,
    dry_run: bool,
    json: bool,
) -> list[Change]:
    """Shows what the answers SAID change, asks if need be, and writes it; returns the changes.

    Exits with 1 if it may not write.
    """
    now = int(time())
    present = {one.name: one for one in book.all_providers(engine)}
    plan = book.changes(present, said, comment, adding)
    if not json:
        tell(plan, now, quiet=yes and not adding)
    is_asked = not yes and not dry_run and any(one.added or one.removed for one in plan)
    may = not dry_run
    can_ask = not json and terminal.can_ask()
    if is_asked:
        may = can_ask and click.confirm("Let them in?" if adding else "Is it to be so?")
    if may:
        try:
            # Without --yes nothing is written that was not shown.
            plan = book.apply(engine, said, now, comment, adding, None if yes else plan)
        except ValueError as error:
            raise click.ClickException(f"{error}: nothing was changed") from None
    if json:
        output.print_json([change_as_json(one, now, may) for one in plan])
    if is_asked and not may:
        asked = "" if can_ask else ": give --yes where nobody can be asked"
        say(f"Nothing was changed{asked}.", err=True)
        raise click.exceptions.Exit(1)
    if dry_run and not json:
        say("Dry run: nothing was changed.")
    return plan


def change_as_json(one: Change, now: int, is_done: bool) -> dict[str, object]:
    """Returns a change for JSON."""
    return {
        "what": one.what,
        "added": one.added,
        "removed": one.removed,
        "depends_on_client": one.said.depends,
        "done": is_done,
        "provider": as_json(one.provider, now),
    }


def tell(plan: Sequence[Change], now: int, quiet: bool) -> None:
    """Prints what PLAN changes; with QUIET nothing of those that are as they were."""
    for one in plan:
        count = number_of(len(one.provider.networks))
        if one.what == KEPT_OLD:
            continue
        if one.what == UNCHANGED:
            if not quiet:
                say(f"unchanged: {title(one.provider.name)}, {count}")
        elif one.what == ADDED:
            say(f"new: {title(one.provider.name)}, {count}")
        else:
            more, less = len(one.added), len(one.removed)
            say(f"changed: {title(one.provider.name)}, {count}: {more} more, {less} less")
        for sign, found in (("+", one.added), ("-", one.removed)):
            for network in found:
                terminal.echo(f"  {sign} {network}")
        trouble = one.provider.trouble
        if trouble and not (quiet and one.what == UNCHANGED):
            say(f"note: {one.provider.name}: {trouble}", err=True)
        elif one.said.depends and one.what == ADDED:
            say(
                f"note: {one.provider.name}: of other clients only they themselves can tell whether"
                " they may send: these are not let in",
                err=True,
            )
    for one in plan:
        if one.what == KEPT_OLD:
            since = one.provider.answered_at
            age = "" if since is None else f" of {away(since, now)}"
            say(
                f"{title(one.provider.name)}: {one.provider.trouble}: its list{age} stays", err=True
            )


def finish(done: Sequence[Change], dry_run: bool) -> None:
    """Exits with 1 if DNS gave no list of one."""
    if not dry_run and any(one.what == KEPT_OLD for one in done):
        raise click.exceptions.Exit(1)


def notes(settings: Settings, added: Sequence[Change]) -> None:
    """Says where the setting identity keeps those ADDED from counting."""
    if added and settings.identity == "no":
        say("note: identity = no: no provider counts", err=True)
    elif added and settings.identity == "observe":
        say("note: identity = observe: it is only logged, as by_identity=provider", err=True)


@providers.command(short_help="Let these providers in no more.")
@click.argument("name", nargs=-1, required=True, shell_complete=completing.of_providers)
@JSON
def remove(name: tuple[str, ...], json: bool) -> None:
    """Let these providers in no more. Networks that another one has too stay as its own.

    What passed meanwhile stays known. Where one of them is not let in, nothing is removed.
    """
    settings = read_settings()
    now = int(time())
    with open_store(settings) as engine:
        gone = book.remove(engine, chosen(name, book.all_providers(engine)), now)
        others = book.all_providers(engine)
    if json:
        output.print_json([as_json(one, now) for one in gone])
        return
    theirs = ranges.Ranges(networks.pairs(text for one in others for text in one.networks))
    for one in gone:
        shared = ranges.Ranges(networks.pairs(one.networks)) & theirs
        also = ", some of them still let in by another" if shared else ""
        say(f"removed: {title(one.name)}, {number_of(len(one.networks))}{also}")


# --- seeing ---------------------------------------------------------------------------------------


@providers.command("list", short_help="List them, or the networks of one.")
@click.argument("name", required=False, shell_complete=completing.of_providers)
@JSON
def list_providers(name: str | None, json: bool) -> None:
    """List the providers that are let in.

    It tells how many networks each has, when DNS answered, and whether all is well.

    With a NAME all that is known of it, and its networks; with a client's address (IP) those whose
    network that is.
    """
    settings = read_settings()
    now = int(time())
    every: list[Provider] = []
    if not output.is_empty(settings):
        with open_store(settings) as engine:
            every = book.all_providers(engine)
    address = name and normalise.client_address(name.encode("utf-8", "surrogateescape"))
    if address:
        list_of_address(address, every, now, json)
        return
    if name is not None:
        names = chosen([name], every)
        every = [one for one in every if one.name in names]
    if json:
        output.print_json([as_json(one, now) for one in every])
    elif name is not None:
        for place, one in enumerate(every):
            if place:
                terminal.echo("")
            facts(output.console(), lines_of(one, now), LABEL)
    elif every:
        print_table(every, now)
    else:
        empty(json)


def list_of_address(address: str, every: Sequence[Provider], now: int, json: bool) -> None:
    """Prints the network and the name of each provider that has ADDRESS; exits with 1 if none."""
    value = ranges.value_of(address)
    found = [
        (text, one)
        for one in every
        for text in one.networks
        for first, last in networks.pairs([text])
        if first <= value <= last
    ]
    if json:
        output.print_json([{"network": text, **as_json(one, now)} for text, one in found])
    for text, one in () if json else found:
        say(f"{text}  {title(one.name)}")
    if not found:
        if not json:
            say(f"{address}: in no network of a provider")
        raise click.exceptions.Exit(1)


def print_table(every: Sequence[Provider], now: int) -> None:
    """Prints a table of EVERY provider, and what is wrong with some."""
    titles = ["PROVIDER", "NETWORKS", "ANSWERED", "STATE", "COMMENT"]
    lines = [
        [
            one.name,
            f"{len(one.networks):8}",
            "never" if one.answered_at is None else f"{coarse(now - one.answered_at)} ago",
            state_of(one, now),
            one.comment or spf.name_of(one.name),
        ]
        for one in every
    ]
    if not any(line[4] for line in lines):
        titles, lines = titles[:4], [line[:4] for line in lines]
    table = Rows(output.console(), 0, 4 if len(titles) == 5 else None)
    table.print(
        [[(cell, "") for cell in line] for line in lines], [[(one, "bold") for one in titles]]
    )
    for one in every:
        if one.trouble:
            say(f"note: {one.name}: {one.trouble}")
    if any(one.is_old(now) for one in every):
        say("note: some are old: greycheck providers refresh")


def state_of(one: Provider, now: int) -> str:
    """Returns how ONE is, in one word."""
    if one.state != "found":
        return one.state
    if not one.networks:
        return "empty"
    return "partly" if one.why else "old" if one.is_old(now) else "ok"


def lines_of(one: Provider, now: int) -> Iterator[tuple[str, str]]:
    """Yields all that is known of ONE."""
    yield "provider", one.name
    known = spf.name_of(one.name)
    if known:
        yield "known as", known
    if one.comment:
        yield "comment", one.comment
    yield "added", f"{local(one.created_at)} ({away(one.created_at, now)})"
    answered = one.answered_at
    if answered is None:
        yield "answered", "never"
    else:
        yield "answered", f"{local(answered)} ({away(answered, now)})"
    if one.asked_at != answered:
        yield "asked", f"{local(one.asked_at)} ({away(one.asked_at, now)})"
    yield "state", state_of(one, now) + (f": {one.trouble}" if one.trouble else "")
    yield "networks", str(len(one.networks))
    for network in one.networks:
        yield "", network


@providers.command(short_help="List providers that can be added by name.")
@JSON
def known(json: bool) -> None:
    """List providers that can be added by name, each with the domains whose SPF names its networks.

    Any other domain can be added as well. That one is listed says nothing about its mail.
    """
    if json:
        output.print_json(
            [{"name": name, "domains": list(domains)} for name, domains in KNOWN.items()]
        )
        return
    lines = [[(name, ""), (", ".join(domains), "")] for name, domains in KNOWN.items()]
    Rows(output.console(), 1).print(lines, [[("NAME", "bold"), ("DOMAINS", "bold")]])
