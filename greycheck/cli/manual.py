"""The manual pages, which ``python -m greycheck.cli.manual`` writes to ``docs/``.

greycheck(8) has the commands, the log and how hooks call; greycheck.conf(5) has the settings.
Commands, their options and the settings are taken from where they are declared, so that the pages
cannot fall behind them; a test holds the files against this. The other sections are written here.
``text`` escapes plain text, so that roff takes none of it for a request.
"""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path
from textwrap import wrap

import click

from greycheck import __version__, settings
from greycheck.cli.config import READERS
from greycheck.cli.main import cli
from greycheck.explain.reasons import REASONS
from greycheck.history import SPOOL
from greycheck.hooks import every, records
from greycheck.hooks.record import Hook
from greycheck.launchers.python import PROGRAMS

DOCS = Path(__file__).parents[2] / "docs"

# Characters of a line of the page's source, before anything is escaped.
WIDTH = 70

# Neither hyphenated, which would cut variables and paths in two, nor stretched.
SET_UP = (".nh", ".ad l")

# A paragraph of a command's help that click leaves as it stands.
VERBATIM = "\b\n"

DESCRIPTION = (
    "greycheck decides whether a mail server takes a mail now. A mail from an unknown triplet of"
    " client network, sender and recipient"
    " is deferred; its sender tries again, and passes once the delay is over. Most spam is never"
    " tried again (RFC 6647).",
    "Without an argument, or under the name qmail-checkenv, it is the program of one of the hooks"
    " of qmail-smtpd: forked for each RCPT TO,"
    " it reads one envelope, decides, writes one line to descriptor 2, and exits. With a command"
    " it is the tool of the operator.",
)

# Each hook, by what switches it on, and the policy delegation protocol.
HOOKS = [
    (", ".join(map(bytes.decode, record.SWITCHES)) or record.TITLE, record.MANUAL)
    for record in records()
]

NAMES = [record.NAME for record in records()]

PAIRS = (
    ("wait", "Seconds until a retry would pass. Where a rule defers, none will: the delay."),
    ("delayed", "Where a wait ends: seconds since the first attempt."),
    ("identity", "The sender's domain, where the client may send for it."),
    ("by_identity", "The reason by which it would have passed, with identity = observe."),
    ("observed", "The verdict that would have been, where verdicts are only observed."),
    ("unrecorded", "The verdict stands, and the store could not be written; says why."),
    ("hook", f"{', '.join(NAMES[:-1])} or {NAMES[-1]}."),
    ("ms", "How long the check took in milliseconds, the start of Python not counted."),
)

# What exit codes mean to SMTPEXTFORK, and to most hooks.
EXIT_OF_HOOKS = {
    0: "Accept.",
    100: "Reject: refused for good.",
    101: "Defer: refused for now.",
}

EXIT_OF_COMMANDS = (
    ("0", "All went well."),
    ("1", "Something was wrong, and is named on descriptor 2; or what was asked for is not so."),
    ("2", "The command line was wrong."),
    ("111", "From policy: a check was not done by its deadline, and on_error has answered."),
    ("141", "The reader of the output has gone, as head does."),
)

RIGHTS_TEXT = (
    "Whoever owns the store's directory, qmail's user, decides about mail, and must gain nothing"
    " else: root opens nothing that he may"
    " write. Run by root, each command does with root's rights only what is said here, and then"
    " becomes the owner of the store, with his"
    " groups, before it looks into the directory. Run by anybody else, it uses his rights and no"
    " others.",
    "As root they refuse: links in the place of the store, and on the way to it unless root made"
    " them; what is no regular file, or another"
    " user's; a directory, here or on the way, that others than root and its owner may write to (a"
    " group may where database_mode = 0660"
    " says that it shares the store); settings that a third user wrote: root becomes whoever wrote"
    " them."
    " The message ends in the command that mends it.",
    "A file that is named to be read, as a log or a list of rules, must be a regular one for root:"
    " on a pipe in its place root would wait for whoever put it there. What the shell has opened it"
    " reads, as - and <(zcat log.gz).",
)

