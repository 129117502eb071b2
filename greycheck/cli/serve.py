"""``greycheck serve``: runs the resident."""

import gc
import os
import pwd
import signal
import socket

import click

from greycheck import child, log
from greycheck.cli import terminal
from greycheck.cli.common import foreseen, read_settings
from greycheck.privilege import access
from greycheck.resident import sockets
from greycheck.resident.journal import Journal
from greycheck.resident.server import SIGNALS, Server
from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.base import StoreError
from greycheck.store.schema import migrate

# As a user's number this means "no change" (setresuid(2)).
NO_USER = (1 << 32) - 1


@click.command()
@click.option(
    "--user", help="The user to become, or his number, once the sockets are made. Only root can."
)
@click.option(
    "--no-resolve", is_flag=True, help="Do not run greycheck resolve each minute: cron does."
)
def serve(user: str | None, no_resolve: bool) -> None:
    """Answer mail servers and launchers in C over a socket.

    The decision is that of a launcher in Python; the store is kept open.

    Stays in the foreground, for daemontools, runit or systemd, and logs to descriptor 2. SIGTERM
    ends it, once what was asked is answered; SIGHUP reads the settings again. Once the schema is a
    newer program's, it ends with exit code 111, and the supervisor starts that program. It speaks
    Postfix's policy delegation protocol. Each minute it runs greycheck resolve beside itself.
    """
    # Otherwise a database might be opened as descriptor 2, and the log be written into it.
    child.safe_descriptors()
    # From the moment it listens, every request must be answered: signals wait until they are
    # handled.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    settings = read_settings()
    journal = Journal()
    with foreseen():
        account = account_to_become(user, settings)
        try:
            kept = sockets.activated(os.environ)
            listening = kept or sockets.made(settings, account)
        except sockets.SocketError as error:
            raise click.ClickException(terminal.shown(str(error))) from None
        become(account)
        rights.become_owner(settings, marks=True)
        environ = dict(os.environb)
        server = Server(listening, environ, journal, make_store, bool(kept), not no_resolve)
    gc.collect()
    gc.freeze()
    server.run(lambda: tell(journal, listening))


def account_to_become(name: str | None, settings: Settings) -> pwd.struct_passwd | None:
    """Returns the account to become: that of NAME, a user's name or number.

    For root without NAME it is the owner of the store of SETTINGS. Returns None if no change is
    needed. Raises ClickException.
    """
    if not name:
        user = rights.owner_of(settings) if os.geteuid() == 0 else 0
        return access.account_of(user) if user else None
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        if not (name.isascii() and name.isdecimal() and len(name) <= 10 and int(name) < NO_USER):
            raise click.ClickException(f"{name}: no such user") from None
        account = access.account_of(int(name))
    if os.geteuid() not in (0, account.pw_uid):
        raise click.ClickException(f"only root can become {name}")
    return None if account.pw_uid == os.geteuid() else account


def become(account: pwd.struct_passwd | None) -> None:
    """Becomes ACCOUNT, for good, if it is given."""
    if account is not None:
        rights.become(account.pw_uid)


def make_store(settings: Settings) -> None:
    """Makes the tables of an SQLite file without any, as the first check would.

    Others must exist. Raises StoreError. Older tables are left to ``greycheck db upgrade``, which
    may take longer than a supervisor waits for a start.
    """
    try:
        with foreseen():
            if (
                migrate.sqlite_path(settings.database)
                and migrate.current(settings.database) is None
            ):
                migrate.upgrade(settings.database, settings.database_mode)
            else:
                migrate.require(settings.database)
    except click.ClickException as error:
        raise StoreError(error.message) from None


def tell(journal: Journal, listening: list[socket.socket]) -> None:
    """Reports the listening sockets to the log and to systemd."""
    names = ", ".join(sockets.shown(each) for each in listening)
    journal.add(log.line(f"note listening on {names}"))
    if os.geteuid() == 0:
        journal.add(
            log.line(
                "warning serves as root: start it as the user that owns the store, or with --user"
            )
        )
    journal.flush()
    sockets.notify(os.environb, "READY=1")
