"""README, CONTRIBUTING and docs/: whole, in step with the program, and no wider than they may
be.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from subprocess import PIPE

import click
import docutils.core
import pytest
from docutils import nodes

from greycheck import policy, settings
from greycheck.cli.config import READERS
from greycheck.cli.main import cli
from greycheck.envelope import Envelope
from greycheck.explain.reasons import REASONS
from tests.support import ROOT

# What is written for people, by its path in the repository.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.rst", "docs/*.rst", "benchmarks/*.rst", "migrations/*.rst")
    for path in ROOT.glob(pattern)
)
OURS = [page for page in PAGES if not page.startswith(("benchmarks/", "migrations/"))]

# How wide a line may be that can be broken, and how long the README.
COLUMNS, README_LINES = 100, 150


@cache
def read(page: str) -> nodes.document:
    """PAGE as docutils reads it. Raises where anything is wrong with it."""
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False}
    found: nodes.document = docutils.core.publish_doctree(
        (ROOT / page).read_text(), source_path=str(ROOT / page), settings_overrides=strict
    )
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_page_is_sound_restructured_text(page: str) -> None:
    assert read(page).children


@cache
def tree() -> dict[str, list[Path]]:
    """Every file of the repository that is no tool's, by its name."""
    found: dict[str, list[Path]] = {}
    hidden = {".git", ".venv", ".deps", "__pycache__"}
    for directory, within, names in os.walk(ROOT):
        within[:] = [name for name in within if name not in hidden and not name.endswith("_cache")]
        for name in names:
            found.setdefault(name, []).append(Path(directory, name))
    return found


# What else is written by hand: shell, C, YAML and Markdown. Of Python ruff says it; strings of JSON
# cannot be broken, and the manual pages are made.
OTHERS = sorted(
    str(path.relative_to(ROOT))
    for paths in tree().values()
    for path in paths
    if path.suffix in (".c", ".h", ".md", ".sh", ".yaml", ".yml", ".cgi")
    or (
        path.relative_to(ROOT).parts[0] in (".ci", "contrib", "dev", "CHANGES")
        and path.suffix not in (".json", ".py")
    )
)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_no_line_is_too_wide_unless_it_cannot_be_broken(page: str) -> None:
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > COLUMNS and " " in line.strip()] == []


