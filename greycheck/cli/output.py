"""What commands share: they read durations, times and addresses, and print tables and JSON."""

from collections.abc import Iterator
from datetime import datetime
from time import time

import click

from greycheck import earlier, normalise
from greycheck.cli import columns, terminal
from greycheck.cli.common import foreseen, give_up_root
from greycheck.cli.expire import is_waiting_for_first_mail
from greycheck.cli.terminal import Console, Table
from greycheck.envelope import Envelope, triplet
from greycheck.explain.decision import address_bytes
from greycheck.settings import Settings
from greycheck.store.base import DIGEST, Asked
from greycheck.store.schema import migrate
from greycheck.times import LAST, bounded_duration

# How many hexadecimal digits of a key lists show: of a million triplets hardly two have the same.
KEY_SHOWN = 12

# With at least this many digits an argument is taken for a key.
KEY_DIGITS = 4


def duration(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Returns the seconds of an option's VALUE, as ``90``, ``5m``, ``24h`` or ``36d``.

    Raises BadParameter.
    """
    try:
        return None if value is None else bounded_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value}: {error}") from None


def lasting(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """As ``duration``, and at least one second."""
    seconds = duration(context, option, value)
    if seconds == 0:
        raise click.BadParameter("must be 1s at least")
    return seconds


def moment(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Returns the time of an option's VALUE, in seconds since 1970.

    A date and time without a zone is local time. Raises BadParameter.
    """
    if value is None:
        return None
    try:
        seconds = _moment(value)
    except (ValueError, OverflowError):
        seconds = -1
    if not 0 <= seconds <= LAST:
        raise click.BadParameter(
            f"{value}: not a time (as 2026-11-20 12:00, 2026-11-20T12:00+01:00 or +10m)"
        )
    return seconds


def _moment(text: str) -> int:
    if text.startswith("+"):
        return int(time()) + bounded_duration(text[1:])
    if text.isascii() and text.isdigit():
        return int(text)
    return int(datetime.fromisoformat(text).timestamp())


def client_address(text: str) -> str:
    """Returns the client address TEXT in canonical form. Raises UsageError."""
    address = normalise.client_address(text.encode("utf-8", "surrogateescape"))
    if address is None:
        raise click.UsageError(f"{text}: not the address of a client (as 192.0.2.1 or 2001:db8::1)")
    return address


def mail_address(text: str, what: str) -> bytes:
    """Returns the bytes of the mail address TEXT; WHAT says whose it is, for a message.

    An address without a domain is written in brackets: ``<postmaster>``, or ``<>`` for the null
    sender. Raises UsageError if TEXT seems to be mistyped.
    """
    user, at, domain = text.rpartition("@")
    if not text or (text.startswith("<") and text.endswith(">")) or (user and at and domain):
        return address_bytes(text)
    if not at:
        raise click.UsageError(
            f"{text}: no @, so not the address of a {what}: write {text}@DOMAIN, or '<{text}>'"
            " where that is all of it"
        )
    raise click.UsageError(
        f"{text}: nothing {'after' if user else 'before'} the @: write the whole address of the"
        f" {what}"
    )


def console() -> Console:
    """Returns a console on standard output, as wide as the terminal.

    Without a terminal lines have no limit.
    """
    screen = Console()
    screen.width = columns.room(screen)
    return screen


def grid(*widths: int | None) -> Table:
    """Returns a table without lines, with columns of these WIDTHS; None: as wide as needed.

    Long words are folded, not cut.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in widths:
        table.add_column(width=width, overflow="fold")
    return table


def print_json(value: object) -> None:
    """Prints VALUE as JSON."""
    terminal.echo(*terminal.as_json(value, indent=2).split("\n"))


def print_json_rows(rows: Iterator[dict[str, object]]) -> None:
    """Prints ROWS as a JSON array, one per line, as they come."""
    terminal.echo("[", end="")
    before = ""
    for row in rows:
        terminal.echo(before, terminal.as_json(row), end="")
        before = ","
    terminal.echo("", "]")


def key_or_client(text: str) -> tuple[str, str]:
    """Returns TEXT as (hexadecimal digits of a triplet's key, ""), or as ("", client address).

    Raises UsageError.
    """
    digits = text.lower()
    if KEY_DIGITS <= len(digits) <= 2 * DIGEST and not digits.strip("0123456789abcdef"):
        return digits, ""
    try:
        return "", client_address(text)
    except click.UsageError as error:
        raise click.UsageError(
            f"{error.message}, nor the key of a triplet ({KEY_DIGITS} or more of its hex digits)"
        ) from None


def asked_for(arguments: tuple[str, ...], settings: Settings) -> tuple[list[str], str]:
    """Returns ARGUMENTS as (hexadecimal digits of keys, client address), one of them empty.

    ARGUMENTS are the key of a triplet or its beginning, a client's address, or that with sender and
    recipient. These may give two keys: the second has the sender as an earlier release folded it.
    Raises UsageError.
    """
    if len(arguments) == 1:
        digits, address = key_or_client(arguments[0])
        return [digits] if digits else [], address
    if len(arguments) != 3:
        raise click.UsageError(
            "name a triplet (KEY, or IP SENDER RECIPIENT), a client (IP) or a domain (domain NAME)"
        )
    return [asked.key.hex() for asked in attempts_of(arguments, settings)], ""


def attempts_of(arguments: tuple[str, ...], settings: Settings) -> list[Asked]:
    """Returns what a check asks for at an attempt of ARGUMENTS: client, sender and recipient.

    A second one has the sender as an earlier release folded it, if that is another. Raises
    UsageError.
    """
    sender, recipient = (
        mail_address(arguments[1], "sender"),
        mail_address(arguments[2], "recipient"),
    )
    envelope = Envelope("", client_address(arguments[0]), sender, recipient)
    asked = Asked(envelope, triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix))
    before = earlier.triplet_then(asked.triplet)
    return [asked, Asked(envelope, before)] if before else [asked]


def is_empty(settings: Settings) -> bool:
    """True if the store of SETTINGS does not exist yet because no mail was checked.

    That is no fault. Root becomes the store's owner.
    """
    give_up_root(settings)
    with foreseen():
        return migrate.current(settings.database) is None and is_waiting_for_first_mail(settings)
