"""Explaining against the real store: what it says is what the real child then does, and nothing is
written.
"""

import shlex
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greycheck import rule_keys, times
from greycheck.cli.main import cli
from greycheck.envelope import Envelope, Triplet, triplet
from greycheck.explain import decision as why
from greycheck.explain import steps
from greycheck.explain.decision import explain
from greycheck.explain.explanation import DECIDES, PASSES, UNCHANGED, UNREACHED, Explanation
from greycheck.log import show
from greycheck.policy import domain_of
from greycheck.settings import read
from greycheck.store import connect
from greycheck.store.base import PAIR, Asked, StoreError, digest, domain_key
from greycheck.store.schema.tables import metadata
from greycheck.store.waiting import PROVIDERS, correspondent_key, packed_range, pair_keys
from tests.support import CLIENT, RECIPIENT, SENDER, Child, Ran

HELO = b"client.example.org"
NAME = b"mx.example.org"
DAY = 86400


@dataclass(frozen=True)
class State:
    """What the store holds, in seconds before now, the envelope, and the settings."""

    first: int | None = None
    last: int = 200
    early: int = 0
    passed: bool = False
    client: tuple[int, int, int, int] | None = None  # passes, last seen ago, strikes, refused for
    rules: tuple[tuple[str, bytes, str, int | None], ...] = ()
    pairs: tuple[tuple[str, bytes, str, int | None], ...] = ()  # with the recipient
    expected: bool = False
    others: int = 0
    others_first: int = 400
    gap: int = 0  # between them
    crowd: int = 0  # what waits of the same network besides
    sender: bytes = SENDER
    recipient: bytes = RECIPIENT
    address: str = CLIENT
    variables: dict[str, str] = field(default_factory=dict)
    known: tuple[int, int] | None = None  # how often the sender's domain has passed, last ago
    spf: str = ""  # what DNS said of it
    source: str = ""  # what says that the client may send for it, or that it may not
    of_domain: bool = False  # the others were found to be clients of it by the mail server
    provider: bool = False
    written: bool = False


