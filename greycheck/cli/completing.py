"""Completes arguments in a shell: keys, clients' addresses, patterns, names of settings.

The store has text from others: a text that a shell would not read as one plain word is not offered.
If the store cannot be read, nothing is offered, without a message.

Interface: ``of_store``, ``of_rules``, ``of_providers``, ``of_settings``, for arguments and options.
"""

import re
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem
from sqlalchemy import Engine

from greycheck import settings
from greycheck.cli.common import open_store, read_settings
from greycheck.cli.output import KEY_SHOWN, is_empty
from greycheck.spf.providers import KNOWN, name_of
from greycheck.store.admin import domains, providers, queries, rulebook

# The most words of each kind that are offered.
MOST = 50

# A word that a shell takes as it is.
_PLAIN = re.compile(r"[\w.:/@+=%,][\w.:/@+=%~,#-]*")


def _offered(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    plain = (word for word in words if word.startswith(incomplete) and _PLAIN.fullmatch(word))
    return [CompletionItem(word) for word, _ in zip(plain, range(MOST), strict=False)]


def _asked(ask: Callable[[Engine], list[str]]) -> list[str]:
    """Returns what ASK finds in the store; nothing if that fails."""
    try:
        settings = read_settings()
        if is_empty(settings):
            return []
        with open_store(settings) as engine:
            return ask(engine)
    except Exception:  # whatever is wrong, the command itself says it
        return []


def of_store(
    context: click.Context, option: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offers keys of triplets and addresses of clients, for the first argument only.

    ``forget`` gets the names of lists too. After ``domain``, names of domains are offered.
    """
    before = context.params.get(option.name or "")
    has_domains = context.command.name in ("show", "forget")
    if before and tuple(before) == ("domain",) and has_domains:
        return _offered(
            _asked(lambda engine: domains.beginning(engine, incomplete, MOST)), incomplete
        )
    if before:
        return []
    lists = queries.LISTS if context.command.name == "forget" else ()
    return _offered(
        [
            *lists,
            *(["domain"] if has_domains else []),
            *_asked(
                lambda engine: (
                    queries.beginning(engine, incomplete, KEY_SHOWN, MOST) if incomplete else []
                )
            ),
        ],
        incomplete,
    )


def of_rules(
    context: click.Context,  # noqa: ARG001
    option: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    """Offers patterns of rules."""
    return _offered(
        _asked(lambda engine: [rule.pattern for rule in rulebook.all_rules(engine)]), incomplete
    )


def of_parts(
    context: click.Context,
    option: click.Parameter,
    incomplete: str,
) -> list[CompletionItem]:
    """Offers patterns of rules; as the second word, the recipients of rules.

    Those of pairs are offered part by part.
    """
    known = _asked(lambda engine: [rule.pattern for rule in rulebook.all_rules(engine)])
    split = (pattern.partition(" to:") for pattern in known)
    parts = [
        part for first, pair, to in split for part in ([first, f"to:{to}"] if pair else [first])
    ]
    given = context.params.get(option.name or "")
    wanted = [part for part in parts if part.startswith("to:")] if given else parts
    return _offered(dict.fromkeys(wanted), incomplete)


def of_providers(
    context: click.Context,
    option: click.Parameter,
    incomplete: str,
) -> list[CompletionItem]:
    """Offers names of providers: to ``add``, of those that are known; else of those let in."""
    if context.command.name == "add":
        names = list(KNOWN)
    else:
        there = _asked(lambda engine: [one.name for one in providers.all_providers(engine)])
        names = [*dict.fromkeys(filter(None, map(name_of, there))), *there]
    given = context.params.get(option.name or "") or ()
    return _offered([name for name in names if name not in given], incomplete)


def of_settings(
    context: click.Context,  # noqa: ARG001
    option: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    """Offers names of settings."""
    return [
        CompletionItem(setting.name, help=setting.meaning)
        for setting in settings.TABLE
        if setting.name.startswith(incomplete)
    ]
