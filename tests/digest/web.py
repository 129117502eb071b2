"""A web server that runs contrib/greycheck-release.cgi, on loopback."""

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Self

from tests.servers import dying, free_port, wait_until
from tests.support import ROOT, Database

PROGRAM = ROOT / "contrib" / "greycheck-release.cgi"
PATH = "/cgi-bin/greycheck-release.cgi"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Answer(NamedTuple):
    """STATUS, HEADERS by their names in lower case, and TEXT of what the server answers."""

    status: int
    headers: dict[str, str]
    text: str


class Web:
    """busybox httpd with the CGI program, which uses DATABASE; its files are in PLACE."""

    def __init__(self, place: Path, database: Database) -> None:
        programs = place / "www" / "cgi-bin"
        programs.mkdir(parents=True)
        first, rest = PROGRAM.read_text().split("\n", 1)
        assert first == "#!/opt/greycheck/bin/python -I"
        program = programs / PROGRAM.name
        program.write_text(f"#!{sys.executable} -I\n{rest}")
        program.chmod(0o755)
        self.port = free_port()
        self.log = place / "httpd.log"
        environ = {"PATH": os.defpath, "GREYCHECK_CONFIG": "/dev/null", **database.environ}
        command = [
            "busybox",
            "httpd",
            "-f",
            "-p",
            f"127.0.0.1:{self.port}",
            "-h",
            str(place / "www"),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*dying("root"), *command], env=environ, stdout=log, stderr=log
            )
        wait_until(self._listens, "the web server listens", self.log.read_text)

    def _listens(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    @property
    def url(self) -> str:
        """What --links is given."""
        return f"http://127.0.0.1:{self.port}{PATH}"

    def ask(
        self,
        method: str,
        query: str = "",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The answer to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            target = PATH + (f"?{query}" if query else "")
            connection.request(method, target, body, FORM if headers is None else headers)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read().decode())
        finally:
            connection.close()

    def get(self, query: str) -> Answer:
        return self.ask("GET", query)

    def post(self, token: str) -> Answer:
        return self.ask("POST", "", f"token={token}".encode())