def given_state(child: Child, state: State) -> None:
    """Fills the store of CHILD with STATE, and nothing else."""
    if not child.database.exists():
        child.make_store()
    child.settings = dict(state.variables)
    now = int(time())
    asked = Asked(
        *of_envelope(
            Envelope(
                "",
                CLIENT if state.address == "0.0.0.0" else state.address,
                state.sender,
                state.recipient,
            )
        )
    )
    mail = show(asked.triplet.sender), show(asked.triplet.recipient)
    connection = sqlite3.connect(child.database)
    with connection:
        for table in metadata.tables:
            connection.execute(f"DELETE FROM {table}")
        if state.first is not None:
            row = (
                asked.key,
                asked.triplet.network,
                *mail,
                now - state.first,
                now - state.last,
                state.early,
                int(state.passed),
            )
            add_triplet(connection, row, now - state.last if state.passed else None)
        for other in range(state.others):
            first = now - state.others_first + other * state.gap
            key = pair_keys(asked.key)[0] + digest(b"%d" % other)[PAIR:]
            row = (key, f"198.51.{other}.0/24", *mail, first, first, 0, 0)
            add_triplet(connection, row, None, int(state.of_domain))
        for other in range(state.crowd):
            row = (
                digest(b"crowd %d" % other),
                asked.triplet.network,
                f"{other}@x",
                "y@x",
                now,
                now,
                0,
                0,
            )
            add_triplet(connection, row, None)
        if state.client:
            passes, ago, strikes, refused = state.client
            values = (
                state.address,
                passes,
                now - ago,
                now - ago,
                now + DAY,
                strikes,
                now + refused if refused else 0,
            )
            connection.execute("INSERT INTO client VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        for kind, value, action, delay in state.rules:
            add_rule(connection, rule_keys.key(kind, value), kind, action, delay)
        for kind, value, action, delay in state.pairs:
            key = rule_keys.pair_key(rule_keys.key(kind, value), state.recipient)
            add_rule(connection, key, kind, action, delay)
        if state.pairs:
            mark = rule_keys.mark_key(state.recipient)
            add_rule(connection, mark, "recipient", rule_keys.PAIRS, None)
        given_identity(connection, state, asked, now)
        if state.expected:
            add_rule(
                connection,
                rule_keys.expectation_key(asked.triplet.recipient, b""),
                "expect",
                "allow",
                None,
            )
    connection.close()


def of_envelope(envelope: Envelope) -> tuple[Envelope, Triplet]:
    return envelope, triplet(envelope, 24, 64)


def given_identity(connection: sqlite3.Connection, state: State, asked: Asked, now: int) -> None:
    """What the store has of the sender's domain in STATE."""
    end, key = now + DAY, domain_key(domain_of(asked.triplet.sender))
    first, last = packed_range(asked.triplet.network)
    if state.known:
        passes, ago = state.known
        row: tuple[object, ...] = (key, "name", passes, now - ago, now - ago, end)
        connection.execute("INSERT INTO domain VALUES (?, ?, ?, ?, ?, ?)", row)
    if state.spf:
        row = (key, "name", state.spf, "", 0, now - 60, now - 60, 0, end, end)
        connection.execute("INSERT INTO spf VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    ranges = [(key, state.source)] if state.source else []
    for whose, source in [*ranges, *([(PROVIDERS, "provider")] if state.provider else [])]:
        row = (whose + first, last, source, "name", now, end)
        connection.execute("INSERT INTO authorised VALUES (?, ?, ?, ?, ?, ?)", row)
    if state.written:
        pair = correspondent_key(asked.triplet.sender, asked.triplet.recipient)
        row = (pair, "sender", "recipient", now, now, end)
        connection.execute("INSERT INTO correspondent VALUES (?, ?, ?, ?, ?, ?)", row)


def add_triplet(
    connection: sqlite3.Connection,
    row: tuple[object, ...],
    passed: int | None,
    authorised: int = 0,
) -> None:
    connection.execute(
        "INSERT INTO triplet VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
        (*row, passed, 99999999999, authorised),
    )


def add_rule(
    connection: sqlite3.Connection, key: bytes, kind: str, action: str, delay: int | None
) -> None:
    values = (digest(key), kind, f"{kind}-pattern", action, delay)
    connection.execute("INSERT INTO rule VALUES (?, ?, ?, ?, ?, '', 1, NULL)", values)


def explained(
    child: Child, state: State, now: int | None = None, hook: str = "smtpextfork"
) -> Explanation:
    """What explaining says of the envelope of STATE; the store is read only."""
    environ = child.environ(state.address)
    helo = b"" if hook == "checkenv" else HELO
    envelope = why.envelope_of(
        hook,
        state.address.encode(),
        state.sender,
        state.recipient,
        environ,
        helo,
        environ.get(b"TCPREMOTEHOST", b""),
    )
    found = read(environ)
    with closing(connect(found, 5.0)) as store:
        return explain(store, envelope, found, int(time()) if now is None else now)


def tried(child: Child, state: State) -> Ran:
    """What the real child does with the same envelope."""
    return child.smtpextfork(state.sender, state.recipient, state.address)


def everything(child: Child) -> list[list[tuple[object, ...]]]:
    return [child.rows(f"SELECT * FROM {table} ORDER BY 1") for table in metadata.tables]


def assert_same_as_the_child(child: Child, state: State) -> Explanation:
    for _attempt in range(20):
        began = int(time())
        given_state(child, state)
        before = everything(child)
        told = explained(child, state)
        assert everything(child) == before
        ran = tried(child, state)
        if int(time()) == began:
            break  # else the child was asked a second later, and may rightly say something else
    assert (told.code, told.verdict.reason) == ran.verdict
    *warnings, line = ran.lines
    assert line.startswith(f"greycheck: {told.verdict.action} ")
    assert warnings == (
        [f"greycheck: warning {told.verdict.warning}"] if told.verdict.warning else []
    )
    assert (f" observed={told.verdict.observed} " in ran.log) == bool(told.verdict.observed)
    if "wait=" in ran.log:
        assert abs(told.verdict.wait - int(ran.log.partition("wait=")[2].split()[0])) <= 5
    assert [step.name == told.line for step in told.steps if step.outcome == DECIDES] == [True]
    return told


HASTY = {"GREYCHECK_STRIKES": "3", "GREYCHECK_STRIKE_INTERVAL": "70s"}

TABLE = {
    "incomplete": State(address="0.0.0.0"),
    "exempt": State(variables={"RELAYCLIENT": ""}),
    "exempt, switched off": State(variables={"GREYCHECK": "off"}),
    "exempt, null sender": State(sender=b"", variables={"GREYCHECK_NULL_SENDER": "accept"}),
    "rule, allow": State(rules=(("network", b"32/24:c00002", "allow", None),)),
    "rule, reject": State(
        rules=(("recipient", RECIPIENT, "reject", None), ("helo", HELO, "allow", None))
    ),
    "rule, defer": State(
        first=DAY,
        passed=True,
        client=(3, 100, 0, 0),
        rules=(("recipient", RECIPIENT, "defer", None),),
    ),
    "rule, pair": State(
        pairs=(("network", b"32/24:c00002", "defer", None),),
        rules=(("recipient", RECIPIENT, "allow", None),),
    ),
    "rule, verified name": State(
        rules=(("name", NAME, "allow", None),),
        variables={"TCPREMOTEHOST": NAME.decode(), "GREYCHECK_VERIFIED_NAMES": "yes"},
    ),
    "new, unverified name": State(
        rules=(("name", NAME, "allow", None),), variables={"TCPREMOTEHOST": NAME.decode()}
    ),
    "early, rule": State(
        first=400, client=(3, 100, 0, 0), rules=(("recipient", RECIPIENT, "greylist", 3600),)
    ),
    "strikes": State(client=(1, 100, 3, 600), variables={"GREYCHECK_STRIKES": "3"}),
    "strikes, with this one": State(first=30, last=20, client=(0, 50, 2, 0), variables=HASTY),
    "early, first strike": State(first=30, last=20, client=(0, 50, 1, 0), variables=HASTY),
    "client": State(client=(1, 100, 0, 0)),
    "new, no known clients": State(
        client=(1, 100, 0, 0), variables={"GREYCHECK_CLIENT_PASSES": "0"}
    ),
    "new, client over": State(client=(1, 40 * DAY, 0, 0)),
    "known": State(first=DAY, passed=True),
    "new": State(),
    "new, lifetime over": State(first=50 * DAY, last=40 * DAY, passed=True),
    "new, window over": State(first=2 * DAY + 60),
    "early": State(first=100, early=2),
    "retry": State(first=400),
    "expected": State(first=100, expected=True),
    "pool": State(others=3, gap=60),
    "new, hasty pool": State(others=3),
    "pool, many networks": State(others=150, gap=60, others_first=9900),
    "new, own domain": State(others=3, gap=60, sender=b"ceo@example.net"),
    "new, small pool": State(others=1),
    "new, young pool": State(others=3, gap=9, others_first=100),
    "new, no pools": State(
        others=3, variables={"GREYCHECK_POOL_NETWORKS": "0", "GREYCHECK_PENDING_LIMIT": "0"}
    ),
    "crowded": State(
        crowd=2, variables={"GREYCHECK_NETWORK_LIMIT": "2", "GREYCHECK_PENDING_LIMIT": "2"}
    ),
    "full": State(others=2, variables={"GREYCHECK_PENDING_LIMIT": "2"}),
    "early, private client": State(first=100, client=(3, 100, 0, 0), address="10.1.2.3"),
    "early, observed": State(first=100, variables={"GREYCHECK_MODE": "observe"}),
    "new, observed domain": State(variables={"GREYCHECK_OBSERVE_DOMAINS": "example.net"}),
    "new, observed share": State(variables={"GREYCHECK_OBSERVE_PERCENT": "100"}),
    "domain": State(known=(2, 100), spf="found", source="spf"),
    "domain, one address": State(known=(1, 100), spf="found", source="client"),
    "domain, learnt": State(known=(1, 100), source="pool"),
    "new, learnt, but SPF counts": State(known=(1, 100), spf="found", source="pool"),
    "new, domain not known": State(spf="found", source="spf"),
    "new, domain over": State(known=(9, 40 * DAY), spf="found", source="spf"),
    "new, domain seldom": State(
        known=(1, 100), spf="found", source="spf", variables={"GREYCHECK_DOMAIN_PASSES": "2"}
    ),
    "new, not its client": State(known=(9, 100), spf="found", source="refused"),
    "new, SPF too wide": State(known=(9, 100), spf="wide"),
    "new, identity observed": State(
        known=(2, 100), spf="found", source="spf", variables={"GREYCHECK_IDENTITY": "observe"}
    ),
    "new, identity off": State(
        known=(2, 100), spf="found", source="spf", variables={"GREYCHECK_IDENTITY": "no"}
    ),
    "early, rule greylists the domain": State(
        first=400,
        known=(2, 100),
        spf="found",
        source="spf",
        rules=(("recipient", RECIPIENT, "greylist", 3600),),
    ),
    "retry, from another client": State(others=1, spf="found", source="spf", of_domain=True),
    "early, from another client": State(
        first=100, others=1, others_first=200, spf="found", source="spf", of_domain=True
    ),
    "provider": State(provider=True),
    "new, provider observed": State(provider=True, variables={"GREYCHECK_IDENTITY": "observe"}),
    "correspondent": State(written=True, variables={"GREYCHECK_LEARN_OUTBOUND": "60d"}),
    "new, a stranger writes as one": State(
        written=True, spf="found", variables={"GREYCHECK_LEARN_OUTBOUND": "60d"}
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_what_it_says_is_what_the_child_does(child: Child, case: str) -> None:
    told = assert_same_as_the_child(child, TABLE[case])
    assert told.verdict.reason == case.partition(",")[0]


ACTIONS = st.tuples(
    st.sampled_from(["allow", "reject", "greylist", "defer"]), st.sampled_from([None, 60, 7200])
)
PLACES = [
    ("recipient", RECIPIENT),
    ("recipient", b"bob@"),
    ("sender", b".org"),
    ("network", b"32/24:c00002"),
    ("network", b"32/0:0"),
    ("name", NAME),
    ("helo", b".example.org"),
]
RULES = st.lists(
    st.tuples(st.sampled_from(PLACES), ACTIONS), max_size=3, unique_by=lambda rule: rule[0]
).map(lambda found: tuple((kind, value, action, delay) for (kind, value), (action, delay) in found))
VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "GREYCHECK_STRIKES": st.sampled_from(["1", "3"]),
        "GREYCHECK_CLIENT_PASSES": st.sampled_from(["0", "2"]),
        "GREYCHECK_POOL_NETWORKS": st.sampled_from(["0", "1"]),
        "GREYCHECK_NETWORK_LIMIT": st.sampled_from(["0", "2"]),
        "GREYCHECK_PENDING_LIMIT": st.sampled_from(["0", "2", "100000"]),
        "GREYCHECK_NULL_SENDER": st.just("accept"),
        "GREYCHECK_OBSERVE_PERCENT": st.sampled_from(["30", "90"]),
        "GREYCHECK_IDENTITY": st.sampled_from(["no", "observe"]),
        "GREYCHECK_DOMAIN_PASSES": st.sampled_from(["0", "2"]),
        "GREYCHECK_LEARN_OUTBOUND": st.just("60d"),
        "GREYCHECK_IPV4_PREFIX": st.just("24"),
        "GREYCHECK_DELAY": st.sampled_from(["0", "30m"]),
        "TCPREMOTEHOST": st.just(NAME.decode()),
    },
)
STATES = st.builds(
    State,
    first=st.sampled_from([None, -50, 30, 100, 400, 5000, 2 * DAY + 60, 50 * DAY]),
    last=st.sampled_from([5, 20, 200, 40 * DAY]),
    early=st.integers(0, 3),
    passed=st.booleans(),
    client=st.none()
    | st.tuples(
        st.integers(0, 3),
        st.sampled_from([100, 40 * DAY]),
        st.integers(0, 3),
        st.sampled_from([0, 600]),
    ),
    rules=st.just(()) | RULES,
    expected=st.booleans(),
    others=st.integers(0, 4),
    others_first=st.sampled_from([100, 400, 5000]),
    gap=st.sampled_from([0, 20]),
    crowd=st.integers(0, 3),
    address=st.sampled_from([CLIENT, CLIENT, "10.1.2.3"]),
    sender=st.sampled_from(
        [SENDER, SENDER, b"", b"list-return-7-u=d.example@example.org", b"--help", b"a\xff b@x"]
    ),
    variables=VARIABLES,
    known=st.none() | st.tuples(st.integers(1, 2), st.sampled_from([100, 40 * DAY])),
    spf=st.sampled_from(["", "found", "none", "wide"]),
    source=st.sampled_from(["", "spf", "client", "pool", "refused"]),
    of_domain=st.booleans(),
    provider=st.sampled_from([False, False, True]),
    written=st.booleans(),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES)
def test_of_any_state_it_says_what_the_child_does(child: Child, state: State) -> None:
    assert_same_as_the_child(child, state)


def test_a_retry_passes_at_the_second_it_names_and_not_before(child: Child) -> None:
    for state in (State(first=100), replace(TABLE["early, rule"], first=500)):
        given_state(child, state)
        first, last = explained(child, state).passes
        reasons = [
            explained(child, state, now).verdict.reason
            for now in (first - 1, first, last, last + 1)
        ]
        assert reasons == ["early", "retry", "retry", "new"]


def test_of_a_new_triplet_it_counts_from_the_time_it_was_asked_for(child: Child) -> None:
    given_state(child, State())
    assert explained(child, State(), 1_800_000_000).passes == (1_800_000_300, 1_800_172_800)


def test_it_tells_when_a_refusal_ends(child: Child) -> None:
    for case, wait in (("strikes", 600), ("strikes, with this one", DAY)):
        given_state(child, TABLE[case])
        assert abs(explained(child, TABLE[case]).passes[0] - time() - wait) <= 5


def test_an_accepted_mail_waits_for_nothing(child: Child) -> None:
    for case in ("incomplete", "client", "retry", "pool"):
        given_state(child, TABLE[case])
        assert explained(child, TABLE[case]).passes == ()


# --- the steps ------------------------------------------------------------------------------------


def step(child: Child, case: str, name: str) -> tuple[str, str]:
    """What the step NAME found in the CASE of TABLE, and its outcome."""
    given_state(child, TABLE[case])
    told = explained(child, TABLE[case])
    return next((step.found, step.outcome) for step in told.steps if step.name == name)


@pytest.mark.parametrize(
    ("case", "name", "found", "outcome"),
    [
        ("incomplete", "incomplete", "missing: usable-TCPREMOTEIP", DECIDES),
        ("incomplete", "client", "", UNREACHED),
        ("incomplete", "retry", "", UNREACHED),
        ("exempt", "exempt", "exempt by RELAYCLIENT", DECIDES),
        ("exempt, null sender", "exempt", "exempt by null_sender", DECIDES),
        ("rule, reject", "rule", "reject recipient-pattern: the first that counts", DECIDES),
        ("rule, reject", "rule", "allow helo-pattern: does not decide", DECIDES),
        ("rule, defer", "rule", "defer recipient-pattern: the first that counts", DECIDES),
        ("rule, pair", "rule", "defer network-pattern: the first that counts", DECIDES),
        ("rule, pair", "rule", "allow recipient-pattern: does not decide", DECIDES),
        (
            "new, unverified name",
            "rule",
            "allow name-pattern: does not count, verified_names = no",
            PASSES,
        ),
        (
            "early, rule",
            "rule",
            "greylist recipient-pattern, delay 1h: the first that counts",
            PASSES,
        ),
        ("early, rule", "strikes", "off", PASSES),
        ("early, rule", "client", "not looked at: the rule greylists this mail", PASSES),
        ("new", "rule", "no rule matches", PASSES),
        ("strikes", "strikes", "refused until ", DECIDES),
        ("strikes", "client", "known: once passed", UNREACHED),
        ("strikes, with this one", "strikes", "this retry is strike 3: refused for 1d", DECIDES),
        ("early, first strike", "strikes", "1 in a row, not refused", PASSES),
        ("client", "client", "known: once passed, last 1m", DECIDES),
        ("new, no known clients", "client", "off", PASSES),
        ("new, client over", "client", "not known: once passed, last 40d ago", PASSES),
        ("new", "client", "has never passed", PASSES),
        ("known", "known", "passed 3m", DECIDES),
        ("known", "retry", "has passed already", UNREACHED),
        ("new, lifetime over", "known", ": its lifetime is over", PASSES),
        ("new, lifetime over", "retry", "counts as new", DECIDES),
        (
            "new, window over",
            "retry",
            "first attempt 2d ago: the retry window is over, counts as new",
            DECIDES,
        ),
        ("new", "retry", "never seen: this is the first attempt", DECIDES),
        ("new", "known", "has not passed", PASSES),
        ("early", "retry", "the delay is not over, 2 times early before", DECIDES),
        ("retry", "retry", "the delay is over", DECIDES),
        ("retry", "pool", "", UNREACHED),
        ("retry", "full", "", UNREACHED),
        ("expected", "expected", "expected by expect-pattern", DECIDES),
        ("new", "expected", "nobody expects it", UNCHANGED),
        ("pool", "pool", "waits from 3 other networks, since 6m 4", DECIDES),
        ("pool, many networks", "pool", "waits from at least 100 other networks, since", DECIDES),
        ("new, hasty pool", "pool", "6 rounds are needed: there are 1", UNCHANGED),
        (
            "new, own domain",
            "pool",
            "does not count: sender and recipient are of one domain",
            UNCHANGED,
        ),
        ("crowded", "crowded", "2 or more wait: crowded", DECIDES),
        ("new", "crowded", "0 wait", UNCHANGED),
        (
            "early, private client",
            "client",
            "does not count: many clients may share such an address",
            PASSES,
        ),
        ("new, small pool", "pool", "waits from 1 other network, since", UNCHANGED),
        ("new", "pool", "waits from no other network", UNCHANGED),
        ("new, no pools", "pool", "off", UNCHANGED),
        ("new, no pools", "full", "off", UNCHANGED),
        ("full", "full", "about 2 wait: full", DECIDES),
        ("new", "full", "about 0 wait: not full", UNCHANGED),
        (
            "domain",
            "domain",
            "this client may send for it, by SPF, asked 1m ago; known: 2 times passed, last 1m 40s",
            DECIDES,
        ),
        ("domain, one address", "domain", "by SPF, asked for this address, asked", DECIDES),
        ("domain, learnt", "domain", "as a pool that has passed; known: once passed", DECIDES),
        ("new", "domain", "its SPF is not known yet (greycheck resolve)", UNCHANGED),
        ("new, domain not known", "domain", "; not known: it has never passed", UNCHANGED),
        ("new, domain over", "domain", "; not known: 9 times passed, last 40d ago", UNCHANGED),
        ("new, domain seldom", "domain", "; not known: once passed", UNCHANGED),
        ("new, not its client", "domain", "its SPF does not name this client", UNCHANGED),
        ("new, learnt, but SPF counts", "domain", "its SPF does not name this client", UNCHANGED),
        ("new, SPF too wide", "domain", "its SPF is too wide to mean one sender", UNCHANGED),
        ("new, identity off", "domain", "off: identity = no", UNCHANGED),
        ("new, identity observed", "domain", "; only observed", UNCHANGED),
        (
            "early, rule greylists the domain",
            "domain",
            "does not count: the rule greylists this mail",
            UNCHANGED,
        ),
        ("retry, from another client", "moved", "6m 40s ago: the delay is over", DECIDES),
        ("early, from another client", "moved", "3m 20s ago: the delay is not over", UNCHANGED),
        ("new, not its client", "moved", "not known as a client of the sender's", UNCHANGED),
        ("new, domain not known", "moved", "waits from none", UNCHANGED),
        ("provider", "provider", "name", DECIDES),
        ("correspondent", "correspondent", "to this sender, last now", DECIDES),
        ("new, a stranger writes as one", "correspondent", "not a client of the send", UNCHANGED),
    ],
)
def test_each_step_tells_what_it_found(
    child: Child, case: str, name: str, found: str, outcome: str
) -> None:
    told = step(child, case, name)
    assert found in told[0]
    assert told[1] == outcome
    assert found or not told[0]


def test_strikes_are_not_looked_at_where_a_rule_greylists(child: Child) -> None:
    state = replace(TABLE["early, rule"], variables={"GREYCHECK_STRIKES": "9"})
    given_state(child, state)
    found = {step.name: step.found for step in explained(child, state).steps}
    assert found["strikes"] == "not looked at: the rule greylists this mail"


def test_without_strikes_it_says_so(child: Child) -> None:
    state = State(client=(1, 100, 0, 0), variables={"GREYCHECK_STRIKES": "9"})
    given_state(child, state)
    assert "no strikes" in [step.found for step in explained(child, state).steps]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("early, observed", "mode = observe"),
        ("new, observed domain", "observe_domains has example.net"),
        ("new, observed share", "observe_percent = 100, and 192.0.2.0/24 is in share "),
        ("new", ""),
        ("incomplete", ""),
    ],
)
def test_it_tells_why_a_mail_is_only_observed(child: Child, case: str, words: str) -> None:
    given_state(child, TABLE[case])
    found = steps.observing(explained(child, TABLE[case]))
    assert found.startswith(words)
    assert bool(found) == bool(words)


