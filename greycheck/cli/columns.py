"""Fits tables and text to the terminal's width. Patterns, addresses and paths are never broken.

On a terminal of 80 columns a table decides what to leave out, and shows an ellipsis there. If the
output is not a terminal (a pipe, a file), nothing is cut, unless COLUMNS sets a width.

Interface: ``Rows`` prints a table, ``facts`` prints names with values, ``wrapped`` breaks text
between words, ``cut`` and ``fitting`` shorten text.
"""

import os
from collections.abc import Iterable, Sequence
from textwrap import TextWrapper

from greycheck.cli.terminal import Console, Text, cell_len, set_cell_size, shown

# The width if the output is not a terminal.
UNBOUND = 100000

# The number of spaces between two columns of a table.
GAP = 2

# The least width of a column that may be cut.
LEAST = 12

# A cell of a table: text and its style.
Cell = tuple[str, str]


def room(console: Console) -> int:
    """Returns the width to write in, in columns."""
    return (
        console.width if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else UNBOUND
    )


def cut(text: str, width: int, console: Console) -> str:
    """Returns TEXT in WIDTH columns, with an ellipsis in the middle if it is longer.

    So user and domain of an address can both be seen.
    """
    dots = "\u2026" if console.encoding.startswith("utf") else "..."
    if cell_len(text) <= width or width <= len(dots) + 1:
        return text
    tail = (width - len(dots)) // 2
    end = text[-tail:]
    while cell_len(end) > tail:
        end = end[1:]
    head = set_cell_size(text, width - len(dots) - cell_len(end))
    return head.rstrip() + dots + end


def _ended(text: str, width: int, console: Console) -> str:
    """Returns TEXT in WIDTH columns, with an ellipsis at the end if it is longer."""
    dots = "\u2026" if console.encoding.startswith("utf") else "..."
    return (
        text if cell_len(text) <= width else set_cell_size(text, width - len(dots)).rstrip() + dots
    )


def fitting(text: str, width: int, console: Console) -> str:
    """Returns TEXT with each word cut to WIDTH columns."""
    return " ".join(cut(word, width, console) for word in text.split(" "))


def wrapped(text: str, width: int) -> list[str]:
    """Returns TEXT as lines of WIDTH columns. A longer word stays whole, on a line of its own."""
    wrapper = TextWrapper(
        width, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return wrapper.wrap(text) or [""]


def facts(console: Console, rows: Iterable[tuple[str, str]], label: int) -> None:
    """Prints ROWS, each a name and its value. Names take LABEL columns."""
    whole = room(console)
    for name, value in rows:
        lines = wrapped(shown(value), max(whole - label - GAP, LEAST))
        if any(whole - label - GAP < cell_len(line) for line in lines):
            # On lines of their own there may be room for long words.
            console.print(Text(name), soft_wrap=True)
            for line in wrapped(shown(value), whole - GAP):
                console.print(Text(" " * GAP + line), soft_wrap=True)
            continue
        for line in lines:
            console.print(Text(f"{name:{label + GAP}}{line}".rstrip()), soft_wrap=True)
            name = ""


class Rows:
    """A table on CONSOLE. The columns MAIN and ELASTIC, given by number, are shortened to fit.

    The elastic column, if any, is cut at its end, and gets the least room. A text that is too long
    for the main column has a line of its own (ALONE): the rest of the row is in the next line, in
    the usual place if no column is elastic. Without ALONE it is cut in the middle.
    """

    def __init__(
        self, console: Console, main: int, elastic: int | None = None, alone: bool = True
    ) -> None:
        self.console = console
        self.main = main
        self.elastic = elastic
        self.alone = alone

    def print(self, rows: Sequence[Sequence[Cell]], titles: Sequence[Sequence[Cell]] = ()) -> None:
        """Prints TITLES, if any, and ROWS."""
        rows = [[(shown(text), style) for text, style in row] for row in rows]
        widths = self._widths([*titles, *rows])
        for row in [*titles, *rows]:
            self._print(row, widths)

    def _widths(self, rows: Sequence[Sequence[Cell]]) -> list[int]:
        needed = [[cell_len(row[column][0]) for row in rows] for column in range(len(rows[0]))]
        widths = [max(column) for column in needed]
        soft = {self.main, self.elastic} - {None}
        left = (
            room(self.console)
            - sum(width for column, width in enumerate(widths) if column not in soft)
            - GAP * (len(widths) - 1)
        )
        spare = min(widths[self.elastic], LEAST) if self.elastic is not None else 0
        most = max(left - spare, LEAST)
        widths[self.main] = max((width for width in needed[self.main] if width <= most), default=0)
        if not self.alone and max(needed[self.main]) > most:
            widths[self.main] = most
        if self.elastic is not None:
            widths[self.elastic] = min(widths[self.elastic], max(left - widths[self.main], LEAST))
        return widths

    def _print(self, row: Sequence[Cell], widths: Sequence[int]) -> None:
        line = Text()
        for column, (text, style) in enumerate(row):
            width = widths[column]
            if column == self.main and cell_len(text) > width:
                if self.alone:
                    line.append(
                        cut(
                            text,
                            room(self.console) - sum(widths[:column]) - GAP * column,
                            self.console,
                        ),
                        style,
                    )
                    self.console.print(line, soft_wrap=True)
                    if self.elastic is not None:
                        self._below(row[column + 1 :], sum(widths[:column]) + GAP * (column + 1))
                        return
                    line = Text(" " * (sum(widths[: column + 1]) + GAP * (column + 1)))
                    continue
                text = cut(text, width, self.console)
            elif column == self.elastic:
                text = _ended(text, width, self.console)
            line.append(text, style)
            line.append(" " * (width - cell_len(text) + GAP))
        line.rstrip()
        self.console.print(line, soft_wrap=True)

    def _below(self, cells: Sequence[Cell], indent: int) -> None:
        """Prints the CELLS that follow one with a line of its own; the last of them is cut."""
        line = "  ".join(text for text, _ in cells if text)
        if line:
            line = " " * indent + _ended(line, room(self.console) - indent, self.console)
            self.console.print(Text(line, cells[0][1]), soft_wrap=True)
