"""``greycheck config``: every setting with its value, its source and its meaning."""

import os
import sys

import click

from greycheck import log, settings
from greycheck.cli import terminal
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


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(as_json: bool) -> None:
    """Print every setting with its value, where it comes from, and its meaning.

    The environment counts first (GREYCHECK_DELAY=1m), then the file /etc/greycheck.conf or $GREYCHECK_CONFIG, then the default. What is
    printed may be used as such a file, with the database's password put where three stars stand for it. Exits with 1 and names what is
    wrong where a setting cannot be used.
    """
    found = settings.read(dict(os.environb))
    rows = [
        {
            "name": setting.name,
            "value": shown(setting, found),
            "source": found.sources[setting.name],
            "meaning": setting.meaning,
        }
        for setting in settings.TABLE
    ]
    if as_json:
        terminal.echo(terminal.as_json({"settings": rows, "problems": found.problems}, indent=2))
    else:
        terminal.echo(
            "\n\n".join(
                f"# {setting.meaning}\n# From: {found.sources[setting.name]}\n{line(setting, found)}"
                for setting in settings.TABLE
            )
        )
    for problem in found.problems:
        terminal.echo(f"greycheck: {log.quoted(problem)[1:-1]}", err=True)
    if found.problems:
        sys.exit(1)
