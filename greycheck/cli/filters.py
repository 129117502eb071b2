"""The options of ``greycheck list`` and ``forget`` that select rows."""

from collections.abc import Callable
from dataclasses import dataclass

import click

from greycheck.cli.output import duration
from greycheck.explain.decision import address_bytes
from greycheck.normalise import Network
from greycheck.store.admin import queries
from greycheck.store.admin.queries import Filter, read_network
from greycheck.store.schema.tables import client


@dataclass(frozen=True)
class Chosen:
    """The values of the options; durations in seconds."""

    address: str | None
    domain: str | None
    network: str | None
    older: int | None
    newer: int | None

    def any(self) -> bool:
        """True if any of the options is given."""
        return any(value is not None for value in vars(self).values())

    def filter(self, which: str, now: int) -> Filter:
        """Returns the filter for the list WHICH at NOW. Raises UsageError."""
        if queries.table_of(which) is client and (
            self.address is not None or self.domain is not None
        ):
            raise click.UsageError(
                f"{which}: of a client no sender or recipient is known: leave --address and"
                " --domain out"
            )
        if which == queries.CORRESPONDENTS and self.network is not None:
            raise click.UsageError(f"{which}: of a correspondent no client is known: no --network")
        if which == queries.DOMAINS and self.address is not None:
            raise click.UsageError(f"{which}: of a domain no address is known: use --domain")
        return Filter(
            None if self.address is None else address_bytes(self.address),
            None if self.domain is None else address_bytes(self.domain),
            None if self.network is None else network_of(self.network),
            None if self.newer is None else now - self.newer,
            None if self.older is None else now - self.older,
        )


def network_of(text: str) -> Network:
    """The network that TEXT, the value of ``--network``, writes. Raises BadParameter."""
    try:
        return read_network(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--network") from None


# The options about a mail: its addresses and its client. ``greycheck watch`` has them too.
OF_MAIL = (
    click.option(
        "--address",
        metavar="TEXT",
        help="Sender or recipient: an address, user@, @domain; '<>' the null sender.",
    ),
    click.option(
        "--domain", metavar="NAME", help="Sender or recipient at this domain or below it."
    ),
    click.option(
        "--network",
        metavar="CIDR",
        help="Clients in 192.0.2.0/23, 2001:db8::/32, 192.0.2.1: any length.",
    ),
)

# Those about its age.
OF_AGE = (
    click.option(
        "--older",
        callback=duration,
        metavar="DURATION",
        help="First attempt longer ago than 90s, 5m, 24h, 36d.",
    ),
    click.option(
        "--newer",
        callback=duration,
        metavar="DURATION",
        help="First attempt not as long ago.",
    ),
)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to COMMAND, which takes them by the names of ``Chosen``."""
    for decorator in reversed((*OF_MAIL, *OF_AGE)):
        command = decorator(command)
    return command


def of_mail(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options ``address``, ``domain`` and ``network`` to COMMAND."""
    for decorator in reversed(OF_MAIL):
        command = decorator(command)
    return command