# Commands, as the synopsis has them, with what they do as root before they become the store's
# owner.
RIGHTS = (
    (
        "allow, db current, db downgrade, db upgrade, defer, expect, explain, forget,"
        " greylist, list, reject, release, resolve, rules check, rules export,"
        " rules list, rules remove, show, status",
        "Read the settings. All else is the owner's.",
    ),
    (
        "expire, report, stats",
        "Read the settings, and report the file that --simulation names. All else is the owner's,"
        " the page that report writes too. With a server"
        " database that is the owner of state_directory, where checks count.",
    ),
    (
        "metrics",
        "Stays root: reads the settings, and prints what a process of the owner's tells, or writes"
        " it: FILE goes into a directory that root alone may write. That process looks into the"
        " store, and into state_directory.",
    ),
    (
        "learn, rules import, rules import-postgrey",
        "Read the settings and the files that are named. All else is the owner's.",
    ),
    (
        "providers add, providers list, providers refresh, providers remove",
        "Read the settings. All else is the owner's, the questions to DNS too.",
    ),
    (
        "digest",
        "Reads the settings. All else is the owner's, the key of links too; with a server database"
        " he is that of state_directory.",
    ),
    (
        "copy",
        "Reads the settings and @FILE. All else is the owner's; where SOURCE and TARGET are SQLite"
        " files, they must be the same user's.",
    ),
    (
        "serve, policy",
        "Read the settings; serve makes its sockets, and becomes NAME where --user is given. All"
        " else is the owner's. With a server"
        " database the owner is that of state_directory.",
    ),
    (
        "install",
        "Stays root: writes launchers into DIR, which root alone may write to, and runs them;"
        " compiles modules; makes the system's"
        " directory. A process of the owner's makes the store; one of qmail's user tries the"
        " launchers, in a directory of his own.",
    ),
    (
        "doctor",
        "Stays root: looks at files and processes. A process of the owner's looks into the store;"
        " what it tells is shown as text.",
    ),
    (
        "simulate, watch",
        "Read the settings (simulate) and the files that are named, with the rights of whoever runs"
        " them. Open no store.",
    ),
    ("completion, config, demo, providers known", "Open no store that a setting names."),
)

FILES = (
    (
        f"/var/qmail/bin/{', '.join(PROGRAMS)}",
        "The launchers, one for each hook, where greycheck install put them.",
    ),
    (settings.CONFIG_FILE, "Settings; see greycheck.conf(5)."),
    (
        f"{settings.SYSTEM_DIRECTORY}/{settings.DATABASE_FILE}",
        "The store, unless the setting database says otherwise, with its -wal and -shm beside it."
        " Where that directory does not exist,"
        " an ordinary user has it in ~/.local/state/greycheck.",
    ),
    (
        f"{settings.SYSTEM_DIRECTORY}/link.key",
        "The key of the links that greycheck digest makes, unless link_key_file says otherwise.",
    ),
    (
        f"{settings.SYSTEM_DIRECTORY}/down-HOST-..., stuck-HOST-...",
        "Marks of hosts of a server database that do not answer, or take no writes"
        " (state_directory). A host is asked again after 1, 2, 4,"
        " ... at most 30 seconds; without its mark, at once.",
    ),
    (
        f"{settings.SYSTEM_DIRECTORY}/{SPOOL}",
        "What checks of this host have counted since the last greycheck expire; beside an SQLite"
        " file, or in state_directory.",
    ),
)


def of_envelope(hook: Hook) -> tuple[str, str] | None:
    """The variables in which HOOK hands over addresses and HELO, and their meaning."""
    words = {"sender": "sender", "recipient": "recipient", "helo": "HELO"}
    parts = [part for part in words if part in hook.VARIABLES]
    if not parts:
        return None
    names = ", ".join(hook.VARIABLES[part].decode() for part in parts)
    meaning = " and ".join([", ".join(words[part] for part in parts[:-1]), words[parts[-1]]])
    return names, f"{meaning[0].upper()}{meaning[1:]}, as {hook.TITLE} gives them."


