"""Who wrote to whom, by the lines of greycheck, Postfix, qmail-send and Exim.

A line of greycheck's says it all. Of the others several lines make a mail: who wrote it comes
first, to whom it went later, and both name the mail. So what is known of MAILS mails is kept.

Nothing that comes from outside may pass for one of our users. Of Postfix and Exim only mails count
whose client has authenticated itself; of qmail-send, which does not say, those that leave the host.
What a peer may write into a line is left out before anything is looked for.
"""

import re
from collections import OrderedDict

from greycheck.log import CUT, unshown
from greycheck.mail_logs import checks
from greycheck.mail_logs.lines import Line
from greycheck.outbound import USERS

# How many mails are remembered whose recipients are still to come.
MAILS = 100_000

# The longest address that is remembered, in bytes: qmail-smtpd takes none that is longer.
LONGEST = 900

# Sender and recipient, as the log has them.
Pair = tuple[bytes, bytes]

_GREYCHECK = b"accept reason=exempt "
_BY = {f"by={name}".encode() for name in USERS}

_POSTFIX = re.compile(rb"([0-9A-Za-z]{5,24}): ")
_SENT = re.compile(rb"to=<([^<>]*)>, ")

_INFO = re.compile(rb"info msg (\d{1,20}): bytes \d{1,20} from <(.*)> qp \d{1,20} uid \d{1,20}$")
_START = re.compile(rb"starting delivery \d{1,20}: msg (\d{1,20}) to remote (.*)$")
_END = re.compile(rb"end msg (\d{1,20})$")
# What splogger puts before a line.
_SPLOGGER = re.compile(rb"(\d{9,11})\.\d{6} ")

_EXIM = re.compile(
    rb"(?:\[\d{1,10}\] )?([0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4})"
    rb" (<=|=>|->|Completed)(?: (\S+)(.*))?$"
)
# What a peer may have written into Exim's lines: quoted, be it to the end, and in parentheses.
_QUOTED = re.compile(rb'"[^"\\]*(?:\\.?[^"\\]*)*(?:"|$)')
_NAMED = re.compile(rb"\([^()]*\)")
# Who authenticated himself, and to which host a mail went.
_BY_USER, _TO_HOST = re.compile(rb" A=\S"), re.compile(rb" H=\S")


class Mails:
    """Reads line by line who wrote to whom."""

    def __init__(self) -> None:
        # The senders of mails, by mail server and its name of the mail; empty where it is not known
        # yet.
        self._senders: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()

    def read(self, line: Line) -> Pair | None:
        """Returns the sender and the recipient that LINE says, with those before it; else None."""
        says, program = line.says, line.program
        if program.startswith(b"postfix"):
            return self._postfix(says, program.rpartition(b"/")[2])
        ours = checks.said(line)
        if ours is not None:
            return _greycheck(ours)
        if found := _SPLOGGER.match(says):
            says, line.when = says[found.end() :], int(found[1])
        if says.startswith((b"info msg ", b"starting delivery ", b"end msg ")):
            return self._qmail(says)
        if found := _EXIM.match(says):
            return self._exim(found[1], found[2], found[3] or b"", found[4] or b"")
        return None

    # --- what is remembered -----------------------------------------------------------------------

    def _wrote(self, server: str, mail: bytes, sender: bytes) -> None:
        if len(sender) > LONGEST:
            return
        self._senders.pop((server, mail), None)
        while len(self._senders) >= MAILS:
            self._senders.popitem(last=False)
        self._senders[server, mail] = sender

    def _went(self, server: str, mail: bytes, recipient: bytes) -> Pair | None:
        sender = self._senders.get((server, mail))
        return (sender, recipient) if sender and len(recipient) <= LONGEST else None

    def _ended(self, server: str, mail: bytes) -> None:
        self._senders.pop((server, mail), None)

    # --- the mail servers -------------------------------------------------------------------------

    def _postfix(self, says: bytes, service: bytes) -> Pair | None:
        """Postfix: smtpd names the user, qmgr the sender, smtp each recipient."""
        found = _POSTFIX.match(says)
        if found is None:
            return None
        mail, rest = found[1], says[found.end() :]
        if service == b"smtpd":
            fields = rest.split(b", ")
            is_user = any(field.startswith(b"sasl_username=") for field in fields[1:])
            if fields[0].startswith(b"client=") and is_user:
                self._wrote("postfix", mail, b"")
        elif service == b"qmgr":
            if rest == b"removed":
                self._ended("postfix", mail)
            elif rest.startswith(b"from=<") and ("postfix", mail) in self._senders:
                self._wrote("postfix", mail, rest[len(b"from=<") :].partition(b">, size=")[0])
        elif service == b"smtp" and (sent := _SENT.match(rest)):
            # What follows the first status is the other server's.
            status = rest[sent.end() - 2 :].partition(b", status=")[2]
            if status.startswith(b"sent "):
                return self._went("postfix", mail, sent[1])
        return None

    def _qmail(self, says: bytes) -> Pair | None:
        """qmail-send: what is delivered to remote was written by somebody here."""
        if found := _INFO.match(says):
            self._wrote("qmail", found[1], found[2])
        elif found := _START.match(says):
            return self._went("qmail", found[1], found[2])
        elif found := _END.match(says):
            self._ended("qmail", found[1])
        return None

    def _exim(self, mail: bytes, what: bytes, address: bytes, rest: bytes) -> Pair | None:
        """Exim: what comes has the user, what goes the host."""
        if what == b"Completed":
            self._ended("exim", mail)
            return None
        bare = _NAMED.sub(b"", _QUOTED.sub(b"", rest))
        if what == b"<=":
            if _BY_USER.search(bare):
                self._wrote("exim", mail, address)
            return None
        return self._went("exim", mail, address) if _TO_HOST.search(bare) else None


def _greycheck(says: bytes) -> Pair | None:
    """The line of a check: its pairs cannot be forged, as nothing in them has a blank."""
    if not says.startswith(_GREYCHECK):
        return None
    fields = says.split(b" ")
    if _BY.isdisjoint(fields[5:]):
        return None
    _client, sender, recipient = fields[2:5]
    if not (sender.startswith(b"sender=<") and recipient.startswith(b"recipient=<")):
        return None
    pair = sender[len(b"sender=<") : -1], recipient[len(b"recipient=<") : -1]
    if any(CUT.encode() in address for address in pair):
        return None  # not all of it is there
    return unshown(pair[0]), unshown(pair[1])
