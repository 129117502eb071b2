"""The causes of a StoreError that somebody tells apart, and which schemas fit this program.

A check loads this file only where something went wrong: each class costs it some time.
"""

from greycheck.store.base import StoreError


class Again(StoreError):
    """Nothing was written: decide again.

    Another host's change was quicker, or another host is asked now.
    """


class Busy(StoreError):
    """Another process holds the lock of an SQLite file."""


class NoSchema(StoreError):
    """There is no directory, no file or no table yet."""


class WrongSchema(StoreError):
    """The schema is one of another program's, older or newer."""


NO_SCHEMA = "the database has no schema: run greycheck db upgrade"


def check_revision(found: str | None, wanted: str) -> None:
    """Raises StoreError if a program for the revision WANTED cannot use the schema FOUND."""
    if found is None:
        raise NoSchema(NO_SCHEMA)
    if not fits(found, wanted):
        raise WrongSchema(f"the schema is {standing(found, wanted)}")


def standing(found: str, wanted: str) -> str:
    """Returns in words how the schema FOUND suits a program for WANTED, and what to do."""
    if found == wanted:
        return f"at {found}, this program is at {wanted}"
    if fits(found, wanted):
        return f"at {found}, newer than this program's {wanted}, which can use it"
    if found < wanted:
        return f"at {found}, older than this program's {wanted}: run greycheck db upgrade"
    return f"at {found}, newer than this program's {wanted}: install the newer greycheck here too"


def fits(found: str, wanted: str) -> bool:
    """Whether a program for the revision WANTED can use the schema that is FOUND.

    A newer schema says itself how old a program may be: ``0005_0003`` is the fifth, and fits
    programs from the third on.
    """
    revision, _, oldest = found.partition("_")
    program = wanted.partition("_")[0]
    return revision == program or (oldest or revision) <= program < revision
