"""An SMTP server on descriptors 0 and 1 that runs checkers exactly as patched qmail-smtpd do.

It is for demonstrations and tests (docs/hooks.rst): it speaks enough SMTP for real clients, runs
under real tcpserver, and discards each message that it takes. Run it as ``python -m
greycheck.demo.smtpd``. Its environment is qmail-smtpd's, and in addition:

``QMAIL_HOME``
    the directory to change to; CHECKENV's program is ``bin/qmail-checkenv`` below it.
``XF_QUITASAP``
    makes it the build of SMTPEXTFORK that closes the connection after a refusal.
``SPP_RCPT``
    the plugins of qmail-spp's section ``[rcpt]``, separated by commas;
    one that begins with ``:`` is a command for sh.
``RCPTHOSTS``
    the domains that mail is taken for, separated by commas; if it is unset, all.

It ignores qmail-spp's commands H, C, S and U.

Diagnostics: one line for each event of a session, on descriptor 2.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import NoReturn

CHECKENV = b"bin/qmail-checkenv"
LONGEST_ADDRESS = 900

CHECKENV_TEMPORARY = b"421 temporary envelope failure (#4.3.0)"
CHECKENV_PERMANENT = b"553 permanent envelope failure (#5.7.1)"

# Exit codes of a checker and SMTPEXTFORK's replies to them; every other code accepts.
REFUSALS = {
    101: b"454 sorry, temporary envelope failure due to local policy",
    100: b"554 sorry, permanent envelope failure due to local policy",
}


RCPTCHECK_REFUSED = b"553 sorry, this recipient is not valid (#5.1.1)"
RCPTCHECK_UNSURE = b"421 unable to verify recipient (#4.3.0)"
RCPTCHECK_FAILED = b"421 unable to execute recipient check (#4.3.0)"

NO_GATEWAY = b"553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"

# The exit code if a program could not be run: RCPTCHECK's and qmail-spp's own.
NOT_RUN = 120

# The commands that end a qmail-spp plugin's output: later lines are ignored.
LAST = (b"A", b"D", b"E", b"N", b"O", b"R")


class Session:
    """One SMTP session, read from descriptor READER and written to WRITER."""

    def __init__(self, reader: int = 0, writer: int = 1) -> None:
        self.reader = reader
        self.writer = writer
        self.input = b""
        self.output = b""
        self.helo = b""
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        # For qmail-spp: True while plugins are run; the number of RCPT TO; replies to later
        # commands.
        self.plugged = True
        self.asked = 0
        self.later: dict[bytes, bytes] = {}

    def run(self) -> None:
        """Answers commands until QUIT or the end of input."""
        self.say(b"220 mail.example.net ESMTP")
        while True:
            self.command(self.line())

    def line(self) -> bytes:
        """Returns the next line, without its end.

        Sends replies if there is nothing more to read: at the end of a pipelined group.
        """
        while b"\n" not in self.input:
            self.flush()
            read = os.read(self.reader, 1024)
            if not read:
                self.leave()
            self.input += read
        line, _newline, self.input = self.input.partition(b"\n")
        return line.removesuffix(b"\r")

    def say(self, reply: bytes) -> None:
        """Adds REPLY to the output."""
        self.output += reply + b"\r\n"

    def flush(self) -> None:
        """Sends all output."""
        while self.output:
            self.output = self.output[os.write(self.writer, self.output) :]

    def leave(self) -> "NoReturn":
        """Sends all output and ends the session."""
        self.flush()
        sys.exit(0)

    def command(self, line: bytes) -> None:
        """Answers the command in LINE, which ends at a NUL byte: qmail-smtpd's are C strings."""
        verb, _blank, argument = line.partition(b"\0")[0].partition(b" ")
        match verb.upper():
            case b"HELO":
                self.helo = argument
                self.say(b"250 mail.example.net")
            case b"EHLO":
                self.helo = argument
                self.say(b"250-mail.example.net\r\n250-PIPELINING\r\n250 8BITMIME")
            case b"MAIL":
                self.mail(argument)
            case b"RCPT":
                self.rcpt(argument)
            case b"DATA":
                self.data()
            case b"RSET":
                self.sender, self.recipients, self.asked, self.later = None, [], 0, {}
                self.say(b"250 flushed")
            case b"NOOP":
                self.say(b"250 ok")
            case b"QUIT":
                self.say(b"221 mail.example.net")
                self.leave()
            case _:
                self.say(b"502 unimplemented (#5.5.1)")

    def mail(self, argument: bytes) -> None:
        """Answers MAIL FROM: begins a message."""
        sender = address(argument)
        if sender is None:
            self.say(b"555 syntax error (#5.5.4)")
        elif not self.is_refused(b"M"):
            self.sender, self.recipients, self.asked = sender, [], 0
            self.say(b"250 ok")

    def rcpt(self, argument: bytes) -> None:
        """Answers RCPT TO: runs the checkers of all hooks.

        rcpthosts is tested after qmail-spp's plugins.
        """
        if self.sender is None:
            self.say(b"503 MAIL first (#5.5.1)")
            return
        recipient = address(argument)
        if recipient is None:
            self.say(b"555 syntax error (#5.5.4)")
            return
        relay = os.environb.get(b"RELAYCLIENT")
        allowed = relay is not None or is_allowed(recipient)
        decided = self.plugins(recipient, allowed)
        if decided is None:
            return
        if not allowed and decided != b"O":
            self.say(NO_GATEWAY)
            return
        recipient += relay or b""
        programs = self.programs()
        environ = dict(os.environb)
        if programs:
            environ |= {
                b"REMOTEMF": self.sender,
                b"REMOTERCPT": recipient,
                b"REMOTEHELO": self.helo,
            }
        if b"CHECKENV" in os.environb:
            self.checkenv([CHECKENV, self.sender, recipient], environ)
        if programs and not self.smtpextfork(programs, environ):
            return
        if not self.rcptcheck(recipient):
            return
        self.recipients.append(recipient)
        self.say(b"250 ok")

    def programs(self) -> bytes:
        """Returns SMTPEXTFORK's list of programs for this client.

        Relay clients have a list of their own.
        """
        ordinary = os.environb.get(b"SMTPEXTFORK", b"")
        if "RELAYCLIENT" not in os.environ:
            return ordinary
        if ordinary and "SMTPEXTFORKR" not in os.environ:
            log(b"relay client, and SMTPEXTFORKR is not set")
        return os.environb.get(b"SMTPEXTFORKR", b"")

    def checkenv(self, argv: list[bytes], environ: dict[bytes, bytes]) -> None:
        """Runs bin/qmail-checkenv with ARGV, and ends the session unless it accepts."""
        status = run(CHECKENV, argv, environ)
        if status == 0:
            return
        if status is None:
            self.say(CHECKENV_TEMPORARY)  # from the fork whose exec failed
        self.say(CHECKENV_PERMANENT if status == 100 else CHECKENV_TEMPORARY)
        self.leave()

    def smtpextfork(self, programs: bytes, environ: dict[bytes, bytes]) -> bool:
        """True if every program of the list accepts the recipient."""
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

    def rcptcheck(self, recipient: bytes) -> bool:
        """True if the program that RCPTCHECK names accepts RECIPIENT.

        Its output goes to the log.
        """
        program = os.environb.get(b"RCPTCHECK")
        if not program:
            return True
        environ = os.environb | {b"SENDER": self.sender or b"", b"RECIPIENT": recipient}
        status = run(program, [program], environ, [(os.POSIX_SPAWN_DUP2, 2, 1)])
        if status == 100:
            self.say(RCPTCHECK_REFUSED)
            return False
        if status == 111:
            self.say(RCPTCHECK_UNSURE)
            self.leave()
        if status is None or status < 0 or status == NOT_RUN:
            self.say(RCPTCHECK_FAILED)
            self.leave()
        return True

    def plugins(self, recipient: bytes, allowed: bool) -> bytes | None:
        """Returns the last command of qmail-spp's plugins on RECIPIENT, or an empty one.

        Returns None if the recipient is refused, and the reply is in the output. ALLOWED is true if
        its domain is in rcpthosts.
        """
        plugins = os.environb.get(b"SPP_RCPT", b"")
        if not plugins or not self.plugged:
            return b""
        if self.is_refused(b"R"):
            return None
        self.asked += 1
        environ = os.environb | {
            b"SMTPHELOHOST": self.helo,
            b"SMTPMAILFROM": self.sender or b"",
            b"SMTPRCPTTO": recipient,
            b"SMTPRCPTCOUNT": b"%d" % len(self.recipients),
            b"SMTPRCPTCOUNTALL": b"%d" % self.asked,
            b"SMTPRCPTHOSTSOK": b"%d" % allowed,
        }
        for plugin in plugins.split(b","):
            word = self.plugin(plugin, environ)
            if word is None or word == b"E":
                return None
            if word in (b"D", b"R"):
                self.leave()
            if word:
                self.plugged = word != b"A"
                return word
        return b""

    def plugin(self, plugin: bytes, environ: dict[bytes, bytes]) -> bytes | None:
        """Runs PLUGIN and obeys it; returns its last command, or an empty one.

        Returns None if it failed, and the reply is in the output.
        """
        argv = [b"/bin/sh", b"-c", plugin[1:]] if plugin.startswith(b":") else [plugin]
        reader, writer = os.pipe()
        try:
            child = os.posix_spawn(
                argv[0],
                argv,
                environ,
                file_actions=[(os.POSIX_SPAWN_CLOSE, 0), (os.POSIX_SPAWN_DUP2, writer, 1)],
            )
        except (OSError, ValueError):  # an empty name is the latter's since Python 3.13
            os.close(reader)
            self.failed(plugin, b"can't execute")
            return None
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as said:
            word = self.obey(said)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            self.failed(plugin, b"child crashed")
        elif status == NOT_RUN:
            self.failed(plugin, b"can't execute")
        else:
            return word
        return None

    def obey(self, said: "Iterable[bytes]") -> bytes:
        """Obeys the lines that a plugin wrote, up to its last command.

        Returns that command, or an empty one.
        """
        for line in said:
            command, text = line[:1], line[1:].removesuffix(b"\n")
            if command in (b"E", b"R", b"P"):
                self.say(text)
            elif command == b"L" and text[:1] in (b"M", b"R", b"D"):
                # Each has a line of its own at that command, though it is but one command.
                self.later[text[:1]] = self.later.get(text[:1], b"") + text[1:] + b"\r\n"
            if command in LAST:
                return command
        return b""

    def failed(self, plugin: bytes, why: bytes) -> None:
        """Refuses the recipient because PLUGIN could not do its work."""
        self.say(b"451 qmail-spp failure: " + plugin + b": " + why + b" (#4.3.0)")

    def is_refused(self, command: bytes) -> bool:
        """True if a plugin asked to refuse a later COMMAND (its first letter).

        Then the reply is in the output. It stays so until RSET.
        """
        self.output += self.later.get(command, b"")
        return command in self.later

    def data(self) -> None:
        """Answers DATA: takes a message, and discards it."""
        if not self.recipients:
            self.say(b"503 RCPT first (#5.5.1)")
            return
        if self.is_refused(b"D"):
            return
        self.say(b"354 go ahead")
        while self.line() != b".":
            pass
        for recipient in self.recipients:
            log(b"delivered from <" + (self.sender or b"") + b"> to <" + recipient + b">")
        self.sender, self.recipients = None, []
        self.say(b"250 ok 1 qp 1")


