"""What is learnt from outbound mail, by real children: whom our users write to may answer."""

import os
import resource
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from greycheck import outbound
from greycheck.log import show_address
from greycheck.settings import Settings, read
from greycheck.store import connect
from greycheck.store.base import domain_key
from greycheck.store.schema.tables import authorised, correspondent, spf
from greycheck.store.waiting import CORRESPONDENTS, packed_range
from tests.servers import wait_until
from tests.support import ACCEPTED, DEFERRED, Child, Database, ServerDatabase, on_every_database

DAY = 86400
USER = b"joe@ours.example"
OUTSIDE = b"ann@there.example"
PAIR = OUTSIDE, USER
NOBODY = 65534
STRANGER = "198.51.100.7"
NOW = 1_800_000_000


def learnt(child: Child) -> list[tuple[object, ...]]:
    return child.rows("SELECT sender, recipient FROM correspondent ORDER BY sender")


def written(child: Child) -> int:
    """When the last mail was recorded."""
    return int(str(child.rows("SELECT max(last_seen) FROM correspondent")[0][0] or 0))


def wait_until_learnt(child: Child, *pairs: tuple[bytes, bytes]) -> None:
    """Waits for the processes that were left behind, until there are PAIRS and nothing else."""
    wanted = [(show_address(one), show_address(other)) for one, other in pairs or [PAIR]]
    wait_until(lambda: learnt(child) == wanted, "it is learnt", lambda: str(learnt(child)))


def write(child: Child, sender: bytes = USER, recipient: bytes = OUTSIDE, **more: str) -> None:
    """A user of ours writes; the mail server waits for the end of all who have its descriptors."""
    ran = child.smtpextfork(sender, recipient, RELAYCLIENT="", **more)
    assert ran.verdict == (ACCEPTED, "exempt"), ran
    assert len(ran.lines) == 1, ran


@pytest.fixture
def learner(child: Child) -> Child:
    child.settings["GREYCHECK_LEARN_OUTBOUND"] = "60d"
    return child


@pytest.fixture
def any_learner(any_child: Child) -> Child:
    """As installed, and under coverage."""
    any_child.settings["GREYCHECK_LEARN_OUTBOUND"] = "60d"
    return any_child


# --- what a mail says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "recipient", "outside", "user"),
    [
        (b"Joe@Ours.Example.", b"Ann@There.Example.", OUTSIDE, USER),
        (b"prvs=1234abcd56=joe@ours.example", OUTSIDE, OUTSIDE, USER),
        (b"joe+shop@ours.example", OUTSIDE, OUTSIDE, b"joe+shop@ours.example"),
        (USER, b"ann+joe@there.example", OUTSIDE, USER),
        (b"route66@ours.example", OUTSIDE, OUTSIDE, b"route66@ours.example"),
    ],
)
def test_addresses_are_those_of_an_answer(
    sender: bytes, recipient: bytes, outside: bytes, user: bytes
) -> None:
    found = outbound.letter(sender, recipient, NOW, DAY)
    assert found is not None
    assert (found.outside, found.user, found.written, found.expires) == (
        outside,
        user,
        NOW,
        NOW + DAY,
    )


@pytest.mark.parametrize(
    ("sender", "recipient"),
    [
        (b"", OUTSIDE),
        (b"joe", OUTSIDE),
        (USER, b"postmaster"),
        (USER, b"@there.example"),
        (USER, b"ann@"),
        (USER, b"ann@there.example@fixme"),
        (USER, b"eve@ours.example"),
        (b"list-return-5-joe=there.example@ours.example", OUTSIDE),
        (b"SRS0=abcd=XY=there.example=eve@ours.example", OUTSIDE),
        (b"bounce-1234567@ours.example", OUTSIDE),
    ],
)
def test_no_user_or_nobody_outside_is_nothing_to_learn(sender: bytes, recipient: bytes) -> None:
    assert outbound.letter(sender, recipient, NOW, DAY) is None


