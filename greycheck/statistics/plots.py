"""Plots of figures as SVG elements for a page. matplotlib draws them, the page gives them colours.

Each has a title and a description for who does not see it. They load nothing: no script, no font.

Diagnostics: ``NoPlots`` where matplotlib is not installed.
"""

import io
import logging
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from greycheck.simulation.figures import BANDS, Simulation
from greycheck.simulation.telling import TITLES
from greycheck.statistics.figures import Figures, Row, share
from greycheck.statistics.text import plain
from greycheck.store.admin.history import STEPS, step
from greycheck.times import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The parts of a plot, by the colour with which they are drawn; the page has the real colour of
# each as a variable, one for light and one for dark.
COLOURS = {
    "ink": "#010203",
    "grid": "#010204",
    "attempts": "#010205",
    "deferred": "#010206",
    "passed": "#010207",
    "never": "#010208",
}

# The size of a plot, in inches of 72 points.
WIDTH, HEIGHT = 8.0, 3.0

# The delays that are marked below the distribution, in seconds.
MARKED = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 36 * 3600)

# Steps of a delay that are one bar.
JOINED = 4

# How many names a plot has.
NAMES = 10

_FONT = "DejaVu Sans"


class NoPlots(Exception):
    """The library that draws is not installed."""


@contextmanager
def drawing() -> Iterator[None]:
    """Makes the library ready: it reads no settings of anybody's. Raises NoPlots."""
    # What it finds out about fonts is kept nowhere: this user may have no directory for that.
    with (
        tempfile.TemporaryDirectory(prefix="greycheck-plots-") as directory,
        warnings.catch_warnings(),
    ):
        # Of letters that its own font lacks, where a browser has others.
        warnings.simplefilter("ignore")
        before = os.environ.get("MPLCONFIGDIR")
        os.environ["MPLCONFIGDIR"] = directory
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        try:
            try:
                import matplotlib
                import matplotlib.backends.backend_svg
                import matplotlib.figure
            except ImportError:
                raise NoPlots from None
            own = dict(matplotlib.rcParamsDefault)
            own.pop("backend", None)
            ink = COLOURS["ink"]
            own |= {
                "svg.fonttype": "none",
                "font.family": _FONT,
                "font.size": 10,
                "text.color": ink,
                "axes.labelcolor": ink,
                "axes.edgecolor": COLOURS["grid"],
                "axes.grid": True,
                "axes.grid.axis": "y",
                "axes.axisbelow": True,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "grid.color": COLOURS["grid"],
                "grid.linewidth": 0.6,
                "xtick.color": ink,
                "ytick.color": ink,
                "legend.frameon": False,
                "figure.constrained_layout.use": True,
                "lines.linewidth": 1.8,
            }
            with matplotlib.rc_context(own):
                yield
        finally:
            if before is None:
                del os.environ["MPLCONFIGDIR"]
            else:
                os.environ["MPLCONFIGDIR"] = before