ENVIRONMENT = (
    ("GREYCHECK_NAME", "The setting NAME; see greycheck.conf(5). It counts before the file."),
    ("GREYCHECK_CONFIG", f"The file of settings to read instead of {settings.CONFIG_FILE}."),
    ("GREYCHECK", "With the value off, from tcprules: this client is not checked."),
    (
        "RELAYCLIENT, SMTPAUTHUSER",
        "Set, even to nothing: a relay or authenticated client, which is not checked.",
    ),
    ("TCPREMOTEIP, TCPREMOTEHOST", "The client's address, and its name, as tcpserver gives them."),
    *(row for hook in every() if (row := of_envelope(hook))),
    *(row for hook in every() for row in hook.ENVIRONMENT),
    ("XDG_STATE_HOME, HOME", "Where an ordinary user's store lives."),
)

EXAMPLES = (
    (
        "Install, and look whether everything is right:",
        ("greycheck install /var/qmail/bin", "greycheck doctor"),
    ),
    (
        "Switch SMTPEXTFORK on in the rules of tcpserver, but not for relay clients, nor for one"
        " client that is to be left alone:",
        (
            '127.:allow,RELAYCLIENT=""',
            '192.0.2.25:allow,GREYCHECK="off"',
            ':allow,SMTPEXTFORK="/var/qmail/bin/greycheck"',
        ),
    ),
    (
        "A run script:",
        (
            "#!/bin/sh",
            "exec 2>&1",
            "exec envdir ./env softlimit -m 20000000 \\",
            "    tcpserver -v -R -l mail.example.net -x /etc/tcp.smtp.cdb \\",
            '    -u "$(id -u qmaild)" -g "$(id -g qmaild)" 0 smtp \\',
            "    /var/qmail/bin/qmail-smtpd",
        ),
    ),
    (
        "Postfix's main.cf, with listen = 127.0.0.1:10023 in /etc/greycheck.conf:",
        (
            "smtpd_recipient_restrictions =",
            "    permit_mynetworks, permit_sasl_authenticated,",
            "    reject_unauth_destination, reject_unlisted_recipient,",
            "    check_policy_service { inet:127.0.0.1:10023, timeout=10s,",
            "        default_action=DUNNO }",
        ),
    ),
    (
        "In the crontab of the store's owner; the third line only where no greycheck serve runs,"
        " the fourth where providers are let in:",
        (
            "7 * * * * /var/qmail/bin/greycheck expire",
            "40 6 * * * /var/qmail/bin/greycheck digest",
            "* * * * * /var/qmail/bin/greycheck resolve",
            "17 4 * * 1 /var/qmail/bin/greycheck providers refresh --yes",
        ),
    ),
    (
        "Look at the store that qmail-smtpd uses, where envdir says which (on Debian below"
        " /etc/service):",
        ("envdir /service/smtpd/env greycheck doctor",),
    ),
    ("Completion in bash:", ("greycheck completion bash > /etc/bash_completion.d/greycheck",)),
)

SEE_ALSO = (
    ("greycheck.conf", 5),
    ("envdir", 8),
    ("postconf", 5),
    ("qmail-smtpd", 8),
    ("softlimit", 8),
    ("spawn", 8),
    ("tcpserver", 1),
    ("tcprules", 1),
)


# How settings are read.
SETTINGS_TEXT = (
    f"greycheck reads its settings from {settings.CONFIG_FILE}, or from the file that"
    " GREYCHECK_CONFIG in"
    " the environment names. Each is a line of the form name = value. A line that begins with # is"
    " a"
    " comment. None is needed.",
    "The environment counts before the file: the variable GREYCHECK_DELAY is the setting delay."
    " envdir"
    " sets it for all clients, tcprules for one. A launcher in C hands on what tcprules sets, and"
    " the"
    " resident believes it on its unix socket.",
    f"Durations read 90, 90s, 5m, 24h or 36d. The first {settings.FILE} bytes of the file are"
    " read.",
    "A setting that cannot be read never stops mail: the default is used, and the log names the"
    " file"
    " and the line. Where that setting says which database it is, no other one is used, and"
    " on_error"
    " answers. Commands refuse to run, with the same words. greycheck config prints every setting"
    " with"
    " its value and where it comes from, in the form of this file.",
)

