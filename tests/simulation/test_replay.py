"""What a log tells is decided again as it was, and under other settings as arithmetic says."""

import io
import pickle
from collections.abc import Iterable
from random import Random

import pytest

from greycheck.policy import STEPS
from greycheck.rules.index import RuleIndex
from greycheck.rules.rule import read_lines
from greycheck.settings import Settings
from greycheck.simulation.figures import Figures, Simulation
from greycheck.simulation.history import IDLE, Log, Reader
from greycheck.simulation.replay import Replay, Way, simulate
from greycheck.simulation.schedules import SCHEDULES
from tests.simulation.synthetic import Synthetic, Truth, written
from tests.test_schedules import COLUMNS, FIRST, NOW, TABLE, settings

LATER = NOW + 400 * 86400
LIFETIME = 36 * 86400


def line(
    when: int,
    verdict: str,
    client: str = "192.0.2.1",
    sender: str = "ann@there.example",
    recipient: str = "bob@example.net",
    more: str = "",
    hook: str = "smtpextfork",
) -> str:
    """A line of multilog's about an attempt WHEN seconds after NOW."""
    time = f"@{(1 << 62) + 10 + NOW + when:016x}00000000"
    rest = f"client={client} sender=<{sender}> recipient=<{recipient}>{more} hook={hook} ms=1"
    return f"{time} greycheck: {verdict} {rest}\n"


NEW, EARLY, RETRY = "defer reason=new", "defer reason=early", "accept reason=retry"


def simulated(
    lines: Iterable[str | bytes], *ways: Settings, rules: str | None = None
) -> Simulation:
    text = b"".join(each if isinstance(each, bytes) else each.encode() for each in lines)
    index = None
    if rules is not None:
        read, _notes, faults = read_lines(rules.split("\n"), NOW)
        assert not faults
        index = RuleIndex(
            [(one.match_key, one.kind, one.pattern, one.action, one.delay, None) for one in read]
        )
    named = [Way(f"way {number}", each, index) for number, each in enumerate(ways)]
    return simulate([Log(stream=io.BytesIO(text))], named, LIFETIME, LATER)


def fates(figures: Figures) -> dict[str, int]:
    """The fates that a mail has in FIGURES."""
    names = ("at_once", "delayed", "refused", "never", "waits")
    return {name: number for name in names if (number := getattr(figures, name))}


def only(figures: Figures) -> str:
    ((reason, _mails),) = figures.reasons.items()
    return reason


# --- known truth ----------------------------------------------------------------------------------


def true_of(figures: Figures) -> Truth:
    return Truth(
        figures.at_once,
        figures.delayed,
        figures.never,
        figures.deferrals,
        figures.waited,
        figures.longest,
        figures.stood_in,
    )


@pytest.mark.parametrize("logged", [60, 300, 700, 1500])
def test_each_figure_is_what_is_true_of_a_log_whatever_the_delay(logged: int) -> None:
    log = Synthetic(3, 150, NOW, 30, logged, 4)
    delays = (60, 300, 900, 3600, 7000)
    found = simulated(written(log.events()), *(settings(delay=f"{each}s") for each in delays))
    assert true_of(found.total[0]) == log.truth(logged)
    for delay, figures in zip(delays, found.total[1:], strict=True):
        assert true_of(figures) == log.truth(delay), delay
        assert figures.mails == sum(day.ways[0].mails for day in found.days) == 150 * 6
    assert found.checks == found.lines == len(log.events())
    summed = [sum(day.ways[2].waited for day in found.days), found.total[2].waited]
    assert summed[0] == summed[1]


# --- the published schedules ----------------------------------------------------------------------


