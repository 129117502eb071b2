"""Our user writes, and the answer passes: both by real SMTP."""

from tests.servers import wait_until
from tests.smtp.dialogue import ACCEPTED, DEFERRED_454, mail
from tests.smtp.mailhost import MailHost
from tests.support import both_ways, on_every_database, one_way

pytestmark = [on_every_database, both_ways]

USER, OUTSIDE, OTHER = "joe@example.net", "ann@example.org", "eve@example.net"
RELAY = '127.0.0.2:allow,RELAYCLIENT=""\n:allow'


def wait_until_learnt(mx: MailHost, pairs: int = 1) -> None:
    def is_learnt() -> bool:
        return len(mx.rows("SELECT sender, recipient FROM correspondent")) == pairs

    wait_until(is_learnt, "it is learnt", lambda: "\n".join(mx.log()))


def test_the_answer_to_our_users_mail_passes_at_once(mx: MailHost) -> None:
    """And no other: each from a client that nobody knows."""
    server = mx.start(
        SMTPEXTFORK=mx.greycheck,
        SMTPEXTFORKR=mx.greycheck,
        GREYCHECK_LEARN_OUTBOUND="60d",
        rules=RELAY,
    )
    server.play(mail(ACCEPTED, USER, OUTSIDE), client="127.0.0.2")
    wait_until_learnt(mx)
    server.play(mail(DEFERRED_454, OUTSIDE, OTHER), client="127.0.3.1")
    server.play(mail(DEFERRED_454, "bob@example.org", USER), client="127.0.3.1")
    server.play(mail(ACCEPTED, OUTSIDE, USER), client="127.0.4.1")
    assert mx.reasons() == ["exempt", "new", "new", "correspondent"]


@one_way
def test_a_session_ends_with_its_last_command(mx: MailHost) -> None:
    """What a child leaves behind has none of the session's descriptors: a client whose mail is
    learnt from sees the end of the connection while the store is still locked.
    """
    server = mx.start(
        SMTPEXTFORKR=mx.greycheck,
        GREYCHECK_LEARN_OUTBOUND="60d",
        GREYCHECK_ON_ERROR="defer",
        rules=RELAY,
    )
    with mx.child.store.begin() as held:
        held.exec_driver_sql("DELETE FROM correspondent")
        server.play(mail(ACCEPTED, USER, OUTSIDE), client="127.0.0.2")
