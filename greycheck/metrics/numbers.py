"""What a resident counts for Prometheus, in memory, from its start on."""

from time import time

from greycheck.history import OBSERVE
from greycheck.policy import ACCEPT, DEFER, Verdict


class Numbers:
    """Counts. The main thread adds; others may read at any time.

    ``verdicts`` are those answered, by verdict and reason; ``abandoned`` requests for whose answer
    nobody waited any more; ``unforeseen`` errors of the program. ``started`` is in seconds since
    1970.
    """

    def __init__(self) -> None:
        self.started = time()
        # The first error must be seen as an increase: its counters begin with 0.
        self.verdicts = {(ACCEPT, "error"): 0, (DEFER, "error"): 0}
        self.abandoned = 0
        self.unforeseen = 0

    def add(self, verdict: Verdict) -> None:
        """Counts VERDICT."""
        kind = OBSERVE if verdict.observed else verdict.action, verdict.reason
        self.verdicts[kind] = self.verdicts.get(kind, 0) + 1
