"""A recipient opens the digest in a real browser, follows a link, and lets a mail in."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from greycheck.cli.main import cli
from tests.digest.browser import Browser
from tests.digest.stores import Waiting
from tests.digest.web import Web
from tests.support import Database, only_settings

# Whether anything is wider than the window, and the least contrast of all text with what is behind
# it (WCAG 2.2, 1.4.3).
IS_TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
CONTRAST = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(each => each / 255)
      .map(each => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const back = each => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    const is_dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return is_dark ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)";
  };
  return Math.min(...[...document.querySelectorAll("body *")].filter(each => each.innerText)
    .map(each => [light(getComputedStyle(each).color), light(back(each))])
    .map(([one, other]) => (Math.max(one, other) + .05) / (Math.min(one, other) + .05)));
})()"""


def test_a_recipient_lets_a_mail_in_by_his_browser(
    database: Database, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_settings(monkeypatch, database.environ)
    place.chmod(0o700)
    database.make()
    store = Waiting(database)
    store.correspondent(b"alice@example.org", b"bob@example.net")
    store.domain(b"known.example")
    store.mail()
    store.mail(b"<img/src=x/onerror=alert(1)>" + b"long" * 50 + b"@known.example")

    def run(*arguments: str) -> str:
        ran = CliRunner().invoke(cli, arguments)
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    page = place / "digest.html"
    with Web(place, database) as web, Browser() as browser:
        page.write_text(run("digest", "--html", "--links", web.url))
        browser.open(page.as_uri())
        # The style is the page's own, and its policy lets it be.
        assert browser.run("getComputedStyle(document.body).maxWidth") == "768px"
        told = browser.names()
        assert ("heading", "Mail that has not come back") in told
        assert ("heading", "From alice@example.org to bob@example.net") in told
        assert ("link", "Let in the mail of alice@example.org") in told
        assert {"main", "list", "region"} <= {role for role, _name in told}
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            assert browser.run(CONTRAST) >= 4.5, scheme
        for width in (320, 800):
            browser.resize(width)
            assert browser.run(IS_TOO_WIDE) is False, width
        assert browser.run("document.images.length + document.scripts.length") == 0
        browser.run("document.querySelector('a').click()", "Page.loadEventFired")
        assert ("heading", "Let this mail in?") in browser.names()
        assert browser.run("document.referrer") == ""
        assert ("button", "Let this mail in") in browser.names()
        assert browser.run("getComputedStyle(document.body).maxWidth") == "576px"
        assert browser.run(IS_TOO_WIDE) is False
        assert json.loads(run("rules", "list", "--json")) == []
        browser.run("document.querySelector('button').click()", "Page.loadEventFired")
        assert ("heading", "The mail may come in") in browser.names()
        assert browser.run("location.href") == f"{web.url}?"
        [rule] = json.loads(run("rules", "list", "--json"))
        assert (rule["action"], rule["pattern"]) == (
            "release",
            "to:bob@example.net from:alice@example.org",
        )
