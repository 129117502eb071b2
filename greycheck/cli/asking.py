"""What the commands that ask share: how an operator writes a time, and how tables and JSON are printed."""

from collections.abc import Iterator
from datetime import datetime
from time import time

import click

from greycheck import earlier, normalise
from greycheck import settings as names
from greycheck.cli import columns, terminal
from greycheck.cli.common import foreseen, give_up_root
from greycheck.cli.expire import is_waiting_for_first_mail
from greycheck.cli.terminal import Console, Table
from greycheck.envelope import Envelope, triplet
from greycheck.explain import address_bytes
from greycheck.settings import Settings
from greycheck.store import schema
from greycheck.store.lean import DIGEST, Asked

# How many hexadecimal digits of a key lists show: of a million triplets hardly two begin with the same.
KEY_SHOWN = 12

# How many say that a key is meant.
KEY_DIGITS = 4

# Beyond it no calendar goes.
LAST = 253402300799


def duration(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Of an option's VALUE: seconds from ``90``, ``5m``, ``24h`` or ``36d``. Raises BadParameter."""
    try:
        return None if value is None else names.duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value}: {error}") from None


def moment(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Of an option's VALUE: seconds since 1970. A date and time without a zone is local. Raises BadParameter."""
    if value is None:
        return None
    try:
        found = _moment(value)
    except (ValueError, OverflowError):
        found = -1
    if not 0 <= found <= LAST:
        raise click.BadParameter(f"{value}: not a time (as 2026-11-20 12:00, 2026-11-20T12:00+01:00 or +10m)")
    return found


def _moment(text: str) -> int:
    if text.startswith("+"):
        return int(time()) + names.duration(text[1:])
    if text.isascii() and text.isdigit():
        return int(text)
    return int(datetime.fromisoformat(text).timestamp())


def client_address(text: str) -> str:
    """The client address TEXT in its one spelling. Raises UsageError."""
    address = normalise.client_address(text.encode("utf-8", "surrogateescape"))
    if address is None:
        raise click.UsageError(f"{text}: not the address of a client (as 192.0.2.1 or 2001:db8::1)")
    return address


def mail_address(text: str, what: str) -> bytes:
    """The bytes of a mail address TEXT, which is WHAT is asked for. Raises UsageError where it seems to be mistyped.

    One without a domain is written in brackets: ``<postmaster>``, or ``<>`` for the null sender.
    """
    user, at, domain = text.rpartition("@")
    if not text or (text.startswith("<") and text.endswith(">")) or (user and at and domain):
        return address_bytes(text)
    if not at:
        raise click.UsageError(
            f"{text}: no @, so not the address of a {what}: write {text}@DOMAIN, or '<{text}>' where that is all of it"
        )
    raise click.UsageError(
        f"{text}: nothing {'after' if user else 'before'} the @: write the whole address of the {what}"
    )


def console() -> Console:
    """Where tables go: standard output, as wide as the terminal; or without an end, where nobody looks."""
    found = Console()
    found.width = columns.room(found)
    return found


def grid(*widths: int | None) -> Table:
    """A table without lines; of columns with a width, or (None) as wide as there is room. Long words are folded, none is cut."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in widths:
        table.add_column(width=width, overflow="fold")
    return table


def print_json(value: object) -> None:
    """Prints VALUE as JSON."""
    terminal.echo(*terminal.as_json(value, indent=2).split("\n"))


def print_json_rows(rows: Iterator[dict[str, object]]) -> None:
    """Prints ROWS as a JSON array, one on a line, as they come."""
    terminal.echo("[", end="")
    before = ""
    for row in rows:
        terminal.echo(before, terminal.as_json(row), end="")
        before = ","
    terminal.echo("", "]")


def key_or_client(text: str) -> tuple[str, str]:
    """TEXT as (hexadecimal digits of a triplet's key, ""), or as ("", client address). Raises UsageError."""
    digits = text.lower()
    if KEY_DIGITS <= len(digits) <= 2 * DIGEST and not digits.strip("0123456789abcdef"):
        return digits, ""
    return "", client_address(text)


def asked_for(arguments: tuple[str, ...], settings: Settings) -> tuple[list[str], str]:
    """ARGUMENTS as (hexadecimal digits of a triplet's keys, client address); one of the two is empty. Raises UsageError.

    They are the key of a triplet or its beginning, a client's address, or that with sender and recipient: of these there may be two
    keys, the second as an earlier release folded the sender.
    """
    if len(arguments) == 1:
        digits, address = key_or_client(arguments[0])
        return [digits] if digits else [], address
    if len(arguments) != 3:
        raise click.UsageError("name a triplet (KEY, or IP SENDER RECIPIENT) or a client (IP)")
    sender, recipient = mail_address(arguments[1], "sender"), mail_address(arguments[2], "recipient")
    envelope = Envelope("", client_address(arguments[0]), sender, recipient)
    asked = Asked(envelope, triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix))
    then = earlier.asked_then(asked)
    return [asked.key.hex()] + ([then.key.hex()] if then else []), ""


def is_empty(found: Settings) -> bool:
    """Whether the store of the settings FOUND does not exist yet because no mail was checked: nothing is known, and nothing wrong.

    Root becomes its owner.
    """
    give_up_root(found)
    with foreseen():
        return is_waiting_for_first_mail(found.database) and schema.current(found.database) is None
