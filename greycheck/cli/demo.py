"""``greycheck demo``: a mail deferred, then accepted, over real SMTP, before the reader's eyes."""

import os
import pwd
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep

import click
from sqlalchemy import select

from greycheck import __version__
from greycheck.cli.columns import facts, room, wrapped
from greycheck.cli.terminal import Console
from greycheck.hooks import every
from greycheck.store.admin.engine import open_engine, reading
from greycheck.store.schema.tables import client, triplet
from greycheck.times import local_bare

# The hooks that the demonstration's SMTP server has.
HOOKS = {hook.NAME: hook for hook in every() if hook.DEMO}

SENDER = "alice@example.org"
RECIPIENT = "bob@example.net"
SEEN = (
    "The mail was deferred, since nobody had seen this client, sender and recipient together; a"
    " retry within {delay}s changed nothing; the one after that was accepted. From now on all mail"
    " of {client} passes at once.",
)
NEXT = (
    "greycheck install, as root, puts the checker where your mail server runs it, and greycheck"
    " doctor says whether all is well.",
    "README.rst has it step by step; then docs/qmail.rst, docs/postfix.rst or docs/exim.rst, for"
    " your mail server.",
    "Of this demonstration nothing is left.",
)
MESSAGE = f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nSubject: greylisted\r\n\r\nHello.\r\n"

# The most columns of a paragraph; those of the store's names.
PROSE, LABEL = 80, 16

console = Console(soft_wrap=True)


@click.command()
@click.option(
    "--hook",
    type=click.Choice(tuple(HOOKS)),
    default=next(iter(HOOKS)),
    show_default=True,
    help="Which hook runs it.",
)
@click.option(
    "--delay",
    type=click.IntRange(4, 300),
    default=5,
    show_default=True,
    help="Seconds instead of 5 minutes.",
)
def demo(hook: str, delay: int) -> None:
    """Show greycheck at work: one mail, deferred at first, accepted when it is sent again.

    Everything happens in a temporary directory, on 127.0.0.1, with real SMTP and the real
    launchers.
    """
    with tempfile.TemporaryDirectory(prefix="greycheck-") as directory:
        place = Path(directory)
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DATABASE": f"{place}/greycheck.db",
            "GREYCHECK_DELAY": f"{delay}s",
        }
        install(place, environ)
        environ |= hook_variables(place, hook)
        what = f"greycheck {__version__}: launchers and store in {place}, delay {delay}s."
        tell("", what, room(console))
        with smtp_server(place, environ) as port:
            title = HOOKS[hook].TITLE
            what = (
                f"An SMTP server on 127.0.0.1:{port} runs them as qmail-smtpd does under {title}."
            )
            tell("", what, room(console))
            attempts(place, port, delay)
        show_store(environ["GREYCHECK_DATABASE"])
    for title, paragraphs in ("Seen", SEEN), ("Next", NEXT):
        console.print(f"\n{title}", style="bold")
        for each in paragraphs:
            tell("  ", each.format(delay=delay, client=CLIENT), min(room(console), PROSE))


def tell(head: str, text: str, width: int, style: str = "") -> None:
    """Prints TEXT behind HEAD in WIDTH columns; what does not fit stands below, indented as far."""
    for line in wrapped(text, width - len(head)):
        console.print(f"{head}{line}", style=style)
        head = " " * len(head)


def attempts(place: Path, port: int, delay: int) -> None:
    """The first attempt, a retry that comes too early, the wait, and the retry that passes."""
    early = delay // 2
    for title, wait in (
        ("The first attempt", 0),
        (f"A retry after {early}s: too early", early),
        (f"A retry after {delay}s", delay - early),
    ):
        if wait:
            console.print(f"\n... {wait}s pass ...", style="dim")
            sleep(wait + 0.1)
        console.print(f"\n{title}", style="bold")
        attempt(port)
        show_log(place)


def install(place: Path, environ: dict[str, str]) -> None:
    """Installs launchers and store into PLACE, with the command that operators use."""
    (place / "bin").mkdir()
    command = [sys.executable, "-m", "greycheck", "install", str(place / "bin")]
    with suppress(KeyError):  # a container may run it as a user without a name
        command += ["--user", pwd.getpwuid(os.geteuid()).pw_name]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise click.ClickException(ran.stderr.strip().removeprefix("Error: "))


def hook_variables(place: Path, hook: str) -> dict[str, str]:
    """What switches HOOK on for an SMTP server whose home is PLACE."""
    program = f"{place}/bin/{HOOKS[hook].PROGRAM}"
    switches = {name: text.format(program=program) for name, text in HOOKS[hook].DEMO}
    return {"QMAIL_HOME": str(place)} | switches


# Where the mail seems to come from (RFC 5737): a loopback address, which all clients may share,
# never becomes known.
CLIENT = "192.0.2.1"


@contextmanager
def smtp_server(place: Path, environ: dict[str, str]) -> Iterator[int]:
    """Serves SMTP sessions on a port of 127.0.0.1, which it gives; the log goes to PLACE/log."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (place / "log").open("ab") as log:

        def serve() -> None:
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    subprocess.run(
                        [sys.executable, "-m", "greycheck.demo.smtpd"],
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=log,
                        env=environ | {"PROTO": "TCP", "TCPREMOTEIP": CLIENT},
                        check=False,
                    )

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


class Client(smtplib.SMTP):
    """An SMTP client that shows its dialogue."""

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Sends a command, and shows it."""
        console.print(f"  C: {f'{cmd.upper()} {args}'.strip()}", style="cyan")
        super().putcmd(cmd.upper(), args)

    def getreply(self) -> tuple[int, bytes]:
        """The server's reply, shown."""
        code, text = super().getreply()
        style = "green" if code < 400 else "yellow" if code < 500 else "red"
        for line in text.decode(errors="replace").splitlines() or [""]:
            tell("  S: ", f"{code} {line}", room(console), style)
        return code, text


def attempt(port: int) -> None:
    """Sends the mail once."""
    server = Client(local_hostname="client.example.org", timeout=60)
    server.connect("127.0.0.1", port)
    try:
        server.sendmail(SENDER, [RECIPIENT], MESSAGE)
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPServerDisconnected):
        pass
    finally:
        if server.sock:
            server.quit()


def show_log(place: Path) -> None:
    """Shows what came to the log since it was last shown."""
    log = place / "log"
    for line in log.read_text().splitlines():
        tell("  log: ", line, room(console), "magenta")
    os.truncate(log, 0)


def show_store(path: str) -> None:
    """Shows the rows of the store."""
    engine = open_engine(f"sqlite:///{path}")
    with reading(engine).connect() as connection:
        for table in (triplet, client):
            console.print(f"\nIn the store, table {table.name}", style="bold")
            for row in connection.execute(select(table)).mappings():
                of_row = [
                    (f"  {column}", shown(str(column), value)) for column, value in row.items()
                ]
                facts(console, of_row, LABEL)
    engine.dispose()


def shown(column: str, value: object) -> str:
    """A column's VALUE as text: keys in hexadecimal, times also as people read them."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and column.startswith(("first", "last", "passed", "expires")):
        return f"{value} ({local_bare(value)})"
    return str(value)
