"""What the README tells mail servers, so that just that is tried."""

import re
from textwrap import dedent

from tests.support import ROOT

HEADING = re.compile(r"^(\S.*)\n[-=]+\n", re.MULTILINE)


def lines(title: str, within: str) -> str:
    """The indented paragraph of the README's section TITLE that has WITHIN in it."""
    parts = HEADING.split((ROOT / "README.rst").read_text())
    section = parts[parts.index(title) + 1]
    [found] = [dedent(each) for each in section.split("\n\n") if each.startswith("    ") and within in each]
    return found.strip("\n") + "\n"
