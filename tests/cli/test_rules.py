"""Rules as an operator makes, lists, checks and exchanges them, and what the real child makes of
them.
"""

import json
import sqlite3
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck.cli.main import cli
from greycheck.cli.rules import ends
from greycheck.rules.rule import Rule
from greycheck.store.schema import migrate
from tests.support import ACCEPTED, DEFERRED, REJECTED, Child, only_settings


@pytest.fixture
def store(child: Child, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the child, which the commands find."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(child.database))
    monkeypatch.setenv("COLUMNS", "80")
    migrate.upgrade(f"sqlite:///{child.database}")
    return child.database


def run(*arguments: str, code: int = 0, text: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(cli, arguments, input=text, prog_name="greycheck")
    assert result.exit_code == code, result.output
    return result


def rows(*arguments: str, code: int = 0) -> list[dict[str, object]]:
    found = json.loads(run(*arguments, "--json", code=code).stdout)
    assert isinstance(found, list)
    return found


# --- what the child makes of them -----------------------------------------------------------------


def test_allowed_mail_passes_at_once(store: Path, child: Child) -> None:
    assert child.smtpextfork().verdict == (DEFERRED, "new")
    run("allow", "192.0.2.0/24")
    ran = child.smtpextfork()
    assert ran.verdict == (ACCEPTED, "rule")
    assert " rule=192.0.2.0/24 " in ran.log
    assert child.smtpextfork(client="198.51.100.1").verdict == (DEFERRED, "new")


@pytest.mark.parametrize(
    "pattern",
    [
        "192.0.2.1",
        "0.0.0.0/0",
        "helo:client.example.org",
        "helo:.example.org",
        "from:alice@example.org",
        "from:Alice@",
        "from:.org",
        "to:bob@example.net",
        "to:example.net",
    ],
)
def test_rejected_mail_is_refused_for_good(store: Path, child: Child, pattern: str) -> None:
    run("reject", pattern, "--yes")
    assert child.smtpextfork().verdict == (REJECTED, "rule")


WIDE = [
    "0.0.0.0/0",
    "128.0.0.0/7",
    "::ffff:0:0/96",
    "::/0",
    "2000::/3",
    "2000::/15",
    "from:.com",
    "to:.net",
    "name:.com",
    "helo:.x",
]


@pytest.mark.parametrize("pattern", WIDE)
@pytest.mark.parametrize("action", ["allow", "reject", "greylist"])
def test_a_rule_for_a_large_part_of_all_mail_wants_to_be_meant(
    store: Path, action: str, pattern: str
) -> None:
    assert "give --yes if it is meant" in run(action, pattern, code=1).stderr
    line = f"allow 192.0.2.1\n{action} {pattern}\n"
    assert f"{action} " in run("rules", "import", "-", text=line, code=1).stderr
    assert rows("rules", "list") == []
    assert run(action, pattern, "--yes").stdout.startswith("added: ")
    assert run("rules", "import", "-", text=line).stdout.startswith(
        "added: allow 192.0.2.1"
    )  # the other one is there
    run("rules", "remove", pattern)
    run("rules", "import", "-", "--yes", text=line)
    assert len(rows("rules", "list")) == 2


@pytest.mark.parametrize(
    "pattern",
    ["128.0.0.0/8", "2001::/16", "from:.example.com", "from:com", "to:postmaster", "from:<>"],
)
def test_a_rule_for_a_part_that_somebody_may_have_does_not(store: Path, pattern: str) -> None:
    assert run("reject", pattern).stdout.startswith("added: ")


def test_the_null_sender_may_have_a_rule(store: Path, child: Child) -> None:
    run("reject", "from:<>")
    assert child.smtpextfork(sender=b"").verdict == (REJECTED, "rule")
    assert child.smtpextfork().verdict == (DEFERRED, "new")


SES = "0102016efd924cb8-4e48dd8b-0599-4a87-8084-b51c410b859b-000000@eu-west-1.amazonses.example"
OTHER_CUSTOMER = (
    b"0102016efd948e3c-ed35c055-1123-473d-bcce-03a7adda94e6-000000@eu-west-1.amazonses.example"
)


def test_who_refuses_one_bounce_address_does_not_refuse_all_of_them(
    store: Path, child: Child
) -> None:
    told = run("reject", f"from:{SES}").stderr
    assert "matches this one address" in told
    assert "from:eu-west-1.amazonses.example, or the client's network" in told
    assert child.smtpextfork(sender=SES.encode()).verdict == (REJECTED, "rule")
    assert child.smtpextfork(sender=OTHER_CUSTOMER).verdict == (DEFERRED, "new")


def test_a_rule_for_what_is_folded_is_one_for_all_of_it(store: Path, child: Child) -> None:
    run("allow", "from:bounce-#@example.org")
    run("reject", "from:alice@example.org")
    run("greylist", "from:alice+news@example.org")
    assert child.smtpextfork(sender=b"bounce-98765@example.org").verdict == (ACCEPTED, "rule")
    assert child.smtpextfork(sender=b"prvs=0123456789=alice@example.org").verdict == (
        REJECTED,
        "rule",
    )
    assert child.smtpextfork(sender=b"alice+x@example.org").verdict == (REJECTED, "rule")
    assert child.smtpextfork(sender=b"alice+news@example.org").verdict == (DEFERRED, "new")


def test_a_rule_for_a_host_matches_it_whatever_greylisting_makes_of_its_name(
    store: Path, child: Child
) -> None:
    run("allow", "from:mmh2xurvokdh.a.na63.bnc.example.org")
    sender = b"support=example.com__9m4vlv27x6v0rxwe@%s.a.na63.bnc.example.org"
    assert child.smtpextfork(sender=sender % b"mmh2xurvokdh").verdict == (ACCEPTED, "rule")
    assert child.smtpextfork(sender=sender % b"5hnj2mufr87e").verdict == (DEFERRED, "new")


def test_greylisted_mail_waits_as_long_as_its_rule_says(store: Path, child: Child) -> None:
    run("greylist", "to:bob@example.net", "--delay", "1h")
    ran = child.smtpextfork()
    assert ran.verdict == (DEFERRED, "new")
    assert " wait=3600 " in ran.log
    child.age(600)
    assert child.smtpextfork().verdict == (DEFERRED, "early")
    child.age(3000)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")


def test_a_rule_that_greylists_counts_for_known_clients_too(store: Path, child: Child) -> None:
    child.smtpextfork()
    child.age(600)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")
    assert child.smtpextfork(sender=b"carol@example.org").verdict == (ACCEPTED, "client")
    run("greylist", "192.0.2.1")
    assert child.smtpextfork(sender=b"dave@example.org").verdict == (DEFERRED, "new")


def test_the_most_specific_rule_decides_until_it_is_removed(store: Path, child: Child) -> None:
    run("reject", "192.0.2.0/24")
    run("allow", "192.0.2.1")
    assert child.smtpextfork().verdict == (ACCEPTED, "rule")
    run("rules", "remove", "192.0.2.1")
    assert child.smtpextfork().verdict == (REJECTED, "rule")
    run("rules", "remove", "192.0.2.0/24")
    assert child.smtpextfork().verdict == (DEFERRED, "new")


def test_a_rule_that_is_over_counts_no_longer(store: Path, child: Child) -> None:
    run("allow", "192.0.2.1", "--expires", "7d")
    assert child.smtpextfork().verdict == (ACCEPTED, "rule")
    change(store, "UPDATE rule SET expires_at = 1")
    assert child.smtpextfork().verdict == (DEFERRED, "new")


def test_a_name_allows_only_where_names_are_verified(store: Path, child: Child) -> None:
    assert "allows nothing: verified_names is no" in run("allow", "name:.example.org").stderr
    assert child.smtpextfork(TCPREMOTEHOST="mail.example.org").verdict == (DEFERRED, "new")
    child.settings["GREYCHECK_VERIFIED_NAMES"] = "yes"
    assert child.smtpextfork(TCPREMOTEHOST="mail.example.org").verdict == (ACCEPTED, "rule")
    assert child.smtpextfork(TCPREMOTEHOST="mail.badexample.org").verdict == (DEFERRED, "early")


def test_a_name_that_nobody_verified_may_still_be_rejected(store: Path, child: Child) -> None:
    run("reject", "name:mail.example.org")
    assert child.smtpextfork(TCPREMOTEHOST="mail.example.org").verdict == (REJECTED, "rule")


def test_expected_mail_passes_once(store: Path, child: Child) -> None:
    run("expect", "Bob@Example.net", "--from", "example.org")
    assert child.smtpextfork(sender=b"x@badexample.org").verdict == (DEFERRED, "new")
    ran = child.smtpextfork(sender=b"code@mail.example.org")
    assert ran.verdict == (ACCEPTED, "expected")
    assert " by=to:bob@example.net,from:.example.org " in ran.log
    assert child.smtpextfork(sender=b"other@mail.example.org", client="198.51.100.1").verdict == (
        DEFERRED,
        "new",
    )
    assert run("rules", "list").stdout.startswith("There are no rules")


def test_expected_mail_may_be_anybodys_and_is_not_expected_for_ever(
    store: Path, child: Child
) -> None:
    run("expect", "bob@example.net", "--for", "1h")
    change(store, f"UPDATE rule SET expires_at = {int(time.time()) - 1}")
    assert child.smtpextfork().verdict == (DEFERRED, "new")
    run("expect", "bob@example.net")
    assert child.smtpextfork(client="198.51.100.1").verdict == (ACCEPTED, "expected")


def change(store: Path, statement: str) -> None:
    connection = sqlite3.connect(store)
    with connection:
        connection.execute(statement)
    connection.close()


# --- one rule -------------------------------------------------------------------------------------


def test_one_senders_mail_to_one_recipient_is_deferred_by_one_command(
    store: Path, child: Child
) -> None:
    assert run("defer", "from:john@foodomain.net", "to:joe@joedomain.net").output == (
        "added: defer from:john@foodomain.net to:joe@joedomain.net\n"
    )
    john = {"sender": "john@foodomain.net"}
    for _attempt in range(2):
        ran = child.smtpextfork(**john, recipient="joe@joedomain.net")
        assert ran.verdict == (DEFERRED, "rule")
        assert " rule=from:john@foodomain.net,to:joe@joedomain.net " in ran.log
    assert child.rows("SELECT * FROM triplet") == []
    run("allow", "from:john@foodomain.net")
    assert child.smtpextfork(**john, recipient="joe@joedomain.net").verdict == (DEFERRED, "rule")
    assert child.smtpextfork(**john, recipient="jim@joedomain.net").verdict == (ACCEPTED, "rule")
    other = child.smtpextfork(sender="jane@foodomain.net", recipient="joe@joedomain.net")
    assert other.verdict == (DEFERRED, "new")
    run("rules", "remove", "from:john@foodomain.net to:joe@joedomain.net")
    assert child.smtpextfork(**john, recipient="joe@joedomain.net").verdict == (ACCEPTED, "rule")


@pytest.mark.parametrize(
    "pair",
    [
        ["192.0.2.0/24", "to:bob@example.net"],
        ["helo:.example.org", "to:.net"],
        ["from:alice@", "to:bob@"],
        ["from:alice@example.org to:example.net"],
    ],
)
def test_any_pattern_makes_a_pair_with_a_recipients(
    store: Path, child: Child, pair: list[str]
) -> None:
    run("allow", "to:bob@example.net")
    run("reject", *pair)
    assert child.smtpextfork().verdict == (REJECTED, "rule")
    assert child.smtpextfork(recipient="bobby@example.org").verdict == (DEFERRED, "new")


def test_a_pair_with_a_name_allows_only_where_names_are_verified(store: Path, child: Child) -> None:
    note = run("allow", "name:.example.org", "to:bob@example.net").stderr
    assert "verified_names is no" in note
    named = {"TCPREMOTEHOST": "mx.example.org"}
    assert child.smtpextfork(**named).verdict == (DEFERRED, "new")
    verified = child.smtpextfork(**named, GREYCHECK_VERIFIED_NAMES="yes")
    assert verified.verdict == (ACCEPTED, "rule")


def test_pairs_are_listed_first_and_about_each_of_their_parts(store: Path) -> None:
    run("allow", "from:alice@example.org")
    run("defer", "from:alice@example.org", "to:bob@example.net", "--comment", "why")
    pair = "from:alice@example.org to:bob@example.net"
    assert [row["pattern"] for row in rows("rules", "list")] == [pair, "from:alice@example.org"]
    for about in ("from:.org", "to:example.net", "bob@example.net", "why"):
        assert pair in [row["pattern"] for row in rows("rules", "list", about)]
    [row] = rows("rules", "list", "from:alice@example.org", "to:bob@example.net")
    assert (row["action"], row["pattern"], row["kind"]) == ("defer", pair, "sender")
    assert run("rules", "check").output == "rules: 2, and nothing wrong with them\n"
    assert json.loads(run("status", "--json").stdout)["rules"] == 2


def test_a_pair_to_be_removed_is_one_word(store: Path) -> None:
    """Two words are two rules: nobody's pair is taken for them, and none of them for a pair."""
    run("defer", "from:alice@example.org", "to:bob@example.net")
    result = run("rules", "remove", "from:alice@example.org", "to:bob@example.net")
    assert result.stderr.count("there is no such rule") == 2
    assert len(rows("rules", "list")) == 1


def test_a_pair_of_two_large_parts_wants_to_be_meant(store: Path) -> None:
    wide = ("from:.com", "to:.net")
    message = "every domain in .com, to every domain in .net: give --yes if it is meant"
    assert message in run("defer", *wide, code=1).stderr
    run("defer", *wide, "--yes")
    run("defer", "0.0.0.0/0", "to:bob@example.net")


def test_pairs_are_exported_and_imported(store: Path) -> None:
    run("defer", "from:alice@example.org", "to:bob@example.net", "--comment", "why")
    run("greylist", "192.0.2.0/24", "to:.net", "--delay", "1h")
    text = run("rules", "export").stdout
    assert "defer from:alice@example.org to:bob@example.net # why\n" in text
    assert "greylist 192.0.2.0/24 to:.net delay=1h\n" in text
    assert run("rules", "import", "-", "--replace", text=text).output == "rules: 2 unchanged\n"
    removed = run("rules", "import", "-", "--replace", text="allow 192.0.2.1\n").output
    assert "rules: 1 added, 2 removed\n" in removed
    run("rules", "import", "-", text=text)
    assert len(rows("rules", "list")) == 3


def test_a_command_tells_what_it_changed(store: Path) -> None:
    assert (
        run("allow", "192.0.2.0/24", "--comment", "backup MX").output
        == "added: allow 192.0.2.0/24 # backup MX\n"
    )
    assert (
        run("allow", "192.0.2.0/24", "--comment", "backup MX").output
        == "unchanged: allow 192.0.2.0/24 # backup MX\n"
    )
    assert run("reject", "192.0.2.0/24", "--comment", "").output == (
        "replaced: reject 192.0.2.0/24 (was: allow 192.0.2.0/24 # backup MX)\n"
    )
    assert run("greylist", "192.0.2.0/24", "--delay", "90m").output == (
        "replaced: greylist 192.0.2.0/24 delay=90m (was: reject 192.0.2.0/24)\n"
    )
    assert (
        run("rules", "remove", "192.0.2.0/24").output
        == "removed: greylist 192.0.2.0/24 delay=90m\n"
    )


def test_a_command_tells_what_it_changed_as_json(store: Path) -> None:
    run("allow", "192.0.2.7")
    found = json.loads(run("reject", "192.0.2.7", "--expires", "1h", "--json").stdout)
    [one] = found["changes"]
    assert (one["what"], one["rule"]["action"], one["was"]["action"]) == (
        "replaced",
        "reject",
        "allow",
    )
    assert one["rule"]["expires_at"] - one["rule"]["created_at"] == 3600
    assert found["notes"] == []


def test_a_rule_that_changes_nothing_is_noted_with_the_reason(store: Path) -> None:
    run("allow", "192.0.2.0/24")
    assert run("allow", "192.0.2.7").stderr == (
        "note: allow 192.0.2.7: allow 192.0.2.0/24 has the same effect: remove one of them\n"
    )
    assert run("allow", "192.0.2.7").stderr == ""
    run("reject", "to:bob@example.net")
    assert run("allow", "198.51.100.1").stderr == ""


def test_rules_are_listed_that_are_about_a_pattern(store: Path) -> None:
    for pattern in ("192.0.2.0/24", "198.51.100.0/24", "from:example.org"):
        run("allow", pattern)
    assert [row["pattern"] for row in rows("rules", "list", "192.0.2.7")] == ["192.0.2.0/24"]
    assert run("rules", "list", "example.org").stdout.splitlines() == [
        "ACTION  PATTERN",
        "allow   from:example.org",
    ]
    assert run("rules", "list", "203.0.113.1").stdout == "There is no rule about 203.0.113.1.\n"


def test_a_delay_beyond_the_retry_window_is_noted(store: Path) -> None:
    assert (
        "delay 2d is not shorter than retry_window 2d"
        in run("greylist", "192.0.2.7", "--delay", "2d").stderr
    )


@pytest.mark.parametrize("command", ["allow", "reject", "greylist"])
def test_a_pattern_that_cannot_match_is_refused_and_nothing_changes(
    store: Path, command: str
) -> None:
    assert run(command, "name:*.example.com", code=1).stderr == (
        "Error: name:*.example.com: wildcards do not count here: write name:.example.com for the"
        " domain and what is"
        " under it; a star itself is \\x2a\n"
    )
    assert "Error: to:\\xff@x: has a blank" in run(command, "to:\udcff@x", code=1).stderr
    assert rows("rules", "list") == []


def test_a_rule_that_is_made_again_keeps_its_comment(store: Path) -> None:
    run("allow", "192.0.2.7", "--comment", "backup MX")
    assert run("allow", "192.0.2.7").output == "unchanged: allow 192.0.2.7 # backup MX\n"
    assert run("reject", "192.0.2.7").output.startswith(
        "replaced: reject 192.0.2.7 # backup MX (was: allow 192"
    )
    assert run("reject", "192.0.2.7", "--comment", "").output.startswith(
        "replaced: reject 192.0.2.7 (was: reject 192"
    )
    run("allow", "192.0.2.8", "--comment", "once", "--expires", "1s")
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("UPDATE rule SET expires_at = 1 WHERE expires_at IS NOT NULL")
    connection.close()
    assert run("allow", "192.0.2.8").output == "added: allow 192.0.2.8\n"


def test_a_comment_is_one_line(store: Path) -> None:
    assert "a comment is one line" in run("allow", "192.0.2.7", "--comment", "a\nb", code=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["allow"],
        ["allow", "192.0.2.7", "--delay", "1h"],
        ["greylist", "192.0.2.7", "--delay", "soon"],
        ["allow", "192.0.2.7", "--expires", "0"],
        ["expect", "bob@example.net", "--for", "0s"],
        ["rules", "remove"],
        ["rules", "import"],
        ["rules", "import-postgrey"],
    ],
)
def test_a_wrong_command_line_exits_with_2(store: Path, arguments: list[str]) -> None:
    run(*arguments, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["allow", "192.0.2.7"],
        ["expect", "bob@example.net"],
        ["rules", "list"],
        ["rules", "remove", "192.0.2.7"],
        ["rules", "check"],
        ["rules", "export"],
        ["rules", "import", "-"],
        ["rules", "import-postgrey", "--clients", "/dev/null"],
    ],
)
def test_settings_and_schema_must_be_right(
    store: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    store.unlink()
    assert (
        "there is no store yet: the first mail makes it, or: greycheck db upgrade"
        in run(*arguments, code=1, text="").stderr
    )
    monkeypatch.setenv("GREYCHECK_DELAY", "soon")
    assert (
        "GREYCHECK_DELAY: delay = soon: not a duration" in run(*arguments, code=1, text="").stderr
    )


def test_what_decides_before_an_expectation_is_noted(store: Path) -> None:
    run("reject", "to:bob@example.net")
    run("allow", "to:example.org")
    assert "reject to:bob@example.net decides before: this mail is rejected all the same" in (
        run("expect", "bob@example.net").stderr
    )
    assert (
        "this mail passes anyway"
        in run("expect", "bob@example.org", "--from", "example.com").stderr
    )
    assert run("expect", "bob@example.com").stderr == ""


def test_an_expectation_that_cannot_match_is_refused(store: Path) -> None:
    assert run("expect", "example.net", code=1).stderr == (
        "Error: example.net: write the whole address of the recipient, as bob@example.net\n"
    )
    assert "bob@example.net from a@b: write the sender's domain alone: b" in (
        run("expect", "bob@example.net", "--from", "a@b", code=1).stderr
    )


def test_an_expectation_is_told_and_removed_as_it_is_listed(store: Path) -> None:
    told = json.loads(run("expect", "bob@example.net", "--from", "example.com", "--json").stdout)
    assert told["changes"][0]["rule"]["action"] == "expect"
    [listed] = rows("rules", "list")
    assert listed["pattern"] == "to:bob@example.net from:.example.com"
    assert run("rules", "remove", str(listed["pattern"])).stdout.startswith(
        "removed: expect to:bob@example.net from"
    )


# --- all rules ------------------------------------------------------------------------------------


def test_no_rules_are_listed_with_what_to_do(store: Path) -> None:
    assert (
        run("rules", "list").output
        == "There are no rules. Make one: greycheck allow 192.0.2.0/24\n"
    )
    assert rows("rules", "list") == []


def test_the_list_fits_80_columns(store: Path) -> None:
    run(
        "greylist",
        "from:.example.com",
        "--delay",
        "1h",
        "--expires",
        "36d",
        "--comment",
        "spam [red]and[/red] ham " * 4,
    )
    run("allow", "192.0.2.3")
    run("reject", "to:" + "a" * 100 + "@example.net")
    run("expect", "bob@example.net")
    change(store, "UPDATE rule SET expires_at = 1 WHERE pattern = '192.0.2.3'")
    output = run("rules", "list").stdout
    assert max(len(line) for line in output.splitlines()) <= 80
    assert output.splitlines()[0].split() == ["ACTION", "PATTERN", "DELAY", "ENDS", "COMMENT"]
    assert "[red]and[/red]" in output.replace("\n", "").replace(" ", "").replace("spam", "")
    assert "expired" in output


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (-1, "expired"),
        (0, "expired"),
        (1, "in 1s"),
        (60, "in 1m"),
        (7199, "in 1h"),
        (86400, "in 1d"),
        (None, ""),
    ],
)
def test_the_list_says_when_a_rule_ends(left: int | None, text: str) -> None:
    rule = Rule(
        b"", "network", "192.0.2.1", "allow", expires_at=None if left is None else 1000 + left
    )
    assert ends(rule, 1000) == text