def _drawn(
    name: str, title: str, words: str, draw: "Callable[[Axes], object]", height: float = HEIGHT
) -> str:
    """Returns the SVG element that DRAW draws, called TITLE and described by WORDS.

    NAME makes its ids unlike those of other plots of the page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.locator_params(axis="y", nbins=5, integer=True)
    draw(axes)
    _handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(loc="outside upper center", ncols=len(labels))
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(f"'{_FONT}'", "system-ui, sans-serif").replace(_FONT, "system-ui, sans-serif")
    for part, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{part})")
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    return (
        f'{opening} role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(plain(title))}</title>'
        f'<desc id="{name}-desc">{escape(plain(words))}</desc>{rest}'
    )


def _bars(axes: "Axes", names: Sequence[str], parts: Sequence[tuple[str, str, list[int]]]) -> None:
    """Draws stacked bars above NAMES; PARTS are label, colour and numbers."""
    below = [0] * len(names)
    places = range(len(names))
    for label, colour, numbers in parts:
        axes.bar(places, numbers, bottom=below, label=label, color=COLOURS[colour], width=0.8)
        below = [one + more for one, more in zip(below, numbers, strict=True)]
    _name_places(axes, names)


def _name_places(axes: "Axes", names: Sequence[str]) -> None:
    """Names some places, as many as there is room for."""
    every = max(1, -(-len(names) // 8))
    axes.set_xticks(range(0, len(names), every), labels=list(names[::every]))
    axes.set_xlim(-0.7, len(names) - 0.3)


def over_time(rows: Sequence[Row], passed: Sequence[int], unit: str) -> str:
    """Returns the plot of attempts, deferrals and PASSED triplets in ROWS, one for each UNIT."""

    def draw(axes: "Axes") -> None:
        places = range(len(rows))
        mark = "o" if len(rows) < 40 else ""
        for label, style, numbers in (
            ("attempts", "-", [row.attempts for row in rows]),
            ("deferred", "--", [row.deferred + row.observed for row in rows]),
            ("passed after a wait", "-.", list(passed)),
        ):
            colour = COLOURS[label.partition(" ")[0]]
            axes.plot(places, numbers, style, label=label, color=colour, marker=mark, markersize=3)
        _name_places(axes, [row.name for row in rows])
        axes.set_ylim(bottom=0)

    most = max(rows, key=lambda row: row.attempts)
    words = f"{sum(row.attempts for row in rows)} attempts; most in {most.name}: {most.attempts}."
    return _drawn("time", f"Attempts, deferrals and passes by {unit}", words, draw)


def distribution(figures: Figures) -> str:
    """Returns the plot of how long triplets waited that passed."""
    steps = _joined(figures.steps)
    first, last = min(steps), max(steps)
    places = list(range(first, last + 1))

    def draw(axes: "Axes") -> None:
        axes.bar(places, [steps[place] for place in places], width=0.85, color=COLOURS["passed"])
        _name_delays(axes, first, last)
        axes.set_ylabel("triplets")

    told = (figures.sums.delay or {}).items()
    words = "; ".join(f"{percent} of 100 within {span(seconds)}" for percent, seconds in told)
    return _drawn("delays", "How long those waited that passed", f"{words}.", draw)


def _joined(steps: Counter[int]) -> Counter[int]:
    found: Counter[int] = Counter()
    for one, number in steps.items():
        found[one // JOINED] += number
    return found


def _name_delays(axes: "Axes", first: int, last: int) -> None:
    marks = [
        (step(seconds) / JOINED - 0.5, span(seconds))
        for seconds in MARKED
        if first - 1 <= step(seconds) / JOINED <= last + 1
    ]
    if len(marks) < 2:
        marks = [
            (place, span(round(2 ** ((place + 1) * JOINED / STEPS)))) for place in (first, last)
        ]
    axes.set_xticks([place for place, _ in marks], labels=[name for _, name in marks])
    axes.set_xlim(first - 1, last + 1)


def never_back(rows: Sequence[tuple[str, int, int]], unit: str) -> str:
    """Returns the plot of ROWS: names of a UNIT, triplets tried once, and those tried again."""

    def draw(axes: "Axes") -> None:
        once, again = [row[1] for row in rows], [row[2] for row in rows]
        parts = [("tried once", "never", once), ("tried again", "attempts", again)]
        _bars(axes, [row[0] for row in rows], parts)
        axes.set_ylabel("triplets")

    words = f"{sum(row[1] for row in rows)} were tried once, {sum(row[2] for row in rows)} again."
    return _drawn("never", f"Triplets that never came back, by {unit}", words, draw)


def by_hour(rows: Sequence[Row]) -> str:
    """Returns the plot of attempts by hour of the day."""

    def draw(axes: "Axes") -> None:
        deferred = [row.deferred + row.observed for row in rows]
        rest = [row.attempts - number for row, number in zip(rows, deferred, strict=True)]
        parts = [("deferred", "deferred", deferred), ("others", "attempts", rest)]
        _bars(axes, [row.name for row in rows], parts)

    most = max(rows, key=lambda row: row.attempts)
    return _drawn("hours", "Attempts by hour of the day", f"Most from {most.name}:00 on.", draw)


def top(name: str, title: str, rows: Sequence[Row]) -> str:
    """Returns the plot of the busiest ROWS, called TITLE."""
    shown = list(rows)[:NAMES]

    def draw(axes: "Axes") -> None:
        places = range(len(shown))
        deferred = [row.deferred + row.observed for row in shown]
        rest = [row.attempts - number for row, number in zip(shown, deferred, strict=True)]
        axes.barh(places, deferred, color=COLOURS["deferred"], label="deferred")
        axes.barh(places, rest, left=deferred, color=COLOURS["attempts"], label="others")
        names = [plain(row.name) for row in shown]
        labels = [name if len(name) <= 34 else name[:16] + "…" + name[-16:] for name in names]
        axes.set_yticks(places, labels=[label.replace("$", r"\$") for label in labels])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.locator_params(axis="x", nbins=6, integer=True)

    first = shown[0]
    deferred = share(first.deferred + first.observed, first.attempts)
    words = f"First {first.name}: {first.attempts} attempts, {deferred} deferred."
    return _drawn(name, title, words, draw, height=1.1 + 0.3 * len(shown))


def change(before: Figures, after: Figures) -> str:
    """Returns the plot of the delays BEFORE and AFTER a change, as shares of all."""
    both = [("before", "deferred", "--", before), ("after", "passed", "-", after)]
    counted = [_joined(figures.steps) for *_rest, figures in both]
    first, last = min(map(min, counted)), max(map(max, counted))
    places = list(range(first, last + 1))

    def draw(axes: "Axes") -> None:
        for (label, colour, style, _figures), steps in zip(both, counted, strict=True):
            whole = sum(steps.values())
            shares: list[Any] = [100 * steps[place] / whole for place in places]
            axes.plot(places, shares, style, label=label, color=COLOURS[colour])
        _name_delays(axes, first, last)
        axes.set_ylabel("% of those that passed")
        axes.set_ylim(bottom=0)

    def p50(figures: Figures) -> str:
        return span((figures.sums.delay or {})[50])

    words = f"Half of all within {p50(before)} before, within {p50(after)} after."
    return _drawn("change", "Delays before and after the change", words, draw)


def simulated(found: Simulation) -> str:
    """Returns the plot of how long mails wait in the last two ways of a simulation."""
    last_two = list(zip(found.ways, found.total, strict=True))[-2:]
    names = [f"to {span(band)}" for band in BANDS] + ["longer", "never came"]

    def draw(axes: "Axes") -> None:
        for place, ((way, figures), colour) in enumerate(
            zip(last_two, ("attempts", "passed"), strict=True)
        ):
            at = [number + (place - 0.5) * 0.4 for number in range(len(names))]
            heights = [*figures.bands, figures.never]
            axes.bar(at, heights, width=0.4, label=TITLES[way], color=COLOURS[colour])
        axes.set_xticks(range(len(names)), labels=names)
        axes.set_ylabel("mails")

    words = "; ".join(
        f"{TITLES[way]}: {figures.delayed} of {figures.mails} mails wait, {span(figures.mean)} on"
        f" average, {figures.never} never come"
        for way, figures in last_two
    )
    title = f"How long mails wait: {' and '.join(TITLES[way] for way, _ in last_two)}"
    return _drawn("simulated", title, f"{words}.", draw)
