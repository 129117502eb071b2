"""Postfix as Debian has it, with a configuration, a queue and ports of its own."""

import os
import re
import shutil
import smtplib
import subprocess
from pathlib import Path

from tests.servers import family, free_port, wait_until
from tests.smtp.dialogue import TIMEOUT
from tests.smtp.maildir import USER_ID, Maildir
from tests.smtp.mailhost import tool

SENDER = "alice@example.org"
RECIPIENT = "bob@example.net"
DOMAIN = "example.net"

# Clients of this address may relay.
RELAY = "127.0.0.9"

MAIN = """\
compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
maillog_file = {place}/postfix.log
maillog_file_prefixes = {place}
inet_interfaces = 127.0.0.1
inet_protocols = all
myhostname = mx.example.net
mydestination =
mynetworks = {relay}/32
alias_maps =
alias_database =
local_recipient_maps =
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = 127.0.0.0/8
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {place}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{user}
virtual_gid_maps = static:{user}
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
"""

MASTER = """\
cleanup   unix  n - n -   0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n -   - trivial-rewrite
proxymap  unix  - - n -   - proxymap
bounce    unix  - - n -   0 bounce
defer     unix  - - n -   0 bounce
trace     unix  - - n -   0 bounce
error     unix  - - n -   - error
retry     unix  - - n -   - error
virtual   unix  - n n -   - virtual
anvil     unix  - - n -   1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


class Session(smtplib.SMTP):
    """A session with the smtpd on PORT, from the address CLIENT."""

    def __init__(self, port: int, client: str = "127.0.0.1") -> None:
        super().__init__("127.0.0.1", port, "client.example.org", TIMEOUT, (client, 0))

    def pretend(self, **attributes: str) -> None:
        """Has the rest be that of a client with these ATTRIBUTES (XCLIENT)."""
        self.ehlo()
        code, said = self.docmd(
            "XCLIENT", " ".join(f"{name}={value}" for name, value in attributes.items())
        )
        assert code == 220, said
        self.ehlo()

    def offer(self, *recipients: str, sender: str = SENDER) -> list[str]:
        """What it says to each of RECIPIENTS."""
        self.ehlo_or_helo_if_needed()
        assert self.mail(sender)[0] == 250
        said = [self.rcpt(recipient) for recipient in recipients]
        return [f"{code} {text.decode()}" for code, text in said]

    def deliver(self) -> str:
        """What it says to the message itself."""
        code, said = self.data("Subject: hello\r\n\r\nHello.\r\n")
        return f"{code} {said.decode()}"


class Postfix:
    """Postfix in PLACE.

    The smtpd on each of ``ports`` has the OPTIONS of that name; MASTER and MAIN are further lines
    of master.cf and main.cf.
    """

    def __init__(
        self, place: Path, options: dict[str, dict[str, str]], master: str = "", main: str = ""
    ) -> None:
        self.place = place
        self.ports = {name: free_port() for name in options}
        self._etc = place / "etc"
        self._log = place / "postfix.log"
        self.delivered = Maildir(place / "mail" / "all", self.log).delivered
        for name in ("etc", "queue", "data"):
            (place / name).mkdir()
        shutil.chown(place / "data", "postfix")
        smtpds = [
            f"127.0.0.1:{port} inet n - n - - smtpd\n"
            + "".join(f" -o {{ {option} = {value} }}\n" for option, value in options[name].items())
            for name, port in self.ports.items()
        ]
        (self._etc / "main.cf").write_text(
            MAIN.format(place=place, relay=RELAY, domain=DOMAIN, user=USER_ID) + main
        )
        (self._etc / "master.cf").write_text(MASTER + "".join(smtpds) + master)

    def __enter__(self) -> "Postfix":
        self._run("postfix", "check")  # makes the queue
        [programs] = self._run("postconf", "-h", "daemon_directory").splitlines()
        self._master = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", f"{programs}/master", "-c", self._etc, "-d"],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: "daemon started" in self.log(), "Postfix runs", self.log)
        return self

    def __exit__(self, *_: object) -> None:
        # It ends all that it has started.
        self._master.terminate()
        self._master.wait(TIMEOUT)

    @property
    def _environ(self) -> dict[str, str]:
        return {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "HOME": str(self.place)}

    def _run(self, program: str, *words: str) -> str:
        command = [tool(program), "-c", str(self._etc), *words]
        return subprocess.run(
            command, env=self._environ, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def processes(self, command: str) -> int:
        """How many processes of it there are whose command line begins like the pattern COMMAND."""
        lines = [
            Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            for pid in family(self._master.pid)
        ]
        return sum(bool(re.match(command, line)) for line in lines)

    def session(self, name: str, client: str = "127.0.0.1") -> Session:
        """A session with the smtpd that has the restrictions called NAME."""
        session = Session(self.ports[name], client)
        if client != RELAY:
            # A loopback address never becomes known: it seems to be the address of that number in
            # 192.0.2.0/24.
            session.pretend(ADDR=client.replace("127.0.0.", "192.0.2."), NAME="[UNAVAILABLE]")
        return session

    def log(self) -> str:
        """What Postfix has logged."""
        return self._log.read_text() if self._log.exists() else ""
