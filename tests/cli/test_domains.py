"""list, show and forget of senders' domains, as an operator runs them."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from greycheck.cli.main import cli
from greycheck.store.base import domain_key
from greycheck.store.schema import migrate
from greycheck.store.waiting import packed_range
from tests import databases
from tests.support import ACCEPTED, DEFERRED, Child, only_settings

DAY = 86400
LONG = "news." + "a-long-name." * 5 + "example.org"


@pytest.fixture
def store(child: Child, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the child's store, which the commands find."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(child.database))
    monkeypatch.setenv("COLUMNS", "80")
    url = f"sqlite:///{child.database}"
    migrate.upgrade(url)
    return url


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, prog_name="greycheck")
    assert result.exit_code == code, result.output
    assert "\x1b" not in result.output
    if "--json" not in arguments and code != 2:
        wide = [line for line in result.stdout.splitlines() if cell_len(line) > 80]
        assert all(len(line.split()) == 1 for line in wide), wide
    return result


def data(*arguments: str, code: int = 0) -> dict[str, object]:
    found = json.loads(run(*arguments, "--json", code=code).stdout)
    assert isinstance(found, dict)
    return found


def passed(store: str, name: str, passes: int = 1, ago: int = 7200) -> None:
    now = int(time.time())
    row = (domain_key(name.encode()), name, passes, now - 90 * DAY, now - ago, now + DAY)
    databases.fill_url(store, "domain", [row])


def told(
    store: str,
    name: str,
    state: str = "found",
    why: str = "",
    failures: int = 0,
    left: int = DAY - 5,
) -> None:
    now = int(time.time())
    answered = None if state == "failed" else now - 3 * 3600 - 5
    asked = now - 60 if failures else now - 3 * 3600 - 5
    row = (domain_key(name.encode()), name, state, why, 0, answered, asked, failures)
    databases.fill_url(store, "spf", [(*row, now + 605, now + left)])


def network(store: str, name: str, network: str, source: str = "pool", left: int = DAY - 5) -> None:
    first, last = packed_range(network)
    now = int(time.time())
    row = (domain_key(name.encode()) + first, last, source, name, now - 100, now + left)
    databases.fill_url(store, "authorised", [row])


@pytest.fixture
def filled(store: str) -> str:
    passed(store, "gmail.com", 12)
    told(store, "gmail.com")
    for source, where in (("spf", "192.0.2.0/24"), ("client", "198.51.100.4/32")):
        network(store, "gmail.com", where, source)
    network(store, "gmail.com", "198.51.100.5/32", "refused")
    for number in range(3):
        network(store, "pool.example", f"203.0.{number}.0/24")
    told(store, "wide.example", "wide", "0.0.0.0/0 lets everybody send", left=-1)
    told(store, "failed.example", "failed", "SERVFAIL", 2)
    passed(store, LONG, 1, 60 * DAY)
    return store


# --- list -----------------------------------------------------------------------------------------


def test_the_list_tells_what_passed_what_dns_said_and_when_it_is_asked_again(filled: str) -> None:
    title, *lines = run("list", "domains").stdout.splitlines()
    assert title.split() == [
        "domain",
        "passes",
        "used",
        "networks",
        "SPF",
        "asked",
        "next",
        "state",
    ]
    assert [line.split() for line in lines] == [
        ["gmail.com", "12", "2h", "2", "found", "3h", "10m", "known"],
        [LONG],
        ["1", "60d", "0", "-", "-", "-", "unknown"],
        ["failed.example", "-", "-", "0", "failed", "-", "10m", "unknown"],
        ["pool.example", "-", "-", "3", "pool", "-", "-", "-", "pool"],
        ["wide.example", "-", "-", "0", "over", "3h", "10m", "unknown"],
    ]


def test_the_list_is_chosen_counted_cut_and_printed_as_json(filled: str) -> None:
    assert run("list", "domains", "--count").stdout == "5\n"
    assert run("list", "domains", "--domain", "example", "--count").stdout == "3\n"
    found = json.loads(run("list", "domains", "--network", "203.0.1.9", "--json").stdout)
    assert [(each["domain"], each["state"], each["pool_networks"]) for each in found] == [
        ("pool.example", "pool", 3)
    ]
    assert found[0]["spf"] is None
    [gmail] = json.loads(run("list", "domains", "--domain", "gmail.com", "--json").stdout)
    assert gmail["spf"]["state"] == "found"
    assert gmail["key"] == domain_key(b"gmail.com").hex()
    cut = run("list", "domains", "--sort", "early", "--limit", "1").stdout
    assert "gmail.com" in cut
    assert "There are more than these 1: --limit 0 lists all." in cut
    assert "Did you mean domains?" in run("list", "spf", code=2).stderr
    assert "of a domain no address is known" in (
        run("list", "domains", "--address", "a@b", code=2).stderr
    )
    assert run("list", "domains", "--domain", "x.y").stdout.startswith("No such domain")


def test_what_does_not_count_under_the_settings_is_not_known(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DOMAIN_PASSES", "13")
    assert " known" not in run("list", "domains").stdout
    assert "from 13 on" in run("show", "domain", "gmail.com").stdout
    monkeypatch.setenv("GREYCHECK_DOMAIN_PASSES", "0")
    assert "12; domain_passes is off" in run("show", "domain", "gmail.com").stdout
    monkeypatch.setenv("GREYCHECK_IDENTITY", "no")
    assert "not: identity = no" in run("show", "domain", "gmail.com").stdout


def test_status_counts_domains_and_whom_they_let_in(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "domains       1 known; SPF of 1 names 2 networks; no answer for 1\n" in (
        run("status").stdout
    )
    now = int(time.time())
    provider = (domain_key(b"p"), "p", "", "", now, None, now, "", None)
    databases.fill_url(filled, "provider", [provider])
    assert "let in        1 provider; answers of 0 correspondents\n" in run("status").stdout
    assert data("status")["domains"] == 1
    monkeypatch.setenv("GREYCHECK_IDENTITY", "no")
    assert "domains       identity is no\n" in run("status").stdout


# --- show -----------------------------------------------------------------------------------------


def test_a_domain_is_shown_with_its_answer_and_its_networks(filled: str) -> None:
    output = run("show", "domain", "Gmail.com.").stdout
    for words in (
        "domain            gmail.com\n",
        "state             known\n",
        "passes            12; from 1 on",
        "SPF               found: it names the networks",
        "asked again       2",
        "192.0.2.0/24  1m     23h  SPF\n",
        "198.51.100.4  1m     23h  SPF, asked for this address\n",
        "198.51.100.5  1m     23h  SPF, asked: may not send\n",
        "what waits\n  greycheck list pending --domain=gmail.com\n",
    ):
        assert words in output, words


def test_what_failed_is_over_or_was_learnt_is_shown_so(filled: str) -> None:
    wide = run("show", "domain", "wide.example").stdout
    assert "over, does not count any more" in wide.replace("\n" + " " * 18, " ")
    assert "0.0.0.0/0 lets everybody send" in wide
    assert "unknown: it has never passed" in wide
    assert "without an answer, 2 times in a row" in run("show", "domain", "failed.example").stdout
    pool = run("show", "domain", "pool.example").stdout
    assert "not known: greycheck resolve asks for it" in pool
    assert "203.0.2.0/24  1m     23h  learnt as a pool\n" in pool
    told(filled, "pool.example")
    assert "learnt as a pool; SPF counts" in run("show", "domain", "pool.example").stdout


def test_a_domain_is_shown_as_json(filled: str) -> None:
    found = data("show", "domain", "gmail.com")
    assert found["domain"] == "gmail.com"
    assert found["known"]["passes"] == 12  # type: ignore[index]
    assert found["spf"]["failures"] == 0  # type: ignore[index]
    assert [(each["range"], each["source"]) for each in found["networks"]] == [  # type: ignore[attr-defined]
        ("192.0.2.0/24", "spf"),
        ("198.51.100.4", "client"),
        ("198.51.100.5", "refused"),
    ]
    found = data("show", "domain", "pool.example")
    assert (found["known"], found["spf"], found["provider"]) == (None, None, False)


def test_of_an_unknown_domain_nothing_is_known(store: str) -> None:
    assert run("show", "domain", "x.y", code=1).stdout == "Nothing is known of domain x.y.\n"
    assert run("show", "domain", "x.y", "--json", code=1).stdout == "null\n"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (["domain"], "name one domain, as: domain example.org"),
        (["domain", "user@example.org"], "an address: write its domain alone: example.org"),
        (["domain", "."], "no domain: write it as example.org"),
        (["domain", "a", "b", "c"], "name one domain"),
    ],
)
@pytest.mark.parametrize("command", ["show", "forget"])
def test_what_is_no_domain_is_an_error(
    store: str, command: str, what: list[str], message: str
) -> None:
    assert message in run(command, *what, code=2).stderr.replace("\n", " ")


def test_a_hostile_name_moves_no_cursor(store: str) -> None:
    hostile = "\x1b[31mred\u202e.example"
    passed(store, hostile)
    told(store, hostile, "error", "a record \x1b[2J of two")
    network(store, hostile, "192.0.2.0/24")
    assert r"\x1b[31mred\xe2\x80\xae.example" in run("list", "domains").stdout
    run("list", "domains", "--json")
    shown = run("show", "domain", hostile).stdout
    assert r"\x1b[31mred\xe2\x80\xae.example" in shown
    assert r"a record \x1b[2J of two" in shown
    assert r"\x1b[31mx" in run("show", "domain", "\x1b[31mx", code=1).stdout
    assert run("forget", "domain", r"\x1b[31mred\xe2\x80\xae.example").stdout.startswith("1 domain")


def test_before_the_first_mail_there_is_no_domain(
    place: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "none.db"))
    assert "There is no store yet" in run("list", "domains").stdout
    assert run("list", "domains", "--count").stdout == "0\n"
    assert "There is no store yet" in run("show", "domain", "x.y", code=1).stdout
    assert "There is no store yet" in run("forget", "domain", "x.y").stdout


# --- forget ---------------------------------------------------------------------------------------


def test_a_forgotten_domain_waits_again_and_its_answer_stays(store: str, child: Child) -> None:
    passed(store, "example.org")
    told(store, "example.org")
    network(store, "example.org", "192.0.2.0/24", "spf")
    assert child.smtpextfork().verdict == (ACCEPTED, "domain")
    assert run("forget", "domain", "example.org", "--dry-run").stdout == "1 domain to forget.\n"
    assert child.smtpextfork(sender=b"b@example.org").verdict == (ACCEPTED, "domain")
    assert run("forget", "domain", "Example.org").stdout == "1 domain forgotten.\n"
    assert child.smtpextfork(sender=b"c@example.org").verdict == (DEFERRED, "new")
    assert data("show", "domain", "example.org")["spf"] is not None
    assert run("forget", "domain", "example.org").stdout == (
        "No such domain is known: nothing to forget.\n"
    )


def test_what_was_learnt_is_forgotten_alone(store: str, child: Child) -> None:
    passed(store, "example.org")
    network(store, "example.org", "192.0.2.0/24")
    assert child.smtpextfork().verdict == (ACCEPTED, "domain")
    assert data("forget", "domain", "example.org", "--pool") == {
        "dry_run": False,
        "removed": {"triplet": 0, "client": 0, "domain": 1},
    }
    assert data("show", "domain", "example.org")["networks"] == []
    assert data("show", "domain", "example.org")["known"] is not None
    assert child.smtpextfork(sender=b"b@example.org").verdict == (DEFERRED, "new")


def test_those_that_are_listed_are_forgotten(filled: str) -> None:
    assert run("forget", "domains", "--dry-run").stdout == "3 domains to forget.\n"
    assert run("forget", "domains", "--pool", "--dry-run").stdout == "1 domain to forget.\n"
    assert run("forget", "domains", "--network", "203.0.0.0/16").stdout == "1 domain forgotten.\n"
    assert run("list", "domains", "--network", "203.0.0.0/16").stdout.startswith("No such domain")
    for number in range(101):
        passed(filled, f"d{number}.example")
    assert "give --yes" in run("forget", "domains", code=1).stderr
    assert run("forget", "domains", "--yes").stdout == "103 domains forgotten.\n"
    assert "--pool is for domains" in run("forget", "pending", "--pool", code=2).stderr
    assert run("list", "domains", "--count").stdout == "3\n"


def test_the_shell_completes_names_of_domains(filled: str) -> None:
    completed = {"COMP_WORDS": "greycheck show domain gm", "COMP_CWORD": "3"}
    environ = {"_GREYCHECK_COMPLETE": "bash_complete", **completed}
    result = CliRunner().invoke(cli, [], prog_name="greycheck", env=environ)
    assert result.output == "plain,gmail.com\n"
