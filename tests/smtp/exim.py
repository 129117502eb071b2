"""Exim as Debian has it, unpacked beside Postfix, with a configuration, a spool, a port and users
of its own.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.servers import free_port, wait_until
from tests.smtp.dialogue import TIMEOUT
from tests.smtp.maildir import USER, Maildir
from tests.smtp.postfix import DOMAIN, RELAY, Session
from tests.support import ROOT

EXIM = ROOT / ".deps" / "exim4-daemon-light" / "usr" / "sbin" / "exim4"

# The account that Debian's Exim looks for, which is made by a package that is not installed.
ACCOUNT = "Debian-exim"

CONFIGURATION = """\
keep_environment = LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
exim_path = {exim}
exim_user = {user}
exim_group = nogroup
never_users =
deliver_drop_privilege = true
spool_directory = {place}/spool
log_file_path = {place}/exim.%s
pid_file_path = {place}/exim.pid
primary_hostname = mx.example.net
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
host_lookup =
rfc1413_hosts =
tls_advertise_hosts =
acl_smtp_mail = acl_check_mail
acl_smtp_rcpt = acl_check_rcpt

begin acl

acl_check_mail:
{mail}
  accept

acl_check_rcpt:
  deny !domains = {domain}
  accept hosts = {relay}
{rcpt}
  accept

begin routers

all:
  driver = accept
  transport = maildir

begin transports

maildir:
  driver = appendfile
  directory = {place}/mail/all
  maildir_format
  user = {user}
  group = nogroup

begin retry

* * F,2h,15m
"""


class Exim:
    """Exim in PLACE, with these lines of its ACLs for RCPT and MAIL."""

    def __init__(self, place: Path, rcpt: str, mail: str) -> None:
        assert EXIM.is_file(), f"{EXIM} is missing: dev/test fetches it"
        self.place = place
        self.port = free_port()
        self.delivered = Maildir(place / "mail" / "all", self.log).delivered
        self._configuration = place / "exim.conf"
        given = {"exim": EXIM, "rcpt": rcpt, "mail": mail, "domain": DOMAIN, "relay": RELAY}
        self._configuration.write_text(
            CONFIGURATION.format(place=place, port=self.port, user=USER, **given)
        )
        (place / "spool").mkdir()
        shutil.chown(place / "spool", USER)
        # Its logs are written by whoever it is at the moment.
        for name in ("main", "panic", "reject"):
            log = place / f"exim.{name}"
            log.touch()
            shutil.chown(log, USER)
        (place / "passwd").write_text(
            Path("/etc/passwd").read_text() + f"{ACCOUNT}:x:65534:65534::/:/bin/false\n"
        )
        (place / "group").write_text(Path("/etc/group").read_text() + f"{ACCOUNT}:x:65534:\n")

    def __enter__(self) -> "Exim":
        environ = {
            "PATH": os.defpath,
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_PASSWD": f"{self.place}/passwd",
            "NSS_WRAPPER_GROUP": f"{self.place}/group",
        }
        command = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            str(EXIM),
            "-C",
            str(self._configuration),
            "-bdf",
        ]
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL)
        wait_until(lambda: "daemon started" in self.log(), "Exim runs", self.log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT)

    def session(self, client: str = "127.0.0.1") -> Session:
        """A session from the address CLIENT."""
        return Session(self.port, client)

    def log(self, name: str = "main") -> str:
        """What Exim has logged."""
        return (self.place / f"exim.{name}").read_text()
