"""``greycheck report``: its text, its page, and how that looks in a browser."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck.cli import report as command
from greycheck.cli.main import cli
from greycheck.simulation.figures import (
    DELAYED,
    NEVER,
    WAYS,
    Fate,
    Figures,
    Simulation,
    from_data,
)
from greycheck.statistics import plots
from greycheck.store.admin import history
from greycheck.store.admin.engine import open_engine
from greycheck.store.admin.history import Total, date_of, day_of, step
from greycheck.times import local_bare
from tests.support import Database, only_settings
from tests.test_history import settings

# It needs more than Python: a library that is an extra, and a browser.
pytestmark = pytest.mark.system

NOW = 1_800_000_000
TODAY = day_of(NOW)

HOSTILE = '<script src="http://evil.example/x"></script>$x_1$"]]>--><!--\u202e\x1b[2J'

# The colour of attempts in a light and in a dark page.
LIGHT, DARK = (0x23, 0x62, 0xA8), (0x7D, 0xB4, 0xF0)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    only_settings(monkeypatch, database.environ | {"GREYCHECK_HISTORY_SENDERS": "yes"})
    monkeypatch.setattr(command, "time", lambda: NOW)


def fill(database: Database, days: int, names: tuple[str, ...] = ("a.example",)) -> None:
    """Some totals of each of so many DAYS to today."""
    totals: history.Totals = Counter()
    for day in range(TODAY - days + 1, TODAY + 1):
        for number, name in enumerate(names):
            totals[Total(day, "verdict", "defer", "new", name)] = 20 + day % 7 + number
            totals[Total(day, "verdict", "accept", "retry", name)] = 9 + day % 3
            totals[Total(day, "never", "never", "once", name)] = 5
            totals[Total(day, "never", "never", "again", name)] = 2
            totals[Total(day, "sender", "defer", name)] = 20
            totals[Total(day, "network", "accept", f"192.0.{number}.0/24")] = 9
        totals[Total(day, "verdict", "accept", "client", names[0])] = 50
        totals[Total(day, "hour", "defer", "09")] = 20
        totals[Total(day, "hour", "accept", "10")] = 59
        for seconds in (310, 900, 3000):
            totals[Total(day, "delay", "", str(step(seconds)))] = 1 + day % 4
    told = settings(database.directory, DATABASE=database.url, HISTORY_SENDERS="yes")
    engine = open_engine(database.url)
    with engine.begin() as connection:
        history.add(connection, told, totals, NOW)
    engine.dispose()


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["report", *arguments], prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


class Page(HTMLParser):
    """The elements of a page, and what is said in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def all(self, name: str) -> list[str]:
        return [value for each, value in self.attributes if each == name]


