"""What a simulation found, in words and as a table, for a terminal and for a report."""

from collections.abc import Iterator

from greycheck.settings import duration_text
from greycheck.simulation.figures import BANDS, CURRENT, LOGGED, OTHER, Figures, Simulation
from greycheck.times import local_bare, span

# What a simulation cannot know.
STOOD_IN = (
    "Of {mails} mails the log ends before these settings let them pass: published schedules say"
    " when their senders would have tried again. Such a sender is taken to try again, a spammer"
    " too."
)

# The titles of what is compared.
TITLES = {LOGGED: "as logged", CURRENT: "current settings", OTHER: "simulated"}

FATES = {
    "at_once": "passed at once",
    "delayed": "passed after a wait",
    "never": "never came again",
    "refused": "refused",
    "waits": "waited at the log's end",
}


def about(found: Simulation) -> Iterator[tuple[str, str]]:
    """Yields what was simulated, as name and text: the log and its time, settings and rules."""
    if found.first is not None and found.last is not None:
        yield "log", f"{local_bare(found.first)} to {local_bare(found.last)}"
    left_out = ""
    if found.exempt or found.unusable:
        left_out = f"; left out: {found.exempt} exempt, {found.unusable} without time or client"
    yield "lines", f"{found.lines}, {found.checks} of them checks{left_out}"
    if found.known:
        yield "before", f"{found.known} clients, triplets and domains were known before it began"
    for name, before, after in found.settings:
        yield "setting", f"{name}: {before or 'none'} now, {after or 'none'} simulated"
    if found.rules is not None:
        yield "rules", f"{found.rules}, instead of those that the log names"


def stood_in(found: Simulation) -> str:
    """Returns of how many mails schedules stand in, and what that means; empty for none."""
    mails = found.total[-1].stood_in
    return STOOD_IN.format(mails=mails) if mails else ""


def table(found: Simulation) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows: the figures of each way, and the difference between the last two."""
    rows = []
    for name, values, is_time in _rows(found.total):
        difference = values[-1] - values[-2]
        written = span if is_time else str
        sign = "-" if difference < 0 else "+"
        shown = f"{sign}{written(abs(difference))}" if difference else ""
        rows.append([name, *map(written, values), shown])
    return ["", *(TITLES[way] for way in found.ways), "difference"], rows


def _rows(total: list[Figures]) -> Iterator[tuple[str, list[int], bool]]:
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
