"""Rows for stores of any kind, as tuples of all columns."""

from collections.abc import Sequence

from sqlalchemy import Engine, insert, select

from greycheck.store.admin.engine import open_engine
from greycheck.store.schema.tables import metadata

Row = tuple[object, ...]

NOW = 1_800_000_000
LATER = NOW + 86400

# One of each plane of Unicode, what SQL and drivers take for something else, and blanks where they
# are easily lost.
PLANES = (
    "".join(chr(plane << 16 | 0x4E00) for plane in range(17) if plane not in (15, 16))
    + "\U0010fffd\U000f0000"
)
TEXTS = [
    "",
    " ",
    "trailing ",
    "Upper",
    "upper",
    "a'b\"c`d;--/*",
    "%s %(a)s :b ? _ %%",
    "\\x00 \\ \\n",
    "\n\r\t\x1a\x7f\x80",
    "e\u0301 \u00e9 \u00df \u0130 \u0131",
    PLANES,
    "\ufeff\u200b\u202e",
    "x" * 3000,
]
KEYS = [
    bytes(16),
    bytes(15) + b" ",
    b"\xff" * 16,
    b" " * 16,
    b"'\\\"\0\n\r\x1a%;" + bytes(7),
    b"a" * 15 + b"\0",
    *(bytes([number]) * 16 for number in range(65, 72)),
]
ADDRESSES = [
    "10.0.0.1",
    "9.0.0.1",
    "100.0.0.1",
    "::",
    "::1",
    "2001:db8::ffff",
    "2001:db8::",
    "a",
    "B",
    "b",
    "A",
]

_BIG = 2**63 - 1

# Of each table some rows with everything that a database might not keep as it is.
HARD_ROWS: dict[str, list[Row]] = {
    "triplet": [
        (
            key,
            "192.0.2.0/24",
            text,
            text[::-1],
            _BIG - number,
            -number,
            number,
            2**31 - 1,
            _BIG - number if number % 2 else None,
            LATER,
        )
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
    "client": [(address, 1, 2, 3, LATER, 5, 6) for address in ADDRESSES],
    "rule": [
        (
            key,
            "network",
            text,
            "allow",
            None if number % 2 else 0,
            text,
            NOW,
            None if number % 3 else 2**40,
        )
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
    "domain": [
        (key, text, number, -number, _BIG, LATER)
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
    "spf": [
        (
            key,
            text,
            "found",
            text[::-1],
            number % 2,
            None if number % 2 else _BIG,
            NOW,
            9,
            0,
            LATER,
        )
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
    "authorised": [
        (key + key[::-1], key, "pool", text, NOW, LATER)
        for key, text in zip(KEYS, TEXTS, strict=True)
    ],
    "provider": [
        (key, text, text, text, NOW, None, NOW, text, None if number % 2 else _BIG)
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
    "correspondent": [
        (key, text, text[::-1], number, _BIG, LATER)
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
    "generation": [(name, _BIG - number) for number, name in enumerate(("rule", "Rule", "a b"))],
    "history": [
        (key, number, "verdict", "accept", text, text[::-1], _BIG, LATER)
        for number, (key, text) in enumerate(zip(KEYS, TEXTS, strict=True))
    ],
}


def fill(engine: Engine, table: str, rows: Sequence[Row]) -> None:
    """Puts ROWS into TABLE. The last columns, which have defaults, may be left out."""
    found = metadata.tables[table]
    names = [column.name for column in found.columns]
    with engine.begin() as connection:
        connection.execute(insert(found), [dict(zip(names, row, strict=False)) for row in rows])


def fill_url(url: str, table: str, rows: Sequence[Row]) -> None:
    """The same for the store at URL."""
    engine = open_engine(url)
    fill(engine, table, rows)
    engine.dispose()


def contents(url: str, table: str) -> list[Row]:
    """All rows of TABLE in the store at URL, by the bytes of their keys."""
    engine = open_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(select(metadata.tables[table]))]
    engine.dispose()
    return sorted(
        found, key=lambda row: row[0] if isinstance(row[0], bytes) else str(row[0]).encode()
    )