def address(argument: bytes) -> bytes | None:
    """Returns the address of a MAIL or RCPT command, as qmail-smtpd passes it on.

    Returns None if there is none, or if it is too long.
    """
    _keyword, colon, rest = argument.partition(b":")
    if not colon:
        return None
    rest = rest.lstrip(b" ")
    end = b" "
    if rest.startswith(b"<"):
        rest, end = rest[1:], b">"
        if rest.startswith(b"@"):
            rest = rest.partition(b":")[2]
    unquoted = bytearray()
    quoted = escaped = False
    for char in (rest[index : index + 1] for index in range(len(rest))):
        if escaped:
            unquoted += char
            escaped = False
        elif not quoted and char == end:
            break
        elif char == b"\\":
            escaped = True
        elif char == b'"':
            quoted = not quoted
        else:
            unquoted += char
    return bytes(unquoted) if len(unquoted) < LONGEST_ADDRESS else None


def is_allowed(recipient: bytes) -> bool:
    """True if mail is taken for the domain of RECIPIENT. An address without a domain is local."""
    domains = os.environb.get(b"RCPTHOSTS")
    domain = recipient.rpartition(b"@")[2] if b"@" in recipient else b""
    return domains is None or not domain or domain.lower() in domains.split(b",")


def run(
    program: bytes,
    argv: list[bytes],
    environ: "Mapping[bytes, bytes]",
    descriptors: "Sequence[tuple[int, int, int]]" = (),
) -> int | None:
    """Runs a checker; returns its exit code, or None if exec failed.

    If a signal killed it, returns minus its number. Descriptors 0, 1 and 2 are inherited, or set by
    DESCRIPTORS (file actions of posix_spawn).
    """
    try:
        child = os.posix_spawn(program, argv, environ, file_actions=descriptors)
    except (OSError, ValueError):  # an empty name is the latter's since Python 3.13
        return None
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def log(text: bytes) -> None:
    """Writes TEXT as one line to descriptor 2."""
    os.write(2, b"smtpd: " + text + b"\n")


def main() -> None:
    """Runs one session."""
    os.chdir(os.environ.get("QMAIL_HOME", "."))
    try:
        Session().run()
    except ConnectionError:
        sys.exit(1)  # the client has gone


if __name__ == "__main__":
    main()
