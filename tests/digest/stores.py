"""Stores in which mail waits, as checks would have left it, with what is known about it."""

import time
from dataclasses import dataclass, field

from sqlalchemy import insert

from greycheck.envelope import Envelope, triplet
from greycheck.log import show_address
from greycheck.store.base import Asked, domain_key
from greycheck.store.schema import tables
from greycheck.store.waiting import PROVIDERS, correspondent_key, packed_range
from tests.support import Database

HOUR, DAY = 3600, 86400


@dataclass
class Waiting:
    """Fills DATABASE at NOW."""

    database: Database
    now: int = field(default_factory=lambda: int(time.time()))

    def mail(
        self,
        sender: bytes = b"alice@example.org",
        recipient: bytes = b"bob@example.net",
        client: str = "192.0.2.1",
        ago: int = 7 * HOUR,
        last: int | None = None,
        early: int = 0,
        passed: int | None = None,
        authorised: int = 0,
        left: int | None = None,
    ) -> str:
        """A mail whose first attempt was AGO, its last one LAST, and that PASSED, if it did, so
        many seconds ago. Returns its key in digits.
        """
        asked = asked_for(sender, recipient, client)
        shown = asked.shown
        at = self.now - (ago if last is None else last)
        row = {
            "triplet_key": asked.key,
            "network": asked.triplet.network,
            "sender": shown[0],
            "recipient": shown[1],
            "first_attempt": self.now - ago,
            "last_attempt": at if passed is None else self.now - passed,
            "early_attempts": early,
            "passes": int(passed is not None),
            "passed_at": None if passed is None else self.now - passed,
            "expires_at": self.now - ago + 2 * DAY if passed is None else self.now + 30 * DAY,
            "origin": asked.origin,
            "authorised": authorised,
        }
        if left is not None:
            row["expires_at"] = self.now + left
        self.database.execute(insert(tables.triplet), [row])
        return asked.key.hex()

    def domain(self, name: bytes, ago: int = DAY, passes: int = 1) -> None:
        self._put(
            tables.domain,
            domain_key(name),
            show_address(name),
            passes,
            self.now - 2 * DAY,
            self.now - ago,
            self.now + DAY,
        )

    def client(self, address: str, ago: int = DAY, passes: int = 1) -> None:
        self._put(
            tables.client, address, passes, self.now - 2 * DAY, self.now - ago, self.now + DAY, 0, 0
        )

    def spf(self, name: bytes, *networks: str, state: str = "found", per_client: int = 0) -> None:
        """What NAME says: it sends from NETWORKS."""
        now = self.now
        key, shown = domain_key(name), show_address(name)
        answer = (key, shown, state, "", per_client, now, now, 0, now + HOUR, now + DAY)
        self._put(tables.spf, *answer)
        for network in networks:
            self.range(key, network, "spf", shown)

    def provider(self, name: str, network: str) -> None:
        now = self.now
        key = domain_key(name.encode())
        self._put(tables.provider, key, name, "", network, now, now, now, "", None)
        self.range(PROVIDERS, network, "provider", name)

    def range(self, key: bytes, network: str, source: str, name: str, left: int = DAY) -> None:
        first, last = packed_range(network)
        self._put(tables.authorised, key + first, last, source, name, self.now, self.now + left)

    def correspondent(self, outside: bytes, user: bytes, left: int = DAY) -> None:
        self._put(
            tables.correspondent,
            correspondent_key(outside, user),
            outside.decode(),
            user.decode(),
            self.now - DAY,
            self.now - 3 * HOUR,
            self.now + left,
        )

    def _put(self, table: tables.Table, *row: object) -> None:
        names = [column.name for column in table.columns]
        self.database.execute(insert(table), [dict(zip(names, row, strict=True))])


def asked_for(sender: bytes, recipient: bytes, client: str) -> Asked:
    """What a check asks a store for at such an attempt."""
    envelope = Envelope("smtpextfork", client, sender, recipient)
    return Asked(envelope, triplet(envelope, 24, 64))
