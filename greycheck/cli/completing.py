"""What a shell offers for arguments: keys of triplets, clients' addresses, patterns of rules, names of settings.

What comes from the store was written by others: nothing is offered that a shell would read as more than a word. Where the store cannot
be asked, nothing is offered, and nothing said.

Interface: ``of_store``, ``of_rules``, ``of_settings``, for arguments and options.
"""

import re
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem
from sqlalchemy import Engine

from greycheck import settings
from greycheck.cli.asking import KEY_SHOWN, is_empty
from greycheck.cli.common import open_store, read_settings
from greycheck.store import queries, rulebook

# How many of each are offered.
MOST = 50

# A word that a shell takes as it stands.
_PLAIN = re.compile(r"[\w.:/@+=%,][\w.:/@+=%~,#-]*")


def _offered(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    plain = (word for word in words if word.startswith(incomplete) and _PLAIN.fullmatch(word))
    return [CompletionItem(word) for word, _ in zip(plain, range(MOST), strict=False)]


def _asked(ask: Callable[[Engine], list[str]]) -> list[str]:
    """What ASK finds in the store; nothing where that cannot be."""
    try:
        found = read_settings()
        if is_empty(found):
            return []
        with open_store(found) as engine:
            return ask(engine)
    except Exception:  # whatever is wrong, the command itself says it
        return []


def of_store(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of triplets and addresses of clients that begin so, for the first argument; and of ``forget`` the lists."""
    if context.params.get(option.name or ""):
        return []
    lists = queries.LISTS if context.command.name == "forget" else ()
    return _offered(
        [*lists, *_asked(lambda engine: queries.beginning(engine, incomplete, KEY_SHOWN, MOST) if incomplete else [])],
        incomplete,
    )


def of_rules(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Patterns of rules that begin so."""
    return _offered(_asked(lambda engine: [rule.pattern for rule in rulebook.all_rules(engine)]), incomplete)


def of_settings(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Names of settings that begin so."""
    return [
        CompletionItem(setting.name, help=setting.meaning)
        for setting in settings.TABLE
        if setting.name.startswith(incomplete)
    ]