def test_a_mail_is_news_a_day_later_or_half_of_a_short_time() -> None:
    found = outbound.Letter(OUTSIDE, USER, NOW, 60 * DAY)
    assert [found.is_news(found.expires - ago) for ago in (0, DAY - 1, DAY)] == [False, False, True]
    short = outbound.Letter(OUTSIDE, USER, NOW, 100)
    assert [short.is_news(short.expires - ago) for ago in (49, 50)] == [False, True]


# --- what a store does with it --------------------------------------------------------------------


@on_every_database
def test_a_store_writes_what_is_news_and_prolongs_it(database: Database) -> None:
    store = connect(settings_of(database), 60)
    late = outbound.Letter(OUTSIDE, USER, NOW + DAY, 60 * DAY)
    first, again = (outbound.Letter(OUTSIDE, USER, NOW + ago, 60 * DAY) for ago in (0, DAY - 1))
    other = outbound.Letter(b"bob@there.example", USER, NOW, 60 * DAY)
    assert [store.learn(each) for each in ([first], [again], [late, other], [late], [first])] == [
        1,
        0,
        2,
        0,
        0,
    ]
    store.close()
    assert database.rows(
        "SELECT sender, recipient, first_seen, last_seen, expires_at FROM correspondent"
        " ORDER BY sender"
    ) == [
        ("ann@there.example", "joe@ours.example", NOW, NOW + DAY, NOW + 61 * DAY),
        ("bob@there.example", "joe@ours.example", NOW, NOW, NOW + 60 * DAY),
    ]


@on_every_database
def test_one_user_has_so_many_correspondents_and_no_more(database: Database) -> None:
    """Whose account is stolen makes the table grow so far; those whom he knows are kept up."""
    store = connect(settings_of(database), 60)
    first = [
        outbound.Letter(b"%d@there.example" % number, USER, NOW, 60 * DAY)
        for number in range(CORRESPONDENTS)
    ]
    if isinstance(database, ServerDatabase):
        fill(database, first)
    else:
        assert store.learn(first) == CORRESPONDENTS
    assert store.learn([outbound.Letter(OUTSIDE, USER, NOW, 60 * DAY)]) == 0
    assert store.learn([outbound.Letter(OUTSIDE, b"eve@ours.example", NOW, 60 * DAY)]) == 1
    assert store.learn([outbound.Letter(b"7@there.example", USER, NOW + DAY, 60 * DAY)]) == 1
    store.close()


def settings_of(database: Database) -> Settings:
    given = {"GREYCHECK_CONFIG": "/dev/null", **database.environ}
    return read({os.fsencode(name): os.fsencode(value) for name, value in given.items()})


def fill(database: Database, letters: list[outbound.Letter]) -> None:
    """Puts LETTERS there in one statement."""
    from greycheck.store.writing import letter_parameters

    names = [column.name for column in correspondent.columns]
    rows = [{name: values[name] for name in names} for values in map(letter_parameters, letters)]
    database.execute(correspondent.insert(), rows)


# --- the child ------------------------------------------------------------------------------------


@on_every_database
def test_an_answer_to_our_user_passes_at_once_and_nothing_else_does(learner: Child) -> None:
    learner.make_store()
    write(learner)
    wait_until_learnt(learner)
    answers = [
        learner.smtpextfork(sender, recipient, STRANGER).verdict
        for sender, recipient in (
            (OUTSIDE, USER),
            (b"Ann+tag@there.example", USER),
            (OUTSIDE, b"eve@ours.example"),
            (b"bob@there.example", USER),
        )
    ]
    passes = (ACCEPTED, "correspondent")
    assert answers == [passes, passes, (DEFERRED, "new"), (DEFERRED, "new")]


