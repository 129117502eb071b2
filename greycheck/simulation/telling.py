"""What a simulation found, in words: the lines of its table, on a terminal and in a report."""

from collections.abc import Iterator

from greycheck.settings import duration_text
from greycheck.simulation.figures import BANDS, CURRENT, LOGGED, OTHER, Figures

# The titles of what is compared.
TITLES = {LOGGED: "as logged", CURRENT: "current settings", OTHER: "simulated"}

FATES = {
    "at_once": "passed at once",
    "delayed": "passed after a wait",
    "never": "never came again",
    "refused": "refused",
    "waits": "waited at the log's end",
}


def rows(total: list[Figures]) -> Iterator[tuple[str, list[int], bool]]:
    """Yields each line of the table: its name, its value in each way, whether these are seconds.

    What is 0 in each way is left out, but for the fates that each mail may have.
    """
    yield "mails", [figures.mails for figures in total], False
    for fate, name in FATES.items():
        values = [getattr(figures, fate) for figures in total]
        if any(values) or fate not in ("refused", "waits"):
            yield name, values, False
        if fate == "delayed":
            for place, band in enumerate((*BANDS, 0)):
                values = [figures.bands[place] for figures in total]
                if any(values):
                    yield f"  within {duration_text(band)}" if band else "  later", values, False
    yield "attempts deferred", [figures.deferrals for figures in total], False
    values = [figures.stood_in for figures in total]
    if any(values):
        yield "by a schedule", values, False
    yield "mean wait", [figures.mean for figures in total], True
    yield "longest wait", [figures.longest for figures in total], True
