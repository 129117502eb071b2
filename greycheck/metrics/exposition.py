"""Names what was counted in the store, for Prometheus, by its own library."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from greycheck import __version__
from greycheck.metrics.counted import Counted, Spooled
from greycheck.policy import ACCEPT, DEFER
from greycheck.store.admin.history import STEPS
from greycheck.store.compiled_sqlite import REVISION

# The upper bounds of delays, as powers of two in seconds: 64 s to three days. A step of the totals
# ends at each of them, so the numbers are exact.
POWERS = range(6, 19)

Mark = tuple[str, str, float]


class Families:
    """Collects what was COUNTED (None: the store cannot be read), MARKS, and what is SPOOLED."""

    def __init__(
        self, counted: Counted | None, marks: Sequence[Mark] = (), spooled: Spooled | None = None
    ) -> None:
        self._counted = counted
        self._marks = marks
        self._spooled = spooled

    def collect(self) -> Iterator[Metric]:
        """Yields each metric."""
        yield gauge(
            "greycheck_build_info", "This program.", 1, version=__version__, schema=REVISION
        )
        is_up = self._counted is not None
        yield gauge(
            "greycheck_store_up",
            "1 where the store could be read, or is still to be made, else 0.",
            is_up,
        )
        if self._spooled is not None:
            yield from _spool(self._spooled)
        marked = GaugeMetricFamily(
            "greycheck_server_mark_seconds",
            "How long a host of the database is marked as down or stuck here; 0: not marked.",
            labels=("host", "kind"),
        )
        for host, kind, seconds in self._marks:
            marked.add_metric((host, kind), seconds)
        yield marked
        if self._counted is not None:
            yield from _totals(self._counted)
            yield from _rows(self._counted)


def _spool(spooled: Spooled) -> Iterator[Metric]:
    yield gauge(
        "greycheck_spool_bytes",
        "Counts of this host that greycheck expire has not added to the store.",
        spooled.size,
    )
    if spooled.oldest is not None:
        yield gauge(
            "greycheck_spool_oldest_timestamp_seconds",
            "The time of the first of these counts.",
            spooled.oldest,
        )


def text(families: Families) -> str:
    """Returns FAMILIES in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(families)
    return generate_latest(registry).decode()


def gauge(name: str, meaning: str, value: float, **labels: str) -> Metric:
    """Returns the gauge NAME with one VALUE and its LABELS."""
    family = GaugeMetricFamily(name, meaning, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family


def _totals(counted: Counted) -> Iterator[Metric]:
    """What only grows."""
    verdicts = CounterMetricFamily(
        "greycheck_verdicts_total",
        "Attempts that were decided, by all hosts that share the store.",
        labels=("verdict", "reason"),
    )
    # The first error must be seen as an increase: its counters begin with 0.
    begin = {(ACCEPT, "error"): 0, (DEFER, "error"): 0}
    for (verdict, reason), number in sorted((begin | counted.verdicts).items()):
        verdicts.add_metric((verdict, reason), number)
    yield verdicts
    buckets = [
        (str(float(2**power)), _until(counted, power * STEPS))  # as Prometheus writes it
        for power in POWERS
    ]
    delays = HistogramMetricFamily(
        "greycheck_delay_seconds", "How long after its first attempt a triplet passed."
    )
    delays.add_metric((), [*buckets, ("+Inf", counted.waited.total())], counted.seconds)
    yield delays


def _until(counted: Counted, last: int) -> int:
    return sum(number for step, number in counted.waited.items() if step <= last)


def _rows(counted: Counted) -> Iterator[Metric]:
    """What is so now."""
    numbers = counted.summary
    yield gauge(
        "greycheck_store_schema_info", "The schema of the store.", 1, revision=counted.revision
    )
    for name, meaning, value in (
        ("greycheck_waiting_triplets", "Triplets that wait.", numbers.waiting),
        ("greycheck_due_triplets", "Triplets that wait, and would pass now.", numbers.due),
        ("greycheck_passed_triplets", "Triplets that have passed.", numbers.passed),
        ("greycheck_known_clients", "Clients whose mail passes.", numbers.known),
        (
            "greycheck_refused_clients",
            "Clients that are refused for hasty retries.",
            numbers.refused,
        ),
        (
            "greycheck_known_domains",
            "Domains whose mail passes from their networks.",
            numbers.domains,
        ),
        ("greycheck_resolved_domains", "Domains whose SPF names networks.", numbers.resolved),
        ("greycheck_failing_domains", "Domains for which DNS had no answer last.", numbers.failing),
        ("greycheck_rules", "Rules that count.", numbers.rules),
        ("greycheck_providers", "Providers that are let in.", numbers.providers),
        ("greycheck_correspondents", "Pairs whose answers are let in.", numbers.correspondents),
    ):
        yield gauge(name, meaning, value)
    if counted.oldest is not None:
        yield gauge(
            "greycheck_oldest_waiting_timestamp_seconds",
            "The first attempt of what waits longest.",
            counted.oldest,
        )
    expired = GaugeMetricFamily(
        "greycheck_expire_timestamp_seconds",
        "When a host last ran greycheck expire to its end.",
        labels=("mx",),
    )
    for host, moment in sorted(counted.expired.items()):
        expired.add_metric((host,), moment)
    yield expired
    answered = GaugeMetricFamily(
        "greycheck_provider_answer_timestamp_seconds",
        "When DNS last told the networks of a provider; 0: never.",
        labels=("provider",),
    )
    for name, moment in sorted(counted.answered.items()):
        answered.add_metric((name,), moment)
    yield answered
