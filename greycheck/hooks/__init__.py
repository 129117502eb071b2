"""The hooks of mail servers, one file each: how a hook hands over the envelope, and how it wants its answer.

Each file has ``NAME``, ``ANSWERS`` (the exit code of each verdict) and ``envelope(argv, environ)``.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from greycheck.envelope import Envelope

    class Hook(Protocol):
        """What each file here offers."""

        NAME: str
        ANSWERS: dict[str, int]

        def envelope(self, argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:
            """The envelope that this hook handed over."""


CHECKENV_PROGRAM = b"qmail-checkenv"


def called_by(argv: list[bytes]) -> "Hook | None":
    """The hook that ran a program with ARGV, or None: an operator did.

    The number of arguments tells the two hooks apart, never the environment (contract.md section 1); the program's name tells a
    sender called ``expire`` from the command of that name.
    """
    if argv[0].rpartition(b"/")[2] == CHECKENV_PROGRAM and len(argv) != 1:
        from greycheck.hooks import checkenv

        return checkenv
    if len(argv) == 1:
        from greycheck.hooks import smtpextfork

        return smtpextfork
    return None
