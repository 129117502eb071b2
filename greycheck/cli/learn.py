"""``greycheck learn``: learns from the logs of mail servers whom our users write to."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, BinaryIO

import click

from greycheck import log, outbound
from greycheck.cli import terminal
from greycheck.cli.common import foreseen, give_up_root, read_settings
from greycheck.mail_logs import lines
from greycheck.mail_logs.mails import Mails
from greycheck.normalise import host_name
from greycheck.outbound import Letter
from greycheck.privilege import files
from greycheck.settings import Settings
from greycheck.store import connect
from greycheck.store.schema import migrate
from greycheck.times import stamp

if TYPE_CHECKING:
    from greycheck.store.base import Connection

# How many correspondents are written at once; and how many are remembered, so that the store need
# not be asked again.
BATCH, KNOWN = 500, 200_000

# How long the store may take over one batch, in seconds.
PATIENCE = 60.0


class Counts:
    """How many LINES were read, of users' MAILS to whom, and how many were OLD or WRITTEN."""

    def __init__(self) -> None:
        self.lines = self.mails = self.old = self.written = 0


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE | -]...")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME",
    help="Learn only from users of this domain. May be given again.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be learnt, and learn nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Name each correspondent that is learnt from.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def learn(
    files: tuple[str, ...],
    domains: tuple[str, ...],
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Learn from logs whom our users write to, so that the answers pass at once.

    For mail that no checker here sees: where users hand in their mail at another host, or before
    learn_outbound was set. FILE is a log of greycheck, Postfix, qmail-send or Exim, as multilog or
    syslog writes it; - is the standard input, which is also read where no FILE is named.

    Of greycheck those lines count that are exempt as a user's, of Postfix and Exim mails of clients
    who authenticated themselves; qmail-send does not say, so what leaves the host counts, and
    --domain says who the users are.

    What is older than learn_outbound is left out. A log may be read again: what is known is not
    written twice.
    """
    settings, now = read_settings(), int(time())
    if not settings.learn_outbound:
        raise click.ClickException(
            "learn_outbound is 0, so nothing is learnt, nor counts: set learn_outbound = 60d"
        )
    counts = Counts()
    with ExitStack() as opened, foreseen():
        logs = [opened.enter_context(_open(name)) for name in files or ("-",)]
        give_up_root(settings)
        if not dry_run:
            migrate.require(settings.database)
        found = _letters(logs, settings, now, counts, frozenset(map(_domain, domains)))
        store = None if dry_run else connect(settings, PATIENCE)
        for batch in _batches(_news(found)):
            if verbose:
                terminal.echo(*map(_shown, batch))
            counts.written += _written(store, batch)
        if store is not None:
            store.close()
    if as_json:
        terminal.echo(
            terminal.as_json(
                {
                    "dry_run": dry_run,
                    "lines": counts.lines,
                    "mails": counts.mails,
                    "old": counts.old,
                    "learnt": counts.written,
                }
            )
        )
        return
    verb = "to learn" if dry_run else "learnt"
    terminal.echo(
        f"{counts.lines} lines: {counts.mails} mails of users, {counts.old} of them too old.",
        f"{counts.written} correspondents {verb}.",
    )


def _domain(name: str) -> bytes:
    return host_name(os.fsencode(name))


def _open(name: str) -> BinaryIO:
    """Opens the log NAME. Raises OSError."""
    if name == "-":
        return sys.stdin.buffer
    return files.opened(Path(name))


def _letters(
    logs: Iterable[BinaryIO],
    settings: Settings,
    now: int,
    counts: Counts,
    domains: frozenset[bytes],
) -> Iterator[Letter]:
    """Yields what LOGS say of mails of users, of DOMAINS if there are any; counts them."""
    lifetime = settings.learn_outbound
    for source in logs:
        mails = Mails()
        for text in lines.bounded(source):
            counts.lines += 1
            line = lines.read(text, now)
            pair = mails.read(line)
            if pair is None or any(b"\0" in address for address in pair):
                continue
            when = now if line.when is None else min(line.when, now)
            letter = outbound.letter(*pair, when, lifetime)
            if letter is None or (domains and letter.user.rpartition(b"@")[2] not in domains):
                continue
            counts.mails += 1
            if letter.expires <= now:
                counts.old += 1
            else:
                yield letter


def _news(letters: Iterable[Letter]) -> Iterator[Letter]:
    """Yields those of LETTERS that say more than those before them."""
    known: dict[tuple[bytes, bytes], int] = {}
    for letter in letters:
        pair = letter.outside, letter.user
        if pair in known and not letter.is_news(known[pair]):
            continue
        if len(known) >= KNOWN:
            known.clear()
        known[pair] = letter.expires
        yield letter


def _batches(letters: Iterable[Letter]) -> Iterator[list[Letter]]:
    """Yields LETTERS, BATCH at once, and of two about the same correspondent the later one."""
    batch: dict[tuple[bytes, bytes], Letter] = {}
    for letter in letters:
        batch[letter.outside, letter.user] = letter
        if len(batch) >= BATCH:
            yield list(batch.values())
            batch.clear()
    yield list(batch.values())


def _written(store: "Connection | None", batch: list[Letter]) -> int:
    """How many of BATCH are news to the STORE; all, where it is not asked. Raises StoreError."""
    if store is None:
        return len(batch)
    store.begin(PATIENCE)
    return store.learn(batch)


def _shown(letter: Letter) -> str:
    user, outside = log.show_address(letter.user), log.show_address(letter.outside)
    return f"{stamp(letter.written)} {user} wrote to {outside}"
