"""A resident that does as it is told: it listens on a unix socket, notes what it is asked, and
answers by script.
"""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

Script = Callable[["Resident", socket.socket], object]

ACCEPTED_LINE = b"greycheck: accept reason=known client=192.0.2.1 hook=smtpextfork ms=0\n"
ACCEPT = b"action=DUNNO\nexit=0\nlog=" + ACCEPTED_LINE + b"\n"


def end_of_request(connection: socket.socket) -> bytes:
    """What CONNECTION sends, up to an empty line or its end."""
    asked = b""
    while not asked.endswith(b"\n\n"):
        more = connection.recv(65536)
        if not more:
            break
        asked += more
    return asked


class Resident:
    """Listens on PATH; ANSWER is what it says to each request before it closes, or the script that
    does that; None closes at once.

    ``requests`` is what it was asked, and ``later`` what came after that: nothing, if all is well.
    """

    def __init__(self, path: Path, answer: bytes | Script | None = ACCEPT) -> None:
        self.path = path
        self.answer = answer
        self.requests: list[bytes] = []
        self.later = b""
        self.over = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(128)
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> "Resident":
        self._threads[0].start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                connection, _address = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=[connection])
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            if self.answer is None:
                return
            self.requests.append(end_of_request(connection))
            try:
                if callable(self.answer):
                    self.answer(self, connection)
                else:
                    connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_WR)
                self.later += connection.recv(65536)
            except OSError:
                pass  # whoever asked is gone

    def hang(self, _connection: socket.socket) -> None:
        """Keeps a connection until all is over."""
        self.over.wait(120)

    @property
    def asked(self) -> dict[str, str]:
        """The attributes of the only request."""
        assert len(self.requests) == 1, self.requests
        lines = self.requests[0].decode("latin-1").removesuffix("\n\n").split("\n")
        return dict(line.split("=", 1) for line in lines)
