"""``greycheck explain``: what a check would decide now, or at another time, and why."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from time import time
from typing import TYPE_CHECKING

import click

from greycheck.cli import terminal
from greycheck.cli.columns import GAP, facts, fitting, room
from greycheck.cli.common import foreseen, give_up_root, read_settings
from greycheck.cli.expire import makes_directory
from greycheck.cli.output import client_address, console, grid, mail_address, moment, print_json
from greycheck.cli.terminal import NEWLINE, Console, Table, Text
from greycheck.explain import decision as why
from greycheck.explain import explanation, steps
from greycheck.explain.explanation import DECIDES, UNREACHED, Explanation
from greycheck.hooks import delegation, every, smtpextfork
from greycheck.hooks.record import Hook
from greycheck.log import detail_of, show
from greycheck.policy import ACCEPT, DEFER, REJECT, domain_of
from greycheck.settings import Settings
from greycheck.store import connect
from greycheck.store.base import Advised, StoreError
from greycheck.store.causes import NoSchema
from greycheck.store.schema import migrate
from greycheck.times import away, local

if TYPE_CHECKING:
    from greycheck.store.base import Connected

# How long a statement waits for another's lock, in seconds. Readers of SQLite's write-ahead log
# hardly do.
PATIENCE = 5.0

# The widths of the names of steps, indented, and of what comes of one, in columns.
NAME, OUTCOME = 15, 12

COLOURS = {ACCEPT: "green", DEFER: "yellow", REJECT: "red"}


def exit_codes() -> str:
    """The exit code of each verdict for SMTPEXTFORK, and those of other hooks where they differ."""
    usual = smtpextfork.ANSWERS
    others = [exception for hook in every() if (exception := exit_code_of(hook, usual))]
    codes = ", ".join(f"{usual[action]} {action}" for action in (ACCEPT, REJECT, DEFER))
    return f"{codes} ({', '.join(others)})"


def exit_code_of(hook: Hook, usual: Mapping[str, int]) -> str:
    """How HOOK's exit codes differ from the USUAL ones; empty where they do not."""
    different = [code for action, code in hook.ANSWERS.items() if code != usual[action]]
    if not different:
        return ""
    always = "always " if len(set(hook.ANSWERS.values())) == 1 else ""
    return f"for {hook.TITLE} {always}{'/'.join(map(str, dict.fromkeys(different)))}"


@click.command()
@click.argument("ip")
@click.argument("sender")
@click.argument("recipient")
@click.option("--helo", default="", metavar="NAME", help="What the client calls itself.")
@click.option(
    "--name", default="", metavar="NAME", help="The client's name in DNS (TCPREMOTEHOST)."
)
@click.option(
    "--at",
    "now",
    callback=moment,
    metavar="TIME",
    help="Decide as at that time: what if it were tried then.",
)
@click.option(
    "--hook",
    type=terminal.Choice(explanation.ASKING),
    default="smtpextfork",
    show_default=True,
    help="The hook that would ask; policy: a mail server, to which --name is verified.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--exit-code",
    "answers",
    is_flag=True,
    help=f"Exit as the check would: {exit_codes()}.",
)
def explain(
    ip: str,
    sender: str,
    recipient: str,
    helo: str,
    name: str,
    now: int | None,
    hook: str,
    as_json: bool,
    answers: bool,
) -> None:
    """Explain what a check of this envelope would decide, and why; write nothing.

    It is the check's own decision, on the store as it is, under the settings of this environment:
    what tcprules or envdir sets for a client (GREYCHECK_DELAY=1m, RELAYCLIENT=) is to be set here
    too.

    The null sender is '<>', an address without a domain is written in brackets as well, and a
    client that is not known is -. Addresses may be written as the log shows them. One that looks
    like an option comes after --:

    \b
        greycheck explain -- 192.0.2.1 --help@example.org bob@example.net

    TIME is `2026-11-20 12:00` (local), `2026-11-20T12:00+01:00`, `+10m` from now, or seconds since
    1970.

    For scripts: --json has verdict.action and verdict.exit_code, --exit-code exits with that.
    Otherwise the exit code is 0 whatever the verdict, 1 where nothing could be explained, and 2
    where an address is none.
    """  # noqa: D301
    asking = explanation.HOOKS.get(hook)
    if helo and asking is not None and "helo" not in asking.VARIABLES:
        raise click.UsageError(f"{asking.TITLE} hands over no HELO: leave --helo out")
    address = "" if ip in ("", "-") else client_address(ip)
    settings = read_settings()
    if hook == delegation.NAME and name:
        settings.verified_names = "yes"
    envelope = why.envelope_of(
        hook,
        address.encode(),
        mail_address(sender, "sender"),
        mail_address(recipient, "recipient"),
        dict(os.environb),
        os.fsencode(helo),
        os.fsencode(name),
    )
    with asked_only(settings) as store:
        told = why.explain(store, envelope, settings, int(time()) if now is None else now)
    place = migrate.shown(settings.database) + (
        ": does not exist yet: the first mail makes it; explained as empty" if store is None else ""
    )
    if as_json:
        print_json(as_data(told, place))
    else:
        show_all(console(), told, place)
    if answers:
        raise SystemExit(told.code)