def test_a_column_that_would_be_empty_is_left_out(store: Path) -> None:
    run("allow", "192.0.2.3")
    assert run("rules", "list").stdout.splitlines()[0].split() == ["ACTION", "PATTERN"]


def test_remove_is_done_where_there_is_nothing_to_remove(store: Path) -> None:
    result = run("rules", "remove", "192.0.2.1", "192.0.2.2")
    assert (result.stdout, result.stderr.count("there is no such rule")) == ("", 2)
    assert (
        "192.0.2.300: no address or network" in run("rules", "remove", "192.0.2.300", code=1).stderr
    )


def test_check_exits_with_1_where_something_is_found(store: Path) -> None:
    run("allow", "192.0.2.0/24")
    run("expect", "bob@example.net")
    assert run("rules", "check").output == "rules: 1, and nothing wrong with them\n"
    assert rows("rules", "check") == []
    run("allow", "192.0.2.7")
    assert run("rules", "check", code=1).output == (
        "redundant: allow 192.0.2.7: allow 192.0.2.0/24 has the same effect: remove one of them\n"
    )
    [found] = rows("rules", "check", code=1)
    assert found["what"] == "redundant"


def test_check_tells_a_common_reason_once(store: Path) -> None:
    run("allow", "name:.example.com")
    run("allow", "name:.example.org")
    output = run("rules", "check", code=1).stdout
    assert output.count("verified_names is no") == 1
    assert output.endswith("\n    allow name:.example.com\n    allow name:.example.org\n")


