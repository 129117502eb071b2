"""What the SMTP scenarios share: a mail host for each, and the two hooks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.smtp.dialogue import DEFERRED_421, DEFERRED_454
from tests.smtp.mailhost import MailHost
from tests.support import Child


class Hook:
    """One of the two hooks: the VARIABLES that switch it on, and how a DEFERRED recipient's session goes on."""

    def __init__(self, name: str, variables: dict[str, str], deferred: str) -> None:
        self.name = name
        self.variables = variables
        self.deferred = deferred


@pytest.fixture
def bare_mx(place: Path, child: Child) -> Iterator[MailHost]:
    """A mail host whose store is not made yet."""
    host = MailHost(place, child)
    yield host
    host.stop()
    assert not [line for line in host.log() if "Traceback" in line]


@pytest.fixture
def mx(bare_mx: MailHost) -> MailHost:
    """A mail host with a store that knows nobody."""
    bare_mx.child.make_store()
    return bare_mx


@pytest.fixture(params=["SMTPEXTFORK", "CHECKENV"])
def hook(request: pytest.FixtureRequest, launchers: Path) -> Hook:
    """Each of the two hooks, switched on for greycheck."""
    if request.param == "CHECKENV":
        return Hook("checkenv", {"CHECKENV": ""}, DEFERRED_421)
    return Hook("smtpextfork", {"SMTPEXTFORK": str(launchers / "greycheck")}, DEFERRED_454)
