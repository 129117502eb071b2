"""What the commands share: settings that must be right, and a store that must be there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from greycheck import log, settings
from greycheck.cli import terminal
from greycheck.settings import Settings
from greycheck.store import faults, rights, schema
from greycheck.store.engine import open_engine
from greycheck.store.lean import StoreError


def read_settings() -> Settings:
    """The settings of this process. Raises ClickException where one is wrong, in the words of the child's log."""
    found = settings.read(dict(os.environb))
    if found.problems:
        raise click.ClickException("\n".join(log.quoted(problem)[1:-1] for problem in found.problems))
    return found


@contextmanager
def foreseen() -> Iterator[None]:
    """Turns faults of the store that an operator can do something about into one line and exit code 1."""
    try:
        yield
    except (schema.SchemaError, StoreError, CommandError) as error:
        raise click.ClickException(terminal.shown(str(error))) from None
    except DBAPIError as error:
        raise click.ClickException(terminal.shown(f"{faults.of(error)}{schema.advice(error)}")) from None
    except OSError as error:
        if error.filename is None and error.errno in terminal.OUTPUT:
            raise
        raise click.ClickException(terminal.shown(cause(error))) from None


def cause(error: OSError) -> str:
    """What went wrong by ERROR, behind the files that it names, if it names any."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([" and ".join(names)] * bool(names) + [error.strerror or str(error) or type(error).__name__])


def give_up_root(found: Settings) -> None:
    """Before anything of the store of FOUND is looked at: root becomes its owner for good. Raises ClickException where that cannot be."""
    with foreseen():
        rights.become_owner(found)


@contextmanager
def open_store(found: Settings) -> Iterator[Engine]:
    """An engine for the store of the settings FOUND, whose schema is this program's. Root becomes its owner."""
    give_up_root(found)
    with engine_of(found.database) as engine:
        yield engine


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    """An engine for the store at URL, whose schema is this program's."""
    with foreseen():
        schema.require(url)
        engine = open_engine(url)
        try:
            yield engine
        finally:
            engine.dispose()
