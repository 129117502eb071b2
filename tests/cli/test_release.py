"""greycheck release: what waits passes at its next attempt, as an operator and the child see it."""

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from greycheck.cli.main import cli
from tests.support import ACCEPTED, DEFERRED, Child, only_settings

DAY = 86400
MAIL = ("192.0.2.1", "alice@example.org", "bob@example.net")
ELSEWHERE = "198.51.100.1"


@pytest.fixture
def store(child: Child, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the child, in which one mail waits, and which the commands find."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(child.database))
    monkeypatch.setenv("COLUMNS", "80")
    assert child.smtpextfork().verdict == (DEFERRED, "new")
    return child.database


def run(*arguments: str | bytes, code: int = 0) -> Result:
    words = [os.fsdecode(argument) for argument in arguments]
    result = CliRunner().invoke(cli, words, prog_name="greycheck")
    assert result.exit_code == code, result.output
    assert "\x1b" not in result.output
    return result


def change(store: Path, statement: str) -> None:
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(statement)


def key_of(store: Path) -> str:
    with closing(sqlite3.connect(store)) as connection:
        found = connection.execute("SELECT triplet_key FROM triplet").fetchone()
    return bytes(found[0]).hex()


def test_what_waits_passes_at_its_next_attempt_from_any_network_once(
    store: Path, child: Child
) -> None:
    said = run("release", *MAIL).stdout
    assert said.startswith("released: to:bob@example.net from:alice@example.org\n")
    assert "Its next attempt passes, from any network, until 20" in said
    assert child.smtpextfork(sender=b"other@example.org").verdict == (DEFERRED, "new")
    ran = child.smtpextfork(client=ELSEWHERE)
    assert ran.verdict == (ACCEPTED, "expected")
    assert " by=to:bob@example.net,from:alice@example.org " in ran.log
    assert child.smtpextfork(client=ELSEWHERE).verdict == (ACCEPTED, "known")
    assert child.smtpextfork().verdict == (DEFERRED, "early")
    assert run("rules", "list").stdout.startswith("There are no rules")


def test_a_key_or_its_first_digits_name_what_waits(store: Path, child: Child) -> None:
    run("release", key_of(store)[:12])
    assert child.smtpextfork(client=ELSEWHERE).verdict == (ACCEPTED, "expected")


def test_it_lasts_as_long_as_what_waits_and_no_longer_than_the_retry_window(
    store: Path, child: Child
) -> None:
    now = int(time.time())
    change(store, f"UPDATE triplet SET expires_at = {now + 1000}")
    told = json.loads(run("release", *MAIL, "--json").stdout)
    assert (told["rule"]["action"], told["rule"]["expires_at"]) == ("release", now + 1000)
    change(store, f"UPDATE triplet SET expires_at = {now + 400 * DAY}")
    told = json.loads(run("release", *MAIL, "--json").stdout)
    assert now + 2 * DAY <= told["rule"]["expires_at"] <= now + 2 * DAY + 60
    change(store, f"UPDATE rule SET expires_at = {now - 1}")
    assert child.smtpextfork(client=ELSEWHERE).verdict == (DEFERRED, "new")


def test_rules_show_it_and_take_it_back(store: Path, child: Child) -> None:
    run("release", *MAIL)
    listed = run("rules", "list").stdout
    assert "release  to:bob@example.net from:alice@example.org  in " in listed
    assert run("rules", "check").stdout.endswith("nothing wrong with them\n")
    assert "alice" not in run("rules", "export").stdout
    removed = run("rules", "remove", "to:bob@example.net from:alice@example.org").stdout
    assert removed.startswith("removed: release to:bob@example.net from:alice@example.org")
    assert child.smtpextfork(client=ELSEWHERE).verdict == (DEFERRED, "new")


@pytest.mark.parametrize("by_key", [False, True], ids=["by mail", "by key"])
@pytest.mark.parametrize(
    ("sender", "recipient"),
    [
        (b"", b"bob@example.net"),
        (b"list-bounces+bob=example.net@example.org", b"Bob@Example.net"),
        (b"\x1b[31mred \xff\xe2\x80\xae@example.org", b"bob@example.net"),
        (b"--help@x", b"--json@x"),
        (b"s" * 1500 + b"@example.org", b"bob@example.net"),
        (b"from:.example.com@", b"postmaster"),
        (b'a from:b to:"c@x', b"bob@example.net"),
    ],
)
def test_any_address_can_be_released_and_taken_back(
    store: Path, child: Child, sender: bytes, recipient: bytes, by_key: bool
) -> None:
    change(store, "DELETE FROM triplet")
    child.smtpextfork(sender, recipient)
    written = recipient if b"@" in recipient else b"<" + recipient + b">"
    whole = sender if sender.rpartition(b"@")[2] else b"<" + sender + b">"
    named = [key_of(store)] if by_key else ["192.0.2.1", whole, written]
    told = json.loads(run("release", "--json", "--", *named).stdout)
    assert child.smtpextfork(sender, recipient, client=ELSEWHERE).verdict == (
        ACCEPTED,
        "expected",
    )
    change(store, "UPDATE triplet SET passed_at = NULL, passes = 0")
    again = json.loads(run("release", "--json", "--", *named).stdout)
    pattern = again["rule"]["pattern"]
    assert pattern == told["rule"]["pattern"]
    assert json.loads(run("rules", "remove", "--json", "--", pattern).stdout)["notes"] == []
    assert json.loads(run("rules", "list", "--json").stdout) == []


def test_a_sender_that_an_earlier_release_folded_otherwise_is_released_as_it_comes(
    store: Path, child: Child
) -> None:
    tagged = b"news-1a2b3c4d5e6f7a8b@example.org"
    change(store, "DELETE FROM triplet")
    child.smtpextfork(sender=tagged)
    run("release", "192.0.2.1", b"news-9f8e7d6c5b4a3f2e@example.org", "bob@example.net")
    assert child.smtpextfork(sender=tagged, client=ELSEWHERE).verdict == (ACCEPTED, "expected")


def test_what_waits_from_another_network_is_released_by_an_attempt_from_here(
    store: Path, child: Child
) -> None:
    run("release", "203.0.113.9", *MAIL[1:])
    assert child.smtpextfork(client="203.0.113.77").verdict == (ACCEPTED, "expected")


def test_what_does_not_wait_cannot_be_released(store: Path, child: Child) -> None:
    def refused(*what: str) -> str:
        return run("release", *what, code=1).stderr

    assert "nothing is known that waits by this" in refused(
        "192.0.2.1", "alice@example.org", "carol@example.net"
    )
    assert "nothing is known that waits by this" in refused("0123abcd")
    child.age(400)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")
    assert "it does not wait: it passed " in refused(*MAIL)
    change(store, "UPDATE triplet SET passed_at = NULL, passes = 0, expires_at = 1")
    assert "it does not wait any more: its next attempt counts as the first" in refused(*MAIL)
    assert "\\x1b[31m" in refused("192.0.2.1", "\x1b[31m@example.org", "bob@example.net")
    assert json.loads(run("rules", "list", "--json").stdout) == []


@pytest.mark.parametrize("what", [["192.0.2.1"], ["192.0.2.1", "a@b"], ["x", "a@b", "c@d"]])
def test_what_names_no_mail_is_an_error_of_the_command_line(store: Path, what: list[str]) -> None:
    run("release", *what, code=2)


def test_before_the_first_mail_nothing_waits(
    store: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "none.db"))
    assert "There is no store yet" in run("release", *MAIL, code=1).stderr


def test_a_rule_that_decides_before_is_noted(store: Path) -> None:
    run("reject", "to:bob@example.net")
    assert "reject to:bob@example.net decides before: this mail is rejected all the same" in run(
        "release", *MAIL
    ).stderr.replace("\n", " ")
