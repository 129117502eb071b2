"""A player of SMTP dialogues over a real socket.

A dialogue is a text of these lines::

    S: 220
    C: MAIL FROM:<alice@example.org>
    C: RCPT TO:<bob@example.net>
    S: 250
    S: 454 sorry
    S: closed

``S:`` is how the last line of the server's next reply begins, or ``closed``: the server ends the
connection. ``C:`` is a line from the client; those that follow each other are sent in one write.
Where a dialogue ends with ``C:``, the client disconnects without waiting for the replies; elsewhere
the server must have nothing more to say.
"""

import re
import socket
from collections.abc import Iterator
from itertools import groupby

TIMEOUT = 60
REPLY_LINE = re.compile(rb"\d{3}([ -])[\x20-\x7e]*\r\n")

ACCEPTED = """\
S: 250 ok
C: DATA
S: 354
C: Subject: hello
C:
C: Hello.
C: .
S: 250
C: QUIT
S: 221
S: closed"""

DEFERRED_454 = """\
S: 454 sorry, temporary envelope failure due to local policy
C: QUIT
S: 221
S: closed"""

# What follows RCPT TO, and is deferred at DATA.
DEFERRED_AT_DATA = """\
S: 250 ok
C: DATA
S: 451
C: QUIT
S: 221
S: closed"""

DEFERRED_451 = """\
S: 451
C: QUIT
S: 221
S: closed"""

DEFERRED_421_RCPTCHECK = """\
S: 421 unable to verify recipient (#4.3.0)
S: closed"""

DEFERRED_421 = """\
S: 421 temporary envelope failure (#4.3.0)
S: closed"""


def mail(
    outcome: str, sender: str = "alice@example.org", recipient: str = "bob@example.net"
) -> str:
    """The dialogue of one mail to one recipient, whose OUTCOME is what follows RCPT TO."""
    return f"""
        S: 220
        C: EHLO client.example.org
        S: 250
        C: MAIL FROM:<{sender}>
        S: 250
        C: RCPT TO:<{recipient}>
        {outcome}
    """


def play(text: str, host: str, port: int, client: str | None = None) -> None:
    """Plays the dialogue TEXT with the server, from the address CLIENT; an AssertionError shows how
    far the two agreed.
    """
    source = (client, 0) if client else None
    with socket.create_connection(
        (host, port), timeout=TIMEOUT, source_address=source
    ) as connection:
        player = Player(connection)
        who = ""
        for who, lines in groups(text):
            if who == "C:":
                player.send(lines)
            else:
                player.expect_all(lines)
        if who == "S:":
            player.end()


def groups(text: str) -> Iterator[tuple[str, list[bytes]]]:
    """The groups of lines that one side sends: ("S:" or "C:", lines).

    Only a line feed ends a line, as in SMTP.
    """
    lines = [stripped for line in text.split("\n") if (stripped := line.lstrip(" "))]
    for who, group in groupby(lines, key=lambda line: line[:2]):
        assert who in ("S:", "C:"), f"no line of a dialogue: {who}"
        yield who, [line[3:].encode("utf-8", "surrogateescape") for line in group]


class Player:
    """The client's end of a session."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.transcript: list[bytes] = []
        self.is_closed = False

    def send(self, lines: list[bytes]) -> None:
        """Sends LINES in one write."""
        self.transcript += [b"C: " + line for line in lines]
        self.connection.sendall(b"".join(line + b"\r\n" for line in lines))

    def expect_all(self, lines: list[bytes]) -> None:
        """Reads one reply for each of LINES."""
        for line in lines:
            if line == b"closed":
                self.expect_end()
            else:
                self.expect(line)

    def expect(self, prefix: bytes) -> None:
        """Reads a reply whose last line begins with PREFIX."""
        more = b"-"
        line = b""
        while more == b"-":
            line = self.line()
            self.transcript.append(b"S: " + line.removesuffix(b"\r\n"))
            found = REPLY_LINE.fullmatch(line)
            assert found, self.story("this is no line of a reply")
            more = found.group(1)
        assert line.startswith(prefix), self.story(f"expected {prefix!r}")

    def expect_end(self) -> None:
        """Reads the end of the connection, and nothing before it."""
        rest = self.received
        while not rest and (read := self.read()):
            rest += read
        assert not rest, self.story(f"expected the end, got {rest!r}")
        self.is_closed = True

    def end(self) -> None:
        """Says that no more comes from the client; the server must have no more to say either."""
        if not self.is_closed:
            self.connection.shutdown(socket.SHUT_WR)
            self.expect_end()

    def line(self) -> bytes:
        """The next line of the server, with its end."""
        while b"\n" not in self.received:
            read = self.read()
            assert read, self.story(f"the server closed the connection after {self.received!r}")
            self.received += read
        line, newline, self.received = self.received.partition(b"\n")
        return line + newline

    def read(self) -> bytes:
        """What comes next; empty at the end.

        A server that closes before it has read everything resets the connection.
        """
        try:
            return self.connection.recv(65536)
        except ConnectionResetError:
            return b""

    def story(self, complaint: str) -> str:
        """COMPLAINT after the dialogue so far."""
        return "\n".join(
            [*(line.decode("utf-8", "backslashreplace") for line in self.transcript), complaint]
        )
