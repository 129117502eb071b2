"""Statements for many questions at once.

Interface: those of MySQL's dialect are made of what was compiled for one: ``List`` (queries with
``IN``), ``Table`` (rows of a table that is joined, or inserted), ``Ranges`` (ranges of keys),
``union`` of queries. Each gives its SQL for so many questions. ``Arrays`` are PostgreSQL's, whose
SQL is the same for any number, so that a server need not plan it again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from greycheck.store.drivers import Often

Compiled = tuple[str, tuple[str, ...]]
Row = Mapping[str, Any]

# How SQLAlchemy writes a list whose length is not known yet.
LIST = "__[POSTCOMPILE_{}]"

# Where the one row of a table of parameters begins and ends, which is joined or inserted.
JOINED, END = "(SELECT CAST", ") AS asked"
INSERTED = " VALUES "


class List:
    """A compiled query with lists of parameters, NAMES, as many as there are questions."""

    def __init__(self, compiled: Compiled) -> None:
        sql, self.names = compiled
        self._parts = []
        for name in self.names:
            part, _, sql = sql.partition(LIST.format(name))
            self._parts.append(part)
        self._parts.append(sql)

    def sql(self, number: int) -> str:
        """Returns the query for NUMBER questions."""
        return ", ".join(["%s"] * number).join(self._parts)

    def of_lists(self, *lists: Sequence[object]) -> tuple[str, list[object]]:
        """Returns the query, and its parameters, of the values of each, in the order of NAMES."""
        return self.sql(len(lists[0])), [value for values in lists for value in values]


class Arrays:
    """A compiled statement of PostgreSQL, each of whose parameters, NAMES, is an array."""

    def __init__(self, compiled: Compiled) -> None:
        sql, self.names = compiled
        self._sql = Often(sql)

    def given(self, rows: Sequence[Row]) -> tuple[str, list[str]]:
        """Returns the statement, and its parameters, for ROWS of values by name."""
        return self._sql, [array([row[name] for row in rows]) for name in self.names]

    def of_lists(self, *lists: Sequence[object]) -> tuple[str, list[str]]:
        """As ``given``, of the values of each parameter, in the order of the names."""
        return self._sql, [array(values) for values in lists]


def array(values: Sequence[object]) -> str:
    """Returns VALUES as the text of an array of PostgreSQL."""
    return "{" + ",".join([_ELEMENTS[type(value)](value) for value in values]) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# How a value of each type stands in the text of an array.
_ELEMENTS: dict[type, Callable[[Any], str]] = {
    bytes: lambda value: '"\\\\x' + value.hex() + '"',
    int: str,
    str: _quoted,
    type(None): lambda _value: "NULL",
}


class Table:
    """A compiled statement with one row of parameters, NAMES, for as many as there are questions.

    The row is that of ``asked`` in ``statements``, or the one that is inserted.
    """

    def __init__(self, compiled: Compiled) -> None:
        sql, self.names = compiled
        end = sql.find(END)
        if end >= 0:
            begin, self._between = sql.index(JOINED) + 1, " UNION ALL "
        else:
            begin = sql.index(INSERTED) + len(INSERTED)
            end, self._between = sql.index(")", begin) + 1, ", "
        self._head, self._row, self._tail = sql[:begin], sql[begin:end], sql[end:]

    def sql(self, number: int) -> str:
        """Returns the statement for NUMBER questions."""
        return self._head + self._between.join([self._row] * number) + self._tail

    def given(self, rows: Sequence[Row]) -> tuple[str, list[object]]:
        """Returns the statement, and its parameters, for ROWS of values by name."""
        return self.sql(len(rows)), [row[name] for row in rows for name in self.names]


class Ranges:
    """A compiled query of a range of keys, NAMES, and a limit, for as many ranges as questions."""

    def __init__(self, compiled: Compiled) -> None:
        sql, names = compiled
        self.names = names[:2]
        self._head, _, rest = sql.partition(" WHERE ")
        self._range, _, self._limit = rest.partition(" LIMIT ")

    def sql(self, number: int) -> str:
        """Returns the query for NUMBER questions, in parentheses, as its limit is its own."""
        ranges = ") OR (".join([self._range] * number)
        return f"({self._head} WHERE ({ranges}) LIMIT {self._limit})"


def union(queries: Sequence[str]) -> str:
    """Returns all QUERIES as one."""
    return " UNION ALL ".join(queries)
