"""The whole order once more, written as plainly as possible, and random histories in which the real
child must agree with it.

Clients, clock jumps, expiry, rules and expectations come and go between the checks. Only the
child's clock is not real: it is handed in, so that every boundary can be met to the second.
"""

import ipaddress
import itertools
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Engine, delete, insert

from greycheck import policy, rule_keys
from greycheck.launchers.python import PROGRAMS, driver_directories, interpreter
from greycheck.normalise import address_bits
from greycheck.rules import patterns
from greycheck.rules.patterns import FIELD_OF
from greycheck.store.admin import expiry, rulebook
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import digest, domain_key
from greycheck.store.schema import tables
from greycheck.store.waiting import PROVIDERS, correspondent_key, packed_range
from tests.resident.resident import Resident
from tests.support import ROOT, Child, Database, Ran
from tests.test_order import BOTH

LAUNCHER = f"""#!{interpreter()} -IS
import posix, sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.extend({driver_directories()!r})
from greycheck import child
child.time = lambda: int(posix.environ[b"TEST_NOW"])
child.monotonic = lambda: 0.0
child.main(("/nonexistent",))
"""

# Longer ago than any clock here goes.
BEFORE = 10**12

CODES = {"accept": 0, "defer": 101, "reject": 100}

CLIENTS = [
    "192.0.2.1",
    "192.0.2.2",
    "198.51.100.1",
    "203.0.113.1",
    "10.1.1.1",
    "fd12::1",
    "2001:db8::1",
    "2001:db8::2",
]
SHARED = ("10.", "fd12:")
SENDERS = ["a@x.example", "b@sub.x.example", "", "c@y.example", "d@net.example"]
DOMAINS = ["x.example", "sub.x.example", "y.example", "net.example"]
NETWORKS = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/64"]
RECIPIENTS = ["r@net.example", "s@other.example"]
NAMES = ["", "mx.x.example", "x.example"]

PATTERNS = [
    ("network", "192.0.2.0/24"),
    ("network", "192.0.2.1/32"),
    ("network", "0.0.0.0/0"),
    ("network", "2001:db8::/32"),
    ("name", "x.example"),
    ("name", ".x.example"),
    ("helo", "mx.x.example"),
    ("sender", "a@x.example"),
    ("sender", "a@"),
    ("sender", "x.example"),
    ("sender", ".x.example"),
    ("sender", ""),
    ("recipient", "r@net.example"),
    ("recipient", "s@"),
    ("recipient", ".example"),
]
ORDER = ["recipient", "sender", "network", "name", "helo"]

# Their first part, and the recipient's.
PAIRS = [
    ("sender", "a@x.example", "r@net.example"),
    ("sender", ".x.example", "r@net.example"),
    ("sender", ".example", "net.example"),
    ("sender", "", ".example"),
    ("network", "192.0.2.0/24", "r@net.example"),
    ("network", "::/0", ".example"),
    ("network", "0.0.0.0/0", "s@"),
    ("name", ".x.example", "r@net.example"),
    ("helo", "mx.x.example", "net.example"),
]


