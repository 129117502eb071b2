"""Examines the providers that are let in: how old their lists are, and what is wrong with them."""

from collections.abc import Iterator, Sequence
from shlex import quote

from sqlalchemy import Engine

from greycheck.doctor.contents import cron_line, in_crontab
from greycheck.doctor.finding import Finding, Installation, run, safe
from greycheck.settings import duration_text
from greycheck.store.admin import providers
from greycheck.store.admin.providers import FRESH, Provider
from greycheck.times import coarse

# How many providers are named for one reason.
NAMED = 5

# When cron asks again: once a week.
WEEKLY = "17 4 * * 1"


def check_providers(engine: Engine, now: int, installation: Installation) -> Iterator[Finding]:
    """Yields what is to be known of the providers; nothing where none is let in."""
    every = providers.all_providers(engine)
    if not every:
        return
    if installation.settings.identity == "no":
        found = f"{len(every)} are to be let in, and none is: identity = no"
        yield Finding("note", "providers", found)
        return
    old = [one for one in every if one.is_old(now)]
    if old:
        yield _of_old(old, now, installation)
    yield from (_of_trouble(one, now) for one in every if one.trouble and one not in old)
    if not any(one.trouble for one in every) and not old:
        count = sum(len(one.networks) for one in every)
        oldest = max(now - (one.answered_at or 0) for one in every)
        found = f"{len(every)} with {count} networks, the oldest list {coarse(oldest)} old"
        yield Finding("ok", "providers", found)


def _of_old(old: Sequence[Provider], now: int, installation: Installation) -> Finding:
    """What is said of lists that are too OLD: that nobody asks, or that DNS gives none."""
    names = ", ".join(f"{safe(one.name)} ({_age(one, now)})" for one in old[:NAMED])
    more = f" and {len(old) - NAMED} more" if len(old) > NAMED else ""
    found = f"lists are older than {duration_text(FRESH)}: {names}{more}"
    if all(now - one.asked_at > FRESH for one in old):
        line = cron_line(WEEKLY, "providers refresh --yes", installation)
        advice = in_crontab(line, installation)
        return Finding("warning", "providers", f"{found}: refresh does not run", advice)
    why = next((one.trouble for one in old if one.trouble), "")
    advice = run("greycheck providers refresh")
    return Finding("warning", "providers", f"{found}: {safe(why)}", advice)


def _of_trouble(one: Provider, now: int) -> Finding:
    """What is said of ONE whose last question did not come to a good list."""
    name, trouble = safe(one.name), safe(one.trouble)

    def command(verb: str) -> str:
        return run(f"greycheck providers {verb} {quote(one.name)}")

    if one.state == "failed":
        found = f"{name}: {trouble}: its list of {_age(one, now)} ago counts"
        return Finding("note", "providers", found, command("refresh"))
    if one.state == "found":
        found = f"{name}: {trouble}"
        return Finding("note", "providers", found, command("list"))
    return Finding(
        "warning",
        "providers",
        f"{name}: {trouble}: its list of {_age(one, now)} ago counts still",
        command("remove"),
    )


def _age(one: Provider, now: int) -> str:
    return "never asked" if one.answered_at is None else coarse(now - one.answered_at)
