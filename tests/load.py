"""Children at a steady rate, as a busy mail server forks them, and what may not happen to any of
them.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread

from greycheck import settings
from greycheck.envelope import Envelope, triplet
from greycheck.policy import Change, TripletRow
from greycheck.store import connect
from greycheck.store.base import Asked
from tests.support import ACCEPTED, DEFERRED

# Children a second, as far as the machine can: those that compute are MOST at most, those that wait
# do not count.
RATE = 50
MOST = 15
DEADLINE = 2  # seconds
CLIENT = "192.0.2.1"
RECIPIENT = b"bob@example.net"

# What children of each kind may answer. Where the store cannot be asked, on_error is to accept.
MAY = {
    "known": {(ACCEPTED, "known"), (ACCEPTED, "error")},
    "due": {(ACCEPTED, "retry"), (ACCEPTED, "known"), (ACCEPTED, "error")},
    "early": {(DEFERRED, "early"), (ACCEPTED, "error")},
    "new": {(DEFERRED, "new"), (DEFERRED, "early"), (ACCEPTED, "error")},
}
KINDS = tuple(MAY)


class One:
    """One child: what it was asked, on which MX host, and how it ended."""

    def __init__(
        self,
        kind: str,
        sender: bytes,
        mx: int,
        command: list[str],
        environ: dict[str, str],
        log: Path,
    ) -> None:
        self.kind = kind
        self.mx = mx
        self.sender = sender
        self.log_file = log
        self.started = time.monotonic()
        self.took = 0.0
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stderr=stderr
            )

    def has_ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self.took = time.monotonic() - self.started
        return True

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def verdict(self) -> tuple[int, str]:
        found = re.search(r"^greycheck: \w+ reason=(\S+)", self.log, re.MULTILINE)
        return self.process.returncode, found[1] if found else ""

    def __repr__(self) -> str:
        return f"<{self.kind} {self.verdict} {self.took:.2f}s {self.log!r}>"


class Load:
    """A steady load on the store at URLS, one for each MX host, in turn.

    Each host has a state directory below PLACE.
    """

    def __init__(self, program: Path, urls: Iterable[str], place: Path) -> None:
        self.environs = []
        for number, url in enumerate(urls):
            state = place / f"state-{number}"
            state.mkdir()
            self.environs.append(
                {
                    "PATH": os.defpath,
                    "GREYCHECK_CONFIG": "/dev/null",
                    "GREYCHECK_DATABASE": url,
                    "GREYCHECK_STATE_DIRECTORY": str(state),
                    "GREYCHECK_DEADLINE": f"{DEADLINE}s",
                    "GREYCHECK_CLIENT_PASSES": "0",
                    "GREYCHECK_NETWORK_LIMIT": "0",
                    "TCPREMOTEIP": CLIENT,
                    "REMOTERCPT": RECIPIENT.decode(),
                }
            )
        self.program = str(program / "greycheck")
        self.place = place
        self.ended: list[One] = []
        self.running: list[One] = []
        self.number = 0
        self.stopping = Event()
        self.slowest_when_calm = 0.0

    def prepare(self, rows: int = 100) -> None:
        """Rows of ROWS triplets of each kind that has one."""
        now = int(time.time())
        environ = {key.encode(): value.encode() for key, value in self.environs[0].items()}
        with closing(connect(settings.read(environ), 60)) as store:
            for number in range(rows):
                for kind, row in (
                    ("known", TripletRow(now - 90000, now - 600, 0, 1, now - 80000)),
                    ("due", TripletRow(now - 3600, now - 3600)),
                    ("early", TripletRow(now, now)),
                ):
                    envelope = Envelope(
                        "", CLIENT, b"%s%d@example.org" % (kind.encode(), number), RECIPIENT
                    )
                    asked = Asked(envelope, triplet(envelope, 24, 64))
                    assert store.save(asked, [Change(None, row, now + 90000)], patient=True)

    def start_one(self, kind: str = "") -> None:
        """A child of KIND, or of each in turn."""
        kind = kind or KINDS[self.number % len(KINDS)]
        # Of what is due there is one row each; a new one is new.
        which = self.number // len(KINDS) % 100 if kind != "new" else self.number
        sender = b"%s%d@example.org" % (kind.encode(), which)
        mx = self.number % len(self.environs)
        environ = {**self.environs[mx], "REMOTEMF": sender.decode()}
        log = self.place / f"log-{self.number}"
        self.number += 1
        self.running.append(One(kind, sender, mx, [self.program], environ, log))

    def reap(self) -> None:
        for one in [one for one in self.running if one.has_ended()]:
            self.running.remove(one)
            self.ended.append(one)

    def all_have_ended(self) -> bool:
        self.reap()
        return not self.running

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            if time.monotonic() >= due and self.computing() < MOST:
                self.start_one()
                due = max(due + 1 / RATE, time.monotonic() - 0.1)
            self.reap()
            time.sleep(0.002)
        while self.running:
            self.reap()
            time.sleep(0.002)

    def computing(self) -> int:
        """How many children are at it, and do not wait for a server that does not answer."""
        quick = 2 * self.slowest_when_calm or 60
        return sum(time.monotonic() - one.started < quick for one in self.running)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        thread = Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join()

    def calm(self) -> None:
        """Waits for a second's worth of children that decide as ever, and remembers how long they
        take on this machine.
        """
        before = len(self.ended)

        def is_calm() -> bool:
            last = self.ended[max(before, len(self.ended) - RATE) :]
            return len(last) == RATE and not any(one.verdict[1] == "error" for one in last)

        self.wait(is_calm, "children decide as ever")
        self.slowest_when_calm = max(one.took for one in self.ended[-RATE:])

    def wait_recovered(self) -> None:
        """Waits until as many in a row as there are kinds of children decide as ever."""

        def recovered() -> bool:
            last = self.ended[-2 * len(KINDS) :]
            return len(last) == 2 * len(KINDS) and all(
                one.verdict[1] != "error" and "unrecorded" not in one.log for one in last
            )

        self.wait(recovered, "children decide as ever")

    def wait_errors(self, number: int = 1) -> None:
        """Waits until NUMBER children more than now could not ask the store."""
        before = len(self.ended)
        self.wait(
            lambda: sum(one.verdict[1] == "error" for one in self.ended[before:]) >= number,
            "children fail",
        )

    def wait(self, happened: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < end, (
                f"{what}: not within 60 seconds; the last: {self.ended[-5:]}"
            )
            time.sleep(0.01)

    # --- what may not happen ----------------------------------------------------------------------

    def wrong(self) -> list[One]:
        return [one for one in self.ended if one.verdict not in MAY[one.kind]]

    def late(self) -> list[One]:
        """Those that took longer than the deadline and half a second, and than a quiet check takes
        on this machine.
        """
        return [one for one in self.ended if one.took > DEADLINE + 0.5 + self.slowest_when_calm]

    def lost(self, senders: set[str]) -> list[One]:
        """Those that were deferred as new, and are not among the SENDERS of the store's rows."""
        return [
            one
            for one in self.ended
            if one.verdict == (DEFERRED, "new") and one.sender.decode() not in senders
        ]

    def said(self, words: str, mx: int | None = None) -> list[One]:
        """Those that said WORDS, on that MX host alone where one is given."""
        return [one for one in self.ended if words in one.log and mx in (None, one.mx)]
