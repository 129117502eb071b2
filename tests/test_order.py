"""The order of the decision: for each two neighbouring steps a mail that both would decide.

The first of them decides it. Each pair is also tried the other way round, to show that the mail
tells the two orders apart: a step that is moved, or a new one at the wrong place, fails here.
"""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from greycheck import policy
from greycheck.envelope import Envelope
from greycheck.policy import (
    IDENTITY,
    MESSAGE,
    NETWORKS,
    PENDING,
    ROWS,
    ClientRow,
    Decision,
    Rows,
    RuleRow,
    Step,
    TripletRow,
)
from greycheck.settings import read
from greycheck.unknown import DomainRow, Identity, Pending

NOW = 1_800_000_000
SETTINGS = {
    "strikes": "1",
    "strike_interval": "70",
    "client_passes": "1",
    "pool_networks": "3",
    "network_limit": "1000",
    "pending_limit": "1000",
    "learn_outbound": "60d",
}

KNOWN = ClientRow(NOW - 9, NOW - 9, 1)
STRUCK = ClientRow(NOW - 9, NOW - 9, 1, 0, NOW + 9)
PASSED = TripletRow(NOW - 900, NOW - 9, 0, 1, NOW - 9)
HASTY = TripletRow(NOW - 30, NOW - 30)
SLOW = TripletRow(NOW - 290, NOW - 290)
DUE = TripletRow(NOW - 300, NOW - 300)
EXPECTED = RuleRow(b"key", "expect", "to:b@example.net", "allow", None)
ALLOW = RuleRow(b"key", "network", "192.0.2.0/24", "allow", None)
POOL = Pending(others=3, oldest=NOW - 900, newest=NOW - 100, crowd=9999, total=99999)
OF_PROVIDER = Pending(identity=Identity(provider="example.com"))
WRITTEN = Pending(identity=Identity(written=NOW - 9, provider="example.com"))
OF_DOMAIN = Pending(
    of_domain=NOW - 900, identity=Identity(DomainRow(NOW - 9, NOW - 9, 1), "found", NOW, "spf")
)
ANSWERED = Pending(
    identity=Identity(DomainRow(NOW - 9, NOW - 9, 1), "found", NOW, "spf", written=NOW - 9)
)
CROWD = Pending(crowd=9999, total=99999)


@dataclass
class Mail:
    """A mail, and what the store has of it."""

    rows: Rows = field(default_factory=Rows)
    pending: Pending = field(default_factory=Pending)
    envelope: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def decision(self) -> Decision:
        envelope = {"client": "192.0.2.1", "sender": b"a@example.org", **self.envelope}
        values = {
            f"GREYCHECK_{name.upper()}": value for name, value in (SETTINGS | self.settings).items()
        }
        found = read(
            {b"GREYCHECK_CONFIG": b"/dev/null"}
            | {name.encode(): text.encode() for name, text in values.items()}
        )
        decision = Decision(Envelope("spp", recipient=b"b@example.net", **envelope), found, NOW)
        while need := decision.advance():
            if need == ROWS:
                decision.take_rows(self.rows)
            elif need == MESSAGE:
                decision.take_message(True)
            elif need == IDENTITY:
                decision.take_identity(self.pending.identity)
            elif need == NETWORKS:
                decision.take_networks(())
            else:
                assert need == PENDING
                decision.take_pending(self.pending)
        return decision


LATER = {"message": b"1", "first": False}

# What both steps of a pair would decide.
BOTH = {
    ("incomplete", "exempt"): Mail(envelope={"missing": "SENDER", "exempt": "RELAYCLIENT"}),
    ("exempt", "rule"): Mail(Rows(rules=[ALLOW]), envelope={"exempt": "RELAYCLIENT"}),
    ("strikes", "client"): Mail(Rows(client=STRUCK)),
    ("client", "known"): Mail(Rows(PASSED, KNOWN)),
    ("retry", "expected"): Mail(Rows(DUE, expected=EXPECTED)),
    ("expected", "message"): Mail(Rows(expected=EXPECTED), envelope=LATER),
    ("message", "provider"): Mail(Rows(), OF_PROVIDER, envelope=LATER),
    ("provider", "correspondent"): Mail(Rows(), WRITTEN),
    ("correspondent", "domain"): Mail(Rows(), ANSWERED),
    ("domain", "moved"): Mail(Rows(), OF_DOMAIN),
    ("moved", "haste"): Mail(Rows(HASTY), OF_DOMAIN, settings={"domain_passes": "0"}),
    ("haste", "pool"): Mail(Rows(HASTY), POOL),
    ("pool", "crowded"): Mail(Rows(), POOL),
    ("crowded", "full"): Mail(Rows(), CROWD),
    ("full", "new"): Mail(Rows(), CROWD, settings={"network_limit": "0"}),
}

# Two phases of a triplet: no mail is in both. And where a rule matches, strikes do not count.
EXCLUSIVE = {("known", "retry"), ("new", "early"), ("rule", "strikes")}

PAIRS = list(itertools.pairwise(step.name for step in policy.STEPS))


def test_every_pair_of_neighbours_has_a_mail_that_both_would_decide() -> None:
    assert set(PAIRS) == set(BOTH) | EXCLUSIVE


@pytest.mark.parametrize(("first", "second"), BOTH)
def test_of_two_steps_that_would_decide_the_first_one_does(
    first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = BOTH[first, second]
    assert mail.decision().step == first
    steps = {step.name: step for step in policy.STEPS}
    exchanged = {first: steps[second], second: steps[first]}
    monkeypatch.setattr(policy, "STEPS", tuple(exchanged.get(name, steps[name]) for name in steps))
    assert mail.decision().step == second


def test_once_it_is_decided_nothing_more_is_needed_and_nothing_changes() -> None:
    decision = Mail(Rows(DUE)).decision()
    changes = list(decision.changes)
    assert decision.advance() == policy.NOTHING
    assert (decision.step, decision.changes) == ("retry", changes)


def test_an_order_in_which_no_step_decides_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "STEPS", policy.STEPS[:1])
    with pytest.raises(AssertionError, match="the last step always decides"):
        Mail().decision()


DEFERS = RuleRow(b"key", "network", "192.0.2.0/24", "defer", None)


@pytest.mark.parametrize("pair", [pair for pair in BOTH if "exempt" not in pair])
def test_what_a_rule_defers_no_later_step_decides(pair: tuple[str, str]) -> None:
    mail = BOTH[pair]
    mail = replace(mail, rows=Rows(mail.rows.triplet, mail.rows.client, [DEFERS], EXPECTED))
    decision = mail.decision()
    assert (decision.step, decision.action) == ("rule", policy.DEFER)
    assert not decision.changes


@pytest.mark.parametrize("left_out", [step.name for step in policy.STEPS[:-1]])
def test_no_step_can_be_left_out_unnoticed(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step decides some mail here that is decided otherwise without it."""
    mails = [
        *BOTH.values(),
        Mail(Rows(PASSED)),
        Mail(),
        Mail(Rows(SLOW)),
        Mail(Rows(rules=[ALLOW])),
    ]
    before = [decided_by(mail) for mail in mails]
    kept = tuple(step for step in policy.STEPS if step.name != left_out)
    monkeypatch.setattr(
        policy, "STEPS", (*kept, Step("end", "end", lambda it: it.decide("x", "end")))
    )
    assert [decided_by(mail) for mail in mails] != before


def decided_by(mail: Mail) -> str:
    """The step that decides MAIL; empty where one meets what another should have kept from it, or
    lacks what that should have asked for.
    """
    try:
        return mail.decision().step
    except (AssertionError, AttributeError):
        return ""
