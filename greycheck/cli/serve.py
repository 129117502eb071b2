"""``greycheck serve``: the resident."""

import gc
import os
import pwd
import signal
import socket

import click

from greycheck import child, log
from greycheck.cli import access, terminal
from greycheck.cli.common import foreseen, read_settings
from greycheck.resident import sockets
from greycheck.resident.journal import Journal
from greycheck.resident.server import SIGNALS, Server
from greycheck.settings import Settings
from greycheck.store import rights, schema
from greycheck.store.lean import StoreError

# The number that changes no user where it is told as one (setresuid(2)).
NO_USER = (1 << 32) - 1


@click.command()
@click.option("--user", help="The user to become, or his number, once the sockets are made. Only root can.")
def serve(user: str | None) -> None:
    """Answer mail servers and native children over a socket: the same decision, with the store kept open.

    Stays in the foreground, for daemontools, runit or systemd, and logs to descriptor 2. SIGTERM drains and ends it, SIGHUP reads the
    settings again. Where the schema is another program's, after an upgrade say, it ends with exit code 111, for the supervisor to start
    that one. It speaks Postfix's policy delegation protocol.
    """
    # Else a database may be opened as descriptor 2, and the log be written into it.
    child.safe_descriptors()
    # From when it listens, who asks is to be answered: a signal waits until it is heeded.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    found = read_settings()
    journal = Journal()
    with foreseen():
        account = whom(user, found)
        try:
            kept = sockets.activated(os.environ)
            listening = kept or sockets.made(found, account)
        except sockets.SocketError as error:
            raise click.ClickException(terminal.shown(str(error))) from None
        become(account)
        rights.become_owner(found, marks=True)
        server = Server(listening, dict(os.environb), journal, make_store, keeps=bool(kept))
    gc.collect()
    gc.freeze()
    server.run(lambda: tell(journal, listening))


def whom(name: str | None, found: Settings) -> pwd.struct_passwd | None:
    """Whom to become: the user NAME, or of that number; where root names none, whoever owns the store of FOUND; None for nobody else."""
    if not name:
        user = rights.owner_of(found) if os.geteuid() == 0 else 0
        return access.account_of(user) if user else None
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        if not (name.isascii() and name.isdecimal() and len(name) <= 10 and int(name) < NO_USER):
            raise click.ClickException(f"{name}: no such user") from None
        account = access.account_of(int(name))
    if os.geteuid() not in (0, account.pw_uid):
        raise click.ClickException(f"only root can become {name}")
    return account


def become(account: pwd.struct_passwd | None) -> None:
    """Becomes ACCOUNT, for good, if root asks for it."""
    if account is not None:
        rights.become(account.pw_uid)


def make_store(found: Settings) -> None:
    """Makes the tables of an SQLite file where there are none, as the first check would; others must be there. Raises StoreError.

    Tables that are older are left to ``greycheck db upgrade``: that may take longer than a supervisor waits for a start.
    """
    try:
        with foreseen():
            if schema.sqlite_path(found.database) and schema.current(found.database) is None:
                schema.upgrade(found.database, found.database_mode)
            else:
                schema.require(found.database)
    except click.ClickException as error:
        raise StoreError(error.message) from None


def tell(journal: Journal, listening: list[socket.socket]) -> None:
    """Says where it listens, to the log and to systemd."""
    names = ", ".join(sockets.shown(each) for each in listening)
    journal.add(log.line(f"note listening on {names}"))
    if os.geteuid() == 0:
        journal.add(log.line("warning serves as root: start it as the user that owns the store, or with --user"))
    journal.flush()
    sockets.notify(os.environb, "READY=1")
