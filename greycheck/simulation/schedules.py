"""When real senders try again (docs/schedules.rst): attempts in seconds after the first, at 0.

They stand in where a log ends: a mail that passed was not tried again, so nobody knows when its
sender would have tried once more.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import log

MINUTE, HOUR, DAY = 60, 3600, 86400

# How long a sender tries whose own end is not known (RFC 5321 section 4.5.4.1).
LASTS = 4 * DAY


def times(text: str) -> list[int]:
    """The seconds of attempts as minutes and seconds after the first, which is one too."""
    return [0] + [
        60 * int(minutes) + int(seconds)
        for minutes, seconds in (each.split(":") for each in text.split())
    ]


def every(interval: int, until: int) -> list[int]:
    """Attempts each INTERVAL seconds."""
    return list(range(0, until + 1, interval))


def growing(first: int, factor: float, most: int, until: int) -> list[int]:
    """Attempts after an interval that grows by FACTOR up to the MOST."""
    found, interval = [0], float(first)
    while found[-1] + interval <= until:
        found.append(found[-1] + round(interval))
        interval = min(interval * factor, most)
    return found


HOTMAIL = times("1:01 2:03 3:04 5:06 8:07 12:08 16:10")
YANDEX = times("1:05 2:58 6:53 14:55 30:28 45:41 61:01")

# Large providers, as measured.
MEASURED = {
    "gmail": times("6:02 29:02 56:36 98:44 162:03 229:44 309:05 434:46"),
    "yahoo": times("2:07 5:39 12:58 27:16 55:13 109:35 216:47 430:36"),
    "hotmail": HOTMAIL + [HOTMAIL[-1] + 4 * MINUTE * number for number in range(1, 87)],
    "qq": times("5:05 5:11 5:17 6:19 8:22 12:25 20:29 52:31 84:35 144:42 204:56"),
    "mail.ru": times(
        "1:18 19:15 49:14 79:49 113:20 154:18 187:53 235:20 271:03 305:50 340:38 373:45"
    ),
    "yandex": YANDEX + [YANDEX[-1] + 930 * number for number in range(1, 19)],
    "mail.com": times("5:02 12:37 23:59 41:03 66:38 105:01 162:35 248:56 378:28"),
    "gmx": times("5:01 12:33 23:50 40:46 66:09 104:14 161:22 247:04 375:36"),
    "aol": times("5:32 11:32 21:32 31:32"),
    "india": times("6:21 16:21 36:21 76:21 146:22 216:21 286:21 356:21 426:21"),
}

# Mail servers and services, by their defaults.
SERVERS = {
    "qmail": [400 * number * number for number in range(12)],
    "Postfix": growing(300, 2, 4000, 24 * HOUR),
    "Exim": every(15 * MINUTE, 2 * HOUR),
    "Sendmail": every(10 * MINUTE, 6 * HOUR),
    "Exchange": growing(60, 1, 60, 4 * MINUTE)
    + [4 * MINUTE + 300 * number for number in range(1, 7)],
    "Exchange Online": growing(15 * MINUTE, 2, HOUR, 24 * HOUR),
    "KumoMTA": growing(20 * MINUTE, 2, 12 * HOUR, 24 * HOUR),
    "SendGrid": [0, 60, 660, 4260, 18660],
    "Mailgun": growing(10 * MINUTE, 2, 8 * HOUR, 8 * HOUR),
    "once in 25 hours": every(25 * HOUR, 50 * HOUR),
}

SCHEDULES = MEASURED | SERVERS

# Who gave up when he was measured: nothing follows his last attempt.
GIVES_UP = frozenset({"qq", "aol"})

# How long a sender tries that is known to give up earlier or later than LASTS, in seconds.
ENDS = {
    "qmail": 7 * DAY,
    "Postfix": 5 * DAY,
    "Exchange": 2 * DAY,
    "Exchange Online": DAY,
    "KumoMTA": 3 * DAY,
    "SendGrid": 3 * DAY,
    "Mailgun": 8 * HOUR,
}

# Whose schedule that of a sender's domain is: its last labels but the country.
PROVIDERS = {
    "gmail": "gmail",
    "googlemail": "gmail",
    "yahoo": "yahoo",
    "ymail": "yahoo",
    "hotmail": "hotmail",
    "qq": "qq",
    "yandex": "yandex",
    "gmx": "gmx",
    "aol": "aol",
    "india": "india",
}
BY_DOMAIN = {"mail.ru": "mail.ru", "mail.com": "mail.com"}

# Whose schedule stands in where nothing is known of a sender: that of the usual mail server.
USUAL = "Postfix"


def following(name: str, after: int) -> Iterator[int]:
    """Yields the attempts of the schedule NAME that come later than AFTER, in seconds.

    Beyond what is known of it, its last interval goes on until the sender gives up.
    """
    schedule, ends = SCHEDULES[name], ENDS.get(name, LASTS)
    yield from (at for at in schedule if at > after)
    if name in GIVES_UP:
        return
    last, interval = schedule[-1], schedule[-1] - schedule[-2]
    at = last + interval * max(1, (after - last) // interval + 1)
    while at <= ends:
        yield at
        at += interval


@lru_cache(1 << 14)
def of_sender(domain: str, retries: tuple[int, ...]) -> str:
    """Returns the name of the schedule of a sender of DOMAIN who tried again after RETRIES.

    RETRIES are seconds after the first attempt, in order. A provider that was measured is known by
    its domain; of others that schedule is taken whose attempts are nearest, by the proportion of
    their times; where there was no retry, the usual one.
    """
    named = BY_DOMAIN.get(domain) or PROVIDERS.get(domain.partition(".")[0])
    if named:
        return named
    tried = [after for after in retries if after > 0]
    if not tried:
        return USUAL
    return min(SCHEDULES, key=lambda name: _distance(SCHEDULES[name][1:], tried))


def _distance(schedule: Sequence[int], tried: Sequence[int]) -> float:
    """How far the times that were TRIED are from those of SCHEDULE: 0 where they are its first.

    A schedule that ends before is as far off as one that is twice as slow, for each attempt.
    """
    compared = sum(abs(log(after / at)) for after, at in zip(tried, schedule, strict=False))
    return compared + log(2) * max(0, len(tried) - len(schedule))
