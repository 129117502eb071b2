"""Tokens of links, the file of their key, and that each counts once."""

import json
import os
import stat
import threading
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from greycheck.cli.main import cli
from greycheck.digest import links
from greycheck.digest.links import EXPIRED, INVALID, USED, Refused, Token
from greycheck.rules import patterns
from greycheck.rules.rule import make_rule
from greycheck.store.admin import rulebook, waiting
from greycheck.store.admin.engine import open_engine
from greycheck.store.base import StoreError
from greycheck.store.schema.tables import triplet
from tests.digest.stores import DAY, HOUR, Waiting, asked_for
from tests.support import ACCEPTED, DEFERRED, Child, Database, on_every_database, only_settings

SECRET, NOW = bytes(range(32)), 1_800_000_000
TOKEN = Token(b"k" * 16, NOW - HOUR, NOW + HOUR)
URL = "https://mx.example.net/x"


# --- tokens ---------------------------------------------------------------------------------------


def refused(text: str, now: int = NOW, secret: bytes = SECRET) -> str:
    with pytest.raises(Refused) as caught:
        links.read(secret, text, now)
    return caught.value.state


def test_a_token_is_what_was_written_until_it_expires() -> None:
    text = links.written(SECRET, TOKEN)
    assert len(text) == links.LENGTH == 64
    assert links.read(SECRET, text, NOW) == TOKEN
    assert links.read(SECRET, text, TOKEN.expires) == TOKEN
    assert refused(text, TOKEN.expires + 1) == EXPIRED


def test_a_token_that_was_changed_anywhere_is_none() -> None:
    text = links.written(SECRET, TOKEN)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=. \n"
    for place, char in enumerate(text):
        for other in alphabet:
            if other != char:
                assert refused(text[:place] + other + text[place + 1 :]) == INVALID
    for wrong in (
        "",
        text[:-1],
        text[:-4],
        text[1:],
        text + "A",
        text + "\n",
        text + "====",
        text.swapcase(),
        "\u00e4" * 64,
        "=" * 64,
        "A" * 64,
        "\x00" * 64,
        text * 1000,
    ):
        assert refused(wrong) == INVALID


def test_a_token_of_another_key_or_another_row_is_none() -> None:
    text = links.written(SECRET, TOKEN)
    assert refused(text, secret=b"\x01" * 32) == INVALID
    # The names of another row behind the HMAC of this one.
    other = links.written(SECRET, TOKEN._replace(key=b"o" * 16))
    assert refused(other[:36] + text[36:]) == INVALID
    later = links.written(SECRET, TOKEN._replace(expires=NOW + DAY))
    assert refused(later[:36] + text[36:]) == INVALID
    # What the key signs elsewhere is no token, nor is another version of it.
    said = b"\x02" + TOKEN.key + TOKEN.first.to_bytes(5) + TOKEN.expires.to_bytes(5)
    assert refused(urlsafe_b64encode(said + links._mac(SECRET, said)).decode()) == INVALID


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_made_once_for_its_owner_alone(place: Path) -> None:
    place.chmod(0o700)
    path = str(place / "link.key")
    before = os.umask(0)
    try:
        found: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: found.append(links.make_key(path))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    assert len(set(found)) == 1
    assert len(found) == 8
    assert links.read_key(path) == found[0] != bytes(32)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [each.name for each in place.iterdir()] == ["link.key"]


