"""The manual page greycheck(8): ``python -m greycheck.manual`` writes ``docs/greycheck.8``.

Commands, their options and the settings are taken from where they are declared, so that the page cannot fall behind them; a test
holds the file against this. The other sections are written here. Plain text is escaped by ``text``, so that nothing is taken for a request.
"""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path
from textwrap import wrap

import click

from greycheck import __version__, settings
from greycheck.cli.launcher import PROGRAMS
from greycheck.cli.main import cli
from greycheck.hooks import every, policy

PAGE = Path(__file__).parent.parent / "docs" / "greycheck.8"

# Characters of a line of the page's source, before anything is escaped.
WIDTH = 70

# Neither hyphenated, which would cut variables and paths in two, nor stretched.
SET_UP = (".nh", ".ad l")

# A paragraph of a command's help that click leaves as it stands.
VERBATIM = "\b\n"

DESCRIPTION = (
    "greycheck decides whether a mail server takes a mail now. A mail from an unknown triplet of client network, sender and recipient"
    " is deferred; its sender tries again, and passes once the delay is over. Most spam is never tried again (RFC 6647).",
    "Without an argument, or under the name qmail-checkenv, it is the program of one of the hooks of qmail-smtpd: forked for each RCPT TO,"
    " it reads one envelope, decides, writes one line to descriptor 2, and exits. With a command it is the tool of the operator.",
)

HOOKS = (
    (
        "SMTPEXTFORK, SMTPEXTFORKR",
        "A list of programs with commas between, in the environment of qmail-smtpd; the second for relay clients. Each is run without"
        " arguments; the envelope is in TCPREMOTEIP, REMOTEMF, REMOTERCPT and REMOTEHELO. A deferral is 454, a rejection 554, and the"
        " session goes on.",
    ),
    (
        "CHECKENV",
        "Where it is set, to whatever it is, qmail-smtpd runs bin/qmail-checkenv below the qmail home with sender and recipient as"
        " arguments. A deferral is 421, a rejection 553, and the connection is closed. A checker that cannot run stops all mail.",
    ),
    (
        "RCPTCHECK",
        "The path of greycheck-rcptcheck, in the environment of qmail-smtpd. It is run without arguments; the envelope is in"
        " TCPREMOTEIP, SENDER and RECIPIENT. A deferral is 421, and the connection is closed; a rejection is 553, and the session goes on."
        " A checker that cannot run stops all mail.",
    ),
    (
        "qmail-spp",
        "greycheck-spp is a plugin: its path is a line of control/smtpplugins, in the section [rcpt], before any plugin that accepts for"
        " good (N, O, A). The envelope is in TCPREMOTEIP, SMTPMAILFROM, SMTPRCPTTO and SMTPHELOHOST. It prints a command for qmail-smtpd:"
        " a deferral is 451, a rejection 553, with defer_text and reject_text, and the session goes on. With the null sender the first"
        " recipient of a message is accepted, and DATA refused (LD), so that a sender callback, which stops before that, finds what it"
        " looks for. Where the first recipient of a message passed by greylisting, later ones need not wait (RFC 6647, 5(1))."
        " Recipients that qmail-smtpd is going to refuse by its rcpthosts are not checked. A plugin that crashes or cannot run is 451.",
    ),
    (
        "Policy delegation protocol",
        "Postfix (check_policy_service), Exim (readsocket) and s/qmail (qmail-postgrey) ask greycheck serve; or Postfix has greycheck"
        " policy spawned. The envelope is in client_address, sender, recipient and helo_name; client_name is the client's verified name,"
        " instance the same for all recipients of a message, sasl_username that of an authenticated client. Settings and variables that"
        " tcprules would give to a client may be attributes too. Where protocol_state is not RCPT, the answer is DUNNO; else DUNNO"
        " accepts, DEFER_IF_PERMIT and REJECT refuse with defer_text and reject_text, and with header = yes PREPEND accepts the first"
        " recipient of a message and adds the header X-Greylist. What is no request gets no answer; what a mail server does then is its"
        " own setting. s/qmail lets in what is rejected.",
    ),
)

