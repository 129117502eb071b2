"""Runs on the nodes of a Galera cluster, which do not see each other's locks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns_servers import Liar, answering
from tests.resolve.parts import command
from tests.resolve.test_runs import names_asked, spf_of_everybody, wait_with
from tests.servers import Galera
from tests.support import ServerDatabase


@pytest.fixture
def nodes(galera: Galera, tmp_path: Path) -> Iterator[list[ServerDatabase]]:
    """One database, seen from each node."""
    galera.start()
    first = ServerDatabase(galera.nodes[0], tmp_path, "resolving")
    seen = [first]
    for node in galera.nodes[1:]:
        other = first.seen_from(tmp_path)
        other.url = node.url("resolving")
        seen.append(other)
    yield seen
    first.close()


def test_runs_on_all_nodes_share_the_domains_and_lose_none(nodes: list[ServerDatabase]) -> None:
    names = [f"d{number}.example" for number in range(60)]
    wait_with(nodes[0], names)
    with Liar(answering(spf_of_everybody), delay=0.02) as liar:
        runs = [command(node, liar.address, "-v") for node in nodes]
        said = [run.communicate(timeout=60) for run in runs]
        asked = names_asked(liar)
    assert [complained for _said, complained in said] == [""] * len(nodes)
    assert asked == dict.fromkeys(names, 1)
    # What one node commits is certain there; it is read after all that was committed elsewhere.
    assert nodes[0].rows("SELECT count(*) FROM spf WHERE state = 'found'") == [(60,)]
    assert nodes[0].rows("SELECT count(*) FROM authorised") == [(60,)]
