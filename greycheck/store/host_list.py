"""The hosts of a server database for one check: which to ask next, and what a fault says of one.

``judge`` is a table. It says what a fault means in a phase of the check: how the host is marked for
other checks (``breaker``), and where to go on. It knows neither times nor connections: ``server``
does, and a host that had no time to answer is not marked there, for instance.

``HostList`` keeps the order of the hosts, the marks, and the words about them.
"""

from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.drivers.faults import (
    BUSY,
    CONFLICT,
    GONE,
    LOCKED,
    OTHER,
    OURS,
    READ_ONLY,
    SCHEMA,
    SILENT,
    UNUSABLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.store.url import Host, Server

# The phases of a check: it connects; it reads; it writes to a row that another may hold; it writes
# what nobody can hold (a new row, a commit), so that the host is to blame where that does not end.
CONNECTING, READING, WRITING_HELD, WRITING_FREE = range(4)

# Where a check goes on after a fault.
NOWHERE = "nowhere"  # another host would say the same
HERE = "here"  # on this connection, if there is time
HERE_ONCE = "here once"  # on another connection to this host, once; then elsewhere
ELSEWHERE = "elsewhere"  # on the next host

# What a fault means, by its kind: how its host is marked in each phase ("" for not at all), and
# where a check goes on, first while it connects and then in all other phases.
_TABLE = {
    # kind:    (connecting, reading, held, free), (connecting, else)
    GONE: ((DOWN, DOWN, "", STUCK), (ELSEWHERE, HERE_ONCE)),
    UNUSABLE: ((DOWN, DOWN, "", STUCK), (ELSEWHERE, ELSEWHERE)),
    SILENT: ((DOWN, DOWN, "", STUCK), (ELSEWHERE, ELSEWHERE)),
    BUSY: ((DOWN, DOWN, "", STUCK), (HERE, ELSEWHERE)),
    READ_ONLY: ((DOWN, STUCK, STUCK, STUCK), (ELSEWHERE, ELSEWHERE)),
    LOCKED: ((DOWN, DOWN, "", STUCK), (ELSEWHERE, HERE)),
    CONFLICT: ((DOWN, "", "", ""), (ELSEWHERE, HERE)),
    SCHEMA: ((DOWN, "", "", ""), (ELSEWHERE, NOWHERE)),
    OTHER: ((DOWN, "", "", ""), (ELSEWHERE, NOWHERE)),
    OURS: (("", "", "", ""), (NOWHERE, NOWHERE)),
}


def judge(kind: str, phase: int) -> tuple[str, str]:
    """Returns how a fault of KIND in PHASE marks its host, or "", and where the check goes on."""
    marks, ways = _TABLE[kind]
    return marks[phase], ways[phase != CONNECTING]


class HostList:
    """The hosts of SERVER for one check after the other, with their marks in DIRECTORY.

    ``left``    those to ask yet, in their order
    ``reason``  why the last one is of no use, for the log
    ``notes``   lines for the log: which host does not answer, and which one answers again
    """

    def __init__(self, server: "Server", directory: str) -> None:
        self._all = server.hosts
        self.breaker = Breaker(directory, server)
        self.reason = "there was no time left to ask the database"
        self.start()

    def start(self) -> None:
        """Begins with the first host again, for another check."""
        self.notes: list[str] = []
        self._came_back = False
        due = [host for host in self._all if self.breaker.is_due(host, DOWN)]
        for host in self._all:
            if host not in due:
                self.reason = self._unasked(host)
        # Those that take writes first.
        stuck = [host for host in due if not self.breaker.is_due(host, STUCK)]
        self.left = [host for host in due if host not in stuck] + stuck

    def first(self) -> "Host | None":
        """Returns the next host that this check may ask; None where there is none.

        It stays in ``left``. Those before it that another check asks just now leave it.
        """
        while self.left and not self.breaker.claim(self.left[0], DOWN):
            self.reason = self._unasked(self.left.pop(0))
        return self.left[0] if self.left else None

    def take(self) -> None:
        """The first host is being asked."""
        del self.left[0]

    def come_back(self, host: "Host") -> bool:
        """Puts HOST, whose connection was lost, first again. Returns False where it was before."""
        if self._came_back:
            return False
        self._came_back = True
        self.left.insert(0, host)
        return True

    def release(self) -> None:
        """A check is over: others may ask the marked hosts that it did not come to an end with."""
        self.breaker.release()

    def takes_writes(self, host: "Host") -> bool:
        """Whether HOST is not marked for its writes, or this check is the one to try it again."""
        if self.breaker.claim(host, STUCK):
            return True
        self.reason = f"{host} has taken no writes for {self._since(host, STUCK)}: not tried"
        return False

    def mark(self, host: "Host", kind: str, why: str) -> None:
        """Marks HOST as DOWN or STUCK for other checks. WHY is for the log."""
        what = f"{host} {'takes no writes' if kind == STUCK else 'is not asked any more'}: {why}"
        try:
            if self.breaker.set(host, kind):
                self.notes.append(f"warning {what}")
        except OSError as error:
            untold = f"others cannot be told: {self.breaker.directory}: {error.strerror}"
            self.notes.append(f"warning {what}; {untold}")

    def answered(self, host: "Host", kind: str) -> None:
        """Takes away the mark of KIND that HOST had: it did what the mark says it does not."""
        seconds = self.breaker.clear(host, kind)
        if seconds is not None:
            what = "takes writes" if kind == STUCK else "answers"
            self.notes.append(f"note {host} {what} again after {seconds:.0f}s")

    def _unasked(self, host: "Host") -> str:
        return f"{host} has not answered for {self._since(host, DOWN)}: not asked"

    def _since(self, host: "Host", kind: str) -> str:
        return f"{self.breaker.since(host, kind) or 0:.0f}s"
