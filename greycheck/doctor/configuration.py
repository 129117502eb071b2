"""The settings of this process: what is wrong, what is switched off, what is risky."""

from collections.abc import Iterator

from greycheck.doctor.finding import Finding, Installation, safe
from greycheck.settings import Settings, duration_text

# An SMTP client waits 5 minutes for the reply to RCPT (RFC 5321 section 4.5.3.2.3); a lifetime is a week at least (RFC 6647 5(3)).
RCPT_TIMEOUT = 300
WEEK = 604800

# Senders that retry less often than this, in seconds, are common: a retry window below it makes them new each time.
SLOW_RETRY = 4 * 3600


def look_at_settings(installation: Installation) -> Iterator[Finding]:
    """The settings of this process: what is wrong, what is switched off, what is risky."""
    found = installation.settings
    for problem in found.problems:
        advice = "Mend it: until then the default counts, and the commands, expire in cron too, refuse to work."
        yield Finding("warning", "settings", safe(problem), advice)
    if found.off:
        yield Finding("note", "settings", "GREYCHECK=off: where a client's environment has it, nothing is checked")
    yield from _observed(found)
    yield from _risky(found)
    yield Finding(
        "ok" if not found.problems else "note",
        "settings",
        f"delay {duration_text(found.delay)}, retry window {duration_text(found.retry_window)},"
        f" lifetime {duration_text(found.lifetime)}, deadline {duration_text(found.deadline)}, on_error {found.on_error}",
    )


def _observed(found: Settings) -> Iterator[Finding]:
    until = "Set mode = enforce when the log shows what you want."
    if found.mode == "observe":
        yield Finding("note", "settings", "mode = observe: verdicts are only logged, all mail is accepted", until)
        return
    if found.observe_domains:
        domains = safe(", ".join(found.observe_domains))
        yield Finding("note", "settings", f"observe_domains: verdicts on mail to {domains} are only logged")
    if found.observe_percent:
        found_here = f"observe_percent: verdicts on {found.observe_percent}% of client networks are only logged"
        yield Finding("note", "settings", found_here)


def _risky(found: Settings) -> Iterator[Finding]:
    if found.retry_window < SLOW_RETRY:
        yield Finding(
            "warning",
            "settings",
            f"retry_window {duration_text(found.retry_window)}: a sender that retries later is new each time, for ever",
            "Set retry_window = 24h (RFC 6647 section 5, item 2).",
        )
    if found.lifetime < WEEK:
        yield Finding(
            "warning",
            "settings",
            f"lifetime {duration_text(found.lifetime)}: steady senders are delayed again and again",
            "Set lifetime = 36d; a week at least (RFC 6647 section 5, item 3).",
        )
    if found.deadline >= RCPT_TIMEOUT:
        yield Finding(
            "warning",
            "settings",
            f"deadline {duration_text(found.deadline)}: SMTP clients wait {duration_text(RCPT_TIMEOUT)} for a reply",
            "Set deadline = 5s.",
        )
