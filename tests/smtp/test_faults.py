"""Stores that are away, closed, broken or locked, and logs that take nothing: mail goes on, as
on_error says.
"""

import fcntl
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, DEFERRED_454, mail
from tests.smtp.mailhost import MailHost, wait_for

# An account that owns nothing.
NOBODY = "nobody"


@contextmanager
def writing(database: Path) -> Iterator[None]:
    """Another process's transaction that nobody else can write beside."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process's lock on the directory PATH, held while a store is being made."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_mail_is_accepted_while_the_store_is_missing(bare_mx: MailHost, hook: Hook) -> None:
    missing = bare_mx.place / "missing"
    server = bare_mx.start(GREYCHECK_DATABASE=f"{missing}/greycheck.db", **hook.variables)
    server.play(mail(ACCEPTED))
    assert bare_mx.reasons() == ["error"]
    assert f'error="{missing}: No such file or directory: make it,' in bare_mx.check()


def test_mail_is_deferred_while_the_store_is_missing_if_so_set(
    bare_mx: MailHost, hook: Hook
) -> None:
    missing = f"{bare_mx.place}/missing/greycheck.db"
    server = bare_mx.start(GREYCHECK_DATABASE=missing, GREYCHECK_ON_ERROR="defer", **hook.variables)
    server.play(mail(hook.deferred))
    assert bare_mx.check().startswith("greycheck: defer reason=error ")


def test_smtpextfork_goes_on_with_the_session_after_an_error(bare_mx: MailHost) -> None:
    missing = f"{bare_mx.place}/missing/greycheck.db"
    server = bare_mx.start(
        GREYCHECK_DATABASE=missing, GREYCHECK_ON_ERROR="defer", SMTPEXTFORK=bare_mx.greycheck
    )
    server.play("""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<alice@example.org>
        C: RCPT TO:<bob@example.net>
        C: RCPT TO:<carol@example.net>
        C: NOOP
        S: 250
        S: 454
        S: 454
        S: 250
    """)
    assert bare_mx.reasons() == ["error", "error"]


def closed_directory(mx: MailHost) -> tuple[str, str]:
    """A store's path in a directory closed to the sessions' account, and that account (root would
    be let in; others are themselves).
    """
    directory = mx.place / "closed"
    directory.mkdir(mode=0o700 if os.geteuid() == 0 else 0)
    return f"{directory}/greycheck.db", NOBODY if os.geteuid() == 0 else ""


def test_mail_is_accepted_while_the_stores_directory_is_closed(
    bare_mx: MailHost, hook: Hook
) -> None:
    database, user = closed_directory(bare_mx)
    server = bare_mx.start(GREYCHECK_DATABASE=database, user=user, **hook.variables)
    server.play(mail(ACCEPTED))
    assert bare_mx.reasons() == ["error"]
    assert "cannot write here" in bare_mx.check()


def test_mail_is_deferred_while_the_stores_directory_is_closed_if_so_set(
    bare_mx: MailHost, hook: Hook
) -> None:
    database, user = closed_directory(bare_mx)
    server = bare_mx.start(
        GREYCHECK_DATABASE=database, GREYCHECK_ON_ERROR="defer", user=user, **hook.variables
    )
    server.play(mail(hook.deferred))
    assert bare_mx.check().startswith("greycheck: defer reason=error ")


def test_mail_is_accepted_while_the_store_is_no_database(bare_mx: MailHost, hook: Hook) -> None:
    bare_mx.child.database.write_text("This is not a database.\n" * 100)
    server = bare_mx.start(**hook.variables)
    server.play(mail(ACCEPTED))
    assert bare_mx.reasons() == ["error"]
    assert "file is not a database" in bare_mx.check()


def test_mail_is_accepted_where_the_database_is_of_another_kind(
    bare_mx: MailHost, hook: Hook
) -> None:
    server = bare_mx.start(
        GREYCHECK_DATABASE="nosuch://user:secret@db.example.net/mail", **hook.variables
    )
    server.play(mail(ACCEPTED))
    assert bare_mx.reasons() == ["error"]
    assert "GREYCHECK_DATABASE: database: nosuch: no such database here" in bare_mx.checks()[0]
    assert not [line for line in bare_mx.log() if "secret" in line]


def test_an_early_retry_is_accepted_while_the_store_is_away(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.child.database.rename(mx.place / "elsewhere.db")
    mx.child.database.mkdir()
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "error"]


def test_greylisting_goes_on_when_the_store_is_back(mx: MailHost, hook: Hook) -> None:
    elsewhere = mx.place / "elsewhere.db"
    server = mx.start(**hook.variables)
    mx.child.database.rename(elsewhere)
    mx.child.database.mkdir()
    server.play(mail(ACCEPTED))
    mx.child.database.rmdir()
    elsewhere.rename(mx.child.database)
    server.play(mail(hook.deferred))
    assert mx.reasons() == ["error", "new"]


def test_a_new_triplet_is_accepted_while_another_keeps_the_store_locked(
    mx: MailHost, hook: Hook
) -> None:
    server = mx.start(GREYCHECK_DEADLINE="1s", **hook.variables)
    with writing(mx.child.database):
        server.play(mail(ACCEPTED))
    assert mx.reasons() == ["error"]
    assert mx.count("triplet") == 0


def test_a_new_triplet_is_deferred_while_another_keeps_the_store_locked_if_so_set(
    mx: MailHost, hook: Hook
) -> None:
    server = mx.start(GREYCHECK_DEADLINE="1s", GREYCHECK_ON_ERROR="defer", **hook.variables)
    with writing(mx.child.database):
        server.play(mail(hook.deferred))
    assert mx.reasons() == ["error"]


@pytest.mark.parametrize("idle", [0, 2 * 3600])
def test_a_known_client_passes_while_another_keeps_the_store_locked(
    mx: MailHost, hook: Hook, idle: int
) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(300)
    server.play(mail(ACCEPTED))
    mx.age(idle)
    with writing(mx.child.database):
        server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry", "client"]
    assert ("unrecorded=" in mx.checks()[-1]) == bool(idle)


def test_the_deadline_answers_while_another_makes_the_store(bare_mx: MailHost, hook: Hook) -> None:
    server = bare_mx.start(GREYCHECK_DEADLINE="1s", **hook.variables)
    with locked(bare_mx.place):
        server.play(mail(ACCEPTED))
    assert bare_mx.reasons() == ["error"]
    assert 'error="no answer within 1s"' in bare_mx.check()


def test_a_check_whose_session_was_killed_still_ends(mx: MailHost) -> None:
    starts = mx.script("starts", "echo started >&2", f"exec {mx.greycheck}")
    server = mx.start(GREYCHECK_DEADLINE="1s", SMTPEXTFORK=starts)
    with writing(mx.child.database):
        server.play("S: 220\nC: MAIL FROM:<alice@example.org>\nC: RCPT TO:<bob@example.net>")
        wait_for(lambda: "started" in mx.log())
        os.kill(session(mx), signal.SIGKILL)
        wait_for(lambda: mx.reasons() == ["error"])


def session(mx: MailHost) -> int:
    """The process of the one session that there was, as tcpserver tells it."""
    [pid] = [line.split()[2] for line in mx.log() if line.startswith("tcpserver: pid ")]
    return int(pid)


@pytest.mark.parametrize("log", ["&-", "/dev/full"], ids=["closed", "full"])
def test_mail_is_greylisted_where_the_log_takes_nothing(mx: MailHost, log: str) -> None:
    mute = mx.script("mute", f"exec {mx.greycheck} 2>{log}")
    server = mx.start(SMTPEXTFORK=mute)
    server.play(mail(DEFERRED_454))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.checks() == []
    assert mx.rows("SELECT passes FROM triplet") == [(1,)]
