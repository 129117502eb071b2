"""``greycheck digest``: what was deferred and never came back although it looks legitimate.

What only it needs is imported when it is run: other commands start sooner so.
"""

from collections.abc import Callable, Iterator
from time import time
from typing import TYPE_CHECKING

import click

from greycheck import normalise
from greycheck.cli import terminal
from greycheck.cli.columns import cut, wrapped
from greycheck.cli.common import foreseen, open_store, read_settings
from greycheck.cli.expire import no_store
from greycheck.cli.output import LAST, console, duration, is_empty, lasting, print_json
from greycheck.digest import collecting
from greycheck.explain.decision import address_bytes
from greycheck.explain.remedies import command
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.times import away, span

if TYPE_CHECKING:
    from greycheck.digest.collecting import Digest, Entry, Names
    from greycheck.digest.page import Mail

# How wide the text is, in columns: a mail of cron's.
WIDTH = 80

# How far the lines of a mail are indented.
INDENT = "    "

NO_DOMAIN = "(no domain)"


@click.command()
@click.option(
    "--older",
    callback=duration,
    default="4h",
    show_default=True,
    metavar="DURATION",
    help="Only what was last tried longer ago.",
)
@click.option("--recipient-domain", metavar="NAME", help="Only mail to this domain.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="N",
    help="Mails of each domain; 0: all.",
)
@click.option(
    "--least",
    type=click.IntRange(1),
    default=collecting.LEAST,
    show_default=True,
    metavar="N",
    help="The least sum of the signs' weights.",
)
@click.option("--names", is_flag=True, help="Verify clients' names: ask DNS, for 20 seconds.")
@click.option("--links", metavar="URL", help="Add to each mail a link URL?TOKEN that lets it in.")
@click.option(
    "--valid",
    callback=lasting,
    default="7d",
    show_default=True,
    metavar="DURATION",
    help="How long links are valid at most.",
)
@click.option("--html", is_flag=True, help="Print one page of HTML.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def digest(
    older: int,
    recipient_domain: str | None,
    limit: int,
    least: int,
    names: bool,
    links: str | None,
    valid: int,
    html: bool,
    as_json: bool,
) -> None:
    """Tell what was deferred, never came back, and looks legitimate, with what lets it in.

    For cron, once a day: prints text of 80 columns, and nothing where nothing looks so.

    Looked at is what waits, newest first, 100000 rows at most. Signs that a mail is legitimate have
    weights, and their sum ranks it: the recipient wrote to the sender (5), mail of the two has
    passed before (4), the client is known (3) or a neighbour of it (2), the sender's domain lets it
    send (2) and is known (2), a provider or a rule that allows is near (2), it was tried again (1),
    its name is verified (1). Where the domain names other networks, that counts against it (-3).

    Each mail has the commands that let it in. --links adds a link for the recipient, which the CGI
    program contrib/greycheck-release.cgi answers: it lets in that one mail, once, until what waits
    expires. The key of these links is made at first use, in a file of the store's owner.
    """
    settings, now = read_settings(), int(time())
    if html and as_json:
        raise click.UsageError("print either --html or --json")
    domain = b"" if recipient_domain is None else _domain(recipient_domain)
    _check_url(links)
    if links is not None:
        # The key is the owner's, with a server database too.
        with foreseen():
            rights.become_owner(settings, marks=True)
    if is_empty(settings):
        found, linking = collecting.Digest(), None
        if not as_json and not html:
            terminal.echo(*no_store(settings))
            return
    else:
        with open_store(settings) as engine:
            asking = _names(settings) if names else None
            linking = None if links is None else _linking(links, settings, valid, now)
            found = collecting.collect(engine, settings, now, older, domain, least, asking)
    link = linking or (lambda _entry: "")
    if as_json:
        print_json(_as_json(found, now, older, limit, link))
    elif html:
        _print_page(found, now, older, limit, link)
    elif found.entries:
        terminal.echo(*_text(found, now, older, limit, link))
    elif console().is_terminal:
        terminal.echo("Nothing that waits looks legitimate.")