# Who reads a setting, and so where it must be set.
READERS_TEXT = (
    "What is set in the environment of one program does not count for others. Each setting names"
    " those that read it:",
)

# The first setting that only the resident, or what clients are told, makes use of.
OF_THE_RESIDENT = "socket"

# More about some settings than their meaning.
NOTES = (
    (
        "database",
        "A server has a URL of SQLAlchemy's: mariadb://user@/greycheck?host=db1&host=db2 or"
        " postgresql://user@host/greycheck.",
    ),
    (
        "network_limit, pending_limit",
        "Beyond the first, new mail of that network is deferred and not recorded. Beyond the"
        " second, new mail passes.",
    ),
    (
        "pool_networks",
        "A pool is the same sender and recipient from enough networks, the first attempt longer ago"
        " than delay. Attempts within five seconds of each other count as one, and twice as many"
        " are needed then. A sender of the recipient's own domain has none.",
    ),
    (
        "client_passes",
        "An address that many clients may share, as 10.0.0.1 or 127.0.0.1, never becomes known.",
    ),
    ("defer_text", "{wait} in it becomes the number of seconds until a retry passes."),
)

SETTINGS_EXAMPLES = (
    (
        "A host without qmail, whose Postfix asks by TCP:",
        ("listen = 127.0.0.1:10023",),
    ),
    (
        "The first week, and a store that several hosts share:",
        (
            "mode = observe",
            "database_file = /etc/greycheck.url",
            "deadline = 8s",
        ),
    ),
)

SETTINGS_SEE_ALSO = (("greycheck", 8), ("envdir", 8), ("tcprules", 1))


def pages() -> dict[str, str]:
    """The text of each manual page by the name of its file, in roff with the macros of man(7)."""
    return {"greycheck.8": commands_page(), "greycheck.conf.5": settings_page()}


def commands_page() -> str:
    """greycheck(8)."""
    return written(
        "GREYCHECK 8",
        "System Administration",
        section("NAME", [text(", ".join(PROGRAMS)) + " \\- " + text("greylisting for qmail")]),
        section("SYNOPSIS", synopsis()),
        section("DESCRIPTION", [*paragraphs(DESCRIPTION), *tagged(HOOKS)]),
        section("COMMANDS", commands()),
        section("LOG", log_lines()),
        section("EXIT STATUS", exit_lines()),
        section("RIGHTS", [*paragraphs(RIGHTS_TEXT), *tagged(RIGHTS)]),
        section("FILES", tagged(FILES)),
        section("ENVIRONMENT", tagged(ENVIRONMENT)),
        section("EXAMPLES", example_lines(EXAMPLES)),
        section("SEE ALSO", see_also(SEE_ALSO)),
    )


def settings_page() -> str:
    """greycheck.conf(5)."""
    return written(
        "GREYCHECK.CONF 5",
        "File Formats",
        section("NAME", [text("greycheck.conf") + " \\- " + text("settings of greycheck")]),
        section("SYNOPSIS", [text(settings.CONFIG_FILE)]),
        section(
            "DESCRIPTION",
            [
                *paragraphs(SETTINGS_TEXT),
                *paragraphs(READERS_TEXT),
                *tagged([(name, f"{words}.") for name, words in READERS.items()]),
                *paragraphs(["greycheck explain, simulate, doctor and config read all."]),
            ],
        ),
        section("SETTINGS", setting_lines()),
        section("NOTES", tagged(NOTES)),
        section("EXAMPLES", example_lines(SETTINGS_EXAMPLES)),
        section("SEE ALSO", see_also(SETTINGS_SEE_ALSO)),
    )


def written(title: str, manual: str, *sections: Sequence[str]) -> str:
    """A page of MANUAL, its name and number in TITLE, with SECTIONS."""
    lines = [
        '.\\" Generated by `python -m greycheck.cli.manual`; a test holds it against its source.',
        f'.TH {title} "" "greycheck {__version__}" "{manual}"',
        *SET_UP,
        *(line for lines in sections for line in lines),
    ]
    return "\n".join(lines) + "\n"