# In the order in which they are asked: the first that matches decides.
REASONS = (
    ("incomplete", "accept", "No usable client address, or not called by a hook; missing= says which variable."),
    ("exempt", "accept", "A relay or authenticated client, or checking is off for it; by= says why."),
    ("rule", "accept or reject", "A rule of the operator matches; rule= is its pattern."),
    ("strikes", "reject", "The client has retried too hastily, again and again."),
    ("client", "accept", "The client address has passed before."),
    ("known", "accept", "The triplet has passed before."),
    ("retry", "accept", "A retry after the delay: from now on triplet and client are known."),
    ("expected", "accept", "Mail to this recipient was expected (greycheck expect)."),
    ("message", "accept", "A later recipient of a message whose first one passed by greylisting (qmail-spp, policy)."),
    (
        "pool",
        "accept",
        "The same sender and recipient wait from enough other networks, the oldest longer than the delay.",
    ),
    ("crowded", "defer", "network_limit or more triplets of this client's network wait; this one is not recorded."),
    ("full", "accept", "More triplets wait than pending_limit allows; this one is not recorded."),
    ("new", "defer", "The triplet was never seen, or its retry window or lifetime is over."),
    ("early", "defer", "A retry before the delay is over."),
    ("error", "accept", "The check could not be made; error= says why. With on_error = defer: defer."),
)

NAMES = [*(hook.NAME for hook in every()), policy.NAME]

PAIRS = (
    ("wait", "Seconds until a retry would pass."),
    ("observed", "The verdict that would have been, where verdicts are only observed."),
    ("unrecorded", "The verdict stands, and the store could not be written; says why."),
    ("hook", f"{', '.join(NAMES[:-1])} or {NAMES[-1]}."),
    ("ms", "How long the check took in milliseconds, the start of Python not counted."),
)

EXIT_OF_HOOKS = (
    ("0", "Accept; to qmail-spp, which reads the verdict instead, any verdict."),
    ("100", "Reject: refused for good."),
    ("101", "Defer: refused for now."),
    ("111", "Defer, to RCPTCHECK, which takes 101 for an acceptance."),
)

EXIT_OF_COMMANDS = (
    ("0", "All went well."),
    ("1", "Something was wrong, and is named on descriptor 2; or what was asked for is not so."),
    ("2", "The command line was wrong."),
    ("111", "From policy: a check was not done by its deadline, and on_error has answered."),
    ("141", "The reader of the output has gone, as head does."),
)

RIGHTS_TEXT = (
    "Whoever owns the store's directory, qmail's user, decides about mail, and must gain nothing else: root opens nothing that he may"
    " write. Run by root, each command does with root's rights only what is said here, and then becomes the owner of the store, with his"
    " groups, before it looks into the directory. Run by anybody else, it uses his rights and no others.",
    "As root they refuse: links in the place of the store, and on the way to it unless root made them; what is no regular file, or another"
    " user's; a directory, here or on the way, that others than root and its owner may write to (a group may where database_mode = 0660"
    " says that it shares the store); settings that a third user wrote: root becomes whoever wrote them."
    " The message ends in the command that mends it.",
)

# Commands, as the synopsis has them, with what they do as root before they become the store's owner.
RIGHTS = (
    (
        "allow, db current, db downgrade, db upgrade, expect, expire, explain, forget, greylist, list, reject, rules check, rules export,"
        " rules list, rules remove, show, status",
        "Read the settings. All else is the owner's.",
    ),
    ("rules import, rules import-postgrey", "Read the settings and the files that are named. All else is the owner's."),
    (
        "copy",
        "Reads the settings and @FILE. All else is the owner's; where SOURCE and TARGET are SQLite files, they must be the same user's.",
    ),
    (
        "serve, policy",
        "Read the settings; serve makes its sockets, and becomes NAME where --user is given. All else is the owner's. With a server"
        " database the owner is that of state_directory.",
    ),
    (
        "install",
        "Stays root: writes launchers into DIR, which root alone may write to, and runs them; compiles modules; makes the system's"
        " directory. A process of the owner's makes the store; one of qmail's user tries the launchers, in a directory of his own.",
    ),
    (
        "doctor",
        "Stays root: looks at files and processes. A process of the owner's looks into the store; what it tells is shown as text.",
    ),
    ("completion, config, demo", "Open no store that a setting names."),
)

FILES = (
    (
        "/var/qmail/bin/greycheck, qmail-checkenv, greycheck-rcptcheck, greycheck-spp",
        "The launchers, one for each hook, where greycheck install put them.",
    ),
    (settings.CONFIG_FILE, "Settings, as lines of the form name = value. A line that begins with # is a comment."),
    (
        f"{settings.SYSTEM_DIRECTORY}/{settings.DATABASE_FILE}",
        "The store, unless the setting database says otherwise, with its -wal and -shm beside it. Where that directory does not exist,"
        " an ordinary user has it in ~/.local/state/greycheck.",
    ),
    (
        f"{settings.SYSTEM_DIRECTORY}/down-HOST-..., stuck-HOST-...",
        "Marks of hosts of a server database that do not answer, or take no writes (state_directory). A host is asked again after 1, 2, 4,"
        " ... at most 30 seconds; without its mark, at once.",
    ),
)

