"""Tells Prometheus what a resident has counted, at the addresses of ``metrics_listen``.

Where there is none, nothing of it is loaded. What fails here costs a line of the log, and nothing
of the resident.
"""

from typing import TYPE_CHECKING

from greycheck import log
from greycheck.resident.journal import Journal

if TYPE_CHECKING:
    from greycheck.metrics.resident import Counted


def start(addresses: tuple[tuple[str, int], ...], counted: "Counted", journal: Journal) -> None:
    """Answers at ADDRESSES with what is COUNTED; tells JOURNAL where, or why it does not."""
    for host, port in addresses:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            from greycheck.metrics import listener

            listener.listen((host, port), counted)
        except ImportError as error:
            from greycheck.store.admin.engine import installing_library

            said = f"needs prometheus_client ({error}): {installing_library('prometheus_client')}"
            journal.add(log.line(f"warning metrics_listen: {said}"))
            return
        except (OSError, OverflowError, RuntimeError) as error:
            said = getattr(error, "strerror", None) or str(error)
            journal.add(log.line(f"warning metrics_listen: {shown}: {said}: no metrics there"))
        else:
            journal.add(log.line(f"note metrics at http://{shown}/metrics"))
    journal.flush()