def text(words: str) -> str:
    """WORDS as roff prints them, on one line."""
    escaped = (
        words.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace("`", "\\(ga")
        .replace("^", "\\(ha")
        .replace("~", "\\(ti")
    )
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A section, its first paragraph macro left out, which would be one too many."""
    skipped = 1 if lines[:1] == [".PP"] else 0
    return [f".SH {title}", *lines[skipped:]]


def paragraphs(texts: Sequence[str]) -> Iterator[str]:
    """Each of TEXTS, a paragraph: filled, or as it stands where click would leave it so."""
    for words in texts:
        yield ".PP"
        if words.startswith(VERBATIM):
            yield from verbatim(words.removeprefix(VERBATIM).split("\n"))
        else:
            yield from filled(words)


def filled(words: str) -> list[str]:
    """WORDS as a paragraph's lines, which roff fills."""
    return [
        text(line)
        for line in wrap(
            " ".join(words.split()), WIDTH, break_long_words=False, break_on_hyphens=False
        )
    ]


def verbatim(lines: Sequence[str]) -> list[str]:
    """LINES as they stand, indented."""
    return [".RS 4", ".nf", *map(text, lines), ".fi", ".RE"]


def tagged(rows: Sequence[tuple[str, str]]) -> list[str]:
    """A list of terms with their meanings."""
    return [
        line for term, meaning in rows for line in (".TP", f".B {text(term)}", *filled(meaning))
    ]


def synopsis() -> list[str]:
    """How each program is called: by the hooks, then each command."""
    by_hooks = [f"\\fB{text(hook.PROGRAM)}\\fR{arguments(hook)}" for hook in every()]
    by_operators = [f"\\fBgreycheck\\fR {usage(context)}" for context in contexts()]
    return [".nf", *by_hooks, *by_operators, ".fi"]


def arguments(hook: Hook) -> str:
    """The arguments of HOOK's program, as the synopsis has them."""
    return f" \\fI{' '.join(hook.ARGUMENTS)}\\fR" if hook.ARGUMENTS else ""


