"""What the SMTP scenarios share: a mail host for each, and the hooks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.smtp.dialogue import (
    DEFERRED_421,
    DEFERRED_421_RCPTCHECK,
    DEFERRED_451,
    DEFERRED_454,
    DEFERRED_AT_DATA,
)
from tests.smtp.mailhost import MailHost
from tests.support import NOWHERE, Child


class Hook:
    """One of the hooks: the VARIABLES that switch it on, and how the session of a DEFERRED mail goes on, or of a deferred BOUNCE."""

    def __init__(self, name: str, variables: dict[str, str], deferred: str, bounce: str = "") -> None:
        self.name = name
        self.variables = variables
        self.deferred = deferred
        self.deferred_bounce = bounce or deferred


@pytest.fixture
def bare_mx(place: Path, child: Child) -> Iterator[MailHost]:
    """A mail host whose store is not made yet."""
    host = MailHost(place, child)
    yield host
    host.stop()
    assert not [line for line in host.log() if "Traceback" in line]
    assert child.socket == NOWHERE or not [line for line in host.log() if "without the resident" in line]


@pytest.fixture
def mx(bare_mx: MailHost) -> MailHost:
    """A mail host with a store that knows nobody."""
    bare_mx.child.make_store()
    return bare_mx


@pytest.fixture(params=["SMTPEXTFORK", "CHECKENV", "RCPTCHECK", "qmail-spp"])
def hook(request: pytest.FixtureRequest, programs: Path) -> Hook:
    """Each of the hooks, switched on for greycheck."""
    if request.param == "CHECKENV":
        return Hook("checkenv", {"CHECKENV": ""}, DEFERRED_421)
    if request.param == "RCPTCHECK":
        return Hook("rcptcheck", {"RCPTCHECK": str(programs / "greycheck-rcptcheck")}, DEFERRED_421_RCPTCHECK)
    if request.param == "qmail-spp":
        return Hook("spp", {"SPP_RCPT": str(programs / "greycheck-spp")}, DEFERRED_451, DEFERRED_AT_DATA)
    return Hook("smtpextfork", {"SMTPEXTFORK": str(programs / "greycheck")}, DEFERRED_454)
