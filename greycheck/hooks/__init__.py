"""The hooks of mail servers, a file each: how a hook hands over the envelope, how it is answered.

``record`` says what such a file holds. All who must know a hook take it from its file, by way of
``every()``: to add one, write its file, and its line in FILES.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.hooks.record import Hook, Record

# The file of the hook that runs a program: by the program's name, and whether it has arguments.
FILES = {
    (b"greycheck", False): "smtpextfork",
    (b"qmail-checkenv", True): "checkenv",
    (b"greycheck-rcptcheck", False): "rcptcheck",
    (b"greycheck-spp", False): "spp",
}

# The hook that runs a program of any other name, without arguments.
OTHERS = "smtpextfork"

# Not a program's: mail servers ask the resident in it.
PROTOCOL = "delegation"


def called_by(argv: list[bytes]) -> "Hook | None":
    """The hook that ran a program with ARGV, or None: an operator did.

    The program's name and the number of arguments tell the hooks apart, never the environment; the
    name besides tells a sender called ``expire`` from the command of that name. Loads the file of
    that hook and no other: each costs a check 0.1 ms.
    """
    has_arguments = len(argv) != 1
    name = FILES.get((argv[0].rpartition(b"/")[2], has_arguments))
    if name is None:
        if has_arguments:
            return None
        name = OTHERS
    return _load(name)


def every() -> "tuple[Hook, ...]":
    """All hooks that run a program."""
    return tuple(map(_load, FILES.values()))


def records() -> "tuple[Record, ...]":
    """All hooks, and the policy delegation protocol: who may ask for a decision."""
    return (*every(), _load(PROTOCOL))


def _load(name: str) -> "Hook":
    """The file NAME of this package."""
    hook: Hook = __import__(f"greycheck.hooks.{name}", fromlist=("NAME",))
    return hook
