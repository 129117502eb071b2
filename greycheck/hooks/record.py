"""What the file of a hook holds: its record. A check does not load this.

Each field is a name in that file. Those of ``Record`` are the policy delegation protocol's too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.settings import Settings

# What RUNS says of the programs that a mail server runs.
LIST = "list"  # its variable has a list of them, with commas between
PATH = "path"  # its variable is the path of one
HOME = "home"  # its variable is set to anything; the program is in bin/, below the qmail home
PLUGIN = "plugin"  # no variable: a line of control/smtpplugins is its path


@runtime_checkable
class Record(Protocol):
    """Who asks for a decision."""

    @property
    def NAME(self) -> str:
        """The name in the log (``hook=``) and of ``--hook``; of a hook, its file's name too."""

    @property
    def TITLE(self) -> str:
        """What mail servers call it."""

    @property
    def SWITCHES(self) -> Sequence[bytes]:
        """The variables of the mail server that switch it on."""

    @property
    def TELLS_MESSAGES(self) -> bool:
        """Whether it says which recipients are of one message."""

    @property
    def MANUAL(self) -> str:
        """The manual's paragraph: how it is switched on, and what becomes of each verdict."""


@runtime_checkable
class Hook(Record, Protocol):
    """A hook that runs a program."""

    # --- for the child, the launchers and the resident

    @property
    def PROGRAM(self) -> str:
        """The name of the program, as ``install`` writes it."""

    @property
    def ARGUMENTS(self) -> Sequence[str]:
        """The parts of the envelope that are the program's arguments, in order."""

    @property
    def VARIABLES(self) -> Mapping[str, bytes]:
        """The variable of each other part that it hands over.

        Parts are client, name, sender, recipient and helo.
        """

    @property
    def FURTHER(self) -> Sequence[bytes]:
        """More variables that count. A launcher in C hands them on under their own names."""

    @property
    def ANSWERS(self) -> Mapping[str, int]:
        """The exit code of each verdict."""

    def envelope(self, argv: list[bytes], environ: dict[bytes, bytes]) -> Envelope:
        """The envelope that this hook handed over."""

    @property
    def reply(self) -> Callable[[Verdict, Envelope, Settings], bytes] | None:
        """What the hook reads from descriptor 1, a line or nothing; None where it reads nothing."""

    @property
    def identify(self) -> Callable[[Envelope, dict[bytes, bytes]], None] | None:
        """Takes FURTHER from an environment, or a request that repeats it; None without any."""

    # --- for operators

    @property
    def RUNS(self) -> str:
        """How the mail server knows the program: LIST, PATH, HOME or PLUGIN."""

    @property
    def SWITCH_ON(self) -> str:
        """What ``install`` says: {program} is its path, {quoted} the same for a shell."""

    @property
    def DEMO(self) -> Sequence[tuple[str, str]]:
        """The variables that switch it on in the server of ``demo``, values with {program}.

        Empty where that server has no such hook.
        """

    @property
    def IF_MISSING(self) -> str:
        """What becomes of mail where its program is not there."""

    @property
    def EXIT_STATUS(self) -> Sequence[tuple[int, str]]:
        """The manual's words on codes that are not SMTPEXTFORK's for the same verdict."""

    @property
    def ENVIRONMENT(self) -> Sequence[tuple[str, str]]:
        """The manual's words on further variables."""
