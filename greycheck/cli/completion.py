"""``greycheck completion``: the script that completes commands, options, keys and patterns."""

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from greycheck.child import COMPLETION
from greycheck.cli import terminal

SHELLS = ("bash", "zsh", "fish")


class Bash(BashComplete):
    """Completion for bash.

    Bash splits a word at its colons, and patterns and IPv6 addresses have some. So the script
    passes the line as typed.
    """

    source_template = BashComplete.source_template.replace(
        "COMP_CWORD=$COMP_CWORD", 'COMP_CWORD=$COMP_CWORD COMP_LINE="${COMP_LINE:0:COMP_POINT}"'
    )
    begun = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the words before the one at the cursor, and that one up to the cursor."""
        line = os.environ.get("COMP_LINE", "")
        if not line:
            return super().get_completion_args()
        words = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() else words.pop()
        self.begun = incomplete[: incomplete.rfind(":") + 1]
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Returns ITEM without the text up to the last colon typed, which bash keeps."""
        return f"{item.type},{str(item.value).removeprefix(self.begun)}"


add_completion_class(Bash)


@click.command()
@click.argument("shell", type=terminal.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, keys and patterns in SHELL.

    \b
    greycheck completion bash > /etc/bash_completion.d/greycheck
    greycheck completion zsh > DIR/_greycheck    (DIR: one of $fpath)
    greycheck completion fish > /etc/fish/completions/greycheck.fish

    It asks the greycheck that is found in PATH, under that name, whenever you press Tab. Bash must
    be 4.4 at least. Keys and patterns are those of the store; one that a shell would not take as a
    word is left out.
    """  # noqa: D301
    terminal.echo(*script(context.find_root().command, shell).split("\n"))


def script(command: click.Command, shell: str) -> str:
    """Returns the completion script of COMMAND, as ``greycheck``, for SHELL, one of SHELLS."""
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, "greycheck", COMPLETION.decode()).source()
