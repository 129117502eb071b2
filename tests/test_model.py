"""The whole order once more, written as plainly as possible, and random histories in which the real child must agree with it.

Clients, clock jumps, expiry, rules and expectations come and go between the checks. Only the child's clock is not real: it is handed
in, so that every boundary can be met to the second.
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

from greycheck import rules
from greycheck.cli.launcher import PROGRAMS, driver_directories, interpreter
from greycheck.normalise import address_bits
from greycheck.patterns import FIELD_OF
from greycheck.store import expiry, tables
from greycheck.store.engine import open_engine
from greycheck.store.lean import digest
from tests.resident.resident import Resident
from tests.support import ROOT, Child, Database, Ran

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

CLIENTS = ["192.0.2.1", "192.0.2.2", "198.51.100.1", "203.0.113.1", "10.1.1.1", "fd12::1", "2001:db8::1", "2001:db8::2"]
SHARED = ("10.", "fd12:")
SENDERS = ["a@x.example", "b@sub.x.example", "", "c@y.example", "d@net.example"]
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


class Model:
    """What greylisting is, in dictionaries."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.triplets: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.clients: dict[str, dict[str, int]] = {}
        self.rules: dict[tuple[str, str], dict[str, Any]] = {}
        self.expected: dict[tuple[str, str], int] = {}
        self.messages: dict[tuple[str, str, str], int] = {}

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
    ) -> tuple[str, str]:
        message = (client, sender, port)
        passed = bool(port) and not first and now - self.messages.get(message, -BEFORE) <= 600
        action, reason = self.enforce(client, sender, recipient, name, helo, now, passed)
        vouches = bool(port) and first and reason in ("known", "retry", "pool") and not self.is_known(client, now)
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
        self, client: str, sender: str, recipient: str, name: str, helo: str, now: int, first_passed: bool
    ) -> tuple[str, str]:
        v = self.values
        if not sender and v["null_sender"] == "accept":
            return "accept", "exempt"
        rule = self.rule(client, sender, recipient, name, helo, now)
        if rule and rule["action"] in ("allow", "reject"):
            return {"allow": "accept", "reject": "reject"}[rule["action"]], "rule"
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
        if expectation := self.expectation(sender, recipient, now):
            del self.expected[expectation]
            self.triplets[key] = {"first": now, "last": now, "passed": True, "expires": now + v["lifetime"]}
            return "accept", "expected"
        return self.deferred(key, row, client, delay, window, now, first_passed and not rule)

    def deferred(
        self,
        key: tuple[str, str, str],
        row: dict[str, Any] | None,
        client: str,
        delay: int,
        window: int,
        now: int,
        follows: bool,
    ) -> tuple[str, str]:
        v = self.values
        verdict = "defer", "early" if row else "new"
        struck = None
        shared = client.startswith(SHARED)
        if row and not (row["first"] <= now and abs(now - row["last"]) <= 1) and v["strikes"] and not shared:
            known = self.clients.get(client, {"passes": 0, "last": now})
            before = known.get("strikes", 0)
            # The triplet's last attempt may be another address's.
            own = not before or known["passes"] or 0 <= now - known["last"] <= v["strike_interval"]
            strikes = before + 1 if 0 <= now - row["last"] <= v["strike_interval"] and own else 0
            if client not in self.clients and row["early"] >= 16:
                pass
            elif strikes >= v["strikes"] and strikes != before:
                struck = {"strikes": 0, "struck": now + v["strike_time"], "expires": now + v["strike_time"]}
                verdict = "reject", "strikes"
            elif strikes != before:
                struck = {"strikes": strikes, "struck": 0, "expires": now + v["retry_window"]}
        if verdict[0] == "defer" and follows:
            return "accept", "message"
        if verdict[0] == "defer":
            pair = [
                (other["first"], net != key[0])
                for (net, sender, recipient), other in self.triplets.items()
                if (sender, recipient) == key[1:] and sender
                if not other["passed"] and other["first"] >= now - window
            ]
            others = [first for first, is_other in pair if is_other]
            times = sorted(first for first, _ in pair)
            # One queue's attempts do not come within five seconds of each other, and nobody's provider sends as his correspondent.
            apart = all(later - first >= 5 for first, later in itertools.pairwise([*times, now]))
            own = key[1].rpartition("@")[2] == key[2].rpartition("@")[2]
            enough = v["pool_networks"] and len(others) >= v["pool_networks"]
            if enough and now - min(others) >= delay and apart and not own:
                self.passes(key, client, now)
                return "accept", "pool"
            counted = [
                net for (net, _, _), other in self.triplets.items() if not other["passed"] and other["expires"] >= now
            ]
            waiting, crowd = len(counted), counted.count(key[0])
            if not row and v["network_limit"] and crowd >= v["network_limit"]:
                return "defer", "crowded"
            if not row and v["pending_limit"] and waiting >= v["pending_limit"]:
                return "accept", "full"
        if not row:
            self.triplets[key] = {"first": now, "last": now, "early": 0, "passed": False, "expires": now + window}
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

    def used(self, row: dict[str, Any], now: int) -> None:
        if abs(now - row["last"]) >= min(3600, self.values["lifetime"] // 2):
            row.update(last=now, expires=now + self.values["lifetime"])

    def passes(self, key: tuple[str, str, str], client: str, now: int) -> None:
        expires = now + self.values["lifetime"]
        first = min(self.triplets[key]["first"], now) if key in self.triplets else now
        self.triplets[key] = {"first": first, "last": now, "passed": True, "expires": expires}
        if not self.values["client_passes"] or client.startswith(SHARED):
            return
        known = self.clients.get(client)
        fresh = known is None or now - known["last"] > self.values["lifetime"]
        passes = 1 if fresh or known is None else known["passes"] + 1
        self.clients[client] = {"passes": passes, "last": now, "strikes": 0, "struck": 0, "expires": expires}

    def rule(self, client: str, sender: str, recipient: str, name: str, helo: str, now: int) -> dict[str, Any] | None:
        matching = [
            (ORDER.index(kind), -specific, rule)
            for (kind, pattern), rule in self.rules.items()
            if (rule["expires"] is None or rule["expires"] > now)
            and (specific := self.matches(kind, pattern, client, sender, recipient, name, helo)) is not None
            and not (kind == "name" and rule["action"] == "allow" and self.values["verified_names"] == "no")
        ]
        return min(matching, key=lambda found: found[:2])[2] if matching else None

    def matches(
        self, kind: str, pattern: str, client: str, sender: str, recipient: str, name: str, helo: str
    ) -> int | None:
        if kind == "network":
            wanted, address = ipaddress.ip_network(pattern), ipaddress.ip_address(client)
            return wanted.prefixlen if address.version == wanted.version and address in wanted else None
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
        self.rules = {key: row for key, row in self.rules.items() if row["expires"] is None or row["expires"] >= now}
        self.expected = {key: expires for key, expires in self.expected.items() if expires >= now}
        self.messages = {key: last for key, last in self.messages.items() if last + 600 >= now}


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
        self.child.settings = {f"GREYCHECK_{name.upper()}": str(value) for name, value in values.items()}
        self.child.settings["GREYCHECK_DEADLINE"] = "60s"

    @rule(
        client=st.sampled_from(CLIENTS),
        sender=st.sampled_from(SENDERS),
        recipient=st.sampled_from(RECIPIENTS),
        name=st.sampled_from(NAMES),
        checkenv=st.booleans(),
        later=st.sampled_from([0, 0, 1, 2, 4, 5, 60, 70, 71, 300]),
    )
    def check(self, client: str, sender: str, recipient: str, name: str, checkenv: bool, later: int) -> None:
        self.now += later
        helo = "" if checkenv else name
        expected = self.model.check(client, sender, recipient, name, helo, self.now)
        environ = self.child.environ(client, TEST_NOW=str(self.now))
        if name:
            environ[b"TCPREMOTEHOST"] = name.encode()
        if checkenv:
            ran = self.child.run([self.place / "qmail-checkenv", sender, recipient], environ)
        else:
            envelope = {b"REMOTEMF": sender.encode(), b"REMOTERCPT": recipient.encode(), b"REMOTEHELO": name.encode()}
            ran = self.child.run([self.place / "greycheck"], environ | envelope)
        assert ran.verdict == (CODES[expected[0]], expected[1]), (ran, self.model.__dict__, self.now)

    @rule(
        client=st.sampled_from(CLIENTS[:3]),
        sender=st.sampled_from(SENDERS),
        recipients=st.lists(st.sampled_from(RECIPIENTS), min_size=1, max_size=4),
        port=st.sampled_from(["1", "1", "2"]),
        later=st.sampled_from([0, 60, 300, 301, 600, 601]),
    )
    def message(self, client: str, sender: str, recipients: list[str], port: str, later: int) -> None:
        """One message to several recipients, under qmail-spp."""
        self.now += later
        accepted = 0
        for number, recipient in enumerate(recipients, 1):
            told = port if number == 1 or accepted else ""
            expected = self.model.check(client, sender, recipient, "", "h.example", self.now, told, number == 1)
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

    @rule(
        client=st.sampled_from(CLIENTS[:5]), delays=st.sampled_from([[60], [300], [59, 1], [299, 1], [20, 20, 20, 20]])
    )
    def retry(self, client: str, delays: list[int]) -> None:
        """One sender who tries again and again: what makes a history deep."""
        for delay in [0, *delays]:
            self.check(client, SENDERS[0], RECIPIENTS[0], "", False, delay)

    @rule(recipient=st.sampled_from(RECIPIENTS))
    def from_everywhere(self, recipient: str) -> None:
        """One mail from a network after the other."""
        for client in CLIENTS[1:6]:
            self.check(client, SENDERS[3], recipient, "", False, 100)

    @rule(
        seconds=st.sampled_from([2, 69, 300, 599, 600, 3599, 3600, 7200, 7201, 86399, 86400, 86401, -5, -400, -90000])
    )
    def clock_jumps(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        for _table, _rows in expiry.expire(self.engine, self.now, batch=2, rest=lambda _seconds: None):
            pass
        self.model.expire(self.now)

    @rule(
        pattern=st.sampled_from(PATTERNS),
        action=st.sampled_from(["allow", "reject", "greylist"]),
        delay=st.sampled_from([None, 30, 3600]),
        lasts=st.sampled_from([None, 300]),
    )
    def put_rule(self, pattern: tuple[str, str], action: str, delay: int | None, lasts: int | None) -> None:
        kind, text = pattern
        own = delay if action == "greylist" else None
        expires = None if lasts is None else self.now + lasts
        self.model.rules[pattern] = {"action": action, "delay": own, "expires": expires}
        self.write(rules.key(kind, value(kind, text)), kind, written(kind, text), action, own, expires)

    @rule(pattern=st.sampled_from(PATTERNS))
    def remove_rule(self, pattern: tuple[str, str]) -> None:
        self.model.rules.pop(pattern, None)
        self.remove(rules.key(pattern[0], value(*pattern)))

    @rule(recipient=st.sampled_from(RECIPIENTS), domain=st.sampled_from(["", ".x.example", ".sub.x.example"]))
    def expect(self, recipient: str, domain: str) -> None:
        self.model.expected[recipient, domain] = self.now + 900
        key = rules.expectation_key(recipient.encode(), domain.encode())
        text = f"to:{recipient}" + (f" from:{domain}" if domain else "")
        self.write(key, "expect", text, "allow", None, self.now + 900)

    def write(self, key: bytes, kind: str, text: str, action: str, delay: int | None, expires: int | None) -> None:
        self.remove(key)
        values = {"match_key": digest(key), "kind": kind, "pattern": text, "action": action, "delay": delay}
        self.database.execute(
            insert(tables.rule).values(values | {"comment": "", "created_at": self.now, "expires_at": expires})
        )

    def remove(self, key: bytes) -> None:
        self.database.execute(delete(tables.rule).where(tables.rule.c.match_key == digest(key)))


def written(kind: str, text: str) -> str:
    """The pattern as an operator's command keeps it: a resident reads it again."""
    return text if kind == "network" else f"{FIELD_OF[kind]}:{text or '<>'}"


def value(kind: str, text: str) -> bytes:
    if kind != "network":
        return text.encode()
    wanted = ipaddress.ip_network(text)
    bits, number = (
        (32, int(wanted.network_address)) if wanted.version == 4 else address_bits(str(wanted.network_address))
    )
    return rules.network_value(bits, number, wanted.prefixlen)


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
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.parametrize(
    ("database", "histories"), [("sqlite", 30), ("postgresql", 6), ("mariadb", 6)], indirect=["database"]
)
def test_the_child_agrees_with_the_model(programs: Path, database: Database, engine: Engine, histories: int) -> None:
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

    def run(self, argv: Sequence[Path | bytes | str], environ: dict[bytes, bytes], **options: object) -> Ran:
        """The resident may count what it has answered only now: once it answers again it has done so, whatever comes next."""
        ran = super().run(argv, environ, **options)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.clock.parent / "socket"))
            connection.sendall(b"request=smtpd_access_policy\nprotocol_state=DATA\n\n")
            assert connection.recv(100) == b"action=DUNNO\n\n"
        return ran


@pytest.mark.parametrize(
    ("database", "histories"), [("sqlite", 40), ("postgresql", 8), ("mariadb", 8)], indirect=["database"]
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