def made(*arguments: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run("--html", "-", *arguments).stdout


# --- text -----------------------------------------------------------------------------------------


def test_the_text_has_80_columns(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.make()
    fill(database, 400, ("a.example", "x" * 150 + ".example"))
    monkeypatch.setenv("COLUMNS", "80")
    first = date_of(TODAY - 365).isoformat()
    for arguments in ((), ("--from", first), ("--change", date_of(TODAY - 20).isoformat())):
        said = run(*arguments).stdout
        assert max(map(len, said.splitlines())) <= 80
        assert "Recipient domains\n" in said
        assert "Delays of what passed\n" in said
    assert "By week\n" in run("--from", first).stdout
    assert "By month\n" in run("--from", "2020-01-01").stdout


def test_before_and_after_a_change_are_as_many_days(database: Database) -> None:
    database.make()
    fill(database, 40)
    # Today is not whole.
    said = run("--change", date_of(TODAY - 5).isoformat()).stdout
    assert re.search(r"\ndays +4 +4\n", said)
    assert re.search(r"\nattempts a day +[6-9]\d\.", said)
    first = ("--from", date_of(TODAY - 30).isoformat())
    assert re.search(r"\ndays +14 +14\n", run("--change", date_of(TODAY - 16).isoformat()).stdout)
    assert re.search(
        r"\ndays +9 +9\n", run("--change", date_of(TODAY - 10).isoformat(), *first).stdout
    )
    for day in (TODAY, TODAY - 1):
        said = run("--change", date_of(day).isoformat(), code=2).output
        assert "no whole day after it yet" in said
    for day in (TODAY - 90, TODAY - 1):
        said = run("--change", date_of(day).isoformat(), *first, code=2).output
        assert "needs a whole day before and after it" in said


def test_without_senders_and_without_mail_it_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().stdout.startswith("There is no store yet: ")
    database.make()
    assert "attempts    none\n" in run().stdout
    assert "Nothing was counted in these days." in made()
    fill(database, 3)
    monkeypatch.setenv("GREYCHECK_HISTORY_SENDERS", "no")
    assert run().stdout.count("Not counted: history_senders is no.\n") == 2
    assert made().count("Not counted: history_senders is no.") == 2


# --- the page -------------------------------------------------------------------------------------


def test_it_loads_nothing_and_a_screen_reader_has_all(database: Database) -> None:
    database.make()
    fill(database, 60)
    page = Page(made("--change", date_of(TODAY - 9).isoformat()))
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert page.all("src") == []
    assert all(link.startswith("#") for link in page.all("href") + page.all("xlink:href"))
    assert any("default-src 'none'" in content for content in page.all("content"))
    assert not re.search(r"url\((?!#)|@import|http://(?!www\.w3\.org/)", made())
    assert page.tags["svg"] == page.tags["desc"] == 8
    assert page.tags["title"] == 9
    assert page.tags["table"] == page.tags["caption"] + 1
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    named = [word for labels in page.all("aria-labelledby") for word in labels.split()]
    assert set(named) <= set(ids)
    assert all(link[1:] in ids for link in page.all("xlink:href"))
    assert page.all("lang") == ["en"]


def test_names_are_no_markup(database: Database) -> None:
    """Other hosts write to the store too."""
    database.make()
    fill(database, 3, (HOSTILE, "$", "日本.example"))
    text = made()
    page = Page(text)
    assert "script" not in page.tags
    assert not any(char in text for char in "\u202e\x1b")
    assert any("<script src=" in said for said in page.said)
    said = run().stdout
    assert not any(char in said for char in "\u202e\x1b")


def test_without_the_library_it_says_how_to_install_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.make()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setenv("MPLCONFIGDIR", "/mine")
    said = run("--html", "-", code=1).stderr
    assert said.startswith("Error: plots need matplotlib, which is not installed here: ")
    assert "pip install" in said
    assert os.environ["MPLCONFIGDIR"] == "/mine"
    assert run().exit_code == 0


def test_one_delay_has_a_plot_too() -> None:
    figures = command.Figures(Counter({Total(TODAY, "delay", "", "70"): 3}), TODAY, TODAY, TODAY)
    with plots.drawing():
        assert "<svg " in plots.distribution(figures)


# --- the file -------------------------------------------------------------------------------------


def simulated() -> Simulation:
    found = Simulation(list(WAYS[1]), [Figures(), Figures(), Figures()], lines=9, checks=8, known=1)
    found.first, found.last = NOW - 86400, NOW
    for figures, wait in zip(found.total, (600, 600, 900), strict=True):
        figures.add(Fate(DELAYED, "retry", wait, 2), 5)
        figures.add(Fate(NEVER, "early", deferrals=1), wait // 100)
    found.total[-1].stood_in = 7
    found.settings = [("delay", "5m", "15m")]
    found.rules = "/etc/<rules>"
    return found


def test_what_other_settings_would_have_done_is_told_too(
    database: Database, tmp_path: Path
) -> None:
    made = simulated()
    assert from_data(json.loads(json.dumps(made.as_data()))).as_data()["ways"] == {
        name: {**way, "reasons": {}}
        for name, way in made.as_data()["ways"].items()  # type: ignore[attr-defined]
    }
    (tmp_path / "simulation").write_text(json.dumps(made.as_data()))
    database.make()
    fill(database, 3)
    told = run("--simulation", str(tmp_path / "simulation")).stdout
    assert "What other settings would have done" in told
    assert re.search(r"never came again +6 +6 +9 +\+3\n", told)
    assert re.search(r"longest wait +10m +10m +15m +\+5m\n", told)
    assert f"log         {local_bare(NOW - 86400)} to {local_bare(NOW)}\n" in told
    assert "setting     delay: 5m now, 15m simulated\n" in told
    assert "rules       /etc/<rules>, instead of" in told
    assert "Of 7 mails the log ends before these settings let them pass" in " ".join(told.split())
    page = run("--html", "-", "--simulation", str(tmp_path / "simulation")).stdout
    assert 'aria-labelledby="simulated-title simulated-desc"' in page
    assert "5 of 14 mails wait, 15m on average, 9 never come." in page
    assert "<dt>setting</dt><dd>delay: 5m now, 15m simulated</dd>" in page
    assert "<dd>/etc/&lt;rules&gt;, instead of" in page
    assert "<p>Of 7 mails the log ends before" in page


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"ways": {}}', b'{"ways": {"logged": {}}}'],
)
def test_what_is_no_simulation_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "simulation").write_bytes(content)
    ran = run("--simulation", str(tmp_path / "simulation"), code=1)
    assert ran.stderr.count("\n") == 1
    assert "is not what greycheck simulate --json prints" in ran.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("first", "x"),
        ("last", 10**12),
        ("lines", -1),
        ("lines", 1 << 70),
        ("ways", {"logged": {}}),
        ("ways", []),
        ("settings", {"delay": {"current": "5m"}}),
        ("settings", {"delay": {"current": "5m", "simulated": 5}}),
        ("rules", "x" * 100_000),
    ],
)
def test_a_wrong_value_in_a_simulation_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="is not what"):
        from_data(simulated().as_data() | {name: value})


