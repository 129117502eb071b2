"""Many sessions at once, as a busy host has them."""

from concurrent.futures import ThreadPoolExecutor

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, mail
from tests.smtp.mailhost import MailHost, Server
from tests.support import both_ways, on_every_database

pytestmark = [on_every_database, both_ways]

SESSIONS = 40


def play_at_once(server: Server, dialogues: list[str]) -> None:
    """Plays all DIALOGUES in sessions of their own at the same time."""
    with ThreadPoolExecutor(len(dialogues)) as pool:
        list(pool.map(server.play, dialogues))


def test_forty_new_senders_at_once_are_deferred_and_later_accepted(
    mx: MailHost, hook: Hook
) -> None:
    server = mx.start(GREYCHECK_CLIENT_PASSES="0", **hook.variables)
    senders = [f"user{number:02}@example.org" for number in range(SESSIONS)]
    play_at_once(server, [mail(hook.deferred, sender=sender) for sender in senders])
    assert mx.count("triplet") == SESSIONS
    mx.age(301)
    play_at_once(server, [mail(ACCEPTED, sender=sender) for sender in senders])
    assert mx.reasons() == ["new"] * SESSIONS + ["retry"] * SESSIONS, mx.log()


def test_forty_first_attempts_of_one_triplet_make_one_row(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    play_at_once(server, [mail(hook.deferred)] * SESSIONS)
    assert mx.count("triplet") == 1
    assert sorted(mx.reasons()) == ["early"] * (SESSIONS - 1) + ["new"]


def test_forty_retries_of_one_triplet_all_pass(mx: MailHost, hook: Hook) -> None:
    server = mx.start(**hook.variables)
    server.play(mail(hook.deferred))
    mx.age(300)
    play_at_once(server, [mail(ACCEPTED)] * SESSIONS)
    assert mx.rows("SELECT passes FROM triplet") == [(1,)]
    assert mx.rows("SELECT passes FROM client") == [(1,)]
    assert mx.reasons().count("retry") == 1
