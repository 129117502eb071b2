"""explain, list, show and forget, as an operator and his scripts run them."""

import gc
import json
import os
import re
import sqlite3
import subprocess
import sys
import time as clock
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from greycheck import settings
from greycheck.cli import forget as forgetting
from greycheck.cli import list as listing
from greycheck.cli.main import cli
from greycheck.store.schema import migrate
from tests.support import Child, only_settings

WIDTH = 80
DAY = 86400
ATTEMPT = ("192.0.2.1", "alice@example.org", "bob@example.net")


@pytest.fixture
def store(place: Path, launchers: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """A store that the commands find, and the child that fills it."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_DATABASE", str(place / "greycheck.db"))
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    return Child(launchers, place / "greycheck.db")


def run(*arguments: str | bytes, code: int = 0) -> Result:
    result = CliRunner().invoke(
        cli, [os.fsdecode(argument) for argument in arguments], prog_name="greycheck"
    )
    assert result.exit_code == code, result.output
    lines = [] if "--json" in arguments else result.stdout.splitlines()
    # Neither a command to be copied nor a word is broken in two.
    wide = [
        line
        for line in lines
        if cell_len(line) > WIDTH and not line.startswith(("  greycheck ", "added: "))
    ]
    assert all(len(line.split()) == 1 and line.startswith("  ") for line in wide), result.stdout
    return result


def data(*arguments: str | bytes, code: int = 0) -> dict[str, object]:
    found = json.loads(run(*arguments, "--json", code=code).stdout)
    assert isinstance(found, dict)
    return found


def listed(*arguments: str | bytes) -> list[dict[str, object]]:
    found = json.loads(run("list", *arguments, "--json").stdout)
    assert isinstance(found, list)
    return found


def known_client(store: Child, **values: int) -> None:
    """A client 192.0.2.1 that passed once, or with other VALUES in its row."""
    now = int(clock.time())
    row = {
        "passes": 1,
        "first": now - 90,
        "last": now - 60,
        "expires": now + DAY,
        "strikes": 0,
        "struck": 0,
        **values,
    }
    connection = sqlite3.connect(store.database)
    with connection:
        connection.execute(
            "INSERT INTO client VALUES ('192.0.2.1', ?, ?, ?, ?, ?, ?)", tuple(row.values())
        )
    connection.close()


# --- explain --------------------------------------------------------------------------------------


def test_explain_tells_envelope_steps_verdict_time_and_remedy(store: Child) -> None:
    store.smtpextfork()
    store.age(100)
    output = run(
        "explain",
        "192.0.2.1",
        "Alice+x@Example.org",
        "Bob@example.net",
        "--helo",
        "a b",
        "--name",
        "mx",
    ).stdout
    for words in (
        "192.0.2.1, network 192.0.2.0/24",
        "mx",
        r"a\x20b",
        "<Alice+x@Example.org>",
        "counts as <alice@example.org>",
        "<Bob@example.net>",
        "counts as <bob@example.net>",
        str(store.database),
        "=> early",
        "defer reason=early",
        "  a retry passes from 20",
        "(in 3m ",
        "greycheck allow 192.0.2.1",
        "greycheck expect bob@example.net --from example.org",
    ):
        assert words in output, words


def test_explain_answers_scripts(store: Child) -> None:
    store.smtpextfork()
    assert run("explain", *ATTEMPT).exit_code == 0
    assert run("explain", *ATTEMPT, "--exit-code", code=101)
    assert run("explain", *ATTEMPT, "--exit-code", "--at", "+10m", code=0)
    found = data("explain", *ATTEMPT, "--exit-code", code=101)
    assert found["verdict"] == {
        "action": "defer",
        "reason": "early",
        "detail": "",
        "observed": None,
        "exit_code": 101,
        "answer": None,
    }
    first = store.rows("SELECT first_attempt FROM triplet")[0][0]
    assert isinstance(first, int)
    assert (found["retry_passes_from"], found["retry_passes_until"]) == (
        first + 300,
        first + 2 * DAY,
    )


def test_explain_tells_when_a_refusal_ends(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    store.make_store()
    monkeypatch.setenv("GREYCHECK_STRIKES", "3")
    until = int(clock.time()) + 3600
    known_client(store, strikes=3, struck=until)
    assert "refused until " in run("explain", *ATTEMPT, "--exit-code", code=100).stdout
    assert data("explain", *ATTEMPT)["refused_until"] == until


def test_explain_asks_what_if_it_were_tried_at_another_time(store: Child) -> None:
    store.smtpextfork()
    first = store.rows("SELECT first_attempt FROM triplet")[0][0]
    assert isinstance(first, int)
    local = clock.strftime("%Y-%m-%d %H:%M:%S", clock.localtime(first + 300))
    zoned = clock.strftime("%Y-%m-%dT%H:%M:%SZ", clock.gmtime(first + 300))
    for moment in (local, zoned, str(first + 300)):
        found = data("explain", *ATTEMPT, "--at", moment)
        assert (found["at"], found["verdict"]["reason"]) == (first + 300, "retry")  # type: ignore[index]
    assert data("explain", *ATTEMPT, "--at", "+1m")["verdict"]["reason"] == "early"  # type: ignore[index]


@pytest.mark.parametrize(
    "moment", ["soon", "+soon", "-10m", "2026-13-01", "99999999999999", "0001-01-01", ""]
)
def test_explain_refuses_what_is_no_time(store: Child, moment: str) -> None:
    assert (
        "not a time (as 2026-11-20 12:00"
        in run("explain", *ATTEMPT, f"--at={moment}", code=2).stderr
    )


def test_explain_takes_the_null_sender_and_what_looks_like_an_option(store: Child) -> None:
    for sender in ("<>", ""):
        store.smtpextfork(b"", b"bob@example.net")
        explained = data("explain", "192.0.2.1", sender, "bob@example.net")
        assert explained["verdict"]["reason"] == "early"  # type: ignore[index]
    store.smtpextfork(b"--help@x", b"--json")
    output = run("explain", "--json", "--", "192.0.2.1", "--help@x", "<--json>").stdout
    assert json.loads(output)["verdict"]["reason"] == "early"


def test_explain_takes_any_bytes_and_shows_them_as_the_log_does(store: Child) -> None:
    sender = b"j\xff\x1b[2J d\xc3\xa9@example.org"
    store.smtpextfork(sender)
    found = data("explain", "192.0.2.1", sender, "bob@example.net")
    assert found["verdict"]["reason"] == "early"  # type: ignore[index]
    shown = found["envelope"]["sender"]  # type: ignore[index]
    assert shown == r"j\xff\x1b[2J\x20dé@example.org"
    assert data("explain", "192.0.2.1", shown, "bob@example.net")["verdict"] == found["verdict"]
    assert "\x1b" not in run("explain", "192.0.2.1", sender, "bob@example.net").stdout


def test_explain_breaks_no_address(store: Child) -> None:
    sender, recipient = "s" * 400 + "@example.org", "r" * 66 + "@example.net"
    lines = run("explain", "192.0.2.1", sender, recipient).stdout.splitlines()
    assert lines[1:5] == ["sender", f"  <{sender}>", "recipient", f"  <{recipient}>"]


def test_explain_tells_each_rule_that_matches_in_a_line_of_its_own(store: Child) -> None:
    migrate.upgrade(f"sqlite:///{store.database}")
    pattern = "from:" + "s" * 38 + "@example.org"
    for rule in (["allow", pattern], ["reject", "192.0.2.0/24"]):
        run(*rule)
    output = run("explain", "192.0.2.1", pattern.removeprefix("from:"), "bob@example.net").stdout
    assert re.search(r"  rule +allow +=> rule *\n +from:s+\u2026s*@example.org: *\n", output)
    assert re.search(r"\n +reject 192.0.2.0/24: does not decide", output)


def test_explain_without_a_usable_client_says_so(store: Child) -> None:
    for address in ("-", ""):
        output = run("explain", "--", address, "a@b", "c@d").stdout
        assert "missing: usable-TCPREMOTEIP" in output
        assert "accept reason=incomplete missing=usable-TCPREMOTEIP" in output
    assert data("explain", "", "a@b", "c@d")["triplet"] is None
    output = run("explain", "--hook", "policy", "-", "a@b", "c@d").stdout
    assert "accept reason=incomplete missing=client_address" in output
    assert "client_address in each request" in output


@pytest.mark.parametrize("command", ["explain", "show", "forget"])
@pytest.mark.parametrize(
    ("attempt", "wrong"),
    [
        (("300.1.1.1", "a@b", "c@d"), "300.1.1.1: not the address of a client"),
        (("192.0.2", "a@b", "c@d"), "192.0.2: not the address of a client"),
        (("unknown", "a@b", "c@d"), "unknown: not the address of a client"),
        (
            ("192.0.2.1", "alice", "c@d"),
            "alice: no @, so not the address of a sender: write alice@DOMAIN, or '<alice>'",
        ),
        (
            ("192.0.2.1", "a@b", "bob@"),
            "bob@: nothing after the @: write the whole address of the recipient",
        ),
        (("192.0.2.1", "@b", "c@d"), "@b: nothing before the @"),
    ],
)
def test_what_is_mistyped_is_not_accepted(
    store: Child, command: str, attempt: tuple[str, str, str], wrong: str
) -> None:
    assert f"Error: {wrong}" in run(command, *attempt, code=2).stderr


def test_an_address_without_a_domain_is_written_in_brackets(store: Child) -> None:
    store.smtpextfork(b"daemon", b"postmaster")
    output = run("explain", "192.0.2.1", "<daemon>", "<postmaster>").stdout
    assert "reason=early" in output
    assert data("show", "192.0.2.1", "<daemon>", "<postmaster>")["recipient"] == "postmaster"


def test_explain_answers_as_by_the_policy_protocol(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(f"sqlite:///{store.database}")
    asked = ["explain", "--hook", "policy", *ATTEMPT]
    output = run(*asked).stdout
    assert "  answer: action=DEFER_IF_PERMIT 4.2.0 greylisted, please try again later\n" in output
    verdict = data(*asked, "--exit-code", code=101)["verdict"]
    assert isinstance(verdict, dict)
    assert verdict["answer"].startswith("DEFER_IF_PERMIT 4.2.0 ")
    run("allow", "name:mail.example.org")
    assert "reason=new" in run(*asked).stdout
    assert "reason=rule" in run(*asked, "--name", "mail.example.org").stdout
    assert "reason=new" in run("explain", *ATTEMPT, "--name", "mail.example.org").stdout
    monkeypatch.setenv("RELAYCLIENT", "")
    assert "reason=exempt by=RELAYCLIENT" in run(*asked).stdout


def test_explain_before_the_first_mail_explains_an_empty_store_and_makes_none(store: Child) -> None:
    output = run("explain", *ATTEMPT).stdout
    assert "does not exist yet: the first mail makes it; explained as empty" in " ".join(
        output.split()
    )
    assert "as if it were tried at this time" in output
    assert not store.database.exists()
    store.database.touch()
    assert data("explain", *ATTEMPT)["verdict"]["reason"] == "new"  # type: ignore[index]
    assert store.database.stat().st_size == 0


def test_explain_tells_what_observing_makes_of_it(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_MODE", "observe")
    output = run("explain", *ATTEMPT, "--exit-code").stdout
    assert "only observed (mode = observe): accept, logged with observed=defer" in output


def test_explain_tells_when_the_store_cannot_be_asked(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.database.write_bytes(b"nonsense" * 1000)
    assert "file is not a database" in run("explain", *ATTEMPT, code=1).stderr
    monkeypatch.setenv("GREYCHECK_DATABASE", str(store.database.parent / "none" / "greycheck.db"))
    error = run("explain", *ATTEMPT, code=1).stderr
    assert "/none: no such directory, so there is no store yet: install -d -m 0700 -o " in error
    assert "A check by this user would end in reason=error: accept (on_error)." in error


def test_explain_tells_of_another_schema(store: Child) -> None:
    store.make_store()
    connection = sqlite3.connect(store.database)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert (
        "the schema is at 9999, newer than this program's"
        in run("explain", *ATTEMPT, code=1).stderr
    )


def test_explain_refuses_wrong_settings_and_a_helo_that_no_hook_hands_over(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hook in ("checkenv", "rcptcheck"):
        said = run("explain", *ATTEMPT, f"--hook={hook}", "--helo=x", code=2).stderr
        assert f"{hook.upper()} hands over no HELO" in said
    monkeypatch.setenv("GREYCHECK_DELAY", "soon")
    assert "GREYCHECK_DELAY: delay = soon" in run("explain", *ATTEMPT, code=1).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_explain_and_list_read_a_store_that_the_user_may_not_write(store: Child) -> None:
    store.smtpextfork(GREYCHECK_DATABASE_MODE="0660")
    for path in store.database.parent.glob("greycheck.db*"):
        path.chmod(0o644)
    for command in (["explain", *ATTEMPT], ["list"], ["show", *ATTEMPT]):
        ran = subprocess.run(
            [sys.executable, "-m", "greycheck", *command, "--json"],
            capture_output=True,
            text=True,
            check=False,
            user=65534,
            group=65534,
            extra_groups=[],
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)


# --- list -----------------------------------------------------------------------------------------


def test_list_shows_what_waits_under_the_settings_of_the_moment(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.smtpextfork()
    store.age(100)
    store.smtpextfork()
    output = run("list").stdout
    for words in (
        "192.0.2.0/24",
        "alice@example.org",
        "  bob@example.net",
        " 1m ",
        " 1 ",
        "waits",
        "3m left",
    ):
        assert words in output, words
    monkeypatch.setenv("GREYCHECK_DELAY", "1m")
    assert "due" in run("list").stdout
    monkeypatch.setenv("GREYCHECK_RETRY_WINDOW", "61s")
    assert "over" in run("list").stdout


def test_list_shows_what_passed_and_from_where(store: Child) -> None:
    store.smtpextfork()
    store.age(400)
    store.smtpextfork()
    assert "No such triplet waits." in run("list").stdout
    assert "passed" in run("list", "passed").stdout
    output = run("list", "clients").stdout
    assert "192.0.2.1" in output
    assert "known" in output
    assert "No such client is refused" in run("list", "struck").stdout


def test_a_message_whose_first_recipient_passed_is_listed_shown_copied_and_expired(
    store: Child,
) -> None:
    store.settings["GREYCHECK_CLIENT_PASSES"] = "0"
    store.spp()
    store.age(300)
    store.spp()
    store.age(5)
    output = run("list", "passed").stdout
    for words in ("  192.0.2.1 port 25025", "message", "left", "  bob@example.net"):
        assert words in output, words
    [row] = [row for row in listed("passed") if row["state"] == "message"]
    assert row["recipient"] == "\\x00192.0.2.1\\x20port\\x2025025"
    key = str(row["key"])
    output = run("show", key).stdout
    for words in (
        "from 192.0.2.1 port 25025, whose first recipient passed",
        "its others pass",
        "(in 9m ",
    ):
        assert words in output, words
    assert listed("pending") == []
    run("copy", str(store.database), f"{store.database}.copy")
    with closing(sqlite3.connect(f"{store.database}.copy")) as copied:
        found = copied.execute(
            "SELECT recipient FROM triplet WHERE triplet_key = ?", (bytes.fromhex(key),)
        ).fetchall()
    assert found == [(row["recipient"],)]
    store.age(601)
    assert {row["state"] for row in listed("passed")} == {"passed", "over"}
    assert "the next attempt counts as the first" not in run("show", key).stdout
    run("expire", "--yes")
    assert store.rows("SELECT recipient FROM triplet") == [("bob@example.net",)]


def test_list_shows_who_is_refused(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    store.make_store()
    known_client(store, passes=0, strikes=3, struck=int(clock.time()) + 3601)
    assert "unknown" in run("list", "struck").stdout
    monkeypatch.setenv("GREYCHECK_STRIKES", "3")
    assert "refused 1h" in run("list", "struck").stdout
    assert [row["state"] for row in listed("struck")] == ["refused"]


def test_list_filters_sorts_and_limits(store: Child) -> None:
    for number in range(4):
        store.smtpextfork(
            sender=b"s%d@host%d.example.org" % (number, number % 2), client=f"192.0.{number}.1"
        )
        store.age(100)
    senders = {
        ("--sort=first", "--reverse"): "0123",
        ("--sort=first",): "3210",
        ("--sort=expires", "--limit=2"): "01",
        ("--domain", "host1.example.org", "--sort=first"): "31",
        ("--address", "@host0.example.org", "--sort=first"): "20",
        ("--address", "s1@"): "1",
        ("--address", "<s2@host0.example.org>"): "2",
        ("--network", "192.0.2.0/23", "--sort=first"): "32",
        ("--older", "250s", "--sort=first"): "10",
        ("--newer", "250s", "--sort=first"): "32",
        ("--address", "nobody@example.org"): "",
    }
    for arguments, expected in senders.items():
        assert "".join(str(row["sender"])[1] for row in listed(*arguments)) == expected, arguments
    assert "There are more than these 2: --limit 0 lists all." in run("list", "--limit=2").stdout
    assert "There are more" not in run("list", "--limit=4").stdout
    assert "There are more" not in run("list", "--limit=0").stdout
    assert run("list", "--count", "--limit=2").stdout == "4\n"
    assert data("list", "--count", "--network", "192.0.2.0/23") == {"list": "pending", "count": 2}
    assert run("list", "clients", "--count").stdout == "0\n"


@pytest.mark.parametrize("which", ["pending", "domains"])
@pytest.mark.parametrize("form", [["--limit=1"], ["--limit=1", "--json"]])
def test_a_list_that_is_cut_leaves_no_connection(store: Child, which: str, form: list[str]) -> None:
    """The store is closed by then, and not whenever the interpreter looks for what is left."""
    store.make_store()
    with closing(sqlite3.connect(store.database)) as filled, filled:
        for number in range(3):
            filled.execute(
                "INSERT INTO triplet VALUES (?, 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL, 0)",
                (bytes([number]) * 16,),
            )
            filled.execute(
                "INSERT INTO domain VALUES (?, ?, 1, 1, 1, 4000000000)",
                (bytes([number]) * 8, f"{number}.example"),
            )
    gc.collect()
    gc.disable()
    try:
        output = run("list", which, *form).stdout
        held = [
            descriptor for descriptor in os.listdir("/proc/self/fd") if is_of(store, descriptor)
        ]
    finally:
        gc.enable()
    assert "--json" in form or "There are more than these 1" in output
    assert held == []


def is_of(store: Child, descriptor: str) -> bool:
    """Whether the DESCRIPTOR is that of a file of STORE."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(store.database))
    except FileNotFoundError:  # that of the listing itself
        return False


def test_list_pages_have_one_head(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    for number in range(5):
        store.smtpextfork(sender=b"s%d@example.org" % number)
    output = run("list").stdout
    assert output.count("client network") == 1
    assert output.count("@example.org") == 5


def test_list_cuts_long_addresses_in_the_middle_and_shows_the_null_sender(store: Child) -> None:
    store.smtpextfork(
        b"s" * 400 + b"@example.org", b"r" * 400 + b"@example.net", client="2001:db8:1111:2222::1"
    )
    store.smtpextfork(b"", b"bob@example.net")
    output = run("list").stdout
    assert re.search(r"^2001:db8:1111:2222::/64  s+\u2026s*@example.org  ", output, re.MULTILINE)
    assert re.search(r"^[0-9a-f]{12}   +r+\u2026r*@example.net  ", output, re.MULTILINE)
    assert "<>" in output
    assert [row["sender"] for row in listed("--address", "<>")] == [""]


def test_list_of_clients_knows_no_addresses(store: Child) -> None:
    assert (
        "leave --address and --domain out"
        in run("list", "clients", "--address", "a@b", code=2).stderr
    )


def test_list_refuses_what_is_no_network_or_duration(store: Child) -> None:
    assert "192.0.2: not a network" in run("list", "--network", "192.0.2", code=2).stderr
    assert "soon: not a duration" in run("list", "--older", "soon", code=2).stderr


def test_before_the_first_mail_there_is_nothing_to_list_show_or_forget(store: Child) -> None:
    assert run("list", "--count").stdout == "0\n"
    assert listed("clients") == []
    said = (
        "There is no store yet: the first mail makes it, or: greycheck db upgrade\nIt will be"
        f" {store.database}\n"
    )
    for command in (["list"], ["forget", "192.0.2.1"], ["status"], ["expire", "-v"]):
        assert run(*command).stdout == said, command
    assert run("show", "192.0.2.1", code=1).stdout == said
    assert data("forget", "192.0.2.1")["removed"] == {"triplet": 0, "client": 0, "domain": 0}
    assert run("db", "current").stdout == said
    known = (
        f"Error: {store.database}: there is no store yet: the first mail makes it, or: greycheck db"
        " upgrade\n"
    )
    for command in (["rules", "list"], ["allow", "192.0.2.1"]):
        assert run(*command, code=1).stderr == known
    assert not store.database.exists()


def test_a_directory_that_a_check_makes_too_is_nothing_to_be_made(
    store: Child, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not store.database.exists()
    monkeypatch.delenv("GREYCHECK_DATABASE")
    monkeypatch.setattr(settings, "default_directory", lambda _environ: f"{place}/state/greycheck")
    said = (
        "There is no store yet: the first mail makes it\nIt will be"
        f" {place}/state/greycheck/greycheck.db\n"
    )
    assert run("list").stdout == said
    assert "explained as empty" in " ".join(run("explain", *ATTEMPT).stdout.split())


def test_commands_tell_where_the_directory_is_missing(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = store.database.parent / "none"
    monkeypatch.setenv("GREYCHECK_DATABASE", str(none / "greycheck.db"))
    said = f"Error: {none}: no such directory, so there is no store yet: "
    for command in (
        ["list"],
        ["show", "192.0.2.1"],
        ["forget", "192.0.2.1"],
        ["status"],
        ["explain", *ATTEMPT],
    ):
        assert run(*command, code=1).stderr.startswith(f"{said}install -d -m 0700 -o "), command


# --- show -----------------------------------------------------------------------------------------


def test_show_tells_all_of_a_triplet_by_key_or_as_an_attempt_has_it(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.smtpextfork(b"Alice+x@example.org")
    store.smtpextfork(client="198.51.100.1")
    store.age(100)
    now = clock.time()
    monkeypatch.setattr("greycheck.cli.show.time", lambda: now)
    by_attempt = run("show", *ATTEMPT).stdout
    key = str(data("show", *ATTEMPT)["key"])
    assert run("show", key[:12]).stdout == by_attempt == run("show", key.upper()).stdout
    for words in (
        key,
        "<alice@example.org>",
        "(1m 4",
        "waits",
        "until 20",
        "1, from which the same sender and recipient wait",
    ):
        assert words in by_attempt, words
    assert data("show", key)["waiting_from_other_networks"] == 1
    assert data("show", key)["may_be_more"] is False


def test_show_says_where_it_has_not_counted_to_the_end(
    store: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        store.smtpextfork(client=f"198.51.{number}.1")
        store.smtpextfork(recipient=b"c%d@example.net" % number)
    store.smtpextfork()
    assert "4, from which the same" in run("show", *ATTEMPT).stdout
    monkeypatch.setattr("greycheck.store.admin.queries.COUNTED", 3)
    assert re.search(
        r"at least [23], from which the same sender and recipient wait",
        run("show", *ATTEMPT).stdout,
    )
    assert data("show", *ATTEMPT)["may_be_more"] is True
    assert (
        "192.0.2.0/24, waiting triplets: at least 3, passed: 0" in run("show", "192.0.2.1").stdout
    )
    assert data("show", "192.0.2.1")["may_be_more"] is True
    assert data("show", "198.51.0.1")["may_be_more"] is False


def test_show_tells_what_a_triplet_is_under_the_settings_of_the_moment(store: Child) -> None:
    store.smtpextfork()
    store.age(400)
    assert "now, and until 20" in run("show", *ATTEMPT).stdout
    store.smtpextfork()
    output = run("show", *ATTEMPT).stdout
    assert "1 recorded, one an hour at most" in output
    assert "passes until" in output
    store.age(37 * DAY)
    assert "the next attempt counts as the first" in run("show", *ATTEMPT).stdout


def test_show_tells_all_of_a_client(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    store.smtpextfork()
    output = run("show", "192.0.2.1").stdout
    assert "unknown: it has never passed" in output
    assert "192.0.2.0/24, waiting triplets: 1, passed: 0" in output
    assert "greycheck list --network 192.0.2.0/24" in output
    known_client(store, strikes=2, struck=int(clock.time()) + 3605)
    output = run("show", "::ffff:192.0.2.1").stdout
    for words in (
        "known",
        "1; from 1 on, all its mail passes",
        "2 in a row; strikes is off",
        "does not count",
    ):
        assert words in output, words
    monkeypatch.setenv("GREYCHECK_STRIKES", "2")
    monkeypatch.setenv("GREYCHECK_CLIENT_PASSES", "0")
    output = run("show", "192.0.2.1").stdout
    for words in ("refused 1h", "client_passes is off", "refused until", "2 in a row\n"):
        assert words in output, words
    assert data("show", "192.0.2.1")["client"]["state"] == "refused"  # type: ignore[index]


def test_show_of_the_unknown_exits_with_1(store: Child) -> None:
    store.make_store()
    assert (
        "Nothing is known of 192.0.2.1 alice@example.org bob@example.net."
        in run("show", *ATTEMPT, code=1).stdout
    )
    assert run("show", "abcdef", "--json", code=1).stdout == "null\n"
    assert "unknown: it has never passed" in run("show", "192.0.2.1", code=1).stdout
    assert data("show", "192.0.2.1", code=1)["client"] is None


def test_show_of_a_key_that_several_begin_with_asks_for_more(store: Child) -> None:
    store.make_store()
    connection = sqlite3.connect(store.database)
    with connection:
        for key in (b"\xab\xcd" + bytes(14), b"\xab\xcd" + bytes(13) + b"1"):
            connection.execute(
                "INSERT INTO triplet VALUES (?, 'n', 's', 'r', 1, 1, 0, 0, NULL, 1, NULL, 0)",
                (key,),
            )
    connection.close()
    assert "several keys begin so" in run("show", "abcd", code=1).stderr
    assert "several keys begin so" in run("forget", "abcd", code=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [["192.0.2"], ["abc"], ["192.0.2.1", "a@b"], ["x", "a@b", "c@d"], ["a", "b", "c", "d"]],
)
def test_show_and_forget_refuse_what_names_nothing(store: Child, arguments: list[str]) -> None:
    for command in ("show", "forget"):
        error = run(command, *arguments, code=2).stderr
        assert "not the address of a client" in error or "name a triplet" in error


# --- status ---------------------------------------------------------------------------------------


def test_status_is_one_screen(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        client = f"2001:db8:{number}:2222::1"
        store.smtpextfork(sender=b"s%d@host%d.example.org" % (number, number), client=client)
    store.age(400)
    store.smtpextfork(sender=b"s1@host1.example.org", client="2001:db8:1:2222::1")
    store.smtpextfork(sender=b"new@example.org")
    monkeypatch.setenv("GREYCHECK_MODE", "observe")
    lines = run("status").stdout.splitlines()
    assert len(lines) < 24
    said = dict(line.split(None, 1) for line in lines if not line.startswith(" ") and line)
    assert said["store"] == f"sqlite:///{store.database}"
    assert said["mode"] == "observe: nothing is deferred; delay 5m"
    assert said["waits"] == "9 triplets; a retry of 8 would pass now"
    assert (said["passed"], said["known"]) == ("1 triplet", "1 client")
    assert said["refused"] == "0 clients; strikes is 0"
    assert lines[-6].split() == ["waits", "from", "network"]
    assert all(re.fullmatch(r"    1  \S*example.org +1  \S+", line) for line in lines[-5:])
    assert (data("status")["attempts"], data("status")["arrived"]) == (10, 1)


def test_status_before_the_first_mail(store: Child) -> None:
    assert run("status").stdout.startswith("There is no store yet: ")
    assert (data("status")["waiting"], data("status")["since"]) == (0, None)
    assert not store.database.exists()


# --- forget ---------------------------------------------------------------------------------------


def test_forget_of_a_triplet_makes_the_next_attempt_the_first(store: Child) -> None:
    store.smtpextfork()
    store.age(400)
    assert run("forget", *ATTEMPT, "--dry-run").stdout == "1 triplet to forget.\n"
    assert run("forget", *ATTEMPT).stdout == "1 triplet forgotten.\n"
    assert run("forget", *ATTEMPT).stdout == "No such triplet is known: nothing to forget.\n"
    assert store.smtpextfork().reason == "new"


def test_a_triplet_of_an_earlier_folding_is_shown_and_forgotten(store: Child) -> None:
    sender = b"user+SRS=aBcDe=F1=example.com=alice@tenant.example"
    store.smtpextfork(sender=b"user@tenant.example")  # as it was folded
    store.age(400)
    attempt = [ATTEMPT[0], sender.decode(), ATTEMPT[2]]
    assert data("show", *attempt)["sender"] == "user@tenant.example"
    verdict = data("explain", *attempt)["verdict"]
    assert isinstance(verdict, dict)
    assert verdict["reason"] == "retry"
    assert store.smtpextfork(sender=sender).reason == "retry"
    assert data("forget", *attempt)["removed"] == {"triplet": 2, "client": 0, "domain": 0}
    assert data("forget", ATTEMPT[0])["removed"] == {"triplet": 0, "client": 1, "domain": 0}
    assert store.smtpextfork(sender=sender).reason == "new"


def test_a_long_address_is_shown_listed_and_forgotten(store: Child) -> None:
    sender = b"\xff" * 880 + b"@example.org"
    store.smtpextfork(sender=sender)
    [row] = listed()
    assert len(str(row["sender"])) < 600
    store.smtpextfork(sender=b"\xff" * 879 + b"@example.org")
    assert data("forget", "--address", str(row["sender"]))["removed"] == {
        "triplet": 1,
        "client": 0,
        "domain": 0,
    }
    assert len(listed()) == 1


def test_forget_of_a_key(store: Child) -> None:
    store.smtpextfork()
    key = str(listed()[0]["key"])
    assert data("forget", key[:12]) == {
        "dry_run": False,
        "removed": {"triplet": 1, "client": 0, "domain": 0},
    }
    assert listed() == []


def test_forget_of_a_client_makes_it_unknown(store: Child) -> None:
    store.make_store()
    known_client(store)
    assert store.smtpextfork().reason == "client"
    assert run("forget", "192.0.2.1", "--dry-run").stdout == "1 client to forget.\n"
    assert data("forget", "192.0.2.1") == {
        "dry_run": False,
        "removed": {"triplet": 0, "client": 1, "domain": 0},
    }
    assert data("forget", "192.0.2.1")["removed"] == {"triplet": 0, "client": 0, "domain": 0}
    assert store.smtpextfork().reason == "new"


def test_forget_takes_the_filters_of_list(store: Child) -> None:
    for number in range(4):
        store.smtpextfork(
            sender=b"s%d@host%d.example.org" % (number, number % 2), client=f"192.0.{number}.1"
        )
        store.age(100)
    assert run("forget", "--older", "250s", "--dry-run").stdout == "2 triplets to forget.\n"
    assert run(
        "forget", "pending", "--network", "192.0.2.0/23", "--domain", "host1.example.org"
    ).stdout == ("1 triplet forgotten.\n")
    assert [row["sender"] for row in listed("--sort=first")] == [
        f"s{number}@host{number % 2}.example.org" for number in (2, 1, 0)
    ]
    assert run("forget", "passed").stdout == "No such triplet is known: nothing to forget.\n"
    assert run("forget", "--newer", "250s").stdout == "1 triplet forgotten.\n"
    known_client(store)
    assert data("forget", "clients", "--network", "192.0.2.0/24")["removed"] == {
        "triplet": 0,
        "client": 1,
        "domain": 0,
    }
    assert (
        "leave --address and --domain out"
        in run("forget", "struck", "--address", "a@", code=2).stderr
    )
    assert "name what to forget" in run("forget", "192.0.2.1", "--older", "1d", code=2).stderr


def test_forget_of_many_wants_a_yes(store: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MANY", 2)
    for number in range(3):
        store.smtpextfork(sender=b"s%d@example.org" % number)
    assert run("forget", "pending", code=1).stderr == (
        "Error: these are 3: give --yes if all of them are to be forgotten\n"
    )
    assert run("list", "--count").stdout == "3\n"
    assert run("forget", "pending", "--yes").stdout == "3 triplets forgotten.\n"


def test_forget_of_an_address_takes_all_its_triplets(store: Child) -> None:
    for number in range(3):
        store.smtpextfork(recipient=b"r%d@example.net" % number)
    store.smtpextfork(sender=b"carol@example.com")
    assert (
        run("forget", "--address", "@example.org", "--dry-run").stdout == "3 triplets to forget.\n"
    )
    assert run("forget", "--address", "@example.org").stdout == "3 triplets forgotten.\n"
    assert [row["sender"] for row in listed()] == ["carol@example.com"]


def test_forget_is_told_what_to_forget_once(store: Child) -> None:
    for arguments in ([], ["192.0.2.1", "--address", "a@b"]):
        assert "name what to forget" in run("forget", *arguments, code=2).stderr


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["explain", *ATTEMPT], ["list"], ["show", "192.0.2.1"], ["forget", "192.0.2.1"]]
)
def test_wrong_settings_are_refused(
    store: Child, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("GREYCHECK_LIFETIME", "long")
    assert "GREYCHECK_LIFETIME: lifetime = long: not a duration" in run(*command, code=1).stderr


def test_no_table_is_wider_than_the_terminal(store: Child) -> None:
    migrate.upgrade(f"sqlite:///{store.database}")
    store.smtpextfork(b"s" * 200 + b"@example.org", client="2001:db8:1111:2222:3333:4444:5555:6666")
    known_client(store, strikes=1000, struck=int(clock.time()) + 99 * DAY)
    for command in (["list"], ["list", "clients"], ["list", "struck"], ["show", "192.0.2.1"]):
        run(*command)
    run(
        "explain",
        "2001:db8:1111:2222:3333:4444:5555:6666",
        "s" * 200 + "@example.org",
        "bob@example.net",
    )
