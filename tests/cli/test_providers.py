"""Providers as an operator adds, refreshes, lists and removes them, against a real name server, and
what the real child makes of them.
"""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dns.rcode
import pytest
from click.testing import CliRunner, Result

from greycheck.cli.main import cli
from greycheck.spf.providers import KNOWN
from tests.dns_servers import Liar, Nsd, says, silent
from tests.support import (
    ACCEPTED,
    DEFERRED,
    REJECTED,
    ROOT,
    Child,
    Database,
    both_ways,
    in_every_store,
    on_every_database,
    only_settings,
)

A = "192.0.2.0/24"
B = "198.51.100.0/25"
C = "2001:db8::/32"


def spf(*networks: str, rest: str = "-all") -> str:
    kinds = [f"ip{6 if ':' in each else 4}:{each}" for each in networks]
    return f'@ TXT "{" ".join(["v=spf1", *kinds, rest])}"'


ZONES = {
    "a.example.": spf(A, C),
    "b.example.": spf("192.0.2.128/25", B),
    "both.example.": spf(B, rest="exists:%{i}.both.example -all"),
    "client.example.": spf(rest="exists:%{i}.client.example -all"),
    "nobody.example.": spf(),
    "wide.example.": spf("0.0.0.0/0"),
    "wrong.example.": '@ TXT "v=spf1 ip4:what -all"',
    "silent.example.": '@ TXT "no spf"',
    "icloud.com.": spf(B),
    "gmx.net.": spf(A),
    "gmx.com.": spf(B),
}


@pytest.fixture(scope="module")
def zones() -> Iterator[Nsd]:
    with Nsd(ZONES) as server:
        yield server


@pytest.fixture
def nsd(zones: Nsd) -> Iterator[Nsd]:
    """A name server whose zones a test may replace."""
    yield zones
    zones.replace(ZONES)


