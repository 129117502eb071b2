"""How a mail server calls a hook: for those who do so in its place. A check does not load this."""

from collections.abc import Mapping

from greycheck.envelope import Envelope
from greycheck.hooks import every
from greycheck.hooks.record import Hook
from greycheck.policy import Verdict
from greycheck.settings import Settings


def of_program(name: str) -> Hook:
    """The hook that runs the program NAME. Raises KeyError where none does."""
    return {hook.PROGRAM: hook for hook in every()}[name]


def call(hook: Hook, parts: Mapping[str, bytes]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """The arguments, the program's name first, and the variables by which HOOK hands over PARTS.

    These are values by their names in ``VARIABLES`` and ``ARGUMENTS``. One that the hook does not
    hand over is left out.
    """
    argv = [hook.PROGRAM.encode(), *(parts[name] for name in hook.ARGUMENTS)]
    variables = hook.VARIABLES
    return argv, {variables[name]: value for name, value in parts.items() if name in variables}


def reply(hook: Hook, verdict: Verdict, envelope: Envelope, settings: Settings) -> bytes:
    """What HOOK reads from descriptor 1 of VERDICT on ENVELOPE, or nothing."""
    return b"" if hook.reply is None else hook.reply(verdict, envelope, settings)


def last_resort(hook: Hook, action: str) -> tuple[int, bytes]:
    """How to answer HOOK with ACTION where nothing of the mail is known: exit code, and words."""
    unknown = Envelope(hook.NAME, None, b"", b"", first=False)
    return hook.ANSWERS[action], reply(hook, Verdict(action, "error"), unknown, Settings())