def attempts(name: str, delay: int, way: str) -> list[str]:
    """The log of one mail of a sender with the schedule NAME, where the DELAY was so long."""
    lines = []
    for number, after in enumerate(SCHEDULES[name]):
        client = "192.0.2.1" if way == "one address" else f"40.1.{number}.1"
        passes, more = after >= delay, ""
        verdict = NEW if way != "one address" or not after else EARLY
        if passes:
            verdict = "accept reason=pool" if way == "pool" else RETRY
            more = f" delayed={after}"
        if way == "identity" and after:
            more += " identity=there.example"
        lines.append(line(after, verdict, client, more=more))
        if passes:
            break
    return lines


@pytest.mark.parametrize("way", ["one address", "identity", "pool"])
@pytest.mark.parametrize("logged", FIRST)
def test_the_first_attempt_that_passes_is_that_of_the_table(logged: int, way: str) -> None:
    """Whether the log has it, or ends before."""
    more = {"pool_networks": 1, "identity": "no"} if way == "pool" else {}
    ways = [settings(delay=f"{delay}s", **more) for delay in FIRST]
    for name in COLUMNS:
        found = simulated(attempts(name, logged, way), *ways)
        for delay, figures in zip(FIRST, found.total[1:], strict=True):
            (at,) = (at for of, named, at in TABLE if (of, named) == (delay, name))
            assert (figures.delayed, figures.waited) == (1, at), (name, delay)
            last = next(after for after in SCHEDULES[name] if after >= logged)
            assert figures.stood_in == (at > last), (name, delay)


def test_a_provider_is_known_by_its_domain_before_it_ever_retried() -> None:
    first = line(0, "accept reason=client", sender="ann@gmail.com")
    text = [line(-9, NEW, "192.0.2.9", "x@y.example"), line(-8, NEW, sender="ann@gmail.com")]
    found = simulated([*text, first], settings(delay="10m"))
    assert found.total[1].waited == 29 * 60 + 2


def test_who_gave_up_when_he_was_measured_never_comes() -> None:
    text = [line(0, NEW), line(305, RETRY), line(9, NEW, sender="ann@aol.com")]
    text += [line(400, RETRY, sender="ann@aol.com")]
    found = simulated(text, settings(delay="1h"))
    assert fates(found.total[1]) == {"delayed": 1, "never": 1}
    assert found.total[1].stood_in == 2


# --- mails ----------------------------------------------------------------------------------------


def test_what_a_shorter_delay_lets_pass_would_not_have_been_tried_again() -> None:
    text = [line(0, NEW), line(100, EARLY), line(200, EARLY), line(400, RETRY, more=" delayed=400")]
    found = simulated(text, settings(), settings(delay="1m"))
    assert [figures.waited for figures in found.total] == [400, 400, 100]
    assert [figures.deferrals for figures in found.total] == [3, 3, 1]
    assert found.changes == {("delayed", "delayed"): 1}


def test_what_still_waits_at_the_end_is_told_apart_from_what_never_came() -> None:
    text = [line(0, NEW, sender="a@b.example"), line(IDLE + 1, NEW, sender="c@d.example")]
    found = simulated(text, settings())
    assert fates(found.total[0]) == fates(found.total[1]) == {"never": 1, "waits": 1}


def test_a_mail_that_comes_days_later_is_another_one() -> None:
    found = simulated([line(0, NEW), line(IDLE + 1, NEW)], settings())
    assert found.total[0].mails == 2
    slow = [line(number * 90_000, NEW) for number in range(3)]
    assert simulated(slow, settings(retry_window="24h")).total[0].mails == 1


def test_what_bounces_from_everywhere_is_no_mail() -> None:
    text = [line(number, NEW, f"40.0.{number}.1", "") for number in range(3)]
    assert simulated(text, settings()).total[0].mails == 3


def test_tags_of_a_sender_make_no_other_mail() -> None:
    text = [line(0, NEW, sender="list-return-1-bob=example.net@l.example")]
    text += [line(400, RETRY, sender="list-return-2-bob=example.net@l.example")]
    found = simulated(text, settings())
    assert [fates(figures) for figures in found.total] == [{"delayed": 1}] * 2