@on_every_database
def test_an_answer_comes_from_networks_that_its_domain_names(learner: Child) -> None:
    """Where SPF is known, and only there."""
    learner.make_store()
    write(learner)
    wait_until_learnt(learner)
    key, far = domain_key(b"there.example"), 1 << 40
    told = {
        "domain_key": key, "name": "there.example", "state": "found", "why": "", "per_client": 0,
        "answered_at": 1, "asked_at": 1, "failures": 0, "next_at": far, "expires_at": far,
    }  # fmt: skip
    learner.store.execute(spf.insert(), [told])
    first, last = packed_range("198.51.100.0/24")
    allowed = {
        "network_key": key + first, "last": last, "source": "spf", "name": "there.example",
        "added_at": 1, "expires_at": far,
    }  # fmt: skip
    learner.store.execute(authorised.insert(), [allowed])
    asked = [learner.smtpextfork(OUTSIDE, USER, client) for client in ("203.0.113.5", STRANGER)]
    assert [ran.verdict for ran in asked] == [(DEFERRED, "new"), (ACCEPTED, "correspondent")]


def test_what_was_learnt_ends_and_a_rule_stands(learner: Child) -> None:
    learner.make_store()
    write(learner)
    wait_until_learnt(learner)
    assert learner.smtpextfork(OUTSIDE, USER, STRANGER, GREYCHECK_LEARN_OUTBOUND="0").verdict == (
        DEFERRED,
        "new",
    )
    learner.age(60 * DAY - 60)
    assert learner.smtpextfork(OUTSIDE, USER, "203.0.113.5").verdict == (ACCEPTED, "correspondent")
    learner.age(120)
    assert learner.smtpextfork(OUTSIDE, USER, "203.0.113.9").verdict == (DEFERRED, "new")


