"""The hooks of mail servers, one file each: how a hook hands over the envelope, and how it wants its answer.

Each file has ``NAME``, ``ANSWERS`` (the exit code of each verdict), ``envelope(argv, environ)``, and ``says(verdict, envelope,
settings)``: what the hook reads from descriptor 1 besides. Where that is the SMTP connection or a log, ``says`` is ``silence``.
"""

from greycheck.policy import DEFER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from greycheck.envelope import Envelope
    from greycheck.policy import Verdict
    from greycheck.settings import Settings

    class Hook(Protocol):
        """What each file here offers."""

        NAME: str
        ANSWERS: dict[str, int]

        def envelope(self, argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:
            """The envelope that this hook handed over."""

        def says(self, verdict: Verdict, envelope: Envelope, settings: Settings) -> bytes:
            """The line that tells this hook VERDICT on ENVELOPE, or nothing."""


CHECKENV_PROGRAM = b"qmail-checkenv"
RCPTCHECK_PROGRAM = b"greycheck-rcptcheck"
SPP_PROGRAM = b"greycheck-spp"

# What a client is told where the check could not be made.
FAULT = "temporary failure, please try again later"


def called_by(argv: list[bytes]) -> "Hook | None":
    """The hook that ran a program with ARGV, or None: an operator did.

    The program's name and the number of arguments tell the hooks apart, never the environment (contract.md section 1); the name
    besides tells a sender called ``expire`` from the command of that name.
    """
    program = argv[0].rpartition(b"/")[2]
    if len(argv) != 1:
        if program != CHECKENV_PROGRAM:
            return None
        from greycheck.hooks import checkenv

        return checkenv
    if program == RCPTCHECK_PROGRAM:
        from greycheck.hooks import rcptcheck

        return rcptcheck
    if program == SPP_PROGRAM:
        from greycheck.hooks import spp

        return spp
    from greycheck.hooks import smtpextfork

    return smtpextfork


def every() -> "tuple[Hook, ...]":
    """All hooks that run a program."""
    from greycheck.hooks import checkenv, rcptcheck, smtpextfork, spp

    return smtpextfork, checkenv, rcptcheck, spp


def silence(_verdict: "Verdict", _envelope: "Envelope", _settings: "Settings") -> bytes:
    """What a hook reads that reads nothing."""
    return b""


def text(verdict: "Verdict", settings: "Settings") -> str:
    """What a client is told about VERDICT, a deferral or a refusal, where its hook lets it."""
    if verdict.reason == "error":
        return FAULT
    if verdict.action == DEFER:
        return settings.defer_text.replace("{wait}", str(verdict.wait))
    return settings.reject_text