def test_files_of_every_kind_are_looked_at() -> None:
    kinds = {Path(page).suffix or Path(page).name for page in OTHERS}
    assert kinds >= {".c", ".md", ".service", ".sh", ".yaml", ".yml", "CHANGES", "run", "test"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.rst").read_text().splitlines()) <= README_LINES


# --- links ----------------------------------------------------------------------------------------


def links(page: str) -> Iterator[tuple[Path, str]]:
    """The files that PAGE links to, and the anchors in them."""
    for reference in read(page).findall(nodes.reference):
        target = str(reference.get("refuri", ""))
        if target and not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield ((ROOT / page).parent / path).resolve() if path else ROOT / page, anchor


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file_and_a_section_of_it(page: str) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{page}: {path}"
        if anchor:
            assert anchor in read(str(path.relative_to(ROOT))).ids, f"{page}: {path}#{anchor}"


def test_each_page_is_two_steps_from_the_readme() -> None:
    first = {path for path, _anchor in links("README.rst")}
    second = {path for path, _anchor in links("docs/index.rst")}
    assert ROOT / "docs" / "index.rst" in first
    assert {ROOT / page for page in PAGES} - first - second <= {ROOT / "CONTRIBUTING.rst"}


# --- files ----------------------------------------------------------------------------------------

# Directories of the repository, and how a name ends that is a file's.
TOP = r"(?:greycheck|tests|docs|dev|contrib|migrations|benchmarks|\.ci)"
FILE = r"[\w.-]+\.(?:py|c|h|rst|md|sh|mako|toml|yaml|service|socket|timer|[58])"


@pytest.mark.parametrize("page", PAGES)
def test_each_file_and_directory_that_is_named_exists(page: str) -> None:
    for text in written(page):
        for path in re.findall(rf"(?<![\w/.~-]){TOP}/[\w./-]*", text):
            assert (ROOT / path.rstrip(".")).exists(), f"{page}: {path}"
        if re.fullmatch(FILE, text) and text not in OTHERS_FILES:
            assert text in tree(), f"{page}: {text}"
        for module in re.findall(r"python -m ([\w.]+)|(?<![\w/.])(greycheck(?:\.\w+){2,})", text):
            name = module[0] or module[1]
            path = ROOT / name.replace(".", "/")
            there = (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py"))
            assert name in tree() or any(one.exists() for one in there), f"{page}: {name}"


# One that is an example, and one of the kernel's.
OTHERS_FILES = {"0005_0003_what_it_is_about.py", "Documentation/power/pm_qos_interface.rst"}


def test_each_document_that_is_named_anywhere_is_there() -> None:
    """In code and tests too: a page, and its section where one is named."""
    suffixes = (
        ".py",
        ".c",
        ".h",
        ".sh",
        ".rst",
        ".md",
        ".toml",
        ".service",
        ".socket",
        ".timer",
        ".mako",
    )
    for path in (path for paths in tree().values() for path in paths):
        inside = path.relative_to(ROOT)
        if path == Path(__file__) or not (
            path.suffix in suffixes or inside.parts[0] in ("dev", "contrib", ".ci", "CHANGES")
        ):
            continue
        for name, anchor in re.findall(
            r"(?<![\w/.-])([\w./-]+\.(?:rst|md))\b(?:#([\w-]+))?", path.read_text()
        ):
            places = [
                found
                for found in (ROOT / name, path.parent / name, ROOT / "docs" / name)
                if found.exists()
            ]
            assert places or name in tree().keys() | OTHERS_FILES, f"{inside}: {name}"
            if anchor:
                page = str(places[0].resolve().relative_to(ROOT))
                assert anchor in read(page).ids, f"{inside}: {name}#{anchor}"


# --- the table of files ---------------------------------------------------------------------------


def test_each_file_and_directory_has_a_place_in_the_table() -> None:
    """Each directory has a row; the two that checks load from have all of their files there."""
    [rows] = [table for table in tables("docs/architecture.rst") if table[0][0] == "greycheck/"]
    placed = dict(rows)
    packages = [path.parent for path in (ROOT / "greycheck").rglob("__init__.py")]
    directories = {f"{path.relative_to(ROOT)}/" for path in packages}
    # Its drivers are one file each, and named by their directory.
    assert directories - placed.keys() == {"greycheck/store/drivers/"}
    for directory in ("greycheck/", "greycheck/store/"):
        for path in sorted((ROOT / directory).glob("*.py")):
            if not path.name.startswith(("__", "compiled_")):
                assert re.search(rf"\b{path.name}\b", placed[directory]), f"{directory}{path.name}"


# --- commands and settings ------------------------------------------------------------------------


def leaves(
    command: click.Command = cli, path: str = "greycheck"
) -> Iterator[tuple[str, click.Command]]:
    """Every command below COMMAND that is no group, by its path."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, f"{path} {name}")
    else:
        yield path, command


def options(command: click.Command) -> set[str]:
    named = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return named | {"--help", "-h", "--"}


COMMANDS = dict(leaves())
EVERY_OPTION = set().union(*map(options, COMMANDS.values()))

# Of other programs: how lines begin that only look like a command of ours, and options that are
# told by themselves.
NO_COMMANDS = {"unix"}
OTHERS_OPTIONS = {"--quick", "--system-site-packages", "--rounds", "--ten-million"}


def written(page: str) -> Iterator[str]:
    """What PAGE has as a program would read it: each literal, and each line of an indented
    paragraph.
    """
    for literal in read(page).findall(nodes.literal):
        yield " ".join(literal.astext().split())
    for block in read(page).findall(nodes.literal_block):
        yield from (line.strip() for line in block.astext().splitlines())


def words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def command_lines(page: str) -> Iterator[list[str]]:
    """The arguments of each command line of greycheck in PAGE."""
    for text in written(page):
        given = words(text)
        for place, word in enumerate(given[:-1]):
            if word.endswith("/greycheck") or (
                word == "greycheck" and (place == 0 or given[0] in ("envdir", "sudo"))
            ):
                yield given[place + 1 :]
                break


def is_a_word(text: str) -> bool:
    return re.fullmatch(r"[a-z][a-z-]+", text) is not None


@pytest.mark.parametrize("page", OURS)
def test_each_command_and_option_that_is_named_exists(page: str) -> None:
    for arguments in command_lines(page):
        if not is_a_word(arguments[0]) or arguments[0] in NO_COMMANDS:
            continue
        command: click.Command = cli
        rest = list(arguments)
        while isinstance(command, click.Group) and rest and is_a_word(rest[0]):
            assert rest[0] in command.commands, f"{page}: greycheck {' '.join(arguments)}"
            command = command.commands[rest.pop(0)]
        for word in rest:
            if word.startswith("-") and not isinstance(command, click.Group):
                assert word.strip("[]") in options(command), (
                    f"{page}: greycheck {' '.join(arguments)}"
                )


@pytest.mark.parametrize("page", OURS)
def test_each_option_that_stands_by_itself_exists(page: str) -> None:
    for text in written(page):
        if text.startswith("--") and text != "--":
            assert words(text)[0] in EVERY_OPTION | OTHERS_OPTIONS, f"{page}: {text}"


def test_each_command_is_documented() -> None:
    told = " ".join(written("docs/operating.rst")) + " "
    for path in COMMANDS:
        assert f"{path} " in told, path


SETTINGS = {setting.name: setting for setting in settings.TABLE}

# Others' settings, which are written as ours are.
OTHERS_SETTINGS = {
    "greycheck_time_limit",
    "ignore_startup_parameters",
    "location",
    "synchronous",
}


def tables(page: str) -> Iterator[list[list[str]]]:
    """The rows of each table of PAGE, as text, without its head."""
    for table in read(page).findall(nodes.table):
        [body] = table.findall(nodes.tbody)
        yield [
            [" ".join(entry.astext().split()) for entry in row.findall(nodes.entry)]
            for row in body.findall(nodes.row)
        ]


@pytest.mark.parametrize("page", OURS)
def test_no_row_of_a_table_is_the_end_of_the_one_above(page: str) -> None:
    """In a simple table, text in the first column begins a row."""
    for table in tables(page):
        assert [row for row in table if not any(row[1:])] == []


def test_each_setting_is_documented_with_default_and_meaning() -> None:
    rows = [tuple(row) for table in tables("docs/settings.rst") for row in table]
    assert rows == [(setting.name, setting.text, setting.meaning) for setting in settings.TABLE]


@pytest.mark.parametrize("reader", READERS)
def test_each_program_is_documented_with_the_settings_that_it_reads(reader: str) -> None:
    [item] = (
        item
        for item in read("docs/settings.rst").findall(nodes.definition_list_item)
        if item[0].astext() == reader
    )
    named = [one.astext() for one in item[1].findall(nodes.literal) if one.astext() in SETTINGS]
    if reader == "check":
        first = [row[0] for row in next(tables("docs/settings.rst"))]
        # All of it, but what is named.
        besides = [name for name in named if name not in first]
        named = [name for name in first if name not in named] + besides
    assert named == [name for name, one in SETTINGS.items() if reader in one.where.split(", ")]


@pytest.mark.parametrize("page", OURS)
def test_each_setting_that_is_named_exists(page: str) -> None:
    for text in written(page):
        found = re.match(r"([a-z][a-z0-9_]*) = ", text)
        if found and "${" not in text:  # which is Exim's
            assert found[1] in SETTINGS.keys() | OTHERS_SETTINGS, f"{page}: {text}"
        for name in re.findall(r"\bGREYCHECK_([A-Z0-9_]+)", text):
            assert name.lower() in SETTINGS.keys() | {"config"}, f"{page}: {text}"


@cache
def sources() -> str:
    """All code, and what goes with it."""
    suffixes = {".py", ".c", ".sh", ".service", ".socket", ".timer", ".toml"}
    places = [ROOT / name for name in ("greycheck", "tests", "contrib", "migrations", "benchmarks")]
    files = [path for place in places for path in place.rglob("*") if path.suffix in suffixes]
    return (
        "\n".join(path.read_text() for path in files if path != Path(__file__))
        + (ROOT / "pyproject.toml").read_text()
    )


# Of other programs, and not used here.
OTHERS_WORDS = {"ssl_verify_cert", "ssl_verify_identity"}


@pytest.mark.parametrize("page", OURS)
def test_each_word_with_an_underscore_is_one_of_the_code(page: str) -> None:
    """A setting, an attribute or a function that has another name by now is found so."""
    for text in written(page):
        if re.fullmatch(r"[a-z]+(_[a-z]+)+", text) and text not in OTHERS_WORDS:
            assert re.search(rf"\b{text}\b", sources()), f"{page}: {text}"


# --- what is decided ------------------------------------------------------------------------------


def test_the_order_of_reasons_is_that_of_the_code() -> None:
    [rows] = [table for table in tables("docs/decision.rst") if table[0][0] == "incomplete"]
    reasons = {reason: verdict for reason, verdict, _when in rows}
    assert list(reasons.items()) == [(name, reason.verdict) for name, reason in REASONS.items()]


def test_the_phases_are_those_of_the_code() -> None:
    [rows] = [table for table in tables("docs/decision.rst") if table[0][0] == "absent"]
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_POOL_NETWORKS": b"0"})
    found.network_limit = found.pending_limit = 0
    found.identity = "no"
    now, reasons = 1_800_000_000, {}
    for row in (
        None,
        policy.TripletRow(now - 9, now - 9),
        policy.TripletRow(now - found.delay, now - 9),
        policy.TripletRow(0, now, 0, 1, 0),
        policy.TripletRow(0, 0),
    ):
        decision = policy.Decision(Envelope("spp", "192.0.2.1", b"a@b", b"c@d"), found, now)
        assert decision.advance() == policy.ROWS
        decision.take_rows(policy.Rows(row))
        assert decision.advance() == policy.NOTHING
        reasons[decision.phase] = decision.reason
    assert {phase: reason for phase, _when, reason in rows} == reasons


# --- commands that are there to be typed ----------------------------------------------------------


def test_the_two_commands_are_there() -> None:
    for command in ("dev/demo", "dev/test"):
        assert f"\n    {command}\n" in (ROOT / "README.rst").read_text()
        assert (ROOT / command).stat().st_mode & 0o111
    assert "\nsh dev/test\n" in (ROOT / ".ci" / "run").read_text()


def test_what_runs_before_a_commit_is_what_ci_runs() -> None:
    hooks = re.findall(r"entry: \.venv/bin/(.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    ci = (ROOT / "dev" / "test").read_text().replace('"$bin/', "").replace('"', "")
    assert len(hooks) == 4
    for hook in hooks:
        if hook.startswith("pytest"):
            assert (ROOT / hook.split()[-1]).exists()
        else:
            assert re.search(rf"^{hook}\b", ci, re.MULTILINE), hook


@pytest.mark.parametrize(
    ("page", "title", "number", "within"),
    [
        ("README.rst", "Install", 1, "apt-get install python3-venv"),
        ("docs/resident.rst", "Hosts without qmail", 1, "systemctl enable --now greycheck.service"),
        ("docs/postfix.rst", "Postfix", 1, "smtpd_recipient_restrictions ="),
        ("docs/postfix.rst", "Postfix", 2, "swaks --server mx.example.net"),
    ],
)
def test_the_first_hour_finds_its_lines(page: str, title: str, number: int, within: str) -> None:
    script = (ROOT / "dev" / "first_hour").read_text()
    assert re.search(rf'(type_in|page) {page} "?{title}"? {number}\b', script)
    function = script[script.index("page() {") :].partition("\n}\n")[0]
    ran = subprocess.run(
        ["sh", "-euc", f'{function}\n}}\npage "$@"', "sh", page, title, str(number)],
        cwd=ROOT,
        stdout=PIPE,
        check=True,
    )
    assert within in ran.stdout.decode()


# --- figures --------------------------------------------------------------------------------------


def number(text: str) -> float:
    """The first number in TEXT."""
    found = re.search(r"[0-9]+(\.[0-9]+)?", text)
    assert found, text
    return float(found[0])


def is_within(measured: str, aim: str) -> bool:
    """Whether the figure MEASURED is one that AIM allows."""
    if aim.startswith("at most"):
        return number(measured) <= number(aim)
    assert aim.startswith("at least"), aim
    return number(measured) >= number(aim)


def test_each_figure_is_within_its_aim_or_stands_with_those_that_are_not() -> None:
    found, missed = tables("docs/figures.rst")
    aims = [(what, measured, aim) for what, measured, aim in found if aim]
    assert len(aims) > len(found) / 2
    assert [what for what, measured, aim in aims if not is_within(measured, aim)] == []
    assert [what for what, measured, aim in missed if is_within(measured, aim)] == []


def test_figures_of_the_readme_are_among_all_figures() -> None:
    told = (ROOT / "docs" / "figures.rst").read_text()
    [rows] = [table for table in tables("README.rst") if "known triplet" in table[0][0]]
    for _what, measured in rows:
        for figure in re.findall(r"[0-9]+\.[0-9]+", measured):
            assert figure in told, figure
