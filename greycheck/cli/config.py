"""``greycheck config``: every setting with its value, its source and its meaning."""

import os
import sys
from collections.abc import Sequence

import click

from greycheck import log, settings
from greycheck.cli import completing, terminal
from greycheck.cli.asking import print_json
from greycheck.settings import Setting, Settings
from greycheck.store import schema


def shown(setting: Setting, found: Settings) -> str:
    """The value of SETTING as one would write it, a password hidden."""
    value = getattr(found, setting.name)
    if setting.name == "database":
        return schema.shown(value) if value else ""
    return setting.text if value == setting.default else setting.show(value)


def line(setting: Setting, found: Settings) -> str:
    """The line of a settings file that sets SETTING; a comment where it says what another setting does, or nothing."""
    sets = setting.name != "database" or (found.database and found.sources["database"] != found.database_file)
    return f"{'' if sets else '# '}{setting.name} = {shown(setting, found)}".rstrip()


def chosen(names: Sequence[str]) -> list[Setting]:
    """The settings of NAMES, or all. Raises UsageError."""
    by_name = {setting.name: setting for setting in settings.TABLE}
    meant = [name.lower().removeprefix("greycheck_").replace("-", "_") for name in names]
    for name, written in zip(meant, names, strict=True):
        if name not in by_name:
            raise click.UsageError(f"{written}: no such setting.{terminal.suggestion(name, by_name)}")
    return [by_name[name] for name in dict.fromkeys(meant)] or list(settings.TABLE)


@click.command()
@click.argument("name", nargs=-1, metavar="[NAME...]", shell_complete=completing.of_settings)
@click.option("--changed", is_flag=True, help="Only those that the environment or the file sets.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(name: tuple[str, ...], changed: bool, as_json: bool) -> None:
    """Print every setting, or those of each NAME, with its value, where it comes from, and its meaning.

    The environment counts first (GREYCHECK_DELAY=1m), then the file /etc/greycheck.conf or $GREYCHECK_CONFIG, then the default. What is
    printed may be used as such a file, with the database's password put where three stars stand for it. Exits with 1 and names what is
    wrong where a setting cannot be used.
    """
    wanted = chosen(name)
    found = settings.read(dict(os.environb))
    if changed:
        wanted = [setting for setting in wanted if found.sources[setting.name] != "default"]
    rows = [
        {
            "name": setting.name,
            "value": shown(setting, found),
            "source": found.sources[setting.name],
            "meaning": setting.meaning,
        }
        for setting in wanted
    ]
    if as_json:
        print_json({"settings": rows, "problems": found.problems})
    elif wanted:
        terminal.echo(
            *[
                text
                for number, setting in enumerate(wanted)
                for text in (
                    *[""] * bool(number),
                    f"# {setting.meaning}",
                    f"# From: {found.sources[setting.name]}",
                    line(setting, found),
                )
            ]
        )
    else:
        terminal.echo("# None of these is set.")
    for problem in found.problems:
        terminal.echo(f"greycheck: {log.quoted(problem)[1:-1]}", err=True)
    if found.problems:
        sys.exit(1)
