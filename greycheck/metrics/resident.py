"""Names what a resident has counted in memory, for Prometheus, by its own library."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from greycheck import __version__
from greycheck.metrics.exposition import gauge
from greycheck.metrics.numbers import Numbers
from greycheck.store.compiled_sqlite import REVISION


class Counted(Protocol):
    """What a resident tells; read in another thread than its own."""

    @property
    def numbers(self) -> Numbers:
        """What was counted."""

    @property
    def waiting(self) -> int:
        """How many requests the store has in hand."""

    @property
    def peers(self) -> int:
        """How many clients are connected."""

    @property
    def lost(self) -> int:
        """How many lines of the log were lost."""


class Families:
    """Collects what is COUNTED. Nothing of it asks the store."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """Yields each metric."""
        counted, numbers = self._counted, self._counted.numbers
        yield gauge(
            "greycheck_resident_info", "The program that runs.", 1, version=__version__,
            schema=REVISION,
        )  # fmt: skip
        yield gauge(
            "greycheck_resident_start_time_seconds", "When the resident started.", numbers.started
        )
        verdicts = CounterMetricFamily(
            "greycheck_resident_verdicts_total",
            "Requests that were answered; reason error is on_error's.",
            labels=("verdict", "reason"),
        )
        # A copy is one step of the interpreter: the main thread may add meanwhile.
        for (verdict, reason), number in sorted(numbers.verdicts.copy().items()):
            verdicts.add_metric((verdict, reason), number)
        yield verdicts
        for name, meaning, number in (
            (
                "greycheck_resident_abandoned_total",
                "Requests whose client had gone before they were decided.",
                numbers.abandoned,
            ),
            (
                "greycheck_resident_unforeseen_errors_total",
                "Errors of the program itself; the log has each.",
                numbers.unforeseen,
            ),
            (
                "greycheck_resident_log_lines_lost_total",
                "Lines that the log did not take.",
                counted.lost,
            ),
        ):
            yield CounterMetricFamily(name, meaning, value=number)
        yield gauge(
            "greycheck_resident_queue_requests",
            "Requests that the store has in hand.",
            counted.waiting,
        )
        yield gauge("greycheck_resident_connections", "Clients connected.", counted.peers)
