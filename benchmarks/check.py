"""One check through the installed launcher, against an interpreter that starts and does nothing.

Measured from the start of the child to its end, as qmail-smtpd sees it: an exempt client, which
asks no store; known, early and new triplets in a store of 100 000 known ones; known and new ones in
a store of a million. Known triplets are taken at random, so that pages vary, and write nothing.
Early and new ones write one row each, so that known ones find a write-ahead log to read.
"""

import click

from benchmarks.common import (
    QUICK_ROWS,
    ROWS,
    TIMES,
    Case,
    Load,
    Numbers,
    Workshop,
    bare,
    checked,
    interleave,
    mail,
    options,
    print_table,
    ratio,
    smtpextfork,
    times_row,
    workshop,
)

# How many times more rows the larger store has.
LARGER = 10

KNOWN_TARGET = 1.6
NEW_TARGET = 1.8
LARGER_TARGET = 1.1


@click.command(help=__doc__)
@options(rounds=400, quick_rounds=3)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    rows = QUICK_ROWS if quick else ROWS
    with workshop() as place:
        idle, exempt = without_store(place)
        known, early, new = with_store(
            place, Numbers(rows, pending=rounds + 1), ("known", "early", "new")
        )
        larger_known, larger_new = with_store(place, Numbers(rows * LARGER), ("known", "new"))
        interleave([idle, exempt, known, early, new, larger_known, larger_new], rounds)
    table = [
        times_row(idle),
        times_row(exempt, ratio(exempt, idle, "bare")),
        times_row(known, ratio(known, idle, "bare", KNOWN_TARGET)),
        times_row(early, ratio(early, idle, "bare")),
        times_row(new, ratio(new, idle, "bare", NEW_TARGET)),
        times_row(larger_known, ratio(larger_known, known, "known", LARGER_TARGET)),
        times_row(larger_new, ratio(larger_new, new, "new", LARGER_TARGET)),
    ]
    print_table(f"check (rounds: {rounds})", TIMES, table)


def without_store(place: Workshop) -> tuple[Case, Case]:
    """The interpreter alone, and a check that asks no store, in the same environment."""
    environ = smtpextfork(place.directory / "none.db", mail(0)) | {"RELAYCLIENT": ""}
    return (
        Case("bare interpreter", bare(place, environ)),
        Case("exempt", checked(place, "exempt", lambda: environ)),
    )


def with_store(
    place: Workshop, numbers: Numbers, reasons: tuple[str, ...], name: str = ""
) -> list[Case]:
    """Checks of each of REASONS, over a store NAME of NUMBERS that is filled here."""
    database = place.database(name or str(numbers.known), numbers)
    load = Load(numbers)

    def case(reason: str) -> Case:
        once = checked(place, reason, lambda: smtpextfork(database, load.next(reason)))
        return Case(f"{reason}, {numbers.known} rows", once)

    return [case(reason) for reason in reasons]


if __name__ == "__main__":
    main()
