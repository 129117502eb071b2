r"""Prints for all commands: no control character from a database, a peer or a setting gets out.

All that is printed here, on a terminal or not, has characters escaped as ``\xNN``, each byte of its
UTF-8, if they move a cursor, hide or reverse text, or cannot be shown. Only ``Console`` adds
styles, after that. Characters that the stream's encoding lacks are escaped too.

Interface: ``echo`` prints lines, ``Console`` tables and styled text, ``as_json`` makes JSON,
``shown`` escapes one value for one line. ``Group`` is a group of commands that prints errors in the
same way, unforeseen ones too; ``Choice`` is an option's choice; ``suggestion`` names the word that
may have been meant. If the reader of the output has closed it, the command ends without a message.
"""

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from traceback import format_tb
from typing import Any, NoReturn, TextIO, cast

import click
import rich.console
import rich.table
import rich.text
from rich.cells import cell_len as cell_len
from rich.cells import set_cell_size as set_cell_size
from rich.segment import Segment

from greycheck.spelling import nearest
from greycheck.unseen import UNSEEN

# Errors of an output, without a file's name, that mean that it takes no more.
OUTPUT = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EPIPE)

STDOUT, STDERR = 1, 2

# The exit code of a program whose reader has closed the output: 128 and the number of SIGPIPE.
UNREAD = 141


class Unread(Exception):
    """The reader of the output has closed it: `greycheck list | head`."""


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Raises Unread if the output has no reader any more."""
    try:
        yield
    except BrokenPipeError as error:
        if error.filename is not None:
            raise
        raise Unread from None


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))


def shown(text: str) -> str:
    """Returns TEXT for one line, with control characters and line ends escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isprintable() and char not in UNSEEN else _escaped(char) for char in text
    )


def _lines(text: str) -> str:
    return "\n".join(map(shown, text.split("\n")))


def _stream(err: bool) -> TextIO | None:
    """Returns standard output or standard error, set to escape what its encoding lacks.

    Returns None if it is closed.
    """
    stream = cast("TextIO | None", sys.stderr if err else sys.stdout)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def can_ask() -> bool:
    """Whether somebody can be asked, and sees the question. A stream that is closed is None."""
    streams = cast("tuple[TextIO | None, ...]", (sys.stdin, sys.stdout))
    return all(stream is not None and stream.isatty() for stream in streams)


def echo(*lines: str, err: bool = False, end: str = "\n") -> None:
    """Prints LINES, each as one line, and END, on standard output or, with ERR, standard error."""
    stream = _stream(err)
    if stream is not None:
        stream.write("\n".join(map(shown, lines)) + end)
        stream.flush()


def as_json(value: object, indent: int | None = None) -> str:
    """Returns VALUE as JSON of printable ASCII."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


# A line end in a Text.
NEWLINE = rich.text.Text("\n")


class Text(rich.text.Text):
    """Styled text; a string in it is one line."""

    def __init__(self, text: str = "", style: Any = "", **options: Any) -> None:
        super().__init__(shown(text), style, **options)

    @classmethod
    def assemble(cls, *parts: Any, **options: Any) -> "Text":
        """Returns a text made of PARTS: strings, (string, style), or Text."""
        return cast("Text", super().assemble(*parts, **options))

    def append(self, text: Any, style: Any = None) -> "Text":
        """Adds TEXT, a string or a Text."""
        super().append(shown(text) if isinstance(text, str) else text, style)
        return self


class Table(rich.table.Table):
    """A table; a cell that is a string is one line."""

    @classmethod
    def grid(cls, *headers: Any, **options: Any) -> "Table":
        """Returns a table without lines."""
        return cast("Table", super().grid(*headers, **options))

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Adds CELLS, strings or Text."""
        super().add_row(
            *(Text(shown(cell)) if isinstance(cell, str) else cell for cell in cells), **options
        )


class Console(rich.console.Console):
    """Prints tables and styled text to standard output or error, as wide as the terminal.

    Nothing is read as markup.
    """

    def __init__(self, stderr: bool = False, soft_wrap: bool = False) -> None:
        _stream(stderr)
        super().__init__(
            stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False
        )

    def on_broken_pipe(self) -> None:
        """Raises Unread: there is no reader."""
        raise Unread

    def print(self, *what: Any, **options: Any) -> None:
        """Prints WHAT: strings, whose line ends are kept, Text or tables."""
        super().print(
            *(_lines(each) if isinstance(each, str) else each for each in what), **options
        )

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yields the segments of RENDERABLE, escaped.

        All text of a console passes here, before styles become escape sequences.
        """
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_lines(segment.text), segment.style)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns the end of a message: the KNOWN word that WORD may mean; empty if there is none."""
    near = nearest(word, known)
    return f" Did you mean {near}?" if near else ""


class Choice(click.Choice[str]):
    """One of some words; the message for a wrong one suggests a word.

    OTHERS are words that mean one of them elsewhere.
    """

    def __init__(self, choices: Iterable[str], others: Mapping[str, str] | None = None) -> None:
        super().__init__(list(choices))
        self.others = others or {}

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Returns the message for none: click's has a line for each."""
        return f"Choose from {', '.join(self.choices)}."

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Returns the message for a wrong VALUE."""
        text = super().get_invalid_choice_message(value, ctx)
        near = self.others.get(value.lower())
        return text + (
            f" Did you mean {near}?" if near else suggestion(value.lower(), self.choices)
        )


class Group(click.Group):
    """The whole command line: prints errors as all else here, and those of the output itself.

    SECTIONS are titles of its help, each with the names of commands and their texts.
    """

    def __init__(
        self,
        *arguments: Any,
        sections: Mapping[str, Mapping[str, str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.sections = sections or {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that ARGS begin with."""
        word = str(args[0])
        if (
            not word.startswith("-")
            and self.get_command(ctx, word) is None
            and not ctx.resilient_parsing
        ):
            ctx.fail(f"No such command {word!r}.{suggestion(word, self.commands)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands by section."""
        if not self.sections:
            super().format_commands(ctx, formatter)
        width = max(map(len, self.commands))
        for title, said in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), words) for name, words in said.items()])

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Reads the command line, and prints help."""
        with reader_may_leave():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        with reader_may_leave():
            return super().invoke(ctx)

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Runs a command, and exits."""
        _stream(err=False)
        _stream(err=True)
        said = ""
        try:
            code = super().main(*arguments, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            words = io.StringIO()
            error.show(words)
            said, code = words.getvalue(), error.exit_code
        except click.Abort:
            said, code = "Aborted!\n", 1
        except Unread:
            _lose(STDOUT)
            code = UNREAD
        except OSError as error:
            if error.filename is not None or error.errno not in OUTPUT:
                said, code = _unforeseen(error), 1
            else:
                _lose(STDOUT)
                said, code = f"Error: the output could not be written: {error.strerror}\n", 1
        except Exception as error:
            said, code = _unforeseen(error), 1
        try:
            echo(*said.split("\n"), err=True, end="")
        except OSError:
            _lose(STDERR)
        sys.exit(code if isinstance(code, int) else 0)


def _unforeseen(error: Exception) -> str:
    """Returns the traceback of ERROR. Its message, which may be a database's, is one line."""
    where = "".join(format_tb(error.__traceback__))
    return (
        f"Traceback (most recent call last):\n{where}{type(error).__name__}: {shown(str(error))}\n"
    )


def _lose(output: int) -> None:
    """Discards the rest of the descriptor OUTPUT: a write at exit would fail again, and be told."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, output)
    os.close(null)
