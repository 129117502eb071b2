"""Two MX hosts that share one store: the first attempt at one, the retry at the other."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import time
from urllib.parse import urlencode

import pytest

from tests.resident.resident import Resident
from tests.servers import Galera
from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, mail
from tests.smtp.mailhost import MailHost, wait_for
from tests.support import Child, ServerDatabase, both_ways

pytestmark = both_ways

DELAY = 300


class Pair:
    """Two mail hosts, each with a home, settings and marks of its own, and what is between them."""

    def __init__(self, mx1: MailHost, mx2: MailHost, cluster: Galera | None, name: str) -> None:
        self.mx1, self.mx2 = mx1, mx2
        self.cluster = cluster
        self.name = name

    def age(self, seconds: int) -> None:
        """Moves all that the store knows SECONDS into the past, and waits until all its nodes
        know.
        """
        self.mx1.age(seconds)
        for node in self.cluster.nodes if self.cluster else ():
            node.sql("SET wsrep_sync_wait = 1; SELECT count(*) FROM triplet", self.name)

    def written(self) -> list[int]:
        """How many transactions each node told the others of so far."""
        assert self.cluster
        return [
            int(node.sql("SHOW GLOBAL STATUS LIKE 'wsrep_replicated'", "")[0][1])
            for node in self.cluster.nodes
        ]


@pytest.fixture
def clustered(galera: Galera, place: Path) -> Iterator[ServerDatabase]:
    """A database of a cluster."""
    galera.start()
    found = ServerDatabase(galera.nodes[0], place)
    yield found
    found.close()


@pytest.fixture(params=["postgresql", "mariadb", "galera"])
def pair(request: pytest.FixtureRequest, programs: Path, place: Path, way: str) -> Iterator[Pair]:
    """Two mail hosts with one store.

    Where that is a cluster, each asks its own node first: by its URL here, by its settings there.
    """
    cluster: Galera | None = None
    if request.param == "galera":
        cluster = request.getfixturevalue("galera")
    database: ServerDatabase = request.getfixturevalue(
        "clustered" if cluster else f"on_{request.param}"
    )
    database.make()
    hosts = []
    for name in ("mx1", "mx2"):
        state = place / name / "state"
        state.mkdir(parents=True)
        hosts.append(MailHost(place / name, Child(programs, database.seen_from(state))))
        hosts[-1].child.settings["HOME"] = str(place / name)
    if cluster:
        nodes = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
        everywhere = (
            database.url.partition("@")[0]
            + f"@/{database.name}?"
            + urlencode([("host", at) for at in nodes])
        )
        for host in hosts:
            host.child.settings["GREYCHECK_DATABASE"] = everywhere
        hosts[1].child.settings["GREYCHECK_DATABASE_HOSTS"] = ", ".join([*nodes[1:], nodes[0]])
    with ExitStack() as running:
        if way == "resident":
            for host in hosts:
                running.enter_context(resident_of(host)).wait()
        yield Pair(hosts[0], hosts[1], cluster, database.name)
        for host in hosts:
            host.stop()


def resident_of(host: MailHost) -> Resident:
    """A resident of HOST, which its checks ask."""
    state = host.child.store.directory
    host.child.socket = state / "socket"
    return Resident(state, {}, host.child.store, environ={**host.child.settings})


def test_the_retry_may_come_to_the_other_host(pair: Pair, hook: Hook) -> None:
    mx1, mx2 = pair.mx1, pair.mx2
    here, there = mx1.start(**hook.variables), mx2.start(**hook.variables)
    before = pair.written() if pair.cluster else []
    here.play(mail(hook.deferred))
    there.play(mail(hook.deferred))
    pair.age(DELAY)
    there.play(mail(ACCEPTED))
    here.play(mail(ACCEPTED))
    here.play(mail(ACCEPTED, sender="carol@example.org"))
    assert mx1.reasons() == ["new", "client", "client"]
    assert mx2.reasons() == ["early", "retry"]
    assert mx1.rows("SELECT first_attempt <= last_attempt, passes FROM triplet") == [(True, 1)]
    assert mx1.rows("SELECT passes FROM client") == [(1,)]
    # The first attempt (and the jump of its clock) through the first node, the retry through the
    # second.
    if pair.cluster:
        assert [now - then for then, now in zip(before, pair.written(), strict=True)] == [2, 1, 0]


def test_an_early_retry_at_the_other_host_does_not_prolong_the_wait(pair: Pair, hook: Hook) -> None:
    here, there = pair.mx1.start(**hook.variables), pair.mx2.start(**hook.variables)
    here.play(mail(hook.deferred))
    pair.age(DELAY // 2)
    there.play(mail(hook.deferred))
    pair.age(DELAY // 2)
    here.play(mail(ACCEPTED))
    assert pair.mx1.reasons() == ["new", "retry"]
    assert pair.mx2.reasons() == ["early"]
    assert pair.mx2.rows("SELECT early_attempts FROM triplet") == [(1,)]


def test_a_host_has_settings_of_its_own(pair: Pair) -> None:
    here = pair.mx1.start(SMTPEXTFORK=pair.mx1.greycheck, GREYCHECK_DELAY="1h")
    there = pair.mx2.start(SMTPEXTFORK=pair.mx2.greycheck, GREYCHECK_DELAY="1m")
    here.play(mail("S: 454"))
    pair.age(60)
    here.play(mail("S: 454"))
    there.play(mail(ACCEPTED))
    assert (pair.mx1.reasons(), pair.mx2.reasons()) == (["new", "early"], ["retry"])


def test_a_retry_after_a_real_delay_passes_at_the_other_host(pair: Pair, hook: Hook) -> None:
    here = pair.mx1.start(GREYCHECK_DELAY="2s", **hook.variables)
    there = pair.mx2.start(GREYCHECK_DELAY="2s", **hook.variables)
    here.play(mail(hook.deferred))
    [(first,)] = pair.mx1.rows("SELECT first_attempt FROM triplet")
    assert isinstance(first, int)
    wait_for(lambda: time() >= first + 2)
    there.play(mail(ACCEPTED))
    assert (pair.mx1.reasons(), pair.mx2.reasons()) == (["new"], ["retry"])
    wait_for(lambda: pair.mx2.rows("SELECT first_attempt, passes FROM triplet") == [(first, 1)])