# --- what would change it -------------------------------------------------------------------------

ASKS_DNS = ("greycheck resolve ", "greycheck providers add ")


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("new", ["greycheck resolve example.org"]),
        ("early", ["greycheck release", "greycheck resolve example.org"]),
        ("new, small pool", ["greycheck release", "greycheck resolve example.org"]),
        ("new, domain not known", ["greycheck providers add example.org"]),
        ("early, from another client", ["greycheck release", "greycheck providers add"]),
        ("new, identity observed", ["identity = yes", "greycheck providers add"]),
        ("new, identity off", ["identity = yes"]),
        ("new, not its client", []),
        ("new, learnt, but SPF counts", []),
        ("early, rule", ["greycheck release"]),
        ("crowded", ["greycheck resolve example.org"]),
        ("early, private client", ["greycheck release"]),
    ],
)
def test_of_what_waits_it_names_what_would_let_it_pass_by_its_domain(
    child: Child, case: str, named: list[str]
) -> None:
    given_state(child, TABLE[case])
    commands = [remedy.command for remedy in explained(child, TABLE[case]).remedies]
    about = ("greycheck release ", "identity", *ASKS_DNS)
    found = [each for each in commands if each.startswith(about)]
    assert len(found) == len(named), found
    assert all(each.startswith(start) for each, start in zip(found, named, strict=True)), found


