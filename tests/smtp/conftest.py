"""What the SMTP scenarios share: a mail host for each, and the hooks; of Postfix and Exim, the
resident that they ask.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from greycheck.cli import demo
from tests.resident.resident import Resident
from tests.smtp.dialogue import (
    DEFERRED_421,
    DEFERRED_421_RCPTCHECK,
    DEFERRED_451,
    DEFERRED_454,
    DEFERRED_AT_DATA,
)
from tests.smtp.mailhost import MailHost
from tests.support import NOWHERE, Child, SQLiteFile

Start = Callable[..., Resident]


class AskingHost(Protocol):
    """A mail server that asks a resident: the fixture ``host`` of its module."""

    store: SQLiteFile

    def resident(self, **settings: str) -> Resident:
        """A resident that listens where it asks, with SETTINGS."""


class Hook:
    """One of the hooks: the VARIABLES that switch it on, and how the session of a DEFERRED mail
    goes on, or of a deferred BOUNCE.
    """

    def __init__(self, name: str, variables: dict[str, str], deferred: str, bounce: str) -> None:
        self.name = name
        self.variables = variables
        self.deferred = deferred
        self.deferred_bounce = bounce


@pytest.fixture
def bare_mx(place: Path, child: Child) -> Iterator[MailHost]:
    """A mail host whose store is not made yet."""
    host = MailHost(place, child)
    yield host
    host.stop()
    assert not [line for line in host.log() if "Traceback" in line]
    assert child.socket == NOWHERE or not [
        line for line in host.log() if "without the resident" in line
    ]


@pytest.fixture
def mx(bare_mx: MailHost) -> MailHost:
    """A mail host with a store that knows nobody."""
    bare_mx.child.make_store()
    return bare_mx


# How the session of a deferred mail goes on, and that of a deferred bounce, with each hook that
# the demonstration's server has.
DEFERRED = {
    "smtpextfork": (DEFERRED_454, DEFERRED_454),
    "checkenv": (DEFERRED_421, DEFERRED_421),
    "rcptcheck": (DEFERRED_421_RCPTCHECK, DEFERRED_421_RCPTCHECK),
    "spp": (DEFERRED_451, DEFERRED_AT_DATA),
}


@pytest.fixture(params=demo.HOOKS.values(), ids=lambda hook: hook.TITLE)
def hook(request: pytest.FixtureRequest, programs: Path) -> Hook:
    """Each of the hooks, switched on for greycheck."""
    record = request.param
    program = programs / record.PROGRAM
    variables = {name: value.format(program=program) for name, value in record.DEMO}
    return Hook(record.NAME, variables, *DEFERRED[record.NAME])


@pytest.fixture
def start(host: AskingHost, empty_store: Path) -> Iterator[Start]:
    """Starts a resident whose store knows nobody, with settings given by name."""
    for path in host.store.path.parent.iterdir():
        path.unlink()
    shutil.copy(empty_store, host.store.path)
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(host.resident(**settings))


@pytest.fixture
def resident(start: Start) -> Resident:
    """One with the default settings."""
    return start()
