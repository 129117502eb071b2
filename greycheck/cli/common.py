"""What all commands need: settings without a fault, and a store that exists."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from greycheck import log
from greycheck.cli import terminal
from greycheck.privilege.files import cause
from greycheck.settings import Database, Settings, read
from greycheck.store import rights
from greycheck.store.admin import errors
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import StoreError
from greycheck.store.schema import migrate


def read_settings() -> Settings:
    """Returns the settings of this process.

    Raises ClickException if one is wrong, with the text of the child's log.
    """
    settings = read(dict(os.environb))
    if settings.problems:
        raise click.ClickException(
            "\n".join(log.quoted(problem)[1:-1] for problem in settings.problems)
        )
    return settings


@contextmanager
def foreseen() -> Iterator[None]:
    """Turns errors of the store that an operator can act on into one line and exit code 1."""
    try:
        yield
    except (migrate.SchemaError, StoreError, CommandError) as error:
        raise click.ClickException(terminal.shown(str(error))) from None
    except DBAPIError as error:
        raise click.ClickException(
            terminal.shown(f"{errors.of(error)}{migrate.advice(error)}")
        ) from None
    except OSError as error:
        if error.filename is None and error.errno in terminal.OUTPUT:
            raise
        raise click.ClickException(terminal.shown(cause(error))) from None


def give_up_root(settings: Settings, marks: bool = False) -> None:
    """Makes a process of root's become the owner of the store of SETTINGS, which it reads then.

    With MARKS, of a server database the owner of state_directory: for who looks in there. Raises
    ClickException if that is not possible.
    """
    with foreseen():
        rights.become_owner(settings, marks)


@contextmanager
def open_store(settings: Settings, marks: bool = False) -> Iterator[Engine]:
    """Yields an engine for the store of SETTINGS, whose schema this program can use.

    Root becomes the store's owner; MARKS as for ``give_up_root``.
    """
    give_up_root(settings, marks)
    with engine_of(settings.database) as engine:
        yield engine


@contextmanager
def engine_of(database: Database) -> Iterator[Engine]:
    """Yields an engine for the store in DATABASE, whose schema this program can use."""
    with foreseen():
        migrate.require(database)
        engine = open_engine(database)
        try:
            yield engine
        finally:
            engine.dispose()