ENVIRONMENT = (
    ("GREYCHECK_NAME", "The setting NAME; see SETTINGS. It counts before the file."),
    ("GREYCHECK_CONFIG", f"The file of settings to read instead of {settings.CONFIG_FILE}."),
    ("GREYCHECK", "With the value off, from tcprules: this client is not checked."),
    ("RELAYCLIENT, SMTPAUTHUSER", "Set, even to nothing: a relay or authenticated client, which is not checked."),
    ("TCPREMOTEIP, TCPREMOTEHOST", "The client's address, and its name, as tcpserver gives them."),
    ("REMOTEMF, REMOTERCPT, REMOTEHELO", "Sender, recipient and HELO, as SMTPEXTFORK gives them."),
    ("SENDER, RECIPIENT", "Sender and recipient, as RCPTCHECK gives them."),
    ("SMTPMAILFROM, SMTPRCPTTO, SMTPHELOHOST", "Sender, recipient and HELO, as qmail-spp gives them."),
    (
        "SMTPRCPTCOUNT, SMTPRCPTCOUNTALL, TCPREMOTEPORT",
        "How many recipients qmail-spp has accepted, how many it was asked for, and in which session.",
    ),
    ("SMTPRCPTHOSTSOK", "With the value 0, from qmail-spp: qmail-smtpd refuses the recipient itself."),
    ("454SMTPEXTFORK, 554SMTPEXTFORK", "The text of a refusal: read by qmail-smtpd, not by greycheck."),
    ("XDG_STATE_HOME, HOME", "Where an ordinary user's store lives."),
)