class Model:
    """What greylisting is, in dictionaries."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.triplets: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.clients: dict[str, dict[str, int]] = {}
        self.rules: dict[tuple[str, ...], dict[str, Any]] = {}
        self.expected: dict[tuple[str, str], int] = {}
        self.released: dict[tuple[str, str], int] = {}
        self.messages: dict[tuple[str, str, str], int] = {}
        # What is known of domains: who may send for them, what their SPF said, who has passed.
        self.ranges: dict[tuple[str, str], tuple[str, int]] = {}
        self.spf: dict[str, tuple[str, int]] = {}
        self.domains: dict[str, dict[str, int]] = {}
        self.providers: set[str] = set()
        self.written: dict[tuple[str, str], int] = {}

    def check(
        self,
        client: str,
        sender: str,
        recipient: str,
        name: str,
        helo: str,
        now: int,
        port: str = "",
        first: bool = True,
        spf: bool = False,
    ) -> tuple[str, str]:
        message = (client, sender, port)
        passed = bool(port) and not first and now - self.messages.get(message, -BEFORE) <= 600
        trusted = spf and self.values["trust_spfresult"] == "yes"
        self.trusted = trusted and bool(sender) and not client.startswith(SHARED)
        action, reason = self.enforce(client, sender, recipient, name, helo, now, passed)
        vouches = (
            bool(port)
            and first
            and reason in ("known", "retry", "pool")
            and not self.is_known(client, now)
        )
        if vouches and now - self.messages.get(message, -BEFORE) > 300:
            self.messages[message] = now
        domain = recipient.partition("@")[2]
        if self.values["mode"] == "observe" or domain in self.values["observe_domains"].split(","):
            action = "accept"
        return action, reason

    def is_known(self, client: str, now: int) -> bool:
        v, known = self.values, self.clients.get(client)
        if not v["client_passes"] or not known or client.startswith(SHARED):
            return False
        return bool(known["passes"] >= v["client_passes"] and now - known["last"] <= v["lifetime"])

    def enforce(
        self,
        client: str,
        sender: str,
        recipient: str,
        name: str,
        helo: str,
        now: int,
        first_passed: bool,
    ) -> tuple[str, str]:
        v = self.values
        if not sender and v["null_sender"] == "accept":
            return "accept", "exempt"
        rule = self.rule(client, sender, recipient, name, helo, now)
        if rule and rule["action"] != "greylist":
            actions = {"allow": "accept", "reject": "reject", "defer": "defer"}
            return actions[rule["action"]], "rule"
        known = self.clients.get(client)
        if not rule and known:
            if v["strikes"] and now < known["struck"] <= now + v["strike_time"]:
                return "reject", "strikes"
            if self.is_known(client, now):
                row = self.triplets.get((network(client), sender, recipient))
                if row and row["passed"] and now - row["last"] <= v["lifetime"]:
                    self.used(row, now)
                self.used(known, now)
                return "accept", "client"
        delay = rule["delay"] if rule and rule["delay"] is not None else v["delay"]
        window = v["retry_window"] if v["retry_window"] > delay else v["retry_window"] + delay
        key = (network(client), sender, recipient)
        row = self.triplets.get(key)
        if row and row["passed"]:
            if now - row["last"] <= v["lifetime"]:
                self.used(row, now)
                return "accept", "known"
            row = None
        if row and now - row["first"] > window:
            row = None
        if row and now - row["first"] >= delay:
            self.passes(key, client, now)
            return "accept", "retry"
        if delay == 0 and row:
            self.passes(key, client, now)
            return "accept", "retry"
        is_released = self.released.get((sender, recipient), 0) > now
        expectation = self.expectation(sender, recipient, now)
        if is_released or expectation:
            if is_released:
                del self.released[sender, recipient]
            elif expectation:
                del self.expected[expectation]
            self.put(key, client, first=now, last=now, passed=True, expires=now + v["lifetime"])
            return "accept", "expected"
        if first_passed and not rule:
            return "accept", "message"
        if by_identity := self.by_identity(key, client, not rule, delay, window, now):
            return by_identity
        return self.deferred(key, row, client, delay, window, now)

    def put(self, key: tuple[str, str, str], client: str, **values: Any) -> None:
        """A row that begins anew is still that of whom it was made for."""
        mine = {"client": client, "spf": self.trusted}
        if key in self.triplets:
            mine = {name: self.triplets[key][name] for name in mine}
        self.triplets[key] = values | mine

    def state(self, domain: str, now: int) -> str:
        state, until = self.spf.get(domain, ("", 0))
        return state if until > now else ""

    def may_send(self, client: str, domain: str, now: int) -> str:
        """By what, or nothing."""
        source, until = self.ranges.get((domain, network(client)), ("", 0))
        if until <= now or (source == "pool" and self.state(domain, now) == "found"):
            return ""
        return source

    def identity(self, client: str, sender: str, now: int) -> str:
        """The domain that CLIENT may send for."""
        domain = sender.rpartition("@")[2]
        if not sender or client.startswith(SHARED) or self.values["identity"] == "no":
            return ""
        return domain if self.trusted or self.may_send(client, domain, now) else ""

    def by_identity(
        self,
        key: tuple[str, str, str],
        client: str,
        unruled: bool,
        delay: int,
        window: int,
        now: int,
    ) -> tuple[str, str] | None:
        v, (net, sender, recipient) = self.values, key
        domain, said = self.identity(client, sender, now), sender.rpartition("@")[2]
        counts = v["identity"] == "yes"
        if unruled and counts and net in self.providers:
            return "accept", "provider"
        is_written = self.written.get((sender, recipient), 0) > now
        told = self.state(said, now) if sender else ""
        if unruled and v["learn_outbound"] and is_written and (domain or told != "found"):
            return "accept", "correspondent"
        if not domain or not counts:
            return None
        known = self.domains.get(domain)
        if unruled and self.is_known_domain(domain, now):
            assert known
            if self.used(known, now):
                self.prolong(client, domain, now)
            return "accept", "domain"
        firsts = [
            other["first"]
            for (_, *pair), other in self.triplets.items()
            if pair == [sender, recipient]
            and not other["passed"]
            and other["first"] >= now - window
            and (other["spf"] or self.holds(other["client"], domain, now))
        ]
        if firsts and now - min(firsts) >= delay:
            self.passes(key, client, now)
            return "accept", "retry"
        return None

    def holds(self, client: str, domain: str, now: int) -> bool:
        """Whether a range holds CLIENT, whatever the domain's SPF says by now."""
        return self.ranges.get((domain, network(client)), ("", 0))[1] > now

    def is_known_domain(self, domain: str, now: int) -> bool:
        v, known = self.values, self.domains.get(domain)
        if not v["domain_passes"] or not known:
            return False
        return bool(known["passes"] >= v["domain_passes"] and now - known["last"] <= v["lifetime"])

    def prolong(self, client: str, domain: str, now: int) -> None:
        """What was learnt of a pool lasts for another lifetime."""
        if not self.trusted and self.may_send(client, domain, now) == "pool":
            self.ranges[domain, network(client)] = ("pool", now + self.values["lifetime"])

    def deferred(
        self,
        key: tuple[str, str, str],
        row: dict[str, Any] | None,
        client: str,
        delay: int,
        window: int,
        now: int,
    ) -> tuple[str, str]:
        v = self.values
        verdict = "defer", "early" if row else "new"
        struck = None
        shared = client.startswith(SHARED)
        if (
            row
            and not (row["first"] <= now and abs(now - row["last"]) <= 1)
            and v["strikes"]
            and not shared
        ):
            known = self.clients.get(client, {"passes": 0, "last": now})
            before = known.get("strikes", 0)
            # The triplet's last attempt may be another address's.
            own = not before or known["passes"] or 0 <= now - known["last"] <= v["strike_interval"]
            strikes = before + 1 if 0 <= now - row["last"] <= v["strike_interval"] and own else 0
            if client not in self.clients and row["early"] >= 16:
                pass
            elif strikes >= v["strikes"] and strikes != before:
                struck = {
                    "strikes": 0,
                    "struck": now + v["strike_time"],
                    "expires": now + v["strike_time"],
                }
                verdict = "reject", "strikes"
            elif strikes != before:
                struck = {"strikes": strikes, "struck": 0, "expires": now + v["retry_window"]}
        if verdict[0] == "defer":
            pair = [
                (other["first"], net != key[0])
                for (net, sender, recipient), other in self.triplets.items()
                if (sender, recipient) == key[1:] and sender
                if not other["passed"] and other["first"] >= now - window
            ]
            others = [first for first, is_other in pair if is_other]
            times = sorted(first for first, _ in pair)
            # One queue's attempts do not come within five seconds of each other, and nobody's
            # provider sends as his correspondent.
            apart = all(later - first >= 5 for first, later in itertools.pairwise([*times, now]))
            own = key[1].rpartition("@")[2] == key[2].rpartition("@")[2]
            enough = v["pool_networks"] and len(others) >= v["pool_networks"]
            if enough and now - min(others) >= delay and apart and not own:
                domain = key[1].rpartition("@")[2]
                learns = v["identity"] != "no" and self.state(domain, now) != "found"
                learns = learns and not client.startswith(SHARED)
                nets = {
                    net
                    for (net, *rest), other in self.triplets.items()
                    if tuple(rest) == key[1:] and not other["passed"]
                    if other["first"] >= now - window
                }
                self.passes(key, client, now)
                for net in nets | {key[0]} if learns else ():
                    source, _until = self.ranges.get((domain, net), ("pool", 0))
                    if source == "pool":
                        self.ranges[domain, net] = ("pool", now + v["lifetime"])
                return "accept", "pool"
            counted = [
                net
                for (net, _, _), other in self.triplets.items()
                if not other["passed"] and other["expires"] >= now
            ]
            waiting, crowd = len(counted), counted.count(key[0])
            if not row and v["network_limit"] and crowd >= v["network_limit"]:
                return "defer", "crowded"
            if not row and v["pending_limit"] and waiting >= v["pending_limit"]:
                return "accept", "full"
        if not row:
            fresh = {"first": now, "last": now, "early": 0, "passed": False}
            self.put(key, client, expires=now + window, **fresh)
        elif not (row["first"] <= now and abs(now - row["last"]) <= 1):
            first = min(row["first"], now)
            row.update(first=first, last=now, early=row["early"] + 1, expires=first + window)
        if struck:
            known = self.clients.setdefault(client, {"passes": 0, "last": now})
            if known["passes"]:
                struck["expires"] = max(struck["expires"], known["last"] + v["lifetime"])
            else:
                known["last"] = now
            known.update(struck)
        return verdict

    def used(self, row: dict[str, Any], now: int) -> bool:
        """Whether this use is recorded."""
        is_due = abs(now - row["last"]) >= min(3600, self.values["lifetime"] // 2)
        if is_due:
            row.update(last=now, expires=now + self.values["lifetime"])
        return bool(is_due)

    def passes(self, key: tuple[str, str, str], client: str, now: int) -> None:
        expires = now + self.values["lifetime"]
        first = min(self.triplets[key]["first"], now) if key in self.triplets else now
        self.put(key, client, first=first, last=now, passed=True, expires=expires)
        self.passes_by_domain(client, self.identity(client, key[1], now), now)
        if not self.values["client_passes"] or client.startswith(SHARED):
            return
        known = self.clients.get(client)
        fresh = known is None or now - known["last"] > self.values["lifetime"]
        passes = 1 if fresh or known is None else known["passes"] + 1
        self.clients[client] = {
            "passes": passes,
            "last": now,
            "strikes": 0,
            "struck": 0,
            "expires": expires,
        }

    def passes_by_domain(self, client: str, domain: str, now: int) -> None:
        if not domain:
            return
        if not self.values["domain_passes"]:
            self.prolong(client, domain, now)
        elif self.is_known_domain(domain, now):
            if self.used(self.domains[domain], now):
                self.prolong(client, domain, now)
        else:
            known = self.domains.get(domain)
            fresh = known is None or now - known["last"] > self.values["lifetime"]
            passes = 1 if fresh or known is None else known["passes"] + 1
            until = now + self.values["lifetime"]
            self.domains[domain] = {"passes": passes, "last": now, "expires": until}
            self.prolong(client, domain, now)

    def rule(
        self, client: str, sender: str, recipient: str, name: str, helo: str, now: int
    ) -> dict[str, Any] | None:
        mail = (client, sender, recipient, name, helo)
        matching = []
        for (kind, pattern, *more), row in self.rules.items():
            specific = self.matches(kind, pattern, *mail)
            to_whom = self.matches("recipient", more[0], *mail) if more else 0
            if specific is None or to_whom is None:
                continue
            if row["expires"] is not None and row["expires"] <= now:
                continue
            unverified = kind == "name" and self.values["verified_names"] == "no"
            if not (unverified and row["action"] == "allow"):
                matching.append(((not more, -to_whom, ORDER.index(kind), -specific), row))
        return min(matching, key=lambda found: found[0])[1] if matching else None

    def matches(
        self,
        kind: str,
        pattern: str,
        client: str,
        sender: str,
        recipient: str,
        name: str,
        helo: str,
    ) -> int | None:
        if kind == "network":
            wanted, address = ipaddress.ip_network(pattern), ipaddress.ip_address(client)
            return (
                wanted.prefixlen
                if address.version == wanted.version and address in wanted
                else None
            )
        text = {"name": name, "helo": helo, "sender": sender, "recipient": recipient}[kind]
        host = text.partition("@")[2] if kind in ("sender", "recipient") else text
        if kind in ("name", "helo") and not text:
            return None
        if pattern == text:
            return 3000
        if pattern and pattern.endswith("@") and text.startswith(pattern):
            return 2000
        if pattern and pattern == host:
            return 1000
        return len(pattern) if pattern.startswith(".") and ("." + host).endswith(pattern) else None

    def expectation(self, sender: str, recipient: str, now: int) -> tuple[str, str] | None:
        host = "." + sender.partition("@")[2]
        found = [
            (wanted, domain)
            for (wanted, domain), expires in self.expected.items()
            if wanted == recipient and expires > now and (not domain or host.endswith(domain))
        ]
        return max(found, key=lambda key: len(key[1])) if found else None

    def expire(self, now: int) -> None:
        self.triplets = {key: row for key, row in self.triplets.items() if row["expires"] >= now}
        self.clients = {key: row for key, row in self.clients.items() if row["expires"] >= now}
        self.rules = {
            key: row
            for key, row in self.rules.items()
            if row["expires"] is None or row["expires"] >= now
        }
        self.expected = {key: expires for key, expires in self.expected.items() if expires >= now}
        self.released = {key: until for key, until in self.released.items() if until >= now}
        self.messages = {key: last for key, last in self.messages.items() if last + 600 >= now}
        self.ranges = {key: row for key, row in self.ranges.items() if row[1] >= now}
        self.spf = {key: row for key, row in self.spf.items() if row[1] >= now}
        self.domains = {key: row for key, row in self.domains.items() if row["expires"] >= now}
        self.written = {key: until for key, until in self.written.items() if until >= now}


def network(client: str) -> str:
    prefix = 24 if "." in client else 64
    return str(ipaddress.ip_network(f"{client}/{prefix}", strict=False))


class Histories(RuleBasedStateMachine):
    """Random histories of CHILD; ENGINE is an operator's way to its store."""

    def __init__(self, child: Child, engine: Engine) -> None:
        super().__init__()
        self.child = child
        self.place = child.programs
        self.database = child.store
        self.engine = engine
        self.database.empty()
        self.now = 1_800_000_000
        self.last = ("", "")

    @initialize(
        values=st.fixed_dictionaries(
            {
                "delay": st.sampled_from([0, 60, 300]),
                "retry_window": st.sampled_from([600, 86400]),
                "lifetime": st.sampled_from([1800, 7200, 86400]),
                "client_passes": st.sampled_from([0, 1, 1, 2]),
                "null_sender": st.sampled_from(["greylist", "greylist", "accept"]),
                "strikes": st.sampled_from([0, 1, 2]),
                "strike_interval": st.just(70),
                "strike_time": st.sampled_from([100, 3600]),
                "pool_networks": st.sampled_from([0, 1, 2]),
                "identity": st.sampled_from(["yes", "yes", "yes", "observe", "no"]),
                "domain_passes": st.sampled_from([0, 1, 1, 2]),
                "trust_spfresult": st.sampled_from(["yes", "no"]),
                "learn_outbound": st.sampled_from([0, 86400]),
                "network_limit": st.sampled_from([0, 2, 1000]),
                "pending_limit": st.sampled_from([0, 4, 1000]),
                "verified_names": st.sampled_from(["yes", "no"]),
                "mode": st.sampled_from(["enforce", "enforce", "enforce", "observe"]),
                "observe_domains": st.sampled_from(["", "", "net.example"]),
            }
        )
    )
    def begin(self, values: dict[str, Any]) -> None:
        self.model = Model(values)
        self.child.settings = {
            f"GREYCHECK_{name.upper()}": str(value) for name, value in values.items()
        }
        self.child.settings["GREYCHECK_DEADLINE"] = "60s"

    @rule(
        client=st.sampled_from(CLIENTS),
        sender=st.sampled_from(SENDERS),
        recipient=st.sampled_from(RECIPIENTS),
        name=st.sampled_from(NAMES),
        checkenv=st.booleans(),
        spf=st.sampled_from([False, False, True]),
        later=st.sampled_from([0, 0, 1, 2, 4, 5, 60, 70, 71, 300]),
    )
    def check(
        self,
        client: str,
        sender: str,
        recipient: str,
        name: str,
        checkenv: bool,
        later: int,
        spf: bool = False,
    ) -> None:
        self.now += later
        helo = "" if checkenv else name
        expected = self.model.check(client, sender, recipient, name, helo, self.now, spf=spf)
        environ = self.child.environ(client, TEST_NOW=str(self.now))
        if spf:
            environ[b"SPFRESULT"] = b"pass"
        if name:
            environ[b"TCPREMOTEHOST"] = name.encode()
        if checkenv:
            ran = self.child.run([self.place / "qmail-checkenv", sender, recipient], environ)
        else:
            envelope = {
                b"REMOTEMF": sender.encode(),
                b"REMOTERCPT": recipient.encode(),
                b"REMOTEHELO": name.encode(),
            }
            ran = self.child.run([self.place / "greycheck"], environ | envelope)
        assert ran.verdict == (CODES[expected[0]], expected[1]), (
            ran,
            self.model.__dict__,
            self.now,
        )
        self.last = expected

    @rule(
        client=st.sampled_from(CLIENTS[:3]),
        sender=st.sampled_from(SENDERS),
        recipients=st.lists(st.sampled_from(RECIPIENTS), min_size=1, max_size=4),
        port=st.sampled_from(["1", "1", "2"]),
        later=st.sampled_from([0, 60, 300, 301, 600, 601]),
    )
    def message(
        self, client: str, sender: str, recipients: list[str], port: str, later: int
    ) -> None:
        """One message to several recipients, under qmail-spp."""
        self.now += later
        accepted = 0
        for number, recipient in enumerate(recipients, 1):
            told = port if number == 1 or accepted else ""
            expected = self.model.check(
                client, sender, recipient, "", "h.example", self.now, told, number == 1
            )
            ran = self.child.spp(
                sender,
                recipient,
                client,
                (accepted, number),
                port,
                TEST_NOW=str(self.now),
                SMTPHELOHOST="h.example",
            )
            assert (ran.code, ran.reason) == (0, expected[1]), (ran, self.model.__dict__, self.now)
            command = "LD" if not sender and number == 1 else "E"
            said = {"accept": "", "defer": f"{command}451", "reject": f"{command}553"}[expected[0]]
            assert ran.said.partition(" ")[0] == said
            accepted += not said.startswith("E")
            self.last = expected

    @rule(
        client=st.sampled_from(CLIENTS[:5]),
        delays=st.sampled_from([[60], [300], [59, 1], [299, 1], [20, 20, 20, 20]]),
    )
    def retry(self, client: str, delays: list[int]) -> None:
        """One sender who tries again and again: what makes a history deep."""
        for delay in [0, *delays]:
            self.check(client, SENDERS[0], RECIPIENTS[0], "", False, delay)

    @rule(
        domain=st.sampled_from(DOMAINS),
        state=st.sampled_from(["found", "found", "none", "wide"]),
        networks=st.sets(st.sampled_from(NETWORKS), min_size=1),
        lasts=st.sampled_from([700, 86400]),
    )
    def resolve(self, domain: str, state: str, networks: set[str], lasts: int) -> None:
        """DNS says who may send for DOMAIN."""
        model, until = self.model, self.now + lasts
        key = domain_key(domain.encode())
        kept = {"spf"} if state != "found" else {"spf", "pool"}
        for (name, net), (source, _until) in [*model.ranges.items()]:
            if name == domain and source in kept:
                del model.ranges[name, net]
                first = key + packed_range(net)[0]
                gone = delete(tables.authorised).where(tables.authorised.c.network_key == first)
                self.database.execute(gone)
        model.spf[domain] = (state, until)
        self.database.execute(delete(tables.spf).where(tables.spf.c.domain_key == key))
        answer = {"domain_key": key, "name": domain, "state": state, "why": "", "per_client": 0}
        times = dict.fromkeys(("answered_at", "asked_at", "next_at"), self.now)
        self.database.execute(
            insert(tables.spf).values(answer | times | {"failures": 0, "expires_at": until})
        )
        if state == "found":
            for net in networks:
                model.ranges[domain, net] = ("spf", until)
                self.put_range(key, net, "spf", domain, until)

    def put_range(self, key: bytes, net: str, source: str, name: str, until: int) -> None:
        first, last = packed_range(net)
        row = {"network_key": key + first, "last": last, "source": source, "name": name}
        self.database.execute(
            insert(tables.authorised).values(row | {"added_at": self.now, "expires_at": until})
        )

    @rule(networks=st.sets(st.sampled_from(NETWORKS)))
    def let_in(self, networks: set[str]) -> None:
        """An operator's provider."""
        of_providers = tables.authorised.c.source == "provider"
        self.database.execute(delete(tables.authorised).where(of_providers))
        self.model.providers = networks
        for net in networks:
            self.put_range(PROVIDERS, net, "provider", "p.example", BEFORE)

    @rule(
        sender=st.sampled_from([sender for sender in SENDERS if sender]),
        recipient=st.sampled_from(RECIPIENTS),
    )
    def write_to(self, sender: str, recipient: str) -> None:
        """RECIPIENT writes to SENDER."""
        key = correspondent_key(sender.encode(), recipient.encode())
        until = self.now + 700
        self.model.written[sender, recipient] = until
        of_pair = tables.correspondent.c.pair_key == key
        self.database.execute(delete(tables.correspondent).where(of_pair))
        row = {"pair_key": key, "sender": sender, "recipient": recipient, "expires_at": until}
        times = dict.fromkeys(("first_seen", "last_seen"), self.now)
        self.database.execute(insert(tables.correspondent).values(row | times))

    @rule(recipient=st.sampled_from(RECIPIENTS))
    def from_everywhere(self, recipient: str) -> None:
        """One mail from a network after the other."""
        for client in CLIENTS[1:6]:
            self.check(client, SENDERS[3], recipient, "", False, 100)

    @rule(
        seconds=st.sampled_from(
            [2, 69, 300, 599, 600, 3599, 3600, 7200, 7201, 86399, 86400, 86401, -5, -400, -90000]
        )
    )
    def clock_jumps(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        for _table, _rows in expiry.expire(
            self.engine, self.now, batch=2, rest=lambda _seconds: None
        ):
            pass
        self.model.expire(self.now)

    @rule(
        pattern=st.sampled_from(PATTERNS),
        action=st.sampled_from(["allow", "reject", "greylist", "defer"]),
        delay=st.sampled_from([None, 30, 3600]),
        lasts=st.sampled_from([None, 300]),
    )
    def put_rule(
        self, pattern: tuple[str, str], action: str, delay: int | None, lasts: int | None
    ) -> None:
        kind, text = pattern
        own = delay if action == "greylist" else None
        expires = None if lasts is None else self.now + lasts
        self.model.rules[pattern] = {"action": action, "delay": own, "expires": expires}
        self.write(
            rule_keys.key(kind, value(kind, text)), kind, written(kind, text), action, own, expires
        )

    @rule(
        pair=st.sampled_from(PAIRS),
        action=st.sampled_from(["allow", "reject", "greylist", "defer"]),
        delay=st.sampled_from([None, 30, 3600]),
        lasts=st.sampled_from([None, 300]),
    )
    def put_pair(
        self, pair: tuple[str, str, str], action: str, delay: int | None, lasts: int | None
    ) -> None:
        own = delay if action == "greylist" else None
        expires = None if lasts is None else self.now + lasts
        self.model.rules[pair] = {"action": action, "delay": own, "expires": expires}
        pattern = patterns.parse(pair_written(pair))
        rulebook.put(self.engine, pattern, action, own, "", expires, self.now)

    @rule(pair=st.sampled_from(PAIRS))
    def remove_pair(self, pair: tuple[str, str, str]) -> None:
        self.model.rules.pop(pair, None)
        rulebook.remove(self.engine, [pair_written(pair)])

    @rule(pattern=st.sampled_from(PATTERNS))
    def remove_rule(self, pattern: tuple[str, str]) -> None:
        self.model.rules.pop(pattern, None)
        self.remove(rule_keys.key(pattern[0], value(*pattern)))

    @rule(
        recipient=st.sampled_from(RECIPIENTS),
        domain=st.sampled_from(["", ".x.example", ".sub.x.example"]),
    )
    def expect(self, recipient: str, domain: str) -> None:
        self.model.expected[recipient, domain] = self.now + 900
        key = rule_keys.expectation_key(recipient.encode(), domain.encode())
        text = f"to:{recipient}" + (f" from:{domain}" if domain else "")
        self.write(key, "expect", text, "allow", None, self.now + 900)

    @rule(sender=st.sampled_from(SENDERS), recipient=st.sampled_from(RECIPIENTS))
    def release(self, sender: str, recipient: str) -> None:
        """What waits passes once, from anywhere."""
        self.model.released[sender, recipient] = self.now + 900
        pattern = patterns.release(sender, recipient)
        self.write(pattern.key, pattern.kind, pattern.text, "allow", None, self.now + 900)

    def write(
        self, key: bytes, kind: str, text: str, action: str, delay: int | None, expires: int | None
    ) -> None:
        self.remove(key)
        values = {
            "match_key": digest(key),
            "kind": kind,
            "pattern": text,
            "action": action,
            "delay": delay,
        }
        self.database.execute(
            insert(tables.rule).values(
                values | {"comment": "", "created_at": self.now, "expires_at": expires}
            )
        )

    def remove(self, key: bytes) -> None:
        self.database.execute(delete(tables.rule).where(tables.rule.c.match_key == digest(key)))


def written(kind: str, text: str) -> str:
    """The pattern as an operator's command keeps it: a resident reads it again."""
    return text if kind == "network" else f"{FIELD_OF[kind]}:{text or '<>'}"


def pair_written(pair: tuple[str, str, str]) -> str:
    return f"{written(*pair[:2])} to:{pair[2]}"


def value(kind: str, text: str) -> bytes:
    if kind != "network":
        return text.encode()
    wanted = ipaddress.ip_network(text)
    bits, number = (
        (32, int(wanted.network_address))
        if wanted.version == 4
        else address_bits(str(wanted.network_address))
    )
    return rule_keys.network_value(bits, number, wanted.prefixlen)


@pytest.fixture
def programs(place: Path) -> Path:
    """The launchers with a clock of their own."""
    for name in PROGRAMS:
        (place / name).write_text(LAUNCHER)
        (place / name).chmod(0o755)
    return place


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """What an operator's command has."""
    found = open_engine(database.url)
    yield found
    found.dispose()


def agree(child: Child, engine: Engine, histories: int) -> None:
    """Runs so many HISTORIES of CHILD."""
    run_state_machine_as_test(
        lambda: Histories(child, engine),  # type: ignore[arg-type,unused-ignore]
        settings=settings(
            max_examples=histories,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


# --- directed histories ---------------------------------------------------------------------------

PLAIN = {
    "delay": 300,
    "retry_window": 86400,
    "lifetime": 86400,
    "client_passes": 0,
    "null_sender": "greylist",
    "strikes": 0,
    "strike_interval": 70,
    "strike_time": 3600,
    "pool_networks": 0,
    "identity": "yes",
    "domain_passes": 0,
    "trust_spfresult": "no",
    "learn_outbound": 0,
    "network_limit": 0,
    "pending_limit": 0,
    "verified_names": "no",
    "mode": "enforce",
    "observe_domains": "",
}
HERE, ELSEWHERE = CLIENTS[0], CLIENTS[2]
ONE, OTHER = RECIPIENTS
EVERYBODY = ("network", "192.0.2.0/24")


def directed(pair: tuple[str, str], histories: Histories) -> tuple[str, str]:
    """Plays a history at whose end both steps of PAIR would decide the last mail; returns that
    verdict and its reason.
    """

    def begin(**values: object) -> None:
        histories.begin(PLAIN | values)

    def check(
        recipient: str = ONE, sender: str = SENDERS[0], later: int = 0, client: str = HERE
    ) -> tuple[str, str]:
        histories.check(client, sender, recipient, "", False, later)
        return histories.last

    def known(recipient: str = ONE) -> None:
        check(recipient)
        assert check(recipient, later=300) == ("accept", "retry")

    match pair:
        case ("exempt", "rule"):
            begin(null_sender="accept")
            histories.put_rule(EVERYBODY, "reject", None, None)
            return check(sender="")
        case ("strikes", "client"):
            begin(strikes=1, client_passes=1)
            known()
            histories.put_rule(EVERYBODY, "greylist", None, None)
            check(OTHER)
            assert check(OTHER, later=2) == ("reject", "strikes")
            histories.remove_rule(EVERYBODY)
            return check(OTHER, later=5)
        case ("client", "known"):
            begin(client_passes=1)
            known()
            return check()
        case ("retry", "expected"):
            begin()
            check()
            histories.expect(ONE, "")
            return check(later=300)
        case ("expected", "message"):
            begin()
            known()
            histories.expect(OTHER, "")
            histories.message(HERE, SENDERS[0], [ONE, OTHER], "1", 2)
        case ("message", "provider"):
            begin()
            known()
            histories.let_in({NETWORKS[0]})
            histories.message(HERE, SENDERS[0], [ONE, OTHER], "1", 2)
        case ("provider", "correspondent"):
            begin(learn_outbound=86400)
            histories.write_to(SENDERS[0], ONE)
            histories.let_in({NETWORKS[0]})
            return check()
        case ("correspondent", "domain"):
            begin(learn_outbound=86400, domain_passes=1)
            histories.resolve(DOMAINS[0], "found", {NETWORKS[0]}, 86400)
            known()
            histories.write_to(SENDERS[0], OTHER)
            return check(OTHER)
        case ("domain", "moved"):
            begin(domain_passes=1)
            histories.resolve(DOMAINS[0], "found", {*NETWORKS}, 86400)
            check(OTHER)
            known()
            return check(OTHER, client=ELSEWHERE)
        case ("moved", "haste"):
            begin(strikes=1, domain_passes=0)
            check(client=ELSEWHERE)
            check(later=299)
            histories.resolve(DOMAINS[0], "found", {*NETWORKS}, 86400)
            return check(later=2)
        case ("haste", "pool"):
            begin(strikes=1, pool_networks=1)
            check(client=ELSEWHERE)
            check(later=299)
            return check(later=5)
        case ("pool", "crowded"):
            begin(pool_networks=1, network_limit=1)
            check(OTHER)
            check(client=ELSEWHERE)
            return check(later=300)
        case ("crowded", "full"):
            begin(network_limit=1, pending_limit=1)
            check(OTHER)
            return check()
        case _:
            begin(pending_limit=1)
            check(OTHER)
            return check()
    return histories.last


# The pairs of tests/test_order.py that a history leads to: a hook gives no envelope without a
# client here.
DIRECTED = [pair for pair in BOTH if pair != ("incomplete", "exempt")]


@pytest.mark.parametrize("pair", DIRECTED, ids=" before ".join)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_where_two_neighbouring_steps_would_decide_all_three_agree(
    pair: tuple[str, str], programs: Path, database: Database, engine: Engine
) -> None:
    reason = next(step.reason for step in policy.STEPS if step.name == pair[0])
    assert directed(pair, Histories(Child(programs, database), engine))[1] == reason


@pytest.mark.parametrize(
    ("database", "histories"),
    [("sqlite", 18), ("postgresql", 4), ("mariadb", 4)],
    indirect=["database"],
)
def test_the_child_agrees_with_the_model(
    programs: Path, database: Database, engine: Engine, histories: int
) -> None:
    agree(Child(programs, database), engine, histories)


# What the resident's Python runs first: the time is what a file says.
CLOCK = """
import pathlib, time
time.time = lambda: int(pathlib.Path({path!r}).read_text())
"""


class Clocked(Child):
    """A child whose resident has the clock in the file CLOCK."""

    clock: Path

    def environ(self, client: str | None = None, **more: str | bytes) -> dict[bytes, bytes]:
        self.clock.write_text(str(more.pop("TEST_NOW")))
        return super().environ(client, **more)

    def run(
        self, argv: Sequence[Path | bytes | str], environ: dict[bytes, bytes], **options: object
    ) -> Ran:
        """The resident may count what it has answered only now: once it answers again it has done
        so, whatever comes next.
        """
        ran = super().run(argv, environ, **options)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.clock.parent / "socket"))
            connection.sendall(b"request=smtpd_access_policy\nprotocol_state=DATA\n\n")
            assert connection.recv(100) == b"action=DUNNO\n\n"
        return ran


@pytest.mark.parametrize(
    ("database", "histories"),
    [("sqlite", 24), ("postgresql", 6), ("mariadb", 6)],
    indirect=["database"],
)
def test_a_resident_agrees_with_the_model(
    natives: Path, place: Path, database: Database, engine: Engine, histories: int
) -> None:
    child = Clocked(natives, database, place / "socket")
    child.clock = place / "now"
    child.clock.write_text("0")
    (place / "sitecustomize.py").write_text(CLOCK.format(path=str(child.clock)))
    with Resident(place, {"deadline": "60s"}, database, environ={"PYTHONPATH": str(place)}).wait():
        agree(child, engine, histories)
