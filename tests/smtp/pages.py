"""What the pages in ``docs/`` tell mail servers, so that the tests try just that."""

from textwrap import dedent

from tests.support import ROOT


def lines(page: str, within: str) -> str:
    """The indented paragraph of PAGE in docs/ that has WITHIN in it."""
    paragraphs = (ROOT / "docs" / f"{page}.rst").read_text().split("\n\n")
    [found] = [dedent(each) for each in paragraphs if each.startswith("    ") and within in each]
    return found.strip("\n") + "\n"
