"""An SMTP server on descriptors 0 and 1 that runs checkers exactly as a patched qmail-smtpd does (contract.md).

It is for demonstrations and tests: it speaks enough SMTP for real clients, runs under real tcpserver, and drops each message it takes.
Run as ``python -m greycheck.demo.parent``; its environment is qmail-smtpd's, with these of its own:

``QMAIL_HOME``
    where to change to; CHECKENV's program is ``bin/qmail-checkenv`` below it.
``XF_QUITASAP``
    the build of SMTPEXTFORK that closes the connection after a refusal.

Diagnostics: one line a session event on descriptor 2.
"""

import os
import sys
from typing import NoReturn

CHECKENV = b"bin/qmail-checkenv"
LONGEST_ADDRESS = 900

CHECKENV_TEMPORARY = b"421 temporary envelope failure (#4.3.0)"
CHECKENV_PERMANENT = b"553 permanent envelope failure (#5.7.1)"

# Exit codes of a checker, and what SMTPEXTFORK makes of them; every other code accepts.
REFUSALS = {
    101: b"454 sorry, temporary envelope failure due to local policy",
    100: b"554 sorry, permanent envelope failure due to local policy",
}


class Session:
    """One SMTP session, read from the descriptor READER and written to WRITER."""

    def __init__(self, reader: int = 0, writer: int = 1) -> None:
        self.reader = reader
        self.writer = writer
        self.input = b""
        self.output = b""
        self.helo = b""
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []

    def run(self) -> None:
        """Answers commands until QUIT or the end of input."""
        self.say(b"220 mail.example.net ESMTP")
        while True:
            self.command(self.line())

    def line(self) -> bytes:
        """The next line, without its end. Replies go out when there is nothing more to read: at a pipelined group's end."""
        while b"\n" not in self.input:
            self.flush()
            read = os.read(self.reader, 1024)
            if not read:
                self.leave()
            self.input += read
        line, _newline, self.input = self.input.partition(b"\n")
        return line.removesuffix(b"\r")

    def say(self, reply: bytes) -> None:
        """Puts REPLY behind what is to be sent."""
        self.output += reply + b"\r\n"

    def flush(self) -> None:
        """Sends every reply that waits."""
        while self.output:
            self.output = self.output[os.write(self.writer, self.output) :]

    def leave(self) -> NoReturn:
        """Ends the session."""
        self.flush()
        sys.exit(0)

    def command(self, line: bytes) -> None:
        """Answers one command, which ends at a NUL: it is a C string there."""
        verb, _blank, argument = line.partition(b"\0")[0].partition(b" ")
        match verb.upper():
            case b"HELO":
                self.helo = argument
                self.say(b"250 mail.example.net")
            case b"EHLO":
                self.helo = argument
                self.say(b"250-mail.example.net\r\n250-PIPELINING\r\n250 8BITMIME")
            case b"MAIL":
                self.sender = address(argument)
                self.recipients = []
                self.say(b"250 ok" if self.sender is not None else b"555 syntax error (#5.5.4)")
            case b"RCPT":
                self.rcpt(argument)
            case b"DATA":
                self.data()
            case b"RSET":
                self.sender, self.recipients = None, []
                self.say(b"250 flushed")
            case b"NOOP":
                self.say(b"250 ok")
            case b"QUIT":
                self.say(b"221 mail.example.net")
                self.leave()
            case _:
                self.say(b"502 unimplemented (#5.5.1)")

    def rcpt(self, argument: bytes) -> None:
        """RCPT TO: asks the checkers of both hooks, CHECKENV first."""
        if self.sender is None:
            self.say(b"503 MAIL first (#5.5.1)")
            return
        recipient = address(argument)
        if recipient is None:
            self.say(b"555 syntax error (#5.5.4)")
            return
        relay = os.environb.get(b"RELAYCLIENT")
        recipient += relay or b""
        programs = self.programs()
        environ = dict(os.environb)
        if programs:
            environ |= {b"REMOTEMF": self.sender, b"REMOTERCPT": recipient, b"REMOTEHELO": self.helo}
        if b"CHECKENV" in os.environb:
            self.checkenv([CHECKENV, self.sender, recipient], environ)
        if programs and not self.smtpextfork(programs, environ):
            return
        self.recipients.append(recipient)
        self.say(b"250 ok")

    def programs(self) -> bytes:
        """The list that SMTPEXTFORK runs for this client; relay clients have one of their own."""
        ordinary = os.environb.get(b"SMTPEXTFORK", b"")
        if "RELAYCLIENT" not in os.environ:
            return ordinary
        if ordinary and "SMTPEXTFORKR" not in os.environ:
            log(b"relay client, and SMTPEXTFORKR is not set")
        return os.environb.get(b"SMTPEXTFORKR", b"")

    def checkenv(self, argv: list[bytes], environ: dict[bytes, bytes]) -> None:
        """Lets bin/qmail-checkenv accept, or ends the session."""
        status = run(CHECKENV, argv, environ)
        if status == 0:
            return
        if status is None:
            self.say(CHECKENV_TEMPORARY)  # from the fork whose exec failed
        self.say(CHECKENV_PERMANENT if status == 100 else CHECKENV_TEMPORARY)
        self.leave()

    def smtpextfork(self, programs: bytes, environ: dict[bytes, bytes]) -> bool:
        """Whether every program of the list lets the recipient pass."""
        for program in programs.split(b","):
            status = run(program, [program], environ)
            if status in REFUSALS:
                code = REFUSALS[status][:3]
                text = os.environb.get(code + b"SMTPEXTFORK")
                self.say(code + b" " + text if text else REFUSALS[status])
                if "XF_QUITASAP" in os.environ:
                    self.leave()
                return False
            if status is None:
                log(b"cannot run " + program)
            elif status != 0:
                log(b"unexpected code " + str(status).encode() + b" from " + program)
        return True

    def data(self) -> None:
        """DATA: takes a message, and drops it."""
        if not self.recipients:
            self.say(b"503 RCPT first (#5.5.1)")
            return
        self.say(b"354 go ahead")
        while self.line() != b".":
            pass
        for recipient in self.recipients:
            log(b"delivered from <" + (self.sender or b"") + b"> to <" + recipient + b">")
        self.sender, self.recipients = None, []
        self.say(b"250 ok 1 qp 1")