def _domain(text: str) -> bytes:
    """Returns the recipients' domain that TEXT names. Raises UsageError."""
    domain = normalise.mail_address(b"@" + address_bytes(text).lstrip(b"@"))[1:]
    if not domain or b"@" in domain:
        raise click.UsageError(f"--recipient-domain {text}: not a domain (as example.net)")
    return domain


def _check_url(url: str | None) -> None:
    from greycheck.digest.links import check_url

    try:
        if url is not None:
            check_url(url)
    except ValueError as error:
        raise click.UsageError(f"--links {url}: {error}") from None


def _names(settings: Settings) -> "Names":
    """Returns what verifies names by the servers of SETTINGS. Raises ClickException."""
    from greycheck.digest.names import verified
    from greycheck.resolve.work import resolver

    try:
        asked = resolver(settings)
    except ValueError as error:
        raise click.ClickException(f"resolver: {error}") from None
    return lambda clients: verified(asked, clients)


def _linking(url: str, settings: Settings, valid: int, now: int) -> "Callable[[Entry], str]":
    """Returns what makes links of URL that are VALID for so many seconds from NOW."""
    from greycheck.digest import links

    secret = links.make_key(links.path_of(settings))

    def link(entry: "Entry") -> str:
        row = entry.best.row
        expires = min(now + valid, row["expires_at"])
        if not 0 <= row["first_attempt"] <= LAST:  # whoever wrote that
            return ""
        token = links.Token(bytes(row["triplet_key"]), row["first_attempt"], expires)
        return f"{url}?{links.written(secret, token)}"

    return link


# --- what all forms have --------------------------------------------------------------------------


def _chosen(found: "Digest", limit: int) -> "Iterator[tuple[str, list[Entry], str]]":
    """Yields each domain FOUND, LIMIT of its mails at most, and words about the others."""
    for domain, entries in found.entries.items():
        some = entries[:limit] if limit else entries
        more = len(entries) - len(some)
        words = f"{more} more to this domain: --limit 0 shows all." if more else ""
        yield domain or NO_DOMAIN, some, words


def _about(found: "Digest", older: int) -> list[str]:
    """Returns sentences about what was FOUND in all."""
    number = sum(map(len, found.entries.values()))
    mails = "1 mail" if number == 1 else f"{number} mails"
    others = (
        (found.arrived, "arrived all the same"),
        (found.released, "released"),
        (found.refused, "refused by rules"),
    )
    said = ", ".join(f"{count} {words}" for count, words in others if count)
    sentences = [
        f"{mails} that look{'s' * (number == 1)} legitimate: deferred, and not tried again for"
        f" {span(older)}.",
        f"Of {found.waiting} triplets that wait so long{f' ({said})' if said else ''}.",
    ]
    if found.observed:
        sentences.append("The mode is observe: they were accepted, and would have been deferred.")
    if not found.whole:
        sentences.append("There is more than is looked at: what is newest and ranks highest was.")
    return sentences


def commands_of(entry: "Entry") -> list[tuple[str, str]]:
    """Returns labels and command lines that let ENTRY in: this mail, and then its client."""
    row = entry.best.row
    found = [("Let it in once", command("release", bytes(row["triplet_key"]).hex()))]
    client = entry.best.client
    # Of the null sender's client nothing is known but its network, and that may be anybody's.
    if client and not normalise.is_private(client):
        found.append(("Let its client in", command("allow", client)))
    return found


