"""What an SMTP client waits for: from RCPT TO to its reply, against a Python child that does next
to nothing with the same store.

The test parent (``greycheck.demo.smtpd``) runs a checker by SMTPEXTFORK, as qmail-smtpd does, on a
socket; each checker has one SMTP session that stays open. One checker is the launcher. The others
are an interpreter without its site that imports ``sqlite3``, opens the launcher's store, selects
one row, and exits 0: as a script ends, and at once (``_exit``), which spares it the cleaning up.
All triplets are known, and all recipients accepted.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from time import perf_counter

import click

from benchmarks.common import (
    BARE,
    QUICK_ROWS,
    ROOT,
    ROWS,
    TIMES,
    Case,
    Mail,
    Numbers,
    Workshop,
    WrongAnswer,
    check_reasons,
    interleave,
    mail,
    options,
    print_table,
    ratio,
    settings,
    tcpserver,
    times_row,
    workshop,
)

# The client of every session: tcpserver names it once for all of a session.
CLIENT = "192.0.2.1"

TARGET = 1.2

# One row, at random, as the launcher reads.
ONE_READ = """\
#!{interpreter} -IS
import posix, sqlite3
connection = sqlite3.connect({database!r})
connection.execute("SELECT passed_at FROM triplet WHERE triplet_key >= randomblob(16) LIMIT 1").fetchone()
"""  # noqa: E501
EXIT_AT_ONCE = "posix._exit(0)\n"


class Session:
    """An SMTP session with the test parent; CONNECTION is the client's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._replies = connection.makefile("rb")
        self._expect(b"220")
        self.say(b"HELO client.example.com", b"250")

    def say(self, command: bytes, code: bytes) -> None:
        """Sends COMMAND, and waits for its reply, which must be CODE."""
        self._connection.sendall(command + b"\r\n")
        self._expect(code)

    def _expect(self, code: bytes) -> None:
        reply = self._replies.readline()
        if not reply.startswith(code):
            raise WrongAnswer(f"the server says {reply!r}, not {code!r}")

    def rcpt(self, found: Mail) -> float:
        """Offers the envelope FOUND; the milliseconds from RCPT TO to its acceptance."""
        self.say(b"MAIL FROM:<" + found.sender.encode() + b">", b"250")
        command = b"RCPT TO:<" + found.recipient.encode() + b">"
        started = perf_counter()
        self.say(command, b"250")
        took = perf_counter() - started
        self.say(b"RSET", b"250")
        return took * 1000


@click.command(help=__doc__)
@options(rounds=400, quick_rounds=3)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    numbers = Numbers(QUICK_ROWS if quick else ROWS)
    with workshop() as place, ExitStack() as sessions:
        database = place.database("rcpt", numbers, from_client)
        programs = {
            "one read": script(place, "one-read", ONE_READ, database),
            "one read, _exit": script(place, "one-read-exit", ONE_READ + EXIT_AT_ONCE, database),
            "launcher": place.launcher,
        }
        cases = [
            Case(name, asker(sessions.enter_context(session(place, program, database)), numbers))
            for name, program in programs.items()
        ]
        interleave(cases, rounds)
        check_reasons(place.new_lines(), ["known"] * (rounds + 1))
    one_read, at_once, launcher = cases
    table = [
        times_row(one_read),
        times_row(at_once, ratio(at_once, one_read, "one read")),
        times_row(launcher, ratio(launcher, one_read, "one read", TARGET)),
        times_row(launcher, ratio(launcher, at_once, "one read, _exit", TARGET)),
    ]
    print_table(f"rcpt (rounds: {rounds}, rows: {numbers.known})", TIMES, table)


def from_client(number: int) -> Mail:
    """Envelope NUMBER, from the one client of the sessions."""
    return mail(number)._replace(client=CLIENT)


def script(place: Workshop, name: str, text: str, database: Path) -> str:
    """A checker NAME that reads DATABASE as TEXT says."""
    path = place.directory / name
    path.write_text(text.format(interpreter=BARE[0], database=str(database)))
    path.chmod(0o755)
    return str(path)


def asker(found: Session, numbers: Numbers) -> Callable[[], float]:
    """Offers one known envelope after another in the session FOUND."""
    random = Random(1)
    return lambda: found.rcpt(from_client(random.randrange(numbers.known)))


@contextmanager
def session(place: Workshop, program: str, database: Path) -> Iterator[Session]:
    """An SMTP session whose server runs PROGRAM for each RCPT TO."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "greycheck.demo.smtpd"],
            env=settings(database) | tcpserver(CLIENT) | {"SMTPEXTFORK": program},
            cwd=ROOT,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=place.log,
        )
        theirs.close()
        try:
            yield Session(ours)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            server.wait()


if __name__ == "__main__":
    main()
