"""``greycheck completion``: what makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from greycheck.child import COMPLETION
from greycheck.cli import terminal

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=terminal.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    \b
    greycheck completion bash > /etc/bash_completion.d/greycheck
    greycheck completion zsh > DIR/_greycheck    (DIR: one of $fpath)
    greycheck completion fish > /etc/fish/completions/greycheck.fish

    It asks the greycheck that is found in PATH, under that name, whenever you press Tab. Bash must be 4.4 at least.
    """  # noqa: D301
    terminal.echo(*script(context.find_root().command, shell).split("\n"))


def script(command: click.Command, shell: str) -> str:
    """The completion script of COMMAND, as ``greycheck``, for SHELL, one of SHELLS."""
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, "greycheck", COMPLETION.decode()).source()
