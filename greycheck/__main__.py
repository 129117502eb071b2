"""``greycheck`` as pip installs it: the forked child of a hook, else the operator's commands.

The launchers that ``greycheck install`` writes reach the child without this, and without the
interpreter's site.
"""

import os
import sys


def main() -> None:
    """Runs the hook's check, or the operator's command.

    The program's name and the number of arguments tell which: docs/hooks.rst#exit-codes.
    """
    from greycheck import child, hooks

    argv = [os.fsencode(argument) for argument in sys.argv]
    if not child.asks_completion(argv):
        if hooks.called_by(argv) is not None:
            child.main((sys.executable, "-I", "-m", "greycheck"))
        # With a command it has no business here: `db upgrade`, run by the first check, must
        # upgrade.
        os.environ.pop(os.fsdecode(child.COMPLETION), None)
        if argv[1:] == [b"policy"]:
            # A process for each smtpd: no command line is loaded.
            from greycheck.resident import spawned

            spawned.main((sys.executable, "-I", "-m", "greycheck"))
    from greycheck.cli.main import cli

    cli(prog_name="greycheck")


if __name__ == "__main__":
    main()
