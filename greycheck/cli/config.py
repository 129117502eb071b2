"""``greycheck config``: every setting with its value, source and meaning, and who reads it."""

import os
import sys
from collections.abc import Sequence

import click

from greycheck import log
from greycheck.cli import completing, terminal
from greycheck.cli.columns import wrapped
from greycheck.cli.output import print_json
from greycheck.settings import BY_NAME, TABLE, Setting, Settings, read
from greycheck.store.schema import migrate

# The most columns of a comment.
WIDTH = 80

# The programs that read settings, by the names that a setting's record has for them. All that a
# check reads counts for greycheck serve and policy too, since they check.
READERS = {
    "check": "whoever checks: a launcher in Python, greycheck serve, greycheck policy",
    "launcher": "a launcher in C (install --native)",
    "serve": "greycheck serve",
    "policy": "greycheck policy",
    "expire": "greycheck expire",
    "commands": "other commands that work on the store, and install",
}


def shown(setting: Setting, settings: Settings) -> str:
    """Returns the value of SETTING as an operator would write it, without a password."""
    value = getattr(settings, setting.name)
    if setting.name == "database":
        return migrate.shown(value) if value.url else ""
    return setting.text if value == setting.default else setting.show(value)


def line(setting: Setting, settings: Settings) -> str:
    """Returns the line of a settings file that sets SETTING.

    It is a comment if another setting sets its value, or if it has none.
    """
    sets = setting.name != "database" or (
        settings.database.url and settings.sources["database"] != settings.database_file
    )
    return f"{'' if sets else '# '}{setting.name} = {shown(setting, settings)}".rstrip()


def chosen(names: Sequence[str]) -> list[Setting]:
    """Returns the settings called NAMES, or all without a name. Raises UsageError."""
    meant = [name.lower().removeprefix("greycheck_").replace("-", "_") for name in names]
    for name, written in zip(meant, names, strict=True):
        if name not in BY_NAME:
            raise click.UsageError(
                f"{written}: no such setting.{terminal.suggestion(name, BY_NAME)}"
            )
    return [BY_NAME[name] for name in dict.fromkeys(meant)] or list(TABLE)


@click.command()
@click.argument("name", nargs=-1, metavar="[NAME...]", shell_complete=completing.of_settings)
@click.option("--changed", is_flag=True, help="Only those that the environment or the file sets.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(name: tuple[str, ...], changed: bool, as_json: bool) -> None:
    """Print every setting, or those of each NAME: its value, source and meaning, and who reads it.

    The environment counts first (GREYCHECK_DELAY=1m), then the file /etc/greycheck.conf or
    $GREYCHECK_CONFIG, then the default. What is printed may be used as such a file, with the
    database's password put where three stars stand for it. Exits with 1 and names what is wrong
    where a setting cannot be used.
    """
    wanted = chosen(name)
    settings = read(dict(os.environb))
    if changed:
        wanted = [setting for setting in wanted if settings.sources[setting.name] != "default"]
    rows = [
        {
            "name": setting.name,
            "value": shown(setting, settings),
            "source": settings.sources[setting.name],
            "meaning": setting.meaning,
            "where": setting.where.split(", "),
        }
        for setting in wanted
    ]
    if as_json:
        print_json({"settings": rows, "problems": settings.problems})
    elif wanted:
        terminal.echo(
            *[
                text
                for number, setting in enumerate(wanted)
                for text in (
                    *[""] * bool(number),
                    *(f"# {each}" for each in wrapped(setting.meaning, WIDTH - len("# "))),
                    f"# Read by: {setting.where}",
                    f"# From: {settings.sources[setting.name]}",
                    line(setting, settings),
                )
            ]
        )
    else:
        terminal.echo("# None of these is set.")
    for problem in settings.problems:
        terminal.echo(f"greycheck: {log.quoted(problem)[1:-1]}", err=True)
    if settings.problems:
        sys.exit(1)