def test_verdicts_that_were_only_observed_pass_as_they_did() -> None:
    text = [line(0, "accept reason=new", more=" wait=300 observed=defer")]
    found = simulated(text, settings(mode="observe"))
    assert only(found.total[0]) == "observed new"
    assert [fates(figures) for figures in found.total] == [{"at_once": 1}, {"delayed": 1}]
    assert (found.total[1].waited, found.total[1].stood_in) == (300, 1)


# --- settings -------------------------------------------------------------------------------------


def test_a_wide_network_lets_a_pool_pass_and_a_narrow_one_does_not() -> None:
    text = [line(0, NEW), line(400, RETRY, "192.0.2.9", more=" delayed=400")]
    found = simulated(text, settings(), settings(ipv4_prefix=32), settings(ipv4_prefix=16))
    assert [figures.waited for figures in found.total] == [400, 400, 1600, 400]
    text = [line(0, NEW, "2001:db8:0:1::1"), line(400, NEW, "2001:db8:0:2::1")]
    found = simulated(text, settings(), settings(ipv6_prefix=48))
    assert [fates(figures) for figures in found.total] == [
        {"waits": 1},
        {"waits": 1},
        {"delayed": 1},
    ]


def test_a_client_is_known_after_as_many_passes_as_the_setting_says() -> None:
    text = [line(0, NEW), line(400, RETRY, more=" delayed=400")]
    text += [line(500, "accept reason=client", recipient="eve@example.net")]
    found = simulated(text, settings(), settings(client_passes=2))
    assert [fates(figures) for figures in found.total] == [
        {"delayed": 1, "at_once": 1},
        {"delayed": 1, "at_once": 1},
        {"delayed": 2},
    ]


def test_a_window_that_is_over_begins_anew() -> None:
    text = [line(0, NEW), line(90_000, RETRY, more=" delayed=90000")]
    found = simulated(text, settings(), settings(retry_window="24h"))
    assert [fates(figures) for figures in found.total] == [
        {"delayed": 1},
        {"delayed": 1},
        {"never": 1},
    ]


IDENTITY = " identity=there.example"


def test_an_identity_counts_as_far_as_the_log_has_it() -> None:
    """The first attempt was made before the domain was asked; a stranger's never counts."""
    text = [line(0, NEW, "40.0.0.1")]
    text += [line(400, RETRY, "40.9.0.1", more=f" delayed=400{IDENTITY}")]
    second = "eve@example.net"
    text += [line(500, "accept reason=domain", "40.7.0.1", recipient=second, more=IDENTITY)]
    text += [line(600, NEW, "50.0.0.1", recipient="joe@example.net")]
    no = settings(identity="no")
    found = simulated(text, settings(), no, settings(domain_passes=0))
    assert fates(found.total[0]) == fates(found.total[1])
    assert fates(found.total[1]) == {"delayed": 1, "at_once": 1, "waits": 1}
    assert fates(found.total[2]) == fates(found.total[3]) == {"delayed": 2, "waits": 1}
    assert found.total[1].reasons == {"retry": 1, "domain": 1, "new": 1}


def test_a_provider_and_a_correspondent_are_let_in_as_in_the_log() -> None:
    text = [line(0, "accept reason=provider", more=" provider=big" + IDENTITY)]
    found = simulated(text, settings(), settings(identity="no"))
    assert [only(figures) for figures in found.total] == ["provider", "provider", "retry"]
    text = [line(0, "accept reason=correspondent")]
    found = simulated(text, settings(learn_outbound="60d"), settings())
    assert [only(figures) for figures in found.total] == ["correspondent", "correspondent", "retry"]


def test_what_users_write_teaches_and_is_no_mail_of_its_own() -> None:
    text = [
        line(
            0,
            "accept reason=exempt",
            "192.0.2.7",
            "bob@example.net",
            "ann@there.example",
            more=" by=RELAYCLIENT",
        )
    ]
    text += [line(9, NEW), line(400, RETRY, more=" delayed=391")]
    found = simulated(text, settings(), settings(learn_outbound="60d"))
    assert [fates(figures) for figures in found.total] == [
        {"delayed": 1},
        {"delayed": 1},
        {"at_once": 1},
    ]
    assert (found.exempt, found.checks, found.total[0].mails) == (1, 3, 1)