def address(argument: bytes) -> bytes | None:
    """The address of a MAIL or RCPT command, as qmail-smtpd hands it on; None where it has none, or one that is too long."""
    _keyword, colon, rest = argument.partition(b":")
    if not colon:
        return None
    rest = rest.lstrip(b" ")
    end = b" "
    if rest.startswith(b"<"):
        rest, end = rest[1:], b">"
        if rest.startswith(b"@"):
            rest = rest.partition(b":")[2]
    found = bytearray()
    quoted = escaped = False
    for char in (rest[index : index + 1] for index in range(len(rest))):
        if escaped:
            found += char
            escaped = False
        elif not quoted and char == end:
            break
        elif char == b"\\":
            escaped = True
        elif char == b'"':
            quoted = not quoted
        else:
            found += char
    return bytes(found) if len(found) < LONGEST_ADDRESS else None


def run(program: bytes, argv: list[bytes], environ: dict[bytes, bytes]) -> int | None:
    """Runs a checker with descriptors 0, 1 and 2 as they are; its exit code, minus the signal that killed it, or None: no exec."""
    try:
        child = os.posix_spawn(program, argv, environ)
    except OSError:
        return None
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def log(text: bytes) -> None:
    """One line on descriptor 2."""
    os.write(2, b"smtpd: " + text + b"\n")


def main() -> None:
    """One session."""
    os.chdir(os.environ.get("QMAIL_HOME", "."))
    try:
        Session().run()
    except ConnectionError:
        sys.exit(1)  # the client has gone


if __name__ == "__main__":
    main()