@contextmanager
def asked_only(settings: Settings) -> "Iterator[Connected | None]":
    """The store of SETTINGS as the child reaches it, or None where it does not exist yet.

    Raises ClickException.
    """
    store = None
    try:
        store = _connected(settings)
        yield store
    except StoreError as error:
        raise click.ClickException(
            f"{terminal.shown(str(error))}\nA check by this user would end in reason=error:"
            f" {settings.on_error} (on_error)."
        ) from None
    finally:
        if store is not None:
            store.close()


def _connected(settings: Settings) -> "Connected | None":
    path = migrate.sqlite_path(settings.database)
    give_up_root(settings)
    if path is None:
        # No mark of a host that does not answer is made or minded: it would be this user's, and no
        # check's.
        unmarked = copy(settings)
        unmarked.state_directory = os.devnull
        return connect(unmarked, PATIENCE)
    try:
        store = connect(settings, PATIENCE)
    except NoSchema as error:
        if not path.parent.is_dir() and not makes_directory(settings):
            raise _of(migrate.trouble(path) or error) from None
        return None
    except StoreError as error:
        raise _of(migrate.barred(path) or error) from None
    try:
        with foreseen():
            if migrate.current(settings.database) is None:
                store.close()
                return None
            migrate.require(settings.database)
    except BaseException:
        store.close()
        raise
    return store


def _of(error: Advised) -> StoreError:
    return StoreError(error.said, error.command)


# --- for people -----------------------------------------------------------------------------------


def show_all(screen: Console, told: Explanation, store: str) -> None:
    """Prints what was TOLD to SCREEN: envelope, steps, verdict, and what would change it."""
    facts(screen, envelope_lines(told, store), 10)
    screen.print("\nSteps, the first that matches decides", style="bold")
    screen.print(steps_table(screen, told))
    screen.print()
    screen.print(verdict_text(told), soft_wrap=True)
    for line in consequences(told):
        screen.print(f"  {line}")
    screen.print("\nWhat would change it", style="bold")
    for remedy in told.remedies:
        screen.print(
            f"  {terminal.shown(remedy.command)}",
            style="" if remedy.setting else "cyan",
            soft_wrap=True,
        )
        screen.print(f"      {terminal.shown(remedy.effect)}", style="dim")


def envelope_lines(told: Explanation, store: str) -> Iterator[tuple[str, str]]:
    """The envelope, and what normalising made of it."""
    envelope, asked = told.envelope, told.triplet
    yield "client", (envelope.client or "-") + (f", network {asked.network}" if asked else "")
    if envelope.name:
        yield "name", show(envelope.name)
    if envelope.helo:
        yield "HELO", show(envelope.helo)
    yield "sender", f"<{show(envelope.sender)}>"
    if asked and asked.sender != envelope.sender:
        yield "", f"counts as <{show(asked.sender)}>"
    yield "recipient", f"<{show(envelope.recipient)}>"
    if asked and asked.recipient != envelope.recipient:
        yield "", f"counts as <{show(asked.recipient)}>"
    yield "at", local(told.now)
    yield "store", store