EXAMPLES = (
    ("Install, and look whether everything is right:", ("greycheck install /var/qmail/bin", "greycheck doctor")),
    (
        "Switch SMTPEXTFORK on in the rules of tcpserver, but not for relay clients, nor for one client that is to be left alone:",
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
    ("In the crontab of the store's owner:", ("7 * * * * /var/qmail/bin/greycheck expire",)),
    (
        "Look at the store that qmail-smtpd uses, where envdir says which (on Debian below /etc/service):",
        ("envdir /service/smtpd/env greycheck doctor",),
    ),
    ("Completion in bash:", ("greycheck completion bash > /etc/bash_completion.d/greycheck",)),
)

SEE_ALSO = (
    ("envdir", 8),
    ("postconf", 5),
    ("qmail-smtpd", 8),
    ("softlimit", 8),
    ("spawn", 8),
    ("tcpserver", 1),
    ("tcprules", 1),
)


def page() -> str:
    """The text of the manual page, in roff with the macros of man(7)."""
    lines = [
        '.\\" Generated by `python -m greycheck.manual`; a test holds it against its source.',
        f'.TH GREYCHECK 8 "" "greycheck {__version__}" "System Administration"',
        *SET_UP,
        *section("NAME", [text(", ".join(PROGRAMS)) + " \\- " + text("greylisting for qmail")]),
        *section("SYNOPSIS", synopsis()),
        *section("DESCRIPTION", [*paragraphs(DESCRIPTION), *tagged(HOOKS)]),
        *section("COMMANDS", commands()),
        *section("SETTINGS", setting_lines()),
        *section("LOG", log_lines()),
        *section("EXIT STATUS", exit_lines()),
        *section("RIGHTS", [*paragraphs(RIGHTS_TEXT), *tagged(RIGHTS)]),
        *section("FILES", tagged(FILES)),
        *section("ENVIRONMENT", tagged(ENVIRONMENT)),
        *section("EXAMPLES", example_lines()),
        *section("SEE ALSO", see_also()),
    ]
    return "\n".join(lines) + "\n"


def text(words: str) -> str:
    """WORDS as roff prints them, on one line."""
    escaped = (
        words.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
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
    return [text(line) for line in wrap(" ".join(words.split()), WIDTH, break_long_words=False, break_on_hyphens=False)]


def verbatim(lines: Sequence[str]) -> list[str]:
    """LINES as they stand, indented."""
    return [".RS 4", ".nf", *map(text, lines), ".fi", ".RE"]


def tagged(rows: Sequence[tuple[str, str]]) -> list[str]:
    """A list of terms with their meanings."""
    return [line for term, meaning in rows for line in (".TP", f".B {text(term)}", *filled(meaning))]


def synopsis() -> list[str]:
    """How each program is called: by the hooks, then each command."""
    arguments = {"qmail-checkenv": " \\fIsender recipient\\fR"}
    by_hooks = [f"\\fB{text(name)}\\fR{arguments.get(name, '')}" for name in PROGRAMS]
    by_operators = [f"\\fBgreycheck\\fR {usage(context)}" for context in contexts()]
    return [".nf", *by_hooks, *by_operators, ".fi"]


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
    options = "[\\fIoptions\\fR]" if any(isinstance(one, click.Option) for one in context.command.params) else ""
    arguments = [argument(one, context) for one in context.command.params if isinstance(one, click.Argument)]
    return " ".join(part for part in (f"\\fB{text(words)}\\fR", options, *arguments) if part)


def argument(one: click.Argument, context: click.Context) -> str:
    """An argument as usage shows it."""
    return f"\\fI{text(one.make_metavar(context))}\\fR"


def commands() -> list[str]:
    """Each command: usage, help, options."""
    lines = paragraphs(
        [
            "Each has --help. They read the same environment and file as the checker, and refuse to work with a setting that cannot be"
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
    """The help of a command as click shows it: without indentation, and without what follows a form feed."""
    return cleandoc((shown.help or "").partition("\f")[0])


def option_term(option: click.Option, context: click.Context) -> str:
    """An option with its short and long names, and what it takes."""
    names = ", ".join(f"\\fB{text(name)}\\fR" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag or option.count else f"{names} \\fI{text(option.make_metavar(context))}\\fR"


def option_help(option: click.Option, context: click.Context) -> str:
    """What an option does, and its default where click shows that."""
    words = option.help or ""
    if option.show_default:
        words += f" Default: {option.get_default(context)}."
    return words


def setting_lines() -> list[str]:
    """Each setting with its default and meaning."""
    lines = paragraphs(
        [
            "None is needed. Each may stand in the environment, as GREYCHECK_DELAY=1m, from envdir, or from tcprules for a single client;"
            f" or as a line delay = 1m of {settings.CONFIG_FILE}, or of the file that GREYCHECK_CONFIG names. The environment counts"
            " first. Durations read 90, 90s, 5m, 24h or 36d.",
            "A setting that cannot be read never stops mail: the default is used, and the log names the file and line.",
        ]
    )
    rows = [(f"{one.name} = {one.text}".rstrip(" ="), one.meaning) for one in settings.TABLE]
    return [*lines, *tagged(rows)]


def log_lines() -> list[str]:
    """The log line, its reasons and its other pairs."""
    line = "greycheck: defer reason=new client=192.0.2.1 sender=<a@example.com> recipient=<b@example.net> wait=300 hook=smtpextfork ms=3"
    head, _space, tail = line.partition(" recipient")
    return [
        *paragraphs(["One line a check on descriptor 2, in name=value pairs (here in two):"]),
        *verbatim([head, "    recipient" + tail]),
        *paragraphs(
            [
                'Bytes of an address that are not printable, blanks, and < > " \\ are written as \\xNN:'
                " no envelope can forge a line. Of what is long, here and in the store, a part is kept, with \\... and its length in bytes;"
                " of addresses also a digest, by which they stay apart."
                " The first word is the verdict. A line that begins greycheck: warning names a setting that cannot be used. The reasons, in"
                " the order in which they are asked, new and early where none before them matches:"
            ]
        ),
        *tagged([(f"{reason} ({action})", meaning) for reason, action, meaning in REASONS]),
        *paragraphs(["Further pairs:"]),
        *tagged([(f"{name}=", meaning) for name, meaning in PAIRS]),
    ]


def exit_lines() -> list[str]:
    """Exit codes: to a hook, and to an operator."""
    return [
        *paragraphs(["Run by a hook:"]),
        *tagged(EXIT_OF_HOOKS),
        *paragraphs(["With a command:"]),
        *tagged(EXIT_OF_COMMANDS),
    ]


def example_lines() -> list[str]:
    """What to type."""
    return [line for words, lines in EXAMPLES for line in (*paragraphs([words]), *verbatim(lines))]


def see_also() -> list[str]:
    """Other manual pages."""
    pages = [f".BR {text(name)} ({number})," for name, number in SEE_ALSO]
    return [*pages, "RFC 6647, Email Greylisting: An Applicability Statement for SMTP"]


def main() -> None:
    """Writes the manual page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