def test_a_terminal_gets_whole_words(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = run("allow", "name:.example.com").stderr.splitlines()
    assert len(lines) > 1
    assert max(len(line) for line in lines) <= 80
    monkeypatch.delenv("FORCE_COLOR")
    assert (
        " ".join(line.strip() for line in lines) + "\n"
        == run("allow", "name:.example.com", "--comment", "x").stderr
    )


def test_what_is_exported_is_imported(store: Path) -> None:
    run(
        "greylist",
        "from:list-return-7-bob=example.net@example.org",
        "--delay",
        "90s",
        "--comment",
        "a # list",
    )
    run("reject", "to:john\\x20doe@example.net", "--expires", "7d")
    run("allow", "2001:db8::/32")
    run("expect", "bob@example.net")
    exported = run("rules", "export").stdout
    assert exported.startswith("# Rules of greycheck, 20")
    before = rows("rules", "list")
    result = run("rules", "import", "-", "--replace", text=exported)
    assert (result.stdout, result.stderr.splitlines()[1:]) == ("rules: 3 unchanged\n", [])
    assert rows("rules", "list") == before
    run("rules", "remove", "2001:db8::/32", "to:john\\x20doe@example.net")
    assert run("rules", "import", "-", text=exported).stdout.count("added: ") == 2


def test_import_names_wrong_lines_and_changes_nothing(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_bytes(b"allow 192.0.2.1\npermit 192.0.2.2\nallow to:\xff@x\n")
    assert run("rules", "import", str(path), code=1).stderr == (
        f"Error: {path}:2: permit: a line begins with allow, reject, greylist or defer\n"
        f"{path}:3: to:\\xff@x: has a blank, or a character that cannot be printed: where it"
        " belongs there, write \\xff\n"
        "nothing was imported\n"
    )
    assert rows("rules", "list") == []
    assert "standard input:1: x: a line" in run("rules", "import", "-", code=1, text="x\n").stderr
    assert "and 5 more\n" in run("rules", "import", "-", code=1, text="x\n" * 25).stderr
    assert (
        "No such file or directory" in run("rules", "import", str(tmp_path / "none"), code=1).stderr
    )


def test_a_byte_order_mark_is_no_part_of_the_first_line(store: Path, tmp_path: Path) -> None:
    (tmp_path / "rules").write_bytes(b"\xef\xbb\xbfallow 192.0.2.1\r\n")
    (tmp_path / "clients").write_bytes(b"\xef\xbb\xbf192.0.2.2\r\n")
    assert run("rules", "import", str(tmp_path / "rules")).stdout.startswith(
        "added: allow 192.0.2.1\n"
    )
    told = run("rules", "import-postgrey", "--clients", str(tmp_path / "clients")).stdout
    assert told == "added: allow 192.0.2.2 # from postgrey\nrules: 1 added\n"


def test_import_may_only_tell(store: Path) -> None:
    run("allow", "192.0.2.1")
    result = run("rules", "import", "-", "--replace", "--dry-run", text="reject 192.0.2.2 # why\n")
    assert result.stdout == (
        "would be added: reject 192.0.2.2 # why\nwould be removed: allow 192.0.2.1\n"
        "rules: 1 added, 1 removed (dry run: nothing was changed)\n"
    )
    assert [one["pattern"] for one in rows("rules", "list")] == ["192.0.2.1"]
    assert json.loads(
        run("rules", "import", "-", "--dry-run", "--json", text="allow 192.0.2.9").stdout
    )["dry_run"]


def test_import_notes_what_is_wrong_with_the_new_rules(store: Path) -> None:
    run("allow", "192.0.2.0/24")
    text = (
        "allow 192.0.2.1\nallow from:a+b@example.org\nallow 192.0.2.9"
        " expires=2020-01-01T00:00:00Z\n"
    )
    assert run("rules", "import", "-", text=text).stderr == (
        "note: standard input:2: matches this one address, which changes from mail to mail: for"
        " all such mail write"
        " from:a@example.org, from:example.org, or the client's network\n"
        "note: standard input:3: 192.0.2.9 expired: left out\n"
        "note: allow 192.0.2.1: allow 192.0.2.0/24 has the same effect: remove one of them\n"
    )


def test_an_empty_file_replaces_nothing(store: Path) -> None:
    run("allow", "192.0.2.1")
    assert (
        "there is no rule in it: nothing was replaced"
        in run("rules", "import", "-", "--replace", code=1, text="#\n").stderr
    )
    assert len(rows("rules", "list")) == 1


# --- postgrey -------------------------------------------------------------------------------------

CLIENTS = r"""# postgrey whitelist for mail client hostnames
# --------------------------------------------

# greylisting.org: Southwest Airlines (unique sender, no retry)
southwest.com
# jcsw.nato.int (several servers, no retry)
195.235.39
193.191.218.141 # mil.be
/^mail\d+\.telekom\.de$/
/\.example\.com$/
southwest.com

192.0.2.77/24
"""


def test_postgreys_whitelists_become_rules_or_are_named_with_the_reason(
    store: Path, child: Child, tmp_path: Path
) -> None:
    clients, recipients = tmp_path / "clients", tmp_path / "recipients"
    clients.write_text(CLIENTS)
    recipients.write_bytes(b"# caf\xe9\npostmaster@\n")
    arguments = [
        "rules",
        "import-postgrey",
        "--clients",
        str(clients),
        "--recipients",
        str(recipients),
    ]
    assert run(*arguments, "--dry-run").stdout.count("would be added: allow") == 6
    result = run(*arguments)
    assert result.stdout == (
        "added: allow name:.southwest.com # greylisting.org: Southwest Airlines (unique sender, no"
        " retry)\n"
        "added: allow 195.235.39.0/24 # jcsw.nato.int (several servers, no retry)\n"
        "added: allow 193.191.218.141 # mil.be\n"
        "added: allow name:.example.com # jcsw.nato.int (several servers, no retry)\n"
        "added: allow 192.0.2.0/24 # from postgrey\n"
        "added: allow to:postmaster@ # caf?\n"
        f"not mapped: {clients}:9: /^mail\\d+\\.telekom\\.de$/: a regular expression that is more"
        " than a domain;"
        " where all of the domain is meant: greycheck allow name:.telekom.de\n"
        "rules: 6 added, 1 not mapped\n"
    )
    assert result.stderr == (
        f"note: {clients}:10: /\\.example\\.com$/ is allow name:.example.com: matches example.com"
        " itself too\n"
        f"note: {clients}:13: 192.0.2.77/24 is allow 192.0.2.0/24: the network of 192.0.2.77/24\n"
        "note: a rule for user@ does not take user+detail@, as postgrey does\n"
        "note: allow name:.example.com and 1 more by name: allows nothing: verified_names is no,"
        " as anybody can write"
        " a name into his reverse DNS; run tcpserver with -p and set verified_names = yes, or"
        " allow the address\n"
    )
    assert child.smtpextfork(client="195.235.39.9").verdict == (ACCEPTED, "rule")
    assert child.smtpextfork(
        recipient=b"Postmaster@example.net", client="198.51.100.1"
    ).verdict == (ACCEPTED, "rule")
    again = run(*arguments)
    assert "added" not in again.output
    assert again.stdout.endswith("\nrules: 6 unchanged, 1 not mapped\n")


def test_postgreys_whitelists_leave_the_operators_rules_alone(store: Path, tmp_path: Path) -> None:
    run("allow", "192.0.1.1")
    run("reject", "192.0.2.1")
    run("allow", "192.0.2.2", "--comment", "mine")
    (tmp_path / "clients").write_text("192.0.2.1\n192.0.2.2\n192.0.2.3\n")
    found = json.loads(
        run("rules", "import-postgrey", "--clients", str(tmp_path / "clients"), "--json").stdout
    )
    assert [one["rule"]["pattern"] for one in found["changes"]] == ["192.0.2.3"]
    assert found["notes"] == [
        "reject 192.0.2.1 stays: remove it first if postgrey's list is to count"
    ]
    assert found["counts"] == {
        "added": 1,
        "replaced": 0,
        "removed": 0,
        "unchanged": 1,
        "not_mapped": 0,
    }
    assert [one["comment"] for one in rows("rules", "list")] == ["", "", "mine", "from postgrey"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("allow", "from:x.example", "--expires", "4000000d"),
        ("allow", "from:x.example", "--expires", "999999999d"),
        ("greylist", "from:x.example", "--delay", "4000d"),
        ("expect", "b@example.net", "--for", "4000000d"),
    ],
)
@pytest.mark.usefixtures("store")
def test_what_would_last_longer_than_any_setting_may_is_refused_before_it_is_stored(
    arguments: tuple[str, ...],
) -> None:
    result = run(*arguments, code=2)
    assert f"{arguments[-1]}: longer than 3650d" in result.stderr
    assert rows("rules", "list") == []


@pytest.mark.parametrize("ends_at", [253402300799, 253402300800, 2**62])
def test_whatever_time_a_database_has_rules_are_shown_exported_and_read_again(
    store: Path, ends_at: int
) -> None:
    run("allow", "from:x.example", "--expires", "1d")
    run("reject", "from:y.example")
    change(store, f"UPDATE rule SET expires_at = {ends_at} WHERE expires_at IS NOT NULL")
    for arguments in (("rules", "list"), ("rules", "check")):
        run(*arguments)
    exported = run("rules", "export").stdout
    assert "reject from:y.example" in exported
    assert "allow from:x.example expires=9999-12-31T23:59:59Z" in exported
    run("rules", "import", "--replace", "--dry-run", "-", text=exported)
    run("rules", "remove", "from:x.example")


def test_a_rule_of_a_kind_that_a_newer_program_has_is_listed_last(store: Path) -> None:
    run("allow", "from:x.example")
    change(
        store,
        "INSERT INTO rule VALUES (x'00112233445566778899aabbccddeeff', 'future', 'zz', 'allow',"
        " NULL, '', 1, NULL)",
    )
    assert [row["pattern"] for row in rows("rules", "list")] == ["from:x.example", "zz"]
    assert run("rules", "export").stdout.splitlines()[-1].startswith("allow zz")
    run("digest")


@pytest.mark.usefixtures("store")
def test_a_file_of_rules_is_read_no_further_than_any_is_long(tmp_path: Path) -> None:
    with (tmp_path / "rules").open("wb") as file:
        file.truncate(1 << 42)
    result = run("rules", "import", str(tmp_path / "rules"), code=1)
    assert "larger than 67108864 bytes" in result.stderr