def test_a_rule_that_greylists_stands(learner: Child) -> None:
    learner.make_store()
    write(learner)
    wait_until_learnt(learner)
    subprocess.run(
        [os.fspath(learner.programs / "greycheck"), "greylist", "from:ann@there.example"],
        env=learner.environ(None),
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    assert learner.smtpextfork(OUTSIDE, USER, STRANGER).verdict == (DEFERRED, "new")


@pytest.mark.parametrize("variable", ["RELAYCLIENT", "SMTPAUTHUSER"])
def test_whoever_is_let_in_as_a_user_is_one(learner: Child, variable: str) -> None:
    learner.make_store()
    learner.spp(USER, OUTSIDE, **{variable: ""})  # type: ignore[arg-type]
    wait_until_learnt(learner)


def test_what_else_is_exempt_is_no_user(any_learner: Child) -> None:
    """Nor is a client without an address, nor one that is checked."""
    any_learner.make_store()
    reasons = [
        ran.reason
        for ran in (
            any_learner.smtpextfork(USER, b"1@there.example", GREYCHECK="off"),
            any_learner.spp(USER, b"2@there.example", SMTPRCPTHOSTSOK="0"),
            any_learner.smtpextfork(b"", b"3@there.example", RELAYCLIENT=""),
            any_learner.smtpextfork(b"", b"4@there.example", GREYCHECK_NULL_SENDER="accept"),
            any_learner.smtpextfork(USER, b"5@there.example", None, RELAYCLIENT=""),
            any_learner.smtpextfork(USER, b"6@there.example"),
            any_learner.smtpextfork(
                USER, b"7@there.example", RELAYCLIENT="", GREYCHECK_LEARN_OUTBOUND="0"
            ),
        )
    ]
    assert reasons == ["exempt"] * 4 + ["incomplete", "new", "exempt"]
    write(any_learner)  # what any of them had left behind would have been written before this
    wait_until_learnt(any_learner)


def test_what_is_known_is_written_once_a_day(any_learner: Child) -> None:
    any_learner.make_store()
    write(any_learner)
    wait_until_learnt(any_learner)
    any_learner.age(DAY // 2)
    was = written(any_learner)
    write(any_learner)
    write(any_learner, recipient=b"bob@there.example")
    wait_until_learnt(any_learner, PAIR, (b"bob@there.example", USER))
    rows = any_learner.rows("SELECT last_seen FROM correspondent ORDER BY last_seen")
    assert rows[0] == (was,)
    any_learner.age(DAY // 2)
    write(any_learner)
    before = was - DAY // 2
    oldest = "SELECT min(last_seen) FROM correspondent"
    wait_until(lambda: any_learner.rows(oldest) != [(before,)], "it is prolonged")


# --- faults: outbound mail goes out ---------------------------------------------------------------


def test_a_locked_file_delays_no_outbound_mail(learner: Child) -> None:
    """200 of them: each is accepted while the lock is held, and nothing but its line is said."""
    learner.make_store()
    learner.settings["GREYCHECK_ON_ERROR"] = "defer"
    with closing(sqlite3.connect(learner.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(200):
            write(learner, recipient=b"%d@there.example" % number)
        assert learnt(learner) == []
        other.execute("ROLLBACK")
    write(learner)
    told = [(show_address(OUTSIDE), show_address(USER))]
    wait_until(lambda: learnt(learner)[-1:] == told, "it is learnt once the lock is free")


def test_a_server_that_is_silent_delays_no_outbound_mail(
    programs: Path, on_postgresql: ServerDatabase, place: Path
) -> None:
    store = on_postgresql.seen_from(place)
    store.make()
    learner = Child(programs, store)
    learner.settings |= {"GREYCHECK_LEARN_OUTBOUND": "60d", "GREYCHECK_ON_ERROR": "defer"}
    on_postgresql.server.freeze()
    try:
        for number in range(20):
            write(learner, recipient=b"%d@there.example" % number)
    finally:
        on_postgresql.server.thaw()

    told = [(show_address(OUTSIDE), show_address(USER))]

    def is_learnt() -> bool:
        write(learner)  # the host may be marked for a while
        return learnt(learner)[-1:] == told

    wait_until(is_learnt, "it is learnt once the server answers")


@pytest.mark.parametrize("what", ["no directory", "no file", "no schema", "no database", "full"])
def test_without_a_store_outbound_mail_goes_out(any_learner: Child, place: Path, what: str) -> None:
    paths = {
        "no directory": place / "nowhere" / "greycheck.db",
        "no file": place / "none.db",
        "no schema": place / "empty.db",
        "no database": place / "text.db",
        "full": Path("/dev/full"),
    }
    (place / "empty.db").touch()
    (place / "text.db").write_text("no database\n" * 1000)
    any_learner.settings |= {
        "GREYCHECK_DATABASE": str(paths[what]),
        "GREYCHECK_ON_ERROR": "defer",
    }
    write(any_learner)
    assert not (place / "none.db").exists()


def test_where_no_process_can_be_made_the_mail_goes_out_and_the_log_tells(
    learner: Child,
) -> None:
    learner.make_store()

    def allow_no_process() -> None:
        if os.geteuid() == 0:  # root has as many as it likes
            os.setuid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    ran = learner.run(
        [learner.programs / "greycheck"],
        learner.environ(REMOTEMF=USER, REMOTERCPT=OUTSIDE, RELAYCLIENT=""),
        preexec_fn=allow_no_process,
    )
    assert ran.code == ACCEPTED
    assert "reason=exempt" in ran.lines[0]
    assert "nothing is learnt from this mail: BlockingIOError" in ran.lines[1]
    assert len(ran.lines) == 2


def test_a_write_that_hangs_ends_by_itself(learner: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it waits for, in a process that has let go of its signals' inheritance."""
    monkeypatch.setattr(outbound, "SECONDS", 0.2)
    monkeypatch.setattr(outbound, "record", lambda *_anything: signal.pause())
    settings = read({b"GREYCHECK_LEARN_OUTBOUND": b"60d", b"GREYCHECK_CONFIG": b"/dev/null"})
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        outbound._detach()
        outbound.record(None, settings)  # type: ignore[arg-type]
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGALRM


def test_a_server_that_is_silent_is_marked_before_the_process_is_ended(
    on_postgresql: ServerDatabase, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a check may wait for it."""
    monkeypatch.setattr(outbound, "SECONDS", 3)
    on_postgresql.make()
    store = on_postgresql.seen_from(place)
    found = settings_of(store)
    found.deadline = 60
    on_postgresql.server.freeze()
    try:
        pid = os.fork()
        if pid == 0:
            outbound._detach()
            outbound.record(outbound.Letter(OUTSIDE, USER, NOW, DAY), found)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        on_postgresql.server.thaw()
    assert [path.name[:5] for path in place.iterdir()] == ["down-"]
