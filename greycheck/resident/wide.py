"""Statements for many questions at once, made of those that were compiled for one.

Interface: ``List`` (queries with ``IN``), ``Table`` (rows of a table that is joined, or inserted),
``Ranges`` (ranges of keys), ``union`` of queries. Each gives its SQL for so many questions.
"""

from collections.abc import Sequence

Compiled = tuple[str, tuple[str, ...]]

# How SQLAlchemy writes a list whose length is not known yet.
LIST = "__[POSTCOMPILE_{}]"

# Where the one row of a table of parameters begins and ends, and how rows are joined.
JOINED = {"(VALUES ": ", ", "(SELECT CAST": " UNION ALL "}
END = ") AS asked"
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


class Table:
    """A compiled statement with one row of parameters, NAMES, for as many as there are questions.

    The row is that of ``asked`` in ``statements``, or the one that is inserted.
    """

    def __init__(self, compiled: Compiled) -> None:
        sql, self.names = compiled
        end = sql.find(END)
        if end >= 0:
            opening = next(opening for opening in JOINED if opening in sql[:end])
            self._between = JOINED[opening]
            begin = sql.index(opening) + (len(opening) if opening.endswith(" ") else 1)
        else:
            begin = sql.index(INSERTED) + len(INSERTED)
            end, self._between = sql.index(")", begin) + 1, ", "
        self._head, self._row, self._tail = sql[:begin], sql[begin:end], sql[end:]

    def sql(self, number: int) -> str:
        """Returns the statement for NUMBER questions."""
        return self._head + self._between.join([self._row] * number) + self._tail


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
