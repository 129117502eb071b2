"""The forked child as tests run it, and a store that they can age."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from greycheck.store import schema

ROOT = Path(__file__).parent.parent

# A launcher under coverage: the interpreter with its site, and data saved at the exit that skips everything else.
MEASURED = f"""#!{sys.executable} -I
import posix, sys
sys.path.insert(0, {str(ROOT)!r})
import coverage
measure = coverage.Coverage(config_file={str(ROOT / "pyproject.toml")!r}, data_file={str(ROOT / ".coverage")!r}, data_suffix=True)
measure.start()
def saving(leave):
    def save_and_leave(*arguments):
        measure.stop()
        measure.save()
        leave(*arguments)
    return save_and_leave
posix._exit, posix.execv = saving(posix._exit), saving(posix.execv)
from greycheck.child import main
main(({sys.executable!r}, "-I", "-m", "greycheck"))
"""

ACCEPTED, REJECTED, DEFERRED = 0, 100, 101

CLIENT = "192.0.2.1"
SENDER = b"alice@example.org"
RECIPIENT = b"bob@example.net"


class Ran:
    """How a child ended: its exit CODE and its LOG, checked for having left descriptors 0 and 1 alone."""

    def __init__(self, code: int, log: bytes) -> None:
        self.code = code
        self.log = log.decode()
        self.lines = self.log.splitlines()

    @property
    def reason(self) -> str:
        found = re.search(r" reason=(\S+)", self.log)
        assert found, self.log
        return found.group(1)

    @property
    def verdict(self) -> tuple[int, str]:
        return self.code, self.reason

    def __repr__(self) -> str:
        return f"<{self.code} {self.log!r}>"


class Child:
    """Runs the programs in the directory PROGRAMS against the store DATABASE."""

    def __init__(self, programs: Path, database: Path) -> None:
        self.programs = programs
        self.database = database
        self.settings: dict[str, str] = {}

    def environ(self, client: str | None = CLIENT, **more: str | bytes) -> dict[bytes, bytes]:
        """The environment that tcpserver gives, with the settings of this test."""
        environ: dict[str, str | bytes] = {
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_DATABASE": str(self.database),
            "PROTO": "TCP",
            **self.settings,
            **more,
        }
        if client is not None:
            environ["TCPREMOTEIP"] = client
        return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}

    def smtpextfork(
        self,
        sender: str | bytes = SENDER,
        recipient: str | bytes = RECIPIENT,
        client: str | None = CLIENT,
        **more: str | bytes,
    ) -> Ran:
        """Runs it as SMTPEXTFORK does."""
        environ = self.environ(client, REMOTEMF=sender, REMOTERCPT=recipient, REMOTEHELO=b"client.example.org", **more)
        return self.run([self.programs / "greycheck"], environ)

    def checkenv(
        self,
        sender: str | bytes = SENDER,
        recipient: str | bytes = RECIPIENT,
        client: str | None = CLIENT,
        **more: str | bytes,
    ) -> Ran:
        """Runs it as CHECKENV does."""
        return self.run([self.programs / "qmail-checkenv", sender, recipient], self.environ(client, **more))

    def run(self, argv: Sequence[Path | bytes | str], environ: dict[bytes, bytes], **options: object) -> Ran:
        """Runs ARGV with a pipe of SMTP commands on 0 and a watched pipe on 1."""
        reader, writer = os.pipe()
        os.write(writer, b"QUIT\r\n")
        try:
            ran = subprocess.run(  # type: ignore[call-overload]
                [os.fspath(argument) for argument in argv],
                env=environ,
                stdin=reader,
                capture_output=True,
                timeout=60,
                check=False,
                **options,
            )
            os.close(writer)
            writer = -1
            assert os.read(reader, 100) == b"QUIT\r\n", "the child read what the client sent"
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        assert ran.stdout == b"", "the child wrote to the client"
        return Ran(ran.returncode, ran.stderr)

    def make_store(self) -> None:
        """Makes the store, as ``greycheck db upgrade`` does."""
        schema.upgrade(f"sqlite:///{self.database}")

    def age(self, seconds: int) -> None:
        """Moves all that the store knows SECONDS into the past (or the future, if negative)."""
        with sqlite3.connect(self.database) as connection:
            connection.execute(
                "UPDATE triplet SET first_attempt = first_attempt - ?1, last_attempt = last_attempt - ?1,"
                " passed_at = passed_at - ?1, expires_at = expires_at - ?1",
                (seconds,),
            )
            connection.execute(
                "UPDATE client SET first_seen = first_seen - ?1, last_seen = last_seen - ?1, expires_at = expires_at - ?1,"
                " struck_until = max(0, struck_until - ?1)",
                (seconds,),
            )
            connection.execute("UPDATE rule SET created_at = created_at - ?1, expires_at = expires_at - ?1", (seconds,))
        connection.close()

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """The rows of an SQL QUERY."""
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
