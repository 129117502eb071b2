"""greycheck digest as an operator and cron's mail have it, and as what it prints works."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from sqlalchemy import literal, update

from greycheck.cli.main import cli
from greycheck.digest.signs import WEIGHTS
from greycheck.store.admin import rulebook, waiting
from greycheck.store.admin.engine import open_engine
from greycheck.store.schema import migrate
from greycheck.store.schema.tables import client, triplet
from tests.digest.stores import HOUR, Waiting
from tests.dns_servers import Nsd
from tests.support import (
    ACCEPTED,
    DEFERRED,
    ROOT,
    Child,
    Database,
    on_every_database,
    only_settings,
)

HOSTILE = b'<script>alert("1")</script>\x1b[31m\xe2\x80\xae&amp;@known.example'
LONG = b"order-" * 80 + b"@" + b"long-name." * 20 + b"known.example"
URL = "https://mx.example.net/greycheck-release.cgi"


@pytest.fixture
def store(database: Database, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """A store in which mail waits, and which the commands find."""
    only_settings(monkeypatch, database.environ)
    database.make()
    return filled(Waiting(database))


def filled(store: Waiting) -> Waiting:
    store.domain(b"known.example")
    store.correspondent(b"alice@example.org", b"bob@example.net")
    store.mail()
    store.mail(b"alice@example.org", b"bob@example.net", "198.51.100.9", early=2, last=5 * HOUR)
    store.mail(HOSTILE, b'"x<b>y"@example.net')
    store.mail(LONG, b"carol@example.net", "2001:db8::7", authorised=1)
    store.mail(b"d@known.example", b"-dash@other.example", "203.0.113.1")
    store.mail(b"e@known.example", b"postmaster", "10.0.0.1")
    store.mail(b"", b"carol@other.example", "203.0.113.200", early=2)
    store.mail(b"spam@spam.example", b"carol@other.example", "203.0.114.201")
    return store


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["digest", *arguments], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def mails(*arguments: str) -> list[dict[str, object]]:
    told = json.loads(run("--json", *arguments).stdout)
    return [mail for domain in told["domains"] for mail in domain["mails"]]


# --- text -----------------------------------------------------------------------------------------


def test_it_is_text_of_80_columns_in_which_only_what_is_copied_is_longer(store: Waiting) -> None:
    text = run("--links", URL).stdout
    assert text.startswith(
        "5 mails that look legitimate: deferred, and not tried again for 4h.\n"
        "Of 8 triplets that wait so long.\n\n(no domain)\n===========\n"
    )
    wide = [line for line in text.splitlines() if cell_len(line) > 80]
    assert all(line.startswith(f"      {URL}?") for line in wide), wide
    assert text.isprintable() is False
    assert not re.search(r"[^\x20-\x7e\n\u2026]", text)
    assert "\\x3cscript\\x3e" in text
    found = text[text.index(" 1. alice@") : text.index(" 2. ")]
    key = next(mail["key"] for mail in mails() if mail["sender"] == "alice@example.org")
    assert re.sub(r"\?\S+", "?TOKEN", found) == (
        " 1. alice@example.org\n"
        "    to bob@example.net\n"
        "    client 198.51.100.9; 4 attempts from 2 networks, first 7h ago, last 5h ago;\n"
        "    waits for another 1d 17h\n"
        "    +5 the recipient wrote to this sender 3h ago\n"
        "    +1 it was tried again 2 times, too early\n"
        "    Let it in once:\n"
        f"      greycheck release {key}\n"
        "    Let its client in:\n"
        "      greycheck allow 198.51.100.9\n"
        "    Or open:\n"
        f"      {URL}?TOKEN\n\n"
    ).replace("1d 17h", re.search(r"waits for another (.*)", found)[1])  # type: ignore[index]


def test_it_says_where_nothing_was_deferred_or_not_all_was_read(
    store: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = "The mode is observe: they were accepted, and would have been deferred."
    cut = "There is more than is looked at: what is newest and ranks highest was."
    assert observed not in run().stdout
    assert cut not in run().stdout
    monkeypatch.setenv("GREYCHECK_MODE", "observe")
    monkeypatch.setattr(waiting, "READ", 7)
    assert observed in run().stdout
    assert f'<p class="soft">{cut}</p>' in run("--html").stdout
    told = json.loads(run("--json").stdout)
    assert (told["observed"], told["whole"], told["waiting"]) == (True, False, 7)


def test_cron_is_told_nothing_where_nothing_looks_legitimate(
    store: Waiting, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--recipient-domain", "none.example").stdout == ""
    assert run("--least", "99").stdout == ""
    assert run("--older", "40h").stdout == ""
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "none.db"))
    assert "no store yet" in run().stdout
    assert json.loads(run("--json").stdout)["domains"] == []


def test_mails_are_chosen_by_domain_score_and_number(store: Waiting) -> None:
    assert {str(mail["recipient"]) for mail in mails("--recipient-domain", "OTHER.example.")} == {
        "-dash@other.example"
    }
    assert [mail["score"] for mail in mails("--least", "1")] == [2, 6, 2, 2, 2, 1]
    assert "2 more to this domain: --limit 0 shows all." in run("--limit", "1").stdout
    told = json.loads(run("--json", "--limit", "1").stdout)
    assert [(one["domain"], len(one["mails"]), one["more"]) for one in told["domains"]] == [
        ("", 1, 0),
        ("example.net", 1, 2),
        ("other.example", 1, 0),
    ]
    assert len(mails("--limit", "0")) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--html", "--json"),
        ("--recipient-domain", "a@b.example"),
        ("--recipient-domain", ""),
        ("--older", "soon"),
        ("--least", "0"),
        *(("--links", url) for url in ("mx", "ftp://mx/x", "https://mx/?a", "https://mx/#a")),
        *(
            ("--links", url)
            for url in ("https://me:pw@mx/", "https://mx/a b", 'https://mx/"', "https://mx/\u00e4")
        ),
        ("--links", "https://mx/\x1b[31m"),
    ],
)
def test_what_makes_no_sense_is_an_error_of_the_command_line(
    store: Waiting, arguments: tuple[str, ...]
) -> None:
    assert "\x1b" not in run(*arguments, code=2).output


def test_names_are_verified_where_that_is_asked_for(
    store: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones = {
        "113.0.203.in-addr.arpa.": "1 PTR mail.known.example.",
        "known.example.": "mail A 203.0.113.1",
    }
    with Nsd(zones) as nsd:
        monkeypatch.setenv("GREYCHECK_RESOLVER", nsd.address)
        [mail] = mails("--names", "--recipient-domain", "other.example")
    assert mail["score"] == 3
    assert {"sign": "name", "weight": 1, "words": "its name mail.known.example is verified"} in (
        mail["signs"]  # type: ignore[operator]
    )


# --- the commands that it prints ------------------------------------------------------------------


@on_every_database
def test_each_command_that_it_prints_works_as_it_is_pasted(
    store: Waiting, database: Database
) -> None:
    lines = [line.strip() for line in run("--least", "1").stdout.splitlines()]
    commands = [line for line in lines if line.startswith("greycheck ")]
    assert commands == [line for mail in mails("--least", "1") for line in mail["commands"]]  # type: ignore[attr-defined]
    # Who may be anybody is not let in for good, nor whoever sends from the null sender's network.
    assert len([line for line in commands if " release " in line]) == 6
    assert sorted(line for line in commands if " allow " in line) == [
        "greycheck allow 192.0.2.1",
        "greycheck allow 198.51.100.9",
        "greycheck allow 2001:db8::7",
        "greycheck allow 203.0.113.1",
    ]
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
    for line in commands:
        ran = subprocess.run(
            ["sh", "-c", line], env=environ, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, (line, ran.stderr)
        assert ran.stdout.startswith(("released: to:", "added: allow ")), line
    engine = open_engine(database.url)
    assert len(rulebook.all_rules(engine)) == len(commands)
    engine.dispose()
    told = json.loads(run("--json", "--least", "1").stdout)
    assert (told["domains"], told["released"]) == ([], 7)


def test_what_it_releases_passes_from_any_network(store: Waiting, child: Child) -> None:
    key = next(str(mail["key"]) for mail in mails() if mail["sender"] == "alice@example.org")
    assert child.smtpextfork(client="203.0.113.99").verdict == (DEFERRED, "new")
    CliRunner().invoke(cli, ["release", key])
    assert child.smtpextfork(client="203.0.113.99").verdict == (ACCEPTED, "expected")


# --- HTML -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a reader of the page finds: TAGS with their attributes, and TEXT."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, name: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.tags if tag == name)


def test_nothing_that_a_row_has_moves_or_hides_what_is_beside_it_on_the_page(
    store: Waiting,
) -> None:
    """Another host, or the store's owner, writes rows that no check would."""
    hidden = "\u202e\u2066\u200b\u2028\x85\x9b"
    with store.database.begin() as connection:
        for column in ("sender", "recipient"):
            connection.execute(
                update(triplet).values({column: literal(f"{hidden}a@x.") + triplet.c[column]})
            )
    text = run("--html", "--links", URL).stdout
    assert "&#65533;" in text
    for char in hidden:
        assert f"&#{ord(char)};" not in text
        assert char not in text