def contexts(parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for each command that does something, by name; those of a group in its place."""
    parent = parent or click.Context(cli, info_name="greycheck")
    assert isinstance(parent.command, click.Group)
    for name in sorted(parent.command.commands):
        command = parent.command.commands[name]
        if command.hidden:
            continue
        context = click.Context(command, parent, info_name=name)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield context
        if isinstance(command, click.Group):
            yield from contexts(context)


def usage(context: click.Context) -> str:
    """The usage of a command, without the program's name."""
    words = context.command_path.removeprefix("greycheck ")
    options = (
        "[\\fIoptions\\fR]"
        if any(isinstance(one, click.Option) for one in context.command.params)
        else ""
    )
    arguments = [
        argument(one, context) for one in context.command.params if isinstance(one, click.Argument)
    ]
    return " ".join(part for part in (f"\\fB{text(words)}\\fR", options, *arguments) if part)


def argument(one: click.Argument, context: click.Context) -> str:
    """An argument as usage shows it."""
    return f"\\fI{text(one.make_metavar(context))}\\fR"


def commands() -> list[str]:
    """Each command: usage, help, options."""
    lines = paragraphs(
        [
            "Each has --help. They read the same environment and file as the checker, and refuse"
            " to work with a setting that cannot be"
            " used; greycheck doctor and greycheck config name it."
        ]
    )
    return [*lines, *(line for context in contexts() for line in command(context))]


def command(context: click.Context) -> Iterator[str]:
    """The entry of one command."""
    yield f".SS {usage(context)}"
    yield from list(paragraphs(help_of(context.command).split("\n\n")))[1:]
    for option in context.command.params:
        if isinstance(option, click.Option) and not option.hidden:
            yield from (".TP", option_term(option, context), *filled(option_help(option, context)))


def help_of(shown: click.Command) -> str:
    """The help of a command as click shows it: not indented, and only up to a form feed."""
    return cleandoc((shown.help or "").partition("\f")[0])


def option_term(option: click.Option, context: click.Context) -> str:
    """An option with its short and long names, and what it takes."""
    names = ", ".join(f"\\fB{text(name)}\\fR" for name in (*option.opts, *option.secondary_opts))
    return (
        names
        if option.is_flag or option.count
        else f"{names} \\fI{text(option.make_metavar(context))}\\fR"
    )


def option_help(option: click.Option, context: click.Context) -> str:
    """What an option does, and its default where click shows that."""
    words = option.help or ""
    if option.show_default:
        words += f" Default: {option.get_default(context)}."
    return words


def setting_lines() -> list[str]:
    """Each setting with its default and meaning, in two groups."""
    first = next(place for place, one in enumerate(settings.TABLE) if one.name == OF_THE_RESIDENT)
    groups = (
        ("The store, and what is decided", settings.TABLE[:first]),
        ("The resident, and what clients are told", settings.TABLE[first:]),
    )
    lines = []
    for title, table in groups:
        rows = [
            (f"{one.name} = {one.text}".rstrip(" ="), f"{one.meaning} Read by: {one.where}.")
            for one in table
        ]
        lines += [f".SS {text(title)}", *tagged(rows)]
    return lines


def log_lines() -> list[str]:
    """The log line, its reasons and its other pairs."""
    line = (
        "greycheck: defer reason=new client=192.0.2.1 sender=<a@example.com>"
        " recipient=<b@example.net> wait=300 hook=smtpextfork ms=3"
    )
    head, _space, tail = line.partition(" recipient")
    return [
        *paragraphs(["One line a check on descriptor 2, in name=value pairs (here in two):"]),
        *verbatim([head, "    recipient" + tail]),
        *paragraphs(
            [
                'Bytes of an address that are not printable, blanks, and < > " \\ are written as'
                " \\xNN:"
                " no envelope can forge a line. Of what is long, here and in the store, a part is"
                " kept, with \\... and its length in bytes;"
                " of addresses also a digest, by which they stay apart."
                " The first word is the verdict. A line that begins greycheck: warning names a"
                " setting that cannot be used. The reasons, in"
                " the order in which they are asked, new and early where none before them matches:"
            ]
        ),
        *tagged(
            [(f"{name} ({reason.verdict})", reason.meaning) for name, reason in REASONS.items()]
        ),
        *paragraphs(["Further pairs:"]),
        *tagged([(f"{name}=", meaning) for name, meaning in PAIRS]),
    ]


def exits_of_hooks() -> list[tuple[str, str]]:
    """Each exit code with its meanings, the usual one first."""
    meanings = {code: [meaning] for code, meaning in EXIT_OF_HOOKS.items()}
    for hook in every():
        for code, meaning in hook.EXIT_STATUS:
            meanings.setdefault(code, []).append(meaning)
    joined = {code: "; ".join(one.rstrip(".") for one in said) for code, said in meanings.items()}
    return [(str(code), f"{joined[code]}.") for code in sorted(joined)]


def exit_lines() -> list[str]:
    """Exit codes: to a hook, and to an operator."""
    return [
        *paragraphs(["Run by a hook:"]),
        *tagged(exits_of_hooks()),
        *paragraphs(["With a command:"]),
        *tagged(EXIT_OF_COMMANDS),
    ]


def example_lines(examples: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """EXAMPLES: what each is about, and its lines."""
    return [line for words, lines in examples for line in (*paragraphs([words]), *verbatim(lines))]


def see_also(others: Sequence[tuple[str, int]]) -> list[str]:
    """The manual pages OTHERS, and the RFC."""
    pages = [f".BR {text(name)} ({number})," for name, number in others]
    return [*pages, "RFC 6647, Email Greylisting: An Applicability Statement for SMTP"]


def main() -> None:
    """Writes the manual pages."""
    for name, page in pages().items():
        (DOCS / name).write_text(page)


if __name__ == "__main__":
    main()
