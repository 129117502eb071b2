"""Examines this process's settings: wrong ones, disabled checks, and risky values."""

from collections.abc import Iterator

from greycheck.doctor.finding import Finding, Installation, run, safe, set_to
from greycheck.settings import Settings, duration_text

# An SMTP client waits 5 minutes for the reply to RCPT (RFC 5321 section 4.5.3.2.3); a lifetime
# should be at least a week (RFC 6647 5(3)). In seconds.
RCPT_TIMEOUT = 300
WEEK = 604800

# Many senders retry less often than this, in seconds: with a shorter retry window each retry of
# theirs is a new triplet.
SLOW_RETRY = 4 * 3600


def check_settings(installation: Installation) -> Iterator[Finding]:
    """Yields what is wrong in the settings of this process, what is disabled, and what is risky."""
    settings = installation.settings
    for problem in settings.problems:
        advice = (
            "Mend it: until then the default counts, and the commands, expire in cron"
            " too, refuse to work."
        )
        yield Finding("warning", "settings", safe(problem), advice)
    if settings.off:
        yield Finding(
            "note",
            "settings",
            "GREYCHECK=off: where a client's environment has it, nothing is checked",
        )
    yield from _observed(settings)
    yield from _risky(settings)
    yield Finding(
        "ok" if not settings.problems else "note",
        "settings",
        f"delay {duration_text(settings.delay)}, retry window"
        f" {duration_text(settings.retry_window)},"
        f" lifetime {duration_text(settings.lifetime)}, deadline"
        f" {duration_text(settings.deadline)}, on_error {settings.on_error}",
    )


def _observed(settings: Settings) -> Iterator[Finding]:
    until = f"Once the log shows what you want: {set_to('mode', 'enforce', settings)}"
    if settings.mode == "observe":
        yield Finding(
            "note",
            "settings",
            "mode = observe: verdicts are only logged, all mail is accepted",
            until,
        )
        return
    if settings.observe_domains:
        domains = safe(", ".join(settings.observe_domains))
        yield Finding(
            "note", "settings", f"observe_domains: verdicts on mail to {domains} are only logged"
        )
    if settings.observe_percent:
        found_here = (
            f"observe_percent: verdicts on {settings.observe_percent}% of client"
            " networks are only logged"
        )
        yield Finding("note", "settings", found_here)


def _risky(settings: Settings) -> Iterator[Finding]:
    if settings.retry_window < SLOW_RETRY:
        yield Finding(
            "warning",
            "settings",
            f"retry_window {duration_text(settings.retry_window)}: a sender that retries later is"
            " new each time, for ever"
            " (RFC 6647 section 5, item 2)",
            run(set_to("retry_window", "24h", settings)),
        )
    if settings.lifetime < WEEK:
        yield Finding(
            "warning",
            "settings",
            f"lifetime {duration_text(settings.lifetime)}: steady senders are delayed again and"
            " again;"
            " let it be a week at least (RFC 6647 section 5, item 3)",
            run(set_to("lifetime", "36d", settings)),
        )
    if settings.deadline >= RCPT_TIMEOUT:
        yield Finding(
            "warning",
            "settings",
            f"deadline {duration_text(settings.deadline)}: SMTP clients wait"
            f" {duration_text(RCPT_TIMEOUT)} for a reply",
            run(set_to("deadline", "5s", settings)),
        )