def test_the_page_needs_nothing_else_and_nothing_in_it_is_the_senders_markup(
    store: Waiting,
) -> None:
    text = run("--html", "--links", URL).stdout
    assert text.isascii()
    page = Page(text)
    assert {tag for tag, _attributes in page.tags}.isdisjoint(
        ("script", "link", "img", "iframe", "form", "b")
    )
    assert not re.search(r"@import|url\(|javascript:|\son\w+=", text)
    said = "".join(page.text)
    assert "\\x3cscript\\x3e" in said
    assert "\\x1b[31m" in said
    assert "&amp;@known" in said  # as it was written, and no character reference
    assert next(page.all("html")) == {"lang": "en"}
    policy = next(each["content"] for each in page.all("meta") if "http-equiv" in each)
    assert str(policy).startswith("default-src 'none'; style-src 'sha256-")
    # Headings go down one by one, each section has its own for a name.
    levels = [int(tag[1]) for tag, _attributes in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = {each["id"] for each in page.all("h2")}
    assert {each["aria-labelledby"] for each in page.all("section")} == names
    links = [str(each["href"]) for each in page.all("a")]
    assert len(links) == len(set(links)) == 5
    assert all(re.fullmatch(re.escape(URL) + r"\?[\w-]{64}", link) for link in links)
    commands = [line for mail in mails() for line in mail["commands"]]  # type: ignore[attr-defined]
    assert [each for each in page.text if each.startswith("greycheck ")] == commands
    assert all(shlex.split(line)[0] == "greycheck" for line in commands)


def test_what_another_host_wrote_amiss_stops_nothing_and_is_shown_as_text(
    store: Waiting, database: Database
) -> None:
    """Rows that no check writes, in a file, which takes any value in any column."""
    evil = '\x1b[2J<b>"\u202e\x07'
    row: dict[str, object] = dict(
        zip(
            [column.name for column in triplet.columns],
            database.rows(triplet.select().where(triplet.c.sender == "alice@example.org"))[0],
            strict=True,
        )
    )
    amiss: list[dict[str, object]] = [
        {"network": evil},
        {"network": "192.0.2.0/99"},
        {"origin": b"x"},
        {"origin": b"x" * 99},
        {"sender": evil, "recipient": evil},
        {"sender": evil + "@known.example", "recipient": f"x@{evil}", "origin": None},
        {"first_attempt": -5, "early_attempts": 10**9},
        {"first_attempt": 1 << 62, "early_attempts": -7},
        {"recipient": ""},
    ]
    for number, values in enumerate(amiss):
        more: dict[str, object] = {"triplet_key": b"%016d" % number, "early_attempts": 9}
        database.execute(triplet.insert(), [row | more | values])
    database.execute(
        client.insert(),
        [
            {
                "address": evil,
                "passes": 9,
                "first_seen": 1,
                "last_seen": store.now,
                "expires_at": store.now * 2,
            }
        ],
    )
    for form in ((), ("--html",), ("--json",)):
        text = run("--least", "1", "--limit", "0", "--links", URL, *form).stdout
        assert all(char.isprintable() or char == "\n" for char in text)
        assert "alice@example.org" in text
    assert len(mails("--least", "1", "--limit", "0")) > 5


# --- documents ------------------------------------------------------------------------------------


def test_the_signs_and_weights_are_documented() -> None:
    told = (ROOT / "docs" / "digest.rst").read_text()
    rows = re.findall(r"^``(\w+)`` +([+-]\d)  ", told, re.MULTILINE)
    assert rows == [(name, f"{weight:+}") for name, (weight, _meaning) in WEIGHTS.items()]


def test_it_works_for_a_store_of_which_nothing_is_asked_yet(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_CONFIG", "/dev/null")
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "new.db"))
    migrate.upgrade(f"sqlite:///{place}/new.db")
    assert run("--html").stdout.endswith("</html>\n")