def _mail(entry: "Entry", now: int, link: str) -> "Mail":
    from greycheck.digest.page import Mail

    row = entry.best.row
    if entry.attempts == 1:
        attempts = f"one attempt, {away(entry.first, now)}"
    else:
        networks = f" from {entry.networks} networks" if entry.networks > 1 else ""
        attempts = (
            f"{entry.attempts} attempts{networks}, first {away(entry.first, now)},"
            f" last {away(entry.last, now)}"
        )
    left = span(row["expires_at"] - now)
    facts = f"client {entry.best.client or row['network']}; {attempts}; waits for another {left}"
    signs = sorted(entry.best.signs, key=lambda sign: -sign.weight)
    sender = row["sender"] or "<>"
    return Mail(sender, row["recipient"], facts, signs, commands_of(entry), link)


# --- text -----------------------------------------------------------------------------------------


def _text(
    found: "Digest", now: int, older: int, limit: int, link: "Callable[[Entry], str]"
) -> Iterator[str]:
    for sentence in _about(found, older):
        yield from wrapped(sentence, WIDTH)
    for domain, entries, more in _chosen(found, limit):
        title = cut(domain, WIDTH, console())
        yield from ("", title, "=" * terminal.cell_len(title))
        for number, entry in enumerate(entries, 1):
            yield ""
            yield from _mail_text(_mail(entry, now, link(entry)), number)
        if more:
            yield from ("", more)


def _mail_text(mail: "Mail", number: int) -> Iterator[str]:
    room = WIDTH - len(INDENT)
    yield f"{number:2}. {cut(terminal.shown(mail.sender), room, console())}"
    yield f"{INDENT}to {cut(terminal.shown(mail.recipient), room - 3, console())}"
    yield from (INDENT + line for line in wrapped(mail.facts, room))
    for sign in mail.signs:
        first, *rest = _lines(sign.words, room - 3)
        yield f"{INDENT}{sign.weight:+} {first}"
        yield from (f"{INDENT}   {line}" for line in rest)
    for label, line in mail.commands:
        yield f"{INDENT}{label}:"
        yield f"{INDENT}  {line}"
    if mail.link:
        yield f"{INDENT}Or open:"
        yield f"{INDENT}  {mail.link}"


def _lines(words: str, width: int) -> list[str]:
    """Returns WORDS in lines of WIDTH columns; a longer word is cut in its middle."""
    short = (cut(word, width, console()) for word in terminal.shown(words).split(" "))
    return wrapped(" ".join(short), width)


# --- HTML and JSON --------------------------------------------------------------------------------


def _print_page(
    found: "Digest", now: int, older: int, limit: int, link: "Callable[[Entry], str]"
) -> None:
    from greycheck.digest.page import page

    domains = [
        (domain, [_mail(entry, now, link(entry)) for entry in entries], more)
        for domain, entries, more in _chosen(found, limit)
    ]
    text = page("Mail that has not come back", _about(found, older), domains)
    terminal.echo(*text.split("\n"))


def _as_json(
    found: "Digest", now: int, older: int, limit: int, link: "Callable[[Entry], str]"
) -> dict[str, object]:
    return {
        "at": now,
        "older": older,
        "waiting": found.waiting,
        "arrived": found.arrived,
        "released": found.released,
        "refused": found.refused,
        "whole": found.whole,
        "observed": found.observed,
        "domains": [
            {
                "domain": domain,
                "mails": [_mail_json(entry, link(entry)) for entry in entries[: limit or None]],
                "more": len(entries) - len(entries[: limit or None]),
            }
            for domain, entries in found.entries.items()
        ],
    }


def _mail_json(entry: "Entry", link: str) -> dict[str, object]:
    row = entry.best.row
    return {
        "key": bytes(row["triplet_key"]).hex(),
        "sender": row["sender"],
        "recipient": row["recipient"],
        "client": entry.best.client or None,
        "network": row["network"],
        "networks": entry.networks,
        "attempts": entry.attempts,
        "first_attempt": entry.first,
        "last_attempt": entry.last,
        "expires_at": row["expires_at"],
        "score": entry.score,
        "signs": [
            {"sign": sign.name, "weight": sign.weight, "words": sign.words}
            for sign in entry.best.signs
        ],
        "commands": [line for _label, line in commands_of(entry)],
        "link": link or None,
    }
