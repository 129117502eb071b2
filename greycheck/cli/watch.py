"""``greycheck watch``: the log as it comes, for people."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import localtime, strftime, time

import click

from greycheck import normalise
from greycheck.cli import filters, terminal
from greycheck.cli.columns import LEAST, UNBOUND, cut, room, wrapped
from greycheck.cli.common import foreseen
from greycheck.cli.following import Waiting, follow_file, follow_stream
from greycheck.cli.terminal import Choice, Console, Text, cell_len
from greycheck.explain.decision import address_bytes
from greycheck.explain.reasons import REASONS
from greycheck.log import show_address
from greycheck.mail_logs import checks, lines
from greycheck.mail_logs.checks import Check
from greycheck.normalise import Network
from greycheck.policy import ACCEPT, DEFER, REJECT
from greycheck.times import span

# How much before the end of a file its last lines are looked for, in bytes.
BACK = 4 << 20

# From how many columns on a check takes one line.
WIDE = 160

# The columns of time, verdict and reason.
TIME, VERDICT, REASON = 10, 8, 15

COLOURS = {ACCEPT: "green", DEFER: "yellow", REJECT: "red"}
OTHERS = {"warning": "yellow", "note": "cyan"}

# What a line says besides that is shown behind who and whom.
DETAILS = (
    "by",
    "missing",
    "rule",
    "provider",
    "error",
    "identity",
    "by_identity",
    "observed",
    "unrecorded",
)

VERDICTS = (ACCEPT, DEFER, REJECT)


@dataclass(frozen=True)
class Wanted:
    """Which checks are shown: those that match all that is given. Addresses are as operators write.

    ``either`` is of sender or recipient, ``domain`` of both too.
    """

    verdicts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    either: bytes | None = None
    sender: bytes | None = None
    recipient: bytes | None = None
    domain: bytes | None = None
    network: Network | None = None

    def matches(self, check: Check, observed: str = "") -> bool:
        """Whether CHECK is one; OBSERVED is its verdict where that was only observed."""
        if self.verdicts and not {check.action, observed} & set(self.verdicts):
            return False
        if self.reasons and check.reason not in self.reasons:
            return False
        if self.network is not None and not _is_within(check.client, self.network):
            return False
        pair = check.sender, check.recipient
        if self.either is not None and not any(is_like(self.either, each) for each in pair):
            return False
        if self.domain is not None and not any(is_below(self.domain, each) for each in pair):
            return False
        if self.sender is not None and not is_like(self.sender, check.sender):
            return False
        return self.recipient is None or is_like(self.recipient, check.recipient)


def is_like(wanted: bytes, address: bytes) -> bool:
    """Whether ADDRESS is what WANTED says, as ``greycheck list --address`` takes it.

    That is a whole address, ``user@``, ``@domain``, a domain or an address without one; empty is
    the null sender. Tags of a sender do not count.
    """
    wanted, address = normalise.mail_address(wanted), normalise.mail_address(address)
    if not wanted or not address:
        return wanted == address
    if wanted.startswith(b"@"):
        return address.endswith(wanted)
    local, _at, domain = address.rpartition(b"@")
    if wanted.endswith(b"@"):
        return local == wanted[:-1]
    if b"@" in wanted:
        return wanted == address or normalise.fold_sender(wanted) == normalise.fold_sender(address)
    return wanted in (address, domain)


def is_below(domain: bytes, address: bytes) -> bool:
    """Whether ADDRESS is at DOMAIN or below it."""
    name = normalise.host_name(domain.lstrip(b"@."))
    _local, at, host = normalise.mail_address(address).rpartition(b"@")
    return bool(at) and (host == name or host.endswith(b"." + name))


def _is_within(client: str | None, network: Network) -> bool:
    if client is None:
        return False
    bits, value = normalise.address_bits(client)
    return network.overlaps(Network(bits, value, bits))


@click.command()
@click.argument("file", required=False, metavar="[FILE]")
@click.option(
    "-n",
    "--lines",
    "last",
    type=click.IntRange(0, 10000),
    default=10,
    show_default=True,
    metavar="N",
    help="Show the last N of what FILE has already.",
)
@click.option(
    "--verdict",
    "verdicts",
    type=Choice(VERDICTS),
    multiple=True,
    help="Only these, observed ones too. May be given again.",
)
@click.option(
    "--reason",
    "reasons",
    type=Choice(REASONS),
    multiple=True,
    metavar="NAME",
    help="Only for this reason. May be given again.",
)
@filters.of_mail
@click.option("--sender", metavar="TEXT", help="Sender: as --address.")
@click.option("--recipient", metavar="TEXT", help="Recipient: as --address.")
def watch(
    file: str | None,
    last: int,
    verdicts: tuple[str, ...],
    reasons: tuple[str, ...],
    address: str | None,
    domain: str | None,
    network: str | None,
    sender: str | None,
    recipient: str | None,
) -> None:
    """Show the log as it comes: each check with its verdict and reason, who, whom, and how long.

    FILE is a log with greycheck's lines, as multilog or syslog writes it. It is followed for ever,
    and into the next one when it is rotated. Without FILE, or where it is -, standard input is
    read:

    \b
        greycheck watch /var/log/smtpd/current
        journalctl -f -u greycheck | greycheck watch --verdict defer

    Warnings and notes of greycheck are shown too, lines of others are not. A wait is how long a
    mail still waits, or (after "waited") how long it did.
    """  # noqa: D301
    wanted = Wanted(
        verdicts,
        reasons,
        _bytes(address),
        _bytes(sender),
        _bytes(recipient),
        _bytes(domain),
        None if network is None else filters.network_of(network),
    )
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("name a log, or let one come: journalctl -f | greycheck watch")
    shown = Shown(Console(), wanted)
    waiting = Waiting()
    try:
        with foreseen():
            if file in (None, "-"):
                come = follow_stream(sys.stdin.fileno(), waiting.until_there_is_more)
                shown.all(come, 0)
            else:
                shown.all(follow_file(Path(str(file)), BACK if last else 0, waiting.pause), last)
    except KeyboardInterrupt:
        shown.end()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else address_bytes(text)


class Shown:
    """What is shown on SCREEN: the checks that are WANTED, and what else greycheck says."""

    def __init__(self, screen: Console, wanted: Wanted) -> None:
        self._screen = screen
        self._wanted = wanted
        self._day = ""
        self._width = room(screen)

    def all(self, come: Iterable[bytes | None], last: int) -> None:
        """Shows the lines that COME; of those before None only the LAST."""
        history: deque[tuple[int | None, bytes]] | None = deque(maxlen=last) if last else None
        for text in come:
            if text is None:
                for before in history or ():
                    self._show(*before)
                history = None
                continue
            line = lines.read(text, int(time()))
            says = checks.said(line)
            if says is None or not self._is_wanted(says):
                continue
            if history is None:
                self._show(line.when, says)
            else:
                history.append((line.when, says))

    def end(self) -> None:
        """Ends the line in which a terminal shows the ^C."""
        if self._screen.is_terminal:
            terminal.echo("")

    def _is_wanted(self, says: bytes) -> bool:
        check = checks.check(says)
        if check is None:
            return checks.is_other(says)
        observed = check.pairs().get("observed", b"") if b"observed=" in check.rest else b""
        return self._wanted.matches(check, observed.decode("ascii", "replace"))

    def _show(self, when: int | None, says: bytes) -> None:
        self._width = room(self._screen)  # a terminal may have another size by now
        moment = self._moment(when)
        check = checks.check(says)
        shown = (
            _other(moment, says, self._width) if check is None else self._of_check(moment, check)
        )
        for text in shown:
            self._screen.print(text, soft_wrap=True)
        self._screen.file.flush()

    def _moment(self, when: int | None) -> str:
        """The time of a line; on a terminal the day stands once, above."""
        if when is None:
            return "-"
        if self._width == UNBOUND:
            return strftime("%Y-%m-%d %H:%M:%S", localtime(when))
        day = strftime("%Y-%m-%d", localtime(when))
        if day != self._day:
            self._day = day
            self._screen.print(Text(day, "dim"), soft_wrap=True)
        return strftime("%H:%M:%S", localtime(when))

    def _of_check(self, moment: str, check: Check) -> Iterator[Text]:
        """The lines of CHECK: one where there is room, else who asks and whom it is about apart."""
        pairs = check.pairs()
        head = Text.assemble(
            (f"{moment:{TIME}}" if len(moment) < TIME else f"{moment}  ", "dim"),
            (f"{check.action:{VERDICT}}", COLOURS[check.action]),
            f"{check.reason:{REASON}}",
        )
        client = check.client or "-"
        times = " ".join(_times(pairs))
        names = show_address(check.sender) or "<>", show_address(check.recipient)
        detail = terminal.shown(" ".join(_details(pairs)))
        if self._width >= WIDE:
            parts = [client, f"{names[0]} -> {names[1]}", times, detail]
            line = "  ".join(part for part in parts if part)
            if self._width != UNBOUND:
                line = cut(line, self._width - head.cell_len, self._screen)
            yield head.append(line)
            return
        if head.cell_len + len(client) + 2 + len(times) > self._width:
            times, detail = "", f"{times}  {detail}".rstrip()
        yield head.append(f"{client}  {times}".rstrip())
        indent, most = " " * TIME, self._width - TIME
        half = (most - len(" -> ")) // 2
        spare = max(0, half - min(map(cell_len, names)))
        sender, recipient = (cut(name, half + spare, self._screen) for name in names)
        yield Text(f"{indent}{sender} -> {recipient}")
        if detail:
            yield Text(indent + cut(detail, most, self._screen), "dim")


def _other(moment: str, says: bytes, width: int) -> Iterator[Text]:
    """The lines of a warning or note, behind its time."""
    text = terminal.shown(says.decode("utf-8", "surrogateescape"))
    first = f"{moment:{TIME}}" if len(moment) < TIME else f"{moment}  "
    style = next((style for word, style in OTHERS.items() if text.startswith(word)), "")
    left = max(width - len(first), LEAST)
    for line in wrapped(text, left):
        for start in range(0, len(line), left):
            part = line[start : start + left]
            yield Text.assemble((first, "dim"), (part, style))
            first = " " * len(first)


def _times(pairs: dict[str, bytes]) -> Iterator[str]:
    for name, word in (("wait", "wait"), ("delayed", "waited")):
        value = pairs.get(name, b"")
        if value.isdigit() and len(value) < 10:
            yield f"{word} {span(int(value))}"


def _details(pairs: dict[str, bytes]) -> Iterator[str]:
    for name in DETAILS:
        if name in pairs:
            yield f"{name}={pairs[name].decode('utf-8', 'surrogateescape')}"
