"""A report as one HTML file, which loads nothing: no script, no font, no picture from elsewhere."""

from collections.abc import Iterable, Iterator
from html import escape

from greycheck.settings import Settings
from greycheck.simulation.figures import Simulation
from greycheck.statistics import parts, plots, text
from greycheck.statistics.figures import Figures
from greycheck.statistics.parts import Table
from greycheck.store.admin.history import AGAIN, ONCE

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d1d1f; --soft: #55555c;
  --grid: #c9c9d0; --attempts: #2362a8; --deferred: #b3560a; --passed: #1d7a3e; --never: #a3224e; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --ink: #ececf0; --soft: #b4b4bd;
  --grid: #4a4b52; --attempts: #7db4f0; --deferred: #f0a860; --passed: #74cf92;
  --never: #f08cb0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p.period, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; }
dd { margin: 0; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 0.15rem 0.9rem 0.15rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; font-weight: normal; white-space: normal;
  overflow-wrap: anywhere; }
thead th, thead th:first-child { font-weight: bold; }
summary { cursor: pointer; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4rem; } }
@media print {
  :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --soft: #333333; --grid: #aaaaaa;
    --attempts: #2362a8; --deferred: #b3560a; --passed: #1d7a3e; --never: #a3224e; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  svg { min-width: 0; }
  section { break-inside: avoid; } details:not([open]) { display: none; } }
"""

_SECURITY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _shown(words: str) -> str:
    """Returns WORDS for a page: nothing in them is markup, hides or turns text."""
    return escape(text.plain(words))


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = (f"<dt>{_shown(name)}</dt><dd>{_shown(words)}</dd>\n" for name, words in facts)
    return f"<dl>\n{''.join(rows)}</dl>\n"


def _table(table: Table, caption: bool) -> str:
    if not table.rows:
        return f"<p>{_shown(table.words or 'Nothing.')}</p>"
    head = "".join(f'<th scope="col">{_shown(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{_shown(row[0])}</th>'
        + "".join(f"<td>{_shown(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    title = f"<caption>{_shown(table.title)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def _section(table: Table, svg: str = "", is_long: bool = False) -> str:
    """Returns a section of the page: a plot, and its numbers as TABLE, folded if they are many."""
    about = _facts(table.about) if table.about else ""
    note = f"\n<p>{_shown(table.note)}</p>" if table.note else ""
    numbers = _table(table, bool(svg))
    if svg and is_long and table.rows:
        numbers = f"<details><summary>The numbers</summary>{numbers}</details>"
    plot = f'<div class="wide">{svg}</div>\n' if svg else ""
    return f"<section><h2>{_shown(table.title)}</h2>\n{about}{plot}{numbers}{note}\n</section>\n"


def page(
    figures: Figures,
    settings: Settings,
    made: str,
    changed: "tuple[int, Figures, Figures] | None" = None,
    simulation: Simulation | None = None,
) -> str:
    """Returns the page about FIGURES, MADE then, about what CHANGED on a day, and a SIMULATION.

    Raises plots.NoPlots.
    """
    with plots.drawing():
        body = "".join(_sections(figures, settings, changed))
        if simulation is not None:
            body += _section(parts.simulated(simulation), plots.simulated(simulation))
    title = f"Greylisting, {text.period(figures)}"
    summary = _facts(text.summary(figures, settings))
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_SECURITY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{_shown(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f'<body>\n<header><h1>{_shown(title)}</h1>\n<p class="period">{_shown(made)}</p></header>\n'
        f"<main>\n<section><h2>Summary</h2>\n{summary}</section>\n{body}</main>\n"
        "</body>\n</html>\n"
    )


def _sections(
    figures: Figures, settings: Settings, changed: "tuple[int, Figures, Figures] | None"
) -> Iterator[str]:
    if not figures.sums.attempts and not figures.sums.never:
        yield "<section><p>Nothing was counted in these days.</p></section>\n"
        return
    unit, found = parts.periods(figures)
    rows = [one.figures.named(one.name) for one in found]
    passed = [one.figures.passed for one in found]
    by_period = parts.of_periods(unit, found)
    by_period.title = f"Attempts, deferrals and passes by {unit}"
    yield _section(by_period, plots.over_time(rows, passed, unit), is_long=True)
    if changed is not None:
        day, before, after = changed
        svg = plots.change(before, after) if before.passed and after.passed else ""
        yield _section(parts.change(day, before, after), svg)
    svg = plots.distribution(figures) if figures.passed else ""
    yield _section(parts.delays(figures), svg)
    lost = parts.never(figures)
    named = [(one.name, one.figures.never[ONCE], one.figures.never[AGAIN]) for one in found]
    yield _section(lost, plots.never_back(named, unit) if lost.rows else "")
    yield _section(parts.let_in(figures))
    hours = figures.by_hour()
    table = Table(
        "Attempts by hour of the day",
        ("hour", "attempts", "deferred"),
        [[row.name, str(row.attempts), str(row.deferred + row.observed)] for row in hours],
    )
    if any(row.attempts for row in hours):
        yield _section(table, plots.by_hour(hours), is_long=True)
    for name, table, busiest in parts.tops(figures, settings):
        yield _section(table, plots.top(name, table.title, busiest) if busiest else "")