def steps_table(screen: Console, told: Explanation) -> Table:
    """What each step looked at and found, and which one decided."""
    reason = f"=> {told.verdict.reason}"
    ends = max(OUTCOME, len(reason))
    table = grid(NAME, None, ends)
    width = room(screen) - NAME - ends - 3 * GAP
    for step in told.steps:
        decides, reached = step.outcome == DECIDES, step.outcome != UNREACHED
        text = Text(style="bold" if decides else "" if reached else "dim")
        for line in (step.found or "-").split("\n"):
            text.append(fitting(line, width, screen)).append(NEWLINE)
        text.append(fitting(step.looked_at, width, screen), style="not bold dim")
        outcome = reason if decides else step.outcome
        style = f"bold {COLOURS[told.decided]}" if decides else "" if reached else "dim"
        table.add_row(Text(f"  {step.name}", style=style), text, Text(outcome, style=style))
    return table


def verdict_text(told: Explanation) -> Text:
    """The verdict in one line, in the log's words."""
    detail = f" {detail_of(told.verdict)}" if told.verdict.detail else ""
    text = Text.assemble(
        (told.decided, f"bold {COLOURS[told.decided]}"), f" reason={told.verdict.reason}{detail}"
    )
    if told.verdict.by_identity:
        text.append(NEWLINE).append(
            f"identity is only observed: else accept reason={told.verdict.by_identity}"
        )
    if told.verdict.observed:
        text.append(NEWLINE).append(
            f"only observed ({steps.observing(told)}): accept, logged with"
            f" observed={told.verdict.observed}"
        )
    return text


def consequences(told: Explanation) -> Iterator[str]:
    """What the mail server is told, and when things change by themselves."""
    now = told.now
    if told.answer:
        yield f"answer: action={told.answer}"
    if told.verdict.reason == "strikes":
        yield f"refused until {local(told.passes[0])} ({away(told.passes[0], now)})"
    elif told.passes:
        first, last = told.passes
        yield f"a retry passes from {local(first)} ({away(first, now)}, {first - now}s)"
        yield f"              until {local(last)} ({away(last, now)})"
    if told.verdict.reason == "new":
        yield "as if it were tried at this time; to explain records nothing"


# --- for scripts ----------------------------------------------------------------------------------


def as_data(told: Explanation, store: str) -> dict[str, object]:
    """What was TOLD, for JSON. Times are seconds since 1970."""
    envelope, asked, verdict = told.envelope, told.triplet, told.verdict
    retry = told.passes if len(told.passes) == 2 else (None, None)
    return {
        "at": told.now,
        "store": store,
        "envelope": {
            "hook": envelope.hook,
            "client": envelope.client,
            "name": show(envelope.name),
            "helo": show(envelope.helo),
            "sender": show(envelope.sender),
            "recipient": show(envelope.recipient),
        },
        "triplet": asked
        and {
            "network": asked.network,
            "sender": show(asked.sender),
            "recipient": show(asked.recipient),
        },
        "identity": identity_data(told),
        "steps": [asdict(step) for step in told.steps],
        "verdict": {
            "action": verdict.action,
            "reason": verdict.reason,
            "detail": verdict.detail and detail_of(verdict),
            "observed": verdict.observed or None,
            "exit_code": told.code,
            "answer": told.answer or None,
        },
        "wait": verdict.wait if verdict.reason in ("new", "early") else None,
        "retry_passes_from": retry[0],
        "retry_passes_until": retry[1],
        "refused_until": told.passes[0] if verdict.reason == "strikes" else None,
        "remedies": [asdict(remedy) for remedy in told.remedies],
    }


def identity_data(told: Explanation) -> dict[str, object] | None:
    """What is known of the sender's domain, for JSON; None if that was not asked."""
    identity, asked, decision = told.identity, told.triplet, told.decision
    if identity is None or asked is None:
        return None
    return {
        "domain": show(domain_of(asked.sender)) if asked.sender else None,
        "authorised_by": decision.authorised_by or None,
        "spf": identity.state or None,
        "answered_at": identity.answered,
        "passes": identity.row.passes if identity.row else 0,
        "provider": identity.provider or None,
        "would_be": decision.by_identity or None,
    }