def test_a_wrong_value_is_refused_without_assertions_too() -> None:
    """As python -O leaves them out."""
    script = (
        "import sys; from greycheck.simulation.figures import Simulation, from_data\n"
        "try: from_data(Simulation(['logged', 'current'], []).as_data() | {'lines': -1})\n"
        "except ValueError: sys.exit(7)"
    )
    ran = subprocess.run([sys.executable, "-O", "-c", script], check=False)
    assert ran.returncode == 7


def test_the_file_is_renamed_into_its_place(database: Database, tmp_path: Path) -> None:
    database.make()
    other, file = tmp_path / "other", tmp_path / "report.html"
    other.write_text("mine")
    file.symlink_to(other)
    run("--html", str(file))
    assert other.read_text() == "mine"
    assert not file.is_symlink()
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert file.stat().st_mode & 0o022 == 0
    run("--html", str(file))
    assert sorted(tmp_path.iterdir()) == [other, file]
    assert "is no regular file" in run("--html", str(tmp_path), code=1).output
    assert "No such file" in run("--html", str(tmp_path / "none" / "x"), code=1).output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_run_by_root_it_is_written_as_the_stores_owner(place: Path, database: Database) -> None:
    database.make()
    for path in (place, *place.iterdir()):
        os.chown(path, 65534, 65534)
    (place / "roots").mkdir(mode=0o755)
    for name, code in (("page.html", 0), ("roots/page.html", 1)):
        ran = subprocess.run(
            [sys.executable, "-m", "greycheck", "report", "--html", str(place / name)],
            env={"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null", **database.environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
    assert (place / "page.html").stat().st_uid == 65534
    assert not (place / "roots" / "page.html").exists()
    assert "Permission denied" in ran.stderr


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [0, 1, 365])
def test_a_browser_shows_it(database: Database, tmp_path: Path, days: int) -> None:
    assert shutil.which("chromium"), "chromium is missing: dev/test installs it"
    assert importlib.util.find_spec("PIL"), "matplotlib needs it"
    from PIL import Image

    database.make()
    if days:
        fill(database, days, tuple(f"{number}.example" for number in range(12)))
    page = tmp_path / "page.html"
    run("--html", str(page), "--from", date_of(TODAY - max(days, 1) + 1).isoformat())
    found = {}
    for scheme, number in (("light", 1), ("dark", 0)):
        picture = tmp_path / f"{scheme}.png"
        ran = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={tmp_path}/browser", "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--blink-settings=preferredColorScheme={number}", "--enable-logging=stderr",
                "--window-size=900,1200", f"--screenshot={picture}", page.as_uri(),
            ],
            env={"PATH": os.defpath, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )  # fmt: skip
        assert picture.exists(), ran.stderr
        # A page that breaks its own rules says so there.
        assert "CONSOLE" not in ran.stderr
        with Image.open(picture) as image:
            assert image.size == (900, 1200)
            colours = image.convert("RGB").getcolors(1 << 24)
        found[scheme] = {colour for _number, colour in colours or []}
    assert (LIGHT in found["light"], DARK in found["dark"]) == (bool(days), bool(days))
    assert (255, 255, 255) in found["light"]
    assert (0x17, 0x18, 0x1B) in found["dark"]