@pytest.mark.parametrize("sender", [b"", b"postmaster", b"a@\x1b[31m;rm -rf /", b"a@localhost"])
def test_of_a_sender_without_a_domain_in_dns_none_is_named(child: Child, sender: bytes) -> None:
    state = State(sender=sender)
    given_state(child, state)
    commands = [remedy.command for remedy in explained(child, state).remedies]
    assert not any(each.startswith(ASKS_DNS) for each in commands), commands


@pytest.mark.parametrize("case", TABLE)
def test_every_verdict_has_something_that_would_change_it(child: Child, case: str) -> None:
    given_state(child, TABLE[case])
    assert explained(child, TABLE[case]).remedies


@pytest.mark.parametrize(
    "case",
    [
        "new",
        "early",
        "new, small pool",
        "client",
        "known",
        "strikes",
        "strikes, with this one",
        "pool",
        "domain",
    ],
)
def test_the_commands_it_names_change_the_verdict(
    child: Child, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_CONFIG", "/dev/null")
    monkeypatch.setenv("GREYCHECK_DATABASE", str(child.database))
    given_state(child, TABLE[case])
    remedies = [remedy for remedy in explained(child, TABLE[case]).remedies if not remedy.setting]
    # What asks DNS changes what comes after.
    remedies = [remedy for remedy in remedies if not remedy.command.startswith(ASKS_DNS)]
    assert remedies
    for remedy in remedies:
        given_state(child, TABLE[case])
        before = explained(child, TABLE[case]).verdict.reason
        name, *arguments = shlex.split(remedy.command)
        assert name == "greycheck"
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert explained(child, TABLE[case]).verdict.reason != before, remedy.command


def test_of_a_rule_it_names_the_pattern_to_remove(child: Child) -> None:
    given_state(child, TABLE["rule, reject"])
    remedies = explained(child, TABLE["rule, reject"]).remedies
    assert [remedy.command for remedy in remedies] == ["greycheck rules remove recipient-pattern"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["reject", "to:bob@"], "rule"),
        (["allow", "from:.example.org"], "rule"),
        (["greylist", "helo:client.example.org", "--delay=1h"], "new"),
        (["defer", "from:.example.org", "to:bob@"], "rule"),
        (["greylist", "192.0.2.0/24", "to:.net", "--delay=1h"], "new"),
        (["expect", "bob@example.net", "--from=example.org"], "expected"),
    ],
)
def test_the_rule_that_decides_can_be_removed_by_the_command_it_names(
    child: Child, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.setenv("GREYCHECK_CONFIG", "/dev/null")
    monkeypatch.setenv("GREYCHECK_DATABASE", str(child.database))
    child.make_store()
    assert CliRunner().invoke(cli, words).exit_code == 0
    told = explained(child, State())
    assert told.verdict.reason == reason
    result = CliRunner().invoke(cli, shlex.split(told.remedies[0].command)[1:])
    assert result.exit_code == 0, result.output
    assert explained(child, State()).verdict.detail == ""
    assert child.rows("SELECT * FROM rule") == []


def test_the_address_of_a_hostile_sender_is_quoted_behind_a_guard(child: Child) -> None:
    state = replace(TABLE["known"], sender=b"--help; rm -rf /@x")
    given_state(child, state)
    command = explained(child, state).remedies[0].command
    assert shlex.split(command) == [
        "greycheck",
        "forget",
        "--",
        CLIENT,
        r"--help;\x20rm\x20-rf\x20/@x",
        "bob@example.net",
    ]


def test_a_recipient_that_cannot_be_expected_is_not_named(child: Child) -> None:
    state = State(recipient=b"postmaster", sender=b"")
    given_state(child, state)
    assert "expect" not in " ".join(remedy.command for remedy in explained(child, state).remedies)


# --- without a store, and with hooks --------------------------------------------------------------


def test_a_store_that_does_not_exist_is_explained_as_an_empty_one() -> None:
    found = read({b"GREYCHECK_CONFIG": b"/dev/null"})
    told = explain(
        None, why.envelope_of("smtpextfork", b"192.0.2.1", b"a@b", b"c@d", {}), found, 1_800_000_000
    )
    assert (told.verdict.action, told.verdict.reason, told.changes[0].expires) == (
        "defer",
        "new",
        1_800_172_800,
    )


def test_a_store_without_tables_is_explained_as_an_empty_one(child: Child, place: Path) -> None:
    child.database.touch()
    assert explained(child, State()).verdict.reason == "new"
    assert child.rows("SELECT * FROM sqlite_master") == []


def test_a_store_that_cannot_be_asked_is_an_error(child: Child) -> None:
    child.database.write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        explained(child, State())


def test_checkenv_hands_over_no_helo(child: Child) -> None:
    state = State(rules=(("helo", HELO, "reject", None),))
    given_state(child, state)
    assert explained(child, state).code == 100
    told = explained(child, state, hook="checkenv")
    assert (told.code, told.verdict.reason) == child.checkenv().verdict == (101, "new")


def test_rcptcheck_hands_over_no_helo_and_has_a_code_of_its_own(child: Child) -> None:
    state = State(rules=(("helo", HELO, "reject", None),))
    given_state(child, state)
    told = explained(child, state, hook="rcptcheck")
    assert (told.code, told.verdict.reason) == child.rcptcheck().verdict == (111, "new")


def test_qmail_spp_hands_over_helo(child: Child) -> None:
    state = State(rules=(("helo", HELO, "reject", None),))
    given_state(child, state)
    told = explained(child, state, hook="spp")
    assert (told.code, told.decided, told.verdict.reason) == (0, "reject", "rule")
    assert child.spp().said == "E553 refused by local policy (#5.7.1)\n"


@pytest.mark.parametrize(
    ("message", "first", "reason", "found"),
    [
        (b"192.0.2.1 port 25025", False, "message", "it did"),
        (b"192.0.2.1 port 1", False, "new", "it does not count, or did not"),
        (
            b"192.0.2.1 port 25025",
            True,
            "new",
            "this is the first recipient, or the only one known",
        ),
        (b"", False, "new", "this is the first recipient, or the only one known"),
    ],
)
def test_a_later_recipient_is_explained_by_the_first(
    child: Child, message: bytes, first: bool, reason: str, found: str
) -> None:
    child.settings["GREYCHECK_CLIENT_PASSES"] = "0"
    child.spp()
    child.age(300)
    child.spp()
    before = everything(child)
    environ = child.environ()
    envelope = Envelope("spp", CLIENT, SENDER, b"carol@example.net", message=message, first=first)
    with closing(connect(read(environ), 5.0)) as store:
        told = explain(store, envelope, read(environ), int(time()))
    assert everything(child) == before
    assert told.verdict.reason == reason
    [step] = [step for step in told.steps if step.name == "message"]
    assert (step.found, step.outcome == DECIDES) == (found, reason == "message")
    assert told.rows
    assert told.decision.row is None
    if reason == "message":
        assert told.remedies[0].command == "greycheck greylist to:carol@example.net"


# --- words ----------------------------------------------------------------------------------------


@given(st.binary(max_size=60).filter(lambda address: b"\0" not in address and b"\n" not in address))
def test_an_address_may_be_copied_from_the_log(address: bytes) -> None:
    assert why.address_bytes(show(address)) == address
    assert why.address_bytes(f"<{show(address)}>") == address


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (299, "4m 59s"),
        (3600, "1h"),
        (86399, "23h 59m"),
        (36 * DAY + 3700, "36d 1h"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: int, words: str) -> None:
    assert times.span(seconds) == words


def test_a_moment_is_seen_from_now() -> None:
    assert [times.away(moment, 1000) for moment in (1000, 1300, 700)] == ["now", "in 5m", "5m ago"]
