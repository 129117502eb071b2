"""Answers Prometheus over HTTP, in threads of its own, by the library's own WSGI application.

A thread for each address accepts, and at most AT_ONCE others answer; who comes besides is closed.
A peer that is silent for PATIENCE seconds is closed too. Nothing is written to the log but what
``listen`` raises.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from greycheck.metrics.resident import Counted, Families

PATH = "/metrics"
AT_ONCE = 4
PATIENCE = 5.0

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, *_words: object) -> None:
        """Says nothing: the resident's log is for verdicts."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], application: Application) -> None:
        """Listens at ADDRESS. Raises OSError."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.Semaphore(AT_ONCE)
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for this host's name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be made just now
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

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
    """Returns APPLICATION for GET of PATH; all else is answered by 404."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and environ["PATH_INFO"] == PATH:
            return application(environ, start)
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"only GET /metrics\n"]

    return answer