def test_the_null_sender_is_what_the_setting_makes_of_it() -> None:
    text = [line(0, "accept reason=exempt", sender="", more=" by=null_sender")]
    found = simulated(text, settings(null_sender="accept"), settings())
    assert [fates(each) for each in found.total] == [{"at_once": 1}, {"at_once": 1}, {"delayed": 1}]


def test_a_later_recipient_passes_with_its_message() -> None:
    text = [line(0, NEW, hook="spp"), line(400, RETRY, hook="spp", more=" delayed=400")]
    text += [line(400, "accept reason=message", recipient="eve@example.net", hook="spp")]
    found = simulated(text, settings(client_passes=0))
    assert found.total[0].reasons == found.total[1].reasons == {"retry": 1, "message": 1}


def test_hasty_retries_are_refused_where_strikes_are_counted() -> None:
    text = [line(0, NEW), *(line(3 * number, EARLY) for number in range(1, 4))]
    found = simulated(text, settings(), settings(strikes=2))
    assert [fates(figures) for figures in found.total] == [
        {"waits": 1},
        {"waits": 1},
        {"refused": 1},
    ]


# --- rules ----------------------------------------------------------------------------------------


def test_rules_that_the_log_names_decide_again() -> None:
    text = [line(0, "accept reason=rule", more=" rule=192.0.2.0/24")]
    text += [line(1, "reject reason=rule", sender="x@y.example", more=" rule=from:y.example")]
    text += [line(2, "defer reason=rule", sender="z@y.example", more=" rule=from:z@y.example")]
    found = simulated(text, settings(delay="1h"))
    expected = {"at_once": 1, "refused": 1, "waits": 1}
    assert fates(found.total[0]) == fates(found.total[1]) == expected


def test_a_rule_that_greylists_has_the_delay_that_the_log_shows() -> None:
    rule = " rule=to:bob@example.net"
    text = [line(0, NEW, more=f" wait=3600{rule}"), line(400, EARLY, more=f" wait=3200{rule}")]
    text += [line(3700, RETRY, more=f" delayed=3700{rule}")]
    found = simulated(text, settings())
    assert [figures.waited for figures in found.total] == [3700, 3700]


def test_rules_of_a_file_decide_instead() -> None:
    text = [line(0, NEW), line(400, RETRY, more=" delayed=400")]
    text += [line(500, "accept reason=rule", sender="x@y.example", more=" rule=from:y.example")]
    found = simulated(text, settings(), rules="allow from:there.example to:bob@example.net")
    assert fates(found.total[0]) == {"delayed": 1, "at_once": 1}
    assert found.total[1].reasons == {"rule": 1, "retry": 1}
    refused = simulated(text, settings(), rules="reject 192.0.2.0/24")
    assert fates(refused.total[1]) == {"refused": 2}


# --- before the log began -------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "more"), [("client", ""), ("known", ""), ("domain", IDENTITY)])
def test_what_the_log_shows_as_known_first_was_known_before(reason: str, more: str) -> None:
    text = [line(0, f"accept reason={reason}", more=more)]
    found = simulated(text, settings())
    assert [only(figures) for figures in found.total] == [reason, reason]
    assert (found.known, found.total[1].at_once) == (1, 1)


def test_what_the_log_shows_to_become_known_was_not() -> None:
    """The longer delay still defers it when the log knows its client."""
    text = [line(0, NEW), line(400, RETRY, more=" delayed=400")]
    text += [line(500, "accept reason=client", recipient="eve@example.net")]
    found = simulated(text, settings(delay="1h"))
    assert (found.known, fates(found.total[1])) == (0, {"delayed": 2})