def test_a_key_that_others_may_know_or_that_is_none_is_refused(place: Path) -> None:
    place.chmod(0o700)
    path = place / "link.key"

    def why() -> str:
        with pytest.raises(StoreError) as caught:
            links.read_key(str(path))
        return str(caught.value)

    assert "greycheck digest --links makes it" in why()
    links.make_key(str(path))
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        assert "others may read the key" in why()
    path.chmod(0o600)
    for wrong in ("", "0" * 63, "0" * 62, "0" * 66, "x" * 64):
        path.write_text(wrong)
        assert "is no key of 64 hexadecimal digits" in why()
    target = path.rename(place / "elsewhere")
    path.symlink_to(target)
    assert "link.key: " in why()
    path.unlink()
    os.mkfifo(path, 0o600)
    assert "is no regular file" in why()
    path.unlink()
    path.mkdir()
    assert "link.key: " in why()
    with pytest.raises(StoreError, match="link_key_file"):
        links.make_key(str(place / "missing" / "link.key"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_the_key_of_another_user_is_refused_and_root_writes_nowhere_else(place: Path) -> None:
    path = place / "link.key"
    links.make_key(str(path))
    os.chown(path, 65534, 65534)
    with pytest.raises(StoreError, match="is nobody's: run it as nobody"):
        links.read_key(str(path))
    path.unlink()
    os.chown(place, 65534, 65534)
    with pytest.raises(StoreError, match="root goes by nothing that another user may write"):
        links.make_key(str(path))
    assert not path.exists()


# --- a release by a token -------------------------------------------------------------------------


@pytest.fixture
def store(database: Database, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """A store in which a mail waits, and which the commands find."""
    only_settings(monkeypatch, database.environ)
    database.make()
    database.directory.chmod(0o700)
    store = Waiting(database)
    store.correspondent(b"alice@example.org", b"bob@example.net")
    store.mail()
    return store


def token_of(store: Waiting, *options: str) -> str:
    """The token of the link to the first mail."""
    ran = CliRunner().invoke(cli, ["digest", "--json", "--links", URL, *options])
    assert ran.exit_code == 0, ran.output
    link = json.loads(ran.stdout)["domains"][0]["mails"][0]["link"]
    return str(link).removeprefix(URL + "?")


def release(token: str, *options: str, code: int = 0) -> dict[str, object]:
    ran = CliRunner().invoke(cli, ["release", "--token", "--json", *options], input=token)
    assert ran.exit_code == code, ran.output
    found = json.loads(ran.stdout)
    assert isinstance(found, dict)
    return found


def rules(database: Database) -> list[str]:
    engine = open_engine(database.url)
    try:
        return [rule.pattern for rule in rulebook.all_rules(engine)]
    finally:
        engine.dispose()


RELEASED = "to:bob@example.net from:alice@example.org"


@on_every_database
def test_a_token_lets_its_mail_in_once_whoever_uses_it_at_the_same_time(
    store: Waiting, database: Database
) -> None:
    token = token_of(store)
    looked = release(token, "--dry-run")
    assert (looked["state"], looked["sender"], looked["recipient"]) == (
        "waits",
        "alice@example.org",
        "bob@example.net",
    )
    assert rules(database) == []
    named = links.read(links.read_key(str(database.directory / "link.key")), token, store.now)
    rule = make_rule(patterns.release("alice@example.org", "bob@example.net"), "allow")
    engine = open_engine(database.url)
    together = threading.Barrier(4)
    done: list[object] = []

    def use() -> None:
        together.wait()
        done.append(waiting.release_once(engine, *named[:2], lambda _row: rule, store.now))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert [one for one in done if one is not None] == [rule]
    assert rules(database) == [RELEASED]
    assert release(token, code=1) == release(token, "--dry-run", code=1) == {"state": USED}


def test_the_released_mail_passes_once_and_the_row_goes_on_as_before(
    store: Waiting, child: Child
) -> None:
    token = token_of(store)
    assert release(token)["state"] == "released"
    assert child.smtpextfork(client="203.0.113.9").verdict == (ACCEPTED, "expected")
    assert release(token, code=1) == {"state": USED}
    assert child.smtpextfork(client="198.51.100.9").verdict == (DEFERRED, "new")
    # What waited passes at its retry, and makes its client known.
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")
    assert child.smtpextfork(sender=b"else@example.org").verdict == (ACCEPTED, "client")


def test_what_an_operator_takes_back_stays_taken_back(store: Waiting, database: Database) -> None:
    token = token_of(store)
    release(token)
    CliRunner().invoke(cli, ["rules", "remove", RELEASED])
    assert rules(database) == []
    assert release(token, code=1) == {"state": USED}
    # Unless he has another link made.
    assert release(token_of(store))["state"] == "released"


def test_a_token_expires_with_what_waits_or_before(store: Waiting, database: Database) -> None:
    secret = token_of(store)
    key = links.read_key(str(database.directory / "link.key"))
    row_ends = store.now - 7 * HOUR + 2 * DAY
    assert links.read(key, secret, store.now).expires == row_ends
    soon = links.read(key, token_of(store, "--valid", "10m"), store.now).expires
    assert store.now + 600 <= soon <= store.now + 660
    over = links.written(key, Token(*links.read(key, secret, store.now)[:2], store.now - 1))
    assert release(over, code=1) == {"state": EXPIRED}
    database.execute(update(triplet).values(expires_at=store.now - 1))
    assert release(secret, code=1) == {"state": USED}
    assert rules(database) == []


def test_a_row_that_passed_is_gone_or_began_anew_has_no_token_of_before(
    store: Waiting, database: Database
) -> None:
    token = token_of(store)
    for values in ({"passed_at": store.now, "passes": 1}, {"first_attempt": store.now - 5}):
        [before] = database.rows("SELECT passed_at, passes, first_attempt FROM triplet")
        database.execute(update(triplet).values(values))
        assert release(token, code=1) == {"state": USED}
        names = ("passed_at", "passes", "first_attempt")
        database.execute(update(triplet).values(dict(zip(names, before, strict=True))))
    assert release(token)["state"] == "released"
    assert rules(database) == [RELEASED]


def test_a_clock_that_is_set_back_makes_no_used_token_good(
    store: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(store)
    release(token)
    for back in (HOUR, DAY, 30 * DAY):
        monkeypatch.setattr("greycheck.cli.release.time", lambda back=back: time.time() - back)
        assert release(token, code=1) == {"state": USED}


def test_a_check_never_moves_a_first_attempt_to_later(store: Waiting, child: Child) -> None:
    """Else a token that was used might count again: here an early attempt, after a release."""
    CliRunner().invoke(cli, ["greylist", "to:bob@example.net", "--delay", "40h"])
    token = token_of(store)
    release(token)
    CliRunner().invoke(cli, ["rules", "remove", RELEASED])
    assert child.smtpextfork().verdict == (DEFERRED, "early")
    assert release(token, code=1) == {"state": USED}


def test_a_token_of_another_store_or_of_a_key_that_was_removed_is_none(
    store: Waiting, database: Database
) -> None:
    token = token_of(store)
    key = database.directory / "link.key"
    key.unlink()
    ran = CliRunner().invoke(cli, ["release", "--token", "--json"], input=token)
    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert "there is no key yet" in ran.stderr
    assert token_of(store) != token
    assert release(token, code=1) == {"state": INVALID}
    foreign = links.Token(asked_for(b"x@y.example", b"a@b", "192.0.2.1").key, store.now, 1 << 39)
    assert release(links.written(links.read_key(str(key)), foreign), code=1) == {"state": USED}
    assert rules(database) == []


@pytest.mark.parametrize("text", ["", "x" * 5000, "\r\n", "\x1b[31m", "\udcff\udcfe", "--help"])
def test_what_is_no_token_is_refused_in_words_too(
    store: Waiting, database: Database, text: str
) -> None:
    token_of(store)
    given = text.encode("utf-8", "surrogateescape")
    ran = CliRunner().invoke(cli, ["release", "--token"], input=given)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "this is no token of a link that was made here" in ran.stderr
    assert CliRunner().invoke(cli, ["release", "--token", "0123abcd"], input=given).exit_code == 2
    assert CliRunner().invoke(cli, ["release"]).exit_code == 2


def test_a_dry_run_of_a_key_changes_nothing(store: Waiting, database: Database) -> None:
    key = database.rows("SELECT triplet_key FROM triplet")[0][0]
    assert isinstance(key, bytes)
    ran = CliRunner().invoke(cli, ["release", "--dry-run", key.hex()])
    assert ran.stdout.startswith(f"would be released: {RELEASED}\n")
    assert rules(database) == []


def test_the_key_may_be_elsewhere(
    store: Waiting, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = database.directory / "other.key"
    monkeypatch.setenv("GREYCHECK_LINK_KEY_FILE", str(other))
    assert release(token_of(store))["state"] == "released"
    assert other.exists()
    assert not (database.directory / "link.key").exists()
