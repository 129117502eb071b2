"""Answers Prometheus over HTTP, in threads of its own, by the library's own WSGI application.

A thread for each address accepts, and at most AT_ONCE others answer; who comes besides is closed.
Who has not got his answer after PATIENCE seconds is closed too, however busy he is.

Diagnostics: what ``listen`` raises; in the log one warning, each QUIET seconds at most, of what
could not be told.
"""

import io
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from greycheck import log
from greycheck.metrics.resident import Counted, Families

PATH = "/metrics"
AT_ONCE = 4
PATIENCE = 5.0
QUIET = 60.0

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Handler(WSGIRequestHandler):
    def log_message(self, *_words: object) -> None:
        """Says nothing: the resident's log is for verdicts."""

    def get_stderr(self) -> io.StringIO:
        """Returns where the library writes tracebacks: they are lost, as those of a lost peer."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], application: Application) -> None:
        """Listens at ADDRESS. Raises OSError."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        # The connections that are answered, and when each is over (``monotonic``).
        self._ends: dict[Any, float] = {}
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for this host's name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._ends) >= AT_ONCE:
            self.shutdown_request(request)
            return
        self._ends[request] = monotonic() + PATIENCE
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be made just now
            self._ends.pop(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._ends.pop(request)

    def service_actions(self) -> None:
        """Ends what has taken too long: its thread reads or writes no more. Called twice a second.

        A limit to each read would not do: a peer may send a byte now and then.
        """
        now = monotonic()
        # A copy is one step of the interpreter: the threads take theirs away.
        for request, end in self._ends.copy().items():
            if now > end:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: the peer has gone, or was too slow."""


def listen(address: tuple[str, int], counted: Counted) -> None:
    """Answers at ADDRESS, in threads that end with the process, with what is COUNTED.

    Raises OSError if it cannot listen there.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(counted))
    server = _Server(address, _only_metrics(make_wsgi_app(registry)))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _only_metrics(application: Application) -> Application:
    """Returns APPLICATION for GET of PATH; all else is answered by 404.

    Where APPLICATION fails, the answer is 500, and the log has one line.
    """
    quiet_until = 0.0

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        nonlocal quiet_until
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or environ["PATH_INFO"] != PATH:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"only GET /metrics\n"]
        try:
            return application(environ, start)
        except Exception as error:
            if monotonic() > quiet_until:
                quiet_until = monotonic() + QUIET
                said = f"warning metrics: not told: {type(error).__name__}: {error}"
                log.write_from_thread(log.line(said))
            start("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"see the log\n"]

    return answer