def test_what_is_shown_as_known_after_its_lifetime_was_not_known_before() -> None:
    text = [line(0, NEW, sender="x@y.example")]
    text += [line(LIFETIME + 1, "accept reason=client")]
    found = simulated(text, settings())
    assert (found.known, found.total[1].delayed) == (0, 1)


def test_what_waited_when_the_log_began_goes_on_from_then() -> None:
    text = [line(0, RETRY, more=" delayed=700")]
    found = simulated(text, settings(), settings(delay="10m"), settings(delay="15m"))
    assert [figures.waited for figures in found.total][:3] == [700, 700, 700]
    assert found.total[3].waited >= 900


def test_a_rule_that_was_only_observed_says_nothing_of_what_was_known() -> None:
    """It comes before: the client, which the log shows next, was known."""
    text = [line(0, "accept reason=rule", more=" observed=defer rule=192.0.2.0/24")]
    text += [line(9, "accept reason=client", recipient="eve@example.net")]
    assert simulated(text, settings()).known == 1


def test_memory_does_not_grow_with_the_mails_of_a_day() -> None:
    """However different their waits are."""

    def held(mails: int) -> int:
        replay = Replay([Way("way", settings())], LIFETIME)
        text = sorted(
            line(when, verdict, f"40.{number}.0.1", f"a{number}@x{number}.example", more=more)
            for number in range(mails)
            for when, verdict, more in (
                (40 * number, NEW, ""),
                (41 * number + 400, RETRY, f" delayed={400 + number}"),
            )
        )
        for attempt in Reader(LATER).attempts([Log(stream=io.BytesIO("".join(text).encode()))]):
            replay.take(attempt)
        ((_day, figures),) = replay._days.items()
        assert figures[1].delayed == mails
        return len(pickle.dumps(figures))

    assert held(200) <= held(20) + 100


# --- whatever a log says --------------------------------------------------------------------------

SAID = (
    " wait=300",
    " wait=99999999999",
    " delayed=0",
    " delayed=400",
    " delayed=100000000",
    IDENTITY,
    " by=RELAYCLIENT",
    " by=null_sender",
    " provider=big",
    " rule=to:bob@example.net",
    " rule=\\xff",
    " observed=defer",
    " observed=reject",
    ' error="a b"',
)


@pytest.mark.parametrize("seed", range(10))
def test_each_mail_has_one_fate_in_each_way_whatever_a_log_says(seed: int) -> None:
    draw = Random(seed)
    reasons = [*(step.reason for step in STEPS), "error", "unheard"]
    clients = ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::", "40.1.1.1", "1.2.3", "-"]
    senders = ["", "a@x.example", "a", "@", "a@", "\\x00@x", "x+y@there.example", "b\\...9.AB@x"]
    text, now = [], 0
    for _ in range(300):
        now += draw.choice([-5, 0, 1, 30, 400, 4000, 90_000])
        verdict = f"{draw.choice(['accept', 'defer', 'reject'])} reason={draw.choice(reasons)}"
        more = "".join(each for each in SAID if draw.random() < 0.2)
        to = draw.choice(["", "bob@example.net", "b"])
        hook = draw.choice(["spp", "policy", "smtpextfork"])
        text.append(line(now, verdict, draw.choice(clients), draw.choice(senders), to, more, hook))
    other = settings(
        delay=draw.choice(["0s", "1d"]),
        strikes=1,
        pool_networks=1,
        client_passes=draw.choice([0, 2]),
        learn_outbound="60d",
        network_limit=draw.choice([0, 1]),
        pending_limit=draw.choice([0, 2]),
        ipv4_prefix=draw.choice([8, 32]),
    )
    found = simulated(text, settings(), other)
    for figures in found.total:
        assert figures.mails == sum(fates(figures).values()) == sum(figures.reasons.values())
        assert figures.mails == found.total[0].mails > 0
        assert sum(figures.bands) == figures.delayed
    assert sum(found.changes.values()) == found.total[0].mails
