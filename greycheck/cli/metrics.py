"""``greycheck metrics``: numbers for Prometheus, from the store."""

import os
import re
from pathlib import Path
from time import time

import click

from greycheck.cli import terminal
from greycheck.cli.common import engine_of, foreseen, read_settings
from greycheck.cli.output import is_empty
from greycheck.cli.report import write
from greycheck.metrics.counted import Counted, counted, marks, spooled
from greycheck.privilege import apart
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.admin.engine import installing_library
from greycheck.store.base import StoreError

LIBRARY = "prometheus_client"

_LINE = re.compile(r"(# (HELP|TYPE) )?greycheck_[ -~]*")


@click.command()
@click.option(
    "--output",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write FILE, for node_exporter's textfile collector.",
)
def metrics(file: Path | None) -> None:
    """Print numbers of the store in the text format of Prometheus.

    Verdicts and delays as counters that only grow; what waits, is known or refused; when each host
    last ran expire and DNS last told of each provider; marks of a database's hosts. It needs
    prometheus_client, which comes with the extra greycheck[metrics].

    FILE is written beside its place and then renamed, so that nobody reads half of it; it must end
    in .prom for node_exporter. Run by root, the store is read as its owner, and FILE must be in a
    directory that only root may write.

    Where the store cannot be read, the numbers say so (greycheck_store_up is 0), and the exit code
    is 1.
    """
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        raise click.ClickException(
            f"metrics need {LIBRARY}, which is not installed here: {installing_library(LIBRARY)}"
        ) from None
    with foreseen():
        if file is not None and os.geteuid() == 0:
            rights.only_roots(str(file.absolute().parent))
        text, fault = _numbers()
        if file is None:
            terminal.echo(*text.split("\n"), end="")
        else:
            write(file, text.encode("utf-8", "replace"), 0o644)
    if fault:
        raise click.ClickException(fault)


def _numbers() -> tuple[str, str]:
    """Returns the text of all numbers, and what was wrong, ready for a terminal.

    Whatever keeps this from the store, the text says so: a file of before would not.
    """
    from greycheck.metrics.exposition import Families, text

    try:
        with foreseen():
            settings = read_settings()
            user = rights.owner_of(settings) if os.geteuid() == 0 else 0
            told, fault = _checked(apart.as_user(user, lambda: _told(settings, int(time()))))
            return told, terminal.shown(fault)
    except click.ClickException as error:
        return text(Families(None)), error.message


def _checked(answer: object) -> tuple[str, str]:
    """Returns ANSWER, which another user may have made: numbers of greycheck's, and a fault.

    Raises StoreError: root writes nothing else where node_exporter reads.
    """
    match answer:
        case (str() as text, str() as fault) if all(map(_LINE.fullmatch, text.splitlines())):
            return text, fault
    raise StoreError("the process of the store's owner told something else than numbers")


def _told(settings: Settings, now: int) -> tuple[str, str]:
    """Returns the text of what the store of SETTINGS has at NOW, and what was wrong with it."""
    from greycheck.metrics.exposition import Families, text

    found: Counted | None = None
    fault = ""
    try:
        if is_empty(settings):
            found = Counted()
        else:
            with engine_of(settings.database) as engine:
                found = counted(engine, settings, now)
    except click.ClickException as error:
        fault = error.message
    return text(Families(found, list(marks(settings)), spooled(settings))), fault
