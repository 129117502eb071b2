"""Who floods a resident from one network: with many questions at once, through a mail server's
policy protocol.
"""

from contextlib import ExitStack

import pytest

from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, request


def test_a_crowded_network_is_deferred_and_not_recorded(start: Start) -> None:
    resident = start(network_limit="3")
    for number in range(8):
        assert resident.ask(sender=f"s{number}@example.org") == DEFERRED
    assert resident.reasons() == ["new"] * 3 + ["crowded"] * 5
    assert resident.ask(client_address="198.51.100.1") == DEFERRED
    assert resident.reasons()[-1] == "new"
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(4,)]
    resident.age(300)
    assert resident.ask(sender="s0@example.org") == ACCEPTED
    assert resident.ask(sender="s7@example.org") == ACCEPTED
    assert resident.reasons()[-2:] == ["retry", "client"]


@pytest.mark.parametrize(
    ("limits", "beyond", "answer"),
    [
        ({"network_limit": "3"}, "crowded", DEFERRED),
        ({"network_limit": "0", "pending_limit": "3"}, "full", ACCEPTED),
    ],
    ids=["network", "all"],
)
def test_what_comes_together_is_let_in_up_to_the_limit(
    start: Start, limits: dict[str, str], beyond: str, answer: str
) -> None:
    """One look at the store serves all questions of a moment, before any of them is written."""
    together = 60
    resident = start(**limits, deadline="60s")
    with ExitStack() as open_peers:
        peers = [open_peers.enter_context(resident.peer()) for _ in range(together)]
        for wave in range(3):
            for number, peer in enumerate(peers):
                peer.send(request(sender=f"s{wave}-{number}@example.org"))
            assert {peer.action() for peer in peers} <= {DEFERRED, answer}
    reasons = resident.reasons()
    assert (reasons.count("new"), reasons.count(beyond)) == (3, 3 * together - 3)
    assert resident.store.rows("SELECT count(*) FROM triplet") == [(3,)]