@pytest.fixture
def store(
    child: Child, database: Database, zones: Nsd, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """A store that the commands find, with a name server."""
    only_settings(monkeypatch, database.environ)
    monkeypatch.setenv("GREYCHECK_RESOLVER", zones.address)
    monkeypatch.setenv("COLUMNS", "80")
    database.make()
    return database


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ("providers", *arguments), prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def add(*names: str) -> Result:
    return run("add", "--yes", *names)


def data(*arguments: str, code: int = 0) -> list[dict[str, object]]:
    found = json.loads(run(*arguments, "--json", code=code).stdout)
    assert isinstance(found, list)
    return found


def ranges(store: Database) -> list[tuple[object, ...]]:
    return store.rows("SELECT network_key, last, name FROM authorised ORDER BY network_key")


# --- what the child makes of them -----------------------------------------------------------------


@both_ways
@in_every_store
def test_what_a_provider_sends_passes_at_its_first_attempt(store: Database, child: Child) -> None:
    assert child.smtpextfork(client="192.0.2.1").verdict == (DEFERRED, "new")
    add("a.example", "b.example")
    ran = child.smtpextfork(client="192.0.2.1")
    assert ran.verdict == (ACCEPTED, "provider")
    assert " provider=a.example " in ran.log
    ran = child.smtpextfork(client="192.0.2.200", sender=b"")
    assert (ran.verdict, " provider=a.example,b.example " in ran.log) == (
        (ACCEPTED, "provider"),
        True,
    )
    assert child.smtpextfork(client="2001:db8::7").verdict == (ACCEPTED, "provider")
    for stranger in ("192.0.1.255", "192.0.3.0", "198.51.100.128", "2001:db9::"):
        assert child.smtpextfork(client=stranger).verdict == (DEFERRED, "new")
    run("remove", "a.example")
    assert child.smtpextfork(client="192.0.2.1").verdict == (DEFERRED, "early")
    assert child.smtpextfork(client="192.0.2.200").verdict == (ACCEPTED, "provider")
    run("remove", "b.example")
    assert child.smtpextfork(client="192.0.2.200").code == DEFERRED


@pytest.mark.parametrize(
    ("action", "code", "reason"),
    [("reject", REJECTED, "rule"), ("greylist", DEFERRED, "new"), ("allow", ACCEPTED, "rule")],
)
def test_a_rule_comes_before(
    store: Database, child: Child, action: str, code: int, reason: str
) -> None:
    add("a.example")
    CliRunner().invoke(cli, (action, "192.0.2.1"), prog_name="greycheck")
    assert child.smtpextfork(client="192.0.2.1").verdict == (code, reason)
    assert child.smtpextfork(client="192.0.2.2").verdict == (ACCEPTED, "provider")


@both_ways
@on_every_database
@pytest.mark.one_way
def test_where_identities_are_observed_it_is_only_logged(store: Database, child: Child) -> None:
    add("a.example")
    child.settings |= {"GREYCHECK_IDENTITY": "observe"}
    ran = child.smtpextfork(client="192.0.2.1")
    assert ran.verdict == (DEFERRED, "new")
    assert " by_identity=provider " in ran.log
    assert "by_identity" not in child.smtpextfork(client="192.0.3.1").log


def test_where_identities_are_off_nobody_is_let_in(
    store: Database, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_IDENTITY", "no")
    assert "identity = no" in add("a.example").stderr
    child.settings |= {"GREYCHECK_IDENTITY": "no"}
    ran = child.smtpextfork(client="192.0.2.1")
    assert ran.verdict == (DEFERRED, "new")
    assert "by_identity" not in ran.log


def test_it_is_not_let_in_for_longer_than_it_is_one(store: Database, child: Child) -> None:
    """Nothing is recorded of what passes so: neither triplet nor client becomes known."""
    add("a.example")
    for _attempt in range(2):
        assert child.smtpextfork(client="192.0.2.1").verdict == (ACCEPTED, "provider")
    run("remove", "a.example")
    assert child.smtpextfork(client="192.0.2.1").verdict == (DEFERRED, "new")


def test_a_list_counts_however_old_it_is(store: Database, child: Child) -> None:
    add("a.example")
    store.age(400 * 86400)
    assert child.smtpextfork(client="192.0.2.1").verdict == (ACCEPTED, "provider")


def test_explain_names_the_provider_and_how_to_let_it_in_no_more(
    store: Database, child: Child
) -> None:
    add("a.example", "b.example")
    envelope = ("192.0.2.200", "alice@example.org", "bob@example.net")
    said = CliRunner().invoke(cli, ("explain", *envelope), prog_name="greycheck").stdout
    assert "in a network of a.example, b.example" in said
    assert "greycheck providers remove a.example b.example" in said
    said = CliRunner().invoke(cli, ("explain", "192.0.3.1", *envelope[1:])).stdout
    assert "in none of them" in said


# --- adding ---------------------------------------------------------------------------------------


def test_what_it_would_let_in_is_shown_before_anything_is_written(store: Database) -> None:
    said = run("add", "a.example", code=1)
    assert said.stdout.splitlines() == ["new: a.example, 2 networks", f"  + {A}", f"  + {C}"]
    assert "Nothing was changed: give --yes" in said.stderr
    assert run("add", "a.example", "--dry-run").stdout.endswith("Dry run: nothing was changed.\n")
    assert data("list") == []
    assert ranges(store) == []


def test_adding_twice_changes_nothing_but_the_comment(store: Database) -> None:
    add("a.example", "--comment", "first")
    assert add("a.example").stdout == "unchanged: a.example, 2 networks\n"
    assert data("list")[0]["comment"] == "first"
    run("add", "A.Example.", "--comment", "second")  # nothing to ask: no network changes
    assert [one["comment"] for one in data("list")] == ["second"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wide.example", "wide.example: its SPF is too wide: too many addresses pass"),
        ("wrong.example", "wrong.example: its SPF is wrong: "),
        ("silent.example", "silent.example: no SPF record"),
        ("nobody.example", "nobody.example: nobody may send"),
        ("client.example", "client.example: only a client itself can tell whether it may send"),
        ("unknown.example", "unknown.example: DNS did not answer: "),
        ("gogle", "(greycheck providers known). Did you mean google?"),
        ("\x1b[31m.example", "\\x1b[31m.example: neither a domain"),
    ],
)
def test_what_cannot_be_let_in_is_refused_in_words_and_the_others_with_it(
    store: Database, name: str, words: str
) -> None:
    said = run("add", "--yes", "a.example", name, code=1).stderr
    assert words in said
    assert "\x1b" not in said
    assert data("list") == []


def test_what_depends_on_the_client_is_told(store: Database) -> None:
    said = add("both.example")
    assert f"  + {B}" in said.stdout
    assert "note: both.example: of other clients only they themselves can tell" in said.stderr
    assert data("add", "--yes", "both.example")[0]["depends_on_client"] is True


def test_a_known_provider_is_added_by_its_name(store: Database, child: Child) -> None:
    assert "new: icloud.com (apple), 1 network" in add("apple").stdout
    assert child.smtpextfork(client="198.51.100.7").log.count(" provider=icloud.com ") == 1
    add("gmx")
    assert [one["provider"] for one in data("list", "gmx")] == ["gmx.com", "gmx.net"]
    assert {one["known_as"] for one in data("list")} == {"apple", "gmx"}
    run("remove", "gmx")
    assert [one["provider"] for one in data("list")] == ["icloud.com"]


def test_the_known_ones_are_listed_and_no_store_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", "/nonexistent/greycheck.db")
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("known").stdout.splitlines()
    assert len(lines) == len(KNOWN) + 1
    assert ["google", "_spf.google.com"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 80
    assert {"name": "yandex", "domains": ["_spf.yandex.net"]} in data("known")


@pytest.mark.parametrize(
    ("comment", "words"), [("a\x1b[1m", "of printable characters"), ("x" * 1001, "no longer than")]
)
def test_a_comment_is_one_line_of_text(store: Database, comment: str, words: str) -> None:
    said = run("add", "--yes", "--comment", comment, "a.example", code=1).stderr
    assert words in said
    assert data("list") == []


# --- refreshing -----------------------------------------------------------------------------------


def test_a_refresh_shows_what_comes_and_goes_and_changes_that(
    store: Database, nsd: Nsd, child: Child
) -> None:
    add("a.example", "b.example")
    nsd.replace(ZONES | {"a.example.": spf(A, B)})
    shown = ["changed: a.example, 2 networks: 1 more, 1 less", f"  + {B}", f"  - {C}"]
    before = ranges(store)
    assert run("refresh", code=1).stdout.splitlines() == [
        *shown,
        "unchanged: b.example, 2 networks",
    ]
    dry = run("refresh", "--dry-run").stdout.splitlines()
    assert dry[:-1] == [*shown, "unchanged: b.example, 2 networks"]
    assert ranges(store) == before
    assert run("refresh", "--yes").stdout.splitlines() == shown
    assert child.smtpextfork(client="198.51.100.7").verdict == (ACCEPTED, "provider")
    assert child.smtpextfork(client="2001:db8::7").verdict == (DEFERRED, "new")


def test_where_nothing_has_changed_cron_sends_no_mail(store: Database) -> None:
    add("a.example")
    store.age(9 * 86400)
    assert run("refresh", "--yes").output == ""
    [found] = data("list")
    assert found["is_old"] is False
    assert found["answered_at"] == found["asked_at"]
    run("remove", "a.example")
    assert run("refresh", "--yes").output == ""


def test_one_of_several_can_be_refreshed(store: Database, nsd: Nsd) -> None:
    add("a.example", "b.example")
    nsd.replace(ZONES | {"a.example.": spf(A), "b.example.": spf(B)})
    assert "changed: b.example" in run("refresh", "--yes", "b.example").stdout
    assert [len(one["networks"]) for one in data("list")] == [2, 1]  # type: ignore[arg-type]


def test_the_old_list_stays_when_dns_does_not_answer(
    store: Database, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("a.example")
    store.age(3 * 86400)
    [before] = data("list")
    with Liar(says(dns.rcode.SERVFAIL)) as liar:
        monkeypatch.setenv("GREYCHECK_RESOLVER", liar.address)
        said = run("refresh", "--yes", code=1)
    assert said.stdout == ""
    assert "a.example: DNS did not answer: " in said.stderr
    assert "its list of 3d ago stays" in " ".join(said.stderr.split())
    [found] = data("list")
    assert found["answered_at"] == before["answered_at"]
    assert int(str(found["asked_at"])) >= int(str(before["asked_at"])) + 3 * 86400
    assert (found["state"], found["networks"]) == ("failed", [A, C])
    assert str(found["why"]).startswith("DNS did not answer: ")
    assert child.smtpextfork(client="192.0.2.1").verdict == (ACCEPTED, "provider")


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        (spf("0.0.0.0/0"), "its SPF is too wide"),
        ('@ TXT "v=spf1 ip4:what -all"', "its SPF is wrong"),
        ('@ TXT "no spf"', "no SPF record"),
    ],
)
def test_the_old_list_stays_when_there_is_no_good_one(
    store: Database, nsd: Nsd, zone: str, words: str
) -> None:
    add("a.example", "b.example")
    before = ranges(store)
    nsd.replace(ZONES | {"a.example.": zone})
    assert words in run("refresh", "--yes", code=1).stderr
    assert ranges(store) == before
    assert words in run("list").stdout


def test_a_provider_that_says_that_nobody_sends_is_let_in_no_more(
    store: Database, nsd: Nsd, child: Child
) -> None:
    add("a.example")
    nsd.replace(ZONES | {"a.example.": spf()})
    said = run("refresh", "--yes")
    assert (f"  - {A}" in said.stdout, "nobody may send" in said.stderr) == (True, True)
    assert child.smtpextfork(client="192.0.2.1").verdict == (DEFERRED, "new")
    assert data("list")[0]["networks"] == []


def test_json_tells_what_changes_and_does_not_ask(store: Database, nsd: Nsd) -> None:
    add("a.example")
    nsd.replace(ZONES | {"a.example.": spf(A, B)})
    [change] = data("refresh", code=1)
    assert (change["what"], change["added"], change["removed"], change["done"]) == (
        "changed",
        [B],
        [C],
        False,
    )
    [change] = data("refresh", "--yes")
    assert change["done"] is True
    assert change["provider"] == data("list")[0]


def test_where_no_name_server_listens_it_says_so_and_exits_with_1(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("a.example")
    with Liar(silent) as liar:
        nobody = liar.address
    monkeypatch.setenv("GREYCHECK_RESOLVER", nobody)
    assert "DNS did not answer" in run("refresh", "--yes", code=1).stderr


# --- asking ---------------------------------------------------------------------------------------


def asked(store: Database, zones: Nsd, answer: bytes, *arguments: str) -> tuple[int, str]:
    """The exit code and the output of a command on a terminal where ANSWER is typed."""
    leader, terminal = pty.openpty()
    environ = {
        **store.environ,
        "GREYCHECK_CONFIG": "/dev/null",
        "GREYCHECK_RESOLVER": zones.address,
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "greycheck", "providers", *arguments]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environ
    )
    os.close(terminal)
    os.write(leader, answer)
    said = b""
    while True:
        try:
            said += os.read(leader, 65536)
        except OSError:
            break
    os.close(leader)
    return process.wait(), said.decode()


@pytest.mark.parametrize(
    ("answer", "code", "left"), [(b"y\n", 0, 3), (b"n\n", 1, 0), (b"\n", 1, 0)]
)
def test_on_a_terminal_it_asks_first(
    store: Database, zones: Nsd, answer: bytes, code: int, left: int
) -> None:
    ended, said = asked(store, zones, answer, "add", "a.example", "icloud.com")
    assert ended == code, said
    assert said.index(f"+ {A}") < said.index("[y/N]")
    assert ("Nothing was changed." in said) == (code == 1)
    assert len(ranges(store)) == left


def test_it_does_not_ask_where_there_is_nothing_to_ask(store: Database, zones: Nsd) -> None:
    add("a.example")
    ended, said = asked(store, zones, b"", "refresh")
    assert (ended, said.splitlines()) == (0, ["unchanged: a.example, 2 networks"])


# --- removing -------------------------------------------------------------------------------------


def test_removing_one_leaves_what_the_other_shares_with_it(store: Database) -> None:
    add("a.example", "b.example")
    assert run("remove", "a.example").stdout == (
        "removed: a.example, 2 networks, some of them still let in by another\n"
    )
    assert {name for _key, _last, name in ranges(store)} == {"b.example"}
    assert run("remove", "b.example").stdout == "removed: b.example, 2 networks\n"
    assert ranges(store) == []


def test_of_names_that_are_not_there_nothing_is_removed(store: Database) -> None:
    add("a.example")
    assert "b.example: no such provider is let in. Did you mean a.example?" in " ".join(
        run("remove", "a.example", "b.example", code=1).stderr.split()
    )
    assert len(data("list")) == 1


# --- seeing ---------------------------------------------------------------------------------------


def test_the_list_tells_count_age_and_state(store: Database) -> None:
    add("apple", "a.example", "--comment", "they send invoices, and some more words than have room")
    store.age(9 * 86400 + 60)
    add("b.example")
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["PROVIDER", "NETWORKS", "ANSWERED", "STATE", "COMMENT"]
    found = [line.split()[:5] for line in lines[1:4]]
    just_now = found[1][2]
    assert re.fullmatch(r"\d{1,2}s", just_now)  # of whatever it took to list it
    assert found == [
        ["a.example", "2", "9d", "ago", "old"],
        ["b.example", "2", just_now, "ago", "ok"],
        ["icloud.com", "1", "9d", "ago", "old"],
    ]
    assert lines[4] == "note: some are old: greycheck providers refresh"
    assert max(map(len, lines)) <= 80


def test_a_long_name_is_not_broken(store: Database, nsd: Nsd) -> None:
    name = "a-provider-with-a-name-as-long-as-some-have." + "b" * 18 + ".example"
    nsd.replace(ZONES | {f"{name}.": spf(A)})
    add(name)
    said = run("list").stdout + run("list", name).stdout
    assert said.count(name) == 2
    assert max(map(len, said.splitlines())) <= 80


def test_one_is_shown_with_its_networks(store: Database) -> None:
    add("a.example", "--comment", "why")
    lines = [line.split() for line in run("list", "a.example").stdout.splitlines()]
    assert ["provider", "a.example"] in lines
    assert ["comment", "why"] in lines
    assert ["state", "ok"] in lines
    assert ["networks", "2"] in lines
    assert lines[-2:] == [[A], [C]]


def test_a_clients_address_leads_to_its_providers(store: Database) -> None:
    add("a.example", "b.example")
    assert run("list", "192.0.2.200").stdout.splitlines() == [
        "192.0.2.0/24  a.example",
        "192.0.2.128/25  b.example",
    ]
    assert [one["network"] for one in data("list", "2001:db8::7")] == [C]
    assert "in no network" in run("list", "192.0.3.1", code=1).stdout


def test_without_any_it_says_how_to_begin(store: Database) -> None:
    assert run("list").stdout == "No provider is let in. Choose: greycheck providers known\n"
    assert run("refresh").stdout == "No provider is let in. Choose: greycheck providers known\n"
    assert data("list") == []
    assert data("refresh") == []


def test_before_the_first_mail_there_is_none(
    place: Path, store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "other.db"))
    assert data("list") == []
    assert run("refresh", "--yes").output == ""
    assert not (place / "other.db").exists()
